// See utf8.h. Repairing text that may be cut anywhere.
#include "data/utf8.h"

// How many of the bytes can begin one character, at least 1; `*cut`: they would be one if more followed.
static size_t stretch(const uint8_t *p, size_t length, bool *cut) {
    size_t need = p[0] < 0xC2 || p[0] > 0xF4 ? 1 : p[0] >= 0xF0 ? 4 : p[0] >= 0xE0 ? 3 : 2, n = 1;
    // The second byte has a narrower range after these: overlong forms, surrogates, beyond U+10FFFF.
    uint8_t low = p[0] == 0xE0   ? 0xA0
                  : p[0] == 0xF0 ? 0x90
                                 : 0x80,
            high = p[0] == 0xED   ? 0x9F
                   : p[0] == 0xF4 ? 0x8F
                                  : 0xBF;
    while (n < need && n < length && p[n] >= low && p[n] <= high) n++, low = 0x80, high = 0xBF;
    *cut = n < need && n == length;
    return n;
}

size_t utf8_repair(const char *bytes, size_t length, bool more, struct text *out) {
    size_t at = 0;
    while (at < length) {
        size_t good = utf8_check(bytes + at, length - at);
        text_append(out, bytes + at, good);
        at += good;
        if (at == length) break;
        bool cut;
        size_t bad = stretch((const uint8_t *)bytes + at, length - at, &cut);
        if (cut && more) break;
        text_add(out, "\xEF\xBF\xBD");
        at += bad;
    }
    return at;
}
