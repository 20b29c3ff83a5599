// See packing.h.
#include "data/packing.h"

#include "data/permutation.h"

#include <stdlib.h>
#include <string.h>

// Samples that stay together: a pack, or a group of similar lengths. They lie one after the other in `samples`.
struct units {
    uint32_t *samples; // (n_samples)
    uint32_t *begins;  // (count + 1)
    size_t count;
};

struct candidate {
    int32_t length;
    uint32_t place; // in the shuffled order: ties stay in that order
    uint32_t sample;
};

static int longest_first(const void *a, const void *b) {
    const struct candidate *x = a, *y = b;
    if (x->length != y->length) return x->length > y->length ? -1 : 1;
    return (x->place > y->place) - (x->place < y->place);
}

// Room left in each bin, in a tree whose inner nodes hold the most room below them: the first bin with enough room is
// found in log steps.
struct bins {
    int32_t room[2 * PACK_WINDOW]; // leaves from PACK_WINDOW on
    uint32_t used[PACK_WINDOW];    // samples in the bin
};

static void bins_clear(struct bins *b, int32_t room) {
    for (size_t i = 0; i < 2 * PACK_WINDOW; i++) b->room[i] = room;
    memset(b->used, 0, sizeof b->used);
}

static uint32_t bins_place(struct bins *b, int32_t length) {
    size_t node = 1;
    while (node < PACK_WINDOW) node = b->room[2 * node] >= length ? 2 * node : 2 * node + 1;
    uint32_t bin = (uint32_t)(node - PACK_WINDOW);
    b->room[node] = ++b->used[bin] == PACK_MOST_SAMPLES ? 0 : b->room[node] - length;
    for (node /= 2; node > 0; node /= 2) {
        int32_t left = b->room[2 * node], right = b->room[2 * node + 1];
        b->room[node] = left > right ? left : right;
    }
    return bin;
}

struct work {
    struct bins bins;
    struct candidate candidates[PACK_WINDOW];
    uint32_t bin_of[PACK_WINDOW]; // of each candidate
    uint32_t next[PACK_WINDOW];   // where the next sample of a bin goes
};

static void sort_window(const struct dataset *d, struct work *w, const uint32_t *samples, size_t n) {
    for (size_t i = 0; i < n; i++)
        w->candidates[i] = (struct candidate){d->samples[samples[i]].count, (uint32_t)i, samples[i]};
    qsort(w->candidates, n, sizeof *w->candidates, longest_first);
}

// First-fit-decreasing over one window of the order; rewrites the window pack by pack and appends the packs' ends.
static void pack_window(const struct dataset *d, int32_t room, struct work *w, uint32_t *samples, size_t n,
                        struct units *units) {
    sort_window(d, w, samples, n);
    bins_clear(&w->bins, room);
    uint32_t n_bins = 0;
    for (size_t i = 0; i < n; i++) {
        w->bin_of[i] = bins_place(&w->bins, w->candidates[i].length);
        if (w->bin_of[i] >= n_bins) n_bins = w->bin_of[i] + 1;
    }
    uint32_t at = 0, first = units->begins[units->count];
    for (uint32_t bin = 0; bin < n_bins; bin++) {
        w->next[bin] = at;
        at += w->bins.used[bin];
        units->begins[++units->count] = first + at;
    }
    for (size_t i = 0; i < n; i++) samples[w->next[w->bin_of[i]]++] = w->candidates[i].sample;
}

static void group_window(const struct dataset *d, size_t group, struct work *w, uint32_t *samples, size_t n,
                         struct units *units) {
    sort_window(d, w, samples, n);
    uint32_t first = units->begins[units->count];
    for (size_t i = 0; i < n; i++) {
        samples[i] = w->candidates[i].sample;
        if ((i + 1) % group == 0 || i + 1 == n) units->begins[++units->count] = first + (uint32_t)i + 1;
    }
}

// Units in a new order, so that long ones, which a window puts first, do not cluster.
static int shuffle_units(struct units *u, size_t n_samples, uint64_t seed, uint32_t epoch, struct error *err) {
    uint32_t *order = mem_zalloc(u->count + 1, sizeof *order), *begins = mem_zalloc(u->count + 1, sizeof *begins);
    uint32_t *samples = mem_zalloc(n_samples + 1, sizeof *samples);
    if (!order || !begins || !samples) {
        mem_free(order);
        mem_free(begins);
        mem_free(samples);
        return error_memory(err, "the order of an epoch", n_samples * sizeof *samples);
    }
    for (size_t i = 0; i < u->count; i++) order[i] = (uint32_t)i;
    permute(order, u->count, seed, epoch, SHUFFLE_PACKS);
    for (size_t i = 0; i < u->count; i++) {
        uint32_t from = u->begins[order[i]], n = u->begins[order[i] + 1] - from;
        memcpy(samples + begins[i], u->samples + from, n * sizeof *samples);
        begins[i + 1] = begins[i] + n;
    }
    mem_free(order);
    mem_free(u->samples);
    mem_free(u->begins);
    u->samples = samples;
    u->begins = begins;
    return 0;
}

static int make_units(const struct dataset *d, const struct loader_options *o, size_t n, struct units *u,
                      struct error *err) {
    if (!o->packing && !o->group_by_length) {
        for (size_t i = 0; i <= n; i++) u->begins[i] = (uint32_t)i;
        u->count = n;
        return 0;
    }
    struct work *w = mem_alloc(sizeof *w);
    if (!w) return error_memory(err, "packing", sizeof *w);
    size_t group = (size_t)o->micro_batch_size;
    size_t window = o->packing ? PACK_WINDOW : group >= PACK_WINDOW ? PACK_WINDOW : PACK_WINDOW / group * group;
    if (!o->packing && window > 50 * group) window = 50 * group; // enough to find neighbours, random enough beyond
    for (size_t at = 0; at < n; at += window) {
        size_t size = n - at < window ? n - at : window;
        if (o->packing)
            pack_window(d, o->sequence_len, w, u->samples + at, size, u);
        else
            group_window(d, group, w, u->samples + at, size, u);
    }
    mem_free(w);
    return 0;
}

// Cuts the units into micro-batches and counts their tokens.
static int make_batches(const struct dataset *d, size_t per_batch, struct units *u, struct epoch_plan *plan,
                        struct error *err) {
    size_t count = (u->count + per_batch - 1) / per_batch;
    plan->tokens = mem_zalloc(count + 1, sizeof *plan->tokens);
    plan->weights = mem_zalloc(count + 1, sizeof *plan->weights);
    if (!plan->tokens || !plan->weights)
        return error_memory(err, "the order of an epoch", count * sizeof *plan->weights);
    for (size_t i = 0; i < count; i++) {
        size_t last = (i + 1) * per_batch < u->count ? (i + 1) * per_batch : u->count;
        uint32_t begin = u->begins[i * per_batch], end = u->begins[last];
        for (uint32_t s = begin; s < end; s++) {
            plan->tokens[i] += d->samples[u->samples[s]].count;
            plan->weights[i] += d->samples[u->samples[s]].trained;
        }
        u->begins[i] = begin; // i <= i * per_batch: the entries written are not read any more
    }
    u->begins[count] = u->begins[u->count];
    plan->count = (int64_t)count;
    return 0;
}

int epoch_plan_make(const struct dataset *d, const struct loader_options *o, const uint32_t *in_use, size_t n,
                    int64_t epoch, struct epoch_plan *out, struct error *err) {
    struct units u = {.samples = mem_zalloc(n + 1, sizeof(uint32_t)), .begins = mem_zalloc(n + 2, sizeof(uint32_t))};
    *out = (struct epoch_plan){.epoch = epoch};
    int status = u.samples && u.begins ? 0 : error_memory(err, "the order of an epoch", n * sizeof(uint32_t));
    if (status == 0) {
        memcpy(u.samples, in_use, n * sizeof *in_use);
        if (o->shuffle) permute(u.samples, n, o->seed, (uint32_t)epoch, SHUFFLE_ROWS);
        status = make_units(d, o, n, &u, err);
    }
    if (status == 0 && o->shuffle && (o->packing || o->group_by_length))
        status = shuffle_units(&u, n, o->seed, (uint32_t)epoch, err);
    size_t per_batch = !o->packing && o->group_by_length ? 1 : (size_t)o->micro_batch_size;
    if (status == 0) status = make_batches(d, per_batch, &u, out, err);
    out->samples = u.samples;
    out->begins = u.begins;
    if (status < 0) epoch_plan_free(out);
    return status;
}

void epoch_plan_free(struct epoch_plan *plan) {
    mem_free(plan->samples);
    mem_free(plan->begins);
    mem_free(plan->tokens);
    mem_free(plan->weights);
    *plan = (struct epoch_plan){.epoch = -1};
}

// --- bucket sizes

enum { LEVELS = 256 }; // sizes that are weighed against each other

// cost[k][j] = rows of the micro-batches of levels 1..j when k + 1 sizes are used and the largest of them is level j.
struct costs {
    uint64_t count[LEVELS + 1]; // micro-batches of at most a level (sum)
    uint64_t cost[8][LEVELS + 1];
    uint16_t from[8][LEVELS + 1];
};

static void best_costs(struct costs *c, int levels, int limit) {
    for (int j = 1; j <= levels; j++) c->cost[0][j] = c->count[j] * (uint64_t)j;
    for (int k = 1; k < limit; k++)
        for (int j = 1; j <= levels; j++) {
            c->cost[k][j] = c->cost[k - 1][j];
            for (int i = 1; i < j; i++) {
                uint64_t cost = c->cost[k - 1][i] + (c->count[j] - c->count[i]) * (uint64_t)j;
                if (cost < c->cost[k][j]) {
                    c->cost[k][j] = cost;
                    c->from[k][j] = (uint16_t)i;
                }
            }
        }
}

int bucket_sizes(const struct epoch_plan *plan, int32_t largest, int limit, int32_t sizes[8], struct error *err) {
    struct costs *c = mem_zalloc(1, sizeof *c);
    if (!c) return error_memory(err, "bucket sizes", sizeof *c);
    if (limit < 1 || limit > 8) limit = 8;
    int32_t step = (largest / 64 + LEVELS - 1) / LEVELS * 64; // of a level: a multiple of 64
    int levels = (largest + step - 1) / step;
    for (int64_t i = 0; i < plan->count; i++) c->count[(plan->tokens[i] + step - 1) / step]++;
    for (int j = 1; j <= levels; j++) c->count[j] += c->count[j - 1];
    best_costs(c, levels, limit);
    int n = 0;
    for (int j = levels, k = limit - 1; j > 0; k--) { // from the largest down
        sizes[n++] = j == levels ? largest : j * step;
        while (k > 0 && c->from[k][j] == 0) k--;
        j = k > 0 ? c->from[k][j] : 0;
    }
    for (int i = 0; i < n / 2; i++) {
        int32_t swap = sizes[i];
        sizes[i] = sizes[n - 1 - i];
        sizes[n - 1 - i] = swap;
    }
    mem_free(c);
    return n;
}
