// See gpu_grouped.h. One kernel for products and one for weight gradients, over tiles in shared memory that are copied
// ahead (cp.async, 4 stages) of the arithmetic of 8 warps: mma.m16n8k16 for bf16, plain fmas for f32.
//
// Products: a fixed number of blocks goes over all tiles. A block counts the row tiles of its launch's experts from the
// offsets once; tile t is then (expert, column tile, row tile), experts one after another, and within an expert bands
// of BAND row tiles in which the rows run fastest: a tile of the weight is read from memory by one block and found in
// L2 by the BAND - 1 next ones, whose rows of A (BAND x BM x k) stay in L2, too. Terms follow one another in one loop
// over k, so that C is written once.
//   tiles of C: 128 x 128 (two blocks a multiprocessor), 64 x 128 where experts have few rows, 128 x 32 and
//   128 x 64 for ranks.
//   stages: 64 bytes of k for each row or column.
// Gradients: a block per (expert, tile of 128 x 32) loops over the expert's rows.
#include "kernels/cuda/gpu_grouped.h"

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/prefix.cuh"
#include "kernels/cuda/random.cuh"

#if defined(__CUDACC__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL
#endif

namespace {

enum { THREADS = 256, STAGES = 4, BAND = 16, FEW_ROWS = 128 };
// How an operand lies in memory: its k along rows, or across them.
enum layout { ALONG, ACROSS };

template <class T> constexpr int CHUNK = 16 / (int)sizeof(T); // elements that are copied at once
template <class T> constexpr int DEPTH = 64 / (int)sizeof(T); // of k in a stage

// A stage of one operand in shared memory: SIDE rows (columns) by DEPTH. The padding of 16 bytes puts the eight rows
// that are read at once into different banks.
template <class T, layout L, int SIDE> struct stage_of {
    static constexpr int rows = L == ALONG ? SIDE : DEPTH<T>, cols = L == ALONG ? DEPTH<T> : SIDE;
    static constexpr int pitch = cols + CHUNK<T>; // in elements
    static constexpr int bytes = rows * pitch * (int)sizeof(T);
};

// Of an operand: where the stage's first element lies, and how far it reaches: rows (columns) [low, high) of the tile,
// `k` from here on. `fast`: 16 bytes at once.
template <class T> struct source {
    const T *p;
    int64_t ld;
    int low, high, k;
    bool fast;
};

template <class T, layout L, int SIDE> __device__ void load_stage(T *to, const source<T> &s) {
    typedef stage_of<T, L, SIDE> shape;
    constexpr int in_row = shape::cols / CHUNK<T>, chunks = shape::rows * in_row;
    for (int c = (int)threadIdx.x; c < chunks; c += THREADS) {
        int r = c / in_row, q = c % in_row * CHUNK<T>;
        T *at = to + r * shape::pitch + q;
        const T *from = s.p + r * s.ld + q;
        int side = L == ALONG ? r : q, k = L == ALONG ? q : r;
        if (s.fast) {
            bool valid = side >= s.low && side < s.high && k < s.k;
            copy_ahead(at, valid ? from : s.p, valid);
            continue;
        }
        pack<T, CHUNK<T>> v;
        for (int i = 0; i < CHUNK<T>; i++) {
            int along = L == ALONG ? 0 : i;
            bool valid = side + along >= s.low && side + along < s.high && k + (i - along) < s.k;
            v.v[i] = valid ? from[i] : T{};
        }
        *(pack<T, CHUNK<T>> *)at = v;
    }
}

// The warps of a block over a tile of BM x BN: MI x NI pieces of 16 x 8 each.
template <int BM, int BN> struct warps_of {
    static constexpr int across = BN / 32, down = THREADS / WARP / across;
    static constexpr int MI = BM / down / 16, NI = BN / across / 8;
};

// d += the stage's product, for N_MI pieces from row `row` on and NI from column `col` on. bf16: by matrix
// instructions.
template <layout LA, int BM, layout LB, int BN, int N_MI, int NI>
__device__ void stage_product(float (*d)[NI][4], const bf16 *a, const bf16 *b, int row, int col) {
    constexpr int pa = stage_of<bf16, LA, BM>::pitch, pb = stage_of<bf16, LB, BN>::pitch;
    int lane = (int)(threadIdx.x % WARP), in = lane % 8, odd = lane / 8 % 2 * 8, high = lane / 16 * 8;
    for (int k = 0; k < DEPTH<bf16>; k += 16) {
        uint32_t fa[N_MI][4], fb[NI / 2][4];
        UNROLL
        for (int i = 0; i < N_MI; i++) {
            int m = row + 16 * i + odd + in;
            if constexpr (LA == ALONG)
                load_matrices<false>(fa[i], a + m * pa + k + high);
            else
                load_matrices<true>(fa[i], a + (k + high + in) * pa + row + 16 * i + odd);
        }
        UNROLL
        for (int j = 0; j < NI / 2; j++) {
            if constexpr (LB == ALONG)
                load_matrices<false>(fb[j], b + (col + 16 * j + high + in) * pb + k + odd);
            else
                load_matrices<true>(fb[j], b + (k + odd + in) * pb + col + 16 * j + high);
        }
        UNROLL
        for (int i = 0; i < N_MI; i++) {
            UNROLL
            for (int j = 0; j < NI; j++) mma_bf16(d[i][j], fa[i], &fb[j / 2][j % 2 * 2]);
        }
    }
}

// f32: the same elements of d in the same lanes, one fma after another.
template <layout LA, int BM, layout LB, int BN, int N_MI, int NI>
__device__ void stage_product(float (*d)[NI][4], const float *a, const float *b, int row, int col) {
    constexpr int pa = stage_of<float, LA, BM>::pitch, pb = stage_of<float, LB, BN>::pitch;
    int lane = (int)(threadIdx.x % WARP), group = lane / 4, part = lane % 4;
    for (int k = 0; k < DEPTH<float>; k++) {
        float x[N_MI][2], y[NI][2];
        UNROLL
        for (int i = 0; i < 2 * N_MI; i++) {
            int m = row + 8 * i + group;
            x[i / 2][i % 2] = LA == ALONG ? a[m * pa + k] : a[k * pa + m];
        }
        UNROLL
        for (int j = 0; j < 2 * NI; j++) {
            int n = col + j / 2 * 8 + 2 * part + j % 2;
            y[j / 2][j % 2] = LB == ALONG ? b[n * pb + k] : b[k * pb + n];
        }
        UNROLL
        for (int i = 0; i < N_MI; i++) {
            UNROLL
            for (int j = 0; j < NI; j++) {
                UNROLL
                for (int e = 0; e < 4; e++) d[i][j][e] = fmaf(x[i][e / 2], y[j][e % 2], d[i][j][e]);
            }
        }
    }
}

// d += mask times the stage's product; the tile's pieces begin at row `row`, column `col` of it and (first, from) of C.
template <class T, layout LB, int BM, int BN, int MI, int NI>
__device__ void masked_product(float (*d)[NI][4], const T *a, const T *b, int row, int col, const gpu_mask &mask,
                               int64_t first, int64_t from, int64_t last) {
    int lane = (int)(threadIdx.x % WARP), group = lane / 4, part = lane % 4;
    UNROLL
    for (int i = 0; i < MI; i++) {
        float sum[1][NI][4] = {};
        stage_product<ALONG, BM, LB, BN, 1, NI>(sum, a, b, row + 16 * i, col);
        for (int half = 0; half < 2; half++) {
            int64_t r = min(first + row + 16 * i + 8 * half + group, last);
            UNROLL
            for (int j = 0; j < NI; j++) {
                float keep[4];
                keep_factors(mask, r, (from + col + 8 * j + 2 * part) / 4, keep);
                float even = part % 2 ? keep[2] : keep[0], odd = part % 2 ? keep[3] : keep[1];
                if (half)
                    d[i][j][2] = fmaf(sum[0][j][2], even, d[i][j][2]), d[i][j][3] = fmaf(sum[0][j][3], odd, d[i][j][3]);
                else
                    d[i][j][0] = fmaf(sum[0][j][0], even, d[i][j][0]), d[i][j][1] = fmaf(sum[0][j][1], odd, d[i][j][1]);
            }
        }
    }
}

// --- products

struct product_args {
    grouped_product p;
    uint8_t fast_a, fast_b; // bit i: of term i
    bool pairs;             // two elements of C at once
};
static_assert(sizeof(product_args) <= 4000, "parameters of a kernel");

struct tile {
    int64_t begin, end; // rows: of the tile, and where the expert's end
    int64_t col;
    int expert;
};

template <int BM, int BN> __device__ tile tile_at(int64_t t, const grouped_rows &rows, const int *first, int64_t n) {
    int64_t cols = (n + BN - 1) / BN, at = t / cols;
    int low = 0, high = rows.end - rows.begin;
    while (high - low > 1) { // the expert whose tiles begin last before it
        int middle = (low + high) / 2;
        if (first[middle] <= at)
            low = middle;
        else
            high = middle;
    }
    int64_t tiles = first[low + 1] - first[low], local = t - first[low] * cols, band = local / (BAND * cols);
    int64_t in_band = min((int64_t)BAND, tiles - band * BAND), rest = local - band * BAND * cols;
    tile out;
    out.expert = rows.begin + low;
    out.begin = rows.offsets[out.expert * rows.offsets_ld] + (band * BAND + rest % in_band) * BM;
    out.end = rows.offsets[(out.expert + 1) * rows.offsets_ld];
    out.col = rest / in_band * BN;
    return out;
}

// Where the loop over k stands: the loads run ahead of the products.
struct place {
    int term, k;
};
template <class T> __device__ void step_on(place &at, const grouped_product &p) {
    at.k += DEPTH<T>;
    if (at.k >= p.term[at.term].k) at.term++, at.k = 0;
}

template <class T, layout LB, int BM, int BN>
__device__ void load_term(T *to, const product_args &args, const tile &t, const place &at) {
    const grouped_product &p = args.p;
    const grouped_term &term = p.term[at.term];
    int left = (int)(term.k - at.k);
    source<T> a, b;
    a.p = (const T *)term.a + t.begin * term.a_ld + at.k, a.ld = term.a_ld;
    a.low = (int)max((int64_t)0, min(p.low - t.begin, (int64_t)BM));
    a.high = (int)min(min(t.end, p.high) - t.begin, (int64_t)BM);
    a.k = left, a.fast = args.fast_a >> at.term & 1;
    load_stage<T, ALONG, BM>(to, a);
    const T *matrix = term.table >= 0 ? (const T *)p.tables[term.table][t.expert - p.rows.begin]
                                      : (const T *)term.b + (t.expert - term.first) * term.step;
    b.p = LB == ALONG ? matrix + t.col * term.b_ld + at.k : matrix + at.k * term.b_ld + t.col;
    b.ld = term.b_ld, b.low = 0, b.high = (int)min(p.n - t.col, (int64_t)BN), b.k = left;
    b.fast = args.fast_b >> at.term & 1;
    load_stage<T, LB, BN>(to + stage_of<T, ALONG, BM>::bytes / sizeof(T), b);
}

template <class T, int BM, int BN, int MI, int NI>
__device__ void store_tile(const product_args &args, const tile &t, const float (*d)[NI][4], int row, int col) {
    const grouped_product &p = args.p;
    int lane = (int)(threadIdx.x % WARP), group = lane / 4, part = lane % 4;
    UNROLL
    for (int i = 0; i < 2 * MI; i++) {
        int64_t r = t.begin + row + 8 * i + group;
        if (r >= t.end) continue;
        bool inside = r >= p.low && r < p.high;
        T *c = (T *)p.c + r * p.ldc;
        UNROLL
        for (int j = 0; j < NI; j++) {
            int64_t n = t.col + col + 8 * j + 2 * part;
            float v[2];
            for (int e = 0; e < 2; e++) {
                v[e] = inside ? p.scale * d[i / 2][j][i % 2 * 2 + e] : 0;
                if (n + e >= p.n) continue;
                if (p.bias) v[e] += p.bias[t.expert * p.n + n + e];
                if (p.f && inside && n + e < p.f_cols) p.f[r * p.ldf + n + e] = v[e];
            }
            if (args.pairs && n + 1 < p.n) {
                pack<T, 2> both, *to = (pack<T, 2> *)(c + n);
                if (p.acc) both = *to, v[0] += to_float(both.v[0]), v[1] += to_float(both.v[1]);
                both.v[0] = from_float<T>(v[0]), both.v[1] = from_float<T>(v[1]);
                *to = both;
                continue;
            }
            if (n < p.n) put_gradient(c + n, v[0], p.acc);
            if (n + 1 < p.n) put_gradient(c + n + 1, v[1], p.acc);
        }
    }
}

template <class T, layout LB, int BM, int BN>
constexpr int PRODUCT_STAGE = stage_of<T, ALONG, BM>::bytes + stage_of<T, LB, BN>::bytes;

template <class T, layout LB, int BM, int BN, bool MASKED>
__global__ void __launch_bounds__(THREADS, MASKED ? 1 : 2) product_kernel(product_args args) {
    typedef warps_of<BM, BN> W;
    constexpr int stage = PRODUCT_STAGE<T, LB, BM, BN> / (int)sizeof(T),
                  of_a = stage_of<T, ALONG, BM>::bytes / (int)sizeof(T);
    DYNAMIC_SHARED(T, stages);
    int *first = (int *)(stages + STAGES * stage);
    const grouped_product &p = args.p;
    int experts = p.rows.end - p.rows.begin, steps = 0;
    running_sums<THREADS>(experts, first, [&](int i) {
        const int32_t *o = p.rows.offsets + (p.rows.begin + i) * p.rows.offsets_ld;
        return (o[p.rows.offsets_ld] - o[0] + BM - 1) / BM;
    });
    for (int i = 0; i < p.n_terms; i++) steps += (int)((p.term[i].k + DEPTH<T> - 1) / DEPTH<T>);
    int warp = (int)threadIdx.x / WARP, row = warp / W::across * W::MI * 16, col = warp % W::across * W::NI * 8;
    int64_t tiles = first[experts] * ((p.n + BN - 1) / BN);
    for (int64_t t = blockIdx.x; t < tiles; t += gridDim.x) {
        tile at = tile_at<BM, BN>(t, p.rows, first, p.n);
        float d[W::MI][W::NI][4] = {};
        place ahead = {0, 0}, now = {0, 0};
        for (int i = 0; i < STAGES - 1; i++) {
            if (i < steps) load_term<T, LB, BM, BN>(stages + i * stage, args, at, ahead), step_on<T>(ahead, p);
            copy_group();
        }
        for (int i = 0; i < steps; i++) {
            copy_wait<STAGES - 2>();
            __syncthreads(); // stage i is there; stage i - 1 was read by all
            int next = i + STAGES - 1;
            if (next < steps)
                load_term<T, LB, BM, BN>(stages + next % STAGES * stage, args, at, ahead), step_on<T>(ahead, p);
            copy_group();
            const T *a = stages + i % STAGES * stage, *b = a + of_a;
            if (MASKED && p.term[now.term].mask.p > 0)
                masked_product<T, LB, BM, BN, W::MI, W::NI>(d, a, b, row, col, p.term[now.term].mask, at.begin, at.col,
                                                            p.rows.rows - 1);
            else
                stage_product<ALONG, BM, LB, BN, W::MI, W::NI>(d, a, b, row, col);
            if (MASKED) step_on<T>(now, p);
        }
        store_tile<T, BM, BN, W::MI, W::NI>(args, at, d, row, col);
        __syncthreads(); // before the next tile's first stages are written
    }
}

template <class T> bool fast(const void *p, int64_t ld, int64_t extent) {
    return (uintptr_t)p % 16 == 0 && ld % CHUNK<T> == 0 && extent % CHUNK<T> == 0;
}

template <class T, layout LB, int BM, int BN, bool MASKED> void launch(const struct gpu *g, const product_args &args) {
    const grouped_product &p = args.p;
    int64_t cols = (p.n + BN - 1) / BN, experts = p.rows.end - p.rows.begin;
    int64_t tiles = ((p.rows.rows + BM - 1) / BM + experts) * cols, blocks = 2 * (int64_t)g->multiprocessors;
    size_t shared = STAGES * PRODUCT_STAGE<T, LB, BM, BN> + (size_t)(experts + 1) * sizeof(int);
    cudaFuncSetAttribute(product_kernel<T, LB, BM, BN, MASKED>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                         (int)shared);
    LAUNCH((product_kernel<T, LB, BM, BN, MASKED>), dim3((unsigned)(tiles < blocks ? tiles : blocks)), THREADS, shared,
           g->stream, args);
}

template <class T, layout LB> void choose(const struct gpu *g, const product_args &args) {
    const grouped_product &p = args.p;
    bool masked = false, few = p.rows.rows < FEW_ROWS * (int64_t)(p.rows.end - p.rows.begin);
    for (int i = 0; i < p.n_terms; i++) masked |= p.term[i].mask.p > 0;
    if constexpr (LB == ACROSS) {
        if (masked) {
            launch<T, LB, 64, 128, true>(g, args);
            return;
        }
    }
    if (p.n <= 32)
        launch<T, LB, 128, 32, false>(g, args);
    else if (p.n <= 64)
        launch<T, LB, 128, 64, false>(g, args);
    else if (few)
        launch<T, LB, 64, 128, false>(g, args);
    else
        launch<T, LB, 128, 128, false>(g, args);
}

template <class T> void product(const struct gpu *g, const grouped_product &p) {
    product_args args = {p, 0, 0, false};
    for (int i = 0; i < p.n_terms; i++) {
        const grouped_term &t = p.term[i];
        int64_t extent = p.b_turned ? p.n : t.k;
        bool b = fast<T>(t.table < 0 ? t.b : nullptr, t.b_ld, extent) && t.step % CHUNK<T> == 0;
        for (int e = 0; t.table >= 0 && e < p.rows.end - p.rows.begin; e++)
            b = b && (uintptr_t)p.tables[t.table][e] % 16 == 0;
        args.fast_a |= (uint8_t)(fast<T>(t.a, t.a_ld, t.k) << i), args.fast_b |= (uint8_t)(b << i);
    }
    args.pairs = (uintptr_t)p.c % (2 * sizeof(T)) == 0 && p.ldc % 2 == 0;
    if (p.b_turned)
        choose<T, ACROSS>(g, args);
    else
        choose<T, ALONG>(g, args);
}

// --- gradients of weights

enum { GRAD_M = 128, GRAD_N = 32 };

struct gradient_args {
    grouped_gradient p;
    bool fast_a, fast_b;
};

template <class T>
constexpr int GRADIENT_STAGE = stage_of<T, ACROSS, GRAD_M>::bytes + stage_of<T, ACROSS, GRAD_N>::bytes;

template <class T>
__device__ void load_rows(T *to, const gradient_args &args, int64_t row, int64_t end, int64_t m, int64_t n) {
    const grouped_gradient &p = args.p;
    source<T> a, b;
    a.p = (const T *)p.a + row * p.a_ld + m, a.ld = p.a_ld, a.low = 0, a.high = (int)min(p.m - m, (int64_t)GRAD_M);
    b.p = (const T *)p.b + row * p.b_ld + n, b.ld = p.b_ld, b.low = 0, b.high = (int)min(p.n - n, (int64_t)GRAD_N);
    a.k = b.k = (int)min(end - row, (int64_t)DEPTH<T>), a.fast = args.fast_a, b.fast = args.fast_b;
    load_stage<T, ACROSS, GRAD_M>(to, a);
    load_stage<T, ACROSS, GRAD_N>(to + stage_of<T, ACROSS, GRAD_M>::bytes / sizeof(T), b);
}

template <class T> __global__ void __launch_bounds__(THREADS, 2) gradient_kernel(gradient_args args) {
    typedef warps_of<GRAD_M, GRAD_N> W;
    constexpr int stage = GRADIENT_STAGE<T> / (int)sizeof(T);
    DYNAMIC_SHARED(T, stages);
    const grouped_gradient &p = args.p;
    int64_t e = p.rows.begin + blockIdx.y, across = (p.n + GRAD_N - 1) / GRAD_N;
    int64_t m = blockIdx.x / across * GRAD_M, n = blockIdx.x % across * GRAD_N;
    int64_t begin = p.rows.offsets[e * p.rows.offsets_ld], end = p.rows.offsets[(e + 1) * p.rows.offsets_ld];
    int steps = (int)((end - begin + DEPTH<T> - 1) / DEPTH<T>);
    if (steps == 0) return;
    float d[W::MI][W::NI][4] = {};
    int row = (int)threadIdx.x / WARP * W::MI * 16;
    for (int i = 0; i < STAGES - 1; i++) {
        if (i < steps) load_rows<T>(stages + i * stage, args, begin + i * DEPTH<T>, end, m, n);
        copy_group();
    }
    for (int i = 0; i < steps; i++) {
        copy_wait<STAGES - 2>();
        __syncthreads();
        int next = i + STAGES - 1;
        if (next < steps)
            load_rows<T>(stages + next % STAGES * stage, args, begin + (int64_t)next * DEPTH<T>, end, m, n);
        copy_group();
        const T *a = stages + i % STAGES * stage;
        stage_product<ACROSS, GRAD_M, ACROSS, GRAD_N, W::MI, W::NI>(
            d, a, a + stage_of<T, ACROSS, GRAD_M>::bytes / (int)sizeof(T), row, 0);
    }
    int lane = (int)(threadIdx.x % WARP), group = lane / 4, part = lane % 4;
    float *to = p.g + e * p.step;
    for (int i = 0; i < 2 * W::MI; i++) {
        UNROLL
        for (int j = 0; j < 2 * W::NI; j++) {
            int64_t r = m + row + 8 * i + group, c = n + j / 2 * 8 + 2 * part + j % 2;
            if (r < p.m && c < p.n) to[r * p.row_step + c * p.col_step] += d[i / 2][j / 2][i % 2 * 2 + j % 2];
        }
    }
}

template <class T> void gradient(const struct gpu *g, const grouped_gradient &p) {
    gradient_args args = {p, fast<T>(p.a, p.a_ld, p.m), fast<T>(p.b, p.b_ld, p.n)};
    size_t shared = STAGES * GRADIENT_STAGE<T>;
    dim3 grid(blocks_for(p.m, GRAD_M) * blocks_for(p.n, GRAD_N), (unsigned)(p.rows.end - p.rows.begin));
    cudaFuncSetAttribute(gradient_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    LAUNCH((gradient_kernel<T>), grid, THREADS, shared, g->stream, args);
}

// --- copies with zeros around them

template <class T> __global__ void copy_kernel(grouped_copy c, T *to) {
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x, col = i % c.to_cols, row = i / c.to_cols % c.to_rows;
    int64_t block = i / c.to_cols / c.to_rows;
    if (block >= c.blocks) return;
    bool there = row >= c.low && row < c.high && row < c.rows && col < c.cols;
    to[block * c.to_step + row * c.to_cols + col] =
        from_float<T>(there ? c.from[(block * c.rows + row) * c.from_ld + col] : 0);
}

} // namespace

extern "C" void gpu_grouped(const struct gpu *g, const struct grouped_product *p) {
    if (p->rows.rows == 0 || p->rows.begin == p->rows.end) return;
    DISPATCH(p->dtype, T, product<T>(g, *p));
}
extern "C" void gpu_grouped_gradient(const struct gpu *g, const struct grouped_gradient *p) {
    if (p->rows.rows == 0 || p->rows.begin == p->rows.end) return;
    DISPATCH(p->dtype, T, gradient<T>(g, *p));
}
extern "C" void gpu_grouped_copy(const struct gpu *g, const struct grouped_copy *c, void *to, enum dtype dtype) {
    int64_t elements = c->blocks * c->to_rows * c->to_cols;
    if (elements == 0) return;
    DISPATCH(dtype, T, LAUNCH((copy_kernel<T>), blocks_for(elements, THREADS), THREADS, 0, g->stream, *c, (T *)to));
}
