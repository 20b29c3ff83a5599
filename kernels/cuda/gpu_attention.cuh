// What the attention kernels share: tiles of rows in shared memory, the two products that a warp makes with them, and
// the walk over the tiles that anybody sees.
//
// Every kernel has the same shape. A block owns M rows (of Q, or of K and V), WARPS warps of 16 M_FRAGS rows each, and
// walks over tiles of N rows of the other side. Row r of the block sees the rows [seen[r].x, seen[r].y) of the other
// side. Only tiles that some row sees are visited; a warp masks elements only where its rows do not all see the whole
// tile. Rows that see nothing get zeros, so what is computed for them may be anything.
//
// A product is nt: C (16 M_FRAGS x N) += A B', both tiles of rows in shared memory; or nn: C += P B, where P is what an
// nt left in registers: the layout of C is that of an A operand. bf16 goes through the matrix units. f32 reads the same
// tiles with plain loads and fmas, and P goes through a scratch in shared memory.
//
// Tiles are stored by rows of LD elements (a multiple of 128 bytes), the 16-byte chunks of a row permuted by its number
// (chunk ^ row % 8), so that eight rows of one column of chunks lie in different banks.
#pragma once

#include "kernels/cuda/gpu_attention.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mma.cuh"

#include <limits.h>
#include <type_traits>

#if defined(__CUDACC__)
#define UNROLL      _Pragma("unroll")
#define UNROLL_ONCE _Pragma("unroll 1")
#else
#define UNROLL
#define UNROLL_ONCE
#endif

namespace {

constexpr int NO_TILE = INT_MAX;
constexpr float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;

template <class T> constexpr bool is_bf16 = std::is_same_v<T, bf16>;
template <class T> constexpr int CHUNK = 16 / (int)sizeof(T);
template <class T, int DIM> constexpr int row_stride = (DIM * (int)sizeof(T) + 127) / 128 * 128 / (int)sizeof(T);

static inline __device__ int lane_id() {
    return (int)(threadIdx.x % WARP);
}

// Exact enough for probabilities that are rounded to bf16; f32 gets all its bits.
template <class T> __device__ float power_of_2(float x) {
    if constexpr (is_bf16<T>)
        return exp2_fast(x);
    else
        return exp2f(x);
}

// For bf16 without branches, to 1e-7 of 1.
template <class T> __device__ float tanh_of(float x) {
    if constexpr (is_bf16<T>)
        return 1 - __fdividef(2, 1 + exp2_fast(x * (2 * LOG2_E)));
    else
        return tanhf(x);
}

// Of a score, in base 2: scale2 * score, or capped as the model caps it. slope: 1 - tanh^2.
struct score_map {
    float scale2, cap_in, cap_out; // scale log2 e; scale / cap; cap log2 e. cap_out 0 = no cap
    template <class T> __device__ float capped(float score) const { return cap_out * tanh_of<T>(score * cap_in); }
    template <class T> __device__ float capped(float score, float *slope) const {
        float t = tanh_of<T>(score * cap_in);
        *slope = 1 - t * t;
        return cap_out * t;
    }
};
static inline score_map score_map_of(const struct op_call *call) {
    float scale = call->p.attention.scale, cap = call->p.attention.soft_cap;
    return {scale * LOG2_E, cap > 0 ? scale / cap : 0, cap > 0 ? cap * LOG2_E : 0};
}

// --- tiles
template <class T, int LD> __device__ T *tile_chunk(T *tile, int row, int chunk) {
    return tile + row * LD + (chunk ^ (row & 7)) * CHUNK<T>;
}
template <class T, int LD> __device__ const T *tile_at(const T *tile, int row, int col) {
    return tile + row * LD + ((col / CHUNK<T>)^(row & 7)) * CHUNK<T> + col % CHUNK<T>;
}

// One head of a matrix of rows: columns [col, col + dim). packs: 16 bytes can be copied at once.
template <class T> struct head_rows {
    matrix<T> m;
    int dim;
    bool packs;
};
template <class T> static inline head_rows<T> head_rows_of(const struct gpu *g, const struct tensor *t, int dim) {
    matrix<T> m = matrix_of<T>(g, t);
    return {m, dim, dim % CHUNK<T> == 0 && aligned<CHUNK<T>>(m)};
}

// Rows [first, first + ROWS) of a head; what lies outside of the matrix is zero. Ends no group of copies.
template <class T, int ROWS, int DIM, int THREADS>
__device__ void load_tile(T *tile, const head_rows<T> &from, int64_t first, int head) {
    constexpr int CHUNKS = DIM / CHUNK<T>, LD = row_stride<T, DIM>;
    constexpr int STEP = THREADS % CHUNKS == 0 ? THREADS / CHUNKS : 0; // rows between the chunks of a thread
    int rows = (int)min((int64_t)ROWS, from.m.rows - first);
    const T *origin = from.m.p + first * from.m.ld + (int64_t)head * from.dim;
    if (STEP && from.packs) { // the thread's chunk of every STEP-th row
        int row = (int)threadIdx.x / CHUNKS, chunk = (int)threadIdx.x % CHUNKS;
        const T *p = origin + row * from.m.ld + chunk * CHUNK<T>;
        if (chunk * CHUNK<T> >= from.dim) rows = 0;
        UNROLL_ONCE for (; row < ROWS; row += STEP, p += STEP * from.m.ld)
            copy_ahead(tile_chunk<T, LD>(tile, row, chunk), p, row < rows);
        return;
    }
    UNROLL_ONCE for (int i = (int)threadIdx.x; i < ROWS * CHUNKS; i += THREADS) {
        int row = i / CHUNKS, chunk = i % CHUNKS;
        T *to = tile_chunk<T, LD>(tile, row, chunk);
        const T *p = origin + row * from.m.ld + chunk * CHUNK<T>;
        int cols = row < rows ? from.dim - chunk * CHUNK<T> : 0; // from p on
        if (from.packs) {
            copy_ahead(to, p, cols > 0);
        } else {
            pack<T, CHUNK<T>> values;
            for (int k = 0; k < CHUNK<T>; k++) values.v[k] = k < cols ? p[k] : from_float<T>(0);
            *(pack<T, CHUNK<T>> *)to = values;
        }
    }
}

// --- products of a warp
static inline __device__ uint32_t pack_bf16(float low, float high) {
#if defined(__CUDACC__)
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<uint32_t *>(&pair);
#else
    return from_float<bf16>(low).bits | (uint32_t)from_float<bf16>(high).bits << 16;
#endif
}

// Where a lane's address for load_matrices lies within 16 rows and 16 columns: four 8 x 8 matrices, left before right,
// upper before lower. One rule for all operands, so that they share registers.
template <int LD> __device__ int lane_address(int column_chunk) {
    int lane = lane_id();
    return lane % 16 * LD + ((column_chunk + lane / 16) ^ (lane & 7)) * 8;
}

// acc += rows [row, row + 16 M_FRAGS) of a times all 8 N_FRAGS rows of b, transposed.
template <int DIM, int M_FRAGS, int N_FRAGS>
__device__ void product_nt(float acc[M_FRAGS][N_FRAGS][4], const bf16 *a, int row, const bf16 *b) {
    constexpr int LD = row_stride<bf16, DIM>;
    a += row * LD;
    UNROLL for (int k = 0; k < DIM / 16; k++) {
        int at = lane_address<LD>(2 * k);
        uint32_t left[M_FRAGS][4];
        UNROLL for (int m = 0; m < M_FRAGS; m++) load_matrices<false>(left[m], a + m * 16 * LD + at);
        UNROLL for (int n = 0; n < N_FRAGS; n += 2) {
            uint32_t right[4];
            load_matrices<false>(right, b + n * 8 * LD + at);
            uint32_t first[2] = {right[0], right[2]}, second[2] = {right[1], right[3]};
            UNROLL for (int m = 0; m < M_FRAGS; m++) {
                mma_bf16(acc[m][n], left[m], first);
                mma_bf16(acc[m][n + 1], left[m], second);
            }
        }
    }
}

// The left operand of product_nn, 16 M_FRAGS x 8 K_FRAGS, from what product_nt left: rounded to bf16, or as it is.
template <class T, int M_FRAGS, int K_FRAGS> struct left_operand {
    std::conditional_t<is_bf16<T>, uint32_t, float> x[M_FRAGS][K_FRAGS][is_bf16<T> ? 2 : 4];
    __device__ void set(const float p[M_FRAGS][K_FRAGS][4]) {
        UNROLL for (int m = 0; m < M_FRAGS; m++) {
            UNROLL for (int k = 0; k < K_FRAGS; k++) {
                if constexpr (is_bf16<T>) {
                    x[m][k][0] = pack_bf16(p[m][k][0], p[m][k][1]), x[m][k][1] = pack_bf16(p[m][k][2], p[m][k][3]);
                } else {
                    UNROLL for (int i = 0; i < 4; i++) x[m][k][i] = p[m][k][i];
                }
            }
        }
    }
};

// acc (16 M_FRAGS x DIM) += p times the rows of b.
template <int DIM, int M_FRAGS, int K_FRAGS>
__device__ void product_nn(float acc[M_FRAGS][DIM / 8][4], const left_operand<bf16, M_FRAGS, K_FRAGS> &p, const bf16 *b,
                           float *) {
    constexpr int LD = row_stride<bf16, DIM>;
    UNROLL for (int k = 0; k < K_FRAGS / 2; k++) {
        UNROLL for (int n = 0; n < DIM / 8; n += 2) {
            uint32_t right[4];
            load_matrices<true>(right, b + k * 16 * LD + lane_address<LD>(n));
            UNROLL for (int m = 0; m < M_FRAGS; m++) {
                const uint32_t *low = p.x[m][2 * k], *high = p.x[m][2 * k + 1];
                uint32_t left[4] = {low[0], low[1], high[0], high[1]};
                mma_bf16(acc[m][n], left, right);
                mma_bf16(acc[m][n + 1], left, right + 2);
            }
        }
    }
}

// The same in f32: no operand is moved between lanes, all come from shared memory.
template <int DIM, int M_FRAGS, int N_FRAGS>
__device__ void product_nt(float acc[M_FRAGS][N_FRAGS][4], const float *a, int row, const float *b) {
    constexpr int LD = row_stride<float, DIM>;
    int group = lane_id() / 4, part = lane_id() % 4;
    for (int k = 0; k < DIM; k += 4) {
        pack<float, 4> left[M_FRAGS][2];
        UNROLL for (int i = 0; i < 2 * M_FRAGS; i++) left[i / 2][i % 2] =
            *(const pack<float, 4> *)tile_at<float, LD>(a, row + 8 * i + group, k);
        UNROLL for (int n = 0; n < N_FRAGS; n++) {
            UNROLL for (int c = 0; c < 2; c++) {
                auto right = *(const pack<float, 4> *)tile_at<float, LD>(b, n * 8 + 2 * part + c, k);
                UNROLL for (int i = 0; i < 2 * M_FRAGS; i++) {
                    float *sum = &acc[i / 2][n][i % 2 * 2 + c];
                    UNROLL for (int e = 0; e < 4; e++) *sum = fmaf(left[i / 2][i % 2].v[e], right.v[e], *sum);
                }
            }
        }
    }
}

template <int N> constexpr int scratch_stride = N + 4; // rows of P, in different banks

// scratch: of this warp, 16 M_FRAGS rows.
template <int DIM, int M_FRAGS, int K_FRAGS>
__device__ void product_nn(float acc[M_FRAGS][DIM / 8][4], const left_operand<float, M_FRAGS, K_FRAGS> &p,
                           const float *b, float *scratch) {
    constexpr int LD = row_stride<float, DIM>, LEFT = scratch_stride<8 * K_FRAGS>;
    int group = lane_id() / 4, part = lane_id() % 4;
    for (int i = 0; i < 2 * M_FRAGS; i++) {
        for (int n = 0; n < K_FRAGS; n++) {
            float *to = scratch + (8 * i + group) * LEFT + n * 8 + 2 * part;
            to[0] = p.x[i / 2][n][i % 2 * 2], to[1] = p.x[i / 2][n][i % 2 * 2 + 1];
        }
    }
    __syncwarp();
    for (int k = 0; k < 8 * K_FRAGS; k++) {
        float left[2 * M_FRAGS];
        UNROLL for (int i = 0; i < 2 * M_FRAGS; i++) left[i] = scratch[(8 * i + group) * LEFT + k];
        UNROLL for (int n = 0; n < DIM / 8; n++) {
            auto right = *(const pack<float, 2> *)tile_at<float, LD>(b, k, n * 8 + 2 * part);
            UNROLL for (int i = 0; i < 2 * M_FRAGS; i++) {
                float *sum = &acc[i / 2][n][i % 2 * 2];
                sum[0] = fmaf(left[i], right.v[0], sum[0]), sum[1] = fmaf(left[i], right.v[1], sum[1]);
            }
        }
    }
    __syncwarp(); // the next P goes to the same place
}

// --- who sees what
// Intervals of rows [first, first + M) into shared memory.
template <int M, int THREADS> __device__ void load_seen(int2 *seen, const int2 *from, int64_t first, int64_t rows) {
    for (int i = (int)threadIdx.x; i < M; i += THREADS) seen[i] = first + i < rows ? from[first + i] : make_int2(0, 0);
}

// The first tile of N rows, not before row `at`, that one of the M rows sees; its first row. All lanes get it.
template <int M, int N> __device__ int next_tile(const int2 *seen, int at, int limit) {
    int next = NO_TILE;
    for (int i = lane_id(); i < M; i += WARP) {
        int2 x = seen[i];
        if (x.x < x.y && x.y > at) next = min(next, max(x.x, at));
    }
    for (int bits = WARP / 2; bits > 0; bits /= 2) next = min(next, __shfl_xor_sync(ALL_LANES, next, bits));
    return next < limit ? next / N * N : NO_TILE;
}

enum visibility { SEES_NONE, SEES_SOME, SEES_ALL };

// What the ROWS (16 or 32) rows of a warp see of [at, at + N): all that see anything see all of it?
template <int ROWS, int N> __device__ visibility visibility_of(const int2 *seen, int at) {
    int2 x = seen[lane_id() % ROWS];
    bool empty = x.x >= x.y;
    if (!__any_sync(ALL_LANES, !empty && x.x < at + N && x.y > at)) return SEES_NONE;
    return __all_sync(ALL_LANES, empty || (x.x <= at && x.y >= at + N)) ? SEES_ALL : SEES_SOME;
}

// --- launching
// Calls f<T, DK, DV>(g, call) of the smallest padded dims that hold the call's: those of models first.
#define DISPATCH_ATTENTION(call, f, ...)                                                                               \
    do {                                                                                                               \
        int k_dim = (call)->p.attention.head_dim, v_dim = (call)->p.attention.v_dim;                                   \
        int most = k_dim > v_dim ? k_dim : v_dim;                                                                      \
        if ((call)->in[0].dtype == DTYPE_F32) {                                                                        \
            if (most <= 128)                                                                                           \
                f<float, 128, 128>(__VA_ARGS__);                                                                       \
            else                                                                                                       \
                f<float, 256, 256>(__VA_ARGS__);                                                                       \
        } else if (most <= 64)                                                                                         \
            f<bf16, 64, 64>(__VA_ARGS__);                                                                              \
        else if (most <= 96)                                                                                           \
            f<bf16, 96, 96>(__VA_ARGS__);                                                                              \
        else if (most <= 128)                                                                                          \
            f<bf16, 128, 128>(__VA_ARGS__);                                                                            \
        else if (k_dim <= 192 && v_dim <= 128)                                                                         \
            f<bf16, 192, 128>(__VA_ARGS__);                                                                            \
        else                                                                                                           \
            f<bf16, 256, 256>(__VA_ARGS__);                                                                            \
    } while (0)

// Every shape needs at most 99 KiB of shared memory, which all devices from sm_80 on give a block.
constexpr size_t SHARED_LIMIT = 99 << 10, SHARED_FREE = 48 << 10;
template <class K> static inline void allow_shared(K *kernel, size_t bytes) {
    if (bytes > SHARED_FREE) cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
}
} // namespace
