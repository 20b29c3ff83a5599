// The arena and the way into it and out of it: two pinned buffers, so that the host never waits for a copy it has just
// enqueued, and pageable memory is read before a call returns. What kernels found wrong comes back with every read.
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/cuda_plan.h"

#include "kernels/alloc.h"

#include <string.h>

enum { BUFFERS = 2 };
#define BUFFER_BYTES ((size_t)4 << 20)
#define HEADROOM     ((size_t)256 << 20) // what the driver takes for kernels when they first run

struct cuda_staging {
    uint8_t *buffer[BUFFERS];
    cudaEvent_t done[BUFFERS]; // the last copy out of it
    int next;
    unsigned long long *faults; // [FAULTS], pinned: a copy of the device's
};

int cuda_check(cudaError_t status, const char *what, struct error *err) {
    if (status == cudaSuccess) return 0;
    cudaGetLastError(); // it is told here; a sticky one stays
    if (status == cudaErrorMemoryAllocation)
        return error_set(err, STATUS_MEMORY, "out of GPU memory: %s; see `graft plan`", what);
    return error_set(err, STATUS_INTERNAL, "%s: %s (%s)", cudaGetErrorName(status), cudaGetErrorString(status), what);
}

int cuda_launched(struct error *err) {
    return cuda_check(cudaGetLastError(), "a kernel's launch", err);
}

int cuda_memory_open(struct cuda_backend *b, struct error *err) {
    struct cuda_staging *s = b->staging = mem_zalloc(1, sizeof *s);
    if (!s) return error_memory(err, "the way to the GPU", sizeof *s);
    for (int i = 0; i < BUFFERS; i++) {
        if (CUDA_TRY(cudaHostAlloc((void **)&s->buffer[i], BUFFER_BYTES, cudaHostAllocDefault), err) ||
            CUDA_TRY(cudaEventCreateWithFlags(&s->done[i], cudaEventDisableTiming), err))
            return -1;
    }
    size_t bytes = FAULTS * sizeof *s->faults;
    if (CUDA_TRY(cudaHostAlloc((void **)&s->faults, bytes, cudaHostAllocDefault), err) ||
        cuda_check(cudaMalloc((void **)&b->gpu.faults, bytes), "the faults of kernels", err))
        return -1;
    return CUDA_TRY(cudaMemsetAsync(b->gpu.faults, 0, bytes, b->gpu.stream), err);
}

void cuda_memory_close(struct cuda_backend *b) {
    for (int i = 0; b->staging && i < BUFFERS; i++) {
        if (b->staging->done[i]) cudaEventDestroy(b->staging->done[i]);
        cudaFreeHost(b->staging->buffer[i]);
    }
    if (b->staging) cudaFreeHost(b->staging->faults);
    mem_free(b->staging);
    cudaFree(b->gpu.arena);
    cudaFree(b->gpu.faults);
    b->staging = NULL, b->gpu.arena = NULL, b->gpu.faults = NULL;
}

int cuda_reserve(struct backend *backend, size_t bytes, struct error *err) {
    struct cuda_backend *b = cuda_self(backend);
    size_t unused = 0, total = 0;
    if (bytes) {
        if (cuda_check(cudaMalloc((void **)&b->gpu.arena, bytes), "the arena of all buffers", err)) return -1;
        b->arena_bytes = bytes;
        if (CUDA_TRY(cudaMemsetAsync(b->gpu.arena, 0, bytes, b->gpu.stream), err)) return -1;
    }
    if (CUDA_TRY(cudaMemGetInfo(&unused, &total), err)) return -1;
    uint64_t limit = backend->memory_limit, used = bytes + CUDA_CONTEXT_BYTES + CUDA_GEMM_WORKSPACE;
    size_t budget = unused > HEADROOM ? unused - HEADROOM : 0;
    if (limit && limit < used + budget) budget = limit > used ? (size_t)(limit - used) : 0;
    return cuda_weights_open(b, budget, err);
}

int cuda_upload(struct cuda_backend *b, void *dst, const void *src, size_t bytes, struct error *err) {
    struct cuda_staging *s = b->staging;
    for (size_t at = 0; at < bytes;) {
        size_t n = bytes - at < BUFFER_BYTES ? bytes - at : BUFFER_BYTES;
        int i = s->next;
        if (CUDA_TRY(cudaEventSynchronize(s->done[i]), err)) return -1;
        memcpy(s->buffer[i], (const uint8_t *)src + at, n);
        if (cuda_check(cudaMemcpyAsync((uint8_t *)dst + at, s->buffer[i], n, cudaMemcpyHostToDevice, b->gpu.stream),
                       "a copy to the GPU", err) ||
            CUDA_TRY(cudaEventRecord(s->done[i], b->gpu.stream), err))
            return -1;
        s->next = (i + 1) % BUFFERS;
        at += n;
    }
    return 0;
}

static bool in_arena(const struct cuda_backend *b, const struct tensor *t, size_t bytes) {
    return t->offset <= b->arena_bytes && bytes <= b->arena_bytes - t->offset;
}

int cuda_write(struct backend *backend, struct tensor dst, const void *src, size_t bytes, struct error *err) {
    struct cuda_backend *b = cuda_self(backend);
    if (!in_arena(b, &dst, bytes))
        return error_set(err, STATUS_INTERNAL, "write of %zu bytes outside the arena", bytes);
    return cuda_upload(b, b->gpu.arena + dst.offset, src, bytes, err);
}

static int find_fault(const unsigned long long faults[FAULTS], struct error *err) {
    static const char *const words[FAULTS] = {
        [FAULT_TOKEN_ID] = "op embed: token id %d of row %lld is outside the vocabulary",
        [FAULT_TARGET] = "op token_logprob: target %d of row %lld is outside the vocabulary",
        [FAULT_TRAINED_ROWS] = "op token_logprob: %d rows have a weight, more than the %lld that were promised",
        [FAULT_POSITION] = "op rope: position %d of row %lld is outside the table",
        [FAULT_SLOT] = "op kv_write: slot %d of row %lld is outside the cache",
    };
    for (int i = 0; i < FAULTS; i++) {
        if (faults[i] == 0) continue;
        return error_set(err, STATUS_INTERNAL, words[i], (int)(uint32_t)faults[i],
                         (long long)(UINT32_MAX - (uint32_t)(faults[i] >> 32)));
    }
    return 0;
}

// Copies into pageable memory are done when the call returns; what ran into an error before shows here.
int cuda_read(struct backend *backend, void *dst, struct tensor src, size_t bytes, struct error *err) {
    struct cuda_backend *b = cuda_self(backend);
    if (!in_arena(b, &src, bytes)) return error_set(err, STATUS_INTERNAL, "read of %zu bytes outside the arena", bytes);
    if (bytes &&
        cuda_check(cudaMemcpyAsync(dst, b->gpu.arena + src.offset, bytes, cudaMemcpyDeviceToHost, b->gpu.stream),
                   "a copy from the GPU", err))
        return -1;
    unsigned long long *faults = b->staging->faults;
    if (cuda_check(
            cudaMemcpyAsync(faults, b->gpu.faults, FAULTS * sizeof *faults, cudaMemcpyDeviceToHost, b->gpu.stream),
            "a copy from the GPU", err) ||
        cuda_check(cudaStreamSynchronize(b->gpu.stream), "waiting for the GPU", err))
        return -1;
    return find_fault(faults, err);
}
