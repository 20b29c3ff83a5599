// See output.h.
#include "adapters/output.h"

#include <string.h>
#include <unistd.h>

static void release(struct output *out) {
    mem_free(out->path);
    mem_free(out->temporary);
    mem_free(out->folder);
    *out = (struct output){.file = {.fd = -1}};
}

int output_open(const char *path, struct output *out, struct error *err) {
    *out = (struct output){.file = {.fd = -1}};
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    struct text temporary = {0};
    text_append(&temporary, path, (size_t)(name - path));
    text_printf(&temporary, ".%s.%ld.tmp", name, (long)getpid());
    out->path = mem_strdup(path);
    out->folder = !slash          ? mem_strdup(".")
                  : slash == path ? mem_strdup("/")
                                  : mem_strndup(path, (size_t)(slash - path));
    if (text_failed(&temporary) || !out->path || !out->folder) {
        text_free(&temporary);
        release(out);
        return error_memory(err, "a file name", strlen(path) + 32);
    }
    out->temporary = temporary.data;
    // A leftover of a killed process with our pid is ours to remove.
    if (file_remove(out->temporary, err) == 0 && file_create(out->temporary, &out->file, err) == 0) return 0;
    release(out);
    return -1;
}

int output_room(const struct output *out, uint64_t bytes, struct error *err) {
    uint64_t available;
    if (file_free_bytes(out->folder, &available, err)) return -1;
    if (available >= bytes) return 0;
    return error_set(err, STATUS_IO, "%s: needs %.1f MiB, %.1f MiB are free; nothing was written", out->path,
                     (double)bytes / 1048576, (double)available / 1048576);
}

int output_close(struct output *out, struct error *err) {
    if (!out->file.path) return 0;
    if (file_close(&out->file, err) == 0) return 0;
    output_abandon(out);
    return -1;
}

int output_commit(struct output *out, struct error *err) {
    if (output_close(out, err)) return -1;
    if (file_rename(out->temporary, out->path, err)) {
        output_abandon(out);
        return -1;
    }
    int status = file_sync_folder(out->folder, err);
    release(out);
    return status;
}

void output_abandon(struct output *out) {
    if (!out->temporary) return;
    file_abandon(&out->file);
    file_remove(out->temporary, NULL); // when it was closed already
    release(out);
}
