// See chat_template.h. The templates of this version are those that print, for each message, fixed text around its role
// and its content: ChatML and what differs from it only in these texts. A template is brought to a list of steps
// (print a text, the role, the content; begin and end of the loop and of conditions) and the list is compared with that
// shape, so that quotes, white space control and the way strings are cut do not matter, and nothing else can slip in.
#include "data/chat_template.h"

#include "data/template_lexer.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

enum step_kind {
    STEP_TEXT,
    STEP_ROLE,
    STEP_CONTENT,
    STEP_FOR,          // for message in messages
    STEP_IF_GENERATE,  // if add_generation_prompt
    STEP_IF_NO_SYSTEM, // if messages[0]['role'] != 'system'
    STEP_IF_FIRST,     // if loop.first and messages[0]['role'] != 'system'
    STEP_IF_UNDEFINED, // if add_generation_prompt is not defined: never true
    STEP_SET_GENERATE, // set add_generation_prompt = false
    STEP_ENDFOR,
    STEP_ENDIF,
};

struct step {
    enum step_kind kind;
    int line;
    struct text text; // STEP_TEXT
};

enum { MAX_STEPS = 32 };

// The fixed texts around a message, and what stands before the first one when it is not the system's.
struct chat_template {
    struct text before_role, before_content, after_content, default_system, generation;
    bool default_needs_message; // the condition reads messages[0]: without messages it is an error
    char *eot;
    size_t eot_at; // bytes of after_content before the end-of-turn text
};

struct parser {
    const struct template_token *at, *end;
    struct step steps[MAX_STEPS];
    size_t n_steps;
    const struct template_token *variable; // of the loop
    struct error *err;
};

static int unsupported(struct parser *p, int line, const char *what) {
    return error_set(p->err, STATUS_DATA, "this chat template is not supported in this version: line %d: %s", line,
                     what);
}

static bool is(const struct parser *p, size_t ahead, enum template_token_kind kind, const char *text) {
    if ((size_t)(p->end - p->at) <= ahead || p->at[ahead].kind != kind) return false;
    return !text || (p->at[ahead].length == strlen(text) && memcmp(p->at[ahead].text, text, strlen(text)) == 0);
}

// Takes a sequence written as words: names and symbols stand for themselves, 'x' in quotes for a string, $ for the end
// of the tag.
static bool take(struct parser *p, const char *sequence) {
    const struct template_token *from = p->at;
    char word[64];
    int used;
    for (const char *s = sequence; sscanf(s, "%63s%n", word, &used) == 1; s += used, p->at++) {
        size_t n = strlen(word);
        bool quoted = word[0] == '\'' && n > 1, name = isalpha((uint8_t)word[0]) || word[0] == '_';
        if (quoted) word[n - 1] = 0;
        bool fits = word[0] == '$'              ? is(p, 0, TEMPLATE_END, NULL)
                    : quoted                    ? is(p, 0, TEMPLATE_STRING, word + 1)
                    : isdigit((uint8_t)word[0]) ? is(p, 0, TEMPLATE_NUMBER, word)
                                                : is(p, 0, name ? TEMPLATE_NAME : TEMPLATE_SYMBOL, word);
        if (!fits) {
            p->at = from;
            return false;
        }
    }
    return true;
}

static bool take_one_of(struct parser *p, const char *const *sequences) {
    for (; *sequences; sequences++)
        if (take(p, *sequences)) return true;
    return false;
}

static int add_step(struct parser *p, enum step_kind kind, int line) {
    if (p->n_steps == MAX_STEPS) return unsupported(p, line, "more steps than a ChatML template has");
    p->steps[p->n_steps++] = (struct step){.kind = kind, .line = line};
    return 0;
}

static int add_text(struct parser *p, const struct template_token *token) {
    bool extend = p->n_steps > 0 && p->steps[p->n_steps - 1].kind == STEP_TEXT;
    if (token->length == 0) return 0;
    if (!extend && add_step(p, STEP_TEXT, token->line) < 0) return -1;
    struct text *text = &p->steps[p->n_steps - 1].text;
    text_append(text, token->text, token->length);
    return text_failed(text) ? error_memory(p->err, "the chat template", text->length) : 0;
}

// message['role'] or message.role
static bool take_field(struct parser *p, const char *field) {
    if (!p->variable || !is(p, 0, TEMPLATE_NAME, NULL)) return false;
    if (p->at->length != p->variable->length || memcmp(p->at->text, p->variable->text, p->at->length) != 0)
        return false;
    if (is(p, 1, TEMPLATE_SYMBOL, ".") && is(p, 2, TEMPLATE_NAME, field)) {
        p->at += 3;
        return true;
    }
    if (is(p, 1, TEMPLATE_SYMBOL, "[") && is(p, 2, TEMPLATE_STRING, field) && is(p, 3, TEMPLATE_SYMBOL, "]")) {
        p->at += 4;
        return true;
    }
    return false;
}

// {{ a + b ~ c }}: strings, the role and the content, in parentheses where the author liked them.
static int parse_print(struct parser *p) {
    int line = p->at++->line, depth = 0;
    for (;;) {
        for (; take(p, "("); depth++) {
        }
        if (is(p, 0, TEMPLATE_STRING, NULL)) {
            do {
                if (add_text(p, p->at++) < 0) return -1;
            } while (is(p, 0, TEMPLATE_STRING, NULL)); // adjacent literals are one
        } else if (take_field(p, "role")) {
            if (add_step(p, STEP_ROLE, line) < 0) return -1;
        } else if (take_field(p, "content")) {
            if (add_step(p, STEP_CONTENT, line) < 0) return -1;
        } else
            return unsupported(p, line, "it prints more than fixed text, the role and the content");
        for (; depth > 0 && take(p, ")"); depth--) {
        }
        if (depth == 0 && take(p, "$")) return 0;
        if (!take(p, "+") && !take(p, "~")) return unsupported(p, line, "an operator other than + in what it prints");
    }
}

static const char *const not_system[] = {"messages [ 0 ] [ 'role' ] != 'system'", "messages [ 0 ] . role != 'system'",
                                         NULL};
static const char *const first[] = {"loop . first", "loop . index0 == 0", "loop . index == 1", NULL};

static int parse_if(struct parser *p, int line) {
    static const char *const undefined[] = {"not add_generation_prompt is defined $",
                                            "add_generation_prompt is not defined $", NULL};
    if (take(p, "add_generation_prompt $")) return add_step(p, STEP_IF_GENERATE, line);
    if (take_one_of(p, undefined)) return add_step(p, STEP_IF_UNDEFINED, line);
    if (take_one_of(p, first)) {
        if (take(p, "and") && take_one_of(p, not_system) && take(p, "$")) return add_step(p, STEP_IF_FIRST, line);
    } else if (take_one_of(p, not_system)) {
        if (take(p, "$")) return add_step(p, STEP_IF_NO_SYSTEM, line);
        if (take(p, "and") && take_one_of(p, first) && take(p, "$")) return add_step(p, STEP_IF_FIRST, line);
    }
    return unsupported(p, line, "a condition that plain ChatML does not have");
}

static int parse_block(struct parser *p) {
    int line = p->at++->line;
    if (take(p, "if")) return parse_if(p, line);
    if (take(p, "endif $")) return add_step(p, STEP_ENDIF, line);
    if (take(p, "endfor $")) return add_step(p, STEP_ENDFOR, line);
    if (take(p, "set add_generation_prompt = false $") || take(p, "set add_generation_prompt = False $"))
        return add_step(p, STEP_SET_GENERATE, line);
    if (take(p, "for") && is(p, 0, TEMPLATE_NAME, NULL)) {
        p->variable = p->at++;
        if (take(p, "in messages $")) return add_step(p, STEP_FOR, line);
    }
    return unsupported(p, line, "a statement that plain ChatML does not have");
}

static int parse(struct parser *p) {
    while (p->at < p->end) {
        int status = p->at->kind == TEMPLATE_TEXT    ? add_text(p, p->at++)
                     : p->at->kind == TEMPLATE_PRINT ? parse_print(p)
                                                     : parse_block(p);
        if (status < 0) return -1;
    }
    return 0;
}

// --- comparing the steps with the shape

struct matcher {
    struct parser *p;
    size_t at;
};

static bool match(struct matcher *m, enum step_kind kind) {
    if (m->at == m->p->n_steps || m->p->steps[m->at].kind != kind) return false;
    m->at++;
    return true;
}

// Moves the text of the next step, if it is one, to `out`.
static bool match_text(struct matcher *m, struct text *out) {
    if (!match(m, STEP_TEXT)) return false;
    struct text *from = &m->p->steps[m->at - 1].text;
    *out = *from;
    *from = (struct text){0};
    return true;
}

// A condition that is never true in transformers, which always defines the variable.
static bool match_prelude(struct matcher *m) {
    size_t from = m->at;
    if (match(m, STEP_IF_UNDEFINED)) {
        match(m, STEP_TEXT);
        if (match(m, STEP_SET_GENERATE)) {
            match(m, STEP_TEXT);
            if (match(m, STEP_ENDIF)) return true;
        }
    }
    m->at = from;
    return false;
}

static int match_shape(struct parser *p, struct chat_template *t) {
    struct matcher m = {p, 0};
    match_prelude(&m);
    bool fits = true;
    if (match(&m, STEP_IF_NO_SYSTEM)) {
        fits = match_text(&m, &t->default_system) && match(&m, STEP_ENDIF);
        t->default_needs_message = true;
    }
    fits = fits && match(&m, STEP_FOR);
    if (fits && !t->default_needs_message && match(&m, STEP_IF_FIRST))
        fits = match_text(&m, &t->default_system) && match(&m, STEP_ENDIF);
    if (fits) {
        match_text(&m, &t->before_role);
        fits = match(&m, STEP_ROLE);
    }
    if (fits) {
        match_text(&m, &t->before_content);
        fits = match(&m, STEP_CONTENT) && match_text(&m, &t->after_content) && match(&m, STEP_ENDFOR);
    }
    if (fits) match_prelude(&m);
    if (fits && match(&m, STEP_IF_GENERATE)) fits = match_text(&m, &t->generation) && match(&m, STEP_ENDIF);
    if (fits && m.at == p->n_steps) return 0;
    int line = m.at < p->n_steps ? p->steps[m.at].line : p->n_steps ? p->steps[p->n_steps - 1].line : 1;
    return unsupported(p, line, "its shape is not that of plain ChatML");
}

// The end of a turn is what follows the content, without white space around it.
static int find_eot(struct chat_template *t, struct error *err) {
    const char *after = text_str(&t->after_content);
    size_t begin = 0, end = t->after_content.length;
    while (begin < end && isspace((uint8_t)after[begin])) begin++;
    while (end > begin && isspace((uint8_t)after[end - 1])) end--;
    if (begin == end)
        return error_set(err, STATUS_DATA,
                         "this chat template is not supported in this version: nothing marks the end of a turn");
    t->eot_at = begin;
    t->eot = mem_strndup(after + begin, end - begin);
    return t->eot ? 0 : error_memory(err, "the chat template", end - begin);
}

static int open_source(struct chat_template *t, const char *source, size_t length, struct error *err) {
    struct template_tokens tokens;
    if (template_lex(source, length, &tokens, err) < 0) return -1;
    struct parser p = {.at = tokens.list, .end = tokens.list + tokens.count, .err = err};
    int status = parse(&p);
    if (status == 0) status = match_shape(&p, t);
    if (status == 0) status = find_eot(t, err);
    for (size_t i = 0; i < p.n_steps; i++) text_free(&p.steps[i].text);
    template_tokens_free(&tokens);
    return status;
}

static int choose(struct chat_template *t, const char *name, const char *source, size_t length, struct error *err) {
    static const char chatml[] = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + "
                                 "message['content'] + '<|im_end|>' + '\n'}}"
                                 "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    bool fallback = name && strcmp(name, "tokenizer_default_fallback_chatml") == 0;
    if ((name && strcmp(name, "chatml") == 0) || (fallback && length == 0))
        return open_source(t, chatml, strlen(chatml), err);
    if (name && !fallback && strcmp(name, "tokenizer_default") != 0)
        return error_set(err, STATUS_CONFIG,
                         "chat_template \"%.64s\" is not in this version; tokenizer_default and chatml are", name);
    if (length == 0)
        return error_set(err, STATUS_DATA, "the model brings no chat template; name one: chat_template: chatml");
    return open_source(t, source, length, err);
}

struct chat_template *chat_template_open(const char *name, const char *source, size_t length, struct error *err) {
    struct chat_template *t = mem_zalloc(1, sizeof *t);
    if (!t) {
        error_memory(err, "the chat template", sizeof *t);
        return NULL;
    }
    if (choose(t, name, source, length, err) == 0) return t;
    chat_template_close(t);
    return NULL;
}

void chat_template_close(struct chat_template *t) {
    if (!t) return;
    struct text *texts[] = {&t->before_role, &t->before_content, &t->after_content, &t->default_system, &t->generation};
    for (size_t i = 0; i < COUNT_OF(texts); i++) text_free(texts[i]);
    mem_free(t->eot);
    mem_free(t);
}

const char *chat_template_eot(const struct chat_template *t) {
    return t->eot;
}

// --- rendering

void rendered_free(struct rendered *r) {
    text_free(&r->text);
    mem_free(r->spans);
    *r = (struct rendered){0};
}

int rendered_add(struct rendered *out, const char *bytes, size_t length, enum span_kind kind, int message) {
    size_t begin = out->text.length;
    text_append(&out->text, bytes, length);
    if (text_failed(&out->text)) return -1;
    struct render_span *last = out->n_spans ? &out->spans[out->n_spans - 1] : NULL;
    if (last && kind == SPAN_TEMPLATE && last->kind == kind && last->message == message) {
        last->end += length;
        return 0;
    }
    if (length == 0 && kind != SPAN_CONTENT) return 0;
    if (out->n_spans == out->capacity) {
        size_t capacity = out->capacity ? 2 * out->capacity : 16;
        struct render_span *spans = mem_resize(out->spans, capacity * sizeof *spans);
        if (!spans) return -1;
        out->spans = spans;
        out->capacity = capacity;
    }
    out->spans[out->n_spans++] = (struct render_span){begin, begin + length, kind, message};
    return 0;
}

static int emit_text(struct rendered *out, const struct text *text, int message) {
    return rendered_add(out, text_str(text), text->length, SPAN_TEMPLATE, message);
}

static int emit_message(const struct chat_template *t, const struct message *m, int i, struct rendered *out) {
    if (emit_text(out, &t->before_role, i) < 0 || rendered_add(out, m->role, strlen(m->role), SPAN_TEMPLATE, i) < 0 ||
        emit_text(out, &t->before_content, i) < 0 ||
        rendered_add(out, m->content, m->content_length, SPAN_CONTENT, i) < 0)
        return -1;
    const char *after = text_str(&t->after_content);
    size_t eot_end = t->eot_at + strlen(t->eot);
    if (rendered_add(out, after, t->eot_at, SPAN_TEMPLATE, i) < 0 ||
        rendered_add(out, t->eot, strlen(t->eot), SPAN_EOT, i) < 0)
        return -1;
    return rendered_add(out, after + eot_end, t->after_content.length - eot_end, SPAN_TEMPLATE, i);
}

int chat_template_render(const struct chat_template *t, const struct message *messages, int n,
                         bool add_generation_prompt, struct rendered *out, struct error *err) {
    text_clear(&out->text);
    out->n_spans = 0;
    if (n == 0 && t->default_needs_message)
        return error_set(err, STATUS_DATA, "the chat template needs at least one message");
    int status = 0;
    if (n > 0 && strcmp(messages[0].role, "system") != 0) status = emit_text(out, &t->default_system, -1);
    for (int i = 0; i < n && status == 0; i++) status = emit_message(t, &messages[i], i, out);
    if (add_generation_prompt && status == 0) status = emit_text(out, &t->generation, -1);
    return status < 0 ? error_memory(err, "a rendered conversation", out->text.length) : 0;
}
