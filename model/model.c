// See model.h: a base's files -> architecture -> weights and modules -> vocabulary.
#include "model/model_loader.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// --- the family

static int unknown(struct loader *l, const char *what, const char *name, bool gguf) {
    struct text known = {0};
    family_list(gguf, &known);
    error_set(l->err, STATUS_DATA, "%s: %s '%.100s' is not in this version; these are: %s", l->base->name, what, name,
              text_str(&known));
    text_free(&known);
    return -1;
}

static int map_gguf(struct loader *l) {
    struct gguf *file = &l->base->parts[0];
    struct model *m = l->model;
    const char *architecture = NULL;
    int found = gguf_get_text(file, "general.architecture", &m->pool, &architecture, l->err);
    if (found < 0) return -1;
    if (!found) return error_set(l->err, STATUS_DATA, "%s: key 'general.architecture' is missing", l->base->name);
    l->family = family_find_gguf(architecture);
    if (!l->family) return unknown(l, "architecture", architecture, true);
    m->arch.family = architecture;
    size_t first = strcspn(l->family->model_types, "|");
    m->arch.model_type = pool_strndup(&m->pool, l->family->model_types, first);
    if (!m->arch.model_type) return error_memory(l->err, "the architecture", first);
    struct hparams h;
    hparams_from_gguf(&h, file, architecture, &m->pool, l->err);
    l->family->map(&h, &m->arch);
    if (hparams_failed(&h)) return -1;
    static const char *const rope[] = {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"};
    for (size_t i = 0; i < COUNT_OF(rope); i++) { // were read as hyper-parameters
        if (base_find(l->base, rope[i], NULL) && !gguf_find_tensor(file, rope[i]))
            return error_set(l->err, STATUS_DATA, "%s: tensor '%s' is not in the first part", l->base->name, rope[i]);
    }
    struct base_tensor embed;
    if (!base_find(l->base, "token_embd.weight", &embed))
        return error_set(l->err, STATUS_DATA, "%s: tensor 'token_embd.weight' is missing", l->base->name);
    if (embed.shape[0] < 1 || embed.shape[0] > 1 << 24)
        return error_set(l->err, STATUS_DATA, "%s: a vocabulary of %lld", l->base->name, (long long)embed.shape[0]);
    m->arch.vocab = (int)embed.shape[0];
    return 0;
}

// What stands before "layers.0." in a Hugging Face file: text models in a multimodal one lie deeper. Adapters of a
// GGUF base are named after it, too.
static void find_root(struct loader *l) {
    static const char *const roots[] = {"model.", "language_model.model.", "model.language_model.", ""};
    l->root = l->module_root = l->family->hf_root ? l->family->hf_root : "model.";
    l->head_root = "";
    if (l->family->hf_root || l->base->kind == BASE_GGUF) return;
    for (size_t i = 0; i < COUNT_OF(roots); i++) {
        char name[96];
        snprintf(name, sizeof name, "%sembed_tokens.weight", roots[i]);
        if (!base_find(l->base, name, NULL)) continue;
        l->root = roots[i];
        bool wrapped = strstr(l->root, "language_model") != NULL;
        if (wrapped) l->module_root = l->family->wrapped_root ? l->family->wrapped_root : "model.language_model.";
        if (wrapped && l->family->wrapped_head) l->head_root = l->family->wrapped_head;
        return;
    }
}

static int map_json(struct loader *l) {
    struct model *m = l->model;
    const struct json *root = l->base->config.root, *text = json_get(root, "text_config");
    size_t length = 0;
    const char *type = json_string(json_get(text, "model_type"), &length);
    if (!type) type = json_string(json_get(root, "model_type"), &length);
    if (type && strlen(type) != length)
        return error_set(l->err, STATUS_DATA, "%s/config.json: key 'model_type' holds a NUL", l->base->name);
    if (!type) return error_set(l->err, STATUS_DATA, "%s: config.json has no key 'model_type'", l->base->name);
    l->family = family_find_hf(type);
    if (!l->family) return unknown(l, "model type", type, false);
    m->arch.model_type = type; // lives in the document
    m->arch.family = pool_strndup(&m->pool, l->family->gguf_arch, strcspn(l->family->gguf_arch, "|"));
    if (!m->arch.family) return error_memory(l->err, "the architecture", 0);
    const char *name = pool_printf(&m->pool, "%s%s", l->base->name, l->base->kind == BASE_SHAPES ? "" : "/config.json");
    if (!name) return error_memory(l->err, "the architecture", 0);
    if (packing_read(root, name, &l->packing, l->err)) return -1;
    struct hparams h;
    hparams_from_json(&h, name, root, &m->pool, l->err);
    l->family->map(&h, &m->arch);
    return hparams_failed(&h);
}

// --- what is left over

// Tensors that no token is computed with here: tables made anew, layers that predict further tokens, ranges of
// activations, the other parts of a multimodal model.
static bool ignored(const struct loader *l, const char *name) {
    static const char *const endings[] = {".rotary_emb.inv_freq", ".input_scale", ".activation_scale", ".k_scale",
                                          ".v_scale"};
    bool gguf = l->base->kind == BASE_GGUF;
    for (size_t i = 0; i < COUNT_OF(endings) && !gguf; i++) {
        if (text_ends_with(name, endings[i])) return true;
    }
    char layers[96];
    snprintf(layers, sizeof layers, gguf ? "blk." : "%slayers.", l->root);
    if (strncmp(name, layers, strlen(layers)) == 0) {
        char *end;
        long layer = strtol(name + strlen(layers), &end, 10);
        return *end == '.' && layer >= l->model->arch.layers && l->model->arch.extra_layers;
    }
    bool wrapper = !gguf && json_is(json_get(l->base->config.root, "text_config"), JSON_OBJECT);
    return wrapper && strncmp(name, l->root, strlen(l->root)) != 0 && !strstr(name, "lm_head");
}

// A tensor that the architecture has no place for belongs to another model: its numbers would be wrong without it.
static int check_all_used(const struct loader *l) {
    uint64_t unused = 0;
    const char *first = NULL;
    for (uint64_t i = 0; i < l->base->n_tensors; i++) {
        const char *name = base_unused(l->base, i);
        if (!name) continue;
        if (ignored(l, name)) {
            struct base_tensor t;
            base_find(l->base, name, &t);
            l->model->ignored_tensors++;
            l->model->ignored_bytes += t.bytes;
            continue;
        }
        if (unused++ == 0) first = name;
    }
    if (unused == 0) return 0;
    return error_set(l->err, STATUS_DATA,
                     "%s: tensor '%s'%s has no place in the %s architecture as this version knows it; trained without "
                     "it, the adapter would fit another model",
                     l->base->name, first, unused > 1 ? " (and others)" : "", l->model->arch.family);
}

// --- everything

static int by_segment(const void *a, const void *b) {
    const struct weight *x = *(const struct weight *const *)a, *y = *(const struct weight *const *)b;
    if (x->segment != y->segment) return x->segment < y->segment ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

static int take_all(struct loader *l) {
    struct model *m = l->model;
    m->layer = pool_array(&m->pool, (uint64_t)m->arch.layers, sizeof *m->layer);
    if (!m->layer) return error_memory(l->err, "the weight table", (size_t)m->arch.layers * sizeof *m->layer);
    for (int i = 0; i < m->arch.layers && !l->failed; i++) loader_take_layer(l, i);
    if (!l->failed) loader_take_ends(l);
    if (!l->failed) loader_take_norm_modules(l);
    if (l->failed) return -1;
    struct module *modules = pool_array(&m->pool, (uint64_t)l->n_modules, sizeof *modules);
    const struct weight **ordered = pool_array(&m->pool, (uint64_t)l->n_weights, sizeof *ordered);
    if (!modules || !ordered) return error_memory(l->err, "the weight table", (size_t)l->n_weights * sizeof *ordered);
    memcpy(modules, m->modules, (size_t)l->n_modules * sizeof *modules);
    memcpy(ordered, l->weights, (size_t)l->n_weights * sizeof *ordered);
    qsort(ordered, (size_t)l->n_weights, sizeof *ordered, by_segment);
    mem_free(m->modules);
    m->modules = modules, m->n_modules = l->n_modules;
    m->weights = ordered, m->n_weights = l->n_weights;
    for (int i = 0; i < m->n_weights; i++) {
        bool shared = m->weights[i] == m->head && m->arch.tied;
        if (!shared) m->weight_bytes += weight_stored_bytes(m->weights[i]);
    }
    return check_all_used(l);
}

// The type most parameters of the linears have.
static const char *common_type(const struct model *m) {
    uint64_t sizes[QUANT_COUNT] = {0};
    int best = 0;
    for (int i = 0; i < m->n_modules; i++) {
        const struct module *module = &m->modules[i];
        if (module->layer < 0) continue;
        for (int p = 0; p < module->n_parts; p++)
            sizes[module->parts[p].w->format->id] +=
                (uint64_t)module->in * (uint64_t)module->parts[p].rows * (uint64_t)module->experts;
    }
    for (int q = 1; q < QUANT_COUNT; q++) {
        if (sizes[q] > sizes[best]) best = q;
    }
    return quant_format(best)->name;
}

static bool is_repository(const char *name) {
    const char *slash = name ? strchr(name, '/') : NULL;
    return slash && slash != name && slash[1] && !strchr(slash + 1, '/') && name[0] != '.' && name[0] != '~';
}

static int describe(struct loader *l) {
    struct model *m = l->model;
    size_t length = strlen(m->path);
    while (length > 1 && m->path[length - 1] == '/') length--;
    const char *end = m->path + length, *begin = end;
    while (begin > m->path && begin[-1] != '/') begin--;
    m->name = pool_strndup(&m->pool, begin, (size_t)(end - begin));
    if (!m->name) return error_memory(l->err, "the model's name", length);
    m->file_type = common_type(m);
    m->file_bytes = l->base->bytes;
    if (base_header_hash(l->base, m->header_sha256, l->err)) return -1;
    if (l->base->kind != BASE_GGUF) {
        const char *name = json_string(json_get(l->base->config.root, "_name_or_path"), NULL);
        bool found = strcmp(m->path, l->base->path) != 0 && is_repository(m->path); // by its name on the hub
        if (found || is_repository(name)) m->hf_repository = found ? m->path : name;
        return 0;
    }
    const struct gguf *g = &l->base->parts[0];
    if (gguf_get_text(g, "general.name", &m->pool, &m->name, l->err) < 0) return -1;
    const char *url = NULL;
    if (gguf_get_text(g, "general.base_model.0.repo_url", &m->pool, &url, l->err) < 0) return -1;
    if (!url && gguf_get_text(g, "general.source.url", &m->pool, &url, l->err) < 0) return -1;
    const char *host = url ? strstr(url, "huggingface.co/") : NULL;
    if (host) m->hf_repository = host + strlen("huggingface.co/");
    return 0;
}

static int load(struct loader *l, const char *path) {
    struct model *m = l->model;
    m->path = pool_strdup(&m->pool, path);
    if (!m->path) return error_memory(l->err, "the model's path", strlen(path));
    if (l->base->kind == BASE_GGUF ? map_gguf(l) : map_json(l)) return -1;
    m->family = l->family;
    find_root(l);
    return take_all(l) || loader_take_vocab(l) || describe(l) ? -1 : 0;
}

int model_open(const char *path, const char *given, struct model *out, struct error *err) {
    *out = (struct model){0};
    struct base *base = mem_zalloc(1, sizeof *base);
    if (!base) return error_memory(err, "the model", sizeof *base);
    if (base_open(path, base, err)) {
        mem_free(base);
        return -1;
    }
    out->base = base;
    struct loader l = {.model = out, .base = base, .err = err};
    int status = load(&l, given ? given : path);
    mem_free(l.weights);
    if (status == 0) return 0;
    if (out->modules && !out->weights) mem_free(out->modules); // still growing
    model_close(out);
    return -1;
}

void model_close(struct model *m) {
    if (m->base) base_close(m->base);
    mem_free(m->base);
    pool_free(&m->pool);
    *m = (struct model){0};
}

bool model_has_weights(const struct model *m) {
    return m->base && m->base->kind != BASE_SHAPES;
}

int model_require_weights(const struct model *m, struct error *err) {
    if (model_has_weights(m)) return 0;
    return error_set(err, STATUS_NOINPUT,
                     "%s: has a config.json, but neither model.safetensors nor model.safetensors.index.json: "
                     "`graft plan` can do with that, everything else needs the weights",
                     m->path);
}

int64_t module_file_row(const struct module *m, int64_t hf_row) {
    for (int i = 0; i < m->n_parts; i++) {
        const struct module_part *p = &m->parts[i];
        int64_t row = hf_row - p->hf_first, run = p->hf_run ? p->hf_run : 1;
        if (row < 0 || row % p->hf_step >= run || row / p->hf_step * run >= p->rows) continue;
        row = row / p->hf_step * run + row % p->hf_step;
        if (p->permuted_heads > 0) {
            int64_t dim = p->rows / p->permuted_heads, head = row / dim, at = row % dim;
            row = head * dim + 2 * (at % (dim / 2)) + at / (dim / 2);
        }
        return p->first_row + row;
    }
    return hf_row;
}

int64_t module_hf_row(const struct module *m, int i, int64_t row) {
    const struct module_tensor *t = &m->tensors[i];
    if (t->permuted_heads > 0) {
        int64_t dim = t->rows / t->permuted_heads, head = row / dim, at = row % dim;
        row = head * dim + at % 2 * (dim / 2) + at / 2;
    }
    int64_t run = t->hf_run ? t->hf_run : 1;
    return t->hf_first + row / run * t->hf_step + row % run;
}

const struct module *model_find_module(const struct model *m, const char *hf_name, size_t length) {
    for (int i = 0; i < m->n_modules; i++) {
        if (strlen(m->modules[i].hf_name) == length && memcmp(m->modules[i].hf_name, hf_name, length) == 0)
            return &m->modules[i];
    }
    return NULL;
}
