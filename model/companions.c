// See companions.h.
#include "model/companions.h"

#include <string.h>

enum { FILE_LIMIT = 256 << 20 };

static bool ends_with(const char *text, const char *ending) {
    size_t n = strlen(text), m = strlen(ending);
    return n >= m && strcmp(text + n - m, ending) == 0;
}

bool companion_of_base(const char *name, bool with_config) {
    static const char *const endings[] = {".json", ".jinja", ".txt", ".model", ".tiktoken"};
    if (strcmp(name, "config.json") == 0) return with_config;
    if (ends_with(name, ".index.json") || name[0] == '.') return false;
    for (size_t i = 0; i < COUNT_OF(endings); i++) {
        if (ends_with(name, endings[i])) return true;
    }
    return strncmp(name, "LICENSE", 7) == 0;
}

int companions_copy(const struct base *base, const char *folder, bool with_config, struct error *err) {
    char **names;
    size_t count;
    if (file_list(base->folder, &names, &count, err)) return -1;
    int status = 0;
    for (size_t i = 0; i < count && status == 0; i++) {
        if (!companion_of_base(names[i], with_config)) continue;
        char *from = path_join(base->folder, names[i]), *to = path_join(folder, names[i]);
        struct text bytes = {0};
        status = from && to ? 0 : error_memory(err, "a file name", strlen(names[i]));
        if (status == 0 && file_is_folder(from)) {
            mem_free(from), mem_free(to);
            continue;
        }
        if (status == 0) status = file_read(from, FILE_LIMIT, &bytes, err);
        if (status == 0) status = file_replace(to, bytes.data, bytes.length, err);
        text_free(&bytes);
        mem_free(from), mem_free(to);
    }
    file_list_free(names, count);
    return status;
}
