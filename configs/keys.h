// The key table: every key we know, one row each. What a key means here, its type, default, range and status stand only
// in the table; the loader, `graft help` and docs/config.md are driven by it.
#pragma once

#include "configs/run_config.h"

enum key_status {
    KEY_WORKS,
    KEY_NOT_YET,   // known, but a value that asks for something is an error
    KEY_NO_EFFECT, // steers software we do not use; accepted, named once in a notice
    KEY_REFUSED,   // will not be done; an error with the reason
    KEY_STATUS_COUNT,
};
const char *key_status_name(enum key_status status);

enum key_type {
    KEY_BOOL,     // bool
    KEY_INT,      // int64_t
    KEY_FLOAT,    // double
    KEY_STEPS,    // double: whole steps, or a fraction of all steps below 1
    KEY_STRING,   // const char *; with `choices`, one of them
    KEY_ENUM,     // int, the value of one of `choices`
    KEY_STRINGS,  // struct config_strings
    KEY_INTS,     // struct config_ints
    KEY_TARGETS,  // struct config_targets: a regular expression or a list of names
    KEY_NAMES,    // struct config_strings: a list of names, or one
    KEY_PATTERNS, // struct config_patterns: a map from regular expressions to whole numbers
    KEY_ROLES,    // struct config_roles: a map from target role to a list of source roles
    KEY_DATASETS, // struct config_datasets: a list of maps, keys of scope SCOPE_DATASET
    KEY_GROUP,    // a map whose keys are the rows "name.*"
    KEY_DICT,     // a map of anything
    KEY_ANY,      // several of the above; only for keys without a member
    KEY_TYPE_COUNT,
};
const char *key_type_name(enum key_type type);

enum key_scope { SCOPE_RUN, SCOPE_DATASET };

struct key_choice {
    const char *name; // NULL ends the list
    int value;
    enum key_status status;
    const char *note; // printed as a notice when it works, as the reason when it does not; may be NULL
};

#define KEY_NO_MEMBER SIZE_MAX
// Bounds that exclude their number.
#define ABOVE_ZERO 0x1p-1022
#define BELOW_ONE  (1 - 0x1p-53)

struct config_key {
    const char *name; // nested ones as "group.name"
    enum key_type type;
    enum key_status status;
    size_t offset;        // of the member in struct run_config or struct dataset_config
    const char *fallback; // default as one writes it; "" = unset
    double low, high;     // of numbers, inclusive
    const struct key_choice *choices;
    const char *aliases;  // other names, separated by spaces; NULL = none
    const char *harmless; // values of a NOT_YET key that ask for nothing, separated by '|'; NULL = none
    const char *help;
};

struct key_section {
    const char *title;
    enum key_scope scope;
    const struct config_key *rows;
    const size_t *count; // of rows
};
extern const struct key_section key_table[];
extern const size_t key_table_count;

// The row called `name` or one of its aliases, else NULL.
const struct config_key *key_find(enum key_scope scope, const char *name);
// The known name nearest to `name` by edit distance (the same group only), else one that begins with it; NULL when
// there is none.
const char *key_nearest(enum key_scope scope, const char *name);
// Same for the choices of a key that work.
const char *key_nearest_choice(const struct config_key *key, const char *name);
// The choice called `name`, else NULL.
const struct key_choice *key_find_choice(const struct config_key *key, const char *name);
// Does the '|' or space separated list hold `word`?
bool key_list_holds(const char *list, char separator, const char *word);

// "from 1 to 1024", "above 0", "" when there is no range worth telling.
void key_write_range(const struct config_key *key, struct text *out);
// "drop, truncate, raise": the choices of one status.
void key_write_choices(const struct config_key *key, enum key_status status, struct text *out);

// `graft help` (key NULL) and `graft help KEY`; an unknown key is a usage error with the nearest one.
int config_help(const char *key, struct text *out, struct error *err);
// docs/config.md.
void config_write_docs(struct text *out);
