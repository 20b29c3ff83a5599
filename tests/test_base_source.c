// Bases as users name them: quantised while loading (equal to bitsandbytes, kept by content, whole or absent), and
// found in the local Hugging Face cache.
#include "data/json.h"
#include "kernels/hash.h"
#include "model/base_files.h"
#include "model/hub_cache.h"
#include "tests/harness.h"
#include "train/base_source.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char FAMILIES[] = "tests/fixtures/families";
static const struct base_packing nf4 = {.format = QUANT_NF4, .blocksize = 64, .nested = true};

static bool packing_of(const char *type, struct base_packing *out) {
    *out = nf4;
    if (strcmp(type, "nf4-single") == 0) out->nested = false;
    if (strcmp(type, "fp4") == 0) out->format = QUANT_FP4;
    if (strncmp(type, "int8", 4) == 0) out->format = QUANT_INT8;
    out->experts = strstr(type, "-experts") != NULL;
    return out->format != QUANT_NF4 || strncmp(type, "nf4", 3) == 0;
}

// As tests/peers/quantized.py adds them up.
static void sum_of(const char *folder, char hex[2 * SHA256_BYTES + 1]) {
    struct safetensors s;
    struct error err = {0};
    struct text all = {0};
    uint8_t digest[SHA256_BYTES];
    hex[0] = '\0';
    CHECK_MSG(safetensors_open(test_path(folder, "model.safetensors"), &s, &err) == 0, "%s", err.text);
    if (err.code) return;
    for (size_t i = 0; i < s.n_entries; i++) {
        text_printf(&all, "%s\n", s.by_name[i]->name);
        text_append(&all, s.by_name[i]->data, (size_t)s.by_name[i]->bytes);
    }
    CHECK(sha256_bytes(all.data, all.length, digest, &err) == 0);
    sha256_hex(digest, hex);
    text_free(&all);
    safetensors_close(&s);
}

static int quantise(const char *base, const struct base_packing *packing, int threads, const char *out,
                    struct error *err) {
    struct model model;
    if (model_open(base, NULL, &model, err)) return -1;
    int status = file_remove_tree(out, err) || file_make_folders(out, err)
                     ? -1
                     : quantize_base(&model, packing, out, threads, NULL, NULL, err);
    model_close(&model);
    return status;
}

TEST(as_bitsandbytes_quantises) {
    struct json_document d;
    struct error err = {0};
    char hex[2 * SHA256_BYTES + 1], out[600];
    int cases = 0;
    snprintf(out, sizeof out, "%s/out", test_folder());
    CHECK_MSG(json_load("tests/fixtures/quantized.json", 1 << 20, NULL, &d, &err) == 0, "%s", err.text);
    for (const struct json *at = json_child(d.root); at && !err.code; at = json_next(at), cases++) {
        const char *base = json_string(json_get(at, "base"), NULL), *type = json_string(json_get(at, "type"), NULL);
        struct base_packing packing;
        CHECK(packing_of(type, &packing));
        for (int threads = 1; threads <= 2 && !err.code; threads++) {
            CHECK_MSG(quantise(test_path(FAMILIES, base), &packing, threads, out, &err) == 0, "%s", err.text);
            sum_of(out, hex);
            CHECK_MSG(test_same_string(hex, json_string(json_get(at, "sha256"), NULL)),
                      "%s in %s: other bytes than bitsandbytes'", base, type);
        }
    }
    json_free(&d);
    CHECK(cases >= 38);
}

TEST(what_is_written_opens_with_the_same_modules) {
    static const char *const bases[] = {"llama", "phi3", "qwen3-moe", "deepseek-v3", "gemma2", "starcoder2"};
    char out[600];
    snprintf(out, sizeof out, "%s/out", test_folder());
    for (size_t i = 0; i < COUNT_OF(bases); i++) {
        struct model plain, packed;
        struct error err = {0};
        CHECK_MSG(quantise(test_path(FAMILIES, bases[i]), &nf4, 2, out, &err) == 0 &&
                      model_open(test_path(FAMILIES, bases[i]), NULL, &plain, &err) == 0 &&
                      model_open(out, NULL, &packed, &err) == 0,
                  "%s: %s", bases[i], err.text);
        if (err.code) return;
        CHECK_INT(packed.n_modules, plain.n_modules);
        CHECK_INT(packed.total_parameters, plain.total_parameters);
        CHECK(base_is_plain(&plain) && !base_is_plain(&packed));
        for (int k = 0; k < plain.n_modules; k++) {
            const struct module *a = &plain.modules[k], *b = &packed.modules[k];
            CHECK_STR(b->hf_name, a->hf_name);
            bool wanted = a->layer >= 0 && !a->router;
            CHECK_MSG((b->parts[0].w->format->id == QUANT_NF4) == wanted, "%s is %s", b->hf_name,
                      b->parts[0].w->format->name);
        }
        // A packed base is not packed again.
        struct model again = packed;
        CHECK(quantize_base(&again, &nf4, out, 1, NULL, NULL, &err) != 0 && err.code != 0);
        model_close(&plain);
        model_close(&packed);
    }
}

// How far the linears of layers are from those they were made of: squares of the difference over squares.
static double distance(const struct model *a, const struct model *b, int *experts) {
    double apart = 0, all = 0;
    float x[256], y[256];
    for (int k = 0; k < a->n_modules; k++) {
        for (int p = 0; p < a->modules[k].n_parts && a->modules[k].layer >= 0; p++) {
            for (int e = 0; e < a->modules[k].experts; e++) {
                const struct weight *v = &a->modules[k].parts[p].w[e], *w = &b->modules[k].parts[p].w[e];
                CHECK(v->cols <= 256 && v->rows == w->rows && v->cols == w->cols);
                *experts += a->modules[k].experts > 1 && w->format->id == QUANT_NF4;
                for (int64_t r = 0; r < v->rows; r++) {
                    weight_decode(v, r, 0, v->cols, x), weight_decode(w, r, 0, w->cols, y);
                    for (int64_t c = 0; c < v->cols; c++)
                        apart += pow((double)(x[c] - y[c]), 2), all += pow((double)x[c], 2);
                }
            }
        }
    }
    return apart / all;
}

// Slices of one tensor become linears of their own: the right rows, the right way round.
TEST(experts_of_one_tensor_are_quantised_where_asked) {
    static const char *const bases[] = {"llama4", "granitemoe", "gpt-oss"};
    char out[600];
    snprintf(out, sizeof out, "%s/out", test_folder());
    for (size_t i = 0; i < COUNT_OF(bases); i++) {
        for (int asked = 0; asked < 2; asked++) {
            struct base_packing packing = nf4;
            struct model plain, packed;
            struct error err = {0};
            int experts = 0;
            packing.experts = asked;
            CHECK_MSG(quantise(test_path(FAMILIES, bases[i]), &packing, 2, out, &err) == 0 &&
                          model_open(test_path(FAMILIES, bases[i]), NULL, &plain, &err) == 0 &&
                          model_open(out, NULL, &packed, &err) == 0,
                      "%s: %s", bases[i], err.text);
            if (err.code) return;
            double far = distance(&plain, &packed, &experts);
            CHECK_MSG(0 < far && far < 0.02, "%s: %g", bases[i], far);
            CHECK_MSG((experts > 0) == asked, "%s: %d experts", bases[i], experts);
            CHECK_INT(packed.total_parameters, plain.total_parameters);
            model_close(&plain);
            model_close(&packed);
        }
    }
}

// --- the cache

static void copy(const char *from, const char *to, const char *name) {
    struct text bytes = {0};
    struct error err = {0};
    CHECK_MSG(file_read(test_path(from, name), 1 << 24, &bytes, &err) == 0 &&
                  file_replace(test_path(to, name), bytes.data, bytes.length, &err) == 0,
              "%s", err.text);
    text_free(&bytes);
}

static size_t entries(const char *folder) {
    char **names;
    size_t count = 0;
    struct error err = {0};
    if (!file_is_folder(folder) || file_list(folder, &names, &count, &err)) return 0;
    file_list_free(names, count);
    return count;
}

// Opens and says where the bytes came from.
static bool opened(const char *name, const struct base_packing *packing, char *folder, struct error *err) {
    struct model m;
    struct base_source source = {.name = name, .packing = *packing, .quiet = true};
    *err = (struct error){0};
    if (base_source_open(&source, 2, &m, err)) return false;
    CHECK_STR(m.path, name);
    snprintf(folder, 600, "%s", m.base->path);
    CHECK(!base_is_plain(&m));
    model_close(&m);
    return true;
}

TEST(quantised_once_and_kept_by_content) {
    char cache[500], base[600], first[600], second[600], content[600], bases[600];
    struct error err = {0};
    snprintf(cache, sizeof cache, "%s/cache", test_folder());
    snprintf(base, sizeof base, "%s/base", test_folder());
    snprintf(content, sizeof content, "%s/content", cache), snprintf(bases, sizeof bases, "%s/bases", cache);
    setenv("GRAFT_CACHE", cache, 1);
    CHECK(file_make_folders(base, &err) == 0);
    copy("tests/fixtures/families/llama", base, "config.json");
    copy("tests/fixtures/families/llama", base, "model.safetensors");
    CHECK(file_make_folders(test_path(base, "notes.txt"), &err) == 0); // a folder is none of the small files beside it
    CHECK_MSG(opened(base, &nf4, first, &err), "%s", err.text);
    struct text before = {0}, after = {0};
    CHECK(file_identity(test_path(first, "model.safetensors"), &before, &err) == 0);
    CHECK(opened(base, &nf4, second, &err) && strcmp(first, second) == 0);
    CHECK(file_identity(test_path(first, "model.safetensors"), &after, &err) == 0);
    CHECK_STR(text_str(&after), text_str(&before)); // not made again
    // Another packing is another folder; the same bytes under another identity are the same folder.
    CHECK(opened(base, &(struct base_packing){.format = QUANT_INT8}, second, &err) && strcmp(first, second) != 0);
    CHECK_INT(entries(bases), 2);
    copy("tests/fixtures/families/llama", base, "model.safetensors");
    CHECK(opened(base, &nf4, second, &err) && strcmp(first, second) == 0);
    CHECK_INT(entries(content), 4); // two identities of the base, two entries
    CHECK_INT(entries(bases), 2);
    // Other weights under the same name and with the same header are another base.
    copy("tests/fixtures/families/llama3", base, "config.json");
    copy("tests/fixtures/families/llama3", base, "model.safetensors");
    CHECK(opened(base, &nf4, second, &err) && strcmp(first, second) != 0);
    CHECK_INT(entries(bases), 3);
    // A damaged copy is made again.
    CHECK(file_truncate(test_path(second, "model.safetensors"), 1000, &err) == 0);
    CHECK_MSG(opened(base, &nf4, first, &err) && strcmp(first, second) == 0, "%s", err.text);
    text_free(&before), text_free(&after);
}

TEST(whole_or_absent_when_writing_fails) {
    char cache[500], bases[600], folder[600];
    struct error err = {0};
    uint64_t operations = 0;
    bool memory = file_is_folder("/dev/shm"); // every round waits for a dozen fsyncs
    snprintf(cache, sizeof cache, "%s/failing", test_folder());
    if (memory) snprintf(cache, sizeof cache, "/dev/shm/graft-test-%ld", (long)getpid());
    snprintf(bases, sizeof bases, "%s/bases", cache);
    setenv("GRAFT_CACHE", cache, 1);
    CHECK(opened(test_path(FAMILIES, "qwen2"), &nf4, folder, &err));
    CHECK(file_remove_tree(cache, &err) == 0);
    file_fail_at(0, 0, 0);
    CHECK(opened(test_path(FAMILIES, "qwen2"), &nf4, folder, &err));
    operations = file_fail_at(0, 0, 0);
    CHECK(operations > 50);
    for (uint64_t k = 1; k <= operations; k++) {
        CHECK(file_remove_tree(cache, &err) == 0);
        file_fail_at(k, ENOSPC, 1);
        bool done = opened(test_path(FAMILIES, "qwen2"), &nf4, folder, &err);
        file_fail_at(0, 0, 0);
        CHECK_MSG(done || err.code != 0, "operation %llu: no error", (unsigned long long)k);
        if (!done && file_is_folder(folder)) { // renamed already: then it is whole
            struct model m;
            CHECK_MSG(model_open(folder, NULL, &m, &err) == 0, "operation %llu: %s", (unsigned long long)k, err.text);
            if (!err.code) model_close(&m);
        }
        err = (struct error){0};
        CHECK_MSG(opened(test_path(FAMILIES, "qwen2"), &nf4, folder, &err), "after operation %llu: %s",
                  (unsigned long long)k, err.text);
    }
    CHECK(file_remove_tree(cache, &err) == 0);
}

TEST(what_cannot_be_quantised_is_said) {
    struct model m;
    struct error err = {0};
    struct base_source source = {.name = "tests/fixtures/families/llama-gptq4", .packing = nf4};
    CHECK_MSG(base_source_open(&source, 1, &m, &err) == 0, "%s", err.text); // stays as it is
    CHECK_STR(m.file_type, "GPTQ-4");
    model_close(&m);
    char base[600], text[8];
    snprintf(base, sizeof base, "%s/nan", test_folder());
    CHECK(file_make_folders(base, &err) == 0);
    copy("tests/fixtures/families/llama", base, "config.json");
    struct text bytes = {0};
    CHECK(file_read("tests/fixtures/families/llama/model.safetensors", 1 << 24, &bytes, &err) == 0);
    uint64_t header;
    memcpy(&header, bytes.data, 8);
    struct safetensors s;
    CHECK(safetensors_open("tests/fixtures/families/llama/model.safetensors", &s, &err) == 0);
    size_t at = (size_t)(safetensors_find(&s, "model.layers.1.mlp.up_proj.weight")->data - s.file.data);
    safetensors_close(&s);
    memcpy(text, "\xc0\x7f", 2); // NaN
    memcpy(bytes.data + at + 200, text, 2);
    CHECK(file_replace(test_path(base, "model.safetensors"), bytes.data, bytes.length, &err) == 0);
    text_free(&bytes);
    source.name = base;
    CHECK(base_source_open(&source, 2, &m, &err) != 0 && err.code == STATUS_DATA);
    CHECK_MSG(strstr(err.text, "model.layers.1.mlp.up_proj.weight"), "%s", err.text);
}

// --- the Hugging Face cache

TEST(found_in_the_hub_cache) {
    static const char commit[] = "0123456789abcdef0123456789abcdef01234567";
    char cache[300], path[600];
    struct error err = {0};
    struct pool pool = {0};
    const char *found = NULL;
    snprintf(cache, sizeof cache, "%s/hub", test_folder());
    snprintf(path, sizeof path, "%s/models--org--tiny-1.5/snapshots/%s", cache, commit);
    CHECK(file_make_folders(path, &err) == 0);
    copy("tests/fixtures/families/llama", path, "config.json");
    copy("tests/fixtures/families/llama", path, "model.safetensors");
    setenv("HF_HUB_CACHE", cache, 1);
    // Without refs/main only the commit itself is known.
    CHECK(hub_find("org/tiny-1.5", NULL, &pool, &found, &err) != 0 && err.code == STATUS_NOINPUT);
    CHECK_MSG(strstr(err.text, "hf download org/tiny-1.5") && strstr(err.text, cache), "%s", err.text);
    CHECK(hub_find("org/tiny-1.5", commit, &pool, &found, &err) == 0);
    CHECK_STR(found, path);
    CHECK(file_make_folders(test_path(cache, "models--org--tiny-1.5/refs"), &err) == 0);
    CHECK(file_replace(test_path(cache, "models--org--tiny-1.5/refs/main"), commit, 40, &err) == 0);
    CHECK(file_replace(test_path(cache, "models--org--tiny-1.5/refs/v2"), "../../../etc", 12, &err) == 0);
    CHECK(hub_find("org/tiny-1.5", NULL, &pool, &found, &err) == 0);
    CHECK_STR(found, path);
    CHECK(hub_find("org/tiny-1.5/model.safetensors", NULL, &pool, &found, &err) == 0);
    static const char *const bad[][2] = {{"org/tiny-1.5", "v2"},         {"org/tiny-1.5", "../refs/main"},
                                         {"org/tiny-1.5", "none"},       {"org/other", NULL},
                                         {"org/tiny-1.5/../x", NULL},    {"../tiny", NULL},
                                         {"org/tiny-1.5/none", NULL},    {"plain", NULL},
                                         {"org/tiny-1.5/a/b.gguf", NULL}};
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        err = (struct error){0};
        CHECK_MSG(hub_find(bad[i][0], bad[i][1], &pool, &found, &err) != 0 && err.code == STATUS_NOINPUT, "%s at %s",
                  bad[i][0], bad[i][1] ? bad[i][1] : "main");
    }
    // The other variables, in their order.
    unsetenv("HF_HUB_CACHE");
    setenv("HF_HOME", test_folder(), 1);
    CHECK_MSG(hub_find("org/tiny-1.5", NULL, &pool, &found, &err) == 0, "%s", err.text);
    setenv("HF_HOME", "/nowhere", 1);
    err = (struct error){0};
    CHECK(hub_find("org/tiny-1.5", NULL, &pool, &found, &err) != 0 && strstr(err.text, "/nowhere/hub"));
    setenv("HF_HUB_CACHE", cache, 1); // wins
    struct model m;
    struct base_source source = {.name = "org/tiny-1.5"};
    err = (struct error){0};
    CHECK_MSG(base_source_open(&source, 1, &m, &err) == 0, "%s", err.text);
    if (!err.code) {
        CHECK_STR(m.path, "org/tiny-1.5");
        CHECK_STR(m.hf_repository, "org/tiny-1.5");
        model_close(&m);
    }
    unsetenv("HF_HUB_CACHE"), unsetenv("HF_HOME");
    pool_free(&pool);
}

TEST(names_of_packings) {
    static const struct base_packing all[] = {{QUANT_NF4, 64, true, false},
                                              {QUANT_FP4, 128, false, false},
                                              {QUANT_NF4, 4096, false, true},
                                              {QUANT_INT8, 0, false, true}};
    char name[40];
    struct base_packing back;
    for (size_t i = 0; i < COUNT_OF(all); i++) {
        base_packing_name(&all[i], name);
        CHECK_MSG(base_packing_parse(name, &back) && back.format == all[i].format &&
                      back.blocksize == all[i].blocksize && back.nested == all[i].nested &&
                      back.experts == all[i].experts,
                  "%s", name);
    }
    CHECK(!base_packing_parse("nf4-65", &back) && back.format == 0);
}

TEST_MAIN(CASE(as_bitsandbytes_quantises), CASE(what_is_written_opens_with_the_same_modules),
          CASE(experts_of_one_tensor_are_quantised_where_asked), CASE(quantised_once_and_kept_by_content),
          CASE(whole_or_absent_when_writing_fails), CASE(what_cannot_be_quantised_is_said),
          CASE(found_in_the_hub_cache), CASE(names_of_packings))
