// Regular expressions of tokenizer files. They are written for Oniguruma with Ruby's syntax, as Hugging Face tokenizers
// uses it; they are translated for PCRE2 where the two differ, and refused by name where that cannot be done.
#pragma once

#include "kernels/base.h"

struct regex;

// `file` stands before messages. The pattern is not kept.
struct regex *regex_open(const char *pattern, size_t length, const char *file, struct error *err);
void regex_close(struct regex *regex); // NULL is a no-op

// Match buffers of one thread, for any number of expressions.
struct regex_scratch;
struct regex_scratch *regex_scratch_open(void); // NULL when out of memory
void regex_scratch_close(struct regex_scratch *scratch);

// The first match in text[from .. length) (valid UTF-8; what stands before `from` is seen by look-behind): 1 and its
// place, 0 when there is none, -1 when the text costs more steps than are granted or memory is short.
int regex_find(const struct regex *regex, struct regex_scratch *scratch, const char *text, size_t length, size_t from,
               size_t *begin, size_t *end, struct error *err);
// All matches from left to right: begin with a zeroed walk. An empty match right behind another one does not count.
struct regex_walk {
    size_t at, last; // where to look next; where the last match ended
    bool any;
};
int regex_next(const struct regex *regex, struct regex_scratch *scratch, const char *text, size_t length,
               struct regex_walk *walk, size_t *begin, size_t *end, struct error *err);

// The same expression in PCRE2's syntax (to be compiled with UTF, UCP and MULTILINE). -1 with *problem, a text that
// goes on "... has WHAT", and its byte in *at.
int regex_translate(const char *pattern, size_t length, struct text *out, const char **problem, size_t *at);
