// See packed_linear.h.
#include "model/packed_linear.h"

#include <float.h>
#include <stdio.h>
#include <string.h>

static bool is_word(const char *text, const char *words) {
    size_t length = text ? strlen(text) : 0;
    for (const char *at = words; text && *at; at += strcspn(at, "|") + (strchr(at, '|') != NULL)) {
        if (strcspn(at, "|") == length && memcmp(at, text, length) == 0) return true;
    }
    return false;
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

enum { STATE_BYTES = 1 << 16 }; // bitsandbytes writes less than 200

// The text of a quant_state; `document` holds its strings.
static int open_state(const struct finder *f, const struct base_tensor *t, struct json_document *document) {
    static const char known[] = "quant_type|blocksize|dtype|shape|nested_blocksize|nested_dtype|nested_offset";
    char name[sizeof f->err->text];
    snprintf(name, sizeof name, "%s: tensor '%s'", f->base->name, t->name);
    struct json_options options = {.name = name, .max_values = 100};
    if (t->dtype != ST_U8 || t->bytes > STATE_BYTES)
        return error_set(f->err, STATUS_DATA, "%s is no text of at most %d bytes", name, STATE_BYTES);
    if (json_parse(t->data, (size_t)t->bytes, &options, document, f->err)) return -1;
    if (!json_is(document->root, JSON_OBJECT)) return error_set(f->err, STATUS_DATA, "%s is no JSON object", name);
    for (const struct json *at = json_child(document->root); at; at = json_next(at)) {
        if (!is_word(json_key(at, NULL), known))
            return error_set(f->err, STATUS_DATA, "%s has a key '%.60s', which this version does not know", name,
                             json_key(at, NULL));
    }
    return 0;
}

// Its numbers. *nested: absmax is quantised itself.
static int read_state(const struct json *root, struct nf4_parts *p, bool *nested, struct error *err) {
    const char *type = NULL, *dtype = NULL, *outer = NULL;
    const struct json *shape = NULL;
    double offset = 0;
    *nested = json_get(root, "nested_offset") || json_get(root, "nested_blocksize");
    enum json_presence outer_needed = *nested ? JSON_REQUIRED : JSON_OPTIONAL;
    if (json_get_string(root, "quant_type", JSON_REQUIRED, &type, NULL, err) ||
        json_get_string(root, "dtype", JSON_REQUIRED, &dtype, NULL, err) ||
        json_get_int(root, "blocksize", JSON_REQUIRED, &p->blocksize, err) ||
        json_get_container(root, "shape", JSON_ARRAY, JSON_REQUIRED, &shape, err) ||
        json_get_string(root, "nested_dtype", JSON_OPTIONAL, &outer, NULL, err) ||
        json_get_int(root, "nested_blocksize", outer_needed, &p->nested_blocksize, err) ||
        json_get_double(root, "nested_offset", outer_needed, &offset, err)) {
        return -1;
    }
    if (json_count(shape) != 2 || !json_int(json_child(shape), &p->rows) ||
        !json_int(json_next(json_child(shape)), &p->cols))
        return error_set(err, STATUS_DATA, "the shape is not two whole numbers");
    if (!is_word(type, "nf4|fp4"))
        return error_set(err, STATUS_DATA, "quant_type '%.60s' is neither nf4 nor fp4", type);
    if (!is_word(dtype, "bfloat16|float16|float32"))
        return error_set(err, STATUS_DATA, "dtype '%.60s' is none of bfloat16, float16 and float32", dtype);
    if (outer && strcmp(outer, "float32") != 0)
        return error_set(err, STATUS_DATA, "nested_dtype '%.60s' is not float32", outer);
    if (!(offset >= -FLT_MAX && offset <= FLT_MAX))
        return error_set(err, STATUS_DATA, "nested_offset %g is no float32", offset);
    p->nested_offset = (float)offset;
    p->fp4 = strcmp(type, "fp4") == 0;
    p->rounded = is_word(dtype, "bfloat16") ? NUMBER_BF16 : is_word(dtype, "float16") ? NUMBER_F16 : NUMBER_F32;
    return 0;
}

// Tensor names and the state say the same: the kind, the shape, whether there are tables of tables.
static int take_state(const struct finder *f, const struct base_tensor *t, struct nf4_parts *p, bool *nested) {
    struct json_document document = {0};
    int status = open_state(f, t, &document);
    if (status == 0 && read_state(document.root, p, nested, f->err)) {
        error_prefix(f->err, "%s: tensor '%s'", f->base->name, t->name);
        status = -1;
    }
    json_free(&document);
    if (status) return -1;
    const char *kind = strrchr(t->name, '_') + 1;
    if (strcmp(kind, p->fp4 ? "fp4" : "nf4") != 0)
        return error_set(f->err, STATUS_DATA, "%s: tensor '%s' says that it is of %s", f->base->name, t->name,
                         p->fp4 ? "fp4" : "nf4");
    if (p->rows == f->rows && p->cols == f->cols) return 0;
    return error_set(f->err, STATUS_DATA, "%s: tensor '%s.weight' is %lld x %lld, the architecture says %lld x %lld",
                     f->base->name, f->stem, (long long)p->rows, (long long)p->cols, (long long)f->rows,
                     (long long)f->cols);
}

static int take_nf4(const struct finder *f, const struct base_tensor *codes, const struct base_tensor *state,
                    struct weight *out) {
    struct nf4_parts p = {.name = codes->name, .codes = bytes_of(codes)};
    struct base_tensor t;
    bool nested = false;
    if (take_state(f, state, &p, &nested) || need(f, ".weight.quant_map", ST_F32, -1, -1, &t)) return -1;
    p.quant_map = bytes_of(&t);
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
    if (find(f, ".weight_format", &format) && (format.dtype != ST_U8 || format.bytes != 1 || format.data[0] != 0))
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
    if (scales->n_dims != 2 || scales->shape[0] < 1 || scales->shape[1] != f->rows)
        return fail(f, ".scales", "has the wrong shape");
    return 0;
}

// Columns of a group, where the configuration says something for all modules and this one has groups of its own, or
// where it says nothing. The tensors tell how many groups there are, which only sometimes tells how large they are.
static int group_size(const struct finder *f, int64_t groups, bool listed, int64_t *size) {
    const struct packing *q = f->packing;
    *size = q->group_size;
    if (*size != 0 && !q->overrides) return 0;
    if (*size > 0 && (f->cols + *size - 1) / *size == groups) return 0;
    *size = groups == 1 ? -1 : (f->cols + groups - 1) / groups;
    if (groups == 1 || f->cols % groups == 0 || (listed && (f->cols + *size - 1) / *size == groups)) return 0;
    return error_set(f->err, STATUS_DATA, "%s: tensor '%s.scales' has %lld groups, which do not divide %lld columns",
                     f->base->name, f->stem, (long long)groups, (long long)f->cols);
}

static int take_gptq(const struct finder *f, const struct base_tensor *codes, struct weight *out) {
    struct base_tensor zeros, scales, groups;
    const struct packing *q = f->packing;
    enum number type;
    int64_t bits = q->bits, size;
    if (take_scales(f, &scales, &type)) return -1;
    if (find(f, ".g_idx", &groups) && groups.dtype != ST_I32) return fail(f, ".g_idx", "is not I32");
    if (q->reordered && !groups.data && scales.shape[0] > 1)
        return fail(f, ".g_idx", "is missing, and config.json says desc_act: which column is in which group is lost");
    if (q->overrides) {
        bits = codes->shape[0] <= f->cols ? codes->shape[0] * 32 / f->cols : 0;
        if (bits != 2 && bits != 3 && bits != 4 && bits != 8) return fail(f, ".qweight", "has the wrong shape");
    }
    if (group_size(f, scales.shape[0], groups.data != NULL, &size) ||
        need(f, ".qweight", ST_I32, f->cols * bits / 32, f->rows, &zeros) ||
        need(f, ".qzeros", ST_I32, scales.shape[0], f->rows * bits / 32, &zeros)) {
        return -1;
    }
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
    int64_t size;
    if (take_scales(f, &scales, &type) || group_size(f, scales.shape[0], false, &size) ||
        need(f, ".qweight", ST_I32, f->cols, f->rows / 8, &zeros) ||
        need(f, ".qzeros", ST_I32, scales.shape[0], f->rows / 8, &zeros)) {
        return -1;
    }
    struct weight_tables *tables = new_tables(f);
    struct awq_parts p = {.name = codes->name,
                          .rows = f->rows,
                          .cols = f->cols,
                          .group_size = size,
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
    bool blocks = block[0] > 0 && scales.n_dims == 2;
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

// A linear of which one tensor says that it is packed, and the one with its codes is not there.
static int half_there(const struct finder *f) {
    struct base_tensor t;
    const char *method = f->packing->method;
    if (is_word(method, "gptq|awq") && (find(f, ".scales", &t) || find(f, ".qzeros", &t) || find(f, ".g_idx", &t)))
        return fail(f, ".qweight", "is missing");
    return 0;
}

static int take_bitsandbytes(const struct finder *f, const struct base_tensor *codes, struct weight *out) {
    struct base_tensor more;
    if (quant_state(f, &more)) return take_nf4(f, codes, &more, out);
    if (codes->dtype == ST_I8) return take_int8(f, codes, out);
    if (codes->dtype == ST_U8 || find(f, ".weight.absmax", &more))
        return fail(f, ".weight.quant_state.bitsandbytes__nf4", "is missing (nor is there one of fp4)");
    return find(f, ".SCB", &more) ? fail(f, ".weight", "has an SCB, but is not I8") : 0;
}

// Without a quantization_config nothing is packed, and tensors that say otherwise would be read as something else.
static int check_plain(const struct finder *f) {
    struct base_tensor t;
    if (find(f, ".weight", &t) && t.format) return 0;
    static const char *const packed[] = {".qweight", ".weight.absmax", ".SCB", ".weight_scale_inv", ".weight_scale"};
    for (size_t i = 0; i < COUNT_OF(packed); i++) {
        if (find(f, packed[i], &t)) return fail(f, packed[i], "is there, but config.json has no quantization_config");
    }
    return 0;
}

int packed_linear(const struct base *base, const struct packing *packing, struct pool *pool, const char *stem,
                  int64_t rows, int64_t cols, struct weight *out, struct error *err) {
    struct finder f = {base, packing, pool, stem, rows, cols, err};
    struct base_tensor t;
    const char *method = packing->method;
    if (base->kind != BASE_SAFETENSORS) return 0;
    if (!method) return check_plain(&f);
    if (find(&f, ".qweight", &t)) {
        if (strcmp(method, "gptq") == 0) return take_gptq(&f, &t, out);
        if (strcmp(method, "awq") == 0) return take_awq(&f, &t, out);
        return fail(&f, ".qweight", "is there, but config.json says neither gptq nor awq");
    }
    if (!find(&f, ".weight", &t)) return half_there(&f);
    if (strcmp(method, "bitsandbytes") == 0) return take_bitsandbytes(&f, &t, out);
    if (t.dtype == ST_F8_E4M3 || t.dtype == ST_F8_E5M2) return take_fp8(&f, &t, out);
    return t.dtype == ST_I8 ? take_pairs(&f, &t, out) : half_there(&f);
}

int packed_experts(const struct base *base, const struct packing *packing, struct pool *pool, const char *stem,
                   int64_t experts, int64_t rows, int64_t cols, struct weight *out, struct error *err) {
    struct finder f = {base, packing, pool, stem, rows, cols, err};
    struct base_tensor codes, scales;
    if (!packing->method || base->kind != BASE_SAFETENSORS) return 0;
    if (!find(&f, "_blocks", &codes)) return find(&f, "_scales", &scales) ? fail(&f, "_blocks", "is missing") : 0;
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
