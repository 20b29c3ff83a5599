// Kernels that go over token rows one at a time. rows.c turns an op call into one of these argument blocks and hands
// row ranges to the threads; rows_fast.c does the arithmetic.
#pragma once

#include "kernels/cpu/cpu.h"

// A matrix in host memory as a row kernel sees it; p NULL = absent. Elements are of the block's dtype unless said.
struct matrix {
    char *p;
    int64_t ld;
};

static inline struct matrix matrix_of(const struct cpu_backend *b, const struct tensor *t) {
    return (struct matrix){cpu_at(b, t), t->ld};
}

struct norm_args {
    enum dtype dtype;
    enum norm_kind kind;
    int64_t cols;
    float eps;
    const float *w, *bias;    // bias NULL for none
    struct matrix x, r, s, y; // r and s only where s = x + r is normed
    struct matrix rstd, mean; // f32 columns; absent where nothing is saved (mean: or RMS)
    struct matrix ds, dy;     // backward; each may be absent
    struct matrix dx, dr;     // backward: both get ds + the gradient of the norm; dr absent where it shares dx
    bool acc_x, acc_r;
};

struct glu_args {
    enum dtype dtype;
    enum glu_kind kind;
    int64_t cols;
    struct matrix gate, up, h;
    struct matrix dh, dgate, dup; // backward; dgate may be gate and dup may be up
    bool acc_gate, acc_up;
};

struct rope_args {
    enum dtype dtype;
    enum rope_kind kind;
    int64_t cols;
    int head_dim, rotary_dim;
    struct matrix x, y;      // y may be x
    const int32_t *position; // one per row
    int64_t position_ld;
    const float *table; // (P, >= rotary_dim): cosines, then sines
    int64_t table_ld;
    bool inverse; // turn back: the backward pass
    bool acc;     // add into y
};

struct pass_args { // y = x, y += x, or y = x + r; x and y may differ in dtype where r is absent
    enum dtype x_dtype, y_dtype;
    int64_t cols;
    struct matrix x, r, y;
    bool acc;
};

struct adamw_args {
    float *param, *m, *v;
    const float *sum;
    float scale; // of the gradient: clip / denominator
    float beta1, beta2, one_minus_beta1, one_minus_beta2, eps;
    float decay;      // 1 - lr * weight_decay
    float step_size;  // lr / (1 - beta1^t)
    float sqrt_bias2; // sqrt(1 - beta2^t)
};

// A kernel over rows [begin, end) of the argument block named beside it.
typedef void (*row_kernel)(const void *args, int64_t begin, int64_t end);

struct rows_isa {
    row_kernel norm, norm_again, norm_backward; // norm_args; norm_again: y from x and saved statistics
    row_kernel glu, glu_backward;               // glu_args
    row_kernel rope;                            // rope_args
    row_kernel pass;                            // pass_args
    row_kernel adamw;                           // adamw_args, elements instead of rows
};

// rows.c: NORM and ADD_NORM keep the decoded weight and bias there.
size_t cpu_norm_workspace(const struct op_call *call, bool backward, int threads);
