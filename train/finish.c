// What a run leaves behind. See trainer.h. The adapter is durable before anything else is written.
#include "train/trainer.h"

#include "adapters/card.h"
#include "data/json.h"
#include "kernels/hash.h"
#include "train/checkpoint.h"
#include "train/report.h"
#include "train/version.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static char *in_output(const struct trainer *t, struct pool *pool, const char *name) {
    return pool_printf(pool, "%s/%s", t->config->output_dir, name);
}

int trainer_write_adapter(struct trainer *t, const char *folder, struct error *err) {
    struct pool pool = {0};
    char *gguf = pool_printf(&pool, "%s/adapter.gguf", folder);
    int failed = gguf ? 0 : error_memory(err, "a path", strlen(folder));
    struct error why = {0};
    t->has_gguf = gguf_adapter_check(&t->adapter, &why) == 0;
    failed = failed || lora_download(&t->lora, err) || peft_write(folder, &t->adapter, err) ||
             (t->has_gguf ? gguf_adapter_write(gguf, &t->adapter, err) : file_remove(gguf, err));
    pool_free(&pool);
    return failed ? -1 : 0;
}

// The adapter of the best evaluation, from its checkpoint.
static int load_best(struct trainer *t, struct error *err) {
    int64_t step = t->state.best_step;
    if (t->config->load_best_model_at_end && t->state.first_eval < t->state.best_metric) {
        runlog_say(&t->log, "no evaluation was better than the one before training (eval_loss %.4f)",
                   t->state.first_eval);
    }
    if (!t->config->load_best_model_at_end || step < 1 || step == t->state.step) return 0;
    struct pool pool = {0};
    struct adapter best;
    int64_t found;
    char *folder = pool_printf(&pool, "%s/checkpoints/step-%06lld", t->config->output_dir, (long long)step);
    int failed = folder ? 0 : error_memory(err, "a path", 64);
    failed = failed || checkpoint_verify(folder, &found, err) || peft_read(folder, &t->session.model, &best, err);
    if (!failed) {
        struct adapter last = t->adapter;
        t->adapter = best;
        t->adapter.dropout = last.dropout;
        t->adapter.base_name = last.base_name;
        failed = lora_upload(&t->lora, err);
        adapter_free(&last);
        t->best_loaded = true;
        runlog_say(&t->log, "the adapter is that of step %lld, the best evaluation (eval_loss %.4f)", (long long)step,
                   t->state.best_metric);
    }
    pool_free(&pool);
    return failed ? -1 : 0;
}

static void put_file(struct json_writer *w, const char *key, const char *path) {
    uint8_t digest[SHA256_BYTES];
    char hex[2 * SHA256_BYTES + 1];
    if (sha256_file(path, digest, NULL, NULL)) return;
    sha256_hex(digest, hex);
    json_put_key(w, key);
    json_put_string(w, hex);
}

static void put_number(struct json_writer *w, const char *key, double value) {
    json_put_key(w, key);
    json_put_double(w, value);
}

static void put_text(struct json_writer *w, const char *key, const char *value) {
    json_put_key(w, key);
    if (value)
        json_put_string(w, value);
    else
        json_put_null(w);
}

static void put_int(struct json_writer *w, const char *key, uint64_t value) {
    json_put_key(w, key);
    json_put_int(w, (int64_t)value);
}

// eval_loss of the adapter that is written.
static double adapter_eval(const struct trainer *t) {
    return t->best_loaded ? t->state.best_metric : t->state.last_eval;
}

static void put_base(const struct trainer *t, struct json_writer *w) {
    const struct model *m = &t->session.model;
    json_put_key(w, "base");
    json_begin_object(w);
    const struct base_source *source = &t->session.options.base;
    put_text(w, "path", m->path);
    if (source->revision) put_text(w, "revision", source->revision);
    if (source->packing.format != 0 && strcmp(m->path, m->base->path) != 0) { // made while loading
        char name[40];
        base_packing_name(&source->packing, name);
        put_text(w, "quantised_to", name);
    }
    put_text(w, "name", m->name);
    put_text(w, "repository", t->config->base_model_hf ? t->config->base_model_hf : m->hf_repository);
    put_text(w, "file_type", m->file_type);
    put_text(w, "header_sha256", t->state.base_sha256);
    put_int(w, "bytes", (uint64_t)m->file_bytes);
    put_int(w, "parameters", (uint64_t)m->total_parameters);
    json_end_object(w);
}

static void put_dataset(const char *key, const char *sha256, const struct dataset *d, struct json_writer *w) {
    json_put_key(w, key);
    json_begin_object(w);
    if (sha256) put_text(w, "sha256", sha256);
    put_int(w, "rows", (uint64_t)d->count);
    put_int(w, "tokens", (uint64_t)d->tokens);
    put_int(w, "trained_tokens", (uint64_t)d->trained_tokens);
    put_int(w, "truncated", (uint64_t)d->truncated);
    json_put_key(w, "dropped");
    json_begin_object(w);
    for (int i = DROP_NONE + 1; i < DROP_REASONS; i++) put_int(w, drop_reason_name(i), (uint64_t)d->dropped[i]);
    json_end_object(w);
    json_end_object(w);
}

static void put_memory(const struct trainer *t, struct json_writer *w) {
    size_t bytes[PLAN_CLASS_COUNT];
    plan_class_bytes(t->session.device.plan, bytes);
    json_put_key(w, "memory");
    json_begin_object(w);
    put_int(w, "planned_bytes", t->memory.peak);
    for (int i = 0; i < PLAN_CLASS_COUNT; i++) put_int(w, plan_class_name(i), (uint64_t)bytes[i]);
    if (t->memory.gpu) put_int(w, "base", t->memory.base), put_int(w, "streamed", t->memory.streamed);
    put_int(w, t->memory.gpu ? "library" : "host", t->memory.fixed);
    put_int(w, "held_bytes", run_memory_held(&t->session));
    put_int(w, "peak_resident_bytes", (uint64_t)memory_peak());
    json_end_object(w);
}

int trainer_write_manifest(const struct trainer *t, const char *status, struct error *err) {
    struct pool pool = {0};
    struct text text = {0}, config = {0};
    struct json_writer w = {.out = &text, .style = JSON_PRETTY};
    char now[21];
    clock_iso(clock_wall(), now);
    json_begin_object(&w);
    put_text(&w, "graft", GRAFT_VERSION);
    put_text(&w, "status", status);
    put_text(&w, "run_id", t->run_id);
    put_text(&w, "written", now);
    put_text(&w, "command", t->options.command);
    put_int(&w, "seed", t->config->seed);
    put_int(&w, "step", (uint64_t)t->state.step);
    put_int(&w, "steps", (uint64_t)t->total_steps);
    put_int(&w, "tokens", (uint64_t)t->state.tokens);
    put_number(&w, "seconds", t->state.seconds);
    put_number(&w, "loss", t->state.last_loss);
    put_number(&w, "eval_loss_before", t->state.first_eval);
    put_number(&w, "eval_loss", adapter_eval(t));
    put_int(&w, "adapter_step", (uint64_t)(t->best_loaded ? t->state.best_step : t->state.step));
    put_text(&w, "arithmetic", t->state.arithmetic);
    put_text(&w, "backend", backend_describe(t->session.device.backend));
    put_int(&w, "trainable_parameters", (uint64_t)t->lora.n_params);
    put_base(t, &w);
    put_dataset("data", t->state.data_sha256, &t->train, &w);
    put_dataset("held_out", NULL, &t->held_out, &w);
    put_memory(t, &w);
    put_text(&w, "config_sha256", t->state.config_sha256);
    config_write_effective(t->config, &config);
    put_text(&w, "config", text_str(&config));
    if (strcmp(status, "finished") == 0) {
        json_put_key(&w, "sha256");
        json_begin_object(&w);
        put_file(&w, "adapter_model.safetensors", in_output(t, &pool, "adapter_model.safetensors"));
        if (t->has_gguf) put_file(&w, "adapter.gguf", in_output(t, &pool, "adapter.gguf"));
        json_end_object(&w);
    }
    json_end_object(&w);
    text_char(&text, '\n');
    const char *path = in_output(t, &pool, "run.json");
    int failed = text_failed(&text) || text_failed(&config) || !path ? error_memory(err, "run.json", text.length)
                                                                     : file_replace(path, text.data, text.length, err);
    text_free(&text);
    text_free(&config);
    pool_free(&pool);
    return failed;
}

// --- report.html

enum { MAX_FACTS = 24, MAX_SAMPLES = 16 };
struct facts {
    struct pool pool;
    struct card_pair list[MAX_FACTS];
    int n;
};

static void fact(struct facts *f, const char *key, const char *format, ...) __attribute__((format(printf, 3, 4)));
static void fact(struct facts *f, const char *key, const char *format, ...) {
    char value[512];
    va_list args;
    va_start(args, format);
    vsnprintf(value, sizeof value, format, args);
    va_end(args);
    char *copy = pool_strdup(&f->pool, value);
    if (f->n < MAX_FACTS && copy) f->list[f->n++] = (struct card_pair){key, copy};
}

static void rows_facts(const struct trainer *t, struct facts *f) {
    struct text ledger = {0};
    dataset_ledger(&t->train, &ledger);
    fact(f, "rows", "%s", text_str(&ledger));
    fact(f, "tokens", "%llu, %llu of them trained", (unsigned long long)t->train.tokens,
         (unsigned long long)t->train.trained_tokens);
    text_clear(&ledger);
    dataset_ledger(&t->held_out, &ledger);
    fact(f, "held out", "%s", text_str(&ledger));
    text_free(&ledger);
}

static void run_facts(const struct trainer *t, struct facts *f) {
    const struct model *m = &t->session.model;
    const struct run_config *c = t->config;
    fact(f, "base", "%s (%s, %.1f M parameters)", m->name, m->file_type, (double)m->total_parameters / 1e6);
    fact(f, "adapter", "LoRA r %d, alpha %g, dropout %g, %d linears, %.2f M parameters", t->adapter.r,
         (double)t->adapter.alpha, (double)t->adapter.dropout, adapter_count_adapted(&t->adapter),
         (double)t->lora.n_params / 1e6);
    for (size_t i = 0; i < c->datasets.count; i++) fact(f, "data", "%s", c->datasets.items[i].path);
    rows_facts(t, f);
    fact(f, "steps", "%lld of %lld, %g epochs", (long long)t->state.step, (long long)t->total_steps, c->num_epochs);
    fact(f, "batch", "%lld x %lld tokens, %lld accumulated%s", (long long)c->micro_batch_size,
         (long long)c->sequence_len, (long long)c->gradient_accumulation_steps, c->sample_packing ? ", packed" : "");
    fact(f, "learning rate", "%g, %lld warm-up steps", c->learning_rate, (long long)t->schedule.warmup);
    fact(f, "arithmetic", "%s on %s", t->state.arithmetic, backend_describe(t->session.device.backend));
    fact(f, "speed", "%.0f tokens/s over %.0f s", t->state.seconds > 0 ? (double)t->state.tokens / t->state.seconds : 0,
         t->state.seconds);
    fact(f, "seed", "%llu", (unsigned long long)c->seed);
}

static void memory_facts(const struct trainer *t, struct facts *f) {
    size_t bytes[PLAN_CLASS_COUNT];
    plan_class_bytes(t->session.device.plan, bytes);
    for (int i = 0; i < PLAN_CLASS_COUNT; i++) {
        if (bytes[i]) fact(f, plan_class_name(i), "%.1f MiB", (double)bytes[i] / 1048576);
    }
    if (t->memory.gpu) fact(f, "base", "%.1f MiB", (double)t->memory.base / 1048576);
    fact(f, t->memory.gpu ? "libraries, driver" : "vocabulary, data, program", "%.1f MiB",
         (double)t->memory.fixed / 1048576);
    fact(f, "planned", "%.1f MiB", (double)t->memory.peak / 1048576);
    fact(f, "held at the end", "%.1f MiB", (double)run_memory_held(&t->session) / 1048576);
}

static int write_report(const struct trainer *t, struct error *err) {
    struct facts run = {0}, memory = {0}, results = {0};
    run_facts(t, &run);
    memory_facts(t, &memory);
    fact(&results, "loss, last step", "%.4f", t->state.last_loss);
    if (!isnan(t->state.first_eval)) fact(&results, "eval loss, first", "%.4f", t->state.first_eval);
    if (!isnan(t->state.last_eval)) fact(&results, "eval loss, last", "%.4f", t->state.last_eval);
    if (t->best_loaded)
        fact(&results, "eval loss, of the adapter", "%.4f (step %lld)", t->state.best_metric,
             (long long)t->state.best_step);
    struct card_sample samples[MAX_SAMPLES];
    const char *log = in_output(t, &run.pool, "log.jsonl");
    struct report report = {.title = t->config->output_dir,
                            .facts = run.list,
                            .n_facts = run.n,
                            .log_path = log,
                            .samples = samples,
                            .n_samples = log ? trainer_read_samples(log, samples, MAX_SAMPLES, &run.pool) : 0,
                            .memory = memory.list,
                            .n_memory = memory.n,
                            .results = results.list,
                            .n_results = results.n};
    const char *path = in_output(t, &run.pool, "report.html");
    const char *curve = in_output(t, &run.pool, "loss.svg");
    int failed = log && path && curve ? report_write(path, &report, err) : error_memory(err, "the report", 64);
    if (!failed) failed = report_curve(curve, log, t->config->output_dir, err);
    pool_free(&run.pool);
    pool_free(&memory.pool);
    pool_free(&results.pool);
    return failed;
}

static void setting_facts(const struct trainer *t, struct facts *f) {
    const struct run_config *c = t->config;
    fact(f, "rank, alpha, dropout", "%d, %g, %g%s", t->adapter.r, (double)t->adapter.alpha, (double)t->adapter.dropout,
         t->adapter.rslora ? ", rank-stabilised" : "");
    fact(f, "linears", "%d", adapter_count_adapted(&t->adapter));
    fact(f, "learning rate", "%g", c->learning_rate);
    fact(f, "steps", "%lld", (long long)t->state.step);
    fact(f, "tokens a step", "%lld x %lld x %lld", (long long)c->micro_batch_size, (long long)c->sequence_len,
         (long long)c->gradient_accumulation_steps);
    fact(f, "arithmetic", "%s", t->state.arithmetic);
    fact(f, "seed", "%llu", (unsigned long long)c->seed);
    fact(f, "made with", "graft %s", GRAFT_VERSION);
}

static void data_facts(const struct trainer *t, struct facts *f) {
    for (size_t i = 0; i < t->config->datasets.count; i++) fact(f, "file", "%s", t->config->datasets.items[i].path);
    rows_facts(t, f);
}

static void result_facts(const struct trainer *t, struct facts *f) {
    fact(f, "loss of the last step", "%.4f", t->state.last_loss);
    if (!isnan(t->state.first_eval)) fact(f, "held-out loss before", "%.4f", t->state.first_eval);
    if (!isnan(adapter_eval(t))) fact(f, "held-out loss after", "%.4f", adapter_eval(t));
    if (t->best_loaded) fact(f, "adapter of step", "%lld, the best evaluation", (long long)t->state.best_step);
}

static int write_card(const struct trainer *t, struct error *err) {
    struct facts data = {0}, settings = {0}, results = {0};
    data_facts(t, &data);
    setting_facts(t, &settings);
    result_facts(t, &results);
    const char *file = strrchr(t->session.model.path, '/');
    char *name = pool_strdup(&data.pool, t->config->output_dir);
    size_t length = name ? strlen(name) : 0;
    while (length > 1 && name[length - 1] == '/') name[--length] = 0;
    const char *slash = name ? strrchr(name, '/') : NULL;
    struct card_sample samples[MAX_SAMPLES];
    const char *log = in_output(t, &data.pool, "log.jsonl");
    struct card card = {.name = slash && slash[1] ? slash + 1 : name,
                        .base_name = t->adapter.base_name,
                        .base_file = file ? file + 1 : t->session.model.path,
                        .r = t->adapter.r,
                        .has_gguf = t->has_gguf,
                        .curve = "loss.svg",
                        .samples = samples,
                        .n_samples = log ? trainer_read_samples(log, samples, MAX_SAMPLES, &data.pool) : 0,
                        .data = data.list,
                        .n_data = data.n,
                        .settings = settings.list,
                        .n_settings = settings.n,
                        .results = results.list,
                        .n_results = results.n};
    const char *path = in_output(t, &data.pool, "README.md");
    int failed = path ? card_write(path, &card, err) : error_memory(err, "the model card", 64);
    pool_free(&data.pool);
    pool_free(&settings.pool);
    pool_free(&results.pool);
    return failed;
}

int trainer_finish(struct trainer *t, struct error *err) {
    struct pool pool = {0};
    char *probe = in_output(t, &pool, "probe.jsonl"), time[32];
    t->finishing = true;
    int failed = probe ? 0 : error_memory(err, "a path", 64);
    failed = failed || load_best(t, err) || trainer_write_adapter(t, t->config->output_dir, err) ||
             evaluator_logprobs(&t->probe, t->lora.number, probe, err) || write_report(t, err) || write_card(t, err) ||
             trainer_write_manifest(t, "finished", err);
    pool_free(&pool);
    if (failed) return -1;
    runlog_duration(t->state.seconds, time);
    runlog_say(&t->log, "done: %lld steps in %s; adapter in %s (PEFT)%s%s%s; report: %s/report.html",
               (long long)t->state.step, time, t->config->output_dir, t->has_gguf ? " and " : "",
               t->has_gguf ? t->config->output_dir : "", t->has_gguf ? "/adapter.gguf (llama.cpp)" : "",
               t->config->output_dir);
    return 0;
}
