// Panel decoders for formats with tables beside their codes (quant_tables.c draws them): bit for bit what weight_decode
// gives. Each value is one product of a code's number and a scale, then rounded where the file says so.
//
// Two families. Row by row (NF4, FP4, INT8, FP8, MXFP4): bytes of a row lie side by side; forward panels (lanes are
// rows) turn words of sixteen rows on their side, dX panels (lanes are columns) read them as they stand. Packed across
// (GPTQ, AWQ): the file holds the matrix as (in, out), so the words of sixteen rows lie side by side.
#include "kernels/cpu/gemm.h"

#include "kernels/cpu/lookup.h"

#include <assert.h>

#if defined(VEC_AVX512) || defined(VEC_AVX2) || defined(__SANITIZE_ADDRESS__)
#define DECODE    GEMM_INLINE
#define UNROLL(n) GEMM_UNROLL(n)
#else // plain C: nothing to gain
#define DECODE static inline
#define UNROLL(n)
#endif

enum { P = GEMM_COLS };

DECODE int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}

DECODE float load_f32(const uint8_t *p) {
    float x;
    memcpy(&x, p, 4);
    return x;
}

DECODE float power_of_two(uint8_t exponent) { // e8m0
    uint32_t bits = exponent == 255 ? 0x7FC00000u : exponent == 0 ? 0x00400000u : (uint32_t)exponent << 23;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

DECODE float load_number(const uint8_t *p, enum number type, int64_t i) {
    if (type == NUMBER_F32) return load_f32(p + 4 * i);
    if (type == NUMBER_E8M0) return power_of_two(p[i]);
    return type == NUMBER_F16 ? f16_to_float(load_u16(p + 2 * i)) : bf16_to_float(load_u16(p + 2 * i));
}

DECODE v16 load_table(const uint8_t *p) {
    return w16_float(w16_load(p));
}

// Lanes [0, n) of panel row k.
DECODE void put(float *panel, int64_t k, v16 a, int n) {
    if (n == 16)
        v16_store(panel + k * P, a);
    else
        v16_store_n(panel + k * P, a, n);
}

// --- row by row. A format has
//   NAME_open     where its rows lie, and how many columns share a scale (source.run)
//   NAME_scale    the scale of an element
//   NAME_turned   element i of sixteen rows, from their 16 bytes turned on their side, times their scales
//   NAME_line     sixteen elements of one row, times its scale
// and NAME_UNIT elements in 16 bytes.

struct source {
    const uint8_t *data; // of the view's first row
    size_t stride;       // bytes from row to row
    int64_t first_row;   // of the view in the stored matrix
    int64_t run;         // columns that share a scale
    const struct weight_tables *t;
    const uint8_t *scales;
    int run_shift, outer_shift; // NF4: sizes of blocks are powers of two
    v16 table;
};

DECODE struct source open_rows(const struct weight *w, size_t stride) {
    const struct weight_tables *t = w->tables;
    struct source s = {.data = w->data + (size_t)w->first_row * stride, .stride = stride, .first_row = w->first_row};
    s.t = t, s.run = t->block_cols, s.scales = t->table[TABLE_SCALES].data;
    return s;
}

// NF4 and FP4, where no block goes from one row into the next.
enum { nf4_UNIT = 32, int8_UNIT = 16, e4m3_UNIT = 16, e5m2_UNIT = 16, mxfp4_UNIT = 32 };

DECODE struct source nf4_open(const struct weight *w) {
    struct source s = open_rows(w, (size_t)w->cols / 2);
    s.table = load_table(s.t->table[TABLE_CODES].data);
    s.run_shift = __builtin_ctzll((unsigned long long)s.run);
    s.outer_shift = s.t->scale_block ? __builtin_ctzll((unsigned long long)s.t->scale_block) : 0;
    return s;
}
DECODE float nf4_scale(const struct source *s, int64_t row, int64_t col) {
    int64_t block = ((s->first_row + row) * s->t->cols + col) >> s->run_shift;
    const uint8_t *map = s->t->table[TABLE_OUTER_CODES].data;
    if (!map) return load_f32(s->scales + 4 * block);
    float outer = load_f32(s->t->table[TABLE_OUTER_SCALES].data + 4 * (block >> s->outer_shift));
    return load_f32(map + 4 * s->scales[block]) * outer + s->t->offset;
}
DECODE v16 nf4_turned(const struct source *s, const w16 w[4], int i, v16 scale) {
    return v16_mul(w16_lookup(w[i / 8], i % 8 / 2 * 8 + (i % 2 ? 0 : 4), s->table), scale);
}
DECODE v16 nf4_line(const struct source *s, const uint8_t *p, v16 scale) {
    return v16_mul(w16_lookup(w16_pairs(p, true), 0, s->table), scale);
}

// MXFP4 in pairs
DECODE struct source mxfp4_open(const struct weight *w) {
    static const float values[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                     -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};
    struct source s = open_rows(w, (size_t)(w->cols / 2 * w->tables->row_step));
    s.table = v16_load(values);
    return s;
}
DECODE float mxfp4_scale(const struct source *s, int64_t row, int64_t col) {
    return power_of_two(s->scales[(s->first_row + row) * s->t->scale_ld + col / 32]);
}
DECODE v16 mxfp4_turned(const struct source *s, const w16 w[4], int i, v16 scale) {
    return v16_mul(w16_lookup(w[i / 8], 4 * (i % 8), s->table), scale);
}
DECODE v16 mxfp4_line(const struct source *s, const uint8_t *p, v16 scale) {
    return v16_mul(w16_lookup(w16_pairs(p, false), 0, s->table), scale);
}

// LLM.int8: two products, in this order
DECODE struct source int8_open(const struct weight *w) {
    return open_rows(w, (size_t)w->cols);
}
DECODE float int8_scale(const struct source *s, int64_t row, int64_t col) {
    (void)col;
    return load_f32(s->scales + 4 * (s->first_row + row));
}
DECODE v16 int8_scaled(v16 codes, v16 scale) {
    return v16_mul(v16_mul(codes, scale), v16_set1((float)(1.0 / 127.0)));
}
DECODE v16 int8_turned(const struct source *s, const w16 w[4], int i, v16 scale) {
    (void)s;
    return int8_scaled(v16_mul(w16_byte24(w[i / 4], i % 4), v16_set1(0x1p-24f)), scale);
}
DECODE v16 int8_line(const struct source *s, const uint8_t *p, v16 scale) {
    (void)s;
    return int8_scaled(v16_i8(p), scale);
}

// FP8; without factors the scale is 1, which changes nothing
DECODE struct source e4m3_open(const struct weight *w) {
    return open_rows(w, (size_t)w->cols);
}
DECODE float e4m3_scale(const struct source *s, int64_t row, int64_t col) {
    int64_t block = (s->first_row + row) / s->t->block_rows * s->t->scale_ld + col / s->t->block_cols;
    return s->scales ? load_number(s->scales, s->t->scale_type, block) : 1.0f;
}
DECODE v16 e4m3_turned(const struct source *s, const w16 w[4], int i, v16 scale) {
    (void)s;
    return v16_mul(w16_e4m3(w[i / 4], i % 4), scale);
}
DECODE v16 e4m3_line(const struct source *s, const uint8_t *p, v16 scale) {
    (void)s;
    return v16_mul(w16_e4m3(w16_widen(p), 0), scale);
}
DECODE struct source e5m2_open(const struct weight *w) {
    return open_rows(w, (size_t)w->cols);
}
DECODE float e5m2_scale(const struct source *s, int64_t row, int64_t col) {
    return e4m3_scale(s, row, col);
}
DECODE v16 e5m2_turned(const struct source *s, const w16 w[4], int i, v16 scale) {
    (void)s;
    return v16_mul(w16_e5m2(w[i / 4], i % 4), scale);
}
DECODE v16 e5m2_line(const struct source *s, const uint8_t *p, v16 scale) {
    (void)s;
    return v16_mul(w16_e5m2(w16_widen(p), 0), scale);
}

// 16 bytes each of `rows` rows, or `bytes` of them, turned; the others are zeros.
DECODE void turn(w16 out[4], const uint8_t *p, size_t stride, int rows, int bytes) {
    if (rows == 16 && bytes == 16) {
        w16_load4(out, p, stride);
        return;
    }
    uint8_t copy[16][16] = {{0}};
    for (int i = 0; i < rows; i++) memcpy(copy[i], p + (size_t)i * stride, (size_t)bytes);
    w16_load4(out, copy[0], 16);
}

#define ROW_BY_ROW(name)                                                                                               \
    DECODE void name##_rows_as(float *panel, const struct weight *w, int64_t row, int64_t k0, int64_t k, int n,        \
                               const enum number rounded) {                                                            \
        const struct source s = name##_open(w);                                                                        \
        for (int lane = 0; lane < n; lane += 16) {                                                                     \
            int rows = (int)least(n - lane, 16);                                                                       \
            const uint8_t *base = s.data + (size_t)(row + lane) * s.stride;                                            \
            int64_t scaled = k0; /* the end of the columns that `scale` is for */                                      \
            v16 scale = v16_zero();                                                                                    \
            for (int64_t c = k0; c < k0 + k; c += name##_UNIT) {                                                       \
                float *p = panel + (c - k0) * P + lane;                                                                \
                int count = (int)least(k0 + k - c, name##_UNIT);                                                       \
                w16 q[4];                                                                                              \
                if (c == scaled) {                                                                                     \
                    float t[16] = {0};                                                                                 \
                    for (int i = 0; i < rows; i++) t[i] = name##_scale(&s, row + lane + i, c);                         \
                    scale = v16_load(t);                                                                               \
                    scaled = (c / s.run + 1) * s.run;                                                                  \
                }                                                                                                      \
                turn(q, base + c * 16 / name##_UNIT, s.stride, rows, count * 16 / name##_UNIT);                        \
                if (rows == 16 && count == name##_UNIT) {                                                              \
                    UNROLL(32)                                                                                         \
                    for (int i = 0; i < name##_UNIT; i++) {                                                            \
                        v16_store(p + i * P, v16_round_to(name##_turned(&s, q, i, scale), rounded));                   \
                    }                                                                                                  \
                } else {                                                                                               \
                    UNROLL(32)                                                                                         \
                    for (int i = 0; i < name##_UNIT; i++) {                                                            \
                        if (i < count) put(p, i, v16_round_to(name##_turned(&s, q, i, scale), rounded), rows);         \
                    }                                                                                                  \
                }                                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
    }                                                                                                                  \
    DECODE void name##_cols_as(float *panel, const struct weight *w, int64_t row, int64_t k, int64_t col0, int n,      \
                               const enum number rounded) {                                                            \
        const struct source s = name##_open(w);                                                                        \
        const uint8_t *base = s.data + (size_t)row * s.stride + (size_t)(col0 * 16 / name##_UNIT);                     \
        for (int64_t i = 0; i < k; i++, panel += P, base += s.stride) {                                                \
            int64_t scaled = col0;                                                                                     \
            v16 scale = v16_zero();                                                                                    \
            for (int lane = 0; lane < n; lane += 16) {                                                                 \
                int count = (int)least(n - lane, 16), bytes = count * 16 / name##_UNIT;                                \
                const uint8_t *p = base + lane * 16 / name##_UNIT;                                                     \
                uint8_t copy[16];                                                                                      \
                if (col0 + lane == scaled) {                                                                           \
                    scale = v16_set1(name##_scale(&s, row + i, col0 + lane));                                          \
                    scaled = ((col0 + lane) / s.run + 1) * s.run;                                                      \
                }                                                                                                      \
                if (count < 16) memset(copy, 0, 16), memcpy(copy, p, (size_t)bytes), p = copy;                         \
                put(panel + lane, 0, v16_round_to(name##_line(&s, p, scale), rounded), count);                         \
            }                                                                                                          \
        }                                                                                                              \
    }                                                                                                                  \
    static void name##_rows(float *panel, const struct weight *w, int64_t row, int64_t k0, int64_t k, int n) {         \
        switch (w->tables->rounded) {                                                                                  \
        case NUMBER_F16: name##_rows_as(panel, w, row, k0, k, n, NUMBER_F16); break;                                   \
        case NUMBER_BF16: name##_rows_as(panel, w, row, k0, k, n, NUMBER_BF16); break;                                 \
        default: name##_rows_as(panel, w, row, k0, k, n, NUMBER_F32); break;                                           \
        }                                                                                                              \
    }                                                                                                                  \
    static void name##_cols(float *panel, const struct weight *w, int64_t row, int64_t k, int64_t col0, int n) {       \
        switch (w->tables->rounded) {                                                                                  \
        case NUMBER_F16: name##_cols_as(panel, w, row, k, col0, n, NUMBER_F16); break;                                 \
        case NUMBER_BF16: name##_cols_as(panel, w, row, k, col0, n, NUMBER_BF16); break;                               \
        default: name##_cols_as(panel, w, row, k, col0, n, NUMBER_F32); break;                                         \
        }                                                                                                              \
    }
ROW_BY_ROW(nf4)
ROW_BY_ROW(mxfp4)
ROW_BY_ROW(int8)
ROW_BY_ROW(e4m3)
ROW_BY_ROW(e5m2)

// --- packed across: GPTQ. Words of sixteen rows lie side by side, so a vector of words holds a few columns of sixteen
// rows; dX panels turn what comes of it.

// Numbers [i, i + count) of a table, zeros behind them.
DECODE v16 load_numbers(const uint8_t *p, enum number type, int64_t i, int count) {
    uint8_t copy[64] = {0};
    int size = type == NUMBER_F32 ? 4 : 2;
    p += size * i;
    if (count < 16) memcpy(copy, p, (size_t)(size * count)), p = copy;
    return type == NUMBER_F32 ? load_table(p) : type == NUMBER_F16 ? v16_halves(p) : v16_brains(p);
}

DECODE w16 load_words(const uint8_t *p, int count) {
    uint8_t copy[64] = {0};
    if (count == 16) return w16_load(p);
    memcpy(copy, p, 4 * (size_t)count);
    return w16_load(copy);
}

struct group { // what the columns of a group have in common, for sixteen rows
    v16 zero, scale;
};

// Zero points of sixteen rows from `row` on, where the words begin with them; else, and with 3 bits, one by one.
static v16 gptq_zeros(const struct weight_tables *t, const uint8_t *words, int64_t row, int count, int bits) {
    static const uint32_t ones[9] = {[2] = 0x55555555u, [4] = 0x11111111u, [8] = 0x01010101u};
    uint32_t plus = t->zeros_less_one ? ones[bits] : 0, word[16], shift[16], part[4] = {0};
    if (bits != 3 && row * bits % 32 == 0) {
        for (int i = 0; i < 16; i++) word[i] = (uint32_t)(i * bits / 32), shift[i] = (uint32_t)(i * bits % 32);
        memcpy(part, words + row * bits / 8, (size_t)(count * bits + 31) / 32 * 4);
        return w16_field(w16_spread((const uint8_t *)part, 4, plus, word, shift), 0, bits);
    }
    float zero[16] = {0};
    for (int i = 0; i < count; i++) {
        int64_t bit = (row + i) * bits;
        uint32_t x, above = 0;
        memcpy(&x, words + bit / 32 * 4, 4);
        if (bit % 32 + bits > 32) memcpy(&above, words + bit / 32 * 4 + 4, 4);
        uint64_t both = (uint64_t)above << 32 | (uint32_t)(x + plus);
        uint32_t z = (uint32_t)(both >> bit % 32) & ((1u << bits) - 1);
        zero[i] = (float)(bits == 3 && t->zeros_less_one ? (z + 1) & 7 : z);
    }
    return v16_load(zero);
}

// Once per group and sixteen rows: a call, not a copy in every place.
static __attribute__((noinline)) struct group gptq_group(const struct weight_tables *t, int64_t g, int64_t row,
                                                         int count, int bits) {
    const uint8_t *words = t->table[TABLE_ZEROS].data + g * (t->rows * bits / 32) * 4;
    return (struct group){gptq_zeros(t, words, row, count, bits),
                          load_numbers(t->table[TABLE_SCALES].data, t->scale_type, g * t->rows + row, count)};
}

// Number i of the stream in w.
DECODE v16 gptq_code(const w16 *w, const int i, const int bits) {
    const int word = i * bits / 32, shift = i * bits % 32, here = 32 - shift;
    if (here >= bits) return w16_field(w[word], shift, bits);
    return v16_fma(w16_field(w[word + 1], 0, bits - here), v16_set1((float)(1 << here)),
                   w16_field(w[word], shift, here));
}

// The group of the column before; in order of the columns it reaches up to `end`.
struct current {
    int64_t id, end;
    v16 zero, scale;
};

DECODE void gptq_enter(struct current *now, const struct weight_tables *t, int64_t col, int64_t row, int count,
                       const int bits) {
    const uint8_t *groups = t->table[TABLE_GROUPS].data;
    int64_t id = now->id;
    if (groups) {
        uint32_t stored;
        memcpy(&stored, groups + 4 * col, 4);
        id = stored;
    } else if (col >= now->end) {
        id = col / t->block_cols;
        now->end = (id + 1) * t->block_cols;
    }
    if (id == now->id) return;
    struct group g = gptq_group(t, id, row, count, bits);
    now->id = id, now->zero = g.zero, now->scale = g.scale;
}

// Columns [col, col + count) of `rows` rows from stored row `row` on, one vector of rows after another, `step` floats
// apart. At most GPTQ_UNIT columns, col a multiple of it.
enum { GPTQ_UNIT = 32 };
DECODE void gptq_unit(float *out, int64_t step, const struct weight *w, int64_t row, int rows, int64_t col, int count,
                      struct current *now, const int bits, bool whole) {
    const struct weight_tables *t = w->tables;
    const uint8_t *words = w->data + (col * bits / 32 * t->rows + row) * 4;
    w16 q[8];
    int n_words = (count * bits + 31) / 32;
    UNROLL(8)
    for (int i = 0; i < bits; i++) q[i] = load_words(words + (i < n_words ? i : 0) * t->rows * 4, rows);
    UNROLL(32)
    for (int i = 0; i < GPTQ_UNIT; i++) {
        if (i >= count) continue;
        gptq_enter(now, t, col + i, row, rows, bits);
        v16 v = v16_mul(v16_sub(gptq_code(q, i, bits), now->zero), now->scale);
        v = v16_round_to(v, t->rounded);
        if (whole)
            v16_store(out + i * step, v);
        else
            v16_store_n(out + i * step, v, rows);
    }
}

DECODE void gptq_rows_as(float *panel, const struct weight *w, int64_t row, int64_t k0, int64_t k, int n,
                         const int bits) {
    for (int lane = 0; lane < n; lane += 16) {
        int rows = (int)least(n - lane, 16);
        struct current now = {-1, 0, v16_zero(), v16_zero()};
        for (int64_t c = 0; c < k; c += GPTQ_UNIT) {
            gptq_unit(panel + c * P + lane, P, w, w->first_row + row + lane, rows, k0 + c, (int)least(k - c, GPTQ_UNIT),
                      &now, bits, rows == 16);
        }
    }
}

DECODE void gptq_cols_as(float *panel, const struct weight *w, int64_t row, int64_t k, int64_t col0, int n,
                         const int bits) {
    float t[GPTQ_UNIT][16];
    for (int64_t i = 0; i < k; i += 16) {
        int rows = (int)least(k - i, 16);
        struct current now = {-1, 0, v16_zero(), v16_zero()};
        for (int64_t c = col0 / GPTQ_UNIT * GPTQ_UNIT; c < col0 + n; c += GPTQ_UNIT) { // lane 0 may be in the middle
            int count = (int)least(w->cols - c, GPTQ_UNIT);
            gptq_unit(t[0], 16, w, w->first_row + row + i, rows, c, count, &now, bits, true);
            for (int part = c < col0 ? 16 : 0; part < GPTQ_UNIT && c + part < col0 + n; part += 16) {
                int lane = (int)(c + part - col0), lanes = (int)least(n - lane, 16);
                for (int r = 0; r < rows; r += 4) {
                    w16 turned[4];
                    w16_load4(turned, (const uint8_t *)&t[part][r], sizeof t[0]);
                    for (int j = 0; j < 4 && r + j < rows; j++)
                        put(panel + lane, i + r + j, w16_float(turned[j]), lanes);
                }
            }
        }
    }
}

#define GPTQ(bits)                                                                                                     \
    static void gptq_##bits##_rows(float *panel, const struct weight *w, int64_t row, int64_t k0, int64_t k, int n) {  \
        gptq_rows_as(panel, w, row, k0, k, n, bits);                                                                   \
    }                                                                                                                  \
    static void gptq_##bits##_cols(float *panel, const struct weight *w, int64_t row, int64_t k, int64_t col0,         \
                                   int n) {                                                                            \
        gptq_cols_as(panel, w, row, k, col0, n, bits);                                                                 \
    }
GPTQ(2)
GPTQ(3)
GPTQ(4)
GPTQ(8)

// --- AWQ: a word holds eight rows of one column.

static const uint32_t awq_word[16] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1};
static const uint32_t awq_shift[16] = {0, 16, 4, 20, 8, 24, 12, 28, 0, 16, 4, 20, 8, 24, 12, 28};

// Sixteen rows from a pair of words, of which the second is not there where `count` is 8 or less.
DECODE v16 awq_rows_of(const uint8_t *words, int count) {
    uint8_t pair[8] = {0};
    if (count <= 8) memcpy(pair, words, 4), words = pair;
    return w16_field(w16_spread(words, 2, 0, awq_word, awq_shift), 0, 4);
}

// Rows that do not begin with a word: element by element.
DECODE void awq_slowly(float *panel, const struct weight *w, int64_t row, int64_t k0, int64_t k, int rows) {
    for (int64_t c = 0; c < k; c++) {
        for (int i = 0; i < rows; i++) weight_decode(w, row + i, k0 + c, 1, panel + c * P + i);
    }
}

static void awq_rows(float *panel, const struct weight *w, int64_t row, int64_t k0, int64_t k, int n) {
    const struct weight_tables *t = w->tables;
    size_t stride = (size_t)t->rows / 2;
    for (int lane = 0; lane < n; lane += 16) {
        int rows = (int)least(n - lane, 16);
        int64_t first = w->first_row + row + lane, end = k0;
        if (first % 8) {
            awq_slowly(panel + lane, w, row + lane, k0, k, rows);
            continue;
        }
        v16 zero = v16_zero(), scale = v16_zero();
        for (int64_t c = k0; c < k0 + k; c++) {
            if (c == end) {
                int64_t group = c / t->block_cols;
                zero = awq_rows_of(t->table[TABLE_ZEROS].data + (size_t)group * stride + first / 2, rows);
                scale = load_numbers(t->table[TABLE_SCALES].data, t->scale_type, group * t->rows + first, rows);
                end = (group + 1) * t->block_cols;
            }
            v16 q = awq_rows_of(w->data + (size_t)c * stride + first / 2, rows);
            put(panel + lane, c - k0, v16_round_to(v16_mul(v16_sub(q, zero), scale), t->rounded), rows);
        }
    }
}

// Eight rows of the words of sixteen columns, of which those in [begin, end) are wanted; `panel`: row 0.
DECODE void awq_word_rows(float *panel, const struct weight_tables *t, w16 q, int64_t word, int64_t group, int begin,
                          int end, int lanes) {
    uint32_t zeros;
    memcpy(&zeros, t->table[TABLE_ZEROS].data + (size_t)(group * (t->rows / 8) + word) * 4, 4);
    const uint8_t *scales = t->table[TABLE_SCALES].data;
    UNROLL(8)
    for (int m = 0; m < 8; m++) {
        const int shift = m / 2 * 4 + (m % 2) * 16;
        int64_t at = group * t->rows + 8 * word + m;
        if (m < begin || m >= end) continue;
        v16 scale =
            t->scale_type == NUMBER_F16 ? v16_half1(scales + 2 * at) : v16_set1(load_number(scales, t->scale_type, at));
        v16 zero = v16_set1((float)(zeros >> shift & 15));
        v16 v = v16_mul(v16_sub(w16_nibble(q, shift), zero), scale);
        put(panel, m, v16_round_to(v, t->rounded), lanes);
    }
}

static void awq_cols(float *panel, const struct weight *w, int64_t row, int64_t k, int64_t col0, int n) {
    const struct weight_tables *t = w->tables;
    int64_t first = w->first_row + row;
    for (int lane = 0; lane < n; lane += 16) {
        int lanes = (int)least(n - lane, 16);
        int64_t col = col0 + lane;
        for (int64_t word = first / 8; 8 * word < first + k; word++) {
            uint32_t q[16] = {0};
            for (int i = 0; i < lanes; i++) memcpy(&q[i], w->data + (size_t)((col + i) * (t->rows / 8) + word) * 4, 4);
            int64_t begin = first - 8 * word, end = first + k - 8 * word;
            awq_word_rows(panel + lane - begin * P, t, w16_load(q), word, col / t->block_cols,
                          begin > 0 ? (int)begin : 0, (int)least(end, 8), lanes);
        }
    }
}

static bool nf4_fits(const struct weight *w) { // no block goes from one row into the next
    return w->cols % w->tables->block_cols == 0;
}
static bool always_fits(const struct weight *w) {
    (void)w;
    return true;
}
static bool sixteens_fit(const struct weight *w) { // sixteen columns share a scale
    return w->tables->block_cols % 16 == 0 || w->tables->block_cols == w->tables->cols;
}

const struct gemm_table_decoder VEC_SUFFIX(gemm_table_decoders)[QUANT_COUNT] = {
    [QUANT_NF4] = {nf4_fits, nf4_rows, nf4_cols},
    [QUANT_FP4] = {nf4_fits, nf4_rows, nf4_cols},
    [QUANT_INT8] = {always_fits, int8_rows, int8_cols},
    [QUANT_GPTQ_2] = {always_fits, gptq_2_rows, gptq_2_cols},
    [QUANT_GPTQ_3] = {always_fits, gptq_3_rows, gptq_3_cols},
    [QUANT_GPTQ_4] = {always_fits, gptq_4_rows, gptq_4_cols},
    [QUANT_GPTQ_8] = {always_fits, gptq_8_rows, gptq_8_cols},
    [QUANT_AWQ] = {sixteens_fit, awq_rows, awq_cols},
    [QUANT_FP8_E4M3] = {sixteens_fit, e4m3_rows, e4m3_cols},
    [QUANT_FP8_E5M2] = {sixteens_fit, e5m2_rows, e5m2_cols},
    [QUANT_MXFP4_PAIRS] = {always_fits, mxfp4_rows, mxfp4_cols},
};
