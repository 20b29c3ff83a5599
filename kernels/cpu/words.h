// Packed bits into floats, sixteen at a time: the companion of vec.h for the panel decoders. A w16 is sixteen 32-bit
// words, one per row of a packed matrix; w16_load4 reads 16 bytes of each of 16 rows and turns them, so that lane i of
// word vector c holds bytes 4c .. 4c+3 of row i. Everything here is exact.
#pragma once

#include "kernels/cpu/vec.h"
#include "kernels/tensor.h"

static inline uint16_t load_u16(const uint8_t *p) {
    uint16_t u;
    memcpy(&u, p, 2);
    return u;
}

#if defined(VEC_AVX512)

typedef __m512i w16;
static inline __m512i w16_quad(const uint8_t *p, size_t s) { // 16 bytes each of rows 0, 4, 8, 12
    __m512i a = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(const void *)p));
    a = _mm512_inserti32x4(a, _mm_loadu_si128((const __m128i *)(const void *)(p + 4 * s)), 1);
    a = _mm512_inserti32x4(a, _mm_loadu_si128((const __m128i *)(const void *)(p + 8 * s)), 2);
    return _mm512_inserti32x4(a, _mm_loadu_si128((const __m128i *)(const void *)(p + 12 * s)), 3);
}
static inline void w16_load4(w16 out[4], const uint8_t *p, size_t s) {
    __m512i a = w16_quad(p, s), b = w16_quad(p + s, s), c = w16_quad(p + 2 * s, s), d = w16_quad(p + 3 * s, s);
    __m512i ab = _mm512_unpacklo_epi32(a, b), cd = _mm512_unpacklo_epi32(c, d);
    out[0] = _mm512_unpacklo_epi64(ab, cd), out[1] = _mm512_unpackhi_epi64(ab, cd);
    ab = _mm512_unpackhi_epi32(a, b), cd = _mm512_unpackhi_epi32(c, d);
    out[2] = _mm512_unpacklo_epi64(ab, cd), out[3] = _mm512_unpackhi_epi64(ab, cd);
}
static inline w16 w16_load(const void *p) {
    return _mm512_loadu_si512(p);
}
static inline v16 w16_float(w16 w) {
    return _mm512_castsi512_ps(w);
}
// bits [shift, shift + bits) of each word, as a number
static inline v16 w16_field(w16 w, int shift, int bits) {
    return _mm512_cvtepi32_ps(
        _mm512_and_si512(_mm512_srli_epi32(w, (unsigned)shift), _mm512_set1_epi32((1 << bits) - 1)));
}
// that one of sixteen numbers which bits [shift, shift + 4) of each word name
static inline v16 w16_pick(w16 w, int shift, v16 table) {
    return _mm512_permutexvar_ps(_mm512_srli_epi32(w, (unsigned)shift), table);
}
static inline v16 w16_nibble(w16 w, int shift) { // a table look-up reads four bits only, which saves the mask
    return w16_pick(w, shift, _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
}
// the signed byte j of each word, times 2^24
static inline v16 w16_byte24(w16 w, int j) {
    const __m512i pick = _mm512_set4_epi32(0x0C808080 + (j << 24), 0x08808080 + (j << 24), 0x04808080 + (j << 24),
                                           0x00808080 + (j << 24));
    return _mm512_cvtepi32_ps(_mm512_shuffle_epi8(w, pick));
}
static inline v16 w16_half(w16 w, int j) { // binary16 in the lower or upper half
    return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(j ? _mm512_srli_epi32(w, 16) : w));
}
static inline v16 w16_bf16(w16 w, int j) {
    return _mm512_castsi512_ps(j ? _mm512_and_si512(w, _mm512_set1_epi32((int)0xFFFF0000u)) : _mm512_slli_epi32(w, 16));
}
// bits [shift, shift + bits) of `low`, above them bits [high_shift, high_shift + high_bits) of `high`; less `zero`
static inline v16 w16_join(w16 low, int shift, int bits, w16 high, int high_shift, int high_bits, int zero) {
    const int mask = ((1 << high_bits) - 1) << bits;
    __m512i l = _mm512_and_si512(_mm512_srli_epi32(low, (unsigned)shift), _mm512_set1_epi32((1 << bits) - 1));
    __m512i h = high_shift >= bits ? _mm512_srli_epi32(high, (unsigned)(high_shift - bits))
                                   : _mm512_slli_epi32(high, (unsigned)(bits - high_shift));
    h = _mm512_ternarylogic_epi32(l, h, _mm512_set1_epi32(mask), 0xF8); // l | (h & mask)
    return _mm512_cvtepi32_ps(zero ? _mm512_sub_epi32(h, _mm512_set1_epi32(zero)) : h);
}
static inline w16 w16_bytes(const uint8_t *p) { // sixteen bytes, one per word
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));
}
static inline v16 v16_i8(const uint8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)));
}
// sixteen numbers of 16 bits, at any address: binary16, bf16
static inline v16 v16_halves(const uint8_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}
static inline v16 v16_brains(const uint8_t *p) {
    return v16_load_bf16((const uint16_t *)(const void *)p);
}
static inline v16 v16_half1(const uint8_t *p) { // one binary16 in all lanes
    return _mm512_cvtph_ps(_mm256_set1_epi16((short)load_u16(p)));
}
// 16 where bit i of `bits` is set, else 0
static inline v16 v16_bits16(uint32_t bits) {
    return _mm512_maskz_mov_ps((__mmask16)bits, _mm512_set1_ps(16.0f));
}

#elif defined(VEC_AVX2)

typedef struct {
    __m256i l, h; // rows 0-7, 8-15
} w16;
static inline __m256i w8_pair(const uint8_t *p, size_t s) { // 16 bytes each of rows 0 and 4
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)p)),
                                   _mm_loadu_si128((const __m128i *)(const void *)(p + 4 * s)), 1);
}
static inline void w8_load4(__m256i out[4], const uint8_t *p, size_t s) {
    __m256i a = w8_pair(p, s), b = w8_pair(p + s, s), c = w8_pair(p + 2 * s, s), d = w8_pair(p + 3 * s, s);
    __m256i ab = _mm256_unpacklo_epi32(a, b), cd = _mm256_unpacklo_epi32(c, d);
    out[0] = _mm256_unpacklo_epi64(ab, cd), out[1] = _mm256_unpackhi_epi64(ab, cd);
    ab = _mm256_unpackhi_epi32(a, b), cd = _mm256_unpackhi_epi32(c, d);
    out[2] = _mm256_unpacklo_epi64(ab, cd), out[3] = _mm256_unpackhi_epi64(ab, cd);
}
static inline void w16_load4(w16 out[4], const uint8_t *p, size_t s) {
    __m256i l[4], h[4];
    w8_load4(l, p, s), w8_load4(h, p + 8 * s, s);
    for (int i = 0; i < 4; i++) out[i] = (w16){l[i], h[i]};
}
static inline w16 w16_load(const void *p) {
    return (w16){_mm256_loadu_si256(p), _mm256_loadu_si256((const __m256i *)p + 1)};
}
static inline v16 w16_float(w16 w) {
    return (v16){_mm256_castsi256_ps(w.l), _mm256_castsi256_ps(w.h)};
}
static inline __m256 w8_field(__m256i w, int shift, int bits) {
    return _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(w, shift), _mm256_set1_epi32((1 << bits) - 1)));
}
static inline v16 w16_field(w16 w, int shift, int bits) {
    return (v16){w8_field(w.l, shift, bits), w8_field(w.h, shift, bits)};
}
static inline __m256 w8_pick(__m256i w, int shift, v16 table) { // bit 3 goes where the blend looks
    w = _mm256_srli_epi32(w, shift);
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(table.l, w), _mm256_permutevar8x32_ps(table.h, w),
                            _mm256_castsi256_ps(_mm256_slli_epi32(w, 28)));
}
static inline v16 w16_pick(w16 w, int shift, v16 table) {
    return (v16){w8_pick(w.l, shift, table), w8_pick(w.h, shift, table)};
}
static inline v16 w16_nibble(w16 w, int shift) {
    return w16_field(w, shift, 4);
}
static inline v16 w16_byte24(w16 w, int j) {
    const __m256i pick = _mm256_set_epi32(0x0C808080 + (j << 24), 0x08808080 + (j << 24), 0x04808080 + (j << 24),
                                          0x00808080 + (j << 24), 0x0C808080 + (j << 24), 0x08808080 + (j << 24),
                                          0x04808080 + (j << 24), 0x00808080 + (j << 24));
    return (v16){_mm256_cvtepi32_ps(_mm256_shuffle_epi8(w.l, pick)),
                 _mm256_cvtepi32_ps(_mm256_shuffle_epi8(w.h, pick))};
}
static inline __m128i w8_halves(__m256i w, int j) { // the lower or upper 16 bits of 8 words
    w = j ? _mm256_srli_epi32(w, 16) : _mm256_and_si256(w, _mm256_set1_epi32(0xFFFF));
    return _mm256_castsi256_si128(_mm256_permute4x64_epi64(_mm256_packus_epi32(w, w), 0x08));
}
static inline v16 w16_half(w16 w, int j) {
    return (v16){_mm256_cvtph_ps(w8_halves(w.l, j)), _mm256_cvtph_ps(w8_halves(w.h, j))};
}
static inline __m256 w8_bf16(__m256i w, int j) {
    return _mm256_castsi256_ps(j ? _mm256_and_si256(w, _mm256_set1_epi32((int)0xFFFF0000u)) : _mm256_slli_epi32(w, 16));
}
static inline v16 w16_bf16(w16 w, int j) {
    return (v16){w8_bf16(w.l, j), w8_bf16(w.h, j)};
}
static inline __m256 w8_join(__m256i low, int shift, int bits, __m256i high, int high_shift, int high_bits, int zero) {
    __m256i l = _mm256_and_si256(_mm256_srli_epi32(low, shift), _mm256_set1_epi32((1 << bits) - 1));
    __m256i h =
        high_shift >= bits ? _mm256_srli_epi32(high, high_shift - bits) : _mm256_slli_epi32(high, bits - high_shift);
    h = _mm256_or_si256(l, _mm256_and_si256(h, _mm256_set1_epi32(((1 << high_bits) - 1) << bits)));
    return _mm256_cvtepi32_ps(zero ? _mm256_sub_epi32(h, _mm256_set1_epi32(zero)) : h);
}
static inline v16 w16_join(w16 low, int shift, int bits, w16 high, int high_shift, int high_bits, int zero) {
    return (v16){w8_join(low.l, shift, bits, high.l, high_shift, high_bits, zero),
                 w8_join(low.h, shift, bits, high.h, high_shift, high_bits, zero)};
}
static inline w16 w16_bytes(const uint8_t *p) { // sixteen bytes, one per word
    __m128i b = _mm_loadu_si128((const __m128i *)(const void *)p);
    return (w16){_mm256_cvtepu8_epi32(b), _mm256_cvtepu8_epi32(_mm_srli_si128(b, 8))};
}
static inline v16 v16_i8(const uint8_t *p) {
    __m128i b = _mm_loadu_si128((const __m128i *)(const void *)p);
    return (v16){_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(b)),
                 _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(b, 8)))};
}
static inline v16 v16_halves(const uint8_t *p) {
    return (v16){_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p)),
                 _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(p + 16)))};
}
static inline v16 v16_brains(const uint8_t *p) {
    return v16_load_bf16((const uint16_t *)(const void *)p);
}
static inline v16 v16_half1(const uint8_t *p) {
    __m256 a = _mm256_cvtph_ps(_mm_set1_epi16((short)load_u16(p)));
    return (v16){a, a};
}
static inline __m256 v8_bits(uint32_t bits) {
    const __m256i each = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    __m256i set = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32((int)bits), each), each);
    return _mm256_and_ps(_mm256_castsi256_ps(set), _mm256_set1_ps(16.0f));
}
static inline v16 v16_bits16(uint32_t bits) {
    return (v16){v8_bits(bits), v8_bits(bits >> 8)};
}

#else

typedef struct {
    uint32_t w[16];
} w16;
#define WORD_EACH(expression)                                                                                          \
    v16 r;                                                                                                             \
    for (int i = 0; i < 16; i++) r.v[i] = expression;                                                                  \
    return r
static inline void w16_load4(w16 out[4], const uint8_t *p, size_t s) {
    for (size_t i = 0; i < 16; i++) {
        for (size_t c = 0; c < 4; c++) memcpy(&out[c].w[i], p + i * s + 4 * c, 4);
    }
}
static inline w16 w16_load(const void *p) {
    w16 r;
    memcpy(r.w, p, sizeof r.w);
    return r;
}
static inline v16 w16_float(w16 w) {
    v16 r;
    memcpy(r.v, w.w, sizeof r.v);
    return r;
}
static inline v16 w16_field(w16 w, int shift, int bits) {
    WORD_EACH((float)((w.w[i] >> shift) & ((1u << bits) - 1u)));
}
static inline v16 w16_pick(w16 w, int shift, v16 table) {
    WORD_EACH(table.v[(w.w[i] >> shift) & 15u]);
}
static inline v16 w16_nibble(w16 w, int shift) {
    return w16_field(w, shift, 4);
}
static inline v16 w16_byte24(w16 w, int j) {
    WORD_EACH((float)(int8_t)(w.w[i] >> (8 * j)) * 0x1p24f);
}
static inline v16 w16_half(w16 w, int j) {
    WORD_EACH(f16_to_float((uint16_t)(w.w[i] >> (16 * j))));
}
static inline v16 w16_bf16(w16 w, int j) {
    WORD_EACH(bf16_to_float((uint16_t)(w.w[i] >> (16 * j))));
}
static inline v16 w16_join(w16 low, int shift, int bits, w16 high, int high_shift, int high_bits, int zero) {
    WORD_EACH((float)((int)((low.w[i] >> shift) & ((1u << bits) - 1u)) +
                      ((int)((high.w[i] >> high_shift) & ((1u << high_bits) - 1u)) << bits) - zero));
}
static inline w16 w16_bytes(const uint8_t *p) {
    w16 r;
    for (int i = 0; i < 16; i++) r.w[i] = p[i];
    return r;
}
static inline v16 v16_i8(const uint8_t *p) {
    WORD_EACH((float)(int8_t)p[i]);
}
static inline v16 v16_halves(const uint8_t *p) {
    WORD_EACH(f16_to_float(load_u16(p + 2 * i)));
}
static inline v16 v16_brains(const uint8_t *p) {
    WORD_EACH(bf16_to_float(load_u16(p + 2 * i)));
}
static inline v16 v16_half1(const uint8_t *p) {
    return v16_set1(f16_to_float(load_u16(p)));
}
static inline v16 v16_bits16(uint32_t bits) {
    WORD_EACH((bits >> i) & 1u ? 16.0f : 0.0f);
}
#undef WORD_EACH

#endif

// Of sixteen bytes: bits [shift, shift + bits), a nibble, the number that a nibble names.
static inline v16 v16_field8(const uint8_t *p, int shift, int bits) {
    return w16_field(w16_bytes(p), shift, bits);
}
static inline v16 v16_nibble8(const uint8_t *p, int shift) {
    return w16_nibble(w16_bytes(p), shift);
}
static inline v16 v16_pick8(const uint8_t *p, int shift, v16 table) {
    return w16_pick(w16_bytes(p), shift, table);
}
