// The source of a Jinja template as tokens, with the white space rules of transformers applied (trim_blocks,
// lstrip_blocks, '-' and '+' in tags) and string literals decoded.
#pragma once

#include "kernels/base.h"

enum template_token_kind {
    TEMPLATE_TEXT,   // outside of tags; `text`
    TEMPLATE_PRINT,  // {{
    TEMPLATE_BLOCK,  // {%
    TEMPLATE_END,    // }} or %}
    TEMPLATE_NAME,   // identifier or keyword; `text`
    TEMPLATE_STRING, // a literal; `text` is its value
    TEMPLATE_NUMBER, // digits; `text`
    TEMPLATE_SYMBOL, // an operator or bracket; `text`
};

struct template_token {
    enum template_token_kind kind;
    int line; // of the source
    const char *text;
    size_t length;
};

struct template_tokens {
    struct template_token *list; // freed by template_tokens_free
    size_t count, capacity;
    struct pool pool;
};

// Refuses what it cannot read exactly (raw blocks, rare escapes), naming the line.
int template_lex(const char *source, size_t length, struct template_tokens *out, struct error *err);
void template_tokens_free(struct template_tokens *tokens);
