// See session.h.
#include "train/session.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int session_device(enum config_device wanted, enum device_kind *out, struct text *notice, struct error *err) {
    static const char *const names[] = {[DEVICE_CPU] = "cpu", [DEVICE_CUDA] = "cuda", [DEVICE_LATE] = "late"};
    const char *forced = getenv("GRAFT_BACKEND");
    struct gpu_found gpu;
    struct error why = {0};
    for (size_t i = 0; forced && *forced && i < COUNT_OF(names); i++) {
        if (strcmp(forced, names[i]) != 0) continue;
        *out = (enum device_kind)i;
        return 0;
    }
    *out = DEVICE_CPU;
    if (wanted == CONFIG_DEVICE_CPU) return 0;
    if (backend_find_gpu(&gpu, wanted == CONFIG_DEVICE_CUDA ? err : &why) == 0)
        *out = DEVICE_CUDA;
    else if (wanted == CONFIG_DEVICE_CUDA)
        return error_prefix(err, "device: cuda");
    else if (backend_expects_gpu())
        text_printf(notice, "device: cpu; %s", why.text);
    return 0;
}

enum dtype session_dtype(enum config_precision precision, enum device_kind device, struct text *notice) {
    bool fast = backend_cpu_has_bf16();
    if (device == DEVICE_CUDA) return precision == CONFIG_PRECISION_FP32 ? DTYPE_F32 : DTYPE_BF16;
    switch (precision) {
    case CONFIG_PRECISION_AUTO: return fast ? DTYPE_BF16 : DTYPE_F32;
    case CONFIG_PRECISION_BF16:
        if (!fast)
            text_add(notice,
                     "bf16: this CPU has no bf16 instructions: products of bf16-rounded inputs in fp32, at fp32 speed");
        return DTYPE_BF16;
    case CONFIG_PRECISION_HALF: text_add(notice, "fp16: on a CPU this runs in fp32"); return DTYPE_F32;
    case CONFIG_PRECISION_FP32: return DTYPE_F32;
    }
    return DTYPE_F32;
}

int session_options_of(const struct run_config *config, struct session_options *out, struct text *notice,
                       struct error *err) {
    *out = (struct session_options){
        .base = base_source_of(config), .threads = (int)config->threads, .gpu_memory = config->gpu_memory_bytes};
    if (session_device(config->device, &out->device, notice, err)) return -1;
    struct text about = {0};
    out->dtype = session_dtype(config->precision, out->device, &about);
    if (notice->length && about.length) text_add(notice, "\n");
    text_add(notice, text_str(&about));
    text_free(&about);
    return 0;
}

int session_open(const struct session_options *options, struct session *out, struct error *err) {
    *out = (struct session){.options = *options};
    out->threads = options->threads > 0 ? options->threads : cpu_count_available();
    if (base_source_open(&options->base, out->threads, &out->model, err)) return -1;
    if (!options->no_weights && model_require_weights(&out->model, err)) {
        session_close(out);
        return -1;
    }
    out->tokenizer = tokenizer_open(&out->model.vocab, &out->no_tokenizer);
    if (out->tokenizer || out->no_tokenizer.code != STATUS_MEMORY) return 0;
    error_set(err, out->no_tokenizer.code, "%s", out->no_tokenizer.text);
    session_close(out);
    return -1;
}

int session_needs_text(const struct session *s, const char *what, struct error *err) {
    if (s->tokenizer) return 0;
    int code = s->no_tokenizer.code == STATUS_NOINPUT ? STATUS_DATA : s->no_tokenizer.code;
    return error_set(err, code, "%s; %s; only rows of input_ids and labels do without", s->no_tokenizer.text, what);
}

const struct chat_template *session_chat(struct session *s, const char *name, struct error *err) {
    if (session_needs_text(s, "a chat template needs one", err)) return NULL;
    struct vocab_string source = tokenizer_chat_template(s->tokenizer);
    if (!name) name = "tokenizer_default";
    for (int i = 0; i < s->n_chats; i++)
        if (strcmp(s->chats[i].name, name) == 0) return s->chats[i].chat;
    assert(s->n_chats < SESSION_MAX_CHATS);
    struct chat_template *chat = chat_template_open(name, source.bytes, source.length, err);
    if (chat) s->chats[s->n_chats++] = (struct session_chat){name, chat};
    return chat;
}

static int open_parts(struct session *s, struct error *err) {
    if (decoder_open(&s->device, &s->model, &s->limits, s->options.dtype, &s->decoder, err)) return -1;
    if (s->limits.cache_seqs <= 0) return 0;
    if (generator_open(&s->decoder, &s->generator, err)) return -1;
    if (s->tokenizer) s->generator.n_tokens = (int32_t)tokenizer_vocab_size(s->tokenizer);
    return 0;
}

static void close_parts(struct session *s) {
    generator_close(&s->generator);
    decoder_close(&s->decoder);
}

int session_record(struct session *s, const struct decoder_limits *limits, struct error *err) {
    s->limits = *limits;
    if (s->limits.cache_seqs > 0 && s->limits.max_rows < GENERATOR_MAX_PREFILL)
        s->limits.max_rows = GENERATOR_MAX_PREFILL;
    if (device_open_recording(&s->device, s->options.device, s->threads, err)) return -1;
    backend_set_weights(s->device.backend, s->model.weights, s->model.n_weights, s->model.n_segments);
    return open_parts(s, err);
}

void session_forget(struct session *s) {
    close_parts(s);
    device_close(&s->device);
}

int session_start(struct session *s, struct error *err) {
    close_parts(s);
    struct backend *backend = backend_open(s->options.device, s->threads, err);
    if (!backend) return -1;
    backend->memory_limit = s->options.gpu_memory;
    s->host_bytes = memory_held();
    if (device_start(&s->device, backend, err)) return -1;
    return open_parts(s, err);
}

void session_close(struct session *s) {
    close_parts(s);
    device_close(&s->device);
    for (int i = 0; i < s->n_chats; i++) chat_template_close(s->chats[i].chat);
    tokenizer_close(s->tokenizer);
    model_close(&s->model);
    *s = (struct session){0};
}

static struct dataset_options data_options(const struct session *s, const struct run_config *config,
                                           const struct dataset_config *set, int64_t sequence_len) {
    static const enum dataset_kind kinds[] = {[CONFIG_DATA_TOKENS] = DATASET_TOKENS,
                                              [CONFIG_DATA_CHAT] = DATASET_CHAT,
                                              [CONFIG_DATA_ALPACA] = DATASET_ALPACA};
    static const enum train_on train_on[] = {[CONFIG_ON_TURN] = TRAIN_ON_TURN,
                                             [CONFIG_ON_ALL] = TRAIN_ON_ALL,
                                             [CONFIG_ON_LAST] = TRAIN_ON_LAST,
                                             [CONFIG_ON_NONE] = TRAIN_ON_NONE};
    static const enum excess_policy excess[] = {[CONFIG_EXCESS_DROP] = EXCESS_DROP,
                                                [CONFIG_EXCESS_TRUNCATE] = EXCESS_TRUNCATE,
                                                [CONFIG_EXCESS_RAISE] = EXCESS_RAISE};
    return (struct dataset_options){
        .path = set->path,
        .kind = kinds[set->type],
        .field_messages = set->field_messages,
        .field_role = set->message_property_mappings.role,
        .field_content = set->message_property_mappings.content,
        .field_instruction = set->field_instruction,
        .field_input = set->field_input,
        .field_output = set->field_output,
        .field_system = set->field_system,
        .role_from = set->roles.from,
        .role_to = set->roles.to,
        .n_roles = (int)set->roles.count,
        .roles_to_train = (const char *const *)set->roles_to_train.items,
        .n_roles_to_train = (int)set->roles_to_train.count,
        .train_on_eot = train_on[set->train_on_eot],
        .train_on_eos = train_on[set->train_on_eos],
        .train_on_inputs = config->train_on_inputs,
        .skip_bad_rows = config->bad_rows == CONFIG_BAD_ROWS_SKIP,
        .sequence_len = (int)sequence_len,
        .min_sample_len = (int)config->min_sample_len,
        .excess = excess[config->excess_length_strategy],
        .vocab_size = (uint32_t)s->model.arch.vocab,
    };
}

int session_read_data(struct session *s, const struct run_config *config, const struct config_datasets *sets,
                      int64_t sequence_len, struct dataset *out, struct error *err) {
    *out = (struct dataset){0};
    for (size_t i = 0; i < sets->count; i++) {
        struct dataset_options options = data_options(s, config, &sets->items[i], sequence_len);
        options.first_row = (uint32_t)out->count;
        struct dataset one;
        const struct chat_template *chat = NULL;
        if (options.kind == DATASET_TOKENS && !s->tokenizer && !s->told) {
            fprintf(stderr, "no tokenizer, rows of tokens go without: %s\n", s->no_tokenizer.text);
            s->told = true;
        }
        if (options.kind != DATASET_TOKENS && session_needs_text(s, "these rows are text", err)) {
            dataset_free(out);
            return error_prefix(err, "%s", options.path);
        }
        if (options.kind == DATASET_CHAT && !(chat = session_chat(s, sets->items[i].chat_template, err))) {
            dataset_free(out);
            return -1;
        }
        if (dataset_read(&options, s->tokenizer, chat, &one, err) || dataset_append(out, &one, err)) {
            dataset_free(out);
            return -1;
        }
    }
    return 0;
}
