// Mixture of experts on the CPU. Every token makes a pair with each expert it chose; pairs stand sorted by expert, and
// among those of one expert by token, so that an expert's linear is a plain one over its rows.
#pragma once

#include "kernels/cpu/rows.h"

// Runs `linear` (a kernel of OP_LINEAR_GROUP) over the rows of each expert of an OP_MOE_LINEAR_GROUP call.
int moe_each_expert(struct cpu_backend *b, const struct op_call *call,
                    int (*linear)(struct cpu_backend *b, const struct op_call *call, struct error *err),
                    struct error *err);

// What moe_fast.c works on: rows of tokens x (T), rows of pairs s (S), the weight of each pair, all by the map.
struct moe_args {
    enum dtype dtype; // of x and s
    int64_t cols, used;
    const int32_t *map; // row of pair p in s: map[p * map_ld + 1]
    int64_t map_ld;
    struct matrix x, s;
    struct matrix weights; // f32 (T, k); absent: all 1
    struct matrix dot;     // f32 (T, k)
    bool acc;
};

struct moe_isa {
    row_kernel spread;  // pairs [begin, end): s = [s +] weight x
    row_kernel collect; // tokens [begin, end): x = [x +] sum over the token's pairs, in order, of weight s
    row_kernel dot;     // pairs [begin, end): dot = [dot +] x s
};
