// Runs one kernel to its end, on the calling thread.
#pragma once

#include <cuda_runtime.h>

#include <functional>
#include <numeric>

void cuda_host_run_kernel(const char *name, dim3 grid, dim3 block, size_t shared, const std::function<void()> &body);
