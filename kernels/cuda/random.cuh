// The random numbers of kernels/random.h on the device: the same key gives the same bits as there.
#pragma once

#include "kernels/cuda/gpu_lora.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/random.h"

struct random_source {
    uint32_t k0, k1, module;
};
static inline __device__ random_source random_source_of(const step_scalars *s, uint32_t purpose, uint32_t module) {
    return {(uint32_t)s->seed, (uint32_t)(s->seed >> 32) ^ (s->random_step * 0x9E3779B1u), purpose << 24 | module};
}

static inline __device__ pack<uint32_t, 4> random_bits(random_source s, uint32_t row, uint32_t token,
                                                       uint32_t element4) {
    uint32_t c0 = element4, c1 = token, c2 = row, c3 = s.module, k0 = s.k0, k1 = s.k1;
    for (int round = 0; round < 10; round++) {
        uint32_t n0 = __umulhi(0xCD9E8D57u, c2) ^ c1 ^ k0, n2 = __umulhi(0xD2511F53u, c0) ^ c3 ^ k1;
        c1 = 0xCD9E8D57u * c2, c3 = 0xD2511F53u * c0;
        c0 = n0, c2 = n2;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    return {c0, c1, c2, c3};
}
static inline __device__ float random_unit(uint32_t bits) { // in [0, 1)
    return (float)(bits >> 8) * 0x1p-24f;
}

// What dropout multiplies four neighbours of a row by: 0, or `kept` = 1 / (1 - p).
static inline __device__ pack<float, 4> dropout_factors(random_source s, const uint32_t *key, int64_t element, float p,
                                                        float kept) {
    pack<uint32_t, 4> bits = random_bits(s, key[0], key[1], (uint32_t)(element / 4));
    pack<float, 4> out;
    for (int i = 0; i < 4; i++) out.v[i] = random_unit(bits.v[i]) < p ? 0.0f : kept;
    return out;
}

// The same of elements 4 element4 .. + 3 of a row, by its mask.
static inline __device__ void keep_factors(const struct gpu_mask &m, int64_t row, int64_t element4, float factor[4]) {
    pack<float, 4> f = dropout_factors(random_source_of(m.scalars, RANDOM_DROPOUT, m.module), m.keys + row * m.keys_ld,
                                       4 * element4, m.p, 1 / (1 - m.p));
    for (int i = 0; i < 4; i++) factor[i] = f.v[i];
}
