// See gpu_table.h. A block has one token, a thread four neighbours of its row at a time.
//
// Gradients of rows are summed over the tokens that have them without atomics: the block of a token stops when an
// earlier token has its id, else it adds up that id's tokens in their order. Ids are few and stay in the caches; a
// block reads them 256 at a time, and its threads then walk through the tokens that were found, each with its own
// columns.
#include "kernels/cuda/gpu_table.h"

#include "kernels/cuda/four.cuh"
#include "kernels/cuda/random.cuh"

namespace {
enum { BLOCK = 256, WARPS = BLOCK / WARP };

// --- forward

template <class T> struct embed_args {
    matrix<T> x;
    matrix<const int32_t> ids, lengths, row_ids;
    matrix<const uint32_t> keys;
    matrix<const float> base, full, rows, a, b; // base: its row 0 is of token `first`
    const step_scalars *scalars;
    int64_t first, vocabulary;
    float scale, lora_scale, noise_alpha;
    bool together; // x, base, full, rows; A is looked at alone
    bool a_together;
};

template <class T> matrix<const T> read_only(const struct gpu *g, const struct tensor *t) {
    matrix<T> m = matrix_of<T>(g, t);
    return {m.p, m.rows, m.cols, m.ld};
}

__global__ void check_kernel(matrix<const int32_t> ids, int64_t vocabulary, unsigned long long *faults) {
    int64_t t = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (t >= ids.rows) return;
    int32_t id = ids.at(t, 0);
    if (id < 0 || id >= vocabulary) raise_fault(faults, FAULT_TOKEN_ID, t, id);
}

// The first of row_ids that is `id`, or their number. All threads of the block call it.
__device__ int own_row(matrix<const int32_t> row_ids, int32_t id) {
    __shared__ int found;
    if (threadIdx.x == 0) found = (int)row_ids.rows;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < row_ids.rows; i += BLOCK)
        if (row_ids.at(i, 0) == id) atomicMin(&found, (int)i);
    __syncthreads();
    return found;
}

template <class T> __global__ void embed_kernel(embed_args<T> a) {
    DYNAMIC_SHARED(float, u); // (R): s B[id]
    int64_t t = a.first + blockIdx.x, ranks = a.a.rows;
    int32_t id = a.ids.at(t, 0);
    if (id < 0 || id >= a.vocabulary) return;
    const float *row = a.full.p ? a.full.row(id) : a.base.row(blockIdx.x);
    if (a.rows.p) {
        int own = own_row(a.row_ids, id);
        if (own < a.row_ids.rows) row = a.rows.row(own);
    }
    if (a.a.p) {
        for (int64_t r = threadIdx.x; r < ranks; r += BLOCK) u[r] = a.lora_scale * a.b.at(id, r);
        __syncthreads();
    }
    float amplitude = 0;
    random_source source = {};
    if (a.noise_alpha != 0) {
        int32_t length = a.lengths.at(t, 0);
        amplitude = length > 0 ? a.noise_alpha / sqrtf((float)length * (float)a.x.cols) : 0; // 0: of no document
        source = random_source_of(a.scalars, RANDOM_NEFTUNE, 0);
    }
    for (int64_t d = threadIdx.x * 4; d < a.x.cols; d += BLOCK * 4) {
        int64_t n = a.x.cols - d;
        pack<float, 4> x = load_four(row + d, n, a.together);
        for (int64_t r = 0; a.a.p && r < ranks; r++) {
            pack<float, 4> along = load_four(a.a.row(r) + d, n, a.a_together);
            for (int i = 0; i < 4; i++) x.v[i] = fmaf(u[r], along.v[i], x.v[i]);
        }
        for (int i = 0; i < 4; i++) x.v[i] *= a.scale;
        if (amplitude != 0) {
            pack<uint32_t, 4> bits = random_bits(source, a.keys.at(t, 0), a.keys.at(t, 1), (uint32_t)(d / 4));
            for (int i = 0; i < 4; i++) x.v[i] += (2.0f * random_unit(bits.v[i]) - 1.0f) * amplitude;
        }
        store_four(a.x.row(t) + d, x, n, a.together);
    }
}

template <class T>
void finish(const struct gpu *g, const struct op_call *call, const float *base, int64_t first, int64_t count) {
    const auto &p = call->p.embed;
    embed_args<T> a = {};
    a.x = matrix_of<T>(g, &call->out[0]), a.ids = read_only<int32_t>(g, &call->in[0]);
    a.keys = read_only<uint32_t>(g, &call->in[1]), a.lengths = read_only<int32_t>(g, &p.lengths);
    a.row_ids = read_only<int32_t>(g, &p.on.row_ids), a.rows = read_only<float>(g, &p.on.rows);
    a.full = read_only<float>(g, &p.on.full), a.base = {base, count, p.w->cols, p.w->cols};
    a.a = read_only<float>(g, &p.on.a), a.b = read_only<float>(g, &p.on.b);
    a.scalars = scalars_of(g, call), a.first = first, a.vocabulary = p.w->rows;
    a.scale = p.scale, a.lora_scale = p.on.scale, a.noise_alpha = p.noise_alpha;
    a.together = aligned<4>(a.x) && aligned<4>(a.full) && aligned<4>(a.rows) && aligned<4>(a.base);
    a.a_together = aligned<4>(a.a);
    LAUNCH((embed_kernel<T>), (unsigned)count, BLOCK, (size_t)a.a.rows * sizeof(float), g->stream, a);
}

// --- backward

template <class T>
__global__ void gradient_kernel(matrix<const T> dx, int64_t first, float scale, float *to, bool together) {
    const T *from = dx.row(first + blockIdx.x);
    float *out = to + (int64_t)blockIdx.x * dx.cols;
    for (int64_t d = threadIdx.x * 4; d < dx.cols; d += BLOCK * 4) {
        pack<float, 4> x = load_four(from + d, dx.cols - d, together);
        for (int i = 0; i < 4; i++) x.v[i] *= scale;
        store_four(out + d, x, dx.cols - d, together);
    }
}

__global__ void adapter_rows_kernel(matrix<const int32_t> ids, matrix<const float> b, int64_t first, int64_t items,
                                    float scale, float *u) {
    int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (i >= items) return;
    int32_t id = ids.at(first + i / b.cols, 0);
    u[i] = id >= 0 && id < b.rows ? scale * b.at(id, i % b.cols) : 0;
}

template <class T> struct scatter_args {
    matrix<const int32_t> ids, list; // list: its i-th entry is the id of row i of `to`; NULL: row id is of that id
    matrix<const T> from;            // (T, C)
    matrix<float> to;
    float scale;
    bool together;
};

template <class T> __global__ void scatter_kernel(scatter_args<T> a) {
    __shared__ int earlier;
    __shared__ unsigned found[WARPS];
    int64_t t = blockIdx.x, first = a.list.p ? 0 : t, c = ((int64_t)blockIdx.y * BLOCK + threadIdx.x) * 4;
    int32_t id = a.list.p ? a.list.at(t, 0) : a.ids.at(t, 0);
    if (!a.list.p) {
        if (id < 0 || id >= a.to.rows) return;
        if (threadIdx.x == 0) earlier = 0;
        __syncthreads();
        for (int64_t i = threadIdx.x; i < t; i += BLOCK) {
            if (a.ids.at(i, 0) != id) continue;
            earlier = 1;
            break;
        }
        __syncthreads();
        if (earlier) return;
    }
    int64_t n = a.to.cols - c;
    pack<float, 4> sum = {};
    bool any = false;
    for (int64_t begin = first; begin < a.ids.rows; begin += BLOCK) {
        int64_t i = begin + threadIdx.x;
        unsigned mine = __ballot_sync(ALL_LANES, i < a.ids.rows && a.ids.at(i, 0) == id);
        if (threadIdx.x % WARP == 0) found[threadIdx.x / WARP] = mine;
        __syncthreads();
        for (int w = 0; w < WARPS; w++) {
            for (unsigned left = found[w]; left; left &= left - 1) {
                int64_t token = begin + w * WARP + __ffs((int)left) - 1;
                any = true;
                if (n <= 0) continue;
                pack<float, 4> x = load_four(a.from.row(token) + c, n, a.together);
                for (int k = 0; k < 4; k++) sum.v[k] = fmaf(a.scale, x.v[k], sum.v[k]);
            }
        }
        __syncthreads();
    }
    if (any && n > 0) put_four(a.to.row(a.list.p ? t : id) + c, sum, n, a.together, true);
}

template <class T>
void scatter(const struct gpu *g, matrix<const int32_t> ids, matrix<const int32_t> list, matrix<const T> from,
             float scale, matrix<float> to) {
    scatter_args<T> a = {ids, list, from, to, scale, aligned<4>(from) && aligned<4>(to)};
    int64_t items = list.p ? list.rows : ids.rows;
    if (items == 0) return;
    LAUNCH((scatter_kernel<T>), dim3((unsigned)items, blocks_for(to.cols, 4 * BLOCK)), BLOCK, 0, g->stream, a);
}

template <class T>
void gradient(const struct gpu *g, const struct op_call *call, int64_t first, int64_t count, float *to) {
    matrix<const T> dx = read_only<T>(g, &call->grad_out[0]);
    bool together = aligned<4>(dx) && dx.cols % 4 == 0 && (uintptr_t)to % 16 == 0;
    LAUNCH((gradient_kernel<T>), (unsigned)count, BLOCK, 0, g->stream, dx, first, call->p.embed.scale, to, together);
}

template <class T> void scatter_rows(const struct gpu *g, const struct op_call *call) {
    const auto &p = call->p.embed;
    matrix<const int32_t> ids = read_only<int32_t>(g, &call->in[0]);
    matrix<const T> dx = read_only<T>(g, &call->grad_out[0]);
    matrix<float> full = matrix_of<float>(g, &p.on.dfull), rows = matrix_of<float>(g, &p.on.drows);
    if (full.p) scatter<T>(g, ids, {}, dx, p.scale, full);
    if (rows.p) scatter<T>(g, ids, read_only<int32_t>(g, &p.on.row_ids), dx, p.scale, rows);
}

__global__ void round_kernel(matrix<const float> from, matrix<bf16> to, bool together) {
    for (int64_t row = blockIdx.y; row < from.rows; row += gridDim.y) {
        int64_t c = ((int64_t)blockIdx.x * BLOCK + threadIdx.x) * 4;
        if (c < from.cols)
            store_four(to.row(row) + c, load_four(from.row(row) + c, from.cols - c, together), from.cols - c, together);
    }
}
} // namespace

extern "C" void gpu_embed_check(const struct gpu *g, const struct op_call *call) {
    if (call->in[0].rows)
        LAUNCH(check_kernel, blocks_for(call->in[0].rows, BLOCK), BLOCK, 0, g->stream,
               read_only<int32_t>(g, &call->in[0]), call->p.embed.w->rows, g->faults);
}
extern "C" void gpu_embed_finish(const struct gpu *g, const struct op_call *call, const float *base, int64_t first,
                                 int64_t count) {
    DISPATCH(call->out[0].dtype, T, finish<T>(g, call, base, first, count));
}
extern "C" void gpu_embed_gradient(const struct gpu *g, const struct op_call *call, int64_t first, int64_t count,
                                   float *to) {
    DISPATCH(call->grad_out[0].dtype, T, gradient<T>(g, call, first, count, to));
}
extern "C" void gpu_embed_adapter_rows(const struct gpu *g, const struct op_call *call, int64_t first, int64_t count,
                                       float *u) {
    matrix<const float> b = read_only<float>(g, &call->p.embed.on.b);
    LAUNCH(adapter_rows_kernel, blocks_for(count * b.cols, BLOCK), BLOCK, 0, g->stream,
           read_only<int32_t>(g, &call->in[0]), b, first, count * b.cols, call->p.embed.on.scale, u);
}
extern "C" void gpu_embed_scatter_b(const struct gpu *g, const struct op_call *call, const float *v) {
    matrix<float> db = matrix_of<float>(g, &call->p.embed.on.db);
    scatter<float>(g, read_only<int32_t>(g, &call->in[0]), {}, {v, call->in[0].rows, db.cols, db.cols}, 1, db);
}
extern "C" void gpu_embed_scatter_rows(const struct gpu *g, const struct op_call *call) {
    DISPATCH(call->grad_out[0].dtype, T, scatter_rows<T>(g, call));
}
extern "C" void gpu_table_round(const struct gpu *g, const float *from, int64_t from_ld, int64_t rows, int64_t cols,
                                void *to, int64_t ld) {
    matrix<const float> f = {from, rows, cols, from_ld};
    matrix<bf16> t = {(bf16 *)to, rows, cols, ld};
    if (rows == 0 || cols == 0) return;
    dim3 grid(blocks_for(cols, 4 * BLOCK), (unsigned)(rows < 65535 ? rows : 65535));
    LAUNCH(round_kernel, grid, BLOCK, 0, g->stream, f, t, aligned<4>(f) && aligned<4>(t));
}
