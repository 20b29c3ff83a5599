// What both backward kernels need of every query row and head: its lse in base 2 and delta = sum of dO * O, side by
// side for the rows of a head, so that a tile of them is copied like a tile of rows. A warp for each row and head.
#include "kernels/cuda/gpu_attention.cuh"

namespace {

enum { STATS_WARPS = 8 };

template <class T> __device__ float dot(const T *a, const T *b, int n, bool packs) {
    float sum = 0;
    if (packs) {
        for (int i = 4 * lane_id(); i < n; i += 4 * WARP) {
            pack<T, 4> x = *(const pack<T, 4> *)(a + i), y = *(const pack<T, 4> *)(b + i);
            UNROLL for (int k = 0; k < 4; k++) sum = fmaf(to_float(x.v[k]), to_float(y.v[k]), sum);
        }
    } else {
        for (int i = lane_id(); i < n; i += WARP) sum = fmaf(to_float(a[i]), to_float(b[i]), sum);
    }
    return warp_sum(sum);
}

template <class T>
__global__ void stats_kernel(matrix<T> o, matrix<T> d_o, matrix<float> lse, int heads, int v_dim, bool packs,
                             float *stats, int64_t stats_rows) {
    int64_t item = (int64_t)blockIdx.x * STATS_WARPS + threadIdx.y, row = item / heads, head = item % heads;
    if (row >= o.rows) return;
    float delta = dot(o.row(row) + head * v_dim, d_o.row(row) + head * v_dim, v_dim, packs);
    if (threadIdx.x) return;
    stats[head * stats_rows + row] = lse.at(row, head) * LOG2_E;
    stats[(heads + head) * stats_rows + row] = delta;
}

template <class T> void stats(const struct gpu *g, const struct op_call *call) {
    struct attention_layout w = attention_layout_of(call, true);
    int heads = call->p.attention.heads, v_dim = call->p.attention.v_dim;
    matrix<T> o = matrix_of<T>(g, &call->out[0]), d_o = matrix_of<T>(g, &call->grad_out[0]);
    bool packs = v_dim % 4 == 0 && aligned<4>(o) && aligned<4>(d_o);
    LAUNCH((stats_kernel<T>), blocks_for(o.rows * heads, STATS_WARPS), dim3(WARP, STATS_WARPS), 0, g->stream, o, d_o,
           matrix_of<float>(g, &call->saved[0]), heads, v_dim, packs,
           (float *)(g->arena + call->workspace.offset + w.stats), (int64_t)w.stats_rows);
}
} // namespace

extern "C" void gpu_attention_backward(const struct gpu *g, const struct op_call *call) {
    gpu_attention_intervals(g, call, true);
    DISPATCH(call->in[0].dtype, T, stats<T>(g, call));
    if (call->grad_in[0].dtype != DTYPE_NONE) gpu_attention_grad_queries(g, call);
    if (call->grad_in[1].dtype != DTYPE_NONE || call->grad_in[2].dtype != DTYPE_NONE) gpu_attention_grad_keys(g, call);
}
