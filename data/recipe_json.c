// See recipe.h: tokenizer.json of Hugging Face tokenizers. The file is the program: its normalizer, pre-tokenizer and
// model are taken step by step, and a step that this version does not do exactly is refused by its name.
#include "data/json.h"
#include "data/recipe.h"
#include "data/utf8.h"

#include <string.h>

enum { MAX_FILE = 256 << 20, MAX_VALUES = 16 << 20, MAX_NESTING = 8 };
#define PAIR_MARK '\xFF' // between the parts of a merge: no UTF-8 holds it

static const char gpt2_words[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

struct loader {
    struct recipe *recipe;
    const char *file;
    struct error *err;
};

static int refuse(const struct loader *l, const char *part, const char *what) {
    return error_set(l->err, STATUS_DATA, "%s: %s \"%.64s\" is not in this version", l->file, part, what);
}

static int malformed(const struct loader *l, const char *part, const char *what) {
    return error_set(l->err, STATUS_DATA, "%s: %s: %s", l->file, part, what);
}

// A member that nobody here knows could change the ids: `known` has the names, between spaces.
static int check_keys(const struct loader *l, const char *part, const struct json *object, const char *known) {
    for (const struct json *v = json_child(object); v; v = json_next(v)) {
        const char *key = json_key(v, NULL), *at = strstr(known, key);
        size_t n = strlen(key);
        while (at && n > 0 && !(at > known && at[-1] == ' ' && at[n] == ' ')) at = strstr(at + 1, key);
        if (!at || n == 0)
            return error_set(l->err, STATUS_DATA, "%s: key \"%.64s\" of %s is not in this version", l->file, key, part);
    }
    return 0;
}

static int get_bool(const struct loader *l, const struct json *object, const char *key, bool *out) {
    return json_get_bool(object, key, JSON_OPTIONAL, out, l->err) < 0 ? error_prefix(l->err, "%s", l->file) : 0;
}

static int keep(const struct loader *l, const char *bytes, size_t length, struct vocab_string *out) {
    char *copy = pool_strndup(&l->recipe->pool, bytes, length);
    *out = vocab_text(copy, length);
    return copy ? 0 : error_memory(l->err, "the vocabulary", length);
}

// The string member `key`, copied.
static int get_string(const struct loader *l, const struct json *object, const char *key, struct vocab_string *out) {
    const char *text = NULL;
    size_t length = 0;
    if (json_get_string(object, key, JSON_REQUIRED, &text, &length, l->err) < 0)
        return error_prefix(l->err, "%s", l->file);
    return keep(l, text, length, out);
}

static int get_type(const struct loader *l, const char *part, const struct json *object, const char **type) {
    *type = NULL;
    if (!json_is(object, JSON_OBJECT)) return malformed(l, part, "an object is expected");
    if (json_get_string(object, "type", JSON_REQUIRED, type, NULL, l->err) < 0)
        return error_prefix(l->err, "%s: %s", l->file, part);
    return 0;
}

static bool is_null(const struct json *v) {
    return !v || json_is(v, JSON_NULL);
}

// The parts of a Sequence, or the one component itself.
typedef int take_function(struct loader *l, const struct json *value, int depth);
static int take_sequence(struct loader *l, const char *part, const struct json *value, const char *list_key, int depth,
                         take_function *take) {
    const struct json *list = json_get(value, list_key);
    if (!json_is(list, JSON_ARRAY)) return malformed(l, part, "a Sequence without its list");
    if (depth >= MAX_NESTING) return malformed(l, part, "Sequences are nested too deeply");
    for (const struct json *v = json_child(list); v; v = json_next(v))
        if (take(l, v, depth + 1) < 0) return -1;
    return 0;
}

// {"String": " "} or {"Regex": "..."}; *regex: an expression.
static int get_pattern(const struct loader *l, const char *part, const struct json *object, bool *regex,
                       struct vocab_string *out) {
    const struct json *pattern = json_get(object, "pattern");
    const struct json *string = json_get(pattern, "String"), *expression = json_get(pattern, "Regex");
    if (json_count(pattern) != 1 || !json_is(string ? string : expression, JSON_STRING))
        return malformed(l, part, "a pattern is {\"String\": ...} or {\"Regex\": ...}");
    *regex = expression != NULL;
    if (get_string(l, pattern, *regex ? "Regex" : "String", out) < 0) return -1;
    return out->length ? 0 : malformed(l, part, "an empty pattern is not in this version");
}

// --- normalizers

static int take_normalizer(struct loader *l, const struct json *value, int depth) {
    struct recipe *r = l->recipe;
    const char *type;
    struct normal_step step = {0};
    if (is_null(value)) return 0;
    if (get_type(l, "normalizer", value, &type) < 0) return -1;
    if (strcmp(type, "Sequence") == 0)
        return take_sequence(l, "normalizer", value, "normalizers", depth, take_normalizer);
    if (strcmp(type, "NFC") == 0) {
        step.kind = NORMAL_NFC;
        if (check_keys(l, "normalizer NFC", value, " type ") < 0) return -1;
    } else if (strcmp(type, "Prepend") == 0) {
        step.kind = NORMAL_PREPEND;
        if (check_keys(l, "normalizer Prepend", value, " type prepend ") < 0 ||
            get_string(l, value, "prepend", &step.content) < 0)
            return -1;
    } else if (strcmp(type, "Replace") == 0) {
        bool regex;
        if (check_keys(l, "normalizer Replace", value, " type pattern content ") < 0 ||
            get_pattern(l, "normalizer Replace", value, &regex, &step.pattern) < 0 ||
            get_string(l, value, "content", &step.content) < 0)
            return -1;
        step.kind = regex ? NORMAL_REPLACE_REGEX : NORMAL_REPLACE;
        bool space = !regex && step.pattern.length == 1 && step.pattern.bytes[0] == ' ';
        if (space && step.content.length) r->space = step.content;
    } else {
        return refuse(l, "the normalizer", type);
    }
    return recipe_add_normal(r, step, l->err);
}

// --- pre-tokenizers

static int add_regex(struct loader *l, const char *pattern, enum cut_behaviour behaviour) {
    struct cut_step step = {.kind = CUT_REGEX, .behaviour = behaviour};
    step.pattern = vocab_text(pattern, strlen(pattern));
    return recipe_add_cut(l->recipe, step, l->err);
}

// A text as an expression that matches just it.
static int literal(struct loader *l, struct vocab_string *pattern) {
    struct text out = {0};
    for (size_t at = 0, size; at < pattern->length; at += size) {
        uint32_t c = utf8_read(pattern->bytes + at, pattern->length - at, &size);
        text_printf(&out, "\\x{%X}", (unsigned)c);
    }
    int status = text_failed(&out) ? error_memory(l->err, "a pattern", pattern->length)
                                   : keep(l, text_str(&out), out.length, pattern);
    text_free(&out);
    return status;
}

static int take_split(struct loader *l, const struct json *value) {
    static const char *const names[] = {[CUT_ISOLATED] = "Isolated",
                                        [CUT_REMOVED] = "Removed",
                                        [CUT_CONTIGUOUS] = "Contiguous",
                                        [CUT_MERGED_WITH_PREVIOUS] = "MergedWithPrevious",
                                        [CUT_MERGED_WITH_NEXT] = "MergedWithNext"};
    struct cut_step step = {.kind = CUT_REGEX};
    bool regex, known = false;
    const char *behaviour = NULL;
    if (check_keys(l, "pre_tokenizer Split", value, " type pattern behavior invert ") < 0 ||
        get_pattern(l, "pre_tokenizer Split", value, &regex, &step.pattern) < 0 ||
        get_bool(l, value, "invert", &step.invert) < 0)
        return -1;
    if (json_get_string(value, "behavior", JSON_REQUIRED, &behaviour, NULL, l->err) < 0)
        return error_prefix(l->err, "%s: pre_tokenizer Split", l->file);
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        if (strcmp(behaviour, names[i]) != 0) continue;
        step.behaviour = (enum cut_behaviour)i;
        known = true;
    }
    if (!known) return refuse(l, "the behavior of a Split", behaviour);
    if (!regex && literal(l, &step.pattern) < 0) return -1;
    return recipe_add_cut(l->recipe, step, l->err);
}

static int take_metaspace(struct loader *l, const struct json *value) {
    struct cut_step step = {.kind = CUT_METASPACE, .split = true};
    const char *scheme = NULL;
    bool legacy = true;
    size_t size;
    if (check_keys(l, "pre_tokenizer Metaspace", value,
                   " type replacement prepend_scheme split add_prefix_space str_rep ") < 0 ||
        get_string(l, value, "replacement", &step.mark) < 0 || get_bool(l, value, "split", &step.split) < 0 ||
        get_bool(l, value, "add_prefix_space", &legacy) < 0)
        return -1;
    utf8_read(step.mark.bytes, step.mark.length, &size);
    if (size == 0 || size != step.mark.length)
        return malformed(l, "pre_tokenizer Metaspace", "the replacement is one character");
    if (json_get_string(value, "prepend_scheme", JSON_OPTIONAL, &scheme, NULL, l->err) < 0)
        return error_prefix(l->err, "%s: pre_tokenizer Metaspace", l->file);
    if (!scheme)
        step.prepend = legacy ? CUT_PREPEND_ALWAYS : CUT_PREPEND_NEVER;
    else if (strcmp(scheme, "always") == 0)
        step.prepend = CUT_PREPEND_ALWAYS;
    else if (strcmp(scheme, "first") == 0)
        step.prepend = CUT_PREPEND_FIRST;
    else if (strcmp(scheme, "never") == 0)
        step.prepend = CUT_PREPEND_NEVER;
    else
        return refuse(l, "the prepend_scheme of a Metaspace", scheme);
    if (!legacy && step.prepend != CUT_PREPEND_NEVER)
        return malformed(l, "pre_tokenizer Metaspace", "add_prefix_space and prepend_scheme contradict each other");
    l->recipe->space = step.mark;
    return recipe_add_cut(l->recipe, step, l->err);
}

static int take_byte_level(struct loader *l, const struct json *value) {
    bool prefix = false, regex = true;
    if (check_keys(l, "pre_tokenizer ByteLevel", value, " type add_prefix_space trim_offsets use_regex ") < 0 ||
        get_bool(l, value, "add_prefix_space", &prefix) < 0 || get_bool(l, value, "use_regex", &regex) < 0)
        return -1;
    if (prefix && recipe_add_cut(l->recipe, (struct cut_step){.kind = CUT_PREFIX_SPACE}, l->err) < 0) return -1;
    if (regex && add_regex(l, gpt2_words, CUT_ISOLATED) < 0) return -1;
    l->recipe->bytes = true;
    return 0;
}

static int take_pretokenizer(struct loader *l, const struct json *value, int depth) {
    const char *type;
    if (is_null(value)) return 0;
    if (get_type(l, "pre_tokenizer", value, &type) < 0) return -1;
    if (strcmp(type, "Sequence") == 0)
        return take_sequence(l, "pre_tokenizer", value, "pretokenizers", depth, take_pretokenizer);
    if (l->recipe->bytes)
        return error_set(l->err, STATUS_DATA, "%s: a pre_tokenizer after ByteLevel (\"%.64s\") is not in this version",
                         l->file, type);
    if (strcmp(type, "Split") == 0) return take_split(l, value);
    if (strcmp(type, "ByteLevel") == 0) return take_byte_level(l, value);
    if (strcmp(type, "Metaspace") == 0) return take_metaspace(l, value);
    if (strcmp(type, "Digits") != 0) return refuse(l, "the pre_tokenizer", type);
    bool individual = false;
    if (check_keys(l, "pre_tokenizer Digits", value, " type individual_digits ") < 0 ||
        get_bool(l, value, "individual_digits", &individual) < 0)
        return -1;
    return add_regex(l, "\\p{N}", individual ? CUT_ISOLATED : CUT_CONTIGUOUS);
}

// --- model

// A list of tokens with room for `added` more, and the bytes of the vocabulary in one block.
static int take_vocab(struct loader *l, const struct json *vocab, size_t added) {
    struct recipe *r = l->recipe;
    int64_t id, last = -1;
    size_t total = 0, length, n = json_count(vocab);
    if (!json_is(vocab, JSON_OBJECT)) return malformed(l, "model", "\"vocab\" is no object of tokens and ids");
    for (const struct json *v = json_child(vocab); v; v = json_next(v)) {
        json_key(v, &length);
        if (!json_int(v, &id) || id < 0 || id >= RECIPE_MAX_TOKENS)
            return error_set(l->err, STATUS_DATA, "%s: the id of token \"%.64s\" is no number from 0 to %d", l->file,
                             json_key(v, NULL), RECIPE_MAX_TOKENS - 1);
        if (id > last) last = id;
        total += length;
    }
    size_t room = ((size_t)last + 1 > n ? (size_t)last + 1 : n) + added + 1;
    struct vocab_string *tokens = pool_array(&r->pool, room, sizeof *tokens);
    uint8_t *uses = pool_array(&r->pool, room, 1);
    char *bytes = pool_array(&r->pool, total + 1, 1);
    if (!tokens || !uses || !bytes) return error_memory(l->err, "the vocabulary", total + room * sizeof *tokens);
    for (const struct json *v = json_child(vocab); v; v = json_next(v)) {
        const char *key = json_key(v, &length);
        json_int(v, &id);
        if (uses[id])
            return error_set(l->err, STATUS_DATA, "%s: the tokens \"%.*s\" and \"%.64s\" have the same id %lld",
                             l->file, (int)(tokens[id].length < 64 ? tokens[id].length : 64), tokens[id].bytes, key,
                             (long long)id);
        memcpy(bytes, key, length);
        tokens[id] = vocab_text(bytes, length);
        uses[id] = USE_WORD;
        bytes += length;
    }
    r->tokens = tokens;
    r->uses = uses;
    r->n_tokens = (size_t)last + 1;
    return 0;
}

static int merge_error(const struct loader *l, size_t rank, const char *what) {
    return error_set(l->err, STATUS_DATA, "%s: merge %zu of the vocabulary %s", l->file, rank, what);
}

// "left right" with exactly one space, or ["left", "right"].
static int merge_parts(const struct loader *l, size_t rank, const struct json *v, struct vocab_string parts[2]) {
    if (json_is(v, JSON_STRING)) {
        size_t length;
        const char *text = json_string(v, &length), *space = memchr(text, ' ', length);
        if (!space || memchr(space + 1, ' ', length - (size_t)(space - text) - 1))
            return merge_error(l, rank, "is not a pair: one space is expected");
        parts[0] = vocab_text(text, (size_t)(space - text));
        parts[1] = vocab_text(space + 1, length - parts[0].length - 1);
        return 0;
    }
    const struct json *left = json_child(v), *right = left ? json_next(left) : NULL;
    if (!json_is(v, JSON_ARRAY) || json_count(v) != 2 || !json_is(left, JSON_STRING) || !json_is(right, JSON_STRING))
        return merge_error(l, rank, "is not a pair of texts");
    parts[0].bytes = json_string(left, &parts[0].length);
    parts[1].bytes = json_string(right, &parts[1].length);
    return 0;
}

static bool is_version(const struct json *v) {
    const char *text = json_is(v, JSON_STRING) ? json_string(v, NULL) : NULL;
    return text && strncmp(text, "#version", 8) == 0;
}

static int take_merges(struct loader *l, const struct json *list) {
    struct recipe *r = l->recipe;
    struct vocab_string parts[2];
    size_t n = json_count(list), total = 0, rank = 0;
    if (!json_is(list, JSON_ARRAY)) return malformed(l, "model", "\"merges\" is no list");
    for (const struct json *v = json_child(list); v; v = json_next(v), rank++) {
        if (is_version(v)) continue;
        if (merge_parts(l, rank, v, parts) < 0) return -1;
        total += parts[0].length + parts[1].length + 1;
    }
    struct vocab_string *merges = pool_array(&r->pool, n + 1, sizeof *merges);
    char *bytes = pool_array(&r->pool, total + 1, 1);
    if (!merges || !bytes) return error_memory(l->err, "the vocabulary", total + n * sizeof *merges);
    rank = 0;
    for (const struct json *v = json_child(list); v; v = json_next(v), rank++) {
        if (is_version(v)) continue;
        merge_parts(l, rank, v, parts);
        size_t length = parts[0].length + parts[1].length + 1;
        memcpy(bytes, parts[0].bytes, parts[0].length);
        bytes[parts[0].length] = PAIR_MARK;
        memcpy(bytes + parts[0].length + 1, parts[1].bytes, parts[1].length);
        merges[r->n_merges++] = vocab_text(bytes, length);
        bytes += length;
    }
    r->merges = merges;
    r->merge_mark = PAIR_MARK;
    return 0;
}

static int take_model(struct loader *l, const struct json *model, size_t added) {
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    struct recipe *r = l->recipe;
    const char *type = NULL, *text;
    size_t length;
    double dropout = 0;
    if (!json_is(model, JSON_OBJECT)) return malformed(l, "model", "an object is expected");
    if (json_get_string(model, "type", JSON_OPTIONAL, &type, NULL, l->err) < 0)
        return error_prefix(l->err, "%s: model", l->file);
    if (type && strcmp(type, "BPE") != 0) return refuse(l, "the tokenizer model", type);
    if (check_keys(l, "model", model,
                   " type dropout unk_token continuing_subword_prefix end_of_word_suffix fuse_unk byte_fallback "
                   "ignore_merges vocab merges ") < 0 ||
        get_bool(l, model, "fuse_unk", &r->fuse_unk) < 0 ||
        get_bool(l, model, "byte_fallback", &r->byte_fallback) < 0 ||
        get_bool(l, model, "ignore_merges", &r->ignore_merges) < 0)
        return -1;
    if (json_get_double(model, "dropout", JSON_OPTIONAL, &dropout, l->err) < 0)
        return error_prefix(l->err, "%s: model", l->file);
    if (dropout != 0) return malformed(l, "model", "\"dropout\" is not in this version: ids would be random");
    for (size_t i = 0; i < COUNT_OF(affixes); i++) {
        text = "";
        if (json_get_string(model, affixes[i], JSON_OPTIONAL, &text, NULL, l->err) < 0)
            return error_prefix(l->err, "%s: model", l->file);
        if (*text) return refuse(l, affixes[i], text);
    }
    if (take_vocab(l, json_get(model, "vocab"), added) < 0 || take_merges(l, json_get(model, "merges")) < 0) return -1;
    text = NULL;
    if (json_get_string(model, "unk_token", JSON_OPTIONAL, &text, &length, l->err) < 0)
        return error_prefix(l->err, "%s: model", l->file);
    if (text) r->unk = recipe_find(r, vocab_text(text, length));
    r->needs_unk = text && r->unk < 0;
    return 0;
}

// --- added tokens

// The reference gives ids itself: the vocabulary's where the text stands there, else the next one free. A file that
// says something else is refused.
static int take_added(struct loader *l, const struct json *list, size_t vocab) {
    struct recipe *r = l->recipe;
    struct vocab_string *tokens = (struct vocab_string *)(uintptr_t)r->tokens; // ours, from take_vocab
    uint8_t *uses = (uint8_t *)(uintptr_t)r->uses;
    int64_t last = -1, id;
    r->added = pool_array(&r->pool, json_count(list) + 1, sizeof *r->added);
    if (!r->added) return error_memory(l->err, "added tokens", json_count(list) * sizeof *r->added);
    for (const struct json *v = json_child(list); v; v = json_next(v)) {
        struct added_token a = {0};
        if (!json_is(v, JSON_OBJECT)) return malformed(l, "added_tokens", "an object is expected");
        if (check_keys(l, "added_tokens", v, " id content special normalized single_word lstrip rstrip ") < 0 ||
            get_string(l, v, "content", &a.text) < 0)
            return -1;
        if (json_get_int(v, "id", JSON_REQUIRED, &id, l->err) < 0 ||
            json_get_bool(v, "special", JSON_REQUIRED, &a.control, l->err) < 0 ||
            json_get_bool(v, "normalized", JSON_REQUIRED, &a.normalized, l->err) < 0 ||
            json_get_bool(v, "single_word", JSON_REQUIRED, &a.single_word, l->err) < 0 ||
            json_get_bool(v, "lstrip", JSON_REQUIRED, &a.lstrip, l->err) < 0 ||
            json_get_bool(v, "rstrip", JSON_REQUIRED, &a.rstrip, l->err) < 0)
            return error_prefix(l->err, "%s: added_tokens", l->file);
        if (a.text.length == 0) continue; // can never occur, and gets no id
        int64_t next = last >= (int64_t)vocab || vocab == 0 ? last + 1 : (int64_t)vocab;
        bool same = id >= 0 && id < (int64_t)r->n_tokens && uses[id] && tokens[id].length == a.text.length &&
                    memcmp(tokens[id].bytes, a.text.bytes, a.text.length) == 0;
        if (same && uses[id] & USE_ADDED)
            return error_set(l->err, STATUS_DATA, "%s: the added token \"%.64s\" occurs twice", l->file, a.text.bytes);
        if (!same && (id != next || (id < (int64_t)r->n_tokens && uses[id])))
            return error_set(
                l->err, STATUS_DATA,
                "%s: the added token \"%.64s\" has the id %lld: neither that of the vocabulary nor the next "
                "free one (%lld)",
                l->file, a.text.bytes, (long long)id, (long long)next);
        if (!same) tokens[id] = a.text;
        if (id >= (int64_t)r->n_tokens) r->n_tokens = (size_t)id + 1;
        uses[id] |= USE_ADDED;
        if (id > last) last = id;
        a.id = (int32_t)id;
        r->added[r->n_added++] = a;
    }
    return 0;
}

// --- post-processor: only what it puts in front of plain text is of use

static int take_template(struct loader *l, const struct json *value) {
    const struct json *single = json_get(value, "single"), *specials = json_get(value, "special_tokens");
    for (const struct json *v = json_child(single); v; v = json_next(v)) {
        const struct json *special = json_get(v, "SpecialToken");
        if (!special) return 0; // the text: what follows it is the end of a text, which rows bring themselves
        const char *name = NULL;
        if (json_get_string(special, "id", JSON_REQUIRED, &name, NULL, l->err) < 0)
            return error_prefix(l->err, "%s: post_processor", l->file);
        const struct json *ids = json_get(json_get(specials, name), "ids");
        int64_t id;
        if (!json_is(ids, JSON_ARRAY) || json_count(ids) != 1 || l->recipe->adds_bos)
            return malformed(l, "post_processor", "more than one token in front of a text is not in this version");
        if (!json_int(json_child(ids), &id) || id < 0 || id >= (int64_t)l->recipe->n_tokens)
            return malformed(l, "post_processor", "the token in front of a text is not in the vocabulary");
        l->recipe->bos = (int32_t)id;
        l->recipe->adds_bos = true;
    }
    return 0;
}

static int take_postprocessor(struct loader *l, const struct json *value, int depth) {
    const char *type;
    if (is_null(value)) return 0;
    if (get_type(l, "post_processor", value, &type) < 0) return -1;
    if (strcmp(type, "Sequence") == 0)
        return take_sequence(l, "post_processor", value, "processors", depth, take_postprocessor);
    if (strcmp(type, "ByteLevel") == 0) return 0; // moves offsets, adds nothing
    if (strcmp(type, "TemplateProcessing") == 0) return take_template(l, value);
    return refuse(l, "the post_processor", type);
}

static int take_all(struct loader *l, const struct json *root) {
    const struct json *added = json_get(root, "added_tokens"), *model = json_get(root, "model");
    if (!json_is(root, JSON_OBJECT)) return malformed(l, "tokenizer.json", "an object is expected");
    if (check_keys(l, "tokenizer.json", root,
                   " version truncation padding added_tokens normalizer pre_tokenizer post_processor decoder model ") <
        0)
        return -1;
    if (!is_null(added) && !json_is(added, JSON_ARRAY)) return malformed(l, "added_tokens", "a list is expected");
    if (json_count(added) > RECIPE_MAX_TOKENS) return malformed(l, "added_tokens", "too many");
    if (take_normalizer(l, json_get(root, "normalizer"), 0) < 0 ||
        take_pretokenizer(l, json_get(root, "pre_tokenizer"), 0) < 0)
        return -1;
    if (take_model(l, model, json_count(added)) < 0 || take_added(l, added, json_count(json_get(model, "vocab"))) < 0)
        return -1;
    return take_postprocessor(l, json_get(root, "post_processor"), 0);
}

static int take_document(struct json_document *doc, const char *name, struct recipe *out, struct error *err) {
    struct loader l = {.recipe = out, .err = err};
    *out = (struct recipe){.unk = -1, .bos = -1, .eos = -1, .pad = -1};
    l.file = out->file = pool_strdup(&out->pool, name);
    int status = out->file ? take_all(&l, doc->root) : error_memory(err, "the vocabulary", strlen(name));
    json_free(doc);
    if (status < 0) recipe_free(out);
    return status;
}

int recipe_from_json(const struct vocab_source *s, struct recipe *out, struct error *err) {
    struct json_options options = {.name = s->file, .max_values = MAX_VALUES};
    struct json_document doc;
    if (json_parse(s->json.bytes, s->json.length, &options, &doc, err) < 0 ||
        take_document(&doc, s->file, out, err) < 0)
        return -1;
    int32_t last = (int32_t)out->n_tokens - 1;
    if (s->bos > last || s->eos > last || s->eot > last) {
        recipe_free(out);
        return error_set(err, STATUS_DATA, "%s: BOS, EOS or EOT is outside the vocabulary of its tokenizer.json",
                         s->file);
    }
    if (!out->adds_bos) out->bos = s->bos;
    out->eos = s->eos;
    out->chat_template = s->chat_template;
    recipe_add_end(out, s->eos);
    recipe_add_end(out, s->eot);
    return 0;
}

int recipe_read_json(const char *path, struct recipe *out, struct error *err) {
    struct json_options options = {.name = path, .max_values = MAX_VALUES};
    struct json_document doc;
    return json_load(path, MAX_FILE, &options, &doc, err) < 0 ? -1 : take_document(&doc, path, out, err);
}
