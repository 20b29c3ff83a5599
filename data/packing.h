// Which samples go into which micro-batch of an epoch. Private to batch.c.
#pragma once

#include "data/batch.h"

enum { PACK_WINDOW = 4096, PACK_MOST_SAMPLES = 200 };

struct epoch_plan {
    int64_t epoch;     // -1 = nothing planned
    uint32_t *samples; // dataset indices, micro-batch after micro-batch
    uint32_t *begins;  // (count + 1) into samples
    int32_t *tokens;   // (count)
    double *weights;   // (count)
    int64_t count;     // micro-batches
};

// A pure function of the samples in use (their dataset indices), the options and the epoch.
int epoch_plan_make(const struct dataset *dataset, const struct loader_options *options, const uint32_t *in_use,
                    size_t n_in_use, int64_t epoch, struct epoch_plan *out, struct error *err);
void epoch_plan_free(struct epoch_plan *plan);
// At most `limit` (8 at most) sizes, ascending multiples of 64, that hold the micro-batches of the plan with the least
// padding; the last one is `largest`. Returns how many.
int bucket_sizes(const struct epoch_plan *plan, int32_t largest, int limit, int32_t sizes[8], struct error *err);
