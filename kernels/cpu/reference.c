// The specification of every op that goes over rows, and of the optimiser: see reference.h.
#include "kernels/cpu/reference.h"

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/moe.h"
#include "kernels/cpu/reference_view.h"
#include "kernels/random.h"

#include <math.h>
#include <string.h>

// --- norms

struct norm_row {
    double rstd, mean;
};

// Of columns [begin, begin + count) of row t.
static struct norm_row norm_statistics(const struct op_call *call, const struct view *x, int64_t t, int64_t begin,
                                       int64_t count) {
    struct norm_row n = {0};
    double square = 0;
    if (call->p.norm.kind == NORM_LAYER) {
        for (int64_t d = begin; d < begin + count; d++) n.mean += view_get(x, t, d) / (double)count;
    }
    for (int64_t d = begin; d < begin + count; d++) square += pow(view_get(x, t, d) - n.mean, 2);
    n.rstd = 1 / sqrt(square / (double)count + (double)call->p.norm.eps);
    return n;
}

// Weight and bias of every column as doubles, freed by the caller; NULL when out of memory.
static double *norm_weights(const struct cpu_backend *b, const struct op_call *call, int64_t cols) {
    const struct weight *weight = call->p.norm.w, *bias = call->p.norm.bias;
    struct view own = view_of(b, &call->p.norm.own_bias);
    double *w = mem_zalloc((size_t)cols, 3 * sizeof(double) + sizeof(float)), *row = w + 2 * cols;
    if (!w) return NULL;
    for (int64_t d = 0; d < cols; d++) w[d] = 1;
    if (weight) {
        weight_row(weight, 0, (float *)(w + 3 * cols), row);
        for (int64_t d = 0; d < cols; d++) w[d] = row[d % weight->cols] + (call->p.norm.plus_one ? 1 : 0);
    }
    if (own.p) {
        for (int64_t d = 0; d < cols; d++) w[cols + d] = view_get(&own, 0, d % own.cols);
    } else if (bias) {
        weight_row(bias, 0, (float *)(w + 3 * cols), row);
        for (int64_t d = 0; d < cols; d++) w[cols + d] = row[d % bias->cols];
    }
    return w;
}

// y = (x - mean) * rstd * w + bias
static int norm_rows(struct cpu_backend *b, const struct op_call *call, struct view x, struct view y,
                     struct error *err) {
    struct view rstd = view_of(b, &call->saved[0]), mean = view_of(b, &call->saved[1]);
    int64_t group = x.cols / call->p.norm.groups;
    double *w = norm_weights(b, call, x.cols);
    if (!w) return error_memory(err, "a norm weight", (size_t)x.cols * 28);
    for (int64_t t = 0; t < x.rows; t++) {
        for (int64_t begin = 0; begin < x.cols; begin += group) {
            struct norm_row n = norm_statistics(call, &x, t, begin, group);
            if (rstd.p) view_put(&rstd, t, begin / group, n.rstd);
            if (mean.p) view_put(&mean, t, begin / group, n.mean);
            for (int64_t d = begin; d < begin + group; d++) {
                view_put(&y, t, d, (view_get(&x, t, d) - n.mean) * n.rstd * w[d] + w[x.cols + d]);
            }
        }
    }
    mem_free(w);
    return 0;
}

static int add_norm(struct cpu_backend *b, const struct op_call *call, struct error *err) {
    struct view x = view_of(b, &call->in[0]), r = view_of(b, &call->in[1]), s = view_of(b, &call->out[0]);
    double scale = (double)call->p.norm.scale;
    for (int64_t t = 0; t < x.rows; t++) {
        for (int64_t d = 0; d < x.cols; d++) view_put(&s, t, d, view_get(&x, t, d) + scale * view_get(&r, t, d));
    }
    return norm_rows(b, call, s, view_of(b, &call->out[1]), err);
}

// A trained bias: db += dy, over all rows and groups.
static void norm_bias_backward(const struct cpu_backend *b, const struct op_call *call, const struct view *dy) {
    struct view db = view_of(b, &call->p.norm.dbias);
    for (int64_t n = 0; db.p && dy->p && n < db.cols; n++) {
        double sum = 0;
        for (int64_t t = 0; t < dy->rows; t++) {
            for (int64_t d = n; d < dy->cols; d += db.cols) sum += view_get(dy, t, d);
        }
        view_grad(&db, 0, n, sum, true);
    }
}

// With g = dy * w, n = (x - mean) * rstd: dx = rstd * (g - mean(g) - n * mean(g * n)); RMS has no mean(g).
// `direct` is the gradient that reaches the sum past the norm; both inputs of a sum get the same, the second scaled.
static int norm_backward(struct cpu_backend *b, const struct op_call *call, struct view x, const struct tensor *direct,
                         const struct tensor *through, struct error *err) {
    struct view ds = view_of(b, direct), dy = view_of(b, through);
    struct view dx = view_of(b, &call->grad_in[0]), dr = view_of(b, &call->grad_in[1]);
    if (same_place(&call->grad_in[0], &call->grad_in[1])) dr.p = NULL;
    norm_bias_backward(b, call, &dy);
    double *w = norm_weights(b, call, x.cols);
    double *g = w ? mem_zalloc((size_t)x.cols, sizeof(double)) : NULL;
    if (!g) {
        mem_free(w);
        return error_memory(err, "a norm weight", (size_t)x.cols * 36);
    }
    int64_t group = x.cols / call->p.norm.groups;
    for (int64_t t = 0; t < x.rows; t++) {
        for (int64_t begin = 0; begin < x.cols; begin += group) {
            struct norm_row n = norm_statistics(call, &x, t, begin, group);
            double mean_g = 0, mean_gn = 0;
            for (int64_t d = begin; d < begin + group; d++) {
                g[d] = dy.p ? view_get(&dy, t, d) * w[d] : 0;
                mean_g += g[d] / (double)group;
                mean_gn += g[d] * (view_get(&x, t, d) - n.mean) * n.rstd / (double)group;
            }
            if (call->p.norm.kind == NORM_RMS) mean_g = 0;
            for (int64_t d = begin; d < begin + group; d++) {
                double grad = n.rstd * (g[d] - mean_g - (view_get(&x, t, d) - n.mean) * n.rstd * mean_gn);
                if (ds.p) grad += view_get(&ds, t, d);
                view_grad(&dx, t, d, grad, call->acc[0]);
                view_grad(&dr, t, d, (double)call->p.norm.scale * grad, call->acc[1]);
            }
        }
    }
    mem_free(g);
    mem_free(w);
    return 0;
}

// --- rope

static void rope(struct cpu_backend *b, const struct op_call *call, const struct tensor *from, const struct tensor *to,
                 double direction, bool acc) {
    struct view x = view_of(b, from), y = view_of(b, to);
    struct view position = view_of(b, &call->in[2]), table = view_of(b, &call->in[3]);
    int64_t k = call->p.rope.head_dim, half = call->p.rope.rotary_dim / 2, first = call->p.rope.first;
    for (int64_t t = 0; t < x.rows; t++) {
        int64_t p = view_int(&position, t, 0);
        for (int64_t head = 0; head < x.cols; head += k) {
            for (int64_t j = 0; j < half; j++) {
                bool neox = call->p.rope.kind == ROPE_NEOX;
                int64_t a = head + first + (neox ? j : 2 * j), c = head + first + (neox ? j + half : 2 * j + 1);
                double cosine = view_get(&table, p, j), sine = direction * view_get(&table, p, half + j);
                double xa = view_get(&x, t, a), xc = view_get(&x, t, c);
                view_grad(&y, t, a, xa * cosine - xc * sine, acc);
                view_grad(&y, t, c, xc * cosine + xa * sine, acc);
            }
            if (x.p == y.p) continue; // the other dims pass through
            for (int64_t j = 0; j < k; j++) {
                if (j < first || j >= first + 2 * half) view_grad(&y, t, head + j, view_get(&x, t, head + j), acc);
            }
        }
    }
}

static int rope_both(struct cpu_backend *b, const struct op_call *call, bool backward, struct error *err) {
    struct view position = view_of(b, &call->in[2]);
    for (int64_t t = 0; t < position.rows; t++) {
        int64_t p = view_int(&position, t, 0);
        if (p < 0 || p >= call->in[3].rows) {
            return error_set(err, STATUS_INTERNAL, "position %lld outside the table of %lld", (long long)p,
                             (long long)call->in[3].rows);
        }
    }
    for (int i = 0; i < 2; i++) {
        if (!tensor_present(&call->in[i])) continue;
        if (!backward)
            rope(b, call, &call->in[i], &call->out[i], 1, false);
        else if (tensor_present(&call->grad_in[i]))
            rope(b, call, &call->grad_out[i], &call->grad_in[i], -1, call->acc[i]);
    }
    return 0;
}

// --- activations and gated linear units

static double act(const struct op_call *call, enum act_kind kind, double x, double *derivative) {
    const double c = 0.79788456080286535588, a = 0.044715, limit = (double)call->p.act.limit; // c = sqrt(2 / pi)
    double s, t;
    switch (kind) {
    case ACT_SILU:
        s = 1 / (1 + exp(-x));
        *derivative = s * (1 + x * (1 - s));
        return x * s;
    case ACT_GELU_TANH:
        t = tanh(c * (x + a * x * x * x));
        *derivative = 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * a * x * x);
        return 0.5 * x * (1 + t);
    case ACT_GELU:
        s = 0.5 * (1 + erf(x / sqrt(2)));
        *derivative = s + x * c / 2 * exp(-x * x / 2);
        return x * s;
    case ACT_CLAMP: *derivative = fabs(x) <= limit; return fmax(-limit, fmin(limit, x));
    case ACT_SWIGLU_CLAMPED: break; // takes two numbers
    }
    return *derivative = NAN;
}

// f(gate, up) and its two derivatives.
static double gated(const struct op_call *call, double g, double u, double *by_gate, double *by_up) {
    double slope, value;
    if (call->p.act.kind != ACT_SWIGLU_CLAMPED) {
        value = act(call, call->p.act.kind, g, &slope);
        *by_gate = u * slope, *by_up = value;
        return value * u;
    }
    double limit = (double)call->p.act.limit, alpha = (double)call->p.act.alpha, inside = g <= limit, up_slope;
    g = fmin(g, limit), u = act(call, ACT_CLAMP, u, &up_slope);
    double s = 1 / (1 + exp(-alpha * g));
    *by_gate = inside * (u + 1) * s * (1 + alpha * g * (1 - s));
    *by_up = up_slope * g * s;
    return g * s * (u + 1);
}

static void glu(struct cpu_backend *b, const struct op_call *call) {
    struct view gate = view_of(b, &call->in[0]), up = view_of(b, &call->in[1]), h = view_of(b, &call->out[0]);
    double unused, other;
    for (int64_t t = 0; t < h.rows; t++) {
        for (int64_t d = 0; d < h.cols; d++) {
            double g = view_get(&gate, t, up.p ? d : 2 * d),
                   u = up.p ? view_get(&up, t, d) : view_get(&gate, t, 2 * d + 1);
            view_put(&h, t, d, gated(call, g, u, &unused, &other));
        }
    }
}

static void glu_backward(struct cpu_backend *b, const struct op_call *call) {
    struct view gate = view_of(b, &call->in[0]), up = view_of(b, &call->in[1]), dh = view_of(b, &call->grad_out[0]);
    struct view dgate = view_of(b, &call->grad_in[0]), dup = view_of(b, &call->grad_in[1]);
    for (int64_t t = 0; t < dh.rows; t++) {
        for (int64_t d = 0; d < dh.cols; d++) {
            double g = view_get(&gate, t, up.p ? d : 2 * d),
                   u = up.p ? view_get(&up, t, d) : view_get(&gate, t, 2 * d + 1);
            double dy = view_get(&dh, t, d), by_gate, by_up;
            gated(call, g, u, &by_gate, &by_up);
            view_grad(&dgate, t, up.p ? d : 2 * d, dy * by_gate, call->acc[0]);
            if (up.p)
                view_grad(&dup, t, d, dy * by_up, call->acc[1]);
            else
                view_grad(&dgate, t, 2 * d + 1, dy * by_up, call->acc[0]);
        }
    }
}

static void act_forward(struct cpu_backend *b, const struct op_call *call) {
    struct view x = view_of(b, &call->in[0]), y = view_of(b, &call->out[0]);
    double unused;
    for (int64_t t = 0; t < x.rows; t++) {
        for (int64_t d = 0; d < x.cols; d++)
            view_put(&y, t, d, act(call, call->p.act.kind, view_get(&x, t, d), &unused));
    }
}

static void act_backward(struct cpu_backend *b, const struct op_call *call) {
    struct view x = view_of(b, &call->in[0]), dy = view_of(b, &call->grad_out[0]), dx = view_of(b, &call->grad_in[0]);
    for (int64_t t = 0; t < x.rows; t++) {
        for (int64_t d = 0; d < x.cols; d++) {
            double slope;
            act(call, call->p.act.kind, view_get(&x, t, d), &slope);
            view_grad(&dx, t, d, view_get(&dy, t, d) * slope, call->acc[0]);
        }
    }
}

// --- sums and copies

static void add(struct cpu_backend *b, const struct op_call *call) {
    struct view x = view_of(b, &call->in[0]), r = view_of(b, &call->in[1]), s = view_of(b, &call->out[0]);
    double scale = (double)call->p.add.scale;
    for (int64_t t = 0; t < x.rows; t++) {
        for (int64_t d = 0; d < x.cols; d++) view_put(&s, t, d, view_get(&x, t, d) + scale * view_get(&r, t, d));
    }
}

static void add_backward(struct cpu_backend *b, const struct op_call *call) {
    struct view ds = view_of(b, &call->grad_out[0]);
    for (int i = 0; i < 2; i++) {
        if (i == 1 && same_place(&call->grad_in[0], &call->grad_in[1])) continue;
        if (same_place(&call->grad_in[i], &call->grad_out[0])) continue;
        struct view dx = view_of(b, &call->grad_in[i]);
        double scale = i == 1 ? (double)call->p.add.scale : 1;
        for (int64_t t = 0; t < ds.rows; t++) {
            for (int64_t d = 0; d < ds.cols; d++) view_grad(&dx, t, d, scale * view_get(&ds, t, d), call->acc[i]);
        }
    }
}

static int kv_write(struct cpu_backend *b, const struct op_call *call, struct error *err) {
    struct view slots = view_of(b, &call->in[2]);
    for (int i = 0; i < 2; i++) {
        struct view from = view_of(b, &call->in[i]), cache = view_of(b, &call->out[i]);
        for (int64_t t = 0; t < from.rows; t++) {
            int64_t slot = view_int(&slots, t, 0);
            if (slot < 0) continue;
            if (slot >= cache.rows) {
                return error_set(err, STATUS_INTERNAL, "cache slot %lld of %lld", (long long)slot,
                                 (long long)cache.rows);
            }
            for (int64_t d = 0; d < from.cols; d++) view_put(&cache, slot, d, view_get(&from, t, d));
        }
    }
    return 0;
}

static void fill(struct cpu_backend *b, const struct op_call *call) {
    struct view out = view_of(b, &call->out[0]);
    for (int64_t t = 0; t < out.rows; t++) {
        for (int64_t d = 0; d < out.cols; d++) view_put(&out, t, d, call->p.fill.value);
    }
}

static void copy(struct cpu_backend *b, const struct op_call *call, bool onto) {
    struct view from = view_of(b, &call->in[0]), to = view_of(b, &call->out[0]);
    for (int64_t t = 0; t < from.rows; t++) {
        for (int64_t d = 0; d < from.cols; d++) view_grad(&to, t, d, view_get(&from, t, d), onto);
    }
}

// --- optimiser

static void grad_norm(struct cpu_backend *b, const struct op_call *call) {
    struct view sum = view_of(b, &call->in[0]);
    struct step_scalars *s = cpu_scalars(b, call);
    double square = 0;
    for (int64_t i = 0; i < sum.cols; i++) square += pow(view_get(&sum, 0, i), 2);
    // Without trained tokens the gradient is zero, and so is its average.
    double scale = s->denominator > 0 ? 1 / s->denominator : 0;
    s->grad_norm = sqrt(square) * scale;
    s->nonfinite = !isfinite(s->grad_norm);
    double clip = s->max_grad_norm > 0 ? fmin(1, s->max_grad_norm / (s->grad_norm + 1e-6)) : 1;
    s->clip_scale = s->nonfinite != 0 ? 0 : clip * scale;
}

static void adamw(struct cpu_backend *b, const struct op_call *call) {
    struct view sum = view_of(b, &call->in[0]), param = view_of(b, &call->out[0]);
    struct view m = view_of(b, &call->out[1]), v = view_of(b, &call->out[2]);
    const struct step_scalars *s = cpu_scalars(b, call);
    if (s->nonfinite != 0) return;
    double beta1 = call->p.adamw.beta1, beta2 = call->p.adamw.beta2;
    for (int j = 0; j < call->p.adamw.n_groups; j++) {
        const struct param_group *group = &call->p.adamw.groups[j];
        double lr = s->lr * (double)group->lr_ratio;
        for (int64_t i = group->begin; i < group->end; i++) {
            double g = view_get(&sum, 0, i) * s->clip_scale;
            double p = view_get(&param, 0, i) * (1 - lr * (double)group->weight_decay);
            double m1 = beta1 * view_get(&m, 0, i) + (1 - beta1) * g;
            double v1 = beta2 * view_get(&v, 0, i) + (1 - beta2) * g * g;
            double denominator = sqrt(v1) / sqrt(1 - pow(beta2, s->step)) + call->p.adamw.eps;
            view_put(&m, 0, i, m1);
            view_put(&v, 0, i, v1);
            view_put(&param, 0, i, p - lr / (1 - pow(beta1, s->step)) * m1 / denominator);
        }
    }
}

// --- dispatch

int reference_forward(struct cpu_backend *b, const struct op_call *call, struct error *err) {
    switch (call->op) {
    case OP_EMBED: return reference_embed(b, call, err);
    case OP_NORM: return norm_rows(b, call, view_of(b, &call->in[0]), view_of(b, &call->out[0]), err);
    case OP_ADD_NORM: return add_norm(b, call, err);
    case OP_LINEAR_GROUP: return reference_linear_group(b, call, err);
    case OP_ROPE: return rope_both(b, call, false, err);
    case OP_GLU: return glu(b, call), 0;
    case OP_ACT: return act_forward(b, call), 0;
    case OP_GATE: return reference_gate(b, call), 0;
    case OP_COLUMNS: return reference_columns(b, call), 0;
    case OP_ROW_NORMS: return reference_row_norms(b, call, err);
    case OP_DROPOUT: return cpu_dropout_forward(&b->base, call, err);
    case OP_MLA_KEYS: return reference_mla_keys(b, call), 0;
    case OP_MOE_ROUTE: return reference_moe_route(b, call, err);
    case OP_MOE_BALANCE: return cpu_moe_balance_forward(&b->base, call, err);
    case OP_MOE_GATHER: return reference_moe_gather(b, call), 0;
    case OP_MOE_LINEAR_GROUP: return moe_each_expert(b, call, reference_linear_group, err);
    case OP_MOE_COMBINE: return reference_moe_combine(b, call), 0;
    case OP_ATTENTION: return reference_attention(b, call, err);
    case OP_ADD: return add(b, call), 0;
    case OP_TOKEN_LOGPROB: return reference_token_logprob(b, call, err);
    case OP_LOGITS: return reference_logits(b, call, err);
    case OP_KV_WRITE: return kv_write(b, call, err);
    case OP_FILL: return fill(b, call), 0;
    case OP_COPY: return copy(b, call, false), 0;
    case OP_GRAD_ADD: return copy(b, call, true), 0;
    case OP_GRAD_NORM: return grad_norm(b, call), 0;
    case OP_ADAMW: return adamw(b, call), 0;
    case OP_NONE:
    case OP_COUNT: break;
    }
    return error_set(err, STATUS_INTERNAL, "op %d has no forward", (int)call->op);
}

int reference_backward(struct cpu_backend *b, const struct op_call *call, struct error *err) {
    static const struct tensor none = {0};
    switch (call->op) {
    case OP_EMBED: return reference_embed_backward(b, call, err);
    case OP_NORM: return norm_backward(b, call, view_of(b, &call->in[0]), &none, &call->grad_out[0], err);
    case OP_ADD_NORM:
        return norm_backward(b, call, view_of(b, &call->out[0]), &call->grad_out[0], &call->grad_out[1], err);
    case OP_LINEAR_GROUP: return reference_linear_group_backward(b, call, err);
    case OP_ROPE: return rope_both(b, call, true, err);
    case OP_GLU: return glu_backward(b, call), 0;
    case OP_ACT: return act_backward(b, call), 0;
    case OP_GATE: return reference_gate_backward(b, call), 0;
    case OP_COLUMNS: return reference_columns_backward(b, call), 0;
    case OP_DROPOUT: return cpu_dropout_backward(&b->base, call, err);
    case OP_MLA_KEYS: return reference_mla_keys_backward(b, call), 0;
    case OP_MOE_ROUTE: return reference_moe_route_backward(b, call, err);
    case OP_MOE_BALANCE: return cpu_moe_balance_backward(&b->base, call, err);
    case OP_MOE_GATHER: return reference_moe_gather_backward(b, call), 0;
    case OP_MOE_LINEAR_GROUP: return moe_each_expert(b, call, reference_linear_group_backward, err);
    case OP_MOE_COMBINE: return reference_moe_combine_backward(b, call), 0;
    case OP_ATTENTION: return reference_attention_backward(b, call, err);
    case OP_ADD: return add_backward(b, call), 0;
    case OP_TOKEN_LOGPROB: return reference_token_logprob_backward(b, call, err);
    default: return error_set(err, STATUS_INTERNAL, "op %d has no backward", (int)call->op);
    }
}

int reference_recompute(struct cpu_backend *b, const struct op_call *call, struct error *err) {
    if (call->op != OP_ADD_NORM) return reference_forward(b, call, err);
    return norm_rows(b, call, view_of(b, &call->out[0]), view_of(b, &call->out[1]), err);
}
