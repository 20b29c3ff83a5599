// The tokenizer of a folder as GGUF holds one: lists of tokens, a model and the name of a pre-tokenizer. What cannot be
// said that way is refused, and what was made is opened again and compared with the folder's own tokenizer.
#pragma once

#include "data/vocab_source.h"
#include "kernels/base.h"

struct recipe;

struct gguf_vocabulary {
    struct vocab_source source; // as it will be read back; model "none", no tokens: the folder has no tokenizer
    struct recipe *recipe;      // owns what the source borrows
    struct pool pool;
};

// `rows` of the embedding: as many tokens as the file gets. `notes`: a line for what llama.cpp does otherwise. Errors:
// 65 naming what a GGUF cannot say (an unknown cut into words, merges that are no SentencePiece scores), those of
// reading the folder.
int gguf_vocabulary_open(const struct vocab_source *folder, size_t rows, struct gguf_vocabulary *out,
                         struct text *notes, struct error *err);
void gguf_vocabulary_close(struct gguf_vocabulary *v); // zeroed struct is a no-op
