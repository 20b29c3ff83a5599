// See lint.h.
#include "data/lint.h"

#include <string.h>

static const struct {
    const char *name, *meaning;
    bool error;
} kinds[LINT_KINDS] = {
    [LINT_NO_TRAINED_TOKEN] = {"no-trained-token", "rows without a trained token", true},
    [LINT_EOT_NEVER_TRAINED] = {"eot-never-trained", "no row trains the end of a turn", true},
    [LINT_DOUBLE_BOS] = {"double-bos", "rows that begin with BOS twice", true},
    [LINT_ID_OUT_OF_RANGE] = {"id-out-of-range", "rows with token ids beyond the vocabulary", true},
    [LINT_TOO_LONG_DROPPED] = {"too-long-dropped", "more than 5 % of the rows are too long and dropped", true},
    [LINT_OVERLAP] = {"train-validation-overlap", "validation rows that are training rows too", true},
    [LINT_SPECIAL_TEXT] = {"special-text-in-content", "rows whose messages hold the text of a control token", false},
    [LINT_TRUNCATED] = {"truncated", "rows cut at sequence_len", false},
    [LINT_DUPLICATE] = {"duplicate-rows", "rows that occur again", false},
    [LINT_EMPTY_ANSWER] = {"empty-answer", "rows with an empty answer", false},
};

const char *lint_kind_name(enum lint_kind kind) {
    return kinds[kind].name;
}
const char *lint_kind_meaning(enum lint_kind kind) {
    return kinds[kind].meaning;
}
bool lint_kind_is_error(enum lint_kind kind) {
    return kinds[kind].error;
}

bool lint_kind_find(const char *name, enum lint_kind *out) {
    for (int k = 0; k < LINT_KINDS; k++) {
        if (strcmp(kinds[k].name, name) != 0) continue;
        *out = (enum lint_kind)k;
        return true;
    }
    return false;
}

int lint_check_names(const char *const *names, size_t n, struct error *err) {
    enum lint_kind kind;
    struct text all = {0};
    for (int k = 0; k < LINT_KINDS; k++) text_printf(&all, "%s%s", k ? ", " : "", kinds[k].name);
    int failed = 0;
    for (size_t i = 0; i < n && !failed; i++) {
        if (!lint_kind_find(names[i], &kind))
            failed = error_set(err, STATUS_CONFIG, "lint_waive: no finding is called '%s'; there are %s", names[i],
                               text_str(&all));
    }
    text_free(&all);
    return failed;
}

static void note(struct lint_report *report, enum lint_kind kind, const struct sample *s) {
    struct lint_finding *f = &report->findings[kind];
    if (f->n_examples < LINT_EXAMPLES) {
        f->lines[f->n_examples] = s->line;
        f->paths[f->n_examples] = s->path;
        f->rows[f->n_examples++] = s->row;
    }
    f->count++;
}

// --- equal rows: an open-addressing table of samples, compared by ids and by what is trained

struct seen {
    const struct sample **slots;
    size_t mask;
};

static uint64_t hash_of(const struct sample *s) {
    uint64_t h = (uint64_t)s->count;
    for (int32_t i = 0; i < s->count; i++) {
        h = (h ^ (uint32_t)s->ids[i]) * 0x9E3779B97F4A7C15u;
        h ^= h >> 29;
    }
    return h;
}

static bool same(const struct sample *a, const struct sample *b) {
    if (a->count != b->count || memcmp(a->ids, b->ids, (size_t)a->count * sizeof *a->ids) != 0) return false;
    for (int32_t i = 0; i < a->count; i++)
        if (token_why_trained((enum token_why)a->why[i]) != token_why_trained((enum token_why)b->why[i])) return false;
    return true;
}

// The slot of an equal row, or the free one where it belongs.
static const struct sample **slot_of(const struct seen *seen, const struct sample *s) {
    size_t i = hash_of(s) & seen->mask;
    while (seen->slots[i] && !same(seen->slots[i], s)) i = (i + 1) & seen->mask;
    return &seen->slots[i];
}

static int seen_open(struct seen *seen, size_t rows, struct error *err) {
    size_t size = 64;
    while (size < 2 * rows) size *= 2;
    seen->slots = mem_zalloc(size, sizeof *seen->slots);
    seen->mask = size - 1;
    return seen->slots ? 0 : error_memory(err, "the lint", size * sizeof *seen->slots);
}

static bool out_of_range(const struct sample *s, uint32_t vocab_size) {
    for (int32_t i = 0; i < s->count; i++)
        if (s->ids[i] < 0 || (uint32_t)s->ids[i] >= vocab_size) return true;
    return false;
}

// Does the row train an end of turn? Of pre-tokenised rows only EOS can be recognised.
static bool trains_end(const struct sample *s, int32_t eos) {
    for (int32_t i = 1; i < s->count; i++)
        if (s->why[i] == WHY_EOT || (s->why[i] == WHY_LABEL && s->ids[i] == eos)) return true;
    return false;
}

static void note_too_long(const struct dataset *d, struct lint_report *report) {
    if (d->dropped[DROP_TOO_LONG] * 20 <= d->count) return;
    for (size_t i = 0; i < d->count; i++)
        if (d->samples[i].dropped == DROP_TOO_LONG) note(report, LINT_TOO_LONG_DROPPED, &d->samples[i]);
}

int lint_dataset(const struct dataset *d, const struct tokenizer *tokenizer, uint32_t vocab_size,
                 struct lint_report *report, struct error *err) {
    struct seen seen;
    if (seen_open(&seen, d->count, err) < 0) return -1;
    int32_t bos = tokenizer ? tokenizer_bos(tokenizer) : -1, eos = tokenizer ? tokenizer_eos(tokenizer) : -1;
    const struct sample *first = NULL;
    bool ends = false, known = false;
    uint64_t in_use = 0;
    for (size_t i = 0; i < d->count; i++) {
        const struct sample *s = &d->samples[i];
        if (s->dropped != DROP_NONE) continue;
        in_use++;
        if (!first) first = s;
        if (s->trained == 0) note(report, LINT_NO_TRAINED_TOKEN, s);
        if (bos >= 0 && s->count > 1 && s->ids[0] == bos && s->ids[1] == bos) note(report, LINT_DOUBLE_BOS, s);
        if (out_of_range(s, vocab_size)) note(report, LINT_ID_OUT_OF_RANGE, s);
        if (s->notes & NOTE_SPECIAL_TEXT) note(report, LINT_SPECIAL_TEXT, s);
        if (s->notes & NOTE_TRUNCATED) note(report, LINT_TRUNCATED, s);
        if (s->notes & NOTE_EMPTY_ANSWER) note(report, LINT_EMPTY_ANSWER, s);
        ends = ends || trains_end(s, eos);
        known = known || s->rendered; // tokens alone may be pieces of text, which have no end of turn
        const struct sample **slot = slot_of(&seen, s);
        if (*slot)
            note(report, LINT_DUPLICATE, s);
        else
            *slot = s;
    }
    mem_free(seen.slots);
    if (first && known && !ends) {
        note(report, LINT_EOT_NEVER_TRAINED, first);
        report->findings[LINT_EOT_NEVER_TRAINED].count += in_use - 1;
    }
    note_too_long(d, report);
    return 0;
}

int lint_overlap(const struct dataset *train, const struct dataset *validation, struct lint_report *report,
                 struct error *err) {
    struct seen seen;
    if (seen_open(&seen, train->count, err) < 0) return -1;
    for (size_t i = 0; i < train->count; i++)
        if (train->samples[i].dropped == DROP_NONE) *slot_of(&seen, &train->samples[i]) = &train->samples[i];
    for (size_t i = 0; i < validation->count; i++) {
        const struct sample *s = &validation->samples[i];
        if (s->dropped == DROP_NONE && *slot_of(&seen, s)) note(report, LINT_OVERLAP, s);
    }
    mem_free(seen.slots);
    note_too_long(validation, report);
    return 0;
}

bool lint_stops(const struct lint_report *report, const char *const *waived, size_t n_waived) {
    for (int k = 0; k < LINT_KINDS; k++) {
        bool stops = kinds[k].error && report->findings[k].count > 0;
        for (size_t i = 0; i < n_waived && stops; i++) stops = strcmp(waived[i], kinds[k].name) != 0;
        if (stops) return true;
    }
    return false;
}
