// The memory plan. Every buffer is requested as (class, bytes, first use, last use) while the whole program of a run
// goes over the meta backend; a packer then gives each request an offset in one arena; the real run replays the same
// requests in the same order and gets these offsets, or an error when it asks for anything else.
//
// Time is counted in op calls. A request lives from the call after it was made to the last call that touched it.
// A program (one kind of step at one shape: "train 1024", "evaluate 512", "generate 8x256") is recorded once; run-long
// requests are made outside of programs and never die. Programs share the arena: they do not run at the same time.
#pragma once

#include "kernels/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum plan_class {
    PLAN_ADAPTER,    // adapter parameters
    PLAN_GRADIENT,   // their gradients
    PLAN_OPTIMIZER,  // moments
    PLAN_BATCH,      // ids, positions, labels, tables
    PLAN_ACTIVATION, // values kept or passing, and their gradients
    PLAN_LOGITS,     // head workspace
    PLAN_WORKSPACE,  // kernel scratch
    PLAN_KV_CACHE,
    PLAN_CLASS_COUNT,
};
const char *plan_class_name(enum plan_class c);

struct plan; // opaque

struct plan *plan_new(struct error *err);
void plan_free(struct plan *plan);

// Recording (until plan_seal) or replaying (after). A program name that was recorded before is an error while
// recording; while replaying it must be one that was recorded.
int plan_begin(struct plan *plan, const char *program, struct error *err);
int plan_end(struct plan *plan, struct error *err);

// The next request. Recording: remembers it. Replaying: must equal the recorded one; *offset is its place.
// Returns an id > 0 that tensors carry (tensor.buffer), 0 on error. Offsets are multiples of 64.
uint32_t plan_request(struct plan *plan, enum plan_class class, size_t bytes, size_t *offset, struct error *err);
// One op call is about to run that touches these buffers (0s are ignored). Replaying: after the call, ask
// plan_next_dead until it returns false for ranges nobody will touch again in this program.
void plan_touch(struct plan *plan, const uint32_t *buffers, int count);
void plan_call(struct plan *plan); // the call is over: time + 1
bool plan_next_dead(struct plan *plan, size_t *offset, size_t *bytes);

// Packs everything and switches to replaying. The arena needs plan_arena_bytes.
int plan_seal(struct plan *plan, struct error *err);
bool plan_sealed(const struct plan *plan);
size_t plan_arena_bytes(const struct plan *plan);
// The most bytes alive at one moment: what no packing can go below. Also while recording, when a choice depends on it.
size_t plan_live_bytes(const struct plan *plan);
// For people: bytes per class at the moment of the peak program's peak; sums to at most plan_arena_bytes.
void plan_class_bytes(const struct plan *plan, size_t bytes[PLAN_CLASS_COUNT]);
const char *plan_peak_program(const struct plan *plan);
int plan_program_count(const struct plan *plan);
const char *plan_program(const struct plan *plan, int index, size_t *bytes, uint32_t *requests);
