// Inside the CPU backend: the backend object, its thread pool, and the table of kernels per instruction set.
#pragma once

#include "kernels/backend.h"

#include <stdint.h>

// A pool of worker threads. threads_run calls task(context, i, thread) for i = 0..tasks-1, each once, handed out by an
// atomic counter (whoever is free takes the next), the caller works too, and returns when all are done. Results must
// not depend on who runs what. Workers spin briefly, then sleep.
struct threads;
struct threads *threads_open(int count, struct error *err);
void threads_close(struct threads *threads);
int threads_count(const struct threads *threads);
void threads_run(struct threads *threads, int64_t tasks, void (*task)(void *context, int64_t i, int thread),
                 void *context);

struct cpu_isa; // the fast kernels of one instruction set: kernels/cpu/isa.h

struct cpu_backend {
    struct backend base;
    uint8_t *arena;
    size_t arena_bytes;
    struct threads *threads;
    const struct cpu_isa *isa; // NULL: run the reference loops
    bool bf16_dot;             // the CPU has vdpbf16ps and may use it
    char description[128];
};

static inline void *cpu_at(const struct cpu_backend *b, const struct tensor *t) {
    return t->dtype == DTYPE_NONE ? NULL : (void *)(b->arena + t->offset);
}
static inline float *cpu_f32(const struct cpu_backend *b, const struct tensor *t) {
    return (float *)cpu_at(b, t);
}
static inline int32_t *cpu_i32(const struct cpu_backend *b, const struct tensor *t) {
    return (int32_t *)cpu_at(b, t);
}
static inline struct step_scalars *cpu_scalars(const struct cpu_backend *b, const struct op_call *call) {
    return (struct step_scalars *)cpu_at(b, &call->scalars);
}
