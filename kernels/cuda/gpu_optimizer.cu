// See gpu_optimizer.h. Bandwidth is all that counts: 16 bytes at a time wherever the addresses allow it.
//
// AdamW is one launch over all parameters, whatever the number of groups. The table of groups reaches the device by
// value, a page of a small kernel's arguments at a time (nothing to keep, nothing to wait for); that kernel also makes
// each group's factors from the step's scalars. A block of the main kernel looks up the group of its first element.
#include "kernels/cuda/gpu_optimizer.h"

#include "kernels/cuda/four.cuh"

#include <initializer_list>

namespace {
enum { BLOCK = 256, TILE = 4 * BLOCK, NORM_BLOCK = 512, PAGE = 128 };

// --- sums

__global__ void grad_add_kernel(float *sum, const float *g, int64_t n, bool together) {
    int64_t i = ((int64_t)blockIdx.x * BLOCK + threadIdx.x) * 4;
    if (i < n) put_four(sum + i, load_four(g + i, n - i, together), n - i, together, true);
}

__device__ void add_squares(double sum[4], pack<float, 4> x) {
    for (int j = 0; j < 4; j++) sum[j] += (double)x.v[j] * (double)x.v[j];
}

// Squares are exact in double. A thread's elements, the threads of a block, and the blocks are summed in fixed orders.
// A thread has four accesses under way at a time.
__global__ void __launch_bounds__(NORM_BLOCK)
    grad_norm_kernel(const float *g, int64_t n, int64_t chunk, bool together, double *partial) {
    constexpr int STEP = NORM_BLOCK * 4;
    int64_t begin = (int64_t)blockIdx.x * chunk, end = begin + chunk < n ? begin + chunk : n;
    double sum[4] = {0, 0, 0, 0};
    int64_t i = begin + threadIdx.x * 4;
    for (; i + 3 * STEP + 4 <= end; i += 4 * STEP) {
        pack<float, 4> x[4];
        for (int k = 0; k < 4; k++) x[k] = load_four(g + i + k * STEP, 4, together);
        for (int k = 0; k < 4; k++) add_squares(sum, x[k]);
    }
    for (; i < end; i += STEP) add_squares(sum, load_four(g + i, end - i, together));
    double all = block_sum<NORM_BLOCK>((sum[0] + sum[2]) + (sum[1] + sum[3]));
    if (threadIdx.x == 0) partial[blockIdx.x] = all;
}

// As cpu_grad_norm. The square of no finite float, nor any sum of them, overflows a double: the norm is finite unless
// an element is not.
__global__ void clip_kernel(const double *partial, step_scalars *s) {
    double square = block_sum<GPU_NORM_CHUNKS>(partial[threadIdx.x]);
    if (threadIdx.x) return;
    double scale = s->denominator > 0 ? 1 / s->denominator : 0;
    s->grad_norm = sqrt(square) * scale;
    s->nonfinite = isfinite(s->grad_norm) ? 0 : 1;
    double clip = s->max_grad_norm > 0 ? fmin(1.0, s->max_grad_norm / (s->grad_norm + 1e-6)) : 1;
    s->clip_scale = s->nonfinite != 0 ? 0 : clip * scale;
}

// --- AdamW

struct group_page {
    int first, count;
    double beta1, beta2;
    struct param_group groups[PAGE];
};

// base^n for whole n by repeated squaring, as on the CPU.
__device__ double power(double base, double n) {
    double result = 1;
    for (uint64_t k = (uint64_t)n; k; k >>= 1, base *= base) {
        if (k & 1) result *= base;
    }
    return result;
}

__global__ void adamw_groups_kernel(group_page page, const step_scalars *s, struct gpu_group *groups,
                                    struct gpu_adamw_step *step) {
    int i = threadIdx.x;
    if (page.first == 0 && i == 0) {
        double bias2 = 1 - power(page.beta2, s->step);
        step->scale = (float)s->clip_scale, step->sqrt_bias2 = (float)sqrt(bias2), step->skip = s->nonfinite != 0;
    }
    if (i >= page.count) return;
    struct param_group from = page.groups[i];
    double lr = s->lr * (double)from.lr_ratio, bias1 = 1 - power(page.beta1, s->step);
    groups[page.first + i] = {from.begin, from.end, (float)(1 - lr * (double)from.weight_decay), (float)(lr / bias1)};
}

struct adamw_args {
    float *param, *m, *v;
    const float *sum;
    int64_t n;
    const struct gpu_group *groups;
    const struct gpu_adamw_step *step;
    int n_groups;
    float beta1, beta2, one_minus_beta1, one_minus_beta2, eps;
    bool together;
};

// The operations and their order are those of rows_fast.c: the same bits.
__device__ void adamw_element(const adamw_args &a, const struct gpu_adamw_step &step, float decay, float step_size,
                              float g, float *p, float *m, float *v) {
    g *= step.scale;
    *m = fmaf(a.one_minus_beta1, g, *m * a.beta1);
    *v = fmaf(a.one_minus_beta2 * g, g, *v * a.beta2);
    float denominator = sqrtf(*v) / step.sqrt_bias2 + a.eps;
    *p = *p * decay - step_size * (*m / denominator);
}

__global__ void adamw_kernel(adamw_args a) {
    __shared__ int first;
    struct gpu_adamw_step step = *a.step;
    if (step.skip) return;
    int64_t tile = (int64_t)blockIdx.x * TILE, i = tile + threadIdx.x * 4;
    if (threadIdx.x == 0) { // the first group that ends behind the tile's beginning
        int low = 0, high = a.n_groups;
        while (low < high) {
            int middle = (low + high) / 2;
            if (a.groups[middle].end <= tile)
                low = middle + 1;
            else
                high = middle;
        }
        first = low;
    }
    __syncthreads();
    int64_t count = min((int64_t)4, a.n - i);
    int k = first;
    while (k < a.n_groups && a.groups[k].end <= i) k++;
    if (count <= 0 || k == a.n_groups || a.groups[k].begin >= i + count) return;
    pack<float, 4> g = load_four(a.sum + i, count, a.together), p = load_four(a.param + i, count, a.together),
                   m = load_four(a.m + i, count, a.together), v = load_four(a.v + i, count, a.together);
    struct gpu_group group = a.groups[k];
    for (int j = 0; j < 4; j++) {
        while (group.end <= i + j && k + 1 < a.n_groups) group = a.groups[++k];
        if (i + j < group.begin || i + j >= group.end) continue;
        adamw_element(a, step, group.decay, group.step_size, g.v[j], &p.v[j], &m.v[j], &v.v[j]);
    }
    store_four(a.param + i, p, count, a.together);
    store_four(a.m + i, m, count, a.together);
    store_four(a.v + i, v, count, a.together);
}

template <class T> bool in_sixteens(std::initializer_list<T *> all) {
    for (T *p : all)
        if ((uintptr_t)p % 16) return false;
    return true;
}
} // namespace

extern "C" void gpu_grad_add(const struct gpu *g, const struct op_call *call) {
    const float *from = matrix_of<float>(g, &call->in[0]).p;
    float *sum = matrix_of<float>(g, &call->out[0]).p;
    int64_t n = call->in[0].cols;
    if (n)
        LAUNCH(grad_add_kernel, blocks_for(n, TILE), BLOCK, 0, g->stream, sum, from, n,
               in_sixteens<const float>({from, sum}));
}

extern "C" void gpu_grad_norm(const struct gpu *g, const struct op_call *call, double *partial) {
    const float *from = matrix_of<float>(g, &call->in[0]).p;
    int64_t n = call->in[0].cols, chunk = (n + GPU_NORM_CHUNKS - 1) / GPU_NORM_CHUNKS;
    chunk = (chunk + 3) / 4 * 4; // so that all begin aligned
    LAUNCH(grad_norm_kernel, GPU_NORM_CHUNKS, NORM_BLOCK, 0, g->stream, from, n, chunk,
           in_sixteens<const float>({from}), partial);
    LAUNCH(clip_kernel, 1, GPU_NORM_CHUNKS, 0, g->stream, (const double *)partial,
           const_cast<step_scalars *>(scalars_of(g, call)));
}

extern "C" void gpu_adamw(const struct gpu *g, const struct op_call *call, struct gpu_group *groups,
                          struct gpu_adamw_step *step) {
    const auto &p = call->p.adamw;
    adamw_args a = {};
    a.param = matrix_of<float>(g, &call->out[0]).p, a.m = matrix_of<float>(g, &call->out[1]).p;
    a.v = matrix_of<float>(g, &call->out[2]).p, a.sum = matrix_of<float>(g, &call->in[0]).p;
    a.n = call->in[0].cols, a.n_groups = p.n_groups, a.groups = groups, a.step = step;
    a.beta1 = (float)p.beta1, a.beta2 = (float)p.beta2, a.eps = (float)p.eps;
    a.one_minus_beta1 = (float)(1 - p.beta1), a.one_minus_beta2 = (float)(1 - p.beta2);
    a.together = in_sixteens<const float>({a.param, a.m, a.v, a.sum});
    if (a.n == 0 || a.n_groups == 0) return;
    for (int i = 0; i < p.n_groups; i += PAGE) {
        group_page page = {i, min((int)PAGE, p.n_groups - i), p.beta1, p.beta2, {}};
        for (int j = 0; j < page.count; j++) page.groups[j] = p.groups[i + j];
        LAUNCH(adamw_groups_kernel, 1, PAGE, 0, g->stream, page, scalars_of(g, call), groups, step);
    }
    LAUNCH(adamw_kernel, blocks_for(a.n, TILE), BLOCK, 0, g->stream, a);
}
