// See evaluate.h.
#include "train/evaluate.h"

#include "data/json.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

int evaluator_open(struct session *session, const char *name, const struct dataset *dataset,
                   const struct eval_options *options, struct evaluator *out, struct error *err) {
    *out = (struct evaluator){.session = session, .name = name, .dataset = dataset};
    struct loader_options loading = {.micro_batch_size = (int)options->batch_size,
                                     .sequence_len = (int)options->sequence_len,
                                     .packing = options->packing,
                                     .buckets = 8};
    out->loader = loader_open(dataset, &loading, err);
    if (!out->loader) return -1;
    out->n_buckets = loader_buckets(out->loader, out->buckets);
    if (!batch_open(&out->batch, out->buckets[out->n_buckets - 1], loader_max_seqs(out->loader), err)) return 0;
    evaluator_close(out);
    return -1;
}

void evaluator_close(struct evaluator *e) {
    loader_close(e->loader);
    batch_close(&e->batch);
    *e = (struct evaluator){0};
}

void evaluator_limits(const struct evaluator *e, struct decoder_limits *limits) {
    int32_t rows = e->buckets[e->n_buckets - 1], seqs = loader_max_seqs(e->loader);
    if (limits->max_rows < rows) limits->max_rows = rows;
    if (limits->max_seqs < seqs) limits->max_seqs = seqs;
    if (limits->max_positions < e->dataset->longest + 1) limits->max_positions = e->dataset->longest + 1;
}

// Log-probabilities of the loaded rows; `logp` NULL when only the sums count.
static int program(struct evaluator *e, int adapter, int32_t rows, int32_t max_seqs, float *logp, struct error *err) {
    struct device *device = &e->session->device;
    struct pass pass = {.n_spans = adapter >= 0, .spans = {{0, rows, adapter}}};
    struct tensor out;
    char name[64];
    snprintf(name, sizeof name, "%s %d adapter %d", e->name, rows, adapter);
    if (plan_begin(device->plan, name, err)) return -1;
    if (decoder_score(&e->session->decoder, &pass, rows, max_seqs, &out, err)) return -1;
    if (logp && device_read(device, logp, out, tensor_bytes(&out), err)) return -1;
    return plan_end(device->plan, err);
}

int evaluator_record(struct evaluator *e, int adapter, struct error *err) {
    for (int i = 0; i < e->n_buckets; i++) {
        float *nothing = mem_zalloc((size_t)e->buckets[i], sizeof *nothing);
        if (!nothing) return error_memory(err, "evaluation", (size_t)e->buckets[i] * sizeof *nothing);
        int failed = program(e, adapter, e->buckets[i], e->batch.max_seqs, nothing, err);
        mem_free(nothing);
        if (failed) return -1;
    }
    return 0;
}

// One micro-batch of `count` is done.
static int between(const struct evaluator *e, int64_t done, int64_t count, struct error *err) {
    return e->between && e->between(e->context, done, count, err) ? -1 : 0;
}

int evaluator_loss(struct evaluator *e, int adapter, struct eval_loss *out, struct error *err) {
    struct decoder *d = &e->session->decoder;
    struct step_scalars scalars = {0};
    *out = (struct eval_loss){0};
    if (device_write(d->device, d->scalars, &scalars, sizeof scalars, err)) return -1;
    int64_t count = loader_count(e->loader, 0, err);
    if (count < 0) return -1;
    for (int64_t i = 0; i < count; i++) {
        if (loader_batch(e->loader, 0, i, &e->batch, err) || decoder_load(d, &e->batch, err) ||
            program(e, adapter, e->batch.rows, e->batch.max_seqs, NULL, err) || between(e, i + 1, count, err)) {
            return -1;
        }
        out->rows += e->batch.n_seqs;
    }
    if (device_read(d->device, &scalars, d->scalars, sizeof scalars, err)) return -1;
    out->tokens = scalars.weight_sum;
    out->loss = scalars.weight_sum > 0 ? scalars.loss_sum / scalars.weight_sum : 0;
    return 0;
}

// Every token but the first of a row becomes a target of weight 1.
static void score_everything(struct batch *b) {
    int32_t at = 0;
    for (int32_t s = 0; s < b->n_seqs; s++) {
        const struct sample *sample = b->samples[s];
        for (int32_t i = 0; i < sample->count; i++) {
            bool has_next = i + 1 < sample->count;
            b->targets[at + i] = has_next ? sample->ids[i + 1] : 0;
            b->weights[at + i] = has_next ? 1.0f : 0.0f;
        }
        at += sample->count;
    }
}

int evaluator_score(struct evaluator *e, int adapter, float *logp, struct error *err) {
    score_everything(&e->batch);
    return decoder_load(&e->session->decoder, &e->batch, err) ||
                   program(e, adapter, e->batch.rows, e->batch.max_seqs, logp, err)
               ? -1
               : 0;
}

static void write_row(struct json_writer *w, const struct sample *sample, const float *logp) {
    json_begin_object(w);
    json_put_key(w, "row");
    json_put_int(w, sample->row);
    json_put_key(w, "ids");
    json_begin_array(w);
    for (int32_t i = 0; i < sample->count; i++) json_put_int(w, sample->ids[i]);
    json_end_array(w);
    if (sample->positions) {
        json_put_key(w, "position_ids");
        json_begin_array(w);
        for (int32_t i = 0; i < sample->count; i++) json_put_int(w, sample->positions[i]);
        json_end_array(w);
    }
    json_put_key(w, "trained");
    json_begin_array(w);
    for (int32_t i = 0; i < sample->count; i++) json_put_int(w, token_why_trained(sample->why[i]));
    json_end_array(w);
    json_put_key(w, "logprobs");
    json_begin_array(w);
    for (int32_t i = 0; i < sample->count; i++) {
        if (i == 0)
            json_put_null(w);
        else
            json_put_double(w, (double)logp[i - 1]);
    }
    json_end_array(w);
    json_end_object(w);
    text_char(w->out, '\n');
}

// Scores every row; kept[i] gets the log-probabilities of sample i of the dataset, NULL where it is not in use.
static int score_rows(struct evaluator *e, int adapter, float *logp, struct pool *pool, float **kept,
                      struct error *err) {
    int64_t count = loader_count(e->loader, 0, err);
    if (count < 0) return -1;
    for (int64_t i = 0; i < count; i++) {
        if (loader_batch(e->loader, 0, i, &e->batch, err) || evaluator_score(e, adapter, logp, err)) return -1;
        int32_t at = 0;
        for (int32_t s = 0; s < e->batch.n_seqs; s++) {
            const struct sample *sample = e->batch.samples[s];
            float *copy = pool_array(pool, (uint64_t)sample->count, sizeof *copy);
            if (!copy) return error_memory(err, "log-probabilities", (size_t)sample->count * sizeof *copy);
            memcpy(copy, logp + at, (size_t)sample->count * sizeof *copy);
            kept[sample - e->dataset->samples] = copy;
            at += sample->count;
        }
        if (between(e, i + 1, count, err)) return -1;
    }
    return 0;
}

static int write_rows(const struct evaluator *e, float *const *kept, struct file_writer *file, struct error *err) {
    enum { PIECE = 1 << 20 };
    struct text text = {0};
    struct json_writer w = {.out = &text, .style = JSON_COMPACT};
    int failed = 0;
    for (size_t i = 0; i < e->dataset->count && !failed; i++) {
        if (kept[i]) write_row(&w, &e->dataset->samples[i], kept[i]);
        if (text.length < PIECE && i + 1 < e->dataset->count) continue;
        failed = text_failed(&text) ? error_memory(err, "log-probabilities", text.length)
                                    : file_write(file, text_str(&text), text.length, err);
        text_clear(&text);
    }
    text_free(&text);
    return failed;
}

int evaluator_logprobs(struct evaluator *e, int adapter, const char *path, struct error *err) {
    size_t rows = (size_t)e->buckets[e->n_buckets - 1];
    struct pool pool = {0};
    float *logp = pool_array(&pool, rows, sizeof *logp);
    float **kept = pool_array(&pool, e->dataset->count, sizeof *kept); // batches come packed, rows go out in file order
    struct file_writer file;
    int failed = logp && kept ? file_remove(path, err) || file_create(path, &file, err)
                              : error_memory(err, "log-probabilities", rows * sizeof *logp);
    if (!failed) {
        failed = score_rows(e, adapter, logp, &pool, kept, err) || write_rows(e, kept, &file, err);
        if (failed)
            file_abandon(&file);
        else
            failed = file_close(&file, err);
    }
    pool_free(&pool);
    return failed ? -1 : 0;
}

// --- answers

int32_t generation_length(const struct dataset *dataset, int32_t *max_new) {
    int32_t reference = 0, prompt = 0;
    for (size_t i = 0; i < dataset->count; i++) {
        const struct sample *s = &dataset->samples[i];
        if (s->dropped || !s->prompt_ids) continue;
        if (s->reference_tokens > reference) reference = s->reference_tokens;
        if (s->prompt_count > prompt) prompt = s->prompt_count;
    }
    *max_new = reference + (reference + 1) / 2;
    return prompt + *max_new + 1;
}

static void add_stop(int32_t stop[MAX_STOP_TOKENS], int *n, int32_t id) {
    for (int i = 0; i < *n; i++)
        if (stop[i] == id) return;
    if (id >= 0 && *n < MAX_STOP_TOKENS) stop[(*n)++] = id;
}

int stop_tokens(const struct session *session, int32_t stop[MAX_STOP_TOKENS]) {
    int n = 0, n_ends = 0;
    if (!session->tokenizer) return 0;
    const int32_t *ends = tokenizer_ends(session->tokenizer, &n_ends);
    for (int i = 0; i < session->n_chats; i++)
        add_stop(stop, &n, tokenizer_find(session->tokenizer, chat_template_eot(session->chats[i].chat)));
    for (int i = 0; i < n_ends; i++) add_stop(stop, &n, ends[i]);
    return n;
}

static const char *trim(const char *text, size_t *length) {
    static const char *const blank = " \t\r\n";
    text += strspn(text, blank);
    *length = strlen(text);
    while (*length > 0 && strchr(blank, text[*length - 1])) (*length)--;
    return text;
}

bool answer_exact(const char *answer, const char *reference) {
    size_t a, b;
    answer = trim(answer, &a);
    reference = trim(reference, &b);
    return a == b && memcmp(answer, reference, a) == 0;
}

bool answer_json(const char *answer, const char *reference, bool *valid) {
    struct json_document a, b;
    *valid = false;
    if (json_parse(answer, strlen(answer), NULL, &a, NULL)) return false;
    *valid = true;
    bool equal = false;
    if (!json_parse(reference, strlen(reference), NULL, &b, NULL)) {
        equal = json_equal(a.root, b.root);
        json_free(&b);
    }
    json_free(&a);
    return equal;
}

static int judge(struct evaluator *e, const struct sample *sample, struct generation *job, struct eval_answers *out,
                 struct error *err) {
    struct text text = {0};
    if (tokenizer_decode(e->session->tokenizer, job->out.data, job->out.count, true, &text, err)) {
        text_free(&text);
        return -1;
    }
    char *copy = mem_strdup(text_str(&text));
    text_free(&text);
    if (!copy) return error_memory(err, "an answer", job->out.count);
    out->texts[sample - e->dataset->samples] = copy;
    bool valid;
    out->exact_json += answer_json(copy, sample->reference, &valid);
    out->valid_json += valid;
    out->exact += answer_exact(copy, sample->reference);
    out->asked++;
    out->tokens += (int64_t)job->out.count;
    return 0;
}

int evaluator_answers(struct evaluator *e, int adapter, int64_t limit, const struct sampling *sampling,
                      struct eval_answers *out, struct error *err) {
    const struct dataset *data = e->dataset;
    int32_t max_new, stop[MAX_STOP_TOKENS];
    int n = 0, n_stop = stop_tokens(e->session, stop), failed = 0;
    generation_length(data, &max_new);
    *out = (struct eval_answers){0};
    struct generation *jobs = mem_zalloc(data->count + 1, sizeof *jobs);
    const struct sample **asked = mem_zalloc(data->count + 1, sizeof *asked);
    out->texts = mem_zalloc(data->count + 1, sizeof *out->texts);
    if (!jobs || !asked || !out->texts) failed = error_memory(err, "answers", data->count * sizeof *jobs);
    for (size_t i = 0; i < data->count && !failed && (limit == 0 || n < limit); i++) {
        const struct sample *s = &data->samples[i];
        if (s->dropped || !s->prompt_ids) continue;
        asked[n] = s;
        jobs[n++] = (struct generation){
            .prompt = s->prompt_ids, .prompt_count = s->prompt_count, .max_new = max_new, .adapter = adapter};
    }
    const struct sampling greedy = {.top_p = 1};
    double start = clock_now();
    if (!failed) {
        struct generator *g = &e->session->generator;
        g->between = e->between, g->context = e->context;
        failed = generator_run(g, jobs, n, sampling ? sampling : &greedy, stop, n_stop, NULL, NULL, err);
        g->between = NULL;
    }
    out->seconds = clock_now() - start;
    for (int i = 0; i < n && jobs; i++) {
        if (!failed) failed = judge(e, asked[i], &jobs[i], out, err);
        ids_free(&jobs[i].out);
    }
    mem_free(jobs);
    mem_free(asked);
    if (failed) eval_answers_free(out, data->count);
    return failed ? -1 : 0;
}

void eval_answers_free(struct eval_answers *answers, size_t count) {
    for (size_t i = 0; answers->texts && i < count; i++) mem_free(answers->texts[i]);
    mem_free(answers->texts);
    *answers = (struct eval_answers){0};
}
