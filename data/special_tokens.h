// The tokens that are cut out of a text before words are made: control tokens ("<|im_end|>"), user-defined ones, and
// whatever else a vocabulary adds. Private to data/.
#pragma once

#include "data/recipe.h"

struct special_tokens;

enum { SPECIAL_LONGEST = 512 }; // bytes of one token: bounds what a crafted one can cost

// Of the recipe's added tokens those with `normalized` or those without; `texts[i]` is what is looked for instead of
// the text of added token i, NULL = its own. `recipe` must outlive it, `texts` need not.
struct special_tokens *special_tokens_open(const struct recipe *recipe, bool normalized,
                                           const struct vocab_string *texts, struct error *err);
void special_tokens_close(struct special_tokens *tokens); // NULL is a no-op

struct special_match {
    size_t begin, end; // with the white space that the token takes with it
    int32_t id;
};
// The first match at or after `from`, the longest one there; false when there is none. Tokens that are control only
// where `control`. The match takes no white space before `from`: what lies there is taken already.
bool special_tokens_find(const struct special_tokens *tokens, const char *text, size_t length, size_t from,
                         bool control, struct special_match *match);
