// Writing safetensors byte for byte as the reference writer: see safetensors.h.
#include "model/safetensors.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

uint64_t safetensors_bytes(const struct safetensors_out *entry) {
    uint64_t elements = 1;
    for (int d = 0; d < entry->n_dims; d++) elements *= (uint64_t)entry->shape[d];
    return elements * (uint64_t)safetensors_dtype_bits(entry->dtype) / 8;
}

// Wide types first, so that every tensor is aligned by itself; then by name.
static int compare(const void *a, const void *b) {
    const struct safetensors_out *x = *(const struct safetensors_out *const *)a,
                                 *y = *(const struct safetensors_out *const *)b;
    if (x->dtype != y->dtype) return x->dtype > y->dtype ? -1 : 1;
    return strcmp(x->name, y->name);
}

static void write_header(const struct safetensors_out *const *order, size_t count, struct text *out) {
    struct json_writer w = {.out = out, .style = JSON_COMPACT};
    uint64_t offset = 0;
    json_begin_object(&w);
    json_put_key(&w, "__metadata__");
    json_begin_object(&w);
    json_put_key(&w, "format");
    json_put_string(&w, "pt");
    json_end_object(&w);
    for (size_t i = 0; i < count; i++) {
        json_put_key(&w, order[i]->name);
        json_begin_object(&w);
        json_put_key(&w, "dtype");
        json_put_string(&w, safetensors_dtype_name(order[i]->dtype));
        json_put_key(&w, "shape");
        json_begin_array(&w);
        for (int d = 0; d < order[i]->n_dims; d++) json_put_int(&w, order[i]->shape[d]);
        json_end_array(&w);
        json_put_key(&w, "data_offsets");
        json_begin_array(&w);
        json_put_int(&w, (int64_t)offset);
        json_put_int(&w, (int64_t)(offset += safetensors_bytes(order[i])));
        json_end_array(&w);
        json_end_object(&w);
    }
    json_end_object(&w);
    while (out->length % 8 != 0 && !text_failed(out)) text_char(out, ' ');
}

static int write_entry(const struct safetensors_out *entry, struct file_writer *out, struct error *err) {
    uint64_t before = out->bytes, bytes = safetensors_bytes(entry);
    if (entry->data || bytes == 0) return file_write(out, entry->data, (size_t)bytes, err);
    assert(entry->fill);
    if (entry->fill(entry->context, out, err) < 0) return -1;
    if (out->bytes - before == bytes) return 0;
    return error_set(err, STATUS_INTERNAL, "tensor '%s': %llu bytes were written, expected %llu", entry->name,
                     (unsigned long long)(out->bytes - before), (unsigned long long)bytes);
}

int safetensors_write(struct file_writer *out, const struct safetensors_out *entries, size_t count, struct error *err) {
    struct text header = {0};
    const struct safetensors_out **order = mem_zalloc(count + 1, sizeof *order);
    int result = -1;
    for (size_t i = 0; order && i < count; i++) {
        assert(entries[i].n_dims >= 0 && entries[i].n_dims <= ST_MAX_RANK);
        order[i] = &entries[i];
    }
    if (order) {
        qsort(order, count, sizeof *order, compare);
        write_header(order, count, &header);
    }
    if (!order || text_failed(&header)) {
        error_memory(err, "a safetensors header", header.length);
    } else if (header.length > ST_MAX_HEADER) {
        error_set(err, STATUS_DATA, "a safetensors header of %zu bytes, the limit is %d", header.length, ST_MAX_HEADER);
    } else {
        uint64_t length = header.length;
        result = file_write(out, &length, 8, err);
        if (result == 0) result = file_write(out, header.data, header.length, err);
        for (size_t i = 0; i < count && result == 0; i++) result = write_entry(order[i], out, err);
    }
    text_free(&header);
    mem_free(order);
    return result;
}

// --- data in any order

int safetensors_place(const struct safetensors_out *entries, size_t count, size_t sorted, uint64_t *offsets,
                      size_t *room, struct error *err) {
    enum { ENTRY = 24 * (ST_MAX_RANK + 2) + 80 }; // numbers and punctuation of one entry
    const struct safetensors_out **order = mem_zalloc(count + 1, sizeof *order);
    if (!order) return error_memory(err, "a safetensors header", count * sizeof *order);
    *room = 64;
    for (size_t i = 0; i < count; i++) {
        order[i] = &entries[i];
        *room += strlen(entries[i].name) + ENTRY;
    }
    *room = (*room + 63) / 64 * 64;
    qsort(order, sorted, sizeof *order, compare);
    uint64_t at = *room;
    for (size_t i = 0; i < count; i++) {
        offsets[order[i] - entries] = at;
        at += safetensors_bytes(order[i]);
    }
    mem_free(order);
    if (*room <= ST_MAX_HEADER) return 0;
    return error_set(err, STATUS_DATA, "a safetensors header of %zu bytes, the limit is %d", *room, ST_MAX_HEADER);
}

struct placed {
    const struct safetensors_out *entry;
    uint64_t offset;
};
static int by_offset(const void *a, const void *b) {
    const struct placed *x = a, *y = b;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

int safetensors_write_header(struct file_writer *out, const struct safetensors_out *entries, size_t count,
                             const uint64_t *offsets, size_t room, struct error *err) {
    struct placed *placed = mem_zalloc(count + 1, sizeof *placed);
    const struct safetensors_out **order = mem_zalloc(count + 1, sizeof *order);
    struct text header = {0};
    for (size_t i = 0; placed && i < count; i++) placed[i] = (struct placed){&entries[i], offsets[i]};
    if (placed && order) {
        qsort(placed, count, sizeof *placed, by_offset);
        for (size_t i = 0; i < count; i++) order[i] = placed[i].entry;
        write_header(order, count, &header);
        while (header.length < room - 8 && !text_failed(&header)) text_char(&header, ' ');
    }
    int status = 0;
    uint64_t length = room - 8;
    if (!placed || !order || text_failed(&header))
        status = error_memory(err, "a safetensors header", room);
    else if (header.length != length)
        status =
            error_set(err, STATUS_INTERNAL, "a safetensors header of %zu bytes in a room of %zu", header.length, room);
    if (status == 0) status = file_write_at(out, 0, &length, 8, err);
    if (status == 0) status = file_write_at(out, 8, header.data, header.length, err);
    text_free(&header);
    mem_free(placed), mem_free(order);
    return status;
}
