// Conversations: roles are mapped and their order checked, the whole conversation is rendered and tokenised once, and a
// token is trained when its first byte lies in a trained span.
#include "data/row_reader.h"

#include <stdio.h>
#include <string.h>

static int32_t find_role(const struct dataset_options *o, const char *role, const char **target) {
    static const char *const from[] = {"human", "user", "gpt", "assistant", "system", "tool"};
    static const char *const to[] = {"user", "user", "assistant", "assistant", "system", "tool"};
    bool own = o->n_roles > 0;
    int n = own ? o->n_roles : (int)COUNT_OF(from);
    for (int i = 0; i < n; i++) {
        if (strcmp(own ? o->role_from[i] : from[i], role) != 0) continue;
        *target = own ? o->role_to[i] : to[i];
        return i;
    }
    return -1;
}

static bool is_trained_role(const struct dataset_options *o, const char *role) {
    if (o->train_on_inputs) return true;
    if (o->n_roles_to_train == 0) return strcmp(role, "assistant") == 0;
    for (int i = 0; i < o->n_roles_to_train; i++) {
        const char *target = o->roles_to_train[i]; // a role of the data stands for the one it maps to
        find_role(o, o->roles_to_train[i], &target);
        if (strcmp(target, role) == 0) return true;
    }
    return false;
}

static int unknown_role(const struct row *row, size_t i, const char *role, struct error *err) {
    const struct dataset_options *o = row->options;
    struct text known = {0};
    for (int k = 0; k < o->n_roles; k++) text_printf(&known, "%s%s", k ? ", " : "", o->role_from[k]);
    error_set(err, STATUS_DATA, "%s[%zu].%s is \"%.40s\", expected one of: %s", o->field_messages, i, o->field_role,
              role, o->n_roles ? text_str(&known) : "human, user, gpt, assistant, system, tool");
    text_free(&known);
    return -1;
}

static int read_message(struct row *row, size_t i, const struct json *value, struct error *err) {
    const struct dataset_options *o = row->options;
    char path[128];
    if (json_type(value) != JSON_OBJECT || !value)
        return error_set(err, STATUS_DATA, "%s[%zu] is %s, expected an object", o->field_messages, i,
                         json_type_name(value));
    struct message *m = &row->messages[i];
    *m = (struct message){.train = -1};
    const char *role;
    size_t length;
    snprintf(path, sizeof path, "%.40s[%zu].%.40s", o->field_messages, i, o->field_role);
    if (row_string(json_get(value, o->field_role), path, &role, &length, err) < 0) return -1;
    if (find_role(o, role, &m->role) < 0) return unknown_role(row, i, role, err);
    const struct json *calls = json_get(value, "tool_calls");
    if (calls && json_type(calls) != JSON_NULL && json_count(calls) > 0)
        return error_set(err, STATUS_DATA, "%s[%zu].tool_calls: tool calls are not in this version", o->field_messages,
                         i);
    snprintf(path, sizeof path, "%.40s[%zu].%.40s", o->field_messages, i, o->field_content);
    return row_string(json_get(value, o->field_content), path, &m->content, &m->content_length, err);
}

// The system's message stands first, users and assistants take turns, tools answer assistants. Other roles may stand
// anywhere.
static int check_order(const struct row *row, struct error *err) {
    const char *name = row->options->field_messages, *before = NULL;
    for (size_t i = 0; i < row->n_messages; i++) {
        const char *role = row->messages[i].role;
        bool assistant = strcmp(role, "assistant") == 0, user = strcmp(role, "user") == 0;
        bool tool = strcmp(role, "tool") == 0;
        if (strcmp(role, "system") == 0) {
            if (i > 0)
                return error_set(err, STATUS_DATA, "%s[%zu] is a system message, expected it only at the start", name,
                                 i);
            continue;
        }
        if ((assistant || user) && before && strcmp(before, role) == 0)
            return error_set(err, STATUS_DATA, "%s[%zu] is the second %s message in a row, expected turns to alternate",
                             name, i, role);
        if (assistant && !before)
            return error_set(err, STATUS_DATA, "%s[%zu] is an assistant message, expected a user's before it", name, i);
        if (tool && (!before || strcmp(before, "user") == 0))
            return error_set(err, STATUS_DATA, "%s[%zu] is a tool message, expected it after an assistant's", name, i);
        before = role;
    }
    const char *last = row->messages[row->n_messages - 1].role;
    if (!is_trained_role(row->options, last))
        return error_set(err, STATUS_DATA, "%s ends with a %s message, expected one that is trained", name, last);
    return 0;
}

// A system text beside the messages becomes the first message, unless they bring one (read_messages has left room).
static int add_system(struct row *row, const struct json *value, struct error *err) {
    const char *key = row->options->field_system;
    const struct json *text = key ? json_get(value, key) : NULL;
    if (!text || json_type(text) == JSON_NULL || strcmp(row->messages[0].role, "system") == 0) return 0;
    struct message first = {.role = "system", .train = -1};
    if (row_string(text, key, &first.content, &first.content_length, err) < 0) return -1;
    memmove(row->messages + 1, row->messages, row->n_messages++ * sizeof first);
    row->messages[0] = first;
    return 0;
}

static int read_messages(struct row *row, const struct json *value, struct error *err) {
    const struct dataset_options *o = row->options;
    const struct json *list = json_get(value, o->field_messages);
    if (!list || json_type(list) != JSON_ARRAY)
        return error_set(err, STATUS_DATA, "key \"%s\" is %s, expected a list of messages", o->field_messages,
                         json_type_name(list));
    size_t n = json_count(list);
    if (n == 0) return error_set(err, STATUS_DATA, "%s is empty, expected at least one message", o->field_messages);
    const struct json *tools = json_get(value, "tools");
    if (tools && json_type(tools) != JSON_NULL && json_count(tools) > 0)
        return error_set(err, STATUS_DATA, "key \"tools\": tools are not in this version");
    if (n + 1 > row->messages_capacity) {
        struct message *messages = mem_resize(row->messages, 2 * (n + 1) * sizeof *messages);
        if (!messages) return error_memory(err, "a conversation", 2 * (n + 1) * sizeof *messages);
        row->messages = messages;
        row->messages_capacity = 2 * (n + 1);
    }
    row->n_messages = n;
    size_t i = 0;
    for (const struct json *m = json_child(list); m; m = json_next(m))
        if (read_message(row, i++, m, err) < 0) return -1;
    return check_order(row, err) < 0 ? -1 : add_system(row, value, err);
}

// Is the content of message i trained? An empty one is not: there is nothing to learn but to stop at once.
static bool is_trained(const struct row *row, int i) {
    const struct message *m = &row->messages[i];
    if (m->content_length == 0 || m->train == 0) return false;
    return m->train == 1 || is_trained_role(row->options, m->role);
}

static bool ends_turn(enum train_on rule, bool trained, bool last) {
    return rule == TRAIN_ON_ALL || (rule == TRAIN_ON_TURN && trained) || (rule == TRAIN_ON_LAST && last);
}

// Where the end of a turn is the end of text, too (ChatML), it is trained if either rule says so, as axolotl does.
static enum token_why why_of_span(const struct row *row, const struct render_span *span, int last_trained) {
    if (span->kind == SPAN_TEMPLATE || span->message < 0) return WHY_TEMPLATE;
    bool trained = is_trained(row, span->message);
    if (span->kind == SPAN_CONTENT)
        return trained ? WHY_ANSWER : row->messages[span->message].train == 0 ? WHY_FLAG_OFF : WHY_PROMPT;
    const struct dataset_options *o = row->options;
    bool last = trained && span->message == last_trained;
    bool both = tokenizer_eos(row->tokenizer) == tokenizer_find(row->tokenizer, chat_template_eot(row->chat));
    return ends_turn(o->train_on_eot, trained, last) || (both && ends_turn(o->train_on_eos, trained, last))
               ? WHY_EOT
               : WHY_EOT_OFF;
}

static int mark_tokens(struct row *row, struct error *err) {
    if (row_reserve_why(row, err) < 0) return -1;
    int last_trained = (int)row->n_messages - 1;
    while (last_trained >= 0 && !is_trained(row, last_trained)) last_trained--;
    const struct render_span *span = row->rendered.spans;
    for (size_t t = 0; t < row->ids.count; t++) {
        while (row->spans[t].begin >= span->end) span++; // spans cover the text
        row->why[t] = (uint8_t)why_of_span(row, span, last_trained);
        if (span->kind == SPAN_CONTENT && tokenizer_is_control(row->tokenizer, row->ids.data[t]))
            row->notes |= NOTE_SPECIAL_TEXT;
    }
    for (size_t i = 0; i < row->n_messages; i++) {
        const struct message *m = &row->messages[i];
        if (m->content_length == 0 && m->train != 0 && is_trained_role(row->options, m->role))
            row->notes |= NOTE_EMPTY_ANSWER;
    }
    return 0;
}

// The prompt of message `i`: what the model sees when it has to write it. Up to the last control token it has the ids
// of the whole conversation, as texts on both sides of one are encoded apart.
static int make_prompt(struct row *row, int i, struct error *err) {
    if (chat_template_render(row->chat, row->messages, i, true, &row->prompt, err) < 0) return -1;
    size_t length = row->prompt.text.length, shared = 0;
    const char *text = text_str(&row->prompt.text);
    if (length <= row->rendered.text.length && memcmp(text, text_str(&row->rendered.text), length) == 0) {
        for (size_t t = 0; t < row->ids.count && row->spans[t].end <= length; t++)
            if (tokenizer_is_control(row->tokenizer, row->ids.data[t])) shared = t + 1;
    }
    size_t from = shared ? row->spans[shared - 1].end : 0;
    row->prompt_ids.count = 0;
    for (size_t t = 0; t < shared; t++)
        if (ids_push(&row->prompt_ids, row->ids.data[t]) < 0) return error_memory(err, "a prompt", length);
    if (tokenizer_encode(row->tokenizer, text + from, length - from, true, &row->prompt_ids, NULL, err) < 0) return -1;
    row->has_prompt = true;
    row->reference = row->messages[i].content;
    row->reference_length = row->messages[i].content_length;
    row->reference_tokens = 0;
    const struct render_span *span = row->rendered.spans;
    while (span->message != i || span->kind != SPAN_CONTENT) span++;
    for (size_t t = 0; t < row->ids.count; t++)
        row->reference_tokens += row->spans[t].begin >= span->begin && row->spans[t].begin < span->end;
    return 0;
}

int row_read_chat(struct row *row, const struct json *value, struct error *err) {
    if (read_messages(row, value, err) < 0) return -1;
    if (chat_template_render(row->chat, row->messages, (int)row->n_messages, false, &row->rendered, err) < 0) return -1;
    row->has_text = true;
    if (tokenizer_encode(row->tokenizer, text_str(&row->rendered.text), row->rendered.text.length, true, &row->ids,
                         &row->spans, err) < 0)
        return -1;
    if (mark_tokens(row, err) < 0) return -1;
    int i = (int)row->n_messages - 1;
    while (i >= 0 && !(is_trained(row, i) && strcmp(row->messages[i].role, "assistant") == 0)) i--;
    return i < 0 ? 0 : make_prompt(row, i, err);
}
