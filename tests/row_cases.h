// Cases of ops over rows for comparing kernels: those without a gradient, and wide or long ones of the others.
#pragma once

#include "tests/op_cases.h"

// --- ops without a gradient

// bit 0 noise, bit 1 bf16 table, bit 2 Q8_0 table and several pieces of a row, bit 3 scaled
static inline void case_embed(struct bench *t, int variant) {
    int64_t rows = variant & CASE_MANY_ROWS ? 900 : 11, vocabulary = 13, cols = variant & 4 ? 608 : 45;
    int32_t ids[900], lengths[900];
    for (int i = 0; i < 900; i++) ids[i] = (i * 7 + 3) % 13, lengths[i] = 1 + i % 5;
    t->call.op = OP_EMBED;
    t->call.in[0] = bench_i32(t, ids, rows, 1);
    t->call.in[1] = bench_keys(t, rows);
    t->call.p.embed.lengths = bench_i32(t, lengths, rows, 1);
    enum quant format = variant & 4 ? QUANT_Q8_0 : variant & 2 ? QUANT_BF16 : QUANT_F32;
    t->call.p.embed.w = bench_weight(t, format, vocabulary, cols, 0);
    t->call.p.embed.scale = variant & 8 ? 24.0f : 1.0f;
    t->call.p.embed.noise_alpha = variant & 1 ? 5.0f : 0.0f;
    struct step_scalars s = case_scalars();
    t->call.scalars = bench_scalars(t, &s);
    t->call.out[0] = bench_act(t, rows, cols);
}

static inline void case_kv_write(struct bench *t, int variant) {
    static const int32_t slots[] = {5, -1, 0, 8, 2};
    (void)variant;
    t->call.op = OP_KV_WRITE;
    t->call.in[0] = bench_act(t, 5, 12);
    t->call.in[1] = bench_act(t, 5, 7);
    t->call.in[2] = bench_i32(t, slots, 5, 1);
    t->call.out[0] = bench_act(t, 9, 12);
    t->call.out[1] = bench_act(t, 9, 7);
}

// The variant is the dtype that is filled.
static inline void case_fill(struct bench *t, int variant) {
    t->call.op = OP_FILL;
    t->call.out[0] = bench_values(t, (enum dtype)variant, 6, 19);
    t->call.p.fill.value = variant == DTYPE_U8 ? 0 : 3;
}

static inline void case_copy(struct bench *t, int variant) {
    int64_t rows = variant & CASE_MANY_ROWS ? 2000 : 7;
    t->call.op = OP_COPY;
    t->call.in[0] = bench_act(t, rows, 50);
    t->call.out[0] = bench_values(t, variant & 1 ? DTYPE_F32 : DTYPE_BF16, rows, 50);
}

enum { FLAT = 150000 }; // several tasks

static inline void case_grad_add(struct bench *t, int variant) {
    t->call.op = OP_GRAD_ADD;
    t->call.in[0] = bench_values(t, DTYPE_F32, 1, variant ? FLAT : 33);
    t->call.out[0] = bench_values(t, DTYPE_F32, 1, variant ? FLAT : 33);
}

// --- the optimiser

// variant: bit 0 large, bit 1 clipped, bit 2 one infinity, bit 3 no trained tokens
static inline void case_grad_norm(struct bench *t, int variant) {
    t->pad = 0;
    t->call.op = OP_GRAD_NORM;
    t->call.in[0] = bench_values(t, DTYPE_F32, 1, variant & 1 ? FLAT + 5 : 77);
    if (variant & 4) bench_set(t->image, &t->call.in[0], 0, 70, INFINITY);
    struct step_scalars s = case_scalars();
    s.max_grad_norm = variant & 2 ? 0.5 : 0;
    if (variant & 8) s.denominator = 0;
    t->call.scalars = bench_scalars(t, &s);
}

static const struct param_group small_groups[] = {{0, 40, 1.0f, 0.01f}, {40, 61, 16.0f, 0.0f}, {61, 77, 1.0f, 0.1f}};
static const struct param_group large_groups[] = {{0, 70001, 1.0f, 0.01f}, {70001, FLAT, 2.0f, 0.0f}};

// bit 0 large, bit 1 not finite
static inline void case_adamw(struct bench *t, int variant) {
    int64_t n = variant & 1 ? FLAT : 77;
    t->pad = 0;
    t->call.op = OP_ADAMW;
    t->call.in[0] = bench_values(t, DTYPE_F32, 1, n);
    for (int i = 0; i < 3; i++) t->call.out[i] = bench_values(t, DTYPE_F32, 1, n);
    for (int64_t k = 0; k < n; k++) { // second moments are not negative
        bench_set(t->image, &t->call.out[2], 0, k, fabs(bench_get(t->image, &t->call.out[2], 0, k)));
    }
    struct step_scalars s = case_scalars();
    s.clip_scale = 0.25;
    s.nonfinite = variant & 2 ? 1 : 0;
    t->call.scalars = bench_scalars(t, &s);
    t->call.p.adamw.beta1 = 0.9;
    t->call.p.adamw.beta2 = 0.999;
    t->call.p.adamw.eps = 1e-8;
    t->call.p.adamw.n_groups = variant & 1 ? (int)COUNT_OF(large_groups) : (int)COUNT_OF(small_groups);
    t->call.p.adamw.groups = variant & 1 ? large_groups : small_groups;
}

static const struct op_case row_cases[] = {
    {"embed", OP_EMBED, case_embed, 0},
    {"embed noise", OP_EMBED, case_embed, 1},
    {"embed bf16 noise scaled", OP_EMBED, case_embed, 1 + 2 + 8},
    {"embed q8_0 noise many", OP_EMBED, case_embed, 1 + 4 + CASE_MANY_ROWS},
    {"kv_write", OP_KV_WRITE, case_kv_write, 0},
    {"fill f32", OP_FILL, case_fill, DTYPE_F32},
    {"fill bf16", OP_FILL, case_fill, DTYPE_BF16},
    {"fill i32", OP_FILL, case_fill, DTYPE_I32},
    {"fill f64", OP_FILL, case_fill, DTYPE_F64},
    {"fill u8", OP_FILL, case_fill, DTYPE_U8},
    {"copy to f32", OP_COPY, case_copy, 1},
    {"copy to bf16", OP_COPY, case_copy, 0},
    {"copy many", OP_COPY, case_copy, 1 + CASE_MANY_ROWS},
    {"grad_add", OP_GRAD_ADD, case_grad_add, 0},
    {"grad_add many", OP_GRAD_ADD, case_grad_add, 1},
    {"norm rms many", OP_NORM, case_norm, 4 + CASE_MANY_ROWS},
    {"norm layer many", OP_NORM, case_norm, 1 + 4 + CASE_MANY_ROWS},
    {"add_norm many", OP_ADD_NORM, case_add_norm, 2 + 4 + CASE_MANY_ROWS},
    {"add many", OP_ADD, case_add, 2 + CASE_MANY_ROWS},
    {"glu silu many", OP_GLU, case_glu, CASE_MANY_ROWS},
    {"glu gelu many", OP_GLU, case_glu, 4 + 16 + CASE_MANY_ROWS},
    {"glu clamped interleaved many", OP_GLU, case_glu, 12 + 32 + CASE_MANY_ROWS},
    {"act many", OP_ACT, case_act, 4 + CASE_MANY_ROWS},
    {"gate many", OP_GATE, case_gate, 2 + CASE_MANY_ROWS},
    {"mla_keys many", OP_MLA_KEYS, case_mla_keys, 2 + CASE_MANY_ROWS},
    {"mla_keys alone many", OP_MLA_KEYS, case_mla_keys, 16 + CASE_MANY_ROWS},
    {"moe_route many", OP_MOE_ROUTE, case_moe_route, 64 + CASE_MANY_ROWS},
    {"moe_route sigmoid many", OP_MOE_ROUTE, case_moe_route, 8 + 16 + 32 + 64 + 128 + CASE_MANY_ROWS},
    {"moe_gather many", OP_MOE_GATHER, case_moe_gather, 2 + CASE_MANY_ROWS},
    {"moe_combine many", OP_MOE_COMBINE, case_moe_combine, 2 + CASE_MANY_ROWS},
    {"norm heads many", OP_NORM, case_norm_groups, 4 + 16 + CASE_MANY_ROWS},
    {"rope pairs many", OP_ROPE, case_rope, 4 + 8 + CASE_MANY_ROWS},
    {"rope halves many", OP_ROPE, case_rope, 1 + 4 + 8 + CASE_MANY_ROWS},
};
