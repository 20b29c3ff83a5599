// See state.h.
#include "train/state.h"

#include "data/json.h"
#include "model/safetensors.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { STATE_FORMAT = 2 };

static const char *const moment_names[2] = {"exp_avg", "exp_avg_sq"};

static int write_json(const char *path, const struct train_state *s, struct error *err) {
    struct text text = {0};
    struct json_writer w = {.out = &text, .style = JSON_PRETTY};
    const struct {
        const char *key;
        int64_t value;
    } ints[] = {{"format", STATE_FORMAT},
                {"step", s->step},
                {"log_bytes", (int64_t)s->log_bytes},
                {"tokens", s->tokens},
                {"best_step", s->best_step},
                {"evals_without_gain", s->evals_without_gain},
                {"steps_over_watchdog", s->steps_over_watchdog},
                {"nonfinite_in_row", s->nonfinite_in_row},
                {"last_eval_step", s->last_eval_step}};
    const struct {
        const char *key, *value;
    } strings[] = {{"run_id", s->run_id},
                   {"arithmetic", s->arithmetic},
                   {"config_sha256", s->config_sha256},
                   {"data_sha256", s->data_sha256},
                   {"base_sha256", s->base_sha256}};
    json_begin_object(&w);
    for (size_t i = 0; i < COUNT_OF(ints); i++) {
        json_put_key(&w, ints[i].key);
        json_put_int(&w, ints[i].value);
    }
    const struct {
        const char *key;
        double value;
    } doubles[] = {{"best_metric", s->best_step < 0 ? NAN : s->best_metric},
                   {"first_eval", s->first_eval},
                   {"last_eval", s->last_eval},
                   {"last_loss", s->last_loss},
                   {"seconds", s->seconds}};
    for (size_t i = 0; i < COUNT_OF(doubles); i++) { // NAN becomes null
        json_put_key(&w, doubles[i].key);
        json_put_double(&w, doubles[i].value);
    }
    for (size_t i = 0; i < COUNT_OF(strings); i++) {
        json_put_key(&w, strings[i].key);
        json_put_string(&w, strings[i].value);
    }
    json_end_object(&w);
    text_char(&text, '\n');
    int failed = text_failed(&text) ? error_memory(err, "state.json", text.length)
                                    : file_replace(path, text.data, text.length, err);
    text_free(&text);
    return failed;
}

// The moments of one tensor of the adapter, copied from the device when the writer asks for them.
struct moment {
    struct lora *lora;
    struct tensor tensor;
};

static int fill_moment(void *context, struct file_writer *out, struct error *err) {
    const struct moment *m = context;
    size_t bytes = tensor_bytes(&m->tensor);
    void *copy = mem_alloc(bytes);
    if (!copy) return error_memory(err, "optimizer state", bytes);
    int failed =
        device_read(m->lora->decoder->device, copy, m->tensor, bytes, err) || file_write(out, copy, bytes, err);
    mem_free(copy);
    return failed ? -1 : 0;
}

// Calls visit for every (moment, module, part) with the tensor's name, place and shape.
static int each_moment(struct lora *lora,
                       int (*visit)(void *, const char *, struct tensor, const int64_t *, struct error *),
                       void *context, struct pool *pool, struct error *err) {
    for (int which = 0; which < 2; which++) {
        for (int i = 0; i < lora->adapter->n_modules * ADAPTER_PARTS; i++) {
            const struct adapter_module *m = &lora->adapter->modules[i / ADAPTER_PARTS];
            enum adapter_part part = i % ADAPTER_PARTS;
            struct adapter_shape s = adapter_part_shape(m, part);
            struct tensor t = lora_part(lora, which ? lora->v : lora->m, i / ADAPTER_PARTS, part);
            if (!tensor_present(&t)) continue;
            const char *name =
                pool_printf(pool, "%s.%s.%s", moment_names[which], m->module->hf_name, adapter_part_name(part));
            if (!name) return error_memory(err, "optimizer state", 0);
            if (visit(context, name, t, (int64_t[]){s.rows, s.cols}, err)) return -1;
        }
    }
    return 0;
}

struct writing {
    struct lora *lora;
    struct safetensors_out *entries;
    struct moment *moments;
    size_t count;
};

static int add_entry(void *context, const char *name, struct tensor tensor, const int64_t *shape, struct error *err) {
    (void)err;
    struct writing *w = context;
    w->moments[w->count] = (struct moment){w->lora, tensor};
    w->entries[w->count] = (struct safetensors_out){.name = name,
                                                    .dtype = ST_F32,
                                                    .n_dims = 2,
                                                    .shape = {shape[0], shape[1]},
                                                    .fill = fill_moment,
                                                    .context = &w->moments[w->count]};
    w->count++;
    return 0;
}

static int write_moments(const char *path, struct lora *lora, struct error *err) {
    struct pool pool = {0};
    size_t n = 2 * ADAPTER_PARTS * (size_t)lora->adapter->n_modules;
    struct writing w = {.lora = lora,
                        .entries = pool_array(&pool, n, sizeof *w.entries),
                        .moments = pool_array(&pool, n, sizeof *w.moments)};
    struct file_writer file;
    int failed = -1;
    if (!w.entries || !w.moments)
        error_memory(err, "optimizer state", n * sizeof *w.entries);
    else if (!each_moment(lora, add_entry, &w, &pool, err) && !file_create(path, &file, err)) {
        failed = safetensors_write(&file, w.entries, w.count, err);
        if (failed)
            file_abandon(&file);
        else
            failed = file_close(&file, err);
    }
    pool_free(&pool);
    return failed;
}

int state_write(const char *folder, const struct train_state *state, struct lora *lora, struct error *err) {
    struct pool pool = {0};
    const char *json = pool_printf(&pool, "%s/state.json", folder);
    const char *moments = pool_printf(&pool, "%s/optimizer.safetensors", folder);
    int failed = !json || !moments ? error_memory(err, "a path", strlen(folder)) : write_json(json, state, err);
    if (!failed && lora) failed = write_moments(moments, lora, err);
    pool_free(&pool);
    return failed;
}

static int copy_string(const struct json *root, const char *key, char *out, size_t size, struct error *err) {
    const char *text = "";
    if (json_get_string(root, key, JSON_REQUIRED, &text, NULL, err)) return -1;
    if (strlen(text) >= size) return error_set(err, STATUS_INTEGRITY, "key '%s' is too long", key);
    strcpy(out, text);
    return 0;
}

static int parse_state(const struct json *root, struct train_state *s, struct error *err) {
    int64_t format = 0, log_bytes = 0;
    *s = (struct train_state){.best_step = -1, .first_eval = NAN, .last_eval = NAN, .last_loss = NAN};
    if (json_get_int(root, "format", JSON_REQUIRED, &format, err)) return -1;
    if (format != STATE_FORMAT) {
        return error_set(err, STATUS_INTEGRITY,
                         "written by another version (format %lld, this one reads %d); resume with that version",
                         (long long)format, STATE_FORMAT);
    }
    if (json_get_int(root, "step", JSON_REQUIRED, &s->step, err) ||
        json_get_int(root, "log_bytes", JSON_REQUIRED, &log_bytes, err) ||
        json_get_int(root, "tokens", JSON_REQUIRED, &s->tokens, err) ||
        json_get_int(root, "best_step", JSON_REQUIRED, &s->best_step, err) ||
        json_get_int(root, "evals_without_gain", JSON_REQUIRED, &s->evals_without_gain, err) ||
        json_get_int(root, "steps_over_watchdog", JSON_REQUIRED, &s->steps_over_watchdog, err) ||
        json_get_int(root, "nonfinite_in_row", JSON_REQUIRED, &s->nonfinite_in_row, err) ||
        json_get_int(root, "last_eval_step", JSON_REQUIRED, &s->last_eval_step, err) ||
        json_get_double(root, "best_metric", JSON_OPTIONAL, &s->best_metric, err) ||
        json_get_double(root, "first_eval", JSON_OPTIONAL, &s->first_eval, err) ||
        json_get_double(root, "last_eval", JSON_OPTIONAL, &s->last_eval, err) ||
        json_get_double(root, "last_loss", JSON_OPTIONAL, &s->last_loss, err) ||
        json_get_double(root, "seconds", JSON_REQUIRED, &s->seconds, err) ||
        copy_string(root, "run_id", s->run_id, sizeof s->run_id, err) ||
        copy_string(root, "arithmetic", s->arithmetic, sizeof s->arithmetic, err) ||
        copy_string(root, "config_sha256", s->config_sha256, sizeof s->config_sha256, err) ||
        copy_string(root, "data_sha256", s->data_sha256, sizeof s->data_sha256, err) ||
        copy_string(root, "base_sha256", s->base_sha256, sizeof s->base_sha256, err)) {
        return -1;
    }
    if (s->step < 0 || log_bytes < 0 || s->tokens < 0) return error_set(err, STATUS_INTEGRITY, "a counter is negative");
    s->log_bytes = (uint64_t)log_bytes;
    return 0;
}

int state_peek(const char *folder, struct train_state *state, struct error *err) {
    char *path = path_join(folder, "state.json");
    struct json_document document;
    if (!path) return error_memory(err, "a path", strlen(folder));
    int failed = json_load(path, 1 << 20, NULL, &document, err);
    if (!failed) {
        failed = parse_state(document.root, state, err);
        if (failed) error_prefix(err, "%s", path);
        json_free(&document);
    }
    mem_free(path);
    return failed;
}

struct reading {
    struct lora *lora;
    const struct safetensors *file;
    size_t found;
};

static int read_entry(void *context, const char *name, struct tensor tensor, const int64_t *shape, struct error *err) {
    struct reading *r = context;
    const struct safetensors_entry *e = safetensors_find(r->file, name);
    if (!e) return error_set(err, STATUS_INTEGRITY, "tensor '%s' is missing", name);
    if (e->dtype != ST_F32 || e->n_dims != 2 || e->shape[0] != shape[0] || e->shape[1] != shape[1]) {
        return error_set(err, STATUS_INTEGRITY, "tensor '%s' is not F32 %lld x %lld", name, (long long)shape[0],
                         (long long)shape[1]);
    }
    r->found++;
    return device_write(r->lora->decoder->device, tensor, e->data, (size_t)e->bytes, err);
}

int state_read(const char *folder, struct train_state *state, struct lora *lora, struct error *err) {
    if (state_peek(folder, state, err)) return -1;
    char *path = path_join(folder, "optimizer.safetensors");
    if (!path) return error_memory(err, "a path", strlen(folder));
    struct safetensors file;
    struct pool pool = {0};
    int failed = safetensors_open(path, &file, err);
    if (!failed) {
        struct reading r = {.lora = lora, .file = &file};
        failed = each_moment(lora, read_entry, &r, &pool, err);
        if (!failed && r.found != file.n_entries) {
            failed = error_set(err, STATUS_INTEGRITY, "%zu tensors, expected %zu", file.n_entries, r.found);
        }
        if (failed) error_prefix(err, "%s", path);
        safetensors_close(&file);
    }
    pool_free(&pool);
    mem_free(path);
    return failed;
}
