// See hub_cache.h. Layout: the documentation of huggingface_hub, "Understand caching".
#include "model/hub_cache.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { REF_BYTES = 4096 };

// ORG/NAME of letters, digits, '-', '_', '.', as the hub allows them; *length: of that part.
static bool repository(const char *name, size_t *length) {
    size_t at = 0;
    for (int part = 0; part < 2; part++) {
        size_t begin = at;
        while (isalnum((unsigned char)name[at]) || (name[at] != '\0' && strchr("-_.", name[at]))) at++;
        if (at == begin || at - begin > 96 || name[begin] == '.' || name[begin] == '-') return false;
        if (part == 0 && name[at++] != '/') return false;
    }
    *length = at;
    return name[at] == '\0' || (name[at] == '/' && path_is_plain_name(name + at + 1, strlen(name + at + 1)));
}

bool hub_is_name(const char *name) {
    size_t length;
    return repository(name, &length);
}

static const char *cache_root(struct pool *pool) {
    const char *value;
    if ((value = getenv("HF_HUB_CACHE")) && *value) return pool_strdup(pool, value);
    if ((value = getenv("HF_HOME")) && *value) return pool_printf(pool, "%s/hub", value);
    if ((value = getenv("XDG_CACHE_HOME")) && *value) return pool_printf(pool, "%s/huggingface/hub", value);
    value = getenv("HOME");
    return pool_printf(pool, "%s/.cache/huggingface/hub", value ? value : "");
}

static bool is_commit(const char *text, size_t length) {
    for (size_t i = 0; i < length; i++) {
        if (!isxdigit((unsigned char)text[i])) return false;
    }
    return length == 40;
}

// The commit that refs/REVISION names, or the revision itself; NULL when neither is there.
static const char *commit_of(const char *folder, const char *revision, struct pool *pool) {
    const char *path = pool_printf(pool, "%s/refs/%s", folder, revision);
    struct text text = {0};
    const char *commit = is_commit(revision, strlen(revision)) ? revision : NULL;
    if (path && file_exists(path) && file_read(path, REF_BYTES, &text, NULL) == 0) {
        size_t length = text.length;
        while (length > 0 && isspace((unsigned char)text.data[length - 1])) length--;
        if (is_commit(text.data, length)) commit = pool_strndup(pool, text.data, length);
    }
    text_free(&text);
    return commit;
}

int hub_find(const char *name, const char *revision, struct pool *pool, const char **path, struct error *err) {
    size_t length;
    if (!repository(name, &length)) return error_set(err, STATUS_NOINPUT, "%s: does not exist", name);
    const char *root = cache_root(pool), *file = name[length] ? name + length + 1 : NULL;
    size_t owner = strcspn(name, "/");
    if (!revision) revision = "main";
    const char *folder = pool_printf(pool, "%s/models--%.*s--%.*s", root ? root : "", (int)owner, name,
                                     (int)(length - owner - 1), name + owner + 1);
    const char *commit = folder && !strstr(revision, "..") ? commit_of(folder, revision, pool) : NULL;
    const char *found =
        commit ? pool_printf(pool, "%s/snapshots/%s%s%s", folder, commit, file ? "/" : "", file ? file : "") : NULL;
    if (!root || !folder || (commit && !found)) return error_memory(err, "a path", strlen(name));
    *path = found;
    if (found && (file ? file_exists(found) : file_is_folder(found))) return 0;
    return error_set(err, STATUS_NOINPUT,
                     "%s: no such file or folder, and not in the local Hugging Face cache %s; download it with: hf "
                     "download %.*s%s%s%s%s",
                     name, root, (int)length, name, file ? " " : "", file ? file : "",
                     strcmp(revision, "main") ? " --revision " : "", strcmp(revision, "main") ? revision : "");
}
