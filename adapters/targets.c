// See targets.h.
#include "adapters/targets.h"

#include "adapters/patterns.h"

#include <stdio.h>
#include <string.h>

static bool ends_in(const char *path, const char *name) {
    size_t length = strlen(path), n = strlen(name);
    if (n == 0 || n > length || strcmp(path + length - n, name) != 0) return false;
    return n == length || path[length - n - 1] == '.';
}

static bool named(const struct module *m, const char *name) {
    bool found = false;
    for (int i = 0; module_name(m, i); i++) found |= m->form != MODULE_PARAMETER && ends_in(module_name(m, i), name);
    return found;
}

static bool parameter_named(const struct module *m, const char *name) {
    char path[PATTERN_NAME];
    for (int i = 0; pattern_parameter(m, i, path); i++)
        if (ends_in(path, name)) return true;
    return false;
}

static bool in_layers(const struct target_options *o, int layer) {
    for (size_t i = 0; i < o->n_layers; i++) {
        if (o->layers[i] == layer) return true;
    }
    return o->n_layers == 0;
}

// The names of parameters that the model has, for a message.
static int unknown_parameter(const struct model *model, const char *name, struct error *err) {
    struct text known = {0};
    char path[PATTERN_NAME], number[32];
    for (int k = 0, first = -1; k < model->n_modules; k++) {
        const struct module *m = &model->modules[k];
        if (!pattern_parameter(m, 0, path) || (first >= 0 && m->layer != first)) continue;
        first = m->layer;
        snprintf(number, sizeof number, ".%d.", m->layer);
        const char *at = strstr(path, number);
        text_printf(&known, "%s%s", known.length ? ", " : "", at ? at + strlen(number) : path);
    }
    error_set(err, STATUS_CONFIG, "lora_target_parameters: the base has no parameter '%s'%s%s", name,
              known.length ? "; it has " : "; it is no mixture of experts", text_str(&known));
    text_free(&known);
    return -1;
}

static int check(const struct model *model, const struct target_options *o, struct error *err) {
    for (size_t i = 0; i < o->n_layers; i++) {
        if (o->layers[i] < 0 || o->layers[i] >= model->arch.layers) {
            return error_set(err, STATUS_CONFIG, "peft_layers_to_transform: layer %lld; the model has layers 0 to %d",
                             (long long)o->layers[i], model->arch.layers - 1);
        }
    }
    for (size_t i = 0; i < o->n_names; i++) {
        bool found = false;
        for (int k = 0; k < model->n_modules; k++) found |= named(&model->modules[k], o->names[i]);
        if (!found) {
            return error_set(
                err, STATUS_CONFIG,
                "lora_target_modules: no linear is called '%s'; use q_proj, k_proj, v_proj, o_proj, gate_proj, "
                "up_proj, down_proj or lora_target_linear: true",
                o->names[i]);
        }
    }
    for (size_t i = 0; i < o->n_parameters; i++) {
        bool found = false;
        for (int k = 0; k < model->n_modules; k++) found |= parameter_named(&model->modules[k], o->parameters[i]);
        if (!found) return unknown_parameter(model, o->parameters[i], err);
    }
    return 0;
}

int targets_select(const struct model *model, const struct target_options *o, int *ids, int *n, struct error *err) {
    *n = 0;
    if (check(model, o, err)) return -1;
    bool *marks = mem_zalloc((size_t)model->n_modules, sizeof *marks);
    if (!marks) return error_memory(err, "adapter targets", (size_t)model->n_modules);
    int failed = o->regex ? pattern_match(model, o->regex, "lora_target_modules: the regular expression", STATUS_CONFIG,
                                          marks, err)
                          : 0;
    for (int k = 0; k < model->n_modules && !failed; k++) {
        const struct module *m = &model->modules[k];
        bool linear = m->form == MODULE_LINEAR || m->form == MODULE_EXPERTS, hit = false;
        if (m->form != MODULE_PARAMETER) hit = marks[k] || (o->all_linear && linear && !m->router);
        for (size_t i = 0; i < o->n_names; i++) hit |= named(m, o->names[i]);
        for (size_t i = 0; i < o->n_parameters; i++) hit |= parameter_named(m, o->parameters[i]);
        if (hit && in_layers(o, m->layer)) ids[(*n)++] = m->id;
    }
    mem_free(marks);
    if (!failed && *n == 0)
        failed = error_set(err, STATUS_CONFIG, "lora_target_modules: no linear of the model is selected");
    return failed;
}
