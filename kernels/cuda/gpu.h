// What every launch needs, and the launchers' common rules. Launchers (gpu_*.h) are extern "C", take a call as backend.h
// gives it and enqueue its kernels on gpu->stream: nothing waits, nothing is allocated, the caller asks for launch
// errors. They are C++ inside (.cu) and C outside. Their kernels also run on the host (tests/cuda_host).
//
// Kernels are compiled without contraction: what shall be an fma is written fmaf. Sums have a fixed order, so that the
// same call gives the same bits; there are no atomics on floats.
#pragma once

#include "kernels/ops.h"

struct CUstream_st;

struct gpu {
    struct CUstream_st *stream; // cudaStream_t
    uint8_t *arena;             // in device memory; tensors are offsets into it
    int multiprocessors;
    size_t shared_bytes; // the most shared memory of a block
};
