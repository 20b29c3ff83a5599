// See merge.h.
#include "adapters/merge.h"

#include "adapters/output.h"
#include "model/gguf_write.h"

#include <math.h>
#include <string.h>

struct merged { // one tensor of the file: parts [first, last) of an adapted module, of all its experts; the base is a
                // GGUF, whose parts are its tensors
    const struct adapter_module *m;
    const struct quant_format *format;
    const char *name;
    int first, last;
    float scale;
};

static int64_t tensor_rows_of(const struct merged *merged) { // of one expert
    const struct module_part *parts = merged->m->module->parts;
    int64_t rows = 0;
    for (int i = merged->first; i < merged->last; i++) rows += parts[i].rows;
    return rows;
}

// One row of the base plus scale * (row of B) A.
static void merge_row(const struct merged *merged, int64_t row, float *out) {
    const struct adapter_module *m = merged->m;
    const struct module *module = m->module;
    int64_t rows = tensor_rows_of(merged), expert = row / rows, r = m->r, i = merged->first;
    for (row %= rows; row >= module->parts[i].rows; i++) row -= module->parts[i].rows;
    const struct module_part *part = &module->parts[i];
    if (m->full) {
        memcpy(out, m->full + (part->first_row + row) * module->in, (size_t)module->in * sizeof *out);
        return;
    }
    weight_decode(&part->w[expert], row, 0, module->in, out);
    for (int k = 0; k < m->n_rows; k++) {
        if (m->row_ids[k] == row) memcpy(out, m->rows + k * module->in, (size_t)module->in * sizeof *out);
    }
    if (m->r == 0) return;
    const float *b = m->b + (module->experts * part->first_row + expert * part->rows + row) * r;
    const float *a = m->a + expert * r * module->in;
    for (int64_t k = 0; k < r; k++) {
        float factor = merged->scale * b[k];
        for (int64_t j = 0; j < module->in; j++) out[j] += factor * a[k * module->in + j];
    }
    if (!m->magnitude) return;
    double square = 0;
    for (int64_t j = 0; j < module->in; j++) square += (double)out[j] * (double)out[j];
    float factor = square > 0 ? (float)((double)m->magnitude[part->first_row + row] / sqrt(square)) : 0;
    for (int64_t j = 0; j < module->in; j++) out[j] *= factor;
}

static bool fits(const struct quant_format *format, const float *values, int64_t count) {
    float largest = format->id == QUANT_F16 ? 65504 : format->id == QUANT_Q8_0 ? 127 * 65504.0f : 3.38e38f;
    for (int64_t i = 0; i < count; i++)
        if (!(fabsf(values[i]) <= largest)) return false; // also NaN
    return true;
}

static int write_rows(void *context, struct file_writer *out, struct error *err) {
    const struct merged *merged = context;
    int64_t cols = merged->m->module->in, rows = tensor_rows_of(merged) * merged->m->module->experts;
    size_t row_bytes = quant_row_bytes(merged->format, cols);
    float *values = mem_alloc((size_t)cols * sizeof *values);
    uint8_t *packed = mem_alloc(row_bytes);
    int status = values && packed ? 0 : error_memory(err, "a row of a merged weight", row_bytes);
    for (int64_t row = 0; row < rows && status == 0; row++) {
        merge_row(merged, row, values);
        if (!fits(merged->format, values, cols)) {
            status =
                error_set(err, STATUS_DATA, "%s: row %lld of the merged weight does not fit %s; use --type bf16 or f32",
                          merged->name, (long long)row, merged->format->name);
            break;
        }
        merged->format->encode(values, packed, cols);
        status = file_write(out, packed, row_bytes, err);
    }
    mem_free(values);
    mem_free(packed);
    return status;
}

static bool find(const struct adapter *adapter, const char *tensor, struct merged *out) {
    for (int i = 0; i < adapter->n_modules; i++) {
        const struct module *m = adapter->modules[i].module;
        int first = 0, last;
        while (first < m->n_tensors && strcmp(m->tensors[first].name, tensor) != 0) first++;
        for (last = first; last < m->n_tensors && strcmp(m->tensors[last].name, tensor) == 0;) last++;
        if (first == last) continue;
        *out = (struct merged){.m = &adapter->modules[i], .name = tensor, .first = first, .last = last};
        return true;
    }
    return false;
}

// LLAMA_FTYPE of llama.h.
static uint32_t file_type(enum quant type) {
    return type == QUANT_F32 ? 0 : type == QUANT_F16 ? 1 : type == QUANT_Q8_0 ? 7 : 32;
}

// Where embedding and head are one tensor, a change of one of them cannot be merged; token rows change both.
static int check_parts(const struct adapter *adapter, struct error *err) {
    for (int i = 0; i < adapter->n_modules; i++) {
        const struct adapter_module *m = &adapter->modules[i];
        if (m->bias)
            return error_set(err, STATUS_DATA, "%s: a trained bias cannot be merged in this version",
                             m->module->hf_name);
        if (m->module->layer >= 0 || !adapter->model->arch.tied || (m->rows && !m->r && !m->full)) continue;
        return error_set(err, STATUS_DATA,
                         "%s: embedding and head are one matrix in this base, and the adapter changes only its use as "
                         "one of them; it cannot be merged",
                         m->module->hf_name);
    }
    return 0;
}

// Collects everything the file will hold; *bytes is about its size.
static int plan_file(const struct adapter *adapter, const struct quant_format *format, struct gguf_writer *w,
                     struct pool *pool, uint64_t *bytes, struct error *err) {
    const struct gguf *base = adapter->model->base->parts;
    int found = 0, wanted = 0;
    *bytes = base->data_start;
    for (size_t i = 0; i < base->n_kv; i++)
        if (strcmp(base->kv[i].key, "general.alignment") != 0 && strcmp(base->kv[i].key, "general.file_type") != 0)
            gguf_put_kv(w, &base->kv[i]);
    gguf_put_u32(w, "general.file_type", file_type(format->id)); // what most of the weights are now
    for (size_t i = 0; i < base->n_tensors; i++) {
        const struct gguf_tensor *t = &base->tensors[i];
        struct merged *merged = pool_alloc(pool, sizeof *merged);
        if (!merged) return error_memory(err, "the list of merged weights", sizeof *merged);
        if (!find(adapter, t->name, merged)) {
            gguf_put_tensor(w, t->name, t->ggml_type, t->n_dims, t->ne, t->data);
            *bytes += t->bytes + 32;
            continue;
        }
        if (t->ne[0] % format->block != 0)
            return error_set(err, STATUS_DATA, "%s: rows of %lld cannot be stored as %s; use --type f16", t->name,
                             (long long)t->ne[0], format->name);
        if (merged->m->module->parts[merged->first].w->turned_rows)
            return error_set(err, STATUS_USAGE,
                             "%s: '%s' stores the rows of %s turned: merging into it is not in this version",
                             adapter->model->path, t->name, merged->m->module->hf_name);
        merged->format = format;
        merged->scale = merged->m->r ? adapter_scale(adapter, merged->m) : 0;
        gguf_put_tensor_later(w, t->name, format->ggml_type, t->n_dims, t->ne, write_rows, merged);
        *bytes += (uint64_t)(t->ne[1] * t->ne[2]) * quant_row_bytes(format, t->ne[0]) + 32;
        found += merged->last - merged->first;
    }
    for (int i = 0; i < adapter->n_modules; i++) wanted += adapter->modules[i].module->n_parts;
    if (found == wanted) return 0;
    return error_set(err, STATUS_INTERNAL, "%s: %d of %d adapted linears are tensors of the file", adapter->model->path,
                     found, wanted);
}

static int write_file(const char *path, struct gguf_writer *w, uint64_t bytes, struct error *err) {
    struct output out;
    struct gguf again;
    if (output_open(path, &out, err)) return -1;
    int status = output_room(&out, bytes, err);
    if (status == 0) status = gguf_write(w, &out.file, err);
    if (status == 0) status = output_close(&out, err);
    if (status == 0 && (status = gguf_open(out.temporary, &again, err)) == 0) gguf_close(&again);
    if (status == 0) return output_commit(&out, err);
    output_abandon(&out);
    return -1;
}

int merge_write(const char *path, const struct adapter *adapter, enum quant type, struct error *err) {
    const struct quant_format *format = quant_format(type);
    if (type != QUANT_F16 && type != QUANT_F32 && type != QUANT_BF16 && type != QUANT_Q8_0)
        return error_set(err, STATUS_USAGE, "merged weights can be f16, f32, bf16 or q8_0, not %s", format->name);
    if (file_exists(path))
        return error_set(err, STATUS_CANTCREATE, "%s: exists; remove it or choose another name", path);
    if (adapter->model->base->kind != BASE_GGUF || adapter->model->base->n_parts != 1)
        return error_set(err, STATUS_USAGE, "%s: merging is in this version for a base of one GGUF file",
                         adapter->model->path);
    if (check_parts(adapter, err)) return -1;
    struct gguf_writer w = {0};
    struct pool pool = {0};
    uint64_t bytes;
    int status = plan_file(adapter, format, &w, &pool, &bytes, err);
    if (status == 0) status = write_file(path, &w, bytes, err);
    gguf_writer_free(&w);
    pool_free(&pool);
    return status;
}
