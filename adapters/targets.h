// Which linears get an adapter: PEFT's rules (formats.md 6.2).
#pragma once

#include "model/model.h"

struct target_options {
    const char *regex;        // must match a module's whole HF name; NULL = by names
    const char *const *names; // a module matches when its HF name is one of these or ends with "." + one
    size_t n_names;
    bool all_linear;               // every linear but the output head and routers
    const char *const *parameters; // likewise for experts in one parameter, and for a router's "mlp.gate.weight"
    size_t n_parameters;
    const int64_t *layers; // only these layers; n_layers 0 = all
    size_t n_layers;
};

// Ascending module ids into ids[model->n_modules]; *n is at least 1 on success. A name that matches no module, a regex
// that does not compile or matches nothing, a layer beyond the model: an error naming it (78).
int targets_select(const struct model *model, const struct target_options *options, int *ids, int *n,
                   struct error *err);
