// The meta backend computes nothing: a program runs over it so that the plan can see every buffer it asks for. Its
// workspace sizes are those of the CPU's or the GPU's kernels, pure functions of shapes and thread count.
#include "kernels/alloc.h"
#include "kernels/backend.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/rows.h"
#include "kernels/cuda/cuda_plan.h"
#include "kernels/machine.h"

#include <string.h>

static int nothing(struct backend *backend, const struct op_call *call, struct error *err) {
    (void)backend, (void)call, (void)err;
    return 0;
}

static size_t no_workspace(const struct op_call *call, bool backward, int threads) {
    (void)call, (void)backward, (void)threads;
    return 0;
}

#define META(workspace)                                                                                                \
    { nothing, nothing, nothing, workspace, NULL }
static const workspace_function cpu_workspaces[OP_COUNT] = {
    [OP_EMBED] = cpu_embed_workspace,
    [OP_NORM] = cpu_norm_workspace,
    [OP_ADD_NORM] = cpu_norm_workspace,
    [OP_LINEAR_GROUP] = cpu_linear_group_workspace,
    [OP_ROPE] = no_workspace,
    [OP_GLU] = no_workspace,
    [OP_ATTENTION] = cpu_attention_workspace,
    [OP_ACT] = no_workspace,
    [OP_ADD] = no_workspace,
    [OP_GATE] = no_workspace,
    [OP_MLA_KEYS] = no_workspace,
    [OP_MOE_ROUTE] = cpu_moe_route_workspace,
    [OP_MOE_BALANCE] = cpu_moe_balance_workspace,
    [OP_MOE_GATHER] = no_workspace,
    [OP_MOE_LINEAR_GROUP] = cpu_moe_linear_group_workspace,
    [OP_MOE_COMBINE] = no_workspace,
    [OP_TOKEN_LOGPROB] = cpu_token_logprob_workspace,
    [OP_COLUMNS] = cpu_columns_workspace,
    [OP_DROPOUT] = no_workspace,
    [OP_ROW_NORMS] = cpu_row_norms_workspace,
    [OP_LOGITS] = cpu_logits_workspace,
    [OP_KV_WRITE] = no_workspace,
    [OP_FILL] = no_workspace,
    [OP_COPY] = no_workspace,
    [OP_GRAD_ADD] = no_workspace,
    [OP_GRAD_NORM] = no_workspace,
    [OP_ADAMW] = no_workspace,
};

static int meta_reserve(struct backend *backend, size_t bytes, struct error *err) {
    (void)backend, (void)bytes, (void)err;
    return 0;
}

static int meta_write(struct backend *backend, struct tensor dst, const void *src, size_t bytes, struct error *err) {
    (void)backend, (void)dst, (void)src, (void)bytes, (void)err;
    return 0;
}

static int meta_read(struct backend *backend, void *dst, struct tensor src, size_t bytes, struct error *err) {
    (void)backend, (void)src, (void)err;
    if (bytes) memset(dst, 0, bytes); // there is nothing to read, but the caller's bytes are defined
    return 0;
}

static int meta_acquire(struct backend *backend, int segment, bool ahead, struct error *err) {
    (void)backend, (void)segment, (void)ahead, (void)err;
    return 0;
}

static int meta_release(struct backend *backend, int segment, struct error *err) {
    (void)backend, (void)segment, (void)err;
    return 0;
}

static void meta_close(struct backend *backend) {
    mem_free(backend);
}

struct meta_backend {
    struct backend base;
    struct backend_class class;
    struct kernel kernels[OP_COUNT];
};

static const struct backend_class meta_class = {
    .name = "meta",
    .reserve = meta_reserve,
    .write = meta_write,
    .read = meta_read,
    .weights_acquire = meta_acquire,
    .weights_release = meta_release,
    .close = meta_close,
};

struct backend *backend_open_meta(enum device_kind kind, int threads, struct error *err) {
    struct meta_backend *b = mem_zalloc(1, sizeof *b);
    if (!b) {
        error_memory(err, "the planning backend", sizeof *b);
        return NULL;
    }
    b->class = meta_class;
    b->class.kernels = b->kernels;
    for (int op = 0; op < OP_COUNT; op++) {
        b->kernels[op] = (struct kernel)META(kind == DEVICE_CUDA ? cuda_workspaces[op] : cpu_workspaces[op]);
        if (!b->kernels[op].workspace_bytes) b->kernels[op] = (struct kernel){0}; // no such kernel
    }
    b->base = (struct backend){.class = &b->class, .threads = threads > 0 ? threads : cpu_count_available()};
    return &b->base;
}
