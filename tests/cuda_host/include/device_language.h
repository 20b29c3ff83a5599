// The language of device code on the host: keywords, built-in variables, barriers, warp collectives, atomics, vector
// types. See cuda_runtime.h. C++20.
#pragma once

#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <tuple>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __constant__ static
#define __shared__   static // blocks run one after another, and all fibers of a block share one thread
#define __restrict__ __restrict
#define __align__(n) alignas(n)

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
    dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
struct uint3 {
    unsigned x, y, z;
};
#define CUDA_HOST_VECTOR(type, name)                                                                                   \
    struct alignas(2 * sizeof(type)) name##2 {                                                                         \
        type x, y;                                                                                                     \
    };                                                                                                                 \
    struct alignas(4 * sizeof(type)) name##4 {                                                                         \
        type x, y, z, w;                                                                                               \
    };                                                                                                                 \
    static inline name##2 make_##name##2(type x, type y) {                                                             \
        return {x, y};                                                                                                 \
    }                                                                                                                  \
    static inline name##4 make_##name##4(type x, type y, type z, type w) {                                             \
        return {x, y, z, w};                                                                                           \
    }
CUDA_HOST_VECTOR(float, float)
CUDA_HOST_VECTOR(int, int)
CUDA_HOST_VECTOR(unsigned, uint)
#undef CUDA_HOST_VECTOR

// --- threads (fibers.cpp)
struct cuda_host_where {
    uint3 thread, block;
    dim3 block_dim, grid_dim;
};
extern cuda_host_where cuda_host_here; // of the fiber that runs
#define threadIdx (cuda_host_here.thread)
#define blockIdx  (cuda_host_here.block)
#define blockDim  (cuda_host_here.block_dim)
#define gridDim   (cuda_host_here.grid_dim)
enum { warpSize = 32 };

void __syncthreads();
void __syncwarp(unsigned mask = 0xFFFFFFFFu);
// Every lane of `mask` gives 64 bytes and gets back where those of all 32 lie until its next collective.
const unsigned char (*cuda_host_collect(unsigned mask, const void *mine, size_t bytes))[64];
void *cuda_host_dynamic_shared();

template <class T> T cuda_host_from_lane(unsigned mask, T value, unsigned lane) {
    static_assert(sizeof(T) <= 64);
    auto all = cuda_host_collect(mask, &value, sizeof value);
    T out;
    memcpy(&out, all[lane & 31], sizeof out);
    return out;
}
static inline unsigned cuda_host_lane() {
    return (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) & 31;
}
template <class T> T __shfl_sync(unsigned mask, T value, int lane) {
    return cuda_host_from_lane(mask, value, (unsigned)lane);
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int bits) {
    return cuda_host_from_lane(mask, value, cuda_host_lane() ^ (unsigned)bits);
}
template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned by) {
    unsigned lane = cuda_host_lane();
    return cuda_host_from_lane(mask, value, lane + by < 32 ? lane + by : lane);
}
template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned by) {
    unsigned lane = cuda_host_lane();
    return cuda_host_from_lane(mask, value, lane >= by ? lane - by : lane);
}
static inline unsigned __ballot_sync(unsigned mask, int predicate) {
    unsigned char mine = predicate != 0;
    auto all = cuda_host_collect(mask, &mine, 1);
    unsigned out = 0;
    for (unsigned i = 0; i < 32; i++) {
        if (mask >> i & 1 && all[i][0]) out |= 1u << i;
    }
    return out;
}
static inline int __any_sync(unsigned mask, int predicate) {
    return __ballot_sync(mask, predicate) != 0;
}
static inline int __all_sync(unsigned mask, int predicate) {
    return __ballot_sync(mask, predicate) == mask;
}

template <class T> T atomicAdd(T *p, T by) {
    static_assert(std::is_integral_v<T>, "sums of floats in no fixed order have no fixed bits");
    T old = *p;
    *p = old + by;
    return old;
}
template <class T> T atomicMax(T *p, T x) {
    T old = *p;
    if (x > old) *p = x;
    return old;
}
template <class T> T atomicMin(T *p, T x) {
    T old = *p;
    if (x < old) *p = x;
    return old;
}
static inline int atomicOr(int *p, int x) {
    int old = *p;
    *p |= x;
    return old;
}
static inline void __threadfence() {}

using std::isfinite;
using std::isinf;
using std::isnan;
template <class T> T __ldg(const T *p) {
    return *p;
}
static inline int __popc(unsigned x) {
    return std::popcount(x);
}
static inline int __clz(int x) {
    return std::countl_zero((unsigned)x);
}
static inline int __ffs(int x) {
    return x ? std::countr_zero((unsigned)x) + 1 : 0;
}
static inline unsigned __float_as_uint(float x) {
    return std::bit_cast<unsigned>(x);
}
static inline float __uint_as_float(unsigned x) {
    return std::bit_cast<float>(x);
}
static inline int __float_as_int(float x) {
    return std::bit_cast<int>(x);
}
static inline float __int_as_float(int x) {
    return std::bit_cast<float>(x);
}
static inline float rsqrtf(float x) {
    return 1.0f / sqrtf(x);
}
static inline float __fdividef(float a, float b) {
    return a / b;
}
static inline unsigned __umulhi(unsigned a, unsigned b) {
    return (unsigned)((uint64_t)a * b >> 32);
}
template <class T> T min(T a, T b) {
    return b < a ? b : a;
}
template <class T> T max(T a, T b) {
    return a < b ? b : a;
}

// --- launching
void cuda_host_enqueue_kernel(const char *name, dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
                              std::function<void()> thread);
template <class... P, class... A>
void cuda_host_launch(const char *name, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
                      A... args) {
    std::tuple<std::decay_t<P>...> copy(args...); // as a launch does: by value, now
    cuda_host_enqueue_kernel(name, grid, block, shared, stream, [=] { std::apply(kernel, copy); });
}
template <class K> cudaError_t cudaFuncSetAttribute(K *, cudaFuncAttribute, int) {
    return cudaSuccess;
}

#include "collective.h"
