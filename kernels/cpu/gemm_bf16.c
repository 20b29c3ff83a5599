// Products of bf16 numbers with AVX512-BF16: vdpbf16ps, two fused multiply-adds per lane, odd element first. The only
// file compiled with -mavx512bf16; without the instruction, gemm.c gets the same bits from fp32 tiles.
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/isa.h"

#include <immintrin.h>
#include <string.h>

GEMM_INLINE __m512bh pair_everywhere(const uint16_t *x) {
    int pair;
    memcpy(&pair, x, 4);
    return (__m512bh)_mm512_set1_epi32(pair);
}

// As tile_512 in gemm_fast.c: 8 x 48 in registers.
GEMM_INLINE void tile_bf16(const struct gemm_tile_bf16 *t, const int rows, const int vectors) {
    __m512 c[GEMM_ROWS][3];
    __m512bh w[3];
    __mmask16 mask = (__mmask16)(0xFFFFu >> (16 * vectors - t->n));
    GEMM_UNROLL(8)
    for (int i = 0; i < rows; i++) {
        GEMM_UNROLL(3)
        for (int j = 0; j < vectors; j++) {
            __builtin_prefetch(t->c + i * t->ldc + 16 * j, 1);
            __mmask16 lanes = j == vectors - 1 ? mask : (__mmask16)0xFFFF;
            c[i][j] = t->init ? _mm512_maskz_loadu_ps(lanes, t->init + i * t->ld_init + 16 * j) : _mm512_setzero_ps();
        }
    }
    int64_t row = t->x_row;
    const uint16_t *x0 = t->x, *x3 = x0 + 3 * row, *x6 = x0 + 6 * row;
    const uint32_t *p = t->panel;
    GEMM_UNROLL(4)
    for (int64_t k = t->pairs; k > 0; k--) {
        GEMM_UNROLL(3)
        for (int j = 0; j < vectors; j++) w[j] = (__m512bh)_mm512_loadu_si512(p + 16 * j);
        GEMM_UNROLL(8)
        for (int i = 0; i < rows; i++) {
            __m512bh x = pair_everywhere(i < 3 ? x0 + i * row : i < 6 ? x3 + (i - 3) * row : x6 + (i - 6) * row);
            GEMM_UNROLL(3)
            for (int j = 0; j < vectors; j++) c[i][j] = _mm512_dpbf16_ps(c[i][j], x, w[j]);
        }
        x0 += 2, x3 += 2, x6 += 2, p += GEMM_COLS;
    }
    GEMM_UNROLL(8)
    for (int i = 0; i < rows; i++) {
        GEMM_UNROLL(3)
        for (int j = 0; j < vectors; j++) {
            __mmask16 lanes = j == vectors - 1 ? mask : (__mmask16)0xFFFF;
            _mm512_mask_storeu_ps(t->c + i * t->ldc + 16 * j, lanes, c[i][j]);
        }
    }
}
GEMM_INLINE void tile_rows(const struct gemm_tile_bf16 *t, const int vectors) {
    switch (t->m) {
    case 1: tile_bf16(t, 1, vectors); break;
    case 2: tile_bf16(t, 2, vectors); break;
    case 3: tile_bf16(t, 3, vectors); break;
    case 4: tile_bf16(t, 4, vectors); break;
    case 5: tile_bf16(t, 5, vectors); break;
    case 6: tile_bf16(t, 6, vectors); break;
    case 7: tile_bf16(t, 7, vectors); break;
    default: tile_bf16(t, 8, vectors); break;
    }
}
static void gemm_tile_bf16(const struct gemm_tile_bf16 *t) {
    if (t->n <= 16)
        tile_rows(t, 1);
    else if (t->n <= 32)
        tile_rows(t, 2);
    else
        tile_rows(t, 3);
}

// Rows 2i and 2i + 1 of the panel, rounded to nearest even, as pairs.
static void gemm_pack_bf16(uint32_t *pairs, const float *panel, int64_t k) {
    static const uint16_t interleave[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                            8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i order = _mm512_loadu_si512(interleave);
    for (int64_t i = 0; i < k; i += 2, panel += 2 * GEMM_COLS, pairs += GEMM_COLS) {
        for (int j = 0; j < GEMM_COLS; j += 16) {
            __m512bh both = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(panel + GEMM_COLS + j), _mm512_loadu_ps(panel + j));
            _mm512_storeu_si512(pairs + j, _mm512_permutexvar_epi16(order, (__m512i)both));
        }
    }
}

const struct gemm_isa gemm_isa_avx512bf16 = {
    .tile = gemm_tile_avx512,
    .decoders = gemm_decoders_avx512,
    .table_decoders = gemm_table_decoders_avx512,
    .dropout = gemm_dropout_avx512,
    .from_bf16 = gemm_from_bf16_avx512,
    .to_bf16 = gemm_to_bf16_avx512,
    .round_panel = gemm_round_panel_avx512,
    .tile_bf16 = gemm_tile_bf16,
    .pack_bf16 = gemm_pack_bf16,
    .cap_row = gemm_cap_row_avx512,
    .softmax_row = gemm_softmax_row_avx512,
    .softmax_bwd_row = gemm_softmax_bwd_row_avx512,
};
