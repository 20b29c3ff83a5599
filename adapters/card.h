// README.md of an adapter: the model card, with front matter for the hub and how to serve it.
#pragma once

#include "kernels/base.h"

struct card_pair {
    const char *key, *value;
};
struct card_sample {
    const char *prompt, *expected, *before, *after; // any but the prompt may be NULL
};
struct card {
    const char *name;      // of the adapter: the run folder's name; what clients will ask for
    const char *base_name; // base_model_name_or_path
    const char *base_file; // the file that was trained on, without folders; NULL when it is not a GGUF
    int r;                 // largest rank
    const char *curve;     // a picture beside it, NULL = none
    bool has_gguf;         // adapter.gguf lies beside it
    const char *prompt;    // an example question for the commands; NULL = a general one
    const struct card_pair *data, *settings, *results; // tables; "x before" and "x after" share a row
    int n_data, n_settings, n_results;
    const struct card_sample *samples;
    int n_samples;
};
// Everything that comes from data or files is escaped for its place: YAML, Markdown, shell, Python. Whole or absent.
int card_write(const char *path, const struct card *card, struct error *err);
