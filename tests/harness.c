// See harness.h.
#include "tests/harness.h"

#include "kernels/base.h"
#include "kernels/random.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct {
    bool failed, skipped;
    int reported;
    char folder[64];
} state;

void test_fail(const char *file, int line, const char *format, ...) {
    state.failed = true;
    if (++state.reported > 20) return; // one broken loop must not bury the others
    fprintf(stderr, "    %s:%d: ", file, line);
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
}

void test_skip(const char *format, ...) {
    state.skipped = true;
    fprintf(stderr, "    skipped: ");
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
}

bool test_failed(void) {
    return state.failed;
}

bool test_same_string(const char *a, const char *b) {
    return a && b && strcmp(a, b) == 0;
}

static void remove_folder(void) {
    if (state.folder[0]) file_remove_tree(state.folder, NULL);
}

const char *test_folder(void) {
    if (!state.folder[0]) {
        strcpy(state.folder, "/tmp/graft-test-XXXXXX");
        if (!mkdtemp(state.folder)) {
            perror("mkdtemp");
            exit(1);
        }
        atexit(remove_folder);
    }
    return state.folder;
}

const char *test_path(const char *folder, const char *name) {
    static char path[16][1000];
    static int next;
    next = (next + 1) % 16;
    snprintf(path[next], sizeof path[next], "%s/%s", folder, name);
    return path[next];
}

double test_random(unsigned seed, unsigned index) {
    uint32_t out[4];
    random_four((struct random_key){.seed = seed, .purpose_module = (uint32_t)RANDOM_TEST << 24}, 0, 0, index / 4, out);
    return 2.0 * (double)random_uniform(out[index % 4]) - 1.0;
}

int test_main(const struct test_case *cases, size_t count, int argc, char **argv) {
    int passed = 0, failed = 0, skipped = 0;
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (size_t i = 0; i < count; i++) {
        if (argc > 1 && !strstr(cases[i].name, argv[1])) continue;
        state.failed = state.skipped = false;
        state.reported = 0;
        double start = clock_now();
        cases[i].run();
        double seconds = clock_now() - start;
        const char *verdict = state.failed ? "FAIL" : state.skipped ? "skip" : "ok";
        printf("%-4s %s (%.2f s)\n", verdict, cases[i].name, seconds);
        if (state.failed)
            failed++;
        else if (state.skipped)
            skipped++;
        else
            passed++;
    }
    printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped);
    return failed ? 1 : 0;
}
