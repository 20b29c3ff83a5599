// Vocabularies for tests: a small byte-level one made here, and SmolLM2's own when the base model is there.
#pragma once

#include "data/tokenizer.h"
#include "data/utf8.h"
#include "model/gguf.h"
#include "tests/harness.h"

#include <stdlib.h>
#include <string.h>

// 256 bytes, the merges of the list below, words that no merge leads to, and special tokens at the end.
enum { VOCAB_MERGES = 28, VOCAB_WORDS = 2, VOCAB_SPECIALS = 8 };
enum { VOCAB_FIRST_SPECIAL = 256 + VOCAB_MERGES + VOCAB_WORDS };

// "left right" in plain spelling; '_' stands for a space, '^' for a newline.
static const char *const vocabulary_merges[VOCAB_MERGES] = {
    "l l", "h e",   "he ll", "hell o", "_ w", "o r", "_w or", "l d",    "_wor ld",   "e r",
    "u s", "us er", "a s",   "as s",   "i s", "t a", "ta n",  "is tan", "ass istan", "assistan t",
    "^ ^", "_ _",   "__ __", "1 2",    "k m", "j k", "km n",  "j km"};
static const char *const vocabulary_words[VOCAB_WORDS] = {"zyx", "_zyx"};
static const struct {
    const char *text;
    int type;
} vocabulary_specials[VOCAB_SPECIALS] = {{"<|im_start|>", TOKEN_CONTROL}, {"<|im_end|>", TOKEN_CONTROL},
                                         {"<|im_end|>>", TOKEN_CONTROL},  {"<think>", TOKEN_USER_DEFINED},
                                         {"<|", TOKEN_USER_DEFINED},      {"<|end|>", TOKEN_CONTROL},
                                         {"<s>", TOKEN_CONTROL},          {"[PAD7]", TOKEN_UNUSED}};

// A byte in GPT-2's visible spelling.
static inline uint32_t vocabulary_spell(unsigned byte) {
    if ((byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE) return byte;
    uint32_t n = 0x100;
    for (unsigned b = 0; b < byte; b++) n += !((b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE);
    return n;
}

static inline struct vocab_string vocabulary_spelled(struct pool *pool, const char *plain) {
    char *out = pool_alloc(pool, 2 * strlen(plain) + 1);
    size_t n = 0;
    for (const char *p = plain; *p; p++) {
        if (*p == ' ')
            out[n++] = ' ';
        else
            n += utf8_write(vocabulary_spell(*p == '_' ? ' ' : *p == '^' ? '\n' : (uint8_t)*p), out + n);
    }
    return (struct vocab_string){out, n};
}

// Everything lies in `pool`. BOS is <s>, EOS is <|im_end|>.
static inline struct vocab_source vocabulary_make(struct pool *pool, const char *pre) {
    size_t n = 256 + VOCAB_MERGES + VOCAB_WORDS + VOCAB_SPECIALS, at = 0;
    struct vocab_string *tokens = pool_array(pool, n, sizeof *tokens), *pairs = pool_array(pool, n, sizeof *pairs);
    int32_t *types = pool_array(pool, n, sizeof *types);
    for (unsigned byte = 0; byte < 256; byte++) {
        char *text = pool_alloc(pool, 4);
        tokens[at++] = (struct vocab_string){text, utf8_write(vocabulary_spell(byte), text)};
    }
    for (int i = 0; i < VOCAB_MERGES; i++) {
        pairs[i] = vocabulary_spelled(pool, vocabulary_merges[i]);
        struct vocab_string joined = vocabulary_spelled(pool, vocabulary_merges[i]);
        char *space = memchr(joined.bytes, ' ', joined.length);
        memmove(space, space + 1, joined.length - (size_t)(space - joined.bytes) - 1);
        tokens[at++] = (struct vocab_string){joined.bytes, joined.length - 1};
    }
    for (int i = 0; i < VOCAB_WORDS; i++) tokens[at++] = vocabulary_spelled(pool, vocabulary_words[i]);
    for (size_t i = 0; i < at; i++) types[i] = TOKEN_NORMAL;
    for (int i = 0; i < VOCAB_SPECIALS; i++, at++) {
        tokens[at] = (struct vocab_string){vocabulary_specials[i].text, strlen(vocabulary_specials[i].text)};
        types[at] = vocabulary_specials[i].type;
    }
    int32_t first = (int32_t)(at - VOCAB_SPECIALS);
    return (struct vocab_source){.file = "test",
                                 .model = "gpt2",
                                 .pre = pre,
                                 .tokens = tokens,
                                 .n_tokens = n,
                                 .types = types,
                                 .merges = pairs,
                                 .n_merges = VOCAB_MERGES,
                                 .bos = first + 6,
                                 .eos = first + 1,
                                 .eot = -1,
                                 .unk = -1,
                                 .pad = -1};
}

struct smollm2 {
    struct vocab_source source;
    struct tokenizer *tokenizer;
    struct smollm2_file *file;
};

struct smollm2_file {
    struct gguf gguf;
    struct pool pool;
};

static inline bool smollm2_read(struct smollm2_file *f, struct vocab_source *s, struct error *err) {
    const char *prefix = "tokenizer.ggml.";
    char keys[8][64];
    static const char *const names[8] = {"model",      "pre",          "tokens",       "merges",
                                         "token_type", "bos_token_id", "eos_token_id", ""};
    for (int i = 0; i < 8; i++) strcat(strcpy(keys[i], prefix), names[i]);
    int64_t bos = -1, eos = -1;
    size_t n_types = 0;
    *s = (struct vocab_source){.file = f->gguf.name, .eot = -1, .unk = -1, .pad = -1};
    bool ok = gguf_get_text(&f->gguf, keys[0], &f->pool, &s->model, err) == 1 &&
              gguf_get_text(&f->gguf, keys[1], &f->pool, &s->pre, err) == 1 &&
              gguf_get_strings(&f->gguf, keys[2], &f->pool, &s->tokens, &s->n_tokens, err) == 1 &&
              gguf_get_strings(&f->gguf, keys[3], &f->pool, &s->merges, &s->n_merges, err) == 1 &&
              gguf_get_i32s(&f->gguf, keys[4], &f->pool, &s->types, &n_types, err) == 1 && n_types == s->n_tokens &&
              gguf_get_int(&f->gguf, keys[5], 0, INT32_MAX, &bos, err) == 1 &&
              gguf_get_int(&f->gguf, keys[6], 0, INT32_MAX, &eos, err) == 1 &&
              gguf_get_string(&f->gguf, "tokenizer.chat_template", &s->chat_template, err) == 1;
    s->bos = (int32_t)bos;
    s->eos = (int32_t)eos;
    return ok;
}

// False, and the running test counts as skipped, when the file is not there.
static inline bool smollm2_open(struct smollm2 *out) {
    const char *path = getenv("GRAFT_BASE");
    if (!path) path = "cache/SmolLM2-135M-Instruct.Q4_1.gguf";
    *out = (struct smollm2){0};
    if (!file_exists(path)) {
        test_skip("%s is not there", path);
        return false;
    }
    struct error err = {0};
    struct smollm2_file *f = mem_zalloc(1, sizeof *f);
    out->file = f;
    if (gguf_open(path, &f->gguf, &err) < 0 || !smollm2_read(f, &out->source, &err) ||
        !(out->tokenizer = tokenizer_open(&out->source, &err))) {
        test_fail(__FILE__, __LINE__, "%s: %s", path, err.text);
        return false;
    }
    return true;
}

static inline void smollm2_close(struct smollm2 *v) {
    struct smollm2_file *f = v->file;
    tokenizer_close(v->tokenizer);
    if (f) {
        gguf_close(&f->gguf);
        pool_free(&f->pool);
    }
    mem_free(f);
    *v = (struct smollm2){0};
}
