// Model families: one row each. A row names the family, its tensors in both worlds, and one mapper that fills
// `struct arch` from the file's keys. Everything else is shared.
#pragma once

#include "model/gguf.h"
#include "model/model.h"

struct module_name {
    const char *hf;   // below model.layers.N., e.g. "self_attn.q_proj"
    const char *gguf; // between blk.N. and .weight, e.g. "attn_q"
};

struct family {
    const char *gguf_arch;   // general.architecture
    const char *model_types; // of config.json, for messages
    struct module_name modules[MODULE_KINDS];
    const char *attn_norm, *ffn_norm; // GGUF names below blk.N.
    bool permuted_qk;                 // Q and K rows of a GGUF are permuted against Hugging Face's
    // Fills arch but for rope.factors and tied, which the loader finds in the tensors. arch->layer has room for
    // arch->layers rows when called: allocate from `pool`.
    int (*map_gguf)(const struct gguf *file, struct pool *pool, struct arch *arch, struct error *err);
};

extern const struct family family_table[];
extern const int family_count;
const struct family *family_find_gguf(const char *architecture); // NULL when unknown
