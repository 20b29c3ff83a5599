// See normalizer.h.
#include "data/normalizer.h"

#include "data/normal_form.h"

#include <string.h>

struct normalizer {
    const struct recipe *recipe;
    struct regex *regexes[RECIPE_STEPS]; // of NORMAL_REPLACE_REGEX
};

struct normalizer *normalizer_open(const struct recipe *recipe, struct error *err) {
    struct normalizer *n = mem_zalloc(1, sizeof *n);
    if (!n) {
        error_memory(err, "the tokenizer", sizeof *n);
        return NULL;
    }
    n->recipe = recipe;
    for (int i = 0; i < recipe->n_normal; i++) {
        const struct normal_step *s = &recipe->normal[i];
        if (s->kind != NORMAL_REPLACE_REGEX) continue;
        n->regexes[i] = regex_open(s->pattern.bytes, s->pattern.length, recipe->file, err);
        if (n->regexes[i]) continue;
        normalizer_close(n);
        return NULL;
    }
    return n;
}

void normalizer_close(struct normalizer *n) {
    if (!n) return;
    for (int i = 0; i < RECIPE_STEPS; i++) regex_close(n->regexes[i]);
    mem_free(n);
}

static int compose(const struct recipe *recipe, bool refuse, struct mapped_text *t, struct error *err) {
    struct text normal = {0};
    uint32_t *sources = NULL;
    bool changed;
    int status = normal_form_c(t->bytes, t->length, &changed, &normal, &sources, err);
    if (status == 0 && changed && refuse) {
        status =
            error_set(err, STATUS_DATA,
                      "the text is not in Unicode normal form C, and whether the tokenizer of %s normalises is not "
                      "known to this version; bring the text to NFC",
                      recipe->file);
    } else if (status == 0 && changed) {
        mapped_edit(t);
        for (size_t i = 0; i < normal.length; i++) mapped_put(t, normal.data + i, 1, sources[i]);
        status = mapped_commit(t, err);
    }
    text_free(&normal);
    mem_free(sources);
    return status;
}

// New text comes from the last character that it replaces, or where it replaces none from the one before: so the
// reference has it, which asks whether a piece comes from the beginning of the text.
static size_t origin(const struct mapped_text *t, size_t end) {
    if (end > 0) end--;
    while (end > 0 && ((uint8_t)t->bytes[end] & 0xC0) == 0x80) end--;
    return end;
}

static int replace(const struct normal_step *s, struct mapped_text *t, struct error *err) {
    const char *end = t->bytes + t->length, *from = t->bytes;
    const char *at = memmem(from, t->length, s->pattern.bytes, s->pattern.length);
    if (!at) return 0;
    mapped_edit(t);
    for (; at; at = memmem(from, (size_t)(end - from), s->pattern.bytes, s->pattern.length)) {
        mapped_keep(t, (size_t)(from - t->bytes), (size_t)(at - t->bytes));
        from = at + s->pattern.length;
        mapped_put(t, s->content.bytes, s->content.length, origin(t, (size_t)(from - t->bytes)));
    }
    mapped_keep(t, (size_t)(from - t->bytes), t->length);
    return mapped_commit(t, err);
}

static int replace_regex(const struct normal_step *s, const struct regex *regex, struct regex_scratch *scratch,
                         struct mapped_text *t, struct error *err) {
    struct regex_walk walk = {0};
    size_t from = 0, begin, end;
    int found;
    mapped_edit(t);
    while ((found = regex_next(regex, scratch, t->bytes, t->length, &walk, &begin, &end, err)) > 0) {
        mapped_keep(t, from, begin);
        mapped_put(t, s->content.bytes, s->content.length, origin(t, end));
        from = end;
    }
    if (found < 0 || !walk.any) return found;
    mapped_keep(t, from, t->length);
    return mapped_commit(t, err);
}

static int prepend(const struct normal_step *s, struct mapped_text *t, struct error *err) {
    if (t->length == 0) return 0;
    mapped_edit(t);
    mapped_put(t, s->content.bytes, s->content.length, 0);
    mapped_keep(t, 0, t->length);
    return mapped_commit(t, err);
}

int normalizer_run(const struct normalizer *n, struct regex_scratch *scratch, struct mapped_text *t,
                   struct error *err) {
    int status = 0;
    for (int i = 0; i < n->recipe->n_normal && status == 0; i++) {
        const struct normal_step *s = &n->recipe->normal[i];
        switch (s->kind) {
        case NORMAL_NFC:
        case NORMAL_NFC_OR_REFUSE: status = compose(n->recipe, s->kind == NORMAL_NFC_OR_REFUSE, t, err); break;
        case NORMAL_PREPEND: status = prepend(s, t, err); break;
        case NORMAL_REPLACE: status = replace(s, t, err); break;
        case NORMAL_REPLACE_REGEX: status = replace_regex(s, n->regexes[i], scratch, t, err); break;
        }
    }
    return status;
}
