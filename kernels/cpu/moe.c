// The ops of mixtures of experts: see moe.h. Which expert a token goes to is decided in double, by functions of ours,
// so that no CPU and no C library decides otherwise.
#include "kernels/cpu/moe.h"

#include "kernels/cpu/isa.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/reference.h"
#include "kernels/cpu/scalar.h"

#include <assert.h>
#include <math.h>
#include <string.h>

// --- routing one token

// A token's numbers, in workspace: E of each.
struct token {
    double *z, *p, *score; // logits; probabilities; what the choice goes by
    double *gradient;
};

static int64_t largest(const double *x, int64_t n) {
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++) {
        if (x[i] > x[best]) best = i;
    }
    return best;
}

// p = softmax of z where score is not -infinity, else 0.
static void softmax(const struct token *t, int64_t n) {
    double top = -INFINITY, sum = 0;
    for (int64_t i = 0; i < n; i++) {
        if (t->score[i] > -INFINITY && t->z[i] > top) top = t->z[i];
    }
    for (int64_t i = 0; i < n; i++) {
        t->p[i] = t->score[i] > -INFINITY ? det_exp(t->z[i] - top) : 0;
        sum += t->p[i];
    }
    for (int64_t i = 0; i < n; i++) t->p[i] /= sum;
}

// Experts outside of the best groups can not be chosen.
static void keep_groups(const struct moe_route *m, double *score) {
    int64_t size = m->experts / m->groups;
    for (int drop = m->groups - m->groups_used; drop > 0; drop--) {
        int64_t worst = -1;
        double least = INFINITY;
        for (int64_t g = m->groups - 1; g >= 0; g--) { // of equal groups the last goes first
            double first = -INFINITY, second = -INFINITY;
            for (int64_t i = g * size; i < (g + 1) * size; i++) {
                if (score[i] > first)
                    second = first, first = score[i];
                else if (score[i] > second)
                    second = score[i];
            }
            double value = m->group_pairs && size > 1 ? first + second : first;
            if (value == -INFINITY) continue; // gone already
            if (value < least) least = value, worst = g;
        }
        if (worst < 0) return;
        for (int64_t i = worst * size; i < (worst + 1) * size; i++) score[i] = -INFINITY;
    }
}

// phimoe: experts whose logit lies further below the largest than `jitter` allows take no part.
static void sparse_mask(const struct moe_route *m, const struct token *t) {
    double top = t->score[largest(t->score, m->experts)];
    for (int64_t i = 0; i < m->experts; i++) {
        double factor = fabs(t->z[i]) > top ? fabs(t->z[i]) : top;
        if (!((top - t->score[i]) / factor <= 2 * (double)m->jitter)) t->score[i] = -INFINITY;
    }
}

// The k chosen experts, best first, and their weights. p holds what the weights were made of.
static void choose(const struct moe_route *m, const float *bias, const struct token *t, int32_t *chosen, double *w) {
    int64_t n = m->experts;
    for (int64_t i = 0; i < n; i++) t->score[i] = t->z[i];
    if (m->gate == MOE_SOFTMAX) softmax(t, n);
    for (int64_t i = 0; i < n && m->gate == MOE_SIGMOID; i++) t->p[i] = 1 / (1 + det_exp(-t->z[i]));
    if (m->gate == MOE_SOFTMAX || m->gate == MOE_SIGMOID) {
        for (int64_t i = 0; i < n; i++) t->score[i] = t->p[i] + (bias ? (double)bias[i] : 0);
    }
    keep_groups(m, t->score);
    for (int j = 0; j < m->used; j++) {
        if (m->gate == MOE_SPARSE_MIXER) {
            for (int64_t i = 0; i < n; i++) t->score[i] = t->z[i];
            for (int k = 0; k < j; k++) t->score[chosen[k]] = -INFINITY;
            sparse_mask(m, t);
            softmax(t, n);
        }
        chosen[j] = (int32_t)largest(t->score, n);
        w[j] = t->p[chosen[j]];
        t->score[chosen[j]] = -INFINITY;
    }
    if (m->gate == MOE_SOFTMAX_CHOSEN) {
        double sum = 0;
        for (int j = 0; j < m->used; j++) w[j] = det_exp(t->z[chosen[j]] - t->z[chosen[0]]), sum += w[j];
        for (int j = 0; j < m->used; j++) w[j] /= sum;
    }
    double sum = 1e-20;
    for (int j = 0; j < m->used; j++) sum += w[j];
    for (int j = 0; j < m->used; j++) w[j] = w[j] * (double)m->scale / (m->normalise ? sum : 1);
}

// t->gradient = d loss / d z from the gradients g of the weights. Overwrites g.
static void choose_backward(const struct moe_route *m, const float *bias, const struct token *t, int32_t *chosen,
                            double *w, double *g) {
    int64_t n = m->experts;
    double along = 0, sum = 0;
    memset(t->gradient, 0, (size_t)n * sizeof *t->gradient);
    choose(m, bias, t, chosen, w);
    for (int j = 0; j < m->used; j++) g[j] *= (double)m->scale, w[j] /= (double)m->scale, along += g[j] * w[j];
    if (m->gate == MOE_SPARSE_MIXER) { // one softmax for each choice
        for (int j = 0; j < m->used; j++) {
            for (int64_t i = 0; i < n; i++) t->score[i] = t->z[i];
            for (int k = 0; k < j; k++) t->score[chosen[k]] = -INFINITY;
            sparse_mask(m, t);
            softmax(t, n);
            for (int64_t i = 0; i < n; i++) t->gradient[i] -= t->p[i] * t->p[chosen[j]] * g[j];
            t->gradient[chosen[j]] += t->p[chosen[j]] * g[j];
        }
        return;
    }
    if (m->gate == MOE_SOFTMAX_CHOSEN || (m->gate == MOE_SOFTMAX && m->normalise)) { // a softmax over the chosen
        for (int j = 0; j < m->used; j++) t->gradient[chosen[j]] = w[j] * (g[j] - along);
        return;
    }
    if (m->gate == MOE_SOFTMAX) {
        for (int64_t i = 0; i < n; i++) t->gradient[i] = -t->p[i] * along;
        for (int j = 0; j < m->used; j++) t->gradient[chosen[j]] += w[j] * g[j];
        return;
    }
    for (int j = 0; j < m->used; j++) sum += t->p[chosen[j]];
    for (int j = 0; j < m->used; j++) {
        double s = t->p[chosen[j]], ds = m->normalise ? (g[j] - along) / (sum + 1e-20) : g[j];
        t->gradient[chosen[j]] = ds * s * (1 - s);
    }
}

// --- the op

enum { TOKENS_PER_TASK = 16 };

struct route {
    struct cpu_backend *b;
    const struct op_call *call;
    const float *bias;
    double *scratch; // per thread: 4 E + 2 k doubles, k int32 in the space of k doubles
};

static size_t scratch_doubles(const struct moe_route *m) {
    return 4 * (size_t)m->experts + 3 * (size_t)m->used;
}

size_t cpu_moe_route_workspace(const struct op_call *call, bool backward, int threads) {
    (void)backward;
    const struct moe_route *m = &call->p.moe;
    size_t bias = ((size_t)m->experts * sizeof(float) + 63) / 64 * 64;
    return bias + (size_t)(threads > 0 ? threads : 1) * scratch_doubles(m) * sizeof(double);
}

static void route_open(struct route *r, struct cpu_backend *b, const struct op_call *call) {
    const struct moe_route *m = &call->p.moe;
    uint8_t *at = cpu_at(b, &call->workspace);
    assert(tensor_bytes(&call->workspace) >= cpu_moe_route_workspace(call, false, b->base.threads));
    *r = (struct route){.b = b, .call = call};
    if (m->bias) {
        weight_decode(m->bias, 0, 0, m->experts, (float *)(void *)at);
        r->bias = (float *)(void *)at;
    }
    r->scratch = (double *)(void *)(at + ((size_t)m->experts * sizeof(float) + 63) / 64 * 64);
}

static struct token route_token(const struct route *r, int64_t row, int thread, double **rest) {
    const struct moe_route *m = &r->call->p.moe;
    const struct tensor *z = &r->call->in[0];
    int64_t n = m->experts;
    double *at = r->scratch + (size_t)thread * scratch_doubles(m);
    for (int64_t i = 0; i < n; i++) {
        if (z->dtype == DTYPE_F32)
            at[i] = (double)cpu_f32(r->b, z)[row * z->ld + i];
        else
            at[i] = (double)bf16_to_float(((const uint16_t *)cpu_at(r->b, z))[row * z->ld + i]);
    }
    *rest = at + 4 * n;
    return (struct token){at, at + n, at + 2 * n, at + 3 * n};
}

// Weights, and for the moment the expert of each pair in the second column of the map.
static void route_rows(void *context, int64_t task, int thread) {
    const struct route *r = context;
    const struct op_call *call = r->call;
    int64_t end = (task + 1) * TOKENS_PER_TASK, k = call->p.moe.used;
    for (int64_t t = task * TOKENS_PER_TASK; t < end && t < call->in[0].rows; t++) {
        double *w;
        struct token token = route_token(r, t, thread, &w);
        int32_t *chosen = (int32_t *)(void *)(w + k);
        choose(&call->p.moe, r->bias, &token, chosen, w);
        for (int64_t j = 0; j < k; j++) {
            cpu_f32(r->b, &call->out[0])[t * call->out[0].ld + j] = (float)w[j];
            cpu_i32(r->b, &call->out[1])[(t * k + j) * call->out[1].ld + 1] = chosen[j];
        }
    }
}

int cpu_moe_route_forward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cpu_backend *b = (struct cpu_backend *)backend;
    if (!b->isa) return reference_forward(b, call, err);
    struct route r;
    route_open(&r, b, call);
    int64_t tokens = call->in[0].rows, pairs = tokens * call->p.moe.used, experts = call->p.moe.experts;
    threads_run(b->threads, (tokens + TOKENS_PER_TASK - 1) / TOKENS_PER_TASK, route_rows, &r);
    int32_t *map = cpu_i32(b, &call->out[1]), *offsets = cpu_i32(b, &call->out[2]);
    int64_t ld = call->out[1].ld, old = call->out[2].ld, sum = 0;
    for (int64_t e = 0; e <= experts; e++) offsets[e * old] = 0;
    for (int64_t p = 0; p < pairs; p++) offsets[map[p * ld + 1] * old]++;
    for (int64_t e = 0; e <= experts; e++) { // to where each expert's rows begin
        int32_t count = offsets[e * old];
        offsets[e * old] = (int32_t)sum;
        sum += count;
    }
    for (int64_t p = 0; p < pairs; p++) {
        int32_t place = offsets[map[p * ld + 1] * old]++;
        map[p * ld + 1] = place;
        map[place * ld] = (int32_t)p;
    }
    for (int64_t e = experts; e > 0; e--) offsets[e * old] = offsets[(e - 1) * old]; // each was moved to its end
    offsets[0] = 0;
    return 0;
}

static void route_rows_backward(void *context, int64_t task, int thread) {
    const struct route *r = context;
    const struct op_call *call = r->call;
    const struct tensor *dz = &call->grad_in[0], *dw = &call->grad_out[0];
    int64_t end = (task + 1) * TOKENS_PER_TASK, k = call->p.moe.used;
    for (int64_t t = task * TOKENS_PER_TASK; t < end && t < dz->rows; t++) {
        double *w;
        struct token token = route_token(r, t, thread, &w);
        double *g = w + 2 * k;
        for (int64_t j = 0; j < k; j++) g[j] = (double)cpu_f32(r->b, dw)[t * dw->ld + j];
        choose_backward(&call->p.moe, r->bias, &token, (int32_t *)(void *)(w + k), w, g);
        for (int64_t i = 0; i < dz->cols; i++) {
            float add = (float)token.gradient[i];
            if (dz->dtype == DTYPE_F32) {
                float *to = cpu_f32(r->b, dz) + t * dz->ld + i;
                *to = call->acc[0] ? *to + add : add;
            } else {
                uint16_t *to = (uint16_t *)cpu_at(r->b, dz) + t * dz->ld + i;
                *to = bf16_from_float(call->acc[0] ? bf16_to_float(*to) + add : add);
            }
        }
    }
}

int cpu_moe_route_backward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cpu_backend *b = (struct cpu_backend *)backend;
    if (!b->isa) return reference_backward(b, call, err);
    if (!tensor_present(&call->grad_in[0])) return 0;
    if (!tensor_present(&call->grad_out[0])) return error_set(err, STATUS_INTERNAL, "no gradient of the weights");
    struct route r;
    route_open(&r, b, call);
    threads_run(b->threads, (call->in[0].rows + TOKENS_PER_TASK - 1) / TOKENS_PER_TASK, route_rows_backward, &r);
    return 0;
}

// --- rows of tokens and rows of pairs

static void run(struct cpu_backend *b, row_kernel kernel, const struct moe_args *a, int64_t rows) {
    rows_run(b, kernel, a, rows, a->cols);
}

// `tokens` has a row for each token, `pairs` one for each pair.
static struct moe_args moe_open(const struct cpu_backend *b, const struct op_call *call, const struct tensor *tokens,
                                const struct tensor *pairs) {
    return (struct moe_args){.dtype = tokens->dtype,
                             .cols = tokens->cols,
                             .used = call->p.moe_rows.used,
                             .map = cpu_i32(b, &call->in[2]),
                             .map_ld = call->in[2].ld,
                             .x = matrix_of(b, tokens),
                             .s = matrix_of(b, pairs),
                             .weights = matrix_of(b, &call->in[1])};
}

// The map is data: every pair in its own place within the rows.
static int check_map(const struct cpu_backend *b, const struct op_call *call, struct error *err) {
    const struct tensor *map = &call->in[2];
    const int32_t *m = cpu_i32(b, map);
    for (int64_t s = 0; s < map->rows; s++) {
        int32_t pair = m[s * map->ld];
        if (pair < 0 || pair >= map->rows || m[pair * map->ld + 1] != s)
            return error_set(err, STATUS_INTERNAL, "row %lld of the map of experts holds pair %d", (long long)s, pair);
    }
    return 0;
}

int cpu_moe_gather_forward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cpu_backend *b = (struct cpu_backend *)backend;
    if (!b->isa) return reference_forward(b, call, err);
    if (check_map(b, call, err)) return -1;
    struct moe_args a = moe_open(b, call, &call->in[0], &call->out[0]);
    run(b, b->isa->moe->spread, &a, call->in[2].rows);
    const uint32_t *from = cpu_at(b, &call->in[3]);
    uint32_t *to = cpu_at(b, &call->out[1]);
    for (int64_t s = 0; s < call->out[1].rows; s++) {
        const uint32_t *key = from + a.map[s * a.map_ld] / a.used * call->in[3].ld;
        to[s * call->out[1].ld] = key[0], to[s * call->out[1].ld + 1] = key[1];
    }
    return 0;
}

// The gradient of the weights: products of token rows and pair rows.
static void weight_gradient(struct cpu_backend *b, const struct op_call *call, struct moe_args a) {
    if (!tensor_present(&call->grad_in[1])) return;
    a.dot = matrix_of(b, &call->grad_in[1]);
    a.acc = call->acc[1];
    run(b, b->isa->moe->dot, &a, call->in[2].rows);
}

int cpu_moe_gather_backward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cpu_backend *b = (struct cpu_backend *)backend;
    if (!b->isa) return reference_backward(b, call, err);
    if (!tensor_present(&call->grad_out[0])) return error_set(err, STATUS_INTERNAL, "no gradient of the rows");
    if (check_map(b, call, err)) return -1;
    weight_gradient(b, call, moe_open(b, call, &call->in[0], &call->grad_out[0]));
    if (!tensor_present(&call->grad_in[0])) return 0;
    struct moe_args a = moe_open(b, call, &call->grad_in[0], &call->grad_out[0]);
    a.acc = call->acc[0];
    run(b, b->isa->moe->collect, &a, call->in[0].rows);
    return 0;
}

int cpu_moe_combine_forward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cpu_backend *b = (struct cpu_backend *)backend;
    if (!b->isa) return reference_forward(b, call, err);
    if (check_map(b, call, err)) return -1;
    struct moe_args a = moe_open(b, call, &call->out[0], &call->in[0]);
    run(b, b->isa->moe->collect, &a, call->out[0].rows);
    return 0;
}

int cpu_moe_combine_backward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cpu_backend *b = (struct cpu_backend *)backend;
    if (!b->isa) return reference_backward(b, call, err);
    if (!tensor_present(&call->grad_out[0])) return error_set(err, STATUS_INTERNAL, "no gradient of the sum");
    if (check_map(b, call, err)) return -1;
    weight_gradient(b, call, moe_open(b, call, &call->grad_out[0], &call->in[0]));
    if (!tensor_present(&call->grad_in[0])) return 0;
    struct moe_args a = moe_open(b, call, &call->grad_out[0], &call->grad_in[0]);
    a.acc = call->acc[0];
    run(b, b->isa->moe->spread, &a, call->in[2].rows);
    return 0;
}

// --- linears of experts

static struct tensor some(const struct tensor *t, int64_t begin, int64_t end) {
    return tensor_present(t) ? tensor_rows(*t, begin, end) : *t;
}

// Expert e's part of the call: its rows of everything, its weights, its share of each adapter.
static void expert_call(const struct op_call *call, int64_t e, int64_t begin, int64_t end, struct op_call *out,
                        struct weight *biases) {
    *out = *call;
    out->op = OP_LINEAR_GROUP;
    out->in[0] = some(&call->in[0], begin, end);
    out->in[1] = some(&call->in[2], begin, end);
    out->in[2] = (struct tensor){0};
    out->saved[0] = some(&call->saved[0], begin, end);
    out->grad_in[0] = some(&call->grad_in[0], begin, end);
    for (int i = 0; i < call->p.linear.n_parts; i++) {
        struct linear_part *part = &out->p.linear.parts[i];
        int64_t n = part->w->rows;
        out->out[i] = some(&call->out[i], begin, end);
        out->grad_out[i] = some(&call->grad_out[i], begin, end);
        part->w += e;
        if (part->bias) biases[i] = weight_rows(part->bias, e, 1), part->bias = &biases[i];
        for (int s = 0; s < part->n_spans; s++) {
            struct lora_span *span = &part->spans[s];
            int64_t r = span->a.rows / call->p.linear.experts;
            span->row_begin = span->row_begin > begin ? span->row_begin - begin : 0;
            span->row_end = (span->row_end < end ? span->row_end : end) - begin;
            if (span->row_end < span->row_begin) span->row_end = span->row_begin;
            span->a = some(&span->a, e * r, (e + 1) * r);
            span->da = some(&span->da, e * r, (e + 1) * r);
            span->b = some(&span->b, e * n, (e + 1) * n);
            span->db = some(&span->db, e * n, (e + 1) * n);
        }
    }
}

int moe_each_expert(struct cpu_backend *b, const struct op_call *call,
                    int (*linear)(struct cpu_backend *b, const struct op_call *call, struct error *err),
                    struct error *err) {
    const int32_t *offsets = cpu_i32(b, &call->in[1]);
    int64_t ld = call->in[1].ld;
    for (int64_t e = 0; e < call->p.linear.experts; e++) {
        int64_t begin = offsets[e * ld], end = offsets[(e + 1) * ld];
        if (begin < 0 || begin > end || end > call->in[0].rows)
            return error_set(err, STATUS_INTERNAL, "expert %lld has rows %lld to %lld", (long long)e, (long long)begin,
                             (long long)end);
        if (begin == end) continue; // not chosen by anybody: nothing is computed
        struct op_call one;
        struct weight biases[LINEAR_MAX_PARTS];
        expert_call(call, e, begin, end, &one, biases);
        if (linear(b, &one, err)) return -1;
    }
    return 0;
}

static int linear_forward(struct cpu_backend *b, const struct op_call *call, struct error *err) {
    return cpu_linear_group_forward(&b->base, call, err);
}
static int linear_backward(struct cpu_backend *b, const struct op_call *call, struct error *err) {
    return cpu_linear_group_backward(&b->base, call, err);
}

size_t cpu_moe_linear_group_workspace(const struct op_call *call, bool backward, int threads) {
    struct op_call one;
    struct weight biases[LINEAR_MAX_PARTS];
    expert_call(call, 0, 0, call->in[0].rows, &one, biases); // one expert may get all rows
    return cpu_linear_group_workspace(&one, backward, threads);
}

int cpu_moe_linear_group_forward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cpu_backend *b = (struct cpu_backend *)backend;
    return b->isa ? moe_each_expert(b, call, linear_forward, err) : reference_forward(b, call, err);
}

int cpu_moe_linear_group_backward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cpu_backend *b = (struct cpu_backend *)backend;
    return b->isa ? moe_each_expert(b, call, linear_backward, err) : reference_backward(b, call, err);
}
