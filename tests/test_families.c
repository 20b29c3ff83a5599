// Every model family against transformers and PEFT: tiny random models, made by tests/oracle/families.py, each with an
// adapter, the logits, the loss and the adapter's gradients that were computed there. Here the same is computed from
// the same files, plainly, on the queued backend with recomputed layers, and in bf16; and the adapter is written again
// as PEFT wrote it.
#include "tests/harness.h"
#include "tests/parity.h"

// Far below what is promised (1e-4, 5e-4 with experts): these numbers are the same on every machine.
#define TOLERANCE          1e-5
#define TOLERANCE_GRADIENT 4e-5
#define TOLERANCE_BF16     0.05

static const char FOLDER[] = "tests/fixtures/families";

static const char *path_of(const char *family, const char *file) {
    static char path[4][400];
    static int next;
    next = (next + 1) % 4;
    snprintf(path[next], sizeof path[next], "%s/%s%s%s", FOLDER, family, file ? "/" : "", file ? file : "");
    return path[next];
}

static const char *scratch(void) {
    static char path[400];
    snprintf(path, sizeof path, "%s/gradients", test_folder());
    return path;
}

// Calls `check` for every family there is.
static void each_family(void (*check)(const char *family)) {
    char **names;
    size_t count, found = 0;
    struct error err = {0};
    CHECK_MSG(file_list(FOLDER, &names, &count, &err) == 0, "%s", err.text);
    if (err.code) return;
    for (size_t i = 0; i < count; i++) {
        if (!file_is_folder(path_of(names[i], NULL))) continue;
        check(names[i]);
        found++;
    }
    CHECK_MSG(found >= 55, "only %zu families", found);
    file_list_free(names, count);
}

static void compare(const char *family, const struct parity_setup *setup, double logits, double gradient) {
    struct parity p;
    struct error err = {0};
    int status = parity_of(path_of(family, NULL), scratch(), setup, &p, &err);
    CHECK_MSG(status == 0, "%s: %s", family, err.text);
    if (status) return;
    CHECK_MSG(p.logits <= logits, "%s: logits are off by %.2g of the largest", family, p.logits);
    CHECK_MSG(p.loss <= logits, "%s: the loss is off by %.2g", family, p.loss);
    CHECK_MSG(p.gradient <= gradient, "%s: the gradient of %s is off by %.2g of its largest", family, p.worst,
              p.gradient);
    CHECK(p.gradients > 0);
}

static void plain(const char *family) {
    compare(family, &(struct parity_setup){.threads = 2, .dtype = DTYPE_F32}, TOLERANCE, TOLERANCE_GRADIENT);
}
TEST(as_transformers_and_peft) {
    each_family(plain);
}

static void late(const char *family) {
    compare(family, &(struct parity_setup){.threads = 1, .late = true, .checkpoint = true, .dtype = DTYPE_F32},
            TOLERANCE, TOLERANCE_GRADIENT);
}
TEST(queued_and_recomputed) {
    each_family(late);
}

// In bf16 a token may go to another expert, and a number to the other side of a limit: such models are only asked to
// run.
static void brain(const char *family) {
    struct model model;
    struct error err = {0};
    if (model_open(path_of(family, NULL), NULL, &model, &err)) return; // said by the other cases
    bool experts = model.arch.moe.experts > 0 || model.arch.layer[0].clip_qkv > 0;
    model_close(&model);
    double bound = experts ? 10 : TOLERANCE_BF16;
    compare(family, &(struct parity_setup){.threads = 2, .dtype = DTYPE_BF16}, bound, experts ? 100 : 4 * bound);
}
TEST(in_bf16) {
    each_family(brain);
}

// Read and written again: the same tensors under the same names with the same numbers.
static void rewrite(const char *family) {
    struct model model;
    struct adapter adapter;
    struct safetensors theirs, ours;
    struct error err = {0};
    char path[500];
    if (model_open(path_of(family, NULL), NULL, &model, &err)) {
        CHECK_MSG(false, "%s: %s", family, err.text);
        return;
    }
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", scratch());
    int status = adapter_read(path_of(family, "adapter"), &model, &adapter, &err) ||
                 peft_write(scratch(), &adapter, &err) || safetensors_open(path, &ours, &err) ||
                 safetensors_open(path_of(family, "adapter/adapter_model.safetensors"), &theirs, &err);
    CHECK_MSG(status == 0, "%s: %s", family, err.text);
    if (status == 0) {
        CHECK_INT(ours.n_entries, theirs.n_entries);
        for (size_t i = 0; i < theirs.n_entries; i++) {
            const struct safetensors_entry *want = &theirs.entries[i], *got = safetensors_find(&ours, want->name);
            bool same = got && got->bytes == want->bytes && got->n_dims == 2 && got->shape[0] == want->shape[0] &&
                        memcmp(got->data, want->data, (size_t)want->bytes) == 0;
            CHECK_MSG(same, "%s: %s is %s", family, want->name, got ? "another" : "missing");
        }
        // And the written configuration selects what was written.
        struct adapter again;
        CHECK_MSG(adapter_read(scratch(), &model, &again, &err) == 0, "%s: %s", family, err.text);
        if (!err.code) CHECK_INT(again.n_modules, adapter.n_modules);
        adapter_free(&again);
        // As an adapter for llama.cpp and back.
        snprintf(path, sizeof path, "%s/adapter.gguf", scratch());
        CHECK_MSG(gguf_adapter_write(path, &adapter, &err) == 0 && gguf_adapter_read(path, &model, &again, &err) == 0,
                  "%s: %s", family, err.text);
        // Parameters come back as modules of their own where the family has such: one for each tensor of the file.
        int tensors = 0, back = 0;
        for (int k = 0; k < adapter.n_modules; k++) tensors += adapter.modules[k].module->n_tensors;
        for (int k = 0; k < again.n_modules && !err.code; k++) back += again.modules[k].module->n_tensors;
        if (!err.code) CHECK_INT(back, tensors);
        adapter_free(&again);
        safetensors_close(&ours);
        safetensors_close(&theirs);
    }
    adapter_free(&adapter);
    model_close(&model);
}
TEST(adapters_as_peft_writes_them) {
    each_family(rewrite);
}

TEST(unknown_families_are_refused_with_the_list) {
    char path[500], text[] = "{\"model_type\": \"gpt_neox\", \"hidden_size\": 8}";
    struct model model;
    struct error err = {0};
    snprintf(path, sizeof path, "%s/config.json", test_folder());
    CHECK(file_replace(path, text, strlen(text), &err) == 0);
    CHECK(model_open(path, NULL, &model, &err) != 0 && err.code == STATUS_DATA);
    CHECK_MSG(strstr(err.text, "gpt_neox") && strstr(err.text, "qwen3_moe") && strstr(err.text, "deepseek_v3"), "%s",
              err.text);
}

TEST_MAIN(CASE(as_transformers_and_peft), CASE(queued_and_recomputed), CASE(in_bf16),
          CASE(adapters_as_peft_writes_them), CASE(unknown_families_are_refused_with_the_list))
