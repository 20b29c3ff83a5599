// OP_COLUMNS and OP_ROW_NORMS: plain loops in double.
#include "kernels/cpu/reference_view.h"

#include <math.h>

static double factor_of(const struct cpu_backend *b, const struct op_call *call, int64_t n) {
    struct view m = view_of(b, &call->p.columns.magnitude), norms = view_of(b, &call->p.columns.norms);
    return m.p ? view_get(&m, 0, n) / view_get(&norms, 0, n) : 1;
}

void reference_columns(struct cpu_backend *b, const struct op_call *call) {
    struct view z = view_of(b, &call->in[0]), y = view_of(b, &call->out[0]),
                own = view_of(b, &call->p.columns.own_bias);
    for (int64_t n = 0; n < z.cols; n++) {
        float bias = 0;
        if (call->p.columns.bias) weight_decode(call->p.columns.bias, 0, n, 1, &bias);
        double c = factor_of(b, call, n), plus = own.p ? view_get(&own, 0, n) : (double)bias;
        for (int64_t t = 0; t < z.rows; t++) view_put(&y, t, n, c * view_get(&z, t, n) + plus);
    }
}

// dz = m / n dy; dm = sum over rows of dy z / n; db = sum of dy. The norms are constants.
void reference_columns_backward(struct cpu_backend *b, const struct op_call *call) {
    struct view z = view_of(b, &call->in[0]), dy = view_of(b, &call->grad_out[0]), dz = view_of(b, &call->grad_in[0]);
    struct view dm = view_of(b, &call->p.columns.dmagnitude), db = view_of(b, &call->p.columns.dbias),
                norms = view_of(b, &call->p.columns.norms);
    for (int64_t n = 0; n < z.cols; n++) {
        double c = factor_of(b, call, n), sum_m = 0, sum_b = 0;
        for (int64_t t = 0; t < z.rows; t++) {
            double g = view_get(&dy, t, n);
            view_grad(&dz, t, n, c * g, call->acc[0]);
            sum_m += g * view_get(&z, t, n), sum_b += g;
        }
        if (dm.p) view_grad(&dm, 0, n, sum_m / view_get(&norms, 0, n), true);
        view_grad(&db, 0, n, sum_b, true);
    }
}

int reference_row_norms(struct cpu_backend *b, const struct op_call *call, struct error *err) {
    const struct weight *w = call->p.row_norms.w;
    struct view squares = view_of(b, &call->in[0]), out = view_of(b, &call->out[0]);
    struct view a = view_of(b, &call->p.row_norms.a), bb = view_of(b, &call->p.row_norms.b);
    size_t bytes = (size_t)w->cols * (sizeof(double) + sizeof(float));
    double *row = mem_alloc(bytes);
    if (!row) return error_memory(err, "a row of a weight", bytes);
    for (int64_t n = 0; n < w->rows; n++) {
        double sum = 0;
        weight_row(w, n, (float *)(row + w->cols), row);
        for (int64_t d = 0; d < w->cols; d++) {
            for (int64_t r = 0; squares.p && r < a.rows; r++)
                row[d] += (double)call->p.row_norms.scale * view_get(&bb, n, r) * view_get(&a, r, d);
            sum += row[d] * row[d];
        }
        view_put(&out, 0, n, squares.p ? sqrt(sum) : sum);
    }
    mem_free(row);
    return 0;
}
