// See gpu_norm.h. One warp or one block for each group of columns of a row; rows are read from memory once, the later
// passes over them find them in the cache.
#include "kernels/cuda/gpu_norm.h"

#include "kernels/cuda/launch.cuh"

namespace {

enum { WIDE_GROUP = 1024, BLOCK = 256, WARPS = 4 };

template <class T> struct norm_args {
    matrix<T> x, r, s, y;          // forward: s = x + scale r, y = norm(s); without r, x is what is normed
    matrix<T> ds, dy, dx, dr;      // backward: of s past the norm, of y; of x and r
    matrix<float> rstd, mean;      // (T, G)
    const float *w, *bias;         // (D) or (D / G)
    int64_t rows, group, shared_w; // shared_w: one weight for all groups
    int groups;
    bool layer, plus_one, acc_x, acc_r;
    float eps, scale;
};

// Sum over the threads that share an item: a warp, or the block.
template <int THREADS> __device__ float item_sum(float x) {
    if constexpr (THREADS == WARP)
        return warp_sum(x);
    else
        return block_sum<THREADS>(x);
}

template <class T> __device__ float weight_at(const norm_args<T> &a, int64_t group, int64_t d) {
    if (!a.w) return 1;
    return a.w[a.shared_w ? d : group * a.group + d] + (a.plus_one ? 1.0f : 0.0f);
}
template <class T> __device__ float bias_at(const norm_args<T> &a, int64_t group, int64_t d) {
    return a.bias ? a.bias[a.shared_w ? d : group * a.group + d] : 0;
}

template <class T, int THREADS> __global__ void norm_kernel(norm_args<T> a) {
    int64_t item = (int64_t)blockIdx.x * blockDim.y + threadIdx.y, row = item / a.groups, group = item % a.groups;
    if (row >= a.rows) return; // whole warps: nobody waits for them
    int64_t first = group * a.group;
    const T *x = a.x.row(row) + first;
    float sum = 0, square = 0;
    for (int64_t d = threadIdx.x; d < a.group; d += THREADS) {
        float v = to_float(x[d]);
        if (a.r.p) {
            T rounded = from_float<T>(fmaf(a.scale, to_float(a.r.row(row)[first + d]), v));
            a.s.row(row)[first + d] = rounded;
            v = to_float(rounded);
        }
        sum += v;
        square = fmaf(v, v, square);
    }
    const T *s = a.r.p ? a.s.row(row) + first : x;
    float mean = 0, n = (float)a.group;
    if (a.layer) {
        mean = item_sum<THREADS>(sum) / n;
        square = 0;
        for (int64_t d = threadIdx.x; d < a.group; d += THREADS) { // its own elements: no barrier
            float v = to_float(s[d]) - mean;
            square = fmaf(v, v, square);
        }
    }
    float rstd = 1 / sqrtf(item_sum<THREADS>(square) / n + a.eps);
    if (threadIdx.x == 0) {
        if (a.rstd.p) a.rstd.at(row, group) = rstd;
        if (a.mean.p) a.mean.at(row, group) = mean;
    }
    T *y = a.y.row(row) + first;
    for (int64_t d = threadIdx.x; d < a.group; d += THREADS) {
        float v = (to_float(s[d]) - mean) * rstd;
        y[d] = from_float<T>(fmaf(v, weight_at(a, group, d), bias_at(a, group, d)));
    }
}

// y from s with the statistics that were saved.
template <class T, int THREADS> __global__ void recompute_kernel(norm_args<T> a) {
    int64_t item = (int64_t)blockIdx.x * blockDim.y + threadIdx.y, row = item / a.groups, group = item % a.groups;
    if (row >= a.rows) return;
    int64_t first = group * a.group;
    const T *s = a.s.row(row) + first;
    T *y = a.y.row(row) + first;
    float rstd = a.rstd.at(row, group), mean = a.mean.p ? a.mean.at(row, group) : 0;
    for (int64_t d = threadIdx.x; d < a.group; d += THREADS) {
        float v = (to_float(s[d]) - mean) * rstd;
        y[d] = from_float<T>(fmaf(v, weight_at(a, group, d), bias_at(a, group, d)));
    }
}

// With g = dy w, n = (x - mean) rstd: dx = rstd (g - mean(g) - n mean(g n)); RMS has no mean(g).
template <class T, int THREADS> __global__ void norm_backward_kernel(norm_args<T> a) {
    int64_t item = (int64_t)blockIdx.x * blockDim.y + threadIdx.y, row = item / a.groups, group = item % a.groups;
    if (row >= a.rows) return;
    int64_t first = group * a.group;
    const T *x = a.x.row(row) + first, *dy = a.dy.p ? a.dy.row(row) + first : nullptr;
    float rstd = a.rstd.at(row, group), mean = a.mean.p ? a.mean.at(row, group) : 0;
    float sum_g = 0, sum_gn = 0, n = (float)a.group;
    for (int64_t d = threadIdx.x; dy && d < a.group; d += THREADS) {
        float g = to_float(dy[d]) * weight_at(a, group, d);
        sum_g += g;
        sum_gn = fmaf(g, (to_float(x[d]) - mean) * rstd, sum_gn);
    }
    float mean_gn = item_sum<THREADS>(sum_gn) / n, mean_g = a.layer ? item_sum<THREADS>(sum_g) / n : 0;
    for (int64_t d = threadIdx.x; d < a.group; d += THREADS) {
        float g = dy ? to_float(dy[d]) * weight_at(a, group, d) : 0;
        float v = rstd * (g - mean_g - (to_float(x[d]) - mean) * rstd * mean_gn);
        if (a.ds.p) v += to_float(a.ds.row(row)[first + d]); // may lie where dx goes: read before
        if (a.dx.p) put_gradient(&a.dx.row(row)[first + d], v, a.acc_x);
        if (a.dr.p) put_gradient(&a.dr.row(row)[first + d], a.scale * v, a.acc_r);
    }
}

// Of a trained bias: db += sum of dy over rows and groups. A block has 32 columns; 8 warps share the rows.
template <class T> __global__ void bias_kernel(matrix<T> dy, float *db, int64_t cols) {
    __shared__ float part[8][WARP];
    int64_t c = (int64_t)blockIdx.x * WARP + threadIdx.x;
    float sum = 0;
    for (int64_t r = threadIdx.y; c < cols && r < dy.rows; r += 8) {
        for (int64_t d = c; d < dy.cols; d += cols) sum += to_float(dy.at(r, d));
    }
    part[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y || c >= cols) return;
    for (int i = 1; i < 8; i++) sum += part[i][threadIdx.x];
    db[c] += sum;
}

template <class T>
norm_args<T> args_of(const struct gpu *g, const struct op_call *call, const float *w, const float *bias) {
    const auto &p = call->p.norm;
    norm_args<T> a = {};
    a.rows = call->in[0].rows, a.groups = p.groups, a.group = call->in[0].cols / p.groups;
    a.w = w, a.bias = p.own_bias.dtype != DTYPE_NONE ? (const float *)(g->arena + p.own_bias.offset) : bias;
    const struct weight *of = p.w ? p.w : p.bias;
    a.shared_w = of ? of->cols == a.group : p.own_bias.cols == a.group;
    a.layer = p.kind == NORM_LAYER, a.plus_one = p.plus_one, a.eps = p.eps, a.scale = p.scale;
    a.rstd = matrix_of<float>(g, &call->saved[0]), a.mean = matrix_of<float>(g, &call->saved[1]);
    return a;
}

#define BY_WIDTH(kernel, T, a)                                                                                         \
    do {                                                                                                               \
        if ((a).group < WIDE_GROUP)                                                                                    \
            LAUNCH((kernel<T, WARP>), blocks_for((a).rows *(a).groups, WARPS), dim3(WARP, WARPS), 0, g->stream, a);    \
        else                                                                                                           \
            LAUNCH((kernel<T, BLOCK>), blocks_for((a).rows *(a).groups, 1), dim3(BLOCK, 1), 0, g->stream, a);          \
    } while (0)

template <class T> void forward(const struct gpu *g, const struct op_call *call, const float *w, const float *bias) {
    norm_args<T> a = args_of<T>(g, call, w, bias);
    bool sum = call->op == OP_ADD_NORM;
    a.x = matrix_of<T>(g, &call->in[0]), a.y = matrix_of<T>(g, &call->out[sum ? 1 : 0]);
    if (sum) a.r = matrix_of<T>(g, &call->in[1]), a.s = matrix_of<T>(g, &call->out[0]);
    BY_WIDTH(norm_kernel, T, a);
}

template <class T> void recompute(const struct gpu *g, const struct op_call *call, const float *w, const float *bias) {
    norm_args<T> a = args_of<T>(g, call, w, bias);
    a.s = matrix_of<T>(g, &call->out[0]), a.y = matrix_of<T>(g, &call->out[1]);
    BY_WIDTH(recompute_kernel, T, a);
}

template <class T> void backward(const struct gpu *g, const struct op_call *call, const float *w) {
    norm_args<T> a = args_of<T>(g, call, w, nullptr);
    bool sum = call->op == OP_ADD_NORM;
    a.x = matrix_of<T>(g, sum ? &call->out[0] : &call->in[0]);
    a.dy = matrix_of<T>(g, &call->grad_out[sum ? 1 : 0]);
    if (sum) a.ds = matrix_of<T>(g, &call->grad_out[0]), a.dr = matrix_of<T>(g, &call->grad_in[1]);
    a.dx = matrix_of<T>(g, &call->grad_in[0]);
    if (a.dr.p == a.dx.p) a.dr.p = nullptr; // both are the same numbers in one place
    a.acc_x = call->acc[0], a.acc_r = call->acc[1];
    const struct tensor *db = &call->p.norm.dbias;
    if (db->dtype != DTYPE_NONE && a.dy.p)
        LAUNCH((bias_kernel<T>), blocks_for(db->cols, WARP), dim3(WARP, 8), 0, g->stream, a.dy,
               (float *)(g->arena + db->offset), db->cols);
    BY_WIDTH(norm_backward_kernel, T, a);
}
} // namespace

extern "C" void gpu_norm_forward(const struct gpu *g, const struct op_call *call, const float *w, const float *bias) {
    DISPATCH(call->in[0].dtype, T, forward<T>(g, call, w, bias));
}
extern "C" void gpu_norm_recompute(const struct gpu *g, const struct op_call *call, const float *w, const float *bias) {
    DISPATCH(call->out[0].dtype, T, recompute<T>(g, call, w, bias));
}
extern "C" void gpu_norm_backward(const struct gpu *g, const struct op_call *call, const float *w) {
    const struct tensor *x = call->op == OP_ADD_NORM ? &call->out[0] : &call->in[0];
    DISPATCH(x->dtype, T, backward<T>(g, call, w));
}
