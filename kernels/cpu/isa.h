// The fast kernels of one instruction set. Each *_fast.c is compiled once per set (see vec.h) and exports one table.
#pragma once

struct gemm_isa;      // gemm.h: packed GEMM tiles, panel decoders, adapter products
struct rows_isa;      // rows.h: norm, rope, glu, embedding, soft-max over rows, AdamW
struct attention_isa; // attention.h
struct moe_isa;       // moe.h

struct cpu_isa {
    const char *name; // "c", "avx2", "avx512", "avx512bf16"
    const struct gemm_isa *gemm;
    const struct rows_isa *rows;
    const struct attention_isa *attention;
    const struct moe_isa *moe;
};

extern const struct gemm_isa gemm_isa_c, gemm_isa_avx2, gemm_isa_avx512, gemm_isa_avx512bf16;
extern const struct rows_isa rows_isa_c, rows_isa_avx2, rows_isa_avx512;
extern const struct moe_isa moe_isa_c, moe_isa_avx2, moe_isa_avx512;
extern const struct attention_isa attention_isa_c, attention_isa_avx2, attention_isa_avx512;
