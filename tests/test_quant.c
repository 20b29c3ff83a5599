// Packed formats: decoders against test vectors, encoders against golden sums of ggml's own encoder, error bounds that
// hold and are tight, odd addresses, and the type table.
#include "kernels/alloc.h"
#include "kernels/quant.h"
#include "tests/harness.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_BLOCK = 256, MAX_BYTES = 1024 };

static const enum quant block_formats[] = {QUANT_Q4_0, QUANT_Q4_1, QUANT_Q5_0, QUANT_Q5_1,
                                           QUANT_Q8_0, QUANT_Q4_K, QUANT_Q6_K};
static const enum quant encoded_formats[] = {QUANT_F32,  QUANT_F16,  QUANT_BF16, QUANT_Q4_0,
                                             QUANT_Q4_1, QUANT_Q5_0, QUANT_Q5_1, QUANT_Q8_0};

TEST(table) {
    static const char *const names[] = {"F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q6_K"};
    for (int i = 0; i < QUANT_COUNT; i++) {
        const struct quant_format *f = quant_format((enum quant)i);
        int block = 0, bytes = 0;
        CHECK_STR(f->name, names[i]);
        CHECK(quant_by_name(f->name) == f && quant_by_ggml_type(f->ggml_type) == f);
        CHECK_STR(quant_ggml_type_name(f->ggml_type), f->name);
        CHECK(quant_ggml_type_size(f->ggml_type, &block, &bytes) && block == f->block && bytes == f->block_bytes);
        CHECK_NEAR(f->bits, 8.0 * f->block_bytes / f->block, 0);
        CHECK_INT(quant_row_bytes(f, 1024), 1024 / f->block * f->block_bytes);
        CHECK(f->decode != NULL);
    }
    CHECK_INT(quant_row_bytes(quant_format(QUANT_Q4_0), (int64_t)1 << 40), ((int64_t)1 << 35) * 18);
    CHECK(quant_by_name("Q9_9") == NULL && quant_by_ggml_type(-1) == NULL && quant_by_ggml_type(10) == NULL);
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
    for (size_t i = 0; i < sizeof removed / sizeof removed[0]; i++)
        CHECK(!quant_ggml_type_size(removed[i], &block, &bytes));
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        CHECK(quant_ggml_type_size(others[i].id, &block, &bytes) && block == others[i].block &&
              bytes == others[i].bytes);
        CHECK_STR(quant_ggml_type_name(others[i].id), others[i].name);
    }
}

// Block bytes (37 k + 11) & 255, then the first scale 0.5, the second 0.25. y = sum and w = sum of (i + 1) y[i].
TEST(decode_vectors) {
    static const struct {
        enum quant id;
        int scale, second; // byte offsets of the binary16 fields, -1 = none
        double y0, y1, y15, y16, y31, before_half, half, last, sum, weighted;
    } rows[] = {
        {QUANT_Q4_0, 0, -1, -1.5, 1, -4, -1.5, 0, -4, -1.5, 0, -10.5, -259},
        {QUANT_Q4_1, 0, 2, 7.75, 2.25, 5.25, 4.75, 6.25, 5.25, 4.75, 6.25, 130.5, 2123.5},
        {QUANT_Q5_0, 0, -1, 4.5, -1, -6, 7, 0.5, -6, 7, 0.5, 7.5, 56},
        {QUANT_Q5_1, 0, 2, 9.75, 12.25, 15.25, 9.75, 2.75, 15.25, 9.75, 2.75, 260.5, 4082.5},
        {QUANT_Q8_0, 0, -1, 42.5, 61, -64, -45.5, -24, -64, -45.5, -24, -88, -4040},
        {QUANT_Q4_K, 0, 2, 157.75, -12.75, 80.25, 157.75, 80.25, 40.5, 211.5, 24.25, 27220, 3786420},
        {QUANT_Q6_K, 208, -1, -715.5, 848, -159, -216, -48, 750, -175.5, -30, 2306, 392210},
    };
    for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
        const struct quant_format *f = quant_format(rows[r].id);
        uint8_t bytes[MAX_BYTES];
        float y[MAX_BLOCK];
        for (int k = 0; k < f->block_bytes; k++) bytes[k] = (uint8_t)(37 * k + 11);
        bytes[rows[r].scale] = 0, bytes[rows[r].scale + 1] = 0x38;
        if (rows[r].second >= 0) bytes[rows[r].second] = 0, bytes[rows[r].second + 1] = 0x34;
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

enum { GOLDEN = 8192 };
static void golden_values(float *x) {
    for (unsigned i = 0; i < GOLDEN; i++) {
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
        {QUANT_Q5_1, 0x6b1219b2f7ca1eed}, {QUANT_Q8_0, 0x66a0a846280d9fa7},
    };
    float *x = mem_alloc(GOLDEN * sizeof *x);
    uint8_t *bytes = mem_alloc(GOLDEN * 4);
    golden_values(x);
    for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
        const struct quant_format *f = quant_format(rows[r].id);
        f->encode(x, bytes, GOLDEN);
        uint64_t sum = fnv(bytes, quant_row_bytes(f, GOLDEN));
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

// The largest error seen against the bound: never above, and the worst case comes near it.
TEST(error_bounds_hold_and_are_tight) {
    for (size_t r = 0; r < sizeof encoded_formats / sizeof encoded_formats[0]; r++) {
        const struct quant_format *f = quant_format(encoded_formats[r]);
        double worst = 0;
        for (unsigned trial = 0; trial < 20000; trial++) {
            float x[32], y[32];
            uint8_t bytes[128];
            double scale = pow(2.0, (double)(trial % 16) - 4.0), most = 0, block_worst = 0;
            for (unsigned i = 0; i < 32; i++) x[i] = (float)(scale * test_random(trial, i));
            if (trial % 3 == 0) x[5] = (float)scale, x[6] = -(float)scale; // both ends
            if (trial % 3 == 1)
                for (int i = 0; i < 32; i++) x[i] = 1.0f + x[i] / (float)(scale * 1000); // just above a power of two
            f->encode(x, bytes, 32);
            f->decode(bytes, y, 32);
            for (int i = 0; i < 32; i++) {
                double here = fabs((double)x[i]), error = fabs((double)x[i] - (double)y[i]);
                if (f->block == 1) { // each element is a block
                    if (here >= 0x1p-14) block_worst = fmax(block_worst, error / here);
                } else {
                    most = fmax(most, here);
                    block_worst = fmax(block_worst, error);
                }
            }
            worst = fmax(worst, f->block == 1 ? block_worst : block_worst / most);
        }
        CHECK_MSG(worst <= f->error_bound, "%s: error %.6f above the bound %.6f", f->name, worst, f->error_bound);
        CHECK_MSG(worst >= 0.9 * f->error_bound, "%s: error %.6f, the bound %.6f is loose", f->name, worst,
                  f->error_bound);
    }
}

TEST(rows_are_blocks_and_addresses_may_be_odd) {
    for (size_t r = 0; r < sizeof block_formats / sizeof block_formats[0]; r++) {
        const struct quant_format *f = quant_format(block_formats[r]);
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
    for (size_t r = 0; r < sizeof encoded_formats / sizeof encoded_formats[0]; r++) {
        const struct quant_format *f = quant_format(encoded_formats[r]);
        for (size_t a = 0; a < sizeof odd / sizeof odd[0]; a++) {
            for (size_t b = 0; b < sizeof odd / sizeof odd[0]; b++) {
                float x[32] = {0}, y[32];
                uint8_t bytes[128];
                x[3] = odd[a], x[20] = odd[b];
                f->encode(x, bytes, 32);
                f->decode(bytes, y, 32);
                f->encode(y, bytes, 32);
            }
        }
    }
}

TEST(zeros_stay_zeros) {
    for (size_t r = 0; r < sizeof encoded_formats / sizeof encoded_formats[0]; r++) {
        const struct quant_format *f = quant_format(encoded_formats[r]);
        float x[32] = {0}, y[32];
        uint8_t bytes[128];
        f->encode(x, bytes, 32);
        f->decode(bytes, y, 32);
        for (int i = 0; i < 32; i++) CHECK_MSG(y[i] == 0.0f, "%s", f->name);
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

TEST_MAIN(CASE(table), CASE(decode_vectors), CASE(encode_equals_ggml), CASE(encode_by_hand),
          CASE(error_bounds_hold_and_are_tight), CASE(rows_are_blocks_and_addresses_may_be_odd),
          CASE(odd_values_encode_without_harm), CASE(zeros_stay_zeros), CASE(half_precision_conversions))
