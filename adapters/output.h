// A file that is written under a temporary name and gets its own when it is complete: whole or absent.
#pragma once

#include "kernels/base.h"

struct output {
    struct file_writer file; // write here
    char *path, *temporary, *folder;
};
// `path` may exist; it is replaced by output_commit.
int output_open(const char *path, struct output *out, struct error *err);
// 74 when the disk has less than `bytes` left, said before anything is written.
int output_room(const struct output *out, uint64_t bytes, struct error *err);
// Syncs and closes the file, which may then be read back under output->temporary.
int output_close(struct output *out, struct error *err);
// Gives it its name and syncs the folder. On failure of this or output_close the temporary file is removed.
int output_commit(struct output *out, struct error *err);
void output_abandon(struct output *out); // removes the temporary file; no-op after the commit
