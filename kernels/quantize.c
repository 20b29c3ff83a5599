// Quantisers of bitsandbytes' formats: see quantize.h. Order and rounding of each operation are its CPU code's; a
// division that it does as a product with a rounded reciprocal is one here, too.
#include "kernels/quantize.h"

#include <assert.h>
#include <math.h>
#include <string.h>

enum { LANES = 32, MAX_BLOCK = 4096 }; // a loop over LANES elements is one that the compiler turns into vectors

// --- reading values

// Elements [begin, begin + count), zeros up to a multiple of LANES.
static void load(float *x, const void *values, enum number type, int64_t begin, int64_t count) {
    const uint8_t *at = (const uint8_t *)values + begin * (type == NUMBER_F32 ? 4 : 2);
    uint16_t half[LANES];
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        if (type == NUMBER_F32) {
            memcpy(x + i, at + 4 * i, 4 * LANES);
            continue;
        }
        memcpy(half, at + 2 * i, sizeof half);
        if (type == NUMBER_BF16)
            for (int j = 0; j < LANES; j++) x[i + j] = bf16_to_float(half[j]);
        else
            for (int j = 0; j < LANES; j++) x[i + j] = f16_to_float(half[j]);
    }
    if (i == count) return;
    uint8_t rest[4 * LANES] = {0}; // bytes of zero are zero in every type
    memcpy(rest, at + (type == NUMBER_F32 ? 4 : 2) * i, (size_t)(count - i) * (type == NUMBER_F32 ? 4 : 2));
    load(x + i, rest, type, 0, LANES);
}

// The largest magnitude; NaN if there is one.
static float largest(const float *x, int64_t count) {
    int32_t most[LANES] = {0}, all = 0; // magnitudes compare like their bits, and NaN is above infinity
    for (int64_t i = 0; i < count; i += LANES) {
        int32_t bits[LANES];
        memcpy(bits, x + i, sizeof bits);
        for (int j = 0; j < LANES; j++) {
            int32_t magnitude = bits[j] & 0x7FFFFFFF;
            most[j] = magnitude > most[j] ? magnitude : most[j];
        }
    }
    for (int j = 0; j < LANES; j++) all = most[j] > all ? most[j] : all;
    float result;
    memcpy(&result, &all, 4);
    return result;
}

static int refuse(const float *x, int64_t begin, struct error *err) {
    int64_t i = 0;
    while (isfinite(x[i])) i++;
    return error_set(err, STATUS_DATA, "element %lld is %g: it cannot be quantised", (long long)(begin + i),
                     (double)x[i]);
}

// --- 4 bits

static const float nf4_map[16] = {-0x1p+0f,        -0x1.647362p-1f, -0x1.0cd66p-1f,  -0x1.946540p-2f,
                                  -0x1.23449ap-2f, -0x1.7a6a7ep-3f, -0x1.74f0e2p-4f, 0x0p+0f,
                                  0x1.45f5fep-4f,  0x1.4995c6p-3f,  0x1.f809bap-3f,  0x1.5a0674p-2f,
                                  0x1.c34970p-2f,  0x1.200f56p-1f,  0x1.722766p-1f,  0x1p+0f};
static const float fp4_map[16] = {
    0x0p+0f, 0x1.555556p-8f,  0x1.555556p-1f,  0x1p+0f,  0x1.555556p-2f,  0x1p-1f,  0x1.555556p-3f,  0x1p-2f,
    0x0p+0f, -0x1.555556p-8f, -0x1.555556p-1f, -0x1p+0f, -0x1.555556p-2f, -0x1p-1f, -0x1.555556p-3f, -0x1p-2f};
// The codes in the order of what they stand for; of the two zeros of FP4, 0 comes first.
static const uint8_t nf4_order[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
static const uint8_t fp4_order[16] = {11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3};

void nf4_code_map(float map[16], bool fp4) {
    memcpy(map, fp4 ? fp4_map : nf4_map, sizeof nf4_map);
}

struct coder {
    float between[15]; // halfway from one value to the next
    const uint8_t *order;
};

static struct coder coder_of(bool fp4) {
    struct coder c = {.order = fp4 ? fp4_order : nf4_order};
    const float *map = fp4 ? fp4_map : nf4_map;
    for (int i = 0; i < 15; i++) c.between[i] = (map[c.order[i]] + map[c.order[i + 1]]) / 2.0f;
    return c;
}

// LANES elements into LANES / 2 bytes, the first of two in the high nibble. A code is the number of thresholds below x;
// the ends need no clamp.
static void pack(uint8_t *codes, const float *x, const struct coder *c) {
    const float *b = c->between;
    int32_t n[LANES];
    for (int i = 0; i < LANES; i++) {
        n[i] = (x[i] > b[0]) + (x[i] > b[1]) + (x[i] > b[2]) + (x[i] > b[3]) + (x[i] > b[4]) + (x[i] > b[5]) +
               (x[i] > b[6]) + (x[i] > b[7]) + (x[i] > b[8]) + (x[i] > b[9]) + (x[i] > b[10]) + (x[i] > b[11]) +
               (x[i] > b[12]) + (x[i] > b[13]) + (x[i] > b[14]);
    }
    for (int i = 0; i < LANES / 2; i++) codes[i] = (uint8_t)(c->order[n[2 * i]] << 4 | c->order[n[2 * i + 1]]);
}

int nf4_quantize(uint8_t *codes, float *absmax, const void *values, enum number type, int64_t count, int64_t blocksize,
                 bool fp4, struct error *err) {
    const struct coder coder = coder_of(fp4);
    float x[MAX_BLOCK];
    uint8_t last[LANES / 2];
    assert(blocksize >= LANES && blocksize <= MAX_BLOCK && blocksize % LANES == 0);
    for (int64_t begin = 0; begin < count; begin += blocksize) {
        int64_t n = count - begin < blocksize ? count - begin : blocksize;
        load(x, values, type, begin, n);
        float most = largest(x, n), least = 1e-38f; // blocks of zeros, and what is as good as zero
        if (!isfinite(most)) return refuse(x, begin, err);
        float above = most > least ? most : least, inverse = 1.0f / above;
        bool partial = n < blocksize;
        *absmax++ = partial ? above : most;
        for (int64_t i = 0; i < n; i += LANES) {
            for (int j = 0; j < LANES; j++) x[i + j] = partial ? x[i + j] / above : x[i + j] * inverse;
            int64_t left = n - i;
            pack(left < LANES ? last : codes, x + i, &coder);
            if (left < LANES) memcpy(codes, last, (size_t)(left + 1) / 2);
            codes += LANES / 2;
        }
    }
    return 0;
}

// --- scales of 4-bit blocks

// Seven decades, each cut into twice as many equal pieces as the one below it: their middles with both signs, zero,
// and 1 (not -1). The steps of each decade are a fused multiply-add from its nearer end.
void nf4_scale_map(float map[256]) {
    static const float power[7] = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.0f};
    int n = 128;
    for (int e = 0; e < 7; e++) {
        int pieces = 1 << e;
        float step = (1.0f - 0.1f) / (float)pieces, low = 0.1f;
        for (int i = 1; i <= pieces; i++, n++) {
            float high = i < (pieces + 1) / 2 ? fmaf(step, (float)i, 0.1f) : fmaf(-step, (float)(pieces - i), 1.0f);
            map[n] = (low + high) / 2.0f * power[e];
            map[254 - n] = -map[n];
            low = high;
        }
    }
    map[127] = 0.0f, map[255] = 1.0f;
}

float nf4_scales_offset(const float *absmax, int64_t blocks) {
    double sum = 0;
    for (int64_t i = 0; i < blocks; i++) sum += (double)absmax[i];
    return (float)(sum / (double)blocks);
}

// The reference looks the code up in a table of 65536 steps from -1 to 1; an entry is the number of thresholds below
// the value of its step. Around zero, where the map is finer than the steps, that is not the nearest entry.
static uint8_t scale_code(float x, const float between[255]) {
    x = x < -1.0f ? -1.0f : x > 1.0f ? 1.0f : x;
    int step = (int)((x + 1.0f) * 0.5f * 65535.0f + 0.5f);
    float value = -1.0f + 2.0f * (float)step / 65535.0f;
    int low = 0, high = 255; // thresholds [0, low) are below, [high, 255) are not
    while (low < high) {
        int middle = (low + high) / 2;
        if (between[middle] < value)
            low = middle + 1;
        else
            high = middle;
    }
    return (uint8_t)low;
}

void nf4_quantize_scales(uint8_t *codes, float *nested_absmax, const float *absmax, int64_t blocks, float offset) {
    float map[256], between[255];
    nf4_scale_map(map);
    for (int i = 0; i < 255; i++) between[i] = 0.5f * (map[i] + map[i + 1]);
    for (int64_t begin = 0; begin < blocks; begin += NF4_SCALE_BLOCK) {
        int64_t end = begin + NF4_SCALE_BLOCK < blocks ? begin + NF4_SCALE_BLOCK : blocks;
        float most = 0.0f;
        for (int64_t i = begin; i < end; i++) most = fmaxf(most, fabsf(absmax[i] - offset));
        *nested_absmax++ = most;
        float inverse = most != 0.0f ? 1.0f / most : 0.0f;
        for (int64_t i = begin; i < end; i++)
            codes[i] = most != 0.0f ? scale_code((absmax[i] - offset) * inverse, between) : 0;
    }
}

// --- LLM.int8

int int8_quantize(int8_t *codes, float *scb, const void *values, enum number type, int64_t rows, int64_t cols,
                  struct error *err) {
    const float round = 0x1.8p23f; // adding and taking it away again rounds to whole numbers, halves to even
    float x[MAX_BLOCK];
    for (int64_t row = 0; row < rows; row++, codes += cols) {
        float most = 0.0f;
        for (int pass = 0; pass < 2; pass++) { // the largest magnitude, then the codes
            float factor = most != 0.0f ? 1.0f / most * 127.0f : 0.0f;
            for (int64_t begin = 0; begin < cols; begin += MAX_BLOCK) {
                int64_t n = cols - begin < MAX_BLOCK ? cols - begin : MAX_BLOCK;
                load(x, values, type, row * cols + begin, n);
                for (int64_t i = 0; i < n && type != NUMBER_F16; i++) x[i] = f16_to_float(f16_from_float(x[i]));
                float here = largest(x, n);
                if (!isfinite(here)) return refuse(x, row * cols + begin, err);
                if (pass == 0) most = here > most ? here : most;
                for (int64_t i = 0; i < n && pass == 1; i++) codes[begin + i] = (int8_t)(x[i] * factor + round - round);
            }
        }
        scb[row] = most;
    }
    return 0;
}
