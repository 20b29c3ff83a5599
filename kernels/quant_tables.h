// Formats with tables beside their codes, as checkpoints of bitsandbytes, GPTQ, AWQ, FP8 and MXFP4 hold them
// (formats.md 3, 4, 5). Each NAME_weight() takes the raw arrays of one linear, checks every size against the shape, and
// makes a weight of them; nothing is copied. The layouts are drawn in quant_tables.c, whose decoders are the reference.
//
// The caller keeps the arrays, the name and `tables` for as long as the weight lives, and sets segment and id. Errors:
// 65, naming the weight and the array at fault; out and tables are then unspecified.
#pragma once

#include "kernels/weights.h"

struct table_bytes {
    const uint8_t *data; // unaligned; NULL = absent
    size_t bytes;
};

// bitsandbytes 4 bit: blocks over the flat matrix. absmax holds f32, or bytes if the nested tables are present.
struct nf4_parts {
    const char *name;
    bool fp4;
    int64_t rows, cols;  // `shape` of the quant_state
    int64_t blocksize;   // 32, 64 .. 4096
    enum number rounded; // `dtype` of the quant_state
    struct table_bytes codes, absmax, quant_map;
    struct table_bytes nested_absmax, nested_quant_map;
    int64_t nested_blocksize;
    float nested_offset;
};
int nf4_weight(struct weight *out, struct weight_tables *tables, const struct nf4_parts *parts, struct error *err);

// bitsandbytes LLM.int8: codes (rows, cols), a row's largest magnitude in scb (rows).
struct int8_parts {
    const char *name;
    int64_t rows, cols;
    enum number rounded;
    struct table_bytes codes, scb;
};
int int8_weight(struct weight *out, struct weight_tables *tables, const struct int8_parts *parts, struct error *err);

// GPTQ: qweight (cols * bits / 32, rows), qzeros (groups, rows * bits / 32), scales (groups, rows) with groups =
// ceil(cols / group_size); g_idx (cols) where columns were reordered.
struct gptq_parts {
    const char *name;
    int64_t rows, cols;
    int bits;               // 2, 3, 4 or 8
    int64_t group_size;     // -1 = cols
    bool v2;                // checkpoint_format "gptq_v2": zero points are stored as they are
    enum number scale_type; // f16, bf16 or f32
    enum number rounded;
    struct table_bytes qweight, qzeros, scales, g_idx;
};
int gptq_weight(struct weight *out, struct weight_tables *tables, const struct gptq_parts *parts, struct error *err);

// AWQ, version "gemm", 4 bits: qweight (cols, rows / 8), qzeros (cols / group_size, rows / 8), scales (.., rows).
struct awq_parts {
    const char *name;
    int64_t rows, cols;
    int64_t group_size; // -1 = cols
    enum number scale_type;
    enum number rounded;
    struct table_bytes qweight, qzeros, scales;
};
int awq_weight(struct weight *out, struct weight_tables *tables, const struct awq_parts *parts, struct error *err);

// FP8: codes (rows, cols) with a grid of factors: (ceil(rows / block_rows), ceil(cols / block_cols)). A factor per row
// is the grid (rows, 1), a scalar the grid (1, 1), none: scales absent.
struct fp8_parts {
    const char *name;
    bool e5m2; // else e4m3fn
    int64_t rows, cols;
    int64_t block_rows, block_cols; // 0 = equal blocks, as many as the grid has
    int64_t scale_rows, scale_cols; // the grid
    enum number scale_type;         // any
    enum number rounded;
    struct table_bytes codes, scales;
};
int fp8_weight(struct weight *out, struct weight_tables *tables, const struct fp8_parts *parts, struct error *err);

// MXFP4 in consecutive pairs: codes (rows, cols / 2), scales (rows, cols / 32) of e8m0. gpt-oss's experts, and packed
// FP4 in an I8 tensor with scale blocks of (1, 32).
struct mxfp4_parts {
    const char *name;
    int64_t rows, cols;
    int64_t row_step; // 2 where the rows of two matrices alternate (gate and up of gpt-oss), else 1; the arrays begin
                      // with the first row and may end with the last one
    enum number rounded;
    struct table_bytes codes, scales;
};
int mxfp4_weight(struct weight *out, struct weight_tables *tables, const struct mxfp4_parts *parts, struct error *err);

// --- private to quant.c, quant_tables.c and what tests them
void nf4_decode_at(const struct weight *w, int64_t stored_row, int64_t col, int64_t count, float *out);
void int8_decode_at(const struct weight *w, int64_t stored_row, int64_t col, int64_t count, float *out);
void gptq_decode_at(const struct weight *w, int64_t stored_row, int64_t col, int64_t count, float *out);
void awq_decode_at(const struct weight *w, int64_t stored_row, int64_t col, int64_t count, float *out);
void fp8_decode_at(const struct weight *w, int64_t stored_row, int64_t col, int64_t count, float *out);
void mxfp4_decode_at(const struct weight *w, int64_t stored_row, int64_t col, int64_t count, float *out);
