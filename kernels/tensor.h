// A tensor is a place in the arena: no pointers above the backend, so that the same description serves host and GPU.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum dtype {
    DTYPE_NONE, // no tensor here
    DTYPE_F32,
    DTYPE_BF16,
    DTYPE_I32,
    DTYPE_U32,
    DTYPE_F64, // sums that are read by the host, and the gradient checker
    DTYPE_U8,
};
size_t dtype_size(enum dtype dtype);
const char *dtype_name(enum dtype dtype);

struct tensor {
    enum dtype dtype;
    uint32_t buffer; // the plan's request this lies in (plan.h); 0 for none
    int64_t rows, cols;
    int64_t ld;    // elements from one row to the next; every op honours it
    size_t offset; // bytes from the start of the arena
};

static inline bool tensor_present(const struct tensor *t) {
    return t->dtype != DTYPE_NONE;
}
static inline size_t tensor_bytes(const struct tensor *t) {
    return t->rows == 0 ? 0 : (size_t)((t->rows - 1) * t->ld + t->cols) * dtype_size(t->dtype);
}
// Rows [begin, end) of a tensor; columns [begin, end) of a tensor.
struct tensor tensor_rows(struct tensor t, int64_t begin, int64_t end);
struct tensor tensor_cols(struct tensor t, int64_t begin, int64_t end);
// Elements [begin, begin + rows*cols) of a one-row tensor, seen as a matrix.
struct tensor tensor_view(struct tensor flat, int64_t begin, int64_t rows, int64_t cols);

// bf16 is the upper half of a float; conversion rounds to nearest even, NaN stays NaN.
static inline float bf16_to_float(uint16_t x) {
    union {
        uint32_t u;
        float f;
    } v = {.u = (uint32_t)x << 16};
    return v.f;
}
static inline uint16_t bf16_from_float(float x) {
    union {
        float f;
        uint32_t u;
    } v = {.f = x};
    if ((v.u & 0x7FFFFFFFu) > 0x7F800000u) return (uint16_t)((v.u >> 16) | 0x40u);
    return (uint16_t)((v.u + 0x7FFFu + ((v.u >> 16) & 1u)) >> 16);
}
float f16_to_float(uint16_t x);   // IEEE binary16, exact
uint16_t f16_from_float(float x); // nearest even, overflow to infinity
