// safetensors: reader and writer (formats.md 1). The reader checks what the reference checks and refuses duplicate
// names; nothing is handed out before everything is checked. Data may lie at odd addresses: memcpy, never cast.
#pragma once

#include "data/json.h"
#include "kernels/base.h"

enum safetensors_dtype { // in the reference's order, which the writer sorts by
    ST_BOOL,
    ST_F4,
    ST_F6_E2M3,
    ST_F6_E3M2,
    ST_U8,
    ST_I8,
    ST_F8_E5M2,
    ST_F8_E4M3,
    ST_F8_E8M0,
    ST_F8_E4M3FNUZ,
    ST_F8_E5M2FNUZ,
    ST_I16,
    ST_U16,
    ST_F16,
    ST_BF16,
    ST_I32,
    ST_U32,
    ST_F32,
    ST_C64,
    ST_F64,
    ST_I64,
    ST_U64,
    ST_DTYPES
};
const char *safetensors_dtype_name(enum safetensors_dtype dtype);
int safetensors_dtype_bits(enum safetensors_dtype dtype);

enum { ST_MAX_HEADER = 100000000, ST_MAX_TENSORS = 1000000, ST_MAX_NAME = 1024, ST_MAX_RANK = 8 };

struct safetensors_entry {
    const char *name;
    enum safetensors_dtype dtype;
    int n_dims; // 0 = a scalar
    int64_t shape[ST_MAX_RANK];
    const uint8_t *data;
    uint64_t bytes;
};

struct safetensors {
    struct mapped_file file; // empty when parsed from memory
    struct json_document header;
    struct safetensors_entry *entries; // in the order of the data
    size_t n_entries;
    const struct safetensors_entry **by_name; // sorted
    const struct json *metadata;              // NULL when absent
    uint64_t data_start;
    struct pool pool;
};

// Errors: 66 missing, 65 malformed, 71 no memory. On failure nothing is left to close.
int safetensors_open(const char *path, struct safetensors *out, struct error *err);
// The same for bytes that the caller keeps until safetensors_close.
int safetensors_parse(const uint8_t *bytes, size_t length, const char *name, struct safetensors *out,
                      struct error *err);
void safetensors_close(struct safetensors *file); // zeroed struct is a no-op

const struct safetensors_entry *safetensors_find(const struct safetensors *file, const char *name); // NULL when absent
const char *safetensors_metadata(const struct safetensors *file, const char *key, size_t *length);  // NULL when absent

// --- Writing, byte for byte as the reference writer. Entries in any order; each has name, dtype, n_dims, shape and
// either data or fill; `bytes` is computed. Data is borrowed until safetensors_write has returned.
struct safetensors_out {
    const char *name;
    enum safetensors_dtype dtype;
    int n_dims;
    int64_t shape[ST_MAX_RANK];
    const void *data;
    // Makes the data when its turn comes, in one or more file_write calls; used when `data` is NULL.
    int (*fill)(void *context, struct file_writer *out, struct error *err);
    void *context;
};
// Writes {"format":"pt"} and the tensors to an open file; the caller closes (or abandons) it and publishes it.
int safetensors_write(struct file_writer *out, const struct safetensors_out *entries, size_t count, struct error *err);

// A file whose data comes in any order, by file_write_at. safetensors_place gives each of `count` entries its place in
// the file behind a header of *room bytes at most: the first `sorted` in the reference's order, the rest as they come
// (the last ones may still change their size: only the header knows it). safetensors_write_header then fills the room.
int safetensors_place(const struct safetensors_out *entries, size_t count, size_t sorted, uint64_t *offsets,
                      size_t *room, struct error *err);
int safetensors_write_header(struct file_writer *out, const struct safetensors_out *entries, size_t count,
                             const uint64_t *offsets, size_t room, struct error *err);
uint64_t safetensors_bytes(const struct safetensors_out *entry); // of its data
