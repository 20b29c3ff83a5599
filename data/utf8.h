// UTF-8 as RFC 3629 has it: no overlong forms, no surrogates, nothing above U+10FFFF.
#pragma once

#include "kernels/text.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

// The code point at the start of `bytes` and its length in *size; *size is 0 when the bytes are not valid UTF-8.
static inline uint32_t utf8_read(const char *bytes, size_t length, size_t *size) {
    const uint8_t *p = (const uint8_t *)bytes;
    *size = 0;
    if (length == 0) return 0;
    if (p[0] < 0x80) return *size = 1, p[0];
    size_t n = p[0] >= 0xF0 ? 4 : p[0] >= 0xE0 ? 3 : 2;
    if (p[0] < 0xC2 || p[0] > 0xF4 || n > length) return 0;
    uint32_t c = p[0] & (0x7Fu >> n);
    for (size_t i = 1; i < n; i++) {
        if ((p[i] & 0xC0) != 0x80) return 0;
        c = c << 6 | (p[i] & 0x3Fu);
    }
    if ((n == 3 && (c < 0x800 || (c >= 0xD800 && c < 0xE000))) || (n == 4 && (c < 0x10000 || c > 0x10FFFF))) return 0;
    *size = n;
    return c;
}

// Offset of the first byte that does not belong to valid UTF-8; `length` when all of it is valid.
static inline size_t utf8_check(const char *bytes, size_t length) {
    size_t at = 0;
    while (at < length) {
        uint64_t eight;
        if (length - at >= 8 && (memcpy(&eight, bytes + at, 8), (eight & 0x8080808080808080u) == 0)) {
            at += 8;
            continue;
        }
        size_t size;
        utf8_read(bytes + at, length - at, &size);
        if (size == 0) return at;
        at += size;
    }
    return length;
}

// Writes the code point (valid, not a surrogate) and returns its length, at most 4.
static inline size_t utf8_write(uint32_t c, char out[4]) {
    if (c < 0x80) return out[0] = (char)c, 1;
    size_t n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (size_t i = n - 1; i > 0; i--, c >>= 6) out[i] = (char)(0x80 | (c & 0x3F));
    out[0] = (char)((0xF00u >> n & 0xFF) | c);
    return n;
}

// Appends the bytes with every stretch that is not UTF-8 replaced by U+FFFD (one for each cut-off character or stray
// byte, as Python and browsers do). Returns how many bytes were used: with `more`, the beginning of a character at the
// end is left for the next call, else all of them.
size_t utf8_repair(const char *bytes, size_t length, bool more, struct text *out);
