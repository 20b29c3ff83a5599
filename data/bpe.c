// See bpe.h.
#include "data/bpe.h"

#include "data/utf8.h"

enum {
    SHORT_WORD = 48,   // up to here a scan over an array beats a heap
    MAX_PROBES = 4096, // a probe sequence this long is a crafted vocabulary, not chance
    CACHE_SLOTS = 1 << 14,
    CACHE_WORD = 31,
    CACHE_IDS = 7,
    MAX_TOKENS = 2 << 20,
    MAX_MERGES = 4 << 20,
};
#define NO_RANK UINT32_MAX

// A merge: two neighbouring symbols become one; the lowest rank goes first.
struct pair_slot {
    uint64_t key; // left << 32 | right; EMPTY_KEY when free
    uint32_t rank;
    int32_t id;
};
#define EMPTY_KEY UINT64_MAX

struct string_table {
    int32_t *ids; // -1 when free
    size_t mask;
};

struct bpe {
    const struct vocab_source *source;
    struct pool pool;
    struct vocab_string *bytes; // (n_tokens) what the token stands for
    int32_t byte_ids[256];      // symbol of a single byte, -1 when the vocabulary lacks it
    struct string_table by_spelling;
    struct string_table by_bytes; // only for ignore_merges; mask 0 otherwise
    struct pair_slot *pairs;
    size_t pair_mask;
};

static uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 32)) * 0xD6E8FEB86659FD93u;
    return (x ^ (x >> 29)) * 0x9E3779B97F4A7C15u;
}

static uint64_t hash_bytes(const char *bytes, size_t length) {
    uint64_t h = length, word;
    for (; length >= 8; bytes += 8, length -= 8) {
        memcpy(&word, bytes, 8);
        h = mix(h ^ word);
    }
    word = 0;
    if (length) memcpy(&word, bytes, length);
    h = mix(h ^ word);
    return h ^ (h >> 31);
}

static size_t table_size(size_t count) {
    size_t size = 64;
    while (size < 2 * count) size *= 2;
    return size;
}

static bool same(struct vocab_string a, const char *bytes, size_t length) {
    return a.length == length && memcmp(a.bytes, bytes, length) == 0;
}

static int32_t table_find(const struct string_table *table, const struct vocab_string *strings, const char *bytes,
                          size_t length) {
    if (length == 0 || !table->ids) return -1;
    for (size_t i = hash_bytes(bytes, length) & table->mask;; i = (i + 1) & table->mask) {
        int32_t id = table->ids[i];
        if (id < 0 || same(strings[id], bytes, length)) return id;
    }
}

static int table_init(struct bpe *bpe, struct string_table *table, struct error *err) {
    size_t size = table_size(bpe->source->n_tokens);
    table->ids = pool_array(&bpe->pool, size, sizeof *table->ids);
    if (!table->ids) return error_memory(err, "the vocabulary", size * sizeof *table->ids);
    memset(table->ids, 0xFF, size * sizeof *table->ids);
    table->mask = size - 1;
    return 0;
}

static int table_add(const struct bpe *bpe, struct string_table *table, const struct vocab_string *strings, int32_t id,
                     struct error *err) {
    struct vocab_string s = strings[id];
    if (s.length == 0) return 0; // can never occur
    size_t i = hash_bytes(s.bytes, s.length) & table->mask;
    for (int probes = 0; table->ids[i] >= 0; i = (i + 1) & table->mask) {
        if (same(strings[table->ids[i]], s.bytes, s.length))
            return error_set(err, STATUS_DATA, "%s: tokens %d and %d of the vocabulary are the same text",
                             bpe->source->file, table->ids[i], id);
        if (++probes > MAX_PROBES) return error_set(err, STATUS_DATA, "%s: malformed vocabulary", bpe->source->file);
    }
    table->ids[i] = id;
    return 0;
}

// GPT-2's visible alphabet: printable Latin-1 stands for itself, the other 68 bytes in order for U+0100 and up.
static bool visible(unsigned byte) {
    return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

// code point - 0 .. 0x143 -> byte, or -1 where the alphabet has no such character
static void visible_to_byte(int16_t map[0x144]) {
    int next = 0x100;
    for (int c = 0; c < 0x144; c++) map[c] = -1;
    for (int byte = 0; byte < 256; byte++) map[visible((unsigned)byte) ? byte : next++] = (int16_t)byte;
}

// The raw bytes of an ordinary token; its own UTF-8 when a character is outside the alphabet.
static void token_bytes(const int16_t map[0x144], struct vocab_string token, char *out, struct vocab_string *result) {
    size_t n = 0, size;
    for (size_t at = 0; at < token.length; at += size) {
        uint32_t c = utf8_read(token.bytes + at, token.length - at, &size);
        if (size == 0 || c >= 0x144 || map[c] < 0) {
            *result = token;
            return;
        }
        out[n++] = (char)map[c];
    }
    *result = (struct vocab_string){out, n};
}

static bool is_ordinary(const struct vocab_source *s, size_t id) {
    int type = s->types ? s->types[id] : TOKEN_NORMAL;
    return type == TOKEN_NORMAL || type == TOKEN_BYTE || type == TOKEN_UNDEFINED;
}

static int load_tokens(struct bpe *bpe, bool ignore_merges, struct error *err) {
    const struct vocab_source *s = bpe->source;
    int16_t map[0x144];
    visible_to_byte(map);
    uint64_t total = 0;
    for (size_t i = 0; i < s->n_tokens; i++)
        if (!checked_add(total, s->tokens[i].length, &total))
            return error_set(err, STATUS_DATA, "%s: malformed", s->file);
    bpe->bytes = pool_array(&bpe->pool, s->n_tokens, sizeof *bpe->bytes);
    char *arena = pool_array(&bpe->pool, total + 1, 1);
    if (!bpe->bytes || !arena) return error_memory(err, "the vocabulary", total);
    if (table_init(bpe, &bpe->by_spelling, err) < 0) return -1;
    if (ignore_merges && table_init(bpe, &bpe->by_bytes, err) < 0) return -1;
    for (size_t i = 0; i < s->n_tokens; i++) {
        bpe->bytes[i] = s->tokens[i];
        if (s->types && (s->types[i] < TOKEN_UNDEFINED || s->types[i] > TOKEN_BYTE))
            return error_set(err, STATUS_DATA, "%s: token %zu has the unknown type %d", s->file, i, s->types[i]);
        if (s->types && s->types[i] == TOKEN_UNUSED) continue; // padding of the embedding matrix: never in a text
        if (table_add(bpe, &bpe->by_spelling, s->tokens, (int32_t)i, err) < 0) return -1;
        if (!is_ordinary(s, i)) continue;
        token_bytes(map, s->tokens[i], arena, &bpe->bytes[i]);
        if (bpe->bytes[i].bytes != arena) continue; // not spelled in the alphabet: no text leads to it
        arena += bpe->bytes[i].length;
        if (bpe->bytes[i].length == 1) bpe->byte_ids[(uint8_t)bpe->bytes[i].bytes[0]] = (int32_t)i;
        if (ignore_merges && table_add(bpe, &bpe->by_bytes, bpe->bytes, (int32_t)i, err) < 0) return -1;
    }
    return 0;
}

static uint64_t pair_key(int32_t left, int32_t right) {
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

static const struct pair_slot *pair_find(const struct bpe *bpe, int32_t left, int32_t right) {
    uint64_t key = pair_key(left, right);
    for (size_t i = mix(key) >> 20 & bpe->pair_mask;; i = (i + 1) & bpe->pair_mask) {
        const struct pair_slot *slot = &bpe->pairs[i];
        if (slot->key == key) return slot;
        if (slot->key == EMPTY_KEY) return NULL;
    }
}

static int merge_error(const struct bpe *bpe, size_t rank, const char *what, struct error *err) {
    return error_set(err, STATUS_DATA, "%s: merge %zu of the vocabulary %s", bpe->source->file, rank, what);
}

// One merge is "left right", cut at the first space after the first byte; its result is the token left + right.
static int load_merge(struct bpe *bpe, size_t rank, struct text *joined, struct error *err) {
    struct vocab_string m = bpe->source->merges[rank];
    const char *space = m.length > 2 ? memchr(m.bytes + 1, ' ', m.length - 1) : NULL;
    if (!space || space + 1 == m.bytes + m.length) return merge_error(bpe, rank, "is not a pair", err);
    size_t left_length = (size_t)(space - m.bytes), right_length = m.length - left_length - 1;
    text_clear(joined);
    text_append(joined, m.bytes, left_length);
    text_append(joined, space + 1, right_length);
    if (text_failed(joined)) return error_memory(err, "the vocabulary", m.length);
    int32_t left = bpe_find(bpe, m.bytes, left_length), right = bpe_find(bpe, space + 1, right_length);
    int32_t id = bpe_find(bpe, joined->data, joined->length);
    if (left < 0 || right < 0 || id < 0) return merge_error(bpe, rank, "names a token that does not exist", err);
    uint64_t key = pair_key(left, right);
    size_t i = mix(key) >> 20 & bpe->pair_mask;
    for (int probes = 0; bpe->pairs[i].key != EMPTY_KEY && bpe->pairs[i].key != key; i = (i + 1) & bpe->pair_mask)
        if (++probes > MAX_PROBES) return merge_error(bpe, rank, "makes a malformed vocabulary", err);
    bpe->pairs[i] = (struct pair_slot){key, (uint32_t)rank, id}; // of two equal pairs the later one counts
    return 0;
}

static int load_merges(struct bpe *bpe, struct error *err) {
    size_t size = table_size(bpe->source->n_merges);
    bpe->pairs = pool_array(&bpe->pool, size, sizeof *bpe->pairs);
    if (!bpe->pairs) return error_memory(err, "the vocabulary", size * sizeof *bpe->pairs);
    for (size_t i = 0; i < size; i++) bpe->pairs[i].key = EMPTY_KEY;
    bpe->pair_mask = size - 1;
    struct text joined = {0};
    int status = 0;
    for (size_t rank = 0; rank < bpe->source->n_merges && status == 0; rank++)
        status = load_merge(bpe, rank, &joined, err);
    text_free(&joined);
    return status;
}

struct bpe *bpe_open(const struct vocab_source *source, bool ignore_merges, struct error *err) {
    if (source->n_tokens == 0 || source->n_tokens > MAX_TOKENS || source->n_merges > MAX_MERGES) {
        error_set(err, STATUS_DATA, "%s: a vocabulary of %zu tokens and %zu merges is outside the limits (%d, %d)",
                  source->file, source->n_tokens, source->n_merges, MAX_TOKENS, MAX_MERGES);
        return NULL;
    }
    struct bpe *bpe = mem_zalloc(1, sizeof *bpe);
    if (!bpe) {
        error_memory(err, "the vocabulary", sizeof *bpe);
        return NULL;
    }
    bpe->source = source;
    memset(bpe->byte_ids, 0xFF, sizeof bpe->byte_ids);
    if (load_tokens(bpe, ignore_merges, err) < 0 || load_merges(bpe, err) < 0) {
        bpe_close(bpe);
        return NULL;
    }
    return bpe;
}

void bpe_close(struct bpe *bpe) {
    if (!bpe) return;
    pool_free(&bpe->pool);
    mem_free(bpe);
}

struct vocab_string bpe_bytes(const struct bpe *bpe, int32_t id) {
    return bpe->bytes[id];
}

int32_t bpe_find(const struct bpe *bpe, const char *spelling, size_t length) {
    return table_find(&bpe->by_spelling, bpe->source->tokens, spelling, length);
}

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

static size_t fill_symbols(const struct bpe *bpe, const char *word, size_t length, struct symbol *symbols) {
    size_t n = 0;
    for (size_t i = 0; i < length; i++) {
        int32_t id = bpe->byte_ids[(uint8_t)word[i]];
        if (id >= 0) symbols[n++] = (struct symbol){id, (uint32_t)i, (uint32_t)i + 1, 0, 0};
    }
    return n;
}

// Repeatedly merges the pair of lowest rank, the leftmost of equals. Returns how many symbols are left.
static size_t merge_short(const struct bpe *bpe, struct symbol *symbols, size_t n) {
    const struct pair_slot *pairs[SHORT_WORD]; // pairs[i] = symbols i and i + 1
    for (size_t i = 0; i + 1 < n; i++) pairs[i] = pair_find(bpe, symbols[i].id, symbols[i + 1].id);
    while (n > 1) {
        size_t best = n;
        uint32_t rank = NO_RANK;
        for (size_t i = 0; i + 1 < n; i++)
            if (pairs[i] && pairs[i]->rank < rank) rank = pairs[best = i]->rank;
        if (best == n) break;
        symbols[best].id = pairs[best]->id;
        symbols[best].end = symbols[best + 1].end;
        n--;
        memmove(&symbols[best + 1], &symbols[best + 2], (n - best - 1) * sizeof *symbols);
        if (best + 1 < n) {
            memmove(&pairs[best + 1], &pairs[best + 2], (n - best - 2) * sizeof *pairs);
            pairs[best] = pair_find(bpe, symbols[best].id, symbols[best + 1].id);
        }
        if (best > 0) pairs[best - 1] = pair_find(bpe, symbols[best - 1].id, symbols[best].id);
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

static void push_pair(const struct bpe *bpe, struct bpe_scratch *s, int32_t left) {
    if (left < 0 || s->symbols[left].next < 0) return;
    const struct pair_slot *p = pair_find(bpe, s->symbols[left].id, s->symbols[s->symbols[left].next].id);
    if (p) heap_push(s, (struct candidate){p->rank, left, p->id});
}

// As merge_short, in O(n log n). Merged symbols are unlinked; the list from symbol 0 is the result. Each merge pushes
// at most two candidates and there are fewer than n merges, so 3 n places are enough.
static void merge_long(const struct bpe *bpe, struct bpe_scratch *s, size_t n) {
    for (size_t i = 0; i < n; i++) {
        s->symbols[i].prev = (int32_t)i - 1;
        s->symbols[i].next = i + 1 < n ? (int32_t)i + 1 : -1;
    }
    s->heap_count = 0;
    for (size_t i = 0; i + 1 < n; i++) push_pair(bpe, s, (int32_t)i);
    while (s->heap_count > 0) {
        struct candidate c = heap_pop(s);
        struct symbol *left = &s->symbols[c.left];
        if (left->id < 0 || left->next < 0) continue; // swallowed meanwhile
        struct symbol *right = &s->symbols[left->next];
        const struct pair_slot *p = pair_find(bpe, left->id, right->id);
        if (!p || p->id != c.id) continue; // one of the two has grown meanwhile
        left->id = p->id;
        left->end = right->end;
        left->next = right->next;
        right->id = -1;
        if (left->next >= 0) s->symbols[left->next].prev = c.left;
        push_pair(bpe, s, left->prev);
        push_pair(bpe, s, c.left);
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

static int encode_long(const struct bpe *bpe, struct bpe_scratch *s, const char *word, size_t length, uint32_t at,
                       struct encoding *out, struct error *err) {
    if (length > BPE_LONGEST_WORD)
        return error_set(err, STATUS_DATA, "byte %u: %zu bytes without a word boundary; the limit is %d", at, length,
                         BPE_LONGEST_WORD);
    if (reserve(s, length) < 0) return error_memory(err, "a long word", length);
    size_t n = fill_symbols(bpe, word, length, s->symbols);
    if (n == 0) return 0;
    merge_long(bpe, s, n);
    for (int32_t i = 0; i >= 0; i = s->symbols[i].next)
        if (push_symbol(out, &s->symbols[i], at, err) < 0) return -1;
    return 0;
}

static struct cached_word *cache_slot(const struct bpe_scratch *s, const char *word, size_t length) {
    if (!s->cache || length > CACHE_WORD) return NULL;
    return &s->cache[hash_bytes(word, length) & (CACHE_SLOTS - 1)];
}

// Only words whose tokens cover all their bytes are kept, so that the ends alone give the spans.
static void cache_store(struct cached_word *slot, const char *word, size_t length, const struct symbol *symbols,
                        size_t n) {
    if (n > CACHE_IDS || n == 0 || symbols[0].begin != 0 || symbols[n - 1].end != length) return;
    for (size_t i = 1; i < n; i++)
        if (symbols[i].begin != symbols[i - 1].end) return;
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
    if (bpe->by_bytes.ids) {
        struct symbol whole = {.id = table_find(&bpe->by_bytes, bpe->bytes, word, length), .end = (uint32_t)length};
        if (whole.id >= 0) return push_symbol(out, &whole, at, err);
    }
    if (length > SHORT_WORD) return encode_long(bpe, scratch, word, length, at, out, err);
    struct symbol symbols[SHORT_WORD];
    size_t n = merge_short(bpe, symbols, fill_symbols(bpe, word, length, symbols));
    if (slot) cache_store(slot, word, length, symbols, n);
    for (size_t i = 0; i < n; i++)
        if (push_symbol(out, &symbols[i], at, err) < 0) return -1;
    return 0;
}
