// Writing GGUF v3: adapters and test models. Keys and tensors are collected first, then written in that order;
// what is put in is borrowed until gguf_write has returned (names and keys are copied).
#pragma once

#include "model/gguf.h"

struct gguf_writer {
    struct pool pool;
    struct text keys; // encoded key-value pairs
    uint64_t n_kv;
    struct gguf_out *first, *last;
    uint64_t n_tensors;
    bool failed; // out of memory somewhere; gguf_write says it
};

void gguf_put_string(struct gguf_writer *w, const char *key, const char *value);
void gguf_put_bytes(struct gguf_writer *w, const char *key, const char *bytes,
                    size_t length); // a string with any bytes
void gguf_put_u32(struct gguf_writer *w, const char *key, uint32_t value);
void gguf_put_u64(struct gguf_writer *w, const char *key, uint64_t value);
void gguf_put_i32(struct gguf_writer *w, const char *key, int32_t value);
void gguf_put_f32(struct gguf_writer *w, const char *key, float value);
void gguf_put_bool(struct gguf_writer *w, const char *key, bool value);
void gguf_put_bools(struct gguf_writer *w, const char *key, const uint8_t *values, size_t count); // 0 or 1 each
void gguf_put_strings(struct gguf_writer *w, const char *key, const struct vocab_string *values, size_t count);
void gguf_put_u32s(struct gguf_writer *w, const char *key, const uint32_t *values, size_t count);
void gguf_put_i32s(struct gguf_writer *w, const char *key, const int32_t *values, size_t count);
void gguf_put_f32s(struct gguf_writer *w, const char *key, const float *values, size_t count);
// Any value as it stands in a file.
void gguf_put_kv(struct gguf_writer *w, const struct gguf_kv *kv);

// ne[0] must be a multiple of the type's block; n_dims 1..4, each >= 1. `data` has exactly the tensor's bytes.
void gguf_put_tensor(struct gguf_writer *w, const char *name, int ggml_type, int n_dims, const int64_t *ne,
                     const void *data);
// The same with data that is made when its turn comes: `fill` writes its bytes, in one or more file_write calls.
typedef int (*gguf_fill)(void *context, struct file_writer *out, struct error *err);
void gguf_put_tensor_later(struct gguf_writer *w, const char *name, int ggml_type, int n_dims, const int64_t *ne,
                           gguf_fill fill, void *context);

// How long the file will be.
uint64_t gguf_write_bytes(const struct gguf_writer *w);
// The file as bytes, without the tensors whose data is made later: what a reader needs to see keys and vectors. The
// caller frees `out`.
int gguf_write_memory(const struct gguf_writer *w, struct text *out, struct error *err);
// Writes to an open file; the caller closes (or abandons) it and publishes it. Alignment 32.
int gguf_write(struct gguf_writer *w, struct file_writer *out, struct error *err);
void gguf_writer_free(struct gguf_writer *w); // zeroed struct is a no-op
