// How many bytes a base takes in memory or on disk, by the format its linears are held in: arithmetic over shapes, for
// planning. Reads no weight.
#pragma once

#include "model/model.h"

enum base_storage {
    STORAGE_BF16,
    STORAGE_INT8,       // load_in_8bit: a byte per weight, an fp32 scale per row
    STORAGE_NF4,        // load_in_4bit: half a byte per weight, an fp32 scale per 64
    STORAGE_NF4_DOUBLE, // the same with scales in a byte each and an fp32 scale per 256 of them
    STORAGE_Q8_0,       // GGUF
    STORAGE_Q4_K,
    STORAGE_PACKED, // as quantization_config says, where there is one
    STORAGE_COUNT,
};
const char *base_storage_name(enum base_storage storage); // "load_in_8bit", "Q4_K"

// What bitsandbytes would quantise: every linear of the layers, experts too, each matrix by itself; routers, norms,
// biases, embedding and head stay. A GGUF as `llama-quantize --pure` packs it: embedding and head too, routers and
// vectors in F32, rows that fill no block in the type llama.cpp falls back to.
struct base_sizes {
    uint64_t linears; // parameters of the linears that are quantised
    uint64_t ends;    // of embedding and head (tied: once)
    uint64_t others;  // norms, biases, routers; the three sum up to model->total_parameters
    uint64_t bytes[STORAGE_COUNT];
    // Of it: experts that lie in one tensor, which bitsandbytes leaves in 16 bits unless `quantize_moe_experts` is set.
    uint64_t stacked[STORAGE_COUNT];
    bool packed;          // the checkpoint is packed already: bytes[STORAGE_PACKED] is what its tensors take, and
    char packed_name[80]; // "GPTQ, 4 bits, groups of 128"
};
// Bytes in memory with or without that key.
uint64_t base_sizes_bytes(const struct base_sizes *sizes, enum base_storage storage, bool experts);
void base_sizes_count(const struct model *model, struct base_sizes *out);
