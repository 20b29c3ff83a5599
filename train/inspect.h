// Private part of cmd_inspect.c: what `graft inspect` prints, as lines or as one JSON object.
#pragma once

#include "data/json.h"

struct report {
    struct text *out;
    bool json, tensors; // --json; --tensors: each of them
    struct json_writer w;
};

void report_field(struct report *r, const char *key, const char *value);
void report_number(struct report *r, const char *key, uint64_t value);
void report_begin(struct report *r, const char *key); // a list of fields
void report_end(struct report *r);
// "12 tensors, 3.4 MiB" as the field `key`; nothing when there are none.
void report_amount(struct report *r, const char *key, uint64_t tensors, uint64_t bytes);

// inspect_base.c: a folder with a config.json, a config.json, or parts of a GGUF.
int inspect_base(struct report *r, const char *path, struct error *err);
int inspect_parts(struct report *r, const char *path, struct error *err);
