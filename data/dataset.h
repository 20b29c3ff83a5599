// Rows of instruction data, read, rendered and tokenised: file -> samples with a trained flag and its reason per token,
// and a ledger that adds up: read = kept + dropped (by reason).
#pragma once

#include "data/chat_template.h"
#include "data/tokenizer.h"
#include "kernels/base.h"

enum dataset_kind { DATASET_CHAT, DATASET_ALPACA, DATASET_TOKENS /* {input_ids, labels[, position_ids]} */ };
enum excess_policy { EXCESS_DROP, EXCESS_TRUNCATE, EXCESS_RAISE };
enum train_on { TRAIN_ON_TURN, TRAIN_ON_ALL, TRAIN_ON_LAST, TRAIN_ON_NONE }; // end-of-turn tokens

struct dataset_options {
    const char *path;
    enum dataset_kind kind;
    const char *field_messages;                                 // "messages"
    const char *field_role, *field_content;                     // "role", "content"
    const char *field_instruction, *field_input, *field_output; // alpaca
    const char *field_system; // a system text beside the messages or the instruction; NULL = not read
    // Source role -> template role ("human" -> "user"): pairs, n_roles of each.
    const char *const *role_from, *const *role_to;
    int n_roles;
    const char *const *roles_to_train; // default: assistant
    int n_roles_to_train;
    enum train_on train_on_eot, train_on_eos; // ends of turns; ends of texts
    bool train_on_inputs;
    bool skip_bad_rows; // malformed rows: counted instead of an error
    int sequence_len;   // longest sample in tokens
    int min_sample_len; // shorter ones are dropped
    enum excess_policy excess;
    uint32_t vocab_size; // ids of pre-tokenised rows must be below
    uint32_t first_row;  // row number of this file's first row (rows of several files count on)
};

enum drop_reason { DROP_NONE, DROP_TOO_LONG, DROP_TOO_SHORT, DROP_MALFORMED, DROP_REASONS };
const char *drop_reason_name(enum drop_reason reason);

// Why a token is or is not trained; the text of `graft check`.
enum token_why {
    WHY_TEMPLATE,     // added by the template
    WHY_PROMPT,       // content of a role that is not trained
    WHY_ANSWER,       // content of a trained role: trained
    WHY_EOT,          // end of a trained turn: trained
    WHY_EOT_OFF,      // end of turn, not trained by train_on_eot
    WHY_FLAG_OFF,     // the data says train: false
    WHY_LABEL,        // pre-tokenised: label given, trained
    WHY_LABEL_MASKED, // pre-tokenised: label -100
    WHY_COUNT,
};
const char *token_why_name(enum token_why why);
bool token_why_trained(enum token_why why);

enum sample_note {         // bits, for the lint
    NOTE_TRUNCATED = 1,    // cut by EXCESS_TRUNCATE
    NOTE_SPECIAL_TEXT = 2, // a message holds the text of a control token
    NOTE_EMPTY_ANSWER = 4, // a turn that would be trained is empty
};

struct sample {
    uint32_t row;             // dataset row number, key of random numbers
    uint32_t line;            // in its file, 1-based
    const char *path;         // of its file; borrowed from the options it was read with
    enum drop_reason dropped; // DROP_NONE = in use; then ids etc. may be NULL
    int32_t count;            // tokens
    const int32_t *ids;       // (count)
    const uint8_t *why;       // (count) enum token_why
    const int32_t *labels;    // (count) pre-tokenised rows whose labels differ from ids; else NULL = ids where trained
    const int32_t *positions; // (count) given by pre-tokenised rows; else NULL = 0, 1, 2, ...
    int32_t trained;          // trained tokens that can be predicted (the first token of a row never is)
    // For generation: the prompt up to the last trained turn, and that turn's text.
    const int32_t *prompt_ids; // NULL when the row has no such turn
    int32_t prompt_count;
    const char *reference;    // NUL-terminated
    int32_t reference_tokens; // of that text, without the end of the turn
    uint8_t notes;            // enum sample_note
    const char *rendered;     // the rendered text, NUL-terminated; NULL for pre-tokenised rows
};

struct dataset {
    struct sample *samples; // one per row read, in file order
    size_t count;
    uint64_t dropped[DROP_REASONS];
    uint64_t truncated;              // rows cut by EXCESS_TRUNCATE
    uint64_t tokens, trained_tokens; // of rows in use
    int32_t longest;                 // tokens of the longest row in use
    uint64_t bytes;                  // memory held
    uint8_t sha256[32];              // of the file's bytes
    struct pool pool;
    struct pool *more; // (n_more) memory of appended files
    size_t n_more;
};

// Reads the whole file. Errors name file:line:column; up to 20 malformed rows are reported at once. A row without any
// trained token is an error (65) naming its line. `tokenizer` and `chat` may be NULL for DATASET_TOKENS.
int dataset_read(const struct dataset_options *options, const struct tokenizer *tokenizer,
                 const struct chat_template *chat, struct dataset *out, struct error *err);
// The same for bytes; options->path is only a name. NULL names of fields stand for the usual ones.
int dataset_parse(const struct dataset_options *options, const uint8_t *bytes, size_t length,
                  const struct tokenizer *tokenizer, const struct chat_template *chat, struct dataset *out,
                  struct error *err);
void dataset_free(struct dataset *dataset);
// Appends the samples of `other` (emptied, also on failure), ledger included.
int dataset_append(struct dataset *dataset, struct dataset *other, struct error *err);
// Stretches of consecutive positions: attention stays inside each. 1 unless a pre-tokenised row's positions restart.
int32_t sample_documents(const struct sample *sample);
// "400 rows read, 396 in use, 3 dropped (too_long), 1 dropped (malformed)", appended to `out`.
void dataset_ledger(const struct dataset *dataset, struct text *out);
// Moves held-out rows to `test`: below 1 a fraction (rounded up), otherwise a count; chosen by keyed permutation of the
// rows in use. `test` borrows the memory of `dataset`: it may be freed before or after, but not used after.
int dataset_split(struct dataset *dataset, double val_set_size, uint64_t seed, struct dataset *test, struct error *err);
