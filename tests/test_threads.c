// The worker pool: every task runs once, whoever runs it; sleeping and late workers neither lose nor repeat a job.
#include "kernels/alloc.h"
#include "kernels/clock.h"
#include "kernels/cpu/cpu.h"
#include "kernels/machine.h"
#include "tests/harness.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { TASKS = 1000 };

struct job {
    atomic_int runs[TASKS];
    int plain[TASKS]; // written without atomics: the pool must order it (ThreadSanitizer looks)
    atomic_int bad_thread;
    int threads;
    int offset;
};

static void count_task(void *context, int64_t i, int thread) {
    struct job *job = context;
    atomic_fetch_add(&job->runs[i], 1);
    job->plain[i] = (int)i + job->offset;
    if (thread < 0 || thread >= job->threads) atomic_fetch_add(&job->bad_thread, 1);
}

static void check_job(struct threads *pool, int threads, int64_t tasks, int offset) {
    static struct job job;
    memset(&job, 0, sizeof job);
    job.threads = threads;
    job.offset = offset;
    threads_run(pool, tasks, count_task, &job);
    int wrong = 0;
    for (int64_t i = 0; i < TASKS; i++) {
        int want = i < tasks;
        if (job.runs[i] != want || (want && job.plain[i] != (int)i + offset)) wrong++;
    }
    CHECK_INT(wrong, 0);
    CHECK_INT(job.bad_thread, 0);
}

TEST(test_every_task_once) {
    static const int counts[] = {1, 2, 3, 8};
    static const int64_t tasks[] = {0, 1, 2, 3, 7, 64, TASKS};
    for (size_t c = 0; c < COUNT_OF(counts); c++) {
        struct error err = {0};
        struct threads *pool = threads_open(counts[c], &err);
        CHECK_MSG(pool, "%s", err.text);
        if (!pool) return;
        CHECK_INT(threads_count(pool), counts[c]);
        for (int round = 0; round < 300; round++) check_job(pool, counts[c], tasks[round % 7], round);
        threads_close(pool);
    }
}

static void sleep_ms(int ms) {
    struct timespec t = {.tv_nsec = ms * 1000000L};
    nanosleep(&t, NULL);
}

// Long enough between jobs that all workers sleep.
TEST(test_wakes_sleepers) {
    struct error err = {0};
    struct threads *pool = threads_open(4, &err);
    CHECK_MSG(pool, "%s", err.text);
    if (!pool) return;
    for (int round = 0; round < 30; round++) {
        sleep_ms(3);
        check_job(pool, 4, 50, round);
    }
    threads_close(pool);
}

struct stuck {
    atomic_int done; // tasks other than the first
    int seen_by_first;
};

// The first task's worker "loses its core" until all other tasks are done, which a static split would never see.
static void stuck_task(void *context, int64_t i, int thread) {
    struct stuck *stuck = context;
    (void)thread;
    if (i > 0) {
        atomic_fetch_add(&stuck->done, 1);
        return;
    }
    double limit = clock_now() + 10;
    while (stuck->done < 40 && clock_now() < limit) sleep_ms(1);
    stuck->seen_by_first = stuck->done;
}

TEST(test_slow_worker_does_not_hold_the_queue) {
    struct error err = {0};
    struct threads *pool = threads_open(2, &err);
    CHECK_MSG(pool, "%s", err.text);
    if (!pool) return;
    struct stuck stuck = {0};
    threads_run(pool, 41, stuck_task, &stuck);
    CHECK_INT(stuck.done, 40);
    CHECK_INT(stuck.seen_by_first, 40);
    threads_close(pool);
}

TEST(test_open_fails_cleanly) {
    struct error err = {0};
    CHECK(!threads_open(0, &err));
    CHECK_INT(err.code, STATUS_CONFIG);
    for (uint64_t k = 1; k <= 5; k++) {
        err = (struct error){0};
        mem_fail_at(k, 0);
        struct threads *pool = threads_open(4, &err);
        mem_fail_at(0, 0);
        CHECK_MSG(!pool, "allocation %d of 5 was refused", (int)k);
        CHECK_INT(err.code, STATUS_MEMORY);
        threads_close(pool);
    }
    threads_close(NULL);
}

TEST(test_cpu_count) {
    int n = cpu_count_available();
    CHECK(n >= 1 && n < 65536);
    struct machine_cpus cpus = machine_cpus();
    CHECK(cpus.online >= 1 && cpus.allowed >= n && cpus.quota >= 0);
    CHECK(cpus.quota > 0 || n == cpus.allowed);
    struct machine_memory memory = machine_memory();
    CHECK(memory.available > 1 << 20 && memory.total >= memory.available);
}

TEST(test_backend_choice) {
    static const char *const names[] = {"reference", "c", "avx2", "avx512", "avx512bf16"};
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        struct error err = {0};
        setenv("GRAFT_CPU", names[i], 1);
        struct backend *b = backend_open_cpu(2, &err);
        if (!b) { // only for lack of the instructions, and it says which
            CHECK_INT(err.code, STATUS_CONFIG);
            CHECK(i >= 2 && strstr(err.text, "lacks AVX"));
            continue;
        }
        CHECK(strncmp(backend_describe(b), names[i], strlen(names[i])) == 0);
        CHECK(strstr(backend_describe(b), ", 2 threads"));
        CHECK((((struct cpu_backend *)b)->isa == NULL) == (i == 0));
        backend_close(b);
    }
    struct error err = {0};
    setenv("GRAFT_CPU", "mmx", 1);
    CHECK(!backend_open_cpu(1, &err));
    CHECK_INT(err.code, STATUS_CONFIG);
    CHECK(strstr(err.text, "GRAFT_CPU=mmx"));
    unsetenv("GRAFT_CPU");
    err = (struct error){0};
    struct backend *b = backend_open_cpu(0, &err);
    CHECK_MSG(b, "%s", err.text);
    if (!b) return;
    CHECK_INT(b->threads, cpu_count_available());
    CHECK(strstr(backend_describe(b), "avx512") || strstr(backend_describe(b), "avx2") ||
          strstr(backend_describe(b), "c,"));
    backend_close(b);
    backend_close(NULL);
}

TEST_MAIN(CASE(test_every_task_once), CASE(test_wakes_sleepers), CASE(test_slow_worker_does_not_hold_the_queue),
          CASE(test_open_fails_cleanly), CASE(test_cpu_count), CASE(test_backend_choice))
