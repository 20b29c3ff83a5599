// OP_MOE_BALANCE: what the load-balancing loss needs of a layer, and that loss's gradient. Plain loops in double, in
// the order of the tokens; a router's logits are few. The reference and the fast path are the same.
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/reference_view.h"

#include <math.h>
#include <string.h>

// Probabilities of a token, and whether each expert is taken: (E) doubles twice; backward: what the loss grows by with
// each expert's probability, too.
size_t cpu_moe_balance_workspace(const struct op_call *call, bool backward, int threads) {
    (void)backward, (void)threads;
    return 3 * (size_t)call->in[0].cols * sizeof(double);
}

static void probabilities(const struct view *z, int64_t t, double *p) {
    double most = -INFINITY, sum = 0;
    for (int64_t e = 0; e < z->cols; e++) most = fmax(most, view_get(z, t, e));
    for (int64_t e = 0; e < z->cols; e++) sum += p[e] = exp(view_get(z, t, e) - most);
    for (int64_t e = 0; e < z->cols; e++) p[e] /= sum;
}

int cpu_moe_balance_forward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cpu_backend *b = (struct cpu_backend *)backend;
    const struct moe_balance *m = &call->p.balance;
    struct view z = view_of(b, &call->in[0]), lengths = view_of(b, &call->in[1]), sums = view_of(b, &m->sums);
    double *p = (double *)cpu_at(b, &call->workspace), *sum = p + z.cols, *left = sum + z.cols;
    (void)err;
    memset(sum, 0, (size_t)z.cols * sizeof *sum);
    for (int64_t e = 0; e < z.cols; e++) view_put(&sums, m->row, e, 0);
    for (int64_t t = 0; t < z.rows; t++) {
        if (view_int(&lengths, t, 0) == 0) continue; // of no document
        probabilities(&z, t, p);
        for (int64_t e = 0; e < z.cols; e++) sum[e] += left[e] = p[e];
        for (int j = 0; j < m->used; j++) {
            int64_t best = 0;
            for (int64_t e = 1; e < z.cols; e++)
                if (left[e] > left[best]) best = e;
            left[best] = -1;
            view_put(&sums, m->row, best, view_get(&sums, m->row, best) + 1);
        }
    }
    for (int64_t e = 0; e < z.cols; e++) view_put(&sums, m->row, z.cols + e, sum[e]);
    return 0;
}

// d loss / d p_e = E f_e / N; dz = p (that - its mean over p).
int cpu_moe_balance_backward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cpu_backend *b = (struct cpu_backend *)backend;
    const struct moe_balance *m = &call->p.balance;
    const struct step_scalars *scalars = cpu_scalars(b, call);
    struct view z = view_of(b, &call->out[0]), lengths = view_of(b, &call->in[1]), sums = view_of(b, &m->sums),
                dy = view_of(b, &call->grad_out[0]), dz = view_of(b, &call->grad_in[0]);
    double *p = (double *)cpu_at(b, &call->workspace), *g = p + z.cols, all = 0;
    (void)err;
    if (!dz.p) return 0;
    for (int64_t e = 0; e < z.cols; e++) {
        g[e] = 0;
        for (int64_t l = 0; l < sums.rows; l++) g[e] += view_get(&sums, l, e);
        all += g[e] / m->used; // tokens of all layers
    }
    double micro = scalars->micro_batches ? scalars->micro_batches : 1;
    double weight = (double)m->weight * scalars->denominator / micro;
    for (int64_t e = 0; e < z.cols && all > 0; e++) g[e] *= weight * (double)z.cols / (all * all);
    for (int64_t t = 0; t < z.rows; t++) {
        bool counts = view_int(&lengths, t, 0) != 0;
        double mean = 0;
        if (counts) probabilities(&z, t, p);
        for (int64_t e = 0; e < z.cols && counts; e++) mean += p[e] * g[e];
        for (int64_t e = 0; e < z.cols; e++) {
            double through = dy.p ? view_get(&dy, t, e) : 0;
            view_grad(&dz, t, e, through + (counts ? p[e] * (g[e] - mean) : 0), call->acc[0]);
        }
    }
    return 0;
}
