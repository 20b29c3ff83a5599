// The CUDA backend against the reference loops: every op, in f32 and bf16, rows close together and apart. Runs on the
// host (tests/cuda_host) unless GRAFT_TEST_GPU is set; then on the GPU.
#include "tests/cuda_open.h"
#include "tests/cuda_cases_moe.h"
#include "tests/cuda_cases_attention.h"
#include "tests/op_compare.h"
#include "tests/row_cases.h"

#define TOLERANCE 3e-6

// As compare_run, on a device of its own, since weights are copied when it is opened.
static struct bench *run_on_device(const struct op_case *c, enum dtype act, int64_t pad) {
    struct error err = {0};
    struct bench *t = bench_open(act, pad);
    c->build(t, c->variant);
    bench_keep(t);
    cuda_choose_plugin();
    struct bench_runner r = {.backend = backend_open_cuda(&err),
                             .all = {.dtype = DTYPE_U8, .rows = 1, .cols = BENCH_BYTES, .ld = BENCH_BYTES}};
    CHECK_MSG(r.backend, "%s", err.text);
    if (!r.backend) return t;
    backend_set_weights(r.backend, t->weights, t->n_weights, 1);
    bool backward = op_table[c->op].differentiable != 0;
    bool good = r.backend->class->reserve(r.backend, BENCH_BYTES, &err) == 0 && op_check(&t->call, &err) == 0 &&
                bench_run(t, &r, BENCH_FORWARD, &err) == 0 &&
                (!backward || bench_run(t, &r, BENCH_BACKWARD, &err) == 0);
    CHECK_MSG(good, "%s, cuda: %s", c->name, err.text);
    bench_check_canaries(t, c->name);
    backend_close(r.backend);
    return t;
}

static void compare_device(const struct op_case *c, enum dtype act, int64_t pad, double tolerance) {
    struct bench *want = compare_run(c, act, pad, "reference", 1), *got = run_on_device(c, act, pad);
    for (int k = 0; k < got->n_tensors; k++) {
        if (got->tensors[k].dtype == DTYPE_U8) continue;
        double d = bench_difference(got->image, want->image, &got->tensors[k]);
        CHECK_MSG(d <= tolerance, "%s, %s, pad %d: tensor %d is off by %.3g of its largest", c->name, dtype_name(act),
                  (int)pad, k, d);
    }
    bench_close(got);
    bench_close(want);
}

static void compare_case_on_device(const struct op_case *c) {
    compare_device(c, DTYPE_F32, 0, TOLERANCE);
    compare_device(c, DTYPE_F32, 3, TOLERANCE);
    compare_device(c, DTYPE_BF16, 0, 8e-3);
    compare_device(c, DTYPE_BF16, 5, 8e-3);
}

static void compare_op(enum op op) {
    for (size_t i = 0; i < COUNT_OF(row_cases); i++)
        if (row_cases[i].op == op) compare_case_on_device(&row_cases[i]);
    for (size_t i = 0; i < COUNT_OF(op_cases); i++)
        if (op_cases[i].op == op) compare_case_on_device(&op_cases[i]);
    for (size_t i = 0; i < COUNT_OF(moe_cases); i++)
        if (moe_cases[i].op == op) compare_case_on_device(&moe_cases[i]);
}

TEST(test_norms) {
    compare_op(OP_NORM);
    compare_op(OP_ADD_NORM);
}
TEST(test_sums_and_activations) {
    compare_op(OP_ADD);
    compare_op(OP_GLU);
    compare_op(OP_ACT);
}
TEST(test_rope) {
    compare_op(OP_ROPE);
}
TEST(test_linears) {
    compare_op(OP_LINEAR_GROUP);
}
TEST(test_copies) {
    compare_op(OP_COPY);
    compare_op(OP_FILL);
    compare_op(OP_KV_WRITE);
}

TEST(test_mixtures_routing) {
    compare_op(OP_MOE_ROUTE);
    compare_op(OP_MOE_BALANCE);
}
// Whatever the logits, every pair has a place of its own, among the rows of one of k different experts.
TEST(test_mixtures_of_broken_logits) {
    for (int i = 0; i < (int)COUNT_OF(big_routes); i++) {
        struct op_case c = {"broken logits", OP_MOE_ROUTE, case_broken_route, i + 2048};
        struct bench *t = run_on_device(&c, DTYPE_BF16, 3);
        const struct tensor *map = &t->call.out[1], *offsets = &t->call.out[2];
        int64_t used = t->call.p.moe.used, before = -1;
        for (int64_t e = 0, from = 0; e < t->call.p.moe.experts; e++) {
            int64_t to = (int64_t)bench_get(t->image, offsets, e + 1, 0), last = -1;
            CHECK(from == (int64_t)bench_get(t->image, offsets, e, 0) && to >= from && to <= map->rows);
            for (int64_t s = from; s < to && s < map->rows; s++) {
                int64_t pair = (int64_t)bench_get(t->image, map, s, 0);
                CHECK(pair >= 0 && pair < map->rows && pair / used > last);
                if (pair < 0 || pair >= map->rows) break;
                CHECK((int64_t)bench_get(t->image, map, pair, 1) == s);
                last = pair / used;
            }
            before = from = to;
        }
        CHECK(before == map->rows);
        bench_close(t);
    }
}
TEST(test_mixtures_rows) {
    compare_op(OP_MOE_GATHER);
    compare_op(OP_MOE_COMBINE);
    compare_op(OP_GATE);
    compare_op(OP_MLA_KEYS);
}
TEST(test_mixtures_linears) {
    compare_op(OP_MOE_LINEAR_GROUP);
}

TEST(test_attention) {
    compare_op(OP_ATTENTION);
}

static void compare_attention(void (*build)(struct bench *t, int variant), const char *kind, int variant, int64_t pad,
                              enum dtype act) {
    char name[48];
    snprintf(name, sizeof name, "attention, %s shape %d", kind, variant);
    struct op_case c = {name, OP_ATTENTION, build, variant};
    compare_device(&c, act, pad, act == DTYPE_F32 ? TOLERANCE : 8e-3);
}

// Rows of bf16 are copied by 16 bytes where a head and the distance of rows (pad 0 or 8) allow it.
TEST(test_attention_of_several_tiles) {
    for (int i = 0; i < (int)COUNT_OF(attention_large_shapes); i++) {
        compare_attention(case_attention_large, "large", i, 0, DTYPE_F32);
        compare_attention(case_attention_large, "large", i, i % 2 ? 3 : 8, DTYPE_BF16);
    }
    for (int i = 0; i < (int)COUNT_OF(cuda_attention_shapes); i++) {
        compare_attention(case_cuda_attention, "cuda", i, i % 2 ? 3 : 0, DTYPE_F32);
        compare_attention(case_cuda_attention, "cuda", i, 0, DTYPE_BF16);
        if (i < 3) compare_attention(case_cuda_attention, "cuda", i, 5, DTYPE_BF16);
    }
}

TEST(test_attention_edges) {
    cuda_choose_plugin();
    cuda_attention_gradients_left_out(case_attention, 9, DTYPE_F32);
    cuda_attention_gradients_left_out(case_attention, 9, DTYPE_BF16);
    cuda_attention_gradients_left_out(case_attention_large, 5, DTYPE_BF16); // wide: dK and dV apart
    cuda_attention_nan_passes(DTYPE_F32);
    cuda_attention_nan_passes(DTYPE_BF16);
    cuda_attention_bad_sequence(0, 10, 0, 9);
    cuda_attention_bad_sequence(-1, 3, 0, 3);
    cuda_attention_bad_sequence(0, 3, 7, 3);
    cuda_attention_bad_sequence(0, -3, 0, 3);
    cuda_attention_bad_sequence(2147483647, 2147483647, 0, 3);
    cuda_attention_large_scores();
}

#include "tests/cuda_cases_head.h"

TEST_MAIN(CASE(test_norms), CASE(test_sums_and_activations), CASE(test_rope), CASE(test_linears), CASE(test_copies),
          CASE(test_mixtures_routing), CASE(test_mixtures_of_broken_logits), CASE(test_mixtures_rows),
          CASE(test_mixtures_linears), CASE(test_attention), CASE(test_attention_of_several_tiles),
          CASE(test_attention_edges), CASE(test_embedding), CASE(test_head), CASE(test_head_gradients_elsewhere),
          CASE(test_logits), CASE(test_columns), CASE(test_dropout), CASE(test_gradient_norm), CASE(test_adamw),
          CASE(test_indices_outside), CASE(test_head_shows_nan))
