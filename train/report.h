// report.html: one self-contained page about a run, curves as inline SVG, readable without a network.
#pragma once

#include "kernels/base.h"

struct report_pair { // facts for tables: "base" -> "SmolLM2...", ...
    const char *key, *value;
};
struct report_sample {                              // generated text before / after / expected
    const char *prompt, *expected, *before, *after; // before and after may be NULL
};
struct report {
    const char *title;
    const struct report_pair *facts;
    int n_facts;
    const char *log_path; // log.jsonl of the run: step, loss, lr, grad_norm, tokens_per_second, eval_loss lines
    const struct report_pair *memory; // class -> "12.3 MiB"
    int n_memory;
    const struct report_pair *results; // e.g. "exact match before" -> "0.0 %"
    int n_results;
    const struct report_sample *samples;
    int n_samples;
};
// Everything that comes from data or files is escaped.
int report_write(const char *path, const struct report *report, struct error *err);
// The loss curve alone as an .svg file (README's picture).
int report_curve(const char *path, const char *log_path, const char *title, struct error *err);
