// A base in parts, as llama.cpp splits large ones: quantised and merged it is one file, the same as of the whole base.
#include "adapters/merge.h"
#include "kernels/cpu/cpu.h"
#include "model/gguf_export.h"
#include "tests/harness.h"
#include "tests/tiny.h"

#include <stdio.h>
#include <string.h>

static const char *at(const char *name) {
    static char path[4][600];
    static int next;
    next = (next + 1) % 4;
    snprintf(path[next], sizeof path[next], "%s/%s", test_folder(), name);
    return path[next];
}

static void write_part(const struct gguf *whole, int no, int count, const char *path) {
    struct gguf_writer w = {0};
    struct file_writer out;
    struct error err = {0};
    for (size_t i = 0; i < whole->n_kv && no == 0; i++) gguf_put_kv(&w, &whole->kv[i]);
    gguf_put_u32(&w, "split.no", (uint32_t)no);
    gguf_put_u32(&w, "split.count", (uint32_t)count);
    gguf_put_i32(&w, "split.tensors.count", (int32_t)whole->n_tensors);
    size_t from = whole->n_tensors * (size_t)no / (size_t)count,
           to = whole->n_tensors * (size_t)(no + 1) / (size_t)count;
    for (size_t i = from; i < to; i++) {
        const struct gguf_tensor *t = &whole->tensors[i];
        gguf_put_tensor(&w, t->name, t->ggml_type, t->n_dims, t->ne, t->data);
    }
    CHECK_MSG(file_create(path, &out, &err) == 0 && gguf_write(&w, &out, &err) == 0 && file_close(&out, &err) == 0,
              "%s", err.text);
    gguf_writer_free(&w);
}

static const char *first_part(void) {
    return at("base-00001-of-00003.gguf");
}

static bool make_bases(void) {
    if (file_exists(first_part())) return true;
    struct gguf whole;
    struct error err = {0};
    CHECK_MSG(tiny_write(at("base.gguf"), &tiny_default, &err) == 0 && gguf_open(at("base.gguf"), &whole, &err) == 0,
              "%s", err.text);
    if (test_failed()) return false;
    for (int no = 0; no < 3; no++) {
        char name[64];
        snprintf(name, sizeof name, "base-%05d-of-00003.gguf", no + 1);
        file_remove(at(name), &err);
        write_part(&whole, no, 3, at(name));
    }
    gguf_close(&whole);
    return !test_failed();
}

static void same_files(const char *a, const char *b) {
    struct text x = {0}, y = {0};
    struct error err = {0};
    CHECK_MSG(file_read(a, 1 << 26, &x, &err) == 0 && file_read(b, 1 << 26, &y, &err) == 0, "%s", err.text);
    CHECK_INT(x.length, y.length);
    CHECK(x.length == y.length && memcmp(x.data, y.data, x.length) == 0);
    text_free(&x), text_free(&y);
}

static void quantise(const char *base, const char *out) {
    struct model model;
    struct gguf_export e;
    struct file_writer file;
    struct error err = {0};
    struct encode_work work = {.threads = threads_open(2, &err)};
    int status = model_open(base, NULL, &model, &err) ||
                 gguf_export_open(&model, gguf_packing_find("q8_0"), false, &work, &e, &err) ||
                 file_create(out, &file, &err) || gguf_export_write(&e, &file, &err) || file_close(&file, &err);
    CHECK_MSG(status == 0, "%s", err.text);
    gguf_export_close(&e);
    model_close(&model);
    threads_close(work.threads);
}

TEST(quantised) {
    if (!make_bases()) return;
    quantise(at("base.gguf"), at("whole-q8.gguf"));
    quantise(first_part(), at("parts-q8.gguf"));
    same_files(at("whole-q8.gguf"), at("parts-q8.gguf"));
}

static void merge(const char *base, const char *out) {
    struct model model;
    struct adapter adapter;
    struct error err = {0};
    int ids[64], n = 0;
    CHECK_MSG(model_open(base, NULL, &model, &err) == 0, "%s", err.text);
    for (int i = 0; i < model.n_modules && n < 64; i++)
        if (model.modules[i].layer >= 0) ids[n++] = i;
    CHECK_MSG(adapter_new(&model, ids, n, 2, 4, 0, false, &adapter, &err) == 0, "%s", err.text);
    for (int i = 0; i < adapter.n_modules; i++) {
        struct adapter_module *m = &adapter.modules[i];
        for (int64_t k = 0; k < adapter_part_size(m, ADAPTER_A); k++)
            m->a[k] = (float)test_random(1, (unsigned)(k + i));
        for (int64_t k = 0; k < adapter_part_size(m, ADAPTER_B); k++)
            m->b[k] = (float)test_random(2, (unsigned)(k + i));
    }
    CHECK_MSG(merge_write(out, &adapter, QUANT_F16, 2, &err) == 0, "%s", err.text);
    adapter_free(&adapter);
    model_close(&model);
}

TEST(merged) {
    if (!make_bases()) return;
    merge(at("base.gguf"), at("whole-merged.gguf"));
    merge(first_part(), at("parts-merged.gguf"));
    same_files(at("whole-merged.gguf"), at("parts-merged.gguf"));
}

TEST_MAIN(CASE(quantised), CASE(merged))
