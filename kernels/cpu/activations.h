// Sixteen activations at a time, whatever their dtype: private to the *_fast.c files. `bf16` is a constant where these
// are used, `i` counts elements, and `n` how many are left in the row: lanes past them read as 0 and are not written.
#pragma once

#include "kernels/cpu/rows.h"
#include "kernels/cpu/vec.h"

#include <stdbool.h>

#define INLINE static inline __attribute__((always_inline))

INLINE char *row_of(const struct matrix *m, int64_t row, bool bf16) {
    return m->p + row * m->ld * (bf16 ? 2 : 4);
}

INLINE v16 get16(const char *row, int64_t i, int64_t n, bool bf16) {
    if (!bf16) {
        const float *p = (const float *)(const void *)row + i;
        return n >= 16 ? v16_load(p) : v16_load_n(p, (int)n);
    }
    const uint16_t *p = (const uint16_t *)(const void *)row + i;
    if (n >= 16) return v16_load_bf16(p);
    uint16_t t[16] = {0};
    memcpy(t, p, (size_t)n * sizeof *t);
    return v16_load_bf16(t);
}

INLINE void put16(char *row, int64_t i, int64_t n, v16 a, bool bf16) {
    if (!bf16) {
        float *p = (float *)(void *)row + i;
        if (n >= 16)
            v16_store(p, a);
        else
            v16_store_n(p, a, (int)n);
        return;
    }
    uint16_t *p = (uint16_t *)(void *)row + i;
    if (n >= 16) {
        v16_store_bf16(p, a);
        return;
    }
    uint16_t t[16];
    v16_store_bf16(t, a);
    memcpy(p, t, (size_t)n * sizeof *t);
}

// A gradient: stored, or added to what is there.
INLINE void put16_grad(char *row, int64_t i, int64_t n, v16 a, bool acc, bool bf16) {
    put16(row, i, n, acc ? v16_add(get16(row, i, n, bf16), a) : a, bf16);
}
