// Rows to samples: masks and prompts by hand, the ledger, every malformed row of the list, splits and appended files.
#include "data/dataset.h"
#include "tests/harness.h"
#include "tests/vocabularies.h"

#include <stdio.h>

static struct pool pool;
static struct vocab_source source;
static struct tokenizer *tokenizer;
static struct chat_template *chat;

static void open_all(void) {
    struct error err = {0};
    if (tokenizer) return;
    source = vocabulary_make(&pool, "smollm");
    tokenizer = tokenizer_open(&source, &err);
    chat = chat_template_open("chatml", NULL, 0, &err);
    CHECK_MSG(tokenizer && chat, "%s", err.text);
}

static struct dataset_options options_for(enum dataset_kind kind) {
    return (struct dataset_options){.path = "d.jsonl",
                                    .kind = kind,
                                    .sequence_len = 1000,
                                    .min_sample_len = 2,
                                    .vocab_size = (uint32_t)source.n_tokens};
}

static int parse(const struct dataset_options *o, const char *text, struct dataset *d, struct error *err) {
    return dataset_parse(o, (const uint8_t *)text, strlen(text), tokenizer, chat, d, err);
}

static bool parses(const struct dataset_options *o, const char *text, struct dataset *d) {
    struct error err = {0};
    bool ok = parse(o, text, d, &err) == 0;
    CHECK_MSG(ok, "%s", err.text);
    return ok;
}

// The text of the tokens that are trained, '|' where others lie between.
static const char *trained_text(const struct sample *s) {
    static char out[4096];
    struct text text = {0};
    bool before = false;
    for (int32_t i = 0; i < s->count; i++) {
        bool trained = token_why_trained((enum token_why)s->why[i]);
        if (trained && !before && text.length) text_char(&text, '|');
        if (trained) tokenizer_decode(tokenizer, &s->ids[i], 1, false, &text, NULL);
        before = trained;
    }
    snprintf(out, sizeof out, "%s", text_str(&text));
    text_free(&text);
    return out;
}

static const char *decoded(const int32_t *ids, int32_t count) {
    static char out[4096];
    struct text text = {0};
    tokenizer_decode(tokenizer, ids, (size_t)count, false, &text, NULL);
    snprintf(out, sizeof out, "%s", text_str(&text));
    text_free(&text);
    return out;
}

static void check_ledger(const struct dataset *d) {
    uint64_t kept = 0, tokens = 0, trained = 0, dropped[DROP_REASONS] = {0};
    int32_t longest = 0;
    for (size_t i = 0; i < d->count; i++) {
        const struct sample *s = &d->samples[i];
        if (s->dropped != DROP_NONE) {
            dropped[s->dropped]++;
            CHECK(s->ids == NULL && s->count == 0);
            continue;
        }
        kept++;
        tokens += (uint64_t)s->count;
        trained += (uint64_t)s->trained;
        if (s->count > longest) longest = s->count;
        int32_t count = 0;
        for (int32_t t = 1; t < s->count; t++) count += token_why_trained((enum token_why)s->why[t]);
        CHECK_INT(s->trained, count);
        CHECK(s->trained > 0);
    }
    uint64_t all = kept;
    for (int i = 1; i < DROP_REASONS; i++) {
        CHECK_INT(d->dropped[i], dropped[i]);
        all += d->dropped[i];
    }
    CHECK_INT(all, d->count); // read = kept + dropped
    CHECK_INT(d->tokens, tokens);
    CHECK_INT(d->trained_tokens, trained);
    CHECK_INT(d->longest, longest);
}

#define MESSAGE(role, content) "{\"role\": \"" role "\", \"content\": \"" content "\"}"
#define ROW(...)               "{\"messages\": [" __VA_ARGS__ "]}\n"
#define TWO_TURNS                                                                                                      \
    ROW(MESSAGE("system", "be") ", " MESSAGE("user", "hello") ", " MESSAGE("assistant", "world") ", " MESSAGE(         \
        "user", "and") ", " MESSAGE("assistant", "12"))

TEST(masks_of_a_conversation) {
    open_all();
    struct dataset_options o = options_for(DATASET_CHAT);
    struct dataset d;
    static const char *const users[] = {"user"};
    static const struct {
        enum train_on eot;
        bool inputs, users;
        const char *want;
    } cases[] = {
        {TRAIN_ON_TURN, false, false, "world<|im_end|>|12<|im_end|>"},
        {TRAIN_ON_LAST, false, false, "world|12<|im_end|>"},
        {TRAIN_ON_NONE, false, false, "world|12"},
        {TRAIN_ON_ALL, false, false, "<|im_end|>|<|im_end|>|world<|im_end|>|<|im_end|>|12<|im_end|>"},
        {TRAIN_ON_TURN, true, false, "be<|im_end|>|hello<|im_end|>|world<|im_end|>|and<|im_end|>|12<|im_end|>"},
        {TRAIN_ON_TURN, false, true, "hello<|im_end|>"}};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        o.train_on_eot = o.train_on_eos = cases[i].eot;
        o.train_on_inputs = cases[i].inputs;
        o.roles_to_train = cases[i].users ? users : NULL;
        o.n_roles_to_train = cases[i].users;
        const char *text = cases[i].users ? ROW(MESSAGE("human", "hello")) : TWO_TURNS;
        if (!parses(&o, text, &d)) continue;
        CHECK_STR(trained_text(&d.samples[0]), cases[i].want);
        check_ledger(&d);
        dataset_free(&d);
    }
}

TEST(every_token_has_a_reason) {
    open_all();
    struct dataset_options o = options_for(DATASET_CHAT);
    struct dataset d;
    if (!parses(&o, ROW(MESSAGE("user", "hello") "," MESSAGE("assistant", "world")), &d)) return;
    // <|im_start|> user \n hello <|im_end|> \n <|im_start|> assistant \n w or ld <|im_end|> \n
    static const uint8_t want[] = {WHY_TEMPLATE, WHY_TEMPLATE, WHY_TEMPLATE, WHY_PROMPT,   WHY_EOT_OFF,
                                   WHY_TEMPLATE, WHY_TEMPLATE, WHY_TEMPLATE, WHY_TEMPLATE, WHY_ANSWER,
                                   WHY_ANSWER,   WHY_ANSWER,   WHY_EOT,      WHY_TEMPLATE};
    const struct sample *s = &d.samples[0];
    CHECK_STR(s->rendered, "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nworld<|im_end|>\n");
    CHECK_STR(decoded(s->ids, s->count), s->rendered);
    CHECK_INT(s->count, COUNT_OF(want));
    CHECK_INT(s->trained, 4);
    for (int32_t i = 0; i < s->count && i < (int32_t)COUNT_OF(want); i++)
        CHECK_MSG(s->why[i] == want[i], "token %d is \"%s\"", i, token_why_name((enum token_why)s->why[i]));
    CHECK(s->labels == NULL && s->positions == NULL);
    dataset_free(&d);
}

TEST(a_token_belongs_to_its_first_byte) {
    open_all();
    struct dataset_options o = options_for(DATASET_CHAT);
    struct dataset d;
    // The newline of the header and that of the answer are one token, which begins in the template.
    if (!parses(&o, ROW(MESSAGE("user", "hello") "," MESSAGE("assistant", "\\n hello")), &d)) return;
    CHECK_STR(trained_text(&d.samples[0]), " hello<|im_end|>");
    // The prompt is encoded as the model will meet it: with the header's newline alone.
    const struct sample *s = &d.samples[0];
    CHECK_STR(decoded(s->prompt_ids, s->prompt_count), "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n");
    CHECK_STR(decoded(s->prompt_ids + s->prompt_count - 1, 1), "\n");
    CHECK(s->prompt_ids != s->ids);
    CHECK_STR(s->reference, "\n hello");
    dataset_free(&d);
}

TEST(a_prompt_that_ends_right_behind_a_control_token) {
    open_all();
    static const char other[] =
        "{% for m in messages %}{{ m.role + '<|im_start|>\n' + m.content + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant<|im_start|>\n' }}{% endif %}";
    struct error err = {0};
    struct chat_template *t = chat_template_open(NULL, other, strlen(other), &err);
    CHECK_MSG(t != NULL, "%s", err.text);
    struct dataset_options o = options_for(DATASET_CHAT);
    struct dataset d;
    const char *row = ROW(MESSAGE("user", "hello") "," MESSAGE("assistant", "\\n hello"));
    CHECK(dataset_parse(&o, (const uint8_t *)row, strlen(row), tokenizer, t, &d, &err) == 0);
    const struct sample *s = &d.samples[0];
    CHECK_STR(decoded(s->prompt_ids, s->prompt_count), "user<|im_start|>\nhello<|im_end|>assistant<|im_start|>\n");
    dataset_free(&d);
    chat_template_close(t);
}

TEST(prompt_and_reference_of_the_last_answer) {
    open_all();
    struct dataset_options o = options_for(DATASET_CHAT);
    struct dataset d;
    if (!parses(&o, TWO_TURNS, &d)) return;
    const struct sample *s = &d.samples[0];
    const char *prompt = "<|im_start|>system\nbe<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
                         "world<|im_end|>\n<|im_start|>user\nand<|im_end|>\n<|im_start|>assistant\n";
    CHECK_STR(decoded(s->prompt_ids, s->prompt_count), prompt);
    struct ids ids = {0};
    CHECK(tokenizer_encode(tokenizer, prompt, strlen(prompt), true, &ids, NULL, NULL) == 0);
    CHECK(ids.count == (size_t)s->prompt_count && memcmp(ids.data, s->prompt_ids, ids.count * sizeof *ids.data) == 0);
    CHECK(s->prompt_ids == s->ids); // the beginning of the row: no copy
    CHECK_STR(s->reference, "12");
    CHECK_INT(s->reference_tokens, 2);
    ids_free(&ids);
    dataset_free(&d);
}

TEST(roles_and_fields_of_other_data) {
    open_all();
    static const char *const from[] = {"Q", "A"}, *const to[] = {"user", "assistant"}, *const trained[] = {"A"};
    struct dataset_options o = options_for(DATASET_CHAT);
    struct dataset d;
    o.field_messages = "conversations", o.field_role = "from", o.field_content = "value";
    const char *gpt =
        "{\"id\": 7, \"conversations\": [{\"from\": \"human\", \"value\": \"he\"}, {\"from\": \"gpt\", \"value\": "
        "\"ld\"}]}\n";
    if (parses(&o, gpt, &d)) {
        CHECK_STR(d.samples[0].rendered, "<|im_start|>user\nhe<|im_end|>\n<|im_start|>assistant\nld<|im_end|>\n");
        dataset_free(&d);
    }
    o.role_from = from, o.role_to = to, o.n_roles = 2, o.roles_to_train = trained, o.n_roles_to_train = 1;
    const char *own =
        "{\"conversations\": [{\"from\": \"Q\", \"value\": \"he\"}, {\"from\": \"A\", \"value\": \"ld\"}]}";
    if (parses(&o, own, &d)) {
        CHECK_STR(trained_text(&d.samples[0]), "ld<|im_end|>");
        dataset_free(&d);
    }
    struct error err = {0};
    CHECK(parse(&o, gpt, &d, &err) == -1);
    CHECK_MSG(strstr(err.text, "d.jsonl:1: conversations[0].from is \"human\", expected one of: Q, A") != NULL, "%s",
              err.text);
}

TEST(a_system_text_beside_the_messages) {
    open_all();
    struct dataset_options o = options_for(DATASET_CHAT);
    struct dataset d;
    const char *rows = "{\"system\": \"be\", \"messages\": [" MESSAGE("user", "a") "," MESSAGE(
        "assistant",
        "b") "]}\n"
             "{\"system\": \"no\", \"messages\": [" MESSAGE("system", "be") "," MESSAGE("user", "a") "," MESSAGE(
                 "assistant", "b") "]}\n"
                                   "{\"system\": null, \"messages\": [" MESSAGE("user", "a") "," MESSAGE("assistant",
                                                                                                         "b") "]}\n";
    const char *with =
        "<|im_start|>system\nbe<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n";
    o.field_system = "system";
    if (!parses(&o, rows, &d)) return;
    CHECK_STR(d.samples[0].rendered, with);
    CHECK_STR(d.samples[1].rendered, with); // its own goes first
    CHECK_STR(d.samples[2].rendered, strstr(with, "<|im_start|>user"));
    CHECK_STR(trained_text(&d.samples[0]), "b<|im_end|>");
    dataset_free(&d);
    struct error err = {0};
    CHECK(parse(&o, "{\"system\": 5, \"messages\": [" MESSAGE("user", "a") "," MESSAGE("assistant", "b") "]}", &d,
                &err) == -1);
    CHECK_MSG(strstr(err.text, "d.jsonl:1: key \"system\" is a number, expected a string") != NULL, "%s", err.text);
}

TEST(special_text_and_empty_answers_are_noted) {
    open_all();
    struct dataset_options o = options_for(DATASET_CHAT);
    struct dataset d;
    const char *rows = ROW(MESSAGE("user", "say <|im_end|>") "," MESSAGE("assistant", "hello")) ROW(
        MESSAGE("user", "a") "," MESSAGE("assistant", "") "," MESSAGE("user", "b") "," MESSAGE("assistant", "hello"))
        ROW(MESSAGE("user", "say <think>") "," MESSAGE("assistant", "hello"));
    if (!parses(&o, rows, &d)) return;
    CHECK_INT(d.samples[0].notes, NOTE_SPECIAL_TEXT);
    CHECK_INT(d.samples[1].notes, NOTE_EMPTY_ANSWER);
    CHECK_STR(trained_text(&d.samples[1]), "hello<|im_end|>"); // an empty turn trains nothing, its end included
    CHECK_INT(d.samples[2].notes, 0);
    int32_t ends = 0; // rendered and encoded as one text, as the reference does it
    for (int32_t i = 0; i < d.samples[0].count; i++) ends += d.samples[0].ids[i] == tokenizer_eos(tokenizer);
    CHECK_INT(ends, 3);
    dataset_free(&d);
}

TEST(length_policies) {
    open_all();
    struct dataset_options o = options_for(DATASET_CHAT);
    struct dataset d;
    struct error err = {0};
    const char *row = ROW(MESSAGE("user", "hello") "," MESSAGE("assistant", "world")); // 14 tokens, 4 of them trained
    const char *two = ROW(MESSAGE("user", "hello") "," MESSAGE("assistant", "world"))
        ROW(MESSAGE("user", "h") "," MESSAGE("assistant", "wwwwwwwwwwwwwwww"));
    o.sequence_len = 14;
    if (parses(&o, two, &d)) {
        CHECK_INT(d.dropped[DROP_TOO_LONG], 1);
        CHECK_INT(d.samples[1].dropped, DROP_TOO_LONG);
        CHECK_INT(d.samples[1].line, 2);
        check_ledger(&d);
        dataset_free(&d);
    }
    o.excess = EXCESS_TRUNCATE;
    if (parses(&o, two, &d)) {
        CHECK_INT(d.truncated, 1);
        CHECK_INT(d.samples[1].count, 14);
        CHECK_INT(d.samples[1].notes, NOTE_TRUNCATED);
        CHECK_STR(trained_text(&d.samples[1]), "wwwww"); // the end of the turn is cut away
        check_ledger(&d);
        dataset_free(&d);
    }
    o.sequence_len = 9;
    CHECK(parse(&o, row, &d, &err) == -1);
    CHECK_INT(err.code, STATUS_DATA);
    CHECK_MSG(strstr(err.text, "d.jsonl:1: no token of this row is trained: the answer lies beyond") != NULL, "%s",
              err.text);
    o.excess = EXCESS_RAISE;
    o.sequence_len = 13;
    o.skip_bad_rows = true; // does not silence this policy
    err = (struct error){0};
    CHECK(parse(&o, row, &d, &err) == -1);
    CHECK_MSG(strstr(err.text, "d.jsonl:1: the row has 14 tokens, sequence_len is 13") != NULL, "%s", err.text);
    o.sequence_len = 14;
    o.min_sample_len = 15;
    if (parses(&o, row, &d)) {
        CHECK_INT(d.dropped[DROP_TOO_SHORT], 1);
        check_ledger(&d);
        dataset_free(&d);
    }
}

#define GOOD_CHAT ROW(MESSAGE("user", "hello") "," MESSAGE("assistant", "world"))

// What must be refused, as a line of a chat file, with a part of what is said. Numbered as in the list of malformed
// rows.
static const struct {
    const char *row; // without the newline
    const char *part;
} malformed[] = {
    {"{\"messages\": []}\r{}", ":17: a carriage return without a line feed"},                                   // 04
    {"\xEF\xBB\xBF{\"messages\": []}", ":1: a byte order mark in the middle"},                                  // 07
    {"{\"messages\": \"x\xFF\"}", ":16: invalid UTF-8 (0xFF at byte "},                                         // 09
    {"{\"messages\": \"a\x01\"}", ":16: a control character"},                                                  // 11
    {"{\"messages\": \"\xC0\xAF\"}", ":15: invalid UTF-8"},                                                     // 12
    {"{\"messages\": \"\\ud800\"}", ": half of a surrogate pair"},                                              // 13
    {"{\"messages\": \"\\x41\"}", ": invalid escape"},                                                          // 14
    {"{\"messages\": \"cut", ": the string is not closed"},                                                     // 16
    {"{\"messages\": [1", ": the text ends inside a value"},                                                    // 17
    {"{\"messages\": [],}", ": a key in double quotes is expected"},                                            // 18
    {"{'messages': []}", ":2: a key in double quotes is expected"},                                             // 19
    {"// nothing", ":1: a value is expected"},                                                                  // 20
    {"{\"messages\": []} {\"messages\": []}", ":1: several JSON values on one line"},                           // 21
    {"[{\"messages\": []}]", ":1: "},                                                                           // 22
    {"{\"messages\": NaN}", ": a value is expected"},                                                           // 24
    {"{\"messages\": 1e999}", ": the number is out of range"},                                                  // 25
    {"{\"messages\": [], \"messages\": []}", ": key 'messages' appears twice"},                                 // 27
    {"{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}", "ends with a user message"},                 // 31
    {"{\"messages\": [" MESSAGE("user", "a") "," MESSAGE("assistant", "") "]}", ": the answer is empty"},       // 31
    {"{\"messages\": [{\"role\": \"user\"}]}", "messages[0].content\" is missing, expected a string"},          // 32
    {"{\"messages\": [{\"role\": \"user\", \"content\": null}]}", "messages[0].content\" is null"},             // 32
    {"{\"messages\": [{\"role\": \"user\", \"content\": 5}]}", "messages[0].content\" is a number"},            // 32
    {"{\"messages\": [{\"role\": \"user\", \"content\": [{}]}]}", "messages[0].content\" is an array"},         // 32
    {"{\"messages\": [{\"content\": \"x\"}]}", "messages[0].role\" is missing"},                                // 32
    {"{\"messages\": [" MESSAGE("bot", "a") "]}", "messages[0].role is \"bot\", expected one of: human, user"}, // 33
    {"{\"messages\": [" MESSAGE("user", "a") "," MESSAGE("assistant", "b") "," MESSAGE("assistant", "c") "]}",
     "messages[2] is the second assistant message in a row"},                                                      // 34
    {"{\"messages\": [" MESSAGE("assistant", "b") "]}", "messages[0] is an assistant message, expected a user's"}, // 34
    {"{\"messages\": [" MESSAGE("user", "a") "," MESSAGE("system", "b") "," MESSAGE("assistant", "c") "]}",
     "messages[1] is a system message, expected it only at the start"},             // 35
    {"{\"messages\": []}", "messages is empty"},                                    // 36
    {"{\"messages\": \"hello\"}", "key \"messages\" is a string, expected a list"}, // 36
    {"{\"instruction\": \"a\", \"output\": \"b\"}", "key \"messages\" is missing"}, // 39
    {"{\"messages\": [7]}", "messages[0] is a number, expected an object"},
    {"\"hello\"", ":1: the row is a string, expected an object"},
    {"{\"messages\": [" MESSAGE("user", "a\\u0000b") "]}", "holds a NUL character"},
    {"{\"messages\": [" MESSAGE("user", "a") "," MESSAGE("assistant", "b") "], \"tools\": [{}]}",
     "tools are not in this version"},
    {"{\"messages\": [{\"role\": \"user\", \"content\": \"\", \"tool_calls\": [1]}]}", "messages[0].tool_calls"},
};

static void check_malformed(size_t i, int place) {
    struct text file = {0};
    char line[64], part[256];
    for (int row = 0; row < 3; row++)
        text_printf(&file, "%s%s", row == place ? malformed[i].row : GOOD_CHAT, row == place ? "\n" : "");
    snprintf(line, sizeof line, "d.jsonl:%d", place + 1);
    snprintf(part, sizeof part, "%s", malformed[i].part);
    struct dataset_options o = options_for(DATASET_CHAT);
    struct dataset d;
    struct error err = {0};
    CHECK_MSG(parse(&o, file.data, &d, &err) == -1, "case %zu is accepted", i);
    CHECK_INT(err.code, STATUS_DATA);
    CHECK_MSG(strncmp(err.text, line, strlen(line)) == 0 && strstr(err.text, part), "case %zu at %d: \"%s\"", i, place,
              err.text);
    o.skip_bad_rows = true;
    bool whole_file = place == 0 && malformed[i].row[0] == '['; // is taken for another kind of file
    whole_file |= place == 0 && malformed[i].row[0] == (char)0xEF;
    err = (struct error){0};
    if (whole_file) {
        CHECK_INT(parse(&o, file.data, &d, &err), malformed[i].row[0] == '[' ? -1 : 0);
        dataset_free(&d);
    } else if (parse(&o, file.data, &d, &err) == 0) {
        CHECK_INT(d.count, 3);
        CHECK_INT(d.dropped[DROP_MALFORMED], 1);
        CHECK_INT(d.samples[place].dropped, DROP_MALFORMED);
        check_ledger(&d);
        dataset_free(&d);
    } else
        CHECK_MSG(false, "case %zu at %d with skip: \"%s\"", i, place, err.text);
    text_free(&file);
}

TEST(malformed_rows_first_middle_last) {
    open_all();
    for (size_t i = 0; i < COUNT_OF(malformed); i++)
        for (int place = 0; place < 3; place++)
            if (place > 0 || malformed[i].row[0] != (char)0xEF) check_malformed(i, place);
}

TEST(line_ends_and_blank_lines) {
    open_all();
    struct dataset_options o = options_for(DATASET_CHAT);
    struct dataset d;
    const char *row = ROW(MESSAGE("user", "hello") "," MESSAGE("assistant", "world \\ud83d\\ude00"));
    struct text file = {0};
    text_printf(&file, "\xEF\xBB\xBF\n  \t\r\n%.*s\r\n\n%s\n   \n%.*s", (int)strlen(row) - 1, row, row,
                (int)strlen(row) - 1, row);
    if (parses(&o, file.data, &d)) {
        CHECK_INT(d.count, 3);
        CHECK_INT(d.samples[0].line, 3);
        CHECK_INT(d.samples[1].line, 5);
        CHECK_INT(d.samples[2].line, 8);
        CHECK_INT(d.samples[2].row, 2);
        CHECK_STR(trained_text(&d.samples[2]), "world \xF0\x9F\x98\x80<|im_end|>");
        dataset_free(&d);
    }
    text_free(&file);
}

static void check_form(const char *bytes, size_t length, const char *part) {
    struct dataset_options o = options_for(DATASET_CHAT);
    struct dataset d;
    struct error err = {0};
    o.skip_bad_rows = true; // the form of the whole file is wrong: skipping rows does not help
    CHECK(dataset_parse(&o, (const uint8_t *)bytes, length, tokenizer, chat, &d, &err) == -1);
    CHECK_INT(err.code, STATUS_DATA);
    CHECK_MSG(strstr(err.text, part) != NULL, "\"%s\" does not say \"%s\"", err.text, part);
}

TEST(other_kinds_of_files_are_named) {
    open_all();
    check_form("", 0, "the file holds no row");
    check_form("\n \n", 3, "the file holds no row");
    check_form("[{\"messages\": []},\n {}]", 22, "d.jsonl:1:1: this file is one JSON array");
    check_form("\n\n{\n  \"messages\": []\n}\n", 23, "d.jsonl:3:1: this file is pretty-printed JSON");
    check_form("{\"messages\":\n []}", 17, "pretty-printed");
    check_form("\xFF\xFE{\0}\0", 6, "UTF-16");
    check_form("{\0\"\0a\0", 6, "UTF-16");
    check_form("\xFE\xFF\0{\0}", 6, "UTF-16");
}

TEST(deep_and_long_lines) {
    open_all();
    struct text file = {0};
    struct dataset_options o = options_for(DATASET_CHAT);
    struct dataset d;
    struct error err = {0};
    text_add(&file, "{\"x\": ");
    for (int i = 0; i < 64; i++) text_char(&file, '[');
    for (int i = 0; i < 64; i++) text_char(&file, ']');
    text_add(&file, "}\n");
    CHECK(parse(&o, file.data, &d, &err) == -1);
    CHECK_MSG(strstr(err.text, "nested too deeply") != NULL, "%s", err.text);
    text_clear(&file);
    size_t limit = 64u << 20;
    char *spaces = mem_alloc(limit);
    memset(spaces, 'x', limit);
    text_add(&file, "{\"x\": \"");
    text_append(&file, spaces, limit);
    text_add(&file, "\"}\n");
    err = (struct error){0};
    CHECK(parse(&o, file.data, &d, &err) == -1);
    CHECK_MSG(strstr(err.text, "longer than 64 MiB") != NULL, "%s", err.text);
    mem_free(spaces);
    text_free(&file);
}

TEST(many_errors_at_once) {
    open_all();
    struct dataset_options o = options_for(DATASET_CHAT);
    struct text file = {0};
    for (int i = 1; i <= 60; i++) text_add(&file, i % 2 ? GOOD_CHAT : "{\"messages\": 7}\n");
    struct dataset d;
    struct error err = {0};
    CHECK(parse(&o, file.data, &d, &err) == -1);
    for (int i = 2; i <= 40; i += 2) {
        char place[32];
        snprintf(place, sizeof place, "d.jsonl:%d: ", i);
        CHECK_MSG(strstr(err.text, place) != NULL, "line %d is not told", i);
    }
    CHECK_MSG(strstr(err.text, "\nand 10 more bad rows") != NULL, "%s", err.text);
    text_free(&file);
}

TEST(alpaca_rows) {
    open_all();
    struct dataset_options o = options_for(DATASET_ALPACA);
    struct dataset d;
    const char *rows = "{\"instruction\": \"hello\", \"input\": \"world\", \"output\": \"yes 12\"}\n"
                       "{\"instruction\": \"hello\", \"input\": \"\", \"output\": \"ok\"}\n"
                       "{\"instruction\": \"hello\", \"output\": \"ok<|im_end|>\", \"input\": null}\n"
                       "{\"instruction\": \"hello\", \"output\": \"ok\", \"system\": \"Be brief.\"}\n";
    o.field_system = "system";
    if (!parses(&o, rows, &d)) return;
    const char *with =
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n### Instruction:\nhello\n\n### Input:\n"
        "world\n\n### Response:\n";
    const char *without =
        "Below is an instruction that describes a task. Write a response that appropriately completes the "
        "request.\n\n### Instruction:\nhello\n\n### Response:\n";
    const struct sample *s = d.samples;
    CHECK_STR(decoded(s[0].prompt_ids, s[0].prompt_count), with);
    CHECK_STR(trained_text(&s[0]), "yes 12<|im_end|>");
    CHECK_STR(s[0].reference, "yes 12");
    CHECK_INT(s[0].why[s[0].count - 1], WHY_EOT);
    CHECK(strncmp(s[0].rendered, with, strlen(with)) == 0);
    CHECK_STR(s[0].rendered + strlen(with), "yes 12<|im_end|>");
    CHECK_STR(decoded(s[1].prompt_ids, s[1].prompt_count), without);
    CHECK_STR(trained_text(&s[1]), "ok<|im_end|>");
    CHECK_STR(trained_text(&s[2]), "ok<|im_end|>");                  // not twice
    CHECK_STR(decoded(s[3].prompt_ids, s[3].prompt_count), without); // the system column is alpaca_w_system's
    check_ledger(&d);
    dataset_free(&d);
    o.train_on_inputs = true;
    if (parses(&o, rows, &d)) {
        CHECK_INT(d.samples[0].trained, d.samples[0].count - 1);
        dataset_free(&d);
    }
    struct error err = {0};
    o.train_on_inputs = false;
    CHECK(parse(&o, "{\"instruction\": \"a\", \"output\": \"\"}", &d, &err) == -1);
    CHECK_MSG(strstr(err.text, "d.jsonl:1: no token of this row is trained: the answer is empty") != NULL, "%s",
              err.text);
    err = (struct error){0};
    CHECK(parse(&o, "{\"instruction\": \"a\"}", &d, &err) == -1);
    CHECK_MSG(strstr(err.text, "d.jsonl:1: key \"output\" is missing, expected a string") != NULL, "%s", err.text);
}

TEST(alpaca_with_bos) {
    struct pool own = {0};
    struct vocab_source s = vocabulary_make(&own, "smollm");
    struct error err = {0};
    s.add_bos = true;
    struct tokenizer *t = tokenizer_open(&s, &err);
    struct dataset_options o = options_for(DATASET_ALPACA);
    struct dataset d;
    const char *row = "{\"instruction\": \"hello\", \"output\": \"ok\"}";
    o.sequence_len = 1000;
    CHECK_MSG(dataset_parse(&o, (const uint8_t *)row, strlen(row), t, NULL, &d, &err) == 0, "%s", err.text);
    CHECK_INT(d.samples[0].ids[0], s.bos);
    CHECK_INT(d.samples[0].why[0], WHY_TEMPLATE);
    CHECK_INT(d.samples[0].prompt_ids[0], s.bos);
    int32_t n = 0;
    for (int32_t i = 0; i < d.samples[0].count; i++) n += d.samples[0].ids[i] == s.bos;
    CHECK_INT(n, 1);
    dataset_free(&d);
    tokenizer_close(t);
    pool_free(&own);
}

TEST(rows_of_tokens) {
    open_all();
    struct dataset_options o = options_for(DATASET_TOKENS);
    struct dataset d;
    o.vocab_size = 10;
    const char *rows =
        "{\"input_ids\": [1, 2, 3, 4], \"labels\": [-100, -100, 3, 4], \"attention_mask\": [1, 1, 1, 1]}\n"
        "{\"input_ids\": [1, 2, 3], \"labels\": [-100, 9, 3], \"position_ids\": [0, 1, 0]}\n";
    if (parses(&o, rows, &d)) {
        CHECK(d.samples[0].labels == NULL && d.samples[0].positions == NULL);
        CHECK_INT(d.samples[0].trained, 2);
        CHECK_INT(d.samples[0].why[1], WHY_LABEL_MASKED);
        CHECK_INT(d.samples[0].why[2], WHY_LABEL);
        CHECK(d.samples[1].labels && d.samples[1].labels[1] == 9);
        CHECK(d.samples[1].positions && d.samples[1].positions[2] == 0 && d.samples[1].positions[1] == 1);
        CHECK(d.samples[0].rendered == NULL && d.samples[0].prompt_ids == NULL);
        check_ledger(&d);
        dataset_free(&d);
    }
    static const struct {
        const char *row, *part;
    } bad[] = {
        {"{\"input_ids\": [1, 10], \"labels\": [1, 2]}", "input_ids[1] is 10, expected a number from 0 to 9"},
        {"{\"input_ids\": [1, -1], \"labels\": [1, 2]}", "input_ids[1] is -1"},
        {"{\"input_ids\": [1, 2], \"labels\": [1, -5]}", "labels[1] is -5, expected a number from 0 to 9 or -100"},
        {"{\"input_ids\": [1, 18446744073709551617], \"labels\": [1, 2]}", "input_ids[1]"},
        {"{\"input_ids\": [1, 2.5], \"labels\": [1, 2]}", "input_ids[1] is a number, expected a whole number"},
        {"{\"input_ids\": [1, 2.0], \"labels\": [1, 2]}", "input_ids[1]"},
        {"{\"input_ids\": [1, \"2\"], \"labels\": [1, 2]}", "input_ids[1] is a string"},
        {"{\"input_ids\": [1, 2], \"labels\": [1]}", "labels has 1 numbers, expected as many as input_ids (2)"},
        {"{\"input_ids\": [], \"labels\": []}", "input_ids is empty"},
        {"{\"input_ids\": [1, 2]}", "key \"labels\" is missing"},
        {"{\"input_ids\": 1, \"labels\": [1]}", "key \"input_ids\" is a number"},
        {"{\"input_ids\": [1, 2], \"labels\": [1, -100]}", "every label is -100"}, // the first is never predicted
        {"{\"input_ids\": [1, 2], \"labels\": [1, 2], \"position_ids\": [0, 2]}",
         "position_ids[1] is 2, expected a number from 0 to 1"},
        {"{\"input_ids\": [1, 2], \"labels\": [1, 2], \"attention_mask\": [1, 0]}", "attention_mask[1] is not 1"},
    };
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        struct error err = {0};
        CHECK_MSG(parse(&o, bad[i].row, &d, &err) == -1, "accepted: %s", bad[i].row);
        CHECK_MSG(strstr(err.text, "d.jsonl:1: ") && strstr(err.text, bad[i].part), "%s", err.text);
    }
}

static void make_rows(struct text *file, int n) {
    for (int i = 0; i < n; i++)
        text_printf(file, ROW(MESSAGE("user", "row %d") "," MESSAGE("assistant", "hello %d")), i, i % 7);
}

TEST(held_out_rows) {
    open_all();
    struct text file = {0};
    make_rows(&file, 40);
    struct dataset_options o = options_for(DATASET_CHAT);
    struct dataset d, test, again, other;
    struct error err = {0};
    bool seen[40] = {0}, differ = false;
    if (!parses(&o, file.data, &d)) return;
    uint64_t tokens = d.tokens;
    CHECK(dataset_split(&d, 0.11, 42, &test, &err) == 0); // 4.4 rounds up
    CHECK_INT(test.count, 5);
    CHECK_INT(d.count, 35);
    CHECK_INT(d.tokens + test.tokens, tokens);
    check_ledger(&d);
    check_ledger(&test);
    for (size_t i = 0; i < d.count; i++) seen[d.samples[i].row] = true;
    for (size_t i = 0; i < test.count; i++) {
        CHECK(!seen[test.samples[i].row]);
        seen[test.samples[i].row] = true;
        if (i) CHECK(test.samples[i].row > test.samples[i - 1].row);
    }
    for (int i = 0; i < 40; i++) CHECK(seen[i]);
    CHECK(parses(&o, file.data, &again));
    CHECK(dataset_split(&again, 5, 42, &other, &err) == 0); // a count; the same seed, the same rows
    for (size_t i = 0; i < 5; i++) CHECK_INT(other.samples[i].row, test.samples[i].row);
    dataset_free(&other);
    dataset_free(&again);
    CHECK(parses(&o, file.data, &again));
    CHECK(dataset_split(&again, 5, 43, &other, &err) == 0);
    for (size_t i = 0; i < 5; i++) differ |= other.samples[i].row != test.samples[i].row;
    CHECK(differ);
    dataset_free(&other);
    CHECK(dataset_split(&d, 35, 42, &other, &err) == -1);
    CHECK_INT(err.code, STATUS_CONFIG);
    dataset_free(&again);
    dataset_free(&d);
    dataset_free(&test);
    dataset_free(&other);
    text_free(&file);
}

TEST(files_one_after_the_other) {
    open_all();
    struct text file = {0};
    make_rows(&file, 3);
    struct dataset_options o = options_for(DATASET_CHAT);
    struct dataset all = {0}, one;
    struct error err = {0};
    uint8_t first[32];
    for (int i = 0; i < 3; i++) {
        o.first_row = (uint32_t)all.count;
        if (!parses(&o, file.data, &one)) return;
        if (i == 0) memcpy(first, one.sha256, 32);
        CHECK(dataset_append(&all, &one, &err) == 0);
        CHECK(one.samples == NULL && one.count == 0);
        if (i == 0) CHECK(memcmp(first, all.sha256, 32) == 0);
    }
    CHECK(memcmp(first, all.sha256, 32) != 0);
    CHECK_INT(all.count, 9);
    for (uint32_t i = 0; i < 9; i++) {
        CHECK_INT(all.samples[i].row, i);
        CHECK_INT(all.samples[i].line, i % 3 + 1);
        CHECK_STR(trained_text(&all.samples[i]), i % 3 == 0   ? "hello 0<|im_end|>"
                                                 : i % 3 == 1 ? "hello 1<|im_end|>"
                                                              : "hello 2<|im_end|>");
    }
    check_ledger(&all);
    dataset_free(&all);
    text_free(&file);
}

TEST(a_file_from_disk) {
    open_all();
    struct text file = {0};
    make_rows(&file, 3);
    struct error err = {0};
    char *path = path_join(test_folder(), "rows.jsonl");
    CHECK(file_replace(path, file.data, file.length, &err) == 0);
    struct dataset_options o = options_for(DATASET_CHAT);
    struct dataset d;
    uint8_t want[32];
    o.path = path;
    CHECK_MSG(dataset_read(&o, tokenizer, chat, &d, &err) == 0, "%s", err.text);
    CHECK_INT(d.count, 3);
    CHECK(sha256_bytes(file.data, file.length, want, &err) == 0);
    CHECK(memcmp(want, d.sha256, 32) == 0);
    CHECK(d.bytes > 0);
    dataset_free(&d);
    o.path = "/nowhere/rows.jsonl";
    CHECK(dataset_read(&o, tokenizer, chat, &d, &err) == -1);
    CHECK_INT(err.code, STATUS_NOINPUT);
    mem_free(path);
    text_free(&file);
}

TEST(every_allocation_may_fail) {
    open_all();
    struct text file = {0};
    make_rows(&file, 3);
    struct dataset_options o = options_for(DATASET_CHAT);
    uint64_t k = 1, failures = 0;
    int status = -1;
    for (; status < 0 && k < 2000 && !test_failed(); k++) {
        struct dataset all = {0}, one, test;
        struct error err = {0};
        mem_fail_at(k, 0);
        status = parse(&o, file.data, &one, &err);
        if (status == 0) status = dataset_append(&all, &one, &err);
        if (status == 0) status = dataset_split(&all, 1, 1, &test, &err);
        uint64_t calls = mem_fail_at(0, 0);
        if (status == 0) dataset_free(&test);
        if (status < 0) CHECK_INT(err.code, STATUS_MEMORY);
        if (status == 0 && calls >= k) status = -1; // this one was not needed: go on
        failures++;
        dataset_free(&all);
    }
    CHECK_MSG(status == 0 && failures > 20, "%llu allocations", (unsigned long long)failures);
    text_free(&file);
}

TEST(smollm2_conversation) {
    struct smollm2 v;
    struct error err = {0};
    if (smollm2_open(&v)) {
        struct chat_template *own =
            chat_template_open(NULL, v.source.chat_template.bytes, v.source.chat_template.length, &err);
        CHECK_MSG(own != NULL, "%s", err.text);
        const char *row = ROW(MESSAGE("user", "What is 2+2?") "," MESSAGE("assistant", "4"));
        // The ids of transformers' apply_chat_template for this conversation.
        static const int32_t want[] = {1,    9690, 198, 2683,  359,  253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28,
                                       7018, 411,  407, 19712, 8182, 2,   198,  1,    4093,  198,  1780, 314, 216,   34,
                                       27,   34,   47,  2,     198,  1,   520,  9531, 198,   36,   2,    198};
        struct dataset_options o = options_for(DATASET_CHAT);
        struct dataset d;
        o.sequence_len = 100;
        CHECK_MSG(dataset_parse(&o, (const uint8_t *)row, strlen(row), v.tokenizer, own, &d, &err) == 0, "%s",
                  err.text);
        CHECK_INT(d.samples[0].count, COUNT_OF(want));
        for (int32_t i = 0; i < d.samples[0].count && i < (int32_t)COUNT_OF(want); i++)
            CHECK_INT(d.samples[0].ids[i], want[i]);
        CHECK_INT(d.samples[0].trained, 2); // "4" and <|im_end|>
        dataset_free(&d);
        chat_template_close(own);
    }
    smollm2_close(&v);
}

static void close_all(void) {
    tokenizer_close(tokenizer);
    chat_template_close(chat);
    pool_free(&pool);
    tokenizer = NULL;
}
TEST(nothing_is_left) {
    close_all();
}

TEST_MAIN(CASE(masks_of_a_conversation), CASE(every_token_has_a_reason), CASE(a_token_belongs_to_its_first_byte),
          CASE(a_prompt_that_ends_right_behind_a_control_token), CASE(prompt_and_reference_of_the_last_answer),
          CASE(roles_and_fields_of_other_data), CASE(a_system_text_beside_the_messages),
          CASE(special_text_and_empty_answers_are_noted), CASE(length_policies), CASE(malformed_rows_first_middle_last),
          CASE(line_ends_and_blank_lines), CASE(other_kinds_of_files_are_named), CASE(deep_and_long_lines),
          CASE(many_errors_at_once), CASE(alpaca_rows), CASE(alpaca_with_bos), CASE(rows_of_tokens),
          CASE(held_out_rows), CASE(files_one_after_the_other), CASE(a_file_from_disk), CASE(every_allocation_may_fail),
          CASE(smollm2_conversation), CASE(nothing_is_left))
