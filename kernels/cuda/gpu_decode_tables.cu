// See gpu_decode.cuh. Formats with tables beside their codes whose codes lie in rows: NF4, FP4, INT8, FP8, MXFP4. Bits
// are drawn in quant_tables.c. Factors and tables may lie at any address.
#include "kernels/cuda/gpu_decode.cuh"
#include "kernels/cuda/gpu_decode_tables.cuh"

namespace {

struct table_rows { // what all of them have
    enum { PACKS = 1, WAYS = 2, NUMBERS = 1 };
    const uint8_t *data, *scales;
    int64_t cols, first; // of the stored matrix; its row that is the view's first
    enum number rounded;
    __device__ __forceinline__ int64_t column(uint32_t unit, int) const { return (int64_t)unit * 8; }
    __device__ __forceinline__ void finish(float v[1][8]) const { round_eight(v[0], rounded); }
};

// --- NF4 and FP4 of bitsandbytes
template <bool NESTED> struct nf4_rows : table_rows {
    struct tables {
        float value[16], outer[NESTED ? 256 : 1];
    };
    const uint8_t *codes, *outer_codes, *outer_scales;
    power_of_two block, outer_block; // bitsandbytes has no other blocks
    float offset;

    __device__ void fill(tables &t) const {
        if (threadIdx.x < 16) t.value[threadIdx.x] = float_at<1>(codes + 4 * threadIdx.x);
        for (int i = (int)threadIdx.x; NESTED && i < 256; i += (int)blockDim.x)
            t.outer[i] = float_at<1>(outer_codes + 4 * i);
    }
    bool aligned() const {
        const uint8_t *floats = NESTED ? outer_scales : scales;
        return (uintptr_t)data % 4 == 0 && cols % 8 == 0 && (uintptr_t)floats % 4 == 0;
    }
    template <int A> __device__ __forceinline__ float scale(const tables &t, int64_t e) const {
        int64_t b = block(e);
        if (!NESTED) return float_at<A>(scales + 4 * b);
        return t.outer[byte_at(scales + b)] * float_at<A>(outer_scales + 4 * outer_block(b)) + offset;
    }
    __device__ __forceinline__ float element(const tables &t, int64_t e) const {
        uint32_t byte = byte_at(data + e / 2);
        return round_to(t.value[e % 2 ? byte & 15 : byte >> 4] * scale<1>(t, e), rounded);
    }
    __device__ __forceinline__ float number(const tables &t, int64_t row, int64_t col) const {
        return element(t, (first + row) * cols + col);
    }
    template <bool ALIGNED>
    __device__ __forceinline__ void decode(const tables &t, int64_t row, uint32_t unit, float v[1][8]) const {
        int64_t e = (first + row) * cols + (int64_t)unit * 8;
        if (!ALIGNED && e % 8) { // may lie in two blocks, and begin in the middle of a byte
            UNROLL for (int j = 0; j < 8; j++) v[0][j] = element(t, e + j);
            return;
        }
        uint32_t x = word_at < ALIGNED ? 4 : 1 > (data + e / 2);
        float d = scale < ALIGNED ? 4 : 1 > (t, e);
        UNROLL for (int j = 0; j < 8; j++) v[0][j] = t.value[x >> (8 * (j / 2) + 4 - j % 2 * 4) & 15] * d;
    }
};

// --- LLM.int8 of bitsandbytes
struct int8_rows : table_rows {
    typedef no_tables tables;
    static constexpr float INVERSE = (float)(1.0 / 127.0);
    bool aligned() const { return (uintptr_t)data % 8 == 0 && cols % 8 == 0 && (uintptr_t)scales % 4 == 0; }
    __device__ __forceinline__ float number(const tables &, int64_t row, int64_t col) const {
        float q = code_value(byte_at(data + (first + row) * cols + col) ^ 0x80, 128);
        return round_to(q * float_at<1>(scales + 4 * (first + row)) * INVERSE, rounded);
    }
    template <bool ALIGNED>
    __device__ __forceinline__ void decode(const tables &, int64_t row, uint32_t unit, float v[1][8]) const {
        words<8> x = load < 8, ALIGNED ? 8 : 1 > (data + (first + row) * cols + (int64_t)unit * 8);
        put_signed(v[0], x, float_at < ALIGNED ? 4 : 1 > (scales + 4 * (first + row)));
        UNROLL for (int j = 0; j < 8; j++) v[0][j] *= INVERSE;
    }
};

// --- FP8: the bits of a byte in an f32 make a number that is a power of two too small, below the normal range as well.
template <bool E5M2> struct fp8_rows : table_rows {
    typedef no_tables tables;
    block_divider block_row, block_col;
    int64_t scale_ld;
    enum number scale_type;
    bool packs; // eight neighbours have one factor
    int64_t rows;

    bool aligned() const {
        return (uintptr_t)data % 8 == 0 && cols % 8 == 0 && (uintptr_t)scales % 4 == 0 && packs &&
               !((rows | cols) >> 31);
    }
    static __device__ __forceinline__ float value(uint32_t word, int j) { // of byte j
        int32_t top = (int32_t)(word << (24 - 8 * j));
        float x;
        if constexpr (E5M2) {
            x = __uint_as_float((uint32_t)(top >> 3) & 0x8FE00000u) * 0x1p112f;
            if ((top & 0x7C000000) == 0x7C000000) x = __uint_as_float(__float_as_uint(x) | 0x7F800000u);
        } else {
            x = __uint_as_float((uint32_t)(top >> 4) & 0x87F00000u) * 0x1p120f;
            if ((top & 0x7F000000) == 0x7F000000) x = __uint_as_float(0x7FC00000u);
        }
        return x;
    }
    template <int A> __device__ __forceinline__ float scale(int64_t row, int64_t col) const {
        if (!scales) return 1;
        int64_t at = A >= 4 ? block_row.small(row) * scale_ld + block_col.small(col)
                            : block_row(row) * scale_ld + block_col(col);
        return number_at<A>(scales, scale_type, at);
    }
    __device__ __forceinline__ float number(const tables &, int64_t row, int64_t col) const {
        row += first;
        return round_to(value(byte_at(data + row * cols + col), 0) * scale<1>(row, col), rounded);
    }
    template <bool ALIGNED>
    __device__ __forceinline__ void decode(const tables &, int64_t row, uint32_t unit, float v[1][8]) const {
        row += first;
        words<8> x = load < 8, ALIGNED ? 8 : 1 > (data + row * cols + (int64_t)unit * 8);
        float d = scale < ALIGNED ? 4 : 1 > (row, (int64_t)unit * 8);
        UNROLL for (int j = 0; j < 8; j++) {
            if (!ALIGNED && !packs) d = scale<1>(row, (int64_t)unit * 8 + j);
            v[0][j] = value(x.w[j / 4], j % 4) * d;
        }
    }
};

// --- MXFP4 in consecutive pairs
struct mxfp4_rows : table_rows {
    struct tables {
        float value[16];
    };
    int64_t row_step, scale_ld;

    bool aligned() const { return (uintptr_t)data % 4 == 0; } // rows are whole numbers of 16 bytes
    __device__ void fill(tables &t) const {                   // s e e m: 0 0.5 1 1.5 2 3 4 6, as the bits of an f32
        uint32_t code = threadIdx.x;
        if (code < 16) t.value[code] = __uint_as_float((code & 7) << 22 | (code >> 3) << 31) * 0x1p126f;
    }
    __device__ __forceinline__ float scale(int64_t row, int64_t col) const {
        return number_at<1>(scales + row * scale_ld, NUMBER_E8M0, col / 32);
    }
    __device__ __forceinline__ const uint8_t *codes(int64_t row) const { return data + row * row_step * (cols / 2); }
    __device__ __forceinline__ float number(const tables &t, int64_t row, int64_t col) const {
        row += first;
        uint32_t byte = byte_at(codes(row) + col / 2);
        return round_to(t.value[col % 2 ? byte >> 4 : byte & 15] * scale(row, col), rounded);
    }
    template <bool ALIGNED>
    __device__ __forceinline__ void decode(const tables &t, int64_t row, uint32_t unit, float v[1][8]) const {
        row += first;
        uint32_t x = word_at < ALIGNED ? 4 : 1 > (codes(row) + (int64_t)unit * 4);
        float d = scale(row, (int64_t)unit * 8);
        UNROLL for (int j = 0; j < 8; j++) v[0][j] = t.value[x >> 4 * j & 15] * d;
    }
};

template <class F> F rows_of(const decode_call &c) {
    const struct weight_tables *t = c.w->tables;
    F f = {};
    f.data = c.w->data, f.scales = t->table[TABLE_SCALES].data;
    f.cols = t->cols, f.first = c.w->first_row;
    f.rounded = rounding_of(c);
    return f;
}

template <bool NESTED> void decode_nf4(const struct gpu *g, const decode_call &c) {
    const struct weight_tables *t = c.w->tables;
    auto f = rows_of<nf4_rows<NESTED>>(c);
    f.codes = t->table[TABLE_CODES].data;
    f.outer_codes = t->table[TABLE_OUTER_CODES].data, f.outer_scales = t->table[TABLE_OUTER_SCALES].data;
    f.block = power_of_two_of(t->block_cols);
    f.outer_block = power_of_two_of(NESTED ? t->scale_block : 1);
    f.offset = t->offset;
    launch_rows(g, c, f);
}

template <bool E5M2> void decode_fp8(const struct gpu *g, const decode_call &c) {
    const struct weight_tables *t = c.w->tables;
    fp8_rows<E5M2> f = rows_of<fp8_rows<E5M2>>(c);
    int64_t rows = t->block_rows ? t->block_rows : 1, cols = t->block_cols ? t->block_cols : 1;
    f.block_row = block_divider_of(rows, t->rows - 1), f.block_col = block_divider_of(cols, t->cols - 1);
    f.scale_ld = t->scale_ld, f.scale_type = t->scale_type, f.rows = t->rows;
    f.packs = !f.scales || cols % 8 == 0 || cols >= t->cols;
    launch_rows(g, c, f);
}
} // namespace

void decode_tables(const struct gpu *g, const decode_call &call) {
    const struct weight_tables *t = call.w->tables;
    switch (call.w->format->id) {
    case QUANT_NF4:
    case QUANT_FP4:
        if (t->table[TABLE_OUTER_CODES].data)
            decode_nf4<true>(g, call);
        else
            decode_nf4<false>(g, call);
        break;
    case QUANT_INT8: launch_rows(g, call, rows_of<int8_rows>(call)); break;
    case QUANT_FP8_E4M3: decode_fp8<false>(g, call); break;
    case QUANT_FP8_E5M2: decode_fp8<true>(g, call); break;
    case QUANT_MXFP4_PAIRS: {
        mxfp4_rows f = rows_of<mxfp4_rows>(call);
        f.row_step = t->row_step, f.scale_ld = t->scale_ld;
        launch_rows(g, call, f);
        break;
    }
    default: assert(!"a format of another family");
    }
}
