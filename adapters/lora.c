// See lora.h.
#include "adapters/lora.h"

#include "kernels/random.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

int64_t lora_offset(const struct lora *lora, int index, enum adapter_part part) {
    int64_t at = 0;
    for (int i = 0; i <= index; i++) {
        for (int p = 0; p < (i < index ? ADAPTER_PARTS : (int)part); p++)
            at += adapter_part_size(&lora->adapter->modules[i], p);
    }
    return at;
}

struct tensor lora_part(const struct lora *lora, struct tensor flat, int index, enum adapter_part part) {
    int64_t size = adapter_part_size(&lora->adapter->modules[index], part);
    if (!tensor_present(&flat) || size == 0) return (struct tensor){0};
    return tensor_view(flat, lora_offset(lora, index, part), 1, size);
}

// Uniform in +-1/sqrt(inputs): torch's kaiming_uniform_ with a = sqrt(5) of a linear with so many inputs.
static void fill_uniform(float *out, int64_t rows, int64_t cols, int64_t inputs, struct random_key key) {
    float bound = 1.0f / sqrtf((float)inputs);
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t k = 0; k < cols; k++) {
            uint32_t bits[4];
            random_four(key, (uint32_t)r, 0, (uint32_t)(k / 4), bits);
            out[r * cols + k] = bound * (2.0f * random_uniform(bits[k % 4]) - 1.0f);
        }
    }
}

// Normal with the given deviation (Box-Muller, one pair of numbers for two elements).
static void fill_normal(float *out, int64_t rows, int64_t cols, double deviation, struct random_key key) {
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t k = 0; k < cols; k++) {
            uint32_t bits[4];
            random_four(key, (uint32_t)r, 0, (uint32_t)(k / 2), bits);
            double u = (bits[0] + 1.0) * 0x1p-32, w = 6.283185307179586 * bits[1] * 0x1p-32;
            out[r * cols + k] = (float)(deviation * sqrt(-2.0 * log(u)) * (k % 2 ? sin(w) : cos(w)));
        }
    }
}

// PEFT's "A" starts random and its "B" zero. Where PEFT took a parameter's inputs for its outputs, its A is our b.
static void initialise_module(struct adapter_module *m, enum lora_init kind, struct random_key key) {
    const struct module *module = m->module;
    bool swapped = module->hf_swapped;
    enum adapter_part first = swapped ? ADAPTER_B : ADAPTER_A, second = swapped ? ADAPTER_A : ADAPTER_B;
    struct adapter_shape s = adapter_part_shape(m, first), t = adapter_part_shape(m, second);
    int64_t in = swapped ? module->out : module->in; // of PEFT's A
    if (m->r == 0) return;
    if (module->form == MODULE_EMBEDDING) { // lora_embedding_B, our A, is normal; lora_embedding_A zero, or normal, too
        s = adapter_part_shape(m, ADAPTER_A), t = adapter_part_shape(m, ADAPTER_B);
        fill_normal(m->a, s.rows, s.cols, 1, key);
        key.step = 1;
        memset(m->b, 0, (size_t)(t.rows * t.cols) * sizeof(float));
        if (kind == LORA_INIT_RANDOM) fill_normal(m->b, t.rows, t.cols, 1, key);
        return;
    }
    // PEFT's B of a parameter is one matrix for all experts, R columns of each.
    int64_t ranks = module->form == MODULE_PARAMETER ? (int64_t)module->experts * m->r : m->r;
    if (kind == LORA_INIT_GAUSSIAN)
        fill_normal(m->part[first], s.rows, s.cols, 1.0 / m->r, key);
    else
        fill_uniform(m->part[first], s.rows, s.cols, in, key);
    key.step = 1; // B's own numbers
    if (kind == LORA_INIT_RANDOM)
        fill_uniform(m->part[second], t.rows, t.cols, ranks, key);
    else
        memset(m->part[second], 0, (size_t)(t.rows * t.cols) * sizeof(float));
}

void lora_initialise(struct adapter *adapter, enum lora_init kind, uint64_t seed) {
    for (int i = 0; i < adapter->n_modules; i++) {
        struct adapter_module *m = &adapter->modules[i];
        struct random_key key = {.seed = seed, .purpose_module = (uint32_t)RANDOM_INIT << 24 | (uint32_t)m->module->id};
        initialise_module(m, kind, key);
    }
}

// The same as a matrix of the part's shape.
static struct tensor matrix(const struct lora *lora, struct tensor flat, int index, enum adapter_part part) {
    struct adapter_shape s = adapter_part_shape(&lora->adapter->modules[index], part);
    struct tensor row = lora_part(lora, flat, index, part);
    return tensor_present(&row) ? tensor_view(row, 0, s.rows, s.cols) : row;
}

// PiSSA: a0 (`b` false) or b0 of module `index`, as a matrix; DTYPE_NONE where it has none.
static struct tensor initial(const struct lora *lora, int index, bool b) {
    int64_t at = 0;
    if (!tensor_present(&lora->initial) || !lora->adapter->modules[index].a0) return (struct tensor){0};
    for (int i = 0; i <= index; i++) {
        const struct adapter_module *m = &lora->adapter->modules[i];
        if (!m->a0) continue;
        struct adapter_shape s = adapter_part_shape(m, ADAPTER_A), t = adapter_part_shape(m, ADAPTER_B);
        if (i == index && !b) return tensor_view(lora->initial, at, s.rows, s.cols);
        at += s.rows * s.cols;
        if (i == index) return tensor_view(lora->initial, at, t.rows, t.cols);
        at += t.rows * t.cols;
    }
    return (struct tensor){0};
}

static int64_t initial_size(const struct adapter *adapter) {
    int64_t size = 0;
    for (int i = 0; i < adapter->n_modules; i++) {
        const struct adapter_module *m = &adapter->modules[i];
        if (m->a0) size += adapter_part_size(m, ADAPTER_A) + adapter_part_size(m, ADAPTER_B);
    }
    return size;
}

// Where the norms of module `index` stand among all of them; n_modules: how many there are.
static int64_t norms_begin(const struct adapter *adapter, int index) {
    int64_t at = 0;
    for (int i = 0; i < index; i++) at += adapter_part_size(&adapter->modules[i], ADAPTER_MAGNITUDE);
    return at;
}

static int norms_of_part(struct lora *lora, int index, const struct module_part *part, bool squares,
                         struct error *err) {
    const struct adapter_module *m = &lora->adapter->modules[index];
    int64_t begin = norms_begin(lora->adapter, index) + part->first_row;
    struct tensor b = matrix(lora, lora->params, index, ADAPTER_B);
    struct tensor base = tensor_view(lora->squares, begin, 1, part->rows),
                  norms = tensor_view(lora->norms, begin, 1, part->rows);
    struct op_call call = {.op = OP_ROW_NORMS,
                           .in = {squares ? (struct tensor){0} : base},
                           .out = {squares ? base : norms},
                           .p.row_norms = {.w = part->w,
                                           .a = matrix(lora, lora->params, index, ADAPTER_A),
                                           .b = tensor_rows(b, part->first_row, part->first_row + part->rows),
                                           .scale = adapter_scale(lora->adapter, m)}};
    return device_forward(lora->decoder->device, &call, err);
}

// One pass over the weights of all modules with a magnitude.
static int all_norms(struct lora *lora, bool squares, struct error *err) {
    struct device *device = lora->decoder->device;
    if (!tensor_present(&lora->norms)) return 0;
    char name[32];
    snprintf(name, sizeof name, "%s %d", squares ? "squares" : "norms", lora->number);
    if (plan_begin(device->plan, name, err)) return -1;
    for (int i = 0; i < lora->adapter->n_modules; i++) {
        const struct adapter_module *m = &lora->adapter->modules[i];
        int segment = m->module->parts[0].w->segment;
        if (!m->magnitude) continue;
        if (device->backend->class->weights_acquire(device->backend, segment, false, err)) return -1;
        for (int p = 0; p < m->module->n_parts; p++)
            if (norms_of_part(lora, i, &m->module->parts[p], squares, err)) return -1;
        if (device->backend->class->weights_release(device->backend, segment, err)) return -1;
    }
    return plan_end(device->plan, err);
}

int lora_refresh(struct lora *lora, struct error *err) {
    return all_norms(lora, false, err);
}

int lora_start_magnitudes(struct lora *lora, struct error *err) {
    for (int i = 0; i < lora->adapter->n_modules; i++) {
        const struct adapter_module *m = &lora->adapter->modules[i];
        if (!m->magnitude) continue;
        struct tensor t = lora_part(lora, lora->params, i, ADAPTER_MAGNITUDE);
        struct tensor norms = tensor_view(lora->norms, norms_begin(lora->adapter, i), 1, m->module->out);
        if (device_read(lora->decoder->device, m->magnitude, norms, tensor_bytes(&norms), err)) return -1;
        if (device_write(lora->decoder->device, t, m->magnitude, tensor_bytes(&t), err)) return -1;
    }
    return 0;
}

int lora_attach(struct decoder *decoder, struct adapter *adapter, int number, bool trained, bool accumulate,
                struct lora *out, struct error *err) {
    assert(number < DECODER_MAX_ADAPTERS);
    struct device *device = decoder->device;
    *out = (struct lora){.decoder = decoder, .adapter = adapter, .number = number};
    out->n_params = lora_offset(out, adapter->n_modules, ADAPTER_A);
    if (device_tensor(device, PLAN_ADAPTER, DTYPE_F32, 1, out->n_params, &out->params, err)) return -1;
    if (trained) {
        if (device_tensor(device, PLAN_GRADIENT, DTYPE_F32, 1, out->n_params, &out->grads, err)) return -1;
        out->sum = out->grads;
        if (accumulate && device_tensor(device, PLAN_GRADIENT, DTYPE_F32, 1, out->n_params, &out->sum, err)) return -1;
        if (device_tensor(device, PLAN_OPTIMIZER, DTYPE_F32, 1, out->n_params, &out->m, err)) return -1;
        if (device_tensor(device, PLAN_OPTIMIZER, DTYPE_F32, 1, out->n_params, &out->v, err)) return -1;
    }
    int64_t norms = norms_begin(adapter, adapter->n_modules), ids = 0, frozen = initial_size(adapter);
    if (frozen && device_tensor(device, PLAN_ADAPTER, DTYPE_F32, 1, frozen, &out->initial, err)) return -1;
    if (norms && device_tensor(device, PLAN_ADAPTER, DTYPE_F32, 1, norms, &out->norms, err)) return -1;
    if (norms && device_tensor(device, PLAN_ADAPTER, DTYPE_F32, 1, norms, &out->squares, err)) return -1;
    for (int i = 0; i < adapter->n_modules; i++) ids += adapter->modules[i].n_rows;
    if (ids && device_tensor(device, PLAN_ADAPTER, DTYPE_I32, ids, 1, &out->row_ids, err)) return -1;
    ids = 0;
    for (int i = 0; i < adapter->n_modules; i++) {
        const struct adapter_module *m = &adapter->modules[i];
        decoder->slots[m->module->id].adapters[number] = (struct slot_adapter){
            .a = matrix(out, out->params, i, ADAPTER_A),
            .b = matrix(out, out->params, i, ADAPTER_B),
            .da = matrix(out, out->grads, i, ADAPTER_A),
            .db = matrix(out, out->grads, i, ADAPTER_B),
            .a0 = initial(out, i, false),
            .b0 = initial(out, i, true),
            .magnitude = matrix(out, out->params, i, ADAPTER_MAGNITUDE),
            .dmagnitude = matrix(out, out->grads, i, ADAPTER_MAGNITUDE),
            .norms =
                m->magnitude ? tensor_view(out->norms, norms_begin(adapter, i), 1, m->module->out) : (struct tensor){0},
            .bias = matrix(out, out->params, i, ADAPTER_BIAS),
            .dbias = matrix(out, out->grads, i, ADAPTER_BIAS),
            .full = matrix(out, out->params, i, ADAPTER_FULL),
            .dfull = matrix(out, out->grads, i, ADAPTER_FULL),
            .rows = matrix(out, out->params, i, ADAPTER_ROWS),
            .drows = matrix(out, out->grads, i, ADAPTER_ROWS),
            .row_ids = m->n_rows ? tensor_rows(out->row_ids, ids, ids + m->n_rows) : (struct tensor){0},
            .scale = m->r ? adapter_scale(adapter, m) : 0,
            .dropout = adapter->dropout,
        };
        ids += m->n_rows;
    }
    if (!device_recording(device)) return 0;
    return all_norms(out, true, err) || all_norms(out, false, err) ? -1 : 0;
}

void lora_detach(struct lora *lora) {
    if (!lora->decoder) return;
    for (int i = 0; i < lora->adapter->n_modules; i++) {
        lora->decoder->slots[lora->adapter->modules[i].module->id].adapters[lora->number] = (struct slot_adapter){0};
    }
    *lora = (struct lora){0};
}

int lora_upload(struct lora *lora, struct error *err) {
    int64_t at = 0;
    for (int i = 0; i < lora->adapter->n_modules; i++) {
        const struct adapter_module *m = &lora->adapter->modules[i];
        struct tensor ids = tensor_rows(lora->row_ids, at, at + m->n_rows);
        if (m->n_rows && device_write(lora->decoder->device, ids, m->row_ids, tensor_bytes(&ids), err)) return -1;
        at += m->n_rows;
    }
    for (int i = 0; i < lora->adapter->n_modules * ADAPTER_PARTS; i++) {
        struct tensor t = lora_part(lora, lora->params, i / ADAPTER_PARTS, i % ADAPTER_PARTS);
        const float *host = lora->adapter->modules[i / ADAPTER_PARTS].part[i % ADAPTER_PARTS];
        if (host && device_write(lora->decoder->device, t, host, tensor_bytes(&t), err)) return -1;
    }
    for (int i = 0; i < lora->adapter->n_modules; i++) {
        const struct adapter_module *m = &lora->adapter->modules[i];
        struct tensor a = initial(lora, i, false), b = initial(lora, i, true);
        if (m->a0 && (device_write(lora->decoder->device, a, m->a0, tensor_bytes(&a), err) ||
                      device_write(lora->decoder->device, b, m->b0, tensor_bytes(&b), err))) {
            return -1;
        }
    }
    return all_norms(lora, true, err) || all_norms(lora, false, err) ? -1 : 0;
}

int lora_read(const struct lora *lora, struct tensor flat, struct adapter *out, struct error *err) {
    for (int i = 0; i < lora->adapter->n_modules * ADAPTER_PARTS; i++) {
        struct tensor t = lora_part(lora, flat, i / ADAPTER_PARTS, i % ADAPTER_PARTS);
        float *host = out->modules[i / ADAPTER_PARTS].part[i % ADAPTER_PARTS];
        if (host && device_read(lora->decoder->device, host, t, tensor_bytes(&t), err)) return -1;
    }
    return 0;
}

int lora_download(struct lora *lora, struct error *err) {
    return lora_read(lora, lora->params, lora->adapter, err);
}
