// quantization_config of a config.json: how a checkpoint is packed, as far as its tensors do not say it.
#pragma once

#include "data/json.h"

struct packing {
    const char *method;       // quant_method, lower case; NULL when the checkpoint is not packed
    int64_t bits, group_size; // group_size: -1 = all columns, 0 = not said
    bool gptq_v2;
    bool reordered;         // GPTQ "desc_act": g_idx must be there
    bool overrides;         // GPTQ "dynamic": modules have bits and groups of their own
    int64_t block[2];       // FP8 weight_block_size; 0 = not said
    const char *scale_kind; // FP8 scale_fmt, NULL = floats
};

// Reads quantization_config of a config.json. Errors: 65 a method or layout that is not in this version, by name.
// `name` stands for the file in messages; strings live as long as `config`.
int packing_read(const struct json *config, const char *name, struct packing *out, struct error *err);
