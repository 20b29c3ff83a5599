// Mappers of families without experts: what is different from arch_common. Facts: formats.md 9, transformers 5.
#include "model/families.h"

#include <math.h>
#include <string.h>

static bool is_type(const struct arch *a, const char *model_type) {
    return strcmp(a->model_type, model_type) == 0;
}

static bool *flags(struct hparams *h, const struct arch *a) {
    bool *out = h->failed ? NULL : pool_array(h->pool, (uint64_t)a->layers, sizeof *out);
    if (!out && !h->failed) {
        error_memory(h->err, "the architecture", (size_t)a->layers);
        h->failed = true;
    }
    return out;
}

static void biases(struct hparams *h, struct arch *a, bool qkv, bool o, bool mlp) {
    for (int l = 0; l < a->layers && !h->failed; l++)
        a->layer[l].bias_qkv = qkv, a->layer[l].bias_o = o, a->layer[l].bias_mlp = mlp;
}

static void add_norms(struct hparams *h, struct arch *a, uint32_t norms) {
    for (int l = 0; l < a->layers && !h->failed; l++) a->layer[l].norms |= norms;
}
static void set_norms(struct hparams *h, struct arch *a, uint32_t norms) {
    for (int l = 0; l < a->layers && !h->failed; l++) a->layer[l].norms = norms;
}
#define BIT(site) (1u << (site))

static void attention_scale(struct hparams *h, struct arch *a, double scale) {
    for (int l = 0; l < a->layers && !h->failed; l++) a->layer[l].attention_scale = (float)scale;
}

void map_llama(struct hparams *h, struct arch *a) {
    bool mistral = !h->gguf && !is_type(a, "llama"), mixtral = is_type(a, "mixtral");
    bool third = is_type(a, "ministral3") || (h->gguf && strcmp(h->prefix, "mistral3") == 0);
    arch_common(h, a,
                &(struct common){.kv_heads = mistral ? 8 : 0,
                                 .eps = mixtral ? 1e-5 : 1e-6,
                                 .theta = mixtral ? 1e6 : 10000,
                                 .rope_pairs = h->gguf != NULL});
    bool *slides = flags(h, a);
    if (h->failed) return;
    bool bias = hp_bool(h, "attention_bias", NULL, false);
    biases(h, a, bias, bias, hp_bool(h, "mlp_bias", NULL, false));
    if (mistral) { // a missing window means 4096 for the first Mistral, null means none
        const struct json *window = json_get(h->json, "sliding_window");
        int64_t w = hp_int(h, "sliding_window", NULL, 0, INT32_MAX, window || mixtral || third ? 0 : 4096);
        if (!arch_sliding(h, a, w, 0, slides)) {
            for (int l = 0; l < a->layers; l++) a->layer[l].window = (int)w;
        }
    }
    if (third) {
        double beta = hp_float(h, NULL, "attention.temperature_scale", 0);
        const struct json *v = json_get(h->rope, "llama_4_scaling_beta");
        if (v) json_double(v, &beta);
        a->rope[1] = a->rope[0];
        a->rope[1].query_beta = beta, a->rope[1].query_floor = a->rope[0].original;
        a->n_ropes = beta != 0 ? 2 : 1;
        for (int l = 0; l < a->layers; l++) a->layer[l].rope_q = a->n_ropes - 1;
    }
    arch_neutral(h, third ? "rope.scaling.yarn_log_multiplier" : NULL);
    if (mixtral || hp_int(h, NULL, "expert_count", 0, 65536, 0) > 0) map_experts(h, a, "intermediate_size");
    if (!h->failed && h->gguf && a->rope[0].rotary_dim != a->layer[0].head_dim)
        hp_error(h, "llama.rope.dimension_count is %d, the heads have %d: a llama turns them all",
                 a->rope[0].rotary_dim, a->layer[0].head_dim);
}

// Qwen slides only where it is told to, from max_window_layers on.
static void qwen_window(struct hparams *h, struct arch *a) {
    bool *slides = flags(h, a), use = hp_bool(h, "use_sliding_window", NULL, false);
    int64_t window = hp_int(h, "sliding_window", NULL, 0, INT32_MAX, 4096);
    int64_t from = hp_int(h, "max_window_layers", NULL, 0, 65536, 28);
    if (h->failed || h->gguf || !use) return;
    if (arch_sliding(h, a, window, 0, slides)) return;
    for (int l = 0; l < a->layers; l++) a->layer[l].window = l >= from ? (int)window : 0;
}

void map_qwen2(struct hparams *h, struct arch *a) {
    arch_common(h, a, &(struct common){.kv_heads = 32, .eps = 1e-6, .theta = 10000});
    biases(h, a, true, false, false);
    qwen_window(h, a);
    arch_neutral(h, NULL);
}

void map_qwen3(struct hparams *h, struct arch *a) {
    arch_common(h, a, &(struct common){.kv_heads = 32, .head_dim = 128, .eps = 1e-6, .theta = 10000});
    bool bias = hp_bool(h, "attention_bias", NULL, false);
    biases(h, a, bias, bias, false);
    add_norms(h, a, BIT(NORM_Q) | BIT(NORM_K));
    qwen_window(h, a);
    arch_neutral(h, NULL);
}

// --- Gemma: norms of 1 + w, embeddings times sqrt(D), GeGLU, a head that is the embedding

static void gemma_common(struct hparams *h, struct arch *a, int64_t kv_heads) {
    arch_common(h, a,
                &(struct common){.kv_heads = kv_heads,
                                 .head_dim = 256,
                                 .eps = 1e-6,
                                 .theta = 10000,
                                 .tied = true,
                                 .act = "gelu_pytorch_tanh"});
    a->norm_plus_one = !h->gguf;
    a->embed_scale = sqrtf((float)a->width);
    // What old files of the first Gemma call "gelu" was always computed with the tanh form.
    for (int l = 0; l < a->layers && !h->failed; l++) a->layer[l].act = ACT_GELU_TANH;
    bool bias = hp_bool(h, "attention_bias", NULL, false);
    biases(h, a, bias, bias, false);
}

void map_gemma(struct hparams *h, struct arch *a) {
    gemma_common(h, a, 16);
    arch_neutral(h, NULL);
}

void map_gemma2(struct hparams *h, struct arch *a) {
    gemma_common(h, a, 4);
    bool *slides = flags(h, a);
    double caps = hp_float(h, "attn_logit_softcapping", "attn_logit_softcapping", 50);
    a->final_soft_cap = (float)hp_float(h, "final_logit_softcapping", "final_logit_softcapping", 30);
    int64_t window = hp_int(h, "sliding_window", "attention.sliding_window", 0, INT32_MAX, 4096);
    if (h->failed) return;
    // GGUF says no scale: 1 / sqrt(K), but for the 27B, where it is 1 / sqrt(D / H) (formats.md 2.9).
    double scalar = h->gguf ? (a->layers == 46 ? (double)a->width / a->layer[0].heads : a->layer[0].head_dim) : 256;
    attention_scale(h, a, 1 / sqrt(hp_float(h, "query_pre_attn_scalar", NULL, scalar)));
    arch_sliding(h, a, window, 2, slides);
    for (int l = 0; l < a->layers; l++) a->layer[l].soft_cap = (float)caps;
    add_norms(h, a, BIT(NORM_ATTENTION_OUT) | BIT(NORM_MLP_OUT));
    arch_neutral(h, "attn_logit_softcapping|final_logit_softcapping");
}

void map_gemma3(struct hparams *h, struct arch *a) {
    gemma_common(h, a, 4);
    bool *slides = flags(h, a);
    int64_t window = hp_int(h, "sliding_window", "attention.sliding_window", 0, INT32_MAX, 4096);
    int64_t period = hp_int(h, "sliding_window_pattern|_sliding_window_pattern", NULL, 1, 65536, 6);
    double caps = hp_float(h, "attn_logit_softcapping", "attn_logit_softcapping", 0);
    a->final_soft_cap = (float)hp_float(h, "final_logit_softcapping", "final_logit_softcapping", 0);
    if (h->failed) return;
    double scalar = h->gguf ? (a->layers == 62 ? (double)a->width / a->layer[0].heads : a->layer[0].head_dim) : 256;
    attention_scale(h, a, 1 / sqrt(hp_float(h, "query_pre_attn_scalar", NULL, scalar)));
    arch_sliding(h, a, window, period, slides);
    a->rope[0].head_dim = a->layer[0].head_dim;
    arch_rope(h, a, 0, "full_attention", "rope.freq_base", 1e6);
    const struct json *local = json_get(h->rope, "sliding_attention");
    if (json_is(local, JSON_OBJECT))
        a->rope[1] = a->rope[0], arch_rope(h, a, 1, "sliding_attention", NULL, 10000);
    else
        arch_rope_plain(h, a, 1, hp_float(h, "rope_local_base_freq", "rope.freq_base_swa", 10000));
    for (int l = 0; l < a->layers && !h->failed; l++) {
        a->layer[l].soft_cap = (float)caps;
        a->layer[l].rope_q = a->layer[l].rope_k = slides[l] ? 1 : 0;
    }
    add_norms(h, a, BIT(NORM_ATTENTION_OUT) | BIT(NORM_MLP_OUT) | BIT(NORM_Q) | BIT(NORM_K));
    arch_neutral(h, "attn_logit_softcapping|final_logit_softcapping");
}

void map_phi3(struct hparams *h, struct arch *a) {
    arch_common(h, a, &(struct common){.eps = 1e-5, .theta = 10000});
    // llama.cpp computes these models without their window (formats.md 2.9).
    int64_t window = hp_int(h, "sliding_window", NULL, 0, INT32_MAX, 0);
    for (int l = 0; l < a->layers && !h->failed; l++) a->layer[l].window = (int)window;
    arch_neutral(h, NULL);
}

void map_olmo(struct hparams *h, struct arch *a) { // layer norms without any weights
    arch_common(h, a,
                &(struct common){.eps = 1e-5,
                                 .eps_json = "layer_norm_eps",
                                 .eps_gguf = "attention.layer_norm_epsilon",
                                 .theta = 10000,
                                 .rope_pairs = h->gguf != NULL});
    a->norm = NORM_LAYER;
    bool bias = hp_bool(h, "attention_bias", NULL, false);
    biases(h, a, bias, bias, false);
    double clip = hp_float(h, "clip_qkv", "attention.clamp_kqv", 0);
    for (int l = 0; l < a->layers && !h->failed; l++) a->layer[l].clip_qkv = (float)clip;
    arch_neutral(h, "attention.clamp_kqv");
}

void map_olmo2(struct hparams *h, struct arch *a) { // norms after, of queries and keys as wholes
    arch_common(h, a, &(struct common){.eps = 1e-5, .theta = is_type(a, "olmo3") ? 500000 : 10000});
    bool *slides = flags(h, a), bias = hp_bool(h, "attention_bias", NULL, false);
    int64_t window = hp_int(h, "sliding_window", "attention.sliding_window", 0, INT32_MAX,
                            is_type(a, "olmo3") && !h->gguf ? 4096 : 0);
    if (h->failed) return;
    biases(h, a, bias, bias, false);
    set_norms(h, a, BIT(NORM_ATTENTION_OUT) | BIT(NORM_MLP_OUT) | BIT(NORM_Q) | BIT(NORM_K));
    for (int l = 0; l < a->layers; l++) a->layer[l].qk_whole = true;
    if (window > 0 && (h->gguf || is_type(a, "olmo3"))) { // only full layers have a scaled rope
        arch_sliding(h, a, window, 4, slides);
        a->rope[0].head_dim = a->layer[0].head_dim;
        arch_rope(h, a, 0, "full_attention", "rope.freq_base", 500000);
        if (json_is(json_get(h->rope, "sliding_attention"), JSON_OBJECT))
            a->rope[1] = a->rope[0], arch_rope(h, a, 1, "sliding_attention", NULL, 500000);
        else
            arch_rope_plain(h, a, 1, hp_float(h, NULL, "rope.freq_base_swa", a->rope[0].theta));
        for (int l = 0; l < a->layers && !h->failed; l++) a->layer[l].rope_q = a->layer[l].rope_k = slides[l] ? 1 : 0;
    }
    arch_neutral(h, NULL);
}

void map_starcoder2(struct hparams *h, struct arch *a) { // layer norms, no gate, biases everywhere
    arch_common(h, a,
                &(struct common){.kv_heads = 2,
                                 .eps = 1e-5,
                                 .eps_json = "norm_epsilon",
                                 .eps_gguf = "attention.layer_norm_epsilon",
                                 .theta = 10000,
                                 .tied = true,
                                 .act = "gelu_pytorch_tanh"});
    a->norm = NORM_LAYER;
    a->norm_bias = true;
    bool bias = hp_bool(h, "use_bias", NULL, true);
    biases(h, a, bias, bias, bias);
    int64_t window = hp_int(h, "sliding_window", NULL, 0, INT32_MAX, 0);
    for (int l = 0; l < a->layers && !h->failed; l++) a->layer[l].glu = false, a->layer[l].window = (int)window;
    arch_neutral(h, NULL);
}

void map_exaone(struct hparams *h, struct arch *a) {
    arch_common(h, a, &(struct common){.eps = 1e-5, .eps_json = "layer_norm_epsilon", .theta = 10000});
    arch_neutral(h, NULL);
}

void map_exaone4(struct hparams *h, struct arch *a) { // full layers are not turned where others slide
    arch_common(h, a, &(struct common){.kv_heads = 32, .eps = 1e-5, .theta = 10000});
    bool *slides = flags(h, a);
    const struct json *given = h->gguf ? NULL : json_get(h->json, "sliding_window");
    int64_t window = hp_int(h, "sliding_window", "attention.sliding_window", 0, INT32_MAX, given || h->gguf ? 0 : 4096);
    int64_t period = 4;
    const char *pattern = NULL;
    if (!h->gguf && json_is(json_get(h->json, "sliding_window_pattern"), JSON_STRING))
        pattern = hp_text(h, "sliding_window_pattern", NULL, NULL);
    else
        period = hp_int(h, "sliding_window_pattern", NULL, 0, 65536, 4);
    if (h->failed) return;
    if (pattern && strcmp(pattern, "LLLG") != 0) {
        hp_error(h, "sliding_window_pattern '%s' is not in this version; LLLG and numbers are", pattern);
        return;
    }
    set_norms(h, a, BIT(NORM_ATTENTION_OUT) | BIT(NORM_MLP_OUT) | BIT(NORM_Q) | BIT(NORM_K));
    arch_sliding(h, a, window, window > 0 ? period : 0, slides);
    for (int l = 0; l < a->layers && window > 0 && !h->failed; l++) {
        if (!slides[l]) a->layer[l].rope_q = a->layer[l].rope_k = ROPE_NONE;
    }
    arch_neutral(h, NULL);
}

// --- Command R: layer norms without bias, attention and MLP side by side

static void cohere_common(struct hparams *h, struct arch *a) {
    arch_common(h, a,
                &(struct common){.eps = 1e-5,
                                 .eps_json = "layer_norm_eps",
                                 .eps_gguf = "attention.layer_norm_epsilon",
                                 .theta = 10000,
                                 .tied = true,
                                 .rope_pairs = true});
    a->norm = NORM_LAYER;
    a->parallel = true;
    a->logit_scale = (float)hp_float(h, "logit_scale", "logit_scale", 0.0625);
    bool bias = hp_bool(h, "attention_bias", NULL, false);
    biases(h, a, bias, bias, false);
    set_norms(h, a, BIT(NORM_ATTENTION));
}

void map_cohere(struct hparams *h, struct arch *a) {
    cohere_common(h, a);
    bool norms = hp_bool(h, "use_qk_norm", NULL, false);
    if (h->gguf) norms = gguf_find_tensor(h->gguf, "blk.0.attn_q_norm.weight") != NULL;
    if (norms) add_norms(h, a, BIT(NORM_Q) | BIT(NORM_K));
    arch_neutral(h, "logit_scale");
}

void map_cohere2(struct hparams *h, struct arch *a) { // only sliding layers are turned
    cohere_common(h, a);
    bool *slides = flags(h, a);
    int64_t window = hp_int(h, "sliding_window", "attention.sliding_window", 0, INT32_MAX, 4096);
    int64_t period = hp_int(h, "sliding_window_pattern", NULL, 1, 65536, 4);
    if (h->failed) return;
    arch_sliding(h, a, window, period, slides);
    for (int l = 0; l < a->layers && !h->failed; l++) {
        if (!slides[l]) a->layer[l].rope_q = a->layer[l].rope_k = ROPE_NONE;
    }
    arch_neutral(h, "logit_scale");
}

void map_smollm3(struct hparams *h, struct arch *a) { // every fourth layer is not turned
    arch_common(
        h, a, &(struct common){.kv_heads = 4, .eps = 1e-6, .theta = 2e6, .tied = true, .rope_pairs = h->gguf != NULL});
    if (h->failed) return;
    bool bias = hp_bool(h, "attention_bias", NULL, false), *slides = flags(h, a);
    biases(h, a, bias, bias, hp_bool(h, "mlp_bias", NULL, false));
    int64_t every = hp_int(h, "no_rope_layer_interval", NULL, 1, 65536, 4), *turned = NULL;
    turned = pool_array(h->pool, (uint64_t)a->layers, sizeof *turned);
    if (!turned || h->failed) {
        if (!h->failed) error_memory(h->err, "the architecture", (size_t)a->layers);
        h->failed = true;
        return;
    }
    for (int l = 0; l < a->layers; l++) turned[l] = (l + 1) % every != 0;
    if (!h->gguf) hp_layers(h, "no_rope_layers", NULL, 0, 1, (size_t)a->layers, turned);
    for (int l = 0; l < a->layers; l++) {
        if (!turned[l]) a->layer[l].rope_q = a->layer[l].rope_k = ROPE_NONE;
    }
    if (hp_bool(h, "use_sliding_window", NULL, false))
        arch_sliding(h, a, hp_int(h, "sliding_window", NULL, 0, INT32_MAX, 0), 0, slides);
    arch_neutral(h, NULL);
}

void map_granite(struct hparams *h, struct arch *a) { // four multipliers
    arch_common(h, a, &(struct common){.eps = 1e-6, .theta = 10000, .rope_pairs = h->gguf != NULL});
    bool bias = hp_bool(h, "attention_bias", NULL, false);
    biases(h, a, bias, bias, hp_bool(h, "mlp_bias", NULL, false));
    a->embed_scale = (float)hp_float(h, "embedding_multiplier", "embedding_scale", 1);
    a->residual_scale = (float)hp_float(h, "residual_multiplier", "residual_scale", 1);
    double logits = hp_float(h, "logits_scaling", "logit_scale", 1),
           scale = hp_float(h, "attention_multiplier", "attention.scale", h->gguf ? 0 : 1);
    if (h->failed) return;
    if (!(logits > 0) || scale < 0)
        hp_error(h, "a logit scale of %g or an attention scale of %g makes no sense", logits, scale);
    a->logit_scale = (float)(1 / logits);
    if (scale != 0) attention_scale(h, a, scale);
    arch_neutral(h, "embedding_scale|residual_scale|logit_scale|attention.scale");
}

void map_glm(struct hparams *h, struct arch *a) { // half of each head is turned, as neighbours
    arch_common(h, a,
                &(struct common){.kv_heads = 2, .head_dim = 128, .eps = 1.5625e-7, .theta = 10000, .rope_pairs = true});
    if (h->failed) return;
    const struct json *partial = json_get(h->rope, "partial_rotary_factor");
    if (!h->gguf && !partial && !json_get(h->json, "partial_rotary_factor"))
        a->rope[0].rotary_dim = a->layer[0].head_dim / 2;
    bool bias = hp_bool(h, "attention_bias", NULL, true);
    biases(h, a, bias, false, false);
    if (is_type(a, "glm4")) add_norms(h, a, BIT(NORM_ATTENTION_OUT) | BIT(NORM_MLP_OUT));
    arch_neutral(h, NULL);
}
