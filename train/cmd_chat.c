// graft chat: one base and several adapters in memory, swapped while it runs.
#include "adapters/lora.h"
#include "train/command.h"
#include "train/evaluate.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { MAX_TURNS = 256, CHAT_CONTEXT = 4096 };

struct chat {
    struct session session;
    const struct chat_template *template; // of the session
    struct adapter adapters[DECODER_MAX_ADAPTERS];
    struct lora loras[DECODER_MAX_ADAPTERS];
    const char *names[DECODER_MAX_ADAPTERS];
    int n_adapters, active; // active: -1 = base
    struct sampling sampling;
    int32_t max_tokens;
    bool stats;
    struct message turns[MAX_TURNS];
    int n_turns, first; // first = 1 when turn 0 is the system message
    struct pool pool;   // texts of turns
};

static void close_all(struct chat *c) {
    for (int i = 0; i < c->n_adapters; i++) adapter_free(&c->adapters[i]);
    session_close(&c->session);
    pool_free(&c->pool);
}

static int attach(struct chat *c, struct error *err) {
    for (int i = 0; i < c->n_adapters; i++) {
        if (lora_attach(&c->session.decoder, &c->adapters[i], i, false, false, &c->loras[i], err)) return -1;
    }
    return 0;
}

static int open_all(struct chat *c, const struct option *options, struct error *err) {
    const struct option *adapters = &options[1];
    double threads = 0;
    if (!option_value(options, "--base"))
        return error_set(err, STATUS_USAGE, "which base? graft chat --base MODEL.gguf [--adapter A ...]");
    if (option_number(options, "--threads", 1, 1024, &threads, err)) return -1;
    struct session_options so = {.base = option_value(options, "--base"), .dtype = DTYPE_F32, .threads = (int)threads};
    if (adapters->n_values > DECODER_MAX_ADAPTERS)
        return error_set(err, STATUS_USAGE, "at most %d adapters at a time", DECODER_MAX_ADAPTERS);
    if (session_open(&so, &c->session, err)) return -1;
    c->template = session_chat(&c->session, NULL, err);
    if (!c->template) return -1;
    for (int i = 0; i < adapters->n_values; i++) {
        if (adapter_read(adapters->values[i], &c->session.model, &c->adapters[i], err)) return -1;
        c->names[i] = adapters->values[i];
        c->n_adapters = i + 1;
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

struct printing {
    const struct tokenizer *tokenizer;
    int64_t tokens;
    double first; // when the first token came
};

// Prints tokens as they come. Bytes of a character that is not complete yet go out as they are: a terminal joins them.
static bool print_token(void *context, int job, int32_t token) {
    (void)job;
    struct printing *p = context;
    struct text piece = {0};
    if (p->tokens++ == 0) p->first = clock_now();
    if (token >= 0 && !tokenizer_decode(p->tokenizer, &token, 1, true, &piece, NULL)) {
        fwrite(text_str(&piece), 1, piece.length, stdout);
        fflush(stdout);
    }
    text_free(&piece);
    return true;
}

static int add_turn(struct chat *c, const char *role, const char *content, struct error *err) {
    if (c->n_turns == MAX_TURNS)
        return error_set(err, STATUS_USAGE, "the conversation is too long; /reset starts a new one");
    char *copy = pool_strdup(&c->pool, content);
    if (!copy) return error_memory(err, "the conversation", strlen(content));
    c->turns[c->n_turns++] =
        (struct message){.role = role, .content = copy, .content_length = strlen(copy), .train = -1};
    return 0;
}

static int answer(struct chat *c, const char *text, struct error *err) {
    struct rendered rendered = {0};
    struct ids ids = {0};
    struct text reply = {0};
    struct printing printing = {.tokenizer = c->session.tokenizer};
    struct generation job = {0};
    int32_t stop[4];
    int n_stop = stop_tokens(&c->session, stop);
    int failed =
        add_turn(c, "user", text, err) ||
        chat_template_render(c->template, c->turns, c->n_turns, true, &rendered, err) ||
        tokenizer_encode(c->session.tokenizer, text_str(&rendered.text), rendered.text.length, true, &ids, NULL, err);
    double start = clock_now();
    if (!failed) {
        job = (struct generation){
            .prompt = ids.data, .prompt_count = (int32_t)ids.count, .max_new = c->max_tokens, .adapter = c->active};
        failed = generator_run(&c->session.generator, &job, 1, &c->sampling, stop, n_stop, print_token, &printing, err);
        putchar('\n');
        fflush(stdout);
    }
    double seconds = clock_now() - printing.first;
    if (!failed && c->stats && job.out.count > 1) {
        fprintf(stderr, "%zu prompt tokens in %.2f s, %zu tokens at %.1f tok/s\n", ids.count, printing.first - start,
                job.out.count, (double)(job.out.count - (job.stopped ? 0 : 1)) / seconds);
    }
    if (!failed) failed = tokenizer_decode(c->session.tokenizer, job.out.data, job.out.count, true, &reply, err);
    if (!failed) failed = add_turn(c, "assistant", text_str(&reply), err);
    rendered_free(&rendered);
    text_free(&reply);
    ids_free(&ids);
    ids_free(&job.out);
    return failed ? -1 : 0;
}

// "/adapter NAME" takes a path as given, the last part of it, or its number from 1.
static void switch_adapter(struct chat *c, const char *name) {
    int found = strcmp(name, "none") == 0 ? -1 : -2;
    for (int i = 0; i < c->n_adapters && found == -2; i++) {
        const char *slash = strrchr(c->names[i], '/');
        char number[12];
        snprintf(number, sizeof number, "%d", i + 1);
        if (strcmp(name, c->names[i]) == 0 || (slash && strcmp(name, slash + 1) == 0) || strcmp(name, number) == 0)
            found = i;
    }
    if (found == -2) {
        fprintf(stderr, "no adapter '%s'; these are loaded:", name);
        for (int i = 0; i < c->n_adapters; i++) fprintf(stderr, " %d:%s", i + 1, c->names[i]);
        fputs(" none\n", stderr);
        return;
    }
    c->active = found;
    fprintf(stderr, "adapter: %s\n", found < 0 ? "none (the base)" : c->names[found]);
}

static void reset(struct chat *c) {
    c->n_turns = c->first;
}

static int converse(struct chat *c, struct error *err) {
    char line[16384];
    bool terminal = isatty(STDIN_FILENO);
    if (terminal) fputs("/adapter NAME|none switches, /reset forgets the conversation, /quit leaves\n", stderr);
    for (;;) {
        if (terminal) fputs("> ", stderr);
        if (!fgets(line, sizeof line, stdin)) return 0;
        line[strcspn(line, "\r\n")] = 0;
        if (line[0] == 0) continue;
        if (strcmp(line, "/quit") == 0) return 0;
        if (strcmp(line, "/reset") == 0)
            reset(c);
        else if (strncmp(line, "/adapter ", 9) == 0)
            switch_adapter(c, line + 9);
        else if (line[0] == '/')
            fprintf(stderr, "unknown: %s\n", line);
        else if (answer(c, line, err))
            return -1;
    }
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
    int failed = open_all(c, options, err);
    if (!failed && system) failed = add_turn(c, "system", system, err), c->first = 1;
    if (!failed) failed = prompt ? answer(c, prompt, err) : converse(c, err);
    close_all(c);
    mem_free(c);
    return failed ? -1 : 0;
}
