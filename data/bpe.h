// Byte-level BPE on raw bytes: the vocabulary's strings are translated out of GPT-2's visible spelling once, so
// encoding never builds the mapped text.
#pragma once

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

// Refuses merges that name missing tokens and tokens that occur twice. With `ignore_merges` a word that is a token by
// itself is that token, whatever the merges say.
struct bpe *bpe_open(const struct vocab_source *source, bool ignore_merges, struct error *err);
void bpe_close(struct bpe *bpe); // NULL is a no-op
// Appends the ids of one word that stands at `at` of the encoded text. A byte that the vocabulary lacks gives no token
// (its neighbours become adjacent), as in Hugging Face tokenizers. Refuses a word above BPE_LONGEST_WORD bytes.
enum { BPE_LONGEST_WORD = 4 << 20 };
int bpe_word(const struct bpe *bpe, struct bpe_scratch *scratch, const char *word, size_t length, uint32_t at,
             struct encoding *out, struct error *err);
// The bytes a token stands for; borrowed.
struct vocab_string bpe_bytes(const struct bpe *bpe, int32_t id);
// The id of a token by its spelling in the vocabulary, -1 when there is none.
int32_t bpe_find(const struct bpe *bpe, const char *spelling, size_t length);
