// See adapter.h. The adapter itself, and finding out what lies at a path.
#include "adapters/adapter.h"

#include <math.h>
#include <string.h>

int adapter_begin(const struct model *model, int n, struct adapter *out, struct error *err) {
    *out = (struct adapter){.model = model};
    out->modules = pool_array(&out->pool, (uint64_t)n, sizeof *out->modules);
    return out->modules ? 0 : error_memory(err, "an adapter", (size_t)n * sizeof *out->modules);
}

struct adapter_shape adapter_part_shape(const struct adapter_module *m, enum adapter_part part) {
    const struct module *module = m->module;
    int64_t experts = module->experts;
    switch (part) {
    case ADAPTER_A: return (struct adapter_shape){experts * m->r, module->in};
    case ADAPTER_B: return (struct adapter_shape){experts * module->out, m->r};
    case ADAPTER_MAGNITUDE:
    case ADAPTER_BIAS: return (struct adapter_shape){1, module->out};
    case ADAPTER_FULL: return (struct adapter_shape){module->out, module->in};
    case ADAPTER_ROWS: return (struct adapter_shape){m->n_rows, module->in};
    case ADAPTER_PARTS: break;
    }
    return (struct adapter_shape){0, 0};
}

const char *adapter_part_name(enum adapter_part part) {
    static const char *const names[] = {
        [ADAPTER_A] = "lora_A",  [ADAPTER_B] = "lora_B",    [ADAPTER_MAGNITUDE] = "magnitude",
        [ADAPTER_BIAS] = "bias", [ADAPTER_FULL] = "weight", [ADAPTER_ROWS] = "rows"};
    return names[part];
}

int adapter_add_part(struct adapter *adapter, struct adapter_module *m, enum adapter_part part, struct error *err) {
    struct adapter_shape s = adapter_part_shape(m, part);
    uint64_t numbers = adapter->outline ? 1 : (uint64_t)(s.rows * s.cols);
    m->part[part] = pool_array(&adapter->pool, numbers, sizeof *m->part[part]);
    if (m->part[part]) return 0;
    return error_memory(err, m->module->hf_name, (size_t)(s.rows * s.cols) * sizeof *m->part[part]);
}

int adapter_add(struct adapter *adapter, const struct module *module, int r, float alpha, struct error *err) {
    if (r < 1 || r > ADAPTER_MAX_RANK)
        return error_set(err, STATUS_DATA, "%s: rank %d; it must be 1 to %d", module->hf_name, r, ADAPTER_MAX_RANK);
    if (!isfinite(alpha) || alpha == 0)
        return error_set(err, STATUS_DATA, "%s: lora_alpha is %g; it must be a number other than 0", module->hf_name,
                         (double)alpha);
    struct adapter_module *m = &adapter->modules[adapter->n_modules];
    *m = (struct adapter_module){.module = module, .r = r, .alpha = alpha};
    if (adapter_add_part(adapter, m, ADAPTER_A, err) || adapter_add_part(adapter, m, ADAPTER_B, err)) return -1;
    adapter->n_modules++;
    return 0;
}

int adapter_add_bare(struct adapter *adapter, const struct module *module, struct adapter_module **out,
                     struct error *err) {
    (void)err;
    *out = &adapter->modules[adapter->n_modules++];
    **out = (struct adapter_module){.module = module, .alpha = 1};
    return 0;
}

int adapter_add_initial(struct adapter *adapter, struct adapter_module *m, struct error *err) {
    struct adapter_shape a = adapter_part_shape(m, ADAPTER_A), b = adapter_part_shape(m, ADAPTER_B);
    if (2 * m->r > ADAPTER_MAX_RANK)
        return error_set(err, STATUS_CONFIG, "%s: rank %d; with PiSSA, whose files have twice the rank, at most %d",
                         m->module->hf_name, m->r, ADAPTER_MAX_RANK / 2);
    m->a0 = pool_array(&adapter->pool, adapter->outline ? 1 : (uint64_t)(a.rows * a.cols), sizeof *m->a0);
    m->b0 = pool_array(&adapter->pool, adapter->outline ? 1 : (uint64_t)(b.rows * b.cols), sizeof *m->b0);
    if (m->a0 && m->b0) return 0;
    return error_memory(err, m->module->hf_name, (size_t)(a.rows * a.cols + b.rows * b.cols) * sizeof *m->a0);
}

void adapter_take_pairs(struct adapter *out, const struct adapter *saved) {
    for (int i = 0; i < out->n_modules; i++) {
        const struct adapter_module *from = &saved->modules[i], *to = &out->modules[i];
        size_t a = (size_t)adapter_part_size(to, ADAPTER_A), r = (size_t)to->r;
        for (int p = 0; p < ADAPTER_PARTS; p++)
            if (to->part[p] && (p > ADAPTER_B || !to->a0))
                memcpy(to->part[p], from->part[p], (size_t)adapter_part_size(to, p) * sizeof(float));
        if (!to->a0) continue;
        memcpy(to->a, from->a, a * sizeof *to->a);
        memcpy(to->a0, from->a + a, a * sizeof *to->a);
        for (size_t k = 0; k < (size_t)to->module->out * r; k++) {
            const float *row = from->b + k / r * 2 * r;
            to->b[k] = row[k % r], to->b0[k] = -row[r + k % r];
        }
    }
}

bool adapter_has_bias(const struct module *module) {
    for (int i = 0; i < module->n_parts; i++)
        if (!module->parts[i].bias) return false;
    return true;
}

bool adapter_trains_bias(enum adapter_biases biases, const struct module *module, bool adapted, bool whole) {
    bool linear = module->form == MODULE_LINEAR || module->form == MODULE_HEAD;
    if (module->form == MODULE_EMBEDDING || !adapter_has_bias(module)) return false;
    if (whole) return true;
    if (biases == BIASES_ALL) return linear || module->form == MODULE_NORM;
    return biases == BIASES_LORA_ONLY && linear && adapted;
}

int adapter_count_adapted(const struct adapter *adapter) {
    int n = 0;
    for (int i = 0; i < adapter->n_modules; i++) {
        const struct adapter_module *m = &adapter->modules[i];
        n += m->r > 0 || m->full || m->rows;
    }
    return n;
}

int adapter_set_rows(struct adapter *adapter, struct adapter_module *m, const int32_t *ids, int n, struct error *err) {
    m->row_ids = pool_array(&adapter->pool, (uint64_t)n, sizeof *m->row_ids);
    if (!m->row_ids) return error_memory(err, "token rows", (size_t)n * sizeof *m->row_ids);
    memcpy(m->row_ids, ids, (size_t)n * sizeof *ids);
    m->n_rows = n;
    return adapter_add_part(adapter, m, ADAPTER_ROWS, err);
}

struct adapter_module *adapter_find(const struct adapter *adapter, const struct module *module) {
    for (int i = 0; i < adapter->n_modules; i++) {
        if (adapter->modules[i].module == module) return &adapter->modules[i];
    }
    return NULL;
}

int adapter_new(const struct model *model, const int *ids, int n, int r, float alpha, float dropout, bool rslora,
                struct adapter *out, struct error *err) {
    int status = adapter_begin(model, n, out, err);
    for (int i = 0; i < n && status == 0; i++) status = adapter_add(out, &model->modules[ids[i]], r, alpha, err);
    if (status) {
        adapter_free(out);
        return -1;
    }
    out->r = r;
    out->alpha = alpha;
    out->dropout = dropout;
    out->rslora = rslora;
    const char *slash = strrchr(model->path, '/');
    out->base_name = model->hf_repository ? model->hf_repository : slash ? slash + 1 : model->path;
    return 0;
}

void adapter_free(struct adapter *adapter) {
    pool_free(&adapter->pool);
    *adapter = (struct adapter){0};
}

// --- What is it?

struct folder {
    char *config, *peft, *mlx, *gguf, *checkpoints; // paths; in the pool
};

static int read_known(const char *path, const struct folder *f, const struct model *model, struct adapter *out,
                      struct error *err) {
    if (file_exists(f->config) && !file_exists(f->peft) && file_exists(f->mlx))
        return error_set(err, STATUS_DATA, "%s: is an MLX adapter, which is written but not read; use its PEFT folder",
                         path);
    if (file_exists(f->config)) return peft_read(path, model, out, err);
    if (file_exists(f->gguf)) return gguf_adapter_read(f->gguf, model, out, err);
    if (file_exists(f->checkpoints))
        return error_set(err, STATUS_NOINPUT, "%s: this run has not written its adapter yet; name a folder %s/step-...",
                         path, f->checkpoints);
    return error_set(err, STATUS_NOINPUT, "%s: has neither adapter_config.json nor adapter.gguf", path);
}

static int read_folder(const char *path, const struct model *model, struct adapter *out, struct error *err) {
    struct pool pool = {0};
    struct folder f = {.config = pool_printf(&pool, "%s/adapter_config.json", path),
                       .peft = pool_printf(&pool, "%s/adapter_model.safetensors", path),
                       .mlx = pool_printf(&pool, "%s/adapters.safetensors", path),
                       .gguf = pool_printf(&pool, "%s/adapter.gguf", path),
                       .checkpoints = pool_printf(&pool, "%s/checkpoints", path)};
    bool complete = f.config && f.peft && f.mlx && f.gguf && f.checkpoints;
    int status = complete ? read_known(path, &f, model, out, err) : error_memory(err, "file names", strlen(path));
    pool_free(&pool);
    return status;
}

int adapter_read(const char *path, const struct model *model, struct adapter *out, struct error *err) {
    *out = (struct adapter){0};
    if (file_is_folder(path)) return read_folder(path, model, out, err);
    struct mapped_file file;
    if (file_map(path, &file, err)) return -1;
    bool gguf = file.size >= 4 && memcmp(file.data, "GGUF", 4) == 0;
    file_unmap(&file);
    if (gguf) return gguf_adapter_read(path, model, out, err);
    return error_set(
        err, STATUS_DATA,
        "%s: is no GGUF file; name the folder that holds adapter_config.json and adapter_model.safetensors", path);
}
