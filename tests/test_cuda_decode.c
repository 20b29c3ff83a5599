// Packed weights decoded on the device against weight_decode, bit by bit: every format, whole and in views, at aligned
// and odd addresses, in rows and on their side, f32 and bf16, rows close together and apart. Runs on the host
// (tests/cuda_host) unless GRAFT_TEST_GPU is set; then on the GPU.
#include "tests/cuda_open.h"
#include "tests/packed.h"
#include "tests/table_weights.h"

#include "kernels/cuda/cuda_decode.h"

#include <dlfcn.h>

enum { ARENA = 4 << 20, MOST = 500, CANARY = 0xA7 };

// Weights that go to one device together.
struct stock {
    struct weight w[MOST], envelope[8 * MOST]; // envelopes: where on the device a weight lies, relative to 16 bytes
    const struct weight *list[9 * MOST];
    void *blocks[MOST * TABLES];
    struct table_weight *made[MOST];
    int n, n_envelopes, n_blocks, n_made;
};

static struct stock *stock_open(void) {
    struct stock *s = mem_zalloc(1, sizeof *s);
    bench_require(s, "memory");
    return s;
}

static void stock_close(struct stock *s) {
    for (int i = 0; i < s->n_blocks; i++) free(s->blocks[i]);
    for (int i = 0; i < s->n_made; i++) {
        table_weight_free(s->made[i]);
        free(s->made[i]);
    }
    mem_free(s);
}

// Ranges of bytes that overlap are copied as one: this keeps the address modulo 16.
static void keep_alignment(struct stock *s, const uint8_t *data, size_t bytes) {
    size_t off = (uintptr_t)data % 16;
    if (bytes < 2) return;
    s->envelope[s->n_envelopes++] = (struct weight){.format = quant_format(QUANT_F16),
                                                    .rows = 1,
                                                    .cols = (int64_t)(off + bytes) / 2,
                                                    .data = data - off,
                                                    .segment = SEGMENT_EMBED};
}

static struct weight *add(struct stock *s, struct weight w) {
    bench_require(s->n < MOST && s->n_envelopes + TABLES < 8 * MOST, "room for weights");
    w.segment = SEGMENT_EMBED, w.name = w.format->name;
    keep_alignment(s, w.data, weight_bytes(&w));
    for (int i = 0; w.tables && i < TABLES; i++) {
        if (w.tables->table[i].data) keep_alignment(s, w.tables->table[i].data, w.tables->table[i].bytes);
    }
    s->w[s->n] = w;
    return &s->w[s->n++];
}

enum content { SANE, WILD, ENDS, CONTENTS }; // ENDS: all bits clear, all set, scales at the ends of their ranges

// A matrix of blocks at an address that is `off` modulo 16, rows `gap` bytes further apart than they need be.
static struct weight *add_blocks(struct stock *s, enum quant id, int64_t rows, int64_t cols, int off, int gap,
                                 enum content content) {
    static const float ends[] = {0, -0.0f, 65504, -65504, 0x1p-24f, -0x1p-14f, INFINITY, NAN, 1, -0.3f};
    const struct quant_format *f = quant_format(id);
    size_t stride = quant_row_bytes(f, cols) + (size_t)gap, size = (size_t)rows * stride;
    uint32_t seed = 77u + (uint32_t)id * 31u + (uint32_t)cols;
    uint8_t *block = malloc(size + 16), *data = block + off;
    bench_require(block && s->n_blocks < MOST * TABLES, "memory");
    s->blocks[s->n_blocks++] = block;
    for (size_t i = 0; i < size; i++)
        data[i] = content == ENDS ? (i / 64 % 2 ? 0xFF : 0) : (uint8_t)(table_word(&seed) >> 11);
    for (int64_t i = 0; i < rows * (cols / f->block) && content != WILD; i++) {
        int64_t row = i / (cols / f->block), at = i % (cols / f->block);
        float d = ends[i % 10], m = ends[i / 10 % 10];
        if (content == SANE)
            d = 0.02f * (float)test_random(3, (unsigned)i), m = 0.1f * (float)test_random(4, (unsigned)i);
        packed_put(f, data + (size_t)row * stride + (size_t)at * (size_t)f->block_bytes, d, m);
    }
    return add(s, (struct weight){.format = f, .rows = rows, .cols = cols, .data = data, .stride = stride});
}

// --- the device
struct device {
    struct backend *backend;
    const struct cuda_decode *decode;
    uint8_t *image; // of the arena, from the host and back
};

static bool device_open(struct device *d, struct stock *s) {
    struct error err = {0};
    cuda_choose_plugin();
    *d = (struct device){.backend = backend_open_cuda(&err), .image = malloc(ARENA)};
    CHECK_MSG(d->backend && d->image, "%s", err.text);
    if (!d->backend) return false;
    void *plugin = dlopen(getenv("GRAFT_CUDA_PLUGIN"), RTLD_NOW | RTLD_NOLOAD);
    d->decode = plugin ? dlsym(plugin, CUDA_DECODE_SYMBOL) : NULL;
    int n = 0;
    for (int i = 0; i < s->n_envelopes; i++) s->list[n++] = &s->envelope[i];
    for (int i = 0; i < s->n; i++) s->list[n++] = &s->w[i];
    backend_set_weights(d->backend, s->list, n, 2);
    bool good = d->decode && d->backend->class->reserve(d->backend, ARENA, &err) == 0;
    CHECK_MSG(good, "%s", err.text);
    return good;
}

static void device_close(struct device *d) {
    backend_close(d->backend);
    free(d->image);
}

// --- one decode
struct place { // of the output
    enum dtype dtype;
    int64_t more; // ld - cols
    size_t off;   // elements from an aligned address
};
static const struct place places[] = {{DTYPE_F32, 0, 0},  {DTYPE_F32, 3, 0},  {DTYPE_F32, 4, 1}, {DTYPE_BF16, 0, 0},
                                      {DTYPE_BF16, 8, 0}, {DTYPE_BF16, 1, 0}, {DTYPE_BF16, 8, 3}};

static struct tensor whole_arena(void) {
    return (struct tensor){.dtype = DTYPE_U8, .rows = 1, .cols = ARENA, .ld = ARENA};
}

static bool same_number(const uint8_t *got, float want, enum dtype dtype) {
    uint16_t half;
    float x;
    if (dtype == DTYPE_F32) return memcpy(&x, got, 4), memcmp(&x, &want, 4) == 0 || (isnan(x) && isnan(want));
    memcpy(&half, got, 2);
    return half == bf16_from_float(want) || (isnan(bf16_to_float(half)) && isnan(want));
}

// Rows `want` (n, cols), f32, are what the image has at `out`, and nothing else was written. Returns the number of
// differences.
static long differences(const struct device *d, struct tensor out, const float *want) {
    size_t size = dtype_size(out.dtype), at = 0;
    long wrong = 0;
    for (int64_t r = 0; r < out.rows; r++) {
        size_t begin = out.offset + (size_t)(r * out.ld) * size;
        for (; at < begin; at++) wrong += d->image[at] != CANARY;
        for (int64_t c = 0; c < out.cols; c++, at += size)
            wrong += !same_number(d->image + at, want[r * out.cols + c], out.dtype);
    }
    for (size_t end = at + 4096 < ARENA ? at + 4096 : ARENA; at < end; at++) wrong += d->image[at] != CANARY;
    return wrong;
}

static float *decoded(const struct weight *w) {
    float *out = malloc((size_t)(w->rows * w->cols) * sizeof *out + 1);
    bench_require(out, "memory");
    for (int64_t r = 0; r < w->rows; r++) weight_decode(w, r, 0, w->cols, out + r * w->cols);
    return out;
}

// `raw`: the weight where it lies on the host, whose last bytes may be the last ones of a page.
static void check_rows(struct device *d, const struct weight *w, const float *want, int64_t row, int64_t rows,
                       struct place p, bool raw) {
    struct error err = {0};
    struct weight there = *w;
    struct weight_tables tables;
    size_t size = dtype_size(p.dtype);
    struct tensor out = {.dtype = p.dtype, .rows = rows, .cols = w->cols, .ld = w->cols + p.more};
    out.offset = 256 + p.off * size;
    bench_require(tensor_bytes(&out) + out.offset < ARENA, "room for the output");
    memset(d->image, CANARY, ARENA);
    size_t used = out.offset + tensor_bytes(&out) + 4096 < ARENA ? out.offset + tensor_bytes(&out) + 4096 : ARENA;
    bool good = d->backend->class->write(d->backend, whole_arena(), d->image, used, &err) == 0 &&
                (raw || d->decode->on_device(d->backend, w, &there, &tables, &err) == 0) &&
                d->decode->decode(d->backend, &there, row, out, &err) == 0 &&
                d->backend->class->read(d->backend, d->image, whole_arena(), used, &err) == 0;
    CHECK_MSG(good, "%s: %s", w->format->name, err.text);
    if (!good) return;
    long wrong = differences(d, out, want + row * w->cols);
    CHECK_MSG(wrong == 0,
              "%s (%lld, %lld)%s, address %% 16 = %d, rows %lld + %lld, %s, ld + %d, off %d, rounded %d: %ld wrong",
              w->format->name, (long long)w->rows, (long long)w->cols, raw ? " raw" : "",
              (int)((uintptr_t)w->data % 16), (long long)row, (long long)rows, dtype_name(p.dtype), (int)p.more,
              (int)p.off, w->tables ? (int)w->tables->rounded : 0, wrong);
}

static void check_gather(struct device *d, const struct weight *w, const float *want, struct place p, int64_t ids_ld) {
    enum { N = 37 };
    struct error err = {0};
    struct weight there;
    struct weight_tables tables;
    int32_t ids[N];
    float *rows = malloc((size_t)(N * w->cols) * sizeof *rows);
    bench_require(rows, "memory");
    for (int i = 0; i < N; i++) {
        ids[i] = (int32_t)((test_random(9, (unsigned)i) + 1) / 2 * (double)w->rows);
        if (i % 9 == 4) ids[i] = i % 2 ? -1 : (int32_t)w->rows;
        for (int64_t c = 0; c < w->cols; c++)
            rows[i * w->cols + c] = ids[i] < 0 || ids[i] >= w->rows ? NAN : want[ids[i] * w->cols + c];
    }
    struct tensor list = {.dtype = DTYPE_I32, .rows = N, .cols = 1, .ld = ids_ld, .offset = ARENA - 4096};
    struct tensor out = {.dtype = p.dtype, .rows = N, .cols = w->cols, .ld = w->cols + p.more};
    out.offset = 256 + p.off * dtype_size(p.dtype);
    memset(d->image, CANARY, ARENA);
    for (int i = 0; i < N; i++) memcpy(d->image + list.offset + 4 * (size_t)(i * ids_ld), &ids[i], 4);
    bool good = d->backend->class->write(d->backend, whole_arena(), d->image, ARENA, &err) == 0 &&
                d->decode->on_device(d->backend, w, &there, &tables, &err) == 0 &&
                d->decode->gather(d->backend, &there, list, out, &err) == 0 &&
                d->backend->class->read(d->backend, d->image, whole_arena(), ARENA, &err) == 0;
    CHECK_MSG(good, "%s: %s", w->format->name, err.text);
    long wrong = good ? differences(d, out, rows) : 0;
    CHECK_MSG(wrong == 0, "%s (%lld, %lld), gathered, %s: %ld wrong", w->format->name, (long long)w->rows,
              (long long)w->cols, dtype_name(p.dtype), wrong);
    free(rows);
}

// Whole, from the middle, the last row; to every kind of place; by number.
static void check_weight(struct device *d, const struct weight *w, int salt) {
    float *want = decoded(w);
    size_t n = COUNT_OF(places);
    for (size_t i = 0; i < n; i++) check_rows(d, w, want, 0, w->rows, places[i], false);
    if (w->rows > 4) check_rows(d, w, want, 1, w->rows - 3, places[(size_t)salt % n], false);
    check_rows(d, w, want, w->rows - 1, 1, places[(size_t)(salt + 3) % n], false);
    check_gather(d, w, want, places[(size_t)salt % n], 1 + salt % 2);
    if (!cuda_test_on_gpu()) check_rows(d, w, want, 0, w->rows, places[(size_t)salt % n], true);
    free(want);
}

static void check_stock(struct stock *s) {
    struct device d;
    if (device_open(&d, s)) {
        for (int i = 0; i < s->n; i++) check_weight(&d, &s->w[i], i);
    }
    device_close(&d);
    stock_close(s);
}

// --- formats whose rows stand for themselves
static void check_blocks(enum quant id) {
    static const int64_t odd_cols[] = {1, 7, 8, 37, 301, 512};
    struct stock *s = stock_open();
    const struct quant_format *f = quant_format(id);
    static const int offs[] = {0, 1, 2, 3, 4, 8, 15};
    for (int content = 0; content < CONTENTS; content++) {
        for (size_t i = 0; i < COUNT_OF(odd_cols); i++) {
            int64_t cols = f->block == 1 ? odd_cols[i] : f->block * (int64_t)(i + 1);
            add_blocks(s, id, 9, cols, offs[i], i % 3 == 2 ? 5 : 0, (enum content)content);
        }
    }
    struct weight view = weight_rows(&s->w[3], 2, 5);
    add(s, view);
    add_blocks(s, id, 300, 1024, 0, 0, SANE);
    check_stock(s);
}

TEST(plain_numbers) {
    check_blocks(QUANT_F32);
    check_blocks(QUANT_F16);
    check_blocks(QUANT_BF16);
}
TEST(short_blocks) {
    for (enum quant id = QUANT_Q4_0; id < QUANT_Q2_K; id++) check_blocks(id);
}
TEST(k_blocks) {
    for (enum quant id = QUANT_Q2_K; id < QUANT_IQ1_S; id++) check_blocks(id);
}
TEST(iq_blocks) {
    for (enum quant id = QUANT_IQ1_S; id < QUANT_WITH_TABLES; id++) check_blocks(id);
}

// Rows on their side: in blocks of turned rows, of which a view has some, and in one block of all rows.
TEST(turned_rows) {
    for (int format = 0; format < QUANT_WITH_TABLES; format++) {
        struct stock *s = stock_open();
        const struct quant_format *f = quant_format((enum quant)format);
        for (int i = 0; i < 3; i++) {
            int64_t dim = f->block == 1 ? (int64_t[]){5, 64, 75}[i] : f->block * (int64_t)(i + 1), heads = 3,
                    cols = 21 + 20 * i;
            struct weight w = *add_blocks(s, f->id, heads * cols, dim, i, 0, i == 1 ? WILD : SANE);
            s->n--; // only as it is seen from the side
            w.rows = heads * dim, w.cols = cols, w.transposed = true, w.turned_rows = dim;
            w.stride = 0;
            add(s, w);
            add(s, weight_rows(&s->w[s->n - 1], dim, dim));
        }
        for (int i = 0; i < 3 && f->block == 1; i++) {
            int64_t rows = (int64_t[]){9, 64, 133}[i];
            struct weight w = *add_blocks(s, f->id, 33 + i, rows, i, i == 2 ? 6 : 0, SANE);
            s->n--;
            w.rows = rows, w.cols = 33 + i, w.transposed = true;
            add(s, w);
            add(s, weight_rows(&s->w[s->n - 1], 3, rows - 5));
        }
        check_stock(s);
    }
}

// --- formats with tables
static struct table_weight *add_table(struct stock *s, enum quant id, int64_t rows, int64_t cols, int variant,
                                      bool wild) {
    struct table_weight *t = malloc(sizeof *t);
    bench_require(t && s->n_made < MOST, "memory");
    CHECK_MSG(table_weight_make(t, id, rows, cols, variant, 3) == 0, "%s", t->err.text);
    s->made[s->n_made++] = t;
    if (wild) table_weight_spoil(t, 99);
    add(s, t->w);
    return t;
}

static const uint8_t *aligned_copy(struct stock *s, const uint8_t *data, size_t bytes) {
    uint8_t *copy = aligned_alloc(64, (bytes + 63) / 64 * 64);
    bench_require(copy && s->n_blocks < MOST * TABLES, "memory");
    s->blocks[s->n_blocks++] = copy;
    return memcpy(copy, data, bytes);
}

// The same weight where everything is aligned, for the wide loads.
static void add_aligned(struct stock *s, const struct table_weight *t) {
    struct table_weight *twin = calloc(1, sizeof *twin);
    bench_require(twin && s->n_made < MOST, "memory");
    s->made[s->n_made++] = twin;
    twin->w = t->w, twin->tables = t->tables, twin->w.tables = &twin->tables;
    twin->w.data = aligned_copy(s, t->w.data, weight_bytes(&t->w));
    for (int i = 0; i < TABLES; i++) {
        if (t->tables.table[i].data)
            twin->tables.table[i].data = aligned_copy(s, t->tables.table[i].data, t->tables.table[i].bytes);
    }
    add(s, twin->w);
}

static bool any_cols(enum quant id) {
    return id == QUANT_NF4 || id == QUANT_FP4 || id == QUANT_INT8 || id == QUANT_FP8_E4M3 || id == QUANT_FP8_E5M2;
}

static void check_tables(enum quant id) {
    struct stock *s = stock_open();
    for (int variant = 0; variant < 16; variant++) {
        if ((variant & 3) == 3) continue;
        for (int wild = 0; wild < 2; wild++) add_aligned(s, add_table(s, id, 32, 96, variant, wild));
        add(s, weight_rows(&s->w[s->n - 1], 5, 19)); // not where words begin
        if (any_cols(id)) add_table(s, id, 17, 37, variant, false);
    }
    add_table(s, id, 320, 1024, TABLE_NESTED, false);
    check_stock(s);
}
TEST(nf4_and_fp4) {
    check_tables(QUANT_NF4);
    check_tables(QUANT_FP4);
}
TEST(int8_and_fp8) {
    check_tables(QUANT_INT8);
    check_tables(QUANT_FP8_E4M3);
    check_tables(QUANT_FP8_E5M2);
}
TEST(gptq) {
    for (enum quant id = QUANT_GPTQ_2; id <= QUANT_GPTQ_8; id++) check_tables(id);
}
TEST(awq) {
    check_tables(QUANT_AWQ);
}
TEST(mxfp4_pairs) {
    check_tables(QUANT_MXFP4_PAIRS);
}

// Groups and grids that makers of checkpoints do not choose but formats allow, and scales of every type.
TEST(odd_groups_and_scales) {
    static const enum quant ids[] = {QUANT_GPTQ_2, QUANT_GPTQ_3,   QUANT_GPTQ_4,  QUANT_GPTQ_8,
                                     QUANT_AWQ,    QUANT_FP8_E4M3, QUANT_FP8_E5M2};
    static const int64_t sizes[] = {40, 44, 33, 96, 500};
    struct stock *s = stock_open();
    uint32_t seed = 5;
    for (size_t f = 0; f < COUNT_OF(ids); f++) {
        for (size_t i = 0; i < COUNT_OF(sizes); i++) { // fewer groups than were made
            struct table_weight *t = add_table(s, ids[f], 32, 96, TABLE_ROUND_F16, false);
            t->tables.block_cols = sizes[i];
            add_aligned(s, t);
        }
        for (enum number type = NUMBER_F32; type <= NUMBER_E8M0; type++) {
            struct table_weight *t = add_table(s, ids[f], 32, 96, 0, false);
            bool fp8 = ids[f] >= QUANT_FP8_E4M3;
            if (type == NUMBER_E8M0 && !fp8) continue;
            s->n--, t->tables.scale_type = type;
            struct table_bytes b = table_scales(t, 5, t->tables.scale_ld * 4, type, &seed);
            t->tables.table[TABLE_SCALES].data = b.data, t->tables.table[TABLE_SCALES].bytes = b.bytes;
            add(s, t->w);
            add_aligned(s, t);
        }
    }
    add_table(s, QUANT_GPTQ_8, 32, 36, TABLE_OTHER, false); // not a whole number of packs
    add_table(s, QUANT_GPTQ_8, 32, 36, TABLE_NESTED, true);
    check_stock(s);
}

TEST_MAIN(CASE(plain_numbers), CASE(short_blocks), CASE(k_blocks), CASE(iq_blocks), CASE(turned_rows),
          CASE(nf4_and_fp4), CASE(int8_and_fp8), CASE(gptq), CASE(awq), CASE(mxfp4_pairs), CASE(odd_groups_and_scales))
