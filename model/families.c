// The table of families: names of tensors and modules. The mappers stand in families_dense.c and families_moe.c.
// Sources: transformers' modeling files and llama.cpp's tensor table (formats.md 2.7, 9).
#include "model/families.h"

#define LINEAR(hf_, gguf_, kind)                                                                                       \
    {                                                                                                                  \
        .hf = hf_, .gguf = gguf_, .n_parts = 1, .parts = { kind }                                                      \
    }
#define LINEAR_FLAGS(hf_, gguf_, kind, flags_)                                                                         \
    { .hf = hf_, .gguf = gguf_, .n_parts = 1, .parts = {kind}, .flags = flags_ }

#define QKVO                                                                                                           \
    LINEAR("self_attn.q_proj", "attn_q", LINEAR_Q), LINEAR("self_attn.k_proj", "attn_k", LINEAR_K),                    \
        LINEAR("self_attn.v_proj", "attn_v", LINEAR_V), LINEAR("self_attn.o_proj", "attn_output", LINEAR_O)
#define MLP                                                                                                            \
    LINEAR("mlp.gate_proj", "ffn_gate", LINEAR_GATE), LINEAR("mlp.up_proj", "ffn_up", LINEAR_UP),                      \
        LINEAR("mlp.down_proj", "ffn_down", LINEAR_DOWN)
#define FUSED_MLP                                                                                                      \
    {.hf = "mlp.gate_up_proj", .gguf = "ffn_up", .n_parts = 2, .parts = {LINEAR_GATE, LINEAR_UP}},                     \
        LINEAR("mlp.down_proj", "ffn_down", LINEAR_DOWN)
// One module per expert, as on disk; the router, which transformers may call otherwise than the disk does.
#define EXPERTS(router, router_module, gate, up, down)                                                                 \
    {.hf = router,                                                                                                     \
     .gguf = "ffn_gate_inp",                                                                                           \
     .n_parts = 1,                                                                                                     \
     .parts = {LINEAR_ROUTER},                                                                                         \
     .flags = TENSOR_ROUTER,                                                                                           \
     .module = router_module},                                                                                         \
        LINEAR(gate, "ffn_gate_exps", LINEAR_EXPERT_GATE), LINEAR(up, "ffn_up_exps", LINEAR_EXPERT_UP),                \
        LINEAR(down, "ffn_down_exps", LINEAR_EXPERT_DOWN)
#define MLP_EXPERTS                                                                                                    \
    EXPERTS("mlp.gate", NULL, "mlp.experts.%d.gate_proj", "mlp.experts.%d.up_proj", "mlp.experts.%d.down_proj")
// The same experts as parameters of one module: what PEFT calls target parameters.
#define EXPERT_PARAMETERS                                                                                              \
    {.hf = "mlp.experts.gate_up_proj",                                                                                 \
     .gguf = "ffn_gate_exps|ffn_up_exps",                                                                              \
     .n_parts = 2,                                                                                                     \
     .parts = {LINEAR_EXPERT_GATE, LINEAR_EXPERT_UP},                                                                  \
     .flags = TENSOR_PARAMETER},                                                                                       \
        LINEAR_FLAGS("mlp.experts.down_proj", "ffn_down_exps", LINEAR_EXPERT_DOWN, TENSOR_PARAMETER)
#define SHARED(root)                                                                                                   \
    LINEAR(root ".gate_proj", "ffn_gate_shexp", LINEAR_SHARED_GATE),                                                   \
        LINEAR(root ".up_proj", "ffn_up_shexp", LINEAR_SHARED_UP),                                                     \
        LINEAR(root ".down_proj", "ffn_down_shexp", LINEAR_SHARED_DOWN)

#define NORM(site_, hf_, gguf_)                                                                                        \
    { .site = site_, .hf = hf_, .gguf = gguf_ }
#define PRE_NORMS                                                                                                      \
    NORM(NORM_ATTENTION, "input_layernorm", "attn_norm"), NORM(NORM_MLP, "post_attention_layernorm", "ffn_norm")
#define QK_NORMS NORM(NORM_Q, "self_attn.q_norm", "attn_q_norm"), NORM(NORM_K, "self_attn.k_norm", "attn_k_norm")
#define POST_NORMS                                                                                                     \
    NORM(NORM_ATTENTION_OUT, "post_attention_layernorm", "post_attention_norm"),                                       \
        NORM(NORM_MLP_OUT, "post_feedforward_layernorm", "post_ffw_norm")

const struct family family_table[] = {
    {
        .gguf_arch = "llama",
        .model_types = "llama|mistral|ministral|mixtral",
        .linears = {QKVO, MLP,
                    EXPERTS("block_sparse_moe.gate", "mlp.gate", "block_sparse_moe.experts.%d.w1",
                            "block_sparse_moe.experts.%d.w3", "block_sparse_moe.experts.%d.w2"),
                    EXPERT_PARAMETERS},
        .norms = {PRE_NORMS},
        .permuted_qk = true,
        .map = map_llama,
    },
    {
        .gguf_arch = "mistral3",
        .model_types = "ministral3",
        .linears = {QKVO, MLP},
        .norms = {PRE_NORMS},
        .permuted_qk = true,
        .map = map_llama,
    },
    {
        .gguf_arch = "llama4",
        .model_types = "llama4|llama4_text",
        .linears = {QKVO,
                    LINEAR("feed_forward.gate_proj", "ffn_gate", LINEAR_GATE),
                    LINEAR("feed_forward.up_proj", "ffn_up", LINEAR_UP),
                    LINEAR("feed_forward.down_proj", "ffn_down", LINEAR_DOWN),
                    LINEAR_FLAGS("feed_forward.router", "ffn_gate_inp", LINEAR_ROUTER, TENSOR_ROUTER),
                    {.hf = "feed_forward.experts.gate_up_proj",
                     .gguf = "ffn_gate_exps|ffn_up_exps",
                     .n_parts = 2,
                     .parts = {LINEAR_EXPERT_GATE, LINEAR_EXPERT_UP},
                     .flags = TENSOR_PARAMETER | TENSOR_BARE | TENSOR_STACKED | TENSOR_TURNED | TENSOR_SWAPPED},
                    LINEAR_FLAGS("feed_forward.experts.down_proj", "ffn_down_exps", LINEAR_EXPERT_DOWN,
                                 TENSOR_PARAMETER | TENSOR_BARE | TENSOR_STACKED | TENSOR_TURNED | TENSOR_SWAPPED),
                    SHARED("feed_forward.shared_expert")},
        .norms = {PRE_NORMS},
        .wrapped_root = "language_model.model.",
        .wrapped_head = "language_model.",
        .map = map_llama4,
    },
    {
        .gguf_arch = "qwen2",
        .model_types = "qwen2",
        .linears = {QKVO, MLP},
        .norms = {PRE_NORMS},
        .map = map_qwen2,
    },
    {
        .gguf_arch = "qwen2moe",
        .model_types = "qwen2_moe",
        .linears = {QKVO, MLP, MLP_EXPERTS,
                    LINEAR_FLAGS("mlp.shared_expert_gate", "ffn_gate_inp_shexp", LINEAR_SHARED_ROUTER, TENSOR_ROUTER),
                    SHARED("mlp.shared_expert"), EXPERT_PARAMETERS},
        .norms = {PRE_NORMS},
        .peft_deaf = "mlp.experts.%d.gate_proj|mlp.experts.%d.up_proj|mlp.experts.%d.down_proj",
        .map = map_qwen2_moe,
    },
    {
        .gguf_arch = "qwen3",
        .model_types = "qwen3",
        .linears = {QKVO, MLP},
        .norms = {PRE_NORMS, QK_NORMS},
        .map = map_qwen3,
    },
    {
        .gguf_arch = "qwen3moe",
        .model_types = "qwen3_moe",
        .linears = {QKVO, MLP, MLP_EXPERTS, EXPERT_PARAMETERS},
        .norms = {PRE_NORMS, QK_NORMS},
        .map = map_qwen3_moe,
    },
    {
        .gguf_arch = "gemma",
        .model_types = "gemma",
        .linears = {QKVO, MLP},
        .norms = {PRE_NORMS},
        .plus_one = true,
        .map = map_gemma,
    },
    {
        .gguf_arch = "gemma2",
        .model_types = "gemma2",
        .linears = {QKVO, MLP},
        .norms = {NORM(NORM_ATTENTION, "input_layernorm", "attn_norm"),
                  NORM(NORM_MLP, "pre_feedforward_layernorm", "ffn_norm"), POST_NORMS},
        .plus_one = true,
        .map = map_gemma2,
    },
    {
        .gguf_arch = "gemma3",
        .model_types = "gemma3|gemma3_text",
        .linears = {QKVO, MLP},
        .norms = {NORM(NORM_ATTENTION, "input_layernorm", "attn_norm"),
                  NORM(NORM_MLP, "pre_feedforward_layernorm", "ffn_norm"), POST_NORMS, QK_NORMS},
        .plus_one = true,
        .map = map_gemma3,
    },
    {
        .gguf_arch = "phi3",
        .model_types = "phi3",
        .linears =
            {{.hf = "self_attn.qkv_proj", .gguf = "attn_qkv", .n_parts = 3, .parts = {LINEAR_Q, LINEAR_K, LINEAR_V}},
             LINEAR("self_attn.o_proj", "attn_output", LINEAR_O),
             FUSED_MLP},
        .norms = {PRE_NORMS},
        .map = map_phi3,
    },
    {
        .gguf_arch = "phimoe",
        .model_types = "phimoe",
        .linears = {QKVO,
                    EXPERTS("block_sparse_moe.gate", "mlp.router", "block_sparse_moe.experts.%d.w1",
                            "block_sparse_moe.experts.%d.w3", "block_sparse_moe.experts.%d.w2"),
                    EXPERT_PARAMETERS},
        .norms = {PRE_NORMS},
        .head_bias = true,
        .peft_deaf = "block_sparse_moe.experts.%d.w1|block_sparse_moe.experts.%d.w3|block_sparse_moe.experts.%d.w2",
        .map = map_phimoe,
    },
    {
        .gguf_arch = "deepseek2",
        .model_types = "deepseek_v2|deepseek_v3",
        .linears = {LINEAR("self_attn.q_proj", "attn_q", LINEAR_Q),
                    LINEAR("self_attn.q_a_proj", "attn_q_a", LINEAR_Q_A),
                    LINEAR("self_attn.q_b_proj", "attn_q_b", LINEAR_Q_B),
                    {.hf = "self_attn.kv_a_proj_with_mqa",
                     .gguf = "attn_kv_a_mqa",
                     .n_parts = 2,
                     .parts = {LINEAR_KV_A, LINEAR_K_ROPE}},
                    LINEAR("self_attn.kv_b_proj", "attn_kv_b", LINEAR_KV_B),
                    {.hf = "self_attn.kv_b_proj",
                     .gguf = "attn_k_b|attn_v_b",
                     .n_parts = 2,
                     .parts = {LINEAR_K_B, LINEAR_V_B},
                     .flags = TENSOR_BY_HEAD},
                    LINEAR("self_attn.o_proj", "attn_output", LINEAR_O),
                    MLP,
                    MLP_EXPERTS,
                    SHARED("mlp.shared_experts"),
                    EXPERT_PARAMETERS},
        .norms = {PRE_NORMS, NORM(NORM_Q_LATENT, "self_attn.q_a_layernorm", "attn_q_a_norm"),
                  NORM(NORM_KV_LATENT, "self_attn.kv_a_layernorm", "attn_kv_a_norm")},
        .router_bias_hf = "mlp.gate.e_score_correction_bias",
        .router_bias_gguf = "exp_probs_b.bias",
        .gguf_deaf = "attn_q|attn_q_a|attn_q_b|attn_kv_a_mqa|attn_kv_b|attn_k_b|attn_v_b|output",
        // Whatever is called gate_proj, up_proj or down_proj is taken for a part of the experts.
        .peft_deaf = "mlp.gate_proj|mlp.up_proj|mlp.down_proj|mlp.experts.%d.gate_proj|mlp.experts.%d.up_proj|"
                     "mlp.experts.%d.down_proj|mlp.shared_experts.gate_proj|mlp.shared_experts.up_proj|"
                     "mlp.shared_experts.down_proj",
        .map = map_deepseek,
    },
    {
        .gguf_arch = "olmo",
        .model_types = "olmo",
        .linears = {QKVO, MLP},
        .norms = {{0}},
        .permuted_qk = true,
        .map = map_olmo,
    },
    {
        .gguf_arch = "olmo2",
        .model_types = "olmo2|olmo3",
        .linears = {QKVO, MLP},
        .norms = {POST_NORMS, QK_NORMS},
        .map = map_olmo2,
    },
    {
        .gguf_arch = "starcoder2",
        .model_types = "starcoder2",
        .linears = {QKVO, LINEAR("mlp.c_fc", "ffn_up", LINEAR_UP), LINEAR("mlp.c_proj", "ffn_down", LINEAR_DOWN)},
        .norms = {PRE_NORMS},
        .map = map_starcoder2,
    },
    {
        .gguf_arch = "exaone",
        .model_types = "exaone",
        .linears = {LINEAR("attn.attention.q_proj", "attn_q", LINEAR_Q),
                    LINEAR("attn.attention.k_proj", "attn_k", LINEAR_K),
                    LINEAR("attn.attention.v_proj", "attn_v", LINEAR_V),
                    LINEAR("attn.attention.out_proj", "attn_output", LINEAR_O),
                    LINEAR("mlp.c_fc_0", "ffn_gate", LINEAR_GATE), LINEAR("mlp.c_fc_1", "ffn_up", LINEAR_UP),
                    LINEAR("mlp.c_proj", "ffn_down", LINEAR_DOWN)},
        .norms = {NORM(NORM_ATTENTION, "ln_1", "attn_norm"), NORM(NORM_MLP, "ln_2", "ffn_norm")},
        .hf_root = "transformer.",
        .hf_layers = "h",
        .hf_embed = "wte",
        .hf_norm = "ln_f",
        .map = map_exaone,
    },
    {
        .gguf_arch = "exaone4",
        .model_types = "exaone4",
        .linears = {QKVO, MLP},
        .norms = {POST_NORMS, QK_NORMS},
        .map = map_exaone4,
    },
    {
        .gguf_arch = "command-r",
        .model_types = "cohere",
        .linears = {QKVO, MLP},
        .norms = {NORM(NORM_ATTENTION, "input_layernorm", "attn_norm"), QK_NORMS},
        .map = map_cohere,
    },
    {
        .gguf_arch = "cohere2",
        .model_types = "cohere2",
        .linears = {QKVO, MLP},
        .norms = {NORM(NORM_ATTENTION, "input_layernorm", "attn_norm")},
        .map = map_cohere2,
    },
    {
        .gguf_arch = "smollm3",
        .model_types = "smollm3",
        .linears = {QKVO, MLP},
        .norms = {PRE_NORMS},
        .permuted_qk = true,
        .map = map_smollm3,
    },
    {
        .gguf_arch = "granite",
        .model_types = "granite",
        .linears = {QKVO, MLP},
        .norms = {PRE_NORMS},
        .permuted_qk = true,
        .map = map_granite,
    },
    {
        .gguf_arch = "granitemoe",
        .model_types = "granitemoe",
        .linears = {QKVO,
                    {.hf = "block_sparse_moe.router.layer",
                     .gguf = "ffn_gate_inp",
                     .n_parts = 1,
                     .parts = {LINEAR_ROUTER},
                     .flags = TENSOR_ROUTER,
                     .module = "block_sparse_moe.router"},
                    {.hf = "block_sparse_moe.input_linear",
                     .gguf = "ffn_gate_exps|ffn_up_exps",
                     .n_parts = 2,
                     .parts = {LINEAR_EXPERT_GATE, LINEAR_EXPERT_UP},
                     .flags = TENSOR_PARAMETER | TENSOR_STACKED,
                     .module = "block_sparse_moe.experts.gate_up_proj"},
                    {.hf = "block_sparse_moe.output_linear",
                     .gguf = "ffn_down_exps",
                     .n_parts = 1,
                     .parts = {LINEAR_EXPERT_DOWN},
                     .flags = TENSOR_PARAMETER | TENSOR_STACKED,
                     .module = "block_sparse_moe.experts.down_proj"}},
        .norms = {PRE_NORMS},
        .permuted_qk = true,
        .map = map_granite_moe,
    },
    {
        .gguf_arch = "chatglm",
        .model_types = "glm",
        .linears = {QKVO, FUSED_MLP},
        .norms = {PRE_NORMS},
        .map = map_glm,
    },
    {
        .gguf_arch = "glm4",
        .model_types = "glm4",
        .linears = {QKVO, FUSED_MLP},
        .norms = {NORM(NORM_ATTENTION, "input_layernorm", "attn_norm"),
                  NORM(NORM_ATTENTION_OUT, "post_self_attn_layernorm", "post_attention_norm"),
                  NORM(NORM_MLP, "post_attention_layernorm", "ffn_norm"),
                  NORM(NORM_MLP_OUT, "post_mlp_layernorm", "post_ffw_norm")},
        .map = map_glm,
    },
    {
        .gguf_arch = "gpt-oss",
        .model_types = "gpt_oss",
        .linears = {QKVO,
                    LINEAR_FLAGS("mlp.router", "ffn_gate_inp", LINEAR_ROUTER, TENSOR_ROUTER),
                    {.hf = "mlp.experts.gate_up_proj",
                     .gguf = "ffn_gate_exps|ffn_up_exps",
                     .n_parts = 2,
                     .parts = {LINEAR_EXPERT_GATE, LINEAR_EXPERT_UP},
                     .flags = TENSOR_PARAMETER | TENSOR_BARE | TENSOR_STACKED | TENSOR_TURNED | TENSOR_ALTERNATE},
                    LINEAR_FLAGS("mlp.experts.down_proj", "ffn_down_exps", LINEAR_EXPERT_DOWN,
                                 TENSOR_PARAMETER | TENSOR_BARE | TENSOR_STACKED | TENSOR_TURNED)},
        .norms = {NORM(NORM_ATTENTION, "input_layernorm", "attn_norm"),
                  NORM(NORM_MLP, "post_attention_layernorm", "post_attention_norm")},
        .sinks_hf = "self_attn.sinks",
        .sinks_gguf = "attn_sinks.weight",
        .map = map_gpt_oss,
    },
};
const int family_count = (int)COUNT_OF(family_table);
