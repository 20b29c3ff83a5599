// See targets.h.
#include "adapters/targets.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <string.h>

enum { MATCH_LIMIT = 100000 };

static bool named(const struct module *m, const char *name) {
    size_t length = strlen(m->hf_name), n = strlen(name);
    if (n > length || strcmp(m->hf_name + length - n, name) != 0) return false;
    return n == length || m->hf_name[length - n - 1] == '.';
}

struct matcher {
    pcre2_code *code;
    pcre2_match_data *data;
    pcre2_match_context *context;
};

static void matcher_free(struct matcher *m) {
    pcre2_match_context_free(m->context);
    pcre2_match_data_free(m->data);
    pcre2_code_free(m->code);
}

static int matcher_open(struct matcher *m, const char *regex, struct error *err) {
    int code;
    PCRE2_SIZE at;
    *m = (struct matcher){0};
    m->code = pcre2_compile((PCRE2_SPTR)regex, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_ANCHORED | PCRE2_ENDANCHORED,
                            &code, &at, NULL);
    if (!m->code) {
        PCRE2_UCHAR text[120];
        pcre2_get_error_message(code, text, sizeof text);
        return error_set(err, STATUS_CONFIG, "lora_target_modules: the regular expression fails at character %zu: %s",
                         (size_t)at + 1, (const char *)text);
    }
    m->data = pcre2_match_data_create_from_pattern(m->code, NULL);
    m->context = pcre2_match_context_create(NULL);
    if (!m->data || !m->context) {
        matcher_free(m);
        return error_memory(err, "a regular expression", 0);
    }
    pcre2_set_match_limit(m->context, MATCH_LIMIT);
    pcre2_set_depth_limit(m->context, MATCH_LIMIT);
    return 0;
}

static bool in_layers(const struct target_options *o, int layer) {
    for (size_t i = 0; i < o->n_layers; i++) {
        if (o->layers[i] == layer) return true;
    }
    return o->n_layers == 0;
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
    return 0;
}

int targets_select(const struct model *model, const struct target_options *o, int *ids, int *n, struct error *err) {
    struct matcher matcher = {0};
    *n = 0;
    if (check(model, o, err) || (o->regex && matcher_open(&matcher, o->regex, err))) return -1;
    int failed = 0;
    for (int k = 0; k < model->n_modules && !failed; k++) {
        const struct module *m = &model->modules[k];
        bool hit = o->all_linear && !m->router && (m->form == MODULE_LINEAR || m->form == MODULE_EXPERTS);
        if (m->form == MODULE_PARAMETER) continue;
        for (size_t i = 0; i < o->n_names; i++) hit |= named(m, o->names[i]);
        if (o->regex && !hit) {
            int got = pcre2_match(matcher.code, (PCRE2_SPTR)m->hf_name, strlen(m->hf_name), 0, 0, matcher.data,
                                  matcher.context);
            hit = got >= 0;
            if (got < 0 && got != PCRE2_ERROR_NOMATCH) {
                failed = error_set(err, STATUS_CONFIG,
                                   "lora_target_modules: the regular expression takes too long on '%s'", m->hf_name);
            }
        }
        if (hit && in_layers(o, m->layer)) ids[(*n)++] = m->id;
    }
    if (o->regex) matcher_free(&matcher);
    if (!failed && *n == 0)
        failed = error_set(err, STATUS_CONFIG, "lora_target_modules: no linear of the model is selected");
    return failed;
}
