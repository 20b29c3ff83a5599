// See base_files.h. Rules of sharded checkpoints: formats.md 1.5 and 2.2.
#include "model/base_files.h"

#include "kernels/hash.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_PARTS = 1000, CONFIG_LIMIT = 16 << 20, INDEX_LIMIT = 256 << 20 };

// --- GGUF

// All tensors are there, each once: parts of two models do not pass for one.
static int check_parts(const struct base *b, struct error *err) {
    int64_t total = 0;
    for (int i = 0; i < b->n_parts; i++) total += (int64_t)b->parts[i].n_tensors;
    for (int i = 0; i < b->n_parts; i++) {
        const struct gguf *part = &b->parts[i];
        int64_t declared = total;
        if (gguf_get_int(part, "split.tensors.count", 0, INT32_MAX, &declared, err) < 0) return -1;
        if (declared != total)
            return error_set(err, STATUS_DATA, "%s: the parts hold %lld tensors, split.tensors.count says %lld",
                             part->name, (long long)total, (long long)declared);
        for (size_t t = 0; t < part->n_tensors; t++) {
            for (int k = 0; k < i; k++) {
                if (!gguf_find_tensor(&b->parts[k], part->tensors[t].name)) continue;
                return error_set(err, STATUS_DATA, "%s: tensor '%s' is in %s, too", part->name, part->tensors[t].name,
                                 b->parts[k].name);
            }
        }
    }
    return 0;
}

static int open_parts(struct base *b, struct error *err) {
    b->kind = BASE_GGUF;
    b->parts = pool_alloc(&b->pool, sizeof *b->parts);
    if (!b->parts) return error_memory(err, "the base", sizeof *b->parts);
    if (gguf_open(b->path, &b->parts[0], err)) return -1;
    b->n_parts = 1;
    int64_t count = 1, number = 0;
    if (gguf_get_int(&b->parts[0], "split.count", 0, MAX_PARTS, &count, err) < 0 ||
        gguf_get_int(&b->parts[0], "split.no", 0, MAX_PARTS - 1, &number, err) < 0) {
        return -1;
    }
    if (count <= 1) return 0;
    char ending[64];
    snprintf(ending, sizeof ending, "-%05lld-of-%05lld.gguf", (long long)number + 1, (long long)count);
    if (!text_ends_with(b->path, ending))
        return error_set(err, STATUS_DATA, "%s: says it is part %lld of %lld, but its name does not end in %s", b->path,
                         (long long)number + 1, (long long)count, ending);
    size_t stem = strlen(b->path) - strlen(ending);
    struct gguf *parts = pool_array(&b->pool, (uint64_t)count, sizeof *parts);
    if (!parts) return error_memory(err, "the base", (size_t)count * sizeof *parts);
    gguf_close(&b->parts[0]);
    b->parts = parts, b->n_parts = 0;
    for (int i = 0; i < count; i++) {
        const char *path =
            pool_printf(&b->pool, "%.*s-%05d-of-%05lld.gguf", (int)stem, b->path, i + 1, (long long)count);
        if (!path) return error_memory(err, "a file name", stem);
        if (gguf_open(path, &parts[i], err)) return -1;
        b->n_parts++;
        int64_t own = -1, of = -1;
        if (gguf_get_int(&parts[i], "split.no", 0, MAX_PARTS - 1, &own, err) < 0 ||
            gguf_get_int(&parts[i], "split.count", 0, MAX_PARTS, &of, err) < 0) {
            return -1;
        }
        if (own != i || of != count)
            return error_set(err, STATUS_DATA, "%s: is part %lld of %lld, expected %d of %lld", path,
                             (long long)own + 1, (long long)of, i + 1, (long long)count);
    }
    return check_parts(b, err);
}

// --- safetensors

static int open_shard(struct base *b, const char *file, struct error *err) {
    char *path = path_join(b->folder, file);
    if (!path) return error_memory(err, "a file name", strlen(file));
    int status = safetensors_open(path, &b->shards[b->n_shards], err);
    mem_free(path);
    if (status == 0) b->n_shards++;
    return status;
}

// Every name of the index must be in the file it names, and every tensor of the files in the index.
static int check_index(const struct base *b, const char *path, const struct json *map, char **files,
                       struct error *err) {
    uint64_t listed = 0, held = 0;
    for (const struct json *at = json_child(map); at; at = json_next(at), listed++) {
        const char *file = json_string(at, NULL), *name = json_key(at, NULL);
        int i = 0;
        while (i < b->n_shards && strcmp(files[i], file) != 0) i++;
        if (i == b->n_shards || !safetensors_find(&b->shards[i], name))
            return error_set(err, STATUS_DATA, "%s: tensor '%.200s' is not in %s", path, name, file);
    }
    for (int i = 0; i < b->n_shards; i++) held += b->shards[i].n_entries;
    if (held != listed)
        return error_set(err, STATUS_DATA, "%s: lists %llu tensors, the files hold %llu", path,
                         (unsigned long long)listed, (unsigned long long)held);
    return 0;
}

static int open_index(struct base *b, const char *path, struct error *err) {
    struct json_document document = {0};
    const struct json *map = NULL;
    struct json_options options = {.name = path};
    if (json_load(path, INDEX_LIMIT, &options, &document, err)) return -1;
    int status = json_get_container(document.root, "weight_map", JSON_OBJECT, JSON_REQUIRED, &map, err);
    if (status) error_prefix(err, "%s", path);
    char **files = pool_array(&b->pool, MAX_PARTS, sizeof *files);
    b->shards = pool_array(&b->pool, MAX_PARTS, sizeof *b->shards);
    if (status == 0 && (!files || !b->shards)) status = error_memory(err, "the shards", MAX_PARTS * sizeof *b->shards);
    for (const struct json *at = json_child(map); at && status == 0; at = json_next(at)) {
        size_t length, key_length;
        const char *file = json_string(at, &length), *key = json_key(at, &key_length);
        if (!file || !path_is_plain_name(file, length) || strlen(key) != key_length) {
            status = error_set(err, STATUS_DATA, "%s: tensor '%.100s' lies in '%.100s', which is no plain file name",
                               path, key, file ? file : "");
            break;
        }
        int i = 0;
        while (i < b->n_shards && strcmp(files[i], file) != 0) i++;
        if (i < b->n_shards) continue;
        if (i == MAX_PARTS) {
            status = error_set(err, STATUS_DATA, "%s: names more than %d files", path, MAX_PARTS);
            break;
        }
        files[i] = pool_strdup(&b->pool, file);
        status = files[i] ? open_shard(b, file, err) : error_memory(err, "a file name", length);
    }
    if (status == 0) status = check_index(b, path, map, files, err);
    json_free(&document);
    return status;
}

static int open_config(struct base *b, const char *path, struct error *err) {
    struct json_options options = {.name = path};
    if (json_load(path, CONFIG_LIMIT, &options, &b->config, err)) return -1;
    if (json_is(b->config.root, JSON_OBJECT)) return 0;
    return error_set(err, STATUS_DATA, "%s: is no JSON object", path);
}

// Snapshots of the Hugging Face cache are links to files that are there when they are whole. Without this a download
// that was cut off would pass for a folder that has shapes and no weights.
static int check_links(const char *const *paths, size_t n, struct error *err) {
    for (size_t i = 0; i < n; i++) {
        if (file_leads_nowhere(paths[i]))
            return error_set(err, STATUS_NOINPUT,
                             "%s: is a link to a file that does not exist, as a download leaves it that was cut off; "
                             "download it again",
                             paths[i]);
    }
    return 0;
}

static int open_folder(struct base *b, struct error *err) {
    char *config = path_join(b->folder, "config.json"), *index = path_join(b->folder, "model.safetensors.index.json");
    char *single = path_join(b->folder, "model.safetensors");
    int status = config && index && single ? 0 : error_memory(err, "a file name", strlen(b->folder));
    b->kind = BASE_SAFETENSORS;
    if (status == 0) status = check_links((const char *const[]){config, index, single}, 3, err);
    if (status == 0) status = open_config(b, config, err);
    if (status == 0 && file_exists(index)) {
        status = open_index(b, index, err);
    } else if (status == 0) {
        b->shards = pool_alloc(&b->pool, sizeof *b->shards);
        if (!b->shards)
            status = error_memory(err, "the base", sizeof *b->shards);
        else if (!file_exists(single))
            b->kind = BASE_SHAPES;
        else
            status = open_shard(b, "model.safetensors", err);
    }
    mem_free(config), mem_free(index), mem_free(single);
    return status;
}

// The folder a file lies in.
static char *folder_of(struct pool *pool, const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? pool_strndup(pool, path, slash == path ? 1 : (size_t)(slash - path)) : pool_strdup(pool, ".");
}

static int open_any(struct base *b, struct error *err) {
    if (file_is_folder(b->path)) {
        b->folder = b->path;
        return open_folder(b, err);
    }
    if (!file_exists(b->path)) return error_set(err, STATUS_NOINPUT, "%s: does not exist", b->path);
    if (!text_ends_with(b->path, ".json") && !text_ends_with(b->path, ".safetensors")) return open_parts(b, err);
    b->folder = folder_of(&b->pool, b->path);
    if (!b->folder) return error_memory(err, "a file name", strlen(b->path));
    if (text_ends_with(b->path, ".safetensors")) {
        char *config = path_join(b->folder, "config.json");
        int status = config ? open_config(b, config, err) : error_memory(err, "a file name", strlen(b->folder));
        mem_free(config);
        b->kind = BASE_SAFETENSORS;
        b->shards = pool_alloc(&b->pool, sizeof *b->shards);
        if (status == 0 && !b->shards) status = error_memory(err, "the base", sizeof *b->shards);
        if (status == 0) status = safetensors_open(b->path, &b->shards[0], err);
        if (status == 0) b->n_shards = 1;
        return status;
    }
    b->kind = BASE_SHAPES;
    return open_config(b, b->path, err);
}

int base_open(const char *path, struct base *out, struct error *err) {
    struct base *b = out;
    *b = (struct base){0};
    b->path = b->name = pool_strdup(&b->pool, path);
    int status = b->path ? open_any(b, err) : error_memory(err, "the base's path", strlen(path));
    for (int i = 0; i < b->n_parts; i++) b->n_tensors += b->parts[i].n_tensors, b->bytes += b->parts[i].size;
    for (int i = 0; i < b->n_shards; i++) b->n_tensors += b->shards[i].n_entries, b->bytes += b->shards[i].file.size;
    if (status == 0) {
        b->used = pool_array(&b->pool, b->n_tensors + 1, sizeof *b->used);
        if (!b->used) status = error_memory(err, "the tensor table", b->n_tensors);
    }
    if (status) base_close(b);
    return status;
}

void base_close(struct base *b) {
    for (int i = 0; i < b->n_parts; i++) gguf_close(&b->parts[i]);
    for (int i = 0; i < b->n_shards; i++) safetensors_close(&b->shards[i]);
    json_free(&b->config);
    pool_free(&b->pool);
    *b = (struct base){0};
}

// --- tensors

static void from_gguf(const struct gguf_tensor *t, struct base_tensor *out) {
    *out = (struct base_tensor){.name = t->name,
                                .n_dims = t->n_dims,
                                .format = quant_by_ggml_type(t->ggml_type),
                                .type_name = quant_ggml_type_name(t->ggml_type),
                                .data = t->data,
                                .bytes = t->bytes};
    for (int i = 0; i < GGUF_MAX_DIMS; i++) out->shape[i] = i < t->n_dims ? t->ne[t->n_dims - 1 - i] : 1;
}

static void from_safetensors(const struct safetensors_entry *e, struct base_tensor *out) {
    *out = (struct base_tensor){.name = e->name,
                                .n_dims = e->n_dims,
                                .dtype = e->dtype,
                                .type_name = safetensors_dtype_name(e->dtype),
                                .data = e->data,
                                .bytes = e->bytes};
    if (e->dtype == ST_F32) out->format = quant_format(QUANT_F32);
    if (e->dtype == ST_F16) out->format = quant_format(QUANT_F16);
    if (e->dtype == ST_BF16) out->format = quant_format(QUANT_BF16);
    for (int i = 0; i < GGUF_MAX_DIMS; i++) out->shape[i] = i < e->n_dims ? e->shape[i] : 1;
}

bool base_find(const struct base *b, const char *name, struct base_tensor *out) {
    struct base_tensor unused;
    uint64_t first = 0;
    for (int i = 0; i < b->n_parts; first += b->parts[i++].n_tensors) {
        const struct gguf_tensor *t = gguf_find_tensor(&b->parts[i], name);
        if (!t) continue;
        from_gguf(t, out ? out : &unused);
        b->used[first + (uint64_t)(t - b->parts[i].tensors)] = true;
        return true;
    }
    for (int i = 0; i < b->n_shards; first += b->shards[i++].n_entries) {
        const struct safetensors_entry *e = safetensors_find(&b->shards[i], name);
        if (!e || e->n_dims > GGUF_MAX_DIMS) continue;
        from_safetensors(e, out ? out : &unused);
        b->used[first + (uint64_t)(e - b->shards[i].entries)] = true;
        return true;
    }
    return false;
}

const char *base_unused(const struct base *b, uint64_t i) {
    if (b->used[i]) return NULL;
    for (int k = 0; k < b->n_parts; i -= b->parts[k++].n_tensors) {
        if (i < b->parts[k].n_tensors) return b->parts[k].tensors[i].name;
    }
    for (int k = 0; k < b->n_shards; i -= b->shards[k++].n_entries) {
        if (i < b->shards[k].n_entries) return b->shards[k].entries[i].name;
    }
    return NULL;
}

int base_header_hash(const struct base *b, uint8_t sha256[32], struct error *err) {
    if (b->kind == BASE_GGUF && b->n_parts == 1)
        return sha256_bytes(b->parts[0].bytes, (size_t)b->parts[0].data_start, sha256, err);
    struct text all = {0}; // the hashes of the headers, then config.json as it was understood
    uint8_t one[32];
    int status = 0;
    for (int i = 0; i < b->n_parts && status == 0; i++) {
        status = sha256_bytes(b->parts[i].bytes, (size_t)b->parts[i].data_start, one, err);
        text_append(&all, one, sizeof one);
    }
    for (int i = 0; i < b->n_shards && status == 0; i++) {
        status = sha256_bytes(b->shards[i].file.data, (size_t)b->shards[i].data_start, one, err);
        text_append(&all, one, sizeof one);
    }
    if (b->config.root) {
        struct json_writer w = {.out = &all};
        json_put_value(&w, b->config.root);
    }
    if (status == 0 && text_failed(&all)) status = error_memory(err, "the base's header", 0);
    if (status == 0) status = sha256_bytes(all.data, all.length, sha256, err);
    text_free(&all);
    return status;
}
