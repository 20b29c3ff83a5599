// Bases that cannot be trusted, beyond single files: config.json, folders, the Hugging Face cache, the cache of
// quantised bases. And a table of published attacks and where each is tested ("st_01" stands in
// test_safetensors.c, "cve_..." and "issue_..." in test_gguf.c, "fuzz X" is tests/fuzz/fuzz_X.c with its seeds):
//
//   safetensors                                         test
//   ST-01 .. ST-21                                      st_01_.. to st_21_.. in that order
//   overlapping tensors as a memory bomb                st_11_no_overlap
//   an empty tensor that shares an offset               st_20_scalars_and_empty_tensors
//   NUL bytes in names                                  names (test_safetensors.c)
//   data_offsets held against the shape                 st_13_size_is_shape_times_dtype
//   a negative offset                                   st_12_end_not_before_begin, st_15_dimensions_are_counts
//   a writer over the file it has mapped                writer_is_exclusive_and_leaves_nothing_behind (test_file.c)
//   index.json: paths, absent files, double tensors     hostile_shards (test_base_files.c), indexes (here), fuzz index
//
//   GGUF
//   CVE-2024-21825 .. 21836, 23496, 23605               cve_2024_<number>_..
//   Databricks series: several of the above             the same, and allocation_failures in test_gguf_files.c
//   CVE-2024-32878 (cleanup on the error path)          cve_2024_32878_.. (test_gguf_files.c)
//   CVE-2024-42478 (pointers from a peer)               nothing in a file or on a wire is a pointer here
//   CVE-2025-49847, CVE-2025-52566 (narrowed vocab)     sizes of vocabularies: -Wconversion is not used;
//   limits_both_sides,
//                                                       tokens_without_a_row (test_tokenizer_folders.c), fuzz tokenizer
//   CVE-2025-53630, CVE-2026-27940                      cve_2025_53630_and_cve_2026_27940_sum_of_sizes_wraps
//   CVE-2026-33298                                      cve_2026_33298_..
//   llama.cpp 24759, 15711, 24263, 27203, 24997         issue_<number>_..
//   a key of the wrong type                             alignment_of_the_wrong_type, getters (test_gguf_files.c)
//   scores declared INT8                                scores_declared_i8_and_read_as_float
//   ggml 1516 (caps of gigabytes)                       ggml_1516_small_file_asks_for_gigabytes
//   llama.cpp 26511 (token "<0x-1>")                    numbers_in_names (here): byte tokens are looked up, not read
//   plamo2 sum over tokens                              no such table; vocabularies are counted in size_t
//   tensor "direction.<N>"                              control vectors are not read: what_has_no_place_is_refused
//   dflash, CVE-2024-8063 (block_count)                 cve_2024_8063_block_count_is_held_against_a_range,
//   configurations CVE-2026-7482 (more declared than there)            cve_2026_7482_declared_more_than_there_is
//   CVE-2024-12055, CVE-2025-66960                      ggml_1516_.., truncation_at_every_byte (test_gguf_files.c)
//   gguf-py: endless counts, nested arrays              gguf_py_nested_arrays_and_endless_counts
//   duplicate keys in O(n^2)                            duplicates_are_found_in_n_log_n
//   CVE-2026-43629 (one's own state re-read)            sealed_but_hostile_manifests (test_checkpoint.c),
//                                                       entries_of_the_cache_are_checked (here)
//   split files                                         hostile_parts (test_base_files.c), parts (here)
//
//   parsers under a fuzzer: all committed seeds are replayed under sanitizers by `make test`
//   safetensors header and access                       fuzz safetensors          GGUF         fuzz gguf
//   JSON; rows and rendering                            fuzz json, fuzz rows      tokenizer    fuzz tokenizer
//   YAML and overrides                                  fuzz config               adapter pair fuzz adapter
//   config.json                                         fuzz shapes               index.json   fuzz index
//   packed checkpoints                                  fuzz packed, test_packed_checkpoints.c
//   checkpoint folder                                   no target: every byte of a manifest is flipped in
//   test_checkpoint.c
#include "data/json.h"
#include "model/gguf_write.h"
#include "model/hub_cache.h"
#include "tests/harness.h"
#include "train/base_source.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static const char LLAMA[] = "tests/fixtures/families/llama";
static const char COMMIT[] = "0123456789abcdef0123456789abcdef01234567";
static const struct base_packing nf4 = {.format = QUANT_NF4, .blocksize = 64, .nested = true};

// An empty folder of this name.
static const char *fresh(const char *name) {
    static char folders[16][600];
    static int next;
    struct error err = {0};
    char *folder = folders[next++ % 16];
    snprintf(folder, sizeof folders[0], "%s/%s", test_folder(), name);
    CHECK_MSG(file_remove_tree(folder, &err) == 0 && file_make_folders(folder, &err) == 0, "%s", err.text);
    return folder;
}

static void put(const char *path, const char *bytes, size_t length) {
    struct error err = {0};
    CHECK_MSG(file_replace(path, bytes, length, &err) == 0, "%s", err.text);
}

static void copy(const char *from, const char *to) {
    struct text bytes = {0};
    struct error err = {0};
    CHECK_MSG(file_read(from, 1 << 24, &bytes, &err) == 0, "%s", err.text);
    put(to, bytes.data, bytes.length);
    text_free(&bytes);
}

static void refused(const char *path, int code, const char *what) {
    struct model m;
    struct error err = {0};
    int status = model_open(path, NULL, &m, &err);
    CHECK_MSG(status != 0, "opened, expected: %s", what);
    if (status == 0) model_close(&m);
    CHECK_MSG(err.code == code && strstr(err.text, what), "exit %d, '%s' does not say '%s'", err.code, err.text, what);
}

static void accepted(const char *path) {
    struct model m;
    struct error err = {0};
    CHECK_MSG(model_open(path, NULL, &m, &err) == 0, "%s", err.text);
    if (err.code == 0) {
        CHECK(model_has_weights(&m));
        model_close(&m);
    }
}

// --- config.json

// llama's config.json with one key set to another value, or without it ("").
static void write_config(const char *path, const char *key, const char *value) {
    struct json_document d;
    struct error err = {0};
    struct text out = {0};
    struct json_writer w = {.out = &out};
    CHECK_MSG(json_load(test_path(LLAMA, "config.json"), 1 << 20, NULL, &d, &err) == 0, "%s", err.text);
    json_begin_object(&w);
    for (const struct json *at = json_child(d.root); at; at = json_next(at)) {
        if (strcmp(json_key(at, NULL), key) == 0) continue;
        json_put_key(&w, json_key(at, NULL));
        json_put_value(&w, at);
    }
    if (*value) text_printf(&out, ",\"%s\":%s", key, value);
    json_end_object(&w);
    put(path, out.data, out.length);
    text_free(&out);
    json_free(&d);
}

TEST(configurations) {
    static const char *const numbers[] = {"num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size",
                                          "intermediate_size"};
    static const char *const bad[] = {"0", "-1", "1e30", "9007199254740991", "2.5", "\"2\"", "[2]", "{}", "true", ""};
    static const struct {
        const char *key, *value;
    } others[] = {{"num_key_value_heads", "0"},
                  {"num_key_value_heads", "5"},
                  {"num_key_value_heads", "-2"},
                  {"num_key_value_heads", "\"2\""},
                  {"head_dim", "0"},
                  {"head_dim", "-12"},
                  {"head_dim", "9007199254740991"},
                  {"rms_norm_eps", "\"small\""},
                  {"rms_norm_eps", "[]"},
                  {"tie_word_embeddings", "\"yes\""},
                  {"attention_bias", "2"},
                  {"rope_parameters", "{\"rope_type\": \"spiral\"}"},
                  {"rope_parameters", "{\"rope_type\": \"linear\", \"factor\": \"2\"}"},
                  {"hidden_act", "\"perceptron\""},
                  {"hidden_act", "7"},
                  {"model_type", "\"perceptron\""},
                  {"model_type", "4"},
                  {"model_type", "\"llama\\u0000\""},
                  {"quantization_config", "[]"}};
    const char *folder = fresh("configurations");
    char config[900];
    snprintf(config, sizeof config, "%s", test_path(folder, "config.json"));
    copy(test_path(LLAMA, "model.safetensors"), test_path(folder, "model.safetensors"));
    copy(test_path(LLAMA, "config.json"), config);
    accepted(folder);
    for (size_t i = 0; i < COUNT_OF(numbers); i++) {
        for (size_t k = 0; k < COUNT_OF(bad); k++) {
            write_config(config, numbers[i], bad[k]);
            struct model m;
            struct error err = {0};
            int status = model_open(folder, NULL, &m, &err);
            CHECK_MSG(status != 0 && err.code == STATUS_DATA && strstr(err.text, folder), "%s = %s: %s", numbers[i],
                      bad[k], err.text);
            if (status == 0) model_close(&m);
        }
    }
    for (size_t i = 0; i < COUNT_OF(others); i++) {
        write_config(config, others[i].key, others[i].value);
        struct model m;
        struct error err = {0};
        int status = model_open(folder, NULL, &m, &err);
        CHECK_MSG(status != 0 && err.code == STATUS_DATA && strstr(err.text, folder), "%s = %s: %s", others[i].key,
                  others[i].value, err.text);
        if (status == 0) model_close(&m);
    }
}

TEST(what_is_no_configuration) {
    static const char *const texts[] = {
        "",    "[]", "null", "{\"model_type\"", "{} {}", "\xff{}", "\xef\xbb\xbf", "{\"a\":1,\"a\":2}", "{\"a\":NaN}",
        "GGUF"};
    const char *folder = fresh("texts");
    copy(test_path(LLAMA, "model.safetensors"), test_path(folder, "model.safetensors"));
    refused(folder, STATUS_NOINPUT, "config.json");
    for (size_t i = 0; i < COUNT_OF(texts); i++) {
        put(test_path(folder, "config.json"), texts[i], strlen(texts[i]));
        refused(folder, STATUS_DATA, "config.json");
    }
    struct text deep = {0};
    for (int i = 0; i < 100; i++) text_add(&deep, "{\"a\":");
    put(test_path(folder, "config.json"), deep.data, deep.length);
    refused(folder, STATUS_DATA, "config.json");
    text_clear(&deep);
    for (int i = 0; i < (16 << 20); i += 16) text_add(&deep, "                ");
    text_add(&deep, "{}");
    put(test_path(folder, "config.json"), deep.data, deep.length);
    refused(folder, STATUS_DATA, "config.json");
    text_free(&deep);
}

// A few bytes that ask for millions of matrices.
TEST(experts_without_end) {
    static const char text[] =
        "{\"model_type\":\"mixtral\",\"hidden_size\":16,\"intermediate_size\":16,"
        "\"num_attention_heads\":1,\"num_key_value_heads\":1,\"num_hidden_layers\":500,\"vocab_size\":16,"
        "\"num_local_experts\":%s,\"num_experts_per_tok\":1}";
    char config[900], json[400];
    snprintf(config, sizeof config, "%s", test_path(fresh("experts"), "config.json"));
    snprintf(json, sizeof json, text, "100");
    put(config, json, strlen(json));
    struct model m;
    struct error err = {0};
    CHECK_MSG(model_open(config, NULL, &m, &err) == 0, "%s", err.text);
    if (!err.code) model_close(&m);
    snprintf(json, sizeof json, text, "65536");
    put(config, json, strlen(json));
    refused(config, STATUS_DATA, "more than 1000000 matrices");
}

// --- folders

TEST(special_files) {
    const char *folder = fresh("special");
    char single[900], config[900], index[900];
    snprintf(single, sizeof single, "%s", test_path(folder, "model.safetensors"));
    snprintf(config, sizeof config, "%s", test_path(folder, "config.json"));
    snprintf(index, sizeof index, "%s", test_path(folder, "model.safetensors.index.json"));
    copy(test_path(LLAMA, "config.json"), config);
    CHECK(mkfifo(single, 0600) == 0); // nobody ever writes: must not wait
    refused(folder, STATUS_NOINPUT, "model.safetensors");
    CHECK(unlink(single) == 0 && mkdir(single, 0700) == 0);
    refused(folder, STATUS_NOINPUT, "model.safetensors");
    CHECK(rmdir(single) == 0 && symlink("/dev/zero", single) == 0);
    refused(folder, STATUS_NOINPUT, "model.safetensors");
    CHECK(unlink(single) == 0 && symlink("model.safetensors", single) == 0); // a loop
    refused(folder, STATUS_NOINPUT, "model.safetensors");
    CHECK(unlink(single) == 0);
    put(single, "", 0);
    refused(folder, STATUS_DATA, "model.safetensors");
    CHECK(truncate(single, (off_t)1 << 40) == 0); // zeros: a header of no bytes
    refused(folder, STATUS_DATA, "model.safetensors");
    CHECK(unlink(single) == 0 && mkfifo(index, 0600) == 0);
    refused(folder, STATUS_NOINPUT, "index.json");
    CHECK(unlink(index) == 0 && unlink(config) == 0 && mkfifo(config, 0600) == 0);
    refused(folder, STATUS_NOINPUT, "config.json");
    CHECK(unlink(config) == 0 && mkdir(config, 0700) == 0);
    refused(folder, STATUS_NOINPUT, "config.json");
    CHECK(rmdir(config) == 0);
}

TEST(indexes) {
    static const char *const files[] = {"a\\\\b", ".hidden", "a\\u0000", "-rf/..", "//", "a/../b"};
    const char *folder = fresh("indexes");
    char index[900], text[400];
    snprintf(index, sizeof index, "%s", test_path(folder, "model.safetensors.index.json"));
    copy(test_path(LLAMA, "config.json"), test_path(folder, "config.json"));
    copy(test_path(LLAMA, "model.safetensors"), test_path(folder, "a.safetensors"));
    for (size_t i = 0; i < COUNT_OF(files); i++) {
        snprintf(text, sizeof text, "{\"weight_map\":{\"x\":\"%s\"}}", files[i]);
        put(index, text, strlen(text));
        refused(folder, STATUS_DATA, "which is no plain file name");
    }
    memset(text, 'n', 300);
    struct text long_name = {0};
    text_printf(&long_name, "{\"weight_map\":{\"x\":\"%.256s\"}}", text);
    put(index, long_name.data, long_name.length);
    refused(folder, STATUS_DATA, "which is no plain file name");
    text_free(&long_name);
    static const char *const odd[] = {"{\"weight_map\":{\"x\":1}}",
                                      "{\"weight_map\":{\"x\":null}}",
                                      "{\"weight_map\":{\"x\":\"a.safetensors\",\"x\":\"a.safetensors\"}}",
                                      "{\"weight_map\":{}}",
                                      "{}",
                                      "[]",
                                      "{\"weight_map\":\"a.safetensors\"}",
                                      "{\"weight_map\":{\"x\":\"config.json\"}}"};
    for (size_t i = 0; i < COUNT_OF(odd); i++) {
        put(index, odd[i], strlen(odd[i]));
        struct model m;
        struct error err = {0};
        int status = model_open(folder, NULL, &m, &err);
        CHECK_MSG(status != 0 && err.code == STATUS_DATA && strstr(err.text, folder), "%s: %s", odd[i], err.text);
        if (status == 0) model_close(&m);
    }
    // Two names for one file: every tensor twice.
    CHECK(symlink("a.safetensors", test_path(folder, "b.safetensors")) == 0);
    struct safetensors s;
    struct text map = {0};
    struct error err = {0};
    CHECK(safetensors_open(test_path(folder, "a.safetensors"), &s, &err) == 0);
    text_add(&map, "{\"weight_map\":{");
    for (size_t i = 0; i < s.n_entries; i++)
        text_printf(&map, "%s\"%s\":\"%s\"", i ? "," : "", s.entries[i].name, i ? "a.safetensors" : "b.safetensors");
    text_add(&map, "}}");
    put(index, map.data, map.length);
    refused(folder, STATUS_DATA, "the files hold");
    safetensors_close(&s);
    text_free(&map);
}

// --- parts of a GGUF

// A file of one tensor whose keys about parts are these.
static void write_part(const char *path, int no, int count, const char *total) {
    static const float data[4] = {0};
    struct gguf_writer w = {0};
    struct file_writer out;
    struct error err = {0};
    gguf_put_string(&w, "general.architecture", "llama");
    if (no >= 0) gguf_put_u32(&w, "split.no", (uint32_t)no);
    if (count >= 0) gguf_put_u32(&w, "split.count", (uint32_t)count);
    if (count == -2) gguf_put_string(&w, "split.count", "2");
    if (count == -3) gguf_put_i32(&w, "split.count", -2);
    if (total) gguf_put_string(&w, "split.tensors.count", total);
    gguf_put_tensor(&w, "t", 0, 1, (const int64_t[]){4}, data);
    file_remove(path, NULL);
    int status = file_create(path, &out, &err) || gguf_write(&w, &out, &err) || file_close(&out, &err);
    CHECK_MSG(status == 0, "%s", err.text);
    gguf_writer_free(&w);
}

TEST(parts) {
    const char *folder = fresh("parts");
    char one[900], two[900];
    snprintf(one, sizeof one, "%s", test_path(folder, "m-00001-of-00002.gguf"));
    snprintf(two, sizeof two, "%s", test_path(folder, "m-00002-of-00002.gguf"));
    static const struct {
        int no, count;
        const char *says;
    } firsts[] = {{0, 70000, "split.count"}, {0, -2, "split.count"},         {0, -3, "split.count"},
                  {5, 2, "does not end in"}, {70000, 2, "split.no"},         {0, 1000, "does not end in"},
                  {1, 2, "does not end in"}, {0, 2, "m-00002-of-00002.gguf"}};
    for (size_t i = 0; i < COUNT_OF(firsts); i++) {
        write_part(one, firsts[i].no, firsts[i].count, NULL);
        refused(one, i + 1 < COUNT_OF(firsts) ? STATUS_DATA : STATUS_NOINPUT, firsts[i].says);
    }
    CHECK(symlink("m-00001-of-00002.gguf", two) == 0); // the first again
    refused(one, STATUS_DATA, "is part 1 of 2, expected 2 of 2");
    CHECK(unlink(two) == 0);
    write_part(two, 1, -1, NULL);
    refused(one, STATUS_DATA, "expected 2 of 2");
    write_part(two, 1, 3, NULL);
    refused(one, STATUS_DATA, "is part 2 of 3, expected 2 of 2");
    write_part(two, 1, 2, NULL);
    refused(one, STATUS_DATA, "tensor 't' is in");
    write_part(two, 1, 2, "2");
    refused(one, STATUS_DATA, "split.tensors.count");
}

TEST(numbers_in_names) {
    static const char *const names[] = {"blk.-1.attn_q.weight",          "blk.99999999999999999999.attn_q.weight",
                                        "blk.2147483648.attn_q.weight",  "blk.0x0.attn_q.weight",
                                        "blk.00.attn_q.weight",          "blk.2.attn_q.weight",
                                        "direction.9223372036854775807", "<0x-1>"};
    struct gguf whole;
    struct error err = {0};
    const char *path = test_path(fresh("names"), "m.gguf");
    CHECK_MSG(gguf_open("tests/fixtures/families/qwen2/model.gguf", &whole, &err) == 0, "%s", err.text);
    for (size_t i = 0; i < COUNT_OF(names) && !err.code; i++) {
        struct gguf_writer w = {0};
        struct file_writer out;
        for (size_t k = 0; k < whole.n_kv; k++) gguf_put_kv(&w, &whole.kv[k]);
        for (size_t k = 0; k < whole.n_tensors; k++) {
            const struct gguf_tensor *t = &whole.tensors[k];
            gguf_put_tensor(&w, t->name, t->ggml_type, t->n_dims, t->ne, t->data);
        }
        const struct gguf_tensor *t = &whole.tensors[0];
        gguf_put_tensor(&w, names[i], t->ggml_type, t->n_dims, t->ne, t->data);
        file_remove(path, NULL);
        CHECK(file_create(path, &out, &err) == 0 && gguf_write(&w, &out, &err) == 0 && file_close(&out, &err) == 0);
        gguf_writer_free(&w);
        refused(path, STATUS_DATA, "has no place");
        refused(path, STATUS_DATA, names[i]);
    }
    gguf_close(&whole);
}

// --- the Hugging Face cache

// A snapshot as the hub's client makes it: links to blobs.
static const char *hub(char snapshot[600]) {
    static char root[300];
    struct error err = {0};
    snprintf(root, sizeof root, "%s", fresh("hub"));
    snprintf(snapshot, 600, "%s/models--org--tiny/snapshots/%s", root, COMMIT);
    CHECK(file_make_folders(snapshot, &err) == 0);
    CHECK(file_make_folders(test_path(root, "models--org--tiny/blobs"), &err) == 0);
    CHECK(file_make_folders(test_path(root, "models--org--tiny/refs"), &err) == 0);
    copy(test_path(LLAMA, "config.json"), test_path(root, "models--org--tiny/blobs/c0"));
    copy(test_path(LLAMA, "model.safetensors"), test_path(root, "models--org--tiny/blobs/b1"));
    CHECK(symlink("../../blobs/c0", test_path(snapshot, "config.json")) == 0);
    CHECK(symlink("../../blobs/b1", test_path(snapshot, "model.safetensors")) == 0);
    put(test_path(root, "models--org--tiny/refs/main"), COMMIT, 40);
    setenv("HF_HUB_CACHE", root, 1);
    return root;
}

static void by_name(const char *name, int code, const char *what) {
    struct model m;
    struct base_source source = {.name = name, .quiet = true};
    struct error err = {0};
    int status = base_source_open(&source, 1, &m, &err);
    CHECK_MSG((status == 0) == (code == 0), "%s: %s", what, err.text);
    if (status == 0) model_close(&m);
    if (code)
        CHECK_MSG(err.code == code && strstr(err.text, what), "exit %d, '%s' does not say '%s'", err.code, err.text,
                  what);
}

TEST(the_hub_s_cache) {
    char snapshot[600], blob[900], single[900], main[900];
    const char *root = hub(snapshot);
    snprintf(blob, sizeof blob, "%s", test_path(root, "models--org--tiny/blobs/b1"));
    snprintf(single, sizeof single, "%s", test_path(snapshot, "model.safetensors"));
    snprintf(main, sizeof main, "%s", test_path(root, "models--org--tiny/refs/main"));
    by_name("org/tiny", 0, "links to blobs");
    // A download that was cut off: the link is there, its end has another name.
    CHECK(rename(blob, test_path(root, "models--org--tiny/blobs/b1.incomplete")) == 0);
    by_name("org/tiny", STATUS_NOINPUT, "as a download leaves it that was cut off");
    by_name("org/tiny/model.safetensors", STATUS_NOINPUT, "model.safetensors");
    copy(test_path(root, "models--org--tiny/blobs/b1.incomplete"), blob);
    CHECK(truncate(blob, 20000) == 0); // or stopped halfway
    by_name("org/tiny", STATUS_DATA, "truncated");
    // Reading follows links wherever they lead; a circle ends.
    CHECK(unlink(single) == 0 && symlink(single, single) == 0);
    by_name("org/tiny", STATUS_NOINPUT, "model.safetensors");
    copy(test_path(root, "models--org--tiny/blobs/b1.incomplete"), test_path(test_folder(), "outside"));
    CHECK(unlink(single) == 0 && symlink(test_path(test_folder(), "outside"), single) == 0);
    by_name("org/tiny", 0, "a link out of the cache");
    // What refs/main may hold.
    static const char other[] = "0123456789abcdef0123456789abcdef01234568\n";
    put(main, other, 41);
    by_name("org/tiny", STATUS_NOINPUT, "hf download org/tiny");
    static const char *const names[] = {"",
                                        "\n",
                                        "main",
                                        "../../../etc/passwd",
                                        "0123456789abcdef0123456789abcdef0123456",
                                        "0123456789abcdef0123456789abcdef012345678"};
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        put(main, names[i], strlen(names[i]));
        by_name("org/tiny", STATUS_NOINPUT, "hf download org/tiny");
    }
    struct text many = {0};
    for (int i = 0; i < 1000; i++) text_add(&many, "0123456789");
    put(main, many.data, many.length);
    by_name("org/tiny", STATUS_NOINPUT, "hf download org/tiny");
    text_free(&many);
    CHECK(unlink(main) == 0 && mkfifo(main, 0600) == 0);
    by_name("org/tiny", STATUS_NOINPUT, "hf download org/tiny");
    CHECK(unlink(main) == 0 && mkdir(main, 0700) == 0);
    by_name("org/tiny", STATUS_NOINPUT, "hf download org/tiny");
    // The snapshot is a file.
    CHECK(rmdir(main) == 0);
    put(main, COMMIT, 40);
    CHECK(file_remove_tree(snapshot, NULL) == 0);
    put(snapshot, "x", 1);
    by_name("org/tiny", STATUS_NOINPUT, "hf download org/tiny");
    unsetenv("HF_HUB_CACHE");
}

// --- the cache of quantised bases

static size_t entries(const char *folder) {
    char **names;
    size_t count = 0;
    if (!file_is_folder(folder) || file_list(folder, &names, &count, NULL)) return 0;
    file_list_free(names, count);
    return count;
}

// Opens, and says where the bytes are. False with `err`.
static bool quantised(const char *base, char folder[600], struct error *err) {
    struct model m;
    struct base_source source = {.name = base, .packing = nf4, .quiet = true};
    *err = (struct error){0};
    if (base_source_open(&source, 2, &m, err)) return false;
    snprintf(folder, 600, "%s", m.base->path);
    CHECK(model_has_weights(&m) && !base_is_plain(&m));
    model_close(&m);
    return true;
}

static const char *small_base(const char *name) {
    const char *base = fresh(name);
    copy(test_path(LLAMA, "config.json"), test_path(base, "config.json"));
    copy(test_path(LLAMA, "model.safetensors"), test_path(base, "model.safetensors"));
    return base;
}

// The entry was made again, and is good now.
static void mended(const char *base, const char *entry, const struct text *good, const char *what) {
    char folder[600];
    struct error err = {0};
    struct text now = {0};
    CHECK_MSG(quantised(base, folder, &err) && strcmp(folder, entry) == 0, "%s: %s", what, err.text);
    CHECK(file_read(test_path(entry, "model.safetensors"), 1 << 24, &now, &err) == 0);
    CHECK_MSG(now.length == good->length && memcmp(now.data, good->data, now.length) == 0, "%s: stayed", what);
    text_free(&now);
}

TEST(entries_of_the_cache_are_checked) {
    char base[600], cache[600], entry[600], other[600], path[900];
    struct error err = {0};
    struct text good = {0}, bytes = {0};
    snprintf(cache, sizeof cache, "%s", fresh("cache"));
    setenv("GRAFT_CACHE", cache, 1);
    snprintf(base, sizeof base, "%s", small_base("base"));
    put(test_path(base, "tokenizer_config.json"), "{\"a\": 1}", 8);
    CHECK_MSG(quantised(base, entry, &err), "%s", err.text);
    snprintf(path, sizeof path, "%s", test_path(entry, "model.safetensors"));
    CHECK(file_read(path, 1 << 24, &good, &err) == 0);
    // A bit of the data.
    CHECK(file_read(path, 1 << 24, &bytes, &err) == 0);
    bytes.data[bytes.length - 100] ^= 4;
    put(path, bytes.data, bytes.length);
    mended(base, entry, &good, "a flipped bit");
    // Parts that are gone.
    static const char *const parts[] = {"model.safetensors", "config.json", ".graft-entry", "tokenizer_config.json"};
    for (size_t i = 0; i < COUNT_OF(parts); i++) {
        CHECK(file_remove(test_path(entry, parts[i]), &err) == 0);
        mended(base, entry, &good, parts[i]);
        CHECK(file_exists(test_path(entry, parts[i])));
    }
    // The seal is something else; the configuration was edited; another base's numbers under the same names.
    put(test_path(entry, ".graft-entry"), "x", 1);
    mended(base, entry, &good, "no seal");
    put(test_path(entry, "tokenizer_config.json"), "{\"a\": 2}", 8);
    mended(base, entry, &good, "another tokenizer");
    char second[600];
    snprintf(second, sizeof second, "%s", small_base("second"));
    text_free(&bytes);
    CHECK(file_read(test_path(second, "model.safetensors"), 1 << 24, &bytes, &err) == 0);
    for (size_t i = 1; i <= 2000; i++) bytes.data[bytes.length - i] = (char)(i % 50);
    put(test_path(second, "model.safetensors"), bytes.data, bytes.length);
    CHECK(quantised(second, other, &err) && strcmp(other, entry) != 0);
    copy(test_path(other, "model.safetensors"), path);
    mended(base, entry, &good, "another base's entry");
    // The base's own tokenizer is part of what an entry is.
    put(test_path(base, "tokenizer_config.json"), "{\"a\": 3}", 8);
    CHECK(quantised(base, other, &err) && strcmp(other, entry) != 0);
    text_free(&good), text_free(&bytes);
}

TEST(what_other_processes_leave) {
    char base[600], cache[600], bases[700], entry[600], host[64] = "", dead[900], live[900], foreign[900];
    struct error err = {0};
    snprintf(cache, sizeof cache, "%s", fresh("left"));
    snprintf(bases, sizeof bases, "%s/bases", cache);
    setenv("GRAFT_CACHE", cache, 1);
    snprintf(base, sizeof base, "%s", small_base("base"));
    CHECK(gethostname(host, sizeof host - 1) == 0);
    for (char *at = host; *at; at++) *at = *at == '.' ? '_' : *at;
    pid_t child = fork();
    if (child == 0) _exit(0);
    CHECK(child > 0 && waitpid(child, NULL, 0) == child);
    snprintf(dead, sizeof dead, "%s/0123.%s-%ld", bases, host, (long)child);
    snprintf(live, sizeof live, "%s/0123.%s-%ld", bases, host, (long)getppid());
    snprintf(foreign, sizeof foreign, "%s/0123.elsewhere-%ld", bases, (long)child);
    CHECK(file_make_folders(dead, &err) == 0 && file_make_folders(live, &err) == 0 &&
          file_make_folders(foreign, &err) == 0);
    put(test_path(dead, "model.safetensors"), "half", 4);
    CHECK_MSG(quantised(base, entry, &err), "%s", err.text);
    CHECK(!file_is_folder(dead) && file_is_folder(live) && file_is_folder(foreign));
    CHECK_INT(entries(bases), 3);
}

TEST(four_processes_make_one_entry) {
    char base[600], cache[600], bases[700];
    enum { PROCESSES = 4, ROUNDS = 5 };
    snprintf(cache, sizeof cache, "%s", fresh("race"));
    snprintf(bases, sizeof bases, "%s/bases", cache);
    setenv("GRAFT_CACHE", cache, 1);
    snprintf(base, sizeof base, "%s", small_base("base"));
    for (int round = 0; round < ROUNDS; round++) {
        pid_t children[PROCESSES];
        CHECK(file_remove_tree(cache, NULL) == 0);
        for (int i = 0; i < PROCESSES; i++) {
            children[i] = fork();
            if (children[i] != 0) continue;
            char entry[600];
            struct error err = {0};
            bool good = quantised(base, entry, &err) && !test_failed();
            if (!good) fprintf(stderr, "%s\n", err.text);
            _exit(good ? 0 : 1);
        }
        for (int i = 0; i < PROCESSES; i++) {
            int status = -1;
            CHECK(waitpid(children[i], &status, 0) == children[i] && WIFEXITED(status) && WEXITSTATUS(status) == 0);
        }
        CHECK_INT(entries(bases), 1);
    }
}

TEST(a_cache_that_cannot_be_written) {
    char base[600], cache[600], entry[600];
    struct error err = {0};
    snprintf(cache, sizeof cache, "%s", fresh("fixed"));
    setenv("GRAFT_CACHE", cache, 1);
    snprintf(base, sizeof base, "%s", small_base("base"));
    CHECK_MSG(quantised(base, entry, &err), "%s", err.text);
    // What is there serves, although nothing can be remembered.
    CHECK(file_remove_tree(test_path(cache, "content"), &err) == 0);
    put(test_path(cache, "content"), "", 0);
    CHECK_MSG(quantised(base, entry, &err), "%s", err.text);
    // What is not there cannot be made, and the sentence says whose folder that is.
    setenv("GRAFT_CACHE", test_path(cache, "content"), 1);
    CHECK(!quantised(base, entry, &err) && err.code != 0);
    CHECK_MSG(strstr(err.text, "GRAFT_CACHE") && strstr(err.text, "content"), "%s", err.text);
    unsetenv("GRAFT_CACHE");
}

TEST_MAIN(CASE(configurations), CASE(what_is_no_configuration), CASE(experts_without_end), CASE(special_files),
          CASE(indexes), CASE(parts), CASE(numbers_in_names), CASE(the_hub_s_cache),
          CASE(entries_of_the_cache_are_checked), CASE(what_other_processes_leave), CASE(four_processes_make_one_entry),
          CASE(a_cache_that_cannot_be_written))
