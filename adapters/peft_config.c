// adapter_config.json: see peft_config.h. The selection rules are PEFT's (formats.md 6.2).
#include "adapters/peft_config.h"

#include "adapters/patterns.h"
#include "data/json.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_REGEXES = 64 }; // bounds the time a hostile file can take

struct reader {
    const char *path;
    const struct model *model;
    const struct json *root;
    int regexes; // compiled so far
    struct error *err;
};

// --- Keys that must not be in use

static bool is_unused(const struct json *value) {
    bool flag;
    size_t length;
    if (!value || json_type(value) == JSON_NULL) return true;
    if (json_bool(value, &flag)) return !flag;
    if (json_string(value, &length)) return length == 0;
    return json_type(value) != JSON_NUMBER && json_count(value) == 0;
}

static const struct {
    const char *key, *what;
} refused[] = {
    {"lora_bias", "biases on the adapter"},
    {"layer_replication", "replicated layers"},
    {"alora_invocation_tokens", "activated LoRA"},
    {"fan_in_fan_out", "transposed weights"},
    {"use_qalora", "QA-LoRA"},
    {"use_bdlora", "block-diagonal LoRA"},
    {"arrow_config", "Arrow routing"},
    {"kasa_config", "KaSA"},
    {"velora_config", "VeLoRA"},
    {"monteclora_config", "MonteCLoRA"},
    {"loftq_config", "a base altered by LoftQ"},
    {"corda_config", "a base altered by CorDA"},
    {"lora_ga_config", "a base altered by LoRA-GA"},
    {"megatron_config", "Megatron's parallel layers"},
};

// Keys that do not change what the adapter computes, and those that are read below.
static const char *const known[] = {
    "peft_type",
    "task_type",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "target_parameters",
    "exclude_modules",
    "modules_to_save",
    "trainable_token_indices",
    "bias",
    "use_rslora",
    "use_dora",
    "init_lora_weights",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "auto_mapping",
    "peft_version",
    "megatron_core",
    "eva_config",
    "runtime_config",
    "qalora_group_size",
    "ensure_weight_tying",
    "ephemeral_gpu_offload",
};

static int check_keys(struct reader *r) {
    for (size_t i = 0; i < COUNT_OF(refused); i++) {
        if (is_unused(json_get(r->root, refused[i].key))) continue;
        return error_set(r->err, STATUS_DATA, "%s: '%s' is set: %s cannot be computed by this version", r->path,
                         refused[i].key, refused[i].what);
    }
    for (const struct json *v = json_child(r->root); v; v = json_next(v)) {
        const char *key = json_key(v, NULL);
        bool found = is_unused(v);
        for (size_t i = 0; i < COUNT_OF(known) && !found; i++) found = strcmp(key, known[i]) == 0;
        if (!found)
            return error_set(r->err, STATUS_DATA, "%s: '%.60s' is set: this version does not know what it changes",
                             r->path, key);
    }
    return 0;
}

static int check_values(struct reader *r) {
    const char *type = NULL, *bias = NULL;
    if (json_get_string(r->root, "peft_type", JSON_REQUIRED, &type, NULL, r->err) ||
        json_get_string(r->root, "bias", JSON_OPTIONAL, &bias, NULL, r->err))
        return error_prefix(r->err, "%s", r->path);
    if (strcmp(type, "LORA") != 0)
        return error_set(r->err, STATUS_DATA, "%s: peft_type is '%.40s'; only 'LORA' can be read", r->path, type);
    if (bias && strcmp(bias, "none") != 0 && strcmp(bias, "lora_only") != 0 && strcmp(bias, "all") != 0)
        return error_set(r->err, STATUS_DATA, "%s: bias is '%.40s'; it can be none, lora_only or all", r->path, bias);
    // Other ways of starting change the base itself, so that the adapter is only right beside that other base.
    static const char *const starts[] = {"gaussian", "eva", "orthogonal", "true", "false"};
    const struct json *start = json_get(r->root, "init_lora_weights");
    const char *name = json_string(start, NULL);
    bool good = !name;
    for (size_t i = 0; i < COUNT_OF(starts) && !good; i++) good = strcmp(name, starts[i]) == 0;
    if (good) return 0;
    return error_set(
        r->err, STATUS_DATA,
        "%s: init_lora_weights is '%.40s': the adapter belongs to an altered base; convert it to plain LoRA with "
        "PEFT first",
        r->path, name);
}

// --- Names and patterns

static bool is_name_or_ending(const char *path, size_t length, const char *name, size_t n) {
    if (n > length || memcmp(path + length - n, name, n) != 0) return false;
    return n == length || path[length - n - 1] == '.';
}

static int mark_matches(struct reader *r, const char *key, const char *regex, bool *marks) {
    char blame[600];
    if (++r->regexes > MAX_REGEXES)
        return error_set(r->err, STATUS_DATA, "%s: more than %d regular expressions", r->path, MAX_REGEXES);
    snprintf(blame, sizeof blame, "%.400s: the regular expression of '%.100s'", r->path, key);
    return pattern_match(r->model, regex, blame, STATUS_DATA, marks, r->err);
}

// The module path's part before its layer number: "layers" of model.layers.0.self_attn.q_proj.
static bool layers_are_called(const struct module *m, const char *name, size_t length) {
    char number[32];
    int n = snprintf(number, sizeof number, ".%d.", m->layer);
    const char *at = strstr(m->hf_name, number);
    return n > 0 && at && is_name_or_ending(m->hf_name, (size_t)(at - m->hf_name), name, length);
}

// layers_to_transform and layers_pattern, which only act on list entries that are endings.
static int layer_allowed(struct reader *r, const struct module *m, bool *allowed) {
    const struct json *layers = json_get(r->root, "layers_to_transform"),
                      *pattern = json_get(r->root, "layers_pattern");
    int64_t layer;
    *allowed = true;
    if (is_unused(layers)) return 0;
    bool found = false;
    if (json_type(layers) != JSON_ARRAY) {
        if (!json_int(layers, &layer))
            return error_set(r->err, STATUS_DATA, "%s: layers_to_transform is %s", r->path, json_type_name(layers));
        found = layer == m->layer;
    }
    for (const struct json *v = json_child(layers); v; v = json_next(v)) {
        if (!json_int(v, &layer))
            return error_set(r->err, STATUS_DATA, "%s: layers_to_transform holds %s", r->path, json_type_name(v));
        found |= layer == m->layer;
    }
    if (!is_unused(pattern)) {
        bool called = false;
        for (const struct json *v = json_type(pattern) == JSON_ARRAY ? json_child(pattern) : pattern; v;
             v = pattern == v ? NULL : json_next(v)) {
            size_t length;
            const char *name = json_string(v, &length);
            if (!name || !pattern_is_literal(name))
                return error_set(r->err, STATUS_DATA, "%s: layers_pattern must hold plain names, as 'layers'", r->path);
            called |= layers_are_called(m, name, length);
        }
        found &= called;
    }
    *allowed = found;
    return 0;
}

// Whether a list of names takes what is called `path` there; `exact` = one of them is its whole path.
static int list_takes_path(struct reader *r, const char *key, const struct json *list, const char *path, bool *taken,
                           bool *exact) {
    size_t length = strlen(path), n;
    for (const struct json *v = json_child(list); v; v = json_next(v)) {
        const char *name = json_string(v, &n);
        if (!name) return error_set(r->err, STATUS_DATA, "%s: '%s' holds %s", r->path, key, json_type_name(v));
        if (n == 0 || !is_name_or_ending(path, length, name, n)) continue;
        *taken = true;
        *exact |= n == length;
    }
    return 0;
}

// The same of a module, by any of its names.
static int list_takes(struct reader *r, const char *key, const struct json *list, const struct module *m, bool *taken,
                      bool *exact) {
    bool parameters = strcmp(key, "target_parameters") == 0;
    char path[PATTERN_NAME];
    *taken = *exact = false;
    for (int i = 0; module_name(m, i); i++) {
        const char *called = parameters ? path : pattern_example(m, i, path);
        if (parameters && !pattern_parameter(m, i, path)) continue;
        if (list_takes_path(r, key, list, called, taken, exact)) return -1;
    }
    return 0;
}

// PEFT refuses a parameter that is not there.
static int check_parameters(struct reader *r, const struct json *list) {
    for (const struct json *v = json_child(list); v; v = json_next(v)) {
        size_t n;
        const char *name = json_string(v, &n);
        bool found = false;
        for (int i = 0; name && i < r->model->n_modules && !found; i++) {
            char path[PATTERN_NAME];
            for (int k = 0; !found && pattern_parameter(&r->model->modules[i], k, path); k++)
                found = is_name_or_ending(path, strlen(path), name, n);
        }
        if (!found)
            return error_set(r->err, STATUS_DATA,
                             "%s: 'target_parameters' names '%.100s', which the base does not have", r->path,
                             name ? name : json_type_name(v));
    }
    return 0;
}

static int select_by_list(struct reader *r, const char *key, const struct json *list, bool *selected) {
    bool parameters = strcmp(key, "target_parameters") == 0;
    for (int i = 0; i < r->model->n_modules; i++) {
        const struct module *m = &r->model->modules[i];
        bool taken, exact, allowed;
        if (!parameters && m->form == MODULE_PARAMETER) continue;
        if (list_takes(r, key, list, m, &taken, &exact)) return -1;
        if (!taken) continue;
        // PEFT restricts modules to layers, not parameters.
        if (!exact && !parameters && layer_allowed(r, m, &allowed)) return -1;
        selected[i] |= exact || parameters || allowed;
    }
    return 0;
}

static int unselect_excluded(struct reader *r, struct pool *pool, bool *selected) {
    const struct json *value = json_get(r->root, "exclude_modules");
    if (is_unused(value)) return 0;
    const char *regex = json_string(value, NULL);
    bool *marks = pool_array(pool, (uint64_t)r->model->n_modules, sizeof *marks), exact;
    if (!marks) return error_memory(r->err, "the module selection", (size_t)r->model->n_modules);
    if (regex && mark_matches(r, "exclude_modules", regex, marks)) return -1;
    if (!regex && json_type(value) != JSON_ARRAY)
        return error_set(r->err, STATUS_DATA, "%s: exclude_modules is %s", r->path, json_type_name(value));
    for (int i = 0; i < r->model->n_modules; i++) {
        if (!regex && list_takes(r, "exclude_modules", value, &r->model->modules[i], &marks[i], &exact)) return -1;
        selected[i] &= !marks[i];
    }
    return 0;
}

static int select_by_regex(struct reader *r, struct pool *pool, const char *regex, bool *selected) {
    bool *marks = pool_array(pool, (uint64_t)r->model->n_modules, sizeof *marks);
    if (!marks) return error_memory(r->err, "the module selection", (size_t)r->model->n_modules);
    if (mark_matches(r, "target_modules", regex, marks)) return -1;
    for (int i = 0; i < r->model->n_modules; i++)
        selected[i] |= marks[i] && r->model->modules[i].form != MODULE_PARAMETER;
    return 0;
}

static int select_modules(struct reader *r, struct pool *pool, bool *selected) {
    const struct json *value = json_get(r->root, "target_modules"), *more = json_get(r->root, "target_parameters");
    const char *text = json_string(value, NULL);
    int status = 0;
    if (json_is(more, JSON_ARRAY))
        status = check_parameters(r, more) ? -1 : select_by_list(r, "target_parameters", more, selected);
    if (status) return -1;
    if (json_is(more, JSON_ARRAY) && json_count(more) > 0 && is_unused(value)) return 0;
    if (text && strcmp(text, "all-linear") == 0)
        for (int i = 0; i < r->model->n_modules; i++) {
            const struct module *m = &r->model->modules[i];
            selected[i] = !m->router && (m->form == MODULE_LINEAR || m->form == MODULE_EXPERTS);
        }
    else if (text)
        status = select_by_regex(r, pool, text, selected);
    else if (value && json_type(value) == JSON_ARRAY)
        status = select_by_list(r, "target_modules", value, selected);
    else
        status = error_set(r->err, STATUS_DATA, "%s: target_modules is %s; it must be a list of names or an expression",
                           r->path, json_type_name(value));
    return status ? status : unselect_excluded(r, pool, selected);
}

// rank_pattern and alpha_pattern: the first key in file order that matches a module gives its value.
static int apply_pattern(struct reader *r, struct pool *pool, const char *key, struct peft_config *out) {
    const struct json *patterns = json_get(r->root, key);
    bool ranks = strcmp(key, "rank_pattern") == 0;
    if (is_unused(patterns)) return 0;
    if (json_type(patterns) != JSON_OBJECT)
        return error_set(r->err, STATUS_DATA, "%s: %s is %s", r->path, key, json_type_name(patterns));
    size_t n = (size_t)r->model->n_modules;
    bool *done = pool_array(pool, n, sizeof *done), *marks = pool_array(pool, n, sizeof *marks);
    if (!done || !marks) return error_memory(r->err, "the module selection", n);
    for (const struct json *v = json_child(patterns); v; v = json_next(v)) {
        const char *pattern = json_key(v, NULL);
        double value;
        if (!json_double(v, &value) || (ranks && (value != floor(value) || value < 1 || value > ADAPTER_MAX_RANK)) ||
            !isfinite((float)value) || (float)value == 0)
            return error_set(r->err, STATUS_DATA, "%s: the value of '%.80s' in %s cannot be used", r->path, pattern,
                             key);
        if (!pattern_is_literal(pattern) && ++r->regexes > MAX_REGEXES)
            return error_set(r->err, STATUS_DATA, "%s: more than %d regular expressions", r->path, MAX_REGEXES);
        char blame[600];
        snprintf(blame, sizeof blame, "%.400s: the regular expression of '%.100s'", r->path, key);
        if (pattern_match_ending(r->model, pattern, blame, STATUS_DATA, marks, r->err)) return -1;
        for (size_t i = 0; i < n; i++) {
            if (!marks[i] || done[i]) continue;
            done[i] = true;
            if (ranks)
                out->ranks[i] = (int)value;
            else
                out->alphas[i] = (float)value;
        }
    }
    return 0;
}

// --- What is trained whole

// modules_to_save matches by plain ending; a module that is trained whole is no target.
static int read_saved(struct reader *r, struct peft_config *out) {
    const struct json *list = json_get(r->root, "modules_to_save"), *tie = json_get(r->root, "ensure_weight_tying");
    if (is_unused(list)) return 0;
    if (json_type(list) != JSON_ARRAY)
        return error_set(r->err, STATUS_DATA, "%s: modules_to_save is %s", r->path, json_type_name(list));
    for (const struct json *v = json_child(list); v; v = json_next(v)) {
        size_t n, found = 0;
        const char *name = json_string(v, &n);
        for (int i = 0; name && i < r->model->n_modules; i++) {
            const struct module *m = &r->model->modules[i];
            size_t length = strlen(m->hf_name);
            if (n > length || strcmp(m->hf_name + length - n, name) != 0) continue;
            if (m->form != MODULE_EMBEDDING && m->form != MODULE_HEAD) continue;
            out->saved[i] = true, out->selected[i] = false;
            found++;
        }
        if (found) continue;
        return error_set(r->err, STATUS_DATA,
                         "%s: modules_to_save names '%.80s'; embedding and head can be trained whole in this version",
                         r->path, name ? name : json_type_name(v));
    }
    if (is_unused(tie) || !r->model->arch.tied) return 0;
    return error_set(r->err, STATUS_DATA,
                     "%s: ensure_weight_tying is set: copies that stay one are not in this version", r->path);
}

// trainable_token_indices: a list, or an object with one for the embedding.
static int read_rows(struct reader *r, struct pool *pool, struct peft_config *out) {
    const struct json *list = json_get(r->root, "trainable_token_indices");
    if (is_unused(list)) return 0;
    int embedding = -1;
    for (int i = 0; i < r->model->n_modules; i++)
        if (r->model->modules[i].form == MODULE_EMBEDDING) embedding = i;
    if (embedding < 0)
        return error_set(r->err, STATUS_DATA, "%s: trainable_token_indices: the base has no embedding", r->path);
    if (json_type(list) == JSON_OBJECT) {
        const struct json *only = json_child(list);
        const char *name = json_key(only, NULL), *path = r->model->modules[embedding].hf_name;
        size_t n = strlen(name), length = strlen(path);
        if (json_next(only) || n > length || strcmp(path + length - n, name) != 0)
            return error_set(r->err, STATUS_DATA, "%s: trainable_token_indices can be of the embedding alone", r->path);
        list = only;
    }
    if (json_type(list) != JSON_ARRAY)
        return error_set(r->err, STATUS_DATA, "%s: trainable_token_indices is %s", r->path, json_type_name(list));
    out->row_ids = pool_array(pool, json_count(list), sizeof *out->row_ids);
    if (!out->row_ids) return error_memory(r->err, "token rows", json_count(list));
    for (const struct json *v = json_child(list); v; v = json_next(v)) {
        int64_t id = -1;
        if (!json_int(v, &id) || id < 0 || id >= r->model->arch.vocab)
            return error_set(r->err, STATUS_DATA,
                             "%s: trainable_token_indices holds %lld; the vocabulary has %d tokens", r->path,
                             (long long)id, r->model->arch.vocab);
        for (int i = 0; i < out->n_rows; i++)
            if (out->row_ids[i] == id)
                return error_set(r->err, STATUS_DATA, "%s: trainable_token_indices holds %lld twice", r->path,
                                 (long long)id);
        out->row_ids[out->n_rows++] = (int32_t)id;
    }
    if (!out->selected[embedding] && !out->saved[embedding]) return 0;
    return error_set(r->err, STATUS_DATA, "%s: trainable_token_indices beside another adapter on the embedding",
                     r->path);
}

// --- All of it

static int read_numbers(struct reader *r, struct pool *pool, struct peft_config *out) {
    int64_t rank = 0;
    double alpha = 0, dropout = 0;
    const char *base = NULL, *bias = NULL;
    size_t length = 0;
    if (json_get_int(r->root, "r", JSON_REQUIRED, &rank, r->err) ||
        json_get_double(r->root, "lora_alpha", JSON_REQUIRED, &alpha, r->err) ||
        json_get_double(r->root, "lora_dropout", JSON_OPTIONAL, &dropout, r->err) ||
        json_get_bool(r->root, "use_rslora", JSON_OPTIONAL, &out->rslora, r->err) ||
        json_get_bool(r->root, "use_dora", JSON_OPTIONAL, &out->dora, r->err) ||
        json_get_string(r->root, "bias", JSON_OPTIONAL, &bias, NULL, r->err) ||
        json_get_string(r->root, "base_model_name_or_path", JSON_OPTIONAL, &base, &length, r->err))
        return error_prefix(r->err, "%s", r->path);
    if (rank < 1 || rank > ADAPTER_MAX_RANK)
        return error_set(r->err, STATUS_DATA, "%s: r is %lld; it must be 1 to %d", r->path, (long long)rank,
                         ADAPTER_MAX_RANK);
    if (!isfinite((float)alpha) || (float)alpha == 0)
        return error_set(r->err, STATUS_DATA, "%s: lora_alpha is %g; it must be a number other than 0", r->path, alpha);
    if (!(dropout >= 0 && dropout < 1))
        return error_set(r->err, STATUS_DATA, "%s: lora_dropout is %g; it must be from 0 to below 1", r->path, dropout);
    out->biases = !bias || strcmp(bias, "none") == 0 ? BIASES_NONE
                  : strcmp(bias, "all") == 0         ? BIASES_ALL
                                                     : BIASES_LORA_ONLY;
    out->r = (int)rank;
    out->alpha = (float)alpha;
    out->dropout = (float)dropout;
    out->base_name = base ? pool_strndup(pool, base, length) : NULL;
    return base && !out->base_name ? error_memory(r->err, "the base's name", length) : 0;
}

static int read_config(struct reader *r, struct pool *pool, struct peft_config *out) {
    if (json_type(r->root) != JSON_OBJECT) return error_set(r->err, STATUS_DATA, "%s: is no JSON object", r->path);
    if (check_values(r) || check_keys(r) || read_numbers(r, pool, out)) return -1;
    size_t n = (size_t)r->model->n_modules + (size_t)r->model->n_norms;
    out->selected = pool_array(pool, n, sizeof *out->selected);
    out->ranks = pool_array(pool, n, sizeof *out->ranks);
    out->alphas = pool_array(pool, n, sizeof *out->alphas);
    out->saved = pool_array(pool, n, sizeof *out->saved);
    if (!out->selected || !out->ranks || !out->alphas || !out->saved)
        return error_memory(r->err, "the module selection", n);
    for (size_t i = 0; i < n; i++) {
        out->ranks[i] = out->r;
        out->alphas[i] = out->alpha;
    }
    if (select_modules(r, pool, out->selected) || read_saved(r, out) || read_rows(r, pool, out)) return -1;
    if (apply_pattern(r, pool, "rank_pattern", out) || apply_pattern(r, pool, "alpha_pattern", out)) return -1;
    for (size_t i = 0; i < n; i++)
        if (out->selected[i]) return 0;
    return error_set(r->err, STATUS_DATA, "%s: target_modules selects no linear of %s", r->path, r->model->name);
}

int peft_config_parse(const char *name, const struct text *bytes, const struct model *model, struct pool *pool,
                      struct peft_config *out, struct error *err) {
    *out = (struct peft_config){0};
    struct json_document document;
    struct json_options options = {.name = name};
    if (json_parse(text_str(bytes), bytes->length, &options, &document, err)) return -1;
    struct reader r = {.path = name, .model = model, .root = document.root, .err = err};
    int status = read_config(&r, pool, out);
    json_free(&document);
    return status;
}

// --- Writing

// The shortest decimal that reads back as this float: 0.05f gives 0.05, not 0.05000000074505806.
static double decimal(float value) {
    char text[32];
    for (int digits = 1; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)value);
        if (strtof(text, NULL) == value) break;
    }
    return strtod(text, NULL);
}

static void put_number(struct json_writer *w, float value) {
    if (value == floorf(value) && fabsf(value) < 1e9f)
        json_put_int(w, (int64_t)value);
    else
        json_put_double(w, decimal(value));
}

// Which layers and kinds have an adapter.
struct coverage {
    bool *grid;  // (layers, MODULE_KINDS)
    bool *layer; // (layers)
    bool kind[MODULE_KINDS];
    bool regular; // every adapted layer has the same kinds
    bool all;     // and every layer is adapted
};

static int coverage_of(const struct adapter *adapter, struct pool *pool, struct coverage *out, struct error *err) {
    int layers = adapter->model->arch.layers;
    *out = (struct coverage){.regular = true, .all = true};
    out->grid = pool_array(pool, (uint64_t)layers * MODULE_KINDS, sizeof *out->grid);
    out->layer = pool_array(pool, (uint64_t)layers, sizeof *out->layer);
    if (!out->grid || !out->layer) return error_memory(err, "the module selection", (size_t)layers);
    for (int i = 0; i < adapter->n_modules; i++) {
        const struct module *m = adapter->modules[i].module;
        if (m->layer < 0 || adapter->modules[i].r == 0) continue; // in no layer, or a bias alone
        out->grid[m->layer * MODULE_KINDS + m->kind] = out->layer[m->layer] = out->kind[m->kind] = true;
    }
    for (int l = 0; l < layers; l++) {
        out->all &= out->layer[l];
        for (int k = 0; k < MODULE_KINDS && out->layer[l]; k++)
            out->regular &= out->grid[l * MODULE_KINDS + k] == out->kind[k];
    }
    return 0;
}

static int compare_strings(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

// Is it listed in target_parameters? A router is a parameter in newer versions of transformers and a linear in older
// ones; PEFT finds it either way, but knows no dropout on parameters.
static bool as_parameter(const struct adapter *adapter, const struct module *m) {
    return m->form == MODULE_PARAMETER || (m->router && adapter->dropout == 0);
}

// Is it listed in target_modules?
static bool as_module(const struct adapter *adapter, const struct adapter_module *m) {
    return m->r > 0 && !as_parameter(adapter, m->module);
}

// Every module by its whole path, each expert too.
static void put_paths(struct json_writer *w, const struct adapter *adapter) {
    for (int i = 0; i < adapter->n_modules; i++) {
        const struct module *m = adapter->modules[i].module;
        const char *d = m->form == MODULE_EXPERTS ? strstr(m->hf_name, "%d") : NULL;
        if (!as_module(adapter, &adapter->modules[i])) continue;
        if (!d) json_put_string(w, m->hf_name);
        for (int e = 0; d && e < m->experts; e++) {
            char path[512];
            snprintf(path, sizeof path, "%.*s%d%s", (int)(d - m->hf_name), m->hf_name, e, d + 2);
            json_put_string(w, path);
        }
    }
}

// Do these short names select, in the layers that have an adapter, nothing but its modules?
static bool selects_exactly(const struct adapter *adapter, const struct coverage *c, const char *const *names,
                            size_t n) {
    for (int i = 0; i < adapter->model->n_modules; i++) {
        const struct module *m = &adapter->model->modules[i];
        bool taken = false, ours = false;
        for (size_t k = 0; k < n; k++) taken |= strcmp(names[k], m->short_name) == 0;
        if (!taken || as_parameter(adapter, m) || (m->layer >= 0 && !c->layer[m->layer])) continue;
        for (int k = 0; k < adapter->n_modules && !ours; k++)
            ours = adapter->modules[k].module == m && adapter->modules[k].r > 0;
        if (!ours) return false;
    }
    return true;
}

// Short names where that selects exactly our modules, else every module by its whole path.
static void put_targets(struct json_writer *w, const struct adapter *adapter, const struct coverage *c) {
    const char *names[MODULE_KINDS];
    size_t n = 0;
    for (int i = 0; i < adapter->n_modules; i++) {
        const struct module *m = adapter->modules[i].module;
        bool listed = !as_module(adapter, &adapter->modules[i]);
        for (size_t k = 0; k < n && !listed; k++) listed = strcmp(names[k], m->short_name) == 0;
        if (!listed) names[n++] = m->short_name;
    }
    qsort(names, n, sizeof *names, compare_strings);
    json_put_key(w, "target_modules");
    json_begin_array(w);
    if (!c->regular || !selects_exactly(adapter, c, names, n)) {
        put_paths(w, adapter);
        n = 0;
    }
    for (size_t k = 0; k < n; k++) json_put_string(w, names[k]);
    json_end_array(w);
}

// Parameters by their path within a layer where every adapted layer has the same, else by their whole path.
static void put_parameters(struct json_writer *w, const struct adapter *adapter, const struct coverage *c) {
    bool any = false;
    for (int i = 0; i < adapter->n_modules; i++)
        any |= adapter->modules[i].r > 0 && as_parameter(adapter, adapter->modules[i].module);
    if (!any) return; // a key that older readers do not know
    int first_layer = -1;
    json_put_key(w, "target_parameters");
    json_begin_array(w);
    for (int i = 0; i < adapter->n_modules; i++) {
        const struct module *m = adapter->modules[i].module;
        char number[32], path[PATTERN_NAME];
        if (adapter->modules[i].r == 0 || !as_parameter(adapter, m) || !pattern_parameter(m, 0, path)) continue;
        snprintf(number, sizeof number, ".%d.", m->layer);
        const char *at = strstr(path, number);
        if (first_layer < 0) first_layer = m->layer;
        if (!c->regular || !c->all || !at)
            json_put_string(w, path);
        else if (m->layer == first_layer)
            json_put_string(w, at + strlen(number));
    }
    json_end_array(w);
}

static void put_saved(struct json_writer *w, const struct adapter *adapter) {
    bool any = false;
    for (int i = 0; i < adapter->n_modules; i++) any |= adapter->modules[i].full != NULL;
    json_put_key(w, "modules_to_save");
    if (!any) {
        json_put_null(w);
        return;
    }
    json_begin_array(w);
    for (int i = 0; i < adapter->n_modules; i++)
        if (adapter->modules[i].full) json_put_string(w, adapter->modules[i].module->short_name);
    json_end_array(w);
}

static void put_rows(struct json_writer *w, const struct adapter *adapter) {
    for (int i = 0; i < adapter->n_modules; i++) {
        const struct adapter_module *m = &adapter->modules[i];
        if (!m->rows) continue;
        json_put_key(w, "trainable_token_indices");
        json_begin_object(w);
        json_put_key(w, m->module->short_name);
        json_begin_array(w);
        for (int k = 0; k < m->n_rows; k++) json_put_int(w, m->row_ids[k]);
        json_end_array(w);
        json_end_object(w);
    }
}

static void put_layers(struct json_writer *w, const struct adapter *adapter, const struct coverage *c) {
    json_put_key(w, "layers_to_transform");
    if (c->all || !c->regular) {
        json_put_null(w);
        return;
    }
    json_begin_array(w);
    for (int l = 0; l < adapter->model->arch.layers; l++)
        if (c->layer[l]) json_put_int(w, l);
    json_end_array(w);
}

static void put_pattern(struct json_writer *w, const struct adapter *adapter, bool ranks) {
    json_put_key(w, ranks ? "rank_pattern" : "alpha_pattern");
    json_begin_object(w);
    for (int i = 0; i < adapter->n_modules; i++) {
        const struct adapter_module *m = &adapter->modules[i];
        if (m->r == 0 || (ranks ? m->r == adapter->r : m->alpha == adapter->alpha)) continue;
        char pattern[PATTERN_NAME];
        const char *name = m->module->hf_name, *d = strstr(name, "%d");
        if (d) snprintf(pattern, sizeof pattern, "%.*s[0-9]+%s", (int)(d - name), name, d + 2);
        if (d || (as_parameter(adapter, m->module) && pattern_parameter(m->module, 0, pattern))) name = pattern;
        json_put_key(w, name);
        put_number(w, ranks ? (float)adapter_file_rank(m) : adapter_file_alpha(adapter, m->alpha));
    }
    json_end_object(w);
}

int peft_config_write(struct text *out, const struct adapter *adapter, struct error *err) {
    static const char *const biases[] = {
        [BIASES_NONE] = "none", [BIASES_LORA_ONLY] = "lora_only", [BIASES_ALL] = "all"};
    struct pool pool = {0};
    struct coverage c;
    if (coverage_of(adapter, &pool, &c, err)) {
        pool_free(&pool);
        return -1;
    }
    struct json_writer w = {.out = out, .style = JSON_PRETTY};
    json_begin_object(&w);
    put_pattern(&w, adapter, false);
    json_put_key(&w, "base_model_name_or_path");
    if (adapter->base_name)
        json_put_string(&w, adapter->base_name);
    else
        json_put_null(&w);
    json_put_key(&w, "bias");
    json_put_string(&w, biases[adapter->biases]);
    json_put_key(&w, "fan_in_fan_out");
    json_put_bool(&w, false);
    json_put_key(&w, "inference_mode");
    json_put_bool(&w, true);
    json_put_key(&w, "init_lora_weights");
    json_put_bool(&w, true);
    json_put_key(&w, "layers_pattern");
    json_put_null(&w);
    put_layers(&w, adapter, &c);
    json_put_key(&w, "lora_alpha");
    put_number(&w, adapter_file_alpha(adapter, adapter->alpha));
    json_put_key(&w, "lora_dropout");
    json_put_double(&w, decimal(adapter->dropout));
    put_saved(&w, adapter);
    json_put_key(&w, "peft_type");
    json_put_string(&w, "LORA");
    json_put_key(&w, "r");
    json_put_int(&w, adapter->pissa ? 2 * adapter->r : adapter->r);
    put_pattern(&w, adapter, true);
    json_put_key(&w, "revision");
    json_put_null(&w);
    put_targets(&w, adapter, &c);
    put_parameters(&w, adapter, &c);
    json_put_key(&w, "task_type");
    json_put_string(&w, "CAUSAL_LM");
    put_rows(&w, adapter);
    json_put_key(&w, "use_dora");
    json_put_bool(&w, adapter->dora);
    json_put_key(&w, "use_rslora");
    json_put_bool(&w, adapter->rslora);
    json_end_object(&w);
    text_char(out, '\n');
    pool_free(&pool);
    return text_failed(out) ? error_memory(err, "adapter_config.json", out->length) : 0;
}
