// See bpe.h: building the tables.
#include "data/bpe_tables.h"

#include "data/utf8.h"

#include <math.h>
#include <stdlib.h>

enum { MAX_PROBES = 4096 }; // a probe sequence this long is a crafted vocabulary, not chance

static size_t table_size(size_t count) {
    size_t size = 64;
    while (size < 2 * count) size *= 2;
    return size;
}

static int table_init(struct bpe *bpe, struct string_table *table, struct error *err) {
    size_t size = table_size(bpe->recipe->n_tokens);
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
    size_t i = bpe_hash(s.bytes, s.length) & table->mask;
    for (int probes = 0; table->ids[i] >= 0; i = (i + 1) & table->mask) {
        if (bpe_same(strings[table->ids[i]], s.bytes, s.length))
            return error_set(err, STATUS_DATA, "%s: tokens %d and %d of the vocabulary are the same text",
                             bpe->recipe->file, table->ids[i], id);
        if (++probes > MAX_PROBES) return error_set(err, STATUS_DATA, "%s: malformed vocabulary", bpe->recipe->file);
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

// Spaces as they are written; out holds at least as much as the token.
static void token_text(struct vocab_string space, struct vocab_string token, char *out, struct vocab_string *result) {
    size_t n = 0;
    for (size_t at = 0; at < token.length;) {
        bool is_space = token.length - at >= space.length && memcmp(token.bytes + at, space.bytes, space.length) == 0;
        out[n++] = is_space ? ' ' : token.bytes[at];
        at += is_space ? space.length : 1;
    }
    *result = (struct vocab_string){out, n};
}

static int load_token(struct bpe *bpe, const int16_t map[0x144], int32_t id, char **arena, struct error *err) {
    const struct recipe *r = bpe->recipe;
    struct vocab_string spelled = r->tokens[id], *bytes = &bpe->bytes[id];
    *bytes = spelled;
    if (r->uses[id] == USE_NONE) return 0;
    if (table_add(bpe, &bpe->by_spelling, r->tokens, id, err) < 0) return -1;
    if (spelled.length > bpe->longest) bpe->longest = spelled.length;
    if (!(r->uses[id] & USE_WORD)) return 0;
    if (r->bytes) {
        token_bytes(map, spelled, *arena, bytes);
        if (bytes->bytes != *arena) return 0; // not spelled in the alphabet: no text leads to it
        if (r->ignore_merges && table_add(bpe, &bpe->by_bytes, bpe->bytes, id, err) < 0) return -1;
    } else if (r->space.length) {
        token_text(r->space, spelled, *arena, bytes);
    }
    struct vocab_string symbol = r->bytes ? *bytes : spelled;
    if (symbol.length == 1) bpe->byte_ids[(uint8_t)symbol.bytes[0]] = id;
    *arena += bytes->length;
    return 0;
}

// "<0x00>" .. "<0xFF>" stand for bytes.
static void load_fallback(struct bpe *bpe) {
    for (int byte = 0; byte < 256; byte++) {
        char spelling[8] = "<0x00>";
        spelling[3] = "0123456789ABCDEF"[byte >> 4];
        spelling[4] = "0123456789ABCDEF"[byte & 15];
        int32_t id = bpe_find(bpe, spelling, 6);
        if (id < 0 || !(bpe->recipe->uses[id] & USE_WORD)) continue;
        bpe->all_bytes[byte] = (char)byte;
        bpe->fallback[byte] = id;
        bpe->bytes[id] = (struct vocab_string){&bpe->all_bytes[byte], 1};
    }
}

// Is the space mark at byte `at`, behind something that is no space mark?
static bool mark_follows(struct vocab_string space, const char *text, size_t length, size_t at) {
    if (at == 0 || length - at < space.length || memcmp(text + at, space.bytes, space.length) != 0) return false;
    return at < space.length || memcmp(text + at - space.length, space.bytes, space.length) != 0;
}

static void look_for_spaces(struct bpe *bpe) {
    const struct recipe *r = bpe->recipe;
    bool known = r->space.length && !r->bytes && !r->ignore_merges;
    if (known) known = bpe_find_word(bpe, r->space.bytes, r->space.length) >= 0;
    for (size_t i = 0; i < r->n_tokens && known; i++)
        for (size_t at = 1; at < r->tokens[i].length && known && r->uses[i] & USE_WORD; at++)
            known = !mark_follows(r->space, r->tokens[i].bytes, r->tokens[i].length, at);
    bpe->cuts_at_space = known;
}

size_t bpe_first_part(const struct bpe *bpe, const char *word, size_t length) {
    struct vocab_string space = bpe->recipe->space;
    if (!bpe->cuts_at_space) return length;
    for (const char *at = word + 1, *end = word + length; at < end; at++) {
        at = memchr(at, space.bytes[0], (size_t)(end - at));
        if (!at) return length;
        if (mark_follows(space, word, length, (size_t)(at - word))) return (size_t)(at - word);
    }
    return length;
}

static int load_tokens(struct bpe *bpe, struct error *err) {
    const struct recipe *r = bpe->recipe;
    int16_t map[0x144];
    visible_to_byte(map);
    uint64_t total = 0;
    for (size_t i = 0; i < r->n_tokens; i++)
        if (!checked_add(total, r->tokens[i].length, &total))
            return error_set(err, STATUS_DATA, "%s: malformed", r->file);
    bpe->bytes = pool_array(&bpe->pool, r->n_tokens, sizeof *bpe->bytes);
    char *arena = pool_array(&bpe->pool, total + 1, 1);
    if (!bpe->bytes || !arena) return error_memory(err, "the vocabulary", total);
    if (table_init(bpe, &bpe->by_spelling, err) < 0) return -1;
    if (r->bytes && r->ignore_merges && table_init(bpe, &bpe->by_bytes, err) < 0) return -1;
    for (size_t i = 0; i < r->n_tokens; i++)
        if (load_token(bpe, map, (int32_t)i, &arena, err) < 0) return -1;
    if (r->byte_fallback) load_fallback(bpe);
    if (r->bytes && r->byte_fallback)
        for (int byte = 0; byte < 256; byte++)
            if (bpe->byte_ids[byte] < 0)
                return error_set(
                    err, STATUS_DATA,
                    "%s: byte_fallback of a byte-level vocabulary that lacks the byte 0x%02X is not in this "
                    "version",
                    r->file, byte);
    look_for_spaces(bpe);
    return 0;
}

// --- merges

static int merge_error(const struct bpe *bpe, size_t rank, const char *what, struct error *err) {
    return error_set(err, STATUS_DATA, "%s: merge %zu of the vocabulary %s", bpe->recipe->file, rank, what);
}

// One merge is "left right", cut at the first mark after the first byte; its result is the token left + right.
static int load_merge(struct bpe *bpe, size_t rank, struct text *joined, struct error *err) {
    struct vocab_string m = bpe->recipe->merges[rank];
    const char *mark = m.length > 2 ? memchr(m.bytes + 1, bpe->recipe->merge_mark, m.length - 1) : NULL;
    if (!mark || mark + 1 == m.bytes + m.length) return merge_error(bpe, rank, "is not a pair", err);
    size_t left_length = (size_t)(mark - m.bytes), right_length = m.length - left_length - 1;
    text_clear(joined);
    text_append(joined, m.bytes, left_length);
    text_append(joined, mark + 1, right_length);
    if (text_failed(joined)) return error_memory(err, "the vocabulary", m.length);
    int32_t left = bpe_find(bpe, m.bytes, left_length), right = bpe_find(bpe, mark + 1, right_length);
    int32_t id = bpe_find(bpe, joined->data, joined->length);
    if (left < 0 || right < 0 || id < 0) return merge_error(bpe, rank, "names a token that does not exist", err);
    uint64_t key = bpe_pair_key(left, right);
    size_t i = bpe_mix(key) >> 20 & bpe->pair_mask;
    int probes = 0;
    for (; bpe->pairs[i].key != BPE_EMPTY_KEY && bpe->pairs[i].key != key; i = (i + 1) & bpe->pair_mask)
        if (++probes > MAX_PROBES) return merge_error(bpe, rank, "makes a malformed vocabulary", err);
    bpe->pairs[i] = (struct pair_slot){key, (uint32_t)rank, id}; // of two equal pairs the later one counts
    return 0;
}

static int load_merges(struct bpe *bpe, struct error *err) {
    size_t size = table_size(bpe->recipe->n_merges);
    bpe->pairs = pool_array(&bpe->pool, size, sizeof *bpe->pairs);
    if (!bpe->pairs) return error_memory(err, "the vocabulary", size * sizeof *bpe->pairs);
    for (size_t i = 0; i < size; i++) bpe->pairs[i].key = BPE_EMPTY_KEY;
    bpe->pair_mask = size - 1;
    struct text joined = {0};
    int status = 0;
    for (size_t rank = 0; rank < bpe->recipe->n_merges && status == 0; rank++)
        status = load_merge(bpe, rank, &joined, err);
    text_free(&joined);
    return status;
}

static int by_score(const void *a, const void *b, void *context) {
    const float *scores = context;
    float x = scores[*(const int32_t *)a], y = scores[*(const int32_t *)b];
    return (x < y) - (x > y);
}

static int load_ranks(struct bpe *bpe, struct error *err) {
    const struct recipe *r = bpe->recipe;
    bpe->ranks = pool_array(&bpe->pool, r->n_tokens, sizeof *bpe->ranks);
    int32_t *order = mem_alloc(r->n_tokens * sizeof *order);
    if (!bpe->ranks || !order) {
        mem_free(order);
        return error_memory(err, "the vocabulary", r->n_tokens * sizeof *order);
    }
    int status = 0;
    for (size_t i = 0; i < r->n_tokens; i++) {
        order[i] = (int32_t)i;
        if (isnan(r->scores[i]))
            status = error_set(err, STATUS_DATA, "%s: the score of token %zu is not a number", r->file, i);
    }
    float *scores = (float *)(uintptr_t)r->scores; // qsort_r's context is not const
    if (status == 0) qsort_r(order, r->n_tokens, sizeof *order, by_score, scores);
    for (size_t i = 1; i < r->n_tokens && status == 0; i++)
        bpe->ranks[order[i]] = bpe->ranks[order[i - 1]] + (scores[order[i]] != scores[order[i - 1]]);
    mem_free(order);
    return status;
}

struct bpe *bpe_open(const struct recipe *recipe, struct error *err) {
    if (recipe->n_tokens == 0 || recipe->n_tokens > RECIPE_MAX_TOKENS || recipe->n_merges > RECIPE_MAX_MERGES) {
        error_set(err, STATUS_DATA, "%s: a vocabulary of %zu tokens and %zu merges is outside the limits (%d, %d)",
                  recipe->file, recipe->n_tokens, recipe->n_merges, RECIPE_MAX_TOKENS, RECIPE_MAX_MERGES);
        return NULL;
    }
    struct bpe *bpe = mem_zalloc(1, sizeof *bpe);
    if (!bpe) {
        error_memory(err, "the vocabulary", sizeof *bpe);
        return NULL;
    }
    bpe->recipe = recipe;
    memset(bpe->byte_ids, 0xFF, sizeof bpe->byte_ids);
    memset(bpe->fallback, 0xFF, sizeof bpe->fallback);
    if (load_tokens(bpe, err) < 0 || (recipe->rule == MERGE_PAIRS ? load_merges(bpe, err) : load_ranks(bpe, err)) < 0) {
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
    return bpe_table_find(&bpe->by_spelling, bpe->recipe->tokens, spelling, length);
}
