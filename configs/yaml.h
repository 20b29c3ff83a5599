// YAML or JSON text to a small tree. libyaml scans, this file bounds: no anchors, aliases, tags, merge keys or second
// documents, so that nothing in a file expands; duplicate keys are refused; scalars mean what the YAML 1.2 core schema
// says (`yes` and `no` are text, `1e-4` is a number). Every node knows where it came from.
#pragma once

#include "kernels/base.h"

enum {
    YAML_MAX_BYTES = 1 << 20,
    YAML_MAX_DEPTH = 32, // lists and maps inside each other; the outermost one counts 1
    YAML_MAX_KEYS = 10000,
    YAML_MAX_NODES = 100000,
};

enum yaml_kind { YAML_SCALAR, YAML_LIST, YAML_MAP };

// What the text of a scalar is. Quoted text is always a string. NONFINITE is .inf, -.inf or .nan: never a legal value
// here, but named, so that the message can say so.
enum yaml_scalar { YAML_NULL, YAML_BOOL, YAML_INT, YAML_FLOAT, YAML_NONFINITE, YAML_STRING };

struct yaml_node {
    enum yaml_kind kind;
    enum yaml_scalar scalar; // scalars only
    const char *text;        // scalars only: NUL-terminated, UTF-8, no NUL inside
    const char *key;         // its name when the parent is a map, else NULL
    uint32_t key_hash;
    const char *origin;             // file name, or the override it came from
    int line, column;               // 1-based, of the key where there is one; line 0: the origin has no lines
    struct yaml_node *first, *last; // children in order
    struct yaml_node *next;
    size_t count; // children
};

// Parses `length` bytes; nodes and strings live in `pool`, origin included. *root is NULL when there is no document
// (empty text, only comments). `lines` false: the text is one value of a command line, positions are not reported.
int yaml_parse(const char *bytes, size_t length, const char *origin, bool lines, struct pool *pool,
               struct yaml_node **root, struct error *err);

// One value as written after `key=`: text that begins with [ { " or ' is parsed, anything else is one plain scalar as
// it stands (so ':' and '#' need no quotes there). Never NULL on success.
int yaml_parse_value(const char *text, const char *origin, struct pool *pool, struct yaml_node **value,
                     struct error *err);

// The child called `key`, or NULL.
struct yaml_node *yaml_find(const struct yaml_node *map, const char *key);
// Appends `child` (its key set, for a map).
void yaml_append(struct yaml_node *parent, struct yaml_node *child);
void yaml_name(struct yaml_node *node, const char *key); // sets key and key_hash; `key` must outlive the node

// What plain text is by the core schema.
enum yaml_scalar yaml_resolve(const char *text);
// The value of a YAML_INT text (decimal, 0x, 0o); false when it does not fit.
bool yaml_int(const char *text, int64_t *value);
// The value of a YAML_INT or YAML_FLOAT text; false when it is neither or not finite.
bool yaml_float(const char *text, double *value);
bool yaml_true(const struct yaml_node *node); // a plain true
bool yaml_null(const struct yaml_node *node); // NULL pointer, or a plain null, ~ or nothing
