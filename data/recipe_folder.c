// See recipe.h: the tokenizer of a folder in Hugging Face's layout. tokenizer.json has the pipeline; BOS, EOS, template
// and the ends of turns stand in the files beside it.
#include "data/json.h"
#include "data/recipe.h"

#include <string.h>

enum { MAX_CONFIG = 64 << 20, MAX_TEMPLATE = 4 << 20 };

struct folder {
    const char *path;
    struct recipe *recipe;
    struct error *err;
};

// 1 when it is there, 0, or -1.
static int has_file(const struct folder *f, const char *name) {
    char *path = path_join(f->path, name);
    if (!path) return error_memory(f->err, "a file name", strlen(name));
    bool there = file_exists(path);
    mem_free(path);
    return there;
}

// 1 with the document, 0 when there is no such file, -1.
static int load(const struct folder *f, const char *name, struct json_document *doc) {
    char *path = path_join(f->path, name);
    if (!path) return error_memory(f->err, "a file name", strlen(name));
    int status = 0;
    if (file_exists(path)) {
        struct json_options options = {.name = path, .max_values = 4 << 20};
        status = json_load(path, MAX_CONFIG, &options, doc, f->err) < 0 ? -1 : 1;
        if (status == 1 && !json_is(doc->root, JSON_OBJECT)) {
            json_free(doc);
            status = error_set(f->err, STATUS_DATA, "%s: an object is expected", path);
        }
    }
    mem_free(path);
    return status;
}

// A token named in a configuration: a string, or an object with its "content". *id stays where the key is missing.
static int take_token(const struct folder *f, const struct json *config, const char *name, const char *key,
                      int32_t *id) {
    const struct json *value = json_get(config, key);
    if (json_is(value, JSON_OBJECT)) value = json_get(value, "content");
    if (!value || json_is(value, JSON_NULL)) return 0;
    size_t length;
    const char *text = json_string(value, &length);
    if (!text) return error_set(f->err, STATUS_DATA, "%s/%s: key '%s' is no token", f->path, name, key);
    int32_t found = recipe_find(f->recipe, vocab_text(text, length));
    if (found < 0)
        return error_set(f->err, STATUS_DATA, "%s/%s: the %s \"%.64s\" is not in the vocabulary", f->path, name, key,
                         text);
    *id = found;
    return 0;
}

// The padding token, which no text holds: one that does not exist is none.
static void take_padding(const struct folder *f, const struct json *config) {
    struct error none = {0};
    const struct folder quiet = {.path = f->path, .recipe = f->recipe, .err = &none};
    if (f->recipe->pad < 0) take_token(&quiet, config, "", "pad_token", &f->recipe->pad);
}

static int keep_template(const struct folder *f, const char *text, size_t length) {
    f->recipe->chat_template = vocab_text(pool_strndup(&f->recipe->pool, text, length), length);
    return f->recipe->chat_template.bytes ? 0 : error_memory(f->err, "the chat template", length);
}

// "chat_template": a text, or a list of {name, template} of which "default" is taken.
static int take_template(const struct folder *f, const struct json *value) {
    size_t length;
    for (const struct json *v = json_is(value, JSON_ARRAY) ? json_child(value) : NULL; v; v = json_next(v)) {
        const char *name = json_string(json_get(v, "name"), NULL);
        if (!name || strcmp(name, "default") != 0) continue;
        value = json_get(v, "template");
        break;
    }
    const char *text = json_string(value, &length);
    return text ? keep_template(f, text, length) : 0;
}

// A template in a file of its own wins; where there are such files, the configuration's is not looked at.
static int take_template_file(const struct folder *f, bool *wins) {
    char *path = path_join(f->path, "chat_template.jinja");
    struct text source = {0};
    int status = 0;
    if (!path) return error_memory(f->err, "a file name", strlen(f->path));
    if (file_exists(path)) {
        *wins = true;
        status = file_read(path, MAX_TEMPLATE, &source, f->err);
        if (status == 0) status = keep_template(f, text_str(&source), source.length);
    }
    text_free(&source);
    mem_free(path);
    char *more = path_join(f->path, "additional_chat_templates");
    if (!more) return error_memory(f->err, "a file name", strlen(f->path));
    *wins |= file_is_folder(more);
    mem_free(more);
    return status;
}

static int take_config(const struct folder *f, int32_t *bos) {
    static const char *const names[] = {"tokenizer_config.json", "special_tokens_map.json"};
    bool wins = false;
    int status = take_template_file(f, &wins);
    for (size_t i = 0; i < COUNT_OF(names) && status == 0; i++) {
        struct json_document doc;
        int found = load(f, names[i], &doc);
        if (found <= 0) {
            status = found;
            continue;
        }
        if (*bos < 0) status = take_token(f, doc.root, names[i], "bos_token", bos);
        if (status == 0 && f->recipe->eos < 0) status = take_token(f, doc.root, names[i], "eos_token", &f->recipe->eos);
        if (status == 0) take_padding(f, doc.root);
        if (status == 0 && i == 0 && !wins) status = take_template(f, json_get(doc.root, "chat_template"));
        json_free(&doc);
    }
    return status;
}

// "eos_token_id": an id or a list of ids, where generation stops. Ids beyond the vocabulary can never be made by it.
static int take_ends(const struct folder *f, const char *name, bool *found) {
    struct json_document doc;
    int status = load(f, name, &doc);
    if (status <= 0) return status;
    const struct json *value = json_get(doc.root, "eos_token_id");
    const struct json *v = json_is(value, JSON_ARRAY) ? json_child(value) : value;
    for (int64_t id; v && json_is(v, JSON_NUMBER); v = json_is(value, JSON_ARRAY) ? json_next(v) : NULL) {
        if (!json_int(v, &id) || id < 0 || id >= (int64_t)f->recipe->n_tokens) continue;
        if (f->recipe->eos < 0) f->recipe->eos = (int32_t)id;
        recipe_add_end(f->recipe, (int32_t)id);
        *found = true;
    }
    json_free(&doc);
    return 0;
}

static int take_files(struct folder *f) {
    struct recipe *r = f->recipe;
    int32_t bos = -1;
    bool ends = false;
    if (take_config(f, &bos) < 0) return -1;
    if (r->adds_bos && bos >= 0 && bos != r->bos)
        return error_set(
            f->err, STATUS_DATA,
            "%s: the post_processor of tokenizer.json puts token %d in front of a text, and bos_token is %d; "
            "that is not in this version",
            f->path, r->bos, bos);
    if (bos >= 0) r->bos = bos;
    recipe_add_end(r, r->eos);
    if (take_ends(f, "generation_config.json", &ends) < 0) return -1;
    return ends ? 0 : take_ends(f, "config.json", &ends);
}

// Other files hold a tokenizer too; say so where there is no tokenizer.json.
static int none(const struct folder *f) {
    static const char *const others[] = {"tokenizer.model", "tekken.json", "vocab.json", "vocab.txt"};
    for (size_t i = 0; i < COUNT_OF(others); i++) {
        int there = has_file(f, others[i]);
        if (there < 0) return -1;
        if (there)
            return error_set(f->err, STATUS_DATA,
                             "%s: the tokenizer is in %s, which is not in this version; tokenizer.json is needed",
                             f->path, others[i]);
    }
    return error_set(f->err, STATUS_NOINPUT, "%s: the base has no tokenizer (tokenizer.json is not there)", f->path);
}

int recipe_from_folder(const struct vocab_source *source, struct recipe *out, struct error *err) {
    struct folder f = {.path = source->folder, .recipe = out, .err = err};
    int there = has_file(&f, "tokenizer.json");
    if (there <= 0) return there < 0 ? -1 : none(&f);
    char *path = path_join(f.path, "tokenizer.json");
    if (!path) return error_memory(err, "a file name", strlen(f.path));
    int status = recipe_read_json(path, out, err);
    mem_free(path);
    if (status < 0) return -1;
    if (take_files(&f) == 0) return 0;
    recipe_free(out);
    return -1;
}
