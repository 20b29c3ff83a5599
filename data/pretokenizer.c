// See pretokenizer.h. Each step makes a new list of words from the one before.
#include "data/pretokenizer.h"

#include <string.h>

struct pretokenizer {
    const struct recipe *recipe;
    struct regex *regexes[RECIPE_STEPS]; // of CUT_REGEX
};

struct pretokenizer *pretokenizer_open(const struct recipe *recipe, struct error *err) {
    struct pretokenizer *p = mem_zalloc(1, sizeof *p);
    if (!p) {
        error_memory(err, "the tokenizer", sizeof *p);
        return NULL;
    }
    p->recipe = recipe;
    for (int i = 0; i < recipe->n_cuts; i++) {
        const struct cut_step *s = &recipe->cuts[i];
        if (s->kind != CUT_REGEX) continue;
        p->regexes[i] = regex_open(s->pattern.bytes, s->pattern.length, recipe->file, err);
        if (p->regexes[i]) continue;
        pretokenizer_close(p);
        return NULL;
    }
    return p;
}

void pretokenizer_close(struct pretokenizer *p) {
    if (!p) return;
    for (int i = 0; i < RECIPE_STEPS; i++) regex_close(p->regexes[i]);
    mem_free(p);
}

int pretokenizer_scratch_open(struct pretokenizer_scratch *scratch) {
    *scratch = (struct pretokenizer_scratch){.regex = regex_scratch_open()};
    return scratch->regex ? 0 : -1;
}

void pretokenizer_scratch_close(struct pretokenizer_scratch *scratch) {
    mem_free(scratch->words.items);
    mem_free(scratch->next.items);
    mem_free(scratch->parts);
    regex_scratch_close(scratch->regex);
    *scratch = (struct pretokenizer_scratch){0};
}

static int push(struct words *words, size_t begin, size_t end, struct error *err) {
    if (begin == end) return 0;
    if (words->count == words->capacity) {
        size_t capacity = words->capacity ? 2 * words->capacity : 256;
        struct word *items = mem_resize(words->items, capacity * sizeof *items);
        if (!items) return error_memory(err, "words", capacity * sizeof *items);
        words->items = items;
        words->capacity = capacity;
    }
    words->items[words->count++] = (struct word){(uint32_t)begin, (uint32_t)end};
    return 0;
}

// --- cutting at a regular expression

struct part {
    uint32_t begin, end;
    bool match;
};

static int add_part(struct pretokenizer_scratch *s, size_t *n, size_t begin, size_t end, bool match,
                    struct error *err) {
    if (*n == s->parts_capacity) {
        size_t capacity = *n ? 2 * *n : 256;
        struct part *parts = mem_resize(s->parts, capacity * sizeof *parts);
        if (!parts) return error_memory(err, "words", capacity * sizeof *parts);
        s->parts = parts;
        s->parts_capacity = capacity;
    }
    s->parts[(*n)++] = (struct part){(uint32_t)begin, (uint32_t)end, match};
    return 0;
}

// The matches of a piece and the gaps between them, from left to right; a match may be empty.
static int find_parts(const struct cut_step *step, const struct regex *regex, struct pretokenizer_scratch *s,
                      const char *text, struct word piece, size_t *n, struct error *err) {
    struct regex_walk walk = {0};
    size_t length = piece.end - piece.begin, from = 0, begin, end;
    int found;
    *n = 0;
    while ((found = regex_next(regex, s->regex, text + piece.begin, length, &walk, &begin, &end, err)) > 0) {
        if (from < begin && add_part(s, n, piece.begin + from, piece.begin + begin, step->invert, err) < 0) return -1;
        if (add_part(s, n, piece.begin + begin, piece.begin + end, !step->invert, err) < 0) return -1;
        from = end;
    }
    if (found < 0) return -1;
    return from < length ? add_part(s, n, piece.begin + from, piece.end, step->invert, err) : 0;
}

// Joins neighbours, as the reference does it. Returns how many parts there are then; *first is where they begin.
static size_t join_parts(enum cut_behaviour behaviour, struct part *parts, size_t n, size_t *first) {
    bool previous = false;
    size_t k = 0;
    *first = 0;
    if (behaviour == CUT_MERGED_WITH_NEXT) { // from the right
        k = n;
        for (size_t i = n; i-- > 0;) {
            bool match = parts[i].match;
            if (match && !previous && k < n)
                parts[k].begin = parts[i].begin;
            else
                parts[--k] = parts[i];
            previous = match;
        }
        *first = k;
        return n - k;
    }
    for (size_t i = 0; i < n; i++) {
        bool match = parts[i].match;
        bool join = behaviour == CUT_CONTIGUOUS ? match == previous : match && !previous;
        if (join && k > 0)
            parts[k - 1].end = parts[i].end;
        else
            parts[k++] = parts[i];
        previous = match;
    }
    return k;
}

static int cut_regex(const struct cut_step *step, const struct regex *regex, struct pretokenizer_scratch *s,
                     const struct mapped_text *t, struct error *err) {
    for (size_t i = 0; i < s->words.count; i++) {
        size_t n, first = 0;
        if (find_parts(step, regex, s, t->bytes, s->words.items[i], &n, err) < 0) return -1;
        if (step->behaviour != CUT_ISOLATED && step->behaviour != CUT_REMOVED)
            n = join_parts(step->behaviour, s->parts, n, &first);
        for (const struct part *p = s->parts + first; n > 0; p++, n--) {
            if (step->behaviour == CUT_REMOVED && p->match) continue;
            if (push(&s->next, p->begin, p->end, err) < 0) return -1;
        }
    }
    return 0;
}

// --- steps that change the text

static bool starts_with(const char *text, struct word w, struct vocab_string mark) {
    return w.end - w.begin >= mark.length && memcmp(text + w.begin, mark.bytes, mark.length) == 0;
}

static int cut_metaspace(const struct cut_step *step, struct pretokenizer_scratch *s, struct mapped_text *t,
                         size_t at_start, struct error *err) {
    struct vocab_string mark = step->mark;
    mapped_edit(t);
    for (size_t i = 0; i < s->words.count; i++) {
        struct word w = s->words.items[i];
        size_t begin = mapped_written(t), from = w.begin;
        bool marked = t->bytes[w.begin] == ' ' || starts_with(t->bytes, w, mark);
        bool first = mapped_source(t, w.begin) < at_start;
        if (!marked && (step->prepend == CUT_PREPEND_ALWAYS || (step->prepend == CUT_PREPEND_FIRST && first)))
            mapped_put(t, mark.bytes, mark.length, w.begin);
        for (size_t at = w.begin; at < w.end; at++) {
            bool space = t->bytes[at] == ' ';
            if (!space && !(step->split && starts_with(t->bytes, (struct word){(uint32_t)at, w.end}, mark))) continue;
            mapped_keep(t, from, at);
            from = at;
            if (step->split && mapped_written(t) > begin) {
                if (push(&s->next, begin, mapped_written(t), err) < 0) return -1;
                begin = mapped_written(t);
            }
            if (!space) continue;
            mapped_put(t, mark.bytes, mark.length, at);
            from = at + 1;
        }
        mapped_keep(t, from, w.end);
        if (push(&s->next, begin, mapped_written(t), err) < 0) return -1;
    }
    return mapped_commit(t, err);
}

static int prefix_space(struct pretokenizer_scratch *s, struct mapped_text *t, struct error *err) {
    mapped_edit(t);
    for (size_t i = 0; i < s->words.count; i++) {
        struct word w = s->words.items[i];
        size_t begin = mapped_written(t);
        if (t->bytes[w.begin] != ' ') mapped_put(t, " ", 1, w.begin);
        mapped_keep(t, w.begin, w.end);
        if (push(&s->next, begin, mapped_written(t), err) < 0) return -1;
    }
    return mapped_commit(t, err);
}

int pretokenizer_run(const struct pretokenizer *p, struct pretokenizer_scratch *s, struct mapped_text *t,
                     size_t at_start, struct error *err) {
    s->words.count = 0;
    int status = push(&s->words, 0, t->length, err);
    for (int i = 0; i < p->recipe->n_cuts && status == 0; i++) {
        const struct cut_step *step = &p->recipe->cuts[i];
        s->next.count = 0;
        switch (step->kind) {
        case CUT_REGEX: status = cut_regex(step, p->regexes[i], s, t, err); break;
        case CUT_METASPACE: status = cut_metaspace(step, s, t, at_start, err); break;
        case CUT_PREFIX_SPACE: status = prefix_space(s, t, err); break;
        }
        struct words old = s->words;
        s->words = s->next;
        s->next = old;
    }
    return status;
}
