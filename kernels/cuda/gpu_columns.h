// OP_COLUMNS, and the norms of rows for OP_ROW_NORMS. See gpu.h for the rules of launchers.
#pragma once

#include "kernels/cuda/gpu.h"

#ifdef __cplusplus
extern "C" {
#endif

// Rows of the backward's sums that one block adds up.
enum { GPU_COLUMNS_SEGMENT = 256 };

// bias: (N) floats on the device, NULL = none; a trained bias of the call stands in its place.
void gpu_columns_forward(const struct gpu *g, const struct op_call *call, const float *bias);
// sums: (segments, 2, N) floats, segments = rows / GPU_COLUMNS_SEGMENT, rounded up; unused where nothing is trained.
void gpu_columns_backward(const struct gpu *g, const struct op_call *call, float *sums);

// out[i] = the sum of the squares of row i of (rows, cols), or its root.
void gpu_row_squares(const struct gpu *g, const float *from, int64_t rows, int64_t cols, float *out, bool root);

#ifdef __cplusplus
}
#endif
