// Panel decoders: packed weights of any format into fp32 panels, bit for bit what quant.c's reference decoders give
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

// Q4_K: 8 sub-blocks j of 32; 64 elements share 32 bytes, first the low nibbles. The first 16 bytes of a block are
// {d dmin, scales 0-3 | mins 0-3 (6 bits, upper two bits lent to 4-7) | lower four bits of scales and mins 4-7}.
DECODE bool q4_k_high(int64_t i) {
    return i / 2 % 2 != 0;
}
DECODE v16 q4_k_codes(const uint8_t *row, int64_t i, bool high) {
    return v16_nibble8(row + 144 * (i / 16) + 16 + 32 * (i % 16 / 4) + 16 * (i % 2), high ? 4 : 0);
}
DECODE struct scale q4_k_scale(const uint8_t *row, int64_t i) {
    const uint8_t *b = row + 144 * (i / 16), *s = b + 4;
    int j = (int)(i % 16 / 2);
    int scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
    int low = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | (s[j] >> 6) << 4;
    return (struct scale){v16_mul(v16_half1(b), v16_set1((float)scale)),
                          v16_mul(v16_half1(b + 2), v16_set1(-(float)low))};
}
// The same from the turned 16 bytes; `j` and so the shifts are constants or the same for all rows.
DECODE struct scale q4_k_header(const w16 h[4], int j) {
    v16 d = w16_half(h[0], 0), dmin = v16_mul(w16_half(h[0], 1), v16_set1(-1.0f)), sixteen = v16_set1(16.0f);
    int shift = 8 * (j % 4);
    if (j < 4) return (struct scale){v16_mul(d, w16_field(h[1], shift, 6)), v16_mul(dmin, w16_field(h[2], shift, 6))};
    v16 scale = v16_fma(w16_field(h[1], shift + 6, 2), sixteen, w16_field(h[3], shift, 4));
    v16 low = v16_fma(w16_field(h[2], shift + 6, 2), sixteen, w16_field(h[3], shift + 4, 4));
    return (struct scale){v16_mul(d, scale), v16_mul(dmin, low)};
}
DECODE struct scale q4_k_scales(const uint8_t *base, size_t s, int64_t i) {
    w16 h[4];
    w16_load4(h, base + 144 * (i / 16), s);
    return q4_k_header(h, (int)(i % 16 / 2));
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
// Half a block of 256: four sub-blocks of 32.
DECODE int64_t q4_k_turn(float *p, const uint8_t *base, size_t s, int64_t k0, int64_t left) {
    (void)left;
    const uint8_t *b = base + 144 * (k0 / 256);
    bool second = k0 % 256 != 0;
    w16 h[4];
    w16_load4(h, b, s);
    UNROLL(2)
    for (int t = 0; t < 2; t++) { // 64 elements: low nibbles of 32 bytes, then their high nibbles
        struct scale low = second ? q4_k_header(h, 4 + 2 * t) : q4_k_header(h, 2 * t);
        struct scale high = second ? q4_k_header(h, 5 + 2 * t) : q4_k_header(h, 1 + 2 * t);
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
                    put(p, k, v16_mul(w16_six(low[c], 8 * j, high[c], 8 * j + 2 * u), d0));
                    put(p, k + 64, v16_mul(w16_six(low[c], 8 * j + 4, high[c], 8 * j + 2 * u + 4), d1));
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
            v16 low = w16_five(w[c], 8 * j, fifth, k), high = w16_five(w[c], 8 * j + 4, fifth, k + 16);
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
DECODE_PACKED(q4_k)
DECODE_PACKED(q6_k)

const struct gemm_decoder VEC_SUFFIX(gemm_decoders)[QUANT_COUNT] = {
    [QUANT_F32] = {f32_rows, f32_cols},    [QUANT_F16] = {f16_rows, f16_cols},    [QUANT_BF16] = {bf16_rows, bf16_cols},
    [QUANT_Q4_0] = {q4_0_rows, q4_0_cols}, [QUANT_Q4_1] = {q4_1_rows, q4_1_cols}, [QUANT_Q5_0] = {q5_0_rows, q5_0_cols},
    [QUANT_Q5_1] = {q5_1_rows, q5_1_cols}, [QUANT_Q8_0] = {q8_0_rows, q8_0_cols}, [QUANT_Q4_K] = {q4_k_rows, q4_k_cols},
    [QUANT_Q6_K] = {q6_k_rows, q6_k_cols},
};
