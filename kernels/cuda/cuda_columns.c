// OP_COLUMNS, OP_ROW_NORMS and OP_DROPOUT.
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/cuda_head.h"
#include "kernels/cuda/gpu_columns.h"
#include "kernels/cuda/gpu_decode.h"
#include "kernels/cuda/gpu_dropout.h"

int cuda_columns_forward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cuda_backend *b = cuda_self(backend);
    const float *bias;
    if (cuda_vector(b, call->p.columns.bias, &bias, err)) return -1;
    gpu_columns_forward(&b->gpu, call, bias);
    return cuda_launched(err);
}

int cuda_columns_backward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cuda_backend *b = cuda_self(backend);
    gpu_columns_backward(&b->gpu, call, cuda_at(b, &call->workspace));
    return cuda_launched(err);
}

int cuda_dropout_forward(struct backend *backend, const struct op_call *call, struct error *err) {
    gpu_dropout_forward(&cuda_self(backend)->gpu, call);
    return cuda_launched(err);
}

int cuda_dropout_backward(struct backend *backend, const struct op_call *call, struct error *err) {
    gpu_dropout_backward(&cuda_self(backend)->gpu, call);
    return cuda_launched(err);
}

// Panels of W in f32 get B A added where they lie, then their rows are summed: the same numbers as the definition, and
// no cancellation.
int cuda_row_norms(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cuda_backend *b = cuda_self(backend);
    const struct tensor *a = &call->p.row_norms.a, *bb = &call->p.row_norms.b;
    float *panel = cuda_at(b, &call->workspace), *out = cuda_at(b, &call->out[0]);
    struct weight w;
    struct weight_tables tables;
    if (cuda_weight_on_device(b, call->p.row_norms.w, &w, &tables, err)) return -1;
    bool norms = tensor_present(&call->in[0]);
    int64_t step = row_norms_panel(call);
    for (int64_t row = 0; row < w.rows; row += step) {
        int64_t rows = w.rows - row < step ? w.rows - row : step;
        gpu_decode(&b->gpu, &w, row, rows, panel, DTYPE_F32, w.cols);
        struct gemm_product lora = {.m = rows,
                                    .n = w.cols,
                                    .k = a->rows,
                                    .type = DTYPE_F32,
                                    .c_type = DTYPE_F32,
                                    .a = {(const float *)cuda_at(b, bb) + row * bb->ld, bb->ld, false},
                                    .b = {cuda_at(b, a), a->ld, false},
                                    .c = panel,
                                    .ldc = w.cols,
                                    .alpha = call->p.row_norms.scale,
                                    .beta = 1};
        if (norms && a->rows > 0 && cuda_gemm(b, &lora, err)) return -1;
        gpu_row_squares(&b->gpu, panel, rows, w.cols, out + row, norms);
    }
    return cuda_launched(err);
}
