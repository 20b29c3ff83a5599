// See bpe.h: one word -> token ids.
#include "data/bpe_tables.h"

#include "data/utf8.h"

enum {
    SHORT_WORD = 48, // symbols: up to here a scan over an array beats a heap
    CACHE_SLOTS = 1 << 14,
    CACHE_WORD = 31,
    CACHE_IDS = 7,
};

int encoding_push(struct encoding *out, int32_t id, uint32_t begin, uint32_t end) {
    if (ids_push(out->ids, id) < 0) return -1;
    if (!out->spans) return 0;
    if (out->ids->count > out->span_capacity) {
        size_t capacity = out->ids->count < 64 ? 64 : 2 * out->ids->count;
        struct token_span *spans = mem_resize(*out->spans, capacity * sizeof *spans);
        if (!spans) {
            out->ids->count--;
            return -1;
        }
        *out->spans = spans;
        out->span_capacity = capacity;
    }
    (*out->spans)[out->ids->count - 1] = (struct token_span){begin, end};
    return 0;
}

// --- encoding one word

enum { SWALLOWED = -1, UNSPELLED = -2 }; // merged into its left neighbour; no token (yet), merged by its text

struct symbol {
    int32_t id;
    uint32_t begin, end; // bytes of the word
    int32_t prev, next;  // list of a long word; -1 at the ends
};

struct candidate { // a pair that could be merged, in a heap ordered by (rank, position)
    uint32_t rank;
    int32_t left; // symbol
    int32_t id;   // what it would become: the pair is out of date when that has changed
};

struct cached_word {
    uint8_t length, count; // length 0 = free
    char word[CACHE_WORD];
    uint8_t ends[CACHE_IDS];
    int32_t ids[CACHE_IDS];
};

struct bpe_scratch {
    struct symbol *symbols;
    struct candidate *heap;
    size_t capacity; // symbols; the heap has three times as many places
    size_t heap_count;
    struct cached_word *cache; // NULL when off
};

struct bpe_scratch *bpe_scratch_open(bool cache) {
    struct bpe_scratch *scratch = mem_zalloc(1, sizeof *scratch);
    if (!scratch || !cache) return scratch;
    scratch->cache = mem_zalloc(CACHE_SLOTS, sizeof *scratch->cache);
    if (scratch->cache) return scratch;
    mem_free(scratch);
    return NULL;
}

void bpe_scratch_close(struct bpe_scratch *scratch) {
    if (!scratch) return;
    mem_free(scratch->symbols);
    mem_free(scratch->heap);
    mem_free(scratch->cache);
    mem_free(scratch);
}

static int no_token(const struct bpe *bpe, const char *what, size_t length, struct error *err) {
    return error_set(err, STATUS_DATA, "%s: the vocabulary has no token for \"%.*s\", and no unknown token",
                     bpe->recipe->file, (int)length, what);
}

// The symbols of a word before any merge, at most one a byte; their number, or -1.
static int64_t fill_bytes(const struct bpe *bpe, const char *word, size_t length, struct symbol *symbols,
                          struct error *err) {
    const struct recipe *r = bpe->recipe;
    int64_t n = 0;
    for (size_t i = 0; i < length; i++) {
        int32_t id = bpe->byte_ids[(uint8_t)word[i]];
        bool known = id >= 0;
        if (!known && r->needs_unk) return no_token(bpe, "a byte", 6, err);
        if (!known) id = r->unk;
        if (id < 0) continue;
        if (!known && r->fuse_unk && n > 0 && symbols[n - 1].id == id && symbols[n - 1].end == i &&
            bpe->byte_ids[(uint8_t)word[i - 1]] < 0)
            symbols[n - 1].end++;
        else
            symbols[n++] = (struct symbol){id, (uint32_t)i, (uint32_t)i + 1, 0, 0};
    }
    return n;
}

static bool falls_back(const struct bpe *bpe, const char *bytes, size_t length) {
    for (size_t i = 0; i < length; i++)
        if (bpe->fallback[(uint8_t)bytes[i]] < 0) return false;
    return true;
}

// An unknown token is put down when the next known character comes, so bytes of fallback overtake it: the reference
// does so. Spans stay in order all the same.
static void put_unknown(struct symbol *symbols, int64_t *n, struct symbol *unknown) {
    if (unknown->id < 0) return;
    if (*n > 0 && unknown->begin < symbols[*n - 1].end) unknown->begin = symbols[*n - 1].end;
    if (unknown->end < unknown->begin) unknown->end = unknown->begin;
    symbols[(*n)++] = *unknown;
    unknown->id = -1;
}

static int64_t fill_characters(const struct bpe *bpe, const char *word, size_t length, struct symbol *symbols,
                               struct error *err) {
    const struct recipe *r = bpe->recipe;
    struct symbol unknown = {.id = -1};
    int64_t n = 0;
    for (size_t i = 0, size; i < length; i += size) {
        utf8_read(word + i, length - i, &size);
        int32_t id = size == 1 ? bpe->byte_ids[(uint8_t)word[i]] : bpe_find_word(bpe, word + i, size);
        if (id >= 0) {
            put_unknown(symbols, &n, &unknown);
            symbols[n++] = (struct symbol){id, (uint32_t)i, (uint32_t)(i + size), 0, 0};
        } else if (r->rule == MERGE_SCORES) { // joined by its text, or spelled in bytes when all merges are done
            symbols[n++] = (struct symbol){UNSPELLED, (uint32_t)i, (uint32_t)(i + size), 0, 0};
        } else if (r->byte_fallback && falls_back(bpe, word + i, size)) {
            for (size_t k = i; k < i + size; k++)
                symbols[n++] = (struct symbol){bpe->fallback[(uint8_t)word[k]], (uint32_t)k, (uint32_t)k + 1, 0, 0};
        } else if (r->needs_unk) {
            return no_token(bpe, word + i, size, err);
        } else if (r->unk >= 0 && r->fuse_unk && unknown.id >= 0) {
            unknown.end = (uint32_t)(i + size);
        } else if (r->unk >= 0) {
            put_unknown(symbols, &n, &unknown);
            unknown = (struct symbol){r->unk, (uint32_t)i, (uint32_t)(i + size), 0, 0};
        }
    }
    put_unknown(symbols, &n, &unknown);
    return n;
}

static int64_t fill_symbols(const struct bpe *bpe, const char *word, size_t length, struct symbol *symbols,
                            struct error *err) {
    return bpe->recipe->bytes ? fill_bytes(bpe, word, length, symbols, err)
                              : fill_characters(bpe, word, length, symbols, err);
}

struct merge {
    uint32_t rank; // BPE_NO_RANK: the two are no pair
    int32_t id;
};

static struct merge find_merge(const struct bpe *bpe, const char *word, const struct symbol *left,
                               const struct symbol *right) {
    if (bpe->recipe->rule == MERGE_SCORES) {
        int32_t id = bpe_find_word(bpe, word + left->begin, right->end - left->begin);
        return id < 0 ? (struct merge){BPE_NO_RANK, -1} : (struct merge){bpe->ranks[id], id};
    }
    const struct pair_slot *p = bpe_pair_find(bpe, left->id, right->id);
    return p ? (struct merge){p->rank, p->id} : (struct merge){BPE_NO_RANK, -1};
}

// Repeatedly merges the pair of lowest rank, the leftmost of equals. Returns how many symbols are left.
static size_t merge_short(const struct bpe *bpe, const char *word, struct symbol *symbols, size_t n) {
    struct merge pairs[SHORT_WORD]; // pairs[i] = symbols i and i + 1
    for (size_t i = 0; i + 1 < n; i++) pairs[i] = find_merge(bpe, word, &symbols[i], &symbols[i + 1]);
    while (n > 1) {
        size_t best = n;
        uint32_t rank = BPE_NO_RANK;
        for (size_t i = 0; i + 1 < n; i++)
            if (pairs[i].rank < rank) rank = pairs[best = i].rank;
        if (best == n) break;
        symbols[best].id = pairs[best].id;
        symbols[best].end = symbols[best + 1].end;
        n--;
        memmove(&symbols[best + 1], &symbols[best + 2], (n - best - 1) * sizeof *symbols);
        if (best + 1 < n) {
            memmove(&pairs[best + 1], &pairs[best + 2], (n - best - 2) * sizeof *pairs);
            pairs[best] = find_merge(bpe, word, &symbols[best], &symbols[best + 1]);
        }
        if (best > 0) pairs[best - 1] = find_merge(bpe, word, &symbols[best - 1], &symbols[best]);
    }
    return n;
}

static bool before(struct candidate a, struct candidate b) {
    return a.rank < b.rank || (a.rank == b.rank && a.left < b.left);
}

static void heap_push(struct bpe_scratch *s, struct candidate c) {
    size_t i = s->heap_count++;
    for (; i > 0 && before(c, s->heap[(i - 1) / 2]); i = (i - 1) / 2) s->heap[i] = s->heap[(i - 1) / 2];
    s->heap[i] = c;
}

static struct candidate heap_pop(struct bpe_scratch *s) {
    struct candidate top = s->heap[0], last = s->heap[--s->heap_count];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < s->heap_count; i = child) {
        if (child + 1 < s->heap_count && before(s->heap[child + 1], s->heap[child])) child++;
        if (!before(s->heap[child], last)) break;
        s->heap[i] = s->heap[child];
    }
    s->heap[i] = last;
    return top;
}

static void push_pair(const struct bpe *bpe, struct bpe_scratch *s, const char *word, int32_t left) {
    if (left < 0 || s->symbols[left].next < 0) return;
    struct merge m = find_merge(bpe, word, &s->symbols[left], &s->symbols[s->symbols[left].next]);
    if (m.rank != BPE_NO_RANK) heap_push(s, (struct candidate){m.rank, left, m.id});
}

// As merge_short, in O(n log n). Merged symbols are unlinked; the list from symbol 0 is the result. Each merge pushes
// at most two candidates and there are fewer than n merges, so 3 n places are enough.
static void merge_long(const struct bpe *bpe, struct bpe_scratch *s, const char *word, size_t n) {
    for (size_t i = 0; i < n; i++) {
        s->symbols[i].prev = (int32_t)i - 1;
        s->symbols[i].next = i + 1 < n ? (int32_t)i + 1 : -1;
    }
    s->heap_count = 0;
    for (size_t i = 0; i + 1 < n; i++) push_pair(bpe, s, word, (int32_t)i);
    while (s->heap_count > 0) {
        struct candidate c = heap_pop(s);
        struct symbol *left = &s->symbols[c.left];
        if (left->id == SWALLOWED || left->next < 0) continue;
        struct symbol *right = &s->symbols[left->next];
        struct merge m = find_merge(bpe, word, left, right);
        if (m.rank == BPE_NO_RANK || m.id != c.id) continue; // one of the two has grown meanwhile
        left->id = m.id;
        left->end = right->end;
        left->next = right->next;
        right->id = SWALLOWED;
        if (left->next >= 0) s->symbols[left->next].prev = c.left;
        push_pair(bpe, s, word, left->prev);
        push_pair(bpe, s, word, c.left);
    }
}

static int reserve(struct bpe_scratch *s, size_t n) {
    if (n <= s->capacity) return 0;
    size_t capacity = n < 1024 ? 1024 : n + n / 2;
    mem_free(s->symbols);
    mem_free(s->heap);
    s->symbols = mem_zalloc(capacity, sizeof *s->symbols);
    s->heap = mem_zalloc(capacity, 3 * sizeof *s->heap);
    s->capacity = s->symbols && s->heap ? capacity : 0;
    return s->capacity ? 0 : -1;
}

static int push_symbol(struct encoding *out, const struct symbol *symbol, uint32_t at, struct error *err) {
    if (encoding_push(out, symbol->id, at + symbol->begin, at + symbol->end) == 0) return 0;
    return error_memory(err, "token ids", sizeof(int32_t) * out->ids->count);
}

// A character that no merge has taken up is spelled in bytes.
static int push_merged(const struct bpe *bpe, struct encoding *out, const char *word, const struct symbol *symbol,
                       uint32_t at, struct error *err) {
    if (symbol->id != UNSPELLED) return push_symbol(out, symbol, at, err);
    for (uint32_t i = symbol->begin; i < symbol->end; i++) {
        struct symbol byte = {.id = bpe->fallback[(uint8_t)word[i]], .begin = i, .end = i + 1};
        if (byte.id < 0) return no_token(bpe, word + symbol->begin, symbol->end - symbol->begin, err);
        if (push_symbol(out, &byte, at, err) < 0) return -1;
    }
    return 0;
}

static int encode_long(const struct bpe *bpe, struct bpe_scratch *s, const char *word, size_t length, uint32_t at,
                       struct encoding *out, struct error *err) {
    if (length > BPE_LONGEST_WORD)
        return error_set(err, STATUS_DATA, "byte %u: %zu bytes without a word boundary; the limit is %d", at, length,
                         BPE_LONGEST_WORD);
    if (reserve(s, length) < 0) return error_memory(err, "a long word", length);
    int64_t n = fill_symbols(bpe, word, length, s->symbols, err);
    if (n <= 0) return (int)n;
    merge_long(bpe, s, word, (size_t)n);
    for (int32_t i = 0; i >= 0; i = s->symbols[i].next)
        if (push_merged(bpe, out, word, &s->symbols[i], at, err) < 0) return -1;
    return 0;
}

static struct cached_word *cache_slot(const struct bpe_scratch *s, const char *word, size_t length) {
    if (!s->cache || length > CACHE_WORD) return NULL;
    return &s->cache[bpe_hash(word, length) & (CACHE_SLOTS - 1)];
}

// Only words whose tokens cover all their bytes are kept, so that the ends alone give the spans.
static void cache_store(struct cached_word *slot, const char *word, size_t length, const struct symbol *symbols,
                        size_t n) {
    if (n > CACHE_IDS || n == 0 || symbols[0].begin != 0 || symbols[n - 1].end != length) return;
    for (size_t i = 0; i < n; i++)
        if (symbols[i].id == UNSPELLED || (i > 0 && symbols[i].begin != symbols[i - 1].end)) return;
    slot->length = (uint8_t)length;
    slot->count = (uint8_t)n;
    memcpy(slot->word, word, length);
    for (size_t i = 0; i < n; i++) {
        slot->ids[i] = symbols[i].id;
        slot->ends[i] = (uint8_t)symbols[i].end;
    }
}

int bpe_word(const struct bpe *bpe, struct bpe_scratch *scratch, const char *word, size_t length, uint32_t at,
             struct encoding *out, struct error *err) {
    struct cached_word *slot = cache_slot(scratch, word, length);
    if (slot && slot->length == length && memcmp(slot->word, word, length) == 0) {
        struct symbol s = {0};
        for (size_t i = 0; i < slot->count; i++) {
            s = (struct symbol){.id = slot->ids[i], .begin = s.end, .end = slot->ends[i]};
            if (push_symbol(out, &s, at, err) < 0) return -1;
        }
        return 0;
    }
    if (bpe->recipe->ignore_merges) {
        struct symbol whole = {.id = bpe_find_word(bpe, word, length), .end = (uint32_t)length};
        if (whole.id >= 0) return push_symbol(out, &whole, at, err);
    }
    if (length > SHORT_WORD) return encode_long(bpe, scratch, word, length, at, out, err);
    struct symbol symbols[SHORT_WORD];
    int64_t filled = fill_symbols(bpe, word, length, symbols, err);
    if (filled < 0) return -1;
    size_t n = merge_short(bpe, word, symbols, (size_t)filled);
    if (slot) cache_store(slot, word, length, symbols, n);
    for (size_t i = 0; i < n; i++)
        if (push_merged(bpe, out, word, &symbols[i], at, err) < 0) return -1;
    return 0;
}
