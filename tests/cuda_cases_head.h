// The ends of the model and the optimiser on the device: what the shared cases do not reach. Passes that the op table
// does not ask for (the embedding's backward), sums in scalars, several chunks, panels and stretches, rows that do not
// count, many groups, and what is refused. Included by test_cuda.c.
#pragma once

#include "tests/op_compare.h"
#include "tests/row_cases.h"

static struct bench *ends_run(const struct op_case *c, enum dtype act, int64_t pad, bool device, bool backward) {
    struct error err = {0};
    struct bench_runner r = {.all = {.dtype = DTYPE_U8, .rows = 1, .cols = BENCH_BYTES, .ld = BENCH_BYTES}};
    struct bench *t = bench_open(act, pad);
    c->build(t, c->variant);
    bench_keep(t);
    if (device) {
        cuda_choose_plugin();
        r.backend = backend_open_cuda(&err);
        bench_require(r.backend, err.text);
        backend_set_weights(r.backend, t->weights, t->n_weights, 1);
        bench_require(r.backend->class->reserve(r.backend, BENCH_BYTES, &err) == 0, err.text);
    } else {
        bench_require(bench_runner_open(&r, "reference", 1), "the reference");
    }
    bool good = op_check(&t->call, &err) == 0 && bench_run(t, &r, BENCH_FORWARD, &err) == 0 &&
                (!backward || bench_run(t, &r, BENCH_BACKWARD, &err) == 0);
    CHECK_MSG(good, "%s, %s: %s", c->name, device ? "cuda" : "reference", err.text);
    bench_check_canaries(t, c->name);
    backend_close(r.backend);
    return t;
}

static struct step_scalars ends_scalars(const struct bench *t) {
    struct step_scalars s;
    memcpy(&s, t->image + t->call.scalars.offset, sizeof s);
    return s;
}

static void ends_compare(const struct op_case *c, enum dtype act, int64_t pad, double tolerance, bool backward) {
    struct bench *want = ends_run(c, act, pad, false, backward), *got = ends_run(c, act, pad, true, backward);
    for (int k = 0; k < got->n_tensors; k++) {
        if (got->tensors[k].dtype == DTYPE_U8) continue;
        double d = bench_difference(got->image, want->image, &got->tensors[k]);
        CHECK_MSG(d <= tolerance, "%s, %s, pad %d: tensor %d is off by %.3g of its largest", c->name, dtype_name(act),
                  (int)pad, k, d);
    }
    if (tensor_present(&want->call.scalars)) {
        struct step_scalars a = ends_scalars(want), b = ends_scalars(got);
        CHECK_NEAR(b.loss_sum, a.loss_sum, tolerance * (fabs(a.loss_sum) + 1e-12));
        CHECK_NEAR(b.weight_sum, a.weight_sum, 1e-9 * (fabs(a.weight_sum) + 1e-12));
    }
    bench_close(got);
    bench_close(want);
}

static void ends_compare_all(const struct op_case *c, bool backward) {
    ends_compare(c, DTYPE_F32, 0, TOLERANCE, backward);
    ends_compare(c, DTYPE_F32, 3, TOLERANCE, backward);
    ends_compare(c, DTYPE_BF16, 0, 8e-3, backward);
    ends_compare(c, DTYPE_BF16, 5, 8e-3, backward);
}

// --- the embedding

// Several turns of a block over the ids, two chunks of tokens, several blocks of columns. bit 0: noise
static void case_wide_embed(struct bench *t, int variant) {
    struct op_call *call = &t->call;
    int64_t rows = variant & CASE_MANY_ROWS ? 1100 : 20, d = variant & CASE_MANY_ROWS ? 44 : 1031, vocabulary = 23;
    int32_t ids[1100], lengths[1100];
    for (int i = 0; i < 1100; i++) ids[i] = i < 300 ? 7 : (i * 7 + i / 5) % 23, lengths[i] = i % 9;
    call->op = OP_EMBED;
    call->in[0] = bench_i32(t, ids, rows, 1);
    call->in[1] = bench_keys(t, rows);
    call->out[0] = bench_act(t, rows, d);
    call->p.embed.w = bench_weight(t, variant & 2 ? QUANT_BF16 : QUANT_F32, vocabulary, d, 0);
    call->p.embed.scale = 1.5f;
    call->p.embed.noise_alpha = variant & 1 ? 2 : 0;
    call->p.embed.lengths = bench_i32(t, lengths, rows, 1);
    case_table(t, variant, vocabulary, d, rows, &call->p.embed.on);
    struct step_scalars scalars = case_scalars();
    call->scalars = bench_scalars(t, &scalars);
    call->grad_out[0] = bench_act(t, rows, d);
}

TEST(test_embedding) {
    static const struct op_case cases[] = {
        {"wide embed adapter noise", OP_EMBED, case_wide_embed, 1 + CASE_TABLE_LORA},
        {"wide embed whole adapter", OP_EMBED, case_wide_embed, CASE_TABLE_LORA + CASE_TABLE_FULL},
        {"wide embed rows", OP_EMBED, case_wide_embed, 2 + CASE_TABLE_ROWS},
        {"long embed adapter", OP_EMBED, case_wide_embed, 2 + CASE_TABLE_LORA + CASE_MANY_ROWS},
        {"long embed whole noise", OP_EMBED, case_wide_embed, 1 + CASE_TABLE_FULL + CASE_MANY_ROWS},
        {"long embed rows", OP_EMBED, case_wide_embed, CASE_TABLE_ROWS + CASE_MANY_ROWS},
    };
    compare_op(OP_EMBED);
    for (size_t i = 0; i < COUNT_OF(op_cases); i++)
        if (op_cases[i].op == OP_EMBED) ends_compare_all(&op_cases[i], true);
    for (size_t i = 0; i < COUNT_OF(cases); i++) ends_compare_all(&cases[i], true);
}

// --- the head

enum { SOME_ROWS, NO_ROWS, ONE_ROW, FEW_ROWS }; // that count: two of three; none; one; one of fifty
struct wide_head {
    const char *name;
    int64_t t, d, v, chunk, panel;
    enum quant format;
    int flags, counting;
    float cap, scale;
    bool fused, acc, promised; // promised: trained_rows says how many count
};
static const struct wide_head wide_heads[] = {
    {"chunks and panels", 70, 96, 2100, 16, 512, QUANT_Q8_0, 0, SOME_ROWS, 0, 1, true, false, false},
    {"promised", 70, 96, 2100, 16, 0, QUANT_Q8_0, 0, SOME_ROWS, 0, 1, true, false, true},
    {"as it is", 70, 40, 2100, 32, 0, QUANT_BF16, 0, SOME_ROWS, 3, 0.5f, true, true, false},
    {"f32 as it is", 40, 40, 2100, 32, 0, QUANT_F32, 0, SOME_ROWS, 0, 1, false, true, false},
    {"again in panels", 50, 72, 1300, 7, 256, QUANT_F16, CASE_OWN_BIAS, SOME_ROWS, 0, 1, false, true, false},
    {"no row", 50, 32, 300, 16, 256, QUANT_F16, CASE_OWN_BIAS, NO_ROWS, 0, 1, true, false, false},
    {"no row again", 50, 32, 300, 16, 0, QUANT_F16, CASE_TABLE_LORA, NO_ROWS, 0, 1, false, false, false},
    {"one row", 50, 32, 300, 16, 0, QUANT_F16, CASE_TABLE_FULL, ONE_ROW, 0, 1, true, false, true},
    {"long batch", 1500, 24, 90, 64, 0, QUANT_F16, CASE_TABLE_LORA, FEW_ROWS, 0, 1, true, false, false},
    {"adapter", 60, 72, 1300, 16, 256, QUANT_F16, 1 + CASE_TABLE_LORA + CASE_TABLE_DROPOUT, SOME_ROWS, 0, 1, true,
     false, false},
    {"adapter, whole", 60, 72, 1300, 16, 256, QUANT_F16, CASE_TABLE_LORA + CASE_TABLE_FULL, SOME_ROWS, 0, 1, false,
     true, false},
    {"magnitude", 60, 72, 1300, 16, 0, QUANT_F16, CASE_TABLE_LORA + CASE_MAGNITUDE + CASE_OWN_BIAS, SOME_ROWS, 5, 1,
     true, false, false},
    {"own rows", 60, 72, 1300, 16, 256, QUANT_F16, 1 + CASE_TABLE_ROWS, SOME_ROWS, 0, 1, true, false, true},
    {"a long vocabulary", 6, 32, 17000, 4, 0, QUANT_BF16, CASE_TABLE_LORA, SOME_ROWS, 0, 1, true, false, false},
};

static bool row_counts(const struct wide_head *c, int64_t row) {
    switch (c->counting) {
    case NO_ROWS: return false;
    case ONE_ROW: return row == c->t / 2;
    case FEW_ROWS: return row % 50 == 11;
    default: return row % 3 != 1;
    }
}

static void case_wide_head(struct bench *t, int variant) {
    const struct wide_head *c = &wide_heads[variant];
    struct op_call *call = &t->call;
    int32_t *targets = pool_array(&t->pool, (uint64_t)c->t, sizeof *targets);
    bench_require(targets, "memory");
    for (int64_t i = 0; i < c->t; i++) targets[i] = row_counts(c, i) ? (int32_t)(i * 37 % c->v) : -100;
    call->op = OP_TOKEN_LOGPROB;
    call->in[0] = bench_act(t, c->t, c->d);
    call->in[1] = bench_i32(t, targets, c->t, 1);
    call->in[2] = bench_tensor(t, DTYPE_F32, c->t, 1);
    for (int64_t i = 0; i < c->t; i++) {
        bench_set(t->image, &call->in[2], i, 0, row_counts(c, i) ? 0.25 + (double)(i % 4) / 4 : 0);
        call->p.logprob.trained_rows += c->promised && row_counts(c, i);
    }
    for (int i = 0; i < 2; i++) call->out[i] = bench_stat(t, c->t, 1);
    call->p.logprob.w = bench_weight(t, c->format, c->v, c->d, 0);
    call->p.logprob.bias = c->flags & 1 ? bench_weight(t, QUANT_F32, 1, c->v, 0) : NULL;
    call->p.logprob.fused = c->fused;
    call->p.logprob.soft_cap = c->cap, call->p.logprob.logit_scale = c->scale;
    call->p.logprob.chunk_rows = c->chunk, call->p.logprob.panel_rows = c->panel;
    struct table_adapter *on = &call->p.logprob.on;
    case_table(t, c->flags & ~1, c->v, c->d, c->t, on);
    if (c->flags & CASE_OWN_BIAS) case_own_bias(t, c->v, &on->bias, &on->dbias);
    if (c->flags & CASE_MAGNITUDE) {
        struct tensor unused;
        case_own_bias(t, c->v, &on->magnitude, &on->dmagnitude);
        case_own_bias(t, c->v, &on->norms, &unused);
        for (int64_t i = 0; i < c->v; i++) bench_set(t->image, &on->norms, 0, i, 0.5 + 0.1 * (double)(i % 7));
    }
    struct step_scalars scalars = case_scalars();
    scalars.loss_sum = 1.5, scalars.weight_sum = 2;
    call->scalars = bench_scalars(t, &scalars);
    bench_gradients(t, 2, c->acc);
    if (!c->fused) return;
    call->saved[0] = bench_act(t, c->t, c->d);
    call->grad_out[0] = call->grad_out[1] = (struct tensor){0};
}

TEST(test_head) {
    for (size_t i = 0; i < COUNT_OF(op_cases); i++)
        if (op_cases[i].op == OP_TOKEN_LOGPROB) ends_compare_all(&op_cases[i], true);
    for (int i = 0; i < (int)COUNT_OF(wide_heads); i++) {
        struct op_case c = {wide_heads[i].name, OP_TOKEN_LOGPROB, case_wide_head, i};
        ends_compare_all(&c, true);
    }
}

// Nothing below the head is trained: no gradient of h is wanted, that of the head is.
static void case_head_alone(struct bench *t, int variant) {
    case_wide_head(t, variant);
    t->call.grad_in[0] = (struct tensor){0};
}
// dh stays where the forward pass left it.
static void case_head_in_place(struct bench *t, int variant) {
    case_wide_head(t, variant);
    t->call.grad_in[0] = t->call.saved[0];
}

TEST(test_head_gradients_elsewhere) {
    struct op_case alone = {"adapter alone", OP_TOKEN_LOGPROB, case_head_alone, 10};
    struct op_case in_place = {"in place", OP_TOKEN_LOGPROB, case_head_in_place, 0};
    ends_compare_all(&alone, true);
    ends_compare_all(&in_place, true);
}

// bit 0: one row
static void case_logits(struct bench *t, int variant) {
    struct op_call *call = &t->call;
    int64_t rows = variant & 1 ? 1 : 7, d = 40, v = 611;
    call->op = OP_LOGITS;
    call->in[0] = bench_act(t, rows, d);
    call->out[0] = bench_values(t, DTYPE_F32, rows, v);
    call->p.logprob.w = bench_weight(t, variant & 2 ? QUANT_BF16 : QUANT_F16, v, d, 0);
    call->p.logprob.bias = variant & 4 ? bench_weight(t, QUANT_F32, 1, v, 0) : NULL;
    call->p.logprob.soft_cap = variant & 8 ? 4 : 0, call->p.logprob.logit_scale = variant & 8 ? 0.5f : 1;
    call->p.logprob.panel_rows = 256, call->p.logprob.chunk_rows = 4;
    case_table(t, variant, v, d, rows, &call->p.logprob.on);
    struct step_scalars scalars = case_scalars();
    call->scalars = bench_scalars(t, &scalars);
    if (!(variant & CASE_MAGNITUDE)) return;
    struct tensor unused;
    case_own_bias(t, v, &call->p.logprob.on.magnitude, &call->p.logprob.on.dmagnitude);
    case_own_bias(t, v, &call->p.logprob.on.norms, &unused);
    for (int64_t i = 0; i < v; i++) bench_set(t->image, &call->p.logprob.on.norms, 0, i, 0.5 + 0.1 * (double)(i % 7));
}

TEST(test_logits) {
    static const int variants[] = {0,
                                   1 + 2,
                                   4 + 8,
                                   CASE_TABLE_LORA,
                                   1 + 2 + CASE_TABLE_LORA + CASE_TABLE_DROPOUT,
                                   4 + CASE_TABLE_ROWS,
                                   CASE_TABLE_FULL,
                                   4 + 8 + CASE_TABLE_LORA + CASE_MAGNITUDE};
    for (size_t i = 0; i < COUNT_OF(variants); i++) {
        struct op_case c = {"logits", OP_LOGITS, case_logits, variants[i]};
        ends_compare_all(&c, false);
    }
}

// --- columns, norms of rows, dropout

// Several blocks of columns and segments of rows; variant as case_columns.
static void case_wide_columns(struct bench *t, int variant) {
    struct op_call *call = &t->call;
    int64_t rows = 300, cols = 1100, pad = t->pad;
    call->op = OP_COLUMNS;
    call->in[0] = bench_act(t, rows, cols), call->out[0] = bench_act(t, rows, cols);
    t->pad = 0;
    struct tensor *wanted[] = {&call->p.columns.magnitude, &call->p.columns.dmagnitude, &call->p.columns.norms,
                               &call->p.columns.own_bias, &call->p.columns.dbias};
    for (int i = 0; i < 5; i++)
        if (variant & (i < 3 ? 4 : 8)) *wanted[i] = bench_values(t, DTYPE_F32, 1, cols);
    for (int64_t i = 0; variant & 4 && i < cols; i++)
        bench_set(t->image, &call->p.columns.norms, 0, i, 0.5 + 0.1 * (double)(i % 7));
    t->pad = pad;
    bench_gradients(t, 1, variant & 2);
}

// bit 0: the squares of the rows alone; bit 1: packed
static void case_row_norms(struct bench *t, int variant) {
    struct op_call *call = &t->call;
    int64_t rows = 1100, d = 320, pad = t->pad;
    call->op = OP_ROW_NORMS;
    call->p.row_norms.w = bench_weight(t, variant & 2 ? QUANT_Q8_0 : QUANT_BF16, rows, d, 0);
    call->p.row_norms.a = bench_values(t, DTYPE_F32, 5, d), call->p.row_norms.b = bench_values(t, DTYPE_F32, rows, 5);
    call->p.row_norms.scale = 0.75f;
    t->pad = 0;
    if (!(variant & 1)) call->in[0] = bench_values(t, DTYPE_F32, 1, rows);
    call->out[0] = bench_values(t, DTYPE_F32, 1, rows);
    t->pad = pad;
}

static void case_wide_dropout(struct bench *t, int variant) {
    struct step_scalars scalars = case_scalars();
    t->call.op = OP_DROPOUT;
    t->call.scalars = bench_scalars(t, &scalars);
    t->call.p.dropout.p = 0.1f, t->call.p.dropout.module = 3;
    t->call.in[0] = bench_act(t, 9, 1100);
    t->call.in[1] = bench_keys(t, 9);
    for (int i = 0; i < 2; i++) t->call.out[i] = bench_act(t, 9, 1100);
    bench_gradients(t, variant & 1 ? 1 : 2, variant & 2); // of the second output there may be none
}

TEST(test_columns) {
    compare_op(OP_COLUMNS);
    static const int variants[] = {4, 2 + 4 + 8, 8, 0, 4 + CASE_MANY_ROWS, 8 + CASE_MANY_ROWS};
    for (size_t i = 0; i < COUNT_OF(variants); i++) {
        bool many = variants[i] & CASE_MANY_ROWS;
        struct op_case c = {"wide columns", OP_COLUMNS, many ? case_columns : case_wide_columns, variants[i]};
        ends_compare_all(&c, true);
    }
    for (int i = 0; i < 4; i++) {
        struct op_case c = {"row norms", OP_ROW_NORMS, case_row_norms, i};
        ends_compare(&c, DTYPE_F32, 0, TOLERANCE, false);
        ends_compare(&c, DTYPE_F32, 3, TOLERANCE, false);
    }
}

TEST(test_dropout) {
    compare_op(OP_DROPOUT);
    for (int i = 0; i < 4; i++) {
        struct op_case c = {"wide dropout", OP_DROPOUT, case_wide_dropout, i};
        ends_compare_all(&c, true);
    }
}

// --- the optimiser

// So long that threads have several accesses under way.
static void case_long_grad_norm(struct bench *t, int variant) {
    t->pad = 0;
    t->call.op = OP_GRAD_NORM;
    t->call.in[0] = bench_values(t, DTYPE_F32, 1, 1600001);
    struct step_scalars s = case_scalars();
    s.max_grad_norm = variant;
    t->call.scalars = bench_scalars(t, &s);
}

TEST(test_gradient_norm) {
    compare_op(OP_GRAD_ADD);
    for (int variant = 0; variant < 17; variant++) {
        struct op_case c = {"grad_norm", OP_GRAD_NORM, variant < 16 ? case_grad_norm : case_long_grad_norm, variant};
        struct bench *want = ends_run(&c, DTYPE_F32, 0, false, false), *got = ends_run(&c, DTYPE_F32, 0, true, false);
        struct step_scalars w = ends_scalars(want), s = ends_scalars(got);
        CHECK(s.nonfinite == w.nonfinite);
        CHECK(s.clip_scale == 0 || s.nonfinite == 0);
        if (w.nonfinite == 0) {
            CHECK_NEAR(s.grad_norm, w.grad_norm, 1e-12 * w.grad_norm);
            CHECK_NEAR(s.clip_scale, w.clip_scale, 1e-12 * w.clip_scale);
        }
        bench_close(want);
        bench_close(got);
    }
}

// More groups than one page of them, of odd sizes, some elements in none.
static void case_many_groups(struct bench *t, int variant) {
    enum { GROUPS = 300 };
    case_adamw(t, variant);
    struct param_group *groups = pool_array(&t->pool, GROUPS, sizeof *groups);
    bench_require(groups, "memory");
    int64_t at = 0, n = t->call.in[0].cols;
    for (int i = 0; i < GROUPS; i++) {
        int64_t size = i % 5 == 0 ? 3 : i % 5 == 1 ? 0 : i % 7 == 3 ? 1500 : 77, gap = i % 11 == 4 ? 5 : 0;
        bench_require(at + gap + size <= n, "fewer groups");
        groups[i] = (struct param_group){at + gap, at + gap + size, 1 + (float)(i % 3), 0.01f * (float)(i % 4)};
        at += gap + size;
    }
    t->call.p.adamw.groups = groups, t->call.p.adamw.n_groups = GROUPS;
}

// The bits are those of the CPU.
TEST(test_adamw) {
    for (int variant = 0; variant < 6; variant++) {
        bool many = variant >= 4;
        struct op_case c = {"adamw", OP_ADAMW, many ? case_many_groups : case_adamw,
                            many ? 1 + (variant - 4) * 2 : variant};
        struct bench *want = compare_run(&c, DTYPE_F32, 0, "c", 1), *got = ends_run(&c, DTYPE_F32, 0, true, false);
        compare_bits(&c, want, got, "cuda");
        CHECK((memcmp(got->image, got->start, got->used) == 0) == (c.variant >= 2));
        bench_close(want);
        bench_close(got);
    }
}

// --- what is refused, and what must not be hidden

static int run_broken(void (*build)(struct bench *, int), int variant, void (*change)(struct bench *),
                      struct bench **out, struct error *err) {
    struct bench *t = *out = bench_open(DTYPE_F32, 0);
    build(t, variant);
    change(t);
    cuda_choose_plugin();
    struct bench_runner r = {.backend = backend_open_cuda(err),
                             .all = {.dtype = DTYPE_U8, .rows = 1, .cols = BENCH_BYTES, .ld = BENCH_BYTES}};
    bench_require(r.backend, err->text);
    backend_set_weights(r.backend, t->weights, t->n_weights, 1);
    bench_require(r.backend->class->reserve(r.backend, BENCH_BYTES, err) == 0, err->text);
    int status = bench_run(t, &r, BENCH_FORWARD, err);
    backend_close(r.backend);
    return status;
}

static void id_behind(struct bench *t) {
    bench_set(t->image, &t->call.in[0], 2, 0, 13);
    bench_set(t->image, &t->call.in[0], 4, 0, 99);
}
static void id_before(struct bench *t) {
    bench_set(t->image, &t->call.in[0], 2, 0, -1);
}
static void target_behind(struct bench *t) {
    bench_set(t->image, &t->call.in[1], 2, 0, 19);
}
static void target_before(struct bench *t) {
    bench_set(t->image, &t->call.in[1], 5, 0, -100);
}
static void too_many_rows(struct bench *t) {
    t->call.p.logprob.trained_rows = 3;
}
static void as_promised(struct bench *t) {
    t->call.p.logprob.trained_rows = 4;
}

TEST(test_indices_outside) {
    static const struct {
        void (*build)(struct bench *, int);
        void (*change)(struct bench *);
        const char *text;
    } cases[] = {
        {case_embed, id_behind, "op embed: token id 13 of row 2 is outside"},
        {case_embed, id_before, "op embed: token id -1 of row 2 is outside"},
        {case_logprob, target_behind, "op token_logprob: target 19 of row 2 is outside"},
        {case_logprob, target_before, "op token_logprob: target -100 of row 5 is outside"},
        {case_logprob, too_many_rows, "op token_logprob: 4 rows have a weight, more than the 3"},
        {case_logprob, as_promised, NULL},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct error err = {0};
        struct bench *t;
        int status = run_broken(cases[i].build, i == 0 ? 1 : 0, cases[i].change, &t, &err);
        CHECK_INT(status, cases[i].text ? -1 : 0);
        if (cases[i].text) CHECK_MSG(strstr(err.text, cases[i].text), "%s", err.text);
        if (cases[i].text) CHECK_INT(err.code, STATUS_INTERNAL);
        bench_close(t);
    }
}

static void nan_in_the_head(struct bench *t) {
    float nan = NAN;
    memcpy((void *)(uintptr_t)(t->call.p.logprob.w->data + (size_t)(17 * t->call.in[0].cols) * sizeof nan), &nan,
           sizeof nan);
}
static void nan_in_a_row(struct bench *t) {
    bench_set(t->image, &t->call.in[0], 2, 3, NAN);
}

// A NaN in the head reaches every row that counts; one in a row reaches no other.
TEST(test_head_shows_nan) {
    for (int i = 0; i < 2; i++) {
        struct error err = {0};
        struct bench *t;
        CHECK_INT(run_broken(case_logprob, 1, i == 0 ? nan_in_the_head : nan_in_a_row, &t, &err), 0);
        CHECK(isnan(bench_get(t->image, &t->call.out[0], 2, 0)));
        CHECK(isnan(bench_get(t->image, &t->call.saved[0], 2, 5)));
        CHECK(isnan(bench_get(t->image, &t->call.out[0], 0, 0)) == (i == 0));
        CHECK(bench_get(t->image, &t->call.out[0], 1, 0) == 0);
        bench_close(t);
    }
}
