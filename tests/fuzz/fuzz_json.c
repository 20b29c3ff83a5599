// JSON: what is accepted is written and read back to an equal value, in every style; a strict success is a lenient one
// too.
#include "data/json.h"
#include "tests/fuzz/fuzz.h"

#include <string.h>

static void visit(const struct json *v, int depth) {
    size_t length = 0, count = 0;
    int64_t whole;
    double number = 0;
    EXPECT(depth <= JSON_MAX_DEPTH);
    if (json_string(v, &length)) EXPECT(json_string(v, NULL)[length] == 0);
    if (json_int(v, &whole)) EXPECT(json_double(v, &number) && number == (double)whole);
    for (const struct json *m = json_child(v); m; m = json_next(m), count++) {
        const char *key = json_key(m, &length);
        EXPECT((key != NULL) == (json_type(v) == JSON_OBJECT));
        if (key && !memchr(key, 0, length)) EXPECT(json_get(v, key) == m);
        visit(m, depth + 1);
    }
    EXPECT(count == json_count(v));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct json_options lenient = {.max_depth = JSON_MAX_DEPTH, .replace_surrogates = true, .skip_bom = true};
    struct json_document strict, d, again;
    struct error err = {0};
    bool accepted = json_parse(data, size, NULL, &strict, &err) == 0;
    EXPECT(accepted || err.code == STATUS_DATA);
    err = (struct error){0};
    if (json_parse(data, size, &lenient, &d, &err) < 0) {
        EXPECT(!accepted && err.code == STATUS_DATA);
        return 0;
    }
    visit(d.root, 1);
    EXPECT(!accepted || (d.replaced == 0 && json_equal(strict.root, d.root)));
    for (int style = JSON_COMPACT; style <= JSON_PRETTY; style++) {
        struct text out = {0};
        struct json_writer w = {.out = &out, .style = (enum json_style)style};
        json_put_value(&w, d.root);
        EXPECT(!text_failed(&out) && w.depth == 0);
        EXPECT(json_parse(out.data, out.length, &lenient, &again, &err) == 0 && again.replaced == 0);
        EXPECT(json_equal(d.root, again.root));
        json_free(&again);
        text_free(&out);
    }
    json_free(&d);
    if (accepted) json_free(&strict);
    return 0;
}
