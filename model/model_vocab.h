// The vocabulary of a GGUF file as plain arrays (data/vocab_source.h), with llama.cpp's defaults where keys are
// missing.
#pragma once

#include "model/gguf.h"

// Everything is borrowed from the file or lies in `pool`; `file` names it in messages. A file without a vocabulary
// (tokenizer.ggml.model missing or "none") is no error: model is NULL or "none" then, n_tokens 0.
int vocab_from_gguf(const struct gguf *gguf, const char *file, struct pool *pool, struct vocab_source *out,
                    struct error *err);
