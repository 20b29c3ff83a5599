// Writing JSON: see json.h. The decimal point is a point because this program never calls setlocale.
#include "data/json.h"
#include "data/utf8.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// What stands between the previous thing and the next one.
static void separate(struct json_writer *w) {
    if (w->after_key) {
        w->after_key = false;
        return;
    }
    if (w->depth == 0) return;
    if (w->filled[w->depth]) text_add(w->out, w->style == JSON_SPACED ? ", " : ",");
    w->filled[w->depth] = true;
    if (w->style == JSON_PRETTY) text_printf(w->out, "\n%*s", 2 * w->depth, "");
}

static void begin(struct json_writer *w, char bracket) {
    assert(w->depth < JSON_MAX_DEPTH);
    separate(w);
    text_char(w->out, bracket);
    w->filled[++w->depth] = false;
}

static void end(struct json_writer *w, char bracket) {
    assert(w->depth > 0 && !w->after_key);
    bool filled = w->filled[w->depth--];
    if (filled && w->style == JSON_PRETTY) text_printf(w->out, "\n%*s", 2 * w->depth, "");
    text_char(w->out, bracket);
}

void json_begin_object(struct json_writer *w) {
    begin(w, '{');
}
void json_end_object(struct json_writer *w) {
    end(w, '}');
}
void json_begin_array(struct json_writer *w) {
    begin(w, '[');
}
void json_end_array(struct json_writer *w) {
    end(w, ']');
}

static void quote(struct text *out, const char *bytes, size_t length) {
    const uint8_t *p = (const uint8_t *)bytes;
    text_char(out, '"');
    size_t i = 0, from = 0;
    while (i < length) {
        size_t n;
        utf8_read(bytes + i, length - i, &n);
        if (n && p[i] >= 0x20 && p[i] != '"' && p[i] != '\\') {
            i += n;
            continue;
        }
        text_append(out, p + from, i - from);
        const char *escape = p[i] ? memchr("\"\"\\\\\bb\ff\nn\rr\tt", p[i], 14) : NULL;
        if (n == 0)
            text_add(out, "\xEF\xBF\xBD");
        else if (escape)
            text_printf(out, "\\%c", escape[1]);
        else
            text_printf(out, "\\u%04x", p[i]);
        from = ++i;
    }
    text_append(out, p + from, length - from);
    text_char(out, '"');
}

void json_put_key_bytes(struct json_writer *w, const char *key, size_t length) {
    assert(w->depth > 0 && !w->after_key);
    separate(w);
    quote(w->out, key, length);
    text_add(w->out, w->style == JSON_COMPACT ? ":" : ": ");
    w->after_key = true;
}

void json_put_key(struct json_writer *w, const char *key) {
    json_put_key_bytes(w, key, strlen(key));
}

void json_put_bytes(struct json_writer *w, const char *bytes, size_t length) {
    separate(w);
    quote(w->out, bytes, length);
}

void json_put_string(struct json_writer *w, const char *string) {
    json_put_bytes(w, string, strlen(string));
}

static void put(struct json_writer *w, const char *plain) {
    separate(w);
    text_add(w->out, plain);
}

void json_put_null(struct json_writer *w) {
    put(w, "null");
}
void json_put_bool(struct json_writer *w, bool value) {
    put(w, value ? "true" : "false");
}

void json_put_int(struct json_writer *w, int64_t value) {
    char digits[32];
    snprintf(digits, sizeof digits, "%" PRId64, value);
    put(w, digits);
}

void json_put_double(struct json_writer *w, double value) {
    char digits[40];
    if (!isfinite(value)) {
        json_put_null(w);
        return;
    }
    for (int precision = 15; precision <= 17; precision++) {
        snprintf(digits, sizeof digits - 2, "%.*g", precision, value);
        if (strtod(digits, NULL) == value) break;
    }
    if (!strpbrk(digits, ".e")) strcat(digits, ".0"); // stays a fraction for readers that tell 1 from 1.0
    put(w, digits);
}

void json_put_value(struct json_writer *w, const struct json *value) {
    size_t length;
    double number = 0;
    int64_t whole;
    bool truth = false;
    switch (json_type(value)) {
    case JSON_NULL: json_put_null(w); return;
    case JSON_BOOL:
        json_bool(value, &truth);
        json_put_bool(w, truth);
        return;
    case JSON_NUMBER:
        json_double(value, &number);
        if (json_written_as_integer(value) && json_int(value, &whole) && !(whole == 0 && signbit(number)))
            json_put_int(w, whole);
        else
            json_put_double(w, number);
        return;
    case JSON_STRING: {
        const char *string = json_string(value, &length);
        json_put_bytes(w, string, length);
        return;
    }
    case JSON_ARRAY:
    case JSON_OBJECT: break;
    }
    bool object = json_type(value) == JSON_OBJECT;
    begin(w, object ? '{' : '[');
    for (const struct json *member = json_child(value); member; member = json_next(member)) {
        const char *key = json_key(member, &length);
        if (object) json_put_key_bytes(w, key, length);
        json_put_value(w, member);
    }
    end(w, object ? '}' : ']');
}
