// Linear layers with adapters, and the head: the fast kernels of every instruction set against the reference loops in
// double, and against each other bit for bit, whatever the thread count.
#include "tests/harness.h"
#include "tests/packed.h"

#include "kernels/alloc.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/scalar.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { ARENA = 48 << 20, MAX_CHECKED = 32 };

// A call with its arena as it is before the call, and the tensors to look at afterwards.
struct world {
    uint8_t *before;
    size_t used;
    uint32_t seed;
    struct op_call call;
    struct weight weights[2 * LINEAR_MAX_PARTS];
    uint8_t *packed[2 * LINEAR_MAX_PARTS];
    int n_weights, n_checked;
    struct tensor checked[MAX_CHECKED];
    int64_t row_begin[MAX_CHECKED], row_end[MAX_CHECKED]; // rows that mean something
    bool part_of_rows[MAX_CHECKED];                       // what follows a row is another tensor's
    double tolerance[MAX_CHECKED];                        // of the largest element
};

static void world_open(struct world *w) {
    *w = (struct world){.before = mem_map(ARENA), .seed = 12345};
}
static void world_close(struct world *w) {
    mem_unmap(w->before, ARENA);
    for (int i = 0; i < w->n_weights; i++) mem_free(w->packed[i]);
}

static uint32_t next_word(struct world *w) {
    uint32_t x = w->seed;
    x ^= x << 13, x ^= x >> 17, x ^= x << 5;
    return w->seed = x;
}
static float next_float(struct world *w) {
    return (float)((int)(next_word(w) >> 8) - (1 << 23)) * 0x1p-23f;
}

// A tensor of random numbers; rows are `gap` elements further apart than they must be.
static struct tensor tensor_new(struct world *w, enum dtype dtype, int64_t rows, int64_t cols, int64_t gap) {
    struct tensor t = {.dtype = dtype, .rows = rows, .cols = cols, .ld = cols + gap, .offset = w->used};
    for (int64_t i = 0; i < rows * t.ld; i++) {
        uint8_t *at = w->before + t.offset + (size_t)i * dtype_size(dtype);
        float v = next_float(w);
        uint16_t brain = bf16_from_float(v);
        uint32_t word = next_word(w);
        if (dtype == DTYPE_F32)
            memcpy(at, &v, 4);
        else if (dtype == DTYPE_BF16)
            memcpy(at, &brain, 2);
        else
            memcpy(at, &word, dtype_size(dtype));
    }
    w->used += ((size_t)(rows * t.ld) * dtype_size(dtype) + 63) / 64 * 64;
    return t;
}
static void check_tensor(struct world *w, struct tensor t, int64_t row_begin, int64_t row_end, double tolerance) {
    w->checked[w->n_checked] = t;
    w->row_begin[w->n_checked] = row_begin, w->row_end[w->n_checked] = row_end;
    w->tolerance[w->n_checked++] = tolerance;
}

static const struct weight *weight_new(struct world *w, enum quant format, int64_t rows, int64_t cols) {
    const struct quant_format *f = quant_format(format);
    size_t bytes = (size_t)rows * quant_row_bytes(f, cols);
    uint8_t *data = mem_alloc(bytes);
    float *values = mem_alloc((size_t)(rows * cols) * sizeof *values);
    for (int64_t i = 0; i < rows * cols; i++) values[i] = next_float(w) * 0.2f;
    if (format == QUANT_F32)
        memcpy(data, values, bytes);
    else if (f->encode)
        for (int64_t r = 0; r < rows; r++)
            f->encode(values + r * cols, data + (size_t)r * quant_row_bytes(f, cols), cols);
    else { // random codes, tame scales
        for (size_t i = 0; i < bytes; i++) data[i] = (uint8_t)next_word(w);
        for (size_t b = 0; b < bytes / (size_t)f->block_bytes; b++)
            packed_put(f, data + b * (size_t)f->block_bytes, 0.002f, 0.002f);
    }
    mem_free(values);
    w->packed[w->n_weights] = data;
    struct weight *weight = &w->weights[w->n_weights++];
    *weight = (struct weight){.format = f, .rows = rows, .cols = cols, .data = data, .name = "test"};
    return weight;
}

typedef int (*op_function)(struct backend *, const struct op_call *, struct error *);

// Runs the call on a copy of the arena and returns it. isa NULL: the reference.
static uint8_t *run(const struct world *w, const struct cpu_isa *isa, int threads, op_function op) {
    struct error err = {0};
    struct cpu_backend b = {.arena = mem_map(ARENA), .arena_bytes = ARENA, .isa = isa};
    memcpy(b.arena, w->before, w->used);
    b.base.threads = threads;
    b.threads = threads_open(threads, &err);
    CHECK_INT(op(&b.base, &w->call, &err), 0);
    CHECK_STR(err.text, "");
    threads_close(b.threads);
    return b.arena;
}

static double element(const uint8_t *arena, const struct tensor *t, int64_t row, int64_t col) {
    const uint8_t *at = arena + t->offset + (size_t)(row * t->ld + col) * dtype_size(t->dtype);
    if (t->dtype == DTYPE_BF16) return (double)bf16_to_float(*(const uint16_t *)(const void *)at);
    if (t->dtype == DTYPE_F64) return *(const double *)(const void *)at;
    return (double)*(const float *)(const void *)at;
}

static void compare(const struct world *w, const uint8_t *want, const uint8_t *got, const char *name) {
    for (int i = 0; i < w->n_checked; i++) {
        const struct tensor *t = &w->checked[i];
        double largest = 0, worst = 0;
        for (int64_t r = w->row_begin[i]; r < w->row_end[i]; r++) {
            for (int64_t c = 0; c < t->cols; c++) {
                double a = element(want, t, r, c), d = fabs(a - element(got, t, r, c));
                if (fabs(a) > largest) largest = fabs(a);
                if (!(d <= worst)) worst = isnan(d) ? INFINITY : d;
            }
        }
        CHECK_MSG(worst <= w->tolerance[i] * largest, "%s, tensor %d: %g off, largest %g", name, i, worst, largest);
        for (int64_t r = 0; r + 1 < t->rows && !w->part_of_rows[i]; r++) { // what lies between rows is not ours
            size_t size = dtype_size(t->dtype), at = t->offset + (size_t)(r * t->ld + t->cols) * size;
            size_t gap = (size_t)(t->ld - t->cols) * size;
            CHECK_MSG(memcmp(got + at, w->before + at, gap) == 0, "%s, tensor %d: wrote behind row %lld", name, i,
                      (long long)r);
        }
    }
}

static bool same_bits(const struct world *w, const uint8_t *a, const uint8_t *b) {
    for (int i = 0; i < w->n_checked; i++) {
        const struct tensor *t = &w->checked[i];
        size_t size = dtype_size(t->dtype);
        for (int64_t r = w->row_begin[i]; r < w->row_end[i]; r++) {
            size_t at = t->offset + (size_t)(r * t->ld) * size;
            if (memcmp(a + at, b + at, (size_t)t->cols * size) != 0) return false;
        }
    }
    return true;
}

static void check_op(struct world *w, const char *name, op_function op, op_function reference) {
    static const struct cpu_isa c = {.name = "c", .gemm = &gemm_isa_c}, avx2 = {.name = "avx2", .gemm = &gemm_isa_avx2},
                                avx512 = {.name = "avx512", .gemm = &gemm_isa_avx512},
                                bf16 = {.name = "avx512bf16", .gemm = &gemm_isa_avx512bf16};
    const struct cpu_isa *isas[4] = {&c};
    int n = 1;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) isas[n++] = &avx2;
    if (__builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw")) isas[n++] = &avx512;
    if (__builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bf16")) isas[n++] = &bf16;
#endif
    uint8_t *want = run(w, NULL, 1, reference), *first = NULL;
    for (int i = 0; i < n; i++) {
        for (int threads = i ? 1 : 3; threads <= 3; threads++) { // plain C is slow
            char text[96];
            snprintf(text, sizeof text, "%s, %s, %d threads", name, isas[i]->name, threads);
            uint8_t *got = run(w, isas[i], threads, op);
            if (!first)
                compare(w, want, got, text);
            else
                CHECK_MSG(same_bits(w, first, got), "%s: other bits than the first", text);
            if (!first)
                first = got;
            else
                mem_unmap(got, ARENA);
        }
    }
    mem_unmap(want, ARENA), mem_unmap(first, ARENA);
}

// The workspace is as small as promised, for the largest thread count used, and full of NaN.
static void set_workspace(struct world *w, size_t bytes) {
    w->used = (w->used + 63) / 64 * 64;
    w->call.workspace =
        (struct tensor){.dtype = DTYPE_U8, .rows = 1, .cols = (int64_t)bytes, .ld = (int64_t)bytes, .offset = w->used};
    memset(w->before + w->used, 0xFF, bytes);
    w->used += bytes;
    if (w->used > ARENA) test_fail(__FILE__, __LINE__, "the arena of the tests is too small");
}

static void set_scalars(struct world *w) {
    w->used = (w->used + 63) / 64 * 64;
    size_t bytes = sizeof(struct step_scalars);
    w->call.scalars =
        (struct tensor){.dtype = DTYPE_U8, .rows = 1, .cols = (int64_t)bytes, .ld = (int64_t)bytes, .offset = w->used};
    struct step_scalars *s = (struct step_scalars *)(void *)(w->before + w->used);
    *s = (struct step_scalars){.seed = 0x123456789ABCDEFu, .random_step = 17, .loss_sum = 1.5, .weight_sum = 2.5};
    w->used += (bytes + 63) / 64 * 64;
}

// --- linear groups

struct linear_case {
    const char *name;
    enum dtype dtype;
    int64_t t, in, out[3];
    enum quant format[3];
    int partial; // adapters see some of the rows: 1 = the later ones begin sooner, 2 = they end later
    bool bias, acc, two_spans, no_saved, frozen, no_dx, shared;
    float dropout;
    int ranks[3];
    int missing_dy; // part without grad_out, -1 = none
};

static void add_span(struct world *w, const struct linear_case *c, struct linear_part *part, int64_t rank,
                     int64_t row_begin, int64_t row_end, int64_t *columns) {
    struct lora_span *s = &part->spans[part->n_spans++];
    *s = (struct lora_span){.row_begin = row_begin,
                            .row_end = row_end,
                            .scale = 1.75f,
                            .dropout = c->dropout,
                            .module = 40 + (uint32_t)*columns,
                            .u_begin = *columns};
    s->a = tensor_new(w, DTYPE_F32, rank, c->in, 3);
    s->b = tensor_new(w, DTYPE_F32, part->w->rows, rank, 1);
    if (!c->frozen) {
        s->da = tensor_new(w, DTYPE_F32, rank, c->in, 2);
        s->db = tensor_new(w, DTYPE_F32, part->w->rows, rank, 5);
    }
    *columns += rank;
}

static void linear_world(struct world *w, const struct linear_case *c) {
    world_open(w);
    struct op_call *call = &w->call;
    call->op = OP_LINEAR_GROUP;
    call->in[0] = tensor_new(w, c->dtype, c->t, c->in, 8);
    call->in[1] = tensor_new(w, DTYPE_U32, c->t, 2, 1);
    set_scalars(w);
    int64_t columns = 0;
    for (int i = 0; i < 3 && c->out[i]; i++) {
        struct linear_part *part = &call->p.linear.parts[call->p.linear.n_parts++];
        part->w = weight_new(w, c->format[i], c->out[i], c->in);
        if (c->bias && i != 1) part->bias = weight_new(w, QUANT_F32, 1, c->out[i]);
        if (c->ranks[i]) {
            int64_t begin = c->partial ? 5 - 2 * (c->partial == 1) * i : 0;
            int64_t end = c->partial ? c->t - 6 + 2 * (c->partial == 2) * i : c->t,
                    middle = c->two_spans ? c->t / 3 : end;
            add_span(w, c, part, c->ranks[i], begin, middle, &columns);
            if (c->two_spans) {
                add_span(w, c, part, c->ranks[i] + (c->shared ? 0 : 2), middle + 2, end, &columns);
                if (c->shared) part->spans[1].da = part->spans[0].da, part->spans[1].db = part->spans[0].db;
            }
        }
        call->out[i] = tensor_new(w, c->dtype, c->t, c->out[i], 4);
    }
    if (columns && !c->no_saved) call->saved[0] = tensor_new(w, DTYPE_F32, c->t, columns, 2);
}

static double activation_tolerance(enum dtype dtype) {
    return dtype == DTYPE_BF16 ? 1.2e-2 : 3e-6;
}

static void linear_forward(const struct linear_case *c) {
    struct world w;
    linear_world(&w, c);
    struct op_call *call = &w.call;
    for (int i = 0; i < call->p.linear.n_parts; i++) {
        check_tensor(&w, call->out[i], 0, c->t, activation_tolerance(c->dtype));
        for (int s = 0; s < call->p.linear.parts[i].n_spans && !c->no_saved; s++) {
            const struct lora_span *span = &call->p.linear.parts[i].spans[s];
            struct tensor u = tensor_cols(call->saved[0], span->u_begin, span->u_begin + span->a.rows);
            check_tensor(&w, u, span->row_begin, span->row_end, 3e-6);
            w.part_of_rows[w.n_checked - 1] = true;
        }
    }
    set_workspace(&w, cpu_linear_group_workspace(call, false, 3));
    char name[96];
    snprintf(name, sizeof name, "%s forward", c->name);
    check_op(&w, name, cpu_linear_group_forward, cpu_linear_group_forward);
    world_close(&w);
}

// U as the forward pass leaves it comes from the reference.
static void linear_backward(const struct linear_case *c) {
    struct world w;
    linear_world(&w, c);
    struct op_call *call = &w.call;
    size_t here = w.used;
    set_workspace(&w, cpu_linear_group_workspace(call, false, 3));
    uint8_t *after = run(&w, NULL, 1, cpu_linear_group_forward);
    if (tensor_present(&call->saved[0]))
        memcpy(w.before + call->saved[0].offset, after + call->saved[0].offset, tensor_bytes(&call->saved[0]));
    mem_unmap(after, ARENA);
    w.used = here;
    for (int i = 0; i < call->p.linear.n_parts; i++) {
        if (i != c->missing_dy) call->grad_out[i] = tensor_new(&w, c->dtype, c->t, c->out[i], 6);
        for (int s = 0; s < call->p.linear.parts[i].n_spans && !c->frozen; s++) {
            const struct lora_span *span = &call->p.linear.parts[i].spans[s];
            check_tensor(&w, span->da, 0, span->da.rows, 1e-5);
            check_tensor(&w, span->db, 0, span->db.rows, 1e-5);
        }
    }
    if (!c->no_dx) {
        call->grad_in[0] = tensor_new(&w, c->dtype, c->t, c->in, 2);
        call->acc[0] = c->acc;
        check_tensor(&w, call->grad_in[0], 0, c->t, activation_tolerance(c->dtype));
    }
    set_workspace(&w, cpu_linear_group_workspace(call, true, 3));
    char name[96];
    snprintf(name, sizeof name, "%s backward", c->name);
    check_op(&w, name, cpu_linear_group_backward, cpu_linear_group_backward);
    world_close(&w);
}

static const struct linear_case linear_cases[] = {
    {.name = "plain", .t = 37, .in = 96, .out = {70}, .format = {QUANT_Q4_1}, .missing_dy = -1},
    {.name = "one row",
     .t = 1,
     .in = 64,
     .out = {50, 33},
     .format = {QUANT_Q8_0, QUANT_Q4_0},
     .ranks = {8, 4},
     .missing_dy = -1},
    {.name = "group",
     .t = 130,
     .in = 192,
     .out = {100, 64, 49},
     .format = {QUANT_Q4_1, QUANT_Q5_0, QUANT_F32},
     .bias = true,
     .acc = true,
     .ranks = {16, 16, 16},
     .missing_dy = -1},
    {.name = "group in blocks of 256",
     .t = 40,
     .in = 256,
     .out = {60, 50, 256},
     .acc = true,
     .format = {QUANT_Q4_K, QUANT_Q6_K, QUANT_BF16},
     .ranks = {3, 0, 20},
     .missing_dy = -1},
    {.name = "group of other types, with and without fast decoders",
     .t = 40,
     .in = 256,
     .out = {60, 50, 256},
     .acc = true,
     .format = {QUANT_IQ2_XS, QUANT_MXFP4, QUANT_Q3_K},
     .ranks = {3, 0, 20},
     .missing_dy = -1},
    {.name = "dropout",
     .t = 100,
     .in = 160,
     .out = {64, 70},
     .format = {QUANT_Q4_1, QUANT_Q8_0},
     .dropout = 0.25f,
     .ranks = {8, 12},
     .missing_dy = -1},
    {.name = "partial rows, two adapters, dropout, acc",
     .t = 60,
     .in = 96,
     .out = {64, 70},
     .two_spans = true,
     .format = {QUANT_Q5_1, QUANT_F16},
     .partial = 1,
     .dropout = 0.1f,
     .acc = true,
     .ranks = {5, 9},
     .missing_dy = -1},
    {.name = "partial rows",
     .t = 60,
     .in = 96,
     .out = {64, 70},
     .format = {QUANT_Q5_1, QUANT_F16},
     .partial = 1,
     .ranks = {5, 9},
     .missing_dy = -1},
    {.name = "partial rows, later ends",
     .t = 60,
     .in = 96,
     .out = {64, 70},
     .format = {QUANT_Q4_0, QUANT_Q4_0},
     .partial = 2,
     .ranks = {5, 9},
     .missing_dy = -1},
    {.name = "one adapter on two ranges",
     .t = 60,
     .in = 96,
     .out = {64, 70},
     .format = {QUANT_Q5_1, QUANT_F16},
     .two_spans = true,
     .partial = 1,
     .shared = true,
     .acc = true,
     .ranks = {5, 9},
     .missing_dy = -1},
    {.name = "frozen adapters",
     .t = 33,
     .in = 64,
     .out = {40, 40},
     .format = {QUANT_F32, QUANT_F32},
     .frozen = true,
     .no_saved = true,
     .ranks = {4, 4},
     .missing_dy = -1},
    {.name = "no dx",
     .t = 33,
     .in = 64,
     .out = {40, 40},
     .format = {QUANT_F32, QUANT_Q4_0},
     .no_dx = true,
     .ranks = {4, 4},
     .missing_dy = -1},
    {.name = "an output nobody used",
     .t = 33,
     .in = 64,
     .out = {40, 41},
     .format = {QUANT_F32, QUANT_Q4_0},
     .ranks = {4, 4},
     .missing_dy = 0},
    {.name = "odd sizes",
     .t = 29,
     .in = 51,
     .out = {43, 7},
     .format = {QUANT_F32, QUANT_F16},
     .bias = true,
     .ranks = {3, 1},
     .missing_dy = -1},
    {.name = "long rows", .t = 20, .in = 2400, .out = {50}, .format = {QUANT_Q4_1}, .ranks = {7}, .missing_dy = -1},
    {.name = "long columns",
     .t = 20,
     .in = 64,
     .out = {96, 2100},
     .format = {QUANT_Q4_1, QUANT_Q4_1},
     .ranks = {16, 7},
     .acc = true,
     .missing_dy = -1},
};

TEST(linear_groups_forward) {
    for (size_t i = 0; i < sizeof linear_cases / sizeof linear_cases[0]; i++) {
        struct linear_case c = linear_cases[i];
        c.dtype = DTYPE_F32;
        linear_forward(&c);
    }
}
TEST(linear_groups_backward) {
    for (size_t i = 0; i < sizeof linear_cases / sizeof linear_cases[0]; i++) {
        struct linear_case c = linear_cases[i];
        c.dtype = DTYPE_F32;
        linear_backward(&c);
    }
}
TEST(linear_groups_bf16) {
    for (size_t i = 0; i < sizeof linear_cases / sizeof linear_cases[0]; i++) {
        struct linear_case c = linear_cases[i];
        c.dtype = DTYPE_BF16;
        linear_forward(&c);
        linear_backward(&c);
    }
}
TEST(linear_no_gradient_arrives) { // grad_in is stored: zero
    struct world w;
    struct linear_case c = {
        .name = "none", .dtype = DTYPE_F32, .t = 9, .in = 32, .out = {16}, .format = {QUANT_Q8_0}, .ranks = {2}};
    linear_world(&w, &c);
    w.call.grad_in[0] = tensor_new(&w, DTYPE_F32, 9, 32, 3);
    check_tensor(&w, w.call.grad_in[0], 0, 9, 0);
    set_workspace(&w, cpu_linear_group_workspace(&w.call, true, 3));
    check_op(&w, "none", cpu_linear_group_backward, cpu_linear_group_backward);
    world_close(&w);
}

// --- the head

struct head_case {
    const char *name;
    enum dtype dtype;
    int64_t t, d, v, chunk;
    enum quant format;
    float cap, scale;
    bool fused, acc, dlse;
};

static void head_world(struct world *w, const struct head_case *c) {
    world_open(w);
    struct op_call *call = &w->call;
    call->op = OP_TOKEN_LOGPROB;
    call->in[0] = tensor_new(w, c->dtype, c->t, c->d, 8);
    call->in[1] = tensor_new(w, DTYPE_I32, c->t, 1, 1);
    call->in[2] = tensor_new(w, DTYPE_F32, c->t, 1, 2);
    for (int64_t i = 0; i < c->t; i++) {
        ((uint32_t *)(void *)(w->before + call->in[1].offset))[i * 2] %= (uint32_t)c->v;
        if (i % 3 == 1) ((float *)(void *)(w->before + call->in[2].offset))[i * 3] = 0;
    }
    set_scalars(w);
    call->out[0] = tensor_new(w, DTYPE_F32, c->t, 1, 1);
    call->out[1] = tensor_new(w, DTYPE_F32, c->t, 1, 0);
    if (c->fused) call->saved[0] = tensor_new(w, c->dtype, c->t, c->d, 4);
    call->p.logprob.w = weight_new(w, c->format, c->v, c->d);
    call->p.logprob.soft_cap = c->cap;
    call->p.logprob.logit_scale = c->scale;
    call->p.logprob.fused = c->fused;
    call->p.logprob.chunk_rows = c->chunk;
}

static void head_run(const struct head_case *c) {
    struct world w;
    char name[96];
    double tolerance = c->dtype == DTYPE_BF16 ? 1e-2 : 1e-5;
    head_world(&w, c);
    check_tensor(&w, w.call.out[0], 0, c->t, tolerance);
    check_tensor(&w, w.call.out[1], 0, c->t, tolerance);
    if (c->fused) check_tensor(&w, w.call.saved[0], 0, c->t, tolerance);
    struct tensor sums = w.call.scalars;
    sums.dtype = DTYPE_F64, sums.offset += offsetof(struct step_scalars, loss_sum), sums.cols = sums.ld = 2;
    check_tensor(&w, sums, 0, 1, tolerance);
    set_workspace(&w, cpu_token_logprob_workspace(&w.call, false, 3));
    snprintf(name, sizeof name, "%s forward", c->name);
    check_op(&w, name, cpu_token_logprob_forward, cpu_token_logprob_forward);
    world_close(&w);

    head_world(&w, c);
    if (!c->fused) w.call.grad_out[0] = tensor_new(&w, DTYPE_F32, c->t, 1, 1);
    if (c->dlse) w.call.grad_out[1] = tensor_new(&w, DTYPE_F32, c->t, 1, 0);
    w.call.grad_in[0] = tensor_new(&w, c->dtype, c->t, c->d, 5);
    w.call.acc[0] = c->acc;
    check_tensor(&w, w.call.grad_in[0], 0, c->t, tolerance);
    set_workspace(&w, cpu_token_logprob_workspace(&w.call, true, 3));
    snprintf(name, sizeof name, "%s backward", c->name);
    check_op(&w, name, cpu_token_logprob_backward, cpu_token_logprob_backward);
    if (c->fused && !c->acc) { // the gradient may stay where it was saved
        w.call.grad_in[0] = w.call.saved[0];
        w.n_checked = 0;
        check_tensor(&w, w.call.saved[0], 0, c->t, 0);
        check_op(&w, name, cpu_token_logprob_backward, cpu_token_logprob_backward);
    }
    world_close(&w);
}

static const struct head_case head_cases[] = {
    {.name = "fused", .t = 50, .d = 96, .v = 333, .chunk = 16, .format = QUANT_Q8_0, .scale = 1, .fused = true},
    {.name = "fused, added",
     .t = 20,
     .d = 64,
     .v = 2100,
     .chunk = 100,
     .format = QUANT_Q4_1,
     .scale = 1,
     .fused = true,
     .acc = true},
    {.name = "recomputed", .t = 50, .d = 96, .v = 333, .chunk = 7, .format = QUANT_Q8_0, .scale = 1},
    {.name = "element by element", .t = 20, .d = 256, .v = 333, .chunk = 7, .format = QUANT_IQ3_S, .scale = 1},
    {.name = "capped and scaled",
     .t = 20,
     .d = 256,
     .v = 1031,
     .chunk = 8,
     .format = QUANT_Q6_K,
     .scale = 0.75f,
     .cap = 2,
     .fused = true},
    {.name = "capped, recomputed, added",
     .t = 20,
     .d = 64,
     .v = 40,
     .chunk = 5,
     .format = QUANT_F32,
     .scale = 2,
     .cap = 3,
     .acc = true,
     .dlse = true},
    {.name = "long chain", .t = 60, .d = 32, .v = 9001, .chunk = 64, .format = QUANT_Q8_0, .scale = 1, .fused = true},
};
TEST(head) {
    for (size_t i = 0; i < sizeof head_cases / sizeof head_cases[0]; i++) {
        struct head_case c = head_cases[i];
        c.dtype = DTYPE_F32;
        head_run(&c);
        c.dtype = DTYPE_BF16;
        head_run(&c);
    }
}

TEST(head_refuses_targets_outside) {
    struct world w;
    struct head_case c = {.dtype = DTYPE_F32, .t = 4, .d = 32, .v = 50, .chunk = 4, .format = QUANT_F32, .scale = 1};
    head_world(&w, &c);
    ((int32_t *)(void *)(w.before + w.call.in[1].offset))[2 * 2] = 50;
    ((float *)(void *)(w.before + w.call.in[2].offset))[2 * 3] = 1;
    set_workspace(&w, cpu_token_logprob_workspace(&w.call, false, 1));
    static const struct cpu_isa isa = {.name = "c", .gemm = &gemm_isa_c};
    struct error err = {0};
    struct cpu_backend b = {.arena = w.before, .arena_bytes = ARENA, .isa = &isa, .threads = threads_open(1, &err)};
    CHECK_INT(cpu_token_logprob_forward(&b.base, &w.call, &err), -1);
    CHECK_INT(err.code, STATUS_INTERNAL);
    CHECK(strstr(err.text, "target 50 of row 2") != NULL);
    threads_close(b.threads);
    world_close(&w);
}

// NaN somewhere in a row of logits must not pass for a number.
TEST(head_shows_nan) {
    static const int columns[] = {5, 49}; // in a whole vector of logits, in the rest of the row; nobody's target
    for (int i = 0; i < 2; i++) {
        struct world w;
        struct head_case c = {
            .dtype = DTYPE_F32, .t = 3, .d = 32, .v = 50, .chunk = 4, .format = QUANT_F32, .scale = 1, .fused = true};
        head_world(&w, &c);
        float nan = NAN;
        memcpy(w.packed[0] + columns[i] * 32 * 4, &nan, 4);
        for (int t = 0; t < 3; t++) ((int32_t *)(void *)(w.before + w.call.in[1].offset))[2 * t] = 3;
        set_workspace(&w, cpu_token_logprob_workspace(&w.call, false, 1));
        static const struct cpu_isa isa = {.name = "c", .gemm = &gemm_isa_c};
        uint8_t *after = run(&w, &isa, 1, cpu_token_logprob_forward);
        CHECK(isnan(element(after, &w.call.out[0], 0, 0)));
        CHECK(isnan(element(after, &w.call.saved[0], 0, 5)));
        mem_unmap(after, ARENA);
        world_close(&w);
    }
}

TEST(logits) {
    for (int i = 0; i < 4; i++) {
        struct world w;
        world_open(&w);
        w.call.op = OP_LOGITS;
        int64_t t = i % 2 ? 1 : 7;
        w.call.in[0] = tensor_new(&w, i / 2 ? DTYPE_BF16 : DTYPE_F32, t, 96, 3);
        w.call.out[0] = tensor_new(&w, DTYPE_F32, t, 1001, 2);
        w.call.p.logprob.w = weight_new(&w, QUANT_Q4_1, 1001, 96);
        w.call.p.logprob.logit_scale = i % 2 ? 1 : 0.5f;
        w.call.p.logprob.soft_cap = i % 2 ? 0 : 4;
        check_tensor(&w, w.call.out[0], 0, t, i / 2 ? 1e-2 : 3e-6);
        set_workspace(&w, cpu_logits_workspace(&w.call, false, 3));
        check_op(&w, "logits", cpu_logits, cpu_logits);
        world_close(&w);
    }
}

TEST(logarithm) {
    for (int i = -300; i <= 300; i++) {
        double x = exp(i * 1.17) * (1 + 0.001 * i), want = log(x);
        CHECK_NEAR(det_log(x), want, 4e-16 * fabs(want) + 1e-17);
    }
    for (int i = -100; i <= 100; i++) {
        double x = 1 + i * 0.0057;
        CHECK_NEAR(det_log(x), log(x), 4e-16 * fabs(log(x)));
    }
    CHECK(det_log(1) == 0);
    CHECK_NEAR(det_log(5e-324), log(5e-324), 1e-12);
    CHECK(isinf(det_log(0)) && det_log(0) < 0);
    CHECK(isnan(det_log(-1)) && isnan(det_log(NAN)));
    CHECK(isinf(det_log(INFINITY)));
}

TEST_MAIN(CASE(linear_groups_forward), CASE(linear_groups_backward), CASE(linear_groups_bf16),
          CASE(linear_no_gradient_arrives), CASE(head), CASE(head_refuses_targets_outside), CASE(head_shows_nan),
          CASE(logits), CASE(logarithm))
