// The attention op: chooses who computes it. Our own kernels so far (gpu_attention.h).
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/gpu_attention.h"

#include <stdio.h>

bool cuda_attention_supports(const struct op_call *call, char *why, size_t why_size) {
    int k = call->p.attention.head_dim, v = call->p.attention.v_dim;
    if (k <= ATTENTION_MAX_DIM && v <= ATTENTION_MAX_DIM) return true;
    snprintf(why, why_size, "heads of %d and %d columns; on a GPU %d are the most", k, v, ATTENTION_MAX_DIM);
    return false;
}

static int check(const struct op_call *call, bool backward, struct error *err) {
    char why[160];
    if (!cuda_attention_supports(call, why, sizeof why)) return error_set(err, STATUS_INTERNAL, "attention: %s", why);
    if (tensor_bytes(&call->workspace) < attention_layout_of(call, backward).total)
        return error_set(err, STATUS_INTERNAL, "attention: workspace too small");
    if (backward && call->grad_out[0].dtype == DTYPE_NONE)
        return error_set(err, STATUS_INTERNAL, "attention: no gradient of o");
    return 0;
}

int cuda_attention_forward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cuda_backend *b = cuda_self(backend);
    const float *sinks;
    if (check(call, false, err) || cuda_vector(b, call->p.attention.sinks, &sinks, err)) return -1;
    if (call->in[0].rows == 0) return 0;
    gpu_attention_forward(&b->gpu, call, sinks);
    return cuda_launched(err);
}

// Sinks are frozen, and lse knows them.
int cuda_attention_backward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cuda_backend *b = cuda_self(backend);
    if (check(call, true, err)) return -1;
    if (call->in[0].rows == 0) return 0;
    gpu_attention_backward(&b->gpu, call);
    return cuda_launched(err);
}
