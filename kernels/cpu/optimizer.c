// Gradient sums, their norm, and AdamW, over the flat parameter vector in pieces of fixed size.
#include "kernels/cpu/isa.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/reference.h"
#include "kernels/cpu/rows.h"

#include <math.h>

enum {
    PIECE = 65536,     // elements of one task
    NORM_CHUNKS = 256, // partial sums of the norm: fixed, so that no thread count changes its bits
    NORM_LANES = 8,
};

static struct cpu_backend *self(struct backend *backend) {
    return (struct cpu_backend *)backend;
}

struct grad_add_job {
    const struct cpu_isa *isa;
    float *sum;
    const float *g;
    int64_t n;
};

static void grad_add_task(void *context, int64_t i, int thread) {
    const struct grad_add_job *job = context;
    int64_t begin = i * PIECE, n = job->n - begin < PIECE ? job->n - begin : PIECE;
    (void)thread;
    struct pass_args a = {.scale = 1,
                          .x_dtype = DTYPE_F32,
                          .y_dtype = DTYPE_F32,
                          .cols = n,
                          .x = {(char *)(job->g + begin), n},
                          .y = {(char *)(job->sum + begin), n},
                          .acc = true};
    job->isa->rows->pass(&a, 0, 1);
}

int cpu_grad_add(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cpu_backend *b = self(backend);
    if (!b->isa) return reference_forward(b, call, err);
    struct grad_add_job job = {b->isa, cpu_f32(b, &call->out[0]), cpu_f32(b, &call->in[0]), call->in[0].cols};
    threads_run(b->threads, (job.n + PIECE - 1) / PIECE, grad_add_task, &job);
    return 0;
}

struct norm_job {
    const float *sum;
    int64_t n, chunk;
    double partial[NORM_CHUNKS];
};

// Squares are exact in double; lanes and chunks are summed in a fixed order.
static void grad_norm_task(void *context, int64_t i, int thread) {
    struct norm_job *job = context;
    int64_t begin = i * job->chunk, end = begin + job->chunk < job->n ? begin + job->chunk : job->n;
    double lane[NORM_LANES] = {0};
    (void)thread;
    int64_t k = begin;
    for (; k + NORM_LANES <= end; k += NORM_LANES) {
        for (int j = 0; j < NORM_LANES; j++) lane[j] += (double)job->sum[k + j] * (double)job->sum[k + j];
    }
    for (int j = 0; k < end; k++, j++) lane[j] += (double)job->sum[k] * (double)job->sum[k];
    job->partial[i] = ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

// As torch's clip_grad_norm_: the factor is max / (norm + 1e-6), at most 1. The square of no finite float, nor any sum
// of them, overflows a double: the norm is finite unless an element is not.
int cpu_grad_norm(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cpu_backend *b = self(backend);
    if (!b->isa) return reference_forward(b, call, err);
    struct step_scalars *s = cpu_scalars(b, call);
    struct norm_job job = {.sum = cpu_f32(b, &call->in[0]), .n = call->in[0].cols};
    job.chunk = (job.n + NORM_CHUNKS - 1) / NORM_CHUNKS;
    threads_run(b->threads, NORM_CHUNKS, grad_norm_task, &job);
    double square = 0;
    for (int i = 0; i < NORM_CHUNKS; i++) square += job.partial[i];
    // Without trained tokens the gradient is zero, and so is its average.
    double scale = s->denominator > 0 ? 1 / s->denominator : 0;
    s->grad_norm = sqrt(square) * scale;
    s->nonfinite = !isfinite(s->grad_norm);
    double clip = s->max_grad_norm > 0 ? fmin(1, s->max_grad_norm / (s->grad_norm + 1e-6)) : 1;
    s->clip_scale = s->nonfinite != 0 ? 0 : clip * scale;
    return 0;
}

struct adamw_job {
    row_kernel kernel;
    const struct adamw_args *args;
    int64_t begin, end;
};

static void adamw_task(void *context, int64_t i, int thread) {
    const struct adamw_job *job = context;
    int64_t begin = job->begin + i * PIECE, end = begin + PIECE;
    (void)thread;
    job->kernel(job->args, begin, end < job->end ? end : job->end);
}

// base^n for whole n by repeated squaring: the same bits on every machine, unlike pow.
static double power(double base, double n) {
    double result = 1;
    for (uint64_t k = (uint64_t)n; k; k >>= 1, base *= base) {
        if (k & 1) result *= base;
    }
    return result;
}

int cpu_adamw(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cpu_backend *b = self(backend);
    if (!b->isa) return reference_forward(b, call, err);
    const struct step_scalars *s = cpu_scalars(b, call);
    if (s->nonfinite != 0) return 0;
    double beta1 = call->p.adamw.beta1, beta2 = call->p.adamw.beta2;
    double bias1 = 1 - power(beta1, s->step), bias2 = 1 - power(beta2, s->step);
    for (int i = 0; i < call->p.adamw.n_groups; i++) {
        const struct param_group *group = &call->p.adamw.groups[i];
        double lr = s->lr * (double)group->lr_ratio;
        struct adamw_args a = {.param = cpu_f32(b, &call->out[0]),
                               .m = cpu_f32(b, &call->out[1]),
                               .v = cpu_f32(b, &call->out[2]),
                               .sum = cpu_f32(b, &call->in[0]),
                               .scale = (float)s->clip_scale,
                               .beta1 = (float)beta1,
                               .beta2 = (float)beta2,
                               .one_minus_beta1 = (float)(1 - beta1),
                               .one_minus_beta2 = (float)(1 - beta2),
                               .eps = (float)call->p.adamw.eps,
                               .decay = (float)(1 - lr * (double)group->weight_decay),
                               .step_size = (float)(lr / bias1),
                               .sqrt_bias2 = (float)sqrt(bias2)};
        struct adamw_job job = {b->isa->rows->adamw, &a, group->begin, group->end};
        threads_run(b->threads, (job.end - job.begin + PIECE - 1) / PIECE, adamw_task, &job);
    }
    return 0;
}
