// See model_vocab.h. The vocabulary of a base: from GGUF keys (formats.md 2.6), or from the tokenizer files of its
// folder.
#include "model/model_vocab.h"

#include "model/model_loader.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

// Defaults that depend on model and pre-tokenizer, as llama.cpp has them.
static void set_defaults(struct vocab_source *v) {
    static const char *const with_bos[] = {"llama-bpe", "llama3", "llama-v3", "falcon3",
                                           "pixtral",   "lfm2",   "tekken",   "chameleon"};
    static const char *const without[] = {"glm4", "chatglm-bpe"};
    bool llama = strcmp(v->model, "llama") == 0, gpt2 = strcmp(v->model, "gpt2") == 0;
    if (llama) v->bos = 1, v->eos = 2, v->unk = 0, v->add_bos = v->add_space_prefix = true;
    if (gpt2) {
        v->bos = v->eos = v->n_tokens > 11 ? 11 : -1;
        for (size_t i = 0; v->pre && i < COUNT_OF(with_bos); i++) v->add_bos |= strcmp(v->pre, with_bos[i]) == 0;
        for (size_t i = 0; v->pre && i < COUNT_OF(without); i++)
            if (strcmp(v->pre, without[i]) == 0) v->bos = -1;
    }
}

static int take_lists(const struct gguf *g, struct pool *pool, struct vocab_source *v, struct error *err) {
    size_t n;
    if (gguf_get_strings(g, "tokenizer.ggml.tokens", pool, &v->tokens, &v->n_tokens, err) < 0) return -1;
    if (v->n_tokens == 0)
        return error_set(err, STATUS_DATA, "%s: key 'tokenizer.ggml.tokens' is missing or empty", g->name);
    if (gguf_get_i32s(g, "tokenizer.ggml.token_type", pool, &v->types, &n, err) < 0) return -1;
    if (v->types && n != v->n_tokens)
        return error_set(err, STATUS_DATA, "%s: %zu token types for %zu tokens", g->name, n, v->n_tokens);
    if (gguf_get_f32s(g, "tokenizer.ggml.scores", pool, &v->scores, &n, err) < 0) return -1;
    if (v->scores && n != v->n_tokens)
        return error_set(err, STATUS_DATA, "%s: %zu scores for %zu tokens", g->name, n, v->n_tokens);
    return gguf_get_strings(g, "tokenizer.ggml.merges", pool, &v->merges, &v->n_merges, err) < 0 ? -1 : 0;
}

static int take_ids(const struct gguf *g, struct vocab_source *v, struct error *err) {
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
    return gguf_get_bool(g, "tokenizer.ggml.add_space_prefix", &v->add_space_prefix, err) < 0 ? -1 : 0;
}

// A GGUF does not say which tokens take white space with them; llama.cpp goes by the model's name, and so do we.
static bool is_phi3(const char *name) {
    char lower[256];
    size_t n = 0;
    for (; name[n] && n + 1 < sizeof lower; n++) lower[n] = (char)tolower((unsigned char)name[n]);
    lower[n] = 0;
    return strstr(lower, "phi-3") || strstr(lower, "phi3");
}

int vocab_from_gguf(const struct gguf *g, const char *file, struct pool *pool, struct vocab_source *v,
                    struct error *err) {
    const char *name = NULL;
    *v = (struct vocab_source){.file = file, .bos = -1, .eos = -1, .eot = -1, .unk = -1, .pad = -1};
    int found = gguf_get_text(g, "tokenizer.ggml.model", pool, &v->model, err);
    if (found < 0) return -1;
    if (!found) v->model = NULL;
    if (!found || strcmp(v->model, "none") == 0) return 0; // rows of tokens need none
    if (gguf_get_text(g, "tokenizer.ggml.pre", pool, &v->pre, err) < 0 ||
        gguf_get_text(g, "general.name", pool, &name, err) < 0)
        return -1;
    if (take_lists(g, pool, v, err) < 0) return -1;
    if (gguf_get_string(g, "tokenizer.huggingface.json", &v->json, err) < 0) return -1;
    set_defaults(v);
    v->strips_after_special = name && is_phi3(name);
    if (take_ids(g, v, err) < 0) return -1;
    if (strcmp(v->model, "gemma4") == 0) v->add_bos = true; // whatever the key says: files exist that have it wrong
    return gguf_get_string(g, "tokenizer.chat_template", &v->chat_template, err) < 0 ? -1 : 0;
}

static int take_gguf(struct loader *l) {
    const struct gguf *g = &l->base->parts[0];
    struct model *m = l->model;
    if (vocab_from_gguf(g, m->path, &m->pool, &m->vocab, l->err) < 0) return -1;
    if (m->vocab.n_tokens > (size_t)m->arch.vocab)
        return error_set(l->err, STATUS_DATA, "%s: %zu tokens, but 'token_embd.weight' has %d rows", g->name,
                         m->vocab.n_tokens, m->arch.vocab);
    return 0;
}

// A folder's tokenizer is read by whoever needs text (data/tokenizer.h); rows of tokens need none.
static int take_folder(struct loader *l) {
    l->model->vocab = (struct vocab_source){
        .file = l->model->path, .folder = l->base->folder, .bos = -1, .eos = -1, .eot = -1, .unk = -1, .pad = -1};
    return 0;
}

int loader_take_vocab(struct loader *l) {
    int status = l->base->kind == BASE_GGUF ? take_gguf(l) : take_folder(l);
    l->model->vocab.rows = (size_t)l->model->arch.vocab;
    return status;
}
