// The seam between everything above and the hardware. One struct of functions per backend: cpu, cuda (a plug-in), meta
// (computes nothing), late (host memory, but calls are queued until a read; for tests).
// Calls are stream-ordered; only `read` waits. Tensors are offsets into one arena. Nothing above kernels/ knows more.
#pragma once

#include "kernels/error.h"
#include "kernels/ops.h"

struct backend;

// Kernels of one op. workspace_bytes is a pure function of the call (shapes and parameters, no data), the same on a
// machine without the device, so that a run can be planned anywhere.
struct kernel {
    int (*forward)(struct backend *backend, const struct op_call *call, struct error *err);
    int (*backward)(struct backend *backend, const struct op_call *call, struct error *err);
    int (*recompute)(struct backend *backend, const struct op_call *call,
                     struct error *err); // cheap ops: out from in + saved; NULL = forward
    size_t (*workspace_bytes)(const struct op_call *call, bool backward, int threads);
    bool (*supports)(const struct op_call *call, char *why, size_t why_size); // NULL = everything op_check accepts
};

struct backend_class {
    const char *name;
    const struct kernel *kernels; // [OP_COUNT]
    // One arena of `bytes`, zeroed. Called once, before any other call that touches tensors.
    int (*reserve)(struct backend *backend, size_t bytes, struct error *err);
    // Host <-> arena. `write` copies before it returns; `read` waits for everything queued before it.
    int (*write)(struct backend *backend, struct tensor dst, const void *src, size_t bytes, struct error *err);
    int (*read)(struct backend *backend, void *dst, struct tensor src, size_t bytes, struct error *err);
    // Weights of a segment will be used / are not used for now. `ahead`: fetch only, do not wait.
    int (*weights_acquire)(struct backend *backend, int segment, bool ahead, struct error *err);
    int (*weights_release)(struct backend *backend, int segment, struct error *err);
    // The bytes [offset, offset + size) hold nothing any more (tests poison them). May be NULL.
    void (*dead)(struct backend *backend, size_t offset, size_t size);
    // Bytes in use of a memory of the device's own. NULL: it has none, and memory_held() (machine.h) tells.
    size_t (*held_bytes)(const struct backend *backend);
    void (*close)(struct backend *backend); // frees the backend itself
};

struct backend {
    const struct backend_class *class;
    int threads;             // worker threads, part of workspace sizes
    const char *description; // for people; NULL = the class's name
    uint64_t memory_limit;   // set before reserve: the most of a memory of the device's own that may be used; 0 = all
    // The model's weights, ordered by segment; borrowed, set once by backend_set_weights before the first op.
    const struct weight *const *weights;
    int n_weights, n_segments;
};

enum device_kind { DEVICE_CPU, DEVICE_CUDA, DEVICE_LATE };

// The real one of a kind; `threads` as below. NULL and err on failure.
struct backend *backend_open(enum device_kind kind, int threads, struct error *err);

// `threads` 0 = the CPUs this process may use (affinity and cgroup quota). bf16: activations are bf16.
// The instruction set is chosen by cpuid; GRAFT_CPU = reference | c | avx2 | avx512 | avx512bf16 forces one (error when
// the CPU lacks it). NULL and err on failure.
struct backend *backend_open_cpu(int threads, struct error *err);
// Computes nothing, and asks for the memory that this kind would: that kind need not be on this machine.
struct backend *backend_open_meta(enum device_kind kind, int threads, struct error *err);
// Queued execution over a cpu backend: poisons dead ranges and released weights, streams every weight.
struct backend *backend_open_late(int threads, struct error *err);
// The first GPU, by the plug-in libgraft_cuda.so. STATUS_NOINPUT: there is no GPU, or no plug-in or library for it.
struct backend *backend_open_cuda(struct error *err);
struct gpu_found {
    char name[160];         // "GPU, sm_90, 132 multiprocessors"
    uint64_t total, unused; // bytes of its memory
};
// Is there a GPU that backend_open_cuda would open? 0 and what it is, or -1 and why not.
int backend_find_gpu(struct gpu_found *out, struct error *err);
// Does this machine have a driver for one? Where it has none, that no GPU is found is no news.
bool backend_expects_gpu(void);

static inline void backend_set_weights(struct backend *b, const struct weight *const *weights, int n, int n_segments) {
    b->weights = weights, b->n_weights = n, b->n_segments = n_segments;
}
void backend_close(struct backend *backend); // NULL is a no-op

// What it runs on, e.g. "avx512, 2 threads"; for logs. Static or backend-owned text.
const char *backend_describe(const struct backend *backend);
// Does this CPU multiply bf16 numbers itself (AVX512-BF16)?
bool backend_cpu_has_bf16(void);
// What of the CPU and its operating system the kernels can use, in words; static text.
const char *backend_cpu_features(void);
