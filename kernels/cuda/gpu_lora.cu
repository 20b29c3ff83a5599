// See gpu_lora.h.
#include "kernels/cuda/gpu_lora.h"

#include "kernels/cuda/random.cuh"

namespace {

enum { BLOCK = 256 };

template <class T> __global__ void stack_kernel(struct gpu_stack s, T *to, int64_t cols) {
    int64_t d = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (d >= cols) return;
    int part = (int)blockIdx.z;
    for (int64_t r = blockIdx.y; r < s.part[part].rows; r += gridDim.y)
        to[(s.part[part].begin + r) * cols + d] =
            from_float<T>(s.part[part].scale * s.part[part].from[r * s.part[part].ld + d]);
}

// A thread has four neighbours: one number of the generator.
template <class T> __global__ void drop_kernel(struct gpu_mask m, matrix<T> x, matrix<T> to) {
    int64_t fours = (x.cols + 3) / 4, i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (i >= x.rows * fours) return;
    int64_t row = i / fours, d = i % fours * 4;
    float factor[4];
    keep_factors(m, row, d / 4, factor);
    for (int k = 0; k < 4 && d + k < x.cols; k++)
        to.at(row, d + k) = from_float<T>(factor[k] * to_float(x.at(row, d + k)));
}

template <class T> __global__ void drop_add_kernel(struct gpu_mask m, matrix<const float> x, matrix<T> to) {
    int64_t fours = (x.cols + 3) / 4, i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (i >= x.rows * fours) return;
    int64_t row = i / fours, d = i % fours * 4;
    float factor[4];
    keep_factors(m, row, d / 4, factor);
    for (int k = 0; k < 4 && d + k < x.cols; k++) {
        T *p = &to.at(row, d + k);
        *p = from_float<T>(fmaf(factor[k], x.at(row, d + k), to_float(*p)));
    }
}
} // namespace

extern "C" {
void gpu_stack_rows(const struct gpu *g, const struct gpu_stack *stack, void *to, enum dtype dtype, int64_t cols) {
    if (stack->n == 0) return;
    DISPATCH(dtype, T,
             LAUNCH((stack_kernel<T>), dim3(blocks_for(cols, BLOCK), 16, (unsigned)stack->n), BLOCK, 0, g->stream,
                    *stack, (T *)to, cols));
}
void gpu_drop(const struct gpu *g, const struct gpu_mask *mask, const void *x, enum dtype dtype, int64_t ld, void *to,
              int64_t to_ld, int64_t rows, int64_t cols) {
    if (rows == 0) return;
    DISPATCH(dtype, T,
             LAUNCH((drop_kernel<T>), blocks_for(rows * ((cols + 3) / 4), BLOCK), BLOCK, 0, g->stream, *mask,
                    matrix<T>{(T *)x, rows, cols, ld}, matrix<T>{(T *)to, rows, cols, to_ld}));
}
void gpu_drop_add(const struct gpu *g, const struct gpu_mask *mask, const float *x, int64_t ld, void *to,
                  enum dtype dtype, int64_t to_ld, int64_t rows, int64_t cols) {
    if (rows == 0) return;
    DISPATCH(dtype, T,
             LAUNCH((drop_add_kernel<T>), blocks_for(rows * ((cols + 3) / 4), BLOCK), BLOCK, 0, g->stream, *mask,
                    matrix<const float>{x, rows, cols, ld}, matrix<T>{(T *)to, rows, cols, to_ld}));
}
}
