// Instruction rows in the "alpaca" prompt style. Prompt and answer are encoded apart, as axolotl does it and as the
// model meets them when it answers.
#include "data/row_reader.h"

#include <string.h>

#define WITH_INPUT                                                                                                     \
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "      \
    "response that appropriately completes the request.\n\n"
#define WITHOUT_INPUT                                                                                                  \
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"

struct field {
    const char *bytes;
    size_t length;
};

// A member that may be missing or null, which is the empty text.
static int optional(const struct json *row, const char *key, struct field *out, struct error *err) {
    const struct json *value = key ? json_get(row, key) : NULL;
    *out = (struct field){"", 0};
    if (!value || json_type(value) == JSON_NULL) return 0;
    return row_string(value, key, &out->bytes, &out->length, err);
}

static int fixed(struct row *row, const char *text) {
    return rendered_add(&row->rendered, text, strlen(text), SPAN_TEMPLATE, -1);
}

static int field(struct row *row, struct field f, int message) {
    return rendered_add(&row->rendered, f.bytes, f.length, SPAN_CONTENT, message);
}

// The text before the answer. Spans: 1 instruction, 2 input. A system column is not read: as with axolotl, that is
// another type (alpaca_w_system).
static int render_prompt(struct row *row, struct field instruction, struct field input) {
    bool with_input = input.length > 0;
    if (fixed(row, with_input ? WITH_INPUT : WITHOUT_INPUT) < 0) return -1;
    if (fixed(row, "### Instruction:\n") < 0 || field(row, instruction, 1) < 0) return -1;
    if (with_input && (fixed(row, "\n\n### Input:\n") < 0 || field(row, input, 2) < 0)) return -1;
    return fixed(row, "\n\n### Response:\n");
}

static int mark_prompt(struct row *row, size_t first, struct error *err) {
    if (row_reserve_why(row, err) < 0) return -1;
    memset(row->why, WHY_TEMPLATE, first); // BOS
    size_t span = 0;
    for (size_t t = first; t < row->ids.count; t++) {
        while (row->spans[t].begin >= row->rendered.spans[span].end) span++;
        bool content = row->rendered.spans[span].kind == SPAN_CONTENT;
        if (content && tokenizer_is_control(row->tokenizer, row->ids.data[t])) row->notes |= NOTE_SPECIAL_TEXT;
        row->why[t] = (uint8_t)(row->options->train_on_inputs ? WHY_ANSWER : content ? WHY_PROMPT : WHY_TEMPLATE);
    }
    return 0;
}

static int append_answer(struct row *row, struct field answer, int32_t eos, struct error *err) {
    size_t prompt = row->ids.count;
    if (tokenizer_encode(row->tokenizer, answer.bytes, answer.length, true, &row->ids, NULL, err) < 0) return -1;
    row->reference_tokens = (int32_t)(row->ids.count - prompt);
    if (answer.length == 0) row->notes |= NOTE_EMPTY_ANSWER;
    for (size_t t = prompt; t < row->ids.count; t++)
        if (tokenizer_is_control(row->tokenizer, row->ids.data[t])) row->notes |= NOTE_SPECIAL_TEXT;
    bool ends = row->ids.count > prompt && row->ids.data[row->ids.count - 1] == eos;
    if (row->ids.count > prompt && !ends && ids_push(&row->ids, eos) < 0)
        return error_memory(err, "a row", row->ids.count * sizeof eos);
    if (row_reserve_why(row, err) < 0) return -1;
    for (size_t t = prompt; t < row->ids.count; t++) row->why[t] = WHY_ANSWER;
    if (row->ids.count > prompt)
        row->why[row->ids.count - 1] = row->options->train_on_eos == TRAIN_ON_NONE ? WHY_EOT_OFF : WHY_EOT;
    return 0;
}

int row_read_alpaca(struct row *row, const struct json *value, struct error *err) {
    const struct dataset_options *o = row->options;
    int32_t eos = tokenizer_eos(row->tokenizer);
    if (eos < 0) return error_set(err, STATUS_DATA, "alpaca rows end with EOS, and the tokenizer has none");
    struct field instruction, input, answer;
    if (row_string(json_get(value, o->field_instruction), o->field_instruction, &instruction.bytes, &instruction.length,
                   err) < 0 ||
        row_string(json_get(value, o->field_output), o->field_output, &answer.bytes, &answer.length, err) < 0 ||
        optional(value, o->field_input, &input, err) < 0)
        return -1;
    text_clear(&row->rendered.text);
    row->rendered.n_spans = 0;
    if (render_prompt(row, instruction, input) < 0) return error_memory(err, "a row", row->rendered.text.length);
    size_t first = tokenizer_adds_bos(row->tokenizer), length = row->rendered.text.length;
    if (first && ids_push(&row->ids, tokenizer_bos(row->tokenizer)) < 0) return error_memory(err, "a row", sizeof eos);
    if (tokenizer_encode(row->tokenizer, text_str(&row->rendered.text), length, true, &row->ids, &row->spans, err) <
            0 ||
        mark_prompt(row, first, err) < 0)
        return -1;
    row->prompt_ids.count = 0;
    for (size_t t = 0; t < row->ids.count; t++)
        if (ids_push(&row->prompt_ids, row->ids.data[t]) < 0) return error_memory(err, "a prompt", length);
    row->has_prompt = answer.length > 0;
    row->reference = answer.bytes;
    row->reference_length = answer.length;
    if (append_answer(row, answer, eos, err) < 0) return -1;
    row->has_text = true;
    if (rendered_add(&row->rendered, answer.bytes, answer.length, SPAN_CONTENT, 3) < 0 ||
        tokenizer_decode(row->tokenizer, &eos, 1, false, &row->rendered.text, err) < 0)
        return error_memory(err, "a row", row->rendered.text.length);
    return 0;
}
