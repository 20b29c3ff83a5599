// See checkpoint_packing.h. What the keys mean: formats.md 3.5, 4.1, 4.2, 5.2.
#include "model/checkpoint_packing.h"

#include <stdio.h>
#include <string.h>

static bool is_word(const char *text, const char *words) {
    size_t length = text ? strlen(text) : 0;
    for (const char *at = words; text && *at; at += strcspn(at, "|") + (strchr(at, '|') != NULL)) {
        if (strcspn(at, "|") == length && memcmp(at, text, length) == 0) return true;
    }
    return false;
}

// quantization_config, and what messages call its file. A key that is read has its type or is an error: a default in
// place of a number that cannot be read would be another checkpoint.
struct settings {
    const struct json *q;
    const char *name;
    struct error *err;
};

static int wrong(const struct settings *s) {
    error_prefix(s->err, "%s: quantization_config", s->name);
    return -1;
}

static int text_of(const struct settings *s, const char *key, const char **out) {
    return json_get_string(s->q, key, JSON_OPTIONAL, out, NULL, s->err) ? wrong(s) : 0;
}

// A whole number within limits; `special` is allowed beside them.
static int whole_of(const struct settings *s, const char *key, int64_t high, int64_t special, int64_t *out) {
    int64_t value = *out;
    if (json_get_int(s->q, key, JSON_OPTIONAL, &value, s->err)) return wrong(s);
    if (value != *out && value != special && (value < 1 || value > high))
        return error_set(s->err, STATUS_DATA, "%s: quantization_config: key '%s' is %lld", s->name, key,
                         (long long)value);
    *out = value;
    return 0;
}

static int flag_of(const struct settings *s, const char *key, bool *out) {
    return json_get_bool(s->q, key, JSON_OPTIONAL, out, s->err) ? wrong(s) : 0;
}

enum { MOST_BITS = 64, MOST_GROUP = INT32_MAX };

static int read_gptq(const struct settings *s, struct packing *out) {
    const struct json *overrides = NULL;
    const char *layout = NULL, *words = NULL;
    bool marlin = false;
    if (text_of(s, "format", &layout) || text_of(s, "checkpoint_format", &layout) || text_of(s, "pack_dtype", &words) ||
        flag_of(s, "is_marlin_format", &marlin) || flag_of(s, "desc_act", &out->reordered) ||
        whole_of(s, "bits", MOST_BITS, 0, &out->bits) || whole_of(s, "group_size", MOST_GROUP, -1, &out->group_size)) {
        return -1;
    }
    if (json_get_container(s->q, "dynamic", JSON_OBJECT, JSON_OPTIONAL, &overrides, s->err)) return wrong(s);
    if (marlin) layout = "marlin";
    if (layout && !is_word(layout, "gptq|gptq_v2"))
        return error_set(s->err, STATUS_DATA,
                         "%s: GPTQ in the layout '%.60s' is not in this version; gptq and gptq_v2 are", s->name,
                         layout);
    if (words && strcmp(words, "int32") != 0)
        return error_set(s->err, STATUS_DATA, "%s: GPTQ with pack_dtype '%.60s' is not in this version; int32 is",
                         s->name, words);
    if (flag_of(s, "lm_head", &out->head)) return -1;
    out->gptq_v2 = layout && strcmp(layout, "gptq_v2") == 0;
    out->overrides = json_child(overrides) != NULL;
    if (out->bits == 2 || out->bits == 3 || out->bits == 4 || out->bits == 8) return 0;
    return error_set(s->err, STATUS_DATA, "%s: GPTQ of %lld bits is not in this version; 2, 3, 4 and 8 are", s->name,
                     (long long)out->bits);
}

static int read_awq(const struct settings *s, struct packing *out) {
    const char *layout = NULL;
    out->bits = 4;
    if (text_of(s, "version", &layout) || whole_of(s, "w_bit", MOST_BITS, 4, &out->bits) ||
        whole_of(s, "bits", MOST_BITS, 4, &out->bits) ||
        whole_of(s, "q_group_size", MOST_GROUP, -1, &out->group_size) ||
        whole_of(s, "group_size", MOST_GROUP, -1, &out->group_size)) {
        return -1;
    }
    if (layout && !is_word(layout, "gemm|GEMM"))
        return error_set(s->err, STATUS_DATA, "%s: AWQ in the layout '%.60s' is not in this version; gemm is", s->name,
                         layout);
    if (out->bits == 4) return 0;
    return error_set(s->err, STATUS_DATA, "%s: AWQ of %lld bits is not in this version; 4 is", s->name,
                     (long long)out->bits);
}

static int read_fp8(const struct settings *s, struct packing *out) {
    const struct json *block = NULL;
    if (text_of(s, "scale_fmt", &out->scale_kind)) return -1;
    if (json_get_container(s->q, "weight_block_size", JSON_ARRAY, JSON_OPTIONAL, &block, s->err)) return wrong(s);
    if (!block) return 0;
    const struct json *first = json_child(block), *second = json_next(first);
    if (json_count(block) == 2 && json_int(first, &out->block[0]) && json_int(second, &out->block[1]) &&
        out->block[0] >= 1 && out->block[1] >= 1) {
        return 0;
    }
    return error_set(s->err, STATUS_DATA, "%s: weight_block_size is no pair of positive numbers", s->name);
}

// FP8 of compressed-tensors has the same tensors; its integer formats do not.
static int read_compressed(const struct settings *s) {
    const char *format = NULL;
    if (text_of(s, "format", &format)) return -1;
    if (is_word(format, "float-quantized|naive-quantized")) return 0;
    return error_set(s->err, STATUS_DATA,
                     "%s: compressed-tensors in the format '%.60s' is not in this version; "
                     "float-quantized (FP8) is",
                     s->name, format ? format : "");
}

static int find_settings(const struct json *config, struct settings *s) {
    const struct json *text = json_get(config, "text_config");
    if (!json_is(text, JSON_OBJECT)) text = config;
    if (json_get_container(config, "quantization_config", JSON_OBJECT, JSON_OPTIONAL, &s->q, s->err) ||
        (!s->q && json_get_container(text, "quantization_config", JSON_OBJECT, JSON_OPTIONAL, &s->q, s->err)) ||
        (!s->q && json_get_container(config, "compression_config", JSON_OBJECT, JSON_OPTIONAL, &s->q, s->err))) {
        error_prefix(s->err, "%s", s->name);
        return -1;
    }
    return 0;
}

static int read_bitsandbytes(const struct settings *s, struct packing *out) {
    return flag_of(s, "load_in_8bit", &out->eight) || flag_of(s, "bnb_4bit_use_double_quant", &out->nested) ? -1 : 0;
}

int packing_read(const struct json *config, const char *name, struct packing *out, struct error *err) {
    struct settings s = {.name = name, .err = err};
    *out = (struct packing){0};
    if (find_settings(config, &s)) return -1;
    if (!s.q) return 0;
    if (text_of(&s, "quant_method", &out->method)) return -1;
    if (!out->method && (json_get(s.q, "load_in_4bit") || json_get(s.q, "load_in_8bit"))) out->method = "bitsandbytes";
    if (!out->method) return error_set(err, STATUS_DATA, "%s: quantization_config has no quant_method", name);
    static const char *const lists[] = {"modules_to_not_convert", "llm_int8_skip_modules", "ignore"};
    for (size_t i = 0; i < COUNT_OF(lists) && !out->kept; i++) {
        const struct json *list = json_get(s.q, lists[i]);
        out->kept = json_is(list, JSON_ARRAY) ? list : NULL;
    }
    if (strcmp(out->method, "gptq") == 0) return read_gptq(&s, out);
    if (strcmp(out->method, "awq") == 0) return read_awq(&s, out);
    if (strcmp(out->method, "fp8") == 0) return read_fp8(&s, out);
    if (strcmp(out->method, "compressed-tensors") == 0) return read_compressed(&s);
    if (strcmp(out->method, "bitsandbytes") == 0) return read_bitsandbytes(&s, out);
    if (strcmp(out->method, "mxfp4") == 0) return 0;
    return error_set(err, STATUS_DATA,
                     "%s: the quantisation method '%.60s' is not in this version; bitsandbytes, gptq, awq, fp8, mxfp4 "
                     "and compressed-tensors (FP8) are",
                     name, out->method);
}

// --- planning

// Does the pattern, read from here, cover the name up to its end or to a dot?
static bool covers(const char *pattern, const char *name) {
    while (*pattern) {
        if (*pattern == '*') {
            pattern++, name += strcspn(name, ".");
            continue;
        }
        if (*pattern++ != *name++) return false;
    }
    return *name == '\0' || *name == '.';
}

bool packing_keeps(const struct packing *packing, const char *name) {
    for (const struct json *at = json_child(packing->kept); at; at = json_next(at)) {
        const char *pattern = json_string(at, NULL);
        for (const char *from = name; pattern && *pattern && from; from = strchr(from, '.')) {
            from += *from == '.';
            if (covers(pattern, from)) return true;
        }
    }
    return false;
}

static uint64_t divide_up(uint64_t a, uint64_t b) {
    return a / b + (a % b != 0);
}

static uint64_t bitsandbytes_bytes(const struct packing *p, uint64_t rows, uint64_t cols) {
    uint64_t n = rows * cols, blocks = divide_up(n, 64);
    if (p->eight) return n + 4 * rows + 1; // SCB, weight_format
    return divide_up(n, 2) + 4 * 16 + (p->nested ? blocks + 4 * divide_up(blocks, 256) + 4 * 256 : 4 * blocks);
}

uint64_t packing_bytes(const struct packing *p, uint64_t rows, uint64_t cols) {
    // transformers' own default where nothing is said.
    uint64_t group = p->group_size > 0    ? (uint64_t)p->group_size
                     : p->group_size == 0 ? 128
                                          : cols,
             groups = divide_up(cols, group);
    uint64_t bits = (uint64_t)p->bits;
    if (strcmp(p->method, "bitsandbytes") == 0) return bitsandbytes_bytes(p, rows, cols);
    if (strcmp(p->method, "gptq") == 0)
        return cols * bits / 32 * rows * 4 + groups * (rows * bits / 32) * 4 + groups * rows * 2 + 4 * cols;
    if (strcmp(p->method, "awq") == 0) return cols * (rows / 8) * 4 + groups * (rows / 8) * 4 + groups * rows * 2;
    if (strcmp(p->method, "mxfp4") == 0) return cols % 32 ? 0 : rows * (cols / 2 + cols / 32);
    if (strcmp(p->method, "fp8") != 0) return rows * cols + 2 * rows; // a factor in bf16 for each row
    uint64_t unit = p->scale_kind && strcmp(p->scale_kind, "ue8m0") == 0 ? 1 : 4;
    if (p->block[0] < 1) return rows * cols + unit;
    return rows * cols + unit * divide_up(rows, (uint64_t)p->block[0]) * divide_up(cols, (uint64_t)p->block[1]);
}

void packing_name(const struct packing *p, char *out) {
    char groups[40] = "";
    bool affine = is_word(p->method, "gptq|awq");
    if (affine && p->group_size > 0) snprintf(groups, sizeof groups, ", groups of %lld", (long long)p->group_size);
    if (affine)
        snprintf(out, 80, "%s, %lld bits%s", strcmp(p->method, "gptq") == 0 ? "GPTQ" : "AWQ", (long long)p->bits,
                 groups);
    else if (strcmp(p->method, "bitsandbytes") == 0)
        snprintf(out, 80, "bitsandbytes, %s%s", p->eight ? "8 bits" : "4 bits", p->nested ? ", double quantised" : "");
    else if (strcmp(p->method, "mxfp4") == 0)
        snprintf(out, 80, "MXFP4");
    else if (p->block[0] > 0)
        snprintf(out, 80, "FP8, blocks of %lld x %lld", (long long)p->block[0], (long long)p->block[1]);
    else
        snprintf(out, 80, "FP8");
}
