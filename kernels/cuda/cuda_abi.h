// What the program and the CUDA plug-in agree on. The plug-in uses functions of the program that opens it.
#pragma once

#include "kernels/backend.h"

#define CUDA_PLUGIN_SYMBOL "graft_cuda_plugin"
enum { CUDA_PLUGIN_ABI = 1 };

struct cuda_plugin {
    int abi;
    size_t own_bytes, call_bytes, weight_bytes, class_bytes; // of this, op_call, weight, backend_class
    // backend_find_gpu.
    int (*find)(struct gpu_found *out, struct error *err);
    // The first GPU, ready for use; NULL and err when there is none (STATUS_NOINPUT) or it fails.
    struct backend *(*open)(struct error *err);
};
