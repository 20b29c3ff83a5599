// Fuzz target of tokenizer.json and of what it does: the input is a tokenizer.json, a NUL, and a text. What is accepted
// must give ids inside its vocabulary and spans in order, with and without special tokens; every refusal names a
// reason.
#include "data/tokenizer.h"
#include "tests/fuzz/fuzz.h"

#include <string.h>

static void check_text(const struct tokenizer *t, const char *text, size_t length, bool special) {
    struct ids ids = {0};
    struct token_span *spans = NULL;
    struct text back = {0};
    struct error err = {0};
    if (tokenizer_encode(t, text, length, special, &ids, &spans, &err) == 0) {
        uint32_t at = 0;
        for (size_t i = 0; i < ids.count; i++) {
            EXPECT(ids.data[i] >= 0 && (size_t)ids.data[i] < tokenizer_vocab_size(t));
            EXPECT(spans[i].begin >= at && spans[i].end >= spans[i].begin && spans[i].end <= length);
            at = spans[i].begin;
        }
        EXPECT(tokenizer_decode(t, ids.data, ids.count, !special, &back, &err) == 0);
    } else {
        EXPECT(err.code != 0 && err.text[0] != 0 && ids.count == 0);
    }
    ids_free(&ids);
    mem_free(spans);
    text_free(&back);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const uint8_t *nul = size ? memchr(data, 0, size) : NULL;
    size_t length = nul ? (size_t)(nul - data) : size;
    if (length == 0) return 0;
    struct vocab_source source = {.file = "fuzz.json", .bos = -1, .eos = -1, .eot = -1, .unk = -1, .pad = -1};
    source.json = (struct vocab_string){(const char *)data, length};
    struct error err = {0};
    struct tokenizer *t = tokenizer_open(&source, &err);
    if (!t) {
        EXPECT(err.code != 0 && err.text[0] != 0);
        return 0;
    }
    const char *text = nul ? (const char *)nul + 1 : "some text";
    size_t text_length = nul ? size - length - 1 : strlen(text);
    check_text(t, text, text_length, true);
    check_text(t, text, text_length, false);
    tokenizer_close(t);
    return 0;
}
