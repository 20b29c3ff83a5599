// Evaluation of a dataset with an adapter or the bare base: loss, log-probabilities per token, generated answers.
#pragma once

#include "train/session.h"

struct evaluator {
    struct session *session;       // borrowed
    const char *name;              // of its programs in the plan; static
    const struct dataset *dataset; // borrowed
    struct loader *loader;
    struct batch batch;
    int32_t buckets[8];
    int n_buckets;
    // Set by the caller: after every micro-batch (of that many) and every step of a generation (of that many answers).
    work_between *between; // NULL = none
    void *context;
};

struct eval_loss {
    int64_t rows;
    double tokens; // trained tokens
    double loss;   // mean negative log-probability
};

struct eval_answers {
    int64_t asked, valid_json, exact, exact_json;
    char **texts;   // (dataset->count) the answer to each sample, NULL where none was asked; owned
    int64_t tokens; // generated
    double seconds;
};

struct eval_options {
    int64_t batch_size, sequence_len;
    bool packing;
};

int evaluator_open(struct session *session, const char *name, const struct dataset *dataset,
                   const struct eval_options *options, struct evaluator *out, struct error *err);
void evaluator_close(struct evaluator *evaluator); // zeroed struct is a no-op
// Largest shapes this evaluation needs: raises the limits that are below.
void evaluator_limits(const struct evaluator *evaluator, struct decoder_limits *limits);
// Puts its programs into the plan, for `adapter` (-1 = base).
int evaluator_record(struct evaluator *evaluator, int adapter, struct error *err);
// Log-probability of every next token of the batch that evaluator->batch holds: logp[i] belongs to row i + 1.
int evaluator_score(struct evaluator *evaluator, int adapter, float *logp, struct error *err);
int evaluator_loss(struct evaluator *evaluator, int adapter, struct eval_loss *out, struct error *err);
// One JSON object a row: {"row", "ids", "trained", "logprobs"}; log-probability of every token given those before it,
// null for the first.
int evaluator_logprobs(struct evaluator *evaluator, int adapter, const char *path, struct error *err);

// Generates answers to the first `limit` (0 = all) rows that have a prompt; new tokens capped at 1.5 x the longest
// reference answer. Greedy unless `sampling` is given.
int evaluator_answers(struct evaluator *evaluator, int adapter, int64_t limit, const struct sampling *sampling,
                      struct eval_answers *out, struct error *err);
void eval_answers_free(struct eval_answers *answers, size_t count);
// Longest prompt + answer that generation needs for this dataset, in tokens.
int32_t generation_length(const struct dataset *dataset, int32_t *max_new);
// Equal after trimming white space; equal as JSON values; valid JSON.
bool answer_exact(const char *answer, const char *reference);
bool answer_json(const char *answer, const char *reference, bool *valid);
// Stop ids of the session's templates and tokenizer; returns how many.
enum { MAX_STOP_TOKENS = 24 };
int stop_tokens(const struct session *session, int32_t stop[MAX_STOP_TOKENS]);
