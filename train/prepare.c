// The part of trainer.h before step 0: base, dataset, adapter, schedule, memory plan.
#include "train/trainer.h"

#include "data/lint.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { PROBE_ROWS = 32 };

// What load_in_4bit and sequence_len ask of the base.
static int check_base(const struct trainer *t, struct error *err) {
    const struct run_config *c = t->config;
    const struct model *m = &t->session.model;
    bool packed = !base_is_plain(m);
    if (!packed && c->base_must_be_quantised) {
        return error_set(
            err, STATUS_CONFIG,
            "adapter: qlora needs a quantised base, and %s holds %s weights; set load_in_4bit: true, or adapter: lora",
            m->path, m->file_type);
    }
    bool own = strcmp(m->path, m->base->path) != 0; // from our cache or the hub's
    if (packed && !own && (c->load_in_4bit || c->load_in_8bit)) {
        fprintf(stderr, "%s: the base is quantised already (%s) and stays as it is\n",
                c->load_in_4bit ? "load_in_4bit" : "load_in_8bit", m->file_type);
    }
    int64_t longest = c->sequence_len > c->eval_sequence_len ? c->sequence_len : c->eval_sequence_len;
    if (longest > m->arch.context) {
        fprintf(stderr, "sequence_len %lld: the base was made for %d positions; what lies beyond is new to it\n",
                (long long)longest, m->arch.context);
    }
    return 0;
}

static int open_base(struct trainer *t, struct error *err) {
    const struct run_config *c = t->config;
    struct text notice = {0};
    struct session_options options;
    if (session_options_of(c, &options, &notice, err)) {
        text_free(&notice);
        return -1;
    }
    if (notice.length) fprintf(stderr, "%s\n", text_str(&notice));
    text_free(&notice);
    return session_open(&options, &t->session, err) || check_base(t, err) ? -1 : 0;
}

// Errors in the data stop a run unless the configuration names them.
static int lint(struct trainer *t, struct error *err) {
    const struct run_config *c = t->config;
    struct lint_report report = {0};
    if (lint_check_names(c->lint_waive.items, c->lint_waive.count, err)) return -1;
    if (lint_dataset(&t->train, t->session.tokenizer, (uint32_t)t->session.model.arch.vocab, &report, err)) return -1;
    if (t->evaluates && lint_overlap(&t->train, &t->held_out, &report, err)) return -1;
    if (!lint_stops(&report, c->lint_waive.items, c->lint_waive.count)) return 0;
    for (int i = 0; i < LINT_KINDS; i++) {
        struct lint_report one = {0};
        one.findings[i] = report.findings[i];
        if (!lint_stops(&one, c->lint_waive.items, c->lint_waive.count)) continue;
        error_set(err, STATUS_DATA,
                  "%s:%u: %s: %llu rows, this is the first; nothing was trained; mend the data (`graft check` shows "
                  "more) or put %s into lint_waive",
                  report.findings[i].paths[0], report.findings[i].lines[0], lint_kind_meaning(i),
                  (unsigned long long)report.findings[i].count, lint_kind_name(i));
    }
    return -1;
}

static int read_data(struct trainer *t, struct error *err) {
    const struct run_config *c = t->config;
    if (session_read_data(&t->session, c, &c->datasets, c->sequence_len, &t->train, err)) return -1;
    if (c->test_datasets.count &&
        session_read_data(&t->session, c, &c->test_datasets, c->eval_sequence_len, &t->held_out, err)) {
        return -1;
    }
    if (c->val_set_size > 0 && dataset_split(&t->train, c->val_set_size, c->seed, &t->held_out, err)) return -1;
    t->evaluates = t->held_out.count > 0;
    if (c->generate_samples && t->evaluates && session_needs_text(&t->session, "generate_samples shows text", err))
        return -1;
    return lint(t, err);
}

static double or_default(double value, double fallback) {
    return value == CONFIG_UNSET ? fallback : value;
}

static int make_schedule(struct trainer *t, struct error *err) {
    const struct run_config *c = t->config;
    int64_t accumulate = c->gradient_accumulation_steps, steps = 0;
    int64_t micro = loader_count(t->loader, 0, err);
    if (micro < 0) return -1;
    t->steps_per_epoch = (micro + accumulate - 1) / accumulate;
    int64_t epochs = (int64_t)ceil(c->num_epochs);
    for (int64_t e = 0; e < epochs && c->max_steps == CONFIG_UNSET; e++) { // packing makes epochs differ by a few
        if ((micro = loader_count(t->loader, e, err)) < 0) return -1;
        int64_t here = (micro + accumulate - 1) / accumulate;
        double part = fmin(1, c->num_epochs - (double)e);
        steps += (int64_t)ceil(part * (double)here - 1e-9);
    }
    t->total_steps = c->max_steps != CONFIG_UNSET ? c->max_steps : steps;
    if (t->total_steps < 1)
        return error_set(err, STATUS_CONFIG, "the run has no steps: num_epochs %g, max_steps %lld", c->num_epochs,
                         (long long)c->max_steps);
    int64_t warmup = schedule_warmup(t->total_steps, c->warmup_steps, c->warmup_ratio);
    static const enum schedule_kind kinds[] = {[CONFIG_LR_CONSTANT] = SCHEDULE_CONSTANT,
                                               [CONFIG_LR_CONSTANT_WITH_WARMUP] = SCHEDULE_CONSTANT_WARMUP,
                                               [CONFIG_LR_LINEAR] = SCHEDULE_LINEAR,
                                               [CONFIG_LR_COSINE] = SCHEDULE_COSINE,
                                               [CONFIG_LR_REX] = SCHEDULE_REX,
                                               [CONFIG_LR_ONE_CYCLE] = SCHEDULE_ONE_CYCLE,
                                               [CONFIG_LR_INVERSE_SQRT] = SCHEDULE_INVERSE_SQRT,
                                               [CONFIG_LR_POLYNOMIAL] = SCHEDULE_POLYNOMIAL};
    double rising = (double)warmup / (double)t->total_steps;
    // axolotl has three cosines: with a quadratic warm-up, with a floor, with a floor that comes early.
    bool quadratic = c->lr_quadratic_warmup && c->lr_scheduler == CONFIG_LR_COSINE;
    bool floored = !quadratic && c->cosine_min_lr_ratio != CONFIG_UNSET;
    t->schedule = (struct schedule){
        .kind = kinds[c->lr_scheduler],
        .lr = c->learning_rate,
        .steps = t->total_steps,
        .warmup = warmup,
        .min_ratio = quadratic ? 0 : or_default(c->cosine_min_lr_ratio, 0),
        .constant_ratio = floored ? or_default(c->cosine_constant_lr_ratio, 0) : 0,
        .quadratic_warmup = quadratic,
        .cycles = or_default(c->lr_scheduler_kwargs.num_cycles, 0.5),
        .power = or_default(c->lr_scheduler_kwargs.power, 1),
        .lr_end = or_default(c->lr_scheduler_kwargs.lr_end, 1e-7),
        .timescale = or_default((double)c->lr_scheduler_kwargs.timescale, 0),
        .pct_start = or_default(c->lr_scheduler_kwargs.pct_start, rising),
        .div_factor = or_default(c->lr_scheduler_kwargs.div_factor, 25),
        .final_div_factor = or_default(c->lr_scheduler_kwargs.final_div_factor, 1e4),
    };
    return 0;
}

// Borrows the first rows in use of the held-out set, or of the training set when there is none.
static int probe_rows(struct trainer *t, struct error *err) {
    const struct dataset *from = t->evaluates ? &t->held_out : &t->train;
    struct dataset *to = &t->probe_rows;
    to->samples = pool_array(&to->pool, PROBE_ROWS, sizeof *to->samples);
    if (!to->samples) return error_memory(err, "probe rows", PROBE_ROWS * sizeof *to->samples);
    for (size_t i = 0; i < from->count && to->count < PROBE_ROWS; i++) {
        const struct sample *s = &from->samples[i];
        if (s->dropped) continue;
        to->samples[to->count++] = *s;
        if (s->count > to->longest) to->longest = s->count;
    }
    return 0;
}

static int open_loaders(struct trainer *t, struct error *err) {
    const struct run_config *c = t->config;
    struct loader_options loading = {.micro_batch_size = (int)c->micro_batch_size,
                                     .sequence_len = (int)c->sequence_len,
                                     .packing = c->sample_packing,
                                     .group_by_length = c->group_by_length,
                                     .shuffle = c->shuffle_merged_datasets,
                                     .seed = c->seed,
                                     .buckets = c->pad_to_sequence_len ? 1 : 8};
    struct eval_options evaluating = {
        .batch_size = c->eval_batch_size, .sequence_len = c->eval_sequence_len, .packing = c->eval_sample_packing};
    t->loader = loader_open(&t->train, &loading, err);
    if (!t->loader) return -1;
    if (t->evaluates && evaluator_open(&t->session, "evaluate", &t->held_out, &evaluating, &t->evaluator, err))
        return -1;
    if (probe_rows(t, err)) return -1;
    return evaluator_open(&t->session, "probe", &t->probe_rows, &evaluating, &t->probe, err);
}

// The weight of the routers' loss, 0 where it is off.
static int balance_weight(const struct trainer *t, float *out, struct error *err) {
    const struct moe_arch *m = &t->session.model.arch.moe;
    enum config_auto wanted = t->config->model_config.output_router_logits;
    double given = t->config->model_config.router_aux_loss_coef;
    *out = 0;
    if (wanted == CONFIG_FALSE || (wanted == CONFIG_AUTO && !m->balance)) return 0;
    if (m->experts == 0)
        return error_set(err, STATUS_CONFIG, "model_config.output_router_logits: %s has no experts",
                         t->session.model.path);
    if (!m->balanced && wanted == CONFIG_AUTO) return 0; // transformers computes none either
    if (!m->balanced)
        return error_set(err, STATUS_CONFIG,
                         "model_config.output_router_logits: transformers has no load-balancing loss for '%s', whose "
                         "routers are balanced otherwise; remove it",
                         t->session.model.arch.model_type);
    if (given == CONFIG_UNSET && m->balance_weight < 0)
        return error_set(err, STATUS_CONFIG,
                         "model_config.output_router_logits: %s does not say how much the loss weighs; give "
                         "model_config.router_aux_loss_coef (most families: 0.001)",
                         t->session.model.path);
    *out = given == CONFIG_UNSET ? m->balance_weight : (float)given;
    return 0;
}

// Adapter, step engine: made once while the plan is recorded and once more on the real device.
static int attach(struct trainer *t, struct error *err) {
    const struct run_config *c = t->config;
    struct step_options options = {
        .accumulate = (int)c->gradient_accumulation_steps,
        .neftune_alpha = (float)or_default(c->neftune_noise_alpha, 0),
        .checkpoint_layers = t->checkpoint_layers,
        .keep_attention = c->selective_checkpointing,
        .max_grad_norm = c->max_grad_norm,
        .beta1 = (float)c->adam_beta1,
        .beta2 = (float)c->adam_beta2,
        .eps = (float)c->adam_epsilon,
        .weight_decay = (float)c->weight_decay,
        .lr_ratio_b = (float)or_default(c->loraplus_lr_ratio, 1),
        .lr_ratio_embedding = c->loraplus_lr_ratio == CONFIG_UNSET || c->learning_rate == 0
                                  ? 1
                                  : (float)(c->loraplus_lr_embedding / c->learning_rate),
        .seed = c->seed,
    };
    step_close(&t->engine);
    if (balance_weight(t, &options.balance, err)) return -1;
    return lora_attach(&t->session.decoder, &t->adapter, 0, true, options.accumulate > 1, &t->lora, err) ||
                   step_open(&t->session, &t->lora, &options, &t->engine, err)
               ? -1
               : 0;
}

static int choose_limits(struct trainer *t, int32_t rows, struct decoder_limits *limits, struct error *err) {
    int32_t max_new;
    float balance;
    if (balance_weight(t, &balance, err)) return -1;
    *limits = (struct decoder_limits){
        .max_rows = rows, .max_seqs = loader_max_seqs(t->loader), .max_positions = t->train.longest + 1};
    if (t->evaluates) evaluator_limits(&t->evaluator, limits);
    evaluator_limits(&t->probe, limits);
    t->generates = t->config->generate_samples && t->evaluates;
    limits->balance = balance > 0;
    if (!t->generates) return 0;
    limits->cache_seqs = (int32_t)t->config->num_generation_samples;
    if (limits->cache_seqs > 8) limits->cache_seqs = 8;
    limits->cache_len =
        generation_length(&t->held_out, &max_new) - max_new + (int32_t)t->config->generation_max_new_tokens;
    if (limits->max_positions < limits->cache_len) limits->max_positions = limits->cache_len;
    return 0;
}

// The whole program of the run, over a device that computes nothing.
static int record_once(struct trainer *t, const struct decoder_limits *limits, const int32_t *buckets, int n,
                       struct error *err) {
    if (session_record(&t->session, limits, err) || attach(t, err)) return -1;
    if (step_record(&t->engine, buckets, n, t->batch.max_seqs, err)) return -1;
    double rows = 0;
    for (int i = 0; i < n; i++) rows += buckets[i];
    t->flops_per_token = t->session.device.flops / rows;
    if (trainer_record_pissa(t, err)) return -1;
    if (t->evaluates && evaluator_record(&t->evaluator, t->lora.number, err)) return -1;
    if (evaluator_record(&t->probe, t->lora.number, err)) return -1;
    return t->generates ? generator_record(&t->session.generator, 1, err) : 0;
}

// What must still be found: what the process holds already is not counted on the CPU.
static uint64_t needs(const struct run_memory *m) {
    return m->gpu ? m->peak : m->arena;
}

struct program {
    int32_t buckets[8];
    int n;
    struct decoder_limits limits;
};

// Does the run fit when so many layers are computed again?
static int try_layers(struct trainer *t, const struct program *p, int layers, bool *fits, struct error *err) {
    if (t->session.device.plan) session_forget(&t->session);
    t->checkpoint_layers = layers;
    if (record_once(t, &p->limits, p->buckets, p->n, err) || run_memory_of(&t->session, &t->memory, err)) return -1;
    *fits = t->memory.there == 0 || needs(&t->memory) <= t->memory.there;
    return 0;
}

// As few layers as memory asks for: each costs a third of its time.
static int record(struct trainer *t, struct error *err) {
    struct program p = {.n = 0};
    p.n = loader_buckets(t->loader, p.buckets);
    if (choose_limits(t, p.buckets[p.n - 1], &p.limits, err)) return -1;
    if (batch_open(&t->batch, p.buckets[p.n - 1], loader_max_seqs(t->loader), err)) return -1;
    bool fits;
    int none = 0, all = t->session.model.arch.layers; // what does not fit, what may
    if (try_layers(t, &p, t->config->gradient_checkpointing == CONFIG_TRUE ? all : 0, &fits, err)) return -1;
    if (t->config->gradient_checkpointing != CONFIG_AUTO || fits) return 0;
    uint64_t needed = needs(&t->memory), there = t->memory.there;
    while (none + 1 < all) {
        int middle = (none + all) / 2;
        if (try_layers(t, &p, middle, &fits, err)) return -1;
        if (fits)
            all = middle;
        else
            none = middle;
    }
    if (t->checkpoint_layers != all && try_layers(t, &p, all, &fits, err)) return -1;
    fprintf(stderr,
            "gradient_checkpointing: on for %d of %d layers, without it %.0f MiB are needed and %.0f MiB are there\n",
            all, t->session.model.arch.layers, (double)needed / 1048576, (double)there / 1048576);
    return 0;
}

int trainer_prepare(const struct run_config *config, const struct trainer_options *options, struct trainer *out,
                    struct error *err) {
    struct trainer *t = out;
    *t = (struct trainer){.config = config, .options = *options, .checkpoint_step = -1};
    t->state = (struct train_state){
        .last_eval_step = -1, .best_step = -1, .first_eval = NAN, .last_eval = NAN, .last_loss = NAN};
    return open_base(t, err) || read_data(t, err) || trainer_make_adapter(t, err) || open_loaders(t, err) ||
                   make_schedule(t, err) || record(t, err)
               ? -1
               : 0;
}

// What is planned must be there before step 0, not run out after it.
static int check_memory(struct trainer *t, struct error *err) {
    uint64_t needed = needs(&t->memory), there = t->memory.gpu ? t->memory.there : memory_available();
    if (needed <= there) return 0;
    return error_set(
        err, STATUS_MEMORY,
        "the run needs %.0f MiB and %.0f MiB are there; nothing was trained; %smicro_batch_size (now %lld) or "
        "sequence_len (now %lld) make it smaller, `graft plan` says by how much",
        (double)needed / 1048576, (double)there / 1048576,
        t->checkpoint_layers ? "" : "gradient_checkpointing: true, a lower ", (long long)t->config->micro_batch_size,
        (long long)t->config->sequence_len);
}

int trainer_start_device(struct trainer *t, struct error *err) {
    if (check_memory(t, err)) return -1;
    bool fresh = !t->config->lora_model_dir;
    if (fresh) trainer_copy_base(t);
    return session_start(&t->session, err) || run_memory_of(&t->session, &t->memory, err) || attach(t, err) ||
                   lora_upload(&t->lora, err) || (fresh && lora_start_magnitudes(&t->lora, err))
               ? -1
               : 0;
}

void trainer_close(struct trainer *t) {
    step_close(&t->engine);
    evaluator_close(&t->evaluator);
    evaluator_close(&t->probe);
    pool_free(&t->probe_rows.pool);
    batch_close(&t->batch);
    loader_close(t->loader);
    adapter_free(&t->adapter);
    session_close(&t->session);
    dataset_free(&t->train);
    dataset_free(&t->held_out);
    runlog_close(&t->log);
    if (t->lock.path) file_unlock(&t->lock);
    *t = (struct trainer){0};
}
