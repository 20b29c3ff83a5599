// What the decoders of formats with tables share. See gpu_decode.cuh.
#pragma once

#include "kernels/cuda/gpu_decode.cuh"

namespace {
__device__ __forceinline__ float e8m0(uint32_t byte) { // 2^(byte - 127); 255 is NaN
    return __uint_as_float(byte == 255 ? 0x7FC00000u : byte ? byte << 23 : 0x00400000u);
}
template <int A> // of data
__device__ __forceinline__ float number_at(const uint8_t *data, enum number type, int64_t i) {
    if constexpr (A >= 4) { // one load whatever the type
        int log_bytes = type == NUMBER_F32 ? 2 : type == NUMBER_E8M0 ? 0 : 1;
        uintptr_t at = (uintptr_t)data + (uintptr_t)(i << log_bytes);
        uint32_t x = __ldg((const uint32_t *)(at & ~(uintptr_t)3)) >> 8 * (at & 3);
        return type == NUMBER_F32    ? __uint_as_float(x)
               : type == NUMBER_BF16 ? __uint_as_float(x << 16)
               : type == NUMBER_F16  ? half_value(x & 0xFFFF)
                                     : e8m0(x & 255);
    }
    if (type == NUMBER_F32) return float_at<1>(data + 4 * i);
    if (type == NUMBER_E8M0) return e8m0(byte_at(data + i));
    uint32_t x = half_at<1>(data + 2 * i);
    return type == NUMBER_F16 ? half_value(x) : __uint_as_float(x << 16);
}
__device__ __forceinline__ void round_eight(float v[8], enum number type) { // as round_to
    if (type == NUMBER_F32) return;
    if (type == NUMBER_F16) {
        UNROLL for (int j = 0; j < 8; j++) v[j] = rounded_to_half(v[j]);
    } else {
        UNROLL for (int j = 0; j < 8; j += 2) { // in pairs: one conversion for both
            uint32_t pair = bf16_pair(v[j], v[j + 1]);
            v[j] = __uint_as_float(pair << 16), v[j + 1] = __uint_as_float(pair & 0xFFFF0000u);
        }
    }
}
// What values are rounded to before they are stored; the store's own rounding to bf16 need not be done twice.
inline enum number rounding_of(const decode_call &c) {
    enum number rounded = c.w->tables->rounded;
    return rounded == NUMBER_BF16 && c.dtype == DTYPE_BF16 ? NUMBER_F32 : rounded;
}
} // namespace
