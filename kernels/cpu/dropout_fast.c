// Dropout of the adapters' inputs, sixteen elements at a time: the numbers of random.h, in the same places.
#include "kernels/cpu/gemm.h"

#include "kernels/cpu/vec.h"

// The 64 random words of element / 4 = e4 .. e4 + 15, of which lane i of out[j] gets the one of element 16 j + i.
// A word vector holds sixteen counters; one counter gives four neighbours, so the counters are laid out such that
// turning 4 x 4 blocks within 128 bits puts everything in order: lane 4 q + j counts e4 + 4 j + q.
#if defined(VEC_AVX512)

static inline void multiply(__m512i a, uint32_t by, __m512i *low, __m512i *high) {
    __m512i m = _mm512_set1_epi64((int64_t)by);
    __m512i even = _mm512_mul_epu32(a, m), odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), m);
    *low = _mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32));
    *high = _mm512_mask_blend_epi32(0xAAAA, _mm512_srli_epi64(even, 32), odd);
}
static void uniforms(v16 out[4], struct random_key key, uint32_t row, uint32_t token, uint32_t e4) {
    uint32_t k0 = (uint32_t)key.seed, k1 = (uint32_t)(key.seed >> 32) ^ (key.step * 0x9E3779B1u);
    __m512i c0 = _mm512_add_epi32(_mm512_set1_epi32((int)e4),
                                  _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    __m512i c1 = _mm512_set1_epi32((int)token), c2 = _mm512_set1_epi32((int)row);
    __m512i c3 = _mm512_set1_epi32((int)key.purpose_module), l0, h0, l1, h1;
    for (int round = 0; round < 10; round++) {
        multiply(c0, 0xD2511F53u, &l0, &h0);
        multiply(c2, 0xCD9E8D57u, &l1, &h1);
        c0 = _mm512_ternarylogic_epi32(h1, c1, _mm512_set1_epi32((int)k0), 0x96); // exclusive or of three
        c2 = _mm512_ternarylogic_epi32(h0, c3, _mm512_set1_epi32((int)k1), 0x96);
        c1 = l1, c3 = l0;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    l0 = _mm512_unpacklo_epi32(c0, c1), h0 = _mm512_unpackhi_epi32(c0, c1);
    l1 = _mm512_unpacklo_epi32(c2, c3), h1 = _mm512_unpackhi_epi32(c2, c3);
    __m512i words[4] = {_mm512_unpacklo_epi64(l0, l1), _mm512_unpackhi_epi64(l0, l1), _mm512_unpacklo_epi64(h0, h1),
                        _mm512_unpackhi_epi64(h0, h1)};
    for (int j = 0; j < 4; j++) {
        out[j] = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_srli_epi32(words[j], 8)), _mm512_set1_ps(0x1p-24f));
    }
}

#elif defined(VEC_AVX2)

static inline void multiply(__m256i a, uint32_t by, __m256i *low, __m256i *high) {
    __m256i m = _mm256_set1_epi64x((int64_t)by);
    __m256i even = _mm256_mul_epu32(a, m), odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), m);
    *low = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
    *high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
}
// Eight counters, e4 .. e4 + 7: lane 4 q + j counts e4 + 2 j + q, and vector j gets elements 8 j ..
static void uniforms_8(__m256 out[4], struct random_key key, uint32_t row, uint32_t token, uint32_t e4) {
    uint32_t k0 = (uint32_t)key.seed, k1 = (uint32_t)(key.seed >> 32) ^ (key.step * 0x9E3779B1u);
    __m256i c0 = _mm256_add_epi32(_mm256_set1_epi32((int)e4), _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7));
    __m256i c1 = _mm256_set1_epi32((int)token), c2 = _mm256_set1_epi32((int)row);
    __m256i c3 = _mm256_set1_epi32((int)key.purpose_module), l0, h0, l1, h1;
    for (int round = 0; round < 10; round++) {
        multiply(c0, 0xD2511F53u, &l0, &h0);
        multiply(c2, 0xCD9E8D57u, &l1, &h1);
        c0 = _mm256_xor_si256(_mm256_xor_si256(h1, c1), _mm256_set1_epi32((int)k0));
        c2 = _mm256_xor_si256(_mm256_xor_si256(h0, c3), _mm256_set1_epi32((int)k1));
        c1 = l1, c3 = l0;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    l0 = _mm256_unpacklo_epi32(c0, c1), h0 = _mm256_unpackhi_epi32(c0, c1);
    l1 = _mm256_unpacklo_epi32(c2, c3), h1 = _mm256_unpackhi_epi32(c2, c3);
    __m256i words[4] = {_mm256_unpacklo_epi64(l0, l1), _mm256_unpackhi_epi64(l0, l1), _mm256_unpacklo_epi64(h0, h1),
                        _mm256_unpackhi_epi64(h0, h1)};
    for (int j = 0; j < 4; j++) {
        out[j] = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_srli_epi32(words[j], 8)), _mm256_set1_ps(0x1p-24f));
    }
}
static void uniforms(v16 out[4], struct random_key key, uint32_t row, uint32_t token, uint32_t e4) {
    __m256 t[8];
    uniforms_8(t, key, row, token, e4), uniforms_8(t + 4, key, row, token, e4 + 8);
    for (int j = 0; j < 4; j++) out[j] = (v16){t[2 * j], t[2 * j + 1]};
}

#else

static void uniforms(v16 out[4], struct random_key key, uint32_t row, uint32_t token, uint32_t e4) {
    for (uint32_t i = 0; i < 16; i++) {
        uint32_t words[4];
        random_four(key, row, token, e4 + i, words);
        for (uint32_t j = 0; j < 4; j++) out[i / 4].v[4 * (i % 4) + j] = random_uniform(words[j]);
    }
}

#endif

// `element` is a multiple of 4. out may be x.
void VEC_SUFFIX(gemm_dropout)(float *out, const float *x, int64_t n, int64_t element, const struct gemm_dropout *d,
                              int64_t row) {
    const uint32_t *key = d->keys + row * d->ld;
    v16 p = v16_set1(d->p), inverse = v16_set1(1.0f / (1.0f - d->p)), zero = v16_zero(), u[4];
    for (int64_t i = 0; i < n; i += 64) {
        uniforms(u, d->key, key[0], key[1], (uint32_t)((element + i) / 4));
        for (int64_t j = 0; j < 64 && i + j < n; j += 16) {
            int count = n - i - j < 16 ? (int)(n - i - j) : 16;
            v16 a = count == 16 ? v16_load(x + i + j) : v16_load_n(x + i + j, count);
            a = v16_if_less(u[j / 16], p, zero, v16_mul(a, inverse));
            if (count == 16)
                v16_store(out + i + j, a);
            else
                v16_store_n(out + i + j, a, count);
        }
    }
}
