// The tape: an append-only array of nodes {op, inputs, outputs, saved, params}, run as it is recorded, walked backwards
// once, reset whole. Buffers come from the device's plan and live exactly as long as something touches them, so the
// tape never frees: what is not read in backward is gone after its last forward use.
//
// Kept or recomputed: the output of a `cheap` op (norm, glu), and every value inside a segment marked for
// recomputation that no later segment reads, is not kept; backward re-runs its node when it needs it, with the same
// random keys, so the bits are the same.
#pragma once

#include "kernels/device.h"

#include <stdio.h>

struct tape;

// `dtype` of activations: DTYPE_F32 or DTYPE_BF16. Borrows the device.
struct tape *tape_open(struct device *device, enum dtype dtype, struct error *err);
void tape_close(struct tape *tape); // NULL is a no-op
// Forgets all nodes. With `gradients` off, nothing is saved and tape_backward is an error.
void tape_reset(struct tape *tape, bool gradients);

// A value that no node produces (ids, positions, a hidden state written from outside). Returns its id.
int tape_input(struct tape *tape, struct tensor tensor, struct error *err); // -1 on error
struct tensor tape_tensor(const struct tape *tape, int value);

// Runs `op` on values `in` and appends it; out[] receives the ids of its outputs.
int tape_record(struct tape *tape, enum op op, const int *in, int n_in, const union op_params *params, int *out,
                struct error *err);

// Nodes recorded from here on belong to this weight segment: acquires it (and two ahead), releases the one before.
// `keep`: which of its inner values stay after forward; the others are computed again in backward, with the same bits.
enum tape_keep { TAPE_KEEP_ALL, TAPE_KEEP_ATTENTION /* what attention gives */, TAPE_KEEP_NONE };
int tape_segment(struct tape *tape, int segment, enum tape_keep keep, struct error *err);
int tape_segment_done(struct tape *tape, struct error *err); // releases the running segment

// The block that ops with scalars read (see step_scalars).
void tape_set_scalars(struct tape *tape, struct tensor scalars);

// Gives a value (an output of the last nodes) the gradient to start from. Not needed for a fused OP_TOKEN_LOGPROB.
void tape_seed(struct tape *tape, int value, struct tensor gradient);
// Walks all nodes backwards. Parameter gradients are added into the tensors that the nodes' spans name.
int tape_backward(struct tape *tape, struct error *err);
// Gradient of a value after tape_backward, DTYPE_NONE if it has none any more (gradients of inner values are consumed).
struct tensor tape_gradient(const struct tape *tape, int value);

int tape_length(const struct tape *tape);
void tape_print(const struct tape *tape, FILE *out); // one line a node
