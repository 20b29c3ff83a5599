// Frozen weights. Ops take `const struct weight *`, never a pointer to bytes: where the bytes are (file mapping,
// streamed copy, device memory, decoded copy) is the backend's business.
#pragma once

#include "kernels/quant.h"

#include <stdint.h>

// Weights are acquired and released by segment, in the order a step walks through them. Norms and biases are small and
// needed beside any segment (a norm is recomputed while its neighbour runs): they are resident.
enum { SEGMENT_RESIDENT = 0, SEGMENT_EMBED = 1, SEGMENT_LAYER0 = 2 }; // layer l = SEGMENT_LAYER0 + l; the head is last

struct weight {
    const struct quant_format *format;
    int64_t rows, cols;  // (out, in): y[o] = sum_i W[o,i] x[i]; rows are contiguous
    const uint8_t *data; // host bytes, rows * quant_row_bytes; borrowed from the model's file mapping
    const char *name;    // as in the file, for messages; borrowed
    int segment;
    uint32_t id; // 0 .. n-1 within a model
};

static inline size_t weight_bytes(const struct weight *w) {
    return (size_t)w->rows * quant_row_bytes(w->format, w->cols);
}
