// See tokenizer.h: special tokens are cut out, each piece between them is brought to normal form where the model wants
// it, split into words, and the words are merged.
#include "data/tokenizer.h"

#include "data/bpe.h"
#include "data/normal_form.h"
#include "data/pretokenizer.h"
#include "data/special_tokens.h"
#include "data/utf8.h"

#include <pthread.h>

// What encoding needs besides the tables. One is kept, with a word cache; a thread that finds it taken makes its own.
struct encoder {
    struct bpe_scratch *words;
    struct pretokenizer_scratch *splits;
};

struct tokenizer {
    const struct vocab_source *source;
    struct bpe *bpe;
    struct pretokenizer *pretokenizer;
    struct special_tokens *specials;
    struct encoder *kept;
    pthread_mutex_t kept_lock;
};

int ids_push(struct ids *ids, int32_t id) {
    if (ids->count == ids->capacity) {
        size_t capacity = ids->capacity ? 2 * ids->capacity : 64;
        int32_t *data = mem_resize(ids->data, capacity * sizeof *data);
        if (!data) return -1;
        ids->data = data;
        ids->capacity = capacity;
    }
    ids->data[ids->count++] = id;
    return 0;
}

void ids_free(struct ids *ids) {
    mem_free(ids->data);
    *ids = (struct ids){0};
}

static void encoder_close(struct encoder *e) {
    if (!e) return;
    bpe_scratch_close(e->words);
    pretokenizer_scratch_close(e->splits);
    mem_free(e);
}

static struct encoder *encoder_open(const struct tokenizer *t, bool cache) {
    struct encoder *e = mem_zalloc(1, sizeof *e);
    if (!e) return NULL;
    e->words = bpe_scratch_open(cache);
    e->splits = pretokenizer_scratch_open(t->pretokenizer);
    if (e->words && e->splits) return e;
    encoder_close(e);
    return NULL;
}

static int check_id(const struct vocab_source *s, const char *what, int32_t id, struct error *err) {
    if (id >= -1 && (id < 0 || (size_t)id < s->n_tokens)) return 0;
    return error_set(err, STATUS_DATA, "%s: the %s token %d is outside the vocabulary of %zu", s->file, what, id,
                     s->n_tokens);
}

static int check_source(const struct vocab_source *s, struct error *err) {
    if (!s->model || strcmp(s->model, "gpt2") != 0)
        return error_set(err, STATUS_DATA,
                         "%s: the tokenizer model \"%.64s\" is not in this version; byte-level BPE (\"gpt2\") is",
                         s->file, s->model ? s->model : "(missing tokenizer.ggml.model)");
    if (check_id(s, "BOS", s->bos, err) < 0 || check_id(s, "EOS", s->eos, err) < 0) return -1;
    return check_id(s, "EOT", s->eot, err) < 0 || check_id(s, "padding", s->pad, err) < 0 ? -1 : 0;
}

static int load(struct tokenizer *t, struct error *err) {
    const struct vocab_source *s = t->source;
    if (check_source(s, err) < 0) return -1;
    t->pretokenizer = pretokenizer_open(s->pre, s->file, err);
    if (!t->pretokenizer) return -1;
    t->bpe = bpe_open(s, pretokenizer_ignores_merges(t->pretokenizer), err);
    if (!t->bpe) return -1;
    t->specials = special_tokens_open(s, err);
    if (!t->specials) return -1;
    t->kept = encoder_open(t, true);
    return t->kept ? 0 : error_memory(err, "the tokenizer", sizeof *t);
}

struct tokenizer *tokenizer_open(const struct vocab_source *source, struct error *err) {
    struct tokenizer *t = mem_zalloc(1, sizeof *t);
    if (!t) {
        error_memory(err, "the tokenizer", sizeof *t);
        return NULL;
    }
    t->source = source;
    pthread_mutex_init(&t->kept_lock, NULL);
    if (load(t, err) == 0) return t;
    tokenizer_close(t);
    return NULL;
}

void tokenizer_close(struct tokenizer *t) {
    if (!t) return;
    encoder_close(t->kept);
    special_tokens_close(t->specials);
    bpe_close(t->bpe);
    pretokenizer_close(t->pretokenizer);
    pthread_mutex_destroy(&t->kept_lock);
    mem_free(t);
}

struct piece {
    const struct tokenizer *tokenizer;
    struct encoder *encoder;
    const char *text;        // of the piece, in normal form
    size_t at;               // where the piece stands in the encoded text
    const uint32_t *sources; // of a piece that normalisation changed, else NULL
    size_t source_length;    // its length before
    struct encoding *out;
    struct error *err;
};

static int encode_word(void *context, size_t begin, size_t end) {
    const struct piece *p = context;
    return bpe_word(p->tokenizer->bpe, p->encoder->words, p->text + begin, end - begin, (uint32_t)(p->at + begin),
                    p->out, p->err);
}

// Spans of a normalised piece count bytes of the new text: lead them back.
static void restore_spans(const struct piece *p, size_t length, size_t first) {
    for (size_t i = first; p->out->spans && i < p->out->ids->count; i++) {
        struct token_span *s = &(*p->out->spans)[i];
        size_t begin = s->begin - p->at, end = s->end - p->at;
        s->begin = (uint32_t)(p->at + p->sources[begin]);
        s->end = (uint32_t)(p->at + (end < length ? p->sources[end] : p->source_length));
    }
}

static int encode_piece(struct piece *p, const char *text, size_t length) {
    enum normal_form form = pretokenizer_normal_form(p->tokenizer->pretokenizer);
    struct text normal = {0};
    uint32_t *sources = NULL;
    bool changed = false;
    int status = 0;
    if (form != NORMAL_NONE) status = normal_form_c(text, length, &changed, &normal, &sources, p->err);
    if (status == 0 && changed && form == NORMAL_UNKNOWN)
        status =
            error_set(p->err, STATUS_DATA,
                      "the text is not in Unicode normal form C, and whether the tokenizer \"%s\" normalises is not "
                      "known to this version; bring the text to NFC",
                      p->tokenizer->source->pre);
    p->text = changed ? normal.data : text;
    p->sources = sources;
    p->source_length = length;
    size_t first = p->out->ids->count, n = changed ? normal.length : length;
    if (status == 0)
        status = pretokenizer_split(p->tokenizer->pretokenizer, p->encoder->splits, p->text, n, encode_word, p, p->err);
    if (status == 0 && changed) restore_spans(p, n, first);
    text_free(&normal);
    mem_free(sources);
    return status;
}

static int encode(const struct tokenizer *t, struct encoder *e, const char *text, size_t length, bool special,
                  struct encoding *out, struct error *err) {
    struct piece p = {.tokenizer = t, .encoder = e, .out = out, .err = err};
    size_t at = 0, begin, end;
    int32_t id;
    while (special_tokens_find(t->specials, text, length, at, special, &begin, &end, &id)) {
        p.at = at;
        if (encode_piece(&p, text + at, begin - at) < 0) return -1;
        if (encoding_push(out, id, (uint32_t)begin, (uint32_t)end) < 0)
            return error_memory(err, "token ids", out->ids->count * sizeof id);
        at = end;
    }
    p.at = at;
    return encode_piece(&p, text + at, length - at);
}

int tokenizer_encode(const struct tokenizer *t, const char *text, size_t length, bool special, struct ids *ids,
                     struct token_span **spans, struct error *err) {
    if (length >= UINT32_MAX) return error_set(err, STATUS_DATA, "a text of %zu bytes is too long to tokenise", length);
    size_t bad = utf8_check(text, length);
    if (bad < length) return error_set(err, STATUS_DATA, "byte %zu: invalid UTF-8 (0x%02X)", bad, (uint8_t)text[bad]);
    struct encoding out = {.ids = ids, .spans = spans, .span_capacity = ids->count};
    pthread_mutex_t *lock = (pthread_mutex_t *)&t->kept_lock; // the tables are constant, the kept encoder is not
    bool kept = pthread_mutex_trylock(lock) == 0;
    struct encoder *e = kept ? t->kept : encoder_open(t, false);
    size_t before = ids->count;
    int status = e ? encode(t, e, text, length, special, &out, err) : error_memory(err, "the tokenizer", sizeof *e);
    if (status < 0) ids->count = before;
    if (kept)
        pthread_mutex_unlock(lock);
    else
        encoder_close(e);
    return status;
}

int tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t count, bool skip_special, struct text *out,
                     struct error *err) {
    for (size_t i = 0; i < count; i++) {
        if (ids[i] < 0 || (size_t)ids[i] >= t->source->n_tokens)
            return error_set(err, STATUS_DATA, "token %d is outside the vocabulary of %zu", ids[i],
                             t->source->n_tokens);
        if (skip_special && tokenizer_is_control(t, ids[i])) continue;
        struct vocab_string s = bpe_bytes(t->bpe, ids[i]);
        text_append(out, s.bytes, s.length);
    }
    return text_failed(out) ? error_memory(err, "decoded text", out->length) : 0;
}

size_t tokenizer_vocab_size(const struct tokenizer *t) {
    return t->source->n_tokens;
}
int32_t tokenizer_bos(const struct tokenizer *t) {
    return t->source->bos;
}
int32_t tokenizer_eos(const struct tokenizer *t) {
    return t->source->eos;
}
bool tokenizer_adds_bos(const struct tokenizer *t) {
    return t->source->add_bos && t->source->bos >= 0;
}

bool tokenizer_is_control(const struct tokenizer *t, int32_t id) {
    if (id < 0 || (size_t)id >= t->source->n_tokens || !t->source->types) return false;
    return t->source->types[id] == TOKEN_CONTROL || t->source->types[id] == TOKEN_UNKNOWN;
}

int32_t tokenizer_find(const struct tokenizer *t, const char *text) {
    return bpe_find(t->bpe, text, strlen(text));
}
