// Attention on the GPU: every padded width of its kernels, several tiles with tails on both sides, documents that begin
// and end inside of tiles.
#pragma once

#include "tests/attention_shapes.h"

static const struct attention_shape cuda_attention_shapes[] = {
    // 3 and 8 heads per KV head; documents of all sizes, gaps, an empty one
    {.heads = 3,
     .kv_heads = 1,
     .head_dim = 64,
     .v_dim = 64,
     .tq = 300,
     .tkv = 300,
     .n_seqs = 4,
     .seqs = {{3, 40, 3, 40}, {43, 0, 43, 0}, {50, 170, 50, 170}, {229, 71, 229, 71}}},
    {.heads = 8,
     .kv_heads = 1,
     .head_dim = 40,
     .v_dim = 64,
     .tq = 140,
     .tkv = 140,
     .acc = true,
     .n_seqs = 1,
     .seqs = {{1, 139, 1, 139}}},
    {.heads = 2,
     .kv_heads = 1,
     .head_dim = 80,
     .v_dim = 80,
     .tq = 200,
     .tkv = 200,
     .soft_cap = 3.0f,
     .n_seqs = 2,
     .seqs = {{0, 129, 0, 129}, {130, 70, 130, 70}}},
    {.heads = 2,
     .kv_heads = 2,
     .head_dim = 96,
     .v_dim = 96,
     .tq = 260,
     .tkv = 260,
     .window = 20,
     .acc = true,
     .n_seqs = 1,
     .seqs = {{0, 260, 0, 260}}},
    {.heads = 2,
     .kv_heads = 1,
     .head_dim = 128,
     .v_dim = 128,
     .tq = 270,
     .tkv = 270,
     .window = 100,
     .sinks = true,
     .n_seqs = 2,
     .seqs = {{0, 200, 0, 200}, {200, 69, 200, 69}}},
    {.heads = 2,
     .kv_heads = 2,
     .head_dim = 192,
     .v_dim = 128,
     .tq = 170,
     .tkv = 170,
     .n_seqs = 2,
     .seqs = {{100, 70, 100, 70}, {0, 99, 0, 99}}},
    {.heads = 2,
     .kv_heads = 1,
     .head_dim = 256,
     .v_dim = 256,
     .tq = 150,
     .tkv = 150,
     .chunk = 70,
     .soft_cap = 2.0f,
     .acc = true,
     .n_seqs = 1,
     .seqs = {{5, 145, 5, 145}}},
    {.heads = 1,
     .kv_heads = 1,
     .head_dim = 131,
     .v_dim = 200,
     .tq = 90,
     .tkv = 90,
     .sinks = true,
     .n_seqs = 1,
     .seqs = {{0, 90, 0, 90}}},
    // a cache: queries at the end of their keys, sequences in another order than their keys; more queries than keys
    {.heads = 2,
     .kv_heads = 1,
     .head_dim = 64,
     .v_dim = 64,
     .tq = 150,
     .tkv = 400,
     .n_seqs = 3,
     .seqs = {{0, 70, 210, 190}, {70, 60, 0, 200}, {131, 19, 201, 8}}},
    // generation over many keys, shared by several blocks: with sinks and a cap, wide heads, a sequence of no keys
    {.heads = 4,
     .kv_heads = 1,
     .head_dim = 128,
     .v_dim = 72,
     .tq = 5,
     .tkv = 1000,
     .soft_cap = 2.0f,
     .sinks = true,
     .n_seqs = 4,
     .seqs = {{0, 1, 0, 300}, {1, 1, 300, 0}, {2, 1, 310, 600}, {4, 1, 990, 10}}},
    {.heads = 1,
     .kv_heads = 1,
     .head_dim = 256,
     .v_dim = 256,
     .tq = 3,
     .tkv = 520,
     .window = 300,
     .n_seqs = 1,
     .seqs = {{0, 3, 10, 510}}},
    // so many KV heads that two of three heads go to one block
    {.heads = 396,
     .kv_heads = 132,
     .head_dim = 4,
     .v_dim = 3,
     .tq = 9,
     .tkv = 9,
     .acc = true,
     .n_seqs = 1,
     .seqs = {{0, 9, 0, 9}}},
};

static inline void case_cuda_attention(struct bench *t, int variant) {
    case_attention_shape(t, &cuda_attention_shapes[variant]);
}

// A pass of a call on the device, in place.
static inline bool cuda_attention_pass(struct bench *t, enum bench_pass pass) {
    struct error err = {0};
    struct bench_runner r = {.backend = backend_open_cuda(&err),
                             .all = {.dtype = DTYPE_U8, .rows = 1, .cols = BENCH_BYTES, .ld = BENCH_BYTES}};
    CHECK_MSG(r.backend, "%s", err.text);
    if (!r.backend) return false;
    backend_set_weights(r.backend, t->weights, t->n_weights, 1);
    bool good = r.backend->class->reserve(r.backend, BENCH_BYTES, &err) == 0 && bench_run(t, &r, pass, &err) == 0;
    CHECK_MSG(good, "attention, cuda: %s", err.text);
    backend_close(r.backend);
    return good;
}

// dq, dk or dv that nobody wants is left out, and the others are as before.
static inline void cuda_attention_gradients_left_out(void (*build)(struct bench *t, int variant), int variant,
                                                     enum dtype act) {
    struct bench *all = bench_open(act, 0);
    build(all, variant);
    if (!cuda_attention_pass(all, BENCH_FORWARD) || !cuda_attention_pass(all, BENCH_BACKWARD)) return;
    for (int left = 0; left < 3; left++) {
        struct bench *some = bench_open(act, 0);
        build(some, variant);
        struct tensor kept = some->call.grad_in[left];
        some->call.grad_in[left] = (struct tensor){0};
        bench_keep(some);
        if (cuda_attention_pass(some, BENCH_FORWARD) && cuda_attention_pass(some, BENCH_BACKWARD)) {
            for (int g = 0; g < 3; g++) {
                const struct tensor *x = g == left ? &kept : &all->call.grad_in[g];
                CHECK(bench_difference(some->image, g == left ? some->start : all->image, x) == 0);
            }
        }
        bench_close(some);
    }
    bench_close(all);
}

// A NaN in a query reaches its output and no other; one in a key or value reaches every query that sees it.
static inline void cuda_attention_nan_passes(enum dtype act) {
    for (int operand = 0; operand < 3; operand++) {
        struct bench *t = bench_open(act, 0);
        case_attention(t, 0); // five rows, one head
        bench_set(t->image, &t->call.in[operand], 2, 1, NAN);
        if (cuda_attention_pass(t, BENCH_FORWARD)) {
            CHECK(operand == 2 || isfinite(bench_get(t->image, &t->call.out[0], 1, 1)));
            CHECK_MSG(isnan(bench_get(t->image, &t->call.out[0], 2, 1)), "NaN in operand %d is lost", operand);
            CHECK(isnan(bench_get(t->image, &t->call.out[0], 4, 1)) == (operand != 0));
        }
        bench_close(t);
    }
}

// Rows of a sequence that lies outside of the tensors become NaN, and nothing outside is touched.
static inline void cuda_attention_bad_sequence(int32_t q_begin, int32_t q_len, int32_t kv_begin, int32_t kv_len) {
    const int32_t seq[4] = {q_begin, q_len, kv_begin, kv_len};
    struct bench *t = bench_open(DTYPE_F32, 0);
    case_attention(t, 1); // nine rows
    for (int k = 0; k < 4; k++) bench_set(t->image, &t->call.in[3], 0, k, seq[k]);
    if (cuda_attention_pass(t, BENCH_FORWARD) && cuda_attention_pass(t, BENCH_BACKWARD)) {
        for (int64_t row = 0; row < 9; row++) {
            bool named = row >= q_begin && row - q_begin < q_len;
            CHECK(isnan(bench_get(t->image, &t->call.out[0], row, 3)) == named);
            CHECK(isnan(bench_get(t->image, &t->call.saved[0], row, 1)) == named);
            CHECK(bench_get(t->image, &t->call.grad_in[0], row, 3) == 0);
            CHECK(bench_get(t->image, &t->call.grad_in[1], row, 3) == 0);
        }
        bench_check_canaries(t, "a sequence outside of the rows");
    }
    bench_close(t);
}

// Scores far outside of the range of e^x.
static inline void cuda_attention_large_scores(void) {
    struct bench_runner reference;
    struct error err = {0};
    bench_require(bench_runner_open(&reference, "reference", 1), "reference");
    struct bench *t = bench_open(DTYPE_F32, 0), *want = bench_open(DTYPE_F32, 0);
    case_attention(t, 9);
    case_attention(want, 9);
    t->call.p.attention.scale = want->call.p.attention.scale = 2000.0f;
    CHECK(cuda_attention_pass(t, BENCH_FORWARD) && bench_run(want, &reference, BENCH_FORWARD, &err) == 0);
    CHECK(bench_difference(t->image, want->image, &t->call.out[0]) < 2e-3); // scores themselves are off by 1e-4
    bench_close(t);
    bench_close(want);
    bench_runner_close(&reference);
}
