// What adapters need beside products. See gpu.h for the rules of launchers.
#pragma once

#include "kernels/cuda/gpu.h"

#ifdef __cplusplus
extern "C" {
#endif

// Rows of several f32 matrices of `cols` columns, each times its scale, one below the other into `to` (f32 or bf16).
enum { GPU_STACK_MAX = LINEAR_MAX_PARTS * LINEAR_MAX_SPANS };
struct gpu_stack {
    int n;
    struct {
        const float *from;
        int64_t ld, begin, rows; // to rows [begin, begin + rows)
        float scale;
    } part[GPU_STACK_MAX];
};
void gpu_stack_rows(const struct gpu *g, const struct gpu_stack *stack, void *to, enum dtype dtype, int64_t cols);

// Which elements dropout keeps of rows with these keys: element d of row t by the Philox number of (seed, step, module;
// keys[t], d). Keys (rows, 2) u32; scalars: the device's step_scalars.
struct gpu_mask {
    const uint32_t *keys;
    int64_t keys_ld;
    const struct step_scalars *scalars;
    uint32_t module;
    float p; // probability that an element is dropped
};
// to = mask x / (1 - p), in x's type.
void gpu_drop(const struct gpu *g, const struct gpu_mask *mask, const void *x, enum dtype dtype, int64_t ld, void *to,
              int64_t to_ld, int64_t rows, int64_t cols);
// to += mask x / (1 - p); x f32, to of `dtype`.
void gpu_drop_add(const struct gpu *g, const struct gpu_mask *mask, const float *x, int64_t ld, void *to,
                  enum dtype dtype, int64_t to_ld, int64_t rows, int64_t cols);

#ifdef __cplusplus
}
#endif
