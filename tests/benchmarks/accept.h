/* The answer to Sec-WebSocket-Key (RFC 6455 section 4.2.2), for the trivial server: clients send a new key each time.
 * SHA-1 is written out (FIPS 180-4 section 6.1), because OpenSSL is not on every machine; a head has room for one key.
 */

static uint32_t rotate(uint32_t word, int bits) { return word << bits | word >> (32 - bits); }

static void sha1_block(uint32_t state[5], const uint8_t block[64]) {
    uint32_t word[80], a = state[0], b = state[1], c = state[2], d = state[3], e = state[4];
    for (int each = 0; each < 16; each++)
        word[each] = (uint32_t)block[4 * each] << 24 | (uint32_t)block[4 * each + 1] << 16 |
                     (uint32_t)block[4 * each + 2] << 8 | block[4 * each + 3];
    for (int each = 16; each < 80; each++)
        word[each] = rotate(word[each - 3] ^ word[each - 8] ^ word[each - 14] ^ word[each - 16], 1);
    for (int each = 0; each < 80; each++) {
        uint32_t mixed = each < 20   ? ((b & c) | (~b & d)) + 0x5a827999u
                         : each < 40 ? (b ^ c ^ d) + 0x6ed9eba1u
                         : each < 60 ? ((b & c) | (b & d) | (c & d)) + 0x8f1bbcdcu
                                     : (b ^ c ^ d) + 0xca62c1d6u;
        mixed += rotate(a, 5) + e + word[each];
        e = d, d = c, c = rotate(b, 30), b = a, a = mixed;
    }
    state[0] += a, state[1] += b, state[2] += c, state[3] += d, state[4] += e;
}

/* Of the key in `head` into `accept`, which has room for 28 characters and the end; an empty text without a key. */
static void answer_key(const char *head, char accept[29]) {
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *name = "\r\nSec-WebSocket-Key: ", *found = strcasestr(head, name);
    uint32_t state[5] = {0x67452301u, 0xefcdab89u, 0x98badcfeu, 0x10325476u, 0xc3d2e1f0u};
    uint8_t text[128] = {0}, digest[21] = {0};
    accept[0] = 0;
    if (!found) return;
    memcpy(text, found + strlen(name), 24); /* 16 bytes in base64 */
    memcpy(text + 24, "258EAFA5-E914-47DA-95CA-C5AB0DC85B11", 36);
    text[60] = 0x80; /* the end of 60 bytes, whose number of bits does not go into the first block any more */
    text[126] = 60 * 8 >> 8;
    text[127] = (uint8_t)(60 * 8);
    sha1_block(state, text);
    sha1_block(state, text + 64);
    for (int each = 0; each < 20; each++) digest[each] = (uint8_t)(state[each / 4] >> (24 - 8 * (each % 4)));
    for (int group = 0; group < 7; group++) {
        uint32_t bits = (uint32_t)digest[3 * group] << 16 | (uint32_t)digest[3 * group + 1] << 8 | digest[3 * group + 2];
        for (int each = 0; each < 4; each++) accept[4 * group + each] = letters[bits >> (18 - 6 * each) & 63];
    }
    memcpy(accept + 27, "=", 2);
}
