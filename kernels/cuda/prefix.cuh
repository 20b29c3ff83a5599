// Running sums of counts, made by a block.
#pragma once

#include "kernels/cuda/launch.cuh"

// first[i] = count(0) + .. + count(i - 1) for i in 0 .. n, in shared memory; all THREADS threads of the block call it,
// and read first only after it returns.
template <int THREADS, class COUNT> static inline __device__ void running_sums(int n, int *first, COUNT count) {
    __shared__ int of_warp[THREADS / WARP];
    int thread = (int)threadIdx.x, lane = thread % WARP, warp = thread / WARP;
    int each = (n + THREADS - 1) / THREADS, begin = min(n, thread * each), end = min(n, begin + each), sum = 0;
    for (int i = begin; i < end; i++) sum += count(i);
    int upto = sum; // with the threads before it in the warp
    for (int by = 1; by < WARP; by *= 2) {
        int other = __shfl_up_sync(ALL_LANES, upto, (unsigned)by);
        if (lane >= by) upto += other;
    }
    if (lane == WARP - 1) of_warp[warp] = upto;
    __syncthreads();
    int at = upto - sum;
    for (int w = 0; w < warp; w++) at += of_warp[w];
    for (int i = begin; i < end; i++) first[i] = at, at += count(i);
    if (thread == THREADS - 1) first[n] = at;
    __syncthreads();
}
