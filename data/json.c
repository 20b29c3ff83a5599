// Reading: see json.h. Three passes over the bytes:
//   check     our scanner, without recursion, refuses everything the grammar forbids and counts values;
//   cJSON     builds the tree inside a pool;
//   annotate  the scanner again, in step with the tree: lengths, how numbers were written, duplicate keys.
// cJSON leaves some fields of a node unused, which hold what it does not record:
//   valueint      length of the key (every node)      valuedouble   length of a string, member count of a container
//   valuestring   of a number: NULL when written as an integer, else not NULL
// cJSON reads numbers with strtod and the locale's decimal point: this program never calls setlocale.
#include "data/json.h"
#include "data/utf8.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// --- Scanner: a bounded cursor that hands out one token after the other

enum token_kind { TOKEN_END, TOKEN_OPEN, TOKEN_CLOSE, TOKEN_KEY, TOKEN_STRING, TOKEN_NUMBER, TOKEN_LITERAL };

enum expectation {
    EXPECT_VALUE,
    EXPECT_VALUE_OR_CLOSE,
    EXPECT_KEY,
    EXPECT_KEY_OR_CLOSE,
    EXPECT_COMMA_OR_CLOSE,
    EXPECT_END
};

struct scanner {
    const uint8_t *bytes;
    size_t length, at;
    int max_depth, depth;
    bool in_object[JSON_MAX_DEPTH];
    bool replace_surrogates;
    enum expectation expect;
    const char *problem; // set when scan() fails; `at` is its place
};

struct token {
    enum token_kind kind;
    size_t begin, end;
    uint32_t lone; // half surrogate pairs in a string
    bool nul;      // \u0000 in a string
    bool integer;  // a number without fraction and exponent
};

// Releases of cJSON differ here: many copy a number into 64 bytes and cut longer ones.
enum { LONGEST_NUMBER = 60 };

static bool problem(struct scanner *s, size_t at, const char *text) {
    s->at = at;
    s->problem = text;
    return false;
}

static bool hex4(const uint8_t *p, size_t left, unsigned *out) {
    unsigned value = 0;
    if (left < 4) return false;
    for (int i = 0; i < 4; i++) {
        uint8_t c = p[i];
        unsigned digit;
        if (c >= '0' && c <= '9')
            digit = c - '0';
        else if (c >= 'a' && c <= 'f')
            digit = c - 'a' + 10u;
        else if (c >= 'A' && c <= 'F')
            digit = c - 'A' + 10u;
        else
            return false;
        value = value << 4 | digit;
    }
    *out = value;
    return true;
}

// The escape at `at` (a backslash): its length, and the code unit when it is \uXXXX; 0 when it is not valid.
static size_t scan_escape(const struct scanner *s, size_t at, bool *is_unit, unsigned *unit) {
    *is_unit = false;
    if (s->length - at < 2) return 0;
    uint8_t c = s->bytes[at + 1];
    if (c == 'u') return (*is_unit = hex4(s->bytes + at + 2, s->length - at - 2, unit)) ? 6 : 0;
    return memchr("\"\\/bfnrt", c, 8) ? 2 : 0;
}

static bool scan_string(struct scanner *s, struct token *t) {
    size_t i = s->at + 1;
    for (;;) {
        if (i >= s->length) return problem(s, s->length, "the string is not closed");
        uint8_t c = s->bytes[i];
        if (c == '"') break;
        if (c < 0x20) return problem(s, i, "a control character in a string, write it as \\u00XX");
        if (c >= 0x80) {
            size_t n;
            utf8_read((const char *)s->bytes + i, s->length - i, &n);
            if (n == 0) return problem(s, i, "invalid UTF-8");
            i += n;
            continue;
        }
        if (c != '\\') {
            i++;
            continue;
        }
        bool is_unit, is_low;
        unsigned unit = 0, low = 0;
        size_t n = scan_escape(s, i, &is_unit, &unit);
        if (n == 0) return problem(s, i, "invalid escape in a string");
        if (is_unit && unit == 0) t->nul = true;
        if (is_unit && unit >= 0xD800 && unit <= 0xDFFF) {
            size_t second = i + n;
            bool pair = unit < 0xDC00 && second < s->length && s->bytes[second] == '\\' &&
                        scan_escape(s, second, &is_low, &low) == 6 && low >= 0xDC00 && low <= 0xDFFF;
            if (pair)
                n = 12;
            else if (!s->replace_surrogates)
                return problem(s, i, "half of a surrogate pair");
            else
                t->lone++;
        }
        i += n;
    }
    s->at = i + 1;
    return true;
}

static size_t skip_digits(const struct scanner *s, size_t i) {
    while (i < s->length && s->bytes[i] >= '0' && s->bytes[i] <= '9') i++;
    return i;
}

static bool scan_number(struct scanner *s, struct token *t) {
    size_t i = s->at, digits;
    const uint8_t *p = s->bytes;
    if (p[i] == '-') i++;
    digits = i;
    i = skip_digits(s, i);
    if (i == digits) return problem(s, i, "not a number: a digit is expected here");
    if (p[digits] == '0' && i > digits + 1) return problem(s, digits, "not a number: superfluous leading zero");
    t->integer = true;
    if (i < s->length && p[i] == '.') {
        t->integer = false;
        digits = ++i;
        i = skip_digits(s, i);
        if (i == digits) return problem(s, i, "not a number: a digit is expected after the point");
    }
    if (i < s->length && (p[i] == 'e' || p[i] == 'E')) {
        t->integer = false;
        i++;
        if (i < s->length && (p[i] == '+' || p[i] == '-')) i++;
        digits = i;
        i = skip_digits(s, i);
        if (i == digits) return problem(s, i, "not a number: a digit is expected in the exponent");
    }
    s->at = i;
    return true;
}

static bool scan_literal(struct scanner *s) {
    static const char *const words[] = {"true", "false", "null"};
    for (size_t i = 0; i < COUNT_OF(words); i++) {
        size_t n = strlen(words[i]);
        if (s->length - s->at < n || memcmp(s->bytes + s->at, words[i], n) != 0) continue;
        s->at += n;
        return true;
    }
    return problem(s, s->at, "a value is expected here");
}

static void skip_space(struct scanner *s) {
    while (s->at < s->length) {
        uint8_t c = s->bytes[s->at];
        if (c != ' ' && c != '\t' && c != '\n' && c != '\r') return;
        s->at++;
    }
}

static bool scan_open(struct scanner *s, bool object) {
    if (s->depth >= s->max_depth) return problem(s, s->at, "nested too deeply");
    s->in_object[s->depth++] = object;
    s->expect = object ? EXPECT_KEY_OR_CLOSE : EXPECT_VALUE_OR_CLOSE;
    s->at++;
    return true;
}

static void after_value(struct scanner *s) {
    s->expect = s->depth ? EXPECT_COMMA_OR_CLOSE : EXPECT_END;
}

static bool scan_key(struct scanner *s, struct token *t) {
    t->kind = TOKEN_KEY;
    if (!scan_string(s, t)) return false;
    t->end = s->at;
    skip_space(s);
    if (s->at >= s->length || s->bytes[s->at] != ':') return problem(s, s->at, "':' is expected after a key");
    s->at++;
    s->expect = EXPECT_VALUE;
    return true;
}

// The next token; false with `problem` set when the bytes are not JSON. TOKEN_END comes once, after the whole value.
static bool scan(struct scanner *s, struct token *t) {
    skip_space(s);
    if (s->expect == EXPECT_COMMA_OR_CLOSE && s->at < s->length && s->bytes[s->at] == ',') {
        s->at++;
        s->expect = s->in_object[s->depth - 1] ? EXPECT_KEY : EXPECT_VALUE;
        skip_space(s);
    }
    *t = (struct token){.kind = TOKEN_END, .begin = s->at, .end = s->at};
    if (s->at >= s->length) {
        if (s->expect == EXPECT_END) return true;
        return problem(s, s->at, s->depth ? "the text ends inside a value" : "a value is expected, the text is empty");
    }
    uint8_t c = s->bytes[s->at];
    bool ok = true;
    if (s->expect == EXPECT_END) return problem(s, s->at, "something follows the end of the value");
    if ((c == ']' || c == '}') && s->expect != EXPECT_VALUE && s->expect != EXPECT_KEY) {
        if (s->in_object[s->depth - 1] != (c == '}')) return problem(s, s->at, "the wrong bracket is closed");
        t->kind = TOKEN_CLOSE;
        s->depth--;
        s->at++;
        after_value(s);
    } else if (s->expect == EXPECT_COMMA_OR_CLOSE) {
        return problem(s, s->at,
                       s->in_object[s->depth - 1] ? "',' or '}' is expected here" : "',' or ']' is expected here");
    } else if (s->expect == EXPECT_KEY || s->expect == EXPECT_KEY_OR_CLOSE) {
        if (c != '"') return problem(s, s->at, "a key in double quotes is expected here");
        return scan_key(s, t);
    } else if (c == '{' || c == '[') {
        t->kind = TOKEN_OPEN;
        ok = scan_open(s, c == '{');
    } else {
        if (c == '"')
            t->kind = TOKEN_STRING, ok = scan_string(s, t);
        else if (c == '-' || (c >= '0' && c <= '9'))
            t->kind = TOKEN_NUMBER, ok = scan_number(s, t);
        else
            t->kind = TOKEN_LITERAL, ok = scan_literal(s);
        if (ok) after_value(s);
    }
    t->end = s->at;
    return ok;
}

// --- Messages

static const char *name_of(const struct json_options *options) {
    return options->name ? options->name : "JSON";
}

static int error_at(struct error *err, const struct json_options *options, const uint8_t *bytes, size_t at,
                    const char *what) {
    uint64_t line = options->line ? options->line : 1, column = 1;
    for (size_t i = 0; i < at; i++) {
        if (bytes[i] == '\n')
            line++, column = 1;
        else if ((bytes[i] & 0xC0) != 0x80)
            column++; // characters, not bytes
    }
    return error_set(err, STATUS_DATA, "%s:%llu:%llu: %s", name_of(options), (unsigned long long)line,
                     (unsigned long long)column, what);
}

// --- First pass: check, and rewrite what cJSON cannot take

struct census {
    uint64_t values, lone;
    bool rewrite;
};

static int check(struct scanner s, const struct json_options *options, struct census *census, struct error *err) {
    uint64_t limit = options->max_values ? options->max_values : JSON_VALUES;
    struct token t;
    for (;;) {
        if (!scan(&s, &t)) return error_at(err, options, s.bytes, s.at, s.problem);
        if (t.kind == TOKEN_END) return 0;
        if (t.kind != TOKEN_KEY && t.kind != TOKEN_CLOSE && ++census->values > limit)
            return error_set(err, STATUS_DATA, "%s: more than %llu values", name_of(options),
                             (unsigned long long)limit);
        census->lone += t.lone;
        if (t.lone || t.nul || (t.kind == TOKEN_NUMBER && t.end - t.begin > LONGEST_NUMBER)) census->rewrite = true;
    }
}

// A string as cJSON can hold it: a lone half pair becomes U+FFFD, NUL becomes C0 80, which is not UTF-8 and so cannot
// stand for anything else; annotate() turns it back.
static void rewrite_string(const struct scanner *s, const struct token *t, struct text *out) {
    size_t i = t->begin, from = t->begin;
    while (i < t->end) {
        bool is_unit, is_low;
        unsigned unit, low;
        size_t n = s->bytes[i] == '\\' ? scan_escape(s, i, &is_unit, &unit) : 1;
        if (n == 6 && unit >= 0xD800 && unit <= 0xDBFF && s->bytes[i + 6] == '\\' &&
            scan_escape(s, i + 6, &is_low, &low) == 6 && low >= 0xDC00 && low <= 0xDFFF)
            n = 12;
        else if (n == 6 && (unit == 0 || (unit >= 0xD800 && unit <= 0xDFFF))) {
            text_append(out, s->bytes + from, i - from);
            text_add(out, unit == 0 ? "\xC0\x80" : "\xEF\xBF\xBD");
            from = i + 6;
        }
        i += n;
    }
    text_append(out, s->bytes + from, t->end - from);
}

static void rewrite_number(const struct scanner *s, const struct token *t, struct text *out) {
    char *copy = mem_strndup((const char *)s->bytes + t->begin, t->end - t->begin);
    if (!copy) {
        out->failed = true;
        return;
    }
    double value = strtod(copy, NULL);
    text_add(out, isinf(value) ? "1e999" : "");
    if (!isinf(value)) text_printf(out, "%.17g", value);
    mem_free(copy);
}

static int rewrite(struct scanner s, struct text *out, struct error *err) {
    struct token t;
    size_t done = 0; // everything before is written
    while (scan(&s, &t) && t.kind != TOKEN_END) {
        bool number = t.kind == TOKEN_NUMBER && t.end - t.begin > LONGEST_NUMBER;
        if (!number && !t.lone && !t.nul) continue;
        text_append(out, s.bytes + done, t.begin - done);
        if (number)
            rewrite_number(&s, &t, out);
        else
            rewrite_string(&s, &t, out);
        done = t.end;
    }
    text_append(out, s.bytes + done, s.length - done);
    return text_failed(out) ? error_memory(err, "a JSON text", s.length) : 0;
}

// --- Second pass: cJSON, whose hooks carry no context, so the pool of the running parse is a variable of the thread

static _Thread_local struct {
    struct pool *pool;
    bool failed;
} parsing;

static void *hook_alloc(size_t bytes) {
    void *p = pool_alloc(parsing.pool, bytes);
    if (!p) parsing.failed = true;
    return p;
}
static void hook_free(void *block) {
    (void)block;
} // the pool drops everything at once

static void set_hooks(void) {
    cJSON_Hooks hooks = {.malloc_fn = hook_alloc, .free_fn = hook_free};
    cJSON_InitHooks(&hooks);
}

static cJSON *build(const char *bytes, size_t length, const struct json_options *options, struct pool *pool,
                    struct error *err) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, set_hooks);
    parsing.pool = pool;
    parsing.failed = false;
    cJSON *root = cJSON_ParseWithLengthOpts(bytes, length, NULL, 0);
    parsing.pool = NULL;
    if (root) return root;
    if (parsing.failed)
        error_memory(err, "a JSON tree", length);
    else
        error_set(err, STATUS_INTERNAL, "%s: cJSON refuses JSON that is valid", name_of(options));
    return NULL;
}

// --- Third pass

// Turns C0 80 back into NUL in place; returns the length.
static size_t restore_nul(char *string) {
    size_t n = 0;
    for (const char *p = string; *p; p++) {
        bool nul = (uint8_t)p[0] == 0xC0;
        string[n++] = nul ? 0 : *p;
        p += nul;
    }
    string[n] = 0;
    return n;
}

static int compare_keys(const void *a, const void *b) {
    const cJSON *x = *(const cJSON *const *)a, *y = *(const cJSON *const *)b;
    size_t shorter = (size_t)(x->valueint < y->valueint ? x->valueint : y->valueint);
    int order = memcmp(x->string, y->string, shorter);
    return order ? order : (x->valueint > y->valueint) - (x->valueint < y->valueint);
}

// The second one of two members with the same key, or NULL. Sorting keeps hostile key sets at n log n.
static int find_duplicate(const cJSON *object, size_t count, const cJSON **found, struct error *err) {
    *found = NULL;
    enum { FEW = 12 };
    if (count <= FEW) {
        for (const cJSON *a = object->child; a; a = a->next)
            for (const cJSON *b = object->child; b != a; b = b->next)
                if (compare_keys(&a, &b) == 0) *found = a;
        return 0;
    }
    const cJSON **members = mem_alloc(count * sizeof *members);
    if (!members) return error_memory(err, "the keys of a JSON object", count * sizeof *members);
    size_t n = 0;
    for (const cJSON *a = object->child; a && n < count; a = a->next) members[n++] = a;
    qsort(members, n, sizeof *members, compare_keys);
    for (size_t i = 1; i < n && !*found; i++)
        if (compare_keys(&members[i - 1], &members[i]) == 0) *found = members[i];
    mem_free(members);
    if (!*found) return 0;
    const cJSON *second = NULL; // sorting may have swapped equal ones
    for (const cJSON *a = object->child; a; a = a->next)
        if (compare_keys(&a, found) == 0) second = a;
    *found = second;
    return 0;
}

// Where member number `index` (from 0) of the object that begins at `begin` has its key.
static size_t key_place(struct scanner s, size_t begin, size_t index) {
    struct token t;
    s.at = begin;
    s.depth = 0;
    s.expect = EXPECT_VALUE;
    while (scan(&s, &t) && t.kind != TOKEN_END)
        if (t.kind == TOKEN_KEY && s.depth == 1 && index-- == 0) return t.begin;
    return begin;
}

static int duplicate_error(struct error *err, const struct json_options *options, struct scanner s, size_t begin,
                           const cJSON *object, const cJSON *member) {
    size_t index = 0;
    for (const cJSON *a = object->child; a && a != member; a = a->next) index++;
    char what[160];
    snprintf(what, sizeof what, "key '%.100s' appears twice", member->string);
    return error_at(err, options, s.bytes, key_place(s, begin, index), what);
}

struct frame {
    cJSON *container, *next; // `next`: the member whose tokens come next
    size_t begin, count;
};

// Walks tokens and tree in step. `t` is a key or the beginning of a value, `item` its node.
static int annotate_value(const struct scanner *s, const struct token *t, cJSON *item,
                          const struct json_options *options, struct error *err) {
    if (t->kind == TOKEN_STRING)
        item->valuedouble = (double)(t->nul ? restore_nul(item->valuestring) : strlen(item->valuestring));
    if (t->kind == TOKEN_NUMBER) {
        item->valuestring = t->integer ? NULL : (char *)(uintptr_t) "fraction";
        if (isinf(item->valuedouble)) return error_at(err, options, s->bytes, t->begin, "the number is out of range");
    }
    return 0;
}

static int annotate(struct scanner s, cJSON *root, const struct json_options *options, struct error *err) {
    struct frame stack[JSON_MAX_DEPTH + 1] = {{.next = root}};
    struct token t;
    root->valueint = 0;
    for (;;) {
        struct frame *top = &stack[s.depth];
        if (!scan(&s, &t)) return error_at(err, options, s.bytes, s.at, s.problem);
        cJSON *item = top->next;
        if (t.kind == TOKEN_END) return 0;
        if (t.kind == TOKEN_CLOSE) {
            const cJSON *twice = NULL;
            top->container->valuedouble = (double)top->count;
            bool object = (top->container->type & 0xFF) == cJSON_Object;
            if (object && find_duplicate(top->container, top->count, &twice, err) < 0) return -1;
            if (twice) return duplicate_error(err, options, s, top->begin, top->container, twice);
            continue;
        }
        if (!item) return error_set(err, STATUS_INTERNAL, "%s: cJSON lost a value", name_of(options));
        if (t.kind == TOKEN_KEY) {
            item->valueint = (int)(t.nul ? restore_nul(item->string) : strlen(item->string));
            continue;
        }
        if (!item->string) item->valueint = 0; // cJSON leaves the rounded number there
        top->next = item->next;
        top->count++;
        if (t.kind == TOKEN_OPEN)
            stack[s.depth] = (struct frame){.container = item, .next = item->child, .begin = t.begin};
        else if (annotate_value(&s, &t, item, options, err) < 0)
            return -1;
    }
}

int json_parse(const void *bytes, size_t length, const struct json_options *options, struct json_document *out,
               struct error *err) {
    static const struct json_options defaults = {0};
    const struct json_options *o = options ? options : &defaults;
    *out = (struct json_document){0};
    int max_depth = o->max_depth ? o->max_depth : JSON_DEPTH;
    struct scanner s = {.bytes = bytes,
                        .length = length,
                        .replace_surrogates = o->replace_surrogates,
                        .max_depth = max_depth < JSON_MAX_DEPTH ? max_depth : JSON_MAX_DEPTH};
    if (length > JSON_MAX_BYTES)
        return error_set(err, STATUS_DATA, "%s: %zu bytes of JSON, the limit is %zu", name_of(o), length,
                         JSON_MAX_BYTES);
    if (length >= 3 && memcmp(bytes, "\xEF\xBB\xBF", 3) == 0) {
        if (!o->skip_bom) return error_at(err, o, s.bytes, 0, "a byte order mark is not allowed here");
        s.bytes += 3;
        s.length -= 3;
    }
    struct census census = {0};
    struct text copy = {0};
    cJSON *root = NULL;
    if (check(s, o, &census, err) < 0) return -1;
    if (census.rewrite && rewrite(s, &copy, err) < 0) goto done;
    if (census.rewrite)
        root = build(copy.data, copy.length, o, &out->pool, err);
    else
        root = build((const char *)s.bytes, s.length, o, &out->pool, err);
    if (root && annotate(s, root, o, err) < 0) root = NULL;
done:
    text_free(&copy);
    if (!root) {
        json_free(out);
        return -1;
    }
    out->root = (const struct json *)root;
    out->replaced = census.lone;
    return 0;
}

int json_load(const char *path, size_t limit, const struct json_options *options, struct json_document *out,
              struct error *err) {
    struct text content;
    struct json_options o = options ? *options : (struct json_options){0};
    if (!o.name) o.name = path;
    *out = (struct json_document){0};
    if (file_read(path, limit, &content, err) < 0) return -1;
    int result = json_parse(content.data, content.length, &o, out, err);
    text_free(&content);
    return result;
}

void json_free(struct json_document *document) {
    pool_free(&document->pool);
    *document = (struct json_document){0};
}
