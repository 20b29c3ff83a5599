// GGUF files as a whole: write -> read -> write, typed getters, cuts at every byte, every bit of a header flipped,
// failing allocations and failing writes. Hostile files are in test_gguf.c.
#include "model/gguf_write.h"
#include "tests/harness.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct text b; // the bytes of the file under test

// Parses a copy of exactly the right size, so that a sanitizer sees every byte too many.
static int parse(size_t length, struct gguf *g, uint8_t **copy, struct error *err) {
    *err = (struct error){0};
    *copy = malloc(length); // mem_alloc rounds sizes up
    memcpy(*copy, b.data, length);
    return gguf_parse(*copy, length, "test.gguf", g, err);
}

static const uint8_t plain_zeros[4096];

static void build_model(struct gguf_writer *w) {
    static uint8_t data[4096];
    static const struct vocab_string tokens[] = {{"<s>", 3}, {"", 0}, {"a\0b", 3}, {"\xC4\xA0the", 5}};
    static const int64_t matrix[] = {64, 3}, vector[] = {5}, four[] = {256, 2, 1, 2};
    for (size_t i = 0; i < sizeof data; i++) data[i] = (uint8_t)(i * 7 + i / 256);
    gguf_put_string(w, "general.architecture", "llama");
    gguf_put_u32(w, "llama.block_count", 3);
    gguf_put_u64(w, "u64", (uint64_t)1 << 40);
    gguf_put_i32(w, "i32", -1);
    gguf_put_f32(w, "llama.rope.freq_base", 10000.0f);
    gguf_put_bool(w, "yes", true);
    gguf_put_bool(w, "no", false);
    gguf_put_strings(w, "tokenizer.ggml.tokens", tokens, COUNT_OF(tokens));
    gguf_put_strings(w, "empty", NULL, 0);
    gguf_put_i32s(w, "tokenizer.ggml.token_type", (const int32_t[]){3, 1, 1, -7}, 4);
    gguf_put_u32s(w, "llama.feed_forward_length", (const uint32_t[]){10, 20, 30}, 3);
    gguf_put_f32s(w, "tokenizer.ggml.scores", (const float[]){-1.5f, 0.0f}, 2);
    gguf_put_bytes(w, "nul", "x\0y", 3);
    gguf_put_tensor(w, "token_embd.weight", 8, 2, matrix, data);
    gguf_put_tensor(w, "blk.0.ffn.weight", 12, 4, four, data + 100);
    gguf_put_tensor(w, "output_norm.weight", 0, 1, vector, data);
}

static bool write_file(struct gguf_writer *w, const char *path, struct error *err) {
    struct file_writer out;
    file_remove(path, NULL);
    if (file_create(path, &out, err) < 0) return false;
    if (gguf_write(w, &out, err) == 0 && file_close(&out, err) == 0) return true;
    file_abandon(&out);
    return false;
}

// Leaves the small model's bytes in `b`.
static void small_model(void) {
    struct gguf_writer w = {0};
    struct error err = {0};
    char *path = path_join(test_folder(), "small.gguf");
    build_model(&w);
    CHECK_MSG(write_file(&w, path, &err), "%s", err.text);
    gguf_writer_free(&w);
    text_free(&b);
    CHECK(file_read(path, 1 << 20, &b, &err) == 0);
    mem_free(path);
}

TEST(write_read_write_is_identical) {
    struct gguf g;
    struct error err = {0};
    struct gguf_writer w = {0};
    char *path = path_join(test_folder(), "small.gguf"), *again = path_join(test_folder(), "again.gguf");
    small_model();
    CHECK(gguf_open(path, &g, &err) == 0 && g.n_kv == 13 && g.n_tensors == 3 && g.version == 3 && g.alignment == 32);
    for (size_t i = 0; i < g.n_kv; i++) gguf_put_kv(&w, &g.kv[i]);
    for (size_t i = 0; i < g.n_tensors; i++) {
        const struct gguf_tensor *t = &g.tensors[i];
        gguf_put_tensor(&w, t->name, t->ggml_type, t->n_dims, t->ne, t->data);
    }
    CHECK(write_file(&w, again, &err));
    struct text second;
    CHECK(file_read(again, 1 << 20, &second, &err) == 0);
    CHECK(second.length == b.length && memcmp(second.data, b.data, b.length) == 0);
    CHECK(b.length % 32 == 0);
    text_free(&second);
    gguf_writer_free(&w);
    gguf_close(&g);
    gguf_close(&g);
    mem_free(path);
    mem_free(again);
}

TEST(getters) {
    struct gguf g;
    struct error err;
    uint8_t *copy;
    struct pool pool = {0};
    int64_t i = 0, layers[3] = {0};
    double f = 0;
    bool yes = false, no = true;
    const char *text = NULL;
    struct vocab_string s;
    const struct vocab_string *strings;
    const int32_t *numbers;
    const float *floats;
    size_t n;
    small_model();
    CHECK(parse(b.length, &g, &copy, &err) == 0);
    CHECK(gguf_get_int(&g, "llama.block_count", 1, 9, &i, &err) == 1 && i == 3 &&
          gguf_get_int(&g, "u64", 0, INT64_MAX, &i, &err) == 1 && i == (int64_t)1 << 40);
    CHECK(gguf_get_int(&g, "i32", -1, 0, &i, &err) == 1 && i == -1);
    CHECK(gguf_get_float(&g, "llama.rope.freq_base", &f, &err) == 1 && f == 10000.0);
    CHECK(gguf_get_bool(&g, "yes", &yes, &err) == 1 && yes && gguf_get_bool(&g, "no", &no, &err) == 1 && !no);
    CHECK(gguf_get_text(&g, "general.architecture", &pool, &text, &err) == 1);
    CHECK_STR(text, "llama");
    CHECK(gguf_get_string(&g, "nul", &s, &err) == 1 && s.length == 3 && memcmp(s.bytes, "x\0y", 3) == 0);
    CHECK(gguf_get_strings(&g, "tokenizer.ggml.tokens", &pool, &strings, &n, &err) == 1 && n == 4);
    CHECK(strings[1].length == 0 && strings[2].length == 3 && memcmp(strings[2].bytes, "a\0b", 3) == 0 &&
          memcmp(strings[3].bytes, "\xC4\xA0the", 5) == 0);
    CHECK(gguf_get_strings(&g, "empty", &pool, &strings, &n, &err) == 1 && n == 0);
    CHECK(gguf_get_i32s(&g, "tokenizer.ggml.token_type", &pool, &numbers, &n, &err) == 1 && n == 4 && numbers[0] == 3 &&
          numbers[3] == -7);
    CHECK(gguf_get_f32s(&g, "tokenizer.ggml.scores", &pool, &floats, &n, &err) == 1 && n == 2 && floats[0] == -1.5f);
    CHECK(gguf_get_per_layer(&g, "llama.feed_forward_length", 1, 100, 3, layers, &err) == 1 && layers[0] == 10 &&
          layers[2] == 30);
    CHECK(gguf_get_per_layer(&g, "llama.block_count", 1, 100, 3, layers, &err) == 1 && layers[0] == 3 &&
          layers[2] == 3);
    CHECK(gguf_get_per_layer(&g, "yes", 0, 1, 2, layers, &err) == 1 && layers[1] == 1 && layers[2] == 3);
    CHECK_INT(err.code, 0);
#define FAILS(call, message)                                                                                           \
    do {                                                                                                               \
        err = (struct error){0};                                                                                       \
        CHECK((call) == -1 && err.code == STATUS_DATA);                                                                \
        CHECK_STR(err.text, "test.gguf: key '" message);                                                               \
    } while (0)
    FAILS(gguf_get_text(&g, "nul", &pool, &text, &err), "nul' holds a NUL");
    FAILS(gguf_get_per_layer(&g, "llama.feed_forward_length", 1, 100, 4, layers, &err),
          "llama.feed_forward_length' has 3 elements, expected one per layer (4)");
    FAILS(gguf_get_per_layer(&g, "llama.feed_forward_length", 1, 29, 3, layers, &err),
          "llama.feed_forward_length' is 30, expected 1 to 29");
    FAILS(gguf_get_per_layer(&g, "general.architecture", 1, 29, 3, layers, &err),
          "general.architecture' is string, expected a whole number or one per layer");
    FAILS(gguf_get_int(&g, "yes", 0, 1, &i, &err), "yes' is bool, expected a whole number below 2^63");
    FAILS(gguf_get_int(&g, "llama.feed_forward_length", 0, 100, &i, &err),
          "llama.feed_forward_length' is an array of u32, expected a whole number below 2^63");
    FAILS(gguf_get_float(&g, "llama.block_count", &f, &err), "llama.block_count' is u32, expected f32 or f64");
    FAILS(gguf_get_bool(&g, "llama.block_count", &no, &err), "llama.block_count' is u32, expected bool");
    FAILS(gguf_get_string(&g, "yes", &s, &err), "yes' is bool, expected string");
    FAILS(gguf_get_strings(&g, "general.architecture", &pool, &strings, &n, &err),
          "general.architecture' is string, expected an array of string");
    const struct gguf_tensor *t = gguf_find_tensor(&g, "token_embd.weight");
    CHECK(t && t->n_dims == 2 && t->ne[0] == 64 && t->ne[1] == 3 && t->ne[2] == 1 && t->bytes == 3 * 2 * 34 &&
          t->data == g.bytes + g.data_start);
    CHECK(gguf_find_tensor(&g, "token_embd") == NULL && gguf_find(&g, "llama") == NULL && gguf_find(&g, "") == NULL);
    for (size_t k = 0; k < g.n_tensors; k++) CHECK(gguf_find_tensor(&g, g.tensors[k].name) == &g.tensors[k]);
    for (size_t k = 0; k < g.n_kv; k++) CHECK(gguf_find(&g, g.kv[k].key) == &g.kv[k]);
    gguf_close(&g);
    free(copy);
    pool_free(&pool);
    text_clear(&b);
    text_append(&b, "GGUF\3\0\0\0\0\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0", 24);
    text_append(&b, "\1\0\0\0\0\0\0\0f\6\0\0\0\0\0\xC0\x7F", 17); // NaN
    CHECK(parse(b.length, &g, &copy, &err) == 0);
    FAILS(gguf_get_float(&g, "f", &f, &err), "f' is not a finite number");
    gguf_close(&g);
    free(copy);
}

TEST(truncation_at_every_byte) {
    small_model();
    struct gguf g;
    struct error err;
    uint8_t *copy;
    size_t whole = b.length, last = 0;
    CHECK(parse(whole, &g, &copy, &err) == 0);
    const struct gguf_tensor *t = &g.tensors[2];
    last = (size_t)(g.data_start + t->offset + t->bytes); // the padding behind may be missing
    gguf_close(&g);
    free(copy);
    CHECK(last < whole);
    for (size_t n = 0; n <= whole; n++) {
        int result = parse(n, &g, &copy, &err);
        CHECK_MSG(result == (n < last ? -1 : 0) && err.code == (n < last ? STATUS_DATA : 0), "cut at %zu: %s", n,
                  err.text);
        gguf_close(&g);
        free(copy);
    }
    char *path = path_join(test_folder(), "cut.gguf"); // the same through the file
    CHECK(file_replace(path, b.data, last, NULL) == 0);
    for (size_t i = 200; i-- > 0;) {
        size_t n = last * i / 200;
        CHECK(file_truncate(path, n, NULL) == 0);
        err = (struct error){0};
        CHECK_MSG(gguf_open(path, &g, &err) == -1 && err.code == STATUS_DATA && strstr(err.text, "cut.gguf: "),
                  "cut at %zu", n);
    }
    err = (struct error){0};
    CHECK(gguf_open("/nowhere.gguf", &g, &err) == -1 && err.code == STATUS_NOINPUT);
    mem_free(path);
}

// Every bit of the header flipped: refused or harmless, never a byte outside the file.
TEST(bit_flips_of_the_header) {
    small_model();
    struct gguf g;
    struct error err;
    uint8_t *copy;
    uint64_t sum = 0; // of bytes that must be readable
    CHECK(parse(b.length, &g, &copy, &err) == 0);
    size_t header = (size_t)g.data_start;
    gguf_close(&g);
    free(copy);
    for (size_t bit = 0; bit < 8 * header; bit++) {
        b.data[bit / 8] = (char)(b.data[bit / 8] ^ (1 << bit % 8));
        if (parse(b.length, &g, &copy, &err) == 0) {
            for (size_t i = 0; i < g.n_tensors; i++)
                sum += g.tensors[i].data[0] + g.tensors[i].data[g.tensors[i].bytes - 1];
            for (size_t i = 0; i < g.n_kv; i++) sum += g.kv[i].bytes ? g.kv[i].data[g.kv[i].bytes - 1] : 0;
            gguf_close(&g);
        } else {
            CHECK_INT(err.code, STATUS_DATA);
        }
        free(copy);
        b.data[bit / 8] = (char)(b.data[bit / 8] ^ (1 << bit % 8));
    }
    CHECK(sum > 0);
}

TEST(cve_2024_32878_allocation_failures_leave_nothing_behind) {
    small_model();
    for (int forever = 0; forever < 2; forever++) {
        bool done = false;
        for (uint64_t k = 1; !done && k < 200; k++) {
            struct gguf g;
            struct error err = {0};
            mem_fail_at(k, forever);
            int result = gguf_parse((const uint8_t *)b.data, b.length, "test.gguf", &g, &err);
            done = mem_fail_at(0, 0) < k;
            CHECK_INT(result, done ? 0 : -1);
            CHECK_INT(err.code, done ? 0 : STATUS_MEMORY);
            gguf_close(&g);
        }
        CHECK(done);
    }
    char *path = path_join(test_folder(), "oom.gguf");
    bool done = false;
    for (uint64_t k = 1; !done && k < 200; k++) { // the writer
        struct gguf_writer w = {0};
        struct error err = {0};
        mem_fail_at(k, 0);
        build_model(&w);
        bool ok = write_file(&w, path, &err);
        done = mem_fail_at(0, 0) < k;
        CHECK_MSG(ok == done && err.code == (done ? 0 : STATUS_MEMORY), "%s", err.text);
        CHECK(file_exists(path) == done);
        gguf_writer_free(&w);
    }
    CHECK(done);
    mem_free(path);
}

static int fill(void *context, struct file_writer *out, struct error *err) {
    size_t n = *(size_t *)context;
    while (n > 0) {
        size_t part = n < 33 ? n : 33;
        if (file_write(out, plain_zeros, part, err) < 0) return -1;
        n -= part;
    }
    return 0;
}

TEST(streamed_tensors_and_failing_writes) {
    static const int64_t ne[] = {100};
    size_t right = 400, wrong = 399;
    struct gguf_writer w = {0}, x = {0};
    struct error err = {0};
    struct gguf g;
    char *path = path_join(test_folder(), "stream.gguf");
    gguf_put_tensor_later(&w, "a", 0, 1, ne, fill, &right);
    gguf_put_tensor_later(&w, "b", 0, 1, ne, fill, &right);
    CHECK(write_file(&w, path, &err) && gguf_open(path, &g, &err) == 0 && g.n_tensors == 2 &&
          g.tensors[1].offset == 416);
    gguf_close(&g);
    gguf_put_tensor_later(&x, "a", 0, 1, ne, fill, &wrong);
    CHECK(!write_file(&x, path, &err) && err.code == STATUS_INTERNAL && !file_exists(path));
    bool done = false;
    for (uint64_t k = 2; !done && k < 100; k++) { // 1 removes the old file
        err = (struct error){0};
        file_fail_at(k, ENOSPC, 0);
        bool ok = write_file(&w, path, &err);
        done = file_fail_at(0, 0, 0) < k;
        CHECK(ok == done && file_exists(path) == done &&
              (done || err.code == STATUS_IO || err.code == STATUS_CANTCREATE));
    }
    CHECK(done);
    gguf_writer_free(&w);
    gguf_writer_free(&x);
    gguf_writer_free(&x);
    mem_free(path);
    text_free(&b);
}

TEST_MAIN(CASE(write_read_write_is_identical), CASE(getters), CASE(truncation_at_every_byte),
          CASE(bit_flips_of_the_header), CASE(cve_2024_32878_allocation_failures_leave_nothing_behind),
          CASE(streamed_tensors_and_failing_writes))
