// The test harness. A test program defines its cases with TEST and lists them in TEST_MAIN; it closes with one line
// "N passed, N failed, N skipped" and exits 1 when one failed. A failed CHECK prints its place and goes on.
#pragma once

#include <stdbool.h>
#include <stddef.h>

void test_fail(const char *file, int line, const char *format, ...) __attribute__((format(printf, 3, 4)));
void test_skip(const char *format, ...) __attribute__((format(printf, 1, 2))); // the running test counts as skipped
bool test_failed(void);                                                        // has the running test failed so far?

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) test_fail(__FILE__, __LINE__, "%s", #condition);                                             \
    } while (0)
#define CHECK_MSG(condition, ...)                                                                                      \
    do {                                                                                                               \
        if (!(condition)) test_fail(__FILE__, __LINE__, __VA_ARGS__);                                                  \
    } while (0)
#define CHECK_INT(got, want)                                                                                           \
    do {                                                                                                               \
        long long got_ = (long long)(got), want_ = (long long)(want);                                                  \
        if (got_ != want_) test_fail(__FILE__, __LINE__, "%s is %lld, expected %lld", #got, got_, want_);              \
    } while (0)
#define CHECK_STR(got, want)                                                                                           \
    do {                                                                                                               \
        const char *got_ = (got), *want_ = (want);                                                                     \
        if (!test_same_string(got_, want_))                                                                            \
            test_fail(__FILE__, __LINE__, "%s is \"%s\", expected \"%s\"", #got, got_ ? got_ : "(null)", want_);       \
    } while (0)
#define CHECK_NEAR(got, want, tolerance)                                                                               \
    do {                                                                                                               \
        double got_ = (got), want_ = (want), tol_ = (tolerance);                                                       \
        if (!(got_ - want_ <= tol_ && want_ - got_ <= tol_))                                                           \
            test_fail(__FILE__, __LINE__, "%s is %.9g, expected %.9g within %g", #got, got_, want_, tol_);             \
    } while (0)
bool test_same_string(const char *a, const char *b);

struct test_case {
    const char *name;
    void (*run)(void);
};
// Runs the cases whose name contains argv[1] (all without it).
int test_main(const struct test_case *cases, size_t count, int argc, char **argv);

#define TEST(name) static void name(void)
#define CASE(name)                                                                                                     \
    { #name, name }
#define TEST_MAIN(...)                                                                                                 \
    int main(int argc, char **argv) {                                                                                  \
        static const struct test_case cases[] = {__VA_ARGS__};                                                         \
        return test_main(cases, sizeof cases / sizeof cases[0], argc, argv);                                           \
    }

// A fresh empty folder, removed at exit. Static text.
const char *test_folder(void);
const char *test_path(const char *folder, const char *name); // joined; good until the 16th call after it
// Deterministic numbers for tests: uniform in [-1, 1), the same for the same (seed, index) everywhere.
double test_random(unsigned seed, unsigned index);
