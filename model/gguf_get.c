// Look-ups and typed getters of GGUF values: see gguf.h.
#include "model/gguf.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

const struct gguf_kv *gguf_find(const struct gguf *gguf, const char *key) {
    size_t low = 0, high = gguf->n_kv;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(key, gguf->kv_by_key[middle]->key);
        if (order == 0) return gguf->kv_by_key[middle];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

const struct gguf_tensor *gguf_find_tensor(const struct gguf *gguf, const char *name) {
    size_t low = 0, high = gguf->n_tensors;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(name, gguf->tensors_by_name[middle]->name);
        if (order == 0) return gguf->tensors_by_name[middle];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

static int wrong_type(const struct gguf *g, const struct gguf_kv *kv, const char *expected, struct error *err) {
    bool array = kv->type == GGUF_ARRAY;
    return error_set(err, STATUS_DATA, "%s: key '%s' is %s%s, expected %s", g->name, kv->key,
                     array ? "an array of " : "", gguf_type_name(array ? kv->element : kv->type), expected);
}

// Element `i` of an integer or bool value (a scalar is element 0); false for other types and above INT64_MAX.
static bool integer_at(const struct gguf_kv *kv, uint64_t i, bool bools, int64_t *out) {
    const uint8_t *p = kv->data;
    union {
        uint8_t u8;
        int8_t i8;
        uint16_t u16;
        int16_t i16;
        uint32_t u32;
        int32_t i32;
        uint64_t u64;
        int64_t i64;
    } v;
    switch (kv->element) {
    case GGUF_BOOL:
        if (!bools) return false;
        *out = p[i];
        return true;
    case GGUF_U8: return *out = p[i], true;
    case GGUF_I8: return memcpy(&v.i8, p + i, 1), *out = v.i8, true;
    case GGUF_U16: return memcpy(&v.u16, p + 2 * i, 2), *out = v.u16, true;
    case GGUF_I16: return memcpy(&v.i16, p + 2 * i, 2), *out = v.i16, true;
    case GGUF_U32: return memcpy(&v.u32, p + 4 * i, 4), *out = v.u32, true;
    case GGUF_I32: return memcpy(&v.i32, p + 4 * i, 4), *out = v.i32, true;
    case GGUF_I64: return memcpy(&v.i64, p + 8 * i, 8), *out = v.i64, true;
    case GGUF_U64:
        memcpy(&v.u64, p + 8 * i, 8);
        if (v.u64 > INT64_MAX) return false;
        *out = (int64_t)v.u64;
        return true;
    default: return false;
    }
}

static int out_of_range(const struct gguf *g, const struct gguf_kv *kv, int64_t value, int64_t low, int64_t high,
                        struct error *err) {
    return error_set(err, STATUS_DATA, "%s: key '%s' is %" PRId64 ", expected %" PRId64 " to %" PRId64, g->name,
                     kv->key, value, low, high);
}

int gguf_get_int(const struct gguf *gguf, const char *key, int64_t low, int64_t high, int64_t *out, struct error *err) {
    const struct gguf_kv *kv = gguf_find(gguf, key);
    int64_t value;
    if (!kv) return 0;
    if (kv->type == GGUF_ARRAY || !integer_at(kv, 0, false, &value))
        return wrong_type(gguf, kv, "a whole number below 2^63", err);
    if (value < low || value > high) return out_of_range(gguf, kv, value, low, high, err);
    *out = value;
    return 1;
}

int gguf_get_float(const struct gguf *gguf, const char *key, double *out, struct error *err) {
    const struct gguf_kv *kv = gguf_find(gguf, key);
    float single;
    double value;
    if (!kv) return 0;
    if (kv->type == GGUF_F32) {
        memcpy(&single, kv->data, 4);
        value = (double)single;
    } else if (kv->type == GGUF_F64) {
        memcpy(&value, kv->data, 8);
    } else {
        return wrong_type(gguf, kv, "f32 or f64", err);
    }
    if (!isfinite(value))
        return error_set(err, STATUS_DATA, "%s: key '%s' is not a finite number", gguf->name, kv->key);
    *out = value;
    return 1;
}

int gguf_get_bool(const struct gguf *gguf, const char *key, bool *out, struct error *err) {
    const struct gguf_kv *kv = gguf_find(gguf, key);
    if (!kv) return 0;
    if (kv->type != GGUF_BOOL) return wrong_type(gguf, kv, "bool", err);
    *out = kv->data[0] != 0;
    return 1;
}

int gguf_get_string(const struct gguf *gguf, const char *key, struct vocab_string *out, struct error *err) {
    const struct gguf_kv *kv = gguf_find(gguf, key);
    if (!kv) return 0;
    if (kv->type != GGUF_STRING) return wrong_type(gguf, kv, "string", err);
    *out = (struct vocab_string){.bytes = (const char *)kv->data, .length = (size_t)kv->count};
    return 1;
}

int gguf_get_text(const struct gguf *gguf, const char *key, struct pool *pool, const char **out, struct error *err) {
    struct vocab_string string = {0};
    int found = gguf_get_string(gguf, key, &string, err);
    if (found <= 0) return found;
    if (string.length && memchr(string.bytes, 0, string.length))
        return error_set(err, STATUS_DATA, "%s: key '%s' holds a NUL", gguf->name, key);
    const char *copy = pool_strndup(pool, string.bytes, string.length);
    if (!copy) return error_memory(err, key, string.length + 1);
    *out = copy;
    return 1;
}

// The array `key`, with a block in `pool` of `size` bytes per element; returns as the getters do.
static int array(const struct gguf *g, const char *key, struct pool *pool, size_t size, const struct gguf_kv **kv,
                 void **block, const char *expected, struct error *err) {
    *kv = gguf_find(g, key);
    if (!*kv) return 0;
    if ((*kv)->type != GGUF_ARRAY) return wrong_type(g, *kv, expected, err);
    *block = pool_array(pool, (*kv)->count, size);
    return *block ? 1 : error_memory(err, key, (size_t)(*kv)->count * size);
}

int gguf_get_strings(const struct gguf *gguf, const char *key, struct pool *pool, const struct vocab_string **out,
                     size_t *count, struct error *err) {
    const struct gguf_kv *kv = gguf_find(gguf, key);
    if (kv && kv->element != GGUF_STRING) return wrong_type(gguf, kv, "an array of string", err);
    void *block;
    int found = array(gguf, key, pool, sizeof(struct vocab_string), &kv, &block, "an array of string", err);
    if (found <= 0) return found;
    struct vocab_string *strings = block;
    const uint8_t *p = kv->data;
    for (uint64_t i = 0; i < kv->count; i++) { // lengths were checked by gguf_parse
        uint64_t length;
        memcpy(&length, p, 8);
        strings[i] = (struct vocab_string){.bytes = (const char *)p + 8, .length = (size_t)length};
        p += 8 + length;
    }
    *out = strings;
    *count = (size_t)kv->count;
    return 1;
}

int gguf_get_i32s(const struct gguf *gguf, const char *key, struct pool *pool, const int32_t **out, size_t *count,
                  struct error *err) {
    static const char expected[] = "an array of whole numbers below 2^31";
    const struct gguf_kv *kv;
    void *block;
    int found = array(gguf, key, pool, sizeof(int32_t), &kv, &block, expected, err);
    if (found <= 0) return found;
    int32_t *numbers = block;
    for (uint64_t i = 0; i < kv->count; i++) {
        int64_t value;
        if (!integer_at(kv, i, false, &value)) return wrong_type(gguf, kv, expected, err);
        if (value < INT32_MIN || value > INT32_MAX) return out_of_range(gguf, kv, value, INT32_MIN, INT32_MAX, err);
        numbers[i] = (int32_t)value;
    }
    *out = numbers;
    *count = (size_t)kv->count;
    return 1;
}

int gguf_get_f32s(const struct gguf *gguf, const char *key, struct pool *pool, const float **out, size_t *count,
                  struct error *err) {
    const struct gguf_kv *kv = gguf_find(gguf, key);
    if (kv && kv->element != GGUF_F32) return wrong_type(gguf, kv, "an array of f32", err);
    void *block;
    int found = array(gguf, key, pool, sizeof(float), &kv, &block, "an array of f32", err);
    if (found <= 0) return found;
    memcpy(block, kv->data, (size_t)kv->count * sizeof(float));
    *out = block;
    *count = (size_t)kv->count;
    return 1;
}

int gguf_get_per_layer(const struct gguf *gguf, const char *key, int64_t low, int64_t high, size_t count, int64_t *out,
                       struct error *err) {
    const struct gguf_kv *kv = gguf_find(gguf, key);
    if (!kv) return 0;
    if (kv->type == GGUF_ARRAY && kv->count != count)
        return error_set(err, STATUS_DATA, "%s: key '%s' has %" PRIu64 " elements, expected one per layer (%zu)",
                         gguf->name, kv->key, kv->count, count);
    for (size_t pass = 0; pass < 2; pass++) { // nothing is written before all is checked
        for (size_t i = 0; i < count; i++) {
            int64_t value;
            if (!integer_at(kv, kv->type == GGUF_ARRAY ? i : 0, true, &value))
                return wrong_type(gguf, kv, "a whole number or one per layer", err);
            if (value < low || value > high) return out_of_range(gguf, kv, value, low, high, err);
            if (pass == 1) out[i] = value;
        }
    }
    return 1;
}
