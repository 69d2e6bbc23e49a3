/* A trivial WebSocket server, the ceiling of what the load generator can measure: it does nothing that it can leave
 * out. One thread, one epoll object, frames unmasked in place. It echoes; what comes in on /publish goes to everyone on
 * /subscribe; with `raw` it echoes bytes without any handshake.
 */

#include "accept.h"

struct peer {
    struct wire wire;
    uint8_t *data;
    size_t size, capacity;
    bool publisher, subscriber;
};

static struct peer **peers;
static size_t peer_count;

static void send_all(struct wire *wire, const uint8_t *data, size_t size) {
    while (size) {
        ssize_t taken = wire_write(wire, data, size);
        if (taken < 0) {
            /* The load generator always reads, so waiting for this one peer cannot last. */
            usleep(20);
            continue;
        }
        data += taken;
        size -= (size_t)taken;
    }
}

static void answer(struct peer *peer, const uint8_t *data, size_t size) {
    if (!peer->publisher) {
        send_all(&peer->wire, data, size);
        return;
    }
    for (size_t each = 0; each < peer_count; each++)
        if (peers[each]->subscriber) send_all(&peers[each]->wire, data, size);
}

/* Turn the masked frames in the buffer into unmasked ones, in place (they only get shorter), and answer with them. */
static bool answer_frames(struct peer *peer) {
    uint8_t *in = peer->data, *end = in + peer->size, *out = in, *start = in;
    while (end - in >= 6) {
        uint64_t length = in[1] & 127;
        size_t header = length == 126 ? 4 : length == 127 ? 10 : 2;
        if ((size_t)(end - in) < header + 4) break;
        if (length > 125) {
            length = 0;
            for (size_t each = 2; each < header; each++) length = length << 8 | in[each];
        }
        if ((uint64_t)(end - in) < header + 4 + length) break;
        if (in[0] == 0x88) return false;
        uint32_t key;
        memcpy(&key, in + header, 4);
        const uint8_t *bytes = (const uint8_t *)&key, *payload = in + header + 4;
        uint8_t first = in[0], size_byte = in[1] & 127, extended[8];
        memcpy(extended, in + 2, header - 2);
        out[0] = first;
        out[1] = size_byte;
        memcpy(out + 2, extended, header - 2);
        out += header;
        for (uint64_t each = 0; each < length; each++) out[each] = payload[each] ^ bytes[each & 3];
        out += length;
        in += header + 4 + length;
    }
    if (out != start) answer(peer, start, (size_t)(out - start));
    peer->size = (size_t)(end - in);
    memmove(peer->data, in, peer->size);
    return true;
}

static void welcome(int fd, int epoll, SSL_CTX *tls, bool raw) {
    char head[4096];
    int one = 1;
    struct peer *peer = allocate(sizeof *peer);
    peer->wire.fd = fd;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (tls) shake_hands(&peer->wire, tls, true);
    if (!raw) {
        char accept[29], response[256];
        read_head(&peer->wire, head, sizeof head);
        answer_key(head, accept);
        snprintf(response, sizeof response,
                 "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                 "Sec-WebSocket-Accept: %s\r\n\r\n",
                 accept);
        peer->publisher = !strncmp(head, "GET /publish ", 13);
        peer->subscriber = !strncmp(head, "GET /subscribe ", 15);
        send_all(&peer->wire, (const uint8_t *)response, strlen(response));
    }
    set_blocking(fd, false);
    peer->capacity = 1 << 16;
    peer->data = allocate(peer->capacity);
    peers = realloc(peers, (peer_count + 1) * sizeof *peers);
    peers[peer_count++] = peer;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = peer};
    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

static void part_with(struct peer *peer) {
    for (size_t each = 0; each < peer_count; each++)
        if (peers[each] == peer) peers[each] = peers[--peer_count];
    wire_close(&peer->wire);
    free(peer->data);
    free(peer);
}

static void serve_peer(struct peer *peer, bool raw) {
    do {
        if (peer->size == peer->capacity) {
            peer->capacity *= 2;
            peer->data = realloc(peer->data, peer->capacity);
        }
        ssize_t taken = wire_read(&peer->wire, peer->data + peer->size, peer->capacity - peer->size);
        if (taken < 0) return;
        peer->size += (size_t)taken;
        bool alive = taken > 0;
        if (alive && raw) {
            answer(peer, peer->data, peer->size);
            peer->size = 0;
        } else if (alive) {
            alive = answer_frames(peer);
        }
        if (!alive) {
            part_with(peer);
            return;
        }
    } while (peer->wire.ssl); /* OpenSSL may hold bytes that epoll does not see */
}

_Noreturn static void serve(const char *certificate, bool raw) {
    tolerant = true;
    struct sockaddr_in name = loopback("127.0.0.1", 0);
    socklen_t size = sizeof name;
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0), epoll = epoll_create1(0);
    SSL_CTX *tls = certificate ? tls_context(true, certificate) : NULL;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&name, size) || listen(listener, 4096)) die("listen: %s", strerror(errno));
    getsockname(listener, (struct sockaddr *)&name, &size);
    struct epoll_event event = {.events = EPOLLIN}, events[256];
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
    printf("listening on 127.0.0.1:%d\n", ntohs(name.sin_port));
    fflush(stdout);
    for (;;) {
        int count = epoll_wait(epoll, events, 256, -1);
        for (int each = 0; each < count; each++) {
            if (events[each].data.ptr)
                serve_peer(events[each].data.ptr, raw);
            else
                welcome(accept(listener, NULL, NULL), epoll, tls, raw);
        }
    }
}
