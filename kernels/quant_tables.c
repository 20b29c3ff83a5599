// Formats with tables beside their codes: see quant_tables.h. Decoders are plain loops over elements; nothing here is
// fast. Every value is computed in float32 as its own library does it and then rounded to the number the file names.
#include "kernels/quant_tables.h"

#include <assert.h>
#include <math.h>
#include <string.h>

// --- numbers at any address

static uint32_t u32_at(const uint8_t *data, int64_t i) {
    uint32_t x;
    memcpy(&x, data + 4 * i, 4);
    return x;
}

static float f32_at(const uint8_t *data, int64_t i) {
    float x;
    memcpy(&x, data + 4 * i, 4);
    return x;
}

static float e8m0(uint8_t byte) {
    return byte == 255 ? NAN : ldexpf(1.0f, (int)byte - 127);
}

static float number_at(const uint8_t *data, enum number type, int64_t i) {
    uint16_t x;
    if (type == NUMBER_F32) return f32_at(data, i);
    if (type == NUMBER_E8M0) return e8m0(data[i]);
    memcpy(&x, data + 2 * i, 2);
    return type == NUMBER_F16 ? f16_to_float(x) : bf16_to_float(x);
}

static float round_to(float x, enum number type) {
    if (type == NUMBER_F16) return f16_to_float(f16_from_float(x));
    if (type == NUMBER_BF16) return bf16_to_float(bf16_from_float(x));
    return x;
}

static const uint8_t *table(const struct weight *w, enum weight_table which) {
    return w->tables->table[which].data;
}

// --- NF4 and FP4 of bitsandbytes. Two neighbours of the flat matrix in a byte, the first in the high nibble:
//
//     bit     7          4 3          0
//     byte j | element 2j | 2j + 1     |        element e = row * cols + col; an odd last nibble is padding
//
//   y = quant_map[code] * absmax[e / blocksize]; the last block of the matrix may be partial. With double quantisation
//   absmax[b] = nested_quant_map[byte b] * nested_absmax[b / nested_blocksize] + nested_offset.

static float nf4_scale(const struct weight *w, int64_t block) {
    const uint8_t *scales = table(w, TABLE_SCALES);
    if (!table(w, TABLE_OUTER_CODES)) return f32_at(scales, block);
    float x = f32_at(table(w, TABLE_OUTER_CODES), scales[block]);
    return x * f32_at(table(w, TABLE_OUTER_SCALES), block / w->tables->scale_block) + w->tables->offset;
}

void nf4_decode_at(const struct weight *w, int64_t stored_row, int64_t col, int64_t count, float *out) {
    const struct weight_tables *t = w->tables;
    int64_t e = stored_row * t->cols + col, end = e + count;
    while (e < end) {
        int64_t block_end = (e / t->block_cols + 1) * t->block_cols;
        float scale = nf4_scale(w, e / t->block_cols);
        for (; e < end && e < block_end; e++) {
            int code = e % 2 ? w->data[e / 2] & 15 : w->data[e / 2] >> 4;
            *out++ = round_to(f32_at(table(w, TABLE_CODES), code) * scale, t->rounded);
        }
    }
}

// --- LLM.int8 of bitsandbytes: a signed byte per element, a float32 per row.
//   y = q * SCB[row] / 127, as its int8_vectorwise_dequant: (q * SCB) * float32(1 / 127), two roundings.

void int8_decode_at(const struct weight *w, int64_t stored_row, int64_t col, int64_t count, float *out) {
    const struct weight_tables *t = w->tables;
    const float scale = f32_at(table(w, TABLE_SCALES), stored_row), inverse = (float)(1.0 / 127.0);
    const uint8_t *codes = w->data + stored_row * t->cols + col;
    for (int64_t i = 0; i < count; i++) out[i] = round_to((float)(int8_t)codes[i] * scale * inverse, t->rounded);
}

// --- GPTQ. The matrix lies as (cols, rows), in words of 32 bits that are packed along the columns; zero points and
// scales lie as (groups, rows), zero points packed along the rows. Both lowest bits first:
//
//     word           31  28 27  24 23  20 19  16 15  12 11   8 7    4 3    0
//     qweight(w, r) | 8w+7 | 8w+6 | 8w+5 | 8w+4 | 8w+3 | 8w+2 | 8w+1 | 8w   |   columns of row r   (4 bits)
//     qzeros (g, w) | 8w+7 | ...                                 ... | 8w   |   rows of group g
//
//   With 3 bits, 32 numbers fill three words that are read as one: number 10 has two bits in the first word and one in
//   the second, number 21 one in the second and two in the third:
//
//     word 3j     | 10: bits 1-0 | 9 | 8 | ... | 0 |
//     word 3j + 1 | 21: bit 0 | 20 | ... | 11 | 10: bit 2 |
//     word 3j + 2 | 31 | ... | 22 | 21: bits 2-1 |
//
//   y = scale(g, r) * (q - zero(g, r)), g = g_idx[col], without g_idx col / group_size.
//
//   Zero points of version 1 are stored less one. Its writers subtract from whole words, so that a zero point of 0
//   borrows from its neighbour; adding to the word with carries is the exact inverse. With 3 bits, which straddle
//   words, writers and readers take each number by itself, modulo 8.

static int gptq_bits(const struct weight *w) {
    switch (w->format->id) {
    case QUANT_GPTQ_2: return 2;
    case QUANT_GPTQ_3: return 3;
    case QUANT_GPTQ_4: return 4;
    default: return 8;
    }
}

// Number `i` of a stream of `bits` bits each, whose word j is words[j * step] + plus.
static int stream_number(const uint8_t *words, int64_t step, int64_t i, int bits, uint32_t plus) {
    int64_t word = i * bits / 32;
    int shift = (int)(i * bits % 32), in_first = 32 - shift;
    uint32_t x = (u32_at(words, word * step) + plus) >> shift;
    if (in_first < bits) x |= u32_at(words, (word + 1) * step) << in_first;
    return (int)(x & ((1u << bits) - 1u));
}

static int gptq_zero(const struct weight *w, int64_t group, int64_t row) {
    const struct weight_tables *t = w->tables;
    int bits = gptq_bits(w);
    const uint8_t *words = table(w, TABLE_ZEROS) + group * (t->rows * bits / 32) * 4;
    if (!t->zeros_less_one) return stream_number(words, 1, row, bits, 0);
    if (bits == 3) return (stream_number(words, 1, row, bits, 0) + 1) & 7;
    uint32_t ones = bits == 2 ? 0x55555555u : bits == 4 ? 0x11111111u : 0x01010101u;
    return stream_number(words, 1, row, bits, ones);
}

void gptq_decode_at(const struct weight *w, int64_t stored_row, int64_t col, int64_t count, float *out) {
    const struct weight_tables *t = w->tables;
    const uint8_t *groups = table(w, TABLE_GROUPS), *column = w->data + 4 * stored_row;
    for (int64_t c = col; c < col + count; c++) {
        int64_t group = groups ? (int64_t)u32_at(groups, c) : c / t->block_cols;
        int q = stream_number(column, t->rows, c, gptq_bits(w), 0), zero = gptq_zero(w, group, stored_row);
        float scale = number_at(table(w, TABLE_SCALES), t->scale_type, group * t->rows + stored_row);
        *out++ = round_to(scale * (float)(q - zero), t->rounded);
    }
}

// --- AWQ, "gemm". The matrix lies as (cols, rows), zero points and scales as (groups, rows); codes and zero points are
// packed along the rows in an order of their own:
//
//     word            31  28 27  24 23  20 19  16 15  12 11   8 7    4 3    0
//     qweight(c, w)  | 8w+7 | 8w+5 | 8w+3 | 8w+1 | 8w+6 | 8w+4 | 8w+2 | 8w   |   rows of column c
//
//   y = (q - zero(g, r)) * scale(g, r), g = col / group_size

static int awq_number(const uint8_t *words, int64_t row) {
    static const int nibble[8] = {0, 4, 1, 5, 2, 6, 3, 7};
    return (int)(u32_at(words, row / 8) >> (4 * nibble[row % 8]) & 15);
}

void awq_decode_at(const struct weight *w, int64_t stored_row, int64_t col, int64_t count, float *out) {
    const struct weight_tables *t = w->tables;
    int64_t line = t->rows / 8 * 4;
    for (int64_t c = col; c < col + count; c++) {
        int64_t group = c / t->block_cols;
        int q = awq_number(w->data + c * line, stored_row);
        int zero = awq_number(table(w, TABLE_ZEROS) + group * line, stored_row);
        float scale = number_at(table(w, TABLE_SCALES), t->scale_type, group * t->rows + stored_row);
        *out++ = round_to((float)(q - zero) * scale, t->rounded);
    }
}

// --- FP8: a byte per element, times the factor of its block.
//
//     bit    7   6       3 2     0             bit    7   6       2 1   0
//   e4m3fn | s | exponent | m     |    e5m2          | s | exponent  | m   |
//
//   e4m3fn: (1 + m/8) 2^(e-7), e = 0: m 2^-9; 0x7F and 0xFF are NaN, there is no infinity.
//   e5m2:   (1 + m/4) 2^(e-15), e = 0: m 2^-16; e = 31: infinity (m = 0) or NaN.

static float e4m3fn(uint8_t x) {
    int e = x >> 3 & 15, m = x & 7;
    float v = e == 15 && m == 7 ? NAN : e == 0 ? ldexpf((float)m, -9) : ldexpf((float)(8 + m), e - 10);
    return x & 0x80 ? -v : v;
}

static float e5m2(uint8_t x) {
    int e = x >> 2 & 31, m = x & 3;
    float v = e == 31 ? (m ? NAN : INFINITY) : e == 0 ? ldexpf((float)m, -16) : ldexpf((float)(4 + m), e - 17);
    return x & 0x80 ? -v : v;
}

void fp8_decode_at(const struct weight *w, int64_t stored_row, int64_t col, int64_t count, float *out) {
    const struct weight_tables *t = w->tables;
    const uint8_t *scales = table(w, TABLE_SCALES), *codes = w->data + stored_row * t->cols;
    for (int64_t c = col; c < col + count; c++) {
        float v = w->format->id == QUANT_FP8_E5M2 ? e5m2(codes[c]) : e4m3fn(codes[c]);
        int64_t block = stored_row / t->block_rows * t->scale_ld + c / t->block_cols;
        if (scales) v *= number_at(scales, t->scale_type, block);
        *out++ = round_to(v, t->rounded);
    }
}

// --- MXFP4, consecutive pairs: 32 elements of a row in 16 bytes, an e8m0 scale for them elsewhere.
//
//     bit     7                 4 3                 0
//     byte j | element 2j + 1    | element 2j        |      of a row; an element is s e e m:
//                                                           0 0.5 1 1.5 2 3 4 6, and the same negated from 8 on
//   y = value * 2^(scale - 127)

void mxfp4_decode_at(const struct weight *w, int64_t stored_row, int64_t col, int64_t count, float *out) {
    static const float value[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                    -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};
    const struct weight_tables *t = w->tables;
    const uint8_t *codes = w->data + stored_row * t->row_step * (t->cols / 2);
    const uint8_t *scales = table(w, TABLE_SCALES) + stored_row * t->scale_ld;
    for (int64_t c = col; c < col + count; c++) {
        int code = c % 2 ? codes[c / 2] >> 4 : codes[c / 2] & 15;
        *out++ = round_to(value[code] * e8m0(scales[c / 32]), t->rounded);
    }
}

// --- checks. Everything comes from files: products are formed only after a division has shown that they fit.

static int bad(struct error *err, const char *name, const char *what) {
    return error_set(err, STATUS_DATA, "%s: %s", name, what);
}

// After this, 8 * rows * cols is a valid int64_t.
static int check_shape(const char *name, int64_t rows, int64_t cols, struct error *err) {
    if (rows > 0 && cols > 0 && rows <= INT64_MAX / 8 / cols) return 0;
    return error_set(err, STATUS_DATA, "%s: a quantised matrix of %lld x %lld", name, (long long)rows, (long long)cols);
}

// `count` numbers of `unit` bytes, exactly.
static int check_bytes(const char *name, const char *array, struct table_bytes got, int64_t count, int64_t unit,
                       struct error *err) {
    if (!got.data) return error_set(err, STATUS_DATA, "%s: %s is missing", name, array);
    if (count <= INT64_MAX / unit && (uint64_t)(count * unit) == got.bytes) return 0;
    return error_set(err, STATUS_DATA, "%s: %s has %zu bytes, expected %lld numbers of %lld bytes", name, array,
                     got.bytes, (long long)count, (long long)unit);
}

static int check_finite(const char *name, const char *array, struct table_bytes numbers, struct error *err) {
    for (size_t i = 0; i < numbers.bytes / 4; i++) {
        if (isfinite(f32_at(numbers.data, (int64_t)i))) continue;
        return error_set(err, STATUS_DATA, "%s: number %zu of %s is not finite", name, i, array);
    }
    return 0;
}

static int64_t number_bytes(enum number type) {
    return type == NUMBER_F32 ? 4 : type == NUMBER_E8M0 ? 1 : 2;
}

static int64_t divide_up(int64_t a, int64_t b) {
    return a / b + (a % b != 0);
}

// What bitsandbytes allows.
static bool is_blocksize(int64_t n) {
    return n >= 32 && n <= 4096 && (n & (n - 1)) == 0;
}

static void fill(struct weight *out, struct weight_tables *tables, enum quant id, const char *name, int64_t rows,
                 int64_t cols, struct table_bytes codes, enum number rounded) {
    assert(rounded != NUMBER_E8M0);
    *tables = (struct weight_tables){.code_bytes = codes.bytes,
                                     .rounded = rounded,
                                     .rows = rows,
                                     .cols = cols,
                                     .row_step = 1,
                                     .block_rows = 1,
                                     .block_cols = cols};
    *out = (struct weight){
        .format = quant_format(id), .rows = rows, .cols = cols, .data = codes.data, .name = name, .tables = tables};
}

static void put_table(struct weight_tables *tables, enum weight_table which, struct table_bytes bytes) {
    tables->table[which].data = bytes.data, tables->table[which].bytes = bytes.bytes;
}

int nf4_weight(struct weight *out, struct weight_tables *tables, const struct nf4_parts *p, struct error *err) {
    if (check_shape(p->name, p->rows, p->cols, err)) return -1;
    if (!is_blocksize(p->blocksize))
        return error_set(err, STATUS_DATA, "%s: blocksize %lld is none of 32, 64, 128 .. 4096", p->name,
                         (long long)p->blocksize);
    int64_t n = p->rows * p->cols, blocks = divide_up(n, p->blocksize);
    bool nested = p->nested_absmax.data || p->nested_quant_map.data;
    if (check_bytes(p->name, "weight", p->codes, divide_up(n, 2), 1, err) ||
        check_bytes(p->name, "absmax", p->absmax, blocks, nested ? 1 : 4, err) ||
        check_bytes(p->name, "quant_map", p->quant_map, 16, 4, err) ||
        check_finite(p->name, "quant_map", p->quant_map, err)) {
        return -1;
    }
    fill(out, tables, p->fp4 ? QUANT_FP4 : QUANT_NF4, p->name, p->rows, p->cols, p->codes, p->rounded);
    tables->block_cols = p->blocksize;
    put_table(tables, TABLE_SCALES, p->absmax);
    put_table(tables, TABLE_CODES, p->quant_map);
    if (!nested) return 0;
    if (!is_blocksize(p->nested_blocksize))
        return error_set(err, STATUS_DATA, "%s: nested_blocksize %lld is none of 32, 64, 128 .. 4096", p->name,
                         (long long)p->nested_blocksize);
    if (!isfinite(p->nested_offset)) return bad(err, p->name, "nested_offset is not finite");
    if (check_bytes(p->name, "nested_absmax", p->nested_absmax, divide_up(blocks, p->nested_blocksize), 4, err) ||
        check_bytes(p->name, "nested_quant_map", p->nested_quant_map, 256, 4, err) ||
        check_finite(p->name, "nested_quant_map", p->nested_quant_map, err)) {
        return -1;
    }
    put_table(tables, TABLE_OUTER_SCALES, p->nested_absmax);
    put_table(tables, TABLE_OUTER_CODES, p->nested_quant_map);
    tables->scale_block = p->nested_blocksize;
    tables->offset = p->nested_offset;
    return 0;
}

int int8_weight(struct weight *out, struct weight_tables *tables, const struct int8_parts *p, struct error *err) {
    if (check_shape(p->name, p->rows, p->cols, err) ||
        check_bytes(p->name, "weight", p->codes, p->rows * p->cols, 1, err) ||
        check_bytes(p->name, "SCB", p->scb, p->rows, 4, err)) {
        return -1;
    }
    fill(out, tables, QUANT_INT8, p->name, p->rows, p->cols, p->codes, p->rounded);
    put_table(tables, TABLE_SCALES, p->scb);
    return 0;
}

// Are the groups what they would be without g_idx?
static int check_groups(const struct gptq_parts *p, int64_t group_size, bool *in_order, struct error *err) {
    int64_t groups = divide_up(p->cols, group_size);
    if (check_bytes(p->name, "g_idx", p->g_idx, p->cols, 4, err)) return -1;
    *in_order = true;
    for (int64_t i = 0; i < p->cols; i++) {
        uint32_t group = u32_at(p->g_idx.data, i);
        if (group >= groups)
            return error_set(err, STATUS_DATA, "%s: g_idx[%lld] is %d, there are %lld groups", p->name, (long long)i,
                             (int)group, (long long)groups);
        *in_order &= group == i / group_size;
    }
    return 0;
}

int gptq_weight(struct weight *out, struct weight_tables *tables, const struct gptq_parts *p, struct error *err) {
    static const enum quant ids[9] = {[2] = QUANT_GPTQ_2, [3] = QUANT_GPTQ_3, [4] = QUANT_GPTQ_4, [8] = QUANT_GPTQ_8};
    if (check_shape(p->name, p->rows, p->cols, err)) return -1;
    int64_t size = p->group_size == -1 ? p->cols : p->group_size;
    if (p->bits < 0 || p->bits > 8 || !ids[p->bits])
        return error_set(err, STATUS_DATA, "%s: GPTQ with %d bits; 2, 3, 4 and 8 are known", p->name, p->bits);
    if (size < 1) return error_set(err, STATUS_DATA, "%s: group size %lld", p->name, (long long)p->group_size);
    int64_t pack = p->bits == 3 ? 32 : 32 / p->bits; // numbers that fill whole words
    if (p->rows % pack || p->cols % pack)
        return error_set(err, STATUS_DATA, "%s: GPTQ with %d bits needs multiples of %lld, the matrix is %lld x %lld",
                         p->name, p->bits, (long long)pack, (long long)p->rows, (long long)p->cols);
    if (p->scale_type == NUMBER_E8M0) return bad(err, p->name, "scales are no floating point numbers");
    int64_t groups = divide_up(p->cols, size);
    bool in_order = true;
    if (check_bytes(p->name, "qweight", p->qweight, p->cols / pack * p->rows * (pack * p->bits / 32), 4, err) ||
        check_bytes(p->name, "qzeros", p->qzeros, p->rows / pack * groups * (pack * p->bits / 32), 4, err) ||
        check_bytes(p->name, "scales", p->scales, groups * p->rows, number_bytes(p->scale_type), err) ||
        (p->g_idx.data && check_groups(p, size, &in_order, err))) {
        return -1;
    }
    fill(out, tables, ids[p->bits], p->name, p->rows, p->cols, p->qweight, p->rounded);
    tables->block_cols = size;
    tables->scale_type = p->scale_type;
    tables->scale_ld = p->rows;
    tables->zeros_less_one = !p->v2;
    put_table(tables, TABLE_SCALES, p->scales);
    put_table(tables, TABLE_ZEROS, p->qzeros);
    if (!in_order) put_table(tables, TABLE_GROUPS, p->g_idx);
    return 0;
}

int awq_weight(struct weight *out, struct weight_tables *tables, const struct awq_parts *p, struct error *err) {
    if (check_shape(p->name, p->rows, p->cols, err)) return -1;
    int64_t size = p->group_size == -1 ? p->cols : p->group_size;
    if (size < 1 || p->cols % size)
        return error_set(err, STATUS_DATA, "%s: group size %lld for %lld columns", p->name, (long long)p->group_size,
                         (long long)p->cols);
    if (p->rows % 8)
        return error_set(err, STATUS_DATA, "%s: %lld rows, AWQ needs a multiple of 8", p->name, (long long)p->rows);
    if (p->scale_type == NUMBER_E8M0) return bad(err, p->name, "scales are no floating point numbers");
    int64_t groups = p->cols / size;
    if (check_bytes(p->name, "qweight", p->qweight, p->cols * (p->rows / 8), 4, err) ||
        check_bytes(p->name, "qzeros", p->qzeros, groups * (p->rows / 8), 4, err) ||
        check_bytes(p->name, "scales", p->scales, groups * p->rows, number_bytes(p->scale_type), err)) {
        return -1;
    }
    fill(out, tables, QUANT_AWQ, p->name, p->rows, p->cols, p->qweight, p->rounded);
    tables->block_cols = size;
    tables->scale_type = p->scale_type;
    tables->scale_ld = p->rows;
    put_table(tables, TABLE_SCALES, p->scales);
    put_table(tables, TABLE_ZEROS, p->qzeros);
    return 0;
}

// The block that cuts `size` into `count` pieces; 0 = equal ones. -1: it does not.
static int64_t block_of(int64_t size, int64_t count, int64_t block) {
    if (count < 1 || count > size || block < 0) return -1;
    if (block == 0) return size % count ? -1 : size / count;
    return divide_up(size, block) == count ? block : -1;
}

int fp8_weight(struct weight *out, struct weight_tables *tables, const struct fp8_parts *p, struct error *err) {
    if (check_shape(p->name, p->rows, p->cols, err) ||
        check_bytes(p->name, "weight", p->codes, p->rows * p->cols, 1, err)) {
        return -1;
    }
    fill(out, tables, p->e5m2 ? QUANT_FP8_E5M2 : QUANT_FP8_E4M3, p->name, p->rows, p->cols, p->codes, p->rounded);
    if (!p->scales.data) return 0;
    int64_t rows = block_of(p->rows, p->scale_rows, p->block_rows);
    int64_t cols = block_of(p->cols, p->scale_cols, p->block_cols);
    if (rows < 0 || cols < 0)
        return error_set(err, STATUS_DATA, "%s: scales of %lld x %lld do not fit blocks of %lld x %lld in %lld x %lld",
                         p->name, (long long)p->scale_rows, (long long)p->scale_cols, (long long)p->block_rows,
                         (long long)p->block_cols, (long long)p->rows, (long long)p->cols);
    if (check_bytes(p->name, "scale", p->scales, p->scale_rows * p->scale_cols, number_bytes(p->scale_type), err))
        return -1;
    tables->block_rows = rows;
    tables->block_cols = cols;
    tables->scale_type = p->scale_type;
    tables->scale_ld = p->scale_cols;
    put_table(tables, TABLE_SCALES, p->scales);
    return 0;
}

// Rows of `unit` bytes, `step` apart, of which the last one may be followed by the others of its step.
static int check_rows(const char *name, const char *array, struct table_bytes got, int64_t rows, int64_t step,
                      int64_t unit, int64_t *bytes, struct error *err) {
    if (!got.data) return error_set(err, STATUS_DATA, "%s: %s is missing", name, array);
    if (rows <= INT64_MAX / step / unit) {
        *bytes = ((rows - 1) * step + 1) * unit;
        if (got.bytes >= (uint64_t)*bytes && got.bytes <= (uint64_t)(rows * step * unit)) return 0;
    }
    return error_set(err, STATUS_DATA, "%s: %s has %zu bytes, expected %lld rows of %lld bytes, one in %lld", name,
                     array, got.bytes, (long long)rows, (long long)unit, (long long)step);
}

int mxfp4_weight(struct weight *out, struct weight_tables *tables, const struct mxfp4_parts *p, struct error *err) {
    int64_t code_bytes, scale_bytes;
    assert(p->row_step >= 1 && p->row_step <= 2);
    if (check_shape(p->name, p->rows, p->cols, err)) return -1;
    if (p->cols % 32)
        return error_set(err, STATUS_DATA, "%s: %lld columns, MXFP4 needs a multiple of 32", p->name,
                         (long long)p->cols);
    if (check_rows(p->name, "blocks", p->codes, p->rows, p->row_step, p->cols / 2, &code_bytes, err) ||
        check_rows(p->name, "scales", p->scales, p->rows, p->row_step, p->cols / 32, &scale_bytes, err)) {
        return -1;
    }
    fill(out, tables, QUANT_MXFP4_PAIRS, p->name, p->rows, p->cols, p->codes, p->rounded);
    tables->code_bytes = (size_t)code_bytes;
    tables->block_cols = 32;
    tables->row_step = p->row_step;
    tables->scale_type = NUMBER_E8M0;
    tables->scale_ld = p->cols / 32 * p->row_step;
    put_table(tables, TABLE_SCALES, (struct table_bytes){p->scales.data, (size_t)scale_bytes});
    return 0;
}
