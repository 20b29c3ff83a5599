// TensorBoard event files: RUN/tb/events.out.tfevents.*, one per process of a run.
#pragma once

#include "kernels/base.h"

struct tensorboard {
    char *path; // owned; NULL = off
};

struct tensorboard_value {
    const char *tag; // as transformers' Trainer names them: "train/loss", "eval/loss"
    double value;
};

// A new file in RUN/tb. With step > 0 readers drop what earlier files say about later steps: they are done again.
int tensorboard_open(const char *run, int64_t step, struct tensorboard *out, struct error *err);
void tensorboard_close(struct tensorboard *board); // zeroed struct is a no-op
// One event with n <= 8 scalars.
int tensorboard_add(struct tensorboard *board, int64_t step, const struct tensorboard_value *values, int n,
                    struct error *err);
