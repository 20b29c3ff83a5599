// See template_lexer.h.
#include "data/template_lexer.h"

#include "data/utf8.h"

#include <ctype.h>

enum { MAX_SOURCE = 1 << 20 };

struct lexer {
    const char *at, *end; // of the source, newlines normalised
    int line;
    bool line_start; // did the tag before take a newline (or is this the start)?
    struct template_tokens *out;
    struct error *err;
};

// White space as Python's str sees it.
static bool is_space(uint32_t c) {
    return (c >= 9 && c <= 13) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

static size_t skip_spaces(const char *text, size_t length) {
    size_t at = 0, size;
    while (at < length && is_space(utf8_read(text + at, length - at, &size))) at += size;
    return at;
}

// The length of `text` without the white space at its end, but no shorter than `least`.
static size_t trim_end(const char *text, size_t least, size_t length) {
    size_t kept = least, size;
    for (size_t at = least; at < length; at += size)
        if (!is_space(utf8_read(text + at, length - at, &size))) kept = at + size;
    return kept;
}

static int unsupported(const struct lexer *lx, const char *what) {
    return error_set(lx->err, STATUS_DATA, "this chat template is not supported in this version: line %d: %s", lx->line,
                     what);
}

static int push(struct lexer *lx, enum template_token_kind kind, const char *text, size_t length) {
    struct template_tokens *o = lx->out;
    if (o->count == o->capacity) {
        size_t capacity = o->capacity ? 2 * o->capacity : 64;
        struct template_token *list = mem_resize(o->list, capacity * sizeof *list);
        if (!list) return error_memory(lx->err, "the chat template", capacity * sizeof *list);
        o->list = list;
        o->capacity = capacity;
    }
    o->list[o->count++] = (struct template_token){kind, lx->line, text, length};
    return 0;
}

static void advance(struct lexer *lx, size_t bytes) {
    for (; bytes > 0; bytes--) lx->line += *lx->at++ == '\n';
}

static bool follows(const struct lexer *lx, size_t offset, const char *what) {
    size_t n = strlen(what);
    return (size_t)(lx->end - lx->at) >= offset + n && memcmp(lx->at + offset, what, n) == 0;
}

// Text up to the next tag. A tag may take white space off its end: "{%-" all of it, "{%" and "{#" the blanks of the
// line the tag begins (lstrip_blocks).
static int lex_text(struct lexer *lx) {
    const char *from = lx->at, *to = from;
    while (to < lx->end && !(to[0] == '{' && to + 1 < lx->end && to[1] && strchr("{%#", to[1]))) to++;
    size_t length = (size_t)(to - from), kept = length;
    if (to < lx->end) {
        char sign = to + 2 < lx->end ? to[2] : 0;
        if (sign == '-')
            kept = trim_end(from, 0, length);
        else if (sign != '+' && to[1] != '{') {
            size_t line = length;
            while (line > 0 && from[line - 1] != '\n') line--;
            if ((line > 0 || lx->line_start) && trim_end(from, line, length) == line) kept = line;
        }
    }
    if (kept > 0 && push(lx, TEMPLATE_TEXT, from, kept) < 0) return -1;
    advance(lx, length);
    return 0;
}

// Steps over the end of a tag and the white space it takes: "-%}" all that follows, "%}" one newline (trim_blocks).
static void close_tag(struct lexer *lx, size_t length, bool trim_newline) {
    bool minus = *lx->at == '-', plus = *lx->at == '+';
    advance(lx, length);
    size_t more = 0;
    if (minus)
        more = skip_spaces(lx->at, (size_t)(lx->end - lx->at));
    else if (!plus && trim_newline && follows(lx, 0, "\n"))
        more = 1;
    advance(lx, more);
    lx->line_start = more > 0 && lx->at[-1] == '\n';
}

static int lex_comment(struct lexer *lx) {
    while (lx->at < lx->end && !follows(lx, 0, "#}") && !follows(lx, 0, "-#}") && !follows(lx, 0, "+#}"))
        advance(lx, 1);
    if (lx->at == lx->end) return unsupported(lx, "a comment without an end");
    close_tag(lx, *lx->at == '#' ? 2 : 3, true);
    return 0;
}

static int hex_value(const char *digits, size_t count, uint32_t *out) {
    *out = 0;
    for (size_t i = 0; i < count; i++) {
        if (!isxdigit((uint8_t)digits[i])) return -1;
        *out = *out * 16 + (uint32_t)(isdigit((uint8_t)digits[i]) ? digits[i] - '0' : (digits[i] | 32) - 'a' + 10);
    }
    return 0;
}

// One escape of a string literal, as Python reads them; what we cannot do exactly is refused. Returns its length.
static int lex_escape(struct lexer *lx, const char *p, char **out, size_t *used) {
    static const char plain[] = "n\nt\tr\rb\bf\fv\va\a\\\\''\"\"";
    size_t room = (size_t)(lx->end - p);
    *used = 2;
    if (p[1] == '\n') return 0; // joins lines
    for (const char *q = plain; *q; q += 2)
        if (p[1] == *q) return *(*out)++ = q[1], 0;
    uint32_t code;
    size_t digits = p[1] == 'x' ? 2 : p[1] == 'u' ? 4 : 0;
    if (digits && room >= 2 + digits && hex_value(p + 2, digits, &code) == 0 && code != 0 &&
        (code < 0xD800 || code > 0xDFFF)) {
        *used += digits;
        *out += utf8_write(code, *out);
        return 0;
    }
    if (digits || strchr("01234567NU", p[1]) || (uint8_t)p[1] >= 0x80) return unsupported(lx, "an escape in a string");
    *(*out)++ = '\\'; // an unknown escape keeps its backslash
    *(*out)++ = p[1];
    return 0;
}

static int lex_string(struct lexer *lx) {
    char quote = *lx->at;
    const char *p = lx->at + 1;
    while (p < lx->end && *p != quote) p += *p == '\\' && p + 1 < lx->end ? 2 : 1;
    if (p >= lx->end) return unsupported(lx, "a string without an end");
    const char *stop = p;
    char *value = pool_alloc(&lx->out->pool, (size_t)(stop - lx->at) + 1), *out = value;
    if (!value) return error_memory(lx->err, "the chat template", (size_t)(stop - lx->at));
    for (p = lx->at + 1; p < stop;) {
        size_t used = 1;
        if (*p != '\\')
            *out++ = *p;
        else if (lex_escape(lx, p, &out, &used) < 0)
            return -1;
        p += used;
    }
    if (push(lx, TEMPLATE_STRING, value, (size_t)(out - value)) < 0) return -1;
    advance(lx, (size_t)(stop - lx->at) + 1);
    return 0;
}

static int lex_word(struct lexer *lx) {
    const char *p = lx->at;
    bool number = isdigit((uint8_t)*p);
    while (p < lx->end && (isalnum((uint8_t)*p) || *p == '_')) p++;
    size_t length = (size_t)(p - lx->at);
    if (length == 0) { // an operator: the two-character ones first
        static const char *const pairs[] = {"==", "!=", "<=", ">=", "//", "**"};
        length = 1;
        for (size_t i = 0; i < COUNT_OF(pairs); i++)
            if (follows(lx, 0, pairs[i])) length = 2;
        if (*lx->at == 0 || !strchr("+-*/%~<>=!|.,:()[]{}", *lx->at))
            return unsupported(lx, "a character that is no operator");
    }
    enum template_token_kind kind = p == lx->at ? TEMPLATE_SYMBOL : number ? TEMPLATE_NUMBER : TEMPLATE_NAME;
    if (push(lx, kind, lx->at, length) < 0) return -1;
    advance(lx, length);
    return 0;
}

// What stands between {{ and }} or {% and %}.
static int lex_tag(struct lexer *lx, bool block) {
    const char *end = block ? "%}" : "}}";
    if (push(lx, block ? TEMPLATE_BLOCK : TEMPLATE_PRINT, lx->at, 2) < 0) return -1;
    size_t open = follows(lx, 2, "-") || (block && follows(lx, 2, "+")) ? 3 : 2;
    advance(lx, open);
    for (;;) {
        advance(lx, skip_spaces(lx->at, (size_t)(lx->end - lx->at)));
        if (lx->at == lx->end) return unsupported(lx, "a tag without an end");
        bool sign = follows(lx, 0, "-") || (block && follows(lx, 0, "+"));
        if (follows(lx, sign, end)) {
            if (push(lx, TEMPLATE_END, lx->at, 2) < 0) return -1;
            close_tag(lx, 2 + (size_t)sign, block);
            return 0;
        }
        bool quote = *lx->at == '\'' || *lx->at == '"';
        if ((quote ? lex_string(lx) : lex_word(lx)) < 0) return -1;
    }
}

// Line ends become "\n", and the last one of the source goes (keep_trailing_newline is off).
static char *normalise(struct pool *pool, const char *source, size_t length, size_t *normal_length) {
    char *copy = pool_alloc(pool, length + 1), *out = copy;
    if (!copy) return NULL;
    for (size_t i = 0; i < length; i++) {
        if (source[i] == '\r' && i + 1 < length && source[i + 1] == '\n') continue;
        *out++ = source[i] == '\r' ? '\n' : source[i];
    }
    *normal_length = (size_t)(out - copy);
    if (*normal_length > 0 && out[-1] == '\n') --*normal_length;
    return copy;
}

int template_lex(const char *source, size_t length, struct template_tokens *out, struct error *err) {
    *out = (struct template_tokens){0};
    struct lexer lx = {.line = 1, .line_start = true, .out = out, .err = err};
    if (length > MAX_SOURCE) return error_set(err, STATUS_DATA, "the chat template has %zu bytes", length);
    if (memchr(source, 0, length)) return error_set(err, STATUS_DATA, "the chat template holds a NUL byte");
    if (utf8_check(source, length) < length) return error_set(err, STATUS_DATA, "the chat template is not valid UTF-8");
    size_t normal_length = 0;
    lx.at = normalise(&out->pool, source, length, &normal_length);
    if (!lx.at) return error_memory(err, "the chat template", length);
    lx.end = lx.at + normal_length;
    while (lx.at < lx.end) {
        int status = lex_text(&lx);
        if (status == 0 && lx.at < lx.end) status = lx.at[1] == '#' ? lex_comment(&lx) : lex_tag(&lx, lx.at[1] == '%');
        if (status < 0) {
            template_tokens_free(out);
            return -1;
        }
    }
    return 0;
}

void template_tokens_free(struct template_tokens *tokens) {
    mem_free(tokens->list);
    pool_free(&tokens->pool);
    *tokens = (struct template_tokens){0};
}
