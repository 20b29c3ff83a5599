// See report_svg.h.
#include "train/report_svg.h"

#include "data/utf8.h"
#include "kernels/base.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char svg_colors_light[] =
    "--page:#f6f7f9;--card:#ffffff;--ink:#1b2330;--soft:#667085;--line:#e3e7ee;--c1:#2563eb;"
    "--c2:#c2610c;--c3:#0f766e;--good:#0b7a4b;--good-bg:#e3f5ec;--bad:#b42318;"
    "--bad-bg:#fdeceA;--mark:#fde3a7;";
const char svg_colors_dark[] = "--page:#0e1217;--card:#161b22;--ink:#e5e9f0;--soft:#8d98a8;--line:#2a313c;--c1:#6ea8fe;"
                               "--c2:#f2a65a;--c3:#4fd1c5;--good:#4cc38a;--good-bg:#12301f;--bad:#ff8a7a;"
                               "--bad-bg:#3a1a17;--mark:#5c4718;";
const char svg_style[] =
    "svg text{font:11px system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif;fill:var(--soft)}"
    "svg .title{font-size:14px;font-weight:600;fill:var(--ink)}"
    "svg .value{font-weight:600}"
    "svg .grid{stroke:var(--line);stroke-width:1;shape-rendering:crispEdges}"
    "svg .axis{stroke:var(--soft);stroke-opacity:.55;stroke-width:1;shape-rendering:crispEdges}"
    "svg .l{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}"
    "svg .faint{stroke-width:1;stroke-opacity:.38}"
    "svg .s1{stroke:var(--c1)}svg .s2{stroke:var(--c2)}svg .s3{stroke:var(--c3)}"
    "svg .f1{fill:var(--c1)}svg .f2{fill:var(--c2)}svg .f3{fill:var(--c3)}"
    "svg .band{fill-opacity:.22}"
    "svg .dot{stroke:var(--card);stroke-width:1.5}";

// --- Text

// No character of XML 1.0, or one that reorders what is shown, so that data could dress up as something else.
static bool is_unprintable(uint32_t c) {
    return (c < 0x20 && c != '\n' && c != '\t') || (c >= 0x7F && c < 0xA0) || c == 0xFFFE || c == 0xFFFF ||
           (c >= 0x202A && c <= 0x202E) || (c >= 0x2066 && c <= 0x2069);
}

void svg_escape(struct text *out, const char *string) {
    for (size_t left = strlen(string), n; left > 0; string += n, left -= n) {
        uint32_t c = utf8_read(string, left, &n);
        if (n == 0 || is_unprintable(c))
            text_add(out, "\xEF\xBF\xBD");
        else if (c == '&')
            text_add(out, "&amp;");
        else if (c == '<')
            text_add(out, "&lt;");
        else if (c == '>')
            text_add(out, "&gt;");
        else if (c == '"')
            text_add(out, "&quot;");
        else if (c == '\'')
            text_add(out, "&#39;");
        else
            text_append(out, string, n);
        if (n == 0) n = 1;
    }
}

// "2.0e-04" -> "2e-4"
static void tidy_exponent(char text[32], double value) {
    char digits[32];
    int exponent = (int)floor(log10(fabs(value)));
    double mantissa = value / pow(10, exponent);
    if (fabs(mantissa) >= 9.995) mantissa /= 10, exponent++;
    snprintf(digits, sizeof digits, "%.2f", mantissa);
    char *end = digits + strlen(digits);
    while (end[-1] == '0') *--end = 0;
    if (end[-1] == '.') end[-1] = 0;
    snprintf(text, 32, "%.12se%d", digits, exponent);
}

void svg_number(char text[32], double value) {
    double a = fabs(value);
    if (!isfinite(value))
        snprintf(text, 32, "-");
    else if (a == 0)
        snprintf(text, 32, "0");
    else if (a < 1e-3 || a >= 1e10)
        tidy_exponent(text, value);
    else if (a >= 1e6)
        snprintf(text, 32, "%.4gM", value / 1e6);
    else if (a >= 1e4)
        snprintf(text, 32, "%.4gk", value / 1e3);
    else
        snprintf(text, 32, "%.*f", a >= 100 ? 0 : a >= 10 ? 1 : a >= 1 ? 2 : 3, value);
}

// --- Scale

struct scale {
    double low, high, step;
};

// The next larger 1, 2, 2.5 or 5 times a power of ten.
static double nice_step(double rough) {
    double power = pow(10, floor(log10(rough))), m = rough / power;
    return (m <= 1 ? 1 : m <= 2 ? 2 : m <= 2.5 ? 2.5 : m <= 5 ? 5 : 10) * power;
}

static struct scale nice_scale(double low, double high, int ticks, double least_step) {
    if (!(high > low)) {
        double pad = low == 0 ? 1 : fabs(low) * 0.1;
        low -= low == 0 ? 0 : pad;
        high += pad;
    }
    struct scale s = {.step = fmax(nice_step((high - low) / ticks), least_step)};
    s.low = floor(low / s.step + 1e-9) * s.step;
    s.high = ceil(high / s.step - 1e-9) * s.step;
    return s;
}

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y ? 1 : 0;
}

// The value below which `share` of the series lies; its largest when memory is short.
static double quantile(const struct svg_series *s, double share) {
    double *sorted = mem_alloc(s->count * sizeof *sorted), result = -INFINITY;
    size_t n = 0;
    for (size_t i = 0; i < s->count; i++) {
        if (!isfinite(s->y[i])) continue;
        if (sorted)
            sorted[n++] = s->y[i];
        else
            result = fmax(result, s->y[i]);
    }
    if (sorted && n) {
        qsort(sorted, n, sizeof *sorted, compare_doubles);
        result = sorted[(size_t)(share * (double)(n - 1))];
    }
    mem_free(sorted);
    return result;
}

static bool ranges(const struct svg_chart *chart, double x[2], double y[2]) {
    double spikes = -INFINITY; // of faint series
    x[0] = y[0] = INFINITY;
    x[1] = y[1] = -INFINITY;
    for (size_t i = 0; i < chart->n_series; i++) {
        const struct svg_series *s = &chart->series[i];
        for (size_t j = 0; j < s->count; j++) {
            if (!isfinite(s->x[j]) || !isfinite(s->y[j])) continue;
            x[0] = fmin(x[0], s->x[j]);
            x[1] = fmax(x[1], s->x[j]);
            y[0] = fmin(y[0], s->y[j]);
            if (s->faint)
                spikes = fmax(spikes, s->y[j]);
            else
                y[1] = fmax(y[1], s->y[j]);
        }
        if (s->faint && s->count) y[1] = fmax(y[1], quantile(s, 0.985));
    }
    if (chart->from_zero) y[0] = fmin(y[0], 0), y[1] = fmax(y[1], 0);
    if (spikes > y[1] && spikes - y[0] < 1.25 * (y[1] - y[0])) y[1] = spikes; // they hardly cost room
    return x[0] <= x[1] && y[0] <= y[1];
}

// A tick's label: as many decimals as the step needs, the same on the whole axis.
static void tick_label(char text[32], double value, double step) {
    double magnitude = fabs(value) > step ? fabs(value) : step;
    if (fabs(value) < step * 1e-6) value = 0;
    if (value == 0 || step < 5e-4 || magnitude >= 1e4) {
        svg_number(text, value);
        return;
    }
    int decimals = 0;
    for (double s = step; decimals < 4 && fabs(s - round(s)) > 1e-6 * s; s *= 10) decimals++;
    snprintf(text, 32, "%.*f", decimals, value);
}

// --- Drawing

enum { MAX_TICKS = 20 }; // never reached but by absurd numbers

struct frame {
    double left, top, right, bottom;
    double x0, x1, y0, y1;
};
static double px(const struct frame *f, double x) {
    return f->left + (x - f->x0) / (f->x1 - f->x0) * (f->right - f->left);
}
static double py(const struct frame *f, double y) {
    double p = f->bottom - (y - f->y0) / (f->y1 - f->y0) * (f->bottom - f->top);
    return fmin(fmax(p, f->top - 2000), f->bottom + 2000); // far outside is clipped anyway
}

static void draw_axes(struct text *out, const struct svg_chart *chart, const struct frame *f, struct scale xs,
                      struct scale ys) {
    char label[32];
    for (int i = 0; i < MAX_TICKS && ys.low + i * ys.step <= ys.high + ys.step / 2; i++) {
        double value = ys.low + i * ys.step, y = floor(py(f, value)) + 0.5;
        tick_label(label, value, ys.step);
        text_printf(out, "<path class=\"%s\" d=\"M%.1f %.1fH%.1f\"/>", i == 0 ? "axis" : "grid", f->left, y, f->right);
        text_printf(out, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">%s</text>\n", f->left - 7, y + 3.5, label);
    }
    for (int i = 0; i < MAX_TICKS && xs.low + i * xs.step <= f->x1 + xs.step * 1e-6; i++) {
        double value = xs.low + i * xs.step;
        if (value < f->x0 - xs.step * 1e-6) continue;
        tick_label(label, value, xs.step);
        double x = floor(px(f, value)) + 0.5;
        text_printf(out, "<path class=\"axis\" d=\"M%.1f %.1fv4\"/>", x, f->bottom);
        text_printf(out, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%s</text>\n", x, f->bottom + 17, label);
    }
    text_printf(out, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">", (f->left + f->right) / 2, f->bottom + 33);
    svg_escape(out, chart->x_label);
    text_add(out, "</text>\n");
}

// Points of the same half pixel: [begin, end), with the indices of the lowest and the highest.
struct column {
    size_t begin, end, low, high;
};
static struct column next_column(const struct svg_series *s, const struct frame *f, size_t begin) {
    struct column c = {begin, begin + 1, begin, begin};
    double place = floor(px(f, s->x[begin]) * 2);
    for (; c.end < s->count && isfinite(s->y[c.end]) && floor(px(f, s->x[c.end]) * 2) == place; c.end++) {
        if (s->y[c.end] < s->y[c.low]) c.low = c.end;
        if (s->y[c.end] > s->y[c.high]) c.high = c.end;
    }
    return c;
}

// Of each column the first, lowest, highest and last point are drawn, so that no spike is lost.
static void draw_line(struct text *out, const struct svg_series *s, const struct frame *f) {
    bool pen_down = false;
    text_printf(out, "<path class=\"l %s%s\" d=\"M0 0", s->class, s->faint ? " faint" : "");
    for (size_t i = 0; i < s->count;) {
        if (!isfinite(s->y[i])) { // a gap
            pen_down = false;
            i++;
            continue;
        }
        struct column c = next_column(s, f, i);
        size_t first = c.low < c.high ? c.low : c.high, order[4] = {i, first, c.low + c.high - first, c.end - 1};
        for (int k = 0; k < 4; k++) {
            if (k > 0 && order[k] == order[k - 1]) continue;
            text_printf(out, "%s%.1f %.1f", pen_down ? "L" : "M", px(f, s->x[order[k]]), py(f, s->y[order[k]]));
            pen_down = true;
        }
        i = c.end;
    }
    text_add(out, "\"/>\n");
}

// More points than pixels: the area between lowest and highest, instead of a line that fills it.
static void draw_band(struct text *out, const struct svg_series *s, const struct frame *f) {
    struct text below = {0};
    bool first = true;
    text_printf(out, "<path class=\"band f%s\" d=\"", s->class + 1);
    for (size_t i = 0; i < s->count;) {
        if (!isfinite(s->y[i])) {
            i++;
            continue;
        }
        struct column c = next_column(s, f, i);
        struct text point = {0};
        double x = px(f, s->x[i]);
        text_printf(out, "%s%.1f %.1f", first ? "M" : "L", x, py(f, s->y[c.high]) - 0.5);
        text_printf(&point, "L%.1f %.1f", x, py(f, s->y[c.low]) + 0.5); // the way back is written from right to left
        text_append(&point, text_str(&below), below.length);
        text_free(&below);
        below = point;
        first = false;
        i = c.end;
    }
    if (first) text_add(out, "M0 0");
    text_append(out, text_str(&below), below.length);
    text_add(out, "Z\"/>\n");
    if (below.failed) out->failed = true;
    text_free(&below);
}

static void draw_marks(struct text *out, const struct svg_series *s, const struct frame *f) {
    char x[32], y[32];
    size_t stride = s->count / 400 + 1;
    for (size_t i = 0; i < s->count; i++) {
        if (!isfinite(s->y[i]) || (i % stride && i + 1 != s->count)) continue;
        svg_number(y, s->y[i]);
        snprintf(x, sizeof x, "%.0f", s->x[i]);
        text_printf(out, "<circle class=\"dot f%s\" cx=\"%.1f\" cy=\"%.1f\" r=\"%s\"><title>", s->class + 1,
                    px(f, s->x[i]), py(f, s->y[i]), s->count > 60 ? "2.5" : "3.5");
        svg_escape(out, s->label ? s->label : "value");
        text_printf(out, " %s at step %s</title></circle>\n", y, x);
    }
}

// Values at the right end of lines, moved apart where they would overlap.
static void draw_last_values(struct text *out, const struct svg_chart *chart, const struct frame *f) {
    double taken[8];
    size_t n = 0;
    for (size_t i = 0; i < chart->n_series && n < COUNT_OF(taken); i++) {
        const struct svg_series *s = &chart->series[i];
        size_t last = s->count;
        while (last > 0 && !isfinite(s->y[last - 1])) last--;
        if (!s->last_value || last == 0) continue;
        char value[32];
        svg_number(value, s->y[last - 1]);
        double y = py(f, s->y[last - 1]) + 3.5;
        for (size_t k = 0; k < n; k++)
            if (fabs(taken[k] - y) < 13) y = taken[k] + (y >= taken[k] ? 13 : -13);
        taken[n++] = y;
        text_printf(out, "<text class=\"value f%s\" x=\"%.1f\" y=\"%.1f\">%s</text>\n", s->class + 1, f->right + 6, y,
                    value);
    }
}

static void draw_legend(struct text *out, const struct svg_chart *chart, double x, double y) {
    for (size_t i = chart->n_series; i-- > 0;) { // right to left, so that the first one stands first
        const struct svg_series *s = &chart->series[i];
        if (!s->label || s->count == 0) continue;
        x -= 5.9 * (double)strlen(s->label); // about the width of 11 px text
        text_printf(out, "<text x=\"%.1f\" y=\"%.1f\">", x, y);
        svg_escape(out, s->label);
        text_printf(out, "</text><path class=\"l %s%s\" d=\"M%.1f %.1fh16\"/>", s->class, s->faint ? " faint" : "",
                    x - 22, y - 4);
        if (s->marks)
            text_printf(out, "<circle class=\"dot f%s\" cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\"/>", s->class + 1, x - 14,
                        y - 4);
        text_add(out, "\n");
        x -= 22 + 16;
    }
}

static bool has_legend(const struct svg_chart *chart) {
    for (size_t i = 0; i < chart->n_series; i++)
        if (chart->series[i].label && chart->series[i].count) return true;
    return false;
}

static void draw_start(struct text *out, const struct svg_chart *chart) {
    text_printf(out, "<svg %sviewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"",
                chart->standalone ? "xmlns=\"http://www.w3.org/2000/svg\" " : "", chart->width, chart->height);
    svg_escape(out, chart->title);
    if (!chart->standalone) {
        text_add(out, "\">\n");
        return;
    }
    text_printf(out,
                "\" width=\"%d\" height=\"%d\">\n<style>svg{%s}@media(prefers-color-scheme:dark){svg{%s}}%s</style>\n",
                chart->width, chart->height, svg_colors_light, svg_colors_dark, svg_style);
    text_printf(
        out,
        "<rect width=\"%d\" height=\"%d\" rx=\"8\" style=\"fill:var(--card)\"/>\n<text class=\"title\" x=\"20\" "
        "y=\"27\">",
        chart->width, chart->height);
    svg_escape(out, chart->title);
    text_add(out, "</text>\n");
}

void svg_chart_write(struct text *out, const struct svg_chart *chart) {
    double x[2], y[2], head = chart->standalone ? 46 : has_legend(chart) ? 28 : 8;
    struct frame f = {.left = 52, .top = head, .right = chart->width - 14, .bottom = chart->height - 42};
    draw_start(out, chart);
    if (!ranges(chart, x, y)) {
        text_printf(out, "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">nothing was logged</text>\n</svg>\n",
                    chart->width / 2, chart->height / 2);
        return;
    }
    for (size_t i = 0; i < chart->n_series; i++)
        if (chart->series[i].last_value && chart->series[i].count) f.right = chart->width - 50;
    struct scale xs = nice_scale(x[0], x[1], chart->width > 500 ? 8 : 4, 1),
                 ys = nice_scale(y[0], y[1], chart->height > 240 ? 6 : 4, 0);
    f.x0 = x[0], f.x1 = x[1] > x[0] ? x[1] : x[0] + 1;
    f.y0 = ys.low, f.y1 = ys.high;
    draw_axes(out, chart, &f, xs, ys);
    // A nested svg clips what leaves the frame, without an id that two charts of a page could share.
    text_printf(out, "<svg x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" viewBox=\"%.1f %.1f %.1f %.1f\">\n",
                f.left, f.top - 3, f.right - f.left + 4, f.bottom - f.top + 4, f.left, f.top - 3, f.right - f.left + 4,
                f.bottom - f.top + 4);
    for (size_t i = 0; i < chart->n_series; i++) { // faint ones behind the others
        const struct svg_series *series = &chart->series[i];
        bool dense = (double)series->count > 2 * (f.right - f.left);
        if (series->faint && dense)
            draw_band(out, series, &f);
        else if (series->faint)
            draw_line(out, series, &f);
    }
    for (size_t i = 0; i < chart->n_series; i++)
        if (!chart->series[i].faint) draw_line(out, &chart->series[i], &f);
    text_add(out, "</svg>\n");
    for (size_t i = 0; i < chart->n_series; i++)
        if (chart->series[i].marks) draw_marks(out, &chart->series[i], &f);
    draw_last_values(out, chart, &f);
    draw_legend(out, chart, chart->width - 16, chart->standalone ? 27 : 14);
    text_add(out, "</svg>\n");
}
