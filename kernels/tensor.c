// See tensor.h.
#include "kernels/tensor.h"

#include <assert.h>
#include <string.h>

size_t dtype_size(enum dtype dtype) {
    switch (dtype) {
    case DTYPE_F32:
    case DTYPE_I32:
    case DTYPE_U32: return 4;
    case DTYPE_BF16: return 2;
    case DTYPE_F64: return 8;
    case DTYPE_U8: return 1;
    case DTYPE_NONE: return 0;
    }
    return 0;
}

const char *dtype_name(enum dtype dtype) {
    static const char *const names[] = {"none", "f32", "bf16", "i32", "u32", "f64", "u8"};
    return names[dtype];
}

struct tensor tensor_rows(struct tensor t, int64_t begin, int64_t end) {
    assert(0 <= begin && begin <= end && end <= t.rows);
    t.offset += (size_t)(begin * t.ld) * dtype_size(t.dtype);
    t.rows = end - begin;
    return t;
}

struct tensor tensor_cols(struct tensor t, int64_t begin, int64_t end) {
    assert(0 <= begin && begin <= end && end <= t.cols);
    t.offset += (size_t)begin * dtype_size(t.dtype);
    t.cols = end - begin;
    return t;
}

struct tensor tensor_view(struct tensor flat, int64_t begin, int64_t rows, int64_t cols) {
    assert(flat.rows == 1 && 0 <= begin && begin + rows * cols <= flat.cols);
    flat.offset += (size_t)begin * dtype_size(flat.dtype);
    flat.rows = rows;
    flat.cols = flat.ld = cols;
    return flat;
}

float f16_to_float(uint16_t x) {
    uint32_t sign = (uint32_t)(x & 0x8000u) << 16, exponent = (x >> 10) & 31u, mantissa = x & 1023u, u;
    if (exponent == 31)
        u = sign | 0x7F800000u | mantissa << 13;
    else if (exponent)
        u = sign | (exponent + 112) << 23 | mantissa << 13;
    else { // zero and denormals: mantissa * 2^-24, exact
        float f = (float)mantissa * 0x1p-24f;
        memcpy(&u, &f, 4);
        u |= sign;
    }
    float f;
    memcpy(&f, &u, 4);
    return f;
}

uint16_t f16_from_float(float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    uint32_t sign = (u >> 16) & 0x8000u, magnitude = u & 0x7FFFFFFFu;
    if (magnitude > 0x7F800000u) return (uint16_t)(sign | 0x7E00u);
    if (magnitude >= 0x477FF000u) return (uint16_t)(sign | 0x7C00u); // 65520 and more round to infinity
    if (magnitude < 0x38800000u) { // below 2^-14: a multiple of 2^-24, rounded by the addition of 0.5
        float f;
        memcpy(&f, &magnitude, 4);
        f += 0.5f; // ulp of numbers in [0.5, 1) is 2^-24
        memcpy(&magnitude, &f, 4);
        return (uint16_t)(sign | (magnitude - 0x3F000000u));
    }
    magnitude += 0xFFFu + ((magnitude >> 13) & 1u);
    return (uint16_t)(sign | (magnitude - 0x38000000u) >> 13);
}
