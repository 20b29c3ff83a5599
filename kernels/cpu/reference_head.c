// The embedding and the head with their adapters: plain loops in double. Both are a table (V, D), of which an adapter
// may replace all or some rows, and to which it may add scale * B A.
#include "kernels/cpu/reference_view.h"
#include "kernels/random.h"

#include <math.h>

// Which of on->rows stands in place of row `id`, -1 = none.
static int64_t own_row(const struct cpu_backend *b, const struct table_adapter *on, int64_t id) {
    if (!tensor_present(&on->rows)) return -1;
    struct view ids = view_of(b, &on->row_ids);
    for (int64_t i = 0; i < ids.rows; i++) {
        if (view_int(&ids, i, 0) == id) return i;
    }
    return -1;
}

// Row `id` of the table, without LoRA.
static void table_row(const struct cpu_backend *b, const struct table_adapter *on, const struct weight *w, int64_t id,
                      float *scratch, double *out) {
    int64_t own = own_row(b, on, id);
    struct view from = view_of(b, own >= 0 ? &on->rows : &on->full);
    if (own < 0 && !from.p) {
        weight_row(w, id, scratch, out);
        return;
    }
    for (int64_t d = 0; d < w->cols; d++) out[d] = view_get(&from, own >= 0 ? own : id, d);
}

// Adds coefficient * x to the gradient of row `id` of the table, where that is trained.
static void table_row_grad(const struct cpu_backend *b, const struct table_adapter *on, int64_t id, double coefficient,
                           const double *x, int64_t cols) {
    int64_t own = own_row(b, on, id);
    struct view to = view_of(b, own >= 0 ? &on->drows : &on->dfull);
    for (int64_t d = 0; to.p && d < cols; d++) view_grad(&to, own >= 0 ? own : id, d, coefficient * x[d], true);
}

// --- embedding

static double noise_of(const struct cpu_backend *b, const struct op_call *call, int64_t t, int64_t d) {
    struct view keys = view_of(b, &call->in[1]), lengths = view_of(b, &call->p.embed.lengths);
    double alpha = (double)call->p.embed.noise_alpha, length = alpha != 0 ? view_get(&lengths, t, 0) : 0;
    if (alpha == 0) return 0;
    const struct step_scalars *scalars = cpu_scalars(b, call);
    struct random_key key = {scalars->seed, scalars->random_step, (uint32_t)RANDOM_NEFTUNE << 24};
    uint32_t bits[4];
    random_four(key, (uint32_t)view_int(&keys, t, 0), (uint32_t)view_int(&keys, t, 1), (uint32_t)(d / 4), bits);
    double amplitude = length > 0 ? alpha / sqrt(length * (double)call->out[0].cols) : 0; // 0: a row of no document
    return (2 * (double)random_uniform(bits[d % 4]) - 1) * amplitude;
}

int reference_embed(struct cpu_backend *b, const struct op_call *call, struct error *err) {
    struct view ids = view_of(b, &call->in[0]), x = view_of(b, &call->out[0]);
    const struct table_adapter *on = &call->p.embed.on;
    struct view a = view_of(b, &on->a), bb = view_of(b, &on->b);
    const struct weight *w = call->p.embed.w;
    double *row = mem_alloc((size_t)x.cols * 12);
    if (!row) return error_memory(err, "an embedding row", (size_t)x.cols * 12);
    int status = 0;
    for (int64_t t = 0; t < x.rows && !status; t++) {
        int64_t id = view_int(&ids, t, 0);
        if (id < 0 || id >= w->rows) {
            status = error_set(err, STATUS_INTERNAL, "token id %lld outside the vocabulary of %lld", (long long)id,
                               (long long)w->rows);
            break;
        }
        table_row(b, on, w, id, (float *)(row + x.cols), row);
        for (int64_t d = 0; d < x.cols; d++) {
            for (int64_t r = 0; a.p && r < a.rows; r++)
                row[d] += (double)on->scale * view_get(&bb, id, r) * view_get(&a, r, d);
            view_put(&x, t, d, row[d] * (double)call->p.embed.scale + noise_of(b, call, t, d));
        }
    }
    mem_free(row);
    return status;
}

// With g = scale of the embedding * dx of a token: its row gets g; dB[id, r] += s <a_r, g>; dA_r += s B[id, r] g.
int reference_embed_backward(struct cpu_backend *b, const struct op_call *call, struct error *err) {
    struct view ids = view_of(b, &call->in[0]), dx = view_of(b, &call->grad_out[0]);
    const struct table_adapter *on = &call->p.embed.on;
    struct view a = view_of(b, &on->a), bb = view_of(b, &on->b), da = view_of(b, &on->da), db = view_of(b, &on->db);
    double *g = mem_alloc((size_t)dx.cols * sizeof *g);
    if (!g) return error_memory(err, "a reference gradient", (size_t)dx.cols * sizeof *g);
    for (int64_t t = 0; t < dx.rows; t++) {
        int64_t id = view_int(&ids, t, 0);
        for (int64_t d = 0; d < dx.cols; d++) g[d] = (double)call->p.embed.scale * view_get(&dx, t, d);
        table_row_grad(b, on, id, 1, g, dx.cols);
        for (int64_t r = 0; a.p && r < a.rows; r++) {
            double along = 0;
            for (int64_t d = 0; d < dx.cols; d++) {
                along += view_get(&a, r, d) * g[d];
                view_grad(&da, r, d, (double)on->scale * view_get(&bb, id, r) * g[d], true);
            }
            view_grad(&db, id, r, (double)on->scale * along, true);
        }
    }
    mem_free(g);
    return 0;
}

// --- the head

struct head {
    double *z, *slope, *y, *c, *row, *dh, *h, *factor, *u; // y: W h with LoRA; c: m / n, by which DoRA multiplies it
    float *scratch;
};

static int head_open(const struct op_call *call, struct head *head, struct error *err) {
    int64_t v = call->p.logprob.w->rows, d = call->p.logprob.w->cols, r = call->p.logprob.on.a.rows;
    size_t bytes = (size_t)(4 * v + 4 * d + 2 * r) * sizeof(double) + (size_t)d * sizeof(float);
    head->z = mem_alloc(bytes);
    if (!head->z) return error_memory(err, "a row of logits", bytes);
    head->slope = head->z + v;
    head->y = head->slope + v;
    head->c = head->y + v;
    head->row = head->c + v;
    head->dh = head->row + d;
    head->h = head->dh + d;
    head->factor = head->h + d;
    head->u = head->factor + d;
    head->scratch = (float *)(head->u + 2 * r);
    return 0;
}

// What the adapter sees of row t: dropped elements have factor 0, the others 1 / (1 - p).
static void head_dropout(const struct cpu_backend *b, const struct op_call *call, int64_t t, double *factor) {
    const struct table_adapter *on = &call->p.logprob.on;
    struct view keys = view_of(b, &on->keys);
    const struct step_scalars *s = cpu_scalars(b, call);
    for (int64_t d = 0; d < call->in[0].cols; d++) {
        factor[d] = 1;
        if (on->dropout == 0) continue;
        struct random_key key = {s->seed, s->random_step, (uint32_t)RANDOM_DROPOUT << 24 | on->module};
        uint32_t bits[4];
        random_four(key, (uint32_t)view_int(&keys, t, 0), (uint32_t)view_int(&keys, t, 1), (uint32_t)(d / 4), bits);
        factor[d] = random_uniform(bits[d % 4]) < on->dropout ? 0 : 1 / (1 - (double)on->dropout);
    }
}

// Logits of one row: z = cap(logit_scale * (c y + bias)), and slope = dz / d(c y), where y = W h counts the adapter.
static void logits_row(const struct cpu_backend *b, const struct op_call *call, int64_t t, struct head *head) {
    struct view h = view_of(b, &call->in[0]);
    const struct weight *w = call->p.logprob.w;
    const struct table_adapter *on = &call->p.logprob.on;
    struct view a = view_of(b, &on->a), bb = view_of(b, &on->b), own_bias = view_of(b, &on->bias);
    struct view magnitude = view_of(b, &on->magnitude), norms = view_of(b, &on->norms);
    double cap = (double)call->p.logprob.soft_cap, scale = (double)call->p.logprob.logit_scale;
    head_dropout(b, call, t, head->factor);
    for (int64_t d = 0; d < w->cols; d++) head->h[d] = view_get(&h, t, d);
    for (int64_t r = 0; a.p && r < a.rows; r++) {
        head->u[r] = 0;
        for (int64_t d = 0; d < w->cols; d++)
            head->u[r] += (double)on->scale * view_get(&a, r, d) * head->factor[d] * head->h[d];
    }
    for (int64_t v = 0; v < w->rows; v++) {
        table_row(b, on, w, v, head->scratch, head->row);
        float bias = 0;
        if (call->p.logprob.bias) weight_decode(call->p.logprob.bias, 0, v, 1, &bias);
        double sum = 0, plus = own_bias.p ? view_get(&own_bias, 0, v) : (double)bias;
        for (int64_t d = 0; d < w->cols; d++) sum += head->h[d] * head->row[d];
        for (int64_t r = 0; a.p && r < a.rows; r++) sum += head->u[r] * view_get(&bb, v, r);
        head->y[v] = sum;
        head->c[v] = magnitude.p ? view_get(&magnitude, 0, v) / view_get(&norms, 0, v) : 1;
        head->z[v] = (head->c[v] * sum + plus) * scale;
        head->slope[v] = scale;
        if (cap > 0) {
            double tanh_z = tanh(head->z[v] / cap);
            head->z[v] = cap * tanh_z;
            head->slope[v] *= 1 - tanh_z * tanh_z;
        }
    }
}

int reference_logits(struct cpu_backend *b, const struct op_call *call, struct error *err) {
    struct view out = view_of(b, &call->out[0]);
    struct head head;
    if (head_open(call, &head, err)) return -1;
    for (int64_t t = 0; t < out.rows; t++) {
        logits_row(b, call, t, &head);
        for (int64_t v = 0; v < out.cols; v++) view_put(&out, t, v, head.z[v]);
    }
    mem_free(head.z);
    return 0;
}

static double log_sum_exp(const double *z, int64_t n) {
    double largest = z[0], sum = 0;
    for (int64_t v = 1; v < n; v++) largest = fmax(largest, z[v]);
    for (int64_t v = 0; v < n; v++) sum += exp(z[v] - largest);
    return largest + log(sum);
}

// dh of one row for d/d logp = dlogp and d/d lse = dlse, and the gradients of what is trained in the head.
static void head_row_backward(const struct cpu_backend *b, const struct op_call *call, struct head *head,
                              int64_t target, double lse, double dlogp, double dlse) {
    const struct weight *w = call->p.logprob.w;
    const struct table_adapter *on = &call->p.logprob.on;
    struct view a = view_of(b, &on->a), bb = view_of(b, &on->b), da = view_of(b, &on->da), db = view_of(b, &on->db);
    struct view dbias = view_of(b, &on->dbias), dm = view_of(b, &on->dmagnitude), norms = view_of(b, &on->norms);
    double *du = head->u + a.rows;
    for (int64_t d = 0; d < w->cols; d++) head->dh[d] = 0;
    for (int64_t r = 0; a.p && r < a.rows; r++) du[r] = 0;
    for (int64_t v = 0; v < w->rows; v++) {
        double p = exp(head->z[v] - lse), dz = ((dlse - dlogp) * p + (v == target ? dlogp : 0)) * head->slope[v];
        view_grad(&dbias, 0, v, dz, true);
        if (dm.p) view_grad(&dm, 0, v, dz * head->y[v] / view_get(&norms, 0, v), true);
        dz *= head->c[v];
        table_row(b, on, w, v, head->scratch, head->row);
        for (int64_t d = 0; d < w->cols; d++) head->dh[d] += dz * head->row[d];
        table_row_grad(b, on, v, dz, head->h, w->cols);
        for (int64_t r = 0; a.p && r < a.rows; r++) {
            du[r] += dz * view_get(&bb, v, r);
            view_grad(&db, v, r, dz * head->u[r], true);
        }
    }
    for (int64_t r = 0; a.p && r < a.rows; r++) {
        for (int64_t d = 0; d < w->cols; d++) {
            double along = (double)on->scale * du[r] * head->factor[d];
            head->dh[d] += along * view_get(&a, r, d);
            view_grad(&da, r, d, along * head->h[d], true);
        }
    }
}

static int target_of(const struct op_call *call, const struct view *targets, int64_t t, int64_t *target,
                     struct error *err) {
    *target = view_int(targets, t, 0);
    if (*target >= 0 && *target < call->p.logprob.w->rows) return 0;
    return error_set(err, STATUS_INTERNAL, "target %lld outside the vocabulary of %lld", (long long)*target,
                     (long long)call->p.logprob.w->rows);
}

int reference_token_logprob(struct cpu_backend *b, const struct op_call *call, struct error *err) {
    struct view targets = view_of(b, &call->in[1]), weights = view_of(b, &call->in[2]);
    struct view logp = view_of(b, &call->out[0]), lse = view_of(b, &call->out[1]), dh = view_of(b, &call->saved[0]);
    struct step_scalars *scalars = cpu_scalars(b, call);
    double loss = 0, weight_sum = 0;
    int status = 0;
    struct head head;
    if (head_open(call, &head, err)) return -1;
    for (int64_t t = 0; t < logp.rows && !status; t++) {
        double weight = view_get(&weights, t, 0), l = 0, row_lse = 0;
        int64_t target = 0;
        for (int64_t d = 0; d < call->in[0].cols; d++) head.dh[d] = 0;
        if (weight != 0) {
            status = target_of(call, &targets, t, &target, err);
            if (status) break;
            logits_row(b, call, t, &head);
            row_lse = log_sum_exp(head.z, call->p.logprob.w->rows);
            l = head.z[target] - row_lse;
            if (call->p.logprob.fused) head_row_backward(b, call, &head, target, row_lse, -weight, 0);
        }
        view_put(&logp, t, 0, l);
        view_put(&lse, t, 0, row_lse);
        loss -= weight * l;
        weight_sum += weight;
        if (call->p.logprob.fused) {
            for (int64_t d = 0; d < dh.cols; d++) view_put(&dh, t, d, head.dh[d]);
        }
    }
    if (scalars && !status) scalars->loss_sum += loss, scalars->weight_sum += weight_sum;
    mem_free(head.z);
    return status;
}

int reference_token_logprob_backward(struct cpu_backend *b, const struct op_call *call, struct error *err) {
    struct view targets = view_of(b, &call->in[1]), weights = view_of(b, &call->in[2]),
                saved = view_of(b, &call->saved[0]);
    struct view dlogp = view_of(b, &call->grad_out[0]), dlse = view_of(b, &call->grad_out[1]);
    struct view dh = view_of(b, &call->grad_in[0]);
    struct head head;
    if (head_open(call, &head, err)) return -1;
    int status = 0;
    for (int64_t t = 0; t < call->in[0].rows && !status; t++) {
        int64_t target = 0;
        for (int64_t d = 0; d < call->in[0].cols; d++) head.dh[d] = call->p.logprob.fused ? view_get(&saved, t, d) : 0;
        if (!call->p.logprob.fused && view_get(&weights, t, 0) != 0) {
            status = target_of(call, &targets, t, &target, err);
            if (status) break;
            logits_row(b, call, t, &head);
            double lse = log_sum_exp(head.z, call->p.logprob.w->rows);
            head_row_backward(b, call, &head, target, lse, dlogp.p ? view_get(&dlogp, t, 0) : 0,
                              dlse.p ? view_get(&dlse, t, 0) : 0);
        }
        for (int64_t d = 0; d < dh.cols; d++) view_grad(&dh, t, d, head.dh[d], call->acc[0]);
    }
    mem_free(head.z);
    return status;
}
