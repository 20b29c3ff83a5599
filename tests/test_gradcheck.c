// Every differentiable op: signed central differences in double of the reference loops, element by element, against the
// reference backward pass in double (tight) and against the fast kernels' backward pass in f32.
#include "tests/op_cases.h"

enum { MAX_GRADIENT = 4096 };
#define STEP           1e-5
#define TOLERANCE_F64  1e-7
#define TOLERANCE_FAST 2e-4

static const char *const fast_sets[] = {"c", "avx2", "avx512", "avx512bf16"};

// --- the checker

struct verdict {
    int wrong;      // elements off by more than tolerance * the largest
    int64_t first;  // the first of them
    double largest; // of the numeric gradient
    double error;   // the largest difference, relative to it
};

static struct verdict check_gradient(const double *numeric, const double *analytic, int64_t n, double tolerance) {
    struct verdict v = {.first = -1};
    for (int64_t i = 0; i < n; i++) v.largest = fmax(v.largest, fabs(numeric[i]));
    for (int64_t i = 0; i < n; i++) {
        double d = fabs(analytic[i] - numeric[i]) / (v.largest > 0 ? v.largest : 1);
        if (!(d <= tolerance)) { // a NaN is wrong
            if (v.wrong++ == 0) v.first = i;
        }
        if (!(d <= v.error)) v.error = d;
    }
    return v;
}

// --- what is differentiated

// A value and the tensor its gradient is found in.
struct slot {
    const char *what;
    struct tensor value, gradient;
    bool acc; // the gradient is added to what the start image holds
};

// The B of a part whose output has no gradient gets none.
static bool reached(const struct op_call *call, const struct tensor *value) {
    if (call->op != OP_LINEAR_GROUP && call->op != OP_MOE_LINEAR_GROUP) return true;
    for (int i = 0; i < call->p.linear.n_parts; i++) {
        for (int s = 0; s < call->p.linear.parts[i].n_spans; s++) {
            const struct lora_span *span = &call->p.linear.parts[i].spans[s];
            if (span->b.offset == value->offset && !tensor_present(&call->grad_out[i])) return false;
        }
    }
    return true;
}

static int slots_of(const struct bench *t, struct slot *slots) {
    static const char *const names[] = {"in 0", "in 1", "in 2", "in 3", "in 4", "in 5"};
    const struct op_call *call = &t->call;
    int n = 0;
    for (int i = 0; i < OP_MAX_IN; i++) {
        if (tensor_present(&call->grad_in[i]))
            slots[n++] = (struct slot){names[i], call->in[i], call->grad_in[i], call->acc[i]};
    }
    struct op_trained trained[OP_MAX_TRAINED];
    for (int i = 0, count = op_trained(call->op, &call->p, trained); i < count; i++) {
        bool seen = !tensor_present(&trained[i].gradient) || !reached(call, &trained[i].value);
        for (int k = 0; k < n; k++) seen |= slots[k].gradient.offset == trained[i].gradient.offset;
        if (!seen) slots[n++] = (struct slot){trained[i].what, trained[i].value, trained[i].gradient, true};
    }
    return n;
}

// sum of d loss / d out * out over the outputs, after a forward pass
static double loss_of(struct bench *t) {
    double loss = 0;
    for (int i = 0; i < OP_MAX_OUT; i++) {
        const struct tensor *out = &t->call.out[i];
        const struct tensor *weight = t->loss_weight[i] ? t->loss_weight[i] : &t->call.grad_out[i];
        if (!tensor_present(weight)) continue;
        for (int64_t r = 0; r < out->rows; r++) {
            for (int64_t c = 0; c < out->cols; c++) {
                loss += bench_get(t->image, out, r, c) * bench_get(t->start, weight, r, c);
            }
        }
    }
    return loss;
}

static double loss_with(struct bench *t, const struct bench_runner *r, const struct tensor *x, int64_t row, int64_t col,
                        double step, struct error *err) {
    bench_reset(t);
    bench_set(t->image, x, row, col, bench_get(t->image, x, row, col) + step);
    if (bench_run(t, r, BENCH_FORWARD, err)) return NAN;
    return loss_of(t);
}

static void numeric_gradient(struct bench *t, const struct bench_runner *r, const struct tensor *x, double *out,
                             struct error *err) {
    for (int64_t row = 0; row < x->rows; row++) {
        for (int64_t col = 0; col < x->cols; col++) {
            double above = loss_with(t, r, x, row, col, STEP, err), below = loss_with(t, r, x, row, col, -STEP, err);
            out[row * x->cols + col] = (above - below) / (2 * STEP);
        }
    }
}

// Forward and backward from the start image, then the gradient of one slot.
static int run_both(struct bench *t, const struct bench_runner *r, struct error *err) {
    bench_reset(t);
    return bench_run(t, r, BENCH_FORWARD, err) || bench_run(t, r, BENCH_BACKWARD, err) ? -1 : 0;
}

static void analytic_gradient(const struct bench *t, const struct slot *slot, double *out) {
    const struct tensor *g = &slot->gradient;
    for (int64_t row = 0; row < g->rows; row++) {
        for (int64_t col = 0; col < g->cols; col++) {
            out[row * g->cols + col] =
                bench_get(t->image, g, row, col) - (slot->acc ? bench_get(t->start, g, row, col) : 0);
        }
    }
}

static void judge(const struct op_case *c, const char *kernels, const struct slot *slot, const double *numeric,
                  const double *analytic, double tolerance) {
    int64_t n = slot->value.rows * slot->value.cols;
    struct verdict v = check_gradient(numeric, analytic, n, tolerance);
    CHECK_MSG(v.wrong == 0,
              "%s, %s, d %s: %d of %lld elements wrong, first %lld: %.9g, numeric %.9g; worst %.2g of largest", c->name,
              kernels, slot->what, v.wrong, (long long)n, (long long)v.first, v.wrong ? analytic[v.first] : 0,
              v.wrong ? numeric[v.first] : 0, v.error);
    CHECK_MSG(v.largest > 1e-6, "%s: the gradient of %s is nothing", c->name, slot->what);
}

// Numeric gradients of all slots lie one after another in numeric[].
static void check_fast(const struct op_case *c, const char *set, int64_t pad, const double *numeric) {
    static double analytic[MAX_GRADIENT];
    struct bench_runner r;
    struct error err = {0};
    if (!bench_runner_open(&r, set, 2)) return;
    struct bench *t = bench_open(DTYPE_F32, pad);
    c->build(t, c->variant);
    bench_keep(t);
    int status = run_both(t, &r, &err);
    CHECK_MSG(status == 0, "%s, %s: %s", c->name, set, err.text);
    struct slot slots[BENCH_TENSORS];
    int n = status ? 0 : slots_of(t, slots);
    for (int i = 0; i < n; i++) {
        analytic_gradient(t, &slots[i], analytic);
        judge(c, set, &slots[i], numeric, analytic, TOLERANCE_FAST);
        numeric += slots[i].value.rows * slots[i].value.cols;
    }
    bench_close(t);
    bench_runner_close(&r);
}

static void check_case(const struct op_case *c) {
    static double numeric[4 * MAX_GRADIENT], analytic[MAX_GRADIENT];
    struct bench_runner r;
    struct error err = {0};
    bench_require(bench_runner_open(&r, "reference", 1), "reference backend");
    struct bench *t = bench_open(DTYPE_F64, 2);
    c->build(t, c->variant);
    bench_keep(t);
    struct slot slots[BENCH_TENSORS];
    int n = slots_of(t, slots);
    CHECK(n > 0);
    double *at = numeric;
    for (int i = 0; i < n; i++) {
        int64_t count = slots[i].value.rows * slots[i].value.cols;
        bench_require(count <= MAX_GRADIENT && at + count <= numeric + COUNT_OF(numeric), "gradient too large");
        numeric_gradient(t, &r, &slots[i].value, at, &err);
        at += count;
    }
    int status = run_both(t, &r, &err);
    CHECK_MSG(status == 0, "%s: %s", c->name, err.text);
    at = numeric;
    for (int i = 0; i < n && !status; i++) {
        analytic_gradient(t, &slots[i], analytic);
        judge(c, "reference", &slots[i], at, analytic, TOLERANCE_F64);
        at += slots[i].value.rows * slots[i].value.cols;
    }
    bench_check_canaries(t, c->name);
    bench_close(t);
    bench_runner_close(&r);
    for (size_t i = 0; i < COUNT_OF(fast_sets) && !status; i++) check_fast(c, fast_sets[i], 0, numeric);
}

static void check_op(enum op op) {
    for (size_t i = 0; i < COUNT_OF(op_cases); i++) {
        if (op_cases[i].op == op) check_case(&op_cases[i]);
    }
}

TEST(test_norm) {
    check_op(OP_NORM);
}
TEST(test_add_norm) {
    check_op(OP_ADD_NORM);
}
TEST(test_add) {
    check_op(OP_ADD);
}
TEST(test_glu) {
    check_op(OP_GLU);
}
TEST(test_rope) {
    check_op(OP_ROPE);
}
TEST(test_attention) {
    check_op(OP_ATTENTION);
}
TEST(test_linear_group) {
    check_op(OP_LINEAR_GROUP);
}
TEST(test_embed) {
    check_op(OP_EMBED);
}
TEST(test_columns) {
    check_op(OP_COLUMNS);
}
TEST(test_dropout) {
    check_op(OP_DROPOUT);
}
TEST(test_moe_balance) {
    check_op(OP_MOE_BALANCE);
}
TEST(test_token_logprob) {
    check_op(OP_TOKEN_LOGPROB);
}
TEST(test_act) {
    check_op(OP_ACT);
}
TEST(test_gate) {
    check_op(OP_GATE);
}
TEST(test_mla_keys) {
    check_op(OP_MLA_KEYS);
}
TEST(test_mixture_of_experts) {
    check_op(OP_MOE_ROUTE);
    check_op(OP_MOE_GATHER);
    check_op(OP_MOE_LINEAR_GROUP);
    check_op(OP_MOE_COMBINE);
}

TEST(test_every_differentiable_op_has_a_case) {
    for (int op = 0; op < OP_COUNT; op++) {
        bool found = false;
        for (size_t i = 0; i < COUNT_OF(op_cases); i++) found = found || (int)op_cases[i].op == op;
        bool trains = op_table[op].differentiable != 0 || op == OP_EMBED;
        CHECK_MSG(found == trains, "op %s: %s", op_table[op].name,
                  found ? "has a case but no gradient" : "has no gradient case");
    }
}

// --- the checker itself

// Gradients of "add_norm rms" with respect to its first input: numeric in out[0], analytic in out[1], and the part that
// reaches the sum past the norm in out[2]. Returns the number of elements.
static int64_t real_gradient(double out[3][MAX_GRADIENT]) {
    struct bench_runner r;
    struct error err = {0};
    bench_require(bench_runner_open(&r, "reference", 1), "reference backend");
    struct bench *t = bench_open(DTYPE_F64, 0);
    case_add_norm(t, 0);
    bench_keep(t);
    struct slot slots[BENCH_TENSORS];
    slots_of(t, slots);
    numeric_gradient(t, &r, &slots[0].value, out[0], &err);
    CHECK(run_both(t, &r, &err) == 0);
    analytic_gradient(t, &slots[0], out[1]);
    const struct tensor *ds = &t->call.grad_out[0];
    for (int64_t i = 0; i < ds->rows * ds->cols; i++) out[2][i] = bench_get(t->start, ds, i / ds->cols, i % ds->cols);
    int64_t n = ds->rows * ds->cols;
    bench_close(t);
    bench_runner_close(&r);
    return n;
}

static void expect_caught(const double *numeric, const double *planted, int64_t n, int at_least, const char *what) {
    static const double tolerances[] = {TOLERANCE_F64, TOLERANCE_FAST};
    for (size_t i = 0; i < COUNT_OF(tolerances); i++) {
        struct verdict v = check_gradient(numeric, planted, n, tolerances[i]);
        CHECK_MSG(v.wrong >= at_least, "%s: %d elements caught at %g, expected %d", what, v.wrong, tolerances[i],
                  at_least);
    }
}

TEST(test_planted_errors_are_caught) {
    static double g[3][MAX_GRADIENT], planted[MAX_GRADIENT];
    int64_t n = real_gradient(g);
    const double *numeric = g[0], *right = g[1], *direct = g[2];
    struct verdict v = check_gradient(numeric, right, n, TOLERANCE_F64);
    CHECK_INT(v.wrong, 0);
    int most = (int)(n * 9 / 10);
    for (int64_t i = 0; i < n; i++) planted[i] = -right[i];
    expect_caught(numeric, planted, n, most, "flipped sign");
    for (int64_t i = 0; i < n; i++) planted[i] = right[i] * 0.75;
    expect_caught(numeric, planted, n, most, "dropped scale");
    for (int64_t i = 0; i < n; i++) planted[i] = right[i] - direct[i];
    expect_caught(numeric, planted, n, most, "missing term");
    for (int64_t i = 0; i < n; i++) planted[i] = 0;
    expect_caught(numeric, planted, n, most, "nothing at all");
    for (int64_t i = 0; i < n; i++) planted[i] = right[(i + 1) % n];
    expect_caught(numeric, planted, n, most, "elements one place off");
    for (int64_t wrong = 0; wrong < n; wrong += n - 1) { // the first and the last
        memcpy(planted, right, sizeof planted);
        planted[wrong] += 1e-3 * v.largest;
        expect_caught(numeric, planted, n, 1, "one wrong element");
        CHECK_INT(check_gradient(numeric, planted, n, TOLERANCE_F64).first, wrong);
        planted[wrong] = NAN;
        expect_caught(numeric, planted, n, 1, "one NaN");
    }
}

TEST_MAIN(CASE(test_norm), CASE(test_add_norm), CASE(test_add), CASE(test_glu), CASE(test_rope), CASE(test_attention),
          CASE(test_linear_group), CASE(test_embed), CASE(test_columns), CASE(test_dropout), CASE(test_moe_balance),
          CASE(test_token_logprob), CASE(test_act), CASE(test_gate), CASE(test_mla_keys), CASE(test_mixture_of_experts),
          CASE(test_every_differentiable_op_has_a_case), CASE(test_planted_errors_are_caught))
