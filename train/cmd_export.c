// graft export: an adapter in another form. graft verify: do its files give the trainer's own numbers?
#include "adapters/lora.h"
#include "adapters/merge.h"
#include "data/json.h"
#include "train/adapter_base.h"
#include "train/command.h"
#include "train/evaluate.h"
#include "train/progress.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const char *default_name(const char *to, const struct model *base) {
    if (strcmp(to, "gguf") == 0) return "adapter.gguf";
    if (strcmp(to, "merged") == 0) return base->base->kind == BASE_GGUF ? "merged.gguf" : "merged";
    return strcmp(to, "mlx") == 0 ? "mlx" : "peft";
}

static int export_merged(const char *type, const struct adapter *adapter, const char *out, struct error *err) {
    static const struct {
        const char *name;
        enum quant quant;
    } types[] = {{"f32", QUANT_F32}, {"f16", QUANT_F16}, {"bf16", QUANT_BF16}, {"q8_0", QUANT_Q8_0}};
    if (adapter->model->base->kind == BASE_SAFETENSORS) {
        if (type)
            return error_set(err, STATUS_USAGE,
                             "--type %s: a merged folder keeps the type of each tensor; --type is for a base in GGUF",
                             type);
        return merge_folder_write(out, adapter, cpu_count_available(), err);
    }
    for (size_t i = 0; i < COUNT_OF(types); i++) {
        if (strcmp(type ? type : "f16", types[i].name) == 0)
            return merge_write(out, adapter, types[i].quant, cpu_count_available(), err);
    }
    return error_set(err, STATUS_USAGE, "--type %s: f32, f16, bf16 and q8_0 are known", type);
}

static int export_to(const char *to, const char *type, const struct adapter *adapter, const char *out,
                     struct error *err) {
    if (strcmp(to, "peft") == 0) return peft_write(out, adapter, err);
    if (strcmp(to, "gguf") == 0) return gguf_adapter_write(out, adapter, err);
    if (strcmp(to, "mlx") == 0) return mlx_write(out, adapter, err);
    return export_merged(type, adapter, out, err);
}

int command_export(int argc, char **argv, struct error *err) {
    struct option options[] = {{.name = "--to", .takes_value = true},
                               {.name = "--base", .takes_value = true},
                               {.name = "--out", .takes_value = true},
                               {.name = "--type", .takes_value = true}};
    if (options_parse(&argc, argv, options, COUNT_OF(options), err)) return -1;
    const char *to = option_value(options, "--to"), *type = option_value(options, "--type");
    if (argc != 1 || !to)
        return error_set(err, STATUS_USAGE, "graft export ADAPTER --to peft|gguf|mlx|merged [--base B] [--out PATH]");
    if (strcmp(to, "peft") != 0 && strcmp(to, "gguf") != 0 && strcmp(to, "mlx") != 0 && strcmp(to, "merged") != 0) {
        return error_set(err, STATUS_USAGE, "--to %s: peft, gguf, mlx and merged are known", to);
    }
    struct pool pool = {0};
    struct adapter_base base;
    struct model model = {0};
    struct adapter adapter = {0};
    const char *out = option_value(options, "--out");
    int failed =
        adapter_base_find(argv[0], option_value(options, "--base"), "give --base MODEL.gguf", &pool, &base, err) ||
        base_source_open(&base.source, cpu_count_available(), &model, err) || model_require_weights(&model, err);
    if (!failed && !out) {
        out = default_name(to, &model);
        if (file_is_folder(argv[0])) out = pool_printf(&pool, "%s/%s", argv[0], out);
        if (!out) failed = error_memory(err, "a path", strlen(argv[0]));
    }
    failed = failed || adapter_read(argv[0], &model, &adapter, err) || export_to(to, type, &adapter, out, err);
    if (!failed) printf("%s\n", out);
    adapter_free(&adapter);
    model_close(&model);
    pool_free(&pool);
    return failed ? -1 : 0;
}

// --- verify

struct probe {
    struct dataset data;
    const float **want; // per sample
    struct pool pool;
};

// probe.jsonl as samples whose every token is scored, and the trainer's numbers.
static int read_probe_row(const struct json *row, const struct json_options *where, struct probe *p,
                          struct error *err) {
    const struct json *ids = json_get(row, "ids"), *logp = json_get(row, "logprobs");
    const struct json *places = json_get(row, "position_ids"); // only of rows that were given some
    const char *path = where->name;
    unsigned long long line = where->line;
    size_t n = json_count(ids);
    if (n < 2 || n > 1 << 20 || json_count(logp) != n || (places && json_count(places) != n))
        return error_set(err, STATUS_DATA, "%s:%llu: ids, logprobs and position_ids do not match", path, line);
    int32_t *id = pool_array(&p->pool, n, sizeof *id);
    int32_t *positions = places ? pool_array(&p->pool, n, sizeof *positions) : NULL;
    uint8_t *why = pool_array(&p->pool, n, 1);
    float *want = pool_array(&p->pool, n, sizeof *want);
    if (!id || !why || !want || (places && !positions)) return error_memory(err, "probe rows", n);
    const struct json *a = json_child(ids), *b = json_child(logp), *c = json_child(places);
    for (size_t i = 0; i < n; i++, a = json_next(a), b = json_next(b), c = places ? json_next(c) : NULL) {
        int64_t value, place = 0;
        double number = 0;
        if (!json_int(a, &value) || value < 0 || value > INT32_MAX || (i > 0 && !json_double(b, &number)) ||
            (places && (!json_int(c, &place) || place < 0 || place >= (int64_t)n))) {
            return error_set(err, STATUS_DATA, "%s:%llu: element %zu is not an id with its log-probability", path, line,
                             i);
        }
        id[i] = (int32_t)value;
        want[i] = (float)number;
        why[i] = WHY_LABEL;
        if (places) positions[i] = (int32_t)place;
    }
    p->want[p->data.count] = want;
    p->data.samples[p->data.count++] = (struct sample){.row = (uint32_t)line,
                                                       .count = (int32_t)n,
                                                       .ids = id,
                                                       .why = why,
                                                       .positions = positions,
                                                       .trained = (int32_t)n - 1};
    if ((int32_t)n > p->data.longest) p->data.longest = (int32_t)n;
    return 0;
}

static int read_probe(const char *adapter, const char *path, struct probe *p, struct error *err) {
    enum { MAX_ROWS = 256 };
    struct text text;
    if (file_read(path, 256 << 20, &text, err)) return -1;
    p->data.samples = pool_array(&p->pool, MAX_ROWS, sizeof *p->data.samples);
    p->want = pool_array(&p->pool, MAX_ROWS, sizeof *p->want);
    int failed = p->data.samples && p->want ? 0 : error_memory(err, "probe rows", text.length);
    size_t at = 0;
    for (uint64_t line = 1; at < text.length && !failed; line++) {
        const char *begin = text.data + at, *end = memchr(begin, '\n', text.length - at);
        size_t length = end ? (size_t)(end - begin) : text.length - at;
        at += length + 1;
        struct json_document d;
        struct json_options options = {.name = path, .line = line};
        if (p->data.count == MAX_ROWS)
            failed = error_set(err, STATUS_DATA, "%s: more than %d rows", path, MAX_ROWS);
        else
            failed = json_parse(begin, length, &options, &d, err);
        if (failed) break;
        failed = read_probe_row(d.root, &options, p, err);
        json_free(&d);
    }
    text_free(&text);
    if (!failed && p->data.count == 0)
        failed = error_set(err, STATUS_NOINPUT, "%s: not verifiable: probe.jsonl is empty", adapter);
    return failed;
}

struct difference {
    double largest, sum;
    int64_t tokens;
};

static int compare(struct session *s, const struct probe *p, const char *form, const struct adapter *adapter,
                   struct difference *out, struct error *err);

// Another base gives other numbers whatever the adapter's files hold.
static int check_base(const struct adapter_base *base, const char *adapter, struct error *err) {
    struct model model;
    char hex[2 * SHA256_BYTES + 1];
    if (!base->header_sha256) return 0;
    if (base_source_open(&base->source, cpu_count_available(), &model, err)) return -1;
    if (model_require_weights(&model, err)) {
        model_close(&model);
        return -1;
    }
    sha256_hex(model.header_sha256, hex);
    model_close(&model);
    if (strcmp(hex, base->header_sha256) == 0) return 0;
    return error_set(err, STATUS_INTEGRITY,
                     "%s: not the base that %s was trained on: SHA-256 of its header is %.16s..., run.json says "
                     "%.16s...; the adapter's files were not compared; give the right base with --base",
                     base->source.name, adapter, hex, base->header_sha256);
}

static int check_ids(const struct probe *p, int vocab, struct error *err) {
    for (size_t i = 0; i < p->data.count; i++) {
        const struct sample *s = &p->data.samples[i];
        for (int32_t k = 0; k < s->count; k++) {
            if (s->ids[k] >= vocab)
                return error_set(err, STATUS_DATA, "probe.jsonl:%u: token %d is outside the vocabulary of %d", s->row,
                                 s->ids[k], vocab);
        }
    }
    return 0;
}

// One form of the adapter against the probe; 0 with the figures, or an error.
static int verify_file(const char *path, const char *form, const struct adapter_base *base, const struct probe *p,
                       struct difference *out, struct error *err) {
    struct session s = {0};
    struct adapter adapter = {0};
    struct session_options options = {.base = base->source, .dtype = base->dtype};
    struct text notice = {0}; // a run has said where it computes
    int failed = session_device(CONFIG_DEVICE_AUTO, &options.device, &notice, err) || session_open(&options, &s, err) ||
                 check_ids(p, s.model.arch.vocab, err) || adapter_read(path, &s.model, &adapter, err) ||
                 compare(&s, p, form, &adapter, out, err);
    text_free(&notice);
    adapter_free(&adapter);
    session_close(&s);
    return failed ? -1 : 0;
}

static int score(struct evaluator *e, const struct probe *p, struct difference *out, struct error *err) {
    size_t rows = (size_t)e->buckets[e->n_buckets - 1];
    float *logp = mem_zalloc(rows, sizeof *logp);
    if (!logp) return error_memory(err, "log-probabilities", rows * sizeof *logp);
    int64_t count = loader_count(e->loader, 0, err);
    int failed = count < 0;
    for (int64_t i = 0; i < count && !failed; i++) {
        failed = loader_batch(e->loader, 0, i, &e->batch, err) || evaluator_score(e, 0, logp, err);
        int32_t at = 0;
        for (int32_t q = 0; q < e->batch.n_seqs && !failed; q++) {
            const struct sample *sample = e->batch.samples[q];
            const float *want = p->want[sample - p->data.samples];
            for (int32_t k = 1; k < sample->count; k++) {
                double d = fabs((double)logp[at + k - 1] - (double)want[k]);
                if (!(d <= out->largest)) out->largest = d;
                out->sum += d;
                out->tokens++;
            }
            at += sample->count;
        }
        if (!failed) failed = e->between(e->context, i + 1, count, err);
    }
    mem_free(logp);
    return failed ? -1 : 0;
}

static int compare(struct session *s, const struct probe *p, const char *form, const struct adapter *adapter,
                   struct difference *out, struct error *err) {
    struct evaluator e = {0};
    struct lora lora;
    struct eval_options evaluating = {.batch_size = 1, .sequence_len = p->data.longest};
    struct decoder_limits limits = {0};
    struct adapter *a = (struct adapter *)adapter; // lora_attach borrows it; nothing is downloaded into it here
    struct progress progress = {0};
    *out = (struct difference){0};
    progress_begin(&progress, form);
    if (evaluator_open(s, "verify", &p->data, &evaluating, &e, err)) return -1;
    e.between = progress_show, e.context = &progress;
    evaluator_limits(&e, &limits);
    int failed = session_record(s, &limits, err) || lora_attach(&s->decoder, a, 0, false, false, &lora, err) ||
                 evaluator_record(&e, 0, err) || session_start(s, err) ||
                 lora_attach(&s->decoder, a, 0, false, false, &lora, err) || lora_upload(&lora, err) ||
                 score(&e, p, out, err);
    progress_end(&progress);
    evaluator_close(&e);
    return failed ? -1 : 0;
}

enum { N_FORMS = 2 };

int command_verify(int argc, char **argv, struct error *err) {
    struct option options[] = {{.name = "--base", .takes_value = true}, {.name = "--json"}};
    if (options_parse(&argc, argv, options, COUNT_OF(options), err)) return -1;
    if (argc != 1) return error_set(err, STATUS_USAGE, "graft verify ADAPTER [--base B]");
    static const char *const forms[N_FORMS] = {"adapter_model.safetensors", "adapter.gguf"};
    const double tolerance =
        1e-3; // natural log; the arithmetic is that of the run, threads and instruction sets change no bit
    struct pool pool = {0};
    struct probe probe = {0};
    struct text out = {0};
    struct adapter_base base = {0};
    const char *probe_path = pool_printf(&pool, "%s/probe.jsonl", argv[0]);
    int failed = probe_path ? adapter_base_find(argv[0], option_value(options, "--base"), "give --base MODEL.gguf",
                                                &pool, &base, err)
                            : error_memory(err, "a path", 64);
    if (!failed && !file_exists(probe_path)) {
        failed = error_set(err, STATUS_NOINPUT,
                           "%s: not verifiable: it has no probe.jsonl, which the trainer writes at the end of a run",
                           argv[0]);
    }
    if (!failed) failed = read_probe(argv[0], probe_path, &probe, err) || check_base(&base, argv[0], err);
    struct json_writer w = {.out = &out, .style = JSON_SPACED};
    bool json = option_flag(options, "--json"), good = true;
    int tried = 0;
    if (json) json_begin_object(&w);
    for (int i = 0; i < N_FORMS && !failed; i++) {
        struct difference d = {0};
        const char *path = i == 0 ? argv[0] : pool_printf(&pool, "%s/%s", argv[0], forms[i]);
        const char *file = pool_printf(&pool, "%s/%s", argv[0], forms[i]);
        if (!path || !file)
            failed = error_memory(err, "a path", 64);
        else if (!file_exists(file))
            continue;
        else
            failed = verify_file(path, forms[i], &base, &probe, &d, err);
        if (failed) break;
        tried++;
        bool ok = d.largest <= tolerance;
        good &= ok;
        if (json) {
            json_put_key(&w, forms[i]);
            json_begin_object(&w);
            json_put_key(&w, "tokens");
            json_put_int(&w, d.tokens);
            json_put_key(&w, "largest");
            json_put_double(&w, d.largest);
            json_put_key(&w, "mean");
            json_put_double(&w, d.sum / (double)d.tokens);
            json_end_object(&w);
        } else {
            text_printf(&out, "%-26s %s  %lld tokens, |log-probability difference| mean %.2e, largest %.2e\n", forms[i],
                        ok ? "ok  " : "FAIL", (long long)d.tokens, d.sum / (double)d.tokens, d.largest);
        }
    }
    if (json) {
        json_end_object(&w);
        text_char(&out, '\n');
    }
    if (!failed && tried == 0)
        failed = error_set(err, STATUS_NOINPUT, "%s: neither %s nor %s is there: nothing to verify", argv[0], forms[0],
                           forms[1]);
    if (!failed) failed = print_result(&out, err);
    if (!failed && !good)
        failed = error_set(err, STATUS_INTEGRITY, "%s: a file does not give the trainer's log-probabilities", argv[0]);
    text_free(&out);
    pool_free(&probe.pool);
    pool_free(&pool);
    return failed;
}
