// Kernels between rows of tokens and rows of pairs: see moe.h.
#include "kernels/cpu/moe.h"

#include "kernels/cpu/activations.h"
#include "kernels/cpu/isa.h"

INLINE char *pair_row(const struct moe_args *a, int64_t pair, bool bf16) {
    return row_of(&a->s, a->map[pair * a->map_ld + 1], bf16);
}
INLINE float pair_weight(const struct moe_args *a, int64_t pair) {
    if (!a->weights.p) return 1;
    return ((const float *)(const void *)a->weights.p)[pair / a->used * a->weights.ld + pair % a->used];
}

INLINE void spread_rows(const struct moe_args *a, int64_t begin, int64_t end, bool bf16) {
    for (int64_t p = begin; p < end; p++) {
        const char *x = row_of(&a->x, p / a->used, bf16);
        char *s = pair_row(a, p, bf16);
        v16 w = v16_set1(pair_weight(a, p));
        for (int64_t d = 0; d < a->cols; d += 16) {
            put16_grad(s, d, a->cols - d, v16_mul(get16(x, d, a->cols - d, bf16), w), a->acc, bf16);
        }
    }
}

INLINE void collect_rows(const struct moe_args *a, int64_t begin, int64_t end, bool bf16) {
    for (int64_t t = begin; t < end; t++) {
        char *x = row_of(&a->x, t, bf16);
        for (int64_t d = 0; d < a->cols; d += 16) {
            int64_t n = a->cols - d;
            v16 sum = v16_zero();
            for (int64_t p = t * a->used; p < (t + 1) * a->used; p++) {
                sum = v16_fma(get16(pair_row(a, p, bf16), d, n, bf16), v16_set1(pair_weight(a, p)), sum);
            }
            put16_grad(x, d, n, sum, a->acc, bf16);
        }
    }
}

INLINE void dot_rows(const struct moe_args *a, int64_t begin, int64_t end, bool bf16) {
    for (int64_t p = begin; p < end; p++) {
        const char *x = row_of(&a->x, p / a->used, bf16), *s = pair_row(a, p, bf16);
        v16 sum = v16_zero();
        for (int64_t d = 0; d < a->cols; d += 16) {
            sum = v16_fma(get16(x, d, a->cols - d, bf16), get16(s, d, a->cols - d, bf16), sum);
        }
        float *out = (float *)(void *)a->dot.p + p / a->used * a->dot.ld + p % a->used;
        *out = a->acc ? *out + v16_sum(sum) : v16_sum(sum);
    }
}

#define MOE_KERNEL(name)                                                                                               \
    static void name(const void *args, int64_t begin, int64_t end) {                                                   \
        const struct moe_args *a = args;                                                                               \
        if (a->dtype == DTYPE_BF16)                                                                                    \
            name##_rows(a, begin, end, true);                                                                          \
        else                                                                                                           \
            name##_rows(a, begin, end, false);                                                                         \
    }
MOE_KERNEL(spread)
MOE_KERNEL(collect)
MOE_KERNEL(dot)

const struct moe_isa VEC_SUFFIX(moe_isa) = {.spread = spread, .collect = collect, .dot = dot};
