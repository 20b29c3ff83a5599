// OP_EMBED: rows of a table by id, with what an adapter makes of it.
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/cuda_head.h"
#include "kernels/cuda/gpu_decode.h"
#include "kernels/cuda/gpu_table.h"

int cuda_embed_forward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cuda_backend *b = cuda_self(backend);
    const struct tensor *ids = &call->in[0], *x = &call->out[0];
    const int32_t *id = cuda_at(b, ids);
    struct embed_layout l = embed_layout_of(call, false);
    uint8_t *workspace = cuda_at(b, &call->workspace);
    float *base = (float *)(void *)(workspace + l.rows);
    struct weight w;
    struct weight_tables tables;
    bool full = tensor_present(&call->p.embed.on.full);
    if (!full && cuda_weight_on_device(b, call->p.embed.w, &w, &tables, err)) return -1;
    gpu_embed_check(&b->gpu, call);
    if (l.plain) gpu_decode_rows(&b->gpu, &w, id, ids->ld, ids->rows, cuda_at(b, x), x->dtype, x->ld);
    for (int64_t first = 0; !l.plain && first < ids->rows; first += l.chunk) {
        int64_t count = ids->rows - first < l.chunk ? ids->rows - first : l.chunk;
        if (!full) gpu_decode_rows(&b->gpu, &w, id + first * ids->ld, ids->ld, count, base, DTYPE_F32, w.cols);
        gpu_embed_finish(&b->gpu, call, base, first, count);
    }
    return cuda_launched(err);
}

// With g = scale dx of a token: V = s g A^T, dA += (s B[id])^T g, then dB[id] += V. Chunk by chunk, in f32: the
// products are small beside the head's.
static int adapter_gradients(struct cuda_backend *b, const struct op_call *call, struct error *err) {
    const struct table_adapter *on = &call->p.embed.on;
    struct embed_layout l = embed_layout_of(call, true);
    uint8_t *workspace = cuda_at(b, &call->workspace);
    float *g = (float *)(void *)(workspace + l.rows), *u = (float *)(void *)(workspace + l.u);
    float *v = (float *)(void *)(workspace + l.v);
    int64_t tokens = call->in[0].rows, ranks = on->a.rows, d = on->a.cols;
    for (int64_t first = 0; first < tokens; first += l.chunk) {
        int64_t count = tokens - first < l.chunk ? tokens - first : l.chunk;
        gpu_embed_gradient(&b->gpu, call, first, count, g);
        struct gemm_product along = {.m = count,
                                     .n = ranks,
                                     .k = d,
                                     .type = DTYPE_F32,
                                     .c_type = DTYPE_F32,
                                     .a = {g, d, false},
                                     .b = {cuda_at(b, &on->a), on->a.ld, true},
                                     .c = v + first * ranks,
                                     .ldc = ranks,
                                     .alpha = on->scale};
        if (cuda_gemm(b, &along, err)) return -1;
        if (!tensor_present(&on->da)) continue;
        gpu_embed_adapter_rows(&b->gpu, call, first, count, u);
        struct gemm_product da = {.m = ranks,
                                  .n = d,
                                  .k = count,
                                  .type = DTYPE_F32,
                                  .c_type = DTYPE_F32,
                                  .a = {u, ranks, true},
                                  .b = {g, d, false},
                                  .c = cuda_at(b, &on->da),
                                  .ldc = on->da.ld,
                                  .alpha = 1,
                                  .beta = 1};
        if (cuda_gemm(b, &da, err)) return -1;
    }
    if (tensor_present(&on->db)) gpu_embed_scatter_b(&b->gpu, call, v);
    return 0;
}

int cuda_embed_backward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cuda_backend *b = cuda_self(backend);
    if (tensor_present(&call->p.embed.on.a) && adapter_gradients(b, call, err)) return -1;
    gpu_embed_scatter_rows(&b->gpu, call);
    return cuda_launched(err);
}
