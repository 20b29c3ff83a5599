// See base_source.h.
#include "train/base_source.h"

#include "kernels/clock.h"
#include "kernels/hash.h"
#include "model/base_files.h"
#include "model/hub_cache.h"
#include "train/progress.h"

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

// SHA-256 of the shards and of config.json as it was understood.
static int hash_content(const struct base *b, char hex[2 * SHA256_BYTES + 1], struct error *err) {
    struct progress progress = {0};
    struct text all = {0};
    struct json_writer w = {.out = &all};
    int status = 0;
    progress_begin(&progress, "reading the base");
    for (int i = 0; i < b->n_shards && status == 0; i++) {
        uint8_t digest[SHA256_BYTES];
        status = sha256_file(b->shards[i].file.path, digest, NULL, err);
        text_append(&all, digest, sizeof digest);
        if (status == 0) status = progress_show(&progress, i + 1, b->n_shards, err);
    }
    progress_end(&progress);
    json_put_value(&w, b->config.root);
    if (status == 0) status = hash_text(&all, hex, err);
    text_free(&all);
    return status;
}

// The same, remembered by the files' identities: nothing is read when none of them has changed.
static int content_key(const struct base *b, const char *root, struct pool *pool, char hex[2 * SHA256_BYTES + 1],
                       struct error *err) {
    struct text identity = {0}, known = {0};
    struct json_writer w = {.out = &identity};
    char memo[2 * SHA256_BYTES + 1];
    int status = 0;
    for (int i = 0; i < b->n_shards && status == 0; i++) status = file_identity(b->shards[i].file.path, &identity, err);
    json_put_value(&w, b->config.root);
    if (status == 0) status = hash_text(&identity, memo, err);
    text_free(&identity);
    if (status) return -1;
    const char *folder = pool_printf(pool, "%s/content", root), *path = pool_printf(pool, "%s/content/%s", root, memo);
    if (!folder || !path) return error_memory(err, "a path", strlen(root));
    if (file_exists(path) && file_read(path, 2 * SHA256_BYTES, &known, NULL) == 0 && known.length == 2 * SHA256_BYTES) {
        memcpy(hex, known.data, 2 * SHA256_BYTES + 1);
        text_free(&known);
        return 0;
    }
    text_free(&known);
    if (hash_content(b, hex, err) || file_make_folders(folder, err)) return -1;
    return file_replace(path, hex, 2 * SHA256_BYTES, err);
}

static const char *folder_of(const struct model *plain, const struct base_packing *packing, struct pool *pool,
                             struct error *err) {
    char hex[2 * SHA256_BYTES + 1], name[40];
    const char *root = cache_root(pool);
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

// Makes the folder under another name and renames it: there it is whole, whoever else does the same.
static int fill_folder(const struct base_source *source, const struct model *plain, const char *folder, int threads,
                       struct pool *pool, struct error *err) {
    const struct base_packing *packing = &source->packing;
    const char *making = pool_printf(pool, "%s.%ld", folder, (long)getpid());
    struct progress progress = {0};
    char name[40];
    if (!making) return error_memory(err, "a path", strlen(folder));
    base_packing_name(packing, name);
    double begin = clock_now();
    if (file_remove_tree(making, err) || file_make_folders(making, err)) return -1;
    progress_begin(&progress, "quantising the base");
    int status = quantize_base(plain, packing, making, threads, progress_show, &progress, err);
    progress_end(&progress);
    if (status == 0 && file_rename(making, folder, err) && !file_is_folder(folder)) status = -1;
    if (status || file_is_folder(making)) file_remove_tree(making, NULL);
    if (status == 0 && !source->quiet)
        fprintf(stderr, "quantised to %s in %.1f s, kept in %s\n", name, clock_now() - begin, folder);
    return status;
}

// `model` is the plain base of `path`; afterwards it is the quantised one, or closed.
static int quantised(const struct base_source *source, const char *path, int threads, struct pool *pool,
                     struct model *model, struct error *err) {
    const char *folder = folder_of(model, &source->packing, pool, err);
    if (folder && file_is_folder(folder)) {
        model_close(model);
        if (model_open(folder, source->name, model, err) == 0) return 0;
        if (!source->quiet) fprintf(stderr, "%s; quantising again\n", err->text); // damaged
        *err = (struct error){0};
        if (file_remove_tree(folder, err) || model_open(path, source->name, model, err)) return -1;
    }
    int status = folder ? fill_folder(source, model, folder, threads, pool, err) : -1;
    model_close(model);
    return status == 0 ? model_open(folder, source->name, model, err) : -1;
}

int base_source_open(const struct base_source *source, int threads, struct model *out, struct error *err) {
    struct pool pool = {0};
    const char *path = source->name;
    int status =
        file_exists(path) || file_is_folder(path) ? 0 : hub_find(source->name, source->revision, &pool, &path, err);
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
