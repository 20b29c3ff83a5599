// Models from GGUF files: what a llama is made of is taken, what it has no place for is refused by name.
#include "model/gguf_write.h"
#include "model/model.h"
#include "tests/harness.h"
#include "tests/tiny.h"

#include <stdio.h>
#include <string.h>

static const char *in_folder(const char *name) {
    static char path[300];
    snprintf(path, sizeof path, "%s/%s", test_folder(), name);
    return path;
}

static void put_all(struct gguf_writer *w, const struct gguf *g, const char *without_key, const char *without_tensor) {
    for (size_t i = 0; i < g->n_kv; i++)
        if (!without_key || strcmp(g->kv[i].key, without_key) != 0) gguf_put_kv(w, &g->kv[i]);
    for (size_t i = 0; i < g->n_tensors; i++) {
        const struct gguf_tensor *t = &g->tensors[i];
        if (!without_tensor || strcmp(t->name, without_tensor) != 0)
            gguf_put_tensor(w, t->name, t->ggml_type, t->n_dims, t->ne, t->data);
    }
}

// The tiny model with one thing put in (and, where it is there already, the old one left out), opened.
enum kind { NUMBER, WHOLE, FLAG, TENSOR, MISSING };
static int altered(enum kind kind, const char *name, double value, struct error *err) {
    static const float numbers[4096] = {0};
    struct gguf g;
    struct gguf_writer w = {0};
    struct file_writer out;
    struct model model;
    *err = (struct error){0};
    CHECK(gguf_open(in_folder("tiny.gguf"), &g, err) == 0);
    put_all(&w, &g, name, kind == MISSING ? name : NULL);
    if (kind == NUMBER) gguf_put_f32(&w, name, (float)value);
    if (kind == WHOLE) gguf_put_u32(&w, name, (uint32_t)value);
    if (kind == FLAG) gguf_put_bool(&w, name, value != 0);
    if (kind == TENSOR) gguf_put_tensor(&w, name, 0, 1, (int64_t[]){(int64_t)value}, numbers);
    file_remove(in_folder("altered.gguf"), NULL);
    CHECK(file_create(in_folder("altered.gguf"), &out, err) == 0 && gguf_write(&w, &out, err) == 0 &&
          file_close(&out, err) == 0);
    gguf_writer_free(&w);
    gguf_close(&g);
    int result = model_open(in_folder("altered.gguf"), NULL, &model, err);
    if (result == 0) model_close(&model);
    return result;
}

static bool make_tiny_once(void) {
    struct error err = {0};
    if (file_exists(in_folder("tiny.gguf")) || tiny_write(in_folder("tiny.gguf"), &tiny_default, &err) == 0)
        return true;
    CHECK_MSG(false, "%s", err.text);
    return false;
}

TEST(what_has_no_place_is_refused) {
    static const struct {
        enum kind kind;
        const char *name;
        double value;
        const char *says;
    } bad[] = {
        {TENSOR, "blk.0.attn_q_norm.weight", 16, "blk.0.attn_q_norm.weight"},
        {TENSOR, "blk.1.attn_norm.bias", 64, "blk.1.attn_norm.bias"},
        {TENSOR, "output_norm.bias", 64, "output_norm.bias"},
        {TENSOR, "output.bias", 271, "output.bias"},
        {TENSOR, "blk.0.post_attention_norm.weight", 64, "post_attention_norm"},
        {TENSOR, "blk.7.attn_norm.weight", 64, "blk.7.attn_norm.weight"},
        {TENSOR, "blk.0.attn_q.scale", 1, "blk.0.attn_q.scale"},
        {TENSOR, "rope_factors_long.weight", 8, "rope_factors_long.weight"},
        {TENSOR, "blk.0.attn_q.bias", 63, "blk.0.attn_q.bias"}, // has a place, but not that size
        {NUMBER, "llama.rope.scaling.attn_factor", -1.5, "size -1.5"},
        {NUMBER, "llama.rope.scaling.factor", -2, "factor -2"},
        {NUMBER, "llama.attention.scale", 0.2, "llama.attention.scale"},
        {NUMBER, "llama.final_logit_softcapping", 30, "llama.final_logit_softcapping"},
        {FLAG, "llama.attention.causal", 0, "llama.attention.causal"},
        {WHOLE, "llama.rope.dimension_count", 8, "llama.rope.dimension_count is 8, the heads have 16"},
        {WHOLE, "llama.expert_count", 4, "llama.expert_used_count' is missing"},
        {MISSING, "blk.1.ffn_up.weight", 0, "blk.1.ffn_up.weight' is missing"},
    };
    if (!make_tiny_once()) return;
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        struct error err;
        CHECK_MSG(altered(bad[i].kind, bad[i].name, bad[i].value, &err) == -1 && err.code == STATUS_DATA &&
                      strstr(err.text, bad[i].says),
                  "%s: code %d, '%s'", bad[i].name, err.code, err.text);
    }
}

TEST(what_is_neutral_or_built_is_taken) {
    static const struct {
        enum kind kind;
        const char *name;
        double value;
    } good[] = {
        {TENSOR, "blk.0.attn_q.bias", 64},
        {TENSOR, "blk.0.ffn_down.bias", 64},
        {NUMBER, "llama.rope.scaling.attn_factor", 1.5},
        {NUMBER, "llama.rope.scaling.factor", 4},
        {NUMBER, "llama.rope.freq_base", 500000},
        {FLAG, "llama.attention.causal", 1},
        {WHOLE, "llama.rope.dimension_count", 16},
        {WHOLE, "llama.vocab_size", 271},
    };
    if (!make_tiny_once()) return;
    for (size_t i = 0; i < COUNT_OF(good); i++) {
        struct error err;
        CHECK_MSG(altered(good[i].kind, good[i].name, good[i].value, &err) == 0, "%s: %s", good[i].name, err.text);
    }
}

TEST_MAIN(CASE(what_has_no_place_is_refused), CASE(what_is_neutral_or_built_is_taken))
