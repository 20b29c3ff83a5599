// Rules between keys, and values that follow from others: after this the trainer has nothing left to interpret. See
// loader.h.
#include "configs/loader.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

struct resolver {
    struct loader *l;
    struct run_config *c;
    const struct yaml_node *root;
};

// The node of a key under any of its names, NULL when it is not there or empty.
static const struct yaml_node *given(const struct resolver *r, const char *name) {
    const struct config_key *key = key_find(SCOPE_RUN, name);
    for (const struct yaml_node *n = r->root ? r->root->first : NULL; n; n = n->next) {
        bool same = strcmp(n->key, name) == 0 || (key && key_list_holds(key->aliases, ' ', n->key));
        if (same) return value_blank(n) ? NULL : n;
    }
    return NULL;
}

// Given and neither false nor zero: 0 counts as "not asked for", as axolotl counts it.
static const struct yaml_node *asked(const struct resolver *r, const char *name) {
    const struct yaml_node *n = given(r, name);
    double number;
    if (!n || n->kind != YAML_SCALAR) return n;
    if (n->scalar == YAML_BOOL && !yaml_true(n)) return NULL;
    if (yaml_float(n->text, &number) && number == 0) return NULL;
    return n;
}

static void exclusive(const struct resolver *r, const char *first, const char *second) {
    const struct yaml_node *b = asked(r, second);
    if (asked(r, first) && b) loader_problem(r->l, b, "%s and %s exclude each other; give one", first, second);
}

static void required(const struct resolver *r, const char *name, const char *what) {
    if (!given(r, name)) loader_problem(r->l, NULL, "%s is required: %s", name, what);
}

// "20GiB", "800 MB", or a number of GB.
static void check_memory_limit(const struct resolver *r) {
    static const struct {
        const char *name;
        double bytes;
    } units[] = {{"", 1e9},   {"GB", 1e9}, {"G", 1e9},        {"GiB", 1073741824.0},
                 {"MB", 1e6}, {"M", 1e6},  {"MiB", 1048576.0}};
    const char *text = r->c->gpu_memory_limit;
    if (!text || !*text) return;
    size_t digits = strspn(text, "0123456789.");
    char number[32];
    double value = 0;
    snprintf(number, sizeof number, "%.*s", (int)(digits < sizeof number ? digits : 0), text);
    const char *unit = text + digits + strspn(text + digits, " ");
    for (size_t i = 0; yaml_float(number, &value) && value > 0 && value < 1e9 && i < COUNT_OF(units); i++) {
        if (strcmp(unit, units[i].name) == 0) r->c->gpu_memory_bytes = (uint64_t)(value * units[i].bytes);
    }
    if (r->c->gpu_memory_bytes == 0)
        loader_problem(r->l, given(r, "gpu_memory_limit"), "gpu_memory_limit: '%s' is no amount; write 20GiB or 800MiB",
                       text);
}

static void check_adapter(const struct resolver *r) {
    struct run_config *c = r->c;
    required(r, "adapter", "lora or qlora; without an adapter all weights would be trained, which is not done here");
    c->base_must_be_quantised = c->adapter == CONFIG_ADAPTER_QLORA && !c->load_in_4bit && !c->load_in_8bit;
    if (c->load_in_4bit && c->load_in_8bit) exclusive(r, "load_in_4bit", "load_in_8bit");
    if (!c->lora_model_dir) {
        if (c->lora_r == CONFIG_UNSET) c->lora_r = 8; // PEFT's defaults
        if (c->lora_alpha == CONFIG_UNSET) c->lora_alpha = 8;
    }
    if (c->lora_target_modules.regex && strcmp(c->lora_target_modules.regex, "all-linear") == 0) {
        c->lora_target_modules = (struct config_targets){0};
        c->lora_target_linear = true;
    }
    bool named = c->lora_target_modules.regex || c->lora_target_modules.names.count || c->lora_target_parameters.count;
    const struct yaml_node *modules = given(r, "lora_target_modules");
    bool pissa = c->peft_init_lora_weights >= CONFIG_INIT_PISSA;
    if (pissa && c->peft_use_dora)
        loader_problem(r->l, given(r, "peft_init_lora_weights"),
                       "peft_init_lora_weights: pissa together with peft_use_dora is not in this version");
    if (pissa && c->lora_target_parameters.count)
        loader_problem(r->l, given(r, "peft_init_lora_weights"),
                       "peft_init_lora_weights: pissa is for linears, not for lora_target_parameters");
    if (c->lora_target_parameters.count && c->lora_dropout > 0)
        loader_problem(r->l, given(r, "lora_target_parameters"),
                       "lora_target_parameters needs lora_dropout: 0 (PEFT computes no dropout on parameters)");
    if (named || c->lora_target_linear || c->lora_model_dir) return;
    if (!modules)
        loader_problem(r->l, NULL, "no module to adapt: set lora_target_linear: true or list lora_target_modules");
    else if (modules->kind == YAML_LIST && modules->count == 0)
        loader_problem(r->l, modules, "lora_target_modules: no names");
}

static void check_data(const struct resolver *r) {
    struct run_config *c = r->c;
    const struct yaml_node *datasets = given(r, "datasets"), *val = given(r, "val_set_size");
    if (!datasets || (datasets->kind == YAML_LIST && datasets->count == 0))
        loader_problem(r->l, datasets, "datasets is required: a list of entries with path and type");
    for (size_t i = 0; i < c->datasets.count; i++)
        if (!c->datasets.items[i].chat_template) c->datasets.items[i].chat_template = c->chat_template;
    for (size_t i = 0; i < c->test_datasets.count; i++)
        if (!c->test_datasets.items[i].chat_template) c->test_datasets.items[i].chat_template = c->chat_template;
    if (c->val_set_size >= 1 && c->val_set_size != floor(c->val_set_size))
        loader_problem(r->l, val, "val_set_size: from 1 on a count of rows, so a whole number");
    if (c->val_set_size > 0 && c->test_datasets.count)
        loader_problem(r->l, val, "val_set_size and test_datasets exclude each other; give one");
}

static void resolve_sequence(const struct resolver *r) {
    struct run_config *c = r->c;
    if (c->eval_sequence_len == CONFIG_UNSET) c->eval_sequence_len = c->sequence_len;
    if (!given(r, "eval_sample_packing")) c->eval_sample_packing = c->sample_packing;
    if (!given(r, "pad_to_sequence_len")) c->pad_to_sequence_len = c->sample_packing;
    if (c->min_sample_len > c->sequence_len)
        loader_problem(r->l, given(r, "min_sample_len"), "min_sample_len is larger than sequence_len");
    if (c->sample_packing && c->group_by_length)
        loader_notice(r->l, "group_by_length has no effect with sample_packing");
}

static void resolve_batch(const struct resolver *r) {
    struct run_config *c = r->c;
    const struct yaml_node *batch = given(r, "batch_size");
    if (batch && given(r, "gradient_accumulation_steps")) {
        loader_problem(r->l, batch, "batch_size and gradient_accumulation_steps exclude each other; give one");
    } else if (c->batch_size != CONFIG_UNSET) {
        if (c->batch_size % c->micro_batch_size)
            loader_problem(r->l, batch, "batch_size %lld is no multiple of micro_batch_size %lld",
                           (long long)c->batch_size, (long long)c->micro_batch_size);
        c->gradient_accumulation_steps = c->batch_size / c->micro_batch_size;
        c->batch_size = CONFIG_UNSET;
    }
    if (c->eval_batch_size == CONFIG_UNSET) c->eval_batch_size = c->micro_batch_size;
    // At most 2^16 rows of 2^20 tokens, so neither product overflows.
    if (c->micro_batch_size * c->sequence_len > INT32_MAX || c->eval_batch_size * c->eval_sequence_len > INT32_MAX)
        loader_problem(r->l, given(r, "micro_batch_size"),
                       "a micro-batch of more than 2^31 tokens (rows x sequence_len)");
}

static void check_schedule(const struct resolver *r) {
    struct run_config *c = r->c;
    required(r, "learning_rate", "for LoRA often 1e-4 to 1e-3");
    exclusive(r, "warmup_steps", "warmup_ratio");
    if (!asked(r, "warmup_steps") && asked(r, "warmup_ratio")) c->warmup_steps = CONFIG_UNSET;
    static const struct {
        const char *name;
        enum config_schedule schedule;
    } parameters[] = {
        {"num_cycles", CONFIG_LR_COSINE},          {"power", CONFIG_LR_POLYNOMIAL},
        {"lr_end", CONFIG_LR_POLYNOMIAL},          {"timescale", CONFIG_LR_INVERSE_SQRT},
        {"pct_start", CONFIG_LR_ONE_CYCLE},        {"div_factor", CONFIG_LR_ONE_CYCLE},
        {"final_div_factor", CONFIG_LR_ONE_CYCLE},
    };
    const struct yaml_node *kwargs = given(r, "lr_scheduler_kwargs");
    for (size_t i = 0; kwargs && i < COUNT_OF(parameters); i++) {
        const struct yaml_node *n = yaml_find(kwargs, parameters[i].name);
        if (!value_blank(n) && c->lr_scheduler != parameters[i].schedule)
            loader_problem(r->l, n, "lr_scheduler_kwargs.%s: this schedule has no such parameter", parameters[i].name);
    }
    bool cosine = c->lr_scheduler == CONFIG_LR_COSINE;
    static const char *const cosine_only[] = {"cosine_min_lr_ratio", "cosine_constant_lr_ratio", "lr_quadratic_warmup"};
    for (size_t i = 0; i < COUNT_OF(cosine_only); i++) {
        bool works = cosine || (i == 0 && c->lr_scheduler == CONFIG_LR_REX);
        if (!works && asked(r, cosine_only[i]))
            loader_notice(r->l, "%s has no effect with this lr_scheduler", cosine_only[i]);
        if (cosine && i < 2 && c->lr_quadratic_warmup && asked(r, cosine_only[i]))
            loader_notice(r->l, "%s has no effect with lr_quadratic_warmup", cosine_only[i]);
    }
    if (cosine && asked(r, "cosine_constant_lr_ratio") && !asked(r, "cosine_min_lr_ratio"))
        loader_notice(r->l, "cosine_constant_lr_ratio has no effect without cosine_min_lr_ratio");
}

static void resolve_precision(const struct resolver *r) {
    struct run_config *c = r->c;
    bool half = c->fp16 || c->float16;
    if (c->float32)
        c->precision = CONFIG_PRECISION_FP32;
    else if (c->bf16 == CONFIG_TRUE || c->bfloat16)
        c->precision = CONFIG_PRECISION_BF16;
    else if (half)
        c->precision = CONFIG_PRECISION_HALF;
    else
        c->precision = c->bf16 == CONFIG_AUTO ? CONFIG_PRECISION_AUTO : CONFIG_PRECISION_FP32;
    if (c->precision == CONFIG_PRECISION_HALF)
        loader_notice(r->l, "%s: runs as bf16 on CUDA and as fp32 on the CPU", c->fp16 ? "fp16" : "float16");
}

static struct config_when per_epoch(double times, double epochs) {
    if (times * epochs > 1) return (struct config_when){CONFIG_WHEN_FRACTION, 1 / (times * epochs)};
    return (struct config_when){CONFIG_WHEN_EPOCH, 0};
}

static struct config_when by_steps(double steps) {
    return (struct config_when){steps < 1 ? CONFIG_WHEN_FRACTION : CONFIG_WHEN_STEPS, steps};
}

struct cadence_keys {
    const char *per_epoch, *steps, *strategy;
};

// The rules that evaluation and saving share. `never` is what nothing given means.
static struct config_when resolve_when(const struct resolver *r, const struct cadence_keys *keys, int64_t times,
                                       double steps, enum config_strategy strategy, struct config_when nothing) {
    const struct yaml_node *s = given(r, keys->strategy);
    exclusive(r, keys->per_epoch, keys->steps);
    if (strategy == CONFIG_STRATEGY_STEPS && steps <= 0 && times <= 0)
        loader_problem(r->l, s, "%s: steps needs %s", keys->strategy, keys->steps);
    if ((strategy == CONFIG_STRATEGY_NO || strategy == CONFIG_STRATEGY_EPOCH) && (steps > 0 || times > 0)) {
        // saves_per_epoch: 1 with save_strategy: epoch and the like say the same thing twice
        bool same = strategy == CONFIG_STRATEGY_EPOCH && steps <= 0 && times == 1;
        if (!same)
            loader_problem(r->l, s, "%s contradicts %s", keys->strategy, steps > 0 ? keys->steps : keys->per_epoch);
    }
    if (steps > 0) return by_steps(steps);
    if (times > 0) return per_epoch((double)times, r->c->num_epochs);
    if (strategy == CONFIG_STRATEGY_EPOCH) return (struct config_when){CONFIG_WHEN_EPOCH, 0};
    if (strategy == CONFIG_STRATEGY_NO) return (struct config_when){CONFIG_WHEN_NEVER, 0};
    return nothing;
}

static void resolve_evaluation(const struct resolver *r) {
    static const struct cadence_keys eval_keys = {"evals_per_epoch", "eval_steps", "eval_strategy"};
    static const struct cadence_keys save_keys = {"saves_per_epoch", "save_steps", "save_strategy"};
    struct run_config *c = r->c;
    const struct config_when never = {CONFIG_WHEN_NEVER, 0}, each_epoch = {CONFIG_WHEN_EPOCH, 0};
    c->save_when = resolve_when(r, &save_keys, c->saves_per_epoch, c->save_steps, c->save_strategy, each_epoch);
    c->eval_when = resolve_when(r, &eval_keys, c->evals_per_epoch, c->eval_steps, c->eval_strategy, never);
    bool data = c->val_set_size > 0 || c->test_datasets.count > 0;
    const struct yaml_node *steps = asked(r, "eval_steps"), *strategy = given(r, "eval_strategy");
    if (!data && (steps || (strategy && c->eval_strategy != CONFIG_STRATEGY_NO)))
        loader_problem(r->l, steps ? steps : strategy, "%s without evaluation data; set val_set_size or test_datasets",
                       steps ? "eval_steps" : "eval_strategy");
    if (!data) c->eval_when = never; // evals_per_epoch without data is in many files and harmless
    c->eval_at_start = c->eval_when.kind != CONFIG_WHEN_NEVER;
    static const char *const needs_evaluation[] = {"early_stopping_patience", "load_best_model_at_end",
                                                   "generate_samples"};
    for (size_t i = 0; i < COUNT_OF(needs_evaluation); i++) {
        const struct yaml_node *n = asked(r, needs_evaluation[i]);
        if (n && c->eval_when.kind == CONFIG_WHEN_NEVER)
            loader_problem(r->l, n, "%s needs evaluations; set evals_per_epoch or eval_steps, and evaluation data",
                           needs_evaluation[i]);
    }
}

static void resolve_checkpoints(const struct resolver *r) {
    struct run_config *c = r->c;
    const char *name = c->dynamic_checkpoint.trigger_file_path;
    if (!name)
        c->dynamic_checkpoint.trigger_file_path = "axolotl_checkpoint.save";
    else if (!path_is_plain_name(name, strlen(name)))
        loader_problem(r->l, given(r, "dynamic_checkpoint"),
                       "dynamic_checkpoint.trigger_file_path: a file name inside output_dir, not a path");
}

void config_resolve(struct loader *l, const struct yaml_node *root) {
    struct resolver r = {l, l->out, root};
    required(&r, "base_model", "a GGUF file or a model folder");
    check_adapter(&r);
    check_memory_limit(&r);
    check_data(&r);
    resolve_sequence(&r);
    resolve_batch(&r);
    check_schedule(&r);
    resolve_precision(&r);
    resolve_evaluation(&r);
    resolve_checkpoints(&r);
}
