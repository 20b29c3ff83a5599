// OP_TOKEN_LOGPROB and OP_LOGITS. Rows that count are chosen on the device and gathered in chunks; logits exist for one
// chunk at a time:
//   z = cap(logit_scale (m / n (h W^T + U B^T) + bias)),  U = scale dropout(h) A^T
//   lse = log sum e^z,  logp = z[target] - lse,  dz = (g onehot + s softmax) z'
// with g = -weight, s = weight where the gradient of the loss is wanted at once (fused), else g = dlogp, s = dlse -
// dlogp. How many rows count is known to the device alone: the host enqueues as many chunks as there may be, rows
// behind the last one are zeros. What is trained in f32 beside a bf16 product is rounded to bf16 where the other
// operand is bf16.
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/cuda_head.h"
#include "kernels/cuda/gpu_decode.h"
#include "kernels/cuda/gpu_head.h"
#include "kernels/cuda/gpu_table.h"

// Rows of the vocabulary whose products are summed in one chain: one of all would lose three digits of f32.
enum { STRETCH_F32 = 1024, STRETCH_BF16 = 16384 };

struct head {
    struct cuda_backend *b;
    const struct op_call *call;
    struct head_layout l;
    uint8_t *workspace;
    struct gpu_head gpu;
    enum dtype type; // of products: that of the hidden rows
    bool forward, gradient;
    struct weight w; // on the device
    struct weight_tables tables;
    const uint8_t *table;    // NULL: decoded panel by panel
    int64_t table_ld, panel; // elements; the first row of what is decoded, -1 = nothing
    struct tensor dh;        // where the gradient of h goes; none where nobody wants it
    bool dh_acc;
};

static void *at(const struct head *h, size_t offset) {
    return h->workspace + offset;
}
static const struct table_adapter *adapter(const struct head *h) {
    return &h->call->p.logprob.on;
}

static int find_table(struct head *h, struct error *err) {
    const struct tensor *full = &adapter(h)->full;
    size_t element = dtype_size(h->type);
    h->panel = -1;
    if (tensor_present(full)) {
        if (h->l.panel_rows == 0) h->table = cuda_at(h->b, full), h->table_ld = full->ld;
        return 0;
    }
    if (cuda_weight_on_device(h->b, h->call->p.logprob.w, &h->w, &h->tables, err)) return -1;
    if (h->l.panel_rows > 0) return 0;
    if ((uintptr_t)h->w.data % element || weight_stride(&h->w) % element)
        return error_set(err, STATUS_INTERNAL, "%s does not lie at a multiple of %zu bytes", h->w.name, element);
    h->table = h->w.data, h->table_ld = (int64_t)(weight_stride(&h->w) / element);
    return 0;
}

static int head_open(struct head *h, struct cuda_backend *b, const struct op_call *call, bool forward, bool gradient,
                     struct error *err) {
    *h = (struct head){.b = b, .call = call, .type = call->in[0].dtype, .forward = forward, .gradient = gradient};
    const struct table_adapter *on = &call->p.logprob.on;
    int64_t rows = call->in[0].rows, limit = call->p.logprob.trained_rows;
    h->l = head_layout_of(call, gradient);
    h->workspace = cuda_at(b, &call->workspace);
    h->gpu = (struct gpu_head){.rows = at(h, h->l.rows),
                               .targets = at(h, h->l.targets),
                               .place = at(h, h->l.place),
                               .g = at(h, h->l.g),
                               .s = at(h, h->l.s),
                               .count = at(h, h->l.count),
                               .limit = limit > 0 && limit < rows ? limit : rows,
                               .stats = at(h, h->l.stats),
                               .logits = at(h, h->l.logits),
                               .ldz = h->l.ldz};
    if (find_table(h, err) || cuda_vector(b, call->p.logprob.bias, &h->gpu.bias, err)) return -1;
    if (tensor_present(&on->bias)) h->gpu.bias = cuda_at(b, &on->bias);
    if (tensor_present(&on->magnitude)) {
        h->gpu.factor = at(h, h->l.factor);
        gpu_head_factor(&b->gpu, call, at(h, h->l.factor));
    }
    if (h->type == DTYPE_F32) return 0;
    if (tensor_present(&on->rows))
        gpu_table_round(&b->gpu, cuda_at(b, &on->rows), on->rows.ld, on->rows.rows, on->rows.cols, at(h, h->l.own16),
                        on->rows.cols);
    if (gradient && tensor_present(&on->a))
        gpu_table_round(&b->gpu, cuda_at(b, &on->b), on->b.ld, on->b.rows, on->b.cols, at(h, h->l.b16), on->b.cols);
    return 0;
}

// Rows of the table from `row` on as an operand: up to the end of the panel that begins there.
static const void *table_from(struct head *h, int64_t row, int64_t *ld) {
    const struct tensor *full = &adapter(h)->full;
    int64_t cols = h->call->p.logprob.w->cols, left = h->call->p.logprob.w->rows - row;
    if (h->table) {
        *ld = h->table_ld;
        return h->table + (size_t)(row * h->table_ld) * dtype_size(h->type);
    }
    void *panel = at(h, h->l.panel);
    int64_t rows = left < h->l.panel_rows ? left : h->l.panel_rows;
    *ld = cols;
    if (h->panel == row) return panel;
    h->panel = row;
    if (tensor_present(full))
        gpu_table_round(&h->b->gpu, (const float *)cuda_at(h->b, full) + row * full->ld, full->ld, rows, cols, panel,
                        cols);
    else
        gpu_decode(&h->b->gpu, &h->w, row, rows, panel, h->type, cols);
    return panel;
}

static struct gemm_operand operand(const void *p, int64_t ld, bool transposed) {
    return (struct gemm_operand){.p = p, .ld = ld, .transposed = transposed};
}
// C (f32) = alpha A B + beta C.
static int multiply(struct head *h, int64_t m, int64_t n, int64_t k, enum dtype type, struct gemm_operand a,
                    struct gemm_operand b, float *c, int64_t ldc, float alpha, float beta, struct error *err) {
    struct gemm_product p = {.m = m,
                             .n = n,
                             .k = k,
                             .type = type,
                             .c_type = DTYPE_F32,
                             .a = a,
                             .b = b,
                             .c = c,
                             .ldc = ldc,
                             .alpha = alpha,
                             .beta = beta};
    return cuda_gemm(h->b, &p, err);
}

// The table's own rows as an operand of products.
static struct gemm_operand own_rows(const struct head *h, bool transposed) {
    const struct tensor *rows = &adapter(h)->rows;
    if (h->type == DTYPE_BF16) return operand(at(h, h->l.own16), rows->cols, transposed);
    return operand(cuda_at(h->b, rows), rows->ld, transposed);
}

// z (m, V) = x times the table as the adapter has it, without factors and bias. x32: x as LoRA sees it.
static int table_product(struct head *h, struct gemm_operand x, struct gemm_operand x32, int64_t m, float *z,
                         int64_t ldz, struct error *err) {
    const struct table_adapter *on = adapter(h);
    int64_t v = h->call->p.logprob.w->rows, d = h->call->p.logprob.w->cols, r = on->a.rows, n = on->rows.rows;
    int64_t step = h->l.panel_rows > 0 ? h->l.panel_rows : v;
    for (int64_t row = 0; row < v; row += step) {
        int64_t rows = v - row < step ? v - row : step, ld;
        const void *table = table_from(h, row, &ld);
        if (multiply(h, m, rows, d, h->type, x, operand(table, ld, true), z + row, ldz, 1, 0, err)) return -1;
    }
    if (tensor_present(&on->a)) {
        float *u = at(h, h->l.u);
        struct gemm_operand a = operand(cuda_at(h->b, &on->a), on->a.ld, true);
        struct gemm_operand b = operand(cuda_at(h->b, &on->b), on->b.ld, true);
        if (multiply(h, m, r, d, DTYPE_F32, x32, a, u, r, on->scale, 0, err) ||
            multiply(h, m, v, r, DTYPE_F32, operand(u, r, false), b, z, ldz, 1, 1, err))
            return -1;
    }
    if (!tensor_present(&on->rows)) return 0;
    float *own = at(h, h->l.own);
    if (multiply(h, m, n, d, h->type, x, own_rows(h, true), own, n, 1, 0, err)) return -1;
    gpu_head_put_own(&h->b->gpu, h->call, own, m, z, ldz);
    return 0;
}

// dz (m, V), or columns of it from `row` on.
static struct gemm_operand dz_from(const struct head *h, int64_t row, bool transposed) {
    bool bf16 = h->type == DTYPE_BF16;
    const uint8_t *dz = (const uint8_t *)h->gpu.logits + (size_t)row * dtype_size(h->type);
    return operand(dz, bf16 ? 2 * h->l.ldz : h->l.ldz, transposed);
}

// out (m, n) = scale dz[:, first .. end) times rows of a table from `first` on, in stretches; `adds`: to what is there.
static int over_vocabulary(struct head *h, int64_t m, int64_t n, int64_t first, int64_t end, struct gemm_operand table,
                           float scale, float *out, bool adds, struct error *err) {
    int64_t step = h->type == DTYPE_BF16 ? STRETCH_BF16 : STRETCH_F32;
    size_t row_bytes = (size_t)table.ld * dtype_size(h->type);
    for (int64_t row = first; row < end; row += step) {
        int64_t rows = end - row < step ? end - row : step;
        struct gemm_operand b = operand((const uint8_t *)table.p + (size_t)(row - first) * row_bytes, table.ld, false);
        float beta = adds || row > first ? 1.0f : 0.0f;
        if (multiply(h, m, n, rows, h->type, dz_from(h, row, false), b, out, n, scale, beta, err)) return -1;
    }
    return 0;
}

// dh (m, D) = dz W: the panels from the last on, which is decoded, to the first, which the next chunk begins with.
static int hidden_gradient(struct head *h, int64_t m, struct error *err) {
    int64_t v = h->call->p.logprob.w->rows, d = h->call->p.logprob.w->cols, n = adapter(h)->rows.rows;
    int64_t step = h->l.panel_rows > 0 ? h->l.panel_rows : v, last = (v - 1) / step * step;
    float *dh = at(h, h->l.dh);
    for (int64_t row = last; row >= 0; row -= step) {
        int64_t end = v - row < step ? v : row + step, ld;
        const void *table = table_from(h, row, &ld);
        if (over_vocabulary(h, m, d, row, end, operand(table, ld, false), 1, dh, row < last, err)) return -1;
    }
    if (n == 0) return 0;
    return multiply(h, m, d, n, h->type, operand(at(h, h->l.own_dz), n, false), own_rows(h, false), dh, d, 1, 1, err);
}

// What LoRA on the head gives and takes: dh += mask (V A), dB += dz^T U, dA += V^T dropout(h), with V = scale dz B.
static int adapter_gradients(struct head *h, struct gpu_chunk chunk, struct gemm_operand x32, struct error *err) {
    const struct table_adapter *on = adapter(h);
    int64_t m = chunk.rows, r = on->a.rows, d = on->a.cols, vocabulary = on->b.rows;
    bool bf16 = h->type == DTYPE_BF16, hides = on->dropout > 0;
    float *u = at(h, h->l.u), *v = at(h, h->l.v), *dh = at(h, h->l.dh), *part = hides ? at(h, h->l.part) : dh;
    struct gemm_operand b = bf16 ? operand(at(h, h->l.b16), r, false) : operand(cuda_at(h->b, &on->b), on->b.ld, false);
    struct gemm_operand a = operand(cuda_at(h->b, &on->a), on->a.ld, false);
    if (over_vocabulary(h, m, r, 0, vocabulary, b, on->scale, v, false, err)) return -1;
    if (tensor_present(&h->dh)) {
        if (multiply(h, m, d, r, DTYPE_F32, operand(v, r, false), a, part, d, 1, hides ? 0.0f : 1.0f, err)) return -1;
        if (hides) gpu_head_add_masked(&h->b->gpu, h->call, &h->gpu, chunk, part, dh);
    }
    if (tensor_present(&on->db)) {
        if (bf16) gpu_table_round(&h->b->gpu, u, r, m, r, at(h, h->l.u16), r);
        if (multiply(h, vocabulary, r, m, h->type, dz_from(h, 0, true), operand(bf16 ? at(h, h->l.u16) : u, r, false),
                     cuda_at(h->b, &on->db), on->db.ld, 1, 1, err))
            return -1;
    }
    if (!tensor_present(&on->da)) return 0;
    return multiply(h, r, d, m, DTYPE_F32, operand(v, r, true), x32, cuda_at(h->b, &on->da), on->da.ld, 1, 1, err);
}

// All gradients of a chunk, from its logits.
static int chunk_gradients(struct head *h, struct gpu_chunk chunk, struct gemm_operand x, struct gemm_operand x32,
                           struct error *err) {
    const struct table_adapter *on = adapter(h);
    const struct gpu *g = &h->b->gpu;
    int64_t m = chunk.rows, d = h->call->p.logprob.w->cols, v = h->call->p.logprob.w->rows, n = on->rows.rows;
    bool columns = tensor_present(&on->dbias) || tensor_present(&on->dmagnitude);
    if (columns) {
        gpu_head_softmax(g, h->call, &h->gpu, chunk, h->forward);
        gpu_head_columns(g, h->call, &h->gpu, chunk);
    }
    gpu_head_gradient(g, h->call, &h->gpu, chunk, h->forward, columns);
    if (n > 0) gpu_head_take_own(g, h->call, &h->gpu, m, at(h, h->l.own_dz));
    if (tensor_present(&h->dh) && hidden_gradient(h, m, err)) return -1;
    if (tensor_present(&on->dfull) &&
        multiply(h, v, d, m, h->type, dz_from(h, 0, true), x, cuda_at(h->b, &on->dfull), on->dfull.ld, 1, 1, err))
        return -1;
    if (tensor_present(&on->drows) && multiply(h, n, d, m, h->type, operand(at(h, h->l.own_dz), n, true), x,
                                               cuda_at(h->b, &on->drows), on->drows.ld, 1, 1, err))
        return -1;
    if (tensor_present(&on->a) && adapter_gradients(h, chunk, x32, err)) return -1;
    if (tensor_present(&h->dh)) gpu_head_scatter(g, &h->gpu, chunk, at(h, h->l.dh), &h->dh, h->dh_acc);
    return 0;
}

// All rows that may count, chunk by chunk.
static int run_chunks(struct head *h, struct error *err) {
    const struct gpu *g = &h->b->gpu;
    int64_t d = h->call->in[0].cols;
    struct gemm_operand x = operand(at(h, h->l.h), d, false),
                        x32 = h->l.own_copy ? operand(at(h, h->l.h32), d, false) : x;
    gpu_head_choose(g, h->call, &h->gpu, h->forward);
    if (tensor_present(&h->dh) && !h->dh_acc) gpu_head_zero(g, &h->gpu, &h->dh);
    for (int64_t begin = 0; begin < h->gpu.limit; begin += h->l.chunk) {
        struct gpu_chunk chunk = {begin, h->l.chunk};
        gpu_head_gather(g, h->call, &h->gpu, chunk, at(h, h->l.h), h->l.own_copy ? at(h, h->l.h32) : NULL);
        if (table_product(h, x, x32, chunk.rows, h->gpu.logits, h->l.ldz, err)) return -1;
        if (!h->gradient)
            gpu_head_softmax(g, h->call, &h->gpu, chunk, h->forward);
        else if (chunk_gradients(h, chunk, x, x32, err))
            return -1;
    }
    return cuda_launched(err);
}

int cuda_token_logprob_forward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct head h;
    if (call->in[0].rows == 0) return 0;
    if (head_open(&h, cuda_self(backend), call, true, call->p.logprob.fused, err)) return -1;
    if (call->p.logprob.fused) h.dh = call->saved[0];
    if (run_chunks(&h, err)) return -1;
    if (tensor_present(&call->scalars)) gpu_head_sums(&h.b->gpu, call, &h.gpu);
    return cuda_launched(err);
}

int cuda_token_logprob_backward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cuda_backend *b = cuda_self(backend);
    struct head h;
    if (call->in[0].rows == 0) return 0;
    if (call->p.logprob.fused) { // dh was computed in the forward pass; grad_in[0] may be that very place
        if (tensor_present(&call->grad_in[0]) && call->grad_in[0].offset != call->saved[0].offset)
            gpu_head_take(&b->gpu, &call->saved[0], &call->grad_in[0], call->acc[0]);
        return cuda_launched(err);
    }
    if (head_open(&h, b, call, false, true, err)) return -1;
    h.dh = call->grad_in[0], h.dh_acc = call->acc[0];
    return run_chunks(&h, err);
}

int cuda_logits(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cuda_backend *b = cuda_self(backend);
    const struct tensor *in = &call->in[0], *out = &call->out[0];
    struct head h;
    if (in->rows == 0) return 0;
    if (head_open(&h, b, call, true, false, err)) return -1;
    struct gemm_operand x = operand(cuda_at(b, in), in->ld, false), x32 = x;
    if (h.l.own_copy) {
        x32 = operand(at(&h, h.l.h32), in->cols, false);
        gpu_head_gather(&b->gpu, call, NULL, (struct gpu_chunk){0, in->rows}, NULL, at(&h, h.l.h32));
    }
    if (table_product(&h, x, x32, in->rows, cuda_at(b, out), out->ld, err)) return -1;
    gpu_logits_finish(&b->gpu, call, &h.gpu);
    return cuda_launched(err);
}
