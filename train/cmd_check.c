// graft check: what is trained, token by token, and what is suspicious about the data.
#include "data/json.h"
#include "data/lint.h"
#include "train/command.h"
#include "train/session.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct check {
    const struct run_config *config;
    struct session session;
    struct dataset data, test;
    struct lint_report lint;
};

static int open_all(struct check *c, struct error *err) {
    const struct run_config *config = c->config;
    struct session_options options = {
        .base = base_source_of(config), .dtype = DTYPE_F32, .threads = 1, .no_weights = true};
    if (lint_check_names(config->lint_waive.items, config->lint_waive.count, err)) return -1;
    if (session_open(&options, &c->session, err)) return -1;
    if (session_read_data(&c->session, config, &config->datasets, config->sequence_len, &c->data, err)) return -1;
    if (config->test_datasets.count &&
        session_read_data(&c->session, config, &config->test_datasets, config->eval_sequence_len, &c->test, err)) {
        return -1;
    }
    if (config->val_set_size > 0 && dataset_split(&c->data, config->val_set_size, config->seed, &c->test, err))
        return -1;
    if (lint_dataset(&c->data, c->session.tokenizer, (uint32_t)c->session.model.arch.vocab, &c->lint, err)) return -1;
    return c->test.count ? lint_overlap(&c->data, &c->test, &c->lint, err) : 0;
}

static void row_json(struct json_writer *w, const struct sample *s) {
    json_begin_object(w);
    json_put_key(w, "row");
    json_put_int(w, s->row);
    json_put_key(w, "text");
    if (s->rendered)
        json_put_string(w, s->rendered);
    else
        json_put_null(w);
    json_put_key(w, "ids");
    if (s->dropped)
        json_put_null(w);
    else {
        json_begin_array(w);
        for (int32_t i = 0; i < s->count; i++) json_put_int(w, s->ids[i]);
        json_end_array(w);
    }
    json_put_key(w, "trained");
    if (s->dropped)
        json_put_null(w);
    else {
        json_begin_array(w);
        for (int32_t i = 0; i < s->count; i++) json_put_int(w, token_why_trained(s->why[i]));
        json_end_array(w);
    }
    json_put_key(w, "dropped");
    if (s->dropped)
        json_put_string(w, drop_reason_name(s->dropped));
    else
        json_put_null(w);
    json_end_object(w);
    text_char(w->out, '\n');
}

// One token a line: id, trained or not, why, text; colours in a terminal.
static int row_text(const struct check *c, const struct sample *s, bool colour, struct text *out, struct error *err) {
    text_printf(out, "row %u (%s:%u): %d tokens, %d trained%s%s\n", s->row, s->path, s->line, s->count, s->trained,
                s->dropped ? ", dropped: " : "", s->dropped ? drop_reason_name(s->dropped) : "");
    for (int32_t i = 0; i < s->count && !s->dropped; i++) {
        struct text piece = {0};
        bool trained = token_why_trained(s->why[i]);
        const struct tokenizer *tokenizer = c->session.tokenizer; // without one a row is shown as ids
        if (tokenizer && tokenizer_decode(tokenizer, &s->ids[i], 1, false, &piece, err)) {
            text_free(&piece);
            return -1;
        }
        const char *on = !colour                                                   ? ""
                         : trained                                                 ? "\033[32m"
                         : tokenizer && tokenizer_is_control(tokenizer, s->ids[i]) ? "\033[36m"
                                                                                   : "\033[2m";
        text_printf(out, "  %7d  %s%s%s  %-16s ", s->ids[i], on, trained ? "train" : "  -  ", colour ? "\033[0m" : "",
                    token_why_name(s->why[i]));
        struct json_writer w = {.out = out, .style = JSON_SPACED};
        text_add(out, on);
        if (tokenizer) json_put_bytes(&w, text_str(&piece), piece.length);
        text_add(out, colour ? "\033[0m\n" : "\n");
        text_free(&piece);
    }
    text_char(out, '\n');
    return 0;
}

// Rows by length: twelve bins up to the longest row.
static void histogram(const struct dataset *d, struct text *out) {
    enum { BINS = 12, WIDTH = 50 };
    uint64_t bins[BINS] = {0}, most = 1;
    int32_t size = d->longest / BINS + 1;
    for (size_t i = 0; i < d->count; i++) {
        if (!d->samples[i].dropped) bins[d->samples[i].count / size]++;
    }
    for (int b = 0; b < BINS; b++) most = bins[b] > most ? bins[b] : most;
    text_add(out, "tokens per row\n");
    for (int b = 0; b < BINS; b++) {
        text_printf(out, "  %6d - %-6d %6llu  ", b * size, (b + 1) * size - 1, (unsigned long long)bins[b]);
        for (uint64_t k = 0; k < bins[b] * WIDTH / most; k++) text_char(out, '#');
        text_char(out, '\n');
    }
}

static void summary(const struct check *c, const struct dataset *d, const char *name, struct text *out) {
    text_printf(out, "%s: ", name);
    dataset_ledger(d, out);
    text_printf(out, "; %llu tokens, %llu trained (%.1f %%), longest row %d of %lld\n", (unsigned long long)d->tokens,
                (unsigned long long)d->trained_tokens,
                d->tokens ? 100.0 * (double)d->trained_tokens / (double)d->tokens : 0, d->longest,
                (long long)c->config->sequence_len);
}

static void findings(const struct check *c, struct text *out) {
    bool any = false;
    for (int i = 0; i < LINT_KINDS; i++) {
        const struct lint_finding *f = &c->lint.findings[i];
        if (!f->count) continue;
        any = true;
        bool waived = false;
        for (size_t k = 0; k < c->config->lint_waive.count; k++)
            waived |= strcmp(c->config->lint_waive.items[k], lint_kind_name(i)) == 0;
        text_printf(out, "%s %s: %s: %llu rows,",
                    waived                  ? "waived "
                    : lint_kind_is_error(i) ? "ERROR  "
                                            : "warning",
                    lint_kind_name(i), lint_kind_meaning(i), (unsigned long long)f->count);
        for (int k = 0; k < f->n_examples; k++) text_printf(out, "%s%s:%u", k ? ", " : " ", f->paths[k], f->lines[k]);
        text_add(out, f->count > (uint64_t)f->n_examples ? ", ...\n" : "\n");
    }
    if (!any) text_add(out, "lint: nothing suspicious\n");
}

static int show(const struct check *c, const struct option *options, struct text *out, struct error *err) {
    double row = -1;
    if (option_number(options, "--row", 0, 4e9, &row, err)) return -1;
    bool found = row < 0, colour = isatty(STDOUT_FILENO);
    if (option_flag(options, "--json")) {
        struct json_writer w = {.out = out, .style = JSON_COMPACT};
        for (size_t i = 0; i < c->data.count; i++) {
            if (row >= 0 && c->data.samples[i].row != (uint32_t)row) continue;
            row_json(&w, &c->data.samples[i]);
            found = true;
        }
    } else {
        int shown = 0;
        for (size_t i = 0; i < c->data.count; i++) {
            const struct sample *s = &c->data.samples[i];
            if (row >= 0 ? s->row != (uint32_t)row : shown >= 3 || s->dropped) continue;
            if (row_text(c, s, colour, out, err)) return -1;
            found = true;
            shown++;
        }
        histogram(&c->data, out);
        summary(c, &c->data, "training", out);
        if (c->test.count) summary(c, &c->test, "held out", out);
        findings(c, out);
    }
    return found ? 0 : error_set(err, STATUS_USAGE, "--row %.0f: the data has rows 0 to %zu", row, c->data.count - 1);
}

int command_check(int argc, char **argv, struct error *err) {
    struct option options[] = {{.name = "--row", .takes_value = true}, {.name = "--json"}};
    struct run_config config = {0};
    if (options_parse(&argc, argv, options, COUNT_OF(options), err) || config_from_arguments(argc, argv, &config, err))
        return -1;
    struct check c = {.config = &config};
    struct text out = {0};
    int failed = open_all(&c, err) || show(&c, options, &out, err);
    if (!failed) failed = print_result(&out, err);
    if (!failed && lint_stops(&c.lint, config.lint_waive.items, config.lint_waive.count)) {
        failed = error_set(err, STATUS_DATA, "lint errors in the data; mend them, or name what may pass in lint_waive");
    }
    text_free(&out);
    dataset_free(&c.data);
    dataset_free(&c.test);
    session_close(&c.session);
    config_free(&config);
    return failed ? -1 : 0;
}
