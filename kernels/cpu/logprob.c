// OP_TOKEN_LOGPROB and OP_LOGITS. Rows that count are gathered in chunks, so that logits exist for a chunk of rows at a
// time and for no row that nobody asks about:
//   z = cap(logit_scale * h W^T),  lse = log sum e^z,  logp = z[target] - lse,  dz = (g onehot + s softmax) z'
// with g = -weight, s = weight when the gradient of the loss is wanted at once (fused), else g = dlogp, s = dlse -
// dlogp.
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/reference.h"
#include "kernels/cpu/scalar.h"

#include <assert.h>
#include <math.h>
#include <string.h>

enum { STRETCH = 1024 }; // rows of the vocabulary whose products are summed in one chain

struct head {
    const struct cpu_backend *b;
    const struct op_call *call;
    bool bf16, forward, with_gradient;
    void *gemm_workspace;
    float *logits;                // (chunk, V); its gradient, as bf16 in the first half of each row in bf16 mode
    float *dh, *part;             // (chunk, D): the gradient of h, and what one stretch of the vocabulary adds to it
    uint8_t *h;                   // (chunk, D), gathered, in the dtype of in[0]
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
    size_t logits, dh, part, h, g, s, rows, total;
};
static struct layout layout_of(const struct op_call *call, int threads) {
    size_t t = (size_t)call->in[0].rows, d = (size_t)call->in[0].cols, v = (size_t)call->p.logprob.w->rows;
    size_t chunk = (size_t)call->p.logprob.chunk_rows < t ? (size_t)call->p.logprob.chunk_rows : t;
    struct layout l;
    l.logits = aligned(gemm_workspace_bytes(threads));
    l.dh = l.logits + aligned(chunk * v * sizeof(float));
    l.part = l.dh + aligned(chunk * d * sizeof(float));
    l.h = l.part + aligned(chunk * d * sizeof(float));
    l.g = l.h + aligned(chunk * d * dtype_size(call->in[0].dtype));
    l.s = l.g + aligned(t * sizeof(float));
    l.rows = l.s + aligned(t * sizeof(float));
    l.total = l.rows + aligned(t * sizeof(int32_t));
    return l;
}

size_t cpu_token_logprob_workspace(const struct op_call *call, bool backward, int threads) {
    if (backward && call->p.logprob.fused) return 0;
    return layout_of(call, threads).total;
}
size_t cpu_logits_workspace(const struct op_call *call, bool backward, int threads) {
    (void)call, (void)backward;
    return gemm_workspace_bytes(threads);
}

static void head_open(struct head *h, const struct cpu_backend *b, const struct op_call *call) {
    struct layout l = layout_of(call, threads_count(b->threads));
    assert(call->workspace.cols >= (int64_t)l.total);
    uint8_t *workspace = cpu_at(b, &call->workspace);
    *h = (struct head){.b = b, .call = call, .bf16 = call->in[0].dtype == DTYPE_BF16, .gemm_workspace = workspace};
    h->logits = (float *)(void *)(workspace + l.logits);
    h->dh = (float *)(void *)(workspace + l.dh);
    h->part = (float *)(void *)(workspace + l.part);
    h->h = workspace + l.h;
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

static void add_part(void *context, int64_t i, int thread) {
    (void)thread;
    const struct head *h = context;
    int64_t d = h->call->in[0].cols;
    for (int64_t j = 0; j < d; j++) h->dh[i * d + j] += h->part[i * d + j];
}

// dh = dz W. One chain of additions over a whole vocabulary would lose three digits, so stretches of it are summed from
// zero and then added.
static void hidden_gradient(struct head *h) {
    const struct weight *w = h->call->p.logprob.w;
    const struct gemm_isa *isa = h->b->isa->gemm;
    struct gemm_source source;
    struct gemm_term term = {.x_bf16 = h->bf16,
                             .bf16 = h->bf16,
                             .x_row = h->bf16 ? 2 * w->rows : w->rows,
                             .x_k = 1,
                             .row_end = h->count,
                             .sources = &source,
                             .n_sources = 1};
    struct gemm_job job = {.m = h->count, .n = w->cols, .ldc = w->cols, .scale = 1, .n_terms = 1, .terms = &term};
    for (int64_t v = 0; v < w->rows; v += STRETCH) {
        term.k = w->rows - v < STRETCH ? w->rows - v : STRETCH;
        struct weight stretch = weight_rows(w, v, term.k);
        source = gemm_source_weight(isa, &stretch, false);
        term.x = (const uint8_t *)h->logits + (size_t)v * (h->bf16 ? sizeof(uint16_t) : sizeof(float));
        job.c = v == 0 ? h->dh : h->part;
        gemm_run(h->b->threads, isa, &job, 1, h->gemm_workspace);
        if (v > 0) threads_run(h->b->threads, h->count, add_part, h);
    }
}

// All rows that count, chunk by chunk.
static void run_chunks(struct head *h) {
    const struct op_call *call = h->call;
    const struct weight *w = call->p.logprob.w;
    struct threads *threads = h->b->threads;
    const struct gemm_isa *isa = h->b->isa->gemm;
    struct gemm_source forward = gemm_source_weight(isa, w, true);
    for (; h->begin < h->n_rows; h->begin += h->count) {
        h->count =
            h->n_rows - h->begin < call->p.logprob.chunk_rows ? h->n_rows - h->begin : call->p.logprob.chunk_rows;
        threads_run(threads, h->count, gather_row, h);
        struct gemm_term term = {.x = h->h,
                                 .x_bf16 = h->bf16,
                                 .bf16 = h->bf16,
                                 .lanes_are_rows = true,
                                 .x_row = w->cols,
                                 .x_k = 1,
                                 .k = w->cols,
                                 .row_end = h->count,
                                 .sources = &forward,
                                 .n_sources = 1};
        struct gemm_job job = {
            .m = h->count, .n = w->rows, .c = h->logits, .ldc = w->rows, .scale = 1, .n_terms = 1, .terms = &term};
        job.bias = call->p.logprob.bias;
        gemm_run(threads, isa, &job, 1, h->gemm_workspace);
        threads_run(threads, h->count, softmax_row, h);
        if (!h->with_gradient) continue;
        hidden_gradient(h);
        threads_run(threads, h->count, scatter_row, h);
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
    if (!tensor_present(&call->grad_in[0])) return 0;
    struct head h = {.b = b, .call = call};
    if (call->p.logprob.fused) {
        fused_backward(&h, call);
        return 0;
    }
    head_open(&h, b, call);
    if (!call->acc[0]) zero_rows(&h, &call->grad_in[0]);
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
    const struct weight *w = call->p.logprob.w;
    bool bf16 = h->dtype == DTYPE_BF16;
    struct gemm_source source = gemm_source_weight(b->isa->gemm, w, true);
    struct gemm_term term = {.x = cpu_at(b, h),
                             .x_bf16 = bf16,
                             .bf16 = bf16,
                             .lanes_are_rows = true,
                             .x_row = h->ld,
                             .x_k = 1,
                             .k = h->cols,
                             .row_end = h->rows,
                             .sources = &source,
                             .n_sources = 1};
    struct gemm_job job = {
        .m = h->rows, .n = w->rows, .c = cpu_at(b, out), .ldc = out->ld, .scale = 1, .n_terms = 1, .terms = &term};
    job.bias = call->p.logprob.bias;
    gemm_run(b->threads, b->isa->gemm, &job, 1, cpu_at(b, &call->workspace));
    struct cap_rows c = {
        b->isa->gemm, cpu_f32(b, out), out->ld, out->cols, call->p.logprob.logit_scale, call->p.logprob.soft_cap};
    if (c.scale != 1 || c.cap != 0) threads_run(b->threads, out->rows, cap_row, &c);
    return 0;
}
