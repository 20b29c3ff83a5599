// The packed GEMM: every instruction set the CPU has, bit for bit against plain loops of fmaf, and panel decoders
// against the reference decoders of quant.c.
#include "tests/harness.h"
#include "tests/packed.h"

#include "kernels/alloc.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/isa.h"

#include <math.h>
#include <string.h>
#include <sys/mman.h>

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

static uint32_t bits_of(float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    return u;
}
static bool same(float a, float b) {
    return bits_of(a) == bits_of(b) || (isnan(a) && isnan(b));
}

static uint32_t next_word(uint32_t *state) { // xorshift
    uint32_t x = *state;
    x ^= x << 13, x ^= x >> 17, x ^= x << 5;
    return *state = x;
}
static float next_float(uint32_t *state) {
    return (float)((int)(next_word(state) >> 8) - (1 << 23)) * 0x1p-23f;
}

static float *floats(int64_t n, uint32_t seed) {
    float *f = mem_alloc((size_t)n * sizeof *f);
    for (int64_t i = 0; i < n; i++) f[i] = next_float(&seed);
    return f;
}

// Packed rows of random codes; `wild` leaves the scales random too (NaN, infinity, denormals), else they are tame.
static uint8_t *packed(const struct quant_format *f, int64_t rows, int64_t cols, size_t stride, uint32_t seed,
                       bool wild) {
    uint8_t *data = mem_alloc((size_t)rows * stride);
    for (size_t i = 0; i < (size_t)rows * stride; i++) data[i] = (uint8_t)(next_word(&seed) >> 11);
    if (wild) return data;
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t b = 0; b < cols / f->block; b++) {
            uint8_t *at = data + (size_t)r * stride + (size_t)b * (size_t)f->block_bytes;
            float d = next_float(&seed), m = next_float(&seed);
            packed_put(f, at, f->block == 1 ? d : d * 0.1f, m);
        }
    }
    return data;
}

// All rows decoded by the reference.
static float *decoded(const struct quant_format *f, const uint8_t *data, size_t stride, int64_t rows, int64_t cols) {
    float *out = mem_alloc((size_t)(rows * cols) * sizeof *out);
    for (int64_t r = 0; r < rows; r++) f->decode(data + (size_t)r * stride, out + r * cols, cols);
    return out;
}

static void check_decoder(const struct set *set, const struct quant_format *f, bool wild) {
    int64_t cols = f->block == 1 ? 301 : f->block == 32 ? 672 : 1024, rows = 61;
    size_t stride = quant_row_bytes(f, cols) + 6;
    uint8_t *data = packed(f, rows, cols, stride, 77u + (unsigned)f->id, wild);
    float *want = decoded(f, data, stride, rows, cols);
    float *panel = mem_alloc((size_t)(cols + rows + 1) * GEMM_COLS * sizeof *panel);
    const struct gemm_decoder *d = &set->gemm->decoders[f->id];
    CHECK(d->rows && d->cols);
    int wrong = 0;
    static const int lanes[] = {48, 16, 32, 1, 15, 17, 33, 47};
    static const int starts[] = {0, 128, 256};
    for (size_t i = 0; i < COUNT_OF(lanes); i++) {
        for (size_t j = 0; j < COUNT_OF(starts); j++) {
            int n = lanes[i];
            int64_t k0 = starts[j], k = cols - k0, row = (int64_t)(i + j) % 8;
            d->rows(panel, data + (size_t)row * stride, stride, k0, k, n);
            for (int64_t a = 0; a < k; a++) {
                for (int b = 0; b < n; b++) wrong += !same(panel[a * GEMM_COLS + b], want[(row + b) * cols + k0 + a]);
            }
        }
    }
    CHECK_MSG(wrong == 0, "%s %s: %d wrong in panels of rows", set->name, f->name, wrong);
    wrong = 0;
    for (int64_t col = 0; col < cols; col += GEMM_COLS) {
        int n = cols - col < GEMM_COLS ? (int)(cols - col) : GEMM_COLS;
        d->cols(panel, data, stride, rows, col, n);
        for (int64_t a = 0; a < rows; a++) {
            for (int b = 0; b < n; b++) wrong += !same(panel[a * GEMM_COLS + b], want[a * cols + col + b]);
        }
    }
    CHECK_MSG(wrong == 0, "%s %s: %d wrong in panels of columns", set->name, f->name, wrong);
    mem_free(data), mem_free(want), mem_free(panel);
}

// A weight may be the last thing in a file: behind its last byte lies a page that nobody may read.
TEST(decoders_read_nothing_behind) {
    enum { ROWS = 48, COLS = 256, ROOM = 1 << 17, PAGE = 1 << 16 };
    uint8_t *room = mmap(NULL, ROOM + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    float *panel = mem_alloc(COLS * GEMM_COLS * sizeof *panel);
    struct set set[4];
    int n = sets(set);
    CHECK(room != MAP_FAILED && mprotect(room + ROOM, PAGE, PROT_NONE) == 0);
    for (int i = 0; i < n; i++) {
        for (int f = 0; f < QUANT_COUNT; f++) {
            const struct gemm_decoder *d = &set[i].gemm->decoders[f];
            size_t stride = quant_row_bytes(quant_format((enum quant)f), COLS);
            CHECK(ROWS * stride <= ROOM);
            if (!d->rows) continue;
            for (int rows = ROWS; rows > 0; rows -= 13) {
                const uint8_t *data = room + ROOM - (size_t)rows * stride;
                d->rows(panel, data, stride, 0, COLS, rows);
                d->rows(panel, data, stride, COLS / 2, COLS / 2, rows);
                for (int col = 0; col < COLS; col += GEMM_COLS)
                    d->cols(panel, data, stride, rows, col, COLS - col < GEMM_COLS ? COLS - col : GEMM_COLS);
            }
        }
    }
    mem_free(panel);
    munmap(room, ROOM + PAGE);
}

TEST(decoders_equal_reference) {
    // the others go element by element
    static const enum quant fast[] = {QUANT_F32,  QUANT_F16,   QUANT_BF16,   QUANT_Q4_0,  QUANT_Q4_1, QUANT_Q5_0,
                                      QUANT_Q5_1, QUANT_Q8_0,  QUANT_Q2_K,   QUANT_Q3_K,  QUANT_Q4_K, QUANT_Q5_K,
                                      QUANT_Q6_K, QUANT_MXFP4, QUANT_IQ4_NL, QUANT_IQ4_XS};
    struct set set[4];
    int n = sets(set);
    for (int i = 0; i < n; i++) {
        size_t decoders = 0;
        for (int f = 0; f < QUANT_COUNT; f++) decoders += set[i].gemm->decoders[f].rows != NULL;
        CHECK_INT(decoders, COUNT_OF(fast));
        for (size_t f = 0; f < COUNT_OF(fast); f++) {
            check_decoder(&set[i], quant_format(fast[f]), false);
            check_decoder(&set[i], quant_format(fast[f]), true);
        }
    }
}

// The specification of gemm_run, for terms that are not masked. bf16 products: odd element first.
static float operand(const struct gemm_term *t, int64_t m, int64_t k) {
    int64_t at = m * t->x_row + k * t->x_k;
    return t->x_bf16 ? bf16_to_float(((const uint16_t *)t->x)[at]) : ((const float *)t->x)[at];
}
static float rounded(float x) {
    return bf16_to_float(bf16_from_float(x));
}
static float flushed(float x) { // vdpbf16ps knows no numbers below the normal range
    return fabsf(x) < 0x1p-126f ? copysignf(0, x) : x;
}

static float naive(float c, const struct gemm_term *t, const float *w, int64_t ld, int64_t m, int64_t n) {
    if (m < t->row_begin || m >= t->row_end) return c;
    for (int64_t i = 0; i < t->k + t->k % 2; i++) {
        int64_t k = t->bf16 ? i ^ 1 : i;
        if (k >= t->k && !t->bf16) break;
        float a = k < t->k ? operand(t, m, k) : 0,
              b = k < t->k ? (t->lanes_are_rows ? w[n * ld + k] : w[k * ld + n]) : 0;
        c = t->bf16 ? flushed(fmaf(flushed(a), flushed(rounded(b)), flushed(c))) : fmaf(a, b, c);
    }
    return c;
}

struct product {
    enum quant format;
    int64_t m, n, k;
    bool forward, acc, bf16;
    int threads;
};

// One product with a packed weight, ld larger than cols everywhere.
static void check_product(const struct set *set, struct product p) {
    const struct quant_format *f = quant_format(p.format);
    int64_t rows = p.forward ? p.n : p.k, cols = p.forward ? p.k : p.n, ldx = p.k + 3, ldc = p.n + 5;
    size_t stride = quant_row_bytes(f, cols) + 4;
    uint8_t *data = packed(f, rows, cols, stride, 5, false);
    float *w = decoded(f, data, stride, rows, cols), *x = floats(p.m * ldx, 9), *c = floats(p.m * ldc, 11);
    uint16_t *xb = mem_alloc((size_t)(p.m * ldx) * sizeof *xb), *cb = mem_alloc((size_t)(p.m * ldc) * sizeof *cb);
    for (int64_t i = 0; i < p.m * ldx; i++) xb[i] = bf16_from_float(x[i]);
    for (int64_t i = 0; i < p.m * ldc; i++) cb[i] = bf16_from_float(c[i]);
    float *old = mem_alloc((size_t)(p.m * ldc) * sizeof *old);
    memcpy(old, c, (size_t)(p.m * ldc) * sizeof *old);
    struct weight weight = {.format = f, .rows = rows, .cols = cols, .data = data, .stride = stride, .name = "test"};
    struct gemm_source source = gemm_source_weight(set->gemm, &weight, p.forward);
    struct gemm_term term = {.x = p.bf16 ? (void *)xb : (void *)x,
                             .x_bf16 = p.bf16,
                             .bf16 = p.bf16,
                             .lanes_are_rows = p.forward,
                             .x_row = ldx,
                             .x_k = 1,
                             .k = p.k,
                             .row_end = p.m,
                             .sources = &source,
                             .n_sources = 1};
    struct gemm_job job = {.m = p.m,
                           .n = p.n,
                           .c = p.bf16 ? (void *)cb : (void *)c,
                           .ldc = ldc,
                           .c_bf16 = p.bf16,
                           .acc = p.acc,
                           .scale = 1,
                           .n_terms = 1,
                           .terms = &term};
    struct threads *threads = threads_open(p.threads, NULL);
    void *workspace = mem_alloc(gemm_workspace_bytes(p.threads));
    gemm_run(threads, set->gemm, &job, 1, workspace);
    int64_t wrong = 0;
    for (int64_t m = 0; m < p.m; m++) {
        for (int64_t n = 0; n < ldc; n++) {
            float start = p.bf16 ? rounded(old[m * ldc + n]) : old[m * ldc + n];
            float want = n < p.n ? naive(p.acc ? start : 0, &term, w, cols, m, n) : start; // behind a row: untouched
            float got = p.bf16 ? bf16_to_float(cb[m * ldc + n]) : c[m * ldc + n];
            wrong += !same(got, p.bf16 ? rounded(want) : want);
        }
    }
    CHECK_MSG(wrong == 0, "%s %s %s%s (%lld, %lld, %lld), %d threads: %lld wrong", set->name, f->name,
              p.forward ? "x W^T" : "dy W", p.bf16 ? " bf16" : "", (long long)p.m, (long long)p.n, (long long)p.k,
              p.threads, (long long)wrong);
    threads_close(threads);
    mem_free(data), mem_free(w), mem_free(x), mem_free(c), mem_free(xb), mem_free(cb), mem_free(old);
    mem_free(workspace);
}

static void check_formats(bool bf16) {
    struct set set[4];
    int n = sets(set);
    for (int i = 0; i < n; i++) {
        for (int f = 0; f < QUANT_WITH_TABLES; f++) {
            int64_t block = quant_format((enum quant)f)->block, k = block == 1 ? 131 : block == 32 ? 224 : 512;
            for (int way = 0; way < 2; way++) { // n or k, whichever runs along packed rows, is k
                int64_t other = way ? 101 : 77;
                check_product(&set[i], (struct product){(enum quant)f, 21, way ? k : other, way ? other : k, !way,
                                                        f % 2, bf16, 1 + f % 3});
                check_product(&set[i], (struct product){(enum quant)f, 1, way ? k : other, way ? other : k, !way, false,
                                                        bf16, 2});
            }
        }
    }
}
TEST(products_of_every_format) {
    check_formats(false);
}
TEST(bf16_products_of_every_format) {
    check_formats(true);
}

// x W^T or dy W for a weight however it is stored; the caller frees.
static float *weight_product(const struct set *set, const struct gemm_source *source, int64_t m, int64_t n, int64_t k,
                             bool forward) {
    float *x = floats(m * k, 9), *c = floats(m * n, 11);
    struct gemm_term term = {.x = x,
                             .lanes_are_rows = forward,
                             .x_row = k,
                             .x_k = 1,
                             .k = k,
                             .row_end = m,
                             .sources = source,
                             .n_sources = 1};
    struct gemm_job job = {.m = m, .n = n, .c = c, .ldc = n, .scale = 1, .n_terms = 1, .terms = &term};
    struct threads *threads = threads_open(2, NULL);
    void *workspace = mem_alloc(gemm_workspace_bytes(2));
    gemm_run(threads, set->gemm, &job, 1, workspace);
    threads_close(threads);
    mem_free(workspace), mem_free(x);
    return c;
}

// The same numbers whether a weight is read by its fast decoder, element by element, as rows of a larger one, or as
// columns of a matrix that is stored the other way round.
static void check_views(const struct set *set, const struct quant_format *f, bool forward) {
    int64_t cols = f->block == 1 ? 131 : f->block == 32 ? 224 : 512, rows = 101, first = 13, m = 20;
    int64_t n = forward ? rows : cols, k = forward ? cols : rows;
    size_t stride = quant_row_bytes(f, cols) + 4;
    uint8_t *data = packed(f, rows + first, cols, stride, 21, false);
    struct weight whole = {.format = f, .rows = rows + first, .cols = cols, .data = data, .stride = stride};
    struct weight view = weight_rows(&whole, first, rows), turned = {.format = f, .rows = rows + first, .cols = cols};
    struct gemm_source fast = gemm_source_weight(set->gemm, &view, forward), slow = fast;
    CHECK((fast.weight == NULL) == (set->gemm->decoders[f->id].rows != NULL));
    slow.weight = &view;
    float *want = weight_product(set, &fast, m, n, k, forward), *got = weight_product(set, &slow, m, n, k, forward);
    CHECK_MSG(memcmp(want, got, (size_t)(m * n) * sizeof *want) == 0, "%s %s: element by element", set->name, f->name);
    mem_free(got);
    if (f->block == 1) {
        uint8_t *other = mem_alloc((size_t)((rows + first) * cols * f->block_bytes));
        for (int64_t r = 0; r < rows + first; r++) {
            for (int64_t i = 0; i < cols; i++)
                memcpy(other + (i * (rows + first) + r) * f->block_bytes,
                       data + (size_t)r * stride + i * f->block_bytes, (size_t)f->block_bytes);
        }
        turned.transposed = true, turned.data = other;
        struct weight slice = weight_rows(&turned, first, rows);
        struct gemm_source source = gemm_source_weight(set->gemm, &slice, forward);
        CHECK(source.transposed && weight_bytes(&turned) == (size_t)((rows + first) * cols * f->block_bytes));
        got = weight_product(set, &source, m, n, k, forward);
        CHECK_MSG(memcmp(want, got, (size_t)(m * n) * sizeof *want) == 0, "%s %s: transposed", set->name, f->name);
        float one[3], same_three[3];
        weight_decode(&slice, 7, 5, 3, one), weight_decode(&view, 7, 5, 3, same_three);
        CHECK(memcmp(one, same_three, sizeof one) == 0);
        mem_free(other), mem_free(got);
    }
    mem_free(want), mem_free(data);
}

// Rows that are stored turned in blocks, as keys of latent attention are: the numbers of the same matrix in F32.
static void check_turned_blocks(const struct set *set, const struct quant_format *f, bool forward) {
    int64_t cols = 131, dim = f->block == 1 ? 25 : 2 * f->block, blocks = 3, rows = blocks * dim, m = 20;
    size_t stride = quant_row_bytes(f, dim);
    uint8_t *data = packed(f, blocks * cols, dim, stride, 21, false);
    float *plain = mem_alloc((size_t)(rows * cols) * sizeof *plain), *row = mem_alloc((size_t)dim * sizeof *row);
    for (int64_t i = 0; i < blocks * cols; i++) {
        f->decode(data + (size_t)i * stride, row, dim);
        for (int64_t d = 0; d < dim; d++) plain[(i / cols * dim + d) * cols + i % cols] = row[d];
    }
    struct weight turned = {
        .format = f, .rows = rows, .cols = cols, .data = data, .transposed = true, .turned_rows = dim};
    struct weight same = {.format = quant_format(QUANT_F32), .rows = rows, .cols = cols, .data = (uint8_t *)plain};
    CHECK(weight_bytes(&turned) == (size_t)(blocks * cols) * stride);
    CHECK(weight_stored_bytes(&turned) == weight_bytes(&turned));
    for (int64_t first = 0; first < 2 * dim; first += dim) { // whole, and without the first block
        struct weight a = weight_rows(&turned, first, rows - first), b = weight_rows(&same, first, rows - first);
        struct gemm_source got_from = gemm_source_weight(set->gemm, &a, forward);
        struct gemm_source want_from = gemm_source_weight(set->gemm, &b, forward);
        int64_t n = forward ? a.rows : cols, k = forward ? cols : a.rows;
        float *want = weight_product(set, &want_from, m, n, k, forward);
        float *got = weight_product(set, &got_from, m, n, k, forward), some[40];
        CHECK_MSG(memcmp(want, got, (size_t)(m * n) * sizeof *want) == 0, "%s %s: turned blocks", set->name, f->name);
        weight_decode(&a, dim - 1, 90, 40, some);
        CHECK(memcmp(some, plain + (first + dim - 1) * cols + 90, sizeof some) == 0);
        mem_free(want), mem_free(got);
    }
    mem_free(data), mem_free(plain), mem_free(row);
}

TEST(views_of_weights) {
    struct set set[4];
    int n = sets(set);
    for (int i = 0; i < n; i++) {
        for (int f = 0; f < QUANT_WITH_TABLES; f++) {
            check_views(&set[i], quant_format((enum quant)f), false);
            check_views(&set[i], quant_format((enum quant)f), true);
            check_turned_blocks(&set[i], quant_format((enum quant)f), false);
            check_turned_blocks(&set[i], quant_format((enum quant)f), true);
        }
    }
}

TEST(weight_decode_any_range) {
    for (int f = 0; f < QUANT_WITH_TABLES; f++) {
        const struct quant_format *format = quant_format((enum quant)f);
        int64_t cols = format->block == 1 ? 37 : 2 * format->block;
        uint8_t *data = packed(format, 3, cols, quant_row_bytes(format, cols), 4, false);
        float *want = decoded(format, data, quant_row_bytes(format, cols), 3, cols), got[600];
        struct weight w = {.format = format, .rows = 3, .cols = cols, .data = data};
        for (int64_t begin = 0; begin < cols; begin += 7) {
            for (int64_t count = 0; begin + count <= cols; count += 1 + count / 2) {
                weight_decode(&w, 2, begin, count, got);
                CHECK(memcmp(got, want + 2 * cols + begin, (size_t)count * sizeof *got) == 0);
            }
        }
        mem_free(data), mem_free(want);
    }
}

TEST(tails) { // every number of rows in a tile, of columns in a panel
    struct set set[4];
    int n = sets(set);
    for (int i = 0; i < n; i++) {
        for (int64_t m = 1; m <= 17; m++) {
            for (int64_t columns = 1; columns <= 49; columns += m == 5 || m == 8 ? 1 : 7) {
                check_product(&set[i], (struct product){QUANT_F32, m, columns, 19, true, true, false, 1});
                check_product(&set[i], (struct product){QUANT_F32, m, columns, 19, false, false, false, 1});
            }
        }
    }
}

TEST(long_chains) { // the inner index in blocks, and in rounds of all threads
    struct set set[4];
    int n = sets(set);
    for (int i = 0; i < n; i++) {
        check_product(&set[i], (struct product){QUANT_Q4_1, 35, 50, 4512, true, true, false, 2});
        check_product(&set[i], (struct product){QUANT_Q8_0, 35, 64, 10001, false, true, false, 3});
        check_product(&set[i], (struct product){QUANT_Q8_0, 9, 64, 10001, false, false, false, 2});
        check_product(&set[i], (struct product){QUANT_Q4_1, 35, 50, 4512, true, true, true, 2});
        check_product(&set[i], (struct product){QUANT_Q8_0, 35, 64, 4511, false, true, true, 3});
        check_product(&set[i], (struct product){QUANT_Q8_0, 1100, 64, 37, false, true, false, 3});
    }
}

// Numbers around the smallest normal one: products and sums fall below it.
TEST(bf16_flushes_tiny_numbers) {
#if defined(__x86_64__)
    if (!__builtin_cpu_supports("fma")) {
        test_skip("the C library's fmaf does not flush without the instruction");
        return;
    }
#endif
    struct set set[4];
    int n = sets(set);
    enum { M = 9, N = 50, K = 64 };
    uint16_t x[M * K];
    float w[N * K], c[M * N];
    uint32_t seed = 3;
    for (int i = 0; i < M * K; i++) x[i] = bf16_from_float(next_float(&seed) * ldexpf(1, -60 - i / K));
    for (int i = 0; i < N * K; i++) w[i] = next_float(&seed) * 0x1p-64f;
    struct gemm_source source = gemm_source_memory(w, false, K, N);
    struct gemm_term term = {.x = x,
                             .x_bf16 = true,
                             .bf16 = true,
                             .lanes_are_rows = true,
                             .x_row = K,
                             .x_k = 1,
                             .k = K,
                             .row_end = M,
                             .sources = &source,
                             .n_sources = 1};
    struct gemm_job job = {.m = M, .n = N, .c = c, .ldc = N, .scale = 1, .n_terms = 1, .terms = &term};
    struct threads *threads = threads_open(1, NULL);
    void *workspace = mem_alloc(gemm_workspace_bytes(1));
    for (int i = 0; i < n; i++) {
        gemm_run(threads, set[i].gemm, &job, 1, workspace);
        int wrong = 0, zeros = 0;
        for (int j = 0; j < M * N; j++) {
            wrong += !same(c[j], naive(0, &term, w, K, j / N, j % N));
            zeros += c[j] == 0;
        }
        CHECK_MSG(wrong == 0 && zeros > M && zeros < M * N - M, "%s: %d wrong, %d zeros", set[i].name, wrong, zeros);
    }
    threads_close(threads);
    mem_free(workspace);
}

// A chain of terms: packed weight, stacked sources, partial rows, masks, bias, scale; C transposed or not.
static float keep(const struct gemm_dropout *d, int64_t row, int64_t element, float x) {
    uint32_t words[4];
    random_four(d->key, d->keys[row * d->ld], d->keys[row * d->ld + 1], (uint32_t)(element / 4), words);
    return random_uniform(words[element % 4]) < d->p ? 0.0f : x * (1.0f / (1.0f - d->p));
}

struct chain {
    float *x, *u, *a, *b, *wf;
    uint8_t *w;
    uint32_t *keys;
    struct gemm_source base, stack[3], tail;
    struct gemm_term terms[3];
    struct weight bias;
    float *bias_values;
};

enum { CM = 45, CN = 75, CK = 96, CR = 20 };

static void chain_open(struct chain *c) {
    const struct quant_format *q = quant_format(QUANT_Q5_1), *plain = quant_format(QUANT_F32);
    *c = (struct chain){
        .x = floats(CM * CK, 1), .u = floats(CM * CR, 2), .a = floats(CN * CR, 3), .b = floats(CR * 96, 4)};
    size_t stride = quant_row_bytes(q, CK);
    c->w = packed(q, CN, CK, stride, 6, false);
    c->wf = decoded(q, c->w, stride, CN, CK);
    c->keys = mem_alloc(CM * 3 * sizeof *c->keys);
    uint32_t seed = 8;
    for (int i = 0; i < CM * 3; i++) c->keys[i] = next_word(&seed);
    c->bias_values = floats(CN, 12);
    c->bias = (struct weight){
        .format = plain, .rows = 1, .cols = CN, .data = (const uint8_t *)c->bias_values, .name = "bias"};
    c->base = (struct gemm_source){.format = QUANT_Q5_1, .data = c->w, .stride = stride, .n = CN};
    int64_t begin = 0;
    for (int i = 0; i < 3; i++) { // the rows of `a` in three sources, none of them a whole number of vectors
        int64_t n = i == 0 ? 11 : i == 1 ? 40 : CN - 51;
        c->stack[i] = gemm_source_memory(c->a + begin * CR, false, CR, n);
        begin += n;
    }
    c->tail = gemm_source_memory(c->b, false, 96, CN);
    struct gemm_dropout dropout = {
        {.seed = 42, .step = 3, .purpose_module = (uint32_t)RANDOM_DROPOUT << 24 | 5}, c->keys, 3, 0.3f};
    c->terms[0] = (struct gemm_term){.x = c->x,
                                     .lanes_are_rows = true,
                                     .x_row = CK,
                                     .x_k = 1,
                                     .k = CK,
                                     .row_end = CM,
                                     .sources = &c->base,
                                     .n_sources = 1};
    c->terms[1] = (struct gemm_term){.x = c->u,
                                     .lanes_are_rows = true,
                                     .x_row = CR,
                                     .x_k = 1,
                                     .k = CR,
                                     .row_begin = 3,
                                     .row_end = 30,
                                     .sources = c->stack,
                                     .n_sources = 3};
    c->terms[2] = (struct gemm_term){.x = c->u,
                                     .masked = GEMM_MASK_PRODUCT,
                                     .x_row = CR,
                                     .x_k = 1,
                                     .k = CR,
                                     .row_begin = 19,
                                     .row_end = CM,
                                     .sources = &c->tail,
                                     .n_sources = 1,
                                     .dropout = dropout};
}
static void chain_close(struct chain *c) {
    mem_free(c->x), mem_free(c->u), mem_free(c->a), mem_free(c->b), mem_free(c->wf), mem_free(c->w), mem_free(c->keys);
    mem_free(c->bias_values);
}
static float chain_element(const struct chain *c, float start, int64_t m, int64_t n) {
    start = naive(start, &c->terms[0], c->wf, CK, m, n);
    start = naive(start, &c->terms[1], c->a, CR, m, n);
    const struct gemm_term *t = &c->terms[2];
    if (m >= t->row_begin) start += keep(&t->dropout, m, n, naive(0, t, c->b, 96, m, n));
    return start * 0.75f;
}

TEST(chains_of_terms) {
    struct set set[4];
    int n_sets = sets(set);
    struct chain c;
    chain_open(&c);
    for (int i = 0; i < n_sets * 6; i++) {
        const struct gemm_isa *isa = set[i / 6].gemm;
        bool transposed = i % 2, with_bias = i % 3 == 0;
        int n_threads = 1 + i % 3;
        struct threads *threads = threads_open(n_threads, NULL);
        void *workspace = mem_alloc(gemm_workspace_bytes(n_threads));
        float *out = floats(100 * 100, 33), *old = floats(100 * 100, 33);
        struct gemm_job job = {.m = CM,
                               .n = CN,
                               .c = out,
                               .ldc = 100,
                               .c_transposed = transposed,
                               .acc = !with_bias,
                               .scale = 0.75f,
                               .bias = with_bias ? &c.bias : NULL,
                               .n_terms = 3,
                               .terms = c.terms};
        gemm_run(threads, isa, &job, 1, workspace);
        int wrong = 0;
        for (int64_t m = 0; m < CM; m++) {
            for (int64_t n = 0; n < CN; n++) {
                int64_t at = transposed ? n * 100 + m : m * 100 + n;
                wrong += !same(out[at], chain_element(&c, with_bias ? c.bias_values[n] : old[at], m, n));
            }
        }
        CHECK_MSG(wrong == 0, "%s: %d wrong, transposed %d, bias %d, %d threads", set[i / 6].name, wrong, transposed,
                  with_bias, n_threads);
        threads_close(threads);
        mem_free(workspace), mem_free(out), mem_free(old);
    }
    chain_close(&c);
}

// The adapters' products: x masked on the left, or on the right where its rows are the inner index; TN with the panel
// read in place; several jobs at once.
TEST(masked_operands_and_several_jobs) {
    struct set set[4];
    int n_sets = sets(set);
    enum { M = 300, K = 200, R = 13 };
    float *x = floats(M * K, 1), *a = floats(R * K, 2), *v = floats(M * R, 3);
    uint32_t *keys = mem_alloc(M * 2 * sizeof *keys), seed = 8;
    for (int i = 0; i < M * 2; i++) keys[i] = next_word(&seed);
    struct gemm_dropout dropout = {
        {.seed = 1, .step = 2, .purpose_module = (uint32_t)RANDOM_DROPOUT << 24 | 7}, keys, 2, 0.1f};
    struct gemm_source a_source = gemm_source_memory(a, false, K, R), x_source = gemm_source_memory(x, false, K, K);
    struct gemm_term terms[3] = {
        {.x = x,
         .lanes_are_rows = true,
         .masked = GEMM_MASK_X,
         .x_row = K,
         .x_k = 1,
         .k = K,
         .row_end = M,
         .sources = &a_source,
         .n_sources = 1,
         .dropout = dropout},
        {.x = v,
         .masked = GEMM_MASK_SOURCE,
         .x_row = 1,
         .x_k = R,
         .k = M,
         .row_end = R,
         .sources = &x_source,
         .n_sources = 1,
         .dropout = dropout},
        {.x = v, .x_row = 1, .x_k = R, .k = M, .row_end = R, .sources = &x_source, .n_sources = 1},
    };
    float *masked = mem_alloc(M * K * sizeof *masked);
    for (int64_t i = 0; i < M * K; i++) masked[i] = keep(&dropout, i / K, i % K, x[i]);
    for (int i = 0; i < n_sets * 3; i++) {
        int n_threads = 1 + i % 3, wrong = 0;
        struct threads *threads = threads_open(n_threads, NULL);
        void *workspace = mem_alloc(gemm_workspace_bytes(n_threads));
        float *u = floats(M * R, 5), *da = floats(R * K, 6), *db = floats(R * K, 7), *old = floats(R * K, 7);
        struct gemm_job jobs[4] = {
            {.m = M, .n = R, .c = u, .ldc = R, .scale = 2, .n_terms = 1, .terms = &terms[0]},
            {.m = R, .n = K, .c = da, .ldc = K, .scale = 1, .n_terms = 1, .terms = &terms[1]},
            {.m = 0, .n = 7, .c = NULL, .ldc = 7, .scale = 1, .n_terms = 1, .terms = &terms[1]},
            {.m = R, .n = K, .c = db, .ldc = K, .acc = true, .scale = 1, .n_terms = 1, .terms = &terms[2]},
        };
        gemm_run(threads, set[i / 3].gemm, jobs, 4, workspace);
        struct gemm_term plain = terms[0];
        plain.x = masked;
        for (int64_t m = 0; m < M; m++) {
            for (int64_t n = 0; n < R; n++) wrong += !same(u[m * R + n], 2 * naive(0, &plain, a, K, m, n));
        }
        for (int64_t m = 0; m < R; m++) {
            for (int64_t n = 0; n < K; n++) {
                wrong += !same(da[m * K + n], naive(0, &terms[1], masked, K, m, n));
                wrong += !same(db[m * K + n], naive(old[m * K + n], &terms[2], x, K, m, n));
            }
        }
        CHECK_MSG(wrong == 0, "%s, %d threads: %d wrong", set[i / 3].name, n_threads, wrong);
        threads_close(threads);
        mem_free(workspace), mem_free(u), mem_free(da), mem_free(db), mem_free(old);
    }
    mem_free(x), mem_free(a), mem_free(v), mem_free(keys), mem_free(masked);
}

TEST_MAIN(CASE(decoders_read_nothing_behind), CASE(decoders_equal_reference), CASE(products_of_every_format),
          CASE(bf16_products_of_every_format), CASE(views_of_weights), CASE(weight_decode_any_range), CASE(tails),
          CASE(bf16_flushes_tiny_numbers), CASE(long_chains), CASE(chains_of_terms),
          CASE(masked_operands_and_several_jobs))
