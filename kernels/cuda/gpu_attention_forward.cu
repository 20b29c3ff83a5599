// Forward attention: online softmax over tiles of keys, in registers, in base 2. See gpu_attention.cuh for the walk.
//
// A block owns M query rows of one head, 4 warps (2 for f32 of wide heads). bf16 up to 128 wide: M = 128, a warp has 32
// rows, so that each fragment of K and V serves two products; 64 keys at a time; 64 KiB of shared memory at 128 wide,
// so two blocks fit where registers let them. While a warp multiplies Q K', V is on its way; while it multiplies P V,
// the next K. Heads are the fastest dimension of the grid: those that share K and V run side by side and find them in
// L2. The last rows, which see the most keys, go first.
//
// Few queries over many keys (generation): blockIdx.z takes a share of the keys, what it finds goes to the workspace,
// and combine_kernel adds the shares in their order.
#include "kernels/cuda/gpu_attention.cuh"

namespace {

template <class T, int DK_, int DV_, int M_FRAGS_, int WARPS_, int N_> struct forward_shape {
    using element = T;
    static constexpr int DK = DK_, DV = DV_, M_FRAGS = M_FRAGS_, WARPS = WARPS_, N = N_;
    static constexpr int THREADS = WARPS * WARP, ROWS = 16 * M_FRAGS, M = WARPS * ROWS;
    static constexpr int Q = M * row_stride<T, DK>, K = N * row_stride<T, DK>, V = N * row_stride<T, DV>; // elements
    static constexpr int SCRATCH = is_bf16<T> ? 0 : M * scratch_stride<N>;
    static constexpr size_t SHARED = (Q + K + V + SCRATCH) * sizeof(T) + M * sizeof(int2);
    static_assert(SHARED <= SHARED_LIMIT && ATTENTION_ROWS % N == 0);
};
template <class T, int DK, int DV>
using forward_shape_of = std::conditional_t<
    is_bf16<T>, std::conditional_t<(DV <= 128), forward_shape<T, DK, DV, 2, 4, 64>, forward_shape<T, DK, DV, 1, 4, 64>>,
    std::conditional_t<(DV <= 128), forward_shape<T, DK, DV, 1, 4, 16>, forward_shape<T, DK, DV, 1, 2, 16>>>;

template <class T> struct forward_args {
    head_rows<T> q, k, v;
    matrix<T> o;
    matrix<float> lse;
    const int2 *seen;
    const float *sinks;
    score_map map;
    float factor;     // score -> base 2 where the scores need no map, else 1
    bool mapped;      // soft cap, or a scale that is not positive
    bool pairs;       // two elements of o can be stored at once
    int heads, group; // heads per KV head
    int64_t split_keys;
    float *part_o; // NULL = one block sees all keys
    float2 *part_sums;
};

// Of one row: what is left after its keys.
struct row_sums {
    float top, sum; // largest score in base 2, sum of 2^(score - top)
};

// The sink counts as a key without a value. Returns what the row of O is to be multiplied by.
__device__ float close_row(row_sums x, const float *sinks, int head, float *lse) {
    float top = x.top, sum = x.sum, rescale = 1;
    if (sinks) {
        float sink = sinks[head] * LOG2_E;
        top = fmaxf(x.top, sink);
        rescale = exp2f(x.top - top);
        sum = fmaf(sum, rescale, exp2f(sink - top));
    }
    *lse = (top + log2f(sum)) * LN_2;
    return rescale / sum;
}

// A row of no key: zero; of a sequence that lies outside of the tensors: NaN.
__device__ float nothing_seen(int2 seen) {
    return seen.y < 0 ? __int_as_float(0x7FFFFFFF) : 0;
}

template <class S, class T = typename S::element>
__global__ void __launch_bounds__(S::THREADS) attention_forward_kernel(forward_args<T> a) {
    constexpr int N_FRAGS = S::N / 8, O_FRAGS = S::DV / 8;
    DYNAMIC_SHARED(T, q_tile);
    T *k_tile = q_tile + S::Q, *v_tile = k_tile + S::K;
    int2 *seen = (int2 *)(v_tile + S::V + S::SCRATCH);
    int head = (int)blockIdx.x, kv_head = head / a.group, warp = (int)threadIdx.x / WARP;
    int group = lane_id() / 4, part = lane_id() % 4, row0 = warp * S::ROWS;
    float *scratch = is_bf16<T> ? nullptr : (float *)(v_tile + S::V) + row0 * scratch_stride<S::N>;
    int64_t first = (int64_t)(gridDim.y - 1 - blockIdx.y) * S::M;
    int from = (int)(blockIdx.z * a.split_keys), limit = INT_MAX;
    if (a.part_o) limit = (int)min((int64_t)from + a.split_keys, a.k.m.rows);

    load_seen<S::M, S::THREADS>(seen, a.seen, first, a.q.m.rows);
    __syncthreads();
    float o[S::M_FRAGS][O_FRAGS][4] = {}, top[S::M_FRAGS][2], sum[S::M_FRAGS][2] = {};
    for (int m = 0; m < S::M_FRAGS; m++) top[m][0] = top[m][1] = -INFINITY;
    int at = next_tile<S::M, S::N>(seen, from, limit);
    if (at != NO_TILE) {
        load_tile<T, S::M, S::DK, S::THREADS>(q_tile, a.q, first, head);
        load_tile<T, S::N, S::DK, S::THREADS>(k_tile, a.k, at, kv_head);
        copy_group();
    }
    while (at != NO_TILE) {
        int next = next_tile<S::M, S::N>(seen, at + S::N, limit);
        visibility sees = visibility_of<S::ROWS, S::N>(seen + row0, at);
        copy_wait<0>();
        __syncthreads(); // K is there, and nobody reads the V before
        load_tile<T, S::N, S::DV, S::THREADS>(v_tile, a.v, at, kv_head);
        copy_group();
        left_operand<T, S::M_FRAGS, N_FRAGS> p;
        if (sees != SEES_NONE) {
            float s[S::M_FRAGS][N_FRAGS][4] = {};
            product_nt<S::DK, S::M_FRAGS, N_FRAGS>(s, q_tile, row0, k_tile);
            if (a.mapped) {
                bool capped = a.map.cap_out > 0;
                auto each = [&](auto f) {
                    UNROLL for (int i = 0; i < S::M_FRAGS * N_FRAGS * 4; i++)
                        f(&s[i / 4 / N_FRAGS][i / 4 % N_FRAGS][i % 4]);
                };
                if (capped)
                    each([&](float *x) { *x = a.map.template capped<T>(*x); });
                else
                    each([&](float *x) { *x *= a.map.scale2; });
            }
            if (sees == SEES_SOME) {
                UNROLL for (int i = 0; i < 2 * S::M_FRAGS; i++) {
                    int2 x = seen[row0 + 8 * i + group];
                    UNROLL for (int n = 0; n < 2 * N_FRAGS; n++) {
                        int key = at + n / 2 * 8 + 2 * part + n % 2;
                        if (key < x.x || key >= x.y) s[i / 2][n / 2][i % 2 * 2 + n % 2] = -INFINITY;
                    }
                }
            }
            float keep[S::M_FRAGS][2];
            bool kept = true;
            UNROLL for (int i = 0; i < 2 * S::M_FRAGS; i++) {
                int m = i / 2, r = i % 2;
                float most = top[m][r], shift;
                UNROLL for (int n = 0; n < N_FRAGS; n++) most = fmaxf(most, fmaxf(s[m][n][2 * r], s[m][n][2 * r + 1]));
                most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 1));
                most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 2));
                shift = most == -INFINITY ? 0 : most * a.factor;
                keep[m][r] = power_of_2<T>(fmaf(top[m][r], a.factor, -shift));
                top[m][r] = most, sum[m][r] *= keep[m][r];
                kept = kept && keep[m][r] == 1;
                UNROLL for (int n = 0; n < N_FRAGS; n++) {
                    UNROLL for (int c = 0; c < 2; c++) {
                        float p = power_of_2<T>(fmaf(s[m][n][2 * r + c], a.factor, -shift));
                        s[m][n][2 * r + c] = p, sum[m][r] += p;
                    }
                }
            }
            p.set(s);
            if (!__all_sync(ALL_LANES, kept)) {
                UNROLL for (int m = 0; m < S::M_FRAGS; m++) {
                    UNROLL for (int n = 0; n < O_FRAGS * 4; n++) o[m][n / 4][n % 4] *= keep[m][n % 4 / 2];
                }
            }
        }
        copy_wait<0>();
        __syncthreads(); // V is there, and nobody reads this K any more
        if (next != NO_TILE) {
            load_tile<T, S::N, S::DK, S::THREADS>(k_tile, a.k, next, kv_head);
            copy_group();
        }
        if (sees != SEES_NONE) product_nn<S::DV, S::M_FRAGS, N_FRAGS>(o, p, v_tile, scratch);
        at = next;
    }

    UNROLL for (int i = 0; i < 2 * S::M_FRAGS; i++) {
        float *x = &sum[i / 2][i % 2];
        *x += __shfl_xor_sync(ALL_LANES, *x, 1);
        *x += __shfl_xor_sync(ALL_LANES, *x, 2);
    }
    UNROLL for (int i = 0; i < 2 * S::M_FRAGS; i++) {
        int m = i / 2, r = i % 2, local = row0 + 8 * i + group;
        int64_t row = first + local;
        if (row >= a.q.m.rows) continue;
        int2 x = seen[local];
        float lse = 0;
        row_sums sums = {top[m][r] == -INFINITY ? -INFINITY : top[m][r] * a.factor, sum[m][r]};
        if (a.part_o) {
            int64_t item = ((int64_t)blockIdx.z * a.q.m.rows + row) * a.heads + head;
            if (part == 0) a.part_sums[item] = {sums.top, sums.sum};
            float *to = a.part_o + item * a.v.dim;
            UNROLL for (int n = 0; n < O_FRAGS * 2; n++) {
                int col = n / 2 * 8 + 2 * part + n % 2;
                if (col < a.v.dim) to[col] = o[m][n / 2][2 * r + n % 2];
            }
            continue;
        }
        bool none = x.x >= x.y;
        float scale = none ? 0 : close_row(sums, a.sinks, head, &lse);
        if (none) lse = nothing_seen(x);
        if (a.lse.p && part == 0) a.lse.at(row, head) = lse;
        T *to = a.o.row(row) + (int64_t)head * a.v.dim;
        UNROLL for (int n = 0; n < O_FRAGS; n++) {
            int col = n * 8 + 2 * part;
            float low = none ? lse : o[m][n][2 * r] * scale, high = none ? lse : o[m][n][2 * r + 1] * scale;
            if (a.pairs && col < a.v.dim) {
                *(pack<T, 2> *)(to + col) = {from_float<T>(low), from_float<T>(high)};
            } else {
                if (col < a.v.dim) to[col] = from_float<T>(low);
                if (col + 1 < a.v.dim) to[col + 1] = from_float<T>(high);
            }
        }
    }
}

enum { COMBINE_WARPS = 4 };

// A warp for each row and head.
template <class T> __global__ void combine_kernel(forward_args<T> a, int splits) {
    int64_t item = (int64_t)blockIdx.x * COMBINE_WARPS + threadIdx.y, items = a.o.rows * a.heads;
    if (item >= items) return;
    int64_t row = item / a.heads;
    int head = (int)(item % a.heads);
    int2 x = a.seen[row];
    bool none = x.x >= x.y;
    row_sums sums = {-INFINITY, 0};
    for (int i = 0; i < splits; i++) sums.top = fmaxf(sums.top, a.part_sums[i * items + item].x);
    float lse = nothing_seen(x), scale = 0;
    for (int i = 0; i < splits && !none; i++) {
        float2 part = a.part_sums[i * items + item];
        sums.sum = fmaf(part.y, exp2f(part.x - sums.top), sums.sum);
    }
    if (!none) scale = close_row(sums, a.sinks, head, &lse);
    if (a.lse.p && threadIdx.x == 0) a.lse.at(row, head) = lse;
    for (int col = (int)threadIdx.x; col < a.v.dim; col += WARP) {
        float o = 0;
        for (int i = 0; i < splits && !none; i++) {
            float weight = exp2f(a.part_sums[i * items + item].x - sums.top);
            o = fmaf(a.part_o[(i * items + item) * a.v.dim + col], weight, o);
        }
        a.o.at(row, (int64_t)head * a.v.dim + col) = from_float<T>(none ? lse : o * scale);
    }
}

template <class T, int DK, int DV> void forward(const struct gpu *g, const struct op_call *call, const float *sinks) {
    using shape = forward_shape_of<T, DK, DV>;
    const auto &p = call->p.attention;
    struct attention_layout w = attention_layout_of(call, false);
    uint8_t *at = g->arena + call->workspace.offset;
    forward_args<T> a = {};
    a.q = head_rows_of<T>(g, &call->in[0], p.head_dim), a.k = head_rows_of<T>(g, &call->in[1], p.head_dim);
    a.v = head_rows_of<T>(g, &call->in[2], p.v_dim), a.o = matrix_of<T>(g, &call->out[0]);
    a.lse = matrix_of<float>(g, &call->saved[0]);
    a.seen = (const int2 *)(at + w.q_seen), a.sinks = sinks;
    a.map = score_map_of(call), a.mapped = a.map.cap_out > 0 || !(p.scale > 0);
    a.factor = a.mapped ? 1 : a.map.scale2;
    a.pairs = p.v_dim % 2 == 0 && aligned<2>(a.o);
    a.heads = p.heads, a.group = p.heads / p.kv_heads;
    if (w.splits > 1)
        a.part_o = (float *)(at + w.part_o), a.part_sums = (float2 *)(at + w.part_sums), a.split_keys = w.split_keys;
    allow_shared(attention_forward_kernel<shape>, shape::SHARED);
    dim3 grid((unsigned)p.heads, blocks_for(a.q.m.rows, shape::M), (unsigned)w.splits);
    LAUNCH((attention_forward_kernel<shape>), grid, shape::THREADS, shape::SHARED, g->stream, a);
    if (w.splits > 1)
        LAUNCH((combine_kernel<T>), blocks_for(a.q.m.rows * p.heads, COMBINE_WARPS), dim3(WARP, COMBINE_WARPS), 0,
               g->stream, a, w.splits);
}
} // namespace

extern "C" void gpu_attention_forward(const struct gpu *g, const struct op_call *call, const float *sinks) {
    gpu_attention_intervals(g, call, false);
    DISPATCH_ATTENTION(call, forward, g, call, sinks);
}
