// See merge.h: the merged folder. Names, types and shapes stay, so the headers of the shards and their index do too;
// only the bytes of adapted tensors are made anew.
#include "adapters/merge.h"
#include "adapters/merge_rows.h"
#include "kernels/cpu/cpu.h"
#include "model/companions.h"
#include "model/encode_rows.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// A part of an adapted module, of one expert, and where it lies in its tensor, whose rows are those of the file.
struct piece {
    const char *tensor;
    const struct adapter_module *m;
    const struct module_part *part;
    int64_t expert, row, col; // its first row and column there
    bool turned;              // the part's rows are columns there
};

struct merging {
    const struct adapter *adapter;
    struct piece *pieces; // by tensor
    size_t n;
    struct encode_work work;
    const char *folder; // that is written
    struct pool pool;
};

static int by_tensor(const void *a, const void *b) {
    return strcmp(((const struct piece *)a)->tensor, ((const struct piece *)b)->tensor);
}

static int place(struct merging *g, const struct adapter_module *m, const struct module_part *part, int64_t expert,
                 struct error *err) {
    const struct weight *w = &part->w[expert];
    struct base_tensor t;
    const struct base *base = g->adapter->model->base;
    bool plain = w->format->id == QUANT_F32 || w->format->id == QUANT_F16 || w->format->id == QUANT_BF16;
    if (!plain)
        return error_set(err, STATUS_DATA,
                         "%s: %s is packed (%s), and merging into a packed folder is not in this version; the adapter "
                         "itself loads beside such a base, or merge it into the base as it was before packing",
                         g->adapter->model->path, m->module->hf_name, w->format->name);
    if (!base_find(base, w->name, &t) || (w->transposed && (m->magnitude || m->full || m->rows)))
        return error_set(err, STATUS_INTERNAL, "%s: no tensor '%s' to merge into", base->name, w->name);
    int64_t at = (w->data - t.data) / w->format->block_bytes, cols = t.shape[t.n_dims - 1];
    g->pieces[g->n++] = (struct piece){.tensor = w->name,
                                       .m = m,
                                       .part = part,
                                       .expert = expert,
                                       .row = at / cols,
                                       .col = at % cols,
                                       .turned = w->transposed};
    return 0;
}

static int place_all(struct merging *g, struct error *err) {
    const struct adapter *a = g->adapter;
    uint64_t most = 1;
    for (int i = 0; i < a->n_modules; i++)
        most += (uint64_t)a->modules[i].module->experts * (uint64_t)a->modules[i].module->n_parts;
    g->pieces = pool_array(&g->pool, most, sizeof *g->pieces);
    if (!g->pieces) return error_memory(err, "the list of merged weights", most * sizeof *g->pieces);
    for (int i = 0; i < a->n_modules; i++) {
        const struct module *m = a->modules[i].module;
        if (m->form == MODULE_HEAD && a->model->arch.tied) continue; // token rows: the embedding has them, too
        for (int p = 0; p < m->n_parts; p++) {
            for (int e = 0; e < m->experts; e++)
                if (place(g, &a->modules[i], &m->parts[p], e, err)) return -1;
        }
    }
    qsort(g->pieces, g->n, sizeof *g->pieces, by_tensor);
    return 0;
}

// --- one tensor

struct tensor_rows {
    const struct adapter *adapter;
    const struct safetensors_entry *t;
    const struct quant_format *format;
    int64_t cols;
    const struct piece *first, *end; // that lie in it
};

static void read_row(const void *context, int64_t row, float *out) {
    const struct tensor_rows *s = context;
    s->format->decode(s->t->data + (size_t)row * quant_row_bytes(s->format, s->cols), out, s->cols);
    for (const struct piece *p = s->first; p < s->end; p++) {
        int64_t at = row - p->row;
        if (at < 0 || at >= (p->turned ? p->m->module->in : p->part->rows)) continue;
        if (p->turned)
            merge_column(s->adapter, p->m, p->part, p->expert, at, out + p->col);
        else
            merge_row(s->adapter, p->m, p->part, p->expert, at, out);
    }
}

static const struct quant_format *format_of(enum safetensors_dtype dtype) {
    return quant_format(dtype == ST_F32 ? QUANT_F32 : dtype == ST_F16 ? QUANT_F16 : QUANT_BF16);
}

static int write_tensor(struct merging *g, const struct safetensors_entry *t, struct file_writer *out,
                        struct error *err) {
    struct piece key = {.tensor = t->name};
    const struct piece *found = bsearch(&key, g->pieces, g->n, sizeof key, by_tensor), *end = found;
    if (!found) return file_write(out, t->data, (size_t)t->bytes, err);
    while (found > g->pieces && strcmp(found[-1].tensor, t->name) == 0) found--;
    while (end < g->pieces + g->n && strcmp(end->tensor, t->name) == 0) end++;
    struct tensor_rows rows = {.adapter = g->adapter,
                               .t = t,
                               .format = format_of(t->dtype),
                               .cols = t->shape[t->n_dims - 1],
                               .first = found,
                               .end = end};
    struct row_source source = {.name = t->name, .cols = rows.cols, .read = read_row, .context = &rows};
    source.rows = (int64_t)(t->bytes / quant_row_bytes(rows.format, rows.cols));
    return encode_rows(&source, rows.format, &g->work, out, err);
}

// --- files

static int write_shard(struct merging *g, const struct safetensors *shard, struct error *err) {
    const char *slash = strrchr(shard->file.path, '/'), *name = slash ? slash + 1 : shard->file.path;
    char *path = path_join(g->folder, name);
    struct file_writer out;
    if (!path) return error_memory(err, "a file name", strlen(name));
    int status = file_create(path, &out, err);
    mem_free(path);
    if (status) return -1;
    status = file_write(&out, shard->file.data, (size_t)shard->data_start, err);
    for (size_t i = 0; i < shard->n_entries && status == 0; i++)
        status = write_tensor(g, &shard->entries[i], &out, err);
    if (status == 0) return file_close(&out, err);
    file_abandon(&out);
    return -1;
}

static int copy_index(const struct merging *g, struct error *err) {
    static const char name[] = "model.safetensors.index.json";
    const struct base *base = g->adapter->model->base;
    char *from = path_join(base->folder, name), *to = path_join(g->folder, name);
    struct text bytes = {0};
    int status = from && to ? 0 : error_memory(err, "a file name", sizeof name);
    if (status == 0 && file_exists(from))
        status = file_read(from, 256 << 20, &bytes, err) || file_replace(to, bytes.data, bytes.length, err);
    text_free(&bytes);
    mem_free(from), mem_free(to);
    return status ? -1 : 0;
}

static int write_folder(struct merging *g, struct error *err) {
    const struct base *base = g->adapter->model->base;
    struct model again;
    uint64_t available;
    if (file_make_folders(g->folder, err) || file_free_bytes(g->folder, &available, err)) return -1;
    if (available < base->bytes)
        return error_set(err, STATUS_IO, "%s: needs %.1f MiB, %.1f MiB are free; nothing was written", g->folder,
                         (double)base->bytes / 1048576, (double)available / 1048576);
    for (int i = 0; i < base->n_shards; i++) {
        if (write_shard(g, &base->shards[i], err)) return -1;
    }
    if (copy_index(g, err) || companions_copy(base, g->folder, true, err) || file_sync_folder(g->folder, err) ||
        model_open(g->folder, NULL, &again, err)) // what was written is read back
        return -1;
    model_close(&again);
    return 0;
}

int merge_folder_write(const char *path, const struct adapter *adapter, int threads, struct error *err) {
    struct merging g = {.adapter = adapter};
    if (file_exists(path) || file_is_folder(path))
        return error_set(err, STATUS_CANTCREATE, "%s: exists; remove it or choose another name", path);
    if (adapter->model->base->kind != BASE_SAFETENSORS)
        return error_set(err, STATUS_USAGE, "%s: is no safetensors base: it is merged into a file",
                         adapter->model->path);
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/') length--;
    g.folder = pool_printf(&g.pool, "%.*s.%ld.tmp", (int)length, path, (long)getpid());
    g.work.threads = threads_open(threads, err);
    int status = !g.folder ? error_memory(err, "a path", length) : g.work.threads ? 0 : -1;
    if (status == 0) status = merge_check(adapter, err) || place_all(&g, err) ? -1 : 0;
    if (status == 0) status = file_remove_tree(g.folder, err); // a leftover of a killed process with our pid
    if (status == 0 && (write_folder(&g, err) || file_rename(g.folder, path, err))) {
        file_remove_tree(g.folder, NULL);
        status = -1;
    }
    threads_close(g.work.threads);
    pool_free(&g.pool);
    return status;
}
