// Stands in for gpu_decode.cu until that is there: F32, F16, BF16 and Q8_0, byte by byte.
#include "kernels/cuda/gpu_decode.h"

#include "kernels/cuda/launch.cuh"

namespace {
struct stored {
    const uint8_t *data;
    size_t stride;
    int64_t rows, cols;
    int format;
};

__device__ float half_at(const uint8_t *p) {
    unsigned h = p[0] | (unsigned)p[1] << 8, exponent = h >> 10 & 31, fraction = h & 1023;
    float x = exponent == 0    ? (float)fraction * 0x1p-24f
              : exponent == 31 ? __uint_as_float(0x7F800000u | fraction << 13)
                               : __uint_as_float((exponent + 112) << 23 | fraction << 13);
    return h >> 15 ? -x : x;
}

__device__ float value_at(const stored &s, int64_t row, int64_t col) {
    const uint8_t *p = s.data + (size_t)row * s.stride;
    if (s.format == QUANT_BF16) return __uint_as_float((unsigned)p[2 * col] << 16 | (unsigned)p[2 * col + 1] << 24);
    if (s.format == QUANT_F16) return half_at(p + 2 * col);
    if (s.format == QUANT_Q8_0) {
        p += col / 32 * 34;
        return half_at(p) * (float)(int8_t)p[2 + col % 32];
    }
    p += 4 * col;
    return __uint_as_float(p[0] | (unsigned)p[1] << 8 | (unsigned)p[2] << 16 | (unsigned)p[3] << 24);
}

template <class T> __global__ void standin_kernel(stored s, int64_t first, matrix<const int32_t> ids, matrix<T> out) {
    int64_t row = blockIdx.x, from = ids.p ? ids.at(row, 0) : first + row;
    bool there = from >= 0 && from < s.rows;
    for (int64_t c = threadIdx.x; c < s.cols; c += blockDim.x)
        out.at(row, c) = from_float<T>(there ? value_at(s, from, c) : __uint_as_float(0x7FC00000u));
}

template <class T>
void decode(const struct gpu *g, const struct weight *w, int64_t first, matrix<const int32_t> ids, matrix<T> out) {
    size_t row_bytes = (size_t)(w->cols / w->format->block * w->format->block_bytes);
    stored s = {w->data, w->stride ? w->stride : row_bytes, w->rows, w->cols, (int)w->format->id};
    if (out.rows) LAUNCH((standin_kernel<T>), (unsigned)out.rows, 128, 0, g->stream, s, first, ids, out);
}
} // namespace

extern "C" void gpu_decode(const struct gpu *g, const struct weight *w, int64_t row, int64_t rows, void *out,
                           enum dtype dtype, int64_t ld) {
    DISPATCH(dtype, T, decode<T>(g, w, row, {}, {(T *)out, rows, w->cols, ld}));
}
extern "C" void gpu_decode_rows(const struct gpu *g, const struct weight *w, const int32_t *ids, int64_t ids_ld,
                                int64_t n, void *out, enum dtype dtype, int64_t ld) {
    DISPATCH(dtype, T, decode<T>(g, w, 0, {ids, n, 1, ids_ld}, {(T *)out, n, w->cols, ld}));
}
