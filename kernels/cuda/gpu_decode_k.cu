// See gpu_decode.cuh. Blocks of 256 with scales within, and the ternary ones; bits are drawn in quant_k.c.
#include "kernels/cuda/gpu_decode.cuh"

namespace {

template <int BYTES_, int PACKS_, int GAP_> struct k_block {
    enum { BLOCK = 256, BYTES = BYTES_, PACKS = PACKS_, GAP = GAP_, WAYS = PACKS_ == 1 ? 2 : 1 };
    typedef no_tables tables;
};

// Bits `shift`, `shift` + 1 of every byte.
__device__ __forceinline__ words<8> two_bits(words<8> x, int shift) {
    return {{x.w[0] >> shift & 0x03030303u, x.w[1] >> shift & 0x03030303u}};
}
// Bit `from` of every byte, moved to bit `to`.
__device__ __forceinline__ words<8> one_bit(words<8> x, int from, int to) {
    return {{(x.w[0] >> from & 0x01010101u) << to, (x.w[1] >> from & 0x01010101u) << to}};
}
__device__ __forceinline__ words<8> both(words<8> x, words<8> y) {
    return {{x.w[0] | y.w[0], x.w[1] | y.w[1]}};
}

struct q2_k : k_block<84, 4, 32> {
    template <int A>
    static __device__ __forceinline__ void unpack(const tables &, const uint8_t *b, int half, int at, float v[4][8]) {
        words<8> x = load<8, alignment_at(A, 16)>(b + 16 + 32 * half + at);
        uint32_t ends = word_at<alignment_at(A, 80)>(b + 80);
        float d = half_value(ends & 0xFFFF), dmin = half_value(ends >> 16);
        UNROLL for (int t = 0; t < 4; t++) {
            uint32_t s = byte_at(b + 8 * half + 2 * t + at / 16);
            put_above(v[t], two_bits(x, 2 * t), d * code_value(s & 15, 0), -(dmin * code_value(s >> 4, 0)));
        }
    }
};

struct q3_k : k_block<110, 4, 32> {
    template <int A>
    static __device__ __forceinline__ void unpack(const tables &, const uint8_t *b, int half, int at, float v[4][8]) {
        words<8> x = load<8, alignment_at(A, 32)>(b + 32 + 32 * half + at), h = load<8, A>(b + at);
        float d = half_scale<alignment_at(A, 108)>(b + 108);
        UNROLL for (int t = 0; t < 4; t++) {
            int k = 2 * t + at / 16; // of the eight sub-blocks of this half
            uint32_t low = byte_at(b + 96 + k) >> 4 * half & 15;
            uint32_t high = byte_at(b + 104 + k % 4) >> (4 * half + k / 4 * 2) & 3;
            words<8> q = both(two_bits(x, 2 * t), one_bit(h, 4 * half + t, 2));
            put_scaled(v[t], q, 4, d * code_value(low | high << 4, 32));
        }
    }
};

// Scales and minima of sub-blocks 2c and 2c + 1 of Q4_K and Q5_K, times d and dmin.
struct pair_of_scales {
    float scale[2], min[2];
};
template <int A> __device__ __forceinline__ pair_of_scales scales_of_pair(const uint8_t *b, int c) {
    uint32_t ends = word_at<A>(b), a = half_at<alignment_at(A, 4)>(b + 4 + c % 2 * 2),
             m = half_at<alignment_at(A, 8)>(b + 8 + c % 2 * 2);
    float d = half_value(ends & 0xFFFF), dmin = half_value(ends >> 16);
    uint32_t scales = a & 0x3F3Fu, mins = m & 0x3F3Fu;
    if (c >= 2) {
        uint32_t low = half_at<alignment_at(A, 12)>(b + 12 + c % 2 * 2);
        scales = (low & 0x0F0Fu) | (a >> 2 & 0x3030u);
        mins = (low >> 4 & 0x0F0Fu) | (m >> 2 & 0x3030u);
    }
    pair_of_scales s;
    UNROLL for (int p = 0; p < 2; p++) s.scale[p] = d * byte_value(scales, p, 0),
                                       s.min[p] = dmin * byte_value(mins, p, 0);
    return s;
}

struct q4_k : k_block<144, 2, 32> {
    template <int A>
    static __device__ __forceinline__ void unpack(const tables &, const uint8_t *b, int c, int at, float v[2][8]) {
        words<8> x = load<8, alignment_at(A, 16)>(b + 16 + 32 * c + at);
        pair_of_scales s = scales_of_pair<A>(b, c);
        put_above(v[0], low_nibbles(x), s.scale[0], -s.min[0]);
        put_above(v[1], high_nibbles(x), s.scale[1], -s.min[1]);
    }
};

struct q5_k : k_block<176, 2, 32> {
    template <int A>
    static __device__ __forceinline__ void unpack(const tables &, const uint8_t *b, int c, int at, float v[2][8]) {
        words<8> x = load<8, alignment_at(A, 48)>(b + 48 + 32 * c + at), h = load<8, alignment_at(A, 16)>(b + 16 + at);
        pair_of_scales s = scales_of_pair<A>(b, c);
        put_above(v[0], both(low_nibbles(x), one_bit(h, 2 * c, 4)), s.scale[0], -s.min[0]);
        put_above(v[1], both(high_nibbles(x), one_bit(h, 2 * c + 1, 4)), s.scale[1], -s.min[1]);
    }
};

// Low and high nibbles of ql are 64 columns apart; of a byte of qh, two of its four pairs go with them.
struct q6_k : k_block<210, 2, 64> {
    template <int A>
    static __device__ __forceinline__ void unpack(const tables &, const uint8_t *b, int half, int at, float v[2][8]) {
        words<8> x = load<8, alignment_at(A, 64)>(b + 64 * half + at),
                 h = load<8, alignment_at(A, 128)>(b + 128 + 32 * half + at % 32);
        float d = half_scale<alignment_at(A, 208)>(b + 208);
        int t = at / 32;
        UNROLL for (int p = 0; p < 2; p++) {
            uint32_t scale = byte_at(b + 192 + 8 * half + 4 * p + at / 16);
            words<8> high = two_bits(h, 2 * t + 4 * p);
            words<8> q = both(p ? high_nibbles(x) : low_nibbles(x), {{high.w[0] << 4, high.w[1] << 4}});
            put_scaled(v[p], q, 32, d * code_value(scale ^ 0x80, 128));
        }
    }
};

struct q8_k : k_block<292, 1, 256> {
    template <int A>
    static __device__ __forceinline__ void unpack(const tables &, const uint8_t *b, int, int at, float v[1][8]) {
        put_signed(v[0], load<8, alignment_at(A, 4)>(b + 4 + at), float_at<A>(b));
    }
};

struct tq1_0 : k_block<54, 1, 256> {
    static __device__ __forceinline__ float digit(uint32_t byte, int n) { // less one
        uint32_t power = n == 0 ? 1 : n == 1 ? 3 : n == 2 ? 9 : n == 3 ? 27 : 81;
        return code_value((byte * power & 255) * 3 >> 8, 1);
    }
    template <int A>
    static __device__ __forceinline__ void unpack(const tables &, const uint8_t *b, int, int at, float v[1][8]) {
        float d = half_scale<alignment_at(A, 52)>(b + 52);
        if (at < 240) { // eight bytes, the same digit of each
            int from = at < 160 ? at % 32 : 32 + at % 16, n = at < 160 ? at / 32 : (at - 160) / 16;
            words<8> x = load<8, A>(b + from);
            UNROLL for (int j = 0; j < 8; j++) v[0][j] = digit(x.w[j / 4] >> 8 * (j % 4) & 255, n) * d;
        } else {
            uint32_t x = word_at<alignment_at(A, 48)>(b + 48);
            UNROLL for (int j = 0; j < 8; j++) v[0][j] = digit(x >> 8 * (j % 4) & 255, (at - 240) / 4 + j / 4) * d;
        }
    }
};

struct tq2_0 : k_block<66, 4, 32> {
    template <int A>
    static __device__ __forceinline__ void unpack(const tables &, const uint8_t *b, int half, int at, float v[4][8]) {
        words<8> x = load<8, alignment_at(A, 32)>(b + 32 * half + at);
        float d = half_scale<alignment_at(A, 64)>(b + 64);
        UNROLL for (int t = 0; t < 4; t++) put_scaled(v[t], two_bits(x, 2 * t), 1, d);
    }
};
} // namespace

void decode_k_blocks(const struct gpu *g, const decode_call &call) {
    switch (call.w->format->id) {
        DECODE_BLOCKS(Q2_K, q2_k);
        DECODE_BLOCKS(Q3_K, q3_k);
        DECODE_BLOCKS(Q4_K, q4_k);
        DECODE_BLOCKS(Q5_K, q5_k);
        DECODE_BLOCKS(Q6_K, q6_k);
        DECODE_BLOCKS(Q8_K, q8_k);
        DECODE_BLOCKS(TQ1_0, tq1_0);
        DECODE_BLOCKS(TQ2_0, tq2_0);
    default: assert(!"a format of another family");
    }
}
