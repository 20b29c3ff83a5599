// Generation: several sequences at a time against the decoder's KV cache. A sequence that ends gives its place to the
// next job, so that a list of any length runs at the full width.
#pragma once

#include "data/tokenizer.h"
#include "model/decoder.h"

struct sampling {
    double temperature; // 0 = greedy: the most likely token, the lowest id on a tie
    double top_p;       // 1 = off
    int top_k;          // 0 = off
    uint64_t seed;
};

struct generation {
    const int32_t *prompt; // borrowed
    int32_t prompt_count;  // >= 1
    int32_t max_new;       // new tokens at most; cut to what the cache holds
    int adapter;           // decoder's adapter number, -1 = base
    struct ids out;        // the new tokens, without the one that stopped it; freed with ids_free
    bool stopped;          // by a stop token (else: length)
};

// Called between two pieces of long work, of which `done` of `total` are finished; non-zero with `err` set ends it.
typedef int work_between(void *context, int64_t done, int64_t total, struct error *err);

struct generator {
    struct decoder *decoder;
    work_between *between; // set by the caller, after every step, counted in finished jobs; NULL = none
    void *context;         // of `between`
    int32_t n_tokens;      // ids from here on are no answers: 0 = every row of the head; set by the caller
    int32_t prefill[3];    // row counts of prefill programs, ascending
    int32_t *ids, *positions, *slots, *seqs; // step arrays
    float *logits;                           // (cache_seqs, vocab)
    float *scratch;                          // (vocab)
    int32_t *order;                          // (vocab)
};

// Rows that generation may put through the decoder at a time: decoder_limits.max_rows must be at least this.
enum { GENERATOR_MAX_PREFILL = 512 };

int generator_open(struct decoder *decoder, struct generator *out, struct error *err);
void generator_close(struct generator *generator);
// Puts every step that generation can take into the plan (device recording), for the base and `n_adapters` adapters.
int generator_record(struct generator *generator, int n_adapters, struct error *err);

// Called after each new token of a job (token -1: it stopped); return false to end that job. May be NULL.
typedef bool generator_progress(void *context, int job, int32_t token);

// Runs all jobs. `stop` ids end a job. All jobs of one call use the same adapter.
int generator_run(struct generator *generator, struct generation *jobs, int n_jobs, const struct sampling *sampling,
                  const int32_t *stop, int n_stop, generator_progress *progress, void *context, struct error *err);
