// gpu_step CONFIG.yml [key=value ...]: how fast a run's steps are on its device, as one JSON object: warm-up and timed
// steps, then a few in which every op is waited for; the rate of one large product before and after; memory held beside
// memory planned; seconds from the start of the process to the end of the first step. Writes nothing else.
// GRAFT_BENCH_WARMUP, GRAFT_BENCH_STEPS (5, 15).
#include "data/json.h"
#include "train/command.h"
#include "train/trainer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PROFILED = 2, MAX_STEPS = 1000, PROBE = 8192, PROBE_TIMES = 20 };

struct figures {
    double seconds[MAX_STEPS], losses[MAX_STEPS], tokens, first_step, loaded;
    int64_t warmup, steps;
    struct op_times times[OP_COUNT][2];
    double profiled_seconds, probe_before, probe_after;
    uint64_t held;
};

static int64_t number_from(const char *name, int64_t fallback) {
    const char *text = getenv(name);
    int64_t n = text ? strtoll(text, NULL, 10) : fallback;
    return n < 0 ? 0 : n < MAX_STEPS / 2 ? n : MAX_STEPS / 2;
}

// --- FLOP/s of PROBE x PROBE x PROBE in bf16, by the backend's own product
struct probe {
    struct device device;
    struct weight weight;
    const struct weight *weights[1];
    struct tensor x, y;
};

static int probe_once(struct probe *p, struct error *err) {
    struct op_call call = {
        .op = OP_LINEAR_GROUP, .in = {p->x}, .out = {p->y}, .p.linear = {.n_parts = 1, .parts = {{.w = &p->weight}}}};
    return plan_begin(p->device.plan, "probe", err) || device_forward(&p->device, &call, err) ||
                   plan_end(p->device.plan, err)
               ? -1
               : 0;
}

static int probe_tensors(struct probe *p, int64_t size, struct error *err) {
    return device_tensor(&p->device, PLAN_ACTIVATION, DTYPE_BF16, size, size, &p->x, err) ||
                   device_tensor(&p->device, PLAN_ACTIVATION, DTYPE_BF16, size, size, &p->y, err)
               ? -1
               : 0;
}

static int probe_run(const struct session *s, double *flops, struct error *err) {
    int64_t size = s->options.device == DEVICE_CUDA ? PROBE : 512;
    size_t bytes = (size_t)(size * size) * 2;
    uint16_t *values = mem_alloc(bytes);
    if (!values) return error_memory(err, "a matrix to time", bytes);
    for (int64_t i = 0; i < size * size; i++) // random numbers: zeros are multiplied faster
        values[i] = bf16_from_float((float)((uint32_t)i * 2654435761u >> 16) / 65536.0f - 0.5f);
    struct probe p = {.weight = {.format = quant_format(QUANT_BF16),
                                 .rows = size,
                                 .cols = size,
                                 .data = (const uint8_t *)values,
                                 .name = "probe",
                                 .segment = SEGMENT_LAYER0}};
    p.weights[0] = &p.weight;
    struct error unused = {0};
    int failed = device_open_recording(&p.device, s->options.device, s->threads, err);
    if (!failed) backend_set_weights(p.device.backend, p.weights, 1, SEGMENT_LAYER0 + 1);
    failed = failed || probe_tensors(&p, size, err) || probe_once(&p, err);
    struct backend *b = failed ? NULL : backend_open(s->options.device, s->threads, err);
    failed = failed || !b || device_start(&p.device, b, err) || probe_tensors(&p, size, err) ||
             device_write(&p.device, p.x, values, bytes, err) || probe_once(&p, err) ||
             device_read(&p.device, &unused.code, p.y, 2, err);
    double begin = clock_now();
    for (int i = 0; i < PROBE_TIMES && !failed; i++) failed = probe_once(&p, err);
    failed = failed || device_read(&p.device, &unused.code, p.y, 2, err);
    *flops = 2.0 * pow((double)size, 3) * PROBE_TIMES / (clock_now() - begin);
    device_close(&p.device);
    mem_free(values);
    return failed ? -1 : 0;
}

// --- steps

static int one_step(struct trainer *t, int64_t i, int64_t count, struct step_result *result, struct error *err) {
    return loader_batch(t->loader, 0, i % count, &t->batch, err) ||
                   step_begin(&t->engine, i, 1, 1e-5, t->batch.weight, err) || step_micro(&t->engine, &t->batch, err) ||
                   step_end(&t->engine, result, err)
               ? -1
               : 0;
}

static int measure(struct trainer *t, const struct run_config *config, struct figures *f, struct error *err) {
    struct trainer_options options = {.command = "gpu_step"};
    struct step_result result;
    double start = clock_now(); // the probe before it is no part of a run
    if (trainer_prepare(config, &options, t, err) || trainer_start_device(t, err)) return -1;
    f->loaded = clock_now() - start;
    int64_t count = loader_count(t->loader, 0, err), all = f->warmup + f->steps;
    for (int64_t i = 0; i < all + PROFILED; i++) {
        t->session.device.times = i >= all ? &f->times : NULL;
        double begin = clock_now();
        if (one_step(t, i, count, &result, err)) return -1;
        double seconds = clock_now() - begin;
        if (i == 0) f->first_step = clock_now() - start;
        if (i < MAX_STEPS) f->losses[i] = result.loss;
        if (i >= f->warmup && i < all) f->seconds[i - f->warmup] = seconds, f->tokens += t->batch.tokens;
        if (i >= all) f->profiled_seconds += seconds;
    }
    t->session.device.times = NULL;
    f->held = run_memory_held(&t->session);
    return 0;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void number(struct json_writer *w, const char *key, double value) {
    json_put_key(w, key), json_put_double(w, value);
}

static void put_ops(struct json_writer *w, const struct figures *f) {
    double spent = 0;
    json_put_key(w, "ops"), json_begin_array(w);
    for (int op = 0; op < OP_COUNT; op++) {
        for (int back = 0; back < 2; back++) {
            const struct op_times *o = &f->times[op][back];
            if (!o->calls) continue;
            json_begin_object(w);
            json_put_key(w, "op"), json_put_string(w, op_table[op].name);
            json_put_key(w, "pass"), json_put_string(w, back ? "backward" : "forward");
            number(w, "calls", (double)o->calls / PROFILED);
            number(w, "milliseconds", 1e3 * o->seconds / PROFILED);
            number(w, "share", o->seconds / f->profiled_seconds);
            number(w, "tflops", o->flops / o->seconds * 1e-12);
            json_end_object(w);
            spent += o->seconds;
        }
    }
    json_end_array(w);
    number(w, "outside_of_ops", 1 - spent / f->profiled_seconds);
}

static void print(const struct trainer *t, struct figures *f) {
    struct text out = {0};
    struct json_writer w = {.out = &out, .style = JSON_PRETTY};
    qsort(f->seconds, (size_t)f->steps, sizeof *f->seconds, ascending);
    double median = f->seconds[f->steps / 2], tokens = f->tokens / (double)f->steps;
    json_begin_object(&w);
    json_put_key(&w, "device"), json_put_string(&w, backend_describe(t->session.device.backend));
    json_put_key(&w, "base"), json_put_string(&w, t->session.model.name);
    json_put_key(&w, "arithmetic"), json_put_string(&w, t->session.options.dtype == DTYPE_BF16 ? "bf16" : "fp32");
    number(&w, "tokens_per_step", tokens);
    number(&w, "seconds_median", median);
    number(&w, "seconds_p10", f->seconds[f->steps / 10]);
    number(&w, "seconds_p90", f->seconds[f->steps * 9 / 10]);
    number(&w, "tokens_per_second", tokens / median);
    number(&w, "model_tflops", t->flops_per_token * tokens / median * 1e-12);
    number(&w, "product_tflops_before", f->probe_before * 1e-12);
    number(&w, "product_tflops_after", f->probe_after * 1e-12);
    number(&w, "held_bytes", (double)f->held);
    number(&w, "planned_bytes", (double)t->memory.peak);
    number(&w, "streamed_bytes", (double)t->memory.streamed);
    number(&w, "checkpointed_layers", t->checkpoint_layers);
    number(&w, "seconds_to_start", f->loaded);
    number(&w, "seconds_to_first_step", f->first_step);
    json_put_key(&w, "losses"), json_begin_array(&w);
    for (int64_t i = 0; i < 5 && i < f->warmup + f->steps; i++) json_put_double(&w, f->losses[i]);
    json_end_array(&w);
    put_ops(&w, f);
    json_end_object(&w);
    printf("%s\n", text_str(&out));
    text_free(&out);
}

int main(int argc, char **argv) {
    struct error err = {0};
    struct run_config config = {0};
    struct trainer *t = mem_zalloc(1, sizeof *t);
    struct figures *f = mem_zalloc(1, sizeof *f);
    struct session probe = {0};
    if (argc < 2 || !t || !f) {
        fprintf(stderr, "gpu_step CONFIG.yml [key=value ...]\n");
        return STATUS_USAGE;
    }
    f->warmup = number_from("GRAFT_BENCH_WARMUP", 5), f->steps = number_from("GRAFT_BENCH_STEPS", 15);
    if (f->steps < 1) f->steps = 1;
    struct text notice = {0};
    int failed = config_from_arguments(argc - 1, argv + 1, &config, &err) ||
                 session_device(config.device, &probe.options.device, &notice, &err);
    probe.threads = config.threads > 0 ? (int)config.threads : cpu_count_available();
    failed = failed || probe_run(&probe, &f->probe_before, &err) || measure(t, &config, f, &err) ||
             probe_run(&probe, &f->probe_after, &err);
    if (failed)
        fprintf(stderr, "gpu_step: %s\n", err.text);
    else
        print(t, f);
    text_free(&notice);
    trainer_close(t);
    mem_free(t);
    mem_free(f);
    config_free(&config);
    return failed ? err.code : 0;
}
