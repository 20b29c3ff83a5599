// Reading GGUF (v2 and v3): a bounded cursor over the bytes that checks everything before it hands out the first
// pointer (formats.md 2.1 - 2.3). Nothing is copied but names; values and tensors stay in the file.
#pragma once

#include "data/vocab_source.h"
#include "kernels/base.h"
#include "kernels/quant.h"

enum gguf_type { // of a value, ids as in the file
    GGUF_U8,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_STRING,
    GGUF_ARRAY,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64,
    GGUF_TYPES
};

// Limits: both sides of each are tested. Real files have about 40 keys, 300 to 3,000 tensors, 300,000 strings.
enum { GGUF_MAX_KEYS = 65536, GGUF_MAX_TENSORS = 1000000, GGUF_MAX_KEY = 256, GGUF_MAX_NAME = 63, GGUF_MAX_DIMS = 4 };
enum { GGUF_MAX_STRING = 16 << 20, GGUF_MAX_ARRAY = 16 << 20, GGUF_MIN_ALIGNMENT = 8, GGUF_MAX_ALIGNMENT = 65536 };

struct gguf_kv {
    const char *key;
    enum gguf_type type;
    enum gguf_type element; // of an array
    uint64_t count;         // elements of an array, bytes of a string, else 1
    const uint8_t *data;    // first byte of the value, the string or the first element; unaligned
    uint64_t bytes;         // up to the end of the value
};

struct gguf_tensor {
    const char *name;
    int n_dims;
    int64_t ne[GGUF_MAX_DIMS]; // fastest first, 1 beyond n_dims, each >= 1
    int ggml_type;             // known to quant_ggml_type_size, not always to quant_by_ggml_type
    const uint8_t *data;       // within the file, all `bytes` of it
    uint64_t bytes, offset;    // offset from the start of the data
};

struct gguf {
    struct mapped_file file; // empty when parsed from memory
    const char *name;        // for messages; lives in the pool
    uint32_t version, alignment;
    uint64_t data_start; // = bytes of everything before the tensor data
    const uint8_t *bytes;
    size_t size;
    struct gguf_kv *kv; // in file order
    size_t n_kv;
    struct gguf_tensor *tensors; // in file order
    size_t n_tensors;
    const struct gguf_kv **kv_by_key;           // sorted
    const struct gguf_tensor **tensors_by_name; // sorted
    struct pool pool;
};

// Errors: 66 missing, 65 malformed, 71 no memory. On failure nothing is left to close.
int gguf_open(const char *path, struct gguf *out, struct error *err);
// The same for bytes that the caller keeps until gguf_close.
int gguf_parse(const uint8_t *bytes, size_t length, const char *name, struct gguf *out, struct error *err);
void gguf_close(struct gguf *gguf); // zeroed struct is a no-op

const struct gguf_kv *gguf_find(const struct gguf *gguf, const char *key);             // NULL when absent
const struct gguf_tensor *gguf_find_tensor(const struct gguf *gguf, const char *name); // NULL when absent
const char *gguf_type_name(enum gguf_type type);

// Typed getters. Each returns 1 when the key is there, 0 when it is absent (*out is left alone), -1 with `err` naming
// file, key and types when it has another type or does not fit. Integers accept every integer type of the file.
int gguf_get_int(const struct gguf *gguf, const char *key, int64_t low, int64_t high, int64_t *out, struct error *err);
int gguf_get_float(const struct gguf *gguf, const char *key, double *out, struct error *err); // f32 and f64, finite
int gguf_get_bool(const struct gguf *gguf, const char *key, bool *out, struct error *err);
int gguf_get_string(const struct gguf *gguf, const char *key, struct vocab_string *out, struct error *err); // borrowed
// As a C string in `pool`; a NUL inside is refused.
int gguf_get_text(const struct gguf *gguf, const char *key, struct pool *pool, const char **out, struct error *err);

// Arrays, copied into `pool` (the bytes of strings stay in the file). Element types must fit exactly: an i32 array may
// be any integer array whose values fit, an f32 array only f32.
int gguf_get_strings(const struct gguf *gguf, const char *key, struct pool *pool, const struct vocab_string **out,
                     size_t *count, struct error *err);
int gguf_get_i32s(const struct gguf *gguf, const char *key, struct pool *pool, const int32_t **out, size_t *count,
                  struct error *err);
int gguf_get_f32s(const struct gguf *gguf, const char *key, struct pool *pool, const float **out, size_t *count,
                  struct error *err);
// A scalar or an array of exactly `count` integers or bools: a scalar fills all of `out` (head_count,
// feed_forward_length).
int gguf_get_per_layer(const struct gguf *gguf, const char *key, int64_t low, int64_t high, size_t count, int64_t *out,
                       struct error *err);
