// Encodes strings for tests/peers/tokens.py: reads a vocabulary and JSON strings, one a line, from standard input;
// writes one object a line: {"ids": [...], "plain": [...] (control tokens as text), "decoded": text} or {"error":
// text}. Spans are checked on the way. The vocabulary, named on the command line: a GGUF file, a folder with
// tokenizer.json, or a JSON file {model, pre, tokens, types, merges, scores, add_space_prefix}. With --info instead of
// strings: what the tokenizer says of itself. With
// --speed FILE: the rate at which it encodes the lines of the file, in bytes a second.
#include "data/json.h"
#include "data/tokenizer.h"
#include "model/model_vocab.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

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
    const struct json *list = json_get(doc->root, "scores");
    float *scores = pool_array(pool, s.n_tokens + 1, sizeof *scores);
    if (list && (!scores || json_count(list) != s.n_tokens)) fail("the vocabulary has not as many scores as tokens");
    i = 0;
    for (const struct json *v = json_child(list); v; v = json_next(v)) {
        double score = 0;
        json_double(v, &score);
        scores[i++] = (float)score;
    }
    s.scores = list ? scores : NULL;
    json_bool(json_get(doc->root, "add_space_prefix"), &s.add_space_prefix);
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

static void info(const struct tokenizer *t) {
    struct text line = {0};
    struct json_writer w = {.out = &line};
    int n;
    const int32_t *ends = tokenizer_ends(t, &n);
    struct vocab_string source = tokenizer_chat_template(t);
    json_begin_object(&w);
    json_put_key(&w, "size");
    json_put_int(&w, (int64_t)tokenizer_vocab_size(t));
    json_put_key(&w, "bos");
    json_put_int(&w, tokenizer_bos(t));
    json_put_key(&w, "eos");
    json_put_int(&w, tokenizer_eos(t));
    json_put_key(&w, "adds_bos");
    json_put_bool(&w, tokenizer_adds_bos(t));
    json_put_key(&w, "template");
    json_put_bytes(&w, source.bytes ? source.bytes : "", source.length);
    json_put_key(&w, "ends");
    json_begin_array(&w);
    for (int i = 0; i < n; i++) json_put_int(&w, ends[i]);
    json_end_array(&w);
    json_end_object(&w);
    puts(text_str(&line));
    text_free(&line);
}

static void speed(const struct tokenizer *t, const char *path) {
    struct error err = {0};
    struct text all;
    if (file_read(path, (size_t)1 << 30, &all, &err) < 0) fail(err.text);
    struct ids ids = {0};
    clock_t start = clock(); // of this process: other work on the machine does not count
    double seconds;
    size_t bytes = 0;
    do {
        for (const char *line = text_str(&all), *end; *line; line = end) {
            end = strchr(line, '\n');
            end = end ? end + 1 : line + strlen(line);
            ids.count = 0;
            if (tokenizer_encode(t, line, (size_t)(end - line), true, &ids, NULL, &err) < 0) fail(err.text);
        }
        bytes += all.length;
        seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
    } while (seconds < 1);
    printf("%.0f\n", (double)bytes / seconds);
    ids_free(&ids);
    text_free(&all);
}

static void answer_all(const struct tokenizer *t) {
    struct error err = {0};
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
}

int main(int argc, char **argv) {
    struct error err = {0};
    struct json_document vocabulary = {0};
    struct json_options many = {.max_values = 10000000};
    struct gguf gguf = {0};
    struct pool pool = {0};
    struct vocab_source source;
    if (argc < 2) fail("usage: tokens_dump VOCABULARY [--info | --speed FILE]");
    const char *path = argv[1];
    size_t length = strlen(path);
    if (file_is_folder(path)) {
        source =
            (struct vocab_source){.file = path, .folder = path, .bos = -1, .eos = -1, .eot = -1, .unk = -1, .pad = -1};
    } else if (length > 5 && strcmp(path + length - 5, ".gguf") == 0) {
        if (gguf_open(path, &gguf, &err) < 0 || vocab_from_gguf(&gguf, path, &pool, &source, &err) < 0) fail(err.text);
    } else {
        if (json_load(path, 256u << 20, &many, &vocabulary, &err) < 0) fail(err.text);
        source = read_source(&vocabulary, &pool);
    }
    struct tokenizer *t = tokenizer_open(&source, &err);
    if (!t) fail(err.text);
    if (argc > 2 && strcmp(argv[2], "--info") == 0)
        info(t);
    else if (argc > 3 && strcmp(argv[2], "--speed") == 0)
        speed(t, argv[3]);
    else
        answer_all(t);
    tokenizer_close(t);
    pool_free(&pool);
    gguf_close(&gguf);
    json_free(&vocabulary);
    return 0;
}
