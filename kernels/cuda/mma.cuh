// Matrix instructions of a warp, loads for them, and copies into shared memory that run beside the arithmetic. The only
// PTX we write stands here; each has a version for the host (tests/cuda_host) that does the same, lane by lane.
//
// Fragments (PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type"): lane l has group = l / 4 and part
// = l % 4. C, D (16 x 8): d[0], d[1] = row group, columns 2 part and 2 part + 1; d[2], d[3] = row group + 8. A (16 x
// 16, bf16 pairs, the lower column in the lower half): a[0] = row group, columns 2 part ..; a[1] = row group + 8; a[2]
// = row group, columns 2 part + 8 ..; a[3] = row group + 8, the same. B (16 x 8): b[0] = rows 2 part .., column group;
// b[1] = rows 2 part + 8 ... A (16 x 8, f32): a[0] = (group, part), a[1] = (group + 8, part), a[2] = (group, part
// + 4), a[3] = (group + 8, part + 4). B (8 x 8, f32): b[0] = (part, group), b[1] = (part + 4, group).
#pragma once

#include "kernels/cuda/launch.cuh"

// d += a b; a (16 x 16), b (16 x 8), products exact, sums fp32.
static inline __device__ void mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2]) {
#if defined(__CUDACC__)
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    cuda_host_mma_bf16(d, a, b);
#endif
}

// d += a b in fp32; a (16 x 8), b (8 x 8), one fma after another for k ascending. No matrix unit does this: it is for
// the mode that tight comparisons use.
static inline __device__ void mma_f32(float d[4], const float a[4], const float b[2]) {
    int lane = (int)(threadIdx.x % WARP), group = lane / 4, part = lane % 4;
    for (int k = 0; k < 8; k++) {
        float a_low = __shfl_sync(ALL_LANES, a[k / 4 * 2], group * 4 + k % 4);
        float a_high = __shfl_sync(ALL_LANES, a[k / 4 * 2 + 1], group * 4 + k % 4);
        float b_even = __shfl_sync(ALL_LANES, b[k / 4], 2 * part * 4 + k % 4);
        float b_odd = __shfl_sync(ALL_LANES, b[k / 4], (2 * part + 1) * 4 + k % 4);
        d[0] = fmaf(a_low, b_even, d[0]), d[1] = fmaf(a_low, b_odd, d[1]);
        d[2] = fmaf(a_high, b_even, d[2]), d[3] = fmaf(a_high, b_odd, d[3]);
    }
}

// Four 8 x 8 matrices of 16-bit elements from shared memory: lane l gives the address of row l % 8 of matrix l / 8 (16
// bytes, aligned), and gets in r[j] elements (l / 4, 2 (l % 4)) and the next of matrix j. TRANSPOSED: of its transpose.
template <bool TRANSPOSED> static inline __device__ void load_matrices(uint32_t r[4], const void *row) {
#if defined(__CUDACC__)
    unsigned at = (unsigned)__cvta_generic_to_shared(row);
    if constexpr (TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(at)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(at)
                     : "memory");
#else
    cuda_host_load_matrices(r, row, TRANSPOSED);
#endif
}

// 16 bytes from global to shared memory, both aligned, later; zeros when not `valid` (the source is then not read).
static inline __device__ void copy_ahead(void *shared, const void *global, bool valid) {
#if defined(__CUDACC__)
    unsigned at = (unsigned)__cvta_generic_to_shared(shared);
    int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(global), "r"(bytes) : "memory");
#else
    cuda_host_copy_ahead(shared, global, valid);
#endif
}
// Ends a group of this thread's copies.
static inline __device__ void copy_group() {
#if defined(__CUDACC__)
    asm volatile("cp.async.commit_group;" ::: "memory");
#else
    cuda_host_copy_group();
#endif
}
// Until at most LEFT of this thread's groups are under way. What other threads copied needs a __syncthreads() after it.
template <int LEFT> static inline __device__ void copy_wait() {
#if defined(__CUDACC__)
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
#else
    cuda_host_copy_wait(LEFT);
#endif
}

// 2^x by the special function unit, to about 2 units of the last place; results below the least normal number are 0.
static inline __device__ float exp2_fast(float x) {
#if defined(__CUDACC__)
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return exp2f(x);
#endif
}
