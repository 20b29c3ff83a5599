// The files of a base, whatever their container: one GGUF or its parts, one safetensors or its shards, or a config.json
// alone whose weights have shapes but no bytes (for planning). Tensors are found by name; everything is mapped
// read-only and nothing is copied.
#pragma once

#include "model/gguf.h"
#include "model/safetensors.h"

struct base_tensor {
    const char *name; // as in the file
    int n_dims;
    int64_t shape[GGUF_MAX_DIMS];      // slowest first, as torch counts; 1 beyond n_dims
    const struct quant_format *format; // NULL: not a number format of weights (look at dtype)
    enum safetensors_dtype dtype;      // of a safetensors file
    const char *type_name;
    const uint8_t *data; // unaligned
    uint64_t bytes;
};

enum base_kind { BASE_GGUF, BASE_SAFETENSORS, BASE_SHAPES };

struct base {
    enum base_kind kind;
    const char *path;   // as the user gave it
    const char *name;   // of what messages point to: the GGUF, the folder
    const char *folder; // with config.json and the tokenizer; NULL for a GGUF
    struct gguf *parts; // GGUF: in order; the first has the keys
    int n_parts;
    struct safetensors *shards;
    int n_shards;
    struct json_document config; // config.json, not for a GGUF
    uint64_t bytes, n_tensors;
    bool *used; // (n_tensors): tensors somebody asked for, by base_find
    struct pool pool;
};

// `path`: a .gguf (the first of its parts, or any), a .safetensors, a folder, or a config.json. A folder that has a
// config.json but neither model.safetensors nor its index is shapes alone, like the config.json. Errors: 66 missing, 65
// malformed: parts that do not belong together, an index that names a tensor or a file that is not there.
int base_open(const char *path, struct base *out, struct error *err);
void base_close(struct base *base); // zeroed struct is a no-op

// By the name in the file. False when there is none; `out` may be NULL. Marks it as used.
bool base_find(const struct base *base, const char *name, struct base_tensor *out);
// The i-th tensor's name, and whether it was used: for what no architecture has a place for.
const char *base_unused(const struct base *base, uint64_t i); // NULL when used
// SHA-256 of everything before the tensor data, of all files in order, and of config.json.
int base_header_hash(const struct base *base, uint8_t sha256[32], struct error *err);
