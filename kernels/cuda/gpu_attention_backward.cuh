// Backward attention: one kernel for dQ (a block owns queries and walks over keys) and for dK, dV (a block owns keys
// and walks over queries, head by head of its group, so that the sum over heads has a fixed order). P is computed again
// from the scores and their lse. See gpu_attention.cuh for the walk.
//
// x1, x2 are the rows that the block owns: Q and dO, or K and V; y1, y2 those it walks over: K and V, or Q and dO. With
// S = x1 y1', dP = x2 y2' (transposed where keys own the block, so that P and dS are left operands as they stand in
// registers): dS = P (dP - delta) slope; dQ or dK = scale dS y1, dV = P y2.
//
// bf16, 128 wide: dQ: 4 warps of 32 queries, 32 keys at a time; dK, dV: 8 warps of 16 keys, since a warp holds both
// sums, 32 queries at a time. 64 KiB of x, and two stages of 16 KiB of y: one is read while the other arrives, one
// barrier for each tile. 256 wide the two sums do not fit into registers: dK and dV are two launches.
#pragma once

#include "kernels/cuda/gpu_attention.cuh"

namespace {

enum role { OWN_QUERIES, OWN_KEYS, OWN_KEYS_DK, OWN_KEYS_DV };

template <class T, int DK_, int DV_, int M_FRAGS_, int WARPS_, int N_, int STAGES_, role ROLE_> struct backward_shape {
    using element = T;
    static constexpr int DK = DK_, DV = DV_, M_FRAGS = M_FRAGS_, WARPS = WARPS_, N = N_, STAGES = STAGES_;
    static constexpr role ROLE = ROLE_;
    static constexpr bool QUERIES = ROLE == OWN_QUERIES, FIRST = ROLE != OWN_KEYS_DV, // the sum of dS y1
        SECOND = ROLE == OWN_KEYS || ROLE == OWN_KEYS_DV;                             // of P y2
    static constexpr int THREADS = WARPS * WARP, ROWS = 16 * M_FRAGS, M = WARPS * ROWS;
    static constexpr int X1 = M * row_stride<T, DK>, X2 = M * row_stride<T, DV>; // elements
    static constexpr int Y1 = N * row_stride<T, DK>, Y2 = N * row_stride<T, DV>; // of a stage
    static constexpr int SCRATCH = is_bf16<T> ? 0 : M * scratch_stride<N>;
    static constexpr size_t SHARED = (X1 + X2 + STAGES * (Y1 + Y2) + SCRATCH) * sizeof(T) +
                                     (QUERIES ? 0 : STAGES * 2 * N * sizeof(float)) + M * sizeof(int2);
    static_assert(SHARED <= SHARED_LIMIT && ATTENTION_ROWS % N == 0);
};

template <class T> struct gradient {
    matrix<T> m; // absent = not wanted
    int dim;
    bool acc, pairs; // pairs: two elements can be stored at once
};
template <class T>
static inline gradient<T> gradient_of(const struct gpu *g, const struct op_call *call, int i, int dim) {
    matrix<T> m = matrix_of<T>(g, &call->grad_in[i]);
    return {m, dim, call->acc[i], dim % 2 == 0 && aligned<2>(m)};
}

template <class T> struct backward_args {
    head_rows<T> x1, x2, y1, y2;
    gradient<T> d1, d2; // of x1; of x2 where keys own the block
    const int2 *seen;
    const float *stats; // (2, H, stats_rows): lse in base 2, delta
    int64_t stats_rows;
    score_map map;
    float scale;
    int heads, group;
    int part_heads;       // of a group, that one block walks over
    float *part1, *part2; // (parts, rows of x1, columns of d1), the same of d2; NULL = straight into d1, d2
};

// Two neighbours of a row. x: as the sums stand in registers.
template <class T>
__device__ void put_pair(const gradient<T> &d, int64_t row, int head, int col, float low, float high) {
    T *to = d.m.row(row) + (int64_t)head * d.dim + col;
    if (d.pairs && col < d.dim) {
        pack<T, 2> *both = (pack<T, 2> *)to, old = {};
        if (d.acc) old = *both, low += to_float(old.v[0]), high += to_float(old.v[1]);
        *both = {from_float<T>(low), from_float<T>(high)};
    } else {
        if (col < d.dim) put_gradient(to, low, d.acc);
        if (col + 1 < d.dim) put_gradient(to + 1, high, d.acc);
    }
}

// Rows [first + row0, ...) of a gradient; rows that see nothing get 0.
template <class T, int M_FRAGS, int FRAGS>
__device__ void put_rows(const gradient<T> &d, const float sums[M_FRAGS][FRAGS][4], float scale, int64_t first,
                         int row0, const int2 *seen, int head) {
    int group = lane_id() / 4, part = lane_id() % 4;
    UNROLL for (int i = 0; i < 2 * M_FRAGS; i++) {
        int local = row0 + 8 * i + group;
        if (first + local >= d.m.rows) continue;
        bool none = seen[local].x >= seen[local].y;
        UNROLL for (int n = 0; n < FRAGS; n++) {
            const float *pair = &sums[i / 2][n][i % 2 * 2];
            put_pair(d, first + local, head, n * 8 + 2 * part, none ? 0 : pair[0] * scale, none ? 0 : pair[1] * scale);
        }
    }
}

// Into the gradient, or into this block's part of it.
template <class T, int M_FRAGS, int FRAGS>
__device__ void put_sums(const gradient<T> &d, float *parts, const float sums[M_FRAGS][FRAGS][4], float scale,
                         int64_t first, int row0, const int2 *seen) {
    if (!d.m.p) return;
    if (parts) {
        matrix<float> m = {parts + blockIdx.z * d.m.rows * d.m.cols, d.m.rows, d.m.cols, d.m.cols};
        gradient<float> part = {m, d.dim, false, d.dim % 2 == 0};
        put_rows<float, M_FRAGS, FRAGS>(part, sums, scale, first, row0, seen, (int)blockIdx.x);
    } else {
        put_rows<T, M_FRAGS, FRAGS>(d, sums, scale, first, row0, seen, (int)blockIdx.x);
    }
}

template <class S, class T = typename S::element>
__global__ void __launch_bounds__(S::THREADS) attention_backward_kernel(backward_args<T> a) {
    constexpr int N_FRAGS = S::N / 8, ROWS = 2 * S::M_FRAGS;
    DYNAMIC_SHARED(T, x1);
    T *x2 = x1 + S::X1, *y1 = x2 + S::X2, *y2 = y1 + S::STAGES * S::Y1, *after = y2 + S::STAGES * S::Y2;
    float *stats = (float *)(after + S::SCRATCH);
    int2 *seen = (int2 *)(stats + (S::QUERIES ? 0 : S::STAGES * 2 * S::N));
    int warp = (int)threadIdx.x / WARP, group = lane_id() / 4, part = lane_id() % 4, row0 = warp * S::ROWS;
    float *scratch = is_bf16<T> ? nullptr : (float *)after + row0 * scratch_stride<S::N>;
    int head = (int)blockIdx.x, before = (int)blockIdx.z * a.part_heads;
    int heads = S::QUERIES ? 1 : min(a.part_heads, a.group - before);                       // that the block walks over
    int y_head = S::QUERIES ? head / a.group : head * a.group + before;                     // the first of them
    int64_t first = (int64_t)(S::QUERIES ? gridDim.y - 1 - blockIdx.y : blockIdx.y) * S::M; // those that see most

    auto load_y = [&](int stage, int of, int at) {
        load_tile<T, S::N, S::DK, S::THREADS>(y1 + stage * S::Y1, a.y1, at, of);
        load_tile<T, S::N, S::DV, S::THREADS>(y2 + stage * S::Y2, a.y2, at, of);
        if (!S::QUERIES && threadIdx.x < S::N / 2) {
            int which = (int)threadIdx.x / (S::N / 4), chunk = (int)threadIdx.x % (S::N / 4);
            copy_ahead(stats + (stage * 2 + which) * S::N + 4 * chunk,
                       a.stats + ((int64_t)which * a.heads + of) * a.stats_rows + at + 4 * chunk, true);
        }
        copy_group();
    };

    load_seen<S::M, S::THREADS>(seen, a.seen, first, a.x1.m.rows);
    __syncthreads();
    int begin = next_tile<S::M, S::N>(seen, 0, INT_MAX), at = begin, of = 0, stage = 0;
    if (at != NO_TILE) {
        load_tile<T, S::M, S::DK, S::THREADS>(x1, a.x1, first, head);
        if (S::FIRST) load_tile<T, S::M, S::DV, S::THREADS>(x2, a.x2, first, head);
        load_y(0, y_head, at);
    }
    float row_lse[ROWS] = {}, row_delta[ROWS] = {};
    UNROLL for (int i = 0; S::QUERIES && i < ROWS; i++) {
        int64_t row = first + row0 + 8 * i + group;
        if (row >= a.x1.m.rows) continue;
        row_lse[i] = a.stats[head * a.stats_rows + row];
        row_delta[i] = a.stats[((int64_t)a.heads + head) * a.stats_rows + row];
    }
    float sum1[S::FIRST ? S::M_FRAGS : 1][S::FIRST ? S::DK / 8 : 1][4] = {};
    float sum2[S::SECOND ? S::M_FRAGS : 1][S::SECOND ? S::DV / 8 : 1][4] = {};
    while (at != NO_TILE) {
        int next = next_tile<S::M, S::N>(seen, at + S::N, INT_MAX), next_of = of;
        if (next == NO_TILE && of + 1 < heads) next = begin, next_of = of + 1;
        visibility sees = visibility_of<S::ROWS, S::N>(seen + row0, at);
        copy_wait<0>();
        __syncthreads(); // this stage is there, and nobody reads the other one
        if (S::STAGES == 2 && next != NO_TILE) load_y(stage ^ 1, y_head + next_of, next);
        if (sees != SEES_NONE) {
            const T *keys = y1 + stage * S::Y1, *values = y2 + stage * S::Y2;
            const float *tile_stats = stats + stage * 2 * S::N;
            left_operand<T, S::M_FRAGS, N_FRAGS> left;
            float p[S::M_FRAGS][N_FRAGS][4] = {}, ds[S::M_FRAGS][N_FRAGS][4] = {};
            product_nt<S::DK, S::M_FRAGS, N_FRAGS>(p, x1, row0, keys);
            if (S::FIRST) product_nt<S::DV, S::M_FRAGS, N_FRAGS>(ds, x2, row0, values);
            auto differentiate = [&](auto cap) {
                constexpr bool capped = decltype(cap)::value;
                UNROLL for (int i = 0; i < 4 * S::M_FRAGS * N_FRAGS; i++) {
                    int m = i / 4 / N_FRAGS, n = i / 4 % N_FRAGS, e = i % 4, col = n * 8 + 2 * part + e % 2;
                    float lse = S::QUERIES ? row_lse[2 * m + e / 2] : tile_stats[col], slope = 1;
                    float delta = S::QUERIES ? row_delta[2 * m + e / 2] : tile_stats[S::N + col], x = p[m][n][e];
                    x = power_of_2<T>(capped ? a.map.template capped<T>(x, &slope) - lse : fmaf(x, a.map.scale2, -lse));
                    p[m][n][e] = x, ds[m][n][e] = x * (ds[m][n][e] - delta);
                    if (capped) ds[m][n][e] *= slope;
                }
            };
            if (a.map.cap_out > 0)
                differentiate(std::true_type());
            else
                differentiate(std::false_type());
            if (sees == SEES_SOME) {
                UNROLL for (int i = 0; i < ROWS; i++) {
                    int2 x = seen[row0 + 8 * i + group];
                    UNROLL for (int n = 0; n < 2 * N_FRAGS; n++) {
                        int row = at + n / 2 * 8 + 2 * part + n % 2, e = i % 2 * 2 + n % 2;
                        if (row < x.x || row >= x.y) p[i / 2][n / 2][e] = ds[i / 2][n / 2][e] = 0;
                    }
                }
            }
            if constexpr (S::SECOND) {
                left.set(p);
                product_nn<S::DV, S::M_FRAGS, N_FRAGS>(sum2, left, values, scratch);
            }
            if constexpr (S::FIRST) {
                left.set(ds);
                product_nn<S::DK, S::M_FRAGS, N_FRAGS>(sum1, left, keys, scratch);
            }
        }
        if (S::STAGES == 1) {
            __syncthreads();
            if (next != NO_TILE) load_y(0, y_head + next_of, next);
        } else
            stage ^= 1;
        at = next, of = next_of;
    }
    if constexpr (S::FIRST)
        put_sums<T, S::M_FRAGS, S::DK / 8>(a.d1, S::QUERIES ? nullptr : a.part1, sum1, a.scale, first, row0, seen);
    if constexpr (S::SECOND) put_sums<T, S::M_FRAGS, S::DV / 8>(a.d2, a.part2, sum2, 1, first, row0, seen);
}

template <class T> backward_args<T> backward_args_of(const struct gpu *g, const struct op_call *call, bool queries) {
    const auto &p = call->p.attention;
    struct attention_layout w = attention_layout_of(call, true);
    const uint8_t *at = g->arena + call->workspace.offset;
    head_rows<T> q = head_rows_of<T>(g, &call->in[0], p.head_dim), k = head_rows_of<T>(g, &call->in[1], p.head_dim);
    head_rows<T> v = head_rows_of<T>(g, &call->in[2], p.v_dim), d_o = head_rows_of<T>(g, &call->grad_out[0], p.v_dim);
    backward_args<T> a = {};
    a.x1 = queries ? q : k, a.x2 = queries ? d_o : v, a.y1 = queries ? k : q, a.y2 = queries ? v : d_o;
    a.seen = (const int2 *)(at + (queries ? w.q_seen : w.kv_seen));
    a.stats = (const float *)(at + w.stats), a.stats_rows = (int64_t)w.stats_rows;
    a.map = score_map_of(call), a.scale = p.scale;
    a.heads = p.heads, a.group = p.heads / p.kv_heads;
    return a;
}

template <class S>
void launch_backward(const struct gpu *g, const backward_args<typename S::element> &a, int64_t rows, int heads,
                     int parts) {
    if (rows == 0) return;
    allow_shared(attention_backward_kernel<S>, S::SHARED);
    LAUNCH((attention_backward_kernel<S>), dim3((unsigned)heads, blocks_for(rows, S::M), (unsigned)parts), S::THREADS,
           S::SHARED, g->stream, a);
}
} // namespace
