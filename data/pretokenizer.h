// The first step of byte-level BPE: text is cut into words by the regular expressions that belong to the name a GGUF
// file gives in tokenizer.ggml.pre. Merges never cross a word border.
#pragma once

#include "kernels/base.h"

struct pretokenizer;

enum normal_form {
    NORMAL_NONE,    // text is taken as it is
    NORMAL_NFC,     // text is brought to Unicode normal form C first
    NORMAL_UNKNOWN, // not known for this name: text that NFC would change is refused
};

// Refuses an unknown name.
struct pretokenizer *pretokenizer_open(const char *pre, const char *file, struct error *err);
void pretokenizer_close(struct pretokenizer *p); // NULL is a no-op
bool pretokenizer_ignores_merges(const struct pretokenizer *p);
enum normal_form pretokenizer_normal_form(const struct pretokenizer *p);

// Match buffers of one encoding thread.
struct pretokenizer_scratch;
struct pretokenizer_scratch *pretokenizer_scratch_open(const struct pretokenizer *p); // NULL when out of memory
void pretokenizer_scratch_close(struct pretokenizer_scratch *scratch);

// Calls `word(context, begin, end)` for each word of the text (valid UTF-8), in order; together they cover it. Stops
// when a call returns non-zero and returns -1 then.
typedef int word_function(void *context, size_t begin, size_t end);
int pretokenizer_split(const struct pretokenizer *p, struct pretokenizer_scratch *scratch, const char *text,
                       size_t length, word_function *word, void *context, struct error *err);
