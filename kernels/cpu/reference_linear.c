// Linear layers with adapters: plain loops in double.
#include "kernels/cpu/reference_view.h"
#include "kernels/random.h"

// What the adapters of one row see: x with dropped elements zero and the others raised by 1 / (1 - p).
static double dropout_factor(struct cpu_backend *b, const struct op_call *call, const struct lora_span *span,
                             int64_t row, int64_t col) {
    if (span->dropout == 0) return 1;
    struct view keys = view_of(b, &call->in[1]);
    const struct step_scalars *s = cpu_scalars(b, call);
    struct random_key key = {s->seed, s->random_step, (uint32_t)RANDOM_DROPOUT << 24 | span->module};
    uint32_t bits[4];
    random_four(key, (uint32_t)view_int(&keys, row, 0), (uint32_t)view_int(&keys, row, 1), (uint32_t)(col / 4), bits);
    return random_uniform(bits[col % 4]) < span->dropout ? 0 : 1 / (1 - (double)span->dropout);
}

// scale * A dropout(x) of one row.
static void adapter_down(struct cpu_backend *b, const struct op_call *call, const struct lora_span *span,
                         const double *dropped, double *u) {
    struct view x = view_of(b, &call->in[0]), a = view_of(b, &span->a);
    for (int64_t r = 0; r < a.rows; r++) {
        u[r] = 0;
        for (int64_t k = 0; k < x.cols; k++) u[r] += view_get(&a, r, k) * dropped[k];
        u[r] *= (double)span->scale;
    }
}

static void drop_row(struct cpu_backend *b, const struct op_call *call, const struct lora_span *span, int64_t row,
                     double *factor, double *dropped) {
    struct view x = view_of(b, &call->in[0]);
    for (int64_t k = 0; k < x.cols; k++) {
        factor[k] = dropout_factor(b, call, span, row, k);
        dropped[k] = factor[k] * view_get(&x, row, k);
    }
}

static int64_t largest_rank(const struct op_call *call) {
    int64_t rank = 0;
    for (int i = 0; i < call->p.linear.n_parts; i++) {
        for (int s = 0; s < call->p.linear.parts[i].n_spans; s++) {
            if (call->p.linear.parts[i].spans[s].a.rows > rank) rank = call->p.linear.parts[i].spans[s].a.rows;
        }
    }
    return rank;
}

static int linear_part(struct cpu_backend *b, const struct op_call *call, int i, struct error *err) {
    const struct linear_part *part = &call->p.linear.parts[i];
    struct view x = view_of(b, &call->in[0]), saved = view_of(b, &call->saved[0]);
    int64_t in = part->w->cols, out = part->w->rows, rank = largest_rank(call), widest = in > out ? in : out;
    size_t bytes = (size_t)(x.rows * out + 3 * widest + rank) * sizeof(double) + (size_t)widest * sizeof(float);
    double *sum = mem_alloc(bytes); // (T, out): only the final value is rounded
    if (!sum) return error_memory(err, "a reference linear layer", bytes);
    double *row = sum + x.rows * out, *factor = row + widest, *dropped = factor + widest, *u = dropped + widest;
    float *scratch = (float *)(u + rank);
    for (int64_t n = 0; n < out; n++) {
        weight_row(part->w, n, scratch, row);
        for (int64_t t = 0; t < x.rows; t++) {
            double y = 0;
            for (int64_t k = 0; k < in; k++) y += view_get(&x, t, k) * row[k];
            sum[t * out + n] = y;
        }
    }
    if (part->bias) {
        weight_row(part->bias, 0, scratch, row);
        for (int64_t t = 0; t < x.rows; t++) {
            for (int64_t n = 0; n < out; n++) sum[t * out + n] += row[n];
        }
    }
    for (int s = 0; s < part->n_spans; s++) {
        const struct lora_span *span = &part->spans[s];
        struct view bb = view_of(b, &span->b);
        for (int64_t t = span->row_begin; t < span->row_end; t++) {
            drop_row(b, call, span, t, factor, dropped);
            adapter_down(b, call, span, dropped, u);
            for (int64_t r = 0; r < bb.cols; r++) {
                if (saved.p) view_put(&saved, t, span->u_begin + r, u[r]);
                for (int64_t n = 0; n < out; n++) sum[t * out + n] += view_get(&bb, n, r) * u[r];
            }
        }
    }
    struct view y = view_of(b, &call->out[i]);
    for (int64_t t = 0; t < x.rows; t++) {
        for (int64_t n = 0; n < out; n++) view_put(&y, t, n, sum[t * out + n]);
    }
    mem_free(sum);
    return 0;
}

int reference_linear_group(struct cpu_backend *b, const struct op_call *call, struct error *err) {
    for (int i = 0; i < call->p.linear.n_parts; i++) {
        if (linear_part(b, call, i, err)) return -1;
    }
    return 0;
}

// dx += W^T dy, into sums in double.
static void frozen_backward(const struct linear_part *part, const struct view *dy, double *dx, double *row,
                            float *scratch) {
    int64_t in = part->w->cols;
    for (int64_t n = 0; n < part->w->rows; n++) {
        weight_row(part->w, n, scratch, row);
        for (int64_t t = 0; t < dy->rows; t++) {
            double g = view_get(dy, t, n);
            for (int64_t k = 0; k < in; k++) dx[t * in + k] += g * row[k];
        }
    }
}

// With z = dropout(x), u = scale A z: du = B^T dy; dB += dy u^T; dA += scale du z^T; dx += mask (scale A^T du).
// `sums` holds (R, in) + (out, R) doubles of zero.
static void span_backward(struct cpu_backend *b, const struct op_call *call, const struct lora_span *span,
                          const struct view *dy, double *dx, double *row, double *sums) {
    struct view a = view_of(b, &span->a), bb = view_of(b, &span->b), da = view_of(b, &span->da),
                db = view_of(b, &span->db);
    int64_t in = a.cols, rank = a.rows, out = bb.rows;
    double *dropped = row, *factor = row + in, *u = factor + in, *du = u + rank, *sum_b = sums + rank * in;
    for (int64_t t = span->row_begin; t < span->row_end; t++) {
        drop_row(b, call, span, t, factor, dropped);
        adapter_down(b, call, span, dropped, u);
        for (int64_t r = 0; r < rank; r++) {
            du[r] = 0;
            for (int64_t n = 0; n < out; n++) {
                du[r] += view_get(&bb, n, r) * view_get(dy, t, n);
                sum_b[n * rank + r] += view_get(dy, t, n) * u[r];
            }
            du[r] *= (double)span->scale;
            for (int64_t k = 0; k < in; k++) {
                sums[r * in + k] += du[r] * dropped[k];
                if (dx) dx[t * in + k] += factor[k] * view_get(&a, r, k) * du[r];
            }
        }
    }
    for (int64_t r = 0; r < rank; r++) {
        for (int64_t k = 0; k < in; k++) view_grad(&da, r, k, sums[r * in + k], true);
        for (int64_t n = 0; n < out; n++) view_grad(&db, n, r, sum_b[n * rank + r], true);
    }
}

int reference_linear_group_backward(struct cpu_backend *b, const struct op_call *call, struct error *err) {
    struct view dx = view_of(b, &call->grad_in[0]);
    int64_t rows = call->in[0].rows, in = call->in[0].cols, rank = largest_rank(call);
    size_t bytes = (size_t)(rows * in) * sizeof(double);
    double *sum = mem_zalloc((size_t)(rows * in), sizeof(double));
    if (!sum) return error_memory(err, "a reference gradient", bytes);
    for (int i = 0; i < call->p.linear.n_parts; i++) {
        const struct linear_part *part = &call->p.linear.parts[i];
        struct view dy = view_of(b, &call->grad_out[i]);
        if (!dy.p) continue;
        int64_t out = part->w->rows, fixed = 2 * in + 2 * rank, span_sums = rank * (in + out);
        double *scratch = mem_zalloc((size_t)(fixed + in + span_sums), sizeof(double));
        if (!scratch) {
            mem_free(sum);
            return error_memory(err, "a reference gradient", (size_t)(fixed + in + span_sums) * sizeof(double));
        }
        if (dx.p) frozen_backward(part, &dy, sum, scratch, (float *)(scratch + fixed));
        for (int s = 0; s < part->n_spans; s++) {
            double *sums = scratch + fixed + in;
            for (int64_t j = 0; j < span_sums; j++) sums[j] = 0;
            span_backward(b, call, &part->spans[s], &dy, dx.p ? sum : NULL, scratch, sums);
        }
        mem_free(scratch);
    }
    for (int64_t t = 0; t < rows; t++) {
        for (int64_t k = 0; k < in; k++) view_grad(&dx, t, k, sum[t * in + k], call->acc[0]);
    }
    mem_free(sum);
    return 0;
}
