// See regex.h: Oniguruma's Ruby syntax -> PCRE2's. What differs is spelled out (\s, \h, \v, {n,m}+, {,m}, (?m), script
// names); what cannot be is a problem with a name.
#include "data/regex.h"

#include "data/utf8.h"

#include <stdio.h>

enum { MAX_GROUPS = 200 };

// White_Space exactly: PCRE2's \s has U+180E besides.
#define SPACES                                                                                                         \
    "\\x{09}-\\x{0D}\\x{20}\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{3000}"
#define NO_SPACES                                                                                                      \
    "\\x{00}-\\x{08}\\x{0E}-\\x{1F}\\x{21}-\\x{84}\\x{86}-\\x{9F}\\x{A1}-\\x{167F}\\x{1681}-\\x{1FFF}"                 \
    "\\x{200B}-\\x{2027}\\x{202A}-\\x{202E}\\x{2030}-\\x{205E}\\x{2060}-\\x{2FFF}\\x{3001}-\\x{10FFFF}"

struct reader {
    const char *bytes;
    size_t length, at;
    struct text *out;
    size_t atom; // where what a quantifier would repeat begins in `out`
    size_t groups[MAX_GROUPS];
    int depth;
    const char *problem;
};

static int fail(struct reader *r, const char *problem) {
    r->problem = problem;
    return -1;
}

static char peek(const struct reader *r, size_t ahead) {
    return r->at + ahead < r->length ? r->bytes[r->at + ahead] : 0;
}

static bool is_digit(char c) {
    return c >= '0' && c <= '9';
}
static bool is_letter(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static int copy_char(struct reader *r) {
    size_t size;
    utf8_read(r->bytes + r->at, r->length - r->at, &size);
    if (size == 0) return fail(r, "invalid UTF-8");
    text_append(r->out, r->bytes + r->at, size);
    r->at += size;
    return 0;
}

static int read_hex(struct reader *r, size_t digits, uint32_t *value) {
    *value = 0;
    for (size_t i = 0; i < digits; i++, r->at++) {
        char c = peek(r, 0);
        int digit = is_digit(c)            ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : -1;
        if (digit < 0) return fail(r, "a malformed \\x or \\u");
        *value = *value * 16 + (uint32_t)digit;
    }
    return 0;
}

static int code_point(struct reader *r, uint32_t value) {
    if (value > 0x10FFFF || (value >= 0xD800 && value < 0xE000)) return fail(r, "a character beyond Unicode");
    text_printf(r->out, "\\x{%X}", (unsigned)value);
    return 0;
}

// \x41, \x{1F600}, A: `at` stands behind the letter. A two-digit \x from 80 on is a raw byte to Oniguruma.
static int hexadecimal(struct reader *r, char letter) {
    uint32_t value;
    if (letter == 'x' && peek(r, 0) == '{') {
        const char *end = memchr(r->bytes + r->at, '}', r->length - r->at);
        size_t digits = end ? (size_t)(end - r->bytes) - r->at - 1 : 0;
        r->at++;
        if (digits < 1 || digits > 6) return fail(r, "a malformed \\x{}");
        if (read_hex(r, digits, &value) < 0) return -1;
        r->at++;
        return code_point(r, value);
    }
    if (read_hex(r, letter == 'x' ? 2 : 4, &value) < 0) return -1;
    if (letter == 'x' && value >= 0x80) return fail(r, "a byte that is no character (\\x)");
    return code_point(r, value);
}

// \p{L}, \p{Lu}, \p{^N}, \P{M}; longer names are scripts, as Oniguruma has them and not as script extensions.
static int property(struct reader *r, char letter) {
    char name[40];
    size_t n = 0;
    if (peek(r, 0) != '{') return fail(r, "a property without braces");
    r->at++;
    bool negated = peek(r, 0) == '^';
    if (negated) r->at++;
    while (n + 1 < sizeof name && (is_letter(peek(r, 0)) || peek(r, 0) == '_')) name[n++] = r->bytes[r->at++];
    name[n] = 0;
    if (n == 0 || peek(r, 0) != '}') return fail(r, "a property with an odd name");
    r->at++;
    text_printf(r->out, "\\%c{%s%s%s}", letter, negated ? "^" : "", n > 2 ? "sc:" : "", name);
    return 0;
}

// One escape; `at` stands on the backslash. *many: it stands for a set of characters.
static int escape(struct reader *r, bool in_class, bool *many) {
    char c = peek(r, 1);
    *many = false;
    r->at += 2;
    switch (c) {
    case 0: return fail(r, "a backslash at its end");
    case 's': *many = true; return text_add(r->out, in_class ? SPACES : "[" SPACES "]"), 0;
    case 'S': *many = true; return text_add(r->out, in_class ? NO_SPACES : "[^" SPACES "]"), 0;
    case 'h': *many = true; return text_add(r->out, in_class ? "0-9A-Fa-f" : "[0-9A-Fa-f]"), 0;
    case 'd':
    case 'D': *many = true; return text_printf(r->out, "\\%c", c), 0;
    case 'p':
    case 'P': *many = true; return property(r, c);
    case 'v': return text_add(r->out, "\\x{0B}"), 0;
    case 'n':
    case 'r':
    case 't':
    case 'f':
    case 'a':
    case 'e': return text_printf(r->out, "\\%c", c), 0;
    case 'x':
    case 'u': return hexadecimal(r, c);
    case 'A':
    case 'z':
        if (!in_class) return text_printf(r->out, "\\%c", c), 0;
        break;
    default: break;
    }
    if (is_letter(c) || is_digit(c)) return fail(r, "an escape with another meaning");
    if ((uint8_t)c >= 0x80) {
        r->at--;
        return copy_char(r);
    }
    text_printf(r->out, "\\%c", c);
    return 0;
}

static int class(struct reader *r) {
    r->atom = r->out->length;
    text_char(r->out, r->bytes[r->at++]);
    if (peek(r, 0) == '^') text_char(r->out, r->bytes[r->at++]);
    if (peek(r, 0) == ']') return fail(r, "a ']' at the beginning of a class");
    bool many = true; // a '-' here begins no range
    while (r->at < r->length && peek(r, 0) != ']') {
        char c = peek(r, 0);
        if (c == '[') return fail(r, "a class inside a class");
        if (c == '&' && peek(r, 1) == '&') return fail(r, "an intersection of classes (&&)");
        if (c == '\\') {
            if (escape(r, true, &many) < 0) return -1;
        } else if (c == '-') {
            char next = peek(r, 1), letter = peek(r, 2);
            bool set_follows = next == '\\' && letter && strchr("sShdDpP", letter);
            text_add(r->out, many || set_follows || next == ']' ? "\\-" : "-");
            r->at++;
            many = false;
        } else {
            many = false;
            if (copy_char(r) < 0) return -1;
        }
    }
    if (r->at >= r->length) return fail(r, "a class without end");
    text_char(r->out, r->bytes[r->at++]);
    return 0;
}

// (...), (?:...), look-around, atomic groups, (?i:...), (?m:...) (which is PCRE2's (?s:...)), and (?i) at the
// beginning.
static int open_group(struct reader *r) {
    static const char *const plain[] = {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:"};
    if (r->depth == MAX_GROUPS) return fail(r, "too many groups inside each other");
    r->groups[r->depth++] = r->out->length;
    const char *from = r->bytes + r->at;
    size_t left = r->length - r->at;
    if (peek(r, 1) != '?' && peek(r, 1) != '*') {
        text_char(r->out, '(');
        r->at++;
        return 0;
    }
    for (size_t i = 0; i < COUNT_OF(plain); i++) {
        size_t n = strlen(plain[i]);
        if (left < n || memcmp(from, plain[i], n) != 0) continue;
        text_add(r->out, plain[i]);
        r->at += n;
        return 0;
    }
    if (left >= 4 && memcmp(from, "(?m:", 4) == 0) {
        text_add(r->out, "(?s:");
        r->at += 4;
        return 0;
    }
    if (r->at == 0 && left >= 4 && memcmp(from, "(?i)", 4) == 0) { // elsewhere Ruby opens a group with it
        r->depth--;
        text_add(r->out, "(?i)");
        r->at += 4;
        return 0;
    }
    return fail(r, "a kind of group");
}

static int close_group(struct reader *r) {
    if (r->depth == 0) return fail(r, "a ')' too many");
    r->atom = r->groups[--r->depth];
    text_char(r->out, ')');
    r->at++;
    return 0;
}

// What follows a quantifier: '?' lazy, '+' possessive. To Ruby {n,m}+ is a repetition of a repetition, and {n}? an
// optional one.
static int interval(struct reader *r) {
    size_t at = r->at + 1, low = at;
    while (at < r->length && is_digit(r->bytes[at])) at++;
    size_t low_digits = at - low;
    bool range = at < r->length && r->bytes[at] == ',';
    size_t high = at + range, high_digits = 0;
    if (range)
        for (at = high; at < r->length && is_digit(r->bytes[at]); at++) high_digits++;
    bool valid = at < r->length && r->bytes[at] == '}' && (low_digits || high_digits);
    if (!valid) { // a brace like any other character
        r->atom = r->out->length;
        text_add(r->out, "\\{");
        r->at++;
        return 0;
    }
    if (low_digits > 5 || high_digits > 5) return fail(r, "a number of repetitions");
    r->at = at + 1;
    struct text repeat = {0};
    text_char(&repeat, '{');
    text_append(&repeat, r->bytes + low, low_digits);
    if (!low_digits) text_char(&repeat, '0');
    if (range) text_char(&repeat, ',');
    text_append(&repeat, r->bytes + high, high_digits);
    text_char(&repeat, '}');
    char next = peek(r, 0);
    int status = 0;
    if (next == '?' && !range) {
        status = fail(r, "{n}?");
    } else if (next == '+') {
        struct text inner = {0};
        text_append(&inner, text_str(r->out) + r->atom, r->out->length - r->atom);
        r->out->length = r->atom;
        r->at++;
        // Where nothing can follow, nothing is given back: possessive, so that a long run needs no memory of its steps.
        bool last = r->depth == 0 && (r->at == r->length || peek(r, 0) == '|');
        text_printf(r->out, "(?:%s%s)+%s", text_str(&inner), text_str(&repeat), last ? "+" : "");
        if (text_failed(&inner)) r->out->failed = true;
        text_free(&inner);
    } else {
        text_append(r->out, text_str(&repeat), repeat.length);
        if (next == '?') text_char(r->out, r->bytes[r->at++]);
    }
    if (text_failed(&repeat)) r->out->failed = true;
    text_free(&repeat);
    return status;
}

static int quantifier(struct reader *r) {
    text_char(r->out, r->bytes[r->at++]);
    if (peek(r, 0) == '?' || peek(r, 0) == '+') text_char(r->out, r->bytes[r->at++]);
    char next = peek(r, 0);
    return next == '*' || next == '+' || next == '?' ? fail(r, "a quantifier of a quantifier") : 0;
}

static int next_part(struct reader *r) {
    bool many;
    switch (peek(r, 0)) {
    case '\\': r->atom = r->out->length; return escape(r, false, &many);
    case '[': return class(r);
    case '(': return open_group(r);
    case ')': return close_group(r);
    case '*':
    case '+':
    case '?': return quantifier(r);
    case '{': return interval(r);
    case 0: return fail(r, "a NUL character");
    default: r->atom = r->out->length; return copy_char(r);
    }
}

int regex_translate(const char *pattern, size_t length, struct text *out, const char **problem, size_t *at) {
    struct reader r = {.bytes = pattern, .length = length, .out = out};
    text_clear(out);
    int status = 0;
    while (status == 0 && r.at < length) status = next_part(&r);
    if (status == 0 && r.depth > 0) status = fail(&r, "a group without end");
    *problem = r.problem;
    *at = r.at < length ? r.at : length;
    return status;
}
