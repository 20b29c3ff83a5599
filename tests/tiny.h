// A tiny random llama in GGUF, with a byte-level vocabulary and a ChatML template: real enough for every command, small
// enough for thousands of steps.
#pragma once

#include "kernels/base.h"
#include "kernels/quant.h"

struct tiny_options {
    int layers, width, heads, kv_heads, ffn;
    enum quant type;  // of the linears; sizes must be multiples of its block
    enum quant embed; // of the embedding, which is also the head
    unsigned seed;
};
// 2 layers, width 64, 4 heads of 16, 2 kv heads, ffn 96, Q4_1 linears, Q8_0 embedding.
extern const struct tiny_options tiny_default;
int tiny_write(const char *path, const struct tiny_options *options, struct error *err);
// Rows of chat about numbers, enough to learn something: n rows into a JSONL file.
int tiny_rows(const char *path, int n, unsigned seed, struct error *err);
