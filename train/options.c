// Arguments of commands. See command.h.
#include "train/command.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct option *find(struct option *options, int n, const char *name, size_t length) {
    for (int i = 0; i < n; i++) {
        if (strlen(options[i].name) == length && memcmp(options[i].name, name, length) == 0) return &options[i];
    }
    return NULL;
}

int options_parse(int *argc, char **argv, struct option *options, int n, struct error *err) {
    int left = 0;
    bool only_positional = false;
    for (int i = 0; i < *argc; i++) {
        char *arg = argv[i];
        if (only_positional || arg[0] != '-' || arg[1] == 0) {
            argv[left++] = arg;
            continue;
        }
        if (strcmp(arg, "--") == 0) {
            only_positional = true;
            continue;
        }
        const char *equals = strchr(arg, '=');
        size_t length = equals ? (size_t)(equals - arg) : strlen(arg);
        struct option *o = find(options, n, arg, length);
        if (!o) {
            struct text known = {0};
            for (int k = 0; k < n; k++) text_printf(&known, "%s%s", k ? ", " : "", options[k].name);
            error_set(err, STATUS_USAGE, "unknown option %.*s; this command has: %s", (int)length, arg,
                      n ? text_str(&known) : "none");
            text_free(&known);
            return -1;
        }
        if (!o->takes_value) {
            if (equals) return error_set(err, STATUS_USAGE, "option %s takes no value", o->name);
            o->value = "";
            continue;
        }
        const char *value = equals ? equals + 1 : i + 1 < *argc ? argv[++i] : NULL;
        if (!value) return error_set(err, STATUS_USAGE, "option %s needs a value", o->name);
        if (o->repeats) {
            if (o->n_values == OPTION_REPEATS)
                return error_set(err, STATUS_USAGE, "more than %d times %s", OPTION_REPEATS, o->name);
            o->values[o->n_values++] = value;
        } else if (o->value)
            return error_set(err, STATUS_USAGE, "option %s is given twice", o->name);
        o->value = value;
    }
    *argc = left;
    return 0;
}

const char *option_value(const struct option *options, const char *name) {
    for (;; options++) {
        if (strcmp(options->name, name) == 0) return options->value;
    }
}

bool option_flag(const struct option *options, const char *name) {
    return option_value(options, name) != NULL;
}

int option_number(const struct option *options, const char *name, double low, double high, double *out,
                  struct error *err) {
    const char *value = option_value(options, name);
    if (!value) return 0;
    char *end;
    double number = strtod(value, &end);
    if (end == value || *end || !(number >= low && number <= high)) {
        return error_set(err, STATUS_USAGE, "option %s: '%s' is not a number from %g to %g", name, value, low, high);
    }
    *out = number;
    return 0;
}

int print_result(const struct text *text, struct error *err) {
    if (text_failed(text)) return error_memory(err, "the result", text->length);
    bool ok = fwrite(text_str(text), 1, text->length, stdout) == text->length;
    if (fflush(stdout) || !ok) return error_set(err, STATUS_IO, "standard output: cannot write");
    return 0;
}
