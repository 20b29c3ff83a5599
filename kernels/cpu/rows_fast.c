// Row kernels: see rows.h. Activations are f32 or bf16, arithmetic is f32; each kernel is written once with `bf16` a
// compile-time constant. Sums over a row use four vectors of 16 lanes in turn, then one fixed tree.
#include "kernels/cpu/activations.h"
#include "kernels/cpu/isa.h"

INLINE float *stat_of(const struct matrix *m, int64_t row) {
    return (float *)(void *)row_of(m, row, false);
}

// Four running sums of 16 lanes.
struct sum {
    v16 lane[4];
};
INLINE struct sum sum_zero(void) {
    return (struct sum){{v16_zero(), v16_zero(), v16_zero(), v16_zero()}};
}
INLINE float sum_total(const struct sum *s) {
    return v16_sum(v16_add(v16_add(s->lane[0], s->lane[1]), v16_add(s->lane[2], s->lane[3])));
}

// 1 in the first n lanes, 0 in the others.
INLINE v16 lanes(int64_t n) {
    static const float ones[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    return n >= 16 ? v16_set1(1.0f) : v16_load_n(ones, (int)n);
}

// --- norms

// Sum of (x - mean)^2 over the row.
INLINE float row_square(const char *x, int64_t cols, float mean, bool layer, bool bf16) {
    struct sum s = sum_zero();
    for (int64_t d = 0; d < cols; d += 64) {
        for (int64_t j = 0; j < 4 && d + 16 * j < cols; j++) {
            int64_t i = d + 16 * j, n = cols - i;
            v16 v = get16(x, i, n, bf16);
            if (layer) v = v16_mul(v16_sub(v, v16_set1(mean)), lanes(n));
            s.lane[j] = v16_fma(v, v, s.lane[j]);
        }
    }
    return sum_total(&s);
}

INLINE float row_mean(const char *x, int64_t cols, bool bf16) {
    struct sum s = sum_zero();
    for (int64_t d = 0; d < cols; d += 64) {
        for (int64_t j = 0; j < 4 && d + 16 * j < cols; j++) {
            s.lane[j] = v16_add(s.lane[j], get16(x, d + 16 * j, cols - d - 16 * j, bf16));
        }
    }
    return sum_total(&s) / (float)cols;
}

// One group of columns of one row, with its weights.
struct norm_at {
    int64_t t, offset; // elements before the group
    const char *w, *bias;
    int g;
};

INLINE struct norm_at norm_at(const struct norm_args *a, int64_t t, int g) {
    return (struct norm_at){.t = t,
                            .offset = g * a->cols,
                            .w = (const char *)(a->w + g * a->step),
                            .bias = a->bias ? (const char *)(a->bias + g * a->step) : NULL,
                            .g = g};
}
INLINE char *group_of(const struct matrix *m, const struct norm_at *at, bool bf16) {
    return row_of(m, at->t, bf16) + at->offset * (bf16 ? 2 : 4);
}

// y = (x - mean) * rstd * w + bias
INLINE void norm_apply(const struct norm_args *a, const struct norm_at *at, const char *x, float rstd, float mean,
                       bool layer, bool bf16) {
    v16 vr = v16_set1(rstd), vm = v16_set1(mean);
    char *y = group_of(&a->y, at, bf16);
    for (int64_t d = 0; d < a->cols; d += 16) {
        int64_t n = a->cols - d;
        v16 v = get16(x, d, n, bf16);
        if (layer) v = v16_sub(v, vm);
        v = v16_mul(v16_mul(v, vr), get16(at->w, d, n, false));
        if (at->bias) v = v16_add(v, get16(at->bias, d, n, false));
        put16(y, d, n, v, bf16);
    }
}

INLINE void norm_group(const struct norm_args *a, const struct norm_at *at, bool layer, bool bf16) {
    const char *x = group_of(&a->x, at, bf16);
    if (a->r.p) { // what is normed is the sum as stored, so that y can be had again from it
        const char *r = group_of(&a->r, at, bf16);
        char *s = group_of(&a->s, at, bf16);
        v16 scale = v16_set1(a->scale);
        for (int64_t d = 0; d < a->cols; d += 16) {
            int64_t n = a->cols - d;
            put16(s, d, n, v16_fma(get16(r, d, n, bf16), scale, get16(x, d, n, bf16)), bf16);
        }
        x = s;
    }
    float mean = layer ? row_mean(x, a->cols, bf16) : 0.0f;
    float rstd = 1.0f / sqrtf(row_square(x, a->cols, mean, layer, bf16) / (float)a->cols + a->eps);
    if (a->rstd.p) stat_of(&a->rstd, at->t)[at->g] = rstd;
    if (a->mean.p) stat_of(&a->mean, at->t)[at->g] = mean;
    norm_apply(a, at, x, rstd, mean, layer, bf16);
}

INLINE void norm_group_again(const struct norm_args *a, const struct norm_at *at, bool layer, bool bf16) {
    norm_apply(a, at, group_of(&a->x, at, bf16), stat_of(&a->rstd, at->t)[at->g],
               layer ? stat_of(&a->mean, at->t)[at->g] : 0.0f, layer, bf16);
}

// With g = dy * w and n = (x - mean) * rstd: rstd * (g - mean(g) - n * mean(g * n)); RMS has no mean(g).
INLINE void norm_group_backward(const struct norm_args *a, const struct norm_at *at, bool layer, bool bf16) {
    const char *x = group_of(&a->x, at, bf16), *dy = group_of(&a->dy, at, bf16);
    v16 rstd = v16_set1(stat_of(&a->rstd, at->t)[at->g]);
    v16 mean = v16_set1(layer ? stat_of(&a->mean, at->t)[at->g] : 0.0f), scale = v16_set1(a->scale);
    struct sum sum_g = sum_zero(), sum_gn = sum_zero();
    for (int64_t d = 0; d < a->cols; d += 64) {
        for (int64_t j = 0; j < 4 && d + 16 * j < a->cols; j++) {
            int64_t i = d + 16 * j, n = a->cols - i;
            v16 g = v16_mul(get16(dy, i, n, bf16), get16(at->w, i, n, false));
            v16 v = get16(x, i, n, bf16);
            if (layer) v = v16_sub(v, mean);
            sum_gn.lane[j] = v16_fma(g, v16_mul(v, rstd), sum_gn.lane[j]); // g is 0 in lanes past the end
            if (layer) sum_g.lane[j] = v16_add(sum_g.lane[j], g);
        }
    }
    v16 mean_gn = v16_set1(sum_total(&sum_gn) / (float)a->cols);
    v16 mean_g = v16_set1(layer ? sum_total(&sum_g) / (float)a->cols : 0.0f);
    for (int64_t d = 0; d < a->cols; d += 16) {
        int64_t n = a->cols - d;
        v16 g = v16_mul(get16(dy, d, n, bf16), get16(at->w, d, n, false));
        v16 v = get16(x, d, n, bf16);
        if (layer) v = v16_sub(v, mean), g = v16_sub(g, mean_g);
        v16 grad = v16_mul(rstd, v16_sub(g, v16_mul(v16_mul(v, rstd), mean_gn)));
        if (a->ds.p) grad = v16_add(get16(group_of(&a->ds, at, bf16), d, n, bf16), grad);
        if (a->dx.p) put16_grad(group_of(&a->dx, at, bf16), d, n, grad, a->acc_x, bf16);
        if (a->dr.p) put16_grad(group_of(&a->dr, at, bf16), d, n, v16_mul(grad, scale), a->acc_r, bf16);
    }
}

#define NORM_ROWS(name, group)                                                                                         \
    INLINE void name(const struct norm_args *a, int64_t begin, int64_t end, bool layer, bool bf16) {                   \
        for (int64_t t = begin; t < end; t++) {                                                                        \
            for (int g = 0; g < a->groups; g++) {                                                                      \
                struct norm_at at = norm_at(a, t, g);                                                                  \
                group(a, &at, layer, bf16);                                                                            \
            }                                                                                                          \
        }                                                                                                              \
    }
NORM_ROWS(norm_rows, norm_group)
NORM_ROWS(norm_rows_again, norm_group_again)
NORM_ROWS(norm_rows_backward, norm_group_backward)

// One function per (kind, dtype), chosen once per range of rows.
#define NORM_KERNEL(name, rows)                                                                                        \
    static void name(const void *args, int64_t begin, int64_t end) {                                                   \
        const struct norm_args *a = args;                                                                              \
        bool layer = a->kind == NORM_LAYER, bf16 = a->dtype == DTYPE_BF16;                                             \
        if (layer && bf16)                                                                                             \
            rows(a, begin, end, true, true);                                                                           \
        else if (layer)                                                                                                \
            rows(a, begin, end, true, false);                                                                          \
        else if (bf16)                                                                                                 \
            rows(a, begin, end, false, true);                                                                          \
        else                                                                                                           \
            rows(a, begin, end, false, false);                                                                         \
    }
NORM_KERNEL(norm, norm_rows)
NORM_KERNEL(norm_again, norm_rows_again)
NORM_KERNEL(norm_backward, norm_rows_backward)

// --- activations and gated linear units

struct activation {
    v16 value, slope;
};

INLINE struct activation activate(v16 x, enum act_kind kind, float limit) {
    v16 one = v16_set1(1.0f), half = v16_set1(0.5f), zero = v16_zero();
    if (kind == ACT_SILU) { // x sigma(x); sigma (1 + x (1 - sigma))
        v16 s = v16_sigmoid(x);
        return (struct activation){v16_mul(x, s), v16_mul(s, v16_fma(x, v16_sub(one, s), one))};
    }
    if (kind == ACT_GELU) { // x Phi(x); Phi + x phi
        v16 phi = v16_mul(half, v16_add(one, v16_erf(v16_mul(x, v16_set1(0.70710678f)))));
        v16 density = v16_mul(v16_set1(0.39894228f), v16_exp(v16_mul(v16_mul(x, x), v16_set1(-0.5f))));
        return (struct activation){v16_mul(x, phi), v16_fma(x, density, phi)};
    }
    if (kind == ACT_CLAMP) { // the slope is 1 up to the limit itself
        v16 end = v16_set1(limit), start = v16_set1(-limit);
        v16 slope = v16_if_less(end, x, zero, v16_if_less(x, start, zero, one));
        return (struct activation){v16_max(v16_min(x, end), start), slope};
    }
    // 0.5 x (1 + t), t = tanh(c (x + a x^3)); 0.5 (1 + t) + 0.5 x (1 - t^2) c (1 + 3 a x^2)
    v16 c = v16_set1(0.79788456f), ca = v16_set1(0.79788456f * 0.044715f), square = v16_mul(x, x);
    v16 t = v16_tanh(v16_mul(x, v16_fma(ca, square, c)));
    v16 inner = v16_fma(v16_set1(3.0f * 0.79788456f * 0.044715f), square, c);
    v16 rise = v16_mul(v16_mul(v16_mul(half, x), v16_sub(one, v16_mul(t, t))), inner);
    v16 gate = v16_mul(half, v16_add(one, t));
    return (struct activation){v16_mul(x, gate), v16_add(gate, rise)};
}

// h = f(g) u with both derivatives. gpt-oss: both are clamped, f(g) = g sigmoid(alpha g), and u counts from -1.
struct gated {
    v16 h, by_gate, by_up;
};
INLINE struct gated gated(v16 g, v16 u, const struct glu_args *a, enum act_kind kind) {
    if (kind != ACT_SWIGLU_CLAMPED) {
        struct activation f = activate(g, kind, 0);
        return (struct gated){v16_mul(f.value, u), v16_mul(u, f.slope), f.value};
    }
    v16 one = v16_set1(1.0f), zero = v16_zero(), end = v16_set1(a->limit), alpha = v16_set1(a->alpha);
    struct activation up = activate(u, ACT_CLAMP, a->limit);
    v16 inside = v16_if_less(end, g, zero, one), gate = v16_min(g, end);
    v16 s = v16_sigmoid(v16_mul(alpha, gate)), value = v16_mul(gate, s), more = v16_add(up.value, one);
    v16 slope = v16_mul(s, v16_fma(v16_mul(alpha, gate), v16_sub(one, s), one));
    return (struct gated){v16_mul(value, more), v16_mul(v16_mul(more, slope), inside), v16_mul(value, up.slope)};
}

// Sixteen gates and ups, each from its own row or alternating in one.
INLINE void get_pair(const char *gate, const char *up, int64_t d, int64_t n, v16 *g, v16 *u, bool bf16) {
    if (up) {
        *g = get16(gate, d, n, bf16), *u = get16(up, d, n, bf16);
        return;
    }
    float both[32], even[16], odd[16];
    v16_store(both, get16(gate, 2 * d, 2 * n, bf16));
    v16_store(both + 16, 2 * n > 16 ? get16(gate, 2 * d + 16, 2 * n - 16, bf16) : v16_zero());
    for (int i = 0; i < 16; i++) even[i] = both[2 * i], odd[i] = both[2 * i + 1];
    *g = v16_load(even), *u = v16_load(odd);
}
INLINE void put_pair(char *p, int64_t d, int64_t n, v16 g, v16 u, bool acc, bool bf16) {
    float both[32], even[16], odd[16];
    v16_store(even, g), v16_store(odd, u);
    for (int i = 0; i < 16; i++) both[2 * i] = even[i], both[2 * i + 1] = odd[i];
    put16_grad(p, 2 * d, 2 * n, v16_load(both), acc, bf16);
    if (2 * n > 16) put16_grad(p, 2 * d + 16, 2 * n - 16, v16_load(both + 16), acc, bf16);
}

INLINE void glu_rows(const struct glu_args *a, int64_t begin, int64_t end, enum act_kind kind, bool bf16) {
    for (int64_t t = begin; t < end; t++) {
        const char *gate = row_of(&a->gate, t, bf16), *up = a->up.p ? row_of(&a->up, t, bf16) : NULL;
        char *h = row_of(&a->h, t, bf16);
        for (int64_t d = 0; d < a->cols; d += 16) {
            int64_t n = a->cols - d;
            v16 g, u;
            get_pair(gate, up, d, n, &g, &u, bf16);
            put16(h, d, n, gated(g, u, a, kind).h, bf16);
        }
    }
}

INLINE void glu_rows_backward(const struct glu_args *a, int64_t begin, int64_t end, enum act_kind kind, bool bf16) {
    for (int64_t t = begin; t < end; t++) {
        const char *gate = row_of(&a->gate, t, bf16), *up = a->up.p ? row_of(&a->up, t, bf16) : NULL;
        const char *dh = row_of(&a->dh, t, bf16);
        for (int64_t d = 0; d < a->cols; d += 16) {
            int64_t n = a->cols - d;
            v16 g, u, dy = get16(dh, d, n, bf16);
            get_pair(gate, up, d, n, &g, &u, bf16); // read before a gradient is written over them
            struct gated f = gated(g, u, a, kind);
            v16 dg = v16_mul(dy, f.by_gate), du = v16_mul(dy, f.by_up);
            if (!up) {
                put_pair(row_of(&a->dgate, t, bf16), d, n, dg, du, a->acc_gate, bf16);
                continue;
            }
            if (a->dgate.p) put16_grad(row_of(&a->dgate, t, bf16), d, n, dg, a->acc_gate, bf16);
            if (a->dup.p) put16_grad(row_of(&a->dup, t, bf16), d, n, du, a->acc_up, bf16);
        }
    }
}

INLINE void act_rows(const struct act_args *a, int64_t begin, int64_t end, enum act_kind kind, bool bf16) {
    for (int64_t t = begin; t < end; t++) {
        const char *x = row_of(&a->x, t, bf16);
        char *y = row_of(&a->y, t, bf16);
        for (int64_t d = 0; d < a->cols; d += 16) {
            int64_t n = a->cols - d;
            put16(y, d, n, activate(get16(x, d, n, bf16), kind, a->limit).value, bf16);
        }
    }
}

INLINE void act_rows_backward(const struct act_args *a, int64_t begin, int64_t end, enum act_kind kind, bool bf16) {
    for (int64_t t = begin; t < end; t++) {
        const char *x = row_of(&a->x, t, bf16), *dy = row_of(&a->dy, t, bf16);
        char *dx = row_of(&a->dx, t, bf16);
        for (int64_t d = 0; d < a->cols; d += 16) {
            int64_t n = a->cols - d;
            v16 slope = activate(get16(x, d, n, bf16), kind, a->limit).slope;
            put16_grad(dx, d, n, v16_mul(get16(dy, d, n, bf16), slope), a->acc, bf16);
        }
    }
}

// One function per (kind, dtype), chosen once per range of rows.
#define ACT_CASE(constant)                                                                                             \
    case constant:                                                                                                     \
        if (a->dtype == DTYPE_BF16)                                                                                    \
            ROWS(a, begin, end, constant, true);                                                                       \
        else                                                                                                           \
            ROWS(a, begin, end, constant, false);                                                                      \
        break;
#define ROWS glu_rows
static void glu(const void *args, int64_t begin, int64_t end) {
    const struct glu_args *a = args;
    switch (a->kind) {
        ACT_CASE(ACT_SILU)
        ACT_CASE(ACT_GELU_TANH)
        ACT_CASE(ACT_GELU)
        ACT_CASE(ACT_SWIGLU_CLAMPED)
    case ACT_CLAMP: break;
    }
}
#undef ROWS
#define ROWS glu_rows_backward
static void glu_backward(const void *args, int64_t begin, int64_t end) {
    const struct glu_args *a = args;
    switch (a->kind) {
        ACT_CASE(ACT_SILU)
        ACT_CASE(ACT_GELU_TANH)
        ACT_CASE(ACT_GELU)
        ACT_CASE(ACT_SWIGLU_CLAMPED)
    case ACT_CLAMP: break;
    }
}
#undef ROWS
#define ROWS act_rows
static void act(const void *args, int64_t begin, int64_t end) {
    const struct act_args *a = args;
    switch (a->kind) {
        ACT_CASE(ACT_SILU)
        ACT_CASE(ACT_GELU_TANH)
        ACT_CASE(ACT_GELU)
        ACT_CASE(ACT_CLAMP)
    case ACT_SWIGLU_CLAMPED: break;
    }
}
#undef ROWS
#define ROWS act_rows_backward
static void act_backward(const void *args, int64_t begin, int64_t end) {
    const struct act_args *a = args;
    switch (a->kind) {
        ACT_CASE(ACT_SILU)
        ACT_CASE(ACT_GELU_TANH)
        ACT_CASE(ACT_GELU)
        ACT_CASE(ACT_CLAMP)
    case ACT_SWIGLU_CLAMPED: break;
    }
}
#undef ROWS

// --- rope

enum { ROPE_PIECE = 128 }; // pairs whose cosines and sines are laid out at once

// All heads of one row, pairs (2i, 2i + 1): x c + swapped x s with c = (c0, c0, c1, c1, ...), s = (-s0, s0, -s1, s1,
// ...).
INLINE void rope_pairs(const struct rope_args *a, const char *x, char *y, const float *cosine, const float *sine,
                       bool bf16) {
    float c[2 * ROPE_PIECE], s[2 * ROPE_PIECE];
    int64_t half = a->rotary_dim / 2;
    for (int64_t first = 0; first < half; first += ROPE_PIECE) {
        int64_t count = half - first < ROPE_PIECE ? half - first : ROPE_PIECE;
        for (int64_t j = 0; j < count; j++) {
            float turn = a->inverse ? -sine[first + j] : sine[first + j];
            c[2 * j] = c[2 * j + 1] = cosine[first + j];
            s[2 * j] = -turn, s[2 * j + 1] = turn;
        }
        for (int64_t head = a->first + 2 * first; head < a->cols; head += a->head_dim) {
            for (int64_t j = 0; j < 2 * count; j += 16) {
                int64_t n = 2 * count - j;
                v16 v = get16(x, head + j, n, bf16), vc = get16((const char *)c, j, n, false);
                v16 vs = get16((const char *)s, j, n, false);
                put16_grad(y, head + j, n, v16_add(v16_mul(v, vc), v16_mul(v16_swap(v), vs)), a->acc, bf16);
            }
        }
    }
}

// All heads of one row, pairs (i, i + half).
INLINE void rope_halves(const struct rope_args *a, const char *x, char *y, const float *cosine, const float *sine,
                        bool bf16) {
    int64_t half = a->rotary_dim / 2;
    for (int64_t head = a->first; head < a->cols; head += a->head_dim) {
        for (int64_t j = 0; j < half; j += 16) {
            int64_t n = half - j;
            v16 c = get16((const char *)cosine, j, n, false), s = get16((const char *)sine, j, n, false);
            if (a->inverse) s = v16_sub(v16_zero(), s);
            v16 x0 = get16(x, head + j, n, bf16), x1 = get16(x, head + half + j, n, bf16);
            put16_grad(y, head + j, n, v16_sub(v16_mul(x0, c), v16_mul(x1, s)), a->acc, bf16);
            put16_grad(y, head + half + j, n, v16_add(v16_mul(x1, c), v16_mul(x0, s)), a->acc, bf16);
        }
    }
}

INLINE void pass_through(const char *x, char *y, int64_t begin, int64_t end, bool acc, bool bf16) {
    for (int64_t j = begin; j < end; j += 16) put16_grad(y, j, end - j, get16(x, j, end - j, bf16), acc, bf16);
}

INLINE void rope_rows(const struct rope_args *a, int64_t begin, int64_t end, bool bf16) {
    for (int64_t t = begin; t < end; t++) {
        const float *row = a->table + a->position[t * a->position_ld] * a->table_ld;
        const char *x = row_of(&a->x, t, bf16);
        char *y = row_of(&a->y, t, bf16);
        if (a->kind == ROPE_NORM)
            rope_pairs(a, x, y, row, row + a->rotary_dim / 2, bf16);
        else
            rope_halves(a, x, y, row, row + a->rotary_dim / 2, bf16);
        if (x == y) continue; // the other dims pass through
        for (int64_t head = 0; head < a->cols; head += a->head_dim) {
            pass_through(x, y, head, head + a->first, a->acc, bf16);
            pass_through(x, y, head + a->first + a->rotary_dim, head + a->head_dim, a->acc, bf16);
        }
    }
}

// --- gates of shared experts

// The float at the start of a row.
INLINE float first_of(const struct matrix *m, int64_t row, bool bf16) {
    const char *p = row_of(m, row, bf16);
    float f;
    uint16_t h;
    if (bf16) return memcpy(&h, p, 2), bf16_to_float(h);
    return memcpy(&f, p, 4), f;
}

INLINE float gate_value(float g) {
    float s[16];
    v16_store(s, v16_sigmoid(v16_set1(g)));
    return s[0];
}

INLINE void gate_rows(const struct gate_args *a, int64_t begin, int64_t end, bool bf16) {
    for (int64_t t = begin; t < end; t++) {
        v16 s = v16_set1(gate_value(first_of(&a->g, t, bf16)));
        for (int64_t d = 0; d < a->cols; d += 16) {
            int64_t n = a->cols - d;
            put16(row_of(&a->y, t, bf16), d, n, v16_mul(get16(row_of(&a->x, t, bf16), d, n, bf16), s), bf16);
        }
    }
}

INLINE void gate_rows_backward(const struct gate_args *a, int64_t begin, int64_t end, bool bf16) {
    for (int64_t t = begin; t < end; t++) {
        float value = gate_value(first_of(&a->g, t, bf16));
        v16 s = v16_set1(value), sum = v16_zero();
        for (int64_t d = 0; d < a->cols; d += 16) {
            int64_t n = a->cols - d;
            v16 dy = get16(row_of(&a->dy, t, bf16), d, n, bf16);
            sum = v16_fma(dy, get16(row_of(&a->x, t, bf16), d, n, bf16), sum);
            if (a->dx.p) put16_grad(row_of(&a->dx, t, bf16), d, n, v16_mul(dy, s), a->acc_x, bf16);
        }
        v16 dg = v16_set1(v16_sum(sum) * value * (1.0f - value));
        if (a->dg.p) put16_grad(row_of(&a->dg, t, bf16), 0, 1, dg, a->acc_g, bf16);
    }
}

// --- keys of multi-head latent attention

INLINE void move(char *to, int64_t to_i, const char *from, int64_t from_i, int64_t n, bool acc, bool bf16) {
    for (int64_t d = 0; d < n; d += 16)
        put16_grad(to, to_i + d, n - d, get16(from, from_i + d, n - d, bf16), acc, bf16);
}

INLINE void mla_rows(const struct mla_args *a, int64_t begin, int64_t end, bool bf16) {
    for (int64_t t = begin; t < end; t++) {
        const char *kv = row_of(&a->kv, t, bf16), *r = row_of(&a->r, t, bf16);
        char *k = row_of(&a->k, t, bf16), *v = a->v_dim > 0 ? row_of(&a->v, t, bf16) : NULL;
        for (int64_t h = 0; h < a->heads; h++) {
            int64_t from = h * (a->nope + a->v_dim), to = h * (a->nope + a->r_cols);
            move(k, to, kv, from, a->nope, false, bf16);
            move(k, to + a->nope, r, 0, a->r_cols, false, bf16);
            move(v, h * a->v_dim, kv, from + a->nope, a->v_dim, false, bf16);
        }
    }
}

// A part of kv's gradient: what came back, or zeros where nothing did.
INLINE void mla_part(char *to, int64_t to_i, const char *from, int64_t from_i, int64_t n, bool acc, bool bf16) {
    if (from) {
        move(to, to_i, from, from_i, n, acc, bf16);
        return;
    }
    for (int64_t d = 0; d < n && !acc; d += 16) put16(to, to_i + d, n - d, v16_zero(), bf16);
}

INLINE void mla_rows_backward(const struct mla_args *a, int64_t begin, int64_t end, bool bf16) {
    for (int64_t t = begin; t < end; t++) {
        const char *k = a->k.p ? row_of(&a->k, t, bf16) : NULL, *v = a->v.p ? row_of(&a->v, t, bf16) : NULL;
        for (int64_t h = 0; h < a->heads && a->kv.p; h++) {
            int64_t to = h * (a->nope + a->v_dim), from = h * (a->nope + a->r_cols);
            char *kv = row_of(&a->kv, t, bf16);
            mla_part(kv, to, k, from, a->nope, a->acc_kv, bf16);
            mla_part(kv, to + a->nope, v, h * a->v_dim, a->v_dim, a->acc_kv, bf16);
        }
        for (int64_t d = 0; d < a->r_cols && a->r.p; d += 16) { // all heads share r
            int64_t n = a->r_cols - d;
            v16 sum = v16_zero();
            for (int64_t h = 0; h < a->heads && k; h++) {
                int64_t at = h * (a->nope + a->r_cols) + a->nope + d;
                sum = v16_add(sum, get16(k, at, n, bf16));
            }
            put16_grad(row_of(&a->r, t, bf16), d, n, sum, a->acc_r, bf16);
        }
    }
}

#define ROWS_KERNEL(name, type, rows)                                                                                  \
    static void name(const void *args, int64_t begin, int64_t end) {                                                   \
        const struct type *a = args;                                                                                   \
        if (a->dtype == DTYPE_BF16)                                                                                    \
            rows(a, begin, end, true);                                                                                 \
        else                                                                                                           \
            rows(a, begin, end, false);                                                                                \
    }
ROWS_KERNEL(rope, rope_args, rope_rows)
ROWS_KERNEL(gate, gate_args, gate_rows)
ROWS_KERNEL(gate_backward, gate_args, gate_rows_backward)
ROWS_KERNEL(mla, mla_args, mla_rows)
ROWS_KERNEL(mla_backward, mla_args, mla_rows_backward)

// --- sums and copies

INLINE void pass_rows(const struct pass_args *a, int64_t begin, int64_t end, bool x_bf16, bool y_bf16) {
    for (int64_t t = begin; t < end; t++) {
        const char *x = row_of(&a->x, t, x_bf16), *r = a->r.p ? row_of(&a->r, t, x_bf16) : NULL;
        char *y = row_of(&a->y, t, y_bf16);
        v16 scale = v16_set1(a->scale);
        for (int64_t d = 0; d < a->cols; d += 16) {
            int64_t n = a->cols - d;
            v16 v = get16(x, d, n, x_bf16);
            v = r ? v16_fma(get16(r, d, n, x_bf16), scale, v) : v16_mul(v, scale);
            put16_grad(y, d, n, v, a->acc, y_bf16);
        }
    }
}

static void pass(const void *args, int64_t begin, int64_t end) {
    const struct pass_args *a = args;
    bool x = a->x_dtype == DTYPE_BF16, y = a->y_dtype == DTYPE_BF16;
    if (x && y)
        pass_rows(a, begin, end, true, true);
    else if (x)
        pass_rows(a, begin, end, true, false);
    else if (y)
        pass_rows(a, begin, end, false, true);
    else
        pass_rows(a, begin, end, false, false);
}

// --- optimiser

static void adamw(const void *args, int64_t begin, int64_t end) {
    const struct adamw_args *a = args;
    v16 beta1 = v16_set1(a->beta1), beta2 = v16_set1(a->beta2);
    for (int64_t i = begin; i < end; i += 16) {
        int n = end - i < 16 ? (int)(end - i) : 16;
        v16 g = v16_mul(get16((const char *)a->sum, i, n, false), v16_set1(a->scale));
        v16 m = v16_mul(get16((const char *)a->m, i, n, false), beta1);
        v16 v = v16_mul(get16((const char *)a->v, i, n, false), beta2);
        v16 p = v16_mul(get16((const char *)a->param, i, n, false), v16_set1(a->decay));
        m = v16_fma(v16_set1(a->one_minus_beta1), g, m);
        v = v16_fma(v16_mul(v16_set1(a->one_minus_beta2), g), g, v);
        v16 denominator = v16_add(v16_div(v16_sqrt(v), v16_set1(a->sqrt_bias2)), v16_set1(a->eps));
        p = v16_sub(p, v16_mul(v16_set1(a->step_size), v16_div(m, denominator)));
        put16((char *)a->m, i, n, m, false);
        put16((char *)a->v, i, n, v, false);
        put16((char *)a->param, i, n, p, false);
    }
}

const struct rows_isa VEC_SUFFIX(rows_isa) = {
    .norm = norm,
    .norm_again = norm_again,
    .norm_backward = norm_backward,
    .glu = glu,
    .glu_backward = glu_backward,
    .act = act,
    .act_backward = act_backward,
    .rope = rope,
    .gate = gate,
    .gate_backward = gate_backward,
    .mla = mla,
    .mla_backward = mla_backward,
    .pass = pass,
    .adamw = adamw,
};
