// See gguf.h. Everything that comes from the file goes through the cursor and checked arithmetic; the order of checks
// is the order of the bytes, so that a message names the first wrong place.
#include "model/gguf.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "GGUF is little-endian and read by memcpy");

static const struct {
    const char *name;
    uint8_t size; // bytes of a scalar, 0 for strings and arrays
} types[GGUF_TYPES] = {
    [GGUF_U8] = {"u8", 1},         [GGUF_I8] = {"i8", 1},       [GGUF_U16] = {"u16", 2}, [GGUF_I16] = {"i16", 2},
    [GGUF_U32] = {"u32", 4},       [GGUF_I32] = {"i32", 4},     [GGUF_F32] = {"f32", 4}, [GGUF_BOOL] = {"bool", 1},
    [GGUF_STRING] = {"string", 0}, [GGUF_ARRAY] = {"array", 0}, [GGUF_U64] = {"u64", 8}, [GGUF_I64] = {"i64", 8},
    [GGUF_F64] = {"f64", 8},
};

const char *gguf_type_name(enum gguf_type type) {
    return types[type].name;
}

// --- Cursor

struct cursor {
    const uint8_t *bytes;
    size_t at, size;
    const char *name; // of the file
    struct error *err;
};

static size_t left(const struct cursor *c) {
    return c->size - c->at;
}

static bool bad(struct cursor *c, const char *format, ...) __attribute__((format(printf, 2, 3)));
static bool bad(struct cursor *c, const char *format, ...) {
    char what[512];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    error_set(c->err, STATUS_DATA, "%s: %s (at byte %zu); the file is damaged or not GGUF", c->name, what, c->at);
    return false;
}

static bool no_memory(struct cursor *c, const char *what, size_t bytes) {
    error_memory(c->err, what, bytes);
    return false;
}

static bool take(struct cursor *c, const char *what, uint64_t length, const uint8_t **out) {
    if (length > left(c)) return bad(c, "the file ends inside %s", what);
    *out = c->bytes + c->at;
    c->at += (size_t)length;
    return true;
}

static bool take_u32(struct cursor *c, const char *what, uint32_t *out) {
    const uint8_t *p = NULL;
    if (!take(c, what, 4, &p)) return false;
    memcpy(out, p, 4);
    return true;
}

static bool take_u64(struct cursor *c, const char *what, uint64_t *out) {
    const uint8_t *p = NULL;
    if (!take(c, what, 8, &p)) return false;
    memcpy(out, p, 8);
    return true;
}

// A string of at most `limit` bytes; its length is held against the bytes that are left before anything is read.
static bool take_string(struct cursor *c, const char *what, uint64_t limit, const uint8_t **out, uint64_t *length) {
    if (!take_u64(c, what, length)) return false;
    if (*length > limit) return bad(c, "%s has %" PRIu64 " bytes, the limit is %" PRIu64, what, *length, limit);
    return take(c, what, *length, out);
}

// A key or a tensor name: not empty, no NUL, copied into the pool.
static bool take_name(struct cursor *c, const char *what, uint64_t limit, struct pool *pool, const char **out) {
    const uint8_t *p = NULL;
    uint64_t length;
    if (!take_string(c, what, limit, &p, &length)) return false;
    if (length == 0) return bad(c, "%s is empty", what);
    if (memchr(p, 0, (size_t)length)) return bad(c, "%s holds a NUL", what);
    *out = pool_strndup(pool, (const char *)p, (size_t)length);
    return *out ? true : no_memory(c, what, (size_t)length + 1);
}

// --- Key-value pairs

static bool take_type(struct cursor *c, const char *key, enum gguf_type *out) {
    uint32_t id;
    if (!take_u32(c, "a value type", &id)) return false;
    if (id >= GGUF_TYPES) return bad(c, "key '%s' has the unknown value type %" PRIu32, key, id);
    *out = (enum gguf_type)id;
    return true;
}

static bool check_bools(struct cursor *c, const struct gguf_kv *kv) {
    for (uint64_t i = 0; i < kv->count; i++)
        if (kv->data[i] > 1) return bad(c, "key '%s' holds the byte %d as a bool", kv->key, kv->data[i]);
    return true;
}

static bool take_array(struct cursor *c, struct gguf_kv *kv) {
    if (!take_type(c, kv->key, &kv->element) || !take_u64(c, "an array length", &kv->count)) return false;
    if (kv->element == GGUF_ARRAY) return bad(c, "key '%s' is an array of arrays", kv->key);
    if (kv->count > GGUF_MAX_ARRAY)
        return bad(c, "key '%s' is an array of %" PRIu64 " elements, the limit is %d", kv->key, kv->count,
                   GGUF_MAX_ARRAY);
    uint64_t smallest = kv->element == GGUF_STRING ? 8 : types[kv->element].size;
    if (kv->count > left(c) / smallest)
        return bad(c, "key '%s' is an array of %" PRIu64 " elements, more than the file has bytes for", kv->key,
                   kv->count);
    kv->data = c->bytes + c->at;
    size_t begin = c->at;
    if (kv->element == GGUF_STRING) {
        for (uint64_t i = 0; i < kv->count; i++) {
            const uint8_t *p = NULL;
            uint64_t length;
            if (!take_string(c, kv->key, GGUF_MAX_STRING, &p, &length)) return false;
        }
    } else {
        c->at += (size_t)(kv->count * smallest);
    }
    kv->bytes = c->at - begin;
    return kv->element != GGUF_BOOL || check_bools(c, kv);
}

static bool take_kv(struct cursor *c, struct pool *pool, struct gguf_kv *kv) {
    if (!take_name(c, "a key", GGUF_MAX_KEY, pool, &kv->key) || !take_type(c, kv->key, &kv->type)) return false;
    kv->element = kv->type;
    if (kv->type == GGUF_ARRAY) return take_array(c, kv);
    if (kv->type == GGUF_STRING) {
        if (!take_string(c, kv->key, GGUF_MAX_STRING, &kv->data, &kv->count)) return false;
        kv->bytes = kv->count;
        return true;
    }
    kv->count = 1;
    kv->bytes = types[kv->type].size;
    if (!take(c, kv->key, kv->bytes, &kv->data)) return false;
    return kv->type != GGUF_BOOL || check_bools(c, kv);
}

// --- Tensors

static bool take_tensor(struct cursor *c, struct pool *pool, struct gguf_tensor *t) {
    uint32_t n_dims, type;
    int block, block_bytes;
    if (!take_name(c, "a tensor name", GGUF_MAX_NAME, pool, &t->name) || !take_u32(c, t->name, &n_dims)) return false;
    if (n_dims > GGUF_MAX_DIMS)
        return bad(c, "tensor '%s' has %" PRIu32 " dimensions, the limit is %d", t->name, n_dims, GGUF_MAX_DIMS);
    t->n_dims = (int)n_dims;
    uint64_t elements = 1;
    for (int d = 0; d < GGUF_MAX_DIMS; d++) {
        uint64_t ne = 1;
        if (d < t->n_dims && !take_u64(c, t->name, &ne)) return false;
        if (ne == 0 || ne > INT64_MAX) return bad(c, "tensor '%s': dimension %d is %" PRId64, t->name, d, (int64_t)ne);
        if (!checked_mul(elements, ne, &elements) || elements > INT64_MAX)
            return bad(c, "tensor '%s' has more elements than can be counted", t->name);
        t->ne[d] = (int64_t)ne;
    }
    if (!take_u32(c, t->name, &type) || !take_u64(c, t->name, &t->offset)) return false;
    if (type > INT32_MAX || !quant_ggml_type_size((int)type, &block, &block_bytes))
        return bad(c, "tensor '%s' has the unknown or removed type %" PRIu32, t->name, type);
    t->ggml_type = (int)type;
    if (t->ne[0] % block != 0)
        return bad(c, "tensor '%s': rows of %" PRId64 " elements are not whole blocks of %s (%d)", t->name, t->ne[0],
                   quant_ggml_type_name((int)type), block);
    if (!checked_mul(elements / (uint64_t)block, (uint64_t)block_bytes, &t->bytes))
        return bad(c, "tensor '%s' has more bytes than can be counted", t->name);
    return true;
}

// The next multiple of a power of two; false on overflow.
static bool round_up(uint64_t value, uint64_t alignment, uint64_t *out) {
    if (!checked_add(value, alignment - 1, &value)) return false;
    *out = value & ~(alignment - 1);
    return true;
}

// Tensors lie one after the other, each padded to the alignment, and all bytes of each are in the file.
static bool place_tensors(struct cursor *c, struct gguf *g) {
    uint64_t start, next = 0;
    if (!round_up(c->at, g->alignment, &start)) return bad(c, "the header is too large");
    g->data_start = start < c->size ? start : c->size; // without tensors the file may end before
    for (size_t i = 0; i < g->n_tensors; i++) {
        struct gguf_tensor *t = &g->tensors[i];
        uint64_t begin, end, padded;
        if (t->offset != next)
            return bad(c, "tensor '%s' is at offset %" PRIu64 ", expected %" PRIu64, t->name, t->offset, next);
        if (!checked_add(start, t->offset, &begin) || !checked_add(begin, t->bytes, &end) || end > c->size)
            return bad(c, "tensor '%s' needs %" PRIu64 " bytes at offset %" PRIu64 " and the file ends before", t->name,
                       t->bytes, t->offset);
        if (!round_up(t->bytes, g->alignment, &padded) || !checked_add(next, padded, &next))
            return bad(c, "the sizes of the tensors have no sum");
        t->data = c->bytes + begin;
    }
    return true;
}

// --- Sorted indices: duplicates are neighbours, look-ups are binary, and no hostile set of names makes either slow

static int compare_kv(const void *a, const void *b) {
    return strcmp((*(const struct gguf_kv *const *)a)->key, (*(const struct gguf_kv *const *)b)->key);
}
static int compare_tensors(const void *a, const void *b) {
    return strcmp((*(const struct gguf_tensor *const *)a)->name, (*(const struct gguf_tensor *const *)b)->name);
}

static bool index_kv(struct cursor *c, struct gguf *g) {
    g->kv_by_key = pool_array(&g->pool, g->n_kv, sizeof *g->kv_by_key);
    if (!g->kv_by_key) return no_memory(c, "the key index", g->n_kv * sizeof *g->kv_by_key);
    for (size_t i = 0; i < g->n_kv; i++) g->kv_by_key[i] = &g->kv[i];
    qsort(g->kv_by_key, g->n_kv, sizeof *g->kv_by_key, compare_kv);
    for (size_t i = 1; i < g->n_kv; i++)
        if (compare_kv(&g->kv_by_key[i - 1], &g->kv_by_key[i]) == 0)
            return bad(c, "key '%s' appears twice", g->kv_by_key[i]->key);
    return true;
}

static bool index_tensors(struct cursor *c, struct gguf *g) {
    g->tensors_by_name = pool_array(&g->pool, g->n_tensors, sizeof *g->tensors_by_name);
    if (!g->tensors_by_name) return no_memory(c, "the tensor index", g->n_tensors * sizeof *g->tensors_by_name);
    for (size_t i = 0; i < g->n_tensors; i++) g->tensors_by_name[i] = &g->tensors[i];
    qsort(g->tensors_by_name, g->n_tensors, sizeof *g->tensors_by_name, compare_tensors);
    for (size_t i = 1; i < g->n_tensors; i++)
        if (compare_tensors(&g->tensors_by_name[i - 1], &g->tensors_by_name[i]) == 0)
            return bad(c, "tensor '%s' appears twice", g->tensors_by_name[i]->name);
    return true;
}

// --- The file

static bool take_header(struct cursor *c, struct gguf *g) {
    const uint8_t *magic = NULL;
    uint64_t n_tensors, n_kv;
    if (!take(c, "the magic", 4, &magic)) return false;
    if (memcmp(magic, "GGUF", 4) != 0) return c->at = 0, bad(c, "does not begin with \"GGUF\"");
    if (!take_u32(c, "the version", &g->version)) return false;
    if ((g->version & 0xFFFF) == 0 && g->version != 0) return bad(c, "was written on a big-endian machine; convert it");
    if (g->version < 2 || g->version > 3) return bad(c, "GGUF version %" PRIu32 ", expected 2 or 3", g->version);
    if (!take_u64(c, "the tensor count", &n_tensors) || !take_u64(c, "the key count", &n_kv)) return false;
    // The smallest key takes 8 + 1 + 4 + 1 bytes, the smallest tensor 8 + 1 + 4 + 4 + 8.
    if (n_kv > GGUF_MAX_KEYS || n_kv > left(c) / 14)
        return bad(c, "%" PRIu64 " keys, more than the limit of %d or than the file has bytes for", n_kv,
                   GGUF_MAX_KEYS);
    if (n_tensors > GGUF_MAX_TENSORS || n_tensors > left(c) / 25)
        return bad(c, "%" PRIu64 " tensors, more than the limit of %d or than the file has bytes for", n_tensors,
                   GGUF_MAX_TENSORS);
    g->n_kv = (size_t)n_kv;
    g->n_tensors = (size_t)n_tensors;
    g->kv = pool_array(&g->pool, n_kv, sizeof *g->kv);
    g->tensors = pool_array(&g->pool, n_tensors, sizeof *g->tensors);
    if (g->kv && g->tensors) return true;
    return no_memory(c, "the tables of a GGUF file", g->n_kv * sizeof *g->kv + g->n_tensors * sizeof *g->tensors);
}

static bool read_alignment(struct cursor *c, struct gguf *g) {
    const struct gguf_kv *kv = gguf_find(g, "general.alignment");
    g->alignment = 32;
    if (!kv) return true;
    if (kv->type != GGUF_U32) return bad(c, "general.alignment is %s, expected u32", types[kv->type].name);
    memcpy(&g->alignment, kv->data, 4);
    if (g->alignment < GGUF_MIN_ALIGNMENT || g->alignment > GGUF_MAX_ALIGNMENT ||
        (g->alignment & (g->alignment - 1)) != 0)
        return bad(c, "general.alignment is %" PRIu32 ", expected a power of two from %d to %d", g->alignment,
                   GGUF_MIN_ALIGNMENT, GGUF_MAX_ALIGNMENT);
    return true;
}

static bool parse(struct cursor *c, struct gguf *g) {
    if (!take_header(c, g)) return false;
    for (size_t i = 0; i < g->n_kv; i++)
        if (!take_kv(c, &g->pool, &g->kv[i])) return false;
    if (!index_kv(c, g) || !read_alignment(c, g)) return false;
    for (size_t i = 0; i < g->n_tensors; i++)
        if (!take_tensor(c, &g->pool, &g->tensors[i])) return false;
    return index_tensors(c, g) && place_tensors(c, g);
}

int gguf_parse(const uint8_t *bytes, size_t length, const char *name, struct gguf *out, struct error *err) {
    *out = (struct gguf){.bytes = bytes, .size = length};
    struct cursor c = {.bytes = bytes, .size = length, .name = name, .err = err};
    out->name = pool_strdup(&out->pool, name);
    if (!out->name)
        error_memory(err, "a file name", strlen(name) + 1);
    else if (parse(&c, out))
        return 0;
    gguf_close(out);
    return -1;
}

int gguf_open(const char *path, struct gguf *out, struct error *err) {
    struct mapped_file file;
    *out = (struct gguf){0};
    if (file_map(path, &file, err) < 0) return -1;
    if (gguf_parse(file.data, file.size, path, out, err) < 0) {
        file_unmap(&file);
        return -1;
    }
    out->file = file;
    return 0;
}

void gguf_close(struct gguf *gguf) {
    file_unmap(&gguf->file);
    pool_free(&gguf->pool);
    *gguf = (struct gguf){0};
}
