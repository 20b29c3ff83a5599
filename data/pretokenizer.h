// Cuts a piece of text into words: regular expressions, spaces spelled as marks. Merges never cross a word border.
// Private to data/.
#pragma once

#include "data/mapped_text.h"
#include "data/recipe.h"
#include "data/regex.h"

struct pretokenizer;

// `recipe` must outlive it.
struct pretokenizer *pretokenizer_open(const struct recipe *recipe, struct error *err);
void pretokenizer_close(struct pretokenizer *p); // NULL is a no-op

struct word { // bytes of a text
    uint32_t begin, end;
};
struct words {
    struct word *items;
    size_t count, capacity;
};
// Lists of one encoding thread.
struct pretokenizer_scratch {
    struct words words, next;
    struct part *parts; // matches of one piece and the gaps between them
    size_t parts_capacity;
    struct regex_scratch *regex;
};
int pretokenizer_scratch_open(struct pretokenizer_scratch *scratch); // -1 when out of memory
void pretokenizer_scratch_close(struct pretokenizer_scratch *scratch);

// Cuts `text` (just begun; some steps change it) into scratch->words, in order, none empty. `at_start`: so many of
// its bytes come from the first byte of the whole text.
int pretokenizer_run(const struct pretokenizer *p, struct pretokenizer_scratch *scratch, struct mapped_text *text,
                     size_t at_start, struct error *err);
