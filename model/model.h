// A base model: its files, architecture, frozen weights, vocabulary, and the table of modules that adapters may sit on
// with their names in each world. Knows nothing of adapters: a linear says which modules cover it (decoder.h has the
// slots).
#pragma once

#include "data/vocab_source.h"
#include "kernels/base.h"
#include "kernels/weights.h"
#include "model/base_files.h"
#include "model/family.h"

struct linear {
    const struct weight *w;    // (out, in); of experts: the first of arch.moe.experts; NULL = the layer has none
    const struct weight *bias; // (1, out), of experts (E, out); NULL = none
    int n_modules;
    struct {
        int module, part; // its rows are those of this part of this module
    } on[2];
};

// What an adapter may sit on, as PEFT names it: one linear, a fused projection (q, k and v rows of one matrix), all
// experts of a kind, the embedding, the head.
enum module_form {
    MODULE_LINEAR,
    MODULE_EXPERTS,   // one module per expert; hf_name holds %d
    MODULE_PARAMETER, // a parameter that holds all experts
    MODULE_EMBEDDING,
    MODULE_HEAD,
    MODULE_NORM, // one that has a bias, which can be trained
};
struct module_part {
    enum linear_kind linear;
    const struct weight *w, *bias;
    int64_t rows, first_row; // first_row: rows of the parts before
    // Rows of the file's weight against Hugging Face's: 0 = the same; n = n heads whose rows are permuted as in
    // formats.md 2.8: file row h*D + 2i + p = HF row h*D + p*D/2 + i, D = rows / n.
    int permuted_heads;
    // Row i is Hugging Face's row hf_first + i / hf_run * hf_step + i % hf_run of the module; hf_run 0 is 1.
    int64_t hf_first, hf_step, hf_run;
};
enum { MODULE_KINDS = FAMILY_LINEARS + 2 }; // the rows of the family's table, the embedding, the head
// Where a module's rows stand in a GGUF file of the family, whatever container the base itself is in.
struct module_tensor {
    const char *name; // "blk.0.attn_q.weight"; entries with the same name are rows of one tensor, one after another
    int64_t rows;
    int64_t hf_first, hf_step, hf_run;
    int permuted_heads;
};
struct module {
    int id, layer; // layer -1: embedding, head
    int kind;      // the same for the same place in every layer, < MODULE_KINDS
    enum module_form form;
    bool router;            // not reached by lora_target_linear
    const char *hf_name;    // "model.layers.0.self_attn.q_proj", as transformers 5 calls it
    const char *hf_old;     // in adapters made with an older one, where that is another name; NULL
    const char *short_name; // "q_proj"
    int64_t in, out;        // of one expert
    int experts;            // 1 = none
    bool hf_swapped;        // MODULE_PARAMETER: PEFT takes its inputs for outputs, so that its A is our B
    int n_parts, n_tensors;
    struct module_part parts[FAMILY_PARTS];
    struct module_tensor tensors[FAMILY_PARTS];
};
// The i-th name of a module: 0 is hf_name, 1 hf_old; NULL when it has no more.
static inline const char *module_name(const struct module *module, int i) {
    return i == 0 ? module->hf_name : i == 1 ? module->hf_old : NULL;
}

struct layer_weights {
    struct linear linear[LINEAR_KINDS];
    struct {
        const struct weight *w, *bias; // NULL = none
        const struct module *module;   // NULL = it has no bias
    } norm[NORM_SITES];
    const struct weight *sinks, *router_bias;
};

struct model {
    struct arch arch;
    const char *path;                    // as the user gave it
    const char *name;                    // general.name, _name_or_path or the file name
    const char *hf_repository;           // "org/name" where the base came from there, NULL when unknown
    const char *file_type;               // "Q4_1": the commonest type of the linears
    const struct weight *const *weights; // all, ordered by segment: what backend_set_weights wants
    int n_weights, n_segments;
    const struct weight *embed, *head, *head_bias; // head == embed's bytes when tied
    const struct weight *final_norm, *final_norm_bias;
    const struct module *final_norm_module; // NULL = it has no bias
    struct layer_weights *layer;
    struct module *modules; // what an adapter may sit on
    int n_modules;
    struct module *norms; // with a bias; their ids follow those of the modules
    int n_norms;
    uint64_t total_parameters;
    uint64_t ignored_tensors, ignored_bytes; // of other parts of a multimodal model, of extra prediction layers
    uint64_t file_bytes, weight_bytes;       // of the files; of the weights that are used
    uint8_t header_sha256[32];               // of everything before the tensor data
    struct vocab_source vocab;
    struct pool pool;  // owns everything small
    struct base *base; // owns the mappings
    const struct family *family;
};

// A base in any container base_open knows. `given`: what the user called it, for messages and what is written; NULL =
// the path. Errors: 66 missing, 65 malformed or a family we do not know (with the list
// of those we do).
int model_open(const char *path, const char *given, struct model *out, struct error *err);
void model_close(struct model *model);             // zeroed struct is a no-op
bool model_has_weights(const struct model *model); // false: a config.json alone
// 66 when there are none, saying what can be done without.
int model_require_weights(const struct model *model, struct error *err);

// The row, in the order of the file's parts one after another, that holds HF row `row` of a module.
int64_t module_file_row(const struct module *module, int64_t hf_row);
// The HF row that row `row` of the i-th of module->tensors is.
int64_t module_hf_row(const struct module *module, int i, int64_t row);
// Modules and norms by id, 0 .. n_modules + n_norms - 1.
static inline const struct module *model_module(const struct model *model, int id) {
    return id < model->n_modules ? &model->modules[id] : &model->norms[id - model->n_modules];
}
// The module with this HF name (experts: with %d in place of the number), NULL when there is none.
const struct module *model_find_module(const struct model *model, const char *hf_name, size_t length);
