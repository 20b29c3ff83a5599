// A model that is only a table of linears, with odd sizes and permuted heads, for tests of adapter files. 3 layers,
// width 15, 3 query heads and 1 key head of 10, MLP 22.
#pragma once

#include "model/model.h"

#include <stdio.h>

enum fixture_kind { FIXTURE_Q, FIXTURE_K, FIXTURE_V, FIXTURE_O, FIXTURE_GATE, FIXTURE_UP, FIXTURE_DOWN, FIXTURE_KINDS };
enum { FIXTURE_LAYERS = 3, FIXTURE_MODULES = FIXTURE_LAYERS * FIXTURE_KINDS };

struct fixture {
    struct model model;
    struct module modules[FIXTURE_MODULES];
    char hf[FIXTURE_MODULES][64], gguf[FIXTURE_MODULES][64];
};

static inline void fixture_init(struct fixture *f) {
    static const struct {
        const char *hf, *short_name, *gguf;
        int in, out, heads;
    } kinds[FIXTURE_KINDS] = {
        [FIXTURE_Q] = {"self_attn.q_proj", "q_proj", "attn_q", 15, 30, 3},
        [FIXTURE_K] = {"self_attn.k_proj", "k_proj", "attn_k", 15, 10, 1},
        [FIXTURE_V] = {"self_attn.v_proj", "v_proj", "attn_v", 15, 10, 0},
        [FIXTURE_O] = {"self_attn.o_proj", "o_proj", "attn_output", 30, 15, 0},
        [FIXTURE_GATE] = {"mlp.gate_proj", "gate_proj", "ffn_gate", 15, 22, 0},
        [FIXTURE_UP] = {"mlp.up_proj", "up_proj", "ffn_up", 15, 22, 0},
        [FIXTURE_DOWN] = {"mlp.down_proj", "down_proj", "ffn_down", 22, 15, 0},
    };
    *f = (struct fixture){.model = {.path = "bases/tiny.gguf", .name = "tiny", .hf_repository = "org/tiny"}};
    f->model.arch.family = "llama";
    f->model.arch.layers = FIXTURE_LAYERS;
    f->model.modules = f->modules;
    f->model.n_modules = FIXTURE_MODULES;
    for (int id = 0; id < FIXTURE_MODULES; id++) {
        int layer = id / FIXTURE_KINDS, kind = id % FIXTURE_KINDS;
        snprintf(f->hf[id], sizeof f->hf[id], "model.layers.%d.%s", layer, kinds[kind].hf);
        snprintf(f->gguf[id], sizeof f->gguf[id], "blk.%d.%s.weight", layer, kinds[kind].gguf);
        f->modules[id] = (struct module){
            .id = id,
            .layer = layer,
            .kind = kind,
            .hf_name = f->hf[id],
            .short_name = kinds[kind].short_name,
            .in = kinds[kind].in,
            .out = kinds[kind].out,
            .experts = 1,
            .n_parts = 1,
            .n_tensors = 1,
            .parts = {{.rows = kinds[kind].out, .permuted_heads = kinds[kind].heads, .hf_step = 1}},
            .tensors = {
                {.name = f->gguf[id], .rows = kinds[kind].out, .permuted_heads = kinds[kind].heads, .hf_step = 1}}};
    }
}
