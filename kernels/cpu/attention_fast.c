// Attention, one unit at a time: see attention.h. Scores S = scale Q K^T of 64 x 64 blocks are computed with lanes over
// keys, from a transposed copy of the keys; everything else has lanes over head dims. Each element of a product takes
// one fused multiply-add after another in ascending inner index, so all instruction sets give the same bits.
#include "kernels/cpu/attention.h"
#include "kernels/cpu/activations.h"
#include "kernels/cpu/isa.h"

#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

enum { BLOCK = ATTENTION_BLOCK };
#define MINUS_LARGE (-1e30f) // below any score: the running maximum of a row that has seen no key

// The register tile: MM_ROWS rows of A times MM_VECS vectors of B.
#if defined(VEC_AVX512)
enum { MM_ROWS = 8, MM_VECS = 2 };
#elif defined(VEC_AVX2)
enum { MM_ROWS = 6, MM_VECS = 1 };
#else
enum { MM_ROWS = 4, MM_VECS = 1 };
#endif

// --- small matrix products

// Rows of a matrix that will be used soon: `bytes` of each, `stride` bytes apart. Rows are too far apart for the
// hardware to foresee.
struct ahead {
    const char *p; // NULL for none
    int64_t stride, rows, bytes;
};

INLINE void fetch_rows(const struct ahead *x, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
        for (int64_t j = 0; j < x->bytes; j += 64) __builtin_prefetch(x->p + i * x->stride + j, 0, 2);
    }
}

// C (m x n) = start + A B. A's element (i, k) is a[i * a_row + k * a_k], one of the strides being 1. B and C rows are
// contiguous; B is readable up to whole vectors. C starts at 0, at the old C, or at rows of C times row_scale[i].
enum mm_start { MM_ZERO, MM_ADD, MM_SCALED };
struct mm {
    float *c;
    const float *a, *b, *row_scale;
    int64_t ldc, a_row, a_k, ldb;
    int64_t m, n, k;
    struct ahead ahead; // fetched into the cache on the way, for a later product
};

// rows, vecs, down, start and whole are constants; not whole: the only vector has p->n - j lanes.
INLINE void mm_tile(const struct mm *p, int64_t i, int64_t j, const int rows, const int vecs, const bool down,
                    const enum mm_start start, const bool whole) {
    v16 c[MM_ROWS][MM_VECS];
    const int tail = (int)(p->n - j);
    const int64_t ldc = p->ldc, ldb = p->ldb, steps = p->k;
    float *out = p->c + i * ldc + j;
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int v = 0; v < vecs; v++) {
            if (start == MM_ZERO)
                c[r][v] = v16_zero();
            else
                c[r][v] = whole ? v16_load(out + r * ldc + 16 * v) : v16_load_n(out + r * ldc, tail);
            if (start == MM_SCALED) c[r][v] = v16_mul(c[r][v], v16_set1(p->row_scale[i + r]));
        }
    }
    const float *b = p->b + j, *a = down ? p->a + i : p->a + i * p->a_row;
    const int64_t step = down ? p->a_k : 1, across = down ? 1 : p->a_row;
    for (int64_t k = 0; k < steps; k++) {
        v16 w[MM_VECS];
        UNROLL for (int v = 0; v < vecs; v++) w[v] = v16_load(b + 16 * v);
        UNROLL for (int r = 0; r < rows; r++) {
            v16 x = v16_set1(a[r * across]);
            UNROLL for (int v = 0; v < vecs; v++) c[r][v] = v16_fma(x, w[v], c[r][v]);
        }
        a += step;
        b += ldb;
    }
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int v = 0; v < vecs; v++) {
            if (whole)
                v16_store(out + r * ldc + 16 * v, c[r][v]);
            else
                v16_store_n(out + r * ldc, c[r][v], tail);
        }
    }
}

// All columns of `rows` rows of C.
INLINE void mm_rows(const struct mm *p, int64_t i, const int rows, const bool down, const enum mm_start start) {
    int64_t j = 0;
    for (; j + 16 * MM_VECS <= p->n; j += 16 * MM_VECS) mm_tile(p, i, j, rows, MM_VECS, down, start, true);
    for (; j + 16 <= p->n; j += 16) mm_tile(p, i, j, rows, 1, down, start, true);
    if (j < p->n) mm_tile(p, i, j, rows, 1, down, start, false);
    if (p->ahead.p) fetch_rows(&p->ahead, i * p->ahead.rows / p->m, (i + rows) * p->ahead.rows / p->m);
}

INLINE void mm_all(const struct mm *p, const bool down, const enum mm_start start) {
    int64_t i = 0;
    for (; i + MM_ROWS <= p->m; i += MM_ROWS) mm_rows(p, i, MM_ROWS, down, start);
    for (; MM_ROWS > 4 && i + 4 <= p->m; i += 4) mm_rows(p, i, 4, down, start);
    for (; i + 2 <= p->m; i += 2) mm_rows(p, i, 2, down, start);
    for (; i < p->m; i++) mm_rows(p, i, 1, down, start);
}

static void mm_zero(const struct mm *p) {
    mm_all(p, false, MM_ZERO);
} // a_k is 1
static void mm_scaled(const struct mm *p) {
    mm_all(p, false, MM_SCALED);
} // a_k is 1
static void mm_add(const struct mm *p) {
    mm_all(p, false, MM_ADD);
} // a_k is 1
static void mm_add_down(const struct mm *p) {
    mm_all(p, true, MM_ADD);
} // a_row is 1

// --- blocks of the operands

// A block as f32: in place, or a copy.
struct block {
    const float *p;
    int64_t ld;
};

INLINE char *row_at(const struct matrix *m, int64_t row, int64_t col, bool bf16) {
    return m->p + (row * m->ld + col) * (bf16 ? 2 : 4);
}

// Rows [row, row + n) and columns [col, col + dim) of a matrix. f32 rows of whole vectors are used in place, unless
// their distance would put them all into the same few sets of the cache.
static struct block block_of(const struct matrix *m, int64_t row, int64_t n, int64_t col, int64_t dim, bool bf16,
                             float *copy) {
    int64_t padded = attention_padded(dim);
    if (!bf16 && dim == padded && m->ld % 256 != 0)
        return (struct block){(float *)(void *)row_at(m, row, col, false), m->ld};
    for (int64_t i = 0; i < n; i++) {
        const char *from = row_at(m, row + i, col, bf16);
        for (int64_t d = 0; d < dim; d += 16) v16_store(copy + i * padded + d, get16(from, d, dim - d, bf16));
    }
    return (struct block){copy, padded};
}

#if defined(VEC_AVX512)
// 16 x 16: rows of `from` become columns of `to`.
static void transpose16(float *to, int64_t ldt, const float *from, int64_t ldf) {
    __m512 r[16], t[16];
    UNROLL for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_ps(from + i * ldf);
    UNROLL for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    UNROLL for (int i = 0; i < 16; i += 4) { // r[i + c]: column c of each quad, rows i .. i + 3
        r[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(t[i]), _mm512_castps_pd(t[i + 2])));
        r[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(t[i]), _mm512_castps_pd(t[i + 2])));
        r[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(t[i + 1]), _mm512_castps_pd(t[i + 3])));
        r[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(t[i + 1]), _mm512_castps_pd(t[i + 3])));
    }
    UNROLL for (int c = 0; c < 4; c++) { // columns c, c + 4, c + 8, c + 12
        __m512 a = _mm512_shuffle_f32x4(r[c], r[4 + c], 0x88), b = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0x88);
        __m512 d = _mm512_shuffle_f32x4(r[c], r[4 + c], 0xDD), e = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0xDD);
        _mm512_storeu_ps(to + c * ldt, _mm512_shuffle_f32x4(a, b, 0x88));
        _mm512_storeu_ps(to + (c + 4) * ldt, _mm512_shuffle_f32x4(d, e, 0x88));
        _mm512_storeu_ps(to + (c + 8) * ldt, _mm512_shuffle_f32x4(a, b, 0xDD));
        _mm512_storeu_ps(to + (c + 12) * ldt, _mm512_shuffle_f32x4(d, e, 0xDD));
    }
}
#elif defined(VEC_AVX2)
static void transpose8(float *to, int64_t ldt, const float *from, int64_t ldf) {
    __m256 r[8], t[8];
    UNROLL for (int i = 0; i < 8; i++) r[i] = _mm256_loadu_ps(from + i * ldf);
    UNROLL for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    UNROLL for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xEE);
        r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xEE);
    }
    UNROLL for (int c = 0; c < 4; c++) {
        _mm256_storeu_ps(to + c * ldt, _mm256_permute2f128_ps(r[c], r[4 + c], 0x20));
        _mm256_storeu_ps(to + (c + 4) * ldt, _mm256_permute2f128_ps(r[c], r[4 + c], 0x31));
    }
}
static void transpose16(float *to, int64_t ldt, const float *from, int64_t ldf) {
    for (int i = 0; i < 16; i += 8) {
        for (int j = 0; j < 16; j += 8) transpose8(to + j * ldt + i, ldt, from + i * ldf + j, ldf);
    }
}
#else
static void transpose16(float *to, int64_t ldt, const float *from, int64_t ldf) {
    for (int i = 0; i < 16; i++) {
        for (int j = 0; j < 16; j++) to[j * ldt + i] = from[i * ldf + j];
    }
}
#endif

// The transposed copy of a block of up to 64 rows: to[d * BLOCK + j], columns j past the rows are 0. `edge` holds
// 16 x padded floats for the last rows.
static void transpose_block(float *to, const struct block *from, int64_t n, int64_t dim, float *edge) {
    int64_t padded = attention_padded(dim), j = 0;
    for (; j + 16 <= n; j += 16) {
        for (int64_t d = 0; d < padded; d += 16)
            transpose16(to + d * BLOCK + j, BLOCK, from->p + j * from->ld + d, from->ld);
    }
    if (j < n) {
        memset(edge, 0, (size_t)(16 * padded) * sizeof *edge);
        for (int64_t i = j; i < n; i++) {
            memcpy(edge + (i - j) * padded, from->p + i * from->ld, (size_t)padded * sizeof *edge);
        }
        for (int64_t d = 0; d < padded; d += 16) transpose16(to + d * BLOCK + j, BLOCK, edge + d, padded);
        j += 16;
    }
    for (int64_t d = 0; d < padded && j < BLOCK; d++) memset(to + d * BLOCK + j, 0, (size_t)(BLOCK - j) * sizeof *to);
}

// Rows of a block that share the columns they are computed for: whole 16s of rows and columns, so that about half of a
// block on the diagonal is left out. Nothing outside of the bands is read.
struct band {
    int64_t row, rows, col, cols;
};

// Which columns [begin, end) of a key block each of `n` query rows sees.
struct seen {
    int begin[BLOCK], end[BLOCK]; // set unless `all`
    bool all;                     // every row sees all 64
    int bands;
    struct band band[BLOCK / 16];
};

static void see(const struct attention_args *a, const struct attention_seq *s, int64_t first, int64_t n, int64_t key0,
                int64_t keys, struct seen *seen) {
    int64_t begin, end, last_begin, last_end;
    attention_visible(a, s, first, &begin, &end);
    attention_visible(a, s, first + n - 1, &last_begin, &last_end);
    seen->all = keys == BLOCK && last_begin <= key0 && end >= key0 + keys; // both ends grow from row to row
    seen->bands = 0;
    if (begin >= key0 + keys || last_end <= key0) return;
    if (seen->all) {
        seen->band[seen->bands++] = (struct band){0, n, 0, BLOCK};
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        attention_visible(a, s, first + i, &begin, &end);
        begin = begin > key0 ? begin - key0 : 0;
        end = end < key0 + keys ? end - key0 : keys;
        seen->begin[i] = (int)(begin < end ? begin : 0);
        seen->end[i] = (int)(begin < end ? end : 0);
    }
    for (int64_t i = 0; i < n; i += 16) {
        int64_t rows = n - i < 16 ? n - i : 16, left = BLOCK, right = 0;
        for (int64_t j = i; j < i + rows; j++) {
            if (seen->begin[j] < seen->end[j] && seen->begin[j] < left) left = seen->begin[j];
            if (seen->end[j] > right) right = seen->end[j];
        }
        left = left / 16 * 16;
        right = (right + 15) / 16 * 16;
        struct band *last = &seen->band[seen->bands - 1];
        if (left >= right) continue;
        if (seen->bands && last->row + last->rows == i && last->col == left && last->cols == right - left)
            last->rows += rows;
        else
            seen->band[seen->bands++] = (struct band){i, rows, left, right - left};
    }
}

// a inside [begin, end) of the block's columns, `other` elsewhere; lane 0 is column j.
INLINE v16 inside(v16 a, int j, int begin, int end, v16 other) {
    static const float number[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    v16 column = v16_add(v16_load(number), v16_set1((float)j));
    a = v16_if_less(column, v16_set1((float)begin), other, a);
    return v16_if_less(column, v16_set1((float)end), a, other);
}

// cap * tanh(scale * s / cap)
INLINE v16 capped(v16 s, const struct attention_args *a) {
    v16 cap = v16_set1(a->soft_cap);
    return v16_mul(cap, v16_tanh(v16_div(v16_mul(s, v16_set1(a->scale)), cap)));
}

// --- forward

// The running softmax of up to 64 queries.
struct rows_state {
    float *o;    // [BLOCK][padded v_dim], not divided by the sum yet
    float *lane; // [BLOCK][16]: sums of e^(s - largest), lane by lane
    float largest[BLOCK];
};

// Caps and masks a row of products q k; the largest of them. Without a cap they are not scaled yet.
INLINE float row_largest(const struct attention_args *a, const struct seen *seen, const struct band *band, int64_t i,
                         float *row, const bool all) {
    const v16 minus_infinity = v16_set1(-INFINITY);
    v16 best = minus_infinity;
    if (all && a->soft_cap == 0) {
        UNROLL for (int j = 0; j < BLOCK; j += 16) best = v16_max(best, v16_load(row + j));
        return v16_largest(best);
    }
    for (int64_t j = band->col; j < band->col + band->cols; j += 16) {
        v16 v = v16_load(row + j);
        if (a->soft_cap > 0) v = capped(v, a);
        if (!all) v = inside(v, (int)j, seen->begin[i], seen->end[i], minus_infinity);
        v16_store(row + j, v);
        best = v16_max(best, v);
    }
    return v16_largest(best);
}

// Products of a band become e^(score - largest); alpha: what earlier sums of its rows are multiplied by.
INLINE void soften_band(const struct attention_args *a, const struct seen *seen, const struct band *band, float *s,
                        struct rows_state *state, float *alpha, const bool all) {
    float largest[BLOCK], *before = state->largest + band->row;
    const float scale = a->soft_cap > 0 ? 1.0f : a->scale;
    for (int64_t i = 0; i < band->rows; i++) {
        float top = scale * row_largest(a, seen, band, band->row + i, s + (band->row + i) * BLOCK, all);
        largest[i] = top > before[i] ? top : before[i];
    }
    for (int64_t i = 0; i < band->rows; i += 16) {
        int n = band->rows - i < 16 ? (int)(band->rows - i) : 16;
        v16_store_n(alpha + band->row + i, v16_exp(v16_sub(v16_load_n(before + i, n), v16_load_n(largest + i, n))), n);
        v16_store_n(before + i, v16_load_n(largest + i, n), n);
    }
    for (int64_t i = 0; i < band->rows; i++) {
        float *row = s + (band->row + i) * BLOCK, *lane = state->lane + (band->row + i) * 16;
        v16 minus_top = v16_set1(-largest[i]), factor = v16_set1(scale),
            sum = v16_mul(v16_load(lane), v16_set1(alpha[band->row + i]));
        if (all) {
            v16 p[4];
            UNROLL for (int j = 0; j < 4; j++) {
                p[j] = v16_exp(v16_fma(v16_load(row + 16 * j), factor, minus_top));
                v16_store(row + 16 * j, p[j]);
            }
            UNROLL for (int j = 0; j < 4; j++) sum = v16_add(sum, p[j]);
        } else {
            for (int64_t j = band->col; j < band->col + band->cols; j += 16) {
                v16 p = v16_exp(v16_fma(v16_load(row + j), factor, minus_top));
                v16_store(row + j, p);
                sum = v16_add(sum, p);
            }
        }
        v16_store(lane, sum);
    }
}

// Natural logarithms of 16 positive normal numbers: the series of det_log, short enough for floats and free of
// branches.
static void logarithms(const float *x, float *out) {
    for (int i = 0; i < 16; i++) {
        double v = (double)x[i], m;
        int64_t u, fraction;
        memcpy(&u, &v, 8);
        fraction = (u & 0xFFFFFFFFFFFFF) | (int64_t)1023 << 52;
        memcpy(&m, &fraction, 8);
        double exponent = (double)(int)(u >> 52) - 1023.0, above = m > 1.4142135623730951 ? 1.0 : 0.0;
        m *= 1.0 - 0.5 * above;
        double s = (m - 1.0) / (m + 1.0), square = s * s;
        double sum = 1.0 / 13;
        for (int k = 11; k >= 1; k -= 2) sum = sum * square + 1.0 / k;
        out[i] = (float)((exponent + above) * 0.69314718055994531 + 2.0 * s * sum);
    }
}

// The row's largest score and sum with the sink's logit among them; what the output is multiplied by.
static float add_sink(float sink, float *top, float *sum) {
    float both[16] = {0}, larger = sink > *top ? sink : *top;
    both[0] = *top - larger;
    both[1] = sink - larger;
    v16_store(both, v16_exp(v16_load(both)));
    *sum = *sum * both[0] + both[1];
    *top = larger;
    return both[0];
}

// Divides by the sums, writes o and lse.
static void finish(const struct attention_args *a, const struct attention_unit *u, int64_t head, int64_t first,
                   int64_t n, struct rows_state *state) {
    bool bf16 = a->dtype == DTYPE_BF16;
    int64_t padded = attention_padded(a->v_dim), row0 = u->seq.q_begin + first;
    for (int64_t i0 = 0; i0 < n; i0 += 16) {
        float sums[16], logs[16], factors[16];
        int64_t rows = n - i0 < 16 ? n - i0 : 16;
        for (int64_t i = 0; i < 16; i++) {
            bool none = i >= rows || state->largest[i0 + i] == MINUS_LARGE; // no key is visible
            sums[i] = none ? 1.0f : v16_sum(v16_load(state->lane + (i0 + i) * 16));
            factors[i] = none ? 0.0f : 1.0f;
            if (none)
                state->largest[i0 + i] = 0;
            else if (a->sinks)
                factors[i] = add_sink(a->sinks[head], &state->largest[i0 + i], &sums[i]);
        }
        v16_store(factors, v16_div(v16_load(factors), v16_load(sums)));
        logarithms(sums, logs);
        for (int64_t i = 0; i < rows; i++) {
            char *out = row_at(&a->o, row0 + i0 + i, head * a->v_dim, bf16);
            v16 factor = v16_set1(factors[i]);
            for (int64_t d = 0; d < a->v_dim; d += 16) {
                put16(out, d, a->v_dim - d, v16_mul(v16_load(state->o + (i0 + i) * padded + d), factor), bf16);
            }
            if (!a->lse.p) continue;
            *(float *)(void *)row_at(&a->lse, row0 + i0 + i, head, false) = state->largest[i0 + i] + logs[i];
        }
    }
}

// o = o alpha + P V for the rows of a band.
static void forward_band(const struct attention_args *a, const struct seen *seen, const struct band *band,
                         const struct block *q, const float *kt, const struct block *v, int64_t keys, float *s,
                         struct rows_state *state) {
    int64_t vp = attention_padded(a->v_dim), end = band->col + band->cols < keys ? band->col + band->cols : keys;
    float alpha[BLOCK], *corner = s + band->row * BLOCK + band->col;
    mm_zero(&(struct mm){.c = corner,
                         .ldc = BLOCK,
                         .a = q->p + band->row * q->ld,
                         .a_row = q->ld,
                         .b = kt + band->col,
                         .ldb = BLOCK,
                         .m = band->rows,
                         .n = band->cols,
                         .k = a->head_dim});
    if (seen->all)
        soften_band(a, seen, band, s, state, alpha, true);
    else
        soften_band(a, seen, band, s, state, alpha, false);
    mm_scaled(&(struct mm){.c = state->o + band->row * vp,
                           .ldc = vp,
                           .a = corner,
                           .a_row = BLOCK,
                           .b = v->p + band->col * v->ld,
                           .ldb = v->ld,
                           .m = band->rows,
                           .n = vp,
                           .k = end - band->col,
                           .row_scale = alpha + band->row});
}

static void forward(const struct attention_args *a, const struct attention_unit *u, float *scratch) {
    const struct attention_seq *seq = &u->seq;
    bool bf16 = a->dtype == DTYPE_BF16;
    int64_t kp = attention_padded(a->head_dim), vp = attention_padded(a->v_dim);
    float *kt = scratch, *s = kt + kp * BLOCK, *k_copy = s + BLOCK * BLOCK, *v_copy = k_copy + BLOCK * kp;
    float *edge = v_copy + BLOCK * vp, *sub = edge + 16 * (kp > vp ? kp : vp);
    // A sub is (head, block of 64 queries); its q copy, output and lane sums follow one another in the scratch.
    struct rows_state state[ATTENTION_SUBS];
    struct block q[ATTENTION_SUBS];
    int64_t subs = u->heads * u->blocks, lowest = INT64_MAX, highest = 0;
    for (int64_t i = 0; i < subs; i++) {
        int64_t head = u->head + i / u->blocks, first = (u->block + i % u->blocks) * BLOCK;
        int64_t n = seq->q_len - first < BLOCK ? seq->q_len - first : BLOCK, begin, end;
        float *q_copy = sub + i * BLOCK * (kp + vp + 16);
        q[i] = block_of(&a->q, seq->q_begin + first, n, head * a->head_dim, a->head_dim, bf16, q_copy);
        state[i].o = q_copy + BLOCK * kp;
        state[i].lane = state[i].o + BLOCK * vp;
        memset(state[i].o, 0, (size_t)(n * vp) * sizeof(float));
        memset(state[i].lane, 0, (size_t)(n * 16) * sizeof(float));
        for (int j = 0; j < BLOCK; j++) state[i].largest[j] = MINUS_LARGE;
        attention_visible(a, seq, first, &begin, &end);
        if (begin < lowest) lowest = begin;
        attention_visible(a, seq, first + n - 1, &begin, &end);
        if (end > highest) highest = end;
    }
    for (int64_t key0 = lowest / BLOCK * BLOCK; key0 < highest; key0 += BLOCK) {
        int64_t keys = seq->kv_len - key0 < BLOCK ? seq->kv_len - key0 : BLOCK;
        struct block k =
            block_of(&a->k, seq->kv_begin + key0, keys, u->kv_head * a->head_dim, a->head_dim, bf16, k_copy);
        struct block v = block_of(&a->v, seq->kv_begin + key0, keys, u->kv_head * a->v_dim, a->v_dim, bf16, v_copy);
        transpose_block(kt, &k, keys, a->head_dim, edge);
        for (int64_t i = 0; i < subs; i++) {
            int64_t first = (u->block + i % u->blocks) * BLOCK;
            int64_t n = seq->q_len - first < BLOCK ? seq->q_len - first : BLOCK;
            struct seen seen;
            see(a, seq, first, n, key0, keys, &seen);
            for (int w = 0; w < seen.bands; w++)
                forward_band(a, &seen, &seen.band[w], &q[i], kt, &v, keys, s, &state[i]);
        }
    }
    for (int64_t i = 0; i < subs; i++) {
        int64_t head = u->head + i / u->blocks, first = (u->block + i % u->blocks) * BLOCK;
        finish(a, u, head, first, seq->q_len - first < BLOCK ? seq->q_len - first : BLOCK, &state[i]);
    }
}

// --- backward

static void delta(const struct attention_args *a, int64_t heads, int64_t row) {
    bool bf16 = a->dtype == DTYPE_BF16;
    for (int64_t h = 0; h < heads; h++) {
        const char *o = row_at(&a->o, row, h * a->v_dim, bf16), *d_o = row_at(&a->d_o, row, h * a->v_dim, bf16);
        v16 sum = v16_zero();
        for (int64_t d = 0; d < a->v_dim; d += 16) {
            sum = v16_fma(get16(o, d, a->v_dim - d, bf16), get16(d_o, d, a->v_dim - d, bf16), sum);
        }
        *(float *)(void *)row_at(&a->delta, row, h, false) = v16_sum(sum);
    }
}

// s: products q k become P = e^(score - lse); dp: becomes dS = P (dP - delta) slope scale. `row`: of the block's first
// query.
INLINE void soften_backward(const struct attention_args *a, const struct seen *seen, const struct band *band,
                            int64_t head, int64_t row, float *s, float *dp, const bool all) {
    const v16 one = v16_set1(1.0f), cap = v16_set1(a->soft_cap), scale = v16_set1(a->scale);
    const int64_t col = all ? 0 : band->col, end = all ? BLOCK : band->col + band->cols;
    for (int64_t i = band->row; i < band->row + band->rows; i++) {
        v16 minus_lse = v16_set1(-*(const float *)(const void *)row_at(&a->lse, row + i, head, false));
        v16 mean = v16_set1(*(const float *)(const void *)row_at(&a->delta, row + i, head, false));
        for (int64_t j = col; j < end; j += 16) {
            v16 v = v16_load(s + i * BLOCK + j), factor = scale, p;
            if (a->soft_cap > 0) {
                v16 t = v16_tanh(v16_div(v16_mul(v, scale), cap));
                factor = v16_mul(scale, v16_sub(one, v16_mul(t, t)));
                p = v16_exp(v16_fma(cap, t, minus_lse));
            } else {
                p = v16_exp(v16_fma(v, scale, minus_lse));
            }
            if (!all) p = inside(p, (int)j, seen->begin[i], seen->end[i], v16_zero());
            v16 ds = v16_mul(v16_mul(p, v16_sub(v16_load(dp + i * BLOCK + j), mean)), factor);
            v16_store(s + i * BLOCK + j, p);
            v16_store(dp + i * BLOCK + j, ds);
        }
    }
}

INLINE void write_rows(const struct matrix *to, const float *from, int64_t ld, int64_t row, int64_t n, int64_t col,
                       int64_t dim, bool acc, bool bf16) {
    for (int64_t i = 0; i < n && to->p; i++) {
        char *out = row_at(to, row + i, col, bf16);
        for (int64_t d = 0; d < dim; d += 16) {
            put16_grad(out, d, dim - d, v16_load(from + i * ld + d), acc, bf16);
        }
    }
}

// Where a backward unit keeps its blocks.
struct backward_scratch {
    float *kt, *vt, *s, *dp, *dk, *dv, *k_copy, *q_copy, *v_copy, *o_copy, *edge;
};

static struct backward_scratch backward_layout(float *p, int64_t kp, int64_t vp) {
    struct backward_scratch b;
    b.kt = p, p += kp * BLOCK;
    b.vt = p, p += vp * BLOCK;
    b.s = p, p += BLOCK * BLOCK;
    b.dp = p, p += BLOCK * BLOCK;
    b.dk = p, p += BLOCK * kp;
    b.dv = p, p += BLOCK * vp;
    b.k_copy = p, p += BLOCK * kp;
    b.q_copy = p, p += BLOCK * kp;
    b.v_copy = p, p += BLOCK * vp;
    b.o_copy = p, p += BLOCK * vp;
    b.edge = p;
    return b;
}

// Rows of queries whose bands hold column `col`.
static struct band rows_seeing(const struct seen *seen, int64_t col) {
    struct band r = {.col = col};
    for (int w = 0; w < seen->bands; w++) {
        const struct band *band = &seen->band[w];
        if (col < band->col || col >= band->col + band->cols) continue;
        if (r.rows == 0) r.row = band->row;
        r.rows = band->row + band->rows - r.row;
    }
    return r;
}

// C += A^T B with C's rows over the keys of the block: P^T dO, dS^T Q.
static void add_to_keys(const struct seen *seen, const float *a, const struct block *b, float *c, int64_t ldc,
                        int64_t keys, struct ahead ahead) {
    int64_t step = seen->all ? BLOCK : 16;
    for (int64_t j = 0; j < keys; j += step) {
        struct band rows = rows_seeing(seen, j);
        mm_add_down(&(struct mm){.c = c + j * ldc,
                                 .ldc = ldc,
                                 .a = a + rows.row * BLOCK + j,
                                 .a_k = BLOCK,
                                 .b = b->p + rows.row * b->ld,
                                 .ldb = b->ld,
                                 .m = keys - j < step ? keys - j : step,
                                 .n = ldc,
                                 .k = rows.rows,
                                 .ahead = ahead});
    }
}

// Up to 64 rows of a head's columns that will be used soon.
static struct ahead ahead_of(const struct matrix *m, int64_t row, int64_t n, int64_t head, int64_t dim, bool bf16) {
    int64_t size = bf16 ? 2 : 4;
    return (struct ahead){m->p ? row_at(m, row, head * dim, bf16) : NULL, m->ld * size, n, dim * size};
}

// One head's part of (query block, key block): everything but dq. Leaves dS in x->dp. The next part is that of n
// queries from next_row and next_head, unless that is -1.
static void backward_head(const struct attention_args *a, const struct seen *seen, const struct backward_scratch *x,
                          int64_t head, int64_t row, int64_t n, int64_t keys, int64_t next_head, int64_t next_row) {
    bool bf16 = a->dtype == DTYPE_BF16;
    struct block q = block_of(&a->q, row, n, head * a->head_dim, a->head_dim, bf16, x->q_copy);
    struct block d_o = block_of(&a->d_o, row, n, head * a->v_dim, a->v_dim, bf16, x->o_copy);
    struct ahead dq = ahead_of(&a->dq, row, n, head, a->head_dim, false);
    for (int w = 0; w < seen->bands; w++) {
        const struct band *band = &seen->band[w];
        int64_t corner = band->row * BLOCK + band->col;
        mm_zero(&(struct mm){.c = x->s + corner,
                             .ldc = BLOCK,
                             .a = q.p + band->row * q.ld,
                             .a_row = q.ld,
                             .b = x->kt + band->col,
                             .ldb = BLOCK,
                             .m = band->rows,
                             .n = band->cols,
                             .k = a->head_dim,
                             .ahead = dq});
        mm_zero(&(struct mm){
            .c = x->dp + corner,
            .ldc = BLOCK,
            .a = d_o.p + band->row * d_o.ld,
            .a_row = d_o.ld,
            .b = x->vt + band->col,
            .ldb = BLOCK,
            .m = band->rows,
            .n = band->cols,
            .k = a->v_dim,
        });
        if (seen->all)
            soften_backward(a, seen, band, head, row, x->s, x->dp, true);
        else
            soften_backward(a, seen, band, head, row, x->s, x->dp, false);
    }
    struct ahead next_q = {0}, next_o = {0};
    if (next_head >= 0) {
        next_q = ahead_of(&a->q, next_row, n, next_head, a->head_dim, bf16);
        next_o = ahead_of(&a->d_o, next_row, n, next_head, a->v_dim, bf16);
    }
    if (a->dv.p) add_to_keys(seen, x->s, &d_o, x->dv, attention_padded(a->v_dim), keys, next_q);
    if (a->dk.p) add_to_keys(seen, x->dp, &q, x->dk, attention_padded(a->head_dim), keys, next_o);
}

// dq of one head and query block += dS K, in f32.
static void add_to_queries(const struct attention_args *a, const struct seen *seen, const float *ds,
                           const struct block *k, int64_t head, int64_t row, int64_t keys) {
    for (int w = 0; w < seen->bands; w++) {
        const struct band *band = &seen->band[w];
        int64_t end = band->col + band->cols < keys ? band->col + band->cols : keys;
        mm_add(&(struct mm){.c = (float *)(void *)row_at(&a->dq, row + band->row, head * a->head_dim, false),
                            .ldc = a->dq.ld,
                            .a = ds + band->row * BLOCK + band->col,
                            .a_row = BLOCK,
                            .b = k->p + band->col * k->ld,
                            .ldb = k->ld,
                            .m = band->rows,
                            .n = a->head_dim,
                            .k = end - band->col});
    }
}

static void backward(const struct attention_args *a, const struct attention_unit *u, float *scratch) {
    const struct attention_seq *seq = &u->seq;
    bool bf16 = a->dtype == DTYPE_BF16;
    int64_t kp = attention_padded(a->head_dim), vp = attention_padded(a->v_dim);
    int64_t key0 = u->block * BLOCK, keys = seq->kv_len - key0 < BLOCK ? seq->kv_len - key0 : BLOCK;
    int64_t kv_row = seq->kv_begin + key0;
    struct backward_scratch x = backward_layout(scratch, kp, vp);
    struct block k = block_of(&a->k, kv_row, keys, u->kv_head * a->head_dim, a->head_dim, bf16, x.k_copy);
    struct block v = block_of(&a->v, kv_row, keys, u->kv_head * a->v_dim, a->v_dim, bf16, x.v_copy);
    transpose_block(x.kt, &k, keys, a->head_dim, x.edge);
    transpose_block(x.vt, &v, keys, a->v_dim, x.edge);
    memset(x.dk, 0, (size_t)(BLOCK * kp) * sizeof(float));
    memset(x.dv, 0, (size_t)(BLOCK * vp) * sizeof(float));
    for (int64_t block = 0; block * BLOCK < seq->q_len; block++) {
        int64_t first = block * BLOCK, n = seq->q_len - first < BLOCK ? seq->q_len - first : BLOCK, begin, end;
        int64_t row = seq->q_begin + first;
        attention_visible(a, seq, first, &begin, &end);
        int64_t from = begin / BLOCK;
        attention_visible(a, seq, first + n - 1, &begin, &end);
        if (u->block < from || key0 >= end) continue; // no key of ours is seen from here
        struct seen seen;
        see(a, seq, first, n, key0, keys, &seen);
        for (int64_t head = u->head; head < u->head + u->heads; head++) {
            bool last = head == u->head + u->heads - 1, more = first + 2 * BLOCK <= seq->q_len;
            backward_head(a, &seen, &x, head, row, n, keys,
                          !last  ? head + 1
                          : more ? u->head
                                 : -1,
                          last ? row + BLOCK : row);
            if (!a->dq.p) continue;
            if (head == u->head) attention_wait(&u->progress[block], u->block - from);
            add_to_queries(a, &seen, x.dp, &k, head, row, keys);
        }
        attention_done(&u->progress[block], u->block - from + 1);
    }
    write_rows(&a->dk, x.dk, kp, kv_row, keys, u->kv_head * a->head_dim, a->head_dim, a->acc_k, bf16);
    write_rows(&a->dv, x.dv, vp, kv_row, keys, u->kv_head * a->v_dim, a->v_dim, a->acc_v, bf16);
}

const struct attention_isa VEC_SUFFIX(attention_isa) = {.forward = forward, .backward = backward, .delta = delta};
