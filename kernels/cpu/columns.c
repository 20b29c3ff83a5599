// OP_COLUMNS: what DoRA and trained biases do to the columns of a linear's output; OP_ROW_NORMS: the norms of the rows
// of W + s B A, as |w|^2 + 2 s <A w, b> + s^2 b A A^T b of each row, so that B A is never formed: A W^T is a packed
// product, and |w|^2 is computed once.
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/reference.h"
#include "kernels/cpu/rows.h"

#include <math.h>

enum { COLUMNS_TASK = 64, SQUARES_PIECE = 256 };

static float *columns_at(const struct cpu_backend *b, const struct tensor *t) {
    return tensor_present(t) ? cpu_f32(b, t) : NULL;
}

struct columns_args {
    const struct cpu_backend *b;
    const struct op_call *call;
    float *factor, *bias; // (N); NULL = 1, 0
};

static float number(const struct columns_args *a, const struct tensor *t, int64_t row, int64_t col) {
    if (t->dtype == DTYPE_F32) return cpu_f32(a->b, t)[row * t->ld + col];
    return bf16_to_float(((const uint16_t *)cpu_at(a->b, t))[row * t->ld + col]);
}
static void put(const struct columns_args *a, const struct tensor *t, int64_t row, int64_t col, float x) {
    if (t->dtype == DTYPE_F32)
        cpu_f32(a->b, t)[row * t->ld + col] = x;
    else
        ((uint16_t *)cpu_at(a->b, t))[row * t->ld + col] = bf16_from_float(x);
}

size_t cpu_columns_workspace(const struct op_call *call, bool backward, int threads) {
    (void)backward, (void)threads;
    return 2 * (size_t)call->in[0].cols * sizeof(float);
}

static void columns_open(struct columns_args *a, const struct cpu_backend *b, const struct op_call *call) {
    int64_t n = call->in[0].cols;
    const float *m = columns_at(b, &call->p.columns.magnitude), *norms = columns_at(b, &call->p.columns.norms);
    float *workspace = (float *)cpu_at(b, &call->workspace);
    *a = (struct columns_args){.b = b, .call = call};
    if (m) a->factor = workspace;
    for (int64_t i = 0; m && i < n; i++) a->factor[i] = m[i] / norms[i];
    a->bias = columns_at(b, &call->p.columns.own_bias);
    if (a->bias || !call->p.columns.bias) return;
    a->bias = workspace + n;
    weight_decode(call->p.columns.bias, 0, 0, n, a->bias);
}

static void columns_rows(const void *args, int64_t first, int64_t last) {
    const struct columns_args *a = args;
    const struct tensor *z = &a->call->in[0], *y = &a->call->out[0];
    for (int64_t t = first; t < last; t++) {
        for (int64_t i = 0; i < z->cols; i++) {
            float c = a->factor ? a->factor[i] : 1.0f, plus = a->bias ? a->bias[i] : 0.0f;
            put(a, y, t, i, number(a, z, t, i) * c + plus);
        }
    }
}

int cpu_columns_forward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cpu_backend *b = (struct cpu_backend *)backend;
    if (!b->isa) return reference_forward(b, call, err);
    struct columns_args a;
    columns_open(&a, b, call);
    rows_run(b, columns_rows, &a, call->in[0].rows, call->in[0].cols);
    return 0;
}

// Blocks of columns: each thread adds up its own, over the rows in their order.
static void columns_sums(const void *args, int64_t first, int64_t last) {
    const struct columns_args *a = args;
    const struct op_call *call = a->call;
    const struct tensor *z = &call->in[0], *dy = &call->grad_out[0], *dz = &call->grad_in[0];
    float *dm = columns_at(a->b, &call->p.columns.dmagnitude), *db = columns_at(a->b, &call->p.columns.dbias);
    const float *norms = columns_at(a->b, &call->p.columns.norms);
    for (int64_t begin = first * COLUMNS_TASK; begin < last * COLUMNS_TASK && begin < z->cols; begin += COLUMNS_TASK) {
        int64_t n = z->cols - begin < COLUMNS_TASK ? z->cols - begin : COLUMNS_TASK;
        double sum_m[COLUMNS_TASK] = {0}, sum_b[COLUMNS_TASK] = {0};
        for (int64_t t = 0; t < z->rows; t++) {
            for (int64_t i = 0; i < n; i++) {
                float g = number(a, dy, t, begin + i);
                if (dm) sum_m[i] += (double)g * (double)number(a, z, t, begin + i);
                sum_b[i] += (double)g;
                if (!tensor_present(dz)) continue;
                float d = a->factor ? g * a->factor[begin + i] : g;
                put(a, dz, t, begin + i, call->acc[0] ? number(a, dz, t, begin + i) + d : d);
            }
        }
        for (int64_t i = 0; i < n; i++) {
            if (dm) dm[begin + i] += (float)(sum_m[i] / (double)norms[begin + i]);
            if (db) db[begin + i] += (float)sum_b[i];
        }
    }
}

int cpu_columns_backward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cpu_backend *b = (struct cpu_backend *)backend;
    if (!b->isa) return reference_backward(b, call, err);
    struct columns_args a;
    columns_open(&a, b, call);
    rows_run(b, columns_sums, &a, (call->in[0].cols + COLUMNS_TASK - 1) / COLUMNS_TASK,
             call->in[0].rows * COLUMNS_TASK);
    return 0;
}

// --- norms of rows

struct norms_args {
    const struct cpu_backend *b;
    const struct op_call *call;
    const float *along;   // (R, N): A W^T
    const double *square; // (R, R): A A^T
};

// After the GEMM's own: (R, R) doubles, then (R, N) floats.
size_t cpu_row_norms_workspace(const struct op_call *call, bool backward, int threads) {
    (void)backward;
    size_t r = (size_t)call->p.row_norms.a.rows, n = (size_t)call->p.row_norms.w->rows;
    return (gemm_workspace_bytes(threads) + 63) / 64 * 64 + r * r * sizeof(double) + r * n * sizeof(float);
}

static void squares_of_rows(const void *args, int64_t first, int64_t last) {
    const struct norms_args *a = args;
    const struct weight *w = a->call->p.row_norms.w;
    float piece[SQUARES_PIECE];
    for (int64_t o = first; o < last; o++) {
        double sum = 0;
        for (int64_t d = 0; d < w->cols; d += SQUARES_PIECE) {
            int64_t count = w->cols - d < SQUARES_PIECE ? w->cols - d : SQUARES_PIECE;
            weight_decode(w, o, d, count, piece);
            for (int64_t i = 0; i < count; i++) sum += (double)piece[i] * (double)piece[i];
        }
        cpu_f32(a->b, &a->call->out[0])[o] = (float)sum;
    }
}

static void norms_of_rows(const void *args, int64_t first, int64_t last) {
    const struct norms_args *a = args;
    const struct op_call *call = a->call;
    const struct tensor *b = &call->p.row_norms.b;
    int64_t n = call->p.row_norms.w->rows, ranks = b->cols;
    double s = (double)call->p.row_norms.scale;
    for (int64_t o = first; o < last; o++) {
        const float *row = cpu_f32(a->b, b) + o * b->ld;
        double cross = 0, own = 0;
        for (int64_t r = 0; r < ranks; r++) {
            cross += (double)row[r] * (double)a->along[r * n + o];
            for (int64_t k = 0; k < ranks; k++) own += (double)row[r] * (double)row[k] * a->square[r * ranks + k];
        }
        double sum = (double)cpu_f32(a->b, &call->in[0])[o] + 2 * s * cross + s * s * own;
        cpu_f32(a->b, &call->out[0])[o] = (float)sqrt(sum > 0 ? sum : 0);
    }
}

int cpu_row_norms(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cpu_backend *b = (struct cpu_backend *)backend;
    if (!b->isa) return reference_forward(b, call, err);
    const struct weight *w = call->p.row_norms.w;
    const struct tensor *a = &call->p.row_norms.a;
    int64_t r = a->rows;
    uint8_t *workspace = cpu_at(b, &call->workspace);
    double *square = (double *)(void *)(workspace + (gemm_workspace_bytes(threads_count(b->threads)) + 63) / 64 * 64);
    float *along = (float *)(void *)(square + r * r);
    struct norms_args args = {.b = b, .call = call, .along = along, .square = square};
    if (!tensor_present(&call->in[0])) {
        rows_run(b, squares_of_rows, &args, w->rows, w->cols);
        return 0;
    }
    for (int64_t i = 0; i < r * r; i++) {
        const float *x = cpu_f32(b, a) + i / r * a->ld, *y = cpu_f32(b, a) + i % r * a->ld;
        square[i] = 0;
        for (int64_t d = 0; d < a->cols; d++) square[i] += (double)x[d] * (double)y[d];
    }
    struct gemm_source source = gemm_source_weight(b->isa->gemm, w, true);
    struct gemm_term term = {.x = cpu_at(b, a), .lanes_are_rows = true, .x_row = a->ld, .x_k = 1, .k = w->cols};
    term.row_end = r, term.sources = &source, term.n_sources = 1;
    struct gemm_job job = {.m = r, .n = w->rows, .c = along, .ldc = w->rows, .scale = 1, .n_terms = 1, .terms = &term};
    gemm_run(b->threads, b->isa->gemm, &job, 1, workspace);
    rows_run(b, norms_of_rows, &args, w->rows, r * r);
    return 0;
}
