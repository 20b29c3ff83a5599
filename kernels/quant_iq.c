// The IQ formats: codes that choose from a short list, of numbers (IQ4) or of points of a grid (IQ1, IQ2, IQ3). See
// quant.h; bits are drawn in byte order. Layouts and lists: ggml (formats.md 2.4 for IQ4; the others from ggml's
// ggml-common.h and dequantize_row_*). All scales are binary16.
#include "kernels/quant_blocks.h"

// --- IQ4: sixteen values for a nibble.
//
//     byte   0      2                      18
//   IQ4_NL   | d    | qs[16]                |     32 elements. Low nibble of byte j: element j, high nibble: j + 16.
//                                                 y = d * value
//     byte   0      2           4              8                          136
//   IQ4_XS   | d    | scales_h   | scales_l[4]  | qs[128]                  |    8 sub-blocks of 32, each as IQ4_NL
//
//   Scale of sub-block k, 6 bits less 32: nibble k % 2 of scales_l[k / 2], above it bits 2k, 2k + 1 of scales_h.
//   y = (d * scale) * value

struct block_iq4_nl {
    uint16_t d;
    uint8_t qs[16];
};
struct block_iq4_xs {
    uint16_t d;
    uint16_t scales_h;
    uint8_t scales_l[4];
    uint8_t qs[128];
};
static_assert(sizeof(struct block_iq4_nl) == 18, "no padding");
static_assert(sizeof(struct block_iq4_xs) == 136, "no padding");

static const int8_t iq4_values[16] = QUANT_IQ4_VALUES;

static void put_nibbles(float out[32], float scale, const uint8_t qs[16]) {
    for (int j = 0; j < 16; j++) {
        out[j] = scale * (float)iq4_values[qs[j] & 15];
        out[j + 16] = scale * (float)iq4_values[qs[j] >> 4];
    }
}

void quant_iq4_nl_decode(const uint8_t *bytes, float *out, int64_t count) {
    struct block_iq4_nl b;
    for (int64_t i = 0; i < count; i += 32, bytes += sizeof b) {
        memcpy(&b, bytes, sizeof b);
        put_nibbles(out + i, f16_to_float(b.d), b.qs);
    }
}

void quant_iq4_xs_decode(const uint8_t *bytes, float *out, int64_t count) {
    struct block_iq4_xs b;
    for (int64_t i = 0; i < count; i += 256, bytes += sizeof b) {
        memcpy(&b, bytes, sizeof b);
        const float d = f16_to_float(b.d);
        for (int k = 0; k < 8; k++) {
            int low = (b.scales_l[k / 2] >> (4 * (k % 2))) & 15, high = (b.scales_h >> (2 * k)) & 3;
            put_nibbles(out + i + 32 * k, d * (float)((low | high << 4) - 32), b.qs + 16 * k);
        }
    }
}

// --- IQ2 and IQ3: magnitudes from a grid, signs apart. 8 groups g of 32 elements, four times eight of them each, l.
//
//     byte    0      2                                                      66
//   IQ2_XXS   | d    | 8 groups: grid[4], 4 x 7 bits of signs, 4 of scale    |    y = d * (s + 1/2) / 4 * value
//     byte    0      2                             66            74
//   IQ2_XS    | d    | qs[32]: sign << 9 | grid     | scales[8]   |               the same, s a nibble for l / 2
//     byte    0      2              34             66       74            82
//   IQ2_S     | d    | grid[32]      | signs[32]    | qh[8]  | scales[8]   |      the same; grid: 8 bits and two of qh
//     byte    0      2              66                                                98
//   IQ3_XXS   | d    | grid[64]      | 8 groups: 4 x 7 bits of signs, 4 of scale       |    y = d * (s + 1/2) / 2 *
//   value
//     byte    0      2              66       74             106           110
//   IQ3_S     | d    | grid[64]      | qh[8]  | signs[32]    | scales[4]   |      y = d * (1 + 2s) * value
//
//   A point of IQ2 gives eight elements, one of IQ3 four. Seven bits of signs are eight: the number of minuses is even.

struct block_iq2_xxs {
    uint16_t d;
    struct {
        uint8_t grid[4];
        uint8_t signs[4]; // little endian: signs of l in bits 7l .. 7l + 6, scale in bits 28-31
    } groups[8];
};
struct block_iq2_xs {
    uint16_t d;
    uint16_t qs[32];
    uint8_t scales[8];
};
struct block_iq2_s {
    uint16_t d;
    uint8_t grid[32];
    uint8_t signs[32];
    uint8_t qh[8]; // bits 2l, 2l + 1: bits 8, 9 of the grid's index
    uint8_t scales[8];
};
struct block_iq3_xxs {
    uint16_t d;
    uint8_t grid[64];
    uint8_t signs[8][4]; // as in IQ2_XXS
};
struct block_iq3_s {
    uint16_t d;
    uint8_t grid[64];
    uint8_t qh[8]; // bit i: bit 8 of the i-th index of the group
    uint8_t signs[32];
    uint8_t scales[4]; // a nibble for a group
};
static_assert(sizeof(struct block_iq2_xxs) == 66, "no padding");
static_assert(sizeof(struct block_iq2_xs) == 74, "no padding");
static_assert(sizeof(struct block_iq2_s) == 82, "no padding");
static_assert(sizeof(struct block_iq3_xxs) == 98, "no padding");
static_assert(sizeof(struct block_iq3_s) == 110, "no padding");

static uint32_t little_32(const uint8_t p[4]) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

// Seven signs and the eighth, which makes their number even.
static int eight_signs(uint32_t seven) {
    int signs = (int)(seven & 127), odd = 0;
    for (int j = 0; j < 7; j++) odd ^= signs >> j & 1;
    return signs | odd << 7;
}

static void put_signed(float *out, float magnitude, int negative) {
    *out = negative ? -magnitude : magnitude;
}

static void put_point_of_eight(float out[8], float scale, int point, int signs) {
    static const float values[] = QUANT_IQ2_VALUES;
    for (int j = 0; j < 8; j++) put_signed(&out[j], scale * values[(point >> (2 * j)) & 3], signs >> j & 1);
}

// `values` of three bits; two points for eight signs.
static void put_points_of_four(float out[8], float scale, const float values[8], int first, int second, int signs) {
    for (int j = 0; j < 4; j++) {
        put_signed(&out[j], scale * values[(first >> (3 * j)) & 7], signs >> j & 1);
        put_signed(&out[j + 4], scale * values[(second >> (3 * j)) & 7], signs >> (j + 4) & 1);
    }
}

static int nibble(uint8_t byte, int high) {
    return high ? byte >> 4 : byte & 15;
}

void quant_iq2_xxs_decode(const uint8_t *bytes, float *out, int64_t count) {
    struct block_iq2_xxs b;
    for (int64_t i = 0; i < count; i += 256, bytes += sizeof b) {
        memcpy(&b, bytes, sizeof b);
        const float d = f16_to_float(b.d);
        for (int g = 0; g < 8; g++) {
            const uint32_t word = little_32(b.groups[g].signs);
            const float scale = d * (0.5f + (float)(word >> 28)) * 0.25f;
            for (int l = 0; l < 4; l++)
                put_point_of_eight(out + i + 32 * g + 8 * l, scale, quant_iq2_xxs_grid[b.groups[g].grid[l]],
                                   eight_signs(word >> (7 * l)));
        }
    }
}

void quant_iq2_xs_decode(const uint8_t *bytes, float *out, int64_t count) {
    struct block_iq2_xs b;
    for (int64_t i = 0; i < count; i += 256, bytes += sizeof b) {
        memcpy(&b, bytes, sizeof b);
        const float d = f16_to_float(b.d);
        for (int g = 0; g < 8; g++) {
            for (int l = 0; l < 4; l++) {
                const float scale = d * (0.5f + (float)nibble(b.scales[g], l / 2)) * 0.25f;
                const uint16_t code = b.qs[4 * g + l];
                put_point_of_eight(out + i + 32 * g + 8 * l, scale, quant_iq2_xs_grid[code & 511],
                                   eight_signs(code >> 9));
            }
        }
    }
}

void quant_iq2_s_decode(const uint8_t *bytes, float *out, int64_t count) {
    struct block_iq2_s b;
    for (int64_t i = 0; i < count; i += 256, bytes += sizeof b) {
        memcpy(&b, bytes, sizeof b);
        const float d = f16_to_float(b.d);
        for (int g = 0; g < 8; g++) {
            for (int l = 0; l < 4; l++) {
                const float scale = d * (0.5f + (float)nibble(b.scales[g], l / 2)) * 0.25f;
                int index = b.grid[4 * g + l] | ((b.qh[g] >> (2 * l)) & 3) << 8;
                put_point_of_eight(out + i + 32 * g + 8 * l, scale, quant_iq2_s_grid[index], b.signs[4 * g + l]);
            }
        }
    }
}

void quant_iq3_xxs_decode(const uint8_t *bytes, float *out, int64_t count) {
    static const float values[8] = QUANT_IQ3_XXS_VALUES;
    struct block_iq3_xxs b;
    for (int64_t i = 0; i < count; i += 256, bytes += sizeof b) {
        memcpy(&b, bytes, sizeof b);
        const float d = f16_to_float(b.d);
        for (int g = 0; g < 8; g++) {
            const uint32_t word = little_32(b.signs[g]);
            const float scale = d * (0.5f + (float)(word >> 28)) * 0.5f;
            for (int l = 0; l < 4; l++) {
                const uint8_t *grid = b.grid + 8 * g + 2 * l;
                put_points_of_four(out + i + 32 * g + 8 * l, scale, values, quant_iq3_xxs_grid[grid[0]],
                                   quant_iq3_xxs_grid[grid[1]], eight_signs(word >> (7 * l)));
            }
        }
    }
}

void quant_iq3_s_decode(const uint8_t *bytes, float *out, int64_t count) {
    static const float values[8] = QUANT_IQ3_S_VALUES;
    struct block_iq3_s b;
    for (int64_t i = 0; i < count; i += 256, bytes += sizeof b) {
        memcpy(&b, bytes, sizeof b);
        const float d = f16_to_float(b.d);
        for (int g = 0; g < 8; g++) {
            const float scale = d * (float)(1 + 2 * nibble(b.scales[g / 2], g % 2));
            for (int l = 0; l < 4; l++) {
                const uint8_t *grid = b.grid + 8 * g + 2 * l;
                int first = grid[0] | ((b.qh[g] >> (2 * l)) & 1) << 8, second = grid[1] | ((b.qh[g] >> (2 * l + 1)) & 1)
                                                                                              << 8;
                put_points_of_four(out + i + 32 * g + 8 * l, scale, values, quant_iq3_s_grid[first],
                                   quant_iq3_s_grid[second], b.signs[4 * g + l]);
            }
        }
    }
}

// --- IQ1: points of -1, 0 and 1, all moved by an eighth up or down. 8 groups g of 32 elements, four points l each.
//
//     byte    0      2              34             50
//   IQ1_S     | d    | grid[32]      | qh[8]        |     qh, 16 bits: | down | s, 3 bits | 4 x 3 bits of grid index |
//     byte    0              32             48              56
//   IQ1_M     | grid[32]      | qh[16]       | scales[4]     |
//
//   y = d * (2s + 1) * (point -+ 1/8)
//   IQ1_M: nibble l % 2 of qh[2g + l / 2] is | down | 3 bits of grid index |. The upper nibbles of its four 16-bit
//   scales are d, the lowest four bits first; below them, 3 bits a scale s for every two points.

struct block_iq1_s {
    uint16_t d;
    uint8_t grid[32];
    uint16_t qh[8];
};
struct block_iq1_m {
    uint8_t grid[32];
    uint8_t qh[16];
    uint16_t scales[4];
};
static_assert(sizeof(struct block_iq1_s) == 50, "no padding");
static_assert(sizeof(struct block_iq1_m) == 56, "no padding");

static void put_ternary_point(float out[8], float scale, int point, bool down) {
    const float shift = down ? -0.125f : 0.125f;
    for (int j = 0; j < 8; j++) out[j] = scale * ((float)(((point >> (2 * j)) & 3) - 1) + shift);
}

void quant_iq1_s_decode(const uint8_t *bytes, float *out, int64_t count) {
    struct block_iq1_s b;
    for (int64_t i = 0; i < count; i += 256, bytes += sizeof b) {
        memcpy(&b, bytes, sizeof b);
        const float d = f16_to_float(b.d);
        for (int g = 0; g < 8; g++) {
            const float scale = d * (float)(2 * ((b.qh[g] >> 12) & 7) + 1);
            for (int l = 0; l < 4; l++) {
                int index = b.grid[4 * g + l] | ((b.qh[g] >> (3 * l)) & 7) << 8;
                put_ternary_point(out + i + 32 * g + 8 * l, scale, quant_iq1_grid[index], b.qh[g] >> 15);
            }
        }
    }
}

void quant_iq1_m_decode(const uint8_t *bytes, float *out, int64_t count) {
    struct block_iq1_m b;
    for (int64_t i = 0; i < count; i += 256, bytes += sizeof b) {
        memcpy(&b, bytes, sizeof b);
        int half = 0;
        for (int k = 0; k < 4; k++) half |= b.scales[k] >> 12 << (4 * k);
        const float d = f16_to_float((uint16_t)half);
        for (int g = 0; g < 8; g++) {
            for (int l = 0; l < 4; l++) {
                int s = (b.scales[g / 2] >> (6 * (g % 2) + 3 * (l / 2))) & 7, high = nibble(b.qh[2 * g + l / 2], l % 2);
                int index = b.grid[4 * g + l] | (high & 7) << 8;
                put_ternary_point(out + i + 32 * g + 8 * l, d * (float)(2 * s + 1), quant_iq1_grid[index], high & 8);
            }
        }
    }
}
