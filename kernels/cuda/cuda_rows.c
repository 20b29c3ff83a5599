// Ops over token rows: the launchers do the work, this finds their weights.
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/gpu_norm.h"
#include "kernels/cuda/gpu_rows.h"

static int norm_weights(struct cuda_backend *b, const struct op_call *call, const float **w, const float **bias,
                        struct error *err) {
    return cuda_vector(b, call->p.norm.w, w, err) || cuda_vector(b, call->p.norm.bias, bias, err) ? -1 : 0;
}

int cuda_norm_forward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cuda_backend *b = cuda_self(backend);
    const float *w, *bias;
    if (norm_weights(b, call, &w, &bias, err)) return -1;
    gpu_norm_forward(&b->gpu, call, w, bias);
    return cuda_launched(err);
}

int cuda_norm_recompute(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cuda_backend *b = cuda_self(backend);
    const float *w, *bias;
    if (norm_weights(b, call, &w, &bias, err)) return -1;
    gpu_norm_recompute(&b->gpu, call, w, bias);
    return cuda_launched(err);
}

int cuda_norm_backward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cuda_backend *b = cuda_self(backend);
    const float *w, *bias;
    if (norm_weights(b, call, &w, &bias, err)) return -1;
    gpu_norm_backward(&b->gpu, call, w);
    return cuda_launched(err);
}

// Without weights there is only the launch.
#define LAUNCHED(name)                                                                                                 \
    int cuda_##name(struct backend *backend, const struct op_call *call, struct error *err) {                          \
        gpu_##name(&cuda_self(backend)->gpu, call);                                                                    \
        return cuda_launched(err);                                                                                     \
    }
LAUNCHED(add_forward)
LAUNCHED(add_backward)
LAUNCHED(glu_forward)
LAUNCHED(glu_backward)
LAUNCHED(act_forward)
LAUNCHED(act_backward)
LAUNCHED(rope_forward)
LAUNCHED(rope_backward)
LAUNCHED(copy)
LAUNCHED(fill)
LAUNCHED(kv_write)
