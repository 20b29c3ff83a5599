// Where a training step spends its time: build/bench/profile CONFIG.yml [steps] [GFLOP/s at the peak]. Trains, writes
// nothing, and prints per op and direction: share of the step, calls, GFLOP/s, share of the machine's peak of fused
// multiply-adds (measured by build/bench/gemm peak).
#include "train/command.h"
#include "train/trainer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int train(struct trainer *t, const struct run_config *config, int64_t steps, double *seconds, double *tokens,
                 struct op_times (*times)[OP_COUNT][2], struct error *err) {
    struct trainer_options options = {.command = "profile"};
    struct step_result result;
    if (trainer_prepare(config, &options, t, err) || trainer_start_device(t, err)) return -1;
    int64_t count = loader_count(t->loader, 0, err);
    for (int64_t i = -1; i < steps; i++) { // the first one touches memory for the first time
        if (i == 0) t->session.device.times = times;
        double start = clock_now();
        if (loader_batch(t->loader, 0, (i + 1) % count, &t->batch, err) ||
            step_begin(&t->engine, i + 1, 1, 1e-5, t->batch.weight, err) || step_micro(&t->engine, &t->batch, err) ||
            step_end(&t->engine, &result, err)) {
            return -1;
        }
        if (i >= 0) *seconds += clock_now() - start, *tokens += t->batch.tokens;
    }
    t->session.device.times = NULL;
    return 0;
}

static void print(struct op_times times[OP_COUNT][2], double seconds, double tokens, double peak) {
    double flops = 0, spent = 0;
    printf("%-14s %-9s %7s %8s %9s %9s\n", "op", "", "share", "calls", "GFLOP/s", "of peak");
    for (int op = 0; op < OP_COUNT; op++) {
        for (int back = 0; back < 2; back++) {
            const struct op_times *t = &times[op][back];
            if (!t->calls) continue;
            double rate = t->flops / t->seconds * 1e-9;
            printf("%-14s %-9s %6.1f%% %8lld %9.1f", op_table[op].name, back ? "backward" : "forward",
                   100 * t->seconds / seconds, (long long)t->calls, rate);
            printf(peak > 0 ? " %8.1f%%\n" : "\n", 100 * rate / peak);
            flops += t->flops, spent += t->seconds;
        }
    }
    printf("%-24s %6.1f%%\n", "outside of ops", 100 * (seconds - spent) / seconds);
    printf("%-24s %6.1f%% %8s %9.1f", "step", 100.0, "", flops / seconds * 1e-9);
    printf(peak > 0 ? " %8.1f%%\n" : "\n", 100 * flops / seconds * 1e-9 / peak);
    printf("%.0f tokens/s\n", tokens / seconds);
}

int main(int argc, char **argv) {
    struct error err = {0};
    struct run_config config = {0};
    if (argc < 2) {
        fprintf(stderr, "profile CONFIG.yml [steps] [GFLOP/s at the peak]\n");
        return 64;
    }
    struct op_times(*times)[OP_COUNT][2] = mem_zalloc(1, sizeof *times);
    struct trainer *t = mem_zalloc(1, sizeof *t);
    double seconds = 0, tokens = 0;
    int64_t steps = argc > 2 ? strtoll(argv[2], NULL, 10) : 5;
    int failed = !t || !times ? error_memory(&err, "the trainer", sizeof *t)
                              : config_from_arguments(1, argv + 1, &config, &err) ||
                                    train(t, &config, steps, &seconds, &tokens, times, &err);
    if (failed)
        fprintf(stderr, "profile: %s\n", err.text);
    else
        print(*times, seconds, tokens, argc > 3 ? strtod(argv[3], NULL) : 0);
    if (t) trainer_close(t);
    mem_free(t);
    mem_free(times);
    config_free(&config);
    return failed ? err.code : 0;
}
