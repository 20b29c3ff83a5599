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
    int64_t cols; // of a group
    int groups;   // in a row, each with its own statistics
    int64_t step; // from one group's weights to the next: cols, or 0 where all share them
    float eps, scale;
    const float *w, *bias; // bias NULL for none
    float *dbias;          // backward: (bias_cols) of a trained one, NULL for none
    int64_t rows, bias_cols;
    struct matrix x, r, s, y; // r and s only where s = x + scale r is normed
    struct matrix rstd, mean; // f32 (T, groups); absent where nothing is saved (mean: or RMS)
    struct matrix ds, dy;     // backward; each may be absent
    struct matrix dx, dr;     // backward: both get ds + the gradient of the norm; dr absent where it shares dx
    bool acc_x, acc_r;
};

struct glu_args {
    enum dtype dtype;
    enum act_kind kind;
    float limit, alpha;
    int64_t cols;
    struct matrix gate, up, h;    // up absent: gate and up alternate in gate, and their gradients in dgate
    struct matrix dh, dgate, dup; // backward; dgate may be gate and dup may be up
    bool acc_gate, acc_up;
};

struct act_args {
    enum dtype dtype;
    enum act_kind kind;
    float limit;
    int64_t cols;
    struct matrix x, y;
    struct matrix dy, dx; // backward; dx may be x
    bool acc;
};

struct rope_args {
    enum dtype dtype;
    enum rope_kind kind;
    int64_t cols;
    int head_dim, rotary_dim, first;
    struct matrix x, y;      // y may be x
    const int32_t *position; // one per row
    int64_t position_ld;
    const float *table; // (P, >= rotary_dim): cosines, then sines
    int64_t table_ld;
    bool inverse; // turn back: the backward pass
    bool acc;     // add into y
};

struct pass_args { // y = scale x, y += scale x, or y = x + scale r; x and y may differ in dtype where r is absent
    enum dtype x_dtype, y_dtype;
    int64_t cols;
    struct matrix x, r, y;
    float scale;
    bool acc;
};

struct gate_args { // y = sigmoid(g) x
    enum dtype dtype;
    int64_t cols;
    struct matrix x, g, y;
    struct matrix dy, dx, dg; // backward; dx and dg may be absent
    bool acc_x, acc_g;
};

struct mla_args { // k = per head {first `nope` of its part of kv, r}, v = the rest of kv
    enum dtype dtype;
    int64_t heads, nope, v_dim, r_cols;
    struct matrix kv, r, k, v; // backward: their gradients; kv and r, or k and v, may be absent
    bool acc_kv, acc_r;
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
    row_kernel act, act_backward;               // act_args
    row_kernel rope;                            // rope_args
    row_kernel gate, gate_backward;             // gate_args
    row_kernel mla, mla_backward;               // mla_args
    row_kernel pass;                            // pass_args
    row_kernel adamw;                           // adamw_args, elements instead of rows
};

// rows.c: gives `rows` rows to the threads, in ranges that depend on `cols` alone.
void rows_run(struct cpu_backend *b, row_kernel kernel, const void *args, int64_t rows, int64_t cols);
// rows.c: NORM and ADD_NORM keep the decoded weight and bias there.
size_t cpu_norm_workspace(const struct op_call *call, bool backward, int threads);
