// Packed checkpoints: one linear "l" of 32 x 64 and two experts "e" of it, whose tensors the input describes, since a
// safetensors header (which has a target of its own) would only stand in the way:
//
//     a config.json                                           {"quantization_config": {...}}
//     %%
//     NAME DTYPE DIM,DIM.. [=TEXT]                            l.weight.quant_state.bitsandbytes__nf4 U8 - ={"quant_...
//
// A tensor without TEXT holds numbers made up from its name; DIM "-" is the TEXT's length. Each tensor is an allocation
// of its own, so that a sanitizer sees the byte behind it. Whatever is accepted is decoded, every element.
#include "model/packed_linear.h"
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>
#include <string.h>

enum { ROWS = 32, COLS = 64, EXPERTS = 2, MOST_TENSORS = 16, MOST_BYTES = 1 << 16 };

static bool dtype_of(const char *name, size_t length, enum safetensors_dtype *out) {
    for (int d = 0; d < ST_DTYPES; d++) {
        const char *known = safetensors_dtype_name((enum safetensors_dtype)d);
        if (strlen(known) != length || memcmp(known, name, length) != 0) continue;
        *out = (enum safetensors_dtype)d;
        return true;
    }
    return false;
}

// The shape's bytes; 0 when they are too many or no whole ones.
static bool shape_of(const char *text, size_t length, size_t literal, struct safetensors_entry *e) {
    uint64_t bits = (uint64_t)safetensors_dtype_bits(e->dtype);
    char *end;
    for (const char *at = text; at < text + length; at = end + 1) {
        bool whole = *at == '-';
        uint64_t dim = whole ? literal : strtoull(at, &end, 10);
        if (whole) end = (char *)(uintptr_t)at + 1;
        if (e->n_dims == ST_MAX_RANK || end == at || dim > MOST_BYTES * 8u) return false;
        e->shape[e->n_dims++] = (int64_t)dim;
        if (!checked_mul(bits, dim, &bits)) return false;
    }
    e->bytes = bits / 8;
    return bits % 8 == 0 && e->bytes <= MOST_BYTES;
}

// One line; false: it describes no tensor.
static bool take_line(const char *line, size_t length, struct safetensors *s, struct pool *pool) {
    const char *end = line + length, *type = memchr(line, ' ', length);
    const char *dims = type ? memchr(type + 1, ' ', (size_t)(end - type - 1)) : NULL;
    if (!dims || s->n_entries == MOST_TENSORS) return false;
    const char *text = memmem(dims + 1, (size_t)(end - dims - 1), " =", 2), *dims_end = text ? text : end;
    struct safetensors_entry *e = &s->entries[s->n_entries];
    *e = (struct safetensors_entry){.name = pool_strndup(pool, line, (size_t)(type - line))};
    size_t literal = text ? (size_t)(end - text - 2) : 0;
    if (!dtype_of(type + 1, (size_t)(dims - type - 1), &e->dtype)) return false;
    if (!shape_of(dims + 1, (size_t)(dims_end - dims - 1), literal, e) || safetensors_find(s, e->name)) return false;
    uint8_t *data = malloc(e->bytes ? (size_t)e->bytes : 1);
    EXPECT(data && e->name);
    for (size_t i = 0; i < e->bytes; i++)
        data[i] =
            text ? (i < literal ? (uint8_t)text[2 + i] : 0) : (uint8_t)((i * 2654435761u) >> 13 ^ strlen(e->name));
    e->data = data;
    size_t at = s->n_entries++;
    for (; at > 0 && strcmp(s->by_name[at - 1]->name, e->name) > 0; at--) s->by_name[at] = s->by_name[at - 1];
    s->by_name[at] = e;
    return true;
}

static void read_all(const struct weight *w) {
    float row[COLS];
    volatile float last = 0;
    EXPECT(w->rows == ROWS && w->cols == COLS && w->format && w->data && w->tables && w->name);
    for (int64_t r = 0; r < ROWS; r++) {
        weight_decode(w, r, 0, COLS, row);
        last = row[COLS - 1];
    }
    EXPECT(weight_stored_bytes(w) > 0);
    (void)last;
}

static void open_both(const struct base *base, struct pool *pool) {
    struct packing packing;
    struct error err = {0};
    struct weight w = {0}, experts[EXPERTS] = {{0}};
    int status = packing_read(base->config.root, "input", &packing, &err);
    if (status == 0) status = packed_linear(base, &packing, pool, "l", ROWS, COLS, &w, &err);
    if (status > 0) read_all(&w);
    EXPECT((status < 0) == (err.code != 0));
    EXPECT(status >= 0 || (err.code == STATUS_DATA && err.text[0]));
    if (status < 0) return;
    status = packed_experts(base, &packing, pool, "e", EXPERTS, ROWS, COLS, experts, &err);
    for (int e = 0; e < EXPERTS && status > 0; e++) read_all(&experts[e]);
    EXPECT((status < 0) == (err.code != 0) && (status >= 0 || err.code == STATUS_DATA));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const char *text = (const char *)data, *end = text + size, *tensors = memmem(data, size, "\n%%\n", 4);
    struct safetensors_entry entries[MOST_TENSORS];
    const struct safetensors_entry *by_name[MOST_TENSORS];
    struct safetensors shard = {.entries = entries, .by_name = by_name};
    bool used[MOST_TENSORS] = {0};
    struct base base = {
        .kind = BASE_SAFETENSORS, .path = "input", .name = "input", .shards = &shard, .n_shards = 1, .used = used};
    struct json_document config = {0};
    struct pool pool = {0};
    if (!tensors || json_parse(text, (size_t)(tensors - text), NULL, &config, NULL)) return 0;
    char *copy = mem_strndup(text, size); // strtoull wants an end
    EXPECT(copy);
    for (const char *line = copy + (tensors + 4 - text), *last = copy + (end - text); line < last;) {
        const char *next = memchr(line, '\n', (size_t)(last - line));
        if (!next) next = last;
        take_line(line, (size_t)(next - line), &shard, &pool);
        line = next + 1;
    }
    base.n_tensors = shard.n_entries;
    base.config = config;
    open_both(&base, &pool);
    for (size_t i = 0; i < shard.n_entries; i++) free((void *)(uintptr_t)entries[i].data);
    mem_free(copy);
    json_free(&config);
    pool_free(&pool);
    return 0;
}
