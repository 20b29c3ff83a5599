// safetensors: the reference's rules ST-01 to ST-21, both sides of each limit, cuts at every byte, flipped bits,
// failing allocations and writes, and bytes equal to the reference writer's.
#include "model/safetensors.h"
#include "tests/harness.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct text b; // the file under construction

// A header (its length written before it) and `data` zero bytes.
static void build(const char *header, size_t length, size_t data) {
    uint64_t n = length;
    text_clear(&b);
    text_append(&b, &n, 8);
    text_append(&b, header, length);
    while (data-- > 0) text_char(&b, 0);
}

// Parses a copy of exactly the right size, so that a sanitizer sees every byte too many.
static int parse(size_t length, struct safetensors *s, uint8_t **copy, struct error *err) {
    *err = (struct error){0};
    *copy = malloc(length); // mem_alloc rounds sizes up
    memcpy(*copy, b.data, length);
    int result = safetensors_parse(*copy, length, "t.safetensors", s, err);
    if (result < 0) CHECK(s->entries == NULL && s->pool.head == NULL && s->header.root == NULL);
    return result;
}

static void refuses(const char *message) {
    struct safetensors s;
    struct error err;
    uint8_t *copy;
    int result = parse(b.length, &s, &copy, &err);
    CHECK_MSG(result < 0 && err.code == STATUS_DATA && strstr(err.text, message) &&
                  strncmp(err.text, "t.safetensors: ", 15) == 0,
              "%.80s: result %d, code %d, \"%s\" lacks \"%s\"", b.data + 8, result, err.code, err.text, message);
    safetensors_close(&s);
    free(copy);
}

static size_t accepts(void) {
    struct safetensors s;
    struct error err;
    uint8_t *copy;
    CHECK_MSG(parse(b.length, &s, &copy, &err) == 0, "%.80s: %s", b.data + 8, err.text);
    size_t n = s.n_entries;
    safetensors_close(&s);
    free(copy);
    return n;
}

static void refuses_header(const char *header, size_t data, const char *message) {
    build(header, strlen(header), data);
    refuses(message);
}
static size_t accepts_header(const char *header, size_t data) {
    build(header, strlen(header), data);
    return accepts();
}

#define ENTRY(name, dtype, shape, begin, end)                                                                          \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" #begin "," #end "]}"
#define ONE(dtype, shape, begin, end) "{" ENTRY("w", dtype, shape, begin, end) "}"

TEST(st_01_shorter_than_its_length_field) {
    for (size_t n = 0; n < 8; n++) {
        build("", 0, 0);
        b.length = n;
        refuses("too few for a safetensors file");
    }
}

TEST(st_02_header_limit) {
    char *spaces = mem_alloc(ST_MAX_HEADER + 1);
    memset(spaces, ' ', ST_MAX_HEADER + 1);
    memcpy(spaces, "{}", 2);
    build(spaces, ST_MAX_HEADER, 0);
    CHECK_INT(accepts(), 0);
    build(spaces, ST_MAX_HEADER + 1, 0);
    refuses("a header of 100000001 bytes, the limit is 100000000");
    mem_free(spaces);
    text_free(&b);
}

TEST(st_03_header_beyond_the_file) {
    static const uint64_t lengths[] = {3, 1000, 99999999};
    static const uint64_t huge[] = {UINT64_MAX, UINT64_MAX - 7, UINT64_MAX - 8, (uint64_t)1 << 63, (uint64_t)1 << 32};
    build("{}", 2, 0);
    CHECK_INT(accepts(), 0);
    for (size_t i = 0; i < COUNT_OF(lengths); i++) {
        memcpy(b.data, &lengths[i], 8);
        refuses("the file ends inside the header");
    }
    for (size_t i = 0; i < COUNT_OF(huge); i++) {
        memcpy(b.data, &huge[i], 8);
        refuses("the limit is 100000000");
    }
}

TEST(st_04_header_is_utf8) {
    build("{\"\xFF\":1}", 7, 0);
    refuses("header:1:3: invalid UTF-8");
    build("{\"__metadata__\":{\"\xC0\x80\":\"\"}}", 26, 0);
    refuses("invalid UTF-8");
    refuses_header("\xEF\xBB\xBF{}", 0, "byte order mark");
    refuses_header("{\"\\ud800\":1}", 0, "half of a surrogate pair");
}

TEST(st_05_header_is_one_json_value) {
    refuses_header("", 0, "a value is expected");
    refuses_header("{", 0, "the text ends");
    refuses_header("{}x", 0, "something follows");
    refuses_header("{}{}", 0, "something follows");
    build("{}\0", 3, 0);
    refuses("something follows");
    refuses_header("{'w':1}", 0, "a key in double quotes");
    refuses_header("{\"w\":NaN}", 0, "a value is expected");
}

TEST(st_06_white_space_around_the_header) {
    CHECK_INT(accepts_header("  \t\r\n{} \n\t ", 0), 0);
    CHECK_INT(accepts_header("{}                      ", 0), 0);
}

TEST(st_07_header_is_an_object) {
    refuses_header("[]", 0, "the header is an array, expected an object");
    refuses_header("null", 0, "the header is null, expected an object");
    refuses_header("\"x\"", 0, "the header is a string, expected an object");
    refuses_header("{\"w\":[]}", 0, "tensor 'w': the value around key 'dtype' is an array, expected an object");
    refuses_header("{\"w\":null}", 0, "tensor 'w': ");
    refuses_header("{\"w\":{}}", 0, "tensor 'w': key 'dtype' is missing");
    refuses_header("{\"w\":{\"dtype\":\"F32\"}}", 0, "tensor 'w': key 'shape' is missing");
    refuses_header("{\"w\":{\"dtype\":\"F32\",\"shape\":[]}}", 4, "tensor 'w': key 'data_offsets' is missing");
    refuses_header("{\"w\":{\"dtype\":7,\"shape\":[],\"data_offsets\":[0,4]}}", 4, "key 'dtype' is a number");
    CHECK_INT(accepts_header("{\"w\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4],\"more\":[{}]}}", 4), 1);
    char deep[400] = "{\"__metadata__\":null,\"w\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1],\"x\":";
    size_t n = strlen(deep);
    for (int extra = 0; extra < 2; extra++) { // two levels are there already
        size_t depth = JSON_MAX_DEPTH - 2 + (size_t)extra, at = n;
        memset(deep + at, '[', depth), at += depth;
        memset(deep + at, ']', depth), at += depth;
        memcpy(deep + at, "}}", 3);
        if (extra)
            refuses_header(deep, 1, "nested too deeply");
        else
            CHECK_INT(accepts_header(deep, 1), 1);
    }
}

TEST(st_08_metadata_is_string_to_string) {
    struct safetensors s;
    struct error err;
    uint8_t *copy;
    const char *header = "{\"__metadata__\":{\"format\":\"pt\",\"n\":\"a\\u0000b\"}}";
    build(header, strlen(header), 0);
    CHECK(parse(b.length, &s, &copy, &err) == 0 && s.n_entries == 0);
    size_t length = 0;
    CHECK_STR(safetensors_metadata(&s, "format", NULL), "pt");
    CHECK(safetensors_metadata(&s, "n", &length) && length == 3 && safetensors_metadata(&s, "absent", NULL) == NULL);
    safetensors_close(&s);
    safetensors_close(&s);
    free(copy);
    build("{\"__metadata__\":null}", 21, 0);
    CHECK(parse(b.length, &s, &copy, &err) == 0 && s.metadata == NULL &&
          safetensors_metadata(&s, "format", NULL) == NULL);
    safetensors_close(&s);
    free(copy);
    refuses_header("{\"__metadata__\":{\"a\":1}}", 0, "__metadata__ key 'a' is a number, expected a string");
    refuses_header("{\"__metadata__\":{\"a\":null}}", 0, "__metadata__ key 'a' is null");
    refuses_header("{\"__metadata__\":{\"a\":{}}}", 0, "__metadata__ key 'a' is an object");
    refuses_header("{\"__metadata__\":[]}", 0, "__metadata__ is an array");
    refuses_header("{\"__metadata__\":{},\"__metadata__\":{}}", 0, "appears twice");
}

TEST(st_09_first_tensor_begins_at_zero) {
    refuses_header(ONE("U8", "[4]", 4, 8), 8, "tensor 'w' begins at 4, expected 0");
}

TEST(st_10_no_hole) {
    refuses_header("{" ENTRY("a", "U8", "[4]", 0, 4) "," ENTRY("b", "U8", "[4]", 5, 9) "}", 9,
                   "tensor 'b' begins at 5, expected 4");
    CHECK_INT(accepts_header("{" ENTRY("b", "U8", "[4]", 4, 8) "," ENTRY("a", "U8", "[4]", 0, 4) "}", 8), 2);
}

TEST(st_11_no_overlap) {
    refuses_header("{" ENTRY("a", "U8", "[4]", 0, 4) "," ENTRY("b", "U8", "[4]", 3, 7) "}", 7,
                   "tensor 'b' begins at 3, expected 4");
    refuses_header("{" ENTRY("a", "U8", "[4]", 0, 4) "," ENTRY("b", "U8", "[4]", 0, 4) "}", 4,
                   "tensor 'b' begins at 0, expected 4");
    refuses_header("{" ENTRY("a", "U8", "[4]", 0, 4) "," ENTRY("b", "U8", "[2]", 0, 2) "}", 4, "expected 2");
}

TEST(st_12_end_not_before_begin) {
    refuses_header(ONE("U8", "[4]", 4, 0), 4, "data_offsets end before they begin");
    refuses_header(ONE("U8", "[4]", -4, 0), 4, "data_offsets are not two whole numbers");
    refuses_header("{\"w\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0]}}", 1,
                   "data_offsets are not two whole numbers");
    refuses_header("{\"w\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1,2]}}", 1,
                   "data_offsets are not two whole numbers");
    refuses_header("{\"w\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1.0]}}", 1,
                   "data_offsets are not two whole numbers");
    refuses_header("{\"w\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[-0,1]}}", 1,
                   "data_offsets are not two whole numbers");
    refuses_header("{\"w\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1e0]}}", 1,
                   "data_offsets are not two whole numbers");
    refuses_header("{\"w\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,\"1\"]}}", 1,
                   "data_offsets are not two whole numbers");
    refuses_header("{\"w\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":{}}}", 1,
                   "key 'data_offsets' is an object, expected an array");
}

TEST(st_13_size_is_shape_times_dtype) {
    static const struct {
        const char *name;
        int bits;
    } rows[] = {{"BOOL", 8},    {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6},     {"U8", 8},          {"I8", 8},
                {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},
                {"U16", 16},    {"F16", 16},    {"BF16", 16},   {"I32", 32},        {"U32", 32},        {"F32", 32},
                {"C64", 64},    {"F64", 64},    {"I64", 64},    {"U64", 64}};
    CHECK_INT(COUNT_OF(rows), ST_DTYPES);
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        char header[256];
        size_t bytes = (size_t)rows[i].bits * 24 / 8;
        CHECK_STR(safetensors_dtype_name((enum safetensors_dtype)i), rows[i].name);
        CHECK_INT(safetensors_dtype_bits((enum safetensors_dtype)i), rows[i].bits);
        for (size_t wrong = 0; wrong < 3; wrong++) {
            size_t n = bytes + wrong - 1;
            snprintf(header, sizeof header, "{\"w\":{\"dtype\":\"%s\",\"shape\":[2,3,4],\"data_offsets\":[0,%zu]}}",
                     rows[i].name, n);
            if (wrong == 1)
                CHECK_INT(accepts_header(header, n), 1);
            else
                refuses_header(header, n, "dtype and shape need");
        }
    }
    refuses_header(ONE("F99", "[1]", 0, 4), 4, "unknown dtype 'F99'");
    refuses_header(ONE("f32", "[1]", 0, 4), 4, "unknown dtype 'f32'");
}

TEST(st_14_shape_product_wraps) {
    refuses_header(ONE("U8", "[2,9223372036854775807]", 0, 4), 4, "a dimension is not a whole number");
    refuses_header(ONE("U8", "[2,18446744073709551614]", 0, 4), 4, "a dimension is not a whole number");
    refuses_header(ONE("U8", "[4294967296,4294967296]", 0, 0), 0, "the product of the shape overflows");
    refuses_header(ONE("U8", "[4294967297,4294967296]", 0, 0), 0, "the product of the shape overflows");
    refuses_header(ONE("F64", "[2147483648,1073741824]", 0, 0), 0,
                   "the product of the shape overflows"); // 2^61 elements of 64 bits
    refuses_header(ONE("U8", "[4503599627370496,4503599627370496]", 0, 0), 0, "the product of the shape overflows");
}

TEST(st_15_dimensions_are_counts) {
    refuses_header(ONE("U8", "[-1]", 0, 0), 0, "a dimension is not a whole number");
    refuses_header(ONE("U8", "[1.0]", 0, 1), 1, "a dimension is not a whole number");
    refuses_header(ONE("U8", "[1e0]", 0, 1), 1, "a dimension is not a whole number");
    refuses_header(ONE("U8", "[\"1\"]", 0, 1), 1, "a dimension is not a whole number");
    refuses_header(ONE("U8", "[[1]]", 0, 1), 1, "a dimension is not a whole number");
    refuses_header(ONE("U8", "1", 0, 1), 1, "key 'shape' is a number, expected an array");
    refuses_header(ONE("U8", "[9007199254740993]", 0, 1), 1, "a dimension is not a whole number");
}

TEST(st_16_rank_limit) {
    CHECK_INT(accepts_header(ONE("U8", "[1,1,1,1,1,1,1,2]", 0, 2), 2), 1);
    refuses_header(ONE("U8", "[1,1,1,1,1,1,1,1,2]", 0, 2), 2, "9 dimensions, the limit is 8");
}

TEST(st_17_whole_bytes) {
    refuses_header(ONE("F4", "[3]", 0, 2), 2, "does not end at a whole byte");
    refuses_header(ONE("F4", "[1]", 0, 0), 0, "does not end at a whole byte");
    refuses_header(ONE("F6_E2M3", "[2]", 0, 1), 1, "does not end at a whole byte");
    CHECK_INT(accepts_header(ONE("F4", "[2]", 0, 1), 1), 1);
    CHECK_INT(accepts_header(ONE("F6_E2M3", "[4]", 0, 3), 3), 1);
}

TEST(st_18_nothing_after_the_end) {
    refuses_header(ONE("U8", "[4]", 0, 4), 5,
                   "the tensors end at 4, the file has 5 bytes of data: something follows them");
    refuses_header("{}", 1, "the tensors end at 0");
}

TEST(st_19_truncated) {
    refuses_header(ONE("U8", "[4]", 0, 4), 3, "the tensors end at 4, the file has 3 bytes of data: it is truncated");
    refuses_header(ONE("F32", "[1000000,1000000]", 0, 4000000000000), 8, "it is truncated");
}

TEST(st_20_scalars_and_empty_tensors) {
    struct safetensors s;
    struct error err;
    uint8_t *copy;
    const char *header = "{" ENTRY("s", "F64", "[]", 0, 8) "," ENTRY("e", "F32", "[0,7]", 8, 8) "," ENTRY(
        "f", "F32", "[3,0]", 8, 8) "," ENTRY("t", "U8", "[1]", 8, 9) "}";
    build(header, strlen(header), 9);
    CHECK(parse(b.length, &s, &copy, &err) == 0 && s.n_entries == 4);
    const struct safetensors_entry *e = safetensors_find(&s, "s");
    CHECK(e && e->n_dims == 0 && e->bytes == 8 && e->dtype == ST_F64 && e->data == copy + s.data_start);
    e = safetensors_find(&s, "e");
    CHECK(e && e->n_dims == 2 && e->shape[0] == 0 && e->shape[1] == 7 && e->bytes == 0);
    CHECK(safetensors_find(&s, "") == NULL && safetensors_find(&s, "ss") == NULL &&
          safetensors_find(&s, "t")->bytes == 1);
    safetensors_close(&s);
    free(copy);
    CHECK_INT(accepts_header(ONE("F32", "[0]", 0, 0), 0), 1);
}

TEST(st_21_duplicate_names) { // an auditor must see what the loader loads
    refuses_header("{" ENTRY("w", "U8", "[4]", 0, 4) "," ENTRY("w", "F32", "[1]", 0, 4) "}", 4,
                   "key 'w' appears twice");
    refuses_header("{" ENTRY("w", "U8", "[4]", 0, 4) "," ENTRY("\\u0077", "U8", "[4]", 0, 4) "}", 4,
                   "key 'w' appears twice");
    refuses_header("{\"w\":{\"dtype\":\"U8\",\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4,
                   "key 'dtype' appears twice");
}

TEST(names) {
    char header[2000], name[ST_MAX_NAME + 2] = {0};
    for (int over = 0; over < 2; over++) {
        memset(name, 'n', ST_MAX_NAME + (size_t)over);
        snprintf(header, sizeof header, "{\"%s\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", name);
        if (over)
            refuses_header(header, 1, "is longer than 1024 bytes");
        else
            CHECK_INT(accepts_header(header, 1), 1);
    }
    refuses_header("{" ENTRY("a\\u0000b", "U8", "[1]", 0, 1) "}", 1, "holds a NUL");
    refuses_header("{" ENTRY("a\\u001b[31m", "X", "[1]", 0, 1) "}", 1,
                   "tensor 'a?[31m': unknown dtype"); // no escape reaches the terminal
    CHECK_INT(
        accepts_header("{" ENTRY("", "U8", "[1]", 0, 1) "," ENTRY("../\\\"\xE2\x82\xAC", "U8", "[1]", 1, 2) "}", 2), 2);
}

TEST(tensor_count_limit) {
    for (uint64_t n = ST_MAX_TENSORS; n <= ST_MAX_TENSORS + 1; n++) {
        struct text header = {0};
        text_add(&header, "{");
        for (uint64_t i = 0; i < n; i++)
            text_printf(&header, "%s\"%u\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[%u,%u]}", i ? "," : "",
                        (unsigned)(i * 7919 % n), (unsigned)i, (unsigned)i + 1);
        text_add(&header, "}");
        build(header.data, header.length, n);
        text_free(&header);
        if (n == ST_MAX_TENSORS)
            CHECK_INT(accepts(), ST_MAX_TENSORS);
        else
            refuses("more than 1000000 tensors");
    }
    text_free(&b);
}

// --- Writing

static bool write_file(const char *path, const struct safetensors_out *entries, size_t count, struct error *err) {
    struct file_writer out;
    file_remove(path, NULL);
    if (file_create(path, &out, err) < 0) return false;
    if (safetensors_write(&out, entries, count, err) == 0 && file_close(&out, err) == 0) return true;
    file_abandon(&out);
    return false;
}

static int fill(void *context, struct file_writer *out, struct error *err) {
    const char *text = context;
    for (; *text; text++)
        if (file_write(out, text, 1, err) < 0) return -1;
    return 0;
}

static const uint8_t data[64] = {1, 2, 3, 4, 5, 6, 7, 8};
static const struct safetensors_out small[] = {
    {.name = "b.small", .dtype = ST_I8, .n_dims = 1, .shape = {3}, .data = data},
    {.name = "a.lora_A.weight", .dtype = ST_F32, .n_dims = 2, .shape = {2, 3}, .data = data},
    {.name = "scalar", .dtype = ST_I64, .n_dims = 0, .data = data},
    {.name = "quote\"\n",
     .dtype = ST_BF16,
     .n_dims = 1,
     .shape = {2},
     .fill = fill,
     .context = (void *)(uintptr_t) "wxyz"},
    {.name = "B", .dtype = ST_F32, .n_dims = 1, .shape = {1}, .data = data + 1},
    {.name = "empty", .dtype = ST_F32, .n_dims = 2, .shape = {0, 5}},
};

static void small_file(void) {
    char *path = path_join(test_folder(), "small.safetensors");
    struct error err = {0};
    CHECK_MSG(write_file(path, small, COUNT_OF(small), &err), "%s", err.text);
    text_free(&b);
    CHECK(file_read(path, 1 << 20, &b, &err) == 0);
    mem_free(path);
}

TEST(bytes_equal_the_reference_writer) {
    // safetensors 0.8 for {"w": float32 [[0,1,2],[3,4,5]]} with metadata {"format":"pt"}.
    static const char want[] = "X\0\0\0\0\0\0\0{\"__metadata__\":{\"format\":\"pt\"},\"w\":{\"dtype\":\"F32\","
                               "\"shape\":[2,3],\"data_offsets\":[0,24]}}"
                               "\0\0\0\0\0\0\x80\x3f\0\0\0\x40\0\0\x40\x40\0\0\x80\x40\0\0\xa0\x40";
    static const float w[] = {0, 1, 2, 3, 4, 5};
    char *path = path_join(test_folder(), "one.safetensors");
    struct error err = {0};
    struct text t;
    CHECK(write_file(path,
                     &(struct safetensors_out){.name = "w", .dtype = ST_F32, .n_dims = 2, .shape = {2, 3}, .data = w},
                     1, &err));
    CHECK(file_read(path, 1 << 20, &t, &err) == 0 && t.length == sizeof want - 1 &&
          memcmp(t.data, want, t.length) == 0);
    text_free(&t);
    CHECK(write_file(path, NULL, 0, &err) && file_read(path, 1 << 20, &t, &err) == 0);
    CHECK(t.length == 40 && memcmp(t.data, " \0\0\0\0\0\0\0{\"__metadata__\":{\"format\":\"pt\"}}", 40) == 0);
    text_free(&t);
    mem_free(path);
    small_file(); // wide types first, then names bytewise; padded to eight
    const char *header =
        "{\"__metadata__\":{\"format\":\"pt\"},\"scalar\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[0,8]},"
        "\"B\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[8,12]},\"a.lora_A.weight\":{\"dtype\":\"F32\","
        "\"shape\":[2,3],\"data_offsets\":[12,36]},"
        "\"empty\":{\"dtype\":\"F32\",\"shape\":[0,5],\"data_offsets\":[36,36]},\"quote\\\"\\n\":{\"dtype\":\"BF16\","
        "\"shape\":[2],\"data_offsets\":[36,40]},"
        "\"b.small\":{\"dtype\":\"I8\",\"shape\":[3],\"data_offsets\":[40,43]}}";
    size_t n = strlen(header);
    CHECK(memcmp(b.data + 8, header, n) == 0 && b.length == 8 + (n + 7) / 8 * 8 + 43);
    CHECK(memcmp(b.data + b.length - 7, "wxyz\1\2\3", 7) == 0);
}

TEST(write_read_write_is_identical) {
    char *path = path_join(test_folder(), "small.safetensors"), *again = path_join(test_folder(), "again.safetensors");
    struct safetensors s;
    struct safetensors_out out[COUNT_OF(small)] = {{0}};
    struct error err = {0};
    struct text t;
    small_file();
    CHECK(safetensors_open(path, &s, &err) == 0 && s.n_entries == COUNT_OF(small));
    for (size_t i = 0; i < s.n_entries; i++) {
        const struct safetensors_entry *e = &s.entries[s.n_entries - 1 - i];
        out[i] = (struct safetensors_out){.name = e->name, .dtype = e->dtype, .n_dims = e->n_dims, .data = e->data};
        memcpy(out[i].shape, e->shape, sizeof e->shape);
    }
    CHECK(write_file(again, out, s.n_entries, &err) && file_read(again, 1 << 20, &t, &err) == 0);
    CHECK(t.length == b.length && memcmp(t.data, b.data, t.length) == 0);
    text_free(&t);
    safetensors_close(&s);
    mem_free(path);
    mem_free(again);
}

TEST(truncation_at_every_byte) {
    struct safetensors s;
    struct error err;
    uint8_t *copy;
    small_file();
    for (size_t n = 0; n <= b.length; n++) {
        int result = parse(n, &s, &copy, &err);
        CHECK_MSG(result == (n < b.length ? -1 : 0) && err.code == (n < b.length ? STATUS_DATA : 0), "cut at %zu", n);
        safetensors_close(&s);
        free(copy);
    }
    char *path = path_join(test_folder(), "cut.safetensors"); // the same through the file
    CHECK(file_replace(path, b.data, b.length, NULL) == 0);
    for (size_t i = 200; i-- > 0;) {
        CHECK(file_truncate(path, b.length * i / 200, NULL) == 0);
        err = (struct error){0};
        CHECK_MSG(safetensors_open(path, &s, &err) == -1 && err.code == STATUS_DATA &&
                      strstr(err.text, "cut.safetensors: "),
                  "cut %zu", i);
    }
    err = (struct error){0};
    CHECK(safetensors_open("/nowhere.safetensors", &s, &err) == -1 && err.code == STATUS_NOINPUT);
    mem_free(path);
}

TEST(bit_flips) {
    struct safetensors s;
    struct error err;
    uint8_t *copy;
    uint64_t sum = 0; // of bytes that must be readable
    small_file();
    for (size_t bit = 0; bit < 8 * b.length; bit++) {
        b.data[bit / 8] = (char)(b.data[bit / 8] ^ (1 << bit % 8));
        if (parse(b.length, &s, &copy, &err) == 0) {
            for (size_t i = 0; i < s.n_entries; i++)
                if (s.entries[i].bytes) sum += s.entries[i].data[0] + s.entries[i].data[s.entries[i].bytes - 1];
            safetensors_close(&s);
        } else {
            CHECK_INT(err.code, STATUS_DATA);
        }
        free(copy);
        b.data[bit / 8] = (char)(b.data[bit / 8] ^ (1 << bit % 8));
    }
    CHECK(sum > 0);
}

TEST(allocation_failures_leave_nothing_behind) {
    small_file();
    for (int forever = 0; forever < 2; forever++) {
        bool done = false;
        for (uint64_t k = 1; !done && k < 200; k++) {
            struct safetensors s;
            struct error err = {0};
            mem_fail_at(k, forever);
            int result = safetensors_parse((const uint8_t *)b.data, b.length, "t", &s, &err);
            done = mem_fail_at(0, 0) < k;
            CHECK(result == (done ? 0 : -1) && err.code == (done ? 0 : STATUS_MEMORY));
            safetensors_close(&s);
        }
        CHECK(done);
    }
    char *path = path_join(test_folder(), "oom.safetensors");
    bool done = false;
    for (uint64_t k = 1; !done && k < 200; k++) {
        struct error err = {0};
        mem_fail_at(k, 0);
        bool ok = write_file(path, small, COUNT_OF(small), &err);
        done = mem_fail_at(0, 0) < k;
        CHECK_MSG(ok == done && err.code == (done ? 0 : STATUS_MEMORY) && file_exists(path) == done, "%s", err.text);
    }
    CHECK(done);
    mem_free(path);
}

TEST(failing_writes_leave_no_file) {
    char *path = path_join(test_folder(), "full.safetensors");
    bool done = false;
    for (uint64_t k = 2; !done && k < 100; k++) { // 1 removes the old file
        struct error err = {0};
        file_fail_at(k, ENOSPC, 0);
        bool ok = write_file(path, small, COUNT_OF(small), &err);
        done = file_fail_at(0, 0, 0) < k;
        CHECK(ok == done && file_exists(path) == done &&
              (done || err.code == STATUS_IO || err.code == STATUS_CANTCREATE));
    }
    CHECK(done);
    struct safetensors_out wrong = small[3];
    struct error err = {0};
    wrong.shape[0] = 3;
    CHECK(!write_file(path, &wrong, 1, &err) && err.code == STATUS_INTERNAL && !file_exists(path));
    mem_free(path);
    text_free(&b);
}

TEST_MAIN(CASE(st_01_shorter_than_its_length_field), CASE(st_02_header_limit), CASE(st_03_header_beyond_the_file),
          CASE(st_04_header_is_utf8), CASE(st_05_header_is_one_json_value), CASE(st_06_white_space_around_the_header),
          CASE(st_07_header_is_an_object), CASE(st_08_metadata_is_string_to_string),
          CASE(st_09_first_tensor_begins_at_zero), CASE(st_10_no_hole), CASE(st_11_no_overlap),
          CASE(st_12_end_not_before_begin), CASE(st_13_size_is_shape_times_dtype), CASE(st_14_shape_product_wraps),
          CASE(st_15_dimensions_are_counts), CASE(st_16_rank_limit), CASE(st_17_whole_bytes),
          CASE(st_18_nothing_after_the_end), CASE(st_19_truncated), CASE(st_20_scalars_and_empty_tensors),
          CASE(st_21_duplicate_names), CASE(names), CASE(tensor_count_limit), CASE(bytes_equal_the_reference_writer),
          CASE(write_read_write_is_identical), CASE(truncation_at_every_byte), CASE(bit_flips),
          CASE(allocation_failures_leave_nothing_behind), CASE(failing_writes_leave_no_file))
