// Frozen weights. Ops take `const struct weight *`, never a pointer to bytes: where the bytes are (file mapping,
// streamed copy, device memory, decoded copy) is the backend's business. A weight is a view: some rows of a stored
// matrix, in the format and order of its file. Nothing is ever rearranged or expanded to be used.
#pragma once

#include "kernels/quant.h"

#include <stdbool.h>
#include <stdint.h>

// Weights are acquired and released by segment, in the order a step walks through them. Norms and biases are small and
// needed beside any segment (a norm is recomputed while its neighbour runs): they are resident.
enum { SEGMENT_RESIDENT = 0, SEGMENT_EMBED = 1, SEGMENT_LAYER0 = 2 }; // layer l = SEGMENT_LAYER0 + l; the head is last

// What formats like NF4, GPTQ or FP8 with scale blocks keep beside their codes. quant_tables.h says which tables each
// format has, checks them and fills this in; quant_tables.c reads them. Tables belong to the stored matrix, not to a
// view of its rows.
enum weight_table {
    TABLE_SCALES,       // of blocks of elements; where they were quantised themselves: a code each
    TABLE_ZEROS,        // packed zero points
    TABLE_GROUPS,       // i32: the group of each column
    TABLE_CODES,        // f32[16]: what each code stands for
    TABLE_OUTER_SCALES, // f32: of blocks of scales
    TABLE_OUTER_CODES,  // f32[256]: what each code of a scale stands for
    TABLES
};
enum number { NUMBER_F32, NUMBER_F16, NUMBER_BF16, NUMBER_E8M0 }; // e8m0: a byte, 2^(byte - 127), 255 is NaN
struct weight_tables {
    struct {
        const uint8_t *data; // unaligned, borrowed; NULL where the format has none
        size_t bytes;
    } table[TABLES];
    size_t code_bytes;              // of the stored matrix, without tables
    enum number scale_type;         // of TABLE_SCALES
    enum number rounded;            // values are rounded to this before use (f32: not)
    int64_t rows, cols;             // of the stored matrix
    int64_t row_step;               // stored rows from one row of the matrix to the next: 2 where two alternate
    int64_t block_rows, block_cols; // one scale covers block_rows x block_cols; NF4: block_cols of the flat matrix
    int64_t scale_ld;               // scales from one row of them to the next
    int64_t scale_block;            // scales under one outer scale
    float offset;                   // added to a scale that was itself quantised
    bool zeros_less_one;            // zero points are stored less one
};

struct weight {
    const struct quant_format *format;
    int64_t rows, cols;  // (out, in): y[o] = sum_i W[o,i] x[i]
    const uint8_t *data; // host bytes of the first row (of the first column when transposed), borrowed from the file
    const char *name;    // as in the file, for messages; borrowed
    size_t stride;       // bytes from one stored row to the next; 0 = rows follow one another
    bool transposed;     // stored as (in, out): formats of single numbers only
    // Transposed: stored as blocks (in, turned_rows), one after another; each block is so many rows on their side. Any
    // format whose blocks divide turned_rows. 0 = one block of all rows.
    int64_t turned_rows;
    const struct weight_tables *tables; // NULL for formats whose rows stand for themselves
    int64_t first_row;                  // of the view in the stored matrix, where there are tables (data: the matrix's)
    int segment;
    uint32_t id; // 0 .. n-1 within a model; the experts of one linear have consecutive ids and lie side by side
};

// Bytes from one stored row to the next.
static inline size_t weight_stride(const struct weight *w) {
    int64_t turned = w->turned_rows ? w->turned_rows : w->rows;
    return w->stride ? w->stride : quant_row_bytes(w->format, w->transposed ? turned : w->cols);
}
// Bytes from `data` to the end of what the weight reads, without its tables.
size_t weight_bytes(const struct weight *w);
// Bytes of the weight's own numbers, tables included: what memory or a file must hold for it.
size_t weight_stored_bytes(const struct weight *w);

// Elements (row, col) .. (row, col + count) as floats. The reference for every faster way; any range, any format.
void weight_decode(const struct weight *w, int64_t row, int64_t col, int64_t count, float *out);

// Rows [begin, begin + rows) of a weight as a weight, whole blocks of turned ones. The name, segment and id stay.
struct weight weight_rows(const struct weight *w, int64_t begin, int64_t rows);
// Block `i` of turned rows as it is stored: a weight (in, turned_rows), row c of which is column c of those rows.
struct weight weight_turned_block(const struct weight *w, int64_t i);
