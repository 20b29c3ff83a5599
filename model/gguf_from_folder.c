// See gguf_export.h: a safetensors base as a GGUF. Every row of a tensor of the file is a row of a module
// (module_hf_row), which is a row of one of its weights (module_file_row): the table that reads GGUF files writes them.
#include "model/gguf_export.h"

#include "model/gguf_arch.h"

#include <stdio.h>
#include <string.h>

static int no_memory(struct error *err) {
    return error_memory(err, "the list of tensors", 0);
}

// --- rows of modules

struct module_rows { // of one tensor: entries [first, last) of module->tensors have its name
    const struct module *m;
    int first, last;
    int64_t rows; // of one expert
};

static int64_t hf_row_of(const struct module_rows *s, int64_t row) {
    int i = s->first;
    for (; row >= s->m->tensors[i].rows; i++) row -= s->m->tensors[i].rows;
    return module_hf_row(s->m, i, row);
}

// The part of the module that holds its row `row`, which becomes the row of that part.
static const struct module_part *part_of(const struct module *m, int64_t *row) {
    int64_t at = module_file_row(m, *row);
    int i = 0;
    while (i + 1 < m->n_parts && at >= m->parts[i].first_row + m->parts[i].rows) i++;
    *row = at - m->parts[i].first_row;
    return &m->parts[i];
}

static void read_module_row(const void *context, int64_t row, float *out) {
    const struct module_rows *s = context;
    int64_t expert = row / s->rows, at = hf_row_of(s, row % s->rows);
    const struct module_part *part = part_of(s->m, &at);
    weight_decode(&part->w[expert], at, 0, s->m->in, out);
}

// --- keys and values of latent attention: each head's rows are first its keys', then its values'; the keys' lie on
// their side in the file

struct latent_rows {
    const struct weight *w;
    int64_t key, value, in; // rows of a head, numbers in a row
};

static void read_latent_key(const void *context, int64_t row, float *out) {
    const struct latent_rows *s = context;
    int64_t first = row / s->in * (s->key + s->value);
    for (int64_t i = 0; i < s->key; i++) weight_decode(s->w, first + i, row % s->in, 1, out + i);
}

static void read_latent_value(const void *context, int64_t row, float *out) {
    const struct latent_rows *s = context;
    weight_decode(s->w, row / s->value * (s->key + s->value) + s->key + row % s->value, 0, s->in, out);
}

static int put_latent(struct gguf_export *e, const struct module *m, struct error *err) {
    const struct arch *a = &e->model->arch;
    struct latent_rows *s = pool_alloc(&e->pool, sizeof *s);
    char name[96];
    if (!s) return no_memory(err);
    int64_t heads = a->layer[m->layer].heads;
    *s = (struct latent_rows){m->parts[0].w, a->latent.nope, a->layer[m->layer].v_dim, m->in};
    snprintf(name, sizeof name, "blk.%d.attn_k_b.weight", m->layer);
    if (gguf_export_matrix(e, name, 3, (int64_t[]){s->key, s->in, heads}, false, read_latent_key, s, err)) return -1;
    snprintf(name, sizeof name, "blk.%d.attn_v_b.weight", m->layer);
    return gguf_export_matrix(e, name, 3, (int64_t[]){s->in, s->value, heads}, false, read_latent_value, s, err);
}

// --- vectors: in memory, as F32

static float *vector(struct gguf_export *e, const char *name, int n_dims, const int64_t *ne, struct error *err) {
    uint64_t count = 1;
    for (int d = 0; d < n_dims; d++) count *= (uint64_t)ne[d];
    float *values = pool_array(&e->pool, count, sizeof *values);
    if (values)
        gguf_put_tensor(&e->writer, name, quant_format(QUANT_F32)->ggml_type, n_dims, ne, values);
    else
        no_memory(err);
    return values;
}

// A norm, a bias or the like as it is stored, each number plus `add`; NULL = none.
static int put_vector(struct gguf_export *e, const char *name, const struct weight *w, int64_t rows, float add,
                      struct error *err) {
    if (!w) return 0;
    int64_t count = w->rows * w->cols;
    float *values = vector(e, name, rows > 1 ? 2 : 1, (int64_t[]){count / rows, rows}, err);
    if (!values) return -1;
    for (int64_t r = 0; r < w->rows; r++) weight_decode(w, r, 0, w->cols, values + r * w->cols);
    for (int64_t i = 0; i < count; i++) values[i] += add;
    return 0;
}

// The biases of a tensor's rows, in their order.
static int put_bias(struct gguf_export *e, const char *weight, const struct module_rows *s, struct error *err) {
    char name[96];
    if (!s->m->parts[0].bias) return 0;
    snprintf(name, sizeof name, "%.*s.bias", (int)(strlen(weight) - strlen(".weight")), weight);
    int64_t experts = s->m->experts;
    float *values = vector(e, name, experts > 1 ? 2 : 1, (int64_t[]){s->rows, experts}, err);
    for (int64_t i = 0; i < s->rows * experts && values; i++) {
        int64_t at = hf_row_of(s, i % s->rows);
        const struct module_part *part = part_of(s->m, &at);
        if (!part->bias) // only where a fused matrix has a bias on some of its parts
            return error_set(err, STATUS_DATA, "%s: %s has a bias on some of its rows only: a GGUF has no place for it",
                             e->model->path, s->m->hf_name);
        weight_decode(part->bias, i / s->rows, at, 1, &values[i]);
    }
    return values ? 0 : -1;
}

// --- layers

// Names that lie over linears another module has already.
static bool is_overlay(const struct model *model, const struct module *m) {
    return model->layer[m->layer].linear[m->parts[0].linear].on[0].module != m->id;
}

static int put_module(struct gguf_export *e, const struct module *m, struct error *err) {
    if (m->parts[0].linear == LINEAR_KV_B) return put_latent(e, m, err);
    for (int first = 0, last; first < m->n_tensors; first = last) {
        const char *name = m->tensors[first].name;
        struct module_rows *s = pool_alloc(&e->pool, sizeof *s);
        if (!s) return no_memory(err);
        *s = (struct module_rows){.m = m, .first = first};
        for (last = first; last < m->n_tensors && strcmp(m->tensors[last].name, name) == 0; last++)
            s->rows += m->tensors[last].rows;
        s->last = last;
        bool stacked = linear_is_expert(m->parts[0].linear);
        int n_dims = stacked ? 3 : s->rows == 1 ? 1 : 2; // the gate of a shared expert is a vector
        int64_t ne[] = {m->in, s->rows, m->experts};
        if (gguf_export_matrix(e, name, n_dims, ne, false, read_module_row, s, err) || put_bias(e, name, s, err))
            return -1;
    }
    return 0;
}

static int put_norms(struct gguf_export *e, int layer, struct error *err) {
    const struct arch *a = &e->model->arch;
    const struct layer_weights *y = &e->model->layer[layer];
    const struct family *f = e->model->family;
    char name[96];
    for (int i = 0; i < FAMILY_NORMS && f->norms[i].hf; i++) {
        const struct family_norm *n = &f->norms[i];
        // Layer norms of queries and keys have weights for each head (Cohere).
        bool by_head = a->norm == NORM_LAYER && (n->site == NORM_Q || n->site == NORM_K);
        int heads = !by_head ? 1 : n->site == NORM_Q ? a->layer[layer].heads : a->layer[layer].kv_heads;
        snprintf(name, sizeof name, "blk.%d.%s.weight", layer, n->gguf);
        if (put_vector(e, name, y->norm[n->site].w, heads, a->norm_plus_one ? 1 : 0, err)) return -1;
        snprintf(name, sizeof name, "blk.%d.%s.bias", layer, n->gguf);
        if (put_vector(e, name, y->norm[n->site].bias, heads, 0, err)) return -1;
    }
    if (f->sinks_gguf) {
        snprintf(name, sizeof name, "blk.%d.%s", layer, f->sinks_gguf);
        if (put_vector(e, name, y->sinks, 1, 0, err)) return -1;
    }
    if (!f->router_bias_gguf) return 0;
    snprintf(name, sizeof name, "blk.%d.%s", layer, f->router_bias_gguf);
    return put_vector(e, name, y->router_bias, 1, 0, err);
}

static int put_tensors(struct gguf_export *e, struct error *err) {
    const struct model *m = e->model;
    int layer = -1, status = 0;
    for (int i = 0; i < m->n_modules && status == 0; i++) { // in the order of layers, the ends last
        const struct module *module = &m->modules[i];
        if (module->form == MODULE_HEAD && m->arch.tied) continue;
        if (module->layer < 0) {
            struct module_rows *s = pool_alloc(&e->pool, sizeof *s);
            if (!s) return no_memory(err);
            *s = (struct module_rows){module, 0, 1, module->out};
            bool head = module->form == MODULE_HEAD || m->arch.tied;
            status = gguf_export_matrix(e, module->tensors[0].name, 2, (int64_t[]){module->in, module->out}, head,
                                        read_module_row, s, err);
            continue;
        }
        if (module->layer != layer) status = put_norms(e, layer = module->layer, err);
        if (status == 0 && !is_overlay(m, module)) status = put_module(e, module, err);
    }
    if (status) return -1;
    return put_vector(e, "output_norm.weight", m->final_norm, 1, m->arch.norm_plus_one ? 1 : 0, err) ||
                   put_vector(e, "output_norm.bias", m->final_norm_bias, 1, 0, err) ||
                   put_vector(e, "output.bias", m->head_bias, 1, 0, err)
               ? -1
               : 0;
}

// --- everything

static void put_general(struct gguf_export *e) {
    const struct model *m = e->model;
    gguf_put_string(&e->writer, "general.architecture", m->arch.family);
    gguf_put_string(&e->writer, "general.type", "model");
    gguf_put_string(&e->writer, "general.name", m->name);
    if (!m->hf_repository) return;
    const char *url = pool_printf(&e->pool, "https://huggingface.co/%s", m->hf_repository);
    if (url) gguf_put_string(&e->writer, "general.source.url", url);
    e->writer.failed |= !url;
}

static void put_vocabulary(struct gguf_export *e) {
    const struct vocab_source *v = &e->vocabulary.source;
    struct gguf_writer *w = &e->writer;
    gguf_put_string(w, "tokenizer.ggml.model", v->model);
    if (v->n_tokens == 0) return;
    gguf_put_string(w, "tokenizer.ggml.pre", v->pre);
    gguf_put_strings(w, "tokenizer.ggml.tokens", v->tokens, v->n_tokens);
    if (v->scores) gguf_put_f32s(w, "tokenizer.ggml.scores", v->scores, v->n_tokens);
    gguf_put_i32s(w, "tokenizer.ggml.token_type", v->types, v->n_tokens);
    if (!v->scores) gguf_put_strings(w, "tokenizer.ggml.merges", v->merges, v->n_merges);
    if (v->bos >= 0) gguf_put_u32(w, "tokenizer.ggml.bos_token_id", (uint32_t)v->bos);
    if (v->eos >= 0) gguf_put_u32(w, "tokenizer.ggml.eos_token_id", (uint32_t)v->eos);
    if (v->eot >= 0) gguf_put_u32(w, "tokenizer.ggml.eot_token_id", (uint32_t)v->eot);
    if (v->unk >= 0) gguf_put_u32(w, "tokenizer.ggml.unknown_token_id", (uint32_t)v->unk);
    if (v->pad >= 0) gguf_put_u32(w, "tokenizer.ggml.padding_token_id", (uint32_t)v->pad);
    gguf_put_bool(w, "tokenizer.ggml.add_bos_token", v->add_bos);
    if (v->scores) gguf_put_bool(w, "tokenizer.ggml.add_space_prefix", v->add_space_prefix);
    if (v->chat_template.length > 0)
        gguf_put_bytes(w, "tokenizer.chat_template", v->chat_template.bytes, v->chat_template.length);
}

int gguf_export_folder(struct gguf_export *e, struct error *err) {
    const struct model *m = e->model;
    put_general(e);
    if (gguf_put_arch(e, err)) return -1;
    if (gguf_vocabulary_open(&m->vocab, (size_t)m->arch.vocab, &e->vocabulary, &e->notes, err)) return -1;
    put_vocabulary(e);
    if (put_tensors(e, err) || gguf_check_arch(e, err)) return -1;
    if (m->ignored_tensors > 0)
        text_printf(&e->notes, "%llu tensors of other parts of the model are left out\n",
                    (unsigned long long)m->ignored_tensors);
    if (quant_by_name(m->file_type) && quant_by_name(m->file_type)->bits < 16)
        text_printf(&e->notes, "the base is packed already (%s): what it lost then stays lost\n", m->file_type);
    return 0;
}
