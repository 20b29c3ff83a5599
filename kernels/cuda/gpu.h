// What every launch needs, and the launchers' common rules. Launchers (gpu_*.h) are extern "C", take a call as
// backend.h gives it and enqueue its kernels on gpu->stream: nothing waits, nothing is allocated, the caller asks for
// launch errors. They are C++ inside (.cu) and C outside. Their kernels also run on the host (tests/cuda_host).
//
// Kernels are compiled without contraction: what shall be an fma is written fmaf. Sums have a fixed order, so that the
// same call gives the same bits; there are no atomics on floats.
#pragma once

#include "kernels/ops.h"

struct CUstream_st;

// What a kernel finds wrong in its indices, by who is wrong: our own bugs. The first row of each is kept on the device
// and fails the next read of the arena.
enum gpu_fault { FAULT_TOKEN_ID, FAULT_TARGET, FAULT_TRAINED_ROWS, FAULT_POSITION, FAULT_SLOT, FAULTS };

struct gpu {
    struct CUstream_st *stream; // cudaStream_t
    uint8_t *arena;             // in device memory; tensors are offsets into it
    int multiprocessors;
    size_t shared_bytes;        // the most shared memory of a block
    unsigned long long *faults; // [FAULTS], on the device: 0, or row and index packed (raise_fault in launch.cuh)
};
