// See forecast.h.
#include "train/forecast.h"

#include <math.h>

enum { TIMED_ROWS = 256 };
static const double TIMED_SECONDS = 0.1, TIMED_FLOPS = 6e7; // of all products, of one

// FLOP/s of whole training steps over those of the timed product: the rest goes into attention, norms, the adapter's
// thin products, the head's softmax and memory traffic. SmolLM2-135M Q4_1 in fp32, one thread, CPU time of the steps
// alone: 0.57 to 0.70 at T 512 x B 2, 0.60 at T 128, 0.74 with checkpointing, 0.76 at rank 64, 0.85 in the quickstart;
// the same recipe varied by 1.2 between moments. bench/step.sh prints prediction and result beside each other.
static const double EFFICIENCY = 0.7;

// Of a step's time, what an evaluation of the same rows takes: 0.38 measured in the quickstart.
static const double FORWARD_SHARE = 0.4, FORWARD_SHARE_CHECKPOINTED = 0.3;

struct timing {
    struct device device;
    struct weight weight;
    const struct weight *weights[1];
    uint8_t *bytes;
    struct tensor x, y, dy, dx;
};

static int open_tensors(struct timing *m, enum dtype dtype, struct error *err) {
    int64_t in = m->weight.cols, out = m->weight.rows;
    const struct {
        struct tensor *tensor;
        int64_t cols;
    } all[] = {{&m->x, in}, {&m->y, out}, {&m->dy, out}, {&m->dx, in}};
    for (size_t i = 0; i < COUNT_OF(all); i++) {
        if (device_tensor(&m->device, PLAN_ACTIVATION, dtype, TIMED_ROWS, all[i].cols, all[i].tensor, err)) return -1;
    }
    return 0;
}

// The product forwards and that for the gradient of its input, which are nearly all of a step's work.
static int once(struct timing *m, struct error *err) {
    struct op_call call = {
        .op = OP_LINEAR_GROUP, .in = {m->x}, .out = {m->y}, .p.linear = {.n_parts = 1, .parts = {{.w = &m->weight}}}};
    struct device *d = &m->device;
    if (plan_begin(d->plan, "timed", err) || device_forward(d, &call, err)) return -1;
    call.grad_out[0] = m->dy, call.grad_in[0] = m->dx;
    return device_backward(d, &call, err) || plan_end(d->plan, err) ? -1 : 0;
}

static int time_it(struct timing *m, const struct session *s, double *flops_per_second, struct error *err) {
    struct device *d = &m->device;
    if (device_open_recording(d, s->options.device, s->threads, err)) return -1;
    backend_set_weights(d->backend, m->weights, 1, SEGMENT_LAYER0 + 1);
    if (open_tensors(m, s->options.dtype, err) || once(m, err)) return -1;
    struct backend *backend = backend_open(s->options.device, s->threads, err);
    if (!backend || device_start(d, backend, err)) return -1;
    if (open_tensors(m, s->options.dtype, err) || once(m, err)) return -1; // the first one touches all pages
    // The fastest of many short ones: a core that another process takes for a moment does not count.
    double begin = clock_now(), last = begin, best = INFINITY, flops = 0;
    while (last - begin < TIMED_SECONDS || best == INFINITY) {
        double start = clock_now();
        d->flops = 0;
        if (once(m, err)) return -1;
        last = clock_now();
        best = fmin(best, last - start);
        flops = d->flops;
    }
    *flops_per_second = flops / best;
    return 0;
}

// A weight of zeros as wide as the first layer's MLP, and as high as keeps one product small.
static int measure(const struct session *s, double *flops_per_second, struct error *err) {
    const struct linear *mlp = &s->model.layer[0].linear[s->model.arch.layer[0].moe ? LINEAR_EXPERT_UP : LINEAR_UP];
    const struct weight *like = mlp->w ? mlp->w : mlp[-1].w; // gate and up in one, row by row: the gate's
    int64_t rows = (int64_t)(TIMED_FLOPS / (2.0 * TIMED_ROWS * (double)like->cols)) / 64 * 64;
    if (rows < 64) rows = 64;
    struct timing m = {.weight = *like, .weights = {NULL}};
    m.weight.id = 0;
    m.weight.rows = rows < like->rows ? rows : like->rows;
    size_t bytes = weight_bytes(&m.weight);
    m.bytes = mem_zalloc(bytes, 1);
    if (!m.bytes) return error_memory(err, "a weight to time", bytes);
    m.weight.data = m.bytes;
    m.weights[0] = &m.weight;
    int failed = time_it(&m, s, flops_per_second, err);
    device_close(&m.device);
    mem_free(m.bytes);
    return failed;
}

static double evaluations(const struct trainer *t) {
    const struct config_when when = t->config->eval_when;
    double steps = (double)t->total_steps, every = steps;
    if (!t->evaluates || when.kind == CONFIG_WHEN_NEVER) return 0;
    if (when.kind == CONFIG_WHEN_EPOCH) every = (double)t->steps_per_epoch;
    if (when.kind == CONFIG_WHEN_STEPS) every = fmax(1, when.value);
    if (when.kind == CONFIG_WHEN_FRACTION) every = ceil(when.value * steps);
    return ceil(steps / every) + t->config->eval_at_start; // there is always one at the end
}

int forecast_run(const struct trainer *t, struct forecast *out, struct error *err) {
    const struct arch *a = &t->session.model.arch;
    double rate; // FLOP/s
    *out = (struct forecast){.known = t->session.options.device != DEVICE_CUDA};
    if (!out->known) return 0;
    if (measure(&t->session, &rate, err)) return -1;
    // The head skips rows that are not trained; the count of the plan has both products for every row.
    double fill = loader_fill(t->loader);
    double trained = (double)t->train.trained_tokens / (double)t->train.tokens * fill;
    double head = 4.0 * a->width * a->vocab;
    double row = (t->flops_per_token - head * (1 - trained)) / EFFICIENCY;
    double epochs = (double)t->total_steps / (double)t->steps_per_epoch;
    double part = (double)t->checkpoint_layers / a->layers; // of the layers
    double forward = part * FORWARD_SHARE_CHECKPOINTED + (1 - part) * FORWARD_SHARE;
    out->tokens_per_second = rate * fill / row;
    out->seconds = (epochs * (double)t->train.tokens + forward * evaluations(t) * (double)t->held_out.tokens) /
                   out->tokens_per_second;
    return 0;
}
