// The table of families and their mappers. See family.h; keys: formats.md 2.5, arithmetic: 9.2.
#include "model/family.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

// Reads ARCH.key as an integer; -1 when absent and required.
static int key_int(const struct gguf *file, const char *arch, const char *key, int64_t low, int64_t high, bool required,
                   int64_t *out, struct error *err) {
    char name[128];
    snprintf(name, sizeof name, "%s.%s", arch, key);
    int found = gguf_get_int(file, name, low, high, out, err);
    if (found == 0 && required) return error_set(err, STATUS_DATA, "%s: key '%s' is missing", file->name, name);
    return found < 0 ? -1 : 0;
}

static int key_float(const struct gguf *file, const char *arch, const char *key, bool required, double *out,
                     struct error *err) {
    char name[128];
    snprintf(name, sizeof name, "%s.%s", arch, key);
    int found = gguf_get_float(file, name, out, err);
    if (found == 0 && required) return error_set(err, STATUS_DATA, "%s: key '%s' is missing", file->name, name);
    return found < 0 ? -1 : 0;
}

static int per_layer(const struct gguf *file, const char *arch, const char *key, size_t layers, int64_t high,
                     int64_t *out, struct error *err) {
    char name[128];
    snprintf(name, sizeof name, "%s.%s", arch, key);
    return gguf_get_per_layer(file, name, 1, high, layers, out, err);
}

// Rope: theta, rotated dims and the scaling that is written in keys. Kinds we cannot do exactly are refused.
static int map_rope(const struct gguf *file, const char *name, int head_dim, struct rope_arch *rope,
                    struct error *err) {
    int64_t rotary = head_dim;
    rope->theta = 10000;
    rope->linear_factor = 1;
    double factor = 0, scale = 0;
    char key[128];
    struct vocab_string type = {"none", 4};
    snprintf(key, sizeof key, "%s.rope.scaling.type", name);
    int has_type = gguf_get_string(file, key, &type, err);
    if (has_type < 0 || key_int(file, name, "rope.dimension_count", 2, head_dim, false, &rotary, err) ||
        key_float(file, name, "rope.freq_base", false, &rope->theta, err) ||
        key_float(file, name, "rope.scaling.factor", false, &factor, err) ||
        key_float(file, name, "rope.scale_linear", false, &scale, err)) {
        return -1;
    }
    if (factor < 0 || scale < 0)
        return error_set(err, STATUS_DATA, "%s: a rope scaling factor of %g makes no sense", file->name,
                         factor < 0 ? factor : scale);
    bool linear = type.length == 6 && memcmp(type.bytes, "linear", 6) == 0;
    bool none = type.length == 4 && memcmp(type.bytes, "none", 4) == 0;
    if (!linear && !none) {
        return error_set(err, STATUS_DATA, "%s: rope scaling '%.*s' is not in this version; none and linear are",
                         file->name, (int)type.length, type.bytes);
    }
    if (factor == 0) factor = scale;
    if (factor > 0 && (linear || has_type == 0)) rope->linear_factor = factor; // a missing type means linear
    if (!(rope->theta > 0) || rope->linear_factor < 1e-3 || rotary % 2 != 0) {
        return error_set(err, STATUS_DATA, "%s: rope theta %g, factor %g, %lld rotated dims make no sense", file->name,
                         rope->theta, rope->linear_factor, (long long)rotary);
    }
    rope->rotary_dim = (int)rotary;
    return 0;
}

// Keys that change what the model computes and that are not built: only their neutral value passes.
static int check_neutral(const struct gguf *file, const char *arch, struct error *err) {
    static const struct {
        const char *key;
        double neutral;
    } keys[] = {{"rope.scaling.attn_factor", 1}, {"rope.scaling.yarn_log_multiplier", 0},
                {"attention.scale", 0},          {"attention.clamp_kqv", 0},
                {"attention.max_alibi_bias", 0}, {"attn_logit_softcapping", 0},
                {"final_logit_softcapping", 0},  {"logit_scale", 1},
                {"residual_scale", 1},           {"embedding_scale", 1}};
    char name[128];
    for (size_t i = 0; i < COUNT_OF(keys); i++) {
        double value = keys[i].neutral;
        if (key_float(file, arch, keys[i].key, false, &value, err)) return -1;
        if (value != keys[i].neutral && !(keys[i].neutral == 1 && value == 0)) // 0 = not set
            return error_set(err, STATUS_DATA, "%s: key '%s.%s' is %g, which is not in this version", file->name, arch,
                             keys[i].key, value);
    }
    bool causal = true;
    snprintf(name, sizeof name, "%s.attention.causal", arch);
    if (gguf_get_bool(file, name, &causal, err) < 0) return -1;
    return causal ? 0
                  : error_set(err, STATUS_DATA,
                              "%s: key '%s' is false: attention in both directions is not in this version", file->name,
                              name);
}

static int map_llama(const struct gguf *file, struct pool *pool, struct arch *arch, struct error *err) {
    int64_t layers, width, context, head_dim = 0, v_dim = 0, experts = 0;
    double eps;
    const char *name = "llama";
    if (key_int(file, name, "block_count", 1, 1024, true, &layers, err) ||
        key_int(file, name, "embedding_length", 1, 1 << 20, true, &width, err) ||
        key_int(file, name, "context_length", 1, 1 << 30, true, &context, err) ||
        key_int(file, name, "attention.key_length", 2, 256, false, &head_dim, err) ||
        key_int(file, name, "attention.value_length", 2, 256, false, &v_dim, err) ||
        key_int(file, name, "expert_count", 0, 65536, false, &experts, err) ||
        key_float(file, name, "attention.layer_norm_rms_epsilon", true, &eps, err)) {
        return -1;
    }
    if (experts > 0)
        return error_set(err, STATUS_DATA, "%s: a mixture of experts (%lld) is not in this version", file->name,
                         (long long)experts);
    size_t n = (size_t)layers;
    int64_t *heads = pool_array(pool, n, sizeof *heads), *kv = pool_array(pool, n, sizeof *kv),
            *ffn = pool_array(pool, n, sizeof *ffn);
    arch->layer = pool_array(pool, n, sizeof *arch->layer);
    if (!heads || !kv || !ffn || !arch->layer) return error_memory(err, "the architecture", n * sizeof *arch->layer);
    int has_heads = per_layer(file, name, "attention.head_count", n, 4096, heads, err);
    int has_ffn = per_layer(file, name, "feed_forward_length", n, 1 << 22, ffn, err);
    int has_kv = per_layer(file, name, "attention.head_count_kv", n, 4096, kv, err);
    if (has_heads < 0 || has_ffn < 0 || has_kv < 0) return -1;
    if (!has_heads || !has_ffn)
        return error_set(err, STATUS_DATA, "%s: key 'llama.%s' is missing", file->name,
                         has_heads ? "feed_forward_length" : "attention.head_count");
    if (head_dim == 0) head_dim = width / heads[0];
    if (v_dim == 0) v_dim = head_dim;
    *arch = (struct arch){.family = name,
                          .layers = (int)layers,
                          .width = (int)width,
                          .context = (int)context,
                          .norm = NORM_RMS,
                          .norm_eps = (float)eps,
                          .embed_scale = 1,
                          .logit_scale = 1,
                          .layer = arch->layer};
    for (size_t l = 0; l < n; l++) {
        arch->layer[l] = (struct layer_arch){.heads = (int)heads[l],
                                             .kv_heads = (int)(has_kv ? kv[l] : heads[l]),
                                             .head_dim = (int)head_dim,
                                             .v_dim = (int)v_dim,
                                             .ffn = (int)ffn[l],
                                             .act = ACT_SILU,
                                             .rope = true,
                                             .attention_scale = 1.0f / sqrtf((float)head_dim)};
        if (arch->layer[l].heads % arch->layer[l].kv_heads != 0) {
            return error_set(err, STATUS_DATA, "%s: layer %zu has %d heads for %d key-value heads", file->name, l,
                             arch->layer[l].heads, arch->layer[l].kv_heads);
        }
    }
    arch->rope.kind = ROPE_NORM; // the file's rows are permuted for adjacent pairs (formats.md 2.8)
    if (map_rope(file, name, (int)head_dim, &arch->rope, err) || check_neutral(file, name, err)) return -1;
    if (arch->rope.rotary_dim == head_dim) return 0;
    return error_set(err, STATUS_DATA,
                     "%s: llama.rope.dimension_count is %d, the heads have %d: a llama turns them all", file->name,
                     arch->rope.rotary_dim, (int)head_dim);
}

const struct family family_table[] = {
    {
        .gguf_arch = "llama",
        .model_types = "llama, mistral and others converted to the llama architecture",
        .modules = {{"self_attn.q_proj", "attn_q"},
                    {"self_attn.k_proj", "attn_k"},
                    {"self_attn.v_proj", "attn_v"},
                    {"self_attn.o_proj", "attn_output"},
                    {"mlp.gate_proj", "ffn_gate"},
                    {"mlp.up_proj", "ffn_up"},
                    {"mlp.down_proj", "ffn_down"}},
        .attn_norm = "attn_norm",
        .ffn_norm = "ffn_norm",
        .permuted_qk = true,
        .map_gguf = map_llama,
    },
};
const int family_count = (int)COUNT_OF(family_table);

const struct family *family_find_gguf(const char *architecture) {
    for (int i = 0; i < family_count; i++) {
        if (strcmp(family_table[i].gguf_arch, architecture) == 0) return &family_table[i];
    }
    return NULL;
}
