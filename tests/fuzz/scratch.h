// A folder in memory for targets whose reader takes paths; it goes when the process ends.
#pragma once

#include "kernels/base.h"
#include "tests/fuzz/fuzz.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static char scratch_folder[64];

static void scratch_remove(void) {
    file_remove_tree(scratch_folder, NULL);
}

static inline const char *scratch_path(const char *name) {
    static char path[160];
    if (!scratch_folder[0]) {
        snprintf(scratch_folder, sizeof scratch_folder, "/dev/shm/graft-fuzz-XXXXXX");
        if (!mkdtemp(scratch_folder)) {
            snprintf(scratch_folder, sizeof scratch_folder, "/tmp/graft-fuzz-XXXXXX");
            EXPECT(mkdtemp(scratch_folder) != NULL);
        }
        atexit(scratch_remove);
    }
    snprintf(path, sizeof path, "%s/%s", scratch_folder, name);
    return path;
}

static inline void scratch_write(const char *name, const void *bytes, size_t size) {
    int fd = open(scratch_path(name), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    EXPECT(fd >= 0 && write(fd, bytes, size) == (ssize_t)size && close(fd) == 0);
}
