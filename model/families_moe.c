// Mappers of families with experts. Facts: formats.md 9, transformers 5.
#include "model/families.h"

#include <math.h>
#include <string.h>

static bool is_type(const struct arch *a, const char *model_type) {
    return strcmp(a->model_type, model_type) == 0;
}

void map_experts(struct hparams *h, struct arch *a, const char *ffn_json) {
    struct moe_arch *m = &a->moe;
    m->experts =
        (int)hp_int(h, "num_local_experts|num_experts|n_routed_experts", "expert_count", 1, 65536, HP_REQUIRED);
    m->route.used = (int)hp_int(h, "num_experts_per_tok", "expert_used_count", 1, 65536, h->gguf ? HP_REQUIRED : 2);
    m->ffn = (int)hp_int(h, ffn_json, "expert_feed_forward_length", 1, 1 << 24,
                         h->gguf && !h->failed && a->layer[0].ffn > 0 ? a->layer[0].ffn : HP_REQUIRED);
    if (h->failed) return;
    m->act = a->layer[0].act;
    m->route.gate = MOE_SOFTMAX;
    m->route.experts = m->experts;
    m->route.groups = m->route.groups_used = 1;
    m->route.normalise = true;
    m->route.scale = 1;
    m->balanced = true;
    m->balance = hp_bool(h, "output_router_logits", NULL, false);
    m->balance_weight = (float)hp_float(h, "router_aux_loss_coef", NULL, -1);
    if (m->route.used > m->experts) hp_error(h, "%d of %d experts are used", m->route.used, m->experts);
    for (int l = 0; l < a->layers; l++) a->layer[l].moe = true;
}

// Which layers of Qwen's have experts.
static void sparse_layers(struct hparams *h, struct arch *a) {
    int64_t step = hp_int(h, "decoder_sparse_step", NULL, 1, 65536, 1);
    if (h->failed || h->gguf) return;
    for (int l = 0; l < a->layers; l++) a->layer[l].moe = (l + 1) % step == 0;
    for (const struct json *at = json_child(json_get(h->json, "mlp_only_layers")); at; at = json_next(at)) {
        int64_t l;
        if (json_int(at, &l) && l >= 0 && l < a->layers) a->layer[l].moe = false;
    }
}

static void qwen_moe_window(struct hparams *h, struct arch *a) {
    if (h->failed || h->gguf || !hp_bool(h, "use_sliding_window", NULL, false)) return;
    int64_t window = hp_int(h, "sliding_window", NULL, 0, INT32_MAX, 4096);
    int64_t from = is_type(a, "qwen2_moe") ? hp_int(h, "max_window_layers", NULL, 0, 65536, 28) : 0;
    for (int l = 0; l < a->layers; l++) a->layer[l].window = l >= from ? (int)window : 0;
}

void map_qwen2_moe(struct hparams *h, struct arch *a) {
    arch_common(h, a, &(struct common){.kv_heads = 16, .eps = 1e-6, .theta = 10000});
    map_experts(h, a, "moe_intermediate_size");
    bool bias = hp_bool(h, "qkv_bias", NULL, true);
    for (int l = 0; l < a->layers && !h->failed; l++) a->layer[l].bias_qkv = bias;
    a->moe.shared_ffn =
        (int)hp_int(h, "shared_expert_intermediate_size", "expert_shared_feed_forward_length", 1, 1 << 24, HP_REQUIRED);
    a->moe.shared_gate = true;
    a->moe.route.normalise = hp_bool(h, "norm_topk_prob", NULL, false);
    sparse_layers(h, a);
    qwen_moe_window(h, a);
    arch_neutral(h, NULL);
}

void map_qwen3_moe(struct hparams *h, struct arch *a) {
    // The class knows no default for head_dim: width / heads.
    arch_common(h, a, &(struct common){.kv_heads = 4, .eps = 1e-6, .theta = 10000});
    map_experts(h, a, "moe_intermediate_size");
    bool bias = hp_bool(h, "attention_bias", NULL, false);
    for (int l = 0; l < a->layers && !h->failed; l++) {
        a->layer[l].norms |= 1u << NORM_Q | 1u << NORM_K;
        a->layer[l].bias_qkv = a->layer[l].bias_o = bias;
    }
    a->moe.route.normalise = h->gguf || hp_bool(h, "norm_topk_prob", NULL, false); // all that were released do
    sparse_layers(h, a);
    qwen_moe_window(h, a);
    arch_neutral(h, NULL);
}

void map_phimoe(struct hparams *h, struct arch *a) { // layer norms with biases, a head with a bias
    arch_common(
        h, a,
        &(struct common){.kv_heads = 8, .eps = 1e-5, .eps_gguf = "attention.layer_norm_rms_epsilon", .theta = 1e6});
    a->norm = NORM_LAYER;
    a->norm_bias = true, a->head_bias = hp_bool(h, "lm_head_bias", NULL, false);
    map_experts(h, a, "intermediate_size");
    bool bias = hp_bool(h, "attention_bias", NULL, false);
    int64_t window = hp_int(h, "sliding_window", NULL, 0, INT32_MAX, 0);
    for (int l = 0; l < a->layers && !h->failed; l++) {
        a->layer[l].bias_qkv = a->layer[l].bias_o = bias;
        a->layer[l].window = (int)window;
    }
    a->moe.route.gate = MOE_SPARSE_MIXER;
    a->moe.route.normalise = false;
    a->moe.route.jitter = (float)hp_float(h, "router_jitter_noise", NULL, 0.01);
    if (!h->failed && a->moe.route.used != 2)
        hp_error(h, "%d experts per token; this router chooses 2", a->moe.route.used);
    arch_neutral(h, NULL);
}

// --- DeepSeek V2 and V3: latent attention, shared experts, grouped routing

static void deepseek_attention(struct hparams *h, struct arch *a) {
    struct latent_arch *m = &a->latent;
    m->q_rank = (int)hp_int(h, "q_lora_rank", "attention.q_lora_rank", 0, 1 << 20, 0);
    m->kv_rank = (int)hp_int(h, "kv_lora_rank", "attention.kv_lora_rank", 1, 1 << 20, HP_REQUIRED);
    m->rope = (int)hp_int(h, "qk_rope_head_dim", "rope.dimension_count", 2, 4096, HP_REQUIRED);
    int64_t key = hp_int(h, NULL, "attention.key_length_mla", 4, 8192, 0);
    m->split = h->gguf && key > 0; // old files have neither the key nor the split
    if (h->gguf && key == 0) key = hp_int(h, NULL, "attention.key_length", 4, 8192, HP_REQUIRED);
    int64_t v = hp_int(h, NULL, "attention.value_length_mla", 2, 8192, 0);
    if (h->gguf && v == 0) v = hp_int(h, NULL, "attention.value_length", 2, 8192, HP_REQUIRED);
    m->nope = h->gguf ? (int)(key - m->rope) : (int)hp_int(h, "qk_nope_head_dim", NULL, 2, 8192, HP_REQUIRED);
    if (!h->gguf) v = hp_int(h, "v_head_dim", NULL, 2, 8192, HP_REQUIRED);
    m->norm_eps = 1e-6f; // whatever the config says
    if (h->failed) return;
    if (m->nope < 1) hp_error(h, "heads of %d with %d dims that turn make no sense", m->nope + m->rope, m->rope);
    bool pairs = hp_bool(h, "rope_interleave", NULL, true), bias = hp_bool(h, "attention_bias", NULL, false);
    struct rope_arch *r = &a->rope[0];
    *r = (struct rope_arch){.kind = pairs ? ROPE_NORM : ROPE_NEOX, .head_dim = m->rope};
    arch_rope(h, a, 0, NULL, "rope.freq_base", 10000);
    double scale = 1 / sqrt(m->nope + m->rope), all = 0;
    const struct json *v_all = json_get(h->rope, "mscale_all_dim");
    if (v_all) json_double(v_all, &all);
    all *= 0.1;
    if (h->gguf) { // yarn_log_multiplier = 0.1 mscale_all_dim; cosines and sines keep their size
        all = hp_float(h, NULL, "rope.scaling.yarn_log_multiplier", 0);
        r->magnitude = 1;
    }
    if (r->scaling == ROPE_SCALING_YARN && r->factor > 1) scale *= pow(1 + all * log(r->factor), 2);
    for (int l = 0; l < a->layers; l++) {
        struct layer_arch *y = &a->layer[l];
        y->kv_heads = y->heads;
        y->head_dim = m->nope + m->rope;
        y->v_dim = (int)v;
        y->attention_scale = (float)scale;
        y->norms |= 1u << NORM_KV_LATENT | (m->q_rank > 0 ? 1u << NORM_Q_LATENT : 0);
        y->bias_o = bias;
    }
}

void map_deepseek(struct hparams *h, struct arch *a) {
    bool third = is_type(a, "deepseek_v3");
    arch_common(h, a, &(struct common){.eps = 1e-6, .theta = 10000, .rope_pairs = true, .own_heads = true});
    a->extra_layers = true; // V3's files have one, and config.json need not say so
    deepseek_attention(h, a);
    map_experts(h, a, "moe_intermediate_size");
    struct moe_route *m = &a->moe.route;
    int64_t shared = hp_int(h, "n_shared_experts", "expert_shared_count", 0, 1024, 0);
    int64_t dense = hp_int(h, "first_k_dense_replace", "leading_dense_block_count", 0, 1024, third && !h->gguf ? 3 : 0);
    int64_t step = hp_int(h, "moe_layer_freq", NULL, 1, 1024, 1);
    int64_t gate = hp_int(h, NULL, "expert_gating_func", 0, 4, h->gguf ? 1 : third ? 2 : 1);
    const char *scoring = hp_text(h, "scoring_func", NULL, gate == 2 ? "sigmoid" : "softmax");
    const char *method = hp_text(h, "topk_method", NULL, third ? "noaux_tc" : "greedy");
    m->scale = (float)hp_float(h, "routed_scaling_factor", "expert_weights_scale", third && !h->gguf ? 2.5 : 1);
    m->normalise = third && hp_bool(h, "norm_topk_prob", NULL, true);
    if (h->gguf) m->normalise = hp_bool(h, NULL, "expert_weights_norm", false);
    m->groups = (int)hp_int(h, "n_group", "expert_group_count", 1, 65536, third && !h->gguf ? 8 : 1);
    m->groups_used = (int)hp_int(h, "topk_group", "expert_group_used_count", 1, 65536, third && !h->gguf ? 4 : 1);
    if (h->failed) return;
    m->gate = strcmp(scoring, "sigmoid") == 0 ? MOE_SIGMOID : MOE_SOFTMAX;
    m->group_pairs = m->gate == MOE_SIGMOID;
    if (!h->gguf && strcmp(method, "greedy") == 0) m->groups = m->groups_used = 1;
    a->moe.balanced = false;
    a->moe.shared_ffn = (int)shared * a->moe.ffn;
    for (int l = 0; l < a->layers; l++) a->layer[l].moe = l >= dense && l % step == 0;
    if (m->experts % m->groups != 0 || m->groups_used > m->groups)
        hp_error(h, "%d experts in %d groups, of which %d are used, make no sense", m->experts, m->groups,
                 m->groups_used);
    arch_neutral(h, "rope.scaling.yarn_log_multiplier");
}

void map_llama4(struct hparams *h,
                struct arch *a) { // chunks, layers that are not turned, experts that scale their input
    arch_common(h, a,
                &(struct common){.kv_heads = 8, .head_dim = 128, .eps = 1e-5, .theta = 500000, .rope_pairs = true});
    map_experts(h, a, "intermediate_size");
    if (h->failed) return;
    a->moe.route.gate = MOE_SIGMOID;
    a->moe.route.normalise = false;
    a->moe.scale_input = true;
    a->moe.balanced = false;
    a->moe.shared_ffn = a->moe.ffn;
    int64_t step = hp_int(h, "interleave_moe_layer_step", "interleave_moe_layer_step", 1, 1024, 1);
    int64_t every = hp_int(h, "no_rope_layer_interval", NULL, 1, 65536, 4), *turned = NULL;
    int64_t dense = hp_int(h, "intermediate_size_mlp", "feed_forward_length", 1, 1 << 24, 16384);
    int64_t chunk = hp_int(h, "attention_chunk_size", NULL, 0, INT32_MAX, 8192);
    bool norms = hp_bool(h, "use_qk_norm", NULL, true), tuned = hp_bool(h, "attn_temperature_tuning", NULL, true);
    if (h->gguf) norms = a->moe.experts != 128; // llama.cpp: Maverick has none
    struct rope_arch *still = &a->rope[1];
    *still = (struct rope_arch){.kind = ROPE_NORM,
                                .head_dim = a->layer[0].head_dim,
                                .rotary_dim = a->layer[0].head_dim,
                                .theta = 1,
                                .magnitude = 1,
                                .still = true,
                                .query_beta = hp_float(h, "attn_scale", NULL, 0.1),
                                .query_floor = hp_float(h, "floor_scale", NULL, 8192),
                                .query_shift = 1};
    if (tuned) a->n_ropes = 2;
    turned = pool_array(h->pool, (uint64_t)a->layers, sizeof *turned);
    if (!turned || h->failed || !(still->query_floor > 0)) {
        hp_error(h, "floor_scale %g makes no sense", still->query_floor);
        return;
    }
    for (int l = 0; l < a->layers; l++) turned[l] = (l + 1) % every != 0;
    if (!h->gguf && json_count(json_get(h->json, "no_rope_layers")) > 0)
        hp_layers(h, "no_rope_layers", NULL, 0, 1, (size_t)a->layers, turned);
    for (int l = 0; l < a->layers; l++) {
        struct layer_arch *y = &a->layer[l];
        y->ffn = (int)dense;
        y->moe = (l + 1) % step == 0;
        y->chunk = turned[l] ? (int)chunk : 0;
        if (turned[l] && norms) y->norms |= 1u << NORM_Q | 1u << NORM_K, y->qk_after_rope = true;
        if (!turned[l]) y->rope_k = ROPE_NONE, y->rope_q = tuned ? 1 : ROPE_NONE;
    }
    const struct json *list = h->gguf ? NULL : json_get(h->json, "moe_layers");
    if (json_is(list, JSON_ARRAY)) {
        for (int l = 0; l < a->layers; l++) a->layer[l].moe = false;
        for (const struct json *at = json_child(list); at; at = json_next(at)) {
            int64_t l;
            if (json_int(at, &l) && l >= 0 && l < a->layers) a->layer[l].moe = true;
        }
    }
    arch_neutral(h, NULL);
}

void map_granite_moe(struct hparams *h, struct arch *a) {
    map_granite(h, a);
    map_experts(h, a, "intermediate_size");
    a->moe.route.gate = MOE_SOFTMAX_CHOSEN;
}

void map_gpt_oss(struct hparams *h, struct arch *a) { // sinks, biases, clamped experts
    arch_common(h, a, &(struct common){.kv_heads = 8, .head_dim = 64, .eps = 1e-5, .theta = 150000});
    map_experts(h, a, "intermediate_size");
    bool *slides = h->failed ? NULL : pool_array(h->pool, (uint64_t)a->layers, sizeof *slides);
    if (!slides) return;
    a->rope[0].truncate = !h->gguf && a->rope[0].truncate; // a GGUF does not say it: the model's ramp is not cut
    int64_t window = hp_int(h, "sliding_window", "attention.sliding_window", 0, INT32_MAX, 128);
    bool bias = hp_bool(h, "attention_bias", NULL, true);
    for (int l = 0; l < a->layers; l++) slides[l] = l % 2 == 0;
    arch_sliding(h, a, window, 2, slides);
    for (int l = 0; l < a->layers; l++) a->layer[l].bias_qkv = a->layer[l].bias_o = bias, a->layer[l].bias_mlp = true;
    a->moe.route.gate = MOE_SOFTMAX_CHOSEN;
    a->moe.act = ACT_SWIGLU_CLAMPED;
    a->moe.limit = (float)hp_float(h, "swiglu_limit", NULL, 7);
    a->moe.alpha = (float)hp_float(h, "swiglu_alpha", NULL, 1.702);
    arch_neutral(h, NULL);
}
