// report.html: one self-contained page about a run, curves as inline SVG, readable without a network.
#pragma once

#include "adapters/card.h" // pairs and samples
#include "kernels/base.h"

struct report {
    const char *title;
    const struct card_pair *facts;
    int n_facts;
    const char *log_path; // log.jsonl of the run: step, loss, lr, grad_norm, tokens_per_second, eval_loss lines
    const struct card_pair *memory; // class -> "12.3 MiB"
    int n_memory;
    const struct card_pair *results; // e.g. "exact match before" -> "0.0 %"
    int n_results;
    const struct card_sample *samples;
    int n_samples;
};
// Everything that comes from data or files is escaped.
int report_write(const char *path, const struct report *report, struct error *err);
// The loss curve alone as an .svg file (README's picture).
int report_curve(const char *path, const char *log_path, const char *title, struct error *err);
