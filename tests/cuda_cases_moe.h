// Larger and odder cases of mixtures of experts than op_cases.h has: several tiles in all directions, experts with no
// row and with all of them, more experts than one launch takes, ranks and widths that are no multiple of anything.
#pragma once

#include "tests/op_cases.h"

// --- routing

static const struct moe_route big_routes[] = {
    {.gate = MOE_SOFTMAX, .experts = 64, .used = 6, .normalise = true, .scale = 1},
    {.gate = MOE_SOFTMAX, .experts = 70, .used = 5, .groups = 7, .groups_used = 3, .scale = 2.5f},
    {.gate = MOE_SOFTMAX_CHOSEN, .experts = 40, .used = 33, .scale = 1},
    {.gate = MOE_SIGMOID,
     .experts = 300,
     .used = 8,
     .groups = 10,
     .groups_used = 4,
     .group_pairs = true,
     .normalise = true,
     .scale = 2.5f},
    {.gate = MOE_SPARSE_MIXER, .experts = 48, .used = 2, .scale = 1, .jitter = 0.01f},
    {.gate = MOE_SPARSE_MIXER, .experts = 9, .used = 3, .normalise = true, .scale = 1.5f, .jitter = 0.4f},
    {.gate = MOE_SOFTMAX_CHOSEN, .experts = 17, .used = 9, .scale = 1},
    {.gate = MOE_SOFTMAX, .experts = 35, .used = 4, .groups = 5, .groups_used = 2, .group_pairs = true, .scale = 1},
    {.gate = MOE_SIGMOID, .experts = 1, .used = 1, .scale = 1},
};

// The variant is the number of a route; bit 8: a bias, bit 9: acc, bit 10: no token, bit 11: many and no
// gradient (the reference takes n^3 k^2 exponentials a token for one).
static inline void case_big_route(struct bench *t, int variant) {
    struct moe_route *m = &t->call.p.moe;
    *m = big_routes[variant & 255];
    int64_t rows = variant & 1024 ? 0 : variant & 2048 ? 277 : 7;
    if (m->groups == 0) m->groups = m->groups_used = 1;
    t->call.op = OP_MOE_ROUTE;
    if (variant & 256) m->bias = bench_weight(t, QUANT_F32, 1, m->experts, 0);
    t->call.in[0] = bench_act(t, rows, m->experts);
    for (int64_t r = 0; r < rows; r++) { // some of them equal
        for (int64_t e = 0; e < m->experts; e++)
            bench_set(t->image, &t->call.in[0], r, e, 4 * bench_get(t->image, &t->call.in[0], r, e));
        if (r % 3 == 0 && m->experts > 7) {
            for (int64_t e = 3; e < m->experts; e += 4)
                bench_set(t->image, &t->call.in[0], r, e, bench_get(t->image, &t->call.in[0], r, e - 3));
        }
    }
    t->call.out[0] = bench_stat(t, rows, m->used);
    t->call.out[1] = bench_tensor(t, DTYPE_I32, rows * m->used, 2);
    t->call.out[2] = bench_tensor(t, DTYPE_I32, m->experts + 1, 1);
    bench_gradients(t, 1, variant & 512);
    if (variant & 2048) t->call.grad_in[0] = (struct tensor){0};
}

// Broken numbers: NaN and infinity among the logits, and in all of them.
static inline void case_broken_route(struct bench *t, int variant) {
    case_big_route(t, variant);
    const struct tensor *z = &t->call.in[0];
    for (int64_t r = 0; r < z->rows; r++) {
        for (int64_t e = 0; e < z->cols; e++) {
            if (r % 4 == 1 || (r % 4 == 2 && e % 5 == 3)) bench_set(t->image, z, r, e, NAN);
            if (r % 4 == 3 && e % 5 == 3) bench_set(t->image, z, r, e, e % 2 ? INFINITY : -INFINITY);
        }
    }
}

static inline void case_big_balance(struct bench *t, int variant) {
    enum { ROWS = 333, EXPERTS = 70 };
    int32_t lengths[ROWS];
    for (int i = 0; i < ROWS; i++) lengths[i] = i % 11 == 4 ? 0 : 5;
    struct step_scalars scalars = case_scalars();
    scalars.micro_batches = 3;
    t->call.op = OP_MOE_BALANCE;
    t->call.scalars = bench_scalars(t, &scalars);
    t->call.in[0] = bench_act(t, ROWS, EXPERTS);
    t->call.in[1] = bench_i32(t, lengths, ROWS, 1);
    t->call.out[0] = t->call.in[0];
    t->call.p.balance = (struct moe_balance){
        .sums = bench_values(t, DTYPE_F32, 3, 2 * EXPERTS), .row = variant ? 2 : 0, .used = 5, .weight = 0.01f};
    for (int64_t l = 0; l < 3; l++) { // of the layers before
        for (int64_t e = 0; e < EXPERTS; e++)
            bench_set(t->image, &t->call.p.balance.sums, l, e, (double)((e * 7 + l) % 50));
    }
    bench_gradients(t, 1, variant);
    if (variant) t->call.grad_out[0] = (struct tensor){0};
}

// --- rows

// Expert of each pair: bit 0 .. 1 of `kind`: 0 uneven, expert 1 gets none; 1: all go to the last but one; 2: even.
static inline int64_t big_expert(int64_t pair, int64_t experts, int kind) {
    if (kind == 1) return experts > 1 ? experts - 2 : 0;
    if (kind == 2) return pair % experts;
    int64_t e = (pair * pair * 7 + pair / 3) % (2 * experts);
    e = e < experts ? e : e / 4;
    return e == 1 && experts > 1 ? 0 : e;
}

static inline struct tensor big_map(struct bench *t, int64_t pairs, int64_t experts, int kind) {
    struct tensor map = bench_tensor(t, DTYPE_I32, pairs, 2);
    int64_t place = 0;
    for (int64_t e = 0; e < experts; e++) {
        for (int64_t p = 0; p < pairs; p++) {
            if (big_expert(p, experts, kind) != e) continue;
            bench_set(t->image, &map, place, 0, (double)p);
            bench_set(t->image, &map, p, 1, (double)place++);
        }
    }
    return map;
}

// bit 0: no weights, bit 1: acc, bit 2: narrow, bit 3: the weights have no gradient, bit 4: the rows have none, bit 5:
// no token
static inline void case_big_rows(struct bench *t, int variant, bool gather) {
    int64_t rows = variant & 32 ? 0 : 61, used = 6, cols = variant & 4 ? 3 : 520;
    t->call.op = gather ? OP_MOE_GATHER : OP_MOE_COMBINE;
    t->call.p.moe_rows.used = (int)used;
    t->call.in[0] = bench_act(t, gather ? rows : rows * used, cols);
    if (!(variant & 1)) t->call.in[1] = bench_stat(t, rows, used);
    t->call.in[2] = big_map(t, rows * used, 64, 0);
    if (gather) t->call.in[3] = bench_keys(t, rows);
    t->call.out[0] = bench_act(t, gather ? rows * used : rows, cols);
    if (gather) t->call.out[1] = bench_tensor(t, DTYPE_U32, rows * used, 2);
    bench_gradients(t, 1, variant & 2);
    if (variant & 8) t->call.grad_in[1] = (struct tensor){0};
    if (variant & 16) t->call.grad_in[0] = (struct tensor){0};
}
static inline void case_big_gather(struct bench *t, int variant) {
    case_big_rows(t, variant, true);
}
static inline void case_big_combine(struct bench *t, int variant) {
    case_big_rows(t, variant, false);
}

static inline void case_big_gate(struct bench *t, int variant) {
    t->call.op = OP_GATE;
    t->call.in[0] = bench_act(t, 70, 1032);
    t->call.in[1] = bench_act(t, 70, 1);
    t->call.out[0] = bench_act(t, 70, 1032);
    bench_gradients(t, 1, variant & 2);
    if (variant & 4) t->call.grad_in[0] = (struct tensor){0};
}

// bit 1: acc, bit 2: no gradient of v, bit 3: none of k, bit 4: no v
static inline void case_big_keys(struct bench *t, int variant) {
    int64_t rows = 37, heads = 5, nope = 64, width = variant & 16 ? 0 : 32, turned = 16;
    t->call.op = OP_MLA_KEYS;
    t->call.p.mla.heads = (int)heads, t->call.p.mla.nope = (int)nope, t->call.p.mla.v_dim = (int)width;
    t->call.in[0] = bench_act(t, rows, heads * (nope + width));
    t->call.in[1] = bench_act(t, rows, turned);
    t->call.out[0] = bench_act(t, rows, heads * (nope + turned));
    if (width) t->call.out[1] = bench_act(t, rows, heads * width);
    bench_gradients(t, width ? 2 : 1, variant & 2);
    if (variant & 4) t->call.grad_out[1] = (struct tensor){0};
    if (variant & 8) t->call.grad_out[0] = t->call.grad_in[1] = (struct tensor){0};
}

// --- linears

struct big_linear {
    int64_t rows, in, out, experts;
    int parts, spans, rank, kind; // kind: big_expert
    enum quant format;
    float dropout;
    bool bias, acc, scattered; // scattered: experts stand in the file in another order
    bool shared_a, no_dx, one_missing, frozen;
    bool apart; // each expert is a weight of its own, though their bytes follow one another
};
static const struct big_linear big_linears[] = {
    {.rows = 300,
     .in = 136,
     .out = 264,
     .experts = 5,
     .parts = 2,
     .spans = 1,
     .rank = 8,
     .format = QUANT_BF16,
     .bias = true},
    {.rows = 400,
     .in = 72,
     .out = 200,
     .experts = 3,
     .parts = 1,
     .spans = 1,
     .rank = 16,
     .kind = 1,
     .format = QUANT_F32,
     .acc = true}, // 128 x 128, several tiles of rows
    {.rows = 1100,
     .in = 24,
     .out = 136,
     .experts = 9,
     .parts = 1,
     .spans = 0,
     .rank = 0,
     .kind = 1,
     .format = QUANT_BF16,
     .bias = true}, // two bands
    {.rows = 300,
     .in = 24,
     .out = 40,
     .experts = 64,
     .parts = 1,
     .spans = 1,
     .rank = 1,
     .format = QUANT_BF16,
     .dropout = 0.3f,
     .acc = true},
    {.rows = 210,
     .in = 33,
     .out = 45,
     .experts = 70,
     .parts = 2,
     .spans = 1,
     .rank = 20,
     .format = QUANT_BF16,
     .bias = true,
     .scattered = true}, // tables, two launches
    {.rows = 210,
     .in = 33,
     .out = 45,
     .experts = 70,
     .parts = 2,
     .spans = 1,
     .rank = 20,
     .format = QUANT_F32,
     .bias = true,
     .acc = true,
     .scattered = true},
    {.rows = 200,
     .in = 70,
     .out = 150,
     .experts = 4,
     .parts = 2,
     .spans = 1,
     .rank = 20,
     .format = QUANT_F16,
     .dropout = 0.25f,
     .bias = true,
     .acc = true},
    {.rows = 260,
     .in = 48,
     .out = 72,
     .experts = 2,
     .parts = 1,
     .spans = 1,
     .rank = 72,
     .kind = 2,
     .format = QUANT_BF16,
     .dropout = 0.1f}, // a rank above 32
    {.rows = 150,
     .in = 16,
     .out = 40,
     .experts = 4,
     .parts = 4,
     .spans = 2,
     .rank = 3,
     .format = QUANT_BF16,
     .dropout = 0.5f,
     .bias = true,
     .acc = true}, // more terms than a launch takes
    {.rows = 150,
     .in = 16,
     .out = 40,
     .experts = 4,
     .parts = 2,
     .spans = 1,
     .rank = 4,
     .format = QUANT_F32,
     .shared_a = true},
    {.rows = 150,
     .in = 16,
     .out = 40,
     .experts = 4,
     .parts = 2,
     .spans = 1,
     .rank = 4,
     .format = QUANT_F32,
     .dropout = 0.2f,
     .acc = true,
     .shared_a = true,
     .one_missing = true},
    {.rows = 150,
     .in = 16,
     .out = 40,
     .experts = 4,
     .parts = 2,
     .spans = 1,
     .rank = 4,
     .format = QUANT_BF16,
     .no_dx = true},
    {.rows = 150,
     .in = 16,
     .out = 40,
     .experts = 4,
     .parts = 1,
     .spans = 1,
     .rank = 4,
     .format = QUANT_BF16,
     .frozen = true},
    {.rows = 0,
     .in = 16,
     .out = 40,
     .experts = 4,
     .parts = 1,
     .spans = 1,
     .rank = 4,
     .format = QUANT_BF16,
     .bias = true},
    {.rows = 1,
     .in = 1,
     .out = 1,
     .experts = 1,
     .parts = 1,
     .spans = 1,
     .rank = 1,
     .kind = 2,
     .format = QUANT_F32,
     .bias = true},
    {.rows = 150, .in = 17, .out = 41, .experts = 5, .parts = 2, .format = QUANT_F32, .apart = true},
    {.rows = 150,
     .in = 17,
     .out = 41,
     .experts = 5,
     .parts = 2,
     .format = QUANT_BF16,
     .scattered = true,
     .apart = true},
    {.rows = 180, .in = 40, .out = 56, .experts = 3, .parts = 2, .spans = 1, .rank = 24, .format = QUANT_BF16},
    {.rows = 180,
     .in = 36,
     .out = 56,
     .experts = 3,
     .parts = 3,
     .spans = 1,
     .rank = 32,
     .format = QUANT_F32,
     .acc = true},
    {.rows = 180,
     .in = 96,
     .out = 56,
     .experts = 5,
     .parts = 2,
     .spans = 1,
     .rank = 8,
     .format = QUANT_Q8_0,
     .bias = true},
    {.rows = 120,
     .in = 64,
     .out = 24,
     .experts = 5,
     .format = QUANT_Q8_0,
     .parts = 1,
     .scattered = true,
     .apart = true},
};

// The experts of a part: rows of one matrix, in their order or not.
static inline const struct weight *big_experts(struct bench *t, const struct big_linear *c, int64_t out) {
    const struct weight *all = bench_weight(t, c->format, c->experts * out, c->in, 0);
    struct weight *w = pool_array(&t->pool, (uint64_t)c->experts, sizeof *w);
    bench_require(w, "memory");
    if (c->apart) t->n_weights--;
    for (int64_t e = 0; e < c->experts; e++) {
        w[e] = weight_rows(all, (c->scattered ? (e * 11 + 5) % c->experts : e) * out, out);
        if (!c->apart) continue;
        bench_require(t->n_weights < BENCH_TENSORS, "too many weights");
        t->weights[t->n_weights++] = &w[e];
    }
    return w;
}

static inline void big_spans(struct bench *t, const struct big_linear *c, int i, int64_t out, int64_t *u_cols) {
    struct linear_part *part = &t->call.p.linear.parts[i];
    int64_t pad = t->pad;
    t->pad = pad ? 1 : 0;
    for (int s = 0; s < c->spans; s++) {
        struct lora_span *span = &part->spans[part->n_spans++];
        *span = (struct lora_span){.row_end = c->rows,
                                   .scale = 0.75f,
                                   .module = (uint32_t)(4 * i + s),
                                   .dropout = s ? 0 : c->dropout,
                                   .u_begin = *u_cols,
                                   .a = bench_values(t, DTYPE_F32, c->experts * c->rank, c->in),
                                   .b = bench_values(t, DTYPE_F32, c->experts * out, c->rank)};
        if (c->spans == 2) span->row_begin = s ? c->rows / 3 : 0, span->row_end = s ? c->rows : c->rows / 3;
        if (!c->frozen) {
            span->da = bench_values(t, DTYPE_F32, c->experts * c->rank, c->in);
            span->db = bench_values(t, DTYPE_F32, c->experts * out, c->rank);
        }
        *u_cols += c->rank;
        if (!c->shared_a || i == 0) continue;
        const struct lora_span *first = &t->call.p.linear.parts[0].spans[s];
        span->a = first->a, span->da = first->da, span->u_begin = first->u_begin, span->module = first->module;
    }
    t->pad = pad;
}

static inline void case_big_linear(struct bench *t, int variant) {
    const struct big_linear *c = &big_linears[variant];
    struct op_call *call = &t->call;
    int64_t u_cols = 0;
    call->op = OP_MOE_LINEAR_GROUP;
    call->in[0] = bench_act(t, c->rows, c->in);
    call->in[1] = bench_tensor(t, DTYPE_I32, c->experts + 1, 1);
    for (int64_t e = 0, sum = 0; e <= c->experts; e++) {
        bench_set(t->image, &call->in[1], e, 0, (double)sum);
        for (int64_t p = 0; p < c->rows; p++) sum += big_expert(p, c->experts, c->kind) == e;
    }
    call->in[2] = bench_keys(t, c->rows);
    struct step_scalars scalars = case_scalars();
    call->scalars = bench_scalars(t, &scalars);
    call->p.linear.n_parts = c->parts;
    call->p.linear.experts = (int)c->experts;
    for (int i = 0; i < c->parts; i++) {
        int64_t out = c->out - 7 * i > 0 ? c->out - 7 * i : 1;
        call->p.linear.parts[i].w = big_experts(t, c, out);
        if (c->bias) call->p.linear.parts[i].bias = bench_weight(t, QUANT_F32, c->experts, out, 0);
        call->out[i] = bench_act(t, c->rows, out);
        if (c->spans) big_spans(t, c, i, out, &u_cols);
    }
    if (u_cols) call->saved[0] = bench_stat(t, c->rows, u_cols);
    bench_gradients(t, c->parts, c->acc);
    if (c->no_dx) call->grad_in[0] = (struct tensor){0};
    if (c->one_missing) call->grad_out[0] = (struct tensor){0};
}

static const struct op_case moe_cases[] = {
    {"route 64 softmax", OP_MOE_ROUTE, case_big_route, 0 + 2048},
    {"route 70 groups bias", OP_MOE_ROUTE, case_big_route, 1 + 256 + 2048},
    {"route 40 chosen", OP_MOE_ROUTE, case_big_route, 2 + 2048},
    {"route 300 sigmoid groups bias", OP_MOE_ROUTE, case_big_route, 3 + 256 + 2048},
    {"route 300 sigmoid groups acc", OP_MOE_ROUTE, case_big_route, 3 + 512},
    {"route 48 sparse", OP_MOE_ROUTE, case_big_route, 4 + 2048},
    {"route 48 sparse acc", OP_MOE_ROUTE, case_big_route, 4 + 512},
    {"route 9 sparse normalised", OP_MOE_ROUTE, case_big_route, 5},
    {"route 17 chosen acc", OP_MOE_ROUTE, case_big_route, 6 + 512},
    {"route 35 groups bias", OP_MOE_ROUTE, case_big_route, 7 + 256},
    {"route 1", OP_MOE_ROUTE, case_big_route, 8},
    {"route nobody", OP_MOE_ROUTE, case_big_route, 1024},
    {"balance 70", OP_MOE_BALANCE, case_big_balance, 0},
    {"balance 70 alone acc", OP_MOE_BALANCE, case_big_balance, 1},
    {"gather wide", OP_MOE_GATHER, case_big_gather, 0},
    {"gather narrow acc", OP_MOE_GATHER, case_big_gather, 2 + 4},
    {"gather frozen weights acc", OP_MOE_GATHER, case_big_gather, 2 + 8},
    {"gather only weights", OP_MOE_GATHER, case_big_gather, 16},
    {"gather nobody", OP_MOE_GATHER, case_big_gather, 32},
    {"combine wide", OP_MOE_COMBINE, case_big_combine, 0},
    {"combine narrow acc", OP_MOE_COMBINE, case_big_combine, 2 + 4},
    {"combine frozen weights acc", OP_MOE_COMBINE, case_big_combine, 2 + 8},
    {"combine only weights acc", OP_MOE_COMBINE, case_big_combine, 2 + 16},
    {"combine nobody", OP_MOE_COMBINE, case_big_combine, 32},
    {"gate wide", OP_GATE, case_big_gate, 0},
    {"gate wide acc", OP_GATE, case_big_gate, 2},
    {"gate wide frozen", OP_GATE, case_big_gate, 4},
    {"keys wide", OP_MLA_KEYS, case_big_keys, 0},
    {"keys wide acc", OP_MLA_KEYS, case_big_keys, 2},
    {"keys wide without gradient of v", OP_MLA_KEYS, case_big_keys, 4},
    {"keys wide without gradient of k acc", OP_MLA_KEYS, case_big_keys, 2 + 8},
    {"keys wide alone", OP_MLA_KEYS, case_big_keys, 16},
    {"linear two parts bias", OP_MOE_LINEAR_GROUP, case_big_linear, 0},
    {"linear all to one acc", OP_MOE_LINEAR_GROUP, case_big_linear, 1},
    {"linear two bands", OP_MOE_LINEAR_GROUP, case_big_linear, 2},
    {"linear 64 experts rank 1 dropout acc", OP_MOE_LINEAR_GROUP, case_big_linear, 3},
    {"linear 70 scattered experts rank 20", OP_MOE_LINEAR_GROUP, case_big_linear, 4},
    {"linear 70 scattered f32 experts acc", OP_MOE_LINEAR_GROUP, case_big_linear, 5},
    {"linear f16 dropout bias acc", OP_MOE_LINEAR_GROUP, case_big_linear, 6},
    {"linear rank 72 dropout", OP_MOE_LINEAR_GROUP, case_big_linear, 7},
    {"linear four parts eight spans acc", OP_MOE_LINEAR_GROUP, case_big_linear, 8},
    {"linear shared A", OP_MOE_LINEAR_GROUP, case_big_linear, 9},
    {"linear shared A of a missing part acc", OP_MOE_LINEAR_GROUP, case_big_linear, 10},
    {"linear without dx", OP_MOE_LINEAR_GROUP, case_big_linear, 11},
    {"linear frozen adapter", OP_MOE_LINEAR_GROUP, case_big_linear, 12},
    {"linear nobody", OP_MOE_LINEAR_GROUP, case_big_linear, 13},
    {"linear one", OP_MOE_LINEAR_GROUP, case_big_linear, 14},
    {"linear experts apart", OP_MOE_LINEAR_GROUP, case_big_linear, 15},
    {"linear scattered experts apart", OP_MOE_LINEAR_GROUP, case_big_linear, 16},
    {"linear two neighbours", OP_MOE_LINEAR_GROUP, case_big_linear, 17},
    {"linear three neighbours acc", OP_MOE_LINEAR_GROUP, case_big_linear, 18},
    {"linear q8_0", OP_MOE_LINEAR_GROUP, case_big_linear, 19},
    {"linear q8_0 scattered", OP_MOE_LINEAR_GROUP, case_big_linear, 20},
};
