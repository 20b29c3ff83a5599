// See cuda_plan.h.
#include "kernels/cuda/cuda_plan.h"

bool cuda_weight_is_plain(const struct weight *w, enum dtype dtype) {
    enum quant wanted = dtype == DTYPE_BF16 ? QUANT_BF16 : QUANT_F32;
    return w->format->id == wanted && !w->transposed && !w->turned_rows && !w->tables &&
           weight_stride(w) % dtype_size(dtype) == 0;
}

struct linear_space linear_space_of(const struct op_call *call, bool backward) {
    struct linear_space s = {0};
    enum dtype dtype = call->in[0].dtype;
    size_t size = dtype_size(dtype), weight = 0, b = 0;
    int64_t rows = call->in[0].rows, in = call->in[0].cols;
    bool dropout = false, half = dtype == DTYPE_BF16;
    for (int i = 0; i < call->p.linear.n_parts; i++) {
        const struct linear_part *part = &call->p.linear.parts[i];
        size_t bytes = cuda_weight_is_plain(part->w, dtype) ? 0 : (size_t)(part->w->rows * in) * size;
        if (bytes > weight) weight = bytes;
        for (int k = 0; k < part->n_spans; k++) {
            const struct lora_span *span = &part->spans[k];
            size_t b_bytes = (size_t)(span->b.rows * span->b.cols) * size;
            if (b_bytes > b) b = b_bytes;
            if (span->u_begin + span->a.rows > s.ranks) s.ranks = span->u_begin + span->a.rows;
            dropout |= span->dropout > 0;
        }
    }
    size_t u = (size_t)(rows * s.ranks);
    s.weight = cuda_piece(&s.bytes, weight);
    s.a = cuda_piece(&s.bytes, (size_t)(s.ranks * in) * size);
    s.b = cuda_piece(&s.bytes, half ? b : 0);
    s.u = cuda_piece(&s.bytes, call->saved[0].dtype == DTYPE_NONE ? u * sizeof(float) : 0);
    s.ub = cuda_piece(&s.bytes, half ? u * size : 0);
    s.v = cuda_piece(&s.bytes, backward ? u * sizeof(float) : 0);
    s.vb = cuda_piece(&s.bytes, backward && half ? u * size : 0);
    s.dropped = cuda_piece(&s.bytes, dropout ? (size_t)(rows * in) * size : 0);
    s.through = cuda_piece(&s.bytes, dropout && backward ? (size_t)(rows * in) * sizeof(float) : 0);
    return s;
}

size_t cuda_linear_group_workspace(const struct op_call *call, bool backward, int threads) {
    (void)threads;
    return linear_space_of(call, backward).bytes;
}
