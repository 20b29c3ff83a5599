// One decoder for every family: records the graph described by `struct arch` on the tape. A linear has a slot; a slot
// lists adapters; a pass says which adapter acts on which rows. Nothing is attached or detached between passes.
#pragma once

#include "autograd/tape.h"
#include "data/batch.h"
#include "model/model.h"

enum { DECODER_MAX_ADAPTERS = 8 };

// What an adapter has on one module, on the device. Parts that it has not have dtype NONE.
// Of E experts: A is (E R, in), B one (E rows, R) block after another for the parts of the module.
struct slot_adapter {
    struct tensor a, b;   // (R, in), (out, R) f32
    struct tensor da, db; // gradients; DTYPE_NONE = not trained
    struct tensor a0, b0; // a frozen pair that is subtracted with the same scale, without dropout (PiSSA)
    float scale;          // alpha / r or alpha / sqrt(r)
    float dropout;        // used by training passes only
    // Of a plain linear or the head, (1, out) f32: DoRA's magnitude with the norms of W + scale B A, and a bias in
    // place of the base's.
    struct tensor magnitude, dmagnitude, norms;
    struct tensor bias, dbias; // also of a norm
    struct tensor full, dfull; // embedding and head: (V, D) f32 in place of the base's
    struct tensor rows, drows; // embedding (and a head that is tied to it): (n, D) f32 in place of those of row_ids
    struct tensor row_ids;     // (n, 1) i32
};
struct slot {
    struct slot_adapter adapters[DECODER_MAX_ADAPTERS];
};

// Rows [row_begin, row_end) use adapter number `adapter`, or the bare base (-1).
struct pass_span {
    int64_t row_begin, row_end;
    int adapter;
};

struct pass {
    bool gradients;
    bool training; // dropout and NEFTune noise act
    float neftune_alpha;
    int checkpoint_layers; // of so many layers, from the first on, the inside is computed again in backward
    bool keep_attention;   // but for what attention gives
    float balance;         // weight of the load-balancing loss of routers, with gradients; 0 = off
    int n_spans;           // rows in no span: bare base
    struct pass_span spans[LINEAR_MAX_SPANS];
};

struct decoder_limits {
    int32_t max_rows;      // token rows of the largest micro-batch
    int32_t max_seqs;      // sequences of the largest micro-batch
    int32_t max_positions; // longest position + 1 (rope table)
    int32_t cache_seqs;    // sequences that generation decodes at a time, 0 = no KV cache
    int32_t cache_len;     // tokens per sequence in the cache
    bool balance;          // passes may compute the load-balancing loss
};

struct decoder {
    struct device *device;
    const struct model *model;
    struct tape *tape;
    enum dtype dtype;
    struct decoder_limits limits;
    struct slot *slots; // (n_modules + n_norms)
    // Run-long buffers: the batch as the kernels see it.
    struct tensor ids, positions, targets, weights, keys, lengths, seqs, slot_rows;
    struct tensor rope[ARCH_MAX_ROPES]; // (max_positions, rotary_dim): cos, sin
    struct tensor scalars;              // struct step_scalars
    struct tensor balance;              // (layers with experts, 2 experts) f32: struct moe_balance
    struct tensor *cache_k, *cache_v;   // (layers) of (cache_seqs * cache_len, kv_heads * dim)
};

// Makes the run-long buffers. Called once while the plan is recorded and once more, with the same limits, after
// device_start. `dtype`: DTYPE_F32 or DTYPE_BF16.
int decoder_open(struct device *device, const struct model *model, const struct decoder_limits *limits,
                 enum dtype dtype, struct decoder *out, struct error *err);
void decoder_close(struct decoder *decoder); // zeroed struct is a no-op

// Copies a micro-batch to the device.
int decoder_load(struct decoder *decoder, const struct batch *batch, struct error *err);

// Records embedding .. log-probabilities of the loaded rows. With pass->gradients the loss part is fused: tape_backward
// may follow. *logp (optional) receives the tensor (rows, 1) of log-probabilities of targets with weight > 0.
int decoder_score(struct decoder *decoder, const struct pass *pass, int32_t rows, int32_t max_seqs, struct tensor *logp,
                  struct error *err);

// Logits (rows, vocab) f32 of the first `rows` loaded rows, no gradients: for tests and tools.
int decoder_logits(struct decoder *decoder, const struct pass *pass, int32_t rows, int32_t max_seqs,
                   struct tensor *logits, struct error *err);

// The load-balancing loss of the last pass that computed one, not weighed.
int decoder_balance(struct decoder *decoder, double *loss, struct error *err);

// --- generation: n tokens of several sequences against the KV cache
struct decode_rows {
    int32_t rows; // tokens to run, of all sequences together
    int32_t n_seqs;
    const int32_t *ids, *positions; // (rows)
    const int32_t *slots;           // (rows) cache row of each token: sequence * cache_len + position; -1 = padding
    const int32_t *seqs;            // (n_seqs, 4) {q_begin, q_len, kv_begin, kv_len}
};
// Runs them and appends to the cache. With `logits`, the logits (rows, vocab) f32 of all these rows.
int decoder_decode(struct decoder *decoder, const struct pass *pass, const struct decode_rows *in,
                   struct tensor *logits, struct error *err);
