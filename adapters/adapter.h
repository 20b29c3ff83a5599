// An adapter in host memory: what is read from and written to files. Rows of B are in the order of the base file
// (module_file_row), of a module with experts part after part, in each expert after expert; the file writers and
// readers convert to their own order.
#pragma once

#include "model/model.h"

// The parameters that a module's adapter may consist of.
enum adapter_part {
    ADAPTER_A,         // (experts r, in)
    ADAPTER_B,         // (experts out, r), base file's row order
    ADAPTER_MAGNITUDE, // (1, out): DoRA, of a plain linear or the head; base file's row order
    ADAPTER_BIAS,      // (1, out): of a linear, the head or a norm, in place of the base's; base file's row order
    ADAPTER_FULL,      // (out, in): embedding or head, trained whole in place of the base's
    ADAPTER_ROWS,      // (n_rows, in): embedding, in place of the rows of row_ids (also in a head that is tied to it)
    ADAPTER_PARTS
};
struct adapter_module {
    const struct module *module; // borrowed from the model
    int r;                       // 0: no a and b
    float alpha;                 // as in the config (scale = alpha / r, or alpha / sqrt(r))
    int n_rows;
    int32_t *row_ids; // as listed in the configuration
    union {           // NULL: it has none
        float *part[ADAPTER_PARTS];
        struct {
            float *a, *b, *magnitude, *bias, *full, *rows;
        };
    };
    // PiSSA: what A and B were at the start, taken off the base: W x + scale (B A - b0 a0) x. Frozen; NULL = none.
    // Files hold both pairs as one of twice the rank, [A; a0] and [B, -b0], with an alpha that gives the same scale.
    float *a0, *b0; // (r, in), (out, r) as A and B of a plain linear
};
struct adapter_shape {
    int64_t rows, cols;
};
// Of a part that may or may not be there.
struct adapter_shape adapter_part_shape(const struct adapter_module *m, enum adapter_part part);
static inline int64_t adapter_part_size(const struct adapter_module *m, enum adapter_part part) { // 0: not there
    struct adapter_shape s = adapter_part_shape(m, part);
    return m->part[part] ? s.rows * s.cols : 0;
}
// "lora_A": what state files call it.
const char *adapter_part_name(enum adapter_part part);
// Row `hf_row` of expert `e` in b.
static inline int64_t adapter_b_row(const struct module *m, int64_t e, int64_t hf_row) {
    int64_t row = module_file_row(m, hf_row);
    int i = m->n_parts - 1;
    while (i > 0 && row < m->parts[i].first_row) i--;
    return m->experts * m->parts[i].first_row + e * m->parts[i].rows + row - m->parts[i].first_row;
}

struct adapter {
    const struct model *model; // borrowed; what it sits on
    int r;                     // of most modules; a module's own stand in its row
    float alpha, dropout;
    bool rslora;
    bool outline; // for plans: shapes without numbers; no part may be read
    bool dora;    // modules have magnitudes
    bool pissa;   // modules have a0 and b0
    enum adapter_biases { BIASES_NONE, BIASES_LORA_ONLY, BIASES_ALL } biases;
    struct adapter_module *modules; // ordered by module id
    int n_modules;
    const char *base_name; // base_model_name_or_path
    struct pool pool;      // owns arrays and strings
};

static inline float adapter_scale(const struct adapter *adapter, const struct adapter_module *m) {
    return m->alpha / (adapter->rslora ? __builtin_sqrtf((float)m->r) : (float)m->r);
}
// Rank and alpha as files have them.
static inline int adapter_file_rank(const struct adapter_module *m) {
    return m->a0 ? 2 * m->r : m->r;
}
static inline float adapter_file_alpha(const struct adapter *adapter, float alpha) {
    return !adapter->pissa ? alpha : adapter->rslora ? (float)((double)alpha * __builtin_sqrt(2)) : 2 * alpha;
}
// An adapter with zeroed matrices for `ids` (ascending module ids), all of rank r.
int adapter_new(const struct model *model, const int *ids, int n, int r, float alpha, float dropout, bool rslora,
                struct adapter *out, struct error *err);
void adapter_free(struct adapter *adapter); // zeroed struct is a no-op

// Building one module by module: room for `n`, then each in ascending order of id with its own rank, zeroed. Sets no
// r, alpha, base_name. Errors: 65 rank outside of 1 .. ADAPTER_MAX_RANK, alpha 0 or not finite.
enum { ADAPTER_MAX_RANK = 1024 };
int adapter_begin(const struct model *model, int n, struct adapter *out, struct error *err);
int adapter_add(struct adapter *adapter, const struct module *module, int r, float alpha, struct error *err);
// The same without A and B: parts follow.
int adapter_add_bare(struct adapter *adapter, const struct module *module, struct adapter_module **out,
                     struct error *err);
// Room for a0 and b0 of the module that was added last, which is a plain linear; at most half of ADAPTER_MAX_RANK.
int adapter_add_initial(struct adapter *adapter, struct adapter_module *m, struct error *err);
// The numbers of an adapter that was read, [A; a0] and [B, -b0] as the pairs they were; `out` has the same modules.
void adapter_take_pairs(struct adapter *out, const struct adapter *saved);
// Has the base a bias on every part of the module? (A fused one with some of them cannot be replaced.)
bool adapter_has_bias(const struct module *module);
// Is the module's bias trained? As PEFT 0.21 decides: BIASES_LORA_ONLY means those of linears with A and B, BIASES_ALL
// every parameter that is called "bias": of any linear, of the head, of norms, not those of stacked experts
// ("down_proj_bias"). A head that is trained `whole` has its bias with it in any case.
bool adapter_trains_bias(enum adapter_biases biases, const struct module *module, bool adapted, bool whole);
// How many modules have more than a bias.
int adapter_count_adapted(const struct adapter *adapter);
// Rows of the embedding that are trained in place of the base's, zeroed.
int adapter_set_rows(struct adapter *adapter, struct adapter_module *m, const int32_t *ids, int n, struct error *err);
// A module's row, NULL where the adapter leaves it alone.
struct adapter_module *adapter_find(const struct adapter *adapter, const struct module *module);
// Gives a module's adapter one more part, zeroed.
int adapter_add_part(struct adapter *adapter, struct adapter_module *m, enum adapter_part part, struct error *err);

// --- PEFT folder (formats.md 6): adapter_config.json + adapter_model.safetensors, F32, HF row order. Made when
// missing; each file is replaced whole, the tensors first, and read back before it gets its name.
int peft_write(const char *folder, const struct adapter *adapter, struct error *err);
// The first module whose adapter PEFT (0.21, with transformers 5) would leave out without an error, and how many there
// are; NULL when it applies all of them. Seen with tests of that version; llama.cpp and this program apply them.
const char *peft_ignored(const struct adapter *adapter, int *count);
// Reads and checks against the model: peft_type, unknown modules, missing halves, shapes, non-finite values. What would
// change the result is honoured or refused by name: patterns, DoRA, biases, modules_to_save, token rows are honoured.
int peft_read(const char *folder, const struct model *model, struct adapter *out, struct error *err);
// The same for bytes; `name` stands for the folder in messages.
int peft_parse(const char *name, const struct text *config, const uint8_t *tensors, size_t length,
               const struct model *model, struct adapter *out, struct error *err);

// --- llama.cpp adapter (formats.md 7), F32 tensors, GGUF row order. The file has one alpha: where modules' scales
// differ, B carries the difference.
// Can the file hold this adapter, and would llama.cpp apply all of it? Refuses by name (65): modules that its graph of
// this family would load and ignore; modules and token rows that are trained whole; adapters on embedding or head where
// these are one matrix, on which llama.cpp aborts.
int gguf_adapter_check(const struct adapter *adapter, struct error *err);
int gguf_adapter_write(const char *path, const struct adapter *adapter, struct error *err);
// The first such module's name, and how many there are; NULL when llama.cpp applies all of the adapter.
const char *gguf_adapter_ignored(const struct adapter *adapter, int *count);
int gguf_adapter_read(const char *path, const struct model *model, struct adapter *out, struct error *err);
int gguf_adapter_parse(const char *name, const uint8_t *bytes, size_t length, const struct model *model,
                       struct adapter *out, struct error *err);

// --- MLX folder (formats.md 8.6): adapters.safetensors + adapter_config.json. One rank and one scale: smaller ranks
// are filled up with zeros, B carries differing scales.
int mlx_write(const char *folder, const struct adapter *adapter, struct error *err);

// Reads whatever is at `path`: a PEFT folder, a run folder, a checkpoint folder or an adapter.gguf. 66 when there is
// nothing, 65 when it is something else, naming it.
int adapter_read(const char *path, const struct model *model, struct adapter *out, struct error *err);
