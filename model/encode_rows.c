// See encode_rows.h.
#include "model/encode_rows.h"

#include "kernels/cpu/cpu.h"

#include <math.h>

enum { PIECE_BYTES = 4 << 20 }; // of packed rows, at least one row

struct piece {
    const struct row_source *source;
    const struct quant_format *format;
    float *values; // (threads, cols)
    uint8_t *packed;
    size_t row_bytes;
    int64_t first, failed; // rows; failed: the first bad one, -1 = none
};

// The largest magnitude of a number. Scales of blocks are binary16; the smallest multiple of them that a number can be
// stored as is 1 (a minimum), but for Q8_0.
static float largest_of(const struct quant_format *format) {
    if (format->id == QUANT_F32) return 3.4028234e38f;
    if (format->id == QUANT_BF16) return 3.38e38f;
    return format->id == QUANT_Q8_0 ? 127 * 65504.0f : 65504.0f;
}

static int64_t first_unfit(const struct quant_format *format, const float *values, int64_t count) {
    const float largest = largest_of(format);
    for (int64_t i = 0; i < count; i++)
        if (!(fabsf(values[i]) <= largest)) return i; // also NaN
    return -1;
}

static void encode_row(void *context, int64_t i, int thread) {
    struct piece *p = context;
    float *values = p->values + thread * p->source->cols;
    int64_t row = p->first + i;
    p->source->read(p->source->context, row, values);
    if (first_unfit(p->format, values, p->source->cols) < 0) {
        p->format->encode(values, p->packed + (size_t)i * p->row_bytes, p->source->cols);
        return;
    }
    int64_t now = __atomic_load_n(&p->failed, __ATOMIC_ACQUIRE);
    while ((now < 0 || row < now) &&
           !__atomic_compare_exchange_n(&p->failed, &now, row, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
    }
}

static int refuse(const struct piece *p, struct error *err) {
    p->source->read(p->source->context, p->failed, p->values);
    int64_t col = first_unfit(p->format, p->values, p->source->cols);
    return error_set(err, STATUS_DATA, "%s: row %lld, column %lld is %g, which %s cannot hold%s", p->source->name,
                     (long long)p->failed, (long long)col, (double)p->values[col], p->format->name,
                     isfinite(p->values[col]) ? "; bf16 and f32 can" : "");
}

int encode_rows(const struct row_source *source, const struct quant_format *format, struct encode_work *work,
                struct file_writer *out, struct error *err) {
    struct piece p = {.source = source, .format = format, .row_bytes = quant_row_bytes(format, source->cols)};
    int64_t most = PIECE_BYTES / (int64_t)p.row_bytes + 1;
    if (most > source->rows) most = source->rows;
    p.values = mem_alloc((size_t)threads_count(work->threads) * (size_t)source->cols * sizeof *p.values);
    p.packed = mem_alloc((size_t)most * p.row_bytes);
    int status = p.values && p.packed ? 0 : error_memory(err, "rows of a weight", (size_t)most * p.row_bytes);
    for (; p.first < source->rows && status == 0; p.first += most) {
        int64_t rows = source->rows - p.first < most ? source->rows - p.first : most;
        p.failed = -1;
        threads_run(work->threads, rows, encode_row, &p);
        status = p.failed >= 0 ? refuse(&p, err) : file_write(out, p.packed, (size_t)rows * p.row_bytes, err);
        work->done += rows * source->cols;
        if (status == 0 && work->report) status = work->report(work->context, work->done, work->total, err);
    }
    mem_free(p.values);
    mem_free(p.packed);
    return status ? -1 : 0;
}
