// Loading a config: types, ranges, overrides, rules between keys, all problems at once; typical files of other people.
#include "configs/run_config.h"
#include "tests/harness.h"

#include <stdio.h>
#include <string.h>

// Seven lines; what a test adds begins on line 8.
#define MINIMAL                                                                                                        \
    "base_model: base.gguf\nadapter: lora\nlora_target_linear: true\nlearning_rate: 1e-4\n"                            \
    "datasets:\n  - path: rows.jsonl\n    type: chat_template\n"

static struct run_config config;
static struct text report;
static struct error err;

static int parse(const char *text, int n, const char *const *overrides) {
    config_free(&config);
    text_clear(&report);
    err = (struct error){0};
    return config_parse(text, strlen(text), "c.yml", n, overrides, &config, &report, &err);
}

static void accepted(const char *text) {
    CHECK_MSG(parse(text, 0, NULL) == 0, "%s", text_str(&report));
    CHECK(report.length == 0 && err.code == 0);
}

// Refused with code 78, and the report holds the line `want`.
static void refused(const char *text, const char *want) {
    CHECK_MSG(parse(text, 0, NULL) == -1, "accepted: %s", text);
    CHECK_INT(err.code, STATUS_CONFIG);
    CHECK_MSG(strstr(text_str(&report), want), "\"%s\" lacks \"%s\"", text_str(&report), want);
    CHECK(config.pool.head == NULL);
}

#define ACCEPTED(tail)      accepted(MINIMAL tail)
#define REFUSED(tail, want) refused(MINIMAL tail, want)

static bool noticed(const char *part) {
    for (size_t i = 0; i < config.notices.count; i++)
        if (strstr(config.notices.items[i], part)) return true;
    return false;
}

TEST(defaults) {
    ACCEPTED("");
    CHECK_STR(config.base_model, "base.gguf");
    CHECK_INT(config.adapter, CONFIG_ADAPTER_LORA);
    CHECK_INT(config.lora_r, 8);
    CHECK_INT(config.lora_alpha, 8);
    CHECK(config.learning_rate == 1e-4 && config.num_epochs == 1 && config.lora_dropout == 0);
    CHECK_INT(config.sequence_len, 512);
    CHECK_INT(config.eval_sequence_len, 512);
    CHECK_INT(config.max_steps, CONFIG_UNSET);
    CHECK_INT(config.seed, 42);
    CHECK_INT(config.save_total_limit, 4);
    CHECK_INT(config.micro_batch_size, 1);
    CHECK_INT(config.gradient_accumulation_steps, 1);
    CHECK(config.adam_beta1 == 0.9 && config.adam_beta2 == 0.999 && config.adam_epsilon == 1e-8);
    CHECK(config.max_grad_norm == 1 && config.weight_decay == 0 && config.warmup_ratio == CONFIG_UNSET);
    CHECK_INT(config.lr_scheduler, CONFIG_LR_COSINE);
    CHECK_INT(config.precision, CONFIG_PRECISION_AUTO);
    CHECK_INT(config.excess_length_strategy, CONFIG_EXCESS_DROP);
    CHECK_INT(config.save_when.kind, CONFIG_WHEN_EPOCH);
    CHECK_INT(config.eval_when.kind, CONFIG_WHEN_NEVER);
    CHECK(config.shuffle_merged_datasets && !config.sample_packing && !config.load_in_4bit);
    CHECK_STR(config.output_dir, "./model-out");
    CHECK_STR(config.chat_template, "tokenizer_default");
    CHECK_STR(config.dynamic_checkpoint.trigger_file_path, "axolotl_checkpoint.save");
    CHECK_INT(config.notices.count, 0);
    const struct dataset_config *d = &config.datasets.items[0];
    CHECK_INT(config.datasets.count, 1);
    CHECK_INT(d->type, CONFIG_DATA_CHAT);
    CHECK_INT(d->line, 6);
    CHECK_STR(d->path, "rows.jsonl");
    CHECK_STR(d->field_messages, "messages");
    CHECK_STR(d->message_property_mappings.role, "role");
    CHECK_STR(d->chat_template, "tokenizer_default");
    CHECK_INT(d->roles.count, 6);
    CHECK_STR(d->roles.from[0], "human");
    CHECK_STR(d->roles.to[0], "user");
    CHECK_INT(d->roles_to_train.count, 1);
    CHECK_INT(d->train_on_eot, CONFIG_ON_TURN);
}

TEST(required_keys) {
    refused("", "c.yml: base_model is required");
    refused("", "c.yml: learning_rate is required");
    refused("", "c.yml: datasets is required");
    refused("", "c.yml: adapter is required: lora or qlora; without an adapter all weights");
    refused("", "c.yml: no module to adapt");
    refused("base_model:\nadapter: ''\n", "base_model is required");
    refused("- 1\n", "c.yml:1: a config is a map of keys, not a list");
    refused("text\n", "not one value");
}

TEST(unknown_keys) {
    REFUSED("lora_rr: 4\n", "c.yml:8: unknown key 'lora_rr'; did you mean 'lora_r'?");
    REFUSED("\n\nsampel_packing: true\n", "c.yml:10: unknown key 'sampel_packing'; did you mean 'sample_packing'?");
    REFUSED("completely_else_thing: 1\n", "c.yml:8: unknown key 'completely_else_thing'; graft help");
    REFUSED("dynamic_checkpoint:\n  enable: true\n", "c.yml:9: unknown key 'dynamic_checkpoint.enable'; did you mean");
    REFUSED("field_messages: x\n", "it belongs into an entry of datasets");
    REFUSED("test_datasets:\n  - path: x\n    feild_messages: y\n",
            "c.yml:10: unknown key 'test_datasets.0.feild_messages'; did you mean 'field_messages'?");
    REFUSED("test_datasets:\n  - path: x\n    sequence_len: 5\n", "it belongs to the top level");
    REFUSED("dynamic_checkpoint.enabled: true\n", "unknown key 'dynamic_checkpoint.enabled'");
    REFUSED("\"lora_r\\u001b[31m\": 1\n", "unknown key 'lora_r?[31m'");
}

TEST(wrong_types) {
    REFUSED("lora_r: abc\n", "c.yml:8: lora_r: expected a whole number from 1 to 1024, got 'abc'");
    REFUSED("lora_r: 4.5\n", "lora_r: expected a whole number");
    REFUSED("lora_r: \"4\"\n", "lora_r: '4' is quoted text; remove the quotes");
    REFUSED("lora_r: [4]\n", "got a list");
    REFUSED("lora_r: true\n", "got 'true'");
    REFUSED("lora_r: 4294967297\n", "from 1 to 1024, got '4294967297'");
    REFUSED("lora_r: 99999999999999999999999\n", "lora_r: expected");
    REFUSED("sample_packing: yes\n", "c.yml:8: sample_packing: 'yes' is no bool in YAML 1.2; write true");
    REFUSED("sample_packing: off\n", "write false");
    REFUSED("sample_packing: \"true\"\n", "sample_packing: 'true' is no bool in YAML 1.2; write true");
    REFUSED("sample_packing: 1\n", "write true");
    REFUSED("sample_packing: maybe\n", "expected true or false, got 'maybe'");
    REFUSED("weight_decay: .inf\n", "infinity and NaN are not allowed");
    REFUSED("weight_decay: .nan\n", "infinity and NaN are not allowed");
    REFUSED("weight_decay: 1e999\n", "weight_decay: expected a number");
    REFUSED("output_dir: true\n", "output_dir: expected text");
    REFUSED("output_dir: {a: b}\n", "output_dir: expected text, got a map");
    REFUSED("output_dir: .inf\noutput_dirr: x\n", "unknown key 'output_dirr'");
    REFUSED("lr_scheduler: cosin\n", "did you mean 'cosine'?");
    REFUSED("lora_target_modules: {a: b}\n", "lora_target_modules: expected a list of module names");
    REFUSED("lora_target_modules: [a, [b]]\n", "expected text, got a list");
    REFUSED("peft_layers_to_transform: [0, x]\n", "peft_layers_to_transform: expected a whole number from 0 to 4095");
    REFUSED("peft_layers_to_transform: 3\n", "expected a list of whole numbers");
    REFUSED("lint_waive: short\n", "expected a list of strings");
    REFUSED("dynamic_checkpoint: true\n", "dynamic_checkpoint: expected a map");
    REFUSED("test_datasets: rows.jsonl\n", "test_datasets: expected a list of entries");
    REFUSED("test_datasets: [rows.jsonl]\n", "test_datasets.0: expected a map with path and type");
    REFUSED("test_datasets:\n  - type: alpaca\n", "c.yml:9: test_datasets.0.path is required");
    REFUSED("test_datasets:\n  - path: x\n    roles: {user: [a], assistant: [a]}\n", "role 'a' is given twice");
    REFUSED("test_datasets:\n  - path: x\n    roles_to_train: []\n", "at least one name");
    REFUSED("test_datasets:\n  - path: x\n    type: {field_output: y}\n",
            "test_datasets.0.type: expected text, got a map");
}

// Both ends of each range: the last value inside and the first one outside.
TEST(ranges) {
    static const struct {
        const char *key, *inside[2], *outside[2];
    } cases[] = {
        {"lora_r", {"1", "1024"}, {"0", "1025"}},
        {"lora_alpha", {"1", "65536"}, {"0", "65537"}},
        {"lora_dropout", {"0", "0.999"}, {"-0.01", "1"}},
        {"learning_rate", {"0", "100"}, {"-1e-9", "100.1"}},
        {"num_epochs", {"1e-9", "1e6"}, {"0", "1e7"}},
        {"max_steps", {"1", "1099511627776"}, {"0", "1099511627777"}},
        {"sequence_len", {"8", "1048576"}, {"7", "1048577"}},
        {"micro_batch_size", {"1", "65536"}, {"0", "65537"}},
        {"warmup_ratio", {"0", "1"}, {"-0.1", "1.01"}},
        {"warmup_steps", {"0", "5"}, {"-1", "0.5"}},
        {"adam_beta2", {"0", "0.9999"}, {"-0.1", "1"}},
        {"adam_epsilon", {"1e-30", "1"}, {"0", "2"}},
        {"seed", {"0", "9007199254740992"}, {"-1", "9007199254740994"}},
        {"threads", {"0", "1024"}, {"-1", "1025"}},
        {"neftune_noise_alpha", {"1e-3", "10"}, {"0", "-5"}},
        {"save_total_limit", {"1", "9"}, {"0", "-1"}},
        {"val_set_size", {"0", "100"}, {"-0.1", "1.5"}},
        {"generation_top_p", {"0.01", "1"}, {"0", "1.1"}},
        {"save_steps", {"0.25", "100"}, {"-1", "2.5"}},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        for (int k = 0; k < 2; k++) {
            char override[80];
            const char *const overrides[] = {override};
            snprintf(override, sizeof override, "%s=%s", cases[i].key, cases[i].inside[k]);
            CHECK_MSG(parse(MINIMAL, 1, overrides) == 0, "%s: %s", override, err.text);
            snprintf(override, sizeof override, "%s=%s", cases[i].key, cases[i].outside[k]);
            CHECK_MSG(parse(MINIMAL, 1, overrides) == -1 && strstr(err.text, cases[i].key), "accepted %s", override);
        }
    }
    REFUSED("micro_batch_size: 65536\nsequence_len: 32768\neval_batch_size: 1\n", "more than 2^31 tokens");
    REFUSED("eval_batch_size: 65536\neval_sequence_len: 32768\n", "more than 2^31 tokens");
    ACCEPTED("micro_batch_size: 65535\nsequence_len: 32768\n");
}

TEST(all_problems_at_once) {
    parse(MINIMAL "lora_rr: 4\nlora_dropout: 2\nsample_packing: yes\nrl: dpo\nval_set_size: 0.1\ntest_datasets: [x]\n",
          0, NULL);
    static const char *const wanted[] = {"c.yml:8: unknown key 'lora_rr'", "c.yml:9: lora_dropout:",
                                         "c.yml:10: sample_packing:", "c.yml:11: rl: known key, not in this version",
                                         "c.yml:13: test_datasets.0:"};
    for (size_t i = 0; i < COUNT_OF(wanted); i++) {
        CHECK_MSG(strstr(text_str(&report), wanted[i]), "the report lacks line %zu", i);
        CHECK_MSG(strstr(err.text, wanted[i]), "the error text lacks line %zu", i);
    }
    CHECK(strncmp(err.text, "5 errors: c.yml:8: ", 19) == 0);
    struct text many = {0};
    text_add(&many, MINIMAL);
    for (int i = 0; i < 9000; i++) text_printf(&many, "unknown_key_number_%d: 1\n", i);
    double start = clock_now();
    CHECK_INT(parse(text_str(&many), 0, NULL), -1);
    CHECK_MSG(clock_now() - start < 1, "%.2f s for 9000 unknown keys", clock_now() - start);
    CHECK(strncmp(err.text, "9000 errors: ", 13) == 0 && strstr(err.text, "; and 89"));
    CHECK(strstr(text_str(&report), "c.yml: and 8900 more\n"));
    int lines = 0;
    for (const char *p = text_str(&report); *p; p++) lines += *p == '\n';
    CHECK_INT(lines, 101);
    text_free(&many);
}

TEST(empty_values_mean_unset) {
    ACCEPTED("lora_model_dir:\nlora_dropout: null\nseed: ~\nwandb_project:\nspecial_tokens:\nrl:\nevals_per_epoch:\n"
             "max_steps: null\nchat_template:\noutput_dir: ''\nlora_target_modules:\nsample_packing:\n");
    CHECK(!config.lora_model_dir);
    CHECK_INT(config.seed, 42);
    CHECK_STR(config.output_dir, "./model-out");
    CHECK_INT(config.notices.count, 0);
}

TEST(numbers_in_quotes) {
    ACCEPTED("weight_decay: \"1e-2\"\nwarmup_ratio: '0.1'\n");
    CHECK(config.weight_decay == 0.01 && config.warmup_ratio == 0.1);
    ACCEPTED("output_dir: 2024\nwandb_name: 12\n");
    CHECK_STR(config.output_dir, "2024");
}

TEST(overrides) {
    static const char *const good[] = {"lora_r=4",
                                       "lora_r=16",
                                       "learning_rate=2e-5",
                                       "lora_target_modules=[q_proj, 'v_proj']",
                                       "datasets.0.path=a b: c.jsonl",
                                       "datasets.1.path=second.jsonl",
                                       "datasets.1.roles={user: [x]}",
                                       "dynamic_checkpoint.enabled=true",
                                       "seed=",
                                       "output_dir=run #1",
                                       "special_tokens.pad_token=<pad>",
                                       "lr_scheduler_kwargs={num_cycles: 2}"};
    CHECK_MSG(parse(MINIMAL "seed: 7\nlora_r: 2\n", COUNT_OF(good), good) == 0, "%s", text_str(&report));
    CHECK_INT(config.lora_r, 16);
    CHECK(config.learning_rate == 2e-5);
    CHECK_INT(config.lora_target_modules.names.count, 2);
    CHECK_STR(config.lora_target_modules.names.items[1], "v_proj");
    CHECK_STR(config.datasets.items[0].path, "a b: c.jsonl");
    CHECK_INT(config.datasets.items[0].type, CONFIG_DATA_CHAT);
    CHECK_STR(config.datasets.items[1].path, "second.jsonl");
    CHECK_INT(config.datasets.items[1].type, CONFIG_DATA_TOKENS);
    CHECK_INT(config.datasets.items[1].roles.count, 1);
    CHECK(config.dynamic_checkpoint.enabled && config.lr_scheduler_kwargs.num_cycles == 2);
    CHECK_INT(config.seed, 42);
    CHECK_STR(config.output_dir, "run #1");
    CHECK(noticed("special_tokens.pad_token"));

    static const struct {
        const char *override, *want;
    } bad[] = {
        {"lora_rr=4", "override 'lora_rr=4': unknown key 'lora_rr'; did you mean 'lora_r'?"},
        {"lora_r=0", "override 'lora_r=0': lora_r: expected"},
        {"lora_r", "override 'lora_r': expected key=value"},
        {"=4", "override '=4': expected key=value"},
        {"lora_r..x=4", "expected key=value"},
        {"datasets.5.path=x", "the list has only 1 entries"},
        {"datasets.x.path=x", "'x' is not a number"},
        {"lora_target_linear.x=1", "'lora_target_linear' has no part 'x': it is 'true'"},
        {"lora_target_modules=[q_proj", "override 'lora_target_modules=[q_proj': did not find"},
        {"output_dir=\xff", "not clean UTF-8"},
        {"a.b.c.d.e.f.g.h.i.j.k.l.m.n.o.p.q.r.s.t.u.v.w.x.y.z.a.b.c.d.e.f.g.h=1", "expected key=value"},
    };
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        const char *const one[] = {bad[i].override};
        CHECK_MSG(parse(MINIMAL, 1, one) == -1, "accepted %s", bad[i].override);
        CHECK_MSG(strstr(text_str(&report), bad[i].want), "\"%s\" lacks \"%s\"", text_str(&report), bad[i].want);
    }
    static const char *const alone[] = {"base_model=b", "adapter=lora", "learning_rate=1e-4", "lora_target_linear=true",
                                        "datasets.0.path=d"};
    CHECK_MSG(parse("", COUNT_OF(alone), alone) == 0, "%s", text_str(&report));
    static const char *const alias[] = {"eval_strategy=no"};
    CHECK_MSG(parse(MINIMAL "evaluation_strategy: epoch\nval_set_size: 3\n", 1, alias) == 0, "%s", text_str(&report));
    CHECK_INT(config.eval_strategy, CONFIG_STRATEGY_NO);
}

TEST(adapter_rules) {
    refused("base_model: b\nlearning_rate: 1e-4\nlora_target_linear: true\ndatasets: [{path: d}]\n",
            "adapter is required");
    REFUSED("lora_target_modules: []\nlora_target_linear: false\n", "duplicate key");
    static const char *const off[] = {"lora_target_linear=false", "lora_target_modules=[]"};
    CHECK(parse(MINIMAL, 1, off) == -1 && strstr(err.text, "no module to adapt"));
    CHECK(parse(MINIMAL, 2, off) == -1 && strstr(err.text, "lora_target_modules: no names"));
    static const char *const kinds[] = {"adapter=qlora", "load_in_4bit=true"};
    CHECK(parse(MINIMAL, 1, kinds) == 0 && config.adapter == CONFIG_ADAPTER_QLORA && config.base_must_be_quantised);
    CHECK(parse(MINIMAL, 2, kinds) == 0 && !config.base_must_be_quantised);
    ACCEPTED("");
    CHECK(!config.base_must_be_quantised);
    ACCEPTED("lora_target_modules: all-linear\n");
    CHECK(config.lora_target_linear && !config.lora_target_modules.regex);
    ACCEPTED("lora_target_modules: 'model.layers.[\\d]+.(mlp|self_attn).(up|q)_proj'\n");
    CHECK_STR(config.lora_target_modules.regex, "model.layers.[\\d]+.(mlp|self_attn).(up|q)_proj");
    ACCEPTED("lora_model_dir: old\n");
    CHECK_INT(config.lora_r, CONFIG_UNSET);
    ACCEPTED("peft_init_lora_weights: false\npeft_layers_to_transform: [0, 0x3]\npeft_use_rslora: true\n");
    CHECK_INT(config.peft_init_lora_weights, CONFIG_INIT_RANDOM);
    CHECK(config.peft_layers_to_transform.count == 2 && config.peft_layers_to_transform.items[1] == 3);
    REFUSED("peft_init_lora_weights: olora\n", "peft_init_lora_weights: 'olora' is not in this version yet");
    ACCEPTED("peft_init_lora_weights: pissa_niter_16\nmodel_config: {output_router_logits: true}\n");
    CHECK_INT(config.peft_init_lora_weights, CONFIG_INIT_PISSA + 16);
    CHECK_INT(config.model_config.output_router_logits, CONFIG_TRUE);
    REFUSED("peft_init_lora_weights: pissa\npeft_use_dora: true\n", "pissa together with peft_use_dora");
    static const char *const llama[] = {"adapter=llama-adapter"};
    CHECK(parse(MINIMAL, 1, llama) == -1 && strstr(err.text, "'llama-adapter' is refused"));
}

TEST(batch_and_schedule_rules) {
    REFUSED("batch_size: 8\ngradient_accumulation_steps: 2\n", "c.yml:8: batch_size and gradient_accumulation_steps");
    REFUSED("batch_size: 7\nmicro_batch_size: 2\n", "no multiple");
    ACCEPTED("batch_size: 8\nmicro_batch_size: 2\n");
    CHECK_INT(config.gradient_accumulation_steps, 4);
    CHECK_INT(config.eval_batch_size, 2);
    REFUSED("warmup_steps: 10\nwarmup_ratio: 0.1\n", "c.yml:9: warmup_steps and warmup_ratio exclude each other");
    ACCEPTED("warmup_steps: 0\nwarmup_ratio: 0.1\n");
    CHECK_INT(config.warmup_steps, CONFIG_UNSET);
    REFUSED("lr_scheduler: linear\nlr_scheduler_kwargs: {power: 2}\n",
            "lr_scheduler_kwargs.power: this schedule has no");
    ACCEPTED("lr_scheduler: polynomial\nlr_scheduler_kwargs: {power: 2, lr_end: 0}\n");
    CHECK(config.lr_scheduler_kwargs.power == 2 && config.lr_scheduler_kwargs.num_cycles == CONFIG_UNSET);
    REFUSED("lr_scheduler: cosine_with_min_lr\n", "use cosine with cosine_min_lr_ratio");
    ACCEPTED("lr_scheduler: linear\ncosine_min_lr_ratio: 0.1\n");
    CHECK(noticed("cosine_min_lr_ratio has no effect with this lr_scheduler"));
    ACCEPTED("optimizer: paged_adamw_8bit\n");
    CHECK(noticed("optimizer: paged_adamw_8bit runs as fp32 AdamW"));
    ACCEPTED("optimizer: adamw_torch\n");
    CHECK_INT(config.notices.count, 0);
    REFUSED("optimizer: muon\n", "optimizer: 'muon' is not in this version yet");
    REFUSED("optimizer: adamw_troch\n", "did you mean 'adamw_torch'?");
    ACCEPTED("gradient_checkpointing: auto\n");
    CHECK_INT(config.gradient_checkpointing, CONFIG_AUTO);
    REFUSED("gradient_checkpointing: offload\n",
            "gradient_checkpointing: 'offload' is not in this version yet; use true");
}

TEST(device_rules) {
    ACCEPTED("device: cuda\ngpu_memory_limit: 20GiB\n");
    CHECK_INT(config.device, CONFIG_DEVICE_CUDA);
    CHECK(config.gpu_memory_bytes == (uint64_t)20 << 30);
    ACCEPTED("gpu_memory_limit: 16\n");
    CHECK(config.gpu_memory_bytes == 16000000000);
    ACCEPTED("gpu_memory_limit: 1.5 MiB\n");
    CHECK(config.gpu_memory_bytes == 3 << 19);
    ACCEPTED("");
    CHECK(config.gpu_memory_bytes == 0);
    REFUSED("gpu_memory_limit: lots\n", "gpu_memory_limit: 'lots' is no amount; write 20GiB or 800MiB");
    REFUSED("gpu_memory_limit: 20 parsecs\n", "is no amount");
    REFUSED("gpu_memory_limit: 0GiB\n", "is no amount");
}

TEST(precision_rules) {
    static const struct {
        const char *text;
        enum config_precision want;
    } cases[] = {
        {"bf16: auto\n", CONFIG_PRECISION_AUTO},
        {"bf16: true\n", CONFIG_PRECISION_BF16},
        {"bf16: false\n", CONFIG_PRECISION_FP32},
        {"bfloat16: true\n", CONFIG_PRECISION_BF16},
        {"fp16: true\n", CONFIG_PRECISION_HALF},
        {"float16: true\nbf16: false\n", CONFIG_PRECISION_HALF},
        {"fp16: true\nbf16: true\n", CONFIG_PRECISION_BF16},
        {"float32: true\nbf16: true\n", CONFIG_PRECISION_FP32},
        {"fp16:\nbf16: auto\n", CONFIG_PRECISION_AUTO},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        char text[300];
        snprintf(text, sizeof text, "%s%s", MINIMAL, cases[i].text);
        CHECK_MSG(parse(text, 0, NULL) == 0 && config.precision == cases[i].want, "%s", cases[i].text);
        CHECK(noticed("fp32 on the CPU") == (cases[i].want == CONFIG_PRECISION_HALF));
    }
}

static void check_when(const char *tail, struct config_when eval, struct config_when save) {
    char text[400];
    snprintf(text, sizeof text, "%s%s", MINIMAL, tail);
    CHECK_MSG(parse(text, 0, NULL) == 0, "%s: %s", tail, text_str(&report));
    CHECK_MSG(config.eval_when.kind == eval.kind && config.save_when.kind == save.kind, "%s", tail);
    CHECK_NEAR(config.eval_when.value, eval.value, 1e-15);
    CHECK_NEAR(config.save_when.value, save.value, 1e-15);
    CHECK(config.eval_at_start == (eval.kind != CONFIG_WHEN_NEVER));
}

TEST(when_to_evaluate_and_save) {
    const struct config_when never = {CONFIG_WHEN_NEVER, 0}, epoch = {CONFIG_WHEN_EPOCH, 0};
    const struct config_when tenth = {CONFIG_WHEN_FRACTION, 0.1}, eighth = {CONFIG_WHEN_FRACTION, 0.125};
    const struct config_when ten = {CONFIG_WHEN_STEPS, 10};
    check_when("val_set_size: 0.1\n", never, epoch);
    check_when("evals_per_epoch: 4\n", never, epoch); // no data: ignored, as many files have it
    check_when("val_set_size: 5\nevals_per_epoch: 4\nnum_epochs: 2\nsaves_per_epoch: 4\n", eighth, eighth);
    check_when("val_set_size: 5\nevals_per_epoch: 1\nsaves_per_epoch: 1\n", epoch, epoch);
    check_when("val_set_size: 5\neval_steps: 10\nsave_steps: 0.1\n", ten, tenth);
    check_when("val_set_size: 5\neval_strategy: steps\neval_steps: 0.1\nsave_strategy: 'no'\n", tenth, never);
    check_when("val_set_size: 5\neval_strategy: epoch\nsave_strategy: no\n", epoch, never);
    check_when("val_set_size: 5\neval_strategy: no\nsave_strategy: epoch\nsaves_per_epoch: 1\n", never, epoch);
    check_when("test_datasets: [{path: t}]\nval_set_size: 0.0\neval_steps: 10\n", ten, epoch);
    check_when("evals_per_epoch: 0\nsaves_per_epoch: 0\nval_set_size: 1\n", never, epoch);
    REFUSED("val_set_size: 1\nevals_per_epoch: 1\neval_steps: 5\n",
            "evals_per_epoch and eval_steps exclude each other");
    REFUSED("saves_per_epoch: 1\nsave_steps: 5\n", "saves_per_epoch and save_steps exclude each other");
    REFUSED("val_set_size: 1\neval_strategy: epoch\neval_steps: 5\n", "eval_strategy contradicts eval_steps");
    REFUSED("val_set_size: 1\neval_strategy: epoch\nevals_per_epoch: 2\n", "eval_strategy contradicts evals_per_epoch");
    REFUSED("save_strategy: steps\n", "save_strategy: steps needs save_steps");
    REFUSED("save_strategy: best\n", "use load_best_model_at_end");
    REFUSED("eval_steps: 5\n", "c.yml:8: eval_steps without evaluation data");
    REFUSED("eval_strategy: epoch\n", "eval_strategy without evaluation data");
    REFUSED("early_stopping_patience: 3\n", "early_stopping_patience needs evaluations");
    REFUSED("val_set_size: 1\nload_best_model_at_end: true\n", "load_best_model_at_end needs evaluations");
    REFUSED("val_set_size: 0.1\ntest_datasets: [{path: t}]\n", "val_set_size and test_datasets exclude each other");
    REFUSED("dynamic_checkpoint: {enabled: true, trigger_file_path: ../x}\n", "not a path");
}

TEST(data_rules) {
    ACCEPTED(
        "chat_template: chatml\nsample_packing: true\ntest_datasets:\n  - path: t.jsonl\n    type: alpaca\n"
        "    ds_type: json\n    split: train\n    field_instruction: q\n    train_on_eos: none\n"
        "  - path: u.jsonl\n    type: chat_template\n    chat_template: tokenizer_default\n"
        "    message_property_mappings: {role: from, content: value}\n    roles: {assistant: [bot, ai], user: me}\n"
        "    roles_to_train: [assistant, tool]\n    train_on_eot: last\n");
    const struct dataset_config *d = config.test_datasets.items;
    CHECK_INT(config.test_datasets.count, 2);
    CHECK_STR(d[0].chat_template, "chatml");
    CHECK_STR(d[0].field_instruction, "q");
    CHECK(d[0].train_on_eos == CONFIG_ON_NONE && d[0].train_on_eot == CONFIG_ON_NONE);
    CHECK_STR(d[1].chat_template, "tokenizer_default");
    CHECK_STR(d[1].message_property_mappings.content, "value");
    CHECK_INT(d[1].roles.count, 3);
    CHECK_STR(d[1].roles.from[2], "me");
    CHECK_STR(d[1].roles.to[2], "user");
    CHECK_INT(d[1].roles_to_train.count, 2);
    CHECK(d[1].train_on_eos == CONFIG_ON_TURN && d[1].train_on_eot == CONFIG_ON_LAST);
    CHECK(config.eval_sample_packing && config.pad_to_sequence_len);
    ACCEPTED("sample_packing: true\neval_sample_packing: false\npad_to_sequence_len: false\neval_sequence_len: 64\n");
    CHECK(!config.eval_sample_packing && !config.pad_to_sequence_len);
    CHECK_INT(config.eval_sequence_len, 64);
    REFUSED("test_datasets: [{path: t, type: sharegpt}]\n", "'sharegpt' is refused; axolotl removed it");
    REFUSED("test_datasets: [{path: t, type: completion}]\n", "'completion' is not in this version yet");
    REFUSED("test_datasets: [{path: t, ds_type: parquet}]\n", "'parquet' is not in this version yet");
    REFUSED("test_datasets: [{path: t, split: 'train[:20%]'}]\n",
            "test_datasets.0.split: known key, not in this version");
    REFUSED("test_datasets: [{path: t, message_field_role: from}]\n",
            "refused (axolotl's old name; write message_property_mappings");
    REFUSED("chat_template: llama3\n",
            "chat_template: 'llama3' is not in this version yet; there are tokenizer_default, chatml");
    REFUSED("test_datasets: [{path: t, roles: [user]}]\n", "expected a map such as {user: [human]");
    REFUSED("test_datasets: [{path: t, roles: {}}]\n", "expected at least one role, got an empty map");
    REFUSED("test_datasets: [{path: t, roles: {user: [{}]}}]\n", "roles: expected text, got an empty map");
    ACCEPTED("group_by_length: true\nsample_packing: true\n");
    CHECK(noticed("group_by_length has no effect with sample_packing"));
    REFUSED("min_sample_len: 600\n", "min_sample_len is larger than sequence_len");
}

TEST(counts_of_entries) {
    for (int over = 0; over < 2; over++) {
        struct text t = {0};
        text_add(&t, MINIMAL "test_datasets:\n");
        for (int i = 0; i < 1000 + over; i++) text_add(&t, "- path: x\n");
        CHECK_INT(parse(text_str(&t), 0, NULL), -over);
        if (over) CHECK(strstr(err.text, "c.yml:8: test_datasets: more than 1000 entries"));
        text_clear(&t);
        text_add(&t, MINIMAL "test_datasets:\n- path: x\n  roles:\n    user: [0");
        for (int i = 1; i < 1000 + over; i++) text_printf(&t, ", %d", i);
        text_add(&t, "]\n");
        CHECK_INT(parse(text_str(&t), 0, NULL), -over);
        if (over) CHECK(strstr(err.text, "test_datasets.0.roles: more than 1000 roles"));
        text_free(&t);
    }
}

// What does not work: harmless values pass, values that ask for something do not.
TEST(statuses) {
    ACCEPTED("rl:\nload_in_8bit: false\ngptq: false\npeft_use_dora: false\ndeepspeed:\nfsdp: []\nfsdp_config: {}\n"
             "context_parallel_size: 1\nfit: off\nnondeterministic: false\nsample_packing_bin_size: 200\n"
             "loraplus_lr_embedding: 0.000001\nunfrozen_parameters:\nactivation_offloading: false\nplugins: []\n"
             "max_packed_sequence_len:\nadded_tokens_overrides: {}\nembedding_lr: 0\n");
    CHECK_INT(config.notices.count, 0);
    REFUSED("tokenizer_config: x\n", "c.yml:8: tokenizer_config: known key, not in this version yet");
    REFUSED("load_in_8bit: true\nload_in_4bit: true\n", "exclude each other");
    REFUSED("context_parallel_size: 2\n", "context_parallel_size: known key");
    REFUSED("sample_packing_bin_size: 100\n", "sample_packing_bin_size: known key");
    REFUSED("unfrozen_parameters: [lm_head]\n",
            "unfrozen_parameters: refused (Training weights of the base itself; only adapters are trained); remove");
    REFUSED("rl: dpo\n", "rl: known key, not in this version yet");
    REFUSED("rl: grpo\n", "rl: refused (reinforcement learning with generation");
    REFUSED("overrides_of_model_config:\n  rope_scaling: {type: yarn}\n",
            "overrides_of_model_config.rope_scaling: known key");
    REFUSED("peft: {loftq_config: {loftq_bits: 4}}\n", "c.yml:8: peft: known key");
    REFUSED("special_tokens: {eos_token: <x>}\n", "special_tokens.eos_token: known key");
    REFUSED("fsdp_config: {fsdp_offload_params: true, fsdp_sharding_strategy: FULL_SHARD}\n", "fsdp_config: known key");
    CHECK_MSG(strstr(text_str(&report), "\n") == text_str(&report) + report.length - 1, "one line: %s",
              text_str(&report));
    REFUSED("fsdp_config: {offload_parms: false}\n",
            "unknown key 'fsdp_config.offload_parms'; did you mean 'offload_params'?");
    REFUSED("model_type: A\ntype_of_model: B\n", "c.yml:9: type_of_model: given twice, also as 'model_type'");
    ACCEPTED(
        "tf32: true\nattn_implementation: flash_attention_2\nwandb_project: p\nwandb_name:\nstrict: false\n"
        "plugins: [axolotl.integrations.liger.LigerPlugin]\ngradient_checkpointing_kwargs: {use_reentrant: false}\n");
    CHECK_INT(config.notices.count, 1);
    CHECK_STR(config.notices.items[0], "no effect here: tf32, attn_implementation, wandb_project, plugins");
    REFUSED("plugins: [my.own.Plugin]\n", "plugins: 'my.own.Plugin' is not in this version");
}

TEST(json_config) {
    accepted("{\"base_model\": \"b.gguf\", \"adapter\": \"lora\", \"lora_target_modules\": [\"q_proj\"],\n"
             "\t\"learning_rate\": 2e-4, \"lora_dropout\": 0.05, \"sample_packing\": true, \"wandb_name\": null,\n"
             "\t\"datasets\": [{\"path\": \"d.jsonl\", \"type\": \"alpaca\"}]}\n");
    CHECK(config.learning_rate == 2e-4 && config.sample_packing);
    refused("{\n\"base_model\": \"b.gguf\",\n\"adapter\": \"lroa\"\n}",
            "c.yml:3: adapter: expected one of lora, qlora");
}

TEST(effective_text_loads_back) {
    static const char *const texts[] = {
        MINIMAL,
        MINIMAL "seed: 9007199254740992\nlora_target_modules: \"a\\\"b\\\\c\\u00e9\\U0001F600\\t\\a\"\nbf16: false\n"
                "dynamic_checkpoint: {enabled: true}\nlr_scheduler_kwargs: {num_cycles: "
                "0.12345678901234567}\nlint_waive: [x, y]\n"
                "peft_layers_to_transform: [1, 2]\nval_set_size: 0.1\neval_steps: 0.3\noptimizer: adamw_8bit\n"
                "peft_init_lora_weights: gaussian\nbatch_size: 3\ntrain_on_inputs: true\n",
    };
    for (size_t i = 0; i < COUNT_OF(texts); i++) {
        struct text first = {0}, second = {0};
        accepted(texts[i]);
        config_write_effective(&config, &first);
        accepted(text_str(&first));
        config_write_effective(&config, &second);
        CHECK_STR(text_str(&second), text_str(&first));
        CHECK(strstr(text_str(&first), "learning_rate: 0.0001"));
        CHECK(strstr(text_str(&first), "  path: \"rows.jsonl\"") || strstr(text_str(&first), "- path: \"rows.jsonl\""));
        text_free(&first);
        text_free(&second);
    }
    CHECK(config.lr_scheduler_kwargs.num_cycles == 0.12345678901234567);
    CHECK_STR(config.lora_target_modules.regex, "a\"b\\c\xc3\xa9\xf0\x9f\x98\x80\t\a");
}

// Typical files of axolotl users.
static const char llama_qlora[] =
    "base_model: models/Llama-3.2-1B.gguf\nload_in_8bit: false\nload_in_4bit: true\ndatasets:\n  - path: gpt4.jsonl\n"
    "    type: alpaca\ndataset_prepared_path: last_run_prepared\nval_set_size: 0.1\noutput_dir: ./outputs/qlora-out\n"
    "adapter: qlora\nlora_model_dir:\nsequence_len: 2048\nsample_packing: true\neval_sample_packing: true\nlora_r: 32\n"
    "lora_alpha: 16\nlora_dropout: 0.05\nlora_target_modules:\n  - gate_proj\n  - down_proj\n  - up_proj\n  - q_proj\n"
    "  - v_proj\n  - k_proj\n  - o_proj\nwandb_project:\nwandb_entity:\nwandb_watch:\nwandb_name:\nwandb_log_model:\n"
    "gradient_accumulation_steps: 4\nmicro_batch_size: 2\nnum_epochs: 1\noptimizer: adamw_bnb_8bit\n"
    "lr_scheduler: cosine\nlearning_rate: 0.0002\nbf16: auto\ntf32: false\ngradient_checkpointing: true\n"
    "resume_from_checkpoint:\nlogging_steps: 1\nattn_implementation: flash_attention_2\nloss_watchdog_threshold: 5.0\n"
    "loss_watchdog_patience: 3\nwarmup_ratio: 0.1\nevals_per_epoch: 4\nsaves_per_epoch: 1\nweight_decay: 0.0\n"
    "special_tokens:\n  pad_token: \"<|end_of_text|>\"\n";

static const char qwen_chat[] =
    "base_model: models/Qwen3-8B.gguf\nplugins:\n  - axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin\n"
    "strict: false\nchat_template: qwen3\ndatasets:\n  - path: tome.jsonl\n    type: chat_template\n"
    "    split: train[:20%]\n    field_messages: conversations\n    message_property_mappings:\n      role: from\n"
    "      content: value\nval_set_size: 0.0\noutput_dir: ./outputs/out\nsequence_len: 2048\nsample_packing: true\n"
    "load_in_4bit: true\nadapter: qlora\nlora_r: 16\nlora_alpha: 32\nlora_target_modules: [q_proj, k_proj, v_proj]\n"
    "lora_mlp_kernel: true\nlora_qkv_kernel: true\nlora_o_kernel: true\ngradient_accumulation_steps: 2\n"
    "micro_batch_size: 1\nnum_epochs: 1\noptimizer: adamw_torch_4bit\nlr_scheduler: cosine\nlearning_rate: 0.0002\n"
    "bf16: auto\ntf32: true\ngradient_checkpointing: offload\ngradient_checkpointing_kwargs:\n  use_reentrant: false\n"
    "logging_steps: 1\nwarmup_ratio: 0.1\nevals_per_epoch: 4\nsaves_per_epoch: 1\nweight_decay: 0.0\nspecial_tokens:\n";

static const char mixtral_fsdp[] =
    "base_model: models/mixtral.gguf\nmodel_type: AutoModelForCausalLM\ntokenizer_type: LlamaTokenizer\n"
    "trust_remote_code: true\nload_in_4bit: true\ndatasets:\n  - path: alpaca.jsonl\n    type: alpaca\n"
    "val_set_size: 0.02\nmodel_config:\n  output_router_logits: true\nadapter: qlora\nlora_r: 32\nlora_alpha: 16\n"
    "lora_target_linear: true\nmicro_batch_size: 2\nlearning_rate: 2e-4\nfsdp:\n  - full_shard\n  - auto_wrap\n"
    "fsdp_config:\n  fsdp_limit_all_gathers: true\n  fsdp_sync_module_states: true\n  fsdp_offload_params: true\n"
    "  fsdp_transformer_layer_cls_to_wrap: MixtralSparseMoeBlock\n  fsdp_state_dict_type: FULL_STATE_DICT\n";

static const char mistral_dpo[] =
    "base_model: models/mistral.gguf\nload_in_4bit: true\nadapter: qlora\nlora_target_linear: true\nrl: dpo\n"
    "chat_template: chatml\ndatasets:\n  - path: pairs.jsonl\n    type: chat_template.default\n"
    "    field_messages: conversation\n    field_chosen: chosen\n    field_rejected: rejected\n"
    "lora_modules_to_save:\n - embed_tokens\n - lm_head\nlearning_rate: 1e-4\nspecial_tokens:\n"
    "  bos_token: \"<|im_start|>\"\n  eos_token: \"<|im_end|>\"\n";

TEST(files_of_axolotl_users) {
    accepted(llama_qlora);
    CHECK(config.learning_rate == 2e-4 && config.lora_r == 32 && config.sequence_len == 2048);
    CHECK(config.eval_when.kind == CONFIG_WHEN_FRACTION && config.eval_when.value == 0.25);
    CHECK_INT(config.notices.count, 2);
    CHECK(noticed("optimizer: adamw_bnb_8bit runs as fp32 AdamW"));
    CHECK(noticed("no effect here: dataset_prepared_path, attn_implementation, special_tokens.pad_token"));

    static const struct {
        const char *text;
        const char *want[8]; // one line each, no others
    } cases[] = {
        {qwen_chat,
         {"c.yml:5: chat_template: 'qwen3' is not", "c.yml:9: datasets.0.split: known key",
          "c.yml:34: gradient_checkpointing: 'offload' is not"}},
        {mixtral_fsdp, {"c.yml:18: fsdp: known key", "c.yml:21: fsdp_config: known key"}},
        {mistral_dpo,
         {"c.yml:5: rl: known key", "c.yml:9: datasets.0.type: 'chat_template.default' is not",
          "c.yml:11: datasets.0.field_chosen: known", "c.yml:12: datasets.0.field_rejected: known",
          "c.yml:18: special_tokens.bos_token: known", "c.yml:19: special_tokens.eos_token: known"}},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        int lines = 0, wanted = 0;
        CHECK_INT(parse(cases[i].text, 0, NULL), -1);
        for (const char *p = text_str(&report); *p; p++) lines += *p == '\n';
        for (; wanted < 8 && cases[i].want[wanted]; wanted++)
            CHECK_MSG(strstr(text_str(&report), cases[i].want[wanted]), "lacks %s", cases[i].want[wanted]);
        CHECK_MSG(lines == wanted, "%d lines: %s", lines, text_str(&report));
    }
}

TEST(files) {
    char path[200];
    snprintf(path, sizeof path, "%s/c.yml", test_folder());
    CHECK_INT(file_replace(path, MINIMAL "lora_rr: 1\n", strlen(MINIMAL "lora_rr: 1\n"), NULL), 0);
    err = (struct error){0};
    CHECK_INT(config_load(path, 0, NULL, &config, &err), -1);
    CHECK(strncmp(err.text, path, strlen(path)) == 0 && strncmp(err.text + strlen(path), ":8: unknown key", 15) == 0);
    err = (struct error){0};
    CHECK_INT(config_load("/nonexistent/c.yml", 0, NULL, &config, &err), -1);
    CHECK_INT(err.code, STATUS_NOINPUT);
    struct text big = {0};
    text_add(&big, MINIMAL "#");
    while (big.length < 1 << 20) text_char(&big, '#');
    file_replace(path, big.data, big.length, NULL);
    err = (struct error){0};
    CHECK_MSG(config_load(path, 0, NULL, &config, &err) == 0, "%s", err.text);
    config_free(&config);
    text_char(&big, '#');
    file_replace(path, big.data, big.length, NULL);
    CHECK_INT(config_load(path, 0, NULL, &config, &err), -1);
    CHECK_INT(err.code, STATUS_CONFIG);
    text_free(&big);
}

static size_t load_recipes(const char *folder) {
    char **names = NULL;
    size_t count = 0, loaded = 0;
    CHECK_INT(file_list(folder, &names, &count, NULL), 0);
    for (size_t i = 0; i < count; i++) {
        char path[300];
        size_t length = strlen(names[i]);
        if (length < 4 || strcmp(names[i] + length - 4, ".yml") != 0) continue;
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        err = (struct error){0};
        CHECK_MSG(config_load(path, 0, NULL, &config, &err) == 0, "%s", err.text);
        CHECK_MSG(config.notices.count == 0, "%s: %s", path, config.notices.count ? config.notices.items[0] : "");
        config_free(&config);
        loaded++;
    }
    file_list_free(names, count);
    return loaded;
}

TEST(recipes_load) {
    CHECK(load_recipes("configs/recipes") >= 1);
    CHECK(load_recipes("configs/recipes/models") >= 60);
}

// Every allocation fails once, then for ever: an error, nothing left behind, no crash.
TEST(failing_allocations) {
    struct text large = {0}; // more than a few blocks of a pool, and a large map
    text_add(&large, MINIMAL "test_datasets:\n");
    for (int i = 0; i < 200; i++) text_printf(&large, "  - path: %d\n    type: alpaca\n", i);
    struct text wrong = {0};
    text_add(&wrong, MINIMAL);
    for (int i = 0; i < 100; i++) text_printf(&wrong, "lora_r%d: x\n", i);
    const char *const texts[] = {MINIMAL, llama_qlora, mistral_dpo, text_str(&large), text_str(&wrong)};
    static const char *const overrides[] = {"datasets.1.path=x", "lora_target_modules=[a, b]"};
    for (size_t t = 0; t < COUNT_OF(texts); t++) {
        for (int forever = 0; forever < 2; forever++) {
            bool failed = true;
            uint64_t k = 1;
            for (; failed && k < 100000; k++) {
                struct error e = {0};
                struct run_config c = {0};
                mem_fail_at(k, forever);
                int rc = config_parse(texts[t], strlen(texts[t]), "c.yml", 2, overrides, &c, NULL, &e);
                uint64_t calls = mem_fail_at(0, 0);
                failed = calls >= k;
                if (failed) CHECK_MSG(rc == -1 && e.code == STATUS_MEMORY, "allocation %d: %s", (int)k, e.text);
                config_free(&c);
            }
            CHECK_MSG(k > (t >= 3 ? 8 : 2) && k < 100000, "%d allocations", (int)k);
        }
    }
    text_free(&large);
    text_free(&wrong);
}

TEST_MAIN(CASE(defaults), CASE(required_keys), CASE(unknown_keys), CASE(wrong_types), CASE(ranges),
          CASE(all_problems_at_once), CASE(empty_values_mean_unset), CASE(numbers_in_quotes), CASE(overrides),
          CASE(adapter_rules), CASE(batch_and_schedule_rules), CASE(device_rules), CASE(precision_rules),
          CASE(when_to_evaluate_and_save), CASE(data_rules), CASE(counts_of_entries), CASE(statuses), CASE(json_config),
          CASE(effective_text_loads_back), CASE(files_of_axolotl_users), CASE(files), CASE(recipes_load),
          CASE(failing_allocations))
