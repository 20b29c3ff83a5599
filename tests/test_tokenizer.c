// Byte-level BPE: a small vocabulary made here, checked by hand and against a plain loop, and SmolLM2's against ids of
// the reference implementation (fixtures/tokens.json, written by tests/peers/tokens.py).
#include "data/json.h"
#include "data/tokenizer.h"
#include "tests/harness.h"
#include "tests/vocabularies.h"

#include <pthread.h>
#include <stdio.h>

static struct pool pool;
static struct vocab_source source;

static struct tokenizer *open_pre(const char *pre) {
    struct error err = {0};
    pool_free(&pool);
    source = vocabulary_make(&pool, pre);
    struct tokenizer *t = tokenizer_open(&source, &err);
    CHECK_MSG(t != NULL, "%s", err.text);
    return t;
}

// The tokens of a text as their own bytes with '|' between them.
static const char *pieces(const struct tokenizer *t, const char *text, bool special) {
    static char out[8192];
    struct ids ids = {0};
    struct error err = {0};
    struct text joined = {0};
    CHECK_MSG(tokenizer_encode(t, text, strlen(text), special, &ids, NULL, &err) == 0, "%s", err.text);
    for (size_t i = 0; i < ids.count; i++) {
        if (i) text_char(&joined, '|');
        tokenizer_decode(t, &ids.data[i], 1, false, &joined, &err);
    }
    snprintf(out, sizeof out, "%s", text_str(&joined));
    ids_free(&ids);
    text_free(&joined);
    return out;
}

TEST(merges_lowest_rank_first) {
    struct tokenizer *t = open_pre("gpt-2");
    CHECK_STR(pieces(t, "hello", true), "hello");
    CHECK_STR(pieces(t, "hell", true), "hell");
    CHECK_STR(pieces(t, "helo", true), "he|l|o");
    CHECK_STR(pieces(t, "lllll", true), "ll|ll|l"); // of equal pairs the leftmost
    CHECK_STR(pieces(t, "hello world world", true), "hello| world| world");
    CHECK_STR(pieces(t, "user assistant", true), "user| |assistant");
    CHECK_STR(pieces(t, "zyx", true), "z|y|x");          // a token that no merge leads to
    CHECK_STR(pieces(t, "wor\nor", true), "w|or|\n|or"); // no merge across words
    CHECK_STR(pieces(t, "", true), "");
    tokenizer_close(t);
}

TEST(words_as_the_expressions_cut_them) {
    struct tokenizer *t = open_pre("smollm");
    CHECK_STR(pieces(t, "1212", true), "1|2|1|2"); // each digit is a word
    CHECK_STR(pieces(t, "\n\n\n", true), "\n\n|\n");
    CHECK_STR(pieces(t, "     x", true), "    | |x"); // the last space belongs to the next word
    CHECK_STR(pieces(t, "x  ", true), "x|  ");
    tokenizer_close(t);
    t = open_pre("gpt-2");
    CHECK_STR(pieces(t, "1212", true), "12|12");
    CHECK_STR(pieces(t, "  \xE1\xA0\x8E x", true), " | |\xE1|\xA0|\x8E| |x"); // U+180E is no space
    tokenizer_close(t);
    t = open_pre("llama-bpe");
    CHECK_STR(pieces(t, "121 zyx", true), "12|1| zyx"); // ignore_merges: a whole word that is a token
    CHECK_STR(pieces(t, "zyxzyx", true), "z|y|x|z|y|x");
    tokenizer_close(t);
}

TEST(special_tokens_leftmost_longest) {
    struct tokenizer *t = open_pre("smollm");
    CHECK_STR(pieces(t, "<|im_start|>user\nhello<|im_end|>\n", true), "<|im_start|>|user|\n|hello|<|im_end|>|\n");
    CHECK_STR(pieces(t, "<|im_end|>>", true), "<|im_end|>>");
    CHECK_STR(pieces(t, "<|im_end", true), "<||i|m|_|e|n|d");
    CHECK_STR(pieces(t, "he<think>llo", true), "he|<think>|ll|o");
    CHECK_STR(pieces(t, "[PAD7]", true), "[|P|A|D|7|]");                            // unused ids are never in a text
    CHECK_STR(pieces(t, "<think><|im_end|>", false), "<think>|<||i|m|_|e|n|d|||>"); // user-defined ones are still cut
    CHECK_INT(tokenizer_find(t, "<|im_end|>"), tokenizer_eos(t));
    CHECK_INT(tokenizer_find(t, "<|nothing|>"), -1);
    CHECK(tokenizer_is_control(t, tokenizer_eos(t)));
    CHECK(!tokenizer_is_control(t, tokenizer_find(t, "<think>")));
    CHECK(!tokenizer_is_control(t, 65) && !tokenizer_is_control(t, -1) && !tokenizer_is_control(t, 1 << 30));
    tokenizer_close(t);
}

TEST(spans_say_where_tokens_come_from) {
    struct tokenizer *t = open_pre("smollm");
    const char *text = "<|im_start|>hello \xC3\xA9 world";
    struct ids ids = {0};
    struct token_span *spans = NULL;
    struct error err = {0};
    CHECK(tokenizer_encode(t, text, strlen(text), true, &ids, &spans, &err) == 0);
    uint32_t at = 0;
    for (size_t i = 0; i < ids.count; i++) {
        struct text own = {0};
        tokenizer_decode(t, &ids.data[i], 1, false, &own, &err);
        CHECK_INT(spans[i].begin, at);
        CHECK_INT(spans[i].end - spans[i].begin, own.length);
        CHECK(memcmp(text + at, own.data, own.length) == 0);
        at = spans[i].end;
        text_free(&own);
    }
    CHECK_INT(at, strlen(text));
    size_t first = ids.count; // appending goes on behind what is there
    CHECK(tokenizer_encode(t, "hello", 5, true, &ids, &spans, &err) == 0);
    CHECK_INT(ids.count, first + 1);
    CHECK_INT(spans[first].begin, 0);
    CHECK_INT(spans[first].end, 5);
    CHECK_INT(spans[0].end, 12);
    ids_free(&ids);
    mem_free(spans);
    tokenizer_close(t);
}

// Do the symbols [begin, middle) and [middle, end) of the word make the pair `merge`?
static bool is_pair(const char *merge, const char *word, size_t begin, size_t middle, size_t end) {
    size_t left = middle - begin, right = end - middle;
    return strlen(merge) == left + 1 + right && merge[left] == ' ' && memcmp(merge, word + begin, left) == 0 &&
           memcmp(merge + left + 1, word + middle, right) == 0;
}

// The specification as a loop: join the pair of lowest rank, leftmost first, until none is left. Symbol i of the result
// begins at at[i]; at[n] is the length.
static size_t merge_plainly(const char *word, size_t length, size_t *at) {
    size_t n = length;
    for (size_t i = 0; i <= n; i++) at[i] = i;
    for (;;) {
        int best = VOCAB_MERGES;
        size_t place = 0;
        for (size_t i = 0; i + 1 < n; i++)
            for (int m = 0; m < best; m++)
                if (is_pair(vocabulary_merges[m], word, at[i], at[i + 1], at[i + 2])) best = m, place = i;
        if (best == VOCAB_MERGES) return n;
        memmove(at + place + 1, at + place + 2, (n - place - 1) * sizeof *at);
        n--;
    }
}

TEST(short_and_long_words_equal_the_plain_loop) {
    struct tokenizer *t = open_pre("gpt-2");
    static size_t want[512];
    static const char letters[] = "helousraitjkmnjkmn";
    for (unsigned round = 0; round < 300 && !test_failed(); round++) {
        char word[400];
        size_t n = 1 + round + (round > 200 ? 90 : 0);
        for (size_t i = 0; i < n; i++) word[i] = letters[(unsigned)((test_random(round, (unsigned)i) + 1) * 9) % 18];
        struct ids ids = {0};
        struct token_span *spans = NULL;
        struct error err = {0};
        CHECK(tokenizer_encode(t, word, n, true, &ids, &spans, &err) == 0);
        size_t expected = merge_plainly(word, n, want);
        CHECK_INT(ids.count, expected);
        for (size_t i = 0; i < ids.count && i < expected; i++) {
            struct text own = {0};
            tokenizer_decode(t, &ids.data[i], 1, false, &own, &err);
            CHECK_INT(spans[i].begin, want[i]);
            CHECK(own.length == want[i + 1] - want[i] && memcmp(own.data, word + want[i], own.length) == 0);
            text_free(&own);
        }
        ids_free(&ids);
        mem_free(spans);
    }
    tokenizer_close(t);
}

TEST(every_code_point_comes_back) {
    struct tokenizer *t = open_pre("smollm");
    struct text all = {0}, back = {0};
    for (uint32_t c = 1; c <= 0x10FFFF; c += c < 0x3000 ? 1 : 61) {
        char bytes[4];
        if (c >= 0xD800 && c < 0xE000) continue;
        text_append(&all, bytes, utf8_write(c, bytes));
    }
    struct ids ids = {0};
    struct error err = {0};
    CHECK_MSG(tokenizer_encode(t, all.data, all.length, true, &ids, NULL, &err) == 0, "%s", err.text);
    CHECK(tokenizer_decode(t, ids.data, ids.count, false, &back, &err) == 0);
    CHECK(back.length == all.length && memcmp(back.data, all.data, all.length) == 0);
    ids_free(&ids);
    text_free(&all);
    text_free(&back);
    tokenizer_close(t);
}

TEST(decode_skips_and_refuses) {
    struct tokenizer *t = open_pre("smollm");
    int32_t im_end = tokenizer_find(t, "<|im_end|>"), think = tokenizer_find(t, "<think>");
    int32_t ids[3] = {im_end, 104, think};
    struct text out = {0};
    struct error err = {0};
    CHECK(tokenizer_decode(t, ids, 3, true, &out, &err) == 0);
    CHECK_STR(text_str(&out), "h<think>");
    ids[1] = (int32_t)tokenizer_vocab_size(t);
    CHECK(tokenizer_decode(t, ids, 3, true, &out, &err) == -1);
    CHECK_INT(err.code, STATUS_DATA);
    ids[1] = -1;
    err = (struct error){0};
    CHECK(tokenizer_decode(t, ids, 3, true, &out, &err) == -1);
    text_free(&out);
    tokenizer_close(t);
}

TEST(bytes_the_vocabulary_lacks_vanish) {
    pool_free(&pool);
    source = vocabulary_make(&pool, "gpt-2");
    struct vocab_string *tokens = (struct vocab_string *)source.tokens; // byte 0x7F is no token any more
    tokens[0x7F] = (struct vocab_string){"gone for good", 13};
    struct error err = {0};
    struct tokenizer *t = tokenizer_open(&source, &err);
    CHECK_MSG(t != NULL, "%s", err.text);
    CHECK_STR(pieces(t,
                     "a\x7F"
                     "b",
                     true),
              "a|b");
    CHECK_STR(pieces(t, "\x7F\x7F\x7F", true), "");
    tokenizer_close(t);
}

static void check_refused(const struct vocab_source *s, const char *part) {
    struct error err = {0};
    struct tokenizer *t = tokenizer_open(s, &err);
    CHECK_MSG(t == NULL, "accepted, expected \"%s\"", part);
    CHECK_INT(err.code, STATUS_DATA);
    CHECK_MSG(strstr(err.text, part) != NULL, "\"%s\" does not say \"%s\"", err.text, part);
    tokenizer_close(t);
}

TEST(refuses_what_it_cannot_do_exactly) {
    pool_free(&pool);
    const struct vocab_source good = vocabulary_make(&pool, "smollm");
    struct vocab_source s = good;
    s.model = "bert", check_refused(&s, "\"bert\"");
    s.model = "llama", check_refused(&s, "tokenizer.ggml.scores");
    s = good, s.pre = "default", check_refused(&s, "\"default\"");
    s.pre = NULL, check_refused(&s, "missing tokenizer.ggml.pre");
    s.pre = "", check_refused(&s, "pre-tokenizer");
    s.pre = "smollm starcoder", check_refused(&s, "pre-tokenizer");
    s.pre = "small", check_refused(&s, "pre-tokenizer");
    s = good, s.n_tokens = 0, s.bos = s.eos = -1, check_refused(&s, "limits");
    s = good, s.eos = (int32_t)good.n_tokens, check_refused(&s, "EOS");
    s = good, s.bos = -2, check_refused(&s, "BOS");
    static const char *const bad[] = {"he", " he", "he ", "h  e", "q q", "h\xFF e", "", " ", "  "};
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        struct vocab_string *copy = pool_array(&pool, good.n_merges, sizeof *copy);
        memcpy(copy, good.merges, good.n_merges * sizeof *copy);
        copy[good.n_merges - 1] = (struct vocab_string){bad[i], strlen(bad[i])};
        s = good, s.merges = copy, check_refused(&s, "merge 27");
    }
    struct vocab_string *tokens = pool_array(&pool, good.n_tokens, sizeof *tokens);
    memcpy(tokens, good.tokens, good.n_tokens * sizeof *tokens);
    tokens[good.n_tokens - 2] = tokens[65];
    s = good, s.tokens = tokens, check_refused(&s, "the same text");
    int32_t *types = pool_array(&pool, good.n_tokens, sizeof *types);
    types[5] = 7;
    s = good, s.types = types, check_refused(&s, "unknown type 7");
    struct error err = {0};
    s = good, s.types = NULL; // all ordinary
    struct tokenizer *t = tokenizer_open(&s, &err);
    CHECK_MSG(t != NULL, "%s", err.text);
    CHECK_STR(pieces(t, "<think>", true), "<|t|h|i|n|k|>");
    tokenizer_close(t);
}

TEST(invalid_utf8_names_its_byte) {
    struct tokenizer *t = open_pre("smollm");
    static const struct {
        const char *text;
        size_t length;
        const char *part;
    } cases[] = {
        {"ab\xFFz", 4, "byte 2:"},       {"\xC0\x80", 2, "byte 0:"},         {"hello, world\xE2\x82", 14, "byte 12:"},
        {"x\xED\xA0\x80", 4, "byte 1:"}, {"\xF4\x90\x80\x80", 4, "byte 0:"}, {"\xE0\x80\xAF", 3, "byte 0:"},
        {"12345678\x80", 9, "byte 8:"}};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct ids ids = {0};
        struct error err = {0};
        CHECK(ids_push(&ids, 7) == 0);
        CHECK(tokenizer_encode(t, cases[i].text, cases[i].length, true, &ids, NULL, &err) == -1);
        CHECK_INT(err.code, STATUS_DATA);
        CHECK_MSG(strstr(err.text, cases[i].part) != NULL, "%s", err.text);
        CHECK_INT(ids.count, 1); // failure leaves no trace
        ids_free(&ids);
    }
    tokenizer_close(t);
}

TEST(a_word_without_end_is_refused) {
    struct tokenizer *t = open_pre("gpt-2");
    size_t limit = 4 << 20;
    char *word = mem_alloc(limit + 7);
    memset(word, 'e', limit + 7);
    struct ids ids = {0};
    struct error err = {0};
    CHECK_MSG(tokenizer_encode(t, word, limit, true, &ids, NULL, &err) == 0, "%s", err.text);
    CHECK_INT(ids.count, limit);
    memcpy(word, "hello\n", 6);
    CHECK(tokenizer_encode(t, word, limit + 7, true, &ids, NULL, &err) == -1);
    CHECK_INT(ids.count, limit); // failure leaves no trace of what went before it
    CHECK(strstr(err.text, "word boundary") != NULL);
    mem_free(word);
    ids_free(&ids);
    tokenizer_close(t);
}

TEST(normal_form_where_the_model_wants_it) {
    const char *apart = "xe\xCC\x81 \xE1\x84\x80\xE1\x85\xA1\xE1\x86\xA8 y", *whole = "x\xC3\xA9 \xEA\xB0\x81 y";
    struct ids a = {0}, b = {0};
    struct token_span *spans = NULL;
    struct error err = {0};
    struct tokenizer *t = open_pre("qwen2");
    CHECK(tokenizer_encode(t, apart, strlen(apart), true, &a, &spans, &err) == 0);
    CHECK(tokenizer_encode(t, whole, strlen(whole), true, &b, NULL, &err) == 0);
    CHECK(a.count == b.count && memcmp(a.data, b.data, a.count * sizeof *a.data) == 0);
    for (size_t i = 0; i < a.count; i++) CHECK(spans[i].begin <= spans[i].end && spans[i].end <= strlen(apart));
    CHECK_INT(spans[0].begin, 0);
    CHECK_INT(spans[a.count - 1].begin, strlen(apart) - 1);
    CHECK_INT(spans[a.count - 1].end, strlen(apart));
    // The reference knows the marks of Unicode 9: the later U+1DF6 changes places with no other one.
    CHECK_STR(pieces(t, "\xCD\x85\xE1\xB7\xB6\xCC\x81", true), "\xCD|\x85|\xE1|\xB7|\xB6|\xCC|\x81");
    CHECK_STR(pieces(t, "\xCD\x85\xCC\x81", true), "\xCC|\x81|\xCD|\x85");
    tokenizer_close(t);
    ids_free(&a);
    ids_free(&b);
    mem_free(spans);
    t = open_pre("gpt-2"); // no normal form
    CHECK_STR(pieces(t, "e\xCC\x81", true), "e|\xCC|\x81");
    tokenizer_close(t);
    t = open_pre("falcon"); // not known: refuses what would change, takes what would not
    CHECK_STR(pieces(t, "\xC3\xA9", true), "\xC3|\xA9");
    CHECK(tokenizer_encode(t, apart, strlen(apart), true, &a, NULL, &err) == -1);
    CHECK(strstr(err.text, "normal form") != NULL);
    tokenizer_close(t);
    ids_free(&a);
}

enum { THREADS = 4, ROUNDS = 200 };
static struct tokenizer *shared;
static const char shared_text[] = "<|im_start|>user\nhello world, the assistant is here 12 times<|im_end|>\n";

static void *encode_many(void *result) {
    struct ids first = {0}, ids = {0};
    struct error err = {0};
    bool same = tokenizer_encode(shared, shared_text, strlen(shared_text), true, &first, NULL, &err) == 0;
    for (int i = 0; i < ROUNDS && same; i++) {
        ids.count = 0;
        same = tokenizer_encode(shared, shared_text, strlen(shared_text), true, &ids, NULL, &err) == 0 &&
               ids.count == first.count && memcmp(ids.data, first.data, ids.count * sizeof *ids.data) == 0;
    }
    ids_free(&first);
    ids_free(&ids);
    *(bool *)result = same;
    return NULL;
}

TEST(threads_share_a_tokenizer) {
    shared = open_pre("smollm");
    pthread_t threads[THREADS];
    bool same[THREADS] = {0};
    for (int i = 0; i < THREADS; i++) CHECK(pthread_create(&threads[i], NULL, encode_many, &same[i]) == 0);
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < THREADS; i++) CHECK(same[i]);
    tokenizer_close(shared);
}

// Opens and encodes with the k-th allocation failing; false when there were fewer.
static bool fail_at(uint64_t k, const struct vocab_source *s, bool *passed) {
    static const char text[] =
        "hello e\xCC\x81 <|im_start|> aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    struct error err = {0};
    struct ids ids = {0};
    struct token_span *spans = NULL;
    mem_fail_at(k, 0);
    struct tokenizer *t = tokenizer_open(s, &err);
    int status = t ? tokenizer_encode(t, text, strlen(text), true, &ids, &spans, &err) : -1;
    uint64_t calls = mem_fail_at(0, 0);
    if (status < 0) CHECK_INT(err.code, STATUS_MEMORY);
    *passed = status == 0;
    ids_free(&ids);
    mem_free(spans);
    tokenizer_close(t);
    return calls >= k;
}

TEST(every_allocation_may_fail) {
    pool_free(&pool);
    source = vocabulary_make(&pool, "qwen2");
    uint64_t k = 1, failures = 0;
    bool passed = false;
    for (; k < 500 && !test_failed() && fail_at(k, &source, &passed); k++) failures += !passed;
    CHECK(passed); // with none failing
    CHECK_MSG(failures > 20 && k < 500, "%llu of %llu allocations", (unsigned long long)failures,
              (unsigned long long)k);
}

static void check_ids(const struct tokenizer *t, const struct json *row, const char *key, bool special) {
    size_t length, i = 0;
    const char *text = json_string(json_get(row, "text"), &length);
    const struct json *want = json_get(row, key);
    struct ids ids = {0};
    struct error err = {0};
    CHECK_MSG(tokenizer_encode(t, text, length, special, &ids, NULL, &err) == 0, "%s", err.text);
    bool same = ids.count == json_count(want);
    for (const struct json *v = json_child(want); v && same; v = json_next(v), i++) {
        int64_t id = -1;
        same = json_int(v, &id) && id == ids.data[i];
    }
    CHECK_MSG(same, "%s of \"%s\" differ from the reference at %zu", key, text, i);
    ids_free(&ids);
}

TEST(smollm2_equals_the_reference) {
    struct smollm2 v;
    struct json_document doc = {0};
    struct error err = {0};
    if (smollm2_open(&v)) {
        CHECK_MSG(json_load("tests/fixtures/tokens.json", 1 << 20, NULL, &doc, &err) == 0, "%s", err.text);
        CHECK_INT(tokenizer_vocab_size(v.tokenizer), 49152);
        CHECK(json_count(doc.root) >= 60);
        for (const struct json *row = json_child(doc.root); row; row = json_next(row)) {
            check_ids(v.tokenizer, row, "ids", true);
            check_ids(v.tokenizer, row, "plain", false);
        }
        json_free(&doc);
    }
    smollm2_close(&v);
}

TEST_MAIN(CASE(merges_lowest_rank_first), CASE(words_as_the_expressions_cut_them),
          CASE(special_tokens_leftmost_longest), CASE(spans_say_where_tokens_come_from),
          CASE(short_and_long_words_equal_the_plain_loop), CASE(every_code_point_comes_back),
          CASE(decode_skips_and_refuses), CASE(bytes_the_vocabulary_lacks_vanish),
          CASE(refuses_what_it_cannot_do_exactly), CASE(invalid_utf8_names_its_byte),
          CASE(a_word_without_end_is_refused), CASE(normal_form_where_the_model_wants_it),
          CASE(threads_share_a_tokenizer), CASE(every_allocation_may_fail), CASE(smollm2_equals_the_reference))
