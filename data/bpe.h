// Byte-pair encoding: the tables of a vocabulary, and one word -> token ids. Words are strings of bytes (byte-level
// BPE: the vocabulary's strings are translated out of GPT-2's visible spelling once, so encoding never builds the
// mapped text) or of characters (SentencePiece's kind). Private to data/.
#pragma once

#include "data/recipe.h"
#include "data/tokenizer.h"

struct bpe;

// A list of ids under construction, with the bytes each came from.
struct encoding {
    struct ids *ids;
    struct token_span **spans; // NULL when nobody asks
    size_t span_capacity;
};
int encoding_push(struct encoding *out, int32_t id, uint32_t begin, uint32_t end); // -1 when out of memory

// What one encoding thread needs besides the tables: buffers for long words and a cache of short ones.
struct bpe_scratch;
struct bpe_scratch *bpe_scratch_open(bool cache); // NULL when out of memory
void bpe_scratch_close(struct bpe_scratch *scratch);

// Refuses merges that name missing tokens and tokens that occur twice. `recipe` must outlive it.
struct bpe *bpe_open(const struct recipe *recipe, struct error *err);
void bpe_close(struct bpe *bpe); // NULL is a no-op
// Appends the ids of one word; its first byte is byte `at` of the spans. A byte or character that is no token becomes
// what the recipe says: its bytes' tokens, the unknown token, or nothing (its neighbours become adjacent), as in
// Hugging Face tokenizers. Refuses a word above BPE_LONGEST_WORD bytes.
enum { BPE_LONGEST_WORD = 4 << 20 };
int bpe_word(const struct bpe *bpe, struct bpe_scratch *scratch, const char *word, size_t length, uint32_t at,
             struct encoding *out, struct error *err);
// How much of a word can be encoded by itself without changing an id: up to a space mark, where no token of the
// vocabulary goes across one. Without that, a document of SentencePiece's kind is one word.
size_t bpe_first_part(const struct bpe *bpe, const char *word, size_t length);
// The bytes a token stands for; borrowed. Empty for an id that is no token.
struct vocab_string bpe_bytes(const struct bpe *bpe, int32_t id);
// The id of a token by its spelling in the vocabulary, -1 when there is none.
int32_t bpe_find(const struct bpe *bpe, const char *spelling, size_t length);
