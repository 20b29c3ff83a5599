// Rows of the key table: data sets, one data set entry, sequence and packing. See keys.h.
#include "configs/key_rows.h"

#define MEMBER(name) offsetof(struct run_config, name)

static const struct key_choice templates[] = {
    {"tokenizer_default", 0, KEY_WORKS, NULL},
    {"chatml", 0, KEY_WORKS, NULL},
    {"jinja", 0, KEY_NOT_YET, NULL},
    {"tokenizer_default_fallback_chatml", 0, KEY_NOT_YET, NULL},
    {"alpaca", 0, KEY_NOT_YET, NULL},
    {"aya", 0, KEY_NOT_YET, NULL},
    {"cohere", 0, KEY_NOT_YET, NULL},
    {"command_a", 0, KEY_NOT_YET, NULL},
    {"deepseek_v2", 0, KEY_NOT_YET, NULL},
    {"deepseek_v3", 0, KEY_NOT_YET, NULL},
    {"exaone", 0, KEY_NOT_YET, NULL},
    {"exaone4", 0, KEY_NOT_YET, NULL},
    {"falcon_h1", 0, KEY_NOT_YET, NULL},
    {"gemma", 0, KEY_NOT_YET, NULL},
    {"gemma3", 0, KEY_NOT_YET, NULL},
    {"gemma3n", 0, KEY_NOT_YET, NULL},
    {"gemma4", 0, KEY_NOT_YET, NULL},
    {"jamba", 0, KEY_NOT_YET, NULL},
    {"llama3", 0, KEY_NOT_YET, NULL},
    {"llama4", 0, KEY_NOT_YET, NULL},
    {"metharme", 0, KEY_NOT_YET, NULL},
    {"mistral_v1", 0, KEY_NOT_YET, NULL},
    {"mistral_v2v3", 0, KEY_NOT_YET, NULL},
    {"mistral_v3_tekken", 0, KEY_NOT_YET, NULL},
    {"mistral_v7_tekken", 0, KEY_NOT_YET, NULL},
    {"phi_3", 0, KEY_NOT_YET, NULL},
    {"phi_35", 0, KEY_NOT_YET, NULL},
    {"qwen_25", 0, KEY_NOT_YET, NULL},
    {"qwen3", 0, KEY_NOT_YET, NULL},
    {"qwen3_5", 0, KEY_NOT_YET, NULL},
    {"llama3_2_vision", 0, KEY_REFUSED, "images are not trained here"},
    {"llava", 0, KEY_REFUSED, "images are not trained here"},
    {"pixtral", 0, KEY_REFUSED, "images are not trained here"},
    {"qwen2_vl", 0, KEY_REFUSED, "images are not trained here"},
    {0},
};

static const struct key_choice bad_rows[] = {
    {"error", CONFIG_BAD_ROWS_ERROR, KEY_WORKS, NULL},
    {"skip", CONFIG_BAD_ROWS_SKIP, KEY_WORKS, NULL},
    {0},
};

const struct config_key keys_data[] = {
    WORKS(datasets, KEY_DATASETS, "", "Training data: a list of entries (next table). Required."),
    WORKS(test_datasets, KEY_DATASETS, "", "Evaluation data: a list of entries. Excludes val_set_size."),
    FLOAT(
        val_set_size, "0.0", 0, 1e9,
        "Rows held out for evaluation: below 1 a part of them, from 1 on a count. Chosen by the seed before packing."),
    BOOL(train_on_inputs, "false", "Train on prompts too, not only on answers."),
    BOOL(shuffle_merged_datasets, "true", "Shuffle the rows of all data sets together, anew in each epoch."),
    NOT_YET("shuffle_before_merging_datasets", KEY_BOOL, "false", "Shuffle inside each data set, keep their order."),
    ENUM(bad_rows, bad_rows, "error", "Malformed rows: `error` reports them and stops, `skip` drops and counts them."),
    WORKS(lint_waive, KEY_STRINGS, "", "Findings of `graft check` that shall not stop a run, by name."),
    STRING(chat_template, "tokenizer_default",
           "Template that turns messages into text: the model's own (`tokenizer_default`) or plain ChatML (`chatml`).",
           .choices = templates),
    NOT_YET("chat_template_jinja", KEY_STRING, "", "Your own template, as text or file."),
    NOT_YET("chat_template_kwargs", KEY_DICT, "", "Variables for the template, such as `enable_thinking`."),
    NOT_YET("eot_tokens", KEY_STRINGS, "", "Tokens that end a turn, where the template does not tell."),
    NOT_YET("default_system_message", KEY_STRING, "", "System message of rows that have none."),
    NOT_YET("dataset_exact_deduplication", KEY_BOOL, "", "Drop rows that occur twice."),
    NOT_YET("pretraining_dataset", KEY_ANY, "", "Raw text to continue pre-training on."),
    NOT_YET("streaming", KEY_BOOL, "", "Read data while training."),
    NO_EFFECT("streaming_multipack_buffer_size", KEY_INT, "10000", "Rows that are packed at a time when streaming.",
              .aliases = "pretrain_multipack_buffer_size"),
    NO_EFFECT("dataset_prepared_path", KEY_STRING, "", "Folder of tokenised copies; data is tokenised at each start."),
    NO_EFFECT("dataset_num_proc", KEY_INT, "", "Processes that prepare data; see threads.",
              .aliases = "dataset_processes"),
    NO_EFFECT("dataset_keep_in_memory", KEY_BOOL, "", "Data is always kept in memory."),
    NO_EFFECT("skip_prepare_dataset", KEY_BOOL, "false", "Data is always prepared at the start."),
    NO_EFFECT("num_dataset_shards_to_save", KEY_INT, "", "Files of the tokenised copy; there is none."),
    NOT_YET("dataset_shard_num", KEY_INT, "", "Cut the data into so many parts."),
    NOT_YET("dataset_shard_idx", KEY_INT, "", "Train on this part only."),
    NO_EFFECT("remove_unused_columns", KEY_BOOL, "", "Columns that nobody reads are never loaded."),
    NO_EFFECT("dataloader_num_workers", KEY_INT, "", "Processes that load data."),
    NO_EFFECT("dataloader_prefetch_factor", KEY_INT, "", "Batches loaded ahead."),
    NO_EFFECT("dataloader_pin_memory", KEY_BOOL, "", "Memory of the data loader."),
    NOT_YET("dataloader_drop_last", KEY_BOOL, "", "Leave out the last, smaller batch of an epoch."),
    NO_EFFECT("hf_use_auth_token", KEY_BOOL, "", "Login for data from a hub; data is read from files."),
    NOT_YET("push_dataset_to_hub", KEY_STRING, "", "Upload the tokenised data."),
};
const size_t keys_data_count = COUNT_OF(keys_data);

#undef MEMBER
#define MEMBER(name) offsetof(struct dataset_config, name)

static const struct key_choice data_types[] = {
    {"", CONFIG_DATA_TOKENS, KEY_WORKS, NULL},
    {"chat_template", CONFIG_DATA_CHAT, KEY_WORKS, NULL},
    {"alpaca", CONFIG_DATA_ALPACA, KEY_WORKS, NULL},
    {"alpaca:chat", 0, KEY_NOT_YET, NULL},
    {"alpaca:phi", 0, KEY_NOT_YET, NULL},
    {"alpaca_w_system.load_open_orca", 0, KEY_NOT_YET, NULL},
    {"completion", 0, KEY_NOT_YET, NULL},
    {"input_output", 0, KEY_NOT_YET, NULL},
    {"metharme", 0, KEY_NOT_YET, NULL},
    {"chat_template.default", 0, KEY_NOT_YET, NULL},
    {"sharegpt", 0, KEY_REFUSED, "axolotl removed it; use chat_template with message_property_mappings"},
    {0},
};

static const struct key_choice file_types[] = {
    {"json", 0, KEY_WORKS, NULL},  {"parquet", 0, KEY_NOT_YET, NULL}, {"arrow", 0, KEY_NOT_YET, NULL},
    {"csv", 0, KEY_NOT_YET, NULL}, {"text", 0, KEY_NOT_YET, NULL},    {0},
};

static const struct key_choice train_on[] = {
    {"turn", CONFIG_ON_TURN, KEY_WORKS, NULL},
    {"all", CONFIG_ON_ALL, KEY_WORKS, NULL},
    {"last", CONFIG_ON_LAST, KEY_WORKS, NULL},
    {"none", CONFIG_ON_NONE, KEY_WORKS, NULL},
    {0},
};

const struct config_key keys_dataset[] = {
    STRING(path, "", "JSONL file. Required."),
    ENUM(
        type, data_types, "",
        "What a row is: `chat_template` (messages), `alpaca` (instruction, input, output), empty (input_ids, labels)."),
    STRING(ds_type, "json", "Kind of file: JSON Lines.", .choices = file_types),
    STRING(chat_template, "", "Template of this data set. Empty: the global chat_template.", .choices = templates),
    NOT_YET("chat_template_jinja", KEY_STRING, "", "Your own template for this data set."),
    STRING(field_messages, "messages", "Column that holds the list of turns."),
    GROUP("message_property_mappings", "How the parts of a turn are called in the data."),
    STRING(message_property_mappings.role, "role", "Name of a turn's role, for instance `from`."),
    STRING(message_property_mappings.content, "content", "Name of a turn's text, for instance `value`."),
    NOT_YET("message_property_mappings.tool_calls", KEY_STRING, "tool_calls", "Name of a turn's tool calls."),
    NOT_YET("message_property_mappings.reasoning_content", KEY_STRING, "reasoning_content",
            "Name of a turn's reasoning."),
    REFUSED("message_field_role", KEY_STRING, "", "axolotl's old name; write message_property_mappings: {role: ...}."),
    REFUSED("message_field_content", KEY_STRING, "",
            "axolotl's old name; write message_property_mappings: {content: ...}."),
    STRING(field_system, "system", "Chats: column of a system message beside the turns."),
    STRING(field_instruction, "instruction", "Alpaca: column of the instruction."),
    STRING(field_input, "input", "Alpaca: column of the input."),
    STRING(field_output, "output", "Alpaca: column of the answer."),
    WORKS(roles, KEY_ROLES, "{user: [human, user], assistant: [gpt, assistant], system: [system], tool: [tool]}",
          "Roles of the template, each with the names it has in the data."),
    WORKS(roles_to_train, KEY_STRINGS, "[assistant]", "Roles whose text is trained."),
    ENUM(train_on_eos, train_on, "turn",
         "End-of-text tokens that are trained: of each trained turn, of all, of the last turn only, none."),
    ENUM(train_on_eot, train_on, "",
         "The same for end-of-turn tokens; where both are one token (ChatML), it is trained if either says so. "
         "Empty: as train_on_eos."),
    NOT_YET("message_field_training", KEY_STRING, "", "Flag inside a turn that says whether it is trained."),
    NOT_YET("message_field_training_detail", KEY_STRING, "", "Character ranges inside a turn that are trained."),
    NOT_YET("field_tools", KEY_STRING, "tools", "Column of the tool descriptions."),
    NOT_YET("field_thinking", KEY_STRING, "reasoning_content", "Name of a turn's reasoning."),
    NOT_YET("template_thinking_key", KEY_STRING, "", "What the template calls the reasoning."),
    NOT_YET("split_thinking", KEY_BOOL, "", "Cut reasoning out of the answer's text."),
    NOT_YET("drop_system_message", KEY_BOOL, "", "Leave out system turns."),
    NOT_YET("field", KEY_STRING, "text", "Column of raw text (`type: completion`)."),
    NOT_YET("field_human", KEY_STRING, "", "Old name of a column."),
    NOT_YET("field_model", KEY_STRING, "", "Old name of a column."),
    NOT_YET("field_chosen", KEY_STRING, "", "Preferred answer, for preference training."),
    NOT_YET("field_rejected", KEY_STRING, "", "Rejected answer, for preference training."),
    NOT_YET("conversation", KEY_STRING, "", "Old choice of a template."),
    NOT_YET("input_format", KEY_STRING, "", "Format of the prompt."),
    NOT_YET("input_transform", KEY_STRING, "", "Change of the rows before use."),
    NOT_YET("name", KEY_STRING, "", "Configuration of a hub data set."),
    NOT_YET("split", KEY_STRING, "", "Part of a data set, such as `train[:20%]`; a file is one part, `train`.",
            .harmless = "train"),
    NOT_YET("revision", KEY_STRING, "", "Revision of a hub data set."),
    NOT_YET("data_files", KEY_ANY, "", "Files inside a folder or hub data set."),
    NOT_YET("shards", KEY_INT, "", "Cut the data into so many parts.", .harmless = "1"),
    NOT_YET("shards_idx", KEY_INT, "", "Use this part only."),
    NO_EFFECT("preprocess_shards", KEY_INT, "", "Pieces in which the data is prepared."),
    NO_EFFECT("trust_remote_code", KEY_BOOL, "", "Code that comes with data is never run."),
    NOT_YET("logprobs_field", KEY_STRING, "", "Log-probabilities of a teacher, for distillation."),
    NOT_YET("temperature", KEY_FLOAT, "", "Temperature of a teacher, for distillation."),
};
const size_t keys_dataset_count = COUNT_OF(keys_dataset);

#undef MEMBER
#define MEMBER(name) offsetof(struct run_config, name)

static const struct key_choice excess[] = {
    {"drop", CONFIG_EXCESS_DROP, KEY_WORKS, NULL},
    {"truncate", CONFIG_EXCESS_TRUNCATE, KEY_WORKS, NULL},
    {"raise", CONFIG_EXCESS_RAISE, KEY_WORKS, NULL},
    {0},
};

const struct config_key keys_sequence[] = {
    INT(sequence_len, "512", 8, 1048576, "Longest row, in tokens; with packing also the length of a pack."),
    INT(eval_sequence_len, "", 8, 1048576, "The same for evaluation. Empty: sequence_len."),
    ENUM(excess_length_strategy, excess, "drop",
         "Longer rows: `drop` and count them, `truncate` them, or `raise` an error."),
    INT(min_sample_len, "2", 1, 1048576, "Rows with fewer tokens are dropped and counted."),
    BOOL(sample_packing, "", "Put several rows into one sequence; each still sees only itself."),
    BOOL(eval_sample_packing, "", "The same for evaluation. Empty: as sample_packing."),
    BOOL(pad_to_sequence_len, "", "Give each sequence the full length. Empty: true when packing."),
    BOOL(group_by_length, "", "Rows of similar length into one batch; less padding without packing."),
    NOT_YET("sample_packing_group_size", KEY_INT, "100000", "Rows that are packed at a time."),
    NOT_YET("sample_packing_bin_size", KEY_INT, "200", "Most rows in one pack."),
    NOT_YET("sample_packing_sequentially", KEY_BOOL, "", "Pack rows in their order."),
    NO_EFFECT("sample_packing_eff_est", KEY_FLOAT, "", "Expected fill of packs; packs are planned before step 0."),
    NO_EFFECT("sample_packing_mp_start_method", KEY_STRING, "", "How packing processes start."),
    NO_EFFECT("multipack_real_batches", KEY_BOOL, "", "Layout of packs in another library."),
    NO_EFFECT("batch_flattening", KEY_ANY, "", "Layout of batches; rows are always flat here."),
    NO_EFFECT("pad_to_multiple_of", KEY_INT, "", "Batches are rounded up to multiples of 64 anyway."),
    NOT_YET("curriculum_sampling", KEY_BOOL, "", "Keep the order of the data through the run."),
    NOT_YET("pretrain_multipack_attn", KEY_BOOL, "true", "Keep raw texts in one pack apart."),
    NOT_YET("max_prompt_len", KEY_INT, "", "Longest prompt, for preference training."),
    REFUSED("max_packed_sequence_len", KEY_INT, "", "axolotl removed it; use sequence_len with sample_packing."),
};
const size_t keys_sequence_count = COUNT_OF(keys_sequence);
