// See yaml.h. About time: libyaml 0.2.5 walks all its open flow levels for each token, which is quadratic in the depth
// (100 KB of '[' take a minute). Its scanner runs ahead of the events only while the oldest unread token may still be a
// simple key, at most 1024 characters on one line. Stopping at the first event below YAML_MAX_DEPTH therefore bounds
// the work, and counts nesting exactly: brackets in quoted text, comments and templates are no nesting.
#include "configs/yaml.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

struct builder {
    yaml_parser_t parser;
    struct pool *pool;
    const char *origin;
    bool lines;
    const char *bytes;
    size_t length;
    struct yaml_node *root;
    struct yaml_node *open[YAML_MAX_DEPTH]; // the containers around the next node
    int depth;
    struct yaml_node *key; // a map's key that waits for its value
    size_t keys, nodes;
    int documents;
    struct error *err;
};

static int fail(struct builder *b, size_t line, const char *what) {
    if (b->lines) return error_set(b->err, STATUS_CONFIG, "%s:%zu: %s", b->origin, line + 1, what);
    return error_set(b->err, STATUS_CONFIG, "%s: %s", b->origin, what);
}

// ---- scalars ----

static size_t digits(const char *s) {
    size_t n = 0;
    while (s[n] >= '0' && s[n] <= '9') n++;
    return n;
}

static bool one_of(const char *text, const char *const *words) {
    for (; *words; words++)
        if (text[0] == **words && strcmp(text, *words) == 0) return true;
    return false;
}

static bool is_int(const char *s) {
    if (s[0] == '0' && (s[1] == 'x' || s[1] == 'o')) {
        size_t n = strspn(s + 2, s[1] == 'x' ? "0123456789abcdefABCDEF" : "01234567");
        return n > 0 && s[2 + n] == 0;
    }
    if (*s == '+' || *s == '-') s++;
    size_t n = digits(s);
    return n > 0 && s[n] == 0;
}

// [-+]? ( \. [0-9]+ | [0-9]+ ( \. [0-9]* )? ) ( [eE] [-+]? [0-9]+ )?
static bool is_float(const char *s) {
    if (*s == '+' || *s == '-') s++;
    size_t before = digits(s), after = 0;
    s += before;
    if (*s == '.') {
        s++;
        after = digits(s);
        s += after;
    }
    if (before + after == 0) return false;
    if (*s == 'e' || *s == 'E') {
        s++;
        if (*s == '+' || *s == '-') s++;
        size_t exponent = digits(s);
        if (exponent == 0) return false;
        s += exponent;
    }
    return *s == 0;
}

enum yaml_scalar yaml_resolve(const char *text) {
    static const char *const nulls[] = {"", "~", "null", "Null", "NULL", NULL};
    static const char *const bools[] = {"true", "True", "TRUE", "false", "False", "FALSE", NULL};
    static const char *const nonfinite[] = {".inf",  ".Inf",  ".INF", "+.inf", "+.Inf", "+.INF", "-.inf",
                                            "-.Inf", "-.INF", ".nan", ".NaN",  ".NAN",  NULL};
    if (strlen(text) > 64) return YAML_STRING; // no number worth reading is longer
    if (one_of(text, nulls)) return YAML_NULL;
    if (one_of(text, bools)) return YAML_BOOL;
    if (one_of(text, nonfinite)) return YAML_NONFINITE;
    if (is_int(text)) return YAML_INT;
    if (is_float(text)) return YAML_FLOAT;
    return YAML_STRING;
}

bool yaml_int(const char *text, int64_t *value) {
    if (yaml_resolve(text) != YAML_INT) return false;
    bool negative = *text == '-';
    if (*text == '-' || *text == '+') text++;
    int base = 10;
    if (text[0] == '0' && (text[1] == 'x' || text[1] == 'o')) {
        base = text[1] == 'x' ? 16 : 8;
        text += 2;
    }
    int64_t sum = 0;
    for (; *text; text++) {
        int digit = *text <= '9' ? *text - '0' : (*text | 0x20) - 'a' + 10;
        if (__builtin_mul_overflow(sum, (int64_t)base, &sum)) return false;
        if (__builtin_sub_overflow(sum, (int64_t)digit, &sum)) return false; // counts down: INT64_MIN has no positive
    }
    if (!negative && sum == INT64_MIN) return false;
    *value = negative ? sum : -sum;
    return true;
}

bool yaml_float(const char *text, double *value) {
    enum yaml_scalar type = yaml_resolve(text);
    if (type == YAML_INT && text[0] == '0' && text[1] != 0 && (text[1] == 'x' || text[1] == 'o')) {
        int64_t whole;
        if (!yaml_int(text, &whole)) return false;
        *value = (double)whole;
        return true;
    }
    if (type != YAML_INT && type != YAML_FLOAT) return false;
    double v = strtod(text, NULL); // the program never leaves the "C" locale
    if (!isfinite(v)) return false;
    *value = v;
    return true;
}

bool yaml_true(const struct yaml_node *node) {
    return node && node->kind == YAML_SCALAR && node->scalar == YAML_BOOL && (node->text[0] | 0x20) == 't';
}

bool yaml_null(const struct yaml_node *node) {
    return !node || (node->kind == YAML_SCALAR && node->scalar == YAML_NULL);
}

// ---- the tree ----

static uint32_t hash_key(const char *key) { // FNV-1a; wraps on purpose, in 64 bits so that no sanitizer minds
    uint64_t h = 2166136261u;
    for (; *key; key++) h = ((h ^ (uint8_t)*key) * 16777619u) & 0xffffffffu;
    return (uint32_t)h;
}

void yaml_name(struct yaml_node *node, const char *key) {
    node->key = key;
    node->key_hash = hash_key(key);
}

static struct yaml_node *find_hashed(const struct yaml_node *map, const char *key, uint32_t hash) {
    if (!map || map->kind != YAML_MAP) return NULL;
    for (struct yaml_node *child = map->first; child; child = child->next)
        if (child->key_hash == hash && strcmp(child->key, key) == 0) return child;
    return NULL;
}

struct yaml_node *yaml_find(const struct yaml_node *map, const char *key) {
    return find_hashed(map, key, hash_key(key));
}

void yaml_append(struct yaml_node *parent, struct yaml_node *child) {
    child->next = NULL;
    if (parent->last)
        parent->last->next = child;
    else
        parent->first = child;
    parent->last = child;
    parent->count++;
}

static struct yaml_node *new_node(struct builder *b, enum yaml_kind kind, const yaml_mark_t *mark) {
    if (++b->nodes > YAML_MAX_NODES) {
        fail(b, mark->line, "more than 100000 values");
        return NULL;
    }
    struct yaml_node *node = pool_alloc(b->pool, sizeof *node);
    if (!node) {
        error_memory(b->err, "a config value", sizeof *node);
        return NULL;
    }
    node->kind = kind;
    node->origin = b->origin;
    if (b->lines) { // at most YAML_MAX_BYTES, so an int holds it
        node->line = (int)mark->line + 1;
        node->column = (int)mark->column + 1;
    }
    return node;
}

// Puts a finished scalar or a new container where it belongs.
static int place(struct builder *b, struct yaml_node *node, const yaml_mark_t *mark) {
    if (b->depth == 0) {
        b->root = node;
        return 0;
    }
    struct yaml_node *parent = b->open[b->depth - 1];
    if (parent->kind == YAML_MAP) {
        struct yaml_node *key = b->key;
        if (!key) return fail(b, mark->line, "a list or map as a key; a key is one word");
        b->key = NULL;
        node->key = key->key;
        node->key_hash = key->key_hash;
        node->line = key->line;
        node->column = key->column;
    }
    yaml_append(parent, node);
    return 0;
}

static int duplicate(struct builder *b, const struct yaml_node *before, size_t line) {
    char what[160];
    snprintf(what, sizeof what, "duplicate key '%.60s', first at line %d", before->key, before->line);
    return fail(b, line, what);
}

// Small maps are searched key by key as they grow; large ones are sorted when they end, to stay off quadratic time.
enum { FEW_KEYS = 64 };

static int by_key(const void *a, const void *b) {
    const struct yaml_node *x = *(struct yaml_node *const *)a, *y = *(struct yaml_node *const *)b;
    if (x->key_hash != y->key_hash) return x->key_hash < y->key_hash ? -1 : 1;
    int order = strcmp(x->key, y->key);
    return order ? order : (x->line > y->line) - (x->line < y->line);
}

static int check_large_map(struct builder *b, const struct yaml_node *map) {
    if (map->kind != YAML_MAP || map->count < FEW_KEYS) return 0;
    struct yaml_node **sorted = mem_alloc(map->count * sizeof *sorted);
    if (!sorted) return error_memory(b->err, "a config map", map->count * sizeof *sorted);
    size_t n = 0;
    for (struct yaml_node *child = map->first; child; child = child->next) sorted[n++] = child;
    qsort(sorted, n, sizeof *sorted, by_key);
    int rc = 0;
    for (size_t i = 1; i < n && rc == 0; i++)
        if (strcmp(sorted[i]->key, sorted[i - 1]->key) == 0)
            rc = duplicate(b, sorted[i - 1], (size_t)(sorted[i]->line > 0 ? sorted[i]->line - 1 : 0));
    mem_free(sorted);
    return rc;
}

static int add_key(struct builder *b, struct yaml_node *node, bool plain, const yaml_mark_t *mark) {
    if (++b->keys > YAML_MAX_KEYS) return fail(b, mark->line, "more than 10000 keys");
    if (node->text[0] == 0) return fail(b, mark->line, "a key is missing before ':'");
    if (plain && strcmp(node->text, "<<") == 0)
        return fail(b, mark->line, "merge keys ('<<') are not supported; write the keys out");
    yaml_name(node, node->text);
    const struct yaml_node *map = b->open[b->depth - 1];
    if (map->count < FEW_KEYS) {
        const struct yaml_node *before = find_hashed(map, node->key, node->key_hash);
        if (before) return duplicate(b, before, mark->line);
    }
    b->key = node;
    return 0;
}

static int add_scalar(struct builder *b, const yaml_event_t *event) {
    const char *value = (const char *)event->data.scalar.value;
    size_t length = event->data.scalar.length;
    if (memchr(value, 0, length)) return fail(b, event->start_mark.line, "a value holds a NUL character");
    struct yaml_node *node = new_node(b, YAML_SCALAR, &event->start_mark);
    if (!node) return -1;
    node->text = pool_strndup(b->pool, value, length);
    if (!node->text) return error_memory(b->err, "a config value", length);
    bool plain = event->data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
    node->scalar = plain ? yaml_resolve(node->text) : YAML_STRING;
    if (b->depth > 0 && b->open[b->depth - 1]->kind == YAML_MAP && !b->key)
        return add_key(b, node, plain, &event->start_mark);
    return place(b, node, &event->start_mark);
}

static int open_container(struct builder *b, enum yaml_kind kind, const yaml_mark_t *mark) {
    if (b->depth == YAML_MAX_DEPTH) return fail(b, mark->line, "nested deeper than 32 levels");
    struct yaml_node *node = new_node(b, kind, mark);
    if (!node || place(b, node, mark)) return -1;
    b->open[b->depth++] = node;
    return 0;
}

static int refuse_extras(struct builder *b, const yaml_event_t *event, const void *anchor, const void *tag) {
    if (anchor) return fail(b, event->start_mark.line, "anchors ('&name') are not supported; write the value out");
    if (tag) return fail(b, event->start_mark.line, "tags ('!name') are not supported");
    return 0;
}

static int take_event(struct builder *b, const yaml_event_t *event) {
    size_t line = event->start_mark.line;
    switch (event->type) {
    case YAML_DOCUMENT_START_EVENT:
        if (b->documents++) return fail(b, line, "a second document ('---'); a config is one document");
        if (event->data.document_start.tag_directives.start != event->data.document_start.tag_directives.end)
            return fail(b, line, "%TAG directives are not supported");
        return 0;
    case YAML_ALIAS_EVENT: return fail(b, line, "aliases ('*name') are not supported; write the value out");
    case YAML_SCALAR_EVENT:
        if (refuse_extras(b, event, event->data.scalar.anchor, event->data.scalar.tag)) return -1;
        return add_scalar(b, event);
    case YAML_MAPPING_START_EVENT:
        if (refuse_extras(b, event, event->data.mapping_start.anchor, event->data.mapping_start.tag)) return -1;
        return open_container(b, YAML_MAP, &event->start_mark);
    case YAML_SEQUENCE_START_EVENT:
        if (refuse_extras(b, event, event->data.sequence_start.anchor, event->data.sequence_start.tag)) return -1;
        return open_container(b, YAML_LIST, &event->start_mark);
    case YAML_MAPPING_END_EVENT:
    case YAML_SEQUENCE_END_EVENT: return check_large_map(b, b->open[--b->depth]);
    default: return 0;
    }
}

// Is there a tab in the white space that begins line `line`? The usual reason for libyaml's message about a character.
static bool tab_indent(const struct builder *b, size_t line) {
    const char *p = b->bytes, *end = b->bytes + b->length;
    for (; line > 0 && p; line--) {
        p = memchr(p, '\n', (size_t)(end - p));
        if (p) p++;
    }
    for (; p && p < end && (*p == ' ' || *p == '\t'); p++)
        if (*p == '\t') return true;
    return false;
}

static int syntax_error(struct builder *b) {
    const yaml_parser_t *parser = &b->parser;
    if (parser->error == YAML_MEMORY_ERROR) return error_memory(b->err, "the YAML parser", b->length);
    size_t line = parser->problem_mark.line;
    char what[200];
    const char *problem = parser->problem ? parser->problem : "syntax error";
    if (parser->error == YAML_READER_ERROR) { // has an offset instead of a mark
        line = 0;
        for (size_t i = 0; i < parser->problem_offset && i < b->length; i++) line += b->bytes[i] == '\n';
        snprintf(what, sizeof what, "%s (byte %zu)", problem, parser->problem_offset);
    } else if (tab_indent(b, line)) {
        snprintf(what, sizeof what, "a tab in the indentation; YAML wants spaces");
    } else {
        snprintf(what, sizeof what, "%s (column %zu)", problem, parser->problem_mark.column + 1);
    }
    return fail(b, line, what);
}

static int read_events(struct builder *b) {
    for (;;) {
        yaml_event_t event;
        if (!yaml_parser_parse(&b->parser, &event)) return syntax_error(b);
        int rc = take_event(b, &event);
        bool end = event.type == YAML_STREAM_END_EVENT;
        yaml_event_delete(&event);
        if (rc) return -1;
        if (end) return 0;
    }
}

int yaml_parse(const char *bytes, size_t length, const char *origin, bool lines, struct pool *pool,
               struct yaml_node **root, struct error *err) {
    struct builder b = {.pool = pool, .lines = lines, .err = err};
    b.origin = pool_strdup(pool, origin);
    if (!b.origin) return error_memory(err, "a config value", strlen(origin));
    if (length > YAML_MAX_BYTES) return error_set(err, STATUS_CONFIG, "%s: larger than 1 MiB", origin);
    if (length >= 3 && memcmp(bytes, "\xef\xbb\xbf", 3) == 0) { // a UTF-8 mark says nothing
        bytes += 3;
        length -= 3;
    }
    if (length >= 2 && (memcmp(bytes, "\xff\xfe", 2) == 0 || memcmp(bytes, "\xfe\xff", 2) == 0))
        return error_set(err, STATUS_CONFIG, "%s: UTF-16; save the file as UTF-8", origin);
    b.bytes = bytes;
    b.length = length;
    if (!yaml_parser_initialize(&b.parser)) return error_memory(err, "the YAML parser", sizeof b.parser);
    yaml_parser_set_encoding(&b.parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&b.parser, (const unsigned char *)bytes, length);
    int rc = read_events(&b);
    yaml_parser_delete(&b.parser);
    if (rc == 0) *root = b.root;
    return rc;
}

// Command lines are not checked by anyone else: well-formed UTF-8 (no overlong forms, no surrogates), no control bytes.
static bool clean_text(const char *text) {
    const uint8_t *s = (const uint8_t *)text;
    while (*s) {
        if (*s < 0x80) {
            if ((*s < 0x20 && *s != '\t' && *s != '\n') || *s == 0x7f) return false;
            s++;
            continue;
        }
        int more = *s >= 0xf0 ? 3 : *s >= 0xe0 ? 2 : 1;
        if (*s < 0xc2 || *s > 0xf4) return false;
        if ((*s == 0xe0 && s[1] < 0xa0) || (*s == 0xed && s[1] > 0x9f)) return false;
        if ((*s == 0xf0 && s[1] < 0x90) || (*s == 0xf4 && s[1] > 0x8f)) return false;
        for (s++; more > 0; more--, s++)
            if ((*s & 0xc0) != 0x80) return false;
    }
    return true;
}

int yaml_parse_value(const char *text, const char *origin, struct pool *pool, struct yaml_node **value,
                     struct error *err) {
    size_t length = strlen(text);
    if (length > YAML_MAX_BYTES) return error_set(err, STATUS_CONFIG, "%s: larger than 1 MiB", origin);
    if (!clean_text(text)) return error_set(err, STATUS_CONFIG, "%s: not clean UTF-8 text", origin);
    if (*text && strchr("[{\"'", *text)) {
        struct yaml_node *root = NULL;
        if (yaml_parse(text, length, origin, false, pool, &root, err)) return -1;
        if (!root) return error_set(err, STATUS_INTERNAL, "%s: no value", origin);
        *value = root;
        return 0;
    }
    struct yaml_node *node = pool_alloc(pool, sizeof *node);
    if (!node) return error_memory(err, "a config value", sizeof *node);
    node->text = pool_strdup(pool, text);
    node->origin = pool_strdup(pool, origin);
    if (!node->text || !node->origin) return error_memory(err, "a config value", length);
    node->scalar = yaml_resolve(text);
    *value = node;
    return 0;
}
