// See keys.h: the table as a whole, and looking into it.
#include "configs/key_rows.h"

#include <stdio.h>
#include <string.h>

// The counts are constants of other files, so the sections are reached through pointers to them.
const struct key_section key_table[] = {
    {"Base model and tokenizer", SCOPE_RUN, keys_base, &keys_base_count},
    {"Precision and quantisation of the base", SCOPE_RUN, keys_precision, &keys_precision_count},
    {"Adapter", SCOPE_RUN, keys_adapter, &keys_adapter_count},
    {"Data", SCOPE_RUN, keys_data, &keys_data_count},
    {"One entry of datasets or test_datasets", SCOPE_DATASET, keys_dataset, &keys_dataset_count},
    {"Sequences and packing", SCOPE_RUN, keys_sequence, &keys_sequence_count},
    {"Optimisation", SCOPE_RUN, keys_optimisation, &keys_optimisation_count},
    {"Evaluation, checkpoints, log", SCOPE_RUN, keys_schedule, &keys_schedule_count},
    {"Several GPUs", SCOPE_RUN, keys_ranks, &keys_ranks_count},
    {"Preference and reinforcement learning", SCOPE_RUN, keys_preference, &keys_preference_count},
    {"Machine, and keys of our own", SCOPE_RUN, keys_ours, &keys_ours_count},
    {"Keys of the torch stack", SCOPE_RUN, keys_torch, &keys_torch_count},
};
const size_t key_table_count = COUNT_OF(key_table);

const char *key_status_name(enum key_status status) {
    static const char *const names[KEY_STATUS_COUNT] = {"works", "not yet", "no effect", "refused"};
    return names[status];
}

const char *key_type_name(enum key_type type) {
    static const char *const names[KEY_TYPE_COUNT] = {"bool",
                                                      "int",
                                                      "float",
                                                      "int or fraction",
                                                      "string",
                                                      "choice",
                                                      "list of strings",
                                                      "list of ints",
                                                      "string or list",
                                                      "string or list",
                                                      "map of ints",
                                                      "map of lists",
                                                      "list of maps",
                                                      "map",
                                                      "map",
                                                      "any"};
    return names[type];
}

bool key_list_holds(const char *list, char separator, const char *word) {
    size_t length = strlen(word);
    while (list && *list) {
        const char *end = strchr(list, separator);
        size_t n = end ? (size_t)(end - list) : strlen(list);
        if (n == length && memcmp(list, word, n) == 0) return true;
        list = end ? end + 1 : NULL;
    }
    return false;
}

const struct config_key *key_find(enum key_scope scope, const char *name) {
    for (size_t s = 0; s < key_table_count; s++) {
        if (key_table[s].scope != scope) continue;
        for (size_t i = 0; i < *key_table[s].count; i++) {
            const struct config_key *key = &key_table[s].rows[i];
            // the first letter saves most of the calls
            if (key->name[0] == name[0] && strcmp(key->name, name) == 0) return key;
            if (key->aliases && key_list_holds(key->aliases, ' ', name)) return key;
        }
    }
    return NULL;
}

enum { LONGEST_WORD = 64 };

// Edit distance with swaps of neighbours, of at most LONGEST_WORD letters each; some number >= limit once it is clear
// that it will not be smaller.
static int distance(const char *a, size_t na, const char *b, size_t nb, int limit) {
    if (na > LONGEST_WORD || nb > LONGEST_WORD) return limit;
    int rows[3][LONGEST_WORD + 1]; // the row before last, the last one, this one
    int *before = rows[0], *last = rows[1], *now = rows[2];
    int least_before = 0; // smallest of the row before: a swap reaches over one row
    for (size_t j = 0; j <= nb; j++) last[j] = (int)j;
    for (size_t i = 1; i <= na; i++) {
        int least = (int)i;
        now[0] = (int)i;
        for (size_t j = 1; j <= nb; j++) {
            int best = last[j - 1] + (a[i - 1] != b[j - 1]);
            if (last[j] + 1 < best) best = last[j] + 1;
            if (now[j - 1] + 1 < best) best = now[j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && before[j - 2] + 1 < best)
                best = before[j - 2] + 1;
            now[j] = best;
            if (best < least) least = best;
        }
        if (least >= limit && least_before >= limit) return limit;
        least_before = least;
        int *free_row = before;
        before = last;
        last = now;
        now = free_row;
    }
    return last[nb];
}

struct nearest {
    const char *word;
    const char *best;
    int distance;
    const char *longer; // the shortest candidate that begins with the word: second choice
};

static void consider(struct nearest *n, const char *candidate) {
    size_t a = strlen(n->word), b = strlen(candidate);
    if (a >= 4 && strncmp(candidate, n->word, a) == 0 && (!n->longer || b < strlen(n->longer))) n->longer = candidate;
    if ((a > b ? a - b : b - a) >= (size_t)n->distance) return; // that many letters are missing at least
    int d = distance(n->word, a, candidate, b, n->distance);
    if (d < n->distance) {
        n->distance = d;
        n->best = candidate;
    }
}

// A third of the letters may be wrong; two in words of up to eight, one in the shortest.
static struct nearest nearest_to(const char *word) {
    int length = (int)strnlen(word, LONGEST_WORD + 1);
    int most = length <= 3 ? 1 : length <= 8 ? 2 : length / 3;
    return (struct nearest){word, NULL, most + 1, NULL};
}

static size_t group_length(const char *name) {
    const char *dot = strrchr(name, '.');
    return dot ? (size_t)(dot - name) + 1 : 0;
}

const char *key_nearest(enum key_scope scope, const char *name) {
    size_t group = group_length(name);
    struct nearest n = nearest_to(name + group);
    for (size_t s = 0; s < key_table_count; s++) {
        if (key_table[s].scope != scope) continue;
        for (size_t i = 0; i < *key_table[s].count; i++) {
            const char *candidate = key_table[s].rows[i].name;
            if (group_length(candidate) == group && memcmp(candidate, name, group) == 0)
                consider(&n, candidate + group);
        }
    }
    return n.best ? n.best : n.longer;
}

const char *key_nearest_choice(const struct config_key *key, const char *name) {
    struct nearest n = nearest_to(name);
    for (const struct key_choice *c = key->choices; c && c->name; c++)
        if (c->status == KEY_WORKS && *c->name) consider(&n, c->name);
    return n.best ? n.best : n.longer;
}

const struct key_choice *key_find_choice(const struct config_key *key, const char *name) {
    for (const struct key_choice *c = key->choices; c && c->name; c++)
        if (strcmp(c->name, name) == 0) return c;
    return NULL;
}

void key_write_range(const struct config_key *key, struct text *out) {
    if (key->type != KEY_INT && key->type != KEY_FLOAT && key->type != KEY_STEPS && key->type != KEY_INTS &&
        key->type != KEY_PATTERNS)
        return;
    if (key->status != KEY_WORKS) return;
    if (key->low == ABOVE_ZERO)
        text_add(out, "above 0");
    else
        text_printf(out, "from %.16g", key->low);
    if (key->high == BELOW_ONE)
        text_add(out, " to below 1");
    else
        text_printf(out, " to %.16g", key->high);
}

void key_write_choices(const struct config_key *key, enum key_status status, struct text *out) {
    bool first = true;
    for (const struct key_choice *c = key->choices; c && c->name; c++) {
        if (c->status != status) continue;
        if (!first) text_add(out, ", ");
        text_add(out, *c->name ? c->name : "\"\"");
        first = false;
    }
}
