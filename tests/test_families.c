// Every model family against transformers and PEFT: tiny random models, made by tests/oracle/families.py, each with an
// adapter, the logits, the loss and the adapter's gradients that were computed there. Here the same is computed from
// the same files, plainly, on the queued backend with recomputed layers, and in bf16; and the adapter is written again
// as PEFT wrote it. Where llama.cpp's converter made a GGUF of the model, all of this is done with that base, too.
#include "tests/family_list.h"

static void plain(const char *family, const char *base) {
    compare(family, &(struct parity_setup){.base = base, .threads = 2, .dtype = DTYPE_F32}, TOLERANCE,
            TOLERANCE_GRADIENT);
}
TEST(as_transformers_and_peft) {
    each_base(plain);
}

static void late(const char *family, const char *base) {
    struct parity_setup setup = {
        .base = base, .threads = 1, .device = DEVICE_LATE, .checkpoint = true, .dtype = DTYPE_F32};
    compare(family, &setup, TOLERANCE, TOLERANCE_GRADIENT);
}
TEST(queued_and_recomputed) {
    each_base(late);
}

// In bf16 a token may go to another expert, and a number to the other side of a limit: such models are only asked to
// run.
static void brain(const char *family, const char *base) {
    struct model model;
    struct error err = {0};
    if (model_open(path_of(family, base), NULL, &model, &err)) return; // said by the other cases
    bool experts = model.arch.moe.experts > 0 || model.arch.layer[0].clip_qkv > 0;
    model_close(&model);
    double bound = experts ? 10 : TOLERANCE_BF16;
    compare(family, &(struct parity_setup){.base = base, .threads = 2, .dtype = DTYPE_BF16}, bound,
            experts ? 100 : 4 * bound);
}
TEST(in_bf16) {
    each_base(brain);
}

// Read and written again: the same tensors under the same names with the same numbers.
static void rewrite(const char *family, const char *base) {
    struct model model;
    struct adapter adapter;
    struct safetensors theirs, ours;
    struct error err = {0};
    char path[500];
    if (model_open(path_of(family, base), NULL, &model, &err)) {
        CHECK_MSG(false, "%s: %s", family, err.text);
        return;
    }
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", scratch());
    int status = adapter_read(path_of(family, "adapter"), &model, &adapter, &err) ||
                 peft_write(scratch(), &adapter, &err) || safetensors_open(path, &ours, &err) ||
                 safetensors_open(path_of(family, "adapter/adapter_model.safetensors"), &theirs, &err);
    CHECK_MSG(status == 0, "%s: %s", family, err.text);
    if (status == 0) {
        size_t copies = 0; // which PEFT adds beside what is trained of embedding and head
        for (size_t i = 0; i < theirs.n_entries; i++) {
            const struct safetensors_entry *want = &theirs.entries[i], *got = safetensors_find(&ours, want->name);
            bool copy = (strstr(want->name, ".base_layer.weight") && !strstr(want->name, "experts")) ||
                        strstr(want->name, ".original_module.bias") || strstr(want->name, ".modules_to_save.bias");
            copies += copy;
            if (copy) continue;
            bool same = got && got->bytes == want->bytes && got->n_dims == want->n_dims &&
                        got->shape[0] == want->shape[0] && memcmp(got->data, want->data, (size_t)want->bytes) == 0;
            CHECK_MSG(same, "%s: %s is %s", family, want->name, got ? "another" : "missing");
        }
        CHECK_INT(ours.n_entries, theirs.n_entries - copies);
        // And the written configuration selects what was written.
        struct adapter again;
        CHECK_MSG(adapter_read(scratch(), &model, &again, &err) == 0, "%s: %s", family, err.text);
        if (!err.code) CHECK_INT(again.n_modules, adapter.n_modules);
        adapter_free(&again);
        // For llama.cpp, or refused by name.
        snprintf(path, sizeof path, "%s/adapter.gguf", scratch());
        bool fits = gguf_adapter_check(&adapter, &err) == 0;
        CHECK_MSG(fits || strstr(err.text, "llama.cpp"), "%s: %s", family, err.text);
        CHECK_MSG(fits || gguf_adapter_write(path, &adapter, &err) != 0, "%s: written all the same", family);
        safetensors_close(&ours);
        safetensors_close(&theirs);
    }
    adapter_free(&adapter);
    model_close(&model);
}
TEST(adapters_as_peft_writes_them) {
    each_base(rewrite);
}

// The rows of B in an adapter for llama.cpp stand as the rows of the base's tensors do. In memory they have the order
// of the base file, which the other cases prove: so of a GGUF both are the same bytes.
static void rows_as_in_the_base(const char *family, const char *path, const struct adapter *adapter) {
    struct gguf file;
    struct error err = {0};
    CHECK_MSG(gguf_open(path, &file, &err) == 0, "%s", err.text);
    for (int k = 0; k < adapter->n_modules && !err.code; k++) {
        const struct adapter_module *m = &adapter->modules[k];
        int64_t at = 0;
        for (int i = 0; i < m->module->n_tensors;) {
            const char *name = m->module->tensors[i].name;
            char b[200];
            snprintf(b, sizeof b, "%s.lora_b", name);
            const struct gguf_tensor *t = gguf_find_tensor(&file, b);
            CHECK_MSG(t && memcmp(t->data, m->b + at, (size_t)t->bytes) == 0, "%s: %s", family, b);
            if (!t) break;
            at += (int64_t)(t->bytes / sizeof(float));
            while (i < m->module->n_tensors && strcmp(m->module->tensors[i].name, name) == 0) i++;
        }
        CHECK(at == adapter_part_size(m, ADAPTER_B));
    }
    gguf_close(&file);
}

// Written for llama.cpp and read back: the same logits. It does not matter which container the base is in.
static void through_gguf(const char *family, const char *base) {
    struct model model;
    struct adapter adapter = {0}, again = {0};
    struct error err = {0};
    struct text other = {0}, own = {0};
    char path[500], folder_path[500];
    snprintf(path, sizeof path, "%s/adapter.gguf", test_folder());
    snprintf(folder_path, sizeof folder_path, "%s/from-folder.gguf", test_folder());
    if (model_open(path_of(family, base), NULL, &model, &err) ||
        adapter_read(path_of(family, "adapter"), &model, &adapter, &err)) {
        CHECK_MSG(false, "%s: %s", family, err.text);
        model_close(&model);
        return;
    }
    int ignored, tensors = 0, back = 0, status = gguf_adapter_write(path, &adapter, &err);
    if (strcmp(model.arch.family, "deepseek2") == 0) { // its graph multiplies by the projections as they are
        const char *first = gguf_adapter_ignored(&adapter, &ignored);
        CHECK_MSG(status && err.code == STATUS_DATA && first && strstr(err.text, first), "%s: %s", family, err.text);
        CHECK(ignored >= 3 && ignored < adapter.n_modules && !file_exists(path));
    } else if (status && strncmp(family, "lora-", 5) == 0) { // parts that the file has no place for
        CHECK_MSG(err.code == STATUS_DATA && strstr(err.text, "cannot hold"), "%s: %s", family, err.text);
        CHECK(!file_exists(path));
    } else {
        CHECK_MSG(status == 0 && gguf_adapter_read(path, &model, &again, &err) == 0, "%s: %s", family, err.text);
        // Parameters come back as modules of their own where the family has such: one for each tensor of the file.
        for (int k = 0; k < adapter.n_modules; k++) tensors += adapter.modules[k].module->n_tensors;
        for (int k = 0; k < again.n_modules; k++) back += again.modules[k].module->n_tensors;
        CHECK_INT(back, tensors);
        compare(family, &(struct parity_setup){.base = base, .adapter = path, .threads = 2, .dtype = DTYPE_F32},
                TOLERANCE, 0);
        if (base) rows_as_in_the_base(family, path, &adapter);
        if (base && file_exists(path_of(family, "config.json"))) { // came right before
            CHECK(file_read(path, 1 << 24, &own, &err) == 0 && file_read(folder_path, 1 << 24, &other, &err) == 0);
            CHECK_MSG(own.length == other.length && memcmp(own.data, other.data, own.length) == 0,
                      "%s: adapter.gguf is another one", family);
        }
        if (!base) CHECK(file_rename(path, folder_path, &err) == 0);
    }
    file_remove(path, NULL);
    text_free(&own), text_free(&other);
    adapter_free(&adapter), adapter_free(&again);
    model_close(&model);
}
TEST(adapters_through_llama_cpp_s_file) {
    each_base(through_gguf);
}

static bool seen[64];
static void mark(const char *family, const char *base) {
    struct model model;
    struct error err = {0};
    if (!base || model_open(path_of(family, base), NULL, &model, &err)) return;
    seen[model.family - family_table] = true;
    CHECK(model.ignored_tensors == 0);
    model_close(&model);
}
TEST(every_architecture_has_a_gguf) {
    each_base(mark);
    for (int i = 0; i < family_count; i++) CHECK_MSG(seen[i], "no fixture for %s", family_table[i].gguf_arch);
}

// Of models that also see, the eyes are left out and counted. Both layouts: the text below language_model.model and
// below model.language_model.
TEST(text_parts_of_multimodal_models) {
    static const struct {
        const char *family, *q, *file_q, *head;
    } cases[] = {{"gemma3-vision", "model.language_model.layers.1.self_attn.q_proj",
                  "language_model.model.layers.1.self_attn.q_proj.weight", "lm_head"},
                 {"mistral3-vision", "model.language_model.layers.1.self_attn.q_proj",
                  "model.language_model.layers.1.self_attn.q_proj.weight", "lm_head"},
                 {"llama4-vision", "language_model.model.layers.1.self_attn.q_proj",
                  "language_model.model.layers.1.self_attn.q_proj.weight", "language_model.lm_head"}};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct model model;
        struct safetensors file;
        struct error err = {0};
        uint64_t others = 0, bytes = 0;
        CHECK_MSG(model_open(path_of(cases[i].family, NULL), NULL, &model, &err) == 0, "%s", err.text);
        CHECK(safetensors_open(path_of(cases[i].family, "model.safetensors"), &file, &err) == 0);
        if (err.code) continue;
        for (size_t k = 0; k < file.n_entries; k++) {
            const char *name = file.entries[k].name;
            if (!strstr(name, "vision") && !strstr(name, "multi_modal")) continue;
            others++, bytes += file.entries[k].bytes;
        }
        CHECK_INT(model.ignored_tensors, others);
        CHECK(others > 10 && model.ignored_bytes == bytes);
        const struct module *q = model_find_module(&model, cases[i].q, strlen(cases[i].q));
        CHECK_MSG(q && strcmp(q->parts[0].w->name, cases[i].file_q) == 0, "%s", cases[i].family);
        CHECK(model_find_module(&model, cases[i].head, strlen(cases[i].head)));
        safetensors_close(&file);
        model_close(&model);
    }
}

// An adapter of rank 1 on every module whose name ends so.
static void adapter_on(const struct model *model, const char *ending, struct adapter *a) {
    struct error err = {0};
    CHECK_MSG(adapter_begin(model, model->n_modules, a, &err) == 0, "%s", err.text);
    for (int i = 0; i < model->n_modules; i++) {
        const struct module *m = &model->modules[i];
        size_t n = strlen(m->hf_name), k = strlen(ending);
        if (n < k || strcmp(m->hf_name + n - k, ending) != 0) continue;
        CHECK_MSG(adapter_add(a, m, 1, 2, &err) == 0, "%s", err.text);
        struct adapter_module *added = &a->modules[a->n_modules - 1];
        for (int64_t e = 0; e < m->experts * m->in; e++) added->a[e] = (float)test_random(1, (unsigned)e);
        for (int64_t e = 0; e < m->experts * m->out; e++) added->b[e] = (float)test_random(2, (unsigned)e);
    }
    a->r = 1, a->alpha = 2;
    CHECK(a->n_modules > 0);
}

// Puts `to` in place of `from` in a text file.
static void rename_in(const char *path, const char *from, const char *to) {
    struct text old = {0}, out = {0};
    struct error err = {0};
    CHECK_MSG(file_read(path, 1 << 20, &old, &err) == 0, "%s", err.text);
    const char *text = text_str(&old), *at = strstr(text, from);
    CHECK_MSG(at != NULL, "%s is not in %s", from, path);
    for (; at; text = at + strlen(from), at = strstr(text, from))
        text_printf(&out, "%.*s%s", (int)(at - text), text, to);
    text_add(&out, text);
    CHECK(file_replace(path, out.data, out.length, &err) == 0);
    text_free(&old), text_free(&out);
}

// Routers have the names of transformers 5; adapters made with older versions, where they were linears, load as well.
TEST(routers_by_both_names) {
    static const struct {
        const char *family, *name, *old;
    } cases[] = {{"mixtral", "mlp.gate", "block_sparse_moe.gate"},
                 {"phimoe", "mlp.router", "block_sparse_moe.gate"},
                 {"granitemoe", "block_sparse_moe.router", "block_sparse_moe.router.layer"}};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct model model;
        struct adapter made, again = {0};
        struct error err = {0};
        struct safetensors tensors;
        char folder[600], config[700], path[700], target[100], key[200];
        snprintf(folder, sizeof folder, "%s/router", test_folder());
        snprintf(config, sizeof config, "%s/adapter_config.json", folder);
        snprintf(path, sizeof path, "%s/adapter_model.safetensors", folder);
        CHECK(file_remove_tree(folder, &err) == 0 && file_make_folders(folder, &err) == 0);
        CHECK_MSG(model_open(path_of(cases[i].family, NULL), NULL, &model, &err) == 0, "%s", err.text);
        if (err.code) return;
        adapter_on(&model, cases[i].name, &made);
        CHECK_MSG(peft_write(folder, &made, &err) == 0, "%s", err.text);
        CHECK_MSG(safetensors_open(path, &tensors, &err) == 0, "%s", err.text);
        snprintf(key, sizeof key, "base_model.model.model.layers.0.%s.lora_A.weight", cases[i].name);
        CHECK_MSG(safetensors_find(&tensors, key) != NULL, "%s: no %s", cases[i].family, key);
        // The same file as an older version would have written it.
        struct safetensors_out out[16];
        char names[16][200];
        struct file_writer file;
        for (size_t k = 0; k < tensors.n_entries && k < COUNT_OF(out); k++) {
            const struct safetensors_entry *e = &tensors.entries[k];
            const char *at = strstr(e->name, cases[i].name);
            snprintf(names[k], sizeof names[k], "%.*s%s%s", (int)(at - e->name), e->name, cases[i].old,
                     at + strlen(cases[i].name));
            out[k] =
                (struct safetensors_out){.name = names[k], .dtype = e->dtype, .n_dims = e->n_dims, .data = e->data};
            memcpy(out[k].shape, e->shape, sizeof e->shape);
        }
        CHECK(file_remove(path, &err) == 0); // stays mapped
        CHECK_MSG(file_create(path, &file, &err) == 0 && safetensors_write(&file, out, tensors.n_entries, &err) == 0 &&
                      file_close(&file, &err) == 0,
                  "%s", err.text);
        snprintf(target, sizeof target, "%s.weight", cases[i].old);
        snprintf(key, sizeof key, "%s.weight", cases[i].name);
        rename_in(config, key, target);
        for (int module = 0; module < 2; module++) { // as a parameter, then as a linear
            if (module) rename_in(config, target, strrchr(cases[i].old, '.') + 1);
            if (module) rename_in(config, "\"target_modules\"", "\"ignored\"");
            if (module) rename_in(config, "\"target_parameters\"", "\"target_modules\"");
            if (module) rename_in(config, "\"ignored\": [],", "");
            CHECK_MSG(adapter_read(folder, &model, &again, &err) == 0, "%s: %s", cases[i].family, err.text);
            CHECK_INT(again.n_modules, made.n_modules);
            for (int k = 0; k < again.n_modules && !err.code; k++) {
                const struct adapter_module *x = &made.modules[k], *y = &again.modules[k];
                CHECK(x->module == y->module && memcmp(x->a, y->a, (size_t)x->module->in * 4) == 0 &&
                      memcmp(x->b, y->b, (size_t)x->module->out * 4) == 0);
            }
            adapter_free(&again);
        }
        safetensors_close(&tensors);
        adapter_free(&made);
        model_close(&model);
    }
}

// Where only some layers have experts, modules are listed by whole paths, of each expert one.
TEST(experts_of_some_layers) {
    struct model model;
    struct adapter made, again = {0};
    struct error err = {0};
    char folder[600];
    snprintf(folder, sizeof folder, "%s/experts", test_folder());
    CHECK(file_make_folders(folder, &err) == 0);
    CHECK_MSG(model_open(path_of("qwen2-moe", NULL), NULL, &model, &err) == 0, "%s", err.text);
    if (err.code) return;
    adapter_on(&model, "experts.%d.up_proj", &made);
    CHECK(made.n_modules < model.arch.layers);
    CHECK_MSG(peft_write(folder, &made, &err) == 0 && adapter_read(folder, &model, &again, &err) == 0, "%s", err.text);
    CHECK_INT(again.n_modules, made.n_modules);
    for (int k = 0; k < again.n_modules; k++) CHECK(again.modules[k].module == made.modules[k].module);
    adapter_free(&made), adapter_free(&again);
    model_close(&model);
}

// Experiments with PEFT 0.21.2 and transformers 5.23: adapters on these come back without an effect and without an
// error.
TEST(what_peft_leaves_out) {
    static const struct {
        const char *family, *ending;
        bool ignored;
    } cases[] = {{"qwen2-moe", "%d.down_proj", true},
                 {"qwen2-moe", "shared_expert.down_proj", false},
                 {"qwen2-moe", "down_proj", true},
                 {"qwen3-moe", "%d.down_proj", false},
                 {"mixtral", "w2", false},
                 {"phimoe", "w2", true},
                 {"phimoe", "o_proj", false},
                 {"deepseek-v3", "shared_experts.up_proj", true},
                 {"deepseek-v3", "mlp.up_proj", true},
                 {"deepseek-v3", "o_proj", false},
                 {"deepseek-v3", "experts.gate_up_proj", false}};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct model model;
        struct adapter a;
        struct error err = {0};
        int count;
        CHECK_MSG(model_open(path_of(cases[i].family, NULL), NULL, &model, &err) == 0, "%s", err.text);
        if (err.code) return;
        adapter_on(&model, cases[i].ending, &a);
        const char *first = peft_ignored(&a, &count);
        CHECK_MSG((first != NULL) == cases[i].ignored && (count > 0) == cases[i].ignored, "%s, %s", cases[i].family,
                  cases[i].ending);
        adapter_free(&a);
        model_close(&model);
    }
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
          CASE(adapters_as_peft_writes_them), CASE(adapters_through_llama_cpp_s_file),
          CASE(every_architecture_has_a_gguf), CASE(text_parts_of_multimodal_models), CASE(routers_by_both_names),
          CASE(experts_of_some_layers), CASE(what_peft_leaves_out), CASE(unknown_families_are_refused_with_the_list))
