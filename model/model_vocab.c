// The vocabulary of a base: from GGUF keys (formats.md 2.6), or from the tokenizer files of its folder.
#include "model/model_loader.h"

#include <stdio.h>
#include <string.h>

static int take_gguf(struct loader *l) {
    const struct gguf *g = &l->base->parts[0];
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

// A folder's tokenizer is read by whoever needs text (data/tokenizer.h); rows of tokens need none.
static int take_folder(struct loader *l) {
    l->model->vocab = (struct vocab_source){
        .file = l->model->path, .folder = l->base->folder, .bos = -1, .eos = -1, .eot = -1, .unk = -1, .pad = -1};
    return 0;
}

int loader_take_vocab(struct loader *l) {
    return l->base->kind == BASE_GGUF ? take_gguf(l) : take_folder(l);
}
