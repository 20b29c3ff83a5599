// Private to the files of quant.c: decoders and encoders that its table names but other files hold, and what those
// files share. For users: quant.h.
#pragma once

#include "kernels/quant.h"

#include <assert.h>
#include <string.h>

#define QUANT_DECODER(name) void quant_##name##_decode(const uint8_t *bytes, float *out, int64_t count)
#define QUANT_ENCODER(name) void quant_##name##_encode(const float *values, uint8_t *out, int64_t count)

// quant_k.c
QUANT_DECODER(q2_k);
QUANT_DECODER(q3_k);
QUANT_DECODER(q4_k);
QUANT_DECODER(q5_k);
QUANT_DECODER(q6_k);
QUANT_DECODER(q8_k);
QUANT_DECODER(tq1_0);
QUANT_DECODER(tq2_0);

// quant_k_encode.c
QUANT_ENCODER(q4_k);
QUANT_ENCODER(q6_k);

// quant_iq.c
QUANT_DECODER(iq1_s);
QUANT_DECODER(iq1_m);
QUANT_DECODER(iq2_xxs);
QUANT_DECODER(iq2_xs);
QUANT_DECODER(iq2_s);
QUANT_DECODER(iq3_xxs);
QUANT_DECODER(iq3_s);
QUANT_DECODER(iq4_nl);
QUANT_DECODER(iq4_xs);

// quant_iq_grids.c
extern const uint16_t quant_iq1_grid[2048], quant_iq2_xxs_grid[256], quant_iq2_xs_grid[512], quant_iq2_s_grid[1024];
extern const uint16_t quant_iq3_xxs_grid[256], quant_iq3_s_grid[512];

// What codes of the IQ formats stand for (quant_iq.c), as initialisers: decoders elsewhere have their own arrays of
// them.
#define QUANT_IQ4_VALUES                                                                                               \
    { -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113 }
#define QUANT_IQ2_VALUES                                                                                               \
    { 8, 25, 43, 0 } // no point has a 3
#define QUANT_IQ3_XXS_VALUES                                                                                           \
    { 4, 12, 20, 28, 36, 44, 52, 62 }
#define QUANT_IQ3_S_VALUES                                                                                             \
    { 1, 3, 5, 7, 9, 11, 13, 15 }

// Blocks that are decoded in one file and encoded in another; drawn in quant_k.c.
struct block_q4_k {
    uint16_t d, dmin; // binary16
    uint8_t scales[12];
    uint8_t qs[128];
};
struct block_q6_k {
    uint8_t ql[128];
    uint8_t qh[64];
    int8_t scales[16];
    uint16_t d;
};
static_assert(sizeof(struct block_q4_k) == 144, "no padding");
static_assert(sizeof(struct block_q6_k) == 210, "no padding");

// Scale and minimum of sub-block j, 6 bits each, of Q4_K and Q5_K.
void quant_k_scale(const uint8_t scales[12], int j, int *scale, int *min);
