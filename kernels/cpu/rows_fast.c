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

// y = (x - mean) * rstd * w + bias
INLINE void norm_apply(const struct norm_args *a, const char *x, char *y, float rstd, float mean, bool layer,
                       bool bf16) {
    v16 vr = v16_set1(rstd), vm = v16_set1(mean);
    for (int64_t d = 0; d < a->cols; d += 16) {
        int64_t n = a->cols - d;
        v16 v = get16(x, d, n, bf16);
        if (layer) v = v16_sub(v, vm);
        v = v16_mul(v16_mul(v, vr), get16((const char *)a->w, d, n, false));
        if (a->bias) v = v16_add(v, get16((const char *)a->bias, d, n, false));
        put16(y, d, n, v, bf16);
    }
}

INLINE void norm_rows(const struct norm_args *a, int64_t begin, int64_t end, bool layer, bool bf16) {
    for (int64_t t = begin; t < end; t++) {
        const char *x = row_of(&a->x, t, bf16);
        if (a->r.p) { // what is normed is the sum as stored, so that y can be had again from it
            const char *r = row_of(&a->r, t, bf16);
            char *s = row_of(&a->s, t, bf16);
            for (int64_t d = 0; d < a->cols; d += 16) {
                int64_t n = a->cols - d;
                put16(s, d, n, v16_add(get16(x, d, n, bf16), get16(r, d, n, bf16)), bf16);
            }
            x = s;
        }
        float mean = layer ? row_mean(x, a->cols, bf16) : 0.0f;
        float rstd = 1.0f / sqrtf(row_square(x, a->cols, mean, layer, bf16) / (float)a->cols + a->eps);
        if (a->rstd.p) *stat_of(&a->rstd, t) = rstd;
        if (a->mean.p) *stat_of(&a->mean, t) = mean;
        norm_apply(a, x, row_of(&a->y, t, bf16), rstd, mean, layer, bf16);
    }
}

INLINE void norm_rows_again(const struct norm_args *a, int64_t begin, int64_t end, bool layer, bool bf16) {
    for (int64_t t = begin; t < end; t++) {
        norm_apply(a, row_of(&a->x, t, bf16), row_of(&a->y, t, bf16), *stat_of(&a->rstd, t),
                   layer ? *stat_of(&a->mean, t) : 0.0f, layer, bf16);
    }
}

// With g = dy * w and n = (x - mean) * rstd: rstd * (g - mean(g) - n * mean(g * n)); RMS has no mean(g).
INLINE void norm_row_backward(const struct norm_args *a, int64_t t, bool layer, bool bf16) {
    const char *x = row_of(&a->x, t, bf16), *dy = row_of(&a->dy, t, bf16);
    v16 rstd = v16_set1(*stat_of(&a->rstd, t)), mean = v16_set1(layer ? *stat_of(&a->mean, t) : 0.0f);
    struct sum sum_g = sum_zero(), sum_gn = sum_zero();
    for (int64_t d = 0; d < a->cols; d += 64) {
        for (int64_t j = 0; j < 4 && d + 16 * j < a->cols; j++) {
            int64_t i = d + 16 * j, n = a->cols - i;
            v16 g = v16_mul(get16(dy, i, n, bf16), get16((const char *)a->w, i, n, false));
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
        v16 g = v16_mul(get16(dy, d, n, bf16), get16((const char *)a->w, d, n, false));
        v16 v = get16(x, d, n, bf16);
        if (layer) v = v16_sub(v, mean), g = v16_sub(g, mean_g);
        v16 grad = v16_mul(rstd, v16_sub(g, v16_mul(v16_mul(v, rstd), mean_gn)));
        if (a->ds.p) grad = v16_add(get16(row_of(&a->ds, t, bf16), d, n, bf16), grad);
        if (a->dx.p) put16_grad(row_of(&a->dx, t, bf16), d, n, grad, a->acc_x, bf16);
        if (a->dr.p) put16_grad(row_of(&a->dr, t, bf16), d, n, grad, a->acc_r, bf16);
    }
}

INLINE void norm_rows_backward(const struct norm_args *a, int64_t begin, int64_t end, bool layer, bool bf16) {
    for (int64_t t = begin; t < end; t++) norm_row_backward(a, t, layer, bf16);
}

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

// --- gated linear unit

struct activation {
    v16 value, slope;
};

INLINE struct activation activate(v16 x, bool gelu) {
    v16 one = v16_set1(1.0f), half = v16_set1(0.5f);
    if (!gelu) { // x sigma(x); sigma (1 + x (1 - sigma))
        v16 s = v16_sigmoid(x);
        return (struct activation){v16_mul(x, s), v16_mul(s, v16_fma(x, v16_sub(one, s), one))};
    }
    // 0.5 x (1 + t), t = tanh(c (x + a x^3)); 0.5 (1 + t) + 0.5 x (1 - t^2) c (1 + 3 a x^2)
    v16 c = v16_set1(0.79788456f), ca = v16_set1(0.79788456f * 0.044715f), square = v16_mul(x, x);
    v16 t = v16_tanh(v16_mul(x, v16_fma(ca, square, c)));
    v16 inner = v16_fma(v16_set1(3.0f * 0.79788456f * 0.044715f), square, c);
    v16 rise = v16_mul(v16_mul(v16_mul(half, x), v16_sub(one, v16_mul(t, t))), inner);
    v16 gate = v16_mul(half, v16_add(one, t));
    return (struct activation){v16_mul(x, gate), v16_add(gate, rise)};
}

INLINE void glu_rows(const struct glu_args *a, int64_t begin, int64_t end, bool gelu, bool bf16) {
    for (int64_t t = begin; t < end; t++) {
        const char *gate = row_of(&a->gate, t, bf16), *up = row_of(&a->up, t, bf16);
        char *h = row_of(&a->h, t, bf16);
        for (int64_t d = 0; d < a->cols; d += 16) {
            int64_t n = a->cols - d;
            struct activation f = activate(get16(gate, d, n, bf16), gelu);
            put16(h, d, n, v16_mul(f.value, get16(up, d, n, bf16)), bf16);
        }
    }
}

INLINE void glu_rows_backward(const struct glu_args *a, int64_t begin, int64_t end, bool gelu, bool bf16) {
    for (int64_t t = begin; t < end; t++) {
        const char *gate = row_of(&a->gate, t, bf16), *up = row_of(&a->up, t, bf16), *dh = row_of(&a->dh, t, bf16);
        for (int64_t d = 0; d < a->cols; d += 16) {
            int64_t n = a->cols - d;
            struct activation f = activate(get16(gate, d, n, bf16), gelu);
            v16 g = get16(dh, d, n, bf16), u = get16(up, d, n, bf16); // read before a gradient is written over them
            if (a->dgate.p)
                put16_grad(row_of(&a->dgate, t, bf16), d, n, v16_mul(v16_mul(g, u), f.slope), a->acc_gate, bf16);
            if (a->dup.p) put16_grad(row_of(&a->dup, t, bf16), d, n, v16_mul(g, f.value), a->acc_up, bf16);
        }
    }
}

#define GLU_KERNEL(name, rows)                                                                                         \
    static void name(const void *args, int64_t begin, int64_t end) {                                                   \
        const struct glu_args *a = args;                                                                               \
        bool gelu = a->kind == GLU_GELU_TANH, bf16 = a->dtype == DTYPE_BF16;                                           \
        if (gelu && bf16)                                                                                              \
            rows(a, begin, end, true, true);                                                                           \
        else if (gelu)                                                                                                 \
            rows(a, begin, end, true, false);                                                                          \
        else if (bf16)                                                                                                 \
            rows(a, begin, end, false, true);                                                                          \
        else                                                                                                           \
            rows(a, begin, end, false, false);                                                                         \
    }
GLU_KERNEL(glu, glu_rows)
GLU_KERNEL(glu_backward, glu_rows_backward)

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
        for (int64_t head = 2 * first; head < a->cols; head += a->head_dim) {
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
    for (int64_t head = 0; head < a->cols; head += a->head_dim) {
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
            for (int64_t j = a->rotary_dim; j < a->head_dim; j += 16) {
                int64_t n = a->head_dim - j;
                put16_grad(y, head + j, n, get16(x, head + j, n, bf16), a->acc, bf16);
            }
        }
    }
}

static void rope(const void *args, int64_t begin, int64_t end) {
    const struct rope_args *a = args;
    if (a->dtype == DTYPE_BF16)
        rope_rows(a, begin, end, true);
    else
        rope_rows(a, begin, end, false);
}

// --- sums and copies

INLINE void pass_rows(const struct pass_args *a, int64_t begin, int64_t end, bool x_bf16, bool y_bf16) {
    for (int64_t t = begin; t < end; t++) {
        const char *x = row_of(&a->x, t, x_bf16), *r = a->r.p ? row_of(&a->r, t, x_bf16) : NULL;
        char *y = row_of(&a->y, t, y_bf16);
        for (int64_t d = 0; d < a->cols; d += 16) {
            int64_t n = a->cols - d;
            v16 v = get16(x, d, n, x_bf16);
            if (r) v = v16_add(v, get16(r, d, n, x_bf16));
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
    .rope = rope,
    .pass = pass,
    .adamw = adamw,
};
