// Which tensors of a PEFT file hold a module's adapter, and which of our numbers each of their rows is (formats.md 6.3,
// 6.6). Used by the reader and the writer alike.
#pragma once

#include "adapters/adapter.h"

struct peft_tensor {
    const char *key;
    const struct module *module;
    bool b;
    int64_t expert;     // of one expert; -1: of all, or of a plain linear
    int64_t rows, cols; // as in the file
    int r;
};

// Of a module: 2, or 2 for each expert where these are modules of their own.
int peft_tensor_count(const struct module *module);
// The index-th tensor of a module at rank `r`. `sibling`: a later parameter of the same module has an adapter, too, so
// that PEFT's names are nested. False when out of memory.
bool peft_tensor_at(struct pool *pool, const struct module *module, int r, bool sibling, int index,
                    struct peft_tensor *out);
// Row `row` of the tensor from the adapter, and back; `row` floats are t->cols.
void peft_get_row(const struct peft_tensor *t, const struct adapter_module *m, int64_t row, float *out);
void peft_put_row(const struct peft_tensor *t, struct adapter_module *m, int64_t row, const float *in);
// Is there, among the modules marked in `has`, a later parameter of the same holder ("mlp.experts")?
bool peft_has_sibling(const struct model *model, const bool *has, const struct module *module);
