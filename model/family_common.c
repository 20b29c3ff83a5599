// What the mappers of families share: see family.h. Keys and defaults: formats.md 2.5, 9.1.
#include "model/family.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

// --- names

bool family_names(const char *list, const char *word, size_t length) {
    while (list && *list) {
        size_t n = strcspn(list, "|");
        if (n == length && memcmp(list, word, n) == 0) return true;
        list += n + (list[n] == '|');
    }
    return false;
}

const struct family *family_find_gguf(const char *architecture) {
    for (int i = 0; i < family_count; i++) {
        if (family_names(family_table[i].gguf_arch, architecture, strlen(architecture))) return &family_table[i];
    }
    return NULL;
}

const struct family *family_find_hf(const char *model_type) {
    for (int i = 0; i < family_count; i++) {
        if (family_names(family_table[i].model_types, model_type, strlen(model_type))) return &family_table[i];
    }
    return NULL;
}

void family_list(bool gguf, struct text *out) {
    for (int i = 0; i < family_count; i++) {
        const char *list = gguf ? family_table[i].gguf_arch : family_table[i].model_types;
        while (list && *list) {
            size_t n = strcspn(list, "|");
            text_printf(out, "%s%.*s", out->length ? ", " : "", (int)n, list);
            list += n + (list[n] == '|');
        }
    }
}

// --- activations

enum act_kind arch_act(struct hparams *h, const char *fallback) {
    const char *name = hp_text(h, "hidden_activation|hidden_act|activation_function", NULL, fallback);
    if (strcmp(name, "silu") == 0 || strcmp(name, "swish") == 0) return ACT_SILU;
    if (strcmp(name, "gelu_pytorch_tanh") == 0 || strcmp(name, "gelu_new") == 0 || strcmp(name, "gelu_fast") == 0)
        return ACT_GELU_TANH;
    if (strcmp(name, "gelu") == 0) return ACT_GELU;
    hp_error(h, "the activation '%s' is not in this version; silu, gelu and gelu_pytorch_tanh are", name);
    return ACT_SILU;
}

// --- rope

static double yarn_size(double factor, double by) {
    return factor <= 1 ? 1 : 0.1 * by * log(factor) + 1;
}

static double json_number(struct hparams *h, const struct json *object, const char *key, double fallback) {
    const struct json *v = json_get(object, key);
    double value = fallback;
    if (v && !json_is(v, JSON_NULL) && !(json_double(v, &value) && isfinite(value)))
        hp_error(h, "key '%s' of the rope is no number", key);
    return value;
}

static enum rope_scaling scaling_named(struct hparams *h, const char *name) {
    static const struct {
        const char *name;
        enum rope_scaling scaling;
    } names[] = {{"none", ROPE_SCALING_NONE},         {"default", ROPE_SCALING_NONE},  {"linear", ROPE_SCALING_LINEAR},
                 {"dynamic", ROPE_SCALING_DYNAMIC},   {"llama3", ROPE_SCALING_LLAMA3}, {"yarn", ROPE_SCALING_YARN},
                 {"longrope", ROPE_SCALING_LONGROPE}, {"su", ROPE_SCALING_LONGROPE}};
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        if (strcmp(names[i].name, name) == 0) return names[i].scaling;
    }
    hp_error(h, "rope scaling '%s' is not in this version; none, linear, dynamic, llama3, yarn and longrope are", name);
    return ROPE_SCALING_NONE;
}

static void rope_json(struct hparams *h, struct arch *arch, struct rope_arch *r, const char *section) {
    const struct json *rope = h->rope, *keyed = section ? json_get(h->rope, section) : NULL;
    if (json_is(keyed, JSON_OBJECT)) rope = keyed;
    double context = arch->context;
    r->theta = json_number(h, rope, "rope_theta", hp_float(h, "rope_theta", NULL, r->theta));
    double partial = json_number(h, rope, "partial_rotary_factor", hp_float(h, "partial_rotary_factor", NULL, 1));
    r->rotary_dim = (int)(r->head_dim * partial);
    const char *type = json_string(json_get(rope, "rope_type"), NULL);
    if (!type) type = json_string(json_get(rope, "type"), NULL);
    r->scaling = type ? scaling_named(h, type) : ROPE_SCALING_NONE;
    if (r->scaling == ROPE_SCALING_YARN && json_is(json_get(rope, "long_factor"), JSON_ARRAY))
        r->scaling = ROPE_SCALING_LONGROPE; // early Phi 3 files
    r->original = json_number(h, rope, "original_max_position_embeddings",
                              hp_float(h, "original_max_position_embeddings", NULL, context));
    if (r->scaling == ROPE_SCALING_DYNAMIC) r->original = context;
    r->factor = json_number(h, rope, "factor", context / r->original);
    r->low_freq = json_number(h, rope, "low_freq_factor", 1);
    r->high_freq = json_number(h, rope, "high_freq_factor", 4);
    r->beta_fast = json_number(h, rope, "beta_fast", 32);
    r->beta_slow = json_number(h, rope, "beta_slow", 1);
    r->truncate = true;
    json_bool(json_get(h->rope, "truncate"), &r->truncate);
    double m = json_number(h, rope, "mscale", 0), all = json_number(h, rope, "mscale_all_dim", 0);
    if (r->scaling == ROPE_SCALING_YARN)
        r->magnitude =
            m != 0 && all != 0 ? yarn_size(r->factor, m) / yarn_size(r->factor, all) : yarn_size(r->factor, 1);
    if (r->scaling == ROPE_SCALING_LONGROPE) {
        r->magnitude = r->factor <= 1 ? 1 : sqrt(1 + log(r->factor) / log(r->original));
        r->long_divisors = hp_floats(h, rope, "long_factor", NULL, (size_t)r->rotary_dim / 2);
        r->short_divisors = hp_floats(h, rope, "short_factor", NULL, (size_t)r->rotary_dim / 2);
        if (!r->long_divisors || !r->short_divisors) hp_error(h, "longrope without its long_factor and short_factor");
    }
    r->magnitude = json_number(h, rope, "attention_factor", r->magnitude);
    r->long_magnitude = json_number(h, rope, "long_mscale", 0);
    r->magnitude = json_number(h, rope, "short_mscale", r->magnitude);
}

void arch_rope_plain(struct hparams *h, struct arch *arch, int i, double theta) {
    struct rope_arch *r = &arch->rope[i];
    if (h->failed) return;
    *r = arch->rope[0];
    r->theta = theta;
    r->scaling = ROPE_SCALING_NONE;
    r->magnitude = 1, r->long_magnitude = 0;
    r->divisors = r->long_divisors = r->short_divisors = NULL;
    if (!(theta > 0)) hp_error(h, "rope theta %g makes no sense", theta);
    if (i >= arch->n_ropes) arch->n_ropes = i + 1;
}

static void rope_gguf(struct hparams *h, struct arch *arch, struct rope_arch *r, const char *freq_base) {
    r->theta = hp_float(h, NULL, freq_base, r->theta);
    r->rotary_dim = (int)hp_int(h, NULL, "rope.dimension_count", 2, 1 << 16, r->head_dim);
    double scale = hp_float(h, NULL, "rope.scale_linear", 0);
    const char *type = hp_text(h, NULL, "rope.scaling.type", NULL);
    r->factor = hp_float(h, NULL, "rope.scaling.factor", scale);
    r->scaling = type ? scaling_named(h, type) : r->factor != 0 ? ROPE_SCALING_LINEAR : ROPE_SCALING_NONE;
    if (r->factor == 0) r->factor = 1;
    int64_t original = hp_int(h, NULL, "rope.scaling.original_context_length", 1, INT32_MAX, arch->context);
    r->original = (double)original;
    r->beta_fast = hp_float(h, NULL, "rope.scaling.yarn_beta_fast", 32);
    r->beta_slow = hp_float(h, NULL, "rope.scaling.yarn_beta_slow", 1);
    r->truncate = true;
    r->divisors = hp_floats(h, NULL, NULL, "rope_freqs.weight", (size_t)r->rotary_dim / 2);
    r->long_divisors = hp_floats(h, NULL, NULL, "rope_factors_long.weight", (size_t)r->rotary_dim / 2);
    r->short_divisors = hp_floats(h, NULL, NULL, "rope_factors_short.weight", (size_t)r->rotary_dim / 2);
    if (r->long_divisors && r->short_divisors) r->scaling = ROPE_SCALING_LONGROPE;
    if (r->scaling == ROPE_SCALING_LONGROPE && (!r->long_divisors || !r->short_divisors))
        hp_error(h, "longrope without its tensors rope_factors_long and rope_factors_short");
    double all = hp_float(h, NULL, "rope.scaling.yarn_log_multiplier", 0); // mscale_all_dim; mscale is taken for 1
    if (r->scaling == ROPE_SCALING_YARN)
        r->magnitude = yarn_size(r->factor, 1) / (all != 0 ? yarn_size(r->factor, all) : 1);
    r->magnitude *= hp_float(h, NULL, "rope.scaling.attn_factor", 1);
}

void arch_rope(struct hparams *h, struct arch *arch, int i, const char *section, const char *freq_base, double theta) {
    struct rope_arch *r = &arch->rope[i];
    int head_dim = r->head_dim ? r->head_dim : arch->layer[0].head_dim;
    enum rope_kind kind = r->kind;
    if (h->failed) return;
    *r = (struct rope_arch){.kind = kind, .head_dim = head_dim, .theta = theta, .factor = 1, .magnitude = 1};
    if (h->gguf)
        rope_gguf(h, arch, r, freq_base);
    else
        rope_json(h, arch, r, section);
    if (h->failed) return;
    if (!(r->theta > 0) || !(r->factor > 0) || !(r->original >= 1) || !(r->magnitude > 0) || r->rotary_dim < 2 ||
        r->rotary_dim > r->head_dim || r->rotary_dim % 2) {
        hp_error(h, "rope theta %g, factor %g, original context %g, size %g, %d of %d dims make no sense", r->theta,
                 r->factor, r->original, r->magnitude, r->rotary_dim, r->head_dim);
    }
    if (i >= arch->n_ropes) arch->n_ropes = i + 1;
}

// --- everything

static int64_t *numbers(struct hparams *h, size_t n) {
    int64_t *out = pool_array(h->pool, n, sizeof *out);
    if (out) return out;
    error_memory(h->err, "the architecture", n * sizeof *out);
    h->failed = true;
    return NULL;
}

static void layers_common(struct hparams *h, struct arch *a, const struct common *c) {
    size_t n = (size_t)a->layers;
    int64_t *heads = numbers(h, n), *kv = numbers(h, n), *ffn = numbers(h, n);
    a->layer = pool_array(h->pool, n, sizeof *a->layer);
    if (h->failed || !a->layer) {
        if (!h->failed) error_memory(h->err, "the architecture", n * sizeof *a->layer);
        h->failed = true;
        return;
    }
    if (!hp_layers(h, "num_attention_heads", "attention.head_count", 1, 65536, n, heads))
        hp_error(h, "key '%s' is missing", h->gguf ? "attention.head_count" : "num_attention_heads");
    bool has_kv = hp_layers(h, "num_key_value_heads", "attention.head_count_kv", 1, 65536, n, kv);
    const struct json *null_kv = h->gguf ? NULL : json_get(h->json, "num_key_value_heads");
    bool has_ffn = hp_layers(h, "intermediate_size", "feed_forward_length", 0, 1 << 24, n, ffn);
    if (h->failed) return;
    int64_t head_dim = hp_int(h, c->own_heads ? NULL : "head_dim", "attention.key_length", 2, 65536,
                              !h->gguf && c->head_dim ? c->head_dim : a->width / heads[0]);
    int64_t v_dim = hp_int(h, NULL, "attention.value_length", 2, 65536, head_dim);
    enum act_kind act = arch_act(h, c->act ? c->act : "silu");
    for (size_t l = 0; l < n; l++) {
        int64_t own = has_kv ? kv[l] : !h->gguf && c->kv_heads && !null_kv ? c->kv_heads : heads[l];
        a->layer[l] = (struct layer_arch){.norms = 1u << NORM_ATTENTION | 1u << NORM_MLP,
                                          .heads = (int)heads[l],
                                          .kv_heads = (int)own,
                                          .head_dim = (int)head_dim,
                                          .v_dim = (int)v_dim,
                                          .attention_scale = 1.0f / sqrtf((float)head_dim),
                                          .glu = true,
                                          .act = act,
                                          .ffn = has_ffn ? (int)ffn[l] : 0};
        if (heads[l] % own != 0)
            hp_error(h, "layer %zu has %lld heads for %lld key-value heads", l, (long long)heads[l], (long long)own);
    }
}

void arch_common(struct hparams *h, struct arch *a, const struct common *c) {
    const char *family = a->family, *model_type = a->model_type;
    *a = (struct arch){
        .family = family, .model_type = model_type, .embed_scale = 1, .logit_scale = 1, .residual_scale = 1};
    a->layers = (int)hp_int(h, "num_hidden_layers|num_layers", "block_count", 1, 1024, HP_REQUIRED);
    int64_t extra = hp_int(h, "num_nextn_predict_layers", "nextn_predict_layers", 0, 1024, 0);
    a->extra_layers = extra > 0;
    if (h->gguf && extra < a->layers) a->layers -= (int)extra; // block_count counts them
    a->width = (int)hp_int(h, "hidden_size", "embedding_length", 1, 1 << 20, HP_REQUIRED);
    a->context = (int)hp_int(h, "max_position_embeddings", "context_length", 1, 1 << 30, h->gguf ? HP_REQUIRED : 2048);
    a->vocab = (int)hp_int(h, "vocab_size", NULL, 1, 1 << 24, h->gguf ? 0 : HP_REQUIRED);
    a->norm = NORM_RMS;
    a->norm_eps = (float)hp_float(h, c->eps_json ? c->eps_json : "rms_norm_eps",
                                  c->eps_gguf ? c->eps_gguf : "attention.layer_norm_rms_epsilon",
                                  h->gguf ? HP_REQUIRED_FLOAT : c->eps);
    a->tied = hp_bool(h, "tie_word_embeddings", NULL, c->tied);
    if (!h->failed) layers_common(h, a, c);
    if (h->failed) return;
    a->rope[0].kind = c->rope_pairs ? ROPE_NORM : ROPE_NEOX;
    if (!c->own_heads) arch_rope(h, a, 0, NULL, "rope.freq_base", c->theta);
}

bool arch_sliding(struct hparams *h, struct arch *a, int64_t window, int64_t period, bool *slides) {
    size_t n = (size_t)a->layers;
    bool said = false;
    for (size_t l = 0; l < n; l++) slides[l] = period > 0 && (l + 1) % (size_t)period != 0;
    if (h->gguf) {
        int64_t *pattern = numbers(h, n);
        if (pattern && hp_layers(h, NULL, "attention.sliding_window_pattern", 0, 1 << 16, n, pattern)) {
            bool list = false;
            for (size_t l = 1; l < n; l++) list |= pattern[l] != pattern[0];
            list |= pattern[0] < 2; // an array of flags, or one flag for all
            for (size_t l = 0; l < n; l++) slides[l] = list ? pattern[l] != 0 : (l + 1) % (size_t)pattern[0] != 0;
            said = true;
        }
    } else if (hp_has_layer_types(h)) {
        for (size_t l = 0; l < n && !h->failed; l++) slides[l] = hp_layer_type(h, l, "sliding_attention");
        said = true;
    }
    for (size_t l = 0; l < n && !h->failed; l++) a->layer[l].window = slides[l] ? (int)window : 0;
    return said;
}

void arch_neutral(struct hparams *h, const char *handled) {
    static const struct {
        const char *key;
        double neutral;
    } keys[] = {{"rope.scaling.yarn_log_multiplier", 0},
                {"attention.scale", 0},
                {"attention.clamp_kqv", 0},
                {"attention.max_alibi_bias", 0},
                {"attn_logit_softcapping", 0},
                {"final_logit_softcapping", 0},
                {"logit_scale", 1},
                {"residual_scale", 1},
                {"embedding_scale", 1}};
    for (size_t i = 0; i < COUNT_OF(keys) && h->gguf; i++) {
        if (family_names(handled, keys[i].key, strlen(keys[i].key))) continue;
        double value = hp_float(h, NULL, keys[i].key, keys[i].neutral);
        if (value != keys[i].neutral && !(keys[i].neutral == 1 && value == 0)) // 0 = not set
            hp_error(h, "key '%s.%s' is %g, which is not in this version", h->prefix, keys[i].key, value);
    }
    if (!hp_bool(h, NULL, "attention.causal", true))
        hp_error(h, "key '%s.attention.causal' is false: attention in both directions is not in this version",
                 h->prefix);
}
