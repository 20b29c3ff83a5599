// Tokenizers of folders (tokenizer.json): ids of the reference (tests/fixtures/tokenizers, written by
// tests/oracle/tokenizer_folders.py), and input that was made to harm.
#include "data/json.h"
#include "data/tokenizer.h"
#include "data/utf8.h"
#include "tests/harness.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define FIXTURES "tests/fixtures/tokenizers"
static const char *const names[] = {"deepseek", "gemma", "llama2", "llama3", "mistral",  "odd",
                                    "phi",      "plain", "qwen2",  "spare",  "starcoder"};

static struct vocab_source source_of(const char *folder) {
    return (struct vocab_source){
        .file = folder, .folder = folder, .bos = -1, .eos = -1, .eot = -1, .unk = -1, .pad = -1};
}

static struct vocab_source source_of_json(const char *json) {
    struct vocab_source s = source_of(NULL);
    s.file = "tokenizer.json";
    s.json = (struct vocab_string){json, strlen(json)};
    return s;
}

static const char *folder_of(const char *name) {
    static char path[200];
    snprintf(path, sizeof path, FIXTURES "/%s", name);
    return path;
}

static struct tokenizer *open_fixture(const char *name) {
    struct error err = {0};
    const struct vocab_source s = source_of(folder_of(name));
    struct tokenizer *t = tokenizer_open(&s, &err);
    CHECK_MSG(t != NULL, "%s: %s", name, err.text);
    return t;
}

// --- ids of the reference

static void check_case(const struct tokenizer *t, const char *name, const char *text, size_t length, bool special,
                       const struct json *want) {
    struct ids ids = {0};
    struct error err = {0};
    CHECK_MSG(tokenizer_encode(t, text, length, special, &ids, NULL, &err) == 0, "%s: \"%s\": %s", name, text,
              err.text);
    size_t i = 0;
    int64_t id;
    for (const struct json *v = json_child(want); v; v = json_next(v), i++)
        if (i >= ids.count || !json_int(v, &id) || id != ids.data[i]) break;
    CHECK_MSG(i == json_count(want) && i == ids.count, "%s: \"%s\" differs from the reference at %zu", name, text, i);
    ids_free(&ids);
}

static void check_facts(const struct tokenizer *t, const char *name, const struct json *facts) {
    int64_t size = -1, bos = -2, eos = -2, end;
    bool adds_bos = false;
    size_t length, i = 0;
    int n;
    const char *source = json_string(json_get(facts, "template"), &length);
    const int32_t *ends = tokenizer_ends(t, &n);
    struct vocab_string got = tokenizer_chat_template(t);
    CHECK(json_int(json_get(facts, "size"), &size) && json_int(json_get(facts, "bos"), &bos) &&
          json_int(json_get(facts, "eos"), &eos) && json_bool(json_get(facts, "adds_bos"), &adds_bos) && source);
    CHECK_INT(tokenizer_vocab_size(t), size);
    CHECK_INT(tokenizer_bos(t), bos);
    CHECK_INT(tokenizer_eos(t), eos);
    CHECK_INT(tokenizer_adds_bos(t), adds_bos);
    CHECK_MSG(got.length == length && memcmp(got.bytes ? got.bytes : "", source, length) == 0, "%s: template", name);
    CHECK_INT(n, json_count(json_get(facts, "ends")));
    for (const struct json *v = json_child(json_get(facts, "ends")); v; v = json_next(v), i++)
        CHECK(json_int(v, &end) && end == ends[i]);
}

TEST(folders_equal_the_reference) {
    size_t cases = 0;
    for (size_t f = 0; f < COUNT_OF(names); f++) {
        char path[256];
        struct json_document doc;
        struct error err = {0};
        snprintf(path, sizeof path, FIXTURES "/%s/cases.json", names[f]);
        CHECK_MSG(json_load(path, 8 << 20, NULL, &doc, &err) == 0, "%s", err.text);
        struct tokenizer *t = open_fixture(names[f]);
        if (test_failed()) return;
        check_facts(t, names[f], doc.root);
        for (const struct json *c = json_child(json_get(doc.root, "cases")); c; c = json_next(c), cases++) {
            size_t length;
            const struct json *text = json_child(c), *ids = json_next(text), *plain = json_next(ids);
            const char *bytes = json_string(text, &length);
            check_case(t, names[f], bytes, length, true, ids);
            check_case(t, names[f], bytes, length, false, plain ? plain : ids);
        }
        tokenizer_close(t);
        json_free(&doc);
    }
    CHECK_MSG(cases > 1500, "%zu cases", cases);
}

// The vocabulary of fixtures/sentencepiece.json, in `pool`; its scores are `*scores`.
static struct vocab_source read_scores(const struct json *root, struct pool *pool, float **scores) {
    struct vocab_source s = source_of(NULL);
    s.file = "sentencepiece.json";
    s.model = "llama";
    s.add_space_prefix = true;
    s.bos = 1, s.eos = 2, s.unk = 0;
    s.n_tokens = json_count(json_get(root, "tokens"));
    struct vocab_string *tokens = pool_array(pool, s.n_tokens, sizeof *tokens);
    int32_t *kinds = pool_array(pool, s.n_tokens, sizeof *kinds);
    *scores = pool_array(pool, s.n_tokens, sizeof **scores);
    const struct json *type = json_child(json_get(root, "types")), *score = json_child(json_get(root, "scores"));
    size_t i = 0;
    for (const struct json *v = json_child(json_get(root, "tokens")); v; v = json_next(v), i++) {
        int64_t kind = -1;
        double number = 0;
        CHECK((tokens[i].bytes = json_string(v, &tokens[i].length)) != NULL);
        CHECK(json_int(type, &kind) && json_double(score, &number));
        kinds[i] = (int32_t)kind;
        (*scores)[i] = (float)number;
        type = json_next(type), score = json_next(score);
    }
    s.tokens = tokens, s.types = kinds, s.scores = *scores;
    return s;
}

TEST(scores_equal_the_reference) {
    struct json_document doc;
    struct error err = {0};
    struct pool pool = {0};
    float *scores;
    CHECK_MSG(json_load("tests/fixtures/sentencepiece.json", 1 << 20, NULL, &doc, &err) == 0, "%s", err.text);
    struct vocab_source s = read_scores(doc.root, &pool, &scores);
    struct tokenizer *t = tokenizer_open(&s, &err);
    CHECK_MSG(t != NULL, "%s", err.text);
    if (!t) return;
    CHECK(json_count(json_get(doc.root, "cases")) > 100);
    for (const struct json *c = json_child(json_get(doc.root, "cases")); c; c = json_next(c)) {
        size_t length;
        const struct json *text = json_child(c), *ids = json_next(text), *plain = json_next(ids);
        const char *bytes = json_string(text, &length);
        check_case(t, "sentencepiece", bytes, length, true, ids);
        check_case(t, "sentencepiece", bytes, length, false, plain ? plain : ids);
    }
    tokenizer_close(t);
    // White space behind a control token belongs to it where the model says so, but not behind <s>.
    struct ids ids = {0};
    s.strips_after_special = true;
    t = tokenizer_open(&s, &err);
    CHECK(t && tokenizer_encode(t, "</s> \n</s><s> ", 14, true, &ids, NULL, &err) == 0);
    CHECK(ids.count == 5 && ids.data[0] == 2 && ids.data[1] == 2 && ids.data[2] == 1);
    tokenizer_close(t);
    scores[300] = (float)NAN;
    CHECK(tokenizer_open(&s, &err) == NULL);
    CHECK_MSG(strstr(err.text, "score of token 300 is not a number") != NULL, "%s", err.text);
    ids_free(&ids);
    pool_free(&pool);
    json_free(&doc);
}

// --- any text

static unsigned below(unsigned seed, unsigned *at, unsigned limit) {
    return (unsigned)((test_random(seed, (*at)++) + 1) / 2 * limit);
}

// Valid UTF-8 out of single bytes, far code points, runs, and texts of the fixtures' special tokens.
static void random_text(unsigned seed, struct text *out) {
    static const char *const parts[] = {"<|im_start|>",
                                        "</s>",
                                        "<s>",
                                        "\xE2\x96\x81",
                                        "\xE2\x96\x81\xE2\x96\x81",
                                        "\n\n",
                                        " ",
                                        "  ",
                                        "<",
                                        "cat",
                                        "word",
                                        "e\xCC\x81",
                                        "\xE2\x84\xAB",
                                        "12",
                                        "'s",
                                        "<0x41>"};
    unsigned at = 0, n = below(seed, &at, 60);
    text_clear(out);
    for (unsigned i = 0; i < n; i++) {
        char bytes[4];
        uint32_t c;
        switch (below(seed, &at, 4)) {
        case 0: text_add(out, parts[below(seed, &at, COUNT_OF(parts))]); break;
        case 1: text_char(out, (char)below(seed, &at, 128)); break;
        case 2:
            c = below(seed, &at, 0x30000);
            if (c < 0xD800 || c >= 0xE000) text_append(out, bytes, utf8_write(c, bytes));
            break;
        default:
            for (unsigned k = below(seed, &at, 70), letter = 'a' + below(seed, &at, 26); k > 0; k--)
                text_char(out, (char)letter);
        }
    }
}

static void check_any(const struct tokenizer *t, const struct text *text, bool whole) {
    struct ids ids = {0};
    struct token_span *spans = NULL;
    struct error err = {0};
    struct text back = {0};
    uint32_t at = 0;
    int status = tokenizer_encode(t, text_str(text), text->length, true, &ids, &spans, &err);
    CHECK_MSG(status == 0, "%s", err.text);
    for (size_t i = 0; i < ids.count; i++) {
        CHECK(ids.data[i] >= 0 && (size_t)ids.data[i] < tokenizer_vocab_size(t));
        CHECK(spans[i].begin >= at && spans[i].end >= spans[i].begin && spans[i].end <= text->length);
        at = spans[i].begin;
    }
    CHECK(tokenizer_decode(t, ids.data, ids.count, false, &back, &err) == 0);
    if (whole) CHECK(back.length == text->length && memcmp(text_str(&back), text_str(text), back.length) == 0);
    ids_free(&ids);
    mem_free(spans);
    text_free(&back);
}

TEST(any_text_has_ids_and_spans_in_order) {
    struct text text = {0};
    for (size_t f = 0; f < COUNT_OF(names); f++) {
        struct tokenizer *t = open_fixture(names[f]);
        bool whole = strcmp(names[f], "llama3") == 0 || strcmp(names[f], "deepseek") == 0;
        for (unsigned seed = 0; seed < 300 && t && !test_failed(); seed++) {
            random_text(seed, &text);
            check_any(t, &text, whole);
        }
        tokenizer_close(t);
    }
    text_free(&text);
}

// What a normaliser puts in comes from the character before it, all of whose bytes come first.
TEST(spans_of_inserted_text_stay_in_order) {
    struct text json = {0}, text = {0};
    struct error err = {0};
    text_add(&json, "{\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"(?=x)\"},\"content\":\"-\"},");
    text_add(&json, "\"pre_tokenizer\":{\"type\":\"ByteLevel\"},\"model\":{\"merges\":[],\"vocab\":");
    text_add(&json, "{\"a\":0,\"x\":1,\"-\":2,\"\xC3\x83\":3,\"\xC2\xA9\":4}}}");
    const struct vocab_source s = source_of_json(json.data);
    struct tokenizer *t = tokenizer_open(&s, &err);
    CHECK_MSG(t != NULL, "%s", err.text);
    text_add(&text, "x\xC3\xA9xa\xC3\xA9xx");
    if (t) check_any(t, &text, false);
    tokenizer_close(t);
    text_free(&json);
    text_free(&text);
}

TEST(invalid_utf8_is_refused) {
    struct tokenizer *t = open_fixture("gemma");
    struct ids ids = {0};
    struct error err = {0};
    CHECK(tokenizer_encode(t, "ab\xE2\x96", 4, true, &ids, NULL, &err) == -1);
    CHECK_INT(err.code, STATUS_DATA);
    CHECK_MSG(strstr(err.text, "byte 2: invalid UTF-8") != NULL, "%s", err.text);
    tokenizer_close(t);
}

// Processor seconds for `length` bytes of a repeated unit.
static double seconds_for(const struct tokenizer *t, const char *unit, size_t length) {
    struct text text = {0};
    struct ids ids = {0};
    struct error err = {0};
    while (text.length < length) text_add(&text, unit);
    clock_t start = clock();
    CHECK_MSG(tokenizer_encode(t, text.data, text.length, true, &ids, NULL, &err) == 0, "\"%s\": %s", unit, err.text);
    double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
    text_free(&text);
    ids_free(&ids);
    return seconds;
}

// Eight times the text must not cost 64 times the time: a megabyte without a word border, a space or an end.
TEST(a_long_line_costs_linear_time) {
    static const char *const units[] = {"a",        " ", "<|im_start|> ", "1", "\xE4\xB8\xAD", "the quick brown fox ",
                                        "e\xCC\x81"};
    static const char *const some[] = {"deepseek", "llama2", "odd", "qwen2"};
    for (size_t f = 0; f < COUNT_OF(some); f++) {
        struct tokenizer *t = open_fixture(some[f]);
        for (size_t u = 0; u < COUNT_OF(units) && t && !test_failed(); u++) {
            double small = seconds_for(t, units[u], 1 << 17), large = seconds_for(t, units[u], 1 << 20);
            CHECK_MSG(large < 24 * small + 0.2, "%s, \"%s\": %.3f s for 128 KiB, %.3f s for 1 MiB", some[f], units[u],
                      small, large);
        }
        tokenizer_close(t);
    }
}

// --- files that are wrong

static const char head[] = "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":[";
static const char model[] =
    "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2,\"c\":3},\"merges\":[\"a b\"]}}";

static char *with(const char *added, const char *middle, const char *rest) {
    struct text out = {0};
    text_printf(&out, "%s%s],%s%s", head, added, middle, rest);
    return out.data;
}

static void refused(const char *json, const char *part) {
    struct error err = {0};
    const struct vocab_source s = source_of_json(json);
    struct tokenizer *t = tokenizer_open(&s, &err);
    CHECK_MSG(t == NULL, "accepted: %.200s", json);
    CHECK_INT(err.code, STATUS_DATA);
    CHECK_MSG(strstr(err.text, part) != NULL, "\"%s\" does not say \"%s\"", err.text, part);
    tokenizer_close(t);
}

static void refused_part(const char *middle, const char *part) {
    char *json = with("", middle, model);
    refused(json, part);
    mem_free(json);
}

static void refused_added(const char *added, const char *part) {
    char *json = with(added, "", model);
    refused(json, part);
    mem_free(json);
}

static void refused_model(const char *text, const char *part) {
    char *json = with("", "\"model\":", text);
    struct text whole = {0};
    text_printf(&whole, "%s}", json);
    refused(whole.data, part);
    text_free(&whole);
    mem_free(json);
}

TEST(steps_that_are_not_known_are_refused_by_name) {
    refused_part("\"normalizer\":{\"type\":\"Lowercase\"},", "\"Lowercase\"");
    refused_part("\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFKC\"}]},", "\"NFKC\"");
    refused_part("\"normalizer\":{\"type\":\"Sequence\"},", "without its list");
    refused_part("\"normalizer\":{\"type\":\"Prepend\"},", "'prepend' is missing");
    refused_part("\"normalizer\":{\"type\":\"NFC\",\"form\":1},", "\"form\"");
    refused_part("\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"String\":\"\"},\"content\":\"\"},",
                 "empty pattern");
    refused_part("\"normalizer\":{\"type\":\"Replace\",\"pattern\":\" \",\"content\":\"\"},", "pattern is");
    refused_part("\"normalizer\":[],", "normalizer");
    refused_part("\"pre_tokenizer\":{\"type\":\"Whitespace\"},", "\"Whitespace\"");
    refused_part("\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\"},\"behavior\":\"Merged\"},",
                 "\"Merged\"");
    refused_part("\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\"}},", "'behavior' is missing");
    refused_part("\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"ab\"},", "one character");
    refused_part("\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"last\"},",
                 "\"last\"");
    refused_part(
        "\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"first\",\"add_prefix_"
        "space\":false},",
        "contradict");
    refused_part(
        "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"ByteLevel\"},{\"type\":\"Digits\"}]},",
        "after ByteLevel");
    refused_part("\"post_processor\":{\"type\":\"BertProcessing\"},", "\"BertProcessing\"");
    refused_part("\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"x\"}}]},",
                 "more than one token");
    refused_part("\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"x\"}}],"
                 "\"special_tokens\":{\"x\":{\"ids\":[9]}}},",
                 "not in the vocabulary");
    refused_part("\"extra\":1,", "\"extra\"");
    struct text deep = {0};
    text_add(&deep, "\"pre_tokenizer\":");
    for (int i = 0; i < 20; i++) text_add(&deep, "{\"type\":\"Sequence\",\"pretokenizers\":[");
    for (int i = 0; i < 20; i++) text_add(&deep, "]}");
    text_char(&deep, ',');
    refused_part(deep.data, "nested too deeply");
    text_clear(&deep);
    text_add(&deep, "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"}");
    for (int i = 0; i < 20; i++) text_add(&deep, ",{\"type\":\"NFC\"}");
    text_add(&deep, "]},");
    refused_part(deep.data, "more than 8");
    text_free(&deep);
}

TEST(expressions_that_differ_are_refused_by_name) {
    static const struct {
        const char *pattern, *part;
    } cases[] = {{"[a[bc]]", "a class inside a class"},
                 {"[a-z&&[^b]]", "intersection"},
                 {"\\\\w+", "another meaning"},
                 {"\\\\bx", "another meaning"},
                 {"(?<n>x)", "a kind of group"},
                 {"(?s:x)", "a kind of group"},
                 {"a{2}?", "{n}?"},
                 {"a**", "quantifier of"},
                 {"(a", "without end"},
                 {"a)", "too many"},
                 {"[a", "a class without end"},
                 {"[]a]", "beginning of a class"},
                 {"\\\\xFF", "no character"},
                 {"\\\\uD800", "beyond Unicode"},
                 {"\\\\p{L", "odd name"},
                 {"\\\\p{Nonsense}", "\\p{sc:Nonsense}"},
                 {"(?(1)a|b)", "a kind of group"},
                 {"*a", "quantifier does not"},
                 {"\\\\1", "another meaning"},
                 {"(*ACCEPT)", "a kind of group"},
                 {"a(?i)b", "a kind of group"}};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        char middle[300];
        snprintf(middle, sizeof middle,
                 "\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"%s\"},\"behavior\":\"Isolated\"},",
                 cases[i].pattern);
        refused_part(middle, cases[i].part);
    }
}

#define ADDED(text, id)                                                                                                \
    "{\"content\":\"" text "\",\"id\":" #id                                                                            \
    ",\"special\":true,\"normalized\":false,\"single_word\":false,\"lstrip\":false,\"rstrip\":false}"

TEST(vocabularies_that_contradict_themselves_are_refused) {
    refused_model("{\"type\":\"Unigram\",\"vocab\":[]}", "\"Unigram\"");
    refused_model("{\"type\":\"WordPiece\",\"vocab\":{}}", "\"WordPiece\"");
    refused_model("{\"vocab\":[],\"merges\":[]}", "\"vocab\" is no object");
    refused_model("{\"vocab\":{},\"merges\":[]}", "0 tokens");
    refused_model("{\"vocab\":{\"a\":0}}", "\"merges\" is no list");
    refused_model("{\"vocab\":{\"a\":0,\"a\":1},\"merges\":[]}", "key 'a' appears twice");
    refused_model("{\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}", "the same id 0");
    refused_model("{\"vocab\":{\"a\":-1},\"merges\":[]}", "no number from 0");
    refused_model("{\"vocab\":{\"a\":2097152},\"merges\":[]}", "no number from 0");
    refused_model("{\"vocab\":{\"a\":1.5},\"merges\":[]}", "no number from 0");
    refused_model("{\"vocab\":{\"a\":\"0\"},\"merges\":[]}", "no number from 0");
    refused_model("{\"vocab\":{\"a\":0},\"merges\":[\"a b\"]}", "does not exist");
    refused_model("{\"vocab\":{\"a\":0,\"b\":1},\"merges\":[\"a b\"]}", "does not exist");
    refused_model("{\"vocab\":{\"a\":0,\"aa\":1},\"merges\":[\"a  a\"]}", "one space is expected");
    refused_model("{\"vocab\":{\"a\":0,\"aa\":1},\"merges\":[\"aa\"]}", "one space is expected");
    refused_model("{\"vocab\":{\"a\":0},\"merges\":[\"a \"]}", "is not a pair");       // a merge that makes itself
    refused_model("{\"vocab\":{\"a\":0},\"merges\":[[\"\",\"a\"]]}", "is not a pair"); // and again
    refused_model("{\"vocab\":{\"a\":0,\"aa\":1},\"merges\":[[\"a\",\"a\",\"a\"]]}", "is not a pair");
    refused_model("{\"vocab\":{\"a\":0,\"aa\":1},\"merges\":[[\"a\",1]]}", "is not a pair");
    refused_model("{\"vocab\":{\"a\":0},\"merges\":[],\"dropout\":0.1}", "dropout");
    refused_model("{\"vocab\":{\"a\":0},\"merges\":[],\"end_of_word_suffix\":\"</w>\"}", "</w>");
    refused_model("{\"vocab\":{\"a\":0},\"merges\":[],\"fuse_unk\":1}", "'fuse_unk' is a number");
    refused_added(ADDED("x", 9), "the next free one (4)");
    refused_added(ADDED("x", 1), "the next free one (4)");
    refused_added(ADDED("a", 4), "are the same text");
    refused_added(ADDED("a", 0) "," ADDED("a", 0), "occurs twice");
    refused_added(ADDED("x", 4) "," ADDED("x", 5), "are the same text");
    refused_added(ADDED("x", -1), "the next free one");
    refused_added("{\"content\":\"x\",\"id\":4}", "'special' is missing");
    refused_added("7", "an object is expected");
    struct text longest = {0};
    text_add(&longest, "{\"content\":\"");
    for (int i = 0; i < 513; i++) text_char(&longest, 'x');
    text_add(
        &longest,
        "\",\"id\":4,\"special\":true,\"normalized\":false,\"single_word\":false,\"lstrip\":false,\"rstrip\":false}");
    refused_added(longest.data, "513 bytes");
    text_free(&longest);
}

TEST(a_file_cut_anywhere_is_refused) {
    struct text whole;
    struct error err = {0};
    CHECK_MSG(file_read(FIXTURES "/llama2/tokenizer.json", 1 << 20, &whole, &err) == 0, "%s", err.text);
    size_t step = 97, opened = 0;
    for (size_t n = 1; n + 2 < whole.length; n += n < 600 || n + 600 > whole.length ? 1 : step) {
        struct vocab_source s = source_of_json("");
        s.json = (struct vocab_string){whole.data, n};
        struct error e = {0};
        struct tokenizer *t = tokenizer_open(&s, &e);
        opened += t != NULL;
        if (!t) CHECK_INT(e.code, STATUS_DATA);
        tokenizer_close(t);
    }
    CHECK_INT(opened, 0);
    text_free(&whole);
}

TEST(other_files_of_a_folder) {
    char path[512];
    struct error err = {0};
    const char *folder = test_folder();
    struct vocab_source s = source_of(folder);
    CHECK(tokenizer_open(&s, &err) == NULL);
    CHECK_INT(err.code, STATUS_NOINPUT);
    snprintf(path, sizeof path, "%s/tokenizer.model", folder);
    CHECK(file_replace(path, "x", 1, NULL) == 0);
    err = (struct error){0};
    CHECK(tokenizer_open(&s, &err) == NULL);
    CHECK_INT(err.code, STATUS_DATA);
    CHECK_MSG(strstr(err.text, "the tokenizer is in tokenizer.model") != NULL, "%s", err.text);
    char *json = with(ADDED("<s>", 4), "", model);
    snprintf(path, sizeof path, "%s/tokenizer.json", folder);
    CHECK(file_replace(path, json, strlen(json), NULL) == 0);
    static const struct {
        const char *file, *content, *part; // NULL = accepted
    } cases[] = {{"tokenizer_config.json", "{\"bos_token\":\"<s>\"}", NULL},
                 {"tokenizer_config.json", "{\"bos_token\":\"<x>\"}", "the bos_token \"<x>\" is not in the vocabulary"},
                 {"tokenizer_config.json", "{\"eos_token\":7}", "'eos_token' is no token"},
                 {"tokenizer_config.json", "[]", "an object is expected"},
                 {"tokenizer_config.json", "{", "tokenizer_config.json:1:2"},
                 {"tokenizer_config.json", "{}", NULL},
                 {"generation_config.json", "{\"eos_token_id\":[4,99,-1,4]}", NULL},
                 {"generation_config.json", "{\"eos_token_id\":", "generation_config.json:1:"}};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        snprintf(path, sizeof path, "%s/%s", folder, cases[i].file);
        CHECK(file_replace(path, cases[i].content, strlen(cases[i].content), NULL) == 0);
        err = (struct error){0};
        struct tokenizer *t = tokenizer_open(&s, &err);
        CHECK_MSG((t != NULL) == (cases[i].part == NULL), "%s: %s", cases[i].content, err.text);
        if (!t && cases[i].part) CHECK_MSG(strstr(err.text, cases[i].part) != NULL, "%s", err.text);
        int n = 0;
        if (t) tokenizer_ends(t, &n);
        if (t && i == 6) CHECK(n == 1 && tokenizer_eos(t) == 4);
        tokenizer_close(t);
    }
    mem_free(json);
}

// A base may have fewer rows than the tokenizer has tokens: an added one is refused where a text holds it.
TEST(tokens_without_a_row) {
    char *json = with(ADDED("<s>", 4), "", model);
    struct vocab_source s = source_of_json(json);
    struct error err = {0};
    struct ids ids = {0};
    s.rows = 4;
    struct tokenizer *t = tokenizer_open(&s, &err);
    CHECK_MSG(t != NULL, "%s", err.text);
    CHECK(tokenizer_encode(t, "abc", 3, true, &ids, NULL, &err) == 0);
    CHECK_INT(ids.count, 2);
    CHECK(tokenizer_encode(t, "ab<s>c", 6, true, &ids, NULL, &err) == -1);
    CHECK_INT(ids.count, 2);
    CHECK_MSG(strstr(err.text, "\"<s>\" (4), and the base's embedding has 4 rows") != NULL, "%s", err.text);
    tokenizer_close(t);
    s.rows = 3;
    err = (struct error){0};
    CHECK(tokenizer_open(&s, &err) == NULL);
    CHECK_MSG(strstr(err.text, "token 3 has no row") != NULL, "%s", err.text);
    ids_free(&ids);
    mem_free(json);
}

// The fuzzer's seeds (a tokenizer.json, a NUL, a text), as it runs them.
TEST(seeds_of_the_fuzzer) {
    static const char folder[] = "tests/fuzz/tokenizer";
    struct error err = {0};
    char **seeds, path[300];
    size_t n, opened = 0;
    CHECK_MSG(file_list(folder, &seeds, &n, &err) == 0, "%s", err.text);
    for (size_t i = 0; i < n && !test_failed(); i++) {
        struct text seed, text = {0};
        snprintf(path, sizeof path, "%s/%s", folder, seeds[i]);
        CHECK_MSG(file_read(path, 1 << 20, &seed, &err) == 0, "%s", err.text);
        size_t length = strlen(text_str(&seed));
        struct vocab_source s = source_of_json(text_str(&seed));
        struct tokenizer *t = tokenizer_open(&s, &err);
        if (t && length < seed.length) text_append(&text, seed.data + length + 1, seed.length - length - 1);
        if (t) check_any(t, &text, false);
        CHECK(t || (err.code == STATUS_DATA && err.text[0]));
        opened += t != NULL;
        err = (struct error){0};
        tokenizer_close(t);
        text_free(&text);
        text_free(&seed);
    }
    CHECK_MSG(n >= 7 && opened >= 5, "%zu of %zu seeds opened", opened, n);
    file_list_free(seeds, n);
}

TEST(an_unknown_token_that_does_not_exist) {
    static const char lacking[] =
        "\"model\":{\"type\":\"BPE\",\"unk_token\":\"<unk>\",\"vocab\":{\"a\":0,\"b\":1},\"merges\":[]}}";
    char *json = with("", "", lacking);
    const struct vocab_source s = source_of_json(json);
    struct error err = {0};
    struct ids ids = {0};
    struct tokenizer *t = tokenizer_open(&s, &err);
    CHECK_MSG(t != NULL, "%s", err.text);
    CHECK(tokenizer_encode(t, "ab", 2, true, &ids, NULL, &err) == 0);
    CHECK(tokenizer_encode(t, "axb", 3, true, &ids, NULL, &err) == -1);
    CHECK_MSG(strstr(err.text, "no token for \"x\"") != NULL, "%s", err.text);
    CHECK_INT(ids.count, 2);
    ids_free(&ids);
    tokenizer_close(t);
    mem_free(json);
}

// Opens and encodes with the k-th allocation failing; false when there were fewer.
static bool fail_at(uint64_t k, const char *folder, bool *passed) {
    static const char text[] =
        "Hello e\xCC\x81 <s></s> 12 the quick brown fox aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    struct error err = {0};
    struct ids ids = {0};
    struct token_span *spans = NULL;
    const struct vocab_source s = source_of(folder);
    mem_fail_at(k, 0);
    struct tokenizer *t = tokenizer_open(&s, &err);
    int status = t ? tokenizer_encode(t, text, strlen(text), true, &ids, &spans, &err) : -1;
    uint64_t calls = mem_fail_at(0, 0);
    if (status < 0) CHECK_MSG(err.code == STATUS_MEMORY, "allocation %llu: %s", (unsigned long long)k, err.text);
    if (t && status < 0) { // the kept encoder is whole again
        err = (struct error){0};
        CHECK_MSG(tokenizer_encode(t, text, strlen(text), true, &ids, NULL, &err) == 0, "%s", err.text);
    }
    *passed = status == 0;
    ids_free(&ids);
    mem_free(spans);
    tokenizer_close(t);
    return calls >= k;
}

TEST(every_allocation_may_fail) {
    uint64_t k = 1, step = 1;
    bool passed = false;
    for (; !test_failed() && fail_at(k, FIXTURES "/odd", &passed); k += step) step = k < 40 ? 1 : 1 + k / 60;
    CHECK(passed); // with none failing
    CHECK_MSG(k > 100, "%llu allocations", (unsigned long long)k);
    for (uint64_t from = k > 120 ? k - 120 : 1; from < k && !test_failed(); from++)
        fail_at(from, FIXTURES "/odd", &passed);
}

TEST_MAIN(CASE(folders_equal_the_reference), CASE(scores_equal_the_reference),
          CASE(any_text_has_ids_and_spans_in_order), CASE(spans_of_inserted_text_stay_in_order),
          CASE(invalid_utf8_is_refused), CASE(a_long_line_costs_linear_time),
          CASE(steps_that_are_not_known_are_refused_by_name), CASE(expressions_that_differ_are_refused_by_name),
          CASE(vocabularies_that_contradict_themselves_are_refused), CASE(a_file_cut_anywhere_is_refused),
          CASE(other_files_of_a_folder), CASE(tokens_without_a_row), CASE(seeds_of_the_fuzzer),
          CASE(an_unknown_token_that_does_not_exist), CASE(every_allocation_may_fail))
