// See decoder.h. The residual stream is carried as (s, y): s the sum so far, y its norm for whatever reads it next, so
// that every addition is fused with the norm that follows and a layer's only kept value is s.
#include "model/decoder.h"

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
    if (device_tensor(dev, PLAN_BATCH, DTYPE_F32, l->max_positions, d->model->arch.rope.rotary_dim, &d->rope, err))
        return -1;
    if (device_tensor(dev, PLAN_BATCH, DTYPE_U8, 1, sizeof(struct step_scalars), &d->scalars, err)) return -1;
    for (int i = 0; l->cache_seqs > 0 && i < d->model->arch.layers; i++) {
        const struct layer_arch *a = &d->model->arch.layer[i];
        int64_t cells = (int64_t)l->cache_seqs * l->cache_len;
        if (device_tensor(dev, PLAN_KV_CACHE, d->dtype, cells, (int64_t)a->kv_heads * a->head_dim, &d->cache_k[i], err))
            return -1;
        if (device_tensor(dev, PLAN_KV_CACHE, d->dtype, cells, (int64_t)a->kv_heads * a->v_dim, &d->cache_v[i], err))
            return -1;
    }
    return 0;
}

// Row p: cos and sin of p * inv_freq[i]; inv_freq[i] = theta^(-2i/r) / factors[i] / linear_factor (formats.md 9.1).
static int rope_table(struct decoder *d, struct error *err) {
    const struct rope_arch *rope = &d->model->arch.rope;
    int half = rope->rotary_dim / 2, positions = d->limits.max_positions;
    size_t bytes = (size_t)positions * (size_t)rope->rotary_dim * sizeof(float);
    float *table = mem_alloc(bytes);
    if (!table) return error_memory(err, "the rope table", bytes);
    for (int i = 0; i < half; i++) {
        double f = pow(rope->theta, -2.0 * i / rope->rotary_dim) / rope->linear_factor;
        if (rope->factors) f /= rope->factors[i];
        for (int p = 0; p < positions; p++) {
            table[(size_t)p * (size_t)rope->rotary_dim + (size_t)i] = (float)cos(p * f);
            table[(size_t)p * (size_t)rope->rotary_dim + (size_t)(half + i)] = (float)sin(p * f);
        }
    }
    int failed = device_write(d->device, d->rope, table, bytes, err);
    mem_free(table);
    return failed;
}

int decoder_open(struct device *device, const struct model *model, const struct decoder_limits *limits,
                 enum dtype dtype, struct decoder *out, struct error *err) {
    struct decoder *d = out;
    *d = (struct decoder){.device = device, .model = model, .dtype = dtype, .limits = *limits};
    size_t layers = (size_t)model->arch.layers;
    d->slots = mem_zalloc((size_t)model->n_modules, sizeof *d->slots);
    d->cache_k = mem_zalloc(layers, sizeof *d->cache_k);
    d->cache_v = mem_zalloc(layers, sizeof *d->cache_v);
    d->tape = tape_open(device, dtype, err);
    if (!d->slots || !d->cache_k || !d->cache_v)
        error_memory(err, "the decoder", (size_t)model->n_modules * sizeof *d->slots);
    else if (d->tape && !tensors_open(d, err) && (device_recording(device) || !rope_table(d, err))) {
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

// --- the graph

struct build {
    struct decoder *d;
    const struct pass *pass;
    int32_t max_seqs;
    bool cached;                                // attention over the KV cache
    int keys, positions, rope, seqs, slot_rows; // tape values
    int s, y;                                   // residual stream and its norm
    struct error *err;
};

static int input(struct build *b, struct tensor t, int64_t rows, int *value) {
    *value = tape_input(b->d->tape, tensor_rows(t, 0, rows), b->err);
    return *value < 0 ? -1 : 0;
}

static union op_params norm_params(const struct build *b, const struct weight *w) {
    const struct arch *a = &b->d->model->arch;
    return (union op_params){.norm = {.kind = a->norm, .w = w, .eps = a->norm_eps, .groups = 1, .scale = 1}};
}

// The adapters that act on one linear in this pass. *ranks counts the columns of the node's saved U.
static void fill_part(const struct build *b, const struct module *m, struct linear_part *part, int64_t *ranks) {
    *part = (struct linear_part){.w = m->w, .bias = m->bias};
    for (int i = 0; i < b->pass->n_spans; i++) {
        const struct pass_span *span = &b->pass->spans[i];
        if (span->adapter < 0 || span->row_begin == span->row_end) continue;
        const struct slot_adapter *a = &b->d->slots[m->id].adapters[span->adapter];
        if (!tensor_present(&a->a)) continue;
        part->spans[part->n_spans++] = (struct lora_span){
            .row_begin = span->row_begin,
            .row_end = span->row_end,
            .a = a->a,
            .b = a->b,
            .da = b->pass->gradients ? a->da : (struct tensor){0},
            .db = b->pass->gradients ? a->db : (struct tensor){0},
            .scale = a->scale,
            .dropout = b->pass->training ? a->dropout : 0.0f,
            .module = (uint32_t)m->id,
            .u_begin = *ranks,
        };
        *ranks += a->a.rows;
    }
}

// y_i = x W_i^T + adapters, for `n` modules of layer `l` from `kind` on.
static int linears(struct build *b, int l, enum module_kind kind, int n, int x, int *out) {
    const struct module *m = &b->d->model->modules[l * MODULE_KINDS + (int)kind];
    union op_params p = {.linear = {.n_parts = n}};
    int64_t ranks = 0;
    for (int i = 0; i < n; i++) fill_part(b, m + i, &p.linear.parts[i], &ranks);
    return tape_record(b->d->tape, OP_LINEAR_GROUP, (int[]){x, b->keys}, 2, &p, out, b->err);
}

static int add_norm(struct build *b, int x, const struct weight *w) {
    union op_params p = norm_params(b, w);
    int out[OP_MAX_OUT];
    if (tape_record(b->d->tape, OP_ADD_NORM, (int[]){b->s, x}, 2, &p, out, b->err)) return -1;
    b->s = out[0];
    b->y = out[1];
    return 0;
}

// Keys and values of the new rows go into the layer's cache, which attention then reads.
static int cache_write(struct build *b, int l, int *k, int *v) {
    struct decoder *d = b->d;
    struct op_call call = {
        .op = OP_KV_WRITE,
        .in = {tape_tensor(d->tape, *k), tape_tensor(d->tape, *v), tape_tensor(d->tape, b->slot_rows)},
        .out = {d->cache_k[l], d->cache_v[l]},
    };
    if (device_forward(d->device, &call, b->err)) return -1;
    *k = tape_input(d->tape, d->cache_k[l], b->err);
    *v = tape_input(d->tape, d->cache_v[l], b->err);
    return *k < 0 || *v < 0 ? -1 : 0;
}

static int attention(struct build *b, int l) {
    const struct arch *arch = &b->d->model->arch;
    const struct layer_arch *a = &arch->layer[l];
    struct tape *tape = b->d->tape;
    int qkv[OP_MAX_OUT], turned[OP_MAX_OUT], o[OP_MAX_OUT];
    if (linears(b, l, MODULE_Q, 3, b->y, qkv)) return -1;
    if (a->rope) {
        union op_params p = {
            .rope = {.kind = arch->rope.kind, .head_dim = a->head_dim, .rotary_dim = arch->rope.rotary_dim}};
        if (tape_record(tape, OP_ROPE, (int[]){qkv[0], qkv[1], b->positions, b->rope}, 4, &p, turned, b->err))
            return -1;
        qkv[0] = turned[0], qkv[1] = turned[1];
    }
    if (b->cached && cache_write(b, l, &qkv[1], &qkv[2])) return -1;
    union op_params p = {.attention = {.heads = a->heads,
                                       .kv_heads = a->kv_heads,
                                       .head_dim = a->head_dim,
                                       .v_dim = a->v_dim,
                                       .scale = a->attention_scale,
                                       .soft_cap = a->soft_cap,
                                       .window = a->window,
                                       .chunk = a->chunk,
                                       .max_seqs = b->max_seqs}};
    if (tape_record(tape, OP_ATTENTION, (int[]){qkv[0], qkv[1], qkv[2], b->seqs}, 4, &p, o, b->err)) return -1;
    if (linears(b, l, MODULE_O, 1, o[0], o)) return -1;
    return add_norm(b, o[0], b->d->model->layer[l].ffn_norm);
}

static int mlp(struct build *b, int l, const struct weight *next_norm) {
    int two[OP_MAX_OUT], h[OP_MAX_OUT], r[OP_MAX_OUT];
    if (linears(b, l, MODULE_GATE, 2, b->y, two)) return -1;
    union op_params p = {.act = {.kind = b->d->model->arch.layer[l].act}};
    if (tape_record(b->d->tape, OP_GLU, (int[]){two[0], two[1]}, 2, &p, h, b->err)) return -1;
    if (linears(b, l, MODULE_DOWN, 1, h[0], r)) return -1;
    return add_norm(b, r[0], next_norm);
}

// Embedding to final norm: leaves b->y.
static int body(struct build *b, int64_t rows) {
    struct decoder *d = b->d;
    const struct model *m = d->model;
    int ids, out[OP_MAX_OUT];
    tape_reset(d->tape, b->pass->gradients);
    if (input(b, d->ids, rows, &ids) || input(b, d->keys, rows, &b->keys) ||
        input(b, d->positions, rows, &b->positions) || input(b, d->rope, d->rope.rows, &b->rope) ||
        input(b, d->seqs, b->max_seqs + 1, &b->seqs) || input(b, d->slot_rows, rows, &b->slot_rows)) {
        return -1;
    }
    if (tape_segment(d->tape, SEGMENT_EMBED, false, b->err)) return -1;
    union op_params p = {.embed = {.w = m->embed,
                                   .scale = m->arch.embed_scale,
                                   .noise_alpha = b->pass->training ? b->pass->neftune_alpha : 0.0f,
                                   .lengths = tensor_rows(d->lengths, 0, rows)}};
    if (tape_record(d->tape, OP_EMBED, (int[]){ids, b->keys}, 2, &p, out, b->err)) return -1;
    b->s = out[0];
    p = norm_params(b, m->layer[0].attn_norm);
    if (tape_record(d->tape, OP_NORM, &b->s, 1, &p, out, b->err)) return -1;
    b->y = out[0];
    for (int l = 0; l < m->arch.layers; l++) {
        const struct weight *next = l + 1 < m->arch.layers ? m->layer[l + 1].attn_norm : m->final_norm;
        if (tape_segment(d->tape, SEGMENT_LAYER0 + l, b->pass->checkpoint, b->err)) return -1;
        if (attention(b, l) || mlp(b, l, next)) return -1;
    }
    return tape_segment(d->tape, SEGMENT_LAYER0 + m->arch.layers, false, b->err);
}

static union op_params head_params(const struct decoder *d, int64_t rows, bool fused) {
    const struct arch *a = &d->model->arch;
    int64_t chunk = LOGITS_ELEMENTS / a->vocab / 16 * 16;
    if (chunk < 16) chunk = 16;
    if (chunk > rows) chunk = rows;
    return (union op_params){.logprob = {.w = d->model->head,
                                         .soft_cap = a->final_soft_cap,
                                         .logit_scale = a->logit_scale,
                                         .fused = fused,
                                         .chunk_rows = chunk}};
}

int decoder_score(struct decoder *d, const struct pass *pass, int32_t rows, int32_t max_seqs, struct tensor *logp,
                  struct error *err) {
    struct build b = {.d = d, .pass = pass, .max_seqs = max_seqs, .err = err};
    int targets, weights, out[OP_MAX_OUT];
    if (body(&b, rows) || input(&b, d->targets, rows, &targets) || input(&b, d->weights, rows, &weights)) return -1;
    union op_params p = head_params(d, rows, pass->gradients);
    if (tape_record(d->tape, OP_TOKEN_LOGPROB, (int[]){b.y, targets, weights}, 3, &p, out, err)) return -1;
    if (logp) *logp = tape_tensor(d->tape, out[0]);
    return tape_segment_done(d->tape, err);
}

static int head_logits(struct build *b, int64_t rows, struct tensor *logits) {
    struct decoder *d = b->d;
    struct op_call call = {.op = OP_LOGITS, .in = {tape_tensor(d->tape, b->y)}, .p = head_params(d, rows, false)};
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
