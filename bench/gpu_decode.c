// How fast packed weights are decoded on a GPU, each format against a copy on the device that moves as many bytes:
//   gpu_decode [rows cols [part of a format's name]]     (8192 8192, all)
// A line per format: decoding to bf16 and to f32 in GB/s (packed bytes read and numbers written) and as a share of the
// copy's speed, and the time of 1 and of 16 rows. Matrices lie on the device several times, one copy after another is
// read, so that none comes from the L2 cache.
#include "kernels/cuda/gpu_decode.h"
#include "tests/table_weights.h"

#include <cuda_runtime.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGNMENT = 256, REPEATS = 30, WARM_UP = 5, MOST_COPIES = 16 };
#define COLD_BYTES ((size_t)256 << 20) // more than any L2 keeps

#define TRY(call)                                                                                                      \
    do {                                                                                                               \
        cudaError_t status = (call);                                                                                   \
        if (status != cudaSuccess) {                                                                                   \
            fprintf(stderr, "%s: %s\n", #call, cudaGetErrorString(status));                                            \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

static size_t padded(size_t bytes) {
    return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

struct on_device {
    struct weight w[MOST_COPIES];
    struct weight_tables tables[MOST_COPIES];
    uint8_t *memory;
    int copies;
    size_t bytes; // of one
};

static size_t place(uint8_t *memory, size_t at, const uint8_t **data, size_t bytes) {
    TRY(cudaMemcpy(memory + at, *data, bytes, cudaMemcpyHostToDevice));
    *data = memory + at;
    return at + padded(bytes);
}

static struct on_device upload(const struct weight *w) {
    struct on_device d = {0};
    d.bytes = weight_bytes(w);
    size_t whole = padded(d.bytes);
    for (int k = 0; w->tables && k < TABLES; k++) {
        d.bytes += w->tables->table[k].bytes;
        whole += padded(w->tables->table[k].bytes);
    }
    d.copies = (int)(COLD_BYTES / whole) + 2 < MOST_COPIES ? (int)(COLD_BYTES / whole) + 2 : MOST_COPIES;
    TRY(cudaMalloc((void **)&d.memory, whole * (size_t)d.copies));
    size_t at = 0;
    for (int i = 0; i < d.copies; i++) {
        d.w[i] = *w;
        at = place(d.memory, at, &d.w[i].data, weight_bytes(w));
        if (!w->tables) continue;
        d.tables[i] = *w->tables;
        for (int k = 0; k < TABLES; k++) {
            if (d.tables[i].table[k].data)
                at = place(d.memory, at, &d.tables[i].table[k].data, d.tables[i].table[k].bytes);
        }
    }
    for (int i = 0; i < d.copies && w->tables; i++) d.w[i].tables = &d.tables[i];
    return d;
}

struct timer {
    cudaStream_t stream;
    cudaEvent_t begin, end;
    struct gpu gpu;
    uint8_t *out, *from, *to; // of numbers; of copies
};

static double seconds_of(const struct timer *t) {
    float ms;
    TRY(cudaGetLastError());
    TRY(cudaEventRecord(t->end, t->stream));
    TRY(cudaEventSynchronize(t->end));
    TRY(cudaEventElapsedTime(&ms, t->begin, t->end));
    return (double)ms * 1e-3 / REPEATS;
}

static double decode_seconds(const struct timer *t, const struct on_device *d, int64_t rows, enum dtype dtype) {
    for (int i = 0; i < WARM_UP + REPEATS; i++) {
        if (i == WARM_UP) TRY(cudaEventRecord(t->begin, t->stream));
        const struct weight *w = &d->w[i % d->copies];
        gpu_decode(&t->gpu, w, 0, rows, t->out, dtype, w->cols);
    }
    return seconds_of(t);
}

static double copy_seconds(const struct timer *t, size_t bytes) {
    for (int i = 0; i < WARM_UP + REPEATS; i++) {
        if (i == WARM_UP) TRY(cudaEventRecord(t->begin, t->stream));
        TRY(cudaMemcpyAsync(t->to, t->from, bytes, cudaMemcpyDeviceToDevice, t->stream));
    }
    return seconds_of(t);
}

static void measure(const struct timer *t, const struct weight *w, const char *note) {
    struct on_device d = upload(w);
    double numbers = (double)w->rows * (double)w->cols;
    printf("%-12s %-8s", w->format->name, note);
    for (enum dtype dtype = DTYPE_BF16;; dtype = DTYPE_F32) {
        double bytes = (double)d.bytes + numbers * (double)dtype_size(dtype);
        double speed = bytes / decode_seconds(t, &d, w->rows, dtype) * 1e-9;
        double copy = bytes / copy_seconds(t, (size_t)bytes / 2) * 1e-9;
        printf("  %7.0f GB/s %5.1f %%", speed, 100 * speed / copy);
        if (dtype == DTYPE_F32) break;
    }
    printf("  %7.2f us %7.2f us\n", 1e6 * decode_seconds(t, &d, 1, DTYPE_BF16),
           1e6 * decode_seconds(t, &d, w->rows < 16 ? w->rows : 16, DTYPE_BF16));
    TRY(cudaFree(d.memory));
}

static void measure_blocks(const struct timer *t, const struct quant_format *f, int64_t rows, int64_t cols) {
    size_t bytes = (size_t)rows * quant_row_bytes(f, cols);
    uint8_t *data = malloc(bytes);
    uint32_t seed = 1;
    if (!data) abort();
    for (size_t i = 0; i < bytes; i++) data[i] = (uint8_t)(table_word(&seed) >> 11);
    struct weight w = {.format = f, .rows = rows, .cols = cols, .data = data};
    measure(t, &w, "");
    if (f->id == QUANT_BF16) {
        w.transposed = true;
        measure(t, &w, "turned");
    }
    free(data);
}

static void measure_tables(const struct timer *t, enum quant id, int64_t rows, int64_t cols, int variant,
                           const char *note) {
    struct table_weight made;
    if (table_weight_make(&made, id, rows, cols, variant | TABLE_ROUND_BF16, 1)) {
        fprintf(stderr, "%s\n", made.err.text);
        exit(1);
    }
    measure(t, &made.w, note);
    table_weight_free(&made);
}

int main(int argc, char **argv) {
    int64_t rows = argc > 2 ? atoll(argv[1]) : 8192, cols = argc > 2 ? atoll(argv[2]) : 8192;
    const char *part = argc > 3 ? argv[3] : "";
    struct timer t = {0};
    if (rows < 1 || cols < 1 || rows % 256 || cols % 256) {
        fprintf(stderr, "%s: rows and columns must be multiples of 256\n", argv[0]);
        return 2;
    }
    TRY(cudaStreamCreateWithFlags(&t.stream, cudaStreamNonBlocking));
    TRY(cudaEventCreateWithFlags(&t.begin, cudaEventDefault));
    TRY(cudaEventCreateWithFlags(&t.end, cudaEventDefault));
    TRY(cudaDeviceGetAttribute(&t.gpu.multiprocessors, cudaDevAttrMultiProcessorCount, 0));
    t.gpu.stream = t.stream;
    size_t numbers = (size_t)rows * (size_t)cols * 4;
    TRY(cudaMalloc((void **)&t.out, numbers));
    TRY(cudaMalloc((void **)&t.from, numbers));
    TRY(cudaMalloc((void **)&t.to, numbers));
    printf("%lld x %lld, %d multiprocessors\n%-12s %-8s  %-21s  %-21s  %-10s 16 rows\n", (long long)rows,
           (long long)cols, t.gpu.multiprocessors, "format", "", "to bf16, of a copy", "to f32, of a copy", "1 row");
    for (int id = 0; id < QUANT_COUNT; id++) {
        const struct quant_format *f = quant_format((enum quant)id);
        if (!strstr(f->name, part)) continue;
        if (id < QUANT_WITH_TABLES) {
            measure_blocks(&t, f, rows, cols);
            continue;
        }
        bool gptq = id >= QUANT_GPTQ_2 && id <= QUANT_GPTQ_8, nf4 = id == QUANT_NF4 || id == QUANT_FP4;
        measure_tables(&t, f->id, rows, cols, 0, "");
        if (nf4) measure_tables(&t, f->id, rows, cols, TABLE_NESTED, "nested");
        if (gptq) measure_tables(&t, f->id, rows, cols, TABLE_NESTED, "g_idx");
    }
    return 0;
}
