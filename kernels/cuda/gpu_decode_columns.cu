// See gpu_decode.cuh. GPTQ and AWQ, whose matrices lie as (columns, rows): words of neighbouring rows are neighbours in
// memory, the output wants neighbouring columns. Bits are drawn in quant_tables.c.
//
// GPTQ packs along the columns: a word holds 4 to 16 columns of one row. A thread takes 8 columns of 4 rows: words of
// 16 bytes. A warp is 8 such packs across (64 columns, 128 bytes of bf16 to a row) and 4 down (16 rows, 64 bytes of
// every line of words); a block 2 by 4 warps. AWQ packs along the rows: a word holds 8 rows of one column. A thread
// takes 8 words, of 8 neighbouring columns, and turns them in registers; a warp is 4 packs across and 8 words (32
// bytes, 64 rows) down, a block 4 by 2 warps. Where there are few rows, blocks have fewer warps down. Every sector is
// read by one warp, and written by one. Scales and zero points are read for all rows of a thread at once.
#include "kernels/cuda/gpu_decode_tables.cuh"

namespace {

struct column_tables { // what both have
    const uint8_t *data, *scales, *zeros, *groups;
    int64_t rows, cols, first; // of the stored matrix; its row that is the view's first
    block_divider group;
    enum number scale_type, rounded;
    bool less_one;

    bool aligned() const {
        return ((uintptr_t)data | (uintptr_t)scales) % 16 == 0 && ((uintptr_t)zeros | (uintptr_t)groups) % 4 == 0 &&
               rows % 4 == 0 && !(cols >> 31);
    }
    template <int A> __device__ __forceinline__ int64_t group_of(int64_t col) const {
        return groups ? (int64_t)word_at<A>(groups + 4 * col) : group(col);
    }
    __device__ __forceinline__ float scale(int64_t group, int64_t row) const {
        return number_at<1>(scales, scale_type, group * rows + row);
    }
    // Of N rows, 4 or 8, of which `there` are there.
    template <int N, bool ALIGNED>
    __device__ __forceinline__ void scales_of(float out[N], int64_t group, int64_t row, int64_t there) const {
        int64_t at = group * rows + row;
        if (scale_type != NUMBER_F32 && there >= N) {
            words<2 *N> x = load < 2 * N, ALIGNED ? 2 * N : 1 > (scales + 2 * at);
            UNROLL for (int i = 0; i < N; i++) {
                uint32_t half = x.w[i / 2] >> 16 * (i % 2) & 0xFFFF;
                out[i] = scale_type == NUMBER_F16 ? half_value(half) : __uint_as_float(half << 16);
            }
        } else {
            UNROLL for (int i = 0; i < N; i++) out[i] = i < there ? number_at<1>(scales, scale_type, at + i) : 0;
        }
    }
};

// --- GPTQ
template <int BITS> struct gptq : column_tables {
    static constexpr uint32_t MASK = (1u << BITS) - 1;

    // Numbers i .. i + count - 1 of a stream whose word j is words[j * step] + plus, as far as 32 bits reach.
    template <int A>
    static __device__ __forceinline__ uint32_t stream(const uint8_t *words, int64_t step, int64_t i, int count,
                                                      uint32_t plus) {
        int64_t word = i * BITS / 32;
        int shift = (int)(i * BITS % 32);
        uint32_t x = (word_at<A>(words + 4 * word * step) + plus) >> shift;
        if (shift + count * BITS > 32) x |= word_at<A>(words + 4 * (word + 1) * step) << (32 - shift);
        return x;
    }
    // Zero points of `count` rows from `row` on, BITS bits each. Version 1 stores them less one, carries included; with
    // 3 bits, each by itself.
    template <int A> __device__ __forceinline__ uint32_t zero_points(int64_t group, int64_t row, int count) const {
        const uint8_t *words = zeros + group * (rows * BITS / 32) * 4;
        constexpr uint32_t ONES = BITS == 2 ? 0x55555555u : BITS == 4 ? 0x11111111u : 0x01010101u;
        if (BITS != 3) return stream<A>(words, 1, row, count, less_one ? ONES : 0);
        uint32_t x = stream<A>(words, 1, row, count, 0), y = 0;
        if (!less_one) return x;
        for (int i = 0; i < count; i++) y |= (((x >> 3 * i) + 1) & 7) << 3 * i;
        return y;
    }
    static __device__ __forceinline__ float code(uint32_t numbers, int i) { // plus 2^23
        return __uint_as_float(0x4B000000u | (numbers >> BITS * i & MASK));
    }
    __device__ __forceinline__ float element(int64_t row, int64_t col) const {
        int64_t g = group_of<1>(col);
        uint32_t q = stream<1>(data + 4 * row, rows, col, 1, 0);
        return round_to(scale(g, row) * (code(q, 0) - code(zero_points<1>(g, row, 1), 0)), rounded);
    }
};

// Scales and zero points of four rows in one group.
struct four_factors {
    float scale[4], zero[4]; // zero: plus 2^23
};
template <int BITS, bool WIDE>
__device__ __forceinline__ four_factors factors_of(const gptq<BITS> &f, int64_t group, int64_t row) {
    four_factors x;
    uint32_t zeros = f.template zero_points < WIDE ? 4 : 1 > (group, row, 4);
    f.template scales_of<4, WIDE>(x.scale, group, row, WIDE ? 4 : f.rows - row);
    UNROLL for (int i = 0; i < 4; i++) x.zero[i] = gptq<BITS>::code(zeros, i);
    return x;
}

// Codes of 8 columns of 4 rows: a pair of words for a row, of which 8 bits need the second one.
struct four_packs {
    uint32_t low[4], high[4];
};
template <int BITS, bool WIDE>
__device__ __forceinline__ void line_of_words(const gptq<BITS> &f, int64_t line, int64_t row, uint32_t out[4]) {
    const uint8_t *p = f.data + 4 * (line * f.rows + row);
    if (WIDE || row + 4 <= f.rows) {
        words<16> x = load < 16, WIDE ? 16 : 1 > (p);
        UNROLL for (int i = 0; i < 4; i++) out[i] = x.w[i];
    } else {
        UNROLL for (int i = 0; i < 4; i++) out[i] = row + i < f.rows ? word_at<1>(p + 4 * i) : 0;
    }
}
template <int BITS, bool WIDE>
__device__ __forceinline__ four_packs codes_of(const gptq<BITS> &f, int64_t pack, int64_t row) {
    four_packs x = {};
    int64_t line = pack * BITS / 4;
    int shift = BITS % 4 ? (int)(pack * BITS % 4) * 8 : 0;
    line_of_words<BITS, WIDE>(f, line, row, x.low);
    if (shift + 8 * BITS > 32) line_of_words<BITS, WIDE>(f, line + 1, row, x.high);
    UNROLL for (int i = 0; i < 4; i++) {
        if (BITS < 8) x.low[i] = (uint32_t)(((uint64_t)x.high[i] << 32 | x.low[i]) >> shift);
    }
    return x;
}

struct column_args {
    void *out;
    int64_t ld, n, cols; // of the output
    uint32_t tiles;      // across
    bool wide;
};

// MIXED: columns of a pack are of different groups, and everything is aligned.
enum kind { ALIGNED, ANYWHERE, MIXED };

template <int BITS, enum kind KIND, class T>
__global__ __launch_bounds__(THREADS) void gptq_kernel(column_args a, gptq<BITS> f) {
    constexpr bool WIDE = KIND != ANYWHERE; // then rows come in fours, too
    int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP;
    int64_t pack = (int64_t)(blockIdx.x % a.tiles) * 16 + warp % 2 * 8 + lane % 8;
    int64_t row = f.first / 4 * 4 + (int64_t)(blockIdx.x / a.tiles) * (blockDim.x / 4) + warp / 2 * 16 + lane / 8 * 4;
    if (pack * 8 >= a.cols || row >= f.first + a.n) return;
    four_packs q = codes_of<BITS, WIDE>(f, pack, row);
    float v[4][8];
    four_factors x;
    if (KIND != MIXED) x = factors_of<BITS, WIDE>(f, WIDE ? f.group.small(pack * 8) : f.group(pack * 8), row);
    UNROLL for (int j = 0; j < 8; j++) {
        if (KIND == MIXED) x = factors_of<BITS, true>(f, f.template group_of<4>(pack * 8 + j), row);
        UNROLL for (int i = 0; i < 4; i++) {
            float code = BITS == 8 && j >= 4 ? f.code(q.high[i], j % 4) : f.code(q.low[i], j);
            v[i][j] = x.scale[i] * (code - x.zero[i]);
        }
    }
    T *out = (T *)a.out + (row - f.first) * a.ld + pack * 8;
    UNROLL for (int i = 0; i < 4; i++) {
        round_eight(v[i], f.rounded);
        if (row + i >= f.first && row + i < f.first + a.n) store_pack(out + i * a.ld, v[i], a.wide);
    }
}

// --- AWQ
struct awq : column_tables {
    // Where the word of eight rows has the i-th: 0 4 1 5 2 6 3 7, times four bits.
    static __device__ __forceinline__ int shift(int i) { return 4 * (i / 2 + i % 2 * 4); }
    static __device__ __forceinline__ float code(uint32_t word, int i) { // plus 2^23
        return __uint_as_float(0x4B000000u | (word >> shift(i) & 15));
    }
    __device__ __forceinline__ const uint8_t *word(const uint8_t *lines, int64_t line, int64_t w) const {
        return lines + 4 * (line * (rows / 8) + w);
    }
    __device__ __forceinline__ float element(int64_t row, int64_t col) const {
        int64_t g = group_of<1>(col);
        int i = (int)(row % 8);
        float zero = code(word_at<1>(word(zeros, g, row / 8)), i);
        return round_to((code(word_at<1>(word(data, col, row / 8)), i) - zero) * scale(g, row), rounded);
    }
};

template <bool WIDE, class T> __global__ __launch_bounds__(THREADS) void awq_kernel(column_args a, awq f) {
    int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP;
    int64_t col = (int64_t)(blockIdx.x % a.tiles) * 128 + warp % 4 * 32 + lane / 8 * 8;
    int64_t w = f.first / 8 + (int64_t)(blockIdx.x / a.tiles) * (blockDim.x / 16) + warp / 4 * 8 + lane % 8;
    if (col >= a.cols || w * 8 >= f.first + a.n) return;
    uint32_t x[8];
    UNROLL for (int j = 0; j < 8; j++) x[j] = word_at < WIDE ? 4 : 1 > (f.word(f.data, col + j, w));
    int64_t group = WIDE ? f.group.small(col) : f.group(col);
    uint32_t zeros = word_at < WIDE ? 4 : 1 > (f.word(f.zeros, group, w));
    float scales[8];
    f.template scales_of<8, WIDE>(scales, group, 8 * w, 8);
    T *out = (T *)a.out + (8 * w - f.first) * a.ld + col;
    UNROLL for (int i = 0; i < 8; i++) {
        float v[8], zero = f.code(zeros, i);
        UNROLL for (int j = 0; j < 8; j++) v[j] = (f.code(x[j], i) - zero) * scales[i];
        round_eight(v, f.rounded);
        if (8 * w + i >= f.first && 8 * w + i < f.first + a.n) store_pack(out + i * a.ld, v, a.wide);
    }
}

// --- any shape, any group size, rows in any order: element by element
template <class F> struct element_rows {
    enum { PACKS = 1, WAYS = 1, NUMBERS = 1 };
    typedef no_tables tables;
    F f;
    __device__ __forceinline__ int64_t column(uint32_t unit, int) const { return (int64_t)unit * 8; }
    __device__ __forceinline__ float number(const tables &, int64_t row, int64_t col) const {
        return f.element(f.first + row, col);
    }
    bool aligned() const { return false; }
    __device__ __forceinline__ void finish(float[1][8]) const {}
    template <bool>
    __device__ __forceinline__ void decode(const tables &t, int64_t row, uint32_t unit, float v[1][8]) const {
        UNROLL for (int j = 0; j < 8; j++) v[0][j] = number(t, row, (int64_t)unit * 8 + j);
    }
};

template <class F> F columns_of(const decode_call &c) {
    const struct weight_tables *t = c.w->tables;
    F f = {};
    f.data = c.w->data;
    f.scales = t->table[TABLE_SCALES].data, f.zeros = t->table[TABLE_ZEROS].data;
    f.groups = t->table[TABLE_GROUPS].data;
    f.rows = t->rows, f.cols = t->cols, f.first = c.w->first_row;
    f.group = block_divider_of(t->block_cols, t->cols - 1);
    f.scale_type = t->scale_type, f.rounded = rounding_of(c);
    f.less_one = t->zeros_less_one;
    return f;
}
bool groups_cut_packs(const decode_call &c) {
    int64_t size = c.w->tables->block_cols;
    return c.w->tables->table[TABLE_GROUPS].data || (size % 8 && size < c.w->cols);
}

// Tiles of 128 columns and `down` stored rows, of which the first begins at a multiple of `step`; half or a quarter of
// a block where there are no more rows than that.
struct column_grid {
    unsigned blocks, threads;
};
template <class F>
column_args args_of(const decode_call &c, F &f, int64_t down, int64_t step, unsigned fewest, column_grid *grid) {
    column_args a = {c.out, c.ld, c.rows, c.w->cols, blocks_for(c.w->cols, 128), stores_are_wide(c)};
    f.first += c.row;
    int64_t rows = f.first % step + c.rows;
    grid->threads = THREADS;
    while (grid->threads > fewest && rows <= down / 2) grid->threads /= 2, down /= 2;
    grid->blocks = a.tiles * blocks_for(rows, down);
    return a;
}

template <int BITS> void decode_gptq(const struct gpu *g, const decode_call &c) {
    auto f = columns_of<gptq<BITS>>(c);
    if (c.ids || c.w->cols % 8 || (groups_cut_packs(c) && !f.aligned())) {
        launch_rows(g, c, element_rows<gptq<BITS>>{f});
        return;
    }
    column_grid grid;
    column_args a = args_of(c, f, 64, 4, 64, &grid);
    if (groups_cut_packs(c))
        DISPATCH(c.dtype, T, LAUNCH((gptq_kernel<BITS, MIXED, T>), grid.blocks, grid.threads, 0, g->stream, a, f));
    else if (f.aligned())
        DISPATCH(c.dtype, T, LAUNCH((gptq_kernel<BITS, ALIGNED, T>), grid.blocks, grid.threads, 0, g->stream, a, f));
    else
        DISPATCH(c.dtype, T, LAUNCH((gptq_kernel<BITS, ANYWHERE, T>), grid.blocks, grid.threads, 0, g->stream, a, f));
}

void decode_awq(const struct gpu *g, const decode_call &c) {
    awq f = columns_of<awq>(c);
    if (c.ids || c.w->cols % 8 || groups_cut_packs(c)) {
        launch_rows(g, c, element_rows<awq>{f});
        return;
    }
    column_grid grid;
    column_args a = args_of(c, f, 128, 8, 128, &grid);
    if (f.aligned())
        DISPATCH(c.dtype, T, LAUNCH((awq_kernel<true, T>), grid.blocks, grid.threads, 0, g->stream, a, f));
    else
        DISPATCH(c.dtype, T, LAUNCH((awq_kernel<false, T>), grid.blocks, grid.threads, 0, g->stream, a, f));
}
} // namespace

void decode_columns(const struct gpu *g, const decode_call &call) {
    switch (call.w->format->id) {
    case QUANT_GPTQ_2: decode_gptq<2>(g, call); break;
    case QUANT_GPTQ_3: decode_gptq<3>(g, call); break;
    case QUANT_GPTQ_4: decode_gptq<4>(g, call); break;
    case QUANT_GPTQ_8: decode_gptq<8>(g, call); break;
    case QUANT_AWQ: decode_awq(g, call); break;
    default: assert(!"a format of another family");
    }
}
