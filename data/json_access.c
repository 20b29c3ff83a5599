// Looking at a parsed document: see json.h, and json.c for what lies in the fields of a node.
#include "data/json.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <string.h>

// --- Looking

static const cJSON *node(const struct json *value) {
    return (const cJSON *)value;
}
static const struct json *wrap(const cJSON *value) {
    return (const struct json *)value;
}

static bool is(const struct json *value, int type) {
    return value && (node(value)->type & 0xFF) == type;
}

enum json_type json_type(const struct json *value) {
    switch (node(value)->type & 0xFF) {
    case cJSON_True:
    case cJSON_False: return JSON_BOOL;
    case cJSON_Number: return JSON_NUMBER;
    case cJSON_String: return JSON_STRING;
    case cJSON_Array: return JSON_ARRAY;
    case cJSON_Object: return JSON_OBJECT;
    default: return JSON_NULL;
    }
}

static const char *type_name(enum json_type type) {
    static const char *const names[] = {"null", "a boolean", "a number", "a string", "an array", "an object"};
    return names[type];
}

bool json_is(const struct json *value, enum json_type type) {
    return value && json_type(value) == type;
}

const char *json_type_name(const struct json *value) {
    return value ? type_name(json_type(value)) : "missing";
}

static const cJSON *find(const cJSON *object, const char *key, size_t length) {
    for (const cJSON *a = object->child; a; a = a->next)
        if ((size_t)a->valueint == length && memcmp(a->string, key, length) == 0) return a;
    return NULL;
}

const struct json *json_get(const struct json *object, const char *key) {
    return is(object, cJSON_Object) ? wrap(find(node(object), key, strlen(key))) : NULL;
}

const struct json *json_child(const struct json *container) {
    return container ? wrap(node(container)->child) : NULL;
}
const struct json *json_next(const struct json *value) {
    return wrap(node(value)->next);
}

size_t json_count(const struct json *container) {
    return is(container, cJSON_Array) || is(container, cJSON_Object) ? (size_t)node(container)->valuedouble : 0;
}

const char *json_key(const struct json *value, size_t *length) {
    if (!value || !node(value)->string) return NULL;
    if (length) *length = (size_t)node(value)->valueint;
    return node(value)->string;
}

const char *json_string(const struct json *value, size_t *length) {
    if (!is(value, cJSON_String)) return NULL;
    if (length) *length = (size_t)node(value)->valuedouble;
    return node(value)->valuestring;
}

bool json_double(const struct json *value, double *out) {
    if (!is(value, cJSON_Number)) return false;
    *out = node(value)->valuedouble;
    return true;
}

// 2^53 itself is refused: 2^53 + 1 reads as the same double.
bool json_int(const struct json *value, int64_t *out) {
    double v;
    if (!json_double(value, &v) || !(fabs(v) < 0x1p53) || v != floor(v)) return false;
    *out = (int64_t)v;
    return true;
}

bool json_bool(const struct json *value, bool *out) {
    if (!is(value, cJSON_True) && !is(value, cJSON_False)) return false;
    *out = is(value, cJSON_True);
    return true;
}

bool json_written_as_integer(const struct json *value) {
    return is(value, cJSON_Number) && !node(value)->valuestring;
}

static bool same_key(const cJSON *a, const cJSON *b) {
    return a->valueint == b->valueint && memcmp(a->string, b->string, (size_t)a->valueint) == 0;
}

static bool equal(const cJSON *a, const cJSON *b) {
    if ((a->type & 0xFF) != (b->type & 0xFF)) return false;
    switch (a->type & 0xFF) {
    case cJSON_Number: return a->valuedouble == b->valuedouble;
    case cJSON_String:
        return a->valuedouble == b->valuedouble && memcmp(a->valuestring, b->valuestring, (size_t)a->valuedouble) == 0;
    case cJSON_Array:
    case cJSON_Object: break;
    default: return true;
    }
    if (a->valuedouble != b->valuedouble) return false;
    const cJSON *y = b->child; // mostly the members come in the same order
    for (const cJSON *x = a->child; x; x = x->next, y = y ? y->next : NULL) {
        const cJSON *other = y;
        if (x->string && (!y || !same_key(x, y))) other = find(b, x->string, (size_t)x->valueint);
        if (!other || !equal(x, other)) return false;
    }
    return true;
}

bool json_equal(const struct json *a, const struct json *b) {
    return a && b && equal(node(a), node(b));
}

// --- Members with messages

static int wrong(struct error *err, const char *key, const struct json *got, const char *expected) {
    return error_set(err, STATUS_DATA, "key '%s' is %s, expected %s", key, json_type_name(got), expected);
}

// 1: there is a value to read; 0: optional and not there; -1: error.
static int member(const struct json *object, const char *key, enum json_presence presence, const struct json **out,
                  struct error *err) {
    if (!is(object, cJSON_Object)) {
        return error_set(err, STATUS_DATA, "the value around key '%s' is %s, expected an object", key,
                         json_type_name(object));
    }
    *out = json_get(object, key);
    if (presence == JSON_OPTIONAL && (!*out || is(*out, cJSON_NULL))) return 0;
    return *out ? 1 : error_set(err, STATUS_DATA, "key '%s' is missing", key);
}

int json_get_string(const struct json *object, const char *key, enum json_presence presence, const char **out,
                    size_t *length, struct error *err) {
    const struct json *value;
    size_t n = 0;
    int found = member(object, key, presence, &value, err);
    if (found <= 0) return found;
    const char *string = json_string(value, &n);
    if (!string) return wrong(err, key, value, "a string");
    if (!length && memchr(string, 0, n)) return error_set(err, STATUS_DATA, "key '%s' holds a NUL character", key);
    *out = string;
    if (length) *length = n;
    return 0;
}

int json_get_int(const struct json *object, const char *key, enum json_presence presence, int64_t *out,
                 struct error *err) {
    const struct json *value;
    int found = member(object, key, presence, &value, err);
    if (found <= 0 || json_int(value, out)) return found < 0 ? -1 : 0;
    if (!is(value, cJSON_Number)) return wrong(err, key, value, "a whole number");
    return error_set(err, STATUS_DATA, "key '%s' is %.17g, expected a whole number below 2^53", key,
                     node(value)->valuedouble);
}

int json_get_double(const struct json *object, const char *key, enum json_presence presence, double *out,
                    struct error *err) {
    const struct json *value;
    int found = member(object, key, presence, &value, err);
    if (found <= 0 || json_double(value, out)) return found < 0 ? -1 : 0;
    return wrong(err, key, value, "a number");
}

int json_get_bool(const struct json *object, const char *key, enum json_presence presence, bool *out,
                  struct error *err) {
    const struct json *value;
    int found = member(object, key, presence, &value, err);
    if (found <= 0 || json_bool(value, out)) return found < 0 ? -1 : 0;
    return wrong(err, key, value, "true or false");
}

int json_get_container(const struct json *object, const char *key, enum json_type type, enum json_presence presence,
                       const struct json **out, struct error *err) {
    const struct json *value;
    int found = member(object, key, presence, &value, err);
    if (found <= 0) return found;
    if (json_type(value) != type) return wrong(err, key, value, type_name(type));
    *out = value;
    return 0;
}
