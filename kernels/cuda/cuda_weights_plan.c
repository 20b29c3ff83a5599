// See cuda_plan.h: where weights lie on the device, by arithmetic over their addresses on the host.
#include "kernels/alloc.h"
#include "kernels/cuda/cuda_plan.h"

#include <stdlib.h>

enum { ALIGNMENT = 256 };

static size_t padded(size_t bytes) {
    return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

static int by_address(const void *a, const void *b) {
    const struct cuda_range *x = a, *y = b;
    return x->host < y->host ? -1 : x->host > y->host;
}

static void add(struct cuda_layout *l, const uint8_t *host, size_t bytes, int segment) {
    if (host && bytes) l->ranges[l->n_ranges++] = (struct cuda_range){.host = host, .bytes = bytes, .segment = segment};
}

// Ranges that overlap become one. What several segments share belongs to all the time.
static void merge(struct cuda_layout *l) {
    qsort(l->ranges, (size_t)l->n_ranges, sizeof *l->ranges, by_address);
    int n = 0;
    for (int i = 0; i < l->n_ranges; i++) {
        struct cuda_range *last = n ? &l->ranges[n - 1] : NULL, r = l->ranges[i];
        if (!last || r.host >= last->host + last->bytes) {
            l->ranges[n++] = r;
            continue;
        }
        size_t end = (size_t)(r.host - last->host) + r.bytes;
        if (end > last->bytes) last->bytes = end;
        if (last->segment != r.segment) last->segment = SEGMENT_RESIDENT;
    }
    l->n_ranges = n;
}

bool cuda_is_vector(const struct weight *w) {
    return w->segment == SEGMENT_RESIDENT && !w->tables && !w->transposed && !w->turned_rows;
}

size_t cuda_vector_bytes(const struct weight *w) {
    return padded((size_t)(w->rows * w->cols) * sizeof(float));
}

int cuda_layout_open(const struct weight *const *weights, int n, int n_segments, struct cuda_layout *out,
                     struct error *err) {
    *out = (struct cuda_layout){.n_segments = n_segments};
    out->ranges = mem_zalloc((size_t)n * (1 + TABLES) + 1, sizeof *out->ranges);
    out->bytes = mem_zalloc((size_t)n_segments + 1, sizeof *out->bytes);
    if (!out->ranges || !out->bytes) {
        cuda_layout_close(out);
        return error_memory(err, "the list of weights", (size_t)n * (1 + TABLES) * sizeof *out->ranges);
    }
    for (int i = 0; i < n; i++) {
        const struct weight *w = weights[i];
        add(out, w->data, weight_bytes(w), w->segment);
        for (int k = 0; w->tables && k < TABLES; k++)
            add(out, w->tables->table[k].data, w->tables->table[k].bytes, w->segment);
        if (cuda_is_vector(w)) out->vector_bytes += cuda_vector_bytes(w);
    }
    merge(out);
    for (int i = 0; i < out->n_ranges; i++) {
        struct cuda_range *r = &out->ranges[i];
        r->at = out->bytes[r->segment];
        out->bytes[r->segment] += padded(r->bytes);
    }
    return 0;
}

void cuda_layout_close(struct cuda_layout *l) {
    mem_free(l->ranges);
    mem_free(l->bytes);
    *l = (struct cuda_layout){0};
}

// Layers alone are streamed: embedding and head are read at both ends of every pass.
static bool streams(const struct cuda_layout *l, int segment) {
    return segment >= SEGMENT_LAYER0 && segment < l->n_segments - 1;
}

void cuda_residency_choose(const struct cuda_layout *l, size_t budget, struct cuda_residency *out) {
    *out = (struct cuda_residency){.resident = l->vector_bytes, .streamed_from = l->n_segments};
    size_t layers = 0, largest = 0;
    for (int i = 0; i < l->n_segments; i++) {
        if (!streams(l, i)) {
            out->resident += l->bytes[i];
            continue;
        }
        layers += l->bytes[i];
        if (l->bytes[i] > largest) largest = l->bytes[i];
    }
    if (out->resident + layers <= budget) {
        out->resident += layers;
        return;
    }
    out->slot = largest, out->slots = CUDA_STREAM_SLOTS;
    size_t held = out->resident + out->slots * out->slot;
    int from = SEGMENT_LAYER0;
    while (from < l->n_segments - 1 && held + l->bytes[from] <= budget) held += l->bytes[from++];
    out->streamed_from = from;
    for (int i = SEGMENT_LAYER0; i < from; i++) out->resident += l->bytes[i];
    for (int i = from; i < l->n_segments - 1; i++) out->streamed += l->bytes[i];
}

bool cuda_streams(const struct cuda_layout *l, const struct cuda_residency *r, int segment) {
    return streams(l, segment) && segment >= r->streamed_from;
}
