// GGUF reader and writer. Hostile files are built in memory, one case per published vulnerability (named after it),
// then both sides of each limit, cuts at every byte, failing allocations, and write -> read -> write.
#include "model/gguf.h"
#include "tests/harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// --- A builder of files that need not be right

static struct text b; // the file under construction

static void u32(uint32_t v) {
    text_append(&b, &v, 4);
}
static void u64(uint64_t v) {
    text_append(&b, &v, 8);
}
static void str(const char *s) {
    u64(strlen(s));
    text_add(&b, s);
}
static void head(uint64_t n_tensors, uint64_t n_kv) {
    text_clear(&b);
    text_add(&b, "GGUF");
    u32(3);
    u64(n_tensors);
    u64(n_kv);
}
static void key(const char *name, uint32_t type) {
    str(name);
    u32(type);
}
static void key_u32(const char *name, uint32_t value) {
    key(name, GGUF_U32);
    u32(value);
}
static void array(const char *name, uint32_t element, uint64_t count) {
    key(name, GGUF_ARRAY);
    u32(element);
    u64(count);
}
static void tensor(const char *name, uint32_t n_dims, uint64_t ne0, uint64_t ne1, uint32_t type, uint64_t offset) {
    str(name);
    u32(n_dims);
    if (n_dims > 0) u64(ne0);
    if (n_dims > 1) u64(ne1);
    for (uint32_t d = 2; d < n_dims && d < 8; d++) u64(1);
    u32(type);
    u64(offset);
}
static void zeros(size_t n) {
    while (n-- > 0) text_char(&b, 0);
}
static void pad(size_t alignment) {
    while (b.length % alignment) text_char(&b, 0);
}

// --- Expectations

// Parses a copy of exactly the right size, so that a sanitizer sees every byte too many.
static int parse(size_t length, struct gguf *g, uint8_t **copy, struct error *err) {
    *err = (struct error){0};
    *copy = malloc(length); // mem_alloc rounds sizes up
    memcpy(*copy, b.data, length);
    int result = gguf_parse(*copy, length, "test.gguf", g, err);
    if (result < 0) CHECK(g->kv == NULL && g->tensors == NULL && g->pool.head == NULL);
    return result;
}

static void refuses(const char *message) {
    struct gguf g;
    struct error err;
    uint8_t *copy;
    int result = parse(b.length, &g, &copy, &err);
    CHECK_MSG(result < 0 && err.code == STATUS_DATA && strstr(err.text, message) &&
                  strncmp(err.text, "test.gguf: ", 11) == 0,
              "result %d, code %d, \"%s\" lacks \"%s\"", result, err.code, err.text, message);
    gguf_close(&g);
    free(copy);
}

static void accepts(void) {
    struct gguf g;
    struct error err;
    uint8_t *copy;
    CHECK_MSG(parse(b.length, &g, &copy, &err) == 0, "%s", err.text);
    gguf_close(&g);
    free(copy);
}

// --- The vulnerabilities

TEST(cve_2024_21825_count_of_strings_times_size_wraps) {
    static const uint64_t counts[] = {UINT64_MAX,          (uint64_t)1 << 61, (uint64_t)1 << 60,
                                      UINT64_MAX / 16 + 1, (uint64_t)1 << 32, 1u << 24};
    for (size_t i = 0; i < COUNT_OF(counts); i++) {
        head(0, 1);
        array("k", GGUF_STRING, counts[i]);
        zeros(64);
        refuses("elements");
    }
}

TEST(cve_2024_23496_string_length_plus_one_wraps) {
    static const uint64_t lengths[] = {UINT64_MAX,        UINT64_MAX - 1, UINT64_MAX - 7,
                                       (uint64_t)1 << 63, INT64_MAX,      (uint64_t)1 << 32};
    for (size_t i = 0; i < COUNT_OF(lengths); i++) {
        head(0, 1); // as a key
        u64(lengths[i]);
        zeros(64);
        refuses("bytes, the limit is 256");
        head(0, 1); // as a value
        key("k", GGUF_STRING);
        u64(lengths[i]);
        zeros(64);
        refuses("bytes, the limit is 16777216");
        head(0, 1); // as an element
        array("k", GGUF_STRING, 2);
        str("x");
        u64(lengths[i]);
        zeros(64);
        refuses("bytes, the limit is 16777216");
        head(1, 0); // as a tensor name
        u64(lengths[i]);
        zeros(64);
        refuses("bytes, the limit is 63");
    }
}

TEST(cve_2024_21802_more_dimensions_than_the_array_holds) {
    static const uint32_t dims[] = {5, 8, 255, 0x7FFFFFFF, 0x80000000u, UINT32_MAX};
    for (size_t i = 0; i < COUNT_OF(dims); i++) {
        head(1, 0);
        str("t");
        u32(dims[i]);
        zeros(256);
        refuses("dimensions, the limit is 4");
    }
}

TEST(cve_2024_21836_tensor_count_times_size_wraps) {
    static const uint64_t counts[] = {UINT64_MAX,        (uint64_t)1 << 63, INT64_MAX, UINT64_MAX / 96 + 1,
                                      (uint64_t)1 << 32, 1000001,           1000000,   6};
    for (size_t i = 0; i < COUNT_OF(counts); i++) {
        head(counts[i], 0);
        zeros(128);
        refuses("tensors, more than");
    }
}

TEST(cve_2024_23605_key_count_times_size_wraps) {
    static const uint64_t counts[] = {
        UINT64_MAX, (uint64_t)1 << 63, INT64_MAX, UINT64_MAX / 64 + 1, (uint64_t)1 << 32, 65537, 65536, 10};
    for (size_t i = 0; i < COUNT_OF(counts); i++) {
        head(0, counts[i]);
        zeros(128);
        refuses("keys, more than");
    }
}

// A tensor of nearly 2^64 bytes makes the running sum of padded sizes wrap; the element count is just countable.
TEST(cve_2025_53630_and_cve_2026_27940_sum_of_sizes_wraps) {
    head(2, 0);
    tensor("a", 2, (uint64_t)1 << 31, (uint64_t)1 << 31, 28, 0); // 2^62 f64 = 2^65 bytes
    tensor("b", 1, 8, 0, 0, 0);
    zeros(64);
    refuses("more bytes than can be counted");
    head(3, 0);
    tensor("a", 1, ((uint64_t)1 << 61) - 1, 0, 0, 0); // 2^63 - 4 bytes, each; padded: 2^63
    tensor("b", 1, ((uint64_t)1 << 61) - 1, 0, 0, (uint64_t)1 << 63);
    tensor("c", 1, 1, 0, 0, 0); // where the wrapped sum would put it
    zeros(64);
    refuses("the file ends before");
    head(1, 0);
    tensor("a", 1, INT64_MAX / 4, 0, 0, 0);
    zeros(64);
    refuses("the file ends before");
}

TEST(cve_2026_33298_elements_times_type_size_wraps) {
    head(1, 0);
    tensor("a", 1, ((uint64_t)1 << 62) + 1, 0, 0, 0); // x 4 = 2^64 + 4
    zeros(64);
    refuses("more bytes than can be counted");
    head(1, 0);
    tensor("a", 2, ((uint64_t)1 << 42) + 1, (uint64_t)1 << 21, 0, 0);
    zeros(64);
    refuses("more elements than can be counted");
    head(1, 0);
    tensor("a", 2, ((uint64_t)1 << 41), (uint64_t)1 << 21, 0, 0); // 2^62 elements, 2^64 bytes
    zeros(64);
    refuses("more bytes than can be counted");
}

TEST(issue_24759_padding_wraps_to_zero) {
    head(1, 0);
    tensor("a", 1, UINT64_MAX / 2 - 1, 0, 24, 0); // i8: 2^63 - 2 bytes
    zeros(64);
    refuses("the file ends before");
    head(2, 0);
    tensor("a", 2, ((uint64_t)1 << 62) - 1, 2, 25, 0); // 2^63 - 2 elements of 2 bytes: 2^64 - 4, rounds up to 2^64
    tensor("b", 1, 1, 0, 0, 0);
    zeros(64);
    refuses("the file ends before");
}

// The tables are allocated only when the file has bytes for every entry.
TEST(issue_15711_table_larger_than_the_bound) {
    head(1000000, 65536);
    zeros(4096);
    mem_fail_at(0, 0);
    refuses("keys, more than");
    CHECK_MSG(mem_fail_at(0, 0) < 8, "tables were allocated before the check");
}

TEST(issue_24263_dimension_zero) {
    head(1, 0);
    tensor("a", 1, 0, 0, 0, 0);
    zeros(64);
    refuses("dimension 0 is 0");
    head(1, 0);
    tensor("a", 2, 32, 0, 2, 0);
    zeros(64);
    refuses("dimension 1 is 0");
    head(1, 0);
    tensor("a", 1, (uint64_t)-1, 0, 0, 0);
    zeros(64);
    refuses("dimension 0 is -1");
}

TEST(issue_27203_product_wraps_negative) {
    head(1, 0);
    tensor("a", 2, INT64_MAX, 2, 0, 0);
    zeros(64);
    refuses("more elements than can be counted");
    head(1, 0);
    tensor("a", 2, (uint64_t)1 << 32, (uint64_t)1 << 32, 0, 0); // wraps to 0
    zeros(64);
    refuses("more elements than can be counted");
    head(1, 0);
    tensor("a", 2, ((uint64_t)1 << 32) + 1, (uint64_t)1 << 32, 24, 0); // wraps to 2^32
    zeros(64);
    refuses("more elements than can be counted");
}

TEST(issue_24997_alignment_without_upper_bound) {
    static const uint32_t wrong[] = {0, 1, 2, 4, 24, 33, 131072, 0x80000000u, UINT32_MAX},
                          right[] = {8, 16, 32, 64, 4096, 65536};
    for (size_t i = 0; i < COUNT_OF(wrong); i++) {
        head(0, 1);
        key_u32("general.alignment", wrong[i]);
        zeros(64);
        refuses("expected a power of two from 8 to 65536");
    }
    for (size_t i = 0; i < COUNT_OF(right); i++) {
        head(2, 1);
        key_u32("general.alignment", right[i]);
        tensor("a", 1, 1, 0, 0, 0);
        tensor("b", 1, 1, 0, 0, right[i]);
        pad(right[i]);
        zeros(right[i] + 4);
        accepts();
    }
}

TEST(alignment_of_the_wrong_type) {
    for (uint32_t type = 0; type < GGUF_TYPES; type++) {
        if (type == GGUF_U32) continue;
        head(0, 1);
        key("general.alignment", type);
        zeros(64);
        refuses(type == GGUF_ARRAY ? "general.alignment is array" : "expected u32");
    }
}

TEST(scores_declared_i8_and_read_as_float) {
    struct gguf g;
    struct error err;
    uint8_t *copy;
    struct pool pool = {0};
    const float *scores = NULL;
    const int32_t *numbers = NULL;
    const struct vocab_string *strings = NULL;
    size_t n = 7;
    head(0, 2);
    array("tokenizer.ggml.scores", GGUF_I8, 4);
    text_append(&b, "\x01\x02\x03\xFF", 4);
    array("tokenizer.ggml.tokens", GGUF_F32, 1);
    zeros(4);
    CHECK(parse(b.length, &g, &copy, &err) == 0);
    CHECK(gguf_get_f32s(&g, "tokenizer.ggml.scores", &pool, &scores, &n, &err) == -1 && err.code == STATUS_DATA);
    CHECK_STR(err.text, "test.gguf: key 'tokenizer.ggml.scores' is an array of i8, expected an array of f32");
    err = (struct error){0};
    CHECK(gguf_get_strings(&g, "tokenizer.ggml.tokens", &pool, &strings, &n, &err) == -1 &&
          gguf_get_strings(&g, "tokenizer.ggml.scores", &pool, &strings, &n, NULL) == -1);
    CHECK(gguf_get_i32s(&g, "tokenizer.ggml.tokens", &pool, &numbers, &n, NULL) == -1);
    CHECK(n == 7 && !scores && !strings && !numbers);
    CHECK(gguf_get_i32s(&g, "tokenizer.ggml.scores", &pool, &numbers, &n, NULL) == 1 && n == 4 && numbers[3] == -1 &&
          numbers[0] == 1);
    gguf_close(&g);
    free(copy);
    pool_free(&pool);
}

TEST(ggml_1516_small_file_asks_for_gigabytes) {
    head(0, 1);
    array("k", GGUF_U8, 1u << 24);
    zeros(120);
    mem_fail_at(0, 0);
    refuses("more than the file has bytes for");
    CHECK(mem_fail_at(0, 0) < 8);
    head(0, 1);
    key("k", GGUF_STRING);
    u64(1u << 24);
    zeros(120);
    refuses("the file ends inside k");
}

TEST(cve_2026_7482_declared_more_than_there_is) {
    head(1, 0);
    tensor("a", 2, 64, 16, 0, 0);
    pad(32);
    zeros(64 * 16 * 4);
    accepts();
    b.length--;
    refuses("tensor 'a' needs 4096 bytes at offset 0 and the file ends before");
    head(2, 0);
    tensor("a", 1, 8, 0, 0, 0);
    tensor("b", 1, 8, 0, 0, 32);
    pad(32);
    zeros(32 + 31); // the padding after the last tensor may be missing, its data may not
    refuses("tensor 'b' needs 32 bytes at offset 32");
}

TEST(gguf_py_nested_arrays_and_endless_counts) {
    head(0, 1);
    array("k", GGUF_ARRAY, 1);
    zeros(64);
    refuses("an array of arrays");
    for (uint32_t element = 0; element < GGUF_TYPES; element++) {
        head(0, 1);
        array("k", element, UINT64_MAX);
        refuses(element == GGUF_ARRAY ? "an array of arrays" : "elements, the limit is");
    }
}

TEST(duplicates_are_found_in_n_log_n) {
    head(0, 3);
    key_u32("a", 1);
    key_u32("b", 1);
    key_u32("a", 2);
    refuses("key 'a' appears twice");
    head(2, 0);
    tensor("t", 1, 8, 0, 0, 0);
    tensor("t", 1, 8, 0, 0, 32);
    pad(32);
    zeros(64);
    refuses("tensor 't' appears twice");
    char name[32];
    for (int twice = 0; twice < 2; twice++) {
        head(0, GGUF_MAX_KEYS);
        for (int i = 0; i < GGUF_MAX_KEYS; i++) {
            snprintf(name, sizeof name, "key.with.a.common.start.%06d", twice && i == GGUF_MAX_KEYS - 1 ? 17 : i);
            key(name, GGUF_U8);
            text_char(&b, 0);
        }
        double start = clock_now();
        if (twice)
            refuses("key 'key.with.a.common.start.000017' appears twice");
        else
            accepts();
        CHECK_MSG(clock_now() - start < 2.0, "%.1f s", clock_now() - start);
    }
    head(0, GGUF_MAX_KEYS + 1);
    for (int i = 0; i <= GGUF_MAX_KEYS; i++) {
        snprintf(name, sizeof name, "key%06d", i);
        key(name, GGUF_U8);
        text_char(&b, 0);
    }
    refuses("65537 keys, more than the limit of 65536");
}

TEST(cve_2024_8063_block_count_is_held_against_a_range) {
    struct gguf g;
    struct error err;
    uint8_t *copy;
    int64_t v = -5;
    head(0, 3);
    key_u32("llama.block_count", 0);
    key("big", GGUF_U64);
    u64(UINT64_MAX);
    key("negative", GGUF_I32);
    u32((uint32_t)-3);
    CHECK(parse(b.length, &g, &copy, &err) == 0);
    CHECK(gguf_get_int(&g, "llama.block_count", 1, 1000, &v, &err) == -1);
    CHECK_STR(err.text, "test.gguf: key 'llama.block_count' is 0, expected 1 to 1000");
    CHECK(gguf_get_int(&g, "big", INT64_MIN, INT64_MAX, &v, NULL) == -1 &&
          gguf_get_int(&g, "negative", 0, 10, &v, NULL) == -1 && v == -5);
    CHECK(gguf_get_int(&g, "absent", 0, 10, &v, NULL) == 0 && v == -5);
    CHECK(gguf_get_int(&g, "negative", -3, -3, &v, NULL) == 1 && v == -3);
    gguf_close(&g);
    free(copy);
}

// --- The other rules of the format

TEST(magic_and_version) {
    static const uint32_t versions[] = {0, 1, 4, 0x7FFFFFFF};
    text_clear(&b);
    refuses("the file ends inside the magic");
    text_add(&b, "GGUX");
    zeros(64);
    refuses("does not begin with \"GGUF\" (at byte 0)");
    for (size_t i = 0; i < COUNT_OF(versions); i++) {
        text_clear(&b);
        text_add(&b, "GGUF");
        u32(versions[i]);
        zeros(64);
        refuses("expected 2 or 3");
    }
    text_clear(&b);
    text_add(&b, "GGUF");
    u32(0x03000000);
    zeros(64);
    refuses("big-endian");
    head(0, 0);
    b.data[4] = 2;
    accepts();
}

TEST(values_and_types_of_keys) {
    head(0, 1);
    key("", GGUF_U8);
    zeros(16);
    refuses("a key is empty");
    head(0, 1);
    u64(3);
    text_append(&b, "a\0b", 3);
    zeros(16);
    refuses("holds a NUL");
    static const uint32_t unknown[] = {13, 14, 0xFFFF, 0x80000000u, UINT32_MAX};
    for (size_t i = 0; i < COUNT_OF(unknown); i++) {
        head(0, 1);
        key("k", unknown[i]);
        zeros(16);
        refuses("unknown value type");
        head(0, 1);
        array("k", unknown[i], 1);
        zeros(16);
        refuses("unknown value type");
    }
    for (int byte = 0; byte < 256; byte++) {
        head(0, 2);
        key("k", GGUF_BOOL);
        text_char(&b, (char)byte);
        array("l", GGUF_BOOL, 2);
        text_char(&b, 1);
        text_char(&b, (char)byte);
        if (byte < 2)
            accepts();
        else
            refuses("as a bool");
    }
    head(1, 0); // an empty tensor name
    tensor("", 1, 1, 0, 0, 0);
    zeros(64);
    refuses("a tensor name is empty");
    head(0, 1); // control characters of a hostile name do not reach the terminal
    key("a\x1b[31m\nb", 99);
    zeros(16);
    struct gguf g;
    struct error err;
    uint8_t *copy;
    CHECK(parse(b.length, &g, &copy, &err) == -1 && !strchr(err.text, '\x1b') && !strchr(err.text, '\n'));
    free(copy);
}

TEST(tensor_types_and_places) {
    for (uint32_t type = 0; type < 60; type++) {
        int block, bytes;
        bool known = quant_ggml_type_size((int)type, &block, &bytes);
        head(1, 0);
        tensor("t", 2, known ? (uint64_t)block : 1, 3, type, 0);
        pad(32);
        zeros(1024);
        if (known)
            accepts();
        else
            refuses("unknown or removed type");
        if (!known || block == 1) continue;
        head(1, 0);
        tensor("t", 2, (uint64_t)block + 1, (uint64_t)block, type, 0); // whole blocks in all, not in a row
        zeros(1 << 20);
        refuses("are not whole blocks");
    }
    static const uint32_t wrong[] = {0x7FFFFFFF, 0x80000000u, UINT32_MAX};
    for (size_t i = 0; i < COUNT_OF(wrong); i++) {
        head(1, 0);
        tensor("t", 1, 32, 0, wrong[i], 0);
        zeros(256);
        refuses("unknown or removed type");
    }
    static const uint64_t offsets[] = {0, 31, 33, 36, 64, UINT64_MAX, (uint64_t)1 << 63, UINT64_MAX - 31};
    for (size_t i = 0; i < COUNT_OF(offsets); i++) {
        head(2, 0);
        tensor("a", 1, 8, 0, 0, 0);
        tensor("b", 1, 8, 0, 0, offsets[i]);
        zeros(256);
        refuses("expected 32");
        head(1, 0);
        tensor("a", 1, 8, 0, 0, offsets[i] ? offsets[i] : 32);
        zeros(256);
        refuses("expected 0");
    }
    head(1, 0); // a scalar
    tensor("s", 0, 0, 0, 0, 0);
    pad(32);
    zeros(4);
    accepts();
}

TEST(limits_both_sides) {
    char *name = mem_zalloc(1, 300);
    for (int n = GGUF_MAX_KEY; n <= GGUF_MAX_KEY + 1; n++) {
        memset(name, 'k', (size_t)n);
        head(0, 1);
        key_u32(name, 1);
        if (n == GGUF_MAX_KEY)
            accepts();
        else
            refuses("a key has 257 bytes, the limit is 256");
    }
    for (int n = GGUF_MAX_NAME; n <= GGUF_MAX_NAME + 1; n++) {
        memset(name, 0, 300);
        memset(name, 't', (size_t)n);
        head(1, 0);
        tensor(name, 4, 1, 1, 0, 0);
        pad(32);
        zeros(4);
        if (n == GGUF_MAX_NAME)
            accepts();
        else
            refuses("a tensor name has 64 bytes, the limit is 63");
    }
    mem_free(name);
    char *megabytes = mem_zalloc(1, GGUF_MAX_ARRAY + 1);
    for (int over = 0; over < 2; over++) {
        head(0, 1);
        key("k", GGUF_STRING);
        u64((uint64_t)GGUF_MAX_STRING + (uint64_t)over);
        text_append(&b, megabytes, (size_t)GGUF_MAX_STRING + (size_t)over);
        if (over)
            refuses("k has 16777217 bytes, the limit is 16777216");
        else
            accepts();
        head(0, 1);
        array("k", GGUF_U8, (uint64_t)GGUF_MAX_ARRAY + (uint64_t)over);
        text_append(&b, megabytes, (size_t)GGUF_MAX_ARRAY + (size_t)over);
        if (over)
            refuses("16777217 elements, the limit is 16777216");
        else
            accepts();
    }
    mem_free(megabytes);
    for (int over = 0; over < 2; over++) {
        uint64_t n = GGUF_MAX_TENSORS + (uint64_t)over;
        char short_name[16];
        head(n, 1);
        key_u32("general.alignment", 8);
        for (uint64_t i = 0; i < n; i++) {
            snprintf(short_name, sizeof short_name, "%07d", (int)(i * 7919 % n));
            tensor(short_name, 1, 2, 0, 0, i * 8);
        }
        pad(8);
        zeros(n * 8);
        if (over)
            refuses("1000001 tensors, more than the limit of 1000000");
        else
            accepts();
    }
    text_free(&b);
}

TEST_MAIN(CASE(cve_2024_21825_count_of_strings_times_size_wraps), CASE(cve_2024_23496_string_length_plus_one_wraps),
          CASE(cve_2024_21802_more_dimensions_than_the_array_holds), CASE(cve_2024_21836_tensor_count_times_size_wraps),
          CASE(cve_2024_23605_key_count_times_size_wraps), CASE(cve_2025_53630_and_cve_2026_27940_sum_of_sizes_wraps),
          CASE(cve_2026_33298_elements_times_type_size_wraps), CASE(issue_24759_padding_wraps_to_zero),
          CASE(issue_15711_table_larger_than_the_bound), CASE(issue_24263_dimension_zero),
          CASE(issue_27203_product_wraps_negative), CASE(issue_24997_alignment_without_upper_bound),
          CASE(alignment_of_the_wrong_type), CASE(scores_declared_i8_and_read_as_float),
          CASE(ggml_1516_small_file_asks_for_gigabytes), CASE(cve_2026_7482_declared_more_than_there_is),
          CASE(gguf_py_nested_arrays_and_endless_counts), CASE(duplicates_are_found_in_n_log_n),
          CASE(cve_2024_8063_block_count_is_held_against_a_range), CASE(magic_and_version),
          CASE(values_and_types_of_keys), CASE(tensor_types_and_places), CASE(limits_both_sides))
