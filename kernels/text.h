// A growing byte string. Failure to grow is sticky: build first, ask `text_failed` once.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct text {
    char *data; // NUL-terminated when not NULL; freed by text_free
    size_t length;
    size_t capacity;
    bool failed;
};

void text_append(struct text *t, const void *bytes, size_t length);
void text_add(struct text *t, const char *string);
void text_char(struct text *t, char c);
void text_printf(struct text *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
void text_clear(struct text *t); // length 0, memory kept
void text_free(struct text *t);
static inline bool text_failed(const struct text *t) {
    return t->failed;
}
// The bytes as a C string, "" when empty. Borrowed: valid until the next change.
static inline const char *text_str(const struct text *t) {
    return t->data ? t->data : "";
}

// Of any C string.
bool text_ends_with(const char *string, const char *ending);
