// See cuda_plan.h.
#include "kernels/cuda/cuda_plan.h"
#include "kernels/cuda/gpu_attention.h"

size_t cuda_attention_workspace(const struct op_call *call, bool backward, int threads) {
    (void)threads;
    return attention_layout_of(call, backward).total;
}
