// OP_LINEAR_GROUP: y_i = x W_i^T + bias_i + sum over adapters of U B^T, U = scale * A dropout(x). An adapter on some of
// the rows is a term of the product over these rows only: its few inner steps follow those of W in the same tile.
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/reference.h"

#include <assert.h>
#include <string.h>

enum { MAX_SPANS = LINEAR_MAX_PARTS * LINEAR_MAX_SPANS, MAX_TERMS = LINEAR_MAX_PARTS + MAX_SPANS };

// The call, flattened: all adapters that have rows, in the order of their columns of U.
struct linear {
    const struct cpu_backend *b;
    const struct op_call *call;
    bool bf16;
    void *gemm_workspace;
    float *u, *v; // (T, ldu), (T, ldv): v = scale * dY B, at the columns of U
    int64_t ldu, ldv;
    int n_spans;
    struct {
        const struct lora_span *span;
        int part;
    } spans[MAX_SPANS];
    int n_terms, n_jobs, n_sources;
    struct gemm_term terms[2 * MAX_TERMS];
    struct gemm_source sources[2 * MAX_TERMS];
    struct gemm_job jobs[2 * MAX_SPANS];
};

static int64_t u_columns(const struct op_call *call) {
    int64_t columns = 0;
    for (int i = 0; i < call->p.linear.n_parts; i++) {
        for (int s = 0; s < call->p.linear.parts[i].n_spans; s++) {
            const struct lora_span *span = &call->p.linear.parts[i].spans[s];
            if (span->u_begin + span->a.rows > columns) columns = span->u_begin + span->a.rows;
        }
    }
    return columns;
}

// The workspace: of the GEMM, then (T, columns of U) for U where it is not saved, or for V.
size_t cpu_linear_group_workspace(const struct op_call *call, bool backward, int threads) {
    size_t bytes = gemm_workspace_bytes(threads);
    if (backward || !tensor_present(&call->saved[0])) {
        bytes += (size_t)call->in[0].rows * (size_t)u_columns(call) * sizeof(float);
    }
    return bytes;
}

static void linear_open(struct linear *l, const struct cpu_backend *b, const struct op_call *call, bool backward) {
    *l = (struct linear){.b = b, .call = call, .bf16 = call->in[0].dtype == DTYPE_BF16};
    assert(call->workspace.cols >= (int64_t)cpu_linear_group_workspace(call, backward, threads_count(b->threads)));
    uint8_t *workspace = cpu_at(b, &call->workspace);
    l->gemm_workspace = workspace;
    float *rest = (float *)(void *)(workspace + gemm_workspace_bytes(threads_count(b->threads)));
    if (tensor_present(&call->saved[0]))
        l->u = cpu_f32(b, &call->saved[0]), l->ldu = call->saved[0].ld;
    else
        l->u = rest, l->ldu = u_columns(call);
    if (backward) l->v = rest, l->ldv = u_columns(call);
    for (int i = 0; i < call->p.linear.n_parts; i++) {
        for (int s = 0; s < call->p.linear.parts[i].n_spans; s++) {
            const struct lora_span *span = &call->p.linear.parts[i].spans[s];
            if (span->row_begin >= span->row_end) continue;
            l->spans[l->n_spans].span = span, l->spans[l->n_spans].part = i;
            l->n_spans++;
        }
    }
}

// Spans of several parts may share an A: the first of them stands for all where A is concerned.
static bool follows(const struct linear *l, int i) {
    for (int k = 0; k < i; k++) {
        if (l->spans[k].span->u_begin == l->spans[i].span->u_begin) return true;
    }
    return false;
}

static void linear_run(struct linear *l) {
    if (l->n_jobs) gemm_run(l->b->threads, l->b->isa->gemm, l->jobs, l->n_jobs, l->gemm_workspace);
    l->n_jobs = l->n_terms = l->n_sources = 0;
}

static struct gemm_source *add_source(struct linear *l, struct gemm_source source) {
    assert(l->n_sources < 2 * MAX_TERMS);
    l->sources[l->n_sources] = source;
    return &l->sources[l->n_sources++];
}
static struct gemm_source of_tensor(const struct linear *l, const struct tensor *t) {
    return gemm_source_memory(cpu_at(l->b, t), t->dtype == DTYPE_BF16, t->ld, t->cols);
}
static struct gemm_term *add_term(struct linear *l, struct gemm_term term) {
    assert(l->n_terms < 2 * MAX_TERMS);
    l->terms[l->n_terms] = term;
    return &l->terms[l->n_terms++];
}
static struct gemm_job *add_job(struct linear *l, struct gemm_job job) {
    assert(l->n_jobs < 2 * MAX_SPANS);
    l->jobs[l->n_jobs] = job;
    return &l->jobs[l->n_jobs++];
}

// The mask of a span; row 0 is row `first` of x.
static struct gemm_dropout dropout_of(const struct linear *l, const struct lora_span *span, int64_t first) {
    const struct step_scalars *s = cpu_scalars(l->b, l->call);
    const struct tensor *keys = &l->call->in[1];
    return (struct gemm_dropout){
        .key = {s->seed, s->random_step, (uint32_t)RANDOM_DROPOUT << 24 | span->module},
        .keys = (const uint32_t *)cpu_at(l->b, keys) + first * keys->ld,
        .ld = keys->ld,
        .p = span->dropout,
    };
}

// Rows `first` and on of an activation as the left operand.
static void set_left(struct gemm_term *term, const struct linear *l, const struct tensor *x, int64_t first) {
    struct tensor rows = tensor_rows(*x, first, x->rows);
    term->x = cpu_at(l->b, &rows);
    term->x_bf16 = x->dtype == DTYPE_BF16;
    term->x_row = x->ld, term->x_k = 1;
}

// U of all adapters. Those that see the same rows without dropout and write neighbouring columns share a pass over x.
static void adapters_down(struct linear *l) {
    for (int i = 0; i < l->n_spans;) {
        const struct lora_span *first = l->spans[i].span;
        if (follows(l, i)) {
            i++;
            continue;
        }
        int64_t rows = first->row_end - first->row_begin;
        struct gemm_term *term =
            add_term(l, (struct gemm_term){.lanes_are_rows = true, .k = first->a.cols, .row_end = rows});
        set_left(term, l, &l->call->in[0], first->row_begin);
        if (first->dropout > 0) {
            term->masked = GEMM_MASK_X;
            term->dropout = dropout_of(l, first, first->row_begin);
        }
        struct gemm_job *job = add_job(l, (struct gemm_job){.m = rows,
                                                            .c = l->u + first->row_begin * l->ldu + first->u_begin,
                                                            .ldc = l->ldu,
                                                            .scale = first->scale,
                                                            .n_terms = 1,
                                                            .terms = term});
        do {
            const struct lora_span *span = l->spans[i].span;
            struct tensor a = span->a;
            struct gemm_source source = of_tensor(l, &a);
            source.n = a.rows;
            struct gemm_source *at = add_source(l, source);
            if (term->n_sources++ == 0) term->sources = at;
            job->n += a.rows;
            i++;
        } while (i < l->n_spans && first->dropout == 0 && l->spans[i].span->dropout == 0 &&
                 l->spans[i].span->row_begin == first->row_begin && l->spans[i].span->row_end == first->row_end &&
                 l->spans[i].span->scale == first->scale && l->spans[i].span->u_begin == first->u_begin + job->n);
    }
    linear_run(l);
}

static void outputs(struct linear *l) {
    const struct op_call *call = l->call;
    for (int i = 0; i < call->p.linear.n_parts; i++) {
        const struct linear_part *part = &call->p.linear.parts[i];
        struct gemm_term *base =
            add_term(l, (struct gemm_term){.lanes_are_rows = true,
                                           .bf16 = l->bf16,
                                           .k = part->w->cols,
                                           .row_end = call->in[0].rows,
                                           .sources = add_source(l, gemm_source_weight(l->b->isa->gemm, part->w, true)),
                                           .n_sources = 1});
        set_left(base, l, &call->in[0], 0);
        struct gemm_job *job = add_job(l, (struct gemm_job){.m = call->in[0].rows,
                                                            .n = part->w->rows,
                                                            .c = cpu_at(l->b, &call->out[i]),
                                                            .ldc = call->out[i].ld,
                                                            .c_bf16 = l->bf16,
                                                            .scale = 1,
                                                            .bias = part->bias,
                                                            .n_terms = 1,
                                                            .terms = base});
        for (int s = 0; s < l->n_spans; s++) {
            if (l->spans[s].part != i) continue;
            const struct lora_span *span = l->spans[s].span;
            struct gemm_source b = of_tensor(l, &span->b);
            b.n = span->b.rows;
            add_term(l, (struct gemm_term){.x = l->u + span->u_begin,
                                           .x_row = l->ldu,
                                           .x_k = 1,
                                           .lanes_are_rows = true,
                                           .k = span->b.cols,
                                           .row_begin = span->row_begin,
                                           .row_end = span->row_end,
                                           .sources = add_source(l, b),
                                           .n_sources = 1});
            job->n_terms++;
        }
    }
    linear_run(l);
}

int cpu_linear_group_forward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cpu_backend *b = (struct cpu_backend *)backend;
    if (!b->isa) return reference_forward(b, call, err);
    struct linear l;
    linear_open(&l, b, call, false);
    adapters_down(&l);
    outputs(&l);
    return 0;
}

// --- backward

// V = scale * dY B for every adapter that somebody needs it for.
static void adapters_up(struct linear *l) {
    bool dx = tensor_present(&l->call->grad_in[0]);
    for (int i = 0; i < l->n_spans; i++) {
        const struct lora_span *span = l->spans[i].span;
        if (follows(l, i)) continue;
        int64_t rows = span->row_end - span->row_begin;
        struct gemm_job job = {.m = rows,
                               .n = span->b.cols,
                               .c = l->v + span->row_begin * l->ldv + span->u_begin,
                               .ldc = l->ldv,
                               .scale = span->scale};
        for (int k = i; k < l->n_spans; k++) { // every part that shares this A
            const struct lora_span *same = l->spans[k].span;
            const struct tensor *dy = &l->call->grad_out[l->spans[k].part];
            if (same->u_begin != span->u_begin || !tensor_present(dy)) continue;
            struct gemm_term *term = add_term(l, (struct gemm_term){.k = same->b.rows,
                                                                    .row_end = rows,
                                                                    .sources = add_source(l, of_tensor(l, &same->b)),
                                                                    .n_sources = 1});
            set_left(term, l, dy, span->row_begin);
            if (job.n_terms++ == 0) job.terms = term;
        }
        if (job.n_terms && (dx || tensor_present(&span->da))) add_job(l, job);
    }
    linear_run(l);
}

// Is there a V for this span, that is, did a gradient arrive at one of the parts that share its A?
static bool has_v(const struct linear *l, int i) {
    if (follows(l, i)) return false;
    for (int k = i; k < l->n_spans; k++) {
        if (l->spans[k].span->u_begin == l->spans[i].span->u_begin &&
            tensor_present(&l->call->grad_out[l->spans[k].part])) {
            return true;
        }
    }
    return false;
}

// dA += V^T dropout(x), or dB^T += U^T dY: the inner index runs over the adapter's rows. A gradient that several spans
// add to is one job with a term for each, so that two threads never add to the same place.
static void adapter_gradient(struct linear *l, int which, bool is_a) {
    const struct lora_span *first = l->spans[which].span;
    const struct tensor *grad = is_a ? &first->da : &first->db;
    if (!tensor_present(grad)) return;
    assert(is_a || tensor_present(&l->call->saved[0])); // whoever trains an adapter saves U
    struct gemm_job job = {.m = first->a.rows,
                           .n = is_a ? grad->cols : grad->rows,
                           .c = cpu_at(l->b, grad),
                           .ldc = grad->ld,
                           .c_transposed = !is_a,
                           .acc = true,
                           .scale = 1};
    for (int i = 0; i < l->n_spans; i++) {
        const struct lora_span *span = l->spans[i].span;
        const struct tensor *same = is_a ? &span->da : &span->db, *dy = &l->call->grad_out[l->spans[i].part];
        if (!tensor_present(same) || same->offset != grad->offset) continue;
        if (i < which) return; // that one's job
        if (is_a ? !has_v(l, i) : !tensor_present(dy)) continue;
        const struct tensor *right = is_a ? &l->call->in[0] : dy;
        int64_t ld = is_a ? l->ldv : l->ldu, rows = span->row_end - span->row_begin;
        struct tensor some = tensor_rows(*right, span->row_begin, span->row_end);
        struct gemm_term *term =
            add_term(l, (struct gemm_term){.x = (is_a ? l->v : l->u) + span->row_begin * ld + span->u_begin,
                                           .x_row = 1,
                                           .x_k = ld,
                                           .k = rows,
                                           .row_end = span->a.rows,
                                           .sources = add_source(l, of_tensor(l, &some)),
                                           .n_sources = 1});
        if (is_a && span->dropout > 0) {
            term->masked = GEMM_MASK_SOURCE;
            term->dropout = dropout_of(l, span, span->row_begin);
        }
        if (job.n_terms++ == 0) job.terms = term;
    }
    if (job.n_terms) add_job(l, job);
}

// The terms V A of the adapters of a part, masked where x was.
static void input_gradient_adapters(struct linear *l, int part) {
    for (int s = 0; s < l->n_spans; s++) {
        if (l->spans[s].part != part || !has_v(l, s)) continue;
        const struct lora_span *span = l->spans[s].span;
        struct gemm_term *term = add_term(l, (struct gemm_term){.x = l->v + span->u_begin,
                                                                .x_row = l->ldv,
                                                                .x_k = 1,
                                                                .k = span->a.rows,
                                                                .row_begin = span->row_begin,
                                                                .row_end = span->row_end,
                                                                .sources = add_source(l, of_tensor(l, &span->a)),
                                                                .n_sources = 1});
        if (span->dropout == 0) continue;
        term->masked = GEMM_MASK_PRODUCT;
        term->dropout = dropout_of(l, span, 0);
    }
}

// dX = [dX +] sum of dY_i W_i + V_i A_i, the second masked where x was.
static void input_gradient(struct linear *l) {
    const struct op_call *call = l->call;
    const struct tensor *dx = &call->grad_in[0];
    struct gemm_job job = {.m = dx->rows,
                           .n = dx->cols,
                           .c = cpu_at(l->b, dx),
                           .ldc = dx->ld,
                           .c_bf16 = l->bf16,
                           .acc = call->acc[0],
                           .scale = 1,
                           .terms = l->terms};
    for (int i = 0; i < call->p.linear.n_parts; i++) {
        const struct tensor *dy = &call->grad_out[i];
        if (!tensor_present(dy)) continue;
        const struct weight *w = call->p.linear.parts[i].w;
        struct gemm_term *base =
            add_term(l, (struct gemm_term){.bf16 = l->bf16,
                                           .k = w->rows,
                                           .row_end = dx->rows,
                                           .sources = add_source(l, gemm_source_weight(l->b->isa->gemm, w, false)),
                                           .n_sources = 1});
        set_left(base, l, dy, 0);
        input_gradient_adapters(l, i);
    }
    for (int i = 0; i < call->p.linear.n_parts; i++) { // an A may be shared with a part that has no gradient itself
        if (!tensor_present(&call->grad_out[i])) input_gradient_adapters(l, i);
    }
    job.n_terms = l->n_terms;
    if (job.n_terms) add_job(l, job);
    linear_run(l);
}

int cpu_linear_group_backward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cpu_backend *b = (struct cpu_backend *)backend;
    if (!b->isa) return reference_backward(b, call, err);
    struct linear l;
    linear_open(&l, b, call, true);
    bool any = false;
    for (int i = 0; i < call->p.linear.n_parts; i++) any = any || tensor_present(&call->grad_out[i]);
    if (any) {
        adapters_up(&l);
        for (int i = 0; i < l.n_spans; i++) adapter_gradient(&l, i, true), adapter_gradient(&l, i, false);
        linear_run(&l); // before dX, which may take the place of x
        if (tensor_present(&call->grad_in[0])) input_gradient(&l);
        return 0;
    }
    const struct tensor *dx = &call->grad_in[0];
    if (!tensor_present(dx) || call->acc[0]) return 0;
    uint8_t *row = cpu_at(b, dx);
    for (int64_t i = 0; i < dx->rows; i++) {
        memset(row + (size_t)(i * dx->ld) * dtype_size(dx->dtype), 0, (size_t)dx->cols * dtype_size(dx->dtype));
    }
    return 0;
}
