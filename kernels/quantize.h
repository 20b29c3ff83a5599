// Quantisers of bitsandbytes' formats: the bytes and scales that bitsandbytes 0.50 makes of the same values on the CPU
// (formats.md 3). The same on every machine. quant_tables.h reads the result back.
//
// A matrix may be quantised in pieces, by several threads and as it arrives: each call is given whole blocks, rows, or
// blocks of scales. Values may lie at any address; NaN and infinity are refused (65).
#pragma once

#include "kernels/error.h"
#include "kernels/weights.h"

enum { NF4_SCALE_BLOCK = 256 }; // scales under one outer scale

// `count` elements of the flat matrix; only its last piece may end within a block. Room: (count + 1) / 2 codes,
// ceil(count / blocksize) absmax. blocksize: 32, 64, 128 .. 4096. type: f32, f16 or bf16.
int nf4_quantize(uint8_t *codes, float *absmax, const void *values, enum number type, int64_t count, int64_t blocksize,
                 bool fp4, struct error *err);
// quant_map: what the codes stand for.
void nf4_code_map(float map[16], bool fp4);

// Double quantisation of all absmax of a matrix: first the offset, then the codes. Pieces of the second step begin at
// multiples of NF4_SCALE_BLOCK.
float nf4_scales_offset(const float *absmax, int64_t blocks);
void nf4_quantize_scales(uint8_t *codes, float *nested_absmax, const float *absmax, int64_t blocks, float offset);
// nested_quant_map.
void nf4_scale_map(float map[256]);

// LLM.int8: `rows` rows of `cols` elements, rounded to f16 first, as bitsandbytes does (what is infinite then is
// refused).
int int8_quantize(int8_t *codes, float *scb, const void *values, enum number type, int64_t rows, int64_t cols,
                  struct error *err);
