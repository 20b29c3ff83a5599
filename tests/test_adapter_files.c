// PEFT, GGUF and MLX adapter files: orders and scales against hand-computed ones, byte-identical round trips, refusals
// by name, faults.
#include "adapters/adapter.h"
#include "data/json.h"
#include "model/gguf_write.h"
#include "model/safetensors.h"
#include "tests/adapter_fixture.h"
#include "tests/harness.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static struct fixture base;

static const char *at(const char *format, ...) {
    static char buffers[8][512];
    static int next;
    char *buffer = buffers[next++ % 8];
    int n = snprintf(buffer, 512, "%s/", test_folder());
    va_list args;
    va_start(args, format);
    vsnprintf(buffer + n, (size_t)(512 - n), format, args);
    va_end(args);
    return buffer;
}

static void fill(struct adapter *a, unsigned seed) {
    for (int i = 0; i < a->n_modules; i++) {
        struct adapter_module *m = &a->modules[i];
        unsigned stream = seed * 1000 + (unsigned)m->module->id;
        for (int64_t k = 0; k < m->r * m->module->in; k++) m->a[k] = (float)test_random(stream, (unsigned)k);
        for (int64_t k = 0; k < m->r * m->module->out; k++) m->b[k] = (float)test_random(stream + 500, (unsigned)k);
    }
}

enum shape { ALL, SOME_KINDS, SOME_LAYERS, IRREGULAR, RSLORA, PATTERNS, FRACTIONS, SHAPES };

static void make(enum shape shape, struct adapter *a) {
    int ids[FIXTURE_MODULES], n = 0;
    fixture_init(&base);
    for (int id = 0; id < FIXTURE_MODULES; id++) {
        int kind = id % FIXTURE_KINDS, layer = id / FIXTURE_KINDS;
        bool in = true;
        if (shape == SOME_KINDS || shape == RSLORA) in = kind == FIXTURE_Q || kind == FIXTURE_V || kind == FIXTURE_DOWN;
        if (shape == SOME_LAYERS) in = layer != 1 && kind <= FIXTURE_K;
        if (shape == IRREGULAR) in = id == 0 || id == 1 || id == FIXTURE_KINDS + FIXTURE_UP;
        if (in) ids[n++] = id;
    }
    struct error err = {0};
    float alpha = shape == FRACTIONS ? 2.7f : 10;
    CHECK_INT(adapter_new(&base.model, ids, n, 5, alpha, shape == ALL ? 0 : 0.05f, shape == RSLORA, a, &err), 0);
    if (shape == PATTERNS) {
        adapter_free(a);
        CHECK_INT(adapter_begin(&base.model, n, a, &err), 0);
        for (int i = 0; i < n; i++) {
            int id = ids[i], r = id == 3 ? 7 : id == 15 ? 1 : 5;
            CHECK_INT(adapter_add(a, &base.modules[id], r, id % 4 == 0 ? 3.5f : 10, &err), 0);
        }
        a->r = 5, a->alpha = 10, a->dropout = 0, a->base_name = "tiny model";
    }
    CHECK_STR(err.text, "");
    fill(a, 1 + (unsigned)shape);
}

static void read_whole(const char *path, struct text *out) {
    struct error err = {0};
    CHECK_MSG(file_read(path, 1 << 20, out, &err) == 0, "%s", err.text);
}

static bool same_bytes(const char *path_a, const char *path_b) {
    struct text a = {0}, b = {0};
    read_whole(path_a, &a);
    read_whole(path_b, &b);
    bool same = a.length == b.length && a.length > 0 && memcmp(a.data, b.data, a.length) == 0;
    text_free(&a);
    text_free(&b);
    return same;
}

// scale * B A of a module, element (row of the base file, column).
static double delta(const struct adapter *a, const struct adapter_module *m, int64_t row, int64_t col) {
    double sum = 0;
    for (int k = 0; k < m->r; k++) sum += (double)m->b[row * m->r + k] * (double)m->a[k * m->module->in + col];
    return sum * (double)adapter_scale(a, m);
}

static void check_same_effect(const struct adapter *a, const struct adapter *b) {
    CHECK_INT(a->n_modules, b->n_modules);
    for (int i = 0; i < a->n_modules && i < b->n_modules; i++) {
        const struct module *m = a->modules[i].module;
        CHECK(m == b->modules[i].module);
        for (int64_t row = 0; row < m->out; row++)
            for (int64_t col = 0; col < m->in; col++)
                CHECK_NEAR(delta(a, &a->modules[i], row, col), delta(b, &b->modules[i], row, col), 2e-6);
    }
}

TEST(peft_round_trip) {
    for (int shape = 0; shape < SHAPES; shape++) {
        struct adapter a, b = {0};
        struct error err = {0};
        make(shape, &a);
        CHECK_INT(peft_write(at("p%d", shape), &a, &err), 0);
        CHECK_MSG(peft_read(at("p%d", shape), &base.model, &b, &err) == 0, "shape %d: %s", shape, err.text);
        if (b.modules) {
            check_same_effect(&a, &b);
            CHECK(a.dropout == b.dropout && a.rslora == b.rslora && a.r == b.r && a.alpha == b.alpha);
            CHECK_STR(b.base_name, a.base_name);
            CHECK_INT(peft_write(at("q%d", shape), &b, &err), 0);
            CHECK(same_bytes(at("p%d/adapter_config.json", shape), at("q%d/adapter_config.json", shape)));
            CHECK(same_bytes(at("p%d/adapter_model.safetensors", shape), at("q%d/adapter_model.safetensors", shape)));
            CHECK_INT(peft_write(at("q%d", shape), &a, &err), 0); // over an existing one
        }
        CHECK_STR(err.text, "");
        adapter_free(&a);
        adapter_free(&b);
    }
}

TEST(gguf_round_trip) {
    for (int shape = 0; shape < SHAPES; shape++) {
        struct adapter a, b = {0};
        struct error err = {0};
        make(shape, &a);
        CHECK_INT(gguf_adapter_write(at("a%d.gguf", shape), &a, &err), 0);
        CHECK_MSG(gguf_adapter_read(at("a%d.gguf", shape), &base.model, &b, &err) == 0, "shape %d: %s", shape,
                  err.text);
        if (b.modules) {
            check_same_effect(&a, &b);
            CHECK_STR(b.base_name, a.base_name);
            CHECK_INT(gguf_adapter_write(at("b%d.gguf", shape), &b, &err), 0);
            CHECK(same_bytes(at("a%d.gguf", shape), at("b%d.gguf", shape)));
        }
        CHECK_STR(err.text, "");
        adapter_free(&a);
        adapter_free(&b);
    }
}

static const struct safetensors_entry *entry(const struct safetensors *file, const char *name) {
    const struct safetensors_entry *e = safetensors_find(file, name);
    CHECK_MSG(e != NULL, "no tensor %s", name);
    return e;
}
static float number(const uint8_t *data, int64_t index) {
    float value;
    memcpy(&value, data + index * 4, 4);
    return value;
}

// With D = 10 the rows of a head stand in a GGUF as Hugging Face's rows 0 5 1 6 2 7 3 8 4 9 (formats.md 2.8).
static const int hf_of_file[10] = {0, 5, 1, 6, 2, 7, 3, 8, 4, 9};

TEST(row_orders_by_hand) {
    struct adapter a;
    struct safetensors file;
    struct gguf gguf;
    struct error err = {0};
    make(ALL, &a);
    struct adapter_module *q = &a.modules[FIXTURE_Q], *v = &a.modules[FIXTURE_V];
    for (int64_t row = 0; row < 30; row++)
        for (int k = 0; k < 5; k++) q->b[row * 5 + k] = (float)(row * 100 + k);
    CHECK_INT(peft_write(at("hand"), &a, &err), 0);
    CHECK_INT(gguf_adapter_write(at("hand/adapter.gguf"), &a, &err), 0);
    CHECK_INT(safetensors_open(at("hand/adapter_model.safetensors"), &file, &err), 0);
    CHECK_INT(gguf_open(at("hand/adapter.gguf"), &gguf, &err), 0);
    CHECK_INT(file.n_entries, 2 * FIXTURE_MODULES);
    const struct safetensors_entry *qb = entry(&file, "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight");
    const struct safetensors_entry *qa = entry(&file, "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight");
    const struct safetensors_entry *vb = entry(&file, "base_model.model.model.layers.0.self_attn.v_proj.lora_B.weight");
    const struct gguf_tensor *gb = gguf_find_tensor(&gguf, "blk.0.attn_q.weight.lora_b");
    const struct gguf_tensor *ga = gguf_find_tensor(&gguf, "blk.0.attn_q.weight.lora_a");
    CHECK(qb && qa && vb && gb && ga);
    CHECK(qb->dtype == ST_F32 && qb->n_dims == 2 && qb->shape[0] == 30 && qb->shape[1] == 5);
    CHECK(qa->n_dims == 2 && qa->shape[0] == 5 && qa->shape[1] == 15);
    CHECK(ga->n_dims == 2 && ga->ne[0] == 15 && ga->ne[1] == 5 && gb->ne[0] == 5 && gb->ne[1] == 30);
    for (int head = 0; head < 3; head++) {
        for (int i = 0; i < 10; i++) {
            int file_row = head * 10 + i, hf_row = head * 10 + hf_of_file[i];
            for (int k = 0; k < 5; k++) {
                CHECK(number(qb->data, hf_row * 5 + k) == (float)(file_row * 100 + k));
                CHECK(number(gb->data, file_row * 5 + k) == (float)(file_row * 100 + k));
            }
        }
    }
    CHECK(memcmp(qa->data, q->a, 5 * 15 * 4) == 0 && memcmp(ga->data, q->a, 5 * 15 * 4) == 0);
    CHECK(memcmp(vb->data, v->b, 10 * 5 * 4) == 0);
    safetensors_close(&file);
    gguf_close(&gguf);
    adapter_free(&a);
}

TEST(gguf_alpha_gives_our_scale) {
    static const enum shape shapes[] = {SOME_KINDS, RSLORA};
    static const float expected[] = {10, 22.36068f}; // 10 sqrt(5)
    for (size_t i = 0; i < COUNT_OF(shapes); i++) {
        struct adapter a;
        struct gguf file;
        double alpha = 0;
        struct vocab_string text;
        struct error err = {0};
        make(shapes[i], &a);
        CHECK_INT(gguf_adapter_write(at("alpha.gguf"), &a, &err), 0);
        CHECK_INT(gguf_open(at("alpha.gguf"), &file, &err), 0);
        CHECK_INT(gguf_get_float(&file, "adapter.lora.alpha", &alpha, &err), 1);
        CHECK(gguf_find(&file, "adapter.lora.alpha")->type == GGUF_F32);
        CHECK_NEAR(alpha, (double)expected[i], 1e-5);
        CHECK_NEAR(alpha / 5, (double)adapter_scale(&a, &a.modules[0]), 1e-6); // what llama.cpp computes
        CHECK_INT(gguf_get_string(&file, "general.type", &text, &err), 1);
        CHECK(text.length == 7 && !memcmp(text.bytes, "adapter", 7));
        CHECK_INT(gguf_get_string(&file, "general.architecture", &text, &err), 1);
        CHECK(text.length == 5 && !memcmp(text.bytes, "llama", 5));
        CHECK_INT(gguf_get_string(&file, "adapter.type", &text, &err), 1);
        CHECK(text.length == 4 && !memcmp(text.bytes, "lora", 4));
        gguf_close(&file);
        adapter_free(&a);
    }
}

// Modules of other rank or alpha: one alpha for the file, B carries the rest.
TEST(gguf_folds_differing_scales) {
    struct adapter a;
    struct gguf file;
    struct error err = {0};
    make(PATTERNS, &a);
    CHECK_INT(gguf_adapter_write(at("fold.gguf"), &a, &err), 0);
    CHECK_INT(gguf_open(at("fold.gguf"), &file, &err), 0);
    for (int i = 0; i < a.n_modules; i++) {
        const struct adapter_module *m = &a.modules[i];
        char name[80];
        snprintf(name, sizeof name, "%s.lora_b", m->module->tensors[0].name);
        const struct gguf_tensor *b = gguf_find_tensor(&file, name);
        CHECK(b && b->ne[0] == m->r);
        if (!b) continue;
        // llama.cpp: alpha / r * B
        for (int64_t k = 0; k < m->r * m->module->out; k++)
            CHECK_NEAR(10.0 / m->r * (double)number(b->data, k), (double)(adapter_scale(&a, m) * m->b[k]), 1e-6);
    }
    gguf_close(&file);
    adapter_free(&a);
}

TEST(config_selects_exactly_the_modules) {
    static const struct {
        enum shape shape;
        const char *targets, *layers;
    } expected[] = {
        {ALL, "[\"down_proj\",\"gate_proj\",\"k_proj\",\"o_proj\",\"q_proj\",\"up_proj\",\"v_proj\"]", "null"},
        {SOME_KINDS, "[\"down_proj\",\"q_proj\",\"v_proj\"]", "null"},
        {SOME_LAYERS, "[\"k_proj\",\"q_proj\"]", "[0,2]"},
        {IRREGULAR,
         "[\"model.layers.0.self_attn.q_proj\",\"model.layers.0.self_attn.k_proj\",\"model.layers.1.mlp.up_proj\"]",
         "null"},
    };
    for (size_t i = 0; i < COUNT_OF(expected); i++) {
        struct adapter a;
        struct json_document doc;
        struct error err = {0};
        make(expected[i].shape, &a);
        CHECK_INT(peft_write(at("select"), &a, &err), 0);
        CHECK_INT(json_load(at("select/adapter_config.json"), 1 << 20, NULL, &doc, &err), 0);
        struct text text = {0};
        struct json_writer w = {.out = &text, .style = JSON_COMPACT};
        json_put_value(&w, json_get(doc.root, "target_modules"));
        CHECK_STR(text_str(&text), expected[i].targets);
        text_clear(&text);
        json_put_value(&w, json_get(doc.root, "layers_to_transform"));
        CHECK_STR(text_str(&text), expected[i].layers);
        // Sorted keys, and nothing that an old reader would stumble over.
        const char *last = "";
        size_t keys = 0;
        for (const struct json *v = json_child(doc.root); v; v = json_next(v), keys++) {
            CHECK(strcmp(last, json_key(v, NULL)) < 0);
            last = json_key(v, NULL);
        }
        CHECK_INT(keys, 19);
        CHECK(json_written_as_integer(json_get(doc.root, "lora_alpha"))); // Ollama reads no other
        text_free(&text);
        json_free(&doc);
        adapter_free(&a);
    }
}

TEST(mlx_is_transposed) {
    struct adapter a;
    struct safetensors file;
    struct json_document doc;
    struct error err = {0};
    make(PATTERNS, &a); // ranks 5, 7 and 1
    CHECK_INT(mlx_write(at("mlx"), &a, &err), 0);
    CHECK_INT(safetensors_open(at("mlx/adapters.safetensors"), &file, &err), 0);
    CHECK_INT(json_load(at("mlx/adapter_config.json"), 1 << 20, NULL, &doc, &err), 0);
    double scale = 0;
    int64_t rank = 0, layers = 0;
    const struct json *p = json_get(doc.root, "lora_parameters");
    CHECK(json_double(json_get(p, "scale"), &scale) && json_int(json_get(p, "rank"), &rank));
    CHECK(json_int(json_get(doc.root, "num_layers"), &layers) && layers == 3 && rank == 7);
    CHECK_INT(json_count(json_get(p, "keys")), 7);
    static const char *const names[2] = {"model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"};
    for (int module = 0; module < 2; module++) { // of alpha 3.5 and 10: the file's scale is the first one's
        const struct adapter_module *m = &a.modules[module];
        char name[80];
        int out = (int)m->module->out;
        snprintf(name, sizeof name, "%s.lora_a", names[module]);
        const struct safetensors_entry *la = entry(&file, name);
        snprintf(name, sizeof name, "%s.lora_b", names[module]);
        const struct safetensors_entry *lb = entry(&file, name);
        CHECK(la && la->shape[0] == 15 && la->shape[1] == 7 && lb && lb->shape[0] == 7 && lb->shape[1] == out);
        for (int i = 0; i < 15 && la; i++)
            for (int k = 0; k < 7; k++) CHECK(number(la->data, i * 7 + k) == (k < 5 ? m->a[k * 15 + i] : 0));
        for (int row = 0; row < out && lb; row++) { // file row -> Hugging Face's
            int hf = row / 10 * 10 + hf_of_file[row % 10];
            for (int k = 0; k < 7; k++) {
                double want = k < 5 ? (double)(adapter_scale(&a, m) * m->b[row * 5 + k]) : 0;
                CHECK_NEAR(scale * (double)number(lb->data, k * out + hf), want, 1e-6);
            }
        }
    }
    json_free(&doc);
    safetensors_close(&file);
    CHECK_INT(peft_write(at("occupied"), &a, NULL), 0);
    CHECK_INT(mlx_write(at("occupied"), &a, &err), -1); // the two have a file of the same name
    CHECK_INT(err.code, STATUS_CANTCREATE);
    err = (struct error){0};
    adapter_free(&a);
    CHECK_INT(adapter_read(at("mlx"), &base.model, &a, &err), -1);
    CHECK(strstr(err.text, "MLX") != NULL);
}

TEST(adapter_read_finds_the_kind) {
    struct adapter a, b = {0};
    struct error err = {0};
    make(SOME_KINDS, &a);
    CHECK_INT(peft_write(at("kind/peft"), &a, &err), 0);
    CHECK_INT(file_make_folders(at("kind/only_gguf"), &err), 0);
    CHECK_INT(gguf_adapter_write(at("kind/only_gguf/adapter.gguf"), &a, &err), 0);
    CHECK_INT(file_make_folders(at("kind/run/checkpoints/step-000001"), &err), 0);
    CHECK_STR(err.text, "");
    static const char *const good[] = {"kind/peft", "kind/only_gguf", "kind/only_gguf/adapter.gguf"};
    for (size_t i = 0; i < COUNT_OF(good); i++) {
        CHECK_MSG(adapter_read(at("%s", good[i]), &base.model, &b, &err) == 0, "%s: %s", good[i], err.text);
        CHECK_INT(b.n_modules, 9);
        adapter_free(&b);
    }
    static const struct {
        const char *path;
        int code;
        const char *says;
    } bad[] = {{"kind/run", STATUS_NOINPUT, "has not written its adapter yet"},
               {"kind", STATUS_NOINPUT, "neither"},
               {"nothing", STATUS_NOINPUT, "nothing"},
               {"kind/peft/adapter_model.safetensors", STATUS_DATA, "name the folder"}};
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        err = (struct error){0};
        CHECK_INT(adapter_read(at("%s", bad[i].path), &base.model, &b, &err), -1);
        CHECK_MSG(err.code == bad[i].code && strstr(err.text, bad[i].says), "%s: %d %s", bad[i].path, err.code,
                  err.text);
    }
    // Half floats are read as well.
    struct safetensors_out entries[2];
    uint16_t half[60];
    for (int i = 0; i < 60; i++) half[i] = i % 2 ? 0x3E00 : 0xC100; // 1.5 and -2.5
    for (int h = 0; h < 2; h++)
        entries[h] =
            (struct safetensors_out){.name = h ? "base_model.model.model.layers.0.self_attn.k_proj.lora_B.weight"
                                               : "base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight",
                                     .dtype = ST_F16,
                                     .n_dims = 2,
                                     .shape = {h ? 10 : 2, h ? 2 : 15},
                                     .data = half};
    struct file_writer w;
    err = (struct error){0};
    CHECK_INT(file_make_folders(at("half"), NULL), 0);
    CHECK_INT(file_create(at("half/adapter_model.safetensors"), &w, &err), 0);
    CHECK_INT(safetensors_write(&w, entries, 2, &err), 0);
    CHECK_INT(file_close(&w, &err), 0);
    const char config[] = "{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": 4, \"target_modules\": "
                          "[\"model.layers.0.self_attn.k_proj\"]}";
    CHECK_INT(file_replace(at("half/adapter_config.json"), config, sizeof config - 1, &err), 0);
    CHECK_INT(adapter_read(at("half"), &base.model, &b, &err), 0);
    CHECK_STR(err.text, "");
    if (b.n_modules == 1) CHECK(b.modules[0].a[1] == 1.5f && b.modules[0].b[2] == -2.5f);
    adapter_free(&b);
    adapter_free(&a);
}

// --- Refusals: a good PEFT folder with one thing changed

static void replace_in(struct text *text, const char *old, const char *new) {
    struct text out = {0};
    const char *found = strstr(text_str(text), old);
    CHECK_MSG(found != NULL, "'%s' is not in the configuration", old);
    if (!found) return;
    text_append(&out, text->data, (size_t)(found - text->data));
    text_add(&out, new);
    text_add(&out, found + strlen(old));
    text_free(text);
    *text = out;
}

static int read_changed(const char *old, const char *new, struct error *err) {
    struct text config = {0};
    struct mapped_file tensors;
    struct adapter a = {0};
    read_whole(at("good/adapter_config.json"), &config);
    replace_in(&config, old, new);
    CHECK_INT(file_map(at("good/adapter_model.safetensors"), &tensors, err), 0);
    int status = peft_parse("good", &config, tensors.data, tensors.size, &base.model, &a, err);
    file_unmap(&tensors);
    text_free(&config);
    adapter_free(&a);
    return status;
}

TEST(peft_refuses_by_name) {
    static const struct {
        const char *old, *new, *says; // says NULL = must be accepted
    } cases[] = {
        {"\"LORA\"", "\"IA3\"", "peft_type"},
        {"\"peft_type\"", "\"peft_typo\"", "peft_type"},
        {"\"use_dora\": false", "\"use_dora\": true", "use_dora is set, but tensor"},
        {"\"modules_to_save\": null", "\"modules_to_save\": [\"lm_head\"]", "modules_to_save"},
        {"\"modules_to_save\": null", "\"modules_to_save\": []", NULL},
        {"\"bias\": \"none\"", "\"bias\": \"some\"", "bias"},
        {"\"bias\": \"none\"", "\"bias\": \"all\"", NULL}, // of which this base has none
        {"\"bias\": \"none\"", "\"lora_bias\": true", "lora_bias"},
        {"\"bias\": \"none\"", "\"trainable_token_indices\": [1]", "trainable_token_indices"},
        {"\"bias\": \"none\"", "\"target_parameters\": [\"mlp.experts\"]", "target_parameters"},
        {"\"bias\": \"none\"", "\"alora_invocation_tokens\": [1, 2]", "alora_invocation_tokens"},
        {"\"bias\": \"none\"", "\"kasa_config\": {\"x\": 1}", "kasa_config"},
        {"\"bias\": \"none\"", "\"unheard_of\": 3", "unheard_of"},
        {"\"bias\": \"none\"", "\"unheard_of\": null", NULL},
        {"\"bias\": \"none\"", "\"peft_version\": \"0.21\"", NULL},
        {"\"fan_in_fan_out\": false", "\"fan_in_fan_out\": true", "fan_in_fan_out"},
        {"\"init_lora_weights\": true", "\"init_lora_weights\": \"pissa\"", "pissa"},
        {"\"init_lora_weights\": true", "\"init_lora_weights\": \"gaussian\"", NULL},
        {"\"r\": 5", "\"r\": 6", "shape [5, 15]"},
        {"\"r\": 5", "\"r\": 0", "r is 0"},
        {"\"r\": 5", "\"r\": -5", "r is -5"},
        {"\"r\": 5", "\"r\": 4294967301", "r is 4294967301"},
        {"\"r\": 5", "\"r\": 5.5", "'r'"},
        {"\"r\": 5", "\"r\": \"5\"", "'r'"},
        {"\"lora_alpha\": 10", "\"lora_alpha\": 0", "lora_alpha"},
        {"\"lora_alpha\": 10", "\"lora_alpha\": 1e300", "lora_alpha"},
        {"\"lora_alpha\": 10", "\"lora_alpha\": null", "lora_alpha"},
        {"\"lora_dropout\": 0.05", "\"lora_dropout\": 1", "lora_dropout"},
        {"\"down_proj\"", "\"up_proj\"", "up_proj"},        // selected without tensors, or tensors without selection
        {"\"q_proj\"", "\"q_proj\", \"o_proj\"", "o_proj"}, // selected, its tensors are missing
        {"\"q_proj\",", "", "q_proj"},                      // tensors that are not selected
        {"\"q_proj\"", "\"q_proj\", \"lm_head\"", NULL},    // a name that matches nothing
        {"\"q_proj\"", "5", "target_modules"},
        {"[\n    \"down_proj\",\n    \"q_proj\",\n    \"v_proj\"\n  ]", "\"all-linear\"", "missing"},
        {"[\n    \"down_proj\",\n    \"q_proj\",\n    \"v_proj\"\n  ]", "\".*\\\\.(q_proj|v_proj|down_proj)\"", NULL},
        {"[\n    \"down_proj\",\n    \"q_proj\",\n    \"v_proj\"\n  ]", "\".*\\\\.(q_proj|v_proj)\"", "down_proj"},
        {"[\n    \"down_proj\",\n    \"q_proj\",\n    \"v_proj\"\n  ]", "\"(\"", "regular expression"},
        {"[\n    \"down_proj\",\n    \"q_proj\",\n    \"v_proj\"\n  ]", "\"(.*)*(.*)*(.*)*[!?]\"", "too many steps"},
        {"[\n    \"down_proj\",\n    \"q_proj\",\n    \"v_proj\"\n  ]", "null", "target_modules"},
        {"[\n    \"down_proj\",\n    \"q_proj\",\n    \"v_proj\"\n  ]", "[]", "no linear"},
        {"\"target_modules\"", "\"auto_mapping\"", "target_modules is missing"},
        {"\"bias\": \"none\"", "\"exclude_modules\": [\"q_proj\"]", "q_proj"},
        {"\"bias\": \"none\"", "\"exclude_modules\": \".*v_proj\"", "v_proj"},
        {"\"layers_to_transform\": null", "\"layers_to_transform\": [0, 1]", "model.layers.2"},
        {"\"layers_to_transform\": null", "\"layers_to_transform\": [0, 1, 2]", NULL},
        {"\"layers_to_transform\": null", "\"layers_to_transform\": 1", "model.layers.0"},
        {"\"layers_to_transform\": null", "\"layers_to_transform\": \"x\"", "layers_to_transform"},
        {"\"layers_pattern\": null", "\"layers_pattern\": \"blocks\"", NULL}, // without layers it has no effect
        {"\"rank_pattern\": {}", "\"rank_pattern\": {\"q_proj\": 6}", "[6, 15]"},
        {"\"rank_pattern\": {}", "\"rank_pattern\": {\"q_proj\": 5, \".*\": 5}", NULL},
        {"\"rank_pattern\": {}", "\"rank_pattern\": {\"o_proj\": 6}", NULL}, // of a module without adapter
        {"\"rank_pattern\": {}", "\"rank_pattern\": {\"q_proj\": 0}", "q_proj"},
        {"\"rank_pattern\": {}", "\"rank_pattern\": {\"q_proj\": 5.5}", "q_proj"},
        {"\"rank_pattern\": {}", "\"rank_pattern\": [5]", "rank_pattern"},
        {"\"alpha_pattern\": {}", "\"alpha_pattern\": {\"(\": 5}", "regular expression"},
        {"\"alpha_pattern\": {}", "\"alpha_pattern\": {\"x\": \"5\"}", "alpha_pattern"},
        {"{", "[{", NULL}, // replaced below: no object
        {"\"r\": 5", "\"r\": 5, \"r\": 5", "r"},
    };
    struct adapter a;
    make(SOME_KINDS, &a);
    CHECK_INT(peft_write(at("good"), &a, NULL), 0);
    adapter_free(&a);
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct error err = {0};
        int status = read_changed(cases[i].old, cases[i].new, &err);
        if (strcmp(cases[i].new, "[{") == 0)
            CHECK(status != 0);
        else if (!cases[i].says)
            CHECK_MSG(status == 0, "'%s': refused: %s", cases[i].new, err.text);
        else
            CHECK_MSG(status && err.code == STATUS_DATA && strstr(err.text, cases[i].says), "'%s': %d %d %s",
                      cases[i].new, status, err.code, err.text);
    }
}

TEST(patterns_are_honoured) {
    struct adapter b = {0};
    struct error err = {0};
    struct text config = {0};
    struct mapped_file tensors;
    read_whole(at("good/adapter_config.json"), &config);
    replace_in(&config, "\"alpha_pattern\": {}",
               "\"alpha_pattern\": {\"layers.1.self_attn.q_proj\": 20, \"^model.layers.2.*v_proj\": 30, \"_proj\": 99, "
               "\".*q_proj\": 40, \"q_proj\": 50}");
    CHECK_INT(file_map(at("good/adapter_model.safetensors"), &tensors, &err), 0);
    CHECK_INT(peft_parse("good", &config, tensors.data, tensors.size, &base.model, &b, &err), 0);
    CHECK_STR(err.text, "");
    for (int i = 0; i < b.n_modules; i++) {
        const struct module *m = b.modules[i].module;
        float want = 10;
        if (m->kind == FIXTURE_Q)
            want = m->layer == 1 ? 20 : 40; // the first that matches wins; "_proj" is no component
        if (m->kind == FIXTURE_V && m->layer == 2) want = 30;
        CHECK_MSG(b.modules[i].alpha == want, "%s: alpha %g", m->hf_name, (double)b.modules[i].alpha);
    }
    adapter_free(&b);
    file_unmap(&tensors);
    text_free(&config);
}

// A PEFT folder of given tensors; every one is (5, 15) or (10, 5) as k_proj of layer 0 has it.
static int read_tensors_named(const char *const *names, const int64_t (*shapes)[2], size_t n, float value,
                              struct error *err) {
    struct safetensors_out entries[8];
    float data[400];
    for (size_t i = 0; i < COUNT_OF(data); i++) data[i] = 1;
    data[17] = value;
    for (size_t i = 0; i < n; i++)
        entries[i] = (struct safetensors_out){
            .name = names[i], .dtype = ST_F32, .n_dims = 2, .shape = {shapes[i][0], shapes[i][1]}, .data = data};
    struct file_writer w;
    struct mapped_file file;
    struct adapter a = {0};
    file_remove(at("named.safetensors"), NULL);
    CHECK_INT(file_create(at("named.safetensors"), &w, NULL), 0);
    CHECK_INT(safetensors_write(&w, entries, n, NULL), 0);
    CHECK_INT(file_close(&w, NULL), 0);
    CHECK_INT(file_map(at("named.safetensors"), &file, NULL), 0);
    struct text config = {0};
    text_add(&config, "{\"peft_type\": \"LORA\", \"r\": 5, \"lora_alpha\": 4, \"target_modules\": "
                      "[\"model.layers.0.self_attn.k_proj\"]}");
    int status = peft_parse("named", &config, file.data, file.size, &base.model, &a, err);
    adapter_free(&a);
    file_unmap(&file);
    text_free(&config);
    return status;
}

TEST(peft_tensors_are_refused_by_name) {
#define K  "base_model.model.model.layers.0.self_attn.k_proj"
#define KA K ".lora_A.weight"
#define KB K ".lora_B.weight"
    static const char *const good[2] = {KA, KB};
    static const int64_t shapes[3][2] = {{5, 15}, {10, 5}, {10, 5}};
    static const struct {
        const char *names[3];
        const char *says;
    } cases[] = {
        {{KA, KB}, NULL},
        {{KA}, "lora_A.weight without lora_B.weight"},
        {{KA, KB, K ".lora_magnitude_vector"}, "DoRA"},
        {{KA, KB, K ".lora_B.bias"}, "bias"},
        {{KA, KB, K ".bias"}, "bias"},
        {{KA, KB, "base_model.model.lm_head.weight"}, "modules_to_save"},
        {{KA, KB, "base_model.model.lm_head.lora_A.weight"}, "no linear of this name"},
        {{KA, KB, "base_model.model.model.layers.3.self_attn.k_proj.lora_A.weight"}, "no linear of this name"},
        {{KA, KB, "base_model.model.model.embed_tokens.lora_embedding_A"}, "embedding"},
        {{KA, KB, "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"},
         "trainable_token_indices does not list it"},
        {{KA, KB, "model.layers.0.self_attn.q_proj.lora_A.weight"}, "base_model.model."},
        {{KA, KB, K ".lora_A.default.weight"}, "no linear of this name"},
        {{KA, KB, "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"}, "q_proj"},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct error err = {0};
        size_t n = cases[i].names[2] ? 3 : cases[i].names[1] ? 2 : 1;
        int status = read_tensors_named(cases[i].names, shapes, n, 1, &err);
        if (cases[i].says)
            CHECK_MSG(status && err.code == STATUS_DATA && strstr(err.text, cases[i].says), "case %zu: %d %s", i,
                      err.code, err.text);
        else
            CHECK_MSG(status == 0, "%s", err.text);
    }
    static const int64_t wrong[][2][2] = {
        {{15, 5}, {10, 5}}, {{5, 15}, {5, 10}}, {{5, 15}, {30, 5}}, {{4, 15}, {10, 5}}};
    for (size_t i = 0; i < COUNT_OF(wrong); i++) {
        struct error err = {0};
        CHECK_INT(read_tensors_named(good, wrong[i], 2, 1, &err), -1);
        CHECK_MSG(strstr(err.text, "shape") != NULL, "%s", err.text);
    }
    static const float values[] = {NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < COUNT_OF(values); i++) {
        struct error err = {0};
        CHECK_INT(read_tensors_named(good, shapes, 2, values[i], &err), -1);
        CHECK_MSG(strstr(err.text, "[1, 2]") != NULL && strstr(err.text, "k_proj.lora_A"), "%s", err.text);
    }
}

// --- GGUF refusals

enum gguf_fault {
    GOOD,
    NO_TYPE,
    OTHER_TYPE,
    OTHER_ARCH,
    ALPHA_F64,
    ALPHA_ZERO,
    ALPHA_MISSING,
    ALORA,
    HALF,
    UNKNOWN_NAME,
    SUFFIX,
    NORM,
    BAD_SHAPE,
    RANKS_DIFFER,
    QUANT_TYPE,
    NOT_FINITE,
    EMPTY,
    DIMS_3,
    GGUF_FAULTS
};

static void write_faulty(const char *path, enum gguf_fault fault) {
    struct gguf_writer w = {0};
    static float data[512];
    for (int i = 0; i < 512; i++) data[i] = 0.5f;
    if (fault == NOT_FINITE) data[20] = NAN;
    if (fault != NO_TYPE) gguf_put_string(&w, "general.type", fault == OTHER_TYPE ? "model" : "adapter");
    gguf_put_string(&w, "general.architecture", fault == OTHER_ARCH ? "qwen2" : "llama");
    gguf_put_string(&w, "adapter.type", "lora");
    if (fault == ALPHA_F64)
        gguf_put_u32(&w, "adapter.lora.alpha", 16);
    else if (fault != ALPHA_MISSING)
        gguf_put_f32(&w, "adapter.lora.alpha", fault == ALPHA_ZERO ? 0 : 16);
    if (fault == ALORA) gguf_put_u32s(&w, "adapter.alora.invocation_tokens", (uint32_t[]){1, 2}, 2);
    int64_t a[3] = {15, 4, fault == DIMS_3 ? 2 : 1},
            b[2] = {fault == RANKS_DIFFER ? 5 : 4, fault == BAD_SHAPE ? 11 : 10};
    int type = fault == QUANT_TYPE ? 24 : 0; // I8
    if (fault != EMPTY)
        gguf_put_tensor(&w, fault == UNKNOWN_NAME ? "blk.9.attn_k.weight.lora_a" : "blk.0.attn_k.weight.lora_a", type,
                        fault == DIMS_3 ? 3 : 2, a, data);
    if (fault != EMPTY && fault != HALF)
        gguf_put_tensor(&w, fault == SUFFIX ? "blk.0.attn_k.weight.lora_c" : "blk.0.attn_k.weight.lora_b", 0, 2, b,
                        data);
    if (fault == NORM) gguf_put_tensor(&w, "blk.0.attn_norm.weight", 0, 1, a, data);
    struct file_writer out;
    file_remove(path, NULL);
    CHECK_INT(file_create(path, &out, NULL), 0);
    CHECK_INT(gguf_write(&w, &out, NULL), 0);
    CHECK_INT(file_close(&out, NULL), 0);
    gguf_writer_free(&w);
}

TEST(gguf_refuses_by_name) {
    static const char *const says[GGUF_FAULTS] = {[NO_TYPE] = "general.type",     [OTHER_TYPE] = "no adapter file",
                                                  [OTHER_ARCH] = "another base",  [ALPHA_F64] = "f32",
                                                  [ALORA] = "activated",          [HALF] = "without lora_b",
                                                  [UNKNOWN_NAME] = "blk.9",       [SUFFIX] = "lora_c",
                                                  [BAD_SHAPE] = "{4, 11}",        [RANKS_DIFFER] = "{5, 10}",
                                                  [QUANT_TYPE] = "F32, F16",      [NOT_FINITE] = "[1, 5]",
                                                  [EMPTY] = "no adapter tensors", [DIMS_3] = "attn_k"};
    fixture_init(&base);
    for (enum gguf_fault fault = GOOD; fault < GGUF_FAULTS; fault++) {
        struct adapter a = {0};
        struct error err = {0};
        write_faulty(at("fault.gguf"), fault);
        int status = gguf_adapter_read(at("fault.gguf"), &base.model, &a, &err);
        if (says[fault])
            CHECK_MSG(status && err.code == STATUS_DATA && strstr(err.text, says[fault]), "fault %d: %d %s", fault,
                      err.code, err.text);
        else
            CHECK_MSG(status == 0, "fault %d: %s", fault, err.text);
        // Without alpha llama.cpp's scale is 1.
        if (status == 0)
            CHECK_NEAR(adapter_scale(&a, &a.modules[0]), fault == ALPHA_ZERO || fault == ALPHA_MISSING ? 1 : 4, 0);
        adapter_free(&a);
    }
}

// --- Damage and faults

TEST(every_cut_is_refused) {
    struct adapter a, b;
    struct text config = {0}, tensors = {0}, gguf = {0};
    make(IRREGULAR, &a);
    CHECK_INT(peft_write(at("cut"), &a, NULL), 0);
    CHECK_INT(gguf_adapter_write(at("cut/adapter.gguf"), &a, NULL), 0);
    read_whole(at("cut/adapter_config.json"), &config);
    read_whole(at("cut/adapter_model.safetensors"), &tensors);
    read_whole(at("cut/adapter.gguf"), &gguf);
    size_t accepted = 0, whole = config.length;
    for (size_t n = 0; n < whole - 1; n++) { // the last byte is the newline
        config.length = n;
        accepted += peft_parse("cut", &config, (uint8_t *)tensors.data, tensors.length, &base.model, &b, NULL) == 0;
    }
    config.length = whole;
    for (size_t n = 0; n < tensors.length; n++)
        accepted += peft_parse("cut", &config, (uint8_t *)tensors.data, n, &base.model, &b, NULL) == 0;
    for (size_t n = 0; n < gguf.length - 32; n++) // the end may be padding
        accepted += gguf_adapter_parse("cut", (uint8_t *)gguf.data, n, &base.model, &b, NULL) == 0;
    CHECK_INT(accepted, 0);
    text_free(&config);
    text_free(&tensors);
    text_free(&gguf);
    adapter_free(&a);
}

static int write_all(const char *folder, const struct adapter *a, struct error *err) {
    char *gguf = path_join(folder, "adapter.gguf"), *mlx = path_join(folder, "mlx");
    int status = gguf && mlx ? 0 : error_memory(err, "a path", 0);
    if (status == 0) status = peft_write(folder, a, err);
    if (status == 0) status = gguf_adapter_write(gguf, a, err);
    if (status == 0) status = mlx_write(mlx, a, err);
    mem_free(gguf);
    mem_free(mlx);
    return status;
}

static size_t count_files(const char *folder) {
    char **names;
    size_t count = 0;
    if (file_list(folder, &names, &count, NULL) == 0) file_list_free(names, count);
    return count;
}

// A failing write leaves each old file whole, or the new one in its place, and no leftovers.
TEST(failing_writes_leave_whole_files) {
    struct adapter a, b, c;
    make(IRREGULAR, &a);
    make(IRREGULAR, &b);
    fill(&b, 99);
    char folder[512];
    snprintf(folder, sizeof folder, "%s", at("faults"));
    CHECK_INT(write_all(folder, &a, NULL), 0);
    for (int forever = 0; forever <= 1; forever++) {
        for (uint64_t k = 1;; k++) {
            struct error err = {0};
            file_fail_at(k, k % 2 ? EIO : ENOSPC, forever);
            int status = write_all(folder, &b, &err);
            uint64_t calls = file_fail_at(0, 0, 0);
            CHECK_MSG(status == 0 || err.code, "operation %llu: no reason", (unsigned long long)k);
            if (!forever && k <= calls && !status)
                CHECK_MSG(false, "operation %llu may fail unnoticed", (unsigned long long)k);
            CHECK_INT(peft_read(folder, &base.model, &c, &err), 0);
            adapter_free(&c);
            CHECK_INT(gguf_adapter_read(at("faults/adapter.gguf"), &base.model, &c, NULL), 0);
            adapter_free(&c);
            if (!forever) CHECK_INT(count_files(folder), 4);
            if (k > calls) break;
        }
    }
    CHECK_INT(write_all(folder, &b, NULL), 0);
    CHECK_INT(count_files(folder), 4);
    adapter_free(&a);
    adapter_free(&b);
}

TEST(failing_allocations) {
    struct adapter a, b;
    char folder[512], gguf[512];
    snprintf(folder, sizeof folder, "%s", at("memory"));
    snprintf(gguf, sizeof gguf, "%s", at("memory/adapter.gguf"));
    make(IRREGULAR, &a);
    CHECK_INT(write_all(folder, &a, NULL), 0);
    for (int forever = 0; forever <= 1; forever++) {
        for (uint64_t k = 1;; k++) {
            struct error err = {0};
            mem_fail_at(k, forever);
            int status = write_all(folder, &a, &err);
            if (status == 0 && (status = adapter_read(folder, &base.model, &b, &err)) == 0) adapter_free(&b);
            if (status == 0 && (status = adapter_read(gguf, &base.model, &b, &err)) == 0) adapter_free(&b);
            uint64_t calls = mem_fail_at(0, 0);
            if (status)
                CHECK_MSG(err.code == STATUS_MEMORY, "allocation %llu: %d %s", (unsigned long long)k, err.code,
                          err.text);
            if (k > calls) break;
        }
    }
    CHECK_INT(count_files(folder), 4);
    adapter_free(&a);
}

TEST_MAIN(CASE(peft_round_trip), CASE(gguf_round_trip), CASE(row_orders_by_hand), CASE(gguf_alpha_gives_our_scale),
          CASE(gguf_folds_differing_scales), CASE(config_selects_exactly_the_modules), CASE(mlx_is_transposed),
          CASE(adapter_read_finds_the_kind), CASE(peft_refuses_by_name), CASE(patterns_are_honoured),
          CASE(peft_tensors_are_refused_by_name), CASE(gguf_refuses_by_name), CASE(every_cut_is_refused),
          CASE(failing_writes_leave_whole_files), CASE(failing_allocations))
