// See batch.h.
#include "data/batch.h"

#include "data/packing.h"

#include <string.h>

enum { ROUND = 64, CACHED_EPOCHS = 2 };

struct loader {
    const struct dataset *dataset;
    struct loader_options options;
    uint32_t *in_use; // (n_in_use) dataset indices
    size_t n_in_use;
    int32_t sizes[8];
    int n_sizes;
    int32_t max_seqs;
    struct epoch_plan plans[CACHED_EPOCHS];
    int newest;      // of plans
    int64_t *counts; // (n_counts) micro-batches of epochs 0, 1, ..., kept: a plan costs a pass over all rows
    int64_t n_counts;
    double tokens, rows;            // of all epochs planned so far
    const struct sample **borrowed; // (max_seqs) of the micro-batch under way
};

int batch_open(struct batch *b, int32_t max_rows, int32_t max_seqs, struct error *err) {
    *b = (struct batch){.max_rows = max_rows, .max_seqs = max_seqs};
    size_t rows = (size_t)max_rows;
    b->ids = mem_zalloc(rows, sizeof *b->ids);
    b->positions = mem_zalloc(rows, sizeof *b->positions);
    b->targets = mem_zalloc(rows, sizeof *b->targets);
    b->weights = mem_zalloc(rows, sizeof *b->weights);
    b->keys = mem_zalloc(rows, 2 * sizeof *b->keys);
    b->lengths = mem_zalloc(rows, sizeof *b->lengths);
    b->seqs = mem_zalloc((size_t)max_seqs + 1, 4 * sizeof *b->seqs);
    b->samples = mem_zalloc((size_t)max_seqs + 1, sizeof *b->samples);
    if (b->ids && b->positions && b->targets && b->weights && b->keys && b->lengths && b->seqs && b->samples) return 0;
    batch_close(b);
    return error_memory(err, "a micro-batch", rows * 32);
}

void batch_close(struct batch *b) {
    mem_free(b->ids);
    mem_free(b->positions);
    mem_free(b->targets);
    mem_free(b->weights);
    mem_free(b->keys);
    mem_free(b->lengths);
    mem_free(b->seqs);
    mem_free(b->samples);
    *b = (struct batch){0};
}

static void clear_rows(struct batch *b, int32_t from, int32_t to) {
    size_t n = (size_t)(to - from);
    memset(b->ids + from, 0, n * sizeof *b->ids);
    memset(b->positions + from, 0, n * sizeof *b->positions);
    memset(b->targets + from, 0, n * sizeof *b->targets);
    memset(b->weights + from, 0, n * sizeof *b->weights);
    memset(b->keys + 2 * (size_t)from, 0, 2 * n * sizeof *b->keys);
    memset(b->lengths + from, 0, n * sizeof *b->lengths);
}

// One document: tokens begin .. end of a sample, at row `row`.
static void put_document(struct batch *b, int32_t row, int32_t begin, int32_t end) {
    int32_t *seq = b->seqs + 4 * (size_t)b->n_documents++;
    seq[0] = seq[2] = row + begin;
    seq[1] = seq[3] = end - begin;
    for (int32_t t = begin; t < end; t++) b->lengths[row + t] = end - begin;
}

static void put_sample(struct batch *b, const struct sample *s) {
    int32_t at = b->tokens, row = b->tokens, begin = 0;
    for (int32_t t = 0; t < s->count; t++, at++) {
        bool trained = t + 1 < s->count && token_why_trained((enum token_why)s->why[t + 1]);
        b->ids[at] = s->ids[t];
        b->positions[at] = s->positions ? s->positions[t] : t;
        b->targets[at] = !trained ? 0 : s->labels ? s->labels[t + 1] : s->ids[t + 1];
        b->weights[at] = trained ? 1.0f : 0.0f;
        b->keys[2 * (size_t)at] = s->row;
        b->keys[2 * (size_t)at + 1] = (uint32_t)t;
        b->trained += trained;
        if (t > begin && s->positions && s->positions[t] != s->positions[t - 1] + 1) {
            put_document(b, row, begin, t);
            begin = t;
        }
    }
    put_document(b, row, begin, s->count);
    b->samples[b->n_seqs++] = s;
    b->tokens = at;
}

int batch_fill(struct batch *b, const struct sample *const *samples, int n, int32_t rows, struct error *err) {
    int64_t tokens = 0, documents = 0;
    for (int i = 0; i < n; i++) tokens += samples[i]->count, documents += sample_documents(samples[i]);
    if (documents > b->max_seqs || rows > b->max_rows || tokens > rows)
        return error_set(err, STATUS_INTERNAL,
                         "a micro-batch of %lld documents and %lld tokens in %d rows: room is for %d and %d",
                         (long long)documents, (long long)tokens, rows, b->max_seqs, b->max_rows);
    b->rows = rows;
    b->tokens = b->trained = b->n_seqs = b->n_documents = 0;
    memset(b->seqs, 0, ((size_t)b->max_seqs + 1) * 4 * sizeof *b->seqs);
    for (int i = 0; i < n; i++) put_sample(b, samples[i]);
    clear_rows(b, b->tokens, rows);
    b->weight = b->trained;
    return 0;
}

// --- loader

static int collect(struct loader *l, struct error *err) {
    const struct dataset *d = l->dataset;
    l->in_use = mem_zalloc(d->count + 1, sizeof *l->in_use);
    if (!l->in_use) return error_memory(err, "the order of the rows", d->count * sizeof *l->in_use);
    for (size_t i = 0; i < d->count; i++) {
        if (d->samples[i].dropped != DROP_NONE) continue;
        if (d->samples[i].count > l->options.sequence_len)
            return error_set(err, STATUS_DATA, "row %u has %d tokens, more than sequence_len %d", d->samples[i].row,
                             d->samples[i].count, l->options.sequence_len);
        l->in_use[l->n_in_use++] = (uint32_t)i;
    }
    if (l->n_in_use == 0)
        return error_set(err, STATUS_DATA, "no row of the data is in use: all %zu were dropped", d->count);
    return 0;
}

// What no micro-batch of any epoch exceeds: rows, and sequences. `by_length` counts samples of each length.
static void bounds(struct loader *l, const uint32_t *by_length, int32_t *max_tokens) {
    const struct loader_options *o = &l->options;
    int64_t total = 0, longest = 0, short_sum = 0;
    int32_t left = o->micro_batch_size, in_pack = 0;
    for (int32_t length = o->sequence_len; length > 0; length--) {
        total += (int64_t)by_length[length] * length;
        int32_t n = by_length[length] < (uint32_t)left ? (int32_t)by_length[length] : left;
        longest += (int64_t)n * length; // of the micro_batch_size longest samples
        left -= n;
    }
    for (int32_t length = 1; length <= o->sequence_len; length++)
        for (uint32_t i = 0; i < by_length[length] && in_pack < PACK_MOST_SAMPLES; i++) {
            if (short_sum + length > o->sequence_len) break;
            short_sum += length;
            in_pack++;
        }
    int64_t rows = (int64_t)o->micro_batch_size * o->sequence_len, seqs = o->micro_batch_size;
    if (o->packing)
        seqs *= in_pack;
    else
        rows = longest;
    if (rows > total) rows = total;
    if (seqs > (int64_t)l->n_in_use) seqs = (int64_t)l->n_in_use;
    int64_t documents = 0, most = 1; // of all samples, of one
    for (size_t i = 0; i < l->n_in_use; i++) {
        int64_t here = sample_documents(&l->dataset->samples[l->in_use[i]]);
        documents += here;
        if (here > most) most = here;
    }
    l->max_seqs = (int32_t)(seqs * most < documents ? seqs * most : documents);
    *max_tokens = (int32_t)((rows + ROUND - 1) / ROUND * ROUND);
}

static int size_buckets(struct loader *l, struct error *err) {
    uint32_t *by_length = mem_zalloc((size_t)l->options.sequence_len + 1, sizeof *by_length);
    if (!by_length) return error_memory(err, "lengths", (size_t)l->options.sequence_len * sizeof *by_length);
    for (size_t i = 0; i < l->n_in_use; i++) by_length[l->dataset->samples[l->in_use[i]].count]++;
    int32_t largest;
    bounds(l, by_length, &largest);
    mem_free(by_length);
    if (epoch_plan_make(l->dataset, &l->options, l->in_use, l->n_in_use, 0, &l->plans[0], err) < 0) return -1;
    l->n_sizes = bucket_sizes(&l->plans[0], largest, l->options.buckets, l->sizes, err);
    return l->n_sizes < 0 ? -1 : 0;
}

static int32_t bucket_of(const struct loader *l, int32_t tokens) {
    int i = 0;
    while (l->sizes[i] < tokens) i++; // the last one holds every micro-batch
    return l->sizes[i];
}

static void count_fill(struct loader *l, const struct epoch_plan *plan) {
    for (int64_t i = 0; i < plan->count; i++) {
        l->tokens += plan->tokens[i];
        l->rows += bucket_of(l, plan->tokens[i]);
    }
}

static int check_options(const struct loader_options *o, struct error *err) {
    int64_t rows = (int64_t)o->micro_batch_size * o->sequence_len;
    if (o->micro_batch_size > 0 && o->sequence_len > 0 && rows <= INT32_MAX - ROUND) return 0;
    return error_set(err, STATUS_CONFIG, "micro_batch_size %d x sequence_len %d is not possible", o->micro_batch_size,
                     o->sequence_len);
}

struct loader *loader_open(const struct dataset *dataset, const struct loader_options *options, struct error *err) {
    struct loader *l = mem_zalloc(1, sizeof *l);
    if (!l) {
        error_memory(err, "the loader", sizeof *l);
        return NULL;
    }
    l->dataset = dataset;
    l->options = *options;
    for (int i = 0; i < CACHED_EPOCHS; i++) l->plans[i].epoch = -1;
    int status = check_options(options, err);
    if (status == 0) status = collect(l, err);
    if (status == 0) status = size_buckets(l, err);
    if (status == 0) {
        count_fill(l, &l->plans[0]);
        l->borrowed = mem_zalloc((size_t)l->max_seqs + 1, sizeof *l->borrowed);
        if (!l->borrowed) status = error_memory(err, "the loader", (size_t)l->max_seqs * sizeof *l->borrowed);
    }
    if (status == 0) return l;
    loader_close(l);
    return NULL;
}

void loader_close(struct loader *l) {
    if (!l) return;
    for (int i = 0; i < CACHED_EPOCHS; i++) epoch_plan_free(&l->plans[i]);
    mem_free(l->in_use);
    mem_free(l->borrowed);
    mem_free(l->counts);
    mem_free(l);
}

// The plan of an epoch, made on first use; the older of the two kept ones gives way.
static const struct epoch_plan *plan_of(struct loader *l, int64_t epoch, struct error *err) {
    for (int i = 0; i < CACHED_EPOCHS; i++) {
        if (l->plans[i].epoch != epoch || epoch < 0) continue;
        l->newest = i;
        return &l->plans[i];
    }
    if (epoch < 0 || epoch > UINT32_MAX) {
        error_set(err, STATUS_INTERNAL, "epoch %lld", (long long)epoch);
        return NULL;
    }
    struct epoch_plan plan;
    if (epoch_plan_make(l->dataset, &l->options, l->in_use, l->n_in_use, epoch, &plan, err) < 0) return NULL;
    l->newest = (l->newest + 1) % CACHED_EPOCHS;
    epoch_plan_free(&l->plans[l->newest]);
    l->plans[l->newest] = plan;
    count_fill(l, &plan);
    return &l->plans[l->newest];
}

static const struct epoch_plan *plan_with(struct loader *l, int64_t epoch, int64_t index, struct error *err) {
    const struct epoch_plan *plan = plan_of(l, epoch, err);
    if (!plan || (index >= 0 && index < plan->count)) return plan;
    error_set(err, STATUS_INTERNAL, "micro-batch %lld of %lld", (long long)index, (long long)plan->count);
    return NULL;
}

int64_t loader_count(struct loader *l, int64_t epoch, struct error *err) {
    if (epoch < 0) return error_set(err, STATUS_INTERNAL, "epoch %lld", (long long)epoch);
    while (l->n_counts <= epoch) {
        const struct epoch_plan *plan = plan_of(l, l->n_counts, err);
        int64_t *grown = plan ? mem_resize(l->counts, (size_t)(l->n_counts + 1) * sizeof *grown) : NULL;
        if (!plan) return -1;
        if (!grown) return error_memory(err, "the epochs", sizeof *grown);
        l->counts = grown;
        l->counts[l->n_counts++] = plan->count;
    }
    return l->counts[epoch];
}

int loader_batch(struct loader *l, int64_t epoch, int64_t index, struct batch *out, struct error *err) {
    const struct epoch_plan *plan = plan_with(l, epoch, index, err);
    if (!plan) return -1;
    uint32_t begin = plan->begins[index], n = plan->begins[index + 1] - begin;
    if (n > (uint32_t)l->max_seqs) return error_set(err, STATUS_INTERNAL, "a micro-batch of %u samples", n);
    for (uint32_t i = 0; i < n; i++) l->borrowed[i] = &l->dataset->samples[plan->samples[begin + i]];
    return batch_fill(out, l->borrowed, (int)n, bucket_of(l, plan->tokens[index]), err);
}

double loader_weight(struct loader *l, int64_t epoch, int64_t index, struct error *err) {
    const struct epoch_plan *plan = plan_with(l, epoch, index, err);
    return plan ? plan->weights[index] : -1;
}

int loader_buckets(const struct loader *l, int32_t sizes[8]) {
    memcpy(sizes, l->sizes, sizeof l->sizes);
    return l->n_sizes;
}

int32_t loader_max_seqs(const struct loader *l) {
    return l->max_seqs;
}
double loader_fill(const struct loader *l) {
    return l->rows > 0 ? l->tokens / l->rows : 0;
}
