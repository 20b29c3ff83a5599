// Workspaces of mixtures of experts: see cuda_plan.h.
#include "kernels/cuda/cuda_plan.h"
#include "kernels/cuda/gpu_moe.h"

// Decoded experts alive at a time; one expert may be larger.
#ifndef MOE_DECODED_BYTES
#define MOE_DECODED_BYTES ((size_t)512 << 20)
#endif
enum { MOST_BLOCKS = 256, LEAST_TOKENS = 32 };

struct moe_route_space moe_route_space_of(const struct op_call *call) {
    struct moe_route_space s = {0};
    int64_t experts = call->p.moe.experts, pairs = call->in[0].rows * call->p.moe.used;
    int64_t blocks = (pairs + MOE_PAIRS - 1) / MOE_PAIRS;
    s.counts = cuda_piece(&s.bytes, (size_t)(experts * blocks) * sizeof(int32_t));
    s.totals = cuda_piece(&s.bytes, (size_t)experts * sizeof(int32_t));
    return s;
}

size_t cuda_moe_route_workspace(const struct op_call *call, bool backward, int threads) {
    (void)threads;
    return backward ? 0 : moe_route_space_of(call).bytes;
}

int64_t moe_balance_tokens(const struct op_call *call) {
    int64_t tokens = (call->in[0].rows + MOST_BLOCKS - 1) / MOST_BLOCKS;
    return tokens < LEAST_TOKENS ? LEAST_TOKENS : tokens;
}

size_t cuda_moe_balance_workspace(const struct op_call *call, bool backward, int threads) {
    int64_t tokens = moe_balance_tokens(call), blocks = (call->in[0].rows + tokens - 1) / tokens;
    size_t row = (size_t)call->in[0].cols * sizeof(double);
    (void)threads;
    return backward ? row : 2 * row * (size_t)(blocks ? blocks : 1);
}

// Of one expert, 0 where it need not be decoded.
static size_t decoded_bytes(const struct op_call *call, int i) {
    const struct weight *w = call->p.linear.parts[i].w;
    enum dtype dtype = call->in[0].dtype;
    for (int64_t e = 0; e < call->p.linear.experts; e++) {
        if (!cuda_weight_is_plain(w + e, dtype)) return (size_t)(w->rows * w->cols) * dtype_size(dtype);
    }
    return 0;
}

static int64_t at_once(int64_t experts, size_t bytes) {
    int64_t n = bytes ? (int64_t)(MOE_DECODED_BYTES / bytes) : experts;
    return n < 1 ? 1 : n > experts ? experts : n;
}

static void plan_weights(const struct op_call *call, bool backward, struct moe_linear_space *s) {
    int64_t experts = call->p.linear.experts;
    int n = call->p.linear.n_parts;
    size_t bytes[LINEAR_MAX_PARTS], sum = 0, most = 0;
    for (int i = 0; i < n; i++) {
        bytes[i] = decoded_bytes(call, i), sum += bytes[i];
        s->together[i] = at_once(experts, bytes[i]);
        size_t all = bytes[i] * (size_t)s->together[i];
        if (all > most) most = all;
    }
    if (!backward) {
        size_t at = cuda_piece(&s->bytes, most);
        for (int i = 0; i < n; i++) s->weights[i] = at;
        return;
    }
    for (int i = 0; i < n; i++) {
        s->together[i] = at_once(experts, sum);
        s->weights[i] = cuda_piece(&s->bytes, bytes[i] * (size_t)s->together[i]);
    }
}

static const struct lora_span *span_at(const struct op_call *call, int k) {
    const struct linear_part *part = &call->p.linear.parts[k / LINEAR_MAX_SPANS];
    bool there = k / LINEAR_MAX_SPANS < call->p.linear.n_parts && k % LINEAR_MAX_SPANS < part->n_spans;
    return there ? &part->spans[k % LINEAR_MAX_SPANS] : NULL;
}

// The first span with the same A and the same columns of U.
static int first_like(const struct op_call *call, int of) {
    const struct lora_span *s = span_at(call, of);
    for (int k = 0; k < of; k++) {
        const struct lora_span *other = span_at(call, k);
        if (other && other->u_begin == s->u_begin && other->a.offset == s->a.offset &&
            other->row_begin == s->row_begin && other->row_end == s->row_end)
            return k;
    }
    return of;
}

// May the second's A stand below the first's?
static bool neighbours(const struct op_call *call, const struct lora_span *first, const struct lora_span *second) {
    int64_t rank = first->a.rows / call->p.linear.experts;
    return rank % MOE_PADDING == 0 && first->u_begin + rank == second->u_begin && first->scale == second->scale &&
           first->dropout == 0 && second->dropout == 0 && first->row_begin == second->row_begin &&
           first->row_end == second->row_end;
}

// A, U and V of all spans.
static void plan_spans(const struct op_call *call, bool backward, struct moe_linear_space *s) {
    int64_t rows = call->in[0].rows, experts = call->p.linear.experts, at[MOE_SPANS] = {0},
            cols = moe_padded(call->in[0].cols);
    size_t size = dtype_size(call->in[0].dtype);
    for (int k = 0, last = -1; k < MOE_SPANS; k++) {
        const struct lora_span *span = span_at(call, k);
        if (!span) continue;
        int64_t rank = moe_padded(span->a.rows / experts);
        if (backward) s->v[k] = cuda_piece(&s->bytes, (size_t)(rows * rank) * size);
        s->shared[k] = first_like(call, k), s->lead[k] = k;
        if (s->shared[k] != k) {
            s->lead[k] = s->lead[s->shared[k]], at[k] = at[s->shared[k]];
            continue;
        }
        if (!backward && last >= 0 && neighbours(call, span_at(call, last), span))
            s->lead[k] = s->lead[last], at[k] = at[last] + moe_padded(span_at(call, last)->a.rows / experts);
        s->width[s->lead[k]] = at[k] + rank;
        last = k;
    }
    for (int k = 0; k < MOE_SPANS; k++) {
        int lead = s->lead[k];
        if (!span_at(call, k)) continue;
        if (lead == k) {
            s->a[k] = cuda_piece(&s->bytes, (size_t)(experts * s->width[k] * cols) * size);
            s->u[k] = cuda_piece(&s->bytes, (size_t)(rows * s->width[k]) * size);
        }
        s->width[k] = s->width[lead];
        s->a[k] = s->a[lead] + (size_t)(at[k] * cols) * size, s->u[k] = s->u[lead] + (size_t)at[k] * size;
    }
}

struct moe_linear_space moe_linear_space_of(const struct op_call *call, bool backward) {
    struct moe_linear_space s = {0};
    size_t size = dtype_size(call->in[0].dtype);
    bool dropout = false;
    plan_weights(call, backward, &s);
    plan_spans(call, backward, &s);
    for (int k = 0; k < MOE_SPANS; k++) {
        const struct lora_span *span = span_at(call, k);
        if (!span) continue;
        int64_t rank = moe_padded(span->a.rows / call->p.linear.experts);
        dropout |= span->dropout > 0;
        s.b[k] = cuda_piece(&s.bytes, (size_t)(span->b.rows * rank) * size);
    }
    s.dropped = cuda_piece(&s.bytes, dropout ? (size_t)(call->in[0].rows * call->in[0].cols) * size : 0);
    return s;
}

size_t cuda_moe_linear_group_workspace(const struct op_call *call, bool backward, int threads) {
    (void)threads;
    return moe_linear_space_of(call, backward).bytes;
}
