// What a decoder looks like: globals and one description per layer, filled from GGUF keys or config.json by one mapper
// per family (families.h). The builder in decoder.c records the graph from this alone; a family never has a forward
// function. Letters: D width, H heads, K head dim, F ffn width, E experts.
#pragma once

#include "kernels/error.h"
#include "kernels/ops.h"

#include <stdbool.h>
#include <stdint.h>

// --- positions

enum rope_scaling { // formats.md 9.1
    ROPE_SCALING_NONE,
    ROPE_SCALING_LINEAR,   // frequencies / factor
    ROPE_SCALING_DYNAMIC,  // theta grows with the longest position, beyond `original`
    ROPE_SCALING_LLAMA3,   // long waves / factor, short ones kept
    ROPE_SCALING_YARN,     // likewise by a ramp, and longer vectors
    ROPE_SCALING_LONGROPE, // a divisor for each frequency, another list beyond `original`
};

struct rope_arch {
    enum rope_kind kind;
    int head_dim, rotary_dim, first; // dims [first, first + rotary_dim) of a head turn
    double theta;
    enum rope_scaling scaling;
    double factor, original;          // original: context the base was first trained with
    double low_freq, high_freq;       // llama3
    double beta_fast, beta_slow;      // yarn
    bool truncate;                    // yarn: the ends of the ramp are whole numbers
    double magnitude, long_magnitude; // of cosines and sines; 1 = none; longrope beyond `original`, 0 = the same
    const float *divisors; // (rotary_dim / 2) of the frequencies, from a file; NULL = none; owned by the model
    const float *short_divisors, *long_divisors; // longrope; owned by the model
    // Queries grow with their position p: times 1 + beta ln(1 + floor((p + shift) / floor)). beta 0 = no.
    double query_beta, query_floor;
    int query_shift;
    bool still; // nothing turns: for the growth of queries alone
};
enum { ARCH_MAX_ROPES = 3, ROPE_NONE = -1 };

// --- layers

// Where norms stand. A layer has those of its `norms` bits; their weights may be missing (OLMo 1, Llama 4's q and k).
enum norm_site {
    NORM_ATTENTION, // before attention (and before a parallel MLP)
    NORM_Q,         // of queries and keys, by head or whole
    NORM_K,
    NORM_ATTENTION_OUT, // of what attention adds
    NORM_MLP,           // before the MLP
    NORM_MLP_OUT,       // of what the MLP adds
    NORM_Q_LATENT,      // latent attention: between q_a and q_b, between kv_a and kv_b
    NORM_KV_LATENT,
    NORM_SITES,
};

struct layer_arch {
    uint32_t norms; // bits: 1 << enum norm_site
    int heads, kv_heads, head_dim, v_dim;
    bool qk_whole;      // q and k are normed over all heads together, else head by head
    bool qk_after_rope; // after they are turned, else before
    float clip_qkv;     // projections are kept within +-this; 0 = not
    int rope_q, rope_k; // which of arch->rope, ROPE_NONE = not turned
    int window, chunk;  // 0 = full causal attention
    float attention_scale, soft_cap;
    bool glu; // down(act(gate) up), else down(act(up))
    enum act_kind act;
    int ffn;                         // width of the dense MLP
    bool moe;                        // experts instead of it
    bool bias_qkv, bias_o, bias_mlp; // what a config.json promises; a file's own biases are taken in any case
};

struct latent_arch { // multi-head latent attention, where kv_rank > 0
    int q_rank;      // 0 = queries are projected at once
    int kv_rank, nope, rope;
    bool split; // keys and values come from two matrices
    float norm_eps;
};

struct moe_arch { // where experts > 0
    int experts, ffn, shared_ffn;
    bool shared_gate; // the shared expert is weighed by sigmoid(gate(x))
    bool scale_input; // an expert's input is multiplied by its weight, not its output
    bool interleaved; // gate and up rows alternate in one matrix
    enum act_kind act;
    float limit, alpha;     // of ACT_SWIGLU_CLAMPED
    struct moe_route route; // without its bias, which is a layer's weight
    // transformers' load-balancing loss: whether this family has one, whether its config.json asks for it, its weight
    // there (negative: it does not say).
    bool balanced, balance;
    float balance_weight;
};

struct arch {
    const char *family;                // general.architecture of its GGUF files, "llama"
    const char *model_type;            // of config.json
    int layers, width, vocab, context; // width = D
    enum norm_kind norm;
    float norm_eps;
    bool norm_plus_one; // weights of norms are stored less 1
    float embed_scale, logit_scale, final_soft_cap, residual_scale;
    bool tied;                 // the head is the embedding
    bool extra_layers;         // the files may hold layers beyond these, which predict further tokens: not used
    bool parallel;             // attention and MLP read the same norm, and both are added
    bool norm_bias, head_bias; // what a config.json promises; a file's own biases are taken in any case
    int n_ropes;
    struct rope_arch rope[ARCH_MAX_ROPES];
    struct latent_arch latent;
    struct moe_arch moe;
    struct layer_arch *layer; // (layers)
};

static inline bool layer_has_norm(const struct layer_arch *l, enum norm_site site) {
    return l->norms >> site & 1;
}
// Bytes of keys and values a token leaves in the cache are of these widths.
static inline int64_t layer_key_width(const struct layer_arch *l) {
    return (int64_t)l->kv_heads * l->head_dim;
}
static inline int64_t layer_value_width(const struct layer_arch *l) {
    return (int64_t)l->kv_heads * l->v_dim;
}

// rope.c: inverse frequencies (rotary_dim / 2 doubles). `length`: the most positions of the run, which some scalings
// depend on. Formulas: transformers' modeling_rope_utils, formats.md 9.1.
void rope_inverse(const struct rope_arch *rope, int64_t length, double *inverse);
// The table of OP_ROPE: (positions, rotary_dim) floats, cosines then sines.
int rope_fill_table(const struct rope_arch *rope, int64_t positions, float *out, struct error *err);
