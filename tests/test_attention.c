// Attention: every instruction set against the reference loops and against each other, at sizes with several blocks,
// and the promises that the gradient check does not reach.
#include "tests/attention_shapes.h"
#include "tests/op_compare.h"

#define TOLERANCE 6e-6

TEST(test_small_shapes) {
    for (size_t i = 0; i < COUNT_OF(op_cases); i++) {
        if (op_cases[i].op == OP_ATTENTION) compare_everywhere(&op_cases[i], TOLERANCE);
    }
}

TEST(test_large_shapes) {
    static char names[COUNT_OF(attention_large_shapes)][32];
    for (size_t i = 0; i < COUNT_OF(attention_large_shapes); i++) {
        snprintf(names[i], sizeof names[i], "large shape %d", (int)i);
        struct op_case c = {names[i], OP_ATTENTION, case_attention_large, (int)i};
        compare_case(&c, DTYPE_F32, 0, TOLERANCE);
        compare_case(&c, DTYPE_BF16, 3, 8e-3);
    }
}

// Runs the forward pass of a shape; the caller closes the bench.
static struct bench *forward_of(const struct attention_shape *s, const char *set, int threads) {
    struct bench_runner r;
    struct error err = {0};
    bench_require(bench_runner_open(&r, set, threads), set);
    struct bench *t = bench_open(DTYPE_F32, 0);
    case_attention_shape(t, s);
    bench_keep(t);
    CHECK_MSG(bench_run(t, &r, BENCH_FORWARD, &err) == 0, "%s", err.text);
    bench_runner_close(&r);
    return t;
}

// Rows in no sequence: zeros, in the forward and the backward pass.
TEST(test_rows_of_no_sequence) {
    struct op_case c = {"packed", OP_ATTENTION, case_attention, 2};
    static const char *const sets[] = {"reference", "c", "avx2", "avx512"};
    for (size_t i = 0; i < COUNT_OF(sets); i++) {
        struct bench_runner r;
        struct error err = {0};
        if (!bench_runner_open(&r, sets[i], 2)) continue;
        struct bench *t = bench_open(DTYPE_F32, 0);
        c.build(t, c.variant);
        for (int k = 0; k < 3; k++) t->call.acc[k] = false;
        CHECK(bench_run(t, &r, BENCH_FORWARD, &err) == 0 && bench_run(t, &r, BENCH_BACKWARD, &err) == 0);
        static const int64_t outside[] = {4, 12, 13};
        for (size_t k = 0; k < COUNT_OF(outside); k++) {
            CHECK(bench_get(t->image, &t->call.out[0], outside[k], 0) == 0);
            CHECK(bench_get(t->image, &t->call.saved[0], outside[k], 1) == 0);
            for (int g = 0; g < 3; g++) CHECK(bench_get(t->image, &t->call.grad_in[g], outside[k], 1) == 0);
        }
        CHECK(bench_get(t->image, &t->call.out[0], 5, 0) != 0);
        bench_close(t);
        bench_runner_close(&r);
    }
}

// The last query of a prefill and the same query alone over the cache give the same bits: a generated token does not
// depend on how its prompt was cut. Nor does a document depend on its neighbours in a pack.
TEST(test_bits_do_not_depend_on_the_split) {
    static const struct attention_shape whole = {.heads = 3,
                                                 .kv_heads = 1,
                                                 .head_dim = 24,
                                                 .v_dim = 24,
                                                 .tq = 150,
                                                 .tkv = 150,
                                                 .n_seqs = 1,
                                                 .seqs = {{0, 150, 0, 150}}};
    struct attention_shape alone = whole, packed = whole;
    alone.seqs[0][0] = 149, alone.seqs[0][1] = 1; // the same tensors, one query
    packed.n_seqs = 2;
    packed.seqs[0][1] = packed.seqs[0][3] = 100;
    packed.seqs[1][0] = packed.seqs[1][2] = 100;
    packed.seqs[1][1] = packed.seqs[1][3] = 50;
    static const char *const sets[] = {"c", "avx2", "avx512"};
    for (size_t i = 0; i < COUNT_OF(sets); i++) {
        struct bench_runner r;
        if (!bench_runner_open(&r, sets[i], 1)) continue;
        bench_runner_close(&r);
        struct bench *a = forward_of(&whole, sets[i], 2), *b = forward_of(&alone, sets[i], 3),
                     *p = forward_of(&packed, sets[i], 2);
        for (int64_t c = 0; c < 72; c++) {
            CHECK(bench_get(a->image, &a->call.out[0], 149, c) == bench_get(b->image, &b->call.out[0], 149, c));
            CHECK(bench_get(a->image, &a->call.out[0], 99, c) == bench_get(p->image, &p->call.out[0], 99, c));
        }
        bench_close(a);
        bench_close(b);
        bench_close(p);
    }
}

// dq, dk or dv that nobody wants is left out, and the others are as before.
TEST(test_gradients_left_out) {
    static const char *const sets[] = {"reference", "c", "avx2", "avx512"};
    for (size_t i = 0; i < COUNT_OF(sets); i++) {
        for (int left = 0; left < 3; left++) {
            struct bench_runner r;
            struct error err = {0};
            if (!bench_runner_open(&r, sets[i], 2)) continue;
            struct bench *all = bench_open(DTYPE_F32, 0), *some = bench_open(DTYPE_F32, 0);
            case_attention(all, 9);
            case_attention(some, 9);
            struct tensor kept = some->call.grad_in[left];
            some->call.grad_in[left] = (struct tensor){0};
            CHECK(bench_run(all, &r, BENCH_FORWARD, &err) == 0 && bench_run(all, &r, BENCH_BACKWARD, &err) == 0);
            CHECK(bench_run(some, &r, BENCH_FORWARD, &err) == 0);
            bench_keep(some);
            CHECK_MSG(bench_run(some, &r, BENCH_BACKWARD, &err) == 0, "%s", err.text);
            for (int g = 0; g < 3; g++) {
                const struct tensor *x = g == left ? &kept : &all->call.grad_in[g];
                CHECK(bench_difference(some->image, g == left ? some->start : all->image, x) == 0);
            }
            bench_close(all);
            bench_close(some);
            bench_runner_close(&r);
        }
    }
}

static void expect_refused(const int32_t seq[4], const int32_t second[4], bool backward, const char *what) {
    static const char *const sets[] = {"c", "avx2", "avx512"};
    for (size_t i = 0; i < COUNT_OF(sets); i++) {
        struct bench_runner r;
        struct error err = {0};
        if (!bench_runner_open(&r, sets[i], 2)) continue;
        struct bench *t = bench_open(DTYPE_F32, 0);
        case_attention(t, 1); // nine rows
        for (int k = 0; k < 4; k++) {
            bench_set(t->image, &t->call.in[3], 0, k, seq[k]);
            bench_set(t->image, &t->call.in[3], 1, k, second[k]);
        }
        int status = bench_run(t, &r, backward ? BENCH_BACKWARD : BENCH_FORWARD, &err);
        CHECK_MSG(status != 0 && err.code == STATUS_INTERNAL, "%s was accepted", what);
        bench_close(t);
        bench_runner_close(&r);
    }
}

TEST(test_bad_sequences) {
    static const int32_t none[4] = {0}, good[4] = {0, 5, 0, 5};
    expect_refused((int32_t[4]){0, 10, 0, 9}, none, false, "more queries than rows");
    expect_refused((int32_t[4]){-1, 3, 0, 3}, none, false, "negative begin");
    expect_refused((int32_t[4]){0, -3, 0, 3}, none, false, "negative length");
    expect_refused((int32_t[4]){0, 3, 7, 3}, none, false, "keys past the end");
    expect_refused((int32_t[4]){2147483647, 2147483647, 0, 3}, none, false, "huge numbers");
    expect_refused(good, (int32_t[4]){4, 2, 4, 2}, false, "queries of two sequences");
    expect_refused(good, (int32_t[4]){5, 2, 4, 2}, true, "gradients of shared keys");
}

// A NaN in a query reaches its output and no other; one in a key or value reaches every query that sees it.
TEST(test_nan_passes) {
    static const char *const sets[] = {"c", "avx2", "avx512"};
    for (size_t i = 0; i < COUNT_OF(sets); i++) {
        for (int operand = 0; operand < 3; operand++) {
            struct bench_runner r;
            struct error err = {0};
            if (!bench_runner_open(&r, sets[i], 2)) continue;
            struct bench *t = bench_open(DTYPE_F32, 0);
            case_attention(t, 0); // five rows, one head
            bench_set(t->image, &t->call.in[operand], 2, 1, NAN);
            CHECK(bench_run(t, &r, BENCH_FORWARD, &err) == 0);
            // (a key's value is multiplied by 0 for the queries before it, which does not silence a NaN)
            CHECK(operand == 2 || isfinite(bench_get(t->image, &t->call.out[0], 1, 1)));
            CHECK_MSG(isnan(bench_get(t->image, &t->call.out[0], 2, 1)), "%s: NaN in operand %d is lost", sets[i],
                      operand);
            CHECK(isnan(bench_get(t->image, &t->call.out[0], 4, 1)) == (operand != 0));
            bench_close(t);
            bench_runner_close(&r);
        }
    }
}

// Scores far outside of the range of e^x.
TEST(test_large_scores) {
    static const char *const sets[] = {"c", "avx2", "avx512"};
    for (size_t i = 0; i < COUNT_OF(sets); i++) {
        struct bench_runner r, reference;
        struct error err = {0};
        if (!bench_runner_open(&r, sets[i], 2)) continue;
        bench_require(bench_runner_open(&reference, "reference", 1), "reference");
        struct bench *t = bench_open(DTYPE_F32, 0), *want = bench_open(DTYPE_F32, 0);
        case_attention(t, 9);
        case_attention(want, 9);
        t->call.p.attention.scale = want->call.p.attention.scale = 2000.0f;
        CHECK(bench_run(t, &r, BENCH_FORWARD, &err) == 0 && bench_run(want, &reference, BENCH_FORWARD, &err) == 0);
        CHECK(bench_difference(t->image, want->image, &t->call.out[0]) < 2e-3); // scores themselves are off by 1e-4
        bench_close(t);
        bench_close(want);
        bench_runner_close(&r);
        bench_runner_close(&reference);
    }
}

TEST_MAIN(CASE(test_small_shapes), CASE(test_large_shapes), CASE(test_rows_of_no_sequence),
          CASE(test_bits_do_not_depend_on_the_split), CASE(test_gradients_left_out), CASE(test_bad_sequences),
          CASE(test_nan_passes), CASE(test_large_scores))
