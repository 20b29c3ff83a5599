// The CUDA backend against the reference loops: every op, in f32 and bf16, rows close together and apart. Runs on the
// host (tests/cuda_host) unless GRAFT_TEST_GPU is set; then on the GPU.
#include "tests/op_compare.h"
#include "tests/row_cases.h"

#include <unistd.h>

#define TOLERANCE 3e-6

static void choose_plugin(void) {
    char path[4096];
    if (getenv("GRAFT_TEST_GPU")) return;
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 64);
    bench_require(n > 0, "where this program lies");
    path[n] = '\0';
    for (int i = 0; i < 2; i++) *strrchr(path, '/') = '\0';
    strcat(path, "/cuda_host/libgraft_cuda.so");
    setenv("GRAFT_CUDA_PLUGIN", path, 1);
}

// As compare_run, on a device of its own, since weights are copied when it is opened.
static struct bench *run_on_device(const struct op_case *c, enum dtype act, int64_t pad) {
    struct error err = {0};
    struct bench *t = bench_open(act, pad);
    c->build(t, c->variant);
    bench_keep(t);
    choose_plugin();
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
}

TEST(test_norms) {
    compare_op(OP_NORM);
    compare_op(OP_ADD_NORM);
}

#include "tests/cuda_cases_head.h"

TEST_MAIN(CASE(test_norms), CASE(test_embedding), CASE(test_head), CASE(test_head_gradients_elsewhere),
          CASE(test_logits), CASE(test_columns), CASE(test_dropout), CASE(test_gradient_norm), CASE(test_adamw),
          CASE(test_indices_outside), CASE(test_head_shows_nan))
