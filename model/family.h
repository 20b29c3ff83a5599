// Model families: one row each. A row names the family's tensors in both worlds (Hugging Face and GGUF) and has one
// mapper that fills `struct arch` from the hyper-parameters of either. Everything else is shared: a family has no code
// that computes.
#pragma once

#include "model/arch.h"
#include "model/hparams.h"

// The linears of a layer. Which of them a layer has, and how large they are, follows from arch (linear_shape).
enum linear_kind {
    LINEAR_Q,
    LINEAR_K,
    LINEAR_V,
    LINEAR_Q_A, // latent attention
    LINEAR_Q_B,
    LINEAR_KV_A,
    LINEAR_K_ROPE,
    LINEAR_KV_B,
    LINEAR_K_B, // where keys and values come from two matrices instead (GGUF)
    LINEAR_V_B,
    LINEAR_O,
    LINEAR_GATE, // dense MLP
    LINEAR_UP,
    LINEAR_DOWN,
    LINEAR_ROUTER, // mixture of experts
    LINEAR_EXPERT_GATE,
    LINEAR_EXPERT_UP,
    LINEAR_EXPERT_DOWN,
    LINEAR_SHARED_ROUTER,
    LINEAR_SHARED_GATE,
    LINEAR_SHARED_UP,
    LINEAR_SHARED_DOWN,
    LINEAR_KINDS,
};
static inline bool linear_is_expert(enum linear_kind kind) {
    return kind >= LINEAR_EXPERT_GATE && kind <= LINEAR_EXPERT_DOWN;
}

enum tensor_flags {
    TENSOR_OPTIONAL = 1,   // norms and biases: may be missing
    TENSOR_BARE = 2,       // Hugging Face: a parameter without ".weight"; its bias is called NAME_bias
    TENSOR_STACKED = 4,    // Hugging Face: all experts in one (E, ...) tensor; GGUF always stacks them
    TENSOR_TURNED = 8,     // Hugging Face: stored (in, out)
    TENSOR_ALTERNATE = 16, // Hugging Face: rows of the parts alternate
    TENSOR_PARAMETER = 32, // PEFT: a target parameter (lora_target_parameters), no module
    TENSOR_ROUTER = 64,    // not reached by lora_target_linear
    TENSOR_SWAPPED = 128,  // PEFT takes the inputs of this parameter for its outputs
    TENSOR_BY_HEAD = 256,  // the parts take turns head by head; GGUF has a tensor (H, ...) of each, K_B's heads turned
};

enum { FAMILY_PARTS = 3, FAMILY_LINEARS = 24, FAMILY_NORMS = 10 };

struct family_linear {
    const char *hf;   // below model.layers.N.; experts of their own: with %d
    const char *gguf; // between blk.N. and .weight; of several tensors for several parts: with '|'
    int n_parts;      // of a fused matrix: rows one after another
    enum linear_kind parts[FAMILY_PARTS];
    unsigned flags;
    const char *module; // PEFT's name of it, where it is not `hf`
};

struct family_norm {
    enum norm_site site;
    const char *hf, *gguf;
    unsigned flags;
};

struct family {
    const char *gguf_arch;                        // general.architecture, several with '|'
    const char *model_types;                      // of config.json, several with '|'
    struct family_linear linears[FAMILY_LINEARS]; // in the order of modules; hf NULL ends
    struct family_norm norms[FAMILY_NORMS];
    bool permuted_qk;                  // Q and K rows of a GGUF are permuted against Hugging Face's (formats.md 2.8)
    bool plus_one;                     // Hugging Face's norm weights are stored less 1, GGUF's are not
    const char *sinks_hf, *sinks_gguf; // per layer; NULL = none
    const char *router_bias_hf, *router_bias_gguf; // per MoE layer
    bool head_bias;
    const char *gguf_deaf; // GGUF tensors whose adapters llama.cpp's graph ignores, "attn_q|output"; NULL = none
    // Linears (their names in the table) whose adapters PEFT 0.21 with transformers 5 loads and leaves out, because it
    // looks for experts in other places there; NULL = none.
    const char *peft_deaf;
    // Hugging Face's names; NULL: "model.", "layers", "embed_tokens", "norm".
    const char *hf_root, *hf_layers, *hf_embed, *hf_norm;
    // Before the modules and the head of the text model in a multimodal one; NULL: "model.language_model.", "".
    const char *wrapped_root, *wrapped_head;
    // Fills arch; arch->layer has room for arch->layers rows afterwards (allocate from h->pool).
    void (*map)(struct hparams *h, struct arch *arch);
};

extern const struct family family_table[];
extern const int family_count;
const struct family *family_find_gguf(const char *architecture); // NULL when unknown
const struct family *family_find_hf(const char *model_type);
// "llama, gemma, ...": of GGUF architectures or of model types, for messages.
void family_list(bool gguf, struct text *out);
// Is `word` one of "a|b|c"?
bool family_names(const char *list, const char *word, size_t length);

// --- what mappers share (family_common.c)

struct common {       // where a key is missing
    int64_t kv_heads; // 0 = as many as heads
    int64_t head_dim; // 0 = width / heads
    double eps, theta;
    const char *eps_json, *eps_gguf; // NULL: rms_norm_eps, attention.layer_norm_rms_epsilon
    bool tied;
    bool rope_pairs; // Hugging Face too turns neighbours (2i, 2i + 1)
    const char *act; // default of hidden_act
    bool own_heads;  // the mapper sets the dims of heads and the rope itself; head_dim of config.json means something
                     // else
};
// Sizes, norms before attention and MLP, one rope for all layers, a gated MLP. Then a mapper says what is different.
void arch_common(struct hparams *h, struct arch *arch, const struct common *c);
// Rope number `i` from rope_theta / rope_scaling, or from rope_parameters[section] where that is keyed by layer type;
// GGUF: from rope.* with `freq_base`.
void arch_rope(struct hparams *h, struct arch *arch, int i, const char *section, const char *freq_base, double theta);
// Rope number `i` like number 0, but without scaling.
void arch_rope_plain(struct hparams *h, struct arch *arch, int i, double theta);
// Which layers slide: from layer_types or a GGUF pattern, else layer l unless `period` > 0 and (l + 1) % period == 0
// (period 0: none slides). Returns whether the file says so itself.
bool arch_sliding(struct hparams *h, struct arch *arch, int64_t window, int64_t period, bool *slides);
// Keys that would change what is computed and that the mapper does not handle ("a|b" it does): only their neutral value
// passes.
void arch_neutral(struct hparams *h, const char *handled);
enum act_kind arch_act(struct hparams *h, const char *fallback);
