// See base_storage.h. Sources: bitsandbytes functional.py (quantize_4bit: block 64, nested block 256 and one offset;
// int8_vectorwise_quant), llama.cpp's llama-quant.cpp (types that rows fall back to), formats.md 2.3 and 3.
#include "model/base_storage.h"

#include "model/base_files.h"
#include "model/checkpoint_packing.h"
#include "model/family.h"

#include <assert.h>
#include <string.h>

enum { NF4_BLOCK = 64, NF4_OUTER_BLOCK = 256 };

const char *base_storage_name(enum base_storage storage) {
    static const char *const names[] = {"bf16", "load_in_8bit", "load_in_4bit", "load_in_4bit, double quantised",
                                        "Q8_0", "Q4_K",         "packed"};
    static_assert(COUNT_OF(names) == STORAGE_COUNT, "a name per storage");
    return names[storage];
}

static uint64_t divide_up(uint64_t a, uint64_t b) {
    return (a + b - 1) / b;
}

// One (rows, cols) matrix that is quantised.
static uint64_t matrix_bytes(enum base_storage storage, uint64_t rows, uint64_t cols) {
    uint64_t n = rows * cols, blocks = divide_up(n, NF4_BLOCK);
    switch (storage) {
    case STORAGE_BF16: return 2 * n;
    case STORAGE_INT8: return n + 4 * rows;
    case STORAGE_NF4: return divide_up(n, 2) + 4 * blocks;
    case STORAGE_NF4_DOUBLE: return divide_up(n, 2) + blocks + 4 * divide_up(blocks, NF4_OUTER_BLOCK) + 4;
    case STORAGE_Q8_0: return cols % 32 == 0 ? n / 32 * 34 : 2 * n;
    case STORAGE_Q4_K: return cols % 256 == 0 ? n / 256 * 144 : cols % 32 == 0 ? n / 32 * 22 : 2 * n; // Q5_0, F16
    case STORAGE_PACKED:
    case STORAGE_COUNT: break;
    }
    return 0;
}

// The linears that such a checkpoint packs: experts where they are linears on disk; MXFP4 packs only those that share a
// parameter. Which names are kept is said in the configuration; the head is, unless it says otherwise.
static bool is_packed(const struct packing *packing, const struct module *m) {
    if (m->layer < 0) return m->form == MODULE_HEAD && packing->head;
    bool fits = strcmp(packing->method, "mxfp4") == 0 ? m->form == MODULE_PARAMETER : m->form != MODULE_PARAMETER;
    return fits && !m->router && !packing_keeps(packing, m->hf_name);
}

static uint64_t stored_bytes(const struct packing *packing, const struct module *m) {
    uint64_t rows = (uint64_t)m->out, cols = (uint64_t)m->in;
    uint64_t bytes = packing->method && is_packed(packing, m) ? packing_bytes(packing, rows, cols) : 0;
    return (uint64_t)m->experts * (bytes ? bytes : 2 * rows * cols);
}

// Names that lie over linears another module has already do not count again.
static bool is_overlay(const struct model *model, const struct module *m) {
    return model->layer[m->layer].linear[m->parts[0].linear].on[0].module != m->id;
}

void base_sizes_count(const struct model *model, struct base_sizes *out) {
    struct packing packing;
    *out = (struct base_sizes){0};
    packing_read(model->base->config.root, model->path, &packing, NULL); // was read before: no error
    out->packed = packing.method != NULL;
    if (out->packed) packing_name(&packing, out->packed_name);
    for (int i = 0; i < model->n_modules; i++) {
        const struct module *m = &model->modules[i];
        uint64_t rows = (uint64_t)m->out, cols = (uint64_t)m->in, experts = (uint64_t)m->experts;
        if (m->layer < 0) {
            if (m->form == MODULE_HEAD && model->arch.tied) continue;
            out->ends += rows * cols;
            for (enum base_storage s = 0; s < STORAGE_COUNT; s++)
                out->bytes[s] += s == STORAGE_PACKED ? stored_bytes(&packing, m)
                                 : s < STORAGE_Q8_0  ? 2 * rows * cols
                                                     : matrix_bytes(s, rows, cols);
        } else if (!m->router && !is_overlay(model, m)) {
            out->linears += rows * cols * experts;
            bool stacked = model->family->linears[m->kind].flags & TENSOR_STACKED;
            for (enum base_storage s = 0; s < STORAGE_COUNT; s++) {
                uint64_t bytes =
                    s == STORAGE_PACKED ? stored_bytes(&packing, m) : experts * matrix_bytes(s, rows, cols);
                out->bytes[s] += bytes;
                out->stacked[s] += stacked ? bytes : 0;
            }
        }
    }
    out->others = model->total_parameters - out->linears - out->ends;
    for (enum base_storage s = 0; s < STORAGE_COUNT; s++)
        out->bytes[s] += out->others * (s < STORAGE_Q8_0 || s == STORAGE_PACKED ? 2 : 4);
}

uint64_t base_sizes_bytes(const struct base_sizes *sizes, enum base_storage storage, bool experts) {
    bool kept = !experts && (storage == STORAGE_INT8 || storage == STORAGE_NF4 || storage == STORAGE_NF4_DOUBLE);
    return kept ? sizes->bytes[storage] - sizes->stacked[storage] + sizes->stacked[STORAGE_BF16]
                : sizes->bytes[storage];
}
