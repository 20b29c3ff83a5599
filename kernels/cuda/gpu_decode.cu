// See gpu_decode.h and, for the plan, gpu_decode.cuh. Here: plain numbers and the short blocks of quant.c, where their
// bits are drawn.
#include "kernels/cuda/gpu_decode.cuh"

namespace {

// --- plain numbers
template <class N> struct plain_rows { // N: BYTES, at(p), eight(p, v)
    enum { PACKS = 1, WAYS = 2, NUMBERS = 1, DEPTH = 64 };
    typedef no_tables tables;
    const uint8_t *data;
    int64_t stride;
    __device__ __forceinline__ int64_t column(uint32_t unit, int) const { return (int64_t)unit * 8; }
    __device__ __forceinline__ uint32_t unit(int64_t col) const { return (uint32_t)(col / 8); }
    __device__ __forceinline__ float number(const tables &, int64_t row, int64_t col) const {
        return N::at(data + row * stride + col * N::BYTES);
    }
    bool aligned() const { return ((uintptr_t)data | (uintptr_t)stride) % 16 == 0; }
    __device__ __forceinline__ void finish(float[1][8]) const {}
    template <bool ALIGNED>
    __device__ __forceinline__ void decode(const tables &, int64_t row, uint32_t unit, float v[1][8]) const {
        N::template eight<ALIGNED ? 16 : 1>(data + row * stride + (int64_t)unit * (8 * N::BYTES), v[0]);
    }
};
struct f32_numbers {
    enum { BYTES = 4 };
    static __device__ __forceinline__ float at(const uint8_t *p) { return float_at<1>(p); }
    template <int A> static __device__ __forceinline__ void eight(const uint8_t *p, float v[8]) {
        words<16> x[2] = {load<16, A>(p), load<16, A>(p + 16)};
        UNROLL for (int j = 0; j < 8; j++) v[j] = __uint_as_float(x[j / 4].w[j % 4]);
    }
};
struct f16_numbers {
    enum { BYTES = 2 };
    static __device__ __forceinline__ float at(const uint8_t *p) { return half_scale<1>(p); }
    template <int A> static __device__ __forceinline__ void eight(const uint8_t *p, float v[8]) {
        words<16> x = load<16, A>(p);
        UNROLL for (int j = 0; j < 8; j++) v[j] = half_value(x.w[j / 2] >> 16 * (j % 2) & 0xFFFF);
    }
};
struct bf16_numbers {
    enum { BYTES = 2 };
    static __device__ __forceinline__ float at(const uint8_t *p) { return __uint_as_float(half_at<1>(p) << 16); }
    template <int A> static __device__ __forceinline__ void eight(const uint8_t *p, float v[8]) {
        words<16> x = load<16, A>(p);
        UNROLL for (int j = 0; j < 8; j++) v[j] = __uint_as_float(j % 2 ? x.w[j / 2] & 0xFFFF0000u : x.w[j / 2] << 16);
    }
};

// --- blocks of 32 with two elements, 16 columns apart, in a byte
template <int BYTES_, class TABLES = no_tables> struct nibble_block {
    enum { BLOCK = 32, BYTES = BYTES_, PACKS = 2, GAP = 16, WAYS = 1 };
    typedef TABLES tables;
};

struct q4_0 : nibble_block<18> {
    template <int A>
    static __device__ __forceinline__ void unpack(const no_tables &, const uint8_t *b, int, int at, float v[2][8]) {
        words<8> x = load<8, alignment_at(A, 2)>(b + 2 + at);
        float d = half_scale<A>(b);
        put_scaled(v[0], low_nibbles(x), 8, d);
        put_scaled(v[1], high_nibbles(x), 8, d);
    }
};
struct q4_1 : nibble_block<20> {
    template <int A>
    static __device__ __forceinline__ void unpack(const no_tables &, const uint8_t *b, int, int at, float v[2][8]) {
        words<8> x = load<8, alignment_at(A, 4)>(b + 4 + at);
        uint32_t both = word_at<A>(b);
        float d = half_value(both & 0xFFFF), m = half_value(both >> 16);
        put_above(v[0], low_nibbles(x), d, m);
        put_above(v[1], high_nibbles(x), d, m);
    }
};
// Bits i .. i + 7 of qh on top of eight nibbles.
__device__ __forceinline__ words<8> with_fifth_bits(words<8> nibbles, uint32_t qh, int i) {
    uint32_t bits = qh >> i;
    return {{nibbles.w[0] | spread_bits(bits) << 4, nibbles.w[1] | spread_bits(bits >> 4) << 4}};
}
struct q5_0 : nibble_block<22> {
    template <int A>
    static __device__ __forceinline__ void unpack(const no_tables &, const uint8_t *b, int, int at, float v[2][8]) {
        words<8> x = load<8, alignment_at(A, 6)>(b + 6 + at);
        uint32_t qh = word_at<alignment_at(A, 2)>(b + 2);
        float d = half_scale<A>(b);
        put_scaled(v[0], with_fifth_bits(low_nibbles(x), qh, at), 16, d);
        put_scaled(v[1], with_fifth_bits(high_nibbles(x), qh, at + 16), 16, d);
    }
};
struct q5_1 : nibble_block<24> {
    template <int A>
    static __device__ __forceinline__ void unpack(const no_tables &, const uint8_t *b, int, int at, float v[2][8]) {
        words<8> x = load<8, alignment_at(A, 8)>(b + 8 + at);
        uint32_t both = word_at<A>(b), qh = word_at<alignment_at(A, 4)>(b + 4);
        float d = half_value(both & 0xFFFF), m = half_value(both >> 16);
        put_above(v[0], with_fifth_bits(low_nibbles(x), qh, at), d, m);
        put_above(v[1], with_fifth_bits(high_nibbles(x), qh, at + 16), d, m);
    }
};
struct q8_0 {
    enum { BLOCK = 32, BYTES = 34, PACKS = 1, GAP = 32, WAYS = 2 };
    typedef no_tables tables;
    template <int A>
    static __device__ __forceinline__ void unpack(const tables &, const uint8_t *b, int, int at, float v[1][8]) {
        put_signed(v[0], load<8, alignment_at(A, 2)>(b + 2 + at), half_scale<A>(b));
    }
};

// --- other short blocks
// Twice the numbers of E2M1. The 16 lie in 16 banks of shared memory, so that lanes never wait for one another.
struct fp4_table {
    float value[16];
};
__device__ __forceinline__ void fill_fp4(fp4_table &t) {
    int code = (int)threadIdx.x;
    if (code >= 16) return;
    int i = code & 7, twice = i < 2 ? i : (2 + i % 2) << (i / 2 - 1);
    t.value[code] = (float)(code < 8 ? twice : -twice);
}
__device__ __forceinline__ void put_listed(float v[8], const float value[16], words<8> nibbles, float scale) {
    UNROLL for (int j = 0; j < 8; j++) v[j] = value[nibbles.w[j / 4] >> 8 * (j % 4) & 15] * scale;
}

struct mxfp4 : nibble_block<17, fp4_table> {
    static __device__ void fill(fp4_table &t) { fill_fp4(t); }
    template <int A>
    static __device__ __forceinline__ void unpack(const fp4_table &t, const uint8_t *b, int, int at, float v[2][8]) {
        words<8> x = load<8, alignment_at(A, 1)>(b + 1 + at);
        uint32_t e = byte_at(b);
        float d = __uint_as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23);
        put_listed(v[0], t.value, low_nibbles(x), d);
        put_listed(v[1], t.value, high_nibbles(x), d);
    }
};
struct nvfp4 {
    enum { BLOCK = 64, BYTES = 36, PACKS = 2, GAP = 8, WAYS = 1 };
    typedef fp4_table tables;
    static __device__ void fill(tables &t) { fill_fp4(t); }
    template <int A>
    static __device__ __forceinline__ void unpack(const tables &t, const uint8_t *b, int sub, int, float v[2][8]) {
        words<8> x = load<8, alignment_at(A, 4)>(b + 4 + 8 * sub);
        uint32_t code = byte_at(b + sub);
        // Half of an E4M3 without sign: its bits in an f32 make it 2^119 times too small.
        float d = code == 0x7F ? 0.0f : __uint_as_float((code & 0x7F) << 20) * 0x1p119f;
        put_listed(v[0], t.value, low_nibbles(x), d);
        put_listed(v[1], t.value, high_nibbles(x), d);
    }
};
struct q1_0 {
    enum { BLOCK = 128, BYTES = 18, PACKS = 1, GAP = 128, WAYS = 2 };
    typedef no_tables tables;
    template <int A>
    static __device__ __forceinline__ void unpack(const tables &, const uint8_t *b, int, int at, float v[1][8]) {
        uint32_t bits = byte_at(b + 2 + at / 8);
        float d = half_scale<A>(b);
        UNROLL for (int j = 0; j < 8; j++) v[0][j] = bits >> j & 1 ? d : -d;
    }
};
struct q2_0 {
    enum { BLOCK = 64, BYTES = 18, PACKS = 1, GAP = 64, WAYS = 2 };
    typedef no_tables tables;
    template <int A>
    static __device__ __forceinline__ void unpack(const tables &, const uint8_t *b, int, int at, float v[1][8]) {
        uint32_t x = half_at<alignment_at(A, 2)>(b + 2 + at / 4);
        put_scaled(v[0], {{spread_pairs(x & 255), spread_pairs(x >> 8)}}, 1, half_scale<A>(b));
    }
};

void decode_call_any(const struct gpu *g, const decode_call &call) {
    if (call.rows == 0 || call.w->cols == 0) return;
    enum quant id = call.w->format->id;
    if (id >= QUANT_GPTQ_2 && id <= QUANT_AWQ)
        decode_columns(g, call);
    else if (id >= QUANT_WITH_TABLES)
        decode_tables(g, call);
    else if (id >= QUANT_IQ1_S)
        decode_iq_blocks(g, call);
    else if (id >= QUANT_Q2_K)
        decode_k_blocks(g, call);
    else
        decode_short_blocks(g, call);
}
} // namespace

void decode_short_blocks(const struct gpu *g, const decode_call &call) {
    switch (call.w->format->id) {
    case QUANT_F32: launch_view(g, call, plain_rows<f32_numbers>{}); break;
    case QUANT_F16: launch_view(g, call, plain_rows<f16_numbers>{}); break;
    case QUANT_BF16:
        launch_view(g, call, plain_rows<bf16_numbers>{});
        break;
        DECODE_BLOCKS(Q4_0, q4_0);
        DECODE_BLOCKS(Q4_1, q4_1);
        DECODE_BLOCKS(Q5_0, q5_0);
        DECODE_BLOCKS(Q5_1, q5_1);
        DECODE_BLOCKS(Q8_0, q8_0);
        DECODE_BLOCKS(Q1_0, q1_0);
        DECODE_BLOCKS(Q2_0, q2_0);
        DECODE_BLOCKS(MXFP4, mxfp4);
        DECODE_BLOCKS(NVFP4, nvfp4);
    default: assert(!"a format of another family");
    }
}

extern "C" void gpu_decode(const struct gpu *g, const struct weight *w, int64_t row, int64_t rows, void *out,
                           enum dtype dtype, int64_t ld) {
    assert(0 <= row && rows >= 0 && row + rows <= w->rows);
    decode_call_any(g, {w, row, rows, nullptr, 0, out, dtype, ld});
}

extern "C" void gpu_decode_rows(const struct gpu *g, const struct weight *w, const int32_t *ids, int64_t ids_ld,
                                int64_t n, void *out, enum dtype dtype, int64_t ld) {
    decode_call_any(g, {w, 0, n, ids, ids_ld, out, dtype, ld});
}
