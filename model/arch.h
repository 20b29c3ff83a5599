// What a decoder looks like: globals and one description per layer, filled from GGUF keys or config.json by one mapper
// per family. The builder in decoder.c records the graph from this alone; a family never has a forward function.
#pragma once

#include "kernels/ops.h"

#include <stdbool.h>
#include <stdint.h>

enum norm_site { SITE_BEFORE, SITE_AFTER }; // pre-norm (llama) or post-norm blocks (later families)

struct layer_arch {
    int heads, kv_heads, head_dim, v_dim;
    int ffn; // width of the MLP
    enum act_kind act;
    bool rope;             // false: no position encoding in this layer
    int window, chunk;     // 0 = full causal attention
    float attention_scale; // on q k^T, usually 1/sqrt(head_dim)
    float soft_cap;
};

struct rope_arch {
    enum rope_kind kind;
    int rotary_dim;
    double theta;
    double linear_factor; // positions are divided by it; 1 = none
    const float *factors; // (rotary_dim / 2): inverse frequencies are divided by these; NULL = none; owned by the model
};

struct arch {
    const char *family;                // "llama"
    int layers, width, vocab, context; // width = D
    enum norm_kind norm;
    float norm_eps;
    float embed_scale, logit_scale, final_soft_cap;
    bool tied; // the head is the embedding
    struct rope_arch rope;
    struct layer_arch *layer; // (layers)
};
