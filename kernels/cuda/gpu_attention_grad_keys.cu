// dK and dV. See gpu_attention_backward.cuh. Where keys and KV heads are few, the query heads of a KV head are shared
// by several blocks, and what they found is added in a second pass.
#include "kernels/cuda/gpu_attention_backward.cuh"

namespace {

template <class T, int DK, int DV, role R> constexpr auto keys_shape() {
    if constexpr (is_bf16<T> && DK <= 64)
        return backward_shape<T, DK, DV, 2, 4, 32, 2, R>();
    else if constexpr (is_bf16<T> && DK <= 128)
        return backward_shape<T, DK, DV, 1, 8, 32, 2, R>();
    else if constexpr (is_bf16<T>) // both sums of 192 and 128 leave no registers for more than 16 queries
        return backward_shape<T, DK, DV, 1, 4, 16, 2, R>();
    else
        return backward_shape < T, DK, DV, 1, DK <= 128 ? 4 : 2, 16, 1, R > ();
}

// The parts of a gradient, added in their order.
template <class T> __global__ void add_parts_kernel(gradient<T> d, const float *parts, int n) {
    int64_t item = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, items = d.m.rows * d.m.cols;
    if (item >= items) return;
    float sum = parts[item];
    for (int i = 1; i < n; i++) sum += parts[i * items + item];
    put_gradient(&d.m.at(item / d.m.cols, item % d.m.cols), sum, d.acc);
}

template <class T> void add_parts(const struct gpu *g, const gradient<T> &d, const float *parts, int n) {
    enum { BLOCK = 256 };
    if (d.m.p && d.m.rows)
        LAUNCH((add_parts_kernel<T>), blocks_for(d.m.rows * d.m.cols, BLOCK), BLOCK, 0, g->stream, d, parts, n);
}

template <class T, int DK, int DV> void grad_keys(const struct gpu *g, const struct op_call *call) {
    const auto &p = call->p.attention;
    struct attention_layout w = attention_layout_of(call, true);
    uint8_t *at = g->arena + call->workspace.offset;
    backward_args<T> a = backward_args_of<T>(g, call, false);
    a.d1 = gradient_of<T>(g, call, 1, p.head_dim), a.d2 = gradient_of<T>(g, call, 2, p.v_dim);
    a.part_heads = w.part_heads;
    if (w.parts > 1) a.part1 = (float *)(at + w.part_k), a.part2 = (float *)(at + w.part_v);
    int64_t rows = call->in[1].rows;
    if constexpr (DV <= 128) {
        launch_backward<decltype(keys_shape<T, DK, DV, OWN_KEYS>())>(g, a, rows, p.kv_heads, w.parts);
    } else {
        if (a.d1.m.p) launch_backward<decltype(keys_shape<T, DK, DV, OWN_KEYS_DK>())>(g, a, rows, p.kv_heads, w.parts);
        if (a.d2.m.p) launch_backward<decltype(keys_shape<T, DK, DV, OWN_KEYS_DV>())>(g, a, rows, p.kv_heads, w.parts);
    }
    if (w.parts > 1) add_parts(g, a.d1, a.part1, w.parts), add_parts(g, a.d2, a.part2, w.parts);
}
} // namespace

extern "C" void gpu_attention_grad_keys(const struct gpu *g, const struct op_call *call) {
    DISPATCH_ATTENTION(call, grad_keys, g, call);
}
