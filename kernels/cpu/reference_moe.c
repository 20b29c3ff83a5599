// The specification of mixtures of experts, gates and latent attention's keys: plain loops in double.
#include "kernels/cpu/reference_view.h"

#include <math.h>
#include <string.h>

// --- gate of a shared expert

void reference_gate(struct cpu_backend *b, const struct op_call *call) {
    struct view x = view_of(b, &call->in[0]), g = view_of(b, &call->in[1]), y = view_of(b, &call->out[0]);
    for (int64_t t = 0; t < x.rows; t++) {
        double s = 1 / (1 + exp(-view_get(&g, t, 0)));
        for (int64_t d = 0; d < x.cols; d++) view_put(&y, t, d, s * view_get(&x, t, d));
    }
}

void reference_gate_backward(struct cpu_backend *b, const struct op_call *call) {
    struct view x = view_of(b, &call->in[0]), g = view_of(b, &call->in[1]), dy = view_of(b, &call->grad_out[0]);
    struct view dx = view_of(b, &call->grad_in[0]), dg = view_of(b, &call->grad_in[1]);
    for (int64_t t = 0; t < x.rows; t++) {
        double s = 1 / (1 + exp(-view_get(&g, t, 0))), sum = 0;
        for (int64_t d = 0; d < x.cols; d++) {
            sum += view_get(&dy, t, d) * view_get(&x, t, d);
            view_grad(&dx, t, d, s * view_get(&dy, t, d), call->acc[0]);
        }
        view_grad(&dg, t, 0, sum * s * (1 - s), call->acc[1]);
    }
}

// --- latent attention: keys are {nope, r}, values the rest of kv

void reference_mla_keys(struct cpu_backend *b, const struct op_call *call) {
    struct view kv = view_of(b, &call->in[0]), r = view_of(b, &call->in[1]);
    struct view k = view_of(b, &call->out[0]), v = view_of(b, &call->out[1]);
    int64_t nope = call->p.mla.nope, width = call->p.mla.v_dim, dim = nope + r.cols;
    for (int64_t t = 0; t < kv.rows; t++) {
        for (int64_t h = 0; h < call->p.mla.heads; h++) {
            for (int64_t d = 0; d < dim; d++)
                view_put(&k, t, h * dim + d,
                         d < nope ? view_get(&kv, t, h * (nope + width) + d) : view_get(&r, t, d - nope));
            for (int64_t d = 0; d < width; d++)
                view_put(&v, t, h * width + d, view_get(&kv, t, h * (nope + width) + nope + d));
        }
    }
}

void reference_mla_keys_backward(struct cpu_backend *b, const struct op_call *call) {
    struct view dk = view_of(b, &call->grad_out[0]), dv = view_of(b, &call->grad_out[1]);
    struct view dkv = view_of(b, &call->grad_in[0]), dr = view_of(b, &call->grad_in[1]);
    int64_t nope = call->p.mla.nope, width = call->p.mla.v_dim, turned = call->in[1].cols, dim = nope + turned;
    for (int64_t t = 0; t < call->in[0].rows; t++) {
        for (int64_t h = 0; h < call->p.mla.heads; h++) {
            for (int64_t d = 0; d < nope + width; d++) {
                double g = 0;
                if (d < nope && dk.p) g = view_get(&dk, t, h * dim + d);
                if (d >= nope && dv.p) g = view_get(&dv, t, h * width + d - nope);
                view_grad(&dkv, t, h * (nope + width) + d, g, call->acc[0]);
            }
        }
        for (int64_t d = 0; d < turned; d++) {
            double sum = 0;
            for (int64_t h = 0; h < call->p.mla.heads && dk.p; h++) sum += view_get(&dk, t, h * dim + nope + d);
            view_grad(&dr, t, d, sum, call->acc[1]);
        }
    }
}

// --- routing

struct choice {
    int64_t expert;
    double weight;
};

// The softmax of z over the experts that `allowed` names.
static double softmax_of(const double *z, const double *allowed, int64_t n, int64_t i) {
    double top = -INFINITY, sum = 0;
    for (int64_t j = 0; j < n; j++) top = allowed[j] > 0 ? fmax(top, z[j]) : top;
    for (int64_t j = 0; j < n; j++) sum += allowed[j] > 0 ? exp(z[j] - top) : 0;
    return allowed[i] > 0 ? exp(z[i] - top) / sum : 0;
}

// phimoe: the best of those not taken, and who stands so near to it that the softmax is over them.
static int64_t sparse_choice(const struct moe_route *m, const double *z, const double *taken, double *allowed) {
    int64_t best = -1;
    for (int64_t i = 0; i < m->experts; i++) {
        if (taken[i] == 0 && (best < 0 || z[i] > z[best])) best = i;
    }
    for (int64_t i = 0; i < m->experts; i++) {
        double factor = fmax(fabs(z[i]), z[best]);
        allowed[i] = taken[i] == 0 && (z[best] - z[i]) / factor <= 2 * (double)m->jitter;
    }
    return best;
}

// Which groups of experts count: the best `groups_used`, earlier ones first where they are equal.
static void groups_of(const struct moe_route *m, const double *score, double *allowed) {
    int64_t size = m->experts / m->groups;
    for (int64_t i = 0; i < m->experts; i++) allowed[i] = 0;
    for (int round = 0; round < m->groups_used; round++) {
        int64_t best = -1;
        double most = -INFINITY;
        for (int64_t g = 0; g < m->groups; g++) {
            double first = -INFINITY, second = -INFINITY;
            for (int64_t i = g * size; i < (g + 1) * size; i++) {
                second = fmax(second, fmin(first, score[i]));
                first = fmax(first, score[i]);
            }
            double value = m->group_pairs && size > 1 ? first + second : first;
            if (allowed[g * size] == 0 && (best < 0 || value > most)) best = g, most = value;
        }
        for (int64_t i = best * size; i < (best + 1) * size; i++) allowed[i] = 1;
    }
}

// `n4` holds 4 E doubles.
static void route(const struct moe_route *m, const double *z, const double *bias, struct choice *c, double *n4) {
    int64_t n = m->experts;
    double *p = n4, *score = n4 + n, *allowed = n4 + 2 * n, *taken = n4 + 3 * n, sum = 0;
    for (int64_t i = 0; i < n; i++) allowed[i] = 1, taken[i] = 0;
    for (int64_t i = 0; i < n; i++) {
        p[i] = m->gate == MOE_SIGMOID ? 1 / (1 + exp(-z[i])) : softmax_of(z, allowed, n, i);
        score[i] = m->gate == MOE_SOFTMAX_CHOSEN ? z[i] : p[i] + bias[i];
    }
    if (m->gate != MOE_SPARSE_MIXER) groups_of(m, score, allowed);
    for (int j = 0; j < m->used; j++) {
        int64_t best = -1;
        if (m->gate == MOE_SPARSE_MIXER) {
            best = sparse_choice(m, z, taken, allowed);
            c[j] = (struct choice){best, softmax_of(z, allowed, n, best)};
        } else {
            for (int64_t i = 0; i < n; i++) {
                if (allowed[i] > 0 && taken[i] == 0 && (best < 0 || score[i] > score[best])) best = i;
            }
            c[j] = (struct choice){best, p[best]};
        }
        taken[best] = 1;
    }
    if (m->gate == MOE_SOFTMAX_CHOSEN) {
        for (int j = 0; j < m->used; j++) c[j].weight = softmax_of(z, taken, n, c[j].expert);
    }
    for (int j = 0; j < m->used; j++) sum += c[j].weight;
    for (int j = 0; j < m->used; j++) c[j].weight *= (double)m->scale / (m->normalise ? sum + 1e-20 : 1);
}

struct router {
    double *z, *bias, *n4, *jacobian;
    struct choice *choices, *moved;
};

static int router_open(struct router *r, const struct op_call *call, struct error *err) {
    size_t n = (size_t)call->p.moe.experts, k = (size_t)call->p.moe.used;
    size_t bytes = 7 * n * sizeof(double) + 2 * k * sizeof(struct choice) + n * sizeof(float);
    r->z = mem_zalloc(1, bytes);
    if (!r->z) return error_memory(err, "a reference router", bytes);
    r->bias = r->z + n, r->n4 = r->z + 2 * n, r->jacobian = r->z + 6 * n;
    r->choices = (struct choice *)(void *)(r->z + 7 * n), r->moved = r->choices + k;
    if (call->p.moe.bias) weight_row(call->p.moe.bias, 0, (float *)(void *)(r->moved + k), r->bias);
    return 0;
}

static void load(struct router *r, const struct view *logits, int64_t t) {
    for (int64_t i = 0; i < logits->cols; i++) r->z[i] = view_get(logits, t, i);
}

int reference_moe_route(struct cpu_backend *b, const struct op_call *call, struct error *err) {
    struct view logits = view_of(b, &call->in[0]), w = view_of(b, &call->out[0]), map = view_of(b, &call->out[1]);
    struct view offsets = view_of(b, &call->out[2]);
    struct router r;
    if (router_open(&r, call, err)) return -1;
    int64_t k = call->p.moe.used, place = 0;
    for (int64_t t = 0; t < logits.rows; t++) {
        load(&r, &logits, t);
        route(&call->p.moe, r.z, r.bias, r.choices, r.n4);
        for (int64_t j = 0; j < k; j++) {
            view_put(&w, t, j, r.choices[j].weight);
            view_put(&map, t * k + j, 1, (double)r.choices[j].expert);
        }
    }
    double *expert = mem_alloc((size_t)map.rows * sizeof *expert + 1);
    if (!expert) {
        mem_free(r.z);
        return error_memory(err, "a reference router", (size_t)map.rows * sizeof *expert);
    }
    for (int64_t p = 0; p < map.rows; p++) expert[p] = view_get(&map, p, 1);
    for (int64_t e = 0; e < call->p.moe.experts; e++) {
        view_put(&offsets, e, 0, (double)place);
        for (int64_t p = 0; p < map.rows; p++) {
            if (expert[p] != (double)e) continue;
            view_put(&map, place, 0, (double)p);
            view_put(&map, p, 1, (double)place++);
        }
    }
    view_put(&offsets, call->p.moe.experts, 0, (double)place);
    mem_free(expert);
    mem_free(r.z);
    return 0;
}

// d weight_j / d z_i by its definition: which experts are chosen, and over whom a softmax goes, stays as it is.
static double slope(const struct moe_route *m, const struct router *r, int j, int64_t i) {
    int64_t n = m->experts;
    double *p = r->n4, *allowed = r->n4 + n, *taken = r->n4 + 2 * n, all = 0, d_all = 0, own = 0, d_own = 0;
    for (int64_t e = 0; e < n; e++) taken[e] = 0, allowed[e] = 1;
    if (m->gate == MOE_SOFTMAX_CHOSEN) {
        for (int64_t e = 0; e < n; e++) allowed[e] = 0;
        for (int k = 0; k < m->used; k++) allowed[r->choices[k].expert] = 1;
    }
    for (int k = 0; k < m->used; k++) { // the unnormalised weight of choice k and its derivative
        int64_t e = r->choices[k].expert;
        double value, d;
        if (m->gate == MOE_SPARSE_MIXER) sparse_choice(m, r->z, taken, allowed);
        if (m->gate == MOE_SIGMOID) {
            value = 1 / (1 + exp(-r->z[e])), d = e == i ? value * (1 - value) : 0;
        } else {
            for (int64_t q = 0; q < n; q++) p[q] = softmax_of(r->z, allowed, n, q);
            value = p[e], d = p[e] * ((e == i ? 1 : 0) - p[i]);
        }
        taken[e] = 1;
        all += value, d_all += d;
        if (k == j) own = value, d_own = d;
    }
    if (!m->normalise) return (double)m->scale * d_own;
    return (double)m->scale * (d_own * all - own * d_all) / (all * all);
}

int reference_moe_route_backward(struct cpu_backend *b, const struct op_call *call, struct error *err) {
    struct view logits = view_of(b, &call->in[0]), dw = view_of(b, &call->grad_out[0]);
    struct view dz = view_of(b, &call->grad_in[0]);
    struct router r;
    if (router_open(&r, call, err)) return -1;
    for (int64_t t = 0; t < logits.rows && dz.p; t++) {
        load(&r, &logits, t);
        route(&call->p.moe, r.z, r.bias, r.choices, r.n4);
        for (int64_t i = 0; i < logits.cols; i++) {
            double sum = 0;
            for (int j = 0; j < call->p.moe.used; j++) sum += view_get(&dw, t, j) * slope(&call->p.moe, &r, j, i);
            view_grad(&dz, t, i, sum, call->acc[0]);
        }
    }
    mem_free(r.z);
    return 0;
}

// --- rows of tokens and rows of pairs

static double pair_weight(const struct view *w, int64_t pair, int64_t k) {
    return w->p ? view_get(w, pair / k, pair % k) : 1;
}

void reference_moe_gather(struct cpu_backend *b, const struct op_call *call) {
    struct view x = view_of(b, &call->in[0]), w = view_of(b, &call->in[1]), map = view_of(b, &call->in[2]);
    struct view keys = view_of(b, &call->in[3]), s = view_of(b, &call->out[0]), to = view_of(b, &call->out[1]);
    int64_t k = call->p.moe_rows.used;
    for (int64_t i = 0; i < s.rows; i++) {
        int64_t pair = view_int(&map, i, 0);
        for (int64_t d = 0; d < x.cols; d++) view_put(&s, i, d, pair_weight(&w, pair, k) * view_get(&x, pair / k, d));
        for (int64_t d = 0; d < 2; d++) view_put(&to, i, d, view_get(&keys, pair / k, d));
    }
}

void reference_moe_gather_backward(struct cpu_backend *b, const struct op_call *call) {
    struct view x = view_of(b, &call->in[0]), w = view_of(b, &call->in[1]), map = view_of(b, &call->in[2]);
    struct view ds = view_of(b, &call->grad_out[0]), dx = view_of(b, &call->grad_in[0]);
    struct view dw = view_of(b, &call->grad_in[1]);
    int64_t k = call->p.moe_rows.used;
    for (int64_t t = 0; t < x.rows; t++) {
        for (int64_t d = 0; d < x.cols; d++) {
            double sum = 0;
            for (int64_t p = t * k; p < (t + 1) * k; p++)
                sum += pair_weight(&w, p, k) * view_get(&ds, view_int(&map, p, 1), d);
            view_grad(&dx, t, d, sum, call->acc[0]);
        }
        for (int64_t j = 0; j < k && dw.p; j++) {
            double sum = 0;
            for (int64_t d = 0; d < x.cols; d++)
                sum += view_get(&x, t, d) * view_get(&ds, view_int(&map, t * k + j, 1), d);
            view_grad(&dw, t, j, sum, call->acc[1]);
        }
    }
}

void reference_moe_combine(struct cpu_backend *b, const struct op_call *call) {
    struct view y = view_of(b, &call->in[0]), w = view_of(b, &call->in[1]), map = view_of(b, &call->in[2]);
    struct view out = view_of(b, &call->out[0]);
    int64_t k = call->p.moe_rows.used;
    for (int64_t t = 0; t < out.rows; t++) {
        for (int64_t d = 0; d < out.cols; d++) {
            double sum = 0;
            for (int64_t p = t * k; p < (t + 1) * k; p++)
                sum += pair_weight(&w, p, k) * view_get(&y, view_int(&map, p, 1), d);
            view_put(&out, t, d, sum);
        }
    }
}

void reference_moe_combine_backward(struct cpu_backend *b, const struct op_call *call) {
    struct view y = view_of(b, &call->in[0]), w = view_of(b, &call->in[1]), map = view_of(b, &call->in[2]);
    struct view dout = view_of(b, &call->grad_out[0]), dy = view_of(b, &call->grad_in[0]);
    struct view dw = view_of(b, &call->grad_in[1]);
    int64_t k = call->p.moe_rows.used;
    for (int64_t p = 0; p < map.rows; p++) {
        int64_t s = view_int(&map, p, 1);
        double sum = 0;
        for (int64_t d = 0; d < y.cols; d++) {
            double g = view_get(&dout, p / k, d);
            view_grad(&dy, s, d, pair_weight(&w, p, k) * g, call->acc[0]);
            sum += g * view_get(&y, s, d);
        }
        if (dw.p) view_grad(&dw, p / k, p % k, sum, call->acc[1]);
    }
}
