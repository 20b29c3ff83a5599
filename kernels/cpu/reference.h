// The specification: slow, obvious loops for every op, forward and backward, all sums in double, for operands of dtype
// f64, f32 or bf16 alike (statistics too). The gradient checker runs them in f64 against central differences; the fast
// kernels are compared with them. They share no code with the fast kernels.
#pragma once

#include "kernels/cpu/cpu.h"

int reference_forward(struct cpu_backend *backend, const struct op_call *call, struct error *err);
int reference_backward(struct cpu_backend *backend, const struct op_call *call, struct error *err);
int reference_recompute(struct cpu_backend *backend, const struct op_call *call, struct error *err);
