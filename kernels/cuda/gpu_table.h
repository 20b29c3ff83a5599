// The embedding, and what an adapter does to a table (V, D). See gpu.h for the rules of launchers.
#pragma once

#include "kernels/cuda/gpu.h"

#ifdef __cplusplus
extern "C" {
#endif

// OP_EMBED. Ids outside of the vocabulary become faults.
void gpu_embed_check(const struct gpu *g, const struct op_call *call);
// Tokens [first, first + count) of x = (row of the table + s B A) scale + noise. base: (count, D) f32, rows of the base
// for these tokens; unused where `full` stands in its place.
void gpu_embed_finish(const struct gpu *g, const struct op_call *call, const float *base, int64_t first, int64_t count);

// Backward. Of tokens [first, first + count): to (count, D) f32 = scale dx; u (count, R) = s B[id].
void gpu_embed_gradient(const struct gpu *g, const struct op_call *call, int64_t first, int64_t count, float *to);
void gpu_embed_adapter_rows(const struct gpu *g, const struct op_call *call, int64_t first, int64_t count, float *u);
// dB[id] += v (T, R) of its tokens; rows of the table, or its own rows, += scale dx of their tokens.
void gpu_embed_scatter_b(const struct gpu *g, const struct op_call *call, const float *v);
void gpu_embed_scatter_rows(const struct gpu *g, const struct op_call *call);

// from (rows, cols) f32 to bf16, rows ld apart.
void gpu_table_round(const struct gpu *g, const float *from, int64_t from_ld, int64_t rows, int64_t cols, void *to,
                     int64_t ld);

#ifdef __cplusplus
}
#endif
