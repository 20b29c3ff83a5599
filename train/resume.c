// The part of trainer.h that writes and reads checkpoints.
#include "train/trainer.h"

#include "kernels/hash.h"
#include "train/checkpoint.h"

#include <stdio.h>
#include <string.h>

int trainer_save(struct trainer *t, bool resumable, struct error *err) {
    const struct run_config *c = t->config;
    bool with_state = resumable || !c->save_only_model;
    if (t->checkpoint_step == t->state.step && !(resumable && c->save_only_model)) return 0;
    struct checkpoint_writer w;
    struct text notes = {0};
    t->state.log_bytes = t->log.bytes;
    if (checkpoint_begin(c->output_dir, t->state.step, &w, err)) return -1;
    int failed = lora_download(&t->lora, err) || peft_write(w.folder, &t->adapter, err) ||
                 (with_state && state_write(w.folder, &t->state, &t->lora, err));
    if (failed) {
        checkpoint_abandon(&w);
        return error_prefix(err, "checkpoint of step %lld", (long long)t->state.step);
    }
    if (checkpoint_commit(&w, t->run_id, err)) return -1;
    t->checkpoint_step = t->state.step;
    int64_t pinned = c->load_best_model_at_end ? t->state.best_step : -1;
    failed = checkpoint_rotate(c->output_dir, t->run_id, (int)c->save_total_limit, pinned, &notes, err);
    if (notes.length) runlog_say(&t->log, "%s", text_str(&notes));
    text_free(&notes);
    return failed;
}

// Without what changes no number of the result: where it is written, on how many threads, what is shown meanwhile.
static void drop_indifferent(struct text *config) {
    static const char *const keys[] = {"threads:",
                                       "device:",
                                       "output_dir:",
                                       "resume_from_checkpoint:",
                                       "auto_resume_from_checkpoints:",
                                       "logging_steps:",
                                       "use_tensorboard:",
                                       "save",
                                       "generat",
                                       "num_generation"};
    struct text kept = {0};
    for (const char *line = text_str(config), *end; *line; line = end) {
        bool drop = false;
        end = strchr(line, '\n');
        end = end ? end + 1 : line + strlen(line);
        for (size_t i = 0; i < COUNT_OF(keys); i++) drop |= strncmp(line, keys[i], strlen(keys[i])) == 0;
        if (!drop) text_append(&kept, line, (size_t)(end - line));
    }
    text_free(config);
    *config = kept;
}

void trainer_set_hashes(struct trainer *t) {
    struct text text = {0};
    uint8_t digest[SHA256_BYTES] = {0};
    config_write_effective(t->config, &text);
    drop_indifferent(&text);
    sha256_bytes(text_str(&text), text.length, digest, NULL);
    sha256_hex(digest, t->state.config_sha256);
    text_free(&text);
    sha256_hex(t->train.sha256, t->state.data_sha256);
    sha256_hex(t->session.model.header_sha256, t->state.base_sha256);
    snprintf(t->state.arithmetic, sizeof t->state.arithmetic, "%s",
             t->session.options.dtype == DTYPE_BF16 ? "bf16" : "fp32");
    snprintf(t->state.run_id, sizeof t->state.run_id, "%.16s%.16s", t->state.config_sha256, t->state.data_sha256);
    memcpy(t->run_id, t->state.run_id, sizeof t->run_id);
}

// Says what differs between the run that wrote the checkpoint and this one; another base or other data is refused.
static int compare_state(struct trainer *t, const struct train_state *now, const char *folder, struct error *err) {
    const struct train_state *then = &t->state;
    if (strcmp(then->base_sha256, now->base_sha256) != 0) {
        return error_set(err, STATUS_INTEGRITY, "%s: was trained on another base than %s", folder,
                         t->config->base_model);
    }
    if (strcmp(then->data_sha256, now->data_sha256) != 0) {
        return error_set(err, STATUS_DATA,
                         "%s: the training data changed since; train into a new folder, or with lora_model_dir to go "
                         "on from this adapter",
                         folder);
    }
    if (strcmp(then->arithmetic, now->arithmetic) != 0) {
        runlog_say(&t->log, "resuming %s in %s arithmetic: the result will not be bitwise the uninterrupted run's",
                   then->arithmetic, now->arithmetic);
    }
    if (strcmp(then->config_sha256, now->config_sha256) != 0) {
        runlog_say(&t->log,
                   "the configuration changed since the checkpoint: the result will not be the uninterrupted run's");
    }
    return 0;
}

// The named checkpoint, or the newest one of the output folder; --resume goes on with what is there before it begins at
// a named one again. NULL and 0 when there is none. It was verified. Freed by the caller.
static int choose(struct trainer *t, char **folder, int64_t *step, struct error *err) {
    struct text notes = {0};
    const char *named = t->config->resume_from_checkpoint;
    int failed = 0;
    *folder = NULL;
    if (!named || t->options.go_on) failed = checkpoint_newest(t->config->output_dir, NULL, folder, step, &notes, err);
    if (notes.length) runlog_say(&t->log, "%s", text_str(&notes));
    text_free(&notes);
    if (failed || *folder || !named) return failed;
    if (checkpoint_verify(named, step, err)) return -1;
    *folder = mem_strdup(named);
    return *folder ? 0 : error_memory(err, "a path", strlen(named));
}

// Files hold PiSSA's two pairs as one.
static bool same_adapter(const struct adapter *a, const struct adapter *b) {
    if (a->n_modules != b->n_modules || a->rslora != b->rslora || a->dora != b->dora) return false;
    for (int i = 0; i < a->n_modules; i++) {
        const struct adapter_module *x = &a->modules[i], *y = &b->modules[i];
        if (x->module != y->module || x->n_rows != y->n_rows) return false;
        if (x->r != adapter_file_rank(y) || x->alpha != (y->r ? adapter_file_alpha(b, y->alpha) : y->alpha))
            return false;
        for (int p = 0; p < ADAPTER_PARTS; p++)
            if (!x->part[p] != !y->part[p]) return false;
        if (x->n_rows && memcmp(x->row_ids, y->row_ids, (size_t)x->n_rows * sizeof *x->row_ids) != 0) return false;
    }
    return true;
}

static int read_adapter(struct trainer *t, const char *folder, struct error *err) {
    struct adapter saved;
    if (peft_read(folder, &t->session.model, &saved, err)) return -1;
    if (!same_adapter(&saved, &t->adapter)) {
        adapter_free(&saved);
        return error_set(err, STATUS_CONFIG, "%s: holds an adapter of another shape than the configuration asks for",
                         folder);
    }
    if (t->adapter.pissa) {
        adapter_take_pairs(&t->adapter, &saved);
        adapter_free(&saved);
        return lora_upload(&t->lora, err);
    }
    saved.dropout = t->adapter.dropout;
    saved.base_name = t->adapter.base_name;
    struct adapter old = t->adapter; // the bindings point at t->adapter: keep it, swap what it holds
    t->adapter = saved;
    adapter_free(&old);
    return lora_upload(&t->lora, err);
}

static int has_state(const char *folder, struct error *err) {
    char *path = path_join(folder, "state.json");
    if (!path) return error_memory(err, "a path", strlen(folder));
    bool there = file_exists(path);
    mem_free(path);
    if (there) return 0;
    return error_set(err, STATUS_NOINPUT,
                     "%s: holds an adapter without the state of the optimiser (save_only_model), so it cannot be "
                     "resumed; lora_model_dir starts a new run from it",
                     folder);
}

// `step` is what the manifest says.
static int check_step(const struct trainer *t, const char *folder, int64_t step, struct error *err) {
    if (step != t->state.step) {
        return error_set(err, STATUS_INTEGRITY, "%s: state.json says step %lld, manifest.json %lld", folder,
                         (long long)t->state.step, (long long)step);
    }
    if (step <= t->total_steps) return 0;
    return error_set(err, STATUS_CONFIG, "%s: %lld steps are done already, the configuration asks for %lld", folder,
                     (long long)step, (long long)t->total_steps);
}

// The files of one folder into another one that does not exist yet, whole or absent.
static int copy_folder(const char *from, const char *to, struct error *err) {
    struct pool pool = {0};
    char **names = NULL;
    size_t count = 0;
    const char *making = pool_printf(&pool, "%s.copy", to);
    int failed =
        making ? file_remove_tree(making, err) || file_make_folders(making, err) || file_list(from, &names, &count, err)
               : error_memory(err, "a path", strlen(to));
    for (size_t i = 0; i < count && !failed; i++) {
        struct text bytes = {0};
        const char *source = pool_printf(&pool, "%s/%s", from, names[i]);
        const char *target = pool_printf(&pool, "%s/%s", making, names[i]);
        failed = !source || !target ? error_memory(err, "a path", strlen(from))
                                    : file_read(source, (size_t)1 << 40, &bytes, err) ||
                                          file_replace(target, bytes.data, bytes.length, err);
        text_free(&bytes);
    }
    if (!failed) failed = file_rename(making, to, err);
    file_list_free(names, count);
    pool_free(&pool);
    return failed ? -1 : 0;
}

// The best checkpoint of the run that is gone on with comes along when load_best_model_at_end will want it.
static int take_best(struct trainer *t, const char *folder, struct error *err) {
    int64_t best = t->state.best_step, step;
    if (!t->config->load_best_model_at_end || best < 1 || output_holds(t->config->output_dir, folder)) return 0;
    struct pool pool = {0};
    const char *from = pool_printf(&pool, "%s/../step-%06lld", folder, (long long)best);
    const char *to = pool_printf(&pool, "%s/checkpoints/step-%06lld", t->config->output_dir, (long long)best);
    int failed = from && to ? 0 : error_memory(err, "a path", strlen(folder));
    if (!failed && checkpoint_verify(from, &step, NULL)) {
        runlog_say(&t->log, "the best checkpoint so far, step %lld, is not beside %s: the best is looked for from here",
                   (long long)best, folder);
        t->state.best_step = -1, t->state.evals_without_gain = 0;
    } else if (!failed) {
        failed = copy_folder(from, to, err);
    }
    pool_free(&pool);
    return failed;
}

// A checkpoint of another run's folder brings the beginning of that run's log along.
static int take_log(struct trainer *t, const char *folder, struct error *err) {
    if (output_holds(t->config->output_dir, folder)) return 0;
    struct pool pool = {0};
    struct text log = {0};
    const char *from = pool_printf(&pool, "%s/../../log.jsonl", folder);
    const char *to = pool_printf(&pool, "%s/log.jsonl", t->config->output_dir);
    int failed = from && to ? 0 : error_memory(err, "a path", strlen(folder));
    if (!failed &&
        (!file_exists(from) || file_read(from, (size_t)1 << 32, &log, NULL) || log.length < t->state.log_bytes))
        t->state.log_bytes = 0;
    if (!failed && t->state.log_bytes) failed = file_replace(to, log.data, (size_t)t->state.log_bytes, err);
    text_free(&log);
    pool_free(&pool);
    return failed;
}

int trainer_resume(struct trainer *t, struct error *err) {
    struct train_state now = t->state;
    char *folder;
    int64_t step = 0;
    if (choose(t, &folder, &step, err)) return -1;
    if (!folder) {
        runlog_say(&t->log, "no checkpoint in %s: starting from the beginning", t->config->output_dir);
        return 0;
    }
    int failed = has_state(folder, err) || read_adapter(t, folder, err) ||
                 state_read(folder, &t->state, &t->lora, err) || check_step(t, folder, step, err) ||
                 compare_state(t, &now, folder, err) || take_log(t, folder, err) || take_best(t, folder, err);
    if (!failed) {
        t->checkpoint_step = t->config->resume_from_checkpoint ? -1 : t->state.step;
        memcpy(t->state.config_sha256, now.config_sha256, sizeof now.config_sha256);
        memcpy(t->state.arithmetic, now.arithmetic, sizeof now.arithmetic);
        memcpy(t->run_id, t->state.run_id, sizeof t->run_id);
        runlog_say(&t->log, "resuming at step %lld from %s", (long long)t->state.step, folder);
    }
    mem_free(folder);
    return failed ? -1 : 0;
}
