// The worker pool: see cpu.h. One word, `state`, says which job is open and how many workers are inside it, so that a
// worker that wakes up late can neither enter a finished job nor be waited for.
#include "kernels/alloc.h"
#include "kernels/cpu/cpu.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>

enum { SPIN = 2000 }; // pauses before sleeping: tens of microseconds, the gap between two ops of a step

// state: generation (upper 32 bits) | open (bit 16) | workers inside (lower 16 bits)
#define STATE_OPEN       ((uint64_t)1 << 16)
#define STATE_INSIDE     ((uint64_t)0xFFFF)
#define STATE_GENERATION 32

struct threads {
    int count;         // threads that work, the caller included
    int started;       // workers to join
    pthread_t *worker; // [count - 1]
    void (*task)(void *context, int64_t i, int thread);
    void *context;
    int64_t tasks;
    uint32_t generation; // of the newest job, the caller's copy
    _Alignas(64) atomic_int_fast64_t next;
    _Alignas(64) atomic_uint_fast64_t state;
    _Alignas(64) atomic_int sleepers; // workers that sleep, or are about to
    atomic_int waiting;               // the caller sleeps, or is about to
    atomic_bool stop;
    pthread_mutex_t mutex; // for sleeping only
    pthread_cond_t work, done;
};

struct worker_start { // freed by the worker
    struct threads *threads;
    int index;
};

static inline void cpu_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

static void work_through(struct threads *t, int thread) {
    for (;;) {
        int64_t i = atomic_fetch_add_explicit(&t->next, 1, memory_order_relaxed);
        if (i >= t->tasks) return;
        t->task(t->context, i, thread);
    }
}

// Enters the open job unless there is none or `seen` is its generation.
static bool enter(struct threads *t, uint32_t *seen) {
    uint64_t s = atomic_load(&t->state);
    while ((s & STATE_OPEN) && (uint32_t)(s >> STATE_GENERATION) != *seen) {
        if (atomic_compare_exchange_weak(&t->state, &s, s + 1)) {
            *seen = (uint32_t)(s >> STATE_GENERATION);
            return true;
        }
    }
    return false;
}

static void leave(struct threads *t) {
    uint64_t before = atomic_fetch_sub(&t->state, 1);
    if ((before & STATE_INSIDE) == 1 && atomic_load(&t->waiting)) {
        pthread_mutex_lock(&t->mutex);
        pthread_cond_signal(&t->done);
        pthread_mutex_unlock(&t->mutex);
    }
}

static bool enter_or_sleep(struct threads *t, uint32_t *seen) {
    for (int i = 0; i < SPIN; i++) {
        if (enter(t, seen)) return true;
        if (atomic_load_explicit(&t->stop, memory_order_relaxed)) return false;
        cpu_pause();
    }
    // The caller opens a job and then looks at `sleepers`; we raise `sleepers` and then look for a job: one of the two
    // sees the other, so no wake-up is lost.
    bool entered = false;
    pthread_mutex_lock(&t->mutex);
    atomic_fetch_add(&t->sleepers, 1);
    while (!atomic_load(&t->stop) && !(entered = enter(t, seen))) pthread_cond_wait(&t->work, &t->mutex);
    atomic_fetch_sub(&t->sleepers, 1);
    pthread_mutex_unlock(&t->mutex);
    return entered;
}

static void *worker_main(void *argument) {
    struct worker_start start = *(struct worker_start *)argument;
    mem_free(argument);
    uint32_t seen = 0;
    while (enter_or_sleep(start.threads, &seen)) {
        work_through(start.threads, start.index);
        leave(start.threads);
    }
    return NULL;
}

static int start_worker(struct threads *t, int index, struct error *err) {
    struct worker_start *start = mem_alloc(sizeof *start);
    if (!start) return error_memory(err, "a worker thread", sizeof *start);
    *start = (struct worker_start){.threads = t, .index = index};
    // Signals are the main thread's business, except those a worker raises itself (a page that vanished: file.h).
    sigset_t blocked, old;
    sigfillset(&blocked);
    static const int own[] = {SIGBUS, SIGSEGV, SIGFPE, SIGILL, SIGABRT, SIGTRAP};
    for (size_t i = 0; i < COUNT_OF(own); i++) sigdelset(&blocked, own[i]);
    pthread_sigmask(SIG_SETMASK, &blocked, &old);
    int failed = pthread_create(&t->worker[t->started], NULL, worker_main, start);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (failed) {
        mem_free(start);
        return error_set(err, STATUS_MEMORY, "cannot start worker thread %d; lower `threads`", index);
    }
    t->started++;
    return 0;
}

struct threads *threads_open(int count, struct error *err) {
    if (count < 1 || count > (int)STATE_INSIDE) {
        error_set(err, STATUS_CONFIG, "%d worker threads; use 1 to %d", count, (int)STATE_INSIDE);
        return NULL;
    }
    struct threads *t = mem_zalloc(1, sizeof *t);
    if (!t) {
        error_memory(err, "the thread pool", sizeof *t);
        return NULL;
    }
    t->count = count;
    pthread_mutex_init(&t->mutex, NULL);
    pthread_cond_init(&t->work, NULL);
    pthread_cond_init(&t->done, NULL);
    t->worker = mem_zalloc((size_t)count, sizeof *t->worker);
    if (!t->worker) {
        error_memory(err, "the thread pool", (size_t)count * sizeof *t->worker);
        threads_close(t);
        return NULL;
    }
    for (int i = 1; i < count; i++) {
        if (start_worker(t, i, err)) {
            threads_close(t);
            return NULL;
        }
    }
    return t;
}

void threads_close(struct threads *t) {
    if (!t) return;
    pthread_mutex_lock(&t->mutex);
    atomic_store(&t->stop, true);
    pthread_cond_broadcast(&t->work);
    pthread_mutex_unlock(&t->mutex);
    for (int i = 0; i < t->started; i++) pthread_join(t->worker[i], NULL);
    pthread_cond_destroy(&t->work);
    pthread_cond_destroy(&t->done);
    pthread_mutex_destroy(&t->mutex);
    mem_free(t->worker);
    mem_free(t);
}

int threads_count(const struct threads *t) {
    return t->count;
}

// Waits until no worker is inside the job, which is closed already.
static void wait_for_workers(struct threads *t) {
    for (int i = 0; i < SPIN; i++) {
        if ((atomic_load(&t->state) & STATE_INSIDE) == 0) return;
        cpu_pause();
    }
    pthread_mutex_lock(&t->mutex);
    atomic_store(&t->waiting, 1);
    while (atomic_load(&t->state) & STATE_INSIDE) pthread_cond_wait(&t->done, &t->mutex);
    atomic_store(&t->waiting, 0);
    pthread_mutex_unlock(&t->mutex);
}

void threads_run(struct threads *t, int64_t tasks, void (*task)(void *context, int64_t i, int thread), void *context) {
    if (t->count == 1 || tasks <= 1) {
        for (int64_t i = 0; i < tasks; i++) task(context, i, 0);
        return;
    }
    t->task = task;
    t->context = context;
    t->tasks = tasks;
    atomic_store_explicit(&t->next, 0, memory_order_relaxed);
    if (++t->generation == 0) t->generation = 1; // workers start with "seen 0"
    atomic_store(&t->state, (uint64_t)t->generation << STATE_GENERATION | STATE_OPEN);
    if (atomic_load(&t->sleepers)) {
        pthread_mutex_lock(&t->mutex);
        pthread_cond_broadcast(&t->work);
        pthread_mutex_unlock(&t->mutex);
    }
    work_through(t, 0);
    atomic_fetch_and(&t->state, ~STATE_OPEN);
    wait_for_workers(t);
}
