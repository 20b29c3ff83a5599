// Gradient sums, their norm, AdamW: nothing of it reaches the host.
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/cuda_head.h"

int cuda_grad_add(struct backend *backend, const struct op_call *call, struct error *err) {
    gpu_grad_add(&cuda_self(backend)->gpu, call);
    return cuda_launched(err);
}

int cuda_grad_norm(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cuda_backend *b = cuda_self(backend);
    gpu_grad_norm(&b->gpu, call, cuda_at(b, &call->workspace));
    return cuda_launched(err);
}

int cuda_adamw(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cuda_backend *b = cuda_self(backend);
    uint8_t *workspace = cuda_at(b, &call->workspace);
    for (int i = 1; i < call->p.adamw.n_groups; i++) {
        if (call->p.adamw.groups[i].begin < call->p.adamw.groups[i - 1].end)
            return error_set(err, STATUS_INTERNAL, "op adamw: group %d begins before group %d ends", i, i - 1);
    }
    gpu_adamw(&b->gpu, call, (struct gpu_group *)(void *)(workspace + ADAMW_GROUPS_AT),
              (struct gpu_adamw_step *)(void *)workspace);
    return cuda_launched(err);
}
