// See peft_layout.h.
#include "adapters/peft_layout.h"

#include <string.h>

static const char PREFIX[] = "base_model.model.";

enum { PAIR = 1u << ADAPTER_A | 1u << ADAPTER_B };

unsigned peft_parts(const struct adapter_module *m) {
    unsigned parts = 0;
    for (int p = 0; p < ADAPTER_PARTS; p++) parts |= m->part[p] ? 1u << p : 0;
    return parts;
}

int peft_tensor_count(const struct adapter_module *m, unsigned parts) {
    int n = parts & PAIR ? 2 * (m->module->form == MODULE_EXPERTS ? m->module->experts : 1) : 0;
    for (int p = ADAPTER_B + 1; p < ADAPTER_PARTS; p++) n += parts >> p & 1;
    return n;
}

bool peft_is_copy(const struct adapter_module *m, const char *key) {
    const struct module *module = m->module;
    size_t prefix = sizeof PREFIX - 1, n = strlen(module->hf_name);
    if (module->form != MODULE_EMBEDDING && module->form != MODULE_HEAD) return false;
    if (strncmp(key, PREFIX, prefix) != 0 || strncmp(key + prefix, module->hf_name, n) != 0) return false;
    const char *ending = key + prefix + n;
    if (m->r) return strcmp(ending, ".base_layer.weight") == 0;
    return m->full && m->bias &&
           (strcmp(ending, ".original_module.bias") == 0 || strcmp(ending, ".modules_to_save.bias") == 0);
}

// "mlp.experts" of "mlp.experts.gate_up_proj".
static size_t holder_length(const struct module *m) {
    return (size_t)(m->short_name - m->hf_name) - 1;
}

bool peft_has_sibling(const struct model *model, const bool *has, const struct module *m) {
    if (m->form != MODULE_PARAMETER) return false;
    size_t n = holder_length(m);
    for (int i = m->id + 1; i < model->n_modules; i++) {
        const struct module *other = &model->modules[i];
        if (has[i] && other->form == MODULE_PARAMETER && holder_length(other) == n &&
            memcmp(other->hf_name, m->hf_name, n) == 0) {
            return true;
        }
    }
    return false;
}

static void pair_at(struct pool *pool, const struct module *m, bool sibling, int index, struct peft_tensor *out) {
    bool b = index % 2;
    const char *half = b ? "lora_B.weight" : "lora_A.weight";
    int r = out->r;
    out->part = b ? ADAPTER_B : ADAPTER_A;
    switch (m->form) {
    case MODULE_LINEAR:
    case MODULE_HEAD:
        out->key = pool_printf(pool, "%s%s.%s", PREFIX, m->hf_name, half);
        out->rows = b ? m->out : r, out->cols = b ? r : m->in;
        break;
    case MODULE_EXPERTS: {
        const char *d = strstr(m->hf_name, "%d");
        out->expert = index / 2;
        out->key = pool_printf(pool, "%s%.*s%lld%s.%s", PREFIX, (int)(d - m->hf_name), m->hf_name,
                               (long long)out->expert, d + 2, half);
        out->rows = b ? m->out : r, out->cols = b ? r : m->in;
        break;
    }
    case MODULE_PARAMETER: { // all experts side by side: A by expert, then rank; B by rank, then expert
        int64_t in = m->hf_swapped ? m->out : m->in, rows = m->hf_swapped ? m->in : m->out,
                all = (int64_t)m->experts * r;
        out->key = pool_printf(pool, "%s%.*s.%s%s", PREFIX, (int)holder_length(m), m->hf_name,
                               sibling ? "base_layer." : "", half);
        out->rows = b ? rows : all, out->cols = b ? all : in;
        break;
    }
    case MODULE_NORM: break; // has no pair
    case MODULE_EMBEDDING:   // an adapter on it is looked up, not multiplied
        out->key = pool_printf(pool, "%s%s.lora_embedding_%c", PREFIX, m->hf_name, b ? 'B' : 'A');
        out->rows = b ? m->in : r, out->cols = b ? r : m->out;
        break;
    }
}

bool peft_tensor_at(struct pool *pool, const struct adapter_module *m, unsigned parts, bool sibling, int index,
                    struct peft_tensor *out) {
    static const struct {
        const char *ending;
        int n_dims;
    } single[ADAPTER_PARTS] = {[ADAPTER_MAGNITUDE] = {"lora_magnitude_vector", 1},
                               [ADAPTER_BIAS] = {"base_layer.bias", 1},
                               [ADAPTER_FULL] = {"weight", 2},
                               [ADAPTER_ROWS] = {"token_adapter.trainable_tokens_delta", 2}};
    *out = (struct peft_tensor){.module = m->module, .expert = -1, .n_dims = 2, .r = adapter_file_rank(m)};
    int pairs = peft_tensor_count(m, parts & PAIR), p = ADAPTER_B;
    if (index < pairs) {
        pair_at(pool, m->module, sibling, index, out);
        return out->key != NULL;
    }
    for (int left = index - pairs; left >= 0; left--) {
        do p++;
        while (!(parts >> p & 1));
    }
    struct adapter_shape s = adapter_part_shape(m, p);
    out->part = p, out->n_dims = single[p].n_dims;
    out->rows = s.rows, out->cols = s.cols;
    // Beside A and B, the bias is that of what PEFT wrapped.
    const char *ending = p == ADAPTER_BIAS && !(parts & PAIR) ? "bias" : single[p].ending;
    out->key = pool_printf(pool, "%s%s.%s", PREFIX, m->module->hf_name, ending);
    return out->key != NULL;
}

// Is it an element of PiSSA's b0, which the file holds negated?
static bool is_negated(const struct peft_tensor *t, const struct adapter_module *m, int64_t col) {
    return t->part == ADAPTER_B && m->b0 && col >= m->r;
}

// Where element (row, col) of the tensor stands in the adapter.
static float *place(const struct peft_tensor *t, const struct adapter_module *m, int64_t row, int64_t col) {
    const struct module *module = t->module;
    bool half_b = t->part == ADAPTER_B;
    if (t->part == ADAPTER_MAGNITUDE || t->part == ADAPTER_BIAS)
        return m->part[t->part] + adapter_b_row(module, 0, col);
    if (t->part != ADAPTER_A && !half_b) return m->part[t->part] + row * t->cols + col;
    int64_t experts = module->experts, r = m->r;
    if (m->a0 && (half_b ? col : row) >= r)
        return half_b ? m->b0 + adapter_b_row(module, 0, row) * r + col - r : m->a0 + (row - r) * module->in + col;
    if (module->form == MODULE_EMBEDDING) { // lora_embedding_A (r, vocab) is our b, (vocab, r); B (D, r) our a, (r, D)
        return half_b ? m->a + col * module->in + row : m->b + col * r + row;
    }
    if (module->form != MODULE_PARAMETER) {
        int64_t e = t->expert < 0 ? 0 : t->expert;
        if (!half_b) return m->a + (e * r + row) * module->in + col;
        return m->b + adapter_b_row(module, e, row) * r + col;
    }
    int64_t e = half_b ? col % experts : row / r, k = half_b ? col / experts : row % r, i = half_b ? row : col;
    bool is_b = half_b != module->hf_swapped; // PEFT's A is our B where it took the parameter the other way round
    return is_b ? m->b + adapter_b_row(module, e, i) * r + k : m->a + (e * r + k) * module->in + i;
}

void peft_get_row(const struct peft_tensor *t, const struct adapter_module *m, int64_t row, float *out) {
    for (int64_t i = 0; i < t->cols; i++) out[i] = is_negated(t, m, i) ? -*place(t, m, row, i) : *place(t, m, row, i);
}

void peft_put_row(const struct peft_tensor *t, struct adapter_module *m, int64_t row, const float *in) {
    for (int64_t i = 0; i < t->cols; i++) *place(t, m, row, i) = is_negated(t, m, i) ? -in[i] : in[i];
}
