// See base_source.h.
#include "train/base_source.h"

#include "kernels/clock.h"
#include "kernels/hash.h"
#include "model/base_files.h"
#include "model/companions.h"
#include "model/hub_cache.h"
#include "train/progress.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LAYOUT = 1 }; // of quantised folders: a change makes all of them anew

struct base_source base_source_of(const struct run_config *c) {
    struct base_source s = {.name = c->base_model, .revision = c->revision_of_model};
    if (c->load_in_8bit) s.packing = (struct base_packing){.format = QUANT_INT8};
    if (c->load_in_4bit) {
        s.packing = (struct base_packing){.format = c->bnb_4bit_quant_type == CONFIG_4BIT_FP4 ? QUANT_FP4 : QUANT_NF4,
                                          .blocksize = 64,
                                          .nested = c->bnb_4bit_use_double_quant};
    }
    s.packing.experts = s.packing.format != 0 && c->quantize_moe_experts;
    return s;
}

bool base_is_plain(const struct model *m) {
    for (int i = 0; i < m->n_modules; i++) {
        const struct module *module = &m->modules[i];
        if (module->layer >= 0 && module->parts[0].w->format->bits < 16) return false;
    }
    return true;
}

// --- the cache

static const char *cache_root(struct pool *pool) {
    const char *value;
    if ((value = getenv("GRAFT_CACHE")) && *value) return pool_strdup(pool, value);
    if ((value = getenv("XDG_CACHE_HOME")) && *value) return pool_printf(pool, "%s/graft", value);
    value = getenv("HOME");
    return pool_printf(pool, "%s/.cache/graft", value && *value ? value : "/tmp");
}

static int hash_text(const struct text *text, char hex[2 * SHA256_BYTES + 1], struct error *err) {
    uint8_t digest[SHA256_BYTES];
    if (text_failed(text)) return error_memory(err, "a hash", text->length);
    if (sha256_bytes(text->data, text->length, digest, err)) return -1;
    sha256_hex(digest, hex);
    return 0;
}

// What is copied along, each by its name and by what `put` says of it.
struct companions {
    struct text *out;
    int (*put)(const char *path, struct text *out, struct error *err);
};
static int put_companion(void *context, const char *name, const char *path, struct error *err) {
    struct companions *c = context;
    text_printf(c->out, "%s\n", name);
    return c->put(path, c->out, err);
}

static int put_hash(const char *path, struct text *out, struct error *err) {
    uint8_t digest[SHA256_BYTES];
    if (sha256_file(path, digest, NULL, err)) return -1;
    text_append(out, digest, sizeof digest);
    return 0;
}

// SHA-256 of the shards, of config.json as it was understood, and of what is copied along.
static int hash_content(const struct base *b, char hex[2 * SHA256_BYTES + 1], struct error *err) {
    struct progress progress = {0};
    struct text all = {0};
    struct json_writer w = {.out = &all};
    int status = 0;
    progress_begin(&progress, "reading the base");
    for (int i = 0; i < b->n_shards && status == 0; i++) {
        status = put_hash(b->shards[i].file.path, &all, err);
        if (status == 0) status = progress_show(&progress, i + 1, b->n_shards, err);
    }
    progress_end(&progress);
    json_put_value(&w, b->config.root);
    struct companions beside = {&all, put_hash};
    if (status == 0) status = companions_each(b, false, put_companion, &beside, err);
    if (status == 0) status = hash_text(&all, hex, err);
    text_free(&all);
    return status;
}

// Where the hash of the content is remembered: by the files' identities.
static const char *memo_of(const struct base *b, const char *root, struct pool *pool, struct error *err) {
    struct text identity = {0};
    struct json_writer w = {.out = &identity};
    char memo[2 * SHA256_BYTES + 1];
    int status = 0;
    for (int i = 0; i < b->n_shards && status == 0; i++) status = file_identity(b->shards[i].file.path, &identity, err);
    json_put_value(&w, b->config.root);
    struct companions beside = {&identity, file_identity};
    if (status == 0) status = companions_each(b, false, put_companion, &beside, err);
    if (status == 0) status = hash_text(&identity, memo, err);
    text_free(&identity);
    if (status) return NULL;
    const char *path = pool_printf(pool, "%s/content/%s", root, memo);
    if (!path) error_memory(err, "a path", strlen(root));
    return path;
}

// A cache that cannot be written still serves what is in it: then the base is only read again the next time.
static void remember(const char *memo, const char *root, const char *hex, struct pool *pool) {
    const char *folder = pool_printf(pool, "%s/content", root);
    if (folder && file_make_folders(folder, NULL) == 0) file_replace(memo, hex, 2 * SHA256_BYTES, NULL);
}

static bool read_hash(const char *path, char hex[2 * SHA256_BYTES + 1]) {
    struct text known = {0};
    bool is = file_exists(path) && file_read(path, 2 * SHA256_BYTES, &known, NULL) == 0 &&
              known.length == 2 * SHA256_BYTES && strspn(known.data, "0123456789abcdef") == known.length;
    if (is) memcpy(hex, known.data, 2 * SHA256_BYTES + 1);
    text_free(&known);
    return is;
}

// The hash of the content; nothing is read when no file has changed since the last time.
static int content_key(const struct base *b, const char *root, struct pool *pool, char hex[2 * SHA256_BYTES + 1],
                       struct error *err) {
    const char *memo = memo_of(b, root, pool, err);
    if (!memo) return -1;
    if (read_hash(memo, hex)) return 0;
    if (hash_content(b, hex, err)) return -1;
    remember(memo, root, hex, pool);
    return 0;
}

static const char *folder_of(const struct model *plain, const char *root, const struct base_packing *packing,
                             struct pool *pool, struct error *err) {
    char hex[2 * SHA256_BYTES + 1], name[40];
    if (!root) error_memory(err, "a path", 0);
    if (!root || content_key(plain->base, root, pool, hex, err)) return NULL;
    struct text key = {0};
    base_packing_name(packing, name);
    text_printf(&key, "%s %s %d", hex, name, LAYOUT);
    int status = hash_text(&key, hex, err);
    text_free(&key);
    if (status) return NULL;
    const char *folder = pool_printf(pool, "%s/bases/%.32s", root, hex);
    if (!folder) error_memory(err, "a path", strlen(root));
    return folder;
}

// --- an entry of the cache: a folder, and in it a file with the hash of the rest

static const char ENTRY[] = ".graft-entry";

static int seal(const char *folder, struct pool *pool, char hex[2 * SHA256_BYTES + 1], struct error *err) {
    struct base b;
    const char *path = pool_printf(pool, "%s/%s", folder, ENTRY);
    if (!path) return error_memory(err, "a path", strlen(folder));
    if (base_open(folder, &b, err)) return -1;
    int status = hash_content(&b, hex, err);
    base_close(&b);
    return status ? -1 : file_replace(path, hex, 2 * SHA256_BYTES, err);
}

// Does the folder hold what was written there?
static int check_seal(const struct base *b, const char *root, struct pool *pool, struct error *err) {
    char sealed[2 * SHA256_BYTES + 1], found[2 * SHA256_BYTES + 1];
    const char *path = pool_printf(pool, "%s/%s", b->path, ENTRY);
    if (!path) return error_memory(err, "a path", strlen(b->path));
    if (b->kind != BASE_SAFETENSORS || !read_hash(path, sealed))
        return error_set(err, STATUS_INTEGRITY, "%s: is not whole", b->path);
    if (content_key(b, root, pool, found, err)) return -1;
    if (memcmp(sealed, found, sizeof found) == 0) return 0;
    return error_set(err, STATUS_INTEGRITY, "%s: is not what was written there", b->path);
}

int base_source_check_entry(const char *folder, bool *entry, struct error *err) {
    struct base b;
    struct pool pool = {0};
    const char *path = pool_printf(&pool, "%s/%s", folder, ENTRY), *root = cache_root(&pool);
    if (!path || !root) return error_memory(err, "a path", strlen(folder));
    *entry = file_exists(path);
    int status = *entry ? base_open(folder, &b, err) : 0;
    if (*entry && status == 0) {
        status = check_seal(&b, root, &pool, err);
        base_close(&b);
    }
    pool_free(&pool);
    return status;
}

// "KEY.HOST-PID" is what a process works on; only a process of the same host can be asked whether it lives.
static void host_name(char out[80]) {
    char host[64] = "";
    if (gethostname(host, sizeof host - 1)) host[0] = '\0';
    for (char *at = host; *at; at++) {
        if (*at == '/' || *at == '.') *at = '_';
    }
    snprintf(out, 80, ".%s-", host);
}

static void remove_abandoned(const char *bases, struct pool *pool) {
    char host[80], **names;
    size_t count;
    host_name(host);
    if (!file_is_folder(bases) || file_list(bases, &names, &count, NULL)) return;
    for (size_t i = 0; i < count; i++) {
        const char *at = strstr(names[i], host);
        long pid = at ? strtol(at + strlen(host), NULL, 10) : 0;
        if (pid <= 0 || kill((pid_t)pid, 0) == 0 || errno != ESRCH) continue;
        const char *path = pool_printf(pool, "%s/%s", bases, names[i]);
        if (path) file_remove_tree(path, NULL);
    }
    file_list_free(names, count);
}

static int not_writable(const char *folder, struct error *err) {
    char text[sizeof err->text];
    int code = err->code;
    snprintf(text, sizeof text, "%s", err->text);
    *err = (struct error){0};
    return error_set(err, code,
                     "%.300s; %s cannot be made: $GRAFT_CACHE names the folder where quantised bases are kept", text,
                     folder);
}

// Makes the folder under another name and renames it: there it is whole, whoever else does the same.
static int fill_folder(const struct base_source *source, const struct model *plain, const char *root,
                       const char *folder, int threads, struct pool *pool, struct error *err) {
    const struct base_packing *packing = &source->packing;
    char host[80], name[40], hex[2 * SHA256_BYTES + 1];
    host_name(host);
    const char *making = pool_printf(pool, "%s%s%ld", folder, host, (long)getpid());
    const char *bases = pool_printf(pool, "%s/bases", root);
    struct progress progress = {0};
    if (!making || !bases) return error_memory(err, "a path", strlen(folder));
    base_packing_name(packing, name);
    double begin = clock_now();
    remove_abandoned(bases, pool);
    if (file_remove_tree(making, err) || file_make_folders(making, err)) return not_writable(folder, err);
    progress_begin(&progress, "quantising the base");
    int status = quantize_base(plain, packing, making, threads, progress_show, &progress, err);
    progress_end(&progress);
    if (status == 0) status = seal(making, pool, hex, err);
    bool renamed = status == 0 && file_rename(making, folder, err) == 0;
    if (status == 0 && !renamed && !file_is_folder(folder)) status = -1;
    if (status == 0 && !renamed) *err = (struct error){0}; // somebody else was first
    if (!renamed && file_is_folder(making)) file_remove_tree(making, NULL);
    if (status == 0 && !source->quiet)
        fprintf(stderr, "quantised to %s in %.1f s, kept in %s\n", name, clock_now() - begin, folder);
    struct base sealed;
    if (!renamed || base_open(folder, &sealed, NULL)) return status;
    const char *memo = memo_of(&sealed, root, pool, NULL);
    if (memo) remember(memo, root, hex, pool);
    base_close(&sealed);
    return status;
}

// The entry as a model, if it is whole. `model` is closed otherwise.
static int open_entry(const char *folder, const struct base_source *source, const char *root, struct pool *pool,
                      struct model *model, struct error *err) {
    if (model_open(folder, source->name, model, err)) return -1;
    if (check_seal(model->base, root, pool, err) == 0) return 0;
    model_close(model);
    return -1;
}

// `model` is the plain base of `path`; afterwards it is the quantised one, or closed.
static int quantised(const struct base_source *source, const char *path, int threads, struct pool *pool,
                     struct model *model, struct error *err) {
    const char *root = cache_root(pool), *folder = folder_of(model, root, &source->packing, pool, err);
    if (folder && file_is_folder(folder)) {
        model_close(model);
        if (open_entry(folder, source, root, pool, model, err) == 0) return 0;
        if (!source->quiet) fprintf(stderr, "%s; quantising again\n", err->text); // damaged
        *err = (struct error){0};
        if (file_remove_tree(folder, err) || model_open(path, source->name, model, err)) return -1;
    }
    int status = folder ? fill_folder(source, model, root, folder, threads, pool, err) : -1;
    model_close(model);
    return status == 0 ? open_entry(folder, source, root, pool, model, err) : -1;
}

int base_source_find(const struct base_source *source, struct pool *pool, const char **path, struct error *err) {
    *path = source->name;
    if (file_exists(source->name) || file_is_folder(source->name)) return 0;
    return hub_find(source->name, source->revision, pool, path, err);
}

int base_source_open(const struct base_source *source, int threads, struct model *out, struct error *err) {
    struct pool pool = {0};
    const char *path = source->name;
    int status = base_source_find(source, &pool, &path, err);
    if (status == 0) status = model_open(path, source->name, out, err);
    bool asked = status == 0 && source->packing.format != 0 && model_has_weights(out) && base_is_plain(out);
    if (asked && out->base->kind == BASE_GGUF) {
        status = error_set(
            err, STATUS_CONFIG,
            "load_in_4bit and load_in_8bit: %s is a GGUF of %s weights, and quantising one while loading is not "
            "in this version (safetensors are); give a GGUF that is quantised already, or set both to "
            "false",
            source->name, out->file_type);
        model_close(out);
    } else if (asked) {
        status = quantised(source, path, threads, &pool, out, err);
    }
    pool_free(&pool);
    return status;
}
