// The part of trainer.h that writes and reads checkpoints.
#include "train/trainer.h"

#include "kernels/hash.h"
#include "train/checkpoint.h"

#include <stdio.h>
#include <string.h>

int trainer_save(struct trainer *t, struct error *err) {
    const struct run_config *c = t->config;
    if (t->checkpoint_step == t->state.step) return 0;
    struct checkpoint_writer w;
    struct text notes = {0};
    t->state.log_bytes = t->log.bytes;
    if (checkpoint_begin(c->output_dir, t->state.step, &w, err)) return -1;
    int failed = lora_download(&t->lora, err) || peft_write(w.folder, &t->adapter, err) ||
                 (!c->save_only_model && state_write(w.folder, &t->state, &t->lora, err));
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

void trainer_set_hashes(struct trainer *t) {
    struct text text = {0};
    uint8_t digest[SHA256_BYTES] = {0};
    config_write_effective(t->config, &text);
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

int trainer_resume(struct trainer *t, struct error *err) {
    struct text notes = {0};
    struct train_state now = t->state;
    struct adapter saved;
    char *folder = NULL;
    int64_t step;
    const char *named = t->config->resume_from_checkpoint;
    int failed = named ? checkpoint_verify(named, &step, err)
                       : checkpoint_newest(t->config->output_dir, NULL, &folder, &step, &notes, err);
    if (notes.length) runlog_say(&t->log, "%s", text_str(&notes));
    text_free(&notes);
    if (failed) return -1;
    const char *from = named ? named : folder;
    if (!from) {
        runlog_say(&t->log, "no checkpoint in %s: starting from the beginning", t->config->output_dir);
        return 0;
    }
    failed = peft_read(from, &t->session.model, &saved, err);
    if (!failed) {
        bool same = saved.n_modules == t->adapter.n_modules && saved.rslora == t->adapter.rslora;
        for (int i = 0; i < saved.n_modules && same; i++) {
            const struct adapter_module *a = &saved.modules[i], *b = &t->adapter.modules[i];
            same = a->module == b->module && a->r == b->r && a->alpha == b->alpha;
        }
        saved.dropout = t->adapter.dropout;
        saved.base_name = t->adapter.base_name;
        if (!same)
            failed = error_set(err, STATUS_CONFIG,
                               "%s: holds an adapter of another shape than the configuration asks for", from);
        else { // the bindings point at t->adapter: keep it, swap what it holds
            struct adapter old = t->adapter;
            t->adapter = saved;
            saved = old;
            failed = lora_upload(&t->lora, err) || state_read(from, &t->state, &t->lora, err) ||
                     compare_state(t, &now, from, err);
        }
        adapter_free(&saved);
    }
    if (!failed) {
        t->checkpoint_step = named ? -1 : t->state.step;
        memcpy(t->state.config_sha256, now.config_sha256, sizeof now.config_sha256);
        memcpy(t->state.arithmetic, now.arithmetic, sizeof now.arithmetic);
        memcpy(t->run_id, t->state.run_id, sizeof t->run_id);
        runlog_say(&t->log, "resuming at step %lld from %s", (long long)t->state.step, from);
    }
    mem_free(folder);
    return failed ? -1 : 0;
}
