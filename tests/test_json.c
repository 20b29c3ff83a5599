// The JSON reader and writer: what must be accepted, what must be refused and where, both sides of each limit,
// allocation failures, and write -> read -> write.
#include "data/json.h"
#include "tests/harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int parse(const char *text, size_t length, const struct json_options *options, struct json_document *d,
                 struct error *err) {
    *err = (struct error){0};
    char *exact = malloc(length); // no byte to spare (mem_alloc rounds up): a sanitizer sees every over-read
    memcpy(exact, text, length);
    int result = json_parse(exact, length, options, d, err);
    free(exact);
    return result;
}

static void accepts(const char *text, size_t length) {
    struct error err;
    struct json_document d;
    CHECK_MSG(parse(text, length, NULL, &d, &err) == 0, "refused: %.60s: %s", text, err.text);
    json_free(&d);
}

static void refuses(const char *text, size_t length, const struct json_options *options, const char *message) {
    struct error err;
    struct json_document d;
    int result = parse(text, length, options, &d, &err);
    CHECK_MSG(result < 0, "accepted: %.60s", text);
    CHECK_MSG(result == 0 || (err.code == STATUS_DATA && strstr(err.text, message)),
              "%.60s: code %d, \"%s\" lacks \"%s\"", text, err.code, err.text, message);
    json_free(&d);
}
#define ACCEPTS(text)          accepts(text, sizeof(text) - 1)
#define REFUSES(text, message) refuses(text, sizeof(text) - 1, NULL, message)

TEST(grammar_accepts) {
    ACCEPTS("null");
    ACCEPTS(" \t\r\n true \n");
    ACCEPTS("{}");
    ACCEPTS("[ ]");
    ACCEPTS("[[],{},[{}]]");
    ACCEPTS("{\"\":0}");
    ACCEPTS("{\"a\":{\"a\":{\"a\":1}},\"b\":[1,2]}");
    ACCEPTS("[0,-0,0.0,-0.5e-7,1E+2,1e2,123456789012345678901234567890]");
    ACCEPTS("[1e-400]"); // underflow is no error: it reads as 0
    ACCEPTS("\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u0041\\uD83D\\uDE00\"");
    ACCEPTS("\"\x7f\xC2\x80\xE2\x82\xAC\xED\x9F\xBF\xEE\x80\x80\xF0\x90\x80\x80\xF4\x8F\xBF\xBF\"");
    ACCEPTS("[0.1000000000000000055511151231257827021181583404541015625000000000000000000000001]");
}

TEST(grammar_refuses) {
    REFUSES("", "JSON:1:1: a value is expected, the text is empty");
    REFUSES("  \n ", "JSON:2:2: a value is expected");
    REFUSES("[1,]", "JSON:1:4: a value is expected");
    REFUSES("[1 2]", "JSON:1:4: ',' or ']'");
    REFUSES("[,1]", "JSON:1:2:");
    REFUSES("[1", "the text ends inside a value");
    REFUSES("[", "the text ends inside a value");
    REFUSES("]", "a value is expected");
    REFUSES("[}", "the wrong bracket");
    REFUSES("{]", "the wrong bracket");
    REFUSES("{\"a\":1]", "the wrong bracket");
    REFUSES("{\"a\":1,}", "a key in double quotes");
    REFUSES("{a:1}", "a key in double quotes");
    REFUSES("{'a':1}", "a key in double quotes");
    REFUSES("{\"a\" 1}", "':' is expected");
    REFUSES("{\"a\":}", "a value is expected");
    REFUSES("{\"a\"", "':' is expected");
    REFUSES("{\"a\":1 \"b\":2}", "',' or '}'");
    REFUSES("{\"a\":1", "the text ends");
    REFUSES("{\"a\":\n  tru}", "JSON:2:3: a value is expected");
    REFUSES("nul", "a value is expected");
    REFUSES("nulll", "something follows");
    REFUSES("1 1", "JSON:1:3: something follows");
    REFUSES("{}{}", "something follows");
    REFUSES("[] \0", "something follows");
    REFUSES("NaN", "a value is expected");
    REFUSES("[Infinity]", "a value is expected");
    REFUSES("-Infinity", "a digit is expected");
    REFUSES("01", "leading zero");
    REFUSES("-01", "leading zero");
    REFUSES("+1", "a value is expected");
    REFUSES("-", "a digit is expected");
    REFUSES("1.", "after the point");
    REFUSES(".5", "a value is expected");
    REFUSES("1e", "in the exponent");
    REFUSES("1e+", "in the exponent");
    REFUSES("0x10", "something follows");
    REFUSES("[1e999]", "JSON:1:2: the number is out of range");
    REFUSES("[-1e309]", "out of range");
    REFUSES("// comment\n1", "a value is expected");
    REFUSES("\"abc", "not closed");
    REFUSES("\"abc\\", "invalid escape");
    REFUSES("\"\\x41\"", "invalid escape");
    REFUSES("\"\\u12G4\"", "invalid escape");
    REFUSES("\"\\u12", "invalid escape");
    REFUSES("\"a\nb\"", "JSON:1:3: a control character");
    REFUSES("\"a\0b\"", "a control character");
    REFUSES("\xEF\xBB\xBF{}", "byte order mark");
}

TEST(control_characters) {
    for (int c = 0; c < 0x80; c++) {
        char raw[] = {'"', (char)c, '"'}, escaped[] = {'"', '\\', (char)c, '"'};
        if (c < 0x20)
            refuses(raw, sizeof raw, NULL, "JSON:1:2: a control character");
        else if (c != '"' && c != '\\')
            accepts(raw, sizeof raw);
        if (c && strchr("\"\\/bfnrt", c))
            accepts(escaped, sizeof escaped);
        else
            refuses(escaped, sizeof escaped, NULL, "JSON:1:2: invalid escape");
    }
}

TEST(utf8_is_checked) {
    REFUSES("\"\x80\"", "invalid UTF-8");
    REFUSES("\"\xC0\x80\"", "invalid UTF-8"); // overlong NUL
    REFUSES("\"\xC1\xBF\"", "invalid UTF-8");
    REFUSES("\"\xC2\"", "invalid UTF-8");
    REFUSES("\"\xE0\x9F\xBF\"", "invalid UTF-8"); // overlong
    REFUSES("\"\xED\xA0\x80\"", "invalid UTF-8"); // surrogate
    REFUSES("\"\xF0\x8F\xBF\xBF\"", "invalid UTF-8");
    REFUSES("\"\xF4\x90\x80\x80\"", "invalid UTF-8"); // above U+10FFFF
    REFUSES("\"\xF5\x80\x80\x80\"", "invalid UTF-8");
    REFUSES("\"\xE2\x82", "invalid UTF-8");
    REFUSES("{\"\xFF\":1}", "JSON:1:3: invalid UTF-8");
    REFUSES("[\"\xE2\x82\xAC\xE2\x82\xAC\",x]", "JSON:1:7:"); // columns count characters
}

TEST(duplicate_keys) {
    REFUSES("{\"a\":1,\"b\":2,\n \"a\":3}", "JSON:2:2: key 'a' appears twice");
    REFUSES("{\"a\":1,\"\\u0061\":2}", "JSON:1:8: key 'a' appears twice");
    REFUSES("[{},{\"x\":{\"k\":[{\"k\":1}],\"k\":2}}]", "JSON:1:25: key 'k' appears twice");
    REFUSES("{\"\":1,\"\":1}", "key '' appears twice");
    ACCEPTS("{\"a\":{\"a\":1},\"A\":1,\"ab\":1}");
    struct text t = {0};
    for (int repeat = 0; repeat < 2; repeat++) { // large objects take another path
        text_clear(&t);
        text_add(&t, "{");
        for (int i = 0; i < 1000; i++) text_printf(&t, "\"key%d\":%d,\n", i, i);
        text_printf(&t, "\"%s\":0}", repeat ? "key500" : "last");
        if (repeat)
            refuses(t.data, t.length, NULL, "JSON:1001:1: key 'key500' appears twice");
        else
            accepts(t.data, t.length);
    }
    text_free(&t);
}

static void nest(struct text *t, int depth, const char *open, const char *inner, const char *close) {
    text_clear(t);
    for (int i = 0; i < depth; i++) text_add(t, open);
    text_add(t, inner);
    for (int i = 0; i < depth; i++) text_add(t, close);
}

TEST(limits_both_sides) {
    struct text t = {0};
    nest(&t, JSON_DEPTH, "[", "", "]");
    accepts(t.data, t.length);
    nest(&t, JSON_DEPTH + 1, "[", "", "]");
    refuses(t.data, t.length, NULL, "JSON:1:65: nested too deeply");
    nest(&t, JSON_DEPTH, "{\"k\":", "1", "}");
    accepts(t.data, t.length);
    nest(&t, JSON_DEPTH + 1, "{\"k\":", "1", "}");
    refuses(t.data, t.length, NULL, "nested too deeply");
    struct json_options deep = {.max_depth = JSON_MAX_DEPTH};
    struct error err;
    struct json_document d;
    nest(&t, JSON_MAX_DEPTH, "[", "", "]");
    CHECK(parse(t.data, t.length, &deep, &d, &err) == 0);
    json_free(&d);
    nest(&t, JSON_MAX_DEPTH + 1, "[", "", "]");
    refuses(t.data, t.length, &deep, "nested too deeply");
    nest(&t, 1000000, "[", "", "]"); // no recursion before the check
    refuses(t.data, t.length, NULL, "nested too deeply");
    text_free(&t);
    struct json_options few = {.max_values = 4};
    CHECK(parse("[1,2,3]", 7, &few, &d, &err) == 0);
    json_free(&d);
    refuses("[1,2,3,4]", 9, &few, "more than 4 values");
}

TEST(truncation_at_every_byte) {
    const char *text = "{\"a\":[1,-2.5e3,true,null,\"x\\u00e9\\n\"],\"b\":{\"c\":\"\xE2\x82\xAC\"}}";
    size_t length = strlen(text);
    accepts(text, length);
    for (size_t n = 0; n < length; n++) {
        struct error err;
        struct json_document d;
        CHECK_MSG(parse(text, n, NULL, &d, &err) < 0 && err.code == STATUS_DATA, "cut at %zu", n);
    }
}

TEST(values_and_types) {
    struct error err = {0};
    struct json_document d;
    const char *text =
        "{\"s\":\"a\\u0000b\",\"i\":42,\"f\":1.0,\"e\":1e3,\"big\":9007199254740992,\"ok\":-9007199254740991,"
        "\"t\":true,\"n\":null,\"a\":[1,\"x\",[]],\"o\":{\"k\\u0000\":1},\"half\":0.5,\"plain\":\"p\"}";
    CHECK(json_parse(text, strlen(text), NULL, &d, &err) == 0);
    const struct json *o = d.root;
    size_t n = 0;
    int64_t i = 0;
    double f = 0;
    bool b = false;
    const char *s = json_string(json_get(o, "s"), &n);
    CHECK_INT(n, 3);
    CHECK(s && memcmp(s, "a\0b", 4) == 0);
    CHECK(json_int(json_get(o, "i"), &i) && i == 42 && json_written_as_integer(json_get(o, "i")));
    CHECK(json_int(json_get(o, "f"), &i) && i == 1 && !json_written_as_integer(json_get(o, "f")));
    CHECK(json_int(json_get(o, "e"), &i) && i == 1000 && !json_written_as_integer(json_get(o, "e")));
    CHECK(!json_int(json_get(o, "big"), &i) && json_double(json_get(o, "big"), &f) && f == 0x1p53);
    CHECK(json_int(json_get(o, "ok"), &i) && i == -9007199254740991);
    CHECK(!json_int(json_get(o, "half"), &i) && !json_int(json_get(o, "s"), &i) && !json_int(NULL, &i));
    CHECK(json_bool(json_get(o, "t"), &b) && b && !json_bool(json_get(o, "i"), &b));
    CHECK(json_type(json_get(o, "n")) == JSON_NULL && json_type(json_get(o, "t")) == JSON_BOOL);
    const struct json *a = json_get(o, "a");
    CHECK_INT(json_count(a), 3);
    CHECK_INT(json_count(o), 12);
    CHECK(json_int(json_child(a), &i) && i == 1 && json_key(json_child(a), NULL) == NULL);
    CHECK_STR(json_string(json_next(json_child(a)), NULL), "x");
    CHECK(json_next(json_next(json_next(json_child(a)))) == NULL &&
          json_child(json_next(json_next(json_child(a)))) == NULL);
    const char *key = json_key(json_child(json_get(o, "o")), &n);
    CHECK(key && n == 2 && memcmp(key, "k\0", 3) == 0);
    CHECK(json_get(json_get(o, "o"), "k") == NULL); // "k" is another key than "k\0"
    CHECK(json_get(o, "absent") == NULL && json_get(a, "s") == NULL && json_get(NULL, "s") == NULL);
    CHECK_STR(json_type_name(json_get(o, "a")), "an array");
    CHECK_STR(json_type_name(NULL), "missing");
    json_free(&d);
}

TEST(members_with_messages) {
    struct error err = {0};
    struct json_document d;
    const char *text =
        "{\"s\":\"x\",\"nul\":\"\\u0000\",\"i\":5,\"f\":1.5,\"n\":null,\"a\":[],\"b\":false,\"big\":1e300}";
    CHECK(json_parse(text, strlen(text), NULL, &d, &err) == 0);
    const struct json *o = d.root, *c = NULL;
    const char *s = "unchanged";
    size_t n = 0;
    int64_t i = 7;
    double f = 0;
    bool b = true;
#define FAILS(call, message)                                                                                           \
    do {                                                                                                               \
        err = (struct error){0};                                                                                       \
        CHECK((call) == -1);                                                                                           \
        CHECK_INT(err.code, STATUS_DATA);                                                                              \
        CHECK_STR(err.text, message);                                                                                  \
    } while (0)
    FAILS(json_get_string(o, "content", JSON_REQUIRED, &s, NULL, &err), "key 'content' is missing");
    FAILS(json_get_string(o, "i", JSON_REQUIRED, &s, NULL, &err), "key 'i' is a number, expected a string");
    FAILS(json_get_string(o, "n", JSON_REQUIRED, &s, NULL, &err), "key 'n' is null, expected a string");
    FAILS(json_get_string(o, "nul", JSON_REQUIRED, &s, NULL, &err), "key 'nul' holds a NUL character");
    FAILS(json_get_int(o, "s", JSON_REQUIRED, &i, &err), "key 's' is a string, expected a whole number");
    FAILS(json_get_int(o, "f", JSON_OPTIONAL, &i, &err), "key 'f' is 1.5, expected a whole number below 2^53");
    FAILS(json_get_int(o, "big", JSON_REQUIRED, &i, &err),
          "key 'big' is 1.0000000000000001e+300, expected a whole number below 2^53");
    FAILS(json_get_double(o, "b", JSON_REQUIRED, &f, &err), "key 'b' is a boolean, expected a number");
    FAILS(json_get_bool(o, "i", JSON_REQUIRED, &b, &err), "key 'i' is a number, expected true or false");
    FAILS(json_get_container(o, "a", JSON_OBJECT, JSON_REQUIRED, &c, &err), "key 'a' is an array, expected an object");
    FAILS(json_get_int(json_get(o, "a"), "x", JSON_OPTIONAL, &i, &err),
          "the value around key 'x' is an array, expected an object");
    err = (struct error){0};
    CHECK(json_get_string(o, "n", JSON_OPTIONAL, &s, NULL, &err) == 0 &&
          json_get_int(o, "absent", JSON_OPTIONAL, &i, &err) == 0);
    CHECK_STR(s, "unchanged");
    CHECK_INT(i, 7);
    CHECK(json_get_string(o, "s", JSON_REQUIRED, &s, &n, &err) == 0 && n == 1 &&
          json_get_int(o, "i", JSON_REQUIRED, &i, &err) == 0);
    CHECK(json_get_double(o, "f", JSON_REQUIRED, &f, &err) == 0 && json_get_bool(o, "b", JSON_REQUIRED, &b, &err) == 0);
    CHECK(json_get_container(o, "a", JSON_ARRAY, JSON_REQUIRED, &c, &err) == 0 && json_count(c) == 0);
    CHECK(i == 5 && f == 1.5 && !b && err.code == 0);
    CHECK_STR(s, "x");
    json_free(&d);
}

TEST(options) {
    struct error err;
    struct json_document d;
    struct json_options o = {.name = "rows.jsonl", .line = 7};
    refuses("{\"a\":\n]", 7, &o, "rows.jsonl:8:1: a value is expected");
    REFUSES("\"x\\uD800y\"", "JSON:1:3: half of a surrogate pair");
    REFUSES("\"\\uDC00\"", "half of a surrogate pair");
    REFUSES("\"\\uD800\\uD800\"", "half of a surrogate pair");
    REFUSES("\"\\uDC00\\uDC00\"", "half of a surrogate pair");
    o.replace_surrogates = true;
    const char *text = "{\"k\\uDC00\":\"x\\uD800y\\uD83D\\uDE00\\uD800\\uD800\\u0000\\\\uD800\"}";
    CHECK(parse(text, strlen(text), &o, &d, &err) == 0);
    CHECK_INT(d.replaced, 4);
    size_t n = 0;
    const char *s = json_string(json_child(d.root), &n),
               want[] = "x\xEF\xBF\xBDy\xF0\x9F\x98\x80\xEF\xBF\xBD\xEF\xBF\xBD\0\\uD800";
    CHECK(s && n == sizeof want - 1 && memcmp(s, want, n) == 0);
    CHECK_STR(json_key(json_child(d.root), NULL), "k\xEF\xBF\xBD");
    json_free(&d);
    struct json_options bom = {.skip_bom = true};
    CHECK(parse("\xEF\xBB\xBF[1]", 6, &bom, &d, &err) == 0);
    json_free(&d);
    refuses("\xEF\xBB\xBF\xEF\xBB\xBF[1]", 9, &bom, "a value is expected");
}

TEST(long_numbers_are_whole) {
    struct error err;
    struct json_document d;
    struct text t = {0};
    text_add(&t, "[0.");
    for (int i = 0; i < 5000; i++) text_char(&t, '3');
    text_add(&t, ",1");
    for (int i = 0; i < 100; i++) text_char(&t, '0');
    text_add(&t, ",7]");
    double f = 0;
    CHECK(parse(t.data, t.length, NULL, &d, &err) == 0);
    const struct json *v = json_child(d.root);
    CHECK(json_double(v, &f) && f == 1.0 / 3.0);
    CHECK(json_double(json_next(v), &f) && f == 1e100 && json_written_as_integer(json_next(v)));
    CHECK(json_double(json_next(json_next(v)), &f) && f == 7);
    json_free(&d);
    text_clear(&t);
    for (int i = 0; i < 400; i++) text_char(&t, '9');
    refuses(t.data, t.length, NULL, "out of range");
    text_free(&t);
}

static bool same(const char *a, const char *b) {
    struct error err = {0};
    struct json_document x, y;
    bool ok = json_parse(a, strlen(a), NULL, &x, &err) == 0 && json_parse(b, strlen(b), NULL, &y, &err) == 0;
    CHECK_MSG(ok, "%s", err.text);
    bool forth = json_equal(x.root, y.root), back = json_equal(y.root, x.root);
    CHECK(forth == back);
    json_free(&x);
    json_free(&y);
    return forth;
}

TEST(equality) {
    CHECK(same("{\"a\":1,\"b\":[1,2,{\"c\":null}]}", " { \"b\" : [1.0,2,{\"c\":null}], \"a\":1e0 }"));
    CHECK(same("\"\\u00e9\"", "\"\xC3\xA9\""));
    CHECK(!same("[1,2]", "[2,1]") && !same("[1]", "[1,1]") && !same("{\"a\":1}", "{\"a\":1,\"b\":1}"));
    CHECK(!same("{\"a\":1,\"b\":1}", "{\"a\":1,\"c\":1}") && !same("{\"a\":1}", "{\"a\":2}") && !same("1", "\"1\""));
    CHECK(!same("true", "false") && same("true", "true") && !same("null", "false") && !same("{}", "[]"));
    CHECK(!same("\"a\\u0000b\"", "\"a\\u0000c\"") && !same("{\"a\\u0000b\":1}", "{\"a\\u0000c\":1}"));
}

static void example(struct json_writer *w) {
    json_begin_object(w);
    json_put_key(w, "s");
    json_put_bytes(w, "q\"\\\b\f\n\r\t\x01\x7f/\xE2\x82\xAC\0", 15);
    json_put_key(w, "a");
    json_begin_array(w);
    json_put_int(w, INT64_MIN);
    json_put_double(w, 0.1);
    json_put_double(w, 1);
    json_put_double(w, -1.0 / 0.0);
    json_put_bool(w, true);
    json_put_null(w);
    json_begin_object(w);
    json_end_object(w);
    json_begin_array(w);
    json_end_array(w);
    json_end_array(w);
    json_put_key_bytes(w, "k\n\xFF", 3);
    json_put_string(w, "\xC3(");
    json_end_object(w);
}

TEST(writer) {
    static const char *const want[] = {
        "{\"s\":\"q\\\"\\\\\\b\\f\\n\\r\\t\\u0001\x7f/"
        "\xE2\x82\xAC\\u0000\",\"a\":[-9223372036854775808,0.1,1.0,null,true,null,{},[]],"
        "\"k\\n\xEF\xBF\xBD\":\"\xEF\xBF\xBD(\"}",
        "{\"s\": \"q\\\"\\\\\\b\\f\\n\\r\\t\\u0001\x7f/\xE2\x82\xAC\\u0000\", \"a\": [-9223372036854775808, 0.1, 1.0, "
        "null, true, null, {}, []], "
        "\"k\\n\xEF\xBF\xBD\": \"\xEF\xBF\xBD(\"}",
        "{\n  \"s\": \"q\\\"\\\\\\b\\f\\n\\r\\t\\u0001\x7f/\xE2\x82\xAC\\u0000\",\n  \"a\": [\n    "
        "-9223372036854775808,\n    0.1,\n    1.0,\n"
        "    null,\n    true,\n    null,\n    {},\n    []\n  ],\n  \"k\\n\xEF\xBF\xBD\": \"\xEF\xBF\xBD(\"\n}",
    };
    for (int style = JSON_COMPACT; style <= JSON_PRETTY; style++) {
        struct text first = {0}, second = {0};
        struct json_writer w = {.out = &first, .style = (enum json_style)style},
                           again = {.out = &second, .style = (enum json_style)style};
        example(&w);
        CHECK(!text_failed(&first) && w.depth == 0);
        CHECK_STR(text_str(&first), want[style]);
        struct json_document d;
        struct error err;
        CHECK(parse(first.data, first.length, NULL, &d, &err) == 0);
        json_put_value(&again, d.root);
        // The one number that a double does not hold is the only difference.
        CHECK_INT(second.length > 0, 1);
        CHECK(strstr(second.data, "-9.223372036854776e+18"));
        text_free(&first);
        text_free(&second);
        json_free(&d);
    }
}

TEST(write_read_write) {
    const char *text = "{\"a\": [1, -0.0, 1.5, 1e-05, 1e+22, 0.1, 123456789012345.0, \"x\\u0000\\n\"], \"\xC3\xA9\": "
                       "{\"k\": true, \"n\": null}}";
    struct error err;
    struct json_document d;
    struct text out = {0};
    struct json_writer w = {.out = &out, .style = JSON_SPACED};
    CHECK(parse(text, strlen(text), NULL, &d, &err) == 0);
    json_put_value(&w, d.root);
    CHECK_STR(text_str(&out), text);
    json_free(&d);
    text_free(&out);
    for (unsigned i = 0; i < 20000; i++) { // every double comes back
        double x = test_random(1, 2 * i) * (i % 3 ? 1.0 : 1e300), y = 0;
        if (i % 5 == 0) x = (double)(float)test_random(1, 2 * i);
        if (i % 7 == 0) x *= 1e-310;
        text_clear(&out);
        w = (struct json_writer){.out = &out};
        json_put_double(&w, x);
        CHECK(parse(out.data, out.length, NULL, &d, &err) == 0);
        CHECK_MSG(json_double(d.root, &y) && y == x, "%.17g became %s", x, out.data);
        json_free(&d);
    }
    text_free(&out);
}

TEST(allocation_failures) {
    static const char text[] =
        "{\"a\":[1,2.5,\"x\\u0000\\uD800\"],\"b\":{\"c\":{}},\"d0\":0,\"d1\":0,\"d2\":0,\"d3\":0,\"d4\":0,\"d5\":0,"
        "\"d6\":0,\"d7\":0,\"d8\":0,\"d9\":0,\"da\":0,\"db\":0}";
    struct json_options o = {.replace_surrogates = true};
    for (int forever = 0; forever < 2; forever++) {
        bool done = false;
        for (uint64_t k = 1; !done && k < 1000; k++) {
            struct error err = {0};
            struct json_document d;
            mem_fail_at(k, forever);
            int result = json_parse(text, sizeof text - 1, &o, &d, &err);
            uint64_t calls = mem_fail_at(0, 0);
            done = calls < k;
            CHECK_INT(result, done ? 0 : -1);
            CHECK_INT(err.code, done ? 0 : STATUS_MEMORY);
            json_free(&d);
            if (done) CHECK_MSG(k > 3, "only %d allocations", (int)k);
        }
        CHECK(done);
    }
}

TEST(load_names_the_file) {
    struct error err = {0};
    struct json_document d;
    char *path = path_join(test_folder(), "x.json");
    CHECK(file_replace(path, "{\"a\": 1,\n\"b\" 2}", 15, &err) == 0);
    CHECK(json_load(path, 100, NULL, &d, &err) < 0);
    CHECK_INT(err.code, STATUS_DATA);
    CHECK_MSG(strncmp(err.text, path, strlen(path)) == 0 && strstr(err.text, "x.json:2:5: ':' is expected"), "%s",
              err.text);
    err = (struct error){0};
    CHECK(json_load(path, 14, NULL, &d, &err) < 0 && err.code == STATUS_DATA);
    err = (struct error){0};
    CHECK(json_load("/nowhere/x.json", 14, NULL, &d, &err) < 0 && err.code == STATUS_NOINPUT);
    mem_free(path);
}

TEST_MAIN(CASE(grammar_accepts), CASE(grammar_refuses), CASE(control_characters), CASE(utf8_is_checked),
          CASE(duplicate_keys), CASE(limits_both_sides), CASE(truncation_at_every_byte), CASE(values_and_types),
          CASE(members_with_messages), CASE(options), CASE(long_numbers_are_whole), CASE(equality), CASE(writer),
          CASE(write_read_write), CASE(allocation_failures), CASE(load_names_the_file))
