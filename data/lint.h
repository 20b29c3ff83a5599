// What is suspicious about a dataset, counted over all rows. Each kind has a stable name, by which `lint_waive` lets it
// pass.
#pragma once

#include "data/dataset.h"

enum lint_kind {
    LINT_NO_TRAINED_TOKEN,  // a row in use teaches nothing
    LINT_EOT_NEVER_TRAINED, // no row trains an end of turn: the model would not learn to stop
    LINT_DOUBLE_BOS,        // a row begins with BOS twice
    LINT_ID_OUT_OF_RANGE,   // a token id beyond the model's vocabulary
    LINT_TOO_LONG_DROPPED,  // more than 5 % of the rows were dropped as too long
    LINT_OVERLAP,           // a validation row is also a training row
    LINT_SPECIAL_TEXT,      // a message holds the text of a control token, which becomes that token
    LINT_TRUNCATED,         // a row was cut at sequence_len
    LINT_DUPLICATE,         // a row occurs again
    LINT_EMPTY_ANSWER,      // a turn that would be trained is empty
    LINT_KINDS,
};
const char *lint_kind_name(enum lint_kind kind);            // "no-trained-token", ...
const char *lint_kind_meaning(enum lint_kind kind);         // one line for people
bool lint_kind_is_error(enum lint_kind kind);               // stops a run unless waived; the others are told only
bool lint_kind_find(const char *name, enum lint_kind *out); // false when there is no such name
// 78 when one of the names of `lint_waive` is no kind; lists those there are.
int lint_check_names(const char *const *names, size_t n, struct error *err);

enum { LINT_EXAMPLES = 5 };

struct lint_report {
    struct lint_finding {
        uint64_t count; // rows; of EOT_NEVER_TRAINED and TOO_LONG_DROPPED too
        int n_examples;
        uint32_t lines[LINT_EXAMPLES];    // of the first such rows, in their file
        const char *paths[LINT_EXAMPLES]; // these files
        uint32_t rows[LINT_EXAMPLES];     // the same as dataset rows
    } findings[LINT_KINDS];
};

// Adds what it finds in one dataset. `tokenizer` may be NULL (pre-tokenised rows: nothing is known about BOS).
int lint_dataset(const struct dataset *dataset, const struct tokenizer *tokenizer, uint32_t vocab_size,
                 struct lint_report *report, struct error *err);
// Adds the validation rows that are training rows too, and those that were dropped as too long.
int lint_overlap(const struct dataset *train, const struct dataset *validation, struct lint_report *report,
                 struct error *err);
// Is there a finding that stops a run? `waived` are names; unknown ones wait for nothing.
bool lint_stops(const struct lint_report *report, const char *const *waived, size_t n_waived);
