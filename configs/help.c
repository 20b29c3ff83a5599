// `graft help`, `graft help KEY` and docs/config.md, written from the key table.
#include "configs/keys.h"

#include <string.h>

static void type_cell(const struct config_key *key, struct text *out) {
    if (key->choices && key->status == KEY_WORKS)
        key_write_choices(key, KEY_WORKS, out);
    else
        text_add(out, key_type_name(key->type));
    struct text range = {0};
    key_write_range(key, &range);
    if (range.length) text_printf(out, " %s", text_str(&range));
    if (range.failed) out->failed = true;
    text_free(&range);
}

static const char *scope_prefix(enum key_scope scope) {
    return scope == SCOPE_DATASET ? "datasets[]." : "";
}

static void help_key(enum key_scope scope, const struct config_key *key, struct text *out) {
    text_printf(out, "%s%s: %s\n", scope_prefix(scope), key->name, key->help);
    text_add(out, "  type     ");
    type_cell(key, out);
    text_printf(out, "\n  default  %s\n  status   %s\n", *key->fallback ? key->fallback : "(empty)",
                key_status_name(key->status));
    if (key->aliases) text_printf(out, "  also     %s\n", key->aliases);
    for (const struct key_choice *c = key->choices; c && c->name; c++)
        if (c->note && c->status == KEY_WORKS) text_printf(out, "  %s: %s\n", c->name, c->note);
    if (key->choices && key->status == KEY_WORKS) {
        text_add(out, "  not yet  ");
        key_write_choices(key, KEY_NOT_YET, out);
        text_char(out, '\n');
    }
}

static void help_all(struct text *out) {
    text_add(
        out,
        "Keys that work, with their defaults in brackets (graft help KEY says more; docs/config.md has all keys):\n");
    for (size_t s = 0; s < key_table_count; s++) {
        const struct key_section *section = &key_table[s];
        bool titled = false;
        for (size_t i = 0; i < *section->count; i++) {
            const struct config_key *key = &section->rows[i];
            if (key->status != KEY_WORKS || key->type == KEY_GROUP) continue;
            if (!titled) text_printf(out, "\n%s\n", section->title);
            titled = true;
            text_printf(out, "  %s%s", scope_prefix(section->scope), key->name);
            if (*key->fallback) text_printf(out, " [%s]", key->fallback);
            text_printf(out, ": %s\n", key->help);
        }
    }
}

int config_help(const char *name, struct text *out, struct error *err) {
    if (!name) {
        help_all(out);
    } else {
        static const char *const prefixes[] = {"datasets[].", "datasets.", "test_datasets[].", "test_datasets."};
        enum key_scope scope = SCOPE_RUN;
        const char *bare = name;
        for (size_t i = 0; i < COUNT_OF(prefixes); i++) {
            size_t n = strlen(prefixes[i]);
            if (strncmp(name, prefixes[i], n) != 0) continue;
            scope = SCOPE_DATASET;
            bare = name + n;
            break;
        }
        const struct config_key *key = key_find(scope, bare);
        const struct config_key *entry = scope == SCOPE_RUN ? key_find(SCOPE_DATASET, bare) : NULL;
        if (!key && !entry) {
            const char *near = key_nearest(scope, bare);
            return error_set(err, STATUS_USAGE, "unknown key '%.60s'%s%s%s", name, near ? "; did you mean '" : "",
                             near ? near : "", near ? "'?" : "; graft help lists the keys");
        }
        if (key) help_key(scope, key, out);
        if (entry) help_key(SCOPE_DATASET, entry, out);
    }
    return text_failed(out) ? error_memory(err, "the help text", out->length) : 0;
}

// Inside a table '|' would end the cell.
static void cell(struct text *out, const char *s) {
    for (; *s; s++) {
        if (*s == '|') text_char(out, '\\');
        text_char(out, *s);
    }
}

static void docs_row(const struct key_section *section, const struct config_key *key, struct text *out) {
    text_printf(out, "| `%s%s`", scope_prefix(section->scope), key->name);
    if (key->aliases) text_printf(out, " (also `%s`)", key->aliases);
    text_add(out, " | ");
    type_cell(key, out);
    text_add(out, " | ");
    if (*key->fallback) {
        text_char(out, '`');
        cell(out, key->fallback);
        text_char(out, '`');
    }
    text_printf(out, " | %s | ", key_status_name(key->status));
    cell(out, key->help);
    if (key->harmless) {
        text_add(out, " Asks for nothing: `");
        cell(out, key->harmless);
        text_add(out, "`.");
    }
    struct text others = {0};
    if (key->choices && key->status == KEY_WORKS) key_write_choices(key, KEY_NOT_YET, &others);
    if (others.length) text_printf(out, " Not yet: %s.", text_str(&others));
    text_clear(&others);
    if (key->choices) key_write_choices(key, KEY_REFUSED, &others);
    if (others.length) text_printf(out, " Refused: %s.", text_str(&others));
    if (others.failed) out->failed = true;
    text_free(&others);
    text_add(out, " |\n");
}

void config_write_docs(struct text *out) {
    size_t counts[KEY_STATUS_COUNT] = {0}, all = 0;
    for (size_t s = 0; s < key_table_count; s++) {
        for (size_t i = 0; i < *key_table[s].count; i++, all++) counts[key_table[s].rows[i].status]++;
    }
    text_add(out,
             "# Config keys\n\n"
             "Generated from the key table (`graft help --markdown`); do not edit.\n\n"
             "A config is one YAML 1.2 or JSON file of at most 1 MiB, followed on the command line by any number of\n"
             "`key=value` (nested: `dynamic_checkpoint.enabled=true`, `datasets.0.path=rows.jsonl`; lists:\n"
             "`lora_target_modules=[q_proj, v_proj]`); the last one wins. Names and meanings are axolotl's. Empty\n"
             "values mean unset. `yes`, `no`, `on`, `off` are strings, `1e-4` is a number. An unknown key, a wrong\n"
             "type or a value out of range is an error with its line; all of them are reported at once.\n\n");
    text_printf(out, "%zu keys:\n\n| status | keys | meaning |\n| --- | --- | --- |\n", all);
    static const char *const meanings[KEY_STATUS_COUNT] = {
        "does what it says",
        "an error, unless its value asks for nothing (empty, false, the default)",
        "accepted and named once at the start: it steers software that is not used here",
        "an error with the reason, unless its value asks for nothing",
    };
    for (int status = 0; status < KEY_STATUS_COUNT; status++) {
        text_printf(out, "| %s | %zu | %s |\n", key_status_name((enum key_status)status), counts[status],
                    meanings[status]);
    }
    for (size_t s = 0; s < key_table_count; s++) {
        const struct key_section *section = &key_table[s];
        text_printf(out, "\n## %s\n\n| key | type | default | status | |\n| --- | --- | --- | --- | --- |\n",
                    section->title);
        for (size_t i = 0; i < *section->count; i++) docs_row(section, &section->rows[i], out);
    }
}
