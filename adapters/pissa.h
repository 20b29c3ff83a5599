// The start of PiSSA (arXiv 2404.02948; PEFT's pissa_init): A and B are the r largest singular triplets of W, and what
// they hold is taken off the base, as b0 a0 beside it: no weight is changed or copied.
//     W = U S V^T;  B = U_r sqrt(S_r / scale),  A = sqrt(S_r / scale) V_r^T,  b0 = B, a0 = A at the start.
#pragma once

#include "adapters/lora.h"

enum { PISSA_CONVERGED = -1 };

// Called while the adapter is built: 78 where a weight is not f32, f16 or bf16, which PEFT refuses, too.
int pissa_check(const struct module *module, struct error *err);
// Puts the products with W into the plan.
int pissa_record(struct lora *lora, int iterations, struct error *err);
// Fills A, B, a0 and b0 of all modules in host memory; lora_upload is the caller's. `iterations`: PISSA_CONVERGED,
// until the singular values and vectors are right to fp32's accuracy (79 where they do not become so), or as many power
// iterations of a random block of r vectors as svd_lowrank's niter. The same bits on any number of threads. `between`:
// called after each module; may be NULL.
int pissa_start(struct lora *lora, int iterations, uint64_t seed,
                int (*between)(void *context, int64_t done, int64_t total, struct error *err), void *context,
                struct error *err);
