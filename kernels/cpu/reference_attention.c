// Attention, spelled out: for every query the softmax over the keys it sees, in double.
#include "kernels/cpu/reference_view.h"

#include <math.h>

// A query row: which keys it sees, as rows of k and v, and its softmax over them.
struct query {
    int64_t begin, end; // visible key rows
    double *score;      // [end - begin] capped scores, then probabilities
    double *slope;      // d capped / d raw score
    double lse;
};

// The visible keys of query i of a sequence; positions count from the first key of the sequence.
static void visible(const struct op_call *call, int64_t q_len, int64_t kv_begin, int64_t kv_len, int64_t i,
                    struct query *query) {
    int64_t position = kv_len - q_len + i, window = call->p.attention.window, chunk = call->p.attention.chunk;
    int64_t first = 0;
    if (window > 0 && position - window + 1 > first) first = position - window + 1;
    if (chunk > 0 && position >= 0 && position / chunk * chunk > first) first = position / chunk * chunk;
    query->begin = kv_begin + first;
    query->end = kv_begin + (position + 1 > first ? position + 1 : first);
}

static void softmax(struct cpu_backend *b, const struct op_call *call, const double *sinks, int64_t head, int64_t row,
                    struct query *query) {
    struct view q = view_of(b, &call->in[0]), k = view_of(b, &call->in[1]);
    int64_t dim = call->p.attention.head_dim, group = call->p.attention.heads / call->p.attention.kv_heads;
    int64_t kv_head = head / group, n = query->end - query->begin;
    double cap = (double)call->p.attention.soft_cap, largest = sinks ? sinks[head] : -HUGE_VAL, sum = 0;
    for (int64_t j = 0; j < n; j++) {
        double s = 0;
        for (int64_t d = 0; d < dim; d++) {
            s += view_get(&q, row, head * dim + d) * view_get(&k, query->begin + j, kv_head * dim + d);
        }
        s *= (double)call->p.attention.scale;
        query->slope[j] = 1;
        if (cap > 0) {
            double t = tanh(s / cap);
            s = cap * t;
            query->slope[j] = 1 - t * t;
        }
        query->score[j] = s;
        if (s > largest) largest = s;
    }
    for (int64_t j = 0; j < n; j++) sum += exp(query->score[j] - largest);
    if (sinks) sum += exp(sinks[head] - largest);
    query->lse = n > 0 ? largest + log(sum) : 0;
    for (int64_t j = 0; j < n; j++) query->score[j] = exp(query->score[j] - query->lse);
}

// Calls `each` for every query row and head of every sequence; rows of no sequence are left out.
struct walk {
    struct cpu_backend *b;
    const struct op_call *call;
    double *dk, *dv; // backward: (Tkv, Hkv*K), (Tkv, Hkv*Kv)
    double *dq;      // backward: (1, K), the query at hand
};

static int walk_queries(struct walk *w,
                        void (*each)(struct walk *w, int64_t head, int64_t row, const struct query *query),
                        struct error *err) {
    const struct op_call *call = w->call;
    struct view seqs = view_of(w->b, &call->in[3]);
    int64_t heads = call->p.attention.heads, tq = call->in[0].rows, tkv = call->in[1].rows;
    size_t bytes = (size_t)(2 * tkv + heads) * sizeof(double) + (size_t)heads * sizeof(float);
    double *scratch = mem_alloc(bytes);
    if (!scratch) return error_memory(err, "attention scores", bytes);
    struct query query = {.score = scratch, .slope = scratch + tkv};
    double *sinks = NULL;
    if (call->p.attention.sinks) {
        sinks = scratch + 2 * tkv;
        weight_row(call->p.attention.sinks, 0, (float *)(sinks + heads), sinks);
    }
    int status = 0;
    for (int64_t n = 0; n < seqs.rows && !status; n++) {
        int64_t q_begin = view_int(&seqs, n, 0), q_len = view_int(&seqs, n, 1);
        int64_t kv_begin = view_int(&seqs, n, 2), kv_len = view_int(&seqs, n, 3);
        if (q_len == 0) continue;
        if (q_begin < 0 || q_len < 0 || q_begin + q_len > tq || kv_begin < 0 || kv_len < 0 || kv_begin + kv_len > tkv) {
            status = error_set(err, STATUS_INTERNAL, "sequence %lld lies outside the rows", (long long)n);
            break;
        }
        for (int64_t i = 0; i < q_len; i++) {
            for (int64_t head = 0; head < heads; head++) {
                visible(call, q_len, kv_begin, kv_len, i, &query);
                softmax(w->b, call, sinks, head, q_begin + i, &query);
                each(w, head, q_begin + i, &query);
            }
        }
    }
    mem_free(scratch);
    return status;
}

static void attend(struct walk *w, int64_t head, int64_t row, const struct query *query) {
    const struct op_call *call = w->call;
    struct view v = view_of(w->b, &call->in[2]), o = view_of(w->b, &call->out[0]), lse = view_of(w->b, &call->saved[0]);
    int64_t dim = call->p.attention.v_dim, kv_head = head / (call->p.attention.heads / call->p.attention.kv_heads);
    for (int64_t d = 0; d < dim; d++) {
        double sum = 0;
        for (int64_t j = query->begin; j < query->end; j++) {
            sum += query->score[j - query->begin] * view_get(&v, j, kv_head * dim + d);
        }
        view_put(&o, row, head * dim + d, sum);
    }
    if (lse.p) view_put(&lse, row, head, query->lse);
}

static void zero(const struct view *v) {
    for (int64_t r = 0; r < v->rows && v->p; r++) {
        for (int64_t c = 0; c < v->cols; c++) view_put(v, r, c, 0);
    }
}

int reference_attention(struct cpu_backend *b, const struct op_call *call, struct error *err) {
    struct view o = view_of(b, &call->out[0]), lse = view_of(b, &call->saved[0]);
    zero(&o);
    zero(&lse);
    struct walk w = {.b = b, .call = call};
    return walk_queries(&w, attend, err);
}

// dP_j = do . v_j; dS_j = P_j (dP_j - sum_i P_i dP_i) * slope * scale; dq = dS k; dk_j += dS_j q; dv_j += P_j do.
static void attend_backward(struct walk *w, int64_t head, int64_t row, const struct query *query) {
    const struct op_call *call = w->call;
    struct view q = view_of(w->b, &call->in[0]), k = view_of(w->b, &call->in[1]), v = view_of(w->b, &call->in[2]);
    struct view d_o = view_of(w->b, &call->grad_out[0]), dq = view_of(w->b, &call->grad_in[0]);
    int64_t dim = call->p.attention.head_dim, v_dim = call->p.attention.v_dim;
    int64_t kv_head = head / (call->p.attention.heads / call->p.attention.kv_heads);
    double mean = 0;
    for (int64_t d = 0; d < dim; d++) w->dq[d] = 0;
    for (int pass = 0; pass < 2; pass++) {
        for (int64_t j = query->begin; j < query->end; j++) {
            double p = query->score[j - query->begin], dp = 0;
            for (int64_t d = 0; d < v_dim; d++)
                dp += view_get(&d_o, row, head * v_dim + d) * view_get(&v, j, kv_head * v_dim + d);
            if (pass == 0) {
                mean += p * dp;
                continue;
            }
            double ds = p * (dp - mean) * query->slope[j - query->begin] * (double)call->p.attention.scale;
            for (int64_t d = 0; d < dim; d++) {
                w->dq[d] += ds * view_get(&k, j, kv_head * dim + d);
                w->dk[j * k.cols + kv_head * dim + d] += ds * view_get(&q, row, head * dim + d);
            }
            for (int64_t d = 0; d < v_dim; d++) {
                w->dv[j * v.cols + kv_head * v_dim + d] += p * view_get(&d_o, row, head * v_dim + d);
            }
        }
    }
    for (int64_t d = 0; d < dim && dq.p; d++) view_grad(&dq, row, head * dim + d, w->dq[d], true);
}

static void write_grad(struct cpu_backend *b, const struct op_call *call, int i, const double *grad) {
    struct view out = view_of(b, &call->grad_in[i]);
    for (int64_t r = 0; r < out.rows; r++) {
        for (int64_t c = 0; c < out.cols; c++) view_grad(&out, r, c, grad[r * out.cols + c], call->acc[i]);
    }
}

int reference_attention_backward(struct cpu_backend *b, const struct op_call *call, struct error *err) {
    size_t k_count = (size_t)(call->in[1].rows * call->in[1].cols),
           v_count = (size_t)(call->in[2].rows * call->in[2].cols);
    size_t count = k_count + v_count + (size_t)call->p.attention.head_dim;
    double *sums = mem_zalloc(count, sizeof(double));
    if (!sums) return error_memory(err, "attention gradients", count * sizeof(double));
    struct view dq = view_of(b, &call->grad_in[0]);
    if (!call->acc[0]) zero(&dq);
    struct walk w = {.b = b, .call = call, .dk = sums, .dv = sums + k_count, .dq = sums + k_count + v_count};
    int status = walk_queries(&w, attend_backward, err);
    if (!status) {
        write_grad(b, call, 1, w.dk);
        write_grad(b, call, 2, w.dv);
    }
    mem_free(sums);
    return status;
}
