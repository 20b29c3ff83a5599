// PEFT folders: see adapter.h, formats.md 6. What the tensors are is said twice, in the configuration and in the file;
// both must agree, as loaders differ in which one they believe.
#include "adapters/output.h"
#include "adapters/peft_config.h"

#include "model/safetensors.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const char PREFIX[] = "base_model.model.";
static const char *const SUFFIX[2] = {".lora_A.weight", ".lora_B.weight"};
static const char TENSORS[] = "adapter_model.safetensors", CONFIG[] = "adapter_config.json";
enum { A, B };

char *peft_key(struct pool *pool, const struct module *module, bool b) {
    return pool_printf(pool, "%s%s%s", PREFIX, module->hf_name, SUFFIX[b]);
}

// --- Writing the tensors

// B in Hugging Face's row order, some rows at a time.
static int write_b(void *context, struct file_writer *out, struct error *err) {
    const struct adapter_module *m = context;
    float rows[4 * ADAPTER_MAX_RANK];
    size_t row_bytes = (size_t)m->r * sizeof(float), held = 0;
    for (int64_t row = 0; row < m->module->out; row++) {
        memcpy((char *)rows + held, m->b + module_file_row(m->module, row) * m->r, row_bytes);
        held += row_bytes;
        if (held + row_bytes <= sizeof rows && row + 1 < m->module->out) continue;
        if (file_write(out, rows, held, err)) return -1;
        held = 0;
    }
    return 0;
}

// Compares what is on disk with what is in memory: an adapter is not saved before it was read again.
static int read_back(const char *path, const struct adapter *adapter, struct pool *pool, struct error *err) {
    struct safetensors file;
    if (safetensors_open(path, &file, err)) return -1;
    bool same = file.n_entries == 2 * (size_t)adapter->n_modules;
    int status = 0;
    for (int i = 0; i < adapter->n_modules && same && status == 0; i++) {
        const struct adapter_module *m = &adapter->modules[i];
        const char *a_key = peft_key(pool, m->module, A), *b_key = peft_key(pool, m->module, B);
        if (!a_key || !b_key) {
            status = error_memory(err, "tensor names", 0);
            break;
        }
        const struct safetensors_entry *a = safetensors_find(&file, a_key), *b = safetensors_find(&file, b_key);
        size_t row = (size_t)m->r * sizeof(float), a_bytes = row * (size_t)m->module->in;
        same = a && b && a->bytes == a_bytes && b->bytes == row * (size_t)m->module->out &&
               !memcmp(a->data, m->a, a_bytes);
        for (int64_t o = 0; o < m->module->out && same; o++)
            same = !memcmp(b->data + (size_t)o * row, m->b + module_file_row(m->module, o) * m->r, row);
    }
    safetensors_close(&file);
    if (status == 0 && !same)
        status = error_set(err, STATUS_INTEGRITY, "%s: does not hold what was written to it; check the disk", path);
    return status;
}

static int write_tensors(const char *path, const struct adapter *adapter, struct pool *pool, struct error *err) {
    struct safetensors_out *entries = pool_array(pool, 2 * (uint64_t)adapter->n_modules, sizeof *entries);
    if (!entries) return error_memory(err, "the tensor table", (size_t)adapter->n_modules * sizeof *entries);
    for (int i = 0; i < adapter->n_modules; i++) {
        struct adapter_module *m = &adapter->modules[i];
        struct safetensors_out *a = &entries[2 * i], *b = a + 1;
        *a = (struct safetensors_out){.dtype = ST_F32, .n_dims = 2, .shape = {m->r, m->module->in}, .data = m->a};
        *b = (struct safetensors_out){
            .dtype = ST_F32, .n_dims = 2, .shape = {m->module->out, m->r}, .fill = write_b, .context = m};
        a->name = peft_key(pool, m->module, A);
        b->name = peft_key(pool, m->module, B);
        if (!a->name || !b->name) return error_memory(err, "tensor names", 0);
    }
    struct output out;
    if (output_open(path, &out, err)) return -1;
    int status = safetensors_write(&out.file, entries, 2 * (size_t)adapter->n_modules, err);
    if (status == 0) status = output_close(&out, err);
    if (status == 0) status = read_back(out.temporary, adapter, pool, err);
    if (status == 0) return output_commit(&out, err);
    output_abandon(&out);
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
    const struct safetensors_entry *(*halves)[2]; // per module id
    struct error *err;
};

// Why a tensor that belongs to no linear of ours is in the file.
static int refuse_tensor(struct peft_reader *r, const char *name) {
    static const struct {
        const char *part, *what;
    } kinds[] = {
        {"lora_magnitude_vector", "DoRA cannot be computed by this version"},
        {"lora_embedding_", "an adapter on the embedding cannot be computed by this version"},
        {"token_adapter", "trained token rows cannot be computed by this version"},
        {"trainable_tokens", "trained token rows cannot be computed by this version"},
        {"lora_B.bias", "a bias on the adapter cannot be computed by this version"},
        {".bias", "trained biases cannot be computed by this version"},
        {"lora_A.", "the base has no linear of this name"},
        {"lora_B.", "the base has no linear of this name"},
    };
    if (strncmp(name, PREFIX, sizeof PREFIX - 1) != 0)
        return error_set(r->err, STATUS_DATA, "%s: tensor '%.200s' does not start with '%s': loaders would ignore it",
                         r->path, name, PREFIX);
    for (size_t i = 0; i < COUNT_OF(kinds); i++)
        if (strstr(name, kinds[i].part))
            return error_set(r->err, STATUS_DATA, "%s: tensor '%.200s': %s", r->path, name, kinds[i].what);
    return error_set(
        r->err, STATUS_DATA,
        "%s: tensor '%.200s' replaces a weight of the base (modules_to_save), which this version cannot do", r->path,
        name);
}

static int sort_tensors(struct peft_reader *r, const struct safetensors *file) {
    for (size_t i = 0; i < file->n_entries; i++) {
        const struct safetensors_entry *e = &file->entries[i];
        size_t length = strlen(e->name), suffix = sizeof ".lora_A.weight" - 1, prefix = sizeof PREFIX - 1;
        const struct module *m = NULL;
        int half = -1;
        if (length > prefix + suffix && memcmp(e->name, PREFIX, prefix) == 0)
            for (int h = A; h <= B; h++)
                if (strcmp(e->name + length - suffix, SUFFIX[h]) == 0) half = h;
        if (half >= 0) m = model_find_module(r->model, e->name + prefix, length - prefix - suffix);
        if (!m) return refuse_tensor(r, e->name);
        r->halves[m->id][half] = e;
    }
    return 0;
}

// Tensors and configuration must name the same modules: PEFT would leave out the rest with a mere warning.
static int check_modules(struct peft_reader *r, const struct peft_config *config, int *count) {
    *count = 0;
    for (int i = 0; i < r->model->n_modules; i++) {
        const char *name = r->model->modules[i].hf_name;
        const struct safetensors_entry *a = r->halves[i][A], *b = r->halves[i][B];
        if (a && b && config->selected[i]) ++*count;
        if (!a && !b && config->selected[i])
            return error_set(r->err, STATUS_DATA, "%s: target_modules selects '%s', but its tensors are missing",
                             r->path, name);
        if (!a != !b)
            return error_set(r->err, STATUS_DATA, "%s: '%s' has %s without %s", r->path, name, SUFFIX[a ? A : B] + 1,
                             SUFFIX[a ? B : A] + 1);
        if (a && !config->selected[i])
            return error_set(r->err, STATUS_DATA, "%s: has tensors of '%s', which target_modules does not select",
                             r->path, name);
    }
    return 0;
}

static int check_shape(struct peft_reader *r, const struct safetensors_entry *e, int64_t rows, int64_t cols) {
    if (e->n_dims == 2 && e->shape[0] == rows && e->shape[1] == cols) return 0;
    char shape[ST_MAX_RANK * 24] = "";
    for (int d = 0, n = 0; d < e->n_dims; d++)
        n += snprintf(shape + n, sizeof shape - (size_t)n, "%s%lld", d ? ", " : "", (long long)e->shape[d]);
    return error_set(r->err, STATUS_DATA,
                     "%s: tensor '%s' has shape [%s], expected [%lld, %lld] for this base and rank", r->path, e->name,
                     shape, (long long)rows, (long long)cols);
}

// Copies a tensor to floats, row `i` of the file to row order(i) of `out`.
static int copy_rows(struct peft_reader *r, const struct safetensors_entry *e, const struct module *order, float *out) {
    if (e->dtype != ST_F32 && e->dtype != ST_F16 && e->dtype != ST_BF16)
        return error_set(r->err, STATUS_DATA, "%s: tensor '%s' is %s; F32, F16 and BF16 can be read", r->path, e->name,
                         safetensors_dtype_name(e->dtype));
    int64_t rows = e->shape[0], cols = e->shape[1];
    for (int64_t i = 0; i < rows; i++) {
        float *row = out + (order ? module_file_row(order, i) : i) * cols;
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
    }
    return 0;
}

static int read_tensors(struct peft_reader *r, const struct safetensors *file, const struct peft_config *config,
                        struct pool *pool, struct adapter *out) {
    int count;
    r->halves = pool_array(pool, (uint64_t)r->model->n_modules, sizeof *r->halves);
    if (!r->halves) return error_memory(r->err, "the tensor table", 0);
    if (sort_tensors(r, file) || check_modules(r, config, &count) || adapter_begin(r->model, count, out, r->err))
        return -1;
    for (int i = 0; i < r->model->n_modules; i++) {
        const struct module *module = &r->model->modules[i];
        if (!config->selected[i]) continue;
        if (check_shape(r, r->halves[i][A], config->ranks[i], module->in) ||
            check_shape(r, r->halves[i][B], module->out, config->ranks[i]) ||
            adapter_add(out, module, config->ranks[i], config->alphas[i], r->err))
            return -1;
        struct adapter_module *m = &out->modules[out->n_modules - 1];
        if (copy_rows(r, r->halves[i][A], NULL, m->a) || copy_rows(r, r->halves[i][B], module, m->b)) return -1;
    }
    out->r = config->r;
    out->alpha = config->alpha;
    out->dropout = config->dropout;
    out->rslora = config->rslora;
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
        struct peft_reader r = {.path = tensors, .model = model, .err = err};
        status = read_tensors(&r, file, &config, &pool, out);
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
