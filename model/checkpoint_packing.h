// quantization_config of a config.json: how a checkpoint is packed, as far as its tensors do not say it.
#pragma once

#include "data/json.h"

struct packing {
    const char *method;       // quant_method, lower case; NULL when the checkpoint is not packed
    int64_t bits, group_size; // group_size: -1 = all columns, 0 = not said
    bool gptq_v2;
    bool reordered;          // GPTQ "desc_act": g_idx must be there
    bool overrides;          // GPTQ "dynamic": modules have bits and groups of their own
    int64_t block[2];        // FP8 weight_block_size; 0 = not said
    const char *scale_kind;  // FP8 scale_fmt, NULL = floats
    bool eight, nested;      // bitsandbytes: load_in_8bit, bnb_4bit_use_double_quant
    bool head;               // the output head is packed, too
    const struct json *kept; // a list of names that are not packed; NULL = none
};

// Reads quantization_config of a config.json. Errors: 65 a method or layout that is not in this version, by name.
// `name` stands for the file in messages; strings live as long as `config`.
int packing_read(const struct json *config, const char *name, struct packing *out, struct error *err);

// What follows is for planning, where there are no tensors to ask. Is the module of this name (a linear, no router) one
// that the configuration leaves as it is? Names of the lists match whole, from the beginning or behind a dot, and may
// hold '*' for one component.
bool packing_keeps(const struct packing *packing, const char *name);
// Bytes of the matrix (rows, cols) with everything stored beside it, except bitsandbytes' quant_state, a text of 80 to
// 170 bytes. 0: the format has no such matrix (MXFP4 of rows that are no whole blocks).
uint64_t packing_bytes(const struct packing *packing, uint64_t rows, uint64_t cols);
// "GPTQ, 4 bits, groups of 128": into `out`, which has room for 80 bytes.
void packing_name(const struct packing *packing, char *out);
