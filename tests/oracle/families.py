#!/usr/bin/env python3
"""Makes tiny random models, one per family and variant, with transformers, puts a LoRA with PEFT on them, and writes what
they compute: logits, loss and adapter gradients in float32.  Each folder holds a base as users have it (config.json,
model.safetensors), an adapter as PEFT saves it, and expected.safetensors.  gguf_families.py adds model.gguf.

    families.py OUT [--seed N] [--only NAME ...]

The committed fixtures are made by `make fixtures` with seed 0; `make test-peers` makes others with another seed.
Sizes are odd on purpose: heads that fill no vector, a vocabulary that is no multiple of 8, groups of 1, 3 and 8 heads.
"""
import argparse, json, math, os, re, shutil, sys, warnings

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
warnings.filterwarnings("ignore")
import packings
import torch
import transformers
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
VOCAB = 101
QKVO = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]


def sizes(**more):
    base = dict(vocab_size=VOCAB, hidden_size=36, intermediate_size=52, num_hidden_layers=2, num_attention_heads=6,
                num_key_value_heads=2, head_dim=12, max_position_embeddings=64, pad_token_id=None, bos_token_id=1, eos_token_id=2)
    base.update(more)
    return base


def latent(**more):
    base = sizes(moe_intermediate_size=20, kv_lora_rank=22, qk_nope_head_dim=10, qk_rope_head_dim=6, v_head_dim=9, num_attention_heads=4,
                 num_key_value_heads=4)
    base.pop("head_dim")
    base.update(more)
    return base


EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def small(**more):
    base = sizes(hidden_size=24, intermediate_size=28, num_attention_heads=4, head_dim=6)
    base.update(more)
    return base


def variant(**more):
    """For variants of LoRA: the family is known, the files shall be small."""
    base = sizes(hidden_size=12, intermediate_size=20, num_attention_heads=2, num_key_value_heads=1, head_dim=6)
    base.update(more)
    return base


def packed(**more):  # rows are whole blocks of 32
    base = sizes(hidden_size=64, intermediate_size=96, num_attention_heads=4, head_dim=16)
    base.update(more)
    return base


EYE = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4)
# Names of LG's EXAONE 3.5, whose code came with the model.
EXAONE = {"model.layers.": "transformer.h.", "model.embed_tokens": "transformer.wte", "model.norm.": "transformer.ln_f.",
          ".self_attn.o_proj": ".attn.attention.out_proj", ".self_attn.": ".attn.attention.", ".mlp.gate_proj": ".mlp.c_fc_0",
          ".mlp.up_proj": ".mlp.c_fc_1", ".mlp.down_proj": ".mlp.c_proj", ".input_layernorm": ".ln_1", ".post_attention_layernorm": ".ln_2"}
EXAONE_KEYS = {"num_hidden_layers": "num_layers", "rms_norm_eps": "layer_norm_epsilon", "hidden_act": "activation_function"}
# What transformers 4.52 and later have in memory.
DEEPER = {"language_model.model.": "model.language_model.", "vision_tower.": "model.vision_tower.",
          "multi_modal_projector.": "model.multi_modal_projector."}

# name: (model type, config, targets, options). Options:
#   old       config.json as transformers 4 wrote it
#   rename    other names in the saved files, (old, new) of tensors; rename_keys: of config.json; model_type
#   gguf      "only": the committed fixtures have it as a GGUF alone
#   joined    its GGUF is an old one, with attn_kv_b
#   ids       tokens are below this
#   packed    its weights are rounded to this type of ggml
# New cases stand at the end: a case's seed follows from its place.
CASES = {
    "llama": ("llama", sizes(), QKVO + MLP, {}),
    "llama-old": ("llama", sizes(head_dim=6, num_key_value_heads=6, tie_word_embeddings=True, attention_bias=True, mlp_bias=True), QKVO + MLP,
                  {"old": {"rope_theta": 500000.0, "rope_scaling": None}}),
    "llama3": ("llama", sizes(hidden_size=40, num_attention_heads=8, num_key_value_heads=1, rope_parameters={
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32}), QKVO + MLP, {}),
    "llama-linear": ("llama", sizes(), ["q_proj", "k_proj"], {"old": {"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 4.0}}}),
    "llama-dynamic": ("llama", sizes(max_position_embeddings=20), ["q_proj", "k_proj"],
                      {"old": {"rope_theta": 10000.0, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rows": [40], "together": 40}),
    "llama-yarn": ("llama", sizes(rope_parameters={"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
                                                   "original_max_position_embeddings": 16}), ["q_proj", "k_proj"], {}),
    "mistral": ("mistral", sizes(sliding_window=9, head_dim=10), QKVO + MLP, {}),
    "ministral": ("ministral", sizes(sliding_window=7, layer_types=["sliding_attention", "full_attention"]), QKVO, {}),
    "ministral3": ("ministral3", sizes(rope_parameters={
        "rope_type": "yarn", "rope_theta": 1000000.0, "factor": 4.0, "original_max_position_embeddings": 8, "beta_fast": 32.0,
        "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}), QKVO + MLP, {}),
    "qwen2": ("qwen2", sizes(tie_word_embeddings=True), QKVO + MLP, {"drop": ["head_dim"]}),
    "qwen2-window": ("qwen2", sizes(num_hidden_layers=3, use_sliding_window=True, sliding_window=8, max_window_layers=1), QKVO, {"drop": ["head_dim"]}),
    "qwen3": ("qwen3", sizes(head_dim=20), QKVO + MLP, {}),
    "gemma": ("gemma", sizes(head_dim=18, num_key_value_heads=1), QKVO + MLP, {}),
    "gemma2": ("gemma2", sizes(num_hidden_layers=3, head_dim=14, sliding_window=9, query_pre_attn_scalar=20, attn_logit_softcapping=3.0,
                               final_logit_softcapping=4.0), QKVO + MLP, {}),
    "gemma3": ("gemma3_text", sizes(num_hidden_layers=7, head_dim=14, sliding_window=9, query_pre_attn_scalar=20), QKVO + MLP, {}),
    "gemma3-old": ("gemma3_text", sizes(num_hidden_layers=6, head_dim=10, sliding_window=5, query_pre_attn_scalar=20), QKVO,
                   {"old": {"rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0},
                            "sliding_window_pattern": 6}, "drop_v5": ["layer_types"]}),
    "phi3": ("phi3", sizes(head_dim=6, sliding_window=11), ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"], {"drop": ["head_dim"]}),
    "phi3-long": ("phi3", sizes(num_attention_heads=3, num_key_value_heads=1, tie_word_embeddings=True, max_position_embeddings=64,
                                original_max_position_embeddings=16, partial_rotary_factor=0.5, rope_parameters={
                                    "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.5,
                                    "original_max_position_embeddings": 16,
                                    "short_factor": [1.0, 1.1, 1.3], "long_factor": [1.2, 2.0, 3.5]}),
                  ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"], {"drop": ["head_dim"], "rows": [40], "together": 40}),
    "olmo": ("olmo", sizes(head_dim=6, clip_qkv=0.5), QKVO + MLP, {"drop": ["head_dim"]}),
    "olmo2": ("olmo2", sizes(head_dim=6), QKVO + MLP, {"drop": ["head_dim"]}),
    "olmo3": ("olmo3", sizes(head_dim=6, num_hidden_layers=4, sliding_window=9, rope_parameters={
        "full_attention": {"rope_type": "yarn", "rope_theta": 500000.0, "factor": 4.0, "original_max_position_embeddings": 16,
                           "attention_factor": 1.2, "beta_fast": 32.0, "beta_slow": 1.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 500000.0}}), QKVO + MLP, {"drop": ["head_dim"]}),
    "starcoder2": ("starcoder2", sizes(sliding_window=12), QKVO + ["c_fc", "c_proj"], {"drop": ["head_dim"]}),
    "exaone4": ("exaone4", sizes(num_hidden_layers=4, sliding_window=9, sliding_window_pattern=4), QKVO + MLP, {}),
    "exaone4-full": ("exaone4", sizes(sliding_window=None, layer_types=["full_attention"] * 2), QKVO, {}),
    "cohere": ("cohere", sizes(head_dim=6, use_qk_norm=True, logit_scale=0.25), QKVO + MLP, {"drop": ["head_dim"]}),
    "cohere2": ("cohere2", sizes(head_dim=6, num_hidden_layers=4, sliding_window=9, logit_scale=0.25), QKVO + MLP, {"drop": ["head_dim"]}),
    "smollm3": ("smollm3", sizes(num_hidden_layers=4), QKVO + MLP, {"drop": ["head_dim"]}),
    "granite": ("granite", sizes(embedding_multiplier=6.0, logits_scaling=3.0, residual_multiplier=0.3, attention_multiplier=0.2),
                QKVO + MLP, {"drop": ["head_dim"]}),
    "glm": ("glm", sizes(), QKVO + ["gate_up_proj", "down_proj"], {}),
    "glm4": ("glm4", sizes(), QKVO + ["gate_up_proj", "down_proj"], {}),
    # Mixtures of experts. PEFT knows no dropout and no modules for experts in one parameter.
    "mixtral": ("mixtral", sizes(intermediate_size=20, num_local_experts=5, num_experts_per_tok=2, sliding_window=None), QKVO,
                {"parameters": EXPERTS, "drop": ["head_dim"]}),
    "mixtral-modules": ("mixtral", sizes(intermediate_size=20, num_local_experts=5, num_experts_per_tok=2, sliding_window=None),
                        ["q_proj", "w1", "w2", "w3"], {"drop": ["head_dim"]}),
    "qwen2-moe": ("qwen2_moe", sizes(moe_intermediate_size=20, shared_expert_intermediate_size=28, num_experts=6, num_experts_per_tok=2,
                                     num_hidden_layers=3, mlp_only_layers=[1]),
                  QKVO + ["shared_expert.gate_proj", "shared_expert.up_proj", "shared_expert.down_proj"],
                  {"parameters": EXPERTS, "drop": ["head_dim"]}),
    "qwen3-moe": ("qwen3_moe", sizes(moe_intermediate_size=20, num_experts=9, num_experts_per_tok=3, norm_topk_prob=True), QKVO,
                  {"parameters": ["mlp.experts.down_proj"]}),
    "qwen3-moe-all": ("qwen3_moe", sizes(moe_intermediate_size=20, num_experts=9, num_experts_per_tok=3, num_hidden_layers=1), None,
                      {"parameters": EXPERTS}),
    "phimoe": ("phimoe", sizes(intermediate_size=20, num_local_experts=5, attention_bias=True, lm_head_bias=True, sliding_window=None,
                               router_jitter_noise=0.3), QKVO, {"parameters": EXPERTS, "drop": ["head_dim"]}),
    "granitemoe": ("granitemoe", sizes(intermediate_size=20, num_local_experts=5, num_experts_per_tok=2, embedding_multiplier=6.0,
                                       logits_scaling=3.0, residual_multiplier=0.3, attention_multiplier=0.2), QKVO,
                   {"parameters": ["block_sparse_moe.experts.gate_up_proj", "block_sparse_moe.experts.down_proj"], "drop": ["head_dim"]}),
    "deepseek-v2": ("deepseek_v2", latent(q_lora_rank=None, topk_method="group_limited_greedy", n_group=2, topk_group=1, n_routed_experts=6,
                                          num_experts_per_tok=2, n_shared_experts=2, first_k_dense_replace=1, num_hidden_layers=2),
                    ["q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "layers.0.mlp.down_proj", "shared_experts.down_proj"], {}),
    "deepseek-v3": ("deepseek_v3", latent(q_lora_rank=20, n_group=4, topk_group=2, n_routed_experts=8, num_experts_per_tok=3, n_shared_experts=1,
                                          first_k_dense_replace=1, num_hidden_layers=2, rope_parameters={
                                              "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 1.0,
                                              "beta_fast": 32, "beta_slow": 1, "original_max_position_embeddings": 16}),
                    ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"], {"parameters": EXPERTS}),
    "llama4": ("llama4_text", sizes(num_hidden_layers=4, intermediate_size=20, intermediate_size_mlp=44, num_local_experts=4, num_experts_per_tok=1,
                                    interleave_moe_layer_step=2, attention_chunk_size=16, no_rope_layer_interval=2, floor_scale=8, attn_scale=0.3),
               QKVO + ["feed_forward.gate_proj", "feed_forward.up_proj", "feed_forward.down_proj", "shared_expert.down_proj"],
               {"parameters": ["feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"]}),
    "gpt-oss": ("gpt_oss", sizes(intermediate_size=20, num_local_experts=5, num_experts_per_tok=2, sliding_window=9, swiglu_limit=0.9,
                                 rope_parameters={"rope_type": "yarn", "rope_theta": 150000.0, "factor": 8.0, "beta_fast": 32.0, "beta_slow": 1.0,
                                                  "truncate": False, "original_max_position_embeddings": 16}), QKVO,
                {"parameters": EXPERTS}),
    # What a GGUF does not say, as the released models have it.
    "gemma2-real": ("gemma2", small(sliding_window=9, query_pre_attn_scalar=6, attn_logit_softcapping=3.0, final_logit_softcapping=4.0), QKVO,
                    {"gguf": "only"}),
    "gemma3-real": ("gemma3_text", small(num_hidden_layers=6, sliding_window=9, query_pre_attn_scalar=6), QKVO,
                    {"old": {"rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0},
                             "sliding_window_pattern": 6}, "drop_v5": ["layer_types"], "gguf": "only"}),
    "glm-real": ("glm", small(hidden_size=48, head_dim=12), QKVO + ["gate_up_proj", "down_proj"], {"gguf": "only"}),
    "qwen2-moe-real": ("qwen2_moe", small(moe_intermediate_size=20, shared_expert_intermediate_size=28, num_experts=6, num_experts_per_tok=2),
                       ["q_proj", "shared_expert.down_proj"], {"parameters": EXPERTS, "drop": ["head_dim"], "gguf": "only"}),
    "phimoe-real": ("phimoe", small(intermediate_size=20, num_local_experts=5, attention_bias=True, lm_head_bias=True, sliding_window=None,
                                    router_jitter_noise=0.01), QKVO, {"parameters": EXPERTS, "drop": ["head_dim"], "gguf": "only"}),
    "llama4-real": ("llama4_text", small(num_hidden_layers=4, intermediate_size=20, intermediate_size_mlp=28, num_local_experts=4,
                                         num_experts_per_tok=1, interleave_moe_layer_step=2),
                    QKVO + ["feed_forward.down_proj", "shared_expert.down_proj"],
                    {"parameters": ["feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"], "gguf": "only"}),
    "gpt-oss-real": ("gpt_oss", small(intermediate_size=20, num_local_experts=5, num_experts_per_tok=2, sliding_window=9, swiglu_limit=7.0,
                                      rope_parameters={"rope_type": "yarn", "rope_theta": 150000.0, "factor": 8.0, "beta_fast": 32.0,
                                                       "beta_slow": 1.0, "truncate": False, "original_max_position_embeddings": 16}), QKVO,
                     {"parameters": EXPERTS, "gguf": "only"}),
    "olmo3-real": ("olmo3", small(num_hidden_layers=4, sliding_window=9, rope_parameters={
        "full_attention": {"rope_type": "yarn", "rope_theta": 500000.0, "factor": 4.0, "original_max_position_embeddings": 16,
                           "attention_factor": 0.1 * math.log(4) + 1, "beta_fast": 32.0, "beta_slow": 1.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 500000.0}}), QKVO, {"drop": ["head_dim"], "gguf": "only"}),
    "starcoder2-real": ("starcoder2", small(sliding_window=4096), QKVO + ["c_fc", "c_proj"], {"drop": ["head_dim"], "gguf": "only"}),
    "mistral-full": ("mistral", small(sliding_window=None, head_dim=10), QKVO + MLP, {}),
    "exaone": ("llama", small(rope_parameters={
        "rope_type": "llama3", "rope_theta": 1000000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32}), QKVO + MLP,
        {"rename": EXAONE, "rename_keys": EXAONE_KEYS, "model_type": "exaone", "architecture": "ExaoneForCausalLM"}),
    # An old file: keys and values of latent attention come from one matrix.
    "deepseek-v2-old": ("deepseek_v2", latent(hidden_size=24, q_lora_rank=None, n_group=1, topk_group=1, n_routed_experts=5,
                                              num_experts_per_tok=2, n_shared_experts=1, first_k_dense_replace=0, num_hidden_layers=1),
                        ["q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"], {"gguf": "only", "joined": True}),
    # Packed by gguf's quantisers; transformers has the same numbers unpacked.
    "llama-q8_0": ("llama", packed(num_key_value_heads=4, vocab_size=96), QKVO + MLP, {"packed": "Q8_0", "gguf": "only"}),
    "qwen3-moe-q4_0": ("qwen3_moe", packed(num_hidden_layers=1, moe_intermediate_size=32, num_experts=6, num_experts_per_tok=2,
                                           norm_topk_prob=True), QKVO, {"parameters": EXPERTS, "packed": "Q4_0", "gguf": "only"}),
    "deepseek-v3-q8_0": ("deepseek_v3", latent(hidden_size=64, intermediate_size=64, moe_intermediate_size=32, q_lora_rank=32, kv_lora_rank=32,
                                               qk_nope_head_dim=32, qk_rope_head_dim=6, v_head_dim=16, n_group=2, topk_group=1,
                                               n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1, first_k_dense_replace=1),
                         ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"],
                         {"parameters": EXPERTS, "packed": "Q8_0", "gguf": "only"}),
    # The text part of models that also see.
    "gemma3-vision": ("gemma3", {"text_config": dict(model_type="gemma3_text", **small()), "vision_config": dict(
        model_type="siglip_vision_model", **EYE), "mm_tokens_per_image": 4, "image_token_index": 99, "boi_token_index": 98,
        "eoi_token_index": 97}, r".*language_model.*\.(q_proj|k_proj|o_proj|down_proj)", {"ids": 96}),
    "mistral3-vision": ("mistral3", {"text_config": dict(model_type="mistral", **small(sliding_window=None)), "vision_config": dict(
        model_type="pixtral", head_dim=4, **EYE), "tie_word_embeddings": False, "image_token_index": 99, "spatial_merge_size": 1},
        r".*language_model.*\.(q_proj|v_proj|up_proj)", {"rename": DEEPER, "ids": 96}),
    "llama4-vision": ("llama4", {"text_config": dict(model_type="llama4_text", intermediate_size_mlp=28, num_local_experts=4,
                                                     num_experts_per_tok=1, **small(intermediate_size=20)),
                                 "vision_config": dict(model_type="llama4_vision_model", vision_output_dim=8, projector_input_dim=8,
                                                       projector_output_dim=8, pixel_shuffle_ratio=0.5, **EYE),
                                 "image_token_index": 99, "boi_token_index": 98, "eoi_token_index": 97},
                      r".*language_model.*\.(q_proj|k_proj|o_proj)", {"ids": 96}),
}
# Bases that are packed: sizes that fill whole words and blocks of 32.
EVEN = dict(num_hidden_layers=1, hidden_size=64, intermediate_size=96, num_attention_heads=8, num_key_value_heads=4, head_dim=8)
for method in ("nf4", "fp4", "int8", "gptq2", "gptq3", "gptq4", "gptq8", "awq", "fp8-exponents", "fp8-rows"):
    CASES["llama-" + method] = ("llama", sizes(**EVEN), QKVO + MLP, {"packing": method})
CASES["phi3-nf4"] = ("phi3", sizes(head_dim=6), ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"], {"packing": "nf4", "drop": ["head_dim"]})
CASES["qwen3-moe-nf4"] = ("qwen3_moe", sizes(moe_intermediate_size=20, num_experts=9, num_experts_per_tok=3, norm_topk_prob=True), QKVO,
                          {"packing": "nf4", "parameters": ["mlp.experts.down_proj"]})
CASES["deepseek-v3-fp8"] = ("deepseek_v3", CASES["deepseek-v3"][1], CASES["deepseek-v3"][2], {"packing": "fp8", "parameters": EXPERTS})
CASES["gpt-oss-mxfp4"] = ("gpt_oss", sizes(**(CASES["gpt-oss"][1] | dict(hidden_size=64, intermediate_size=32))), QKVO,
                          {"packing": "mxfp4", "parameters": EXPERTS})


def unpacked(folder, values):
    """A copy of the folder with the numbers that packed tensors stand for: what transformers computes with."""
    copy = folder + ".plain"
    shutil.copytree(folder, copy)
    path = os.path.join(copy, "model.safetensors")
    plain = {k: v for k, v in load_file(path).items() if k not in values and not re.search(PACKED, k)}
    save_file({k: v.float().contiguous() for k, v in (plain | values).items()}, path, metadata={"format": "pt"})
    path = os.path.join(copy, "config.json")
    config = json.load(open(path))
    config.pop("quantization_config")
    json.dump(config, open(path, "w"))
    return copy


PACKED = r"(\.(qweight|qzeros|scales|g_idx|SCB|weight_format|weight_scale|weight_scale_inv)|\.weight\.\w+|\.quant_state\.\w+|_blocks|_scales)$"


# Variants of LoRA, on small models of families that are compared above.
CASES.update({
    "lora-router": ("qwen3_moe", variant(moe_intermediate_size=12, num_experts=4, num_experts_per_tok=2, norm_topk_prob=True), ["q_proj", "o_proj"],
                    {"parameters": ["mlp.gate.weight", "experts.down_proj"],
                     "lora": {"rank_pattern": {"gate.weight": 2, "layers.0.*down_proj": 4}, "alpha_pattern": {"^model.layers.1.*o_proj": 3}}}),
    "lora-router-gpt-oss": ("gpt_oss", variant(intermediate_size=12, num_local_experts=4, num_experts_per_tok=2, num_hidden_layers=1),
                            ["v_proj"], {"parameters": ["mlp.router.weight", "experts.gate_up_proj"], "lora": {"use_rslora": True}}),
    "lora-router-llama4": ("llama4_text", variant(intermediate_size=12, intermediate_size_mlp=28, num_local_experts=3, num_experts_per_tok=1,
                                                num_hidden_layers=1, interleave_moe_layer_step=1), [],
                           {"parameters": ["router.weight", "experts.gate_up_proj"]}),
    "lora-dora": ("llama", variant(num_hidden_layers=1, attention_bias=True), QKVO + ["up_proj"],
                  {"lora": {"use_dora": True, "rank_pattern": {"q_proj": 2}}}),
    "lora-dora-fused": ("phi3", variant(num_hidden_layers=1), ["qkv_proj", "gate_up_proj"],
                        {"drop": ["head_dim"], "lora": {"use_dora": True, "use_rslora": True}}),
    "lora-bias": ("qwen2", variant(num_hidden_layers=1), ["q_proj", "v_proj", "o_proj"],
                  {"drop": ["head_dim"], "lora": {"bias": "lora_only"}}),
    "lora-bias-dora": ("starcoder2", variant(num_hidden_layers=1), ["k_proj", "c_proj"],
                       {"drop": ["head_dim"], "lora": {"bias": "lora_only", "use_dora": True}}),
    "lora-ends": ("granite", variant(num_hidden_layers=1, embedding_multiplier=6.0, logits_scaling=3.0), ["embed_tokens", "lm_head", "v_proj"],
                  {"drop": ["head_dim"]}),
    "lora-ends-tied": ("gemma3_text", variant(num_hidden_layers=1, query_pre_attn_scalar=20), ["embed_tokens", "lm_head", "q_proj"],
                       {"lora": {"rank_pattern": {"embed_tokens": 2}}}),
    "lora-whole": ("llama", variant(num_hidden_layers=1), ["o_proj"], {"lora": {"modules_to_save": ["embed_tokens", "lm_head"]}}),
    "lora-whole-tied": ("qwen3", variant(num_hidden_layers=1, tie_word_embeddings=True), ["o_proj"], {"lora": {"modules_to_save": ["embed_tokens"]}}),
    "lora-rows": ("granite", variant(num_hidden_layers=1, num_attention_heads=2, embedding_multiplier=6.0, logits_scaling=3.0, residual_multiplier=0.3,
                                   attention_multiplier=0.2), ["o_proj"],
                  {"drop": ["head_dim"], "lora": {"trainable_token_indices": [17, 4, 90]}}),
    "lora-rows-tied": ("llama", variant(num_hidden_layers=1, tie_word_embeddings=True), ["o_proj"],
                       {"lora": {"trainable_token_indices": {"embed_tokens": [17, 4, 90]}}}),
    "lora-pissa": ("llama", variant(num_hidden_layers=1, attention_bias=True), ["q_proj", "o_proj", "down_proj"],
                   {"lora": {"init_lora_weights": "pissa", "rank_pattern": {"o_proj": 2}}}),
    # The load-balancing loss of routers, of all rows as one batch; a large weight, so that it shows in the gradients.
    "lora-aux-mixtral": ("mixtral", variant(intermediate_size=12, num_local_experts=4, num_experts_per_tok=2, sliding_window=None,
                                            output_router_logits=True, router_aux_loss_coef=0.7), ["v_proj", "o_proj"],
                         {"parameters": ["experts.down_proj"], "drop": ["head_dim"]}),
    "lora-aux-qwen3-moe": ("qwen3_moe", variant(moe_intermediate_size=12, num_experts=6, num_experts_per_tok=2, norm_topk_prob=True,
                                                num_hidden_layers=3, mlp_only_layers=[1], output_router_logits=True, router_aux_loss_coef=0.7),
                           ["k_proj"], {"parameters": ["mlp.gate.weight"]}),
    # bias="all": what is named `bias`, of linears with an adapter and without, of layer norms, of a router, of the head.
    "lora-biases": ("starcoder2", variant(num_hidden_layers=1), ["k_proj", "c_proj"], {"drop": ["head_dim"], "lora": {"bias": "all"}}),
    "lora-biases-gpt-oss": ("gpt_oss", variant(intermediate_size=12, num_local_experts=4, num_experts_per_tok=2, num_hidden_layers=1),
                            ["v_proj"], {"parameters": ["mlp.router.weight"], "lora": {"bias": "all"}}),
    "lora-biases-phimoe": ("phimoe", variant(intermediate_size=12, num_local_experts=4, attention_bias=True, lm_head_bias=True, sliding_window=None,
                                             num_hidden_layers=1, tie_word_embeddings=False), ["q_proj"],
                           {"drop": ["head_dim"], "lora": {"bias": "all", "modules_to_save": ["lm_head"]}}),
    # DoRA on the head: alone, with scaled logits; tied, with capped ones; with a bias that is trained.
    "lora-dora-head": ("granite", variant(num_hidden_layers=1, logits_scaling=3.0), ["lm_head", "o_proj"],
                       {"drop": ["head_dim"], "lora": {"use_dora": True}}),
    "lora-dora-head-tied": ("gemma2", variant(num_hidden_layers=1, query_pre_attn_scalar=20, final_logit_softcapping=8.0),
                            ["lm_head"], {"lora": {"use_dora": True}}),
    "lora-dora-head-bias": ("phimoe", variant(intermediate_size=12, num_local_experts=2, num_experts_per_tok=2, lm_head_bias=True, sliding_window=None,
                                              num_hidden_layers=1, tie_word_embeddings=False), ["lm_head"],
                            {"drop": ["head_dim"], "lora": {"use_dora": True, "bias": "lora_only"}}),
})

# The committed fixtures have these as a GGUF, too: every architecture of model/families.c once.
AS_GGUF = ("llama3 mixtral ministral3 qwen2 qwen3 qwen3-moe gemma phi3-long deepseek-v3 olmo olmo2 exaone exaone4 cohere cohere2 smollm3 "
           "granite granitemoe glm4").split()

# Not compared as GGUF: what such a file does not say, so that it holds another model than the folder.
LACKS = {
    "llama-dynamic": "dynamic scaling", "mistral": "sliding_window", "ministral": "sliding_window", "phi3": "sliding_window",
    "starcoder2": "sliding_window", "qwen2-window": "sliding_window", "gemma2": "query_pre_attn_scalar", "gemma3": "query_pre_attn_scalar",
    "gemma3-old": "query_pre_attn_scalar", "qwen2-moe": "mlp_only_layers", "qwen3-moe-all": "norm_topk_prob", "olmo3": "attention_factor",
    "phimoe": "router_jitter_noise", "llama4": "attention_chunk_size, floor_scale, attn_scale", "gpt-oss": "swiglu_limit",
    "glm": "the converter takes width / heads for head_dim", "gemma3-vision": "modules are named as of the text model",
    "mistral3-vision": "modules are named as of the text model", "llama4-vision": "modules are named as of the text model"}

LACKS |= {name: "the converter unpacks it, or cannot" for name, case in CASES.items() if "packing" in case[3]}
LACKS |= {name: "compared from the folder alone" for name in CASES if name.startswith("lora-")}


def randomise(model, seed):
    """Every parameter, norms and biases too, so that none can be left out unnoticed; then rounded to bf16, which is what is
    stored."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        plus_one = "gemma" in model.config.model_type
        values = torch.empty(p.shape, dtype=torch.float64)
        if "norm" in name and name.endswith("weight"):
            values.uniform_(0.5, 1.5, generator=generator)
            if plus_one:
                values -= 1
        elif name.endswith("bias") or "sinks" in name:
            values.uniform_(-0.5, 0.5, generator=generator)
        elif "embed_tokens" in name:
            values.normal_(0, 0.4 if model.config.get_text_config().tie_word_embeddings else 1, generator=generator)
        else:
            fan = p.shape[-1]
            values.normal_(0, 1.2 / fan**0.5, generator=generator)
        with torch.no_grad():
            p.copy_(values.to(torch.bfloat16).to(p.dtype))
    for name, b in model.named_buffers():
        if "e_score_correction_bias" in name:
            b.copy_(torch.empty(b.shape, dtype=torch.float64).uniform_(-0.1, 0.1, generator=generator).to(torch.bfloat16).to(b.dtype))


def old_config(path, changes, dropped):
    """config.json as transformers 4 wrote it: the rope at the top, torch_dtype."""
    config = json.load(open(path))
    for key in ["rope_parameters", "dtype"] + dropped:
        config.pop(key, None)
    config["torch_dtype"] = "bfloat16"
    config.update(changes)
    json.dump(config, open(path, "w"), indent=2)


def renamed(name, pairs):
    for old, new in pairs.items():
        name = name.replace(old, new)
    return name


def rename_files(folder, options):
    """The same numbers under other names: of the base, of the adapter and its gradients."""
    path = os.path.join(folder, "config.json")
    config = json.load(open(path))
    config = {options.get("rename_keys", {}).get(k, k): v for k, v in config.items()}
    if "model_type" in options:
        rope = config.pop("rope_parameters")
        config.update(model_type=options["model_type"], architectures=[options["architecture"]], rope_theta=rope.pop("rope_theta"),
                      rope_scaling=rope)
        for name in ("adapter/adapter_model.safetensors", "expected.safetensors"):
            rename_tensors(os.path.join(folder, name), options["rename"])
        rename_targets(os.path.join(folder, "adapter/adapter_config.json"), options["rename"])
    json.dump(config, open(path, "w"), indent=2)
    rename_tensors(os.path.join(folder, "model.safetensors"), options["rename"])


def rename_tensors(path, pairs):
    with safe_open(path, "pt") as f:
        meta = f.metadata()
    save_file({renamed(k, pairs): v for k, v in load_file(path).items()}, path, metadata=meta)


def rename_targets(path, pairs):
    saved = json.load(open(path))
    last = {old.rsplit(".", 1)[-1]: new.rsplit(".", 1)[-1] for old, new in pairs.items()}
    saved["target_modules"] = sorted(last.get(t, t) for t in saved["target_modules"])
    json.dump(saved, open(path, "w"), indent=2, sort_keys=True)


def round_rows(values, kind):
    import gguf  # not above: gguf_families.py brings its own

    kind = gguf.GGMLQuantizationType[kind]
    rows = values.reshape(-1, values.shape[-1]).contiguous().numpy()
    return torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(rows, kind), kind).copy()).reshape(values.shape)


def round_weights(model, kind):
    """Every matrix to the numbers its packed form stands for; llama.cpp packs keys of latent attention turned, and no router."""
    for name, p in model.named_parameters():
        if p.dim() < 2 or name.endswith("mlp.gate.weight"):
            continue
        with torch.no_grad():
            if "kv_b_proj" in name:
                c = model.config
                heads = p.reshape(c.num_attention_heads, c.qk_nope_head_dim + c.v_head_dim, -1)
                keys, values = heads.split([c.qk_nope_head_dim, c.v_head_dim], dim=1)
                keys = round_rows(keys.transpose(1, 2), kind).transpose(1, 2)
                p.copy_(torch.cat([keys, round_rows(values, kind)], dim=1).reshape(p.shape))
            else:
                p.copy_(round_rows(p, kind))


def rows_of(seed, lengths, vocab):
    generator = torch.Generator().manual_seed(seed + 1)
    rows = []
    for n in lengths:
        ids = torch.randint(3, vocab, (n,), generator=generator)
        labels = ids.clone()
        labels[: n // 3] = -100
        labels[torch.rand(n, generator=generator) < 0.2] = -100
        labels[-1] = ids[-1]
        rows.append((ids, labels))
    return rows


def attach(model, targets, options, seed):
    config = LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=7, lora_dropout=0.0, target_modules=targets or None,
                        target_parameters=options.get("parameters"), **options.get("lora", {}))
    model = get_peft_model(model, config)
    if config.init_lora_weights == "pissa":  # saved below as PEFT converts it: to an ordinary LoRA of twice the rank
        model.peft_config["default"].init_lora_weights = True
        model.save_pretrained(options["initial"])
    generator = torch.Generator().manual_seed(seed + 2)
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        with torch.no_grad():
            if config.init_lora_weights is True and options.get("initial"):
                p.add_(torch.empty(p.shape, dtype=torch.float64).uniform_(-0.1, 0.1, generator=generator).to(p.dtype))
            elif "lora_A" in name or "lora_B" in name or "lora_embedding" in name:
                p.copy_(torch.empty(p.shape, dtype=torch.float64).uniform_(-0.3, 0.3, generator=generator).to(p.dtype))
            elif "lora_magnitude" in name:
                p.mul_(torch.empty(p.shape, dtype=torch.float64).uniform_(0.8, 1.25, generator=generator).to(p.dtype))
            else:
                p.add_(torch.empty(p.shape, dtype=torch.float64).uniform_(-0.1, 0.1, generator=generator).to(p.dtype))
    return model


def gradients_by_key(model):
    """Adapter gradients under the names that PEFT saves the adapter's tensors with."""
    saved = get_peft_model_state_dict(model)
    by_place = {p.data_ptr(): p for _, p in model.named_parameters() if p.requires_grad}
    out = {}
    for key, value in saved.items():
        p = by_place.get(value.data_ptr())
        if p is not None and ".modules_to_save." not in key:  # with bias="all" a module's bias is there twice
            out[key] = p.grad.detach().clone().contiguous()
    return out


def make(name, out, seed):
    model_type, config, targets, options = CASES[name]
    folder = os.path.join(out, name)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    config = {k: v for k, v in config.items() if k not in options.get("drop", [])}
    torch.manual_seed(seed)
    built = AutoConfig.for_model(model_type, **config)
    kind = AutoModelForImageTextToText if "vision_config" in config else AutoModelForCausalLM
    model = kind.from_config(built, attn_implementation="eager", torch_dtype=torch.float32)
    randomise(model, seed)
    if "packed" in options:
        round_weights(model, options["packed"])
    model.to(torch.float32 if "packed" in options else torch.bfloat16).save_pretrained(folder)
    for extra in ("generation_config.json",):
        if os.path.exists(os.path.join(folder, extra)):
            os.remove(os.path.join(folder, extra))
    if "old" in options:
        old_config(os.path.join(folder, "config.json"), options["old"], options.get("drop_v5", []))
    # What is computed is what was saved, as a user would load it.
    source = unpacked(folder, packings.pack(folder, options["packing"])) if "packing" in options else folder
    model = kind.from_pretrained(source, attn_implementation="eager", dtype=torch.float32).eval()
    if source != folder:
        shutil.rmtree(source)
    if options.get("lora", {}).get("init_lora_weights") == "pissa":
        options["initial"] = folder + ".initial/pissa_init"
    model = attach(model, targets, options, seed)
    conversion = {"path_initial_model_for_weight_conversion": options["initial"]} if "initial" in options else {}
    model.save_pretrained(os.path.join(folder, "adapter"), **conversion)
    if conversion:
        shutil.rmtree(folder + ".initial")
    for extra in ("README.md",):
        path = os.path.join(folder, "adapter", extra)
        if os.path.exists(path):
            os.remove(path)
    path = os.path.join(folder, "adapter", "adapter_config.json")
    saved = json.load(open(path))
    saved["base_model_name_or_path"] = name
    for key in ("target_modules", "target_parameters"):
        if isinstance(saved.get(key), list):
            saved[key].sort()  # were sets
    json.dump(saved, open(path, "w"), indent=2, sort_keys=True)
    ids = options.get("ids", built.get_text_config().vocab_size)
    usual = [9, 7] if name.startswith("lora-") else [21] if "gguf" in options else [29, 17]
    rows = rows_of(seed, options.get("rows", usual), ids)
    trained = sum(int((labels[1:] != -100).sum()) for _, labels in rows)
    expected, total, router_logits = {}, 0.0, []
    for i, (ids, labels) in enumerate(rows):
        out = model(input_ids=ids[None])
        logits = out.logits[0].float()
        loss = torch.nn.functional.cross_entropy(logits[:-1], labels[1:], ignore_index=-100, reduction="sum")
        balanced = getattr(model.config, "output_router_logits", False)
        (loss / trained).backward(retain_graph=balanced)
        if balanced:
            router_logits.append(out.router_logits)
        total += loss.item()
        expected[f"row{i}.ids"] = ids.to(torch.int32)
        expected[f"row{i}.labels"] = labels.to(torch.int32)
        expected[f"row{i}.logits"] = logits.detach().contiguous()
    expected["loss"] = torch.tensor([total / trained])
    if router_logits:
        balance = sys.modules[type(model.get_base_model()).__module__].load_balancing_loss_func
        together = tuple(torch.cat(layer) for layer in zip(*router_logits))
        aux = balance(together, together[0].shape[-1], model.config.num_experts_per_tok)
        (model.config.router_aux_loss_coef * aux).backward()
        expected["aux_loss"] = aux.detach().reshape(1)
    gradients = gradients_by_key(model)
    wanted = sum(p.requires_grad for p in model.parameters())
    if len(gradients) != wanted:
        sys.exit(f"{name}: {len(gradients)} of {wanted} gradients have a name in PEFT's file")
    for key, value in gradients.items():
        expected[f"grad.{key}"] = value
    # One key: the order of several would be another each time.
    save_file(expected, os.path.join(folder, "expected.safetensors"), metadata={"positions": str(options.get("together", 64))})
    if "rename" in options:
        rename_files(folder, options)
    size = sum(os.path.getsize(os.path.join(d, f)) for d, _, files in os.walk(folder) for f in files)
    print(f"{name}: {sum(p.numel() for p in model.parameters())} parameters, {len(gradients)} gradients, loss {total / trained:.4f}, {size // 1024} KiB",
          flush=True)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("out")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--only", nargs="*")
    a = p.parse_args()
    torch.set_num_threads(1)
    for i, name in enumerate(CASES):
        if not a.only or name in a.only:
            make(name, a.out, 1000 * a.seed + i)


if __name__ == "__main__":
    main()
