// A backend with its memory plan: the one object that the tape, the trainer and generation run ops on.
// While the plan is being recorded the backend is meta, and the same code computes nothing.
#pragma once

#include "kernels/backend.h"
#include "kernels/plan.h"

// Where the first number that is not finite came up.
struct nonfinite {
    bool found, backward;
    enum op op;
    int segment; // weights.h
    int64_t row; // of the op's output; -1 = in the gradient of an adapter, which belongs to no row
};

struct op_times {
    double seconds, flops; // by the host's clock: every call is waited for
    int64_t calls;
};

struct device {
    struct backend *backend; // owned
    struct plan *plan;       // owned; shared between the recording and the real device through device_start
    int planned_threads;     // threads of the backend that will run (workspace sizes)
    double flops;            // counted over all calls since the caller last zeroed it
    struct op_times (
        *times)[OP_COUNT][2]; // sums by op, forward and backward, where somebody measures; else NULL. Borrowed
    int segment;              // the running weight segment, set by the tape
    struct nonfinite *watch;  // checking mode: every op is waited for and its results looked at; NULL = off. Borrowed
};

// A device that records. Kind and `threads` are those of the backend that will run later.
int device_open_recording(struct device *device, enum device_kind kind, int threads, struct error *err);
// Seals the plan, closes the meta backend, and goes on with `backend` (owned from now on): reserves the arena.
int device_start(struct device *device, struct backend *backend, struct error *err);
void device_close(struct device *device); // zeroed struct is a no-op

static inline bool device_recording(const struct device *d) {
    return !plan_sealed(d->plan);
}

// A buffer of rows x cols; contents undefined (zero for run-long ones). ld = cols.
int device_tensor(struct device *device, enum plan_class class, enum dtype dtype, int64_t rows, int64_t cols,
                  struct tensor *out, struct error *err);
// Runs one op: asks for its workspace, touches its buffers, calls the kernel, reports dead ranges.
int device_forward(struct device *device, struct op_call *call, struct error *err);
int device_recompute(struct device *device, struct op_call *call, struct error *err);
int device_backward(struct device *device, struct op_call *call, struct error *err);
int device_write(struct device *device, struct tensor dst, const void *src, size_t bytes, struct error *err);
int device_read(struct device *device, void *dst, struct tensor src, size_t bytes, struct error *err);
int device_fill(struct device *device, struct tensor t, double value, struct error *err);
