// The part of trainer.h that makes the adapter: a new one on the modules that the configuration selects, or the one it
// goes on from.
#include "train/trainer.h"

#include "adapters/patterns.h"
#include "adapters/pissa.h"
#include "adapters/targets.h"
#include "train/progress.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

// What other tools will look for as the base: base_model_hf, the file's own word, or the file's name.
static const char *base_name(const struct trainer *t) {
    const struct model *m = &t->session.model;
    const char *slash = strrchr(m->path, '/');
    if (t->config->base_model_hf) return t->config->base_model_hf;
    return m->hf_repository ? m->hf_repository : slash ? slash + 1 : m->path;
}

// What lora_rank_pattern or lora_alpha_pattern says of every module, by id; the first key that matches one counts.
static int apply_pattern(const struct model *model, const char *name, const struct config_patterns *patterns,
                         const bool *adapted, int64_t *values, struct error *err) {
    size_t n = (size_t)model->n_modules;
    bool *marks = mem_zalloc(2 * n, sizeof *marks), *done = marks + n;
    if (!marks) return error_memory(err, name, 2 * n);
    int failed = 0;
    for (size_t k = 0; k < patterns->count && !failed; k++) {
        char blame[300];
        bool any = false;
        snprintf(blame, sizeof blame, "%s: the regular expression '%.200s'", name, patterns->keys[k]);
        failed = pattern_match_ending(model, patterns->keys[k], blame, STATUS_CONFIG, marks, err);
        for (size_t i = 0; i < n && !failed; i++) {
            if (!marks[i] || !adapted[i]) continue;
            any = true;
            if (!done[i]) values[i] = patterns->values[k];
            done[i] = true;
        }
        if (!failed && !any)
            failed = error_set(err, STATUS_CONFIG, "%s: '%s' matches no module that gets an adapter", name,
                               patterns->keys[k]);
    }
    mem_free(marks);
    return failed;
}

// What the configuration wants: per module id, whether it gets an adapter, its rank and its alpha (CONFIG_UNSET: does
// not say).
struct wanted {
    bool *adapted;
    int64_t *ranks, *alphas;
    bool *saved; // trained whole
    bool *rows;  // rows of it are trained
    int n;       // adapted, or with one of the others
    bool any;    // it names modules
};

// lora_modules_to_save and peft_trainable_token_indices.
static int mark_ends(const struct run_config *c, const struct model *model, struct wanted *out, struct error *err) {
    for (size_t k = 0; k < c->lora_modules_to_save.count; k++) {
        const char *name = c->lora_modules_to_save.items[k];
        bool found = false;
        for (int i = 0; i < model->n_modules; i++) {
            const struct module *m = &model->modules[i];
            if (m->layer >= 0 || (strcmp(m->short_name, name) != 0 && strcmp(m->hf_name, name) != 0)) continue;
            found = out->saved[i] = true;
            out->adapted[i] = false; // as PEFT does
        }
        if (!found)
            return error_set(err, STATUS_CONFIG,
                             "lora_modules_to_save: '%s' cannot be trained whole in this version; embed_tokens and "
                             "lm_head can",
                             name);
    }
    for (size_t k = 0; k < c->peft_trainable_token_indices.count; k++) {
        int64_t id = c->peft_trainable_token_indices.items[k];
        if (id >= model->arch.vocab)
            return error_set(err, STATUS_CONFIG, "peft_trainable_token_indices: %lld; the vocabulary has %d tokens",
                             (long long)id, model->arch.vocab);
        for (size_t j = 0; j < k; j++)
            if (c->peft_trainable_token_indices.items[j] == id)
                return error_set(err, STATUS_CONFIG, "peft_trainable_token_indices: %lld is there twice",
                                 (long long)id);
    }
    for (int i = 0; i < model->n_modules && c->peft_trainable_token_indices.count; i++) {
        const struct module *m = &model->modules[i];
        bool other = out->adapted[i] || out->saved[i], tied_head = m->form == MODULE_HEAD && model->arch.tied;
        if (m->form == MODULE_EMBEDDING) out->rows[i] = true;
        if (other && (tied_head || m->form == MODULE_EMBEDDING))
            return error_set(err, STATUS_CONFIG,
                             "peft_trainable_token_indices: %s is trained already, by lora_target_modules or "
                             "lora_modules_to_save",
                             m->hf_name);
    }
    out->n = 0;
    for (int i = 0; i < model->n_modules; i++) out->n += out->adapted[i] || out->saved[i] || out->rows[i];
    return 0;
}

static int read_wanted(const struct run_config *c, const struct model *model, struct pool *pool, struct wanted *out,
                       struct error *err) {
    struct target_options targets = {.regex = c->lora_target_modules.regex,
                                     .names = c->lora_target_modules.names.items,
                                     .n_names = c->lora_target_modules.names.count,
                                     .all_linear = c->lora_target_linear,
                                     .parameters = c->lora_target_parameters.items,
                                     .n_parameters = c->lora_target_parameters.count,
                                     .layers = c->peft_layers_to_transform.items,
                                     .n_layers = c->peft_layers_to_transform.count};
    size_t all = (size_t)model->n_modules + (size_t)model->n_norms;
    int *ids = pool_array(pool, all, sizeof *ids);
    *out = (struct wanted){.adapted = pool_array(pool, all, sizeof *out->adapted),
                           .ranks = pool_array(pool, all, sizeof *out->ranks),
                           .alphas = pool_array(pool, all, sizeof *out->alphas),
                           .saved = pool_array(pool, all, sizeof *out->saved),
                           .rows = pool_array(pool, all, sizeof *out->rows),
                           .any = targets.regex || targets.n_names || targets.all_linear || targets.n_parameters};
    if (!ids || !out->adapted || !out->ranks || !out->alphas || !out->saved || !out->rows)
        return error_memory(err, "adapter targets", all);
    if (out->any && targets_select(model, &targets, ids, &out->n, err)) return -1;
    for (int i = 0; i < out->n; i++) out->adapted[ids[i]] = true;
    if (mark_ends(c, model, out, err)) return -1;
    for (size_t i = 0; i < all; i++) {
        out->ranks[i] = c->lora_r, out->alphas[i] = c->lora_alpha;
        if (!out->any && !out->saved[i] && i < (size_t)model->n_modules) out->adapted[i] = true;
    }
    return apply_pattern(model, "lora_rank_pattern", &c->lora_rank_pattern, out->adapted, out->ranks, err) ||
                   apply_pattern(model, "lora_alpha_pattern", &c->lora_alpha_pattern, out->adapted, out->alphas, err)
               ? -1
               : 0;
}

// Room for what is trained in place of the base; touched, so that the plan counts it.
static int add_copy(struct adapter *adapter, struct adapter_module *m, enum adapter_part part, struct error *err) {
    if (adapter_add_part(adapter, m, part, err)) return -1;
    struct adapter_shape s = adapter_part_shape(m, part);
    if (!adapter->outline) memset(m->part[part], 0x7F, (size_t)(s.rows * s.cols) * sizeof(float));
    return 0;
}

static int add_rows(struct adapter *adapter, const struct config_ints *ids, struct adapter_module *m,
                    struct error *err) {
    int32_t *list = mem_alloc(ids->count * sizeof *list);
    if (!list) return error_memory(err, "token rows", ids->count * sizeof *list);
    for (size_t i = 0; i < ids->count; i++) list[i] = (int32_t)ids->items[i];
    int failed = adapter_set_rows(adapter, m, list, (int)ids->count, err);
    mem_free(list);
    return failed;
}

// DoRA's magnitude.
static int add_columns(struct adapter *adapter, struct adapter_module *m, struct error *err) {
    const struct module *module = m->module;
    bool plain = (module->form == MODULE_LINEAR || module->form == MODULE_HEAD) && !module->router;
    if (adapter->dora && !plain)
        return error_set(err, STATUS_CONFIG,
                         "peft_use_dora: DoRA on %s is not in this version; it is for linears of layers and the head",
                         module->hf_name);
    return adapter->dora ? adapter_add_part(adapter, m, ADAPTER_MAGNITUDE, err) : 0;
}

static enum adapter_biases biases_of(const struct run_config *c) {
    static const enum adapter_biases biases[] = {
        [CONFIG_BIAS_NONE] = BIASES_NONE, [CONFIG_BIAS_LORA_ONLY] = BIASES_LORA_ONLY, [CONFIG_BIAS_ALL] = BIASES_ALL};
    return biases[c->peft_bias];
}

// A bias that PEFT would train and we cannot: of experts that are linears of their own, of some rows of a fused linear.
static int check_bias(enum adapter_biases biases, const struct module *module, bool adapted, struct error *err) {
    bool any = false;
    for (int p = 0; p < module->n_parts; p++) any |= module->parts[p].bias != NULL;
    if (!any || biases == BIASES_NONE || (biases == BIASES_LORA_ONLY && !adapted)) return 0;
    if (module->form == MODULE_EXPERTS)
        return error_set(err, STATUS_CONFIG, "peft_bias: training the biases of the experts %s is not in this version",
                         module->hf_name);
    if (module->form == MODULE_LINEAR && !adapter_has_bias(module))
        return error_set(err, STATUS_CONFIG, "peft_bias: %s has a bias on some of its rows only, which is not trained",
                         module->hf_name);
    return 0;
}

// PiSSA's second pair. (Of a base that is shapes alone no format is known.)
static int add_initial(struct adapter *adapter, struct adapter_module *m, struct error *err) {
    if (!adapter->pissa) return 0;
    return (!adapter->outline && pissa_check(m->module, err)) || adapter_add_initial(adapter, m, err) ? -1 : 0;
}

// What is trained in place of the base begins as the base.
void trainer_copy_base(struct trainer *t) {
    for (int i = 0; i < t->adapter.n_modules; i++) {
        struct adapter_module *m = &t->adapter.modules[i];
        const struct module *module = m->module;
        const struct weight *w = module->parts[0].w;
        int64_t in = module->in;
        for (int64_t k = 0; m->full && k < module->out; k++) weight_decode(w, k, 0, in, m->full + k * in);
        for (int64_t k = 0; k < m->n_rows; k++) weight_decode(w, m->row_ids[k], 0, in, m->rows + k * in);
        for (int p = 0; m->bias && p < module->n_parts; p++) {
            const struct module_part *part = &module->parts[p];
            weight_decode(part->bias, 0, 0, part->rows, m->bias + part->first_row);
        }
    }
}

// A new adapter on the modules that the configuration selects, each with its own rank and alpha.
static int build_adapter(const struct run_config *c, const struct model *model, const struct wanted *want, bool outline,
                         struct adapter *adapter, struct error *err) {
    int all = model->n_modules + model->n_norms;
    enum adapter_biases biases = biases_of(c);
    if (adapter_begin(model, want->n + (biases == BIASES_ALL ? all : 0), adapter, err)) return -1;
    adapter->outline = outline;
    adapter->r = (int)c->lora_r;
    adapter->alpha = (float)c->lora_alpha;
    adapter->rslora = c->peft_use_rslora;
    adapter->dora = c->peft_use_dora;
    adapter->pissa = c->peft_init_lora_weights >= CONFIG_INIT_PISSA;
    adapter->biases = biases;
    for (int i = 0; i < all; i++) {
        const struct module *module = model_module(model, i);
        bool bare = want->saved[i] || want->rows[i];
        bool bias = adapter_trains_bias(biases, module, want->adapted[i], want->saved[i]);
        struct adapter_module *m;
        if (check_bias(biases, module, want->adapted[i], err)) return -1;
        if (want->adapted[i] && (adapter_add(adapter, module, (int)want->ranks[i], (float)want->alphas[i], err) ||
                                 add_initial(adapter, &adapter->modules[adapter->n_modules - 1], err) ||
                                 add_columns(adapter, &adapter->modules[adapter->n_modules - 1], err))) {
            return -1;
        }
        if (bare && (adapter_add_bare(adapter, module, &m, err) ||
                     (want->saved[i] ? add_copy(adapter, m, ADAPTER_FULL, err)
                                     : add_rows(adapter, &c->peft_trainable_token_indices, m, err)))) {
            return -1;
        }
        if (!bias) continue;
        if (!want->adapted[i] && !bare && adapter_add_bare(adapter, module, &m, err)) return -1;
        if (add_copy(adapter, &adapter->modules[adapter->n_modules - 1], ADAPTER_BIAS, err)) return -1;
    }
    return 0;
}

int outline_adapter(const struct run_config *c, const struct model *model, struct adapter *out, struct error *err) {
    struct pool pool = {0};
    struct wanted want;
    *out = (struct adapter){0};
    int failed = read_wanted(c, model, &pool, &want, err) || build_adapter(c, model, &want, true, out, err);
    pool_free(&pool);
    out->dropout = (float)c->lora_dropout;
    if (failed) adapter_free(out);
    return failed ? -1 : 0;
}

// An adapter that exists says itself where it sits; a configuration that says something else is a mistake.
static int compare_adapter(const struct trainer *t, const struct wanted *want, struct error *err) {
    const struct model *model = &t->session.model;
    const char *folder = t->config->lora_model_dir;
    bool root = t->config->peft_use_rslora || t->adapter.rslora;
    if (t->config->peft_use_dora && !t->adapter.dora)
        return error_set(err, STATUS_CONFIG, "lora_model_dir: %s is no DoRA, which peft_use_dora asks for", folder);
    if (t->config->peft_bias != CONFIG_BIAS_NONE && t->adapter.biases != biases_of(t->config))
        return error_set(err, STATUS_CONFIG, "lora_model_dir: %s trains %s biases than peft_bias asks for", folder,
                         t->adapter.biases == BIASES_ALL ? "more" : "fewer");
    for (int i = 0, k = 0; i < model->n_modules; i++) {
        const char *name = model->modules[i].hf_name;
        const struct adapter_module *m = k < t->adapter.n_modules ? &t->adapter.modules[k] : NULL;
        bool there = m && m->module->id == i;
        if (there) k++;
        if (want->any && (there && m->r) != want->adapted[i]) {
            return error_set(err, STATUS_CONFIG,
                             "lora_model_dir: %s has %s adapter on %s, which the configuration %s; leave its keys for "
                             "targets empty to take the adapter's own",
                             folder, want->adapted[i] ? "no" : "an", name,
                             !want->adapted[i] ? "does not select" : "selects");
        }
        if ((want->saved[i] && !(there && m->full)) || (want->rows[i] && !(there && m->rows)))
            return error_set(err, STATUS_CONFIG, "lora_model_dir: %s does not train %s%s as the configuration says",
                             folder, want->rows[i] ? "rows of " : "", name);
        if (!there || m->r == 0) continue;
        int64_t r = want->ranks[i], alpha = want->alphas[i];
        if (r != CONFIG_UNSET && r != m->r) {
            return error_set(err, STATUS_CONFIG, "lora_model_dir: %s has rank %d on %s, the configuration says %lld",
                             folder, m->r, name, (long long)r);
        }
        float scale = (float)alpha / (root ? sqrtf((float)m->r) : (float)m->r), is = adapter_scale(&t->adapter, m);
        if (alpha != CONFIG_UNSET && fabsf(scale - is) > 1e-5f * is) {
            return error_set(err, STATUS_CONFIG,
                             "lora_model_dir: %s scales by %g on %s, alpha and rank of the configuration mean %g",
                             folder, (double)is, name, (double)scale);
        }
    }
    return 0;
}

static int iterations_of(const struct run_config *c) {
    return c->peft_init_lora_weights == CONFIG_INIT_PISSA ? PISSA_CONVERGED
                                                          : (int)c->peft_init_lora_weights - CONFIG_INIT_PISSA;
}

int trainer_record_pissa(struct trainer *t, struct error *err) {
    return t->adapter.pissa ? pissa_record(&t->lora, iterations_of(t->config), err) : 0;
}

int trainer_start_pissa(struct trainer *t, struct error *err) {
    struct progress progress = {0};
    if (!t->adapter.pissa) return 0;
    progress_begin(&progress, "singular values of the base");
    int failed = pissa_start(&t->lora, iterations_of(t->config), t->config->seed, progress_show, &progress, err);
    progress_end(&progress);
    return failed || lora_upload(&t->lora, err) ? -1 : 0;
}

// PEFT computes no dropout on parameters: another program could not load such an adapter.
static int check_dropout(const struct adapter *adapter, struct error *err) {
    for (int i = 0; i < adapter->n_modules && adapter->dropout > 0; i++) {
        const struct module *m = adapter->modules[i].module;
        if (m->form == MODULE_PARAMETER)
            return error_set(err, STATUS_CONFIG, "lora_dropout must be 0: the adapter on the parameter %s knows none",
                             m->hf_name);
        if (m->form == MODULE_HEAD && adapter->modules[i].magnitude)
            return error_set(err, STATUS_CONFIG,
                             "lora_dropout must be 0: DoRA with dropout on %s is not in this version", m->hf_name);
    }
    return 0;
}

int trainer_make_adapter(struct trainer *t, struct error *err) {
    static const enum lora_init inits[] = {[CONFIG_INIT_KAIMING] = LORA_INIT_KAIMING,
                                           [CONFIG_INIT_GAUSSIAN] = LORA_INIT_GAUSSIAN,
                                           [CONFIG_INIT_RANDOM] = LORA_INIT_RANDOM};
    const struct run_config *c = t->config;
    const struct model *model = &t->session.model;
    struct pool pool = {0};
    struct wanted want;
    int failed = read_wanted(c, model, &pool, &want, err);
    if (!failed && c->lora_model_dir)
        failed = adapter_read(c->lora_model_dir, model, &t->adapter, err) || compare_adapter(t, &want, err);
    else if (!failed)
        failed = build_adapter(c, model, &want, false, &t->adapter, err);
    pool_free(&pool);
    if (failed) return -1;
    if (!c->lora_model_dir && !t->adapter.pissa) // whose numbers come when the base can be read
        lora_initialise(&t->adapter, inits[c->peft_init_lora_weights], c->seed);
    t->adapter.dropout = (float)c->lora_dropout;
    t->adapter.base_name = base_name(t);
    return check_dropout(&t->adapter, err);
}
