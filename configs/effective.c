// The effective configuration as YAML text. See config_write_effective in run_config.h.
#include "configs/keys.h"

#include <stdio.h>
#include <string.h>

// Double-quoted, everything but printable ASCII escaped; strings are well-formed UTF-8 (yaml.c saw to it).
static void quoted(struct text *out, const char *s) {
    text_char(out, '"');
    while (*s) {
        unsigned lead = (unsigned char)*s++;
        if (lead == '"' || lead == '\\') {
            text_char(out, '\\');
            text_char(out, (char)lead);
        } else if (lead >= 0x20 && lead < 0x7f) {
            text_char(out, (char)lead);
        } else if (lead <= 0x7f) {
            text_printf(out, "\\x%02x", lead);
        } else {
            int more = lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : 1;
            unsigned code = lead & (0x3fu >> more);
            for (; more > 0 && *s; more--) code = code << 6 | ((unsigned char)*s++ & 0x3f);
            text_printf(out, code > 0xffff ? "\\U%08x" : "\\u%04x", code);
        }
    }
    text_char(out, '"');
}

static void strings(struct text *out, const struct config_strings *list) {
    text_char(out, '[');
    for (size_t i = 0; i < list->count; i++) {
        if (i) text_add(out, ", ");
        quoted(out, list->items[i]);
    }
    text_char(out, ']');
}

// Pairs of one target stand together, as the loader stored them.
static void roles(struct text *out, const struct config_roles *r) {
    text_char(out, '{');
    for (size_t i = 0; i < r->count; i++) {
        bool first = i == 0 || strcmp(r->to[i], r->to[i - 1]) != 0;
        if (first) {
            if (i) text_add(out, "], ");
            quoted(out, r->to[i]);
            text_add(out, ": [");
        } else {
            text_add(out, ", ");
        }
        quoted(out, r->from[i]);
    }
    text_add(out, r->count ? "]}" : "}");
}

static const char *choice_of(const struct config_key *key, int value) {
    for (const struct key_choice *c = key->choices; c->name; c++)
        if (c->status == KEY_WORKS && c->value == value) return c->name;
    return NULL;
}

static void scope_write(enum key_scope scope, const char *indent, const void *base, struct text *out);

static void datasets(struct text *out, const struct config_datasets *list) {
    for (size_t i = 0; i < list->count; i++) {
        text_add(out, "\n- ");
        scope_write(SCOPE_DATASET, "  ", &list->items[i], out);
    }
}

// Writes the value; false when there is nothing to write (unset).
static bool value_write(const struct config_key *key, const void *member, struct text *out) {
    bool flag;
    int choice;
    int64_t whole;
    double number;
    const char *string;
    switch (key->type) {
    case KEY_BOOL:
        memcpy(&flag, member, sizeof flag);
        text_add(out, flag ? "true" : "false");
        return true;
    case KEY_INT:
        memcpy(&whole, member, sizeof whole);
        if (whole == CONFIG_UNSET) return false;
        text_printf(out, "%lld", (long long)whole);
        return true;
    case KEY_FLOAT:
    case KEY_STEPS:
        memcpy(&number, member, sizeof number);
        if (number == CONFIG_UNSET) return false;
        text_printf(out, "%.17g", number);
        return true;
    case KEY_STRING:
        memcpy(&string, member, sizeof string);
        if (!string) return false;
        quoted(out, string);
        return true;
    case KEY_ENUM:
        memcpy(&choice, member, sizeof choice);
        if (!choice_of(key, choice)) return false;
        // bools stand bare, everything else quoted
        string = choice_of(key, choice);
        if (strcmp(string, "true") == 0 || strcmp(string, "false") == 0)
            text_add(out, string);
        else
            quoted(out, string);
        return true;
    case KEY_NAMES:
    case KEY_STRINGS: strings(out, member); return ((const struct config_strings *)member)->count > 0;
    case KEY_INTS: {
        const struct config_ints *ints = member;
        for (size_t i = 0; i < ints->count; i++) text_printf(out, "%s%lld", i ? ", " : "[", (long long)ints->items[i]);
        text_add(out, "]");
        return ints->count > 0;
    }
    case KEY_PATTERNS: {
        const struct config_patterns *patterns = member;
        text_char(out, '{');
        for (size_t i = 0; i < patterns->count; i++) {
            text_add(out, i ? ", " : "");
            quoted(out, patterns->keys[i]);
            text_printf(out, ": %lld", (long long)patterns->values[i]);
        }
        text_char(out, '}');
        return patterns->count > 0;
    }
    case KEY_TARGETS: {
        const struct config_targets *targets = member;
        if (targets->regex)
            quoted(out, targets->regex);
        else
            strings(out, &targets->names);
        return targets->regex || targets->names.count;
    }
    case KEY_ROLES: roles(out, member); return ((const struct config_roles *)member)->count > 0;
    case KEY_DATASETS: datasets(out, member); return ((const struct config_datasets *)member)->count > 0;
    case KEY_GROUP:
    case KEY_DICT:
    case KEY_ANY:
    case KEY_TYPE_COUNT: break;
    }
    return false;
}

// Rows of a group follow its GROUP row, so nesting is a matter of the last dot.
static void scope_write(enum key_scope scope, const char *indent, const void *base, struct text *out) {
    char group[64] = "";
    bool first = true;
    for (size_t s = 0; s < key_table_count; s++) {
        if (key_table[s].scope != scope) continue;
        for (size_t i = 0; i < *key_table[s].count; i++) {
            const struct config_key *key = &key_table[s].rows[i];
            if (key->status != KEY_WORKS || key->offset == KEY_NO_MEMBER) continue;
            struct text value = {0};
            bool there = value_write(key, (const char *)base + key->offset, &value);
            if (value.failed) out->failed = true;
            const char *dot = strchr(key->name, '.'), *name = key->name;
            if (there && dot) {
                size_t length = (size_t)(dot - key->name);
                if (strncmp(group, key->name, length) != 0 || group[length] != 0) {
                    snprintf(group, sizeof group, "%.*s", (int)length, key->name);
                    text_printf(out, "%s%s:\n", first ? "" : indent, group);
                    first = false;
                }
                text_add(out, "  ");
                name = dot + 1;
            }
            if (there) {
                text_printf(out, "%s%s:%s%s\n", first ? "" : indent, name, key->type == KEY_DATASETS ? "" : " ",
                            text_str(&value));
                first = false;
            }
            text_free(&value);
        }
    }
}

void config_write_effective(const struct run_config *config, struct text *out) {
    scope_write(SCOPE_RUN, "", config, out);
}
