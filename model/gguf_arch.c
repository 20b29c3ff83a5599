// See gguf_arch.h. Names and types of keys: llama.cpp's gguf-py/gguf/constants.py and conversion/; which of them a
// family's graph reads: src/models/.
#include "model/gguf_arch.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

struct keys {
    struct gguf_writer *w;
    const struct arch *a;
    struct pool *pool;
    char name[128];
};

static const char *key(struct keys *k, const char *suffix) {
    snprintf(k->name, sizeof k->name, "%s.%s", k->a->family, suffix);
    return k->name;
}
static void put_int(struct keys *k, const char *suffix, int64_t value) {
    gguf_put_u32(k->w, key(k, suffix), (uint32_t)value);
}
static void put_float(struct keys *k, const char *suffix, double value) {
    gguf_put_f32(k->w, key(k, suffix), (float)value);
}
static bool is(const struct keys *k, const char *families) {
    return family_names(families, k->a->family, strlen(k->a->family));
}

// One number where all layers have the same, else one for each.
static void put_layers(struct keys *k, const char *suffix, int (*of)(const struct layer_arch *)) {
    const struct arch *a = k->a;
    bool same = true;
    for (int l = 1; l < a->layers; l++) same &= of(&a->layer[l]) == of(&a->layer[0]);
    if (same) {
        put_int(k, suffix, of(&a->layer[0]));
        return;
    }
    uint32_t *values = pool_array(k->pool, (uint64_t)a->layers, sizeof *values);
    k->w->failed |= !values;
    for (int l = 0; l < a->layers && values; l++) values[l] = (uint32_t)of(&a->layer[l]);
    if (values) gguf_put_u32s(k->w, key(k, suffix), values, (size_t)a->layers);
}

static int heads_of(const struct layer_arch *l) {
    return l->heads;
}
static int kv_heads_of(const struct layer_arch *l) {
    return l->kv_heads;
}
static int ffn_of(const struct layer_arch *l) {
    return l->ffn;
}

static void put_sizes(struct keys *k) {
    const struct arch *a = k->a;
    put_int(k, "block_count", a->layers);
    put_int(k, "context_length", a->context);
    put_int(k, "embedding_length", a->width);
    put_layers(k, "feed_forward_length", ffn_of);
    put_int(k, "vocab_size", a->vocab);
    // PhiMoE's norms are layer norms, and their constant has the other name all the same.
    bool layer_norm = a->norm == NORM_LAYER && !is(k, "phimoe");
    put_float(k, layer_norm ? "attention.layer_norm_epsilon" : "attention.layer_norm_rms_epsilon", (double)a->norm_eps);
    if (a->final_soft_cap != 0) put_float(k, "final_logit_softcapping", (double)a->final_soft_cap);
    if (is(k, "command-r|cohere2")) put_float(k, "logit_scale", (double)a->logit_scale);
    if (!is(k, "granite|granitemoe")) return;
    put_float(k, "embedding_scale", (double)a->embed_scale);
    put_float(k, "residual_scale", (double)a->residual_scale);
    put_float(k, "logit_scale", 1 / (double)a->logit_scale);
    put_float(k, "attention.scale", (double)a->layer[0].attention_scale);
}

// --- attention

static void put_latent(struct keys *k) {
    const struct latent_arch *m = &k->a->latent;
    put_layers(k, "attention.head_count", heads_of);
    put_int(k, "attention.head_count_kv", 1); // of the products with the latent vector
    put_int(k, "attention.key_length", m->kv_rank + m->rope);
    put_int(k, "attention.value_length", m->kv_rank);
    put_int(k, "attention.key_length_mla", m->nope + m->rope);
    put_int(k, "attention.value_length_mla", k->a->layer[0].v_dim);
    if (m->q_rank > 0) put_int(k, "attention.q_lora_rank", m->q_rank);
    put_int(k, "attention.kv_lora_rank", m->kv_rank);
}

static void put_windows(struct keys *k) {
    const struct arch *a = k->a;
    int window = 0;
    for (int l = a->layers; l-- > 0;) window = a->layer[l].window ? a->layer[l].window : window;
    if (is(k, "phi3|phimoe")) put_int(k, "attention.sliding_window", window); // 0 tells Phi 4 from Phi 3
    if (window == 0 || !is(k, "gemma2|gemma3|olmo2|exaone4|cohere2|gpt-oss")) return;
    put_int(k, "attention.sliding_window", window);
    if (!is(k, "olmo2|exaone4")) return; // the others' pattern is fixed
    uint8_t *slides = pool_array(k->pool, (uint64_t)a->layers, 1);
    k->w->failed |= !slides;
    for (int l = 0; l < a->layers && slides; l++) slides[l] = a->layer[l].window > 0;
    if (slides) gguf_put_bools(k->w, key(k, "attention.sliding_window_pattern"), slides, (size_t)a->layers);
}

static void put_attention(struct keys *k) {
    const struct layer_arch *l = &k->a->layer[0];
    if (k->a->latent.kv_rank > 0) {
        put_latent(k);
    } else {
        put_layers(k, "attention.head_count", heads_of);
        put_layers(k, "attention.head_count_kv", kv_heads_of);
        put_int(k, "attention.key_length", l->head_dim);
        put_int(k, "attention.value_length", l->v_dim);
    }
    if (l->clip_qkv != 0) put_float(k, "attention.clamp_kqv", (double)l->clip_qkv);
    if (l->soft_cap != 0) put_float(k, "attn_logit_softcapping", (double)l->soft_cap);
    put_windows(k);
}

// --- rope

// Divisors of frequencies in a tensor; NULL when out of memory.
static float *put_divisors(struct keys *k, const char *name, int count) {
    float *values = pool_array(k->pool, (uint64_t)count, sizeof *values);
    k->w->failed |= !values;
    if (values) gguf_put_tensor(k->w, name, quant_format(QUANT_F32)->ggml_type, 1, (int64_t[]){count}, values);
    return values;
}

static void put_llama3(struct keys *k, const struct rope_arch *r) {
    int n = r->rotary_dim / 2;
    double *scaled = pool_array(k->pool, (uint64_t)n, sizeof *scaled);
    double *plain = pool_array(k->pool, (uint64_t)n, sizeof *plain);
    float *divisors = put_divisors(k, "rope_freqs.weight", n);
    k->w->failed |= !scaled || !plain;
    if (k->w->failed) return;
    struct rope_arch without = *r;
    without.scaling = ROPE_SCALING_NONE;
    rope_inverse(r, 1, scaled);
    rope_inverse(&without, 1, plain);
    for (int i = 0; i < n; i++) divisors[i] = (float)(plain[i] / scaled[i]);
}

static void put_longrope(struct keys *k, const struct rope_arch *r) {
    int n = r->rotary_dim / 2;
    float *l = put_divisors(k, "rope_factors_long.weight", n), *s = put_divisors(k, "rope_factors_short.weight", n);
    put_float(k, "rope.scaling.attn_factor", r->magnitude);
    put_int(k, "rope.scaling.original_context_length", (int64_t)r->original);
    for (int i = 0; i < n && l && s; i++) l[i] = r->long_divisors[i], s[i] = r->short_divisors[i];
}

// What cosines and sines are multiplied with where nothing is said.
static double yarn_size(const struct rope_arch *r) {
    return r->factor <= 1 ? 1 : 0.1 * log(r->factor) + 1;
}

static void put_yarn(struct keys *k, const struct rope_arch *r) {
    const struct arch *a = k->a;
    gguf_put_string(k->w, key(k, "rope.scaling.type"), "yarn");
    put_float(k, "rope.scaling.factor", r->factor);
    put_int(k, "rope.scaling.original_context_length", (int64_t)r->original);
    put_float(k, "rope.scaling.yarn_beta_fast", r->beta_fast);
    put_float(k, "rope.scaling.yarn_beta_slow", r->beta_slow);
    if (a->latent.kv_rank == 0) {
        double more = r->magnitude / yarn_size(r);
        if (fabs(more - 1) > 1e-9) put_float(k, "rope.scaling.attn_factor", more);
        return;
    }
    // The square of 1 + multiplier log(factor) is a part of the attention's scale.
    double square = (double)a->layer[0].attention_scale * sqrt(a->layer[0].head_dim);
    double multiplier = r->factor > 1 ? (sqrt(square) - 1) / log(r->factor) : 0;
    multiplier = round(multiplier * 1e6) / 1e6; // away with what the float lost
    if (multiplier != 0) put_float(k, "rope.scaling.yarn_log_multiplier", multiplier);
}

static void put_rope(struct keys *k) {
    const struct arch *a = k->a;
    const struct rope_arch *r = &a->rope[0];
    put_int(k, "rope.dimension_count", r->rotary_dim);
    put_float(k, "rope.freq_base", r->theta);
    if (a->n_ropes > 1 && is(k, "gemma3|olmo2")) put_float(k, "rope.freq_base_swa", a->rope[1].theta);
    if (is(k, "mistral3") && a->rope[a->n_ropes - 1].query_beta != 0)
        put_float(k, "attention.temperature_scale", a->rope[a->n_ropes - 1].query_beta);
    switch (r->scaling) {
    case ROPE_SCALING_NONE:
    case ROPE_SCALING_DYNAMIC: break; // no key says this one: gguf_check_arch does
    case ROPE_SCALING_LINEAR:
        gguf_put_string(k->w, key(k, "rope.scaling.type"), "linear");
        put_float(k, "rope.scaling.factor", r->factor);
        break;
    case ROPE_SCALING_LLAMA3: put_llama3(k, r); break;
    case ROPE_SCALING_YARN: put_yarn(k, r); break;
    case ROPE_SCALING_LONGROPE:
        gguf_put_string(k->w, key(k, "rope.scaling.type"), "longrope");
        put_longrope(k, r);
        break;
    }
}

// --- experts

static void put_experts(struct keys *k) {
    const struct arch *a = k->a;
    const struct moe_arch *m = &a->moe;
    if (m->experts == 0) return;
    put_int(k, "expert_count", m->experts);
    put_int(k, "expert_used_count", m->route.used);
    put_int(k, "expert_feed_forward_length", m->ffn);
    if (is(k, "qwen2moe")) put_int(k, "expert_shared_feed_forward_length", m->shared_ffn);
    if (is(k, "llama4")) {
        int step = 1;
        while (step < a->layers && !a->layer[step - 1].moe) step++;
        put_int(k, "interleave_moe_layer_step", step);
    }
    if (!is(k, "deepseek2")) return;
    int dense = 0;
    while (dense < a->layers && !a->layer[dense].moe) dense++;
    put_int(k, "leading_dense_block_count", dense);
    put_int(k, "expert_shared_count", m->shared_ffn / m->ffn);
    put_float(k, "expert_weights_scale", (double)m->route.scale);
    gguf_put_bool(k->w, key(k, "expert_weights_norm"), m->route.normalise);
    put_int(k, "expert_gating_func", m->route.gate == MOE_SIGMOID ? 2 : 1);
    put_int(k, "expert_group_count", m->route.groups);
    put_int(k, "expert_group_used_count", m->route.groups_used);
}

int gguf_put_arch(struct gguf_export *e, struct error *err) {
    struct keys k = {.w = &e->writer, .a = &e->model->arch, .pool = &e->pool};
    put_sizes(&k);
    put_attention(&k);
    put_rope(&k);
    put_experts(&k);
    return e->writer.failed ? error_memory(err, "the keys of a GGUF", 0) : 0;
}
