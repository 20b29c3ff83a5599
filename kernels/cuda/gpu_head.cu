// See gpu_head.h. A row of logits has a block of 512 threads; 4 neighbours are one access. The first pass keeps a
// running largest and a running sum for each thread, so that a row is read once for its log-sum-exp; the second finds
// most of it in the second cache. In bf16 the gradient of element j goes to byte 2 j of its row, where element j / 2
// was: all threads load one stretch, wait for each other, and store it, so that what is overwritten has been read.
#include "kernels/cuda/gpu_head.h"

#include "kernels/cuda/four.cuh"
#include "kernels/cuda/random.cuh"

namespace {
enum { BLOCK = 256, ROW_BLOCK = 512, CHOOSE_BLOCK = 1024, WARPS = 8 };

template <class T> matrix<const T> read_only(const struct gpu *g, const struct tensor *t) {
    matrix<T> m = matrix_of<T>(g, t);
    return {m.p, m.rows, m.cols, m.ld};
}

__global__ void factor_kernel(const float *m, const float *norms, float *factor, int64_t n) {
    int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (i < n) factor[i] = m[i] / norms[i];
}

// --- rows that count

struct choose_args {
    matrix<const int32_t> targets;
    matrix<const float> weights, dlogp, dlse;
    matrix<float> logp, lse;
    struct gpu_head head;
    int64_t vocabulary;
    unsigned long long *faults;
    bool forward;
};

// One block: rows in turns of its threads; the place of a row is how many that count stand before it.
__global__ void __launch_bounds__(CHOOSE_BLOCK) choose_kernel(choose_args a) {
    __shared__ int counts[CHOOSE_BLOCK / WARP];
    int before = 0, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    for (int64_t begin = 0; begin < a.targets.rows; begin += CHOOSE_BLOCK) {
        int64_t t = begin + threadIdx.x;
        float weight = 0, g = 0, of_lse = 0;
        if (t < a.targets.rows) {
            weight = a.weights.at(t, 0);
            g = a.forward ? -weight : a.dlogp.p ? a.dlogp.at(t, 0) : 0;
            of_lse = !a.forward && a.dlse.p ? a.dlse.at(t, 0) : 0;
        }
        bool counts_here = weight != 0 && (a.forward || g != 0 || of_lse != 0);
        unsigned mine = __ballot_sync(ALL_LANES, counts_here);
        if (lane == 0) counts[warp] = __popc(mine);
        __syncthreads();
        int place = before + __popc(mine & ((1u << lane) - 1));
        for (int i = 0; i < CHOOSE_BLOCK / WARP; i++) {
            if (i < warp) place += counts[i];
            before += counts[i];
        }
        __syncthreads();
        if (t >= a.targets.rows) continue;
        counts_here = counts_here && place < a.head.limit;
        a.head.place[t] = counts_here ? place : -1;
        if (a.forward && !counts_here) a.logp.at(t, 0) = a.lse.at(t, 0) = 0;
        if (!counts_here) continue;
        int32_t target = a.targets.at(t, 0);
        if (target < 0 || target >= a.vocabulary) raise_fault(a.faults, FAULT_TARGET, t, target), target = 0;
        a.head.rows[place] = (int32_t)t, a.head.targets[place] = target;
        a.head.g[place] = g, a.head.s[place] = of_lse - g;
    }
    if (threadIdx.x) return;
    if (before > a.head.limit) raise_fault(a.faults, FAULT_TRAINED_ROWS, a.head.limit, before);
    *a.head.count = before < a.head.limit ? before : (int32_t)a.head.limit;
}

template <class T> __global__ void zero_kernel(const int32_t *place, matrix<T> dh, bool together) {
    int64_t t = blockIdx.x;
    if (place[t] >= 0) return;
    for (int64_t d = threadIdx.x * 4; d < dh.cols; d += BLOCK * 4) store_four(dh.row(t) + d, {}, dh.cols - d, together);
}

struct dropout_at {
    matrix<const uint32_t> keys;
    const step_scalars *scalars;
    float p, kept;
    uint32_t module;
};
__device__ pack<float, 4> factors_at(const dropout_at &a, int64_t row, int64_t d) {
    if (a.p == 0) return {1, 1, 1, 1};
    return dropout_factors(random_source_of(a.scalars, RANDOM_DROPOUT, a.module), a.keys.row(row), d, a.p, a.kept);
}

template <class T> struct gather_args {
    matrix<const T> from;
    const int32_t *rows, *count; // rows NULL: all, in their places
    int64_t begin;
    T *h;
    float *h32;
    dropout_at dropout;
    bool together;
};

template <class T> __global__ void gather_kernel(gather_args<T> a) {
    int64_t i = blockIdx.x, d = ((int64_t)blockIdx.y * BLOCK + threadIdx.x) * 4, n = a.from.cols - d, row = i;
    if (n <= 0) return;
    bool there = true;
    if (a.rows) {
        there = a.begin + i < *a.count;
        row = there ? a.rows[a.begin + i] : 0;
    }
    pack<float, 4> x = {};
    if (there) x = load_four(a.from.row(row) + d, n, a.together);
    if (a.h) store_four(a.h + i * a.from.cols + d, x, n, a.together);
    if (!a.h32) return;
    if (there) {
        pack<float, 4> f = factors_at(a.dropout, row, d);
        for (int k = 0; k < 4; k++) x.v[k] *= f.v[k];
    }
    store_four(a.h32 + i * a.from.cols + d, x, n, a.together);
}

__global__ void put_own_kernel(matrix<const int32_t> ids, const float *own, float *z, int64_t ldz) {
    int64_t j = (int64_t)blockIdx.y * BLOCK + threadIdx.x, i = blockIdx.x;
    if (j < ids.rows) z[i * ldz + ids.at(j, 0)] = own[i * ids.rows + j];
}
template <class T> __global__ void take_own_kernel(matrix<const int32_t> ids, T *own, T *dz, int64_t ld) {
    int64_t j = (int64_t)blockIdx.y * BLOCK + threadIdx.x, i = blockIdx.x;
    if (j >= ids.rows) return;
    T *at = dz + i * ld + ids.at(j, 0);
    own[i * ids.rows + j] = *at;
    *at = from_float<T>(0);
}

// --- logits

struct shape { // of logits: what makes them from the product
    const float *factor, *bias;
    float scale, cap;
};
__device__ float logit(const shape &a, float y, int64_t v) {
    float z = (a.factor ? y * a.factor[v] : y) + (a.bias ? a.bias[v] : 0);
    z *= a.scale;
    return a.cap > 0 ? a.cap * tanhf(z / a.cap) : z;
}
// d logit / d (factor y), from the logit.
__device__ float slope(const shape &a, float z) {
    float along = z / a.cap;
    return a.cap > 0 ? a.scale * fmaf(-along, along, 1) : a.scale;
}

struct row_args {
    struct gpu_head head;
    shape how;
    int64_t begin, vocabulary;
    matrix<float> logp, lse;
    bool forward, again;
};

// A row's largest logit and the sum of e^(z - that): every thread gets both. Far below any finite logit is where the
// running largest begins, so that -infinity counts as nothing; what is not a number shows in the sum.
__device__ void sum_of_exponentials(const row_args &a, const float *y, float *largest, float *sum) {
    float most = -3e38f, s = 0;
    for (int64_t v = threadIdx.x * 4; v < a.vocabulary; v += ROW_BLOCK * 4) {
        pack<float, 4> z = *reinterpret_cast<const pack<float, 4> *>(y + v); // rows are padded
        float top = most;
        for (int i = 0; i < 4; i++) {
            z.v[i] = v + i < a.vocabulary ? logit(a.how, z.v[i], v + i) : -INFINITY;
            top = fmaxf(top, z.v[i]);
        }
        if (top > most) s *= expf(most - top), most = top;
        s += (expf(z.v[0] - top) + expf(z.v[1] - top)) + (expf(z.v[2] - top) + expf(z.v[3] - top));
    }
    *largest = block_max<ROW_BLOCK>(most);
    *sum = block_sum<ROW_BLOCK>(s * expf(most - *largest));
}

// dz of four neighbours, from their products.
__device__ pack<float, 4> gradient_of(const row_args &a, pack<float, 4> y, int64_t v, int32_t target, float largest,
                                      float g, float s_over_sum) {
    for (int i = 0; i < 4; i++) {
        if (v + i >= a.vocabulary) break;
        float z = logit(a.how, y.v[i], v + i), d = expf(z - largest) * s_over_sum;
        if (v + i == target) d += g;
        y.v[i] = d * slope(a.how, z);
    }
    return y;
}

template <class T, bool GRADIENT> __global__ void __launch_bounds__(ROW_BLOCK) row_kernel(row_args a) {
    int64_t i = blockIdx.x, at = a.begin + i;
    if (at >= *a.head.count) return; // its products are zeros, and stay
    float *y = a.head.logits + i * a.head.ldz, largest, sum;
    int32_t target = a.head.targets[at];
    if (a.again)
        largest = a.head.stats[2 * i], sum = a.head.stats[2 * i + 1];
    else
        sum_of_exponentials(a, y, &largest, &sum);
    if (threadIdx.x == 0 && !a.again) {
        a.head.stats[2 * i] = largest, a.head.stats[2 * i + 1] = sum;
        if (a.forward) {
            double lse = (double)largest + log((double)sum);
            int32_t row = a.head.rows[at];
            a.logp.at(row, 0) = (float)((double)logit(a.how, y[target], target) - lse);
            a.lse.at(row, 0) = (float)lse;
        }
    }
    if constexpr (GRADIENT) {
        float g = a.head.g[at], s_over_sum = a.head.s[at] / sum;
        T *out = reinterpret_cast<T *>(y);
        __syncthreads(); // y[target] was read
        for (int64_t begin = 0; begin < a.vocabulary; begin += ROW_BLOCK * 4) {
            int64_t v = begin + threadIdx.x * 4;
            pack<float, 4> d = {};
            if (v < a.vocabulary) {
                d = gradient_of(a, *reinterpret_cast<const pack<float, 4> *>(y + v), v, target, largest, g, s_over_sum);
                for (int k = 0; a.how.factor && k < 4 && v + k < a.vocabulary; k++) d.v[k] *= a.how.factor[v + k];
            }
            if constexpr (sizeof(T) < sizeof(float)) __syncthreads();
            if (v < a.vocabulary) store_four(out + v, d, a.vocabulary - v, true);
        }
    }
}

struct columns_args {
    row_args row;
    int64_t rows;
    const float *norms;
    float *dbias, *dm;
};

// Blocks of 32 columns; 8 warps share the rows of the chunk.
__global__ void head_columns_kernel(columns_args a) {
    __shared__ double part[2][WARPS][WARP];
    int lane = threadIdx.x, warp = threadIdx.y;
    int64_t v = (int64_t)blockIdx.x * WARP + lane, last = *a.row.head.count - a.row.begin;
    if (last > a.rows) last = a.rows;
    float sum_b = 0, sum_m = 0;
    for (int64_t i = warp; v < a.row.vocabulary && i < last; i += WARPS) {
        int64_t at = a.row.begin + i;
        float y = a.row.head.logits[i * a.row.head.ldz + v], z = logit(a.row.how, y, v);
        float d = expf(z - a.row.head.stats[2 * i]) * (a.row.head.s[at] / a.row.head.stats[2 * i + 1]);
        if (v == a.row.head.targets[at]) d += a.row.head.g[at];
        d *= slope(a.row.how, z);
        sum_b += d, sum_m = fmaf(d, y, sum_m);
    }
    part[0][warp][lane] = (double)sum_b, part[1][warp][lane] = (double)sum_m;
    __syncthreads();
    if (warp > 1 || v >= a.row.vocabulary) return;
    double sum = part[warp][0][lane];
    for (int i = 1; i < WARPS; i++) sum += part[warp][i][lane];
    if (warp == 0 && a.dbias) a.dbias[v] += (float)sum;
    if (warp == 1 && a.dm) a.dm[v] += (float)(sum / (double)a.norms[v]);
}

__global__ void logits_kernel(matrix<float> z, shape how) {
    int64_t v = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    for (int64_t row = blockIdx.y; v < z.cols && row < z.rows; row += gridDim.y)
        z.at(row, v) = logit(how, z.at(row, v), v);
}

// --- back to the rows

struct masked_args {
    const int32_t *rows, *count;
    int64_t begin, cols;
    const float *part;
    float *dh;
    dropout_at dropout;
    bool together;
};
__global__ void add_masked_kernel(masked_args a) {
    int64_t i = blockIdx.x, d = ((int64_t)blockIdx.y * BLOCK + threadIdx.x) * 4, n = a.cols - d;
    if (n <= 0 || a.begin + i >= *a.count) return;
    pack<float, 4> f = factors_at(a.dropout, a.rows[a.begin + i], d);
    pack<float, 4> x = load_four(a.part + i * a.cols + d, n, a.together);
    for (int k = 0; k < 4; k++) x.v[k] *= f.v[k];
    put_four(a.dh + i * a.cols + d, x, n, a.together, true);
}

template <class T>
__global__ void scatter_rows_kernel(const int32_t *rows, const int32_t *count, int64_t begin, const float *dh,
                                    matrix<T> to, bool together, bool acc) {
    int64_t i = blockIdx.x, d = ((int64_t)blockIdx.y * BLOCK + threadIdx.x) * 4, n = to.cols - d;
    if (n <= 0 || begin + i >= *count) return;
    put_four(to.row(rows[begin + i]) + d, load_four(dh + i * to.cols + d, n, together), n, together, acc);
}

template <class T> __global__ void take_kernel(matrix<const T> from, matrix<T> to, bool together, bool acc) {
    int64_t i = blockIdx.x, d = ((int64_t)blockIdx.y * BLOCK + threadIdx.x) * 4, n = to.cols - d;
    if (n > 0) put_four(to.row(i) + d, load_four(from.row(i) + d, n, together), n, together, acc);
}

__global__ void __launch_bounds__(CHOOSE_BLOCK)
    sums_kernel(struct gpu_head head, matrix<const float> weights, matrix<const float> logp, step_scalars *s) {
    double loss = 0, all = 0;
    for (int64_t i = threadIdx.x; i < *head.count; i += CHOOSE_BLOCK) {
        double weight = (double)weights.at(head.rows[i], 0);
        loss -= weight * (double)logp.at(head.rows[i], 0);
        all += weight;
    }
    loss = block_sum<CHOOSE_BLOCK>(loss), all = block_sum<CHOOSE_BLOCK>(all);
    if (threadIdx.x == 0) s->loss_sum += loss, s->weight_sum += all;
}

// --- launching

dropout_at dropout_of(const struct gpu *g, const struct op_call *call) {
    const auto &on = call->p.logprob.on;
    return {read_only<uint32_t>(g, &on.keys), scalars_of(g, call), on.dropout, 1 / (1 - on.dropout), on.module};
}
bool in_fours(const void *p, int64_t cols) {
    return cols % 4 == 0 && (uintptr_t)p % 16 == 0;
}
dim3 rows_by_columns(int64_t rows, int64_t cols) {
    return dim3((unsigned)rows, blocks_for(cols, 4 * BLOCK));
}
row_args row_args_of(const struct gpu *g, const struct op_call *call, const struct gpu_head *head, int64_t begin) {
    const auto &p = call->p.logprob;
    row_args a = {};
    a.head = *head, a.how = {head->factor, head->bias, p.logit_scale, p.soft_cap};
    a.begin = begin, a.vocabulary = p.w->rows;
    a.logp = matrix_of<float>(g, &call->out[0]), a.lse = matrix_of<float>(g, &call->out[1]);
    return a;
}

template <class T>
void gather(const struct gpu *g, const struct op_call *call, const struct gpu_head *head, struct gpu_chunk chunk,
            void *h, float *h32) {
    gather_args<T> a = {};
    a.from = read_only<T>(g, &call->in[0]), a.begin = chunk.begin, a.h = (T *)h, a.h32 = h32;
    if (head) a.rows = head->rows, a.count = head->count;
    a.dropout = dropout_of(g, call);
    a.together = aligned<4>(a.from) && in_fours(h, a.from.cols) && in_fours(h32, a.from.cols);
    LAUNCH((gather_kernel<T>), rows_by_columns(chunk.rows, a.from.cols), BLOCK, 0, g->stream, a);
}

template <class T> void gradient(const struct gpu *g, int64_t rows, row_args a) {
    LAUNCH((row_kernel<T, true>), (unsigned)rows, ROW_BLOCK, 0, g->stream, a);
}

template <class T> void zero(const struct gpu *g, const struct gpu_head *head, const struct tensor *t) {
    matrix<T> dh = matrix_of<T>(g, t);
    LAUNCH((zero_kernel<T>), (unsigned)dh.rows, BLOCK, 0, g->stream, (const int32_t *)head->place, dh, aligned<4>(dh));
}

template <class T>
void take_own(const struct gpu *g, const struct op_call *call, const struct gpu_head *head, int64_t rows, void *own) {
    matrix<const int32_t> ids = read_only<int32_t>(g, &call->p.logprob.on.row_ids);
    LAUNCH((take_own_kernel<T>), dim3((unsigned)rows, blocks_for(ids.rows, BLOCK)), BLOCK, 0, g->stream, ids, (T *)own,
           (T *)head->logits, head->ldz * (int64_t)(sizeof(float) / sizeof(T)));
}

template <class T>
void scatter(const struct gpu *g, const struct gpu_head *head, struct gpu_chunk chunk, const float *dh,
             const struct tensor *t, bool acc) {
    matrix<T> to = matrix_of<T>(g, t);
    LAUNCH((scatter_rows_kernel<T>), rows_by_columns(chunk.rows, to.cols), BLOCK, 0, g->stream,
           (const int32_t *)head->rows, (const int32_t *)head->count, chunk.begin, dh, to,
           aligned<4>(to) && in_fours(dh, to.cols), acc);
}

template <class T> void take(const struct gpu *g, const struct tensor *from, const struct tensor *t, bool acc) {
    matrix<const T> f = read_only<T>(g, from);
    matrix<T> to = matrix_of<T>(g, t);
    if (to.rows == 0) return;
    LAUNCH((take_kernel<T>), rows_by_columns(to.rows, to.cols), BLOCK, 0, g->stream, f, to,
           aligned<4>(f) && aligned<4>(to), acc);
}
} // namespace

extern "C" void gpu_head_factor(const struct gpu *g, const struct op_call *call, float *factor) {
    const auto &on = call->p.logprob.on;
    int64_t n = on.magnitude.cols;
    LAUNCH(factor_kernel, blocks_for(n, BLOCK), BLOCK, 0, g->stream,
           (const float *)matrix_of<float>(g, &on.magnitude).p, (const float *)matrix_of<float>(g, &on.norms).p, factor,
           n);
}
extern "C" void gpu_head_choose(const struct gpu *g, const struct op_call *call, const struct gpu_head *head,
                                bool forward) {
    choose_args a = {};
    a.targets = read_only<int32_t>(g, &call->in[1]), a.weights = read_only<float>(g, &call->in[2]);
    a.dlogp = read_only<float>(g, &call->grad_out[0]), a.dlse = read_only<float>(g, &call->grad_out[1]);
    a.logp = matrix_of<float>(g, &call->out[0]), a.lse = matrix_of<float>(g, &call->out[1]);
    a.head = *head, a.vocabulary = call->p.logprob.w->rows, a.faults = g->faults, a.forward = forward;
    LAUNCH(choose_kernel, 1, CHOOSE_BLOCK, 0, g->stream, a);
}
extern "C" void gpu_head_zero(const struct gpu *g, const struct gpu_head *head, const struct tensor *dh) {
    if (dh->rows) DISPATCH(dh->dtype, T, zero<T>(g, head, dh));
}
extern "C" void gpu_head_gather(const struct gpu *g, const struct op_call *call, const struct gpu_head *head,
                                struct gpu_chunk chunk, void *h, float *h32) {
    if (chunk.rows) DISPATCH(call->in[0].dtype, T, gather<T>(g, call, head, chunk, h, h32));
}
extern "C" void gpu_head_put_own(const struct gpu *g, const struct op_call *call, const float *own, int64_t rows,
                                 float *z, int64_t ldz) {
    matrix<const int32_t> ids = read_only<int32_t>(g, &call->p.logprob.on.row_ids);
    if (rows)
        LAUNCH(put_own_kernel, dim3((unsigned)rows, blocks_for(ids.rows, BLOCK)), BLOCK, 0, g->stream, ids, own, z,
               ldz);
}
extern "C" void gpu_head_take_own(const struct gpu *g, const struct op_call *call, const struct gpu_head *head,
                                  int64_t rows, void *own) {
    DISPATCH(call->in[0].dtype, T, take_own<T>(g, call, head, rows, own));
}
extern "C" void gpu_head_softmax(const struct gpu *g, const struct op_call *call, const struct gpu_head *head,
                                 struct gpu_chunk chunk, bool forward) {
    row_args a = row_args_of(g, call, head, chunk.begin);
    a.forward = forward;
    LAUNCH((row_kernel<float, false>), (unsigned)chunk.rows, ROW_BLOCK, 0, g->stream, a);
}
extern "C" void gpu_head_gradient(const struct gpu *g, const struct op_call *call, const struct gpu_head *head,
                                  struct gpu_chunk chunk, bool forward, bool again) {
    row_args a = row_args_of(g, call, head, chunk.begin);
    a.forward = forward, a.again = again;
    DISPATCH(call->in[0].dtype, T, gradient<T>(g, chunk.rows, a));
}
extern "C" void gpu_head_columns(const struct gpu *g, const struct op_call *call, const struct gpu_head *head,
                                 struct gpu_chunk chunk) {
    const auto &on = call->p.logprob.on;
    columns_args a = {};
    a.row = row_args_of(g, call, head, chunk.begin), a.rows = chunk.rows;
    a.norms = matrix_of<float>(g, &on.norms).p;
    a.dbias = matrix_of<float>(g, &on.dbias).p, a.dm = matrix_of<float>(g, &on.dmagnitude).p;
    LAUNCH(head_columns_kernel, blocks_for(a.row.vocabulary, WARP), dim3(WARP, WARPS), 0, g->stream, a);
}
extern "C" void gpu_head_add_masked(const struct gpu *g, const struct op_call *call, const struct gpu_head *head,
                                    struct gpu_chunk chunk, const float *part, float *dh) {
    int64_t cols = call->in[0].cols;
    masked_args a = {head->rows, head->count, chunk.begin, cols, part, dh, dropout_of(g, call), in_fours(part, cols)};
    a.together = a.together && in_fours(dh, cols);
    LAUNCH(add_masked_kernel, rows_by_columns(chunk.rows, cols), BLOCK, 0, g->stream, a);
}
extern "C" void gpu_head_scatter(const struct gpu *g, const struct gpu_head *head, struct gpu_chunk chunk,
                                 const float *dh, const struct tensor *to, bool acc) {
    DISPATCH(to->dtype, T, scatter<T>(g, head, chunk, dh, to, acc));
}
extern "C" void gpu_head_sums(const struct gpu *g, const struct op_call *call, const struct gpu_head *head) {
    LAUNCH(sums_kernel, 1, CHOOSE_BLOCK, 0, g->stream, *head, read_only<float>(g, &call->in[2]),
           read_only<float>(g, &call->out[0]), const_cast<step_scalars *>(scalars_of(g, call)));
}
extern "C" void gpu_head_take(const struct gpu *g, const struct tensor *from, const struct tensor *to, bool acc) {
    DISPATCH(to->dtype, T, take<T>(g, from, to, acc));
}
extern "C" void gpu_logits_finish(const struct gpu *g, const struct op_call *call, const struct gpu_head *head) {
    matrix<float> z = matrix_of<float>(g, &call->out[0]);
    const auto &p = call->p.logprob;
    if (z.rows == 0 || (!head->factor && !head->bias && p.logit_scale == 1 && p.soft_cap == 0)) return;
    dim3 grid(blocks_for(z.cols, BLOCK), (unsigned)(z.rows < 65535 ? z.rows : 65535));
    LAUNCH(logits_kernel, grid, BLOCK, 0, g->stream, z, shape{head->factor, head->bias, p.logit_scale, p.soft_cap});
}
