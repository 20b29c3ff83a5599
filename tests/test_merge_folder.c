// An adapter merged into a folder: every family's merged model gives, alone, the logits that transformers and PEFT
// computed with the adapter; shards, index and small files come along; whole or absent.
#include "adapters/merge.h"
#include "tests/harness.h"
#include "tests/parity.h"

#include <errno.h>

static const char FAMILIES[] = "tests/fixtures/families";

static const char *fixture(const char *family, const char *file) {
    static char path[4][400];
    static int next;
    next = (next + 1) % 4;
    snprintf(path[next], sizeof path[next], "%s/%s/%s", FAMILIES, family, file);
    return path[next];
}

static void copy(const char *from, const char *to) {
    struct text bytes = {0};
    struct error err = {0};
    CHECK_MSG(file_read(from, 1 << 24, &bytes, &err) == 0 && file_replace(to, bytes.data, bytes.length, &err) == 0,
              "%s", err.text);
    text_free(&bytes);
}

// The family's folder with every bf16 number as f32, so that merging rounds nothing; in `shards` files.
static void widen(const char *family, int shards, const char *folder) {
    struct safetensors s;
    struct error err = {0};
    struct pool pool = {0};
    struct text index = {0};
    CHECK(file_make_folders(folder, &err) == 0);
    copy(fixture(family, "config.json"), test_path(folder, "config.json"));
    CHECK_MSG(safetensors_open(fixture(family, "model.safetensors"), &s, &err) == 0, "%s", err.text);
    for (int n = 0; n < shards; n++) {
        struct safetensors_out *entries = pool_array(&pool, s.n_entries, sizeof *entries);
        size_t count = 0;
        char name[64] = "model.safetensors";
        if (shards > 1) snprintf(name, sizeof name, "model-%05d-of-%05d.safetensors", n + 1, shards);
        for (size_t i = (size_t)n; i < s.n_entries; i += (size_t)shards) {
            const struct safetensors_entry *e = &s.entries[i];
            struct safetensors_out *out = &entries[count++];
            *out = (struct safetensors_out){.name = e->name, .dtype = e->dtype, .n_dims = e->n_dims, .data = e->data};
            memcpy(out->shape, e->shape, sizeof out->shape);
            text_printf(&index, "%s\"%s\":\"%s\"", index.length ? "," : "", e->name, name);
            if (e->dtype != ST_BF16) continue;
            float *wide = pool_array(&pool, e->bytes / 2, sizeof *wide);
            quant_format(QUANT_BF16)->decode(e->data, wide, (int64_t)(e->bytes / 2));
            out->dtype = ST_F32, out->data = wide;
        }
        struct file_writer file;
        CHECK(file_create(test_path(folder, name), &file, &err) == 0 &&
              safetensors_write(&file, entries, count, &err) == 0 && file_close(&file, &err) == 0);
    }
    if (shards > 1) {
        struct text all = {0};
        text_printf(&all, "{\"metadata\":{\"total_size\":1},\"weight_map\":{%s}}", text_str(&index));
        CHECK(file_replace(test_path(folder, "model.safetensors.index.json"), all.data, all.length, &err) == 0);
        text_free(&all);
    }
    text_free(&index);
    safetensors_close(&s);
    pool_free(&pool);
}

// Merges the family's adapter into `folder`.
static int merge(const char *family, const char *folder, const char *out, struct error *err) {
    struct model model;
    struct adapter adapter;
    if (model_open(folder, NULL, &model, err)) return -1;
    int status = adapter_read(fixture(family, "adapter"), &model, &adapter, err);
    if (status == 0) {
        status = merge_folder_write(out, &adapter, 2, err);
        adapter_free(&adapter);
    }
    model_close(&model);
    return status;
}

// An adapter that changes nothing.
static int write_nothing(const char *base, const char *folder, struct error *err) {
    struct model model;
    struct adapter adapter;
    int id = 0;
    if (model_open(base, NULL, &model, err)) return -1;
    while (model.modules[id].form != MODULE_LINEAR) id++;
    int status = adapter_new(&model, &id, 1, 1, 1, 0, false, &adapter, err);
    if (status == 0) {
        status = peft_write(folder, &adapter, err);
        adapter_free(&adapter);
    }
    model_close(&model);
    return status;
}

static void check_logits(const char *family, const char *merged) {
    struct parity p;
    struct error err = {0};
    char nothing[500];
    struct parity_setup setup = {.threads = 2, .dtype = DTYPE_F32, .adapter = nothing};
    snprintf(nothing, sizeof nothing, "%s/nothing", test_folder());
    copy(fixture(family, "expected.safetensors"), test_path(merged, "expected.safetensors"));
    int status = write_nothing(merged, nothing, &err) || parity_of(merged, test_folder(), &setup, &p, &err);
    CHECK_MSG(status == 0, "%s: %s", family, err.text);
    if (status == 0)
        CHECK_MSG(p.logits <= 2e-5 && p.loss <= 2e-5, "%s: logits are off by %.2g, the loss by %.2g", family, p.logits,
                  p.loss);
}

static const struct {
    const char *family, *why;
} refused[] = {
    {"lora-ends-tied", "one matrix"},        {"lora-whole-tied", "one matrix"},
    {"lora-bias", "trained bias"},           {"lora-dora-head-bias", "trained bias"},
    {"lora-dora-head-tied", "one matrix"},   {"lora-biases", "trained bias"},
    {"lora-biases-gpt-oss", "trained bias"}, {"lora-biases-phimoe", "trained bias"},
    {"lora-bias-dora", "trained bias"},      {"llama-nf4", "is packed (NF4)"},
    {"llama-int8", "is packed (INT8)"},      {"llama-gptq4", "is packed (GPTQ-4"},
    {"llama-awq", "is packed (AWQ"},         {"llama-fp8-rows", "is packed (FP8"},
    {"gpt-oss-mxfp4", "is packed (MXFP4"},
};

static bool must_refuse(const char *family, const char **why) {
    *why = "is packed";
    for (size_t i = 0; i < COUNT_OF(refused); i++) {
        if (strcmp(refused[i].family, family) != 0) continue;
        *why = refused[i].why;
        return true;
    }
    return strstr(family, "-nf4") || strstr(family, "-fp4") || strstr(family, "-fp8") || strstr(family, "-gptq");
}

TEST(every_family_merged) {
    char **names, plain[500], merged[500];
    size_t count;
    int written = 0;
    struct error none = {0};
    snprintf(plain, sizeof plain, "%s/plain", test_folder());
    snprintf(merged, sizeof merged, "%s/merged", test_folder());
    CHECK(file_list(FAMILIES, &names, &count, &none) == 0);
    for (size_t i = 0; i < count; i++) {
        struct error err = {0};
        const char *why;
        if (!file_exists(fixture(names[i], "config.json"))) continue;
        widen(names[i], 1 + (int)(i % 3), plain);
        int status = merge(names[i], plain, merged, &err);
        bool refuse = must_refuse(names[i], &why);
        CHECK_MSG((status != 0) == refuse, "%s: %s", names[i], status ? err.text : "was merged");
        if (status)
            CHECK_MSG(err.code == STATUS_DATA && strstr(err.text, why), "%s: %s", names[i], err.text);
        else
            check_logits(names[i], merged), written++;
        CHECK(file_is_folder(merged) == (status == 0));
        file_remove_tree(plain, NULL), file_remove_tree(merged, NULL);
    }
    file_list_free(names, count);
    CHECK_MSG(written >= 45, "only %d", written);
}

// bf16 stays bf16, what is not adapted stays as it is, shards and their index too, and the small files come along.
TEST(files_beside_the_weights) {
    static const char *const files[] = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
                                        "generation_config.json"};
    char base[600], merged[600];
    struct error err = {0};
    struct safetensors before, after;
    snprintf(base, sizeof base, "%s/base", test_folder());
    snprintf(merged, sizeof merged, "%s/out", test_folder());
    CHECK(file_make_folders(base, &err) == 0);
    copy("tests/fixtures/families/llama/config.json", test_path(base, "config.json"));
    copy("tests/fixtures/families/llama/model.safetensors", test_path(base, "model.safetensors"));
    for (size_t i = 0; i < COUNT_OF(files); i++) CHECK(file_replace(test_path(base, files[i]), files[i], 9, &err) == 0);
    CHECK(file_replace(test_path(base, "pytorch_model.bin"), "x", 1, &err) == 0);
    CHECK_MSG(merge("llama", base, merged, &err) == 0, "%s", err.text);
    for (size_t i = 0; i < COUNT_OF(files); i++) CHECK_MSG(file_exists(test_path(merged, files[i])), "%s", files[i]);
    CHECK(!file_exists(test_path(merged, "pytorch_model.bin")));
    CHECK(safetensors_open(test_path(base, "model.safetensors"), &before, &err) == 0 &&
          safetensors_open(test_path(merged, "model.safetensors"), &after, &err) == 0);
    CHECK(before.data_start == after.data_start && memcmp(before.file.data, after.file.data, before.data_start) == 0);
    int changed = 0;
    for (size_t i = 0; i < before.n_entries; i++) {
        bool same = memcmp(before.entries[i].data, after.entries[i].data, (size_t)before.entries[i].bytes) == 0;
        bool linear = strstr(before.entries[i].name, "_proj.weight") != NULL;
        CHECK_MSG(same != linear, "%s", before.entries[i].name); // the adapter is on all of them
        changed += !same;
    }
    CHECK(changed >= 7);
    safetensors_close(&before), safetensors_close(&after);
    CHECK(merge("llama", base, merged, &err) != 0 && err.code == STATUS_CANTCREATE);
}

TEST(numbers_that_do_not_fit) {
    char base[600], merged[600];
    struct error err = {0};
    struct safetensors s;
    struct text bytes = {0};
    snprintf(base, sizeof base, "%s/nan", test_folder());
    snprintf(merged, sizeof merged, "%s/nan-out", test_folder());
    widen("llama", 1, base);
    CHECK(safetensors_open(test_path(base, "model.safetensors"), &s, &err) == 0);
    size_t at = (size_t)(safetensors_find(&s, "model.layers.1.mlp.up_proj.weight")->data - s.file.data);
    safetensors_close(&s);
    CHECK(file_read(test_path(base, "model.safetensors"), 1 << 24, &bytes, &err) == 0);
    memcpy(bytes.data + at + 36 * 4 * 3 + 8, "\0\0\xc0\x7f", 4);
    CHECK(file_replace(test_path(base, "model.safetensors"), bytes.data, bytes.length, &err) == 0);
    text_free(&bytes);
    CHECK(merge("llama", base, merged, &err) != 0 && err.code == STATUS_DATA);
    CHECK_MSG(strstr(err.text, "model.layers.1.mlp.up_proj.weight: row 3, column 2"), "%s", err.text);
    CHECK(!file_is_folder(merged));
}

TEST(whole_or_absent) {
    char base[600], merged[600];
    struct error err = {0};
    snprintf(base, sizeof base, "%s/shards", test_folder());
    snprintf(merged, sizeof merged, "%s/whole", test_folder());
    widen("qwen3-moe", 3, base);
    file_fail_at(0, 0, 0);
    CHECK_MSG(merge("qwen3-moe", base, merged, &err) == 0, "%s", err.text);
    uint64_t operations = file_fail_at(0, 0, 0);
    for (uint64_t k = 1; k <= operations; k++) {
        struct error first = {0}, second = {0};
        struct model model;
        CHECK(file_remove_tree(merged, &second) == 0);
        file_fail_at(k, ENOSPC, 0);
        int status = merge("qwen3-moe", base, merged, &first);
        file_fail_at(0, 0, 0);
        CHECK_MSG(status == 0 || first.code != 0, "operation %llu", (unsigned long long)k);
        if (file_is_folder(merged)) {
            CHECK_MSG(model_open(merged, NULL, &model, &second) == 0, "operation %llu: %s", (unsigned long long)k,
                      second.text);
            if (!second.code) model_close(&model);
        }
        CHECK(status != 0 || file_is_folder(merged));
    }
    char **names;
    size_t count;
    CHECK(file_list(test_folder(), &names, &count, &err) == 0);
    for (size_t i = 0; i < count; i++) CHECK_MSG(!strstr(names[i], ".tmp"), "leftover %s", names[i]);
    file_list_free(names, count);
}

TEST_MAIN(CASE(every_family_merged), CASE(files_beside_the_weights), CASE(numbers_that_do_not_fit),
          CASE(whole_or_absent))
