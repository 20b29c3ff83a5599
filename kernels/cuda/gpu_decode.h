// Packed weights to plain numbers on the device: the values of weight_decode (weights.h), bit for bit in f32, rounded
// to nearest in bf16. See gpu.h for the rules of launchers.
#pragma once

#include "kernels/cuda/gpu.h"

#ifdef __cplusplus
extern "C" {
#endif

// Rows [row, row + rows) of w to out (rows, cols), f32 or bf16, rows `ld` elements apart. w's bytes and tables are on
// the device; the structs themselves are read before this returns.
void gpu_decode(const struct gpu *g, const struct weight *w, int64_t row, int64_t rows, void *out, enum dtype dtype,
                int64_t ld);
// Row ids[i] of w to row i of out (n, cols). Ids (device memory, `ids_ld` apart) outside of the table give NaN.
void gpu_decode_rows(const struct gpu *g, const struct weight *w, const int32_t *ids, int64_t ids_ld, int64_t n,
                     void *out, enum dtype dtype, int64_t ld);

#ifdef __cplusplus
}
#endif
