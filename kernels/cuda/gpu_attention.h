// Attention over many sequences, forward and backward, for any head dims up to 256. See gpu.h for the rules of
// launchers.
#pragma once

#include "kernels/cuda/gpu.h"

#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { ATTENTION_MAX_DIM = 256, ATTENTION_ROWS = 64 /* what the padded lengths of the workspace are multiples of */ };

// Where the parts of the workspace begin, in bytes. Kernels know nothing of sequences: each row has an interval of rows
// of the other side. `splits` > 1: few queries over many keys (generation), the keys of a row are shared by that many
// blocks; part_o and part_sums hold what each found. `parts` > 1: few keys, as heads count; the heads of a KV head are
// shared by that many blocks, part_k and part_v hold the sum over the heads of each.
struct attention_layout {
    size_t q_seen,
        kv_seen; // int2 (Tq), int2 (Tkv): {first, end} of the keys a query sees, of the queries that see a key
    size_t part_o, part_sums; // f32 (splits, Tq, H, Kv), float2 (splits, Tq, H) {largest score, sum}
    size_t stats, stats_rows; // backward: f32 (2, H, stats_rows): lse in base 2, delta = sum of dO * O
    size_t part_k, part_v;    // backward: f32 (parts, Tkv, Hkv*K), (parts, Tkv, Hkv*Kv)
    size_t total;
    int splits, parts;
    int part_heads;     // of each part
    int64_t split_keys; // keys of each, a multiple of every tile
};

static inline size_t attention_take(size_t *total, size_t bytes) {
    size_t at = *total;
    *total += (bytes + 255) / 256 * 256;
    return at;
}

static inline int64_t attention_blocks(int64_t n, int64_t per_block) {
    return (n + per_block - 1) / per_block;
}

enum { ATTENTION_BLOCKS = 264 /* enough: two for each multiprocessor of an H200 */ };

static inline void attention_layout_backward(const struct op_call *call, struct attention_layout *w) {
    enum { KEYS = 128 }; // of a block, at most
    int64_t tq = call->in[0].rows, tkv = call->in[1].rows, kv_heads = call->p.attention.kv_heads;
    w->kv_seen = attention_take(&w->total, (size_t)tkv * 2 * sizeof(int32_t));
    w->stats_rows = (size_t)(attention_blocks(tq, ATTENTION_ROWS) * ATTENTION_ROWS);
    w->stats = attention_take(&w->total, 2 * (size_t)call->p.attention.heads * w->stats_rows * sizeof(float));
    int64_t blocks = attention_blocks(tkv, KEYS) * kv_heads, group = call->p.attention.heads / kv_heads;
    int64_t parts = blocks > 0 ? attention_blocks(ATTENTION_BLOCKS, blocks) : 1;
    if (parts > group) parts = group;
    w->part_heads = (int)attention_blocks(group, parts);
    w->parts = (int)attention_blocks(group, w->part_heads);
    if (w->parts == 1) return;
    size_t rows = (size_t)w->parts * (size_t)(tkv * kv_heads) * sizeof(float);
    w->part_k = attention_take(&w->total, rows * (size_t)call->p.attention.head_dim);
    w->part_v = attention_take(&w->total, rows * (size_t)call->p.attention.v_dim);
}

static inline void attention_layout_forward(const struct op_call *call, struct attention_layout *w) {
    enum { LEAST_KEYS = 256 };
    int64_t tq = call->in[0].rows, tkv = call->in[1].rows, heads = call->p.attention.heads;
    int64_t blocks = attention_blocks(tq, ATTENTION_ROWS) * heads, most = tkv / LEAST_KEYS;
    int64_t splits = blocks > 0 ? attention_blocks(ATTENTION_BLOCKS, blocks) : 1;
    if (splits > most) splits = most;
    w->splits = 1;
    if (4 * tq > tkv || splits < 2) return;
    w->split_keys = attention_blocks(attention_blocks(tkv, splits), ATTENTION_ROWS) * ATTENTION_ROWS;
    w->splits = (int)attention_blocks(tkv, w->split_keys);
    size_t items = (size_t)w->splits * (size_t)(tq * heads);
    w->part_o = attention_take(&w->total, items * (size_t)call->p.attention.v_dim * sizeof(float));
    w->part_sums = attention_take(&w->total, items * 2 * sizeof(float));
}

// A pure function of shapes.
static inline struct attention_layout attention_layout_of(const struct op_call *call, bool backward) {
    struct attention_layout w;
    memset(&w, 0, sizeof w);
    w.q_seen = attention_take(&w.total, (size_t)call->in[0].rows * 2 * sizeof(int32_t));
    if (backward)
        attention_layout_backward(call, &w);
    else
        attention_layout_forward(call, &w);
    return w;
}

// sinks: a float for each head, on the device; NULL = none.
void gpu_attention_forward(const struct gpu *g, const struct op_call *call, const float *sinks);
void gpu_attention_backward(const struct gpu *g, const struct op_call *call);

// --- parts of them. Fills q_seen, and kv_seen in a backward pass.
void gpu_attention_intervals(const struct gpu *g, const struct op_call *call, bool backward);
void gpu_attention_grad_queries(const struct gpu *g, const struct op_call *call); // dQ
void gpu_attention_grad_keys(const struct gpu *g, const struct op_call *call);    // dK, dV

#ifdef __cplusplus
}
#endif
