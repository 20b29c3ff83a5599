// See gguf_packing.h.
#include "model/gguf_packing.h"

#include <string.h>

static const struct gguf_packing packings[] = {
    {"q8_0", QUANT_Q8_0, 7}, {"q6_k", QUANT_Q6_K, 18}, {"q5_1", QUANT_Q5_1, 9},  {"q5_0", QUANT_Q5_0, 8},
    {"q4_1", QUANT_Q4_1, 3}, {"q4_0", QUANT_Q4_0, 2},  {"q4_k", QUANT_Q4_K, 14}, // "small": the nearest to a pure one
    {"f16", QUANT_F16, 1},   {"bf16", QUANT_BF16, 32}, {"f32", QUANT_F32, 0},
};

const struct gguf_packing *gguf_packing_find(const char *name) {
    for (size_t i = 0; i < COUNT_OF(packings); i++) {
        if (strcmp(packings[i].name, name) == 0) return &packings[i];
    }
    return NULL;
}

const char *gguf_packing_list(void) {
    return "q8_0, q6_k, q5_1, q5_0, q4_1, q4_0, q4_k, f16, bf16, f32";
}

bool gguf_is_packed(const char *name, int n_dims) {
    static const char ending[] = ".weight";
    size_t length = strlen(name), n = sizeof ending - 1;
    return n_dims >= 2 && length > n && strcmp(name + length - n, ending) == 0 && !strstr(name, "_norm.weight") &&
           !strstr(name, "ffn_gate_inp");
}

enum quant gguf_packed_format(const struct gguf_packing *p, int64_t cols, bool head, bool pure) {
    enum quant format = p->format;
    bool few_bits = quant_format(format)->bits < 8;
    if (head && !pure && few_bits) format = QUANT_Q6_K;
    if (cols % quant_format(format)->block == 0) return format;
    if (format == QUANT_Q4_K) format = QUANT_Q5_0;
    if (format == QUANT_Q6_K) format = QUANT_Q8_0;
    return cols % quant_format(format)->block == 0 ? format : QUANT_F16;
}
