// Learning rates, step by step, beside what transformers 5.23 (get_*_schedule*), torch 2.15 (OneCycleLR) and axolotl
// (src/axolotl/utils/schedulers.py) gave for lr 1e-3, 20 steps, 4 of warm-up.
#include "kernels/base.h"
#include "tests/harness.h"
#include "train/schedule.h"

#include <math.h>

enum { SHOWN = 8 };
static const int64_t steps[SHOWN] = {0, 1, 3, 4, 5, 9, 14, 19};

#define COMMON .lr = 1e-3, .steps = 20, .warmup = 4, .cycles = 0.5, .power = 1, .lr_end = 1e-7
#define CYCLE  .div_factor = 25, .final_div_factor = 1e4

static const struct {
    const char *name;
    struct schedule schedule;
    double want[SHOWN];
} references[] = {
    {"constant", {.kind = SCHEDULE_CONSTANT, COMMON}, {1e-3, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3}},
    {"constant with warm-up",
     {.kind = SCHEDULE_CONSTANT_WARMUP, COMMON},
     {0, 0.00025, 0.00075, 0.001, 0.001, 0.001, 0.001, 0.001}},
    {"linear",
     {.kind = SCHEDULE_LINEAR, COMMON},
     {0, 0.00025, 0.00075, 0.001, 0.0009375, 0.0006875, 0.000375, 6.25e-05}},
    {"linear takes no square", // lr_quadratic_warmup belongs to the cosine
     {.kind = SCHEDULE_LINEAR, COMMON, .quadratic_warmup = true},
     {0, 0.00025, 0.00075, 0.001, 0.0009375, 0.0006875, 0.000375, 6.25e-05}},
    {"cosine",
     {.kind = SCHEDULE_COSINE, COMMON},
     {0, 0.00025, 0.00075, 0.001, 0.0009903926402, 0.0007777851165, 0.0003086582838, 9.607359798e-06}},
    {"cosine, 1.5 waves",
     {.kind = SCHEDULE_COSINE, .lr = 1e-3, .steps = 20, .warmup = 4, .cycles = 1.5},
     {0, 0.00025, 0.00075, 0.001, 0.0009157348062, 9.607359798e-06, 0.0009619397663, 8.426519385e-05}},
    {"cosine, quadratic warm-up",
     {.kind = SCHEDULE_COSINE, COMMON, .quadratic_warmup = true},
     {0, 6.25e-05, 0.0005625, 0.001, 0.0009903926402, 0.0007777851165, 0.0003086582838, 9.607359798e-06}},
    {"cosine, floor",
     {.kind = SCHEDULE_COSINE, COMMON, .min_ratio = 0.1},
     {0, 0.00025, 0.00075, 0.001, 0.0009913533762, 0.0008000066049, 0.0003777924554, 0.0001086466238}},
    {"cosine, early floor",
     {.kind = SCHEDULE_COSINE, COMMON, .min_ratio = 0.1, .constant_ratio = 0.8},
     {0, 0.00025, 0.00075, 0.001, 0.0009846666218, 0.0006664685703, 0.0001602885683, 0.0001}},
    {"inverse square root",
     {.kind = SCHEDULE_INVERSE_SQRT, COMMON},
     {0, 0.00025, 0.00075, 0.001, 0.000894427191, 0.0006666666667, 0.0005345224838, 0.0004588314677}},
    {"inverse square root, scale 7",
     {.kind = SCHEDULE_INVERSE_SQRT, COMMON, .timescale = 7},
     {0, 0.00025, 0.00075, 0.001, 0.0009354143467, 0.0007637626158, 0.0006416889479, 0.0005640760748}},
    {"polynomial",
     {.kind = SCHEDULE_POLYNOMIAL, .lr = 1e-3, .steps = 20, .warmup = 4, .power = 2, .lr_end = 1e-5},
     {0, 0.00025, 0.00075, 0.001, 0.0008801171875, 0.0004779296875, 0.00014921875, 1.38671875e-05}},
    {"one cycle",
     {.kind = SCHEDULE_ONE_CYCLE, COMMON, CYCLE, .pct_start = 0.2},
     {4e-05, 0.00028, 0.001, 0.0009903926786, 0.0009619399185, 0.0006913429508, 0.0002222179946, 4e-09}},
    {"one cycle without a rise",
     {.kind = SCHEDULE_ONE_CYCLE, COMMON, CYCLE, .pct_start = 0},
     {0.0009938441949, 0.000975528356, 0.0009045088792, 0.0008535539764, 0.0007938934506, 0.000500002, 0.0001464500236,
      4e-09}},
    {"rex",
     {.kind = SCHEDULE_REX, COMMON},
     {0.00025, 0.0005, 0.001, 0.0009933774834, 0.000985915493, 0.0009433962264, 0.0008196721311, 0}},
    {"rex, floor",
     {.kind = SCHEDULE_REX, COMMON, .min_ratio = 0.3},
     {0.00025, 0.0005, 0.001, 0.0009953642384, 0.0009901408451, 0.0009603773585, 0.0008737704918, 0.0003}},
};

TEST(rates) {
    for (size_t i = 0; i < COUNT_OF(references); i++) {
        for (int k = 0; k < SHOWN; k++) {
            double got = schedule_lr(&references[i].schedule, steps[k]), want = references[i].want[k];
            CHECK_MSG(fabs(got - want) <= 1e-9 * fmax(want, 1e-4), "%s, step %lld: %.10g, wanted %.10g",
                      references[i].name, (long long)steps[k], got, want);
        }
    }
}

// axolotl: int(ratio * steps); 3 % and at most 100 when nothing is given; 1 becomes 2.
TEST(warmup) {
    CHECK_INT(schedule_warmup(23, -1, 0.1), 2);
    CHECK_INT(schedule_warmup(19, -1, 0.1), 2); // int(1.9) = 1
    CHECK_INT(schedule_warmup(5, -1, 0.1), 0);
    CHECK_INT(schedule_warmup(1000, -1, 0.5), 500);
    CHECK_INT(schedule_warmup(50, 1, -1), 2);
    CHECK_INT(schedule_warmup(50, 0, -1), 0);
    CHECK_INT(schedule_warmup(50, 7, -1), 7);
    CHECK_INT(schedule_warmup(100, -1, -1), 3);
    CHECK_INT(schedule_warmup(40, -1, -1), 2);
    CHECK_INT(schedule_warmup(10000, -1, -1), 100);
}

TEST_MAIN(CASE(rates), CASE(warmup))
