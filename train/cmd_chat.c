// graft chat: one base and several adapters in memory, swapped while it runs.
#include "adapters/lora.h"
#include "data/utf8.h"
#include "train/adapter_base.h"
#include "train/command.h"
#include "train/evaluate.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { MAX_TURNS = 256, CHAT_CONTEXT = 4096, MAX_LINE = 1 << 20 };

struct chat {
    struct session session;
    const struct chat_template *template; // of the session
    struct adapter adapters[DECODER_MAX_ADAPTERS];
    struct lora loras[DECODER_MAX_ADAPTERS];
    const char *names[DECODER_MAX_ADAPTERS], *paths[DECODER_MAX_ADAPTERS]; // in the pool
    int n_adapters, active;                                                // active: -1 = base
    struct sampling sampling;
    int32_t max_tokens;
    bool stats;
    struct message turns[MAX_TURNS];
    char *contents[MAX_TURNS]; // of turns; owned
    int n_turns, first;        // first = 1 when turn 0 is the system message
    struct pool pool;
};

static void forget_turns(struct chat *c, int keep) {
    while (c->n_turns > keep) mem_free(c->contents[--c->n_turns]);
}

static void close_all(struct chat *c) {
    for (int i = 0; i < c->n_adapters; i++) adapter_free(&c->adapters[i]);
    session_close(&c->session);
    forget_turns(c, 0);
    pool_free(&c->pool);
}

static int attach(struct chat *c, struct error *err) {
    for (int i = 0; i < c->n_adapters; i++) {
        if (lora_attach(&c->session.decoder, &c->adapters[i], i, false, false, &c->loras[i], err)) return -1;
    }
    return 0;
}

// Length of a path without slashes at its end.
static size_t path_length(const char *path) {
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/') length--;
    return length;
}

// "NAME=PATH", or a path whose last part is the name. A path that exists is one, even with '=' in it.
static int add_name(struct chat *c, const char *argument, struct error *err) {
    const char *equals = strchr(argument, '='), *slash = strchr(argument, '/');
    bool named = equals && !(slash && slash < equals) && !file_exists(argument);
    const char *path = named ? equals + 1 : argument;
    path = pool_strndup(&c->pool, path, path_length(path));
    if (!path) return error_memory(err, "a path", strlen(argument));
    slash = strrchr(path, '/');
    const char *name = slash && slash[1] ? slash + 1 : path;
    if (named) name = pool_strndup(&c->pool, argument, (size_t)(equals - argument));
    if (!name) return error_memory(err, "a name", strlen(argument));
    if (!*name || !*path) return error_set(err, STATUS_USAGE, "--adapter '%s': give PATH or NAME=PATH", argument);
    if (strcmp(name, "none") == 0) {
        return error_set(err, STATUS_USAGE,
                         "--adapter %s: the name 'none' stands for the base; give another as NAME=PATH", argument);
    }
    for (int i = 0; i < c->n_adapters; i++) {
        if (strcmp(c->names[i], name) != 0) continue;
        return error_set(err, STATUS_USAGE,
                         "two adapters are called '%s': %s and %s; give one of them a name of its own: "
                         "--adapter NAME=%s",
                         name, c->paths[i], path, path);
    }
    c->names[c->n_adapters] = name;
    c->paths[c->n_adapters++] = path;
    return 0;
}

static int open_all(struct chat *c, const struct option *options, struct error *err) {
    const struct option *adapters = &options[1];
    double threads = 0;
    if (option_number(options, "--threads", 1, 1024, &threads, err)) return -1;
    struct session_options so = {.dtype = DTYPE_F32, .threads = (int)threads};
    if (adapters->n_values > DECODER_MAX_ADAPTERS)
        return error_set(err, STATUS_USAGE, "at most %d adapters at a time", DECODER_MAX_ADAPTERS);
    for (int i = 0; i < adapters->n_values; i++) {
        if (add_name(c, adapters->values[i], err)) return -1;
    }
    struct adapter_base base = {.source.name = option_value(options, "--base")};
    if (!base.source.name && c->n_adapters == 0)
        return error_set(err, STATUS_USAGE, "which base? graft chat --base MODEL.gguf [--adapter A ...]");
    if (!base.source.name && adapter_base_find(c->paths[0], NULL, "give --base MODEL.gguf", &c->pool, &base, err))
        return -1;
    so.base = base.source;
    if (session_open(&so, &c->session, err)) return -1;
    c->template = session_chat(&c->session, NULL, err);
    if (!c->template) return -1;
    for (int i = 0; i < c->n_adapters; i++) {
        if (adapter_read(c->paths[i], &c->session.model, &c->adapters[i], err)) return -1;
    }
    c->active = c->n_adapters ? 0 : -1;
    int32_t context = c->session.model.arch.context < CHAT_CONTEXT ? c->session.model.arch.context : CHAT_CONTEXT;
    struct decoder_limits limits = {.max_seqs = 1, .max_positions = context, .cache_seqs = 1, .cache_len = context};
    if (session_record(&c->session, &limits, err) || attach(c, err) ||
        generator_record(&c->session.generator, c->n_adapters, err) || session_start(&c->session, err) ||
        attach(c, err)) {
        return -1;
    }
    for (int i = 0; i < c->n_adapters; i++) {
        if (lora_upload(&c->loras[i], err)) return -1;
    }
    return 0;
}

// An answer on its way to the screen. What the user sees is what the history keeps: valid UTF-8, whatever was cut.
struct printing {
    const struct tokenizer *tokenizer;
    int64_t tokens;
    double first;     // when the first token came
    struct text held; // the beginning of a character, until its other bytes come
    struct text reply;
    size_t printed; // bytes of the reply
    int failed;
    struct error *err;
};

static void print_rest(struct printing *p, bool more) {
    size_t used = utf8_repair(text_str(&p->held), p->held.length, more, &p->reply);
    size_t left = p->held.length - used;
    if (used && left) memmove(p->held.data, p->held.data + used, left);
    p->held.length = left;
    fwrite(text_str(&p->reply) + p->printed, 1, p->reply.length - p->printed, stdout);
    p->printed = p->reply.length;
    fflush(stdout);
}

static bool print_token(void *context, int job, int32_t token) {
    (void)job;
    struct printing *p = context;
    if (p->tokens++ == 0) p->first = clock_now();
    if (token < 0) return true;
    p->failed = tokenizer_decode(p->tokenizer, &token, 1, true, &p->held, p->err);
    if (!p->failed) print_rest(p, true);
    return !p->failed;
}

static int add_turn(struct chat *c, const char *role, const char *content, size_t length, struct error *err) {
    char *copy = mem_strndup(content, length);
    if (!copy) return error_memory(err, "the conversation", length);
    c->contents[c->n_turns] = copy;
    c->turns[c->n_turns++] = (struct message){.role = role, .content = copy, .content_length = length, .train = -1};
    return 0;
}

static int check_text(const char *what, const char *text, size_t length, struct error *err) {
    size_t bad = utf8_check(text, length);
    if (bad == length) return 0;
    return error_set(err, STATUS_DATA, "%s is not valid UTF-8: byte %zu is 0x%02X; it was not sent", what, bad + 1,
                     (unsigned char)text[bad]);
}

// The whole conversation as token ids, ready for the answer.
static int make_prompt(struct chat *c, struct ids *ids, struct error *err) {
    struct rendered rendered = {0};
    int failed =
        chat_template_render(c->template, c->turns, c->n_turns, true, &rendered, err) ||
        tokenizer_encode(c->session.tokenizer, text_str(&rendered.text), rendered.text.length, true, ids, NULL, err);
    rendered_free(&rendered);
    if (failed) return -1;
    size_t room = (size_t)c->session.limits.cache_len;
    if (ids->count < room) return 0;
    bool first = c->n_turns == c->first + 1;
    return error_set(err, STATUS_DATA, "a prompt of %zu tokens does not fit the %zu of the context; it was not sent%s",
                     ids->count, room, first ? "" : "; /reset forgets the conversation so far");
}

static int generate(struct chat *c, const struct ids *ids, struct printing *printing, struct error *err) {
    int32_t stop[MAX_STOP_TOKENS];
    int n_stop = stop_tokens(&c->session, stop);
    struct generation job = {
        .prompt = ids->data, .prompt_count = (int32_t)ids->count, .max_new = c->max_tokens, .adapter = c->active};
    double start = clock_now();
    int failed =
        generator_run(&c->session.generator, &job, 1, &c->sampling, stop, n_stop, print_token, printing, err) ||
        printing->failed;
    double seconds = clock_now() - printing->first;
    print_rest(printing, false);
    putchar('\n');
    if (!failed && text_failed(&printing->reply)) failed = error_memory(err, "the answer", printing->reply.length);
    if (!failed && (fflush(stdout) || ferror(stdout)))
        failed = error_set(err, STATUS_IO, "standard output: cannot write");
    if (!failed && c->stats && job.out.count > 1) {
        fprintf(stderr, "%zu prompt tokens in %.2f s, %zu tokens at %.1f tok/s\n", ids->count, printing->first - start,
                job.out.count, (double)(job.out.count - (job.stopped ? 0 : 1)) / seconds);
    }
    ids_free(&job.out);
    return failed ? -1 : 0;
}

// On failure the conversation is what it was before.
static int answer(struct chat *c, const char *text, size_t length, struct error *err) {
    struct ids ids = {0};
    struct printing printing = {.tokenizer = c->session.tokenizer, .err = err};
    int before = c->n_turns;
    if (before + 2 > MAX_TURNS)
        return error_set(err, STATUS_USAGE, "the conversation has %d turns already; /reset begins a new one", before);
    int failed = check_text("the text", text, length, err) || add_turn(c, "user", text, length, err) ||
                 make_prompt(c, &ids, err) || generate(c, &ids, &printing, err) ||
                 add_turn(c, "assistant", text_str(&printing.reply), printing.reply.length, err);
    if (failed) forget_turns(c, before);
    ids_free(&ids);
    text_free(&printing.held);
    text_free(&printing.reply);
    return failed ? -1 : 0;
}

static void list_adapters(const struct chat *c) {
    fputs("these are loaded:", stderr);
    for (int i = 0; i < c->n_adapters; i++)
        fprintf(stderr, " %d:%s%s", i + 1, c->names[i], i == c->active ? " (active)" : "");
    fprintf(stderr, " none%s\n", c->active < 0 ? " (active)" : "");
}

// Takes a name, a path as it was given, or a number from 1: in this order, for all of them may be digits.
static int find_adapter(const struct chat *c, const char *text) {
    char number[12];
    size_t length = path_length(text);
    for (int i = 0; i < c->n_adapters; i++) {
        if (strlen(c->names[i]) == length && memcmp(c->names[i], text, length) == 0) return i;
    }
    for (int i = 0; i < c->n_adapters; i++) {
        if (strlen(c->paths[i]) == length && memcmp(c->paths[i], text, length) == 0) return i;
    }
    for (int i = 0; i < c->n_adapters; i++) {
        snprintf(number, sizeof number, "%d", i + 1);
        if (strcmp(text, number) == 0) return i;
    }
    return -2;
}

static void switch_adapter(struct chat *c, const char *name) {
    int found = strcmp(name, "none") == 0 ? -1 : find_adapter(c, name);
    if (found == -2) {
        fprintf(stderr, "no adapter '%s'; ", name);
        list_adapters(c);
        return;
    }
    c->active = found;
    fprintf(stderr, "adapter: %s\n", found < 0 ? "none (the base)" : c->names[found]);
}

// One line of standard input without its end; false at the end of input. A line beyond the limit is cut, and still
// longer than the limit: the caller refuses it.
static bool read_line(struct text *line) {
    int c;
    text_clear(line);
    while ((c = getc(stdin)) != EOF && c != '\n') {
        if (line->length < MAX_LINE + 2) text_char(line, (char)c);
    }
    if (c == EOF && line->length == 0) return false;
    if (line->length && line->data[line->length - 1] == '\r') line->data[--line->length] = 0;
    return true;
}

static const char commands[] = "/adapter NAME|none  switches the adapter; without a name: which there are\n"
                               "/reset              forgets the conversation\n"
                               "/help               this list\n"
                               "/quit               leaves, as the end of input does\n"
                               "Everything else is sent; a text that begins with '/' after a space.\n";

// A line that begins with '/'; false when the session is to end.
static bool obey(struct chat *c, char *line) {
    size_t length = strlen(line);
    while (line[length - 1] == ' ') line[--length] = 0;
    if (strcmp(line, "/quit") == 0) return false;
    if (strcmp(line, "/help") == 0)
        fputs(commands, stderr);
    else if (strcmp(line, "/reset") == 0)
        forget_turns(c, c->first);
    else if (strcmp(line, "/adapter") == 0)
        list_adapters(c);
    else if (strncmp(line, "/adapter ", 9) == 0)
        switch_adapter(c, line + 9 + strspn(line + 9, " "));
    else
        fprintf(stderr, "unknown: %.80s; /help lists the commands\n", line);
    return true;
}

// What is wrong with a turn is said, and the session goes on without that turn; anything else ends it.
static int survive(struct error *err) {
    if (err->code != STATUS_DATA && err->code != STATUS_USAGE) return -1;
    fprintf(stderr, "graft: %s\n", err->text);
    *err = (struct error){0};
    return 0;
}

static int converse(struct chat *c, struct error *err) {
    struct text line = {0};
    bool terminal = isatty(STDIN_FILENO);
    int failed = 0;
    if (terminal) fputs("/help lists the commands, /quit leaves\n", stderr);
    while (!failed) {
        if (terminal) fputs("> ", stderr);
        if (!read_line(&line)) break;
        if (text_failed(&line))
            failed = error_memory(err, "a line of input", line.length);
        else if (line.length > MAX_LINE)
            failed = error_set(err, STATUS_DATA, "a line of more than %d bytes; it was not sent", MAX_LINE);
        else if (line.length && line.data[0] == '/') {
            if (!obey(c, line.data)) break;
        } else if (line.length)
            failed = answer(c, line.data, line.length, err);
        if (failed) failed = survive(err);
    }
    if (!failed && ferror(stdin)) failed = error_set(err, STATUS_IO, "standard input: cannot read");
    text_free(&line);
    return failed;
}

int command_chat(int argc, char **argv, struct error *err) {
    struct option options[] = {
        {.name = "--base", .takes_value = true},       {.name = "--adapter", .takes_value = true, .repeats = true},
        {.name = "--prompt", .takes_value = true},     {.name = "--system", .takes_value = true},
        {.name = "--max-tokens", .takes_value = true}, {.name = "--temperature", .takes_value = true},
        {.name = "--top-p", .takes_value = true},      {.name = "--seed", .takes_value = true},
        {.name = "--threads", .takes_value = true},    {.name = "--stats"}};
    if (options_parse(&argc, argv, options, COUNT_OF(options), err)) return -1;
    if (argc > 0)
        return error_set(err, STATUS_USAGE, "'%s': graft chat takes options only; see `graft help chat`", argv[0]);
    double max_tokens = 512, temperature = 0, top_p = 1, seed = 42;
    if (option_number(options, "--max-tokens", 1, 1e6, &max_tokens, err) ||
        option_number(options, "--temperature", 0, 100, &temperature, err) ||
        option_number(options, "--top-p", 0.001, 1, &top_p, err) ||
        option_number(options, "--seed", 0, 9e15, &seed, err)) {
        return -1;
    }
    struct chat *c = mem_zalloc(1, sizeof *c);
    if (!c) return error_memory(err, "the conversation", sizeof *c);
    c->sampling = (struct sampling){.temperature = temperature, .top_p = top_p, .seed = (uint64_t)seed};
    c->max_tokens = (int32_t)max_tokens;
    c->stats = option_flag(options, "--stats");
    const char *system = option_value(options, "--system"), *prompt = option_value(options, "--prompt");
    int failed = (system && check_text("--system", system, strlen(system), err)) ||
                 (prompt && check_text("--prompt", prompt, strlen(prompt), err)) || open_all(c, options, err);
    if (!failed && system) failed = add_turn(c, "system", system, strlen(system), err), c->first = 1;
    if (!failed) failed = prompt ? answer(c, prompt, strlen(prompt), err) : converse(c, err);
    close_all(c);
    mem_free(c);
    return failed ? -1 : 0;
}
