// Rotary positions: every scaling becomes a table of cosines and sines. See arch.h.
#include "model/arch.h"

#include "kernels/alloc.h"

#include <math.h>

#define PI 3.14159265358979323846

// YaRN: dimension whose wave turns `turns` times within the original context.
static double correction(const struct rope_arch *r, double turns) {
    return r->rotary_dim * log(r->original / (turns * 2 * PI)) / (2 * log(r->theta));
}

static double yarn(const struct rope_arch *r, double f, int i) {
    double low = correction(r, r->beta_fast), high = correction(r, r->beta_slow);
    if (r->truncate) low = floor(low), high = ceil(high);
    low = fmax(low, 0), high = fmin(high, r->rotary_dim - 1);
    if (low == high) high += 0.001;
    double ramp = fmin(fmax((i - low) / (high - low), 0), 1);
    return f / r->factor * ramp + f * (1 - ramp);
}

static double llama3(const struct rope_arch *r, double f) {
    double wave = 2 * PI / f;
    if (wave < r->original / r->high_freq) return f;
    if (wave > r->original / r->low_freq) return f / r->factor;
    if (r->high_freq == r->low_freq) return f;
    double s = (r->original / wave - r->low_freq) / (r->high_freq - r->low_freq);
    return (1 - s) * f / r->factor + s * f;
}

void rope_inverse(const struct rope_arch *r, int64_t length, double *inverse) {
    double theta = r->theta, d = r->rotary_dim, original = r->original;
    if (r->scaling == ROPE_SCALING_DYNAMIC && (double)length > original)
        theta *= pow(r->factor * (double)length / original - (r->factor - 1), d / (d - 2));
    const float *list = (double)length > original ? r->long_divisors : r->short_divisors;
    for (int i = 0; i < r->rotary_dim / 2; i++) {
        double f = pow(theta, -2.0 * i / d);
        switch (r->scaling) {
        case ROPE_SCALING_NONE:
        case ROPE_SCALING_DYNAMIC: break;
        case ROPE_SCALING_LINEAR: f /= r->factor; break;
        case ROPE_SCALING_LLAMA3: f = llama3(r, f); break;
        case ROPE_SCALING_YARN: f = yarn(r, f, i); break;
        case ROPE_SCALING_LONGROPE: f /= (double)list[i]; break;
        }
        if (r->divisors) f /= (double)r->divisors[i];
        inverse[i] = r->still ? 0 : f;
    }
}

int rope_fill_table(const struct rope_arch *r, int64_t positions, float *out, struct error *err) {
    int half = r->rotary_dim / 2;
    double *inverse = mem_alloc((size_t)half * sizeof *inverse);
    if (!inverse) return error_memory(err, "rope frequencies", (size_t)half * sizeof *inverse);
    rope_inverse(r, positions, inverse);
    for (int64_t p = 0; p < positions; p++) {
        float *row = out + p * r->rotary_dim;
        double size = r->long_magnitude != 0 && (double)positions > r->original ? r->long_magnitude : r->magnitude;
        if (r->query_beta != 0)
            size *= 1 + r->query_beta * log(1 + floor((double)(p + r->query_shift) / r->query_floor));
        for (int i = 0; i < half; i++) {
            row[i] = (float)(size * cos((double)p * inverse[i]));
            row[half + i] = (float)(size * sin((double)p * inverse[i]));
        }
    }
    mem_free(inverse);
    return 0;
}
