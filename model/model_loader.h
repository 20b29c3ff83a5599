// Private part of model.c: a model while it is being put together.
#pragma once

#include "model/model.h"
#include "model/packed_linear.h"

struct loader {
    struct model *model;
    struct base *base;
    const struct family *family;
    struct packing packing;        // of a safetensors base
    const char *root;              // "model." and the like: what stands before a Hugging Face tensor's name
    const char *module_root;       // and before a module's name in transformers
    const char *head_root;         // and before "lm_head" there
    const struct weight **weights; // all, in order of id; grows
    int n_weights, capacity;
    int n_modules, module_capacity;
    struct error *err;
    bool failed; // sticky: err says why
};

// model_weights.c: every linear, norm and module of layer `l`; the embedding, final norm and head.
void loader_take_ends(struct loader *l);
void loader_take_norm_modules(struct loader *l); // after both: the norms whose biases can be trained
void loader_take_layer(struct loader *l, int layer);
// Rows and columns of a linear; false when the layer has none of the kind.
bool linear_shape(const struct arch *arch, const struct layer_arch *layer, enum linear_kind kind, int64_t *out,
                  int64_t *in);

// model_vocab.c: from the GGUF, or from the tokenizer files of the folder.
int loader_take_vocab(struct loader *l);
