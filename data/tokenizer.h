// Text <-> token ids, equal to Hugging Face tokenizers id by id. Built from the vocabulary in a GGUF file or from the
// tokenizer.json of a base's folder; one engine runs both (data/recipe.h).
#pragma once

#include "data/vocab_source.h"
#include "kernels/base.h"

struct tokenizer;

// A growing list of token ids.
struct ids {
    int32_t *data; // freed by ids_free
    size_t count, capacity;
};
int ids_push(struct ids *ids, int32_t id); // -1 when out of memory
void ids_free(struct ids *ids);

// Where each token came from: bytes [begin, end) of the encoded text. Parallel to the ids.
struct token_span {
    uint32_t begin, end;
};

// `source` must outlive the tokenizer. Refuses what it cannot do exactly (unknown model, unknown `pre`, a kind of
// normalizer), by name. STATUS_NOINPUT: the base has no tokenizer at all.
struct tokenizer *tokenizer_open(const struct vocab_source *source, struct error *err);
void tokenizer_close(struct tokenizer *tokenizer); // NULL is a no-op

// Appends the ids of `text` (valid UTF-8). With `special`, the text of control and user-defined tokens becomes that
// token (rendered templates); without, control tokens are encoded as ordinary text, user-defined ones are still
// matched. Never adds BOS or EOS. Safe to call from several threads. `spans` may be NULL; otherwise *spans is an array
// grown with mem_resize, parallel to the ids (caller frees with mem_free).
int tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t length, bool special, struct ids *ids,
                     struct token_span **spans, struct error *err);
// Appends the text of `count` ids, bytes as they are; `skip_special` leaves out control tokens. An id outside the
// vocabulary is an error. A space that encoding puts in front of a text (Llama 2) comes back with it.
int tokenizer_decode(const struct tokenizer *tokenizer, const int32_t *ids, size_t count, bool skip_special,
                     struct text *out, struct error *err);
size_t tokenizer_vocab_size(const struct tokenizer *tokenizer);
int32_t tokenizer_bos(const struct tokenizer *tokenizer); // -1 when it has none
int32_t tokenizer_eos(const struct tokenizer *tokenizer);
bool tokenizer_adds_bos(
    const struct tokenizer *tokenizer); // plain text starts with BOS (rendered chats bring their own)
// What ends a generated text: EOS first, then the ends of turns that the base's files name. Borrowed.
const int32_t *tokenizer_ends(const struct tokenizer *tokenizer, int *count);
struct vocab_string tokenizer_chat_template(const struct tokenizer *tokenizer); // Jinja text; length 0 = none; borrowed
bool tokenizer_is_control(const struct tokenizer *tokenizer, int32_t id);
// The id of a token by its exact text ("<|im_end|>"), -1 when there is none.
int32_t tokenizer_find(const struct tokenizer *tokenizer, const char *text);
