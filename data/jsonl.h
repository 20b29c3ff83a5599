// JSON Lines: one object a line. Blank lines are passed over, CRLF and a leading byte order mark are fine; everything
// else that is not one JSON object is an error that names file, line and column, and the form when it knows it.
#pragma once

#include "data/json.h"

enum { JSONL_LONGEST_LINE = 64 << 20 };

struct jsonl {
    const char *name; // stands in messages
    const uint8_t *bytes;
    size_t length, at;
    uint32_t line; // of the row handed out last, 1-based
    bool any;      // has there been a row?
};

enum jsonl_result {
    JSONL_ROW,   // *row is an object; the caller frees it
    JSONL_END,   // no more rows
    JSONL_BAD,   // this line is not a row, `err` says why; the next one may be
    JSONL_FATAL, // the file as a whole is no JSON Lines, or memory is out
};

// The bytes are borrowed and must stay.
void jsonl_start(struct jsonl *reader, const char *name, const uint8_t *bytes, size_t length);
enum jsonl_result jsonl_next(struct jsonl *reader, struct json_document *row, struct error *err);
