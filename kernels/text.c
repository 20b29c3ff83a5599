// See text.h.
#include "kernels/text.h"

#include "kernels/alloc.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static bool grow(struct text *t, size_t more) {
    if (t->failed) return false;
    if (more > SIZE_MAX / 4 || t->length > SIZE_MAX / 4) return !(t->failed = true);
    size_t need = t->length + more + 1;
    if (need <= t->capacity) return true;
    size_t capacity = t->capacity ? t->capacity : 64;
    while (capacity < need) capacity *= 2;
    char *data = mem_resize(t->data, capacity);
    if (!data) return !(t->failed = true);
    t->data = data;
    t->capacity = capacity;
    return true;
}

void text_append(struct text *t, const void *bytes, size_t length) {
    if (!grow(t, length)) return;
    if (length) memcpy(t->data + t->length, bytes, length);
    t->length += length;
    t->data[t->length] = 0;
}

void text_add(struct text *t, const char *string) {
    text_append(t, string, strlen(string));
}

void text_char(struct text *t, char c) {
    text_append(t, &c, 1);
}

void text_printf(struct text *t, const char *format, ...) {
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    if (n < 0)
        t->failed = true;
    else if (grow(t, (size_t)n)) {
        vsnprintf(t->data + t->length, (size_t)n + 1, format, again);
        t->length += (size_t)n;
    }
    va_end(again);
}

void text_clear(struct text *t) {
    t->length = 0;
    if (t->data) t->data[0] = 0;
}

void text_free(struct text *t) {
    mem_free(t->data);
    *t = (struct text){0};
}

bool text_ends_with(const char *string, const char *ending) {
    size_t n = strlen(string), m = strlen(ending);
    return n >= m && strcmp(string + n - m, ending) == 0;
}
