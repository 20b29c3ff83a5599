// graft inspect: what a file or folder is.
#include "data/json.h"
#include "model/gguf.h"
#include "model/safetensors.h"
#include "train/checkpoint.h"
#include "train/command.h"

#include <stdio.h>
#include <string.h>

struct report {
    struct text *out;
    bool json, tensors;
    struct json_writer w;
};

static void field(struct report *r, const char *key, const char *value) {
    if (r->json) {
        json_put_key(&r->w, key);
        json_put_string(&r->w, value);
    } else
        text_printf(r->out, "%-12s %s\n", key, value);
}

static void number(struct report *r, const char *key, uint64_t value) {
    if (r->json) {
        json_put_key(&r->w, key);
        json_put_int(&r->w, (int64_t)value);
    } else
        text_printf(r->out, "%-12s %llu\n", key, (unsigned long long)value);
}

static void begin_list(struct report *r, const char *key) {
    if (!r->json) {
        text_printf(r->out, "\n%s\n", key);
        return;
    }
    json_put_key(&r->w, key);
    json_begin_object(&r->w);
}

static void end_list(struct report *r) {
    if (r->json) json_end_object(&r->w);
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
    field(r, "kind", type.length == 7 && memcmp(type.bytes, "adapter", 7) == 0 ? "GGUF adapter" : "GGUF model");
    number(r, "version", g.version);
    number(r, "bytes", g.size);
    number(r, "tensors", g.n_tensors);
    uint64_t parameters = 0, bytes[64] = {0}, counts[64] = {0};
    for (size_t i = 0; i < g.n_tensors; i++) {
        const struct gguf_tensor *t = &g.tensors[i];
        parameters += (uint64_t)t->ne[0] * (uint64_t)t->ne[1] * (uint64_t)t->ne[2] * (uint64_t)t->ne[3];
        if (t->ggml_type < 64) bytes[t->ggml_type] += t->bytes, counts[t->ggml_type]++;
    }
    number(r, "parameters", parameters);
    begin_list(r, "types");
    for (int i = 0; i < 64; i++) {
        if (!counts[i]) continue;
        text_clear(&value);
        text_printf(&value, "%llu tensors, %.1f MiB", (unsigned long long)counts[i], (double)bytes[i] / 1048576);
        field(r, quant_ggml_type_name(i), text_str(&value));
    }
    end_list(r);
    begin_list(r, "keys");
    for (size_t i = 0; i < g.n_kv; i++) {
        text_clear(&value);
        gguf_value(&g, &g.kv[i], &value);
        field(r, g.kv[i].key, text_str(&value));
    }
    end_list(r);
    if (r->tensors) {
        begin_list(r, "tensor list");
        for (size_t i = 0; i < g.n_tensors; i++) {
            const struct gguf_tensor *t = &g.tensors[i];
            text_clear(&value);
            text_printf(&value, "%s", quant_ggml_type_name(t->ggml_type));
            for (int d = t->n_dims - 1; d >= 0; d--)
                text_printf(&value, "%s%lld", d == t->n_dims - 1 ? " " : " x ", (long long)t->ne[d]);
            field(r, t->name, text_str(&value));
        }
        end_list(r);
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
    field(r, "kind", "safetensors");
    number(r, "tensors", f.n_entries);
    number(r, "parameters", parameters);
    begin_list(r, "types");
    for (int i = 0; i < ST_DTYPES; i++) {
        if (!counts[i]) continue;
        text_clear(&value);
        text_printf(&value, "%llu tensors, %.1f MiB", (unsigned long long)counts[i], (double)bytes[i] / 1048576);
        field(r, safetensors_dtype_name(i), text_str(&value));
    }
    end_list(r);
    if (r->tensors) {
        begin_list(r, "tensor list");
        for (size_t i = 0; i < f.n_entries; i++) {
            const struct safetensors_entry *e = &f.entries[i];
            text_clear(&value);
            text_add(&value, safetensors_dtype_name(e->dtype));
            for (int d = 0; d < e->n_dims; d++) text_printf(&value, "%s%lld", d ? " x " : " ", (long long)e->shape[d]);
            field(r, e->name, text_str(&value));
        }
        end_list(r);
    }
    text_free(&value);
    safetensors_close(&f);
    return 0;
}

// Top-level scalars of a JSON file of a folder, as fields.
static int scalars_of(struct report *r, const char *path, struct error *err) {
    struct json_document d;
    struct text value = {0};
    if (json_load(path, 16 << 20, NULL, &d, err)) return -1;
    for (const struct json *v = json_child(d.root); v; v = json_next(v)) {
        enum json_type type = json_type(v);
        if (type == JSON_NULL || type == JSON_OBJECT) continue;
        if (type == JSON_STRING && strchr(json_string(v, NULL), '\n')) continue;
        text_clear(&value);
        if (type == JSON_STRING)
            text_add(&value, json_string(v, NULL));
        else {
            struct json_writer w = {.out = &value, .style = JSON_SPACED};
            json_put_value(&w, v);
        }
        field(r, json_key(v, NULL), text_str(&value));
    }
    text_free(&value);
    json_free(&d);
    return 0;
}

static bool has(const char *folder, const char *name) {
    char *path = path_join(folder, name);
    bool found = path && file_exists(path);
    mem_free(path);
    return found;
}

static int part(struct report *r, const char *folder, const char *name,
                int (*inspect)(struct report *, const char *, struct error *), struct error *err) {
    if (!has(folder, name)) return 0;
    char *path = path_join(folder, name);
    if (!path) return error_memory(err, "a path", strlen(folder));
    begin_list(r, name);
    int failed = inspect(r, path, err);
    end_list(r);
    mem_free(path);
    return failed;
}

static int inspect_folder(struct report *r, const char *folder, struct error *err) {
    bool run = has(folder, "run.json"), checkpoint = has(folder, "manifest.json"),
         adapter = has(folder, "adapter_config.json");
    if (!run && !checkpoint && !adapter)
        return error_set(err, STATUS_DATA, "%s: not a run, a checkpoint or an adapter folder", folder);
    field(r, "kind", run ? "run" : checkpoint ? "checkpoint" : "PEFT adapter");
    if (checkpoint) {
        int64_t step;
        struct error bad = {0};
        if (checkpoint_verify(folder, &step, &bad))
            field(r, "verified", bad.text);
        else
            number(r, "step", (uint64_t)step);
    }
    if (part(r, folder, "run.json", scalars_of, err) || part(r, folder, "state.json", scalars_of, err) ||
        part(r, folder, "adapter_config.json", scalars_of, err)) {
        return -1;
    }
    return part(r, folder, "adapter_model.safetensors", inspect_safetensors, err);
}

int command_inspect(int argc, char **argv, struct error *err) {
    struct option options[] = {{.name = "--json"}, {.name = "--tensors"}};
    if (options_parse(&argc, argv, options, COUNT_OF(options), err)) return -1;
    if (argc != 1) return error_set(err, STATUS_USAGE, "graft inspect PATH");
    struct text out = {0};
    struct report r = {
        .out = &out, .json = option_flag(options, "--json"), .tensors = option_flag(options, "--tensors")};
    r.w = (struct json_writer){.out = &out, .style = JSON_PRETTY};
    if (r.json) json_begin_object(&r.w);
    int failed;
    struct mapped_file head = {0};
    if (file_is_folder(argv[0]))
        failed = inspect_folder(&r, argv[0], err);
    else if (file_map(argv[0], &head, err))
        failed = -1;
    else {
        bool gguf = head.size >= 4 && memcmp(head.data, "GGUF", 4) == 0;
        file_unmap(&head);
        failed = gguf ? inspect_gguf(&r, argv[0], err) : inspect_safetensors(&r, argv[0], err);
    }
    if (r.json) {
        json_end_object(&r.w);
        text_char(&out, '\n');
    }
    if (!failed) failed = print_result(&out, err);
    text_free(&out);
    return failed;
}
