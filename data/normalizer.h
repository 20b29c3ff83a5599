// The first thing a tokenizer does with a piece of text: Unicode normal form, spaces spelled as another character, a
// mark in front. Private to data/.
#pragma once

#include "data/mapped_text.h"
#include "data/recipe.h"
#include "data/regex.h"

struct normalizer;

// `recipe` must outlive it.
struct normalizer *normalizer_open(const struct recipe *recipe, struct error *err);
void normalizer_close(struct normalizer *n); // NULL is a no-op
// Runs the steps on `text` (just begun). Text that NFC would change is refused where NORMAL_NFC_OR_REFUSE stands.
int normalizer_run(const struct normalizer *n, struct regex_scratch *scratch, struct mapped_text *text,
                   struct error *err);
