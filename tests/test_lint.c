// The lint: each kind found where it is, and nowhere else.
#include "data/lint.h"
#include "tests/harness.h"
#include "tests/vocabularies.h"

#include <stdio.h>

static struct pool pool;
static struct vocab_source source;

#define MESSAGE(role, content) "{\"role\": \"" role "\", \"content\": \"" content "\"}"
#define ROW(...)               "{\"messages\": [" __VA_ARGS__ "]}\n"

struct world {
    struct tokenizer *tokenizer;
    struct chat_template *chat;
    struct dataset_options options;
};

static struct world open_world(void) {
    struct error err = {0};
    source = vocabulary_make(&pool, "smollm");
    struct world w = {.tokenizer = tokenizer_open(&source, &err), .chat = chat_template_open("chatml", NULL, 0, &err)};
    CHECK_MSG(w.tokenizer && w.chat, "%s", err.text);
    w.options =
        (struct dataset_options){.path = "d.jsonl", .sequence_len = 60, .vocab_size = (uint32_t)source.n_tokens};
    return w;
}

static void close_world(struct world *w) {
    tokenizer_close(w->tokenizer);
    chat_template_close(w->chat);
    pool_free(&pool);
}

static struct lint_report lint(const struct world *w, const char *rows, struct dataset *keep) {
    struct dataset d;
    struct error err = {0};
    struct lint_report report = {0};
    CHECK_MSG(dataset_parse(&w->options, (const uint8_t *)rows, strlen(rows), w->tokenizer, w->chat, &d, &err) == 0,
              "%s", err.text);
    CHECK(lint_dataset(&d, w->tokenizer, w->options.vocab_size, &report, &err) == 0);
    if (keep)
        *keep = d;
    else
        dataset_free(&d);
    return report;
}

// Only this kind, with this count, first at this line.
static void check_only(const struct lint_report *r, enum lint_kind kind, uint64_t count, uint32_t line) {
    for (int k = 0; k < LINT_KINDS; k++) {
        if (k != (int)kind) {
            CHECK_MSG(r->findings[k].count == 0, "%s is found", lint_kind_name((enum lint_kind)k));
            continue;
        }
        CHECK_INT(r->findings[k].count, count);
        CHECK(r->findings[k].n_examples > 0);
        CHECK_INT(r->findings[k].lines[0], line);
    }
}

#define PLAIN(n) ROW(MESSAGE("user", "hello " n) "," MESSAGE("assistant", "world"))

TEST(chat_rows) {
    struct world w = open_world();
    struct lint_report r = lint(&w, PLAIN("1") PLAIN("2"), NULL);
    for (int k = 0; k < LINT_KINDS; k++) CHECK_INT(r.findings[k].count, 0);
    r = lint(&w, PLAIN("1") PLAIN("2") PLAIN("1") PLAIN("1"), NULL);
    check_only(&r, LINT_DUPLICATE, 2, 3);
    CHECK_INT(r.findings[LINT_DUPLICATE].lines[1], 4);
    r = lint(&w, PLAIN("1") PLAIN("<|im_end|>"), NULL);
    check_only(&r, LINT_SPECIAL_TEXT, 1, 2);
    r = lint(&w,
             PLAIN("1") ROW(MESSAGE("user", "a") "," MESSAGE("assistant", "") "," MESSAGE("user", "b") "," MESSAGE(
                 "assistant", "c")),
             NULL);
    check_only(&r, LINT_EMPTY_ANSWER, 1, 2);
    w.options.excess = EXCESS_TRUNCATE;
    r = lint(&w,
             PLAIN("1") ROW(MESSAGE("user", "a") "," MESSAGE("assistant",
                                                             "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx")),
             NULL);
    check_only(&r, LINT_TRUNCATED, 1, 2);
    w.options.train_on_eot = w.options.train_on_eos = TRAIN_ON_NONE;
    r = lint(&w, PLAIN("1") PLAIN("2"), NULL);
    check_only(&r, LINT_EOT_NEVER_TRAINED, 2, 1);
    close_world(&w);
}

TEST(too_many_dropped) {
    struct world w = open_world();
    struct text rows = {0};
    const char *too_long =
        ROW(MESSAGE("user", "a") "," MESSAGE("assistant", "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"));
    text_add(&rows, too_long);
    for (int i = 0; i < 19; i++) text_printf(&rows, ROW(MESSAGE("user", "%d") "," MESSAGE("assistant", "b")), i);
    struct lint_report r = lint(&w, rows.data, NULL);
    CHECK_INT(r.findings[LINT_TOO_LONG_DROPPED].count, 0); // exactly 5 %
    text_add(&rows, too_long);
    r = lint(&w, rows.data, NULL);
    check_only(&r, LINT_TOO_LONG_DROPPED, 2, 1);
    CHECK_INT(r.findings[LINT_TOO_LONG_DROPPED].rows[1], 20);
    text_free(&rows);
    close_world(&w);
}

TEST(rows_of_tokens) {
    struct world w = open_world();
    char row[256];
    struct dataset d;
    w.options.kind = DATASET_TOKENS;
    snprintf(row, sizeof row, "{\"input_ids\": [%d, %d, 5, %d], \"labels\": [-100, -100, 5, %d]}", source.bos,
             source.bos, source.eos, source.eos);
    struct lint_report r = lint(&w, row, NULL);
    check_only(&r, LINT_DOUBLE_BOS, 1, 1);
    r = lint(&w, "{\"input_ids\": [1, 2, 5, 7], \"labels\": [-100, -100, 5, 7]}", &d);
    CHECK_INT(r.findings[LINT_EOT_NEVER_TRAINED].count, 0); // pieces of text need no end of turn
    struct error err = {0};
    r = (struct lint_report){0};
    CHECK(lint_dataset(&d, NULL, 7, &r, &err) == 0); // without a tokenizer nothing is known about EOS
    check_only(&r, LINT_ID_OUT_OF_RANGE, 1, 1);
    d.samples[0].trained = 0;
    r = (struct lint_report){0};
    CHECK(lint_dataset(&d, NULL, 8, &r, &err) == 0);
    check_only(&r, LINT_NO_TRAINED_TOKEN, 1, 1);
    dataset_free(&d);
    close_world(&w);
}

TEST(overlap_of_train_and_validation) {
    struct world w = open_world();
    struct dataset train, test;
    struct error err = {0};
    lint(&w, PLAIN("1") PLAIN("2"), &train);
    lint(&w, PLAIN("3") PLAIN("2"), &test);
    struct lint_report r = {0};
    CHECK(lint_overlap(&train, &test, &r, &err) == 0);
    check_only(&r, LINT_OVERLAP, 1, 2);
    CHECK(lint_stops(&r, NULL, 0));
    const char *waived[] = {"double-bos", "train-validation-overlap"};
    CHECK(!lint_stops(&r, waived, 2));
    CHECK(lint_stops(&r, waived, 1));
    dataset_free(&train);
    dataset_free(&test);
    close_world(&w);
}

TEST(names_are_stable) {
    static const char *const names[LINT_KINDS] = {
        "no-trained-token",         "eot-never-trained",       "double-bos", "id-out-of-range", "too-long-dropped",
        "train-validation-overlap", "special-text-in-content", "truncated",  "duplicate-rows",  "empty-answer"};
    for (int k = 0; k < LINT_KINDS; k++) {
        enum lint_kind found;
        CHECK_STR(lint_kind_name((enum lint_kind)k), names[k]);
        CHECK(lint_kind_meaning((enum lint_kind)k)[0] != 0);
        CHECK(lint_kind_find(names[k], &found) && (int)found == k);
        struct lint_report r = {0};
        r.findings[k].count = 1;
        CHECK_INT(lint_stops(&r, NULL, 0), k <= LINT_OVERLAP);
        CHECK_INT(lint_kind_is_error((enum lint_kind)k), k <= LINT_OVERLAP);
    }
    enum lint_kind found;
    CHECK(!lint_kind_find("nothing", &found));
}

TEST_MAIN(CASE(chat_rows), CASE(too_many_dropped), CASE(rows_of_tokens), CASE(overlap_of_train_and_validation),
          CASE(names_are_stable))
