// See gguf_write.h.
#include "model/gguf_write.h"

#include <assert.h>
#include <string.h>

enum { ALIGNMENT = 32 };

struct gguf_out { // a tensor to write
    struct gguf_out *next;
    const char *name;
    int type, n_dims;
    int64_t ne[GGUF_MAX_DIMS];
    uint64_t bytes;
    const void *data;
    gguf_fill fill;
    void *context;
};

static void put_u32(struct text *t, uint32_t value) {
    text_append(t, &value, 4);
}
static void put_u64(struct text *t, uint64_t value) {
    text_append(t, &value, 8);
}

static void put_string(struct text *t, const char *bytes, size_t length) {
    put_u64(t, length);
    text_append(t, bytes, length);
}

static void begin(struct gguf_writer *w, const char *key, enum gguf_type type) {
    assert(key[0] && strlen(key) <= GGUF_MAX_KEY);
    put_string(&w->keys, key, strlen(key));
    put_u32(&w->keys, type);
    w->n_kv++;
}

static void scalar(struct gguf_writer *w, const char *key, enum gguf_type type, const void *value, size_t size) {
    begin(w, key, type);
    text_append(&w->keys, value, size);
}

static void array(struct gguf_writer *w, const char *key, enum gguf_type element, size_t count, const void *values,
                  size_t size) {
    begin(w, key, GGUF_ARRAY);
    put_u32(&w->keys, element);
    put_u64(&w->keys, count);
    text_append(&w->keys, values, count * size);
}

void gguf_put_bytes(struct gguf_writer *w, const char *key, const char *bytes, size_t length) {
    begin(w, key, GGUF_STRING);
    put_string(&w->keys, bytes, length);
}

void gguf_put_string(struct gguf_writer *w, const char *key, const char *value) {
    gguf_put_bytes(w, key, value, strlen(value));
}
void gguf_put_u32(struct gguf_writer *w, const char *key, uint32_t value) {
    scalar(w, key, GGUF_U32, &value, 4);
}
void gguf_put_u64(struct gguf_writer *w, const char *key, uint64_t value) {
    scalar(w, key, GGUF_U64, &value, 8);
}
void gguf_put_i32(struct gguf_writer *w, const char *key, int32_t value) {
    scalar(w, key, GGUF_I32, &value, 4);
}
void gguf_put_f32(struct gguf_writer *w, const char *key, float value) {
    scalar(w, key, GGUF_F32, &value, 4);
}
void gguf_put_bool(struct gguf_writer *w, const char *key, bool value) {
    scalar(w, key, GGUF_BOOL, &(uint8_t){value}, 1);
}

void gguf_put_bools(struct gguf_writer *w, const char *key, const uint8_t *values, size_t count) {
    array(w, key, GGUF_BOOL, count, values, 1);
}

void gguf_put_strings(struct gguf_writer *w, const char *key, const struct vocab_string *values, size_t count) {
    array(w, key, GGUF_STRING, count, NULL, 0);
    for (size_t i = 0; i < count; i++) put_string(&w->keys, values[i].bytes, values[i].length);
}

void gguf_put_u32s(struct gguf_writer *w, const char *key, const uint32_t *values, size_t count) {
    array(w, key, GGUF_U32, count, values, 4);
}
void gguf_put_i32s(struct gguf_writer *w, const char *key, const int32_t *values, size_t count) {
    array(w, key, GGUF_I32, count, values, 4);
}
void gguf_put_f32s(struct gguf_writer *w, const char *key, const float *values, size_t count) {
    array(w, key, GGUF_F32, count, values, 4);
}

void gguf_put_kv(struct gguf_writer *w, const struct gguf_kv *kv) {
    assert(strcmp(kv->key, "general.alignment") != 0); // files of ours are aligned to 32
    begin(w, kv->key, kv->type);
    if (kv->type == GGUF_ARRAY) put_u32(&w->keys, kv->element);
    if (kv->type == GGUF_ARRAY || kv->type == GGUF_STRING) put_u64(&w->keys, kv->count);
    text_append(&w->keys, kv->data, (size_t)kv->bytes);
}

static struct gguf_out *add(struct gguf_writer *w, const char *name, int ggml_type, int n_dims, const int64_t *ne) {
    int block = 1, block_bytes = 0;
    bool known = quant_ggml_type_size(ggml_type, &block, &block_bytes);
    assert(known && n_dims >= 0 && n_dims <= GGUF_MAX_DIMS && name[0] && strlen(name) <= GGUF_MAX_NAME);
    (void)known;
    struct gguf_out *out = pool_alloc(&w->pool, sizeof *out);
    char *copy = pool_strdup(&w->pool, name);
    if (!out || !copy) {
        w->failed = true;
        return NULL;
    }
    uint64_t elements = 1;
    for (int d = 0; d < n_dims; d++) {
        assert(ne[d] >= 1 && (d > 0 || ne[0] % block == 0));
        out->ne[d] = ne[d];
        elements *= (uint64_t)ne[d];
    }
    out->name = copy;
    out->type = ggml_type;
    out->n_dims = n_dims;
    out->bytes = elements / (uint64_t)block * (uint64_t)block_bytes;
    if (w->last)
        w->last->next = out;
    else
        w->first = out;
    w->last = out;
    w->n_tensors++;
    return out;
}

void gguf_put_tensor(struct gguf_writer *w, const char *name, int ggml_type, int n_dims, const int64_t *ne,
                     const void *data) {
    struct gguf_out *out = add(w, name, ggml_type, n_dims, ne);
    if (out) out->data = data;
}

void gguf_put_tensor_later(struct gguf_writer *w, const char *name, int ggml_type, int n_dims, const int64_t *ne,
                           gguf_fill fill, void *context) {
    struct gguf_out *out = add(w, name, ggml_type, n_dims, ne);
    if (!out) return;
    out->fill = fill;
    out->context = context;
}

static uint64_t round_up(uint64_t value) {
    return (value + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

static int pad(struct file_writer *out, uint64_t bytes, struct error *err) {
    static const char zeros[ALIGNMENT];
    return file_write(out, zeros, (size_t)(round_up(bytes) - bytes), err);
}

static int write_tensor(const struct gguf_out *t, struct file_writer *out, struct error *err) {
    uint64_t before = out->bytes;
    if (t->fill ? t->fill(t->context, out, err) < 0 : file_write(out, t->data, (size_t)t->bytes, err) < 0) return -1;
    if (out->bytes - before != t->bytes)
        return error_set(err, STATUS_INTERNAL, "tensor '%s': %llu bytes were written, expected %llu", t->name,
                         (unsigned long long)(out->bytes - before), (unsigned long long)t->bytes);
    return pad(out, t->bytes, err);
}

// Everything before the data; `later`: with the tensors that are made later. Returns the bytes of data.
static uint64_t put_head(const struct gguf_writer *w, bool later, struct text *head) {
    uint64_t offset = 0, n = 0;
    for (const struct gguf_out *t = w->first; t; t = t->next) n += later || !t->fill;
    text_add(head, "GGUF");
    put_u32(head, 3);
    put_u64(head, n);
    put_u64(head, w->n_kv);
    text_append(head, w->keys.data, w->keys.length);
    for (const struct gguf_out *t = w->first; t; t = t->next) {
        if (t->fill && !later) continue;
        put_string(head, t->name, strlen(t->name));
        put_u32(head, (uint32_t)t->n_dims);
        text_append(head, t->ne, (size_t)t->n_dims * 8);
        put_u32(head, (uint32_t)t->type);
        put_u64(head, offset);
        offset += round_up(t->bytes);
    }
    return offset;
}

static int head_error(const struct gguf_writer *w, const struct text *head, struct error *err) {
    if (!w->failed && !text_failed(&w->keys) && !text_failed(head)) return 0;
    return error_memory(err, "the header of a GGUF file", head->length);
}

uint64_t gguf_write_bytes(const struct gguf_writer *w) {
    uint64_t head = 24 + w->keys.length, data = 0;
    for (const struct gguf_out *t = w->first; t; t = t->next) {
        head += 24 + strlen(t->name) + 8 * (uint64_t)t->n_dims;
        data += round_up(t->bytes);
    }
    return round_up(head) + data;
}

int gguf_write_memory(const struct gguf_writer *w, struct text *out, struct error *err) {
    static const char zeros[ALIGNMENT];
    put_head(w, false, out);
    text_append(out, zeros, (size_t)(round_up(out->length) - out->length));
    for (const struct gguf_out *t = w->first; t; t = t->next) {
        if (t->fill) continue;
        text_append(out, t->data, (size_t)t->bytes);
        text_append(out, zeros, (size_t)(round_up(t->bytes) - t->bytes));
    }
    return head_error(w, out, err);
}

int gguf_write(struct gguf_writer *w, struct file_writer *out, struct error *err) {
    struct text head = {0};
    put_head(w, true, &head);
    int result = head_error(w, &head, err);
    if (result == 0 && (file_write(out, head.data, head.length, err) < 0 || pad(out, head.length, err) < 0))
        result = -1;
    for (const struct gguf_out *t = w->first; t && result == 0; t = t->next) result = write_tensor(t, out, err);
    text_free(&head);
    return result;
}

void gguf_writer_free(struct gguf_writer *w) {
    text_free(&w->keys);
    pool_free(&w->pool);
    *w = (struct gguf_writer){0};
}
