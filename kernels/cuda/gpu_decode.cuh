// Private to gpu_decode*.cu: loads from any address, numbers out of packed bits, and the kernels that walk rows.
//
// The plan. A thread makes packs of 8 neighbouring columns of a row: in bf16 a store of 16 bytes, lanes side by side.
// Where a byte holds two elements that lie apart (Q4_0: 16 columns, Q4_K: 32), a thread makes both packs from the same
// 8 bytes (F::PACKS packs, F::GAP columns apart); else it makes two units at once (F::WAYS), straight through, so that
// all their loads are on their way before the first is waited for. Packed bytes are read where they lie, in words of 4
// to 16 bytes that are shifted into place where blocks are not aligned (18 or 210 bytes): neighbouring lanes read
// neighbouring words, every sector comes from memory once and what is left of it from L1. Staging blocks in shared
// memory would cost a barrier and more instructions, and save no byte. Scales are read once per unit, by all lanes that
// share them in one broadcast. Codes become floats without a conversion instruction: a byte is permuted into the
// mantissa of 2^23, which is then subtracted. That makes 7 to 11 instructions an element, everything included, where an
// H200 has time for 17 while its memory moves the 2.5 bytes that go with one.
//
// A format F is a small struct that is passed to its kernel:
//   PACKS, WAYS         see above
//   NUMBERS             any count of columns; the last unit of a row may be cut short
//   tables, fill(t)     what it wants in shared memory, filled by all threads of a block
//   aligned()           do its bytes lie so that the widest loads can be used?
//   decode<ALIGNED>(t, row, unit, v)  unit of a stored row to PACKS x 8 values; no branches, as far as can be
//   finish(v)           what is left to do with them after all units have been decoded: rounding
//   number(t, row, col) one value, for units cut short
//   column(unit, pack)  first column of a pack
#pragma once

#include "kernels/cuda/gpu_decode.h"
#include "kernels/cuda/launch.cuh"

#include <cassert>
#include <type_traits>
#if defined(__CUDACC__)
#include <cuda_fp16.h>
#endif

struct decode_call {
    const struct weight *w;
    int64_t row, rows;
    const int32_t *ids; // instead of row .. row + rows - 1
    int64_t ids_ld;
    void *out;
    enum dtype dtype;
    int64_t ld;
};
// The formats of a family; `call.w` is of one of them.
void decode_short_blocks(const struct gpu *g, const struct decode_call &call); // gpu_decode.cu
void decode_k_blocks(const struct gpu *g, const struct decode_call &call);     // gpu_decode_k.cu
void decode_iq_blocks(const struct gpu *g, const struct decode_call &call);    // gpu_decode_iq.cu
void decode_tables(const struct gpu *g, const struct decode_call &call);       // gpu_decode_tables.cu
void decode_columns(const struct gpu *g, const struct decode_call &call);      // gpu_decode_columns.cu: GPTQ, AWQ

namespace {

#if defined(__CUDACC__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL
#endif

// --- loads at addresses that are multiples of A. Nothing is read but words that hold a wanted byte, and there are no
// branches, so that all loads of a unit are on their way before the first is waited for.
__host__ __device__ constexpr int alignment_of(int bytes) {
    return bytes & -bytes & 31 ? (bytes & -bytes) : 16;
} // at most 16
__host__ __device__ constexpr int alignment_at(int a, int offset) {
    return offset % a ? alignment_of(offset) : a;
}

template <int N> struct alignas(N) words { uint32_t w[N / 4]; };
template <int N, int A> __device__ __forceinline__ words<N> load(const uint8_t *p) { // N bytes, 4, 8 or 16
    words<N> x;
    if constexpr (N == 16 && A >= 16) {
        uint4 y = __ldg((const uint4 *)p);
        return {{y.x, y.y, y.z, y.w}};
    } else if constexpr (N == 8 && A >= 8) {
        uint2 y = __ldg((const uint2 *)p);
        return {{y.x, y.y}};
    } else {
        unsigned off = A >= 4 ? 0 : (unsigned)((uintptr_t)p % 4);
        const uint32_t *at = (const uint32_t *)(p - off);
        uint32_t y[N / 4 + 1];
        UNROLL for (int i = 0; i < N / 4; i++) y[i] = __ldg(at + i);
        y[N / 4] = off ? __ldg(at + N / 4) : 0;
        UNROLL for (int i = 0; i < N / 4; i++) x.w[i] = (uint32_t)(((uint64_t)y[i + 1] << 32 | y[i]) >> (8 * off));
        return x;
    }
}
template <int A> __device__ __forceinline__ uint32_t word_at(const uint8_t *p) {
    return load<4, A>(p).w[0];
}
template <int A> __device__ __forceinline__ float float_at(const uint8_t *p) {
    return __uint_as_float(word_at<A>(p));
}
__device__ __forceinline__ uint32_t byte_at(const uint8_t *p) {
    return __ldg(p);
}
template <int A> __device__ __forceinline__ uint32_t half_at(const uint8_t *p) { // 16 bits
    if constexpr (A >= 2)
        return __ldg((const uint16_t *)p);
    else
        return byte_at(p) | byte_at(p + 1) << 8;
}

// --- numbers
__device__ __forceinline__ float half_value(uint32_t bits) {
#if defined(__CUDACC__)
    return __half2float(__ushort_as_half((unsigned short)bits));
#else
    return (float)std::bit_cast<_Float16>((uint16_t)bits);
#endif
}
template <int A> __device__ __forceinline__ float half_scale(const uint8_t *p) {
    return half_value(half_at<A>(p));
}
__device__ __forceinline__ float rounded_to_half(float x) {
#if defined(__CUDACC__)
    return __half2float(__float2half_rn(x));
#else
    return (float)(_Float16)x;
#endif
}
__device__ __forceinline__ float round_to(float x, enum number type) {
    if (type == NUMBER_F16) return rounded_to_half(x);
    if (type == NUMBER_BF16) return to_float(from_float<bf16>(x));
    return x;
}
// Byte j of a word, less a small whole number.
__device__ __forceinline__ float byte_value(uint32_t word, int j, float less) {
#if defined(__CUDACC__)
    return __uint_as_float(__byte_perm(word, 0x4B000000u, 0x7440u | (unsigned)j)) - (0x1p23f + less);
#else
    return (float)(word >> 8 * j & 255) - less;
#endif
}
// A number below 2^23, less a small whole number.
__device__ __forceinline__ float code_value(uint32_t code, float less) {
    return __uint_as_float(0x4B000000u | code) - (0x1p23f + less);
}
// Four bits, each in a byte of its own.
__device__ __forceinline__ uint32_t spread_bits(uint32_t four) {
    return (four & 15) * 0x00204081u & 0x01010101u;
}
// Four numbers of two bits, each in a byte of its own.
__device__ __forceinline__ uint32_t spread_pairs(uint32_t byte) {
    return (byte | byte << 6 | byte << 12 | byte << 18) & 0x03030303u;
}
__device__ __forceinline__ words<8> low_nibbles(words<8> x) {
    return {{x.w[0] & 0x0F0F0F0Fu, x.w[1] & 0x0F0F0F0Fu}};
}
__device__ __forceinline__ words<8> high_nibbles(words<8> x) {
    return {{x.w[0] >> 4 & 0x0F0F0F0Fu, x.w[1] >> 4 & 0x0F0F0F0Fu}};
}
// Eight codes, a byte each: (code - less) * scale, and code * scale + min.
__device__ __forceinline__ void put_scaled(float v[8], words<8> codes, float less, float scale) {
    UNROLL for (int j = 0; j < 8; j++) v[j] = byte_value(codes.w[j / 4], j % 4, less) * scale;
}
__device__ __forceinline__ void put_above(float v[8], words<8> codes, float scale, float min) {
    UNROLL for (int j = 0; j < 8; j++) v[j] = byte_value(codes.w[j / 4], j % 4, 0) * scale + min;
}
// Signed bytes.
__device__ __forceinline__ void put_signed(float v[8], words<8> x, float scale) {
    UNROLL for (int j = 0; j < 8; j++) v[j] = byte_value(x.w[j / 4] ^ 0x80808080u, j % 4, 128) * scale;
}

// --- stores
__device__ __forceinline__ uint32_t bf16_pair(float low, float high) {
#if defined(__CUDACC__)
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<uint32_t *>(&pair);
#else
    return bf16_from_float(low) | (uint32_t)bf16_from_float(high) << 16;
#endif
}
// `wide`: p is a multiple of 16 bytes.
__device__ __forceinline__ void store_pack(bf16 *p, const float v[8], bool wide) {
    if (wide) {
        *(uint4 *)p =
            make_uint4(bf16_pair(v[0], v[1]), bf16_pair(v[2], v[3]), bf16_pair(v[4], v[5]), bf16_pair(v[6], v[7]));
    } else
        UNROLL for (int j = 0; j < 8; j++) p[j] = from_float<bf16>(v[j]);
}
__device__ __forceinline__ void store_pack(float *p, const float v[8], bool wide) {
    if (wide) {
        *(float4 *)p = make_float4(v[0], v[1], v[2], v[3]);
        *(float4 *)(p + 4) = make_float4(v[4], v[5], v[6], v[7]);
    } else
        UNROLL for (int j = 0; j < 8; j++) p[j] = v[j];
}
__device__ __forceinline__ void store_number(void *out, int64_t at, float x, bool narrow) {
    if (narrow)
        ((bf16 *)out)[at] = from_float<bf16>(x);
    else
        ((float *)out)[at] = x;
}

// --- division by a number that the host knows
struct units_divider { // of a number below 2^31
    uint32_t d, factor;
    int shift;
    __device__ __forceinline__ uint32_t operator()(uint32_t n) const {
        return (uint32_t)((uint64_t)n * factor >> shift);
    }
};
inline units_divider units_divider_of(uint32_t d) { // factor = 2^shift / d, rounded up: exact for all n below 2^31
    int bits = 0;
    while ((uint64_t)1 << bits < d) bits++;
    return {d, (uint32_t)((((uint64_t)1 << (31 + bits)) + d - 1) / d), 31 + bits};
}
// A size of blocks: of any n below 2^62, and faster of n below 2^31, where the host knows that all are. A size of more
// than `largest` makes one block.
struct block_divider {
    units_divider fast;
    uint64_t factor; // 2^(63 + bits) / d, rounded up
    int bits;
    __device__ __forceinline__ int64_t small(int64_t n) const { return fast((uint32_t)n); }
    __device__ __forceinline__ int64_t operator()(int64_t n) const {
        return (int64_t)((unsigned __int128)(uint64_t)n * factor >> (63 + bits));
    }
};
inline block_divider block_divider_of(int64_t d, int64_t largest) {
    if (d > largest) return {{}, 0, 0};
    int bits = 0;
    while ((int64_t)1 << bits < d) bits++;
    unsigned __int128 power = (unsigned __int128)1 << (63 + bits);
    return {d >> 31 ? units_divider{} : units_divider_of((uint32_t)d),
            (uint64_t)((power + (uint64_t)d - 1) / (uint64_t)d), bits};
}
struct power_of_two {
    int shift;
    __device__ __forceinline__ int64_t operator()(int64_t n) const { return n >> shift; }
};
inline power_of_two power_of_two_of(int64_t d) {
    int shift = 0;
    while ((int64_t)1 << shift < d) shift++;
    assert((int64_t)1 << shift == d);
    return {shift};
}

// --- rows of which units lie side by side
struct rows_args {
    void *out;
    int64_t ld, row, table_rows;
    const int32_t *ids;
    int64_t ids_ld, cols;
    units_divider units; // of a row
    uint32_t total;      // units
    int per;             // how often a block goes on to the next units
    bool plain;          // rows in order, whole units
    bool wide, narrow;   // narrow: bf16 (where it is not known from the kernel)
};
// The stored row for row r of the output; -1: there is none.
__device__ __forceinline__ int64_t source_row(const rows_args &a, int64_t r) {
    if (!a.ids) return a.row + r;
    int64_t id = a.ids[r * a.ids_ld];
    return id >= 0 && id < a.table_rows ? a.row + id : -1;
}
template <int PACKS> __device__ __forceinline__ void fill_nan(float v[PACKS][8]) {
    UNROLL for (int p = 0; p < PACKS; p++) UNROLL for (int j = 0; j < 8; j++) v[p][j] = __uint_as_float(0x7FC00000u);
}

enum { THREADS = 256, TURNED_THREADS = 64 };
#if defined(__CUDACC__)
constexpr int64_t UNITS_OF_LAUNCH = 1 << 30;
#else
constexpr int64_t UNITS_OF_LAUNCH = 25000; // where everything is small, tests shall see a second launch
#endif

template <class F, class T, bool ALIGNED>
__device__ __forceinline__ void one_unit(const rows_args &a, const F &f, const typename F::tables &t, uint32_t n) {
    float v[F::PACKS][8];
    uint32_t row = a.units(n), unit = n - row * a.units.d;
    int64_t from = source_row(a, row), col = f.column(unit, 0);
    T *out = (T *)a.out + row * a.ld;
    if (F::NUMBERS && col + 8 > a.cols) {
        for (; col < a.cols; col++)
            out[col] = from_float<T>(from < 0 ? __uint_as_float(0x7FC00000u) : f.number(t, from, col));
        return;
    }
    if (from < 0)
        fill_nan<F::PACKS>(v);
    else
        f.template decode<ALIGNED>(t, from, unit, v);
    f.finish(v);
    UNROLL for (int p = 0; p < F::PACKS; p++) store_pack(out + f.column(unit, p), v[p], a.wide);
}

// ALIGNED: F's bytes are, as F::aligned() says.
template <class F, class T, bool ALIGNED> __global__ __launch_bounds__(THREADS) void rows_kernel(rows_args a, F f) {
    __shared__ typename F::tables t;
    if constexpr (!std::is_empty_v<typename F::tables>) {
        f.fill(t);
        __syncthreads();
    }
    uint32_t n = blockIdx.x * (blockDim.x * (unsigned)(a.per * F::WAYS)) + threadIdx.x;
    for (int i = 0; i < a.per; i++, n += blockDim.x * F::WAYS) {
        if (a.plain && n + (F::WAYS - 1) * blockDim.x < a.total) {
            float v[F::WAYS][F::PACKS][8];
            T *out[F::WAYS];
            UNROLL for (int w = 0; w < F::WAYS; w++) {
                uint32_t row = a.units(n + (unsigned)w * blockDim.x),
                         unit = n + (unsigned)w * blockDim.x - row * a.units.d;
                out[w] = (T *)a.out + row * a.ld + f.column(unit, 0);
                f.template decode<ALIGNED>(t, a.row + row, unit, v[w]);
            }
            UNROLL for (int w = 0; w < F::WAYS; w++) {
                f.finish(v[w]);
                UNROLL for (int p = 0; p < F::PACKS; p++) store_pack(out[w] + f.column(0, p), v[w][p], a.wide);
            }
        } else {
            for (int w = 0; w < F::WAYS; w++) {
                if (n + (unsigned)w * blockDim.x < a.total)
                    one_unit<F, T, ALIGNED>(a, f, t, n + (unsigned)w * blockDim.x);
            }
        }
    }
}

// --- rows on their side: element (row, col) is element (col, row % turned) of block row / turned. A thread block turns
// a tile of DEPTH stored columns (rows of the output) and ACROSS stored rows in shared memory.
struct turned_args {
    rows_args rows;
    int64_t turned, n; // rows of a block; n of the output
    uint32_t tiles;    // side by side
    int64_t chunks;    // tiles of a block, one above the other
};
template <class F> struct turned_tile {
    enum { DEPTH = F::DEPTH, ACROSS = F::DEPTH > 64 ? 16 : 32, UNITS = DEPTH / (8 * F::PACKS) };
};

template <class F> __global__ __launch_bounds__(THREADS) void turned_kernel(turned_args a, F f) {
    typedef turned_tile<F> tile;
    __shared__ typename F::tables t;
    __shared__ float turn[tile::DEPTH][tile::ACROSS + 1];
    const rows_args &r = a.rows;
    int64_t above = blockIdx.x / a.tiles, across = (int64_t)(blockIdx.x % a.tiles) * tile::ACROSS;
    int64_t block = r.row / a.turned + above / a.chunks, deep = above % a.chunks * tile::DEPTH;
    int64_t first = block * a.turned + deep; // row of the weight that is the tile's first
    if (first >= r.row + a.n || first + tile::DEPTH <= r.row) return;
    if constexpr (!std::is_empty_v<typename F::tables>) {
        f.fill(t);
        __syncthreads();
    }
    for (int i = (int)threadIdx.x; i < tile::ACROSS * tile::UNITS; i += THREADS) {
        int line = i / tile::UNITS;
        uint32_t unit = (uint32_t)(deep / (8 * F::PACKS)) + (uint32_t)(i % tile::UNITS);
        int64_t stored = block * r.cols + across + line;
        if (across + line >= r.cols || f.column(unit, 0) >= a.turned) continue;
        float v[F::PACKS][8];
        if (F::NUMBERS && f.column(unit, 0) + 8 > a.turned) {
            UNROLL for (int j = 0; j < 8; j++) v[0][j] =
                f.column(unit, 0) + j < a.turned ? f.number(t, stored, f.column(unit, 0) + j) : 0;
        } else
            f.template decode<false>(t, stored, unit, v);
        UNROLL for (int p = 0; p < F::PACKS; p++) UNROLL for (int j = 0; j < 8; j++)
            turn[f.column(unit, p) - deep + j][line] = v[p][j];
    }
    __syncthreads();
    for (int i = (int)threadIdx.x; i < tile::ACROSS * tile::DEPTH; i += THREADS) {
        int64_t row = first + i / tile::ACROSS, col = across + i % tile::ACROSS;
        if (deep + i / tile::ACROSS < a.turned && row >= r.row && row < r.row + a.n && col < r.cols)
            store_number(r.out, (row - r.row) * r.ld + col, turn[i / tile::ACROSS][i % tile::ACROSS], r.narrow);
    }
}

// Any element by itself: for gathers from rows on their side, which no model asks for.
template <class F> __global__ __launch_bounds__(TURNED_THREADS) void turned_elements_kernel(turned_args a, F f) {
    __shared__ typename F::tables t;
    const rows_args &r = a.rows;
    if constexpr (!std::is_empty_v<typename F::tables>) {
        f.fill(t);
        __syncthreads();
    }
    int64_t row = blockIdx.x / a.tiles, col = (int64_t)(blockIdx.x % a.tiles) * TURNED_THREADS + threadIdx.x;
    if (col >= r.cols) return;
    int64_t from = source_row(r, row);
    float x = __uint_as_float(0x7FC00000u);
    if (from >= 0) {
        int64_t stored = from / a.turned * r.cols + col, at = from % a.turned;
        uint32_t unit = f.unit(at);
        float v[F::PACKS][8];
        if constexpr (F::NUMBERS)
            x = f.number(t, stored, at);
        else {
            f.template decode<false>(t, stored, unit, v);
            UNROLL for (int p = 0; p < F::PACKS; p++)
                UNROLL for (int j = 0; j < 8; j++) if (f.column(unit, p) + j == at) x = v[p][j];
        }
    }
    store_number(r.out, row * r.ld + col, x, r.narrow);
}

// --- launching
inline bool stores_are_wide(const decode_call &c) {
    int64_t unit = c.dtype == DTYPE_BF16 ? 8 : 4;
    return (uintptr_t)c.out % 16 == 0 && c.ld % unit == 0;
}
inline rows_args rows_args_of(const decode_call &c) {
    rows_args a = {};
    a.out = c.out, a.ld = c.ld, a.row = c.row, a.ids = c.ids, a.ids_ld = c.ids_ld;
    a.cols = c.w->cols, a.table_rows = c.w->rows;
    a.wide = stores_are_wide(c), a.narrow = c.dtype == DTYPE_BF16;
    return a;
}

// `columns` of a unit.
template <class F> void launch_rows(const struct gpu *g, const decode_call &c, const F &f) {
    rows_args a = rows_args_of(c);
    int64_t units = (a.cols + 8 * F::PACKS - 1) / (8 * F::PACKS);
    if (units == 0) return;
    a.units = units_divider_of((uint32_t)units);
    a.plain = !c.ids && a.cols % 8 == 0;
    int64_t most = UNITS_OF_LAUNCH > units ? UNITS_OF_LAUNCH / units : 1; // rows
    // A block that fills tables goes on for longer, but there are blocks enough to keep all multiprocessors busy to the
    // end: four times as many as can run at once.
    constexpr int LIMIT = sizeof(typename F::tables) <= 64 ? 2 : sizeof(typename F::tables) <= 2048 ? 4 : 16;
    int64_t busy = (int64_t)g->multiprocessors * 8 * 4 * THREADS * F::WAYS;
    for (int64_t at = 0; at < c.rows; at += most) {
        int64_t rows = c.rows - at < most ? c.rows - at : most, total = rows * units, per = total / busy;
        a.per = per < 1 ? 1 : per > LIMIT ? LIMIT : (int)per;
        a.total = (uint32_t)total;
        int threads = THREADS; // few rows: small blocks, so that they spread over the multiprocessors
        while (threads > WARP && total < (int64_t)g->multiprocessors * 2 * threads * F::WAYS) threads /= 2;
        unsigned grid = blocks_for(total, (int64_t)threads * a.per * F::WAYS);
        if (f.aligned())
            DISPATCH(c.dtype, T, LAUNCH((rows_kernel<F, T, true>), grid, threads, 0, g->stream, a, f));
        else
            DISPATCH(c.dtype, T, LAUNCH((rows_kernel<F, T, false>), grid, threads, 0, g->stream, a, f));
        a.out = (uint8_t *)a.out + rows * a.ld * (a.narrow ? 2 : 4);
        if (a.ids)
            a.ids += rows * a.ids_ld;
        else
            a.row += rows;
    }
}

template <class F> void launch_turned(const struct gpu *g, const decode_call &c, const F &f) {
    typedef turned_tile<F> tile;
    turned_args a = {};
    a.rows = rows_args_of(c), a.n = c.rows;
    a.turned = c.w->turned_rows ? c.w->turned_rows : c.w->rows;
    if (c.rows == 0 || c.w->cols == 0) return;
    if (c.ids) {
        a.tiles = blocks_for(c.w->cols, TURNED_THREADS);
        LAUNCH((turned_elements_kernel<F>), (unsigned)(a.tiles * c.rows), TURNED_THREADS, 0, g->stream, a, f);
        return;
    }
    a.tiles = blocks_for(c.w->cols, tile::ACROSS);
    a.chunks = (a.turned + tile::DEPTH - 1) / tile::DEPTH;
    int64_t blocks = (c.row + c.rows - 1) / a.turned - c.row / a.turned + 1;
    LAUNCH((turned_kernel<F>), (unsigned)(a.tiles * a.chunks * blocks), THREADS, 0, g->stream, a, f);
}

// --- blocks of a row. U: BLOCK elements in BYTES bytes, PACKS, GAP, WAYS, tables, and
//   unpack<A>(t, bytes of the block, chunk, at, v): unit `at` / 8 of chunk `chunk` of PACKS * GAP columns: the packs
//   that begin at columns at, at + GAP .. of the chunk
template <class U> struct blocks {
    enum {
        PACKS = U::PACKS,
        WAYS = U::WAYS,
        NUMBERS = 0,
        CHUNK = U::PACKS * U::GAP,
        DEPTH = U::BLOCK > 64 ? U::BLOCK : 64,
    };
    typedef typename U::tables tables;
    const uint8_t *data;
    int64_t stride;
    __device__ __forceinline__ void fill(tables &t) const { U::fill(t); } // only where tables has members
    __device__ __forceinline__ int64_t column(uint32_t unit, int pack) const {
        return (int64_t)(unit / (U::GAP / 8)) * CHUNK + unit % (U::GAP / 8) * 8 + pack * U::GAP;
    }
    __device__ __forceinline__ uint32_t unit(int64_t col) const {
        return (uint32_t)(col / CHUNK * (U::GAP / 8) + col % U::GAP / 8);
    }
    bool aligned() const { return ((uintptr_t)data | (uintptr_t)stride) % alignment_of(U::BYTES) == 0; }
    template <bool ALIGNED>
    __device__ __forceinline__ void decode(const tables &t, int64_t row, uint32_t unit, float v[PACKS][8]) const {
        constexpr uint32_t UNITS = U::BLOCK / (8 * PACKS);
        const uint8_t *block = data + row * stride + (int64_t)(unit / UNITS) * U::BYTES;
        int in_block = (int)(unit % UNITS);
        U::template unpack<ALIGNED ? alignment_of(U::BYTES) : 1>(t, block, in_block / (U::GAP / 8),
                                                                 in_block % (U::GAP / 8) * 8, v);
    }
    __device__ __forceinline__ void finish(float[PACKS][8]) const {}
    __device__ __forceinline__ float number(const tables &, int64_t, int64_t) const { return 0; } // none ends early
};
struct no_tables {};

// As weight_stride.
inline int64_t stride_of(const struct weight *w) {
    int64_t stored = !w->transposed ? w->cols : w->turned_rows ? w->turned_rows : w->rows;
    return w->stride ? (int64_t)w->stride : stored / w->format->block * w->format->block_bytes;
}
template <class F> void launch_view(const struct gpu *g, const decode_call &c, F f) {
    f.data = c.w->data, f.stride = stride_of(c.w);
    if (c.w->transposed)
        launch_turned(g, c, f);
    else
        launch_rows(g, c, f);
}
#define DECODE_BLOCKS(quant, unpacker)                                                                                 \
    case QUANT_##quant: launch_view(g, call, blocks<unpacker>{}); break
} // namespace
