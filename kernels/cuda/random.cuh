// Random numbers in kernels: kernels/random.h's generator, made for the device.
#pragma once

#include "kernels/cuda/gpu_lora.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/random.h"

// Philox4x32-10 as random_four.
static inline __device__ void philox(uint64_t seed, uint32_t step, uint32_t purpose_module, uint32_t row,
                                     uint32_t token, uint32_t element4, uint32_t out[4]) {
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32) ^ (step * 0x9E3779B1u);
    uint32_t c0 = element4, c1 = token, c2 = row, c3 = purpose_module;
    for (int round = 0; round < 10; round++) {
        uint32_t h0 = __umulhi(0xD2511F53u, c0), l0 = 0xD2511F53u * c0;
        uint32_t h1 = __umulhi(0xCD9E8D57u, c2), l1 = 0xCD9E8D57u * c2;
        c0 = h1 ^ c1 ^ k0, c2 = h0 ^ c3 ^ k1, c1 = l1, c3 = l0;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

// Uniform in [0, 1) with 24 bits, as random_uniform.
static inline __device__ float uniform_of(uint32_t bits) { return (float)(bits >> 8) * 0x1p-24f; }

// What elements 4 element4 .. + 3 of a row are multiplied with: 0 or 1 / (1 - p).
static inline __device__ void keep_factors(const struct gpu_mask &m, int64_t row, int64_t element4, float factor[4]) {
    uint32_t bits[4];
    const uint32_t *key = m.keys + row * m.keys_ld;
    philox(m.scalars->seed, m.scalars->random_step, (uint32_t)RANDOM_DROPOUT << 24 | m.module, key[0], key[1],
           (uint32_t)element4, bits);
    for (int i = 0; i < 4; i++) factor[i] = uniform_of(bits[i]) < m.p ? 0 : 1 / (1 - m.p);
}
