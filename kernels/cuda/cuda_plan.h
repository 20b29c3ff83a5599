// Workspaces of the CUDA backend's kernels: pure functions of shapes, linked into the program too, so that a run on a
// GPU can be planned where there is none. What lies where in a workspace is decided here as well, once for both.
// GPU can be planned where there is none.
#pragma once

#include "kernels/error.h"
#include "kernels/ops.h"

// What is taken beside arena and base: by products, by the driver.
#define CUDA_GEMM_WORKSPACE ((size_t)32 << 20)
#define CUDA_CONTEXT_BYTES  ((size_t)512 << 20)

typedef size_t (*workspace_function)(const struct op_call *call, bool backward, int threads);
extern const workspace_function cuda_workspaces[OP_COUNT]; // NULL: the backend has no such kernel

// Adds a piece of `bytes` to a workspace of *end bytes and returns where it begins.
static inline size_t cuda_piece(size_t *end, size_t bytes) {
    size_t at = *end;
    *end += (bytes + 255) / 256 * 256;
    return at;
}

// Does the product read the weight where it lies, without decoding it first?
bool cuda_weight_is_plain(const struct weight *w, enum dtype dtype);

// OP_LINEAR_GROUP. R = sum of the ranks of all spans; sizes are those of the activations' dtype unless said.
struct linear_space {
    size_t weight;  // the largest part that is decoded (N, K)
    size_t a, b;    // A of all spans, stacked and times their scale (R, K); B of one span (N, r)
    size_t u, ub;   // U where it is not saved (T, R) f32; U (T, R)
    size_t v, vb;   // backward: V = scale dY B (T, R) f32; V (T, R)
    size_t dropped; // what an adapter sees of x (T, K)
    size_t through; // backward with dropout: V A before the mask (T, K) f32
    size_t bytes;   // of it all
    int64_t ranks;  // R
};
struct linear_space linear_space_of(const struct op_call *call, bool backward);
size_t cuda_linear_group_workspace(const struct op_call *call, bool backward, int threads);

// --- weights

// Bytes of the host that are copied to the device as one piece, to offset `at` of what their segment has there.
struct cuda_range {
    const uint8_t *host;
    size_t bytes, at;
    int segment;
};
struct cuda_layout {
    struct cuda_range *ranges; // sorted by host address, apart
    int n_ranges, n_segments;
    size_t *bytes;       // of each segment on the device
    size_t vector_bytes; // of vectors as floats, beside
};
int cuda_layout_open(const struct weight *const *weights, int n, int n_segments, struct cuda_layout *out,
                     struct error *err);
void cuda_layout_close(struct cuda_layout *layout); // zeroed struct is a no-op
// Norms, biases and the like, which kernels want as floats; bytes of it as such.
bool cuda_is_vector(const struct weight *w);
size_t cuda_vector_bytes(const struct weight *w);

// What of it stays on the device. Layers from streamed_from on pass through slots, two ahead of the one in use.
enum { CUDA_STREAM_SLOTS = 3 };
struct cuda_residency {
    size_t resident, slot, streamed; // bytes: of all that stays, of one slot, of all that passes
    int slots;                       // 0: nothing is streamed
    int streamed_from;
};
// As much as `budget` bytes hold; more than that only where even slots alone do not fit.
void cuda_residency_choose(const struct cuda_layout *layout, size_t budget, struct cuda_residency *out);
bool cuda_streams(const struct cuda_layout *layout, const struct cuda_residency *residency, int segment);
// OP_MOE_ROUTE, OP_MOE_BALANCE.
struct moe_route_space {
    size_t counts, totals, bytes; // see gpu_moe.h
};
struct moe_route_space moe_route_space_of(const struct op_call *call);
size_t cuda_moe_route_workspace(const struct op_call *call, bool backward, int threads);
int64_t moe_balance_tokens(const struct op_call *call); // that one block adds up
size_t cuda_moe_balance_workspace(const struct op_call *call, bool backward, int threads);

// OP_MOE_LINEAR_GROUP. Spans are counted through all parts: span s of part i is LINEAR_MAX_SPANS i + s. Ranks and
// columns are rounded up to MOE_PADDING in copies, so that their rows can be read 16 bytes at a time.
enum { MOE_PADDING = 8, MOE_SPANS = LINEAR_MAX_PARTS * LINEAR_MAX_SPANS };
static inline int64_t moe_padded(int64_t n) {
    return (n + MOE_PADDING - 1) / MOE_PADDING * MOE_PADDING;
}
struct moe_linear_space {
    size_t weights[LINEAR_MAX_PARTS];   // decoded experts of a part; in the forward pass all parts have one place
    int64_t together[LINEAR_MAX_PARTS]; // how many experts that is; backward: the same for all parts
    // Adapters. In the forward pass, the A's of neighbours that see the same x stand below each other in one A of each
    // expert, and their U's side by side, so that x is read once; spans that share an A have one of both.
    size_t a[MOE_SPANS], b[MOE_SPANS]; // A (E, width, K), its own rows; B (E, N, r)
    size_t u[MOE_SPANS], v[MOE_SPANS]; // U (S, width), its own columns; backward: V = scale dY B (S, r)
    int shared[MOE_SPANS];             // the first span that has the same A and U, mostly itself
    int lead[MOE_SPANS];               // the first span of its neighbours, mostly itself
    int64_t width[MOE_SPANS];          // ranks of it and its neighbours
    size_t dropped;                    // what an adapter sees of x (S, K)
    size_t bytes;
};
struct moe_linear_space moe_linear_space_of(const struct op_call *call, bool backward);
size_t cuda_moe_linear_group_workspace(const struct op_call *call, bool backward, int threads);
// `threads` does not matter here.
size_t cuda_attention_workspace(const struct op_call *call, bool backward, int threads);
#define CUDA_WORKSPACE(name) size_t cuda_##name##_workspace(const struct op_call *call, bool backward, int threads)
// cuda_head_plan.c
CUDA_WORKSPACE(embed);
CUDA_WORKSPACE(token_logprob);
CUDA_WORKSPACE(logits);
CUDA_WORKSPACE(columns);
CUDA_WORKSPACE(row_norms);
CUDA_WORKSPACE(grad_norm);
CUDA_WORKSPACE(adamw);
