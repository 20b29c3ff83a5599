// See normal_form.h. The rules and tables are utf8proc's.
#include "data/normal_form.h"

#include "data/utf8.h"

#include <string.h>
#include <utf8proc.h>

// Characters below U+0300 are starters that compose with nothing before them: the text is worked on in stretches that
// begin there, and a stretch without any other character is in normal form already.
static bool is_plain(char first_byte) {
    return (uint8_t)first_byte < 0xCC;
}

static size_t stretch_end(const char *text, size_t length, size_t begin) {
    size_t end = begin + 1;
    while (end < length && (((uint8_t)text[end] & 0xC0) == 0x80 || !is_plain(text[end]))) end++;
    return end;
}

enum { MAX_MARKS = 4096 }; // in a row: putting them in order costs the square of their number

static bool too_many_marks(const char *text, size_t length) {
    size_t run = 0, size;
    for (size_t at = 0; at < length && run <= MAX_MARKS; at += size) {
        uint32_t c = utf8_read(text + at, length - at, &size);
        run = utf8proc_get_property((utf8proc_int32_t)c)->combining_class ? run + 1 : 0;
    }
    return run > MAX_MARKS;
}

// Appends the normal form of one stretch. utf8proc works on code points: at most 18 of them come from one.
static int append_stretch(const char *text, size_t length, struct text *out, struct error *err) {
    size_t size;
    utf8_read(text, length, &size);
    if (size == length && is_plain(text[0])) {
        text_append(out, text, length);
        return text_failed(out) ? error_memory(err, "Unicode normalisation", out->length) : 0;
    }
    if (too_many_marks(text, length))
        return error_set(err, STATUS_DATA, "more than %d combining marks in a row", MAX_MARKS);
    utf8proc_option_t options = UTF8PROC_COMPOSE | UTF8PROC_STABLE;
    utf8proc_ssize_t need =
        utf8proc_decompose((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)length, NULL, 0, options);
    if (need < 0) return error_set(err, STATUS_DATA, "Unicode normalisation: %s", utf8proc_errmsg(need));
    utf8proc_int32_t *points = mem_alloc((size_t)need * sizeof *points + sizeof *points);
    if (!points) return error_memory(err, "Unicode normalisation", (size_t)need * sizeof *points);
    utf8proc_ssize_t n =
        utf8proc_decompose((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)length, points, need, options);
    if (n >= 0) n = utf8proc_normalize_utf32(points, n, options);
    for (utf8proc_ssize_t i = 0; i < n; i++) {
        char bytes[4];
        text_append(out, bytes, utf8_write((uint32_t)points[i], bytes));
    }
    mem_free(points);
    if (n < 0) return error_set(err, STATUS_DATA, "Unicode normalisation: %s", utf8proc_errmsg(n));
    if (text_failed(out)) return error_memory(err, "Unicode normalisation", out->length);
    return 0;
}

static int add_sources(uint32_t **sources, size_t *capacity, size_t begin, size_t end, size_t from, bool same,
                       struct error *err) {
    if (end > *capacity) {
        size_t more = end + end / 2 + 256;
        uint32_t *grown = mem_resize(*sources, more * sizeof *grown);
        if (!grown) return error_memory(err, "Unicode normalisation", more * sizeof *grown);
        *sources = grown;
        *capacity = more;
    }
    for (size_t i = begin; i < end; i++) (*sources)[i] = (uint32_t)(same ? from + (i - begin) : from);
    return 0;
}

int normal_form_c(const char *text, size_t length, bool *changed, struct text *out, uint32_t **sources,
                  struct error *err) {
    *changed = false;
    size_t first = 0;
    while (first < length && ((uint8_t)text[first] < 0x80 || is_plain(text[first]))) first++;
    if (first == length) return 0;
    text_clear(out);
    uint32_t *map = NULL;
    size_t capacity = 0, end;
    int status = 0;
    for (size_t begin = 0; begin < length && status == 0; begin = end) {
        end = stretch_end(text, length, begin);
        size_t at = out->length;
        status = append_stretch(text + begin, end - begin, out, err);
        if (status < 0) break;
        bool same = out->length - at == end - begin && memcmp(out->data + at, text + begin, end - begin) == 0;
        *changed |= !same;
        status = add_sources(&map, &capacity, at, out->length, begin, same, err);
    }
    if (status == 0 && *changed) {
        *sources = map;
        return 0;
    }
    mem_free(map);
    return status;
}
