// Reading: see safetensors.h. The header is parsed by data/json, then checked in two steps: each entry by itself, and
// all together in the order of the data (no hole, no overlap, nothing after the end).
#include "model/safetensors.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name;
    int bits;
} dtypes[ST_DTYPES] = {
    [ST_BOOL] = {"BOOL", 8},
    [ST_F4] = {"F4", 4},
    [ST_F6_E2M3] = {"F6_E2M3", 6},
    [ST_F6_E3M2] = {"F6_E3M2", 6},
    [ST_U8] = {"U8", 8},
    [ST_I8] = {"I8", 8},
    [ST_F8_E5M2] = {"F8_E5M2", 8},
    [ST_F8_E4M3] = {"F8_E4M3", 8},
    [ST_F8_E8M0] = {"F8_E8M0", 8},
    [ST_F8_E4M3FNUZ] = {"F8_E4M3FNUZ", 8},
    [ST_F8_E5M2FNUZ] = {"F8_E5M2FNUZ", 8},
    [ST_I16] = {"I16", 16},
    [ST_U16] = {"U16", 16},
    [ST_F16] = {"F16", 16},
    [ST_BF16] = {"BF16", 16},
    [ST_I32] = {"I32", 32},
    [ST_U32] = {"U32", 32},
    [ST_F32] = {"F32", 32},
    [ST_C64] = {"C64", 64},
    [ST_F64] = {"F64", 64},
    [ST_I64] = {"I64", 64},
    [ST_U64] = {"U64", 64},
};

const char *safetensors_dtype_name(enum safetensors_dtype dtype) {
    return dtypes[dtype].name;
}
int safetensors_dtype_bits(enum safetensors_dtype dtype) {
    return dtypes[dtype].bits;
}

// An entry with its place, until all places are known to be good.
struct placed {
    struct safetensors_entry entry;
    uint64_t begin, end;
};

// A number as the reference takes it: digits only.
static bool take_count(const struct json *value, int64_t *out) {
    double number = 0;
    return json_written_as_integer(value) && json_int(value, out) && *out >= 0 && json_double(value, &number) &&
           !signbit(number);
}

static int take_shape(const struct json *shape, struct safetensors_entry *e, struct error *err) {
    if (json_count(shape) > ST_MAX_RANK)
        return error_set(err, STATUS_DATA, "%zu dimensions, the limit is %d", json_count(shape), ST_MAX_RANK);
    for (const struct json *d = json_child(shape); d; d = json_next(d))
        if (!take_count(d, &e->shape[e->n_dims++]))
            return error_set(err, STATUS_DATA, "a dimension is not a whole number >= 0 below 2^53");
    uint64_t bits = (uint64_t)dtypes[e->dtype].bits, product = 1;
    for (int d = 0; d < e->n_dims; d++)
        if (!checked_mul(product, (uint64_t)e->shape[d], &product))
            return error_set(err, STATUS_DATA, "the product of the shape overflows");
    if (!checked_mul(product, bits, &product)) return error_set(err, STATUS_DATA, "the product of the shape overflows");
    if (product % 8 != 0) return error_set(err, STATUS_DATA, "the tensor does not end at a whole byte");
    e->bytes = product / 8;
    return 0;
}

static int take_entry(const struct json *value, struct placed *p, struct error *err) {
    const char *dtype = NULL;
    const struct json *shape = NULL, *offsets = NULL;
    int64_t begin, end;
    if (json_get_string(value, "dtype", JSON_REQUIRED, &dtype, NULL, err) < 0) return -1;
    int d = 0;
    while (d < ST_DTYPES && strcmp(dtypes[d].name, dtype) != 0) d++;
    if (d == ST_DTYPES) return error_set(err, STATUS_DATA, "unknown dtype '%.32s'", dtype);
    p->entry.dtype = (enum safetensors_dtype)d;
    if (json_get_container(value, "shape", JSON_ARRAY, JSON_REQUIRED, &shape, err) < 0) return -1;
    if (json_get_container(value, "data_offsets", JSON_ARRAY, JSON_REQUIRED, &offsets, err) < 0) return -1;
    if (take_shape(shape, &p->entry, err) < 0) return -1;
    if (json_count(offsets) != 2 || !take_count(json_child(offsets), &begin) ||
        !take_count(json_next(json_child(offsets)), &end))
        return error_set(err, STATUS_DATA, "data_offsets are not two whole numbers >= 0 below 2^53");
    if (end < begin) return error_set(err, STATUS_DATA, "data_offsets end before they begin");
    p->begin = (uint64_t)begin;
    p->end = (uint64_t)end;
    if (p->end - p->begin != p->entry.bytes)
        return error_set(err, STATUS_DATA, "data_offsets span %" PRIu64 " bytes, dtype and shape need %" PRIu64,
                         p->end - p->begin, p->entry.bytes);
    return 0;
}

static int take_metadata(const struct json *value, struct safetensors *out, struct error *err) {
    if (json_is(value, JSON_NULL)) return 0;
    if (!json_is(value, JSON_OBJECT))
        return error_set(err, STATUS_DATA, "__metadata__ is %s, expected an object", json_type_name(value));
    for (const struct json *v = json_child(value); v; v = json_next(v))
        if (!json_is(v, JSON_STRING))
            return error_set(err, STATUS_DATA, "__metadata__ key '%.100s' is %s, expected a string", json_key(v, NULL),
                             json_type_name(v));
    out->metadata = value;
    return 0;
}

static int take_entries(struct safetensors *out, struct placed *placed, struct error *err) {
    for (const struct json *v = json_child(out->header.root); v; v = json_next(v)) {
        size_t length = 0;
        const char *name = json_key(v, &length);
        if (length == 12 && memcmp(name, "__metadata__", 12) == 0) {
            if (take_metadata(v, out, err) < 0) return -1;
            continue;
        }
        if (length > ST_MAX_NAME || memchr(name, 0, length))
            return error_set(err, STATUS_DATA, "tensor name '%.60s' is longer than %d bytes or holds a NUL", name,
                             ST_MAX_NAME);
        if (out->n_entries == ST_MAX_TENSORS)
            return error_set(err, STATUS_DATA, "more than %d tensors", ST_MAX_TENSORS);
        struct placed *p = &placed[out->n_entries++];
        p->entry.name = name;
        if (take_entry(v, p, err) < 0) return error_prefix(err, "tensor '%.200s'", name);
    }
    return 0;
}

static int compare_places(const void *a, const void *b) {
    const struct placed *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    if (x->end != y->end) return x->end < y->end ? -1 : 1;
    return strcmp(x->entry.name, y->entry.name); // empty tensors may share a place
}

static int compare_names(const void *a, const void *b) {
    return strcmp((*(const struct safetensors_entry *const *)a)->name,
                  (*(const struct safetensors_entry *const *)b)->name);
}

static int place_entries(struct safetensors *out, struct placed *placed, const uint8_t *data, uint64_t available,
                         struct error *err) {
    uint64_t next = 0;
    qsort(placed, out->n_entries, sizeof *placed, compare_places);
    for (size_t i = 0; i < out->n_entries; i++) {
        if (placed[i].begin != next)
            return error_set(err, STATUS_DATA,
                             "tensor '%.200s' begins at %" PRIu64 ", expected %" PRIu64 ": a hole or an overlap",
                             placed[i].entry.name, placed[i].begin, next);
        next = placed[i].end;
    }
    if (next != available)
        return error_set(err, STATUS_DATA, "the tensors end at %" PRIu64 ", the file has %" PRIu64 " bytes of data: %s",
                         next, available, next > available ? "it is truncated" : "something follows them");
    for (size_t i = 0; i < out->n_entries; i++) {
        out->entries[i] = placed[i].entry;
        out->entries[i].data = data + placed[i].begin;
        out->by_name[i] = &out->entries[i];
    }
    qsort(out->by_name, out->n_entries, sizeof *out->by_name, compare_names);
    return 0;
}

static int parse(const uint8_t *bytes, size_t length, struct safetensors *out, struct error *err) {
    uint64_t header;
    if (length < 8) return error_set(err, STATUS_DATA, "%zu bytes are too few for a safetensors file", length);
    memcpy(&header, bytes, 8);
    if (header > ST_MAX_HEADER)
        return error_set(err, STATUS_DATA, "a header of %" PRIu64 " bytes, the limit is %d", header, ST_MAX_HEADER);
    if (header > length - 8)
        return error_set(err, STATUS_DATA, "the file ends inside the header of %" PRIu64 " bytes", header);
    // At most 14 values per tensor of rank 8, with a margin for metadata.
    struct json_options options = {.name = "header", .max_depth = JSON_MAX_DEPTH, .max_values = 16u * ST_MAX_TENSORS};
    if (json_parse(bytes + 8, (size_t)header, &options, &out->header, err) < 0) return -1;
    if (!json_is(out->header.root, JSON_OBJECT))
        return error_set(err, STATUS_DATA, "the header is %s, expected an object", json_type_name(out->header.root));
    size_t most = json_count(out->header.root);
    out->data_start = 8 + header;
    out->entries = pool_array(&out->pool, most, sizeof *out->entries);
    out->by_name = pool_array(&out->pool, most, sizeof *out->by_name);
    struct placed *placed = mem_zalloc(most + 1, sizeof *placed);
    int result = -1;
    if (!placed || !out->entries || !out->by_name)
        error_memory(err, "the table of tensors", most * sizeof *placed);
    else if (take_entries(out, placed, err) == 0)
        result = place_entries(out, placed, bytes + out->data_start, length - out->data_start, err);
    mem_free(placed);
    return result;
}

int safetensors_parse(const uint8_t *bytes, size_t length, const char *name, struct safetensors *out,
                      struct error *err) {
    *out = (struct safetensors){0};
    if (parse(bytes, length, out, err) == 0) return 0;
    error_prefix(err, "%s", name);
    safetensors_close(out);
    return -1;
}

int safetensors_open(const char *path, struct safetensors *out, struct error *err) {
    struct mapped_file file;
    *out = (struct safetensors){0};
    if (file_map(path, &file, err) < 0) return -1;
    if (safetensors_parse(file.data, file.size, path, out, err) < 0) {
        file_unmap(&file);
        return -1;
    }
    out->file = file;
    return 0;
}

void safetensors_close(struct safetensors *file) {
    file_unmap(&file->file);
    json_free(&file->header);
    pool_free(&file->pool);
    *file = (struct safetensors){0};
}

const struct safetensors_entry *safetensors_find(const struct safetensors *file, const char *name) {
    size_t low = 0, high = file->n_entries;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(name, file->by_name[middle]->name);
        if (order == 0) return file->by_name[middle];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

const char *safetensors_metadata(const struct safetensors *file, const char *key, size_t *length) {
    return json_string(json_get(file->metadata, key), length);
}
