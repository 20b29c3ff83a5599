// See merge_rows.h.
#include "adapters/merge_rows.h"

#include <assert.h>
#include <math.h>
#include <string.h>

static const float *b_row(const struct adapter_module *m, const struct module_part *part, int64_t expert, int64_t row) {
    return m->b + (m->module->experts * part->first_row + expert * part->rows + row) * m->r;
}

void merge_row(const struct adapter *adapter, const struct adapter_module *m, const struct module_part *part,
               int64_t expert, int64_t row, float *x) {
    int64_t in = m->module->in, r = m->r;
    if (m->full) {
        memcpy(x, m->full + (part->first_row + row) * in, (size_t)in * sizeof *x);
        return;
    }
    for (int k = 0; k < m->n_rows; k++) {
        if (m->row_ids[k] == row) memcpy(x, m->rows + k * in, (size_t)in * sizeof *x);
    }
    if (r == 0) return;
    const float *b = b_row(m, part, expert, row), *a = m->a + expert * r * in;
    const float scale = adapter_scale(adapter, m);
    for (int64_t k = 0; k < r; k++) {
        float factor = scale * b[k];
        for (int64_t j = 0; j < in; j++) x[j] += factor * a[k * in + j];
    }
    if (!m->magnitude) return;
    double square = 0;
    for (int64_t j = 0; j < in; j++) square += (double)x[j] * (double)x[j];
    float factor = square > 0 ? (float)((double)m->magnitude[part->first_row + row] / sqrt(square)) : 0;
    for (int64_t j = 0; j < in; j++) x[j] *= factor;
}

void merge_column(const struct adapter *adapter, const struct adapter_module *m, const struct module_part *part,
                  int64_t expert, int64_t col, float *x) {
    assert(m->r > 0 && !m->magnitude && !m->full && !m->rows);
    const float *a = m->a + expert * m->r * m->module->in + col;
    const float scale = adapter_scale(adapter, m);
    for (int64_t o = 0; o < part->rows; o++) {
        const float *b = b_row(m, part, expert, o);
        for (int64_t k = 0; k < m->r; k++) x[o] += scale * b[k] * a[k * m->module->in];
    }
}
