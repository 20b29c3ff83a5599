// What the packed GEMM reaches: the peak of fused multiply-adds, decoding rates, products of SmolLM2-135M's shapes, of
// every format beside F32, the speed of one generated token and of quantising. Rates are the best of several repeats,
// medians in brackets where they matter; those beside F32 are medians.
//   build/bench/gemm [peak|decode|product|formats|bf16|linear|token|quantize] [threads, -2 = 2 only] [instruction set]
#include "kernels/alloc.h"
#include "kernels/clock.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/kernels.h"
#include "tests/packed.h"
#include "tests/table_weights.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct set {
    const char *name;
    const struct gemm_isa *gemm;
};

static int sets(struct set out[4]) { // the fastest first
    int n = 0;
#if defined(__x86_64__)
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    bool avx512 = avx2 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
    if (avx512 && __builtin_cpu_supports("avx512bf16")) out[n++] = (struct set){"avx512bf16", &gemm_isa_avx512bf16};
    if (avx512) out[n++] = (struct set){"avx512", &gemm_isa_avx512};
    if (avx2) out[n++] = (struct set){"avx2", &gemm_isa_avx2};
#endif
    if (n == 0) out[n++] = (struct set){"c", &gemm_isa_c};
    return n;
}

// Registers are named and the loop is assembler: left to the compiler, the accumulators may end up in memory.
#if defined(__x86_64__)
static double peak(bool wide) {
    double best = 0;
    for (int repeat = 0; repeat < 60; repeat++) {
        long n = 100000;
        double start = clock_now();
#define FMA12(r)                                                                                                       \
    "vfmadd231ps %%" r "14,%%" r "15,%%" r "0\n vfmadd231ps %%" r "14,%%" r "15,%%" r "1\n"                            \
    "vfmadd231ps %%" r "14,%%" r "15,%%" r "2\n vfmadd231ps %%" r "14,%%" r "15,%%" r "3\n"                            \
    "vfmadd231ps %%" r "14,%%" r "15,%%" r "4\n vfmadd231ps %%" r "14,%%" r "15,%%" r "5\n"                            \
    "vfmadd231ps %%" r "14,%%" r "15,%%" r "6\n vfmadd231ps %%" r "14,%%" r "15,%%" r "7\n"                            \
    "vfmadd231ps %%" r "14,%%" r "15,%%" r "8\n vfmadd231ps %%" r "14,%%" r "15,%%" r "9\n"                            \
    "vfmadd231ps %%" r "14,%%" r "15,%%" r "10\n vfmadd231ps %%" r "14,%%" r "15,%%" r "11\n"
#define CLOBBER                                                                                                        \
    "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm14",         \
        "xmm15", "cc"
        // Factors of zero: what the registers hold by chance may be slow numbers.
        if (wide)
            __asm__ volatile(
                "vpxor %%xmm14,%%xmm14,%%xmm14\n vpxor %%xmm15,%%xmm15,%%xmm15\n 1:\n" FMA12("zmm") "dec %0\n jnz 1b\n"
                : "+r"(n)
                :
                : CLOBBER);
        else
            __asm__ volatile(
                "vpxor %%xmm14,%%xmm14,%%xmm14\n vpxor %%xmm15,%%xmm15,%%xmm15\n 1:\n" FMA12("ymm") "dec %0\n jnz 1b\n"
                : "+r"(n)
                :
                : CLOBBER);
        double rate = 100000.0 * 12 * (wide ? 32 : 16) / (clock_now() - start) * 1e-9;
        if (rate > best) best = rate;
    }
    return best;
}
#else
static double peak(bool wide) {
    (void)wide;
    return 0;
}
#endif

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

struct timing {
    double best, median; // seconds
};
// Repeats `run` for about 0.15 s, at least 5 times.
static struct timing measure(void (*run)(void *), void *context) {
    enum { MOST = 400 };
    double seconds[MOST], begin = clock_now();
    int n = 0;
    run(context);
    while (n < MOST && (n < 5 || clock_now() - begin < 0.15)) {
        double start = clock_now();
        run(context);
        seconds[n++] = clock_now() - start;
    }
    qsort(seconds, (size_t)n, sizeof *seconds, by_value);
    return (struct timing){seconds[0], seconds[n / 2]};
}

// Packed bytes with tame scales. Values do not change the speed unless they are NaN or denormal.
static uint8_t *packed(const struct quant_format *f, int64_t rows, int64_t cols) {
    size_t bytes = (size_t)rows * quant_row_bytes(f, cols), blocks = bytes / (size_t)f->block_bytes;
    uint8_t *data = mem_alloc(bytes);
    for (size_t i = 0; i < bytes; i++) data[i] = (uint8_t)(i * 2654435761u >> 13);
    for (size_t b = 0; b < blocks; b++)
        packed_put(f, data + b * (size_t)f->block_bytes, f->block == 1 ? 0.01f : 0.001f, 0.001f);
    return data;
}

struct product {
    struct threads *threads;
    const struct gemm_isa *isa;
    struct gemm_job job;
    struct gemm_term term;
    struct gemm_source source;
    void *workspace;
};
static void run_product(void *context) {
    struct product *p = context;
    p->job.terms = &p->term, p->term.sources = &p->source;
    gemm_run(p->threads, p->isa, &p->job, 1, p->workspace);
}

struct buffers {
    float *x, *c;
    uint16_t *xb;
};

// A weight of either kind; the caller frees with weight_free.
static struct weight weight_made(struct table_weight *t, enum quant id, int64_t rows, int64_t cols) {
    if (id >= QUANT_WITH_TABLES) {
        if (table_weight_make(t, id, rows, cols, id == QUANT_NF4 ? TABLE_NESTED | TABLE_ROUND_BF16 : 0, 1)) abort();
        return t->w;
    }
    *t = (struct table_weight){0};
    const struct quant_format *f = quant_format(id);
    return (struct weight){.format = f, .rows = rows, .cols = cols, .data = packed(f, rows, cols)};
}
static void weight_free(struct table_weight *t, const struct weight *w) {
    if (!w->tables) mem_free((void *)(uintptr_t)w->data);
    table_weight_free(t);
}

// m rows times a weight or its transpose; the workspace is the caller's.
static struct product product_of(const struct set *set, struct threads *threads, const struct buffers *b,
                                 const struct weight *w, int64_t m, bool forward, bool bf16) {
    int64_t n = forward ? w->rows : w->cols, k = forward ? w->cols : w->rows;
    struct product p = {.threads = threads, .isa = set->gemm};
    p.source = gemm_source_weight(set->gemm, w, forward);
    p.term = (struct gemm_term){.x = bf16 ? (void *)b->xb : (void *)b->x,
                                .x_bf16 = bf16,
                                .bf16 = bf16,
                                .lanes_are_rows = forward,
                                .x_row = k,
                                .x_k = 1,
                                .k = k,
                                .row_end = m,
                                .n_sources = 1};
    p.job = (struct gemm_job){.m = m, .n = n, .c = b->c, .ldc = n, .scale = 1, .n_terms = 1};
    return p;
}

static struct timing time_product(const struct set *set, struct threads *threads, const struct buffers *b,
                                  const struct weight *w, int64_t m, bool forward, bool bf16) {
    struct product p = product_of(set, threads, b, w, m, forward, bf16);
    p.workspace = mem_alloc(gemm_workspace_bytes(threads_count(threads)));
    struct timing t = measure(run_product, &p);
    mem_free(p.workspace);
    return t;
}

static void bench_products(const struct set *set, struct threads *threads, const struct buffers *b, double top,
                           bool bf16) {
    static const struct {
        int64_t rows, cols;
        enum quant format;
    } shapes[] = {{576, 576, QUANT_Q4_1},  {192, 576, QUANT_Q4_1},       {1536, 576, QUANT_Q4_1},
                  {576, 1536, QUANT_Q4_1}, {49152, 576, QUANT_Q8_0},     {576, 576, QUANT_F32},
                  {1024, 1024, QUANT_F32}, {1024, 1024, QUANT_NF4},      {1024, 1024, QUANT_GPTQ_4},
                  {1024, 1024, QUANT_AWQ}, {1024, 1024, QUANT_FP8_E4M3}, {1024, 1024, QUANT_MXFP4_PAIRS},
                  {1024, 1024, QUANT_INT8}};
    static const int64_t ms[] = {1, 16, 128, 256, 512, 1024};
    int n = threads_count(threads);
    printf("\n%s, %d thread%s, %s products: GF at M = 1, 16, 128, 256, 512, 1024; share of peak (%.0f GF) at the "
           "largest M\n",
           set->name, n, n > 1 ? "s" : "", bf16 ? "bf16" : "fp32", top * n);
    for (size_t i = 0; i < COUNT_OF(shapes); i++) {
        struct table_weight made;
        struct weight w = weight_made(&made, shapes[i].format, shapes[i].rows, shapes[i].cols);
        for (int forward = 1; forward >= 0; forward--) {
            printf("%6lld x %4lld %-11s %s ", (long long)shapes[i].rows, (long long)shapes[i].cols,
                   quant_format(shapes[i].format)->name, forward ? "fwd" : "dX ");
            struct timing t = {0};
            double flops = 0;
            for (size_t j = 0; j < COUNT_OF(ms); j++) {
                if (shapes[i].rows > 10000 && ms[j] > 512) continue;
                t = time_product(set, threads, b, &w, ms[j], forward, bf16);
                flops = 2.0 * (double)(ms[j] * shapes[i].rows * shapes[i].cols) * 1e-9;
                printf("%7.1f", flops / t.best);
            }
            printf("  (median %6.1f)  %.1f %%\n", flops / t.median, 100 * flops / t.best / top / n);
        }
        weight_free(&made, &w);
    }
}

// Every format beside F32: their products take turns, so that a busy machine slows both.
static void bench_formats(const struct set *set, struct threads *threads, const struct buffers *b) {
    enum { ROWS = 1536, COLS = 1536, LEAST = 7, MOST = 60 };
    static const int64_t ms[] = {256, 512, 1024};
    struct table_weight none;
    struct weight plain = weight_made(&none, QUANT_F32, ROWS, COLS);
    void *workspace = mem_alloc(gemm_workspace_bytes(threads_count(threads)));
    printf(
        "\n%s, %d threads, %d x %d, fp32 products, medians: GF and share of F32's rate, x W^T at M = 256, 512, 1024; "
        "dX the same\n",
        set->name, threads_count(threads), ROWS, COLS);
    for (int f = 0; f < QUANT_COUNT; f++) {
        struct table_weight made;
        struct weight w = weight_made(&made, (enum quant)f, ROWS, COLS);
        const struct gemm_table_decoder *table = &set->gemm->table_decoders[f];
        bool fast = w.tables ? table->fits && table->fits(&w) : set->gemm->decoders[f].rows != NULL;
        printf("%-11s%s", w.format->name, fast ? " " : "*");
        for (int i = 0; i < 6; i++) {
            double seconds[MOST], ratios[MOST], begin = clock_now();
            int64_t m = ms[i % 3];
            struct product ours = product_of(set, threads, b, &w, m, i < 3, false),
                           f32 = product_of(set, threads, b, &plain, m, i < 3, false);
            ours.workspace = f32.workspace = workspace;
            run_product(&f32);
            int n = 0;
            for (; n < MOST && (n < LEAST || clock_now() - begin < 0.25); n++) {
                double start = clock_now();
                run_product(&f32);
                double middle = clock_now();
                run_product(&ours);
                seconds[n] = clock_now() - middle;
                ratios[n] = (middle - start) / seconds[n];
            }
            qsort(seconds, (size_t)n, sizeof *seconds, by_value);
            qsort(ratios, (size_t)n, sizeof *ratios, by_value);
            printf("%7.1f %4.2f", 2.0 * (double)m * ROWS * COLS / seconds[n / 2] * 1e-9, ratios[n / 2]);
        }
        printf("\n");
        fflush(stdout);
        weight_free(&made, &w);
    }
    printf("* element by element\n");
    weight_free(&none, &plain), mem_free(workspace);
}

struct decode {
    const struct gemm_decoder *d;
    const struct gemm_table_decoder *table;
    const struct weight *w;
    size_t stride;
    float *panel;
    int64_t rows, cols, cut;
    bool forward;
};
static void run_decode(void *context) {
    struct decode *d = context;
    if (d->forward) {
        for (int64_t r = 0; r < d->rows; r += GEMM_COLS) {
            for (int64_t k = 0; k < d->cols; k += d->cut) {
                int64_t n = d->cols - k < d->cut ? d->cols - k : d->cut;
                if (d->table)
                    d->table->rows(d->panel, d->w, r, k, n, GEMM_COLS);
                else
                    d->d->rows(d->panel, d->w->data + (size_t)r * d->stride, d->stride, k, n, GEMM_COLS);
            }
        }
    } else {
        for (int64_t c = 0; c < d->cols; c += GEMM_COLS) {
            for (int64_t k = 0; k < d->rows; k += d->cut) {
                int64_t n = d->rows - k < d->cut ? d->rows - k : d->cut;
                if (d->table)
                    d->table->cols(d->panel, d->w, k, n, c, GEMM_COLS);
                else
                    d->d->cols(d->panel, d->w->data + (size_t)k * d->stride, d->stride, n, c, GEMM_COLS);
            }
        }
    }
}
static void bench_decode(const struct set *set) {
    enum { ROWS = 576, COLS = 768 };
    float *panel = mem_alloc(COLS * GEMM_COLS * sizeof *panel);
    printf("\n%s, decoding into fp32 panels, G weights/s per core: forward panels of %d, of 128; dX panels of %d, of "
           "128\n",
           set->name, COLS, ROWS);
    for (int f = 0; f < QUANT_COUNT; f++) {
        struct table_weight made;
        struct weight w = weight_made(&made, (enum quant)f, ROWS, COLS);
        const struct gemm_table_decoder *table = w.tables ? &set->gemm->table_decoders[f] : NULL;
        if (table ? table->fits && table->fits(&w) : set->gemm->decoders[f].rows != NULL) {
            printf("%11s", w.format->name);
            for (int i = 0; i < 4; i++) {
                struct decode d = {
                    &set->gemm->decoders[f],           table, &w, table ? 0 : weight_stride(&w), panel, ROWS, COLS,
                    i % 2 ? 128 : i < 2 ? COLS : ROWS, i < 2};
                printf("%7.1f", ROWS * COLS / measure(run_decode, &d).best * 1e-9);
            }
            printf("\n");
        }
        weight_free(&made, &w);
    }
    mem_free(panel);
}

// Quantising, one core: values in, codes and scales out.
struct quantize {
    const uint8_t *values;
    uint8_t *codes;
    float *scales;
    int64_t count;
    enum number type;
    int kind; // 0 NF4, 1 LLM.int8, 2 scales of NF4
};
static void run_quantize(void *context) {
    struct quantize *q = context;
    if (q->kind == 0)
        nf4_quantize(q->codes, q->scales, q->values, q->type, q->count, 64, false, NULL);
    else if (q->kind == 1)
        int8_quantize((int8_t *)q->codes, q->scales, q->values, q->type, q->count / 1024, 1024, NULL);
    else
        nf4_quantize_scales(q->codes, q->scales, (const float *)(const void *)q->values, q->count, 0.5f);
}
static void bench_quantize(void) {
    enum { COUNT = 4 << 20 };
    static const char *const names[] = {"f32", "f16", "bf16"};
    uint8_t *values = mem_alloc((size_t)COUNT * 4), *codes = mem_alloc(COUNT);
    float *scales = mem_alloc(COUNT / 8);
    for (int type = NUMBER_F32; type <= NUMBER_BF16; type++) {
        for (int64_t i = 0; i < COUNT; i++) {
            float x = (float)(int32_t)((uint32_t)i * 2654435761u) * 0x1p-35f;
            uint16_t half = type == NUMBER_F16 ? f16_from_float(x) : bf16_from_float(x);
            memcpy(values + (type == NUMBER_F32 ? 4 : 2) * i, type == NUMBER_F32 ? (void *)&x : (void *)&half,
                   type == NUMBER_F32 ? 4 : 2);
        }
        double bytes = COUNT * (type == NUMBER_F32 ? 4.0 : 2.0) * 1e-6;
        struct quantize q = {values, codes, scales, COUNT, (enum number)type, 0};
        double nf4 = measure(run_quantize, &q).best;
        q.kind = 1;
        double int8 = measure(run_quantize, &q).best;
        printf("quantising %-4s, MB/s of values on one core: NF4 %.0f, LLM.int8 %.0f", names[type], bytes / nf4,
               bytes / int8);
        q.kind = 2, q.count = COUNT / 64;
        if (type == NUMBER_F32)
            printf(", and %.0f M nested scales/s", COUNT / 64 * 1e-6 / measure(run_quantize, &q).best);
        printf("\n");
    }
    mem_free(values), mem_free(codes), mem_free(scales);
}

// Generation: all linears of SmolLM2-135M and its head, one row, weights from cold memory.
struct token {
    struct product p;
    uint8_t *layer[30], *head;
};
static void run_token(void *context) {
    struct token *t = context;
    static const struct {
        int64_t rows, cols;
    } shapes[] = {{576, 576}, {192, 576}, {192, 576}, {576, 576}, {1536, 576}, {1536, 576}, {576, 1536}};
    for (int l = 0; l <= 30; l++) {
        const uint8_t *w = l < 30 ? t->layer[l] : t->head;
        for (int i = 0; i < (l < 30 ? 7 : 1); i++) {
            int64_t rows = l < 30 ? shapes[i].rows : 49152, cols = l < 30 ? shapes[i].cols : 576;
            enum quant format = l < 30 ? QUANT_Q4_1 : QUANT_Q8_0;
            t->p.source = (struct gemm_source){
                .format = format, .data = w, .stride = quant_row_bytes(quant_format(format), cols), .n = rows};
            t->p.term.x_row = t->p.term.k = cols;
            t->p.job.n = t->p.job.ldc = rows;
            run_product(&t->p);
            w += (size_t)rows * t->p.source.stride;
        }
    }
}
static void bench_token(const struct set *set, struct threads *threads, const struct buffers *b) {
    struct token t = {.p = {.threads = threads, .isa = set->gemm}};
    for (int l = 0; l < 30; l++) t.layer[l] = packed(quant_format(QUANT_Q4_1), 2 * 576 + 2 * 192 + 3 * 1536, 576);
    t.head = packed(quant_format(QUANT_Q8_0), 49152, 576);
    t.p.term = (struct gemm_term){.x = b->x, .lanes_are_rows = true, .x_k = 1, .row_end = 1, .n_sources = 1};
    t.p.job = (struct gemm_job){.m = 1, .c = b->c, .scale = 1, .n_terms = 1};
    t.p.workspace = mem_alloc(gemm_workspace_bytes(threads_count(threads)));
    struct timing m = measure(run_token, &t);
    double weights = 30.0 * (2 * 576 + 2 * 192 + 3 * 1536) * 576 + 49152.0 * 576;
    printf("%s, %d threads: linears and head of one token %.2f ms (median %.2f): %.0f tokens/s, %.1f G weights/s\n",
           set->name, threads_count(threads), m.best * 1e3, m.median * 1e3, 1 / m.best, weights / m.best * 1e-9);
    for (int l = 0; l < 30; l++) mem_free(t.layer[l]);
    mem_free(t.head), mem_free(t.p.workspace);
}

// Whole linear groups of SmolLM2-135M with adapters of rank 16 on every part, forward and backward.
struct group {
    struct cpu_backend b;
    struct op_call call;
    struct weight weights[3];
    bool backward;
    size_t used;
};
static void run_group(void *context) {
    struct group *g = context;
    struct error err = {0};
    int status = g->backward ? cpu_linear_group_backward(&g->b.base, &g->call, &err)
                             : cpu_linear_group_forward(&g->b.base, &g->call, &err);
    if (status) fprintf(stderr, "%s\n", err.text);
}
static struct tensor group_tensor(struct group *g, enum dtype dtype, int64_t rows, int64_t cols) {
    struct tensor t = {.dtype = dtype, .rows = rows, .cols = cols, .ld = cols, .offset = g->used};
    if (dtype == DTYPE_F32) {
        float *f = (float *)(void *)(g->b.arena + g->used);
        for (int64_t i = 0; i < rows * cols; i++) f[i] = (float)(i % 13) * 0.01f;
    }
    g->used += ((size_t)(rows * cols) * dtype_size(dtype) + 63) / 64 * 64;
    return t;
}
static void bench_linear(const struct set *set, struct threads *threads) {
    enum { T = 1024, R = 16, ARENA = 64 << 20 };
    static const int64_t sizes[3][4] = {{576, 576, 192, 192}, {576, 1536, 1536, 0}, {1536, 576, 0, 0}}; // in, out
    const struct cpu_isa isa = {.name = set->name, .gemm = set->gemm};
    printf("\n%s, %d threads: linear groups at T %d, Q4_1: ms without adapters, with rank %d on every part\n",
           set->name, threads_count(threads), T, R);
    for (int i = 0; i < 3; i++) {
        struct group g = {.b = {.arena = mem_map(ARENA), .arena_bytes = ARENA, .threads = threads, .isa = &isa}};
        int64_t in = sizes[i][0];
        double ms[2][2], flops = 0;
        g.call = (struct op_call){.op = OP_LINEAR_GROUP, .in[0] = group_tensor(&g, DTYPE_F32, T, in)};
        g.call.in[1] = group_tensor(&g, DTYPE_U32, T, 2);
        g.call.grad_in[0] = group_tensor(&g, DTYPE_F32, T, in);
        g.call.saved[0] = group_tensor(&g, DTYPE_F32, T, 3 * R);
        for (int p = 0; p < 3 && sizes[i][p + 1]; p++) {
            int64_t out = sizes[i][p + 1];
            const struct quant_format *f = quant_format(QUANT_Q4_1);
            g.weights[p] =
                (struct weight){.format = f, .rows = out, .cols = in, .data = packed(f, out, in), .name = "bench"};
            g.call.out[p] = group_tensor(&g, DTYPE_F32, T, out);
            g.call.grad_out[p] = group_tensor(&g, DTYPE_F32, T, out);
            struct linear_part *part = &g.call.p.linear.parts[g.call.p.linear.n_parts++];
            *part = (struct linear_part){.w = &g.weights[p], .n_spans = 1};
            part->spans[0] = (struct lora_span){.row_end = T, .scale = 2, .u_begin = p * R};
            part->spans[0].a = group_tensor(&g, DTYPE_F32, R, in),
            part->spans[0].da = group_tensor(&g, DTYPE_F32, R, in);
            part->spans[0].b = group_tensor(&g, DTYPE_F32, out, R),
            part->spans[0].db = group_tensor(&g, DTYPE_F32, out, R);
            flops += 2.0 * T * (double)(in * out);
        }
        g.call.workspace =
            group_tensor(&g, DTYPE_U8, 1, (int64_t)cpu_linear_group_workspace(&g.call, true, threads_count(threads)));
        for (int adapters = 0; adapters < 2; adapters++) {
            for (int p = 0; p < g.call.p.linear.n_parts; p++) g.call.p.linear.parts[p].n_spans = adapters;
            for (int back = 0; back < 2; back++) {
                g.backward = back;
                ms[adapters][back] = measure(run_group, &g).best * 1e3;
            }
        }
        printf("%5lld -> %4lld, %lld parts: forward %6.2f %6.2f (+%.1f %%, base %.0f GF)  backward %6.2f %6.2f (+%.1f "
               "%%)\n",
               (long long)in, (long long)sizes[i][1], (long long)g.call.p.linear.n_parts, ms[0][0], ms[1][0],
               100 * (ms[1][0] / ms[0][0] - 1), flops / ms[0][0] * 1e-6, ms[0][1], ms[1][1],
               100 * (ms[1][1] / ms[0][1] - 1));
        for (int p = 0; p < g.call.p.linear.n_parts; p++) mem_free((void *)(uintptr_t)g.weights[p].data);
        mem_unmap(g.b.arena, ARENA);
    }
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "", *only = argc > 3 ? argv[3] : "";
    int most = argc > 2 ? atoi(argv[2]) : 2;
    bool all = !*what;
    struct set set[4];
    int n = sets(set);
    struct buffers b = {mem_alloc((size_t)512 * 49152 * 4), mem_alloc((size_t)512 * 49152 * 4),
                        mem_alloc((size_t)512 * 49152 * 2)};
    if (!b.x || !b.c || !b.xb) return 1;
    for (int64_t i = 0; i < (int64_t)512 * 49152; i++) {
        b.x[i] = (float)(i % 17) * 0.05f;
        b.xb[i] = bf16_from_float(b.x[i]);
    }
    if (all || strcmp(what, "quantize") == 0) bench_quantize();
    for (int i = 0; i < n; i++) {
        if (*only && strcmp(only, set[i].name) != 0) continue;
        double top = peak(strncmp(set[i].name, "avx512", 6) == 0);
        printf("%s: peak %.1f GF per core\n", set[i].name, top);
        if (all || strcmp(what, "decode") == 0) bench_decode(&set[i]);
        for (int threads = most < 0 ? -most : 1; threads <= abs(most); threads++) {
            struct threads *pool = threads_open(threads, NULL);
            if (!pool) return 1;
            if (all || strcmp(what, "product") == 0) bench_products(&set[i], pool, &b, top, false);
            if (strcmp(what, "formats") == 0) bench_formats(&set[i], pool, &b);
            if (strcmp(what, "bf16") == 0) bench_products(&set[i], pool, &b, top, true);
            if (all || strcmp(what, "linear") == 0) bench_linear(&set[i], pool);
            if (all || strcmp(what, "token") == 0) bench_token(&set[i], pool, &b);
            threads_close(pool);
        }
    }
    mem_free(b.x), mem_free(b.c), mem_free(b.xb);
    return 0;
}
