// See generate.h.
#include "model/generate.h"

#include "kernels/alloc.h"
#include "kernels/random.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int generator_open(struct decoder *decoder, struct generator *out, struct error *err) {
    *out = (struct generator){.decoder = decoder, .prefill = {32, 128, GENERATOR_MAX_PREFILL}};
    size_t rows = GENERATOR_MAX_PREFILL, vocab = (size_t)decoder->model->arch.vocab;
    size_t seqs = (size_t)decoder->limits.cache_seqs;
    if (rows < seqs) rows = seqs;
    out->ids = mem_zalloc(rows, sizeof(int32_t));
    out->positions = mem_zalloc(rows, sizeof(int32_t));
    out->slots = mem_zalloc(rows, sizeof(int32_t));
    out->seqs = mem_zalloc(seqs, 4 * sizeof(int32_t));
    out->logits = mem_zalloc(seqs * vocab, sizeof(float));
    out->scratch = mem_zalloc(vocab, sizeof(float));
    out->order = mem_zalloc(vocab, sizeof(int32_t));
    if (out->ids && out->positions && out->slots && out->seqs && out->logits && out->scratch && out->order) return 0;
    generator_close(out);
    return error_memory(err, "generation", seqs * vocab * sizeof(float));
}

void generator_close(struct generator *g) {
    mem_free(g->ids);
    mem_free(g->positions);
    mem_free(g->slots);
    mem_free(g->seqs);
    mem_free(g->logits);
    mem_free(g->scratch);
    mem_free(g->order);
    *g = (struct generator){0};
}

// One program: `rows` token rows of g's arrays; with logits for decoding steps.
static int step(struct generator *g, const char *name, int32_t rows, int32_t n_seqs, int adapter, bool logits,
                struct error *err) {
    struct decoder *d = g->decoder;
    char program[48];
    snprintf(program, sizeof program, adapter < 0 ? "%s %d base" : "%s %d adapter %d", name, rows, adapter);
    struct pass pass = {.n_spans = adapter >= 0, .spans = {{0, rows, adapter}}};
    struct decode_rows in = {rows, n_seqs, g->ids, g->positions, g->slots, g->seqs};
    struct tensor out = {0};
    if (plan_begin(d->device->plan, program, err)) return -1;
    if (decoder_decode(d, &pass, &in, logits ? &out : NULL, err)) return -1;
    if (logits && device_read(d->device, g->logits, out, tensor_bytes(&out), err)) return -1;
    return plan_end(d->device->plan, err);
}

static int between(const struct generator *g, int done, int total, struct error *err) {
    return g->between && g->between(g->context, done, total, err) ? -1 : 0;
}

// Widths of decoding steps: powers of two up to the cache's sequences, and that number itself.
static int32_t width_for(const struct generator *g, int32_t active) {
    int32_t width = 1;
    while (width < active) width *= 2;
    return width < g->decoder->limits.cache_seqs ? width : g->decoder->limits.cache_seqs;
}

int generator_record(struct generator *g, int n_adapters, struct error *err) {
    int32_t seqs = g->decoder->limits.cache_seqs;
    for (int adapter = -1; adapter < n_adapters; adapter++) {
        for (size_t i = 0; i < COUNT_OF(g->prefill); i++) {
            if (step(g, "prefill", g->prefill[i], seqs, adapter, false, err)) return -1;
        }
        for (int32_t width = 1;; width = width_for(g, width + 1)) {
            if (step(g, "decode", width, width, adapter, true, err)) return -1;
            if (width >= seqs) break;
        }
    }
    return 0;
}

struct place {      // one sequence of the cache
    int job;        // -1 = free
    int32_t length; // tokens in the cache
    int32_t next;   // token to feed
    int32_t made;   // new tokens so far
};

// Puts the prompts of freshly placed jobs, all but their last token, into the cache.
static int prefill(struct generator *g, struct place *places, const struct generation *jobs, int done, int n_jobs,
                   struct error *err) {
    int32_t n_places = g->decoder->limits.cache_seqs, cache_len = g->decoder->limits.cache_len;
    for (;;) {
        int32_t want = 0;
        for (int32_t p = 0; p < n_places; p++) {
            if (places[p].job >= 0)
                want += jobs[places[p].job].prompt_count - 1 - places[p].length > 0
                            ? jobs[places[p].job].prompt_count - 1 - places[p].length
                            : 0;
        }
        if (want == 0) return 0;
        int32_t rows = g->prefill[COUNT_OF(g->prefill) - 1], used = 0, n = 0;
        for (size_t i = COUNT_OF(g->prefill); i-- > 0;) {
            if (want <= g->prefill[i]) rows = g->prefill[i];
        }
        memset(g->seqs, 0, (size_t)n_places * 4 * sizeof(int32_t));
        for (int32_t p = 0; p < n_places && used < rows; p++) {
            struct place *place = &places[p];
            if (place->job < 0) continue;
            const struct generation *job = &jobs[place->job];
            int32_t take = job->prompt_count - 1 - place->length;
            if (take > rows - used) take = rows - used;
            if (take <= 0) continue;
            for (int32_t i = 0; i < take; i++) {
                g->ids[used + i] = job->prompt[place->length + i];
                g->positions[used + i] = place->length + i;
                g->slots[used + i] = p * cache_len + place->length + i;
            }
            int32_t *seq = &g->seqs[4 * n++];
            seq[0] = used, seq[1] = take, seq[2] = p * cache_len, seq[3] = place->length + take;
            place->length += take;
            used += take;
        }
        for (int32_t i = used; i < rows; i++) g->ids[i] = g->positions[i] = 0, g->slots[i] = -1;
        if (step(g, "prefill", rows, n_places, jobs[0].adapter, false, err) || between(g, done, n_jobs, err)) return -1;
    }
}

static int by_logit(const void *a, const void *b, void *logits) {
    const float *l = logits;
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    if (l[x] != l[y]) return l[x] > l[y] ? -1 : 1;
    return x < y ? -1 : x > y;
}

static int32_t sample(struct generator *g, const float *logits, const struct sampling *s, uint32_t job,
                      uint32_t token) {
    int32_t vocab = g->decoder->model->arch.vocab, best = 0;
    if (g->n_tokens > 0 && g->n_tokens < vocab) vocab = g->n_tokens; // rows beyond the tokens are padding
    for (int32_t i = 1; i < vocab; i++) {
        if (logits[i] > logits[best]) best = i;
    }
    if (s->temperature <= 0) return best;
    int32_t n = 0; // candidates: within 30 / temperature nats of the best, which leaves out nothing that could be drawn
    for (int32_t i = 0; i < vocab; i++) {
        if ((double)(logits[best] - logits[i]) / s->temperature < 30) g->order[n++] = i;
    }
    memcpy(g->scratch, logits, (size_t)vocab * sizeof(float));
    qsort_r(g->order, (size_t)n, sizeof *g->order, by_logit, g->scratch);
    if (s->top_k > 0 && n > s->top_k) n = s->top_k;
    double total = 0, sum = 0;
    for (int32_t i = 0; i < n; i++) total += exp((double)(logits[g->order[i]] - logits[best]) / s->temperature);
    for (int32_t i = 0; i < n; i++) { // nucleus: the smallest head of the list that holds top_p
        sum += exp((double)(logits[g->order[i]] - logits[best]) / s->temperature);
        if (sum >= s->top_p * total) n = i + 1;
    }
    uint32_t bits[4];
    random_four((struct random_key){.seed = s->seed, .purpose_module = (uint32_t)RANDOM_SAMPLE << 24}, job, token, 0,
                bits);
    double pick = (bits[0] + 0.5) * 0x1p-32 * sum;
    for (int32_t i = 0; i < n; i++) {
        pick -= exp((double)(logits[g->order[i]] - logits[best]) / s->temperature);
        if (pick <= 0) return g->order[i];
    }
    return g->order[n - 1];
}

static bool is_stop(int32_t token, const int32_t *stop, int n_stop) {
    for (int i = 0; i < n_stop; i++) {
        if (stop[i] == token) return true;
    }
    return false;
}

// Feeds the next token of every running sequence.
static int decode(struct generator *g, struct place *places, int adapter, int32_t *rows_of, struct error *err) {
    int32_t n_places = g->decoder->limits.cache_seqs, cache_len = g->decoder->limits.cache_len, n = 0;
    for (int32_t p = 0; p < n_places; p++) {
        rows_of[p] = -1;
        if (places[p].job < 0) continue;
        g->ids[n] = places[p].next;
        g->positions[n] = places[p].length;
        g->slots[n] = p * cache_len + places[p].length;
        int32_t *seq = &g->seqs[4 * n];
        seq[0] = n, seq[1] = 1, seq[2] = p * cache_len, seq[3] = ++places[p].length;
        rows_of[p] = n++;
    }
    int32_t width = width_for(g, n);
    for (int32_t i = n; i < width; i++) {
        g->ids[i] = g->positions[i] = 0, g->slots[i] = -1;
        memset(&g->seqs[4 * i], 0, 4 * sizeof(int32_t));
    }
    return step(g, "decode", width, width, adapter, true, err);
}

static int run(struct generator *g, struct place *places, int32_t *rows_of, struct generation *jobs, int n_jobs,
               const struct sampling *sampling, const int32_t *stop, int n_stop, generator_progress *progress,
               void *context, struct error *err) {
    int32_t n_places = g->decoder->limits.cache_seqs, cache_len = g->decoder->limits.cache_len;
    int64_t vocab = g->decoder->model->arch.vocab;
    int next_job = 0, running = 0;
    int adapter = n_jobs ? jobs[0].adapter : -1;
    for (int32_t p = 0; p < n_places; p++) places[p].job = -1;
    for (;;) {
        for (int32_t p = 0; p < n_places && next_job < n_jobs; p++) {
            if (places[p].job >= 0) continue;
            struct generation *job = &jobs[next_job];
            if (job->prompt_count < 1 || job->prompt_count >= cache_len) {
                return error_set(err, STATUS_DATA,
                                 "a prompt of %d tokens does not fit the %d tokens that generation keeps",
                                 job->prompt_count, cache_len);
            }
            places[p] = (struct place){.job = next_job++, .next = job->prompt[job->prompt_count - 1]};
            running++;
        }
        if (running == 0) return 0;
        if (prefill(g, places, jobs, next_job - running, n_jobs, err) || decode(g, places, adapter, rows_of, err))
            return -1;
        for (int32_t p = 0; p < n_places; p++) {
            struct place *place = &places[p];
            if (place->job < 0) continue;
            struct generation *job = &jobs[place->job];
            int32_t token =
                sample(g, g->logits + rows_of[p] * vocab, sampling, (uint32_t)place->job, (uint32_t)place->made);
            bool end = is_stop(token, stop, n_stop);
            job->stopped = end;
            if (!end && ids_push(&job->out, token)) return error_memory(err, "generated tokens", sizeof(int32_t));
            place->made++;
            place->next = token;
            end |= place->made >= job->max_new || place->length >= cache_len;
            if (progress && !progress(context, place->job, job->stopped ? -1 : token)) end = true;
            if (end) place->job = -1, running--;
        }
        if (between(g, next_job - running, n_jobs, err)) return -1;
    }
}

int generator_run(struct generator *g, struct generation *jobs, int n_jobs, const struct sampling *sampling,
                  const int32_t *stop, int n_stop, generator_progress *progress, void *context, struct error *err) {
    size_t n = (size_t)g->decoder->limits.cache_seqs;
    struct place *places = mem_zalloc(n, sizeof *places);
    int32_t *rows_of = mem_zalloc(n, sizeof *rows_of);
    int failed = -1;
    if (!places || !rows_of)
        error_memory(err, "generation", n * sizeof *places);
    else
        failed = run(g, places, rows_of, jobs, n_jobs, sampling, stop, n_stop, progress, context, err);
    mem_free(places);
    mem_free(rows_of);
    return failed;
}
