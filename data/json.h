// JSON: reading behind a strict check, and writing. cJSON builds the tree; what it is lenient about (numbers, control
// characters, UTF-8, depth, trailing bytes, duplicate keys) is refused before and after it.
#pragma once

#include "kernels/base.h"

struct json; // one value of a document; borrowed from it, caller must not free

enum json_type { JSON_NULL, JSON_BOOL, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT };

enum { JSON_DEPTH = 64, JSON_MAX_DEPTH = 128, JSON_VALUES = 1000000 };
#define JSON_MAX_BYTES ((size_t)1 << 30)

// A zeroed struct is the strict reader for small documents. Always refused: duplicate keys, bad UTF-8, raw control
// characters, NaN and Infinity, numbers beyond double's range, anything after the value.
struct json_options {
    const char *name;        // stands before messages as NAME:LINE:COLUMN; NULL = "JSON"
    uint64_t line;           // number of the first line, 0 = 1: a row of a JSONL file says its own
    int max_depth;           // 0 = JSON_DEPTH
    uint64_t max_values;     // bounds memory (about 80 bytes each), 0 = JSON_VALUES
    bool replace_surrogates; // half of a \ud800-style pair becomes U+FFFD and is counted; else refused
    bool skip_bom;           // a leading byte order mark is skipped; else refused
};

struct json_document {
    const struct json *root;
    struct pool pool;  // everything lies here
    uint64_t replaced; // lone surrogates that became U+FFFD
};

// Copies what it needs: `bytes` may go afterwards. On failure there is nothing to free. Safe in several threads at
// once.
int json_parse(const void *bytes, size_t length, const struct json_options *options, struct json_document *out,
               struct error *err);
// Reads and parses a file of at most `limit` bytes; options->name defaults to the path.
int json_load(const char *path, size_t limit, const struct json_options *options, struct json_document *out,
              struct error *err);
void json_free(struct json_document *document); // zeroed struct is a no-op

// --- Looking. NULL stands for "no such value" everywhere and has no type: ask before use.
enum json_type json_type(const struct json *value);
bool json_is(const struct json *value, enum json_type type);             // false for NULL
const char *json_type_name(const struct json *value);                    // "a string", "missing" for NULL
const struct json *json_get(const struct json *object, const char *key); // linear; NULL when absent or no object
const struct json *json_child(const struct json *container);             // the first one; NULL when empty or a scalar
const struct json *json_next(const struct json *value);                  // the next in the same container
size_t json_count(const struct json *container);                         // 0 for scalars
const char *json_key(const struct json *value, size_t *length);    // of a member; NULL for others; length may be NULL
const char *json_string(const struct json *value, size_t *length); // NULL when not a string; may hold NUL bytes
bool json_int(const struct json *value, int64_t *out);             // whole and |v| < 2^53, else false
bool json_double(const struct json *value, double *out);           // any number
bool json_bool(const struct json *value, bool *out);
bool json_written_as_integer(const struct json *value);      // a number without fraction and exponent
bool json_equal(const struct json *a, const struct json *b); // order of keys is irrelevant; 1 equals 1.0

// --- Members with messages: "key 'r' is missing", "key 'r' is a string, expected a whole number". Returns -1 then.
// An optional member that is absent or null leaves *out alone and is no error.
enum json_presence { JSON_REQUIRED, JSON_OPTIONAL };
// `length` may be NULL: then a string with NUL characters inside is refused.
int json_get_string(const struct json *object, const char *key, enum json_presence presence, const char **out,
                    size_t *length, struct error *err);
int json_get_int(const struct json *object, const char *key, enum json_presence presence, int64_t *out,
                 struct error *err);
int json_get_double(const struct json *object, const char *key, enum json_presence presence, double *out,
                    struct error *err);
int json_get_bool(const struct json *object, const char *key, enum json_presence presence, bool *out,
                  struct error *err);
int json_get_container(const struct json *object, const char *key, enum json_type type, enum json_presence presence,
                       const struct json **out, struct error *err);

// --- Writing into a text. Commas, spaces and indentation are the writer's; failure shows in text_failed(out).
enum json_style {
    JSON_COMPACT, // {"a":1,"b":2}
    JSON_SPACED,  // {"a": 1, "b": 2}, as Python's json.dumps
    JSON_PRETTY,  // a line each, two spaces a level
};
struct json_writer {
    struct text *out;
    enum json_style style;
    int depth;
    bool after_key;
    bool filled[JSON_MAX_DEPTH + 1]; // has the container at this depth a member already?
};
void json_begin_object(struct json_writer *w);
void json_end_object(struct json_writer *w);
void json_begin_array(struct json_writer *w);
void json_end_array(struct json_writer *w);
void json_put_key(struct json_writer *w, const char *key);
void json_put_key_bytes(struct json_writer *w, const char *key, size_t length);
void json_put_string(struct json_writer *w, const char *string);
void json_put_bytes(struct json_writer *w, const char *bytes, size_t length); // a string; bad UTF-8 becomes U+FFFD
void json_put_int(struct json_writer *w, int64_t value);
void json_put_double(struct json_writer *w, double value); // shortest that reads back equal; NaN and Inf become null
void json_put_bool(struct json_writer *w, bool value);
void json_put_null(struct json_writer *w);
void json_put_value(struct json_writer *w, const struct json *value); // a parsed value and all in it
