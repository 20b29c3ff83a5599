// PEFT folders: see adapter.h, formats.md 6. What the tensors are is said twice, in the configuration and in the file;
// both must agree, as loaders differ in which one they believe.
#include "adapters/output.h"
#include "adapters/peft_config.h"
#include "adapters/peft_layout.h"

#include "model/safetensors.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const char PREFIX[] = "base_model.model.";
static const char TENSORS[] = "adapter_model.safetensors", CONFIG[] = "adapter_config.json";

// --- Writing the tensors

struct entry { // of the file that is written
    struct peft_tensor tensor;
    const struct adapter_module *m;
};

static int write_entry(void *context, struct file_writer *out, struct error *err) {
    const struct entry *e = context;
    size_t row_bytes = (size_t)e->tensor.cols * sizeof(float), held = 0, room = row_bytes > 65536 ? row_bytes : 65536;
    char *rows = mem_alloc(room);
    if (!rows) return error_memory(err, "rows of an adapter", room);
    int status = 0;
    for (int64_t row = 0; row < e->tensor.rows && status == 0; row++) {
        peft_get_row(&e->tensor, e->m, row, (float *)(void *)(rows + held));
        held += row_bytes;
        if (held + row_bytes <= room && row + 1 < e->tensor.rows) continue;
        status = file_write(out, rows, held, err);
        held = 0;
    }
    mem_free(rows);
    return status;
}

// The tensors of all modules; NULL when out of memory.
static struct entry *list_entries(const struct adapter *adapter, struct pool *pool, size_t *count) {
    uint64_t all = (uint64_t)adapter->model->n_modules + (uint64_t)adapter->model->n_norms;
    bool *has = pool_array(pool, all, sizeof *has);
    *count = 0;
    for (int i = 0; i < adapter->n_modules; i++)
        *count += (size_t)peft_tensor_count(&adapter->modules[i], peft_parts(&adapter->modules[i]));
    struct entry *entries = pool_array(pool, *count, sizeof *entries), *at = entries;
    if (!has || !entries) return NULL;
    for (int i = 0; i < adapter->n_modules; i++) has[adapter->modules[i].module->id] = adapter->modules[i].a != NULL;
    for (int i = 0; i < adapter->n_modules; i++) {
        const struct adapter_module *m = &adapter->modules[i];
        bool sibling = peft_has_sibling(adapter->model, has, m->module);
        for (int k = 0; k < peft_tensor_count(m, peft_parts(m)); k++, at++) {
            at->m = m;
            if (!peft_tensor_at(pool, m, peft_parts(m), sibling, k, &at->tensor)) return NULL;
        }
    }
    return entries;
}

// Compares what is on disk with what is in memory: an adapter is not saved before it was read again.
static int read_back(const char *path, const struct entry *entries, size_t count, struct error *err) {
    struct safetensors file;
    if (safetensors_open(path, &file, err)) return -1;
    bool same = file.n_entries == count;
    int status = 0;
    for (size_t i = 0; i < count && same && status == 0; i++) {
        const struct peft_tensor *t = &entries[i].tensor;
        const struct safetensors_entry *e = safetensors_find(&file, t->key);
        size_t row_bytes = (size_t)t->cols * sizeof(float);
        float *row = mem_alloc(row_bytes);
        if (!row) status = error_memory(err, "a row of an adapter", row_bytes);
        same = row && e && e->bytes == row_bytes * (size_t)t->rows;
        for (int64_t k = 0; k < t->rows && same; k++) {
            peft_get_row(t, entries[i].m, k, row);
            same = memcmp(e->data + (size_t)k * row_bytes, row, row_bytes) == 0;
        }
        mem_free(row);
    }
    safetensors_close(&file);
    if (status == 0 && !same)
        status = error_set(err, STATUS_INTEGRITY, "%s: does not hold what was written to it; check the disk", path);
    return status;
}

static int write_tensors(const char *path, const struct adapter *adapter, struct pool *pool, struct error *err) {
    size_t count;
    struct entry *entries = list_entries(adapter, pool, &count);
    struct safetensors_out *out = entries ? pool_array(pool, count, sizeof *out) : NULL;
    if (!out) return error_memory(err, "the tensor table", count * sizeof *entries);
    for (size_t i = 0; i < count; i++) {
        const struct peft_tensor *t = &entries[i].tensor;
        out[i] = (struct safetensors_out){.name = t->key,
                                          .dtype = ST_F32,
                                          .n_dims = t->n_dims,
                                          .shape = {t->n_dims == 1 ? t->cols : t->rows, t->cols},
                                          .fill = write_entry,
                                          .context = &entries[i]};
    }
    struct output file;
    if (output_open(path, &file, err)) return -1;
    int status = safetensors_write(&file.file, out, count, err);
    if (status == 0) status = output_close(&file, err);
    if (status == 0) status = read_back(file.temporary, entries, count, err);
    if (status == 0) return output_commit(&file, err);
    output_abandon(&file);
    return -1;
}

int peft_write(const char *folder, const struct adapter *adapter, struct error *err) {
    struct pool pool = {0};
    struct text config = {0};
    char *tensors = path_join(folder, TENSORS), *config_path = path_join(folder, CONFIG);
    int status = tensors && config_path ? 0 : error_memory(err, "a file name", strlen(folder));
    if (status == 0 && adapter->n_modules < 1)
        status = error_set(err, STATUS_INTERNAL, "%s: an adapter of no modules", folder);
    if (status == 0) status = peft_config_write(&config, adapter, err);
    if (status == 0) status = file_make_folders(folder, err);
    if (status == 0) status = write_tensors(tensors, adapter, &pool, err);
    if (status == 0) status = file_replace(config_path, config.data, config.length, err);
    mem_free(tensors);
    mem_free(config_path);
    text_free(&config);
    pool_free(&pool);
    return status;
}

// --- Reading

struct peft_reader {
    const char *path; // of the tensors
    const struct model *model;
    const struct safetensors *file;
    const struct peft_config *config;
    bool *used; // per entry of the file
    struct pool *pool;
    struct error *err;
};

// Why a tensor that belongs to no linear of ours is in the file.
static int refuse_tensor(struct peft_reader *r, const char *name) {
    static const struct {
        const char *part, *what;
    } kinds[] = {
        {"lora_magnitude_vector", "a magnitude of DoRA that use_dora or target_modules does not ask for"},
        {"lora_embedding_", "target_modules does not select it"},
        {"token_adapter", "trainable_token_indices does not list it"},
        {"trainable_tokens", "trainable_token_indices does not list it"},
        {"lora_B.bias", "a bias on the adapter cannot be computed by this version"},
        {".bias", "a trained bias that 'bias' and target_modules do not ask for"},
        {"lora_A.", "the base has no linear of this name"},
        {"lora_B.", "the base has no linear of this name"},
    };
    if (strncmp(name, PREFIX, sizeof PREFIX - 1) != 0)
        return error_set(r->err, STATUS_DATA, "%s: tensor '%.200s' does not start with '%s': loaders would ignore it",
                         r->path, name, PREFIX);
    for (size_t i = 0; i < COUNT_OF(kinds); i++)
        if (strstr(name, kinds[i].part))
            return error_set(r->err, STATUS_DATA, "%s: tensor '%.200s': %s", r->path, name, kinds[i].what);
    return error_set(r->err, STATUS_DATA,
                     "%s: tensor '%.200s' replaces a weight of the base, which modules_to_save does not name", r->path,
                     name);
}

// A tensor that was not asked for: of a module that target_modules leaves out, or of none.
static int refuse_unused(struct peft_reader *r, const char *name) {
    bool *none = pool_array(r->pool, (uint64_t)r->model->n_modules, sizeof *none);
    if (!none) return error_memory(r->err, "the module selection", (size_t)r->model->n_modules);
    for (int i = 0; i < r->model->n_modules; i++) {
        const struct module *m = &r->model->modules[i];
        const struct adapter_module any = {.module = m, .r = 1};
        const unsigned pair = 1u << ADAPTER_A | 1u << ADAPTER_B;
        struct peft_tensor t;
        for (int k = 0; k < peft_tensor_count(&any, pair) && !r->config->selected[i]; k++) {
            if (!peft_tensor_at(r->pool, &any, pair, false, k, &t)) return error_memory(r->err, "tensor names", 0);
            if (strcmp(t.key, name) != 0) continue;
            return error_set(r->err, STATUS_DATA, "%s: has tensors of '%s', which target_modules does not select",
                             r->path, m->hf_name);
        }
    }
    return refuse_tensor(r, name);
}

static int check_shape(struct peft_reader *r, const struct safetensors_entry *e, const struct peft_tensor *t) {
    int64_t rows = t->rows, cols = t->cols;
    if (e->n_dims == t->n_dims && e->shape[e->n_dims - 1] == cols && (e->n_dims == 1 || e->shape[0] == rows)) return 0;
    char shape[ST_MAX_RANK * 24] = "";
    for (int d = 0, n = 0; d < e->n_dims; d++)
        n += snprintf(shape + n, sizeof shape - (size_t)n, "%s%lld", d ? ", " : "", (long long)e->shape[d]);
    return error_set(r->err, STATUS_DATA,
                     "%s: tensor '%s' has shape [%s], expected [%lld, %lld] for this base and rank", r->path, e->name,
                     shape, (long long)rows, (long long)cols);
}

// One row of a tensor as floats.
static int copy_row(struct peft_reader *r, const struct safetensors_entry *e, int64_t i, float *row) {
    if (e->dtype != ST_F32 && e->dtype != ST_F16 && e->dtype != ST_BF16)
        return error_set(r->err, STATUS_DATA, "%s: tensor '%s' is %s; F32, F16 and BF16 can be read", r->path, e->name,
                         safetensors_dtype_name(e->dtype));
    int64_t cols = e->shape[e->n_dims - 1];
    for (int64_t j = 0; j < cols; j++) {
        uint16_t half;
        if (e->dtype == ST_F32) {
            memcpy(&row[j], e->data + (size_t)(i * cols + j) * 4, 4);
        } else {
            memcpy(&half, e->data + (size_t)(i * cols + j) * 2, 2);
            row[j] = e->dtype == ST_F16 ? f16_to_float(half) : bf16_to_float(half);
        }
        if (!isfinite(row[j]))
            return error_set(r->err, STATUS_DATA, "%s: tensor '%s' is %g at [%lld, %lld]; the adapter is damaged",
                             r->path, e->name, (double)row[j], (long long)i, (long long)j);
    }
    return 0;
}

// The entry of a tensor, NULL where the file has none.
static const struct safetensors_entry *find_entry(struct peft_reader *r, const struct peft_tensor *t) {
    const struct safetensors_entry *e = safetensors_find(r->file, t->key);
    if (!e && t->module->hf_old) { // as an older transformers calls it
        const char *at = strstr(t->key, t->module->hf_name);
        const char *old = pool_printf(r->pool, "%.*s%s%s", (int)(at - t->key), t->key, t->module->hf_old,
                                      at + strlen(t->module->hf_name));
        if (old) e = safetensors_find(r->file, old);
    }
    if (e) r->used[e - r->file->entries] = true;
    return e;
}

// Tensors and configuration must name the same modules: PEFT would leave out the rest with a mere warning.
static int missing(struct peft_reader *r, const struct peft_tensor *t, const struct safetensors_entry *other) {
    const char *name = t->module->hf_name;
    if (t->part == ADAPTER_MAGNITUDE || t->part == ADAPTER_BIAS)
        return error_set(r->err, STATUS_DATA, "%s: %s is set, but tensor '%s' is missing", r->path,
                         t->part == ADAPTER_BIAS ? "bias" : "use_dora", t->key);
    if (t->part == ADAPTER_FULL || t->part == ADAPTER_ROWS)
        return error_set(r->err, STATUS_DATA, "%s: %s names '%s', but tensor '%s' is missing", r->path,
                         t->part == ADAPTER_FULL ? "modules_to_save" : "trainable_token_indices", name, t->key);
    if (t->part == ADAPTER_A && !other)
        return error_set(r->err, STATUS_DATA, "%s: target_modules selects '%s', but its tensors are missing", r->path,
                         name);
    return error_set(r->err, STATUS_DATA, "%s: '%s' has %s without %s", r->path, name,
                     t->part == ADAPTER_A ? "lora_B.weight" : "lora_A.weight",
                     t->part == ADAPTER_A ? "lora_A.weight" : "lora_B.weight");
}

static int copy_tensor(struct peft_reader *r, const struct peft_tensor *t, const struct safetensors_entry *e,
                       struct adapter_module *m) {
    float *row = mem_alloc((size_t)t->cols * sizeof *row);
    int status = row ? 0 : error_memory(r->err, "a row of an adapter", (size_t)t->cols);
    for (int64_t i = 0; i < t->rows && status == 0; i++) {
        status = copy_row(r, e, i, row);
        if (status == 0) peft_put_row(t, m, i, row);
    }
    mem_free(row);
    return status;
}

// What the configuration says of a module: nothing is made room for before all shapes are known to be right.
static int read_module(struct peft_reader *r, const struct module *module, struct adapter *out) {
    const struct peft_config *c = r->config;
    bool sibling = peft_has_sibling(r->model, c->selected, module);
    unsigned parts = c->selected[module->id] ? 1u << ADAPTER_A | 1u << ADAPTER_B : 0;
    bool plain = parts && (module->form == MODULE_LINEAR || module->form == MODULE_HEAD);
    if (c->dora && parts && !plain)
        return error_set(r->err, STATUS_DATA, "%s: use_dora is set: DoRA on '%s' is not in this version", r->path,
                         module->hf_name);
    if (c->dora && plain) parts |= 1u << ADAPTER_MAGNITUDE;
    if (adapter_trains_bias(c->biases, module, parts, c->saved[module->id])) parts |= 1u << ADAPTER_BIAS;
    if (c->saved[module->id]) parts |= 1u << ADAPTER_FULL;
    struct adapter_module want = {.module = module, .r = parts & 1u ? c->ranks[module->id] : 0}, *m;
    if (module->form == MODULE_EMBEDDING && c->n_rows) parts |= 1u << ADAPTER_ROWS, want.n_rows = c->n_rows;
    int n = peft_tensor_count(&want, parts);
    for (int k = 0; k < n; k++) {
        struct peft_tensor t, other;
        int beside = k % 2 ? k - 1 : k + 1 < n ? k + 1 : k; // the other half, where there are halves
        if (!peft_tensor_at(r->pool, &want, parts, sibling, k, &t) ||
            !peft_tensor_at(r->pool, &want, parts, sibling, beside, &other))
            return error_memory(r->err, "tensor names", 0);
        const struct safetensors_entry *e = find_entry(r, &t);
        if (!e) return missing(r, &t, find_entry(r, &other));
        if (check_shape(r, e, &t)) return -1;
    }
    if (want.r ? adapter_add(out, module, want.r, c->alphas[module->id], r->err)
               : adapter_add_bare(out, module, &m, r->err))
        return -1;
    m = &out->modules[out->n_modules - 1];
    if (c->n_rows && module->form == MODULE_EMBEDDING && adapter_set_rows(out, m, c->row_ids, c->n_rows, r->err))
        return -1;
    for (int p = ADAPTER_MAGNITUDE; p <= ADAPTER_BIAS; p++)
        if (parts >> p & 1 && adapter_add_part(out, m, p, r->err)) return -1;
    if (c->saved[module->id] && adapter_add_part(out, m, ADAPTER_FULL, r->err)) return -1;
    for (int k = 0; k < n; k++) {
        struct peft_tensor t;
        if (!peft_tensor_at(r->pool, &want, parts, sibling, k, &t)) return error_memory(r->err, "tensor names", 0);
        if (copy_tensor(r, &t, find_entry(r, &t), m)) return -1;
    }
    return 0;
}

static bool in_adapter(const struct peft_config *c, const struct module *m) {
    return c->selected[m->id] || c->saved[m->id] || (c->n_rows && m->form == MODULE_EMBEDDING) ||
           adapter_trains_bias(c->biases, m, false, false);
}

static int read_tensors(struct peft_reader *r, struct adapter *out) {
    const struct peft_config *config = r->config;
    int count = 0;
    r->used = pool_array(r->pool, r->file->n_entries, sizeof *r->used);
    if (!r->used) return error_memory(r->err, "the tensor table", r->file->n_entries);
    int all = r->model->n_modules + r->model->n_norms;
    for (int i = 0; i < all; i++) count += in_adapter(config, model_module(r->model, i));
    if (adapter_begin(r->model, count, out, r->err)) return -1;
    for (int i = 0; i < all; i++) {
        const struct module *m = model_module(r->model, i);
        if (in_adapter(config, m) && read_module(r, m, out)) return -1;
    }
    for (size_t i = 0; i < r->file->n_entries; i++) {
        bool copy = false;
        for (int k = 0; k < out->n_modules && !r->used[i]; k++)
            copy |= peft_is_copy(&out->modules[k], r->file->entries[i].name);
        if (!r->used[i] && !copy) return refuse_unused(r, r->file->entries[i].name);
    }
    out->r = config->r;
    out->alpha = config->alpha;
    out->dropout = config->dropout;
    out->rslora = config->rslora;
    out->dora = config->dora;
    out->biases = config->biases;
    out->base_name = config->base_name ? pool_strdup(&out->pool, config->base_name) : NULL;
    if (config->base_name && !out->base_name) return error_memory(r->err, "the base's name", strlen(config->base_name));
    return 0;
}

static int take(const char *name, const struct text *config_bytes, const struct safetensors *file,
                const struct model *model, struct adapter *out, struct error *err) {
    *out = (struct adapter){0};
    struct pool pool = {0};
    struct peft_config config;
    char *tensors = pool_printf(&pool, "%s/%s", name, TENSORS), *path = pool_printf(&pool, "%s/%s", name, CONFIG);
    int status = tensors && path ? 0 : error_memory(err, "a file name", strlen(name));
    if (status == 0) status = peft_config_parse(path, config_bytes, model, &pool, &config, err);
    if (status == 0) {
        struct peft_reader r = {
            .path = tensors, .model = model, .file = file, .config = &config, .pool = &pool, .err = err};
        status = read_tensors(&r, out);
    }
    if (status) adapter_free(out);
    pool_free(&pool);
    return status;
}

int peft_parse(const char *name, const struct text *config, const uint8_t *tensors, size_t length,
               const struct model *model, struct adapter *out, struct error *err) {
    struct safetensors file;
    *out = (struct adapter){0};
    if (safetensors_parse(tensors, length, name, &file, err)) return -1;
    int status = take(name, config, &file, model, out, err);
    safetensors_close(&file);
    return status;
}

static int open_tensors(const char *folder, const char *path, struct safetensors *file, struct error *err) {
    if (!file_exists(path)) {
        char *pickle = path_join(folder, "adapter_model.bin");
        bool has_pickle = pickle && file_exists(pickle);
        mem_free(pickle);
        if (has_pickle)
            return error_set(err, STATUS_DATA,
                             "%s/adapter_model.bin: a pickle can run code and is not read; save it again as %s", folder,
                             TENSORS);
    }
    return safetensors_open(path, file, err);
}

int peft_read(const char *folder, const struct model *model, struct adapter *out, struct error *err) {
    *out = (struct adapter){0};
    struct safetensors file = {0};
    struct text config = {0};
    char *tensors = path_join(folder, TENSORS), *config_path = path_join(folder, CONFIG);
    int status = tensors && config_path ? 0 : error_memory(err, "a file name", strlen(folder));
    if (status == 0) status = file_read(config_path, PEFT_CONFIG_BYTES, &config, err);
    if (status == 0) status = open_tensors(folder, tensors, &file, err);
    if (status == 0) status = take(folder, &config, &file, model, out, err);
    safetensors_close(&file);
    text_free(&config);
    mem_free(tensors);
    mem_free(config_path);
    return status;
}

const char *peft_ignored(const struct adapter *adapter, int *count) {
    const struct family *family = adapter->model->family;
    const char *first = NULL;
    *count = 0;
    for (int i = 0; i < adapter->n_modules && family && family->peft_deaf; i++) {
        const struct module *m = adapter->modules[i].module;
        const char *hf = m->layer >= 0 ? family->linears[m->kind].hf : NULL;
        if (!hf || !adapter->modules[i].r || !family_names(family->peft_deaf, hf, strlen(hf))) continue;
        if ((*count)++ == 0) first = m->hf_name;
    }
    return first;
}
