// Packed weight formats: how bytes become numbers. One row of the table per format; a packed block is a struct whose
// size is asserted, with its bits drawn beside it in quant*.c. Decoders here are the reference: slow, obvious, exact as
// ggml's. Fast ones live in a backend and are tested against these. Source of every layout: ggml (formats.md 2.3, 2.4).
#pragma once

#include "kernels/error.h"
#include "kernels/tensor.h"

enum quant {
    QUANT_F32,
    QUANT_F16,
    QUANT_BF16,
    QUANT_Q4_0,
    QUANT_Q4_1,
    QUANT_Q5_0,
    QUANT_Q5_1,
    QUANT_Q8_0,
    QUANT_Q1_0,
    QUANT_Q2_0,
    QUANT_MXFP4,
    QUANT_NVFP4,
    QUANT_Q2_K,
    QUANT_Q3_K,
    QUANT_Q4_K,
    QUANT_Q5_K,
    QUANT_Q6_K,
    QUANT_Q8_K,
    QUANT_TQ1_0,
    QUANT_TQ2_0,
    QUANT_IQ1_S,
    QUANT_IQ1_M,
    QUANT_IQ2_XXS,
    QUANT_IQ2_XS,
    QUANT_IQ2_S,
    QUANT_IQ3_XXS,
    QUANT_IQ3_S,
    QUANT_IQ4_NL,
    QUANT_IQ4_XS,
    QUANT_NF4, // from here on: with tables beside their codes, see quant_tables.h
    QUANT_FP4,
    QUANT_INT8,
    QUANT_GPTQ_2,
    QUANT_GPTQ_3,
    QUANT_GPTQ_4,
    QUANT_GPTQ_8,
    QUANT_AWQ,
    QUANT_FP8_E4M3,
    QUANT_FP8_E5M2,
    QUANT_MXFP4_PAIRS,
    QUANT_COUNT,
    QUANT_WITH_TABLES = QUANT_NF4,
};

struct weight;

struct quant_format {
    enum quant id;
    const char *name; // "Q4_1", as ggml spells it
    int ggml_type;    // type id in a GGUF file, -1 when it has none
    int block;        // elements per block; a block never crosses a row
    int block_bytes;
    double bits; // per weight, for people
    // `count` elements (a multiple of `block`) of one row, from its packed bytes. `bytes` may be unaligned.
    void (*decode)(const uint8_t *bytes, float *out, int64_t count);
    // The inverse, NULL where we do not quantise. Follows ggml's quantize_row_*_ref bit for bit.
    void (*encode)(const float *values, uint8_t *out, int64_t count);
    double error_bound; // largest |decoded - original| / max|original| of a block for encode, 0 when exact
    // Formats with tables beside their codes (weights.h) have this instead of decode, and no block sizes: elements of
    // one stored row, any range of columns.
    void (*decode_at)(const struct weight *w, int64_t stored_row, int64_t col, int64_t count, float *out);
};

// The table row; never NULL for a valid id.
const struct quant_format *quant_format(enum quant id);
// By ggml type id or by name; NULL when we do not know it.
const struct quant_format *quant_by_ggml_type(int ggml_type);
const struct quant_format *quant_by_name(const char *name);
// The name of any ggml type id, known to us or not, "type 99" style names excluded: NULL then. For error messages.
const char *quant_ggml_type_name(int ggml_type);
// Elements and bytes per block of any ggml type id; false for unknown and removed ids.
bool quant_ggml_type_size(int ggml_type, int *block, int *block_bytes);
// Bytes of one row of `cols` elements; `cols` must be a multiple of the block.
size_t quant_row_bytes(const struct quant_format *format, int64_t cols);
