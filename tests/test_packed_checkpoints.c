// Packed checkpoints with something wrong in them: bitsandbytes, GPTQ, AWQ, FP8, MXFP4. Each change to a sound one (a
// table missing, of another type, shape, size or content; a quantization_config that does not fit) is refused with exit
// code 65 and a sentence that names the folder and the tensor or key; what is sound is taken, and all of it decodes.
//
// Accepted on purpose: scales that are not finite. Opening reads headers, not weights, whose scales they are; a number
// that is not finite is found by the step that meets it, as one in a plain weight is, and `graft doctor` names it.
#include "data/json.h"
#include "model/model.h"
#include "tests/harness.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define Q       "model.layers.0.self_attn.q_proj"
#define W       Q ".weight"
#define STATE   W ".quant_state.bitsandbytes__nf4"
#define EXPERTS "model.layers.0.mlp.experts.gate_up_proj"

enum { GONE = -1, PATCHED = -2 }; // in place of n_dims
enum { MOST_TENSORS = 400 };

// What becomes of one tensor: GONE; PATCHED: `bytes` written over its own from `at` on; else another type and shape,
// with `bytes`, or with its own over and over. One that is not there is added.
struct change {
    const char *tensor;
    int n_dims;
    enum safetensors_dtype dtype;
    int64_t shape[4];
    const char *bytes;
    size_t at, n_bytes;
};

struct hostile {
    const char *fixture;
    const char *config; // quantization_config; NULL: the fixture's; "": none
    struct change change;
    const char *says;
    const char *names; // beside the folder; NULL: the changed tensor
};

static char *take_bytes(struct pool *pool, const struct safetensors_entry *e, const struct change *c, uint64_t bytes) {
    char *data = pool_array(pool, bytes + 1, 1);
    for (uint64_t i = 0; i < bytes; i++) data[i] = e && e->bytes ? (char)e->data[i % e->bytes] : 0;
    for (size_t i = 0; c->bytes && i < c->n_bytes && c->at + i < bytes; i++) data[c->at + i] = c->bytes[i];
    return data;
}

static struct safetensors_out changed(struct pool *pool, const struct safetensors_entry *e, const struct change *c) {
    struct safetensors_out out = {.name = c->tensor, .dtype = c->dtype, .n_dims = c->n_dims};
    if (c->n_dims == PATCHED) {
        out.dtype = e->dtype, out.n_dims = e->n_dims;
        memcpy(out.shape, e->shape, sizeof out.shape);
    } else
        memcpy(out.shape, c->shape, sizeof c->shape);
    out.data = take_bytes(pool, e, c, safetensors_bytes(&out));
    return out;
}

static void write_tensors(const char *fixture, const char *folder, const struct change *changes, int n) {
    static struct safetensors_out out[MOST_TENSORS];
    struct safetensors s;
    struct error err = {0};
    struct pool pool = {0};
    struct file_writer file;
    char path[600];
    size_t count = 0;
    snprintf(path, sizeof path, "%s/model.safetensors", fixture);
    CHECK_MSG(safetensors_open(path, &s, &err) == 0, "%s", err.text);
    if (err.code) return;
    for (size_t i = 0; i < s.n_entries; i++) {
        const struct safetensors_entry *e = &s.entries[i];
        int k = 0;
        while (k < n && !test_same_string(changes[k].tensor, e->name)) k++;
        if (k < n) continue;
        out[count] = (struct safetensors_out){.name = e->name, .dtype = e->dtype, .n_dims = e->n_dims, .data = e->data};
        memcpy(out[count++].shape, e->shape, sizeof e->shape);
    }
    for (int k = 0; k < n; k++) {
        if (changes[k].tensor && changes[k].n_dims != GONE)
            out[count++] = changed(&pool, safetensors_find(&s, changes[k].tensor), &changes[k]);
        CHECK_MSG(!changes[k].tensor || changes[k].n_dims >= 0 || safetensors_find(&s, changes[k].tensor),
                  "%s is not in %s", changes[k].tensor, fixture);
    }
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    file_remove(path, NULL);
    int status =
        file_create(path, &file, &err) || safetensors_write(&file, out, count, &err) || file_close(&file, &err);
    CHECK_MSG(status == 0, "%s", err.text);
    safetensors_close(&s);
    pool_free(&pool);
}

static void write_config(const char *fixture, const char *folder, const char *config) {
    struct json_document d;
    struct error err = {0};
    struct text out = {0};
    struct json_writer w = {.out = &out};
    char path[600];
    snprintf(path, sizeof path, "%s/config.json", fixture);
    CHECK_MSG(json_load(path, 1 << 20, NULL, &d, &err) == 0, "%s", err.text);
    if (err.code) return;
    json_begin_object(&w);
    for (const struct json *at = json_child(d.root); at; at = json_next(at)) {
        if (config && strcmp(json_key(at, NULL), "quantization_config") == 0) continue;
        json_put_key(&w, json_key(at, NULL));
        json_put_value(&w, at);
    }
    if (config && *config) text_printf(&out, ",\"quantization_config\":%s", config);
    json_end_object(&w);
    snprintf(path, sizeof path, "%s/config.json", folder);
    CHECK(file_replace(path, out.data, out.length, &err) == 0);
    text_free(&out);
    json_free(&d);
}

// The fixture with these changes, in a folder of its own.
static const char *make(const char *fixture, const char *config, const struct change *changes, int n) {
    static char folder[500];
    char from[500];
    struct error err = {0};
    snprintf(folder, sizeof folder, "%s/checkpoint", test_folder());
    snprintf(from, sizeof from, "tests/fixtures/families/%s", fixture);
    CHECK(file_remove_tree(folder, &err) == 0 && file_make_folders(folder, &err) == 0);
    write_tensors(from, folder, changes, n);
    write_config(from, folder, config);
    return folder;
}

static void refused(const struct hostile *h) {
    struct model m;
    struct error err = {0};
    const char *folder = make(h->fixture, h->config, &h->change, h->change.tensor != NULL);
    const char *names = h->names ? h->names : h->change.tensor ? h->change.tensor : "quantization";
    int status = model_open(folder, NULL, &m, &err);
    CHECK_MSG(status != 0, "%s, %s: opened, expected '%s'", h->fixture, names, h->says);
    if (status == 0) {
        model_close(&m);
        return;
    }
    CHECK_MSG(err.code == STATUS_DATA && strstr(err.text, h->says) && strstr(err.text, folder) &&
                  strstr(err.text, names),
              "%s: exit %d, '%s' does not say '%s' of '%s'", h->fixture, err.code, err.text, h->says, names);
}

static void all_refused(const struct hostile *cases, size_t n) {
    for (size_t i = 0; i < n; i++) refused(&cases[i]);
}

// Opens, and every element of every weight is read. Returns how many are not finite; -1: refused.
static int64_t opened(const char *fixture, const char *config, const struct change *changes, int n) {
    struct model m;
    struct error err = {0};
    const char *folder = make(fixture, config, changes, n);
    int64_t odd = 0;
    CHECK_MSG(model_open(folder, NULL, &m, &err) == 0, "%s: %s", fixture, err.text);
    if (err.code) return -1;
    for (int i = 0; i < m.n_weights; i++) {
        const struct weight *w = m.weights[i];
        float *row = malloc((size_t)w->cols * sizeof *row);
        for (int64_t r = 0; r < w->rows; r++) {
            weight_decode(w, r, 0, w->cols, row);
            for (int64_t c = 0; c < w->cols; c++) odd += !isfinite(row[c]);
        }
        free(row);
    }
    model_close(&m);
    return odd;
}

#define DROP(name)                                                                                                     \
    { .tensor = name, .n_dims = GONE }
#define AS1(name, type, a)                                                                                             \
    {                                                                                                                  \
        .tensor = name, .n_dims = 1, .dtype = type, .shape = { a }                                                     \
    }
#define AS2(name, type, a, b)                                                                                          \
    {                                                                                                                  \
        .tensor = name, .n_dims = 2, .dtype = type, .shape = { a, b }                                                  \
    }
#define AS3(name, type, a, b, c)                                                                                       \
    {                                                                                                                  \
        .tensor = name, .n_dims = 3, .dtype = type, .shape = { a, b, c }                                               \
    }
#define AS4(name, type, a, b, c, d)                                                                                    \
    {                                                                                                                  \
        .tensor = name, .n_dims = 4, .dtype = type, .shape = { a, b, c, d }                                            \
    }
#define PATCH(name, where, text)                                                                                       \
    { .tensor = name, .n_dims = PATCHED, .bytes = text, .at = where, .n_bytes = sizeof(text) - 1 }
#define TEXT(name, text)                                                                                               \
    {                                                                                                                  \
        .tensor = name, .n_dims = 1, .dtype = ST_U8, .shape = {sizeof(text) - 1}, .bytes = text,                       \
        .n_bytes = sizeof(text) - 1                                                                                    \
    }

TEST(bitsandbytes_tables) {
    static const struct hostile four[] = {
        {"llama-nf4", NULL, DROP(W), "is missing", NULL},
        {"llama-nf4", NULL, DROP(W ".absmax"), "is missing", NULL},
        {"llama-nf4", NULL, DROP(W ".quant_map"), "is missing", NULL},
        {"llama-nf4", NULL, DROP(W ".nested_absmax"), "is missing", NULL},
        {"llama-nf4", NULL, DROP(W ".nested_quant_map"), "is missing", NULL},
        {"llama-nf4", NULL, DROP(STATE), "is missing", NULL},
        {"llama-nf4", NULL, AS1(W ".absmax", ST_F32, 64), "is F32, expected U8", NULL},
        {"llama-nf4", NULL, AS1(W ".quant_map", ST_F16, 32), "is F16, expected F32", NULL},
        {"llama-nf4", NULL, AS1(W ".nested_absmax", ST_F16, 2), "is F16, expected F32", NULL},
        {"llama-nf4", NULL, AS1(W ".nested_quant_map", ST_BF16, 512), "is BF16, expected F32", NULL},
        {"llama-nf4", NULL, AS1(W ".absmax", ST_U8, 63), "absmax has 63 bytes", Q},
        {"llama-nf4", NULL, AS1(W ".absmax", ST_U8, 65), "absmax has 65 bytes", Q},
        {"llama-nf4", NULL, AS1(W ".absmax", ST_U8, 0), "absmax", Q},
        {"llama-nf4", NULL, AS1(W ".quant_map", ST_F32, 15), "quant_map has 60 bytes", Q},
        {"llama-nf4", NULL, AS1(W ".quant_map", ST_F32, 17), "quant_map has 68 bytes", Q},
        {"llama-nf4", NULL, AS1(W ".nested_quant_map", ST_F32, 255), "nested_quant_map has", Q},
        {"llama-nf4", NULL, AS1(W ".nested_absmax", ST_F32, 2), "nested_absmax has 8 bytes", Q},
        {"llama-nf4", NULL, AS2(W, ST_U8, 2047, 1), "weight has 2047 bytes", Q},
        {"llama-nf4", NULL, AS2(W, ST_U8, 2049, 1), "weight has 2049 bytes", Q},
        {"llama-nf4", NULL, AS2(W, ST_BF16, 512, 1), "weight has 1024 bytes", Q},
        {"llama-nf4", NULL, PATCH(W ".quant_map", 4, "\0\0\xc0\x7f"), "number 1 of quant_map is not finite", Q},
        {"llama-nf4", NULL, TEXT(W ".quant_state.bitsandbytes__fp4", "{}"), "has no place", NULL},
        {"llama-fp4", NULL, AS1(W ".absmax", ST_U8, 32), "is U8, expected F32", NULL},
        {"llama-fp4", NULL, AS1(W ".nested_absmax", ST_F32, 1), "has no place", NULL},
        {"llama-fp4", NULL, DROP(W ".quant_state.bitsandbytes__fp4"), "is missing (nor is there one of fp4)", STATE},
        {"llama-nf4", "", {0}, "config.json has no quantization_config", ".weight.absmax"},
        {"llama-nf4", "{\"quant_method\": \"awq\"}", {0}, "has type U8, which is not in this version", W},
    };
    static const struct hostile eight[] = {
        {"llama-int8", NULL, DROP(Q ".SCB"), "is missing", NULL},
        {"llama-int8", NULL, DROP(W), "is missing", NULL},
        {"llama-int8", NULL, AS1(Q ".SCB", ST_F16, 128), "is F16, expected F32", NULL},
        {"llama-int8", NULL, AS1(Q ".SCB", ST_F32, 63), "SCB has 252 bytes", Q},
        {"llama-int8", NULL, AS1(Q ".SCB", ST_F32, 65), "SCB has 260 bytes", Q},
        {"llama-int8", NULL, AS2(W, ST_I8, 64, 63), "is 64 x 63, the architecture says 64 x 64", NULL},
        {"llama-int8", NULL, AS1(W, ST_I8, 4096), "the architecture says", NULL},
        {"llama-int8", NULL, AS2(W, ST_U8, 64, 64), "is missing (nor is there one of fp4)", STATE},
        {"llama-int8", NULL, AS2(W, ST_BF16, 64, 64), "has an SCB, but is not I8", NULL},
        {"llama-int8", NULL, PATCH(Q ".weight_format", 0, "\2"), "is not 0", NULL},
        {"llama-int8", NULL, AS1(Q ".weight_format", ST_U8, 2), "is not 0", NULL},
        {"llama-int8", NULL, AS1(Q ".weight_format", ST_BOOL, 1), "is not 0", NULL},
        {"llama-int8", "", {0}, "config.json has no quantization_config", Q ".SCB"},
        {"llama-int8", "{\"quant_method\": \"fp8\"}", {0}, "is 64 x 64, the architecture says 64 x 32", W},
    };
    all_refused(four, COUNT_OF(four));
    all_refused(eight, COUNT_OF(eight));
}

#define S(blocksize, dtype, shape, nested)                                                                             \
    "{\"quant_type\": \"nf4\", \"blocksize\": " blocksize ", \"dtype\": \"" dtype "\", \"shape\": " shape nested "}"
#define NESTED(block, offset) ", \"nested_blocksize\": " block ", \"nested_offset\": " offset
#define OUTER                 NESTED("256", "0.5")
#define STATES(text, says)                                                                                             \
    { "llama-nf4", NULL, TEXT(STATE, text), says, Q }
#define TENFOLD(x) x x x x x x x x x x

TEST(bitsandbytes_states) {
    static const struct hostile cases[] = {
        STATES("", "value"),
        STATES("nf4", ""),
        STATES("[]", "is no JSON object"),
        STATES("null", "is no JSON object"),
        STATES("{}", "'quant_type' is missing"),
        STATES("{} {}", ""),
        STATES("{\"quant_type\": \"nf4\", \"quant_type\": \"nf4\"}", "quant_type"),
        STATES("{\"quant_type\": \"nf4\"}\0", ""),
        STATES("\xff\xfe{}", ""),
        STATES("{\"shape\": " TENFOLD(TENFOLD("[")) "]}", "nest"),
        STATES("{\"os.system\": 1}", "has a key 'os.system', which this version does not know"),
        STATES(S("63", "float32", "[64, 64]", OUTER), "blocksize 63"),
        STATES(S("0", "float32", "[64, 64]", OUTER), "blocksize 0"),
        STATES(S("-64", "float32", "[64, 64]", OUTER), "blocksize -64"),
        STATES(S("\"64\"", "float32", "[64, 64]", OUTER), "'blocksize' is a string"),
        STATES(S("64.5", "float32", "[64, 64]", OUTER), "'blocksize'"),
        STATES(S("1e30", "float32", "[64, 64]", OUTER), "'blocksize'"),
        STATES(S("null", "float32", "[64, 64]", OUTER), "'blocksize'"),
        STATES(S("[64]", "float32", "[64, 64]", OUTER), "'blocksize'"),
        STATES(S("128", "float32", "[64, 64]", OUTER), "absmax has 64 bytes, expected 32"),
        STATES(S("32", "float32", "[64, 64]", OUTER), "absmax has 64 bytes, expected 128"),
        STATES(S("64", "int8", "[64, 64]", OUTER), "dtype 'int8'"),
        STATES(S("64", "float32", "[64]", OUTER), "the shape is not two whole numbers"),
        STATES(S("64", "float32", "[64, 64, 1]", OUTER), "the shape is not two whole numbers"),
        STATES(S("64", "float32", "[]", OUTER), "the shape is not two whole numbers"),
        STATES(S("64", "float32", "{\"a\": 64, \"b\": 64}", OUTER), "'shape' is an object"),
        STATES(S("64", "float32", "[\"64\", \"64\"]", OUTER), "the shape is not two whole numbers"),
        STATES(S("64", "float32", "[1e300, 64]", OUTER), "the shape is not two whole numbers"),
        STATES(S("64", "float32", "[-64, -64]", OUTER), "-64 x -64, the architecture says 64 x 64"),
        STATES(S("64", "float32", "[32, 128]", OUTER), "32 x 128, the architecture says 64 x 64"),
        STATES(S("64", "float32", "[9007199254740991, 9007199254740991]", OUTER), "the architecture says 64 x 64"),
        STATES(S("64", "float32", "[64, 64]", ""), "is U8, expected F32"), // without tables of tables
        STATES(S("64", "float32", "[64, 64]", ", \"nested_blocksize\": 256"), "'nested_offset' is missing"),
        STATES(S("64", "float32", "[64, 64]", ", \"nested_offset\": 0.5"), "'nested_blocksize' is missing"),
        STATES(S("64", "float32", "[64, 64]", NESTED("0", "0.5")), "nested_blocksize 0"),
        STATES(S("64", "float32", "[64, 64]", NESTED("63", "0.5")), "nested_blocksize 63"),
        STATES(S("64", "float32", "[64, 64]", NESTED("32", "0.5")), "nested_absmax has 4 bytes"),
        STATES(S("64", "float32", "[64, 64]", NESTED("256", "\"0.5\"")), "'nested_offset' is a string"),
        STATES(S("64", "float32", "[64, 64]", NESTED("256", "null")), "'nested_offset'"),
        STATES(S("64", "float32", "[64, 64]", NESTED("256", "true")), "'nested_offset'"),
        STATES(S("64", "float32", "[64, 64]", NESTED("256", "1e39")), "nested_offset 1e+39 is no float32"),
        STATES(S("64", "float32", "[64, 64]", NESTED("256", "1e999")), ""),
        STATES(S("64", "float32", "[64, 64]", NESTED("256", "NaN")), ""),
        STATES(S("64", "float32", "[64, 64]", OUTER ", \"nested_dtype\": \"float16\""), "nested_dtype 'float16'"),
        STATES(S("64", "float32", "[64, 64]", OUTER ", \"nested_dtype\": 32"), "'nested_dtype'"),
        STATES("{\"quant_type\": \"fp4\", \"blocksize\": 64, \"dtype\": \"float32\", \"shape\": [64, 64]" OUTER "}",
               "says that it is of fp4"),
        STATES("{\"quant_type\": \"int4\", \"blocksize\": 64, \"dtype\": \"float32\", \"shape\": [64, 64]" OUTER "}",
               "quant_type 'int4' is neither nf4 nor fp4"),
        STATES("{\"quant_type\": 4, \"blocksize\": 64, \"dtype\": \"float32\", \"shape\": [64, 64]" OUTER "}",
               "'quant_type' is a number"),
        {"llama-nf4", NULL, AS1(STATE, ST_U8, 65537), "is no text of at most", NULL},
        {"llama-nf4", NULL, AS1(STATE, ST_I8, 166), "is no text of at most", NULL},
        {"llama-nf4", NULL, AS1(STATE, ST_F64, 20), "is no text of at most", NULL},
    };
    all_refused(cases, COUNT_OF(cases));
}

#define GPTQ(more) "{\"quant_method\": \"gptq\", \"bits\": 4, \"group_size\": 32, \"desc_act\": true" more "}"
#define GPTQ_OF(bits, size)                                                                                            \
    "{\"quant_method\": \"gptq\", \"bits\": " bits ", \"group_size\": " size ", \"desc_act\": true}"
#define CONFIG(fixture, config, says)                                                                                  \
    { fixture, config, {0}, says, "config.json" }
#define TENSOR(fixture, config, says)                                                                                  \
    { fixture, config, {0}, says, Q }

TEST(gptq_tables) {
    static const struct hostile cases[] = {
        {"llama-gptq4", NULL, DROP(Q ".qweight"), "is missing", NULL},
        {"llama-gptq4", NULL, DROP(Q ".qzeros"), "is missing", NULL},
        {"llama-gptq4", NULL, DROP(Q ".scales"), "is missing", NULL},
        {"llama-gptq4", NULL, DROP(Q ".g_idx"), "config.json says desc_act", NULL},
        {"llama-gptq4", NULL, AS2(Q ".qweight", ST_F32, 8, 64), "is F32, expected I32", NULL},
        {"llama-gptq4", NULL, AS2(Q ".qweight", ST_I64, 8, 64), "is I64, expected I32", NULL},
        {"llama-gptq4", NULL, AS2(Q ".qzeros", ST_U32, 2, 8), "is U32, expected I32", NULL},
        {"llama-gptq4", NULL, AS2(Q ".scales", ST_I16, 2, 64), "holds no floats", NULL},
        {"llama-gptq4", NULL, AS2(Q ".scales", ST_F64, 2, 64), "holds no floats", NULL},
        {"llama-gptq4", NULL, AS2(Q ".scales", ST_F8_E8M0, 2, 64), "holds no floats", NULL},
        {"llama-gptq4", NULL, AS1(Q ".g_idx", ST_I64, 64), "is not I32", NULL},
        {"llama-gptq4", NULL, AS2(Q ".qweight", ST_I32, 8, 63), "is 8 x 63", NULL},
        {"llama-gptq4", NULL, AS2(Q ".qweight", ST_I32, 4, 64), "is 4 x 64", NULL},
        {"llama-gptq4", NULL, AS2(Q ".qweight", ST_I32, 64, 8), "is 64 x 8", NULL},
        {"llama-gptq4", NULL, AS1(Q ".qweight", ST_I32, 512), "the architecture says 8 x 64", NULL},
        {"llama-gptq4", NULL, AS3(Q ".qweight", ST_I32, 8, 64, 1), "the architecture says 8 x 64", NULL},
        {"llama-gptq4", NULL, AS2(Q ".qzeros", ST_I32, 1, 8), "is 1 x 8", NULL},
        {"llama-gptq4", NULL, AS2(Q ".qzeros", ST_I32, 2, 7), "is 2 x 7", NULL},
        {"llama-gptq4", NULL, AS2(Q ".scales", ST_F16, 2, 63), "has the wrong shape", NULL},
        {"llama-gptq4", NULL, AS2(Q ".scales", ST_F16, 0, 64), "has the wrong shape", NULL},
        {"llama-gptq4", NULL, AS1(Q ".scales", ST_F16, 128), "has the wrong shape", NULL},
        {"llama-gptq4", NULL, AS2(Q ".scales", ST_F16, 3, 64), "qzeros", Q},
        {"llama-gptq4", NULL, AS1(Q ".g_idx", ST_I32, 63), "g_idx has 252 bytes", Q},
        {"llama-gptq4", NULL, AS1(Q ".g_idx", ST_I32, 65), "g_idx has 260 bytes", Q},
        {"llama-gptq4", NULL, PATCH(Q ".g_idx", 0, "\2\0\0\0"), "g_idx[0] is 2, there are 2 groups", Q},
        {"llama-gptq4", NULL, PATCH(Q ".g_idx", 252, "\xff\xff\xff\xff"), "g_idx[63] is -1, there are 2 groups", Q},
        {"llama-gptq4", NULL, PATCH(Q ".g_idx", 4, "\xff\xff\xff\x7f"), "g_idx[1] is 2147483647", Q},
        {"llama-gptq4", NULL, PATCH(Q ".g_idx", 4, "\0\0\0\x80"), "g_idx[1] is -2147483648", Q},
        {"llama-gptq4", NULL, AS2(W, ST_BF16, 64, 64), "has no place", NULL}, // packed and plain
        {"llama-gptq3", NULL, AS2(Q ".qweight", ST_I32, 8, 64), "is 8 x 64", NULL},
        // Modules with settings of their own: sizes follow from the tensors.
        {"llama-gptq4", GPTQ(", \"dynamic\": {\"x\": {}}"), AS2(Q ".scales", ST_F16, 0, 64), "has the wrong shape",
         NULL},
        {"llama-gptq4", GPTQ(", \"dynamic\": {\"x\": {}}"), AS2(Q ".qweight", ST_I32, 3, 64), "has the wrong shape",
         NULL},
        {"llama-gptq4", GPTQ(", \"dynamic\": {\"x\": {}}"), AS2(Q ".qweight", ST_I32, 0, 64), "has the wrong shape",
         NULL},
        {"llama-gptq4", GPTQ(", \"dynamic\": {\"x\": {}}"), AS2(Q ".qweight", ST_I32, 200, 64), "has the wrong shape",
         NULL},
        {"llama-gptq4", GPTQ(", \"dynamic\": {\"x\": {}}"), AS2(Q ".scales", ST_F16, 63, 64), "63 groups", Q},
    };
    all_refused(cases, COUNT_OF(cases));
}

TEST(gptq_settings) {
    static const struct hostile cases[] = {
        CONFIG("llama-gptq4", GPTQ_OF("5", "32"), "GPTQ of 5 bits is not in this version"),
        CONFIG("llama-gptq4", GPTQ_OF("0", "32"), "GPTQ of 0 bits"),
        CONFIG("llama-gptq4", GPTQ_OF("-4", "32"), "'bits' is -4"),
        CONFIG("llama-gptq4", GPTQ_OF("4294967300", "32"), "'bits' is 4294967300"),
        CONFIG("llama-gptq4", GPTQ_OF("\"4\"", "32"), "'bits' is a string"),
        CONFIG("llama-gptq4", GPTQ_OF("4.5", "32"), "'bits'"),
        CONFIG("llama-gptq4", GPTQ_OF("null", "32"), "GPTQ of 0 bits"),
        CONFIG("llama-gptq4", GPTQ_OF("[4]", "32"), "'bits' is an array"),
        TENSOR("llama-gptq4", GPTQ_OF("8", "32"), "is 8 x 64, the architecture says 16 x 64"),
        TENSOR("llama-gptq4", GPTQ_OF("3", "32"), "is 8 x 64, the architecture says 6 x 64"),
        CONFIG("llama-gptq4", GPTQ_OF("4", "-2"), "'group_size' is -2"),
        CONFIG("llama-gptq4", GPTQ_OF("4", "-9007199254740991"), "'group_size' is -9007199254740991"),
        CONFIG("llama-gptq4", GPTQ_OF("4", "4294967328"), "'group_size' is 4294967328"),
        CONFIG("llama-gptq4", GPTQ_OF("4", "\"32\""), "'group_size' is a string"),
        CONFIG("llama-gptq4", GPTQ_OF("4", "{}"), "'group_size' is an object"),
        TENSOR("llama-gptq4", GPTQ_OF("4", "24"), "expected"),
        TENSOR("llama-gptq4", GPTQ_OF("4", "64"), "expected"),
        TENSOR("llama-gptq4", GPTQ_OF("4", "-1"), "expected"),
        TENSOR("llama-gptq4", GPTQ_OF("4", "1"), "expected"),
        CONFIG("llama-gptq4", GPTQ(", \"checkpoint_format\": \"marlin\""), "layout 'marlin' is not in this version"),
        CONFIG("llama-gptq4", GPTQ(", \"checkpoint_format\": \"gptq_v3\""), "layout 'gptq_v3'"),
        CONFIG("llama-gptq4", GPTQ(", \"checkpoint_format\": 2"), "'checkpoint_format' is a number"),
        CONFIG("llama-gptq4", GPTQ(", \"checkpoint_format\": [\"gptq\"]"), "'checkpoint_format' is an array"),
        CONFIG("llama-gptq4", GPTQ(", \"is_marlin_format\": true"), "layout 'marlin'"),
        CONFIG("llama-gptq4", GPTQ(", \"is_marlin_format\": 1"), "'is_marlin_format' is a number"),
        CONFIG("llama-gptq4", GPTQ(", \"pack_dtype\": \"int16\""), "pack_dtype 'int16'"),
        CONFIG("llama-gptq4", GPTQ(", \"dynamic\": \"all\""), "'dynamic' is a string"),
        CONFIG("llama-gptq4", "{\"quant_method\": \"gptq\", \"bits\": 4, \"desc_act\": \"yes\"}",
               "'desc_act' is a string"),
        CONFIG("llama-gptq4", "{\"quant_method\": \"aqlm\"}", "the quantisation method 'aqlm' is not in this version"),
        CONFIG("llama-gptq4", "{\"quant_method\": \"gptq\\u0000x\", \"bits\": 4}", "quant_method"),
        CONFIG("llama-gptq4", "{\"quant_method\": 4}", "'quant_method' is a number"),
        CONFIG("llama-gptq4", "{\"quant_method\": null}", "has no quant_method"),
        CONFIG("llama-gptq4", "{}", "has no quant_method"),
        CONFIG("llama-gptq4", "{\"bits\": 4}", "has no quant_method"),
        CONFIG("llama-gptq4", "[]", "'quantization_config' is an array"),
        CONFIG("llama-gptq4", "\"gptq\"", "'quantization_config' is a string"),
        CONFIG("llama-gptq4", "4", "'quantization_config' is a number"),
        CONFIG("llama-gptq4", "false", "'quantization_config' is"),
        TENSOR("llama-gptq4", "null", "has no quantization_config"),
        TENSOR("llama-gptq4", "", "has no quantization_config"),
        TENSOR("llama-gptq4", "{\"quant_method\": \"bitsandbytes\", \"load_in_4bit\": true}",
               "says neither gptq nor awq"),
        TENSOR("llama-gptq4", "{\"quant_method\": \"awq\"}", "the architecture says 64 x 8"),
    };
    all_refused(cases, COUNT_OF(cases));
}

#define AWQ(bits, size)                                                                                                \
    "{\"quant_method\": \"awq\", \"bits\": " bits ", \"group_size\": " size ", \"version\": \"gemm\"}"

TEST(awq) {
    static const struct hostile cases[] = {
        {"llama-awq", NULL, DROP(Q ".qweight"), "is missing", NULL},
        {"llama-awq", NULL, DROP(Q ".qzeros"), "is missing", NULL},
        {"llama-awq", NULL, DROP(Q ".scales"), "is missing", NULL},
        {"llama-awq", NULL, AS2(Q ".qweight", ST_F16, 64, 16), "is F16, expected I32", NULL},
        {"llama-awq", NULL, AS2(Q ".qweight", ST_I32, 8, 64), "is 8 x 64, the architecture says 64 x 8", NULL},
        {"llama-awq", NULL, AS2(Q ".qzeros", ST_I32, 2, 64), "is 2 x 64", NULL},
        {"llama-awq", NULL, AS2(Q ".qzeros", ST_I32, 3, 8), "is 3 x 8", NULL},
        {"llama-awq", NULL, AS2(Q ".scales", ST_F16, 0, 64), "has the wrong shape", NULL},
        {"llama-awq", NULL, AS2(Q ".scales", ST_I32, 2, 64), "holds no floats", NULL},
        {"llama-awq", NULL, AS1(Q ".g_idx", ST_I32, 64), "has no place", NULL},
        {"llama-awq", "{\"quant_method\": \"awq\"}", AS2(Q ".scales", ST_F16, 3, 64), "3 groups", Q},
        CONFIG("llama-awq", AWQ("8", "32"), "AWQ of 8 bits is not in this version"),
        CONFIG("llama-awq", AWQ("\"4\"", "32"), "'bits' is a string"),
        CONFIG("llama-awq", AWQ("4", "\"32\""), "'group_size' is a string"),
        CONFIG("llama-awq", AWQ("4", "-32"), "'group_size' is -32"),
        TENSOR("llama-awq", AWQ("4", "48"), "group size 48 for 64 columns"),
        TENSOR("llama-awq", AWQ("4", "128"), "group size 128 for 64 columns"),
        TENSOR("llama-awq", AWQ("4", "16"), "expected"),
        TENSOR("llama-awq", AWQ("4", "-1"), "expected"),
        CONFIG("llama-awq", "{\"quant_method\": \"awq\", \"bits\": 4, \"version\": \"gemv\"}", "layout 'gemv'"),
        CONFIG("llama-awq", "{\"quant_method\": \"awq\", \"bits\": 4, \"version\": 1}", "'version' is a number"),
        TENSOR("llama-awq", "{\"quant_method\": \"gptq\", \"bits\": 4, \"group_size\": 32}",
               "the architecture says 8 x 64"),
    };
    all_refused(cases, COUNT_OF(cases));
}

#define FP8(more) "{\"quant_method\": \"fp8\", \"scale_fmt\": \"ue8m0\"" more "}"

TEST(fp8_and_mxfp4) {
    static const struct hostile fp8[] = {
        {"llama-fp8-exponents", NULL, DROP(Q ".weight_scale_inv"), "is missing (nor is there a weight_scale)", NULL},
        {"llama-fp8-exponents", NULL, AS2(Q ".weight_scale_inv", ST_F8_E8M0, 4, 3), "scales of 4 x 3 do not fit", Q},
        {"llama-fp8-exponents", NULL, AS2(Q ".weight_scale_inv", ST_F8_E8M0, 5, 4), "scales of 5 x 4 do not fit", Q},
        {"llama-fp8-exponents", NULL, AS2(Q ".weight_scale_inv", ST_F8_E8M0, 0, 4), "scales of 0 x 4 do not fit", Q},
        {"llama-fp8-exponents", NULL, AS2(Q ".weight_scale_inv", ST_F8_E8M0, 1, 1), "scales of 1 x 1 do not fit", Q},
        {"llama-fp8-exponents", NULL, AS3(Q ".weight_scale_inv", ST_F32, 4, 4, 1), "has more than two dims", Q},
        {"llama-fp8-exponents", NULL, AS2(Q ".weight_scale_inv", ST_I32, 4, 4), "is I32, which is no type of scales",
         NULL},
        {"llama-fp8-exponents", "{\"quant_method\": \"fp8\"}", AS2(Q ".weight_scale_inv", ST_U8, 4, 4),
         "is U8, which is no type of scales", NULL},
        {"llama-fp8-exponents", NULL, AS2(W, ST_F8_E4M3, 64, 63), "is 64 x 63", NULL},
        {"llama-fp8-exponents", NULL, AS2(W, ST_F8_E4M3FNUZ, 64, 64), "is not in this version", NULL},
        {"llama-fp8-exponents", NULL, AS2(W, ST_I8, 64, 32), "do not cover blocks of 32", Q},
        CONFIG("llama-fp8-exponents", FP8(", \"weight_block_size\": [16]"), "weight_block_size is no pair"),
        CONFIG("llama-fp8-exponents", FP8(", \"weight_block_size\": [16, 16, 16]"), "weight_block_size is no pair"),
        CONFIG("llama-fp8-exponents", FP8(", \"weight_block_size\": [0, 16]"), "weight_block_size is no pair"),
        CONFIG("llama-fp8-exponents", FP8(", \"weight_block_size\": [16, -1]"), "weight_block_size is no pair"),
        CONFIG("llama-fp8-exponents", FP8(", \"weight_block_size\": [16, \"16\"]"), "weight_block_size is no pair"),
        CONFIG("llama-fp8-exponents", FP8(", \"weight_block_size\": 16"), "'weight_block_size' is a number"),
        CONFIG("llama-fp8-exponents", "{\"quant_method\": \"fp8\", \"scale_fmt\": 8}", "'scale_fmt' is a number"),
        TENSOR("llama-fp8-exponents", FP8(", \"weight_block_size\": [32, 32]"), "do not fit blocks of 32 x 32"),
        TENSOR("llama-fp8-exponents", FP8(", \"weight_block_size\": [9007199254740991, 1]"), "do not fit"),
        {"llama-fp8-exponents", "", {0}, "has no quantization_config", Q ".weight_scale_inv"},
        {"llama-fp8-rows", NULL, AS2(Q ".weight_scale", ST_BF16, 63, 1), "scales of 63 x 1 do not fit", Q},
        {"llama-fp8-rows", NULL, AS2(Q ".weight_scale", ST_BF16, 64, 3), "scales of 64 x 3 do not fit", Q},
        CONFIG("llama-fp8-rows", "{\"quant_method\": \"compressed-tensors\", \"format\": \"pack-quantized\"}",
               "format 'pack-quantized' is not in this version"),
        CONFIG("llama-fp8-rows", "{\"quant_method\": \"compressed-tensors\", \"format\": 8}", "'format' is a number"),
        CONFIG("llama-fp8-rows", "{\"quant_method\": \"compressed-tensors\"}", "compressed-tensors in the format ''"),
    };
    static const struct hostile mxfp4[] = {
        {"gpt-oss-mxfp4", NULL, DROP(EXPERTS "_scales"), "is missing", NULL},
        {"gpt-oss-mxfp4", NULL, DROP(EXPERTS "_blocks"), "is missing", NULL},
        {"gpt-oss-mxfp4", NULL, AS3(EXPERTS "_scales", ST_F32, 5, 64, 2), "is F32, expected U8", NULL},
        {"gpt-oss-mxfp4", NULL, AS3(EXPERTS "_scales", ST_U8, 5, 64, 1), "has the wrong shape", NULL},
        {"gpt-oss-mxfp4", NULL, AS2(EXPERTS "_scales", ST_U8, 5, 128), "has the wrong shape", NULL},
        {"gpt-oss-mxfp4", NULL, AS3(EXPERTS "_scales", ST_U8, 4, 64, 2), "has the wrong shape", NULL},
        {"gpt-oss-mxfp4", NULL, AS4(EXPERTS "_blocks", ST_I8, 5, 64, 2, 16), "is I8, expected U8", NULL},
        {"gpt-oss-mxfp4", NULL, AS4(EXPERTS "_blocks", ST_U8, 5, 64, 1, 16), "has the wrong shape", NULL},
        {"gpt-oss-mxfp4", NULL, AS4(EXPERTS "_blocks", ST_U8, 4, 64, 2, 16), "has the wrong shape", NULL},
        {"gpt-oss-mxfp4", NULL, AS4(EXPERTS "_blocks", ST_U8, 5, 64, 2, 32), "has the wrong shape", NULL},
        {"gpt-oss-mxfp4", NULL, AS3(EXPERTS "_blocks", ST_U8, 5, 64, 32), "has the wrong shape", NULL},
        {"gpt-oss-mxfp4", "", {0}, "is missing", EXPERTS},
        {"gpt-oss-mxfp4", NULL, AS3(EXPERTS, ST_BF16, 5, 64, 64), "has no place", NULL},
    };
    all_refused(fp8, COUNT_OF(fp8));
    all_refused(mxfp4, COUNT_OF(mxfp4));
}

TEST(what_is_sound_is_taken) {
    // Lists of modules that are not packed say nothing that the tensors do not, whatever is in them.
    static const char listed[] =
        "{\"quant_method\": \"gptq\", \"bits\": 4, \"group_size\": 32, \"desc_act\": true, "
        "\"lm_head\": false, \"modules_to_not_convert\": [\"q_proj\", 7], \"meta\": {\"x\": []}}";
    // One linear plain among packed ones.
    static const struct change plain[] = {DROP(Q ".qweight"), DROP(Q ".qzeros"), DROP(Q ".scales"), DROP(Q ".g_idx"),
                                          AS2(W, ST_BF16, 64, 64)};
    CHECK_INT(opened("llama-gptq4", listed, plain, COUNT_OF(plain)), 0);
    // Settings that the tensors say as well.
    CHECK_INT(opened("llama-gptq4", "{\"quant_method\": \"gptq\", \"bits\": 4}", NULL, 0), 0);
    CHECK_INT(opened("llama-gptq4", GPTQ(", \"dynamic\": {\"+:.*q_proj\": {\"bits\": 8}}"), NULL, 0), 0);
    CHECK_INT(opened("llama-awq", "{\"quant_method\": \"awq\"}", NULL, 0), 0);
    CHECK_INT(opened("llama-fp8-exponents", "{\"quant_method\": \"fp8\"}", NULL, 0), 0);
    // Without desc_act the groups follow one another, whether g_idx is there or not.
    static const struct change no_list[] = {DROP(Q ".g_idx")};
    CHECK_INT(opened("llama-gptq3", NULL, no_list, 1), 0);
    // A packed head.
    static const struct change head[] = {AS2("lm_head.weight", ST_I8, 101, 64), AS1("lm_head.SCB", ST_F32, 101)};
    CHECK_INT(opened("llama-int8", NULL, head, 2), 0);
    // The same codes in elements of two bytes.
    static const struct change storage[] = {AS2(W, ST_BF16, 1024, 1)};
    CHECK_INT(opened("llama-nf4", NULL, storage, 1), 0);
}

TEST(scales_that_are_not_finite_are_weights_that_are_not) {
    static const struct change absmax[] = {PATCH(W ".nested_absmax", 0, "\0\0\xc0\x7f")}; // of 64 blocks of 64
    static const struct change scb[] = {PATCH(Q ".SCB", 4, "\0\0\x80\x7f")};
    static const struct change scales[] = {PATCH(Q ".scales", 0, "\0\x7e")}; // 32 columns of a row
    static const struct change exponent[] = {PATCH(Q ".weight_scale_inv", 0, "\xff")};
    CHECK_INT(opened("llama-nf4", NULL, absmax, 1), 64 * 64);
    CHECK(opened("llama-int8", NULL, scb, 1) > 0);
    CHECK_INT(opened("llama-gptq4", NULL, scales, 1), 32);
    CHECK_INT(opened("llama-awq", NULL, scales, 1), 32);
    CHECK_INT(opened("llama-fp8-exponents", NULL, exponent, 1), 16 * 16);
}

TEST_MAIN(CASE(bitsandbytes_tables), CASE(bitsandbytes_states), CASE(gptq_tables), CASE(gptq_settings), CASE(awq),
          CASE(fp8_and_mxfp4), CASE(what_is_sound_is_taken), CASE(scales_that_are_not_finite_are_weights_that_are_not))
