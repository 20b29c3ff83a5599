// See packed_linear.h.
#include "model/packed_linear.h"

#include <stdio.h>
#include <string.h>

// --- config.json

static bool is_word(const char *text, const char *words) {
    size_t length = text ? strlen(text) : 0;
    for (const char *at = words; text && *at; at += strcspn(at, "|") + (strchr(at, '|') != NULL)) {
        if (strcspn(at, "|") == length && memcmp(at, text, length) == 0) return true;
    }
    return false;
}

static int64_t integer(const struct json *object, const char *key, int64_t fallback) {
    int64_t value = fallback;
    const struct json *v = json_get(object, key);
    return v && json_int(v, &value) ? value : fallback;
}

static int read_gptq(const struct json *q, const char *name, struct packing *out, struct error *err) {
    const char *layout = json_string(json_get(q, "checkpoint_format"), NULL);
    if (!layout) layout = json_string(json_get(q, "format"), NULL);
    bool marlin = false;
    json_bool(json_get(q, "is_marlin_format"), &marlin);
    if (marlin) layout = "marlin";
    if (layout && !is_word(layout, "gptq|gptq_v2"))
        return error_set(err, STATUS_DATA,
                         "%s: GPTQ in the layout '%.60s' is not in this version; gptq and gptq_v2 are", name, layout);
    out->gptq_v2 = layout && strcmp(layout, "gptq_v2") == 0;
    out->bits = integer(q, "bits", 0);
    out->group_size = integer(q, "group_size", -1);
    out->overrides = json_is(json_get(q, "dynamic"), JSON_OBJECT);
    if (out->bits == 2 || out->bits == 3 || out->bits == 4 || out->bits == 8) return 0;
    return error_set(err, STATUS_DATA, "%s: GPTQ of %lld bits is not in this version; 2, 3, 4 and 8 are", name,
                     (long long)out->bits);
}

static int read_awq(const struct json *q, const char *name, struct packing *out, struct error *err) {
    const char *layout = json_string(json_get(q, "version"), NULL);
    out->bits = integer(q, "bits", integer(q, "w_bit", 4));
    out->group_size = integer(q, "group_size", integer(q, "q_group_size", 128));
    if (layout && !is_word(layout, "gemm|GEMM"))
        return error_set(err, STATUS_DATA, "%s: AWQ in the layout '%.60s' is not in this version; gemm is", name,
                         layout);
    if (out->bits == 4) return 0;
    return error_set(err, STATUS_DATA, "%s: AWQ of %lld bits is not in this version; 4 is", name, (long long)out->bits);
}

static int read_fp8(const struct json *q, const char *name, struct packing *out, struct error *err) {
    const struct json *block = json_get(q, "weight_block_size");
    out->scale_kind = json_string(json_get(q, "scale_fmt"), NULL);
    if (!json_is(block, JSON_ARRAY)) return 0;
    const struct json *first = json_child(block), *second = json_next(first);
    if (!json_int(first, &out->block[0]) || !json_int(second, &out->block[1]) || out->block[0] < 1 || out->block[1] < 1)
        return error_set(err, STATUS_DATA, "%s: weight_block_size is no pair of positive numbers", name);
    return 0;
}

// FP8 of compressed-tensors has the same tensors; its integer formats do not.
static int read_compressed(const struct json *q, const char *name, struct error *err) {
    const char *format = json_string(json_get(q, "format"), NULL);
    if (is_word(format, "float-quantized|naive-quantized")) return 0;
    return error_set(err, STATUS_DATA,
                     "%s: compressed-tensors in the format '%.60s' is not in this version; "
                     "float-quantized (FP8) is",
                     name, format ? format : "");
}

int packing_read(const struct json *config, const char *name, struct packing *out, struct error *err) {
    const struct json *q = json_get(config, "quantization_config");
    if (!json_is(q, JSON_OBJECT)) q = json_get(json_get(config, "text_config"), "quantization_config");
    if (!json_is(q, JSON_OBJECT)) q = json_get(config, "compression_config");
    *out = (struct packing){0};
    if (!json_is(q, JSON_OBJECT)) return 0;
    out->method = json_string(json_get(q, "quant_method"), NULL);
    if (!out->method && (json_get(q, "load_in_4bit") || json_get(q, "load_in_8bit"))) out->method = "bitsandbytes";
    if (!out->method) return error_set(err, STATUS_DATA, "%s: quantization_config has no quant_method", name);
    if (strcmp(out->method, "gptq") == 0) return read_gptq(q, name, out, err);
    if (strcmp(out->method, "awq") == 0) return read_awq(q, name, out, err);
    if (strcmp(out->method, "fp8") == 0) return read_fp8(q, name, out, err);
    if (strcmp(out->method, "compressed-tensors") == 0) return read_compressed(q, name, err);
    if (is_word(out->method, "bitsandbytes|mxfp4")) return 0;
    return error_set(err, STATUS_DATA,
                     "%s: the quantisation method '%.60s' is not in this version; bitsandbytes, gptq, awq, fp8, mxfp4 "
                     "and compressed-tensors (FP8) are",
                     name, out->method);
}

// --- tensors

struct finder {
    const struct base *base;
    const struct packing *packing;
    struct pool *pool;
    const char *stem;
    int64_t rows, cols;
    struct error *err;
};

static bool find(const struct finder *f, const char *ending, struct base_tensor *out) {
    char name[ST_MAX_NAME + 80];
    *out = (struct base_tensor){0};
    if ((size_t)snprintf(name, sizeof name, "%s%s", f->stem, ending) >= sizeof name) return false;
    return base_find(f->base, name, out);
}

static struct table_bytes bytes_of(const struct base_tensor *t) {
    return (struct table_bytes){t->data, (size_t)t->bytes};
}

static int fail(const struct finder *f, const char *ending, const char *what) {
    return error_set(f->err, STATUS_DATA, "%s: tensor '%s%s' %s", f->base->name, f->stem, ending, what);
}

// A tensor that has to be there, with this type and, where given (not -1), these dims.
static int need(const struct finder *f, const char *ending, enum safetensors_dtype type, int64_t first, int64_t second,
                struct base_tensor *out) {
    if (!find(f, ending, out)) return fail(f, ending, "is missing");
    if (out->dtype != type) {
        return error_set(f->err, STATUS_DATA, "%s: tensor '%s' is %s, expected %s", f->base->name, out->name,
                         out->type_name, safetensors_dtype_name(type));
    }
    if (second >= 0 && (out->n_dims != 2 || out->shape[0] != first || out->shape[1] != second)) {
        return error_set(f->err, STATUS_DATA, "%s: tensor '%s' is %lld x %lld, the architecture says %lld x %lld",
                         f->base->name, out->name, (long long)out->shape[0], (long long)out->shape[1], (long long)first,
                         (long long)second);
    }
    return 0;
}

static bool number_of(enum safetensors_dtype type, enum number *out) {
    switch (type) {
    case ST_F32: *out = NUMBER_F32; return true;
    case ST_F16: *out = NUMBER_F16; return true;
    case ST_BF16: *out = NUMBER_BF16; return true;
    case ST_F8_E8M0: *out = NUMBER_E8M0; return true;
    default: return false;
    }
}

static struct weight_tables *new_tables(const struct finder *f) {
    struct weight_tables *t = pool_alloc(f->pool, sizeof *t);
    if (!t) error_memory(f->err, "the weight table", sizeof *t);
    return t;
}

// What the constructor said about the weight, with the base's name before it.
static int made(const struct finder *f, int status) {
    if (status == 0) return 1;
    error_prefix(f->err, "%s", f->base->name);
    return -1;
}

// --- bitsandbytes

static int read_state(const struct finder *f, const struct base_tensor *t, struct nf4_parts *p,
                      struct json_document *d) {
    static const char known[] = "quant_type|blocksize|dtype|shape|nested_blocksize|nested_dtype|nested_offset";
    struct json_options options = {.name = t->name};
    const char *type = NULL, *dtype = NULL;
    const struct json *shape = NULL;
    double offset = 0;
    if (json_parse((const char *)t->data, (size_t)t->bytes, &options, d, f->err)) return -1;
    for (const struct json *at = json_child(d->root); at; at = json_next(at)) {
        if (!is_word(json_key(at, NULL), known))
            return error_set(f->err, STATUS_DATA, "%s: tensor '%s' has a key '%.60s', which this version does not know",
                             f->base->name, t->name, json_key(at, NULL));
    }
    type = json_string(json_get(d->root, "quant_type"), NULL), dtype = json_string(json_get(d->root, "dtype"), NULL);
    shape = json_get(d->root, "shape");
    p->blocksize = integer(d->root, "blocksize", 0), p->nested_blocksize = integer(d->root, "nested_blocksize", 0);
    if (json_get(d->root, "nested_offset") && !json_double(json_get(d->root, "nested_offset"), &offset)) offset = 0;
    p->nested_offset = (float)offset;
    if (!json_int(json_child(shape), &p->rows) || !json_int(json_next(json_child(shape)), &p->cols))
        return fail(f, ".weight", "has a quant_state without a shape");
    if (!is_word(type, "nf4|fp4")) return fail(f, ".weight", "has a quant_state of neither nf4 nor fp4");
    p->fp4 = strcmp(type, "fp4") == 0;
    p->rounded = is_word(dtype, "bfloat16") ? NUMBER_BF16 : is_word(dtype, "float16") ? NUMBER_F16 : NUMBER_F32;
    if (!is_word(dtype, "bfloat16|float16|float32")) return fail(f, ".weight", "has a quant_state of an unknown dtype");
    if (p->rows == f->rows && p->cols == f->cols) return 0;
    return error_set(f->err, STATUS_DATA, "%s: tensor '%s.weight' is %lld x %lld, the architecture says %lld x %lld",
                     f->base->name, f->stem, (long long)p->rows, (long long)p->cols, (long long)f->rows,
                     (long long)f->cols);
}

static int take_nf4(const struct finder *f, const struct base_tensor *codes, const struct base_tensor *state,
                    struct weight *out) {
    struct nf4_parts p = {.name = codes->name, .codes = bytes_of(codes)};
    struct json_document document = {0};
    struct base_tensor t;
    int status = read_state(f, state, &p, &document);
    json_free(&document);
    if (status || need(f, ".weight.quant_map", ST_F32, -1, -1, &t)) return -1;
    p.quant_map = bytes_of(&t);
    bool nested = find(f, ".weight.nested_absmax", &t);
    if (need(f, ".weight.absmax", nested ? ST_U8 : ST_F32, -1, -1, &t)) return -1;
    p.absmax = bytes_of(&t);
    if (nested) {
        if (need(f, ".weight.nested_absmax", ST_F32, -1, -1, &t)) return -1;
        p.nested_absmax = bytes_of(&t);
        if (need(f, ".weight.nested_quant_map", ST_F32, -1, -1, &t)) return -1;
        p.nested_quant_map = bytes_of(&t);
    }
    struct weight_tables *tables = new_tables(f);
    return tables ? made(f, nf4_weight(out, tables, &p, f->err)) : -1;
}

static int take_int8(const struct finder *f, const struct base_tensor *codes, struct weight *out) {
    struct base_tensor scb, format;
    if (need(f, ".weight", ST_I8, f->rows, f->cols, &scb) || need(f, ".SCB", ST_F32, -1, -1, &scb)) return -1;
    if (find(f, ".weight_format", &format) && format.bytes == 1 && format.data[0] != 0)
        return fail(f, ".weight_format", "is not 0: only rows one after another are in this version");
    struct weight_tables *tables = new_tables(f);
    struct int8_parts p = {.name = codes->name,
                           .rows = f->rows,
                           .cols = f->cols,
                           .rounded = NUMBER_F32,
                           .codes = bytes_of(codes),
                           .scb = bytes_of(&scb)};
    return tables ? made(f, int8_weight(out, tables, &p, f->err)) : -1;
}

// --- GPTQ and AWQ

static int take_scales(const struct finder *f, struct base_tensor *scales, enum number *type) {
    if (!find(f, ".scales", scales)) return fail(f, ".scales", "is missing");
    if (!number_of(scales->dtype, type) || *type == NUMBER_E8M0) return fail(f, ".scales", "holds no floats");
    if (scales->n_dims != 2 || scales->shape[1] != f->rows) return fail(f, ".scales", "has the wrong shape");
    return 0;
}

static int take_gptq(const struct finder *f, const struct base_tensor *codes, struct weight *out) {
    struct base_tensor zeros, scales, groups;
    const struct packing *q = f->packing;
    enum number type;
    int64_t bits = q->overrides ? codes->shape[0] * 32 / f->cols : q->bits, size = q->group_size;
    if (take_scales(f, &scales, &type)) return -1;
    if (q->overrides) size = scales.shape[0] == 1 ? -1 : (f->cols + scales.shape[0] - 1) / scales.shape[0];
    if (need(f, ".qweight", ST_I32, f->cols * bits / 32, f->rows, &zeros) ||
        need(f, ".qzeros", ST_I32, scales.shape[0], f->rows * bits / 32, &zeros)) {
        return -1;
    }
    if (find(f, ".g_idx", &groups) && groups.dtype != ST_I32) return fail(f, ".g_idx", "is not I32");
    struct weight_tables *tables = new_tables(f);
    struct gptq_parts p = {.name = codes->name,
                           .rows = f->rows,
                           .cols = f->cols,
                           .bits = (int)bits,
                           .group_size = size,
                           .v2 = q->gptq_v2,
                           .scale_type = type,
                           .rounded = type,
                           .qweight = bytes_of(codes),
                           .qzeros = bytes_of(&zeros),
                           .scales = bytes_of(&scales),
                           .g_idx = bytes_of(&groups)};
    return tables ? made(f, gptq_weight(out, tables, &p, f->err)) : -1;
}

static int take_awq(const struct finder *f, const struct base_tensor *codes, struct weight *out) {
    struct base_tensor zeros, scales;
    enum number type;
    if (take_scales(f, &scales, &type) || need(f, ".qweight", ST_I32, f->cols, f->rows / 8, &zeros) ||
        need(f, ".qzeros", ST_I32, scales.shape[0], f->rows / 8, &zeros)) {
        return -1;
    }
    struct weight_tables *tables = new_tables(f);
    struct awq_parts p = {.name = codes->name,
                          .rows = f->rows,
                          .cols = f->cols,
                          .group_size = f->packing->group_size,
                          .scale_type = type,
                          .rounded = type,
                          .qweight = bytes_of(codes),
                          .qzeros = bytes_of(&zeros),
                          .scales = bytes_of(&scales)};
    return tables ? made(f, awq_weight(out, tables, &p, f->err)) : -1;
}

// --- FP8, and FP4 in pairs

static int scale_grid(const struct finder *f, struct base_tensor *scales, enum number *type, int64_t grid[2]) {
    if (!find(f, ".weight_scale_inv", scales) && !find(f, ".weight_scale", scales) && !find(f, ".scale", scales))
        return fail(f, ".weight_scale_inv", "is missing (nor is there a weight_scale)");
    bool exponents = f->packing->scale_kind && strcmp(f->packing->scale_kind, "ue8m0") == 0;
    *type = NUMBER_E8M0;
    if (!(scales->dtype == ST_U8 && exponents) && !number_of(scales->dtype, type))
        return error_set(f->err, STATUS_DATA, "%s: tensor '%s' is %s, which is no type of scales", f->base->name,
                         scales->name, scales->type_name);
    if (scales->n_dims > 2) return fail(f, ".weight_scale", "has more than two dims");
    grid[0] = scales->n_dims > 0 ? scales->shape[0] : 1, grid[1] = scales->n_dims > 1 ? scales->shape[1] : 1;
    return 0;
}

static int take_fp8(const struct finder *f, const struct base_tensor *codes, struct weight *out) {
    struct base_tensor scales;
    enum number type;
    int64_t grid[2];
    if (need(f, ".weight", codes->dtype, f->rows, f->cols, &scales) || scale_grid(f, &scales, &type, grid)) return -1;
    const int64_t *block = f->packing->block;
    bool blocks = block[0] > 0 && grid[0] * grid[1] > 1;
    struct weight_tables *tables = new_tables(f);
    struct fp8_parts p = {.name = codes->name,
                          .e5m2 = codes->dtype == ST_F8_E5M2,
                          .rows = f->rows,
                          .cols = f->cols,
                          .block_rows = blocks ? block[0] : 0,
                          .block_cols = blocks ? block[1] : 0,
                          .scale_rows = grid[0],
                          .scale_cols = grid[1],
                          .scale_type = type,
                          .rounded = NUMBER_F32,
                          .codes = bytes_of(codes),
                          .scales = bytes_of(&scales)};
    return tables ? made(f, fp8_weight(out, tables, &p, f->err)) : -1;
}

static int take_pairs(const struct finder *f, const struct base_tensor *codes, struct weight *out) {
    struct base_tensor scales;
    enum number type;
    int64_t grid[2];
    if (need(f, ".weight", ST_I8, f->rows, f->cols / 2, &scales) || scale_grid(f, &scales, &type, grid)) return -1;
    if (type != NUMBER_E8M0 || grid[0] != f->rows || grid[1] != f->cols / 32)
        return fail(f, ".weight", "is packed FP4, and its scales do not cover blocks of 32 with exponents");
    struct weight_tables *tables = new_tables(f);
    struct mxfp4_parts p = {.name = codes->name,
                            .rows = f->rows,
                            .cols = f->cols,
                            .row_step = 1,
                            .rounded = NUMBER_F32,
                            .codes = bytes_of(codes),
                            .scales = bytes_of(&scales)};
    return tables ? made(f, mxfp4_weight(out, tables, &p, f->err)) : -1;
}

// --- which

static bool quant_state(const struct finder *f, struct base_tensor *out) {
    return find(f, ".weight.quant_state.bitsandbytes__nf4", out) ||
           find(f, ".weight.quant_state.bitsandbytes__fp4", out);
}

int packed_linear(const struct base *base, const struct packing *packing, struct pool *pool, const char *stem,
                  int64_t rows, int64_t cols, struct weight *out, struct error *err) {
    struct finder f = {base, packing, pool, stem, rows, cols, err};
    struct base_tensor t, more;
    if (!packing->method || base->kind != BASE_SAFETENSORS) return 0;
    if (find(&f, ".qweight", &t)) {
        if (strcmp(packing->method, "gptq") == 0) return take_gptq(&f, &t, out);
        if (strcmp(packing->method, "awq") == 0) return take_awq(&f, &t, out);
        return fail(&f, ".qweight", "is there, but config.json says neither gptq nor awq");
    }
    if (!find(&f, ".weight", &t)) return 0;
    if (quant_state(&f, &more)) return take_nf4(&f, &t, &more, out);
    if (t.dtype == ST_I8 && find(&f, ".SCB", &more)) return take_int8(&f, &t, out);
    if (t.dtype == ST_F8_E4M3 || t.dtype == ST_F8_E5M2) return take_fp8(&f, &t, out);
    return t.dtype == ST_I8 ? take_pairs(&f, &t, out) : 0;
}

int packed_experts(const struct base *base, const struct packing *packing, struct pool *pool, const char *stem,
                   int64_t experts, int64_t rows, int64_t cols, struct weight *out, struct error *err) {
    struct finder f = {base, packing, pool, stem, rows, cols, err};
    struct base_tensor codes, scales;
    if (!packing->method || base->kind != BASE_SAFETENSORS || !find(&f, "_blocks", &codes)) return 0;
    if (need(&f, "_blocks", ST_U8, -1, -1, &codes) || need(&f, "_scales", ST_U8, -1, -1, &scales)) return -1;
    if (codes.n_dims != 4 || codes.shape[0] != experts || codes.shape[1] != rows || codes.shape[2] * 32 != cols ||
        codes.shape[3] != 16) {
        return fail(&f, "_blocks", "has the wrong shape");
    }
    if (scales.n_dims != 3 || scales.shape[0] != experts || scales.shape[1] != rows || scales.shape[2] * 32 != cols)
        return fail(&f, "_scales", "has the wrong shape");
    for (int64_t e = 0; e < experts; e++) {
        size_t blocks = (size_t)rows * (size_t)(cols / 32);
        struct weight_tables *tables = new_tables(&f);
        struct mxfp4_parts p = {.name = codes.name,
                                .rows = rows,
                                .cols = cols,
                                .row_step = 1,
                                .rounded = NUMBER_F32,
                                .codes = {codes.data + (size_t)e * blocks * 16, blocks * 16},
                                .scales = {scales.data + (size_t)e * blocks, blocks}};
        if (!tables || made(&f, mxfp4_weight(&out[e], tables, &p, err)) < 0) return -1;
    }
    return 1;
}
