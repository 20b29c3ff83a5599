// See jsonl.h.
#include "data/jsonl.h"

#include "data/utf8.h"

void jsonl_start(struct jsonl *r, const char *name, const uint8_t *bytes, size_t length) {
    *r = (struct jsonl){.name = name, .bytes = bytes, .length = length};
    if (length >= 3 && memcmp(bytes, "\xEF\xBB\xBF", 3) == 0) r->at = 3;
}

struct line {
    const char *text;
    size_t length;
    bool more; // does another line follow?
};

// The next line without its end.
static struct line next_line(struct jsonl *r) {
    const char *text = (const char *)r->bytes + r->at;
    size_t left = r->length - r->at;
    const char *end = memchr(text, '\n', left);
    size_t length = end ? (size_t)(end - text) : left;
    r->at += length + (end != NULL);
    r->line++;
    if (end && length > 0 && end[-1] == '\r') length--;
    return (struct line){text, length, r->at < r->length};
}

static bool is_blank(const char *text, size_t length) {
    for (size_t i = 0; i < length; i++)
        if (text[i] != ' ' && text[i] != '\t') return false;
    return true;
}

// What a line that is not one JSON value looks like, from its brackets alone.
enum form { FORM_UNKNOWN, FORM_SEVERAL, FORM_CUT };

static enum form form_of(const char *text, size_t length) {
    size_t depth = 0;
    bool string = false;
    for (size_t i = 0; i < length; i++) {
        char c = text[i];
        if (string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                string = false;
        } else if (c == '"')
            string = true;
        else if (c == '{' || c == '[')
            depth++;
        else if ((c == '}' || c == ']') && (depth == 0 || --depth == 0)) {
            for (i++; i < length && strchr(" \t,", text[i]); i++) {
            }
            return i < length && (text[i] == '{' || text[i] == '[') ? FORM_SEVERAL : FORM_UNKNOWN;
        }
    }
    while (length > 0 && (text[length - 1] == ' ' || text[length - 1] == '\t')) length--;
    return !string && length > 0 && strchr("{[,:", text[length - 1]) ? FORM_CUT : FORM_UNKNOWN;
}

static enum jsonl_result bad(const struct jsonl *r, size_t column, const char *what, struct error *err) {
    error_set(err, STATUS_DATA, "%s:%u:%zu: %s", r->name, r->line, column, what);
    return JSONL_BAD;
}

static enum jsonl_result fatal(const struct jsonl *r, const char *what, struct error *err) {
    bad(r, 1, what, err);
    return JSONL_FATAL;
}

// Faults of the file as a whole, seen at its first row: reading on would only repeat them.
static enum jsonl_result check_first(const struct jsonl *r, struct line line, struct error *err) {
    const uint8_t *p = r->bytes;
    bool mark = r->length >= 2 && ((p[0] == 0xFF && p[1] == 0xFE) || (p[0] == 0xFE && p[1] == 0xFF));
    if (mark || (line.length >= 2 && (line.text[0] == 0 || line.text[1] == 0)))
        return fatal(r, "this file is UTF-16, not UTF-8; convert it, for instance: iconv -f UTF-16 -t UTF-8", err);
    size_t at = 0;
    while (at < line.length && (line.text[at] == ' ' || line.text[at] == '\t')) at++;
    if (line.text[at] == '[')
        return fatal(
            r, "this file is one JSON array, not JSON Lines; write one object a line, for instance: jq -c '.[]'", err);
    if (line.text[at] == '{' && line.more && form_of(line.text, line.length) == FORM_CUT)
        return fatal(r,
                     "this file is pretty-printed JSON, an object over several lines; write one object a line, for "
                     "instance: jq -c .",
                     err);
    return JSONL_ROW;
}

// Faults that the JSON reader would report less clearly.
static enum jsonl_result check_line(const struct jsonl *r, struct line line, struct error *err) {
    if (line.length > JSONL_LONGEST_LINE) return bad(r, JSONL_LONGEST_LINE, "the line is longer than 64 MiB", err);
    size_t valid = utf8_check(line.text, line.length);
    if (valid < line.length) {
        error_set(err, STATUS_DATA, "%s:%u:%zu: invalid UTF-8 (0x%02X at byte %zu of the file)", r->name, r->line,
                  valid + 1, (uint8_t)line.text[valid], (size_t)((const uint8_t *)line.text - r->bytes) + valid);
        return JSONL_BAD;
    }
    const char *at = memchr(line.text, '\r', line.length);
    if (at) return bad(r, (size_t)(at - line.text) + 1, "a carriage return without a line feed", err);
    at = memchr(line.text, 0, line.length);
    if (at) return bad(r, (size_t)(at - line.text) + 1, "a NUL byte", err);
    if (line.length >= 3 && memcmp(line.text, "\xEF\xBB\xBF", 3) == 0)
        return bad(r, 1, "a byte order mark in the middle of the file", err);
    return JSONL_ROW;
}

static enum jsonl_result parse(const struct jsonl *r, struct line line, struct json_document *row, struct error *err) {
    struct json_options options = {.name = r->name, .line = r->line};
    struct error problem = {0};
    if (json_parse(line.text, line.length, &options, row, &problem) == 0) {
        if (json_type(row->root) == JSON_OBJECT) return JSONL_ROW;
        error_set(err, STATUS_DATA, "%s:%u:1: the row is %s, expected an object", r->name, r->line,
                  json_type_name(row->root));
        json_free(row);
        return JSONL_BAD;
    }
    if (problem.code == STATUS_DATA && form_of(line.text, line.length) == FORM_SEVERAL)
        return bad(r, 1, "several JSON values on one line, expected one object a line", err);
    error_set(err, problem.code, "%s", problem.text);
    return problem.code == STATUS_DATA ? JSONL_BAD : JSONL_FATAL;
}

enum jsonl_result jsonl_next(struct jsonl *r, struct json_document *row, struct error *err) {
    while (r->at < r->length) {
        struct line line = next_line(r);
        if (is_blank(line.text, line.length)) continue;
        enum jsonl_result result = r->any ? JSONL_ROW : check_first(r, line, err);
        r->any = true;
        if (result == JSONL_ROW) result = check_line(r, line, err);
        return result == JSONL_ROW ? parse(r, line, row, err) : result;
    }
    return JSONL_END;
}
