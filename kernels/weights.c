// See weights.h.
#include "kernels/weights.h"

#include <assert.h>
#include <string.h>

enum { LARGEST_BLOCK = 256 };

size_t weight_bytes(const struct weight *w) {
    if (w->tables) return w->tables->code_bytes;
    int64_t rows = w->transposed ? w->cols : w->rows, cols = w->transposed ? w->rows : w->cols;
    if (w->turned_rows) rows = w->rows / w->turned_rows * w->cols, cols = w->turned_rows;
    return rows == 0 ? 0 : (size_t)(rows - 1) * weight_stride(w) + quant_row_bytes(w->format, cols);
}

size_t weight_stored_bytes(const struct weight *w) {
    if (w->turned_rows) return weight_bytes(w);
    if (!w->tables) return (size_t)w->rows * quant_row_bytes(w->format, w->cols);
    size_t bytes = weight_bytes(w);
    for (int i = 0; i < TABLES; i++) bytes += w->tables->table[i].bytes;
    // A view's share of the stored matrix.
    return (size_t)((double)bytes * (double)w->rows / (double)(w->tables->rows * w->tables->row_step));
}

void weight_decode(const struct weight *w, int64_t row, int64_t col, int64_t count, float *out) {
    const struct quant_format *f = w->format;
    assert(0 <= row && row < w->rows && 0 <= col && count >= 0 && col + count <= w->cols);
    if (w->tables) {
        f->decode_at(w, row + w->first_row, col, count, out);
        return;
    }
    size_t stride = weight_stride(w);
    if (w->turned_rows) {
        struct weight block = weight_turned_block(w, row / w->turned_rows);
        for (int64_t i = 0; i < count; i++) weight_decode(&block, col + i, row % w->turned_rows, 1, out + i);
        return;
    }
    if (w->transposed) {
        const uint8_t *at = w->data + (size_t)col * stride + (size_t)row * (size_t)f->block_bytes;
        for (int64_t i = 0; i < count; i++, at += stride) f->decode(at, out + i, 1);
        return;
    }
    const uint8_t *at = w->data + (size_t)row * stride + (size_t)(col / f->block) * (size_t)f->block_bytes;
    float block[LARGEST_BLOCK];
    while (count > 0) {
        int64_t skip = col % f->block, n = f->block - skip < count ? f->block - skip : count;
        if (skip == 0 && count >= f->block) { // whole blocks at once
            n = count / f->block * f->block;
            f->decode(at, out, n);
        } else {
            f->decode(at, block, f->block);
            memcpy(out, block + skip, (size_t)n * sizeof *out);
        }
        at += (size_t)((skip + n) / f->block) * (size_t)f->block_bytes;
        out += n, col += n, count -= n;
    }
}

struct weight weight_turned_block(const struct weight *w, int64_t i) {
    struct weight v = *w;
    assert(w->transposed && w->turned_rows > 0 && 0 <= i && (i + 1) * w->turned_rows <= w->rows);
    v.transposed = false, v.turned_rows = 0;
    v.stride = weight_stride(w);
    v.rows = w->cols, v.cols = w->turned_rows;
    v.data += (size_t)(i * w->cols) * v.stride;
    return v;
}

struct weight weight_rows(const struct weight *w, int64_t begin, int64_t rows) {
    struct weight v = *w;
    assert(0 <= begin && rows >= 0 && begin + rows <= w->rows);
    v.rows = rows;
    v.stride = w->tables ? w->stride : weight_stride(w);
    if (!w->data) // of a plan: nothing lies anywhere
        return v;
    if (w->turned_rows) {
        assert(begin % w->turned_rows == 0 && rows % w->turned_rows == 0);
        if (w->data) v.data += (size_t)(begin / w->turned_rows * w->cols) * v.stride;
        return v;
    }
    if (w->tables)
        v.first_row += begin;
    else if (w->data) // none where only shapes are known
        v.data += (size_t)begin * (w->transposed ? (size_t)w->format->block_bytes : v.stride);
    return v;
}
