// Chat templates: messages -> text, with provenance. Every piece of the output knows the message it came from and what
// it is, so that loss masks are exact without guessing strings.
#pragma once

#include "kernels/base.h"

struct message {
    const char *role; // NUL-terminated; borrowed
    const char *content;
    size_t content_length;
    int train; // per-turn flag of the data: -1 unset, 0 no, 1 yes
};

enum span_kind {
    SPAN_TEMPLATE, // text the template adds: headers, separators, default system prompt, generation prompt
    SPAN_CONTENT,  // a message's own text
    SPAN_EOT,      // the token(s) that end a message's turn
};
struct render_span {
    size_t begin, end; // bytes of the output
    enum span_kind kind;
    int message; // index, -1 when it belongs to none
};
struct rendered {
    struct text text;
    struct render_span *spans; // in order, covering the whole text
    size_t n_spans, capacity;
};
void rendered_free(struct rendered *r);
// Appends a piece and its span (adjacent template text of one message becomes one span). -1 when out of memory.
int rendered_add(struct rendered *r, const char *bytes, size_t length, enum span_kind kind, int message);

struct chat_template;

// Recognises the template by its source and takes what varies (default system prompt, names) from it. A template
// it does not know is an error, never a wrong rendering. `name` NULL or "tokenizer_default" = the model's own `source`;
// "chatml" = plain ChatML whatever the source says.
struct chat_template *chat_template_open(const char *name, const char *source, size_t length, struct error *err);
void chat_template_close(struct chat_template *t); // NULL is a no-op
int chat_template_render(const struct chat_template *t, const struct message *messages, int n,
                         bool add_generation_prompt, struct rendered *out, struct error *err);
// The text that ends an assistant turn, e.g. "<|im_end|>": generation stops there.
const char *chat_template_eot(const struct chat_template *t);
