// Private part of the reference loops: element access for any dtype, weights as doubles.
#pragma once

#include "kernels/alloc.h"
#include "kernels/cpu/cpu.h"

// A tensor in host memory; p NULL = absent.
struct view {
    char *p;
    enum dtype dtype;
    int64_t rows, cols, ld;
};

static inline struct view view_of(const struct cpu_backend *b, const struct tensor *t) {
    return (struct view){cpu_at(b, t), t->dtype, t->rows, t->cols, t->ld};
}

static inline double view_get(const struct view *v, int64_t row, int64_t col) {
    int64_t i = row * v->ld + col;
    switch (v->dtype) {
    case DTYPE_F64: return ((const double *)(const void *)v->p)[i];
    case DTYPE_F32: return (double)((const float *)(const void *)v->p)[i];
    case DTYPE_BF16: return (double)bf16_to_float(((const uint16_t *)(const void *)v->p)[i]);
    case DTYPE_I32: return ((const int32_t *)(const void *)v->p)[i];
    case DTYPE_U32: return ((const uint32_t *)(const void *)v->p)[i];
    case DTYPE_U8: return ((const uint8_t *)(const void *)v->p)[i];
    case DTYPE_NONE: break;
    }
    return 0;
}

static inline int64_t view_int(const struct view *v, int64_t row, int64_t col) {
    return (int64_t)view_get(v, row, col);
}

static inline void view_put(const struct view *v, int64_t row, int64_t col, double x) {
    int64_t i = row * v->ld + col;
    switch (v->dtype) {
    case DTYPE_F64: ((double *)(void *)v->p)[i] = x; break;
    case DTYPE_F32: ((float *)(void *)v->p)[i] = (float)x; break;
    case DTYPE_BF16: ((uint16_t *)(void *)v->p)[i] = bf16_from_float((float)x); break;
    case DTYPE_I32: ((int32_t *)(void *)v->p)[i] = (int32_t)x; break;
    case DTYPE_U32: ((uint32_t *)(void *)v->p)[i] = (uint32_t)x; break;
    case DTYPE_U8: ((uint8_t *)(void *)v->p)[i] = (uint8_t)x; break;
    case DTYPE_NONE: break;
    }
}

// A gradient: stored, or added to what is there.
static inline void view_grad(const struct view *v, int64_t row, int64_t col, double x, bool acc) {
    if (v->p) view_put(v, row, col, acc ? view_get(v, row, col) + x : x);
}

static inline bool same_place(const struct tensor *a, const struct tensor *b) {
    return tensor_present(a) && tensor_present(b) && a->offset == b->offset;
}

// One row of a weight as doubles; `scratch` holds `cols` floats.
static inline void weight_row(const struct weight *w, int64_t row, float *scratch, double *out) {
    weight_decode(w, row, 0, w->cols, scratch);
    for (int64_t i = 0; i < w->cols; i++) out[i] = (double)scratch[i];
}

// reference_linear.c, reference_attention.c
int reference_linear_group(struct cpu_backend *b, const struct op_call *call, struct error *err);
int reference_linear_group_backward(struct cpu_backend *b, const struct op_call *call, struct error *err);
// reference_columns.c
void reference_columns(struct cpu_backend *b, const struct op_call *call);
void reference_columns_backward(struct cpu_backend *b, const struct op_call *call);
int reference_row_norms(struct cpu_backend *b, const struct op_call *call, struct error *err);
// reference_head.c
int reference_embed(struct cpu_backend *b, const struct op_call *call, struct error *err);
int reference_embed_backward(struct cpu_backend *b, const struct op_call *call, struct error *err);
int reference_logits(struct cpu_backend *b, const struct op_call *call, struct error *err);
int reference_token_logprob(struct cpu_backend *b, const struct op_call *call, struct error *err);
int reference_token_logprob_backward(struct cpu_backend *b, const struct op_call *call, struct error *err);
int reference_attention(struct cpu_backend *b, const struct op_call *call, struct error *err);
// reference_moe.c
void reference_gate(struct cpu_backend *b, const struct op_call *call);
void reference_gate_backward(struct cpu_backend *b, const struct op_call *call);
void reference_mla_keys(struct cpu_backend *b, const struct op_call *call);
void reference_mla_keys_backward(struct cpu_backend *b, const struct op_call *call);
int reference_moe_route(struct cpu_backend *b, const struct op_call *call, struct error *err);
int reference_moe_route_backward(struct cpu_backend *b, const struct op_call *call, struct error *err);
void reference_moe_gather(struct cpu_backend *b, const struct op_call *call);
void reference_moe_gather_backward(struct cpu_backend *b, const struct op_call *call);
void reference_moe_combine(struct cpu_backend *b, const struct op_call *call);
void reference_moe_combine_backward(struct cpu_backend *b, const struct op_call *call);
int reference_attention_backward(struct cpu_backend *b, const struct op_call *call, struct error *err);
