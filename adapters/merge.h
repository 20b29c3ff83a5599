// The base with the adapter added to its weights, for runtimes that load no adapters. Adapted linears become
// W + scale * B A, computed in float; everything else is copied byte for byte. Row by row: nothing of the model's size
// is in memory. Both refuse (65) an adapter that changes a tied matrix in one of its uses, trained biases, and values
// that the type cannot hold; 73 a path that exists; 74 too little space, said before anything is written.
#pragma once

#include "adapters/adapter.h"

// From a GGUF or its parts: one file. Adapted linears are stored as `type` (QUANT_F16, F32, BF16 or Q8_0); all keys are
// kept but general.alignment and those of the split. Errors: 64 another type.
int merge_write(const char *path, const struct adapter *adapter, enum quant type, int threads, struct error *err);

// From safetensors of plain numbers (bf16, f16, f32): a new folder with the same shards, index, config.json and
// tokenizer; each tensor keeps its type and its place. Errors: 65 an adapted linear that is packed.
int merge_folder_write(const char *path, const struct adapter *adapter, int threads, struct error *err);
// Private to both: what neither can merge.
int merge_check(const struct adapter *adapter, struct error *err);
