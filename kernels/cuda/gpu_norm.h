// Norms of rows, with or without a sum before them. See gpu.h for the rules of launchers.
#pragma once

#include "kernels/cuda/gpu.h"

#ifdef __cplusplus
extern "C" {
#endif

// OP_NORM and OP_ADD_NORM. w, bias: as many floats on the device as the op's weights have columns; NULL = none. An
// own_bias of the call stands in place of `bias`.
void gpu_norm_forward(const struct gpu *g, const struct op_call *call, const float *w, const float *bias);
// OP_ADD_NORM: y again from s.
void gpu_norm_recompute(const struct gpu *g, const struct op_call *call, const float *w, const float *bias);
void gpu_norm_backward(const struct gpu *g, const struct op_call *call, const float *w);

#ifdef __cplusplus
}
#endif
