// dQ. See gpu_attention_backward.cuh.
#include "kernels/cuda/gpu_attention_backward.cuh"

namespace {

template <class T, int DK, int DV> constexpr auto queries_shape() {
    constexpr role R = OWN_QUERIES;
    if constexpr (is_bf16<T> && DK <= 128)
        return backward_shape<T, DK, DV, 2, 4, 32, 2, R>();
    else if constexpr (is_bf16<T> && DV <= 128)
        return backward_shape<T, DK, DV, 1, 4, 32, 2, R>();
    else if constexpr (is_bf16<T>)
        return backward_shape<T, DK, DV, 1, 4, 16, 2, R>();
    else
        return backward_shape < T, DK, DV, 1, DK <= 128 ? 4 : 2, 16, 1, R > ();
}

template <class T, int DK, int DV> void grad_queries(const struct gpu *g, const struct op_call *call) {
    backward_args<T> a = backward_args_of<T>(g, call, true);
    a.d1 = gradient_of<T>(g, call, 0, call->p.attention.head_dim);
    launch_backward<decltype(queries_shape<T, DK, DV>())>(g, a, call->in[0].rows, call->p.attention.heads, 1);
}
} // namespace

extern "C" void gpu_attention_grad_queries(const struct gpu *g, const struct op_call *call) {
    DISPATCH_ATTENTION(call, grad_queries, g, call);
}
