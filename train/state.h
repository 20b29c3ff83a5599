// What resume needs beside the adapter: counters and AdamW's moments, written into a checkpoint folder.
#pragma once

#include "adapters/lora.h"

struct train_state {
    int64_t step;       // optimiser steps done
    uint64_t log_bytes; // length of log.jsonl at that moment
    int64_t tokens;     // tokens seen
    double best_metric; // of evaluations so far
    int64_t best_step;  // -1 = none
    int64_t evals_without_gain;
    int64_t steps_over_watchdog;
    int64_t nonfinite_in_row;
    double first_eval, last_eval; // eval_loss before training and of the newest evaluation; NAN = none
    int64_t last_eval_step;       // -1 = none
    double last_loss;             // of the newest step; NAN = none
    double seconds;               // of training
    char run_id[33];              // names the run through all its resumes
    char arithmetic[32];          // "fp32", "bf16": resuming in another one is not bitwise
    char config_sha256[65];       // of the effective configuration
    char data_sha256[65];
    char base_sha256[65];
};

// state.json and optimizer.safetensors (exp_avg.KEY, exp_avg_sq.KEY per tensor, in the base file's row order).
int state_write(const char *folder, const struct train_state *state, struct lora *lora, struct error *err);
// Reads both; every tensor must be there with its shape (80 otherwise). The adapter itself is read by peft_read.
int state_read(const char *folder, struct train_state *state, struct lora *lora, struct error *err);
// Only state.json.
int state_peek(const char *folder, struct train_state *state, struct error *err);
