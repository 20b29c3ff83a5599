// Packed formats with blocks of 256 and scales within: the K formats, and the ternary ones. See quant.h; bits are drawn
// in byte order. Layouts: ggml (formats.md 2.4).
#include "kernels/quant_blocks.h"

// qs of Q2_K, Q3_K and TQ2_0: 32 bytes hold the low two bits of 128 elements, element 32t + l in bits 2t, 2t + 1 of
// byte l.
//
//     byte   0              16                     80     82     84
//   Q2_K     | scales[16]    | qs[64]               | d    | dmin |          16 sub-blocks of 16
//
//   scales: low nibble = scale, high nibble = minimum.  y = (d * scale) * q - dmin * min
//
//     byte   0                  32                     96            108   110
//   Q3_K     | hmask[32]         | qs[64]               | scales[12]  | d   |      16 sub-blocks of 16
//
//   hmask: bit i / 32 of byte i % 32 is element i's third bit.
//   scales: 6 bits, less 32. The low four of sub-block k are nibble k / 8 of byte k % 8, the high two bits 2 (k / 4),
//   2 (k / 4) + 1 of byte 8 + k % 4.
//   y = (d * scale) * (q - 4)
//
//     byte   0      2      4              16                     144
//   Q4_K     | d    | dmin | scales[12]    | qs[128]               |     8 sub-blocks of 32
//     byte   0      2      4              16              48                     176
//   Q5_K     | d    | dmin | scales[12]    | qh[32]        | qs[128]               |     8 sub-blocks of 32
//
//   qs: byte 32c + l holds elements 64c + l (low nibble) and 64c + 32 + l (high nibble).
//   qh: bit i / 32 of byte i % 32 is element i's fifth bit.
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
//
//     byte   0            4                             260                  292
//   Q8_K     | d: float    | qs[256], signed             | bsums[16]          |    y = d * q; the sums are not needed
//
//     byte   0                     48          52     54
//   TQ1_0    | qs[48]               | qh[4]     | d    |     five ternary digits a byte in qs, four in qh
//     byte   0                            64     66
//   TQ2_0    | qs[64]                      | d    |          y = (q - 1) * d for both
//
//   A byte b of TQ1_0 is a number of five ternary digits, the first one highest, times 256 / 243, rounded up: its digit
//   n is (b * 3^n mod 256) * 3 / 256.
//   Bytes 0-31 hold elements 0-159: element 32n + m is digit n of byte m. Bytes 32-47 hold elements 160-239: element
//   160 + 16n + m is digit n of byte 32 + m. qh holds elements 240-255: element 240 + 4n + m is digit n of byte m.

struct block_q2_k {
    uint8_t scales[16];
    uint8_t qs[64];
    uint16_t d, dmin; // binary16, as all scales but Q8_K's
};
struct block_q3_k {
    uint8_t hmask[32];
    uint8_t qs[64];
    uint8_t scales[12];
    uint16_t d;
};
struct block_q5_k {
    uint16_t d, dmin;
    uint8_t scales[12];
    uint8_t qh[32];
    uint8_t qs[128];
};
struct block_q8_k {
    float d;
    int8_t qs[256];
    int16_t bsums[16]; // of 16 codes each
};
struct block_tq1_0 {
    uint8_t qs[48];
    uint8_t qh[4];
    uint16_t d;
};
struct block_tq2_0 {
    uint8_t qs[64];
    uint16_t d;
};

static_assert(sizeof(struct block_q2_k) == 84, "no padding");
static_assert(sizeof(struct block_q3_k) == 110, "no padding");
static_assert(sizeof(struct block_q5_k) == 176, "no padding");
static_assert(sizeof(struct block_q8_k) == 292, "no padding");
static_assert(sizeof(struct block_tq1_0) == 54, "no padding");
static_assert(sizeof(struct block_tq2_0) == 66, "no padding");

static int two_bits(const uint8_t qs[64], int e) {
    return (qs[32 * (e / 128) + e % 32] >> (2 * (e % 128 / 32))) & 3;
}

static int four_bits(const uint8_t qs[128], int e) {
    return (qs[32 * (e / 64) + e % 32] >> (4 * (e % 64 / 32))) & 15;
}

// Bit e of 32 bytes that each hold one bit of eight sub-blocks.
static int one_bit(const uint8_t bits[32], int e) {
    return (bits[e % 32] >> (e / 32)) & 1;
}

void quant_q2_k_decode(const uint8_t *bytes, float *out, int64_t count) {
    struct block_q2_k b;
    for (int64_t i = 0; i < count; i += 256, bytes += sizeof b) {
        memcpy(&b, bytes, sizeof b);
        const float d = f16_to_float(b.d), dmin = f16_to_float(b.dmin);
        for (int e = 0; e < 256; e++) {
            const float scale = d * (float)(b.scales[e / 16] & 15), min = dmin * (float)(b.scales[e / 16] >> 4);
            out[i + e] = scale * (float)two_bits(b.qs, e) - min;
        }
    }
}

void quant_q3_k_decode(const uint8_t *bytes, float *out, int64_t count) {
    struct block_q3_k b;
    for (int64_t i = 0; i < count; i += 256, bytes += sizeof b) {
        memcpy(&b, bytes, sizeof b);
        const float d = f16_to_float(b.d);
        for (int e = 0; e < 256; e++) {
            int k = e / 16, low = (b.scales[k % 8] >> (4 * (k / 8))) & 15, high = b.scales[8 + k % 4] >> (2 * (k / 4));
            int scale = (low | (high & 3) << 4) - 32, q = (two_bits(b.qs, e) | one_bit(b.hmask, e) << 2) - 4;
            out[i + e] = d * (float)scale * (float)q;
        }
    }
}

void quant_k_scale(const uint8_t s[12], int j, int *scale, int *min) {
    if (j < 4) {
        *scale = s[j] & 63;
        *min = s[j + 4] & 63;
    } else {
        *scale = (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
        *min = (s[j + 4] >> 4) | (s[j] >> 6) << 4;
    }
}

void quant_q4_k_decode(const uint8_t *bytes, float *out, int64_t count) {
    struct block_q4_k b;
    for (int64_t i = 0; i < count; i += 256, bytes += sizeof b) {
        memcpy(&b, bytes, sizeof b);
        const float d = f16_to_float(b.d), dmin = f16_to_float(b.dmin);
        for (int j = 0; j < 8; j++) {
            int scale, min;
            quant_k_scale(b.scales, j, &scale, &min);
            const float ds = d * (float)scale, m = dmin * (float)min;
            for (int e = 32 * j; e < 32 * j + 32; e++) out[i + e] = ds * (float)four_bits(b.qs, e) - m;
        }
    }
}

void quant_q5_k_decode(const uint8_t *bytes, float *out, int64_t count) {
    struct block_q5_k b;
    for (int64_t i = 0; i < count; i += 256, bytes += sizeof b) {
        memcpy(&b, bytes, sizeof b);
        const float d = f16_to_float(b.d), dmin = f16_to_float(b.dmin);
        for (int j = 0; j < 8; j++) {
            int scale, min;
            quant_k_scale(b.scales, j, &scale, &min);
            const float ds = d * (float)scale, m = dmin * (float)min;
            for (int e = 32 * j; e < 32 * j + 32; e++)
                out[i + e] = ds * (float)(four_bits(b.qs, e) | one_bit(b.qh, e) << 4) - m;
        }
    }
}

void quant_q6_k_decode(const uint8_t *bytes, float *out, int64_t count) {
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

void quant_q8_k_decode(const uint8_t *bytes, float *out, int64_t count) {
    struct block_q8_k b;
    for (int64_t i = 0; i < count; i += 256, bytes += sizeof b) {
        memcpy(&b, bytes, sizeof b);
        for (int e = 0; e < 256; e++) out[i + e] = b.d * (float)b.qs[e];
    }
}

static int ternary_digit(uint8_t byte, int n) {
    static const uint8_t powers[] = {1, 3, 9, 27, 81};
    return (uint8_t)(byte * powers[n]) * 3 >> 8;
}

void quant_tq1_0_decode(const uint8_t *bytes, float *out, int64_t count) {
    struct block_tq1_0 b;
    for (int64_t i = 0; i < count; i += 256, bytes += sizeof b) {
        memcpy(&b, bytes, sizeof b);
        const float d = f16_to_float(b.d);
        for (int e = 0; e < 256; e++) {
            int q = e < 160   ? ternary_digit(b.qs[e % 32], e / 32)
                    : e < 240 ? ternary_digit(b.qs[32 + (e - 160) % 16], (e - 160) / 16)
                              : ternary_digit(b.qh[(e - 240) % 4], (e - 240) / 4);
            out[i + e] = (float)(q - 1) * d;
        }
    }
}

void quant_tq2_0_decode(const uint8_t *bytes, float *out, int64_t count) {
    struct block_tq2_0 b;
    for (int64_t i = 0; i < count; i += 256, bytes += sizeof b) {
        memcpy(&b, bytes, sizeof b);
        const float d = f16_to_float(b.d);
        for (int e = 0; e < 256; e++) out[i + e] = (float)(two_bits(b.qs, e) - 1) * d;
    }
}
