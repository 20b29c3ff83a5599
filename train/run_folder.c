// The output folder of a run: who may write into it. See trainer.h.
#include "train/trainer.h"

#include "data/json.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

// What a run leaves behind; nothing else in the folder is ever touched.
static const char *const run_files[] = {"run.json",
                                        "loss.svg",
                                        "log.jsonl",
                                        "report.html",
                                        "README.md",
                                        "adapter.gguf",
                                        "probe.jsonl",
                                        "adapter_config.json",
                                        "adapter_model.safetensors"};

int output_clear(const char *folder, struct error *err) {
    for (size_t i = 0; i < COUNT_OF(run_files); i++) {
        char *path = path_join(folder, run_files[i]);
        int failed = path ? file_remove(path, err) : error_memory(err, "a path", strlen(folder));
        mem_free(path);
        if (failed) return -1;
    }
    static const char *const folders[] = {"checkpoints", "tb"};
    for (size_t i = 0; i < COUNT_OF(folders); i++) {
        char *path = path_join(folder, folders[i]);
        int failed = path ? file_remove_tree(path, err) : error_memory(err, "a path", strlen(folder));
        mem_free(path);
        if (failed) return -1;
    }
    return 0;
}

static bool holds_run(const char *folder) {
    static const char *const marks[] = {"run.json", "checkpoints", "adapter_model.safetensors"};
    bool found = false;
    for (size_t i = 0; i < COUNT_OF(marks); i++) {
        char *path = path_join(folder, marks[i]);
        found |= path && file_exists(path);
        mem_free(path);
    }
    return found;
}

bool output_finished(const char *folder) {
    char *path = path_join(folder, "run.json");
    struct json_document document;
    bool finished = false;
    if (path && file_exists(path) && !json_load(path, 16 << 20, NULL, &document, NULL)) {
        const char *status = json_string(json_get(document.root, "status"), NULL);
        finished = status && strcmp(status, "finished") == 0;
        json_free(&document);
    }
    mem_free(path);
    return finished;
}

bool output_holds(const char *folder, const char *path) {
    char outer[PATH_MAX], inner[PATH_MAX];
    if (!realpath(folder, outer) || !realpath(path, inner)) return false;
    size_t length = strlen(outer);
    return strncmp(inner, outer, length) == 0 && inner[length] == '/';
}

int output_prepare(const char *folder, bool may_hold, struct file_lock *lock, struct error *err) {
    if (file_make_folders(folder, err)) {
        if (err && err->code == STATUS_IO) err->code = STATUS_CANTCREATE;
        return -1;
    }
    char *path = path_join(folder, ".lock");
    if (!path) return error_memory(err, "a path", strlen(folder));
    int failed = file_lock(path, lock, err);
    mem_free(path);
    if (failed) return -1;
    if (!may_hold && holds_run(folder)) {
        failed =
            error_set(err, STATUS_CANTCREATE,
                      "%s: holds a run already; go on with it by --resume, replace it by --overwrite, or set another "
                      "output_dir",
                      folder);
    }
    if (failed) file_unlock(lock);
    return failed;
}
