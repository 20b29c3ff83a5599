// See gguf_pre.h.
#include "data/gguf_pre.h"

#include "data/pretokenizer.h"

#include <string.h>

const char *gguf_pre_probe(void) {
    return "Hello World, helloWorld HELLOworld HTTPServer aB Cd\n"
           "don't DON'T we'Ll I'm they've 'tis o'clock rock'n'roll\n"
           "1 12 123 1234 12345678 3.14 1,000,000 v2 \xC2\xBD x\xC2\xB2 \xE2\x85\xA7 \xD9\xA1\xD9\xA2\xD9\xA3\xD9\xA4\n"
           "  two  spaces\t\ttabs \t mixed   \n\n\nlines \r\n \r\n  a!!\n\n b//\n/ c...\n end;\r\n"
           "\xE0\xA4\xB9\xE0\xA4\xBF\xE0\xA4\xA8\xE0\xA5\x8D\xE0\xA4\xA6\xE0\xA5\x80 "
           "\xE0\xB9\x84\xE0\xB8\x97\xE0\xB8\xA2 \xD0\x9C\xD0\xB8\xD1\x80 \xCE\xB3\xCE\xB5\xCE\xB9\xCE\xAC "
           "\xE4\xB8\xAD\xE6\x96\x87\xE5\xAD\x97\xE7\xAC\xA6"
           "abc\xE6\x97\xA5\xE6\x9C\xAC\xE8\xAA\x9E"
           "\xE3\x82\xAB\xE3\x83\x8A\xE3\x81\xB2\xE3\x82\x89 \xED\x95\x9C\xEA\xB5\xAD\xEC\x96\xB4 12\xE5\xB9\xB4\n"
           "\xC3\xA9t\xC3\xA9 \xC3\x80\xC3\x89 \xC7\x85"
           "abc \xCA\xB0x \xC2\xAA\n"
           "$5+<=>^~|` (a)(b) [c]{d} foo_bar __init__ #tag @me a--b ---- ==== \"q\" "
           "\xE2\x80\x9Cquoted\xE2\x80\x9D \xE3\x80\x82\xEF\xBC\x81\xEF\xBC\x9F\xEF\xBD\x9E !a ?b -c\n"
           "https://example.org/a?b=1&c=%20 \xF0\x9F\x98\x80\xF0\x9F\x91\x8D\xF0\x9F\x8F\xBD \xE2\x88\x91\xE2\x82\xAC"
           "\xC2\xA0nbsp \xE2\x80\x8Dj \xE2\x80\xA8 123abc abc123 1a2b3   ";
}

int gguf_pre_words(const struct recipe *recipe, struct text *out, struct error *err) {
    struct pretokenizer *p = pretokenizer_open(recipe, err);
    struct pretokenizer_scratch scratch;
    struct mapped_text text = {0};
    const char *probe = gguf_pre_probe();
    if (!p) return -1;
    int status = pretokenizer_scratch_open(&scratch) ? error_memory(err, "words", strlen(probe)) : 0;
    mapped_begin(&text, probe, strlen(probe));
    if (status == 0) status = pretokenizer_run(p, &scratch, &text, 1, err);
    for (size_t i = 0; i < scratch.words.count && status == 0; i++) {
        struct word w = scratch.words.items[i];
        text_append(out, text.bytes + w.begin, w.end - w.begin);
        text_char(out, '\xFF');
    }
    if (status == 0 && text_failed(out)) status = error_memory(err, "words", out->length);
    mapped_free(&text);
    pretokenizer_scratch_close(&scratch);
    pretokenizer_close(p);
    return status;
}

// 2: the same, 1: perhaps (the table does not know the form), 0: no, -1: an error.
static int likeness(const struct recipe *recipe, const struct text *words, const struct recipe *candidate,
                    struct error *err) {
    bool composed = recipe->n_normal == 1;
    if (candidate->ignore_merges != recipe->ignore_merges) return 0;
    bool unknown = candidate->n_normal == 1 && candidate->normal[0].kind == NORMAL_NFC_OR_REFUSE;
    if (!unknown && (candidate->n_normal == 1) != composed) return 0;
    struct text other = {0};
    int same = gguf_pre_words(candidate, &other, err);
    if (same == 0) same = other.length == words->length && memcmp(other.data, words->data, words->length) == 0;
    text_free(&other);
    return same == 1 ? 2 - unknown : same;
}

static int best_name(const struct recipe *recipe, const struct text *words, struct vocab_source *source,
                     struct error *err) {
    const char *best = NULL;
    int most = 0;
    for (size_t i = 0; (source->pre = recipe_gguf_pre(i)) != NULL; i++) {
        struct recipe candidate;
        if (recipe_from_gguf(source, &candidate, err)) return -1;
        int like = likeness(recipe, words, &candidate, err);
        recipe_free(&candidate);
        if (like < 0) return -1;
        if (like > most) best = source->pre, most = like;
    }
    source->pre = best;
    return 0;
}

int gguf_pre_find(const struct recipe *recipe, struct vocab_source *source, struct error *err) {
    struct text words = {0};
    bool plain = recipe->n_normal == 0 || (recipe->n_normal == 1 && recipe->normal[0].kind == NORMAL_NFC);
    int status = plain ? gguf_pre_words(recipe, &words, err) : 0;
    if (status == 0 && plain) status = best_name(recipe, &words, source, err);
    text_free(&words);
    if (status || source->pre) return status;
    return error_set(err, STATUS_DATA,
                     "%s: llama.cpp has no name (tokenizer.ggml.pre) that this version knows for how this tokenizer "
                     "cuts a text into words; a GGUF with another one would be trained and served with wrong ids",
                     recipe->file);
}
