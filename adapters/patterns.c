// See patterns.h.
#include "adapters/patterns.h"

#include <stdio.h>
#include <string.h>
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

enum { MATCH_LIMIT = 20000, HEAP_KIB = 4096 };

bool pattern_is_literal(const char *pattern) {
    return pattern[strcspn(pattern, "\\^$*+?()[]{}|")] == '\0';
}

static bool literal_matches(const char *pattern, const char *path) {
    size_t n = strlen(pattern), length = strlen(path);
    if (n > length || (n < length && path[length - n - 1] != '.')) return false;
    for (size_t i = 0; i < n; i++)
        if (pattern[i] != '.' && pattern[i] != path[length - n + i]) return false;
    return true;
}

bool pattern_parameter(const struct module *m, int name, char path[PATTERN_NAME]) {
    const char *called = module_name(m, name);
    if (!called || (m->form != MODULE_PARAMETER && !m->router)) return false;
    snprintf(path, PATTERN_NAME, "%s%s", called, m->router ? ".weight" : "");
    return true;
}

const char *pattern_example(const struct module *m, int name, char out[PATTERN_NAME]) {
    const char *called = module_name(m, name), *d = called ? strstr(called, "%d") : NULL;
    if (!d) return called;
    snprintf(out, PATTERN_NAME, "%.*s0%s", (int)(d - called), called, d + 2);
    return out;
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

static int matcher_open(struct matcher *m, const char *regex, const char *blame, int status, struct error *err) {
    int code;
    PCRE2_SIZE at;
    *m = (struct matcher){0};
    m->code = pcre2_compile((PCRE2_SPTR)regex, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_ANCHORED | PCRE2_ENDANCHORED,
                            &code, &at, NULL);
    if (!m->code) {
        PCRE2_UCHAR text[120];
        pcre2_get_error_message(code, text, sizeof text);
        return error_set(err, status, "%s fails at character %zu: %s", blame, (size_t)at + 1, (const char *)text);
    }
    m->data = pcre2_match_data_create_from_pattern(m->code, NULL);
    m->context = pcre2_match_context_create(NULL);
    if (!m->data || !m->context) {
        matcher_free(m);
        return error_memory(err, "a regular expression", 0);
    }
    pcre2_set_match_limit(m->context, MATCH_LIMIT);
    pcre2_set_depth_limit(m->context, MATCH_LIMIT);
    pcre2_set_heap_limit(m->context, HEAP_KIB);
    return 0;
}

static int matcher_try(struct matcher *m, const char *name) {
    return pcre2_match(m->code, (PCRE2_SPTR)name, PCRE2_ZERO_TERMINATED, 0, 0, m->data, m->context);
}

// Any of the module's names.
static int match_one(struct matcher *matcher, const struct module *m, bool parameters) {
    char path[PATTERN_NAME];
    int found = PCRE2_ERROR_NOMATCH;
    for (int name = 0; found == PCRE2_ERROR_NOMATCH && module_name(m, name); name++) {
        found = matcher_try(matcher, pattern_example(m, name, path));
        if (found == PCRE2_ERROR_NOMATCH && parameters && m->router && pattern_parameter(m, name, path))
            found = matcher_try(matcher, path);
    }
    return found;
}

// Marks by whole name; with `parameters`, routers also by the path of their parameter.
static int match_all(const struct model *model, const char *regex, bool parameters, const char *blame, int status,
                     bool *marks, struct error *err) {
    struct matcher matcher;
    if (matcher_open(&matcher, regex, blame, status, err)) return -1;
    int failed = 0;
    for (int i = 0; i < model->n_modules && !failed; i++) {
        const struct module *m = &model->modules[i];
        int found = match_one(&matcher, m, parameters);
        if (found < 0 && found != PCRE2_ERROR_NOMATCH)
            failed = error_set(err, status, "%s takes too many steps on '%s'", blame, m->hf_name);
        marks[i] = found >= 0;
    }
    matcher_free(&matcher);
    return failed;
}

int pattern_match(const struct model *model, const char *regex, const char *blame, int code, bool *marks,
                  struct error *err) {
    return match_all(model, regex, false, blame, code, marks, err);
}

int pattern_match_ending(const struct model *model, const char *key, const char *blame, int code, bool *marks,
                         struct error *err) {
    if (pattern_is_literal(key)) {
        for (int i = 0; i < model->n_modules; i++) {
            const struct module *m = &model->modules[i];
            char path[PATTERN_NAME];
            marks[i] = false;
            for (int name = 0; module_name(m, name) && !marks[i]; name++)
                marks[i] = literal_matches(key, pattern_example(m, name, path)) ||
                           (m->router && pattern_parameter(m, name, path) && literal_matches(key, path));
        }
        return 0;
    }
    struct pool pool = {0};
    char *regex = pool_printf(&pool, "(?:.*\\.)?(?:%s)", key);
    int failed = regex ? match_all(model, regex, true, blame, code, marks, err)
                       : error_memory(err, "a regular expression", strlen(key));
    pool_free(&pool);
    return failed;
}
