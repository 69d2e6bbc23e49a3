/* What both ends of the load generator share: sockets, TLS where OpenSSL is there, the opening handshake, the clock.
 *
 * Everything that goes wrong ends the process with a message: a benchmark that carries on after an error measures
 * something else than it says.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#ifdef WITH_TLS
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#else
typedef void SSL;
typedef void SSL_CTX;
#endif

/* The key and the answer of RFC 6455 section 1.3, so that the answer can be checked without SHA-1. */
#define KEY "dGhlIHNhbXBsZSBub25jZQ=="
#define ACCEPT "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

static void die(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "loadgen: ");
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    va_end(arguments);
    exit(1);
}

static void *allocate(size_t size) {
    void *memory = calloc(1, size ? size : 1);
    if (!memory) die("out of memory");
    return memory;
}

static uint64_t nanoseconds(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* CPU time of another process: of its main thread in nanoseconds where the kernel keeps that, else in clock ticks. */
static uint64_t cpu_time_of(int pid) {
    char path[64], line[1024];
    unsigned long long nanos = 0, user = 0, system = 0;
    if (!pid) return 0;
    snprintf(path, sizeof path, "/proc/%d/schedstat", pid);
    FILE *file = fopen(path, "r");
    if (file) {
        int found = fscanf(file, "%llu", &nanos);
        fclose(file);
        if (found == 1 && nanos) return nanos;
    }
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    file = fopen(path, "r");
    if (!file || !fgets(line, sizeof line, file)) die("the server has gone (no %s)", path);
    fclose(file);
    char *end = strrchr(line, ')');
    if (!end || sscanf(end + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu", &user, &system) != 2)
        die("cannot read %s", path);
    return (user + system) * (1000000000u / (uint64_t)sysconf(_SC_CLK_TCK));
}

static void raise_file_limit(void) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

static void set_blocking(int fd, bool blocking) {
    int flags = fcntl(fd, F_GETFL);
    fcntl(fd, F_SETFL, blocking ? flags & ~O_NONBLOCK : flags | O_NONBLOCK);
}

/* One end of a connection; `ssl` is null for plain TCP. */
struct wire {
    int fd;
    SSL *ssl;
};

/* Whether a connection that breaks is only at its end: for the trivial server, and when the clock has stopped. */
static bool tolerant;

/* Like read(2): bytes, 0 at the end, or -1 for "would block". */
static ssize_t wire_read(struct wire *wire, void *data, size_t size) {
#ifdef WITH_TLS
    if (wire->ssl) {
        int taken = SSL_read(wire->ssl, data, size > 1 << 30 ? 1 << 30 : (int)size);
        if (taken > 0) return taken;
        int error = SSL_get_error(wire->ssl, taken);
        if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE) return -1;
        if (error == SSL_ERROR_ZERO_RETURN || tolerant) return 0;
        die("TLS read failed (%d)", error);
    }
#endif
    ssize_t taken = recv(wire->fd, data, size, 0);
    if (taken >= 0 || errno == EAGAIN || errno == EINTR) return taken;
    if (!tolerant) die("recv: %s", strerror(errno));
    return 0;
}

/* Like write(2): bytes, or -1 for "would block". */
static ssize_t wire_write(struct wire *wire, const void *data, size_t size) {
#ifdef WITH_TLS
    if (wire->ssl) {
        int taken = SSL_write(wire->ssl, data, size > 1 << 30 ? 1 << 30 : (int)size);
        if (taken > 0) return taken;
        int error = SSL_get_error(wire->ssl, taken);
        if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE) return -1;
        if (!tolerant) die("TLS write failed (%d)", error);
        return (ssize_t)size; /* reading will find out */
    }
#endif
    ssize_t taken = send(wire->fd, data, size, MSG_NOSIGNAL);
    if (taken >= 0 || errno == EAGAIN || errno == EINTR) return taken;
    if (!tolerant) die("send: %s", strerror(errno));
    return (ssize_t)size;
}

static void wire_close(struct wire *wire) {
#ifdef WITH_TLS
    if (wire->ssl) SSL_free(wire->ssl);
#endif
    close(wire->fd);
}

static struct sockaddr_in loopback(const char *address, int port) {
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    inet_pton(AF_INET, address, &name.sin_addr);
    return name;
}

/* Connect, blocking, and with a bound on every wait. The local addresses rotate, so that ports never run out. */
static int dial(int port) {
    static unsigned count;
    char source[16];
    int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    struct timeval bound = {.tv_sec = 20};
    if (fd < 0) die("socket: %s", strerror(errno));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &bound, sizeof bound);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &bound, sizeof bound);
    snprintf(source, sizeof source, "127.0.0.%u", 2 + count++ % 200);
    struct sockaddr_in from = loopback(source, 0), to = loopback("127.0.0.1", port);
    if (bind(fd, (struct sockaddr *)&from, sizeof from)) die("bind %s: %s", source, strerror(errno));
    if (connect(fd, (struct sockaddr *)&to, sizeof to)) die("connect to port %d: %s", port, strerror(errno));
    return fd;
}

#ifdef WITH_TLS
static void shake_hands(struct wire *wire, SSL_CTX *tls, bool server) {
    wire->ssl = SSL_new(tls);
    SSL_set_fd(wire->ssl, wire->fd);
    if ((server ? SSL_accept(wire->ssl) : SSL_connect(wire->ssl)) != 1) die("the TLS handshake failed");
}

static SSL_CTX *tls_context(bool server, const char *certificate) {
    SSL_CTX *tls = SSL_CTX_new(server ? TLS_server_method() : TLS_client_method());
    SSL_CTX_set_mode(tls, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    if (server && (SSL_CTX_use_certificate_file(tls, certificate, SSL_FILETYPE_PEM) != 1 ||
                   SSL_CTX_use_PrivateKey_file(tls, certificate, SSL_FILETYPE_PEM) != 1))
        die("cannot use %s", certificate);
    return tls;
}

/* Write a key and a certificate for localhost that signs itself. Nothing is verified here: this is about speed. */
static int make_certificate(const char *path) {
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *certificate = X509_new();
    X509_set_version(certificate, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(certificate), 1);
    X509_gmtime_adj(X509_getm_notBefore(certificate), -3600);
    X509_gmtime_adj(X509_getm_notAfter(certificate), 30 * 86400);
    X509_set_pubkey(certificate, key);
    X509_NAME *name = X509_get_subject_name(certificate);
    X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, (const unsigned char *)"localhost", -1, -1, 0);
    X509_set_issuer_name(certificate, name);
    if (!X509_sign(certificate, key, EVP_sha256())) die("cannot sign the certificate");
    FILE *file = fopen(path, "w");
    if (!file || !PEM_write_PrivateKey(file, key, NULL, NULL, 0, NULL, NULL) || !PEM_write_X509(file, certificate))
        die("cannot write %s", path);
    return fclose(file);
}
#else
static void shake_hands(struct wire *wire, SSL_CTX *tls, bool server) {
    (void)wire, (void)tls, (void)server;
    die("this build has no TLS");
}

static SSL_CTX *tls_context(bool server, const char *certificate) {
    (void)server, (void)certificate;
    die("this build has no TLS");
    return NULL;
}

static int make_certificate(const char *path) {
    die("this build has no TLS, so it cannot make %s", path);
    return 1;
}
#endif

/* Read an HTTP head, byte-exact: what follows it stays in the kernel. */
static void read_head(struct wire *wire, char *head, size_t size) {
    size_t length = 0;
    while (length < 4 || memcmp(head + length - 4, "\r\n\r\n", 4)) {
        if (length + 1 == size) die("the HTTP head is too long");
        size_t wanted = 1;
        if (!wire->ssl) {
            /* Look first, so that one read takes all but the end. */
            ssize_t seen = recv(wire->fd, head + length, size - length - 1, MSG_PEEK);
            char *end = seen > 0 ? memmem(head, length + (size_t)seen, "\r\n\r\n", 4) : NULL;
            if (seen > 0) wanted = end ? (size_t)(end + 4 - (head + length)) : (size_t)seen;
        }
        ssize_t taken = wire_read(wire, head + length, wanted);
        if (taken <= 0) die(taken ? "the handshake timed out" : "the peer closed during the handshake");
        length += (size_t)taken;
    }
    head[length] = 0;
}

/* A header line with which the client offers an extension, and the name that must come back. */
static const char *offer = "", *offered = "";

/* The client's opening handshake, blocking, with the answer checked. */
static void open_websocket(struct wire *wire, const char *path, int port) {
    char head[4096];
    int length = snprintf(head, sizeof head,
                          "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                          "Sec-WebSocket-Key: " KEY "\r\nSec-WebSocket-Version: 13\r\n%s\r\n",
                          path, port, offer);
    if (wire_write(wire, head, (size_t)length) != length) die("cannot send the request");
    read_head(wire, head, sizeof head);
    if (strncmp(head, "HTTP/1.1 101", 12) || !strstr(head, ACCEPT) || !strstr(head, offered)) die("no 101 but: %s", head);
}
