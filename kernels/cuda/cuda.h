// Inside the CUDA plug-in: the backend object, errors, and what its files offer each other. Kernels and their
// launchers: gpu_*.h. Everything is enqueued on one compute stream; copies of weights have a second one.
#pragma once

#include "kernels/backend.h"
#include "kernels/cuda/gpu.h"

#include <cuda_runtime.h>

struct cuda_weights; // cuda_weights.c
struct cuda_gemm;    // cuda_gemm.c
struct cuda_staging; // cuda_memory.c

struct cuda_backend {
    struct backend base;
    struct backend_class class;
    struct kernel kernels[OP_COUNT];
    struct gpu gpu;
    size_t arena_bytes;
    struct cuda_staging *staging;
    struct cuda_weights *weights;
    struct cuda_gemm *gemm;
    struct gpu_found found;
};

static inline struct cuda_backend *cuda_self(struct backend *backend) {
    return (struct cuda_backend *)backend;
}

// --- errors. 71 for memory, 70 for everything else; the text names the call. Returns 0 or -1.
int cuda_check(cudaError_t status, const char *what, struct error *err);
#define CUDA_TRY(call, err) cuda_check((call), #call, err)
// After launches: were they accepted? What happens while they run shows at the next read.
int cuda_launched(struct error *err);

// --- memory (cuda_memory.c)
int cuda_memory_open(struct cuda_backend *b, struct error *err);
void cuda_memory_close(struct cuda_backend *b);
int cuda_reserve(struct backend *backend, size_t bytes, struct error *err);
int cuda_write(struct backend *backend, struct tensor dst, const void *src, size_t bytes, struct error *err);
int cuda_read(struct backend *backend, void *dst, struct tensor src, size_t bytes, struct error *err);
// Host bytes to device memory through the pinned buffers, on the compute stream; src may change when this returns.
int cuda_upload(struct cuda_backend *b, void *dst, const void *src, size_t bytes, struct error *err);

// --- weights (cuda_weights.c)
// Copies all of them, as many as `budget` bytes hold to stay; backend_set_weights was called.
int cuda_weights_open(struct cuda_backend *b, size_t budget, struct error *err);
void cuda_weights_close(struct cuda_backend *b);
int cuda_weights_acquire(struct backend *backend, int segment, bool ahead, struct error *err);
int cuda_weights_release(struct backend *backend, int segment, struct error *err);
// The weight with its bytes and tables on the device; a view of a weight gives a view. `tables` is filled where the
// format has any. Error: not one of the backend's weights, or one of a segment that is not acquired.
int cuda_weight_on_device(struct cuda_backend *b, const struct weight *w, struct weight *out,
                          struct weight_tables *tables, struct error *err);
// A resident weight (norm, bias, sinks) as floats on the device; *out = NULL when w is NULL.
int cuda_vector(struct cuda_backend *b, const struct weight *w, const float **out, struct error *err);

// --- products (cuda_gemm.c)
// Row-major: C (m, n) = alpha op(A) op(B) + beta C; op(A) is (m, k), op(B) (k, n). A and B have one type, f32 or bf16;
// C is f32 or bf16. Sums are fp32, in an order that depends on shapes alone.
struct gemm_operand {
    const void *p;
    int64_t ld;
    bool transposed; // stored as (k, m) / (n, k)
};
struct gemm_product {
    int64_t m, n, k;
    enum dtype type, c_type;
    struct gemm_operand a, b;
    void *c;
    int64_t ldc;
    float alpha, beta;
};
int cuda_gemm_open(struct cuda_backend *b, struct error *err);
void cuda_gemm_close(struct cuda_backend *b);
int cuda_gemm(struct cuda_backend *b, const struct gemm_product *product, struct error *err);

static inline void *cuda_at(const struct cuda_backend *b, const struct tensor *t) {
    return t->dtype == DTYPE_NONE ? NULL : (void *)(b->gpu.arena + t->offset);
}
