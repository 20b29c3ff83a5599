// adapter_config.json of a PEFT folder, read and applied to a model: which linears, at what rank and scale.
#pragma once

#include "adapters/adapter.h"

struct peft_config {
    int r;
    float alpha, dropout;
    bool rslora, dora;
    enum adapter_biases biases;
    const char *base_name; // NULL when absent; in the pool
    // Per id of a module or norm of the model, in the pool:
    bool *selected;
    int *ranks;    // of selected ones, after rank_pattern
    float *alphas; // their lora_alpha, after alpha_pattern
    bool *saved;   // trained whole: modules_to_save
    // trainable_token_indices, of the embedding; in the pool
    int32_t *row_ids;
    int n_rows;
};
// Refuses by name what would change the result and is not computed here. Nothing is left to free but the pool.
enum { PEFT_CONFIG_BYTES = 1 << 20 };
int peft_config_parse(const char *name, const struct text *bytes, const struct model *model, struct pool *pool,
                      struct peft_config *out, struct error *err);
// The same keys, sorted; selects exactly the adapter's modules.
int peft_config_write(struct text *out, const struct adapter *adapter, struct error *err);
