// See dataset.h.
#include "data/dataset.h"

#include "data/jsonl.h"
#include "data/permutation.h"
#include "data/row_reader.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { REPORTED_ROWS = 20 };

const char *drop_reason_name(enum drop_reason reason) {
    static const char *const names[DROP_REASONS] = {[DROP_NONE] = "kept",
                                                    [DROP_TOO_LONG] = "too long",
                                                    [DROP_TOO_SHORT] = "too short",
                                                    [DROP_MALFORMED] = "malformed"};
    return names[reason];
}

const char *token_why_name(enum token_why why) {
    static const char *const names[WHY_COUNT] = {[WHY_TEMPLATE] = "template",
                                                 [WHY_PROMPT] = "prompt",
                                                 [WHY_ANSWER] = "answer",
                                                 [WHY_EOT] = "end of turn",
                                                 [WHY_EOT_OFF] = "end of turn, off",
                                                 [WHY_FLAG_OFF] = "flagged off",
                                                 [WHY_LABEL] = "label",
                                                 [WHY_LABEL_MASKED] = "label masked"};
    return names[why];
}

bool token_why_trained(enum token_why why) {
    return why == WHY_ANSWER || why == WHY_EOT || why == WHY_LABEL;
}

void row_free(struct row *row) {
    ids_free(&row->ids);
    ids_free(&row->labels);
    ids_free(&row->positions);
    ids_free(&row->prompt_ids);
    rendered_free(&row->rendered);
    rendered_free(&row->prompt);
    mem_free(row->why);
    mem_free(row->spans);
    mem_free(row->messages);
}

int row_reserve_why(struct row *row, struct error *err) {
    if (row->ids.count <= row->why_capacity) return 0;
    size_t capacity = 2 * row->ids.count + 64;
    uint8_t *why = mem_resize(row->why, capacity);
    if (!why) return error_memory(err, "a row", capacity);
    row->why = why;
    row->why_capacity = capacity;
    return 0;
}

int row_string(const struct json *value, const char *path, const char **out, size_t *length, struct error *err) {
    *out = json_string(value, length);
    if (!*out) return error_set(err, STATUS_DATA, "key \"%s\" is %s, expected a string", path, json_type_name(value));
    if (memchr(*out, 0, *length)) return error_set(err, STATUS_DATA, "key \"%s\" holds a NUL character", path);
    return 0;
}

// --- reading a file

struct reading {
    const struct dataset_options *options;
    struct dataset *out;
    size_t capacity; // of out->samples
    struct row row;
    struct text problems; // of malformed rows, one a line
    uint64_t n_problems;
    int problem_code;
    bool raised; // the row under way is too long and the policy is to say so, skip_bad_rows or not
};

static void *keep(struct dataset *d, const void *from, size_t bytes) {
    void *copy = pool_alloc(&d->pool, bytes ? bytes : 1);
    if (copy && bytes) memcpy(copy, from, bytes);
    d->bytes += bytes;
    return copy;
}

// Tokens that count in the loss. The first one of a row is never predicted.
static int32_t count_trained(const struct row *row, size_t count) {
    int32_t trained = 0;
    for (size_t i = 1; i < count; i++) trained += token_why_trained(row->why[i]);
    return trained;
}

static const char *keep_text(struct dataset *d, const char *text, size_t length) {
    char *copy = pool_strndup(&d->pool, text, length);
    d->bytes += length + 1;
    return copy;
}

static int keep_prompt(struct dataset *d, const struct row *row, struct sample *s, struct error *err) {
    size_t n = row->prompt_ids.count;
    bool shared = n <= (size_t)s->count && memcmp(row->prompt_ids.data, s->ids, n * sizeof *s->ids) == 0;
    s->prompt_ids = shared ? s->ids : keep(d, row->prompt_ids.data, n * sizeof *s->ids);
    s->prompt_count = (int32_t)n;
    s->reference = keep_text(d, row->reference, row->reference_length);
    s->reference_tokens = row->reference_tokens;
    return s->prompt_ids && s->reference ? 0 : error_memory(err, "the data", d->bytes);
}

static int keep_row(struct dataset *d, const struct row *row, size_t count, struct sample *s, struct error *err) {
    s->count = (int32_t)count;
    s->notes = row->notes | (count < row->ids.count ? NOTE_TRUNCATED : 0);
    s->trained = count_trained(row, count);
    s->ids = keep(d, row->ids.data, count * sizeof *s->ids);
    s->why = keep(d, row->why, count);
    if (row->has_labels) s->labels = keep(d, row->labels.data, count * sizeof *s->labels);
    if (row->has_positions) s->positions = keep(d, row->positions.data, count * sizeof *s->positions);
    if (row->has_text) s->rendered = keep_text(d, text_str(&row->rendered.text), row->rendered.text.length);
    if (!s->ids || !s->why || (row->has_labels && !s->labels) || (row->has_positions && !s->positions) ||
        (row->has_text && !s->rendered))
        return error_memory(err, "the data", d->bytes);
    if (row->has_prompt && keep_prompt(d, row, s, err) < 0) return -1;
    d->tokens += (uint64_t)count;
    d->trained_tokens += (uint64_t)s->trained;
    if (s->count > d->longest) d->longest = s->count;
    return 0;
}

static const char *why_untrained(const struct row *row, bool cut) {
    if (cut && count_trained(row, row->ids.count) > 0) return "the answer lies beyond sequence_len and was cut away";
    if (row->options->kind == DATASET_TOKENS) return "every label is -100";
    for (size_t i = 0; i < row->n_messages; i++)
        if (row->messages[i].content_length == 0) return "the answer is empty";
    return row->options->kind == DATASET_ALPACA ? "the answer is empty" : "no message has a role of roles_to_train";
}

// Length policy, then the promise that every row teaches something.
static int judge(struct reading *r, struct sample *s, struct error *err) {
    const struct dataset_options *o = r->options;
    size_t count = r->row.ids.count;
    bool cut = false;
    if (count > INT32_MAX) return error_set(err, STATUS_DATA, "the row has %zu tokens", count);
    if (o->sequence_len > 0 && count > (size_t)o->sequence_len) {
        r->raised = o->excess == EXCESS_RAISE;
        if (r->raised)
            return error_set(err, STATUS_DATA,
                             "the row has %zu tokens, sequence_len is %d (excess_length_strategy: raise)", count,
                             o->sequence_len);
        if (o->excess == EXCESS_DROP) {
            s->dropped = DROP_TOO_LONG;
            return 0;
        }
        cut = true;
        count = (size_t)o->sequence_len;
    }
    if (count < (size_t)(o->min_sample_len > 0 ? o->min_sample_len : 0)) {
        s->dropped = DROP_TOO_SHORT;
        return 0;
    }
    if (count_trained(&r->row, count) == 0)
        return error_set(err, STATUS_DATA, "no token of this row is trained: %s", why_untrained(&r->row, cut));
    if (keep_row(r->out, &r->row, count, s, err) < 0) return -1;
    r->out->truncated += cut;
    return 0;
}

static int read_row(struct reading *r, const struct json *value, struct sample *s, struct error *err) {
    struct row *row = &r->row;
    row->ids.count = row->labels.count = row->positions.count = row->n_messages = 0;
    row->has_labels = row->has_positions = row->has_text = row->has_prompt = false;
    row->notes = 0;
    int status = r->options->kind == DATASET_CHAT     ? row_read_chat(row, value, err)
                 : r->options->kind == DATASET_ALPACA ? row_read_alpaca(row, value, err)
                                                      : row_read_tokens(row, value, err);
    return status < 0 ? -1 : judge(r, s, err);
}

static struct sample *add_sample(struct reading *r, uint32_t line, struct error *err) {
    struct dataset *d = r->out;
    uint64_t row = (uint64_t)r->options->first_row + d->count;
    if (row > UINT32_MAX) {
        error_set(err, STATUS_DATA, "%s:%u: more than %u rows", r->options->path, line, UINT32_MAX);
        return NULL;
    }
    if (d->count == r->capacity) {
        size_t capacity = r->capacity ? 2 * r->capacity : 256;
        struct sample *samples = mem_resize(d->samples, capacity * sizeof *samples);
        if (!samples) {
            error_memory(err, "the data", capacity * sizeof *samples);
            return NULL;
        }
        d->samples = samples;
        r->capacity = capacity;
    }
    struct sample *s = &d->samples[d->count++];
    *s = (struct sample){.row = (uint32_t)row, .line = line, .path = r->options->path};
    return s;
}

// Notes one malformed row; the first ones are told in full as far as an error text has room.
static void add_problem(struct reading *r, const struct error *problem) {
    size_t length = strlen(problem->text), room = sizeof problem->text - 64;
    if (r->n_problems++ == 0) r->problem_code = problem->code;
    if (r->n_problems > REPORTED_ROWS || r->problems.length + length + 1 > room) return;
    text_printf(&r->problems, "%s%s", r->problems.length ? "\n" : "", problem->text);
}

// One row, good or bad; -1 when reading cannot go on.
static int take_row(struct reading *r, struct jsonl *lines, struct json_document *doc, struct error *problem,
                    struct error *err) {
    struct sample *s = add_sample(r, lines->line, err);
    if (!s) return -1;
    r->raised = false;
    if (doc) {
        int status = read_row(r, doc->root, s, problem);
        if (status == 0) {
            r->out->dropped[s->dropped] += s->dropped != DROP_NONE;
            return 0;
        }
        error_prefix(problem, "%s:%u", r->options->path, lines->line);
    }
    if (problem->code != STATUS_DATA) return error_set(err, problem->code, "%s", problem->text);
    s->dropped = DROP_MALFORMED;
    r->out->dropped[DROP_MALFORMED]++;
    if (r->raised || !r->options->skip_bad_rows) add_problem(r, problem);
    return 0;
}

static int read_rows(struct reading *r, const uint8_t *bytes, size_t length, struct error *err) {
    struct jsonl lines;
    jsonl_start(&lines, r->options->path, bytes, length);
    for (;;) {
        struct json_document doc;
        struct error problem = {0};
        enum jsonl_result result = jsonl_next(&lines, &doc, &problem);
        if (result == JSONL_END) return 0;
        if (result == JSONL_FATAL) return error_set(err, problem.code, "%s", problem.text);
        int status = take_row(r, &lines, result == JSONL_ROW ? &doc : NULL, &problem, err);
        if (result == JSONL_ROW) json_free(&doc);
        if (status < 0) return -1;
    }
}

static int report_problems(const struct reading *r, struct error *err) {
    if (r->n_problems == 0) return 0;
    uint64_t shown = 1;
    for (size_t i = 0; i < r->problems.length; i++) shown += r->problems.data[i] == '\n';
    if (text_failed(&r->problems)) return error_memory(err, "messages", r->problems.length);
    if (err && err->code == 0) { // each line has been made printable; error_set would take the line ends too
        err->code = r->problem_code;
        int n = snprintf(err->text, sizeof err->text, "%s", text_str(&r->problems));
        if (shown < r->n_problems)
            snprintf(err->text + n, sizeof err->text - (size_t)n, "\nand %llu more bad rows",
                     (unsigned long long)(r->n_problems - shown));
    }
    return -1;
}

static int check_options(const struct dataset_options *o, const struct tokenizer *tokenizer,
                         const struct chat_template *chat, struct error *err) {
    if (o->kind != DATASET_TOKENS && !tokenizer)
        return error_set(err, STATUS_INTERNAL, "%s: these rows need a tokenizer", o->path);
    if (o->kind == DATASET_CHAT && !chat)
        return error_set(err, STATUS_INTERNAL, "%s: these rows need a chat template", o->path);
    return 0;
}

int dataset_parse(const struct dataset_options *options, const uint8_t *bytes, size_t length,
                  const struct tokenizer *tokenizer, const struct chat_template *chat, struct dataset *out,
                  struct error *err) {
    *out = (struct dataset){0};
    struct dataset_options o = *options; // names of fields as most data has them
    if (!o.field_messages) o.field_messages = "messages";
    if (!o.field_role) o.field_role = "role";
    if (!o.field_content) o.field_content = "content";
    if (!o.field_instruction) o.field_instruction = "instruction";
    if (!o.field_input) o.field_input = "input";
    if (!o.field_output) o.field_output = "output";
    struct reading r = {.options = &o, .out = out, .row = {.options = &o, .tokenizer = tokenizer, .chat = chat}};
    int status = check_options(&o, tokenizer, chat, err);
    if (status == 0) status = read_rows(&r, bytes, length, err);
    if (status == 0) status = report_problems(&r, err);
    if (status == 0 && out->count == 0) status = error_set(err, STATUS_DATA, "%s: the file holds no row", o.path);
    if (status == 0) status = sha256_bytes(bytes, length, out->sha256, err);
    out->bytes += r.capacity * sizeof *out->samples;
    row_free(&r.row);
    text_free(&r.problems);
    if (status < 0) dataset_free(out);
    return status;
}

int dataset_read(const struct dataset_options *options, const struct tokenizer *tokenizer,
                 const struct chat_template *chat, struct dataset *out, struct error *err) {
    *out = (struct dataset){0};
    struct mapped_file file;
    if (file_map(options->path, &file, err) < 0) return -1;
    int status = dataset_parse(options, file.data, file.size, tokenizer, chat, out, err);
    uint64_t size = file.size;
    if (status == 0) status = file_size(options->path, &size, err);
    if (status == 0 && size != file.size)
        status = error_set(err, STATUS_DATA, "%s: the file changed while it was read (%zu bytes, now %llu)",
                           options->path, file.size, (unsigned long long)size);
    file_unmap(&file);
    if (status < 0) dataset_free(out);
    return status;
}

void dataset_free(struct dataset *d) {
    mem_free(d->samples);
    pool_free(&d->pool);
    for (size_t i = 0; i < d->n_more; i++) pool_free(&d->more[i]);
    mem_free(d->more);
    *d = (struct dataset){0};
}

// --- several files, held-out rows

// `other`'s memory becomes the dataset's: its pools are kept beside our own.
static int adopt_pools(struct dataset *d, struct dataset *other, struct error *err) {
    size_t n = d->n_more + other->n_more + 1;
    struct pool *more = mem_resize(d->more, n * sizeof *more);
    if (!more) return error_memory(err, "the data", n * sizeof *more);
    d->more = more;
    more[d->n_more++] = other->pool;
    for (size_t i = 0; i < other->n_more; i++) more[d->n_more++] = other->more[i];
    return 0;
}

static int join_hashes(struct dataset *d, const struct dataset *other, struct error *err) {
    uint8_t both[2 * SHA256_BYTES];
    if (d->count == 0) {
        memcpy(d->sha256, other->sha256, SHA256_BYTES);
        return 0;
    }
    memcpy(both, d->sha256, SHA256_BYTES);
    memcpy(both + SHA256_BYTES, other->sha256, SHA256_BYTES);
    return sha256_bytes(both, sizeof both, d->sha256, err);
}

int dataset_append(struct dataset *d, struct dataset *other, struct error *err) {
    size_t n = d->count + other->count;
    struct sample *samples = mem_resize(d->samples, (n + 1) * sizeof *samples);
    int status = samples ? 0 : error_memory(err, "the data", n * sizeof *samples);
    if (samples) d->samples = samples;
    if (status == 0) status = join_hashes(d, other, err);
    if (status == 0) status = adopt_pools(d, other, err);
    if (status < 0) {
        dataset_free(other);
        return -1;
    }
    memcpy(d->samples + d->count, other->samples, other->count * sizeof *samples);
    d->count = n;
    for (int i = 0; i < DROP_REASONS; i++) d->dropped[i] += other->dropped[i];
    d->truncated += other->truncated;
    d->tokens += other->tokens;
    d->trained_tokens += other->trained_tokens;
    if (other->longest > d->longest) d->longest = other->longest;
    d->bytes += other->bytes;
    mem_free(other->samples);
    mem_free(other->more);
    *other = (struct dataset){0};
    return 0;
}

// The ledger of rows in use, from the rows themselves.
static void recount(struct dataset *d) {
    d->tokens = d->trained_tokens = 0;
    d->longest = 0;
    for (size_t i = 0; i < d->count; i++) {
        const struct sample *s = &d->samples[i];
        if (s->dropped != DROP_NONE) continue;
        d->tokens += (uint64_t)s->count;
        d->trained_tokens += (uint64_t)s->trained;
        if (s->count > d->longest) d->longest = s->count;
    }
}

static int compare_rows(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

// Takes the samples at the (ascending) indices out of `d` into `test`.
static void move_samples(struct dataset *d, const uint32_t *chosen, size_t n, struct dataset *test) {
    size_t kept = 0;
    for (size_t i = 0; i < d->count; i++) {
        if (test->count < n && chosen[test->count] == i)
            test->samples[test->count++] = d->samples[i];
        else
            d->samples[kept++] = d->samples[i];
    }
    d->count = kept;
    memcpy(test->sha256, d->sha256, sizeof test->sha256);
    recount(d);
    recount(test);
}

int32_t sample_documents(const struct sample *s) {
    int32_t n = 1;
    for (int32_t t = 1; t < s->count && s->positions; t++) n += s->positions[t] != s->positions[t - 1] + 1;
    return n;
}

void dataset_ledger(const struct dataset *d, struct text *out) {
    uint64_t in_use = d->count;
    for (int i = DROP_NONE + 1; i < DROP_REASONS; i++) in_use -= d->dropped[i];
    text_printf(out, "%zu rows read, %llu in use", d->count, (unsigned long long)in_use);
    for (int i = DROP_NONE + 1; i < DROP_REASONS; i++) {
        if (d->dropped[i])
            text_printf(out, ", %llu dropped (%s)", (unsigned long long)d->dropped[i], drop_reason_name(i));
    }
    if (d->truncated) text_printf(out, ", %llu truncated", (unsigned long long)d->truncated);
}

int dataset_split(struct dataset *d, double val_set_size, uint64_t seed, struct dataset *test, struct error *err) {
    *test = (struct dataset){0};
    uint32_t *rows = mem_zalloc(d->count + 1, sizeof *rows);
    if (!rows) return error_memory(err, "the held-out rows", d->count * sizeof *rows);
    size_t in_use = 0;
    for (size_t i = 0; i < d->count; i++)
        if (d->samples[i].dropped == DROP_NONE) rows[in_use++] = (uint32_t)i;
    double wanted = val_set_size < 1 ? ceil(val_set_size * (double)in_use) : val_set_size;
    int status = 0;
    if (!(wanted > 0) || wanted >= (double)in_use)
        status = error_set(err, STATUS_CONFIG, "val_set_size %g holds out %.0f of %zu rows, and both parts need one",
                           val_set_size, wanted, in_use);
    size_t n = status == 0 ? (size_t)wanted : 0;
    test->samples = mem_zalloc(n + 1, sizeof *test->samples);
    if (status == 0 && !test->samples) status = error_memory(err, "the held-out rows", n * sizeof *test->samples);
    if (status == 0) {
        permute(rows, in_use, seed, 0, SHUFFLE_HELD_OUT);
        qsort(rows, n, sizeof *rows, compare_rows);
        move_samples(d, rows, n, test);
        test->bytes = n * sizeof *test->samples;
    } else
        dataset_free(test);
    mem_free(rows);
    return status;
}
