// Packed formats: see quant.h. Here: the table, plain numbers, and blocks shorter than 256; quant_k.c and quant_iq.c
// have the others. Bits are drawn in byte order; `d` is the scale, `m` the minimum, q the stored code. Decoders: every
// product is exact in float (11-bit scales times at most 13 bits; of Q8_K it is the only operation), so only the
// addition of a minimum rounds and neither order nor fma changes a bit. Encoders: order and rounding of each operation
// are ggml's, without fma.
#include "kernels/quant_blocks.h"
#include "kernels/quant_tables.h"

#include <assert.h>
#include <float.h>
#include <math.h>

// --- Blocks of 32. A byte holds two elements: low nibble element j, high nibble element j + 16.
//
//     byte   0      2                      18
//   Q4_0     | d    | qs[16]                |              y = (q - 8) * d
//     byte   0      2      4                       20
//   Q4_1     | d    | m    | qs[16]                 |      y = q * d + m
//     byte   0      2             6                       22
//   Q5_0     | d    | qh: 32 bits | qs[16]                 |      y = (q - 16) * d,  q = nibble | bit i of qh << 4
//     byte   0      2      4             8                       24
//   Q5_1     | d    | m    | qh: 32 bits | qs[16]                 |      y = q * d + m
//     byte   0      2                                  34
//   Q8_0     | d    | qs[32], signed                    |      y = q * d

struct block_q4_0 {
    uint16_t d; // binary16, as all scales below
    uint8_t qs[16];
};
struct block_q4_1 {
    uint16_t d, m;
    uint8_t qs[16];
};
struct block_q5_0 {
    uint16_t d;
    uint8_t qh[4]; // little endian, bit i = fifth bit of element i
    uint8_t qs[16];
};
struct block_q5_1 {
    uint16_t d, m;
    uint8_t qh[4];
    uint8_t qs[16];
};
struct block_q8_0 {
    uint16_t d;
    int8_t qs[32];
};

// --- Other short blocks.
//
//     byte   0   1                      17
//   MXFP4    | e | qs[16]                |     32 elements. Low nibble of byte j: element j, high nibble: j + 16.
//                                              y = value * 2^(e - 128), the values being twice those of E2M1
//     byte   0        4                                36
//   NVFP4    | d[4]   | qs[32]                          |     4 sub-blocks of 16. Byte 8g + j of qs: elements 16g + j
//   and
//                                                            16g + j + 8.  y = value * d / 2, d an unsigned E4M3
//     byte   0      2                      18
//   Q1_0     | d    | qs[16]                |     128 elements, bit i % 8 of byte i / 8: y = d where set, -d elsewhere
//     byte   0      2                      18
//   Q2_0     | d    | qs[16]                |     64 elements, bits 2 (i % 4), + 1 of byte i / 4: y = (q - 1) * d

struct block_mxfp4 {
    uint8_t e;
    uint8_t qs[16];
};
struct block_nvfp4 {
    uint8_t d[4];
    uint8_t qs[32];
};
struct block_q1_0 {
    uint16_t d;
    uint8_t qs[16];
};
struct block_q2_0 {
    uint16_t d;
    uint8_t qs[16];
};

static_assert(sizeof(struct block_q4_0) == 18, "no padding");
static_assert(sizeof(struct block_q4_1) == 20, "no padding");
static_assert(sizeof(struct block_q5_0) == 22, "no padding");
static_assert(sizeof(struct block_q5_1) == 24, "no padding");
static_assert(sizeof(struct block_q8_0) == 34, "no padding");
static_assert(sizeof(struct block_mxfp4) == 17, "no padding");
static_assert(sizeof(struct block_nvfp4) == 36, "no padding");
static_assert(sizeof(struct block_q1_0) == 18, "no padding");
static_assert(sizeof(struct block_q2_0) == 18, "no padding");

// --- Decoders

static void f32_decode(const uint8_t *bytes, float *out, int64_t count) {
    memcpy(out, bytes, (size_t)count * 4);
}

static void f16_decode(const uint8_t *bytes, float *out, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        uint16_t x;
        memcpy(&x, bytes + 2 * i, 2);
        out[i] = f16_to_float(x);
    }
}

static void bf16_decode(const uint8_t *bytes, float *out, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        uint16_t x;
        memcpy(&x, bytes + 2 * i, 2);
        out[i] = bf16_to_float(x);
    }
}

static void q4_0_decode(const uint8_t *bytes, float *out, int64_t count) {
    struct block_q4_0 b;
    for (int64_t i = 0; i < count; i += 32, bytes += sizeof b) {
        memcpy(&b, bytes, sizeof b);
        const float d = f16_to_float(b.d);
        for (int j = 0; j < 16; j++) {
            out[i + j] = (float)((b.qs[j] & 15) - 8) * d;
            out[i + j + 16] = (float)((b.qs[j] >> 4) - 8) * d;
        }
    }
}

static void q4_1_decode(const uint8_t *bytes, float *out, int64_t count) {
    struct block_q4_1 b;
    for (int64_t i = 0; i < count; i += 32, bytes += sizeof b) {
        memcpy(&b, bytes, sizeof b);
        const float d = f16_to_float(b.d), m = f16_to_float(b.m);
        for (int j = 0; j < 16; j++) {
            out[i + j] = (float)(b.qs[j] & 15) * d + m;
            out[i + j + 16] = (float)(b.qs[j] >> 4) * d + m;
        }
    }
}

// The fifth bits of a block as a number whose bit i belongs to element i.
static uint32_t fifth_bits(const uint8_t qh[4]) {
    return (uint32_t)qh[0] | (uint32_t)qh[1] << 8 | (uint32_t)qh[2] << 16 | (uint32_t)qh[3] << 24;
}

static void q5_0_decode(const uint8_t *bytes, float *out, int64_t count) {
    struct block_q5_0 b;
    for (int64_t i = 0; i < count; i += 32, bytes += sizeof b) {
        memcpy(&b, bytes, sizeof b);
        const float d = f16_to_float(b.d);
        const uint32_t qh = fifth_bits(b.qh);
        for (int j = 0; j < 16; j++) {
            int low = (b.qs[j] & 15) | (int)(qh >> j & 1) << 4, high = (b.qs[j] >> 4) | (int)(qh >> (j + 16) & 1) << 4;
            out[i + j] = (float)(low - 16) * d;
            out[i + j + 16] = (float)(high - 16) * d;
        }
    }
}

static void q5_1_decode(const uint8_t *bytes, float *out, int64_t count) {
    struct block_q5_1 b;
    for (int64_t i = 0; i < count; i += 32, bytes += sizeof b) {
        memcpy(&b, bytes, sizeof b);
        const float d = f16_to_float(b.d), m = f16_to_float(b.m);
        const uint32_t qh = fifth_bits(b.qh);
        for (int j = 0; j < 16; j++) {
            int low = (b.qs[j] & 15) | (int)(qh >> j & 1) << 4, high = (b.qs[j] >> 4) | (int)(qh >> (j + 16) & 1) << 4;
            out[i + j] = (float)low * d + m;
            out[i + j + 16] = (float)high * d + m;
        }
    }
}

static void q8_0_decode(const uint8_t *bytes, float *out, int64_t count) {
    struct block_q8_0 b;
    for (int64_t i = 0; i < count; i += 32, bytes += sizeof b) {
        memcpy(&b, bytes, sizeof b);
        const float d = f16_to_float(b.d);
        for (int j = 0; j < 32; j++) out[i + j] = (float)b.qs[j] * d;
    }
}

// Twice the numbers of E2M1, so that they are whole.
static const int8_t fp4_values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// 2^(e - 128): of e < 2 below the normal range; 255 is no NaN here.
static float half_e8m0(uint8_t e) {
    const uint32_t bits = e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23;
    float d;
    memcpy(&d, &bits, sizeof d);
    return d;
}

// Half of what the code stands for in E4M3. The sign bit counts for nothing, and 0x7F, a NaN there, is 0.
static float half_ue4m3(uint8_t code) {
    const int exponent = (code >> 3) & 15, mantissa = code & 7;
    if (code == 0x7F) return 0.0f;
    return exponent ? ldexpf((float)(8 + mantissa), exponent - 11) : ldexpf((float)mantissa, -10);
}

static void mxfp4_decode(const uint8_t *bytes, float *out, int64_t count) {
    struct block_mxfp4 b;
    for (int64_t i = 0; i < count; i += 32, bytes += sizeof b) {
        memcpy(&b, bytes, sizeof b);
        const float d = half_e8m0(b.e);
        for (int j = 0; j < 16; j++) {
            out[i + j] = (float)fp4_values[b.qs[j] & 15] * d;
            out[i + j + 16] = (float)fp4_values[b.qs[j] >> 4] * d;
        }
    }
}

static void nvfp4_decode(const uint8_t *bytes, float *out, int64_t count) {
    struct block_nvfp4 b;
    for (int64_t i = 0; i < count; i += 64, bytes += sizeof b) {
        memcpy(&b, bytes, sizeof b);
        for (int g = 0; g < 4; g++) {
            const float d = half_ue4m3(b.d[g]);
            for (int j = 0; j < 8; j++) {
                out[i + 16 * g + j] = (float)fp4_values[b.qs[8 * g + j] & 15] * d;
                out[i + 16 * g + j + 8] = (float)fp4_values[b.qs[8 * g + j] >> 4] * d;
            }
        }
    }
}

static void q1_0_decode(const uint8_t *bytes, float *out, int64_t count) {
    struct block_q1_0 b;
    for (int64_t i = 0; i < count; i += 128, bytes += sizeof b) {
        memcpy(&b, bytes, sizeof b);
        const float d = f16_to_float(b.d);
        for (int e = 0; e < 128; e++) out[i + e] = b.qs[e / 8] >> (e % 8) & 1 ? d : -d;
    }
}

static void q2_0_decode(const uint8_t *bytes, float *out, int64_t count) {
    struct block_q2_0 b;
    for (int64_t i = 0; i < count; i += 64, bytes += sizeof b) {
        memcpy(&b, bytes, sizeof b);
        const float d = f16_to_float(b.d);
        for (int e = 0; e < 64; e++) out[i + e] = (float)((b.qs[e / 4] >> (2 * (e % 4)) & 3) - 1) * d;
    }
}

// --- Encoders

static void f32_encode(const float *values, uint8_t *out, int64_t count) {
    memcpy(out, values, (size_t)count * 4);
}

static void f16_encode(const float *values, uint8_t *out, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        uint16_t x = f16_from_float(values[i]);
        memcpy(out + 2 * i, &x, 2);
    }
}

static void bf16_encode(const float *values, uint8_t *out, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        uint16_t x = bf16_from_float(values[i]);
        memcpy(out + 2 * i, &x, 2);
    }
}

// A float cut to a whole number, in the range [0, most]. Only NaN, infinity and a scale too small to invert leave the
// range.
static uint8_t code(float x, float most) {
    return x >= most ? (uint8_t)most : x >= 0.0f ? (uint8_t)x : 0;
}

static float inverse(float d) {
    return d != 0.0f ? 1.0f / d : 0.0f;
}

// The value of largest magnitude, with its sign; the first one of equals.
static float extreme(const float *x) {
    float max = 0.0f;
    for (int j = 0; j < 32; j++)
        if (fabsf(max) < fabsf(x[j])) max = x[j];
    return max;
}

static void range(const float *x, float *min, float *max) {
    *min = FLT_MAX;
    *max = -FLT_MAX;
    for (int j = 0; j < 32; j++) {
        if (x[j] < *min) *min = x[j];
        if (x[j] > *max) *max = x[j];
    }
}

// The extreme value becomes code 0, that is -8: it is exact up to the rounding of d.
static void q4_0_encode(const float *values, uint8_t *out, int64_t count) {
    struct block_q4_0 b;
    for (const float *x = values; x < values + count; x += 32, out += sizeof b) {
        const float d = extreme(x) / -8.0f, id = inverse(d);
        b.d = f16_from_float(d);
        for (int j = 0; j < 16; j++) {
            uint8_t low = code(x[j] * id + 8.5f, 15), high = code(x[j + 16] * id + 8.5f, 15);
            b.qs[j] = (uint8_t)(low | high << 4);
        }
        memcpy(out, &b, sizeof b);
    }
}

static void q4_1_encode(const float *values, uint8_t *out, int64_t count) {
    struct block_q4_1 b;
    for (const float *x = values; x < values + count; x += 32, out += sizeof b) {
        float min, max;
        range(x, &min, &max);
        const float d = (max - min) / 15.0f, id = inverse(d);
        b.d = f16_from_float(d);
        b.m = f16_from_float(min);
        for (int j = 0; j < 16; j++) {
            uint8_t low = code((x[j] - min) * id + 0.5f, 15), high = code((x[j + 16] - min) * id + 0.5f, 15);
            b.qs[j] = (uint8_t)(low | high << 4);
        }
        memcpy(out, &b, sizeof b);
    }
}

static void put_five_bits(uint8_t qs[16], uint8_t qh[4], int j, uint8_t low, uint8_t high) {
    qs[j] = (uint8_t)((low & 15) | (high & 15) << 4);
    qh[j / 8] = (uint8_t)(qh[j / 8] | (low >> 4) << (j % 8));
    qh[2 + j / 8] = (uint8_t)(qh[2 + j / 8] | (high >> 4) << (j % 8));
}

static void q5_0_encode(const float *values, uint8_t *out, int64_t count) {
    for (const float *x = values; x < values + count; x += 32, out += sizeof(struct block_q5_0)) {
        struct block_q5_0 b = {0};
        const float d = extreme(x) / -16.0f, id = inverse(d);
        b.d = f16_from_float(d);
        for (int j = 0; j < 16; j++)
            put_five_bits(b.qs, b.qh, j, code(x[j] * id + 16.5f, 31), code(x[j + 16] * id + 16.5f, 31));
        memcpy(out, &b, sizeof b);
    }
}

static void q5_1_encode(const float *values, uint8_t *out, int64_t count) {
    for (const float *x = values; x < values + count; x += 32, out += sizeof(struct block_q5_1)) {
        struct block_q5_1 b = {0};
        float min, max;
        range(x, &min, &max);
        const float d = (max - min) / 31.0f, id = inverse(d);
        b.d = f16_from_float(d);
        b.m = f16_from_float(min);
        for (int j = 0; j < 16; j++)
            put_five_bits(b.qs, b.qh, j, code((x[j] - min) * id + 0.5f, 31), code((x[j + 16] - min) * id + 0.5f, 31));
        memcpy(out, &b, sizeof b);
    }
}

static void q8_0_encode(const float *values, uint8_t *out, int64_t count) {
    struct block_q8_0 b;
    for (const float *x = values; x < values + count; x += 32, out += sizeof b) {
        const float d = fabsf(extreme(x)) / 127.0f, id = inverse(d);
        b.d = f16_from_float(d);
        for (int j = 0; j < 32; j++) {
            float q = roundf(x[j] * id); // halves away from zero
            b.qs[j] = (int8_t)(q >= 127.0f ? 127 : q <= -127.0f ? -127 : q == q ? (int)q : 0);
        }
        memcpy(out, &b, sizeof b);
    }
}

// --- Tables

// Error bounds are in units of the largest magnitude of the block: half a step of the code, or a whole one where the
// code range is one short on the side away from the extreme (Q4_0, Q5_0), plus 2^-11 for each stored scale and minimum.
// They hold while scale and minimum are normal binary16 numbers (2^-14 <= d < 65520). K formats search for the least
// squared error, which may leave one number far off: their bounds are not proved but a little above the largest errors
// that hill climbing found (0.184 for Q4_K, 0.0313 for Q6_K).
#define BLOCKS(quant, type, elements, bytes, decoder, encoder, bound)                                                  \
    [QUANT_##quant] = {.id = QUANT_##quant,                                                                            \
                       .name = #quant,                                                                                 \
                       .ggml_type = type,                                                                              \
                       .block = elements,                                                                              \
                       .block_bytes = bytes,                                                                           \
                       .bits = 8.0 * (bytes) / (elements),                                                             \
                       .decode = decoder,                                                                              \
                       .encode = encoder,                                                                              \
                       .error_bound = bound}
// `per_weight`: bits with the usual block sizes.
#define TABLES(quant, text, per_weight, decoder)                                                                       \
    [QUANT_##quant] = {                                                                                                \
        .id = QUANT_##quant, .name = text, .ggml_type = -1, .block = 1, .bits = per_weight, .decode_at = decoder}
static const struct quant_format formats[QUANT_COUNT] = {
    BLOCKS(F32, 0, 1, 4, f32_decode, f32_encode, 0.0),
    BLOCKS(F16, 1, 1, 2, f16_decode, f16_encode, 0x1p-11),
    BLOCKS(BF16, 30, 1, 2, bf16_decode, bf16_encode, 0x1p-8),
    BLOCKS(Q4_0, 2, 32, 18, q4_0_decode, q4_0_encode, 1.0 / 8 + 0x1p-11),
    BLOCKS(Q4_1, 3, 32, 20, q4_1_decode, q4_1_encode, 1.0 / 15 + 3 * 0x1p-11),
    BLOCKS(Q5_0, 6, 32, 22, q5_0_decode, q5_0_encode, 1.0 / 16 + 0x1p-11),
    BLOCKS(Q5_1, 7, 32, 24, q5_1_decode, q5_1_encode, 1.0 / 31 + 3 * 0x1p-11),
    BLOCKS(Q8_0, 8, 32, 34, q8_0_decode, q8_0_encode, 0.5 / 127 + 0x1p-11),
    BLOCKS(Q1_0, 41, 128, 18, q1_0_decode, NULL, 0.0),
    BLOCKS(Q2_0, 42, 64, 18, q2_0_decode, NULL, 0.0),
    BLOCKS(MXFP4, 39, 32, 17, mxfp4_decode, NULL, 0.0),
    BLOCKS(NVFP4, 40, 64, 36, nvfp4_decode, NULL, 0.0),
    BLOCKS(Q2_K, 10, 256, 84, quant_q2_k_decode, NULL, 0.0),
    BLOCKS(Q3_K, 11, 256, 110, quant_q3_k_decode, NULL, 0.0),
    BLOCKS(Q4_K, 12, 256, 144, quant_q4_k_decode, quant_q4_k_encode, 0.2),
    BLOCKS(Q5_K, 13, 256, 176, quant_q5_k_decode, NULL, 0.0),
    BLOCKS(Q6_K, 14, 256, 210, quant_q6_k_decode, quant_q6_k_encode, 0.034),
    BLOCKS(Q8_K, 15, 256, 292, quant_q8_k_decode, NULL, 0.0),
    BLOCKS(TQ1_0, 34, 256, 54, quant_tq1_0_decode, NULL, 0.0),
    BLOCKS(TQ2_0, 35, 256, 66, quant_tq2_0_decode, NULL, 0.0),
    BLOCKS(IQ1_S, 19, 256, 50, quant_iq1_s_decode, NULL, 0.0),
    BLOCKS(IQ1_M, 29, 256, 56, quant_iq1_m_decode, NULL, 0.0),
    BLOCKS(IQ2_XXS, 16, 256, 66, quant_iq2_xxs_decode, NULL, 0.0),
    BLOCKS(IQ2_XS, 17, 256, 74, quant_iq2_xs_decode, NULL, 0.0),
    BLOCKS(IQ2_S, 22, 256, 82, quant_iq2_s_decode, NULL, 0.0),
    BLOCKS(IQ3_XXS, 18, 256, 98, quant_iq3_xxs_decode, NULL, 0.0),
    BLOCKS(IQ3_S, 21, 256, 110, quant_iq3_s_decode, NULL, 0.0),
    BLOCKS(IQ4_NL, 20, 32, 18, quant_iq4_nl_decode, NULL, 0.0),
    BLOCKS(IQ4_XS, 23, 256, 136, quant_iq4_xs_decode, NULL, 0.0),
    TABLES(NF4, "NF4", 4.5, nf4_decode_at),
    TABLES(FP4, "FP4", 4.5, nf4_decode_at),
    TABLES(INT8, "INT8", 8.0, int8_decode_at),
    TABLES(GPTQ_2, "GPTQ-2", 2.125, gptq_decode_at),
    TABLES(GPTQ_3, "GPTQ-3", 3.125, gptq_decode_at),
    TABLES(GPTQ_4, "GPTQ-4", 4.125, gptq_decode_at),
    TABLES(GPTQ_8, "GPTQ-8", 8.125, gptq_decode_at),
    TABLES(AWQ, "AWQ", 4.125, awq_decode_at),
    TABLES(FP8_E4M3, "FP8-E4M3", 8.0, fp8_decode_at),
    TABLES(FP8_E5M2, "FP8-E5M2", 8.0, fp8_decode_at),
    TABLES(MXFP4_PAIRS, "MXFP4-PAIRS", 4.25, mxfp4_decode_at),
};

// Every type id that a GGUF file may name; block 0 = never existed or removed.
static const struct {
    const char *name;
    int16_t block, bytes;
} ggml_types[] = {
    [0] = {"F32", 1, 4},         [1] = {"F16", 1, 2},         [2] = {"Q4_0", 32, 18},      [3] = {"Q4_1", 32, 20},
    [4] = {"Q4_2", 0, 0},        [5] = {"Q4_3", 0, 0},        [6] = {"Q5_0", 32, 22},      [7] = {"Q5_1", 32, 24},
    [8] = {"Q8_0", 32, 34},      [9] = {"Q8_1", 32, 36},      [10] = {"Q2_K", 256, 84},    [11] = {"Q3_K", 256, 110},
    [12] = {"Q4_K", 256, 144},   [13] = {"Q5_K", 256, 176},   [14] = {"Q6_K", 256, 210},   [15] = {"Q8_K", 256, 292},
    [16] = {"IQ2_XXS", 256, 66}, [17] = {"IQ2_XS", 256, 74},  [18] = {"IQ3_XXS", 256, 98}, [19] = {"IQ1_S", 256, 50},
    [20] = {"IQ4_NL", 32, 18},   [21] = {"IQ3_S", 256, 110},  [22] = {"IQ2_S", 256, 82},   [23] = {"IQ4_XS", 256, 136},
    [24] = {"I8", 1, 1},         [25] = {"I16", 1, 2},        [26] = {"I32", 1, 4},        [27] = {"I64", 1, 8},
    [28] = {"F64", 1, 8},        [29] = {"IQ1_M", 256, 56},   [30] = {"BF16", 1, 2},       [31] = {"Q4_0_4_4", 0, 0},
    [32] = {"Q4_0_4_8", 0, 0},   [33] = {"Q4_0_8_8", 0, 0},   [34] = {"TQ1_0", 256, 54},   [35] = {"TQ2_0", 256, 66},
    [36] = {"IQ4_NL_4_4", 0, 0}, [37] = {"IQ4_NL_4_8", 0, 0}, [38] = {"IQ4_NL_8_8", 0, 0}, [39] = {"MXFP4", 32, 17},
    [40] = {"NVFP4", 64, 36},    [41] = {"Q1_0", 128, 18},    [42] = {"Q2_0", 64, 18},
};

const struct quant_format *quant_format(enum quant id) {
    assert((unsigned)id < QUANT_COUNT && formats[id].id == id);
    return &formats[id];
}

const struct quant_format *quant_by_ggml_type(int ggml_type) {
    for (int i = 0; i < QUANT_COUNT; i++)
        if (formats[i].ggml_type == ggml_type && ggml_type >= 0) return &formats[i];
    return NULL;
}

const struct quant_format *quant_by_name(const char *name) {
    for (int i = 0; i < QUANT_COUNT; i++)
        if (strcmp(formats[i].name, name) == 0) return &formats[i];
    return NULL;
}

const char *quant_ggml_type_name(int ggml_type) {
    return ggml_type >= 0 && (size_t)ggml_type < COUNT_OF(ggml_types) ? ggml_types[ggml_type].name : NULL;
}

bool quant_ggml_type_size(int ggml_type, int *block, int *block_bytes) {
    if (!quant_ggml_type_name(ggml_type) || ggml_types[ggml_type].block == 0) return false;
    *block = ggml_types[ggml_type].block;
    *block_bytes = ggml_types[ggml_type].bytes;
    return true;
}

size_t quant_row_bytes(const struct quant_format *format, int64_t cols) {
    assert(cols >= 0 && cols % format->block == 0);
    return (size_t)(cols / format->block) * (size_t)format->block_bytes;
}
