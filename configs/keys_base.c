// Rows of the key table: base model, precision, adapter. See keys.h.
#include "configs/key_rows.h"

#define MEMBER(name) offsetof(struct run_config, name)

static const struct key_choice as_the_base[] = {
    {"auto", CONFIG_AUTO, KEY_WORKS, NULL},
    {"true", CONFIG_TRUE, KEY_WORKS, NULL},
    {"false", CONFIG_FALSE, KEY_WORKS, NULL},
    {0},
};

const struct config_key keys_base[] = {
    STRING(base_model, "", "The base: a GGUF file (or model folder) whose weights stay frozen. Required."),
    STRING(base_model_hf, "",
           "Name written into the adapter as its base when the base is a GGUF file. Empty: from the file's metadata."),
    NOT_YET("base_model_config", KEY_STRING, "", "Another place to read the model description from."),
    NO_EFFECT("model_type", KEY_STRING, "", "Class name of the model; the family is read from the base.",
              .aliases = "type_of_model"),
    NO_EFFECT("cls_model_config", KEY_STRING, "", "Class name of the model description."),
    STRING(revision_of_model, "", "Branch, tag or commit of a base that is named as on its hub; `main` when not given.",
           .aliases = "model_revision"),
    {.name = "model_config",
     .type = KEY_GROUP,
     .offset = KEY_NO_MEMBER,
     .fallback = "",
     .aliases = "overrides_of_model_config",
     .help = "Values that replace ones of the model description. In this version those of the routers' loss."},
    ENUM(model_config.output_router_logits, as_the_base, "auto",
         "Adds the load-balancing loss of a mixture of experts, weighed by router_aux_loss_coef; log.jsonl has it as "
         "`aux_loss`. `auto`: as the base's config.json says."),
    FLOAT(model_config.router_aux_loss_coef, "", 0, 1000,
          "Weight of the load-balancing loss. Empty: as the base's config.json says; a GGUF does not say it."),
    NOT_YET("model_config.rope_scaling", KEY_ANY, "", "Another stretching of positions."),
    NOT_YET("model_config.rope_parameters", KEY_ANY, "", "Another stretching of positions."),
    NOT_YET("model_config.sliding_window", KEY_ANY, "", "Another window of attention."),
    NOT_YET("model_kwargs", KEY_DICT, "", "Loader arguments that replace the model's.",
            .aliases = "overrides_of_model_kwargs"),
    NO_EFFECT("tokenizer_type", KEY_STRING, "", "Class name of the tokenizer; its kind is read from the base."),
    NOT_YET("tokenizer_config", KEY_STRING, "", "Another place to read the tokenizer from."),
    NO_EFFECT("tokenizer_use_fast", KEY_BOOL, "", "Flavour of a tokenizer library; there is one tokenizer here."),
    NO_EFFECT("tokenizer_legacy", KEY_BOOL, "", "Flavour of a tokenizer library; the model's own file decides."),
    NO_EFFECT("tokenizer_save_jinja_files", KEY_BOOL, "", "Whether templates are saved as files of their own."),
    NOT_YET("tokenizer_use_mistral_common", KEY_BOOL, "", "Mistral's own tokenizer format."),
    NO_EFFECT("trust_remote_code", KEY_BOOL, "", "Code that comes with a model is never run."),
    GROUP("special_tokens", "Special tokens other than the model's own."),
    NOT_YET("special_tokens.bos_token", KEY_STRING, "", "Token that begins a text."),
    NOT_YET("special_tokens.eos_token", KEY_STRING, "", "Token that ends a text."),
    NO_EFFECT("special_tokens.pad_token", KEY_STRING, "", "Padding is outside every row here and is no token."),
    NOT_YET("special_tokens.unk_token", KEY_STRING, "", "Token for unknown text."),
    NOT_YET("special_tokens.additional_special_tokens", KEY_STRINGS, "", "Further special tokens."),
    NOT_YET("tokens", KEY_STRINGS, "", "Ordinary tokens to add to the vocabulary."),
    NOT_YET("added_tokens_overrides", KEY_DICT, "", "New names for reserved tokens, by id."),
    NO_EFFECT("resize_token_embeddings_to_32x", KEY_BOOL, "", "Rounds the vocabulary up; the base keeps its size."),
    NO_EFFECT("shrink_embeddings", KEY_BOOL, "", "Lets the vocabulary shrink; the base keeps its size."),
    NO_EFFECT("mean_resizing_embeddings", KEY_BOOL, "false", "How new embedding rows begin; none are added."),
    NO_EFFECT("embeddings_skip_upcast", KEY_BOOL, "", "Storage type of embeddings; they stay as in the file."),
    NOT_YET("fix_untrained_tokens", KEY_ANY, "", "Token ids whose embeddings are set to the mean."),
    REFUSED("reinit_weights", KEY_BOOL, "", "A base with random weights cannot carry an adapter."),
    REFUSED("processor_type", KEY_STRING, "", "Images and audio are not trained here."),
};
const size_t keys_base_count = COUNT_OF(keys_base);

static const struct key_choice auto_or_bool[] = {
    {"auto", CONFIG_AUTO, KEY_WORKS, NULL},
    {"true", CONFIG_TRUE, KEY_WORKS, NULL},
    {"false", CONFIG_FALSE, KEY_WORKS, NULL},
    {0},
};

static const struct key_choice four_bits[] = {
    {"nf4", CONFIG_4BIT_NF4, KEY_WORKS, NULL},
    {"fp4", CONFIG_4BIT_FP4, KEY_WORKS, NULL},
    {0},
};

const struct config_key keys_precision[] = {
    BOOL(
        load_in_4bit, "false",
        "Hold the base in 4 bits: linears of a safetensors base become NF4, once, in a cache. A base that is quantised "
        "already is kept as it is; `adapter: qlora` needs one of both."),
    BOOL(load_in_8bit, "false", "Hold the base in 8 bits (LLM.int8: a scale per row)."),
    GROUP("bnb_config_kwargs", "Variants of the 4-bit format made while loading."),
    {.name = "bnb_config_kwargs.bnb_4bit_quant_type",
     .type = KEY_ENUM,
     .offset = MEMBER(bnb_4bit_quant_type),
     .choices = four_bits,
     .fallback = "nf4",
     .help = "The 4-bit code."},
    {.name = "bnb_config_kwargs.bnb_4bit_use_double_quant",
     .type = KEY_BOOL,
     .offset = MEMBER(bnb_4bit_use_double_quant),
     .fallback = "true",
     .help = "Quantises the scales of the blocks, too: 4.13 bits a weight in place of 4.5."},
    NO_EFFECT("bnb_config_kwargs.bnb_4bit_compute_dtype", KEY_ANY, "", "`bf16` says what is computed in."),
    NO_EFFECT("bnb_config_kwargs.bnb_4bit_quant_storage", KEY_ANY, "", "How another library shards the codes."),
    NO_EFFECT("bnb_config_kwargs.llm_int8_threshold", KEY_ANY, "", "Activations are not quantised here."),
    NO_EFFECT("gptq", KEY_BOOL, "", "Whether the base is a GPTQ file is read from it."),
    NO_EFFECT("gptq_groupsize", KEY_INT, "", "Read from the GPTQ file."),
    NO_EFFECT("gptq_model_v1", KEY_BOOL, "", "Read from the GPTQ file."),
    NO_EFFECT("gptq_disable_exllama", KEY_BOOL, "", "Chooses a kernel of another library."),
    NO_EFFECT("model_quantization_config", KEY_STRING, "", "MXFP4 and FP8 bases are known by their tensors."),
    NO_EFFECT("model_quantization_config_kwargs", KEY_DICT, "", "As model_quantization_config."),
    BOOL(quantize_moe_experts, "false",
         "With load_in_4bit or load_in_8bit: experts that lie in one tensor (Llama 4, Granite, gpt-oss) are quantised, "
         "too, each as a linear of its own; `false` leaves them in 16 bits. Experts that are separate linears always "
         "are."),
    ENUM(bf16, auto_or_bool, "auto",
         "bf16 products with fp32 sums: `auto` where the hardware has them, `true` always (emulated if need be), "
         "`false` fp32."),
    BOOL(bfloat16, "", "The same as `bf16: true`."),
    BOOL(fp16, "", "Runs as bf16 on CUDA and as fp32 on the CPU, and says so."),
    BOOL(float16, "", "The same as `fp16: true`."),
    BOOL(float32, "", "fp32 everywhere; wins over the four keys above."),
    NOT_YET("fp8", KEY_BOOL, "", "8-bit floating-point products."),
    NO_EFFECT("tf32", KEY_ANY, "auto", "Rounding of fp32 products on a GPU; fp32 means fp32 here.",
              .harmless = "false"),
    NO_EFFECT("torch_dtype", KEY_STRING, "", "Loading type of another library."),
};
const size_t keys_precision_count = COUNT_OF(keys_precision);

static const struct key_choice adapters[] = {
    {"lora", CONFIG_ADAPTER_LORA, KEY_WORKS, NULL},
    {"qlora", CONFIG_ADAPTER_QLORA, KEY_WORKS, NULL},
    {"llama-adapter", 0, KEY_REFUSED, "only low-rank adapters can be served by the common runtimes"},
    {0},
};

#define NITER(n)                                                                                                       \
    { "pissa_niter_" #n, CONFIG_INIT_PISSA + n, KEY_WORKS, NULL }
static const struct key_choice inits[] = {
    {"true", CONFIG_INIT_KAIMING, KEY_WORKS, NULL},
    {"gaussian", CONFIG_INIT_GAUSSIAN, KEY_WORKS, NULL},
    {"false", CONFIG_INIT_RANDOM, KEY_WORKS, NULL},
    {"pissa", CONFIG_INIT_PISSA, KEY_WORKS, NULL},
    NITER(1),
    NITER(2),
    NITER(4),
    NITER(8),
    NITER(10),
    NITER(16),
    NITER(20),
    NITER(32),
    NITER(50),
    NITER(64),
    {"olora", 0, KEY_NOT_YET, NULL},
    {"loftq", 0, KEY_NOT_YET, NULL},
    {"eva", 0, KEY_NOT_YET, NULL},
    {"corda", 0, KEY_NOT_YET, NULL},
    {"orthogonal", 0, KEY_NOT_YET, NULL},
    {0},
};

static const struct key_choice biases[] = {
    {"none", CONFIG_BIAS_NONE, KEY_WORKS, NULL},
    {"lora_only", CONFIG_BIAS_LORA_ONLY, KEY_WORKS, NULL},
    {"all", CONFIG_BIAS_ALL, KEY_WORKS, NULL},
    {0},
};

const struct config_key keys_adapter[] = {
    ENUM(adapter, adapters, "",
         "Low-rank adapter on a frozen base; `qlora` says that the base is quantised. Required: empty would mean "
         "training all weights."),
    STRING(lora_model_dir, "", "Adapter to start from instead of a new one."),
    INT(lora_r, "", 1, 1024, "Rank of the adapter. Empty: 8, or that of lora_model_dir."),
    INT(lora_alpha, "", 1, 65536, "The adapter's output is scaled by alpha / r. Empty: 8, or that of lora_model_dir."),
    FLOAT(lora_dropout, "0.0", 0, BELOW_ONE, "Part of the adapter's inputs that is dropped in training."),
    WORKS(lora_target_modules, KEY_TARGETS, "",
          "Modules that get an adapter: a list of names (`q_proj`), one regular expression for whole names, or "
          "`all-linear`."),
    BOOL(lora_target_linear, "", "Give an adapter to every linear layer except the output head."),
    WORKS(
        lora_target_parameters, KEY_NAMES, "",
        "Experts that the model holds in one parameter (`mlp.experts.gate_up_proj`), or a router (`mlp.gate.weight`). "
        "Needs `lora_dropout: 0`."),
    WORKS(lora_modules_to_save, KEY_STRINGS, "",
          "Modules to train and save whole: `embed_tokens`, `lm_head`. Takes 16 bytes of memory for each of their "
          "numbers."),
    NOT_YET("lora_fan_in_fan_out", KEY_BOOL, "", "The base stores its weights transposed (GPT-2)."),
    WORKS(
        lora_rank_pattern, KEY_PATTERNS, "",
        "Rank of some modules: a map from the end of a module's name, or a regular expression for it, to the rank. The "
        "first that matches counts.",
        .low = 1, .high = 1024),
    WORKS(lora_alpha_pattern, KEY_PATTERNS, "", "Alpha of some modules, as lora_rank_pattern.", .low = 1,
          .high = 65536),
    WORKS(peft_layers_to_transform, KEY_INTS, "", "Layers that get adapters, counted from 0. Empty: all.", .low = 0,
          .high = 4095),
    NOT_YET("peft_layers_pattern", KEY_STRINGS, "", "Name of the list of layers in an unusual model."),
    BOOL(peft_use_rslora, "", "Scale by alpha / sqrt(r) instead of alpha / r."),
    BOOL(
        peft_use_dora, "",
        "Train magnitude and direction apart (DoRA), on the linears of layers and, where it is named, on `lm_head`, "
        "there without `lora_dropout`; with it the base is multiplied twice. llama.cpp's adapter file cannot hold it."),
    ENUM(
        peft_bias, biases, "none",
        "Biases that are trained: `lora_only`, those of adapted linears that have one; `all`, every parameter that is "
        "called bias: of any linear, of norms and of the head, not those of stacked experts. llama.cpp's adapter file, "
        "MLX's and merged bases cannot hold them."),
    ENUM(peft_init_lora_weights, inits, "true",
         "Start of A: `true` kaiming-uniform, `gaussian` normal; B is zero. `false`: both random. `pissa`: A and B are "
         "the largest singular vectors of an unpacked base, which is trained less these; `pissa_niter_N` finds them by "
         "N random power iterations, much faster. Saved as an ordinary LoRA of twice the rank, for the unaltered "
         "base."),
    NOT_YET("peft", KEY_GROUP, "", "Further settings of the adapter library."),
    NOT_YET("peft.loftq_config", KEY_GROUP, "", "LoftQ start of the adapter."),
    NOT_YET("peft.loftq_config.loftq_bits", KEY_INT, "", "Bits of the LoftQ start."),
    NOT_YET("peft_layer_replication", KEY_ANY, "", "Layers to use more than once."),
    WORKS(peft_trainable_token_indices, KEY_INTS, "",
          "Ids of tokens whose rows of the embedding (and of a head that is tied to it) are trained.", .low = 0,
          .high = 16777215),
    NOT_YET("peft_ensure_weight_tying", KEY_BOOL, "", "Tie adapters where the base ties weights."),
    NO_EFFECT("peft_autocast_adapter_dtype", KEY_BOOL, "true", "Adapters are always fp32 in training."),
    FLOAT(loraplus_lr_ratio, "", ABOVE_ZERO, 1e6, "LoRA+: the learning rate of B over that of A. Empty: 1."),
    FLOAT(loraplus_lr_embedding, "1e-6", ABOVE_ZERO, 100,
          "LoRA+: peak learning rate of adapters on the embedding; needs loraplus_lr_ratio."),
    NO_EFFECT("lora_mlp_kernel", KEY_BOOL, "", "Fused kernels of another library; ours are always used."),
    NO_EFFECT("lora_qkv_kernel", KEY_BOOL, "", "As lora_mlp_kernel."),
    NO_EFFECT("lora_o_kernel", KEY_BOOL, "", "As lora_mlp_kernel."),
    NO_EFFECT("lora_embedding_kernel", KEY_BOOL, "", "As lora_mlp_kernel."),
    NO_EFFECT("lora_on_cpu", KEY_BOOL, "", "Where a merge computes; ours always runs on the CPU."),
    NO_EFFECT("merge_lora", KEY_BOOL, "", "Merging is a command of its own (`graft export --to merged`)."),
    NO_EFFECT("merge_method", KEY_STRING, "memory_efficient", "A merge always goes piece by piece."),
    NO_EFFECT("qlora_sharded_model_loading", KEY_BOOL, "false", "How several GPUs load the base."),
    REFUSED("unfrozen_parameters", KEY_STRINGS, "", "Training weights of the base itself; only adapters are trained."),
    NOT_YET("relora", KEY_BOOL, "", "Merge and restart the adapter while training (ReLoRA)."),
    NOT_YET("relora_prune_ratio", KEY_FLOAT, "", "ReLoRA: part of the optimiser state that is cleared."),
    NOT_YET("relora_cpu_offload", KEY_BOOL, "", "ReLoRA: merge on the CPU."),
    NOT_YET("jagged_restart_steps", KEY_INT, "", "Restart the schedule every so many steps."),
    NOT_YET("jagged_restart_warmup_steps", KEY_INT, "", "Warm-up after such a restart."),
    NOT_YET("jagged_restart_anneal_steps", KEY_INT, "", "Decay before such a restart."),
};
const size_t keys_adapter_count = COUNT_OF(keys_adapter);
