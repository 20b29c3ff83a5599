// The operations: shapes, formulas, parameters. One row each in ops.c (op_table), one implementation each per backend.
// Letters: T token rows, D model width, H heads, K head dim, F ffn width, V vocabulary, R rank, N sequences, E experts,
// k experts per token, S = T k rows sorted by expert.
// Activations are fp32 or bf16 (run-wide); sums inside kernels are fp32; statistics and adapters are fp32.
#pragma once

#include "kernels/tensor.h"
#include "kernels/weights.h"

#include <stdbool.h>
#include <stdint.h>

enum op {
    OP_NONE,
    // --- recorded on the tape
    OP_EMBED,        // in: ids (T,1) i32, keys (T,2) u32 {dataset row, token in row}; out: x (T,D)
    OP_NORM,         // in: x (T,D); out: y (T,D); saved: rstd (T,G) [, mean (T,G)], G = groups of columns
    OP_ADD_NORM,     // in: x (T,D), r (T,D); out: s = x + scale r (T,D), y = norm(s) (T,D); saved: rstd [, mean]
    OP_LINEAR_GROUP, // in: x (T,D), keys (T,2) u32; out: y_i (T,N_i); saved: u (T, sum of ranks) f32
    OP_ROPE,         // in: q (T,H*K), k (T,Hkv*K) or none, positions (T,1) i32, table (P,K) f32; out: q', k' in place
    OP_GLU,          // in: gate (T,F), up (T,F); out: h = act(gate) * up (T,F). Without up: gate is (T,2F), where
                     // element 2i is gate i and 2i + 1 is up i
    OP_ACT,          // in: x (T,F); out: act(x) (T,F)
    OP_ATTENTION,    // in: q (Tq,H*K), k (Tkv,Hkv*K), v (Tkv,Hkv*Kv), seqs (N+1,4) i32; out: o (Tq,H*Kv); saved: lse
                     // (Tq,H)
    OP_ADD,          // in: x, r (T,D); out: s = x + scale r (T,D)
    OP_GATE,         // in: x (T,D), g (T,1); out: y = sigmoid(g) x (T,D)
    OP_MLA_KEYS,     // in: kv (T,H*(Kn+Kv)) = per head {nope, v}, r (T,Kr); out: k (T,H*(Kn+Kr)) = per head {nope, r},
                     // v (T,H*Kv); no v where Kv is 0
    OP_MOE_ROUTE,    // in: logits (T,E); out: weights (T,k) f32, map (S,2) i32, offsets (E+1,1) i32. map row s = {pair
                  // that stands at s, place of pair s}, pair = token * k + choice; the rows of expert e are offsets[e]
                  // .. offsets[e + 1]
    OP_MOE_BALANCE, // in: logits (T,E), lengths (T,1) i32; out: the same logits, in place. Stores into a row of
                    // p.balance.sums what the load-balancing loss needs of this layer; backward adds that loss's
                    // gradient
    OP_MOE_GATHER,  // in: x (T,D), weights (T,k) f32 or none, map (S,2), keys (T,2) u32; out: rows of x by map (S,D)
                    // [times their weight], keys (S,2) u32
    OP_MOE_LINEAR_GROUP, // in: x (S,D), offsets (E+1,1) i32, keys (S,2) u32; out: y_i (S,N_i); saved: u (S, sum of
                         // ranks)
    OP_MOE_COMBINE,   // in: y (S,D), weights (T,k) f32 or none, map (S,2); out: sum over a token's [weight *] y (T,D)
    OP_COLUMNS,       // in: z (T,N); out: y = m / n z + b by column (T,N). m: a trained magnitude, n: row norms, held
                      // constant
    OP_DROPOUT,       // in: x (T,D), keys (T,2) u32; out: d = mask x / (1 - p) (T,D), x - d (T,D); the mask of
                      // lora_span.module
    OP_TOKEN_LOGPROB, // in: h (T,D), targets (T,1) i32, weights (T,1) f32; out: logp (T,1) f32, lse (T,1) f32; saved:
                      // dh (T,D) when fused
    // --- not recorded: run directly
    OP_LOGITS,   // in: h (T,D); out: logits (T,V) f32
    OP_KV_WRITE, // in: k (T,C), v (T,C), slots (T,1) i32; out: cache k (S,C), cache v (S,C): row slots[t] = row t; slot
                 // < 0 skipped
    OP_ROW_NORMS, // in: squares (1,N) f32 or none; out: n (1,N) f32. n = norm of each row of W + scale B A, with the
                  // squares of W's own rows given; without them: these squares
    OP_FILL,      // out: t = p.fill.value
    OP_COPY,      // in: a (T,D); out: b (T,D); converts between f32 and bf16
    OP_GRAD_ADD,  // in: g (1,n) f32; out: sum (1,n) f32 += g
    OP_GRAD_NORM, // in: sum (1,n) f32, scalars; out: scalars.grad_norm, .clip_scale, .nonfinite
    OP_ADAMW,     // in: sum (1,n), scalars; out: param, m, v (1,n) f32; does nothing when scalars.nonfinite
    OP_COUNT,
};

enum norm_kind { NORM_RMS, NORM_LAYER };
enum act_kind {
    ACT_SILU,           // x sigmoid(x)
    ACT_GELU_TANH,      // x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2
    ACT_GELU,           // x (1 + erf(x / sqrt(2))) / 2
    ACT_CLAMP,          // x within +-limit; OP_ACT only
    ACT_SWIGLU_CLAMPED, // gpt-oss: g sigmoid(alpha g) (u + 1), g = min(gate, limit), u = up within +-limit; OP_GLU only
};
enum rope_kind { ROPE_NORM /* pairs 2i, 2i+1 */, ROPE_NEOX /* pairs i, i + K/2 */ };

enum { LINEAR_MAX_PARTS = 4, LINEAR_MAX_SPANS = 4, OP_MAX_IN = 6, OP_MAX_OUT = 4, OP_MAX_SAVED = 2 };

// One adapter on rows [row_begin, row_end) of one linear: y += scale * B (A dropout(x)). Spans of several parts may
// share an A (a fused projection: one A, and B cut into the rows of q, k and v); then they have the same rows, scale,
// dropout, module and u_begin, and U is made once. OP_MOE_LINEAR_GROUP: an A and a B for each expert, stacked: (E R,
// in) and (E out, R).
struct lora_span {
    int64_t row_begin, row_end;
    struct tensor a;      // (R, in) f32
    struct tensor b;      // (out, R) f32
    struct tensor da, db; // gradients, same shapes, always added to; DTYPE_NONE when not trained
    float scale;          // alpha / r, or alpha / sqrt(r)
    float dropout;        // probability that an element of x is dropped, 0 in evaluation
    uint32_t module;      // random key of the mask
    int64_t u_begin;      // first column of this span's U = scale * A x in the saved tensor
};

// What an adapter makes of the embedding or the head, a table (V, D), for all rows of a call. Absent parts have dtype
// NONE. LoRA adds scale * B A to the table, with A (R, D) and B (V, R); `full` stands in place of the whole table,
// `rows` in place of those listed in row_ids (then neither of the others is there).
struct table_adapter {
    struct tensor a, b, da, db;
    float scale, dropout; // dropout: of the head's inputs
    uint32_t module;
    struct tensor keys;                 // (T, 2) u32, read with dropout
    struct tensor full, dfull;          // (V, D) f32
    struct tensor rows, drows, row_ids; // (n, D) f32; (n, 1) i32
    // Of the head alone, (1, V) f32: a bias in place of its own; DoRA's magnitude m with n, the norms of the rows of
    // the table with LoRA, so that logits are m / n times what they would be, plus the bias. Not beside full or rows,
    // nor with dropout.
    struct tensor bias, dbias;
    struct tensor magnitude, dmagnitude, norms;
};

struct linear_part {
    const struct weight *w;    // (out, in); OP_MOE_LINEAR_GROUP: the first of E side by side
    const struct weight *bias; // (1, out) or NULL; OP_MOE_LINEAR_GROUP: (E, out)
    int n_spans;
    struct lora_span spans[LINEAR_MAX_SPANS];
};

// How a router chooses and weighs k of E experts from its logits z.
enum moe_gate {
    MOE_SOFTMAX,        // p = softmax(z); the k largest
    MOE_SOFTMAX_CHOSEN, // the k largest z; p = softmax over them
    MOE_SIGMOID,        // p = sigmoid(z); the k largest p + bias
    MOE_SPARSE_MIXER,   // phimoe: k times the largest z of those left; p = softmax over z within 2 jitter of it
};
struct moe_route {
    enum moe_gate gate;
    int experts, used;         // E, k
    int groups, groups_used;   // experts stand in groups of equal size, only the best groups count; 1, 1 = no groups
    bool group_pairs;          // a group's score is the sum of its two largest, else its largest
    bool normalise;            // weights are divided by their sum
    float scale;               // then multiplied by this
    float jitter;              // MOE_SPARSE_MIXER
    const struct weight *bias; // (1, E), added for choosing only; NULL = none
};

// The load-balancing loss of Switch Transformers (arXiv 2101.03961), as transformers' load_balancing_loss_func: with N
// = tokens of all layers together, f_e = times e was among a token's `used` largest / N, P_e = sum of softmax(z)_e / N:
// loss = E sum f_e P_e. f is held constant. The loss is weighed by `weight` x scalars.denominator / micro_batches, so
// that a step's gradient is that of weight x the mean of its micro-batches' losses.
struct moe_balance {
    struct tensor sums; // (L, 2E) f32, a row per layer with experts: {times chosen} E, {sum of probabilities} E
    int row, used;
    float weight;
};

// Device block, read by kernels so that a captured step never changes. One f64/u64 struct, written by the host once a
// step.
struct step_scalars {
    double lr;          // learning rate of this step
    double step;        // 1-based optimiser step (bias correction)
    double denominator; // trained-token weight of the whole optimiser step over all ranks; gradients are divided by it
    double max_grad_norm;   // 0 = no clipping
    double grad_norm;       // out: norm of the averaged gradient before clipping
    double clip_scale;      // out: factor AdamW applies to sums: clip / denominator
    double nonfinite;       // out: 1 when the gradient holds NaN or infinity
    double loss_sum;        // added to by OP_TOKEN_LOGPROB: sum of weight * -logp
    double weight_sum;      // added to by OP_TOKEN_LOGPROB: sum of weights
    uint64_t seed;          // of dropout and noise
    uint32_t random_step;   // the step in random keys
    uint32_t micro_batches; // of this step; 0 stands for 1
};

// A range of the flat parameter vector with its own hyper-parameters.
struct param_group {
    int64_t begin, end;
    float lr_ratio; // LoRA+: learning rate factor
    float weight_decay;
};

union op_params {
    struct {
        const struct weight *w; // (V, D)
        float scale;            // gemma multiplies by sqrt(D); 1 otherwise
        float noise_alpha;      // NEFTune: x += uniform(-1,1) * alpha / sqrt(L * D), L = tokens of the row; 0 = off
        struct table_adapter on;
        struct tensor
            lengths; // (T,1) i32: tokens of the row each token belongs to, 0 = of none: no noise; only read with noise
    } embed;
    struct {
        enum norm_kind kind;
        const struct weight *w, *bias; // (1, D) or (1, D / groups), then the same for each group; NULL = none
        float eps;
        int groups;                    // D / groups columns are normed together (heads); 1 = whole rows
        bool plus_one;                 // multiply by 1 + w
        float scale;                   // of r in OP_ADD_NORM
        struct tensor own_bias, dbias; // (1, D) or (1, D / groups) f32: a trained bias in place of it; db = sum dy
    } norm;                            // OP_NORM, OP_ADD_NORM
    struct {
        float scale;
    } add;
    struct {
        int n_parts;
        int experts; // OP_MOE_LINEAR_GROUP
        struct linear_part parts[LINEAR_MAX_PARTS];
    } linear;
    struct {
        enum rope_kind kind;
        int head_dim;   // K; heads = cols / K
        int rotary_dim; // dims that turn (<= K), the rest pass through
        int first;      // the first of them within a head
    } rope;             // table row p = {cos_0 .. cos_{r/2-1}, sin_0 .. sin_{r/2-1}}, r = rotary_dim
    struct {
        enum act_kind kind;
        float limit, alpha; // of the kinds that clamp
    } act;                  // OP_GLU, OP_ACT
    struct {
        int heads, nope, v_dim; // Kn, Kv
    } mla;
    struct moe_route moe; // OP_MOE_ROUTE
    struct moe_balance balance;
    struct {
        int used; // k
    } moe_rows;   // OP_MOE_GATHER, OP_MOE_COMBINE
    struct {
        int heads, kv_heads, head_dim, v_dim;
        float scale;                // on q k^T
        float soft_cap;             // 0 = off: cap * tanh(x / cap)
        int window;                 // 0 = unlimited: key j visible from i iff i - j < window
        int chunk;                  // 0 = off: keys of the query's own chunk of positions only
        const struct weight *sinks; // (1, H) or NULL
        int max_seqs;               // rows of seqs - 1
    } attention;
    // seqs row n = {q_begin, q_len, kv_begin, kv_len}; unused rows have q_len 0. Query i of a sequence stands at
    // position kv_len - q_len + i of its keys and sees keys j <= that. Query rows in no sequence give o = 0.
    struct {
        const struct weight *w, *bias; // (V, D); (1, V) or NULL
        float soft_cap;                // on logits, 0 = off
        float logit_scale;             // 1 = off
        bool fused;           // also compute dh = d(sum weight * -logp)/dh in the forward pass (weights known: SFT)
        int64_t chunk_rows;   // rows of logits alive at a time (workspace)
        int64_t trained_rows; // at most so many rows have a weight that is not 0; 0 = unknown, all may. A device loops
                              // over as many chunks as this needs; the CPU counts itself
        int64_t panel_rows;   // rows of w that a device decodes at a time (workspace); 0 = as many as it thinks good
        struct table_adapter on; // gradients of its parts are added in the pass that computes dh
    } logprob;                   // OP_TOKEN_LOGPROB, OP_LOGITS. Rows with weight 0 are skipped: logp = lse = 0.
    struct {
        struct tensor magnitude, norms, dmagnitude; // (1,N) f32; no magnitude: m / n = 1
        const struct weight *bias;                  // (1,N); NULL = none
        struct tensor own_bias, dbias;              // (1,N) f32: a trained bias in place of it
    } columns;                                      // OP_COLUMNS
    struct {
        float p; // probability that an element is dropped
        uint32_t module;
    } dropout;
    struct {
        const struct weight *w; // (N, D)
        struct tensor a, b;     // (R, D), (N, R)
        float scale;
    } row_norms; // OP_ROW_NORMS
    struct {
        double value;
    } fill;
    struct {
        double beta1, beta2, eps;
        int n_groups;
        const struct param_group *groups; // host array, lives as long as the run
    } adamw;
};

struct op_call {
    enum op op;
    struct tensor in[OP_MAX_IN], out[OP_MAX_OUT], saved[OP_MAX_SAVED];
    struct tensor grad_in[OP_MAX_IN], grad_out[OP_MAX_OUT]; // backward only; DTYPE_NONE where there is none
    bool acc[OP_MAX_IN];                                    // backward: add into grad_in[i] (true) or store (false)
    struct tensor scalars;   // (1, sizeof(struct step_scalars)) u8; present where the op reads or writes them
    struct tensor workspace; // u8, as large as workspace_bytes asked for; DTYPE_NONE for 0
    union op_params p;
};

// One row per op: what the tape and the plan must know. Shapes are checked by op_check.
struct op_info {
    const char *name;
    int n_in, n_out, n_saved;
    uint8_t optional_in;              // bit i: input i may be missing
    uint8_t needs_in;                 // bit i: backward reads the value of input i
    uint8_t needs_out;                // bit i: backward reads the value of output i
    uint8_t differentiable;           // bit i: input i can have a gradient
    bool in_place;                    // output i lies in the buffer of input i (i < n_out)
    bool cheap;                       // recomputed in backward instead of kept (gradient-checkpointing of one node)
    uint8_t grad_over_in;             // bit i: backward may write grad_in[i] over the value of input i at its last use
    int8_t grad_takes_out[OP_MAX_IN]; // grad_in[i] may take over the buffer of grad_out[that]; -1 = never
    bool recorded;                    // may stand on a tape
};
extern const struct op_info op_table[OP_COUNT];

// The trained tensors that a call's parameters name, and their gradients (DTYPE_NONE = not trained); returns how many.
enum { OP_MAX_TRAINED = 2 * LINEAR_MAX_PARTS * LINEAR_MAX_SPANS };
struct op_trained {
    const char *what;
    struct tensor value, gradient;
};
int op_trained(enum op op, const union op_params *params, struct op_trained out[OP_MAX_TRAINED]);

// Checks shapes and dtypes of a forward call against its row; our own bug if it fails: fills err with op and operand.
struct error;
int op_check(const struct op_call *call, struct error *err);
// Floating point operations of a call, forward or backward (multiply-add = 2). Frozen weights have no dW.
double op_flops(const struct op_call *call, bool backward);
