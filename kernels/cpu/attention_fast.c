// Attention, one unit at a time: see attention.h. Scores S = scale Q K^T of 64 x 64 blocks are computed with lanes over
// keys, from a transposed copy of the keys; everything else has lanes over head dims. Each element of a product takes
// one fused multiply-add after another in ascending inner index, so all instruction sets give the same bits.
#include "kernels/cpu/attention.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/scalar.h"

#include <sched.h>
#include <stdbool.h>

#include "kernels/cpu/vec.h"

#define INLINE static inline __attribute__((always_inline))
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

// C (m x n) = start + A B. A's element (i, k) is a[i * a_row + k * a_k], one of the strides being 1. B and C rows are
// contiguous; B is readable up to whole vectors. C starts at 0, at the old C, or at rows of C times row_scale[i].
enum mm_start { MM_ZERO, MM_ADD, MM_SCALED };
struct mm {
    float *c;
    const float *a, *b, *row_scale;
    int64_t ldc, a_row, a_k, ldb;
    int64_t m, n, k;
    enum mm_start start;
    float scale; // of the result; used with MM_ZERO
};

INLINE void mm_tile(const struct mm *p, int64_t i, int64_t j, const int rows, const int vecs, bool down) {
    v16 c[MM_ROWS][MM_VECS];
    int64_t tail = p->n - j; // columns of C that exist: fewer than a vector only where vecs is 1
    float *out = p->c + i * p->ldc + j;
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int v = 0; v < vecs; v++) {
            if (p->start == MM_ZERO)
                c[r][v] = v16_zero();
            else if (tail >= 16)
                c[r][v] = v16_load(out + r * p->ldc + 16 * v);
            else
                c[r][v] = v16_load_n(out + r * p->ldc, (int)tail);
            if (p->start == MM_SCALED) c[r][v] = v16_mul(c[r][v], v16_set1(p->row_scale[i + r]));
        }
    }
    const float *b = p->b + j, *a = down ? p->a + i : p->a + i * p->a_row;
    const int64_t step = down ? p->a_k : 1, across = down ? 1 : p->a_row;
    for (int64_t k = 0; k < p->k; k++) {
        v16 w[MM_VECS];
        UNROLL for (int v = 0; v < vecs; v++) w[v] = v16_load(b + 16 * v);
        UNROLL for (int r = 0; r < rows; r++) {
            v16 x = v16_set1(a[r * across]);
            UNROLL for (int v = 0; v < vecs; v++) c[r][v] = v16_fma(x, w[v], c[r][v]);
        }
        a += step;
        b += p->ldb;
    }
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int v = 0; v < vecs; v++) {
            if (p->start == MM_ZERO) c[r][v] = v16_mul(c[r][v], v16_set1(p->scale));
            if (tail >= 16)
                v16_store(out + r * p->ldc + 16 * v, c[r][v]);
            else
                v16_store_n(out + r * p->ldc, c[r][v], (int)tail);
        }
    }
}

// All columns of `rows` rows of C.
INLINE void mm_rows(const struct mm *p, int64_t i, const int rows, bool down) {
    int64_t j = 0;
    for (; j + 16 * MM_VECS <= p->n; j += 16 * MM_VECS) mm_tile(p, i, j, rows, MM_VECS, down);
    for (; j < p->n; j += 16) mm_tile(p, i, j, rows, 1, down);
}

INLINE void mm_all(const struct mm *p, bool down) {
    int64_t i = 0;
    for (; i + MM_ROWS <= p->m; i += MM_ROWS) mm_rows(p, i, MM_ROWS, down);
    for (; MM_ROWS > 4 && i + 4 <= p->m; i += 4) mm_rows(p, i, 4, down);
    for (; i + 2 <= p->m; i += 2) mm_rows(p, i, 2, down);
    for (; i < p->m; i++) mm_rows(p, i, 1, down);
}

static void mm_across(const struct mm *p) {
    mm_all(p, false);
} // a_k is 1
static void mm_down(const struct mm *p) {
    mm_all(p, true);
} // a_row is 1

// --- blocks of the operands

// A block as f32: in place, or a copy.
struct block {
    const float *p;
    int64_t ld;
};

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

// Which columns [begin, end) of a key block each of `n` query rows sees.
struct seen {
    int begin[BLOCK], end[BLOCK]; // set unless `all`
    bool any, all;                // some row may see a key; every row sees all 64
};

static void see(const struct attention_args *a, const struct attention_seq *s, int64_t first, int64_t n, int64_t key0,
                int64_t keys, struct seen *seen) {
    int64_t begin, end, last_begin, last_end;
    attention_visible(a, s, first, &begin, &end);
    attention_visible(a, s, first + n - 1, &last_begin, &last_end);
    seen->all = keys == BLOCK && last_begin <= key0 && end >= key0 + keys; // both ends grow from row to row
    seen->any = begin < key0 + keys && last_end > key0;
    if (seen->all || !seen->any) return;
    for (int64_t i = 0; i < n; i++) {
        attention_visible(a, s, first + i, &begin, &end);
        begin = begin > key0 ? begin - key0 : 0;
        end = end < key0 + keys ? end - key0 : keys;
        seen->begin[i] = (int)(begin < end ? begin : 0);
        seen->end[i] = (int)(begin < end ? end : 0);
    }
}

// a inside [begin, end) of the block's columns, `other` elsewhere; lane 0 is column j.
INLINE v16 inside(v16 a, int j, int begin, int end, v16 other) {
    static const float number[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    v16 column = v16_add(v16_load(number), v16_set1((float)j));
    a = v16_if_less(column, v16_set1((float)begin), other, a);
    return v16_if_less(column, v16_set1((float)end), a, other);
}

INLINE v16 capped(v16 s, float cap) {
    return v16_mul(v16_set1(cap), v16_tanh(v16_div(s, v16_set1(cap))));
}

// --- forward

// The running softmax of up to 64 queries.
struct rows_state {
    float *o;    // [BLOCK][padded v_dim], not divided by the sum yet
    float *lane; // [BLOCK][16]: sums of e^(s - largest), lane by lane
    float largest[BLOCK];
};

// Scores become e^(score - largest); alpha: what earlier sums are multiplied by. `n` is at most BLOCK.
static void soften(const struct attention_args *a, const struct seen *seen, int64_t n, float *s,
                   struct rows_state *state, float *alpha) {
    float largest[BLOCK];
    const v16 minus_infinity = v16_set1(-INFINITY);
    for (int64_t i = 0; i < n; i++) {
        float *row = s + i * BLOCK;
        v16 best = minus_infinity;
        for (int j = 0; j < BLOCK; j += 16) {
            v16 v = v16_load(row + j);
            if (a->soft_cap > 0) v = capped(v, a->soft_cap);
            if (!seen->all) v = inside(v, j, seen->begin[i], seen->end[i], minus_infinity);
            if (a->soft_cap > 0 || !seen->all) v16_store(row + j, v);
            best = v16_max(best, v);
        }
        float top = v16_largest(best);
        largest[i] = top > state->largest[i] ? top : state->largest[i];
    }
    for (int64_t i = n; i < BLOCK; i++) largest[i] = state->largest[i];
    for (int i = 0; i < BLOCK && i < n; i += 16) {
        v16_store(alpha + i, v16_exp(v16_sub(v16_load(state->largest + i), v16_load(largest + i))));
    }
    memcpy(state->largest, largest, sizeof largest);
    for (int64_t i = 0; i < n; i++) {
        float *row = s + i * BLOCK;
        v16 top = v16_set1(largest[i]), p[4];
        UNROLL for (int j = 0; j < 4; j++) {
            p[j] = v16_exp(v16_sub(v16_load(row + 16 * j), top));
            v16_store(row + 16 * j, p[j]);
        }
        v16 sum = v16_add(v16_add(p[0], p[1]), v16_add(p[2], p[3]));
        v16_store(state->lane + i * 16, v16_fma(v16_load(state->lane + i * 16), v16_set1(alpha[i]), sum));
    }
}

// Divides by the sum, adds the sink to it, writes o and lse.
static void finish(const struct attention_args *a, const struct attention_unit *u, int64_t head, int64_t first,
                   int64_t n, struct rows_state *state) {
    bool bf16 = a->dtype == DTYPE_BF16;
    int64_t padded = attention_padded(a->v_dim);
    for (int64_t i = 0; i < n; i++) {
        int64_t row = u->seq.q_begin + first + i;
        float sum = v16_sum(v16_load(state->lane + i * 16)), top = state->largest[i], shrink = 1.0f;
        bool none = top == MINUS_LARGE; // no key is visible
        if (a->sinks && !none) {
            float sink = a->sinks[head], both[16] = {0};
            float larger = sink > top ? sink : top;
            both[0] = top - larger;
            both[1] = sink - larger;
            v16_store(both, v16_exp(v16_load(both)));
            shrink = both[0];
            sum = sum * shrink + both[1];
            top = larger;
        }
        v16 factor = v16_set1(none ? 0.0f : shrink / sum);
        for (int64_t d = 0; d < a->v_dim; d += 16) {
            put16(row_at(&a->o, row, head * a->v_dim, bf16), d, a->v_dim - d,
                  v16_mul(v16_load(state->o + i * padded + d), factor), bf16);
        }
        if (a->lse.p) {
            *(float *)(void *)row_at(&a->lse, row, head, false) = none ? 0.0f : top + (float)det_log((double)sum);
        }
    }
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
        memset(state[i].o, 0, (size_t)(BLOCK * (vp + 16)) * sizeof(float));
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
            float alpha[BLOCK];
            see(a, seq, first, n, key0, keys, &seen);
            if (!seen.any) continue;
            mm_across(&(struct mm){.c = s,
                                   .ldc = BLOCK,
                                   .a = q[i].p,
                                   .a_row = q[i].ld,
                                   .b = kt,
                                   .ldb = BLOCK,
                                   .m = n,
                                   .n = BLOCK,
                                   .k = a->head_dim,
                                   .start = MM_ZERO,
                                   .scale = a->scale});
            soften(a, &seen, n, s, &state[i], alpha);
            mm_across(&(struct mm){.c = state[i].o,
                                   .ldc = vp,
                                   .a = s,
                                   .a_row = BLOCK,
                                   .b = v.p,
                                   .ldb = v.ld,
                                   .m = n,
                                   .n = vp,
                                   .k = keys,
                                   .start = MM_SCALED,
                                   .row_scale = alpha});
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

// s: scores become P = e^(s - lse); dp: becomes dS = P (dP - delta) slope scale.
static void soften_backward(const struct attention_args *a, const struct seen *seen, int64_t head, int64_t row,
                            int64_t n, float *s, float *dp) {
    v16 one = v16_set1(1.0f);
    for (int64_t i = 0; i < n; i++) {
        v16 lse = v16_set1(*(const float *)(const void *)row_at(&a->lse, row + i, head, false));
        v16 mean = v16_set1(*(const float *)(const void *)row_at(&a->delta, row + i, head, false));
        for (int j = 0; j < BLOCK; j += 16) {
            v16 v = v16_load(s + i * BLOCK + j), factor = v16_set1(a->scale);
            if (a->soft_cap > 0) {
                v16 t = v16_tanh(v16_div(v, v16_set1(a->soft_cap)));
                factor = v16_mul(factor, v16_sub(one, v16_mul(t, t)));
                v = v16_mul(v16_set1(a->soft_cap), t);
            }
            v16 p = v16_exp(v16_sub(v, lse));
            if (!seen->all) p = inside(p, j, seen->begin[i], seen->end[i], v16_zero());
            v16 ds = v16_mul(v16_mul(p, v16_sub(v16_load(dp + i * BLOCK + j), mean)), factor);
            v16_store(s + i * BLOCK + j, p);
            v16_store(dp + i * BLOCK + j, ds);
        }
    }
}

// Until `blocks` key blocks have been added to this query block's dq. Whoever adds them took its unit from the queue
// before us and needs nothing of ours, so this ends.
static void wait_for(atomic_int *progress, int64_t blocks) {
    for (int spins = 0; atomic_load_explicit(progress, memory_order_acquire) < blocks; spins++) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
        if (spins >= 1000) sched_yield();
    }
}

INLINE void write_rows(const struct matrix *to, const float *from, int64_t ld, int64_t row, int64_t n, int64_t col,
                       int64_t dim, bool acc, bool bf16) {
    for (int64_t i = 0; i < n && to->p; i++) {
        char *out = row_at(to, row + i, col, bf16);
        for (int64_t d = 0; d < dim; d += 16) {
            v16 v = v16_load(from + i * ld + d);
            if (acc) v = v16_add(get16(out, d, dim - d, bf16), v);
            put16(out, d, dim - d, v, bf16);
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

// One head's part of (query block, key block): everything but dq. Leaves dS in x->dp.
static void backward_head(const struct attention_args *a, const struct seen *seen, const struct backward_scratch *x,
                          int64_t head, int64_t row, int64_t n, int64_t keys) {
    bool bf16 = a->dtype == DTYPE_BF16;
    int64_t kp = attention_padded(a->head_dim), vp = attention_padded(a->v_dim);
    struct block q = block_of(&a->q, row, n, head * a->head_dim, a->head_dim, bf16, x->q_copy);
    struct block d_o = block_of(&a->d_o, row, n, head * a->v_dim, a->v_dim, bf16, x->o_copy);
    mm_across(&(struct mm){.c = x->s,
                           .ldc = BLOCK,
                           .a = q.p,
                           .a_row = q.ld,
                           .b = x->kt,
                           .ldb = BLOCK,
                           .m = n,
                           .n = BLOCK,
                           .k = a->head_dim,
                           .start = MM_ZERO,
                           .scale = a->scale});
    mm_across(&(struct mm){.c = x->dp,
                           .ldc = BLOCK,
                           .a = d_o.p,
                           .a_row = d_o.ld,
                           .b = x->vt,
                           .ldb = BLOCK,
                           .m = n,
                           .n = BLOCK,
                           .k = a->v_dim,
                           .start = MM_ZERO,
                           .scale = 1.0f});
    soften_backward(a, seen, head, row, n, x->s, x->dp);
    if (a->dv.p) {
        mm_down(&(struct mm){.c = x->dv,
                             .ldc = vp,
                             .a = x->s,
                             .a_k = BLOCK,
                             .b = d_o.p,
                             .ldb = d_o.ld,
                             .m = keys,
                             .n = vp,
                             .k = n,
                             .start = MM_ADD});
    }
    if (a->dk.p) {
        mm_down(&(struct mm){.c = x->dk,
                             .ldc = kp,
                             .a = x->dp,
                             .a_k = BLOCK,
                             .b = q.p,
                             .ldb = q.ld,
                             .m = keys,
                             .n = kp,
                             .k = n,
                             .start = MM_ADD});
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
            backward_head(a, &seen, &x, head, row, n, keys);
            if (!a->dq.p) continue;
            if (head == u->head) wait_for(&u->progress[block], u->block - from);
            mm_across(&(struct mm){.c = (float *)(void *)row_at(&a->dq, row, head * a->head_dim, false),
                                   .ldc = a->dq.ld,
                                   .a = x.dp,
                                   .a_row = BLOCK,
                                   .b = k.p,
                                   .ldb = k.ld,
                                   .m = n,
                                   .n = a->head_dim,
                                   .k = keys,
                                   .start = MM_ADD});
        }
        atomic_store_explicit(&u->progress[block], (int)(u->block - from) + 1, memory_order_release);
    }
    write_rows(&a->dk, x.dk, kp, kv_row, keys, u->kv_head * a->head_dim, a->head_dim, a->acc_k, bf16);
    write_rows(&a->dv, x.dv, vp, kv_row, keys, u->kv_head * a->v_dim, a->v_dim, a->acc_v, bf16);
}

const struct attention_isa VEC_SUFFIX(attention_isa) = {.forward = forward, .backward = backward, .delta = delta};
