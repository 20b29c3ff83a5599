// See health.h.
#include "train/health.h"

#include "data/json.h"
#include "data/jsonl.h"
#include "kernels/tensor.h"
#include "model/gguf.h"
#include "model/safetensors.h"
#include "train/checkpoint.h"
#include "model/base_files.h"
#include "model/model.h"
#include "train/path_kind.h"

#include <math.h>
#include <string.h>

enum { CHUNK = 4096 }; // elements decoded at a time; a multiple of every block

// What was found about one part; `said` describes it when it is whole.
struct part {
    const char *path;
    const char *sha256; // recorded, NULL = none
    struct text *said;
    struct error *err;
};

// --- Numbers

// Tensors of a file whose numbers were looked at, and those of types without a decoder.
struct scan {
    size_t tensors, skipped;
};

static int check_finite(const struct part *p, const char *name, const float *values, size_t count, uint64_t first) {
    for (size_t i = 0; i < count; i++) {
        if (isfinite(values[i])) continue;
        return error_set(p->err, STATUS_DATA, "%s: tensor '%.200s' is %g at element %llu: the file is damaged", p->path,
                         name, (double)values[i], (unsigned long long)(first + i));
    }
    return 0;
}

static void say_scan(const struct part *p, const char *what, const struct scan *scan) {
    text_printf(p->said, "%s, %zu tensors, all values finite", what, scan->tensors);
    if (scan->skipped) text_printf(p->said, " (%zu of types without a decoder: not looked at)", scan->skipped);
}

static int scan_gguf(const struct part *p, const struct gguf_tensor *t, struct scan *scan) {
    const struct quant_format *f = quant_by_ggml_type(t->ggml_type);
    float values[CHUNK];
    scan->tensors++;
    if (!f) {
        scan->skipped++;
        return 0;
    }
    uint64_t total = t->bytes / (uint64_t)f->block_bytes * (uint64_t)f->block;
    for (uint64_t at = 0; at < total; at += CHUNK) {
        size_t n = total - at < CHUNK ? (size_t)(total - at) : CHUNK;
        f->decode(t->data + at / (uint64_t)f->block * (uint64_t)f->block_bytes, values, (int64_t)n);
        if (check_finite(p, t->name, values, n, at)) return -1;
    }
    return 0;
}

static int check_gguf(const struct part *p) {
    struct gguf g;
    struct scan scan = {0};
    if (gguf_open(p->path, &g, p->err)) return -1;
    int failed = 0;
    for (size_t i = 0; i < g.n_tensors && !failed; i++) failed = scan_gguf(p, &g.tensors[i], &scan);
    struct vocab_string type = {"model", 5};
    gguf_get_string(&g, "general.type", &type, NULL);
    bool adapter = type.length == 7 && memcmp(type.bytes, "adapter", 7) == 0;
    if (!failed) say_scan(p, adapter ? "GGUF adapter" : "GGUF", &scan);
    gguf_close(&g);
    return failed;
}

static int scan_entry(const struct part *p, const struct safetensors_entry *e, struct scan *scan) {
    static const uint8_t float_bytes[ST_DTYPES] = {[ST_F16] = 2, [ST_BF16] = 2, [ST_F32] = 4, [ST_F64] = 8};
    static const bool whole[ST_DTYPES] = {
        [ST_BOOL] = true, [ST_U8] = true,  [ST_I8] = true,  [ST_I16] = true, [ST_U16] = true,
        [ST_I32] = true,  [ST_U32] = true, [ST_I64] = true, [ST_U64] = true};
    uint64_t size = float_bytes[e->dtype];
    float values[CHUNK];
    scan->tensors++;
    if (size == 0) {
        scan->skipped += !whole[e->dtype];
        return 0;
    }
    for (uint64_t at = 0; at < e->bytes / size; at += CHUNK) {
        size_t n = e->bytes / size - at < CHUNK ? (size_t)(e->bytes / size - at) : CHUNK;
        for (size_t i = 0; i < n; i++) {
            const uint8_t *bytes = e->data + (at + i) * size;
            uint16_t half;
            double wide;
            memcpy(&half, bytes, sizeof half);
            if (e->dtype == ST_F32)
                memcpy(&values[i], bytes, sizeof values[i]);
            else if (e->dtype == ST_F64) // beyond float's range is no fault
                memcpy(&wide, bytes, sizeof wide), values[i] = isfinite(wide) ? 0 : (float)wide;
            else
                values[i] = e->dtype == ST_F16 ? f16_to_float(half) : bf16_to_float(half);
        }
        if (check_finite(p, e->name, values, n, at)) return -1;
    }
    return 0;
}

// Every lora_A has a lora_B of the same rank and the other way round.
static int check_halves(const struct part *p, const struct safetensors *file) {
    static const char *const ends[] = {".lora_A.weight", ".lora_B.weight"};
    for (size_t i = 0; i < file->n_entries; i++) {
        const struct safetensors_entry *e = &file->entries[i];
        size_t length = strlen(e->name), n = strlen(ends[0]);
        char other[ST_MAX_NAME + 1];
        int half = -1;
        for (int h = 0; h < 2 && length > n && length < sizeof other; h++) {
            if (strcmp(e->name + length - n, ends[h]) == 0) half = h;
        }
        if (half < 0) continue;
        memcpy(other, e->name, length - n);
        memcpy(other + length - n, ends[1 - half], n + 1);
        const struct safetensors_entry *o = safetensors_find(file, other);
        if (!o) return error_set(p->err, STATUS_DATA, "%s: '%s' without '%s'", p->path, e->name, other);
        if (e->n_dims != 2 || o->n_dims != 2 || e->shape[half] != o->shape[1 - half]) {
            return error_set(p->err, STATUS_DATA, "%s: '%s' and its other half are not of one rank", p->path, e->name);
        }
    }
    return 0;
}

static int check_safetensors(const struct part *p) {
    struct safetensors file;
    struct scan scan = {0};
    if (safetensors_open(p->path, &file, p->err)) return -1;
    int failed = check_halves(p, &file);
    for (size_t i = 0; i < file.n_entries && !failed; i++) failed = scan_entry(p, &file.entries[i], &scan);
    if (!failed) say_scan(p, "safetensors", &scan);
    safetensors_close(&file);
    return failed;
}

// --- Text files

enum { CONFIG_BYTES = 1 << 20, RUN_BYTES = 16 << 20 };

// PEFT's configuration, or MLX's of the same name, which has no peft_type.
static int check_config(const struct part *p) {
    struct json_document d;
    const char *type = NULL;
    int64_t r = 0;
    double alpha = 0;
    if (json_load(p->path, CONFIG_BYTES, NULL, &d, p->err)) return -1;
    int failed = 0;
    if (json_get(d.root, "lora_parameters") && !json_get(d.root, "peft_type"))
        text_add(p->said, "MLX configuration");
    else if (json_get_string(d.root, "peft_type", JSON_REQUIRED, &type, NULL, p->err) ||
             json_get_int(d.root, "r", JSON_REQUIRED, &r, p->err) ||
             json_get_double(d.root, "lora_alpha", JSON_REQUIRED, &alpha, p->err))
        failed = error_prefix(p->err, "%s", p->path);
    else if (r < 1 || alpha == 0)
        failed = error_set(p->err, STATUS_DATA, "%s: r is %lld and lora_alpha %g", p->path, (long long)r, alpha);
    else
        text_printf(p->said, "PEFT configuration, %.40s, r %lld, alpha %g", type, (long long)r, alpha);
    json_free(&d);
    return failed;
}

static int check_manifest(const struct part *p) {
    struct json_document d;
    int64_t step = 0, steps = 0;
    const char *status = NULL;
    if (json_load(p->path, RUN_BYTES, NULL, &d, p->err)) return -1;
    int failed = json_get_string(d.root, "status", JSON_REQUIRED, &status, NULL, p->err) ||
                 json_get_int(d.root, "step", JSON_REQUIRED, &step, p->err) ||
                 json_get_int(d.root, "steps", JSON_REQUIRED, &steps, p->err);
    if (failed)
        error_prefix(p->err, "%s", p->path);
    else
        text_printf(p->said, "run, %.40s, step %lld of %lld", status, (long long)step, (long long)steps);
    json_free(&d);
    return failed ? -1 : 0;
}

// A line that has no end yet is what a killed run leaves; resuming removes it.
static int check_log(const struct part *p) {
    struct mapped_file file;
    struct jsonl reader;
    struct json_document row;
    size_t lines = 0;
    if (file_map(p->path, &file, p->err)) return -1;
    jsonl_start(&reader, p->path, file.data, file.size);
    enum jsonl_result result;
    while ((result = jsonl_next(&reader, &row, p->err)) == JSONL_ROW) {
        lines++;
        json_free(&row);
    }
    bool cut = result == JSONL_BAD && reader.at >= file.size && file.data[file.size - 1] != '\n';
    file_unmap(&file);
    if (result != JSONL_END && !cut) return -1;
    text_printf(p->said, "log of %zu lines%s", lines, cut ? " and one that was cut" : "");
    return 0;
}

static int check_checkpoint(const struct part *p) {
    int64_t step;
    if (checkpoint_verify(p->path, &step, p->err)) return -1;
    text_printf(p->said, "checkpoint of step %lld, every file is whole", (long long)step);
    return 0;
}

// --- Parts

static int check_hash(const struct part *p) {
    uint8_t digest[SHA256_BYTES];
    char hex[2 * SHA256_BYTES + 1];
    if (sha256_file(p->path, digest, NULL, p->err)) {
        if (p->err->code == STATUS_NOINPUT) p->err->code = STATUS_INTEGRITY;
        return -1;
    }
    sha256_hex(digest, hex);
    if (strcmp(hex, p->sha256) == 0) {
        text_add(p->said, "SHA-256 as in run.json; ");
        return 0;
    }
    return error_set(p->err, STATUS_INTEGRITY, "%s: its SHA-256 is not the one in run.json: the file was changed",
                     p->path);
}

struct health {
    struct text *out;
    int parts, bad;
    struct error first;
};

// Checks one part and writes its line. -1 only when the check itself could not be made.
static int look(struct health *h, const char *path, const char *name, const char *sha256,
                int (*check)(const struct part *p), struct error *err) {
    struct text said = {0};
    struct error reason = {0};
    struct part p = {.path = path, .sha256 = sha256, .said = &said, .err = &reason};
    int failed = (sha256 && check_hash(&p)) || (check && check(&p));
    if (failed && (reason.code == STATUS_MEMORY || reason.code == STATUS_INTERNAL)) {
        text_free(&said);
        return error_set(err, reason.code, "%s", reason.text);
    }
    h->parts++;
    h->bad += failed;
    if (failed && (!h->first.code || (reason.code == STATUS_INTEGRITY && h->first.code != STATUS_INTEGRITY)))
        h->first = reason;
    text_printf(h->out, "%s %s: %s\n", failed ? "BAD " : "ok  ", name, failed ? reason.text : text_str(&said));
    text_free(&said);
    return 0;
}

static int look_inside(struct health *h, const char *folder, const char *name, const char *sha256,
                       int (*check)(const struct part *p), struct error *err) {
    char *path = path_join(folder, name);
    int failed = path ? look(h, path, name, sha256, check, err) : error_memory(err, "a path", strlen(folder));
    mem_free(path);
    return failed;
}

// `hashes` NULL = none were recorded. A recorded file that is gone is looked for, and missed.
static int look_at_adapter(struct health *h, const char *folder, const struct json *hashes, struct error *err) {
    static const struct {
        const char *name, *beside; // needed when `beside` is there
        int (*check)(const struct part *p);
    } files[] = {{"adapter_config.json", "adapter_model.safetensors", check_config},
                 {"adapter_model.safetensors", "adapter_config.json", check_safetensors},
                 {"adapters.safetensors", NULL, check_safetensors},
                 {"adapter.gguf", NULL, check_gguf}};
    bool mlx = folder_has(folder, "adapters.safetensors");
    for (size_t i = 0; i < COUNT_OF(files); i++) {
        const char *sha256 = json_string(json_get(hashes, files[i].name), NULL);
        bool needed = sha256 || (!mlx && files[i].beside && folder_has(folder, files[i].beside));
        if (!needed && !folder_has(folder, files[i].name)) continue;
        if (look_inside(h, folder, files[i].name, sha256, files[i].check, err)) return -1;
    }
    return 0;
}

static int check_base(const struct part *p) {
    struct model m;
    if (model_open(p->path, NULL, &m, p->err)) return -1;
    text_printf(p->said, "%s, %.1f M parameters, %s", m.arch.model_type, (double)m.total_parameters / 1e6,
                model_has_weights(&m) ? "every tensor has its place" : "shapes without weights");
    model_close(&m);
    return 0;
}

static int look_at_base(struct health *h, const char *path, struct error *err) {
    struct base b;
    int failed = look(h, path, "base", NULL, check_base, err);
    if (failed || base_open(path, &b, NULL)) return failed;
    for (int i = 0; i < b.n_shards && !failed; i++) {
        const char *file = b.shards[i].file.path, *slash = strrchr(file, '/');
        failed = look(h, file, slash ? slash + 1 : file, NULL, check_safetensors, err);
    }
    base_close(&b);
    return failed;
}

static int look_at_run(struct health *h, const char *folder, struct error *err) {
    struct json_document d = {0};
    char *path = path_join(folder, "run.json"), **names;
    size_t count;
    if (!path) return error_memory(err, "a path", strlen(folder));
    int failed = look(h, path, "run.json", NULL, check_manifest, err);
    if (!failed && json_load(path, RUN_BYTES, NULL, &d, NULL)) d = (struct json_document){0};
    mem_free(path);
    failed = failed || look_at_adapter(h, folder, json_get(d.root, "sha256"), err);
    json_free(&d);
    if (!failed && folder_has(folder, "log.jsonl")) failed = look_inside(h, folder, "log.jsonl", NULL, check_log, err);
    if (failed || run_checkpoints(folder, &names, &count, err)) return -1;
    for (size_t i = 0; i < count && !failed; i++) {
        char *name = path_join("checkpoints", names[i]);
        failed = name ? look_inside(h, folder, name, NULL, check_checkpoint, err)
                      : error_memory(err, "a path", strlen(names[i]));
        mem_free(name);
    }
    file_list_free(names, count);
    return failed;
}

int health_check(const char *path, struct text *out, struct error *err) {
    struct health h = {.out = out};
    enum path_kind kind;
    int failed = path_kind_of(path, &kind, err);
    if (failed) return -1;
    switch (kind) {
    case PATH_GGUF: failed = look(&h, path, path, NULL, check_gguf, err); break;
    case PATH_SAFETENSORS: failed = look(&h, path, path, NULL, check_safetensors, err); break;
    case PATH_RUN_MANIFEST: failed = look(&h, path, path, NULL, check_manifest, err); break;
    case PATH_LOG: failed = look(&h, path, path, NULL, check_log, err); break;
    case PATH_CHECKPOINT: failed = look(&h, path, path, NULL, check_checkpoint, err); break;
    case PATH_ADAPTER: failed = look_at_adapter(&h, path, NULL, err); break;
    case PATH_RUN: failed = look_at_run(&h, path, err); break;
    case PATH_BASE: failed = look_at_base(&h, path, err); break;
    }
    if (failed || h.bad == 0) return failed;
    if (h.parts == 1) return error_set(err, h.first.code, "%s", h.first.text);
    return error_set(err, h.first.code, "%s: %d of %d parts are damaged: %s", path, h.bad, h.parts, h.first.text);
}
