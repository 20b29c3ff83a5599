// See gguf_export.h: what both kinds of base share, and the one that is a GGUF already.
#include "model/gguf_export.h"

#include <string.h>

enum { QUANTIZATION_VERSION = 2 }; // GGML_QNT_VERSION

static int no_memory(struct error *err) {
    return error_memory(err, "the list of tensors", 0);
}

// --- one matrix

struct matrix_job {
    struct row_source rows;
    const struct quant_format *format;
    struct encode_work *work;
};

static int fill(void *context, struct file_writer *out, struct error *err) {
    const struct matrix_job *job = context;
    return encode_rows(&job->rows, job->format, job->work, out, err);
}

static int matrix_as(struct gguf_export *e, const char *name, int n_dims, const int64_t *ne, enum quant format,
                     void (*read)(const void *, int64_t, float *), const void *context, struct error *err) {
    struct matrix_job *job = pool_alloc(&e->pool, sizeof *job);
    const char *copy = pool_strdup(&e->pool, name);
    if (!job || !copy) return no_memory(err);
    int64_t rows = 1;
    for (int d = 1; d < n_dims; d++) rows *= ne[d];
    *job = (struct matrix_job){
        .rows = {.name = copy, .rows = rows, .cols = ne[0], .read = read, .context = context},
        .format = quant_format(format),
        .work = e->work,
    };
    gguf_put_tensor_later(&e->writer, copy, job->format->ggml_type, n_dims, ne, fill, job);
    e->work->total += rows * ne[0];
    e->counts[format]++;
    return 0;
}

int gguf_export_matrix(struct gguf_export *e, const char *name, int n_dims, const int64_t *ne, bool head,
                       void (*read)(const void *, int64_t, float *), const void *context, struct error *err) {
    enum quant format = gguf_is_packed(name, n_dims) ? gguf_packed_format(e->packing, ne[0], head, e->pure) : QUANT_F32;
    return matrix_as(e, name, n_dims, ne, format, read, context, err);
}

// --- a GGUF

static void read_gguf_row(const void *context, int64_t row, float *out) {
    const struct gguf_tensor *t = context;
    const struct quant_format *format = quant_by_ggml_type(t->ggml_type);
    format->decode(t->data + (size_t)row * quant_row_bytes(format, t->ne[0]), out, t->ne[0]);
}

// Of the file as it was: how it is cut, aligned and packed.
static bool is_own_key(const char *key) {
    static const char *const keys[] = {"general.alignment", "general.file_type", "general.quantization_version",
                                       "split.no",          "split.count",       "split.tensors.count"};
    for (size_t i = 0; i < COUNT_OF(keys); i++) {
        if (strcmp(keys[i], key) == 0) return true;
    }
    return false;
}

static int put_gguf_tensor(struct gguf_export *e, const struct gguf_tensor *t, uint64_t *packed, struct error *err) {
    const struct quant_format *own = quant_by_ggml_type(t->ggml_type);
    bool head = strcmp(t->name, e->model->arch.tied ? "token_embd.weight" : "output.weight") == 0;
    int n_dims = t->n_dims;
    while (n_dims > 1 && t->ne[n_dims - 1] == 1) n_dims--; // a matrix of one row is a vector to llama.cpp
    enum quant format = own ? own->id : QUANT_F32;
    bool changes = gguf_is_packed(t->name, n_dims);
    if (changes) format = gguf_packed_format(e->packing, t->ne[0], head, e->pure);
    if (!changes || (own && format == own->id)) {
        gguf_put_tensor(&e->writer, t->name, t->ggml_type, t->n_dims, t->ne, t->data);
        return 0;
    }
    if (!own)
        return error_set(err, STATUS_DATA, "%s: tensor '%s' has type %s, which is not in this version", e->model->path,
                         t->name, quant_ggml_type_name(t->ggml_type));
    *packed += own->bits < 16;
    return matrix_as(e, t->name, t->n_dims, t->ne, format, read_gguf_row, t, err);
}

static int put_gguf(struct gguf_export *e, struct error *err) {
    const struct base *base = e->model->base;
    uint64_t packed = 0;
    for (size_t i = 0; i < base->parts[0].n_kv; i++) {
        if (!is_own_key(base->parts[0].kv[i].key)) gguf_put_kv(&e->writer, &base->parts[0].kv[i]);
    }
    for (int p = 0; p < base->n_parts; p++) {
        for (size_t i = 0; i < base->parts[p].n_tensors; i++) {
            if (put_gguf_tensor(e, &base->parts[p].tensors[i], &packed, err)) return -1;
        }
    }
    if (packed > 0 && e->packing->format != QUANT_F32)
        text_printf(&e->notes, "%llu tensors were packed already (mostly %s): what they lost then stays lost\n",
                    (unsigned long long)packed, e->model->file_type);
    return 0;
}

// --- everything

int gguf_export_open(const struct model *model, const struct gguf_packing *packing, bool pure, struct encode_work *work,
                     struct gguf_export *out, struct error *err) {
    *out = (struct gguf_export){.model = model, .packing = packing, .pure = pure, .work = work};
    work->done = work->total = 0;
    int status = model_require_weights(model, err);
    if (status == 0) status = model->base->kind == BASE_GGUF ? put_gguf(out, err) : gguf_export_folder(out, err);
    if (status == 0) {
        gguf_put_u32(&out->writer, "general.file_type", packing->file_type);
        gguf_put_u32(&out->writer, "general.quantization_version", QUANTIZATION_VERSION);
        out->bytes = gguf_write_bytes(&out->writer);
        if (text_failed(&out->notes)) status = no_memory(err);
    }
    if (status) gguf_export_close(out);
    return status ? -1 : 0;
}

int gguf_export_write(struct gguf_export *e, struct file_writer *out, struct error *err) {
    e->work->done = 0;
    return gguf_write(&e->writer, out, err);
}

void gguf_export_close(struct gguf_export *e) {
    gguf_writer_free(&e->writer);
    gguf_vocabulary_close(&e->vocabulary);
    text_free(&e->notes);
    pool_free(&e->pool);
    *e = (struct gguf_export){0};
}
