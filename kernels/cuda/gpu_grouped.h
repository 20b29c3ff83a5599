// Products of the rows of each expert with matrices of that expert. Rows of one expert stand together: those of expert
// e are offsets[e] .. offsets[e + 1], on the device, and no number of them is known to the host. See gpu.h for the
// rules of launchers. "T" is the activations' type, f32 or bf16; sums are fp32 over k ascending, whatever the tiles.
#pragma once

#include "kernels/cuda/gpu.h"
#include "kernels/cuda/gpu_lora.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { GROUPED_TERMS = 8, GROUPED_TABLES = 4, GROUPED_TABLE = 64 };

struct grouped_rows {
    const int32_t *offsets;
    int64_t offsets_ld;
    int64_t rows;   // S, all experts'
    int begin, end; // the experts of this launch
};

// A_e B_e: the rows of A that are expert e's, times a matrix of that expert.
struct grouped_term {
    const void *a; // (S, k) T
    int64_t a_ld;
    const void *b; // T; expert e's matrix is b + (e - first) step, or, where table >= 0, tables[table][e - begin]
    int64_t b_ld, step;
    int first, table;
    int64_t k;
    struct gpu_mask mask; // p > 0: the product is multiplied by the mask (of C's elements)
};

// C_e [+]= scale sum of terms + bias_e. Also with S = 0, and with no term at all.
struct grouped_product {
    enum dtype dtype;
    struct grouped_rows rows;
    bool b_turned; // B_e is (k, n), else (n, k)
    int64_t n;
    int n_terms;
    struct grouped_term term[GROUPED_TERMS];
    const void *tables[GROUPED_TABLES][GROUPED_TABLE];
    float scale;
    const float *bias; // (E, n), NULL = none
    void *c;           // (S, n) T
    int64_t ldc;
    bool acc;
    float *f; // (S, f_cols) fp32: the first columns of C once more, not rounded; NULL = not wanted
    int64_t ldf, f_cols;
    int64_t low, high; // rows outside of it are zeros in C and left alone in f
};
void gpu_grouped(const struct gpu *g, const struct grouped_product *product);

// G_e += A_e^T B_e for A (S, m), B (S, n): element (i, j) of expert e at g + e step + i row_step + j col_step.
struct grouped_gradient {
    enum dtype dtype;
    struct grouped_rows rows;
    int64_t m, n;
    const void *a, *b; // T
    int64_t a_ld, b_ld;
    float *g;
    int64_t step, row_step, col_step;
};
void gpu_grouped_gradient(const struct gpu *g, const struct grouped_gradient *gradient);

// Blocks of rows of an f32 matrix, filled up with zeros: block i is rows [i rows, (i + 1) rows) of from (rows, cols)
// and becomes (to_rows, to_cols) at to + i to_step. Rows of a block outside of [low, high) become zeros, too.
struct grouped_copy {
    const float *from;
    int64_t from_ld, blocks, rows, cols, low, high, to_rows, to_cols, to_step;
};
void gpu_grouped_copy(const struct gpu *g, const struct grouped_copy *copy, void *to, enum dtype dtype);

#ifdef __cplusplus
}
#endif
