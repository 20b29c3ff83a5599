// Weights on the device: the packed bytes as they are in the file, found again by their address on the host, so that
// views, tied weights and shared tables need no bookkeeping of their own. Norms, biases and other vectors also as floats.
#include "kernels/cuda/cuda.h"

#include "kernels/alloc.h"

#include <stdlib.h>
#include <string.h>

enum { ALIGNMENT = 256 };

struct range {
    const uint8_t *host;
    size_t bytes;
    uint8_t *device;
};
struct vector {
    const uint8_t *host;
    size_t bytes;
    int block, block_bytes; // of its format
    float *device;
};

struct cuda_weights {
    struct range *ranges; // sorted by host address, apart
    int n_ranges;
    struct vector *vectors; // likewise
    int n_vectors;
    uint8_t *bytes; // all of it
    size_t size;
};

static int by_address(const void *a, const void *b) {
    const struct range *x = a, *y = b;
    return x->host < y->host ? -1 : x->host > y->host;
}

static int by_vector(const void *a, const void *b) {
    const struct vector *x = a, *y = b;
    return x->host < y->host ? -1 : x->host > y->host;
}

static void add_range(struct cuda_weights *s, const uint8_t *host, size_t bytes) {
    if (host && bytes) s->ranges[s->n_ranges++] = (struct range){.host = host, .bytes = bytes};
}

// Overlapping ranges become one; then each gets its place.
static void merge(struct cuda_weights *s) {
    qsort(s->ranges, (size_t)s->n_ranges, sizeof *s->ranges, by_address);
    int n = 0;
    for (int i = 0; i < s->n_ranges; i++) {
        struct range *last = n ? &s->ranges[n - 1] : NULL, r = s->ranges[i];
        if (last && r.host < last->host + last->bytes) {
            size_t end = (size_t)(r.host - last->host) + r.bytes;
            if (end > last->bytes) last->bytes = end;
        } else
            s->ranges[n++] = r;
    }
    s->n_ranges = n;
}

static size_t padded(size_t bytes) {
    return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

static size_t vector_bytes(const struct weight *w) {
    return (size_t)(w->rows * w->cols) * sizeof(float);
}

static bool is_vector(const struct weight *w) {
    return w->segment == SEGMENT_RESIDENT && !w->tables && !w->transposed && !w->turned_rows;
}

static int list(struct cuda_backend *b, struct cuda_weights *s, struct error *err) {
    size_t n = (size_t)b->base.n_weights;
    s->ranges = mem_zalloc((1 + TABLES) * n + 1, sizeof *s->ranges);
    s->vectors = mem_zalloc(n + 1, sizeof *s->vectors);
    if (!s->ranges || !s->vectors) return error_memory(err, "the list of weights", n * sizeof *s->ranges);
    size_t floats = 0;
    for (size_t i = 0; i < n; i++) {
        const struct weight *w = b->base.weights[i];
        add_range(s, w->data, weight_bytes(w));
        for (int k = 0; w->tables && k < TABLES; k++) add_range(s, w->tables->table[k].data, w->tables->table[k].bytes);
        if (!is_vector(w)) continue;
        s->vectors[s->n_vectors++] = (struct vector){
            .host = w->data, .bytes = weight_bytes(w), .block = w->format->block, .block_bytes = w->format->block_bytes};
        floats += padded(vector_bytes(w));
    }
    merge(s);
    s->size = floats;
    for (int i = 0; i < s->n_ranges; i++) s->size += padded(s->ranges[i].bytes);
    return 0;
}

static int upload_vectors(struct cuda_backend *b, struct cuda_weights *s, uint8_t *at, struct error *err) {
    int k = 0;
    for (int i = 0; i < b->base.n_weights; i++) {
        const struct weight *w = b->base.weights[i];
        if (!is_vector(w)) continue;
        float *values = mem_alloc(vector_bytes(w) + 1);
        if (!values) return error_memory(err, w->name, vector_bytes(w));
        for (int64_t r = 0; r < w->rows; r++) weight_decode(w, r, 0, w->cols, values + r * w->cols);
        int failed = cuda_upload(b, at, values, vector_bytes(w), err);
        mem_free(values);
        if (failed) return -1;
        s->vectors[k++].device = (float *)at;
        at += padded(vector_bytes(w));
    }
    qsort(s->vectors, (size_t)s->n_vectors, sizeof *s->vectors, by_vector);
    return 0;
}

int cuda_weights_open(struct cuda_backend *b, struct error *err) {
    struct cuda_weights *s = b->weights = mem_zalloc(1, sizeof *s);
    if (!s) return error_memory(err, "the list of weights", sizeof *s);
    if (list(b, s, err)) return -1;
    if (s->size == 0) return 0;
    if (cuda_check(cudaMalloc((void **)&s->bytes, s->size), "the base's weights", err)) return -1;
    uint8_t *at = s->bytes;
    for (int i = 0; i < s->n_ranges; i++) {
        struct range *r = &s->ranges[i];
        r->device = at;
        if (cuda_upload(b, at, r->host, r->bytes, err)) return -1;
        at += padded(r->bytes);
    }
    return upload_vectors(b, s, at, err);
}

void cuda_weights_close(struct cuda_backend *b) {
    struct cuda_weights *s = b->weights;
    if (!s) return;
    cudaFree(s->bytes);
    mem_free(s->ranges);
    mem_free(s->vectors);
    mem_free(s);
    b->weights = NULL;
}

int cuda_weights_acquire(struct backend *backend, int segment, bool ahead, struct error *err) {
    (void)backend, (void)segment, (void)ahead, (void)err;
    return 0;
}

int cuda_weights_release(struct backend *backend, int segment, struct error *err) {
    (void)backend, (void)segment, (void)err;
    return 0;
}

static const uint8_t *on_device(const struct cuda_weights *s, const uint8_t *host) {
    int low = 0, high = s->n_ranges;
    while (low < high) { // the first range that begins behind it
        int middle = (low + high) / 2;
        if (s->ranges[middle].host <= host)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == 0) return NULL;
    const struct range *r = &s->ranges[low - 1];
    return host < r->host + r->bytes ? r->device + (host - r->host) : NULL;
}

static int unknown(const struct weight *w, struct error *err) {
    return error_set(err, STATUS_INTERNAL, "weight %s is not on the GPU", w->name ? w->name : "?");
}

int cuda_weight_on_device(struct cuda_backend *b, const struct weight *w, struct weight *out,
                          struct weight_tables *tables, struct error *err) {
    *out = *w;
    out->data = on_device(b->weights, w->data);
    if (!out->data) return unknown(w, err);
    if (!w->tables) return 0;
    *tables = *w->tables, out->tables = tables;
    for (int i = 0; i < TABLES; i++) {
        if (!w->tables->table[i].data) continue;
        tables->table[i].data = on_device(b->weights, w->tables->table[i].data);
        if (!tables->table[i].data) return unknown(w, err);
    }
    return 0;
}

int cuda_vector(struct cuda_backend *b, const struct weight *w, const float **out, struct error *err) {
    const struct cuda_weights *s = b->weights;
    *out = NULL;
    if (!w) return 0;
    for (int low = 0, high = s->n_vectors; low < high;) {
        int middle = (low + high) / 2;
        const struct vector *v = &s->vectors[middle];
        if (w->data < v->host)
            high = middle;
        else if (w->data >= v->host + v->bytes)
            low = middle + 1;
        else {
            *out = v->device + (w->data - v->host) / v->block_bytes * v->block;
            return 0;
        }
    }
    return unknown(w, err);
}
