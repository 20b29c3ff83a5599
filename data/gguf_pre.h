// Which tokenizer.ggml.pre stands for a byte-level tokenizer? Private to data/.
#pragma once

#include "data/recipe.h"

// A text on which pre-tokenizers that differ cut differently: every row of the table in recipe_gguf.c does.
const char *gguf_pre_probe(void);

// The words a recipe cuts the probe into, each followed by the byte FF; freed by the caller.
int gguf_pre_words(const struct recipe *recipe, struct text *out, struct error *err);

// Sets source->pre to the name whose pipeline is the recipe's: the same words, the same Unicode form (or one that the
// table does not know), the same ignore_merges. 65 when there is none.
int gguf_pre_find(const struct recipe *recipe, struct vocab_source *source, struct error *err);
