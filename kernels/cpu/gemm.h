// The GEMM seam of the CPU backend: C (m x n) = [C +] sum over terms of X W, where W may be packed in any format of
// quant.h and is decoded panel by panel inside the product. A panel is 48 columns of C by up to GEMM_BLOCK inner
// indices, in fp32, and lives in a thread's second-level cache; the whole weight never exists decoded.
//
// Bits: an element of C starts at 0, at the old C, or at its bias, and takes one fused multiply-add after another:
// terms in order, the inner index of each ascending. Lanes run over columns of C only, nothing is ever summed over
// lanes, blocks or threads. So neither the instruction set, nor the block sizes, nor the thread count changes a bit.
// bf16 products (gemm_term.bf16) follow vdpbf16ps: in each pair of inner indices the odd one comes first, and numbers
// below the normal range count as 0.
#pragma once

#include "kernels/cpu/cpu.h"
#include "kernels/quant.h"
#include "kernels/random.h"

enum {
    GEMM_ROWS = 8,      // rows of C in a register tile, at most
    GEMM_COLS = 48,     // columns of C in a tile = lanes of a panel
    GEMM_CUT = 128,     // an inner index is cut into blocks at multiples of this
    GEMM_BLOCK = 2048,  // inner indices in a panel, at most
    GEMM_CHUNK = 1024,  // rows of C in a task, at most
    GEMM_MAX_JOBS = 64, // of one gemm_run
};

// A matrix whose rows are packed numbers; fp32 and bf16 tensors are the formats F32 and BF16.
struct gemm_source {
    enum quant format;
    const uint8_t *data;
    size_t stride;                          // bytes from one row to the next
    int64_t n;                              // columns of C it feeds; the sources of a term follow one another
    bool transposed;                        // the rows in memory are the columns of the matrix
    const struct weight *weight;            // with tables, or no fast decoder: its elements come from there; else NULL
    const struct gemm_table_decoder *table; // for weights with tables; NULL: weight_decode, element by element
};

// Dropout of LoRA inputs: x (row, element) is kept when its random number >= p, then multiplied by 1 / (1 - p).
struct gemm_dropout {
    struct random_key key;
    const uint32_t *keys; // two words per row of x: dataset row, token in row
    int64_t ld;           // words from one row's keys to the next
    float p;
};
enum gemm_masked {
    GEMM_MASK_NONE,
    GEMM_MASK_X,       // element (m, k) of X: keys row m, element k
    GEMM_MASK_SOURCE,  // element (k, n) of the source: keys row k, element n
    GEMM_MASK_PRODUCT, // the term's sum for (m, n), from 0, is masked and then added: keys row m, element n
};

struct gemm_term {
    const void *x;       // element (m, k) at x[m * x_row + k * x_k]
    bool x_bf16;         // x is bf16 (then x_k is 1), else fp32
    bool bf16;           // multiply as bf16: x is bf16, the source is rounded to it
    bool lanes_are_rows; // columns of C are rows of the sources (W^T), else columns of the sources
    enum gemm_masked masked;
    int64_t x_row, x_k;
    int64_t k;                  // inner length
    int64_t row_begin, row_end; // rows of C it adds to; the first term of a job: all
    const struct gemm_source *sources;
    int n_sources; // more than one only with lanes_are_rows
    struct gemm_dropout dropout;
};

struct gemm_job {
    int64_t m, n;
    void *c;
    int64_t ldc;
    bool c_bf16;               // C is bf16: rounded once, after the last term
    bool c_transposed;         // element (m, n) at c[n * ldc + m]
    bool acc;                  // start at the old C
    float scale;               // multiplies the finished sum; 1 = none
    const struct weight *bias; // (1, n) the sum starts with, or NULL
    int n_terms;               // >= 1
    const struct gemm_term *terms;
};

struct gemm_isa;
// Runs the jobs together on the threads. `workspace`: gemm_workspace_bytes(threads), 64-byte aligned.
void gemm_run(struct threads *threads, const struct gemm_isa *isa, const struct gemm_job *jobs, int n_jobs,
              void *workspace);
size_t gemm_workspace_bytes(int threads);

// A weight as a source: columns of C are its rows (y = x W^T) or its columns (dx = dy W).
struct gemm_source gemm_source_weight(const struct gemm_isa *isa, const struct weight *w, bool lanes_are_rows);
// A tensor in memory, `bytes` from row to row.
struct gemm_source gemm_source_memory(const void *data, bool bf16, int64_t ld, int64_t n);

// --- the kernels of one instruction set

// One register tile: C = init + X panel, m <= GEMM_ROWS, n <= GEMM_COLS. The panel has whole vectors of 16 lanes.
struct gemm_tile {
    float *c;
    const float *init; // NULL: start at 0
    const float *x, *panel;
    int64_t ldc, ld_init, x_row, x_k, ld_panel;
    int64_t k;
    int m, n;
};
// The same with bf16 pairs: x holds pairs of neighbours, panel row i the pairs (2i, 2i + 1) of 48 lanes.
struct gemm_tile_bf16 {
    float *c;
    const float *init;
    const uint16_t *x;
    const uint32_t *panel;
    int64_t ldc, ld_init, x_row;
    int64_t pairs;
    int m, n;
};
// Panel rows are GEMM_COLS floats apart. rows: lanes are `n` rows of packed numbers, panel row i is element k0 + i.
// cols: lanes are the elements col0 .. col0 + n of `k` packed rows. col0 and k0 are multiples of 16 or, where a block
// is longer, of GEMM_CUT; n is at most GEMM_COLS, and only whole 16s or n lanes are written.
struct gemm_decoder {
    void (*rows)(float *panel, const uint8_t *data, size_t stride, int64_t k0, int64_t k, int n);
    void (*cols)(float *panel, const uint8_t *data, size_t stride, int64_t k, int64_t col0, int n);
};

// The same for weights with tables that `fits` admits. Rows are those of the view.
struct gemm_table_decoder {
    bool (*fits)(const struct weight *w);
    void (*rows)(float *panel, const struct weight *w, int64_t row, int64_t k0, int64_t k, int n);
    void (*cols)(float *panel, const struct weight *w, int64_t row, int64_t k, int64_t col0, int n);
};

struct gemm_isa {
    void (*tile)(const struct gemm_tile *t);
    const struct gemm_decoder *decoders; // [QUANT_COUNT]; {NULL, NULL} for formats that go element by element
    const struct gemm_table_decoder *table_decoders; // [QUANT_COUNT]
    void (*dropout)(float *out, const float *x, int64_t n, int64_t element, const struct gemm_dropout *d, int64_t row);
    // bf16 <-> fp32. `swap` exchanges the neighbours of each pair (n is even then).
    void (*from_bf16)(float *out, const uint16_t *x, int64_t n, bool swap);
    void (*to_bf16)(uint16_t *out, const float *x, int64_t n);
    void (*round_panel)(float *panel, int64_t k); // to bf16 values, rows of each pair exchanged; k is even
    // With bf16 instructions only, else NULL.
    void (*tile_bf16)(const struct gemm_tile_bf16 *t);
    void (*pack_bf16)(uint32_t *pairs, const float *panel, int64_t k); // k is even
    // Head, one row of n logits: z = cap tanh(scale z / cap); largest and sum of e^(z - largest);
    // z = coefficient e^(z - largest) times the derivative of scale and cap.
    void (*cap_row)(float *z, int64_t n, float scale, float cap);
    void (*softmax_row)(const float *z, int64_t n, float *largest, float *sum);
    void (*softmax_bwd_row)(float *z, int64_t n, float largest, float coefficient, float scale, float cap);
};

// Private to the *_fast.c and *_bf16.c files: what each instruction set's table is made of. Loops over registers are
// unrolled by pragma, otherwise the compiler keeps the arrays in memory; under a sanitizer they stay loops, which
// compiles ten times as fast.
#if defined(__SANITIZE_ADDRESS__)
#define GEMM_INLINE static __attribute__((noinline))
#define GEMM_UNROLL(n)
#else
#define GEMM_INLINE       static inline __attribute__((always_inline))
#define GEMM_UNROLL(n)    GEMM_PRAGMA(GCC unroll n)
#define GEMM_PRAGMA(text) _Pragma(#text)
#endif
#define GEMM_DECLARE(isa)                                                                                              \
    extern const struct gemm_decoder gemm_decoders_##isa[QUANT_COUNT];                                                 \
    extern const struct gemm_table_decoder gemm_table_decoders_##isa[QUANT_COUNT];                                     \
    void gemm_tile_##isa(const struct gemm_tile *t);                                                                   \
    void gemm_dropout_##isa(float *out, const float *x, int64_t n, int64_t element, const struct gemm_dropout *d,      \
                            int64_t row);                                                                              \
    void gemm_from_bf16_##isa(float *out, const uint16_t *x, int64_t n, bool swap);                                    \
    void gemm_to_bf16_##isa(uint16_t *out, const float *x, int64_t n);                                                 \
    void gemm_round_panel_##isa(float *panel, int64_t k);                                                              \
    void gemm_cap_row_##isa(float *z, int64_t n, float scale, float cap);                                              \
    void gemm_softmax_row_##isa(const float *z, int64_t n, float *largest, float *sum);                                \
    void gemm_softmax_bwd_row_##isa(float *z, int64_t n, float largest, float coefficient, float scale, float cap)
GEMM_DECLARE(c);
GEMM_DECLARE(avx2);
GEMM_DECLARE(avx512);
