// See gpu_decode.cuh. Codes that choose from a list of numbers or from points of a grid; bits are drawn in quant_iq.c.
//
// Grids are read by lanes that each want another point, which constant memory would serve one after another: a block
// copies its format's grid to shared memory, unpacked to a byte an element, 1 to 16 KB, and goes on for many units.
#include "kernels/cuda/gpu_decode.cuh"

#include "kernels/quant_blocks.h"

namespace {

// The numbers of the grids stand in one file, which is compiled once more for the device: a copy that is made at
// start-up would need a place in every backend and a way to it from every launch.
namespace grid {
#define const static __device__ const
#include "kernels/quant_iq_grids.c"
#undef const
} // namespace grid

__device__ const int8_t iq4_values[16] = QUANT_IQ4_VALUES;
__device__ const uint8_t iq2_values[4] = QUANT_IQ2_VALUES;
__device__ const uint8_t iq3_xxs_values[8] = QUANT_IQ3_XXS_VALUES;
__device__ const uint8_t iq3_s_values[8] = QUANT_IQ3_S_VALUES;

// --- IQ4
struct iq4_table {
    float value[16];
};
template <int BLOCK_, int BYTES_> struct iq4_block {
    enum { BLOCK = BLOCK_, BYTES = BYTES_, PACKS = 2, GAP = 16, WAYS = 1 };
    typedef iq4_table tables;
    static __device__ void fill(tables &t) {
        if (threadIdx.x < 16) t.value[threadIdx.x] = (float)iq4_values[threadIdx.x];
    }
    static __device__ __forceinline__ void put(const tables &t, words<8> x, float scale, float v[2][8]) {
        UNROLL for (int j = 0; j < 8; j++) {
            uint32_t byte = x.w[j / 4] >> 8 * (j % 4);
            v[0][j] = scale * t.value[byte & 15];
            v[1][j] = scale * t.value[byte >> 4 & 15];
        }
    }
};
struct iq4_nl : iq4_block<32, 18> {
    template <int A>
    static __device__ __forceinline__ void unpack(const tables &t, const uint8_t *b, int, int at, float v[2][8]) {
        put(t, load<8, alignment_at(A, 2)>(b + 2 + at), half_scale<A>(b), v);
    }
};
struct iq4_xs : iq4_block<256, 136> {
    template <int A>
    static __device__ __forceinline__ void unpack(const tables &t, const uint8_t *b, int k, int at, float v[2][8]) {
        words<8> x = load<8, alignment_at(A, 8)>(b + 8 + 16 * k + at);
        uint32_t low = byte_at(b + 4 + k / 2) >> 4 * (k % 2) & 15,
                 high = half_at<alignment_at(A, 2)>(b + 2) >> 2 * k & 3;
        put(t, x, half_scale<A>(b) * code_value(low | high << 4, 32), v);
    }
};

// --- points of eight elements, a byte each
template <int N> struct eights { words<8> point[N]; };
template <int N> struct fours { uint32_t point[N]; };
template <int BYTES_> struct point_block {
    enum { BLOCK = 256, BYTES = BYTES_, PACKS = 1, GAP = 256, WAYS = 2 };
};
template <int N> __device__ void fill_iq2(eights<N> &t, const uint16_t *grid) {
    for (int i = (int)threadIdx.x; i < N; i += (int)blockDim.x) {
        uint32_t point = grid[i];
        words<8> x = {};
        UNROLL for (int j = 0; j < 8; j++) x.w[j / 4] |= (uint32_t)iq2_values[point >> 2 * j & 3] << 8 * (j % 4);
        t.point[i] = x;
    }
}
template <int N> __device__ void fill_iq3(fours<N> &t, const uint16_t *grid, const uint8_t *values) {
    for (int i = (int)threadIdx.x; i < N; i += (int)blockDim.x) {
        uint32_t point = grid[i], x = 0;
        UNROLL for (int j = 0; j < 4; j++) x |= (uint32_t)values[point >> 3 * j & 7] << 8 * j;
        t.point[i] = x;
    }
}
// Bit j of `signs`: element j is negative.
__device__ __forceinline__ void put_magnitudes(float v[8], words<8> x, float scale, uint32_t signs) {
    UNROLL for (int j = 0; j < 8; j++) v[j] =
        __uint_as_float(__float_as_uint(byte_value(x.w[j / 4], j % 4, 0) * scale) ^ (signs >> j & 1) << 31);
}
// Seven signs and the eighth, which makes their number even.
__device__ __forceinline__ uint32_t eight_signs(uint32_t seven) {
    return (seven & 127) | (uint32_t)(__popc(seven & 127) & 1) << 7;
}
// d * (s + 1/2) * part, in the order of quant_iq.c.
__device__ __forceinline__ float half_step(float d, uint32_t s, float part) {
    return d * (0.5f + code_value(s, 0)) * part;
}

struct iq2_xxs : point_block<66> {
    typedef eights<256> tables;
    static __device__ void fill(tables &t) { fill_iq2(t, grid::quant_iq2_xxs_grid); }
    template <int A>
    static __device__ __forceinline__ void unpack(const tables &t, const uint8_t *b, int, int at, float v[1][8]) {
        int g = at / 32, l = at % 32 / 8;
        uint32_t word = word_at<alignment_at(A, 2)>(b + 2 + 8 * g + 4), index = byte_at(b + 2 + 8 * g + l);
        put_magnitudes(v[0], t.point[index], half_step(half_scale<A>(b), word >> 28, 0.25f),
                       eight_signs(word >> 7 * l));
    }
};
struct iq2_xs : point_block<74> {
    typedef eights<512> tables;
    static __device__ void fill(tables &t) { fill_iq2(t, grid::quant_iq2_xs_grid); }
    template <int A>
    static __device__ __forceinline__ void unpack(const tables &t, const uint8_t *b, int, int at, float v[1][8]) {
        int g = at / 32, l = at % 32 / 8;
        uint32_t code = half_at<alignment_at(A, 2)>(b + 2 + at / 4), s = byte_at(b + 66 + g) >> 4 * (l / 2) & 15;
        put_magnitudes(v[0], t.point[code & 511], half_step(half_scale<A>(b), s, 0.25f), eight_signs(code >> 9));
    }
};
struct iq2_s : point_block<82> {
    typedef eights<1024> tables;
    static __device__ void fill(tables &t) { fill_iq2(t, grid::quant_iq2_s_grid); }
    template <int A>
    static __device__ __forceinline__ void unpack(const tables &t, const uint8_t *b, int, int at, float v[1][8]) {
        int g = at / 32, l = at % 32 / 8;
        uint32_t index = byte_at(b + 2 + at / 8) | (byte_at(b + 66 + g) >> 2 * l & 3) << 8;
        uint32_t s = byte_at(b + 74 + g) >> 4 * (l / 2) & 15;
        put_magnitudes(v[0], t.point[index], half_step(half_scale<A>(b), s, 0.25f), byte_at(b + 34 + at / 8));
    }
};
struct iq3_xxs : point_block<98> {
    typedef fours<256> tables;
    static __device__ void fill(tables &t) { fill_iq3(t, grid::quant_iq3_xxs_grid, iq3_xxs_values); }
    template <int A>
    static __device__ __forceinline__ void unpack(const tables &t, const uint8_t *b, int, int at, float v[1][8]) {
        int g = at / 32, l = at % 32 / 8;
        uint32_t word = word_at<alignment_at(A, 66)>(b + 66 + 4 * g), two = half_at<alignment_at(A, 2)>(b + 2 + at / 4);
        put_magnitudes(v[0], {{t.point[two & 255], t.point[two >> 8]}}, half_step(half_scale<A>(b), word >> 28, 0.5f),
                       eight_signs(word >> 7 * l));
    }
};
struct iq3_s : point_block<110> {
    typedef fours<512> tables;
    static __device__ void fill(tables &t) { fill_iq3(t, grid::quant_iq3_s_grid, iq3_s_values); }
    template <int A>
    static __device__ __forceinline__ void unpack(const tables &t, const uint8_t *b, int, int at, float v[1][8]) {
        int g = at / 32, l = at % 32 / 8;
        uint32_t two = half_at<alignment_at(A, 2)>(b + 2 + at / 4), top = byte_at(b + 66 + g) >> 2 * l;
        uint32_t s = byte_at(b + 106 + g / 2) >> 4 * (g % 2) & 15;
        words<8> x = {{t.point[(two & 255) | (top & 1) << 8], t.point[two >> 8 | (top & 2) << 7]}};
        put_magnitudes(v[0], x, half_scale<A>(b) * code_value(1 + 2 * s, 0), byte_at(b + 74 + at / 8));
    }
};

// --- IQ1: points of ternary digits
struct iq1_table : eights<2048> {};
__device__ void fill_iq1(iq1_table &t) {
    for (int i = (int)threadIdx.x; i < 2048; i += (int)blockDim.x) {
        uint32_t point = grid::quant_iq1_grid[i];
        t.point[i] = {{spread_pairs(point & 255), spread_pairs(point >> 8)}};
    }
}
__device__ __forceinline__ void put_ternary(float v[8], words<8> x, float scale, bool down) {
    float shift = down ? -0.125f : 0.125f;
    UNROLL for (int j = 0; j < 8; j++) v[j] = scale * (byte_value(x.w[j / 4], j % 4, 1) + shift);
}
struct iq1_s : point_block<50> {
    typedef iq1_table tables;
    static __device__ void fill(tables &t) { fill_iq1(t); }
    template <int A>
    static __device__ __forceinline__ void unpack(const tables &t, const uint8_t *b, int, int at, float v[1][8]) {
        int g = at / 32, l = at % 32 / 8;
        uint32_t qh = half_at<alignment_at(A, 34)>(b + 34 + 2 * g), index = byte_at(b + 2 + at / 8) | (qh >> 3 * l & 7)
                                                                                                          << 8;
        put_ternary(v[0], t.point[index], half_scale<A>(b) * code_value(2 * (qh >> 12 & 7) + 1, 0), qh >> 15);
    }
};
struct iq1_m : point_block<56> {
    typedef iq1_table tables;
    static __device__ void fill(tables &t) { fill_iq1(t); }
    template <int A>
    static __device__ __forceinline__ void unpack(const tables &t, const uint8_t *b, int, int at, float v[1][8]) {
        int g = at / 32, l = at % 32 / 8;
        words<8> s = load<8, alignment_at(A, 48)>(b + 48); // the upper four bits of its four halves are d
        uint32_t half = (s.w[0] >> 12 & 15) | (s.w[0] >> 28) << 4 | (s.w[1] >> 12 & 15) << 8 | (s.w[1] >> 28) << 12;
        uint32_t own = (g / 4 ? s.w[1] : s.w[0]) >> 16 * (g / 2 % 2) >> (6 * (g % 2) + 3 * (l / 2)) & 7;
        uint32_t high = byte_at(b + 32 + at / 16) >> 4 * (l % 2) & 15;
        uint32_t index = byte_at(b + at / 8) | (high & 7) << 8;
        put_ternary(v[0], t.point[index], half_value(half) * code_value(2 * own + 1, 0), high & 8);
    }
};
} // namespace

void decode_iq_blocks(const struct gpu *g, const decode_call &call) {
    switch (call.w->format->id) {
        DECODE_BLOCKS(IQ1_S, iq1_s);
        DECODE_BLOCKS(IQ1_M, iq1_m);
        DECODE_BLOCKS(IQ2_XXS, iq2_xxs);
        DECODE_BLOCKS(IQ2_XS, iq2_xs);
        DECODE_BLOCKS(IQ2_S, iq2_s);
        DECODE_BLOCKS(IQ3_XXS, iq3_xxs);
        DECODE_BLOCKS(IQ3_S, iq3_s);
        DECODE_BLOCKS(IQ4_NL, iq4_nl);
        DECODE_BLOCKS(IQ4_XS, iq4_xs);
    default: assert(!"a format of another family");
    }
}
