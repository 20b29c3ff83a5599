// Packed formats: decoders against test vectors and golden sums of ggml's own decoders, encoders against golden sums of
// ggml's encoders, error bounds that hold and are tight, odd addresses, and the type table.
#include "kernels/alloc.h"
#include "kernels/quant.h"
#include "tests/harness.h"
#include "tests/packed.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_BLOCK = 256, MAX_BYTES = 1024 };

static const enum quant encoded_formats[] = {QUANT_F32,  QUANT_F16,  QUANT_BF16, QUANT_Q4_0, QUANT_Q4_1,
                                             QUANT_Q5_0, QUANT_Q5_1, QUANT_Q8_0, QUANT_Q4_K, QUANT_Q6_K};

TEST(table) {
    static const int of_ggml[] = {0,  1,  2,  3,  6,  7,  8,  10, 11, 12, 13, 14, 15, 16, 17,
                                  18, 19, 20, 21, 22, 23, 29, 30, 34, 35, 39, 40, 41, 42};
    for (size_t i = 0; i < COUNT_OF(of_ggml); i++) {
        const struct quant_format *f = quant_by_ggml_type(of_ggml[i]);
        int block = 0, bytes = 0;
        CHECK_INT(f->ggml_type, of_ggml[i]);
        CHECK(quant_by_name(f->name) == f && quant_format(f->id) == f);
        CHECK_STR(quant_ggml_type_name(f->ggml_type), f->name);
        CHECK(quant_ggml_type_size(f->ggml_type, &block, &bytes) && block == f->block && bytes == f->block_bytes);
        CHECK_NEAR(f->bits, 8.0 * f->block_bytes / f->block, 0);
        CHECK_INT(quant_row_bytes(f, 1024), 1024 / f->block * f->block_bytes);
        CHECK(f->decode != NULL);
    }
    for (int i = QUANT_WITH_TABLES; i < QUANT_COUNT; i++) {
        const struct quant_format *f = quant_format((enum quant)i);
        CHECK(quant_by_name(f->name) == f && f->ggml_type == -1 && f->decode_at && !f->decode && !f->encode);
    }
    CHECK_INT(quant_row_bytes(quant_format(QUANT_Q4_0), (int64_t)1 << 40), ((int64_t)1 << 35) * 18);
    CHECK(quant_by_name("Q9_9") == NULL && quant_by_ggml_type(-1) == NULL && quant_by_ggml_type(9) == NULL);
    CHECK(quant_ggml_type_name(-1) == NULL && quant_ggml_type_name(43) == NULL &&
          quant_ggml_type_name(1 << 30) == NULL);
    static const int removed[] = {4, 5, 31, 32, 33, 36, 37, 38, 43, -1, 1000};
    static const struct {
        int id, block, bytes;
        const char *name;
    } others[] = {{9, 32, 36, "Q8_1"},      {10, 256, 84, "Q2_K"},  {13, 256, 176, "Q5_K"},   {15, 256, 292, "Q8_K"},
                  {16, 256, 66, "IQ2_XXS"}, {20, 32, 18, "IQ4_NL"}, {23, 256, 136, "IQ4_XS"}, {28, 1, 8, "F64"},
                  {29, 256, 56, "IQ1_M"},   {34, 256, 54, "TQ1_0"}, {39, 32, 17, "MXFP4"},    {40, 64, 36, "NVFP4"},
                  {41, 128, 18, "Q1_0"},    {42, 64, 18, "Q2_0"}};
    int block, bytes;
    for (size_t i = 0; i < COUNT_OF(removed); i++) CHECK(!quant_ggml_type_size(removed[i], &block, &bytes));
    for (size_t i = 0; i < COUNT_OF(others); i++) {
        CHECK(quant_ggml_type_size(others[i].id, &block, &bytes) && block == others[i].block &&
              bytes == others[i].bytes);
        CHECK_STR(quant_ggml_type_name(others[i].id), others[i].name);
    }
}

// Block bytes (37 k + 11) & 255, then scale 0.5 and minimum 0.25, MXFP4's exponent 127, NVFP4's four scales 38 40 30
// 01. y = sum and w = sum of (i + 1) y[i]. The rows of formats.md 2.4.
TEST(decode_vectors) {
    static const struct {
        enum quant id;
        double y0, y1, y15, y16, y31, before_half, half, last, sum, weighted;
    } rows[] = {
        {QUANT_Q4_0, -1.5, 1, -4, -1.5, 0, -4, -1.5, 0, -10.5, -259},
        {QUANT_Q4_1, 7.75, 2.25, 5.25, 4.75, 6.25, 5.25, 4.75, 6.25, 130.5, 2123.5},
        {QUANT_Q5_0, 4.5, -1, -6, 7, 0.5, -6, 7, 0.5, 7.5, 56},
        {QUANT_Q5_1, 9.75, 12.25, 15.25, 9.75, 2.75, 15.25, 9.75, 2.75, 260.5, 4082.5},
        {QUANT_Q8_0, 42.5, 61, -64, -45.5, -24, -64, -45.5, -24, -88, -4040},
        {QUANT_IQ4_NL, -17.5, 12.5, -63.5, -17.5, 0.5, -63.5, -17.5, 0.5, -128.5, -3459.5},
        {QUANT_MXFP4, 0, 3, -1.5, 1.5, 3, -1.5, 1.5, 3, 12.5, 319},
        {QUANT_Q2_K, 16.5, 0, 11, -0.75, -0.75, 21, 3.75, 2.25, 1029.5, 121565},
        {QUANT_Q3_K, 40.5, -54, -27, -48, 32, 36, 1, 21, 479, 88572.5},
        {QUANT_Q4_K, 157.75, -12.75, 80.25, 157.75, 80.25, 40.5, 211.5, 24.25, 27220, 3786420},
        {QUANT_Q5_K, 405.75, -12.75, 80.25, 405.75, 80.25, -1.5, 523.5, 54.25, 58108, 8013724},
        {QUANT_Q6_K, -715.5, 848, -159, -216, -48, 750, -175.5, -30, 2306, 392210},
        {QUANT_IQ4_XS, 32.5, -0.5, -44.5, 32.5, 17.5, 98, -292.5, -8, -5502.5, -1045567},
        {QUANT_Q1_0, 0.5, -0.5, -0.5, 0.5, 0.5, -0.5, 0.5, 0.5, 0, -266},
        {QUANT_Q2_0, 0, 0, 1, 0, 0, 0, 0, 0.5, 15, 406.5},
        {QUANT_NVFP4, -6, 2, -1, 12, -4, -4, -3, 0.0009765625, -4.4892578125, -176.3291015625},
    };
    for (size_t r = 0; r < COUNT_OF(rows); r++) {
        const struct quant_format *f = quant_format(rows[r].id);
        uint8_t bytes[MAX_BYTES];
        float y[MAX_BLOCK];
        for (int k = 0; k < f->block_bytes; k++) bytes[k] = (uint8_t)(37 * k + 11);
        packed_put(f, bytes, 0.5f, 0.25f);
        if (f->id == QUANT_MXFP4) bytes[0] = 127;
        if (f->id == QUANT_NVFP4) memcpy(bytes, "\x38\x40\x30\x01", 4);
        f->decode(bytes, y, f->block);
        int n = f->block;
        double sum = 0, weighted = 0;
        for (int i = 0; i < n; i++) sum += (double)y[i], weighted += (i + 1) * (double)y[i];
        CHECK_MSG((double)y[0] == rows[r].y0 && (double)y[1] == rows[r].y1 && (double)y[15] == rows[r].y15 &&
                      (double)y[16] == rows[r].y16,
                  "%s", f->name);
        CHECK_MSG((double)y[31] == rows[r].y31 && (double)y[n / 2 - 1] == rows[r].before_half, "%s", f->name);
        CHECK_MSG((double)y[n / 2] == rows[r].half && (double)y[n - 1] == rows[r].last, "%s", f->name);
        CHECK_MSG(sum == rows[r].sum && weighted == rows[r].weighted, "%s: %g %g", f->name, sum, weighted);
    }
}

static uint64_t fnv(const uint8_t *bytes, size_t n) {
    uint64_t h = 1469598103934665603u;
    for (size_t i = 0; i < n; i++) h = (h ^ bytes[i]) * 1099511628211u;
    return h;
}

// Blocks with scales of every kind, then 512 of random bytes, the last 256 of them with an ordinary scale. Returns how
// many. Extreme scales come with codes that are all low, all high, mixed, or count upwards through the whole block.
enum { MOST_BLOCKS = 1300 };
static int golden_blocks(const struct quant_format *f, uint8_t *out) {
    static const uint16_t scales[] = {0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x3C00, 0xB555,
                                      0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00}; // zeros, denormals, ..., infinity, NaN
    static const int fills[] = {0x00, 0xFF, 0x55, 0x80, -1};
    const size_t bytes = (size_t)f->block_bytes;
    uint32_t state = 12345;
    int n = 0;
    for (size_t a = 0; a < COUNT_OF(scales); a++) {
        for (size_t b = 0; b < (packed_places(f->id).min >= 0 ? COUNT_OF(scales) : 1); b++) {
            for (size_t c = 0; c < COUNT_OF(fills); c++, n++) {
                uint8_t *block = out + (size_t)n * bytes;
                for (size_t i = 0; i < bytes; i++) block[i] = (uint8_t)(fills[c] < 0 ? i * 7 + a : (size_t)fills[c]);
                packed_put(f, block, f16_to_float(scales[a]), f16_to_float(scales[b]));
            }
        }
    }
    for (int i = 0; i < 512; i++, n++) {
        uint8_t *block = out + (size_t)n * bytes;
        for (size_t k = 0; k < bytes; k++) {
            state = state * 1664525u + 1013904223u;
            block[k] = (uint8_t)(state >> 24);
        }
        if (i >= 256) packed_put(f, block, 0.037f * (float)(i - 300), 0.011f * (float)(i - 400));
        if (i < 256) block[0] = (uint8_t)i; // every scale of MXFP4 and NVFP4
    }
    return n;
}

static uint64_t float_sum(float *values, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (isnan(values[i])) memcpy(&values[i], &(uint32_t){0x7FC00000}, 4); // any NaN is as good
    return fnv((const uint8_t *)values, n * sizeof *values);
}

// The sums were made from ggml's dequantize_row_* on the same bytes.
TEST(decode_equals_ggml) {
    static const struct {
        enum quant id;
        uint64_t sum;
    } rows[] = {
        {QUANT_Q4_0, 0xa83d25b4ee4e0dc8},   {QUANT_Q4_1, 0x2b2da3aee748f4d5},    {QUANT_Q5_0, 0x7ad2c21ee0ea5ff5},
        {QUANT_Q5_1, 0xadb4897d75b05218},   {QUANT_Q8_0, 0xac2493285e47de08},    {QUANT_Q1_0, 0x0f655a00d77b3e03},
        {QUANT_Q2_0, 0xfba38566d7d8a46a},   {QUANT_MXFP4, 0xfb1bc3fe18d1b3c2},   {QUANT_NVFP4, 0x49622ebcba7daf56},
        {QUANT_Q2_K, 0x8ef3a90a03141c66},   {QUANT_Q3_K, 0x82c2e15118837f98},    {QUANT_Q4_K, 0x7cf6d2b070a650f3},
        {QUANT_Q5_K, 0x1eb5128cc17423b0},   {QUANT_Q6_K, 0xa286160ed2c9ebe2},    {QUANT_Q8_K, 0x4d1fa0d257dfe465},
        {QUANT_TQ1_0, 0x9c9c5a93f0191618},  {QUANT_TQ2_0, 0xa3aedb6ae966f7f6},   {QUANT_IQ1_S, 0x6d1ecc2185dfde6a},
        {QUANT_IQ1_M, 0x66b2ae83e0c61ded},  {QUANT_IQ2_XXS, 0x5c9c3b0caf1721b1}, {QUANT_IQ2_XS, 0x3fe9bb5e9b18d8a3},
        {QUANT_IQ2_S, 0xca10ef382cf496ef},  {QUANT_IQ3_XXS, 0xd28cbaad5be7d53f}, {QUANT_IQ3_S, 0x58222d5e07d63230},
        {QUANT_IQ4_NL, 0x9a0bf31154957fd2}, {QUANT_IQ4_XS, 0x8cdfb26f423c3849},
    };
    uint8_t *bytes = mem_alloc(MOST_BLOCKS * MAX_BYTES + 1);
    float *values = mem_alloc((size_t)MOST_BLOCKS * MAX_BLOCK * sizeof *values);
    CHECK_INT(COUNT_OF(rows), QUANT_WITH_TABLES - 3);
    for (size_t r = 0; r < COUNT_OF(rows); r++) {
        const struct quant_format *f = quant_format(rows[r].id);
        int64_t n = golden_blocks(f, bytes + 1);
        CHECK(n <= MOST_BLOCKS);
        f->decode(bytes + 1, values, n * f->block);
        uint64_t sum = float_sum(values, (size_t)(n * f->block));
        CHECK_MSG(sum == rows[r].sum, "%s: 0x%016llx", f->name, (unsigned long long)sum);
    }
    mem_free(bytes);
    mem_free(values);
}

enum { GOLDEN = 8192, GOLDEN_K = 1 << 17 };
static void golden_values(float *x) {
    for (unsigned i = 0; i < GOLDEN_K; i++) {
        double v = test_random(7, i) + test_random(8, i) + test_random(9, i);
        unsigned block = i / 32;
        x[i] = (float)(v * pow(2.0, (double)(block % 24) - 12.0));
        if (block % 16 == 5) x[i] = (float)((int)(i * 7 % 33) - 16) * 0.25f; // many ties
        if (block % 16 == 9) x[i] = i % 32 == 3 ? -2.0f : 0.0f;
        if (block % 64 == 11) x[i] = block % 128 == 11 ? 0.0f : -1.5f;
    }
}

// The sums were made from ggml's quantize_row_*_ref on the same values, compiled without fma.
TEST(encode_equals_ggml) {
    static const struct {
        enum quant id;
        uint64_t sum;
    } rows[] = {
        {QUANT_Q4_0, 0x0903740076261f21}, {QUANT_Q4_1, 0xba05f3daf1e227ca}, {QUANT_Q5_0, 0x7040a99ba9cf0f7e},
        {QUANT_Q5_1, 0x6b1219b2f7ca1eed}, {QUANT_Q8_0, 0x66a0a846280d9fa7}, {QUANT_Q4_K, 0x1ebaa96a7ec2fb88},
        {QUANT_Q6_K, 0x79954f3213c3acd2},
    };
    float *x = mem_alloc(GOLDEN_K * sizeof *x);
    uint8_t *bytes = mem_alloc(GOLDEN_K * 4);
    golden_values(x);
    for (size_t r = 0; r < COUNT_OF(rows); r++) {
        const struct quant_format *f = quant_format(rows[r].id);
        int64_t n = f->block == 256 ? GOLDEN_K : GOLDEN; // what a search decides comes out the same most of the time
        f->encode(x, bytes, n);
        uint64_t sum = fnv(bytes, quant_row_bytes(f, n));
        CHECK_MSG(sum == rows[r].sum, "%s: 0x%016llx", f->name, (unsigned long long)sum);
    }
    mem_free(x);
    mem_free(bytes);
}

TEST(encode_by_hand) {
    float x[32] = {0};
    uint8_t b[34];
    x[0] = -8, x[1] = 7, x[2] = 8, x[16] = 0.5f, x[17] = 0.4999f, x[18] = -0.5f;
    quant_format(QUANT_Q4_0)->encode(x, b, 32); // d = -8 / -8 = 1; the first of the two extremes counts
    CHECK(b[0] == 0x00 && b[1] == 0x3C);
    CHECK_INT(b[2], 0x90); // low: -8 -> 0; high: 0.5 -> 9
    CHECK_INT(b[3], 0x8F); // 7 -> 15; 0.4999 -> 8
    CHECK_INT(b[4], 0x8F); // 8 -> 16, cut to 15; -0.5 -> 8
    memset(x, 0, sizeof x);
    x[0] = 127, x[1] = -127, x[2] = 0.5f, x[3] = -0.5f, x[4] = 1.5f, x[31] = -3;
    quant_format(QUANT_Q8_0)->encode(x, b, 32); // halves go away from zero
    static const int8_t want[] = {127, -127, 1, -1, 2};
    CHECK(b[0] == 0x00 && b[1] == 0x3C && memcmp(b + 2, want, sizeof want) == 0 && (int8_t)b[33] == -3);
    for (int i = 0; i < 32; i++) x[i] = (float)i;
    quant_format(QUANT_Q5_1)->encode(x, b, 32);
    CHECK(b[0] == 0x00 && b[1] == 0x3C && b[2] == 0 && b[3] == 0); // d = 1, m = 0
    CHECK(b[4] == 0 && b[5] == 0 && b[6] == 0xFF && b[7] == 0xFF && b[8] == 0x00 && b[9] == 0x11 && b[23] == 0xFF);
}

// The largest error of n values that are packed and unpacked, relative to the largest of them; of plain numbers (each
// is a block) relative to itself.
static double worst_error(const struct quant_format *f, const float *x, int n, int *where) {
    float y[MAX_BLOCK];
    uint8_t bytes[MAX_BYTES];
    double most = 0, worst = 0;
    f->encode(x, bytes, n);
    f->decode(bytes, y, n);
    for (int i = 0; i < n; i++) {
        double here = fabs((double)x[i]), error = fabs((double)x[i] - (double)y[i]);
        most = fmax(most, here);
        if (f->block == 1) error = here >= 0x1p-14 ? error / here : 0;
        if (error > worst) worst = error, *where = i;
    }
    return f->block == 1 ? worst : worst / most;
}

// The largest error seen against the bound: never above, and the worst case comes near it. Of K formats ordinary
// numbers stay far below; the next test looks for theirs.
TEST(error_bounds_hold_and_are_tight) {
    for (size_t r = 0; r < COUNT_OF(encoded_formats); r++) {
        const struct quant_format *f = quant_format(encoded_formats[r]);
        double worst = 0;
        int n = f->block > 32 ? f->block : 32, at;
        for (unsigned trial = 0; trial < (n > 32 ? 2000 : 20000); trial++) {
            float x[MAX_BLOCK];
            double scale = pow(2.0, (double)(trial % 16) - 4.0);
            for (unsigned i = 0; i < (unsigned)n; i++) x[i] = (float)(scale * test_random(trial, i));
            if (trial % 3 == 0) x[5] = (float)scale, x[6] = -(float)scale; // both ends
            if (trial % 3 == 1)
                for (int i = 0; i < n; i++) x[i] = 1.0f + x[i] / (float)(scale * 1000); // just above a power of two
            worst = fmax(worst, worst_error(f, x, n, &at));
        }
        CHECK_MSG(worst <= f->error_bound, "%s: error %.6f above the bound %.6f", f->name, worst, f->error_bound);
        CHECK_MSG(worst >= (n > 32 ? 0.3 : 0.9) * f->error_bound, "%s: error %.6f, the bound %.6f is loose", f->name,
                  worst, f->error_bound);
    }
}

// Numbers in [-1, 1] that are changed a few at a time, near the worst of them more often, and kept where the error
// grows.
static double climb(const struct quant_format *f, unsigned seed, int steps) {
    float best[MAX_BLOCK], x[MAX_BLOCK];
    unsigned k = 0;
    int at = 0, at_x = 0;
    for (int i = 0; i < MAX_BLOCK; i++) best[i] = (float)test_random(seed, k++);
    double worst = worst_error(f, best, MAX_BLOCK, &at);
    for (int step = 0; step < steps; step++) {
        memcpy(x, best, sizeof x);
        for (int changes = 1 + step % 4; changes > 0; changes--) {
            double kind = test_random(seed, k++), value = test_random(seed, k++), place = test_random(seed, k++) + 1;
            int i = kind > -0.4 ? at / 32 * 32 + (int)(place * 16) : (int)(place * 128);
            x[i] = fmod(kind, 0.5) > 0.2 ? copysignf(1, x[i]) : fmod(kind, 0.5) > 0.1 ? 0 : (float)value;
            if (fmod(kind, 0.25) > 0.15) x[i] = best[i] * (float)(1 + 0.1 * value);
            x[i] = fminf(fmaxf(x[i], -1), 1);
        }
        double error = worst_error(f, x, MAX_BLOCK, &at_x);
        if (error < worst) continue;
        worst = error, at = at_x;
        memcpy(best, x, sizeof best);
    }
    return worst;
}
TEST(error_bounds_of_k_formats) {
    static const enum quant ids[] = {QUANT_Q4_K, QUANT_Q6_K};
    for (size_t r = 0; r < COUNT_OF(ids); r++) {
        const struct quant_format *f = quant_format(ids[r]);
        double worst = 0;
        for (unsigned seed = 1; seed <= 3; seed++) worst = fmax(worst, climb(f, seed, 4000));
        CHECK_MSG(worst <= f->error_bound && worst >= 0.75 * f->error_bound, "%s: error %.6f, the bound is %.6f",
                  f->name, worst, f->error_bound);
    }
}

TEST(rows_are_blocks_and_addresses_may_be_odd) {
    for (int id = 0; id < QUANT_WITH_TABLES; id++) {
        const struct quant_format *f = quant_format((enum quant)id);
        size_t bytes = quant_row_bytes(f, 1024);
        uint8_t *odd = malloc(bytes + 1); // exactly: a sanitizer sees a byte too many
        float whole[1024], part[MAX_BLOCK];
        for (size_t i = 0; i < bytes; i++) odd[i + 1] = (uint8_t)(i * i * 31 + i * 7);
        f->decode(odd + 1, whole, 1024);
        for (int b = 0; b < 1024 / f->block; b++) {
            f->decode(odd + 1 + b * f->block_bytes, part, f->block);
            CHECK_MSG(memcmp(part, whole + b * f->block, (size_t)f->block * 4) == 0, "%s block %d", f->name, b);
        }
        free(odd);
    }
}

// Training data never holds these, but an encoder must not run into undefined behaviour on them.
TEST(odd_values_encode_without_harm) {
    const float odd[] = {NAN, INFINITY, -INFINITY, FLT_MAX, -FLT_MAX, FLT_TRUE_MIN, 1e-39f, -0.0f, 1e38f};
    for (size_t r = 0; r < COUNT_OF(encoded_formats); r++) {
        const struct quant_format *f = quant_format(encoded_formats[r]);
        for (size_t a = 0; a < COUNT_OF(odd); a++) {
            for (size_t b = 0; b < COUNT_OF(odd); b++) {
                float x[MAX_BLOCK] = {0}, y[MAX_BLOCK];
                uint8_t bytes[MAX_BYTES];
                x[3] = odd[a], x[20] = odd[b], x[MAX_BLOCK - 1] = odd[b];
                f->encode(x, bytes, MAX_BLOCK);
                f->decode(bytes, y, MAX_BLOCK);
                f->encode(y, bytes, MAX_BLOCK);
            }
        }
    }
}

TEST(zeros_stay_zeros) {
    for (size_t r = 0; r < COUNT_OF(encoded_formats); r++) {
        const struct quant_format *f = quant_format(encoded_formats[r]);
        float x[MAX_BLOCK] = {0}, y[MAX_BLOCK];
        uint8_t bytes[MAX_BYTES];
        f->encode(x, bytes, MAX_BLOCK);
        f->decode(bytes, y, MAX_BLOCK);
        for (int i = 0; i < MAX_BLOCK; i++) CHECK_MSG(y[i] == 0.0f, "%s", f->name);
    }
}

TEST(half_precision_conversions) {
    for (uint32_t h = 0; h < 65536; h++) { // every binary16 and bf16 number comes back
        float x = f16_to_float((uint16_t)h), y = bf16_to_float((uint16_t)h);
        if (!isnan(x)) CHECK_INT(f16_from_float(x), h);
        if (!isnan(y)) CHECK_INT(bf16_from_float(y), h);
    }
    CHECK_INT(f16_from_float(65519.99f), 0x7BFF);
    CHECK_INT(f16_from_float(65520.0f), 0x7C00);
    CHECK_INT(f16_from_float(1.0f + 0x1p-11f), 0x3C00); // ties to even
    CHECK_INT(f16_from_float(1.0f + 3 * 0x1p-11f), 0x3C02);
    CHECK_INT(f16_from_float(0x1p-25f), 0x0000);
    CHECK_INT(f16_from_float(0x1.8p-24f), 0x0002);
    CHECK_INT(f16_from_float(-0x1.004p-14f), 0x8401);
}

TEST_MAIN(CASE(table), CASE(decode_vectors), CASE(decode_equals_ggml), CASE(encode_equals_ggml), CASE(encode_by_hand),
          CASE(error_bounds_hold_and_are_tight), CASE(error_bounds_of_k_formats),
          CASE(rows_are_blocks_and_addresses_may_be_odd), CASE(odd_values_encode_without_harm), CASE(zeros_stay_zeros),
          CASE(half_precision_conversions))
