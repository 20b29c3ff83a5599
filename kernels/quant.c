// Packed formats: see quant.h. Bits are drawn in byte order; `d` is the scale, `m` the minimum, q the stored code.
// Decoders: every product is exact in float (11-bit scales times at most 13 bits), so only the addition of a minimum
// rounds and neither order nor fma changes a bit. Encoders: order and rounding of each operation are ggml's, without
// fma.
#include "kernels/quant.h"

#include <assert.h>
#include <float.h>
#include <math.h>
#include <string.h>

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

// --- Blocks of 256.
//
//     byte   0      2      4              16                     144
//   Q4_K     | d    | dmin | scales[12]    | qs[128]               |     8 sub-blocks of 32
//
//   qs: byte 32c + l holds elements 64c + l (low nibble) and 64c + 32 + l (high nibble).
//   scales: 8 scales and 8 minima of 6 bits. Those of sub-blocks 0-3 are the low 6 bits of bytes 0-3 and 4-7; those of
//   4-7 have their low 4 bits in the two nibbles of bytes 8-11 and their high 2 bits on top of bytes 0-3 and 4-7:
//     byte j     (0-3)  | scale j+4, bits 5-4 | scale j, 6 bits |
//     byte j + 4 (4-7)  | min   j+4, bits 5-4 | min   j, 6 bits |
//     byte j + 8 (8-11) | min j+4, bits 3-0 | scale j+4, bits 3-0 |
//   y = (d * scale) * q - dmin * min
//
//     byte   0                   128         192             208    210
//   Q6_K     | ql[128]            | qh[64]    | scales[16]    | d    |    16 sub-blocks of 16, scales signed
//
//   Element i: half h = i / 128, group t = i % 128 / 32, l = i % 32.
//   Low 4 bits: nibble t / 2 of ql[64h + 32 (t % 2) + l]; high 2 bits: bits 2t, 2t + 1 of qh[32h + l].
//   y = (d * scale) * (q - 32)

struct block_q4_k {
    uint16_t d, dmin;
    uint8_t scales[12];
    uint8_t qs[128];
};
struct block_q6_k {
    uint8_t ql[128];
    uint8_t qh[64];
    int8_t scales[16];
    uint16_t d;
};

static_assert(sizeof(struct block_q4_0) == 18, "no padding");
static_assert(sizeof(struct block_q4_1) == 20, "no padding");
static_assert(sizeof(struct block_q5_0) == 22, "no padding");
static_assert(sizeof(struct block_q5_1) == 24, "no padding");
static_assert(sizeof(struct block_q8_0) == 34, "no padding");
static_assert(sizeof(struct block_q4_k) == 144, "no padding");
static_assert(sizeof(struct block_q6_k) == 210, "no padding");

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

static void q4_k_scale(const uint8_t s[12], int j, int *scale, int *min) {
    if (j < 4) {
        *scale = s[j] & 63;
        *min = s[j + 4] & 63;
    } else {
        *scale = (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
        *min = (s[j + 4] >> 4) | (s[j] >> 6) << 4;
    }
}

static void q4_k_decode(const uint8_t *bytes, float *out, int64_t count) {
    struct block_q4_k b;
    for (int64_t i = 0; i < count; i += 256, bytes += sizeof b) {
        memcpy(&b, bytes, sizeof b);
        const float d = f16_to_float(b.d), dmin = f16_to_float(b.dmin);
        for (int j = 0; j < 8; j++) {
            int scale, min;
            q4_k_scale(b.scales, j, &scale, &min);
            const float ds = d * (float)scale, m = dmin * (float)min;
            for (int l = 0; l < 32; l++) {
                uint8_t byte = b.qs[32 * (j / 2) + l];
                out[i + 32 * j + l] = ds * (float)(j % 2 ? byte >> 4 : byte & 15) - m;
            }
        }
    }
}

static void q6_k_decode(const uint8_t *bytes, float *out, int64_t count) {
    struct block_q6_k b;
    for (int64_t i = 0; i < count; i += 256, bytes += sizeof b) {
        memcpy(&b, bytes, sizeof b);
        const float d = f16_to_float(b.d);
        for (int e = 0; e < 256; e++) {
            int h = e / 128, t = e % 128 / 32, l = e % 32;
            int low = (b.ql[64 * h + 32 * (t % 2) + l] >> (4 * (t / 2))) & 15, high = (b.qh[32 * h + l] >> (2 * t)) & 3;
            out[i + e] = d * (float)b.scales[e / 16] * (float)((low | high << 4) - 32);
        }
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
// They hold while scale and minimum are normal binary16 numbers (2^-14 <= d < 65520).
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
static const struct quant_format formats[QUANT_COUNT] = {
    BLOCKS(F32, 0, 1, 4, f32_decode, f32_encode, 0.0),
    BLOCKS(F16, 1, 1, 2, f16_decode, f16_encode, 0x1p-11),
    BLOCKS(BF16, 30, 1, 2, bf16_decode, bf16_encode, 0x1p-8),
    BLOCKS(Q4_0, 2, 32, 18, q4_0_decode, q4_0_encode, 1.0 / 8 + 0x1p-11),
    BLOCKS(Q4_1, 3, 32, 20, q4_1_decode, q4_1_encode, 1.0 / 15 + 3 * 0x1p-11),
    BLOCKS(Q5_0, 6, 32, 22, q5_0_decode, q5_0_encode, 1.0 / 16 + 0x1p-11),
    BLOCKS(Q5_1, 7, 32, 24, q5_1_decode, q5_1_encode, 1.0 / 31 + 3 * 0x1p-11),
    BLOCKS(Q8_0, 8, 32, 34, q8_0_decode, q8_0_encode, 0.5 / 127 + 0x1p-11),
    BLOCKS(Q4_K, 12, 256, 144, q4_k_decode, NULL, 0.0),
    BLOCKS(Q6_K, 14, 256, 210, q6_k_decode, NULL, 0.0),
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
