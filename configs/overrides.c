// `key=value` from the command line, applied to the tree before anything is checked. See loader.h.
#include "configs/loader.h"

#include <string.h>

enum { LONGEST_PATH = 256 };

static bool is_index(const char *segment, size_t *index) {
    size_t n = strspn(segment, "0123456789");
    if (n == 0 || n > 6 || segment[n] != 0) return false;
    *index = 0;
    for (; *segment; segment++) *index = *index * 10 + (size_t)(*segment - '0');
    return true;
}

// The child of `parent` for one segment of the path; made when it is missing. NULL after a problem.
static struct yaml_node *step(struct loader *l, struct yaml_node *parent, const char *segment,
                              const struct yaml_node *value, const char *shown) {
    struct yaml_node *child;
    size_t index = 0;
    if (parent->kind == YAML_LIST) {
        if (!is_index(segment, &index)) {
            loader_problem(l, value, "'%s' is not a number; entries of a list are 0, 1, ...", loader_shown(l, segment));
            return NULL;
        }
        if (index > parent->count) {
            loader_problem(l, value, "%s: the list has only %zu entries", shown, parent->count);
            return NULL;
        }
        for (child = parent->first; child && index > 0; index--) child = child->next;
    } else {
        child = yaml_find(parent, segment);
    }
    if (child) return child;
    child = loader_have(l, pool_alloc(l->pool, sizeof *child));
    const char *name = loader_have(l, pool_strdup(l->pool, segment));
    if (!child || !name) return NULL;
    if (parent->kind == YAML_MAP) yaml_name(child, name);
    child->origin = value->origin;
    child->kind = YAML_SCALAR;
    child->scalar = YAML_NULL;
    child->text = "";
    yaml_append(parent, child);
    return child;
}

// A null becomes the container that the next segment needs.
static bool make_container(struct loader *l, struct yaml_node *node, const char *next, const struct yaml_node *value) {
    size_t index;
    if (node->kind != YAML_SCALAR) return true;
    if (node->scalar != YAML_NULL) {
        loader_problem(l, value, "'%s' has no part '%s': it is '%s'", node->key ? loader_shown(l, node->key) : "",
                       loader_shown(l, next), loader_shown(l, node->text));
        return false;
    }
    node->kind = is_index(next, &index) ? YAML_LIST : YAML_MAP;
    return true;
}

// Puts the value into the tree in place of what is there; the node keeps its name and its place.
static void replace(struct yaml_node *node, const struct yaml_node *value) {
    struct yaml_node *next = node->next;
    const char *key = node->key;
    uint32_t hash = node->key_hash;
    *node = *value;
    node->key = key;
    node->key_hash = hash;
    node->next = next;
}

// The first segment may be another name of a key that the file has.
static const char *name_in_file(const struct yaml_node *root, const char *segment, char buffer[LONGEST_PATH]) {
    const struct config_key *key = key_find(SCOPE_RUN, segment);
    if (!key || !key->aliases || yaml_find(root, segment)) return segment;
    if (yaml_find(root, key->name)) return key->name;
    const char *word = key->aliases;
    while (*word) {
        size_t n = strcspn(word, " ");
        if (n < LONGEST_PATH) {
            memcpy(buffer, word, n);
            buffer[n] = 0;
            if (yaml_find(root, buffer)) return buffer;
        }
        word += n;
        word += strspn(word, " ");
    }
    return segment;
}

void override_apply(struct loader *l, struct yaml_node **root, const char *override) {
    const char *equals = strchr(override, '=');
    size_t length = equals ? (size_t)(equals - override) : 0;
    const char *shown = loader_shown(l, override);
    const char *origin = loader_have(l, pool_printf(l->pool, "override '%s'", shown));
    struct yaml_node *value = loader_have(l, pool_alloc(l->pool, sizeof *value));
    if (!origin || !value) return;
    value->origin = origin;
    if (length == 0 || length >= LONGEST_PATH) {
        loader_problem(l, value, "expected key=value");
        return;
    }
    size_t n = strlen(origin); // the message repeats it
    struct error err = {0};
    struct yaml_node *parsed = NULL;
    if (yaml_parse_value(equals + 1, origin, l->pool, &parsed, &err)) {
        if (err.code == STATUS_MEMORY)
            l->no_memory = true;
        else
            loader_problem(l, value, "%s", strncmp(err.text, origin, n) == 0 ? err.text + n + 2 : err.text);
        return;
    }
    if (!*root) {
        *root = loader_have(l, pool_alloc(l->pool, sizeof **root));
        if (!*root) return;
        (*root)->kind = YAML_MAP;
        (*root)->origin = l->origin;
    }
    char path[LONGEST_PATH], name[LONGEST_PATH];
    memcpy(path, override, length);
    path[length] = 0;
    struct yaml_node *node = *root;
    char *segment = path;
    for (int depth = 1; segment; depth++) {
        char *dot = strchr(segment, '.');
        if (dot) *dot = 0;
        if (*segment == 0 || depth >= YAML_MAX_DEPTH) {
            loader_problem(l, value, "expected key=value");
            return;
        }
        if (!make_container(l, node, segment, value)) return;
        node = step(l, node, node == *root ? name_in_file(node, segment, name) : segment, value, shown);
        if (!node) return;
        segment = dot ? dot + 1 : NULL;
    }
    replace(node, parsed);
}
