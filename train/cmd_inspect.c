// graft inspect: what a file or folder is.
#include "data/json.h"
#include "data/jsonl.h"
#include "model/gguf.h"
#include "model/hub_cache.h"
#include "model/safetensors.h"
#include "train/checkpoint.h"
#include "train/command.h"
#include "train/inspect.h"
#include "train/path_kind.h"

#include <stdio.h>
#include <string.h>

void report_field(struct report *r, const char *key, const char *value) {
    if (r->json) {
        json_put_key(&r->w, key);
        json_put_string(&r->w, value);
    } else
        text_printf(r->out, "%-12s %s\n", key, value);
}

void report_number(struct report *r, const char *key, uint64_t value) {
    if (r->json) {
        json_put_key(&r->w, key);
        json_put_int(&r->w, (int64_t)value);
    } else
        text_printf(r->out, "%-12s %llu\n", key, (unsigned long long)value);
}

void report_begin(struct report *r, const char *key) {
    if (!r->json) {
        text_printf(r->out, "\n%s\n", key);
        return;
    }
    json_put_key(&r->w, key);
    json_begin_object(&r->w);
}

void report_end(struct report *r) {
    if (r->json) json_end_object(&r->w);
}

void report_amount(struct report *r, const char *key, uint64_t tensors, uint64_t bytes) {
    char value[80];
    if (tensors == 0) return;
    bool small = bytes < 1 << 20;
    snprintf(value, sizeof value, "%llu tensors, %.1f %s", (unsigned long long)tensors,
             (double)bytes / (small ? 1024 : 1048576), small ? "KiB" : "MiB");
    report_field(r, key, value);
}

// A value of a GGUF key for people: numbers as they are, long strings and arrays cut.
static void gguf_value(const struct gguf *g, const struct gguf_kv *kv, struct text *out) {
    struct vocab_string s;
    int64_t i;
    double d;
    bool b;
    if (kv->type == GGUF_STRING && gguf_get_string(g, kv->key, &s, NULL) > 0) {
        size_t n = s.length > 60 ? 60 : s.length;
        for (size_t k = 0; k < n; k++) text_char(out, (unsigned char)s.bytes[k] < 32 ? ' ' : s.bytes[k]);
        if (n < s.length) text_printf(out, "... (%zu bytes)", s.length);
    } else if (kv->type == GGUF_ARRAY)
        text_printf(out, "%llu x %s", (unsigned long long)kv->count, gguf_type_name(kv->element));
    else if (kv->type == GGUF_BOOL && gguf_get_bool(g, kv->key, &b, NULL) > 0)
        text_add(out, b ? "true" : "false");
    else if (gguf_get_int(g, kv->key, INT64_MIN, INT64_MAX, &i, NULL) > 0)
        text_printf(out, "%lld", (long long)i);
    else if (gguf_get_float(g, kv->key, &d, NULL) > 0)
        text_printf(out, "%g", d);
    else
        text_add(out, "?");
}

static int inspect_gguf(struct report *r, const char *path, struct error *err) {
    struct gguf g;
    struct text value = {0};
    if (gguf_open(path, &g, err)) return -1;
    struct vocab_string type = {"model", 5};
    gguf_get_string(&g, "general.type", &type, NULL);
    report_field(r, "kind", type.length == 7 && memcmp(type.bytes, "adapter", 7) == 0 ? "GGUF adapter" : "GGUF model");
    report_number(r, "version", g.version);
    report_number(r, "bytes", g.size);
    if (gguf_find(&g, "split.count") && inspect_parts(r, path, err)) {
        gguf_close(&g);
        return -1;
    }
    report_number(r, "tensors", g.n_tensors);
    uint64_t parameters = 0, bytes[64] = {0}, counts[64] = {0};
    for (size_t i = 0; i < g.n_tensors; i++) {
        const struct gguf_tensor *t = &g.tensors[i];
        parameters += (uint64_t)t->ne[0] * (uint64_t)t->ne[1] * (uint64_t)t->ne[2] * (uint64_t)t->ne[3];
        if (t->ggml_type < 64) bytes[t->ggml_type] += t->bytes, counts[t->ggml_type]++;
    }
    report_number(r, "parameters", parameters);
    report_begin(r, "types");
    for (int i = 0; i < 64; i++) {
        report_amount(r, quant_ggml_type_name(i), counts[i], bytes[i]);
    }
    report_end(r);
    report_begin(r, "keys");
    for (size_t i = 0; i < g.n_kv; i++) {
        text_clear(&value);
        gguf_value(&g, &g.kv[i], &value);
        report_field(r, g.kv[i].key, text_str(&value));
    }
    report_end(r);
    if (r->tensors) {
        report_begin(r, "tensor list");
        for (size_t i = 0; i < g.n_tensors; i++) {
            const struct gguf_tensor *t = &g.tensors[i];
            text_clear(&value);
            text_printf(&value, "%s", quant_ggml_type_name(t->ggml_type));
            for (int d = t->n_dims - 1; d >= 0; d--)
                text_printf(&value, "%s%lld", d == t->n_dims - 1 ? " " : " x ", (long long)t->ne[d]);
            report_field(r, t->name, text_str(&value));
        }
        report_end(r);
    }
    text_free(&value);
    gguf_close(&g);
    return 0;
}

static int inspect_safetensors(struct report *r, const char *path, struct error *err) {
    struct safetensors f;
    struct text value = {0};
    if (safetensors_open(path, &f, err)) return -1;
    uint64_t bytes[ST_DTYPES] = {0}, counts[ST_DTYPES] = {0}, parameters = 0;
    for (size_t i = 0; i < f.n_entries; i++) {
        const struct safetensors_entry *e = &f.entries[i];
        bytes[e->dtype] += e->bytes, counts[e->dtype]++;
        parameters += e->bytes * 8 / (uint64_t)safetensors_dtype_bits(e->dtype);
    }
    report_field(r, "kind", "safetensors");
    report_number(r, "tensors", f.n_entries);
    report_number(r, "parameters", parameters);
    report_begin(r, "types");
    for (int i = 0; i < ST_DTYPES; i++) {
        report_amount(r, safetensors_dtype_name(i), counts[i], bytes[i]);
    }
    report_end(r);
    if (r->tensors) {
        report_begin(r, "tensor list");
        for (size_t i = 0; i < f.n_entries; i++) {
            const struct safetensors_entry *e = &f.entries[i];
            text_clear(&value);
            text_add(&value, safetensors_dtype_name(e->dtype));
            for (int d = 0; d < e->n_dims; d++) text_printf(&value, "%s%lld", d ? " x " : " ", (long long)e->shape[d]);
            report_field(r, e->name, text_str(&value));
        }
        report_end(r);
    }
    text_free(&value);
    safetensors_close(&f);
    return 0;
}

static void scalar(struct report *r, const char *key, const struct json *v) {
    enum json_type type = v ? json_type(v) : JSON_NULL;
    int64_t whole;
    if (type == JSON_NULL || type == JSON_OBJECT) return;
    if (type == JSON_STRING && strchr(json_string(v, NULL), '\n')) return;
    if (json_int(v, &whole) && whole >= 0) {
        report_number(r, key, (uint64_t)whole);
        return;
    }
    struct text value = {0};
    struct json_writer w = {.out = &value, .style = JSON_SPACED};
    if (type == JSON_STRING)
        text_add(&value, json_string(v, NULL));
    else
        json_put_value(&w, v);
    report_field(r, key, text_str(&value));
    text_free(&value);
}

static void scalars(struct report *r, const struct json *object) {
    for (const struct json *v = json_child(object); v; v = json_next(v)) scalar(r, json_key(v, NULL), v);
}

static int scalars_of(struct report *r, const char *path, struct error *err) {
    struct json_document d;
    if (json_load(path, 16 << 20, NULL, &d, err)) return -1;
    scalars(r, d.root);
    json_free(&d);
    return 0;
}

static int inspect_manifest(struct report *r, const char *path, struct error *err) {
    struct json_document d;
    if (json_load(path, 16 << 20, NULL, &d, err)) return -1;
    scalars(r, d.root);
    const struct json *base = json_get(d.root, "base"), *data = json_get(d.root, "data");
    scalar(r, "base", json_get(base, "name"));
    scalar(r, "base file", json_get(base, "path"));
    scalar(r, "base type", json_get(base, "file_type"));
    scalar(r, "rows", json_get(data, "rows"));
    scalar(r, "held-out rows", json_get(data, "held_out_rows"));
    json_free(&d);
    return 0;
}

// A figure of a log: its first and last value and the least.
struct figure {
    size_t count;
    double first, last, least;
};

static void follow(struct figure *f, const struct json *value) {
    double x;
    if (!json_double(value, &x)) return;
    if (f->count++ == 0) f->first = f->least = x;
    f->last = x;
    if (x < f->least) f->least = x;
}

static void say_figure(struct report *r, const char *key, const struct figure *f) {
    if (f->count == 0) return;
    if (!r->json) {
        text_printf(r->out, "%-12s %.4f at first, %.4f at last, %.4f at least\n", key, f->first, f->last, f->least);
        return;
    }
    const struct {
        const char *key;
        double value;
    } members[] = {{"first", f->first}, {"last", f->last}, {"least", f->least}};
    json_put_key(&r->w, key);
    json_begin_object(&r->w);
    for (size_t i = 0; i < COUNT_OF(members); i++) {
        json_put_key(&r->w, members[i].key);
        json_put_double(&r->w, members[i].value);
    }
    json_end_object(&r->w);
}

static int inspect_log(struct report *r, const char *path, struct error *err) {
    struct mapped_file file;
    struct jsonl reader;
    struct json_document row;
    struct figure step = {0}, loss = {0}, eval = {0};
    struct error bad = {0};
    uint64_t lines = 0;
    double tokens = 0, x;
    if (file_map(path, &file, err)) return -1;
    jsonl_start(&reader, path, file.data, file.size);
    enum jsonl_result result;
    while ((result = jsonl_next(&reader, &row, &bad)) == JSONL_ROW) {
        lines++;
        follow(&step, json_get(row.root, "step"));
        follow(&loss, json_get(row.root, "loss"));
        follow(&eval, json_get(row.root, "eval_loss"));
        if (json_double(json_get(row.root, "tokens"), &x)) tokens += x;
        json_free(&row);
    }
    bool cut = result == JSONL_BAD && reader.at >= file.size && file.data[file.size - 1] != '\n';
    file_unmap(&file);
    if (result != JSONL_END && !cut) return error_set(err, bad.code, "%s", bad.text);
    if (lines && !step.count) return error_set(err, STATUS_DATA, "%s: no line has a step: not the log of a run", path);
    report_number(r, "lines", lines);
    if (cut) report_field(r, "last line", "cut: the run was stopped while it wrote; resuming removes it");
    if (step.count) report_number(r, "last step", (uint64_t)step.last);
    report_number(r, "tokens", (uint64_t)tokens);
    say_figure(r, "loss", &loss);
    say_figure(r, "eval_loss", &eval);
    return 0;
}

static int part(struct report *r, const char *folder, const char *name,
                int (*inspect)(struct report *, const char *, struct error *), struct error *err) {
    if (!folder_has(folder, name)) return 0;
    char *path = path_join(folder, name);
    if (!path) return error_memory(err, "a path", strlen(folder));
    report_begin(r, name);
    int failed = inspect(r, path, err);
    report_end(r);
    mem_free(path);
    return failed;
}

static int inspect_adapter(struct report *r, const char *folder, struct error *err) {
    int failed = part(r, folder, "adapter_config.json", scalars_of, err) ||
                 part(r, folder, "adapter_model.safetensors", inspect_safetensors, err) ||
                 part(r, folder, "adapters.safetensors", inspect_safetensors, err);
    return failed ? -1 : 0;
}

static int inspect_adapter_folder(struct report *r, const char *folder, struct error *err) {
    bool gguf = folder_has(folder, "adapter.gguf"), mlx = folder_has(folder, "adapters.safetensors");
    bool only_gguf = gguf && !folder_has(folder, "adapter_config.json");
    report_field(r, "kind", only_gguf ? "GGUF adapter folder" : mlx ? "MLX adapter" : "PEFT adapter");
    if (inspect_adapter(r, folder, err)) return -1;
    return part(r, folder, "adapter.gguf", inspect_gguf, err);
}

static int inspect_checkpoint(struct report *r, const char *folder, struct error *err) {
    int64_t step;
    struct error bad = {0};
    report_field(r, "kind", "checkpoint");
    if (checkpoint_verify(folder, &step, &bad))
        report_field(r, "verified", bad.text);
    else
        report_number(r, "step", (uint64_t)step);
    if (part(r, folder, "state.json", scalars_of, err)) return -1;
    return inspect_adapter(r, folder, err);
}

static int inspect_run(struct report *r, const char *folder, struct error *err) {
    char **names;
    size_t count;
    if (run_checkpoints(folder, &names, &count, err)) return -1;
    report_field(r, "kind", "run");
    report_number(r, "checkpoints", count);
    if (count) report_field(r, "newest", names[count - 1]);
    file_list_free(names, count);
    if (part(r, folder, "run.json", inspect_manifest, err) || part(r, folder, "log.jsonl", inspect_log, err)) return -1;
    return inspect_adapter(r, folder, err);
}

static int inspect_path(struct report *r, const char *path, const char *revision, struct error *err) {
    enum path_kind kind;
    struct pool pool = {0};
    if (!file_exists(path) && hub_is_name(path)) {
        int status = hub_find(path, revision, &pool, &path, err);
        if (status == 0) report_field(r, "found", path);
        if (status == 0) status = inspect_path(r, path, NULL, err);
        pool_free(&pool);
        return status;
    }
    if (path_kind_of(path, &kind, err)) return -1;
    switch (kind) {
    case PATH_GGUF: return inspect_gguf(r, path, err);
    case PATH_SAFETENSORS: return inspect_safetensors(r, path, err);
    case PATH_RUN_MANIFEST: report_field(r, "kind", "run manifest"); return inspect_manifest(r, path, err);
    case PATH_LOG: report_field(r, "kind", "log of a run"); return inspect_log(r, path, err);
    case PATH_ADAPTER: return inspect_adapter_folder(r, path, err);
    case PATH_CHECKPOINT: return inspect_checkpoint(r, path, err);
    case PATH_RUN: return inspect_run(r, path, err);
    case PATH_BASE: return inspect_base(r, path, err);
    }
    return error_set(err, STATUS_INTERNAL, "%s: kind %d", path, (int)kind);
}

int command_inspect(int argc, char **argv, struct error *err) {
    struct option options[] = {{.name = "--json"}, {.name = "--tensors"}, {.name = "--revision", .takes_value = true}};
    if (options_parse(&argc, argv, options, COUNT_OF(options), err)) return -1;
    if (argc != 1) return error_set(err, STATUS_USAGE, "graft inspect PATH");
    struct text out = {0};
    struct report r = {
        .out = &out, .json = option_flag(options, "--json"), .tensors = option_flag(options, "--tensors")};
    r.w = (struct json_writer){.out = &out, .style = JSON_PRETTY};
    if (r.json) json_begin_object(&r.w);
    int failed = inspect_path(&r, argv[0], option_value(options, "--revision"), err);
    if (r.json) {
        json_end_object(&r.w);
        text_char(&out, '\n');
    }
    if (!failed) failed = print_result(&out, err);
    text_free(&out);
    return failed;
}
