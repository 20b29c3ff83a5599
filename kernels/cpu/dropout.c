// OP_DROPOUT: an adapter's dropped inputs as a tensor of their own, and what was dropped from them. Where DoRA's linear
// reads both. Random numbers take most of the time; the reference and the fast path are the same.
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/reference_view.h"
#include "kernels/cpu/rows.h"
#include "kernels/random.h"

struct dropout_args {
    struct random_key key;
    float p;
    struct view x, keys, kept, rest; // backward: dx, and the gradients of both
    bool acc;
};

static struct dropout_args arguments(const struct cpu_backend *b, const struct op_call *call) {
    const struct step_scalars *s = cpu_scalars(b, call);
    return (struct dropout_args){
        .key = {s->seed, s->random_step, (uint32_t)RANDOM_DROPOUT << 24 | call->p.dropout.module},
        .p = call->p.dropout.p,
        .x = view_of(b, &call->in[0]),
        .keys = view_of(b, &call->in[1]),
        .kept = view_of(b, &call->out[0]),
        .rest = view_of(b, &call->out[1])};
}

// 0 or 1 / (1 - p) of four elements of a row.
static void factors(const struct dropout_args *a, int64_t row, int64_t col, double out[4]) {
    uint32_t bits[4];
    random_four(a->key, (uint32_t)view_int(&a->keys, row, 0), (uint32_t)view_int(&a->keys, row, 1), (uint32_t)(col / 4),
                bits);
    for (int i = 0; i < 4; i++) out[i] = random_uniform(bits[i]) < a->p ? 0 : 1 / (1 - (double)a->p);
}

static void forward_rows(const void *args, int64_t first, int64_t last) {
    const struct dropout_args *a = args;
    double factor[4];
    for (int64_t t = first; t < last; t++) {
        for (int64_t i = 0; i < a->x.cols; i++) {
            double x = view_get(&a->x, t, i);
            if (i % 4 == 0) factors(a, t, i, factor);
            view_put(&a->kept, t, i, factor[i % 4] * x);
            view_put(&a->rest, t, i, x - factor[i % 4] * x);
        }
    }
}

// dx = mask (d kept - d rest) + d rest.
static void backward_rows(const void *args, int64_t first, int64_t last) {
    const struct dropout_args *a = args;
    double factor[4];
    for (int64_t t = first; t < last; t++) {
        for (int64_t i = 0; i < a->x.cols; i++) {
            double kept = a->kept.p ? view_get(&a->kept, t, i) : 0, rest = a->rest.p ? view_get(&a->rest, t, i) : 0;
            if (i % 4 == 0) factors(a, t, i, factor);
            view_grad(&a->x, t, i, factor[i % 4] * (kept - rest) + rest, a->acc);
        }
    }
}

int cpu_dropout_forward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cpu_backend *b = (struct cpu_backend *)backend;
    struct dropout_args a = arguments(b, call);
    (void)err;
    rows_run(b, forward_rows, &a, a.x.rows, a.x.cols);
    return 0;
}

int cpu_dropout_backward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cpu_backend *b = (struct cpu_backend *)backend;
    struct dropout_args a = arguments(b, call);
    (void)err;
    a.x = view_of(b, &call->grad_in[0]), a.acc = call->acc[0];
    a.kept = view_of(b, &call->grad_out[0]), a.rest = view_of(b, &call->grad_out[1]);
    if (a.x.p) rows_run(b, backward_rows, &a, a.x.rows, a.x.cols);
    return 0;
}
