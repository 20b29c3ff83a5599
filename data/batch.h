// From samples to micro-batches: order, packing, and the arrays a step reads. All of it is a pure function of
// (dataset, options, epoch), planned before step 0: resume needs only the step number.
#pragma once

#include "data/dataset.h"

struct loader_options {
    int micro_batch_size; // rows (packs when packing) per micro-batch
    int sequence_len;     // tokens per row
    bool packing;         // several samples per row, first-fit-decreasing over a window of the shuffled order
    bool group_by_length; // similar lengths into one micro-batch
    bool shuffle;         // keyed permutation per epoch; file order otherwise
    uint64_t seed;
    int buckets; // at most this many sizes of micro-batch (8)
};

// One micro-batch. Rows beyond `tokens` belong to no sequence, weigh 0 and are not counted.
struct batch {
    int32_t rows;                  // token rows of the bucket: multiple of 64
    int32_t tokens;                // rows in use
    int32_t trained;               // rows with weight > 0
    double weight;                 // sum of weights
    int32_t n_seqs;                // samples in it
    int32_t n_documents;           // rows of `seqs` in use: as many, or more where samples hold several documents
    int32_t max_rows;              // largest bucket the arrays hold
    int32_t max_seqs;              // rows of `seqs`
    int32_t *ids;                  // (rows) token
    int32_t *positions;            // (rows) position in its sample
    int32_t *targets;              // (rows) the next token of the sample, 0 where weight is 0
    float *weights;                // (rows) 1 where the target is trained, else 0
    uint32_t *keys;                // (rows, 2) {dataset row, token in row}
    int32_t *lengths;              // (rows) tokens of the document
    int32_t *seqs;                 // (max_seqs + 1, 4) {q_begin, q_len, kv_begin, kv_len}; unused rows all 0
    const struct sample **samples; // (n_seqs) borrowed from the dataset
};

struct loader;

// Borrows the dataset. Error when no sample is in use.
struct loader *loader_open(const struct dataset *dataset, const struct loader_options *options, struct error *err);
void loader_close(struct loader *loader);
// Micro-batches of an epoch (epochs may differ by a few under packing). Plans the epoch on first use.
int64_t loader_count(struct loader *loader, int64_t epoch, struct error *err); // -1 on error
// The index-th micro-batch of an epoch, written into `out` (allocated by batch_open for the largest shape).
int loader_batch(struct loader *loader, int64_t epoch, int64_t index, struct batch *out, struct error *err);
// Weight (trained tokens) of a micro-batch without building it; -1 on error.
double loader_weight(struct loader *loader, int64_t epoch, int64_t index, struct error *err);
// Bucket sizes in use, ascending, and the most sequences a micro-batch can hold.
int loader_buckets(const struct loader *loader, int32_t sizes[8]);
int32_t loader_max_seqs(const struct loader *loader);
double loader_fill(const struct loader *loader); // tokens / rows over the planned epochs

int batch_open(struct batch *batch, int32_t max_rows, int32_t max_seqs, struct error *err);
void batch_close(struct batch *batch);
// A batch of given samples in order, concatenated, in a bucket of `rows` rows (evaluation, scoring).
int batch_fill(struct batch *batch, const struct sample *const *samples, int n, int32_t rows, struct error *err);
