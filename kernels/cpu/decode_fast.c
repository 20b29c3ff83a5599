// Panel decoders: packed weights into fp32 panels, bit for bit what the reference decoders of quant.h give
// (their products are exact in fp32, so a fused multiply-add rounds where they round; a minimum of -0 changes nothing).
//
// A packed format has NAME_codes, sixteen neighbours of one row as small whole numbers, and their scale and minimum for
// one row (NAME_scale) and for sixteen rows (NAME_scales). That makes dX panels (lanes are columns). Forward panels
// (lanes are rows) come from NAME_turn, which decodes words of sixteen rows turned on their side; what is left over
// goes through a small buffer of floats.
#include "kernels/cpu/gemm.h"

#include "kernels/cpu/words.h"

#if defined(VEC_AVX512) || defined(VEC_AVX2) || defined(__SANITIZE_ADDRESS__)
#define DECODE    GEMM_INLINE
#define UNROLL(n) GEMM_UNROLL(n)
#else // plain C: nothing to gain
#define DECODE static inline
#define UNROLL(n)
#endif

// --- sixteen elements of one row: elements 16 * i ..; `n` < 16 only for the plain formats

DECODE v16 f32_16(const uint8_t *row, int64_t i, int n) {
    if (n == 16) return w16_float(w16_load(row + 64 * i));
    uint32_t t[16] = {0};
    memcpy(t, row + 64 * i, 4 * (size_t)n);
    return w16_float(w16_load(t));
}
DECODE v16 f16_16(const uint8_t *row, int64_t i, int n) {
    if (n == 16) return v16_halves(row + 32 * i);
    uint8_t t[32] = {0};
    memcpy(t, row + 32 * i, 2 * (size_t)n);
    return v16_halves(t);
}
DECODE v16 bf16_16(const uint8_t *row, int64_t i, int n) {
    if (n == 16) return v16_brains(row + 32 * i);
    uint8_t t[32] = {0};
    memcpy(t, row + 32 * i, 2 * (size_t)n);
    return v16_brains(t);
}

// --- packed formats: sixteen codes, and value = code * d + m

struct scale {
    v16 d, m;
};
#define NO_MINIMUM v16_set1(-0.0f)

// The binary16 at `p` in sixteen rows, and the word there.
DECODE v16 halves_of_rows(const uint8_t *p, size_t s) {
    uint16_t t[16];
    UNROLL(16)
    for (size_t i = 0; i < 16; i++) t[i] = load_u16(p + i * s);
    return v16_halves((const uint8_t *)t);
}
DECODE w16 words_of_rows(const uint8_t *p, size_t s) {
    uint32_t t[16];
    UNROLL(16)
    for (size_t i = 0; i < 16; i++) memcpy(&t[i], p + i * s, 4);
    return w16_load(t);
}

// The values of four bits.
DECODE v16 iq4_table(void) {
    static const float values[] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    return v16_load(values);
}
DECODE v16 fp4_table(void) {
    static const float values[] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    return v16_load(values);
}

// Blocks of 32: low nibbles are elements 0-15, high nibbles 16-31.
DECODE v16 q4_0_codes(const uint8_t *row, int64_t i, bool high) {
    return v16_sub(v16_nibble8(row + 18 * (i / 2) + 2, high ? 4 : 0), v16_set1(8.0f));
}
DECODE v16 q4_1_codes(const uint8_t *row, int64_t i, bool high) {
    return v16_nibble8(row + 20 * (i / 2) + 4, high ? 4 : 0);
}
DECODE v16 q5_0_codes(const uint8_t *row, int64_t i, bool high) {
    const uint8_t *b = row + 22 * (i / 2);
    v16 fifth = v16_bits16(load_u16(b + (high ? 4 : 2)));
    return v16_sub(v16_add(v16_nibble8(b + 6, high ? 4 : 0), fifth), v16_set1(16.0f));
}
DECODE v16 q5_1_codes(const uint8_t *row, int64_t i, bool high) {
    const uint8_t *b = row + 24 * (i / 2);
    return v16_add(v16_nibble8(b + 8, high ? 4 : 0), v16_bits16(load_u16(b + (high ? 6 : 4))));
}
DECODE v16 q8_0_codes(const uint8_t *row, int64_t i, bool high) {
    return v16_i8(row + 34 * (i / 2) + (high ? 18 : 2));
}
#define BLOCKS_OF_32(name, bytes, minimum)                                                                             \
    DECODE bool name##_high(int64_t i) {                                                                               \
        return i % 2 != 0;                                                                                             \
    }                                                                                                                  \
    DECODE struct scale name##_scale(const uint8_t *row, int64_t i) {                                                  \
        const uint8_t *b = row + (bytes) * (i / 2);                                                                    \
        return (struct scale){v16_half1(b), (minimum) ? v16_half1(b + 2) : NO_MINIMUM};                                \
    }                                                                                                                  \
    DECODE struct scale name##_scales(const uint8_t *base, size_t s, int64_t i) {                                      \
        const uint8_t *b = base + (bytes) * (i / 2);                                                                   \
        return (struct scale){halves_of_rows(b, s), (minimum) ? halves_of_rows(b + 2, s) : NO_MINIMUM};                \
    }
BLOCKS_OF_32(q4_0, 18, false)
BLOCKS_OF_32(q4_1, 20, true)
BLOCKS_OF_32(q5_0, 22, false)
BLOCKS_OF_32(q5_1, 24, true)
BLOCKS_OF_32(q8_0, 34, false)
DECODE v16 iq4_nl_codes(const uint8_t *row, int64_t i, bool high) {
    return v16_pick8(row + 18 * (i / 2) + 2, high ? 4 : 0, iq4_table());
}
BLOCKS_OF_32(iq4_nl, 18, false)

// MXFP4: a byte of exponent and 16 bytes of nibbles.
DECODE bool mxfp4_high(int64_t i) {
    return i % 2 != 0;
}
DECODE v16 mxfp4_codes(const uint8_t *row, int64_t i, bool high) {
    return v16_pick8(row + 17 * (i / 2) + 1, high ? 4 : 0, fp4_table());
}
DECODE struct scale mxfp4_scales(const uint8_t *base, size_t s, int64_t i) {
    const uint8_t *b = base + 17 * (i / 2);
    uint32_t t[16];
    UNROLL(16)
    for (size_t r = 0; r < 16; r++) { // the bits of 2^(e - 128)
        uint32_t e = b[r * s];
        t[r] = e < 2 ? 0x00200000u << e : (e - 1) << 23;
    }
    return (struct scale){w16_float(w16_load(t)), NO_MINIMUM};
}
DECODE struct scale mxfp4_scale(const uint8_t *row, int64_t i) {
    return mxfp4_scales(row, 0, i);
}

// Q4_K and Q5_K: 8 sub-blocks j of 32; 64 elements share 32 bytes, first the low nibbles. The first 16 bytes of a block
// are {d dmin, scales 0-3 | mins 0-3 (6 bits, upper two bits lent to 4-7) | lower four bits of scales and mins 4-7}.
DECODE struct scale k_scale(const uint8_t *b, int j) {
    const uint8_t *s = b + 4;
    int scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
    int low = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | (s[j] >> 6) << 4;
    return (struct scale){v16_mul(v16_half1(b), v16_set1((float)scale)),
                          v16_mul(v16_half1(b + 2), v16_set1(-(float)low))};
}
// The same from the turned 16 bytes; `j` and so the shifts are constants or the same for all rows.
DECODE struct scale k_header(const w16 h[4], int j) {
    v16 d = w16_half(h[0], 0), dmin = v16_mul(w16_half(h[0], 1), v16_set1(-1.0f));
    int shift = 8 * (j % 4);
    if (j < 4) return (struct scale){v16_mul(d, w16_field(h[1], shift, 6)), v16_mul(dmin, w16_field(h[2], shift, 6))};
    return (struct scale){v16_mul(d, w16_join(h[3], shift, 4, h[1], shift + 6, 2, 0)),
                          v16_mul(dmin, w16_join(h[3], shift + 4, 4, h[2], shift + 6, 2, 0))};
}
#define K_HEADERS(name, bytes)                                                                                         \
    DECODE bool name##_high(int64_t i) {                                                                               \
        return i / 2 % 2 != 0;                                                                                         \
    }                                                                                                                  \
    DECODE struct scale name##_scale(const uint8_t *row, int64_t i) {                                                  \
        return k_scale(row + (bytes) * (i / 16), (int)(i % 16 / 2));                                                   \
    }                                                                                                                  \
    DECODE struct scale name##_scales(const uint8_t *base, size_t s, int64_t i) {                                      \
        w16 h[4];                                                                                                      \
        w16_load4(h, base + (bytes) * (i / 16), s);                                                                    \
        return k_header(h, (int)(i % 16 / 2));                                                                         \
    }
K_HEADERS(q4_k, 144)
K_HEADERS(q5_k, 176)
DECODE v16 q4_k_codes(const uint8_t *row, int64_t i, bool high) {
    return v16_nibble8(row + 144 * (i / 16) + 16 + 32 * (i % 16 / 4) + 16 * (i % 2), high ? 4 : 0);
}
DECODE v16 q5_k_codes(const uint8_t *row, int64_t i, bool high) { // bit j of 32 bytes is the fifth bit of sub-block j
    const uint8_t *b = row + 176 * (i / 16) + 16 + 16 * (i % 2);
    v16 fifth = v16_field8(b, (int)(i % 16 / 2), 1);
    return v16_fma(fifth, v16_set1(16.0f), v16_nibble8(b + 32 + 32 * (i % 16 / 4), high ? 4 : 0));
}

// IQ4_XS: a sub-block j of 32 is as in IQ4_NL; its scale's low four bits are in nibble j of bytes 4-7, the high two in
// bytes 2-3.
DECODE bool iq4_xs_high(int64_t i) {
    return i % 2 != 0;
}
DECODE v16 iq4_xs_codes(const uint8_t *row, int64_t i, bool high) {
    return v16_pick8(row + 136 * (i / 16) + 8 + 16 * (i % 16 / 2), high ? 4 : 0, iq4_table());
}
DECODE struct scale iq4_xs_header(w16 first, w16 second, int j) {
    return (struct scale){v16_mul(w16_half(first, 0), w16_join(second, 4 * j, 4, first, 16 + 2 * j, 2, 32)),
                          NO_MINIMUM};
}
DECODE struct scale iq4_xs_scales(const uint8_t *base, size_t s, int64_t i) {
    const uint8_t *b = base + 136 * (i / 16);
    return iq4_xs_header(words_of_rows(b, s), words_of_rows(b + 4, s), (int)(i % 16 / 2));
}
DECODE struct scale iq4_xs_scale(const uint8_t *row, int64_t i) {
    const uint8_t *b = row + 136 * (i / 16);
    int j = (int)(i % 16 / 2), low = b[4 + j / 2] >> (4 * (j % 2)) & 15, high = load_u16(b + 2) >> (2 * j) & 3;
    return (struct scale){v16_mul(v16_half1(b), v16_set1((float)((low | high << 4) - 32))), NO_MINIMUM};
}

// Q2_K and Q3_K: of each half of 128, element 32 t + l has its lower two bits in qs[l], bits 2t; a scale for every 16.
DECODE bool q2_k_high(int64_t i) {
    (void)i;
    return false;
}
DECODE v16 q2_k_codes(const uint8_t *row, int64_t i, bool high) {
    (void)high;
    return v16_field8(row + 84 * (i / 16) + 16 + 32 * (i % 16 / 8) + 16 * (i % 2), (int)(2 * (i % 8 / 2)), 2);
}
DECODE struct scale q2_k_scale(const uint8_t *row, int64_t i) {
    const uint8_t *b = row + 84 * (i / 16);
    return (struct scale){v16_mul(v16_half1(b + 80), v16_set1((float)(b[i % 16] & 15))),
                          v16_mul(v16_half1(b + 82), v16_set1(-(float)(b[i % 16] >> 4)))};
}
// `scales`: the words with the scale's byte; d dmin: the last word of the block.
DECODE struct scale q2_k_header(w16 scales, int byte, w16 last) {
    return (struct scale){v16_mul(w16_half(last, 0), w16_field(scales, 8 * byte, 4)),
                          v16_mul(v16_mul(w16_half(last, 1), v16_set1(-1.0f)), w16_field(scales, 8 * byte + 4, 4))};
}
DECODE struct scale q2_k_scales(const uint8_t *base, size_t s, int64_t i) {
    const uint8_t *b = base + 84 * (i / 16);
    return q2_k_header(words_of_rows(b + i % 16 / 4 * 4, s), (int)(i % 4), words_of_rows(b + 80, s));
}

// Q3_K: bit i / 32 of hmask[l] is the third bit. Scale k of 16: low four bits are nibble k / 8 of byte 96 + k % 8, high
// two bits are bits 2 (k / 4) of byte 104 + k % 4.
DECODE bool q3_k_high(int64_t i) {
    (void)i;
    return false;
}
DECODE v16 q3_k_codes(const uint8_t *row, int64_t i, bool high) {
    (void)high;
    const uint8_t *b = row + 110 * (i / 16) + 16 * (i % 2);
    v16 low = v16_field8(b + 32 + 32 * (i % 16 / 8), (int)(2 * (i % 8 / 2)), 2),
        third = v16_field8(b, (int)(i % 16 / 2), 1);
    return v16_sub(v16_fma(third, v16_set1(4.0f), low), v16_set1(4.0f));
}
DECODE struct scale q3_k_scale(const uint8_t *row, int64_t i) {
    const uint8_t *b = row + 110 * (i / 16);
    int k = (int)(i % 16), low = b[96 + k % 8] >> (4 * (k / 8)) & 15, high = b[104 + k % 4] >> (2 * (k / 4)) & 3;
    return (struct scale){v16_mul(v16_half1(b + 108), v16_set1((float)((low | high << 4) - 32))), NO_MINIMUM};
}
DECODE struct scale q3_k_scales(const uint8_t *base, size_t s, int64_t i) {
    const uint8_t *b = base + 110 * (i / 16);
    int k = (int)(i % 16), byte = 8 * (k % 4);
    v16 scale = w16_join(words_of_rows(b + 96 + k % 8 / 4 * 4, s), byte + 4 * (k / 8), 4, words_of_rows(b + 104, s),
                         byte + 2 * (k / 4), 2, 32);
    return (struct scale){v16_mul(halves_of_rows(b + 108, s), scale), NO_MINIMUM};
}

// Q6_K: of each half of 128, element 32 t + l has its lower four bits in ql[32 (t & 1) + l], nibble t >> 1, and its
// upper two in qh[l], bits 2t; a scale for every 16.
DECODE bool q6_k_high(int64_t i) {
    return i % 8 / 4 != 0;
}
DECODE v16 q6_k_codes(const uint8_t *row, int64_t i, bool high) {
    const uint8_t *b = row + 210 * (i / 16);
    int half = (int)(i % 16 / 8), t = (int)(i % 8 / 2), odd = (int)(i % 2);
    v16 low = v16_nibble8(b + 64 * half + 32 * (t & 1) + 16 * odd, high ? 4 : 0);
    v16 upper = v16_field8(b + 128 + 32 * half + 16 * odd, 2 * t, 2);
    return v16_sub(v16_fma(upper, v16_set1(16.0f), low), v16_set1(32.0f));
}
DECODE struct scale q6_k_scale(const uint8_t *row, int64_t i) {
    const uint8_t *b = row + 210 * (i / 16);
    return (struct scale){v16_mul(v16_half1(b + 208), v16_set1((float)(int8_t)b[192 + i % 16])), NO_MINIMUM};
}
DECODE struct scale q6_k_scales(const uint8_t *base, size_t s, int64_t i) {
    const uint8_t *b = base + 210 * (i / 16);
    w16 words = words_of_rows(b + 192 + i % 16 / 4 * 4, s);
    v16 d = v16_mul(halves_of_rows(b + 208, s), v16_set1(0x1p-24f));
    return (struct scale){v16_mul(d, w16_byte24(words, (int)(i % 4))), NO_MINIMUM};
}

// --- forward panels from turned words: 16 rows, elements k0 .. k0 + NAME_unit, `p` = panel row of element k0

enum { P = GEMM_COLS };

DECODE void put(float *p, int64_t k, v16 a) {
    v16_store(p + k * P, a);
}

// 32 four-bit numbers in 16 bytes: low nibbles are elements 0-15, high nibbles 16-31. value = q * d + m
DECODE void put_nibbles(float *p, const w16 w[4], v16 d, v16 m) {
    UNROLL(4)
    for (int c = 0; c < 4; c++) {
        UNROLL(4)
        for (int j = 0; j < 4; j++) {
            put(p, 4 * c + j, v16_fma(w16_nibble(w[c], 8 * j), d, m));
            put(p, 16 + 4 * c + j, v16_fma(w16_nibble(w[c], 8 * j + 4), d, m));
        }
    }
}

DECODE int64_t f32_turn(float *p, const uint8_t *base, size_t s, int64_t k0, int64_t left) {
    if (left < 16) return 0;
    UNROLL(4)
    for (int t = 0; t < 4; t++) {
        w16 w[4];
        w16_load4(w, base + 4 * k0 + 16 * t, s);
        for (int c = 0; c < 4; c++) put(p, 4 * t + c, w16_float(w[c]));
    }
    return 16;
}
DECODE int64_t f16_turn(float *p, const uint8_t *base, size_t s, int64_t k0, int64_t left) {
    if (left < 16) return 0;
    UNROLL(2)
    for (int t = 0; t < 16; t += 8) {
        w16 w[4];
        w16_load4(w, base + 2 * (k0 + t), s);
        UNROLL(4)
        for (int c = 0; c < 4; c++) put(p, t + 2 * c, w16_half(w[c], 0)), put(p, t + 2 * c + 1, w16_half(w[c], 1));
    }
    return 16;
}
DECODE int64_t bf16_turn(float *p, const uint8_t *base, size_t s, int64_t k0, int64_t left) {
    if (left < 16) return 0;
    UNROLL(2)
    for (int t = 0; t < 16; t += 8) {
        w16 w[4];
        w16_load4(w, base + 2 * (k0 + t), s);
        UNROLL(4)
        for (int c = 0; c < 4; c++) put(p, t + 2 * c, w16_bf16(w[c], 0)), put(p, t + 2 * c + 1, w16_bf16(w[c], 1));
    }
    return 16;
}
DECODE int64_t q4_0_turn(float *p, const uint8_t *base, size_t s, int64_t k0, int64_t left) {
    (void)left;
    const uint8_t *b = base + 18 * (k0 / 32);
    w16 w[4];
    w16_load4(w, b + 2, s);
    v16 d = halves_of_rows(b, s);
    UNROLL(4)
    for (int c = 0; c < 4; c++) { // not q * d - 8 * d: that would lose the sign of a zero
        UNROLL(4)
        for (int j = 0; j < 4; j++) {
            put(p, 4 * c + j, v16_mul(v16_sub(w16_nibble(w[c], 8 * j), v16_set1(8.0f)), d));
            put(p, 16 + 4 * c + j, v16_mul(v16_sub(w16_nibble(w[c], 8 * j + 4), v16_set1(8.0f)), d));
        }
    }
    return 32;
}
// Four blocks are 80 bytes, five turns of four words: {d m, q, q, q, q} four times over.
DECODE int64_t q4_1_turn(float *p, const uint8_t *base, size_t s, int64_t k0, int64_t left) {
    const uint8_t *b = base + 20 * (k0 / 32);
    if (left < 128) {
        w16 h[4], w[4];
        w16_load4(h, b, s), w16_load4(w, b + 4, s);
        put_nibbles(p, w, w16_half(h[0], 0), w16_half(h[0], 1));
        return 32;
    }
    w16 w[20];
    UNROLL(5)
    for (int t = 0; t < 5; t++) w16_load4(w + 4 * t, b + 16 * t, s);
    UNROLL(4)
    for (int t = 0; t < 4; t++)
        put_nibbles(p + 32 * t * P, w + 5 * t + 1, w16_half(w[5 * t], 0), w16_half(w[5 * t], 1));
    return 128;
}
DECODE int64_t q8_0_turn(float *p, const uint8_t *base, size_t s, int64_t k0, int64_t left) {
    (void)left;
    const uint8_t *b = base + 34 * (k0 / 32);
    w16 w[8];
    w16_load4(w, b + 2, s), w16_load4(w + 4, b + 18, s);
    v16 d = v16_mul(halves_of_rows(b, s), v16_set1(0x1p-24f));
    UNROLL(8)
    for (int c = 0; c < 8; c++) {
        UNROLL(4)
        for (int j = 0; j < 4; j++) put(p, 4 * c + j, v16_mul(w16_byte24(w[c], j), d));
    }
    return 32;
}
// 32 nibbles as in put_nibbles that name values of a table. value = table[q] * d
DECODE void put_picked(float *p, const w16 w[4], v16 d, v16 table) {
    UNROLL(4)
    for (int c = 0; c < 4; c++) {
        UNROLL(4)
        for (int j = 0; j < 4; j++) {
            put(p, 4 * c + j, v16_mul(w16_pick(w[c], 8 * j, table), d));
            put(p, 16 + 4 * c + j, v16_mul(w16_pick(w[c], 8 * j + 4, table), d));
        }
    }
}
DECODE int64_t iq4_nl_turn(float *p, const uint8_t *base, size_t s, int64_t k0, int64_t left) {
    (void)left;
    w16 w[4];
    w16_load4(w, base + 18 * (k0 / 32) + 2, s);
    put_picked(p, w, halves_of_rows(base + 18 * (k0 / 32), s), iq4_table());
    return 32;
}
DECODE int64_t mxfp4_turn(float *p, const uint8_t *base, size_t s, int64_t k0, int64_t left) {
    (void)left;
    w16 w[4];
    w16_load4(w, base + 17 * (k0 / 32) + 1, s);
    put_picked(p, w, mxfp4_scales(base, s, k0 / 16).d, fp4_table());
    return 32;
}

// Half a block of 256: 0 is the first half.
DECODE void iq4_xs_half(float *p, const uint8_t *b, size_t s, const int half) {
    w16 first = words_of_rows(b, s), second = words_of_rows(b + 4, s), w[4];
    UNROLL(4)
    for (int j = 0; j < 4; j++) {
        w16_load4(w, b + 8 + 64 * half + 16 * j, s);
        put_picked(p + 32 * j * P, w, iq4_xs_header(first, second, 4 * half + j).d, iq4_table());
    }
}
DECODE void q2_k_half(float *p, const uint8_t *b, size_t s, const int half) {
    w16 w[8], scales[2] = {words_of_rows(b + 8 * half, s), words_of_rows(b + 8 * half + 4, s)};
    w16 last = words_of_rows(b + 80, s);
    w16_load4(w, b + 16 + 32 * half, s), w16_load4(w + 4, b + 32 + 32 * half, s);
    UNROLL(8)
    for (int k = 0; k < 8; k++) { // sub-blocks of 16: t = k / 2, and the second 16 bytes for odd k
        struct scale scale = q2_k_header(scales[k / 4], k % 4, last);
        UNROLL(4)
        for (int c = 0; c < 4; c++) {
            UNROLL(4)
            for (int j = 0; j < 4; j++) {
                v16 code = w16_field(w[4 * (k % 2) + c], 8 * j + 2 * (k / 2), 2);
                put(p, 16 * k + 4 * c + j, v16_fma(code, scale.d, scale.m));
            }
        }
    }
}
DECODE void q3_k_half(float *p, const uint8_t *b, size_t s, const int half) {
    w16 w[8], third[8], tail[4];
    w16_load4(tail, b + 94, s); // two bytes of no use here, 12 of scales, d: the block ends with them
    w16_load4(w, b + 32 + 32 * half, s), w16_load4(w + 4, b + 48 + 32 * half, s);
    w16_load4(third, b, s), w16_load4(third + 4, b + 16, s);
    v16 d = w16_half(tail[3], 1);
    UNROLL(8)
    for (int k = 0; k < 8; k++) {
        int at = 2 + k, high_at = 10 + k % 4; // bytes in the tail
        v16 scale = v16_mul(d, w16_join(tail[at / 4], 8 * (at % 4) + 4 * half, 4, tail[high_at / 4],
                                        8 * (high_at % 4) + 2 * (2 * half + k / 4), 2, 32));
        UNROLL(4)
        for (int c = 0; c < 4; c++) {
            UNROLL(4)
            for (int j = 0; j < 4; j++) {
                int word = 4 * (k % 2) + c;
                v16 code = w16_join(w[word], 8 * j + 2 * (k / 2), 2, third[word], 8 * j + 4 * half + k / 2, 1, 4);
                put(p, 16 * k + 4 * c + j, v16_mul(code, scale));
            }
        }
    }
}
DECODE void q5_k_half(float *p, const uint8_t *b, size_t s, const int half) {
    w16 h[4], fifth[8];
    w16_load4(h, b, s), w16_load4(fifth, b + 16, s), w16_load4(fifth + 4, b + 32, s);
    UNROLL(2)
    for (int t = 0; t < 2; t++) { // 64 elements: low nibbles of 32 bytes, then their high nibbles
        int sub = 4 * half + 2 * t;
        struct scale low = k_header(h, sub), high = k_header(h, sub + 1);
        w16 w[8];
        w16_load4(w, b + 48 + 32 * (2 * half + t), s), w16_load4(w + 4, b + 64 + 32 * (2 * half + t), s);
        UNROLL(8)
        for (int c = 0; c < 8; c++) {
            UNROLL(4)
            for (int j = 0; j < 4; j++) {
                int k = 64 * t + 4 * c + j;
                put(p, k, v16_fma(w16_join(w[c], 8 * j, 4, fifth[c], 8 * j + sub, 1, 0), low.d, low.m));
                put(p, k + 32, v16_fma(w16_join(w[c], 8 * j + 4, 4, fifth[c], 8 * j + sub + 1, 1, 0), high.d, high.m));
            }
        }
    }
}
#define HALVES_OF_256(name, bytes)                                                                                     \
    DECODE int64_t name##_turn(float *p, const uint8_t *base, size_t s, int64_t k0, int64_t left) {                    \
        (void)left;                                                                                                    \
        const uint8_t *b = base + (bytes) * (k0 / 256);                                                                \
        if (k0 % 256 == 0)                                                                                             \
            name##_half(p, b, s, 0);                                                                                   \
        else                                                                                                           \
            name##_half(p, b, s, 1);                                                                                   \
        return 128;                                                                                                    \
    }
HALVES_OF_256(iq4_xs, 136)
HALVES_OF_256(q2_k, 84)
HALVES_OF_256(q3_k, 110)
HALVES_OF_256(q5_k, 176)

// Half a block of 256: four sub-blocks of 32.
DECODE int64_t q4_k_turn(float *p, const uint8_t *base, size_t s, int64_t k0, int64_t left) {
    (void)left;
    const uint8_t *b = base + 144 * (k0 / 256);
    bool second = k0 % 256 != 0;
    w16 h[4];
    w16_load4(h, b, s);
    UNROLL(2)
    for (int t = 0; t < 2; t++) { // 64 elements: low nibbles of 32 bytes, then their high nibbles
        struct scale low = second ? k_header(h, 4 + 2 * t) : k_header(h, 2 * t);
        struct scale high = second ? k_header(h, 5 + 2 * t) : k_header(h, 1 + 2 * t);
        w16 w[8];
        const uint8_t *q = b + 16 + (second ? 64 : 0) + 32 * t;
        w16_load4(w, q, s), w16_load4(w + 4, q + 16, s);
        UNROLL(8)
        for (int c = 0; c < 8; c++) {
            UNROLL(4)
            for (int j = 0; j < 4; j++) {
                put(p, 64 * t + 4 * c + j, v16_fma(w16_nibble(w[c], 8 * j), low.d, low.m));
                put(p, 64 * t + 32 + 4 * c + j, v16_fma(w16_nibble(w[c], 8 * j + 4), high.d, high.m));
            }
        }
    }
    return 128;
}
// Half a block of 256.
DECODE int64_t q6_k_turn(float *p, const uint8_t *base, size_t s, int64_t k0, int64_t left) {
    (void)left;
    const uint8_t *b = base + 210 * (k0 / 256);
    int half = k0 % 256 != 0;
    w16 scales[4];
    w16_load4(scales, b + 192, s);
    w16 s0 = half ? scales[2] : scales[0], s1 = half ? scales[3] : scales[1];
    v16 d = v16_mul(halves_of_rows(b + 208, s), v16_set1(0x1p-24f));
    UNROLL(2)
    for (int odd = 0; odd < 2; odd++) { // l in 16 odd .. 16 odd + 15
        w16 high[4];
        w16_load4(high, b + 128 + 32 * half + 16 * odd, s);
        UNROLL(2)
        for (int u = 0; u < 2; u++) { // t = u and u + 2
            w16 low[4];
            w16_load4(low, b + 64 * half + 32 * u + 16 * odd, s);
            v16 d0 = v16_mul(d, w16_byte24(s0, 2 * u + odd)), d1 = v16_mul(d, w16_byte24(s1, 2 * u + odd));
            UNROLL(4)
            for (int c = 0; c < 4; c++) {
                UNROLL(4)
                for (int j = 0; j < 4; j++) {
                    int k = 32 * u + 16 * odd + 4 * c + j;
                    put(p, k, v16_mul(w16_join(low[c], 8 * j, 4, high[c], 8 * j + 2 * u, 2, 32), d0));
                    put(p, k + 64, v16_mul(w16_join(low[c], 8 * j + 4, 4, high[c], 8 * j + 2 * u + 4, 2, 32), d1));
                }
            }
        }
    }
    return 128;
}
DECODE int64_t q5_turn(float *p, const uint8_t *b, size_t s, int64_t quants, struct scale scale, float zero) {
    w16 w[4], fifth = words_of_rows(b + quants - 4, s);
    w16_load4(w, b + quants, s);
    UNROLL(4)
    for (int c = 0; c < 4; c++) {
        UNROLL(4)
        for (int j = 0; j < 4; j++) {
            int k = 4 * c + j;
            v16 low = w16_join(w[c], 8 * j, 4, fifth, k, 1, 0),
                high = w16_join(w[c], 8 * j + 4, 4, fifth, k + 16, 1, 0);
            put(p, k, v16_fma(v16_sub(low, v16_set1(zero)), scale.d, scale.m));
            put(p, k + 16, v16_fma(v16_sub(high, v16_set1(zero)), scale.d, scale.m));
        }
    }
    return 32;
}
DECODE int64_t q5_0_turn(float *p, const uint8_t *base, size_t s, int64_t k0, int64_t left) {
    (void)left;
    return q5_turn(p, base + 22 * (k0 / 32), s, 6, q5_0_scales(base, s, k0 / 16), 16.0f);
}
DECODE int64_t q5_1_turn(float *p, const uint8_t *base, size_t s, int64_t k0, int64_t left) {
    (void)left;
    return q5_turn(p, base + 24 * (k0 / 32), s, 8, q5_1_scales(base, s, k0 / 16), 0.0f);
}

// --- the two panels of a format

// Elements k0 + k .. k0 + k + count (at most 16) of n (at most 16) rows through a buffer of floats.
#define DECODE_FORMAT(name)                                                                                            \
    DECODE void name##_through(float *p, const uint8_t *base, size_t s, int64_t k, int count, int n) {                 \
        float t[16][16];                                                                                               \
        for (int i = 0; i < 16; i++) {                                                                                 \
            v16_store(t[i], i < n ? name##_16(base + (size_t)i * s, k / 16, count) : v16_zero());                      \
        }                                                                                                              \
        for (int j = 0; j < count; j += 4) {                                                                           \
            w16 w[4];                                                                                                  \
            w16_load4(w, (const uint8_t *)&t[0][j], sizeof t[0]);                                                      \
            for (int c = 0; c < 4 && j + c < count; c++) {                                                             \
                if (n == 16)                                                                                           \
                    put(p, j + c, w16_float(w[c]));                                                                    \
                else                                                                                                   \
                    v16_store_n(p + (j + c) * P, w16_float(w[c]), n);                                                  \
            }                                                                                                          \
        }                                                                                                              \
    }                                                                                                                  \
    static void name##_rows(float *panel, const uint8_t *data, size_t stride, int64_t k0, int64_t k, int n) {          \
        for (int lane = 0; lane < n; lane += 16) {                                                                     \
            const uint8_t *base = data + (size_t)lane * stride;                                                        \
            int rows = n - lane < 16 ? n - lane : 16;                                                                  \
            for (int64_t done = 0, step; done < k; done += step) {                                                     \
                float *p = panel + done * P + lane;                                                                    \
                step = rows == 16 ? name##_turn(p, base, stride, k0 + done, k - done) : 0;                             \
                if (step == 0) {                                                                                       \
                    step = k - done < 16 ? k - done : 16;                                                              \
                    name##_through(p, base, stride, k0 + done, (int)step, rows);                                       \
                }                                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
    }

// Plain formats: lanes are columns as they stand.
#define DECODE_PLAIN(name)                                                                                             \
    DECODE_FORMAT(name)                                                                                                \
    static void name##_cols(float *panel, const uint8_t *data, size_t stride, int64_t k, int64_t col0, int n) {        \
        for (int64_t i = 0; i < k; i++, data += stride, panel += P) {                                                  \
            int lane = 0;                                                                                              \
            for (; lane + 16 <= n; lane += 16) v16_store(panel + lane, name##_16(data, (col0 + lane) / 16, 16));       \
            if (lane < n) v16_store_n(panel + lane, name##_16(data, (col0 + lane) / 16, n - lane), n - lane);          \
        }                                                                                                              \
    }
DECODE_PLAIN(f32)
DECODE_PLAIN(f16)
DECODE_PLAIN(bf16)

// Packed formats: sixteen rows and sixteen columns at a time, the rows' scales first.
#define DECODE_PACKED(name)                                                                                            \
    DECODE v16 name##_16(const uint8_t *row, int64_t i, int n) {                                                       \
        (void)n;                                                                                                       \
        struct scale s = name##_scale(row, i);                                                                         \
        return v16_fma(name##_codes(row, i, name##_high(i)), s.d, s.m);                                                \
    }                                                                                                                  \
    DECODE_FORMAT(name)                                                                                                \
    DECODE void name##_cols16(float *panel, const uint8_t *data, size_t stride, int64_t i, bool high) {                \
        float d[16], m[16];                                                                                            \
        struct scale s = name##_scales(data, stride, i);                                                               \
        v16_store(d, s.d), v16_store(m, s.m);                                                                          \
        UNROLL(4)                                                                                                      \
        for (int r = 0; r < 16; r++) {                                                                                 \
            v16 codes = name##_codes(data + (size_t)r * stride, i, high);                                              \
            put(panel, r, v16_fma(codes, v16_set1(d[r]), v16_set1(m[r])));                                             \
        }                                                                                                              \
    }                                                                                                                  \
    static void name##_cols(float *panel, const uint8_t *data, size_t stride, int64_t k, int64_t col0, int n) {        \
        for (; k >= 16; k -= 16, data += 16 * stride, panel += 16 * P) {                                               \
            for (int lane = 0; lane < n; lane += 16) {                                                                 \
                int64_t i = (col0 + lane) / 16;                                                                        \
                if (name##_high(i))                                                                                    \
                    name##_cols16(panel + lane, data, stride, i, true);                                                \
                else                                                                                                   \
                    name##_cols16(panel + lane, data, stride, i, false);                                               \
            }                                                                                                          \
        }                                                                                                              \
        for (; k > 0; k--, data += stride, panel += P) {                                                               \
            for (int lane = 0; lane < n; lane += 16) put(panel + lane, 0, name##_16(data, (col0 + lane) / 16, 16));    \
        }                                                                                                              \
    }
DECODE_PACKED(q4_0)
DECODE_PACKED(q4_1)
DECODE_PACKED(q5_0)
DECODE_PACKED(q5_1)
DECODE_PACKED(q8_0)
DECODE_PACKED(mxfp4)
DECODE_PACKED(q2_k)
DECODE_PACKED(q3_k)
DECODE_PACKED(q4_k)
DECODE_PACKED(q5_k)
DECODE_PACKED(q6_k)
DECODE_PACKED(iq4_nl)
DECODE_PACKED(iq4_xs)

#define DECODERS(id, name) [QUANT_##id] = {name##_rows, name##_cols}
const struct gemm_decoder VEC_SUFFIX(gemm_decoders)[QUANT_COUNT] = {
    DECODERS(F32, f32),       DECODERS(F16, f16),     DECODERS(BF16, bf16),
    DECODERS(Q4_0, q4_0),     DECODERS(Q4_1, q4_1),   DECODERS(Q5_0, q5_0),
    DECODERS(Q5_1, q5_1),     DECODERS(Q8_0, q8_0),   DECODERS(Q2_K, q2_k),
    DECODERS(Q3_K, q3_k),     DECODERS(Q4_K, q4_k),   DECODERS(Q5_K, q5_k),
    DECODERS(Q6_K, q6_k),     DECODERS(MXFP4, mxfp4), DECODERS(IQ4_NL, iq4_nl),
    DECODERS(IQ4_XS, iq4_xs), // the others: element by element
};
