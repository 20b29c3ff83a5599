// See path_kind.h.
#include "train/path_kind.h"

#include "data/json.h"
#include "data/jsonl.h"

#include <stdlib.h>
#include <string.h>

bool folder_has(const char *folder, const char *name) {
    char *path = path_join(folder, name);
    bool found = path && file_exists(path);
    mem_free(path);
    return found;
}

static bool is_step(const char *folder, const char *name) {
    static const char prefix[] = "step-";
    size_t n = sizeof prefix - 1;
    if (strncmp(name, prefix, n) != 0 || strlen(name) < n + 6 || name[n + strspn(name + n, "0123456789")]) return false;
    char *path = path_join(folder, name);
    bool is = path && file_is_folder(path);
    mem_free(path);
    return is;
}

static int by_step(const void *a, const void *b) {
    const char *x = *(char *const *)a, *y = *(char *const *)b;
    size_t m = strlen(x), n = strlen(y); // longer = later: six digits are padded, more are not
    return m != n ? (m > n) - (m < n) : strcmp(x, y);
}

int run_checkpoints(const char *run, char ***names, size_t *count, struct error *err) {
    char *folder = path_join(run, "checkpoints");
    *names = NULL;
    *count = 0;
    if (!folder) return error_memory(err, "a path", strlen(run));
    int failed = file_is_folder(folder) ? file_list(folder, names, count, err) : 0;
    size_t kept = 0;
    for (size_t i = 0; i < *count; i++) { // file_list_free frees what it is told: those that go are freed here
        if (is_step(folder, (*names)[i]))
            (*names)[kept++] = (*names)[i];
        else
            mem_free((*names)[i]);
    }
    *count = kept;
    if (kept) qsort(*names, kept, sizeof **names, by_step);
    mem_free(folder);
    return failed;
}

static bool has_checkpoints(const char *folder) {
    char **names;
    size_t count;
    bool has = run_checkpoints(folder, &names, &count, NULL) == 0 && count > 0;
    file_list_free(names, count);
    return has;
}

static bool folder_has_any(const char *folder, const char *const *names, size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (folder_has(folder, names[i])) return true;
    }
    return false;
}

// A checkpoint without its manifest is a damaged checkpoint: the state beside the adapter gives it away.
static bool folder_kind(const char *folder, enum path_kind *out) {
    static const char *const run[] = {"run.json", "log.jsonl"};
    static const char *const checkpoint[] = {"manifest.json", "state.json", "optimizer.safetensors"};
    static const char *const adapter[] = {"adapter_config.json", "adapter_model.safetensors", "adapters.safetensors",
                                          "adapter.gguf"};
    if (folder_has_any(folder, run, COUNT_OF(run)) || has_checkpoints(folder))
        *out = PATH_RUN;
    else if (folder_has_any(folder, checkpoint, COUNT_OF(checkpoint)))
        *out = PATH_CHECKPOINT;
    else if (folder_has_any(folder, adapter, COUNT_OF(adapter)))
        *out = PATH_ADAPTER;
    else if (folder_has(folder, "config.json") || folder_has(folder, "model.safetensors.index.json"))
        *out = PATH_BASE;
    else
        return false;
    return true;
}

static bool named(const char *path, const char *end) {
    size_t length = strlen(path), n = strlen(end);
    return length >= n && strcmp(path + length - n, end) == 0;
}

static bool is_file(const char *path, const char *name) {
    const char *slash = strrchr(path, '/');
    return strcmp(slash ? slash + 1 : path, name) == 0;
}

// A header length that fits the file, and the header's first byte.
static bool looks_like_safetensors(const struct mapped_file *file) {
    uint64_t header = 0;
    if (file->size < 9) return false;
    for (int i = 0; i < 8; i++) header |= (uint64_t)file->data[i] << 8 * i;
    return header <= file->size - 8 && file->data[8] == '{';
}

enum { MANIFEST_BYTES = 16 << 20 };

static bool looks_like_manifest(const struct mapped_file *file) {
    struct json_document d;
    if (file->size == 0 || file->size > MANIFEST_BYTES || file->data[0] != '{' ||
        json_parse(file->data, file->size, NULL, &d, NULL))
        return false;
    bool is = json_string(json_get(d.root, "graft"), NULL) && json_string(json_get(d.root, "run_id"), NULL);
    json_free(&d);
    return is;
}

static bool looks_like_log(const struct mapped_file *file) {
    struct jsonl reader;
    struct json_document row;
    int64_t step;
    if (file->size == 0 || file->data[0] != '{') return false;
    jsonl_start(&reader, "a log", file->data, file->size);
    if (jsonl_next(&reader, &row, NULL) != JSONL_ROW) return false;
    bool is = json_int(json_get(row.root, "step"), &step) && json_get(row.root, "epoch");
    json_free(&row);
    return is;
}

static bool file_kind(const char *path, const struct mapped_file *file, enum path_kind *out) {
    if (file->size >= 4 && memcmp(file->data, "GGUF", 4) == 0)
        *out = PATH_GGUF;
    else if (looks_like_safetensors(file))
        *out = PATH_SAFETENSORS;
    else if (is_file(path, "run.json") || looks_like_manifest(file))
        *out = PATH_RUN_MANIFEST;
    else if (is_file(path, "log.jsonl") || looks_like_log(file))
        *out = PATH_LOG;
    else if (is_file(path, "config.json"))
        *out = PATH_BASE;
    else if (named(path, ".gguf"))
        *out = PATH_GGUF;
    else if (named(path, ".safetensors"))
        *out = PATH_SAFETENSORS;
    else
        return false;
    return true;
}

int path_kind_of(const char *path, enum path_kind *out, struct error *err) {
    bool known;
    if (file_is_folder(path))
        known = folder_kind(path, out);
    else {
        struct mapped_file file;
        if (file_map(path, &file, err)) return -1;
        known = file_kind(path, &file, out);
        file_unmap(&file);
    }
    if (known) return 0;
    return error_set(err, STATUS_DATA, "%s: not a base, GGUF, safetensors, adapter, checkpoint or run", path);
}
