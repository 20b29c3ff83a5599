// Cases of ops with many parameter variants, for the gradient check and for comparing kernels. Small and odd in shape.
#pragma once

#include "tests/op_bench.h"

struct op_case {
    const char *name;
    enum op op;
    void (*build)(struct bench *t, int variant);
    int variant;
};

static inline struct step_scalars case_scalars(void) {
    return (struct step_scalars){
        .lr = 1e-3, .step = 3, .denominator = 7, .seed = 0x123456789ABCDEF0u, .random_step = 5};
}

// bit 8 of a variant, in all ops over rows: so many rows that several threads share them
enum { CASE_MANY_ROWS = 256 };
// of norms and the head: a trained bias
enum { CASE_OWN_BIAS = 1 << 14, CASE_MAGNITUDE = 1 << 15 };
static inline void case_own_bias(struct bench *t, int64_t cols, struct tensor *value, struct tensor *gradient) {
    int64_t pad = t->pad;
    t->pad = 0;
    *value = bench_values(t, bench_stat_dtype(t), 1, cols);
    *gradient = bench_values(t, bench_stat_dtype(t), 1, cols);
    t->pad = pad;
}

// --- norms. variant: bit 0 layer norm, bit 1 add into the input gradient, bit 2 wide, bit 3 bf16 weights
static inline void case_norm_params(struct bench *t, int variant, int64_t cols) {
    enum quant format = variant & 8 ? QUANT_BF16 : QUANT_F32;
    t->call.p.norm.kind = variant & 1 ? NORM_LAYER : NORM_RMS;
    t->call.p.norm.w = bench_weight(t, format, 1, cols, 1);
    t->call.p.norm.bias = variant & 1 ? bench_weight(t, format, 1, cols, 0) : NULL;
    t->call.p.norm.eps = 1e-5f;
    t->call.p.norm.groups = 1;
    t->call.p.norm.scale = 1;
    if (variant & CASE_OWN_BIAS) case_own_bias(t, cols, &t->call.p.norm.own_bias, &t->call.p.norm.dbias);
}

// Heads: 3 groups of columns. bit 4: one weight for all groups, bit 5: 1 + w, bit 6: no weight at all
static inline void case_norm_groups(struct bench *t, int variant) {
    int64_t rows = variant & CASE_MANY_ROWS ? 700 : 5, group = variant & 4 ? 37 : 6, cols = 3 * group;
    t->call.op = OP_NORM;
    case_norm_params(t, variant, variant & 16 ? group : cols);
    t->call.p.norm.groups = 3;
    t->call.p.norm.plus_one = variant & 32;
    if (variant & 64) t->call.p.norm.w = t->call.p.norm.bias = NULL;
    t->call.in[0] = bench_act(t, rows, cols);
    t->call.out[0] = bench_act(t, rows, cols);
    t->call.saved[0] = bench_stat(t, rows, 3);
    if (variant & 1) t->call.saved[1] = bench_stat(t, rows, 3);
    bench_gradients(t, 1, variant & 2);
}

static inline void case_norm(struct bench *t, int variant) {
    int64_t rows = variant & CASE_MANY_ROWS ? 700 : 5, cols = variant & 4 ? 147 : 21;
    t->call.op = OP_NORM;
    case_norm_params(t, variant, cols);
    t->call.in[0] = bench_act(t, rows, cols);
    t->call.out[0] = bench_act(t, rows, cols);
    t->call.saved[0] = bench_stat(t, rows, 1);
    if (variant & 1) t->call.saved[1] = bench_stat(t, rows, 1);
    bench_gradients(t, 1, variant & 2);
}

// bit 4: both input gradients lie in the buffer of the output's; bit 5: in one buffer of their own;
// bit 6: y is not used; bit 7: s is not used
static inline void case_add_norm(struct bench *t, int variant) {
    int64_t rows = variant & CASE_MANY_ROWS ? 700 : 5, cols = variant & 4 ? 147 : 21;
    t->call.op = OP_ADD_NORM;
    case_norm_params(t, variant, cols);
    for (int i = 0; i < 2; i++) t->call.in[i] = bench_act(t, rows, cols);
    for (int i = 0; i < 2; i++) t->call.out[i] = bench_act(t, rows, cols);
    t->call.saved[0] = bench_stat(t, rows, 1);
    if (variant & 1) t->call.saved[1] = bench_stat(t, rows, 1);
    bench_gradients(t, 2, variant & 2);
    if (variant & 16) t->call.grad_in[0] = t->call.grad_in[1] = t->call.grad_out[0];
    if (variant & 32) t->call.grad_in[1] = t->call.grad_in[0];
    if (variant & 64) t->call.grad_out[1] = (struct tensor){0};
    if (variant & 128) t->call.grad_out[0] = (struct tensor){0};
    if (variant & 512) t->call.p.norm.scale = 0.625f; // the second input is scaled
}

// --- add. bit 1 acc, bit 4: first input gradient in the buffer of the output's, bit 5: both
static inline void case_add(struct bench *t, int variant) {
    t->call.op = OP_ADD;
    t->call.p.add.scale = variant & 512 ? 0.375f : 1;
    int64_t rows = variant & CASE_MANY_ROWS ? 3000 : 5;
    for (int i = 0; i < 2; i++) t->call.in[i] = bench_act(t, rows, 37);
    t->call.out[0] = bench_act(t, rows, 37);
    bench_gradients(t, 1, variant & 2);
    if (variant & 48) t->call.grad_in[0] = t->call.grad_out[0], t->call.acc[0] = false;
    if (variant & 32) t->call.grad_in[1] = t->call.grad_out[0], t->call.acc[1] = false;
}

// Activations: values that reach into the flat ends, or beyond the limits of those that clamp.
static inline struct tensor case_wide_act(struct bench *t, int64_t rows, int64_t cols) {
    struct tensor x = bench_act(t, rows, cols);
    for (int64_t c = 0; c < cols; c++) bench_set(t->image, &x, 0, c, 4 * bench_get(t->image, &x, 0, c));
    return x;
}

// --- glu. bits 2-3 the activation, bit 1 acc, bit 4 gradients over the inputs, bit 5 gate and up alternate in one
static inline void case_glu(struct bench *t, int variant) {
    static const enum act_kind kinds[] = {ACT_SILU, ACT_GELU_TANH, ACT_GELU, ACT_SWIGLU_CLAMPED};
    int64_t rows = variant & CASE_MANY_ROWS ? 2500 : 4;
    t->call.op = OP_GLU;
    t->call.p.act.kind = kinds[variant >> 2 & 3];
    t->call.p.act.limit = 0.7f, t->call.p.act.alpha = 1.702f;
    t->call.in[0] = case_wide_act(t, rows, variant & 32 ? 90 : 45);
    if (!(variant & 32)) t->call.in[1] = case_wide_act(t, rows, 45);
    t->call.out[0] = bench_act(t, rows, 45);
    bench_gradients(t, 1, variant & 2);
    if (variant & 16) t->call.grad_in[0] = t->call.in[0], t->call.grad_in[1] = t->call.in[1];
}

// --- act. bits 2-3 the activation, bit 1 acc, bit 4 the gradient over the input
static inline void case_act(struct bench *t, int variant) {
    static const enum act_kind kinds[] = {ACT_SILU, ACT_GELU_TANH, ACT_GELU, ACT_CLAMP};
    int64_t rows = variant & CASE_MANY_ROWS ? 2500 : 4;
    t->call.op = OP_ACT;
    t->call.p.act.kind = kinds[variant >> 2 & 3];
    t->call.p.act.limit = 0.7f;
    t->call.in[0] = case_wide_act(t, rows, 45);
    t->call.out[0] = bench_act(t, rows, 45);
    bench_gradients(t, 1, variant & 2);
    if (variant & 16) t->call.grad_in[0] = t->call.in[0];
}

// --- gate. bit 1 acc, bit 2 one input without a gradient
static inline void case_gate(struct bench *t, int variant) {
    int64_t rows = variant & CASE_MANY_ROWS ? 900 : 5;
    t->call.op = OP_GATE;
    t->call.in[0] = bench_act(t, rows, 37);
    t->call.in[1] = bench_act(t, rows, 1);
    t->call.out[0] = bench_act(t, rows, 37);
    bench_gradients(t, 1, variant & 2);
    if (variant & 4) t->call.grad_in[1] = (struct tensor){0};
}

// --- mla_keys. bit 1 acc, bit 2 no gradient of the values, bit 3 none of the keys, bit 4 keys alone
static inline void case_mla_keys(struct bench *t, int variant) {
    int64_t rows = variant & CASE_MANY_ROWS ? 300 : 4;
    t->call.op = OP_MLA_KEYS;
    t->call.p.mla.heads = 3, t->call.p.mla.nope = 19, t->call.p.mla.v_dim = variant & 16 ? 0 : 7;
    t->call.in[0] = bench_act(t, rows, variant & 16 ? 3 * 19 : 3 * 26);
    t->call.in[1] = bench_act(t, rows, 18);
    t->call.out[0] = bench_act(t, rows, 3 * 37);
    if (!(variant & 16)) t->call.out[1] = bench_act(t, rows, 3 * 7);
    bench_gradients(t, variant & 16 ? 1 : 2, variant & 2);
    if (variant & 4) t->call.grad_out[1] = (struct tensor){0};
    if (variant & 8) t->call.grad_out[0] = t->call.grad_in[1] = (struct tensor){0};
}

// --- moe_route. bits 2-3 the gate, bit 1 acc, bit 4 groups (bit 5: scored by pairs), bit 6 normalised, bit 7 a bias
static inline void case_moe_route(struct bench *t, int variant) {
    int64_t rows = variant & CASE_MANY_ROWS ? 333 : 7, experts = 12;
    struct moe_route *m = &t->call.p.moe;
    t->call.op = OP_MOE_ROUTE;
    *m = (struct moe_route){.gate = (enum moe_gate)(variant >> 2 & 3),
                            .experts = (int)experts,
                            .used = (variant >> 2 & 3) == MOE_SPARSE_MIXER ? 2 : 3,
                            .groups = variant & 16 ? 4 : 1,
                            .groups_used = variant & 16 ? 2 : 1,
                            .group_pairs = variant & 32,
                            .normalise = variant & 64,
                            .scale = 1.75f,
                            .jitter = 0.2f};
    if (variant & 128) m->bias = bench_weight(t, QUANT_F32, 1, experts, 0);
    t->call.in[0] = bench_act(t, rows, experts);
    for (int64_t r = 0; r < rows; r++) { // far enough apart that no small step changes a choice
        for (int64_t e = 0; e < experts; e++) {
            double v = ((e * 5 + r * 7) % experts - 5) * 0.25 + bench_get(t->image, &t->call.in[0], r, e) / 16;
            bench_set(t->image, &t->call.in[0], r, e, (double)bf16_to_float(bf16_from_float((float)v)));
        }
    }
    t->call.out[0] = bench_stat(t, rows, m->used);
    t->call.out[1] = bench_tensor(t, DTYPE_I32, rows * m->used, 2);
    t->call.out[2] = bench_tensor(t, DTYPE_I32, experts + 1, 1);
    bench_gradients(t, 1, variant & 2);
}

// A map for `rows` tokens of 2 choices among 5 experts, one of which nobody chooses.
static inline void case_moe_map(struct bench *t, int64_t rows, struct tensor *map, struct tensor *offsets) {
    int64_t pairs = 2 * rows, place = 0;
    *map = bench_tensor(t, DTYPE_I32, pairs, 2);
    if (offsets) *offsets = bench_tensor(t, DTYPE_I32, 6, 1);
    for (int64_t e = 0; e < 5; e++) {
        if (offsets) bench_set(t->image, offsets, e, 0, (double)place);
        for (int64_t p = 0; p < pairs; p++) {
            if ((p % 2 ? (p / 2 * 3 + 1) % 4 : p / 2 * 3 % 4) != (e < 3 ? e : e - 1) || e == 3) continue;
            bench_set(t->image, map, place, 0, (double)p);
            bench_set(t->image, map, p, 1, (double)place++);
        }
    }
    if (offsets) bench_set(t->image, offsets, 5, 0, (double)place);
    bench_require(place == pairs, "the map of experts");
}

// --- moe_gather and moe_combine. bit 0 without weights, bit 1 acc
static inline void case_moe_gather(struct bench *t, int variant) {
    int64_t rows = variant & CASE_MANY_ROWS ? 600 : 6;
    t->call.op = OP_MOE_GATHER;
    t->call.p.moe_rows.used = 2;
    t->call.in[0] = bench_act(t, rows, 37);
    if (!(variant & 1)) t->call.in[1] = bench_stat(t, rows, 2);
    case_moe_map(t, rows, &t->call.in[2], NULL);
    t->call.in[3] = bench_keys(t, rows);
    t->call.out[0] = bench_act(t, 2 * rows, 37);
    t->call.out[1] = bench_tensor(t, DTYPE_U32, 2 * rows, 2);
    bench_gradients(t, 1, variant & 2);
}

static inline void case_moe_combine(struct bench *t, int variant) {
    int64_t rows = variant & CASE_MANY_ROWS ? 600 : 6;
    t->call.op = OP_MOE_COMBINE;
    t->call.p.moe_rows.used = 2;
    t->call.in[0] = bench_act(t, 2 * rows, 37);
    if (!(variant & 1)) t->call.in[1] = bench_stat(t, rows, 2);
    case_moe_map(t, rows, &t->call.in[2], NULL);
    t->call.out[0] = bench_act(t, rows, 37);
    bench_gradients(t, 1, variant & 2);
}

// --- rope. bit 0 pairs (i, i + half), bit 1 acc, bit 2 partial, bit 3 wide heads, bit 4 gradient in place, bit 5 the
// last dims of a head turn (with bit 2), bit 6 no second input
static inline void case_rope(struct bench *t, int variant) {
    int head_dim = variant & 8 ? 64 : 12, rotary = variant & 4 ? head_dim - 4 : head_dim;
    int64_t rows = variant & CASE_MANY_ROWS ? 900 : 6, table_rows = 9;
    int32_t positions[900];
    for (int i = 0; i < 900; i++) positions[i] = (i * 5 + i / 3) % 9;
    t->call.op = OP_ROPE;
    t->call.p.rope.kind = variant & 1 ? ROPE_NEOX : ROPE_NORM;
    t->call.p.rope.head_dim = head_dim;
    t->call.p.rope.rotary_dim = rotary;
    t->call.p.rope.first = variant & 32 ? head_dim - rotary : 0;
    t->call.in[0] = bench_act(t, rows, 3 * head_dim);
    if (!(variant & 64)) t->call.in[1] = bench_act(t, rows, 1 * head_dim);
    t->call.in[2] = bench_i32(t, positions, rows, 1);
    t->call.in[3] = bench_tensor(t, DTYPE_F32, table_rows, head_dim);
    for (int64_t p = 0; p < table_rows; p++) {
        for (int64_t i = 0; i < head_dim; i++) bench_set(t->image, &t->call.in[3], p, i, 0);
        for (int64_t i = 0; i < rotary / 2; i++) {
            double angle = (double)p * pow(100, -2.0 * (double)i / rotary);
            bench_set(t->image, &t->call.in[3], p, i, cos(angle));
            bench_set(t->image, &t->call.in[3], p, rotary / 2 + i, sin(angle));
        }
    }
    t->call.out[0] = t->call.in[0];
    t->call.out[1] = t->call.in[1];
    bench_gradients(t, variant & 64 ? 1 : 2, variant & 2);
    if (variant & 16) t->call.grad_in[0] = t->call.grad_out[0], t->call.grad_in[1] = t->call.grad_out[1];
}

// --- attention
struct attention_shape {
    int heads, kv_heads, head_dim, v_dim;
    int64_t tq, tkv;
    int window, chunk;
    float soft_cap;
    bool sinks, acc;
    int n_seqs;
    int32_t seqs[4][4];
};

static inline const struct attention_shape *attention_shapes(int variant) {
    static const struct attention_shape shapes[] = {
        {.heads = 1, .kv_heads = 1, .head_dim = 4, .v_dim = 4, .tq = 5, .tkv = 5, .n_seqs = 1, .seqs = {{0, 5, 0, 5}}},
        {.heads = 6, .kv_heads = 2, .head_dim = 6, .v_dim = 10, .tq = 9, .tkv = 9, .n_seqs = 1, .seqs = {{0, 9, 0, 9}}},
        // packed documents, a tail and a gap in no sequence, adding into the gradients
        {.heads = 2,
         .kv_heads = 1,
         .head_dim = 5,
         .v_dim = 3,
         .tq = 14,
         .tkv = 14,
         .acc = true,
         .n_seqs = 3,
         .seqs = {{0, 4, 0, 4}, {5, 6, 5, 6}, {11, 1, 11, 1}}},
        {.heads = 2,
         .kv_heads = 2,
         .head_dim = 4,
         .v_dim = 4,
         .tq = 11,
         .tkv = 11,
         .window = 3,
         .n_seqs = 2,
         .seqs = {{0, 7, 0, 7}, {7, 4, 7, 4}}},
        {.heads = 2,
         .kv_heads = 1,
         .head_dim = 4,
         .v_dim = 4,
         .tq = 11,
         .tkv = 11,
         .chunk = 4,
         .n_seqs = 1,
         .seqs = {{0, 11, 0, 11}}},
        {.heads = 2,
         .kv_heads = 1,
         .head_dim = 6,
         .v_dim = 4,
         .tq = 8,
         .tkv = 8,
         .soft_cap = 1.5f,
         .n_seqs = 1,
         .seqs = {{0, 8, 0, 8}}},
        {.heads = 4,
         .kv_heads = 2,
         .head_dim = 4,
         .v_dim = 6,
         .tq = 8,
         .tkv = 8,
         .sinks = true,
         .n_seqs = 2,
         .seqs = {{4, 4, 4, 4}, {0, 3, 0, 3}}},
        {.heads = 2,
         .kv_heads = 1,
         .head_dim = 4,
         .v_dim = 4,
         .tq = 9,
         .tkv = 9,
         .sinks = true,
         .soft_cap = 2.0f,
         .window = 4,
         .chunk = 6,
         .acc = true,
         .n_seqs = 1,
         .seqs = {{0, 9, 0, 9}}},
        // fewer queries than keys, as with a cache
        {.heads = 2,
         .kv_heads = 1,
         .head_dim = 4,
         .v_dim = 4,
         .tq = 5,
         .tkv = 15,
         .n_seqs = 2,
         .seqs = {{0, 3, 1, 7}, {3, 2, 9, 6}}},
        // more than one block of queries and keys
        {.heads = 2,
         .kv_heads = 1,
         .head_dim = 3,
         .v_dim = 2,
         .tq = 70,
         .tkv = 70,
         .n_seqs = 1,
         .seqs = {{0, 70, 0, 70}}},
    };
    bench_require(variant >= 0 && (size_t)variant < COUNT_OF(shapes), "attention variant");
    return &shapes[variant];
}
enum { ATTENTION_CASES = 10 };

static inline void case_attention_shape(struct bench *t, const struct attention_shape *s) {
    struct op_call *call = &t->call;
    call->op = OP_ATTENTION;
    call->p.attention.heads = s->heads;
    call->p.attention.kv_heads = s->kv_heads;
    call->p.attention.head_dim = s->head_dim;
    call->p.attention.v_dim = s->v_dim;
    call->p.attention.scale = (float)(1.7 / sqrt(s->head_dim));
    call->p.attention.soft_cap = s->soft_cap;
    call->p.attention.window = s->window;
    call->p.attention.chunk = s->chunk;
    call->p.attention.sinks = s->sinks ? bench_weight(t, QUANT_F32, 1, s->heads, 0.5) : NULL;
    call->p.attention.max_seqs = 4;
    call->in[0] = bench_act(t, s->tq, (int64_t)s->heads * s->head_dim);
    call->in[1] = bench_act(t, s->tkv, (int64_t)s->kv_heads * s->head_dim);
    call->in[2] = bench_act(t, s->tkv, (int64_t)s->kv_heads * s->v_dim);
    int32_t seqs[5][4] = {{0}};
    for (int n = 0; n < s->n_seqs; n++) memcpy(seqs[n], s->seqs[n], sizeof seqs[n]);
    call->in[3] = bench_i32(t, &seqs[0][0], 5, 4);
    call->out[0] = bench_act(t, s->tq, (int64_t)s->heads * s->v_dim);
    call->saved[0] = bench_stat(t, s->tq, s->heads);
    bench_gradients(t, 1, s->acc);
}

static inline void case_attention(struct bench *t, int variant) {
    case_attention_shape(t, attention_shapes(variant));
}

// --- linear. bit 0 three parts, bit 1 acc, bit 2 adapters, bit 3 dropout, bit 4 biases, bit 5 adapters on some rows,
// bit 6 all parts share one A, bit 7 the first part has no gradient
static inline void case_linear(struct bench *t, int variant) {
    struct op_call *call = &t->call;
    int64_t rows = 7, in = 10, u_cols = 0;
    call->op = OP_LINEAR_GROUP;
    call->in[0] = bench_act(t, rows, in);
    call->in[1] = bench_keys(t, rows);
    struct step_scalars scalars = case_scalars();
    call->scalars = bench_scalars(t, &scalars);
    call->p.linear.n_parts = variant & 1 ? 3 : 1;
    for (int i = 0; i < call->p.linear.n_parts; i++) {
        struct linear_part *part = &call->p.linear.parts[i];
        int64_t out = 6 + 5 * i;
        part->w = bench_weight(t, QUANT_F32, out, in, 0);
        part->bias = variant & 16 ? bench_weight(t, QUANT_F32, 1, out, 0) : NULL;
        part->n_spans = variant & 4 ? (variant & 32 ? 2 : 1) : 0;
        for (int s = 0; s < part->n_spans; s++) {
            struct lora_span *span = &part->spans[s];
            int64_t rank = 2 + s + i;
            enum dtype dtype = bench_stat_dtype(t);
            *span = (struct lora_span){.row_begin = 0,
                                       .row_end = rows,
                                       .scale = 0.75f,
                                       .module = (uint32_t)(4 * i + s),
                                       .dropout = variant & 8 ? 0.25f : 0,
                                       .u_begin = u_cols};
            if (variant & 32) span->row_begin = s ? 4 : 1, span->row_end = s ? rows : 4;
            int64_t pad = t->pad;
            span->a = bench_values(t, dtype, rank, in);
            span->b = bench_values(t, dtype, out, rank);
            if (!(variant & 32 && s && i)) { // one of them is not trained
                span->da = bench_values(t, dtype, rank, in);
                span->db = bench_values(t, dtype, out, rank);
            }
            t->pad = pad;
            u_cols += rank;
            if (!(variant & 64) || i == 0) continue;
            const struct lora_span *first = &call->p.linear.parts[0].spans[s]; // the rank of part 0, its A, its dropout
            pad = t->pad, t->pad = 0;
            span->module = first->module, span->u_begin = first->u_begin, span->a = first->a, span->da = first->da;
            span->b = bench_values(t, dtype, out, first->a.rows);
            span->db = tensor_present(&first->da) ? bench_values(t, dtype, out, first->a.rows) : (struct tensor){0};
            t->pad = pad;
        }
        call->out[i] = bench_act(t, rows, out);
    }
    if (u_cols) call->saved[0] = bench_stat(t, rows, u_cols);
    bench_gradients(t, call->p.linear.n_parts, variant & 2);
    if (variant & 128) call->grad_out[0] = (struct tensor){0};
}

// --- linears of experts. bit 0 two parts, bit 1 acc, bit 2 adapters, bit 3 dropout, bit 4 biases
static inline void case_moe_linear(struct bench *t, int variant) {
    struct op_call *call = &t->call;
    int64_t pairs = 14, in = 10, u_cols = 0, experts = 5;
    call->op = OP_MOE_LINEAR_GROUP;
    struct tensor unused;
    call->in[0] = bench_act(t, pairs, in);
    case_moe_map(t, pairs / 2, &unused, &call->in[1]);
    call->in[2] = bench_keys(t, pairs);
    struct step_scalars scalars = case_scalars();
    call->scalars = bench_scalars(t, &scalars);
    call->p.linear.n_parts = variant & 1 ? 2 : 1;
    call->p.linear.experts = (int)experts;
    for (int i = 0; i < call->p.linear.n_parts; i++) {
        struct linear_part *part = &call->p.linear.parts[i];
        int64_t out = 6 + 5 * i, rank = 2 + i;
        struct weight *w = pool_array(&t->pool, (uint64_t)experts, sizeof *w);
        bench_require(w, "memory");
        for (int64_t e = 0; e < experts; e++) w[e] = *bench_weight(t, QUANT_F32, out, in, 0);
        part->w = w;
        part->bias = variant & 16 ? bench_weight(t, QUANT_F32, experts, out, 0) : NULL;
        call->out[i] = bench_act(t, pairs, out);
        if (!(variant & 4)) continue;
        enum dtype dtype = bench_stat_dtype(t);
        int64_t pad = t->pad;
        t->pad = 0;
        part->spans[part->n_spans++] = (struct lora_span){.row_end = pairs,
                                                          .scale = 0.75f,
                                                          .module = (uint32_t)(4 * i),
                                                          .dropout = variant & 8 ? 0.25f : 0,
                                                          .u_begin = u_cols,
                                                          .a = bench_values(t, dtype, experts * rank, in),
                                                          .b = bench_values(t, dtype, experts * out, rank),
                                                          .da = bench_values(t, dtype, experts * rank, in),
                                                          .db = bench_values(t, dtype, experts * out, rank)};
        t->pad = pad;
        u_cols += rank;
    }
    if (u_cols) call->saved[0] = bench_stat(t, pairs, u_cols);
    bench_gradients(t, call->p.linear.n_parts, variant & 2);
}

// --- tables with adapters, of the embedding and the head
enum { CASE_TABLE_LORA = 64, CASE_TABLE_DROPOUT = 128, CASE_TABLE_FULL = 512, CASE_TABLE_ROWS = 1024 };
static inline void case_table(struct bench *t, int variant, int64_t vocabulary, int64_t d, int64_t rows,
                              struct table_adapter *on) {
    static const int32_t ids[] = {7, 18, 1};
    enum dtype dtype = bench_stat_dtype(t);
    if (variant & CASE_TABLE_LORA) {
        on->a = bench_values(t, dtype, 3, d), on->da = bench_values(t, dtype, 3, d);
        on->b = bench_values(t, dtype, vocabulary, 3), on->db = bench_values(t, dtype, vocabulary, 3);
        on->scale = 0.75f, on->module = 9;
    }
    if (variant & CASE_TABLE_DROPOUT) on->dropout = 0.25f, on->keys = bench_keys(t, rows);
    if (variant & CASE_TABLE_FULL) {
        on->full = bench_values(t, dtype, vocabulary, d), on->dfull = bench_values(t, dtype, vocabulary, d);
    }
    if (!(variant & CASE_TABLE_ROWS)) return;
    on->rows = bench_values(t, dtype, 3, d), on->drows = bench_values(t, dtype, 3, d);
    on->row_ids = bench_i32(t, ids, 3, 1);
}

// bit 1 acc
static inline void case_dropout(struct bench *t, int variant) {
    int64_t rows = variant & CASE_MANY_ROWS ? 300 : 5, cols = 70;
    struct step_scalars scalars = case_scalars();
    t->call.op = OP_DROPOUT;
    t->call.scalars = bench_scalars(t, &scalars);
    t->call.p.dropout.p = 0.3f, t->call.p.dropout.module = 7;
    t->call.in[0] = bench_act(t, rows, cols);
    t->call.in[1] = bench_keys(t, rows);
    t->call.out[0] = bench_act(t, rows, cols);
    t->call.out[1] = bench_act(t, rows, cols);
    bench_gradients(t, 2, variant & 2);
}

// The loss is no output of the op: here it weighs nothing, and the logits pass. test_families.c compares the loss.
static inline void case_moe_balance(struct bench *t, int variant) {
    int32_t lengths[9] = {4, 4, 4, 4, 3, 3, 3, 0, 0};
    (void)variant;
    struct step_scalars scalars = case_scalars();
    t->call.op = OP_MOE_BALANCE;
    t->call.scalars = bench_scalars(t, &scalars);
    t->call.in[0] = bench_act(t, 9, 6);
    t->call.in[1] = bench_i32(t, lengths, 9, 1);
    t->call.out[0] = t->call.in[0];
    t->call.p.balance = (struct moe_balance){.sums = bench_tensor(t, DTYPE_F32, 3, 12), .row = 1, .used = 2};
    bench_gradients(t, 1, false);
}

// bit 1 acc, bit 2 a magnitude, bit 3 a trained bias, bit 4 a frozen one
static inline void case_columns(struct bench *t, int variant) {
    struct op_call *call = &t->call;
    int64_t rows = variant & CASE_MANY_ROWS ? 700 : 5, cols = 70, pad = t->pad;
    enum dtype dtype = bench_stat_dtype(t);
    call->op = OP_COLUMNS;
    call->in[0] = bench_act(t, rows, cols);
    call->out[0] = bench_act(t, rows, cols);
    t->pad = 0;
    if (variant & 4) {
        call->p.columns.magnitude = bench_values(t, dtype, 1, cols);
        call->p.columns.dmagnitude = bench_values(t, dtype, 1, cols);
        call->p.columns.norms = bench_values(t, dtype, 1, cols);
        for (int64_t i = 0; i < cols; i++)
            bench_set(t->image, &call->p.columns.norms, 0, i, 0.5 + 0.1 * (double)(i % 7));
    }
    if (variant & 8) {
        call->p.columns.own_bias = bench_values(t, dtype, 1, cols);
        call->p.columns.dbias = bench_values(t, dtype, 1, cols);
    }
    t->pad = pad;
    if (variant & 16) call->p.columns.bias = bench_weight(t, QUANT_F32, 1, cols, 0);
    bench_gradients(t, 1, variant & 2);
}

// bit 0: noise
static inline void case_embed_table(struct bench *t, int variant) {
    struct op_call *call = &t->call;
    int64_t rows = 6, d = 37, vocabulary = 19;
    static const int32_t ids[] = {3, 7, 18, 0, 7, 3}, lengths[] = {4, 4, 4, 4, 2, 2};
    call->op = OP_EMBED;
    call->in[0] = bench_i32(t, ids, rows, 1);
    call->in[1] = bench_keys(t, rows);
    call->out[0] = bench_act(t, rows, d);
    call->p.embed.w = bench_weight(t, QUANT_F32, vocabulary, d, 0);
    call->p.embed.scale = 1.5f;
    call->p.embed.noise_alpha = variant & 1 ? 2 : 0;
    call->p.embed.lengths = bench_i32(t, lengths, rows, 1);
    case_table(t, variant, vocabulary, d, rows, &call->p.embed.on);
    struct step_scalars scalars = case_scalars();
    call->scalars = bench_scalars(t, &scalars);
    bench_gradients(t, 1, false);
}

// --- head. bit 0 fused, bit 1 acc, bit 2 soft cap, bit 3 logit scale, bit 4 many rows per chunk, bit 5 a bias
static inline void case_logprob(struct bench *t, int variant) {
    struct op_call *call = &t->call;
    int64_t rows = 6, d = 8, vocabulary = 19;
    static const int32_t targets[] = {3, -100, 18, 0, 7, 7};
    static const double weights[] = {1, 0, 0.5, 1, 0, 2};
    call->op = OP_TOKEN_LOGPROB;
    call->in[0] = bench_act(t, rows, d);
    call->in[1] = bench_i32(t, targets, rows, 1);
    call->in[2] = bench_tensor(t, DTYPE_F32, rows, 1);
    for (int64_t r = 0; r < rows; r++) bench_set(t->image, &call->in[2], r, 0, weights[r]);
    call->out[0] = bench_stat(t, rows, 1);
    call->out[1] = bench_stat(t, rows, 1);
    call->p.logprob.w = bench_weight(t, QUANT_F32, vocabulary, d, 0);
    call->p.logprob.bias = variant & 32 ? bench_weight(t, QUANT_F32, 1, vocabulary, 0) : NULL;
    call->p.logprob.fused = variant & 1;
    call->p.logprob.soft_cap = variant & 4 ? 1.5f : 0;
    call->p.logprob.logit_scale = variant & 8 ? 0.625f : 1;
    call->p.logprob.chunk_rows = variant & 16 ? 64 : 2;
    case_table(t, variant, vocabulary, d, rows, &call->p.logprob.on);
    struct table_adapter *on = &call->p.logprob.on;
    if (variant & CASE_OWN_BIAS) case_own_bias(t, vocabulary, &on->bias, &on->dbias);
    if (variant & CASE_MAGNITUDE) {
        struct tensor unused;
        case_own_bias(t, vocabulary, &on->magnitude, &on->dmagnitude);
        case_own_bias(t, vocabulary, &on->norms, &unused);
        for (int64_t i = 0; i < vocabulary; i++) bench_set(t->image, &on->norms, 0, i, 0.5 + 0.1 * (double)(i % 7));
    }
    struct step_scalars scalars = case_scalars();
    call->scalars = bench_scalars(t, &scalars);
    bench_gradients(t, 1, variant & 2);
    if (variant & 1) { // the loss is the weighted sum of -logp, whatever grad_out says
        call->saved[0] = bench_act(t, rows, d);
        struct tensor *loss = pool_alloc(&t->pool, sizeof *loss);
        bench_require(loss, "memory");
        *loss = bench_tensor(t, DTYPE_F64, rows, 1);
        for (int64_t r = 0; r < rows; r++) bench_set(t->image, loss, r, 0, -weights[r]);
        t->loss_weight[0] = loss;
        call->grad_out[0] = (struct tensor){0};
    }
}

static const struct op_case op_cases[] = {
    {"norm rms", OP_NORM, case_norm, 0},
    {"norm rms acc", OP_NORM, case_norm, 2},
    {"norm layer", OP_NORM, case_norm, 1},
    {"norm layer wide", OP_NORM, case_norm, 1 + 4},
    {"norm rms wide bf16", OP_NORM, case_norm, 4 + 8},
    {"add_norm rms", OP_ADD_NORM, case_add_norm, 0},
    {"add_norm layer acc", OP_ADD_NORM, case_add_norm, 1 + 2},
    {"add_norm rms wide", OP_ADD_NORM, case_add_norm, 4},
    {"add_norm in place", OP_ADD_NORM, case_add_norm, 16},
    {"add_norm layer in place wide", OP_ADD_NORM, case_add_norm, 1 + 4 + 16},
    {"add_norm shared", OP_ADD_NORM, case_add_norm, 32},
    {"add_norm without y", OP_ADD_NORM, case_add_norm, 64},
    {"add_norm without s", OP_ADD_NORM, case_add_norm, 2 + 128},
    {"add", OP_ADD, case_add, 0},
    {"add acc", OP_ADD, case_add, 2},
    {"norm heads", OP_NORM, case_norm_groups, 0},
    {"norm heads shared acc", OP_NORM, case_norm_groups, 2 + 4 + 16 + 32},
    {"norm heads layer bf16", OP_NORM, case_norm_groups, 1 + 4 + 8},
    {"norm heads without weights", OP_NORM, case_norm_groups, 64},
    {"add_norm scaled acc", OP_ADD_NORM, case_add_norm, 2 + 4 + 512},
    {"add_norm scaled without y", OP_ADD_NORM, case_add_norm, 64 + 512},
    {"add scaled", OP_ADD, case_add, 2 + 512},
    {"add half in place", OP_ADD, case_add, 2 + 16},
    {"add in place", OP_ADD, case_add, 32},
    {"glu silu", OP_GLU, case_glu, 0},
    {"glu gelu tanh", OP_GLU, case_glu, 4},
    {"glu gelu", OP_GLU, case_glu, 8},
    {"glu clamped", OP_GLU, case_glu, 12},
    {"glu silu acc", OP_GLU, case_glu, 2},
    {"glu gelu over its inputs", OP_GLU, case_glu, 4 + 16},
    {"glu silu over its inputs", OP_GLU, case_glu, 16},
    {"glu clamped interleaved acc", OP_GLU, case_glu, 2 + 12 + 32},
    {"glu silu interleaved over its input", OP_GLU, case_glu, 16 + 32},
    {"act silu", OP_ACT, case_act, 0},
    {"act gelu tanh acc", OP_ACT, case_act, 2 + 4},
    {"act gelu over its input", OP_ACT, case_act, 8 + 16},
    {"act clamp", OP_ACT, case_act, 12},
    {"gate", OP_GATE, case_gate, 0},
    {"gate acc half", OP_GATE, case_gate, 2 + 4},
    {"mla_keys", OP_MLA_KEYS, case_mla_keys, 0},
    {"mla_keys acc", OP_MLA_KEYS, case_mla_keys, 2},
    {"mla_keys without values", OP_MLA_KEYS, case_mla_keys, 4},
    {"mla_keys alone", OP_MLA_KEYS, case_mla_keys, 16},
    {"mla_keys alone acc", OP_MLA_KEYS, case_mla_keys, 16 + 2},
    {"mla_keys without keys acc", OP_MLA_KEYS, case_mla_keys, 2 + 8},
    {"moe_route softmax", OP_MOE_ROUTE, case_moe_route, 0},
    {"moe_route softmax normalised acc", OP_MOE_ROUTE, case_moe_route, 2 + 64},
    {"moe_route softmax groups", OP_MOE_ROUTE, case_moe_route, 16},
    {"moe_route chosen", OP_MOE_ROUTE, case_moe_route, 4},
    {"moe_route sigmoid groups bias", OP_MOE_ROUTE, case_moe_route, 8 + 16 + 32 + 64 + 128},
    {"moe_route sigmoid plain", OP_MOE_ROUTE, case_moe_route, 8 + 128},
    {"moe_route sparse mixer", OP_MOE_ROUTE, case_moe_route, 12},
    {"moe_gather", OP_MOE_GATHER, case_moe_gather, 0},
    {"moe_gather bare acc", OP_MOE_GATHER, case_moe_gather, 1 + 2},
    {"moe_combine", OP_MOE_COMBINE, case_moe_combine, 0},
    {"moe_combine bare acc", OP_MOE_COMBINE, case_moe_combine, 1 + 2},
    {"moe_linear", OP_MOE_LINEAR_GROUP, case_moe_linear, 1},
    {"moe_linear adapters acc", OP_MOE_LINEAR_GROUP, case_moe_linear, 1 + 2 + 4 + 16},
    {"moe_linear adapters dropout", OP_MOE_LINEAR_GROUP, case_moe_linear, 4 + 8},
    {"rope last dims", OP_ROPE, case_rope, 4 + 32},
    {"rope last dims of one acc", OP_ROPE, case_rope, 1 + 2 + 4 + 8 + 32 + 64},
    {"rope pairs", OP_ROPE, case_rope, 0},
    {"rope pairs partial acc", OP_ROPE, case_rope, 2 + 4},
    {"rope halves", OP_ROPE, case_rope, 1},
    {"rope halves partial", OP_ROPE, case_rope, 1 + 4},
    {"rope halves wide acc", OP_ROPE, case_rope, 1 + 2 + 8},
    {"rope halves in place", OP_ROPE, case_rope, 1 + 4 + 16},
    {"rope pairs in place", OP_ROPE, case_rope, 8 + 16},
    {"attention", OP_ATTENTION, case_attention, 0},
    {"attention groups", OP_ATTENTION, case_attention, 1},
    {"attention packed acc", OP_ATTENTION, case_attention, 2},
    {"attention window", OP_ATTENTION, case_attention, 3},
    {"attention chunk", OP_ATTENTION, case_attention, 4},
    {"attention soft cap", OP_ATTENTION, case_attention, 5},
    {"attention sinks", OP_ATTENTION, case_attention, 6},
    {"attention everything acc", OP_ATTENTION, case_attention, 7},
    {"attention cache", OP_ATTENTION, case_attention, 8},
    {"attention two blocks", OP_ATTENTION, case_attention, 9},
    {"linear", OP_LINEAR_GROUP, case_linear, 0},
    {"linear bias acc", OP_LINEAR_GROUP, case_linear, 2 + 16},
    {"linear adapter", OP_LINEAR_GROUP, case_linear, 4},
    {"linear three adapters dropout", OP_LINEAR_GROUP, case_linear, 1 + 4 + 8},
    {"linear spans dropout bias acc", OP_LINEAR_GROUP, case_linear, 1 + 2 + 4 + 8 + 16 + 32},
    {"linear shared A", OP_LINEAR_GROUP, case_linear, 1 + 4 + 64},
    {"linear shared A dropout acc", OP_LINEAR_GROUP, case_linear, 1 + 2 + 4 + 8 + 16 + 64},
    {"linear shared A without the first part", OP_LINEAR_GROUP, case_linear, 1 + 4 + 8 + 64 + 128},
    {"columns magnitude bias", OP_COLUMNS, case_columns, 4 + 16},
    {"columns magnitude own bias acc", OP_COLUMNS, case_columns, 2 + 4 + 8 + 16},
    {"dropout", OP_DROPOUT, case_dropout, 0},
    {"dropout acc", OP_DROPOUT, case_dropout, 2},
    {"moe_balance", OP_MOE_BALANCE, case_moe_balance, 0},
    {"columns own bias", OP_COLUMNS, case_columns, 8},
    {"embed adapter noise", OP_EMBED, case_embed_table, 1 + CASE_TABLE_LORA},
    {"embed whole adapter", OP_EMBED, case_embed_table, CASE_TABLE_LORA + CASE_TABLE_FULL},
    {"embed rows", OP_EMBED, case_embed_table, CASE_TABLE_ROWS},
    {"logprob adapter cap acc", OP_TOKEN_LOGPROB, case_logprob, 2 + 4 + CASE_TABLE_LORA},
    {"logprob fused adapter dropout bias", OP_TOKEN_LOGPROB, case_logprob,
     1 + 8 + 32 + CASE_TABLE_LORA + CASE_TABLE_DROPOUT},
    {"logprob fused one chunk adapter dropout", OP_TOKEN_LOGPROB, case_logprob,
     1 + 16 + CASE_TABLE_LORA + CASE_TABLE_DROPOUT},
    {"logprob fused whole", OP_TOKEN_LOGPROB, case_logprob, 1 + 8 + CASE_TABLE_FULL},
    {"logprob whole adapter", OP_TOKEN_LOGPROB, case_logprob, CASE_TABLE_FULL + CASE_TABLE_LORA},
    {"logprob fused rows bias", OP_TOKEN_LOGPROB, case_logprob, 1 + 4 + 32 + CASE_TABLE_ROWS},
    {"logprob rows one chunk acc", OP_TOKEN_LOGPROB, case_logprob, 2 + 16 + CASE_TABLE_ROWS},
    {"logprob", OP_TOKEN_LOGPROB, case_logprob, 0},
    {"logprob acc cap", OP_TOKEN_LOGPROB, case_logprob, 2 + 4},
    {"logprob scale one chunk", OP_TOKEN_LOGPROB, case_logprob, 8 + 16},
    {"logprob fused", OP_TOKEN_LOGPROB, case_logprob, 1},
    {"logprob fused cap scale acc", OP_TOKEN_LOGPROB, case_logprob, 1 + 2 + 4 + 8},
    {"logprob fused one chunk", OP_TOKEN_LOGPROB, case_logprob, 1 + 16},
    {"logprob bias cap", OP_TOKEN_LOGPROB, case_logprob, 4 + 32},
    {"logprob fused bias", OP_TOKEN_LOGPROB, case_logprob, 1 + 8 + 32},
    {"norm rms own bias", OP_NORM, case_norm, 4 + CASE_OWN_BIAS},
    {"norm layer own bias acc", OP_NORM, case_norm, 1 + 2 + CASE_OWN_BIAS},
    {"norm heads layer own bias", OP_NORM, case_norm_groups, 1 + 4 + 16 + CASE_OWN_BIAS},
    {"add_norm layer own bias in place wide", OP_ADD_NORM, case_add_norm, 1 + 4 + 16 + CASE_OWN_BIAS},
    {"add_norm layer own bias acc", OP_ADD_NORM, case_add_norm, 1 + 2 + CASE_OWN_BIAS},
    {"logprob fused own bias cap", OP_TOKEN_LOGPROB, case_logprob, 1 + 4 + 8 + 32 + CASE_OWN_BIAS},
    {"logprob fused rows own bias", OP_TOKEN_LOGPROB, case_logprob, 1 + CASE_TABLE_ROWS + CASE_OWN_BIAS},
    {"logprob fused magnitude cap", OP_TOKEN_LOGPROB, case_logprob, 1 + 4 + 8 + CASE_TABLE_LORA + CASE_MAGNITUDE},
    {"logprob magnitude own bias acc", OP_TOKEN_LOGPROB, case_logprob,
     2 + CASE_TABLE_LORA + CASE_MAGNITUDE + CASE_OWN_BIAS},
    {"logprob fused magnitude bias one chunk", OP_TOKEN_LOGPROB, case_logprob,
     1 + 16 + 32 + CASE_TABLE_LORA + CASE_MAGNITUDE},
    {"logprob whole own bias one chunk", OP_TOKEN_LOGPROB, case_logprob, 16 + CASE_TABLE_FULL + CASE_OWN_BIAS},
};
