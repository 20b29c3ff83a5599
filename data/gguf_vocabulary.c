// See gguf_vocabulary.h. Types and ids as llama.cpp's converter gives them (conversion/base.py, gguf-py/gguf/vocab.py).
#include "data/gguf_vocabulary.h"

#include "data/gguf_pre.h"
#include "data/recipe.h"
#include "data/tokenizer.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

static int no_memory(struct error *err) {
    return error_memory(err, "the vocabulary", 0);
}

// --- tokens and their types

static bool begins_ends(struct vocab_string t, const char *begin, const char *end) {
    size_t n = strlen(begin), m = strlen(end);
    return t.length >= n + m && memcmp(t.bytes, begin, n) == 0 && memcmp(t.bytes + t.length - m, end, m) == 0;
}

// Files mark some control tokens as ordinary ones (Command R, Gemma, DeepSeek Coder).
static bool looks_special(struct vocab_string t) {
    return begins_ends(t, "<|", "|>") || begins_ends(t, "<\xEF\xBD\x9C", "\xEF\xBD\x9C>") ||
           begins_ends(t, "<unused", ">") || (t.length == 5 && memcmp(t.bytes, "<pad>", 5) == 0) ||
           (t.length == 6 && memcmp(t.bytes, "<mask>", 6) == 0);
}

static bool is_byte(struct vocab_string t) {
    return t.length == 6 && memcmp(t.bytes, "<0x", 3) == 0 && isxdigit((unsigned char)t.bytes[3]) &&
           isxdigit((unsigned char)t.bytes[4]) && t.bytes[5] == '>';
}

static int put_tokens(struct gguf_vocabulary *v, size_t rows, struct error *err) {
    const struct recipe *r = v->recipe;
    struct vocab_string *tokens = pool_array(&v->pool, rows, sizeof *tokens);
    int32_t *types = pool_array(&v->pool, rows, sizeof *types);
    if (!tokens || !types) return no_memory(err);
    for (size_t i = 0; i < rows; i++) {
        if (i < r->n_tokens && r->uses[i] != USE_NONE) {
            tokens[i] = r->tokens[i];
            types[i] = r->byte_fallback && is_byte(tokens[i]) ? TOKEN_BYTE : TOKEN_NORMAL;
            continue;
        }
        const char *filler = pool_printf(&v->pool, "[PAD%zu]", i);
        if (!filler) return no_memory(err);
        tokens[i] = vocab_text(filler, strlen(filler));
        types[i] = TOKEN_UNUSED;
    }
    for (size_t i = 0; i < r->n_added; i++) {
        const struct added_token *a = &r->added[i];
        types[a->id] = a->control || looks_special(a->text) ? TOKEN_CONTROL : TOKEN_USER_DEFINED;
    }
    if (!r->bytes && r->unk >= 0) types[r->unk] = TOKEN_UNKNOWN;
    v->source.tokens = tokens, v->source.types = types, v->source.n_tokens = rows;
    return 0;
}

// --- merges

// "left right" with one space; one inside a part is spelled as byte-level BPE does.
static int put_merges(struct gguf_vocabulary *v, struct error *err) {
    static const char spelled[] = "\xC4\xA0"; // U+0120
    const struct recipe *r = v->recipe;
    struct vocab_string *merges = pool_array(&v->pool, r->n_merges + 1, sizeof *merges);
    if (!merges) return no_memory(err);
    for (size_t i = 0; i < r->n_merges; i++) {
        const char *bytes = r->merges[i].bytes, *mark = memchr(bytes + 1, r->merge_mark, r->merges[i].length - 1);
        char *out = pool_alloc(&v->pool, 2 * r->merges[i].length + 1);
        if (!out) return no_memory(err);
        size_t n = 0;
        for (const char *at = bytes; at < bytes + r->merges[i].length; at++) {
            if (at == mark)
                out[n++] = ' ';
            else if (*at == ' ')
                memcpy(out + n, spelled, 2), n += 2;
            else
                out[n++] = *at;
        }
        merges[i] = vocab_text(out, n);
    }
    v->source.merges = merges, v->source.n_merges = r->n_merges;
    return 0;
}

// --- scores of SentencePiece, from merges

static int by_text(struct vocab_string a, struct vocab_string b) {
    size_t n = a.length < b.length ? a.length : b.length;
    int order = memcmp(a.bytes, b.bytes, n);
    return order ? order : a.length < b.length ? -1 : a.length > b.length;
}

struct entry {
    struct vocab_string text;
    size_t id;
};
static int by_entry(const void *a, const void *b) {
    return by_text(((const struct entry *)a)->text, ((const struct entry *)b)->text);
}
static const struct entry *find(const struct entry *sorted, size_t n, const char *bytes, size_t length) {
    struct entry key = {.text = vocab_text(bytes, length)};
    return bsearch(&key, sorted, n, sizeof key, by_entry);
}

static int unscored(const struct recipe *r, const char *why, struct vocab_string token, struct error *err) {
    return error_set(err, STATUS_DATA,
                     "%s: its merges are no scores of SentencePiece, which is what GGUF has for characters with byte "
                     "fallback: %s (token \"%.*s\")",
                     r->file, why, (int)(token.length < 64 ? token.length : 64), token.bytes);
}

// SentencePiece joins two neighbours whenever they make a token, best score first; a list of merges says that when
// every way to make a token is in it, one token's ways one after another. Then the scores are the tokens' places.
static int score_merges(const struct recipe *r, const struct entry *sorted, size_t n, float *scores, uint8_t *seen,
                        uint64_t *ways, struct error *err) {
    char *joined = NULL;
    size_t room = 0, last = SIZE_MAX;
    int64_t place = 0;
    int status = 0;
    for (size_t i = 0; i < r->n_merges && status == 0; i++) {
        struct vocab_string m = r->merges[i];
        const char *mark = memchr(m.bytes + 1, r->merge_mark, m.length - 1);
        size_t left = (size_t)(mark - m.bytes);
        if (m.length > room) {
            char *grown = mem_resize(joined, 2 * m.length);
            if (!grown) {
                status = no_memory(err);
                break;
            }
            joined = grown, room = 2 * m.length;
        }
        memcpy(joined, m.bytes, left);
        memcpy(joined + left, mark + 1, m.length - left - 1);
        const struct entry *e = find(sorted, n, joined, m.length - 1);
        if (!e) continue; // never made: the reference refuses such a list
        (*ways)++;
        if (e->id == last) continue;
        if (seen[e->id]) status = unscored(r, "the ways to make a token stand apart", e->text, err);
        seen[e->id] = 1, last = e->id;
        scores[e->id] = (float)-place++;
    }
    mem_free(joined);
    return status;
}

static int check_ways(const struct recipe *r, const struct entry *sorted, size_t n, uint64_t ways, struct error *err) {
    uint64_t possible = 0;
    struct vocab_string last = {0};
    for (size_t i = 0; i < n; i++) {
        struct vocab_string t = sorted[i].text;
        for (size_t cut = 1; cut < t.length; cut++) {
            if ((t.bytes[cut] & 0xC0) == 0x80) continue;
            if (!find(sorted, n, t.bytes, cut) || !find(sorted, n, t.bytes + cut, t.length - cut)) continue;
            possible++;
            last = t;
        }
    }
    return possible == ways ? 0 : unscored(r, "two tokens that make a third are no merge", last, err);
}

static int put_scores(struct gguf_vocabulary *v, struct error *err) {
    const struct recipe *r = v->recipe;
    size_t n = 0;
    struct entry *sorted = mem_zalloc(r->n_tokens + 1, sizeof *sorted);
    float *scores = pool_array(&v->pool, v->source.n_tokens, sizeof *scores);
    uint8_t *seen = mem_zalloc(r->n_tokens + 1, 1);
    uint64_t ways = 0;
    int status = sorted && scores && seen ? 0 : no_memory(err);
    for (size_t i = 0; i < v->source.n_tokens && status == 0; i++) {
        scores[i] = -1e6f; // nothing is made of two others here
        if (i < r->n_tokens && r->uses[i] != USE_NONE) sorted[n++] = (struct entry){r->tokens[i], i};
    }
    if (status == 0) {
        qsort(sorted, n, sizeof *sorted, by_entry);
        status = score_merges(r, sorted, n, scores, seen, &ways, err) || check_ways(r, sorted, n, ways, err) ? -1 : 0;
    }
    mem_free(sorted);
    mem_free(seen);
    v->source.scores = scores;
    return status;
}

// --- the same ids?

static int encode(const struct vocab_source *source, const char *text, size_t length, struct ids *out,
                  struct error *err) {
    struct tokenizer *t = tokenizer_open(source, err);
    if (!t) return -1;
    int status = tokenizer_encode(t, text, length, true, out, NULL, err);
    tokenizer_close(t);
    return status;
}

// 1 when both give the same ids for the text, 0, or -1.
static int same_ids(const struct vocab_source *a, const struct vocab_source *b, const char *text, size_t length,
                    struct error *err) {
    struct ids x = {0}, y = {0};
    int status = encode(a, text, length, &x, err) || encode(b, text, length, &y, err) ? -1 : 0;
    if (status == 0) status = x.count == y.count && memcmp(x.data, y.data, x.count * sizeof *x.data) == 0;
    ids_free(&x), ids_free(&y);
    return status;
}

static int check(const struct vocab_source *folder, struct gguf_vocabulary *v, struct text *notes, struct error *err) {
    const char *probe = gguf_pre_probe();
    int same = same_ids(folder, &v->source, probe, strlen(probe), err);
    if (same == 0 && v->source.scores) { // the other way to begin a text
        v->source.add_space_prefix = !v->source.add_space_prefix;
        same = same_ids(folder, &v->source, probe, strlen(probe), err);
    }
    if (same < 0) return -1;
    if (same == 0)
        return error_set(err, STATUS_DATA,
                         "%s: this tokenizer as a GGUF gives other ids for a text of many scripts: it cannot be "
                         "written as one",
                         v->recipe->file);
    struct text with = {0};
    for (size_t i = 0; i < v->recipe->n_added && i < 8; i++) {
        struct vocab_string t = v->recipe->added[i].text;
        text_append(&with, t.bytes, t.length);
        text_add(&with, "a text ");
    }
    same = text_failed(&with) ? no_memory(err) : same_ids(folder, &v->source, text_str(&with), with.length, err);
    text_free(&with);
    if (same == 0)
        text_add(notes, "white space beside special tokens is read otherwise from a GGUF than from tokenizer.json\n");
    return same < 0 ? -1 : 0;
}

// --- everything

static int fill(struct gguf_vocabulary *v, const struct vocab_source *folder, size_t rows, struct text *notes,
                struct error *err) {
    const struct recipe *r = v->recipe;
    struct vocab_source *s = &v->source;
    if (r->n_tokens > rows)
        return error_set(err, STATUS_DATA, "%s: %zu tokens for an embedding of %zu rows: a GGUF has as many as rows",
                         r->file, r->n_tokens, rows);
    *s = (struct vocab_source){.file = r->file,
                               .bos = r->bos,
                               .eos = r->eos,
                               .eot = r->n_ends > 1 ? r->ends[1] : -1,
                               .unk = r->unk,
                               .pad = r->pad,
                               .add_bos = r->adds_bos,
                               .rows = rows,
                               .chat_template = r->chat_template};
    if (put_tokens(v, rows, err)) return -1;
    if (r->bytes) {
        s->model = "gpt2";
        if (put_merges(v, err) || gguf_pre_find(r, s, err)) return -1;
    } else {
        s->model = "llama", s->pre = "default";
        s->add_space_prefix = r->n_normal > 0 && r->normal[0].kind == NORMAL_PREPEND;
        if (!r->byte_fallback)
            return error_set(err, STATUS_DATA,
                             "%s: BPE of characters without byte fallback: a GGUF has no such tokenizer", r->file);
        if (put_scores(v, err)) return -1;
    }
    return check(folder, v, notes, err);
}

int gguf_vocabulary_open(const struct vocab_source *folder, size_t rows, struct gguf_vocabulary *out,
                         struct text *notes, struct error *err) {
    struct error none = {0};
    *out = (struct gguf_vocabulary){0};
    out->recipe = mem_zalloc(1, sizeof *out->recipe);
    if (!out->recipe) return no_memory(err);
    int status = recipe_from_folder(folder, out->recipe, &none);
    if (status && none.code == STATUS_NOINPUT) {
        out->source = (struct vocab_source){.model = "none"};
        text_add(notes, "the folder has no tokenizer, and neither has the file: it can be given token ids only\n");
        return 0;
    }
    if (status)
        status = error_set(err, none.code, "%s", none.text);
    else
        status = fill(out, folder, rows, notes, err);
    if (status) gguf_vocabulary_close(out);
    return status;
}

void gguf_vocabulary_close(struct gguf_vocabulary *v) {
    if (v->recipe) recipe_free(v->recipe);
    mem_free(v->recipe);
    pool_free(&v->pool);
    *v = (struct gguf_vocabulary){0};
}
