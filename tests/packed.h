// Packed blocks for tests and benchmarks: random codes are easy to come by, but random scales are infinite, NaN or
// below the normal range too often.
#pragma once

#include "kernels/quant.h"

#include <math.h>
#include <string.h>

// Where a block has its binary16 scale and its minimum, in bytes; -1 = it has none.
struct packed_places {
    int scale, min;
};
static inline struct packed_places packed_places(enum quant id) {
    switch (id) {
    case QUANT_Q4_1:
    case QUANT_Q5_1:
    case QUANT_Q4_K:
    case QUANT_Q5_K: return (struct packed_places){0, 2};
    case QUANT_Q2_K: return (struct packed_places){80, 82};
    case QUANT_Q3_K: return (struct packed_places){108, -1};
    case QUANT_Q6_K: return (struct packed_places){208, -1};
    case QUANT_TQ1_0: return (struct packed_places){52, -1};
    case QUANT_TQ2_0: return (struct packed_places){64, -1};
    case QUANT_F32:
    case QUANT_BF16:
    case QUANT_Q8_K:
    case QUANT_IQ1_M:
    case QUANT_MXFP4:
    case QUANT_NVFP4: return (struct packed_places){-1, -1};
    default: return (struct packed_places){0, -1};
    }
}

// Sets a block's scale to `d` and its minimum to `m`, as near as the format can; of a plain number `d` is the value.
static inline void packed_put(const struct quant_format *f, uint8_t *block, float d, float m) {
    const struct packed_places at = packed_places(f->id);
    const uint16_t half = f16_from_float(d), half_m = f16_from_float(m), brain = bf16_from_float(d);
    const int exponent = d == 0 ? -100 : isfinite(d) ? ilogbf(d) : 127;
    if (at.scale >= 0) memcpy(block + at.scale, &half, 2);
    if (at.min >= 0) memcpy(block + at.min, &half_m, 2);
    if (f->id == QUANT_BF16) memcpy(block, &brain, 2);
    if (f->id == QUANT_F32 || f->id == QUANT_Q8_K) memcpy(block, &d, 4);
    if (f->id == QUANT_MXFP4) block[0] = (uint8_t)(128 + exponent);
    for (int i = 0; i < 4 && f->id == QUANT_NVFP4; i++) // half of E4M3
        block[i] = exponent < -7 ? 0 : exponent > 6 ? 0x7E : (uint8_t)((exponent + 8) << 3);
    for (int i = 0; i < 4 && f->id == QUANT_IQ1_M; i++) // the upper four bits of the last four words
        block[49 + 2 * i] = (uint8_t)((block[49 + 2 * i] & 15) | (half >> (4 * i) & 15) << 4);
}
