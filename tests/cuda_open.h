// Which CUDA plug-in a test opens: the one for the host (tests/cuda_host) unless GRAFT_TEST_GPU is set; then the one
// for GPUs. Both lie in the folder of builds that holds the test, unless GRAFT_CUDA_PLUGIN names another one for GPUs.
#pragma once

#include "tests/op_bench.h"

#include <unistd.h>

static inline bool cuda_test_on_gpu(void) {
    return getenv("GRAFT_TEST_GPU") != NULL;
}

static inline void cuda_choose_plugin(void) {
    char path[4096];
    if (cuda_test_on_gpu() && getenv("GRAFT_CUDA_PLUGIN")) return;
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 64);
    bench_require(n > 0, "where this program lies");
    path[n] = '\0';
    for (int i = 0; i < 2; i++) *strrchr(path, '/') = '\0';
    strcat(path, cuda_test_on_gpu() ? "/libgraft_cuda.so" : "/cuda_host/libgraft_cuda.so");
    setenv("GRAFT_CUDA_PLUGIN", path, 1);
}
