// One row of a data file on its way to a sample: rows_chat.c, rows_alpaca.c and rows_tokens.c fill a row from JSON,
// dataset.c applies the length policy and keeps it. Private to data/.
#pragma once

#include "data/dataset.h"
#include "data/json.h"

// The row under construction; its buffers are used again for the next one.
struct row {
    const struct dataset_options *options;
    const struct tokenizer *tokenizer;
    const struct chat_template *chat;

    struct ids ids;
    uint8_t *why; // (ids.capacity at least) enum token_why
    size_t why_capacity;
    struct ids labels, positions;
    uint8_t notes; // enum sample_note
    bool has_labels, has_positions, has_text, has_prompt;
    struct rendered rendered; // has_text
    struct rendered prompt;   // has_prompt: what stands before the answer
    struct ids prompt_ids;
    const char *reference; // the answer; lives in the JSON document
    size_t reference_length;
    int32_t reference_tokens;

    struct token_span *spans; // of ids
    struct message *messages;
    size_t n_messages, messages_capacity;
};
void row_free(struct row *row);

// Each reads one row. Errors are texts without file and line: "messages[2].content is missing".
int row_read_chat(struct row *row, const struct json *value, struct error *err);
int row_read_alpaca(struct row *row, const struct json *value, struct error *err);
int row_read_tokens(struct row *row, const struct json *value, struct error *err);

// Room for a reason per token.
int row_reserve_why(struct row *row, struct error *err);
// The text of a member; refuses what is no string or holds NUL. `path` names it in messages.
int row_string(const struct json *value, const char *path, const char **out, size_t *length, struct error *err);
