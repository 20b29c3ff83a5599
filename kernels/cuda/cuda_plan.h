// Workspaces of the CUDA backend's kernels: pure functions of shapes, linked into the program too, so that a run on a GPU
// can be planned where there is none.
#pragma once

#include "kernels/ops.h"

// `threads` does not matter here.
size_t cuda_attention_workspace(const struct op_call *call, bool backward, int threads);
