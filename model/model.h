// A base model: file mapping, architecture, frozen weights, vocabulary, and the table of its linear modules with their
// names in each world. Knows nothing of adapters: a linear has a slot (decoder.h).
#pragma once

#include "data/vocab_source.h"
#include "kernels/base.h"
#include "kernels/weights.h"
#include "model/arch.h"

enum module_kind { MODULE_Q, MODULE_K, MODULE_V, MODULE_O, MODULE_GATE, MODULE_UP, MODULE_DOWN, MODULE_KINDS };

// One linear that adapters may sit on. id = layer * MODULE_KINDS + kind.
struct module {
    int id, layer;
    enum module_kind kind;
    const struct weight *w;
    const struct weight *bias; // NULL when there is none
    const char *hf_name;       // "model.layers.0.self_attn.q_proj"
    const char *short_name;    // "q_proj"
    const char *gguf_name;     // "blk.0.attn_q.weight"
    int64_t in, out;
    // Rows of the file's weight against Hugging Face's: 0 = the same; n = n heads whose rows are permuted as in
    // formats.md 2.8: file row h*D + 2i + p = HF row h*D + p*D/2 + i, D = out / n.
    int permuted_heads;
};

struct layer_weights {
    const struct weight *attn_norm, *ffn_norm;
};

struct model {
    struct arch arch;
    const char *path;                    // as the user gave it
    const char *name;                    // general.name or the file name
    const char *hf_repository;           // "org/name" from the file's metadata, NULL when unknown
    const char *file_type;               // "Q4_1": the commonest type of the linears
    const struct weight *const *weights; // all, ordered by segment: what backend_set_weights wants
    int n_weights, n_segments;
    const struct weight *embed, *head, *final_norm; // head == embed's bytes when tied
    struct layer_weights *layer;
    struct module *modules; // (layers * MODULE_KINDS)
    int n_modules;
    uint64_t total_parameters;
    uint64_t file_bytes;
    uint8_t header_sha256[32]; // of everything before the tensor data
    struct vocab_source vocab;
    struct pool pool;  // owns everything small
    struct gguf *gguf; // owns the mapping
};

// A GGUF file. Errors: 66 missing, 65 malformed or a family we do not know (with the list of those we do).
int model_open(const char *path, struct model *out, struct error *err);
void model_close(struct model *model); // zeroed struct is a no-op

// The file row that holds HF row `row` of a module's weight (identity unless permuted).
int64_t module_file_row(const struct module *module, int64_t hf_row);
// The module with this HF name, NULL when there is none.
const struct module *model_find_module(const struct model *model, const char *hf_name, size_t length);
