// File -> tree -> overrides -> key by key -> rules between keys. Problems are collected, not returned, so that a user
// sees all of them at once. See run_config.h and loader.h.
#include "configs/loader.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum {
    MOST_DATASETS = 1000,
    MOST_GUESSES = 20, // looking for the nearest key takes time; a file with more typos is something else
};

void *loader_have(struct loader *l, void *p) {
    if (!p) l->no_memory = true;
    return p;
}

void loader_problem(struct loader *l, const struct yaml_node *at, const char *format, ...) {
    if (++l->problems > MOST_PROBLEMS) return;
    char message[512];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    const char *origin = at ? at->origin : l->origin;
    if (at && at->line)
        text_printf(&l->report, "%s:%d: %s\n", origin, at->line, message);
    else
        text_printf(&l->report, "%s: %s\n", origin, message);
}

void loader_notice(struct loader *l, const char *format, ...) {
    char message[512];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    struct config_strings *notices = &l->out->notices;
    const char **items = loader_have(l, pool_array(l->pool, notices->count + 1, sizeof(char *)));
    const char *line = loader_have(l, pool_strdup(l->pool, message));
    if (!items || !line) return;
    if (notices->count) memcpy(items, notices->items, notices->count * sizeof(char *));
    items[notices->count++] = line;
    notices->items = items;
}

const char *loader_shown(struct loader *l, const char *text) {
    size_t length = strlen(text), n = length;
    if (n > 60) {
        n = 57;
        while (n > 0 && ((unsigned char)text[n] & 0xc0) == 0x80) n--; // not inside a character
    }
    char *copy = loader_have(l, pool_alloc(l->pool, n + 4));
    if (!copy) return "";
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)text[i], next = (unsigned char)text[i + 1]; // at worst the NUL
        copy[i] = text[i];
        if (c < 0x20 || c == 0x7f) copy[i] = '?';
        if (c == 0xc2 && next < 0xa0 && i + 1 < n) copy[i] = copy[i + 1] = '?', i++; // U+0080 to U+009F
    }
    memcpy(copy + n, n < length ? "..." : "", n < length ? 4 : 1);
    return copy;
}

static void apply_map(struct loader *l, enum key_scope scope, const char *group, const char *shown_group,
                      const struct yaml_node *map, void *base, bool names_only);

static void unknown_key(struct loader *l, enum key_scope scope, const char *name, const char *path,
                        const struct yaml_node *node) {
    const char *shown = loader_shown(l, path), *bare = strrchr(name, '.') ? strrchr(name, '.') + 1 : name;
    bool top = key_find(SCOPE_RUN, bare) != NULL, entry = key_find(SCOPE_DATASET, bare) != NULL;
    const char *near = l->problems < MOST_GUESSES ? key_nearest(scope, name) : NULL;
    if (scope == SCOPE_RUN && entry && !top)
        loader_problem(l, node, "unknown key '%s' here; it belongs into an entry of datasets", shown);
    else if (top && (scope == SCOPE_DATASET || strchr(name, '.')))
        loader_problem(l, node, "unknown key '%s' here; it belongs to the top level", shown);
    else if (near)
        loader_problem(l, node, "unknown key '%s'; did you mean '%s'?", shown, near);
    else
        loader_problem(l, node, "unknown key '%s'; graft help lists the keys", shown);
}

// A key that does not work: an error when it asks for something, or a name in the notice.
static void other_key(struct loader *l, const struct config_key *key, const char *path, const struct yaml_node *node) {
    if (!value_asks(key, node)) return;
    if (key->status == KEY_NO_EFFECT) {
        for (const struct yaml_node *item = node->kind == YAML_LIST ? node->first : node; item && key->choices;
             item = item == node ? NULL : item->next) {
            if (item->kind == YAML_SCALAR && key_find_choice(key, item->text)) continue;
            loader_problem(l, item, "%s: '%s' is not in this version", path,
                           item->kind == YAML_SCALAR ? loader_shown(l, item->text) : "this");
            return;
        }
        text_printf(&l->no_effect, "%s%s", l->no_effect.length ? ", " : "", path);
        return;
    }
    const struct key_choice *choice = node->kind == YAML_SCALAR ? key_find_choice(key, node->text) : NULL;
    bool refused = key->status == KEY_REFUSED || (choice && choice->status == KEY_REFUSED);
    const char *why = choice && choice->note ? choice->note : key->help;
    int n = (int)strlen(why) - (why[strlen(why) - 1] == '.'); // help is a sentence, the message goes on
    if (refused)
        loader_problem(l, node, "%s: refused (%.*s); remove it or leave it empty", path, n, why);
    else
        loader_problem(l, node, "%s: known key, not in this version yet (%.*s); remove it or leave it empty", path, n,
                       why);
}

static void apply_datasets(struct loader *l, const struct config_key *key, const struct yaml_node *node, void *base) {
    if (node->kind != YAML_LIST) {
        loader_problem(l, node, "%s: expected a list of entries, each beginning with '- path: ...'", key->name);
        return;
    }
    if (node->count > MOST_DATASETS) {
        loader_problem(l, node, "%s: more than %d entries", key->name, MOST_DATASETS);
        return;
    }
    struct config_datasets made = {0};
    made.items = loader_have(l, pool_array(l->pool, node->count + 1, sizeof *made.items));
    if (!made.items) return;
    for (const struct yaml_node *item = node->first; item; item = item->next) {
        struct dataset_config *entry = &made.items[made.count];
        char path[64];
        snprintf(path, sizeof path, "%s.%zu", key->name, made.count);
        if (item->kind != YAML_MAP) {
            loader_problem(l, item, "%s: expected a map with path and type", path);
            continue;
        }
        made.count++;
        value_defaults(l, SCOPE_DATASET, entry);
        entry->line = item->line;
        strcat(path, ".");
        apply_map(l, SCOPE_DATASET, "", path, item, entry, false);
        if (value_blank(yaml_find(item, "path"))) loader_problem(l, item, "%spath is required: a JSONL file", path);
        if (value_blank(yaml_find(item, "train_on_eot"))) entry->train_on_eot = entry->train_on_eos;
    }
    memcpy((char *)base + key->offset, &made, sizeof made);
}

static void apply_key(struct loader *l, enum key_scope scope, const struct config_key *key, const char *path,
                      const struct yaml_node *node, void *base, bool names_only) {
    if (key->type == KEY_GROUP) {
        if (yaml_null(node)) return;
        if (node->kind != YAML_MAP) {
            loader_problem(l, node, "%s: expected a map of keys", path);
            return;
        }
        if (key->status != KEY_WORKS && !names_only) other_key(l, key, path, node);
        char group[128], shown_group[258];
        snprintf(group, sizeof group, "%s.", key->name);
        snprintf(shown_group, sizeof shown_group, "%s.", path);
        apply_map(l, scope, group, shown_group, node, base, names_only || key->status != KEY_WORKS);
    } else if (names_only) {
        return; // the group was refused as a whole
    } else if (key->status != KEY_WORKS) {
        other_key(l, key, path, node);
    } else if (value_blank(node)) {
        return; // the default stays
    } else if (key->type == KEY_DATASETS) {
        apply_datasets(l, key, node, base);
    } else {
        value_store(l, key, path, node, base);
    }
}

// A key given under two of its names.
static bool given_twice(struct loader *l, const struct config_key *key, size_t group, const char *path,
                        const struct yaml_node *map, const struct yaml_node *node) {
    if (!key->aliases) return false;
    for (const struct yaml_node *before = map->first; before != node; before = before->next) {
        char name[192];
        snprintf(name, sizeof name, "%.*s%.120s", (int)group, key->name, before->key);
        if (strcmp(name, key->name) != 0 && !key_list_holds(key->aliases, ' ', name)) continue;
        loader_problem(l, node, "%s: given twice, also as '%s'", path, before->key);
        return true;
    }
    return false;
}

// `group` is the prefix of the names in the table ("dynamic_checkpoint."), `shown_group` that in messages.
static void apply_map(struct loader *l, enum key_scope scope, const char *group, const char *shown_group,
                      const struct yaml_node *map, void *base, bool names_only) {
    for (const struct yaml_node *node = map->first; node && !l->no_memory; node = node->next) {
        char name[192], path[256];
        size_t length = strlen(node->key);
        bool whole = length <= 64 && strchr(node->key, '.') == NULL; // longer or dotted ones are in no table
        snprintf(name, sizeof name, "%s%.64s", group, node->key);
        snprintf(path, sizeof path, "%s%.64s", shown_group, node->key);
        const struct config_key *key = whole ? key_find(scope, name) : NULL;
        if (!key)
            unknown_key(l, scope, name, path, node);
        else if (!given_twice(l, key, strlen(group), path, map, node))
            apply_key(l, scope, key, path, node, base, names_only);
    }
}

// The first problems and their number, as far as they fit.
static int problems_error(const struct loader *l, struct error *err) {
    char message[sizeof err->text - 32];
    size_t used = 0;
    int shown = 0;
    for (const char *line = text_str(&l->report); *line && shown < 20; shown++) {
        size_t n = strcspn(line, "\n");
        if (used + n + 3 > sizeof message) break;
        if (used) used += (size_t)snprintf(message + used, sizeof message - used, "; ");
        memcpy(message + used, line, n);
        used += n;
        line += n + (line[n] == '\n');
    }
    if (used == 0) { // one very long line
        used = strcspn(text_str(&l->report), "\n");
        if (used > sizeof message - 1) used = sizeof message - 1;
        memcpy(message, text_str(&l->report), used);
        shown = 1;
    }
    message[used] = 0;
    if (l->problems == 1) return error_set(err, STATUS_CONFIG, "%s", message);
    if (l->problems > shown)
        return error_set(err, STATUS_CONFIG, "%d errors: %s; and %d more", l->problems, message, l->problems - shown);
    return error_set(err, STATUS_CONFIG, "%d errors: %s", l->problems, message);
}

static int load_tree(struct loader *l, struct yaml_node *root, int n_overrides, const char *const *overrides) {
    if (root && root->kind != YAML_MAP) {
        loader_problem(l, root, "a config is a map of keys, not %s", root->kind == YAML_LIST ? "a list" : "one value");
        return -1;
    }
    for (int i = 0; i < n_overrides; i++) override_apply(l, &root, overrides[i]);
    value_defaults(l, SCOPE_RUN, l->out);
    if (root) apply_map(l, SCOPE_RUN, "", "", root, l->out, false);
    if (l->no_effect.length) loader_notice(l, "no effect here: %s", text_str(&l->no_effect));
    if (!l->no_memory) config_resolve(l, root);
    return 0;
}

int config_parse(const char *bytes, size_t length, const char *origin, int n_overrides, const char *const *overrides,
                 struct run_config *out, struct text *report, struct error *err) {
    *out = (struct run_config){0};
    struct loader l = {.out = out, .pool = &out->pool, .origin = origin};
    struct error local = {0};
    struct yaml_node *root = NULL;
    int rc = yaml_parse(bytes, length, origin, true, l.pool, &root, &local);
    if (rc == 0) load_tree(&l, root, n_overrides, overrides);
    if (rc == 0 && l.problems) rc = problems_error(&l, &local);
    if (l.no_memory || l.report.failed || l.no_effect.failed) {
        local = (struct error){0};
        rc = error_memory(&local, "the config", length);
    }
    if (rc) {
        if (report && l.report.length) {
            text_append(report, l.report.data, l.report.length);
            if (l.problems > MOST_PROBLEMS)
                text_printf(report, "%s: and %d more\n", origin, l.problems - MOST_PROBLEMS);
        } else if (report) {
            text_printf(report, "%s\n", local.text);
        }
        error_set(err, local.code, "%s", local.text);
        config_free(out);
    }
    text_free(&l.report);
    text_free(&l.no_effect);
    return rc;
}

int config_load_report(const char *path, int n_overrides, const char *const *overrides, struct run_config *out,
                       struct text *report, struct error *err) {
    *out = (struct run_config){0};
    struct text bytes = {0};
    struct error local = {0};
    if (file_read(path, YAML_MAX_BYTES, &bytes, &local)) {
        text_free(&bytes);
        // Too large is a matter of the config, whatever file.c calls it.
        return error_set(err, local.code == STATUS_DATA ? STATUS_CONFIG : local.code, "%s", local.text);
    }
    int rc = config_parse(text_str(&bytes), bytes.length, path, n_overrides, overrides, out, report, err);
    text_free(&bytes);
    return rc;
}

int config_load(const char *path, int n_overrides, const char *const *overrides, struct run_config *out,
                struct error *err) {
    return config_load_report(path, n_overrides, overrides, out, NULL, err);
}

void config_free(struct run_config *config) {
    pool_free(&config->pool);
    *config = (struct run_config){0};
}
