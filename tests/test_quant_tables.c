// Formats with tables: decoders and quantisers against what bitsandbytes and transformers make of the same bytes
// (fixtures/tables.json, written by tests/peers/tables.py), by hand, in pieces, and on arrays that do not fit.
#include "tests/harness.h"
#include "tests/table_cases.h"
#include "tests/table_weights.h"

#include <float.h>
#include <math.h>

TEST(fixture) {
    struct json_document doc;
    struct error err = {0};
    CHECK_MSG(json_load("tests/fixtures/tables.json", 1 << 20, NULL, &doc, &err) == 0, "%s", err.text);
    if (err.code) return;
    int cases = 0;
    for (const struct json *row = json_child(doc.root); row; row = json_next(row), cases++) {
        const struct json *c = json_get(row, "case"), *want = json_get(row, "want");
        struct text text = {0};
        struct json_document answer;
        case_answer(c, &text);
        CHECK(json_parse(text_str(&text), text.length, NULL, &answer, &err) == 0);
        const char *error = json_string(json_get(answer.root, "error"), NULL);
        for (const struct json *v = json_child(want); v; v = json_next(v)) {
            CHECK_MSG(json_equal(json_get(answer.root, json_key(v, NULL)), v), "case %d, %s %s: %s differs %s", cases,
                      json_string(json_get(c, "do"), NULL), json_string(json_get(c, "format"), NULL), json_key(v, NULL),
                      error ? error : "");
        }
        json_free(&answer);
        text_free(&text);
    }
    CHECK_INT(cases, 96 + 5 + 7 + 1);
    json_free(&doc);
}

// --- by hand

#define BYTES(...)                                                                                                     \
    (struct table_bytes) {                                                                                             \
        (const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__})                                         \
    }

static struct table_bytes floats_of(const float *values, size_t count) {
    return (struct table_bytes){(const uint8_t *)values, 4 * count};
}
static struct table_bytes words_of(const uint32_t *values, size_t count) {
    return (struct table_bytes){(const uint8_t *)values, 4 * count};
}
static struct table_bytes halves_of(const uint16_t *values, size_t count) {
    return (struct table_bytes){(const uint8_t *)values, 2 * count};
}

// Codes 0 .. 7 of the first eight elements, as each format writes them (formats.md 10.1).
TEST(where_a_code_lies) {
    struct weight w;
    struct weight_tables t;
    struct error err = {0};
    float got[256], map[16];
    for (int i = 0; i < 16; i++) map[i] = (float)i;
    const float one[] = {1.0f};
    struct nf4_parts nf4 = {
        .name = "x", false, 1, 8, 64, NUMBER_F32, BYTES(0x01, 0x23, 0x45, 0x67), floats_of(one, 1), floats_of(map, 16)};
    CHECK(nf4_weight(&w, &t, &nf4, &err) == 0);
    weight_decode(&w, 0, 0, 8, got);
    for (int i = 0; i < 8; i++) CHECK_NEAR(got[i], i, 0);

    uint8_t codes[16] = {0x10, 0x32, 0x54, 0x76}, scale[] = {127};
    static const float fp4[] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
    struct mxfp4_parts mx = {"x", 1, 32, 1, NUMBER_F32, {codes, 16}, {scale, 1}};
    CHECK(mxfp4_weight(&w, &t, &mx, &err) == 0);
    weight_decode(&w, 0, 0, 8, got);
    for (int i = 0; i < 8; i++) CHECK_NEAR(got[i], fp4[i], 0);

    uint32_t rows[8], none[8] = {0}; // 8 x 8, all rows alike
    uint16_t ones[8];
    for (int i = 0; i < 8; i++) rows[i] = 0x76543210u, ones[i] = f16_from_float(1.0f);
    struct gptq_parts gptq = {
        "x",      8, 8, 4, -1, true, NUMBER_F16, NUMBER_F32, words_of(rows, 8), words_of(none, 1), halves_of(ones, 8),
        {NULL, 0}};
    CHECK(gptq_weight(&w, &t, &gptq, &err) == 0);
    weight_decode(&w, 5, 0, 8, got);
    for (int i = 0; i < 8; i++) CHECK_NEAR(got[i], i, 0);

    for (int i = 0; i < 8; i++) rows[i] = 0x75316420u; // a word per column; row r has code r
    struct awq_parts awq = {
        "x", 8, 8, -1, NUMBER_F16, NUMBER_F32, words_of(rows, 8), words_of(none, 1), halves_of(ones, 8)};
    CHECK(awq_weight(&w, &t, &awq, &err) == 0);
    for (int i = 0; i < 8; i++) {
        weight_decode(&w, i, 3, 1, got);
        CHECK_NEAR(got[0], i, 0);
    }
}

// A zero point of 0 was stored by a subtraction that borrowed from its neighbours.
TEST(zero_points_of_gptq) {
    struct weight w;
    struct weight_tables t;
    struct error err = {0};
    static const int zeros[8] = {3, 0, 5, 8, 0, 0, 15, 1};
    uint32_t word = 0, codes[8] = {0};
    uint16_t ones[8];
    float got;
    for (int i = 0; i < 8; i++) word |= (uint32_t)zeros[i] << (4 * i), ones[i] = f16_from_float(1.0f);
    for (int v2 = 0; v2 < 2; v2++) {
        uint32_t stored = v2 ? word : word - 0x11111111u;
        struct gptq_parts p = {"x",
                               8,
                               8,
                               4,
                               -1,
                               v2,
                               NUMBER_F16,
                               NUMBER_F32,
                               words_of(codes, 8),
                               words_of(&stored, 1),
                               halves_of(ones, 8),
                               {NULL, 0}};
        CHECK(gptq_weight(&w, &t, &p, &err) == 0);
        for (int i = 0; i < 8; i++) {
            weight_decode(&w, i, 0, 1, &got);
            CHECK_NEAR(got, -zeros[i], 0);
        }
    }
    uint32_t symmetric = 0x77777777u; // what nearly all files hold: 8 everywhere
    struct gptq_parts p = {"x",
                           8,
                           8,
                           4,
                           -1,
                           false,
                           NUMBER_F16,
                           NUMBER_F32,
                           words_of(codes, 8),
                           words_of(&symmetric, 1),
                           halves_of(ones, 8),
                           {NULL, 0}};
    CHECK(gptq_weight(&w, &t, &p, &err) == 0);
    weight_decode(&w, 7, 7, 1, &got);
    CHECK_NEAR(got, -8, 0);
}

// With 3 bits each zero point is stored less one by itself, modulo 8; numbers 10 and 21 of 32 lie in two words.
TEST(three_bits_of_gptq) {
    struct weight w;
    struct weight_tables t;
    struct error err = {0};
    uint32_t zeros_3[3] = {0}, codes[96] = {0}; // 32 x 32
    uint16_t ones[32];
    float got;
    for (int i = 0; i < 32; i++) {
        ones[i] = f16_from_float(1.0f);
        for (int b = 0; b < 3; b++) {
            int bit = 3 * i + b;
            zeros_3[bit / 32] |= (uint32_t)((i % 8 + 7) % 8 >> b & 1) << (bit % 32); // row i: zero i % 8
            for (int r = 0; r < 32; r++) codes[bit / 32 * 32 + r] |= (uint32_t)(i * 5 % 8 >> b & 1) << (bit % 32);
        }
    }
    struct gptq_parts p = {"x",
                           32,
                           32,
                           3,
                           -1,
                           false,
                           NUMBER_F16,
                           NUMBER_F32,
                           words_of(codes, 96),
                           words_of(zeros_3, 3),
                           halves_of(ones, 32),
                           {NULL, 0}};
    CHECK_MSG(gptq_weight(&w, &t, &p, &err) == 0, "%s", err.text);
    for (int r = 0; r < 32; r++) {
        for (int c = 0; c < 32; c++) {
            weight_decode(&w, r, c, 1, &got);
            CHECK_NEAR(got, c * 5 % 8 - r % 8, 0);
        }
    }
}

TEST(eight_bit_floats) {
    struct weight w;
    struct weight_tables t;
    struct error err = {0};
    uint8_t codes[256];
    float got[256];
    for (int i = 0; i < 256; i++) codes[i] = (uint8_t)i;
    struct fp8_parts p = {.name = "x", .rows = 1, .cols = 256, .codes = {codes, 256}};
    CHECK(fp8_weight(&w, &t, &p, &err) == 0);
    weight_decode(&w, 0, 0, 256, got);
    CHECK(isnan(got[0x7F]) && isnan(got[0xFF]));
    CHECK_NEAR(got[0x7E], 448, 0);
    CHECK_NEAR(got[0x01], 0x1p-9, 0);
    CHECK_NEAR(got[0x08], 0x1p-6, 0);
    CHECK_NEAR(got[0xB8], -1, 0);
    CHECK(signbit(got[0x80]) && got[0x80] == 0.0f);
    for (int i = 1; i < 0x7F; i++) CHECK(got[i] > got[i - 1] && got[i + 128] == -got[i]);
    p.e5m2 = true;
    CHECK(fp8_weight(&w, &t, &p, &err) == 0);
    weight_decode(&w, 0, 0, 256, got);
    CHECK(isinf(got[0x7C]) && isinf(got[0xFC]) && got[0xFC] < 0 && isnan(got[0x7D]) && isnan(got[0xFF]));
    CHECK_NEAR(got[0x7B], 57344, 0);
    CHECK_NEAR(got[0x01], 0x1p-16, 0);
    // powers of two, and the one that is none
    p = (struct fp8_parts){.name = "x",
                           .rows = 1,
                           .cols = 4,
                           .scale_rows = 1,
                           .scale_cols = 4,
                           .scale_type = NUMBER_E8M0,
                           .codes = BYTES(0x38, 0x38, 0x38, 0x38),
                           .scales = BYTES(0, 127, 254, 255)};
    CHECK(fp8_weight(&w, &t, &p, &err) == 0);
    weight_decode(&w, 0, 0, 4, got);
    CHECK(got[0] == 0x1p-127f && got[1] == 1.0f && got[2] == 0x1p127f && isnan(got[3]));
}

// --- views and ranges

static const enum quant formats[] = {QUANT_NF4,      QUANT_FP4,      QUANT_INT8,       QUANT_GPTQ_2,
                                     QUANT_GPTQ_3,   QUANT_GPTQ_4,   QUANT_GPTQ_8,     QUANT_AWQ,
                                     QUANT_FP8_E4M3, QUANT_FP8_E5M2, QUANT_MXFP4_PAIRS};

TEST(any_range_of_any_view) {
    enum { ROWS = 64, COLS = 96 };
    static float whole[ROWS * COLS], part[COLS];
    for (size_t f = 0; f < COUNT_OF(formats); f++) {
        for (int variant = 0; variant < 16; variant++) {
            struct table_weight t;
            if ((variant & 3) == 3) continue;
            CHECK_MSG(table_weight_make(&t, formats[f], ROWS, COLS, variant, 5) == 0, "%s", t.err.text);
            for (int r = 0; r < ROWS; r++) weight_decode(&t.w, r, 0, COLS, whole + r * COLS);
            int wrong = 0;
            double sum = 0;
            for (int i = 0; i < ROWS * COLS; i++) sum += fabs((double)whole[i]);
            CHECK_MSG(sum > 1 && sum < 1e5, "%s: values of %g on average", t.w.format->name, sum / ROWS / COLS);
            struct weight view = weight_rows(&t.w, 13, 40), inner = weight_rows(&view, 7, 9);
            for (int i = 0; i < 200; i++) {
                int r = i * 11 % 9, col = i * 29 % COLS, count = i * 53 % (COLS - col) + 1;
                weight_decode(&inner, r, col, count, part);
                wrong += memcmp(part, whole + (r + 20) * COLS + col, (size_t)count * sizeof *part) != 0;
            }
            CHECK_MSG(wrong == 0, "%s, variant %d: %d ranges differ", t.w.format->name, variant, wrong);
            size_t all = weight_stored_bytes(&t.w),
                   half = weight_stored_bytes(
                       &(struct weight){.format = t.w.format, .rows = 32, .cols = COLS, .tables = &t.tables});
            CHECK(all > ROWS * COLS / 4 && all < 3 * ROWS * COLS && half == all / 2);
            table_weight_free(&t);
        }
    }
}

// Rows of two matrices that alternate: gate and up of gpt-oss.
TEST(alternating_rows) {
    struct table_weight both;
    struct weight w;
    struct weight_tables t;
    struct error err = {0};
    float want[64], got[64];
    CHECK(table_weight_make(&both, QUANT_MXFP4_PAIRS, 6, 64, 0, 3) == 0);
    for (int which = 0; which < 2; which++) {
        struct mxfp4_parts p = {"x",
                                3,
                                64,
                                2,
                                NUMBER_F32,
                                {both.w.data + which * 32, (size_t)(6 - which) * 32},
                                {both.tables.table[TABLE_SCALES].data + which * 2, (size_t)(6 - which) * 2}};
        CHECK_MSG(mxfp4_weight(&w, &t, &p, &err) == 0, "%s", err.text);
        CHECK_INT(weight_bytes(&w), 5 * 32);
        for (int r = 0; r < 3; r++) {
            weight_decode(&both.w, 2 * r + which, 0, 64, want);
            weight_decode(&w, r, 0, 64, got);
            CHECK(memcmp(want, got, sizeof got) == 0);
        }
    }
    table_weight_free(&both);
}

// --- what does not fit

#define REFUSED(call, word)                                                                                            \
    do {                                                                                                               \
        struct weight w_;                                                                                              \
        struct weight_tables t_;                                                                                       \
        struct error e_ = {0};                                                                                         \
        int status_ = call(&w_, &t_, &p, &e_);                                                                         \
        CHECK_MSG(status_ == -1 && e_.code == STATUS_DATA && strstr(e_.text, word) && strstr(e_.text, "evil."),        \
                  "%s: status %d, \"%s\", expected \"%s\"", #call, status_, e_.text, word);                            \
        p = good;                                                                                                      \
    } while (0)
#define ACCEPTED(call)                                                                                                 \
    do {                                                                                                               \
        struct weight w_;                                                                                              \
        struct weight_tables t_;                                                                                       \
        struct error e_ = {0};                                                                                         \
        CHECK_MSG(call(&w_, &t_, &p, &e_) == 0, "%s", e_.text);                                                        \
    } while (0)
#define SHORT(call, array, word)                                                                                       \
    do {                                                                                                               \
        p.array.bytes--;                                                                                               \
        REFUSED(call, word);                                                                                           \
        p.array.bytes++;                                                                                               \
        REFUSED(call, word);                                                                                           \
        p.array.bytes = 0;                                                                                             \
        REFUSED(call, word);                                                                                           \
    } while (0)

static uint8_t zeros[4096];
#define Z(n)                                                                                                           \
    { zeros, n }

TEST(hostile_nf4) {
    const struct nf4_parts good = {"evil.weight", false, 3,    100,     64,  NUMBER_BF16, Z(150),
                                   Z(5),          Z(64), Z(4), Z(1024), 256, 0.5f};
    struct nf4_parts p = good;
    ACCEPTED(nf4_weight);
    SHORT(nf4_weight, codes, "weight");
    SHORT(nf4_weight, absmax, "absmax");
    SHORT(nf4_weight, quant_map, "quant_map");
    SHORT(nf4_weight, nested_absmax, "nested_absmax");
    SHORT(nf4_weight, nested_quant_map, "nested_quant_map");
    p.nested_absmax.data = NULL; // half of the nested tables
    REFUSED(nf4_weight, "nested_absmax is missing");
    p.nested_quant_map.data = NULL;
    REFUSED(nf4_weight, "nested_quant_map is missing");
    p.codes.data = NULL;
    REFUSED(nf4_weight, "weight is missing");
    static const int64_t sizes[] = {0, -1, -64, 1, 63, 65, 96, 16, 8192, INT64_MAX, INT64_MIN, (int64_t)1 << 40};
    for (size_t i = 0; i < COUNT_OF(sizes); i++) {
        p.blocksize = sizes[i];
        REFUSED(nf4_weight, "blocksize");
        p.nested_blocksize = sizes[i];
        REFUSED(nf4_weight, "nested_blocksize");
    }
    static const int64_t shapes[][2] = {{0, 100},
                                        {-3, -100},
                                        {3, -100},
                                        {INT64_MAX, 2},
                                        {(int64_t)1 << 32, (int64_t)1 << 32},
                                        {(int64_t)1 << 31, (int64_t)1 << 30},
                                        {INT64_MIN, INT64_MIN}};
    for (size_t i = 0; i < COUNT_OF(shapes); i++) {
        p.rows = shapes[i][0], p.cols = shapes[i][1];
        REFUSED(nf4_weight, "a quantised matrix of");
    }
    p.rows = (int64_t)1 << 30, p.cols = (int64_t)1 << 29; // representable, but not there
    REFUSED(nf4_weight, "expected");
    p.nested_offset = NAN;
    REFUSED(nf4_weight, "nested_offset");
    p.nested_offset = -INFINITY;
    REFUSED(nf4_weight, "nested_offset");
    float map[256] = {0};
    map[15] = NAN, p.quant_map = floats_of(map, 16);
    REFUSED(nf4_weight, "number 15 of quant_map is not finite");
    map[15] = 0, map[200] = INFINITY, p.nested_quant_map = floats_of(map, 256);
    REFUSED(nf4_weight, "number 200 of nested_quant_map is not finite");
}

TEST(hostile_int8_and_fp8) {
    {
        const struct int8_parts good = {"evil.weight", 5, 7, NUMBER_F16, Z(35), Z(20)};
        struct int8_parts p = good;
        ACCEPTED(int8_weight);
        SHORT(int8_weight, codes, "weight");
        SHORT(int8_weight, scb, "SCB");
        p.rows = -5, p.cols = -7;
        REFUSED(int8_weight, "a quantised matrix of");
    }
    const struct fp8_parts good = {"evil.weight", false, 130, 9, 128, 4, 2, 3, NUMBER_F32, NUMBER_F32, Z(1170), Z(24)};
    struct fp8_parts p = good;
    ACCEPTED(fp8_weight);
    SHORT(fp8_weight, codes, "weight");
    SHORT(fp8_weight, scales, "scale");
    p.scale_type = NUMBER_BF16;
    REFUSED(fp8_weight, "24 bytes, expected 6 numbers of 2 bytes");
    static const int64_t grids[][4] = {
        {128, 4, 1, 3}, {128, 4, 3, 3},   {128, 4, 2, 2},  {128, 4, 2, 4},       {0, 4, 4, 3},
        {0, 0, 2, 4},   {-1, 4, 2, 3},    {128, -4, 2, 3}, {INT64_MAX, 4, 2, 3}, {128, 4, 0, 3},
        {128, 4, 2, 0}, {128, 4, -2, -3}, {0, 0, 131, 9},  {1, 1, INT64_MAX, 9}, {INT64_MIN, 4, 2, 3}};
    for (size_t i = 0; i < COUNT_OF(grids); i++) {
        p.block_rows = grids[i][0], p.block_cols = grids[i][1], p.scale_rows = grids[i][2], p.scale_cols = grids[i][3];
        REFUSED(fp8_weight, "do not fit");
    }
    p.rows = INT64_MAX, p.cols = INT64_MAX;
    REFUSED(fp8_weight, "a quantised matrix of");
}

TEST(hostile_gptq_and_awq) {
    int32_t groups[64];
    for (int i = 0; i < 64; i++) groups[i] = i / 32;
    {
        const struct gptq_parts good = {"evil.qweight", 32,         64,      4,     32,     false,
                                        NUMBER_F16,     NUMBER_F16, Z(1024), Z(32), Z(128), {(uint8_t *)groups, 256}};
        struct gptq_parts p = good;
        ACCEPTED(gptq_weight);
        SHORT(gptq_weight, qweight, "qweight");
        SHORT(gptq_weight, qzeros, "qzeros");
        SHORT(gptq_weight, scales, "scales");
        SHORT(gptq_weight, g_idx, "g_idx");
        p.scale_type = NUMBER_F32;
        REFUSED(gptq_weight, "scales");
        p.scale_type = NUMBER_E8M0, p.scales.bytes = 64;
        REFUSED(gptq_weight, "no floating point numbers");
        static const int widths[] = {0, 1, 5, 6, 7, 9, 16, -4, 1 << 30};
        for (size_t i = 0; i < COUNT_OF(widths); i++) {
            p.bits = widths[i];
            REFUSED(gptq_weight, "2, 3, 4 and 8 are known");
        }
        static const int64_t sizes[] = {0, -2, INT64_MIN};
        for (size_t i = 0; i < COUNT_OF(sizes); i++) {
            p.group_size = sizes[i];
            REFUSED(gptq_weight, "group size");
        }
        p.group_size = INT64_MAX; // one group: the tables are too large for it
        REFUSED(gptq_weight, "qzeros");
        p.rows = 33;
        REFUSED(gptq_weight, "multiples of 8");
        p.bits = 3, p.cols = 48;
        REFUSED(gptq_weight, "multiples of 32");
        p.rows = (int64_t)1 << 40, p.cols = (int64_t)1 << 40;
        REFUSED(gptq_weight, "a quantised matrix of");
        groups[63] = 2;
        REFUSED(gptq_weight, "g_idx[63] is 2, there are 2 groups");
        groups[63] = -1;
        REFUSED(gptq_weight, "g_idx[63] is -1");
        groups[63] = INT32_MAX;
        REFUSED(gptq_weight, "g_idx[63]");
    }
    const struct awq_parts good = {"evil.qweight", 16, 64, 32, NUMBER_F16, NUMBER_F16, Z(512), Z(16), Z(64)};
    struct awq_parts p = good;
    ACCEPTED(awq_weight);
    SHORT(awq_weight, qweight, "qweight");
    SHORT(awq_weight, qzeros, "qzeros");
    SHORT(awq_weight, scales, "scales");
    p.scale_type = NUMBER_E8M0, p.scales.bytes = 32;
    REFUSED(awq_weight, "no floating point numbers");
    p.rows = 12;
    REFUSED(awq_weight, "multiple of 8");
    static const int64_t sizes[] = {0, -2, 33, 128, INT64_MAX, INT64_MIN};
    for (size_t i = 0; i < COUNT_OF(sizes); i++) {
        p.group_size = sizes[i];
        REFUSED(awq_weight, "group size");
    }
    p.rows = 0;
    REFUSED(awq_weight, "a quantised matrix of");
}

TEST(hostile_mxfp4) {
    const struct mxfp4_parts good = {"evil.blocks", 5, 64, 1, NUMBER_BF16, Z(160), Z(10)};
    struct mxfp4_parts p = good;
    ACCEPTED(mxfp4_weight);
    SHORT(mxfp4_weight, codes, "blocks");
    SHORT(mxfp4_weight, scales, "scales");
    p.cols = 48;
    REFUSED(mxfp4_weight, "multiple of 32");
    p.row_step = 2; // five rows of ten need at least nine
    REFUSED(mxfp4_weight, "one in 2");
    p.row_step = 2, p.codes.bytes = 9 * 32, p.scales.bytes = 17;
    REFUSED(mxfp4_weight, "scales");
    p.row_step = 2, p.codes.bytes = 10 * 32 + 1, p.scales.bytes = 18;
    REFUSED(mxfp4_weight, "blocks");
    p.row_step = 2, p.codes.bytes = 10 * 32, p.scales.bytes = 18;
    ACCEPTED(mxfp4_weight);
    p = good, p.rows = INT64_MAX / 8 / 64, p.row_step = 2;
    REFUSED(mxfp4_weight, "blocks");
    p.rows = -1;
    REFUSED(mxfp4_weight, "a quantised matrix of");
    p.scales.data = NULL;
    REFUSED(mxfp4_weight, "scales is missing");
}

// --- quantisers

enum { N = 40000 };
static float *some_values(void) {
    float *x = malloc(N * sizeof *x);
    if (!x) abort();
    for (unsigned i = 0; i < N; i++)
        x[i] = (float)((test_random(1, i) + test_random(2, i)) * pow(2.0, (double)(i / 512 % 24) - 12));
    memset(x + 1024, 0, 512 * sizeof *x);
    return x;
}

// Pieces of whole blocks, at odd addresses, make what the whole makes; so do bf16 and f16 values and the same as f32.
TEST(pieces_and_types) {
    float *x = some_values();
    uint16_t *half = malloc(2 * N);
    uint8_t *odd = malloc(4 * N + 1), codes[2][N / 2 + 1], inner[2][N / 32 + 1];
    float absmax[2][N / 32 + 1], outer[2][8];
    CHECK(half && odd);
    static const int64_t cuts[] = {0, 4096, 8192, 28672, N - 37};
    for (int type = NUMBER_F32; type <= NUMBER_BF16; type++) {
        for (int i = 0; i < N && type != NUMBER_F32; i++)
            half[i] = type == NUMBER_F16 ? f16_from_float(x[i]) : bf16_from_float(x[i]);
        for (int i = 0; i < N && type != NUMBER_F32; i++)
            x[i] = type == NUMBER_F16 ? f16_to_float(half[i]) : bf16_to_float(half[i]);
        int64_t bytes = type == NUMBER_F32 ? 4 : 2;
        memcpy(odd + 1, type == NUMBER_F32 ? (void *)x : (void *)half, (size_t)(bytes * N));
        for (int64_t block = 32; block <= 4096; block *= 2) {
            bool fp4 = block % 3 == 2;
            int64_t n = N - 37, blocks = (n + block - 1) / block;
            CHECK(nf4_quantize(codes[0], absmax[0], x, NUMBER_F32, n, block, fp4, NULL) == 0);
            for (size_t i = 0; i + 1 < COUNT_OF(cuts); i++) {
                int64_t a = cuts[i], b = cuts[i + 1];
                CHECK(nf4_quantize(codes[1] + a / 2, absmax[1] + a / block, odd + 1 + bytes * a, (enum number)type,
                                   b - a, block, fp4, NULL) == 0);
            }
            CHECK(memcmp(codes[0], codes[1], (size_t)(n + 1) / 2) == 0 &&
                  memcmp(absmax[0], absmax[1], (size_t)blocks * 4) == 0);
            float offset = nf4_scales_offset(absmax[0], blocks);
            nf4_quantize_scales(inner[0], outer[0], absmax[0], blocks, offset);
            for (int64_t a = 0; a < blocks; a += 256)
                nf4_quantize_scales(inner[1] + a, outer[1] + a / 256, absmax[0] + a,
                                    blocks - a < 256 ? blocks - a : 256, offset);
            CHECK(memcmp(inner[0], inner[1], (size_t)blocks) == 0 &&
                  memcmp(outer[0], outer[1], (size_t)(blocks + 255) / 256 * 4) == 0);
        }
        int8_t rows[2][4 * 9001];
        float scb[2][4];
        CHECK(int8_quantize(rows[0], scb[0], x, NUMBER_F32, 4, 9001, NULL) == 0);
        for (int i = 0; i < 4; i++)
            CHECK(int8_quantize(rows[1] + i * 9001, scb[1] + i, odd + 1 + bytes * i * 9001, (enum number)type, 1, 9001,
                                NULL) == 0);
        CHECK(memcmp(rows[0], rows[1], sizeof rows[0]) == 0 && memcmp(scb[0], scb[1], sizeof scb[0]) == 0);
    }
    free(x), free(half), free(odd);
}

// Quantised and decoded again: within half a step of the code, and exact where the block's largest value stands.
TEST(there_and_back) {
    float *x = some_values(), map[16], back[200];
    uint8_t codes[N / 2];
    float absmax[N / 64];
    for (int fp4 = 0; fp4 < 2; fp4++) {
        struct weight w;
        struct weight_tables t;
        struct error err = {0};
        nf4_code_map(map, fp4);
        CHECK(nf4_quantize(codes, absmax, x, NUMBER_F32, N, 64, fp4, &err) == 0);
        struct nf4_parts p = {
            .name = "x", fp4, 200, 200, 64, NUMBER_F32, {codes, N / 2}, floats_of(absmax, N / 64), floats_of(map, 16)};
        CHECK(nf4_weight(&w, &t, &p, &err) == 0);
        double worst = 0;
        int extremes = 0;
        for (int r = 0; r < 200; r++) {
            weight_decode(&w, r, 0, 200, back);
            for (int c = 0; c < 200; c++) {
                double most = (double)absmax[(r * 200 + c) / 64], v = (double)x[r * 200 + c];
                if (most == 0)
                    CHECK(back[c] == 0.0f);
                else
                    worst = fmax(worst, fabs((double)back[c] - v) / most);
                extremes += most != 0 && fabs(v) == most && (double)back[c] == v;
            }
        }
        double bound = fp4 ? 1.0 / 6 : 0.1520; // half the widest gap of the map
        CHECK_MSG(worst <= bound && worst > 0.99 * bound, "error %g, the bound is %g", worst, bound);
        CHECK(extremes >= N / 64 - 512 / 64 - 2);
    }
    int8_t rows[N];
    float scb[40];
    CHECK(int8_quantize(rows, scb, x, NUMBER_F32, 40, 1000, NULL) == 0);
    for (int i = 0; i < N; i++) {
        double step = (double)scb[i / 1000] / 127, f16 = fabs((double)x[i]) * 0x1p-11 + 0x1p-25;
        CHECK(fabs((double)rows[i] * step - (double)x[i]) <= step * 0.5001 + f16);
    }
    free(x);
}

TEST(extremes_are_quantised) {
    float x[64] = {0}, absmax, back[64];
    uint8_t codes[32];
    static const float extremes[] = {FLT_MAX, -FLT_MAX, FLT_MIN, FLT_TRUE_MIN, -FLT_TRUE_MIN, 1e-38f, 0.0f, -0.0f};
    for (size_t e = 0; e < COUNT_OF(extremes); e++) {
        x[17] = extremes[e];
        CHECK(nf4_quantize(codes, &absmax, x, NUMBER_F32, 64, 64, false, NULL) == 0);
        CHECK(absmax == fabsf(extremes[e]));
        struct weight w;
        struct weight_tables t;
        float map[16];
        nf4_code_map(map, false);
        struct nf4_parts p = {
            .name = "x", false, 1, 64, 64, NUMBER_F32, {codes, 32}, floats_of(&absmax, 1), floats_of(map, 16)};
        CHECK(nf4_weight(&w, &t, &p, NULL) == 0);
        weight_decode(&w, 0, 0, 64, back);
        for (int i = 0; i < 64; i++) CHECK(i == 17 ? fabsf(back[i]) <= absmax : back[i] == 0.0f);
        if (fabsf(extremes[e]) >= FLT_MIN) CHECK(back[17] == extremes[e]);
    }
    float scale;
    uint8_t code;
    nf4_quantize_scales(&code, &scale, &absmax, 1, absmax); // one block: its scale is the offset
    CHECK(code == 0 && scale == 0.0f);
}

TEST(not_finite_is_refused) {
    float *x = some_values(), absmax[N / 32 + 1];
    static uint8_t codes[N];
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    static const int places[] = {0, 63, 64, 1300, N - 1};
    char want[64];
    for (size_t b = 0; b < COUNT_OF(bad); b++) {
        for (size_t i = 0; i < COUNT_OF(places); i++) {
            struct error err = {0};
            float old = x[places[i]];
            x[places[i]] = bad[b];
            snprintf(want, sizeof want, "element %d is ", places[i]);
            CHECK(nf4_quantize(codes, absmax, x, NUMBER_F32, N, 64, false, &err) == -1 && err.code == STATUS_DATA);
            CHECK_MSG(strstr(err.text, want), "%s", err.text);
            err = (struct error){0};
            CHECK(int8_quantize((int8_t *)codes, absmax, x, NUMBER_F32, 4, N / 4, &err) == -1 &&
                  err.code == STATUS_DATA);
            CHECK_MSG(strstr(err.text, want), "%s", err.text);
            x[places[i]] = old;
        }
    }
    struct error err = {0};
    x[777] = 65520.0f; // infinite as f16, which LLM.int8 goes through
    CHECK(nf4_quantize(codes, absmax, x, NUMBER_F32, N, 64, false, &err) == 0);
    CHECK(int8_quantize((int8_t *)codes, absmax, x, NUMBER_F32, 4, N / 4, &err) == -1);
    uint16_t half[64] = {0};
    half[40] = 0x7F80;
    err = (struct error){0};
    CHECK(nf4_quantize(codes, absmax, half, NUMBER_BF16, 64, 64, false, &err) == -1 && strstr(err.text, "element 40"));
    free(x);
}

TEST_MAIN(CASE(fixture), CASE(where_a_code_lies), CASE(zero_points_of_gptq), CASE(three_bits_of_gptq),
          CASE(eight_bit_floats), CASE(any_range_of_any_view), CASE(alternating_rows), CASE(hostile_nf4),
          CASE(hostile_int8_and_fp8), CASE(hostile_gptq_and_awq), CASE(hostile_mxfp4), CASE(pieces_and_types),
          CASE(there_and_back), CASE(extremes_are_quantised), CASE(not_finite_is_refused))
