// graft eval: loss, perplexity, answers of a base with or without an adapter.
#include "adapters/lora.h"
#include "data/json.h"
#include "train/command.h"
#include "train/evaluate.h"
#include "train/progress.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

struct evaluation {
    struct session session;
    struct dataset data, rest; // rest: the training part when the held-out one is evaluated
    struct adapter adapter;
    struct lora lora;
    struct evaluator evaluator;
    bool has_adapter, answers;
};

static void close_all(struct evaluation *e) {
    evaluator_close(&e->evaluator);
    adapter_free(&e->adapter);
    session_close(&e->session);
    dataset_free(&e->data);
    dataset_free(&e->rest);
}

// --data, else test_datasets, else the held-out part of datasets.
static int read_rows(struct evaluation *e, const struct run_config *c, const char *path, struct error *err) {
    if (path) {
        struct dataset_config one = c->test_datasets.count ? c->test_datasets.items[0] : c->datasets.items[0];
        struct config_datasets list = {&one, 1};
        one.path = path;
        return session_read_data(&e->session, c, &list, c->eval_sequence_len, &e->data, err);
    }
    if (c->test_datasets.count)
        return session_read_data(&e->session, c, &c->test_datasets, c->eval_sequence_len, &e->data, err);
    if (c->val_set_size <= 0) {
        return error_set(
            err, STATUS_USAGE,
            "nothing to evaluate: give --data FILE, or test_datasets or val_set_size in the configuration");
    }
    if (session_read_data(&e->session, c, &c->datasets, c->sequence_len, &e->rest, err)) return -1;
    return dataset_split(&e->rest, c->val_set_size, c->seed, &e->data, err);
}

static int open_all(struct evaluation *e, const struct run_config *c, const char *adapter, const char *data,
                    struct error *err) {
    struct text notice = {0};
    struct session_options options;
    if (session_options_of(c, &options, &notice, err)) {
        text_free(&notice);
        return -1;
    }
    if (notice.length) fprintf(stderr, "%s\n", text_str(&notice));
    text_free(&notice);
    struct eval_options evaluating = {
        .batch_size = c->eval_batch_size, .sequence_len = c->eval_sequence_len, .packing = c->eval_sample_packing};
    if (session_open(&options, &e->session, err) || read_rows(e, c, data, err)) return -1;
    if (adapter && adapter_read(adapter, &e->session.model, &e->adapter, err)) return -1;
    e->has_adapter = adapter != NULL;
    if (evaluator_open(&e->session, "evaluate", &e->data, &evaluating, &e->evaluator, err)) return -1;
    struct decoder_limits limits = {0};
    evaluator_limits(&e->evaluator, &limits);
    if (e->answers) {
        int32_t max_new;
        limits.cache_len = generation_length(&e->data, &max_new);
        limits.cache_seqs = max_new > 0 ? 16 : 0;
        if (limits.max_positions < limits.cache_len) limits.max_positions = limits.cache_len;
        e->answers = limits.cache_seqs > 0;
    }
    int number = e->has_adapter ? 0 : -1;
    if (session_record(&e->session, &limits, err)) return -1;
    if (e->has_adapter && lora_attach(&e->session.decoder, &e->adapter, 0, false, false, &e->lora, err)) return -1;
    if (evaluator_record(&e->evaluator, number, err)) return -1;
    if (e->answers && generator_record(&e->session.generator, e->has_adapter, err)) return -1;
    if (session_start(&e->session, err)) return -1;
    if (!e->has_adapter) return 0;
    return lora_attach(&e->session.decoder, &e->adapter, 0, false, false, &e->lora, err) || lora_upload(&e->lora, err)
               ? -1
               : 0;
}

static int write_answers(const struct evaluation *e, const struct eval_answers *answers, const char *path,
                         struct error *err) {
    struct text out = {0};
    struct json_writer w = {.out = &out, .style = JSON_SPACED};
    for (size_t i = 0; i < e->data.count; i++) {
        const struct sample *s = &e->data.samples[i];
        if (!answers->texts[i]) continue;
        bool valid, equal = answer_json(answers->texts[i], s->reference, &valid);
        json_begin_object(&w);
        json_put_key(&w, "row");
        json_put_int(&w, s->row);
        json_put_key(&w, "rendered");
        json_put_string(&w, s->rendered ? s->rendered : "");
        json_put_key(&w, "reference");
        json_put_string(&w, s->reference);
        json_put_key(&w, "answer");
        json_put_string(&w, answers->texts[i]);
        json_put_key(&w, "exact");
        json_put_bool(&w, answer_exact(answers->texts[i], s->reference));
        json_put_key(&w, "exact_json");
        json_put_bool(&w, equal);
        json_put_key(&w, "valid_json");
        json_put_bool(&w, valid);
        json_end_object(&w);
        text_char(&out, '\n');
    }
    int failed = text_failed(&out) ? error_memory(err, "answers", out.length)
                                   : file_replace(path, text_str(&out), out.length, err);
    text_free(&out);
    return failed;
}

static double share(int64_t part, int64_t whole) {
    return whole ? (double)part / (double)whole : 0;
}

static void result(const struct evaluation *e, const struct eval_loss *loss, const struct eval_answers *a, bool json,
                   struct text *out) {
    double speed = a->seconds > 0 ? (double)a->tokens / a->seconds : 0;
    if (!json) {
        text_printf(out, "rows        %lld\ntokens      %.0f\nloss        %.4f\nperplexity  %.4f\n",
                    (long long)loss->rows, loss->tokens, loss->loss, exp(loss->loss));
        if (!e->answers) return;
        text_printf(out,
                    "answers     %lld, %lld tokens, %.0f tok/s\nvalid JSON  %.1f %%\nexact       %.1f %%\nexact JSON  "
                    "%.1f %%\n",
                    (long long)a->asked, (long long)a->tokens, speed, 100 * share(a->valid_json, a->asked),
                    100 * share(a->exact, a->asked), 100 * share(a->exact_json, a->asked));
        return;
    }
    struct json_writer w = {.out = out, .style = JSON_SPACED};
    json_begin_object(&w);
    const struct {
        const char *key;
        double value;
        bool whole, present;
    } fields[] = {{"rows", (double)loss->rows, true, true},
                  {"tokens", loss->tokens, true, true},
                  {"loss", loss->loss, false, true},
                  {"perplexity", exp(loss->loss), false, true},
                  {"answers", (double)a->asked, true, e->answers},
                  {"valid_json", share(a->valid_json, a->asked), false, e->answers},
                  {"exact", share(a->exact, a->asked), false, e->answers},
                  {"exact_json", share(a->exact_json, a->asked), false, e->answers},
                  {"generated_tokens", (double)a->tokens, true, e->answers},
                  {"generated_tokens_per_second", speed, false, e->answers}};
    for (size_t i = 0; i < COUNT_OF(fields); i++) {
        json_put_key(&w, fields[i].key);
        if (!fields[i].present)
            json_put_null(&w);
        else if (fields[i].whole)
            json_put_int(&w, llround(fields[i].value));
        else
            json_put_double(&w, fields[i].value);
    }
    json_end_object(&w);
    text_char(out, '\n');
}

// Everything that takes long, with a progress line.
static int run(struct evaluation *e, const char *logprobs, int64_t limit, struct eval_loss *loss,
               struct eval_answers *answers, struct error *err) {
    struct progress progress = {0};
    int number = e->has_adapter ? 0 : -1;
    e->evaluator.between = progress_show, e->evaluator.context = &progress;
    progress_begin(&progress, "loss, micro-batch");
    int failed = evaluator_loss(&e->evaluator, number, loss, err);
    if (!failed && logprobs) {
        progress_begin(&progress, "log-probabilities, micro-batch");
        failed = evaluator_logprobs(&e->evaluator, number, logprobs, err);
    }
    if (!failed && e->answers) {
        progress_begin(&progress, "answers");
        failed = evaluator_answers(&e->evaluator, number, limit, NULL, answers, err);
    }
    progress_end(&progress);
    e->evaluator.between = NULL;
    return failed;
}

static int evaluate(struct evaluation *e, const struct option *options, struct error *err) {
    const char *answers_path = option_value(options, "--answers");
    double limit = 0;
    struct eval_loss loss;
    struct eval_answers answers = {0};
    struct text out = {0};
    if (option_number(options, "--rows", 1, 1e9, &limit, err)) return -1;
    if (run(e, option_value(options, "--logprobs"), (int64_t)limit, &loss, &answers, err)) return -1;
    int failed = e->answers && answers_path ? write_answers(e, &answers, answers_path, err) : 0;
    result(e, &loss, &answers, option_flag(options, "--json"), &out);
    if (!failed) failed = print_result(&out, err);
    text_free(&out);
    eval_answers_free(&answers, e->data.count);
    return failed;
}

int command_eval(int argc, char **argv, struct error *err) {
    struct option options[] = {{.name = "--adapter", .takes_value = true},
                               {.name = "--data", .takes_value = true},
                               {.name = "--logprobs", .takes_value = true},
                               {.name = "--answers", .takes_value = true},
                               {.name = "--rows", .takes_value = true},
                               {.name = "--no-generate"},
                               {.name = "--json"}};
    struct run_config config = {0};
    if (options_parse(&argc, argv, options, COUNT_OF(options), err) || config_from_arguments(argc, argv, &config, err))
        return -1;
    struct evaluation e = {.answers = !option_flag(options, "--no-generate")};
    int failed = open_all(&e, &config, option_value(options, "--adapter"), option_value(options, "--data"), err) ||
                 evaluate(&e, options, err);
    close_all(&e);
    config_free(&config);
    return failed ? -1 : 0;
}
