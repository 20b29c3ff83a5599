// The YAML reader: scalars of the YAML 1.2 core schema, positions, limits on both sides, and what is refused.
#include "configs/yaml.h"
#include "tests/harness.h"

#include <stdio.h>
#include <string.h>

static struct pool pool;
static struct yaml_node *root;
static struct error err;

static int parse_bytes(const char *bytes, size_t length) {
    pool_free(&pool);
    root = NULL;
    err = (struct error){0};
    return yaml_parse(bytes, length, "t.yml", true, &pool, &root, &err);
}

static int parse(const char *text) {
    return parse_bytes(text, strlen(text));
}

// The text is refused with code 78 and a message that contains `what`.
static void refused(const char *text, const char *what) {
    CHECK_MSG(parse(text) == -1, "accepted: %.60s", text);
    CHECK_INT(err.code, STATUS_CONFIG);
    CHECK_MSG(strstr(err.text, what), "%.60s: \"%s\" lacks \"%s\"", text, err.text, what);
}

TEST(scalars_of_the_core_schema) {
    static const struct {
        const char *text;
        enum yaml_scalar type;
    } cases[] = {
        {"", YAML_NULL},        {"~", YAML_NULL},         {"null", YAML_NULL},       {"Null", YAML_NULL},
        {"NULL", YAML_NULL},    {"nULL", YAML_STRING},    {"true", YAML_BOOL},       {"True", YAML_BOOL},
        {"FALSE", YAML_BOOL},   {"tRUE", YAML_STRING},    {"yes", YAML_STRING},      {"no", YAML_STRING},
        {"on", YAML_STRING},    {"Off", YAML_STRING},     {"0", YAML_INT},           {"-12", YAML_INT},
        {"+7", YAML_INT},       {"0x1F", YAML_INT},       {"0o17", YAML_INT},        {"0b11", YAML_STRING},
        {"0x", YAML_STRING},    {"0o8", YAML_STRING},     {"-0x1", YAML_STRING},     {"1_000", YAML_STRING},
        {"1e-4", YAML_FLOAT},   {"2e-5", YAML_FLOAT},     {"1.", YAML_FLOAT},        {".5", YAML_FLOAT},
        {"-.5E+3", YAML_FLOAT}, {"1e", YAML_STRING},      {".", YAML_STRING},        {"1.2.3", YAML_STRING},
        {"e5", YAML_STRING},    {".inf", YAML_NONFINITE}, {"-.INF", YAML_NONFINITE}, {".NaN", YAML_NONFINITE},
        {"inf", YAML_STRING},   {"nan", YAML_STRING},     {"12:30", YAML_STRING},    {"2024-01-01", YAML_STRING},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++)
        CHECK_MSG(yaml_resolve(cases[i].text) == cases[i].type, "'%s' is %d", cases[i].text,
                  yaml_resolve(cases[i].text));
}

TEST(numbers) {
    int64_t whole = 0;
    double number = 0;
    CHECK(yaml_int("0x1F", &whole) && whole == 31);
    CHECK(yaml_int("0o17", &whole) && whole == 15);
    CHECK(yaml_int("012", &whole) && whole == 12);
    CHECK(yaml_int("9223372036854775807", &whole) && whole == INT64_MAX);
    CHECK(!yaml_int("9223372036854775808", &whole));
    CHECK(yaml_int("-9223372036854775808", &whole) && whole == INT64_MIN);
    CHECK(!yaml_int("-9223372036854775809", &whole));
    CHECK(!yaml_int("0x8000000000000000", &whole));
    CHECK(!yaml_int("1.0", &whole));
    CHECK(yaml_float("1e-4", &number) && number == 1e-4);
    CHECK(yaml_float("0x10", &number) && number == 16);
    CHECK(yaml_float("3", &number) && number == 3);
    CHECK(!yaml_float("1e999", &number));
    CHECK(!yaml_float(".inf", &number));
    CHECK(!yaml_float("1e-4 ", &number));
}

TEST(tree_and_positions) {
    CHECK_INT(parse("# comment\na: 1\nb:\n  - x\n  - {c: 'true', d: \"\\u00e9\"}\ne: |\n  two\n  lines\nf:\n"), 0);
    CHECK_INT(root->count, 4);
    const struct yaml_node *b = yaml_find(root, "b"), *e = yaml_find(root, "e");
    CHECK_INT(yaml_find(root, "a")->line, 2);
    CHECK_INT(b->line, 3);
    CHECK_INT(b->first->next->line, 5);
    CHECK_INT(b->first->next->column, 5);
    CHECK_STR(yaml_find(b->first->next, "c")->text, "true");
    CHECK_INT(yaml_find(b->first->next, "c")->scalar, YAML_STRING);
    CHECK_STR(yaml_find(b->first->next, "d")->text, "\xc3\xa9");
    CHECK_STR(e->text, "two\nlines\n");
    CHECK_INT(e->line, 6);
    CHECK(yaml_null(yaml_find(root, "f")));
    CHECK(!yaml_find(root, "g"));
}

TEST(empty_documents) {
    CHECK(parse("") == 0 && !root);
    CHECK(parse("# nothing\n\n") == 0 && !root);
    CHECK(parse("---\n") == 0 && yaml_null(root));
    CHECK(parse("\xef\xbb\xbf"
                "a: 1\n") == 0 &&
          root->count == 1);
    CHECK(parse("%YAML 1.2\n---\na: 1\n...\n") == 0 && root->count == 1);
}

TEST(json_is_read_too) {
    CHECK_INT(parse("{\"a\":1,\n\t\"b\":[true,null,\"1e-4\",-2.5e3],\n\t\"c\":{\"d\":\"x\\/y\\n\"}}\n"), 0);
    CHECK_INT(yaml_find(root, "b")->count, 4);
    CHECK_INT(yaml_find(root, "b")->first->scalar, YAML_BOOL);
    CHECK_STR(yaml_find(yaml_find(root, "c"), "d")->text, "x/y\n");
}

TEST(refused_constructs) {
    refused("a: &x 1\n", "t.yml:1: anchors");
    refused("a: 1\nb: *x\n", "t.yml:2: aliases");
    refused("a: &x [1]\nb: *x\n", "anchors");
    refused("a: !!str 1\n", "tags");
    refused("a: !python/object:os.system [x]\n", "tags");
    refused("%TAG ! tag:x,2000:\n---\na: 1\n", "%TAG");
    refused("a: 1\n<<: {b: 2}\n", "t.yml:2: merge keys");
    refused("a: 1\n---\nb: 2\n", "t.yml:2: a second document");
    refused("a: 1\nb: 2\na: 3\n", "t.yml:3: duplicate key 'a', first at line 1");
    refused("{a: {b: 1, b: 2}}", "duplicate key 'b'");
    refused("[x]: 1\n", "a list or map as a key");
    refused("? \n: 1\n", "a key is missing");
    refused("a: \"x\\0y\"\n", "NUL");
    refused("a:\n\tb: 1\n", "t.yml:2: a tab in the indentation");
    refused("a: [1, 2\n", "t.yml:2: ");
    refused("a: 'x\n", "found unexpected end of stream");
    refused("a: b: c\n", "t.yml:1: mapping values are not allowed");
    refused("a: \xff\n", "t.yml:1: ");
    refused("a: 1\nb: \x01\n", "t.yml:2: control characters");
    refused("\xff\xfe"
            "a",
            "UTF-16");
    CHECK_INT(parse("'<<': 1\n"), 0); // quoted it is an ordinary key
}

TEST(depth_on_both_sides) {
    char text[400];
    for (int depth = 31; depth <= 34; depth++) {
        memset(text, '[', (size_t)depth);
        memset(text + depth, ']', (size_t)depth);
        CHECK_MSG((parse_bytes(text, 2 * (size_t)depth) == 0) == (depth <= YAML_MAX_DEPTH), "depth %d", depth);
        size_t n = 0;
        for (int i = 0; i < depth; i++) n += (size_t)snprintf(text + n, sizeof text - n, "- ");
        text[n++] = 'x';
        CHECK_MSG((parse_bytes(text, n) == 0) == (depth <= YAML_MAX_DEPTH), "block depth %d", depth);
    }
    CHECK(strstr(err.text, "deeper than 32"));
    CHECK_INT(parse("a: \"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\"\n"), 0); // brackets in text are no nesting
    CHECK_INT(parse("a: |\n  {{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{\n# [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\n"),
              0);
}

// Inputs that cost a careless reader minutes: each must be refused or read in well under a second.
TEST(hostile_shapes_are_fast) {
    static const char *const units[] = {
        "[", "{",    "{a: ", "[\n", "- ",     "? ", "[a: ", "{[", "? [",    "- {a: ", "\"a", "[\"a", "!", "&a ", "%",
        "'", "|\n ", ">\n",  "#",   "a: b\n", "a,", "[]",   "\t", "[ # \n", "- [\n",  "*a ", ": ",   "]", "x",   "\n"};
    enum { SIZE = YAML_MAX_BYTES };
    char *bytes = mem_alloc(SIZE);
    CHECK(bytes);
    for (size_t i = 0; i < COUNT_OF(units) && bytes; i++) {
        size_t n = strlen(units[i]);
        for (size_t k = 0; k < SIZE; k++) bytes[k] = units[i][k % n];
        double start = clock_now();
        parse_bytes(bytes, 100 * 1000);
        double first = clock_now() - start;
        parse_bytes(bytes, SIZE);
        double all = clock_now() - start;
        CHECK_MSG(first < 0.1 && all < 1, "'%s': %.3f s for 100 KB, %.3f s for 1 MiB more", units[i], first, all);
    }
    mem_free(bytes);
}

TEST(size_on_both_sides) {
    char *bytes = mem_alloc(YAML_MAX_BYTES + 1);
    CHECK(bytes);
    if (!bytes) return;
    memset(bytes, '#', YAML_MAX_BYTES + 1);
    CHECK_INT(parse_bytes(bytes, YAML_MAX_BYTES), 0);
    CHECK_INT(parse_bytes(bytes, YAML_MAX_BYTES + 1), -1);
    CHECK(strstr(err.text, "larger than 1 MiB"));
    mem_free(bytes);
}

TEST(counts_on_both_sides) {
    struct text t = {0};
    for (int i = 0; i < YAML_MAX_KEYS; i++) text_printf(&t, "k%d:\n", i);
    double start = clock_now();
    CHECK_INT(parse(text_str(&t)), 0);
    CHECK_MSG(clock_now() - start < 1, "%.3f s for 10000 keys", clock_now() - start);
    CHECK_INT(root ? root->count : 0, YAML_MAX_KEYS);
    struct text twice = {0}; // duplicates are found in large maps too
    text_printf(&twice, "%.*s%s", 1990, text_str(&t), "k17: x\n");
    refused(text_str(&twice), "duplicate key 'k17', first at line 18");
    text_free(&twice);
    text_add(&t, "one: more\n");
    refused(text_str(&t), "t.yml:10001: more than 10000 keys");
    text_clear(&t);
    text_char(&t, '['); // the list is a value too
    for (int i = 1; i < YAML_MAX_NODES; i++) text_add(&t, "1,");
    CHECK_INT(parse_bytes(t.data, t.length) == -1 && strstr(err.text, "more than") == NULL,
              1); // only the ']' is missing
    text_char(&t, ']');
    CHECK_INT(parse(text_str(&t)), 0);
    t.data[t.length - 1] = '1';
    text_char(&t, ']');
    refused(text_str(&t), "more than 100000 values");
    text_free(&t);
}

TEST(values_of_a_command_line) {
    struct yaml_node *v = NULL;
    err = (struct error){0};
    CHECK(yaml_parse_value("[a, b]", "o", &pool, &v, &err) == 0 && v->kind == YAML_LIST && v->count == 2);
    CHECK(yaml_parse_value("{a: 1}", "o", &pool, &v, &err) == 0 && v->kind == YAML_MAP);
    CHECK(yaml_parse_value("1e-4", "o", &pool, &v, &err) == 0 && v->scalar == YAML_FLOAT);
    CHECK(yaml_parse_value("\"1\"", "o", &pool, &v, &err) == 0 && v->scalar == YAML_STRING);
    CHECK(yaml_parse_value("a: b # c", "o", &pool, &v, &err) == 0 && strcmp(v->text, "a: b # c") == 0);
    CHECK(yaml_parse_value("", "o", &pool, &v, &err) == 0 && yaml_null(v));
    CHECK(yaml_parse_value("\xc3\xa9", "o", &pool, &v, &err) == 0);
    CHECK_INT(err.code, 0);
    static const char *const bad[] = {"[a", "\"x", "\xc3", "\xed\xa0\x80", "\xc0\x80", "\x1b[31m", "[a] b", "[&x a]"};
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        err = (struct error){0};
        CHECK_MSG(yaml_parse_value(bad[i], "o", &pool, &v, &err) == -1, "accepted '%s'", bad[i]);
        CHECK(strncmp(err.text, "o: ", 3) == 0);
    }
    pool_free(&pool);
}

TEST_MAIN(CASE(scalars_of_the_core_schema), CASE(numbers), CASE(tree_and_positions), CASE(empty_documents),
          CASE(json_is_read_too), CASE(refused_constructs), CASE(depth_on_both_sides), CASE(hostile_shapes_are_fast),
          CASE(size_on_both_sides), CASE(counts_on_both_sides), CASE(values_of_a_command_line))
