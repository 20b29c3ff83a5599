// See report.h. The log is read into columns, columns become charts (report_svg.h), all else is text.
#include "train/report.h"

#include "data/json.h"
#include "train/report_svg.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

// --- The log

enum column { COLUMN_STEP, COLUMN_LOSS, COLUMN_LR, COLUMN_NORM, COLUMN_SPEED, COLUMN_PEAK, COLUMNS };
static const char *const column_key[COLUMNS] = {"step", "loss", "lr", "grad_norm", "tokens_per_second", "peak_bytes"};

struct table { // columns[c][row]; NaN = not there
    double *columns[COLUMNS];
    size_t count, capacity;
};
struct log {
    struct table steps, evaluations; // of the latter only step and loss
};

static void log_free(struct log *log) {
    for (int c = 0; c < COLUMNS; c++) {
        mem_free(log->steps.columns[c]);
        mem_free(log->evaluations.columns[c]);
    }
    *log = (struct log){0};
}

static int table_add(struct table *t, const double row[COLUMNS], struct error *err) {
    // A resumed run writes the steps after its checkpoint again: the later line counts.
    while (t->count > 0 && t->columns[COLUMN_STEP][t->count - 1] >= row[COLUMN_STEP]) t->count--;
    if (t->count == t->capacity) {
        size_t capacity = t->capacity ? 2 * t->capacity : 256;
        for (int c = 0; c < COLUMNS; c++) {
            double *bigger = mem_resize(t->columns[c], capacity * sizeof **t->columns);
            if (!bigger) return error_memory(err, "the log's numbers", capacity * sizeof **t->columns);
            t->columns[c] = bigger;
        }
        t->capacity = capacity;
    }
    for (int c = 0; c < COLUMNS; c++) t->columns[c][t->count] = row[c];
    t->count++;
    return 0;
}

static int read_line(struct log *log, const char *line, size_t length, struct error *err) {
    struct json_document doc;
    struct error reason = {0};
    struct json_options options = {.max_values = 1000};
    if (json_parse(line, length, &options, &doc, &reason)) // the last line may be cut: that is no reason to fail
        return reason.code == STATUS_MEMORY ? error_set(err, reason.code, "%s", reason.text) : 0;
    double row[COLUMNS], loss;
    int status = 0;
    for (int c = 0; c < COLUMNS; c++)
        if (!json_double(json_get(doc.root, column_key[c]), &row[c])) row[c] = NAN;
    if (isfinite(row[COLUMN_STEP]) && json_double(json_get(doc.root, "eval_loss"), &loss)) {
        row[COLUMN_LOSS] = loss;
        status = table_add(&log->evaluations, row, err);
    } else if (isfinite(row[COLUMN_STEP]) && json_get(doc.root, "loss")) {
        status = table_add(&log->steps, row, err);
    }
    json_free(&doc);
    return status;
}

static int log_read(const char *path, struct log *log, struct error *err) {
    *log = (struct log){0};
    struct mapped_file file;
    if (file_map(path, &file, err)) return -1;
    int status = 0;
    const char *at = (const char *)file.data, *end = file.data ? at + file.size : at;
    while (at < end && status == 0) {
        const char *newline = memchr(at, '\n', (size_t)(end - at)), *stop = newline ? newline : end;
        if (stop > at) status = read_line(log, at, (size_t)(stop - at), err);
        at = newline ? newline + 1 : end;
    }
    file_unmap(&file);
    if (status) log_free(log);
    return status;
}

// --- Numbers

enum { FEW_STEPS = 8 }; // nothing to smooth below

// Mean over a window around each step; NaN are passed over. A window that looks both ways does not lag behind a falling
// curve.
static void average(double *out, const double *values, size_t count) {
    size_t half = (size_t)fmin(fmax((double)count / 60, 1), 100), n = 0, begin = 0, end = 0;
    double sum = 0;
    for (size_t i = 0; i < count; i++) {
        for (; end < count && end <= i + half; end++)
            if (isfinite(values[end])) sum += values[end], n++;
        for (; begin + half < i; begin++)
            if (isfinite(values[begin])) sum -= values[begin], n--;
        out[i] = n ? sum / (double)n : NAN;
    }
}

// Two passes, so that a single spike leaves a bump and not a step; about a twentieth of the run wide in all.
static int smooth(double *out, const double *values, size_t count, struct error *err) {
    if (count < FEW_STEPS) {
        if (count) memcpy(out, values, count * sizeof *out);
        return 0;
    }
    double *once = mem_alloc((count + 1) * sizeof *once);
    if (!once) return error_memory(err, "the smoothed loss", (count + 1) * sizeof *once);
    average(once, values, count);
    average(out, once, count);
    mem_free(once);
    return 0;
}

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y ? 1 : 0;
}

static double median(const double *values, size_t count) {
    double *sorted = mem_alloc((count + 1) * sizeof *sorted), result = NAN;
    size_t n = 0;
    for (size_t i = 0; i < count && sorted; i++)
        if (isfinite(values[i])) sorted[n++] = values[i];
    if (n) {
        qsort(sorted, n, sizeof *sorted, compare_doubles);
        result = sorted[n / 2];
    }
    mem_free(sorted);
    return result;
}

static void bytes_for_people(char text[32], double bytes) {
    if (bytes >= 1073741824.0)
        snprintf(text, 32, "%.2f GiB", bytes / 1073741824.0);
    else
        snprintf(text, 32, "%.0f MiB", bytes / 1048576.0);
}

// --- Charts

static void loss_chart(struct text *out, const struct log *log, const double *smoothed, const char *title,
                       bool standalone) {
    const struct table *t = &log->steps, *e = &log->evaluations;
    bool few = t->count < FEW_STEPS;
    struct svg_series series[3] = {
        {.label = few ? "training" : "training, smoothed",
         .class = "s1",
         .x = t->columns[COLUMN_STEP],
         .y = few ? t->columns[COLUMN_LOSS] : smoothed,
         .count = t->count,
         .last_value = true,
         .marks = few},
        {.label = "each step",
         .class = "s1",
         .x = t->columns[COLUMN_STEP],
         .y = t->columns[COLUMN_LOSS],
         .count = few ? 0 : t->count,
         .faint = true},
        {.label = "held out",
         .class = "s2",
         .x = e->columns[COLUMN_STEP],
         .y = e->columns[COLUMN_LOSS],
         .count = e->count,
         .marks = true,
         .last_value = true},
    };
    svg_chart_write(out, &(struct svg_chart){.title = title,
                                             .x_label = "step",
                                             .width = standalone ? 800 : 1000,
                                             .height = standalone ? 380 : 330,
                                             .standalone = standalone,
                                             .series = series,
                                             .n_series = COUNT_OF(series)});
}

static void small_chart(struct text *out, const struct log *log, enum column column, const char *title,
                        const char *class) {
    const struct table *t = &log->steps;
    struct svg_series series[2] = {
        {.class = class, .x = t->columns[COLUMN_STEP], .y = t->columns[column], .count = t->count}};
    size_t n = 1;
    double *smoothed = column == COLUMN_LR || t->count < FEW_STEPS ? NULL : mem_alloc(t->count * sizeof *smoothed);
    if (smoothed && smooth(smoothed, t->columns[column], t->count, NULL) == 0) { // without memory: the raw curve alone
        series[1] = series[0];
        series[0].faint = true;
        series[1].y = smoothed;
        n = 2;
    }
    text_printf(out, "<section class=\"card\"><h2>%s</h2>\n", title);
    svg_chart_write(out, &(struct svg_chart){.title = title,
                                             .x_label = "step",
                                             .width = 320,
                                             .height = 200,
                                             .from_zero = true,
                                             .series = series,
                                             .n_series = n});
    text_add(out, "</section>\n");
    mem_free(smoothed);
}

// --- The page

static const char page_style[] =
    "*{box-sizing:border-box}"
    "body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,"
    "'Helvetica Neue',Arial,sans-serif;-webkit-text-size-adjust:100%}"
    "main{max-width:1080px;margin:0 auto;padding:40px 20px 56px}"
    "header p{margin:0;color:var(--soft);font-size:13px;letter-spacing:.02em}"
    "h1{margin:2px 0 24px;font-size:28px;line-height:1.2;font-weight:650;letter-spacing:-.015em;overflow-wrap:anywhere}"
    "h2{margin:0 0 12px;font-size:15px;font-weight:600}"
    ".card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:18px 20px;margin-bottom:16px;"
    "min-width:0}"
    ".grid{display:grid;gap:16px;margin-bottom:16px}.grid .card{margin:0}"
    ".two{grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr))}"
    ".three{grid-template-columns:repeat(auto-fit,minmax(min(100%,280px),1fr))}"
    ".tiles{grid-template-columns:repeat(auto-fit,minmax(150px,1fr))}"
    ".tile{padding:14px 18px}.tile "
    "b{display:block;font-size:24px;line-height:1.25;font-weight:620;letter-spacing:-.01em;"
    "font-variant-numeric:tabular-nums}.tile span{color:var(--soft);font-size:13px}"
    ".wide{overflow-x:auto}.wide>svg{min-width:640px}.memory th{white-space:nowrap}"
    "svg{display:block;width:100%;height:auto}svg svg{display:inline}"
    "table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}"
    "th,td{text-align:left;padding:7px 0;border-top:1px solid var(--line);vertical-align:top;font-weight:400;"
    "overflow-wrap:anywhere}"
    "tr:first-child>*{border-top:0}thead th{color:var(--soft);font-size:13px;padding-top:0}tbody tr:first-child>*{"
    "border-top:1px solid var(--line)}table:not(:has(thead)) tr:first-child>*{border-top:0}"
    "th+td,th+th,td+td{padding-left:20px}td.n,th.n{text-align:right;white-space:nowrap}td.n.after{font-weight:620}"
    ".facts th{color:var(--soft);width:32%}"
    ".bar{height:8px;border-radius:4px;background:var(--c1);opacity:.75;min-width:3px}td.bars{width:42%;vertical-align:"
    "middle}"
    ".sample{border-top:1px solid var(--line);padding:16px 0}.sample:first-of-type{border-top:0;padding-top:0}"
    ".sample:last-child{padding-bottom:0}"
    ".answers{display:grid;gap:12px;grid-template-columns:repeat(auto-fit,minmax(min(100%,270px),1fr));margin-top:12px}"
    ".label{display:flex;gap:8px;align-items:center;color:var(--soft);font-size:13px;margin-bottom:4px;min-height:22px}"
    ".badge{font-size:12px;font-weight:600;border-radius:20px;padding:1px 9px}"
    ".right{color:var(--good);background:var(--good-bg)}.wrong{color:var(--bad);background:var(--bad-bg)}"
    "pre{margin:0;font:12.5px/1.55 ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;"
    "white-space:pre-wrap;overflow-wrap:anywhere;background:var(--page);border:1px solid var(--line);border-radius:6px;"
    "padding:9px 11px;max-height:340px;overflow:auto}"
    "mark{background:var(--mark);color:inherit;border-radius:2px}"
    ".empty{color:var(--soft)}"
    "footer{color:var(--soft);font-size:13px;margin-top:24px}"
    "@media print{body{background:#fff}.card{break-inside:avoid}}";

static void add_head(struct text *out, const char *title) {
    text_add(out,
             "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
             // Nothing may be fetched or run, whatever the data say.
             "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
             "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
             "<meta name=\"color-scheme\" content=\"light dark\">\n<title>");
    svg_escape(out, title);
    text_printf(
        out, "</title>\n<style>\n:root{%s}\n@media(prefers-color-scheme:dark){:root{%s}}\n%s\n%s\n</style>\n</head>\n",
        svg_colors_light, svg_colors_dark, page_style, svg_style);
    text_add(out, "<body>\n<main>\n<header><p>graft run report</p><h1>");
    svg_escape(out, title);
    text_add(out, "</h1></header>\n");
}

// 1234567 -> "1,234,567"
static void grouped(char text[32], double value) {
    char digits[24];
    if (!(value >= 0 && value < 1e15)) {
        svg_number(text, value);
        return;
    }
    int n = snprintf(digits, sizeof digits, "%.0f", value), at = 0;
    for (int i = 0; i < n; i++) {
        if (i > 0 && (n - i) % 3 == 0) text[at++] = ',';
        text[at++] = digits[i];
    }
    text[at] = 0;
}

static void add_tile(struct text *out, const char *value, const char *what) {
    text_printf(out, "<div class=\"card tile\"><b>%s</b><span>%s</span></div>\n", value, what);
}

static void add_tiles(struct text *out, const struct log *log, const double *smoothed) {
    const struct table *t = &log->steps, *e = &log->evaluations;
    char value[32], other[32], what[80];
    if (t->count == 0) return;
    text_add(out, "<div class=\"grid tiles\">\n");
    svg_number(value, smoothed[t->count - 1]);
    svg_number(other, t->columns[COLUMN_LOSS][0]);
    snprintf(what, sizeof what, "training loss, from %s", other);
    add_tile(out, value, what);
    if (e->count) {
        size_t best = 0;
        for (size_t i = 1; i < e->count; i++)
            if (e->columns[COLUMN_LOSS][i] < e->columns[COLUMN_LOSS][best]) best = i;
        svg_number(value, e->columns[COLUMN_LOSS][best]);
        add_tile(out, value, "best held-out loss");
    }
    grouped(value, t->columns[COLUMN_STEP][t->count - 1]);
    add_tile(out, value, "steps");
    double speed = median(t->columns[COLUMN_SPEED], t->count), peak = 0;
    if (isfinite(speed)) {
        if (speed >= 1000)
            grouped(value, speed);
        else
            svg_number(value, speed);
        add_tile(out, value, "tokens per second");
    }
    for (size_t i = 0; i < t->count; i++) peak = fmax(peak, t->columns[COLUMN_PEAK][i]); // fmax passes NaN over
    if (peak > 0) {
        bytes_for_people(value, peak);
        add_tile(out, value, "peak memory");
    }
    text_add(out, "</div>\n");
}

// "exact match before" and "exact match after" share a row.
static size_t stem_length(const char *key, const char *ending) {
    size_t length = strlen(key), n = strlen(ending);
    return length > n && strcmp(key + length - n, ending) == 0 ? length - n : 0;
}

static const struct card_pair *find_after(const struct report *report, size_t before) {
    size_t n = stem_length(report->results[before].key, " before");
    for (int i = 0; i < report->n_results && n; i++) {
        const char *key = report->results[i].key;
        if (stem_length(key, " after") == n && memcmp(key, report->results[before].key, n) == 0)
            return &report->results[i];
    }
    return NULL;
}

static bool is_after_of_another(const struct report *report, int index) {
    for (int i = 0; i < report->n_results; i++)
        if (find_after(report, (size_t)i) == &report->results[index]) return true;
    return false;
}

static void add_cell(struct text *out, const char *tag, const char *attributes, const char *value) {
    text_printf(out, "<%s%s>", tag, attributes);
    svg_escape(out, value);
    text_printf(out, "</%s>", tag);
}

static void add_results(struct text *out, const struct report *report) {
    if (report->n_results == 0) return;
    bool pairs = false;
    for (int i = 0; i < report->n_results; i++) pairs |= find_after(report, (size_t)i) != NULL;
    text_add(out, "<section class=\"card\"><h2>Results</h2>\n<table>");
    if (pairs)
        text_add(out, "<thead><tr><th></th><th class=\"n\">before</th><th class=\"n\">after</th></tr></thead>\n");
    text_add(out, "<tbody>");
    for (int i = 0; i < report->n_results; i++) {
        const struct card_pair *after = find_after(report, (size_t)i), *p = &report->results[i];
        if (is_after_of_another(report, i)) continue;
        text_add(out, "<tr>");
        if (after) {
            char *stem = mem_strndup(p->key, stem_length(p->key, " before"));
            add_cell(out, "th", "", stem ? stem : p->key);
            mem_free(stem);
            add_cell(out, "td", " class=\"n\"", p->value);
            add_cell(out, "td", " class=\"n after\"", after->value);
        } else {
            add_cell(out, "th", "", p->key);
            if (pairs) text_add(out, "<td></td>");
            add_cell(out, "td", " class=\"n\"", p->value);
        }
        text_add(out, "</tr>\n");
    }
    text_add(out, "</tbody></table></section>\n");
}

// "12.3 MiB" in bytes, 0 when it is something else.
static double parse_bytes(const char *text) {
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    char *end;
    double value = strtod(text, &end);
    while (*end == ' ') end++;
    for (size_t u = 0; u < COUNT_OF(units); u++)
        if (strcmp(end, units[u]) == 0 && value > 0 && isfinite(value)) return value * pow(1024, (double)u);
    return 0;
}

static void add_memory(struct text *out, const struct report *report) {
    if (report->n_memory == 0) return;
    double most = 0;
    for (int i = 0; i < report->n_memory; i++) most = fmax(most, parse_bytes(report->memory[i].value));
    text_add(out, "<section class=\"card\"><h2>Memory</h2>\n<table class=\"memory\"><tbody>");
    for (int i = 0; i < report->n_memory; i++) {
        double bytes = parse_bytes(report->memory[i].value);
        text_add(out, "<tr><th>");
        svg_escape(out, report->memory[i].key);
        text_add(out, "</th><td class=\"bars\">");
        if (bytes > 0) text_printf(out, "<div class=\"bar\" style=\"width:%.1f%%\"></div>", 100 * bytes / most);
        text_add(out, "</td>");
        add_cell(out, "td", " class=\"n\"", report->memory[i].value);
        text_add(out, "</tr>\n");
    }
    text_add(out, "</tbody></table></section>\n");
}

static void add_facts(struct text *out, const struct report *report) {
    if (report->n_facts == 0) return;
    text_add(out, "<section class=\"card\"><h2>Run</h2>\n<table class=\"facts\"><tbody>");
    for (int i = 0; i < report->n_facts; i++) {
        text_add(out, "<tr>");
        add_cell(out, "th", "", report->facts[i].key);
        add_cell(out, "td", "", report->facts[i].value);
        text_add(out, "</tr>\n");
    }
    text_add(out, "</tbody></table></section>\n");
}

// --- Sample answers

static void trim(const char **text, size_t *length) {
    while (*length && strchr(" \t\r\n", **text)) ++*text, --*length;
    while (*length && strchr(" \t\r\n", (*text)[*length - 1])) --*length;
}

enum verdict { VERDICT_WRONG, VERDICT_EXACT, VERDICT_SAME_JSON };

static enum verdict judge(const char *answer, const char *expected) {
    size_t a = strlen(answer), e = strlen(expected);
    trim(&answer, &a);
    trim(&expected, &e);
    if (a == e && memcmp(answer, expected, a) == 0) return VERDICT_EXACT;
    struct json_document x, y;
    bool same = false;
    if (json_parse(answer, a, NULL, &x, NULL)) return VERDICT_WRONG;
    if (json_parse(expected, e, NULL, &y, NULL) == 0) {
        same = json_equal(x.root, y.root);
        json_free(&y);
    }
    json_free(&x);
    return same ? VERDICT_SAME_JSON : VERDICT_WRONG;
}

static void add_part(struct text *out, const char *text, size_t length) {
    char *part = mem_strndup(text, length);
    if (part)
        svg_escape(out, part);
    else
        out->failed = true;
    mem_free(part);
}

static bool within_character(const char *text, size_t at) {
    return ((unsigned char)text[at] & 0xC0) == 0x80;
}

// Marks what differs from `expected` between the first and the last difference.
static void add_difference(struct text *out, const char *answer, const char *expected) {
    size_t a = strlen(answer), e = strlen(expected), begin = 0, end = 0;
    while (begin < a && begin < e && answer[begin] == expected[begin]) begin++;
    while (begin && within_character(answer, begin)) begin--;
    while (end < a - begin && end < e - begin && answer[a - 1 - end] == expected[e - 1 - end]) end++;
    while (end && within_character(answer, a - end)) end--;
    add_part(out, answer, begin);
    if (a - end > begin) text_add(out, "<mark>");
    add_part(out, answer + begin, a - end - begin);
    if (a - end > begin) text_add(out, "</mark>");
    add_part(out, answer + a - end, end);
}

// `expected` NULL: nothing to compare with.
static void add_answer(struct text *out, const char *label, const char *answer, const char *expected) {
    static const char *const badges[] = {[VERDICT_WRONG] = "wrong\">\xE2\x9C\x97 wrong",
                                         [VERDICT_EXACT] = "right\">\xE2\x9C\x93 right",
                                         [VERDICT_SAME_JSON] = "right\">\xE2\x9C\x93 same JSON"};
    enum verdict verdict = expected ? judge(answer, expected) : VERDICT_EXACT;
    text_printf(out, "<div><div class=\"label\">%s", label);
    if (expected) text_printf(out, "<span class=\"badge %s</span>", badges[verdict]);
    text_add(out, "</div><pre>");
    if (verdict == VERDICT_WRONG)
        add_difference(out, answer, expected);
    else
        svg_escape(out, answer);
    if (!*answer) text_add(out, "<span class=\"empty\">(empty)</span>");
    text_add(out, "</pre></div>\n");
}

static void add_samples(struct text *out, const struct report *report) {
    if (report->n_samples == 0) return;
    text_add(out, "<section class=\"card\"><h2>Sample answers</h2>\n");
    for (int i = 0; i < report->n_samples; i++) {
        const struct card_sample *s = &report->samples[i];
        text_add(out, "<div class=\"sample\"><div class=\"label\">Prompt</div><pre>");
        svg_escape(out, s->prompt ? s->prompt : "");
        text_add(out, "</pre>\n<div class=\"answers\">\n");
        if (s->expected) add_answer(out, "Expected", s->expected, NULL);
        if (s->before) add_answer(out, "Before", s->before, s->expected);
        if (s->after) add_answer(out, "After", s->after, s->expected);
        text_add(out, "</div></div>\n");
    }
    text_add(out, "</section>\n");
}

static void add_page(struct text *out, const struct report *report, const struct log *log, const double *smoothed) {
    add_head(out, report->title);
    add_tiles(out, log, smoothed);
    text_add(out, "<section class=\"card\"><h2>Loss</h2>\n<div class=\"wide\">");
    loss_chart(out, log, smoothed, "Loss by step", false);
    text_add(out, "</div></section>\n");
    if (report->n_results || report->n_memory) {
        text_add(out, "<div class=\"grid two\">\n");
        add_results(out, report);
        add_memory(out, report);
        text_add(out, "</div>\n");
    }
    text_add(out, "<div class=\"grid three\">\n");
    small_chart(out, log, COLUMN_LR, "Learning rate", "s1");
    small_chart(out, log, COLUMN_NORM, "Gradient norm", "s3");
    small_chart(out, log, COLUMN_SPEED, "Tokens per second", "s2");
    text_add(out, "</div>\n");
    add_samples(out, report);
    add_facts(out, report);
    text_add(out, "</main>\n</body>\n</html>\n");
}

// The log and its smoothed loss.
static int open_log(const char *path, struct log *log, double **smoothed, struct error *err) {
    if (log_read(path, log, err)) return -1;
    *smoothed = mem_alloc((log->steps.count + 1) * sizeof **smoothed);
    int status = *smoothed ? smooth(*smoothed, log->steps.columns[COLUMN_LOSS], log->steps.count, err)
                           : error_memory(err, "the smoothed loss", (log->steps.count + 1) * sizeof **smoothed);
    if (status == 0) return 0;
    mem_free(*smoothed);
    log_free(log);
    return -1;
}

static int write_text(const char *path, struct text *text, struct error *err) {
    int status =
        text_failed(text) ? error_memory(err, path, text->length) : file_replace(path, text->data, text->length, err);
    text_free(text);
    return status;
}

int report_write(const char *path, const struct report *report, struct error *err) {
    struct log log;
    double *smoothed;
    struct text page = {0};
    if (open_log(report->log_path, &log, &smoothed, err)) return -1;
    add_page(&page, report, &log, smoothed);
    mem_free(smoothed);
    log_free(&log);
    return write_text(path, &page, err);
}

int report_curve(const char *path, const char *log_path, const char *title, struct error *err) {
    struct log log;
    double *smoothed;
    struct text picture = {0};
    if (open_log(log_path, &log, &smoothed, err)) return -1;
    loss_chart(&picture, &log, smoothed, title, true);
    mem_free(smoothed);
    log_free(&log);
    return write_text(path, &picture, err);
}
