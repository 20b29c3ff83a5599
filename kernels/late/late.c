// The backend that proves, without a GPU, that nothing above kernels/ relies on eager execution or resident weights.
// Calls are only queued; they run, on an inner cpu backend, when somebody reads. Weights are usable between acquire and
// release only, from a staged copy that is poisoned afterwards; ranges of the arena that the plan calls dead are filled
// with NaN. A model trained here gives the cpu backend's bits.
#include "kernels/backend.h"

#include "kernels/alloc.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

enum event_kind {
    EVENT_FORWARD,
    EVENT_BACKWARD,
    EVENT_RECOMPUTE,
    EVENT_WRITE,
    EVENT_ACQUIRE,
    EVENT_RELEASE,
    EVENT_DEAD
};

struct event {
    enum event_kind kind;
    struct op_call call;  // ops
    struct tensor tensor; // write: where to; dead: offset and cols = bytes
    void *bytes;          // write: owned copy
    size_t size;
    int segment;
};

struct staged {
    struct weight weight; // as the model's, with `data` pointing into `bytes`
    uint8_t *bytes;
    bool usable; // acquired and not released
};

struct late_backend {
    struct backend base;
    struct backend_class class; // the cpu's workspace functions, this file's everything else
    struct kernel kernels[OP_COUNT];
    struct backend *cpu;
    struct event *events;
    size_t count, capacity;
    struct staged *staged; // by weight id
};

static int push(struct backend *backend, struct event event, struct error *err) {
    struct late_backend *b = (struct late_backend *)backend;
    if (b->count == b->capacity) {
        size_t capacity = b->capacity ? 2 * b->capacity : 256;
        struct event *grown = mem_resize(b->events, capacity * sizeof *grown);
        if (!grown) return error_memory(err, "the queue of calls", capacity * sizeof *grown);
        b->events = grown;
        b->capacity = capacity;
    }
    b->events[b->count++] = event;
    return 0;
}

static int push_call(struct backend *backend, enum event_kind kind, const struct op_call *call, struct error *err) {
    return push(backend, (struct event){.kind = kind, .call = *call}, err);
}
static int late_forward(struct backend *backend, const struct op_call *call, struct error *err) {
    return push_call(backend, EVENT_FORWARD, call, err);
}
static int late_backward(struct backend *backend, const struct op_call *call, struct error *err) {
    return push_call(backend, EVENT_BACKWARD, call, err);
}
static int late_recompute(struct backend *backend, const struct op_call *call, struct error *err) {
    return push_call(backend, EVENT_RECOMPUTE, call, err);
}

static int late_reserve(struct backend *backend, size_t bytes, struct error *err) {
    struct late_backend *b = (struct late_backend *)backend;
    b->staged = mem_zalloc((size_t)backend->n_weights + 1, sizeof *b->staged);
    if (!b->staged) return error_memory(err, "staged weights", (size_t)backend->n_weights * sizeof *b->staged);
    backend_set_weights(b->cpu, backend->weights, backend->n_weights, backend->n_segments);
    return b->cpu->class->reserve(b->cpu, bytes, err);
}

static int late_write(struct backend *backend, struct tensor dst, const void *src, size_t size, struct error *err) {
    void *bytes = mem_alloc(size);
    if (!bytes) return error_memory(err, "a queued write", size);
    memcpy(bytes, src, size);
    if (!push(backend, (struct event){.kind = EVENT_WRITE, .tensor = dst, .bytes = bytes, .size = size}, err)) return 0;
    mem_free(bytes);
    return -1;
}

static int late_acquire(struct backend *backend, int segment, bool ahead, struct error *err) {
    if (ahead) return 0; // fetched, but not to be used yet
    return push(backend, (struct event){.kind = EVENT_ACQUIRE, .segment = segment}, err);
}

static int late_release(struct backend *backend, int segment, struct error *err) {
    return push(backend, (struct event){.kind = EVENT_RELEASE, .segment = segment}, err);
}

static void late_dead(struct backend *backend, size_t offset, size_t size) {
    struct tensor range = {.dtype = DTYPE_U8, .rows = 1, .cols = (int64_t)size, .ld = (int64_t)size, .offset = offset};
    push(backend, (struct event){.kind = EVENT_DEAD, .tensor = range}, NULL);
}

// --- running the queue

static int stage(struct late_backend *b, int segment, bool usable, struct error *err) {
    for (int i = 0; i < b->base.n_weights; i++) {
        const struct weight *w = b->base.weights[i];
        struct staged *s = &b->staged[w->id];
        if (w->segment != segment) continue;
        if (usable) {
            size_t bytes = weight_bytes(w);
            if (!s->bytes && !(s->bytes = mem_alloc(bytes))) return error_memory(err, w->name, bytes);
            memcpy(s->bytes, w->data, bytes);
            s->weight = *w;
            s->weight.data = s->bytes;
        } else if (s->bytes) { // a kernel that kept the pointer reads NaN, then freed memory
            memset(s->bytes, 0xFF, weight_bytes(w));
            mem_free(s->bytes);
            s->bytes = NULL;
        }
        s->usable = usable;
    }
    return 0;
}

static int use(struct late_backend *b, const struct weight **w, struct error *err) {
    if (!*w) return 0;
    struct staged *s = &b->staged[(*w)->id];
    if (!s->usable) {
        return error_set(err, STATUS_INTERNAL, "weight %s is used while its segment %d is not acquired", (*w)->name,
                         (*w)->segment);
    }
    *w = &s->weight;
    return 0;
}

static int use_weights(struct late_backend *b, struct op_call *call, struct error *err) {
    union op_params *p = &call->p;
    switch (call->op) {
    case OP_EMBED: return use(b, &p->embed.w, err);
    case OP_NORM:
    case OP_ADD_NORM: return use(b, &p->norm.w, err) || use(b, &p->norm.bias, err) ? -1 : 0;
    case OP_LINEAR_GROUP:
        for (int i = 0; i < p->linear.n_parts; i++) {
            if (use(b, &p->linear.parts[i].w, err) || use(b, &p->linear.parts[i].bias, err)) return -1;
        }
        return 0;
    case OP_ATTENTION: return use(b, &p->attention.sinks, err);
    case OP_TOKEN_LOGPROB:
        // The fused pass computes its gradient forward, so nothing of the head is read in backward.
    case OP_LOGITS: return use(b, &p->logprob.w, err);
    default: return 0;
    }
}

static int run_event(struct late_backend *b, struct event *e, struct error *err) {
    const struct kernel *kernel = &b->cpu->class->kernels[e->call.op];
    switch (e->kind) {
    case EVENT_WRITE: return b->cpu->class->write(b->cpu, e->tensor, e->bytes, e->size, err);
    case EVENT_ACQUIRE: return stage(b, e->segment, true, err);
    case EVENT_RELEASE: return stage(b, e->segment, false, err);
    case EVENT_DEAD: {
        size_t size = (size_t)e->tensor.cols;
        uint8_t *poison = mem_alloc(size);
        if (!poison) return error_memory(err, "poison", size);
        memset(poison, 0xFF, size);
        int failed = b->cpu->class->write(b->cpu, e->tensor, poison, size, err);
        mem_free(poison);
        return failed;
    }
    case EVENT_FORWARD:
    case EVENT_BACKWARD:
    case EVENT_RECOMPUTE: break;
    }
    if (use_weights(b, &e->call, err)) return -1;
    if (e->kind == EVENT_BACKWARD) return kernel->backward(b->cpu, &e->call, err);
    if (e->kind == EVENT_RECOMPUTE && kernel->recompute) return kernel->recompute(b->cpu, &e->call, err);
    return kernel->forward(b->cpu, &e->call, err);
}

static int late_read(struct backend *backend, void *dst, struct tensor src, size_t bytes, struct error *err) {
    struct late_backend *b = (struct late_backend *)backend;
    int failed = 0;
    for (size_t i = 0; i < b->count; i++) {
        if (!failed) failed = run_event(b, &b->events[i], err);
        mem_free(b->events[i].bytes);
    }
    b->count = 0;
    return failed ? -1 : b->cpu->class->read(b->cpu, dst, src, bytes, err);
}

static size_t late_overhead(const struct backend *backend) {
    const struct late_backend *b = (const struct late_backend *)backend;
    return b->cpu->class->overhead_bytes ? b->cpu->class->overhead_bytes(b->cpu) : 0;
}

static void late_close(struct backend *backend) {
    struct late_backend *b = (struct late_backend *)backend;
    for (size_t i = 0; i < b->count; i++) mem_free(b->events[i].bytes);
    for (int i = 0; b->staged && i < backend->n_weights; i++) mem_free(b->staged[i].bytes);
    mem_free(b->staged);
    mem_free(b->events);
    backend_close(b->cpu);
    mem_free(b);
}

struct backend *backend_open_late(int threads, struct error *err) {
    struct late_backend *b = mem_zalloc(1, sizeof *b);
    if (!b) {
        error_memory(err, "the late backend", sizeof *b);
        return NULL;
    }
    b->cpu = backend_open_cpu(threads, err);
    if (!b->cpu) {
        mem_free(b);
        return NULL;
    }
    for (int op = 0; op < OP_COUNT; op++) {
        const struct kernel *inner = &b->cpu->class->kernels[op];
        b->kernels[op] = (struct kernel){
            .forward = inner->forward ? late_forward : NULL,
            .backward = inner->backward ? late_backward : NULL,
            .recompute = inner->recompute ? late_recompute : NULL,
            .workspace_bytes = inner->workspace_bytes,
            .supports = inner->supports,
        };
    }
    b->class = (struct backend_class){
        .name = "late",
        .kernels = b->kernels,
        .reserve = late_reserve,
        .write = late_write,
        .read = late_read,
        .weights_acquire = late_acquire,
        .weights_release = late_release,
        .dead = late_dead,
        .overhead_bytes = late_overhead,
        .close = late_close,
    };
    b->base = (struct backend){.class = &b->class, .threads = b->cpu->threads};
    return &b->base;
}
