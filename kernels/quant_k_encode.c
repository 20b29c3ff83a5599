// Encoders of K formats: searches for scales that make the weighted squared error of a sub-block small, as ggml's
// quantize_row_q4_K_ref and quantize_row_q6_K_ref do them. Every operation is in float and in ggml's order, without
// fma: the bytes are the same. Blocks are drawn in quant_k.c.
#include "kernels/quant_blocks.h"

#include <math.h>

// The nearest whole number, halves to even. Beyond 2^22 and for NaN the result means nothing, but is ggml's.
static int nearest(float x) {
    const float shifted = x + 0x1.8p23f;
    int32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    return (bits & 0x7FFFFF) - 0x400000;
}

static int within(int low, int x, int high) {
    return x < low ? low : x > high ? high : x;
}

// --- Q4_K: code * scale - min with codes 0 to 15

enum { SUB = 32, MOST = 15, TRIES = 21 };

// The straight line through the points (codes, x) of least squared error. `sum_w`, `sum_x`: sums of w and w x.
struct line {
    float scale, low; // x = scale * code + low
};
static bool fit_line(struct line *line, const uint8_t codes[SUB], const float x[SUB], const float w[SUB], float sum_w,
                     float sum_x) {
    float sum_c = 0, sum_cc = 0, sum_cx = 0;
    for (int i = 0; i < SUB; i++) {
        const float wc = w[i] * (float)codes[i];
        sum_c += wc;
        sum_cc += wc * (float)codes[i];
        sum_cx += wc * x[i];
    }
    const float determinant = sum_w * sum_cc - sum_c * sum_c;
    if (!(determinant > 0)) return false;
    line->scale = (sum_w * sum_cx - sum_x * sum_c) / determinant;
    line->low = (sum_cc * sum_x - sum_c * sum_cx) / determinant;
    if (line->low > 0) { // a minimum is never added
        line->low = 0;
        line->scale = sum_cx / sum_cc;
    }
    return true;
}

static float line_error(struct line line, const uint8_t codes[SUB], const float x[SUB], const float w[SUB]) {
    float error = 0;
    for (int i = 0; i < SUB; i++) {
        const float difference = line.scale * (float)codes[i] + line.low - x[i];
        error += w[i] * (difference * difference);
    }
    return error;
}

static void to_codes(uint8_t codes[SUB], const float x[SUB], float low, float inverse) {
    for (int i = 0; i < SUB; i++) codes[i] = (uint8_t)within(0, nearest(inverse * (x[i] - low)), MOST);
}

// Codes, scale and minimum of a sub-block. The first line goes from the least (or 0) to the largest number; then codes
// are made with 14 to 16 steps from the best line's low end to the largest number, a line is fitted to each, and the
// best of all stays.
static void search_line(const float x[SUB], uint8_t codes[SUB], float *scale, float *min) {
    float w[SUB], squares = 0;
    for (int i = 0; i < SUB; i++) squares += x[i] * x[i];
    const float average = sqrtf(squares / SUB);
    for (int i = 0; i < SUB; i++) w[i] = average + fabsf(x[i]);
    float least = x[0], most = x[0], sum_w = w[0], sum_x = w[0] * x[0];
    for (int i = 1; i < SUB; i++) {
        if (x[i] < least) least = x[i];
        if (x[i] > most) most = x[i];
        sum_w += w[i];
        sum_x += w[i] * x[i];
    }
    if (least > 0) least = 0;
    if (most == least) {
        memset(codes, 0, SUB);
        *scale = 0, *min = -least;
        return;
    }
    const float first = MOST / (most - least);
    struct line best = {1 / first, least}, line;
    to_codes(codes, x, least, first);
    float best_error = line_error(best, codes, x, w);
    for (int t = 0; t < TRIES; t++) {
        uint8_t tried[SUB];
        to_codes(tried, x, best.low, (-1.0f + 0.1f * (float)t + MOST) / (most - best.low));
        if (!fit_line(&line, tried, x, w, sum_w, sum_x)) continue;
        const float error = line_error(line, tried, x, w);
        if (!(error < best_error)) continue;
        memcpy(codes, tried, SUB);
        best = line, best_error = error;
    }
    *scale = best.scale, *min = -best.low;
}

static void put_scale(uint8_t s[12], int j, int scale, int min) {
    if (j < 4) {
        s[j] = (uint8_t)scale, s[j + 4] = (uint8_t)min;
    } else {
        s[j + 4] = (uint8_t)((scale & 15) | (min & 15) << 4);
        s[j - 4] = (uint8_t)(s[j - 4] | (scale >> 4) << 6);
        s[j] = (uint8_t)(s[j] | (min >> 4) << 6);
    }
}

// The scale or minimum as stored: 63 for the largest one. (A negative one wraps to 63, as in ggml.)
static int six_bits(float inverse, float x) {
    return within(0, (uint8_t)nearest(inverse * x), 63);
}

void quant_q4_k_encode(const float *values, uint8_t *out, int64_t count) {
    struct block_q4_k b;
    for (const float *x = values; x < values + count; x += 256, out += sizeof b) {
        uint8_t codes[256];
        float scales[8], mins[8], most_scale = 0, most_min = 0;
        for (int j = 0; j < 8; j++) {
            search_line(x + SUB * j, codes + SUB * j, &scales[j], &mins[j]);
            if (scales[j] > most_scale) most_scale = scales[j];
            if (mins[j] > most_min) most_min = mins[j];
        }
        const float inverse_scale = most_scale > 0 ? 63.0f / most_scale : 0.0f;
        const float inverse_min = most_min > 0 ? 63.0f / most_min : 0.0f;
        for (int j = 0; j < 8; j++)
            put_scale(b.scales, j, six_bits(inverse_scale, scales[j]), six_bits(inverse_min, mins[j]));
        b.d = f16_from_float(most_scale / 63.0f);
        b.dmin = f16_from_float(most_min / 63.0f);
        for (int j = 0; j < 8; j++) { // codes for the scales as they are stored
            int scale, min;
            quant_k_scale(b.scales, j, &scale, &min);
            const float d = f16_to_float(b.d) * (float)scale, m = f16_to_float(b.dmin) * (float)min;
            for (int i = SUB * j; i < SUB * j + SUB && d != 0; i++)
                codes[i] = (uint8_t)within(0, nearest((x[i] + m) / d), MOST);
        }
        for (int c = 0; c < 4; c++) {
            for (int l = 0; l < 32; l++) b.qs[32 * c + l] = (uint8_t)(codes[64 * c + l] | codes[64 * c + 32 + l] << 4);
        }
        memcpy(out, &b, sizeof b);
    }
}

// --- Q6_K: code * scale with codes -32 to 31, stored plus 32

enum { SUB6 = 16, LEAST6 = -32, MOST6 = 31 };

static const float nothing = 1e-15f; // numbers and scales below it count as 0

// Sums of x^2 times x code and code^2: a scale of xc / cc has the least error, weighted by x^2.
struct sums {
    float xc, cc;
};
static struct sums sum_codes(const float x[SUB6], float inverse) {
    struct sums s = {0, 0};
    for (int i = 0; i < SUB6; i++) {
        const float code = (float)within(LEAST6, nearest(inverse * x[i]), MOST6), w = x[i] * x[i];
        s.xc += w * x[i] * code;
        s.cc += w * code * code;
    }
    return s;
}

static void to_signed_codes(uint8_t codes[SUB6], const float x[SUB6], float inverse) {
    for (int i = 0; i < SUB6; i++) codes[i] = (uint8_t)(within(LEAST6, nearest(inverse * x[i]), MOST6) - LEAST6);
}

// Codes and scale of a sub-block. First the number of largest magnitude becomes -32, then -31.1 to -32.9 in steps of a
// tenth; of all the scales that fit these codes best the best one stays.
static float search_scale(const float x[SUB6], uint8_t codes[SUB6]) {
    float extreme = 0, magnitude = 0;
    for (int i = 0; i < SUB6; i++) {
        if (fabsf(x[i]) > magnitude) magnitude = fabsf(x[i]), extreme = x[i];
    }
    memset(codes, 0, SUB6);
    if (magnitude < nothing) return 0;
    float inverse = LEAST6 / extreme;
    struct sums s = sum_codes(x, inverse);
    to_signed_codes(codes, x, inverse);
    float scale = s.cc != 0 ? s.xc / s.cc : 0.0f, best = scale * s.xc;
    for (int t = -9; t <= 9; t++) {
        if (t == 0) continue;
        inverse = -((float)-LEAST6 + 0.1f * (float)t) / extreme;
        s = sum_codes(x, inverse);
        if (!(s.cc > 0 && s.xc * s.xc > best * s.cc)) continue;
        to_signed_codes(codes, x, inverse);
        scale = s.xc / s.cc, best = scale * s.xc;
    }
    return scale;
}

void quant_q6_k_encode(const float *values, uint8_t *out, int64_t count) {
    for (const float *x = values; x < values + count; x += 256, out += sizeof(struct block_q6_k)) {
        struct block_q6_k b = {0};
        uint8_t codes[256];
        float scales[16], extreme = 0;
        for (int k = 0; k < 16; k++) {
            scales[k] = search_scale(x + SUB6 * k, codes + SUB6 * k);
            if (fabsf(scales[k]) > fabsf(extreme)) extreme = scales[k];
        }
        if (fabsf(extreme) >= nothing) {
            const float inverse = -128.0f / extreme; // the extreme scale becomes -128
            b.d = f16_from_float(1 / inverse);
            for (int k = 0; k < 16; k++) { // codes for the scales as they are stored
                const int scale = nearest(inverse * scales[k]);
                b.scales[k] = (int8_t)(scale < 127 ? scale : 127);
                const float d = f16_to_float(b.d) * (float)b.scales[k];
                for (int i = SUB6 * k; i < SUB6 * k + SUB6 && d != 0; i++)
                    codes[i] = (uint8_t)(within(LEAST6, nearest(x[i] / d), MOST6) - LEAST6);
            }
            for (int e = 0; e < 256; e++) {
                int h = e / 128, t = e % 128 / 32, l = e % 32;
                uint8_t *low = &b.ql[64 * h + 32 * (t % 2) + l], *high = &b.qh[32 * h + l];
                *low = (uint8_t)(*low | (codes[e] & 15) << (4 * (t / 2)));
                *high = (uint8_t)(*high | (codes[e] >> 4) << (2 * t));
            }
        }
        memcpy(out, &b, sizeof b);
    }
}
