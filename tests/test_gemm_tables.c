// The packed GEMM on formats with tables: panels against weight_decode, products against those of the decoded weight,
// bit for bit, in every instruction set the CPU has, on shapes with and without a fast decoder.
#include "tests/harness.h"
#include "tests/table_weights.h"

#include "kernels/alloc.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/isa.h"

#include <math.h>

struct set {
    const char *name;
    const struct gemm_isa *gemm;
};

static int sets(struct set out[4]) {
    int n = 0;
    out[n++] = (struct set){"c", &gemm_isa_c};
#if defined(__x86_64__)
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (avx2) out[n++] = (struct set){"avx2", &gemm_isa_avx2};
    if (avx512) out[n++] = (struct set){"avx512", &gemm_isa_avx512};
    if (avx512 && __builtin_cpu_supports("avx512bf16")) out[n++] = (struct set){"avx512bf16", &gemm_isa_avx512bf16};
#endif
    return n;
}

static const enum quant formats[] = {QUANT_NF4,      QUANT_FP4,      QUANT_INT8,       QUANT_GPTQ_2,
                                     QUANT_GPTQ_3,   QUANT_GPTQ_4,   QUANT_GPTQ_8,     QUANT_AWQ,
                                     QUANT_FP8_E4M3, QUANT_FP8_E5M2, QUANT_MXFP4_PAIRS};

static bool same(float a, float b) {
    return memcmp(&a, &b, 4) == 0 || (isnan(a) && isnan(b));
}

static float *decoded(const struct weight *w) {
    float *out = mem_alloc((size_t)(w->rows * w->cols) * sizeof *out);
    for (int64_t r = 0; r < w->rows; r++) weight_decode(w, r, 0, w->cols, out + r * w->cols);
    return out;
}

// Panels of every width, from every sort of row, of a view.
static void check_panels(const struct set *set, const struct gemm_table_decoder *d, const struct weight *w) {
    static const int lanes[] = {48, 16, 32, 1, 15, 17, 33, 47};
    static const int firsts[] = {0, 8, 3, 16, 29};
    float *want = decoded(w), *panel = mem_alloc((size_t)(w->cols + w->rows + 1) * GEMM_COLS * sizeof *panel);
    int wrong = 0;
    for (size_t i = 0; i < COUNT_OF(lanes); i++) {
        for (size_t j = 0; j < COUNT_OF(firsts); j++) {
            int n = lanes[i], row = firsts[j];
            int64_t k0 = j % 2 ? 128 : 0, k = j == 4 ? 64 : w->cols - k0;
            for (int64_t a = 0; a < (k + 1) * GEMM_COLS; a++) panel[a] = 77.0f;
            d->rows(panel, w, row, k0, k, n);
            for (int64_t a = 0; a <= k; a++) {
                for (int b = 0; b < GEMM_COLS; b++) { // lanes up to the next 16 are the decoder's
                    float got = panel[a * GEMM_COLS + b];
                    if (a < k && b < n) wrong += !same(got, want[(row + b) * w->cols + k0 + a]);
                    if (a == k || b >= n) wrong += got != 77.0f;
                }
            }
        }
    }
    CHECK_MSG(wrong == 0, "%s %s: %d wrong in panels of rows", set->name, w->format->name, wrong);
    wrong = 0;
    for (int64_t col = 0; col < w->cols; col += GEMM_COLS) {
        for (int first = 0; first < 40; first += 13) {
            int n = w->cols - col < GEMM_COLS ? (int)(w->cols - col) : GEMM_COLS;
            int64_t k = first == 13 ? 21 : w->rows - first;
            for (int64_t a = 0; a < (k + 1) * GEMM_COLS; a++) panel[a] = 77.0f;
            d->cols(panel, w, first, k, col, n);
            for (int64_t a = 0; a <= k; a++) {
                for (int b = 0; b < GEMM_COLS; b++) {
                    float got = panel[a * GEMM_COLS + b];
                    if (a < k && b < n) wrong += !same(got, want[(first + a) * w->cols + col + b]);
                    if (a == k || b >= n) wrong += got != 77.0f;
                }
            }
        }
    }
    CHECK_MSG(wrong == 0, "%s %s: %d wrong in panels of columns", set->name, w->format->name, wrong);
    mem_free(want), mem_free(panel);
}

// `wild`: scales are any bytes (NaN, infinity, numbers below the normal range), and so is every code.
static void check_decoders(bool wild) {
    struct set set[4];
    int n = sets(set), fast = 0;
    for (size_t f = 0; f < COUNT_OF(formats); f++) {
        for (int variant = 0; variant < 16; variant++) {
            struct table_weight t;
            if ((variant & 3) == 3) continue;
            bool odd = formats[f] >= QUANT_FP8_E4M3 && formats[f] <= QUANT_FP8_E5M2 && variant & TABLE_OTHER;
            CHECK_MSG(table_weight_make(&t, formats[f], 192, odd ? 301 : 384, variant, 3) == 0, "%s", t.err.text);
            if (wild) table_weight_spoil(&t, 99);
            struct weight view = weight_rows(&t.w, 8, 120);
            for (int i = 0; i < n; i++) {
                const struct gemm_table_decoder *d = &set[i].gemm->table_decoders[formats[f]];
                if (!d->fits || !d->fits(&view)) continue;
                check_panels(&set[i], d, &view);
                fast++;
            }
            table_weight_free(&t);
        }
    }
    CHECK_MSG(fast == n * 12 * 11, "%d fast decoders were checked", fast);
}
TEST(panels_equal_decoding) {
    check_decoders(false);
}
TEST(panels_of_any_bytes) {
    check_decoders(true);
}

struct product {
    int64_t m, n, k;
    bool forward, bf16;
    int threads;
};

static void multiply(const struct set *set, const struct product *p, const struct gemm_source *source, const float *x,
                     const uint16_t *xb, void *c) {
    struct gemm_term term = {.x = p->bf16 ? (const void *)xb : (const void *)x,
                             .x_bf16 = p->bf16,
                             .bf16 = p->bf16,
                             .lanes_are_rows = p->forward,
                             .x_row = p->k,
                             .x_k = 1,
                             .k = p->k,
                             .row_end = p->m,
                             .sources = source,
                             .n_sources = 1};
    struct gemm_job job = {.m = p->m, .n = p->n, .c = c, .ldc = p->n, .scale = 1, .n_terms = 1, .terms = &term};
    struct threads *threads = threads_open(p->threads, NULL);
    void *workspace = mem_alloc(gemm_workspace_bytes(p->threads));
    gemm_run(threads, set->gemm, &job, 1, workspace);
    threads_close(threads);
    mem_free(workspace);
}

// x W^T or dy W, with the weight as it is and with its decoded copy.
static void check_product(const struct set *set, const struct weight *w, int64_t m, bool forward, bool bf16,
                          int threads) {
    struct product p = {m, forward ? w->rows : w->cols, forward ? w->cols : w->rows, forward, bf16, threads};
    float *plain = decoded(w), *x = mem_alloc((size_t)(m * p.k) * sizeof *x);
    float *c = mem_alloc((size_t)(m * p.n) * sizeof *c), *want = mem_alloc((size_t)(m * p.n) * sizeof *want);
    uint16_t *xb = mem_alloc((size_t)(m * p.k) * sizeof *xb);
    for (int64_t i = 0; i < m * p.k; i++) x[i] = (float)test_random(4, (unsigned)i), xb[i] = bf16_from_float(x[i]);
    struct gemm_source source = gemm_source_weight(set->gemm, w, forward),
                       copy = gemm_source_memory(plain, false, w->cols, p.n);
    multiply(set, &p, &source, x, xb, c);
    multiply(set, &p, &copy, x, xb, want);
    int64_t wrong = 0;
    double sum = 0;
    for (int64_t i = 0; i < m * p.n; i++) wrong += !same(c[i], want[i]), sum += fabs((double)want[i]);
    CHECK_MSG(wrong == 0 && sum > 0, "%s %s %s%s (%lld, %lld, %lld), %d threads: %lld wrong", set->name,
              w->format->name, forward ? "x W^T" : "dy W", bf16 ? " bf16" : "", (long long)p.m, (long long)p.n,
              (long long)p.k, threads, (long long)wrong);
    mem_free(plain), mem_free(x), mem_free(c), mem_free(want), mem_free(xb);
}

static void check_products(bool bf16) {
    static const int64_t shapes[][2] = {{160, 192}, {96, 416}, {64, 2176}, {40, 37}, {5, 7}}; // some fit nothing fast
    struct set set[4];
    int n = sets(set), made = 0;
    for (size_t f = 0; f < COUNT_OF(formats); f++) {
        for (size_t s = 0; s < COUNT_OF(shapes); s++) {
            struct table_weight t;
            int variant = (int)(f * 5 + s * 7) % 16;
            if ((variant & 3) == 3) variant ^= 1;
            if (table_weight_make(&t, formats[f], shapes[s][0], shapes[s][1], variant, 8) == 0) {
                for (int i = 0; i < n; i++) {
                    struct weight view = weight_rows(&t.w, t.w.rows > 40 ? 8 : 0, t.w.rows - (t.w.rows > 40 ? 16 : 0));
                    for (int forward = 0; forward < 2; forward++) {
                        check_product(&set[i], &view, 33, forward, bf16, 1 + (int)(f + s) % 3);
                        check_product(&set[i], &t.w, 1, forward, bf16, 2);
                        made += 2;
                    }
                }
            }
            table_weight_free(&t);
        }
    }
    CHECK_MSG(made >= n * 4 * 42, "%d products were made", made);
}
TEST(products_equal_those_of_the_decoded_weight) {
    check_products(false);
}
TEST(bf16_products_equal_those_of_the_decoded_weight) {
    check_products(true);
}

// Query, key and value side by side: a panel takes lanes from several weights, at any place within one.
TEST(several_sources) {
    struct set set[4];
    int n = sets(set);
    enum { M = 19, K = 192 };
    for (size_t f = 0; f < COUNT_OF(formats); f++) {
        struct table_weight t[2];
        CHECK(table_weight_make(&t[0], formats[f], 96, K, 1, 4) == 0 &&
              table_weight_make(&t[1], formats[f], 32, K, 2, 5) == 0);
        struct weight parts[3] = {weight_rows(&t[0].w, 5, 37), t[1].w, weight_rows(&t[0].w, 50, 41)};
        float *x = mem_alloc(M * K * sizeof *x), c[2][M * 110];
        for (unsigned i = 0; i < M * K; i++) x[i] = (float)test_random(6, i);
        for (int i = 0; i < n; i++) {
            float *plain[3];
            struct gemm_source sources[2][3];
            for (int p = 0; p < 3; p++) {
                plain[p] = decoded(&parts[p]);
                sources[0][p] = gemm_source_weight(set[i].gemm, &parts[p], true);
                sources[1][p] = gemm_source_memory(plain[p], false, K, parts[p].rows);
            }
            for (int which = 0; which < 2; which++) {
                struct gemm_term term = {.x = x,
                                         .lanes_are_rows = true,
                                         .x_row = K,
                                         .x_k = 1,
                                         .k = K,
                                         .row_end = M,
                                         .sources = sources[which],
                                         .n_sources = 3};
                struct gemm_job job = {
                    .m = M, .n = 110, .c = c[which], .ldc = 110, .scale = 1, .n_terms = 1, .terms = &term};
                struct threads *threads = threads_open(2, NULL);
                void *workspace = mem_alloc(gemm_workspace_bytes(2));
                gemm_run(threads, set[i].gemm, &job, 1, workspace);
                threads_close(threads);
                mem_free(workspace);
            }
            CHECK_MSG(memcmp(c[0], c[1], sizeof c[0]) == 0, "%s %s", set[i].name, parts[0].format->name);
            for (int p = 0; p < 3; p++) mem_free(plain[p]);
        }
        mem_free(x);
        table_weight_free(&t[0]), table_weight_free(&t[1]);
    }
}

TEST_MAIN(CASE(panels_equal_decoding), CASE(panels_of_any_bytes), CASE(products_equal_those_of_the_decoded_weight),
          CASE(bf16_products_equal_those_of_the_decoded_weight), CASE(several_sources))
