// See gpu_moe.h. Which experts a token goes to is decided in double, by a warp for each token, with the exponential
// that the CPU uses, so that both choose alike. Pairs are sorted by counting: each block counts its pairs by expert,
// running sums over the blocks of an expert and over the experts say where each block's pairs of an expert begin, and
// each pair looks how many before it in its block go to the same expert.
#include "kernels/cuda/gpu_moe.h"

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/prefix.cuh"

namespace {

enum { WARPS = 4, SHARED_BYTES = 48 << 10, BLOCK = 256 };

// As det_exp of kernels/cpu/scalar.h.
__device__ double exponential(double x) {
    if (x != x) return x;
    if (x < -708) return 0;
    if (x > 709) return INFINITY;
    double n = floor(x * 1.4426950408889634074 + 0.5);
    double r = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10, sum = 1;
    for (int i = 15; i >= 1; i--) sum = 1 + sum * r / i;
    uint64_t bits = (uint64_t)((int64_t)n + 1023) << 52;
    double scale;
    memcpy(&scale, &bits, 8);
    return sum * scale;
}

__device__ double warp_most(double x) {
    for (int bits = WARP / 2; bits > 0; bits /= 2) {
        double other = __shfl_xor_sync(ALL_LANES, x, bits);
        x = other > x ? other : x;
    }
    return x;
}

// The first of the largest value(i) for i < n that allowed(i); -1 when none is. A NaN is larger than nothing, so that
// whatever the values, an allowed i is found.
template <class V, class A> __device__ int largest(int n, V value, A allowed) {
    int best = -1;
    double most = 0;
    for (int i = (int)(threadIdx.x % WARP); i < n; i += WARP) {
        if (allowed(i) && (best < 0 || value(i) > most)) best = i, most = value(i);
    }
    for (int bits = WARP / 2; bits > 0; bits /= 2) {
        int other = __shfl_xor_sync(ALL_LANES, best, bits);
        double its = __shfl_xor_sync(ALL_LANES, most, bits);
        bool better = its > most || (its == most && other < best);
        if (other >= 0 && (best < 0 || better)) best = other, most = its;
    }
    return __shfl_sync(ALL_LANES, best, 0);
}

// --- one token

struct route_args {
    struct moe_route m;
    const float *bias;
    int32_t *map;
    int64_t map_ld;
    matrix<float> w; // backward: its gradient
    bool acc;
};

// A token's numbers, in shared memory. E of each, then k of each.
struct token {
    double *z, *p, *score, *extra; // logits; probabilities; what the choice goes by
    double *w;                     // of the chosen, before they are normalised
    int *chosen;
    uint8_t *out; // not 0: can not be chosen (any more)
};

static inline __host__ __device__ size_t token_bytes(const struct moe_route *m) {
    size_t e = (size_t)m->experts, k = (size_t)m->used;
    return (4 * e * sizeof(double) + k * (sizeof(double) + sizeof(int)) + e + 7) / 8 * 8;
}

__device__ token token_in(uint8_t *at, int n, int k) {
    token t;
    t.z = (double *)at, t.p = t.z + n, t.score = t.p + n, t.extra = t.score + n, t.w = t.extra + n;
    t.chosen = (int *)(t.w + k), t.out = (uint8_t *)(t.chosen + k);
    return t;
}

// p = softmax of z over those that take part, else 0.
template <class A> __device__ void softmax(const token &t, int n, A part) {
    int lane = (int)(threadIdx.x % WARP);
    double top = -INFINITY, sum = 0;
    for (int i = lane; i < n; i += WARP) top = part(i) && t.z[i] > top ? t.z[i] : top;
    top = warp_most(top);
    for (int i = lane; i < n; i += WARP) {
        t.p[i] = part(i) ? exponential(t.z[i] - top) : 0;
        sum += t.p[i];
    }
    sum = warp_sum(sum);
    for (int i = lane; i < n; i += WARP) t.p[i] /= sum;
    __syncwarp();
}

// Only experts of the best groups can be chosen.
__device__ void keep_groups(const struct moe_route &m, const token &t) {
    int lane = (int)(threadIdx.x % WARP), size = m.experts / m.groups;
    for (int i = lane; i < m.experts; i += WARP) t.out[i] = 1;
    for (int g = lane; g < m.groups; g += WARP) {
        double first = -INFINITY, second = -INFINITY;
        for (int i = g * size; i < (g + 1) * size; i++) {
            if (t.score[i] > first)
                second = first, first = t.score[i];
            else if (t.score[i] > second)
                second = t.score[i];
        }
        t.extra[g] = m.group_pairs && size > 1 ? first + second : first;
    }
    __syncwarp();
    for (int round = 0; round < m.groups_used; round++) {
        int best = largest(
            m.groups, [&](int g) { return t.extra[g]; }, [&](int g) { return t.out[g * size] != 0; });
        for (int i = lane; i < size; i += WARP) t.out[best * size + i] = 0;
        __syncwarp();
    }
}

// phimoe: p over those not taken that stand near enough to the largest of them, which is returned.
__device__ int sparse_choice(const struct moe_route &m, const token &t) {
    int best = largest(
        m.experts, [&](int i) { return t.z[i]; }, [&](int i) { return t.out[i] == 0; });
    double top = t.z[best];
    softmax(t, m.experts, [&](int i) {
        double factor = fabs(t.z[i]) > top ? fabs(t.z[i]) : top;
        return t.out[i] == 0 && (top - t.z[i]) / factor <= 2 * (double)m.jitter;
    });
    return best;
}

// Fills in chosen, best first, and w; returns what the weights are multiplied with.
__device__ double choose(const struct moe_route &m, const float *bias, const token &t) {
    int lane = (int)(threadIdx.x % WARP), n = m.experts;
    for (int i = lane; i < n; i += WARP) t.out[i] = 0;
    if (m.gate == MOE_SOFTMAX) softmax(t, n, [](int) { return true; });
    for (int i = lane; i < n; i += WARP) {
        if (m.gate == MOE_SIGMOID) t.p[i] = 1 / (1 + exponential(-t.z[i]));
        bool by_p = m.gate == MOE_SIGMOID || m.gate == MOE_SOFTMAX;
        t.score[i] = by_p ? t.p[i] + (bias ? (double)bias[i] : 0) : t.z[i];
    }
    __syncwarp();
    if (m.groups > 1 && m.gate != MOE_SPARSE_MIXER) keep_groups(m, t);
    for (int j = 0; j < m.used; j++) {
        int best = m.gate == MOE_SPARSE_MIXER
                       ? sparse_choice(m, t)
                       : largest(
                             n, [&](int i) { return t.score[i]; }, [&](int i) { return t.out[i] == 0; });
        if (lane == 0) t.chosen[j] = best, t.w[j] = t.p[best], t.out[best] = 1;
        __syncwarp();
    }
    if (m.gate == MOE_SOFTMAX_CHOSEN) {
        double all = 0;
        for (int j = lane; j < m.used; j += WARP) t.w[j] = exponential(t.z[t.chosen[j]] - t.z[t.chosen[0]]);
        __syncwarp();
        for (int j = 0; j < m.used; j++) all += t.w[j];
        __syncwarp();
        for (int j = lane; j < m.used; j += WARP) t.w[j] /= all;
        __syncwarp();
    }
    double sum = 1e-20;
    for (int j = 0; j < m.used; j++) sum += t.w[j];
    return (double)m.scale / (m.normalise ? sum : 1);
}

template <class T>
__device__ bool load_token(const matrix<T> &logits, const struct moe_route &m, int64_t *row, token *t) {
    DYNAMIC_SHARED(uint8_t, tokens);
    *row = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    if (*row >= logits.rows) return false;
    *t = token_in(tokens + threadIdx.y * token_bytes(&m), m.experts, m.used);
    for (int i = (int)threadIdx.x; i < m.experts; i += WARP) t->z[i] = (double)to_float(logits.at(*row, i));
    __syncwarp();
    return true;
}

// Weights, and for the moment each pair's expert in the second column of the map.
template <class T> __global__ void route_kernel(route_args a, matrix<T> logits) {
    int64_t row;
    token t;
    if (!load_token(logits, a.m, &row, &t)) return;
    double times = choose(a.m, a.bias, t);
    for (int j = (int)threadIdx.x; j < a.m.used; j += WARP) {
        a.w.at(row, j) = (float)(t.w[j] * times);
        a.map[(row * a.m.used + j) * a.map_ld + 1] = t.chosen[j];
    }
}

// With c the weights before they are normalised and g the gradient of those after it: dc_j = scale (g_j - sum g c / sum
// c) / sum c, or scale g_j; dz by the gate's own slope.
template <class T> __global__ void route_backward_kernel(route_args a, matrix<T> logits, matrix<T> dz) {
    int64_t row;
    token t;
    if (!load_token(logits, a.m, &row, &t)) return;
    int lane = (int)threadIdx.x, n = a.m.experts, k = a.m.used;
    double times = choose(a.m, a.bias, t), along = 0;
    for (int j = 0; j < k && a.m.normalise; j++) along += (double)a.w.at(row, j) * t.w[j];
    along *= times / (double)a.m.scale;
    auto slope = [&](int j) { return ((double)a.w.at(row, j) - along) * times; }; // dc_j
    double *d = t.extra, sum = 0;
    for (int i = lane; i < n; i += WARP) d[i] = 0;
    __syncwarp();
    if (a.m.gate == MOE_SPARSE_MIXER) { // one softmax for each choice
        for (int i = lane; i < n; i += WARP) t.out[i] = 0;
        __syncwarp();
        for (int j = 0; j < k; j++) {
            int best = sparse_choice(a.m, t);
            double of = t.p[best] * slope(j);
            for (int i = lane; i < n; i += WARP) d[i] += (i == best ? of : 0) - t.p[i] * of;
            if (lane == 0) t.out[best] = 1;
            __syncwarp();
        }
    } else {
        for (int j = 0; j < k; j++) sum += t.w[j] * slope(j);
        if (a.m.gate == MOE_SOFTMAX) {
            for (int i = lane; i < n; i += WARP) d[i] = -t.p[i] * sum;
            __syncwarp();
        }
        for (int j = lane; j < k; j += WARP) {
            double w = t.w[j], of = slope(j);
            d[t.chosen[j]] +=
                a.m.gate == MOE_SIGMOID ? of * w * (1 - w) : w * (a.m.gate == MOE_SOFTMAX ? of : of - sum);
        }
    }
    __syncwarp();
    for (int i = lane; i < n; i += WARP) put_gradient(&dz.at(row, i), (float)d[i], a.acc);
}

// --- places of pairs

__global__ void count_kernel(const int32_t *map, int64_t map_ld, int64_t pairs, int experts, int32_t *counts) {
    DYNAMIC_SHARED(int, count);
    for (int e = (int)threadIdx.x; e < experts; e += MOE_PAIRS) count[e] = 0;
    __syncthreads();
    int64_t pair = (int64_t)blockIdx.x * MOE_PAIRS + threadIdx.x;
    if (pair < pairs) atomicAdd(&count[map[pair * map_ld + 1]], 1);
    __syncthreads();
    for (int e = (int)threadIdx.x; e < experts; e += MOE_PAIRS) counts[(int64_t)e * gridDim.x + blockIdx.x] = count[e];
}

// A warp for each expert: counts of blocks to those of the blocks before.
__global__ void sum_kernel(int32_t *counts, int32_t *totals, int experts, int blocks) {
    int e = (int)(blockIdx.x * blockDim.y + threadIdx.y), lane = (int)threadIdx.x, before = 0;
    if (e >= experts) return;
    for (int first = 0; first < blocks; first += WARP) {
        int32_t *at = counts + (int64_t)e * blocks + first + lane;
        int own = first + lane < blocks ? *at : 0, upto = own;
        for (int by = 1; by < WARP; by *= 2) {
            int other = __shfl_up_sync(ALL_LANES, upto, (unsigned)by);
            if (lane >= by) upto += other;
        }
        if (first + lane < blocks) *at = before + upto - own;
        before += __shfl_sync(ALL_LANES, upto, WARP - 1);
    }
    if (lane == 0) totals[e] = before;
}

__global__ void place_kernel(int32_t *map, int64_t map_ld, int64_t pairs, int experts, const int32_t *counts,
                             const int32_t *totals, int32_t *offsets, int64_t offsets_ld) {
    DYNAMIC_SHARED(int, first);
    __shared__ int expert[MOE_PAIRS];
    int64_t pair = (int64_t)blockIdx.x * MOE_PAIRS + threadIdx.x;
    int mine = pair < pairs ? map[pair * map_ld + 1] : -1, rank = 0;
    expert[threadIdx.x] = mine;
    running_sums<MOE_PAIRS>(experts, first, [&](int e) { return totals[e]; });
    for (int i = 0; i < (int)threadIdx.x; i++) rank += expert[i] == mine;
    if (pair < pairs) {
        int place = first[mine] + counts[(int64_t)mine * gridDim.x + blockIdx.x] + rank;
        map[pair * map_ld + 1] = place;
        map[place * map_ld] = (int32_t)pair;
    }
    for (int e = (int)threadIdx.x; e <= experts && blockIdx.x == 0; e += MOE_PAIRS) offsets[e * offsets_ld] = first[e];
}

// Shared memory for several tokens, a warp each.
template <class K> unsigned warps_for(K *kernel, size_t bytes) {
    if (bytes > SHARED_BYTES) cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    size_t fit = SHARED_BYTES / bytes;
    return fit < 1 ? 1 : fit < WARPS ? (unsigned)fit : (unsigned)WARPS;
}

route_args args_of(const struct op_call *call, const float *bias) {
    route_args a = {};
    a.m = call->p.moe, a.bias = bias;
    return a;
}

template <class T> void route(const struct gpu *g, const struct op_call *call, const float *bias) {
    route_args a = args_of(call, bias);
    matrix<int32_t> map = matrix_of<int32_t>(g, &call->out[1]);
    matrix<T> logits = matrix_of<T>(g, &call->in[0]);
    a.map = map.p, a.map_ld = map.ld, a.w = matrix_of<float>(g, &call->out[0]);
    size_t bytes = token_bytes(&a.m);
    unsigned warps = warps_for(route_kernel<T>, bytes);
    LAUNCH((route_kernel<T>), blocks_for(logits.rows, warps), dim3(WARP, warps), warps * bytes, g->stream, a, logits);
}

template <class T> void route_backward(const struct gpu *g, const struct op_call *call, const float *bias) {
    route_args a = args_of(call, bias);
    matrix<T> logits = matrix_of<T>(g, &call->in[0]);
    a.w = matrix_of<float>(g, &call->grad_out[0]), a.acc = call->acc[0];
    size_t bytes = token_bytes(&a.m);
    unsigned warps = warps_for(route_backward_kernel<T>, bytes);
    LAUNCH((route_backward_kernel<T>), blocks_for(logits.rows, warps), dim3(WARP, warps), warps * bytes, g->stream, a,
           logits, matrix_of<T>(g, &call->grad_in[0]));
}

// --- the load-balancing loss

// One token's softmax into p, by a warp.
template <class T> __device__ void probabilities(const matrix<T> &logits, int64_t row, double *p) {
    int lane = (int)threadIdx.x, n = (int)logits.cols;
    double top = -INFINITY, sum = 0;
    for (int e = lane; e < n; e += WARP) {
        double z = (double)to_float(logits.at(row, e));
        top = z > top ? z : top;
    }
    top = warp_most(top);
    for (int e = lane; e < n; e += WARP) {
        p[e] = exponential((double)to_float(logits.at(row, e)) - top);
        sum += p[e];
    }
    sum = warp_sum(sum);
    for (int e = lane; e < n; e += WARP) p[e] /= sum;
    __syncwarp();
}

// A block's tokens, four at a time; sums over them token by token.
template <class T>
__global__ void balance_kernel(matrix<T> logits, const int32_t *lengths, int64_t lengths_ld, int used, int64_t tokens,
                               double *partial) {
    DYNAMIC_SHARED(double, shared);
    int n = (int)logits.cols, thread = (int)(threadIdx.y * WARP + threadIdx.x), threads = (int)blockDim.y * WARP;
    double *sums = shared, *p = sums + 2 * n, *left = p + blockDim.y * n;
    double *my_p = p + threadIdx.y * n, *my_left = left + threadIdx.y * n;
    int64_t begin = blockIdx.x * tokens, end = min(begin + tokens, logits.rows);
    for (int e = thread; e < 2 * n; e += threads) sums[e] = 0;
    for (int64_t t = begin; t < end; t += blockDim.y) {
        int64_t row = t + threadIdx.y;
        bool counts = row < end && lengths[row * lengths_ld] != 0;
        if (counts) probabilities(logits, row, my_p);
        for (int e = (int)threadIdx.x; e < n; e += WARP) {
            if (!counts) my_p[e] = 0;
            my_left[e] = my_p[e];
        }
        __syncwarp();
        for (int j = 0; j < used && counts; j++) {
            int best = largest(
                n, [&](int e) { return my_left[e]; }, [&](int e) { return my_left[e] >= 0; });
            if (threadIdx.x == 0 && best >= 0) my_left[best] = -1;
            __syncwarp();
        }
        __syncthreads();
        for (int e = thread; e < n; e += threads) {
            for (unsigned w = 0; w < blockDim.y; w++) sums[e] += left[w * n + e] < 0, sums[n + e] += p[w * n + e];
        }
        __syncthreads();
    }
    for (int e = thread; e < 2 * n; e += threads) partial[(int64_t)blockIdx.x * 2 * n + e] = sums[e];
}

__global__ void balance_sum_kernel(const double *partial, int64_t blocks, int64_t n, float *sums) {
    int64_t e = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    double sum = 0;
    for (int64_t i = 0; e < n && i < blocks; i++) sum += partial[i * n + e];
    if (e < n) sums[e] = (float)sum;
}

// slopes[e] = d loss / d p_e = weight E f_e / N. One block.
__global__ void slope_kernel(struct moe_balance m, matrix<float> sums, const step_scalars *scalars, double *slopes) {
    int64_t experts = sums.cols / 2;
    double all = 0;
    for (int64_t e = threadIdx.x; e < experts; e += BLOCK) {
        double times = 0;
        for (int64_t l = 0; l < sums.rows; l++) times += (double)sums.at(l, e);
        slopes[e] = times, all += times / m.used; // tokens of all layers
    }
    all = block_sum<BLOCK>(all);
    double micro = scalars->micro_batches ? scalars->micro_batches : 1;
    double factor = all > 0 ? (double)m.weight * scalars->denominator / micro * (double)experts / (all * all) : 1;
    for (int64_t e = threadIdx.x; e < experts; e += BLOCK) slopes[e] *= factor;
}

template <class T>
__global__ void balance_backward_kernel(matrix<T> logits, const int32_t *lengths, int64_t lengths_ld,
                                        const double *slopes, matrix<T> dy, matrix<T> dz, bool acc) {
    DYNAMIC_SHARED(double, shared);
    int n = (int)logits.cols;
    double *p = shared + threadIdx.y * n, mean = 0;
    int64_t row = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= logits.rows) return;
    bool counts = lengths[row * lengths_ld] != 0;
    if (counts) probabilities(logits, row, p);
    for (int e = (int)threadIdx.x; e < n && counts; e += WARP) mean += p[e] * slopes[e];
    mean = warp_sum(mean);
    for (int e = (int)threadIdx.x; e < n; e += WARP) {
        double through = dy.p ? (double)to_float(dy.at(row, e)) : 0;
        put_gradient(&dz.at(row, e), (float)(through + (counts ? p[e] * (slopes[e] - mean) : 0)), acc);
    }
}

template <class T> void balance(const struct gpu *g, const struct op_call *call, double *partial, int64_t tokens) {
    matrix<T> logits = matrix_of<T>(g, &call->in[0]);
    matrix<int32_t> lengths = matrix_of<int32_t>(g, &call->in[1]);
    matrix<float> sums = matrix_of<float>(g, &call->p.balance.sums);
    size_t each = 2 * (size_t)logits.cols * sizeof(double);
    unsigned warps = warps_for(balance_kernel<T>, 2 * each), blocks = blocks_for(logits.rows, tokens);
    if (blocks)
        LAUNCH((balance_kernel<T>), blocks, dim3(WARP, warps), (1 + warps) * each, g->stream, logits, lengths.p,
               lengths.ld, call->p.balance.used, tokens, partial);
    LAUNCH(balance_sum_kernel, blocks_for(sums.cols, BLOCK), BLOCK, 0, g->stream, partial, blocks, sums.cols,
           sums.p + call->p.balance.row * sums.ld);
}

template <class T> void balance_backward(const struct gpu *g, const struct op_call *call, double *slopes) {
    matrix<T> logits = matrix_of<T>(g, &call->out[0]);
    matrix<int32_t> lengths = matrix_of<int32_t>(g, &call->in[1]);
    size_t each = (size_t)logits.cols * sizeof(double);
    unsigned warps = warps_for(balance_backward_kernel<T>, each);
    LAUNCH(slope_kernel, 1, BLOCK, 0, g->stream, call->p.balance, matrix_of<float>(g, &call->p.balance.sums),
           scalars_of(g, call), slopes);
    if (logits.rows)
        LAUNCH((balance_backward_kernel<T>), blocks_for(logits.rows, warps), dim3(WARP, warps), warps * each, g->stream,
               logits, lengths.p, lengths.ld, slopes, matrix_of<T>(g, &call->grad_out[0]),
               matrix_of<T>(g, &call->grad_in[0]), call->acc[0]);
}
} // namespace

extern "C" void gpu_moe_route_forward(const struct gpu *g, const struct op_call *call, const float *bias,
                                      int32_t *counts, int32_t *totals) {
    matrix<int32_t> map = matrix_of<int32_t>(g, &call->out[1]), offsets = matrix_of<int32_t>(g, &call->out[2]);
    int experts = call->p.moe.experts;
    unsigned blocks = blocks_for(map.rows, MOE_PAIRS);
    size_t bytes = (size_t)(experts + 1) * sizeof(int);
    if (map.rows) {
        DISPATCH(call->in[0].dtype, T, route<T>(g, call, bias));
        warps_for(count_kernel, bytes);
        LAUNCH(count_kernel, blocks, MOE_PAIRS, bytes, g->stream, map.p, map.ld, map.rows, experts, counts);
    }
    LAUNCH(sum_kernel, blocks_for(experts, WARPS), dim3(WARP, WARPS), 0, g->stream, counts, totals, experts,
           (int)blocks);
    warps_for(place_kernel, bytes);
    LAUNCH(place_kernel, blocks ? blocks : 1, MOE_PAIRS, bytes, g->stream, map.p, map.ld, map.rows, experts, counts,
           totals, offsets.p, offsets.ld);
}
extern "C" void gpu_moe_route_backward(const struct gpu *g, const struct op_call *call, const float *bias) {
    if (call->in[0].rows) DISPATCH(call->in[0].dtype, T, route_backward<T>(g, call, bias));
}
extern "C" void gpu_moe_balance_forward(const struct gpu *g, const struct op_call *call, double *partial,
                                        int64_t tokens) {
    DISPATCH(call->in[0].dtype, T, balance<T>(g, call, partial, tokens));
}
extern "C" void gpu_moe_balance_backward(const struct gpu *g, const struct op_call *call, double *slopes) {
    DISPATCH(call->out[0].dtype, T, balance_backward<T>(g, call, slopes));
}
