// Who sees what: the table of sequences becomes an interval of rows for every row. Within a sequence the queries that
// see a key are neighbours, as the keys that a query sees are. A block for each row of the table and share of its rows.
#include "kernels/cuda/gpu_attention.h"

#include "kernels/cuda/launch.cuh"

namespace {

enum { BLOCK = 256, SHARES = 8 };

struct interval_args {
    const int32_t *seqs;
    int2 *q_seen, *kv_seen; // kv_seen NULL = not wanted
    int64_t tq, tkv, window, chunk;
};

__device__ bool lies_in(int64_t begin, int64_t count, int64_t rows) {
    return begin >= 0 && count >= 0 && begin <= rows && count <= rows - begin;
}

// {0, 0} is there before: rows of no sequence.
__global__ void intervals_kernel(interval_args a) {
    const int32_t *seq = a.seqs + 4 * (int64_t)blockIdx.x;
    int64_t q_begin = seq[0], q_len = seq[1], kv_begin = seq[2], kv_len = seq[3];
    int64_t step = (int64_t)gridDim.y * blockDim.x, thread = (int64_t)blockIdx.y * blockDim.x + threadIdx.x;
    if (q_len == 0) return;
    int64_t before = kv_len - q_len; // position of the first query
    bool good = lies_in(q_begin, q_len, a.tq) && lies_in(kv_begin, kv_len, a.tkv);
    if (!good) { // our own bug: NaN for the rows it names, see gpu_attention_forward.cu
        for (int64_t i = thread; i < a.tq; i += step)
            if (i >= q_begin && i - q_begin < q_len) a.q_seen[i] = make_int2(0, -1);
        return;
    }
    for (int64_t i = thread; i < q_len; i += step) {
        int64_t position = before + i, first = 0;
        if (a.window > 0) first = max(first, position - a.window + 1);
        if (a.chunk > 0 && position >= 0) first = max(first, position / a.chunk * a.chunk);
        if (position >= first)
            a.q_seen[q_begin + i] = make_int2((int)(kv_begin + first), (int)(kv_begin + position + 1));
    }
    for (int64_t j = thread; a.kv_seen && j < kv_len; j += step) {
        int64_t end = kv_len; // of the positions that see key j
        if (a.window > 0) end = min(end, j + a.window);
        if (a.chunk > 0) end = min(end, (j / a.chunk + 1) * a.chunk);
        int64_t from = max((int64_t)0, j - before), to = end - before;
        if (from < to) a.kv_seen[kv_begin + j] = make_int2((int)(q_begin + from), (int)(q_begin + to));
    }
}
} // namespace

extern "C" void gpu_attention_intervals(const struct gpu *g, const struct op_call *call, bool backward) {
    struct attention_layout w = attention_layout_of(call, backward);
    uint8_t *at = g->arena + call->workspace.offset;
    interval_args a = {};
    a.seqs = (const int32_t *)(g->arena + call->in[3].offset);
    a.tq = call->in[0].rows, a.tkv = call->in[1].rows;
    a.window = call->p.attention.window, a.chunk = call->p.attention.chunk;
    a.q_seen = (int2 *)(at + w.q_seen);
    if (backward) a.kv_seen = (int2 *)(at + w.kv_seen);
    cudaMemsetAsync(a.q_seen, 0, (size_t)a.tq * sizeof(int2), g->stream);
    if (backward) cudaMemsetAsync(a.kv_seen, 0, (size_t)a.tkv * sizeof(int2), g->stream);
    LAUNCH((intervals_kernel), dim3((unsigned)call->in[3].rows, SHARES), BLOCK, 0, g->stream, a);
}
