// The memory plan of a training step for a base that is only shapes: a config.json without weights. Nothing is
// allocated by the number of parameters and no data is read: a micro-batch is micro_batch_size documents of
// sequence_len tokens.
#pragma once

#include "adapters/adapter.h"
#include "kernels/plan.h"
#include "model/base_storage.h"
#include "train/session.h"

struct shape_memory {
    size_t classes[PLAN_CLASS_COUNT]; // bytes at the fullest moment
    size_t arena;                     // their sum after packing
    double flops_per_token;           // of a training step, forward and backward
};

struct shape_plan {
    struct session session;
    struct adapter adapter; // without matrices
    struct base_sizes base;
    enum base_storage storage;     // what the configuration asks for
    bool experts;                  // quantize_moe_experts
    int64_t trainable;             // parameters of the adapter
    struct shape_memory memory[2]; // without and with gradient_checkpointing
    bool checkpoints;              // which of the two the configuration takes
    int64_t rows, sequences;       // tokens and, at most, documents of a micro-batch
};

// Is the configured base, a path or a name in the local Hugging Face cache, shapes alone? Errors as base_source_find's
// and base_open's.
int shape_plan_applies(const struct run_config *config, bool *applies, struct error *err);
int shape_plan_make(const struct run_config *config, struct shape_plan *out, struct error *err);
void shape_plan_free(struct shape_plan *plan); // zeroed struct is a no-op
// Bytes of the base in a format, experts as configured.
uint64_t shape_plan_base(const struct shape_plan *plan, enum base_storage storage);
// Bytes of the base and of everything else with the configured setting.
uint64_t shape_plan_peak(const struct shape_plan *plan, bool checkpoints);
void shape_plan_json(const struct shape_plan *plan, struct text *out);
void shape_plan_text(const struct shape_plan *plan, struct text *out);
