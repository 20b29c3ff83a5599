// See cuda_head.h.
#include "kernels/cuda/cuda_head.h"

#include "kernels/cuda/cuda_plan.h"
#include "kernels/cuda/gpu_columns.h"

enum { ALIGNMENT = 256 };
#define MIB              ((size_t)1 << 20)
#define HEAD_PANEL_BYTES (256 * MIB)

// Takes `bytes` from the end of what is taken already.
static size_t take(size_t *total, size_t bytes) {
    size_t at = *total;
    *total += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return at;
}
static size_t floats(size_t rows, size_t cols) {
    return rows * cols * sizeof(float);
}

// --- the embedding

struct embed_layout embed_layout_of(const struct op_call *call, bool backward) {
    const struct table_adapter *on = &call->p.embed.on;
    int64_t tokens = call->in[0].rows;
    size_t d = (size_t)call->p.embed.w->cols, ranks = (size_t)on->a.rows;
    struct embed_layout l = {.chunk = tokens < EMBED_CHUNK ? tokens : EMBED_CHUNK};
    bool lora = tensor_present(&on->a), full = tensor_present(&on->full);
    l.plain =
        !lora && !full && !tensor_present(&on->rows) && call->p.embed.scale == 1 && call->p.embed.noise_alpha == 0;
    if (backward ? lora : !full && !l.plain) l.rows = take(&l.total, floats((size_t)l.chunk, d));
    if (!backward || !lora) return l;
    l.u = take(&l.total, floats((size_t)l.chunk, ranks));
    l.v = take(&l.total, floats((size_t)tokens, ranks));
    return l;
}

size_t cuda_embed_workspace(const struct op_call *call, bool backward, int threads) {
    (void)threads;
    return embed_layout_of(call, backward).total;
}

// --- the head

static bool used_as_is(const struct op_call *call) {
    const struct weight *w = call->p.logprob.w;
    bool bf16 = call->in[0].dtype == DTYPE_BF16;
    if (tensor_present(&call->p.logprob.on.full)) return !bf16;
    return w->format->id == (bf16 ? QUANT_BF16 : QUANT_F32) && !w->transposed && !w->tables;
}

// All of the table when that is no more than HEAD_PANEL_BYTES, else as many whole 256 rows as fit.
static int64_t panel_rows_of(const struct op_call *call) {
    const struct weight *w = call->p.logprob.w;
    int64_t rows = call->p.logprob.panel_rows;
    if (used_as_is(call)) return 0;
    if (rows == 0) rows = (int64_t)(HEAD_PANEL_BYTES / ((size_t)w->cols * dtype_size(call->in[0].dtype)));
    if (rows >= w->rows) return w->rows;
    return rows > 256 ? rows / 256 * 256 : rows > 0 ? rows : 1;
}

struct head_layout head_layout_of(const struct op_call *call, bool gradient) {
    const struct table_adapter *on = &call->p.logprob.on;
    const struct weight *w = call->p.logprob.w;
    bool scores = call->op == OP_TOKEN_LOGPROB, bf16 = call->in[0].dtype == DTYPE_BF16, lora = tensor_present(&on->a);
    size_t t = (size_t)call->in[0].rows, d = (size_t)w->cols, v = (size_t)w->rows, ranks = (size_t)on->a.rows;
    size_t own = (size_t)on->rows.rows, element = dtype_size(call->in[0].dtype);
    struct head_layout l = {.chunk = call->in[0].rows};
    if (scores && call->p.logprob.chunk_rows < l.chunk) l.chunk = call->p.logprob.chunk_rows;
    size_t chunk = (size_t)l.chunk;
    l.ldz = (w->rows + LOGITS_ALIGNMENT - 1) / LOGITS_ALIGNMENT * LOGITS_ALIGNMENT;
    if (scores) {
        size_t *lists[] = {&l.rows, &l.place, &l.targets, &l.g, &l.s};
        for (int i = 0; i < 5; i++) *lists[i] = take(&l.total, t * sizeof(float));
        l.count = take(&l.total, sizeof(int32_t));
        l.stats = take(&l.total, floats(chunk, 2));
        l.h = take(&l.total, chunk * d * element);
        l.logits = take(&l.total, floats(chunk, (size_t)l.ldz));
    }
    l.own_copy = lora && (bf16 || on->dropout > 0);
    if (l.own_copy) l.h32 = take(&l.total, floats(chunk, d));
    if (lora) l.u = take(&l.total, floats(chunk, ranks));
    if (tensor_present(&on->rows)) {
        l.own = take(&l.total, floats(chunk, own));
        if (bf16) l.own16 = take(&l.total, own * d * element);
    }
    if (tensor_present(&on->magnitude)) l.factor = take(&l.total, floats(1, v));
    if (gradient) {
        l.dh = take(&l.total, floats(chunk, d));
        if (lora) l.v = take(&l.total, floats(chunk, ranks));
        if (lora && on->dropout > 0) l.part = take(&l.total, floats(chunk, d));
        if (lora && bf16) {
            l.u16 = take(&l.total, chunk * ranks * element);
            l.b16 = take(&l.total, v * ranks * element);
        }
        if (tensor_present(&on->rows)) l.own_dz = take(&l.total, chunk * own * element);
    }
    l.panel_rows = panel_rows_of(call);
    l.panel = take(&l.total, (size_t)l.panel_rows * d * element);
    return l;
}

size_t cuda_token_logprob_workspace(const struct op_call *call, bool backward, int threads) {
    (void)threads;
    if (backward && call->p.logprob.fused) return 0;
    return head_layout_of(call, backward || call->p.logprob.fused).total;
}

size_t cuda_logits_workspace(const struct op_call *call, bool backward, int threads) {
    (void)backward, (void)threads;
    return head_layout_of(call, false).total;
}

// --- columns and norms of rows

size_t cuda_columns_workspace(const struct op_call *call, bool backward, int threads) {
    (void)threads;
    bool trained = tensor_present(&call->p.columns.dmagnitude) || tensor_present(&call->p.columns.dbias);
    if (!backward || !trained) return 0;
    size_t segments = ((size_t)call->in[0].rows + GPU_COLUMNS_SEGMENT - 1) / GPU_COLUMNS_SEGMENT;
    return floats(2 * segments, (size_t)call->in[0].cols);
}

// A quarter of the weight, 1 to 16 MiB: the second cache holds a panel until its rows are summed.
int64_t row_norms_panel(const struct op_call *call) {
    const struct weight *w = call->p.row_norms.w;
    size_t row = (size_t)w->cols * sizeof(float), bytes = row * (size_t)w->rows / 4;
    if (bytes < MIB) bytes = MIB;
    if (bytes > 16 * MIB) bytes = 16 * MIB;
    int64_t rows = (int64_t)(bytes / row / 32 * 32);
    if (rows < 32) rows = 32;
    return rows < w->rows ? rows : w->rows;
}

size_t cuda_row_norms_workspace(const struct op_call *call, bool backward, int threads) {
    (void)backward, (void)threads;
    return floats((size_t)row_norms_panel(call), (size_t)call->p.row_norms.w->cols);
}

// --- the optimiser

size_t cuda_grad_norm_workspace(const struct op_call *call, bool backward, int threads) {
    (void)call, (void)backward, (void)threads;
    return GPU_NORM_CHUNKS * sizeof(double);
}

size_t cuda_adamw_workspace(const struct op_call *call, bool backward, int threads) {
    (void)backward, (void)threads;
    return ADAMW_GROUPS_AT + (size_t)call->p.adamw.n_groups * sizeof(struct gpu_group);
}
