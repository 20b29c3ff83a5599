// Rows of the key table: several GPUs, preference training, keys of the torch stack, our own keys; and the table
// itself. See keys.h.
#include "configs/key_rows.h"

#define MEMBER(name) offsetof(struct run_config, name)

const struct config_key keys_ranks[] = {
    NOT_YET("deepspeed", KEY_ANY, "", "Training on several GPUs, by a DeepSpeed file."),
    NO_EFFECT("deepcompile", KEY_BOOL, "", "Compiler of DeepSpeed."),
    NOT_YET("fsdp", KEY_STRINGS, "", "Training on several GPUs, weights spread over them."),
    NO_EFFECT("fsdp_version", KEY_INT, "", "Version of that way; see fsdp_config."),
    NOT_YET("fsdp_final_state_dict_type", KEY_STRING, "", "Form of the saved model."),
    OTHER("fsdp_config", KEY_NOT_YET, KEY_GROUP, "", "Training on several GPUs, weights spread over them."),
#define FSDP(name, type, help) NOT_YET("fsdp_config." name, type, "", help, .aliases = "fsdp_config.fsdp_" name)
    FSDP("version", KEY_INT, "Version of the method."),
    FSDP("offload_params", KEY_BOOL, "Keep the shards in host memory."),
    FSDP("cpu_ram_efficient_loading", KEY_BOOL, "Load the base once for all ranks."),
    FSDP("cpu_offload_pin_memory", KEY_BOOL, "Pinned host memory for shards."),
    FSDP("auto_wrap_policy", KEY_STRING, "How the model is cut into units."),
    FSDP("transformer_layer_cls_to_wrap", KEY_STRING, "Class name of a unit."),
    FSDP("min_num_params", KEY_INT, "Smallest unit."),
    FSDP("state_dict_type", KEY_STRING, "Form of a checkpoint."),
    FSDP("final_state_dict_type", KEY_STRING, "Form of the final model."),
    FSDP("reshard_after_forward", KEY_BOOL, "Drop gathered weights after the forward pass."),
    FSDP("activation_checkpointing", KEY_BOOL, "Recompute layers; see gradient_checkpointing."),
    FSDP("sync_module_states", KEY_BOOL, "Send rank 0's weights to all."),
    FSDP("use_orig_params", KEY_BOOL, "Keep parameters apart."),
    FSDP("mixed_precision_policy", KEY_STRING, "Types of shards."),
    FSDP("limit_all_gathers", KEY_BOOL, "Gather no more than two units ahead."),
    FSDP("sharding_strategy", KEY_STRING, "What is spread."),
    FSDP("forward_prefetch", KEY_BOOL, "Gather ahead in the forward pass."),
    FSDP("backward_prefetch", KEY_STRING, "Gather ahead in the backward pass."),
#undef FSDP
    NOT_YET("context_parallel_size", KEY_INT, "", "GPUs that share one long row.", .harmless = "1",
            .aliases = "sequence_parallel_degree"),
    NO_EFFECT("heads_k_stride", KEY_INT, "", "Detail of sharing rows."),
    NO_EFFECT("ring_attn_func", KEY_STRING, "", "Detail of sharing rows."),
    NOT_YET("tensor_parallel_size", KEY_INT, "", "GPUs that share one weight.", .harmless = "1"),
    NOT_YET("expert_parallel_size", KEY_INT, "", "GPUs that share the experts.", .harmless = "1"),
    NOT_YET("dp_shard_size", KEY_INT, "", "GPUs that share the base.", .harmless = "1"),
    NOT_YET("dp_replicate_size", KEY_INT, "", "Copies of the base.", .harmless = "1"),
    NO_EFFECT("ddp", KEY_BOOL, "", "How another library starts ranks."),
    NO_EFFECT("ddp_timeout", KEY_INT, "", "Seconds until another library gives up on a rank."),
    NO_EFFECT("ddp_bucket_cap_mb", KEY_INT, "", "Size of messages between ranks."),
    NO_EFFECT("ddp_broadcast_buffers", KEY_BOOL, "", "Messages between ranks."),
    NO_EFFECT("ddp_find_unused_parameters", KEY_BOOL, "", "Every adapter weight is always used."),
    NO_EFFECT("local_rank", KEY_INT, "", "Number of a rank; set by the launcher."),
    NO_EFFECT("device_map", KEY_ANY, "", "Which layer goes to which GPU; see device and fit."),
    NOT_YET("max_memory", KEY_DICT, "", "Memory per device."),
    STRING(gpu_memory_limit, "",
           "Memory that may be used on a GPU: `20GiB`, `800MiB`, or a number of GB; layers that then do not fit are "
           "streamed from host memory. Empty: all that is free."),
    NOT_YET("use_ray", KEY_BOOL, "false", "Start ranks through Ray."),
    NO_EFFECT("ray_run_name", KEY_STRING, "", "As use_ray."),
    NO_EFFECT("ray_num_workers", KEY_INT, "1", "As use_ray."),
};
const size_t keys_ranks_count = COUNT_OF(keys_ranks);

static const struct key_choice rl_kinds[] = {
    {"dpo", 0, KEY_NOT_YET, NULL},
    {"ipo", 0, KEY_NOT_YET, NULL},
    {"orpo", 0, KEY_NOT_YET, NULL},
    {"kto", 0, KEY_NOT_YET, NULL},
    {"simpo", 0, KEY_NOT_YET, NULL},
    {"grpo", 0, KEY_REFUSED, "reinforcement learning with generation is outside this program"},
    {"gdpo", 0, KEY_REFUSED, "reinforcement learning with generation is outside this program"},
    {"ebft", 0, KEY_REFUSED, "reinforcement learning with generation is outside this program"},
    {0},
};

const struct config_key keys_preference[] = {
    NOT_YET("rl", KEY_STRING, "", "Kind of preference training.", .choices = rl_kinds),
    NOT_YET("rl_beta", KEY_FLOAT, "", "Strength of the pull to the base.", .aliases = "dpo_beta"),
    NOT_YET("dpo_loss_type", KEY_STRINGS, "", "Variant of the DPO loss."),
    NOT_YET("dpo_loss_weights", KEY_ANY, "", "Weights of several variants."),
    NOT_YET("dpo_label_smoothing", KEY_FLOAT, "", "Assumed part of wrong labels."),
    NOT_YET("dpo_use_weighting", KEY_BOOL, "", "Weigh pairs by their probability."),
    NO_EFFECT("dpo_use_liger_kernel", KEY_BOOL, "", "Kernel of another library."),
    NO_EFFECT("dpo_padding_free", KEY_BOOL, "", "Rows are never padded to each other."),
    NOT_YET("orpo_alpha", KEY_FLOAT, "", "ORPO: weight of the odds ratio."),
    NOT_YET("simpo_gamma", KEY_FLOAT, "", "SimPO: margin."),
    NOT_YET("cpo_alpha", KEY_FLOAT, "", "CPO: weight of the likelihood."),
    NOT_YET("kto_desirable_weight", KEY_FLOAT, "", "KTO: weight of good answers."),
    NOT_YET("kto_undesirable_weight", KEY_FLOAT, "", "KTO: weight of bad answers."),
    NOT_YET("precompute_ref_log_probs", KEY_BOOL, "", "Compute the base's probabilities before training."),
    REFUSED("trl", KEY_DICT, "", "Reinforcement learning with generation is outside this program."),
    REFUSED("vllm", KEY_DICT, "", "Reinforcement learning with generation is outside this program."),
    REFUSED("ebft", KEY_DICT, "", "Reinforcement learning with generation is outside this program."),
    REFUSED("reward_model", KEY_BOOL, "", "Reward models are not trained here."),
    REFUSED("process_reward_model", KEY_BOOL, "", "Reward models are not trained here."),
};
const size_t keys_preference_count = COUNT_OF(keys_preference);

// Plug-ins that change speed or logs, never results.
static const struct key_choice plugins[] = {
    {"axolotl.integrations.liger.LigerPlugin", 0, KEY_NO_EFFECT, NULL},
    {"axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin", 0, KEY_NO_EFFECT, NULL},
    {"axolotl.integrations.kernels.KernelsPlugin", 0, KEY_NO_EFFECT, NULL},
    {"axolotl.integrations.swanlab.SwanLabPlugin", 0, KEY_NO_EFFECT, NULL},
    {"axolotl.integrations.expert_parallel.ExpertParallelPlugin", 0, KEY_NO_EFFECT, NULL},
    {0},
};

const struct config_key keys_torch[] = {
    NO_EFFECT("plugins", KEY_STRINGS, "", "Plug-ins that only make another program faster.", .choices = plugins),
    NO_EFFECT("strict", KEY_BOOL, "false", "Unknown keys are always errors."),
    NO_EFFECT("attn_implementation", KEY_STRING, "", "Attention is always exact and per row."),
    NO_EFFECT("flash_attention", KEY_BOOL, "", "As attn_implementation."),
    NO_EFFECT("sdp_attention", KEY_BOOL, "", "As attn_implementation."),
    NO_EFFECT("xformers_attention", KEY_BOOL, "", "As attn_implementation."),
    NO_EFFECT("flex_attention", KEY_BOOL, "", "As attn_implementation."),
    NO_EFFECT("sage_attention", KEY_BOOL, "", "As attn_implementation."),
    NO_EFFECT("eager_attention", KEY_BOOL, "", "As attn_implementation."),
    NO_EFFECT("flex_attn_compile_kwargs", KEY_DICT, "", "As attn_implementation."),
    NO_EFFECT("flash_attn_cross_entropy", KEY_BOOL, "", "As chunked_cross_entropy."),
    NO_EFFECT("flash_attn_rms_norm", KEY_BOOL, "", "Kernel of another library."),
    NO_EFFECT("flash_attn_fuse_mlp", KEY_BOOL, "", "Kernel of another library."),
    NO_EFFECT("fused_attn_kernel", KEY_BOOL, "", "Kernel of another library."),
    NO_EFFECT("flash_optimum", KEY_BOOL, "", "Kernel of another library."),
    REFUSED("s2_attention", KEY_BOOL, "", "axolotl removed it; attention is exact."),
    NO_EFFECT("chunked_cross_entropy", KEY_BOOL, "", "The loss never holds all logits at once anyway."),
    NO_EFFECT("chunked_cross_entropy_num_chunks", KEY_INT, "", "As chunked_cross_entropy."),
    NO_EFFECT("cut_cross_entropy", KEY_BOOL, "", "As chunked_cross_entropy."),
    NO_EFFECT("liger_rope", KEY_BOOL, "", "Kernel of another library."),
    NO_EFFECT("liger_rms_norm", KEY_BOOL, "", "Kernel of another library."),
    NO_EFFECT("liger_rms_norm_gated", KEY_BOOL, "", "Kernel of another library."),
    NO_EFFECT("liger_layer_norm", KEY_BOOL, "", "Kernel of another library."),
    NO_EFFECT("liger_glu_activation", KEY_BOOL, "", "Kernel of another library."),
    NO_EFFECT("liger_swiglu", KEY_BOOL, "", "Kernel of another library."),
    NO_EFFECT("liger_cross_entropy", KEY_BOOL, "", "Kernel of another library."),
    NO_EFFECT("liger_fused_linear_cross_entropy", KEY_BOOL, "", "Kernel of another library."),
    NO_EFFECT("use_kernels", KEY_BOOL, "", "Kernels of another library."),
    NO_EFFECT("use_scattermoe", KEY_BOOL, "", "Kernels of another library."),
    NO_EFFECT("use_sonicmoe", KEY_BOOL, "", "Kernels of another library."),
    NO_EFFECT("experts_implementation", KEY_STRING, "", "Kernels of another library."),
    NO_EFFECT("llama4_linearized_experts", KEY_BOOL, "", "Layout of experts in another library."),
    NO_EFFECT("tiled_mlp", KEY_BOOL, "", "Memory layout of another library."),
    NO_EFFECT("torch_compile", KEY_ANY, "", "Compiler of another library."),
    NO_EFFECT("torch_compile_backend", KEY_STRING, "", "As torch_compile."),
    NO_EFFECT("torch_compile_mode", KEY_STRING, "", "As torch_compile."),
    NO_EFFECT("torch_compile_options", KEY_DICT, "", "As torch_compile."),
    NO_EFFECT("gc_steps", KEY_INT, "", "Memory collection of another library.", .aliases = "gc_collect_steps"),
    NO_EFFECT("torch_empty_cache_steps", KEY_INT, "", "Memory collection of another library."),
    NO_EFFECT("low_cpu_mem_usage", KEY_BOOL, "", "The base is mapped from its file, never copied."),
    NO_EFFECT("experimental_skip_move_to_device", KEY_BOOL, "", "How another library loads."),
    NO_EFFECT("accelerator_config", KEY_DICT, "", "Settings of another library."),
    NO_EFFECT("debug", KEY_BOOL, "", "Log level of another program; see `graft check`."),
    NO_EFFECT("is_falcon_derived_model", KEY_BOOL, "", "The family is read from the base."),
    NO_EFFECT("is_llama_derived_model", KEY_BOOL, "", "The family is read from the base."),
    NO_EFFECT("is_mistral_derived_model", KEY_BOOL, "", "The family is read from the base."),
    NO_EFFECT("is_qwen_derived_model", KEY_BOOL, "", "The family is read from the base."),
    REFUSED("trainer_cls", KEY_STRING, "", "No code from a config is run."),
};
const size_t keys_torch_count = COUNT_OF(keys_torch);

static const struct key_choice devices[] = {
    {"auto", CONFIG_DEVICE_AUTO, KEY_WORKS, NULL},
    {"cpu", CONFIG_DEVICE_CPU, KEY_WORKS, NULL},
    {"cuda", CONFIG_DEVICE_CUDA, KEY_WORKS, NULL},
    {0},
};

const struct config_key keys_ours[] = {
    ENUM(device, devices, "auto", "Where to compute: `auto` takes a GPU where there is one, and says which it took."),
    INT(threads, "0", 0, 1024, "CPU threads. 0: as many as the cgroup grants. Results do not depend on it."),
    NOT_YET("fit", KEY_STRING, "off", "`auto`: choose the cheapest settings that fit into memory."),
    NOT_YET("attn", KEY_STRING, "auto", "Which attention kernel: auto, own, cudnn."),
    NOT_YET("reduce", KEY_STRING, "order", "How micro-batch gradients are summed: order, tree."),
    NOT_YET("recheck", KEY_ANY, "", "Recompute steps now and then and compare hashes."),
    NOT_YET("base_sharding", KEY_ANY, "", "Spread the base over the ranks."),
    NOT_YET("decoded_cache", KEY_STRING, "auto", "Keep decoded copies of weights on a GPU: auto, off."),
    NOT_YET("nondeterministic", KEY_BOOL, "false", "Allow faster kernels whose bits differ from run to run."),
};
const size_t keys_ours_count = COUNT_OF(keys_ours);
