// See cuda_plan.h.
#include "kernels/cuda/cuda_plan.h"

static size_t none(const struct op_call *call, bool backward, int threads) {
    (void)call, (void)backward, (void)threads;
    return 0;
}

const workspace_function cuda_workspaces[OP_COUNT] = {
    [OP_NORM] = none,
    [OP_ADD_NORM] = none,
    [OP_LINEAR_GROUP] = cuda_linear_group_workspace,
    [OP_ADD] = none,
    [OP_GLU] = none,
    [OP_ACT] = none,
    [OP_ROPE] = none,
    [OP_MOE_ROUTE] = cuda_moe_route_workspace,
    [OP_MOE_BALANCE] = cuda_moe_balance_workspace,
    [OP_MOE_GATHER] = none,
    [OP_MOE_LINEAR_GROUP] = cuda_moe_linear_group_workspace,
    [OP_MOE_COMBINE] = none,
    [OP_GATE] = none,
    [OP_MLA_KEYS] = none,
    [OP_ATTENTION] = cuda_attention_workspace,
    [OP_EMBED] = cuda_embed_workspace,
    [OP_COLUMNS] = cuda_columns_workspace,
    [OP_DROPOUT] = none,
    [OP_TOKEN_LOGPROB] = cuda_token_logprob_workspace,
    [OP_LOGITS] = cuda_logits_workspace,
    [OP_ROW_NORMS] = cuda_row_norms_workspace,
    [OP_GRAD_ADD] = none,
    [OP_GRAD_NORM] = cuda_grad_norm_workspace,
    [OP_ADAMW] = cuda_adamw_workspace,
    [OP_COPY] = none,
    [OP_FILL] = none,
    [OP_KV_WRITE] = none,
};
