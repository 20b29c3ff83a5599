// Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11).
// A number is a pure function of its key, so nothing has to be saved or restored, and neither batch split, nor packing,
// nor thread count changes it.
#pragma once

#include <stdint.h>

enum random_purpose {
    RANDOM_INIT = 1, // adapter initialisation: row = tensor row
    RANDOM_DROPOUT,  // adapter input dropout
    RANDOM_NEFTUNE,  // embedding noise
    RANDOM_SHUFFLE,  // data order, hold-out
    RANDOM_SAMPLE,   // sampling of generated tokens
    RANDOM_TEST,
};

struct random_key {
    uint64_t seed;
    uint32_t step;
    uint32_t purpose_module; // purpose << 24 | module
};

// Four 32-bit numbers for (key; row, token, element / 4). Lane j of the result belongs to element 4*(element/4) + j.
static inline void random_four(struct random_key key, uint32_t row, uint32_t token, uint32_t element4,
                               uint32_t out[4]) {
    uint32_t k0 = (uint32_t)key.seed, k1 = (uint32_t)(key.seed >> 32) ^ (key.step * 0x9E3779B1u);
    uint32_t c0 = element4, c1 = token, c2 = row, c3 = key.purpose_module;
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

// Uniform in [0, 1) with 24 bits, exact in float.
static inline float random_uniform(uint32_t bits) {
    return (float)(bits >> 8) * 0x1p-24f;
}
