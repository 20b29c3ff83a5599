// See file.h. Two pieces of process state, both forced by what they do: the counter of the test hook, and the table of
// mappings that the SIGBUS handler reads (a signal handler has no argument to carry it).
#include "kernels/file.h"

#include "kernels/alloc.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

// --- Test hook

static struct {
    atomic_uint_least64_t calls;
    atomic_uint_least64_t fail_at; // 0 = off
    atomic_int code, forever;
} hook;

static bool injected(void) {
    uint64_t call = atomic_fetch_add_explicit(&hook.calls, 1, memory_order_relaxed) + 1;
    uint64_t k = atomic_load_explicit(&hook.fail_at, memory_order_relaxed);
    if (k == 0) return false;
    if (call != k && !(call > k && atomic_load_explicit(&hook.forever, memory_order_relaxed))) return false;
    errno = atomic_load_explicit(&hook.code, memory_order_relaxed);
    return true;
}

uint64_t file_fail_at(uint64_t k, int code, int forever) {
    atomic_store(&hook.code, code);
    atomic_store(&hook.forever, forever);
    atomic_store(&hook.fail_at, k);
    return atomic_exchange(&hook.calls, 0);
}

// One system call: may be made to fail, is repeated when a signal interrupted it.
#define SYSTEM(result, call)                                                                                           \
    do {                                                                                                               \
        (result) = injected() ? -1 : (call);                                                                           \
    } while ((result) < 0 && errno == EINTR)

// Never repeated: Linux has released the descriptor even when close reports EINTR.
static int close_fd(int fd) {
    bool fail = injected();
    int code = errno, result = close(fd);
    if (!fail) return result;
    errno = code;
    return -1;
}

// --- Errors

enum purpose { READING, CREATING, CHANGING };

// Fills `err` from errno.
static int failed(struct error *err, enum purpose purpose, const char *path, const char *operation) {
    int code = errno, status = STATUS_IO;
    if (code == EACCES || code == EPERM)
        status = STATUS_PERMISSION;
    else if (code == ENOMEM)
        status = STATUS_MEMORY;
    else if (purpose == READING && (code == ENOENT || code == ENOTDIR || code == ELOOP))
        status = STATUS_NOINPUT;
    else if (purpose == CREATING && (code == ENOENT || code == ENOTDIR || code == EROFS || code == EEXIST ||
                                     code == ELOOP || code == EISDIR || code == ENAMETOOLONG))
        status = STATUS_CANTCREATE;
    char reason[128];
    return error_set(err, status, "%s: cannot %s: %s", path, operation, strerror_r(code, reason, sizeof reason));
}

// --- The guard against pages that vanish

// A mapping is in the table while begin > CLAIMED. The handler reads begin first, so size and path are set before it.
enum { MAX_MAPPINGS = 4096, CLAIMED = 1 };
static struct {
    _Atomic uintptr_t begin; // 0 = free
    size_t size;
    const char *path;
} mappings[MAX_MAPPINGS];
static struct sigaction previous_sigbus;

static void write_stderr(const char *text) {
    size_t left = strlen(text);
    while (left > 0) {
        ssize_t n = write(STDERR_FILENO, text, left);
        if (n <= 0) return;
        text += n;
        left -= (size_t)n;
    }
}

static void on_sigbus(int signal_number, siginfo_t *info, void *context) {
    (void)signal_number, (void)context;
    uintptr_t at = (uintptr_t)info->si_addr;
    for (int i = 0; i < MAX_MAPPINGS; i++) {
        uintptr_t begin = atomic_load_explicit(&mappings[i].begin, memory_order_acquire);
        if (begin <= CLAIMED || at < begin || at - begin >= mappings[i].size) continue;
        write_stderr("graft: ");
        write_stderr(mappings[i].path);
        write_stderr(": the file was truncated or became unreadable while mapped; what is on disk is not touched; "
                     "restore the file and start again\n");
        _exit(STATUS_IO);
    }
    sigaction(SIGBUS, &previous_sigbus, NULL); // not ours: the instruction faults again under the old handler
}

static void install_guard(void) {
    struct sigaction action = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, &previous_sigbus);
}

static bool guard_add(const struct mapped_file *file) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, install_guard);
    for (int i = 0; i < MAX_MAPPINGS; i++) {
        uintptr_t expected = 0;
        if (!atomic_compare_exchange_strong(&mappings[i].begin, &expected, CLAIMED)) continue;
        mappings[i].size = file->size;
        mappings[i].path = file->path;
        atomic_store_explicit(&mappings[i].begin, (uintptr_t)file->data, memory_order_release);
        return true;
    }
    return false;
}

static void guard_remove(const uint8_t *data) {
    for (int i = 0; i < MAX_MAPPINGS; i++) {
        if (atomic_load(&mappings[i].begin) != (uintptr_t)data) continue;
        atomic_store(&mappings[i].begin, (uintptr_t)0);
        return;
    }
}

// --- Reading

// Opens without blocking (a FIFO would wait for a writer) and refuses everything that is not a regular file.
static int open_regular(const char *path, struct stat *info, struct error *err) {
    int fd, result;
    SYSTEM(fd, open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY));
    if (fd < 0) return failed(err, READING, path, "open");
    SYSTEM(result, fstat(fd, info));
    if (result < 0)
        failed(err, READING, path, "query");
    else if (S_ISDIR(info->st_mode))
        error_set(err, STATUS_NOINPUT, "%s: is a folder, expected a file", path);
    else if (!S_ISREG(info->st_mode))
        error_set(err, STATUS_NOINPUT, "%s: is not a regular file", path);
    else
        return fd;
    close(fd);
    return -1;
}

int file_map(const char *path, struct mapped_file *out, struct error *err) {
    *out = (struct mapped_file){0};
    struct stat info;
    int fd = open_regular(path, &info, err);
    if (fd < 0) return -1;
    void *data = NULL;
    size_t size = (size_t)info.st_size;
    char *copy = mem_strdup(path);
    if (!copy) {
        error_memory(err, "a file name", strlen(path) + 1);
        goto fail;
    }
    if (info.st_size < 0 || (uint64_t)info.st_size > SIZE_MAX / 2) {
        error_set(err, STATUS_DATA, "%s: %lld bytes are more than can be mapped", path, (long long)info.st_size);
        goto fail;
    }
    if (size > 0) {
        data = injected() ? MAP_FAILED : mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (data == MAP_FAILED) {
            data = NULL;
            failed(err, READING, path, "map");
            goto fail;
        }
    }
    struct mapped_file file = {.data = data, .size = size, .path = copy};
    if (data && !guard_add(&file)) {
        error_set(err, STATUS_INTERNAL, "%s: more than %d files are mapped at once", path, MAX_MAPPINGS);
        goto fail;
    }
    close(fd); // only read from: its result says nothing
    *out = file;
    return 0;
fail:
    if (data) munmap(data, size);
    mem_free(copy);
    close(fd);
    return -1;
}

void file_unmap(struct mapped_file *file) {
    if (file->data) {
        guard_remove(file->data);
        munmap((void *)(uintptr_t)file->data, file->size);
    }
    mem_free(file->path);
    *file = (struct mapped_file){0};
}

// Reads to the end, so that files of the kernel, which report size 0, and growing files work too.
static int read_to_end(int fd, const char *path, size_t limit, size_t expected, struct text *out, struct error *err) {
    size_t capacity = (expected < limit ? expected : limit) + 2, length = 0; // one more to see the end, one for the NUL
    char *data = mem_alloc(capacity);
    if (!data) return error_memory(err, path, capacity);
    for (;;) {
        ssize_t n;
        SYSTEM(n, read(fd, data + length, capacity - 1 - length));
        if (n < 0) {
            failed(err, READING, path, "read");
            break;
        }
        length += (size_t)n;
        if (length > limit) {
            error_set(err, STATUS_DATA, "%s: is larger than the limit of %zu bytes", path, limit);
            break;
        }
        if (n == 0) {
            data[length] = 0;
            *out = (struct text){.data = data, .length = length, .capacity = capacity};
            return 0;
        }
        if (length + 1 < capacity) continue;
        size_t more = capacity <= SIZE_MAX / 4 ? capacity * 2 : SIZE_MAX / 2;
        char *bigger = mem_resize(data, more);
        if (!bigger) {
            error_memory(err, path, more);
            break;
        }
        data = bigger;
        capacity = more;
    }
    mem_free(data);
    return -1;
}

int file_read(const char *path, size_t limit, struct text *out, struct error *err) {
    *out = (struct text){0};
    struct stat info;
    int fd = open_regular(path, &info, err), result = -1;
    if (fd < 0) return -1;
    if (info.st_size < 0 || (uint64_t)info.st_size > limit || limit > SIZE_MAX / 4)
        error_set(err, STATUS_DATA, "%s: %lld bytes, the limit is %zu", path, (long long)info.st_size, limit);
    else
        result = read_to_end(fd, path, limit, (size_t)info.st_size, out, err);
    close(fd);
    return result;
}

// --- Writing

static int write_all(int fd, const char *path, const void *bytes, size_t length, struct error *err) {
    const char *p = bytes;
    while (length > 0) {
        size_t chunk = length < (1u << 30) ? length : 1u << 30;
        ssize_t n;
        SYSTEM(n, write(fd, p, chunk));
        if (n == 0) errno = ENOSPC; // a regular file never accepts nothing: do not spin on a file system that does
        if (n <= 0) return failed(err, CHANGING, path, "write");
        p += n;
        length -= (size_t)n;
    }
    return 0;
}

int file_create(const char *path, struct file_writer *out, struct error *err) {
    *out = (struct file_writer){.fd = -1};
    char *copy = mem_strdup(path);
    if (!copy) return error_memory(err, "a file name", strlen(path) + 1);
    int fd;
    SYSTEM(fd, open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC | O_NOCTTY, 0666));
    if (fd < 0) {
        failed(err, CREATING, path, "create");
        mem_free(copy);
        return -1;
    }
    *out = (struct file_writer){.fd = fd, .path = copy};
    return 0;
}

int file_write(struct file_writer *w, const void *bytes, size_t length, struct error *err) {
    if (!w->path) return error_set(err, STATUS_IO, "write to a file that is closed or failed before");
    if (write_all(w->fd, w->path, bytes, length, err) < 0) {
        file_abandon(w);
        return -1;
    }
    w->bytes += length;
    return 0;
}

int file_write_at(struct file_writer *w, uint64_t offset, const void *bytes, size_t length, struct error *err) {
    const char *p = bytes;
    if (!w->path) return error_set(err, STATUS_IO, "write to a file that is closed or failed before");
    while (length > 0) {
        ssize_t n;
        SYSTEM(n, pwrite(w->fd, p, length < (1u << 30) ? length : 1u << 30, (off_t)offset));
        if (n == 0) errno = ENOSPC;
        if (n <= 0) {
            failed(err, CHANGING, w->path, "write");
            file_abandon(w);
            return -1;
        }
        p += n, offset += (uint64_t)n, length -= (size_t)n;
    }
    return 0;
}

int file_close(struct file_writer *w, struct error *err) {
    if (!w->path) return error_set(err, STATUS_IO, "close of a file that is closed or failed before");
    int result;
    SYSTEM(result, fsync(w->fd));
    if (result < 0) failed(err, CHANGING, w->path, "sync");
    if (close_fd(w->fd) < 0) result = failed(err, CHANGING, w->path, "close");
    if (result < 0) unlink(w->path); // what is on disk after a failed sync is unknown
    mem_free(w->path);
    w->path = NULL;
    w->fd = -1;
    return result;
}

void file_abandon(struct file_writer *w) {
    if (!w->path) return;
    close(w->fd);
    unlink(w->path);
    mem_free(w->path);
    w->path = NULL;
    w->fd = -1;
}

// The folder part of a path, "." when it has none. Freed by the caller.
static char *folder_of(const char *path) {
    const char *slash = strrchr(path, '/');
    if (!slash) return mem_strdup(".");
    return slash == path ? mem_strdup("/") : mem_strndup(path, (size_t)(slash - path));
}

int file_replace(const char *path, const void *bytes, size_t length, struct error *err) {
    int result = -1;
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    struct text temporary = {0};
    struct file_writer w = {.fd = -1};
    char *folder = folder_of(path);
    // A leftover of a killed process with our pid is in the way at most: it is ours to remove.
    text_append(&temporary, path, (size_t)(name - path));
    text_printf(&temporary, ".%s.%ld.tmp", name, (long)getpid());
    if (!folder || text_failed(&temporary)) {
        error_memory(err, "a file name", strlen(path) + 32);
        goto done;
    }
    if (file_remove(temporary.data, err) < 0 || file_create(temporary.data, &w, err) < 0) goto done;
    if (file_write(&w, bytes, length, err) < 0 || file_close(&w, err) < 0) goto done;
    if (file_rename(temporary.data, path, err) < 0) {
        unlink(temporary.data);
        goto done;
    }
    result = file_sync_folder(folder, err);
done:
    file_abandon(&w);
    text_free(&temporary);
    mem_free(folder);
    return result;
}

int file_append(const char *path, const void *bytes, size_t length, struct error *err) {
    int fd, result;
    struct stat info;
    SYSTEM(fd, open(path, O_WRONLY | O_APPEND | O_CREAT | O_NONBLOCK | O_CLOEXEC | O_NOCTTY, 0666));
    if (fd < 0) return failed(err, CREATING, path, "open");
    SYSTEM(result, fstat(fd, &info));
    if (result < 0)
        failed(err, CHANGING, path, "query");
    else if (!S_ISREG(info.st_mode))
        result = error_set(err, STATUS_CANTCREATE, "%s: is not a regular file", path);
    else
        result = write_all(fd, path, bytes, length, err);
    if (close_fd(fd) < 0) result = failed(err, CHANGING, path, "close");
    return result;
}

int file_truncate(const char *path, uint64_t size, struct error *err) {
    int result;
    if (size > INT64_MAX) return error_set(err, STATUS_INTERNAL, "%s: size out of range", path);
    SYSTEM(result, truncate(path, (off_t)size));
    return result < 0 ? failed(err, CHANGING, path, "truncate") : 0;
}

// --- Names and folders

bool file_exists(const char *path) {
    return access(path, F_OK) == 0;
}

bool file_is_folder(const char *path) {
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

bool file_leads_nowhere(const char *path) {
    struct stat info;
    return lstat(path, &info) == 0 && S_ISLNK(info.st_mode) && stat(path, &info) != 0;
}

int file_size(const char *path, uint64_t *size, struct error *err) {
    struct stat info;
    int result;
    SYSTEM(result, stat(path, &info));
    if (result < 0) return failed(err, READING, path, "query");
    if (!S_ISREG(info.st_mode)) return error_set(err, STATUS_NOINPUT, "%s: is not a regular file", path);
    *size = (uint64_t)info.st_size;
    return 0;
}

static int make_folder(const char *path, struct error *err) {
    int result;
    SYSTEM(result, mkdir(path, 0777));
    if (result == 0) return 0;
    int code = errno;
    // An existing folder may answer EROFS or EACCES as well as EEXIST.
    if ((code == EEXIST || code == EROFS || code == EACCES) && file_is_folder(path)) return 0;
    errno = code;
    return failed(err, CREATING, path, "create folder");
}

int file_identity(const char *path, struct text *out, struct error *err) {
    struct stat info;
    int result;
    SYSTEM(result, stat(path, &info));
    if (result < 0) return failed(err, READING, path, "look at");
    char *real = realpath(path, NULL);
    text_printf(out, "%s %llu %llu %lld %lld.%09ld\n", real ? real : path, (unsigned long long)info.st_dev,
                (unsigned long long)info.st_ino, (long long)info.st_size, (long long)info.st_mtim.tv_sec,
                info.st_mtim.tv_nsec);
    free(real);
    return text_failed(out) ? error_memory(err, "a file name", strlen(path)) : 0;
}

int file_make_folders(const char *path, struct error *err) {
    char *copy = mem_strdup(path);
    if (!copy) return error_memory(err, "a file name", strlen(path) + 1);
    int result = 0;
    for (char *p = copy + 1; *copy && *p && result == 0; p++) {
        if (*p != '/' || p[-1] == '/') continue;
        *p = 0;
        result = make_folder(copy, err);
        *p = '/';
    }
    if (result == 0) result = make_folder(copy, err);
    mem_free(copy);
    return result;
}

int file_rename(const char *from, const char *to, struct error *err) {
    int result;
    SYSTEM(result, rename(from, to));
    return result < 0 ? failed(err, CREATING, to, "rename to") : 0;
}

int file_sync_folder(const char *path, struct error *err) {
    int fd, result;
    SYSTEM(fd, open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (fd < 0) return failed(err, CHANGING, path, "open folder");
    SYSTEM(result, fsync(fd));
    if (result < 0 && errno == EINVAL) result = 0; // this file system cannot sync folders; nothing more can be done
    if (result < 0) failed(err, CHANGING, path, "sync folder");
    if (close_fd(fd) < 0) result = failed(err, CHANGING, path, "close folder");
    return result;
}

int file_remove(const char *path, struct error *err) {
    int result;
    SYSTEM(result, unlink(path));
    return result < 0 && errno != ENOENT ? failed(err, CHANGING, path, "remove") : 0;
}

enum { MAX_TREE_DEPTH = 32 };

// Removes what is in the folder `fd` (closed by the call). Symbolic links are removed, never followed.
static int empty_folder(int fd, const char *path, int depth, struct error *err) {
    DIR *dir = injected() ? NULL : fdopendir(fd);
    if (!dir) {
        failed(err, CHANGING, path, "list");
        close(fd);
        return -1;
    }
    int result = 0;
    while (result == 0) {
        errno = 0;
        struct dirent *entry = readdir(dir);
        if (!entry) {
            if (errno) result = failed(err, CHANGING, path, "list");
            break;
        }
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        SYSTEM(result, unlinkat(fd, entry->d_name, 0));
        if (result == 0 || errno == ENOENT) {
            result = 0;
            continue;
        }
        if (errno != EISDIR && errno != EPERM) {
            result = failed(err, CHANGING, path, "remove what is in");
            break;
        }
        int code = errno, child; // EPERM: some systems' answer for a folder
        SYSTEM(child, openat(fd, entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
        if (child < 0) {
            errno = errno == ENOTDIR ? code : errno;
            result = failed(err, CHANGING, path, "remove what is in");
            break;
        }
        if (depth >= MAX_TREE_DEPTH) {
            close(child);
            result = error_set(err, STATUS_IO, "%s: folders are nested deeper than %d", path, MAX_TREE_DEPTH);
            break;
        }
        result = empty_folder(child, path, depth + 1, err);
        if (result < 0) break;
        SYSTEM(result, unlinkat(fd, entry->d_name, AT_REMOVEDIR));
        if (result < 0) failed(err, CHANGING, path, "remove what is in");
    }
    closedir(dir);
    return result;
}

int file_remove_tree(const char *path, struct error *err) {
    int fd, result;
    SYSTEM(fd, open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (fd < 0 && errno == ENOENT) return 0;
    if (fd < 0) return failed(err, CHANGING, path, "open folder");
    if (empty_folder(fd, path, 0, err) < 0) return -1;
    SYSTEM(result, rmdir(path));
    return result < 0 && errno != ENOENT ? failed(err, CHANGING, path, "remove") : 0;
}

int file_free_bytes(const char *path, uint64_t *bytes, struct error *err) {
    struct statvfs info;
    int result;
    SYSTEM(result, statvfs(path, &info));
    if (result < 0) return failed(err, READING, path, "query the space of");
    if (!checked_mul(info.f_bavail, info.f_frsize ? info.f_frsize : info.f_bsize, bytes)) *bytes = UINT64_MAX;
    return 0;
}

static int compare_names(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

int file_list(const char *path, char ***names, size_t *count, struct error *err) {
    *names = NULL;
    *count = 0;
    size_t capacity = 0;
    DIR *dir = injected() ? NULL : opendir(path);
    if (!dir) return failed(err, READING, path, "list");
    for (;;) {
        errno = 0;
        struct dirent *entry = injected() ? NULL : readdir(dir);
        if (!entry && errno) {
            failed(err, READING, path, "list");
            goto fail;
        }
        if (!entry) break;
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        if (*count == capacity) {
            capacity = capacity ? capacity * 2 : 16;
            char **bigger = mem_resize(*names, capacity * sizeof *bigger);
            if (!bigger) goto no_memory;
            *names = bigger;
        }
        if (!((*names)[*count] = mem_strdup(entry->d_name))) goto no_memory;
        ++*count;
    }
    closedir(dir);
    if (*count) qsort(*names, *count, sizeof **names, compare_names);
    return 0;
no_memory:
    error_memory(err, "a list of file names", capacity * sizeof **names);
fail:
    closedir(dir);
    file_list_free(*names, *count);
    *names = NULL;
    *count = 0;
    return -1;
}

void file_list_free(char **names, size_t count) {
    for (size_t i = 0; names && i < count; i++) mem_free(names[i]);
    mem_free(names);
}

char *path_join(const char *folder, const char *name) {
    size_t a = strlen(folder), b = strlen(name);
    bool slash = a > 0 && folder[a - 1] != '/';
    char *path = mem_alloc(a + b + 2);
    if (!path) return NULL;
    memcpy(path, folder, a);
    if (slash) path[a] = '/';
    memcpy(path + a + slash, name, b + 1);
    return path;
}

bool path_is_plain_name(const char *name, size_t length) {
    if (length == 0 || length > 255 || name[0] == '.') return false;
    for (size_t i = 0; i < length; i++)
        if (name[i] == '/' || name[i] == '\\' || name[i] == 0) return false;
    return true;
}

// --- Lock

// Who wrote the lock file: "PID HOST\n". False when it is empty or damaged.
static bool lock_owner(int fd, long *pid, char host[256]) {
    char content[320];
    ssize_t n = pread(fd, content, sizeof content - 1, 0);
    if (n <= 0) return false;
    content[n] = 0;
    return sscanf(content, "%ld %255[^\n]", pid, host) == 2 && *pid > 0;
}

static int lock_busy(const char *path, int fd, struct error *err) {
    long pid;
    char host[256];
    if (!lock_owner(fd, &pid, host)) return error_set(err, STATUS_CANTCREATE, "%s: locked by another process", path);
    return error_set(err, STATUS_CANTCREATE, "%s: locked by process %ld on %s; wait for it or use another folder", path,
                     pid, host);
}

// For file systems without flock: the pid in the file stands for the lock. Two starts in the same instant are not told
// apart, and the owner on another host cannot be asked, so it counts as alive.
static bool lock_by_pid_is_free(int fd, const char *host) {
    long pid;
    char owner[256];
    if (!lock_owner(fd, &pid, owner)) return true;
    if (strcmp(owner, host) != 0) return false;
    return pid == (long)getpid() || (kill((pid_t)pid, 0) < 0 && errno == ESRCH);
}

int file_lock(const char *path, struct file_lock *out, struct error *err) {
    *out = (struct file_lock){.fd = -1};
    char host[256] = "", content[320];
    if (gethostname(host, sizeof host - 1) < 0 || !host[0]) strcpy(host, "unknown");
    char *copy = mem_strdup(path);
    if (!copy) return error_memory(err, "a file name", strlen(path) + 1);
    int fd = -1, result;
    for (;;) {
        struct stat mine, named;
        SYSTEM(fd, open(path, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | O_NOCTTY, 0666));
        if (fd < 0) {
            failed(err, CREATING, path, "create the lock");
            goto fail;
        }
        SYSTEM(result, flock(fd, LOCK_EX | LOCK_NB));
        if (result < 0) {
            bool no_flock = errno == ENOSYS || errno == EOPNOTSUPP || errno == ENOLCK || errno == EINVAL;
            if (errno != EWOULDBLOCK && !no_flock) {
                failed(err, CREATING, path, "lock");
                goto fail;
            }
            if (!no_flock || !lock_by_pid_is_free(fd, host)) {
                lock_busy(path, fd, err);
                goto fail;
            }
        }
        // The owner removes the file when it is done; a lock on a removed file is worth nothing.
        SYSTEM(result, fstat(fd, &mine));
        if (result < 0) {
            failed(err, CREATING, path, "query the lock");
            goto fail;
        }
        if (stat(path, &named) == 0 && mine.st_dev == named.st_dev && mine.st_ino == named.st_ino) break;
        close(fd);
    }
    int length = snprintf(content, sizeof content, "%ld %s\n", (long)getpid(), host);
    SYSTEM(result, ftruncate(fd, 0));
    if (result < 0) {
        failed(err, CREATING, path, "write the lock");
        goto fail;
    }
    if (write_all(fd, path, content, (size_t)length, err) < 0) goto fail;
    *out = (struct file_lock){.fd = fd, .path = copy};
    return 0;
fail:
    if (fd >= 0) close(fd);
    mem_free(copy);
    return -1;
}

void file_unlock(struct file_lock *lock) {
    if (!lock->path) return;
    unlink(lock->path); // before the lock is released: see file_lock
    close(lock->fd);
    mem_free(lock->path);
    *lock = (struct file_lock){.fd = -1};
}
