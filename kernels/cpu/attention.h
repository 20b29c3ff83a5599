// The attention kernels of one instruction set. attention.c turns an op call into units of work and gives them to the
// threads; attention_fast.c computes one unit. A key block is 64 keys counted from the first key of a sequence, and
// every sum runs over its key blocks (or query blocks) in order: bits depend on the sequence alone.
#pragma once

#include "kernels/cpu/rows.h"

#include <stdatomic.h>

enum {
    ATTENTION_BLOCK = 64, // queries and keys per block
    ATTENTION_SUBS = 4,   // blocks of queries (of one or several heads) that one forward unit carries
};

struct attention_args {
    enum dtype dtype; // of q, k, v, o and their gradients
    int group;        // query heads per kv head
    int head_dim, v_dim;
    float scale, soft_cap;
    int64_t window, chunk;         // 0 = off
    const float *sinks;            // one per query head, or NULL
    struct matrix q, k, v, o, lse; // lse: f32, may be absent in the forward pass
    // backward
    struct matrix d_o, dk, dv; // dk and dv may be absent
    struct matrix dq;          // f32, added into; absent when nobody wants it
    struct matrix delta;       // f32 (Tq, H): sum of do * o
    bool acc_k, acc_v;
};

// One sequence, in rows of q and of k and v.
struct attention_seq {
    int64_t q_begin, q_len, kv_begin, kv_len;
};

// Forward: blocks [block, block + blocks) of 64 queries, heads [head, head + heads) of one kv head.
// Backward: key block `block` and all query heads of the kv head.
struct attention_unit {
    struct attention_seq seq;
    int64_t kv_head, block, blocks;
    int64_t head, heads;  // query heads, counted over the whole layer
    atomic_int *progress; // backward: per query block, how many key blocks have been added to dq
};

struct attention_isa {
    void (*forward)(const struct attention_args *a, const struct attention_unit *u, float *scratch);
    void (*backward)(const struct attention_args *a, const struct attention_unit *u, float *scratch);
    void (*delta)(const struct attention_args *a, int64_t heads, int64_t row); // of one query row
};

// The order of sums into dq: key block by key block. Waits until `blocks` of them have been added to a query block;
// says that they have.
void attention_wait(atomic_int *progress, int64_t blocks);
void attention_done(atomic_int *progress, int64_t blocks);

// Floats of scratch that a unit needs.
static inline int64_t attention_padded(int64_t dim) {
    return (dim + 15) / 16 * 16;
}
int64_t attention_scratch(int head_dim, int v_dim, bool backward);

// The keys that query i of a sequence sees: [begin, end) from its first key. Both ends grow with i.
static inline void attention_visible(const struct attention_args *a, const struct attention_seq *s, int64_t i,
                                     int64_t *begin, int64_t *end) {
    int64_t position = s->kv_len - s->q_len + i, first = 0;
    if (a->window > 0 && position - a->window + 1 > first) first = position - a->window + 1;
    if (a->chunk > 0 && position > 0 && position / a->chunk * a->chunk > first) first = position / a->chunk * a->chunk;
    *begin = first;
    *end = position + 1 > first ? position + 1 : first;
}
