// Rows of tokens and rows of pairs, a shared expert's gate, keys of latent attention. See gpu.h for the rules of
// launchers.
#pragma once

#include "kernels/cuda/gpu.h"

#ifdef __cplusplus
extern "C" {
#endif

void gpu_moe_gather_forward(const struct gpu *g, const struct op_call *call);
void gpu_moe_gather_backward(const struct gpu *g, const struct op_call *call);
void gpu_moe_combine_forward(const struct gpu *g, const struct op_call *call);
void gpu_moe_combine_backward(const struct gpu *g, const struct op_call *call);
void gpu_gate_forward(const struct gpu *g, const struct op_call *call);
void gpu_gate_backward(const struct gpu *g, const struct op_call *call);
void gpu_mla_keys_forward(const struct gpu *g, const struct op_call *call);
void gpu_mla_keys_backward(const struct gpu *g, const struct op_call *call);

#ifdef __cplusplus
}
#endif
