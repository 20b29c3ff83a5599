// OP_TOKEN_LOGPROB and OP_LOGITS. Rows that count are gathered in chunks, so that logits exist for a chunk of rows at a
// time and for no row that nobody asks about:
//   z = cap(logit_scale * h W^T),  lse = log sum e^z,  logp = z[target] - lse,  dz = (g onehot + s softmax) z'
// An adapter adds U B^T to the product, with U = scale * dropout(h) A^T, or stands in place of all or some rows of W,
// or of the bias; its gradients are added chunk by chunk in the pass that computes dz. with g = -weight, s = weight
// when the gradient of the loss is wanted at once (fused), else g = dlogp, s = dlse - dlogp.
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/reference.h"
#include "kernels/cpu/scalar.h"

#include <assert.h>
#include <math.h>
#include <string.h>

enum { STRETCH = 1024 }; // rows of the vocabulary whose products are summed in one chain
enum { BIAS_TASK = 256 };

struct head {
    const struct cpu_backend *b;
    const struct op_call *call;
    bool bf16, forward, with_gradient;
    void *gemm_workspace;
    float *logits;                // (chunk, V); its gradient, as bf16 in the first half of each row in bf16 mode
    float *dh, *part;             // (chunk, D): the gradient of h, and what one stretch of the vocabulary adds to it
    uint8_t *h;                   // (chunk, D), gathered, in the dtype of in[0]
    float *h32;                   // (chunk, D): the same as floats, where a table is trained
    float *u, *v;                 // (chunk, R): of the adapter; v = scale * dz B
    float *y;                     // (chunk, V): the product before DoRA's magnitude; NULL where that is not trained
    float *own, *spare;           // (chunk, n): logits of the table's own rows, their gradient; scratch
    uint32_t *keys;               // (chunk, 2), gathered
    float *g, *s;                 // (T): of the rows that count
    int32_t *rows;                // (T): rows that count
    int64_t n_rows, begin, count; // of this chunk
    struct tensor dh_out;
    bool dh_acc;
};

static size_t aligned(size_t bytes) {
    return (bytes + 63) / 64 * 64;
}

struct layout {
    size_t logits, y, dh, part, h, h32, u, v, own, spare, keys, g, s, rows, total;
};
static struct layout layout_of(const struct op_call *call, int threads) {
    size_t t = (size_t)call->in[0].rows, d = (size_t)call->in[0].cols, v = (size_t)call->p.logprob.w->rows;
    size_t chunk = (size_t)call->p.logprob.chunk_rows < t ? (size_t)call->p.logprob.chunk_rows : t;
    struct layout l;
    l.logits = aligned(gemm_workspace_bytes(threads));
    l.y = l.logits + aligned(chunk * v * sizeof(float));
    l.dh = l.y + (tensor_present(&call->p.logprob.on.dmagnitude) ? aligned(chunk * v * sizeof(float)) : 0);
    l.part = l.dh + aligned(chunk * d * sizeof(float));
    l.h = l.part + aligned(chunk * d * sizeof(float));
    const struct table_adapter *on = &call->p.logprob.on;
    size_t ranks = chunk * (size_t)on->a.rows * sizeof(float), own = chunk * (size_t)on->rows.rows * sizeof(float);
    bool trained = tensor_present(&on->dfull) || tensor_present(&on->drows) || tensor_present(&on->da);
    l.h32 = l.h + aligned(chunk * d * dtype_size(call->in[0].dtype));
    l.u = l.h32 + (trained ? aligned(chunk * d * sizeof(float)) : 0);
    l.v = l.u + aligned(ranks);
    l.own = l.v + aligned(ranks);
    l.spare = l.own + aligned(own);
    l.keys = l.spare + aligned(ranks);
    l.g = l.keys + (on->dropout > 0 ? aligned(chunk * 2 * sizeof(uint32_t)) : 0);
    l.s = l.g + aligned(t * sizeof(float));
    l.rows = l.s + aligned(t * sizeof(float));
    l.total = l.rows + aligned(t * sizeof(int32_t));
    return l;
}

size_t cpu_token_logprob_workspace(const struct op_call *call, bool backward, int threads) {
    if (backward && call->p.logprob.fused) return 0;
    return layout_of(call, threads).total;
}
// OP_LOGITS: the GEMM's, then U and the logits of the table's own rows.
static size_t logits_ranks(const struct op_call *call) {
    return aligned((size_t)call->in[0].rows * (size_t)call->p.logprob.on.a.rows * sizeof(float));
}
size_t cpu_logits_workspace(const struct op_call *call, bool backward, int threads) {
    (void)backward;
    size_t own = (size_t)call->in[0].rows * (size_t)call->p.logprob.on.rows.rows * sizeof(float);
    return aligned(gemm_workspace_bytes(threads)) + logits_ranks(call) + aligned(own);
}

static void head_open(struct head *h, const struct cpu_backend *b, const struct op_call *call) {
    struct layout l = layout_of(call, threads_count(b->threads));
    assert(call->workspace.cols >= (int64_t)l.total);
    uint8_t *workspace = cpu_at(b, &call->workspace);
    *h = (struct head){.b = b, .call = call, .bf16 = call->in[0].dtype == DTYPE_BF16, .gemm_workspace = workspace};
    h->logits = (float *)(void *)(workspace + l.logits);
    if (tensor_present(&call->p.logprob.on.dmagnitude)) h->y = (float *)(void *)(workspace + l.y);
    h->dh = (float *)(void *)(workspace + l.dh);
    h->part = (float *)(void *)(workspace + l.part);
    h->h = workspace + l.h;
    h->h32 = (float *)(void *)(workspace + l.h32);
    h->u = (float *)(void *)(workspace + l.u);
    h->v = (float *)(void *)(workspace + l.v);
    h->own = (float *)(void *)(workspace + l.own);
    h->spare = (float *)(void *)(workspace + l.spare);
    h->keys = (uint32_t *)(void *)(workspace + l.keys);
    h->g = (float *)(void *)(workspace + l.g);
    h->s = (float *)(void *)(workspace + l.s);
    h->rows = (int32_t *)(void *)(workspace + l.rows);
}

static void *row_of(const struct head *h, const struct tensor *t, int64_t row) {
    return (uint8_t *)cpu_at(h->b, t) + (size_t)(row * t->ld) * dtype_size(t->dtype);
}
static float number(const struct head *h, const struct tensor *t, int64_t row) {
    return *(const float *)row_of(h, t, row);
}

static float gradient(const struct head *h, int i, int64_t row) {
    const struct tensor *t = &h->call->grad_out[i];
    return tensor_present(t) ? number(h, t, row) : 0;
}

// Lists the rows that count with their coefficients and checks their targets.
static int choose_rows(struct head *h, struct error *err) {
    const struct op_call *call = h->call;
    for (int64_t t = 0; t < call->in[0].rows; t++) {
        float weight = number(h, &call->in[2], t);
        float g = h->forward ? -weight : gradient(h, 0, t), lse = h->forward ? 0 : gradient(h, 1, t);
        if (weight == 0 || (g == 0 && lse == 0)) continue;
        int32_t target = *(const int32_t *)row_of(h, &call->in[1], t);
        if (target < 0 || target >= call->p.logprob.w->rows) {
            return error_set(err, STATUS_INTERNAL, "op token_logprob: target %d of row %lld is outside 0..%lld", target,
                             (long long)t, (long long)call->p.logprob.w->rows - 1);
        }
        h->g[h->n_rows] = g;
        h->s[h->n_rows] = lse - g;
        h->rows[h->n_rows++] = (int32_t)t;
    }
    return 0;
}

static void gather_row(void *context, int64_t i, int thread) {
    (void)thread;
    const struct head *h = context;
    size_t bytes = (size_t)h->call->in[0].cols * dtype_size(h->call->in[0].dtype);
    memcpy(h->h + (size_t)i * bytes, row_of(h, &h->call->in[0], h->rows[h->begin + i]), bytes);
    const struct table_adapter *on = &h->call->p.logprob.on;
    if (on->dropout > 0) memcpy(h->keys + 2 * i, row_of(h, &on->keys, h->rows[h->begin + i]), 2 * sizeof *h->keys);
    bool trained = tensor_present(&on->dfull) || tensor_present(&on->drows) || tensor_present(&on->da);
    if (!h->with_gradient || !trained) return;
    float *copy = h->h32 + i * h->call->in[0].cols;
    if (h->bf16)
        h->b->isa->gemm->from_bf16(copy, (const uint16_t *)(void *)(h->h + (size_t)i * bytes), h->call->in[0].cols,
                                   false);
    else
        memcpy(copy, h->h + (size_t)i * bytes, bytes);
}

// --- the product of hidden rows with the table as the adapter has it

struct table_product {
    const struct cpu_backend *b;
    const struct op_call *call;
    bool bf16;
    const void *x; // (m, D), rows x_row apart
    int64_t x_row, m;
    struct gemm_dropout dropout;
    float *u, *own, *z, *y; // y: as in struct head
    int64_t ldz;
    void *gemm_workspace;
    const struct weight *bias;
};

static struct gemm_source of_tensor(const struct cpu_backend *b, const struct tensor *t) {
    struct gemm_source s = gemm_source_memory(cpu_at(b, t), t->dtype == DTYPE_BF16, t->ld, t->cols);
    return s;
}

static struct gemm_dropout head_dropout(const struct cpu_backend *b, const struct op_call *call, const uint32_t *keys,
                                        int64_t ld) {
    const struct step_scalars *s = cpu_scalars(b, call);
    const struct table_adapter *on = &call->p.logprob.on;
    if (on->dropout == 0) return (struct gemm_dropout){0};
    return (struct gemm_dropout){.key = {s->seed, s->random_step, (uint32_t)RANDOM_DROPOUT << 24 | on->module},
                                 .keys = keys,
                                 .ld = ld,
                                 .p = on->dropout};
}

// The bias that counts: the adapter's as a weight, or the base's. NULL = none.
static const struct weight *bias_of(const struct cpu_backend *b, const struct op_call *call, struct weight *own) {
    const struct tensor *t = &call->p.logprob.on.bias;
    if (!tensor_present(t)) return call->p.logprob.bias;
    *own = (struct weight){
        .name = "own bias", .format = quant_format(QUANT_F32), .data = cpu_at(b, t), .rows = 1, .cols = t->cols};
    return own;
}

static void put_own(void *context, int64_t i, int thread) {
    (void)thread;
    const struct table_product *p = context;
    const struct table_adapter *on = &p->call->p.logprob.on;
    for (int64_t j = 0; j < on->rows.rows; j++) {
        int32_t id = cpu_i32(p->b, &on->row_ids)[j * on->row_ids.ld];
        float bias = 0;
        if (p->bias) weight_decode(p->bias, 0, id, 1, &bias);
        p->z[i * p->ldz + id] = p->own[i * on->rows.rows + j] + bias;
    }
}

// DoRA: z = m / n z + bias.
static void put_magnitude(void *context, int64_t i, int thread) {
    (void)thread;
    const struct table_product *p = context;
    const struct table_adapter *on = &p->call->p.logprob.on;
    const float *m = cpu_f32(p->b, &on->magnitude), *norms = cpu_f32(p->b, &on->norms);
    int64_t v = on->magnitude.cols;
    float *z = p->z + i * p->ldz, bias[BIAS_TASK] = {0};
    if (p->y) memcpy(p->y + i * v, z, (size_t)v * sizeof *z);
    for (int64_t begin = 0; begin < v; begin += BIAS_TASK) {
        int64_t n = v - begin < BIAS_TASK ? v - begin : BIAS_TASK;
        if (p->bias) weight_decode(p->bias, 0, begin, n, bias);
        for (int64_t j = 0; j < n; j++) z[begin + j] = z[begin + j] * (m[begin + j] / norms[begin + j]) + bias[j];
    }
}

static void table_product(struct table_product *p) {
    struct weight own_bias;
    p->bias = bias_of(p->b, p->call, &own_bias);
    const struct gemm_isa *isa = p->b->isa->gemm;
    const struct weight *w = p->call->p.logprob.w;
    const struct table_adapter *on = &p->call->p.logprob.on;
    struct gemm_source sources[2] = {gemm_source_weight(isa, w, true)};
    struct gemm_term terms[2] = {{.x = p->x,
                                  .x_bf16 = p->bf16,
                                  .bf16 = p->bf16,
                                  .lanes_are_rows = true,
                                  .x_row = p->x_row,
                                  .x_k = 1,
                                  .k = w->cols,
                                  .row_end = p->m,
                                  .sources = &sources[0],
                                  .n_sources = 1}};
    struct gemm_job job = {.m = p->m, .scale = 1, .n_terms = 1, .terms = terms};
    if (tensor_present(&on->a)) {
        sources[1] = of_tensor(p->b, &on->a), sources[1].n = on->a.rows;
        terms[1] = terms[0], terms[1].sources = &sources[1], terms[1].bf16 = false;
        if (on->dropout > 0) terms[1].masked = GEMM_MASK_X, terms[1].dropout = p->dropout;
        struct gemm_job down = {.m = p->m, .n = on->a.rows, .c = p->u, .ldc = on->a.rows, .scale = on->scale};
        down.n_terms = 1, down.terms = &terms[1];
        gemm_run(p->b->threads, isa, &down, 1, p->gemm_workspace);
        sources[1] = of_tensor(p->b, &on->b), sources[1].n = on->b.rows;
        terms[1] = (struct gemm_term){.x = p->u,
                                      .lanes_are_rows = true,
                                      .x_row = on->a.rows,
                                      .x_k = 1,
                                      .k = on->a.rows,
                                      .row_end = p->m,
                                      .sources = &sources[1],
                                      .n_sources = 1};
        job.n_terms = 2;
    }
    if (tensor_present(&on->full)) sources[0] = of_tensor(p->b, &on->full), sources[0].n = w->rows;
    job.n = w->rows, job.c = p->z, job.ldc = p->ldz;
    if (!tensor_present(&on->magnitude)) job.bias = p->bias;
    gemm_run(p->b->threads, isa, &job, 1, p->gemm_workspace);
    if (tensor_present(&on->magnitude)) threads_run(p->b->threads, p->m, put_magnitude, p);
    if (!tensor_present(&on->rows)) return;
    sources[0] = of_tensor(p->b, &on->rows), sources[0].n = on->rows.rows;
    job = (struct gemm_job){.m = p->m, .n = on->rows.rows, .c = p->own, .ldc = on->rows.rows, .scale = 1};
    job.n_terms = 1, job.terms = terms;
    gemm_run(p->b->threads, isa, &job, 1, p->gemm_workspace);
    threads_run(p->b->threads, p->m, put_own, p);
}

// One row of logits to its statistics, and to its gradient where that is wanted.
static void softmax_row(void *context, int64_t i, int thread) {
    (void)thread;
    const struct head *h = context;
    const struct gemm_isa *isa = h->b->isa->gemm;
    const struct op_call *call = h->call;
    int64_t v = call->p.logprob.w->rows, row = h->rows[h->begin + i];
    float scale = call->p.logprob.logit_scale, cap = call->p.logprob.soft_cap, largest, sum;
    float *z = h->logits + i * v;
    int32_t target = *(const int32_t *)row_of(h, &call->in[1], row);
    isa->cap_row(z, v, scale, cap);
    isa->softmax_row(z, v, &largest, &sum);
    float at_target = z[target];
    if (h->forward) {
        double lse = (double)largest + det_log((double)sum);
        *(float *)row_of(h, &call->out[0], row) = (float)((double)at_target - lse);
        *(float *)row_of(h, &call->out[1], row) = (float)lse;
    }
    if (!h->with_gradient) return;
    float g = h->g[h->begin + i], s = h->s[h->begin + i], slope = scale;
    if (cap != 0) slope *= 1.0f - at_target / cap * (at_target / cap);
    isa->softmax_bwd_row(z, v, largest, s / sum, scale, cap);
    z[target] += g * slope;
}

// The gradient of a row of logits becomes that of the product, in bf16 where that is what is multiplied.
static void settle_row(void *context, int64_t i, int thread) {
    (void)thread;
    const struct head *h = context;
    const struct gemm_isa *isa = h->b->isa->gemm;
    const struct table_adapter *on = &h->call->p.logprob.on;
    int64_t v = h->call->p.logprob.w->rows;
    float *z = h->logits + i * v;
    const float *m = tensor_present(&on->magnitude) ? cpu_f32(h->b, &on->magnitude) : NULL,
                *norms = m ? cpu_f32(h->b, &on->norms) : NULL;
    for (int64_t j = 0; m && j < v; j++) z[j] *= m[j] / norms[j];
    if (!h->bf16) return;
    uint16_t part[1024]; // bf16 goes where the row's first half was: behind what is still to be read
    for (int64_t j = 0; j < v; j += 1024) {
        int64_t n = v - j < 1024 ? v - j : 1024;
        isa->to_bf16(part, z + j, n);
        memcpy((uint8_t *)z + 2 * j, part, (size_t)n * sizeof *part);
    }
}

static void scatter_row(void *context, int64_t i, int thread) {
    (void)thread;
    const struct head *h = context;
    const struct gemm_isa *isa = h->b->isa->gemm;
    int64_t d = h->dh_out.cols;
    float *from = h->dh + i * d;
    void *to = row_of(h, &h->dh_out, h->rows[h->begin + i]);
    if (h->dh_acc && h->bf16) {
        for (int64_t j = 0; j < d; j++) from[j] += bf16_to_float(((const uint16_t *)to)[j]);
    } else if (h->dh_acc) {
        for (int64_t j = 0; j < d; j++) from[j] += ((const float *)to)[j];
    }
    if (h->bf16)
        isa->to_bf16(to, from, d);
    else
        memcpy(to, from, (size_t)d * sizeof *from);
}

struct sum {
    float *out;
    const float *part;
    int64_t n;
};
static void add_part(void *context, int64_t i, int thread) {
    (void)thread;
    const struct sum *s = context;
    for (int64_t j = 0; j < s->n; j++) s->out[i * s->n + j] += s->part[i * s->n + j];
}

// dz as an operand: rows of V floats, or of V bf16 numbers 2 V apart.
static struct gemm_source gradient_source(const struct head *h) {
    int64_t v = h->call->p.logprob.w->rows;
    return gemm_source_memory(h->logits, h->bf16, h->bf16 ? 2 * v : v, v);
}

// out (count, n) = scale * dz times a table (V, n): rows of the weight, of the tensor `full` in its place, or of
// `table`. One chain of additions over a whole vocabulary would lose three digits, so stretches of it are summed from
// zero and then added.
static void over_vocabulary(struct head *h, const struct tensor *table, float scale, int64_t n, float *out,
                            float *part) {
    const struct weight *w = h->call->p.logprob.w;
    const struct gemm_isa *isa = h->b->isa->gemm;
    struct gemm_source source;
    bool base = !tensor_present(table);
    struct gemm_term term = {.x_bf16 = h->bf16,
                             .bf16 = h->bf16 && table != &h->call->p.logprob.on.b,
                             .x_row = h->bf16 ? 2 * w->rows : w->rows,
                             .x_k = 1,
                             .row_end = h->count,
                             .sources = &source,
                             .n_sources = 1};
    struct gemm_job job = {.m = h->count, .n = n, .ldc = n, .scale = scale, .n_terms = 1, .terms = &term};
    for (int64_t v = 0; v < w->rows; v += STRETCH) {
        term.k = w->rows - v < STRETCH ? w->rows - v : STRETCH;
        struct weight stretch = base ? weight_rows(w, v, term.k) : *w;
        struct tensor some = base ? *table : tensor_rows(*table, v, v + term.k);
        source = base ? gemm_source_weight(isa, &stretch, false) : of_tensor(h->b, &some);
        term.x = (const uint8_t *)h->logits + (size_t)v * (h->bf16 ? sizeof(uint16_t) : sizeof(float));
        job.c = v == 0 ? out : part;
        gemm_run(h->b->threads, isa, &job, 1, h->gemm_workspace);
        struct sum sum = {out, part, n};
        if (v > 0) threads_run(h->b->threads, h->count, add_part, &sum);
    }
}

// The gradient of the logits of the table's own rows moves from dz to h->own.
static void take_own(void *context, int64_t i, int thread) {
    (void)thread;
    const struct head *h = context;
    const struct table_adapter *on = &h->call->p.logprob.on;
    int64_t v = h->call->p.logprob.w->rows, n = on->rows.rows;
    for (int64_t j = 0; j < n; j++) {
        int32_t id = cpu_i32(h->b, &on->row_ids)[j * on->row_ids.ld];
        if (h->bf16) {
            uint16_t *z = (uint16_t *)(void *)(h->logits + i * v) + id;
            h->own[i * n + j] = bf16_to_float(*z);
            *z = 0;
        } else {
            h->own[i * n + j] = h->logits[i * v + id];
            h->logits[i * v + id] = 0;
        }
    }
}

static void run_job(const struct head *h, struct gemm_job job, const struct gemm_term *term) {
    job.n_terms = 1, job.terms = term;
    gemm_run(h->b->threads, h->b->isa->gemm, &job, 1, h->gemm_workspace);
}

// What LoRA on the head gives and takes: dh += mask (V A), dB^T += U^T dz, dA += V^T dropout(h), V = scale dz B.
static void adapter_gradients(struct head *h) {
    const struct table_adapter *on = &h->call->p.logprob.on;
    int64_t r = on->a.rows, d = on->a.cols;
    struct gemm_dropout dropout = head_dropout(h->b, h->call, h->keys, 2);
    over_vocabulary(h, &on->b, on->scale, r, h->v, h->spare);
    struct gemm_source source = of_tensor(h->b, &on->a);
    struct gemm_term term = {.x = h->v, .x_row = r, .x_k = 1, .k = r, .row_end = h->count};
    term.sources = &source, term.n_sources = 1, term.dropout = dropout;
    if (on->dropout > 0) term.masked = GEMM_MASK_PRODUCT;
    run_job(h, (struct gemm_job){.m = h->count, .n = d, .c = h->dh, .ldc = d, .acc = true, .scale = 1}, &term);
    if (!tensor_present(&on->da)) return;
    source = gradient_source(h);
    term = (struct gemm_term){.x = h->u, .x_row = 1, .x_k = r, .k = h->count, .row_end = r};
    term.sources = &source, term.n_sources = 1;
    struct gemm_job job = {.m = r, .n = on->b.rows, .ldc = on->db.ld, .c_transposed = true, .acc = true, .scale = 1};
    job.c = cpu_at(h->b, &on->db);
    run_job(h, job, &term);
    source = gemm_source_memory(h->h32, false, d, d);
    term.x = h->v, term.dropout = dropout;
    if (on->dropout > 0) term.masked = GEMM_MASK_SOURCE;
    job = (struct gemm_job){.m = r, .n = d, .c = cpu_at(h->b, &on->da), .ldc = on->da.ld, .acc = true, .scale = 1};
    run_job(h, job, &term);
}

// dW += dz^T h, of the whole table (its transpose is what is computed: dz may be bf16) and of its own rows.
static void table_gradients(struct head *h) {
    const struct table_adapter *on = &h->call->p.logprob.on;
    int64_t d = h->call->in[0].cols, n = on->rows.rows;
    struct gemm_source source = gradient_source(h);
    struct gemm_term term = {.x = h->h32, .x_row = 1, .x_k = d, .k = h->count, .row_end = d};
    term.sources = &source, term.n_sources = 1;
    struct gemm_job job = {.m = d, .n = h->call->p.logprob.w->rows, .c_transposed = true, .acc = true, .scale = 1};
    job.ldc = on->dfull.ld;
    if (tensor_present(&on->dfull)) job.c = cpu_at(h->b, &on->dfull), run_job(h, job, &term);
    if (!tensor_present(&on->drows)) return;
    source = gemm_source_memory(h->own, false, n, n);
    job.n = n, job.ldc = on->drows.ld, job.c = cpu_at(h->b, &on->drows);
    run_job(h, job, &term);
}

// db += dz, dm += dz y / n, summed over the rows of the chunk: blocks of columns, each of one thread.
static void column_gradients(void *context, int64_t i, int thread) {
    (void)thread;
    const struct head *h = context;
    const struct table_adapter *on = &h->call->p.logprob.on;
    bool bias = tensor_present(&on->dbias), magnitude = tensor_present(&on->dmagnitude);
    int64_t v = h->call->p.logprob.w->rows, begin = i * BIAS_TASK, n = v - begin < BIAS_TASK ? v - begin : BIAS_TASK;
    double sum_b[BIAS_TASK] = {0}, sum_m[BIAS_TASK] = {0};
    for (int64_t t = 0; t < h->count; t++) {
        const float *dz = h->logits + t * v + begin, *y = h->y ? h->y + t * v + begin : NULL;
        for (int64_t j = 0; j < n; j++) {
            sum_b[j] += (double)dz[j];
            if (y) sum_m[j] += (double)dz[j] * (double)y[j];
        }
    }
    for (int64_t j = 0; j < n; j++) {
        if (bias) cpu_f32(h->b, &on->dbias)[begin + j] += (float)sum_b[j];
        if (!magnitude) continue;
        double norm = (double)cpu_f32(h->b, &on->norms)[begin + j];
        cpu_f32(h->b, &on->dmagnitude)[begin + j] += (float)(sum_m[j] / norm);
    }
}

// dh, and the gradients of what is trained, from dz.
static void chunk_gradients(struct head *h) {
    const struct table_adapter *on = &h->call->p.logprob.on;
    int64_t d = h->call->in[0].cols, n = on->rows.rows;
    int64_t blocks = (h->call->p.logprob.w->rows + BIAS_TASK - 1) / BIAS_TASK;
    if (tensor_present(&on->dbias) || h->y) threads_run(h->b->threads, blocks, column_gradients, h);
    threads_run(h->b->threads, h->count, settle_row, h);
    if (n) threads_run(h->b->threads, h->count, take_own, h);
    over_vocabulary(h, &on->full, 1, d, h->dh, h->part);
    if (n) {
        struct gemm_source source = of_tensor(h->b, &on->rows);
        struct gemm_term term = {.x = h->own, .x_row = n, .x_k = 1, .k = n, .row_end = h->count};
        term.sources = &source, term.n_sources = 1;
        run_job(h, (struct gemm_job){.m = h->count, .n = d, .c = h->dh, .ldc = d, .acc = true, .scale = 1}, &term);
    }
    table_gradients(h);
    if (tensor_present(&on->a)) adapter_gradients(h);
}

// All rows that count, chunk by chunk.
static void run_chunks(struct head *h) {
    const struct op_call *call = h->call;
    struct threads *threads = h->b->threads;
    struct table_product product = {.b = h->b,
                                    .call = call,
                                    .bf16 = h->bf16,
                                    .x = h->h,
                                    .x_row = call->in[0].cols,
                                    .dropout = head_dropout(h->b, call, h->keys, 2),
                                    .u = h->u,
                                    .own = h->own,
                                    .y = h->y,
                                    .z = h->logits,
                                    .ldz = call->p.logprob.w->rows,
                                    .gemm_workspace = h->gemm_workspace};
    for (; h->begin < h->n_rows; h->begin += h->count) {
        h->count =
            h->n_rows - h->begin < call->p.logprob.chunk_rows ? h->n_rows - h->begin : call->p.logprob.chunk_rows;
        threads_run(threads, h->count, gather_row, h);
        product.m = h->count;
        table_product(&product);
        threads_run(threads, h->count, softmax_row, h);
        if (!h->with_gradient) continue;
        chunk_gradients(h);
        if (tensor_present(&h->dh_out)) threads_run(threads, h->count, scatter_row, h);
    }
}

static void zero_rows(const struct head *h, const struct tensor *t) {
    for (int64_t i = 0; i < t->rows; i++) memset(row_of(h, t, i), 0, (size_t)t->cols * dtype_size(t->dtype));
}

int cpu_token_logprob_forward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cpu_backend *b = (struct cpu_backend *)backend;
    if (!b->isa) return reference_forward(b, call, err);
    struct head h;
    head_open(&h, b, call);
    h.forward = true;
    if (choose_rows(&h, err)) return -1;
    zero_rows(&h, &call->out[0]);
    zero_rows(&h, &call->out[1]);
    h.with_gradient = call->p.logprob.fused;
    if (h.with_gradient) {
        h.dh_out = call->saved[0];
        zero_rows(&h, &h.dh_out);
    }
    run_chunks(&h);
    if (!tensor_present(&call->scalars)) return 0;
    struct step_scalars *s = cpu_scalars(b, call);
    for (int64_t i = 0; i < h.n_rows; i++) {
        double weight = (double)number(&h, &call->in[2], h.rows[i]);
        s->loss_sum -= weight * (double)number(&h, &call->out[0], h.rows[i]);
        s->weight_sum += weight;
    }
    return 0;
}

// dh was computed in the forward pass; grad_in[0] may be that very place.
static void fused_backward(const struct head *h, const struct op_call *call) {
    const struct tensor *from = &call->saved[0], *to = &call->grad_in[0];
    if (from->offset == to->offset) return;
    for (int64_t t = 0; t < to->rows; t++) {
        void *out = row_of(h, to, t);
        const void *in = row_of(h, from, t);
        if (!call->acc[0]) {
            memcpy(out, in, (size_t)to->cols * dtype_size(to->dtype));
        } else if (to->dtype == DTYPE_BF16) {
            uint16_t *sum = out;
            for (int64_t j = 0; j < to->cols; j++) {
                sum[j] = bf16_from_float(bf16_to_float(sum[j]) + bf16_to_float(((const uint16_t *)in)[j]));
            }
        } else {
            for (int64_t j = 0; j < to->cols; j++) ((float *)out)[j] += ((const float *)in)[j];
        }
    }
}

int cpu_token_logprob_backward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cpu_backend *b = (struct cpu_backend *)backend;
    if (!b->isa) return reference_backward(b, call, err);
    struct head h = {.b = b, .call = call};
    bool dh = tensor_present(&call->grad_in[0]);
    if (call->p.logprob.fused) {
        if (dh) fused_backward(&h, call);
        return 0;
    }
    head_open(&h, b, call);
    if (dh && !call->acc[0]) zero_rows(&h, &call->grad_in[0]);
    if (choose_rows(&h, err)) return -1;
    h.with_gradient = true;
    h.dh_out = call->grad_in[0];
    h.dh_acc = call->acc[0];
    run_chunks(&h);
    return 0;
}

// --- logits as they are, for generation

struct cap_rows {
    const struct gemm_isa *isa;
    float *z;
    int64_t ld, n;
    float scale, cap;
};
static void cap_row(void *context, int64_t i, int thread) {
    (void)thread;
    const struct cap_rows *c = context;
    c->isa->cap_row(c->z + i * c->ld, c->n, c->scale, c->cap);
}

int cpu_logits(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cpu_backend *b = (struct cpu_backend *)backend;
    if (!b->isa) return reference_forward(b, call, err);
    const struct tensor *h = &call->in[0], *out = &call->out[0];
    uint8_t *workspace = cpu_at(b, &call->workspace);
    size_t gemm = aligned(gemm_workspace_bytes(threads_count(b->threads)));
    const struct tensor *keys = &call->p.logprob.on.keys;
    struct table_product product = {.b = b,
                                    .call = call,
                                    .bf16 = h->dtype == DTYPE_BF16,
                                    .x = cpu_at(b, h),
                                    .x_row = h->ld,
                                    .m = h->rows,
                                    .dropout = head_dropout(b, call, cpu_at(b, keys), keys->ld),
                                    .u = (float *)(void *)(workspace + gemm),
                                    .own = (float *)(void *)(workspace + gemm + logits_ranks(call)),
                                    .z = cpu_f32(b, out),
                                    .ldz = out->ld,
                                    .gemm_workspace = workspace};
    table_product(&product);
    struct cap_rows c = {
        b->isa->gemm, cpu_f32(b, out), out->ld, out->cols, call->p.logprob.logit_scale, call->p.logprob.soft_cap};
    if (c.scale != 1 || c.cap != 0) threads_run(b->threads, out->rows, cap_row, &c);
    return 0;
}
