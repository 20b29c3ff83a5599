// What a run's plan comes to in memory, on the device that it is for.
#pragma once

#include "train/session.h"

// On the CPU: anonymous memory of the process (the base is mapped and not counted). On a GPU: memory of that GPU.
struct run_memory {
    bool gpu;
    uint64_t arena;    // the plan's buffers
    uint64_t base;     // GPU: weights that stay, and slots that others pass through
    uint64_t streamed; // GPU: of the base, what passes through the slots; lies in locked host memory
    uint64_t fixed;    // CPU: vocabulary, data, program; GPU: workspace of products, the driver's context
    uint64_t peak;     // arena + base + fixed
    uint64_t there;    // what there is of it; 0 = unknown (a plan for a GPU that is not here)
};
// From a session that was recorded, sealed or not.
// What is held of it now.
uint64_t run_memory_held(const struct session *session);
int run_memory_of(const struct session *session, struct run_memory *out, struct error *err);
