// Gradient sums, their norm, and AdamW, over flat vectors. See gpu.h for the rules of launchers.
#pragma once

#include "kernels/cuda/gpu.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { GPU_NORM_CHUNKS = 256 }; // partial sums of the norm: fixed, so that no device changes its bits

// A group as a step uses it, and what all of them share.
struct gpu_group {
    int64_t begin, end;
    float decay, step_size;
};
struct gpu_adamw_step {
    float scale, sqrt_bias2;
    int32_t skip;
};

void gpu_grad_add(const struct gpu *g, const struct op_call *call);
void gpu_grad_norm(const struct gpu *g, const struct op_call *call, double *partial); // [GPU_NORM_CHUNKS]
// groups: [n_groups], ascending and apart; step: one. Both are written here, from the call and its scalars.
void gpu_adamw(const struct gpu *g, const struct op_call *call, struct gpu_group *groups, struct gpu_adamw_step *step);

#ifdef __cplusplus
}
#endif
