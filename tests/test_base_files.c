// Bases in several files: parts of a GGUF, shards of safetensors. The same model as in one file, or a sentence that
// says what is wrong: a part that is missing, or of another model, an index that leads elsewhere.
#include "model/gguf_write.h"
#include "model/model.h"
#include "tests/harness.h"

#include <stdio.h>
#include <string.h>

static const char QWEN[] = "tests/fixtures/families/qwen2", LLAMA[] = "tests/fixtures/families/llama3";

static const char *at(const char *format, ...) __attribute__((format(printf, 1, 2)));
static const char *at(const char *format, ...) {
    static char path[4][500];
    static int next;
    char name[200];
    va_list arguments;
    next = (next + 1) % 4;
    va_start(arguments, format);
    vsnprintf(name, sizeof name, format, arguments);
    va_end(arguments);
    snprintf(path[next], sizeof path[next], "%s/%s", test_folder(), name);
    return path[next];
}

// Every weight of two models is the same bytes.
static void same_model(const char *a_path, const char *b_path) {
    struct model a, b;
    struct error err = {0};
    CHECK_MSG(model_open(a_path, NULL, &a, &err) == 0, "%s", err.text);
    CHECK_MSG(model_open(b_path, NULL, &b, &err) == 0, "%s", err.text);
    if (err.code) return;
    CHECK_INT(a.n_weights, b.n_weights);
    CHECK(a.total_parameters == b.total_parameters && a.weight_bytes == b.weight_bytes);
    for (int i = 0; i < a.n_weights && i < b.n_weights; i++) {
        const struct weight *x = a.weights[i], *y = b.weights[i];
        CHECK_STR(x->name, y->name);
        CHECK(x->data != y->data && weight_bytes(x) == weight_bytes(y) && x->id == y->id && x->segment == y->segment);
        CHECK_MSG(memcmp(x->data, y->data, weight_bytes(x)) == 0, "%s", x->name);
    }
    CHECK_INT(a.n_modules, b.n_modules);
    model_close(&a);
    model_close(&b);
}

// Opening fails with this code and says so.
static void refused(const char *path, int code, const char *what) {
    struct model m;
    struct error err = {0};
    CHECK_MSG(model_open(path, NULL, &m, &err) != 0, "%s: opened, expected: %s", path, what);
    if (err.code == 0) model_close(&m);
    CHECK_INT(err.code, code);
    CHECK_MSG(strstr(err.text, what) != NULL, "'%s' does not say '%s'", err.text, what);
}

// --- parts of a GGUF

enum { PARTS = 3 };

// One part with tensors [first, last) of `whole`; the first part has the keys.
static void write_part(const struct gguf *whole, const char *path, size_t first, size_t last, int number,
                       uint32_t total, int twice) {
    struct gguf_writer w = {0};
    struct file_writer out;
    struct error err = {0};
    for (size_t i = 0; i < whole->n_kv && number == 0; i++) gguf_put_kv(&w, &whole->kv[i]);
    gguf_put_u32(&w, "split.no", (uint32_t)number);
    gguf_put_u32(&w, "split.count", PARTS);
    gguf_put_u32(&w, "split.tensors.count", total);
    for (size_t i = first; i < last; i++) {
        const struct gguf_tensor *t = &whole->tensors[i];
        gguf_put_tensor(&w, t->name, t->ggml_type, t->n_dims, t->ne, t->data);
    }
    if (twice >= 0) {
        const struct gguf_tensor *t = &whole->tensors[twice];
        gguf_put_tensor(&w, t->name, t->ggml_type, t->n_dims, t->ne, t->data);
    }
    file_remove(path, NULL);
    int status = file_create(path, &out, &err) || gguf_write(&w, &out, &err) || file_close(&out, &err);
    CHECK_MSG(status == 0, "%s", err.text);
    gguf_writer_free(&w);
}

static const char *part_path(const char *stem, int i) {
    return at("%s-%05d-of-%05d.gguf", stem, i + 1, PARTS);
}

// `family` cut into three; with `twice`, the last part repeats the first tensor and the count says so.
static void cut(const char *family, const char *stem, bool twice) {
    struct gguf whole;
    struct error err = {0};
    char path[500];
    snprintf(path, sizeof path, "%s/model.gguf", family);
    CHECK_MSG(gguf_open(path, &whole, &err) == 0, "%s", err.text);
    if (err.code) return;
    for (int i = 0; i < PARTS; i++) {
        size_t n = whole.n_tensors, first = n * (size_t)i / PARTS, last = n * (size_t)(i + 1) / PARTS;
        write_part(&whole, part_path(stem, i), first, last, i, (uint32_t)n + twice, twice && i == PARTS - 1 ? 0 : -1);
    }
    gguf_close(&whole);
}

static void replace(const char *with, const char *path) {
    struct text bytes;
    struct error err = {0};
    CHECK_MSG(file_read(with, 1 << 24, &bytes, &err) == 0, "%s", err.text);
    CHECK_MSG(file_replace(path, bytes.data, bytes.length, &err) == 0, "%s", err.text);
    text_free(&bytes);
}

TEST(parts_are_one_model) {
    cut(QWEN, "qwen", false);
    for (int i = 0; i < PARTS; i++) same_model("tests/fixtures/families/qwen2/model.gguf", part_path("qwen", i));
}

TEST(hostile_parts) {
    cut(QWEN, "one", false);
    replace(part_path("one", 0), at("renamed.gguf"));
    refused(at("renamed.gguf"), STATUS_DATA, "its name does not end in -00001-of-00003.gguf");
    replace(part_path("one", 2), part_path("one", 1));
    refused(part_path("one", 0), STATUS_DATA, "is part 3 of 3, expected 2 of 3");
    file_remove(part_path("one", 1), NULL);
    refused(part_path("one", 0), STATUS_NOINPUT, "one-00002-of-00003.gguf");
    refused(part_path("one", 2), STATUS_NOINPUT, "one-00002-of-00003.gguf");
    // The second part of another model, and a tensor that two parts have.
    cut(QWEN, "two", false);
    cut(LLAMA, "other", false);
    replace(part_path("other", 1), part_path("two", 1));
    refused(part_path("two", 0), STATUS_DATA, "split.tensors.count says");
    cut(QWEN, "three", true);
    refused(part_path("three", 0), STATUS_DATA, "is in ");
    // Read as hyper-parameters before the other parts are looked at.
    struct gguf whole;
    struct error err = {0};
    CHECK(gguf_open("tests/fixtures/families/llama3/model.gguf", &whole, &err) == 0);
    size_t rope = (size_t)(gguf_find_tensor(&whole, "rope_freqs.weight") - whole.tensors), n = whole.n_tensors;
    CHECK_INT(rope, 0); // it stands first, and the others come before it now
    write_part(&whole, part_path("rope", 0), 1, n - 2, 0, (uint32_t)n, -1);
    write_part(&whole, part_path("rope", 1), n - 2, n - 1, 1, (uint32_t)n, -1);
    write_part(&whole, part_path("rope", 2), n - 1, n, 2, (uint32_t)n, 0);
    refused(part_path("rope", 0), STATUS_DATA, "'rope_freqs.weight' is not in the first part");
    gguf_close(&whole);
}

// --- shards

struct shards {
    struct safetensors whole;
    char folder[400];
};

static void write_shard(const struct shards *s, const char *name, size_t first, size_t last, int twice) {
    struct safetensors_out out[64] = {{0}};
    struct file_writer file;
    struct error err = {0};
    size_t n = 0;
    char path[600];
    for (size_t i = first; i < last || twice >= 0; i++) {
        const struct safetensors_entry *e = &s->whole.entries[i < last ? i : (size_t)twice];
        out[n] = (struct safetensors_out){.name = e->name, .dtype = e->dtype, .n_dims = e->n_dims, .data = e->data};
        memcpy(out[n++].shape, e->shape, sizeof e->shape);
        if (i >= last) break;
    }
    snprintf(path, sizeof path, "%s/%s", s->folder, name);
    file_remove(path, NULL);
    int status = file_create(path, &file, &err) || safetensors_write(&file, out, n, &err) || file_close(&file, &err);
    CHECK_MSG(status == 0, "%s", err.text);
}

// The index: names of [0, half) are in `a`, of the rest in `b`; `odd` of them lies in `elsewhere`.
static void write_index(const struct shards *s, size_t half, const char *a, const char *b, int odd,
                        const char *elsewhere) {
    struct text text = {0};
    struct error err = {0};
    char path[600];
    text_add(&text, "{\"metadata\": {\"total_size\": 1}, \"weight_map\": {");
    for (size_t i = 0; i < s->whole.n_entries; i++)
        text_printf(&text, "%s\"%s\": \"%s\"", i ? ", " : "", s->whole.entries[i].name,
                    (int)i == odd ? elsewhere
                    : i < half    ? a
                                  : b);
    text_add(&text, "}}");
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", s->folder);
    CHECK(file_replace(path, text.data, text.length, &err) == 0);
    text_free(&text);
}

static bool shards_open(struct shards *s, const char *name) {
    struct error err = {0};
    char path[600], config[600];
    snprintf(s->folder, sizeof s->folder, "%s", at("%s", name));
    snprintf(path, sizeof path, "%s/model.safetensors", QWEN);
    CHECK_MSG(safetensors_open(path, &s->whole, &err) == 0, "%s", err.text);
    CHECK(file_make_folders(s->folder, &err) == 0);
    snprintf(path, sizeof path, "%s/config.json", QWEN);
    snprintf(config, sizeof config, "%s/config.json", s->folder);
    replace(path, config);
    return err.code == 0 && s->whole.n_entries > 8;
}

#define FIRST  "model-00001-of-00002.safetensors"
#define SECOND "model-00002-of-00002.safetensors"

TEST(shards_are_one_model) {
    struct shards s;
    CHECK(shards_open(&s, "shards"));
    size_t n = s.whole.n_entries;
    write_shard(&s, FIRST, 0, n / 2, -1);
    write_shard(&s, SECOND, n / 2, n, -1);
    write_index(&s, n / 2, FIRST, SECOND, -1, NULL);
    same_model(QWEN, s.folder);
    safetensors_close(&s.whole);
}

TEST(hostile_shards) {
    struct shards s;
    CHECK(shards_open(&s, "hostile"));
    size_t n = s.whole.n_entries, half = n / 2;
    char lost[600];
    snprintf(lost, sizeof lost, "%s/%s", s.folder, SECOND);
    static const char *const elsewhere[] = {"../model.safetensors", "/etc/passwd", "a/b.safetensors", "", "..", "."};
    write_shard(&s, FIRST, 0, half, -1);
    write_shard(&s, SECOND, half, n, -1);
    for (size_t i = 0; i < COUNT_OF(elsewhere); i++) {
        write_index(&s, half, FIRST, SECOND, 3, elsewhere[i]);
        refused(s.folder, STATUS_DATA, "which is no plain file name");
    }
    write_index(&s, half, FIRST, SECOND, 3, "absent.safetensors");
    refused(s.folder, STATUS_NOINPUT, "absent.safetensors");
    write_index(&s, half, FIRST, SECOND, 3, SECOND); // it is in the other one
    refused(s.folder, STATUS_DATA, "is not in " SECOND);
    write_index(&s, half, SECOND, FIRST, -1, NULL);
    refused(s.folder, STATUS_DATA, "is not in ");
    char index[600];
    snprintf(index, sizeof index, "%s/model.safetensors.index.json", s.folder);
    CHECK(file_replace(index, "{\"weight_map\": []}", 18, NULL) == 0);
    refused(s.folder, STATUS_DATA, "index.json: key 'weight_map'");
    write_index(&s, half, FIRST, SECOND, -1, NULL);
    write_shard(&s, SECOND, half, n, 0); // in both
    refused(s.folder, STATUS_DATA, "tensors, the files hold");
    write_shard(&s, SECOND, half, n - 1, -1); // in neither
    refused(s.folder, STATUS_DATA, "is not in " SECOND);
    CHECK(file_remove(lost, NULL) == 0);
    refused(s.folder, STATUS_NOINPUT, SECOND);
    CHECK(file_replace(lost, "{}", 2, NULL) == 0);
    refused(s.folder, STATUS_DATA, SECOND);
    safetensors_close(&s.whole);
}

TEST_MAIN(CASE(parts_are_one_model), CASE(hostile_parts), CASE(shards_are_one_model), CASE(hostile_shards))
