// See error.h.
#include "kernels/error.h"

#include <stdio.h>
#include <string.h>

// Names from files stand in messages: they must not steer a terminal or forge a second line.
static void make_printable(char *text) {
    for (unsigned char *p = (unsigned char *)text; *p; p++) {
        bool wide = p[0] == 0xC2 && p[1] >= 0x80 && p[1] < 0xA0; // U+0080 to U+009F
        if (p[0] < 0x20 || p[0] == 0x7F || wide) *p = '?';
        if (wide) *++p = '?';
    }
}

int error_set(struct error *err, int code, const char *format, ...) {
    if (!err || err->code) return -1;
    err->code = code;
    va_list args;
    va_start(args, format);
    vsnprintf(err->text, sizeof err->text, format, args);
    va_end(args);
    make_printable(err->text);
    return -1;
}

int error_prefix(struct error *err, const char *format, ...) {
    if (!err || !err->code) return -1;
    char old[sizeof err->text];
    memcpy(old, err->text, sizeof old);
    va_list args;
    va_start(args, format);
    int n = vsnprintf(err->text, sizeof err->text, format, args);
    va_end(args);
    make_printable(err->text);
    size_t at = n < 0 ? 0 : (size_t)n;
    if (at + 3 >= sizeof err->text) return -1;
    size_t room = sizeof err->text - at - 3, length = strlen(old);
    if (length > room) length = room;
    memcpy(err->text + at, ": ", 2);
    memcpy(err->text + at + 2, old, length);
    err->text[at + 2 + length] = 0;
    return -1;
}

int error_memory(struct error *err, const char *what, size_t bytes) {
    return error_set(err, STATUS_MEMORY, "out of memory: %zu bytes for %s", bytes, what);
}
