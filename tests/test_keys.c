// The key table itself: one status per row, members of the right kind, the keys people use, and the texts made from it.
#include "configs/keys.h"
#include "configs/yaml.h"
#include "tests/harness.h"

#include <stdio.h>
#include <string.h>

static const struct config_key *row(size_t *section, size_t *index) {
    while (*section < key_table_count && *index >= *key_table[*section].count) {
        ++*section;
        *index = 0;
    }
    return *section < key_table_count ? &key_table[*section].rows[(*index)++] : NULL;
}

#define EACH_KEY(key)                                                                                                  \
    for (size_t s_ = 0, i_ = 0, once_ = 1; once_; once_ = 0)                                                           \
        for (const struct config_key *key; (key = row(&s_, &i_));)

TEST(rows_are_sound) {
    size_t counts[KEY_STATUS_COUNT] = {0}, all = 0;
    EACH_KEY(key) {
        all++;
        CHECK_MSG(key->name && *key->name && strlen(key->name) <= 64, "a name");
        CHECK_MSG(key->status < KEY_STATUS_COUNT, "%s: status", key->name);
        CHECK_MSG(key->type < KEY_TYPE_COUNT, "%s: type", key->name);
        CHECK_MSG(key->help && strlen(key->help) > 10, "%s: help", key->name);
        if (!key->help) continue;
        CHECK_MSG(key->help[strlen(key->help) - 1] == '.', "%s: help ends without a full stop", key->name);
        CHECK_MSG(key->fallback, "%s: default", key->name);
        // what works has a member, groups apart; what does not work has none
        bool member = key->offset != KEY_NO_MEMBER;
        CHECK_MSG(member == (key->status == KEY_WORKS && key->type != KEY_GROUP), "%s: member", key->name);
        CHECK_MSG(key->type != KEY_ENUM || key->choices, "%s: choices", key->name);
        bool number = key->type == KEY_INT || key->type == KEY_FLOAT || key->type == KEY_STEPS || key->type == KEY_INTS;
        CHECK_MSG(!(number && member) || key->low < key->high, "%s: range", key->name);
        CHECK_MSG(!key->harmless || key->status != KEY_WORKS, "%s: harmless values of a key that works", key->name);
        for (const struct key_choice *c = key->choices; c && c->name; c++)
            CHECK_MSG(c->status < KEY_STATUS_COUNT, "%s: %s", key->name, c->name);
        counts[key->status]++;
    }
    CHECK_INT(counts[0] + counts[1] + counts[2] + counts[3], all);
    CHECK(counts[KEY_WORKS] >= 100 && counts[KEY_NOT_YET] >= 50 && counts[KEY_NO_EFFECT] >= 50 &&
          counts[KEY_REFUSED] >= 5);
}

TEST(names_are_unique) {
    for (size_t s = 0; s < key_table_count; s++) {
        for (size_t i = 0; i < *key_table[s].count; i++) {
            const struct config_key *key = &key_table[s].rows[i];
            CHECK_MSG(key_find(key_table[s].scope, key->name) == key, "%s stands twice", key->name);
            char aliases[200];
            snprintf(aliases, sizeof aliases, "%s", key->aliases ? key->aliases : "");
            for (char *alias = strtok(aliases, " "); alias; alias = strtok(NULL, " "))
                CHECK_MSG(key_find(key_table[s].scope, alias) == key, "%s stands twice", alias);
            const char *dot = strrchr(key->name, '.');
            char group[80];
            snprintf(group, sizeof group, "%.*s", dot ? (int)(dot - key->name) : 0, key->name);
            const struct config_key *parent = dot ? key_find(key_table[s].scope, group) : NULL;
            CHECK_MSG(!dot || (parent && parent->type == KEY_GROUP), "%s has no group", key->name);
        }
    }
}

// Two members that share bytes would overwrite each other.
TEST(members_do_not_overlap) {
    static const size_t sizes[KEY_TYPE_COUNT] = {sizeof(bool),
                                                 sizeof(int64_t),
                                                 sizeof(double),
                                                 sizeof(double),
                                                 sizeof(char *),
                                                 sizeof(int),
                                                 sizeof(struct config_strings),
                                                 sizeof(struct config_ints),
                                                 sizeof(struct config_targets),
                                                 sizeof(struct config_strings),
                                                 sizeof(struct config_patterns),
                                                 sizeof(struct config_roles),
                                                 sizeof(struct config_datasets)};
    uint8_t used[2][sizeof(struct run_config)] = {0};
    for (size_t s = 0; s < key_table_count; s++) {
        size_t limit = key_table[s].scope == SCOPE_RUN ? sizeof(struct run_config) : sizeof(struct dataset_config);
        for (size_t i = 0; i < *key_table[s].count; i++) {
            const struct config_key *key = &key_table[s].rows[i];
            if (key->offset == KEY_NO_MEMBER) continue;
            CHECK_MSG(key->offset + sizes[key->type] <= limit, "%s", key->name);
            for (size_t b = 0; b < sizes[key->type] && key->offset + b < limit; b++)
                CHECK_MSG(!used[key_table[s].scope][key->offset + b]++, "%s shares a member", key->name);
        }
    }
}

// Enum members are written as ints.
_Static_assert(sizeof(enum config_adapter) == sizeof(int) && sizeof(enum config_schedule) == sizeof(int), "enum size");

// What the keys that nearly every file has must be here; those of the run itself work.
static const char *const working[] = {
    "adapter",
    "base_model",
    "bf16",
    "datasets",
    "evals_per_epoch",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "learning_rate",
    "logging_steps",
    "lora_alpha",
    "lora_dropout",
    "lora_r",
    "lr_scheduler",
    "micro_batch_size",
    "num_epochs",
    "optimizer",
    "output_dir",
    "sample_packing",
    "saves_per_epoch",
    "sequence_len",
    "val_set_size",
    "warmup_ratio",
    "weight_decay",
    // the next fifty
    "load_in_4bit",
    "load_in_8bit",
    "quantize_moe_experts",
    "bnb_config_kwargs",
    "bnb_config_kwargs.bnb_4bit_quant_type",
    "bnb_config_kwargs.bnb_4bit_use_double_quant",
    "revision_of_model",
    "lora_model_dir",
    "lora_target_modules",
    "lora_target_linear",
    "lora_target_parameters",
    "lora_modules_to_save",
    "peft_use_dora",
    "peft_trainable_token_indices",
    "lora_rank_pattern",
    "lora_alpha_pattern",
    "peft_layers_to_transform",
    "peft_use_rslora",
    "peft_init_lora_weights",
    "loraplus_lr_ratio",
    "chat_template",
    "train_on_inputs",
    "test_datasets",
    "shuffle_merged_datasets",
    "excess_length_strategy",
    "eval_sample_packing",
    "pad_to_sequence_len",
    "group_by_length",
    "max_steps",
    "warmup_steps",
    "cosine_min_lr_ratio",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "neftune_noise_alpha",
    "seed",
    "eval_steps",
    "save_steps",
    "save_total_limit",
    "early_stopping_patience",
    "loss_watchdog_threshold",
    "resume_from_checkpoint",
    // further ones of the run, and ours
    "eval_sequence_len",
    "min_sample_len",
    "batch_size",
    "eval_batch_size",
    "lr_scheduler_kwargs",
    "cosine_constant_lr_ratio",
    "lr_quadratic_warmup",
    "eval_strategy",
    "save_strategy",
    "save_only_model",
    "save_first_step",
    "load_best_model_at_end",
    "metric_for_best_model",
    "greater_is_better",
    "loss_watchdog_patience",
    "auto_resume_from_checkpoints",
    "dynamic_checkpoint",
    "dynamic_checkpoint.enabled",
    "dynamic_checkpoint.check_interval",
    "dynamic_checkpoint.trigger_file_path",
    "generate_samples",
    "num_generation_samples",
    "generation_max_new_tokens",
    "generation_temperature",
    "generation_top_p",
    "generation_top_k",
    "generation_prompt_ratio",
    "generation_do_sample",
    "use_tensorboard",
    "bfloat16",
    "float32",
    "fp16",
    "float16",
    "device",
    "threads",
    "bad_rows",
    "lint_waive",
    "base_model_hf",
};
static const char *const without_effect[] = {
    "gptq",
    "attn_implementation",
    "tf32",
    "wandb_project",
    "wandb_entity",
    "wandb_name",
    "wandb_watch",
    "wandb_log_model",
    "dataset_prepared_path",
    "model_type",
    "tokenizer_type",
    "special_tokens.pad_token",
    "strict",
    "plugins",
    "torch_compile",
    "gradient_checkpointing_kwargs",
    "dataset_num_proc",
    "trust_remote_code",
    "lora_mlp_kernel",
    "flash_attention",
    "use_mlflow",
    "mlflow_run_name",
};
static const char *const later[] = {
    "tokenizer_config",
    "model_config.rope_scaling",
    "special_tokens.eos_token",
    "tokens",
    "chat_template_jinja",
    "eot_tokens",
    "pretraining_dataset",
    "streaming",
    "dataset_exact_deduplication",
    "deepspeed",
    "fsdp_config",
    "rl",
    "hub_model_id",
    "fit",
    "attn",
    "reduce",
    "recheck",
    "base_sharding",
    "decoded_cache",
    "nondeterministic",
};
static const char *const of_datasets[] = {
    "path",
    "type",
    "ds_type",
    "field_messages",
    "message_property_mappings",
    "message_property_mappings.role",
    "message_property_mappings.content",
    "roles",
    "roles_to_train",
    "train_on_eos",
    "train_on_eot",
    "chat_template",
    "field_system",
    "field_instruction",
    "field_input",
    "field_output",
};

static void check_status(enum key_scope scope, const char *const *names, size_t count, enum key_status status) {
    for (size_t i = 0; i < count; i++) {
        const struct config_key *key = key_find(scope, names[i]);
        CHECK_MSG(key, "%s is missing", names[i]);
        if (key) CHECK_MSG(key->status == status, "%s: %s", names[i], key_status_name(key->status));
    }
}

TEST(the_keys_people_use) {
    check_status(SCOPE_RUN, working, COUNT_OF(working), KEY_WORKS);
    check_status(SCOPE_RUN, without_effect, COUNT_OF(without_effect), KEY_NO_EFFECT);
    check_status(SCOPE_RUN, later, COUNT_OF(later), KEY_NOT_YET);
    check_status(SCOPE_DATASET, of_datasets, COUNT_OF(of_datasets), KEY_WORKS);
}

// A default must be a value that the key accepts; a wrong one would be a problem in every config.
TEST(defaults_are_valid) {
    static const char minimal[] = "base_model: b\nadapter: lora\nlora_target_linear: true\nlearning_rate: 1e-4\n"
                                  "datasets: [{path: d}]\n";
    for (size_t s = 0; s < key_table_count; s++) {
        for (size_t i = 0; i < *key_table[s].count; i++) {
            const struct config_key *key = &key_table[s].rows[i];
            if (!*key->fallback || key->type == KEY_GROUP) continue;
            char override[300];
            const char *const overrides[] = {override};
            snprintf(override, sizeof override, "%s%s=%s", key_table[s].scope == SCOPE_DATASET ? "datasets.0." : "",
                     key->name, key->fallback);
            struct run_config config;
            struct error err = {0};
            CHECK_MSG(config_parse(minimal, sizeof minimal - 1, "c", 1, overrides, &config, NULL, &err) == 0, "%s",
                      err.text);
            CHECK_MSG(config.notices.count == 0, "%s: %s", override,
                      config.notices.items ? config.notices.items[0] : "");
            config_free(&config);
        }
    }
}

TEST(nearest_names) {
    static const char *const cases[][2] = {
        {"lora_rr", "lora_r"},
        {"lora-r", "lora_r"},
        {"learing_rate", "learning_rate"},
        {"micro_batchsize", "micro_batch_size"},
        {"sequence_length", "sequence_len"},
        {"output_dri", "output_dir"},
        {"adam_eps", "adam_epsilon"},
        {"dynamic_checkpoint.enable", "enabled"},
        {"base", "base_model"},
        {"x", NULL},
        {"something_quite_different", NULL},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        const char *near = key_nearest(SCOPE_RUN, cases[i][0]);
        bool same = near && cases[i][1] ? strcmp(near, cases[i][1]) == 0 : near == cases[i][1];
        CHECK_MSG(same, "%s: %s", cases[i][0], near ? near : "(none)");
    }
}

TEST(help_texts) {
    struct text t = {0};
    struct error err = {0};
    CHECK_INT(config_help("lora_r", &t, &err), 0);
    CHECK(strstr(text_str(&t), "from 1 to 1024") && strstr(text_str(&t), "works"));
    text_clear(&t);
    CHECK_INT(config_help("datasets.field_messages", &t, &err), 0);
    CHECK(strstr(text_str(&t), "datasets[].field_messages") && strstr(text_str(&t), "messages"));
    text_clear(&t);
    CHECK_INT(config_help("field_messages", &t, &err), 0); // found without its prefix too
    CHECK(strstr(text_str(&t), "datasets[].field_messages"));
    text_clear(&t);
    CHECK_INT(config_help("optimizer", &t, &err), 0);
    CHECK(strstr(text_str(&t), "paged_adamw_8bit: runs as fp32 AdamW") && strstr(text_str(&t), "not yet  muon"));
    text_clear(&t);
    CHECK_INT(config_help(NULL, &t, &err), 0);
    CHECK(strstr(text_str(&t), "\n  learning_rate: ") && !strstr(text_str(&t), "wandb"));
    CHECK_INT(config_help("lora_rr", &t, &err), -1);
    CHECK_INT(err.code, STATUS_USAGE);
    CHECK_STR(err.text, "unknown key 'lora_rr'; did you mean 'lora_r'?");
    text_free(&t);
}

TEST(docs_are_up_to_date) {
    struct text made = {0}, committed = {0};
    struct error err = {0};
    config_write_docs(&made);
    CHECK_MSG(file_read("docs/config.md", 1 << 20, &committed, &err) == 0, "%s", err.text);
    CHECK_MSG(strcmp(text_str(&made), text_str(&committed)) == 0,
              "docs/config.md: run graft help --markdown > docs/config.md");
    size_t rows = 0, keys = 0;
    for (const char *p = text_str(&made); (p = strstr(p, "\n| `")); p++) rows++;
    EACH_KEY(key) keys += key != NULL;
    CHECK_INT(rows, keys);
    text_free(&made);
    text_free(&committed);
}

TEST_MAIN(CASE(rows_are_sound), CASE(names_are_unique), CASE(members_do_not_overlap), CASE(the_keys_people_use),
          CASE(defaults_are_valid), CASE(nearest_names), CASE(help_texts), CASE(docs_are_up_to_date))
