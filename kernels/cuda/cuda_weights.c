// Weights on the device: the packed bytes as they are in the file, found again by their address on the host, so that
// views, tied weights and shared tables need no bookkeeping of their own. Norms, biases and other vectors also as
// floats. Layers that do not fit lie in pinned host memory as they shall lie on the device, and pass through slots: one
// copy each, on a stream of its own, beside the products of the layers before.
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/cuda_plan.h"

#include "kernels/alloc.h"

#include <stdlib.h>
#include <string.h>

struct vector {
    const uint8_t *host;
    size_t bytes;
    int block, block_bytes; // of its format
    float *device;
};

struct slot {
    uint8_t *device;
    int segment; // -1 = none
    bool in_use;
    uint64_t turn; // when it was filled
    cudaEvent_t loaded, released;
};

struct cuda_weights {
    struct cuda_layout layout;
    struct cuda_residency residency;
    uint8_t **segments; // [n_segments] on the device; NULL = streamed
    uint8_t *resident, *slots;
    uint8_t *pinned;   // streamed segments, one after another
    size_t *pinned_at; // [n_segments]
    struct slot slot[CUDA_STREAM_SLOTS];
    uint64_t turn;
    cudaStream_t copies;
    struct vector *vectors; // sorted by host address
    int n_vectors;
};

static int by_vector(const void *a, const void *b) {
    const struct vector *x = a, *y = b;
    return x->host < y->host ? -1 : x->host > y->host;
}

// --- opening

static int upload_vectors(struct cuda_backend *b, struct cuda_weights *s, uint8_t *at, struct error *err) {
    s->vectors = mem_zalloc((size_t)b->base.n_weights + 1, sizeof *s->vectors);
    if (!s->vectors) return error_memory(err, "the list of vectors", (size_t)b->base.n_weights * sizeof *s->vectors);
    for (int i = 0; i < b->base.n_weights; i++) {
        const struct weight *w = b->base.weights[i];
        if (!cuda_is_vector(w)) continue;
        size_t bytes = (size_t)(w->rows * w->cols) * sizeof(float);
        float *values = mem_alloc(bytes + 1);
        if (!values) return error_memory(err, w->name, bytes);
        for (int64_t r = 0; r < w->rows; r++) weight_decode(w, r, 0, w->cols, values + r * w->cols);
        int failed = cuda_upload(b, at, values, bytes, err);
        mem_free(values);
        if (failed) return -1;
        s->vectors[s->n_vectors++] = (struct vector){.host = w->data,
                                                     .bytes = weight_bytes(w),
                                                     .block = w->format->block,
                                                     .block_bytes = w->format->block_bytes,
                                                     .device = (float *)(void *)at};
        at += cuda_vector_bytes(w);
    }
    qsort(s->vectors, (size_t)s->n_vectors, sizeof *s->vectors, by_vector);
    return 0;
}

static int open_slots(struct cuda_backend *b, struct cuda_weights *s, struct error *err) {
    const struct cuda_residency *r = &s->residency;
    if (r->slots == 0) return 0;
    if (cuda_check(cudaMalloc((void **)&s->slots, (size_t)r->slots * r->slot), "slots that layers pass through", err) ||
        CUDA_TRY(cudaStreamCreateWithFlags(&s->copies, cudaStreamNonBlocking), err))
        return -1;
    for (int i = 0; i < r->slots; i++) {
        s->slot[i] = (struct slot){.device = s->slots + (size_t)i * r->slot, .segment = -1};
        if (CUDA_TRY(cudaEventCreateWithFlags(&s->slot[i].loaded, cudaEventDisableTiming), err) ||
            CUDA_TRY(cudaEventCreateWithFlags(&s->slot[i].released, cudaEventDisableTiming), err))
            return -1;
    }
    if (cudaHostAlloc((void **)&s->pinned, r->streamed, cudaHostAllocDefault) != cudaSuccess) {
        cudaGetLastError();
        return error_set(err, STATUS_MEMORY,
                         "the base does not fit into the GPU, and the %.1f GiB of it that would be streamed do not fit "
                         "into locked host memory (ulimit -l, container limits)",
                         (double)r->streamed / (1 << 30));
    }
    size_t at = 0;
    for (int i = r->streamed_from; i < s->layout.n_segments; i++) {
        s->pinned_at[i] = at;
        if (cuda_streams(&s->layout, r, i)) at += s->layout.bytes[i];
    }
    (void)b;
    return 0;
}

static int upload_ranges(struct cuda_backend *b, struct cuda_weights *s, struct error *err) {
    for (int i = 0; i < s->layout.n_ranges; i++) {
        const struct cuda_range *r = &s->layout.ranges[i];
        uint8_t *segment = s->segments[r->segment];
        if (!segment)
            memcpy(s->pinned + s->pinned_at[r->segment] + r->at, r->host, r->bytes);
        else if (cuda_upload(b, segment + r->at, r->host, r->bytes, err))
            return -1;
    }
    return 0;
}

int cuda_weights_open(struct cuda_backend *b, size_t budget, struct error *err) {
    struct cuda_weights *s = b->weights = mem_zalloc(1, sizeof *s);
    if (!s) return error_memory(err, "the list of weights", sizeof *s);
    if (cuda_layout_open(b->base.weights, b->base.n_weights, b->base.n_segments, &s->layout, err)) return -1;
    size_t n = (size_t)s->layout.n_segments;
    s->segments = mem_zalloc(n + 1, sizeof *s->segments);
    s->pinned_at = mem_zalloc(n + 1, sizeof *s->pinned_at);
    if (!s->segments || !s->pinned_at) return error_memory(err, "the list of segments", n * sizeof *s->segments);
    cuda_residency_choose(&s->layout, budget, &s->residency);
    if (s->residency.resident == 0) return 0;
    if (cuda_check(cudaMalloc((void **)&s->resident, s->residency.resident), "the base's weights", err)) return -1;
    uint8_t *at = s->resident;
    for (size_t i = 0; i < n; i++) {
        if (cuda_streams(&s->layout, &s->residency, (int)i)) continue;
        s->segments[i] = at;
        at += s->layout.bytes[i];
    }
    return open_slots(b, s, err) || upload_ranges(b, s, err) || upload_vectors(b, s, at, err) ? -1 : 0;
}

void cuda_weights_close(struct cuda_backend *b) {
    struct cuda_weights *s = b->weights;
    if (!s) return;
    if (s->copies) cudaStreamSynchronize(s->copies);
    for (int i = 0; i < CUDA_STREAM_SLOTS; i++) {
        if (s->slot[i].loaded) cudaEventDestroy(s->slot[i].loaded);
        if (s->slot[i].released) cudaEventDestroy(s->slot[i].released);
    }
    if (s->copies) cudaStreamDestroy(s->copies);
    cudaFreeHost(s->pinned);
    cudaFree(s->slots);
    cudaFree(s->resident);
    mem_free(s->segments);
    mem_free(s->pinned_at);
    mem_free(s->vectors);
    cuda_layout_close(&s->layout);
    mem_free(s);
    b->weights = NULL;
}

// --- slots

static struct slot *slot_of(struct cuda_weights *s, int segment) {
    for (int i = 0; i < s->residency.slots; i++) {
        if (s->slot[i].segment == segment) return &s->slot[i];
    }
    return NULL;
}

// The slot that was filled longest ago among those that nobody computes with.
static struct slot *oldest_slot(struct cuda_weights *s) {
    struct slot *oldest = NULL;
    for (int i = 0; i < s->residency.slots; i++) {
        if (!s->slot[i].in_use && (!oldest || s->slot[i].turn < oldest->turn)) oldest = &s->slot[i];
    }
    return oldest;
}

static int fill(struct cuda_weights *s, int segment, struct slot **out, struct error *err) {
    struct slot *slot = *out = oldest_slot(s);
    if (!slot) return error_set(err, STATUS_INTERNAL, "no slot is free for segment %d", segment);
    // What was computed with the slot's last content must be done before it goes.
    if (slot->segment >= 0 && CUDA_TRY(cudaStreamWaitEvent(s->copies, slot->released, 0), err)) return -1;
    slot->segment = segment, slot->turn = ++s->turn;
    return cuda_check(cudaMemcpyAsync(slot->device, s->pinned + s->pinned_at[segment], s->layout.bytes[segment],
                                      cudaMemcpyHostToDevice, s->copies),
                      "streaming a layer", err) ||
                   CUDA_TRY(cudaEventRecord(slot->loaded, s->copies), err)
               ? -1
               : 0;
}

int cuda_weights_acquire(struct backend *backend, int segment, bool ahead, struct error *err) {
    struct cuda_backend *b = cuda_self(backend);
    struct cuda_weights *s = b->weights;
    if (!s || !cuda_streams(&s->layout, &s->residency, segment)) return 0;
    struct slot *slot = slot_of(s, segment);
    if (!slot && fill(s, segment, &slot, err)) return -1;
    slot->turn = ++s->turn; // wanted now, or next: not the one to go
    if (ahead) return 0;
    slot->in_use = true;
    return CUDA_TRY(cudaStreamWaitEvent(b->gpu.stream, slot->loaded, 0), err);
}

int cuda_weights_release(struct backend *backend, int segment, struct error *err) {
    struct cuda_backend *b = cuda_self(backend);
    struct cuda_weights *s = b->weights;
    struct slot *slot = s && cuda_streams(&s->layout, &s->residency, segment) ? slot_of(s, segment) : NULL;
    if (!slot) return 0;
    slot->in_use = false;
    return CUDA_TRY(cudaEventRecord(slot->released, b->gpu.stream), err);
}

// --- finding

static const uint8_t *on_device(struct cuda_weights *s, const uint8_t *host) {
    int low = 0, high = s->layout.n_ranges;
    while (low < high) { // the first range that begins behind it
        int middle = (low + high) / 2;
        if (s->layout.ranges[middle].host <= host)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == 0) return NULL;
    const struct cuda_range *r = &s->layout.ranges[low - 1];
    if (host >= r->host + r->bytes) return NULL;
    const uint8_t *segment = s->segments[r->segment];
    if (!segment) {
        const struct slot *slot = slot_of(s, r->segment);
        if (!slot || !slot->in_use) return NULL; // used while it is not acquired
        segment = slot->device;
    }
    return segment + r->at + (host - r->host);
}

static int unknown(const struct weight *w, struct error *err) {
    return error_set(err, STATUS_INTERNAL, "weight %s of segment %d is not on the GPU now", w->name ? w->name : "?",
                     w->segment);
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
