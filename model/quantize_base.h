// A base of plain numbers becomes a folder as bitsandbytes and transformers write it: linears of the layers in NF4, FP4
// or LLM.int8 (formats.md 3), everything else as it is, with config.json and the tokenizer's files beside.
#pragma once

#include "model/model.h"

struct base_packing {
    enum quant format; // QUANT_NF4, QUANT_FP4, QUANT_INT8; 0 (QUANT_F32) = none: the base stays as it is
    int64_t blocksize; // of NF4 and FP4
    bool nested;       // the scales of NF4 and FP4 are quantised too
    // Experts that are slices of one tensor (Llama 4, Granite, gpt-oss), too: each becomes a linear (out, in) of its
    // own named TENSOR.EXPERT, as if the checkpoint had kept them apart. transformers does not load those; graft does.
    bool experts;
};
// "nf4-64-nested": for names of files and messages; `out` has room for 40 bytes.
void base_packing_name(const struct base_packing *packing, char *out);
// The reverse; false when it is no such name.
bool base_packing_parse(const char *name, struct base_packing *out);

// Called now and then with bytes read so far and in all; non-zero ends the work (the error is the callee's).
typedef int (*quantize_report)(void *context, int64_t done, int64_t total, struct error *err);

// Fills `folder`, which exists and is empty. The same bytes whatever `threads` is. Errors: 65 a base that is packed
// already, is no safetensors or holds what is not finite; 74 writing; 64 a base without any linear to quantise.
int quantize_base(const struct model *model, const struct base_packing *packing, const char *folder, int threads,
                  quantize_report report, void *context, struct error *err);
