// See plan.h. Ids: 1 + index within the running program; run-long requests carry RUN_LONG.
#include "kernels/plan.h"

#include "kernels/alloc.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define RUN_LONG 0x80000000u
enum { ALIGN = 64 };

struct request {
    enum plan_class class;
    size_t bytes; // rounded up to ALIGN
    uint32_t first, last;
    size_t offset;
};

struct program {
    char *name;
    struct request *requests;
    uint32_t count, capacity;
    uint32_t *by_last; // request indices by last use, made when sealed
    size_t top;        // end of its highest request
};

struct plan {
    struct program run; // run-long requests
    struct program *programs;
    int n_programs, capacity;
    int current; // -1 outside of programs
    bool sealed;
    uint32_t time;     // op calls in the running program
    uint32_t next;     // replay: next request of the running program
    uint32_t run_next; // replay: next run-long request
    uint32_t dead_next;
    size_t arena_bytes;
};

const char *plan_class_name(enum plan_class c) {
    static const char *const names[] = {"adapter",     "gradients", "optimizer", "batch",
                                        "activations", "logits",    "workspace", "kv_cache"};
    static_assert(COUNT_OF(names) == PLAN_CLASS_COUNT, "a name per class");
    return names[c];
}

struct plan *plan_new(struct error *err) {
    struct plan *plan = mem_zalloc(1, sizeof *plan);
    if (!plan) {
        error_memory(err, "the memory plan", sizeof *plan);
        return NULL;
    }
    plan->current = -1;
    return plan;
}

static void program_free(struct program *p) {
    mem_free(p->name);
    mem_free(p->requests);
    mem_free(p->by_last);
}

void plan_free(struct plan *plan) {
    if (!plan) return;
    program_free(&plan->run);
    for (int i = 0; i < plan->n_programs; i++) program_free(&plan->programs[i]);
    mem_free(plan->programs);
    mem_free(plan);
}

int plan_begin(struct plan *plan, const char *name, struct error *err) {
    assert(plan->current < 0);
    plan->time = plan->next = plan->dead_next = 0;
    for (int i = 0; i < plan->n_programs; i++) {
        if (strcmp(plan->programs[i].name, name) != 0) continue;
        if (!plan->sealed) return error_set(err, STATUS_INTERNAL, "memory plan: program \"%s\" recorded twice", name);
        plan->current = i;
        return 0;
    }
    if (plan->sealed) return error_set(err, STATUS_INTERNAL, "memory plan: program \"%s\" was not planned", name);
    if (plan->n_programs == plan->capacity) {
        int capacity = plan->capacity ? 2 * plan->capacity : 16;
        void *p = mem_resize(plan->programs, (size_t)capacity * sizeof *plan->programs);
        if (!p) return error_memory(err, "the memory plan", (size_t)capacity * sizeof *plan->programs);
        plan->programs = p;
        plan->capacity = capacity;
    }
    char *copy = mem_strdup(name);
    if (!copy) return error_memory(err, "the memory plan", strlen(name));
    plan->programs[plan->n_programs] = (struct program){.name = copy};
    plan->current = plan->n_programs++;
    return 0;
}

int plan_end(struct plan *plan, struct error *err) {
    assert(plan->current >= 0);
    struct program *p = &plan->programs[plan->current];
    plan->current = -1;
    if (plan->sealed && plan->next != p->count) {
        return error_set(err, STATUS_INTERNAL, "memory plan: program \"%s\" made %u of %u planned requests", p->name,
                         plan->next, p->count);
    }
    return 0;
}

static uint32_t replay(struct plan *plan, struct program *p, uint32_t *next, enum plan_class class, size_t bytes,
                       size_t *offset, struct error *err) {
    const char *name = p == &plan->run ? "run" : p->name;
    if (*next >= p->count) {
        error_set(err, STATUS_INTERNAL, "memory plan: \"%s\" asks for more than its %u planned buffers", name,
                  p->count);
        return 0;
    }
    const struct request *r = &p->requests[*next];
    if (r->class != class || r->bytes != bytes) {
        error_set(err, STATUS_INTERNAL, "memory plan: \"%s\" request %u is %s %zu bytes, planned %s %zu", name, *next,
                  plan_class_name(class), bytes, plan_class_name(r->class), r->bytes);
        return 0;
    }
    *offset = r->offset;
    return ++*next;
}

uint32_t plan_request(struct plan *plan, enum plan_class class, size_t bytes, size_t *offset, struct error *err) {
    bytes = (bytes + ALIGN - 1) / ALIGN * ALIGN;
    bool run_long = plan->current < 0;
    struct program *p = run_long ? &plan->run : &plan->programs[plan->current];
    uint32_t flag = run_long ? RUN_LONG : 0;
    if (plan->sealed) {
        uint32_t id = replay(plan, p, run_long ? &plan->run_next : &plan->next, class, bytes, offset, err);
        return id ? id | flag : 0;
    }
    if (p->count == p->capacity) {
        uint32_t capacity = p->capacity ? 2 * p->capacity : 256;
        void *grown = mem_resize(p->requests, capacity * sizeof *p->requests);
        if (!grown) {
            error_memory(err, "the memory plan", capacity * sizeof *p->requests);
            return 0;
        }
        p->requests = grown;
        p->capacity = capacity;
    }
    p->requests[p->count] = (struct request){.class = class, .bytes = bytes, .first = plan->time, .last = plan->time};
    *offset = 0;
    return ++p->count | flag;
}

void plan_touch(struct plan *plan, const uint32_t *buffers, int count) {
    if (plan->sealed || plan->current < 0) return;
    struct program *p = &plan->programs[plan->current];
    for (int i = 0; i < count; i++) {
        if (buffers[i] == 0 || (buffers[i] & RUN_LONG)) continue;
        assert(buffers[i] <= p->count);
        p->requests[buffers[i] - 1].last = plan->time;
    }
}

void plan_call(struct plan *plan) {
    plan->time++;
}

bool plan_next_dead(struct plan *plan, size_t *offset, size_t *bytes) {
    if (!plan->sealed || plan->current < 0) return false;
    const struct program *p = &plan->programs[plan->current];
    while (plan->dead_next < p->count) {
        const struct request *r = &p->requests[p->by_last[plan->dead_next]];
        if (r->last >= plan->time) return false;
        plan->dead_next++;
        if (r->bytes == 0) continue;
        *offset = r->offset;
        *bytes = r->bytes;
        return true;
    }
    return false;
}

struct order {
    uint64_t key;
    uint32_t index;
};

static int compare_order(const void *a, const void *b) {
    const struct order *x = a, *y = b;
    if (x->key != y->key) return x->key < y->key ? -1 : 1;
    return x->index < y->index ? -1 : x->index > y->index;
}

// Each in turn goes to the lowest gap among those placed before that live at the same time.
static void place(struct program *p, const struct order *order, uint32_t *placed, size_t base) {
    uint32_t n_placed = 0; // ascending by offset
    for (uint32_t k = 0; k < p->count; k++) {
        struct request *r = &p->requests[order[k].index];
        size_t at = base;
        for (uint32_t i = 0; i < n_placed; i++) {
            const struct request *q = &p->requests[placed[i]];
            if (q->last < r->first || r->last < q->first) continue;
            if (q->offset >= at + r->bytes) break;
            if (q->offset + q->bytes > at) at = q->offset + q->bytes;
        }
        r->offset = at;
        if (at + r->bytes > p->top) p->top = at + r->bytes;
        uint32_t i = n_placed++;
        for (; i > 0 && p->requests[placed[i - 1]].offset > at; i--) placed[i] = placed[i - 1];
        placed[i] = order[k].index;
    }
}

// In what order requests are placed; no order is best for every program, so all are tried and the lowest top wins.
enum packing { BY_SIZE, BY_AREA, BY_LIFETIME, PACKINGS };
enum { PACKING_ROUNDS = 24, PACKING_WORK = 1 << 28 }; // comparisons of a search; large programs get fewer rounds

static uint64_t importance(const struct request *r, enum packing packing) {
    uint64_t lifetime = (uint64_t)(r->last - r->first) + 1;
    if (packing == BY_SIZE) return r->bytes;
    if (packing == BY_AREA) return r->bytes * lifetime;
    return lifetime << 40 | r->bytes >> 6;
}

static void sort_by(const struct program *p, enum packing packing, struct order *order) {
    for (uint32_t i = 0; i < p->count; i++) {
        order[i] = (struct order){UINT64_MAX - importance(&p->requests[i], packing), i};
    }
    qsort(order, p->count, sizeof *order, compare_order);
}

static size_t try_order(struct program *p, const struct order *order, uint32_t *placed, size_t base) {
    p->top = base;
    place(p, order, placed, base);
    return p->top;
}

// The request that reaches highest goes first next time: what fits badly is placed while there is room.
static void promote_highest(const struct program *p, struct order *order) {
    uint32_t worst = 0;
    size_t top = 0;
    for (uint32_t k = 0; k < p->count; k++) {
        const struct request *r = &p->requests[order[k].index];
        if (r->offset + r->bytes > top) top = r->offset + r->bytes, worst = k;
    }
    struct order first = order[worst];
    memmove(order + 1, order, worst * sizeof *order);
    order[0] = first;
}

static void search(struct program *p, size_t base, struct order *order, struct order *best, uint32_t *placed) {
    size_t top = SIZE_MAX;
    uint64_t work = (uint64_t)p->count * p->count * PACKINGS, rounds = PACKING_WORK / (work + 1) + 1;
    for (enum packing k = BY_SIZE; k < PACKINGS; k++) {
        sort_by(p, k, order);
        for (int round = 0; round < PACKING_ROUNDS && (uint64_t)round < rounds; round++) {
            size_t now = try_order(p, order, placed, base);
            if (now < top) {
                top = now;
                memcpy(best, order, p->count * sizeof *best);
            }
            promote_highest(p, order);
        }
    }
    try_order(p, best, placed, base);
}

static int pack(struct program *p, size_t base, struct error *err) {
    size_t n = p->count ? p->count : 1;
    struct order *order = mem_alloc(n * sizeof *order), *best = mem_alloc(n * sizeof *best);
    uint32_t *placed = mem_alloc(n * sizeof *placed);
    p->by_last = mem_alloc(n * sizeof *p->by_last);
    bool ok = order && best && placed && p->by_last;
    if (ok) {
        search(p, base, order, best, placed);
        for (uint32_t i = 0; i < p->count; i++) order[i] = (struct order){p->requests[i].last, i};
        qsort(order, p->count, sizeof *order, compare_order);
        for (uint32_t i = 0; i < p->count; i++) p->by_last[i] = order[i].index;
    }
    mem_free(order);
    mem_free(best);
    mem_free(placed);
    return ok ? 0 : error_memory(err, "the memory plan", n * sizeof *order);
}

int plan_seal(struct plan *plan, struct error *err) {
    assert(!plan->sealed && plan->current < 0);
    size_t base = 0;
    for (uint32_t i = 0; i < plan->run.count; i++) {
        plan->run.requests[i].offset = base;
        base += plan->run.requests[i].bytes;
    }
    plan->run.top = base;
    plan->arena_bytes = base;
    for (int i = 0; i < plan->n_programs; i++) {
        if (pack(&plan->programs[i], base, err)) return -1;
        if (plan->programs[i].top > plan->arena_bytes) plan->arena_bytes = plan->programs[i].top;
    }
    plan->sealed = true;
    return 0;
}

bool plan_sealed(const struct plan *plan) {
    return plan->sealed;
}
size_t plan_arena_bytes(const struct plan *plan) {
    return plan->arena_bytes;
}

static const struct program *peak_program(const struct plan *plan) {
    const struct program *peak = NULL;
    for (int i = 0; i < plan->n_programs; i++) {
        if (!peak || plan->programs[i].top > peak->top) peak = &plan->programs[i];
    }
    return peak;
}

const char *plan_peak_program(const struct plan *plan) {
    const struct program *p = peak_program(plan);
    return p ? p->name : "";
}

// Bytes alive at a program's fullest moment, and that moment.
static size_t fullest(const struct program *p, uint32_t *when) {
    size_t most = 0;
    *when = 0;
    for (uint32_t k = 0; k < p->count; k++) { // it begins where some request begins
        size_t sum = 0;
        uint32_t t = p->requests[k].first;
        if (k && t == p->requests[k - 1].first) continue;
        for (uint32_t i = 0; i < p->count; i++) {
            if (p->requests[i].first <= t && t <= p->requests[i].last) sum += p->requests[i].bytes;
        }
        if (sum > most) most = sum, *when = t;
    }
    return most;
}

size_t plan_live_bytes(const struct plan *plan) {
    size_t run = 0, most = 0;
    for (uint32_t i = 0; i < plan->run.count; i++) run += plan->run.requests[i].bytes;
    for (int i = 0; i < plan->n_programs; i++) {
        uint32_t when;
        size_t bytes = fullest(&plan->programs[i], &when);
        if (bytes > most) most = bytes;
    }
    return run + most;
}

void plan_class_bytes(const struct plan *plan, size_t bytes[PLAN_CLASS_COUNT]) {
    memset(bytes, 0, PLAN_CLASS_COUNT * sizeof *bytes);
    for (uint32_t i = 0; i < plan->run.count; i++) bytes[plan->run.requests[i].class] += plan->run.requests[i].bytes;
    const struct program *p = peak_program(plan);
    if (!p) return;
    uint32_t when;
    fullest(p, &when);
    for (uint32_t i = 0; i < p->count; i++) {
        const struct request *r = &p->requests[i];
        if (r->first <= when && when <= r->last) bytes[r->class] += r->bytes;
    }
}

int plan_program_count(const struct plan *plan) {
    return plan->n_programs;
}

const char *plan_program(const struct plan *plan, int index, size_t *bytes, uint32_t *requests) {
    const struct program *p = &plan->programs[index];
    if (bytes) *bytes = p->top;
    if (requests) *requests = p->count;
    return p->name;
}
