// The loop of a run. See trainer.h.
#include "train/trainer.h"

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NONFINITE_LIMIT = 3 }; // steps in a row whose gradient was not finite

static volatile sig_atomic_t stop_requested;

static void on_signal(int number) {
    if (stop_requested) _Exit(STATUS_STOPPED);
    stop_requested = number;
}

void trainer_install_signals(void) {
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGUSR1, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
}

// --- what happens when

// Steps between events, 0 = by epoch or never.
static int64_t interval(const struct trainer *t, struct config_when when) {
    if (when.kind == CONFIG_WHEN_STEPS) return (int64_t)when.value;
    if (when.kind == CONFIG_WHEN_FRACTION) return (int64_t)ceil(when.value * (double)t->total_steps);
    return 0;
}

static bool due(const struct trainer *t, struct config_when when, bool epoch_end) {
    if (when.kind == CONFIG_WHEN_NEVER) return false;
    if (when.kind == CONFIG_WHEN_EPOCH) return epoch_end;
    int64_t every = interval(t, when);
    return every > 0 && t->state.step % every == 0;
}

static int64_t logging_interval(const struct trainer *t) {
    if (t->config->logging_steps != CONFIG_UNSET) return t->config->logging_steps > 0 ? t->config->logging_steps : 1;
    int64_t n = t->total_steps / 200;
    return n < 1 ? 1 : n > 10 ? 10 : n;
}

// --- one step

static int locate(struct trainer *t, int64_t number, struct trainer_step *out, struct error *err) {
    int64_t accumulate = t->config->gradient_accumulation_steps, step = number;
    for (int64_t epoch = 0;; epoch++) {
        int64_t micro = loader_count(t->loader, epoch, err);
        if (micro < 0) return -1;
        int64_t steps = (micro + accumulate - 1) / accumulate;
        if (step >= steps) {
            step -= steps;
            continue;
        }
        int64_t left = micro - step * accumulate;
        *out = (struct trainer_step){.step = number,
                                     .epoch = epoch,
                                     .first = step * accumulate,
                                     .count = left < accumulate ? left : accumulate,
                                     .epoch_end = step + 1 == steps,
                                     .lr = schedule_lr(&t->schedule, number)};
        for (int64_t i = 0; i < out->count; i++) out->weight += loader_weight(t->loader, epoch, out->first + i, err);
        return 0;
    }
}

static int log_step(struct trainer *t, const struct step_result *r, double lr, int64_t tokens, double seconds,
                    struct error *err) {
    struct runlog_step line = {
        .step = t->state.step,
        .total = t->total_steps,
        .epoch = (double)t->state.step / (double)t->steps_per_epoch,
        .loss = r->loss,
        .aux_loss = t->engine.options.balance > 0 ? r->aux_loss : -1,
        .grad_norm = r->grad_norm,
        .lr = lr,
        .tokens = tokens,
        .trained_tokens = (int64_t)r->weight,
        .tokens_per_second = (double)tokens / seconds,
        .seconds = seconds,
        .peak_bytes = run_memory_held(&t->session),
        .log = t->state.step % logging_interval(t) == 0 || t->state.step == t->total_steps,
    };
    return runlog_step(&t->log, &line, err);
}

// Stops a run that went wrong: three bad gradients in a row, or a loss above the watchdog's threshold for too long.
static int watch(struct trainer *t, const struct trainer_step *step, const struct step_result *r, struct error *err) {
    const struct run_config *c = t->config;
    struct train_state *s = &t->state;
    const char *advice = "lower learning_rate, or look at the rows of this step with `graft check`";
    char newest[64] = "no checkpoint was written yet";
    if (t->checkpoint_step >= 0)
        snprintf(newest, sizeof newest, "the newest checkpoint is step %lld", (long long)t->checkpoint_step);
    s->nonfinite_in_row = r->nonfinite ? s->nonfinite_in_row + 1 : 0;
    if (r->nonfinite) {
        char where[256];
        if (trainer_name_nonfinite(t, step, where, sizeof where, err)) return -1;
        runlog_say(&t->log, "step %lld: the gradient is not finite, the update was skipped; it begins at %s",
                   (long long)s->step, where);
    }
    if (s->nonfinite_in_row >= NONFINITE_LIMIT) {
        return error_set(err, STATUS_NUMERIC, "step %lld: %d gradients in a row were not finite; %s; %s",
                         (long long)s->step, NONFINITE_LIMIT, newest, advice);
    }
    if (c->loss_watchdog_threshold == CONFIG_UNSET) return 0;
    s->steps_over_watchdog = r->loss > c->loss_watchdog_threshold ? s->steps_over_watchdog + 1 : 0;
    if (s->steps_over_watchdog < c->loss_watchdog_patience) return 0;
    return error_set(err, STATUS_NUMERIC,
                     "step %lld: the loss was above loss_watchdog_threshold %g for %lld steps; %s; %s",
                     (long long)s->step, c->loss_watchdog_threshold, (long long)s->steps_over_watchdog, newest, advice);
}

// Leaves the run in order: the step that was under way is dropped, the state before it saved.
static int stop(struct trainer *t, struct error *err) {
    int64_t step = t->state.step;
    if (step > 0 && !t->finishing && trainer_save(t, true, err)) return -1;
    return error_set(err, STATUS_STOPPED,
                     "stopped by signal %d at step %lld of %lld; %s; go on with `graft train ... --resume`",
                     (int)stop_requested, (long long)step, (long long)t->total_steps,
                     step > 0 ? "everything up to there is saved" : "nothing was trained yet");
}

// The hook of evaluations and generations.
static int between_pieces(void *context, int64_t done, int64_t total, struct error *err) {
    (void)done, (void)total;
    const struct trainer *t = context;
    // Nothing could resume the closing phase of a run without the optimiser's state: it takes seconds and is finished.
    if (!stop_requested || (t->finishing && t->config->save_only_model)) return 0;
    return stop(context, err);
}

static int one_step(struct trainer *t, bool *epoch_end, struct error *err) {
    struct trainer_step step;
    struct step_result result;
    double start = clock_now();
    int64_t tokens = 0;
    if (locate(t, t->state.step, &step, err) ||
        step_begin(&t->engine, step.step, step.count, step.lr, step.weight, err))
        return -1;
    for (int64_t i = 0; i < step.count; i++) {
        if (stop_requested) return stop(t, err);
        if (loader_batch(t->loader, step.epoch, step.first + i, &t->batch, err) ||
            step_micro(&t->engine, &t->batch, err))
            return -1;
        tokens += t->batch.tokens;
    }
    if (step_end(&t->engine, &result, err)) return -1;
    t->state.step++;
    t->state.tokens += tokens;
    t->state.last_loss = result.loss;
    *epoch_end = step.epoch_end;
    double seconds = clock_now() - start;
    t->state.seconds += seconds;
    if (log_step(t, &result, step.lr, tokens, seconds, err)) return -1;
    return watch(t, &step, &result, err);
}

// --- between steps

static int evaluate(struct trainer *t, struct error *err) {
    struct eval_loss result;
    double start = clock_now();
    if (evaluator_loss(&t->evaluator, t->lora.number, &result, err)) return -1;
    if (t->generates && trainer_generate_samples(t, err)) return -1;
    // From here on nothing is interrupted: the evaluation counts as a whole or was not made.
    double epoch = (double)t->state.step / (double)t->steps_per_epoch;
    if (runlog_eval(&t->log, t->state.step, epoch, result.loss, result.tokens, clock_now() - start, err)) return -1;
    t->state.last_eval = result.loss;
    t->state.last_eval_step = t->state.step;
    if (isnan(t->state.first_eval)) t->state.first_eval = result.loss;
    struct train_state *s = &t->state;
    if (s->step == 0) return 0; // as in transformers, the base's own loss is no candidate for the best
    bool better = s->best_step < 0 ||
                  (t->config->greater_is_better ? result.loss > s->best_metric : result.loss < s->best_metric);
    s->evals_without_gain = better ? 0 : s->evals_without_gain + 1;
    if (better) s->best_metric = result.loss, s->best_step = s->step;
    return better && t->config->load_best_model_at_end ? trainer_save(t, false, err) : 0;
}

// A file that somebody puts into the output folder asks for a checkpoint.
static bool triggered(const struct trainer *t) {
    const struct run_config *c = t->config;
    if (!c->dynamic_checkpoint.enabled || t->state.step % c->dynamic_checkpoint.check_interval != 0) return false;
    char *path = path_join(c->output_dir, c->dynamic_checkpoint.trigger_file_path);
    bool there = path && file_exists(path);
    if (there) file_remove(path, NULL);
    mem_free(path);
    return there;
}

static bool out_of_patience(struct trainer *t) {
    const struct train_state *s = &t->state;
    int64_t patience = t->config->early_stopping_patience;
    if (patience == CONFIG_UNSET || s->evals_without_gain < patience) return false;
    runlog_say(&t->log, "early stop: %lld evaluations without a better eval_loss than %.4f at step %lld",
               (long long)s->evals_without_gain, s->best_metric, (long long)s->best_step);
    return true;
}

static int between_steps(struct trainer *t, bool epoch_end, bool *done, struct error *err) {
    const struct run_config *c = t->config;
    bool last = t->state.step == t->total_steps;
    if (t->evaluates && (due(t, c->eval_when, epoch_end) || (last && c->eval_when.kind != CONFIG_WHEN_NEVER))) {
        if (t->state.last_eval_step != t->state.step && evaluate(t, err)) return -1;
        *done = out_of_patience(t);
    }
    bool save =
        due(t, c->save_when, epoch_end) || (c->save_first_step && t->state.step == 1) || triggered(t) || last || *done;
    return save ? trainer_save(t, false, err) : 0;
}

// What is about to happen, in three lines.
static void announce(struct trainer *t) {
    const struct model *m = &t->session.model;
    struct text rows = {0};
    dataset_ledger(&t->train, &rows);
    if (t->evaluates) {
        text_add(&rows, "; held out: ");
        dataset_ledger(&t->held_out, &rows);
    }
    runlog_say(&t->log, "base: %s, %s, %.1f M parameters; adapter: r %d on %d linears, %.2f M parameters", m->name,
               m->file_type, (double)m->total_parameters / 1e6, t->adapter.r, adapter_count_adapted(&t->adapter),
               (double)t->lora.n_params / 1e6);
    struct error why = {0};
    if (gguf_adapter_check(&t->adapter, &why)) runlog_say(&t->log, "no adapter.gguf will be written: %s", why.text);
    int ignored;
    const char *first = peft_ignored(&t->adapter, &ignored);
    if (first)
        runlog_say(
            &t->log,
            "PEFT with transformers 5 will load this adapter without %s%s, which it looks for under other names; "
            "experts that it shall apply are named in lora_target_parameters: [experts.gate_up_proj, "
            "experts.down_proj]",
            first, ignored > 1 ? " and others" : "");
    runlog_say(&t->log, "data: %s", text_str(&rows));
    runlog_say(&t->log, "run: %lld steps, %s on %s, %.0f MiB planned", (long long)t->total_steps, t->state.arithmetic,
               backend_describe(t->session.device.backend), (double)t->memory.peak / 1048576);
    text_free(&rows);
}

static int start(struct trainer *t, struct error *err) {
    const char *folder = t->config->output_dir, *named = t->config->resume_from_checkpoint;
    bool may_hold = t->options.overwrite || t->options.go_on || (named && output_holds(folder, named));
    if (output_prepare(folder, may_hold, &t->lock, err)) return -1;
    if (trainer_start_device(t, err)) return -1;
    if (t->options.overwrite && output_clear(folder, err)) return -1; // only now that the new run can start
    trainer_set_hashes(t);
    t->evaluator.between = t->probe.between = t->session.generator.between = between_pieces;
    t->evaluator.context = t->probe.context = t->session.generator.context = t;
    if (t->options.resume && trainer_resume(t, err)) return -1;
    if (t->state.step == 0 && trainer_start_pissa(t, err)) return -1;
    if (runlog_open(t->config->output_dir, t->state.log_bytes, t->state.step, t->config->use_tensorboard, &t->log, err))
        return -1;
    announce(t);
    if (trainer_write_manifest(t, "running", err)) return -1;
    return t->evaluates && t->config->eval_at_start && t->state.step == 0 ? evaluate(t, err) : 0;
}

// What was due at the step that a checkpoint ends with, where the run was stopped before it was done.
static int catch_up(struct trainer *t, bool *done, struct error *err) {
    struct trainer_step last;
    if (locate(t, t->state.step - 1, &last, err) || between_steps(t, last.epoch_end, done, err)) return -1;
    if (!*done) *done = out_of_patience(t);
    return 0;
}

int trainer_run(struct trainer *t, struct error *err) {
    bool epoch_end = false, done = false;
    if (start(t, err)) {
        if (err && err->code == STATUS_STOPPED) trainer_write_manifest(t, "stopped", NULL);
        return -1;
    }
    int failed = t->state.step > 0 ? catch_up(t, &done, err) : 0;
    while (t->state.step < t->total_steps && !done && !failed) {
        failed = one_step(t, &epoch_end, err) || between_steps(t, epoch_end, &done, err);
    }
    if (!failed) return trainer_finish(t, err);
    trainer_write_manifest(t, err && err->code == STATUS_STOPPED ? "stopped" : "failed", NULL);
    return -1;
}
