// Rows of logits: which count, their log-sum-exp, their gradient. See gpu.h for the rules of launchers.
#pragma once

#include "kernels/cuda/gpu.h"

#ifdef __cplusplus
extern "C" {
#endif

// What the kernels of one call share. All pointers are on the device.
struct gpu_head {
    int32_t *rows, *targets; // (T): the rows that count and their targets, in their order
    int32_t *place;          // (T): which of them a row is, -1 = it does not count
    float *g, *s;            // (T): d loss / d logit = (g onehot + s softmax) slope, of those rows
    int32_t *count;          // how many they are
    int64_t limit;           // the most they may be
    float *stats;            // (chunk, 2): largest logit, sum of e^(z - that)
    float *logits;           // (chunk, ldz): h W^T; then, in its place, its gradient: f32, or bf16 rows 2 ldz apart
    int64_t ldz;
    const float *factor, *bias; // (V): m / n, which the product is multiplied by; NULL = 1, 0
};
// One chunk of rows: those at [begin, begin + rows); places behind the count hold zeros.
struct gpu_chunk {
    int64_t begin, rows;
};

// factor = m / n.
void gpu_head_factor(const struct gpu *g, const struct op_call *call, float *factor);
// Chooses the rows. Forward: logp = lse = 0 of the others. Backward: a row without a gradient does not count either.
void gpu_head_choose(const struct gpu *g, const struct op_call *call, const struct gpu_head *head, bool forward);
// Zeroes the rows of dh (T, D) that do not count.
void gpu_head_zero(const struct gpu *g, const struct gpu_head *head, const struct tensor *dh);
// h (rows, D): hidden rows; h32 (rows, D) f32: the same as LoRA sees them, dropped or not. Either may be NULL. head
// NULL: row i is row i of the call's.
void gpu_head_gather(const struct gpu *g, const struct op_call *call, const struct gpu_head *head,
                     struct gpu_chunk chunk, void *h, float *h32);
// The table's own rows: z[:, id] = own (rows, n); or own = dz[:, id], which becomes 0 (dtype: of own; dz as in
// gpu_head).
void gpu_head_put_own(const struct gpu *g, const struct op_call *call, const float *own, int64_t rows, float *z,
                      int64_t ldz);
void gpu_head_take_own(const struct gpu *g, const struct op_call *call, const struct gpu_head *head, int64_t rows,
                       void *own);
// Log-sum-exp of rows that count, into stats; forward: logp and lse of them.
void gpu_head_softmax(const struct gpu *g, const struct op_call *call, const struct gpu_head *head,
                      struct gpu_chunk chunk, bool forward);
// The same, and then the gradient in place of the logits; stats are there already where `again`.
void gpu_head_gradient(const struct gpu *g, const struct op_call *call, const struct gpu_head *head,
                       struct gpu_chunk chunk, bool forward, bool again);
// db += dz, dm += dz y / n, summed over the rows of a chunk; logits and stats are read.
void gpu_head_columns(const struct gpu *g, const struct op_call *call, const struct gpu_head *head,
                      struct gpu_chunk chunk);
// dh (rows, D) += dropout's factors times part.
void gpu_head_add_masked(const struct gpu *g, const struct op_call *call, const struct gpu_head *head,
                         struct gpu_chunk chunk, const float *part, float *dh);
// Rows of dh (rows, D) to where they belong in `to` (T, D).
void gpu_head_scatter(const struct gpu *g, const struct gpu_head *head, struct gpu_chunk chunk, const float *dh,
                      const struct tensor *to, bool acc);
// loss_sum and weight_sum of the rows that count.
void gpu_head_sums(const struct gpu *g, const struct op_call *call, const struct gpu_head *head);
// to = from or to += from: (T, D) of one type.
void gpu_head_take(const struct gpu *g, const struct tensor *from, const struct tensor *to, bool acc);
// OP_LOGITS: factors, bias, scale and cap, in place.
void gpu_logits_finish(const struct gpu *g, const struct op_call *call, const struct gpu_head *head);

#ifdef __cplusplus
}
#endif
