// Workspaces of the CUDA backend's kernels: pure functions of shapes, linked into the program too, so that a run on a
// GPU can be planned where there is none.
#pragma once

#include "kernels/ops.h"

#define CUDA_WORKSPACE(name) size_t cuda_##name##_workspace(const struct op_call *call, bool backward, int threads)
// cuda_head_plan.c
CUDA_WORKSPACE(embed);
CUDA_WORKSPACE(token_logprob);
CUDA_WORKSPACE(logits);
CUDA_WORKSPACE(columns);
CUDA_WORKSPACE(row_norms);
CUDA_WORKSPACE(grad_norm);
CUDA_WORKSPACE(adamw);
