// Ops that go over the elements of token rows. See gpu.h for the rules of launchers.
#pragma once

#include "kernels/cuda/gpu.h"

#ifdef __cplusplus
extern "C" {
#endif

void gpu_add_forward(const struct gpu *g, const struct op_call *call);
void gpu_add_backward(const struct gpu *g, const struct op_call *call);
void gpu_glu_forward(const struct gpu *g, const struct op_call *call);
void gpu_glu_backward(const struct gpu *g, const struct op_call *call);
void gpu_act_forward(const struct gpu *g, const struct op_call *call);
void gpu_act_backward(const struct gpu *g, const struct op_call *call);
void gpu_rope_forward(const struct gpu *g, const struct op_call *call);
void gpu_rope_backward(const struct gpu *g, const struct op_call *call);
void gpu_copy(const struct gpu *g, const struct op_call *call);
void gpu_fill(const struct gpu *g, const struct op_call *call);
void gpu_kv_write(const struct gpu *g, const struct op_call *call);

// Columns [0, cols) of rows x rows matrices that stand by themselves, in any mix of f32 and bf16.
// to = from, converted.
void gpu_convert(const struct gpu *g, const void *from, enum dtype from_type, int64_t from_ld, void *to,
                 enum dtype to_type, int64_t to_ld, int64_t rows, int64_t cols);
// y += bias of each column.
void gpu_add_bias(const struct gpu *g, void *y, enum dtype dtype, int64_t ld, const float *bias, int64_t rows,
                  int64_t cols);

#ifdef __cplusplus
}
#endif
