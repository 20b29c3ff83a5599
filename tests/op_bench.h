// One op call on a workbench: its tensors lie in a host image with canaries between rows and tensors, and the same
// image runs on any instruction set, thread count and pass, so that whole images can be compared byte for byte.
#pragma once

#include "kernels/alloc.h"
#include "kernels/backend.h"
#include "kernels/cpu/cpu.h"
#include "tests/harness.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BENCH_BYTES = 8 << 20, BENCH_CANARY = 0xA7, BENCH_TENSORS = 64, BENCH_MAX_THREADS = 3 };

struct bench {
    enum dtype act; // of activations; statistics are f64 when this is, else f32
    int64_t pad;    // ld = cols + pad
    unsigned seed;
    uint8_t *image, *start; // start: the image before any pass
    size_t used;
    struct tensor tensors[BENCH_TENSORS];
    int n_tensors;
    struct pool pool; // weights
    const struct weight *weights[BENCH_TENSORS];
    int n_weights;
    struct op_call call;
    const struct tensor *loss_weight[OP_MAX_OUT]; // d loss / d out[i] when it is not grad_out[i]
};

static inline void bench_require(bool good, const char *what) {
    if (good) return;
    fprintf(stderr, "workbench: %s\n", what);
    abort();
}

static inline struct bench *bench_open(enum dtype act, int64_t pad) {
    struct bench *t = mem_zalloc(1, sizeof *t);
    bench_require(t, "memory");
    t->act = act;
    t->pad = pad;
    t->image = mem_map(BENCH_BYTES);
    t->start = mem_map(BENCH_BYTES);
    bench_require(t->image && t->start, "memory");
    return t;
}

static inline void bench_close(struct bench *t) {
    mem_unmap(t->image, BENCH_BYTES);
    mem_unmap(t->start, BENCH_BYTES);
    pool_free(&t->pool);
    mem_free(t);
}

static inline double bench_get(const uint8_t *image, const struct tensor *x, int64_t row, int64_t col) {
    const uint8_t *p = image + x->offset + (size_t)(row * x->ld + col) * dtype_size(x->dtype);
    double d;
    float f;
    uint16_t h;
    int32_t i;
    switch (x->dtype) {
    case DTYPE_F64: return memcpy(&d, p, 8), d;
    case DTYPE_F32: return memcpy(&f, p, 4), (double)f;
    case DTYPE_BF16: return memcpy(&h, p, 2), (double)bf16_to_float(h);
    case DTYPE_I32:
    case DTYPE_U32: return memcpy(&i, p, 4), (double)i;
    default: return *p;
    }
}

static inline void bench_set(uint8_t *image, const struct tensor *x, int64_t row, int64_t col, double value) {
    uint8_t *p = image + x->offset + (size_t)(row * x->ld + col) * dtype_size(x->dtype);
    float f = (float)value;
    uint16_t h = bf16_from_float(f);
    int32_t i = (int32_t)value;
    switch (x->dtype) {
    case DTYPE_F64: memcpy(p, &value, 8); break;
    case DTYPE_F32: memcpy(p, &f, 4); break;
    case DTYPE_BF16: memcpy(p, &h, 2); break;
    case DTYPE_I32:
    case DTYPE_U32: memcpy(p, &i, 4); break;
    default: *p = (uint8_t)value; break;
    }
}

// The next test number, exact in bf16, so that images of all dtypes hold the same values.
static inline double bench_random(struct bench *t) {
    double x = test_random(7, t->seed++);
    return (double)bf16_to_float(bf16_from_float((float)x));
}

static inline struct tensor bench_tensor(struct bench *t, enum dtype dtype, int64_t rows, int64_t cols) {
    struct tensor x = {.dtype = dtype, .rows = rows, .cols = cols, .ld = cols + t->pad, .offset = t->used};
    t->used = (t->used + (size_t)(rows * x.ld) * dtype_size(dtype) + 64 + 63) / 64 * 64; // a canary after each
    bench_require(t->used <= BENCH_BYTES && t->n_tensors < BENCH_TENSORS, "too small");
    memset(t->image + x.offset, BENCH_CANARY, t->used - x.offset);
    t->tensors[t->n_tensors++] = x;
    return x;
}

// Random in [-1, 1).
static inline struct tensor bench_values(struct bench *t, enum dtype dtype, int64_t rows, int64_t cols) {
    struct tensor x = bench_tensor(t, dtype, rows, cols);
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t c = 0; c < cols; c++) bench_set(t->image, &x, r, c, bench_random(t));
    }
    return x;
}

static inline struct tensor bench_act(struct bench *t, int64_t rows, int64_t cols) {
    return bench_values(t, t->act, rows, cols);
}

static inline enum dtype bench_stat_dtype(const struct bench *t) {
    return t->act == DTYPE_F64 ? DTYPE_F64 : DTYPE_F32;
}

static inline struct tensor bench_stat(struct bench *t, int64_t rows, int64_t cols) {
    return bench_values(t, bench_stat_dtype(t), rows, cols);
}

static inline struct tensor bench_i32(struct bench *t, const int32_t *values, int64_t rows, int64_t cols) {
    int64_t pad = t->pad;
    if (cols > 2) t->pad = 0; // tables of sequences are contiguous
    struct tensor x = bench_tensor(t, DTYPE_I32, rows, cols);
    t->pad = pad;
    for (int64_t i = 0; i < rows * cols; i++) bench_set(t->image, &x, i / cols, i % cols, values[i]);
    return x;
}

// Keys {dataset row, token in row}.
static inline struct tensor bench_keys(struct bench *t, int64_t rows) {
    struct tensor x = bench_tensor(t, DTYPE_U32, rows, 2);
    for (int64_t r = 0; r < rows; r++) {
        bench_set(t->image, &x, r, 0, (double)(3 + r / 4));
        bench_set(t->image, &x, r, 1, (double)(r % 4));
    }
    return x;
}

static inline struct tensor bench_scalars(struct bench *t, const struct step_scalars *s) {
    int64_t pad = t->pad;
    t->pad = 0;
    struct tensor x = bench_tensor(t, DTYPE_U8, 1, sizeof *s);
    t->pad = pad;
    memcpy(t->image + x.offset, s, sizeof *s);
    return x;
}

// A frozen weight with random values in [-1, 1) + `base`, in any format that can be encoded.
static inline const struct weight *bench_weight(struct bench *t, enum quant format, int64_t rows, int64_t cols,
                                                double base) {
    struct weight *w = pool_alloc(&t->pool, sizeof *w);
    const struct quant_format *f = quant_format(format);
    size_t row_bytes = quant_row_bytes(f, cols);
    uint8_t *data = pool_alloc(&t->pool, (size_t)rows * row_bytes + 1);
    float *values = pool_array(&t->pool, (uint64_t)cols, sizeof(float));
    bench_require(w && data && values, "memory");
    data++; // weights of a file may lie anywhere
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t c = 0; c < cols; c++) values[c] = (float)(bench_random(t) + base);
        uint8_t *row = data + (size_t)r * row_bytes;
        if (format == QUANT_F32)
            memcpy(row, values, row_bytes);
        else if (f->encode)
            f->encode(values, row, cols);
        else {
            for (int64_t c = 0; c < cols; c++) {
                uint16_t h = format == QUANT_BF16 ? bf16_from_float(values[c]) : f16_from_float(values[c]);
                memcpy(row + 2 * c, &h, 2);
            }
        }
    }
    *w = (struct weight){.format = f, .rows = rows, .cols = cols, .data = data, .name = "test"};
    bench_require(t->n_weights < BENCH_TENSORS, "too many weights");
    t->weights[t->n_weights++] = w;
    return w;
}

// A random gradient for each of the first `n_out` outputs, and room for the gradient of each differentiable input. With
// `acc` the input gradients hold something already.
static inline void bench_gradients(struct bench *t, int n_out, bool acc) {
    for (int i = 0; i < n_out; i++) {
        t->call.grad_out[i] = bench_values(t, t->call.out[i].dtype, t->call.out[i].rows, t->call.out[i].cols);
    }
    for (int i = 0; i < OP_MAX_IN; i++) {
        if (!(op_table[t->call.op].differentiable >> i & 1)) continue;
        t->call.grad_in[i] = bench_values(t, t->call.in[i].dtype, t->call.in[i].rows, t->call.in[i].cols);
        t->call.acc[i] = acc;
    }
}

// --- running

struct bench_runner {
    struct backend *backend;
    struct tensor all;
};

// A backend with the named kernels; false (and nothing opened) when this CPU lacks them.
static inline bool bench_runner_open(struct bench_runner *r, const char *isa, int threads) {
    struct error err = {0};
    setenv("GRAFT_CPU", isa, 1);
    r->backend = backend_open_cpu(threads, &err);
    unsetenv("GRAFT_CPU");
    if (!r->backend) return false;
    r->all = (struct tensor){.dtype = DTYPE_U8, .rows = 1, .cols = BENCH_BYTES, .ld = BENCH_BYTES};
    bench_require(r->backend->class->reserve(r->backend, BENCH_BYTES, &err) == 0, err.text);
    return true;
}

static inline void bench_runner_close(struct bench_runner *r) {
    backend_close(r->backend);
}

enum bench_pass { BENCH_FORWARD, BENCH_RECOMPUTE, BENCH_BACKWARD };

// Runs a pass on t->image in place. The workspace lies behind the tensors and is filled with canaries before.
static inline int bench_run(struct bench *t, const struct bench_runner *r, enum bench_pass pass, struct error *err) {
    const struct kernel *kernel = &r->backend->class->kernels[t->call.op];
    size_t need = kernel->workspace_bytes(&t->call, pass == BENCH_BACKWARD, r->backend->threads);
    bench_require(t->used + need + 64 <= BENCH_BYTES, "too small for the workspace");
    t->call.workspace = (struct tensor){.dtype = need ? DTYPE_U8 : DTYPE_NONE,
                                        .rows = 1,
                                        .cols = (int64_t)need,
                                        .ld = (int64_t)need,
                                        .offset = t->used};
    const struct backend_class *c = r->backend->class;
    memset(t->image + t->used, BENCH_CANARY, need + 64);
    int (*function)(struct backend *, const struct op_call *, struct error *) =
        pass == BENCH_BACKWARD                         ? kernel->backward
        : pass == BENCH_RECOMPUTE && kernel->recompute ? kernel->recompute
                                                       : kernel->forward;
    if (c->write(r->backend, r->all, t->image, t->used + need + 64, err)) return -1;
    int status = function(r->backend, &t->call, err);
    if (c->read(r->backend, t->image, r->all, t->used + need + 64, err)) return -1;
    for (size_t i = t->used + need; i < t->used + need + 64; i++) CHECK(t->image[i] == BENCH_CANARY);
    return status;
}

// Keeps the image as it is now as the point that bench_reset goes back to.
static inline void bench_keep(struct bench *t) {
    memcpy(t->start, t->image, t->used);
}
static inline void bench_reset(struct bench *t) {
    memcpy(t->image, t->start, t->used);
}

// Everything that is no element of a tensor is still a canary.
static inline void bench_check_canaries(const struct bench *t, const char *name) {
    uint8_t *mine = mem_zalloc(1, t->used);
    bench_require(mine, "memory");
    for (int i = 0; i < t->n_tensors; i++) {
        const struct tensor *x = &t->tensors[i];
        size_t size = dtype_size(x->dtype);
        for (int64_t r = 0; r < x->rows; r++)
            memset(mine + x->offset + (size_t)(r * x->ld) * size, 1, (size_t)x->cols * size);
    }
    for (size_t i = 0; i < t->used; i++) {
        if (mine[i] || t->image[i] == BENCH_CANARY) continue;
        test_fail(__FILE__, __LINE__, "%s: byte %zu outside of every tensor was written", name, i);
        break;
    }
    mem_free(mine);
}

// The largest difference between two images of a tensor, relative to the largest element of `want`. A NaN counts as
// 1e9.
static inline double bench_difference(const uint8_t *got, const uint8_t *want, const struct tensor *x) {
    double worst = 0, largest = 1e-30;
    for (int64_t r = 0; r < x->rows; r++) {
        for (int64_t c = 0; c < x->cols; c++) {
            double a = bench_get(got, x, r, c), b = bench_get(want, x, r, c), d = fabs(a - b);
            if (!(d <= 1e9)) d = 1e9;
            if (d > worst) worst = d;
            if (fabs(b) > largest) largest = fabs(b);
        }
    }
    return worst / largest;
}
