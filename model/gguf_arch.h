// The keys of a GGUF that describe a model, from struct arch: the reverse of the families' mappers.
#pragma once

#include "model/gguf_export.h"

// Puts `ARCH.*` keys and the tables of rope factors. Values that the family's graph in llama.cpp takes for granted have
// no key.
int gguf_put_arch(struct gguf_export *e, struct error *err);

// Reads what was put with the family's mapper and compares it with the architecture it came from. 65 naming the first
// thing that a GGUF of the family does not say; a window that it drops (llama.cpp computes such models without) is a
// line in e->notes.
int gguf_check_arch(struct gguf_export *e, struct error *err);

// The first thing in which two architectures compute different numbers, NULL when there is none. Aside from what a
// container decides: row orders, where 1 is added to a norm, how keys and values of latent attention are stored.
// `windows`: sliding windows that `b` lacks count.
const char *arch_difference(const struct arch *a, const struct arch *b, bool permuted_qk, bool windows);
