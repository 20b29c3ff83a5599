// Row kernels and the optimiser: every instruction set against the reference loops and against each other.
#include "tests/op_compare.h"
#include "tests/row_cases.h"

#define TOLERANCE 3e-6

static void compare_op(enum op op) {
    for (size_t i = 0; i < COUNT_OF(row_cases); i++) {
        if (row_cases[i].op == op) compare_everywhere(&row_cases[i], TOLERANCE);
    }
    for (size_t i = 0; i < COUNT_OF(op_cases); i++) {
        if (op_cases[i].op == op) compare_everywhere(&op_cases[i], TOLERANCE);
    }
}

TEST(test_embed) {
    compare_op(OP_EMBED);
}
TEST(test_norm) {
    compare_op(OP_NORM);
}
TEST(test_add_norm) {
    compare_op(OP_ADD_NORM);
}
TEST(test_add) {
    compare_op(OP_ADD);
}
TEST(test_glu) {
    compare_op(OP_GLU);
}
TEST(test_act) {
    compare_op(OP_ACT);
}
TEST(test_gate) {
    compare_op(OP_GATE);
}
TEST(test_mla_keys) {
    compare_op(OP_MLA_KEYS);
}
TEST(test_mixture_of_experts) {
    compare_op(OP_MOE_ROUTE);
    compare_op(OP_MOE_GATHER);
    compare_op(OP_MOE_COMBINE);
}
TEST(test_rope) {
    compare_op(OP_ROPE);
}
TEST(test_copies) {
    compare_op(OP_KV_WRITE);
    compare_op(OP_FILL);
    compare_op(OP_COPY);
    compare_op(OP_GRAD_ADD);
}

// --- passes that the comparison does not reach

// y recomputed from s and the saved statistics has the bits of the forward pass.
TEST(test_recompute) {
    static const int variants[] = {0, 1 + 4, 4 + 8};
    static const char *const sets[] = {"reference", "c", "avx2", "avx512"};
    for (size_t v = 0; v < COUNT_OF(variants) * 2; v++) {
        for (size_t i = 0; i < COUNT_OF(sets); i++) {
            struct bench_runner r;
            struct error err = {0};
            if (!bench_runner_open(&r, sets[i], 2)) continue;
            struct bench *t = bench_open(v % 2 ? DTYPE_BF16 : DTYPE_F32, 1);
            case_add_norm(t, variants[v / 2]);
            CHECK(bench_run(t, &r, BENCH_FORWARD, &err) == 0);
            bench_keep(t);
            struct tensor *y = &t->call.out[1];
            for (int64_t k = 0; k < y->rows * y->cols; k++) bench_set(t->image, y, k / y->cols, k % y->cols, 99);
            CHECK_MSG(bench_run(t, &r, BENCH_RECOMPUTE, &err) == 0, "%s", err.text);
            CHECK_MSG(memcmp(t->image, t->start, t->used) == 0, "%s: other bits", sets[i]);
            bench_close(t);
            bench_runner_close(&r);
        }
    }
}

// Ids, positions and slots that point outside are refused, not followed.
static void expect_refused(void (*build)(struct bench *, int), int variant, int operand, double value,
                           const char *what) {
    static const char *const sets[] = {"reference", "c", "avx2", "avx512"};
    for (size_t i = 0; i < COUNT_OF(sets); i++) {
        struct bench_runner r;
        struct error err = {0};
        if (!bench_runner_open(&r, sets[i], 2)) continue;
        struct bench *t = bench_open(DTYPE_F32, 0);
        build(t, variant);
        bench_set(t->image, &t->call.in[operand], 2, 0, value);
        CHECK_MSG(bench_run(t, &r, BENCH_FORWARD, &err) != 0, "%s with %g was not refused (%s)", what, value, sets[i]);
        CHECK_INT(err.code, STATUS_INTERNAL);
        bench_close(t);
        bench_runner_close(&r);
    }
}

TEST(test_indices_outside) {
    expect_refused(case_embed, 0, 0, 13, "id");
    expect_refused(case_embed, 0, 0, -1, "id");
    expect_refused(case_rope, 0, 2, 9, "position");
    expect_refused(case_rope, 1, 2, -1, "position");
    expect_refused(case_kv_write, 0, 2, 9, "slot");
}

// A NaN anywhere in a row reaches the outputs of the row: nothing hides it.
TEST(test_nan_passes) {
    for (size_t i = 0; i < COUNT_OF(compare_sets); i++) {
        for (int kind = 0; kind < 4; kind++) {
            struct bench_runner r;
            struct error err = {0};
            if (!bench_runner_open(&r, compare_sets[i], 1)) continue;
            struct bench *t = bench_open(DTYPE_F32, 0);
            if (kind < 2)
                case_glu(t, kind);
            else
                case_norm(t, kind - 2);
            bench_set(t->image, &t->call.in[0], 1, 20, NAN);
            CHECK(bench_run(t, &r, BENCH_FORWARD, &err) == 0);
            CHECK_MSG(isnan(bench_get(t->image, &t->call.out[0], 1, 20)), "%s, kind %d", compare_sets[i], kind);
            CHECK(isfinite(bench_get(t->image, &t->call.out[0], 2, 20)));
            bench_close(t);
            bench_runner_close(&r);
        }
    }
}

// --- optimiser

static struct step_scalars scalars_after(const struct bench *t) {
    struct step_scalars s;
    memcpy(&s, t->image + t->call.scalars.offset, sizeof s);
    return s;
}

TEST(test_grad_norm) {
    for (int variant = 0; variant < 16; variant++) {
        struct op_case c = {"grad_norm", OP_GRAD_NORM, case_grad_norm, variant};
        struct bench *want = compare_run(&c, DTYPE_F32, 0, "reference", 1), *first = NULL;
        struct step_scalars w = scalars_after(want);
        for (size_t i = 0; i < COUNT_OF(compare_sets); i++) {
            for (int threads = 1; threads <= BENCH_MAX_THREADS; threads++) {
                struct bench *got = compare_run(&c, DTYPE_F32, 0, compare_sets[i], threads);
                if (!got) break;
                struct step_scalars s = scalars_after(got);
                CHECK(s.nonfinite == (variant & 4 && !(variant & 8) ? 1 : w.nonfinite));
                CHECK(s.nonfinite == w.nonfinite);
                if (s.nonfinite == 0) {
                    CHECK_NEAR(s.grad_norm, w.grad_norm, 1e-12 * w.grad_norm);
                    CHECK_NEAR(s.clip_scale, w.clip_scale, 1e-12 * w.clip_scale);
                }
                if (first) compare_bits(&c, first, got, compare_sets[i]);
                if (first)
                    bench_close(got);
                else
                    first = got;
            }
        }
        if (!(variant & 12)) { // by hand: what torch's clip_grad_norm_ does with the average
            double square = 0;
            for (int64_t k = 0; k < want->call.in[0].cols; k++)
                square += pow(bench_get(want->image, &want->call.in[0], 0, k) / 7, 2);
            CHECK_NEAR(w.grad_norm, sqrt(square), 1e-12);
            double clip = variant & 2 ? fmin(1, 0.5 / (sqrt(square) + 1e-6)) : 1;
            CHECK_NEAR(w.clip_scale, clip / 7, 1e-12);
        }
        if (first) bench_close(first);
        bench_close(want);
    }
}

TEST(test_adamw) {
    for (int variant = 0; variant < 4; variant++) {
        struct op_case c = {"adamw", OP_ADAMW, case_adamw, variant};
        compare_case(&c, DTYPE_F32, 0, TOLERANCE);
        struct bench *t = compare_run(&c, DTYPE_F32, 0, "c", 1);
        if (variant & 2)
            CHECK(memcmp(t->image, t->start, t->used) == 0);
        else
            CHECK(memcmp(t->image, t->start, t->used) != 0);
        bench_close(t);
    }
}

// Three steps of torch.optim.AdamW(lr=0.1, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01) in plain double, from its
// published formulas.
TEST(test_adamw_formulas) {
    struct bench_runner r;
    struct error err = {0};
    bench_require(bench_runner_open(&r, "c", 1), "c kernels");
    struct bench *t = bench_open(DTYPE_F32, 0);
    static const struct param_group one = {0, 1, 1.0f, 0.01f};
    static const double gradient[] = {0.5, -1.0, 2.0};
    t->call.op = OP_ADAMW;
    t->call.in[0] = bench_tensor(t, DTYPE_F32, 1, 1);
    for (int i = 0; i < 3; i++)
        t->call.out[i] = bench_tensor(t, DTYPE_F32, 1, 1), bench_set(t->image, &t->call.out[i], 0, 0, 0);
    bench_set(t->image, &t->call.out[0], 0, 0, 1);
    struct step_scalars s = {.lr = 0.1, .clip_scale = 1};
    t->call.scalars = bench_scalars(t, &s);
    t->call.p.adamw.beta1 = 0.9, t->call.p.adamw.beta2 = 0.999, t->call.p.adamw.eps = 1e-8;
    t->call.p.adamw.n_groups = 1, t->call.p.adamw.groups = &one;
    double p = 1, m = 0, v = 0;
    for (int step = 1; step <= 3; step++) {
        double g = gradient[step - 1];
        s.step = step;
        memcpy(t->image + t->call.scalars.offset, &s, sizeof s);
        bench_set(t->image, &t->call.in[0], 0, 0, g);
        CHECK(bench_run(t, &r, BENCH_FORWARD, &err) == 0);
        p -= 0.1 * 0.01 * p;
        m += (g - m) * (1 - 0.9);
        v = v * 0.999 + (1 - 0.999) * g * g;
        double denominator = sqrt(v) / sqrt(1 - pow(0.999, step)) + 1e-8;
        p -= 0.1 / (1 - pow(0.9, step)) * m / denominator;
        CHECK_NEAR(bench_get(t->image, &t->call.out[0], 0, 0), p, 3e-7);
    }
    CHECK_NEAR(p, 0.89, 0.01); // it moved
    bench_close(t);
    bench_runner_close(&r);
}

TEST_MAIN(CASE(test_embed), CASE(test_norm), CASE(test_add_norm), CASE(test_add), CASE(test_glu), CASE(test_act),
          CASE(test_gate), CASE(test_mla_keys), CASE(test_mixture_of_experts), CASE(test_rope), CASE(test_copies),
          CASE(test_recompute), CASE(test_indices_outside), CASE(test_nan_passes), CASE(test_grad_norm),
          CASE(test_adamw), CASE(test_adamw_formulas))
