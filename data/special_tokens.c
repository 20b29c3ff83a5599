// See special_tokens.h. A trie whose nodes list their children; the first byte is looked up in a table, so ordinary
// text costs one load per byte.
#include "data/special_tokens.h"

#include <string.h>

struct node {
    int32_t child, sibling; // 0 = none
    int32_t id;             // token that ends here, -1 = none
    uint8_t byte;
    bool control;
};

struct special_tokens {
    int32_t first[256]; // node of a first byte, 0 = no token begins so
    struct node *nodes; // node 0 is not used
    size_t count;
};

static int type_of(const struct vocab_source *s, size_t id) {
    return s->types ? s->types[id] : TOKEN_NORMAL;
}

static bool is_special(const struct vocab_source *s, size_t id) {
    int type = type_of(s, id);
    return (type == TOKEN_CONTROL || type == TOKEN_USER_DEFINED || type == TOKEN_UNKNOWN) && s->tokens[id].length > 0;
}

static int32_t new_node(struct special_tokens *t, uint8_t byte) {
    t->nodes[t->count] = (struct node){.id = -1, .byte = byte};
    return (int32_t)t->count++;
}

static void add(struct special_tokens *t, struct vocab_string token, int32_t id, bool control) {
    uint8_t byte = (uint8_t)token.bytes[0];
    if (!t->first[byte]) t->first[byte] = new_node(t, byte);
    int32_t at = t->first[byte];
    for (size_t i = 1; i < token.length; i++) {
        byte = (uint8_t)token.bytes[i];
        int32_t child = t->nodes[at].child;
        while (child && t->nodes[child].byte != byte) child = t->nodes[child].sibling;
        if (!child) {
            child = new_node(t, byte);
            t->nodes[child].sibling = t->nodes[at].child;
            t->nodes[at].child = child;
        }
        at = child;
    }
    t->nodes[at].id = id;
    t->nodes[at].control = control;
}

struct special_tokens *special_tokens_open(const struct vocab_source *source, struct error *err) {
    size_t total = 1;
    for (size_t i = 0; i < source->n_tokens; i++)
        if (is_special(source, i)) total += source->tokens[i].length;
    if (total > INT32_MAX / sizeof(struct node)) {
        error_set(err, STATUS_DATA, "%s: the special tokens have %zu bytes", source->file, total);
        return NULL;
    }
    struct special_tokens *t = mem_zalloc(1, sizeof *t);
    if (t) t->nodes = mem_zalloc(total, sizeof *t->nodes);
    if (!t || !t->nodes) {
        special_tokens_close(t);
        error_memory(err, "the special tokens", total * sizeof(struct node));
        return NULL;
    }
    t->count = 1;
    for (size_t i = 0; i < source->n_tokens; i++)
        if (is_special(source, i)) add(t, source->tokens[i], (int32_t)i, type_of(source, i) != TOKEN_USER_DEFINED);
    return t;
}

void special_tokens_close(struct special_tokens *t) {
    if (!t) return;
    mem_free(t->nodes);
    mem_free(t);
}

bool special_tokens_find(const struct special_tokens *t, const char *text, size_t length, size_t begin, bool control,
                         size_t *match_begin, size_t *match_end, int32_t *id) {
    for (size_t from = begin; from < length; from++) {
        bool found = false;
        int32_t at = t->first[(uint8_t)text[from]];
        for (size_t to = from + 1; at; to++) {
            const struct node *node = &t->nodes[at];
            if (node->id >= 0 && (control || !node->control)) {
                found = true;
                *match_begin = from;
                *match_end = to;
                *id = node->id;
            }
            at = to < length ? node->child : 0;
            while (at && t->nodes[at].byte != (uint8_t)text[to]) at = t->nodes[at].sibling;
        }
        if (found) return true;
    }
    return false;
}
