// See quantize_base.h. Tensors are made one after another by all threads and written to the places that the reference's
// order gives them, so memory holds one linear at a time.
#include "model/quantize_base.h"

#include "kernels/cpu/cpu.h"
#include "kernels/quantize.h"
#include "model/base_files.h"
#include "model/companions.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK = 1 << 18, TURN_ROWS = 64, STATE_BYTES = 256 };

// One matrix to be quantised, and where its pieces go.
struct job {
    const char *stem;   // without ".weight"
    const char *source; // the tensor it is read from
    const uint8_t *data;
    enum number type;
    int64_t rows, cols;
    bool turned;         // stored as (cols, rows)
    size_t first, state; // indexes of its first piece, of its quant_state
};
// The pieces of a 4-bit matrix, and those of LLM.int8.
enum { PIECE_CODES, PIECE_ABSMAX, PIECE_MAP, PIECE_NESTED, PIECE_NESTED_MAP };
enum { PIECE_SCB = 1, PIECE_LAYOUT };

struct writing {
    const struct model *model;
    const struct base_packing *packing;
    struct pool pool;
    struct job *jobs;
    size_t n_jobs;
    const char **sources;            // sorted: the tensors that jobs replace
    struct safetensors_out *entries; // those of known size, then the states of 4-bit matrices
    uint64_t *offsets;
    size_t n_entries, n_sorted, capacity, room;
    struct file_writer file;
    struct threads *threads;
    quantize_report report;
    void *context;
    int64_t done, total;
    struct error *err;
};

void base_packing_name(const struct base_packing *p, char *out) {
    if (p->format == QUANT_INT8)
        snprintf(out, 40, "int8%s", p->experts ? "-experts" : "");
    else
        snprintf(out, 40, "%s-%d%s%s", p->format == QUANT_FP4 ? "fp4" : "nf4", (int)p->blocksize,
                 p->nested ? "-nested" : "", p->experts ? "-experts" : "");
}

bool base_packing_parse(const char *name, struct base_packing *out) {
    static const enum quant formats[] = {QUANT_NF4, QUANT_FP4, QUANT_INT8};
    char text[40];
    for (size_t i = 0; i < COUNT_OF(formats); i++) {
        for (int64_t block = 32; block <= 4096; block *= 2) {
            for (int variant = 0; variant < 4; variant++) {
                *out = (struct base_packing){.format = formats[i],
                                             .blocksize = formats[i] == QUANT_INT8 ? 0 : block,
                                             .nested = variant & 1,
                                             .experts = variant & 2};
                base_packing_name(out, text);
                if (strcmp(text, name) == 0) return true;
            }
        }
    }
    *out = (struct base_packing){0};
    return false;
}

static bool number_type(const struct quant_format *format, enum number *out) {
    if (format->id != QUANT_F32 && format->id != QUANT_F16 && format->id != QUANT_BF16) return false;
    *out = format->id == QUANT_F32 ? NUMBER_F32 : format->id == QUANT_F16 ? NUMBER_F16 : NUMBER_BF16;
    return true;
}

// --- what becomes of each tensor

static struct safetensors_out *entry(struct writing *w, const char *name, enum safetensors_dtype dtype, int64_t rows,
                                     int64_t cols) {
    if (w->n_entries == w->capacity) {
        size_t capacity = 2 * w->capacity + 64;
        struct safetensors_out *grown = mem_resize(w->entries, capacity * sizeof *grown);
        if (!grown) {
            error_memory(w->err, "the tensor table", capacity * sizeof *grown);
            return NULL;
        }
        w->entries = grown, w->capacity = capacity;
    }
    struct safetensors_out *e = &w->entries[w->n_entries++];
    *e = (struct safetensors_out){.name = name, .dtype = dtype, .n_dims = cols < 0 ? 1 : 2, .shape = {rows, cols}};
    if (!name) error_memory(w->err, "a tensor's name", 0);
    return name ? e : NULL;
}

static const char *state_ending(const struct writing *w) {
    return w->packing->format == QUANT_FP4 ? ".weight.quant_state.bitsandbytes__fp4"
                                           : ".weight.quant_state.bitsandbytes__nf4";
}

static int64_t blocks_of(const struct writing *w, const struct job *j) {
    return (j->rows * j->cols + w->packing->blocksize - 1) / w->packing->blocksize;
}

static size_t state_text(const struct writing *w, const struct job *j, float offset, char *out) {
    static const char *const names[] = {"float32", "float16", "bfloat16"};
    struct text text = {0};
    struct json_writer json = {.out = &text, .style = JSON_SPACED};
    json_begin_object(&json);
    json_put_key(&json, "quant_type"), json_put_string(&json, w->packing->format == QUANT_FP4 ? "fp4" : "nf4");
    json_put_key(&json, "blocksize"), json_put_int(&json, w->packing->blocksize);
    json_put_key(&json, "dtype"), json_put_string(&json, names[j->type]);
    json_put_key(&json, "shape"), json_begin_array(&json);
    json_put_int(&json, j->rows), json_put_int(&json, j->cols), json_end_array(&json);
    if (w->packing->nested) {
        json_put_key(&json, "nested_blocksize"), json_put_int(&json, NF4_SCALE_BLOCK);
        json_put_key(&json, "nested_dtype"), json_put_string(&json, "float32");
        json_put_key(&json, "nested_offset"), json_put_double(&json, (double)offset);
    }
    json_end_object(&json);
    size_t length = text_failed(&text) || text.length > STATE_BYTES ? 0 : text.length;
    if (length) memcpy(out, text.data, length);
    text_free(&text);
    return length;
}

static int add_pieces(struct writing *w, struct job *j) {
    struct pool *p = &w->pool;
    j->first = w->n_entries;
    if (w->packing->format == QUANT_INT8) {
        struct safetensors_out *layout = NULL;
        if (!entry(w, pool_printf(p, "%s.weight", j->stem), ST_I8, j->rows, j->cols) ||
            !entry(w, pool_printf(p, "%s.SCB", j->stem), ST_F32, j->rows, -1) ||
            !(layout = entry(w, pool_printf(p, "%s.weight_format", j->stem), ST_U8, 1, -1))) {
            return -1;
        }
        layout->n_dims = 0;
        return 0;
    }
    int64_t blocks = blocks_of(w, j);
    if (!entry(w, pool_printf(p, "%s.weight", j->stem), ST_U8, (j->rows * j->cols + 1) / 2, 1) ||
        !entry(w, pool_printf(p, "%s.weight.absmax", j->stem), w->packing->nested ? ST_U8 : ST_F32, blocks, -1) ||
        !entry(w, pool_printf(p, "%s.weight.quant_map", j->stem), ST_F32, 16, -1)) {
        return -1;
    }
    if (!w->packing->nested) return 0;
    if (!entry(w, pool_printf(p, "%s.weight.nested_absmax", j->stem), ST_F32,
               (blocks + NF4_SCALE_BLOCK - 1) / NF4_SCALE_BLOCK, -1) ||
        !entry(w, pool_printf(p, "%s.weight.nested_quant_map", j->stem), ST_F32, 256, -1)) {
        return -1;
    }
    return 0;
}

static int by_stem(const void *a, const void *b) {
    return strcmp(((const struct job *)a)->stem, ((const struct job *)b)->stem);
}
static int by_text(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

// The tensor of a linear, from its first byte: its parts are views of it.
static int add_job(struct writing *w, const struct module *module, int expert, bool stacked) {
    const struct weight *first = &module->parts[0].w[expert];
    struct job j = {.source = first->name, .data = first->data, .rows = module->out, .cols = module->in};
    if (!number_type(first->format, &j.type))
        return error_set(w->err, STATUS_DATA, "%s: tensor '%s' is quantised already (%s)", w->model->path, first->name,
                         first->format->name);
    bool ended = text_ends_with(first->name, ".weight");
    int length = (int)(strlen(first->name) - (ended ? strlen(".weight") : 0));
    if (!ended && !stacked) return 0;
    j.turned = first->transposed;
    j.stem = stacked ? pool_printf(&w->pool, "%.*s.%d", length, first->name, expert)
                     : pool_strndup(&w->pool, first->name, (size_t)length);
    if (!j.stem) return error_memory(w->err, "a tensor's name", strlen(first->name));
    w->jobs[w->n_jobs++] = j;
    return 0;
}

// Which matrices: linears of layers, each once, but no router; experts that are slices of one tensor only where asked.
static int find_jobs(struct writing *w) {
    const struct model *m = w->model;
    size_t most = 0;
    for (int i = 0; i < m->n_modules; i++) most += (size_t)m->modules[i].experts;
    w->jobs = pool_array(&w->pool, most, sizeof *w->jobs);
    if (!w->jobs) return error_memory(w->err, "the tensor table", most * sizeof *w->jobs);
    for (int i = 0; i < m->n_modules; i++) {
        const struct module *module = &m->modules[i];
        if (module->layer < 0 || module->router) continue;
        unsigned flags = m->family->linears[module->kind].flags;
        bool stacked = flags & TENSOR_STACKED;
        if (stacked ? !w->packing->experts
                    : module->form == MODULE_PARAMETER || (flags & (TENSOR_TURNED | TENSOR_BARE)))
            continue;
        for (int e = 0; e < module->experts; e++) {
            if (add_job(w, module, e, stacked)) return -1;
        }
    }
    if (w->n_jobs == 0) return error_set(w->err, STATUS_USAGE, "%s: has no linear that could be quantised", m->path);
    qsort(w->jobs, w->n_jobs, sizeof *w->jobs, by_stem);
    w->sources = pool_array(&w->pool, w->n_jobs, sizeof *w->sources);
    if (!w->sources) return error_memory(w->err, "the tensor table", w->n_jobs * sizeof *w->sources);
    for (size_t i = 0; i < w->n_jobs; i++) w->sources[i] = w->jobs[i].source;
    qsort(w->sources, w->n_jobs, sizeof *w->sources, by_text);
    return 0;
}

static bool is_source(const struct writing *w, const char *name) {
    return bsearch(&name, w->sources, w->n_jobs, sizeof *w->sources, by_text) != NULL;
}

static int add_rest(struct writing *w) {
    const struct base *b = w->model->base;
    for (int s = 0; s < b->n_shards; s++) {
        for (size_t i = 0; i < b->shards[s].n_entries; i++) {
            const struct safetensors_entry *e = &b->shards[s].entries[i];
            if (is_source(w, e->name)) continue;
            struct safetensors_out *out = entry(w, e->name, e->dtype, 1, 1);
            if (!out) return -1;
            out->n_dims = e->n_dims, out->data = e->data;
            memcpy(out->shape, e->shape, sizeof out->shape);
        }
    }
    return 0;
}

// --- quantising one matrix

struct matrix {
    struct writing *w;
    const struct job *job;
    const uint8_t *values; // (rows, cols)
    uint8_t *straight;     // of a matrix that is stored turned: owned
    uint8_t *codes;
    float *absmax;
    uint8_t *nested_codes;
    float *nested;
    float offset;
    int64_t step;           // elements (rows for int8) of a task
    struct error errors[2]; // [0]: of the task that comes first in the matrix
    int64_t failed;         // that task, -1 = none
};

static size_t element(enum number type) {
    return type == NUMBER_F32 ? 4 : 2;
}

static void keep_error(struct matrix *m, int64_t task, const struct error *err) {
    int64_t now = __atomic_load_n(&m->failed, __ATOMIC_ACQUIRE);
    while (now < 0 || task < now) {
        if (!__atomic_compare_exchange_n(&m->failed, &now, task, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) continue;
        m->errors[0] = *err;
        return;
    }
}

static void four_bits(void *context, int64_t i, int thread) {
    struct matrix *m = context;
    const struct job *j = m->job;
    int64_t at = i * m->step, count = j->rows * j->cols - at < m->step ? j->rows * j->cols - at : m->step;
    struct error err = {0};
    (void)thread;
    if (nf4_quantize(m->codes + at / 2, m->absmax + at / m->w->packing->blocksize,
                     m->values + (size_t)at * element(j->type), j->type, count, m->w->packing->blocksize,
                     m->w->packing->format == QUANT_FP4, &err)) {
        keep_error(m, i, &err);
    }
}

static void eight_bits(void *context, int64_t i, int thread) {
    struct matrix *m = context;
    const struct job *j = m->job;
    int64_t at = i * m->step, rows = j->rows - at < m->step ? j->rows - at : m->step;
    struct error err = {0};
    (void)thread;
    if (int8_quantize((int8_t *)m->codes + at * j->cols, m->absmax + at,
                      m->values + (size_t)(at * j->cols) * element(j->type), j->type, rows, j->cols, &err)) {
        keep_error(m, i, &err);
    }
}

// Rows [64 i, 64 i + 64) of a matrix that is stored as (cols, rows).
static void turn(void *context, int64_t i, int thread) {
    struct matrix *m = context;
    const struct job *j = m->job;
    size_t size = element(j->type);
    int64_t end = i * m->step + m->step < j->rows ? i * m->step + m->step : j->rows;
    (void)thread;
    for (int64_t c = 0; c < j->cols; c++) {
        for (int64_t r = i * m->step; r < end; r++) {
            memcpy(m->straight + (size_t)(r * j->cols + c) * size, j->data + (size_t)(c * j->rows + r) * size, size);
        }
    }
}

static int run(struct matrix *m, int64_t count, void (*task)(void *, int64_t, int)) {
    m->failed = -1;
    threads_run(m->w->threads, (count + m->step - 1) / m->step, task, m);
    if (m->failed < 0) return 0;
    *m->w->err = m->errors[0];
    return error_prefix(m->w->err, "%s: tensor '%s.weight'", m->w->model->path, m->job->stem);
}

static int put(struct writing *w, size_t piece, const void *bytes) {
    return file_write_at(&w->file, w->offsets[piece], bytes, (size_t)safetensors_bytes(&w->entries[piece]), w->err);
}

static int quantise(struct matrix *m) {
    const struct job *j = m->job;
    int64_t n = j->rows * j->cols;
    m->step = TURN_ROWS;
    if (j->turned && run(m, j->rows, turn)) return -1;
    if (m->w->packing->format == QUANT_INT8) {
        m->step = CHUNK / j->cols + 1;
        return run(m, j->rows, eight_bits);
    }
    m->step = CHUNK;
    if (run(m, n, four_bits)) return -1;
    if (!m->w->packing->nested) return 0;
    m->offset = nf4_scales_offset(m->absmax, blocks_of(m->w, j));
    nf4_quantize_scales(m->nested_codes, m->nested, m->absmax, blocks_of(m->w, j), m->offset);
    return 0;
}

// Room for one matrix: codes, scales, quantised scales, their scales.
static int matrix_open(struct writing *w, const struct job *j, struct matrix *m) {
    bool four = w->packing->format != QUANT_INT8, nested = four && w->packing->nested;
    int64_t n = j->rows * j->cols, blocks = four ? blocks_of(w, j) : j->rows;
    *m = (struct matrix){.w = w, .job = j};
    m->straight = j->turned ? mem_alloc((size_t)n * element(j->type)) : NULL;
    m->values = j->turned ? m->straight : j->data;
    m->codes = mem_alloc((size_t)(four ? (n + 1) / 2 : n));
    m->absmax = mem_alloc((size_t)blocks * sizeof *m->absmax);
    m->nested_codes = nested ? mem_alloc((size_t)blocks) : NULL;
    m->nested = nested ? mem_alloc(((size_t)blocks / NF4_SCALE_BLOCK + 1) * sizeof *m->nested) : NULL;
    if (m->values && m->codes && m->absmax && (!nested || (m->nested_codes && m->nested))) return 0;
    return error_memory(w->err, "a linear", (size_t)n);
}

static void matrix_close(struct matrix *m) {
    mem_free(m->straight), mem_free(m->codes), mem_free(m->absmax), mem_free(m->nested_codes), mem_free(m->nested);
}

// How long a quant_state is shows only when the scales are known: these come last in the file.
static int put_state(struct matrix *m) {
    struct writing *w = m->w;
    char state[STATE_BYTES];
    size_t length = state_text(w, m->job, m->offset, state), at = m->job->state;
    if (length == 0) return error_memory(w->err, "a quant_state", STATE_BYTES);
    w->entries[at].shape[0] = (int64_t)length;
    if (at + 1 < w->n_entries) w->offsets[at + 1] = w->offsets[at] + length;
    return put(w, at, state);
}

static int write_matrix(struct matrix *m) {
    struct writing *w = m->w;
    size_t at = m->job->first;
    float map[16], scales[256];
    uint8_t layout = 0;
    if (put(w, at + PIECE_CODES, m->codes)) return -1;
    if (w->packing->format == QUANT_INT8)
        return put(w, at + PIECE_SCB, m->absmax) || put(w, at + PIECE_LAYOUT, &layout) ? -1 : 0;
    nf4_code_map(map, w->packing->format == QUANT_FP4);
    if (put(w, at + PIECE_MAP, map) || put_state(m)) return -1;
    if (!w->packing->nested) return put(w, at + PIECE_ABSMAX, m->absmax);
    nf4_scale_map(scales);
    return put(w, at + PIECE_ABSMAX, m->nested_codes) || put(w, at + PIECE_NESTED, m->nested) ||
                   put(w, at + PIECE_NESTED_MAP, scales)
               ? -1
               : 0;
}

// --- files

static int write_tensors(struct writing *w) {
    for (size_t i = 0; i < w->n_jobs; i++) {
        struct matrix m;
        int status = matrix_open(w, &w->jobs[i], &m) || quantise(&m) || write_matrix(&m);
        matrix_close(&m);
        if (status) return -1;
        w->done += m.job->rows * m.job->cols * (int64_t)element(m.job->type);
        if (w->report && w->report(w->context, w->done, w->total, w->err)) return -1;
    }
    for (size_t i = 0; i < w->n_entries; i++) {
        if (w->entries[i].data && put(w, i, w->entries[i].data)) return -1;
    }
    return safetensors_write_header(&w->file, w->entries, w->n_entries, w->offsets, w->room, w->err);
}

static int write_model(struct writing *w, const char *folder) {
    if (find_jobs(w)) return -1;
    for (size_t i = 0; i < w->n_jobs; i++) {
        if (add_pieces(w, &w->jobs[i])) return -1;
        w->total += w->jobs[i].rows * w->jobs[i].cols * (int64_t)element(w->jobs[i].type);
    }
    if (add_rest(w)) return -1;
    w->n_sorted = w->n_entries;
    for (size_t i = 0; i < w->n_jobs && w->packing->format != QUANT_INT8; i++) {
        w->jobs[i].state = w->n_entries;
        const char *name = pool_printf(&w->pool, "%s%s", w->jobs[i].stem, state_ending(w));
        if (!entry(w, name, ST_U8, 0, -1)) return -1;
    }
    w->offsets = pool_array(&w->pool, w->n_entries, sizeof *w->offsets);
    if (!w->offsets) return error_memory(w->err, "the tensor table", w->n_entries * sizeof *w->offsets);
    if (safetensors_place(w->entries, w->n_entries, w->n_sorted, w->offsets, &w->room, w->err)) return -1;
    char *path = path_join(folder, "model.safetensors");
    if (!path) return error_memory(w->err, "a file name", strlen(folder));
    int status = file_create(path, &w->file, w->err);
    if (status == 0 && (write_tensors(w) || file_close(&w->file, w->err))) {
        file_abandon(&w->file);
        status = -1;
    }
    mem_free(path);
    return status;
}

static void put_config(struct writing *w, struct json_writer *json) {
    bool four = w->packing->format != QUANT_INT8;
    json_put_key(json, "quantization_config"), json_begin_object(json);
    json_put_key(json, "quant_method"), json_put_string(json, "bitsandbytes");
    json_put_key(json, "_load_in_4bit"), json_put_bool(json, four);
    json_put_key(json, "_load_in_8bit"), json_put_bool(json, !four);
    json_put_key(json, "load_in_4bit"), json_put_bool(json, four);
    json_put_key(json, "load_in_8bit"), json_put_bool(json, !four);
    json_put_key(json, "bnb_4bit_quant_type");
    json_put_string(json, w->packing->format == QUANT_FP4 ? "fp4" : "nf4");
    json_put_key(json, "bnb_4bit_use_double_quant"), json_put_bool(json, four && w->packing->nested);
    json_put_key(json, "bnb_4bit_compute_dtype"), json_put_string(json, "bfloat16");
    json_put_key(json, "bnb_4bit_quant_storage"), json_put_string(json, "uint8");
    json_put_key(json, "llm_int8_enable_fp32_cpu_offload"), json_put_bool(json, false);
    json_put_key(json, "llm_int8_has_fp16_weight"), json_put_bool(json, false);
    json_put_key(json, "llm_int8_threshold"), json_put_double(json, 6.0);
    json_put_key(json, "llm_int8_skip_modules"), json_begin_array(json);
    json_put_string(json, "lm_head");
    if (w->model->arch.moe.shared_gate) json_put_string(json, "shared_expert_gate");
    json_end_array(json), json_end_object(json);
}

static int write_config(struct writing *w, const char *folder) {
    struct text text = {0};
    struct json_writer json = {.out = &text, .style = JSON_PRETTY};
    json_begin_object(&json);
    for (const struct json *at = json_child(w->model->base->config.root); at; at = json_next(at)) {
        size_t length;
        const char *key = json_key(at, &length);
        json_put_key_bytes(&json, key, length);
        json_put_value(&json, at);
    }
    put_config(w, &json);
    json_end_object(&json);
    text_char(&text, '\n');
    char *path = path_join(folder, "config.json");
    int status = !path || text_failed(&text) ? error_memory(w->err, "config.json", text.length)
                                             : file_replace(path, text.data, text.length, w->err);
    mem_free(path);
    text_free(&text);
    return status;
}

int quantize_base(const struct model *model, const struct base_packing *packing, const char *folder, int threads,
                  quantize_report report, void *context, struct error *err) {
    struct writing w = {.model = model, .packing = packing, .report = report, .context = context, .err = err};
    if (model->base->kind != BASE_SAFETENSORS)
        return error_set(err, STATUS_DATA, "%s: only a base in safetensors can be quantised to bitsandbytes' formats",
                         model->path);
    w.threads = threads_open(threads, err);
    int status = !w.threads || companions_copy(model->base, folder, false, err) || write_model(&w, folder) ||
                         write_config(&w, folder)
                     ? -1
                     : 0;
    if (status == 0) status = file_sync_folder(folder, err);
    if (w.threads) threads_close(w.threads);
    mem_free(w.entries);
    pool_free(&w.pool);
    return status;
}
