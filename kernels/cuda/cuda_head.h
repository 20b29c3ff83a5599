// Where the ends of the model and the optimiser keep what they need in an op's workspace: pure functions of shapes,
// used by the plan and by the ops, so that both agree. Offsets are multiples of 256.
#pragma once

#include "kernels/cuda/gpu_optimizer.h"
#include "kernels/ops.h"

// OP_EMBED: tokens that are worked on at a time, and of OP_TOKEN_LOGPROB and OP_LOGITS: logits are `ld` apart.
enum { EMBED_CHUNK = 1024, LOGITS_ALIGNMENT = 64 };

struct embed_layout {
    size_t rows;   // (chunk, D) f32: forward: of the base; backward: gradients of rows of the table
    size_t u, v;   // (chunk, R), (T, R) f32: s B[id]; s <a, g>
    int64_t chunk; // at most EMBED_CHUNK
    bool plain;    // forward: rows of the base are the result
    size_t total;
};
struct embed_layout embed_layout_of(const struct op_call *call, bool backward);

// A head's table: how its rows become the operand of a product.
struct head_layout {
    int64_t chunk, ldz;                // rows of logits at a time, elements from one to the next
    size_t rows, place, targets, g, s; // (T): of the rows that count; place: (T), which of them a row is, or -1
    size_t count, stats;               // one number; (chunk, 2): largest logit, sum of e^(z - that)
    size_t h, h32;                     // (chunk, D): hidden rows; the same in f32 as the adapter sees them
    size_t logits;                     // (chunk, ldz) f32; not of OP_LOGITS
    size_t dh, part;                   // (chunk, D) f32: the gradient of h; of what dropout hides
    size_t u, v, u16;                  // (chunk, R): s dropout(h) A^T, s dz B; u in bf16
    size_t b16;                        // (V, R): B in bf16
    size_t own, own_dz, own16;         // (chunk, n) f32, the same of dz; (n, D) bf16: the table's own rows
    size_t factor;                     // (V) f32: m / n
    size_t panel;                      // (panel_rows, D): rows of the table, where it cannot be used as it is
    bool own_copy;                     // h32 is there: LoRA sees other numbers than the table
    int64_t panel_rows;                // 0: the table is used as it is
    size_t total;
};
struct head_layout head_layout_of(const struct op_call *call, bool gradient);

// OP_ROW_NORMS: rows of W that are decoded at a time.
int64_t row_norms_panel(const struct op_call *call);

enum { ADAMW_GROUPS_AT = 256 }; // bytes from the step's numbers to the groups
