// See companions.h.
#include "model/companions.h"

#include <string.h>

enum { FILE_LIMIT = 256 << 20 };

static bool is_companion(const char *name, bool with_config) {
    static const char *const endings[] = {".json", ".jinja", ".txt", ".model", ".tiktoken"};
    if (strcmp(name, "config.json") == 0) return with_config;
    if (text_ends_with(name, ".index.json") || name[0] == '.') return false;
    for (size_t i = 0; i < COUNT_OF(endings); i++) {
        if (text_ends_with(name, endings[i])) return true;
    }
    return strncmp(name, "LICENSE", 7) == 0;
}

int companions_each(const struct base *base, bool with_config,
                    int (*take)(void *context, const char *name, const char *path, struct error *err), void *context,
                    struct error *err) {
    char **names;
    size_t count;
    if (file_list(base->folder, &names, &count, err)) return -1;
    int status = 0;
    for (size_t i = 0; i < count && status == 0; i++) {
        if (!is_companion(names[i], with_config)) continue;
        char *path = path_join(base->folder, names[i]);
        if (!path)
            status = error_memory(err, "a file name", strlen(names[i]));
        else if (!file_is_folder(path))
            status = take(context, names[i], path, err);
        mem_free(path);
    }
    file_list_free(names, count);
    return status;
}

static int copy(void *context, const char *name, const char *path, struct error *err) {
    const char *const *folder = context;
    struct text bytes = {0};
    char *to = path_join(*folder, name);
    int status = to ? file_read(path, FILE_LIMIT, &bytes, err) : error_memory(err, "a file name", strlen(name));
    if (status == 0) status = file_replace(to, bytes.data, bytes.length, err);
    text_free(&bytes);
    mem_free(to);
    return status;
}

int companions_copy(const struct base *base, const char *folder, bool with_config, struct error *err) {
    return companions_each(base, with_config, copy, &folder, err);
}
