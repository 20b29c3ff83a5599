// The meta backend computes nothing: a program runs over it so that the plan can see every buffer it asks for. Its
// workspace sizes are the CPU kernels', pure functions of shapes and thread count.
#include "kernels/alloc.h"
#include "kernels/backend.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/rows.h"
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
static const struct kernel meta_kernels[OP_COUNT] = {
    [OP_EMBED] = META(cpu_embed_workspace),
    [OP_NORM] = META(cpu_norm_workspace),
    [OP_ADD_NORM] = META(cpu_norm_workspace),
    [OP_LINEAR_GROUP] = META(cpu_linear_group_workspace),
    [OP_ROPE] = META(no_workspace),
    [OP_GLU] = META(no_workspace),
    [OP_ATTENTION] = META(cpu_attention_workspace),
    [OP_ACT] = META(no_workspace),
    [OP_ADD] = META(no_workspace),
    [OP_GATE] = META(no_workspace),
    [OP_MLA_KEYS] = META(no_workspace),
    [OP_MOE_ROUTE] = META(cpu_moe_route_workspace),
    [OP_MOE_BALANCE] = META(cpu_moe_balance_workspace),
    [OP_MOE_GATHER] = META(no_workspace),
    [OP_MOE_LINEAR_GROUP] = META(cpu_moe_linear_group_workspace),
    [OP_MOE_COMBINE] = META(no_workspace),
    [OP_TOKEN_LOGPROB] = META(cpu_token_logprob_workspace),
    [OP_COLUMNS] = META(cpu_columns_workspace),
    [OP_DROPOUT] = META(no_workspace),
    [OP_ROW_NORMS] = META(cpu_row_norms_workspace),
    [OP_LOGITS] = META(cpu_logits_workspace),
    [OP_KV_WRITE] = META(no_workspace),
    [OP_FILL] = META(no_workspace),
    [OP_COPY] = META(no_workspace),
    [OP_GRAD_ADD] = META(no_workspace),
    [OP_GRAD_NORM] = META(no_workspace),
    [OP_ADAMW] = META(no_workspace),
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

static size_t meta_overhead(const struct backend *backend) {
    (void)backend;
    return 0;
}

static void meta_close(struct backend *backend) {
    mem_free(backend);
}

static const struct backend_class meta_class = {
    .name = "meta",
    .kernels = meta_kernels,
    .reserve = meta_reserve,
    .write = meta_write,
    .read = meta_read,
    .weights_acquire = meta_acquire,
    .weights_release = meta_release,
    .overhead_bytes = meta_overhead,
    .close = meta_close,
};

struct backend *backend_open_meta(int threads, struct error *err) {
    struct backend *b = mem_zalloc(1, sizeof *b);
    if (!b) {
        error_memory(err, "the planning backend", sizeof *b);
        return NULL;
    }
    b->class = &meta_class;
    b->threads = threads > 0 ? threads : cpu_count_available();
    return b;
}
