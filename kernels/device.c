// See device.h.
#include "kernels/device.h"

#include "kernels/alloc.h"
#include "kernels/clock.h"

#include <assert.h>
#include <math.h>
#include <string.h>

int device_open_recording(struct device *device, enum device_kind kind, int threads, struct error *err) {
    *device = (struct device){.planned_threads = threads};
    device->plan = plan_new(err);
    device->backend = device->plan ? backend_open_meta(kind, threads, err) : NULL;
    if (device->backend) return 0;
    device_close(device);
    return -1;
}

int device_start(struct device *device, struct backend *backend, struct error *err) {
    assert(device_recording(device));
    backend_set_weights(backend, device->backend->weights, device->backend->n_weights, device->backend->n_segments);
    backend_close(device->backend);
    device->backend = backend;
    device->flops = 0;
    if (plan_seal(device->plan, err)) return -1;
    return backend->class->reserve(backend, plan_arena_bytes(device->plan), err);
}

void device_close(struct device *device) {
    backend_close(device->backend);
    plan_free(device->plan);
    *device = (struct device){0};
}

int device_tensor(struct device *device, enum plan_class class, enum dtype dtype, int64_t rows, int64_t cols,
                  struct tensor *out, struct error *err) {
    struct tensor t = {.dtype = dtype, .rows = rows, .cols = cols, .ld = cols};
    size_t bytes = (size_t)rows * (size_t)cols * dtype_size(dtype);
    t.buffer = plan_request(device->plan, class, bytes, &t.offset, err);
    if (!t.buffer) return -1;
    *out = t;
    return 0;
}

enum { MAX_TOUCHED = 3 * OP_MAX_IN + 2 * OP_MAX_OUT + OP_MAX_SAVED + 5 + 2 * OP_MAX_TRAINED };

static int touched(const struct op_call *call, uint32_t *ids) {
    int n = 0;
    for (int i = 0; i < OP_MAX_IN; i++) ids[n++] = call->in[i].buffer, ids[n++] = call->grad_in[i].buffer;
    for (int i = 0; i < OP_MAX_OUT; i++) ids[n++] = call->out[i].buffer, ids[n++] = call->grad_out[i].buffer;
    for (int i = 0; i < OP_MAX_SAVED; i++) ids[n++] = call->saved[i].buffer;
    ids[n++] = call->scalars.buffer;
    ids[n++] = call->workspace.buffer;
    if (call->op == OP_EMBED) ids[n++] = call->p.embed.lengths.buffer, ids[n++] = call->p.embed.on.row_ids.buffer;
    if (call->op == OP_TOKEN_LOGPROB || call->op == OP_LOGITS)
        ids[n++] = call->p.logprob.on.keys.buffer, ids[n++] = call->p.logprob.on.row_ids.buffer;
    if (call->op == OP_MOE_BALANCE) ids[n++] = call->p.balance.sums.buffer;
    if (call->op == OP_COLUMNS) ids[n++] = call->p.columns.norms.buffer;
    if (call->op == OP_ROW_NORMS) ids[n++] = call->p.row_norms.a.buffer, ids[n++] = call->p.row_norms.b.buffer;
    struct op_trained trained[OP_MAX_TRAINED];
    for (int i = 0, count = op_trained(call->op, &call->p, trained); i < count; i++)
        ids[n++] = trained[i].value.buffer, ids[n++] = trained[i].gradient.buffer;
    assert(n <= MAX_TOUCHED);
    return n;
}

// --- checking mode

// The first row of `t` that holds NaN or infinity; -1 = none.
static int find_row(struct device *device, const struct tensor *t, int64_t *row, struct error *err) {
    enum { PIECE = 1024 };
    uint8_t piece[PIECE * sizeof(float)];
    size_t size = dtype_size(t->dtype);
    *row = -1;
    if (t->dtype != DTYPE_F32 && t->dtype != DTYPE_BF16) return 0;
    for (int64_t i = 0; i < t->rows; i++) {
        for (int64_t from = 0; from < t->cols; from += PIECE) {
            int64_t n = t->cols - from < PIECE ? t->cols - from : PIECE;
            struct tensor part = tensor_cols(tensor_rows(*t, i, i + 1), from, from + n);
            if (device->backend->class->read(device->backend, piece, part, (size_t)n * size, err)) return -1;
            for (int64_t j = 0; j < n; j++) {
                float x;
                uint16_t half;
                memcpy(&half, piece + 2 * j, 2);
                if (t->dtype == DTYPE_F32)
                    memcpy(&x, piece + 4 * j, 4);
                else
                    x = bf16_to_float(half);
                if (isfinite(x)) continue;
                *row = i;
                return 0;
            }
        }
    }
    return 0;
}

static int check_results(struct device *device, const struct op_call *call, bool backward, struct error *err) {
    struct nonfinite *w = device->watch;
    int64_t row;
    for (int i = 0; i < (backward ? OP_MAX_IN : OP_MAX_OUT) && !w->found; i++) {
        if (find_row(device, backward ? &call->grad_in[i] : &call->out[i], &row, err)) return -1;
        if (row >= 0) *w = (struct nonfinite){true, backward, call->op, device->segment, row};
    }
    // The head's adapter gets its gradients in the forward pass where that is fused.
    struct op_trained trained[OP_MAX_TRAINED];
    int n = backward || call->op == OP_TOKEN_LOGPROB ? op_trained(call->op, &call->p, trained) : 0;
    for (int i = 0; i < n && !w->found; i++) {
        if (find_row(device, &trained[i].gradient, &row, err)) return -1;
        if (row >= 0) *w = (struct nonfinite){true, true, call->op, device->segment, -1};
    }
    return 0;
}

enum direction { FORWARD, RECOMPUTE, BACKWARD };

static int run(struct device *device, struct op_call *call, enum direction direction, struct error *err) {
    struct backend *b = device->backend;
    const struct kernel *kernel = &b->class->kernels[call->op];
    bool backward = direction == BACKWARD;
    char why[128] = "";
    if (!backward && op_check(call, err)) return -1;
    if (kernel->supports && !kernel->supports(call, why, sizeof why)) {
        return error_set(err, STATUS_INTERNAL, "%s: %s is not supported: %s", b->class->name, op_table[call->op].name,
                         why);
    }
    call->workspace = (struct tensor){0};
    if (kernel->workspace_bytes) {
        size_t bytes = kernel->workspace_bytes(call, backward, device->planned_threads);
        bool head = call->op == OP_TOKEN_LOGPROB || call->op == OP_LOGITS;
        if (bytes && device_tensor(device, head ? PLAN_LOGITS : PLAN_WORKSPACE, DTYPE_U8, 1, (int64_t)bytes,
                                   &call->workspace, err)) {
            return -1;
        }
    }
    uint32_t ids[MAX_TOUCHED];
    plan_touch(device->plan, ids, touched(call, ids));
    int (*function)(struct backend *, const struct op_call *, struct error *) =
        backward                                              ? kernel->backward
        : direction == RECOMPUTE && kernel->recompute != NULL ? kernel->recompute
                                                              : kernel->forward;
    if (!function) {
        return error_set(err, STATUS_INTERNAL, "%s: %s has no %s kernel", b->class->name, op_table[call->op].name,
                         backward ? "backward" : "forward");
    }
    double start = device->times ? clock_now() : 0;
    if (function(b, call, err)) return error_prefix(err, "%s", op_table[call->op].name);
    if (device->watch && !device->watch->found && check_results(device, call, backward, err)) return -1;
    device->flops += op_flops(call, backward);
    if (device->times) {
        if (b->class->read(b, NULL, (struct tensor){0}, 0, err)) return -1;
        struct op_times *t = &(*device->times)[call->op][backward];
        t->seconds += clock_now() - start, t->flops += op_flops(call, backward), t->calls++;
    }
    plan_call(device->plan);
    size_t offset, bytes;
    while (plan_next_dead(device->plan, &offset, &bytes)) {
        if (b->class->dead) b->class->dead(b, offset, bytes);
    }
    return 0;
}

int device_forward(struct device *device, struct op_call *call, struct error *err) {
    return run(device, call, FORWARD, err);
}

int device_recompute(struct device *device, struct op_call *call, struct error *err) {
    return run(device, call, RECOMPUTE, err);
}

int device_backward(struct device *device, struct op_call *call, struct error *err) {
    return run(device, call, BACKWARD, err);
}

int device_write(struct device *device, struct tensor dst, const void *src, size_t bytes, struct error *err) {
    assert(bytes <= tensor_bytes(&dst));
    plan_touch(device->plan, &dst.buffer, 1);
    return device->backend->class->write(device->backend, dst, src, bytes, err);
}

int device_read(struct device *device, void *dst, struct tensor src, size_t bytes, struct error *err) {
    assert(bytes <= tensor_bytes(&src));
    plan_touch(device->plan, &src.buffer, 1);
    return device->backend->class->read(device->backend, dst, src, bytes, err);
}

int device_fill(struct device *device, struct tensor t, double value, struct error *err) {
    struct op_call call = {.op = OP_FILL, .out = {t}, .p.fill.value = value};
    return device_forward(device, &call, err);
}
