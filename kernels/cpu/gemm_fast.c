// Register tiles of the GEMM, and the passes over rows that go with it. See gemm.h for what each promises.
#include "kernels/cpu/gemm.h"

#include "kernels/cpu/isa.h"
#include "kernels/cpu/vec.h"

#if defined(VEC_AVX512)

// 8 x 48: 24 accumulators, 3 vectors of the panel, one broadcast at a time.
GEMM_INLINE void tile_512(const struct gemm_tile *t, const int rows, const int vectors) {
    __m512 c[GEMM_ROWS][3], w[3];
    __mmask16 mask = (__mmask16)(0xFFFFu >> (16 * vectors - t->n));
    GEMM_UNROLL(8)
    for (int i = 0; i < rows; i++) {
        GEMM_UNROLL(3)
        for (int j = 0; j < vectors; j++) {
            __builtin_prefetch(t->c + i * t->ldc + 16 * j, 1);
            c[i][j] = t->init ? _mm512_maskz_loadu_ps(j == vectors - 1 ? mask : (__mmask16)0xFFFF,
                                                      t->init + i * t->ld_init + 16 * j)
                              : _mm512_setzero_ps();
        }
    }
    int64_t row = t->x_row, step = t->x_k;
    const float *x0 = t->x, *x3 = x0 + 3 * row, *x6 = x0 + 6 * row, *p = t->panel;
    GEMM_UNROLL(4)
    for (int64_t k = t->k; k > 0; k--) {
        GEMM_UNROLL(3)
        for (int j = 0; j < vectors; j++) w[j] = _mm512_loadu_ps(p + 16 * j);
        GEMM_UNROLL(8)
        for (int i = 0; i < rows; i++) {
            __m512 x = _mm512_set1_ps(i < 3 ? x0[i * row] : i < 6 ? x3[(i - 3) * row] : x6[(i - 6) * row]);
            GEMM_UNROLL(3)
            for (int j = 0; j < vectors; j++) c[i][j] = _mm512_fmadd_ps(x, w[j], c[i][j]);
        }
        x0 += step, x3 += step, x6 += step, p += t->ld_panel;
    }
    GEMM_UNROLL(8)
    for (int i = 0; i < rows; i++) {
        GEMM_UNROLL(3)
        for (int j = 0; j < vectors; j++) {
            _mm512_mask_storeu_ps(t->c + i * t->ldc + 16 * j, j == vectors - 1 ? mask : (__mmask16)0xFFFF, c[i][j]);
        }
    }
}
GEMM_INLINE void tile_rows(const struct gemm_tile *t, const int vectors) {
    switch (t->m) {
    case 1: tile_512(t, 1, vectors); break;
    case 2: tile_512(t, 2, vectors); break;
    case 3: tile_512(t, 3, vectors); break;
    case 4: tile_512(t, 4, vectors); break;
    case 5: tile_512(t, 5, vectors); break;
    case 6: tile_512(t, 6, vectors); break;
    case 7: tile_512(t, 7, vectors); break;
    default: tile_512(t, 8, vectors); break;
    }
}
void gemm_tile_avx512(const struct gemm_tile *t) {
    if (t->n <= 16)
        tile_rows(t, 1);
    else if (t->n <= 32)
        tile_rows(t, 2);
    else
        tile_rows(t, 3);
}

#elif defined(VEC_AVX2)

// 4 x 24 of the tile: 12 accumulators, 3 vectors of the panel, one broadcast: all sixteen registers.
GEMM_INLINE void tile_256(const struct gemm_tile *t, int row, int column, const int rows, const int vectors) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(t->n - column - 8 * (vectors - 1)), lane);
    __m256 c[4][3], w[3];
    float *out = t->c + row * t->ldc + column;
    GEMM_UNROLL(4)
    for (int i = 0; i < rows; i++) {
        GEMM_UNROLL(3)
        for (int j = 0; j < vectors; j++) {
            const float *init = t->init + (row + i) * t->ld_init + column + 8 * j;
            c[i][j] = !t->init           ? _mm256_setzero_ps()
                      : j == vectors - 1 ? _mm256_maskload_ps(init, mask)
                                         : _mm256_loadu_ps(init);
        }
    }
    int64_t ldx = t->x_row, step = t->x_k;
    const float *x = t->x + row * ldx, *p = t->panel + column;
    GEMM_UNROLL(4)
    for (int64_t k = t->k; k > 0; k--) {
        GEMM_UNROLL(3)
        for (int j = 0; j < vectors; j++) w[j] = _mm256_loadu_ps(p + 8 * j);
        GEMM_UNROLL(4)
        for (int i = 0; i < rows; i++) {
            __m256 b = _mm256_broadcast_ss(x + i * ldx);
            GEMM_UNROLL(3)
            for (int j = 0; j < vectors; j++) c[i][j] = _mm256_fmadd_ps(b, w[j], c[i][j]);
        }
        x += step, p += t->ld_panel;
    }
    GEMM_UNROLL(4)
    for (int i = 0; i < rows; i++) {
        GEMM_UNROLL(3)
        for (int j = 0; j < vectors; j++) {
            if (j == vectors - 1)
                _mm256_maskstore_ps(out + i * t->ldc + 8 * j, mask, c[i][j]);
            else
                _mm256_storeu_ps(out + i * t->ldc + 8 * j, c[i][j]);
        }
    }
}
GEMM_INLINE void tile_columns(const struct gemm_tile *t, int row, const int rows) {
    for (int column = 0; column < t->n; column += 24) {
        if (t->n - column > 16)
            tile_256(t, row, column, rows, 3);
        else if (t->n - column > 8)
            tile_256(t, row, column, rows, 2);
        else
            tile_256(t, row, column, rows, 1);
    }
}
void gemm_tile_avx2(const struct gemm_tile *t) {
    int row = 0;
    for (; row + 4 <= t->m; row += 4) tile_columns(t, row, 4);
    switch (t->m - row) {
    case 1: tile_columns(t, row, 1); break;
    case 2: tile_columns(t, row, 2); break;
    case 3: tile_columns(t, row, 3); break;
    default: break;
    }
}

#else

void gemm_tile_c(const struct gemm_tile *t) {
    for (int i = 0; i < t->m; i++) {
        float c[GEMM_COLS] = {0};
        if (t->init) memcpy(c, t->init + i * t->ld_init, (size_t)t->n * sizeof(float));
        for (int64_t k = 0; k < t->k; k++) {
            float x = t->x[i * t->x_row + k * t->x_k];
            const float *w = t->panel + k * t->ld_panel;
            for (int j = 0; j < t->n; j++) c[j] = fmaf(x, w[j], c[j]);
        }
        memcpy(t->c + i * t->ldc, c, (size_t)t->n * sizeof(float));
    }
}

#endif

// --- bf16 copies

void VEC_SUFFIX(gemm_from_bf16)(float *out, const uint16_t *x, int64_t n, bool swap) {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) v16_store(out + i, v16_load_bf16(x + i));
    for (; i < n; i++) out[i] = bf16_to_float(x[i]);
    for (i = 0; swap && i + 1 < n; i += 2) {
        float odd = out[i + 1];
        out[i + 1] = out[i], out[i] = odd;
    }
}

void VEC_SUFFIX(gemm_to_bf16)(uint16_t *out, const float *x, int64_t n) {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) v16_store_bf16(out + i, v16_load(x + i));
    for (; i < n; i++) out[i] = bf16_from_float(x[i]);
}

void VEC_SUFFIX(gemm_round_panel)(float *panel, int64_t k) {
    uint16_t a[16], b[16];
    for (int64_t i = 0; i < k; i += 2, panel += 2 * GEMM_COLS) {
        for (int j = 0; j < GEMM_COLS; j += 16) {
            v16_store_bf16(a, v16_load(panel + j));
            v16_store_bf16(b, v16_load(panel + GEMM_COLS + j));
            v16_store(panel + j, v16_load_bf16(b));
            v16_store(panel + GEMM_COLS + j, v16_load_bf16(a));
        }
    }
}

// --- head: rows of logits. Tails are padded to whole vectors, so that the lanes are the same everywhere.

GEMM_INLINE v16 load_padded(const float *z, int64_t n, float pad) { // n < 16
    float t[16];
    for (int i = 0; i < 16; i++) t[i] = i < n ? z[i] : pad;
    return v16_load(t);
}
GEMM_INLINE v16 capped(v16 z, float scale, float cap) {
    z = v16_mul(z, v16_set1(scale));
    if (cap == 0.0f) return z;
    return v16_mul(v16_tanh(v16_div(z, v16_set1(cap))), v16_set1(cap));
}

void VEC_SUFFIX(gemm_cap_row)(float *z, int64_t n, float scale, float cap) {
    if (scale == 1.0f && cap == 0.0f) return;
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) v16_store(z + i, capped(v16_load(z + i), scale, cap));
    if (i < n) v16_store_n(z + i, capped(load_padded(z + i, n - i, 0.0f), scale, cap), (int)(n - i));
}

// Sums of 1024 numbers are added up before they meet the total, which keeps the rounding error of long rows small.
void VEC_SUFFIX(gemm_softmax_row)(const float *z, int64_t n, float *largest, float *sum) {
    v16 top = v16_set1(-INFINITY), total = v16_zero();
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) top = v16_max(v16_load(z + i), top); // passes over NaN, which the sum then shows
    if (i < n) top = v16_max(load_padded(z + i, n - i, -INFINITY), top);
    *largest = v16_largest(top);
    v16 shift = v16_set1(*largest);
    for (i = 0; i + 16 <= n;) {
        v16 part = v16_zero();
        int64_t end = n - i < 1024 ? n : i + 1024;
        for (; i + 16 <= end; i += 16) part = v16_add(part, v16_exp(v16_sub(v16_load(z + i), shift)));
        total = v16_add(total, part);
    }
    if (i < n) total = v16_add(total, v16_exp(v16_sub(load_padded(z + i, n - i, -INFINITY), shift)));
    *sum = v16_sum(total);
}

GEMM_INLINE v16 softmax_bwd(v16 z, v16 largest, v16 coefficient, float scale, float cap) {
    v16 g = v16_mul(coefficient, v16_exp(v16_sub(z, largest)));
    if (cap != 0.0f) {
        v16 t = v16_div(z, v16_set1(cap));
        g = v16_mul(g, v16_sub(v16_set1(1.0f), v16_mul(t, t)));
    }
    return scale == 1.0f ? g : v16_mul(g, v16_set1(scale));
}

void VEC_SUFFIX(gemm_softmax_bwd_row)(float *z, int64_t n, float largest, float coefficient, float scale, float cap) {
    v16 top = v16_set1(largest), c = v16_set1(coefficient);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) v16_store(z + i, softmax_bwd(v16_load(z + i), top, c, scale, cap));
    if (i < n) v16_store_n(z + i, softmax_bwd(load_padded(z + i, n - i, largest), top, c, scale, cap), (int)(n - i));
}

const struct gemm_isa VEC_SUFFIX(gemm_isa) = {
    .tile = VEC_SUFFIX(gemm_tile),
    .decoders = VEC_SUFFIX(gemm_decoders),
    .table_decoders = VEC_SUFFIX(gemm_table_decoders),
    .dropout = VEC_SUFFIX(gemm_dropout),
    .from_bf16 = VEC_SUFFIX(gemm_from_bf16),
    .to_bf16 = VEC_SUFFIX(gemm_to_bf16),
    .round_panel = VEC_SUFFIX(gemm_round_panel),
    .cap_row = VEC_SUFFIX(gemm_cap_row),
    .softmax_row = VEC_SUFFIX(gemm_softmax_row),
    .softmax_bwd_row = VEC_SUFFIX(gemm_softmax_bwd_row),
};
