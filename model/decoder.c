// See decoder.h. The residual stream is carried as (s, y): s the sum so far, y its norm for whatever reads it next, so
// that every addition is fused with the norm that follows and a layer's only kept value is s.
#include "model/decoder_layer.h"

#include "kernels/alloc.h"

#include <math.h>
#include <string.h>

enum { LOGITS_ELEMENTS = 256 * 49152 }; // floats of logits alive at a time: near the best rate (cpu-kernels.md 4)

static int tensors_open(struct decoder *d, struct error *err) {
    const struct decoder_limits *l = &d->limits;
    struct device *dev = d->device;
    int64_t rows = l->max_rows;
    if (device_tensor(dev, PLAN_BATCH, DTYPE_I32, rows, 1, &d->ids, err)) return -1;
    if (device_tensor(dev, PLAN_BATCH, DTYPE_I32, rows, 1, &d->positions, err)) return -1;
    if (device_tensor(dev, PLAN_BATCH, DTYPE_I32, rows, 1, &d->targets, err)) return -1;
    if (device_tensor(dev, PLAN_BATCH, DTYPE_F32, rows, 1, &d->weights, err)) return -1;
    if (device_tensor(dev, PLAN_BATCH, DTYPE_U32, rows, 2, &d->keys, err)) return -1;
    if (device_tensor(dev, PLAN_BATCH, DTYPE_I32, rows, 1, &d->lengths, err)) return -1;
    if (device_tensor(dev, PLAN_BATCH, DTYPE_I32, rows, 1, &d->slot_rows, err)) return -1;
    int64_t seqs = l->max_seqs > l->cache_seqs ? l->max_seqs : l->cache_seqs;
    if (device_tensor(dev, PLAN_BATCH, DTYPE_I32, seqs + 1, 4, &d->seqs, err)) return -1;
    for (int i = 0; i < d->model->arch.n_ropes; i++) {
        int64_t dims = d->model->arch.rope[i].rotary_dim;
        if (device_tensor(dev, PLAN_BATCH, DTYPE_F32, l->max_positions, dims, &d->rope[i], err)) return -1;
    }
    if (device_tensor(dev, PLAN_BATCH, DTYPE_U8, 1, sizeof(struct step_scalars), &d->scalars, err)) return -1;
    int mixtures = 0;
    for (int i = 0; i < d->model->arch.layers; i++) mixtures += d->model->arch.layer[i].moe;
    if (l->balance &&
        device_tensor(dev, PLAN_BATCH, DTYPE_F32, mixtures, 2 * (int64_t)d->model->arch.moe.experts, &d->balance, err))
        return -1;
    for (int i = 0; l->cache_seqs > 0 && i < d->model->arch.layers; i++) {
        const struct layer_arch *a = &d->model->arch.layer[i];
        int64_t cells = (int64_t)l->cache_seqs * l->cache_len;
        if (device_tensor(dev, PLAN_KV_CACHE, d->dtype, cells, layer_key_width(a), &d->cache_k[i], err)) return -1;
        if (device_tensor(dev, PLAN_KV_CACHE, d->dtype, cells, layer_value_width(a), &d->cache_v[i], err)) return -1;
    }
    return 0;
}

static int rope_tables(struct decoder *d, struct error *err) {
    for (int i = 0; i < d->model->arch.n_ropes; i++) {
        size_t bytes = tensor_bytes(&d->rope[i]);
        float *table = mem_alloc(bytes);
        if (!table) return error_memory(err, "a rope table", bytes);
        int failed = rope_fill_table(&d->model->arch.rope[i], d->limits.max_positions, table, err);
        if (!failed) failed = device_write(d->device, d->rope[i], table, bytes, err);
        mem_free(table);
        if (failed) return -1;
    }
    return 0;
}

int decoder_open(struct device *device, const struct model *model, const struct decoder_limits *limits,
                 enum dtype dtype, struct decoder *out, struct error *err) {
    struct decoder *d = out;
    *d = (struct decoder){.device = device, .model = model, .dtype = dtype, .limits = *limits};
    size_t layers = (size_t)model->arch.layers;
    size_t slots = (size_t)model->n_modules + (size_t)model->n_norms;
    d->slots = mem_zalloc(slots, sizeof *d->slots);
    d->cache_k = mem_zalloc(layers, sizeof *d->cache_k);
    d->cache_v = mem_zalloc(layers, sizeof *d->cache_v);
    d->tape = tape_open(device, dtype, err);
    if (!d->slots || !d->cache_k || !d->cache_v)
        error_memory(err, "the decoder", slots * sizeof *d->slots);
    else if (d->tape && !tensors_open(d, err) && (device_recording(device) || !rope_tables(d, err))) {
        tape_set_scalars(d->tape, d->scalars);
        return device->backend->class->weights_acquire(device->backend, SEGMENT_RESIDENT, false, err);
    }
    decoder_close(d);
    return -1;
}

void decoder_close(struct decoder *d) {
    tape_close(d->tape);
    mem_free(d->slots);
    mem_free(d->cache_k);
    mem_free(d->cache_v);
    *d = (struct decoder){0};
}

int decoder_load(struct decoder *d, const struct batch *b, struct error *err) {
    size_t rows = (size_t)b->rows, four = sizeof(int32_t);
    if (device_write(d->device, d->ids, b->ids, rows * four, err)) return -1;
    if (device_write(d->device, d->positions, b->positions, rows * four, err)) return -1;
    if (device_write(d->device, d->targets, b->targets, rows * four, err)) return -1;
    if (device_write(d->device, d->weights, b->weights, rows * four, err)) return -1;
    if (device_write(d->device, d->keys, b->keys, rows * 2 * four, err)) return -1;
    if (device_write(d->device, d->lengths, b->lengths, rows * four, err)) return -1;
    return device_write(d->device, d->seqs, b->seqs, (size_t)(b->max_seqs + 1) * 4 * four, err);
}

int decoder_balance(struct decoder *d, double *loss, struct error *err) {
    int64_t experts = d->balance.cols / 2;
    size_t bytes = tensor_bytes(&d->balance);
    float *sums = mem_alloc(bytes);
    if (!sums) return error_memory(err, "the load of the experts", bytes);
    int failed = device_read(d->device, sums, d->balance, bytes, err);
    double all = 0, sum = 0;
    for (int64_t e = 0; e < experts && !failed; e++) {
        double chosen = 0, p = 0;
        for (int64_t l = 0; l < d->balance.rows; l++)
            chosen += (double)sums[l * 2 * experts + e], p += (double)sums[l * 2 * experts + experts + e];
        all += chosen / d->model->arch.moe.route.used;
        sum += chosen * p;
    }
    *loss = all > 0 ? sum * (double)experts / (all * all) : 0;
    mem_free(sums);
    return failed;
}

// --- the graph

static int input(struct build *b, struct tensor t, int64_t rows, int *value) {
    *value = tape_input(b->d->tape, tensor_rows(t, 0, rows), b->err);
    return *value < 0 ? -1 : 0;
}

// What the pass's adapter makes of the embedding or the head. A table is one for all rows of a pass.
static int table_of(const struct build *b, enum module_form form, int64_t rows, struct table_adapter *out) {
    const struct decoder *d = b->d;
    const struct pass *pass = b->pass;
    *out = (struct table_adapter){0};
    for (int i = 0; i < d->model->n_modules * pass->n_spans; i++) {
        const struct module *m = &d->model->modules[i / pass->n_spans];
        const struct pass_span *span = &pass->spans[i % pass->n_spans];
        if (span->adapter < 0 || (m->form != MODULE_EMBEDDING && m->form != MODULE_HEAD)) continue;
        const struct slot_adapter *a = &d->slots[m->id].adapters[span->adapter];
        bool own = m->form == form, tied = form == MODULE_HEAD && !own && d->model->arch.tied;
        if (!tensor_present(&a->a) && !tensor_present(&a->full) && !tensor_present(&a->rows) &&
            !tensor_present(&a->bias)) {
            continue;
        }
        if (span->row_begin != 0 || span->row_end != rows)
            return error_set(b->err, STATUS_INTERNAL, "an adapter on %s for some rows only", m->hf_name);
        if (own) {
            out->a = a->a, out->b = a->b, out->da = a->da, out->db = a->db, out->scale = a->scale;
            out->full = a->full, out->dfull = a->dfull;
            out->bias = a->bias, out->dbias = a->dbias;
            out->magnitude = a->magnitude, out->dmagnitude = a->dmagnitude, out->norms = a->norms;
            if (pass->training && form == MODULE_HEAD) out->dropout = a->dropout; // PEFT's embedding adapter has none
            out->module = (uint32_t)m->id, out->keys = tensor_rows(d->keys, 0, rows);
        }
        if (own || tied) out->rows = a->rows, out->drows = a->drows, out->row_ids = a->row_ids;
    }
    return 0;
}

// Embedding to final norm: leaves b->y.
static int body(struct build *b, int64_t rows) {
    struct decoder *d = b->d;
    const struct model *m = d->model;
    int ids, out[OP_MAX_OUT];
    tape_reset(d->tape, b->pass->gradients);
    if (input(b, d->ids, rows, &ids) || input(b, d->keys, rows, &b->keys) ||
        input(b, d->positions, rows, &b->positions) || input(b, d->seqs, b->max_seqs + 1, &b->seqs) ||
        input(b, d->slot_rows, rows, &b->slot_rows) || input(b, d->lengths, rows, &b->lengths)) {
        return -1;
    }
    for (int i = 0; i < m->arch.n_ropes; i++) {
        if (input(b, d->rope[i], d->rope[i].rows, &b->rope[i])) return -1;
    }
    if (tape_segment(d->tape, SEGMENT_EMBED, TAPE_KEEP_ALL, b->err)) return -1;
    union op_params p = {.embed = {.w = m->embed,
                                   .scale = m->arch.embed_scale,
                                   .noise_alpha = b->pass->training ? b->pass->neftune_alpha : 0.0f,
                                   .lengths = tensor_rows(d->lengths, 0, rows)}};
    if (table_of(b, MODULE_EMBEDDING, rows, &p.embed.on)) return -1;
    if (tape_record(d->tape, OP_EMBED, (int[]){ids, b->keys}, 2, &p, out, b->err)) return -1;
    b->s = b->y = out[0];
    struct norm_at first = layer_norm_at(b, 0, NORM_ATTENTION);
    if (first.present && build_norm(b, b->s, &first, &b->y)) return -1;
    for (int l = 0; l < m->arch.layers; l++) {
        struct norm_at next = l + 1 < m->arch.layers ? layer_norm_at(b, l + 1, NORM_ATTENTION) : final_norm_at(b);
        enum tape_keep keep = l >= b->pass->checkpoint_layers ? TAPE_KEEP_ALL
                              : b->pass->keep_attention       ? TAPE_KEEP_ATTENTION
                                                              : TAPE_KEEP_NONE;
        if (tape_segment(d->tape, SEGMENT_LAYER0 + l, keep, b->err)) return -1;
        if (build_layer(b, l, &next)) return -1;
    }
    return tape_segment(d->tape, SEGMENT_LAYER0 + m->arch.layers, TAPE_KEEP_ALL, b->err);
}

static int head_params(const struct build *b, int64_t rows, bool fused, union op_params *out) {
    const struct decoder *d = b->d;
    const struct arch *a = &d->model->arch;
    int64_t chunk = LOGITS_ELEMENTS / a->vocab / 16 * 16;
    if (chunk < 16) chunk = 16;
    if (chunk > rows) chunk = rows;
    *out = (union op_params){.logprob = {.w = d->model->head,
                                         .bias = d->model->head_bias,
                                         .soft_cap = a->final_soft_cap,
                                         .logit_scale = a->logit_scale,
                                         .fused = fused,
                                         .chunk_rows = chunk}};
    return table_of(b, MODULE_HEAD, rows, &out->logprob.on);
}

int decoder_score(struct decoder *d, const struct pass *pass, int32_t rows, int32_t max_seqs, struct tensor *logp,
                  struct error *err) {
    struct build b = {.d = d, .pass = pass, .max_seqs = max_seqs, .err = err};
    int targets, weights, out[OP_MAX_OUT];
    if (body(&b, rows) || input(&b, d->targets, rows, &targets) || input(&b, d->weights, rows, &weights)) return -1;
    union op_params p;
    if (head_params(&b, rows, pass->gradients, &p)) return -1;
    if (tape_record(d->tape, OP_TOKEN_LOGPROB, (int[]){b.y, targets, weights}, 3, &p, out, err)) return -1;
    if (logp) *logp = tape_tensor(d->tape, out[0]);
    return tape_segment_done(d->tape, err);
}

static int head_logits(struct build *b, int64_t rows, struct tensor *logits) {
    struct decoder *d = b->d;
    struct op_call call = {.op = OP_LOGITS, .in = {tape_tensor(d->tape, b->y)}};
    if (head_params(b, rows, false, &call.p)) return -1;
    if (device_tensor(d->device, PLAN_LOGITS, DTYPE_F32, rows, d->model->arch.vocab, &call.out[0], b->err)) return -1;
    *logits = call.out[0];
    return device_forward(d->device, &call, b->err);
}

int decoder_logits(struct decoder *d, const struct pass *pass, int32_t rows, int32_t max_seqs, struct tensor *logits,
                   struct error *err) {
    struct build b = {.d = d, .pass = pass, .max_seqs = max_seqs, .err = err};
    if (body(&b, rows) || head_logits(&b, rows, logits)) return -1;
    return tape_segment_done(d->tape, err);
}

int decoder_decode(struct decoder *d, const struct pass *pass, const struct decode_rows *in, struct tensor *logits,
                   struct error *err) {
    size_t bytes = (size_t)in->rows * sizeof(int32_t);
    if (device_write(d->device, d->ids, in->ids, bytes, err)) return -1;
    if (device_write(d->device, d->positions, in->positions, bytes, err)) return -1;
    if (device_write(d->device, d->slot_rows, in->slots, bytes, err)) return -1;
    if (device_write(d->device, d->seqs, in->seqs, (size_t)in->n_seqs * 4 * sizeof(int32_t), err)) return -1;
    struct tensor end = tensor_rows(d->seqs, in->n_seqs, in->n_seqs + 1); // the unused last row
    if (device_write(d->device, end, (int32_t[4]){0}, 4 * sizeof(int32_t), err)) return -1;
    struct build b = {.d = d, .pass = pass, .max_seqs = in->n_seqs, .cached = true, .err = err};
    if (body(&b, in->rows)) return -1;
    if (logits && head_logits(&b, in->rows, logits)) return -1;
    return tape_segment_done(d->tape, err);
}
