// What bpe.c builds and bpe_word.c looks up. Private to the two.
#pragma once

#include "data/bpe.h"

#include <string.h>

#define BPE_NO_RANK UINT32_MAX

// A merge: two neighbouring symbols become one; the lowest rank goes first.
struct pair_slot {
    uint64_t key; // left << 32 | right; BPE_EMPTY_KEY when free
    uint32_t rank;
    int32_t id;
};
#define BPE_EMPTY_KEY UINT64_MAX

struct string_table {
    int32_t *ids; // -1 when free; NULL = empty table
    size_t mask;
};

struct bpe {
    const struct recipe *recipe;
    struct pool pool;
    struct vocab_string *bytes; // (n_tokens) what the token stands for
    int32_t byte_ids[256];      // symbol of a single byte, -1 when the vocabulary lacks it
    int32_t fallback[256];      // "<0x0A>"; -1 when the vocabulary lacks it, or does not fall back to bytes
    struct string_table by_spelling;
    struct string_table by_bytes; // of words, only with ignore_merges on bytes
    char all_bytes[256];          // 0 to 255, where fallback tokens stand for them
    bool cuts_at_space;           // no token has the recipe's space behind another character
    size_t longest;               // bytes of the longest spelling
    uint32_t *ranks;              // (n_tokens) of MERGE_SCORES: 0 for the highest score, equal for equal ones
    struct pair_slot *pairs;      // of MERGE_PAIRS
    size_t pair_mask;
};

static inline uint64_t bpe_mix(uint64_t x) {
    x = (x ^ (x >> 32)) * 0xD6E8FEB86659FD93u;
    return (x ^ (x >> 29)) * 0x9E3779B97F4A7C15u;
}

static inline uint64_t bpe_hash(const char *bytes, size_t length) {
    uint64_t h = length, word;
    for (; length >= 8; bytes += 8, length -= 8) {
        memcpy(&word, bytes, 8);
        h = bpe_mix(h ^ word);
    }
    word = 0;
    if (length) memcpy(&word, bytes, length);
    h = bpe_mix(h ^ word);
    return h ^ (h >> 31);
}

static inline bool bpe_same(struct vocab_string a, const char *bytes, size_t length) {
    return a.length == length && memcmp(a.bytes, bytes, length) == 0;
}

static inline int32_t bpe_table_find(const struct string_table *table, const struct vocab_string *strings,
                                     const char *bytes, size_t length) {
    if (length == 0 || !table->ids) return -1;
    for (size_t i = bpe_hash(bytes, length) & table->mask;; i = (i + 1) & table->mask) {
        int32_t id = table->ids[i];
        if (id < 0 || bpe_same(strings[id], bytes, length)) return id;
    }
}

// The token that a word or a part of one can become, -1 when there is none.
static inline int32_t bpe_find_word(const struct bpe *bpe, const char *bytes, size_t length) {
    if (bpe->recipe->bytes) return bpe_table_find(&bpe->by_bytes, bpe->bytes, bytes, length);
    if (length > bpe->longest) return -1;
    int32_t id = bpe_table_find(&bpe->by_spelling, bpe->recipe->tokens, bytes, length);
    return id >= 0 && bpe->recipe->uses[id] & USE_WORD ? id : -1;
}

static inline uint64_t bpe_pair_key(int32_t left, int32_t right) {
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

static inline const struct pair_slot *bpe_pair_find(const struct bpe *bpe, int32_t left, int32_t right) {
    uint64_t key = bpe_pair_key(left, right);
    for (size_t i = bpe_mix(key) >> 20 & bpe->pair_mask;; i = (i + 1) & bpe->pair_mask) {
        const struct pair_slot *slot = &bpe->pairs[i];
        if (slot->key == key) return slot;
        if (slot->key == BPE_EMPTY_KEY) return NULL;
    }
}
