// Sixteen floats at a time. The fast CPU kernels are written once against this header and compiled once per instruction
// set (VEC_AVX512, VEC_AVX2, or neither: plain C). All three give the same bits: every operation is one correctly
// rounded IEEE operation, fused multiply-adds are explicit, sums over lanes use one fixed tree, and exp, tanh, log are
// built from these operations only. -ffp-contract=off keeps the compiler from adding fusions of its own.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(VEC_AVX512)
#include <immintrin.h>
#define VEC_SUFFIX(name) name##_avx512
typedef __m512 v16;
static inline v16 v16_zero(void) {
    return _mm512_setzero_ps();
}
static inline v16 v16_set1(float x) {
    return _mm512_set1_ps(x);
}
static inline v16 v16_load(const float *p) {
    return _mm512_loadu_ps(p);
}
static inline void v16_store(float *p, v16 a) {
    _mm512_storeu_ps(p, a);
}
static inline v16 v16_load_n(const float *p, int n) {
    return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1u), p);
}
static inline void v16_store_n(float *p, v16 a, int n) {
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1u), a);
}
static inline v16 v16_add(v16 a, v16 b) {
    return _mm512_add_ps(a, b);
}
static inline v16 v16_sub(v16 a, v16 b) {
    return _mm512_sub_ps(a, b);
}
static inline v16 v16_mul(v16 a, v16 b) {
    return _mm512_mul_ps(a, b);
}
static inline v16 v16_div(v16 a, v16 b) {
    return _mm512_div_ps(a, b);
}
static inline v16 v16_fma(v16 a, v16 b, v16 c) {
    return _mm512_fmadd_ps(a, b, c);
}
static inline v16 v16_max(v16 a, v16 b) {
    return _mm512_max_ps(a, b);
}
static inline v16 v16_min(v16 a, v16 b) {
    return _mm512_min_ps(a, b);
}
static inline v16 v16_sqrt(v16 a) {
    return _mm512_sqrt_ps(a);
}
static inline v16 v16_round(v16 a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// 2^n * a for integral n, where the result is a normal number (elsewhere: added to the exponent bits).
static inline v16 v16_scale2(v16 a, v16 n) {
    return _mm512_scalef_ps(a, n);
}
// x < limit ? low : other
static inline v16 v16_if_less(v16 x, v16 limit, v16 low, v16 other) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, limit, _CMP_LT_OQ), other, low);
}
// lanes 2i and 2i + 1 exchanged
static inline v16 v16_swap(v16 a) {
    return _mm512_permute_ps(a, 0xB1);
}
static inline v16 v16_load_bf16(const uint16_t *p) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)p)), 16));
}
static inline void v16_store_bf16(uint16_t *p, v16 a) { // nearest even; NaN stays NaN
    __m512i u = _mm512_castps_si512(a);
    __m512i r = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7FFF)),
                                 _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1)));
    __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    r = _mm512_mask_or_epi32(r, nan, u, _mm512_set1_epi32(0x400000));
    _mm256_storeu_si256((__m256i *)(void *)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16)));
}

#elif defined(VEC_AVX2)
#include <immintrin.h>
#define VEC_SUFFIX(name) name##_avx2
typedef struct {
    __m256 l, h;
} v16;
static inline v16 v16_zero(void) {
    return (v16){_mm256_setzero_ps(), _mm256_setzero_ps()};
}
static inline v16 v16_set1(float x) {
    return (v16){_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
static inline v16 v16_load(const float *p) {
    return (v16){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
static inline void v16_store(float *p, v16 a) {
    _mm256_storeu_ps(p, a.l), _mm256_storeu_ps(p + 8, a.h);
}
static inline v16 v16_load_n(const float *p, int n) {
    float t[16] = {0};
    memcpy(t, p, (size_t)n * sizeof(float));
    return v16_load(t);
}
static inline void v16_store_n(float *p, v16 a, int n) {
    float t[16];
    v16_store(t, a);
    memcpy(p, t, (size_t)n * sizeof(float));
}
#define VEC_BOTH(f, ...)                                                                                               \
    (v16) {                                                                                                            \
        f(VEC_L(__VA_ARGS__)), f(VEC_H(__VA_ARGS__))                                                                   \
    }
static inline v16 v16_add(v16 a, v16 b) {
    return (v16){_mm256_add_ps(a.l, b.l), _mm256_add_ps(a.h, b.h)};
}
static inline v16 v16_sub(v16 a, v16 b) {
    return (v16){_mm256_sub_ps(a.l, b.l), _mm256_sub_ps(a.h, b.h)};
}
static inline v16 v16_mul(v16 a, v16 b) {
    return (v16){_mm256_mul_ps(a.l, b.l), _mm256_mul_ps(a.h, b.h)};
}
static inline v16 v16_div(v16 a, v16 b) {
    return (v16){_mm256_div_ps(a.l, b.l), _mm256_div_ps(a.h, b.h)};
}
static inline v16 v16_fma(v16 a, v16 b, v16 c) {
    return (v16){_mm256_fmadd_ps(a.l, b.l, c.l), _mm256_fmadd_ps(a.h, b.h, c.h)};
}
static inline v16 v16_max(v16 a, v16 b) {
    return (v16){_mm256_max_ps(a.l, b.l), _mm256_max_ps(a.h, b.h)};
}
static inline v16 v16_min(v16 a, v16 b) {
    return (v16){_mm256_min_ps(a.l, b.l), _mm256_min_ps(a.h, b.h)};
}
static inline v16 v16_sqrt(v16 a) {
    return (v16){_mm256_sqrt_ps(a.l), _mm256_sqrt_ps(a.h)};
}
static inline v16 v16_round(v16 a) {
    return (v16){_mm256_round_ps(a.l, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                 _mm256_round_ps(a.h, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
static inline __m256 v8_scale2(__m256 a, __m256 n) {
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23)));
}
static inline v16 v16_scale2(v16 a, v16 n) {
    return (v16){v8_scale2(a.l, n.l), v8_scale2(a.h, n.h)};
}
static inline v16 v16_if_less(v16 x, v16 limit, v16 low, v16 other) {
    return (v16){_mm256_blendv_ps(other.l, low.l, _mm256_cmp_ps(x.l, limit.l, _CMP_LT_OQ)),
                 _mm256_blendv_ps(other.h, low.h, _mm256_cmp_ps(x.h, limit.h, _CMP_LT_OQ))};
}
static inline v16 v16_swap(v16 a) {
    return (v16){_mm256_permute_ps(a.l, 0xB1), _mm256_permute_ps(a.h, 0xB1)};
}
static inline __m256 v8_load_bf16(const uint16_t *p) {
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)), 16));
}
static inline v16 v16_load_bf16(const uint16_t *p) {
    return (v16){v8_load_bf16(p), v8_load_bf16(p + 8)};
}
static inline __m256i v8_round_bf16(__m256 a) { // the bf16 bits in the low half of each dword
    __m256i u = _mm256_castps_si256(a);
    __m256i r = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7FFF)),
                                 _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1)));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    r = _mm256_blendv_epi8(r, _mm256_or_si256(u, _mm256_set1_epi32(0x400000)), nan);
    return _mm256_srli_epi32(r, 16);
}
static inline void v16_store_bf16(uint16_t *p, v16 a) {
    __m256i packed = _mm256_packus_epi32(v8_round_bf16(a.l), v8_round_bf16(a.h));
    _mm256_storeu_si256((__m256i *)(void *)p, _mm256_permute4x64_epi64(packed, 0xD8));
}
#undef VEC_BOTH

#else
#define VEC_SUFFIX(name) name##_c
typedef struct {
    float v[16];
} v16;
#define VEC_EACH(expression)                                                                                           \
    v16 r;                                                                                                             \
    for (int i = 0; i < 16; i++) r.v[i] = expression;                                                                  \
    return r
static inline v16 v16_zero(void) {
    VEC_EACH(0.0f);
}
static inline v16 v16_set1(float x) {
    VEC_EACH(x);
}
static inline v16 v16_load(const float *p) {
    VEC_EACH(p[i]);
}
static inline void v16_store(float *p, v16 a) {
    memcpy(p, a.v, sizeof a.v);
}
static inline v16 v16_load_n(const float *p, int n) {
    VEC_EACH(i < n ? p[i] : 0.0f);
}
static inline void v16_store_n(float *p, v16 a, int n) {
    memcpy(p, a.v, (size_t)n * sizeof(float));
}
static inline v16 v16_add(v16 a, v16 b) {
    VEC_EACH(a.v[i] + b.v[i]);
}
static inline v16 v16_sub(v16 a, v16 b) {
    VEC_EACH(a.v[i] - b.v[i]);
}
static inline v16 v16_mul(v16 a, v16 b) {
    VEC_EACH(a.v[i] * b.v[i]);
}
static inline v16 v16_div(v16 a, v16 b) {
    VEC_EACH(a.v[i] / b.v[i]);
}
static inline v16 v16_fma(v16 a, v16 b, v16 c) {
    VEC_EACH(fmaf(a.v[i], b.v[i], c.v[i]));
}
static inline v16 v16_max(v16 a, v16 b) {
    VEC_EACH(a.v[i] > b.v[i] ? a.v[i] : b.v[i]);
} // as maxps: b when unordered
static inline v16 v16_min(v16 a, v16 b) {
    VEC_EACH(a.v[i] < b.v[i] ? a.v[i] : b.v[i]);
}
static inline v16 v16_sqrt(v16 a) {
    VEC_EACH(sqrtf(a.v[i]));
}
static inline v16 v16_round(v16 a) {
    VEC_EACH(rintf(a.v[i]));
}
static inline float v1_scale2(float a, float n) {
    int32_t u;
    memcpy(&u, &a, 4);
    // cvtps2dq gives INT32_MIN for NaN and overflow; shifted by 23 that is 0
    int32_t e = n >= -2147483648.0f && n < 2147483648.0f ? (int32_t)rintf(n) : INT32_MIN;
    u = (int32_t)((uint32_t)u + ((uint32_t)e << 23));
    memcpy(&a, &u, 4);
    return a;
}
static inline v16 v16_scale2(v16 a, v16 n) {
    VEC_EACH(v1_scale2(a.v[i], n.v[i]));
}
static inline v16 v16_if_less(v16 x, v16 limit, v16 low, v16 other) {
    VEC_EACH(x.v[i] < limit.v[i] ? low.v[i] : other.v[i]);
}
static inline v16 v16_swap(v16 a) {
    VEC_EACH(a.v[i ^ 1]);
}
static inline v16 v16_load_bf16(const uint16_t *p) {
    v16 r;
    for (int i = 0; i < 16; i++) {
        uint32_t u = (uint32_t)p[i] << 16;
        memcpy(&r.v[i], &u, 4);
    }
    return r;
}
static inline void v16_store_bf16(uint16_t *p, v16 a) {
    for (int i = 0; i < 16; i++) {
        uint32_t u;
        memcpy(&u, &a.v[i], 4);
        bool nan = (u & 0x7FFFFFFFu) > 0x7F800000u;
        p[i] = (uint16_t)((nan ? (u | 0x400000u) : u + 0x7FFFu + ((u >> 16) & 1u)) >> 16);
    }
}
#undef VEC_EACH
#endif

// Sum and largest of the 16 lanes, always as ((0+8)+(4+12)) + ... : halves are added until one lane is left.
#if defined(VEC_AVX512) || defined(VEC_AVX2)
#if defined(VEC_AVX512)
static inline __m256 v16_low(v16 a) {
    return _mm512_castps512_ps256(a);
}
static inline __m256 v16_high(v16 a) {
    return _mm512_extractf32x8_ps(a, 1);
}
#else
static inline __m256 v16_low(v16 a) {
    return a.l;
}
static inline __m256 v16_high(v16 a) {
    return a.h;
}
#endif
static inline float v16_sum(v16 a) {
    __m256 b = _mm256_add_ps(v16_low(a), v16_high(a));
    __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_shuffle_ps(c, c, 1)));
}
static inline float v16_largest(v16 a) {
    __m256 b = _mm256_max_ps(v16_low(a), v16_high(a));
    __m128 c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_max_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_max_ss(c, _mm_shuffle_ps(c, c, 1)));
}
#else
static inline float v16_sum(v16 a) {
    float t[16];
    v16_store(t, a);
    for (int width = 8; width > 0; width /= 2) {
        for (int i = 0; i < width; i++) t[i] += t[i + width];
    }
    return t[0];
}
static inline float v16_largest(v16 a) {
    float t[16];
    v16_store(t, a);
    for (int width = 8; width > 0; width /= 2) {
        for (int i = 0; i < width; i++) t[i] = t[i] > t[i + width] ? t[i] : t[i + width];
    }
    return t[0];
}
#endif

// e^x: 2^n * e^r with n = round(x / ln 2), |r| <= ln2/2, degree-6 minimax polynomial with e^0 = 1; worst
// relative error 8e-8.
// Below -87.3 the result is 0, above 88.3 it saturates.
static inline v16 v16_exp(v16 x) {
    v16 low = v16_set1(-87.3f);
    v16 c = v16_min(v16_set1(88.3f), v16_max(low, x)); // in this order a NaN passes through both
    v16 magic = v16_set1(12582912.0f);                 // 1.5 * 2^23: adding it rounds to the nearest whole number
    v16 n = v16_sub(v16_fma(c, v16_set1(1.44269504088896341f), magic), magic);
    v16 r = v16_fma(n, v16_set1(-0.693359375f), c);
    r = v16_fma(n, v16_set1(2.12194440e-4f), r);
    v16 p = v16_set1(1.38145406e-3f);
    p = v16_fma(p, r, v16_set1(8.36874545e-3f));
    p = v16_fma(p, r, v16_set1(4.1668389e-2f));
    p = v16_fma(p, r, v16_set1(1.66665211e-1f));
    p = v16_fma(p, r, v16_set1(0.49999994f));
    p = v16_fma(p, r, v16_set1(1.0f));
    p = v16_fma(p, r, v16_set1(1.0f));
    return v16_if_less(x, low, v16_zero(), v16_scale2(p, n));
}
// 1 / (1 + e^-x)
static inline v16 v16_sigmoid(v16 x) {
    v16 one = v16_set1(1.0f);
    return v16_div(one, v16_add(one, v16_exp(v16_sub(v16_zero(), x))));
}
// The error function: a quotient of polynomials in x^2 up to |x| = 3.95, where it is 1; fitted by least squares,
// absolute error 4e-7.
static inline v16 v16_erf(v16 x) {
    v16 end = v16_set1(3.95f), z;
    x = v16_max(v16_min(x, end), v16_sub(v16_zero(), end));
    z = v16_mul(x, x);
    v16 p = v16_set1(1.960465212391682e-08f), q = v16_set1(0.00097936624661088f);
    p = v16_fma(p, z, v16_set1(-1.950705609488068e-06f));
    p = v16_fma(p, z, v16_set1(0.00014376100443769246f));
    p = v16_fma(p, z, v16_set1(0.0038058722857385874f));
    p = v16_fma(p, z, v16_set1(0.050917040556669235f));
    p = v16_fma(p, z, v16_set1(0.2025371491909027f));
    p = v16_fma(p, z, v16_set1(1.1283791065216064f));
    q = v16_fma(q, z, v16_set1(0.014571758918464184f));
    q = v16_fma(q, z, v16_set1(0.11607545614242554f));
    q = v16_fma(q, z, v16_set1(0.5128253698348999f));
    q = v16_fma(q, z, v16_set1(1.0f));
    return v16_div(v16_mul(x, p), q);
}
// 1 - 2 / (e^2x + 1): absolute error 1e-7
static inline v16 v16_tanh(v16 x) {
    v16 e = v16_exp(v16_add(x, x));
    return v16_sub(v16_set1(1.0f), v16_div(v16_set1(2.0f), v16_add(e, v16_set1(1.0f))));
}
