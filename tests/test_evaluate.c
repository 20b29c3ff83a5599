// Evaluation: the hook between micro-batches and between steps of a generation.
#include "tests/harness.h"
#include "tests/tiny.h"
#include "train/evaluate.h"

#include <stdio.h>
#include <string.h>

enum { ROWS = 24 };

struct world {
    struct session session;
    struct dataset data;
    struct evaluator evaluator;
    char base[200], rows[200];
};

// The bare base on `packing` rows of 256 tokens, one to a micro-batch, with a cache of two sequences.
static int open_world(struct world *w, bool packing, struct error *err) {
    static const char *const assistant[] = {"assistant"};
    snprintf(w->base, sizeof w->base, "%s/tiny.gguf", test_folder());
    snprintf(w->rows, sizeof w->rows, "%s/rows.jsonl", test_folder());
    if (!file_exists(w->base) && (tiny_write(w->base, &tiny_default, err) || tiny_rows(w->rows, ROWS, 3, err)))
        return -1;
    struct session_options so = {.base.name = w->base, .dtype = DTYPE_F32, .threads = 1};
    if (session_open(&so, &w->session, err)) return -1;
    struct dataset_options data = {.path = w->rows,
                                   .kind = DATASET_CHAT,
                                   .roles_to_train = assistant,
                                   .n_roles_to_train = 1,
                                   .field_messages = "messages",
                                   .field_role = "role",
                                   .field_content = "content",
                                   .sequence_len = 256,
                                   .min_sample_len = 2,
                                   .vocab_size = (uint32_t)w->session.model.arch.vocab};
    struct eval_options evaluating = {.batch_size = 1, .sequence_len = 256, .packing = packing};
    const struct chat_template *chat = session_chat(&w->session, NULL, err);
    if (!chat || dataset_read(&data, w->session.tokenizer, chat, &w->data, err) ||
        evaluator_open(&w->session, "evaluate", &w->data, &evaluating, &w->evaluator, err)) {
        return -1;
    }
    struct decoder_limits limits = {.cache_seqs = 2};
    int32_t max_new;
    limits.cache_len = generation_length(&w->data, &max_new);
    limits.max_positions = limits.cache_len;
    evaluator_limits(&w->evaluator, &limits);
    return session_record(&w->session, &limits, err) || evaluator_record(&w->evaluator, -1, err) ||
                   generator_record(&w->session.generator, 0, err) || session_start(&w->session, err)
               ? -1
               : 0;
}

static void close_world(struct world *w) {
    evaluator_close(&w->evaluator);
    session_close(&w->session);
    dataset_free(&w->data);
    mem_free(w);
}

static struct world *new_world(bool packing) {
    struct error err = {0};
    struct world *w = mem_zalloc(1, sizeof *w);
    if (w && open_world(w, packing, &err)) {
        test_fail(__FILE__, __LINE__, "%s", err.text);
        close_world(w);
        return NULL;
    }
    return w;
}

struct calls {
    int64_t count, done, total;
    int64_t last; // the call that ends the work, 0 = none
};

static int count_call(void *context, int64_t done, int64_t total, struct error *err) {
    struct calls *c = context;
    CHECK(done >= c->done && done <= total && total > 0);
    c->done = done, c->total = total;
    return ++c->count == c->last ? error_set(err, STATUS_STOPPED, "stopped by the test") : 0;
}

TEST(every_micro_batch_calls_the_hook) {
    struct error err = {0};
    struct eval_loss loss;
    struct world *w = new_world(true);
    if (!w) return;
    struct calls calls = {0};
    char path[200];
    snprintf(path, sizeof path, "%s/logprobs.jsonl", test_folder());
    w->evaluator.between = count_call, w->evaluator.context = &calls;
    int64_t batches = loader_count(w->evaluator.loader, 0, &err);
    CHECK(batches > 2);
    CHECK(!evaluator_loss(&w->evaluator, -1, &loss, &err));
    CHECK(calls.count == batches && calls.done == batches && calls.total == batches);
    double whole = loss.loss;
    calls = (struct calls){0};
    CHECK(!evaluator_logprobs(&w->evaluator, -1, path, &err));
    CHECK(calls.count == batches && calls.done == batches && file_exists(path));
    for (int64_t last = 1; last <= batches; last++) { // ended at any call: the hook's error, no file
        calls = (struct calls){.last = last}, err = (struct error){0};
        CHECK(evaluator_loss(&w->evaluator, -1, &loss, &err) && calls.count == last);
        CHECK_INT(err.code, STATUS_STOPPED);
        calls = (struct calls){.last = last}, err = (struct error){0};
        CHECK(evaluator_logprobs(&w->evaluator, -1, path, &err) && calls.count == last && !file_exists(path));
        CHECK_INT(err.code, STATUS_STOPPED);
    }
    w->evaluator.between = NULL;
    CHECK(!evaluator_loss(&w->evaluator, -1, &loss, &err) && loss.loss == whole); // nothing is left of an ended one
    close_world(w);
}

TEST(every_step_of_a_generation_calls_the_hook) {
    enum { LIMIT = 5 };
    struct error err = {0};
    struct eval_answers answers;
    struct world *w = new_world(true);
    if (!w) return;
    struct calls calls = {0};
    w->evaluator.between = count_call, w->evaluator.context = &calls;
    CHECK(!evaluator_answers(&w->evaluator, -1, LIMIT, NULL, &answers, &err));
    CHECK(calls.done == LIMIT && calls.total == LIMIT && answers.asked == LIMIT);
    CHECK(calls.count >= answers.tokens / 2); // two at a time
    eval_answers_free(&answers, w->data.count);
    int64_t all = calls.count;
    for (int64_t last = 1; last <= all; last += all / 3) {
        calls = (struct calls){.last = last}, err = (struct error){0};
        CHECK(evaluator_answers(&w->evaluator, -1, LIMIT, NULL, &answers, &err) && calls.count == last);
        CHECK(err.code == STATUS_STOPPED && !answers.texts);
    }
    CHECK(!w->session.generator.between); // others use the generator without it
    close_world(w);
}

TEST_MAIN(CASE(every_micro_batch_calls_the_hook), CASE(every_step_of_a_generation_calls_the_hook))
