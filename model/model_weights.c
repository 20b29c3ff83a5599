// A base's tensors become weights, linears and modules: see model.h. Every shape is checked against the architecture
// before anything is handed out; a linear's rows may be a part of a fused matrix, its experts slices of a stacked one.
#include "model/model_loader.h"

#include <stdio.h>
#include <string.h>

bool linear_shape(const struct arch *a, const struct layer_arch *y, enum linear_kind kind, int64_t *out, int64_t *in) {
    const struct latent_arch *m = &a->latent;
    int64_t heads = (int64_t)y->heads, dim = y->head_dim;
    bool latent = m->kv_rank > 0;
    *in = a->width, *out = 0;
    switch (kind) {
    case LINEAR_Q: *out = m->q_rank > 0 ? 0 : heads * dim; break;
    case LINEAR_K: *out = latent ? 0 : (int64_t)y->kv_heads * dim; break;
    case LINEAR_V: *out = latent ? 0 : (int64_t)y->kv_heads * y->v_dim; break;
    case LINEAR_Q_A: *out = m->q_rank; break;
    case LINEAR_Q_B: *out = m->q_rank > 0 ? heads * dim : 0, *in = m->q_rank; break;
    case LINEAR_KV_A: *out = m->kv_rank; break;
    case LINEAR_K_ROPE: *out = latent ? m->rope : 0; break;
    case LINEAR_KV_B: *out = latent && !m->split ? heads * (m->nope + y->v_dim) : 0, *in = m->kv_rank; break;
    case LINEAR_K_B: *out = m->split ? heads * m->nope : 0, *in = m->kv_rank; break;
    case LINEAR_V_B: *out = m->split ? heads * y->v_dim : 0, *in = m->kv_rank; break;
    case LINEAR_O: *out = a->width, *in = heads * y->v_dim; break;
    case LINEAR_GATE: *out = y->moe || !y->glu ? 0 : y->ffn; break;
    case LINEAR_UP: *out = y->moe ? 0 : y->ffn; break;
    case LINEAR_DOWN: *out = y->moe ? 0 : a->width, *in = y->ffn; break;
    case LINEAR_ROUTER: *out = y->moe ? a->moe.experts : 0; break;
    case LINEAR_EXPERT_GATE:
    case LINEAR_EXPERT_UP: *out = y->moe ? a->moe.ffn : 0; break;
    case LINEAR_EXPERT_DOWN: *out = y->moe ? a->width : 0, *in = a->moe.ffn; break;
    case LINEAR_SHARED_ROUTER: *out = y->moe && a->moe.shared_gate ? 1 : 0; break;
    case LINEAR_SHARED_GATE:
    case LINEAR_SHARED_UP: *out = y->moe ? a->moe.shared_ffn : 0; break;
    case LINEAR_SHARED_DOWN: *out = y->moe && a->moe.shared_ffn ? a->width : 0, *in = a->moe.shared_ffn; break;
    case LINEAR_KINDS: break;
    }
    return *out > 0 && *in > 0;
}

// --- weights

static int fail(struct loader *l, const char *format, ...) __attribute__((format(printf, 2, 3)));
static int fail(struct loader *l, const char *format, ...) {
    char text[600];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (!l->failed) error_set(l->err, STATUS_DATA, "%s: %s", l->base->name, text);
    l->failed = true;
    return -1;
}

static void no_memory(struct loader *l, const char *what) {
    if (!l->failed) error_memory(l->err, what, 0);
    l->failed = true;
}

// As many tensors as a file may have. A few bytes of config.json could ask for any number of experts; DeepSeek V3 has
// 45 thousand of their matrices.
enum { MOST_WEIGHTS = ST_MAX_TENSORS };

// `n` weights side by side with consecutive ids, to be filled in; NULL when out of memory.
static struct weight *new_weights(struct loader *l, int n, int segment) {
    if (!l->failed && n > MOST_WEIGHTS - l->n_weights)
        fail(l, "the model has more than %d matrices and vectors", MOST_WEIGHTS);
    struct weight *w = l->failed ? NULL : pool_array(&l->model->pool, (uint64_t)n, sizeof *w);
    if (w && l->n_weights + n > l->capacity) {
        int capacity = 2 * (l->n_weights + n) + 64;
        const struct weight **grown = mem_resize(l->weights, (size_t)capacity * sizeof *grown);
        if (grown)
            l->weights = grown, l->capacity = capacity;
        else
            w = NULL;
    }
    if (!w) {
        if (!l->failed) no_memory(l, "the weight table");
        return NULL;
    }
    for (int i = 0; i < n; i++) {
        w[i].segment = segment;
        w[i].id = (uint32_t)l->n_weights;
        l->weights[l->n_weights++] = &w[i];
    }
    return w;
}

static void fill(struct weight *w, struct weight from) {
    from.segment = w->segment, from.id = w->id;
    *w = from;
}

static const char *weight_name(struct loader *l, const char *format, ...) __attribute__((format(printf, 2, 3)));
static const char *weight_name(struct loader *l, const char *format, ...) {
    char text[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    const char *name = pool_strdup(&l->model->pool, text);
    if (!name) no_memory(l, "a tensor's name");
    return name ? name : "";
}

static bool usable(struct loader *l, const struct base_tensor *t) {
    if (t->format) return true;
    fail(l, "tensor '%s' has type %s, which is not in this version", t->name, t->type_name);
    return false;
}

static void wrong_shape(struct loader *l, const struct base_tensor *t, int64_t experts, int64_t rows, int64_t cols) {
    char held[80] = "", wanted[80];
    for (int i = 0; i < t->n_dims; i++)
        snprintf(held + strlen(held), sizeof held - strlen(held), "%s%lld", i ? " x " : "", (long long)t->shape[i]);
    if (experts)
        snprintf(wanted, sizeof wanted, "%lld x %lld x %lld", (long long)experts, (long long)rows, (long long)cols);
    else
        snprintf(wanted, sizeof wanted, "%lld x %lld", (long long)rows, (long long)cols);
    fail(l, "tensor '%s' is %s, the architecture says %s", t->name, held, wanted);
}

// A matrix (rows, cols), stored turned where `turned`.
static bool matrix(struct loader *l, const char *name, int64_t rows, int64_t cols, bool turned, struct weight *out) {
    struct base_tensor t;
    if (l->base->kind == BASE_SHAPES) {
        *out = (struct weight){.format = quant_format(QUANT_BF16), .rows = rows, .cols = cols, .name = name};
        return true;
    }
    if (!base_find(l->base, name, &t)) return false;
    if (!usable(l, &t)) return true;
    if (t.n_dims == 1 && rows == 1 && !turned) t.shape[1] = t.shape[0], t.shape[0] = 1; // ggml stores no trailing ones
    if (t.n_dims > 2 || t.shape[0] != (turned ? cols : rows) || t.shape[1] != (turned ? rows : cols)) {
        wrong_shape(l, &t, 0, turned ? cols : rows, turned ? rows : cols);
        return true;
    }
    *out = (struct weight){
        .format = t.format, .rows = rows, .cols = cols, .data = t.data, .name = t.name, .transposed = turned};
    return true;
}

// Slice e of a stacked tensor (E, rows, cols).
static bool stacked(struct loader *l, const char *name, int64_t experts, int64_t rows, int64_t cols, bool turned,
                    struct weight *out) {
    struct base_tensor t = {0};
    bool shapes = l->base->kind == BASE_SHAPES;
    if (shapes)
        t = (struct base_tensor){.name = name, .format = quant_format(QUANT_BF16)};
    else if (!base_find(l->base, name, &t))
        return false;
    if (!usable(l, &t)) return true;
    int64_t stored_rows = turned ? cols : rows, stored_cols = turned ? rows : cols;
    if (!shapes && (t.n_dims != 3 || t.shape[0] != experts || t.shape[1] != stored_rows || t.shape[2] != stored_cols)) {
        wrong_shape(l, &t, experts, stored_rows, stored_cols);
        return true;
    }
    size_t slice = (size_t)stored_rows * quant_row_bytes(t.format, stored_cols);
    for (int64_t e = 0; e < experts; e++) {
        out[e] = (struct weight){.format = t.format,
                                 .rows = rows,
                                 .cols = cols,
                                 .data = t.data ? t.data + (size_t)e * slice : NULL,
                                 .name = t.name,
                                 .transposed = turned};
    }
    return true;
}

// A vector of `cols` numbers, whatever its shape; of `experts` rows where that is not 0. NULL when missing.
static const struct weight *vector(struct loader *l, const char *name, int64_t rows, int64_t cols, bool required) {
    struct base_tensor t;
    if (l->failed) return NULL;
    if (l->base->kind == BASE_SHAPES) {
        if (!required) return NULL;
        t = (struct base_tensor){.name = name, .format = quant_format(QUANT_BF16)};
    } else if (!base_find(l->base, name, &t)) {
        if (required) fail(l, "tensor '%s' is missing", name);
        return NULL;
    } else {
        int64_t count = 1;
        for (int i = 0; i < t.n_dims; i++) count = t.shape[i] > cols * rows ? 0 : count * t.shape[i];
        if (!usable(l, &t)) return NULL;
        if (count != rows * cols || t.format->block != 1) {
            fail(l, "tensor '%s' has %lld numbers of %s, the architecture says %lld", t.name, (long long)count,
                 t.type_name, (long long)(rows * cols));
            return NULL;
        }
    }
    struct weight *w = new_weights(l, 1, SEGMENT_RESIDENT);
    if (!w) return NULL;
    fill(w, (struct weight){.format = t.format, .rows = rows, .cols = cols, .data = t.data, .name = t.name});
    l->model->total_parameters += (uint64_t)(rows * cols);
    return w;
}

// --- linears

// What the rows of a table row are in this layer.
struct row {
    const struct family_linear *f;
    int layer;
    int64_t out[FAMILY_PARTS], total, in;
    int n; // parts
    int64_t experts;
};

static bool row_open(const struct loader *l, const struct family_linear *f, int layer, struct row *r) {
    const struct arch *a = &l->model->arch;
    *r = (struct row){.f = f, .layer = layer, .n = f->n_parts, .experts = 1};
    for (int i = 0; i < f->n_parts; i++) {
        if (!linear_shape(a, &a->layer[layer], f->parts[i], &r->out[i], &r->in)) return false;
        r->total += r->out[i];
    }
    if (linear_is_expert(f->parts[0])) r->experts = a->moe.experts;
    return true;
}

// The i-th of "a|b", or the only one.
static const char *gguf_part(struct loader *l, const struct row *r, int i) {
    const char *at = r->f->gguf;
    bool several = strchr(at, '|') != NULL;
    while (several && i-- > 0) at += strcspn(at, "|") + 1;
    return weight_name(l, "blk.%d.%.*s", r->layer, (int)strcspn(at, "|"), at);
}

static const char *hf_part(struct loader *l, const struct row *r, int64_t expert) {
    const char *layers = l->family->hf_layers ? l->family->hf_layers : "layers", *d = strstr(r->f->hf, "%d");
    if (!d) return weight_name(l, "%s%s.%d.%s", l->root, layers, r->layer, r->f->hf);
    return weight_name(l, "%s%s.%d.%.*s%lld%s", l->root, layers, r->layer, (int)(d - r->f->hf), r->f->hf,
                       (long long)expert, d + 2);
}

// Linear `stem` of a Hugging Face base, packed or plain.
static bool hf_matrix(struct loader *l, const char *stem, int64_t rows, int64_t cols, bool turned, struct weight *out) {
    int packed = packed_linear(l->base, &l->packing, &l->model->pool, stem, rows, cols, out, l->err);
    l->failed |= packed < 0;
    return packed != 0 || matrix(l, weight_name(l, "%s.weight", stem), rows, cols, turned, out);
}

// Experts that other checkpoints of the family keep in one tensor, each quantised by itself (quantize_base.h).
static bool apart_experts(struct loader *l, const struct row *r, const char *stem, struct weight *whole) {
    struct base_tensor t;
    if (l->base->kind != BASE_SAFETENSORS || !base_find(l->base, weight_name(l, "%s.0.weight", stem), &t)) return false;
    for (int64_t e = 0; e < r->experts && !l->failed; e++) {
        const char *one = weight_name(l, "%s.%lld", stem, (long long)e);
        int packed = packed_linear(l->base, &l->packing, &l->model->pool, one, r->total, r->in, &whole[e], l->err);
        l->failed |= packed < 0;
        if (packed == 0) fail(l, "tensor '%s.weight' is not packed, or is missing", one);
    }
    return true;
}

// Whole matrices, one per expert, as Hugging Face stores them.
static void hf_wholes(struct loader *l, const struct row *r, struct weight *whole) {
    bool bare = r->f->flags & TENSOR_BARE, turned = r->f->flags & TENSOR_TURNED;
    const char *stem = hf_part(l, r, 0);
    if (r->f->flags & TENSOR_STACKED) {
        const char *name = weight_name(l, "%s%s", stem, bare ? "" : ".weight");
        int packed =
            packed_experts(l->base, &l->packing, &l->model->pool, stem, r->experts, r->total, r->in, whole, l->err);
        l->failed |= packed < 0;
        if (packed == 0 && !l->failed && !apart_experts(l, r, stem, whole) &&
            !stacked(l, name, r->experts, r->total, r->in, turned, whole))
            fail(l, "tensor '%s' is missing", name);
        return;
    }
    for (int64_t e = 0; e < r->experts && !l->failed; e++) {
        if (e) stem = hf_part(l, r, e);
        if (!hf_matrix(l, stem, r->total, r->in, turned, &whole[e])) fail(l, "tensor '%s.weight' is missing", stem);
    }
}

// A tensor (H, D, in) as a matrix (H D, in), or one (H, in, D), whose heads are stored turned.
static bool by_head(struct loader *l, const char *name, int64_t heads, int64_t rows, int64_t cols, bool turned,
                    struct weight *out) {
    struct base_tensor t;
    if (!base_find(l->base, name, &t)) return false;
    if (!usable(l, &t)) return true;
    int64_t dim = rows / heads, stored_rows = turned ? cols : dim, stored_cols = turned ? dim : cols;
    if (t.n_dims != 3 || t.shape[0] != heads || t.shape[1] != stored_rows || t.shape[2] != stored_cols) {
        wrong_shape(l, &t, heads, stored_rows, stored_cols);
        return true;
    }
    *out = (struct weight){.format = t.format,
                           .rows = rows,
                           .cols = cols,
                           .data = t.data,
                           .name = t.name,
                           .transposed = turned,
                           .turned_rows = turned ? dim : 0};
    return true;
}

static void gguf_wholes(struct loader *l, const struct row *r, int part, int64_t rows, struct weight *whole) {
    const char *name = weight_name(l, "%s.weight", gguf_part(l, r, part));
    if (r->f->flags & TENSOR_BY_HEAD) {
        int64_t heads = l->model->arch.layer[r->layer].heads;
        if (!by_head(l, name, heads, rows, r->in, r->f->parts[part] == LINEAR_K_B, whole))
            fail(l, "tensor '%s' is missing", name);
        return;
    }
    bool found = r->experts > 1 || linear_is_expert(r->f->parts[0])
                     ? stacked(l, name, r->experts, rows, r->in, false, whole)
                     : matrix(l, name, rows, r->in, false, whole);
    if (!found) fail(l, "tensor '%s' is missing", name);
}

static bool bias_expected(const struct loader *l, const struct row *r) {
    const struct layer_arch *y = &l->model->arch.layer[r->layer];
    if (l->base->kind != BASE_SHAPES) return false; // a file has its biases or has none
    switch (r->f->parts[0]) {
    case LINEAR_Q:
    case LINEAR_K:
    case LINEAR_V: return y->bias_qkv;
    case LINEAR_O: return y->bias_o;
    case LINEAR_ROUTER: return y->bias_mlp && y->moe;
    case LINEAR_GATE:
    case LINEAR_UP:
    case LINEAR_DOWN:
    case LINEAR_EXPERT_GATE:
    case LINEAR_EXPERT_UP:
    case LINEAR_EXPERT_DOWN: return y->bias_mlp;
    default: return false;
    }
}

// The bias of part i, or NULL.
static const struct weight *take_bias(struct loader *l, const struct row *r, int i) {
    bool gguf = l->base->kind == BASE_GGUF, expected = bias_expected(l, r), alternate = r->f->flags & TENSOR_ALTERNATE;
    const char *stem = gguf ? gguf_part(l, r, i) : hf_part(l, r, 0);
    const char *name = weight_name(l, "%s%s", stem, !gguf && (r->f->flags & TENSOR_BARE) ? "_bias" : ".bias");
    if (gguf && strchr(r->f->gguf, '|')) return vector(l, name, r->experts, r->out[i], expected);
    if (r->n == 1 || (alternate && i == 0))
        return vector(l, name, r->experts, alternate ? r->total : r->out[i], expected);
    if (alternate || l->failed) return NULL;
    // A part of a fused bias: its own view of the same numbers.
    struct base_tensor t;
    if (l->base->kind == BASE_SHAPES || !base_find(l->base, name, &t))
        return expected ? vector(l, name, 1, r->out[i], true) : NULL;
    const struct weight *whole = vector(l, name, 1, r->total, true);
    struct weight *w = whole ? new_weights(l, 1, SEGMENT_RESIDENT) : NULL;
    if (!w) return NULL;
    int64_t first = 0;
    for (int k = 0; k < i; k++) first += r->out[k];
    if (i > 0) l->model->total_parameters -= (uint64_t)r->total; // counted with part 0
    fill(w, *whole);
    w->cols = r->out[i];
    w->data += (size_t)first * (size_t)whole->format->block_bytes;
    return w;
}

static void count(struct loader *l, const struct weight *w, int64_t n) {
    for (int64_t e = 0; e < n; e++) l->model->total_parameters += (uint64_t)w[e].rows * (uint64_t)w[e].cols;
}

static void take_linear(struct loader *l, const struct row *r) {
    struct layer_weights *y = &l->model->layer[r->layer];
    struct weight *whole = mem_zalloc((size_t)r->experts, sizeof *whole);
    bool gguf = l->base->kind == BASE_GGUF, alternate = !gguf && (r->f->flags & TENSOR_ALTERNATE);
    bool apart = gguf && strchr(r->f->gguf, '|');
    int64_t first = 0;
    if (!whole) no_memory(l, "the weight table");
    if (!l->failed && !gguf) hf_wholes(l, r, whole);
    if (!l->failed && gguf && !apart) gguf_wholes(l, r, 0, r->total, whole);
    for (int i = 0; i < r->n && !l->failed; first += r->out[i++]) {
        struct linear *linear = &y->linear[r->f->parts[i]];
        if (apart) gguf_wholes(l, r, i, r->out[i], whole);
        if (l->failed || (alternate && i > 0)) break;
        struct weight *w = new_weights(l, (int)r->experts, SEGMENT_LAYER0 + r->layer);
        for (int64_t e = 0; e < r->experts && w; e++) {
            bool all = apart || alternate || r->n == 1;
            fill(&w[e], all ? whole[e] : weight_rows(&whole[e], first, r->out[i]));
        }
        if (!w) break;
        linear->w = w;
        count(l, w, r->experts);
        linear->bias = take_bias(l, r, i);
    }
    if (alternate) l->model->arch.moe.interleaved = true;
    mem_free(whole);
}

// --- modules

static struct module *new_module(struct loader *l) {
    struct model *m = l->model;
    if (l->n_modules == l->module_capacity) {
        int capacity = 2 * l->module_capacity + 64;
        struct module *grown = mem_resize(m->modules, (size_t)capacity * sizeof *grown);
        if (!grown) {
            no_memory(l, "the module table");
            return NULL;
        }
        m->modules = grown, l->module_capacity = capacity;
    }
    struct module *module = &m->modules[l->n_modules];
    *module = (struct module){.id = l->n_modules++, .experts = 1};
    return module;
}

static const char *last_component(const char *name) {
    const char *dot = strrchr(name, '.');
    return dot ? dot + 1 : name;
}

// Where the rows of part i stand among Hugging Face's; `before` rows belong to earlier parts.
struct places {
    int64_t first, step, run;
};
static struct places part_places(const struct loader *l, const struct row *r, int i, int64_t before) {
    if (r->f->flags & TENSOR_ALTERNATE) return (struct places){i, r->n, 1};
    if (!(r->f->flags & TENSOR_BY_HEAD)) return (struct places){before, 1, 1};
    int64_t heads = l->model->arch.layer[r->layer].heads;
    return (struct places){before / heads, r->total / heads, r->out[i] / heads};
}

// Its place in GGUF files of the family.
static void add_tensors(struct loader *l, const struct row *r, struct module *m) {
    const struct layer_arch *y = &l->model->arch.layer[r->layer];
    int64_t first = 0;
    for (int i = 0; i < r->n; first += r->out[i++]) {
        enum linear_kind kind = r->f->parts[i];
        struct places p = part_places(l, r, i, first);
        bool permuted = l->family->permuted_qk && (kind == LINEAR_Q || kind == LINEAR_K);
        m->tensors[i] = (struct module_tensor){.name = weight_name(l, "%s.weight", gguf_part(l, r, i)),
                                               .rows = r->out[i],
                                               .hf_first = p.first,
                                               .hf_step = p.step,
                                               .hf_run = p.run,
                                               .permuted_heads = !permuted          ? 0
                                                                 : kind == LINEAR_Q ? y->heads
                                                                                    : y->kv_heads};
    }
    m->n_tensors = r->n;
}

static void add_module(struct loader *l, const struct row *r) {
    struct module *m = l->failed ? NULL : new_module(l);
    if (!m) return;
    const struct family_linear *f = r->f;
    const struct arch *a = &l->model->arch;
    struct layer_weights *y = &l->model->layer[r->layer];
    const char *layers = l->family->hf_layers ? l->family->hf_layers : "layers";
    bool whole = l->base->kind != BASE_GGUF && (f->flags & TENSOR_ALTERNATE);
    m->layer = r->layer;
    m->kind = (int)(f - l->family->linears);
    m->form = f->flags & TENSOR_PARAMETER     ? MODULE_PARAMETER
              : linear_is_expert(f->parts[0]) ? MODULE_EXPERTS
                                              : MODULE_LINEAR;
    m->router = f->flags & TENSOR_ROUTER;
    m->hf_name = weight_name(l, "%s%s.%d.%s", l->module_root, layers, r->layer, f->module ? f->module : f->hf);
    m->short_name = last_component(m->hf_name);
    if (f->module && m->router) m->hf_old = weight_name(l, "%s%s.%d.%s", l->module_root, layers, r->layer, f->hf);
    m->in = r->in, m->out = r->total, m->experts = (int)r->experts;
    m->hf_swapped = f->flags & TENSOR_SWAPPED;
    m->n_parts = whole ? 1 : r->n;
    add_tensors(l, r, m);
    int64_t first = 0;
    for (int i = 0; i < m->n_parts && !l->failed; i++) {
        struct linear *linear = &y->linear[f->parts[i]];
        struct module_part *part = &m->parts[i];
        bool qk = f->parts[i] == LINEAR_Q || f->parts[i] == LINEAR_K;
        bool permuted = qk && l->family->permuted_qk && l->base->kind == BASE_GGUF;
        struct places p = whole ? (struct places){0, 1, 1} : part_places(l, r, i, first);
        const struct layer_arch *shape = &a->layer[r->layer];
        *part = (struct module_part){.linear = f->parts[i],
                                     .w = linear->w,
                                     .bias = linear->bias,
                                     .rows = whole ? r->total : r->out[i],
                                     .first_row = first,
                                     .hf_first = p.first,
                                     .hf_step = p.step,
                                     .hf_run = p.run};
        if (permuted) part->permuted_heads = f->parts[i] == LINEAR_Q ? shape->heads : shape->kv_heads;
        if (linear->n_modules == 2) {
            fail(l, "linear %d of layer %d has too many names", (int)f->parts[i], r->layer);
            return;
        }
        linear->on[linear->n_modules].module = m->id;
        linear->on[linear->n_modules++].part = i;
        first += part->rows;
    }
}

// --- the layer, and what is outside of layers

// Without a file to look into, what config.json promises is there.
static bool promised(const struct loader *l, bool bias) {
    return l->base->kind == BASE_SHAPES && bias;
}

static void take_norms(struct loader *l, int layer) {
    const struct arch *a = &l->model->arch;
    const struct layer_arch *y = &a->layer[layer];
    const char *layers = l->family->hf_layers ? l->family->hf_layers : "layers";
    bool gguf = l->base->kind == BASE_GGUF;
    for (int i = 0; i < FAMILY_NORMS && l->family->norms[i].hf; i++) {
        const struct family_norm *n = &l->family->norms[i];
        if (!layer_has_norm(y, n->site)) continue;
        int64_t heads = n->site == NORM_Q ? y->heads : y->kv_heads, cols = a->width;
        if (n->site == NORM_Q || n->site == NORM_K)
            cols =
                y->qk_whole || a->norm == NORM_LAYER ? heads * y->head_dim : y->head_dim; // Cohere: each head its own
        if (n->site == NORM_Q_LATENT) cols = a->latent.q_rank;
        if (n->site == NORM_KV_LATENT) cols = a->latent.kv_rank;
        const char *stem = gguf ? weight_name(l, "blk.%d.%s", layer, n->gguf)
                                : weight_name(l, "%s%s.%d.%s", l->root, layers, layer, n->hf);
        l->model->layer[layer].norm[n->site].w = vector(l, weight_name(l, "%s.weight", stem), 1, cols, true);
        if (a->norm == NORM_LAYER)
            l->model->layer[layer].norm[n->site].bias =
                vector(l, weight_name(l, "%s.bias", stem), 1, cols, promised(l, a->norm_bias));
    }
}

// A vector of the layer that only some families have.
static const struct weight *take_extra(struct loader *l, int layer, const char *hf, const char *gguf, int64_t cols) {
    const char *layers = l->family->hf_layers ? l->family->hf_layers : "layers";
    bool from_gguf = l->base->kind == BASE_GGUF;
    const char *name =
        from_gguf ? weight_name(l, "blk.%d.%s", layer, gguf) : weight_name(l, "%s%s.%d.%s", l->root, layers, layer, hf);
    return vector(l, name, 1, cols, true);
}

void loader_take_layer(struct loader *l, int layer) {
    struct model *m = l->model;
    const struct layer_arch *y = &m->arch.layer[layer];
    take_norms(l, layer);
    for (int i = 0; i < FAMILY_LINEARS && l->family->linears[i].hf && !l->failed; i++) {
        const struct family_linear *f = &l->family->linears[i];
        struct row r;
        if (!row_open(l, f, layer, &r)) continue;
        bool overlay = (f->flags & TENSOR_PARAMETER) && !(f->flags & TENSOR_STACKED);
        if (!overlay) take_linear(l, &r);
        add_module(l, &r);
    }
    if (l->failed) return;
    if (l->family->sinks_hf)
        m->layer[layer].sinks = take_extra(l, layer, l->family->sinks_hf, l->family->sinks_gguf, y->heads);
    if (l->family->router_bias_hf && y->moe && m->arch.moe.route.gate == MOE_SIGMOID)
        m->layer[layer].router_bias =
            take_extra(l, layer, l->family->router_bias_hf, l->family->router_bias_gguf, m->arch.moe.experts);
}

// A module for the embedding or the head.
static void add_end(struct loader *l, enum module_form form, const char *hf_name, const char *gguf_name,
                    const struct weight *w) {
    struct module *m = l->failed ? NULL : new_module(l);
    if (!m) return;
    m->layer = -1, m->form = form, m->kind = form == MODULE_EMBEDDING ? FAMILY_LINEARS : FAMILY_LINEARS + 1;
    m->hf_name = hf_name, m->short_name = last_component(hf_name);
    m->in = w->cols, m->out = w->rows;
    m->n_parts = m->n_tensors = 1;
    const struct weight *bias = form == MODULE_HEAD ? l->model->head_bias : NULL;
    m->parts[0] = (struct module_part){.linear = LINEAR_KINDS, .w = w, .bias = bias, .rows = w->rows, .hf_step = 1};
    m->tensors[0] = (struct module_tensor){.name = gguf_name, .rows = w->rows, .hf_step = 1};
}

// --- norms with a bias

static const struct module *add_norm(struct loader *l, int layer, const char *hf, const char *gguf,
                                     const struct weight *w, const struct weight *bias) {
    struct model *model = l->model;
    struct module *m = &model->norms[model->n_norms];
    *m = (struct module){.id = l->n_modules + model->n_norms++, .layer = layer, .form = MODULE_NORM, .experts = 1};
    m->hf_name = hf, m->short_name = last_component(hf);
    m->in = m->out = bias->cols;
    m->n_parts = m->n_tensors = 1;
    m->parts[0] = (struct module_part){.linear = LINEAR_KINDS, .w = w, .bias = bias, .rows = bias->cols, .hf_step = 1};
    m->tensors[0] = (struct module_tensor){.name = gguf, .rows = bias->cols, .hf_step = 1};
    return m;
}

void loader_take_norm_modules(struct loader *l) {
    struct model *m = l->model;
    const struct family *f = l->family;
    const char *layers = f->hf_layers ? f->hf_layers : "layers";
    size_t n = m->final_norm_bias != NULL;
    for (int k = 0; k < m->arch.layers; k++)
        for (int s = 0; s < NORM_SITES; s++) n += m->layer[k].norm[s].bias != NULL;
    if (n == 0) return;
    m->norms = pool_array(&m->pool, n, sizeof *m->norms);
    if (!m->norms) {
        no_memory(l, "the table of norms");
        return;
    }
    for (int k = 0; k < m->arch.layers; k++) {
        for (int i = 0; i < FAMILY_NORMS && f->norms[i].hf; i++) {
            const struct family_norm *row = &f->norms[i];
            struct layer_weights *y = &m->layer[k];
            if (!y->norm[row->site].bias || y->norm[row->site].module) continue;
            const char *hf = weight_name(l, "%s%s.%d.%s", l->module_root, layers, k, row->hf);
            const char *gguf = weight_name(l, "blk.%d.%s.weight", k, row->gguf);
            y->norm[row->site].module = add_norm(l, k, hf, gguf, y->norm[row->site].w, y->norm[row->site].bias);
        }
    }
    if (!m->final_norm_bias) return;
    const char *hf = weight_name(l, "%s%s", l->module_root, f->hf_norm ? f->hf_norm : "norm");
    m->final_norm_module = add_norm(l, -1, hf, "output_norm.weight", m->final_norm, m->final_norm_bias);
}

void loader_take_ends(struct loader *l) {
    struct model *m = l->model;
    struct arch *a = &m->arch;
    bool gguf = l->base->kind == BASE_GGUF;
    const struct family *f = l->family;
    int head_segment = SEGMENT_LAYER0 + a->layers;
    m->n_segments = head_segment + 1;
    const char *embed =
        gguf ? "token_embd.weight" : weight_name(l, "%s%s.weight", l->root, f->hf_embed ? f->hf_embed : "embed_tokens");
    struct weight *w = new_weights(l, 1, SEGMENT_EMBED), found = {0};
    if (!w) return;
    if (!matrix(l, embed, a->vocab, a->width, false, &found)) fail(l, "tensor '%s' is missing", embed);
    if (l->failed) return;
    fill(w, found);
    m->embed = w;
    count(l, w, 1);
    const char *norm = gguf ? "output_norm" : weight_name(l, "%s%s", l->root, f->hf_norm ? f->hf_norm : "norm");
    if (f->norms[0].hf) { // families without any norm weights have none here either
        m->final_norm = vector(l, weight_name(l, "%s.weight", norm), 1, a->width, true);
        if (a->norm == NORM_LAYER)
            m->final_norm_bias = vector(l, weight_name(l, "%s.bias", norm), 1, a->width, promised(l, a->norm_bias));
    }
    const char *head = base_find(l->base, "language_model.lm_head.weight", NULL) ? "language_model.lm_head" : "lm_head";
    w = new_weights(l, 1, head_segment);
    if (!w) return;
    bool has = gguf       ? matrix(l, "output.weight", a->vocab, a->width, false, &found)
               : !a->tied ? hf_matrix(l, head, a->vocab, a->width, false, &found)
                          : false;
    if (l->failed) return;
    if (!has && !gguf && !a->tied) {
        fail(l, "tensor '%s.weight' is missing, and config.json does not say that the head is the embedding", head);
        return;
    }
    // Where it is stored anyway, the embedding counts.
    if (!gguf && a->tied) base_find(l->base, weight_name(l, "%s.weight", head), NULL);
    a->tied = !has;
    fill(w, has ? found : *m->embed); // tied: the same bytes as a weight of the head's segment
    m->head = w;
    if (has) count(l, w, 1);
    if (f->head_bias)
        m->head_bias = vector(l, gguf ? "output.bias" : "lm_head.bias", 1, a->vocab, promised(l, a->head_bias));
    add_end(l, MODULE_EMBEDDING, weight_name(l, "%s%s", l->module_root, f->hf_embed ? f->hf_embed : "embed_tokens"),
            "token_embd.weight", m->embed);
    add_end(l, MODULE_HEAD, weight_name(l, "%slm_head", l->head_root), a->tied ? "token_embd.weight" : "output.weight",
            m->head);
}
