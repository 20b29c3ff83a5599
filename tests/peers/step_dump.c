// step_dump CONFIG.yml OUT.safetensors [--logits]: the first micro-batch of a run as numbers, for comparison with
// another implementation: "loss" (mean over trained tokens), "grad.KEY" per adapter tensor (gradient of that mean,
// PEFT's keys and row order), and "logits" (tokens, vocabulary).
#include "model/safetensors.h"
#include "train/command.h"
#include "train/trainer.h"

#include <stdio.h>
#include <string.h>

struct dump {
    struct trainer t;
    struct run_config config;
    struct pool pool;
    struct safetensors_out *entries;
    size_t count;
    float *logits;
};

static float *add(struct dump *d, const char *name, int64_t rows, int64_t cols) {
    float *data = pool_array(&d->pool, (uint64_t)(rows * cols), sizeof *data);
    d->entries[d->count++] = (struct safetensors_out){
        .name = name, .dtype = ST_F32, .n_dims = cols == 1 && rows == 1 ? 1 : 2, .shape = {rows, cols}, .data = data};
    return data;
}

// The logits of the loaded batch; recorded once, then run.
static int logits(struct dump *d, int32_t rows, float *out, struct error *err) {
    struct session *s = &d->t.session;
    struct pass pass = {.n_spans = 1, .spans = {{0, rows, 0}}};
    struct tensor t;
    size_t bytes = (size_t)rows * (size_t)s->model.arch.vocab * sizeof(float);
    return plan_begin(s->device.plan, "logits", err) ||
                   decoder_logits(&s->decoder, &pass, rows, d->t.batch.max_seqs, &t, err) ||
                   (out && device_read(&s->device, out, t, bytes, err)) || plan_end(s->device.plan, err)
               ? -1
               : 0;
}

static int gradients(struct dump *d, double weight, struct error *err) {
    struct lora *l = &d->t.lora;
    for (int i = 0; i < 2 * l->adapter->n_modules; i++) {
        const struct adapter_module *m = &l->adapter->modules[i / 2];
        bool b = i % 2;
        int64_t rows = b ? m->module->out : m->r, cols = b ? m->r : m->module->in;
        const char *name =
            pool_printf(&d->pool, "grad.base_model.model.%s.lora_%c.weight", m->module->hf_name, b ? 'B' : 'A');
        float *out = add(d, name, rows, cols), *raw = pool_array(&d->pool, (uint64_t)(rows * cols), sizeof *raw);
        struct tensor t = tensor_view(l->sum, lora_offset(l, i / 2, b), 1, rows * cols);
        if (device_read(&d->t.session.device, raw, t, tensor_bytes(&t), err)) return -1;
        for (int64_t r = 0; r < rows; r++) {
            int64_t from = b ? module_file_row(m->module, r) : r;
            for (int64_t k = 0; k < cols; k++) out[r * cols + k] = (float)((double)raw[from * cols + k] / weight);
        }
    }
    return 0;
}

static int run(struct dump *d, const char *path, bool with_logits, struct error *err) {
    struct trainer *t = &d->t;
    struct trainer_options options = {.command = "step_dump"};
    struct step_result result;
    if (trainer_prepare(&d->config, &options, t, err) || loader_batch(t->loader, 0, 0, &t->batch, err)) return -1;
    if (with_logits && logits(d, t->batch.rows, NULL, err)) return -1;
    if (trainer_start_device(t, err)) return -1;
    d->entries = pool_array(&d->pool, 2 * (uint64_t)t->adapter.n_modules + 2, sizeof *d->entries);
    if (step_begin(&t->engine, 0, 1, 0, t->batch.weight, err) || step_micro(&t->engine, &t->batch, err)) return -1;
    if (gradients(d, t->batch.weight, err) || step_end(&t->engine, &result, err)) return -1;
    add(d, "loss", 1, 1)[0] = (float)result.loss;
    if (with_logits) {
        float *out = add(d, "logits", t->batch.rows, t->session.model.arch.vocab);
        if (logits(d, t->batch.rows, out, err)) return -1;
        d->entries[d->count - 1].shape[0] = t->batch.tokens; // padding rows are not part of the answer
    }
    struct file_writer file;
    if (file_remove(path, err) || file_create(path, &file, err)) return -1;
    if (safetensors_write(&file, d->entries, d->count, err)) {
        file_abandon(&file);
        return -1;
    }
    return file_close(&file, err);
}

int main(int argc, char **argv) {
    static struct dump d;
    struct error err = {0};
    if (argc < 3) {
        fprintf(stderr, "step_dump CONFIG.yml OUT.safetensors [--logits]\n");
        return 64;
    }
    bool with_logits = argc > 3 && strcmp(argv[3], "--logits") == 0;
    int failed = config_from_arguments(1, argv + 1, &d.config, &err) || run(&d, argv[2], with_logits, &err);
    if (failed) fprintf(stderr, "step_dump: %s\n", err.text);
    trainer_close(&d.t);
    config_free(&d.config);
    pool_free(&d.pool);
    return failed ? err.code : 0;
}
