// Unicode normal form C, for the tokenizers that apply it before anything else.
#pragma once

#include "kernels/base.h"

// Brings valid UTF-8 to NFC. When that changes nothing (the usual case), *changed is false and `out` is left alone.
// Otherwise `out` holds the new text and (*sources)[i] the byte of the old text its byte i comes from (the start of the
// changed stretch where bytes do not correspond); the caller frees it with mem_free.
int normal_form_c(const char *text, size_t length, bool *changed, struct text *out, uint32_t **sources,
                  struct error *err);
