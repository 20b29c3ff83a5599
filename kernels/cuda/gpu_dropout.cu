// See gpu_dropout.h. A thread makes the four factors of one random number and uses them: one pass over the rows, 8 or
// 16 bytes at a time.
#include "kernels/cuda/gpu_dropout.h"

#include "kernels/cuda/four.cuh"
#include "kernels/cuda/random.cuh"

namespace {
enum { BLOCK = 256 };

template <class T> struct dropout_args {
    matrix<T> x, kept, rest; // backward: dx, and the gradients of both
    matrix<uint32_t> keys;
    const step_scalars *scalars;
    float p, factor; // 1 / (1 - p)
    uint32_t module;
    bool together, acc;
};

template <class T, bool BACKWARD> __global__ void dropout_kernel(dropout_args<T> a) {
    int64_t c = ((int64_t)blockIdx.x * BLOCK + threadIdx.x) * 4, row = blockIdx.y, n = a.x.cols - c;
    if (n <= 0) return;
    for (; row < a.x.rows; row += gridDim.y) {
        random_source source = random_source_of(a.scalars, RANDOM_DROPOUT, a.module);
        pack<float, 4> f = dropout_factors(source, a.keys.row(row), c, a.p, a.factor), kept, rest;
        if constexpr (BACKWARD) { // dx = mask (d kept - d rest) + d rest
            kept = rest = {};
            if (a.kept.p) kept = load_four(a.kept.row(row) + c, n, a.together);
            if (a.rest.p) rest = load_four(a.rest.row(row) + c, n, a.together);
            for (int i = 0; i < 4; i++) kept.v[i] = f.v[i] * (kept.v[i] - rest.v[i]) + rest.v[i];
            put_four(a.x.row(row) + c, kept, n, a.together, a.acc);
        } else {
            pack<float, 4> x = load_four(a.x.row(row) + c, n, a.together);
            for (int i = 0; i < 4; i++) {
                kept.v[i] = f.v[i] * x.v[i];
                rest.v[i] = x.v[i] - kept.v[i];
            }
            store_four(a.kept.row(row) + c, kept, n, a.together);
            store_four(a.rest.row(row) + c, rest, n, a.together);
        }
    }
}

template <class T>
void launch(const struct gpu *g, const struct op_call *call, const struct tensor *x, const struct tensor *both,
            bool backward) {
    dropout_args<T> a = {};
    a.x = matrix_of<T>(g, x), a.kept = matrix_of<T>(g, &both[0]), a.rest = matrix_of<T>(g, &both[1]);
    if (!a.x.p || a.x.rows == 0) return;
    a.keys = matrix_of<uint32_t>(g, &call->in[1]), a.scalars = scalars_of(g, call);
    a.p = call->p.dropout.p, a.factor = 1 / (1 - a.p), a.module = call->p.dropout.module;
    a.together = aligned<4>(a.x) && aligned<4>(a.kept) && aligned<4>(a.rest);
    a.acc = backward && call->acc[0];
    dim3 grid(blocks_for(a.x.cols, 4 * BLOCK), (unsigned)(a.x.rows < 65535 ? a.x.rows : 65535));
    if (backward)
        LAUNCH((dropout_kernel<T, true>), grid, BLOCK, 0, g->stream, a);
    else
        LAUNCH((dropout_kernel<T, false>), grid, BLOCK, 0, g->stream, a);
}
} // namespace

extern "C" void gpu_dropout_forward(const struct gpu *g, const struct op_call *call) {
    DISPATCH(call->in[0].dtype, T, launch<T>(g, call, &call->in[0], call->out, false));
}
extern "C" void gpu_dropout_backward(const struct gpu *g, const struct op_call *call) {
    DISPATCH(call->grad_in[0].dtype, T, launch<T>(g, call, &call->grad_in[0], call->grad_out, true));
}
