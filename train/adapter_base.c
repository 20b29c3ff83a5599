// See adapter_base.h.
#include "train/adapter_base.h"

#include "data/json.h"

#include <string.h>

int adapter_base_find(const char *adapter, const char *given, const char *hint, struct pool *pool,
                      struct adapter_base *base, struct error *err) {
    *base = (struct adapter_base){.source.name = given, .dtype = DTYPE_F32};
    char *path = path_join(adapter, "run.json");
    struct json_document d;
    if (path && file_exists(path) && !json_load(path, 16 << 20, NULL, &d, NULL)) {
        const struct json *said = json_get(d.root, "base");
        const char *named = json_string(json_get(said, "path"), NULL);
        const char *hash = json_string(json_get(said, "header_sha256"), NULL);
        const char *revision = json_string(json_get(said, "revision"), NULL);
        const char *packing = json_string(json_get(said, "quantised_to"), NULL);
        if (named && !given) base->source.name = pool_strdup(pool, named);
        if (revision && !given) base->source.revision = pool_strdup(pool, revision);
        if (packing) base_packing_parse(packing, &base->source.packing);
        if (hash) base->header_sha256 = pool_strdup(pool, hash);
        const char *arithmetic = json_string(json_get(d.root, "arithmetic"), NULL);
        if (arithmetic && strcmp(arithmetic, "bf16") == 0) base->dtype = DTYPE_BF16;
        json_free(&d);
    }
    mem_free(path);
    if (base->source.name) return 0;
    return error_set(err, STATUS_USAGE, "%s: which base was it trained on? %s", adapter, hint);
}
