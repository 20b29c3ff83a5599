// Private part of loading a config: what the steps of load.c share. See run_config.h for what it does.
#pragma once

#include "configs/keys.h"
#include "configs/yaml.h"

enum { MOST_PROBLEMS = 100 }; // lines that are reported; further problems are only counted

struct loader {
    struct run_config *out;
    struct pool *pool;  // out->pool
    const char *origin; // of the config file
    struct text report; // one line per problem
    int problems;
    struct text no_effect; // names for the one notice about keys without effect
    bool no_memory;        // checked once at the end
};

// Adds "ORIGIN:LINE: ..." to the report; `at` NULL stands for the file as a whole.
void loader_problem(struct loader *l, const struct yaml_node *at, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
// Adds a line to print before the run.
void loader_notice(struct loader *l, const char *format, ...) __attribute__((format(printf, 2, 3)));
// Text of a file, fit for a message: at most 60 bytes, whole characters, no control characters. Never NULL.
const char *loader_shown(struct loader *l, const char *text);
// Notes a failed allocation when `p` is NULL; returns p.
void *loader_have(struct loader *l, void *p);

// Stores a value into the member of `key`, which works, inside `base`; `path` names the key in messages.
void value_store(struct loader *l, const struct config_key *key, const char *path, const struct yaml_node *node,
                 void *base);
// Unset: not there, null, or empty text.
bool value_blank(const struct yaml_node *node);
// Stores the defaults of all keys of a scope that work.
void value_defaults(struct loader *l, enum key_scope scope, void *base);
// Does the value of a key that does not work ask for anything? Empty, false, 0 and the default do not.
bool value_asks(const struct config_key *key, const struct yaml_node *node);

// Applies one "key=value" to the tree; *root is made when there is none.
void override_apply(struct loader *l, struct yaml_node **root, const char *override);

// Rules between keys, and values that follow from others.
void config_resolve(struct loader *l, const struct yaml_node *root);
