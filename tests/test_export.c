// What an adapter is exported to beside its own files: a merged GGUF, and the model card.
#include "adapters/card.h"
#include "adapters/merge.h"
#include "model/gguf_write.h"
#include "tests/harness.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *at(const char *name) {
    static char buffers[4][512];
    static int next;
    char *buffer = buffers[next++ % 4];
    snprintf(buffer, 512, "%s/%s", test_folder(), name);
    return buffer;
}

// A base of two linears that can be adapted, one packed (6 x 64, Q4_1), one F16 (5 x 96), and some bystanders.
struct tiny {
    struct gguf file;
    struct base base;
    struct model model;
    struct module modules[2];
    struct weight weights[2];
};

static void write_base(const char *path) {
    static float values[640];
    static uint8_t packed[2][2048], bystander[18 * 4];
    struct gguf_writer w = {0};
    const struct vocab_string words[] = {{"a", 1}, {"b\0c", 3}};
    for (int i = 0; i < 640; i++) values[i] = (float)test_random(1, (unsigned)i);
    for (int i = 0; i < 72; i++) bystander[i] = (uint8_t)(i * 37);
    for (int row = 0; row < 6; row++)
        quant_format(QUANT_Q4_1)
            ->encode(values + row * 64, packed[0] + row * (int)quant_row_bytes(quant_format(QUANT_Q4_1), 64), 64);
    quant_format(QUANT_F16)->encode(values + 100, packed[1], 5 * 96);
    gguf_put_string(&w, "general.architecture", "llama");
    gguf_put_u32(&w, "general.alignment", 32);
    gguf_put_strings(&w, "tokenizer.ggml.tokens", words, 2);
    gguf_put_f32s(&w, "floats", (float[]){1, 2.5f}, 2);
    gguf_put_bool(&w, "flag", true);
    gguf_put_u32(&w, "general.file_type", 3);
    gguf_put_tensor(&w, "output_norm.weight", 0, 1, (int64_t[]){7}, values);
    gguf_put_tensor(&w, "blk.0.attn_k.weight", quant_format(QUANT_Q4_1)->ggml_type, 2, (int64_t[]){64, 6}, packed[0]);
    gguf_put_tensor(&w, "odd.weight", 20, 2, (int64_t[]){32, 4}, bystander); // IQ4_NL, which is only copied
    gguf_put_tensor(&w, "blk.0.ffn_down.weight", quant_format(QUANT_F16)->ggml_type, 2, (int64_t[]){96, 5}, packed[1]);
    struct file_writer out;
    file_remove(path, NULL);
    CHECK_INT(file_create(path, &out, NULL), 0);
    CHECK_INT(gguf_write(&w, &out, NULL), 0);
    CHECK_INT(file_close(&out, NULL), 0);
    gguf_writer_free(&w);
}

static void open_tiny(struct tiny *t, struct adapter *a) {
    static const char *const names[2] = {"blk.0.attn_k.weight", "blk.0.ffn_down.weight"};
    static const char *const hf[2] = {"model.layers.0.self_attn.k_proj", "model.layers.0.mlp.down_proj"};
    struct error err = {0};
    write_base(at("base.gguf"));
    *t = (struct tiny){.model = {.path = at("base.gguf"), .name = "tiny", .n_modules = 2}};
    CHECK_MSG(gguf_open(at("base.gguf"), &t->file, &err) == 0, "%s", err.text);
    t->base = (struct base){.kind = BASE_GGUF, .parts = &t->file, .n_parts = 1};
    t->model.base = &t->base;
    t->model.modules = t->modules;
    t->model.arch.family = "llama";
    t->model.arch.layers = 1;
    CHECK_INT(adapter_begin(&t->model, 2, a, &err), 0);
    for (int i = 0; i < 2; i++) {
        const struct gguf_tensor *g = gguf_find_tensor(&t->file, names[i]);
        t->weights[i] = (struct weight){.format = quant_by_ggml_type(g->ggml_type),
                                        .rows = g->ne[1],
                                        .cols = g->ne[0],
                                        .data = g->data,
                                        .name = g->name};
        t->modules[i] = (struct module){.id = i,
                                        .hf_name = hf[i],
                                        .in = g->ne[0],
                                        .out = g->ne[1],
                                        .experts = 1,
                                        .n_parts = 1,
                                        .n_tensors = 1,
                                        .parts = {{.w = &t->weights[i], .rows = g->ne[1], .hf_step = 1}},
                                        .tensors = {{.name = names[i], .rows = g->ne[1], .hf_step = 1}}};
        CHECK_INT(adapter_add(a, &t->modules[i], 3 + i, 8, &err), 0);
        for (int64_t k = 0; k < a->modules[i].r * g->ne[0]; k++)
            a->modules[i].a[k] = (float)test_random(2, (unsigned)k);
        for (int64_t k = 0; k < a->modules[i].r * g->ne[1]; k++)
            a->modules[i].b[k] = (float)test_random(3, (unsigned)k);
    }
    a->r = 3, a->alpha = 8;
    CHECK_STR(err.text, "");
}

static void close_tiny(struct tiny *t, struct adapter *a) {
    adapter_free(a);
    gguf_close(&t->file);
}

// The merged tensor against W + (alpha / r) B A in double.
static void check_module(const struct adapter_module *m, const struct gguf_tensor *t, enum quant type) {
    const struct quant_format *f = quant_format(type);
    float base[96], got[96];
    CHECK(t && t->ggml_type == f->ggml_type && t->ne[0] == m->module->in && t->ne[1] == m->module->out);
    if (!t) return;
    for (int64_t row = 0; row < m->module->out; row++) {
        double largest = 0, want[96];
        const struct weight *w = m->module->parts[0].w;
        w->format->decode(w->data + (size_t)row * quant_row_bytes(w->format, w->cols), base, w->cols);
        f->decode(t->data + (size_t)row * quant_row_bytes(f, w->cols), got, w->cols);
        for (int64_t i = 0; i < w->cols; i++) {
            want[i] = (double)base[i];
            for (int k = 0; k < m->r; k++)
                want[i] += 8.0 / m->r * (double)m->b[row * m->r + k] * (double)m->a[k * w->cols + i];
            largest = fmax(largest, fabs(want[i]));
        }
        double bound = type == QUANT_F32    ? 1e-6
                       : type == QUANT_F16  ? 0x1p-11
                       : type == QUANT_BF16 ? 0x1p-8
                                            : 0.51 / 127;
        for (int64_t i = 0; i < w->cols; i++) CHECK_NEAR((double)got[i], want[i], bound * largest + 1e-6);
    }
}

TEST(merged_file) {
    static const enum quant types[] = {QUANT_F16, QUANT_F32, QUANT_BF16, QUANT_Q8_0};
    struct tiny t;
    struct adapter a;
    open_tiny(&t, &a);
    for (size_t i = 0; i < COUNT_OF(types); i++) {
        struct gguf merged;
        struct error err = {0};
        file_remove(at("merged.gguf"), NULL);
        CHECK_MSG(merge_write(at("merged.gguf"), &a, types[i], 1, &err) == 0, "%s", err.text);
        CHECK_MSG(gguf_open(at("merged.gguf"), &merged, &err) == 0, "%s", err.text);
        CHECK_INT(merged.n_kv, t.file.n_kv - 1); // without general.alignment
        for (size_t k = 0, j = 0; k < t.file.n_kv; k++) {
            const struct gguf_kv *x = &t.file.kv[k], *y = &merged.kv[j];
            if (strcmp(x->key, "general.alignment") == 0) continue;
            CHECK_STR(y->key, x->key);
            if (strcmp(x->key, "general.file_type") == 0) { // says what the linears are now
                static const uint32_t numbers[] = {1, 0, 32, 7};
                CHECK(y->type == x->type && memcmp(y->data, &numbers[i], 4) == 0);
                j++;
                continue;
            }
            CHECK(x->type == y->type && x->element == y->element && x->count == y->count && x->bytes == y->bytes &&
                  !memcmp(x->data, y->data, (size_t)x->bytes));
            j++;
        }
        CHECK_INT(merged.n_tensors, 4);
        for (size_t k = 0; k < 4; k++) {
            const struct gguf_tensor *x = &t.file.tensors[k], *y = &merged.tensors[k];
            CHECK_STR(y->name, x->name);
            CHECK(x->n_dims == y->n_dims && memcmp(x->ne, y->ne, sizeof x->ne) == 0);
            if (k == 1 || k == 3)
                check_module(&a.modules[k / 2], y, types[i]);
            else
                CHECK(x->ggml_type == y->ggml_type && x->bytes == y->bytes &&
                      !memcmp(x->data, y->data, (size_t)x->bytes));
        }
        gguf_close(&merged);
    }
    close_tiny(&t, &a);
}

TEST(merge_refusals) {
    struct tiny t;
    struct adapter a;
    struct error err = {0};
    open_tiny(&t, &a);
    CHECK_INT(file_replace(at("there.gguf"), "x", 1, NULL), 0);
    CHECK_INT(merge_write(at("there.gguf"), &a, QUANT_F16, 1, &err), -1);
    CHECK_INT(err.code, STATUS_CANTCREATE);
    err = (struct error){0};
    CHECK_INT(merge_write(at("base.gguf"), &a, QUANT_F16, 1, &err), -1); // not over the base itself
    CHECK_INT(err.code, STATUS_CANTCREATE);
    err = (struct error){0};
    CHECK_INT(merge_write(at("new.gguf"), &a, QUANT_Q4_1, 1, &err), -1);
    CHECK_INT(err.code, STATUS_USAGE);
    err = (struct error){0};
    a.modules[1].b[4 * 4] = 1e6f; // row 4
    CHECK_INT(merge_write(at("new.gguf"), &a, QUANT_F16, 1, &err), -1);
    CHECK(err.code == STATUS_DATA && strstr(err.text, "row 4") && strstr(err.text, "ffn_down"));
    err = (struct error){0};
    CHECK_INT(merge_write(at("new.gguf"), &a, QUANT_BF16, 1, &err), 0);
    CHECK_INT(file_remove(at("new.gguf"), NULL), 0);
    a.modules[1].b[4 * 4] = NAN;
    CHECK_INT(merge_write(at("new.gguf"), &a, QUANT_F32, 1, &err), -1);
    CHECK(!file_exists(at("new.gguf")));
    close_tiny(&t, &a);
}

TEST(merge_faults) {
    struct tiny t;
    struct adapter a;
    char path[512];
    open_tiny(&t, &a);
    snprintf(path, sizeof path, "%s", at("faulty.gguf"));
    for (int kind = 0; kind < 4; kind++) {
        for (uint64_t k = 1;; k++) {
            struct error err = {0};
            if (kind < 2)
                mem_fail_at(k, kind % 2);
            else
                file_fail_at(k, ENOSPC, kind % 2);
            int status = merge_write(path, &a, QUANT_F16, 1, &err);
            uint64_t calls = kind < 2 ? mem_fail_at(0, 0) : file_fail_at(0, 0, 0);
            CHECK(status == 0 || err.code == (kind < 2 ? STATUS_MEMORY : STATUS_IO));
            if (kind == 2 && k <= calls) CHECK_MSG(status, "operation %llu may fail unnoticed", (unsigned long long)k);
            struct gguf merged;
            if (file_exists(path)) { // then it is whole
                CHECK_INT(gguf_open(path, &merged, NULL), 0);
                gguf_close(&merged);
            }
            file_remove(path, NULL);
            if (k > calls) break;
        }
    }
    char **names;
    size_t count = 0;
    CHECK_INT(merge_write(path, &a, QUANT_F16, 1, NULL), 0); // also removes what a failed removal left
    CHECK_INT(file_list(test_folder(), &names, &count, NULL), 0);
    for (size_t i = 0; i < count; i++) CHECK_MSG(!strstr(names[i], ".tmp"), "leftover %s", names[i]);
    file_list_free(names, count);
    close_tiny(&t, &a);
}

// --- The card

static struct text card_of(const struct card *card) {
    struct text text = {0};
    struct error err = {0};
    CHECK_MSG(card_write(at("README.md"), card, &err) == 0, "%s", err.text);
    CHECK_INT(file_read(at("README.md"), 1 << 20, &text, &err), 0);
    return text;
}

TEST(card_says_what_it_should) {
    struct card_pair results[] = {{"exact before", "0 %"}, {"exact after", "85 %"}, {"rows", "20"}},
                     data[] = {{"file", "a.jsonl"}};
    struct card card = {.name = "orders",
                        .base_name = "org/base-1",
                        .base_file = "base.gguf",
                        .r = 17,
                        .has_gguf = true,
                        .results = results,
                        .n_results = 3,
                        .data = data,
                        .n_data = 1};
    struct text text = card_of(&card);
    static const char *const wanted[] = {
        "---\nbase_model: org/base-1\nlibrary_name: peft\n",
        "\n- base_model:adapter:org/base-1\n",
        "| exact | 0 % | 85 % |\n",
        "| rows |  | 20 |\n",
        "| file | a.jsonl |\n",
        "llama-server -m base.gguf --lora adapter.gguf",
        "vllm serve org/base-1 --enable-lora --max-lora-rank 32 --lora-modules orders=.",
        "PeftModel.from_pretrained"};
    for (size_t i = 0; i < COUNT_OF(wanted); i++) CHECK_MSG(strstr(text_str(&text), wanted[i]), "no '%s'", wanted[i]);
    text_free(&text);
    card.base_name = "base.gguf"; // not known on the hub: no claim about it
    card.has_gguf = false;
    text = card_of(&card);
    CHECK(!strstr(text_str(&text), "base_model: ") && !strstr(text_str(&text), "vllm") &&
          !strstr(text_str(&text), "llama-server"));
    text_free(&text);
}

// What the shell makes of our quoting is asked from a shell.
TEST(card_escapes_for_each_place) {
    static const char evil[] = "x'; touch pwned; '\"`id`$(id) |\n- a: b\n---\n```\n# <script>\x1b[31m\xff";
    struct card_pair pair[] = {{evil, evil}};
    struct card_sample sample[] = {{evil, evil, evil, evil}};
    struct card card = {.name = evil,
                        .base_name = evil,
                        .base_file = evil,
                        .r = 8,
                        .has_gguf = true,
                        .prompt = evil,
                        .results = pair,
                        .n_results = 1,
                        .data = pair,
                        .n_data = 1,
                        .settings = pair,
                        .n_settings = 1,
                        .samples = sample,
                        .n_samples = 1};
    struct text text = card_of(&card);
    const char *body = strstr(text_str(&text), "\n---\n\n# ");
    CHECK(body && strstr(text_str(&text), "- a: b") > body); // nothing got into the front matter
    CHECK(!strstr(text_str(&text), "\x1b") && !strstr(text_str(&text), "\xff"));
    CHECK(strstr(text_str(&text), "````text\n") != NULL); // fences longer than those inside
    const char *command = strstr(text_str(&text), "llama-server -m "),
               *end = command ? strstr(command, " --lora") : NULL;
    CHECK(command && end);
    if (command && end) {
        struct text script = {0};
        text_printf(&script, "cd %s && printf %%s %.*s > shell.txt", test_folder(), (int)(end - command) - 16,
                    command + 16);
        CHECK_INT(system(text_str(&script)), 0);
        text_free(&script);
        CHECK(!file_exists(at("pwned")));
        CHECK_INT(file_read(at("shell.txt"), 1000, &script, NULL), 0);
        CHECK(strstr(text_str(&script), "x'; touch pwned; '\"`id`$(id) | - a: b") == text_str(&script));
        text_free(&script);
    }
    text_free(&text);
    for (uint64_t k = 1;; k++) { // allocations
        struct error err = {0};
        char path[512];
        snprintf(path, sizeof path, "%s", at("README.md"));
        mem_fail_at(k, 0);
        int status = card_write(path, &card, &err);
        uint64_t calls = mem_fail_at(0, 0);
        CHECK(status == 0 || err.code == STATUS_MEMORY);
        if (k <= calls) CHECK_MSG(status, "allocation %llu may fail unnoticed", (unsigned long long)k);
        if (k > calls) break;
    }
}

TEST_MAIN(CASE(merged_file), CASE(merge_refusals), CASE(merge_faults), CASE(card_says_what_it_should),
          CASE(card_escapes_for_each_place))
