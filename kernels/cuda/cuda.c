// The CUDA backend: opening the device, the table of kernels, and the one symbol that the program looks for.
#include "kernels/cuda/cuda_ops.h"

#include "kernels/alloc.h"
#include "kernels/cuda/cuda_abi.h"
#include "kernels/cuda/cuda_plan.h"

#include <stdio.h>

// Single-pass ops have no backward: calling it is a bug of ours.
static int no_backward(struct backend *backend, const struct op_call *call, struct error *err) {
    (void)backend;
    return error_set(err, STATUS_INTERNAL, "op %s has no backward", op_table[call->op].name);
}

#define BOTH(name) .forward = cuda_##name##_forward, .backward = cuda_##name##_backward
static const struct kernel cuda_kernels[OP_COUNT] = {
    [OP_NORM] = {BOTH(norm)},
    [OP_ADD_NORM] = {BOTH(norm), .recompute = cuda_norm_recompute},
    [OP_LINEAR_GROUP] = {BOTH(linear_group)},
    [OP_ADD] = {BOTH(add)},
    [OP_GLU] = {BOTH(glu)},
    [OP_ACT] = {BOTH(act)},
    [OP_ROPE] = {BOTH(rope)},
    [OP_COPY] = {cuda_copy, no_backward},
    [OP_FILL] = {cuda_fill, no_backward},
    [OP_KV_WRITE] = {cuda_kv_write, no_backward},
    [OP_MOE_ROUTE] = {BOTH(moe_route)},
    [OP_MOE_BALANCE] = {BOTH(moe_balance)},
    [OP_MOE_GATHER] = {BOTH(moe_gather)},
    [OP_MOE_LINEAR_GROUP] = {BOTH(moe_linear_group)},
    [OP_MOE_COMBINE] = {BOTH(moe_combine)},
    [OP_GATE] = {BOTH(gate)},
    [OP_MLA_KEYS] = {BOTH(mla_keys)},
    [OP_ATTENTION] = {BOTH(attention), .supports = cuda_attention_supports},
    [OP_EMBED] = {BOTH(embed)},
    [OP_COLUMNS] = {BOTH(columns)},
    [OP_DROPOUT] = {BOTH(dropout)},
    [OP_TOKEN_LOGPROB] = {BOTH(token_logprob)},
    [OP_LOGITS] = {.forward = cuda_logits},
    [OP_ROW_NORMS] = {.forward = cuda_row_norms},
    [OP_GRAD_ADD] = {.forward = cuda_grad_add},
    [OP_GRAD_NORM] = {.forward = cuda_grad_norm},
    [OP_ADAMW] = {.forward = cuda_adamw},
};

// What is in use of the GPU: by us, the driver for us, and others.
static size_t cuda_held(const struct backend *backend) {
    size_t unused = 0, total = 0;
    (void)backend;
    return cudaMemGetInfo(&unused, &total) == cudaSuccess ? total - unused : 0;
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
    .reserve = cuda_reserve,
    .write = cuda_write,
    .read = cuda_read,
    .weights_acquire = cuda_weights_acquire,
    .weights_release = cuda_weights_release,
    .held_bytes = cuda_held,
    .close = cuda_close,
};

struct cuda_gpu_found {
    struct gpu_found found;
    int multiprocessors;
    size_t shared_bytes;
};

enum { OLDEST_MAJOR = 8 }; // sm_80: bf16 in the matrix units

static int find_gpu(struct cuda_gpu_found *out, struct error *err) {
    int count = 0, major = 0, minor = 0, shared = 0;
    size_t unused = 0, total = 0;
    cudaError_t status = cudaGetDeviceCount(&count);
    *out = (struct cuda_gpu_found){0};
    if (status == cudaErrorNoDevice || status == cudaErrorInsufficientDriver || (status == cudaSuccess && count == 0)) {
        cudaGetLastError();
        return error_set(err, STATUS_NOINPUT, "no GPU: %s", cudaGetErrorString(status));
    }
    if (cuda_check(status, "counting GPUs", err) || CUDA_TRY(cudaSetDevice(0), err) ||
        CUDA_TRY(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0), err) ||
        CUDA_TRY(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0), err) ||
        CUDA_TRY(cudaDeviceGetAttribute(&out->multiprocessors, cudaDevAttrMultiProcessorCount, 0), err) ||
        CUDA_TRY(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0), err) ||
        CUDA_TRY(cudaMemGetInfo(&unused, &total), err))
        return -1;
    if (major < OLDEST_MAJOR) {
        return error_set(err, STATUS_NOINPUT, "the GPU is of compute capability %d.%d; %d.0 is the oldest that works",
                         major, minor, OLDEST_MAJOR);
    }
    out->shared_bytes = (size_t)shared, out->found.unused = unused, out->found.total = total;
    snprintf(out->found.name, sizeof out->found.name, "GPU, sm_%d%d, %d multiprocessors", major, minor,
             out->multiprocessors);
    return 0;
}

static int find(struct gpu_found *out, struct error *err) {
    struct cuda_gpu_found found;
    if (find_gpu(&found, err)) return -1;
    *out = found.found;
    return 0;
}

static struct backend *open_cuda(struct error *err) {
    struct cuda_backend *b = mem_zalloc(1, sizeof *b);
    if (!b) {
        error_memory(err, "the CUDA backend", sizeof *b);
        return NULL;
    }
    b->class = cuda_class, b->class.kernels = b->kernels;
    for (int op = 0; op < OP_COUNT; op++)
        b->kernels[op] = cuda_kernels[op], b->kernels[op].workspace_bytes = cuda_workspaces[op];
    b->base = (struct backend){.class = &b->class, .threads = 1, .description = b->found.name};
    struct cuda_gpu_found found;
    if (find_gpu(&found, err) || CUDA_TRY(cudaStreamCreateWithFlags(&b->gpu.stream, cudaStreamNonBlocking), err) ||
        cuda_memory_open(b, err) || cuda_gemm_open(b, err)) {
        cuda_close(&b->base);
        return NULL;
    }
    b->found = found.found;
    b->gpu.multiprocessors = found.multiprocessors, b->gpu.shared_bytes = found.shared_bytes;
    return &b->base;
}

extern const struct cuda_plugin graft_cuda_plugin;
const struct cuda_plugin graft_cuda_plugin = {
    .abi = CUDA_PLUGIN_ABI,
    .own_bytes = sizeof(struct cuda_plugin),
    .call_bytes = sizeof(struct op_call),
    .weight_bytes = sizeof(struct weight),
    .class_bytes = sizeof(struct backend_class),
    .find = find,
    .open = open_cuda,
};
