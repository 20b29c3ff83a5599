// Chat templates against texts that transformers rendered (fixtures/templates.json, written by
// tests/peers/templates.py), and the spans by hand.
#include "data/chat_template.h"
#include "data/json.h"
#include "tests/harness.h"

#include <string.h>

enum { MOST_MESSAGES = 8 };

static int read_messages(const struct json *list, struct message *out) {
    int n = 0;
    for (const struct json *m = json_child(list); m && n < MOST_MESSAGES; m = json_next(m), n++) {
        out[n] = (struct message){.role = json_string(json_get(m, "role"), NULL), .train = -1};
        out[n].content = json_string(json_get(m, "content"), &out[n].content_length);
    }
    return n;
}

static struct json_document load(void) {
    struct json_document doc = {0};
    struct error err = {0};
    CHECK_MSG(json_load("tests/fixtures/templates.json", 1 << 20, NULL, &doc, &err) == 0, "%s", err.text);
    return doc;
}

// The spans follow each other without a gap and say what the bytes are.
static void check_spans(const struct rendered *r, const struct message *messages, const char *eot) {
    size_t at = 0;
    for (size_t i = 0; i < r->n_spans; i++) {
        const struct render_span *s = &r->spans[i];
        const char *text = text_str(&r->text) + s->begin;
        size_t length = s->end - s->begin;
        CHECK_INT(s->begin, at);
        at = s->end;
        if (s->kind == SPAN_CONTENT)
            CHECK(length == messages[s->message].content_length &&
                  memcmp(text, messages[s->message].content, length) == 0);
        if (s->kind == SPAN_EOT) CHECK(length == strlen(eot) && memcmp(text, eot, length) == 0);
    }
    CHECK_INT(at, r->text.length);
}

static void check_case(const struct json *item, const struct json *conversations) {
    const char *name = json_string(json_get(item, "name"), NULL);
    size_t length, want_length;
    const char *source = json_string(json_get(item, "source"), &length);
    struct error err = {0};
    struct rendered r = {0};
    struct chat_template *t = chat_template_open(NULL, source, length, &err);
    CHECK_MSG(t != NULL, "%s: %s", name, err.text);
    const struct json *texts = json_child(json_get(item, "texts"));
    for (const struct json *c = json_child(conversations); c && t; c = json_next(c), texts = json_next(texts)) {
        struct message messages[MOST_MESSAGES];
        int n = read_messages(c, messages);
        const struct json *want = json_child(texts);
        for (int generate = 0; generate < 2; generate++, want = json_next(want)) {
            const char *text = json_string(want, &want_length);
            CHECK(chat_template_render(t, messages, n, generate, &r, &err) == 0);
            CHECK_MSG(r.text.length == want_length && memcmp(text_str(&r.text), text, want_length) == 0,
                      "%s: \"%s\", expected \"%s\"", name, text_str(&r.text), text);
            check_spans(&r, messages, chat_template_eot(t));
        }
    }
    rendered_free(&r);
    chat_template_close(t);
}

TEST(texts_equal_the_reference) {
    struct json_document doc = load();
    const struct json *list = json_get(doc.root, "supported");
    CHECK(json_count(list) >= 15);
    for (const struct json *item = json_child(list); item; item = json_next(item))
        check_case(item, json_get(doc.root, "conversations"));
    json_free(&doc);
}

TEST(other_shapes_are_refused) {
    struct json_document doc = load();
    const struct json *list = json_get(doc.root, "refused");
    CHECK(json_count(list) >= 15);
    for (const struct json *item = json_child(list); item; item = json_next(item)) {
        size_t length;
        const char *source = json_string(json_get(item, "source"), &length);
        struct error err = {0};
        struct chat_template *t = chat_template_open("tokenizer_default", source, length, &err);
        CHECK_MSG(t == NULL, "%s is accepted", json_string(json_get(item, "name"), NULL));
        CHECK_INT(err.code, STATUS_DATA);
        CHECK_MSG(length == 0 || strstr(err.text, "this chat template is not supported in this version: ") != NULL,
                  "%s", err.text);
        chat_template_close(t);
    }
    json_free(&doc);
}

TEST(names_choose_the_template) {
    static const char other[] = "{% for m in messages %}{{ m.role + m.content + '<e>' }}{% endfor %}";
    struct message hello = {"user", "x", 1, -1};
    struct rendered r = {0};
    struct error err = {0};
    struct chat_template *t = chat_template_open("chatml", other, strlen(other), &err);
    CHECK(t && chat_template_render(t, &hello, 1, true, &r, &err) == 0);
    CHECK_STR(text_str(&r.text), "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n");
    CHECK_STR(chat_template_eot(t), "<|im_end|>");
    chat_template_close(t);
    t = chat_template_open("tokenizer_default_fallback_chatml", other, strlen(other), &err);
    CHECK_STR(t ? chat_template_eot(t) : "", "<e>");
    chat_template_close(t);
    t = chat_template_open("tokenizer_default_fallback_chatml", "", 0, &err);
    CHECK_STR(t ? chat_template_eot(t) : "", "<|im_end|>");
    chat_template_close(t);
    CHECK_INT(err.code, 0);
    CHECK(chat_template_open("llama3", other, strlen(other), &err) == NULL);
    CHECK_INT(err.code, STATUS_CONFIG);
    CHECK(strstr(err.text, "\"llama3\"") != NULL);
    err = (struct error){0};
    CHECK(chat_template_open(NULL, NULL, 0, &err) == NULL);
    CHECK(strstr(err.text, "no chat template") != NULL);
    rendered_free(&r);
}

TEST(spans_of_a_conversation) {
    static const char source[] =
        "{% for m in messages %}{% if loop.first and messages[0].role != 'system' %}[S]{% endif %}"
        "{{ '<' + m.role + '>' + m.content + ' <e>\n' }}{% endfor %}";
    static const struct render_span want[] = {
        {0, 3, SPAN_TEMPLATE, -1},  {3, 9, SPAN_TEMPLATE, 0},   {9, 11, SPAN_CONTENT, 0},   {11, 12, SPAN_TEMPLATE, 0},
        {12, 15, SPAN_EOT, 0},      {15, 16, SPAN_TEMPLATE, 0}, {16, 27, SPAN_TEMPLATE, 1}, {27, 27, SPAN_CONTENT, 1},
        {27, 28, SPAN_TEMPLATE, 1}, {28, 31, SPAN_EOT, 1},      {31, 32, SPAN_TEMPLATE, 1}};
    struct message messages[2] = {{"user", "hi", 2, -1}, {"assistant", "", 0, -1}};
    struct rendered r = {0};
    struct error err = {0};
    struct chat_template *t = chat_template_open(NULL, source, strlen(source), &err);
    CHECK_MSG(t && chat_template_render(t, messages, 2, true, &r, &err) == 0, "%s", err.text);
    CHECK_STR(text_str(&r.text), "[S]<user>hi <e>\n<assistant> <e>\n");
    CHECK_INT(r.n_spans, COUNT_OF(want));
    for (size_t i = 0; i < r.n_spans && i < COUNT_OF(want); i++)
        CHECK_MSG(memcmp(&r.spans[i], &want[i], sizeof *want) == 0, "span %zu is [%zu, %zu) kind %d of %d", i,
                  r.spans[i].begin, r.spans[i].end, (int)r.spans[i].kind, r.spans[i].message);
    CHECK(chat_template_render(t, messages, 0, false, &r, &err) == 0); // no messages: nothing
    CHECK_INT(r.text.length, 0);
    CHECK_INT(r.n_spans, 0);
    rendered_free(&r);
    chat_template_close(t);
}

TEST(hostile_sources_end_in_an_error) {
    struct text source = {0};
    for (int i = 0; i < 5000; i++) text_add(&source, "{{ 'a' }}{% for m in messages %}");
    struct error err = {0};
    CHECK(chat_template_open(NULL, source.data, source.length, &err) == NULL);
    text_clear(&source);
    for (int i = 0; i < 100000; i++) text_add(&source, "(((((((((((");
    err = (struct error){0};
    CHECK(chat_template_open(NULL, source.data, source.length, &err) == NULL); // beyond the size limit
    static const char good[] = "{% for m in messages %}{{ 'a' + m.role + '\\n' + m.content + '<e>' }}{% endfor %}"
                               "{% if add_generation_prompt %}{{ 'g' }}{% endif %}";
    for (size_t cut = 1; cut < strlen(good); cut++) { // every cut: refused, or a template of its own
        err = (struct error){0};
        struct chat_template *t = chat_template_open(NULL, good, cut, &err);
        CHECK(t != NULL || err.code == STATUS_DATA);
        chat_template_close(t);
    }
    err = (struct error){0};
    CHECK(chat_template_open(NULL, "a\0b", 3, &err) == NULL);
    CHECK(chat_template_open(NULL, "\xFF", 1, &err) == NULL);
    text_free(&source);
}

TEST(every_allocation_may_fail) {
    static const char source[] = "{% for m in messages %}{{ 'a' + m.role + '\\n' + m.content + '<e>' }}{% endfor %}";
    struct message messages[2] = {{"user", "hi", 2, -1}, {"assistant", "yes", 3, -1}};
    int status = -1;
    uint64_t k = 1, failures = 0;
    for (; status < 0 && k < 100; k++) {
        struct rendered r = {0};
        struct error err = {0};
        mem_fail_at(k, 0);
        struct chat_template *t = chat_template_open(NULL, source, strlen(source), &err);
        status = t ? chat_template_render(t, messages, 2, true, &r, &err) : -1;
        mem_fail_at(0, 0);
        if (status < 0) CHECK_INT(err.code, STATUS_MEMORY);
        failures += status < 0;
        rendered_free(&r);
        chat_template_close(t);
    }
    CHECK(status == 0 && failures >= 8 && k < 100);
}

TEST_MAIN(CASE(texts_equal_the_reference), CASE(other_shapes_are_refused), CASE(names_choose_the_template),
          CASE(spans_of_a_conversation), CASE(hostile_sources_end_in_an_error), CASE(every_allocation_may_fail))
