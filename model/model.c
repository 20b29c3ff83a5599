// See model.h. A GGUF file: keys -> arch, tensors -> weights, modules and vocabulary; every shape is checked against
// the architecture before anything is handed out.
#include "model/model.h"

#include "kernels/hash.h"
#include "model/family.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct loader {
    struct model *model;
    const struct gguf *file;
    const struct family *family;
    struct weight *weights; // room for all
    int capacity;
    bool *used; // (n_tensors) of the file
    struct error *err;
};

// Tensor `name` as a (rows, cols) weight of `segment`. Missing: NULL and no error unless `required`.
static const struct weight *take(struct loader *l, const char *name, int64_t rows, int64_t cols, int segment,
                                 bool required, bool *failed) {
    const struct gguf_tensor *t = gguf_find_tensor(l->file, name);
    if (!t) {
        if (required) {
            error_set(l->err, STATUS_DATA, "%s: tensor '%s' is missing", l->file->name, name);
            *failed = true;
        }
        return NULL;
    }
    const struct quant_format *format = quant_by_ggml_type(t->ggml_type);
    if (!format) {
        error_set(l->err, STATUS_DATA, "%s: tensor '%s' has type %s, which is not in this version", l->file->name, name,
                  quant_ggml_type_name(t->ggml_type));
        *failed = true;
        return NULL;
    }
    if (t->ne[0] != cols || t->ne[1] != rows || t->n_dims > 2) {
        error_set(l->err, STATUS_DATA, "%s: tensor '%s' is %lld x %lld, the architecture says %lld x %lld",
                  l->file->name, name, (long long)t->ne[1], (long long)t->ne[0], (long long)rows, (long long)cols);
        *failed = true;
        return NULL;
    }
    struct model *m = l->model;
    struct weight *w = &l->weights[m->n_weights];
    *w = (struct weight){.format = format,
                         .rows = rows,
                         .cols = cols,
                         .data = t->data,
                         .name = t->name,
                         .segment = segment,
                         .id = (uint32_t)m->n_weights++};
    l->used[t - l->file->tensors] = true;
    m->total_parameters += (uint64_t)rows * (uint64_t)cols;
    return w;
}

static int module_shape(const struct arch *arch, const struct layer_arch *a, enum module_kind kind, int64_t *out,
                        int64_t *in) {
    int64_t q = (int64_t)a->heads * a->head_dim, k = (int64_t)a->kv_heads * a->head_dim;
    int64_t v = (int64_t)a->kv_heads * a->v_dim, o = (int64_t)a->heads * a->v_dim;
    *in = arch->width;
    switch (kind) {
    case MODULE_Q: *out = q; return a->heads;
    case MODULE_K: *out = k; return a->kv_heads;
    case MODULE_V: *out = v; return 0;
    case MODULE_O: *out = arch->width, *in = o; return 0;
    case MODULE_GATE:
    case MODULE_UP: *out = a->ffn; return 0;
    case MODULE_DOWN: *out = arch->width, *in = a->ffn; return 0;
    case MODULE_KINDS: break;
    }
    return 0;
}

static int take_layer(struct loader *l, int layer) {
    struct model *m = l->model;
    char name[96];
    bool failed = false;
    snprintf(name, sizeof name, "blk.%d.%s.weight", layer, l->family->attn_norm);
    m->layer[layer].attn_norm = take(l, name, 1, m->arch.width, SEGMENT_RESIDENT, true, &failed);
    snprintf(name, sizeof name, "blk.%d.%s.weight", layer, l->family->ffn_norm);
    m->layer[layer].ffn_norm = take(l, name, 1, m->arch.width, SEGMENT_RESIDENT, true, &failed);
    for (int kind = 0; kind < MODULE_KINDS && !failed; kind++) {
        const struct module_name *names = &l->family->modules[kind];
        struct module *mod = &m->modules[layer * MODULE_KINDS + kind];
        int heads = module_shape(&m->arch, &m->arch.layer[layer], kind, &mod->out, &mod->in);
        mod->id = layer * MODULE_KINDS + kind;
        mod->layer = layer;
        mod->kind = kind;
        mod->permuted_heads = l->family->permuted_qk ? heads : 0;
        mod->hf_name = pool_printf(&m->pool, "model.layers.%d.%s", layer, names->hf);
        mod->gguf_name = pool_printf(&m->pool, "blk.%d.%s.weight", layer, names->gguf);
        if (!mod->hf_name || !mod->gguf_name) return error_memory(l->err, "module names", 64);
        mod->short_name = strrchr(mod->hf_name, '.') + 1;
        mod->w = take(l, mod->gguf_name, mod->out, mod->in, SEGMENT_LAYER0 + layer, true, &failed);
        snprintf(name, sizeof name, "blk.%d.%s.bias", layer, names->gguf);
        mod->bias = take(l, name, 1, mod->out, SEGMENT_RESIDENT, false, &failed);
    }
    return failed ? -1 : 0;
}

static int by_segment(const void *a, const void *b) {
    const struct weight *x = *(const struct weight *const *)a, *y = *(const struct weight *const *)b;
    if (x->segment != y->segment) return x->segment < y->segment ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

// Llama 3's scaling is a tensor of divisors for the inverse frequencies.
static int rope_factors(struct loader *l) {
    struct arch *arch = &l->model->arch;
    const struct gguf_tensor *t = gguf_find_tensor(l->file, "rope_freqs.weight");
    if (!t) return 0;
    int64_t half = arch->rope.rotary_dim / 2;
    float *factors = pool_array(&l->model->pool, (uint64_t)half, sizeof *factors);
    if (!factors) return error_memory(l->err, "rope factors", (size_t)half * sizeof *factors);
    if (t->ggml_type != quant_format(QUANT_F32)->ggml_type || t->ne[0] != half || t->n_dims != 1) {
        return error_set(l->err, STATUS_DATA, "%s: tensor 'rope_freqs.weight' is not %lld numbers of F32",
                         l->file->name, (long long)half);
    }
    memcpy(factors, t->data, (size_t)half * sizeof *factors);
    for (int64_t i = 0; i < half; i++) {
        if (!(factors[i] > 0 && factors[i] < 1e6f)) {
            return error_set(l->err, STATUS_DATA, "%s: rope_freqs.weight[%lld] is %g", l->file->name, (long long)i,
                             (double)factors[i]);
        }
    }
    arch->rope.factors = factors;
    l->used[t - l->file->tensors] = true;
    return 0;
}

// A tensor that the architecture has no place for belongs to another model: its numbers would be wrong without it.
static int check_all_used(const struct loader *l) {
    size_t unused = 0, first = 0;
    for (size_t i = l->file->n_tensors; i-- > 0;) {
        if (!l->used[i]) unused++, first = i;
    }
    if (unused == 0) return 0;
    return error_set(
        l->err, STATUS_DATA,
        "%s: tensor '%s'%s has no place in the %s architecture as this version knows it; trained without it, "
        "the adapter would fit another model",
        l->file->name, l->file->tensors[first].name, unused > 1 ? " (and others)" : "", l->family->gguf_arch);
}

static int take_all(struct loader *l) {
    struct model *m = l->model;
    l->used = pool_array(&m->pool, l->file->n_tensors, sizeof *l->used);
    if (!l->used) return error_memory(l->err, "the tensor table", l->file->n_tensors);
    memset(l->used, 0, l->file->n_tensors);
    struct arch *arch = &m->arch;
    const struct gguf_tensor *embed = gguf_find_tensor(l->file, "token_embd.weight");
    if (!embed) return error_set(l->err, STATUS_DATA, "%s: tensor 'token_embd.weight' is missing", l->file->name);
    if (embed->ne[1] < 1 || embed->ne[1] > 1 << 24) {
        return error_set(l->err, STATUS_DATA, "%s: a vocabulary of %lld", l->file->name, (long long)embed->ne[1]);
    }
    arch->vocab = (int)embed->ne[1];
    l->capacity = arch->layers * (2 * MODULE_KINDS + 2) + 4;
    l->weights = pool_array(&m->pool, (uint64_t)l->capacity, sizeof *l->weights);
    m->layer = pool_array(&m->pool, (uint64_t)arch->layers, sizeof *m->layer);
    m->n_modules = arch->layers * MODULE_KINDS;
    m->modules = pool_array(&m->pool, (uint64_t)m->n_modules, sizeof *m->modules);
    if (!l->weights || !m->layer || !m->modules)
        return error_memory(l->err, "the weight table", (size_t)l->capacity * sizeof *l->weights);
    bool failed = false;
    int head_segment = SEGMENT_LAYER0 + arch->layers;
    m->n_segments = head_segment + 1;
    m->embed = take(l, "token_embd.weight", arch->vocab, arch->width, SEGMENT_EMBED, true, &failed);
    if (failed) return -1;
    for (int i = 0; i < arch->layers; i++) {
        if (take_layer(l, i)) return -1;
    }
    m->final_norm = take(l, "output_norm.weight", 1, arch->width, SEGMENT_RESIDENT, true, &failed);
    m->head = take(l, "output.weight", arch->vocab, arch->width, head_segment, false, &failed);
    if (failed) return -1;
    if (!m->head) { // tied: the same bytes as a weight of the head's segment
        arch->tied = true;
        struct weight *w = &l->weights[m->n_weights];
        *w = *m->embed;
        w->segment = head_segment;
        w->id = (uint32_t)m->n_weights++;
        m->head = w;
    }
    return rope_factors(l) || check_all_used(l) ? -1 : 0;
}

static int take_vocab(struct loader *l) {
    const struct gguf *g = l->file;
    struct model *m = l->model;
    struct vocab_source *v = &m->vocab;
    struct pool *pool = &m->pool;
    struct error *err = l->err;
    size_t n;
    *v = (struct vocab_source){.file = m->path, .bos = -1, .eos = -1, .eot = -1, .unk = -1, .pad = -1};
    int found = gguf_get_text(g, "tokenizer.ggml.model", pool, &v->model, err);
    if (found < 0) return -1;
    if (!found)
        return error_set(err, STATUS_DATA, "%s: key 'tokenizer.ggml.model' is missing: the file has no vocabulary",
                         g->name);
    if (gguf_get_text(g, "tokenizer.ggml.pre", pool, &v->pre, err) < 0) return -1;
    if (gguf_get_strings(g, "tokenizer.ggml.tokens", pool, &v->tokens, &v->n_tokens, err) < 0) return -1;
    if (v->n_tokens == 0)
        return error_set(err, STATUS_DATA, "%s: key 'tokenizer.ggml.tokens' is missing or empty", g->name);
    if (v->n_tokens > (size_t)m->arch.vocab)
        return error_set(err, STATUS_DATA, "%s: %zu tokens, but 'token_embd.weight' has %d rows", g->name, v->n_tokens,
                         m->arch.vocab);
    if (gguf_get_i32s(g, "tokenizer.ggml.token_type", pool, &v->types, &n, err) < 0) return -1;
    if (v->types && n != v->n_tokens)
        return error_set(err, STATUS_DATA, "%s: %zu token types for %zu tokens", g->name, n, v->n_tokens);
    if (gguf_get_f32s(g, "tokenizer.ggml.scores", pool, &v->scores, &n, err) < 0) return -1;
    if (v->scores && n != v->n_tokens)
        return error_set(err, STATUS_DATA, "%s: %zu scores for %zu tokens", g->name, n, v->n_tokens);
    if (gguf_get_strings(g, "tokenizer.ggml.merges", pool, &v->merges, &v->n_merges, err) < 0) return -1;
    bool llama = strcmp(v->model, "llama") == 0, gpt2 = strcmp(v->model, "gpt2") == 0;
    if (llama) v->bos = 1, v->eos = 2, v->unk = 0, v->add_bos = v->add_space_prefix = true;
    if (gpt2) {
        static const char *const with_bos[] = {"llama-bpe", "llama3", "llama-v3", "tekken", "chameleon"};
        v->bos = v->eos = v->n_tokens > 11 ? 11 : -1;
        for (size_t i = 0; v->pre && i < COUNT_OF(with_bos); i++) v->add_bos |= strcmp(v->pre, with_bos[i]) == 0;
    }
    const struct {
        const char *key;
        int32_t *id;
    } ids[] = {{"bos", &v->bos}, {"eos", &v->eos}, {"eot", &v->eot}, {"unknown", &v->unk}, {"padding", &v->pad}};
    for (size_t i = 0; i < COUNT_OF(ids); i++) {
        char key[64];
        int64_t id;
        snprintf(key, sizeof key, "tokenizer.ggml.%s_token_id", ids[i].key);
        int has = gguf_get_int(g, key, 0, (int64_t)v->n_tokens - 1, &id, err);
        if (has < 0) return -1;
        if (has) *ids[i].id = (int32_t)id;
    }
    if (gguf_get_bool(g, "tokenizer.ggml.add_bos_token", &v->add_bos, err) < 0) return -1;
    if (gguf_get_bool(g, "tokenizer.ggml.add_eos_token", &v->add_eos, err) < 0) return -1;
    if (gguf_get_bool(g, "tokenizer.ggml.add_space_prefix", &v->add_space_prefix, err) < 0) return -1;
    return gguf_get_string(g, "tokenizer.chat_template", &v->chat_template, err) < 0 ? -1 : 0;
}

// The type most parameters of the linears have.
static const char *common_type(const struct model *m) {
    uint64_t sizes[QUANT_COUNT] = {0};
    int best = 0;
    for (int i = 0; i < m->n_modules; i++)
        sizes[m->modules[i].w->format->id] += (uint64_t)m->modules[i].in * (uint64_t)m->modules[i].out;
    for (int q = 1; q < QUANT_COUNT; q++) {
        if (sizes[q] > sizes[best]) best = q;
    }
    return quant_format(best)->name;
}

static int describe(struct loader *l) {
    struct model *m = l->model;
    const struct gguf *g = l->file;
    const char *slash = strrchr(m->path, '/');
    m->name = slash ? slash + 1 : m->path;
    m->file_type = common_type(m);
    m->file_bytes = g->size;
    if (gguf_get_text(g, "general.name", &m->pool, &m->name, l->err) < 0) return -1;
    const char *url = NULL;
    if (gguf_get_text(g, "general.base_model.0.repo_url", &m->pool, &url, l->err) < 0) return -1;
    if (!url && gguf_get_text(g, "general.source.url", &m->pool, &url, l->err) < 0) return -1;
    const char *host = url ? strstr(url, "huggingface.co/") : NULL;
    if (host) m->hf_repository = host + strlen("huggingface.co/");
    return sha256_bytes(g->bytes, (size_t)g->data_start, m->header_sha256, l->err);
}

static int load(struct loader *l, const char *path) {
    struct model *m = l->model;
    const char *architecture = NULL;
    m->path = pool_strdup(&m->pool, path);
    if (!m->path) return error_memory(l->err, "the model's path", strlen(path));
    int found = gguf_get_text(l->file, "general.architecture", &m->pool, &architecture, l->err);
    if (found < 0) return -1;
    if (!found) return error_set(l->err, STATUS_DATA, "%s: key 'general.architecture' is missing", path);
    l->family = family_find_gguf(architecture);
    if (!l->family) {
        char known[256] = "";
        for (int i = 0; i < family_count; i++)
            snprintf(known + strlen(known), sizeof known - strlen(known), "%s%s", i ? ", " : "",
                     family_table[i].gguf_arch);
        return error_set(l->err, STATUS_DATA, "%s: architecture '%s' is not in this version; these are: %s", path,
                         architecture, known);
    }
    if (l->family->map_gguf(l->file, &m->pool, &m->arch, l->err) || take_all(l) || take_vocab(l) || describe(l))
        return -1;
    const struct weight **ordered = pool_array(&m->pool, (uint64_t)m->n_weights, sizeof *ordered);
    if (!ordered) return error_memory(l->err, "the weight table", (size_t)m->n_weights * sizeof *ordered);
    for (int i = 0; i < m->n_weights; i++) ordered[i] = &l->weights[i];
    qsort(ordered, (size_t)m->n_weights, sizeof *ordered, by_segment);
    m->weights = ordered;
    return 0;
}

int model_open(const char *path, struct model *out, struct error *err) {
    *out = (struct model){0};
    struct gguf *file = mem_zalloc(1, sizeof *file);
    if (!file) return error_memory(err, "the model", sizeof *file);
    if (gguf_open(path, file, err)) {
        mem_free(file);
        return -1;
    }
    out->gguf = file;
    struct loader l = {.model = out, .file = file, .err = err};
    if (!load(&l, path)) return 0;
    model_close(out);
    return -1;
}

void model_close(struct model *m) {
    if (m->gguf) gguf_close(m->gguf);
    mem_free(m->gguf);
    pool_free(&m->pool);
    *m = (struct model){0};
}

int64_t module_file_row(const struct module *m, int64_t hf_row) {
    if (m->permuted_heads == 0) return hf_row;
    int64_t dim = m->out / m->permuted_heads, head = hf_row / dim, at = hf_row % dim;
    int64_t half = at / (dim / 2), i = at % (dim / 2);
    return head * dim + 2 * i + half;
}

const struct module *model_find_module(const struct model *m, const char *hf_name, size_t length) {
    for (int i = 0; i < m->n_modules; i++) {
        if (strlen(m->modules[i].hf_name) == length && memcmp(m->modules[i].hf_name, hf_name, length) == 0)
            return &m->modules[i];
    }
    return NULL;
}
