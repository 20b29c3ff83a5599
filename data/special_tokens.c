// See special_tokens.h. A trie whose nodes list their children; the first byte is looked up in a table, so ordinary
// text costs one load per byte.
#include "data/special_tokens.h"

#include "data/utf8.h"

#include <utf8proc.h>

struct node {
    int32_t child, sibling;        // 0 = none
    const struct added_token *own; // token that ends here, NULL = none
    uint8_t byte;
};

struct special_tokens {
    int32_t first[256]; // node of a first byte, 0 = no token begins so
    struct node *nodes; // node 0 is not used
    size_t count;
};

static int32_t new_node(struct special_tokens *t, uint8_t byte) {
    t->nodes[t->count] = (struct node){.byte = byte};
    return (int32_t)t->count++;
}

// Of two tokens with the same text the first one counts.
static void add(struct special_tokens *t, struct vocab_string text, const struct added_token *token) {
    uint8_t byte = (uint8_t)text.bytes[0];
    if (!t->first[byte]) t->first[byte] = new_node(t, byte);
    int32_t at = t->first[byte];
    for (size_t i = 1; i < text.length; i++) {
        byte = (uint8_t)text.bytes[i];
        int32_t child = t->nodes[at].child;
        while (child && t->nodes[child].byte != byte) child = t->nodes[child].sibling;
        if (!child) {
            child = new_node(t, byte);
            t->nodes[child].sibling = t->nodes[at].child;
            t->nodes[at].child = child;
        }
        at = child;
    }
    if (!t->nodes[at].own) t->nodes[at].own = token;
}

struct special_tokens *special_tokens_open(const struct recipe *recipe, bool normalized,
                                           const struct vocab_string *texts, struct error *err) {
    size_t total = 1;
    for (size_t i = 0; i < recipe->n_added; i++) {
        const struct added_token *a = &recipe->added[i];
        size_t length = texts ? texts[i].length : a->text.length;
        if (a->normalized != normalized) continue;
        if (length > SPECIAL_LONGEST) {
            error_set(err, STATUS_DATA, "%s: the added token %d has %zu bytes, at most %d are allowed", recipe->file,
                      a->id, length, SPECIAL_LONGEST);
            return NULL;
        }
        total += length; // at most 2^21 tokens of 512 bytes
    }
    struct special_tokens *t = mem_zalloc(1, sizeof *t);
    if (t) t->nodes = mem_zalloc(total, sizeof *t->nodes);
    if (!t || !t->nodes) {
        special_tokens_close(t);
        error_memory(err, "the special tokens", total * sizeof(struct node));
        return NULL;
    }
    t->count = 1;
    for (int control = 1; control >= 0; control--) {
        for (size_t i = 0; i < recipe->n_added; i++) {
            const struct added_token *a = &recipe->added[i];
            struct vocab_string text = texts ? texts[i] : a->text;
            if (a->normalized == normalized && a->control == (control == 1) && text.length > 0) add(t, text, a);
        }
    }
    return t;
}

void special_tokens_close(struct special_tokens *t) {
    if (!t) return;
    mem_free(t->nodes);
    mem_free(t);
}

static const struct added_token *longest_at(const struct special_tokens *t, const char *text, size_t length,
                                            size_t from, bool control, size_t *end) {
    const struct added_token *found = NULL;
    int32_t at = t->first[(uint8_t)text[from]];
    for (size_t to = from + 1; at; to++) {
        const struct node *node = &t->nodes[at];
        if (node->own && (control || !node->own->control)) {
            found = node->own;
            *end = to;
        }
        at = to < length ? node->child : 0;
        while (at && t->nodes[at].byte != (uint8_t)text[to]) at = t->nodes[at].sibling;
    }
    return found;
}

// --- characters beside a match

// The character that ends at `end` (> 0).
static uint32_t char_before(const char *text, size_t end, size_t *size) {
    size_t begin = end - 1;
    while (begin > 0 && ((uint8_t)text[begin] & 0xC0) == 0x80) begin--;
    *size = end - begin;
    size_t read;
    return utf8_read(text + begin, end - begin, &read);
}

static bool is_space(uint32_t c) { // White_Space
    return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) ||
           c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

// \w of the reference: Alphabetic, marks, decimal digits, connectors, joiners.
static bool is_word(uint32_t c) {
    if (c == 0x200C || c == 0x200D || (c >= 0x24B6 && c <= 0x24E9)) return true;
    if ((c >= 0x1F130 && c <= 0x1F149) || (c >= 0x1F150 && c <= 0x1F169) || (c >= 0x1F170 && c <= 0x1F189)) return true;
    switch (utf8proc_category((utf8proc_int32_t)c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC: return true;
    default: return false;
    }
}

static bool stands_alone(const char *text, size_t length, size_t begin, size_t end) {
    size_t size;
    if (begin > 0 && is_word(char_before(text, begin, &size))) return false;
    return end == length || !is_word(utf8_read(text + end, length - end, &size));
}

bool special_tokens_find(const struct special_tokens *t, const char *text, size_t length, size_t from, bool control,
                         struct special_match *match) {
    size_t end = from, size;
    for (size_t at = from; at < length; at++) {
        const struct added_token *a = longest_at(t, text, length, at, control, &end);
        if (!a) continue;
        if (a->single_word && !stands_alone(text, length, at, end)) {
            at = end - 1; // skipped whole
            continue;
        }
        *match = (struct special_match){at, end, a->id};
        while (a->lstrip && match->begin > from && is_space(char_before(text, match->begin, &size)))
            match->begin -= size;
        while (a->rstrip && match->end < length && is_space(utf8_read(text + match->end, length - match->end, &size)))
            match->end += size;
        return true;
    }
    return false;
}
