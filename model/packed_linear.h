// Linears of checkpoints that are packed already: bitsandbytes 4 and 8 bit, GPTQ, AWQ, FP8, MXFP4 (formats.md 3.4, 3.5,
// 4, 5). Which form a linear has follows from its tensors; config.json's quantization_config says what they do not.
#pragma once

#include "kernels/quant_tables.h"
#include "model/base_files.h"
#include "model/checkpoint_packing.h"

// The matrix (rows, cols) of linear `stem` ("model.layers.0.self_attn.q_proj"). 1: `out` is set, its tables are in the
// pool; 0: the linear is not packed (or not there); -1: error, 65.
int packed_linear(const struct base *base, const struct packing *packing, struct pool *pool, const char *stem,
                  int64_t rows, int64_t cols, struct weight *out, struct error *err);
// All experts of a stacked parameter: out[e] is the matrix (rows, cols) of expert e. As packed_linear.
int packed_experts(const struct base *base, const struct packing *packing, struct pool *pool, const char *stem,
                   int64_t experts, int64_t rows, int64_t cols, struct weight *out, struct error *err);
