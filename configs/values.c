// From a node of the tree to a member of the config struct: type, range, choices. See loader.h.
#include "configs/loader.h"

#include <stdio.h>
#include <string.h>

enum { MOST_ROLES = 1000 };

static const char *kind_name(const struct yaml_node *node) {
    if (node->kind == YAML_LIST) return node->count ? "a list" : "an empty list";
    return node->count ? "a map" : "an empty map";
}

static void *member(const struct config_key *key, void *base) {
    return (char *)base + key->offset;
}

// "expected WHAT, got ..." with the hints that save a second try.
static void wrong(struct loader *l, const char *path, const struct yaml_node *node, const char *expected) {
    if (node->kind != YAML_SCALAR) {
        loader_problem(l, node, "%s: expected %s, got %s", path, expected, kind_name(node));
    } else if (node->scalar == YAML_NONFINITE) {
        loader_problem(l, node, "%s: expected %s, got %s; infinity and NaN are not allowed", path, expected,
                       node->text);
    } else {
        loader_problem(l, node, "%s: expected %s, got '%s'", path, expected, loader_shown(l, node->text));
    }
}

static void store_bool(struct loader *l, const struct config_key *key, const char *path, const struct yaml_node *node,
                       void *base) {
    static const char *const yes[] = {"yes", "Yes", "YES", "on", "On", "ON", "y", "Y", "true", "True", "1"};
    static const char *const no[] = {"no", "No", "NO", "off", "Off", "OFF", "n", "N", "false", "False", "0"};
    if (node->kind == YAML_SCALAR && node->scalar == YAML_BOOL) {
        bool value = yaml_true(node);
        memcpy(member(key, base), &value, sizeof value);
        return;
    }
    const char *hint = NULL;
    for (size_t i = 0; node->kind == YAML_SCALAR && i < COUNT_OF(yes); i++) {
        if (strcmp(node->text, yes[i]) == 0) hint = "true";
        if (strcmp(node->text, no[i]) == 0) hint = "false";
    }
    if (hint)
        loader_problem(l, node, "%s: '%s' is no bool in YAML 1.2; write %s", path, node->text, hint);
    else
        wrong(l, path, node, "true or false");
}

// "a whole number from 1 to 8"
static void expect_range(struct loader *l, const struct config_key *key, const char *path, const struct yaml_node *node,
                         const char *what) {
    struct text t = {0};
    text_printf(&t, "%s ", what);
    key_write_range(key, &t);
    if (t.failed) l->no_memory = true;
    wrong(l, path, node, text_str(&t));
    text_free(&t);
}

static bool int_value(struct loader *l, const struct config_key *key, const char *path, const struct yaml_node *node,
                      int64_t *value) {
    bool plain = node->kind == YAML_SCALAR;
    if (plain && node->scalar == YAML_INT && yaml_int(node->text, value) && (double)*value >= key->low &&
        (double)*value <= key->high)
        return true;
    if (plain && node->scalar == YAML_STRING && yaml_resolve(node->text) == YAML_INT)
        loader_problem(l, node, "%s: '%s' is quoted text; remove the quotes", path, node->text);
    else
        expect_range(l, key, path, node, "a whole number");
    return false;
}

// Numbers in quotes count too: YAML 1.1 readers take `1e-4` for text, so many files quote it.
static bool float_value(struct loader *l, const struct config_key *key, const char *path, const struct yaml_node *node,
                        double *value) {
    if (node->kind == YAML_SCALAR && yaml_float(node->text, value) && *value >= key->low && *value <= key->high)
        return true;
    expect_range(l, key, path, node, "a number");
    return false;
}

static void store_steps(struct loader *l, const struct config_key *key, const char *path, const struct yaml_node *node,
                        void *base) {
    double value;
    if (!float_value(l, key, path, node, &value)) return;
    if (value >= 1 && value != (double)(int64_t)value) { // high is 2^40, so the cast is exact
        wrong(l, path, node, "whole steps, or a part of the run below 1");
        return;
    }
    memcpy(member(key, base), &value, sizeof value);
}

// Strings may be written like numbers (a name such as 2024); true and false are more likely a mistake.
static const char *string_value(struct loader *l, const char *path, const struct yaml_node *node) {
    if (node->kind == YAML_SCALAR && node->scalar != YAML_BOOL && node->scalar != YAML_NULL) return node->text;
    wrong(l, path, node, node->kind == YAML_SCALAR ? "text (in quotes, if it is meant)" : "text");
    return NULL;
}

// What a bool or a string says as the name of a choice; NULL after a problem.
static const char *choice_name(struct loader *l, const char *path, const struct yaml_node *node) {
    if (node->kind == YAML_SCALAR && node->scalar == YAML_BOOL) return yaml_true(node) ? "true" : "false";
    return string_value(l, path, node);
}

static const struct key_choice *choice_value(struct loader *l, const struct config_key *key, const char *path,
                                             const struct yaml_node *node) {
    const char *name = choice_name(l, path, node);
    if (!name) return NULL;
    const struct key_choice *choice = key_find_choice(key, name);
    if (choice && choice->status == KEY_WORKS) {
        if (choice->note) loader_notice(l, "%s: %s %s", path, name, choice->note);
        return choice;
    }
    struct text works = {0};
    key_write_choices(key, KEY_WORKS, &works);
    if (works.failed) l->no_memory = true;
    if (choice) {
        loader_problem(l, node, "%s: '%s' is %s; %s%s", path, name,
                       choice->status == KEY_REFUSED ? "refused" : "not in this version yet",
                       choice->note ? choice->note : "there are ", choice->note ? "" : text_str(&works));
    } else {
        const char *near = key_nearest_choice(key, name);
        loader_problem(l, node, "%s: expected one of %s, got '%s'%s%s%s", path, text_str(&works), loader_shown(l, name),
                       near ? "; did you mean '" : "", near ? near : "", near ? "'?" : "");
    }
    text_free(&works);
    return NULL;
}

static bool strings_value(struct loader *l, const char *path, const struct yaml_node *node,
                          struct config_strings *strings) {
    struct config_strings made = {loader_have(l, pool_array(l->pool, node->count + 1, sizeof(char *))), 0};
    if (!made.items) return false;
    for (const struct yaml_node *item = node->first; item; item = item->next) {
        const char *text = string_value(l, path, item);
        if (!text) return false;
        made.items[made.count++] = text;
    }
    *strings = made;
    return true;
}

static void store_strings(struct loader *l, const struct config_key *key, const char *path,
                          const struct yaml_node *node, void *base) {
    struct config_strings strings;
    if (node->kind != YAML_LIST)
        wrong(l, path, node, "a list of strings, such as [a, b]");
    else if (node->count == 0 && *key->fallback)
        wrong(l, path, node, "at least one name");
    else if (strings_value(l, path, node, &strings))
        memcpy(member(key, base), &strings, sizeof strings);
}

static void store_ints(struct loader *l, const struct config_key *key, const char *path, const struct yaml_node *node,
                       void *base) {
    if (node->kind != YAML_LIST) {
        wrong(l, path, node, "a list of whole numbers, such as [0, 1]");
        return;
    }
    struct config_ints made = {loader_have(l, pool_array(l->pool, node->count + 1, sizeof(int64_t))), 0};
    if (!made.items) return;
    for (const struct yaml_node *item = node->first; item; item = item->next)
        if (!int_value(l, key, path, item, &made.items[made.count++])) return;
    memcpy(member(key, base), &made, sizeof made);
}

static void store_targets(struct loader *l, const struct config_key *key, const char *path,
                          const struct yaml_node *node, void *base) {
    struct config_targets targets = {0};
    if (node->kind == YAML_LIST) {
        if (!strings_value(l, path, node, &targets.names)) return;
    } else {
        if (node->kind == YAML_MAP) {
            wrong(l, path, node, "a list of module names or a regular expression");
            return;
        }
        targets.regex = string_value(l, path, node);
        if (!targets.regex) return;
    }
    memcpy(member(key, base), &targets, sizeof targets);
}

static void store_names(struct loader *l, const struct config_key *key, const char *path, const struct yaml_node *node,
                        void *base) {
    struct config_strings names = {0};
    if (node->kind == YAML_MAP) {
        wrong(l, path, node, "a list of names, or one name");
        return;
    }
    if (node->kind == YAML_LIST) {
        if (!strings_value(l, path, node, &names)) return;
    } else {
        names = (struct config_strings){loader_have(l, pool_array(l->pool, 1, sizeof(char *))), 1};
        if (!names.items || !(names.items[0] = string_value(l, path, node))) return;
    }
    memcpy(member(key, base), &names, sizeof names);
}

static void store_patterns(struct loader *l, const struct config_key *key, const char *path,
                           const struct yaml_node *node, void *base) {
    if (node->kind != YAML_MAP) {
        wrong(l, path, node, "a map such as {down_proj: 32}");
        return;
    }
    struct config_patterns made = {loader_have(l, pool_array(l->pool, node->count + 1, sizeof(char *))),
                                   loader_have(l, pool_array(l->pool, node->count + 1, sizeof(int64_t))), 0};
    if (!made.keys || !made.values) return;
    for (const struct yaml_node *item = node->first; item; item = item->next, made.count++) {
        if (!int_value(l, key, path, item, &made.values[made.count])) return;
        made.keys[made.count] = item->key;
    }
    memcpy(member(key, base), &made, sizeof made);
}

// {target: [source, ...]}, one string allowed instead of a list; flattened to pairs.
static void store_roles(struct loader *l, const struct config_key *key, const char *path, const struct yaml_node *node,
                        void *base) {
    if (node->kind != YAML_MAP) {
        wrong(l, path, node, "a map such as {user: [human], assistant: [gpt]}");
        return;
    }
    if (node->count == 0) {
        wrong(l, path, node, "at least one role");
        return;
    }
    size_t count = 0;
    for (const struct yaml_node *target = node->first; target; target = target->next)
        count += target->kind == YAML_LIST ? target->count : 1;
    if (count > MOST_ROLES) {
        loader_problem(l, node, "%s: more than %d roles", path, MOST_ROLES);
        return;
    }
    struct config_roles made = {loader_have(l, pool_array(l->pool, count + 1, sizeof(char *))),
                                loader_have(l, pool_array(l->pool, count + 1, sizeof(char *))), 0};
    if (!made.from || !made.to) return;
    for (const struct yaml_node *target = node->first; target; target = target->next) {
        const struct yaml_node *source = target->kind == YAML_LIST ? target->first : target;
        for (; source; source = target->kind == YAML_LIST ? source->next : NULL) {
            const char *from = string_value(l, path, source);
            if (!from) return;
            for (size_t i = 0; i < made.count; i++) {
                if (strcmp(made.from[i], from) != 0) continue;
                loader_problem(l, source, "%s: role '%s' is given twice", path, loader_shown(l, from));
                return;
            }
            made.from[made.count] = from;
            made.to[made.count++] = target->key;
        }
    }
    memcpy(member(key, base), &made, sizeof made);
}

void value_store(struct loader *l, const struct config_key *key, const char *path, const struct yaml_node *node,
                 void *base) {
    const struct key_choice *choice;
    const char *text;
    int64_t whole;
    double number;
    switch (key->type) {
    case KEY_BOOL: store_bool(l, key, path, node, base); return;
    case KEY_INT:
        if (int_value(l, key, path, node, &whole)) memcpy(member(key, base), &whole, sizeof whole);
        return;
    case KEY_FLOAT:
        if (float_value(l, key, path, node, &number)) memcpy(member(key, base), &number, sizeof number);
        return;
    case KEY_STEPS: store_steps(l, key, path, node, base); return;
    case KEY_STRING:
        if (key->choices) {
            choice = choice_value(l, key, path, node);
            text = choice ? choice->name : NULL;
        } else {
            text = string_value(l, path, node);
        }
        if (text) memcpy(member(key, base), &text, sizeof text);
        return;
    case KEY_ENUM:
        choice = choice_value(l, key, path, node);
        if (choice) memcpy(member(key, base), &choice->value, sizeof choice->value);
        return;
    case KEY_STRINGS: store_strings(l, key, path, node, base); return;
    case KEY_INTS: store_ints(l, key, path, node, base); return;
    case KEY_TARGETS: store_targets(l, key, path, node, base); return;
    case KEY_NAMES: store_names(l, key, path, node, base); return;
    case KEY_PATTERNS: store_patterns(l, key, path, node, base); return;
    case KEY_ROLES: store_roles(l, key, path, node, base); return;
    case KEY_DATASETS:
    case KEY_GROUP:
    case KEY_DICT:
    case KEY_ANY:
    case KEY_TYPE_COUNT: break; // no member, or stored by load.c
    }
}

void value_defaults(struct loader *l, enum key_scope scope, void *base) {
    for (size_t s = 0; s < key_table_count; s++) {
        if (key_table[s].scope != scope) continue;
        for (size_t i = 0; i < *key_table[s].count; i++) {
            const struct config_key *key = &key_table[s].rows[i];
            if (key->status != KEY_WORKS || key->offset == KEY_NO_MEMBER) continue;
            if (*key->fallback) {
                struct yaml_node *node = NULL;
                struct error err = {0};
                if (yaml_parse_value(key->fallback, "default", l->pool, &node, &err))
                    l->no_memory = true;
                else
                    value_store(l, key, key->name, node, base);
            } else if (key->type == KEY_INT) {
                int64_t unset = CONFIG_UNSET;
                memcpy(member(key, base), &unset, sizeof unset);
            } else if (key->type == KEY_FLOAT || key->type == KEY_STEPS) {
                double unset = CONFIG_UNSET;
                memcpy(member(key, base), &unset, sizeof unset);
            }
        }
    }
}

bool value_blank(const struct yaml_node *node) {
    return yaml_null(node) || (node->kind == YAML_SCALAR && !*node->text);
}

static bool same_value(const char *a, const char *b) {
    double x, y;
    if (yaml_float(a, &x) && yaml_float(b, &y)) return x == y;
    return strcmp(a, b) == 0;
}

bool value_asks(const struct config_key *key, const struct yaml_node *node) {
    if (node->kind != YAML_SCALAR) {
        if (node->kind == YAML_LIST) return node->count > 0;
        for (const struct yaml_node *child = node->first; child; child = child->next)
            if (value_asks(key, child)) return true;
        return false;
    }
    const char *text = node->scalar == YAML_BOOL ? (yaml_true(node) ? "true" : "false") : node->text;
    if (value_blank(node)) return false;
    if (same_value(text, key->fallback) || key_list_holds(key->harmless, '|', text)) return false;
    if (*key->fallback) return true; // there is a default, and this is not it
    double number;
    if (strcmp(text, "false") == 0 || strcmp(text, "no") == 0) return false;
    return !(node->scalar != YAML_STRING && yaml_float(text, &number) && number == 0);
}
