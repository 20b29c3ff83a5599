// Rows that are tokens already: {input_ids, labels[, position_ids][, attention_mask]}; label -100 = not trained.
#include "data/row_reader.h"

enum { MASKED = -100 };

static const struct json *list_of(const struct json *row, const char *key, size_t count, struct error *err) {
    const struct json *list = json_get(row, key);
    if (!list || json_type(list) != JSON_ARRAY) {
        error_set(err, STATUS_DATA, "key \"%s\" is %s, expected a list of numbers", key, json_type_name(list));
        return NULL;
    }
    if (json_count(list) == count || count == 0) return list;
    error_set(err, STATUS_DATA, "%s has %zu numbers, expected as many as input_ids (%zu)", key, json_count(list),
              count);
    return NULL;
}

// Numbers in [0, limit), and MASKED where that is allowed.
static int read_numbers(const struct json *list, const char *key, int64_t limit, bool masked, struct ids *out,
                        struct error *err) {
    size_t i = 0;
    out->count = 0;
    for (const struct json *v = json_child(list); v; v = json_next(v), i++) {
        int64_t number;
        if (!json_written_as_integer(v) || !json_int(v, &number))
            return error_set(err, STATUS_DATA, "%s[%zu] is %s, expected a whole number", key, i, json_type_name(v));
        if ((number < 0 || number >= limit) && !(masked && number == MASKED))
            return error_set(err, STATUS_DATA, "%s[%zu] is %lld, expected a number from 0 to %lld%s", key, i,
                             (long long)number, (long long)limit - 1, masked ? " or -100" : "");
        if (ids_push(out, (int32_t)number) < 0) return error_memory(err, "a row", i * sizeof(int32_t));
    }
    return 0;
}

// axolotl writes an attention mask; padding inside a row is not ours to guess about.
static int check_mask(const struct json *row, size_t count, struct error *err) {
    if (!json_get(row, "attention_mask")) return 0;
    const struct json *list = list_of(row, "attention_mask", count, err);
    if (!list) return -1;
    size_t i = 0;
    for (const struct json *v = json_child(list); v; v = json_next(v), i++) {
        int64_t number;
        if (!json_int(v, &number) || number != 1)
            return error_set(err, STATUS_DATA, "attention_mask[%zu] is not 1: leave padding out of the row", i);
    }
    return 0;
}

int row_read_tokens(struct row *row, const struct json *value, struct error *err) {
    const struct json *list = list_of(value, "input_ids", 0, err);
    if (!list) return -1;
    size_t n = json_count(list);
    if (n == 0) return error_set(err, STATUS_DATA, "input_ids is empty");
    int64_t vocab = row->options->vocab_size;
    if (read_numbers(list, "input_ids", vocab, false, &row->ids, err) < 0) return -1;
    list = list_of(value, "labels", n, err);
    if (!list || read_numbers(list, "labels", vocab, true, &row->labels, err) < 0) return -1;
    if (json_get(value, "position_ids")) {
        list = list_of(value, "position_ids", n, err);
        if (!list || read_numbers(list, "position_ids", (int64_t)n, false, &row->positions, err) < 0) return -1;
        row->has_positions = true;
    }
    if (check_mask(value, n, err) < 0 || row_reserve_why(row, err) < 0) return -1;
    for (size_t i = 0; i < n; i++) {
        row->why[i] = row->labels.data[i] == MASKED ? WHY_LABEL_MASKED : WHY_LABEL;
        row->has_labels |= row->labels.data[i] != MASKED && row->labels.data[i] != row->ids.data[i];
    }
    return 0;
}
