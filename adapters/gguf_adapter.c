// llama.cpp's adapter file: see adapter.h, formats.md 7. llama.cpp computes W x + (alpha / r) B (A x) with r of each
// tensor and one alpha for the file; it knows no rsLoRA, so that alpha is alpha * sqrt(r) there.
#include "adapters/output.h"

#include "adapters/adapter.h"
#include "model/gguf_write.h"

#include <math.h>
#include <string.h>

static const char HUB[] = "https://huggingface.co/";

// --- Writing

// The alpha that gives this rank our scale in llama.cpp.
static float file_alpha(const struct adapter *adapter, int r, float alpha) {
    return adapter->rslora ? (float)((double)alpha * sqrt((double)r)) : alpha;
}

// One tensor of the file: entries [first, last) of module->tensors, `rows` of each expert.
struct group {
    const char *name;
    int first, last;
    int64_t rows;
};

static struct group group_at(const struct module *m, int first) {
    struct group g = {.name = m->tensors[first].name, .first = first, .last = first};
    while (g.last < m->n_tensors && strcmp(m->tensors[g.last].name, g.name) == 0) g.rows += m->tensors[g.last++].rows;
    return g;
}
// Row `row` of expert e of the tensor, in b.
static float *group_row(const struct adapter_module *m, const struct group *g, int64_t e, int64_t row) {
    int i = g->first;
    for (; row >= m->module->tensors[i].rows; i++) row -= m->module->tensors[i].rows;
    return m->b + adapter_b_row(m->module, e, module_hf_row(m->module, i, row)) * m->r;
}

struct scaled_b {
    const struct adapter_module *m;
    struct group group;
    float factor;
};

// Of the embedding lora_a is looked up by token, (V, r): our b. lora_b, (D, r), is our a turned.
static int write_turned_a(void *context, struct file_writer *out, struct error *err) {
    const struct scaled_b *s = context;
    float row[ADAPTER_MAX_RANK];
    int64_t in = s->m->module->in;
    for (int64_t i = 0; i < in; i++) {
        for (int k = 0; k < s->m->r; k++) row[k] = s->m->a[k * in + i] * s->factor;
        if (file_write(out, row, (size_t)s->m->r * sizeof *row, err)) return -1;
    }
    return 0;
}

static int write_b(void *context, struct file_writer *out, struct error *err) {
    const struct scaled_b *s = context;
    float row[ADAPTER_MAX_RANK];
    for (int64_t e = 0; e < s->m->module->experts; e++) {
        for (int64_t i = 0; i < s->group.rows; i++) {
            const float *b = group_row(s->m, &s->group, e, i);
            int r = s->m->r;
            for (int k = 0; k < r; k++) row[k] = b[k] * s->factor;
            for (int k = 0; s->m->b0 && k < r; k++) row[r + k] = -s->m->b0[b - s->m->b + k] * s->factor;
            if (file_write(out, row, (size_t)adapter_file_rank(s->m) * sizeof *row, err)) return -1;
        }
    }
    return 0;
}

// PiSSA: [A; a0].
static int write_both_a(void *context, struct file_writer *out, struct error *err) {
    const struct adapter_module *m = context;
    size_t bytes = (size_t)adapter_part_size(m, ADAPTER_A) * sizeof *m->a;
    return file_write(out, m->a, bytes, err) || file_write(out, m->a0, bytes, err) ? -1 : 0;
}

static void put_base(struct gguf_writer *w, struct pool *pool, const char *name) {
    if (!name) return;
    const char *slash = strchr(name, '/');
    bool on_hub = slash && slash != name && slash[1] && !strchr(slash + 1, '/') && name[0] != '.';
    gguf_put_u32(w, "general.base_model.count", 1);
    if (!on_hub) {
        gguf_put_string(w, "general.base_model.0.name", name);
        return;
    }
    const char *url = pool_printf(pool, "%s%s", HUB, name);
    if (url)
        gguf_put_string(w, "general.base_model.0.repo_url", url);
    else
        w->failed = true;
}

static void put_module(struct gguf_writer *w, struct pool *pool, const struct adapter *adapter,
                       const struct adapter_module *m, float alpha) {
    int f32 = quant_format(QUANT_F32)->ggml_type, dims = m->module->experts > 1 ? 3 : 2;
    for (struct group g = group_at(m->module, 0);; g = group_at(m->module, g.last)) {
        int64_t r = adapter_file_rank(m), experts = m->module->experts;
        int64_t a_ne[3] = {m->module->in, r, experts}, b_ne[3] = {r, g.rows, experts};
        const char *a = pool_printf(pool, "%s.lora_a", g.name), *b = pool_printf(pool, "%s.lora_b", g.name);
        struct scaled_b *scaled = pool_alloc(pool, sizeof *scaled);
        if (!a || !b || !scaled) {
            w->failed = true;
            return;
        }
        float own = file_alpha(adapter, (int)r, adapter_file_alpha(adapter, m->alpha));
        *scaled = (struct scaled_b){.m = m, .group = g, .factor = own / alpha};
        if (m->module->form == MODULE_EMBEDDING) {
            gguf_put_tensor(w, a, f32, 2, (int64_t[]){m->r, m->module->out}, m->b);
            gguf_put_tensor_later(w, b, f32, 2, (int64_t[]){m->r, m->module->in}, write_turned_a, scaled);
            return;
        }
        if (m->a0) // parts of one module share it
            gguf_put_tensor_later(w, a, f32, dims, a_ne, write_both_a, (void *)(uintptr_t)m);
        else
            gguf_put_tensor(w, a, f32, dims, a_ne, m->a);
        gguf_put_tensor_later(w, b, f32, dims, b_ne, write_b, scaled);
        if (g.last == m->module->n_tensors) return;
    }
}

// Is the tensor "blk.N.STEM.weight", or "STEM.weight", one of "STEM|STEM"?
static bool is_listed(const char *list, const char *tensor) {
    if (strncmp(tensor, "blk.", 4) == 0) tensor += 4, tensor += strcspn(tensor, ".") + 1;
    return list && family_names(list, tensor, strcspn(tensor, "."));
}

const char *gguf_adapter_ignored(const struct adapter *adapter, int *count) {
    const struct family *family = adapter->model->family;
    const char *first = NULL;
    *count = 0;
    for (int i = 0; i < adapter->n_modules && family; i++) {
        const struct module *m = adapter->modules[i].module;
        if (!adapter->modules[i].r || !is_listed(family->gguf_deaf, m->tensors[0].name)) continue;
        if ((*count)++ == 0) first = m->hf_name;
    }
    return first;
}

int gguf_adapter_check(const struct adapter *adapter, struct error *err) {
    int ignored;
    const char *first = gguf_adapter_ignored(adapter, &ignored);
    if (first)
        return error_set(
            err, STATUS_DATA,
            "llama.cpp would load the adapters of %s%s and ignore them, as its %s graph multiplies by these "
            "weights directly: serve the PEFT folder, or train without them (lora_target_modules)",
            first, ignored > 1 ? " and others" : "", adapter->model->arch.family);
    for (int i = 0; i < adapter->n_modules; i++) {
        const struct adapter_module *m = &adapter->modules[i];
        const char *what = m->full        ? "a module that is trained whole (lora_modules_to_save)"
                           : m->rows      ? "trained token rows"
                           : m->magnitude ? "DoRA's magnitudes"
                           : m->bias      ? "a trained bias"
                                          : NULL;
        if (!what && m->module->layer < 0 && adapter->model->arch.tied)
            what = "an adapter on embedding or head where these are one matrix";
        if (what)
            return error_set(err, STATUS_DATA,
                             "%s: llama.cpp's adapter file cannot hold %s; `graft export --to merged` may",
                             m->module->hf_name, what);
    }
    return 0;
}

int gguf_adapter_write(const char *path, const struct adapter *adapter, struct error *err) {
    struct gguf_writer w = {0};
    struct pool pool = {0};
    struct output out = {0};
    int r = adapter->pissa ? 2 * adapter->r : adapter->r;
    float alpha = file_alpha(adapter, r, adapter_file_alpha(adapter, adapter->alpha));
    if (adapter->n_modules < 1) return error_set(err, STATUS_INTERNAL, "%s: an adapter of no modules", path);
    if (gguf_adapter_check(adapter, err)) return -1;
    gguf_put_string(&w, "general.type", "adapter");
    gguf_put_string(&w, "general.architecture", adapter->model->arch.family);
    put_base(&w, &pool, adapter->base_name);
    gguf_put_string(&w, "adapter.type", "lora");
    gguf_put_f32(&w, "adapter.lora.alpha", alpha);
    for (int i = 0; i < adapter->n_modules; i++) put_module(&w, &pool, adapter, &adapter->modules[i], alpha);
    int status = output_open(path, &out, err);
    if (status == 0) status = gguf_write(&w, &out.file, err);
    if (status == 0)
        status = output_commit(&out, err);
    else
        output_abandon(&out);
    gguf_writer_free(&w);
    pool_free(&pool);
    return status;
}

// --- Reading

struct gguf_reader {
    const struct gguf *file;
    const struct model *model;
    const struct gguf_tensor *(*halves)[FAMILY_PARTS][2]; // per module id and part; the first part of a tensor has it
    float alpha;                                          // 0 = the scale is 1, whatever the rank
    const char *base_name;                                // NULL when absent
    struct error *err;
};

static int expect(struct gguf_reader *r, struct pool *pool, const char *key, const char *value, const char *advice) {
    const char *text = NULL;
    int found = gguf_get_text(r->file, key, pool, &text, r->err);
    if (found < 0) return -1;
    if (found && strcmp(text, value) == 0) return 0;
    return error_set(r->err, STATUS_DATA, "%s: %s is '%.60s', expected '%s': %s", r->file->name, key, found ? text : "",
                     value, advice);
}

static int read_keys(struct gguf_reader *r, struct pool *pool) {
    if (expect(r, pool, "general.type", "adapter", "this is no adapter file") ||
        expect(r, pool, "adapter.type", "lora", "only LoRA can be read") ||
        expect(r, pool, "general.architecture", r->model->arch.family, "the adapter was made for another base"))
        return -1;
    if (gguf_find(r->file, "adapter.alora.invocation_tokens"))
        return error_set(r->err, STATUS_DATA, "%s: activated LoRA cannot be computed by this version", r->file->name);
    int64_t parts = 1;
    if (gguf_get_int(r->file, "split.count", 0, UINT16_MAX, &parts, r->err) < 0) return -1;
    if (parts > 1)
        return error_set(r->err, STATUS_DATA, "%s: is one of %lld parts: an adapter must be one file", r->file->name,
                         (long long)parts);
    const struct gguf_kv *kv = gguf_find(r->file, "adapter.lora.alpha");
    if (kv && kv->type != GGUF_F32)
        return error_set(r->err, STATUS_DATA, "%s: adapter.lora.alpha is %s, loaders require f32", r->file->name,
                         gguf_type_name(kv->type));
    double alpha = 0;
    if (gguf_get_float(r->file, "adapter.lora.alpha", &alpha, r->err) < 0) return -1;
    r->alpha = (float)alpha;
    if (gguf_get_text(r->file, "general.base_model.0.name", pool, &r->base_name, r->err) < 0 ||
        gguf_get_text(r->file, "general.base_model.0.repo_url", pool, &r->base_name, r->err) < 0)
        return -1;
    if (r->base_name && strncmp(r->base_name, HUB, sizeof HUB - 1) == 0) r->base_name += sizeof HUB - 1;
    return 0;
}

static bool ends_with(const char *name, size_t length, const char *ending) {
    size_t n = strlen(ending);
    return length >= n && memcmp(name + length - n, ending, n) == 0;
}

static int sort_tensors(struct gguf_reader *r) {
    for (size_t i = 0; i < r->file->n_tensors; i++) {
        const struct gguf_tensor *t = &r->file->tensors[i];
        size_t length = strlen(t->name), stem = length - (sizeof ".lora_a" - 1);
        int half = ends_with(t->name, length, ".lora_a") ? 0 : ends_with(t->name, length, ".lora_b") ? 1 : -1;
        bool found = false;
        if (half < 0 && ends_with(t->name, length, "_norm.weight")) continue; // as llama.cpp does
        for (int k = 0; k < r->model->n_modules && half >= 0 && !found; k++) {
            const struct module *m = &r->model->modules[k];
            bool reachable = m->layer >= 0 || !r->model->arch.tied;
            for (int p = 0; p < m->n_tensors && !found && reachable; p++) {
                const char *name = m->tensors[p].name;
                found = strlen(name) == stem && memcmp(name, t->name, stem) == 0;
                if (found) r->halves[m->id][p][half] = t;
            }
        }
        if (!found)
            return error_set(r->err, STATUS_DATA, "%s: tensor '%s': %s", r->file->name, t->name,
                             half < 0 ? "its name does not end in .lora_a or .lora_b"
                                      : "the base has no linear of this name that can be adapted");
    }
    return 0;
}

static int check_pair(struct gguf_reader *r, const struct module *m, const struct group *g) {
    const struct gguf_tensor *a = r->halves[m->id][g->first][0], *b = r->halves[m->id][g->first][1];
    if (!a || !b)
        return error_set(r->err, STATUS_DATA, "%s: '%s' has %s without %s", r->file->name, g->name,
                         a   ? "lora_a"
                         : b ? "lora_b"
                             : "another part of its module",
                         a   ? "lora_b"
                         : b ? "lora_a"
                             : "lora_a and lora_b of its own");
    bool turned = m->form == MODULE_EMBEDDING; // {r, V} and {r, D}
    if (turned && (a->ne[2] != 1 || b->ne[2] != 1 || a->ne[1] != m->out || b->ne[1] != m->in || a->ne[0] != b->ne[0]))
        return error_set(r->err, STATUS_DATA, "%s: '%s' has lora_a and lora_b of a wrong shape", r->file->name,
                         g->name);
    bool flat = a->ne[2] == m->experts && a->ne[3] == 1 && b->ne[2] == m->experts && b->ne[3] == 1;
    if (!turned && (!flat || a->ne[0] != m->in || b->ne[1] != g->rows || a->ne[1] != b->ne[0]))
        return error_set(r->err, STATUS_DATA,
                         "%s: '%s' has lora_a {%lld, %lld} and lora_b {%lld, %lld}, expected {%lld, r} and {r, %lld}",
                         r->file->name, g->name, (long long)a->ne[0], (long long)a->ne[1], (long long)b->ne[0],
                         (long long)b->ne[1], (long long)m->in, (long long)g->rows);
    if (b->ne[0] > ADAPTER_MAX_RANK)
        return error_set(r->err, STATUS_DATA, "%s: '%s' has rank %lld, the limit is %d", r->file->name, g->name,
                         (long long)b->ne[0], ADAPTER_MAX_RANK);
    return 0;
}

// Row `row` of a tensor as floats.
static int copy_row(struct gguf_reader *r, const struct gguf_tensor *t, int64_t row, float *values) {
    const struct quant_format *f = quant_by_ggml_type(t->ggml_type);
    if (!f || (f->id != QUANT_F32 && f->id != QUANT_F16 && f->id != QUANT_BF16 && f->id != QUANT_Q8_0))
        return error_set(r->err, STATUS_DATA, "%s: tensor '%s' is %s; F32, F16, BF16 and Q8_0 can be read",
                         r->file->name, t->name, quant_ggml_type_name(t->ggml_type));
    f->decode(t->data + (size_t)row * quant_row_bytes(f, t->ne[0]), values, t->ne[0]);
    for (int64_t i = 0; i < t->ne[0]; i++)
        if (!isfinite(values[i]))
            return error_set(r->err, STATUS_DATA, "%s: tensor '%s' is %g at [%lld, %lld]; the adapter is damaged",
                             r->file->name, t->name, (double)values[i], (long long)row, (long long)i);
    return 0;
}

static bool has_tensors(const struct gguf_reader *r, const struct module *m) {
    for (int p = 0; p < m->n_tensors; p++) {
        if (r->halves[m->id][p][0] || r->halves[m->id][p][1]) return true;
    }
    return false;
}

// A and B of every tensor of a module. Where it has several they must have the same A: PEFT knows only one.
static int read_module(struct gguf_reader *r, struct adapter *out, const struct module *module) {
    struct group g = group_at(module, 0);
    if (check_pair(r, module, &g)) return -1;
    const struct gguf_tensor *first = r->halves[module->id][0][0], *second = r->halves[module->id][0][1];
    int rank = (int)second->ne[0];
    if (adapter_add(out, module, rank, r->alpha != 0 ? r->alpha : (float)rank, r->err)) return -1;
    struct adapter_module *m = &out->modules[out->n_modules - 1];
    if (module->form == MODULE_EMBEDDING) {
        float row[ADAPTER_MAX_RANK];
        for (int64_t i = 0; i < module->out; i++)
            if (copy_row(r, first, i, m->b + i * rank)) return -1;
        for (int64_t i = 0; i < module->in; i++) {
            if (copy_row(r, second, i, row)) return -1;
            for (int k = 0; k < rank; k++) m->a[k * module->in + i] = row[k];
        }
        return 0;
    }
    for (int64_t row = 0; row < module->experts * m->r; row++) {
        if (copy_row(r, first, row, m->a + row * module->in)) return -1;
    }
    for (;; g = group_at(module, g.last)) {
        if (check_pair(r, module, &g)) return -1;
        const struct gguf_tensor *a = r->halves[module->id][g.first][0], *b = r->halves[module->id][g.first][1];
        if (a != first && (a->bytes != first->bytes || memcmp(a->data, first->data, (size_t)a->bytes) != 0))
            return error_set(r->err, STATUS_DATA,
                             "%s: '%s' and '%s' have different lora_a: they are one module in PEFT", r->file->name,
                             first->name, a->name);
        for (int64_t e = 0; e < module->experts; e++) {
            for (int64_t i = 0; i < g.rows; i++) {
                if (copy_row(r, b, e * g.rows + i, group_row(m, &g, e, i))) return -1;
            }
        }
        if (g.last == module->n_tensors) return 0;
    }
}

static int read_modules(struct gguf_reader *r, struct adapter *out) {
    int count = 0;
    for (int i = 0; i < r->model->n_modules; i++) {
        if (has_tensors(r, &r->model->modules[i])) count++;
    }
    if (count == 0) return error_set(r->err, STATUS_DATA, "%s: has no adapter tensors", r->file->name);
    int status = adapter_begin(r->model, count, out, r->err);
    for (int i = 0; i < r->model->n_modules && status == 0; i++) {
        if (has_tensors(r, &r->model->modules[i])) status = read_module(r, out, &r->model->modules[i]);
    }
    if (status == 0) {
        out->r = out->modules[0].r;
        out->alpha = out->modules[0].alpha;
        out->base_name = r->base_name ? pool_strdup(&out->pool, r->base_name) : NULL;
        if (r->base_name && !out->base_name) status = error_memory(r->err, "the base's name", strlen(r->base_name));
    }
    return status;
}

static int take(const struct gguf *file, const struct model *model, struct adapter *out, struct error *err) {
    struct pool pool = {0};
    struct gguf_reader r = {.file = file, .model = model, .err = err};
    r.halves = pool_array(&pool, (uint64_t)model->n_modules, sizeof *r.halves);
    int status = r.halves ? 0 : error_memory(err, "the tensor table", (size_t)model->n_modules * sizeof *r.halves);
    if (status == 0) status = read_keys(&r, &pool);
    if (status == 0) status = sort_tensors(&r);
    if (status == 0) status = read_modules(&r, out);
    if (status) adapter_free(out);
    pool_free(&pool);
    return status;
}

int gguf_adapter_parse(const char *name, const uint8_t *bytes, size_t length, const struct model *model,
                       struct adapter *out, struct error *err) {
    *out = (struct adapter){0};
    struct gguf file;
    if (gguf_parse(bytes, length, name, &file, err)) return -1;
    int status = take(&file, model, out, err);
    gguf_close(&file);
    return status;
}

int gguf_adapter_read(const char *path, const struct model *model, struct adapter *out, struct error *err) {
    *out = (struct adapter){0};
    struct gguf file;
    if (gguf_open(path, &file, err)) return -1;
    int status = take(&file, model, out, err);
    gguf_close(&file);
    return status;
}
