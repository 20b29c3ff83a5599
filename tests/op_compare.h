// One case on every instruction set this CPU has and on 1, 2 and 3 threads: the same bits everywhere, close to the
// reference loops, and nothing written outside of the tensors.
#pragma once

#include "tests/op_cases.h"

static const char *const compare_sets[] = {"c", "avx2", "avx512", "avx512bf16"};

// Forward, and backward when there is one, on a fresh bench. NULL when the CPU lacks the set.
static inline struct bench *compare_run(const struct op_case *c, enum dtype act, int64_t pad, const char *set,
                                        int threads) {
    struct bench_runner r;
    struct error err = {0};
    if (!bench_runner_open(&r, set, threads)) return NULL;
    struct bench *t = bench_open(act, pad);
    c->build(t, c->variant);
    bench_keep(t);
    bool backward = op_table[c->op].differentiable != 0;
    bool good = op_check(&t->call, &err) == 0 && bench_run(t, &r, BENCH_FORWARD, &err) == 0 &&
                (!backward || bench_run(t, &r, BENCH_BACKWARD, &err) == 0);
    CHECK_MSG(good, "%s, %s, %d threads: %s", c->name, set, threads, err.text);
    bench_check_canaries(t, c->name);
    bench_runner_close(&r);
    return t;
}

static inline void compare_bits(const struct op_case *c, const struct bench *a, const struct bench *b,
                                const char *what) {
    size_t different = 0, first = 0;
    for (size_t i = 0; i < a->used; i++) {
        if (a->image[i] != b->image[i] && different++ == 0) first = i;
    }
    if (!different) return;
    int at = 0;
    while (at + 1 < a->n_tensors && a->tensors[at + 1].offset <= first) at++;
    CHECK_MSG(false, "%s: %s: %zu bytes differ, first in tensor %d at byte %zu", c->name, what, different, at,
              first - a->tensors[at].offset);
}

static inline void compare_case(const struct op_case *c, enum dtype act, int64_t pad, double tolerance) {
    struct bench *want = compare_run(c, act, pad, "reference", 1), *first = NULL;
    char what[64];
    for (size_t i = 0; i < COUNT_OF(compare_sets); i++) {
        for (int threads = 1; threads <= BENCH_MAX_THREADS; threads++) {
            struct bench *got = compare_run(c, act, pad, compare_sets[i], threads);
            if (!got) break;
            snprintf(what, sizeof what, "%s, %d threads, %s", compare_sets[i], threads, dtype_name(act));
            for (int k = 0; k < got->n_tensors && threads == 1; k++) {
                if (got->tensors[k].dtype == DTYPE_U8) continue; // scalars: doubles, looked at by whoever cares
                double d = bench_difference(got->image, want->image, &got->tensors[k]);
                CHECK_MSG(d <= tolerance, "%s: %s: tensor %d is off by %.3g of its largest", c->name, what, k, d);
            }
            if (first) compare_bits(c, first, got, what);
            if (first)
                bench_close(got);
            else
                first = got;
        }
    }
    if (first) bench_close(first);
    bench_close(want);
}

// f32 and bf16, rows close together and apart.
static inline void compare_everywhere(const struct op_case *c, double tolerance) {
    compare_case(c, DTYPE_F32, 0, tolerance);
    compare_case(c, DTYPE_F32, 3, tolerance);
    compare_case(c, DTYPE_BF16, 0, 8e-3);
    compare_case(c, DTYPE_BF16, 5, 8e-3);
}
