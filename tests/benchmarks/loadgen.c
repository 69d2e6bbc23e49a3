/* The load generator: one thread, one epoll object, all frames built and masked before the clock starts.
 *
 *   loadgen echo        CONNECTIONS x DEPTH messages in flight; every byte that comes back is compared
 *   loadgen publish     one publisher, the other connections are subscribers; counts deliveries
 *   loadgen handshake   opening handshakes, one at a time
 *   loadgen idle        open connections, say so, answer pings until stdin ends
 *   loadgen serve       the trivial server of echoserver.h
 *   loadgen certificate FILE
 *
 * A connection is two streams of bytes that are known beforehand. What may be sent and what must come back are rings of
 * `ring_frames` different frames, each kept twice in a row so that any piece of the stream lies in one place. So
 * sending is one system call without any work, and checking is one memcmp. That, and reading the clock once for each
 * batch of events, is why this keeps ahead of what it measures.
 *
 * With --deflate=FILE the messages are compressed, and the file holds sixteen of them, all of one size: none refers to
 * another one, so they may be sent in any order and again and again. What comes back is then counted and not compared,
 * because each server compresses in its own way.
 *
 * That it does is checked in every run and not only claimed: the result holds the share of the time in which this
 * process had work (`client_cpu`). While that is clearly below 1, it was waiting for the server and not the other way
 * round. The trivial server stands in every table of echoes as the ceiling.
 */
#include "wire.h"

#include "echoserver.h"

#include <getopt.h>

static struct {
    int port, connections, depth, flood, pid;
    size_t size;
    double seconds, warmup;
    bool raw, binary, tls;
    const char *path, *certificate, *deflate;
} option = {.connections = 1, .depth = 1, .size = 64, .seconds = 1, .warmup = 0.2, .path = "/"};

struct connection {
    struct wire wire;
    uint64_t allowed, sent, received; /* positions in the streams of frames; the handshake does not count */
    uint64_t answered;                /* whole messages that came back */
    uint64_t *sent_at;                /* of the messages in flight */
    bool floods, blocked;
    uint64_t missing; /* with --deflate: bytes of a payload that have not come yet */
    size_t headed;    /* and bytes of a header that have */
    uint8_t head[4];
};

static SSL_CTX *tls;
static int epoll;
static uint8_t *outgoing, *expected, *scratch;
static size_t ring_frames, out_frame, in_frame, out_ring, in_ring;

enum { SCRATCH = 1 << 18 };

/* The histogram: 32 buckets for each power of two of nanoseconds, so a value is known to about 3 %. */

static uint64_t histogram[64 * 32], histogram_count, histogram_maximum;

static void note_latency(uint64_t value) {
    int shift = value < 32 ? 0 : 63 - __builtin_clzll(value) - 5;
    histogram[shift * 32 + (int)(value >> shift)]++;
    histogram_count++;
    if (value > histogram_maximum) histogram_maximum = value;
}

static double percentile(double share) {
    uint64_t wanted = (uint64_t)(share * (double)histogram_count), seen = 0;
    for (size_t each = 0; each < sizeof histogram / sizeof *histogram; each++) {
        seen += histogram[each];
        if (seen <= wanted) continue;
        uint64_t shift = each < 64 ? 0 : each / 32 - 1;
        return (double)((each - shift * 32) << shift) / 1000;
    }
    return (double)histogram_maximum / 1000;
}

/* The window of time that counts, and the result */

static struct {
    uint64_t wall, client, server;
} began;

static void start_window(void) {
    memset(histogram, 0, sizeof histogram);
    histogram_count = histogram_maximum = 0;
    began.client = nanoseconds(CLOCK_PROCESS_CPUTIME_ID);
    began.server = cpu_time_of(option.pid);
    began.wall = nanoseconds(CLOCK_MONOTONIC);
}

static void print_result(uint64_t count) {
    double wall = (double)(nanoseconds(CLOCK_MONOTONIC) - began.wall);
    double client = (double)(nanoseconds(CLOCK_PROCESS_CPUTIME_ID) - began.client);
    double server = (double)(cpu_time_of(option.pid) - began.server);
    printf("{\"count\": %llu, \"seconds\": %.4f, \"rate\": %.1f, \"p50_us\": %.1f, \"p99_us\": %.1f, \"max_us\": %.1f, "
           "\"client_cpu\": %.3f, \"server_cpu\": %.3f, \"server_us\": %.3f}\n",
           (unsigned long long)count, wall / 1e9, (double)count * 1e9 / wall, percentile(0.5), percentile(0.99),
           (double)histogram_maximum / 1000, client / wall, server / wall, count ? server / (double)count / 1000 : 0.0);
}

/* Frames */

static size_t put_header(uint8_t *frame, size_t size, bool masked) {
    size_t header = size < 126 ? 2 : size < 65536 ? 4 : 10;
    frame[0] = option.deflate ? 0xc1 : option.binary ? 0x82 : 0x81;
    frame[1] = (uint8_t)((size < 126 ? size : size < 65536 ? 126 : 127) | (masked ? 0x80 : 0));
    for (size_t each = 2; each < header; each++) frame[each] = (uint8_t)(size >> 8 * (header - 1 - each));
    return header;
}

static uint32_t random_word(void) {
    static uint32_t state = 2463534242u;
    state ^= state << 13;
    state ^= state >> 17;
    return state ^= state << 5;
}

/* A JSON object with one long string for text, any bytes for binary; no two frames of the ring are alike. */
static void fill_payload(uint8_t *payload, size_t size, size_t number) {
    char start[32];
    int length = snprintf(start, sizeof start, "{\"n\":%zu,\"data\":\"", number);
    for (size_t each = 0; each < size; each++)
        payload[each] = option.binary ? (uint8_t)random_word() : (uint8_t)('a' + random_word() % 26);
    if (!option.binary && size > (size_t)length + 2) {
        memcpy(payload, start, (size_t)length);
        memcpy(payload + size - 2, "\"}", 2);
    }
}

enum { COMPRESSED = 16 };

/* The messages of --deflate, one behind the other. */
static uint8_t *read_messages(void) {
    FILE *file = fopen(option.deflate, "rb");
    if (!file || fseek(file, 0, SEEK_END)) die("cannot read %s", option.deflate);
    size_t size = (size_t)ftell(file);
    uint8_t *messages = allocate(size);
    rewind(file);
    if (!size || size % COMPRESSED || fread(messages, 1, size, file) != size) die("%s is not whole", option.deflate);
    fclose(file);
    option.size = size / COMPRESSED;
    offer = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n";
    offered = "permessage-deflate";
    return messages;
}

static void build_rings(void) {
    uint8_t *messages = option.deflate ? read_messages() : NULL;
    if (messages && option.depth > COMPRESSED) die("--deflate has no more than %d messages", COMPRESSED);
    size_t size = option.size;
    ring_frames = (size_t)option.depth > 16 ? (size_t)option.depth : size > 1 << 16 ? (size_t)option.depth : 16;
    uint8_t *payload = allocate(size);
    uint8_t header[16];
    in_frame = put_header(header, size, false) + size;
    out_frame = in_frame + 4;
    outgoing = allocate(2 * ring_frames * out_frame);
    expected = allocate(2 * ring_frames * out_frame);
    for (size_t each = 0; each < ring_frames; each++) {
        if (messages) memcpy(payload, messages + each * size, size);
        else fill_payload(payload, size, each);
        uint8_t *out = outgoing + each * out_frame, *in = expected + each * in_frame;
        uint32_t key = random_word();
        out += put_header(out, size, true);
        memcpy(out, &key, 4);
        for (size_t at = 0; at < size; at++) out[4 + at] = payload[at] ^ out[at & 3];
        memcpy(in + put_header(in, size, false), payload, size);
    }
    if (option.raw) { /* the very same bytes come back */
        in_frame = out_frame;
        memcpy(expected, outgoing, ring_frames * out_frame);
    }
    out_ring = ring_frames * out_frame;
    in_ring = ring_frames * in_frame;
    memcpy(outgoing + out_ring, outgoing, out_ring);
    memcpy(expected + in_ring, expected, in_ring);
    free(payload);
    scratch = allocate(SCRATCH);
}

/* Connections */

static void watch(struct connection *connection, int change) {
    bool writing = connection->blocked || connection->floods;
    struct epoll_event event = {.events = EPOLLIN | (writing ? EPOLLOUT : 0), .data.ptr = connection};
    if (epoll_ctl(epoll, change, connection->wire.fd, &event)) die("epoll_ctl: %s", strerror(errno));
}

static void open_connection(struct connection *connection, const char *path) {
    memset(connection, 0, sizeof *connection);
    connection->wire.fd = dial(option.port);
    if (option.tls) shake_hands(&connection->wire, tls, false);
    if (!option.raw) open_websocket(&connection->wire, path, option.port);
    connection->sent_at = allocate((size_t)option.depth * sizeof(uint64_t));
    set_blocking(connection->wire.fd, false);
}

static void push(struct connection *connection) {
    uint64_t budget = connection->floods ? 1 << 16 : UINT64_MAX; /* a flood must not drown this process */
    bool blocked = false;
    while (connection->sent < connection->allowed && budget && !blocked) {
        uint64_t left = connection->allowed - connection->sent, at = connection->sent % out_ring;
        if (left > out_ring) left = out_ring;
        if (left > budget) left = budget;
        ssize_t taken = wire_write(&connection->wire, outgoing + at, left);
        blocked = taken < 0;
        if (taken > 0) {
            connection->sent += (uint64_t)taken;
            budget -= (uint64_t)taken;
        }
    }
    if (blocked != connection->blocked) {
        connection->blocked = blocked;
        if (!connection->floods) watch(connection, EPOLL_CTL_MOD);
    }
}

static void check(struct connection *connection, size_t size) {
    const uint8_t *data = scratch;
    while (size) {
        uint64_t at = connection->received % in_ring;
        size_t piece = size < in_ring ? size : in_ring;
        if (memcmp(data, expected + at, piece)) {
            size_t wrong = 0;
            while (data[wrong] == expected[at + wrong]) wrong++;
            die("byte %llu of the stream is %02x and not %02x", (unsigned long long)(connection->received + wrong),
                data[wrong], expected[at + wrong]);
        }
        connection->received += piece;
        data += piece;
        size -= piece;
    }
}

/* Follow the frames that come back; each has to be a compressed text of less than 64 KiB. */
static void count_frames(struct connection *connection, size_t size) {
    for (const uint8_t *data = scratch; size;) {
        if (connection->missing) {
            uint64_t piece = connection->missing < size ? connection->missing : size;
            connection->missing -= piece;
            data += piece;
            size -= piece;
        } else {
            uint8_t *head = connection->head;
            head[connection->headed++] = *data++;
            size--;
            if (connection->headed < 2 || (head[1] == 126 && connection->headed < 4)) continue;
            if (head[0] != 0xc1 || !head[1] || head[1] > 126) die("%02x %02x is not compressed text", head[0], head[1]);
            connection->missing = head[1] < 126 ? head[1] : (uint64_t)head[2] << 8 | head[3];
            connection->headed = 0;
        }
        if (!connection->missing && !connection->headed) connection->answered++;
    }
}

/* Read what has come, check it, and return how many messages it completed; `now` is the time of this batch. */
static uint64_t pull(struct connection *connection, uint64_t now, bool timed) {
    uint64_t before = connection->answered;
    size_t budget = 1 << 20;
    for (;;) {
        ssize_t taken = wire_read(&connection->wire, scratch, SCRATCH);
        if (!taken) die("the server closed a connection");
        if (taken < 0) break;
        if (option.deflate) count_frames(connection, (size_t)taken);
        else check(connection, (size_t)taken);
        budget -= (size_t)taken < budget ? (size_t)taken : budget;
        if (!connection->wire.ssl && (taken < SCRATCH || !budget)) break;
    }
    if (!option.deflate) connection->answered = connection->received / in_frame;
    if (timed)
        for (uint64_t each = before; each < connection->answered; each++)
            note_latency(now - connection->sent_at[each % (uint64_t)option.depth]);
    return connection->answered - before;
}

static void allow(struct connection *connection, uint64_t messages, uint64_t now) {
    uint64_t first = connection->allowed / out_frame;
    for (uint64_t each = 0; each < messages; each++)
        connection->sent_at[(first + each) % (uint64_t)option.depth] = now;
    connection->allowed += messages * out_frame;
    push(connection);
}

static const uint8_t goodbye[] = {0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8};

/* Whether the connection has ended; until then, one step towards that: finish the frame, say goodbye, drop the rest. */
static bool step_to_end(struct connection *connection) {
    ssize_t taken = 1;
    for (size_t budget = 64; budget && taken > 0; budget--) taken = wire_read(&connection->wire, scratch, SCRATCH);
    if (!taken) {
        wire_close(&connection->wire);
        connection->wire.fd = -1;
        return true;
    }
    if (connection->sent < connection->allowed) {
        push(connection);
    } else if (connection->allowed != UINT64_MAX) {
        if (!option.raw) wire_write(&connection->wire, goodbye, sizeof goodbye);
        else shutdown(connection->wire.fd, SHUT_WR);
        connection->sent = connection->allowed = UINT64_MAX;
    }
    return false;
}

/* End all connections in good order and see the server end them, so that it is idle when the next one is measured. */
static void part(struct connection *connections, int count) {
    uint64_t deadline = nanoseconds(CLOCK_MONOTONIC) + 10000000000u;
    int left = count;
    tolerant = true;
    for (int each = 0; each < count; each++) {
        struct connection *connection = &connections[each];
        uint64_t rest = connection->sent % out_frame;
        epoll_ctl(epoll, EPOLL_CTL_DEL, connection->wire.fd, NULL);
        connection->floods = connection->blocked = true; /* `push` leaves epoll alone */
        connection->allowed = connection->sent + (rest ? out_frame - rest : 0);
    }
    while (left && nanoseconds(CLOCK_MONOTONIC) < deadline) {
        for (int each = 0; each < count; each++)
            if (connections[each].wire.fd >= 0 && step_to_end(&connections[each])) left--;
        usleep(500);
    }
    if (left) die("%d connections did not end", left);
}

/* The modes */

static void run_echo(void) {
    struct connection *connections = allocate((size_t)option.connections * sizeof *connections);
    struct epoll_event events[512];
    uint64_t count = 0, now = nanoseconds(CLOCK_MONOTONIC);
    for (int each = 0; each < option.connections; each++) {
        open_connection(&connections[each], option.path);
        connections[each].floods = each < option.flood;
        watch(&connections[each], EPOLL_CTL_ADD);
    }
    for (int each = 0; each < option.connections; each++) {
        now = nanoseconds(CLOCK_MONOTONIC);
        if (connections[each].floods)
            connections[each].allowed = UINT64_MAX;
        else
            allow(&connections[each], (uint64_t)option.depth, now);
    }
    uint64_t start = nanoseconds(CLOCK_MONOTONIC) + (uint64_t)(option.warmup * 1e9);
    uint64_t end = start + (uint64_t)(option.seconds * 1e9);
    bool counting = false;
    while (now < end) {
        if (!counting && now >= start) {
            counting = true;
            count = 0;
            start_window();
        }
        int ready = epoll_wait(epoll, events, 512, 20);
        now = nanoseconds(CLOCK_MONOTONIC);
        for (int each = 0; each < ready; each++) {
            struct connection *connection = events[each].data.ptr;
            if (events[each].events & ~(uint32_t)EPOLLOUT) {
                uint64_t messages = pull(connection, now, !connection->floods);
                if (!connection->floods) {
                    count += messages;
                    if (option.connections == 1) now = nanoseconds(CLOCK_MONOTONIC);
                    if (messages) allow(connection, messages, now);
                }
            }
            if (events[each].events & EPOLLOUT) push(connection);
        }
    }
    print_result(count);
    part(connections, option.connections);
}

/* One message at a time: the next one is published when the last subscriber has got this one. */
static void run_publish(void) {
    int subscribers = option.connections;
    struct connection *connections = allocate(((size_t)subscribers + 1) * sizeof *connections);
    struct epoll_event events[512];
    for (int each = 0; each <= subscribers; each++) {
        bool publisher = each == subscribers;
        open_connection(&connections[each], publisher ? "/publish" : "/subscribe");
        if (option.raw) wire_write(&connections[each].wire, publisher ? "P" : "S", 1);
        if (!publisher) watch(&connections[each], EPOLL_CTL_ADD);
    }
    usleep(200000); /* a server may finish its side of the last handshakes a little later than this side */
    uint64_t now = nanoseconds(CLOCK_MONOTONIC), start = now + (uint64_t)(option.warmup * 1e9), count = 0;
    uint64_t end = start + (uint64_t)(option.seconds * 1e9);
    bool counting = false;
    while (now < end) {
        if (!counting && now >= start) {
            counting = true;
            count = 0;
            start_window();
        }
        int missing = subscribers;
        uint64_t published = nanoseconds(CLOCK_MONOTONIC);
        allow(&connections[subscribers], 1, published);
        while (missing > 0) {
            int ready = epoll_wait(epoll, events, 512, 10000);
            if (!ready) die("%d of %d deliveries are missing", missing, subscribers);
            for (int each = 0; each < ready; each++) missing -= (int)pull(events[each].data.ptr, 0, false);
        }
        now = nanoseconds(CLOCK_MONOTONIC);
        note_latency(now - published);
        count += (uint64_t)subscribers;
    }
    print_result(count);
    part(connections, subscribers + 1);
}

/* One opening handshake after the other. Each connection is closed in good order: it gets a Close frame at once, and
 * is read to its end when some others have been opened, so that waiting for that is not measured. */
static void run_handshakes(void) {
    enum { LINGERING = 16 };
    struct wire lingering[LINGERING] = {{0}};
    uint64_t count = 0, now = nanoseconds(CLOCK_MONOTONIC), start = now + (uint64_t)(option.warmup * 1e9);
    uint64_t end = start + (uint64_t)(option.seconds * 1e9), total = 0;
    char rest[4096];
    bool counting = false;
    while (now < end) {
        if (!counting && now >= start) {
            counting = true;
            count = 0;
            start_window();
        }
        struct wire *wire = &lingering[total++ % LINGERING];
        if (wire->fd) {
            ssize_t taken;
            while ((taken = wire_read(wire, rest, sizeof rest)) > 0)
                ;
            if (taken < 0) die("the server did not close a connection");
            wire_close(wire);
        }
        uint64_t began_at = nanoseconds(CLOCK_MONOTONIC);
        *wire = (struct wire){.fd = dial(option.port)};
        if (option.tls) shake_hands(wire, tls, false);
        open_websocket(wire, option.path, option.port);
        now = nanoseconds(CLOCK_MONOTONIC);
        note_latency(now - began_at);
        count++;
        wire_write(wire, goodbye, sizeof goodbye);
    }
    print_result(count);
}

/* Answer the pings among the frames that have come; everything else is dropped. Frames are short and come whole. */
static uint64_t answer_pings(struct connection *connection) {
    ssize_t size = wire_read(&connection->wire, scratch, SCRATCH);
    uint64_t pings = 0;
    if (!size) die("the server closed an idle connection");
    for (ssize_t at = 0; at + 2 <= size; at += 2 + scratch[at + 1]) {
        uint8_t length = scratch[at + 1], pong[6 + 125] = {0x8a, 0x80 | length};
        if (length > 125 || at + 2 + length > size) die("an unexpected frame on an idle connection");
        if (scratch[at] != 0x89) continue;
        memcpy(pong + 6, scratch + at + 2, length);
        wire_write(&connection->wire, pong, 6u + length);
        pings++;
    }
    return pings;
}

static void run_idle(void) {
    struct connection *connections = allocate((size_t)option.connections * sizeof *connections);
    struct epoll_event events[512], input = {.events = EPOLLIN};
    uint64_t pings = 0;
    for (int each = 0; each < option.connections; each++) {
        open_connection(&connections[each], option.path);
        if (option.deflate) { /* a connection that has never compressed anything has nothing to keep for that */
            allow(&connections[each], 1, 0);
            while (!connections[each].answered) pull(&connections[each], 0, false);
        }
        watch(&connections[each], EPOLL_CTL_ADD);
    }
    printf("{\"open\": %d}\n", option.connections);
    fflush(stdout);
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, STDIN_FILENO, &input)) die("stdin must be a pipe");
    for (;;) {
        int ready = epoll_wait(epoll, events, 512, -1);
        for (int each = 0; each < ready; each++) {
            if (!events[each].data.ptr) {
                printf("{\"pings\": %llu}\n", (unsigned long long)pings);
                part(connections, option.connections);
                return;
            }
            pings += answer_pings(events[each].data.ptr);
        }
    }
}

static void read_options(int count, char **arguments) {
    static const struct option names[] = {
        {"port", 1, 0, 'p'},    {"connections", 1, 0, 'c'}, {"depth", 1, 0, 'd'},  {"size", 1, 0, 's'},
        {"seconds", 1, 0, 't'}, {"warmup", 1, 0, 'w'},      {"flood", 1, 0, 'f'},  {"pid", 1, 0, 'i'},
        {"path", 1, 0, 'a'},    {"cert", 1, 0, 'e'},        {"raw", 0, 0, 'r'},    {"binary", 0, 0, 'b'},
        {"tls", 0, 0, 'l'},     {"deflate", 1, 0, 'z'},     {0, 0, 0, 0},
    };
    for (int found; (found = getopt_long(count, arguments, "", names, NULL)) != -1;) {
        if (found == 'p') option.port = atoi(optarg);
        else if (found == 'c') option.connections = atoi(optarg);
        else if (found == 'd') option.depth = atoi(optarg);
        else if (found == 's') option.size = strtoull(optarg, NULL, 10);
        else if (found == 't') option.seconds = atof(optarg);
        else if (found == 'w') option.warmup = atof(optarg);
        else if (found == 'f') option.flood = atoi(optarg);
        else if (found == 'i') option.pid = atoi(optarg);
        else if (found == 'a') option.path = optarg;
        else if (found == 'e') option.certificate = optarg;
        else if (found == 'z') option.deflate = optarg;
        else if (found == 'r') option.raw = true;
        else if (found == 'b') option.binary = true;
        else if (found == 'l') option.tls = true;
        else exit(2);
    }
    if (option.connections < 1 || option.depth < 1) die("there must be a connection and a message");
}

int main(int count, char **arguments) {
    if (count < 2) die("which mode?");
    const char *mode = arguments[1];
    if (!strcmp(mode, "certificate") && count == 3) return make_certificate(arguments[2]);
    read_options(count - 1, arguments + 1);
    raise_file_limit();
    if (!strcmp(mode, "serve")) serve(option.certificate, option.raw);
    epoll = epoll_create1(0);
    if (option.tls) tls = tls_context(false, NULL);
    build_rings();
    if (!strcmp(mode, "echo")) run_echo();
    else if (!strcmp(mode, "publish")) run_publish();
    else if (!strcmp(mode, "handshake")) run_handshakes();
    else if (!strcmp(mode, "idle")) run_idle();
    else die("there is no mode %s", mode);
    return 0;
}
