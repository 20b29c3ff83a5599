// graft train, graft plan.
#include "data/json.h"
#include "train/command.h"
#include "train/forecast.h"
#include "train/shape_plan.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

int config_from_arguments(int argc, char **argv, struct run_config *config, struct error *err) {
    if (argc < 1) return error_set(err, STATUS_USAGE, "which configuration? graft COMMAND CONFIG.yml [key=value ...]");
    struct text report = {0};
    int failed = config_load_report(argv[0], argc - 1, (const char *const *)argv + 1, config, &report, err);
    if (failed && report.length && strchr(text_str(&report), '\n') != report.data + report.length - 1) {
        fputs(text_str(&report), stderr); // more than one problem: all of them first
    }
    for (size_t i = 0; !failed && i < config->notices.count; i++) fprintf(stderr, "%s\n", config->notices.items[i]);
    text_free(&report);
    return failed;
}

int command_train(int argc, char **argv, struct error *err) {
    struct option options[] = {{.name = "--resume"}, {.name = "--overwrite"}};
    struct text command = {0};
    text_add(&command, "graft train");
    for (int i = 0; i < argc; i++) text_printf(&command, " %s", argv[i]);
    struct run_config config = {0};
    int failed =
        options_parse(&argc, argv, options, COUNT_OF(options), err) || config_from_arguments(argc, argv, &config, err);
    if (!failed) {
        bool go_on = option_flag(options, "--resume") || config.auto_resume_from_checkpoints;
        struct trainer_options train = {.resume = go_on || config.resume_from_checkpoint,
                                        .go_on = go_on,
                                        .overwrite = option_flag(options, "--overwrite"),
                                        .command = text_str(&command)};
        bool finished = train.resume && !train.overwrite && output_finished(config.output_dir);
        const char *named = config.resume_from_checkpoint;
        if (train.overwrite && named && output_holds(config.output_dir, named)) {
            failed = error_set(err, STATUS_USAGE, "--overwrite would remove %s, from which the run is to go on", named);
        } else if (train.overwrite && option_flag(options, "--resume")) {
            failed = error_set(err, STATUS_USAGE, "--resume goes on with a run, --overwrite removes it: give one");
        } else if (finished && go_on) {
            fprintf(stderr, "%s: the run is finished already; nothing to do\n", config.output_dir);
        } else if (finished) {
            failed =
                error_set(err, STATUS_CANTCREATE, "%s: holds a finished run; to go on from %s set another output_dir",
                          config.output_dir, config.resume_from_checkpoint);
        } else {
            struct trainer *t = mem_zalloc(1, sizeof *t);
            if (!t)
                failed = error_memory(err, "the trainer", sizeof *t);
            else {
                trainer_install_signals();
                failed = trainer_prepare(&config, &train, t, err) || trainer_run(t, err);
                trainer_close(t);
                mem_free(t);
            }
        }
        config_free(&config);
    }
    text_free(&command);
    return failed ? -1 : 0;
}

static void plan_json(const struct trainer *t, const struct forecast *f, struct text *out) {
    struct json_writer w = {.out = out, .style = JSON_PRETTY};
    size_t bytes[PLAN_CLASS_COUNT];
    plan_class_bytes(t->session.device.plan, bytes);
    json_begin_object(&w);
    json_put_key(&w, "peak_bytes");
    json_put_int(&w, (int64_t)t->memory.peak);
    json_put_key(&w, "classes");
    json_begin_object(&w);
    for (int i = 0; i < PLAN_CLASS_COUNT; i++) {
        json_put_key(&w, plan_class_name(i));
        json_put_int(&w, (int64_t)bytes[i]);
    }
    if (t->memory.gpu) json_put_key(&w, "base"), json_put_int(&w, (int64_t)t->memory.base);
    json_put_key(&w, t->memory.gpu ? "library" : "host");
    json_put_int(&w, (int64_t)t->memory.fixed);
    json_end_object(&w);
    json_put_key(&w, "trainable_parameters");
    json_put_int(&w, t->lora.n_params);
    json_put_key(&w, "total_parameters");
    json_put_int(&w, (int64_t)t->session.model.total_parameters);
    json_put_key(&w, "flops_per_token");
    json_put_int(&w, llround(t->flops_per_token));
    json_put_key(&w, "steps");
    json_put_int(&w, t->total_steps);
    if (f->known) {
        json_put_key(&w, "predicted_seconds");
        json_put_double(&w, round(f->seconds * 1e3) / 1e3);
        json_put_key(&w, "predicted_tokens_per_second");
        json_put_double(&w, round(f->tokens_per_second * 10) / 10);
    }
    json_put_key(&w, "programs");
    json_begin_object(&w);
    for (int i = 0; i < plan_program_count(t->session.device.plan); i++) {
        size_t size;
        json_put_key(&w, plan_program(t->session.device.plan, i, &size, NULL));
        json_put_int(&w, (int64_t)size);
    }
    json_end_object(&w);
    json_end_object(&w);
    text_char(out, '\n');
}

static void put_duration(double seconds, struct text *out) {
    double minutes = seconds / 60;
    if (seconds < 100)
        text_printf(out, "about %.0f s", fmax(1, seconds));
    else if (minutes < 100)
        text_printf(out, "about %.0f min", minutes);
    else
        text_printf(out, "about %.1f h", minutes / 60);
}

static void put_fixed(const struct run_memory *m, struct text *out) {
    if (!m->gpu) {
        text_printf(out, "  %-12s %9.1f MiB  (vocabulary, data, program)\n", "host", (double)m->fixed / 1048576);
        return;
    }
    text_printf(out, "  %-12s %9.1f MiB", "base", (double)m->base / 1048576);
    if (m->streamed)
        text_printf(out, "  (and %.1f MiB in locked host memory, streamed)", (double)m->streamed / 1048576);
    text_printf(out, "\n  %-12s %9.1f MiB  (products, driver)\n", "library", (double)m->fixed / 1048576);
}

static void plan_text(const struct trainer *t, const struct forecast *f, struct text *out) {
    const struct plan *plan = t->session.device.plan;
    const struct model *m = &t->session.model;
    size_t bytes[PLAN_CLASS_COUNT];
    plan_class_bytes(plan, bytes);
    text_printf(out, "base        %s, %s, %.1f M parameters, %.1f MiB mapped (not counted below)\n", m->name,
                m->file_type, (double)m->total_parameters / 1e6, (double)m->file_bytes / 1048576);
    text_printf(out, "adapter     %lld trainable parameters on %d linears\n", (long long)t->lora.n_params,
                adapter_count_adapted(&t->adapter));
    text_printf(out, "data        %zu rows, %llu tokens, %llu trained; fill %.1f %%\n", t->train.count,
                (unsigned long long)t->train.tokens, (unsigned long long)t->train.trained_tokens,
                100 * loader_fill(t->loader));
    text_printf(out, "steps       %lld (%lld an epoch), %.1f MFLOP per token\n", (long long)t->total_steps,
                (long long)t->steps_per_epoch, t->flops_per_token / 1e6);
    text_add(out, "time        ");
    if (f->known) {
        put_duration(f->seconds, out);
        text_printf(out, " at %.0f tok/s, by what a short product takes on this machine now\n\n", f->tokens_per_second);
    } else
        text_add(out, "not predicted on a GPU\n\n");
    text_printf(out, "memory at the peak, in \"%s\"\n", plan_peak_program(plan));
    for (int i = 0; i < PLAN_CLASS_COUNT; i++) {
        if (bytes[i]) text_printf(out, "  %-12s %9.1f MiB\n", plan_class_name(i), (double)bytes[i] / 1048576);
    }
    put_fixed(&t->memory, out);
    text_printf(out, "  %-12s %9.1f MiB\n", "peak", (double)t->memory.peak / 1048576);
}

static int plan_shapes(const struct run_config *config, bool json, struct error *err) {
    struct shape_plan plan;
    struct text out = {0};
    if (shape_plan_make(config, &plan, err)) return -1;
    if (json)
        shape_plan_json(&plan, &out);
    else
        shape_plan_text(&plan, &out);
    shape_plan_free(&plan);
    int failed = print_result(&out, err);
    text_free(&out);
    return failed;
}

static int plan_files(const struct run_config *config, bool json, struct error *err) {
    struct trainer_options train = {.command = "graft plan"};
    struct text out = {0};
    struct forecast forecast = {0};
    struct trainer *t = mem_zalloc(1, sizeof *t);
    if (!t) return error_memory(err, "the trainer", sizeof *t);
    int failed = trainer_prepare(config, &train, t, err);
    if (!failed) {
        t->session.host_bytes = memory_held();
        failed = plan_seal(t->session.device.plan, err) || run_memory_of(&t->session, &t->memory, err) ||
                 forecast_run(t, &forecast, err);
    }
    if (!failed) {
        if (json)
            plan_json(t, &forecast, &out);
        else
            plan_text(t, &forecast, &out);
        failed = print_result(&out, err);
    }
    trainer_close(t);
    mem_free(t);
    text_free(&out);
    return failed ? -1 : 0;
}

int command_plan(int argc, char **argv, struct error *err) {
    struct option options[] = {{.name = "--json"}};
    struct run_config config = {0};
    bool shapes = false;
    if (options_parse(&argc, argv, options, 1, err) || config_from_arguments(argc, argv, &config, err)) return -1;
    bool json = option_flag(options, "--json");
    int failed = shape_plan_applies(&config, &shapes, err);
    if (!failed) failed = shapes ? plan_shapes(&config, json, err) : plan_files(&config, json, err);
    config_free(&config);
    return failed ? -1 : 0;
}
