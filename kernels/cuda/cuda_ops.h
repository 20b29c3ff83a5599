// The CUDA backend's kernels, collected into its table by cuda.c.
#pragma once

#include "kernels/cuda/cuda.h"

// --- ops, by the file that holds them
#define CUDA_KERNEL(name)                                                                                              \
    int cuda_##name##_forward(struct backend *backend, const struct op_call *call, struct error *err);                 \
    int cuda_##name##_backward(struct backend *backend, const struct op_call *call, struct error *err)
CUDA_KERNEL(norm); // cuda_rows.c
int cuda_norm_recompute(struct backend *backend, const struct op_call *call, struct error *err);
CUDA_KERNEL(linear_group); // cuda_linear.c
CUDA_KERNEL(add);
CUDA_KERNEL(glu);
CUDA_KERNEL(act);
CUDA_KERNEL(rope);
int cuda_copy(struct backend *backend, const struct op_call *call, struct error *err);
int cuda_fill(struct backend *backend, const struct op_call *call, struct error *err);
int cuda_kv_write(struct backend *backend, const struct op_call *call, struct error *err);
CUDA_KERNEL(moe_route); // cuda_moe.c
CUDA_KERNEL(moe_balance);
CUDA_KERNEL(moe_gather);
CUDA_KERNEL(moe_linear_group);
CUDA_KERNEL(moe_combine);
CUDA_KERNEL(gate);
CUDA_KERNEL(mla_keys);
CUDA_KERNEL(attention); // cuda_attention.c
bool cuda_attention_supports(const struct op_call *call, char *why, size_t why_size);

#define CUDA_DIRECT(name) int cuda_##name(struct backend *backend, const struct op_call *call, struct error *err)
CUDA_KERNEL(embed);         // cuda_embed.c
CUDA_KERNEL(token_logprob); // cuda_head.c
CUDA_DIRECT(logits);
CUDA_KERNEL(columns); // cuda_columns.c
CUDA_KERNEL(dropout);
CUDA_DIRECT(row_norms);
CUDA_DIRECT(grad_add); // cuda_optimizer.c
CUDA_DIRECT(grad_norm);
CUDA_DIRECT(adamw);
