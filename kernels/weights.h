// Frozen weights. Ops take `const struct weight *`, never a pointer to bytes: where the bytes are (file mapping,
// streamed copy, device memory, decoded copy) is the backend's business. A weight is a view: some rows of a stored
// matrix, in the format and order of its file. Nothing is ever rearranged or expanded to be used.
#pragma once

#include "kernels/quant.h"

#include <stdint.h>

// Weights are acquired and released by segment, in the order a step walks through them. Norms and biases are small and
// needed beside any segment (a norm is recomputed while its neighbour runs): they are resident.
enum { SEGMENT_RESIDENT = 0, SEGMENT_EMBED = 1, SEGMENT_LAYER0 = 2 }; // layer l = SEGMENT_LAYER0 + l; the head is last

// What formats like NF4, GPTQ or FP8 with scale blocks keep beside their codes. Which tables a format has and how they
// are read stands with its decoder (quant_tables.c). Tables belong to the stored matrix, not to a view of its rows.
enum weight_table {
    TABLE_SCALES,
    TABLE_ZEROS,
    TABLE_GROUPS,
    TABLE_CODES,
    TABLE_OUTER_SCALES,
    TABLE_OUTER_CODES,
    TABLES
};
struct weight_tables {
    struct {
        const uint8_t *data; // unaligned, borrowed; NULL where the format has none
        size_t bytes;
    } table[TABLES];
    enum dtype scale_type;                    // of TABLE_SCALES
    int64_t rows, cols;                       // of the stored matrix
    int64_t block_rows, block_cols, scale_ld; // one scale covers block_rows x block_cols; scales from row to row
    enum dtype rounded;                       // values are rounded to this before use (DTYPE_F32: not)
    float offset;                             // added to an inner scale that was itself quantised
    int zero_offset;                          // added to every stored zero point
};

struct weight {
    const struct quant_format *format;
    int64_t rows, cols;  // (out, in): y[o] = sum_i W[o,i] x[i]
    const uint8_t *data; // host bytes of the first row (of the first column when transposed), borrowed from the file
    const char *name;    // as in the file, for messages; borrowed
    size_t stride;       // bytes from one stored row to the next; 0 = rows follow one another
    bool transposed;     // stored as (in, out): formats of single numbers only
    const struct weight_tables *tables; // NULL for formats whose rows stand for themselves
    int64_t first_row;                  // of the view in the stored matrix, where there are tables (data: the matrix's)
    int segment;
    uint32_t id; // 0 .. n-1 within a model; the experts of one linear have consecutive ids and lie side by side
};

// Bytes from one stored row to the next.
static inline size_t weight_stride(const struct weight *w) {
    return w->stride ? w->stride : quant_row_bytes(w->format, w->transposed ? w->rows : w->cols);
}
// Bytes from `data` to the end of what the weight reads, without its tables.
size_t weight_bytes(const struct weight *w);
// Bytes of the weight's own numbers, tables included: what memory or a file must hold for it.
size_t weight_stored_bytes(const struct weight *w);

// Elements (row, col) .. (row, col + count) as floats. The reference for every faster way; any range, any format.
void weight_decode(const struct weight *w, int64_t row, int64_t col, int64_t count, float *out);

// Rows [begin, begin + rows) of a weight as a weight. The name, segment and id stay.
struct weight weight_rows(const struct weight *w, int64_t begin, int64_t rows);
