// Cases of formats with tables, as tests/peers/tables.py writes them: arrays in hexadecimal digits, one JSON object
// each. case_answer() decodes or quantises what a case describes.
//   {"do": "decode", "format": "nf4", "rows": 2, "cols": 96, ...numbers..., "arrays": {"codes": "01f2", ...}}
//       -> {"values": float32 of every element, "sum": FNV-1a of these bytes}
//   {"do": "quantize", "format": "nf4", "rows": .., "cols": .., "type": "bf16", "arrays": {"values": ...}, ...}
//       -> {"codes": .., "absmax": ..} and, with "double", offset and nested arrays; int8: codes and absmax
//   {"do": "maps"} -> {"nf4": .., "fp4": .., "scales": ..}
//   Large ones have "made": seed instead of values, and are answered with sums: FNV-1a in place of the digits.
// NaN is written as one pattern, 7fc00000.
#pragma once

#include "data/json.h"
#include "kernels/quant_tables.h"
#include "kernels/quantize.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Arrays of one case, each in memory of its own at an odd address, so that a sanitizer sees a byte too many.
struct case_arrays {
    uint8_t *block[8];
    int count;
};

static inline int hex_digit(char c) {
    return c <= '9' ? c - '0' : c - 'a' + 10;
}

static inline struct table_bytes case_array(struct case_arrays *arrays, const struct json *c, const char *key) {
    size_t length;
    const char *hex = json_string(json_get(json_get(c, "arrays"), key), &length);
    if (!hex || arrays->count == (int)COUNT_OF(arrays->block)) return (struct table_bytes){NULL, 0};
    uint8_t *block = arrays->block[arrays->count++] = malloc(length / 2 + 1);
    if (!block) abort();
    for (size_t i = 0; i < length / 2; i++)
        block[1 + i] = (uint8_t)(hex_digit(hex[2 * i]) << 4 | hex_digit(hex[2 * i + 1]));
    return (struct table_bytes){block + 1, length / 2};
}

static inline void case_free(struct case_arrays *arrays) {
    for (int i = 0; i < arrays->count; i++) free(arrays->block[i]);
}

static inline void put_hex(struct json_writer *w, const char *key, const void *bytes, size_t count) {
    struct text hex = {0};
    for (size_t i = 0; i < count; i++) text_printf(&hex, "%02x", ((const uint8_t *)bytes)[i]);
    json_put_key(w, key);
    json_put_string(w, text_str(&hex));
    text_free(&hex);
}

static inline void put_sum(struct json_writer *w, const char *key, const void *bytes, size_t count) {
    uint64_t sum = 1469598103934665603u;
    char digits[17];
    for (size_t i = 0; i < count; i++) sum = (sum ^ ((const uint8_t *)bytes)[i]) * 1099511628211u;
    snprintf(digits, sizeof digits, "%016llx", (unsigned long long)sum);
    json_put_key(w, key);
    json_put_string(w, digits);
}

static inline int64_t case_int(const struct json *c, const char *key, int64_t otherwise) {
    int64_t value = otherwise;
    json_int(json_get(c, key), &value);
    return value;
}

static inline bool case_flag(const struct json *c, const char *key) {
    bool value = false;
    json_bool(json_get(c, key), &value);
    return value;
}

static inline enum number case_number(const struct json *c, const char *key) {
    static const char *const names[] = {"f32", "f16", "bf16", "e8m0"};
    const char *name = json_string(json_get(c, key), NULL);
    for (int i = 0; name && i < (int)COUNT_OF(names); i++)
        if (strcmp(name, names[i]) == 0) return (enum number)i;
    return NUMBER_F32;
}

static inline float case_float(const struct json *c, const char *key) { // hexadecimal bits of a float32
    const char *hex = json_string(json_get(c, key), NULL);
    uint32_t bits = hex ? (uint32_t)strtoul(hex, NULL, 16) : 0;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline bool case_is(const struct json *c, const char *key, const char *value) {
    const char *text = json_string(json_get(c, key), NULL);
    return text && strcmp(text, value) == 0;
}

// The weight a case describes.
static inline int case_weight(const struct json *c, struct case_arrays *a, struct weight *w, struct weight_tables *t,
                              struct error *err) {
    int64_t rows = case_int(c, "rows", 0), cols = case_int(c, "cols", 0);
    enum number rounded = case_number(c, "rounded"), scale_type = case_number(c, "scale_type");
    const char *name = "case.weight";
    struct table_bytes codes = case_array(a, c, "codes"), scales = case_array(a, c, "scales");
    if (case_is(c, "format", "nf4") || case_is(c, "format", "fp4")) {
        struct nf4_parts p = {name,
                              case_is(c, "format", "fp4"),
                              rows,
                              cols,
                              case_int(c, "block", 64),
                              rounded,
                              codes,
                              scales,
                              case_array(a, c, "map"),
                              case_array(a, c, "nested_scales"),
                              case_array(a, c, "nested_map"),
                              case_int(c, "nested_block", 256),
                              case_float(c, "offset")};
        return nf4_weight(w, t, &p, err);
    }
    if (case_is(c, "format", "int8"))
        return int8_weight(w, t, &(struct int8_parts){name, rows, cols, rounded, codes, scales}, err);
    if (case_is(c, "format", "gptq")) {
        struct gptq_parts p = {name,
                               rows,
                               cols,
                               (int)case_int(c, "bits", 4),
                               case_int(c, "group", -1),
                               case_flag(c, "v2"),
                               scale_type,
                               rounded,
                               codes,
                               case_array(a, c, "zeros"),
                               scales,
                               case_array(a, c, "g_idx")};
        return gptq_weight(w, t, &p, err);
    }
    if (case_is(c, "format", "awq")) {
        struct awq_parts p = {
            name, rows, cols, case_int(c, "group", -1), scale_type, rounded, codes, case_array(a, c, "zeros"), scales};
        return awq_weight(w, t, &p, err);
    }
    if (case_is(c, "format", "fp8")) {
        struct fp8_parts p = {name,
                              case_flag(c, "e5m2"),
                              rows,
                              cols,
                              case_int(c, "block_rows", 0),
                              case_int(c, "block_cols", 0),
                              case_int(c, "scale_rows", 0),
                              case_int(c, "scale_cols", 0),
                              scale_type,
                              rounded,
                              codes,
                              scales};
        return fp8_weight(w, t, &p, err);
    }
    struct mxfp4_parts p = {name, rows, cols, case_int(c, "row_step", 1), rounded, codes, scales};
    return mxfp4_weight(w, t, &p, err);
}

static inline int case_decode(const struct json *c, struct case_arrays *a, struct json_writer *out, struct error *err) {
    struct weight w;
    struct weight_tables t;
    if (case_weight(c, a, &w, &t, err)) return -1;
    float *values = malloc((size_t)(w.rows * w.cols) * sizeof *values);
    if (!values) abort();
    for (int64_t row = 0; row < w.rows; row++) weight_decode(&w, row, 0, w.cols, values + row * w.cols);
    for (int64_t i = 0; i < w.rows * w.cols; i++) {
        const uint32_t nan = 0x7FC00000u;
        if (values[i] != values[i]) memcpy(&values[i], &nan, 4);
    }
    size_t bytes = (size_t)(w.rows * w.cols) * sizeof *values;
    put_hex(out, "values", values, bytes);
    put_sum(out, "sum", values, bytes);
    free(values);
    return 0;
}

// The same numbers as made_values() of tables.py.
static inline uint8_t *case_made(int64_t n, enum number type, uint32_t seed) {
    uint8_t *bytes = malloc((size_t)n * 4);
    if (!bytes) abort();
    for (int64_t i = 0; i < n; i++) {
        uint32_t h = (uint32_t)i * 2654435761u + seed;
        h = (h ^ h >> 15) * 2246822519u;
        h = (h ^ h >> 13) * 3266489917u;
        float x = (float)(int32_t)(h ^ h >> 16) * 0x1p-31f * ldexpf(1.0f, (int)(i / 512 % 16) - 12);
        uint16_t half = type == NUMBER_F16 ? f16_from_float(x) : bf16_from_float(x);
        if (type == NUMBER_F32)
            memcpy(bytes + 4 * i, &x, 4);
        else
            memcpy(bytes + 2 * i, &half, 2);
    }
    return bytes;
}

static inline int case_quantize(const struct json *c, struct case_arrays *a, struct json_writer *out,
                                struct error *err) {
    int64_t rows = case_int(c, "rows", 0), cols = case_int(c, "cols", 0), n = rows * cols;
    int64_t block = case_int(c, "block", 64), blocks = (n + block - 1) / block, outer = (blocks + 255) / 256;
    enum number type = case_number(c, "type");
    int64_t seed = case_int(c, "made", -1);
    uint8_t *made = seed >= 0 ? case_made(n, type, (uint32_t)seed) : NULL;
    const uint8_t *values = made ? made : case_array(a, c, "values").data;
    void (*put)(struct json_writer *, const char *, const void *, size_t) = made ? put_sum : put_hex;
    bool int8 = case_is(c, "format", "int8");
    size_t code_bytes = (size_t)(int8 ? n : (n + 1) / 2), scale_bytes = (size_t)(int8 ? rows : blocks) * 4;
    uint8_t *codes = malloc(code_bytes), *scale_codes = malloc((size_t)blocks);
    float *scales = malloc(scale_bytes), *outer_scales = malloc((size_t)outer * 4);
    if (!codes || !scale_codes || !scales || !outer_scales) abort();
    int status = int8 ? int8_quantize((int8_t *)codes, scales, values, type, rows, cols, err)
                      : nf4_quantize(codes, scales, values, type, n, block, case_is(c, "format", "fp4"), err);
    if (status == 0) {
        put(out, "codes", codes, code_bytes);
        put(out, "absmax", scales, scale_bytes);
    }
    if (status == 0 && case_flag(c, "double")) {
        float offset = nf4_scales_offset(scales, blocks);
        put_hex(out, "offset", &offset, 4);
        if (json_get(c, "offset")) offset = case_float(c, "offset"); // the reference's
        nf4_quantize_scales(scale_codes, outer_scales, scales, blocks, offset);
        put(out, "nested_codes", scale_codes, (size_t)blocks);
        put(out, "nested_absmax", outer_scales, (size_t)outer * 4);
    }
    free(made), free(codes), free(scale_codes), free(scales), free(outer_scales);
    return status;
}

static inline void case_maps(struct json_writer *out) {
    float map[256];
    nf4_code_map(map, false);
    put_hex(out, "nf4", map, 64);
    nf4_code_map(map, true);
    put_hex(out, "fp4", map, 64);
    nf4_scale_map(map);
    put_hex(out, "scales", map, 1024);
}

// Appends the answer, an object, to `out`; an error is answered, too.
static inline void case_answer(const struct json *c, struct text *out) {
    struct json_writer w = {.out = out};
    struct case_arrays arrays = {0};
    struct error err = {0};
    json_begin_object(&w);
    int status = 0;
    if (case_is(c, "do", "maps"))
        case_maps(&w);
    else if (case_is(c, "do", "quantize"))
        status = case_quantize(c, &arrays, &w, &err);
    else
        status = case_decode(c, &arrays, &w, &err);
    if (status) {
        json_put_key(&w, "error");
        json_put_string(&w, err.text);
    }
    json_end_object(&w);
    case_free(&arrays);
}
