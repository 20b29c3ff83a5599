// See normal_form.h. The rules and tables are utf8proc's.
#include "data/normal_form.h"

#include "data/utf8.h"

#include <string.h>
#include <utf8proc.h>

// The reference has the tables of Unicode 9. Marks that came later are starters to it, which neither change places nor
// compose. (U+11930 is no mark: it is the second half of a composition that came later.)
static const uint32_t later_marks[][2] = {
    {0x7FD, 0x7FD},     {0x898, 0x89F},     {0x8CA, 0x8D3},     {0x9FE, 0x9FE},     {0xC3C, 0xC3C},
    {0xD3B, 0xD3C},     {0xEBA, 0xEBA},     {0x1715, 0x1715},   {0x1ABF, 0x1ACE},   {0x1DF6, 0x1DFA},
    {0xA82C, 0xA82C},   {0x10D24, 0x10D27}, {0x10EAB, 0x10EAC}, {0x10F46, 0x10F50}, {0x10F82, 0x10F85},
    {0x11070, 0x11070}, {0x1133B, 0x1133B}, {0x1145E, 0x1145E}, {0x11839, 0x1183A}, {0x11930, 0x11930},
    {0x1193D, 0x1193E}, {0x11943, 0x11943}, {0x119E0, 0x119E0}, {0x11A34, 0x11A34}, {0x11A47, 0x11A47},
    {0x11A99, 0x11A99}, {0x11D42, 0x11D42}, {0x11D44, 0x11D45}, {0x11D97, 0x11D97}, {0x16FF0, 0x16FF1},
    {0x1E130, 0x1E136}, {0x1E2AE, 0x1E2AE}, {0x1E2EC, 0x1E2EF}};

static bool is_later_mark(uint32_t c) {
    for (size_t i = 0; i < COUNT_OF(later_marks) && c >= later_marks[i][0]; i++)
        if (c <= later_marks[i][1]) return true;
    return false;
}

// Characters below U+0300 are starters that compose with nothing before them: the text is worked on in stretches that
// begin there, or at a later mark, and a stretch of one such character is in normal form already.
static bool is_plain(char first_byte) {
    return (uint8_t)first_byte < 0xCC;
}

static bool is_alone(const char *text, size_t length, size_t *size) {
    uint32_t c = utf8_read(text, length, size);
    return is_plain(text[0]) || is_later_mark(c);
}

// Ideographs may change, but compose with nothing before them: another place to begin a stretch, without which a
// Chinese text would be one.
static bool is_ideograph(const char *text, size_t length) {
    size_t size;
    uint32_t c = utf8_read(text, length, &size);
    return (c >= 0x3400 && c <= 0x9FFF) || (c >= 0xF900 && c <= 0xFAFF) || (c >= 0x20000 && c <= 0x2FFFF);
}

static size_t stretch_end(const char *text, size_t length, size_t begin) {
    size_t size;
    bool later = is_alone(text + begin, length - begin, &size) && !is_plain(text[begin]);
    size_t end = begin + size;
    while (!later && end < length && !is_alone(text + end, length - end, &size) &&
           !is_ideograph(text + end, length - end))
        end += size;
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
    if (is_alone(text, length, &size) && size == length) {
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
        size_t head = 0; // what a changed stretch begins with may stay as it was
        while (!same && begin + head < end && at + head < out->length && out->data[at + head] == text[begin + head])
            head++;
        if (head > 0) status = add_sources(&map, &capacity, at, at + head, begin, true, err);
        if (status == 0) status = add_sources(&map, &capacity, at + head, out->length, begin + head, same, err);
    }
    if (status == 0 && *changed) {
        *sources = map;
        return 0;
    }
    mem_free(map);
    return status;
}
