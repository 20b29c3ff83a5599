// A run as configured: what a YAML or JSON file plus `key=value` overrides say, checked and resolved. Names and
// meanings are axolotl's (docs/config.md); a member is called like its key. The struct stops at train/: lower folders
// take small option structs.
#pragma once

#include "kernels/base.h"

// A number that was not given and has no default of its own. All our numbers are >= 0 when given.
#define CONFIG_UNSET (-1)

// Enum values are stored through the key table as ints.
enum config_adapter { CONFIG_ADAPTER_LORA = 1, CONFIG_ADAPTER_QLORA };
enum config_init {
    CONFIG_INIT_KAIMING,  // true: A kaiming-uniform, B zero (PEFT's default)
    CONFIG_INIT_GAUSSIAN, // A normal with deviation 1/r, B zero
    CONFIG_INIT_RANDOM,   // false: both kaiming-uniform, so the adapter changes the model from the start
    CONFIG_INIT_PISSA,    // the largest singular triplets of the base, taken off it; + n: pissa_niter_n
};
enum config_4bit { CONFIG_4BIT_NF4, CONFIG_4BIT_FP4 };
enum config_bias { CONFIG_BIAS_NONE, CONFIG_BIAS_LORA_ONLY, CONFIG_BIAS_ALL };
enum config_precision {
    CONFIG_PRECISION_AUTO, // bf16 where the hardware has it
    CONFIG_PRECISION_BF16, // asked for: also where it is emulated
    CONFIG_PRECISION_HALF, // fp16 asked for: bf16 on CUDA, fp32 on the CPU; to be announced and recorded
    CONFIG_PRECISION_FP32,
};
enum config_auto { CONFIG_FALSE, CONFIG_TRUE, CONFIG_AUTO };
enum config_data_type { CONFIG_DATA_TOKENS, CONFIG_DATA_CHAT, CONFIG_DATA_ALPACA };
enum config_train_on { CONFIG_ON_TURN, CONFIG_ON_ALL, CONFIG_ON_LAST, CONFIG_ON_NONE };
enum config_excess { CONFIG_EXCESS_DROP, CONFIG_EXCESS_TRUNCATE, CONFIG_EXCESS_RAISE };
enum config_bad_rows { CONFIG_BAD_ROWS_ERROR, CONFIG_BAD_ROWS_SKIP };
enum config_optimizer { CONFIG_OPTIMIZER_ADAMW };
enum config_schedule {
    CONFIG_LR_CONSTANT,
    CONFIG_LR_CONSTANT_WITH_WARMUP,
    CONFIG_LR_LINEAR,
    CONFIG_LR_COSINE,
    CONFIG_LR_REX,
    CONFIG_LR_ONE_CYCLE,
    CONFIG_LR_INVERSE_SQRT,
    CONFIG_LR_POLYNOMIAL,
};
enum config_strategy { CONFIG_STRATEGY_UNSET, CONFIG_STRATEGY_NO, CONFIG_STRATEGY_STEPS, CONFIG_STRATEGY_EPOCH };
enum config_device { CONFIG_DEVICE_AUTO, CONFIG_DEVICE_CPU, CONFIG_DEVICE_CUDA };

struct config_strings {
    const char **items;
    size_t count;
};
struct config_ints {
    int64_t *items;
    size_t count;
};
struct config_patterns { // a regular expression for module names -> a number, in the order of the file
    const char **keys;
    int64_t *values;
    size_t count;
};

// When something happens during a run.
enum config_when_kind {
    CONFIG_WHEN_NEVER,
    CONFIG_WHEN_EPOCH,    // at the end of each epoch
    CONFIG_WHEN_STEPS,    // every `value` steps
    CONFIG_WHEN_FRACTION, // every ceil(value * all steps) steps, 0 < value < 1
};
struct config_when {
    enum config_when_kind kind;
    double value;
};

// One entry of `datasets` or `test_datasets`.
struct dataset_config {
    int line;            // in the config file, for messages; 0 = from the command line
    const char *path;    // never NULL
    const char *ds_type; // "json"
    enum config_data_type type;
    const char *chat_template;  // "tokenizer_default" or "chatml"
    const char *field_messages; // column that holds the turns
    struct {
        const char *role, *content; // names inside one turn
    } message_property_mappings;
    const char *field_system, *field_instruction, *field_input, *field_output; // alpaca columns
    struct config_roles {
        const char **from, **to; // role in the data -> role of the template
        size_t count;
    } roles;
    struct config_strings roles_to_train;            // template roles whose content is trained
    enum config_train_on train_on_eos, train_on_eot; // eot follows eos unless given
};
struct config_datasets {
    struct dataset_config *items;
    size_t count;
};

struct run_config {
    // --- base
    const char *base_model;        // path or ORG/NAME, never NULL
    const char *revision_of_model; // of ORG/NAME; NULL = main
    const char *base_model_hf;     // name to write into the adapter for a GGUF base; NULL = from the file
    bool load_in_4bit, load_in_8bit, quantize_moe_experts;
    enum config_4bit bnb_4bit_quant_type;
    bool bnb_4bit_use_double_quant;
    struct {
        enum config_auto output_router_logits; // AUTO: as the base's config.json says
        double router_aux_loss_coef;           // CONFIG_UNSET: as that says
    } model_config;
    bool base_must_be_quantised; // `adapter: qlora` without load_in_4bit: an unquantised base is an error

    // --- adapter
    enum config_adapter adapter;
    const char *lora_model_dir; // adapter to start from; NULL = a new one
    int64_t lora_r, lora_alpha; // CONFIG_UNSET only with lora_model_dir: as the adapter there says
    double lora_dropout;        // [0, 1)
    bool lora_target_linear;    // every linear except the output head; adds to the names below
    struct config_targets {
        const char *regex;           // matches whole module names; NULL = use names
        struct config_strings names; // last parts of module names
    } lora_target_modules;
    struct config_strings lora_target_parameters; // experts in one parameter, routers
    struct config_patterns lora_rank_pattern, lora_alpha_pattern;
    struct config_strings lora_modules_to_save;      // embed_tokens, lm_head: trained whole
    struct config_ints peft_trainable_token_indices; // rows of the embedding that are trained
    bool peft_use_rslora, peft_use_dora;
    enum config_bias peft_bias;
    struct config_ints peft_layers_to_transform; // empty = all layers
    enum config_init peft_init_lora_weights;

    // --- data
    struct config_datasets datasets;      // at least one
    struct config_datasets test_datasets; // may be empty
    double val_set_size;                  // 0, a fraction below 1, or a whole count
    const char *chat_template;
    bool train_on_inputs;
    bool shuffle_merged_datasets;
    enum config_bad_rows bad_rows;
    struct config_strings lint_waive; // names of lint findings to let pass

    // --- sequence
    int64_t sequence_len, eval_sequence_len; // eval resolved: never unset
    enum config_excess excess_length_strategy;
    int64_t min_sample_len;
    bool sample_packing, eval_sample_packing; // eval resolved
    bool pad_to_sequence_len;                 // resolved: true when packing unless given
    bool group_by_length;

    // --- optimisation
    int64_t micro_batch_size, eval_batch_size; // rows; eval resolved
    int64_t gradient_accumulation_steps;       // resolved from batch_size (one rank)
    double num_epochs;
    int64_t max_steps; // CONFIG_UNSET = by num_epochs; otherwise it wins
    double learning_rate;
    enum config_schedule lr_scheduler;
    struct {                                 // CONFIG_UNSET = the schedule's own default
        double num_cycles;                   // cosine: waves, default 0.5
        double power, lr_end;                // polynomial: 1, 1e-7
        int64_t timescale;                   // inverse_sqrt: warm-up steps, 10000 without warm-up
        double pct_start;                    // one_cycle: rising part; default the warm-up's
        double div_factor, final_div_factor; // one_cycle: 25, 1e4
    } lr_scheduler_kwargs;
    double cosine_min_lr_ratio;      // of the peak; CONFIG_UNSET = 0
    double cosine_constant_lr_ratio; // part of the run after which the floor is held; CONFIG_UNSET = none
    bool lr_quadratic_warmup;
    int64_t warmup_steps; // CONFIG_UNSET = by warmup_ratio; both unset: min(3 % of the steps, 100). 1 becomes 2
    double warmup_ratio;  // CONFIG_UNSET or a part of all steps
    enum config_optimizer optimizer;
    double adam_beta1, adam_beta2, adam_epsilon, weight_decay;
    double max_grad_norm;         // 0 = no clipping
    double neftune_noise_alpha;   // CONFIG_UNSET = off
    double loraplus_lr_ratio;     // learning rate of B over that of A; CONFIG_UNSET = 1
    double loraplus_lr_embedding; // peak of embedding adapters, with loraplus_lr_ratio
    enum config_auto gradient_checkpointing;
    bool selective_checkpointing;
    enum config_precision precision; // resolved from bf16, fp16, bfloat16, float16, float32
    uint64_t seed;

    // --- evaluate, save, log, resume
    const char *output_dir;
    struct config_when eval_when; // resolved; NEVER when there is no evaluation data
    bool eval_at_start;
    struct config_when save_when;
    int64_t save_total_limit;
    bool save_only_model, save_first_step;
    bool load_best_model_at_end;
    const char *metric_for_best_model; // "loss" or "eval_loss"
    bool greater_is_better;
    int64_t early_stopping_patience; // evaluations without gain; CONFIG_UNSET = off
    double loss_watchdog_threshold;  // CONFIG_UNSET = off
    int64_t loss_watchdog_patience;  // steps in a row above it
    bool use_tensorboard;            // events in output_dir/tb
    int64_t logging_steps;           // CONFIG_UNSET = 0.5 % of the steps, 1 to 10
    const char *resume_from_checkpoint;
    bool auto_resume_from_checkpoints;
    struct {
        bool enabled;
        int64_t check_interval;        // steps
        const char *trigger_file_path; // plain file name inside output_dir; never NULL when enabled
    } dynamic_checkpoint;
    bool generate_samples;
    int64_t num_generation_samples, generation_max_new_tokens;
    double generation_temperature;
    double generation_top_p;  // CONFIG_UNSET = off
    int64_t generation_top_k; // CONFIG_UNSET = off
    double generation_prompt_ratio;
    bool generation_do_sample;

    // --- machine
    const char *gpu_memory_limit;
    uint64_t gpu_memory_bytes; // what that says; 0 = no limit
    enum config_device device;
    int64_t threads; // 0 = as many as the cgroup grants

    // --- as written; the resolved members above say what to do
    enum config_auto bf16;
    bool fp16, bfloat16, float16, float32;
    int64_t batch_size; // CONFIG_UNSET once it became gradient_accumulation_steps
    int64_t evals_per_epoch, saves_per_epoch;
    double eval_steps, save_steps; // whole steps, or a fraction of all steps below 1
    enum config_strategy eval_strategy, save_strategy;

    struct config_strings notices; // lines to print once before the run
    struct pool pool;              // owns every string and array
};

// Reads `path` and applies the overrides ("key=value", dotted keys for what is nested, "datasets.0.path=x"; later ones
// win). All problems are found at once: `report`, when not NULL, gets one line each ("FILE:LINE: what; what to do") and
// `err` the first ones with their number. On failure `out` is empty and needs no free.
int config_load(const char *path, int n_overrides, const char *const *overrides, struct run_config *out,
                struct error *err);
int config_load_report(const char *path, int n_overrides, const char *const *overrides, struct run_config *out,
                       struct text *report, struct error *err);
// The same from bytes; `origin` stands for the file name in messages.
int config_parse(const char *bytes, size_t length, const char *origin, int n_overrides, const char *const *overrides,
                 struct run_config *out, struct text *report, struct error *err);
void config_free(struct run_config *config); // a zeroed one is a no-op

// The whole effective configuration, defaults included, as YAML in table order: loads back to the same run. Equal runs
// give equal text, so its hash names the configuration.
void config_write_effective(const struct run_config *config, struct text *out);
