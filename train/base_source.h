// The base as a user names it: a file, a folder, or a name on the Hugging Face hub that is in the local cache; perhaps
// to be quantised on the way in. What was quantised is kept in a cache of our own, keyed by content, so that the second
// start maps it like any other base.
#pragma once

#include "configs/run_config.h"
#include "model/quantize_base.h"

struct base_source {
    const char *name;            // path, ORG/NAME or ORG/NAME/FILE
    const char *revision;        // of a name on the hub; NULL = main
    struct base_packing packing; // for a base of plain numbers; one that is packed already stays as it is
    bool quiet;                  // says nothing on stderr
};

// What load_in_4bit, load_in_8bit and bnb_config_kwargs ask for.
struct base_source base_source_of(const struct run_config *config);

// Finds, quantises (with progress on a terminal, two lines at most elsewhere) and opens it; model->path is
// source->name. Errors: those of model_open, hub_find and quantize_base; 64 for a GGUF of plain numbers with a packing.
int base_source_open(const struct base_source *source, int threads, struct model *out, struct error *err);

// Where the base is: `name` itself where that is a path, else in the local Hugging Face cache. In `pool`. Errors:
// hub_find's.
int base_source_find(const struct base_source *source, struct pool *pool, const char **path, struct error *err);

// Is this folder what the cache of quantised bases made (*entry), and whole? Errors: 80 it is not what was written
// there.
int base_source_check_entry(const char *folder, bool *entry, struct error *err);

// Do all linears of the layers have plain numbers?
bool base_is_plain(const struct model *model);
