// OP_LINEAR_GROUP on the GPU: y_i = W_i x + bias_i + scale B_i A_i dropout(x). A packed W is decoded into the
// workspace, then multiplied by the library. The A's of parts that read the same rows without dropout are one matrix,
// so that x is read once for all of them, and their part of dx is one product.
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/cuda_plan.h"
#include "kernels/cuda/gpu_decode.h"
#include "kernels/cuda/gpu_lora.h"
#include "kernels/cuda/gpu_rows.h"

struct linear {
    struct cuda_backend *b;
    const struct op_call *call;
    struct linear_space space;
    uint8_t *base; // of the workspace
    enum dtype dtype;
    size_t size;
    int64_t rows, in;
    float *u; // (T, R), rows u_ld apart
    int64_t u_ld;
};

static int open_linear(struct linear *l, struct backend *backend, const struct op_call *call, bool backward,
                       struct error *err) {
    struct cuda_backend *b = cuda_self(backend);
    *l = (struct linear){.b = b,
                         .call = call,
                         .space = linear_space_of(call, backward),
                         .base = cuda_at(b, &call->workspace),
                         .dtype = call->in[0].dtype,
                         .size = dtype_size(call->in[0].dtype),
                         .rows = call->in[0].rows,
                         .in = call->in[0].cols};
    if (tensor_bytes(&call->workspace) < l->space.bytes) return error_set(err, STATUS_INTERNAL, "workspace too small");
    bool saved = tensor_present(&call->saved[0]);
    l->u = saved ? cuda_at(b, &call->saved[0]) : (float *)(void *)(l->base + l->space.u);
    l->u_ld = saved ? call->saved[0].ld : l->space.ranks;
    return 0;
}

// Address of (row, col) of a tensor of the call.
static void *at(const struct linear *l, const struct tensor *t, int64_t row, int64_t col) {
    return l->b->gpu.arena + t->offset + (size_t)(row * t->ld + col) * dtype_size(t->dtype);
}

// W as the product can read it.
static int frozen(struct linear *l, const struct weight *w, struct gemm_operand *out, struct error *err) {
    struct weight device;
    struct weight_tables tables;
    if (cuda_weight_on_device(l->b, w, &device, &tables, err)) return -1;
    if (cuda_weight_is_plain(w, l->dtype)) {
        *out = (struct gemm_operand){.p = device.data, .ld = (int64_t)(weight_stride(w) / l->size)};
        return 0;
    }
    void *scratch = l->base + l->space.weight;
    gpu_decode(&l->b->gpu, &device, 0, w->rows, scratch, l->dtype, w->cols);
    *out = (struct gemm_operand){.p = scratch, .ld = w->cols};
    return 0;
}

// An adapter's B in the activations' type.
static struct gemm_operand matrix_b(struct linear *l, const struct lora_span *s) {
    const float *b = at(l, &s->b, 0, 0);
    if (l->dtype == DTYPE_F32) return (struct gemm_operand){.p = b, .ld = s->b.ld};
    void *copy = l->base + l->space.b;
    gpu_convert(&l->b->gpu, b, DTYPE_F32, s->b.ld, copy, DTYPE_BF16, s->b.cols, s->b.rows, s->b.cols);
    return (struct gemm_operand){.p = copy, .ld = s->b.cols};
}

// All A's, each times its scale where `scaled`, at the rows of their columns of U.
static void *stack_a(struct linear *l, bool scaled) {
    struct gpu_stack stack = {0};
    for (int i = 0; i < l->call->p.linear.n_parts; i++) {
        const struct linear_part *part = &l->call->p.linear.parts[i];
        for (int k = 0; k < part->n_spans; k++) {
            const struct lora_span *s = &part->spans[k];
            stack.part[stack.n].from = at(l, &s->a, 0, 0);
            stack.part[stack.n].ld = s->a.ld;
            stack.part[stack.n].begin = s->u_begin;
            stack.part[stack.n].rows = s->a.rows;
            stack.part[stack.n++].scale = scaled ? s->scale : 1;
        }
    }
    void *to = l->base + l->space.a;
    gpu_stack_rows(&l->b->gpu, &stack, to, l->dtype, l->in);
    return to;
}

// --- spans that read the same rows of x without dropout stand side by side in U: one run of columns

struct span_ref {
    int part;
    const struct lora_span *span;
};

struct run {
    int64_t row_begin, row_end, u_begin, u_end;
    const struct lora_span *first; // its module and dropout
};

static int spans_of(const struct op_call *call, struct span_ref refs[GPU_STACK_MAX]) {
    int n = 0;
    for (int i = 0; i < call->p.linear.n_parts; i++) {
        for (int k = 0; k < call->p.linear.parts[i].n_spans; k++)
            refs[n++] = (struct span_ref){i, &call->p.linear.parts[i].spans[k]};
    }
    return n;
}

// Spans that share an A have one place in U, and are in one run.
static int runs_of(const struct op_call *call, struct run runs[GPU_STACK_MAX]) {
    struct span_ref refs[GPU_STACK_MAX];
    int n = 0, count = spans_of(call, refs);
    for (int i = 0; i < count; i++) {
        const struct lora_span *s = refs[i].span;
        bool known = false;
        for (int k = 0; k < n && !known; k++) {
            struct run *r = &runs[k];
            bool same_rows = s->row_begin == r->row_begin && s->row_end == r->row_end;
            known = s->u_begin >= r->u_begin && s->u_begin < r->u_end;
            if (known || !same_rows || s->u_begin != r->u_end || s->dropout > 0 || r->first->dropout > 0) continue;
            r->u_end += s->a.rows;
            known = true;
        }
        if (!known) runs[n++] = (struct run){s->row_begin, s->row_end, s->u_begin, s->u_begin + s->a.rows, s};
    }
    return n;
}

// What the adapters of a run see of x, rows [row_begin, row_end).
static struct gemm_operand input_of(struct linear *l, const struct run *r) {
    const struct tensor *x = &l->call->in[0], *keys = &l->call->in[1];
    const void *from = at(l, x, r->row_begin, 0);
    if (r->first->dropout <= 0) return (struct gemm_operand){.p = from, .ld = x->ld};
    struct gpu_mask mask = {at(l, keys, r->row_begin, 0), keys->ld, cuda_at(l->b, &l->call->scalars), r->first->module,
                            r->first->dropout};
    void *to = l->base + l->space.dropped;
    gpu_drop(&l->b->gpu, &mask, from, l->dtype, x->ld, to, l->in, r->row_end - r->row_begin, l->in);
    return (struct gemm_operand){.p = to, .ld = l->in};
}

// Columns [begin, end) of U, rows from row_begin on, in the activations' type.
static struct gemm_operand u_operand(struct linear *l, int64_t row_begin, int64_t row_end, int64_t begin, int64_t end) {
    const float *u = l->u + row_begin * l->u_ld + begin;
    if (l->dtype == DTYPE_F32) return (struct gemm_operand){.p = u, .ld = l->u_ld};
    uint16_t *copy = (uint16_t *)(void *)(l->base + l->space.ub) + row_begin * l->space.ranks + begin;
    gpu_convert(&l->b->gpu, u, DTYPE_F32, l->u_ld, copy, DTYPE_BF16, l->space.ranks, row_end - row_begin, end - begin);
    return (struct gemm_operand){.p = copy, .ld = l->space.ranks};
}

// U = scale A dropout(x), f32.
static int down(struct linear *l, const struct run *runs, int n_runs, struct error *err) {
    const uint8_t *a = n_runs ? stack_a(l, true) : NULL;
    for (int i = 0; i < n_runs; i++) {
        const struct run *r = &runs[i];
        struct gemm_product p = {.m = r->row_end - r->row_begin,
                                 .n = r->u_end - r->u_begin,
                                 .k = l->in,
                                 .type = l->dtype,
                                 .c_type = DTYPE_F32,
                                 .a = input_of(l, r),
                                 .b = {a + (size_t)(r->u_begin * l->in) * l->size, l->in, true},
                                 .c = l->u + r->row_begin * l->u_ld + r->u_begin,
                                 .ldc = l->u_ld,
                                 .alpha = 1};
        if (cuda_gemm(l->b, &p, err)) return -1;
    }
    return 0;
}

static int part_forward(struct linear *l, int i, struct error *err) {
    const struct linear_part *part = &l->call->p.linear.parts[i];
    const struct tensor *x = &l->call->in[0], *y = &l->call->out[i];
    const float *bias;
    struct gemm_product p = {.m = l->rows,
                             .n = part->w->rows,
                             .k = l->in,
                             .type = l->dtype,
                             .c_type = l->dtype,
                             .a = {at(l, x, 0, 0), x->ld, false},
                             .c = at(l, y, 0, 0),
                             .ldc = y->ld,
                             .alpha = 1};
    if (frozen(l, part->w, &p.b, err) || cuda_vector(l->b, part->bias, &bias, err)) return -1;
    p.b.transposed = true;
    if (cuda_gemm(l->b, &p, err)) return -1;
    if (bias) gpu_add_bias(&l->b->gpu, p.c, l->dtype, y->ld, bias, l->rows, part->w->rows);
    for (int k = 0; k < part->n_spans; k++) {
        const struct lora_span *s = &part->spans[k];
        struct gemm_operand b = matrix_b(l, s);
        b.transposed = true;
        struct gemm_product up = {.m = s->row_end - s->row_begin,
                                  .n = part->w->rows,
                                  .k = s->a.rows,
                                  .type = l->dtype,
                                  .c_type = l->dtype,
                                  .a = u_operand(l, s->row_begin, s->row_end, s->u_begin, s->u_begin + s->a.rows),
                                  .b = b,
                                  .c = at(l, y, s->row_begin, 0),
                                  .ldc = y->ld,
                                  .alpha = 1,
                                  .beta = 1};
        if (cuda_gemm(l->b, &up, err)) return -1;
    }
    return 0;
}

int cuda_linear_group_forward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct linear l;
    struct run runs[GPU_STACK_MAX];
    if (open_linear(&l, backend, call, false, err) || down(&l, runs, runs_of(call, runs), err)) return -1;
    for (int i = 0; i < call->p.linear.n_parts; i++) {
        if (part_forward(&l, i, err)) return -1;
    }
    return cuda_launched(err);
}

// --- backward

// dX (+)= dY_i W_i
static int frozen_backward(struct linear *l, int i, bool add, struct error *err) {
    const struct linear_part *part = &l->call->p.linear.parts[i];
    const struct tensor *dy = &l->call->grad_out[i], *dx = &l->call->grad_in[0];
    struct gemm_product p = {.m = l->rows,
                             .n = l->in,
                             .k = part->w->rows,
                             .type = l->dtype,
                             .c_type = l->dtype,
                             .a = {at(l, dy, 0, 0), dy->ld, false},
                             .c = at(l, dx, 0, 0),
                             .ldc = dx->ld,
                             .alpha = 1,
                             .beta = add};
    return frozen(l, part->w, &p.b, err) || cuda_gemm(l->b, &p, err) ? -1 : 0;
}

// V (+)= scale dY B, f32, and dB += dY' U.
static int span_backward(struct linear *l, int i, const struct lora_span *s, bool add, struct error *err) {
    const struct tensor *dy = &l->call->grad_out[i];
    int64_t rows = s->row_end - s->row_begin, out = s->b.rows, rank = s->b.cols;
    float *v = (float *)(void *)(l->base + l->space.v) + s->row_begin * l->space.ranks + s->u_begin;
    struct gemm_product p = {.m = rows,
                             .n = rank,
                             .k = out,
                             .type = l->dtype,
                             .c_type = DTYPE_F32,
                             .a = {at(l, dy, s->row_begin, 0), dy->ld, false},
                             .b = matrix_b(l, s),
                             .c = v,
                             .ldc = l->space.ranks,
                             .alpha = s->scale,
                             .beta = add};
    if (cuda_gemm(l->b, &p, err)) return -1;
    if (!tensor_present(&s->db)) return 0;
    struct gemm_product db = {.m = out,
                              .n = rank,
                              .k = rows,
                              .type = l->dtype,
                              .c_type = DTYPE_F32,
                              .a = {at(l, dy, s->row_begin, 0), dy->ld, true},
                              .b = u_operand(l, s->row_begin, s->row_end, s->u_begin, s->u_begin + rank),
                              .c = at(l, &s->db, 0, 0),
                              .ldc = s->db.ld,
                              .alpha = 1,
                              .beta = 1};
    return cuda_gemm(l->b, &db, err);
}

// dA += V' dropout(x) of one span.
static int down_backward(struct linear *l, const struct lora_span *s, struct gemm_operand v, struct gemm_operand x,
                         struct error *err) {
    if (!tensor_present(&s->da)) return 0;
    v.transposed = true;
    struct gemm_product p = {.m = s->a.rows,
                             .n = l->in,
                             .k = s->row_end - s->row_begin,
                             .type = l->dtype,
                             .c_type = DTYPE_F32,
                             .a = v,
                             .b = x,
                             .c = at(l, &s->da, 0, 0),
                             .ldc = s->da.ld,
                             .alpha = 1,
                             .beta = 1};
    return cuda_gemm(l->b, &p, err);
}

// dX += mask (V A) of a run; `a` is the stack without scales, which V holds.
static int input_backward(struct linear *l, const struct run *r, const uint8_t *a, struct gemm_operand v,
                          struct error *err) {
    const struct tensor *dx = &l->call->grad_in[0], *keys = &l->call->in[1];
    int64_t rows = r->row_end - r->row_begin;
    bool masked = r->first->dropout > 0;
    float *through = (float *)(void *)(l->base + l->space.through);
    struct gemm_product p = {.m = rows,
                             .n = l->in,
                             .k = r->u_end - r->u_begin,
                             .type = l->dtype,
                             .c_type = masked ? DTYPE_F32 : l->dtype,
                             .a = v,
                             .b = {a + (size_t)(r->u_begin * l->in) * l->size, l->in, false},
                             .c = masked ? (void *)through : at(l, dx, r->row_begin, 0),
                             .ldc = masked ? l->in : dx->ld,
                             .alpha = 1,
                             .beta = !masked};
    if (cuda_gemm(l->b, &p, err)) return -1;
    if (!masked) return 0;
    struct gpu_mask mask = {at(l, keys, r->row_begin, 0), keys->ld, cuda_at(l->b, &l->call->scalars), r->first->module,
                            r->first->dropout};
    gpu_drop_add(&l->b->gpu, &mask, through, l->in, at(l, dx, r->row_begin, 0), l->dtype, dx->ld, rows, l->in);
    return 0;
}

static int adapters_backward(struct linear *l, bool dx, struct error *err) {
    struct span_ref refs[GPU_STACK_MAX];
    struct run runs[GPU_STACK_MAX];
    bool written[GPU_STACK_MAX] = {false}; // V of span i, or of an earlier one with the same place
    int n = spans_of(l->call, refs), n_runs = runs_of(l->call, runs);
    if (n == 0) return 0;
    float *v = (float *)(void *)(l->base + l->space.v);
    for (int i = 0; i < n; i++) {
        bool add = false;
        if (!tensor_present(&l->call->grad_out[refs[i].part])) continue;
        for (int k = 0; k < i; k++) add |= written[k] && refs[k].span->u_begin == refs[i].span->u_begin;
        if (span_backward(l, refs[i].part, refs[i].span, add, err)) return -1;
        written[i] = true;
    }
    const uint8_t *a = dx ? stack_a(l, false) : NULL;
    for (int j = 0; j < n_runs; j++) {
        const struct run *r = &runs[j];
        float *of_run = v + r->row_begin * l->space.ranks + r->u_begin;
        // Columns whose outputs have no gradient are zero.
        for (int64_t c = r->u_begin; c < r->u_end;) {
            int64_t width = 0;
            bool any = false;
            for (int i = 0; i < n; i++) {
                if (refs[i].span->u_begin != c) continue;
                width = refs[i].span->a.rows, any |= written[i];
            }
            if (!any) {
                struct op_call zero = {.op = OP_FILL,
                                       .out = {{.dtype = DTYPE_F32,
                                                .rows = r->row_end - r->row_begin,
                                                .cols = width,
                                                .ld = l->space.ranks,
                                                .offset = (size_t)((uint8_t *)(v + r->row_begin * l->space.ranks + c) -
                                                                   l->b->gpu.arena)}}};
                gpu_fill(&l->b->gpu, &zero);
            }
            c += width;
        }
        struct gemm_operand run_v = {.p = of_run, .ld = l->space.ranks};
        if (l->dtype == DTYPE_BF16) {
            uint16_t *copy = (uint16_t *)(void *)(l->base + l->space.vb) + r->row_begin * l->space.ranks + r->u_begin;
            gpu_convert(&l->b->gpu, of_run, DTYPE_F32, l->space.ranks, copy, DTYPE_BF16, l->space.ranks,
                        r->row_end - r->row_begin, r->u_end - r->u_begin);
            run_v.p = copy;
        }
        struct gemm_operand x = input_of(l, r);
        for (int i = 0; i < n; i++) { // each A once, though several parts may share it
            const struct lora_span *s = refs[i].span;
            bool again = false;
            for (int k = 0; k < i; k++) again |= refs[k].span->u_begin == s->u_begin;
            if (again || s->u_begin < r->u_begin || s->u_begin >= r->u_end) continue;
            struct gemm_operand span_v = run_v;
            span_v.p = (const uint8_t *)run_v.p + (size_t)(s->u_begin - r->u_begin) * l->size;
            if (down_backward(l, s, span_v, x, err)) return -1;
        }
        if (dx && input_backward(l, r, a, run_v, err)) return -1;
    }
    return 0;
}

int cuda_linear_group_backward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct linear l;
    bool dx = tensor_present(&call->grad_in[0]), add = call->acc[0];
    if (open_linear(&l, backend, call, true, err)) return -1;
    for (int i = 0; dx && i < call->p.linear.n_parts; i++) {
        if (!tensor_present(&call->grad_out[i])) continue;
        if (frozen_backward(&l, i, add, err)) return -1;
        add = true;
    }
    if (dx && !add) { // nothing reached it
        struct op_call zero = {.op = OP_FILL, .out = {call->grad_in[0]}};
        gpu_fill(&l.b->gpu, &zero);
    }
    return adapters_backward(&l, dx, err) ? -1 : cuda_launched(err);
}
