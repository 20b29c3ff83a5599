// A base and an adapter in a folder made by tests/oracle/families.py, run here: how far are logits, loss and adapter
// gradients from what transformers and PEFT computed? Used by test_families.c on the committed folders and by the live
// comparison on fresh ones.
#pragma once

#include "adapters/lora.h"
#include "model/decoder.h"
#include "model/safetensors.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PARITY_ROWS = 4, PARITY_TOKENS = 256 };

struct parity {
    double logits;   // largest difference, relative to the largest logit; 0 on the queued backend, which keeps nothing
    double loss;     // difference relative to the loss
    double gradient; // largest difference in any gradient, relative to the largest element of its own tensor
    double together; // relative to the largest element of all
    char worst[128]; // that gradient
    int gradients;
};

struct parity_setup {
    const char *base;    // a file in the folder, NULL = the folder itself
    const char *adapter; // another one than the folder's: its gradients have no names to compare; NULL
    int threads;
    enum device_kind device;
    bool checkpoint;
    enum dtype dtype;
};

struct parity_run {
    struct model model;
    struct adapter adapter;
    struct safetensors expected;
    struct device device;
    struct decoder decoder;
    struct lora lora;
    struct batch batch;
    struct sample samples[PARITY_ROWS];
    int n_rows;
    struct decoder_limits limits;
    int64_t tokens;
    double weight;
    struct pool pool;
};

static inline const struct safetensors_entry *parity_row(const struct parity_run *r, int row, const char *what) {
    char name[64];
    snprintf(name, sizeof name, "row%d.%s", row, what);
    return safetensors_find(&r->expected, name);
}

static inline int32_t parity_int(const struct safetensors_entry *e, int64_t i) {
    int32_t v;
    memcpy(&v, e->data + 4 * i, 4);
    return v;
}
static inline float parity_float(const struct safetensors_entry *e, int64_t i) {
    float v;
    memcpy(&v, e->data + 4 * i, 4);
    return v;
}

// All rows one after another, as sequences of their own.
static inline int parity_batch(struct parity_run *r, struct error *err) {
    int64_t tokens = 0;
    while (r->n_rows < PARITY_ROWS && parity_row(r, r->n_rows, "ids"))
        tokens += parity_row(r, r->n_rows++, "ids")->shape[0];
    int32_t rows = (int32_t)((tokens + 63) / 64 * 64);
    if (batch_open(&r->batch, rows, PARITY_ROWS, err)) return -1;
    struct batch *b = &r->batch;
    b->rows = rows, b->tokens = (int32_t)tokens, b->n_seqs = b->n_documents = r->n_rows;
    memset(b->seqs, 0, (PARITY_ROWS + 1) * 4 * sizeof *b->seqs);
    for (int32_t i = 0; i < rows; i++)
        b->ids[i] = b->positions[i] = b->targets[i] = b->lengths[i] = 0, b->weights[i] = 0;
    memset(b->keys, 0, (size_t)rows * 2 * sizeof *b->keys);
    int32_t at = 0;
    for (int k = 0; k < r->n_rows; k++) {
        const struct safetensors_entry *ids = parity_row(r, k, "ids"), *labels = parity_row(r, k, "labels");
        int32_t n = (int32_t)ids->shape[0];
        memcpy(b->seqs + 4 * k, (int32_t[]){at, n, at, n}, 4 * sizeof(int32_t));
        for (int32_t i = 0; i < n; i++, at++) {
            b->ids[at] = parity_int(ids, i), b->positions[at] = i, b->lengths[at] = n;
            if (i + 1 == n || parity_int(labels, i + 1) < 0) continue;
            b->targets[at] = parity_int(labels, i + 1), b->weights[at] = 1;
            r->weight += 1;
        }
    }
    r->tokens = tokens;
    return 0;
}

static inline int parity_parts(struct parity_run *r, const struct parity_setup *s, struct error *err) {
    return decoder_open(&r->device, &r->model, &r->limits, s->dtype, &r->decoder, err) ||
                   lora_attach(&r->decoder, &r->adapter, 0, true, false, &r->lora, err)
               ? -1
               : 0;
}

// The two programs: logits with the adapter, then loss and gradients. `logits` NULL while recording.
static inline int parity_programs(struct parity_run *r, const struct parity_setup *s, float *logits,
                                  struct step_scalars *scalars, struct error *err) {
    struct plan *plan = r->device.plan;
    int32_t rows = r->batch.rows;
    struct pass pass = {.n_spans = 1, .spans = {{0, rows, 0}}};
    struct tensor t;
    if (plan_begin(plan, "logits", err) || decoder_logits(&r->decoder, &pass, rows, r->batch.max_seqs, &t, err))
        return -1;
    if (logits && s->device != DEVICE_LATE &&
        device_read(&r->device, logits, t, (size_t)rows * (size_t)r->model.arch.vocab * 4, err))
        return -1;
    if (plan_end(plan, err)) return -1;
    if (logits && device_write(&r->device, r->decoder.scalars, scalars, sizeof *scalars, err)) return -1;
    pass.gradients = true, pass.checkpoint_layers = s->checkpoint ? r->model.arch.layers : 0;
    if (r->limits.balance) pass.balance = r->model.arch.moe.balance_weight;
    if (plan_begin(plan, "train", err) || device_fill(&r->device, r->lora.grads, 0, err) ||
        decoder_score(&r->decoder, &pass, rows, r->batch.max_seqs, NULL, err) || tape_backward(r->decoder.tape, err) ||
        plan_end(plan, err)) {
        return -1;
    }
    return logits ? device_read(&r->device, scalars, r->decoder.scalars, sizeof *scalars, err) : 0;
}

// The gradients, written as an adapter: then every one has the name and the shape that PEFT gives it.
static inline int parity_gradients(struct parity_run *r, const char *scratch, struct parity *out, struct error *err) {
    if (lora_read(&r->lora, r->lora.grads, &r->adapter, err)) return -1;
    r->adapter.pissa = false; // only what is trained has gradients
    for (int i = 0; i < r->adapter.n_modules; i++) r->adapter.modules[i].a0 = r->adapter.modules[i].b0 = NULL;
    char path[600];
    struct safetensors got;
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", scratch);
    if (peft_write(scratch, &r->adapter, err) || safetensors_open(path, &got, err)) return -1;
    double worst = -1, largest_of_all = 0, difference_of_all = 0;
    for (size_t i = 0; i < r->expected.n_entries; i++) {
        const struct safetensors_entry *want = &r->expected.entries[i];
        if (strncmp(want->name, "grad.", 5) != 0) continue;
        const struct safetensors_entry *e = safetensors_find(&got, want->name + 5);
        double most = 0, largest = 0;
        if (!e || e->bytes != want->bytes) {
            safetensors_close(&got);
            return error_set(err, STATUS_DATA, "gradient '%s' is %s", want->name, e ? "of another shape" : "missing");
        }
        for (int64_t k = 0; k < (int64_t)(want->bytes / 4); k++) {
            double w = (double)parity_float(want, k), d = fabs((double)parity_float(e, k) / r->weight - w);
            most = d <= most ? most : d; // a NaN stays
            largest = fmax(largest, fabs(w));
        }
        difference_of_all = most <= difference_of_all ? difference_of_all : most;
        largest_of_all = fmax(largest_of_all, largest);
        double relative = largest > 0 ? most / largest : most;
        if (!(relative <= worst)) {
            worst = relative;
            snprintf(out->worst, sizeof out->worst, "%s", want->name + 5);
        }
        out->gradients++;
    }
    out->gradient = worst, out->together = difference_of_all / largest_of_all;
    bool all = (size_t)out->gradients == got.n_entries;
    safetensors_close(&got);
    return all ? 0 : error_set(err, STATUS_DATA, "%zu gradients here, %d expected", got.n_entries, out->gradients);
}

static inline void parity_close(struct parity_run *r) {
    lora_detach(&r->lora);
    decoder_close(&r->decoder);
    device_close(&r->device);
    batch_close(&r->batch);
    adapter_free(&r->adapter);
    model_close(&r->model);
    safetensors_close(&r->expected);
    pool_free(&r->pool);
}

// The adapter as PiSSA trains it.
static inline int parity_split(struct parity_run *r, struct error *err) {
    struct adapter saved = r->adapter, *a = &r->adapter;
    *a = (struct adapter){0};
    int status = adapter_begin(&r->model, saved.n_modules, a, err);
    a->pissa = true, a->rslora = saved.rslora, a->r = saved.r / 2;
    a->alpha = saved.alpha / adapter_file_alpha(a, 1);
    for (int i = 0; i < saved.n_modules && status == 0; i++) {
        const struct adapter_module *m = &saved.modules[i];
        status = adapter_add(a, m->module, m->r / 2, m->alpha / adapter_file_alpha(a, 1), err) ||
                 adapter_add_initial(a, &a->modules[i], err);
    }
    if (status == 0) adapter_take_pairs(a, &saved);
    adapter_free(&saved);
    return status;
}

static inline int parity_compute(struct parity_run *r, const char *folder, const char *scratch,
                                 const struct parity_setup *s, struct parity *out, struct error *err) {
    char path[600];
    size_t length;
    snprintf(path, sizeof path, "%s/expected.safetensors", folder);
    if (safetensors_open(path, &r->expected, err)) return -1;
    snprintf(path, sizeof path, "%s%s%s", folder, s->base ? "/" : "", s->base ? s->base : "");
    if (model_open(path, NULL, &r->model, err)) return -1;
    snprintf(path, sizeof path, "%s%s", s->adapter ? s->adapter : folder, s->adapter ? "" : "/adapter");
    if (adapter_read(path, &r->model, &r->adapter, err) || parity_batch(r, err)) return -1;
    // PEFT's conversion of PiSSA: two pairs in one, of which the first is trained.
    if (!s->adapter && strstr(folder, "-pissa") && parity_split(r, err)) return -1;
    const char *positions = safetensors_metadata(&r->expected, "positions", &length);
    r->limits = (struct decoder_limits){
        .max_rows = r->batch.rows, .max_seqs = PARITY_ROWS, .max_positions = positions ? atoi(positions) : 64};
    r->limits.balance = safetensors_find(&r->expected, "aux_loss") != NULL;
    if (device_open_recording(&r->device, s->device, s->threads, err)) return -1;
    backend_set_weights(r->device.backend, r->model.weights, r->model.n_weights, r->model.n_segments);
    struct step_scalars scalars = {.denominator = r->weight};
    if (parity_parts(r, s, err) || parity_programs(r, s, NULL, &scalars, err)) return -1;
    decoder_close(&r->decoder);
    struct backend *backend = backend_open(s->device, s->threads, err);
    if (!backend || device_start(&r->device, backend, err) || parity_parts(r, s, err) || lora_upload(&r->lora, err) ||
        decoder_load(&r->decoder, &r->batch, err)) {
        return -1;
    }
    int64_t vocab = r->model.arch.vocab, at = 0;
    float *logits = pool_array(&r->pool, (uint64_t)r->batch.rows * (uint64_t)vocab, sizeof *logits);
    if (!logits) return error_memory(err, "logits", 0);
    if (parity_programs(r, s, logits, &scalars, err)) return -1;
    double most = 0, largest = 1e-30;
    for (int k = 0; k < r->n_rows && s->device != DEVICE_LATE; k++) {
        const struct safetensors_entry *want = parity_row(r, k, "logits");
        for (int64_t i = 0; i < want->shape[0] * vocab; i++, at++) {
            double w = (double)parity_float(want, i), d = fabs((double)logits[at] - w);
            most = d <= most ? most : d;
            largest = fmax(largest, fabs(w));
        }
    }
    double loss = (double)parity_float(safetensors_find(&r->expected, "loss"), 0);
    out->logits = most / largest;
    out->loss = fabs(scalars.loss_sum / r->weight - loss) / loss;
    double aux = 0;
    if (r->limits.balance) {
        double want = (double)parity_float(safetensors_find(&r->expected, "aux_loss"), 0);
        if (decoder_balance(&r->decoder, &aux, err)) return -1;
        out->loss = fmax(out->loss, fabs(aux - want) / want);
    }
    return s->adapter ? 0 : parity_gradients(r, scratch, out, err);
}

// `scratch`: a folder of the caller's, written to.
static inline int parity_of(const char *folder, const char *scratch, const struct parity_setup *s, struct parity *out,
                            struct error *err) {
    struct parity_run r = {0};
    *out = (struct parity){0};
    int status = parity_compute(&r, folder, scratch, s, out, err);
    parity_close(&r);
    return status;
}
