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

enum { PIECES = 1 + TABLES }; // of a weight: its codes and its tables

struct staged {
    struct weight_tables tables; // copies, as `bytes`
    uint8_t *bytes[PIECES];
    bool usable; // acquired and not released
};

struct late_backend {
    struct backend base;
    struct backend_class class; // the cpu's workspace functions, this file's everything else
    struct kernel kernels[OP_COUNT];
    struct backend *cpu;
    struct event *events;
    size_t count, capacity;
    struct staged *staged;  // by weight id
    struct weight *weights; // by weight id: as the model's, over copied bytes; experts side by side as there
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
    b->weights = mem_zalloc((size_t)backend->n_weights + 1, sizeof *b->weights);
    if (!b->staged || !b->weights)
        return error_memory(err, "staged weights", (size_t)backend->n_weights * sizeof *b->staged);
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

static size_t piece_of(const struct weight *w, int piece, const uint8_t **data) {
    if (piece == 0) {
        *data = w->data;
        return weight_bytes(w);
    }
    *data = w->tables ? w->tables->table[piece - 1].data : NULL;
    return *data ? w->tables->table[piece - 1].bytes : 0;
}

static int stage_copy(struct staged *s, struct weight *copy, const struct weight *w, struct error *err) {
    *copy = *w;
    if (w->tables) s->tables = *w->tables, copy->tables = &s->tables;
    for (int i = 0; i < PIECES; i++) {
        const uint8_t *data;
        size_t bytes = piece_of(w, i, &data);
        if (!data) continue;
        if (!s->bytes[i] && !(s->bytes[i] = mem_alloc(bytes ? bytes : 1))) return error_memory(err, w->name, bytes);
        memcpy(s->bytes[i], data, bytes);
        if (i == 0)
            copy->data = s->bytes[0];
        else
            s->tables.table[i - 1].data = s->bytes[i];
    }
    return 0;
}

// A kernel that kept a pointer reads NaN, then freed memory.
static void stage_poison(struct staged *s, const struct weight *w) {
    for (int i = 0; i < PIECES; i++) {
        const uint8_t *data;
        if (s->bytes[i]) memset(s->bytes[i], 0xFF, piece_of(w, i, &data));
        mem_free(s->bytes[i]);
        s->bytes[i] = NULL;
    }
}

static int stage(struct late_backend *b, int segment, bool usable, struct error *err) {
    for (int i = 0; i < b->base.n_weights; i++) {
        const struct weight *w = b->base.weights[i];
        struct staged *s = &b->staged[w->id];
        if (w->segment != segment) continue;
        if (usable) {
            if (stage_copy(s, &b->weights[w->id], w, err)) return -1;
        } else
            stage_poison(s, w);
        s->usable = usable;
    }
    return 0;
}

static int use(struct late_backend *b, const struct weight **w, struct error *err) {
    if (!*w) return 0;
    if (!b->staged[(*w)->id].usable) {
        return error_set(err, STATUS_INTERNAL, "weight %s is used while its segment %d is not acquired", (*w)->name,
                         (*w)->segment);
    }
    *w = &b->weights[(*w)->id];
    return 0;
}

static int use_weights(struct late_backend *b, struct op_call *call, struct error *err) {
    union op_params *p = &call->p;
    switch (call->op) {
    case OP_EMBED: return use(b, &p->embed.w, err);
    case OP_NORM:
    case OP_ADD_NORM: return use(b, &p->norm.w, err) || use(b, &p->norm.bias, err) ? -1 : 0;
    case OP_LINEAR_GROUP:
    case OP_MOE_LINEAR_GROUP: // experts have consecutive ids, so that the first stands for all; all were staged
        for (int i = 0; i < p->linear.n_parts; i++) {
            if (use(b, &p->linear.parts[i].w, err) || use(b, &p->linear.parts[i].bias, err)) return -1;
        }
        return 0;
    case OP_ATTENTION: return use(b, &p->attention.sinks, err);
    case OP_COLUMNS: return use(b, &p->columns.bias, err);
    case OP_ROW_NORMS: return use(b, &p->row_norms.w, err);
    case OP_MOE_ROUTE: return use(b, &p->moe.bias, err);
    case OP_TOKEN_LOGPROB:
        // The fused pass computes its gradient forward, so nothing of the head is read in backward.
    case OP_LOGITS: return use(b, &p->logprob.w, err) || use(b, &p->logprob.bias, err) ? -1 : 0;
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

static void late_close(struct backend *backend) {
    struct late_backend *b = (struct late_backend *)backend;
    for (size_t i = 0; i < b->count; i++) mem_free(b->events[i].bytes);
    for (int i = 0; b->staged && i < backend->n_weights; i++) {
        for (int k = 0; k < PIECES; k++) mem_free(b->staged[i].bytes[k]);
    }
    mem_free(b->staged);
    mem_free(b->weights);
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
        .close = late_close,
    };
    b->base = (struct backend){.class = &b->class, .threads = b->cpu->threads};
    return &b->base;
}
