// OP_DROPOUT. See gpu.h for the rules of launchers.
#pragma once

#include "kernels/cuda/gpu.h"

#ifdef __cplusplus
extern "C" {
#endif

void gpu_dropout_forward(const struct gpu *g, const struct op_call *call);
void gpu_dropout_backward(const struct gpu *g, const struct op_call *call);

#ifdef __cplusplus
}
#endif
