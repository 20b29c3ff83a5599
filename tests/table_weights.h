// Made-up weights in the formats with tables: random codes, scales that keep values near 0.01 .. 1. Arrays lie at odd
// addresses, or end where the next byte is not readable: decoders may not read beyond them.
#pragma once

#include "kernels/quant_tables.h"
#include "kernels/quantize.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct table_weight {
    struct weight w;
    struct weight_tables tables;
    struct table_block {
        uint8_t *data;
        size_t bytes;
        void *map; // of whole pages, the last one forbidden; NULL: data - 1 is from malloc
        size_t mapped;
    } block[6]; // what it points into
    struct error err;
};

enum { // bits of a variant; the lowest two say what values are rounded to
    TABLE_ROUND_F16 = 1,
    TABLE_ROUND_BF16 = 2,
    TABLE_NESTED = 4, // NF4: double quantisation; GPTQ: act-order; FP8: no factors; MXFP4: every second row
    TABLE_OTHER = 8,  // GPTQ: version 2; FP8: a factor per row; NF4: blocks of 128
};

static inline uint32_t table_word(uint32_t *state) { // xorshift
    uint32_t x = *state;
    x ^= x << 13, x ^= x >> 17, x ^= x << 5;
    return *state = x;
}

// `count` random bytes.
static inline struct table_bytes table_random(struct table_weight *t, int which, int64_t count, uint32_t *seed) {
    struct table_block *b = &t->block[which];
    size_t page = (size_t)sysconf(_SC_PAGESIZE), data = (size_t)count;
    *b = (struct table_block){.bytes = data};
    if (table_word(seed) & 1) {
        b->mapped = (data + page - 1) / page * page + page;
        b->map = mmap(NULL, b->mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (b->map == MAP_FAILED || mprotect((uint8_t *)b->map + b->mapped - page, page, PROT_NONE)) abort();
        b->data = (uint8_t *)b->map + b->mapped - page - data;
    } else {
        uint8_t *block = malloc(data + 1);
        if (!block) abort();
        b->data = block + 1;
    }
    for (int64_t i = 0; i < count; i++) b->data[i] = (uint8_t)(table_word(seed) >> 11);
    return (struct table_bytes){b->data, data};
}

static inline struct table_bytes table_scales(struct table_weight *t, int which, int64_t count, enum number type,
                                              uint32_t *seed) {
    struct table_bytes b = table_random(t, which, count * (type == NUMBER_F32 ? 4 : type == NUMBER_E8M0 ? 1 : 2), seed);
    uint8_t *at = t->block[which].data;
    for (int64_t i = 0; i < count; i++) {
        float x = 0.01f + 0.02f * (float)(table_word(seed) >> 8) * 0x1p-24f;
        uint16_t half = type == NUMBER_F16 ? f16_from_float(x) : bf16_from_float(x);
        if (type == NUMBER_F32)
            memcpy(at + 4 * i, &x, 4);
        else if (type == NUMBER_E8M0)
            at[i] = (uint8_t)(118 + table_word(seed) % 8);
        else
            memcpy(at + 2 * i, &half, 2);
    }
    return b;
}

static inline int make_nf4(struct table_weight *t, bool fp4, int64_t rows, int64_t cols, int variant, uint32_t seed) {
    int64_t block = variant & TABLE_OTHER ? 128 : 64, blocks = (rows * cols + block - 1) / block;
    struct nf4_parts p = {.name = "made.nf4", fp4, rows, cols, block, .rounded = (enum number)(variant & 3)};
    bool nested = variant & TABLE_NESTED;
    p.codes = table_random(t, 0, (rows * cols + 1) / 2, &seed);
    p.absmax = nested ? table_random(t, 1, blocks, &seed) : table_scales(t, 1, blocks, NUMBER_F32, &seed);
    p.quant_map = table_random(t, 2, 64, &seed);
    float map[256];
    nf4_code_map(map, fp4);
    memcpy(t->block[2].data, map, 64);
    if (nested) {
        p.nested_absmax = table_scales(t, 3, (blocks + 255) / 256, NUMBER_F32, &seed);
        p.nested_quant_map = table_random(t, 4, 1024, &seed);
        nf4_scale_map(map);
        memcpy(t->block[4].data, map, 1024);
        p.nested_blocksize = 256, p.nested_offset = 0.0301f;
    }
    return nf4_weight(&t->w, &t->tables, &p, &t->err);
}

static inline int make_gptq(struct table_weight *t, int bits, int64_t rows, int64_t cols, int variant, uint32_t seed) {
    int64_t groups = (cols + 31) / 32;
    struct gptq_parts p = {
        .name = "made.gptq", rows, cols, bits, 32, variant & TABLE_OTHER, NUMBER_F16, (enum number)(variant & 3)};
    p.qweight = table_random(t, 0, cols * bits / 8 * rows, &seed);
    p.qzeros = table_random(t, 1, groups * rows * bits / 8, &seed);
    p.scales = table_scales(t, 2, groups * rows, NUMBER_F16, &seed);
    if (variant & TABLE_NESTED) {
        p.g_idx = table_random(t, 3, cols * 4, &seed);
        for (int64_t i = 0; i < cols; i++) {
            int32_t group = (int32_t)(i * 7 % groups);
            memcpy(t->block[3].data + 4 * i, &group, 4);
        }
    }
    return gptq_weight(&t->w, &t->tables, &p, &t->err);
}

static inline int make_fp8(struct table_weight *t, bool e5m2, int64_t rows, int64_t cols, int variant, uint32_t seed) {
    enum number type = e5m2 ? NUMBER_E8M0 : NUMBER_F32;
    struct fp8_parts p = {.name = "made.fp8",
                          e5m2,
                          rows,
                          cols,
                          48,
                          32,
                          (rows + 47) / 48,
                          (cols + 31) / 32,
                          type,
                          (enum number)(variant & 3)};
    p.codes = table_random(t, 0, rows * cols, &seed);
    for (int64_t i = 0; i < rows * cols; i++) t->block[0].data[i] &= 0xB7; // small numbers, no NaN
    if (variant & TABLE_OTHER) p.block_rows = 1, p.block_cols = cols, p.scale_rows = rows, p.scale_cols = 1;
    if (!(variant & TABLE_NESTED)) p.scales = table_scales(t, 1, p.scale_rows * p.scale_cols, type, &seed);
    return fp8_weight(&t->w, &t->tables, &p, &t->err);
}

// rows and cols: multiples of 32 always fit. Returns -1 with t->err where they do not.
static inline int table_weight_make(struct table_weight *t, enum quant id, int64_t rows, int64_t cols, int variant,
                                    uint32_t seed) {
    enum number rounded = (enum number)(variant & 3);
    seed = seed * 2654435761u + (uint32_t)id + 1;
    *t = (struct table_weight){0};
    switch (id) {
    case QUANT_NF4:
    case QUANT_FP4: return make_nf4(t, id == QUANT_FP4, rows, cols, variant, seed);
    case QUANT_GPTQ_2: return make_gptq(t, 2, rows, cols, variant, seed);
    case QUANT_GPTQ_3: return make_gptq(t, 3, rows, cols, variant, seed);
    case QUANT_GPTQ_4: return make_gptq(t, 4, rows, cols, variant, seed);
    case QUANT_GPTQ_8: return make_gptq(t, 8, rows, cols, variant, seed);
    case QUANT_FP8_E4M3:
    case QUANT_FP8_E5M2: return make_fp8(t, id == QUANT_FP8_E5M2, rows, cols, variant, seed);
    case QUANT_INT8: {
        struct int8_parts p = {.name = "made.int8",
                               rows,
                               cols,
                               rounded,
                               table_random(t, 0, rows * cols, &seed),
                               table_scales(t, 1, rows, NUMBER_F32, &seed)};
        return int8_weight(&t->w, &t->tables, &p, &t->err);
    }
    case QUANT_AWQ: {
        struct awq_parts p = {.name = "made.awq",
                              rows,
                              cols,
                              32,
                              NUMBER_F16,
                              rounded,
                              table_random(t, 0, cols * rows / 2, &seed),
                              table_random(t, 1, cols / 32 * rows / 2, &seed),
                              table_scales(t, 2, cols / 32 * rows, NUMBER_F16, &seed)};
        return awq_weight(&t->w, &t->tables, &p, &t->err);
    }
    default: {
        int64_t step = variant & TABLE_NESTED ? 2 : 1;
        struct mxfp4_parts p = {.name = "made.mxfp4",
                                rows,
                                cols,
                                step,
                                rounded,
                                table_random(t, 0, rows * step * cols / 2, &seed),
                                table_scales(t, 1, rows * step * (cols / 32), NUMBER_E8M0, &seed)};
        return mxfp4_weight(&t->w, &t->tables, &p, &t->err);
    }
    }
}

// Any bytes for codes and scales (NaN, infinity, numbers below the normal range). Not for the maps, whose numbers were
// checked to be finite, nor for the groups of columns.
static inline void table_weight_spoil(struct table_weight *t, uint32_t seed) {
    enum quant id = t->w.format->id;
    for (int i = 0; i < 6; i++) {
        bool map = (id == QUANT_NF4 || id == QUANT_FP4) && (i == 2 || i == 4);
        bool groups = id >= QUANT_GPTQ_2 && id <= QUANT_GPTQ_8 && i == 3;
        uint32_t state = seed;
        for (size_t b = 0; b < t->block[i].bytes && !map && !groups; b++)
            t->block[i].data[b] = (uint8_t)(table_word(&state) >> 9);
    }
}

static inline void table_weight_free(struct table_weight *t) {
    for (int i = 0; i < 6; i++) {
        struct table_block *b = &t->block[i];
        if (b->map)
            munmap(b->map, b->mapped);
        else if (b->data)
            free(b->data - 1);
    }
}
