// What `graft quantize --to` names for GGUF, and which type each tensor of such a file gets. The rules are those of
// llama.cpp's llama-quantize (src/llama-quant.cpp) without its mixtures: every matrix has the named type, but
//   - the head (the embedding where both are one matrix) is Q6_K in a file of 4 or 5 bits, unless `pure`;
//   - rows that fill no block of 256 fall back, Q4_K to Q5_0 and Q6_K to Q8_0, those that fill none of 32 to F16;
//   - vectors, norms and routers stay what they are.
#pragma once

#include "kernels/quant.h"

struct gguf_packing {
    const char *name; // "q4_k"
    enum quant format;
    uint32_t file_type; // general.file_type: LLAMA_FTYPE of llama.h
};

const struct gguf_packing *gguf_packing_find(const char *name); // NULL when unknown
// "q8_0, q6_k, ...": for messages.
const char *gguf_packing_list(void);

// Does the packing say the type of this tensor? name: in the GGUF.
bool gguf_is_packed(const char *name, int n_dims);
// The type of one it does. cols: numbers in a row; head: it is multiplied with the last hidden state.
enum quant gguf_packed_format(const struct gguf_packing *packing, int64_t cols, bool head, bool pure);
