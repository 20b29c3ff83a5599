// Rows of floats become rows of a packed format in a file: by all threads, a bounded piece at a time, in order.
#pragma once

#include "kernels/base.h"
#include "kernels/quant.h"

struct threads;

// Where the rows come from.
struct row_source {
    const char *name;                                           // of the tensor, for messages
    int64_t rows, cols;                                         // cols: a multiple of the format's block
    void (*read)(const void *context, int64_t row, float *out); // out: (cols); called by several threads at once
    const void *context;
};

// What a writer of many tensors carries along. `report`, called after each piece with the numbers written so far and in
// all, ends the work when it is non-zero (the error is the callee's); NULL = nobody asks.
struct encode_work {
    struct threads *threads;
    int (*report)(void *context, int64_t done, int64_t total, struct error *err);
    void *context;
    int64_t done, total;
};

// The format must have an encoder. The same bytes whatever the number of threads. Errors: 65 naming tensor, row and the
// first number that the format cannot hold (NaN, infinity, beyond its range), 71, 74.
int encode_rows(const struct row_source *source, const struct quant_format *format, struct encode_work *work,
                struct file_writer *out, struct error *err);
