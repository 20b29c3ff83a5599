// Line charts as SVG text, for the report and the README. Colours come from classes, so that a page or the picture's
// own style sheet sets them for light and dark.
#pragma once

#include "kernels/text.h"

#include <stdbool.h>
#include <stddef.h>

struct svg_series {
    const char *label; // in the legend; NULL = not listed
    const char *class; // "s1" (first colour), "s2", "s3"
    const double *x, *y;
    size_t count;
    bool faint;      // the raw curve behind a smoothed one: thin, and its spikes do not set the scale
    bool marks;      // a dot per point, with its value as a tooltip
    bool last_value; // writes the last value at the end of the line
};

struct svg_chart {
    const char *title;   // also what a screen reader says
    const char *x_label; // below the axis
    int width, height;
    bool from_zero;  // the y axis starts at 0
    bool standalone; // a file of its own: with style sheet, background and title text
    const struct svg_series *series;
    size_t n_series;
};

void svg_chart_write(struct text *out, const struct svg_chart *chart);

// The style rules of the chart's classes, shared by page and picture. They use the variables below.
extern const char svg_style[];
extern const char svg_colors_light[], svg_colors_dark[]; // "--ink:#...;--line:#...;..."

// Text for HTML and XML: markup characters become entities, control characters and bad UTF-8 become U+FFFD.
void svg_escape(struct text *out, const char *string);
// A number for people: 3 or 4 digits, "2e-4", "12.3k".
void svg_number(char text[32], double value);
