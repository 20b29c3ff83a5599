// Where a gradient that is not finite came from. See trainer.h.
#include "train/trainer.h"

#include <stdio.h>

static void describe(const struct trainer *t, const struct nonfinite *at, char *text, size_t size) {
    char where[64], token[96] = "";
    if (at->segment <= SEGMENT_EMBED)
        snprintf(where, sizeof where, "the embedding");
    else if (at->segment == SEGMENT_LAYER0 + t->session.model.arch.layers)
        snprintf(where, sizeof where, "the output head");
    else
        snprintf(where, sizeof where, "layer %d", at->segment - SEGMENT_LAYER0);
    if (at->row < 0) {
        snprintf(token, sizeof token, ", the gradient of an adapter");
    } else if (at->row < t->batch.tokens) {
        const uint32_t *key = &t->batch.keys[2 * at->row];
        snprintf(token, sizeof token, ", data row %u, token %u", key[0], key[1]);
    }
    snprintf(text, size, "%s, %s %s%s", where, op_table[at->op].name, at->backward ? "backward" : "forward", token);
}

int trainer_name_nonfinite(struct trainer *t, const struct trainer_step *step, char *text, size_t size,
                           struct error *err) {
    struct nonfinite at = {0};
    snprintf(text, size, "the sum over all rows, every number of which is finite");
    if (step_begin(&t->engine, step->step, step->count, step->lr, step->weight, err)) return -1;
    t->session.device.watch = &at;
    int failed = 0;
    for (int64_t i = 0; i < step->count && !failed && !at.found; i++) {
        failed = loader_batch(t->loader, step->epoch, step->first + i, &t->batch, err) ||
                 step_micro(&t->engine, &t->batch, err);
    }
    t->session.device.watch = NULL;
    if (!failed && at.found) describe(t, &at, text, size);
    return failed ? -1 : 0;
}
