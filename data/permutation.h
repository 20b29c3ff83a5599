// An order that depends on a key only.
#pragma once

#include "kernels/random.h"

#include <stddef.h>

// What a shuffle is for, so that no two use the same numbers.
enum shuffle_use { SHUFFLE_ROWS, SHUFFLE_HELD_OUT, SHUFFLE_PACKS };

// Brings the items into a random order (Fisher-Yates); every order is equally likely up to 2^-32.
static inline void permute(uint32_t *items, size_t n, uint64_t seed, uint32_t epoch, enum shuffle_use use) {
    struct random_key key = {seed, epoch, (uint32_t)RANDOM_SHUFFLE << 24 | (uint32_t)use};
    for (size_t i = n; i > 1; i--) {
        uint32_t r[4];
        random_four(key, (uint32_t)i, 0, 0, r);
        size_t j = (size_t)(((unsigned __int128)((uint64_t)r[0] << 32 | r[1]) * i) >> 64); // in [0, i)
        uint32_t swap = items[i - 1];
        items[i - 1] = items[j];
        items[j] = swap;
    }
}
