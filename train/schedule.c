// See schedule.h.
#include "train/schedule.h"

#include <math.h>

static const double PI = 3.14159265358979323846;

static double cosine(const struct schedule *s, int64_t step) {
    double total = (double)s->steps, warmup = (double)s->warmup, at = (double)step;
    if (s->constant_ratio > 0) { // the floor comes early and stays
        total = floor(total * s->constant_ratio);
        if (at > total) at = total;
    }
    double progress = (at - warmup) / fmax(1, total - warmup);
    double scale = fmax(0, 0.5 * (1 + cos(2 * PI * s->cycles * progress)));
    return (1 - s->min_ratio) * scale + s->min_ratio;
}

static double anneal(double from, double to, double part) {
    return to + 0.5 * (from - to) * (1 + cos(PI * part));
}

// Rises from lr / div_factor to lr until step pct_start * steps - 1, then falls to lr / div_factor / final_div_factor.
static double one_cycle(const struct schedule *s, int64_t step) {
    double first = 1 / s->div_factor, last = first / s->final_div_factor;
    double top = s->pct_start * (double)s->steps - 1, end = fmax(top + 1, (double)s->steps - 1);
    double at = fmin((double)step, end);
    return top > 0 && at <= top ? anneal(first, 1, at / top) : anneal(1, last, (at - top) / (end - top));
}

static double after_warmup(const struct schedule *s, int64_t step) {
    double left = fmax(0, (double)(s->steps - step)), span = fmax(1, (double)(s->steps - s->warmup));
    double progress = (double)(step - s->warmup) / span;
    switch (s->kind) {
    case SCHEDULE_CONSTANT:
    case SCHEDULE_CONSTANT_WARMUP: return 1;
    case SCHEDULE_LINEAR: return left / span;
    case SCHEDULE_COSINE: return cosine(s, step);
    case SCHEDULE_ONE_CYCLE: return one_cycle(s, step);
    case SCHEDULE_POLYNOMIAL: {
        double end = s->lr_end / s->lr;
        return step >= s->steps ? end : (1 - end) * pow(left / span, s->power) + end;
    }
    case SCHEDULE_INVERSE_SQRT: {
        double scale = s->timescale > 0 ? s->timescale : s->warmup ? (double)s->warmup : 10000;
        return 1 / sqrt(((double)step + scale - (double)s->warmup) / scale);
    }
    case SCHEDULE_REX: {
        double z = fmax(0, 1 - progress);
        return s->min_ratio + (1 - s->min_ratio) * (z / (0.1 + 0.9 * z));
    }
    }
    return 1;
}

double schedule_lr(const struct schedule *s, int64_t step) {
    if (s->kind == SCHEDULE_REX) step++; // axolotl's counts from 1: the last step has the floor
    bool warms_up = s->kind != SCHEDULE_CONSTANT && s->kind != SCHEDULE_ONE_CYCLE;
    if (warms_up && step < s->warmup) {
        double part = (double)step / fmax(1, (double)s->warmup);
        return s->lr * (s->quadratic_warmup && s->kind == SCHEDULE_COSINE ? part * part : part);
    }
    return s->lr * after_warmup(s, step);
}

int64_t schedule_warmup(int64_t steps, int64_t count, double ratio) {
    int64_t warmup = count >= 0 ? count : (int64_t)((ratio >= 0 ? ratio : 0.03) * (double)steps);
    if (count < 0 && ratio < 0 && warmup > 100) warmup = 100;
    return warmup == 1 ? 2 : warmup;
}
