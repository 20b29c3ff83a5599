// MLX's adapter folder: see adapter.h, formats.md 8.6. Both matrices are transposed against PEFT's, the scale is one
// number, and layers are counted from the last one.
#include "adapters/output.h"

#include "adapters/adapter.h"
#include "data/json.h"
#include "model/safetensors.h"

#include <stdio.h>
#include <string.h>

struct mlx_half {
    const struct adapter_module *m;
    int rank; // of the file
    float factor;
    bool b;
};

// Collects floats, so that rows of a few numbers are not a system call each.
struct floats {
    struct file_writer *out;
    size_t count;
    float data[4096];
};
static int floats_flush(struct floats *f, struct error *err) {
    size_t n = f->count;
    f->count = 0;
    return file_write(f->out, f->data, n * sizeof *f->data, err);
}

static int write_half(void *context, struct file_writer *out, struct error *err) {
    const struct mlx_half *h = context;
    const struct adapter_module *m = h->m;
    struct floats f;
    f.out = out;
    f.count = 0;
    // lora_a (in, rank): A transposed; lora_b (rank, out): B transposed, in Hugging Face's order
    int64_t rows = h->b ? h->rank : m->module->in, cols = h->b ? m->module->out : h->rank;
    for (int64_t i = 0; i < rows; i++) {
        for (int64_t j = 0; j < cols; j++) {
            int64_t k = h->b ? i : j;
            float value = 0;
            if (k < m->r)
                value = h->b ? m->b[module_file_row(m->module, j) * m->r + k] * h->factor : m->a[k * m->module->in + i];
            f.data[f.count++] = value;
            if (f.count == COUNT_OF(f.data) && floats_flush(&f, err)) return -1;
        }
    }
    return floats_flush(&f, err);
}

static int write_tensors(const char *path, const struct adapter *adapter, int rank, float scale, struct error *err) {
    struct pool pool = {0};
    struct output out = {0};
    size_t n = 2 * (size_t)adapter->n_modules;
    struct safetensors_out *entries = pool_array(&pool, n, sizeof *entries);
    struct mlx_half *halves = pool_array(&pool, n, sizeof *halves);
    int status = entries && halves ? 0 : error_memory(err, "the tensor table", n * sizeof *entries);
    for (size_t i = 0; i < n && status == 0; i++) {
        const struct adapter_module *m = &adapter->modules[i / 2];
        bool b = i % 2;
        halves[i] = (struct mlx_half){.m = m, .rank = rank, .factor = adapter_scale(adapter, m) / scale, .b = b};
        entries[i] = (struct safetensors_out){.dtype = ST_F32, .n_dims = 2, .fill = write_half, .context = &halves[i]};
        entries[i].name = pool_printf(&pool, "%s.lora_%c", m->module->hf_name, b ? 'b' : 'a');
        entries[i].shape[0] = b ? rank : m->module->in;
        entries[i].shape[1] = b ? m->module->out : rank;
        if (!entries[i].name) status = error_memory(err, "tensor names", 0);
    }
    if (status == 0) status = output_open(path, &out, err);
    if (status == 0) status = safetensors_write(&out.file, entries, n, err);
    if (status == 0)
        status = output_commit(&out, err);
    else
        output_abandon(&out);
    pool_free(&pool);
    return status;
}

// "self_attn.q_proj" of model.layers.0.self_attn.q_proj.
static const char *path_in_layer(const struct module *m) {
    char number[32];
    snprintf(number, sizeof number, ".%d.", m->layer);
    const char *at = strstr(m->hf_name, number);
    return at ? at + strlen(number) : m->hf_name;
}

static void build_config(struct text *out, const struct adapter *adapter, int rank, float scale) {
    int first = adapter->model->arch.layers;
    const char *keys[MODULE_KINDS] = {0};
    for (int i = 0; i < adapter->n_modules; i++) {
        const struct module *m = adapter->modules[i].module;
        if (m->layer >= 0 && m->layer < first) first = m->layer;
        keys[m->kind] = path_in_layer(m);
    }
    struct json_writer w = {.out = out, .style = JSON_PRETTY};
    json_begin_object(&w);
    json_put_key(&w, "fine_tune_type");
    json_put_string(&w, "lora");
    json_put_key(&w, "lora_parameters");
    json_begin_object(&w);
    json_put_key(&w, "dropout");
    json_put_double(&w, (double)adapter->dropout);
    json_put_key(&w, "keys");
    json_begin_array(&w);
    for (int k = 0; k < MODULE_KINDS; k++)
        if (keys[k]) json_put_string(&w, keys[k]);
    json_end_array(&w);
    json_put_key(&w, "rank");
    json_put_int(&w, rank);
    json_put_key(&w, "scale");
    json_put_double(&w, (double)scale);
    json_end_object(&w);
    json_put_key(&w, "num_layers");
    json_put_int(&w, adapter->model->arch.layers - first);
    json_end_object(&w);
    text_char(out, '\n');
}

int mlx_write(const char *folder, const struct adapter *adapter, struct error *err) {
    if (adapter->n_modules < 1) return error_set(err, STATUS_INTERNAL, "%s: an adapter of no modules", folder);
    for (int i = 0; i < adapter->n_modules; i++) {
        const struct adapter_module *m = &adapter->modules[i];
        if (m->module->form != MODULE_LINEAR || m->module->router || m->full || m->rows || m->magnitude || m->bias)
            return error_set(err, STATUS_DATA,
                             "%s: MLX adapters are written for the linears of layers alone; `graft export --to merged` "
                             "may hold this one",
                             m->module->hf_name);
    }
    int rank = 0;
    float scale = adapter_scale(adapter, &adapter->modules[0]);
    for (int i = 0; i < adapter->n_modules; i++)
        if (adapter->modules[i].r > rank) rank = adapter->modules[i].r;
    struct text config = {0};
    char *tensors = path_join(folder, "adapters.safetensors"), *config_path = path_join(folder, "adapter_config.json");
    build_config(&config, adapter, rank, scale);
    int status = tensors && config_path && !text_failed(&config) ? 0 : error_memory(err, "a file name", strlen(folder));
    // A PEFT folder has a file of the same name with other content.
    if (status == 0) {
        char *peft = path_join(folder, "adapter_model.safetensors");
        if (!peft)
            status = error_memory(err, "a file name", strlen(folder));
        else if (file_exists(peft))
            status =
                error_set(err, STATUS_CANTCREATE, "%s: holds a PEFT adapter; MLX needs a folder of its own", folder);
        mem_free(peft);
    }
    if (status == 0) status = file_make_folders(folder, err);
    if (status == 0) status = write_tensors(tensors, adapter, rank, scale, err);
    if (status == 0) status = file_replace(config_path, config.data, config.length, err);
    mem_free(tensors);
    mem_free(config_path);
    text_free(&config);
    return status;
}
