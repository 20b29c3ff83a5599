// Private part of decoder.c: the graph of one layer.
#pragma once

#include "model/decoder.h"

struct build {
    struct decoder *d;
    const struct pass *pass;
    int32_t max_seqs;
    bool cached;                                   // attention over the KV cache
    int keys, positions, seqs, slot_rows, lengths; // tape values
    int rope[ARCH_MAX_ROPES];
    int s, y; // residual stream and its norm
    struct error *err;
};

// A norm at its place: present, with or without weights.
struct norm_at {
    bool present, plus_one;
    enum norm_kind kind;
    const struct weight *w, *bias;
    const struct module *module; // NULL: no bias that could be trained
    float eps;
    int groups;
};
struct norm_at layer_norm_at(const struct build *b, int layer, enum norm_site site);
struct norm_at final_norm_at(const struct build *b);
int build_norm(struct build *b, int x, const struct norm_at *norm, int *y);

// From b->s and b->y to those of the next layer; `next`: the norm that stands after this one.
int build_layer(struct build *b, int layer, const struct norm_at *next);
