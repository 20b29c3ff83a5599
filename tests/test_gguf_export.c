// A base as a GGUF: folders of every family give the numbers that transformers computed of them, files give what
// llama.cpp's quantisers make of their numbers, what a GGUF cannot say is refused by name, and a file is whole or
// absent.
#include "kernels/cpu/cpu.h"
#include "model/gguf_export.h"
#include "tests/harness.h"
#include "tests/parity.h"
#include "tests/tiny.h"

#include <errno.h>

static const char FAMILIES[] = "tests/fixtures/families";

static const char *fixture(const char *family, const char *file) {
    static char path[8][400];
    static int next;
    next = (next + 1) % 8;
    snprintf(path[next], sizeof path[next], "%s/%s%s%s", FAMILIES, family, file ? "/" : "", file ? file : "");
    return path[next];
}

// `base` as OUT; *notes, when not NULL, is freed by the caller.
static int convert(const char *base, const char *to, bool pure, int threads, const char *out, struct text *notes,
                   struct error *err) {
    struct model model;
    struct gguf_export e = {0};
    struct file_writer file;
    struct encode_work work = {.threads = threads_open(threads, err)};
    if (!work.threads || model_open(base, NULL, &model, err)) {
        threads_close(work.threads);
        return -1;
    }
    int status = gguf_export_open(&model, gguf_packing_find(to), pure, &work, &e, err);
    if (status == 0) {
        if (notes) text_add(notes, text_str(&e.notes));
        status = file_create(out, &file, err);
        if (status == 0 && (gguf_export_write(&e, &file, err) || file_close(&file, err))) {
            file_abandon(&file);
            status = -1;
        }
        uint64_t size = 0;
        if (status == 0) CHECK(file_size(out, &size, err) == 0 && size == e.bytes && work.done == work.total);
    }
    gguf_export_close(&e);
    model_close(&model);
    threads_close(work.threads);
    return status;
}

static const char *output(const char *name) {
    static char path[600];
    snprintf(path, sizeof path, "%s/%s.gguf", test_folder(), name);
    file_remove(path, NULL);
    return path;
}

// --- families

static void copy(const char *from, const char *to) {
    struct text bytes = {0};
    struct error err = {0};
    CHECK_MSG(file_read(from, 1 << 24, &bytes, &err) == 0 && file_replace(to, bytes.data, bytes.length, &err) == 0,
              "%s", err.text);
    text_free(&bytes);
}

// What a GGUF of the family cannot say, by the words of the message; all others must be written.
static const struct {
    const char *family, *why;
} refused[] = {
    {"gemma2", "query_pre_attn_scalar"},
    {"gemma3", "query_pre_attn_scalar"},
    {"gemma3-old", "query_pre_attn_scalar"},
    {"gemma3-vision", "query_pre_attn_scalar"},
    {"lora-ends-tied", "query_pre_attn_scalar"},
    {"lora-dora-head-tied", "query_pre_attn_scalar"},
    {"gpt-oss", "swiglu_limit"},
    {"gpt-oss-mxfp4", "swiglu_limit"},
    {"llama4", "attention chunk"},
    {"phimoe", "router_jitter_noise"},
    {"qwen2-moe", "which layers have experts"},
    {"qwen3-moe-all", "norm_topk_prob"},
    {"lora-aux-qwen3-moe", "which layers have experts"},
};
// Written with a line that says what is lost.
static const struct {
    const char *family, *note;
} dropped[] = {{"mistral", "window of 9"},       {"ministral", "window of 7"},    {"phi3", "window of 11"},
               {"qwen2-window", "window of 8"},  {"starcoder2", "window of 12"},  {"llama-dynamic", "dynamic scaling"},
               {"llama4-vision", "left out"},    {"mistral3-vision", "left out"}, {"llama-nf4", "packed already (NF4)"},
               {"llama-gptq4", "packed already"}};

static const char *refusal(const char *family) {
    for (size_t i = 0; i < COUNT_OF(refused); i++) {
        if (strcmp(refused[i].family, family) == 0) return refused[i].why;
    }
    return NULL;
}

static const char *loss_of(const char *family) {
    for (size_t i = 0; i < COUNT_OF(dropped); i++) {
        if (strcmp(dropped[i].family, family) == 0) return dropped[i].note;
    }
    return NULL;
}

static int parity(const char *folder, const char *base, struct parity *p, struct error *err) {
    struct parity_setup setup = {.base = base, .threads = 2, .dtype = DTYPE_F32};
    return parity_of(folder, test_path(test_folder(), "gradients"), &setup, p, err);
}

// The same adapter over the written file: logits and gradients as over the folder. Rows of Q and K stand in another
// order in some, so sums may be rounded otherwise.
static void same_numbers(const char *family, const char *gguf) {
    struct parity folder, file;
    struct error err = {0};
    char work[600];
    snprintf(work, sizeof work, "%s/%s", test_folder(), family);
    CHECK(file_make_folders(test_path(work, "adapter"), &err) == 0);
    static const char *const files[] = {"expected.safetensors", "adapter/adapter_config.json",
                                        "adapter/adapter_model.safetensors"};
    for (size_t i = 0; i < COUNT_OF(files); i++) copy(fixture(family, files[i]), test_path(work, files[i]));
    copy(gguf, test_path(work, "model.gguf"));
    int status = parity(fixture(family, NULL), NULL, &folder, &err) || parity(work, "model.gguf", &file, &err);
    CHECK_MSG(status == 0, "%s: %s", family, err.text);
    if (status) return;
    CHECK_MSG(file.logits <= folder.logits + 3e-6, "%s: logits are off by %.2g, of the folder by %.2g", family,
              file.logits, folder.logits);
    CHECK_MSG(file.loss <= folder.loss + 3e-6, "%s: the loss is off by %.2g", family, file.loss);
    CHECK_MSG(file.gradient <= folder.gradient + 3e-5, "%s: gradients are off by %.2g", family, file.gradient);
    CHECK_INT(file.gradients, folder.gradients);
}

TEST(folders_of_every_family) {
    char **names;
    size_t count;
    int written = 0;
    struct error none = {0};
    CHECK(file_list(FAMILIES, &names, &count, &none) == 0);
    for (size_t i = 0; i < count; i++) {
        if (!file_exists(fixture(names[i], "config.json"))) continue;
        struct error err = {0};
        struct text notes = {0};
        const char *out = output(names[i]), *why = refusal(names[i]), *note = loss_of(names[i]);
        int status = convert(fixture(names[i], NULL), "f32", false, 2, out, &notes, &err);
        CHECK_MSG((status != 0) == (why != NULL), "%s: %s", names[i], status ? err.text : "was written");
        if (why) CHECK_MSG(err.code == STATUS_DATA && strstr(err.text, why), "%s: %s", names[i], err.text);
        if (note) CHECK_MSG(strstr(text_str(&notes), note), "%s: %s", names[i], text_str(&notes));
        bool longer = strstr(text_str(&notes), "longer than") != NULL; // the rows are; other numbers are meant
        CHECK_MSG(longer == (note && (strstr(note, "window") || strstr(note, "dynamic"))), "%s: %s", names[i],
                  text_str(&notes));
        bool renamed = strstr(names[i], "-vision") != NULL;    // its adapter names modules of the wrapper
        bool balanced = strncmp(names[i], "lora-aux", 8) == 0; // a GGUF does not say the weight of that loss
        if (status == 0 && !longer && !renamed && !balanced) same_numbers(names[i], out), written++;
        text_free(&notes);
    }
    file_list_free(names, count);
    CHECK_MSG(written >= 40, "only %d", written);
}

// The same tensors, bit by bit, and the same keys as llama.cpp's converter makes of the same folder.
static void same_file(const char *family) {
    struct gguf ours, theirs;
    struct error err = {0};
    const char *out = output(family);
    int status = convert(fixture(family, NULL), "bf16", true, 1, out, NULL, &err) || gguf_open(out, &ours, &err);
    CHECK_MSG(status == 0, "%s: %s", family, err.text);
    if (status) return;
    CHECK(gguf_open(fixture(family, "model.gguf"), &theirs, &err) == 0);
    CHECK_INT(ours.n_tensors, theirs.n_tensors);
    for (size_t i = 0; i < theirs.n_tensors; i++) {
        const struct gguf_tensor *want = &theirs.tensors[i], *got = gguf_find_tensor(&ours, want->name);
        CHECK_MSG(got && got->ggml_type == want->ggml_type && got->bytes == want->bytes &&
                      memcmp(got->ne, want->ne, sizeof got->ne) == 0 &&
                      memcmp(got->data, want->data, (size_t)want->bytes) == 0,
                  "%s: tensor %s differs", family, want->name);
    }
    int same = 0;
    for (size_t i = 0; i < theirs.n_kv; i++) {
        static const char *const other[] = {"general.name", "general.size_label", "tokenizer.", "rope.scaling.",
                                            "layer_norm_epsilon"};
        const struct gguf_kv *want = &theirs.kv[i], *got = gguf_find(&ours, want->key);
        bool skip = false;
        for (size_t k = 0; k < COUNT_OF(other); k++) skip |= strstr(want->key, other[k]) != NULL;
        if (skip) continue;
        CHECK_MSG(got && got->type == want->type && got->bytes == want->bytes &&
                      memcmp(got->data, want->data, (size_t)want->bytes) == 0,
                  "%s: key %s differs", family, want->key);
        same++;
    }
    CHECK(same >= 8);
    gguf_close(&ours), gguf_close(&theirs);
}

TEST(as_the_converter_of_llama_cpp) {
    char **names;
    size_t count;
    int files = 0;
    struct error err = {0};
    CHECK(file_list(FAMILIES, &names, &count, &err) == 0);
    for (size_t i = 0; i < count; i++) {
        if (!file_exists(fixture(names[i], "config.json")) || !file_exists(fixture(names[i], "model.gguf"))) continue;
        same_file(names[i]), files++;
    }
    file_list_free(names, count);
    CHECK_MSG(files >= 19, "only %d", files);
}

// --- a GGUF again

// The base of these: 3 layers of width 256 and an MLP of 160, which fills no block of 256.
static const char *tiny_base(enum quant type, enum quant embed) {
    static char path[600];
    struct tiny_options options = {.layers = 3, .width = 256, .heads = 4, .kv_heads = 2, .ffn = 160, .seed = 3};
    struct error err = {0};
    options.type = type, options.embed = embed;
    snprintf(path, sizeof path, "%s/base-%d-%d.gguf", test_folder(), (int)type, (int)embed);
    if (!file_exists(path)) CHECK_MSG(tiny_write(path, &options, &err) == 0, "%s", err.text);
    return path;
}

// Every matrix of `out` is `to` (or what `formats` says of its name) and has the bytes that the encoder makes of what
// the base's tensor decodes to; everything else is as it was.
struct expected_format {
    const char *part; // of the tensor's name
    enum quant format;
};
static void check_file(const char *base, const char *out, enum quant to, const struct expected_format *formats) {
    struct gguf before, after;
    struct error err = {0};
    CHECK(gguf_open(base, &before, &err) == 0 && gguf_open(out, &after, &err) == 0);
    CHECK_INT(after.n_tensors, before.n_tensors);
    for (size_t i = 0; i < before.n_tensors; i++) {
        const struct gguf_tensor *t = &before.tensors[i], *got = &after.tensors[i];
        const struct quant_format *own = quant_by_ggml_type(t->ggml_type);
        enum quant want = t->n_dims == 1 ? own->id : to;
        for (const struct expected_format *f = formats; f->part; f++)
            if (strstr(t->name, f->part)) want = f->format;
        CHECK_STR(got->name, t->name);
        CHECK_MSG(got->ggml_type == quant_format(want)->ggml_type, "%s is %s, expected %s", t->name,
                  quant_ggml_type_name(got->ggml_type), quant_format(want)->name);
        float row[4096];
        uint8_t packed[16384];
        size_t bytes = quant_row_bytes(quant_format(want), t->ne[0]);
        for (int64_t r = 0; r < t->ne[1]; r++) {
            own->decode(t->data + (size_t)r * quant_row_bytes(own, t->ne[0]), row, t->ne[0]);
            quant_format(want)->encode(row, packed, t->ne[0]);
            const uint8_t *want_bytes = want == own->id ? t->data + (size_t)r * bytes : packed;
            CHECK_MSG(memcmp(got->data + (size_t)r * bytes, want_bytes, bytes) == 0, "%s, row %lld", t->name,
                      (long long)r);
        }
    }
    gguf_close(&before), gguf_close(&after);
}

TEST(every_type_of_a_gguf) {
    static const struct {
        const char *to;
        enum quant type;
        int file_type;
        bool pure;
        struct expected_format others[4];
    } cases[] = {
        {"q8_0", QUANT_Q8_0, 7, false, {{0}}},
        {"q6_k", QUANT_Q6_K, 18, false, {{"ffn_down", QUANT_Q8_0}, {0}}},
        {"q5_1", QUANT_Q5_1, 9, false, {{"token_embd", QUANT_Q6_K}, {0}}}, // tied: the embedding is the head
        {"q5_0", QUANT_Q5_0, 8, false, {{"token_embd", QUANT_Q6_K}, {0}}},
        {"q4_1", QUANT_Q4_1, 3, false, {{"token_embd", QUANT_Q6_K}, {0}}},
        {"q4_0", QUANT_Q4_0, 2, false, {{"token_embd", QUANT_Q6_K}, {0}}},
        {"q4_k", QUANT_Q4_K, 14, false, {{"token_embd", QUANT_Q6_K}, {"ffn_down", QUANT_Q5_0}, {0}}},
        {"q4_k", QUANT_Q4_K, 14, true, {{"ffn_down", QUANT_Q5_0}, {0}}},
        {"f16", QUANT_F16, 1, false, {{0}}},
        {"bf16", QUANT_BF16, 32, false, {{0}}},
        {"f32", QUANT_F32, 0, false, {{0}}},
    };
    const char *base = tiny_base(QUANT_BF16, QUANT_F16);
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct error err = {0};
        const char *out = output("typed");
        CHECK_MSG(convert(base, cases[i].to, cases[i].pure, 3, out, NULL, &err) == 0, "%s: %s", cases[i].to, err.text);
        if (err.code) continue;
        check_file(base, out, cases[i].type, cases[i].others);
        struct gguf g, b;
        int64_t value;
        CHECK(gguf_open(out, &g, &err) == 0 && gguf_open(base, &b, &err) == 0);
        CHECK(gguf_get_int(&g, "general.file_type", 0, 99, &value, &err) == 1 && value == cases[i].file_type);
        CHECK(gguf_get_int(&g, "general.quantization_version", 0, 99, &value, &err) == 1 && value == 2);
        for (size_t k = 0; k < b.n_kv; k++) {
            const struct gguf_kv *want = &b.kv[k], *got = gguf_find(&g, want->key);
            if (strncmp(want->key, "general.file_type", 17) == 0 || strstr(want->key, "quantization_version")) continue;
            CHECK_MSG(got && got->type == want->type && got->bytes == want->bytes &&
                          memcmp(got->data, want->data, (size_t)want->bytes) == 0,
                      "key %s", want->key);
        }
        gguf_close(&g), gguf_close(&b);
        // The same bytes from one thread.
        struct text one = {0}, three = {0};
        CHECK(file_read(out, 1 << 26, &three, &err) == 0);
        CHECK(convert(base, cases[i].to, cases[i].pure, 1, output("alone"), NULL, &err) == 0);
        CHECK(file_read(test_path(test_folder(), "alone.gguf"), 1 << 26, &one, &err) == 0);
        CHECK(one.length == three.length && memcmp(one.data, three.data, one.length) == 0);
        text_free(&one), text_free(&three);
    }
}

TEST(what_is_packed_is_packed_again_and_said) {
    struct error err = {0};
    struct text notes = {0};
    const char *base = tiny_base(QUANT_Q4_1, QUANT_Q8_0), *out = output("again");
    CHECK_MSG(convert(base, "q8_0", false, 2, out, &notes, &err) == 0, "%s", err.text);
    CHECK_MSG(strstr(text_str(&notes), "packed already (mostly Q4_1)"), "%s", text_str(&notes));
    check_file(base, out, QUANT_Q8_0, (struct expected_format[]){{0}});
    text_clear(&notes);
    CHECK(convert(base, "q4_1", true, 2, output("same"), &notes, &err) == 0);
    check_file(base, test_path(test_folder(), "same.gguf"), QUANT_Q4_1, (struct expected_format[]){{0}});
    text_free(&notes);
    // Rows that no block fits, from a folder: width 36.
    struct gguf g;
    CHECK(convert(fixture("llama", NULL), "q4_k", false, 1, output("odd"), NULL, &err) == 0);
    CHECK(gguf_open(test_path(test_folder(), "odd.gguf"), &g, &err) == 0);
    CHECK_INT(gguf_find_tensor(&g, "blk.0.attn_q.weight")->ggml_type, 1);
    CHECK_INT(gguf_find_tensor(&g, "blk.0.attn_norm.weight")->ggml_type, 0);
    gguf_close(&g);
}

// --- what is bad

static void overwrite(const char *path, const char *tensor, size_t at, const void *bytes, size_t n) {
    struct text file = {0};
    struct gguf g;
    struct error err = {0};
    CHECK(gguf_open(path, &g, &err) == 0);
    size_t place = (size_t)(gguf_find_tensor(&g, tensor)->data - g.bytes) + at;
    gguf_close(&g);
    CHECK(file_read(path, 1 << 26, &file, &err) == 0);
    memcpy(file.data + place, bytes, n);
    CHECK(file_replace(path, file.data, file.length, &err) == 0);
    text_free(&file);
}

TEST(numbers_that_do_not_fit) {
    static const struct {
        uint32_t bits;
        const char *to;
        bool fits;
    } cases[] = {{0x7FC00000, "q8_0", false}, {0x7F800000, "f32", false}, {0x47800000, "f16", false}, // 65536
                 {0x47800000, "bf16", true},  {0x47800000, "q8_0", true}, {0x4B000000, "q8_0", false},
                 {0x47800000, "q4_k", false}, {0x477FE000, "q4_k", true}};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct error err = {0};
        char base[600];
        snprintf(base, sizeof base, "%s", tiny_base(QUANT_F32, QUANT_F32));
        file_remove(base, &err);
        tiny_base(QUANT_F32, QUANT_F32);
        overwrite(base, "blk.1.ffn_up.weight", 4 * (256 * 7 + 5), &cases[i].bits, 4);
        overwrite(base, "blk.1.ffn_up.weight", 4 * (256 * 90 + 1), &cases[i].bits, 4);
        // f32 to f32 is a copy, in which nothing is looked at.
        bool copied = strcmp(cases[i].to, "f32") == 0;
        int status = convert(base, cases[i].to, false, 2, output("unfit"), NULL, &err);
        CHECK_MSG((status == 0) == (cases[i].fits || copied), "%s of %08x: %s", cases[i].to, cases[i].bits, err.text);
        if (status)
            CHECK_MSG(err.code == STATUS_DATA && strstr(err.text, "blk.1.ffn_up.weight: row 7, column 5 is"), "%s",
                      err.text);
        CHECK(file_exists(test_path(test_folder(), "unfit.gguf")) == (status == 0));
        file_remove(base, NULL);
    }
}

static int stop_at(void *context, int64_t done, int64_t total, struct error *err) {
    CHECK(done > 0 && done <= total);
    return --*(int *)context > 0 ? 0 : error_set(err, STATUS_STOPPED, "stopped");
}

TEST(work_that_is_stopped) {
    struct model model;
    struct gguf_export e;
    struct file_writer file;
    struct error err = {0};
    int left = 5;
    struct encode_work work = {.threads = threads_open(2, &err), .report = stop_at, .context = &left};
    const char *out = output("stopped");
    CHECK(model_open(tiny_base(QUANT_BF16, QUANT_F16), NULL, &model, &err) == 0);
    CHECK(gguf_export_open(&model, gguf_packing_find("q4_k"), false, &work, &e, &err) == 0);
    CHECK(file_create(out, &file, &err) == 0);
    CHECK(gguf_export_write(&e, &file, &err) != 0 && err.code == STATUS_STOPPED && left == 0);
    file_abandon(&file);
    gguf_export_close(&e);
    model_close(&model);
    threads_close(work.threads);
    CHECK(!file_exists(out));
}

// Every allocation that fails gives an error and leaves nothing (the sanitizers look).
TEST(out_of_memory) {
    static const char *const bases[] = {"tests/fixtures/families/deepseek-v3", "tests/fixtures/families/phi3-long"};
    for (size_t b = 0; b < COUNT_OF(bases); b++) {
        struct error err = {0};
        uint64_t total;
        mem_fail_at(0, 0);
        CHECK(convert(bases[b], "q8_0", false, 1, output("memory"), NULL, &err) == 0);
        total = mem_fail_at(0, 0);
        for (uint64_t k = 1; k <= total; k += 1 + total / 150) {
            err = (struct error){0};
            const char *out = output("memory");
            mem_fail_at(k, 1);
            int status = convert(bases[b], "q8_0", false, 1, out, NULL, &err);
            mem_fail_at(0, 0);
            CHECK_MSG(status != 0 && err.code == STATUS_MEMORY && !file_exists(out), "allocation %llu: %s",
                      (unsigned long long)k, err.text);
        }
    }
}

TEST_MAIN(CASE(folders_of_every_family), CASE(as_the_converter_of_llama_cpp), CASE(every_type_of_a_gguf),
          CASE(what_is_packed_is_packed_again_and_said), CASE(numbers_that_do_not_fit), CASE(work_that_is_stopped),
          CASE(out_of_memory))
