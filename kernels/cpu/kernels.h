// The CPU kernels, one pair per op, collected into the backend's table by cpu.c. Each looks at the backend's `isa`:
// NULL means the reference loops (reference.h), otherwise the fast kernels of that instruction set.
#pragma once

#include "kernels/cpu/cpu.h"

#define CPU_KERNEL(name)                                                                                               \
    int cpu_##name##_forward(struct backend *backend, const struct op_call *call, struct error *err);                  \
    int cpu_##name##_backward(struct backend *backend, const struct op_call *call, struct error *err)

// embed.c
CPU_KERNEL(embed);
size_t cpu_embed_workspace(const struct op_call *call, bool backward, int threads);

// rows.c: one pass over token rows
CPU_KERNEL(norm);
CPU_KERNEL(add_norm);
int cpu_add_norm_recompute(struct backend *backend, const struct op_call *call, struct error *err); // y again from s
CPU_KERNEL(rope);
CPU_KERNEL(glu);
CPU_KERNEL(act);
CPU_KERNEL(gate);
CPU_KERNEL(mla_keys);
CPU_KERNEL(add);
int cpu_kv_write(struct backend *backend, const struct op_call *call, struct error *err);
int cpu_fill(struct backend *backend, const struct op_call *call, struct error *err);
int cpu_copy(struct backend *backend, const struct op_call *call, struct error *err);

// attention.c
CPU_KERNEL(attention);
size_t cpu_attention_workspace(const struct op_call *call, bool backward, int threads);

// linear.c (packed GEMM, adapters)
CPU_KERNEL(linear_group);
size_t cpu_linear_group_workspace(const struct op_call *call, bool backward, int threads);

// columns.c
CPU_KERNEL(columns);
size_t cpu_columns_workspace(const struct op_call *call, bool backward, int threads);
int cpu_row_norms(struct backend *backend, const struct op_call *call, struct error *err);
size_t cpu_row_norms_workspace(const struct op_call *call, bool backward, int threads);

// dropout.c
CPU_KERNEL(dropout);

// moe.c
CPU_KERNEL(moe_route);
size_t cpu_moe_route_workspace(const struct op_call *call, bool backward, int threads);
CPU_KERNEL(moe_balance); // balance.c
size_t cpu_moe_balance_workspace(const struct op_call *call, bool backward, int threads);
CPU_KERNEL(moe_gather);
CPU_KERNEL(moe_linear_group);
size_t cpu_moe_linear_group_workspace(const struct op_call *call, bool backward, int threads);
CPU_KERNEL(moe_combine);

// logprob.c (head)
CPU_KERNEL(token_logprob);
size_t cpu_token_logprob_workspace(const struct op_call *call, bool backward, int threads);
int cpu_logits(struct backend *backend, const struct op_call *call, struct error *err);
size_t cpu_logits_workspace(const struct op_call *call, bool backward, int threads);

// optimizer.c
int cpu_grad_add(struct backend *backend, const struct op_call *call, struct error *err);
int cpu_grad_norm(struct backend *backend, const struct op_call *call, struct error *err);
int cpu_adamw(struct backend *backend, const struct op_call *call, struct error *err);
