// The tokens that are cut out of a text before anything else: control tokens ("<|im_end|>") and user-defined ones.
#pragma once

#include "data/vocab_source.h"
#include "kernels/base.h"

struct special_tokens;

struct special_tokens *special_tokens_open(const struct vocab_source *source, struct error *err);
void special_tokens_close(struct special_tokens *tokens); // NULL is a no-op
// The first match at or after `begin`, the longest one there; false when there is none. Control tokens only when
// `control`; user-defined tokens always, as the reference does.
bool special_tokens_find(const struct special_tokens *tokens, const char *text, size_t length, size_t begin,
                         bool control, size_t *match_begin, size_t *match_end, int32_t *id);
