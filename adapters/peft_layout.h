// Which tensors of a PEFT file hold a module's adapter, and which of our numbers each of their rows is (formats.md 6.3,
// 6.6). Used by the reader and the writer alike.
#pragma once

#include "adapters/adapter.h"

struct peft_tensor {
    const char *key;
    const struct module *module;
    enum adapter_part part;
    int64_t expert;     // of one expert; -1: of all, or of a plain linear
    int n_dims;         // 1: cols alone
    int64_t rows, cols; // as in the file
    int r;              // as in the file: adapter_file_rank
};

// Of a module with these parts (bits 1 << enum adapter_part): one each, A and B for each expert where these are modules
// of their own.
int peft_tensor_count(const struct adapter_module *m, unsigned parts);
// The index-th tensor; of `m` only module, r, n_rows and whether it has a0 are read. `sibling`: a later parameter of
// the same module has an adapter, too, so that PEFT's names are nested. False when out of memory.
bool peft_tensor_at(struct pool *pool, const struct adapter_module *m, unsigned parts, bool sibling, int index,
                    struct peft_tensor *out);
unsigned peft_parts(const struct adapter_module *m); // those that are there
// Row `row` of the tensor from the adapter, and back; `row` floats are t->cols.
void peft_get_row(const struct peft_tensor *t, const struct adapter_module *m, int64_t row, float *out);
void peft_put_row(const struct peft_tensor *t, struct adapter_module *m, int64_t row, const float *in);
// Is there, among the modules marked in `has`, a later parameter of the same holder ("mlp.experts")?
bool peft_has_sibling(const struct model *model, const bool *has, const struct module *module);
// Is it the name of a copy that PEFT stores beside what it is a copy of? Of a base weight beside an adapter on
// embedding or head; with bias "all", of the bias before training and after, beside a head that is trained whole.
bool peft_is_copy(const struct adapter_module *m, const char *key);
