// What lies at a path, told from magic numbers, the names inside a folder, and only then from the path's own name.
#pragma once

#include "kernels/base.h"

enum path_kind {
    PATH_GGUF,
    PATH_SAFETENSORS,
    PATH_RUN_MANIFEST, // run.json
    PATH_LOG,          // log.jsonl
    PATH_ADAPTER,      // a folder, as the next three
    PATH_CHECKPOINT,
    PATH_RUN,
    PATH_BASE, // a folder with a config.json, or that file
};
// Errors: 66 nothing is there, 65 it is something else. A damaged file is still of its kind.
int path_kind_of(const char *path, enum path_kind *out, struct error *err);
bool folder_has(const char *folder, const char *name);
// The names in RUN/checkpoints that are checkpoints, oldest first; none when there is no such folder. Free with
// file_list_free.
int run_checkpoints(const char *run, char ***names, size_t *count, struct error *err);
