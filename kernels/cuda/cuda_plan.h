// Workspaces of the CUDA backend's kernels: pure functions of shapes, linked into the program too, so that a run on a GPU
// can be planned where there is none. What lies where in a workspace is decided here as well, once for both.
#pragma once

#include "kernels/ops.h"

typedef size_t (*workspace_function)(const struct op_call *call, bool backward, int threads);
extern const workspace_function cuda_workspaces[OP_COUNT]; // NULL: the backend has no such kernel

// Adds a piece of `bytes` to a workspace of *end bytes and returns where it begins.
static inline size_t cuda_piece(size_t *end, size_t bytes) {
    size_t at = *end;
    *end += (bytes + 255) / 256 * 256;
    return at;
}

// Does the product read the weight where it lies, without decoding it first?
bool cuda_weight_is_plain(const struct weight *w, enum dtype dtype);

// OP_LINEAR_GROUP. R = sum of the ranks of all spans; sizes are those of the activations' dtype unless said.
struct linear_space {
    size_t weight;  // the largest part that is decoded (N, K)
    size_t a, b;    // A of all spans, stacked and times their scale (R, K); B of one span (N, r)
    size_t u, ub;   // U where it is not saved (T, R) f32; U (T, R)
    size_t v, vb;   // backward: V = scale dY B (T, R) f32; V (T, R)
    size_t dropped; // what an adapter sees of x (T, K)
    size_t through; // backward with dropout: V A before the mask (T, K) f32
    size_t bytes;   // of it all
    int64_t ranks;  // R
};
struct linear_space linear_space_of(const struct op_call *call, bool backward);
size_t cuda_linear_group_workspace(const struct op_call *call, bool backward, int threads);
