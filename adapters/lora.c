// See lora.h.
#include "adapters/lora.h"

#include "kernels/random.h"

#include <assert.h>
#include <math.h>
#include <string.h>

int64_t lora_offset(const struct lora *lora, int index, bool b) {
    int64_t at = 0;
    for (int i = 0; i < index; i++)
        at += adapter_a_size(&lora->adapter->modules[i]) + adapter_b_size(&lora->adapter->modules[i]);
    return b ? at + adapter_a_size(&lora->adapter->modules[index]) : at;
}

// Uniform in +-1/sqrt(cols): torch's kaiming_uniform_ with a = sqrt(5).
static void fill_uniform(float *out, int64_t rows, int64_t cols, struct random_key key) {
    float bound = 1.0f / sqrtf((float)cols);
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

void lora_initialise(struct adapter *adapter, enum lora_init kind, uint64_t seed) {
    for (int i = 0; i < adapter->n_modules; i++) {
        struct adapter_module *m = &adapter->modules[i];
        struct random_key key = {.seed = seed, .purpose_module = (uint32_t)RANDOM_INIT << 24 | (uint32_t)m->module->id};
        if (kind == LORA_INIT_GAUSSIAN)
            fill_normal(m->a, m->module->experts * m->r, m->module->in, 1.0 / m->r, key);
        else
            fill_uniform(m->a, m->module->experts * m->r, m->module->in, key);
        key.step = 1; // B's own numbers
        if (kind == LORA_INIT_RANDOM)
            fill_uniform(m->b, m->module->experts * m->module->out, m->r, key);
        else
            memset(m->b, 0, (size_t)adapter_b_size(m) * sizeof *m->b);
    }
}

static struct tensor part(struct tensor flat, int64_t begin, int64_t rows, int64_t cols) {
    return tensor_present(&flat) ? tensor_view(flat, begin, rows, cols) : flat;
}

int lora_attach(struct decoder *decoder, struct adapter *adapter, int number, bool trained, bool accumulate,
                struct lora *out, struct error *err) {
    assert(number < DECODER_MAX_ADAPTERS);
    struct device *device = decoder->device;
    *out = (struct lora){.decoder = decoder, .adapter = adapter, .number = number};
    out->n_params = lora_offset(out, adapter->n_modules, false);
    if (device_tensor(device, PLAN_ADAPTER, DTYPE_F32, 1, out->n_params, &out->params, err)) return -1;
    if (trained) {
        if (device_tensor(device, PLAN_GRADIENT, DTYPE_F32, 1, out->n_params, &out->grads, err)) return -1;
        out->sum = out->grads;
        if (accumulate && device_tensor(device, PLAN_GRADIENT, DTYPE_F32, 1, out->n_params, &out->sum, err)) return -1;
        if (device_tensor(device, PLAN_OPTIMIZER, DTYPE_F32, 1, out->n_params, &out->m, err)) return -1;
        if (device_tensor(device, PLAN_OPTIMIZER, DTYPE_F32, 1, out->n_params, &out->v, err)) return -1;
    }
    int64_t at = 0;
    for (int i = 0; i < adapter->n_modules; i++) {
        const struct adapter_module *m = &adapter->modules[i];
        int64_t in = m->module->in, rows = m->module->experts * m->module->out, ranks = m->module->experts * m->r;
        decoder->slots[m->module->id].adapters[number] = (struct slot_adapter){
            .a = part(out->params, at, ranks, in),
            .b = part(out->params, at + adapter_a_size(m), rows, m->r),
            .da = part(out->grads, at, ranks, in),
            .db = part(out->grads, at + adapter_a_size(m), rows, m->r),
            .scale = adapter_scale(adapter, m),
            .dropout = adapter->dropout,
        };
        at += adapter_a_size(m) + adapter_b_size(m);
    }
    return 0;
}

void lora_detach(struct lora *lora) {
    if (!lora->decoder) return;
    for (int i = 0; i < lora->adapter->n_modules; i++) {
        lora->decoder->slots[lora->adapter->modules[i].module->id].adapters[lora->number] = (struct slot_adapter){0};
    }
    *lora = (struct lora){0};
}

int lora_upload(struct lora *lora, struct error *err) {
    struct device *device = lora->decoder->device;
    for (int i = 0; i < lora->adapter->n_modules; i++) {
        const struct adapter_module *m = &lora->adapter->modules[i];
        struct tensor a = tensor_view(lora->params, lora_offset(lora, i, false), 1, adapter_a_size(m));
        struct tensor b = tensor_view(lora->params, lora_offset(lora, i, true), 1, adapter_b_size(m));
        if (device_write(device, a, m->a, tensor_bytes(&a), err)) return -1;
        if (device_write(device, b, m->b, tensor_bytes(&b), err)) return -1;
    }
    return 0;
}

int lora_download(struct lora *lora, struct error *err) {
    struct device *device = lora->decoder->device;
    for (int i = 0; i < lora->adapter->n_modules; i++) {
        struct adapter_module *m = &lora->adapter->modules[i];
        struct tensor a = tensor_view(lora->params, lora_offset(lora, i, false), 1, adapter_a_size(m));
        struct tensor b = tensor_view(lora->params, lora_offset(lora, i, true), 1, adapter_b_size(m));
        if (device_read(device, m->a, a, tensor_bytes(&a), err)) return -1;
        if (device_read(device, m->b, b, tensor_bytes(&b), err)) return -1;
    }
    return 0;
}
