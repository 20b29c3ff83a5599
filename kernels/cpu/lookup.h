// Sixteen at a time: codes looked up in a table of sixteen floats, 8-bit floats, and rounding to 16-bit numbers. The
// companion of words.h for formats with tables beside their codes. Everything but the rounding is exact.
#pragma once

#include "kernels/cpu/words.h"
#include "kernels/weights.h"

#if defined(VEC_AVX512)

// table[bits shift .. shift + 3 of each word]
static inline v16 w16_lookup(w16 w, int shift, v16 table) { // permutes read four bits only
    return _mm512_permutexvar_ps(_mm512_srli_epi32(w, (unsigned)shift), table);
}
// Eight bytes as sixteen words whose lowest four bits are the nibbles in order; what lies above them is of no use.
static inline w16 w16_pairs(const uint8_t *p, bool high_first) {
    __m512i x = _mm512_cvtepu8_epi64(_mm_loadl_epi64((const __m128i *)(const void *)p));
    if (high_first) return _mm512_or_si512(_mm512_srli_epi64(x, 4), _mm512_slli_epi64(x, 32));
    return _mm512_or_si512(x, _mm512_slli_epi64(x, 28));
}
// sixteen bytes, one per word
static inline w16 w16_widen(const uint8_t *p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));
}
// byte j of each word as e4m3fn: as a binary16 it is the same number times 2^-8, and NaN has to be told
static inline v16 w16_e4m3(w16 w, int j) {
    __m512i x = _mm512_srli_epi32(w, 8 * (unsigned)j), magnitude = _mm512_and_si512(x, _mm512_set1_epi32(0x7F));
    __m512i sign = _mm512_slli_epi32(_mm512_and_si512(x, _mm512_set1_epi32(0x80)), 8);
    __mmask16 nan = _mm512_cmpeq_epi32_mask(magnitude, _mm512_set1_epi32(0x7F));
    __m512 v = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_or_si512(_mm512_slli_epi32(magnitude, 7), sign)));
    return _mm512_mask_mov_ps(_mm512_mul_ps(v, _mm512_set1_ps(256.0f)), nan, _mm512_set1_ps(NAN));
}
// byte j of each word as e5m2, which is the upper half of a binary16
static inline v16 w16_e5m2(w16 w, int j) {
    __m512i x = _mm512_srli_epi32(_mm512_slli_epi32(_mm512_srli_epi32(w, 8 * (unsigned)j), 24), 16);
    return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(x));
}
// lane i: word word[i] of up to four (`words`: 2 or 4 are read), plus `plus`, shifted right by shift[i]
static inline w16 w16_spread(const uint8_t *p, int words, uint32_t plus, const uint32_t word[16],
                             const uint32_t shift[16]) {
    const __m128i *at = (const __m128i *)(const void *)p;
    __m512i x = _mm512_castsi128_si512(words == 2 ? _mm_loadl_epi64(at) : _mm_loadu_si128(at));
    x = _mm512_permutexvar_epi32(_mm512_loadu_si512(word), x);
    return _mm512_srlv_epi32(_mm512_add_epi32(x, _mm512_set1_epi32((int)plus)), _mm512_loadu_si512(shift));
}
static inline v16 v16_round_f16(v16 a) {
    return _mm512_cvtph_ps(_mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static inline v16 v16_round_bf16(v16 a) {
    __m512i u = _mm512_castps_si512(a);
    __m512i r = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7FFF)),
                                 _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1)));
    r = _mm512_mask_mov_epi32(r, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), u);
    return _mm512_castsi512_ps(_mm512_and_si512(r, _mm512_set1_epi32((int)0xFFFF0000u)));
}

#elif defined(VEC_AVX2)

static inline __m256 w8_lookup(__m256i w, v16 table) {
    __m256 low = _mm256_permutevar8x32_ps(table.l, w), high = _mm256_permutevar8x32_ps(table.h, w);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(w, 28)));
}
static inline v16 w16_lookup(w16 w, int shift, v16 table) {
    return (v16){w8_lookup(_mm256_srli_epi32(w.l, shift), table), w8_lookup(_mm256_srli_epi32(w.h, shift), table)};
}
static inline __m256i w8_pairs(__m128i bytes, bool high_first) {
    __m256i x = _mm256_cvtepu8_epi64(bytes);
    if (high_first) return _mm256_or_si256(_mm256_srli_epi64(x, 4), _mm256_slli_epi64(x, 32));
    return _mm256_or_si256(x, _mm256_slli_epi64(x, 28));
}
static inline w16 w16_pairs(const uint8_t *p, bool high_first) {
    __m128i b = _mm_loadl_epi64((const __m128i *)(const void *)p);
    return (w16){w8_pairs(b, high_first), w8_pairs(_mm_srli_si128(b, 4), high_first)};
}
static inline w16 w16_widen(const uint8_t *p) {
    return w16_bytes(p);
}
static inline __m256i w8_e4m3(__m256i w, int j, __m256i *nan) { // as binary16
    __m256i x = _mm256_srli_epi32(w, 8 * j), magnitude = _mm256_and_si256(x, _mm256_set1_epi32(0x7F));
    *nan = _mm256_cmpeq_epi32(magnitude, _mm256_set1_epi32(0x7F));
    return _mm256_or_si256(_mm256_slli_epi32(magnitude, 7),
                           _mm256_slli_epi32(_mm256_and_si256(x, _mm256_set1_epi32(0x80)), 8));
}
static inline v16 w16_e4m3(w16 w, int j) {
    w16 nan;
    __m256i l = w8_e4m3(w.l, j, &nan.l), h = w8_e4m3(w.h, j, &nan.h);
    v16 v = v16_mul(w16_half((w16){l, h}, 0), v16_set1(256.0f)), none = v16_set1(NAN), is = w16_float(nan);
    return (v16){_mm256_blendv_ps(v.l, none.l, is.l), _mm256_blendv_ps(v.h, none.h, is.h)};
}
static inline __m256i w8_upper(__m256i w, int j) { // byte j as the upper half of the lower 16 bits
    return _mm256_srli_epi32(_mm256_slli_epi32(_mm256_srli_epi32(w, 8 * j), 24), 16);
}
static inline v16 w16_e5m2(w16 w, int j) {
    return w16_half((w16){w8_upper(w.l, j), w8_upper(w.h, j)}, 0);
}
static inline __m256i w8_spread(__m256i x, uint32_t plus, const uint32_t *word, const uint32_t *shift) {
    x = _mm256_permutevar8x32_epi32(x, _mm256_loadu_si256((const __m256i *)(const void *)word));
    x = _mm256_add_epi32(x, _mm256_set1_epi32((int)plus));
    return _mm256_srlv_epi32(x, _mm256_loadu_si256((const __m256i *)(const void *)shift));
}
static inline w16 w16_spread(const uint8_t *p, int words, uint32_t plus, const uint32_t word[16],
                             const uint32_t shift[16]) {
    const __m128i *at = (const __m128i *)(const void *)p;
    __m256i x = _mm256_castsi128_si256(words == 2 ? _mm_loadl_epi64(at) : _mm_loadu_si128(at));
    return (w16){w8_spread(x, plus, word, shift), w8_spread(x, plus, word + 8, shift + 8)};
}
static inline __m256 v8_round_f16(__m256 a) {
    return _mm256_cvtph_ps(_mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static inline v16 v16_round_f16(v16 a) {
    return (v16){v8_round_f16(a.l), v8_round_f16(a.h)};
}
static inline v16 v16_round_bf16(v16 a) {
    return (v16){_mm256_castsi256_ps(_mm256_slli_epi32(v8_round_bf16(a.l), 16)),
                 _mm256_castsi256_ps(_mm256_slli_epi32(v8_round_bf16(a.h), 16))};
}

#else

#define LOOKUP_EACH(expression)                                                                                        \
    v16 r;                                                                                                             \
    for (int i = 0; i < 16; i++) r.v[i] = expression;                                                                  \
    return r
static inline v16 w16_lookup(w16 w, int shift, v16 table) {
    LOOKUP_EACH(table.v[w.w[i] >> shift & 15]);
}
static inline w16 w16_pairs(const uint8_t *p, bool high_first) {
    w16 r;
    for (int i = 0; i < 16; i++) r.w[i] = (uint32_t)(i % 2 == high_first ? p[i / 2] : p[i / 2] >> 4);
    return r;
}
static inline w16 w16_widen(const uint8_t *p) {
    w16 r;
    for (int i = 0; i < 16; i++) r.w[i] = p[i];
    return r;
}
static inline w16 w16_spread(const uint8_t *p, int words, uint32_t plus, const uint32_t word[16],
                             const uint32_t shift[16]) {
    (void)words;
    w16 r;
    for (int i = 0; i < 16; i++) {
        uint32_t x;
        memcpy(&x, p + 4 * word[i], 4);
        r.w[i] = (x + plus) >> shift[i];
    }
    return r;
}
static inline float e4m3_float(uint32_t x) {
    float v = f16_to_float((uint16_t)((x & 0x7F) << 7 | (x & 0x80) << 8)) * 256.0f;
    return (x & 0x7F) == 0x7F ? NAN : v;
}
static inline v16 w16_e4m3(w16 w, int j) {
    LOOKUP_EACH(e4m3_float(w.w[i] >> (8 * j) & 0xFF));
}
static inline v16 w16_e5m2(w16 w, int j) {
    LOOKUP_EACH(f16_to_float((uint16_t)((w.w[i] >> (8 * j) & 0xFF) << 8)));
}
static inline v16 v16_round_f16(v16 a) {
    LOOKUP_EACH(f16_to_float(f16_from_float(a.v[i])));
}
static inline v16 v16_round_bf16(v16 a) {
    LOOKUP_EACH(bf16_to_float(bf16_from_float(a.v[i])));
}
#undef LOOKUP_EACH

#endif

static inline v16 v16_round_to(v16 a, enum number type) {
    if (type == NUMBER_BF16) return v16_round_bf16(a);
    if (type == NUMBER_F16) return v16_round_f16(a);
    return a;
}
