// Files: every operation failed one by one, special files, vanishing pages, locks. "Whole or absent" is checked by
// reading back what is on disk after each injected failure.
#include "kernels/base.h"
#include "tests/harness.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

// A path in the test folder; eight of them may be in use at once.
static const char *in_folder(const char *name) {
    static char paths[8][256];
    static int next;
    char *path = paths[next++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", test_folder(), name);
    return path;
}

static void put_file(const char *path, const char *content) {
    struct error err = {0};
    CHECK_MSG(file_replace(path, content, strlen(content), &err) == 0, "%s", err.text);
}

static bool holds(const char *path, const char *content) {
    struct text t;
    struct error err = {0};
    bool ok = file_read(path, 1 << 20, &t, &err) == 0 && t.length == strlen(content) && !strcmp(text_str(&t), content);
    text_free(&t);
    return ok;
}

static size_t count_files(const char *folder) {
    char **names;
    size_t n = 0;
    struct error err = {0};
    CHECK_MSG(file_list(folder, &names, &n, &err) == 0, "%s", err.text);
    file_list_free(names, n);
    return n;
}

static int count_descriptors(void) {
    return (int)count_files("/proc/self/fd");
}

TEST(map_and_read) {
    struct error err = {0};
    struct mapped_file m;
    struct text t;
    const char *path = in_folder("a");
    put_file(path, "hello");
    CHECK(file_map(path, &m, &err) == 0 && m.size == 5 && memcmp(m.data, "hello", 5) == 0);
    CHECK_STR(m.path, path);
    file_unmap(&m);
    file_unmap(&m);
    CHECK(file_read(path, 5, &t, &err) == 0 && t.length == 5);
    CHECK_STR(text_str(&t), "hello");
    text_free(&t);
    CHECK(file_read(path, 4, &t, &err) == -1 && err.code == STATUS_DATA);
    err = (struct error){0};
    put_file(path, "");
    CHECK(file_map(path, &m, &err) == 0 && m.size == 0 && m.data == NULL);
    file_unmap(&m);
    CHECK(file_read(path, 0, &t, &err) == 0 && t.length == 0);
    text_free(&t);
    CHECK(file_read("/proc/self/status", 1 << 20, &t, &err) == 0 && t.length > 100); // says it has 0 bytes
    text_free(&t);
    CHECK(file_read("/proc/self/status", 100, &t, &err) == -1 && err.code == STATUS_DATA);
    uint64_t bytes = 0;
    err = (struct error){0};
    put_file(path, "four");
    CHECK(file_size(path, &bytes, &err) == 0 && bytes == 4);
    CHECK(file_free_bytes(test_folder(), &bytes, &err) == 0 && bytes > 0);
}

static void refuses_input(const char *path, const char *message) {
    struct error err = {0};
    struct mapped_file m;
    struct text t;
    CHECK_MSG(file_map(path, &m, &err) == -1 && err.code == STATUS_NOINPUT && strstr(err.text, message), "%s",
              err.text);
    err = (struct error){0};
    CHECK_MSG(file_read(path, 100, &t, &err) == -1 && err.code == STATUS_NOINPUT && strstr(err.text, message), "%s",
              err.text);
    CHECK(m.data == NULL && m.path == NULL && t.data == NULL);
}

TEST(special_files_are_refused_without_blocking) {
    alarm(20);
    refuses_input(in_folder("missing"), "missing: cannot open: No such file or directory");
    refuses_input(test_folder(), "is a folder");
    refuses_input("/dev/zero", "is not a regular file");
    put_file(in_folder("plain"), "x");
    refuses_input(in_folder("plain/x"), "Not a directory");
    CHECK(mkfifo(in_folder("fifo"), 0666) == 0);
    refuses_input(in_folder("fifo"), "is not a regular file");
    CHECK(symlink("loop", in_folder("loop")) == 0);
    refuses_input(in_folder("loop"), "symbolic links");
    struct error err = {0};
    CHECK(file_append(in_folder("fifo"), "x", 1, &err) == -1);
    alarm(0);
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    snprintf(name.sun_path, sizeof name.sun_path, "%s", in_folder("socket"));
    int s = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(bind(s, (struct sockaddr *)&name, sizeof name) == 0);
    err = (struct error){0};
    struct mapped_file m;
    CHECK(file_map(in_folder("socket"), &m, &err) == -1 && err.code != 0);
    close(s);
}

// Runs `body` in a child and returns its wait status; what it wrote to stderr lands in `out`.
static int in_child(void (*body)(void), char *out, size_t size) {
    int ends[2], status = -1;
    CHECK(pipe(ends) == 0);
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], STDERR_FILENO);
        body();
        _exit(0);
    }
    close(ends[1]);
    size_t n = 0;
    ssize_t got;
    while (n + 1 < size && (got = read(ends[0], out + n, size - 1 - n)) > 0) n += (size_t)got;
    out[n] = 0;
    close(ends[0]);
    CHECK(waitpid(child, &status, 0) == child);
    return status;
}

static void touch_vanished_page(void) {
    struct mapped_file other, m;
    struct error err = {0};
    if (file_map(in_folder("big"), &other, &err) < 0 || file_map(in_folder("vanishing"), &m, &err) < 0) _exit(1);
    if (truncate(in_folder("vanishing"), 100) < 0) _exit(1);
    volatile uint8_t sum = m.data[50];
    sum = (uint8_t)(sum + other.data[8000] + m.data[8000]);
    _exit(2);
}

static void touch_foreign_page(void) {
    struct mapped_file m;
    struct error err = {0};
    int fd = open(in_folder("vanishing"), O_RDONLY);
    if (fd < 0 || file_map(in_folder("big"), &m, &err) < 0) _exit(1);
    struct rlimit none = {0, 0};
    setrlimit(RLIMIT_CORE, &none);
    volatile const uint8_t *p = mmap(NULL, 16384, PROT_READ, MAP_PRIVATE, fd, 0);
    volatile uint8_t sum = p[8000];
    (void)sum;
    _exit(0);
}

TEST(vanished_page_names_the_file_and_exits_74) {
    struct error err = {0};
    char *zeros = mem_zalloc(1, 16384), said[4096];
    CHECK(file_replace(in_folder("big"), zeros, 16384, &err) == 0);
    CHECK(file_replace(in_folder("vanishing"), zeros, 16384, &err) == 0);
    int status = in_child(touch_vanished_page, said, sizeof said);
    CHECK_MSG(WIFEXITED(status) && WEXITSTATUS(status) == STATUS_IO, "status %x, said %s", status, said);
    CHECK_MSG(strncmp(said, "graft: ", 7) == 0 && strstr(said, "/vanishing: the file was truncated"), "said %s", said);
    CHECK(file_replace(in_folder("vanishing"), zeros, 100, &err) == 0);
    status = in_child(touch_foreign_page, said, sizeof said); // somebody else's mapping: not ours to explain
    CHECK_MSG(!(WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == STATUS_IO)), "status %x",
              status);
    mem_free(zeros);
}

TEST(writer_is_exclusive_and_leaves_nothing_behind) {
    struct error err = {0};
    struct file_writer w, second;
    const char *path = in_folder("new"), *outside = in_folder("target");
    CHECK(file_create(path, &w, &err) == 0 && file_write(&w, "ab", 2, &err) == 0 && file_write(&w, "c", 1, &err) == 0);
    CHECK_INT(w.bytes, 3);
    CHECK(file_create(path, &second, &err) == -1 && err.code == STATUS_CANTCREATE);
    err = (struct error){0};
    CHECK(file_close(&w, &err) == 0 && holds(path, "abc"));
    file_abandon(&w);
    CHECK(file_exists(path));
    CHECK(file_write(&w, "d", 1, &err) == -1 && file_close(&w, NULL) == -1);
    err = (struct error){0};
    CHECK(file_create(in_folder("half"), &w, &err) == 0 && file_write(&w, "ab", 2, &err) == 0);
    file_abandon(&w);
    CHECK(!file_exists(in_folder("half")));
    CHECK(symlink(outside, in_folder("link")) == 0);
    CHECK(file_create(in_folder("link"), &w, &err) == -1 && err.code == STATUS_CANTCREATE && !file_exists(outside));
    err = (struct error){0};
    CHECK(file_create(in_folder("no/such/folder"), &w, &err) == -1 && err.code == STATUS_CANTCREATE);
    err = (struct error){0};
    CHECK(file_create("/proc/nothing", &w, &err) == -1 && err.code != 0);
    umask(022);
    struct stat info;
    put_file(in_folder("mode"), "x");
    CHECK(stat(in_folder("mode"), &info) == 0 && (info.st_mode & 0777) == 0644); // not 0600: shared folders
}

static const int codes[] = {EIO, ENOSPC, EDQUOT, EROFS, EACCES, EPERM, EMFILE, ENFILE, ESTALE, EAGAIN, ENOMEM};

static int expected_status(int code) {
    if (code == EACCES || code == EPERM) return STATUS_PERMISSION;
    if (code == ENOMEM) return STATUS_MEMORY;
    return STATUS_IO;
}

TEST(replace_is_whole_or_absent_whatever_fails) {
    const char *folder = in_folder("replace"), *path = in_folder("replace/file");
    struct error err = {0};
    CHECK(file_make_folders(folder, &err) == 0);
    int open_before = count_descriptors();
    for (size_t c = 0; c < COUNT_OF(codes); c++) {
        for (int forever = 0; forever < 2; forever++) {
            bool done = false;
            for (uint64_t k = 1; !done && k < 100; k++) {
                put_file(path, "old content");
                err = (struct error){0};
                file_fail_at(k, codes[c], forever);
                int result = file_replace(path, "new", 3, &err);
                done = file_fail_at(0, 0, 0) < k;
                CHECK_INT(result, done ? 0 : -1);
                CHECK_MSG(done || err.code == expected_status(codes[c]) || err.code == STATUS_CANTCREATE, "%d: %s",
                          err.code, err.text);
                CHECK(holds(path, "new") || (!done && holds(path, "old content")));
                CHECK_INT(count_files(folder), 1);
                if (done) CHECK_MSG(k > 8, "only %d operations", (int)k);
            }
            CHECK(done);
        }
    }
    CHECK_INT(count_descriptors(), open_before);
}

TEST(every_operation_reports_its_failure) {
    struct error err = {0};
    CHECK(file_make_folders(in_folder("ops/sub/deep"), &err) == 0);
    put_file(in_folder("ops/file"), "x");
    int open_before = count_descriptors();
    const char *path = in_folder("ops/file"), *folder = in_folder("ops");
    for (int op = 0; op < 13; op++) {
        bool done = false;
        for (uint64_t k = 1; !done && k < 100; k++) {
            struct mapped_file m = {0};
            struct text t = {0};
            struct file_lock lock = {.fd = -1};
            char **names = NULL;
            size_t n = 0;
            uint64_t bytes;
            int result = -1;
            err = (struct error){0};
            if (op >= 11) {
                CHECK(file_make_folders(in_folder("ops/tree/a/b"), &err) == 0);
                put_file(in_folder("ops/tree/a/f"), "x");
            }
            file_fail_at(k, EIO, 0);
            switch (op) {
            case 0: result = file_map(path, &m, &err); break;
            case 1: result = file_read(path, 100, &t, &err); break;
            case 2: result = file_append(in_folder("ops/log"), "line\n", 5, &err); break;
            case 3: result = file_truncate(path, 1, &err); break;
            case 4: result = file_size(path, &bytes, &err); break;
            case 5: result = file_make_folders(in_folder("ops/m/n/o"), &err); break;
            case 6: result = file_sync_folder(folder, &err); break;
            case 7: result = file_free_bytes(folder, &bytes, &err); break;
            case 8: result = file_list(folder, &names, &n, &err); break;
            case 9: result = file_lock(in_folder("ops/lock"), &lock, &err); break;
            case 10: result = file_remove(in_folder("ops/absent"), &err); break;
            case 11: result = file_rename(in_folder("ops/tree/a/f"), in_folder("ops/tree/g"), &err); break;
            case 12: result = file_remove_tree(in_folder("ops/tree"), &err); break;
            default: break;
            }
            done = file_fail_at(0, 0, 0) < k;
            CHECK_MSG(result == (done ? 0 : -1), "operation %d, k %d: %d", op, (int)k, result);
            CHECK_MSG((err.code == 0) == done && (done || strstr(err.text, "Input/output error")), "operation %d: %s",
                      op, err.text);
            file_unmap(&m);
            text_free(&t);
            file_list_free(names, n);
            file_unlock(&lock);
        }
        CHECK(done);
    }
    CHECK_INT(count_descriptors(), open_before);
}

TEST(interrupted_calls_are_repeated) {
    const char *path = in_folder("eintr");
    for (uint64_t k = 1; k < 12; k++) {
        struct error err = {0};
        file_fail_at(k, EINTR, 0);
        int result = file_replace(path, "content", 7, &err);
        file_fail_at(0, 0, 0);
        bool at_close = strstr(err.text, "close") != NULL; // close is never repeated, its failure is reported
        CHECK_MSG(result == 0 || at_close, "%s", err.text);
        CHECK(result < 0 || holds(path, "content"));
    }
}

static void write_over_limit(void) {
    struct rlimit limit = {3000, 3000};
    struct error err = {0};
    char block[5000];
    memset(block, 'x', sizeof block);
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &limit); // a write of 5000 bytes writes 3000, then fails
    if (file_replace(in_folder("limited/file"), block, sizeof block, &err) == 0) _exit(1);
    dprintf(STDERR_FILENO, "%s", err.text);
    _exit(err.code);
}

TEST(short_write_then_failure_keeps_the_old_file) {
    struct error err = {0};
    char said[2048];
    CHECK(file_make_folders(in_folder("limited"), &err) == 0);
    put_file(in_folder("limited/file"), "old");
    int status = in_child(write_over_limit, said, sizeof said);
    CHECK_MSG(WIFEXITED(status) && WEXITSTATUS(status) == STATUS_IO && strstr(said, "cannot write"), "%x %s", status,
              said);
    CHECK(holds(in_folder("limited/file"), "old"));
    CHECK_INT(count_files(in_folder("limited")), 1);
}

TEST(append_list_tree) {
    struct error err = {0};
    const char *log = in_folder("t/log");
    CHECK(file_make_folders(in_folder("t//sub/"), &err) == 0 && file_is_folder(in_folder("t/sub")));
    CHECK(file_make_folders(in_folder("t/sub"), &err) == 0 && file_make_folders("/", &err) == 0);
    CHECK(file_append(log, "one\n", 4, &err) == 0 && file_append(log, "two\n", 4, &err) == 0 &&
          holds(log, "one\ntwo\n"));
    CHECK(file_truncate(log, 4, &err) == 0 && holds(log, "one\n"));
    CHECK(file_make_folders(in_folder("t/log/x"), &err) == -1 && err.code == STATUS_CANTCREATE);
    err = (struct error){0};
    put_file(in_folder("t/sub/B"), "");
    put_file(in_folder("t/sub/a"), "");
    put_file(in_folder("t/sub/.hidden"), "");
    put_file(in_folder("t/sub/10"), "");
    char **names;
    size_t n;
    CHECK(file_list(in_folder("t/sub"), &names, &n, &err) == 0 && n == 4);
    CHECK_STR(names[0], ".hidden");
    CHECK_STR(names[1], "10");
    CHECK_STR(names[2], "B");
    CHECK_STR(names[3], "a");
    file_list_free(names, n);
    CHECK(file_list(in_folder("t/none"), &names, &n, &err) == -1 && err.code == STATUS_NOINPUT);
    err = (struct error){0};
    put_file(in_folder("kept"), "kept"); // behind a symbolic link that must not be followed
    CHECK(symlink(test_folder(), in_folder("t/sub/link")) == 0);
    CHECK(file_rename(in_folder("t/sub/a"), in_folder("t/b"), &err) == 0 && file_exists(in_folder("t/b")));
    CHECK(file_remove(in_folder("t/b"), &err) == 0 && file_remove(in_folder("t/b"), &err) == 0);
    CHECK(file_remove_tree(in_folder("t"), &err) == 0 && !file_exists(in_folder("t")));
    CHECK(file_remove_tree(in_folder("t"), &err) == 0);
    CHECK(holds(in_folder("kept"), "kept"));
    CHECK(symlink(test_folder(), in_folder("link2")) == 0);
    CHECK(file_remove_tree(in_folder("link2"), &err) == -1 && holds(in_folder("kept"), "kept"));
}

static void try_lock(void) {
    struct file_lock lock;
    struct error err = {0};
    if (file_lock(in_folder("lock"), &lock, &err) < 0) dprintf(STDERR_FILENO, "%s", err.text);
    _exit(err.code); // leaves without unlocking
}

TEST(lock_names_its_owner_and_survives_a_dead_one) {
    struct file_lock lock;
    struct error err = {0};
    char said[2048], owner[64];
    CHECK(file_lock(in_folder("lock"), &lock, &err) == 0);
    int status = in_child(try_lock, said, sizeof said);
    snprintf(owner, sizeof owner, "locked by process %ld on ", (long)getpid());
    CHECK_MSG(WIFEXITED(status) && WEXITSTATUS(status) == STATUS_CANTCREATE && strstr(said, owner), "%x %s", status,
              said);
    file_unlock(&lock);
    file_unlock(&lock);
    CHECK(!file_exists(in_folder("lock")));
    status = in_child(try_lock, said, sizeof said);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0 && file_exists(in_folder("lock"))); // left by a dead process
    CHECK(file_lock(in_folder("lock"), &lock, &err) == 0);
    file_unlock(&lock);
    CHECK(symlink("/nowhere/x", in_folder("lock")) == 0);
    CHECK(file_lock(in_folder("lock"), &lock, &err) == -1 && err.code == STATUS_CANTCREATE);
    unlink(in_folder("lock"));
}

static int lock_without_flock(const char *content, struct error *err) {
    struct file_lock lock;
    *err = (struct error){0};
    put_file(in_folder("lock3"), content);
    file_fail_at(2, ENOSYS, 0); // 1 is open, 2 is flock
    int result = file_lock(in_folder("lock3"), &lock, err);
    file_fail_at(0, 0, 0);
    file_unlock(&lock);
    return result;
}

TEST(lock_on_a_file_system_without_flock) {
    struct error err;
    char host[256] = "", line[320];
    gethostname(host, sizeof host - 1);
    CHECK(lock_without_flock("", &err) == 0);
    CHECK(lock_without_flock("garbage", &err) == 0);
    snprintf(line, sizeof line, "%d %s\n", (int)getppid(), host); // alive
    CHECK(lock_without_flock(line, &err) == -1 && err.code == STATUS_CANTCREATE &&
          strstr(err.text, "locked by process"));
    snprintf(line, sizeof line, "%d %s\n", 0x3FFFFFFF, host); // no such process
    CHECK(lock_without_flock(line, &err) == 0);
    snprintf(line, sizeof line, "%d another-%s\n", 0x3FFFFFFF, host); // cannot be asked
    CHECK(lock_without_flock(line, &err) == -1);
}

TEST(names) {
    char *p = path_join("a", "b");
    CHECK_STR(p, "a/b");
    mem_free(p);
    p = path_join("a/", "b");
    CHECK_STR(p, "a/b");
    mem_free(p);
    p = path_join("", "b");
    CHECK_STR(p, "b");
    mem_free(p);
    p = path_join("/", "b");
    CHECK_STR(p, "/b");
    mem_free(p);
    char longest[257];
    memset(longest, 'n', sizeof longest);
    CHECK(path_is_plain_name("model-00001-of-00002.safetensors", 32) && path_is_plain_name(longest, 255) &&
          path_is_plain_name("-rf", 3));
    CHECK(!path_is_plain_name(longest, 256) && !path_is_plain_name("", 0) && !path_is_plain_name("..", 2) &&
          !path_is_plain_name(".x", 2));
    CHECK(!path_is_plain_name("a/b", 3) && !path_is_plain_name("a\\b", 3) && !path_is_plain_name("a\0b", 3) &&
          !path_is_plain_name("/a", 2));
}

TEST(allocation_failures) {
    put_file(in_folder("alloc"), "content");
    for (int op = 0; op < 5; op++) {
        bool done = false;
        for (uint64_t k = 1; !done && k < 100; k++) {
            struct error err = {0};
            struct mapped_file m = {0};
            struct text t = {0};
            struct file_lock lock = {.fd = -1};
            char **names = NULL;
            size_t n = 0;
            int result = -1;
            mem_fail_at(k, 0);
            switch (op) {
            case 0: result = file_map(in_folder("alloc"), &m, &err); break;
            case 1: result = file_read("/proc/self/status", 1 << 20, &t, &err); break; // grows
            case 2: result = file_list(test_folder(), &names, &n, &err); break;
            case 3: result = file_lock(in_folder("lock4"), &lock, &err); break;
            case 4: result = file_replace(in_folder("alloc"), "content", 7, &err); break;
            default: break;
            }
            done = mem_fail_at(0, 0) < k;
            CHECK_MSG(result == (done ? 0 : -1) && err.code == (done ? 0 : STATUS_MEMORY), "operation %d: %s", op,
                      err.text);
            file_unmap(&m);
            text_free(&t);
            file_list_free(names, n);
            file_unlock(&lock);
        }
        CHECK(done);
    }
    CHECK(holds(in_folder("alloc"), "content"));
}

TEST_MAIN(CASE(map_and_read), CASE(special_files_are_refused_without_blocking),
          CASE(vanished_page_names_the_file_and_exits_74), CASE(writer_is_exclusive_and_leaves_nothing_behind),
          CASE(replace_is_whole_or_absent_whatever_fails), CASE(every_operation_reports_its_failure),
          CASE(interrupted_calls_are_repeated), CASE(short_write_then_failure_keeps_the_old_file),
          CASE(append_list_tree), CASE(lock_names_its_owner_and_survives_a_dead_one),
          CASE(lock_on_a_file_system_without_flock), CASE(names), CASE(allocation_failures))
