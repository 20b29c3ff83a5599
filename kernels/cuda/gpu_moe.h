// Mixtures of experts: who goes where, and the load-balancing loss. See gpu.h for the rules of launchers.
#pragma once

#include "kernels/cuda/gpu.h"

#ifdef __cplusplus
extern "C" {
#endif

// Pairs that one block counts and places.
enum { MOE_PAIRS = 256 };

// OP_MOE_ROUTE. bias: (E) floats on the device or NULL. counts: (E, pairs / MOE_PAIRS rounded up); totals: (E).
void gpu_moe_route_forward(const struct gpu *g, const struct op_call *call, const float *bias, int32_t *counts,
                           int32_t *totals);
void gpu_moe_route_backward(const struct gpu *g, const struct op_call *call, const float *bias);

// OP_MOE_BALANCE. partial: (blocks, 2 E), a row for each `tokens` tokens; slopes: (E).
void gpu_moe_balance_forward(const struct gpu *g, const struct op_call *call, double *partial, int64_t tokens);
void gpu_moe_balance_backward(const struct gpu *g, const struct op_call *call, double *slopes);

#ifdef __cplusplus
}
#endif
