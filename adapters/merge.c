// See merge.h.
#include "adapters/merge.h"

#include "adapters/merge_rows.h"
#include "adapters/output.h"
#include "kernels/cpu/cpu.h"
#include "model/encode_rows.h"
#include "model/gguf_write.h"

#include <string.h>

struct merged { // one tensor of the file: parts [first, last) of an adapted module, of all its experts; the base is a
                // GGUF, whose parts are its tensors
    const struct adapter *adapter;
    const struct adapter_module *m;
    const struct quant_format *format;
    const char *name;
    int first, last;
    struct encode_work *work;
};

static int64_t tensor_rows_of(const struct merged *merged) { // of one expert
    const struct module_part *parts = merged->m->module->parts;
    int64_t rows = 0;
    for (int i = merged->first; i < merged->last; i++) rows += parts[i].rows;
    return rows;
}

// One row of the file's tensor, merged.
static void read_row(const void *context, int64_t row, float *out) {
    const struct merged *merged = context;
    const struct module *module = merged->m->module;
    int64_t rows = tensor_rows_of(merged), expert = row / rows;
    int i = merged->first;
    for (row %= rows; row >= module->parts[i].rows; i++) row -= module->parts[i].rows;
    weight_decode(&module->parts[i].w[expert], row, 0, module->in, out);
    merge_row(merged->adapter, merged->m, &module->parts[i], expert, row, out);
}

static int write_rows(void *context, struct file_writer *out, struct error *err) {
    const struct merged *merged = context;
    const struct module *module = merged->m->module;
    struct row_source source = {.name = merged->name,
                                .rows = tensor_rows_of(merged) * module->experts,
                                .cols = module->in,
                                .read = read_row,
                                .context = merged};
    return encode_rows(&source, merged->format, merged->work, out, err);
}

static bool find(const struct adapter *adapter, const char *tensor, struct merged *out) {
    for (int i = 0; i < adapter->n_modules; i++) {
        const struct module *m = adapter->modules[i].module;
        int first = 0, last;
        while (first < m->n_tensors && strcmp(m->tensors[first].name, tensor) != 0) first++;
        for (last = first; last < m->n_tensors && strcmp(m->tensors[last].name, tensor) == 0;) last++;
        if (first == last) continue;
        *out = (struct merged){
            .adapter = adapter, .m = &adapter->modules[i], .name = tensor, .first = first, .last = last};
        return true;
    }
    return false;
}

// LLAMA_FTYPE of llama.h.
static uint32_t file_type(enum quant type) {
    return type == QUANT_F32 ? 0 : type == QUANT_F16 ? 1 : type == QUANT_Q8_0 ? 7 : 32;
}

// Where embedding and head are one tensor, a change of one of them cannot be merged; token rows change both.
int merge_check(const struct adapter *adapter, struct error *err) {
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

static bool is_own_key(const char *key) { // of how the base was packed, cut and aligned
    return strcmp(key, "general.alignment") == 0 || strcmp(key, "general.file_type") == 0 ||
           strncmp(key, "split.", 6) == 0;
}

static int plan_tensor(const struct adapter *adapter, const struct gguf_tensor *t, const struct quant_format *format,
                       struct encode_work *work, struct gguf_writer *w, struct pool *pool, int *found,
                       struct error *err) {
    struct merged *merged = pool_alloc(pool, sizeof *merged);
    if (!merged) return error_memory(err, "the list of merged weights", sizeof *merged);
    if (!find(adapter, t->name, merged)) {
        gguf_put_tensor(w, t->name, t->ggml_type, t->n_dims, t->ne, t->data);
        return 0;
    }
    if (t->ne[0] % format->block != 0)
        return error_set(err, STATUS_DATA, "%s: rows of %lld cannot be stored as %s; use --type f16", t->name,
                         (long long)t->ne[0], format->name);
    if (merged->m->module->parts[merged->first].w->turned_rows)
        return error_set(err, STATUS_USAGE,
                         "%s: '%s' stores the rows of %s turned: merging into it is not in this version",
                         adapter->model->path, t->name, merged->m->module->hf_name);
    merged->format = format;
    merged->work = work;
    gguf_put_tensor_later(w, t->name, format->ggml_type, t->n_dims, t->ne, write_rows, merged);
    *found += merged->last - merged->first;
    return 0;
}

// Collects everything the file will hold.
static int plan_file(const struct adapter *adapter, const struct quant_format *format, struct encode_work *work,
                     struct gguf_writer *w, struct pool *pool, struct error *err) {
    const struct base *base = adapter->model->base;
    int found = 0, wanted = 0;
    for (size_t i = 0; i < base->parts->n_kv; i++)
        if (!is_own_key(base->parts->kv[i].key)) gguf_put_kv(w, &base->parts->kv[i]);
    gguf_put_u32(w, "general.file_type", file_type(format->id)); // what most of the weights are now
    for (int p = 0; p < base->n_parts; p++) {
        for (size_t i = 0; i < base->parts[p].n_tensors; i++)
            if (plan_tensor(adapter, &base->parts[p].tensors[i], format, work, w, pool, &found, err)) return -1;
    }
    for (int i = 0; i < adapter->n_modules; i++) wanted += adapter->modules[i].module->n_parts;
    if (found == wanted) return 0;
    return error_set(err, STATUS_INTERNAL, "%s: %d of %d adapted linears are tensors of the file", adapter->model->path,
                     found, wanted);
}

static int write_file(const char *path, struct gguf_writer *w, struct error *err) {
    struct output out;
    struct gguf again;
    if (output_open(path, &out, err)) return -1;
    int status = output_room(&out, gguf_write_bytes(w), err);
    if (status == 0) status = gguf_write(w, &out.file, err);
    if (status == 0) status = output_close(&out, err);
    if (status == 0 && (status = gguf_open(out.temporary, &again, err)) == 0) gguf_close(&again);
    if (status == 0) return output_commit(&out, err);
    output_abandon(&out);
    return -1;
}

int merge_write(const char *path, const struct adapter *adapter, enum quant type, int threads, struct error *err) {
    const struct quant_format *format = quant_format(type);
    if (type != QUANT_F16 && type != QUANT_F32 && type != QUANT_BF16 && type != QUANT_Q8_0)
        return error_set(err, STATUS_USAGE, "merged weights can be f16, f32, bf16 or q8_0, not %s", format->name);
    if (file_exists(path))
        return error_set(err, STATUS_CANTCREATE, "%s: exists; remove it or choose another name", path);
    if (adapter->model->base->kind != BASE_GGUF)
        return error_set(err, STATUS_USAGE, "%s: is no GGUF: it is merged into a folder", adapter->model->path);
    if (merge_check(adapter, err)) return -1;
    struct gguf_writer w = {0};
    struct pool pool = {0};
    struct encode_work work = {.threads = threads_open(threads, err)};
    int status = work.threads ? plan_file(adapter, format, &work, &w, &pool, err) : -1;
    if (status == 0) status = write_file(path, &w, err);
    threads_close(work.threads);
    gguf_writer_free(&w);
    pool_free(&pool);
    return status;
}
