// Encodes strings for tests/peers/tokens.py: reads a vocabulary {model, pre, tokens, types, merges} from the JSON file
// named on the command line and JSON strings, one a line, from standard input; writes one object a line: {"ids": [...],
// "plain": [...] (control tokens as text), "decoded": text} or {"error": text}. Spans are checked on the way.
#include "data/json.h"
#include "data/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void fail(const char *what) {
    fprintf(stderr, "tokens_dump: %s\n", what);
    exit(1);
}

static struct vocab_string *strings(const struct json *list, struct pool *pool, size_t *count) {
    *count = json_count(list);
    struct vocab_string *out = pool_array(pool, *count + 1, sizeof *out);
    if (!out) fail("out of memory");
    size_t i = 0;
    for (const struct json *v = json_child(list); v; v = json_next(v), i++)
        if (!(out[i].bytes = json_string(v, &out[i].length))) fail("the vocabulary holds something that is no string");
    return out;
}

static struct vocab_source read_source(struct json_document *doc, struct pool *pool) {
    struct vocab_source s = {.file = "vocabulary", .bos = -1, .eos = -1, .eot = -1, .unk = -1, .pad = -1};
    s.model = json_string(json_get(doc->root, "model"), NULL);
    s.pre = json_string(json_get(doc->root, "pre"), NULL);
    s.tokens = strings(json_get(doc->root, "tokens"), pool, &s.n_tokens);
    s.merges = strings(json_get(doc->root, "merges"), pool, &s.n_merges);
    int32_t *types = pool_array(pool, s.n_tokens + 1, sizeof *types);
    size_t i = 0;
    for (const struct json *v = json_child(json_get(doc->root, "types")); v && types && i < s.n_tokens;
         v = json_next(v)) {
        int64_t type = 0;
        json_int(v, &type);
        types[i++] = (int32_t)type;
    }
    if (i != s.n_tokens) fail("the vocabulary has not as many types as tokens");
    s.types = types;
    return s;
}

static void check_spans(const struct ids *ids, const struct token_span *spans, size_t length) {
    uint32_t at = 0;
    for (size_t i = 0; i < ids->count; i++) {
        if (spans[i].begin < at || spans[i].end < spans[i].begin || spans[i].end > length)
            fail("a span is out of order");
        at = spans[i].begin;
    }
}

static void put_ids(struct json_writer *w, const char *key, const struct ids *ids) {
    json_put_key(w, key);
    json_begin_array(w);
    for (size_t i = 0; i < ids->count; i++) json_put_int(w, ids->data[i]);
    json_end_array(w);
}

static void answer(const struct tokenizer *t, const char *text, size_t length) {
    static struct text line;
    struct ids ids = {0}, plain = {0};
    struct token_span *spans = NULL;
    struct text decoded = {0};
    struct error err = {0};
    text_clear(&line);
    struct json_writer w = {.out = &line};
    json_begin_object(&w);
    if (tokenizer_encode(t, text, length, true, &ids, &spans, &err) < 0 ||
        tokenizer_encode(t, text, length, false, &plain, NULL, &err) < 0 ||
        tokenizer_decode(t, ids.data, ids.count, false, &decoded, &err) < 0) {
        json_put_key(&w, "error");
        json_put_string(&w, err.text);
    } else {
        check_spans(&ids, spans, length);
        put_ids(&w, "ids", &ids);
        put_ids(&w, "plain", &plain);
        json_put_key(&w, "decoded");
        json_put_bytes(&w, text_str(&decoded), decoded.length);
    }
    json_end_object(&w);
    if (text_failed(&line)) fail("out of memory");
    puts(text_str(&line));
    ids_free(&ids);
    ids_free(&plain);
    mem_free(spans);
    text_free(&decoded);
}

int main(int argc, char **argv) {
    struct error err = {0};
    struct json_document vocabulary;
    struct json_options many = {.max_values = 10000000};
    if (argc != 2) fail("usage: tokens_dump VOCABULARY.json");
    if (json_load(argv[1], 256u << 20, &many, &vocabulary, &err) < 0) fail(err.text);
    struct pool pool = {0};
    struct vocab_source source = read_source(&vocabulary, &pool);
    struct tokenizer *t = tokenizer_open(&source, &err);
    if (!t) fail(err.text);
    char *line = NULL;
    size_t room = 0;
    for (ssize_t n; (n = getline(&line, &room, stdin)) > 0;) {
        struct json_document doc;
        if (json_parse(line, (size_t)n, NULL, &doc, &err) < 0) fail(err.text);
        size_t length;
        const char *text = json_string(doc.root, &length);
        if (!text) fail("a line is no string");
        answer(t, text, length);
        json_free(&doc);
    }
    free(line);
    tokenizer_close(t);
    pool_free(&pool);
    json_free(&vocabulary);
    return 0;
}
