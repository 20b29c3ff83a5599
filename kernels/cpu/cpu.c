// The CPU backend: one arena in host memory, weights read in place from the model's file mapping, kernels chosen once
// by cpuid.
#include "kernels/cpu/cpu.h"
#include "kernels/alloc.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/rows.h"
#include "kernels/machine.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

// --- instruction sets

static const struct cpu_isa isa_c = {"c", &gemm_isa_c, &rows_isa_c, &attention_isa_c, &moe_isa_c};
static const struct cpu_isa isa_avx2 = {"avx2", &gemm_isa_avx2, &rows_isa_avx2, &attention_isa_avx2, &moe_isa_avx2};
static const struct cpu_isa isa_avx512 = {"avx512", &gemm_isa_avx512, &rows_isa_avx512, &attention_isa_avx512,
                                          &moe_isa_avx512};
static const struct cpu_isa isa_avx512bf16 = {"avx512bf16", &gemm_isa_avx512bf16, &rows_isa_avx512,
                                              &attention_isa_avx512, &moe_isa_avx512};

struct cpu_features {
    bool avx2;       // with FMA and F16C, as the files are compiled
    bool avx512;     // F, BW, VL, DQ
    bool avx512bf16; // vdpbf16ps
};

#if defined(__x86_64__)
static struct cpu_features detect(void) {
    struct cpu_features f = {0};
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return f;
    bool osxsave = c >> 27 & 1, fma = c >> 12 & 1, avx = c >> 28 & 1, f16c = c >> 29 & 1;
    if (!osxsave || !avx) return f;
    unsigned state, high; // which registers the operating system saves
    __asm__("xgetbv" : "=a"(state), "=d"(high) : "c"(0));
    bool ymm = (state & 0x06) == 0x06, zmm = (state & 0xE6) == 0xE6;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return f;
    f.avx2 = ymm && fma && f16c && (b >> 5 & 1);
    f.avx512 = f.avx2 && zmm && (b >> 16 & 1) && (b >> 17 & 1) && (b >> 30 & 1) && (b >> 31 & 1);
    if (f.avx512 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) f.avx512bf16 = a >> 5 & 1;
    return f;
}
#else
static struct cpu_features detect(void) {
    return (struct cpu_features){0};
}
#endif

// Sets the backend's kernels: the best the CPU has, or what GRAFT_CPU asks for.
static int choose_isa(struct cpu_backend *b, struct error *err) {
    struct cpu_features f = detect();
    const struct {
        const char *name;
        const struct cpu_isa *isa;
        bool present;
        const char *needs;
    } known[] = {
        {"reference", NULL, true, ""},
        {"c", &isa_c, true, ""},
        {"avx2", &isa_avx2, f.avx2, "AVX2, FMA and F16C"},
        {"avx512", &isa_avx512, f.avx512, "AVX-512 F, BW, VL and DQ"},
        {"avx512bf16", &isa_avx512bf16, f.avx512bf16, "AVX512-BF16"},
    };
    const char *wanted = getenv("GRAFT_CPU");
    if (!wanted || !*wanted) {
        for (size_t i = 1; i < COUNT_OF(known); i++) {
            if (known[i].present) b->isa = known[i].isa;
        }
    } else {
        size_t i = 0;
        while (i < COUNT_OF(known) && strcmp(known[i].name, wanted) != 0) i++;
        if (i == COUNT_OF(known)) {
            return error_set(err, STATUS_CONFIG,
                             "GRAFT_CPU=%s: unknown; use reference, c, avx2, avx512 or avx512bf16, or unset it",
                             wanted);
        }
        if (!known[i].present) {
            return error_set(err, STATUS_CONFIG, "GRAFT_CPU=%s: this CPU or its operating system lacks %s; unset it",
                             wanted, known[i].needs);
        }
        b->isa = known[i].isa;
    }
    b->bf16_dot = b->isa == &isa_avx512bf16;
    return 0;
}

bool backend_cpu_has_bf16(void) {
    return detect().avx512bf16;
}

const char *backend_cpu_features(void) {
    struct cpu_features f = detect();
    if (f.avx512bf16) return "AVX2, FMA, F16C, AVX-512 F, BW, VL and DQ, AVX512-BF16";
    if (f.avx512) return "AVX2, FMA, F16C, AVX-512 F, BW, VL and DQ";
    return f.avx2 ? "AVX2, FMA, F16C" : "none of AVX2, AVX-512, AVX512-BF16";
}

// --- the backend

static struct cpu_backend *self(struct backend *backend) {
    return (struct cpu_backend *)backend;
}

static int cpu_reserve(struct backend *backend, size_t bytes, struct error *err) {
    struct cpu_backend *b = self(backend);
    assert(!b->arena);
    if (bytes == 0) return 0;
    b->arena = mem_map(bytes);
    if (!b->arena) return error_memory(err, "the arena of all buffers; see `graft plan`", bytes);
    b->arena_bytes = bytes;
    return 0;
}

static bool in_arena(const struct cpu_backend *b, const struct tensor *t, size_t bytes) {
    return t->offset <= b->arena_bytes && bytes <= b->arena_bytes - t->offset;
}

static int cpu_write(struct backend *backend, struct tensor dst, const void *src, size_t bytes, struct error *err) {
    struct cpu_backend *b = self(backend);
    if (!in_arena(b, &dst, bytes))
        return error_set(err, STATUS_INTERNAL, "write of %zu bytes outside the arena", bytes);
    if (bytes) memcpy(b->arena + dst.offset, src, bytes);
    return 0;
}

static int cpu_read(struct backend *backend, void *dst, struct tensor src, size_t bytes, struct error *err) {
    struct cpu_backend *b = self(backend);
    if (!in_arena(b, &src, bytes)) return error_set(err, STATUS_INTERNAL, "read of %zu bytes outside the arena", bytes);
    if (bytes) memcpy(dst, b->arena + src.offset, bytes);
    return 0;
}

// Weights are pages of a read-only file mapping: fetching ahead is a hint, and letting go is nothing, since the pages
// are clean and the next walk over the segments wants them again.
static int cpu_weights_acquire(struct backend *backend, int segment, bool ahead, struct error *err) {
    (void)err;
    if (!ahead) return 0;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    for (int i = 0; i < backend->n_weights; i++) {
        const struct weight *w = backend->weights[i];
        if (w->segment != segment) continue;
        uintptr_t begin = (uintptr_t)w->data / page * page;
        madvise((void *)begin, (uintptr_t)w->data + weight_bytes(w) - begin, MADV_WILLNEED); // may fail on heap memory
    }
    return 0;
}

static int cpu_weights_release(struct backend *backend, int segment, struct error *err) {
    (void)backend, (void)segment, (void)err;
    return 0;
}

static void cpu_close(struct backend *backend) {
    struct cpu_backend *b = self(backend);
    threads_close(b->threads);
    mem_unmap(b->arena, b->arena_bytes);
    mem_free(b);
}

// Frozen tables and ids have no gradient, and single-pass ops have no backward: calling it is a bug of ours.
static int no_backward(struct backend *backend, const struct op_call *call, struct error *err) {
    (void)backend;
    return error_set(err, STATUS_INTERNAL, "op %s has no backward", op_table[call->op].name);
}

static size_t no_workspace(const struct op_call *call, bool backward, int threads) {
    (void)call, (void)backward, (void)threads;
    return 0;
}

#define BOTH(name) .forward = cpu_##name##_forward, .backward = cpu_##name##_backward
static const struct kernel cpu_kernels[OP_COUNT] = {
    [OP_EMBED] = {BOTH(embed), .workspace_bytes = cpu_embed_workspace},
    [OP_NORM] = {BOTH(norm), .workspace_bytes = cpu_norm_workspace},
    [OP_ADD_NORM] = {BOTH(add_norm), .recompute = cpu_add_norm_recompute, .workspace_bytes = cpu_norm_workspace},
    [OP_LINEAR_GROUP] = {BOTH(linear_group), .workspace_bytes = cpu_linear_group_workspace},
    [OP_ROPE] = {BOTH(rope), .workspace_bytes = no_workspace},
    [OP_GLU] = {BOTH(glu), .workspace_bytes = no_workspace},
    [OP_ATTENTION] = {BOTH(attention), .workspace_bytes = cpu_attention_workspace},
    [OP_ACT] = {BOTH(act), .workspace_bytes = no_workspace},
    [OP_ADD] = {BOTH(add), .workspace_bytes = no_workspace},
    [OP_GATE] = {BOTH(gate), .workspace_bytes = no_workspace},
    [OP_MLA_KEYS] = {BOTH(mla_keys), .workspace_bytes = no_workspace},
    [OP_MOE_ROUTE] = {BOTH(moe_route), .workspace_bytes = cpu_moe_route_workspace},
    [OP_MOE_BALANCE] = {BOTH(moe_balance), .workspace_bytes = cpu_moe_balance_workspace},
    [OP_MOE_GATHER] = {BOTH(moe_gather), .workspace_bytes = no_workspace},
    [OP_MOE_LINEAR_GROUP] = {BOTH(moe_linear_group), .workspace_bytes = cpu_moe_linear_group_workspace},
    [OP_MOE_COMBINE] = {BOTH(moe_combine), .workspace_bytes = no_workspace},
    [OP_TOKEN_LOGPROB] = {BOTH(token_logprob), .workspace_bytes = cpu_token_logprob_workspace},
    [OP_COLUMNS] = {BOTH(columns), .workspace_bytes = cpu_columns_workspace},
    [OP_DROPOUT] = {BOTH(dropout), .workspace_bytes = no_workspace},
    [OP_ROW_NORMS] = {cpu_row_norms, no_backward, .workspace_bytes = cpu_row_norms_workspace},
    [OP_LOGITS] = {cpu_logits, no_backward, .workspace_bytes = cpu_logits_workspace},
    [OP_KV_WRITE] = {cpu_kv_write, no_backward, .workspace_bytes = no_workspace},
    [OP_FILL] = {cpu_fill, no_backward, .workspace_bytes = no_workspace},
    [OP_COPY] = {cpu_copy, no_backward, .workspace_bytes = no_workspace},
    [OP_GRAD_ADD] = {cpu_grad_add, no_backward, .workspace_bytes = no_workspace},
    [OP_GRAD_NORM] = {cpu_grad_norm, no_backward, .workspace_bytes = no_workspace},
    [OP_ADAMW] = {cpu_adamw, no_backward, .workspace_bytes = no_workspace},
};

static const struct backend_class cpu_class = {
    .name = "cpu",
    .kernels = cpu_kernels,
    .reserve = cpu_reserve,
    .write = cpu_write,
    .read = cpu_read,
    .weights_acquire = cpu_weights_acquire,
    .weights_release = cpu_weights_release,
    .close = cpu_close,
};

struct backend *backend_open_cpu(int threads, struct error *err) {
    struct cpu_backend *b = mem_zalloc(1, sizeof *b);
    if (!b) {
        error_memory(err, "the CPU backend", sizeof *b);
        return NULL;
    }
    b->base.class = &cpu_class;
    b->base.threads = threads > 0 ? threads : cpu_count_available();
    if (choose_isa(b, err) == 0) b->threads = threads_open(b->base.threads, err);
    if (!b->threads) {
        mem_free(b);
        return NULL;
    }
    snprintf(b->description, sizeof b->description, "%s, %d thread%s", b->isa ? b->isa->name : "reference loops",
             b->base.threads, b->base.threads == 1 ? "" : "s");
    b->base.description = b->description;
    return &b->base;
}

struct backend *backend_open(enum device_kind kind, int threads, struct error *err) {
    switch (kind) {
    case DEVICE_CPU: return backend_open_cpu(threads, err);
    case DEVICE_CUDA: return backend_open_cuda(err);
    case DEVICE_LATE: return backend_open_late(threads, err);
    }
    error_set(err, STATUS_INTERNAL, "no device of kind %d", (int)kind);
    return NULL;
}

void backend_close(struct backend *backend) {
    if (backend) backend->class->close(backend);
}

const char *backend_describe(const struct backend *backend) {
    return backend->description ? backend->description : backend->class->name;
}
