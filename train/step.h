// One optimiser step on the device: micro-batches forward and backward, the sum of their gradients, clipping, AdamW.
#pragma once

#include "adapters/lora.h"
#include "train/session.h"

struct step_options {
    int accumulate;        // micro-batches per step at most
    float neftune_alpha;   // 0 = off
    int checkpoint_layers; // pass (decoder.h)
    bool keep_attention;
    double max_grad_norm; // 0 = off
    float beta1, beta2, eps;
    float weight_decay;
    // LoRA+: learning rates of B, and of an adapter on the embedding, over that of A
    float lr_ratio_b, lr_ratio_embedding;
    float balance; // weight of the load-balancing loss; 0 = off
    uint64_t seed;
};

struct step_engine {
    struct session *session; // borrowed
    struct lora *lora;       // borrowed
    struct step_options options;
    double aux_sum; // over the micro-batches of the running step
    int64_t micro_batches;
    struct param_group *groups;
    int n_groups;
};

struct step_result {
    double loss;      // mean over trained tokens of the step
    double aux_loss;  // load-balancing loss, not weighed, mean over micro-batches; 0 where it is off
    double weight;    // trained tokens
    double grad_norm; // before clipping
    bool nonfinite;   // gradient held NaN or infinity: parameters are unchanged
};

int step_open(struct session *session, struct lora *lora, const struct step_options *options, struct step_engine *out,
              struct error *err);
void step_close(struct step_engine *engine);
// Puts the programs of a step into the plan: every bucket size, and the update.
int step_record(struct step_engine *engine, const int32_t *buckets, int n_buckets, int32_t max_seqs, struct error *err);

// begin, micro (1 .. accumulate times), end. `step` is 0-based; `weight` the trained tokens of the whole step.
int step_begin(struct step_engine *engine, int64_t step, int64_t micro_batches, double lr, double weight,
               struct error *err);
int step_micro(struct step_engine *engine, const struct batch *batch, struct error *err);
int step_end(struct step_engine *engine, struct step_result *result, struct error *err);
