// random_base SHAPE.json FOLDER bf16|nf4 [LAYERS]: a base of that shape with random weights (normal, 0.02), as
// transformers and bitsandbytes write them, for measuring speed and memory. The numbers come from one pool that every
// tensor reads from a place of its own: writing takes as long as the disk does.
#include "kernels/alloc.h"
#include "kernels/quantize.h"
#include "kernels/random.h"
#include "model/model.h"
#include "model/safetensors.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { POOL = 1 << 24, BLOCK = 64 }; // numbers; of NF4
#define STD 0.02

struct source {
    struct pool names;
    uint16_t *normal; // [POOL] bf16
    uint8_t *codes;   // [POOL] random bytes
};

struct tensor_data {
    struct source *s;
    const void *pool; // repeated from `start` on
    size_t start, size, bytes;
};

static int fill_from_pool(void *context, struct file_writer *out, struct error *err) {
    const struct tensor_data *t = context;
    size_t at = t->start;
    for (size_t left = t->bytes; left > 0;) {
        size_t n = t->size - at < left ? t->size - at : left;
        if (file_write(out, (const uint8_t *)t->pool + at, n, err)) return -1;
        left -= n, at = 0;
    }
    return 0;
}

static void make_pools(struct source *s) {
    for (uint32_t i = 0; i < POOL; i += 4) {
        uint32_t b[4];
        float v[4];
        random_four((struct random_key){.seed = 1, .purpose_module = (uint32_t)RANDOM_TEST << 24}, 0, 0, i / 4, b);
        for (int k = 0; k < 4; k += 2) { // Box-Muller
            double r = STD * sqrt(-2 * log(((double)b[k] + 1) / 4294967296.0)),
                   a = 6.283185307179586 * b[k + 1] / 4294967296.0;
            v[k] = (float)(r * cos(a)), v[k + 1] = (float)(r * sin(a));
        }
        for (int k = 0; k < 4; k++)
            s->normal[i + (uint32_t)k] = bf16_from_float(v[k]), s->codes[i + (uint32_t)k] = (uint8_t)(b[k] >> 8);
    }
}

struct writing {
    struct source *s;
    struct safetensors_out *out;
    struct tensor_data *data;
    size_t n;
};

static struct safetensors_out *add(struct writing *w, const char *name, enum safetensors_dtype type, int64_t rows,
                                   int64_t cols) {
    struct safetensors_out *o = &w->out[w->n++];
    *o = (struct safetensors_out){.name = name, .dtype = type, .n_dims = cols < 0 ? 1 : 2, .shape = {rows, cols}};
    return o;
}

// From the pool of normal numbers, or of bytes.
static void add_random(struct writing *w, const char *name, enum safetensors_dtype type, int64_t rows, int64_t cols) {
    struct tensor_data *d = &w->data[w->n];
    struct safetensors_out *o = add(w, name, type, rows, cols);
    bool bytes = type == ST_U8;
    *d = (struct tensor_data){.s = w->s, .pool = bytes ? (const void *)w->s->codes : w->s->normal};
    d->size = POOL * (size_t)(bytes ? 1 : 2);
    d->start = (size_t)w->n * 999983u * 64 % d->size;
    d->bytes = (size_t)(rows * (cols < 0 ? 1 : cols)) * (bytes ? 1 : 2);
    o->fill = fill_from_pool, o->context = d;
}

static const float *constant(struct source *s, int64_t count, float value) {
    float *v = pool_array(&s->names, (uint64_t)count, sizeof *v);
    for (int64_t i = 0; v && i < count; i++) v[i] = value;
    return v;
}

static bool is_linear(const struct weight *w, const struct model *m) {
    return w->rows > 1 && w->segment >= SEGMENT_LAYER0 && w->segment < m->n_segments - 1 && !strstr(w->name, ".gate.");
}

// As double quantisation leaves it: scales of about 2.5 standard deviations.
static void add_nf4(struct writing *w, const struct weight *t) {
    struct pool *p = &w->s->names;
    static float map[16], scales[256];
    int64_t blocks = t->rows * t->cols / BLOCK, outer = (blocks + NF4_SCALE_BLOCK - 1) / NF4_SCALE_BLOCK;
    nf4_code_map(map, false), nf4_scale_map(scales);
    add_random(w, t->name, ST_U8, t->rows * t->cols / 2, 1);
    add_random(w, pool_printf(p, "%s.absmax", t->name), ST_U8, blocks, -1);
    add(w, pool_printf(p, "%s.quant_map", t->name), ST_F32, 16, -1)->data = map;
    add(w, pool_printf(p, "%s.nested_absmax", t->name), ST_F32, outer, -1)->data = constant(w->s, outer, 0.01f);
    add(w, pool_printf(p, "%s.nested_quant_map", t->name), ST_F32, 256, -1)->data = scales;
    char *state =
        pool_printf(p,
                    "{\"quant_type\": \"nf4\", \"blocksize\": 64, \"dtype\": \"bfloat16\", \"shape\": [%lld, "
                    "%lld], \"nested_blocksize\": 256, \"nested_dtype\": \"float32\", \"nested_offset\": 0.05}",
                    (long long)t->rows, (long long)t->cols);
    add(w, pool_printf(p, "%s.quant_state.bitsandbytes__nf4", t->name), ST_U8, (int64_t)strlen(state), -1)->data =
        state;
}

// config.json with another number of layers, and the quantization_config where it is NF4.
static int write_config(const char *shape, const char *folder, bool nf4, const char *layers, struct error *err) {
    struct text text = {0}, out = {0};
    char path[4096];
    if (file_read(shape, 1 << 20, &text, err)) return -1;
    const char *key = strstr(text_str(&text), "\"num_hidden_layers\""), *end = strrchr(text_str(&text), '}');
    const char *from = key ? strchr(key, ':') : NULL;
    if (!from || !end) return error_set(err, STATUS_DATA, "%s: no num_hidden_layers", shape);
    text_printf(&out, "%.*s: %s", (int)(from - text_str(&text)), text_str(&text), layers ? layers : "");
    const char *rest = from + 1;
    if (layers) rest += strspn(rest, " 0123456789");
    text_printf(&out, "%.*s", (int)(end - rest), rest);
    if (nf4)
        text_add(&out, ", \"quantization_config\": {\"quant_method\": \"bitsandbytes\", \"load_in_4bit\": true, "
                       "\"bnb_4bit_quant_type\": \"nf4\", \"bnb_4bit_use_double_quant\": true, "
                       "\"bnb_4bit_compute_dtype\": \"bfloat16\", \"bnb_4bit_quant_storage\": \"uint8\"}");
    text_add(&out, "}\n");
    snprintf(path, sizeof path, "%s/config.json", folder);
    int status = file_replace(path, text_str(&out), out.length, err);
    text_free(&text), text_free(&out);
    return status;
}

static int write_base(const struct model *m, const char *folder, bool nf4, struct error *err) {
    static struct source s;
    size_t most = (size_t)m->n_weights * 6 + 1;
    struct writing w = {.s = &s, .out = mem_zalloc(most, sizeof *w.out), .data = mem_zalloc(most, sizeof *w.data)};
    s.normal = mem_alloc(POOL * 2), s.codes = mem_alloc(POOL);
    if (!s.normal || !s.codes || !w.out || !w.data) return error_memory(err, "random numbers", POOL * 3);
    make_pools(&s);
    for (int i = 0; i < m->n_weights; i++) {
        const struct weight *t = m->weights[i];
        bool again = false; // a tied head
        for (size_t k = 0; k < w.n && t->segment == m->n_segments - 1; k++)
            again |= strcmp(w.out[k].name, t->name) == 0;
        if (again) continue;
        if (t->rows == 1) {
            uint16_t *ones = pool_array(&s.names, (uint64_t)t->cols, 2);
            for (int64_t k = 0; ones && k < t->cols; k++) ones[k] = bf16_from_float(1);
            add(&w, t->name, ST_BF16, t->cols, -1)->data = ones;
        } else if (nf4 && is_linear(t, m))
            add_nf4(&w, t);
        else
            add_random(&w, t->name, ST_BF16, t->rows, t->cols);
    }
    char path[4096];
    struct file_writer out;
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    if (file_create(path, &out, err)) return -1;
    if (safetensors_write(&out, w.out, w.n, err)) {
        file_abandon(&out);
        return -1;
    }
    return file_close(&out, err);
}

int main(int argc, char **argv) {
    struct error err = {0};
    struct model m;
    if (argc < 4 || (strcmp(argv[3], "bf16") != 0 && strcmp(argv[3], "nf4") != 0)) {
        fprintf(stderr, "random_base SHAPE.json FOLDER bf16|nf4 [LAYERS]\n");
        return STATUS_USAGE;
    }
    bool nf4 = strcmp(argv[3], "nf4") == 0;
    char config[4096];
    snprintf(config, sizeof config, "%s/config.json", argv[2]);
    // The shapes are read without the quantization_config, which the written folder then has.
    if (file_make_folders(argv[2], &err) || write_config(argv[1], argv[2], false, argc > 4 ? argv[4] : NULL, &err) ||
        model_open(config, NULL, &m, &err) || write_base(&m, argv[2], nf4, &err) ||
        write_config(argv[1], argv[2], nf4, argc > 4 ? argv[4] : NULL, &err)) {
        fprintf(stderr, "random_base: %s\n", err.text);
        return err.code;
    }
    model_close(&m);
    return 0;
}
