// Renders for tests/peers/templates.py: reads {"source", "name" (or null), "messages", "generate"} objects, one a line,
// from standard input and writes {"text", "spans": [[begin, end, kind, message], ...], "eot"} or {"error"} a line.
#include "data/chat_template.h"
#include "data/json.h"

#include <stdio.h>
#include <stdlib.h>

enum { MOST_MESSAGES = 64 };

static void fail(const char *what) {
    fprintf(stderr, "templates_dump: %s\n", what);
    exit(1);
}

static int read_messages(const struct json *list, struct message *out) {
    int n = 0;
    for (const struct json *m = json_child(list); m; m = json_next(m)) {
        if (n == MOST_MESSAGES) fail("too many messages");
        out[n].role = json_string(json_get(m, "role"), NULL);
        out[n].content = json_string(json_get(m, "content"), &out[n].content_length);
        if (!out[n].role || !out[n].content) fail("a message without role or content");
        n++;
    }
    return n;
}

static void put_result(struct json_writer *w, const struct rendered *r, const char *eot) {
    json_put_key(w, "text");
    json_put_bytes(w, text_str(&r->text), r->text.length);
    json_put_key(w, "eot");
    json_put_string(w, eot);
    json_put_key(w, "spans");
    json_begin_array(w);
    for (size_t i = 0; i < r->n_spans; i++) {
        json_begin_array(w);
        json_put_int(w, (int64_t)r->spans[i].begin);
        json_put_int(w, (int64_t)r->spans[i].end);
        json_put_int(w, r->spans[i].kind);
        json_put_int(w, r->spans[i].message);
        json_end_array(w);
    }
    json_end_array(w);
}

static void answer(const struct json *request) {
    struct message messages[MOST_MESSAGES];
    struct rendered r = {0};
    struct error err = {0};
    struct text line = {0};
    struct json_writer w = {.out = &line};
    size_t length;
    bool generate = false;
    const char *source = json_string(json_get(request, "source"), &length);
    if (!source) fail("a request without a source");
    json_bool(json_get(request, "generate"), &generate);
    int n = read_messages(json_get(request, "messages"), messages);
    struct chat_template *t = chat_template_open(json_string(json_get(request, "name"), NULL), source, length, &err);
    json_begin_object(&w);
    if (!t || chat_template_render(t, messages, n, generate, &r, &err) < 0) {
        json_put_key(&w, "error");
        json_put_string(&w, err.text);
    } else
        put_result(&w, &r, chat_template_eot(t));
    json_end_object(&w);
    if (text_failed(&line)) fail("out of memory");
    puts(text_str(&line));
    text_free(&line);
    rendered_free(&r);
    chat_template_close(t);
}

int main(void) {
    char *line = NULL;
    size_t room = 0;
    for (ssize_t n; (n = getline(&line, &room, stdin)) > 0;) {
        struct json_document doc;
        struct error err = {0};
        if (json_parse(line, (size_t)n, NULL, &doc, &err) < 0) fail(err.text);
        answer(doc.root);
        json_free(&doc);
    }
    free(line);
    return 0;
}
