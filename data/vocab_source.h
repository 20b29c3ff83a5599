// A vocabulary as plain arrays, as found in a model file: what model/ hands to data/. Everything is borrowed from the
// model and lives as long as it.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum token_type { // tokenizer.ggml.token_type
    TOKEN_UNDEFINED = 0,
    TOKEN_NORMAL = 1,
    TOKEN_UNKNOWN = 2,
    TOKEN_CONTROL = 3,
    TOKEN_USER_DEFINED = 4,
    TOKEN_UNUSED = 5,
    TOKEN_BYTE = 6,
};

struct vocab_string {
    const char *bytes; // not NUL-terminated
    size_t length;
};

struct vocab_source {
    const char *file;                  // where it came from, for messages
    const char *folder;                // with tokenizer.json and the like, where there is no vocabulary here; else NULL
    struct vocab_string json;          // a whole tokenizer.json: stands for all up to merges; length 0 = none
    const char *model;                 // tokenizer.ggml.model: "gpt2", "llama", ...
    const char *pre;                   // tokenizer.ggml.pre: "smollm", "llama-bpe", ...; NULL when missing
    const struct vocab_string *tokens; // byte-level BPE: in GPT-2's byte-to-unicode spelling
    size_t n_tokens;
    const int32_t *types;              // enum token_type per token; NULL = all normal
    const float *scores;               // NULL unless SentencePiece
    const struct vocab_string *merges; // "left right"
    size_t n_merges;
    int32_t bos, eos, eot, unk, pad;         // -1 when missing
    bool add_bos, add_eos, add_space_prefix; // defaults of the format already applied
    bool strips_after_special;               // white space behind control tokens belongs to them (Phi-3)
    size_t rows;                             // of the embedding, 0 = not known: ids from there on are no input
    struct vocab_string chat_template;       // Jinja text; length 0 when missing
};
