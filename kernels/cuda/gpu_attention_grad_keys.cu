// dK and dV. See gpu_attention_backward.cuh.
#include "kernels/cuda/gpu_attention_backward.cuh"

namespace {

template <class T, int DK, int DV, role R> constexpr auto keys_shape() {
    if constexpr (is_bf16<T> && DK <= 64)
        return backward_shape<T, DK, DV, 2, 4, 32, 2, R>();
    else if constexpr (is_bf16<T> && DK <= 128)
        return backward_shape<T, DK, DV, 1, 8, 32, 2, R>();
    else if constexpr (is_bf16<T> && DV <= 128)
        return backward_shape<T, DK, DV, 1, 4, 32, 2, R>();
    else if constexpr (is_bf16<T>)
        return backward_shape<T, DK, DV, 1, 4, 16, 2, R>();
    else
        return backward_shape<T, DK, DV, 1, DK <= 128 ? 4 : 2, 16, 1, R>();
}

template <class T, int DK, int DV> void grad_keys(const struct gpu *g, const struct op_call *call) {
    const auto &p = call->p.attention;
    backward_args<T> a = backward_args_of<T>(g, call, false);
    a.d1 = gradient_of<T>(g, call, 1, p.head_dim), a.d2 = gradient_of<T>(g, call, 2, p.v_dim);
    int64_t rows = call->in[1].rows;
    if constexpr (DV <= 128) {
        launch_backward<decltype(keys_shape<T, DK, DV, OWN_KEYS>())>(g, a, rows, p.kv_heads);
    } else {
        if (a.d1.m.p) launch_backward<decltype(keys_shape<T, DK, DV, OWN_KEYS_DK>())>(g, a, rows, p.kv_heads);
        if (a.d2.m.p) launch_backward<decltype(keys_shape<T, DK, DV, OWN_KEYS_DV>())>(g, a, rows, p.kv_heads);
    }
}
} // namespace

extern "C" void gpu_attention_grad_keys(const struct gpu *g, const struct op_call *call) {
    DISPATCH_ATTENTION(call, grad_keys, g, call);
}
