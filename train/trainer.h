// A training run: config -> base -> dataset -> step -> adapter.
#pragma once

#include "adapters/lora.h"
#include "train/evaluate.h"
#include "train/run_memory.h"
#include "train/runlog.h"
#include "train/schedule.h"
#include "train/state.h"
#include "train/step.h"

struct trainer_options {
    bool resume;         // continue a checkpoint
    bool go_on;          // --resume: the newest one of the output folder before resume_from_checkpoint
    bool overwrite;      // remove what an earlier run left in the output folder
    const char *command; // as typed, for run.json
};

struct trainer {
    const struct run_config *config;
    struct trainer_options options;
    struct session session;
    struct run_memory memory;
    struct dataset train, held_out;
    struct adapter adapter;
    struct lora lora;
    struct loader *loader;
    struct batch batch;
    struct step_engine engine;
    struct evaluator evaluator; // only with held-out rows
    struct dataset probe_rows;  // the first few rows, held-out ones if there are: what `graft verify` compares
    struct evaluator probe;
    bool evaluates, generates;
    int checkpoint_layers; // of which the inside is computed again in backward
    struct schedule schedule;
    int64_t total_steps, steps_per_epoch;
    struct train_state state;
    struct runlog log;
    struct file_lock lock;
    char run_id[33];
    double flops_per_token;  // of a training step, forward and backward, at the largest micro-batch
    int64_t checkpoint_step; // newest one written or resumed, -1 = none
    bool finishing;          // past the last step: the adapter may not be that of state.step any more
    bool has_gguf;           // adapter.gguf was written, too
    bool best_loaded;        // the adapter is that of state.best_step
};

// What one optimiser step is made of: a pure function of its number, so that resume needs nothing else.
struct trainer_step {
    int64_t step;                // 0-based
    int64_t epoch, first, count; // micro-batches [first, first + count) of the epoch
    bool epoch_end;
    double lr, weight; // trained tokens
};

// Everything up to the sealed memory plan; nothing is written and no weight is read.
int trainer_prepare(const struct run_config *config, const struct trainer_options *options, struct trainer *out,
                    struct error *err);
// Opens the real backend with that plan, the adapter on it.
int trainer_start_device(struct trainer *trainer, struct error *err);
// Trains and writes the output folder.
int trainer_run(struct trainer *trainer, struct error *err);
void trainer_close(struct trainer *trainer); // zeroed struct is a no-op

// SIGTERM, SIGINT and SIGUSR1 make the run stop after the current micro-batch: checkpoint, exit 75. A second one: at
// once.
void trainer_install_signals(void);

// --- make_adapter.c
int trainer_make_adapter(struct trainer *trainer, struct error *err); // in host memory: trainer->adapter
// The new adapter that a configuration asks for, as shapes alone (adapter->outline). The caller frees it.
int outline_adapter(const struct run_config *config, const struct model *model, struct adapter *out, struct error *err);
int trainer_record_pissa(struct trainer *trainer, struct error *err); // what that takes, into the plan
int trainer_start_pissa(struct trainer *trainer, struct error *err);  // the adapter's first numbers, from the base
void trainer_copy_base(struct trainer *trainer); // of a new adapter: what stands in place of the base's numbers

// --- resume.c
void trainer_set_hashes(struct trainer *trainer); // of config, data and base into trainer->state; run_id from them
// A checkpoint of this step, unless there is one. `resumable`: with AdamW's state even if save_only_model.
int trainer_save(struct trainer *trainer, bool resumable, struct error *err);
int trainer_resume(struct trainer *trainer, struct error *err); // adapter, moments and counters from a checkpoint

// --- nonfinite.c
// Runs the micro-batches of a step again, op by op, without an update, and writes into `text` which op of which layer
// was the first to give a number that is not finite, and for which token.
int trainer_name_nonfinite(struct trainer *trainer, const struct trainer_step *step, char *text, size_t size,
                           struct error *err);

// --- samples.c
// Answers to the first held-out rows, on the screen and in log.jsonl.
int trainer_generate_samples(struct trainer *trainer, struct error *err);
// The first and the last answers that log.jsonl holds, for card and report: how many of `most` there are. What cannot
// be read is left out.
struct card_sample;
int trainer_read_samples(const char *log_path, struct card_sample *out, int most, struct pool *pool);

// --- finish.c
// adapter files, model card, probe, report, run.json; the adapter is durable before anything else is written.
int trainer_write_adapter(struct trainer *trainer, const char *folder, struct error *err);
int trainer_finish(struct trainer *trainer, struct error *err);
int trainer_write_manifest(const struct trainer *trainer, const char *status, struct error *err);

// --- run_folder.c
// Makes the folder, takes its lock, and refuses one that holds a run already (73) unless `may_hold`.
int output_prepare(const char *folder, bool may_hold, struct file_lock *lock, struct error *err);
// Removes what a run left there, and nothing else.
int output_clear(const char *folder, struct error *err);
// Does `path` lie in `folder`, whatever way the two are spelled?
bool output_holds(const char *folder, const char *path);
bool output_finished(const char *folder); // run.json says the run ended
