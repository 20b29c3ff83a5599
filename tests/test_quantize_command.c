// graft quantize as a user calls it: command lines, outputs that exist, disks that fail at every operation, Ctrl-C.
#include "kernels/base.h"
#include "model/gguf.h"
#include "model/model.h"
#include "tests/harness.h"
#include "tests/tiny.h"
#include "train/command.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MOST = 12 };

// The words of `line` as arguments.
static int quantize(struct error *err, const char *format, ...) __attribute__((format(printf, 2, 3)));
static int quantize(struct error *err, const char *format, ...) {
    char line[2000], *argv[MOST];
    int argc = 0;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    for (char *word = strtok(line, " "); word && argc < MOST; word = strtok(NULL, " ")) argv[argc++] = word;
    *err = (struct error){0};
    fflush(stdout);
    int out = dup(STDOUT_FILENO), notes = dup(STDERR_FILENO), nowhere = open("/dev/null", O_WRONLY);
    dup2(nowhere, STDOUT_FILENO), dup2(nowhere, STDERR_FILENO);
    int status = command_quantize(argc, argv, err);
    fflush(stdout);
    dup2(out, STDOUT_FILENO), dup2(notes, STDERR_FILENO);
    close(out), close(notes), close(nowhere);
    return status;
}

static const char *place(const char *name) {
    static char path[4][600];
    static int next;
    next = (next + 1) % 4;
    snprintf(path[next], sizeof path[next], "%s/%s", test_folder(), name);
    return path[next];
}

static const char *base(void) {
    static char path[600];
    struct error err = {0};
    snprintf(path, sizeof path, "%s/base.gguf", test_folder());
    if (!file_exists(path)) CHECK_MSG(tiny_write(path, &tiny_default, &err) == 0, "%s", err.text);
    return path;
}

// What lies in the test's folder beside the base.
static size_t leftovers(void) {
    char **names;
    size_t count, n = 0;
    struct error err = {0};
    CHECK(file_list(test_folder(), &names, &count, &err) == 0);
    for (size_t i = 0; i < count; i++) n += strncmp(names[i], "base", 4) != 0;
    file_list_free(names, count);
    return n;
}

TEST(command_lines) {
    static const struct {
        const char *line;
        int code;
        const char *why;
    } cases[] = {
        {"%s --out x", STATUS_USAGE, "--to nf4|fp4|int8"},
        {"%s --to q8_0", STATUS_USAGE, "--out PATH"},
        {"--to q8_0 --out x", STATUS_USAGE, "graft quantize BASE"},
        {"%s other --to q8_0 --out x", STATUS_USAGE, "graft quantize BASE"},
        {"%s --to q3_k --out x", STATUS_USAGE, "--to q3_k: nf4, fp4, int8"},
        {"%s --to Q8_0 --out x", STATUS_USAGE, "--to Q8_0"},
        {"%s --to q8_0 --out x --blocksize 64", STATUS_USAGE, "--blocksize is for nf4 and fp4"},
        {"%s --to int8 --out x --no-double-quant", STATUS_USAGE, "--no-double-quant is for nf4"},
        {"%s --to nf4 --out x --blocksize 48", STATUS_USAGE, "--blocksize 48"},
        {"%s --to nf4 --out x --pure", STATUS_USAGE, "--pure is for GGUF"},
        {"%s --type nf4 --out x", STATUS_USAGE, "--type"},
        {"%s --to nf4 --out x", STATUS_DATA, "only a base in safetensors"},
        {"/nowhere/base --to q8_0 --out x", STATUS_NOINPUT, "/nowhere/base"},
        {"%s --to q8_0 --out /nowhere/x.gguf", STATUS_CANTCREATE, "/nowhere"},
        {"%s --to q8_0 --out tests", STATUS_CANTCREATE, "tests: exists"},
        {"%s --to q8_0 --out Makefile", STATUS_CANTCREATE, "Makefile: exists"},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct error err;
        const char *given = strstr(cases[i].line, "%s"); // the base's name in place of the first two letters
        char line[700];
        snprintf(line, sizeof line, "%s%s", given ? base() : "", given ? given + 2 : cases[i].line);
        CHECK_MSG(quantize(&err, "%s", line) != 0 && err.code == cases[i].code && strstr(err.text, cases[i].why),
                  "%s: %d, %s", cases[i].line, err.code, err.text);
        CHECK(!file_exists("x") && !file_is_folder("x"));
    }
}

TEST(what_is_written_is_a_base) {
    static const char *const bases[] = {"gguf", "tests/fixtures/families/qwen3-moe"};
    static const char *const types[] = {"q8_0", "q6_k", "q5_1", "q5_0", "q4_1", "q4_0", "q4_k", "f16", "bf16", "f32"};
    for (size_t b = 0; b < COUNT_OF(bases); b++) {
        for (size_t i = 0; i < COUNT_OF(types); i++) {
            struct error err;
            struct model model;
            const char *out = place("out.gguf");
            CHECK_MSG(quantize(&err, "%s --to %s --out %s", b ? bases[b] : base(), types[i], out) == 0, "%s: %s",
                      types[i], err.text);
            int status = model_open(out, NULL, &model, &err);
            CHECK_MSG(status == 0, "%s", err.text);
            if (status) continue;
            CHECK(model.total_parameters > 1000);
            model_close(&model);
            CHECK_INT(leftovers(), 1);
            CHECK(quantize(&err, "%s --to %s --out %s", base(), types[i], out) != 0 && err.code == STATUS_CANTCREATE);
            CHECK(file_remove(out, &err) == 0);
        }
    }
    struct error err;
    CHECK_MSG(quantize(&err, "tests/fixtures/families/qwen3-moe --to nf4 --blocksize 128 --out %s", place("folder")) ==
                  0,
              "%s", err.text);
    CHECK(file_is_folder(place("folder")) && file_remove_tree(place("folder"), &err) == 0);
}

static void drop(const char *path) {
    if (file_is_folder(path))
        file_remove_tree(path, NULL);
    else
        file_remove(path, NULL);
}

// A disk that fails at the k-th operation, for every k.
static void whole_or_absent(const char *of, const char *to, const char *out) {
    struct error err;
    CHECK_MSG(quantize(&err, "%s --to %s --out %s", of, to, out) == 0, "%s", err.text);
    drop(out);
    file_fail_at(0, 0, 0);
    CHECK(quantize(&err, "%s --to %s --out %s", of, to, out) == 0);
    uint64_t operations = file_fail_at(0, 0, 0);
    drop(out);
    CHECK(operations > 10);
    for (uint64_t k = 1; k <= operations; k++) {
        file_fail_at(k, ENOSPC, 0);
        int status = quantize(&err, "%s --to %s --out %s", of, to, out);
        file_fail_at(0, 0, 0);
        struct error second = {0};
        struct model model;
        bool there = file_exists(out) || file_is_folder(out);
        CHECK_MSG(status == 0 || err.code != 0, "operation %llu", (unsigned long long)k);
        if (there)
            CHECK_MSG(model_open(out, NULL, &model, &second) == 0, "operation %llu: %s", (unsigned long long)k,
                      second.text);
        if (there && !second.code) model_close(&model);
        drop(out);
        CHECK_MSG(leftovers() == 0, "operation %llu left %zu files", (unsigned long long)k, leftovers());
    }
}

TEST(disks_that_fail) {
    whole_or_absent(base(), "q4_k", place("full.gguf"));
    whole_or_absent("tests/fixtures/families/gemma", "q8_0", place("full.gguf"));
    whole_or_absent("tests/fixtures/families/gemma", "nf4", place("full"));
}

// A child that is told to stop while it writes.
TEST(stopped_while_writing) {
    struct tiny_options large = {.layers = 2, .width = 2048, .heads = 16, .kv_heads = 16, .ffn = 4096, .seed = 1};
    struct error err = {0};
    const char *of = place("base-large.gguf"), *out = place("stopped.gguf");
    large.type = large.embed = QUANT_Q8_0;
    CHECK_MSG(tiny_write(of, &large, &err) == 0, "%s", err.text);
    pid_t child = fork();
    if (child == 0) {
        int status = quantize(&err, "%s --to q4_k --out %s", of, out);
        _exit(status == 0 ? 0 : strstr(err.text, "nothing was written") ? err.code : 99);
    }
    for (int i = 0; i < 3000 && leftovers() == 0; i++) usleep(1000); // its temporary file
    CHECK(kill(child, SIGINT) == 0);
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status));
    CHECK_INT(WEXITSTATUS(status), STATUS_STOPPED);
    CHECK(!file_exists(out));
    CHECK_INT(leftovers(), 0);
}

TEST_MAIN(CASE(command_lines), CASE(what_is_written_is_a_base), CASE(disks_that_fail), CASE(stopped_while_writing))
