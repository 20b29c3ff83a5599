// The part of the language that all kernels share: launching, tensors, numbers, sums over warps and blocks.
#pragma once

#include "kernels/cuda/gpu.h"

#include <cuda_runtime.h>
#if defined(__CUDACC__)
#include <cuda_bf16.h>
#define LAUNCH(kernel, grid, block, shared, stream, ...) (kernel)<<<grid, block, shared, stream>>>(__VA_ARGS__)
#define DYNAMIC_SHARED(type, name)                                                                                     \
    extern __shared__ __align__(128) unsigned char dynamic_shared_bytes[];                                             \
    type *name = reinterpret_cast<type *>(dynamic_shared_bytes)
#else
#define LAUNCH(kernel, grid, block, shared, stream, ...)                                                               \
    cuda_host_launch(#kernel, (kernel), grid, block, shared, stream, __VA_ARGS__)
#define DYNAMIC_SHARED(type, name) type *name = reinterpret_cast<type *>(cuda_host_dynamic_shared())
#endif
// Instantiates FUNCTION for the element type of activations: DISPATCH(dtype, T, f<T>(...)). dtype is f32 or bf16.
#define DISPATCH(dtype, T, ...)                                                                                        \
    do {                                                                                                               \
        if ((dtype) == DTYPE_BF16) {                                                                                   \
            typedef bf16 T;                                                                                            \
            __VA_ARGS__;                                                                                               \
        } else {                                                                                                       \
            typedef float T;                                                                                           \
            __VA_ARGS__;                                                                                               \
        }                                                                                                              \
    } while (0)

constexpr unsigned ALL_LANES = 0xFFFFFFFFu;
constexpr int WARP = 32;

// --- numbers
struct bf16 {
    uint16_t bits;
};
static inline __device__ float to_float(bf16 x) {
    return __uint_as_float((unsigned)x.bits << 16);
}
static inline __device__ float to_float(float x) {
    return x;
}
template <class T> __device__ T from_float(float x);
template <> __device__ inline float from_float<float>(float x) {
    return x;
}
template <> __device__ inline bf16 from_float<bf16>(float x) { // to nearest, ties to even
#if defined(__CUDACC__)
    __nv_bfloat16 h = __float2bfloat16_rn(x);
    return {*reinterpret_cast<uint16_t *>(&h)};
#else
    return {bf16_from_float(x)};
#endif
}

// N elements that are loaded and stored at once: the address must be a multiple of their size.
template <class T, int N> struct alignas(sizeof(T) * N) pack { T v[N]; };

// --- tensors
template <class T> struct matrix { // p NULL = absent
    T *p;
    int64_t rows, cols, ld;
    __device__ T *row(int64_t r) const { return p + r * ld; }
    __device__ T &at(int64_t r, int64_t c) const { return p[r * ld + c]; }
};
template <class T> static inline matrix<T> matrix_of(const struct gpu *g, const struct tensor *t) {
    return {t->dtype == DTYPE_NONE ? nullptr : (T *)(g->arena + t->offset), t->rows, t->cols, t->ld};
}
static inline const step_scalars *scalars_of(const struct gpu *g, const struct op_call *call) {
    return call->scalars.dtype == DTYPE_NONE ? nullptr : (const step_scalars *)(g->arena + call->scalars.offset);
}
// May N elements of a row be moved at once, from its beginning on?
template <int N, class T> static inline bool aligned(const matrix<T> &m) {
    return (uintptr_t)m.p % (N * sizeof(T)) == 0 && m.ld % N == 0;
}
// A gradient is stored, or added to what is there.
template <class T> static inline __device__ void put_gradient(T *p, float x, bool acc) {
    *p = from_float<T>(acc ? to_float(*p) + x : x);
}

static inline unsigned blocks_for(int64_t items, int64_t per_block) {
    return (unsigned)((items + per_block - 1) / per_block);
}

// Index `value` of row `row` points outside: told by the next read. The caller goes on without following it.
static inline __device__ void raise_fault(unsigned long long *faults, enum gpu_fault fault, int64_t row,
                                          int32_t value) {
    atomicMax(&faults[fault], (unsigned long long)(UINT32_MAX - (uint32_t)row) << 32 | (uint32_t)value);
}

// --- sums in a fixed order: every lane (thread) gets the result
template <class T> static inline __device__ T warp_sum(T x) {
    for (int bits = WARP / 2; bits > 0; bits /= 2) x += __shfl_xor_sync(ALL_LANES, x, bits);
    return x;
}
static inline __device__ float warp_max(float x) {
    for (int bits = WARP / 2; bits > 0; bits /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, bits));
    return x;
}
// Of a block of THREADS threads in one dimension, a multiple of 32; all must call it.
template <int THREADS, class T> static inline __device__ T block_sum(T x) {
    __shared__ T part[THREADS / WARP];
    x = warp_sum(x);
    __syncthreads(); // part may still be read from the call before
    if (threadIdx.x % WARP == 0) part[threadIdx.x / WARP] = x;
    __syncthreads();
    T sum = part[0];
    for (int i = 1; i < THREADS / WARP; i++) sum += part[i];
    return sum;
}
template <int THREADS> static inline __device__ float block_max(float x) {
    __shared__ float part[THREADS / WARP];
    x = warp_max(x);
    __syncthreads();
    if (threadIdx.x % WARP == 0) part[threadIdx.x / WARP] = x;
    __syncthreads();
    float most = part[0];
    for (int i = 1; i < THREADS / WARP; i++) most = fmaxf(most, part[i]);
    return most;
}
