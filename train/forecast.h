// How long a run will take on this machine, from a short measurement; `graft plan` shows it.
#pragma once

#include "train/trainer.h"

struct forecast {
    bool known;               // false on a GPU: nothing was measured, and the rest is 0
    double tokens_per_second; // of training steps, padding not counted: what the log will say
    double seconds;           // of the whole run: steps and evaluations
};

// Times products of the base's own kind and shape, with made-up numbers, for about a tenth of a second. `t` is prepared
// (trainer_prepare): its FLOP counts, schedule and data say how much work there is.
int forecast_run(const struct trainer *t, struct forecast *out, struct error *err);
