// Learning-rate schedules: pure functions of the step, equal to transformers' (get_*_schedule_with_warmup) and
// axolotl's variants of the same names.
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum schedule_kind {
    SCHEDULE_CONSTANT, // lr
    SCHEDULE_CONSTANT_WARMUP,
    SCHEDULE_LINEAR,    // to 0 at the last step
    SCHEDULE_COSINE,    // half a cosine to 0 (or min_ratio)
    SCHEDULE_REX,       // (1-p) / (0.1 + 0.9 (1-p)), from 1 to min_ratio
    SCHEDULE_ONE_CYCLE, // torch's OneCycleLR with cosine annealing: its own warm-up
    SCHEDULE_INVERSE_SQRT,
    SCHEDULE_POLYNOMIAL,
};

struct schedule {
    enum schedule_kind kind;
    double lr;             // peak
    int64_t steps, warmup; // optimiser steps of the whole run, of the warm-up
    double min_ratio;      // cosine, rex: floor as a fraction of lr (cosine_min_lr_ratio)
    double constant_ratio; // cosine: reaches the floor at this fraction of the steps, then stays (0 = at the end)
    bool quadratic_warmup; // lr_quadratic_warmup
    double cycles;         // cosine: waves, 0.5 = falls once
    double power, lr_end;  // polynomial: 1, 1e-7
    double timescale;      // inverse_sqrt: steps; 0 = the warm-up, or 10000 without one
    double pct_start, div_factor, final_div_factor; // one_cycle: rising part, first = lr / div, last = first / final
};

// The rate of optimiser step `step`, counted from 0. As in transformers, step 0 of a warm-up has rate 0.
double schedule_lr(const struct schedule *schedule, int64_t step);
// Warm-up steps of a run by axolotl's rule: `count` as given, or `ratio` of the steps rounded down, or (both -1) 3 % of
// the steps and at most 100. A result of 1 becomes 2.
int64_t schedule_warmup(int64_t steps, int64_t count, double ratio);
