// Ops over token rows: checks what is data (ids, positions, slots), fills the argument block of the row kernel, and
// gives ranges of rows to the threads. Rows are independent, so bits do not depend on the split.
#include "kernels/cpu/rows.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/reference.h"
#include "kernels/random.h"

#include <math.h>
#include <string.h>

enum { TASK_ELEMENTS = 32768 }; // of one task: tens of microseconds
enum { BIAS_TASK = 64 };        // columns

struct row_job {
    row_kernel kernel;
    const void *args;
    int64_t rows, chunk;
};

static void row_task(void *context, int64_t i, int thread) {
    const struct row_job *job = context;
    int64_t begin = i * job->chunk, end = begin + job->chunk;
    (void)thread;
    job->kernel(job->args, begin, end < job->rows ? end : job->rows);
}

void rows_run(struct cpu_backend *b, row_kernel kernel, const void *args, int64_t rows, int64_t cols) {
    int64_t chunk = TASK_ELEMENTS / (cols > 0 ? cols : 1);
    if (chunk < 1) chunk = 1;
    struct row_job job = {kernel, args, rows, chunk};
    threads_run(b->threads, (rows + chunk - 1) / chunk, row_task, &job);
}

static struct cpu_backend *self(struct backend *backend) {
    return (struct cpu_backend *)backend;
}

static bool same_place(const struct tensor *a, const struct tensor *b) {
    return tensor_present(a) && tensor_present(b) && a->offset == b->offset;
}

// --- norms

size_t cpu_norm_workspace(const struct op_call *call, bool backward, int threads) {
    (void)backward, (void)threads;
    return 2 * (size_t)call->in[0].cols * sizeof(float);
}

// Weight and bias of the columns, or of the columns of a group.
static void norm_values(const union op_params *p, int64_t cols, float *w, float *bias) {
    if (p->norm.w)
        weight_decode(p->norm.w, 0, 0, p->norm.w->cols, w);
    else
        for (int64_t i = 0; i < cols; i++) w[i] = 1;
    for (int64_t i = 0; p->norm.w && p->norm.plus_one && i < p->norm.w->cols; i++) w[i] += 1;
    if (p->norm.bias && !tensor_present(&p->norm.own_bias)) weight_decode(p->norm.bias, 0, 0, p->norm.bias->cols, bias);
}

// The argument block without its activations; weight and bias are decoded into the workspace.
static int norm_open(struct cpu_backend *b, const struct op_call *call, struct norm_args *a, struct error *err) {
    int64_t cols = call->in[0].cols, group = cols / call->p.norm.groups;
    if (tensor_bytes(&call->workspace) < cpu_norm_workspace(call, false, 1)) {
        return error_set(err, STATUS_INTERNAL, "workspace too small");
    }
    float *values = cpu_f32(b, &call->workspace);
    const struct tensor *own = &call->p.norm.own_bias, *dbias = &call->p.norm.dbias;
    *a = (struct norm_args){.dtype = call->in[0].dtype,
                            .kind = call->p.norm.kind,
                            .cols = group,
                            .groups = call->p.norm.groups,
                            .step = call->p.norm.w && call->p.norm.w->cols < cols ? 0 : group,
                            .eps = call->p.norm.eps,
                            .scale = call->p.norm.scale,
                            .w = values,
                            .bias = tensor_present(own) ? cpu_f32(b, own)
                                    : call->p.norm.bias ? values + cols
                                                        : NULL,
                            .dbias = tensor_present(dbias) ? cpu_f32(b, dbias) : NULL,
                            .bias_cols = dbias->cols,
                            .rows = call->in[0].rows,
                            .rstd = matrix_of(b, &call->saved[0]),
                            .mean = matrix_of(b, &call->saved[1])};
    norm_values(&call->p, cols, values, values + cols);
    return 0;
}

int cpu_norm_forward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cpu_backend *b = self(backend);
    struct norm_args a;
    if (!b->isa) return reference_forward(b, call, err);
    if (norm_open(b, call, &a, err)) return -1;
    a.x = matrix_of(b, &call->in[0]);
    a.y = matrix_of(b, &call->out[0]);
    rows_run(b, b->isa->rows->norm, &a, call->in[0].rows, call->in[0].cols);
    return 0;
}

int cpu_add_norm_forward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cpu_backend *b = self(backend);
    struct norm_args a;
    if (!b->isa) return reference_forward(b, call, err);
    if (norm_open(b, call, &a, err)) return -1;
    a.x = matrix_of(b, &call->in[0]);
    a.r = matrix_of(b, &call->in[1]);
    a.s = matrix_of(b, &call->out[0]);
    a.y = matrix_of(b, &call->out[1]);
    rows_run(b, b->isa->rows->norm, &a, call->in[0].rows, call->in[0].cols);
    return 0;
}

// Without the saved statistics a backward pass has nothing to stand on.
static int need_statistics(const struct op_call *call, struct error *err) {
    bool layer = call->p.norm.kind == NORM_LAYER;
    if (tensor_present(&call->saved[0]) && (!layer || tensor_present(&call->saved[1]))) return 0;
    return error_set(err, STATUS_INTERNAL, "statistics were not saved");
}

int cpu_add_norm_recompute(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cpu_backend *b = self(backend);
    struct norm_args a;
    if (!b->isa) return reference_recompute(b, call, err);
    if (need_statistics(call, err) || norm_open(b, call, &a, err)) return -1;
    a.x = matrix_of(b, &call->out[0]);
    a.y = matrix_of(b, &call->out[1]);
    rows_run(b, b->isa->rows->norm_again, &a, call->out[0].rows, call->in[0].cols);
    return 0;
}

static float norm_gradient(const struct norm_args *a, int64_t row, int64_t col) {
    if (a->dtype == DTYPE_F32) return ((const float *)(const void *)a->dy.p)[row * a->dy.ld + col];
    return bf16_to_float(((const uint16_t *)(const void *)a->dy.p)[row * a->dy.ld + col]);
}

// The gradient of a trained bias, before that of x may take the place of dy. Blocks of columns: each thread adds up its
// own, over the rows in their order.
static void bias_sums(const void *args, int64_t first, int64_t last) {
    const struct norm_args *a = args;
    int64_t width = a->cols * a->groups;
    for (int64_t begin = first * BIAS_TASK; begin < last * BIAS_TASK && begin < a->bias_cols; begin += BIAS_TASK) {
        int64_t n = a->bias_cols - begin < BIAS_TASK ? a->bias_cols - begin : BIAS_TASK;
        double sum[BIAS_TASK] = {0};
        for (int64_t t = 0; t < a->rows; t++) {
            for (int64_t group = begin; group < width; group += a->bias_cols)
                for (int64_t i = 0; i < n; i++) sum[i] += (double)norm_gradient(a, t, group + i);
        }
        for (int64_t i = 0; i < n; i++) a->dbias[begin + i] += (float)sum[i];
    }
}

static void norm_bias(struct cpu_backend *b, const struct norm_args *a) {
    if (a->dbias) rows_run(b, bias_sums, a, (a->bias_cols + BIAS_TASK - 1) / BIAS_TASK, a->rows * BIAS_TASK);
}

int cpu_norm_backward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cpu_backend *b = self(backend);
    struct norm_args a;
    if (!b->isa) return reference_backward(b, call, err);
    if (!tensor_present(&call->grad_in[0]) && !tensor_present(&call->p.norm.dbias)) return 0;
    if (!tensor_present(&call->grad_out[0])) return error_set(err, STATUS_INTERNAL, "no gradient of y");
    if (need_statistics(call, err) || norm_open(b, call, &a, err)) return -1;
    a.x = matrix_of(b, &call->in[0]);
    a.dy = matrix_of(b, &call->grad_out[0]);
    norm_bias(b, &a);
    if (!tensor_present(&call->grad_in[0])) return 0;
    a.dx = matrix_of(b, &call->grad_in[0]);
    a.acc_x = call->acc[0];
    rows_run(b, b->isa->rows->norm_backward, &a, call->in[0].rows, call->in[0].cols);
    return 0;
}

// Stores or adds the gradient of a sum into both of its inputs. An input whose gradient shares the buffer of the
// output's has it already; two inputs that share one buffer get it once. The second input is scaled by `scale`.
static void pass_gradient(struct cpu_backend *b, const struct op_call *call, float scale) {
    const struct tensor *g = &call->grad_out[0];
    for (int i = 0; i < 2; i++) {
        const struct tensor *to = &call->grad_in[i];
        if (!tensor_present(to) || same_place(to, g) || (i == 1 && same_place(to, &call->grad_in[0]))) continue;
        struct pass_args a = {.x_dtype = g->dtype,
                              .y_dtype = to->dtype,
                              .cols = g->cols,
                              .x = matrix_of(b, g),
                              .y = matrix_of(b, to),
                              .scale = i == 1 ? scale : 1,
                              .acc = call->acc[i]};
        rows_run(b, b->isa->rows->pass, &a, g->rows, g->cols);
    }
}

int cpu_add_norm_backward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cpu_backend *b = self(backend);
    struct norm_args a;
    if (!b->isa) return reference_backward(b, call, err);
    if (!tensor_present(&call->grad_out[1])) return pass_gradient(b, call, call->p.norm.scale), 0;
    if (need_statistics(call, err) || norm_open(b, call, &a, err)) return -1;
    a.x = matrix_of(b, &call->out[0]);
    a.ds = matrix_of(b, &call->grad_out[0]);
    a.dy = matrix_of(b, &call->grad_out[1]);
    a.dx = matrix_of(b, &call->grad_in[0]);
    a.acc_x = call->acc[0];
    norm_bias(b, &a);
    if (!same_place(&call->grad_in[0], &call->grad_in[1])) {
        a.dr = matrix_of(b, &call->grad_in[1]);
        a.acc_r = call->acc[1];
    }
    rows_run(b, b->isa->rows->norm_backward, &a, call->out[0].rows, call->in[0].cols);
    return 0;
}

// --- rope

static int rope_pass(struct cpu_backend *b, const struct op_call *call, bool inverse, struct error *err) {
    const struct tensor *position = &call->in[2], *table = &call->in[3];
    for (int64_t t = 0; t < position->rows; t++) {
        int64_t p = cpu_i32(b, position)[t * position->ld];
        if (p < 0 || p >= table->rows) {
            return error_set(err, STATUS_INTERNAL, "position %lld outside the table of %lld", (long long)p,
                             (long long)table->rows);
        }
    }
    for (int i = 0; i < 2; i++) {
        const struct tensor *from = inverse ? &call->grad_out[i] : &call->in[i];
        const struct tensor *to = inverse ? &call->grad_in[i] : &call->out[i];
        if (!tensor_present(to)) continue;
        struct rope_args a = {.dtype = from->dtype,
                              .kind = call->p.rope.kind,
                              .cols = from->cols,
                              .head_dim = call->p.rope.head_dim,
                              .rotary_dim = call->p.rope.rotary_dim,
                              .first = call->p.rope.first,
                              .x = matrix_of(b, from),
                              .y = matrix_of(b, to),
                              .position = cpu_i32(b, position),
                              .position_ld = position->ld,
                              .table = cpu_f32(b, table),
                              .table_ld = table->ld,
                              .inverse = inverse,
                              .acc = inverse && call->acc[i]};
        rows_run(b, b->isa->rows->rope, &a, from->rows, from->cols);
    }
    return 0;
}

int cpu_rope_forward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cpu_backend *b = self(backend);
    return b->isa ? rope_pass(b, call, false, err) : reference_forward(b, call, err);
}

int cpu_rope_backward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cpu_backend *b = self(backend);
    return b->isa ? rope_pass(b, call, true, err) : reference_backward(b, call, err);
}

// --- activations and gated linear units

static struct glu_args glu_open(struct cpu_backend *b, const struct op_call *call) {
    return (struct glu_args){.dtype = call->in[0].dtype,
                             .kind = call->p.act.kind,
                             .limit = call->p.act.limit,
                             .alpha = call->p.act.alpha,
                             .cols = call->out[0].cols,
                             .gate = matrix_of(b, &call->in[0]),
                             .up = matrix_of(b, &call->in[1]),
                             .h = matrix_of(b, &call->out[0]),
                             .dh = matrix_of(b, &call->grad_out[0]),
                             .dgate = matrix_of(b, &call->grad_in[0]),
                             .dup = matrix_of(b, &call->grad_in[1]),
                             .acc_gate = call->acc[0],
                             .acc_up = call->acc[1]};
}

int cpu_glu_forward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cpu_backend *b = self(backend);
    if (!b->isa) return reference_forward(b, call, err);
    struct glu_args a = glu_open(b, call);
    rows_run(b, b->isa->rows->glu, &a, call->in[0].rows, a.cols);
    return 0;
}

int cpu_glu_backward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cpu_backend *b = self(backend);
    if (!b->isa) return reference_backward(b, call, err);
    struct glu_args a = glu_open(b, call);
    if (!a.dh.p) return error_set(err, STATUS_INTERNAL, "no gradient of h");
    rows_run(b, b->isa->rows->glu_backward, &a, call->in[0].rows, a.cols);
    return 0;
}

static struct act_args act_open(struct cpu_backend *b, const struct op_call *call) {
    return (struct act_args){.dtype = call->in[0].dtype,
                             .kind = call->p.act.kind,
                             .limit = call->p.act.limit,
                             .cols = call->in[0].cols,
                             .x = matrix_of(b, &call->in[0]),
                             .y = matrix_of(b, &call->out[0]),
                             .dy = matrix_of(b, &call->grad_out[0]),
                             .dx = matrix_of(b, &call->grad_in[0]),
                             .acc = call->acc[0]};
}

int cpu_act_forward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cpu_backend *b = self(backend);
    if (!b->isa) return reference_forward(b, call, err);
    struct act_args a = act_open(b, call);
    rows_run(b, b->isa->rows->act, &a, call->in[0].rows, a.cols);
    return 0;
}

int cpu_act_backward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cpu_backend *b = self(backend);
    if (!b->isa) return reference_backward(b, call, err);
    struct act_args a = act_open(b, call);
    if (!a.dy.p) return error_set(err, STATUS_INTERNAL, "no gradient of y");
    if (a.dx.p) rows_run(b, b->isa->rows->act_backward, &a, call->in[0].rows, a.cols);
    return 0;
}

// --- gates of shared experts

static struct gate_args gate_open(struct cpu_backend *b, const struct op_call *call) {
    return (struct gate_args){.dtype = call->in[0].dtype,
                              .cols = call->in[0].cols,
                              .x = matrix_of(b, &call->in[0]),
                              .g = matrix_of(b, &call->in[1]),
                              .y = matrix_of(b, &call->out[0]),
                              .dy = matrix_of(b, &call->grad_out[0]),
                              .dx = matrix_of(b, &call->grad_in[0]),
                              .dg = matrix_of(b, &call->grad_in[1]),
                              .acc_x = call->acc[0],
                              .acc_g = call->acc[1]};
}

int cpu_gate_forward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cpu_backend *b = self(backend);
    if (!b->isa) return reference_forward(b, call, err);
    struct gate_args a = gate_open(b, call);
    rows_run(b, b->isa->rows->gate, &a, call->in[0].rows, a.cols);
    return 0;
}

int cpu_gate_backward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cpu_backend *b = self(backend);
    if (!b->isa) return reference_backward(b, call, err);
    struct gate_args a = gate_open(b, call);
    if (!a.dy.p) return error_set(err, STATUS_INTERNAL, "no gradient of y");
    rows_run(b, b->isa->rows->gate_backward, &a, call->in[0].rows, a.cols);
    return 0;
}

// --- keys of multi-head latent attention

static struct mla_args mla_open(const struct cpu_backend *b, const struct op_call *call, const struct tensor *in,
                                const struct tensor *out) {
    return (struct mla_args){.dtype = call->in[0].dtype,
                             .heads = call->p.mla.heads,
                             .nope = call->p.mla.nope,
                             .v_dim = call->p.mla.v_dim,
                             .r_cols = call->in[1].cols,
                             .kv = matrix_of(b, &in[0]),
                             .r = matrix_of(b, &in[1]),
                             .k = matrix_of(b, &out[0]),
                             .v = matrix_of(b, &out[1]),
                             .acc_kv = call->acc[0],
                             .acc_r = call->acc[1]};
}

int cpu_mla_keys_forward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cpu_backend *b = self(backend);
    if (!b->isa) return reference_forward(b, call, err);
    struct mla_args a = mla_open(b, call, call->in, call->out);
    rows_run(b, b->isa->rows->mla, &a, call->in[0].rows, call->out[0].cols);
    return 0;
}

int cpu_mla_keys_backward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cpu_backend *b = self(backend);
    if (!b->isa) return reference_backward(b, call, err);
    struct mla_args a = mla_open(b, call, call->grad_in, call->grad_out);
    rows_run(b, b->isa->rows->mla_backward, &a, call->in[0].rows, call->out[0].cols);
    return 0;
}

// --- sums and copies

int cpu_add_forward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cpu_backend *b = self(backend);
    if (!b->isa) return reference_forward(b, call, err);
    struct pass_args a = {.x_dtype = call->in[0].dtype,
                          .y_dtype = call->out[0].dtype,
                          .cols = call->in[0].cols,
                          .x = matrix_of(b, &call->in[0]),
                          .r = matrix_of(b, &call->in[1]),
                          .scale = call->p.add.scale,
                          .y = matrix_of(b, &call->out[0])};
    rows_run(b, b->isa->rows->pass, &a, call->in[0].rows, a.cols);
    return 0;
}

int cpu_add_backward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cpu_backend *b = self(backend);
    if (!b->isa) return reference_backward(b, call, err);
    pass_gradient(b, call, call->p.add.scale);
    return 0;
}

int cpu_copy(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cpu_backend *b = self(backend);
    if (!b->isa) return reference_forward(b, call, err);
    struct pass_args a = {.x_dtype = call->in[0].dtype,
                          .y_dtype = call->out[0].dtype,
                          .cols = call->in[0].cols,
                          .x = matrix_of(b, &call->in[0]),
                          .scale = 1,
                          .y = matrix_of(b, &call->out[0])};
    rows_run(b, b->isa->rows->pass, &a, call->in[0].rows, a.cols);
    return 0;
}

int cpu_kv_write(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cpu_backend *b = self(backend);
    if (!b->isa) return reference_forward(b, call, err);
    const struct tensor *slots = &call->in[2];
    for (int64_t t = 0; t < slots->rows; t++) {
        int64_t slot = cpu_i32(b, slots)[t * slots->ld];
        if (slot < 0) continue;
        if (slot >= call->out[0].rows) {
            return error_set(err, STATUS_INTERNAL, "cache slot %lld of %lld", (long long)slot,
                             (long long)call->out[0].rows);
        }
        for (int i = 0; i < 2; i++) {
            const struct tensor *from = &call->in[i], *cache = &call->out[i];
            size_t size = dtype_size(from->dtype);
            memcpy((char *)cpu_at(b, cache) + (size_t)(slot * cache->ld) * size,
                   (const char *)cpu_at(b, from) + (size_t)(t * from->ld) * size, (size_t)from->cols * size);
        }
    }
    return 0;
}

struct fill_args {
    char *p;
    int64_t ld, cols; // bytes from row to row; elements
    enum dtype dtype;
    double value;
};

static void fill_rows(const void *args, int64_t begin, int64_t end) {
    const struct fill_args *a = args;
    size_t size = dtype_size(a->dtype);
    union {
        float f;
        double d;
        int32_t i;
        uint32_t u;
        uint16_t h;
        uint8_t b;
    } one = {0};
    switch (a->dtype) {
    case DTYPE_F32: one.f = (float)a->value; break;
    case DTYPE_F64: one.d = a->value; break;
    case DTYPE_BF16: one.h = bf16_from_float((float)a->value); break;
    case DTYPE_I32: one.i = (int32_t)a->value; break;
    case DTYPE_U32: one.u = (uint32_t)a->value; break;
    case DTYPE_U8: one.b = (uint8_t)a->value; break;
    case DTYPE_NONE: return;
    }
    for (int64_t t = begin; t < end; t++) {
        char *row = a->p + t * a->ld;
        if (a->value == 0)
            memset(row, 0, (size_t)a->cols * size);
        else
            for (int64_t d = 0; d < a->cols; d++) memcpy(row + (size_t)d * size, &one, size);
    }
}

int cpu_fill(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cpu_backend *b = self(backend);
    if (!b->isa) return reference_forward(b, call, err);
    const struct tensor *t = &call->out[0];
    struct fill_args a = {cpu_at(b, t), t->ld * (int64_t)dtype_size(t->dtype), t->cols, t->dtype, call->p.fill.value};
    rows_run(b, fill_rows, &a, t->rows, t->cols);
    return 0;
}
