// The CUDA backend: opening the device, the table of kernels, and the one symbol that the program looks for.
#include "kernels/cuda/cuda.h"

#include "kernels/alloc.h"
#include "kernels/cuda/cuda_abi.h"
#include "kernels/cuda/cuda_plan.h"

#include <stdio.h>

static size_t no_workspace(const struct op_call *call, bool backward, int threads) {
    (void)call, (void)backward, (void)threads;
    return 0;
}

#define BOTH(name) .forward = cuda_##name##_forward, .backward = cuda_##name##_backward
static const struct kernel cuda_kernels[OP_COUNT] = {
    [OP_NORM] = {BOTH(norm), .workspace_bytes = no_workspace},
    [OP_ADD_NORM] = {BOTH(norm), .recompute = cuda_norm_recompute, .workspace_bytes = no_workspace},
    [OP_EMBED] = {BOTH(embed), .workspace_bytes = cuda_embed_workspace},
    [OP_COLUMNS] = {BOTH(columns), .workspace_bytes = cuda_columns_workspace},
    [OP_DROPOUT] = {BOTH(dropout), .workspace_bytes = no_workspace},
    [OP_TOKEN_LOGPROB] = {BOTH(token_logprob), .workspace_bytes = cuda_token_logprob_workspace},
    [OP_LOGITS] = {.forward = cuda_logits, .workspace_bytes = cuda_logits_workspace},
    [OP_ROW_NORMS] = {.forward = cuda_row_norms, .workspace_bytes = cuda_row_norms_workspace},
    [OP_GRAD_ADD] = {.forward = cuda_grad_add, .workspace_bytes = no_workspace},
    [OP_GRAD_NORM] = {.forward = cuda_grad_norm, .workspace_bytes = cuda_grad_norm_workspace},
    [OP_ADAMW] = {.forward = cuda_adamw, .workspace_bytes = cuda_adamw_workspace},
};

static size_t cuda_overhead(const struct backend *backend) {
    return ((const struct cuda_backend *)backend)->overhead_bytes;
}

static void cuda_close(struct backend *backend) {
    struct cuda_backend *b = cuda_self(backend);
    if (b->gpu.stream) cudaStreamSynchronize(b->gpu.stream);
    cuda_gemm_close(b);
    cuda_weights_close(b);
    cuda_memory_close(b);
    if (b->gpu.stream) cudaStreamDestroy(b->gpu.stream);
    mem_free(b);
}

static const struct backend_class cuda_class = {
    .name = "cuda",
    .kernels = cuda_kernels,
    .reserve = cuda_reserve,
    .write = cuda_write,
    .read = cuda_read,
    .weights_acquire = cuda_weights_acquire,
    .weights_release = cuda_weights_release,
    .overhead_bytes = cuda_overhead,
    .close = cuda_close,
};

enum { OLDEST_MAJOR = 8 }; // sm_80: bf16 in the matrix units

static int find_device(struct cuda_backend *b, struct error *err) {
    int count = 0, major = 0, minor = 0, shared = 0;
    cudaError_t status = cudaGetDeviceCount(&count);
    if (status == cudaErrorNoDevice || status == cudaErrorInsufficientDriver || (status == cudaSuccess && count == 0)) {
        cudaGetLastError();
        return error_set(err, STATUS_NOINPUT, "no GPU: %s", cudaGetErrorString(status));
    }
    if (cuda_check(status, "counting GPUs", err) || CUDA_TRY(cudaSetDevice(0), err) ||
        CUDA_TRY(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0), err) ||
        CUDA_TRY(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0), err) ||
        CUDA_TRY(cudaDeviceGetAttribute(&b->gpu.multiprocessors, cudaDevAttrMultiProcessorCount, 0), err) ||
        CUDA_TRY(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0), err))
        return -1;
    if (major < OLDEST_MAJOR) {
        return error_set(err, STATUS_NOINPUT, "the GPU is of compute capability %d.%d; %d.0 is the oldest that works",
                         major, minor, OLDEST_MAJOR);
    }
    b->gpu.shared_bytes = (size_t)shared;
    snprintf(b->description, sizeof b->description, "GPU, sm_%d%d, %d multiprocessors", major, minor,
             b->gpu.multiprocessors);
    return 0;
}

static struct backend *open_cuda(struct error *err) {
    struct cuda_backend *b = mem_zalloc(1, sizeof *b);
    if (!b) {
        error_memory(err, "the CUDA backend", sizeof *b);
        return NULL;
    }
    b->base = (struct backend){.class = &cuda_class, .threads = 1};
    if (find_device(b, err) || CUDA_TRY(cudaStreamCreateWithFlags(&b->gpu.stream, cudaStreamNonBlocking), err) ||
        cuda_memory_open(b, err) || cuda_gemm_open(b, err)) {
        cuda_close(&b->base);
        return NULL;
    }
    return &b->base;
}

extern const struct cuda_plugin graft_cuda_plugin;
const struct cuda_plugin graft_cuda_plugin = {
    .abi = CUDA_PLUGIN_ABI,
    .call_bytes = sizeof(struct op_call),
    .weight_bytes = sizeof(struct weight),
    .class_bytes = sizeof(struct backend_class),
    .open = open_cuda,
};
