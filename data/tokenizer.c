// See tokenizer.h: special tokens are cut out, each piece between them is normalised, split into words, and the words
// are merged, as the recipe says.
#include "data/tokenizer.h"

#include "data/bpe.h"
#include "data/normalizer.h"
#include "data/pretokenizer.h"
#include "data/recipe.h"
#include "data/special_tokens.h"
#include "data/utf8.h"

#include <pthread.h>

// What encoding needs besides the tables. One is kept, with a word cache; a thread that finds it taken makes its own.
struct encoder {
    struct bpe_scratch *words;
    struct pretokenizer_scratch cuts;
    struct mapped_text normal, cut; // the piece under way: normalised; then a part of that, as it is cut
};

struct tokenizer {
    struct recipe recipe;
    struct bpe *bpe;
    struct normalizer *normalizer;
    struct pretokenizer *pretokenizer;
    struct special_tokens *raw, *normalized; // looked for before and after normalisation; NULL when there are none
    uint8_t *controls;                       // (n_tokens) bool
    size_t rows;                             // of the embedding; 0 = not known
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
    pretokenizer_scratch_close(&e->cuts);
    mapped_free(&e->normal);
    mapped_free(&e->cut);
    mem_free(e);
}

static struct encoder *encoder_open(bool cache) {
    struct encoder *e = mem_zalloc(1, sizeof *e);
    if (!e) return NULL;
    e->words = bpe_scratch_open(cache);
    if (e->words && pretokenizer_scratch_open(&e->cuts) == 0) return e;
    encoder_close(e);
    return NULL;
}

// Added tokens that are looked for in normalised text are normalised themselves.
static int open_normalized(struct tokenizer *t, struct error *err) {
    const struct recipe *r = &t->recipe;
    struct encoder *e = t->kept;
    struct pool pool = {0};
    struct vocab_string *texts = pool_array(&pool, r->n_added, sizeof *texts);
    int status = texts ? 0 : error_memory(err, "the special tokens", r->n_added * sizeof *texts);
    for (size_t i = 0; i < r->n_added && status == 0; i++) {
        if (!r->added[i].normalized) continue;
        mapped_begin(&e->normal, r->added[i].text.bytes, r->added[i].text.length);
        status = normalizer_run(t->normalizer, e->cuts.regex, &e->normal, err);
        if (status < 0) break;
        texts[i] = vocab_text(pool_strndup(&pool, e->normal.bytes, e->normal.length), e->normal.length);
        if (!texts[i].bytes) status = error_memory(err, "the special tokens", e->normal.length);
    }
    if (status == 0) t->normalized = special_tokens_open(r, true, texts, err);
    pool_free(&pool);
    return status == 0 && t->normalized ? 0 : -1;
}

static int open_specials(struct tokenizer *t, struct error *err) {
    const struct recipe *r = &t->recipe;
    bool raw = false, normalized = false;
    t->controls = mem_zalloc(r->n_tokens, 1);
    if (!t->controls) return error_memory(err, "the special tokens", r->n_tokens);
    for (size_t i = 0; i < r->n_added; i++) {
        t->controls[r->added[i].id] |= r->added[i].control;
        *(r->added[i].normalized ? &normalized : &raw) = true;
    }
    if (raw && !(t->raw = special_tokens_open(r, false, NULL, err))) return -1;
    return normalized ? open_normalized(t, err) : 0;
}

// A model may have fewer rows than its tokenizer has added tokens; such a token is refused when a text holds it.
static int check_rows(const struct tokenizer *t, struct error *err) {
    const struct recipe *r = &t->recipe;
    for (size_t i = t->rows; i < r->n_tokens && t->rows; i++)
        if (r->uses[i] & USE_WORD)
            return error_set(err, STATUS_DATA,
                             "%s: token %zu has no row in the base's embedding of %zu: they do not "
                             "belong together",
                             r->file, i, t->rows);
    return 0;
}

static int load(struct tokenizer *t, const struct vocab_source *source, struct error *err) {
    struct recipe *r = &t->recipe;
    int status = source->json.length ? recipe_from_json(source, r, err)
                 : source->folder    ? recipe_from_folder(source, r, err)
                                     : recipe_from_gguf(source, r, err);
    if (status < 0) return -1;
    if (check_rows(t, err) < 0) return -1;
    if (!(t->bpe = bpe_open(r, err)) || !(t->normalizer = normalizer_open(r, err))) return -1;
    if (!(t->pretokenizer = pretokenizer_open(r, err))) return -1;
    t->kept = encoder_open(true);
    if (!t->kept) return error_memory(err, "the tokenizer", sizeof *t);
    return open_specials(t, err);
}

struct tokenizer *tokenizer_open(const struct vocab_source *source, struct error *err) {
    struct tokenizer *t = mem_zalloc(1, sizeof *t);
    if (!t) {
        error_memory(err, "the tokenizer", sizeof *t);
        return NULL;
    }
    t->rows = source->rows;
    pthread_mutex_init(&t->kept_lock, NULL);
    if (load(t, source, err) == 0) return t;
    tokenizer_close(t);
    return NULL;
}

void tokenizer_close(struct tokenizer *t) {
    if (!t) return;
    encoder_close(t->kept);
    special_tokens_close(t->raw);
    special_tokens_close(t->normalized);
    bpe_close(t->bpe);
    normalizer_close(t->normalizer);
    pretokenizer_close(t->pretokenizer);
    mem_free(t->controls);
    recipe_free(&t->recipe);
    pthread_mutex_destroy(&t->kept_lock);
    mem_free(t);
}

struct job {
    const struct tokenizer *tokenizer;
    struct encoder *encoder;
    bool special;
    struct encoding *out;
    struct error *err;
};

static int push(const struct job *j, int32_t id, size_t begin, size_t end) {
    if (encoding_push(j->out, id, (uint32_t)begin, (uint32_t)end) == 0) return 0;
    return error_memory(j->err, "token ids", j->out->ids->count * sizeof id);
}

// Words of bytes [begin, end) of the normalised piece, which stands at byte `at` of the text.
static int encode_words(const struct job *j, size_t at, size_t begin, size_t end) {
    struct encoder *e = j->encoder;
    const struct bpe *bpe = j->tokenizer->bpe;
    const struct mapped_text *normal = &e->normal;
    if (begin == end) return 0;
    mapped_begin(&e->cut, normal->bytes + begin, end - begin);
    size_t at_start = 0;
    while (at == 0 && begin + at_start < end && mapped_source(normal, begin + at_start) == 0) at_start++;
    if (pretokenizer_run(j->tokenizer->pretokenizer, &e->cuts, &e->cut, at_start, j->err) < 0) return -1;
    size_t first = j->out->ids->count;
    for (size_t i = 0; i < e->cuts.words.count; i++) {
        struct word w = e->cuts.words.items[i];
        for (size_t n; w.begin < w.end; w.begin += (uint32_t)n) {
            const char *word = e->cut.bytes + w.begin;
            n = bpe_first_part(bpe, word, w.end - w.begin);
            if (bpe_word(bpe, e->words, word, n, w.begin, j->out, j->err) < 0) return -1;
        }
    }
    for (size_t i = first; j->out->spans && i < j->out->ids->count; i++) { // lead them back to the text
        struct token_span *s = &(*j->out->spans)[i];
        s->begin = (uint32_t)(at + mapped_source(normal, begin + mapped_source(&e->cut, s->begin)));
        s->end = (uint32_t)(at + mapped_source(normal, begin + mapped_source(&e->cut, s->end)));
    }
    return 0;
}

static int encode_piece(const struct job *j, const char *text, size_t at, size_t length) {
    const struct tokenizer *t = j->tokenizer;
    struct mapped_text *normal = &j->encoder->normal;
    if (length == 0) return 0;
    mapped_begin(normal, text + at, length);
    if (normalizer_run(t->normalizer, j->encoder->cuts.regex, normal, j->err) < 0) return -1;
    struct special_match m;
    size_t from = 0;
    while (t->normalized && special_tokens_find(t->normalized, normal->bytes, normal->length, from, j->special, &m)) {
        if (encode_words(j, at, from, m.begin) < 0 ||
            push(j, m.id, at + mapped_source(normal, m.begin), at + mapped_source(normal, m.end)) < 0)
            return -1;
        from = m.end;
    }
    return encode_words(j, at, from, normal->length);
}

static int encode(const struct job *j, const char *text, size_t length) {
    const struct tokenizer *t = j->tokenizer;
    struct special_match m;
    size_t from = 0;
    while (t->raw && special_tokens_find(t->raw, text, length, from, j->special, &m)) {
        if (encode_piece(j, text, from, m.begin - from) < 0 || push(j, m.id, m.begin, m.end) < 0) return -1;
        from = m.end;
    }
    return encode_piece(j, text, from, length - from);
}

static int check_range(const struct tokenizer *t, const struct ids *ids, size_t first, struct error *err) {
    for (size_t i = first; t->rows && t->recipe.n_tokens > t->rows && i < ids->count; i++) {
        size_t id = (size_t)ids->data[i];
        if (id < t->rows) continue;
        struct vocab_string s = t->recipe.tokens[id];
        return error_set(err, STATUS_DATA,
                         "the text holds the added token \"%.*s\" (%zu), and the base's embedding has "
                         "%zu rows",
                         (int)s.length, s.bytes, id, t->rows);
    }
    return 0;
}

int tokenizer_encode(const struct tokenizer *t, const char *text, size_t length, bool special, struct ids *ids,
                     struct token_span **spans, struct error *err) {
    if (length >= UINT32_MAX) return error_set(err, STATUS_DATA, "a text of %zu bytes is too long to tokenise", length);
    size_t bad = utf8_check(text, length);
    if (bad < length) return error_set(err, STATUS_DATA, "byte %zu: invalid UTF-8 (0x%02X)", bad, (uint8_t)text[bad]);
    struct encoding out = {.ids = ids, .spans = spans, .span_capacity = ids->count};
    pthread_mutex_t *lock = (pthread_mutex_t *)&t->kept_lock; // the tables are constant, the kept encoder is not
    bool kept = pthread_mutex_trylock(lock) == 0;
    struct encoder *e = kept ? t->kept : encoder_open(false);
    size_t before = ids->count;
    struct job job = {t, e, special, &out, err};
    int status = e ? encode(&job, text, length) : error_memory(err, "the tokenizer", sizeof *e);
    if (status == 0) status = check_range(t, ids, before, err);
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
        if (ids[i] < 0 || (size_t)ids[i] >= t->recipe.n_tokens)
            return error_set(err, STATUS_DATA, "token %d is outside the vocabulary of %zu", ids[i], t->recipe.n_tokens);
        if (skip_special && t->controls[ids[i]]) continue;
        struct vocab_string s = bpe_bytes(t->bpe, ids[i]);
        text_append(out, s.bytes, s.length);
    }
    return text_failed(out) ? error_memory(err, "decoded text", out->length) : 0;
}

size_t tokenizer_vocab_size(const struct tokenizer *t) {
    return t->recipe.n_tokens;
}
int32_t tokenizer_bos(const struct tokenizer *t) {
    return t->recipe.bos;
}
int32_t tokenizer_eos(const struct tokenizer *t) {
    return t->recipe.eos;
}
bool tokenizer_adds_bos(const struct tokenizer *t) {
    return t->recipe.adds_bos;
}

const int32_t *tokenizer_ends(const struct tokenizer *t, int *count) {
    *count = t->recipe.n_ends;
    return t->recipe.ends;
}

struct vocab_string tokenizer_chat_template(const struct tokenizer *t) {
    return t->recipe.chat_template;
}

bool tokenizer_is_control(const struct tokenizer *t, int32_t id) {
    return id >= 0 && (size_t)id < t->recipe.n_tokens && t->controls[id];
}

int32_t tokenizer_find(const struct tokenizer *t, const char *text) {
    return bpe_find(t->bpe, text, strlen(text));
}
