// See gpu_columns.h. Rows are read once. Sums over rows have two levels: a block adds up 256 rows of 128 columns (8
// warps share the rows, 4 columns a lane), then a thread adds up what the blocks of its column found, in double.
#include "kernels/cuda/gpu_columns.h"

#include "kernels/cuda/four.cuh"

namespace {
enum { BLOCK = 256, WARPS = 8, WIDTH = 4 * WARP };

template <class T> struct columns_args {
    matrix<T> z, y; // backward: dy is y
    matrix<T> dz;
    const float *m, *norms, *bias;
    float *sums; // (segments, 2, N): of dy z, of dy; NULL = not wanted
    bool together, acc, wants_m;
};

template <class T> __device__ pack<float, 4> factors(const columns_args<T> &a, int64_t c, int64_t n) {
    pack<float, 4> f = {1, 1, 1, 1};
    for (int i = 0; a.m && i < 4 && i < n; i++) f.v[i] = a.m[c + i] / a.norms[c + i];
    return f;
}

template <class T> __global__ void columns_kernel(columns_args<T> a) {
    int64_t c = ((int64_t)blockIdx.x * BLOCK + threadIdx.x) * 4, n = a.z.cols - c;
    if (n <= 0) return;
    pack<float, 4> f = factors(a, c, n), plus = {};
    if (a.bias) plus = load_four(a.bias + c, n, false);
    for (int64_t row = blockIdx.y; row < a.z.rows; row += gridDim.y) {
        pack<float, 4> x = load_four(a.z.row(row) + c, n, a.together);
        for (int i = 0; i < 4; i++) x.v[i] = fmaf(f.v[i], x.v[i], plus.v[i]);
        store_four(a.y.row(row) + c, x, n, a.together);
    }
}

// dz = m / n dy, and what one segment of rows adds to dm and db. dz may lie where z or dy do: read before.
template <class T> __global__ void columns_backward_kernel(columns_args<T> a) {
    __shared__ float part[2][WARPS][WIDTH];
    int lane = threadIdx.x, warp = threadIdx.y;
    int64_t c = (int64_t)blockIdx.x * WIDTH + lane * 4, n = a.z.cols - c;
    int64_t first = (int64_t)blockIdx.y * GPU_COLUMNS_SEGMENT, last = first + GPU_COLUMNS_SEGMENT;
    if (last > a.y.rows) last = a.y.rows;
    pack<float, 4> f = factors(a, c, n), sum_m = {}, sum_b = {};
    for (int64_t row = first + warp; n > 0 && row < last; row += WARPS) {
        pack<float, 4> g = load_four(a.y.row(row) + c, n, a.together), d;
        if (a.wants_m) {
            pack<float, 4> z = load_four(a.z.row(row) + c, n, a.together);
            for (int i = 0; i < 4; i++) sum_m.v[i] = fmaf(g.v[i], z.v[i], sum_m.v[i]);
        }
        for (int i = 0; i < 4; i++) sum_b.v[i] += g.v[i], d.v[i] = f.v[i] * g.v[i];
        if (a.dz.p) put_four(a.dz.row(row) + c, d, n, a.together, a.acc);
    }
    if (!a.sums) return;
    for (int i = 0; i < 4; i++) part[0][warp][lane * 4 + i] = sum_m.v[i], part[1][warp][lane * 4 + i] = sum_b.v[i];
    __syncthreads();
    int thread = warp * WARP + lane, which = thread / WIDTH, col = thread % WIDTH; // 2 WIDTH threads
    int64_t at = (int64_t)blockIdx.x * WIDTH + col;
    if (at >= a.z.cols) return;
    float sum = part[which][0][col];
    for (int i = 1; i < WARPS; i++) sum += part[which][i][col];
    a.sums[((int64_t)blockIdx.y * 2 + which) * a.z.cols + at] = sum;
}

__global__ void columns_sum_kernel(const float *sums, int64_t segments, int64_t cols, const float *norms, float *dm,
                                   float *db) {
    int64_t c = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (c >= cols) return;
    double m = 0, b = 0;
    for (int64_t i = 0; i < segments; i++) {
        m += (double)sums[(2 * i) * cols + c];
        b += (double)sums[(2 * i + 1) * cols + c];
    }
    if (dm) dm[c] += (float)(m / (double)norms[c]);
    if (db) db[c] += (float)b;
}

// One warp for each row.
__global__ void row_squares_kernel(const float *from, int64_t rows, int64_t cols, float *out, bool root,
                                   bool together) {
    int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.y;
    if (row >= rows) return;
    const float *x = from + row * cols;
    double sum = 0; // of sums of four: doubles are slow on small GPUs
    for (int64_t c = threadIdx.x * 4; c < cols; c += WIDTH) {
        pack<float, 4> v = load_four(x + c, cols - c, together);
        float square = v.v[0] * v.v[0];
        for (int i = 1; i < 4; i++) square = fmaf(v.v[i], v.v[i], square);
        sum += (double)square;
    }
    sum = warp_sum(sum);
    if (threadIdx.x == 0) out[row] = (float)(root ? sqrt(sum) : sum);
}

template <class T> columns_args<T> args_of(const struct gpu *g, const struct op_call *call) {
    const auto &p = call->p.columns;
    columns_args<T> a = {};
    a.z = matrix_of<T>(g, &call->in[0]);
    a.m = matrix_of<float>(g, &p.magnitude).p, a.norms = matrix_of<float>(g, &p.norms).p;
    return a;
}

template <class T> void forward(const struct gpu *g, const struct op_call *call, const float *bias) {
    columns_args<T> a = args_of<T>(g, call);
    a.y = matrix_of<T>(g, &call->out[0]);
    const float *own = matrix_of<float>(g, &call->p.columns.own_bias).p;
    a.bias = own ? own : bias;
    a.together = aligned<4>(a.z) && aligned<4>(a.y);
    if (a.z.rows == 0) return;
    // a block keeps its columns' factors for several rows
    dim3 grid(blocks_for(a.z.cols, 4 * BLOCK), blocks_for(a.z.rows, 8));
    if (grid.y > 65535) grid.y = 65535;
    LAUNCH((columns_kernel<T>), grid, BLOCK, 0, g->stream, a);
}

template <class T> void backward(const struct gpu *g, const struct op_call *call, float *sums) {
    columns_args<T> a = args_of<T>(g, call);
    float *dm = matrix_of<float>(g, &call->p.columns.dmagnitude).p, *db = matrix_of<float>(g, &call->p.columns.dbias).p;
    a.y = matrix_of<T>(g, &call->grad_out[0]), a.dz = matrix_of<T>(g, &call->grad_in[0]);
    a.acc = call->acc[0], a.wants_m = dm, a.sums = dm || db ? sums : nullptr;
    a.together = aligned<4>(a.z) && aligned<4>(a.y) && aligned<4>(a.dz);
    if (a.z.rows == 0) return;
    unsigned segments = blocks_for(a.z.rows, GPU_COLUMNS_SEGMENT);
    LAUNCH((columns_backward_kernel<T>), dim3(blocks_for(a.z.cols, WIDTH), segments), dim3(WARP, WARPS), 0, g->stream,
           a);
    if (!a.sums) return;
    LAUNCH(columns_sum_kernel, blocks_for(a.z.cols, BLOCK), BLOCK, 0, g->stream, (const float *)sums, (int64_t)segments,
           a.z.cols, a.norms, dm, db);
}
} // namespace

extern "C" void gpu_columns_forward(const struct gpu *g, const struct op_call *call, const float *bias) {
    DISPATCH(call->in[0].dtype, T, forward<T>(g, call, bias));
}
extern "C" void gpu_columns_backward(const struct gpu *g, const struct op_call *call, float *sums) {
    DISPATCH(call->in[0].dtype, T, backward<T>(g, call, sums));
}
extern "C" void gpu_row_squares(const struct gpu *g, const float *from, int64_t rows, int64_t cols, float *out,
                                bool root) {
    if (rows)
        LAUNCH(row_squares_kernel, blocks_for(rows, WARPS), dim3(WARP, WARPS), 0, g->stream, from, rows, cols, out,
               root, (uintptr_t)from % 16 == 0 && cols % 4 == 0);
}
