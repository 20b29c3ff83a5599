// See gpu_moe_rows.h. All of it is bound by memory: 16 bytes at a time where rows allow it. A pair's row is a warp's
// work (the warps of a block have pairs of the same tokens, whose rows they find in L1), a token's sum over its pairs a
// block's.
#include "kernels/cuda/gpu_moe_rows.h"

#include "kernels/cuda/launch.cuh"

namespace {

enum { WARPS = 8, BLOCK = 128 };

template <class T> constexpr int VECTOR = 16 / (int)sizeof(T);

// Runs f<N>() with N elements at a time: VECTOR where `wide`, else one.
#define BY_PACK(wide, T, N, ...)                                                                                       \
    do {                                                                                                               \
        if (wide) {                                                                                                    \
            constexpr int N = VECTOR<T>;                                                                               \
            __VA_ARGS__;                                                                                               \
        } else {                                                                                                       \
            constexpr int N = 1;                                                                                       \
            __VA_ARGS__;                                                                                               \
        }                                                                                                              \
    } while (0)

template <class T, int N> __device__ pack<T, N> &pack_at(T *p, int64_t i) {
    return ((pack<T, N> *)p)[i];
}

// --- pairs

template <class T> struct pair_args {
    matrix<T> x;       // (T, D) of tokens
    matrix<T> to;      // (S, D) of pairs: to [+]= weight x; absent: not wanted
    matrix<T> with;    // (S, D): dot [+]= x with
    matrix<float> dot; // (T, k); absent: not wanted
    matrix<float> weights;
    matrix<int32_t> map;
    matrix<uint32_t> keys, to_keys; // (T, 2), (S, 2); absent: not wanted
    int used;
    bool acc, acc_dot;
};

template <class T, int N> __global__ void pair_kernel(pair_args<T> a) {
    int64_t pair = (int64_t)blockIdx.x * WARPS + threadIdx.y;
    if (pair >= a.map.rows) return;
    int64_t token = pair / a.used, choice = pair % a.used, place = a.map.at(pair, 1);
    float weight = a.weights.p ? a.weights.at(token, choice) : 1, sum = 0;
    T *x = a.x.row(token), *to = a.to.p ? a.to.row(place) : nullptr, *with = a.dot.p ? a.with.row(place) : nullptr;
    for (int64_t i = threadIdx.x; i < a.x.cols / N; i += WARP) {
        pack<T, N> v = pack_at<T, N>(x, i);
        if (with) {
            pack<T, N> y = pack_at<T, N>(with, i);
            for (int e = 0; e < N; e++) sum = fmaf(to_float(v.v[e]), to_float(y.v[e]), sum);
        }
        if (!to) continue;
        pack<T, N> s;
        if (a.acc) s = pack_at<T, N>(to, i);
        for (int e = 0; e < N; e++) {
            float add = weight * to_float(v.v[e]);
            s.v[e] = from_float<T>(a.acc ? to_float(s.v[e]) + add : add);
        }
        pack_at<T, N>(to, i) = s;
    }
    if (a.dot.p) {
        sum = warp_sum(sum);
        if (threadIdx.x == 0) put_gradient(&a.dot.at(token, choice), sum, a.acc_dot);
    }
    if (a.to_keys.p && threadIdx.x < 2) a.to_keys.at(place, threadIdx.x) = a.keys.at(token, threadIdx.x);
}

template <class T> void pairs(const struct gpu *g, const pair_args<T> &a) {
    bool wide = a.x.cols % VECTOR<T> == 0 && aligned<VECTOR<T>>(a.x) && (!a.to.p || aligned<VECTOR<T>>(a.to)) &&
                (!a.dot.p || aligned<VECTOR<T>>(a.with));
    if (a.map.rows == 0) return;
    BY_PACK(wide, T, N, LAUNCH((pair_kernel<T, N>), blocks_for(a.map.rows, WARPS), dim3(WARP, WARPS), 0, g->stream, a));
}

// --- tokens: out [+]= sum of weight s over a token's pairs, in their order

template <class T> struct token_args {
    matrix<T> s, out;
    matrix<float> weights;
    matrix<int32_t> map;
    int used;
    bool acc;
};

template <class T, int N> __global__ void token_kernel(token_args<T> a) {
    int64_t token = blockIdx.x, first = token * a.used;
    T *out = a.out.row(token);
    for (int64_t i = threadIdx.x; i < a.out.cols / N; i += BLOCK) {
        float sum[N] = {};
        for (int j = 0; j < a.used; j++) {
            float weight = a.weights.p ? a.weights.at(token, j) : 1;
            pack<T, N> v = pack_at<T, N>(a.s.row(a.map.at(first + j, 1)), i);
            for (int e = 0; e < N; e++) sum[e] = fmaf(weight, to_float(v.v[e]), sum[e]);
        }
        pack<T, N> y;
        if (a.acc) y = pack_at<T, N>(out, i);
        for (int e = 0; e < N; e++) y.v[e] = from_float<T>(a.acc ? to_float(y.v[e]) + sum[e] : sum[e]);
        pack_at<T, N>(out, i) = y;
    }
}

template <class T>
void tokens(const struct gpu *g, const struct op_call *call, const struct tensor *s, const struct tensor *out,
            bool acc) {
    token_args<T> a = {};
    a.s = matrix_of<T>(g, s), a.out = matrix_of<T>(g, out), a.weights = matrix_of<float>(g, &call->in[1]);
    a.map = matrix_of<int32_t>(g, &call->in[2]), a.used = call->p.moe_rows.used, a.acc = acc;
    bool wide = a.out.cols % VECTOR<T> == 0 && aligned<VECTOR<T>>(a.s) && aligned<VECTOR<T>>(a.out);
    if (a.out.rows == 0) return;
    BY_PACK(wide, T, N, LAUNCH((token_kernel<T, N>), (unsigned)a.out.rows, BLOCK, 0, g->stream, a));
}

template <class T> pair_args<T> pair_args_of(const struct gpu *g, const struct op_call *call) {
    pair_args<T> a = {};
    a.weights = matrix_of<float>(g, &call->in[1]), a.map = matrix_of<int32_t>(g, &call->in[2]);
    a.used = call->p.moe_rows.used;
    return a;
}

template <class T> void gather(const struct gpu *g, const struct op_call *call) {
    pair_args<T> a = pair_args_of<T>(g, call);
    a.x = matrix_of<T>(g, &call->in[0]), a.to = matrix_of<T>(g, &call->out[0]);
    a.keys = matrix_of<uint32_t>(g, &call->in[3]), a.to_keys = matrix_of<uint32_t>(g, &call->out[1]);
    pairs(g, a);
}

template <class T> void gather_backward(const struct gpu *g, const struct op_call *call) {
    pair_args<T> a = pair_args_of<T>(g, call);
    a.x = matrix_of<T>(g, &call->in[0]), a.with = matrix_of<T>(g, &call->grad_out[0]);
    a.dot = matrix_of<float>(g, &call->grad_in[1]), a.acc_dot = call->acc[1];
    if (a.dot.p) pairs(g, a);
    if (call->grad_in[0].dtype != DTYPE_NONE) tokens<T>(g, call, &call->grad_out[0], &call->grad_in[0], call->acc[0]);
}

template <class T> void combine_backward(const struct gpu *g, const struct op_call *call) {
    pair_args<T> a = pair_args_of<T>(g, call);
    a.x = matrix_of<T>(g, &call->grad_out[0]);
    a.to = matrix_of<T>(g, &call->grad_in[0]), a.acc = call->acc[0];
    a.with = matrix_of<T>(g, &call->in[0]), a.dot = matrix_of<float>(g, &call->grad_in[1]), a.acc_dot = call->acc[1];
    if (a.to.p || a.dot.p) pairs(g, a);
}

// --- gate of a shared expert: y = sigmoid(g) x, a warp for each row

template <class T> struct gate_args {
    matrix<T> x, gate, y; // forward: y; backward: y is its gradient
    matrix<T> dx, dgate;  // absent: not wanted
    bool acc_x, acc_gate;
};

template <class T> __device__ float sigmoid_of(const gate_args<T> &a, int64_t row) {
    return 1 / (1 + expf(-to_float(a.gate.at(row, 0))));
}

template <class T, int N> __global__ void gate_kernel(gate_args<T> a) {
    int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.y;
    if (row >= a.x.rows) return;
    float s = sigmoid_of(a, row);
    for (int64_t i = threadIdx.x; i < a.x.cols / N; i += WARP) {
        pack<T, N> v = pack_at<T, N>(a.x.row(row), i);
        for (int e = 0; e < N; e++) v.v[e] = from_float<T>(s * to_float(v.v[e]));
        pack_at<T, N>(a.y.row(row), i) = v;
    }
}

template <class T, int N> __global__ void gate_backward_kernel(gate_args<T> a) {
    int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.y;
    if (row >= a.x.rows) return;
    float s = sigmoid_of(a, row), sum = 0;
    for (int64_t i = threadIdx.x; i < a.x.cols / N; i += WARP) {
        pack<T, N> v = pack_at<T, N>(a.x.row(row), i), dy = pack_at<T, N>(a.y.row(row), i), d = {};
        if (a.dx.p && a.acc_x) d = pack_at<T, N>(a.dx.row(row), i);
        for (int e = 0; e < N; e++) {
            float g = to_float(dy.v[e]);
            sum = fmaf(g, to_float(v.v[e]), sum);
            d.v[e] = from_float<T>(a.acc_x ? fmaf(s, g, to_float(d.v[e])) : s * g);
        }
        if (a.dx.p) pack_at<T, N>(a.dx.row(row), i) = d;
    }
    sum = warp_sum(sum);
    if (a.dgate.p && threadIdx.x == 0) put_gradient(&a.dgate.at(row, 0), sum * s * (1 - s), a.acc_gate);
}

template <class T> void gate(const struct gpu *g, const struct op_call *call, bool backward) {
    gate_args<T> a = {};
    a.x = matrix_of<T>(g, &call->in[0]), a.gate = matrix_of<T>(g, &call->in[1]);
    a.y = matrix_of<T>(g, backward ? &call->grad_out[0] : &call->out[0]);
    if (backward) a.dx = matrix_of<T>(g, &call->grad_in[0]), a.dgate = matrix_of<T>(g, &call->grad_in[1]);
    a.acc_x = backward && call->acc[0], a.acc_gate = backward && call->acc[1];
    bool wide = a.x.cols % VECTOR<T> == 0 && aligned<VECTOR<T>>(a.x) && aligned<VECTOR<T>>(a.y) &&
                (!a.dx.p || aligned<VECTOR<T>>(a.dx));
    unsigned blocks = blocks_for(a.x.rows, WARPS);
    if (blocks == 0) return;
    if (backward)
        BY_PACK(wide, T, N, LAUNCH((gate_backward_kernel<T, N>), blocks, dim3(WARP, WARPS), 0, g->stream, a));
    else
        BY_PACK(wide, T, N, LAUNCH((gate_kernel<T, N>), blocks, dim3(WARP, WARPS), 0, g->stream, a));
}

// --- latent attention: per head, kv is {nope, v}, k is {nope, r}; a block for each token

template <class T> struct keys_args {
    matrix<T> kv, r, k, v; // of the values, or of their gradients; absent: k, v no gradient, kv, r not wanted
    int heads;
    int64_t nope, width, turned; // columns of a head in nope, v, r
    bool acc_kv, acc_r;
};

template <class T, int N> __global__ void keys_kernel(keys_args<T> a) {
    int64_t row = blockIdx.x, nope = a.nope / N, width = a.width / N, turned = a.turned / N, dim = nope + turned;
    T *kv = a.kv.row(row), *r = a.r.row(row), *k = a.k.row(row);
    for (int64_t i = threadIdx.x; i < a.heads * dim; i += BLOCK) {
        int64_t h = i / dim, d = i % dim;
        pack_at<T, N>(k, i) = d < nope ? pack_at<T, N>(kv, h * (nope + width) + d) : pack_at<T, N>(r, d - nope);
    }
    if (width == 0) return;
    T *v = a.v.row(row);
    for (int64_t i = threadIdx.x; i < a.heads * width; i += BLOCK)
        pack_at<T, N>(v, i) = pack_at<T, N>(kv, i / width * (nope + width) + nope + i % width);
}

template <class T, int N> __global__ void keys_backward_kernel(keys_args<T> a) {
    int64_t row = blockIdx.x, nope = a.nope / N, width = a.width / N, turned = a.turned / N, both = nope + width;
    T *k = a.k.p ? a.k.row(row) : nullptr, *v = a.v.p && width ? a.v.row(row) : nullptr;
    for (int64_t i = threadIdx.x; a.kv.p && i < a.heads * both; i += BLOCK) {
        int64_t h = i / both, d = i % both;
        pack<T, N> g = {}, *to = &pack_at<T, N>(a.kv.row(row), i);
        if (d < nope && k) g = pack_at<T, N>(k, h * (nope + turned) + d);
        if (d >= nope && v) g = pack_at<T, N>(v, h * width + d - nope);
        if (a.acc_kv) {
            pack<T, N> old = *to;
            for (int e = 0; e < N; e++) g.v[e] = from_float<T>(to_float(old.v[e]) + to_float(g.v[e]));
        }
        *to = g;
    }
    for (int64_t d = threadIdx.x; a.r.p && d < turned; d += BLOCK) {
        float sum[N] = {};
        for (int h = 0; h < a.heads && k; h++) {
            pack<T, N> g = pack_at<T, N>(k, h * (nope + turned) + nope + d);
            for (int e = 0; e < N; e++) sum[e] += to_float(g.v[e]);
        }
        pack<T, N> y, *to = &pack_at<T, N>(a.r.row(row), d);
        if (a.acc_r) y = *to;
        for (int e = 0; e < N; e++) y.v[e] = from_float<T>(a.acc_r ? to_float(y.v[e]) + sum[e] : sum[e]);
        *to = y;
    }
}

template <class T> void mla_keys(const struct gpu *g, const struct op_call *call, bool backward) {
    keys_args<T> a = {};
    const struct tensor *small = backward ? call->grad_in : call->in, *large = backward ? call->grad_out : call->out;
    a.kv = matrix_of<T>(g, &small[0]), a.r = matrix_of<T>(g, &small[1]);
    a.k = matrix_of<T>(g, &large[0]), a.v = matrix_of<T>(g, &large[1]);
    a.heads = call->p.mla.heads, a.nope = call->p.mla.nope, a.width = call->p.mla.v_dim, a.turned = call->in[1].cols;
    a.acc_kv = backward && call->acc[0], a.acc_r = backward && call->acc[1];
    bool wide = a.nope % VECTOR<T> == 0 && a.width % VECTOR<T> == 0 && a.turned % VECTOR<T> == 0;
    const matrix<T> *all[] = {&a.kv, &a.r, &a.k, &a.v};
    for (int i = 0; i < 4; i++) wide = wide && (!all[i]->p || aligned<VECTOR<T>>(*all[i]));
    if (call->in[0].rows == 0) return;
    unsigned blocks = (unsigned)call->in[0].rows;
    if (backward)
        BY_PACK(wide, T, N, LAUNCH((keys_backward_kernel<T, N>), blocks, BLOCK, 0, g->stream, a));
    else
        BY_PACK(wide, T, N, LAUNCH((keys_kernel<T, N>), blocks, BLOCK, 0, g->stream, a));
}
} // namespace

extern "C" void gpu_moe_gather_forward(const struct gpu *g, const struct op_call *call) {
    DISPATCH(call->in[0].dtype, T, gather<T>(g, call));
}
extern "C" void gpu_moe_gather_backward(const struct gpu *g, const struct op_call *call) {
    DISPATCH(call->in[0].dtype, T, gather_backward<T>(g, call));
}
extern "C" void gpu_moe_combine_forward(const struct gpu *g, const struct op_call *call) {
    DISPATCH(call->in[0].dtype, T, tokens<T>(g, call, &call->in[0], &call->out[0], false));
}
extern "C" void gpu_moe_combine_backward(const struct gpu *g, const struct op_call *call) {
    DISPATCH(call->in[0].dtype, T, combine_backward<T>(g, call));
}
extern "C" void gpu_gate_forward(const struct gpu *g, const struct op_call *call) {
    DISPATCH(call->in[0].dtype, T, gate<T>(g, call, false));
}
extern "C" void gpu_gate_backward(const struct gpu *g, const struct op_call *call) {
    DISPATCH(call->in[0].dtype, T, gate<T>(g, call, true));
}
extern "C" void gpu_mla_keys_forward(const struct gpu *g, const struct op_call *call) {
    DISPATCH(call->in[0].dtype, T, mla_keys<T>(g, call, false));
}
extern "C" void gpu_mla_keys_backward(const struct gpu *g, const struct op_call *call) {
    const struct tensor *t = &call->in[0];
    DISPATCH(t->dtype, T, mla_keys<T>(g, call, true));
}
