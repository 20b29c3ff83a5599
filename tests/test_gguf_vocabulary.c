// A folder's tokenizer as GGUF holds one: the ids stay what the reference gives (tests/fixtures/tokenizers), each
// pipeline gets its name, and what has none is refused.
#include "data/gguf_pre.h"
#include "data/gguf_vocabulary.h"
#include "data/json.h"
#include "data/tokenizer.h"
#include "tests/harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FIXTURES "tests/fixtures/tokenizers"

static struct vocab_source source_of(const char *folder) {
    return (struct vocab_source){
        .file = folder, .folder = folder, .bos = -1, .eos = -1, .eot = -1, .unk = -1, .pad = -1};
}

static struct vocab_source fixture(const char *name) {
    static char path[2][200];
    static int next;
    next = !next;
    snprintf(path[next], sizeof path[next], FIXTURES "/%s", name);
    return source_of(path[next]);
}

static void check_case(const struct tokenizer *t, const char *name, const struct json *text, bool special,
                       const struct json *want) {
    struct ids ids = {0};
    struct error err = {0};
    size_t length, i = 0;
    const char *bytes = json_string(text, &length);
    int64_t id;
    CHECK_MSG(tokenizer_encode(t, bytes, length, special, &ids, NULL, &err) == 0, "%s: \"%s\": %s", name, bytes,
              err.text);
    for (const struct json *v = json_child(want); v; v = json_next(v), i++)
        if (i >= ids.count || !json_int(v, &id) || id != ids.data[i]) break;
    CHECK_MSG(i == json_count(want) && i == ids.count, "%s: \"%s\" differs from the reference at %zu", name, bytes, i);
    ids_free(&ids);
}

// Every case of the reference, from the lists that a GGUF would hold.
static size_t check_cases(const struct vocab_source *s, const char *name, const char *file) {
    struct json_document doc;
    struct error err = {0};
    struct tokenizer *t = tokenizer_open(s, &err);
    size_t cases = 0;
    CHECK_MSG(t && json_load(file, 8 << 20, NULL, &doc, &err) == 0, "%s: %s", name, err.text);
    if (!t) return 0;
    for (const struct json *c = json_child(json_get(doc.root, "cases")); c; c = json_next(c), cases++)
        check_case(t, name, json_child(c), true, json_next(json_child(c)));
    tokenizer_close(t);
    json_free(&doc);
    return cases;
}

TEST(byte_level_tokenizers_get_their_name) {
    static const struct {
        const char *folder, *pre;
        int32_t bos, eos, eot;
        bool add_bos;
    } cases[] = {{"llama3", "llama-bpe", 423, 424, 425, true},
                 {"qwen2", "qwen2", -1, -1, -1, false},
                 {"starcoder", "smollm", -1, -1, -1, false},
                 {"deepseek", "deepseek-v3", -1, -1, -1, false}};
    size_t checked = 0;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct vocab_source folder = fixture(cases[i].folder);
        struct gguf_vocabulary v;
        struct text notes = {0};
        struct error err = {0};
        int status = gguf_vocabulary_open(&folder, 600, &v, &notes, &err);
        CHECK_MSG(status == 0, "%s: %s", cases[i].folder, err.text);
        if (status) continue;
        CHECK_STR(v.source.model, "gpt2");
        CHECK_STR(v.source.pre, cases[i].pre);
        CHECK_INT(v.source.n_tokens, 600);
        CHECK(v.source.types[599] == TOKEN_UNUSED && strncmp(v.source.tokens[599].bytes, "[PAD599]", 8) == 0);
        if (cases[i].bos >= 0) {
            CHECK_INT(v.source.bos, cases[i].bos);
            CHECK_INT(v.source.eos, cases[i].eos);
            CHECK_INT(v.source.eot, cases[i].eot);
            CHECK_INT(v.source.add_bos, cases[i].add_bos);
            CHECK_INT(v.source.types[cases[i].bos], TOKEN_CONTROL);
        }
        char path[256];
        snprintf(path, sizeof path, FIXTURES "/%s/cases.json", cases[i].folder);
        checked += check_cases(&v.source, cases[i].folder, path);
        text_free(&notes);
        gguf_vocabulary_close(&v);
    }
    CHECK_MSG(checked > 500, "%zu cases", checked);
}

TEST(what_has_no_name_is_refused) {
    static const struct {
        const char *folder, *why;
    } cases[] = {{"plain", "tokenizer.ggml.pre"}, // a space in front of every text
                 {"odd", "without byte fallback"},
                 {"spare", "without byte fallback"},
                 {"llama2", "no scores of SentencePiece"}, // merges of a trained BPE
                 {"gemma", "no scores of SentencePiece"}};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct vocab_source folder = fixture(cases[i].folder);
        struct gguf_vocabulary v;
        struct text notes = {0};
        struct error err = {0};
        CHECK_MSG(gguf_vocabulary_open(&folder, 700, &v, &notes, &err) != 0, "%s", cases[i].folder);
        CHECK_MSG(err.code == STATUS_DATA && strstr(err.text, cases[i].why), "%s: %s", cases[i].folder, err.text);
        text_free(&notes);
    }
    // More tokens than rows; no tokenizer at all.
    struct vocab_source folder = fixture("llama3");
    struct gguf_vocabulary v;
    struct text notes = {0};
    struct error err = {0};
    CHECK(gguf_vocabulary_open(&folder, 400, &v, &notes, &err) != 0 && strstr(err.text, "426 tokens for"));
    err = (struct error){0};
    folder = source_of("tests/fixtures/families/llama");
    CHECK(gguf_vocabulary_open(&folder, 400, &v, &notes, &err) == 0);
    CHECK_STR(v.source.model, "none");
    CHECK(strstr(text_str(&notes), "no tokenizer"));
    gguf_vocabulary_close(&v);
    text_free(&notes);
}

// --- the probe

static bool same_cuts(const struct recipe *a, const struct recipe *b) {
    bool same = a->n_cuts == b->n_cuts;
    for (int i = 0; i < a->n_cuts && same; i++)
        same = a->cuts[i].pattern.length == b->cuts[i].pattern.length &&
               memcmp(a->cuts[i].pattern.bytes, b->cuts[i].pattern.bytes, a->cuts[i].pattern.length) == 0;
    return same;
}

TEST(every_pipeline_cuts_the_probe_its_own_way) {
    enum { MOST = 64 };
    struct recipe recipes[MOST];
    struct text words[MOST] = {{0}};
    struct error err = {0};
    const struct vocab_string token = {"a", 1};
    size_t n = 0;
    for (; n < MOST && recipe_gguf_pre(n); n++) {
        struct vocab_source s = source_of(NULL);
        s.file = "probe", s.model = "gpt2", s.pre = recipe_gguf_pre(n), s.tokens = &token, s.n_tokens = 1;
        CHECK_MSG(recipe_from_gguf(&s, &recipes[n], &err) == 0 && gguf_pre_words(&recipes[n], &words[n], &err) == 0,
                  "%s: %s", s.pre, err.text);
    }
    CHECK(n > 20);
    for (size_t i = 0; i < n; i++) {
        for (size_t k = 0; k < i; k++) {
            bool same =
                words[i].length == words[k].length && memcmp(words[i].data, words[k].data, words[i].length) == 0;
            CHECK_MSG(same == same_cuts(&recipes[i], &recipes[k]), "%s and %s", recipe_gguf_pre(i), recipe_gguf_pre(k));
        }
    }
    for (size_t i = 0; i < n; i++) recipe_free(&recipes[i]), text_free(&words[i]);
}

// --- SentencePiece

struct piece {
    struct vocab_string text;
    double score;
};
struct merge {
    struct vocab_string left, right;
    double score;
};

static int by_rank(const void *a, const void *b) {
    const struct merge *x = a, *y = b;
    if (x->score != y->score) return x->score > y->score ? -1 : 1;
    if (x->left.length != y->left.length) return x->left.length > y->left.length ? -1 : 1;
    return 0;
}

static const struct piece *find(const struct piece *pieces, size_t n, const char *bytes, size_t length) {
    for (size_t i = 0; i < n; i++)
        if (pieces[i].text.length == length && memcmp(pieces[i].text.bytes, bytes, length) == 0) return &pieces[i];
    return NULL;
}

// All merges that scores stand for, best first, as transformers' converter lists them.
static size_t list_merges(const struct piece *pieces, size_t n, struct merge *out) {
    size_t count = 0;
    for (size_t i = 0; i < n; i++) {
        struct vocab_string t = pieces[i].text;
        for (size_t cut = 1; cut < t.length; cut++) {
            if ((t.bytes[cut] & 0xC0) == 0x80) continue;
            if (!find(pieces, n, t.bytes, cut) || !find(pieces, n, t.bytes + cut, t.length - cut)) continue;
            out[count++] = (struct merge){{t.bytes, cut}, {t.bytes + cut, t.length - cut}, pieces[i].score};
        }
    }
    qsort(out, count, sizeof *out, by_rank);
    return count;
}

// The vocabulary of fixtures/sentencepiece.json as a tokenizer.json; `drop`: without this merge.
static void write_folder(const char *folder, const struct json *root, size_t drop) {
    struct piece *pieces = calloc(8192, sizeof *pieces);
    struct merge *merges = calloc(65536, sizeof *merges);
    struct text out = {0};
    struct json_writer w = {.out = &out};
    struct error err = {0};
    size_t n = 0;
    const struct json *score = json_child(json_get(root, "scores"));
    for (const struct json *v = json_child(json_get(root, "tokens")); v; v = json_next(v), score = json_next(score)) {
        pieces[n].text.bytes = json_string(v, &pieces[n].text.length);
        json_double(score, &pieces[n++].score);
    }
    size_t count = list_merges(pieces, n, merges);
    CHECK(count > 100);
    text_add(&out, "{\"added_tokens\":[");
    static const char *const added[] = {"<unk>", "<s>", "</s>"};
    for (int i = 0; i < 3; i++)
        text_printf(&out,
                    "%s{\"id\":%d,\"content\":\"%s\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,"
                    "\"normalized\":false,\"special\":true}",
                    i ? "," : "", i, added[i]);
    text_add(
        &out,
        "],\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"\xE2\x96\x81\"},"
        "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"\xE2\x96\x81\"}]},"
        "\"model\":{\"type\":\"BPE\",\"unk_token\":\"<unk>\",\"fuse_unk\":true,\"byte_fallback\":true,\"vocab\":");
    json_begin_object(&w);
    for (size_t i = 0; i < n; i++)
        json_put_key_bytes(&w, pieces[i].text.bytes, pieces[i].text.length), json_put_int(&w, (int64_t)i);
    json_end_object(&w);
    text_add(&out, ",\"merges\":");
    w = (struct json_writer){.out = &out};
    json_begin_array(&w);
    for (size_t i = 0; i < count; i++) {
        if (i == drop) continue;
        json_begin_array(&w);
        json_put_bytes(&w, merges[i].left.bytes, merges[i].left.length);
        json_put_bytes(&w, merges[i].right.bytes, merges[i].right.length);
        json_end_array(&w);
    }
    json_end_array(&w);
    text_add(&out, "}}");
    char path[700];
    snprintf(path, sizeof path, "%s/tokenizer.json", folder);
    CHECK(file_make_folders(folder, &err) == 0);
    CHECK_MSG(file_replace(path, out.data, out.length, &err) == 0, "%s", err.text);
    text_free(&out);
    free(pieces), free(merges);
}

TEST(merges_of_scores_become_scores) {
    struct json_document doc;
    struct error err = {0};
    struct text notes = {0};
    struct gguf_vocabulary v;
    char folder[600];
    snprintf(folder, sizeof folder, "%s/pieces", test_folder());
    CHECK(json_load("tests/fixtures/sentencepiece.json", 1 << 20, NULL, &doc, &err) == 0);
    size_t n = json_count(json_get(doc.root, "tokens"));
    write_folder(folder, doc.root, SIZE_MAX);
    struct vocab_source source = source_of(folder);
    int status = gguf_vocabulary_open(&source, n, &v, &notes, &err);
    CHECK_MSG(status == 0, "%s", err.text);
    if (status == 0) {
        CHECK_STR(v.source.model, "llama");
        CHECK(v.source.add_space_prefix && v.source.types[0] == TOKEN_UNKNOWN && v.source.types[1] == TOKEN_CONTROL &&
              v.source.types[3] == TOKEN_BYTE);
        CHECK(check_cases(&v.source, "sentencepiece", "tests/fixtures/sentencepiece.json") > 100);
        gguf_vocabulary_close(&v);
    }
    write_folder(folder, doc.root, 20); // a pair that makes a token, but is not joined
    CHECK(gguf_vocabulary_open(&source, n, &v, &notes, &err) != 0 && strstr(err.text, "no scores of SentencePiece"));
    json_free(&doc);
    text_free(&notes);
}

TEST_MAIN(CASE(byte_level_tokenizers_get_their_name), CASE(what_has_no_name_is_refused),
          CASE(every_pipeline_cuts_the_probe_its_own_way), CASE(merges_of_scores_become_scores))
