// Mixtures of experts on the GPU. Linears of experts: a packed weight is decoded into the workspace, as many experts at
// a time as fit there, and each lot is one grouped product (gpu_grouped.h); the adapters' products are terms of the
// same sums, so that y and dx are written once. Adapters are copied in the activations' type, padded, first.
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/cuda_plan.h"
#include "kernels/cuda/gpu_decode.h"
#include "kernels/cuda/gpu_grouped.h"
#include "kernels/cuda/gpu_moe.h"
#include "kernels/cuda/gpu_moe_rows.h"

#include <string.h>

// --- routing

int cuda_moe_route_forward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cuda_backend *b = cuda_self(backend);
    struct moe_route_space space = moe_route_space_of(call);
    uint8_t *base = cuda_at(b, &call->workspace);
    const float *bias;
    if (cuda_vector(b, call->p.moe.bias, &bias, err)) return -1;
    gpu_moe_route_forward(&b->gpu, call, bias, (int32_t *)(void *)(base + space.counts),
                          (int32_t *)(void *)(base + space.totals));
    return cuda_launched(err);
}

int cuda_moe_route_backward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cuda_backend *b = cuda_self(backend);
    const float *bias;
    if (!tensor_present(&call->grad_in[0])) return 0;
    if (!tensor_present(&call->grad_out[0])) return error_set(err, STATUS_INTERNAL, "no gradient of the weights");
    if (cuda_vector(b, call->p.moe.bias, &bias, err)) return -1;
    gpu_moe_route_backward(&b->gpu, call, bias);
    return cuda_launched(err);
}

int cuda_moe_balance_forward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cuda_backend *b = cuda_self(backend);
    gpu_moe_balance_forward(&b->gpu, call, cuda_at(b, &call->workspace), moe_balance_tokens(call));
    return cuda_launched(err);
}

int cuda_moe_balance_backward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cuda_backend *b = cuda_self(backend);
    if (!tensor_present(&call->grad_in[0])) return 0;
    gpu_moe_balance_backward(&b->gpu, call, cuda_at(b, &call->workspace));
    return cuda_launched(err);
}

// --- rows

#define LAUNCHED(name)                                                                                                 \
    int cuda_##name(struct backend *backend, const struct op_call *call, struct error *err) {                          \
        gpu_##name(&cuda_self(backend)->gpu, call);                                                                    \
        return cuda_launched(err);                                                                                     \
    }
LAUNCHED(moe_gather_forward)
LAUNCHED(moe_combine_forward)
LAUNCHED(gate_forward)
LAUNCHED(mla_keys_forward)
LAUNCHED(mla_keys_backward)

// The others read the gradient of their first output.
#define LAUNCHED_WITH_GRADIENT(name)                                                                                   \
    int cuda_##name(struct backend *backend, const struct op_call *call, struct error *err) {                          \
        if (!tensor_present(&call->grad_out[0])) return error_set(err, STATUS_INTERNAL, "no gradient of the rows");    \
        gpu_##name(&cuda_self(backend)->gpu, call);                                                                    \
        return cuda_launched(err);                                                                                     \
    }
LAUNCHED_WITH_GRADIENT(moe_gather_backward)
LAUNCHED_WITH_GRADIENT(moe_combine_backward)
LAUNCHED_WITH_GRADIENT(gate_backward)

// --- linears

struct experts {
    struct cuda_backend *b;
    const struct op_call *call;
    struct moe_linear_space space;
    uint8_t *base; // of the workspace
    enum dtype dtype;
    size_t size;
    int64_t rows, in;
    struct grouped_rows all;
    struct source {
        bool plain, scattered;
        const uint8_t *first; // plain, not scattered: expert e is at first + e step bytes
        int64_t step;
    } source[LINEAR_MAX_PARTS];
};

struct span {
    int number, part;
    const struct lora_span *lora;
    int64_t rank, padded; // of one expert
};

static int experts_open(struct experts *x, struct backend *backend, const struct op_call *call, bool backward,
                        struct error *err) {
    struct cuda_backend *b = cuda_self(backend);
    *x = (struct experts){.b = b,
                          .call = call,
                          .space = moe_linear_space_of(call, backward),
                          .base = cuda_at(b, &call->workspace),
                          .dtype = call->in[0].dtype,
                          .size = dtype_size(call->in[0].dtype),
                          .rows = call->in[0].rows,
                          .in = call->in[0].cols,
                          .all = {.offsets = cuda_at(b, &call->in[1]),
                                  .offsets_ld = call->in[1].ld,
                                  .rows = call->in[0].rows,
                                  .end = call->p.linear.experts}};
    if (tensor_bytes(&call->workspace) < x->space.bytes) return error_set(err, STATUS_INTERNAL, "workspace too small");
    return 0;
}

static struct span span_of(const struct experts *x, int part, int s) {
    const struct lora_span *lora = &x->call->p.linear.parts[part].spans[s];
    int64_t rank = lora->a.rows / x->call->p.linear.experts;
    return (struct span){part * LINEAR_MAX_SPANS + s, part, lora, rank, moe_padded(rank)};
}

static struct gpu_mask mask_of(const struct experts *x, const struct lora_span *s) {
    const struct tensor *keys = &x->call->in[2];
    if (s->dropout <= 0) return (struct gpu_mask){0};
    return (struct gpu_mask){cuda_at(x->b, keys), keys->ld, cuda_at(x->b, &x->call->scalars), s->module, s->dropout};
}

// --- weights of experts as a term reads them

struct lot { // of one launch: experts [begin, end)
    int begin, end;
};

// Where the experts of a part lie, where none of them has to be decoded. Those at equal distances need no table of
// addresses: any number of them is one launch.
static int source_of(struct experts *x, int part, struct source *out, struct error *err) {
    const struct weight *w = x->call->p.linear.parts[part].w;
    *out = (struct source){.plain = true};
    for (int e = 0; e < x->all.end && out->plain; e++) out->plain = cuda_weight_is_plain(w + e, x->dtype);
    const uint8_t *before = NULL;
    for (int e = 0; e < x->all.end && out->plain; e++) {
        struct weight device;
        struct weight_tables tables;
        if (cuda_weight_on_device(x->b, w + e, &device, &tables, err)) return -1;
        if ((uintptr_t)device.data % x->size)
            return error_set(err, STATUS_INTERNAL, "expert %s lies at an odd address", w[e].name ? w[e].name : "?");
        if (weight_stride(w + e) != weight_stride(w))
            return error_set(err, STATUS_INTERNAL, "experts of one linear with rows of different lengths");
        int64_t step = before ? device.data - before : 0;
        if (e == 0) out->first = device.data;
        if (e == 1) out->step = step;
        out->scattered |= e > 0 && (step != out->step || step <= 0 || step % (int64_t)x->size != 0);
        before = device.data;
    }
    return 0;
}

// Experts from `begin` on that lie on the device one after another, at most to *end, as one weight.
static int run_of(struct experts *x, const struct weight *w, int begin, int *end, struct weight *all,
                  struct weight_tables *tables, struct error *err) {
    if (cuda_weight_on_device(x->b, w + begin, all, tables, err)) return -1;
    bool alone = all->transposed && (all->stride || (all->turned_rows && all->turned_rows != all->rows));
    size_t bytes = all->transposed ? weight_bytes(all) : weight_stride(all) * (size_t)all->rows;
    int e = begin + 1;
    for (; e < *end && !alone; e++) {
        const struct weight *last = &w[e - 1];
        struct weight next;
        struct weight_tables unused;
        if (cuda_weight_on_device(x->b, w + e, &next, &unused, err)) return -1;
        bool alike = next.format == all->format && next.rows == all->rows && next.cols == all->cols &&
                     next.stride == all->stride && next.transposed == all->transposed &&
                     next.turned_rows == all->turned_rows && w[e].tables == w[begin].tables;
        bool follows = w[begin].tables ? next.data == all->data && next.first_row == last->first_row + last->rows
                                       : next.data == all->data + bytes * (size_t)(e - begin);
        if (!alike || !follows) break;
    }
    if (all->transposed && !alone) all->turned_rows = all->rows;
    all->rows *= e - begin;
    *end = e;
    return 0;
}

// The part's weights for the lot's product, decoded where they have to be.
static int frozen(struct experts *x, int part, const struct lot *lot, struct grouped_term *term,
                  struct grouped_product *p, int *tables, struct error *err) {
    const struct source *source = &x->source[part];
    const struct weight *w = x->call->p.linear.parts[part].w;
    struct weight run;
    struct weight_tables run_tables;
    term->table = -1;
    if (!source->plain) {
        uint8_t *to = x->base + x->space.weights[part];
        int64_t elements = w->rows * w->cols;
        for (int e = lot->begin, end; e < lot->end; e = end) {
            end = lot->end;
            if (run_of(x, w, e, &end, &run, &run_tables, err)) return -1;
            gpu_decode(&x->b->gpu, &run, 0, run.rows, to + (size_t)((e - lot->begin) * elements) * x->size, x->dtype,
                       w->cols);
        }
        term->b = to, term->b_ld = w->cols, term->step = elements, term->first = lot->begin;
        return 0;
    }
    term->b_ld = (int64_t)(weight_stride(w) / x->size);
    if (!source->scattered) {
        term->b = source->first, term->step = source->step / (int64_t)x->size, term->first = 0;
        return 0;
    }
    term->table = (*tables)++;
    for (int e = lot->begin; e < lot->end; e++) {
        if (cuda_weight_on_device(x->b, w + e, &run, &run_tables, err)) return -1;
        p->tables[term->table][e - lot->begin] = run.data;
    }
    return 0;
}

// The end of the launch that begins with expert `begin` and reads parts [part, part + n).
static int lot_end(const struct experts *x, int part, int n, int begin) {
    int64_t most = x->space.together[part];
    for (int i = part; i < part + n; i++) {
        if (x->source[i].scattered && most > GROUPED_TABLE) most = GROUPED_TABLE;
    }
    return begin + most < x->all.end ? begin + (int)most : x->all.end;
}

// --- adapters

static void copy_adapters(struct experts *x, bool with_a) {
    for (int i = 0; i < x->call->p.linear.n_parts; i++) {
        for (int k = 0; k < x->call->p.linear.parts[i].n_spans; k++) {
            struct span s = span_of(x, i, k);
            int64_t out = x->call->p.linear.parts[i].w->rows, experts = x->call->p.linear.experts;
            struct grouped_copy a = {.from = cuda_at(x->b, &s.lora->a),
                                     .from_ld = s.lora->a.ld,
                                     .blocks = experts,
                                     .rows = s.rank,
                                     .cols = x->in,
                                     .high = s.rank,
                                     .to_rows = s.padded,
                                     .to_cols = moe_padded(x->in),
                                     .to_step = x->space.width[s.number] * moe_padded(x->in)};
            struct grouped_copy b = {.from = cuda_at(x->b, &s.lora->b),
                                     .from_ld = s.lora->b.ld,
                                     .blocks = experts,
                                     .rows = out,
                                     .cols = s.rank,
                                     .high = out,
                                     .to_rows = out,
                                     .to_cols = s.padded,
                                     .to_step = out * s.padded};
            if (with_a && x->space.shared[s.number] == s.number)
                gpu_grouped_copy(&x->b->gpu, &a, x->base + x->space.a[s.number], x->dtype);
            gpu_grouped_copy(&x->b->gpu, &b, x->base + x->space.b[s.number], x->dtype);
        }
    }
}

// What an adapter sees of x.
static const void *input_of(struct experts *x, const struct span *s, int64_t *ld) {
    const struct tensor *in = &x->call->in[0];
    const void *from = cuda_at(x->b, in);
    *ld = in->ld;
    if (s->lora->dropout <= 0) return from;
    struct gpu_mask mask = mask_of(x, s->lora);
    void *to = x->base + x->space.dropped;
    gpu_drop(&x->b->gpu, &mask, from, x->dtype, in->ld, to, x->in, x->rows, x->in);
    *ld = x->in;
    return to;
}

// The A of all experts: (padded, in) of (width, in) each.
static void term_a(const struct experts *x, const struct span *s, struct grouped_term *term) {
    term->b = x->base + x->space.a[s->number], term->b_ld = moe_padded(x->in), term->table = -1;
    term->step = x->space.width[s->number] * term->b_ld;
}
// The B of all experts, (E, out, padded).
static void term_b(const struct experts *x, const struct span *s, struct grouped_term *term) {
    term->b = x->base + x->space.b[s->number], term->b_ld = s->padded, term->table = -1;
    term->step = x->call->p.linear.parts[s->part].w->rows * s->padded;
}

static struct grouped_product product_of(const struct experts *x, int64_t n) {
    return (struct grouped_product){.dtype = x->dtype, .rows = x->all, .n = n, .scale = 1, .high = x->rows};
}

// U = scale A dropout(x) of a span and its neighbours, also into the saved tensor.
static void down(struct experts *x, const struct span *s) {
    const struct tensor *saved = &x->call->saved[0];
    struct grouped_product p = product_of(x, x->space.width[s->number]);
    struct grouped_term *t = &p.term[p.n_terms++];
    t->k = x->in;
    t->a = input_of(x, s, &t->a_ld);
    term_a(x, s, t);
    p.scale = s->lora->scale, p.low = s->lora->row_begin, p.high = s->lora->row_end;
    p.c = x->base + x->space.u[s->number], p.ldc = p.n;
    if (tensor_present(saved)) {
        p.f = (float *)cuda_at(x->b, saved) + s->lora->u_begin, p.ldf = saved->ld;
        for (int i = 0; i < x->call->p.linear.n_parts; i++) {
            for (int k = 0; k < x->call->p.linear.parts[i].n_spans; k++) {
                struct span other = span_of(x, i, k);
                int64_t end = other.lora->u_begin + other.rank - s->lora->u_begin;
                if (x->space.lead[other.number] == s->number && end > p.f_cols) p.f_cols = end;
            }
        }
    }
    gpu_grouped(&x->b->gpu, &p);
}

static int part_forward(struct experts *x, int i, struct error *err) {
    const struct linear_part *part = &x->call->p.linear.parts[i];
    struct grouped_product p = product_of(x, part->w->rows);
    if (source_of(x, i, &x->source[i], err)) return -1;
    p.c = cuda_at(x->b, &x->call->out[i]), p.ldc = x->call->out[i].ld;
    if (cuda_vector(x->b, part->bias, &p.bias, err)) return -1;
    struct grouped_term *w = &p.term[p.n_terms++];
    w->a = cuda_at(x->b, &x->call->in[0]), w->a_ld = x->call->in[0].ld, w->k = x->in;
    for (int k = 0; k < part->n_spans; k++) {
        struct span s = span_of(x, i, k);
        struct grouped_term *t = &p.term[p.n_terms++];
        t->a = x->base + x->space.u[s.number], t->a_ld = x->space.width[s.number], t->k = s.padded;
        term_b(x, &s, t);
    }
    for (int begin = 0, end; begin < x->all.end; begin = end) {
        int tables = 0;
        end = lot_end(x, i, 1, begin);
        p.rows.begin = begin, p.rows.end = end;
        if (frozen(x, i, &(struct lot){begin, end}, w, &p, &tables, err)) return -1;
        gpu_grouped(&x->b->gpu, &p);
    }
    return 0;
}

int cuda_moe_linear_group_forward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct experts x;
    if (experts_open(&x, backend, call, false, err)) return -1;
    copy_adapters(&x, true);
    for (int i = 0; i < call->p.linear.n_parts; i++) {
        for (int k = 0; k < call->p.linear.parts[i].n_spans; k++) {
            struct span s = span_of(&x, i, k);
            if (x.space.lead[s.number] == s.number) down(&x, &s);
        }
        if (part_forward(&x, i, err)) return -1;
    }
    return cuda_launched(err);
}

// --- backward

// V = scale dY B; dB += dY^T U; dA += V^T dropout(x).
static int span_backward(struct experts *x, const struct span *s, struct error *err) {
    const struct tensor *dy = &x->call->grad_out[s->part], *saved = &x->call->saved[0], *db = &s->lora->db,
                        *da = &s->lora->da;
    int64_t out = x->call->p.linear.parts[s->part].w->rows;
    struct grouped_product p = product_of(x, s->padded);
    struct grouped_term *t = &p.term[p.n_terms++];
    t->a = cuda_at(x->b, dy), t->a_ld = dy->ld, t->k = out;
    term_b(x, s, t);
    p.b_turned = true, p.scale = s->lora->scale, p.low = s->lora->row_begin, p.high = s->lora->row_end;
    p.c = x->base + x->space.v[s->number], p.ldc = s->padded;
    gpu_grouped(&x->b->gpu, &p);
    if (!tensor_present(db)) return 0;
    if (!tensor_present(saved)) return error_set(err, STATUS_INTERNAL, "no saved U of an adapter that is trained");
    void *u = x->base + x->space.u[s->number];
    struct grouped_copy copy = {.from = (const float *)cuda_at(x->b, saved) + s->lora->u_begin,
                                .from_ld = saved->ld,
                                .blocks = 1,
                                .rows = x->rows,
                                .cols = s->rank,
                                .low = s->lora->row_begin,
                                .high = s->lora->row_end,
                                .to_rows = x->rows,
                                .to_cols = s->padded};
    gpu_grouped_copy(&x->b->gpu, &copy, u, x->dtype);
    struct grouped_gradient g = {.dtype = x->dtype, .rows = x->all, .n = s->rank, .b_ld = s->padded};
    g.m = out, g.a = cuda_at(x->b, dy), g.a_ld = dy->ld, g.b = u;
    g.g = cuda_at(x->b, db), g.step = out * db->ld, g.row_step = db->ld, g.col_step = 1;
    gpu_grouped_gradient(&x->b->gpu, &g);
    g.m = x->in, g.a = input_of(x, s, &g.a_ld), g.b = x->base + x->space.v[s->number];
    g.g = cuda_at(x->b, da), g.step = s->rank * da->ld, g.row_step = 1, g.col_step = da->ld;
    gpu_grouped_gradient(&x->b->gpu, &g);
    return 0;
}

// dx [+]= sum of dY W over the parts, plus mask V A over the spans, in launches of so many terms as fit.
static int lot_backward(struct experts *x, const struct lot *lot, struct error *err) {
    const struct tensor *dx = &x->call->grad_in[0];
    struct grouped_product p = product_of(x, x->in);
    int tables = 0, n_parts = x->call->p.linear.n_parts;
    p.b_turned = true, p.c = cuda_at(x->b, dx), p.ldc = dx->ld, p.acc = x->call->acc[0];
    p.rows.begin = lot->begin, p.rows.end = lot->end;
    for (int i = 0; i < n_parts; i++) {
        const struct tensor *dy = &x->call->grad_out[i];
        if (!tensor_present(dy)) continue;
        struct grouped_term *t = &p.term[p.n_terms++];
        t->a = cuda_at(x->b, dy), t->a_ld = dy->ld, t->k = x->call->p.linear.parts[i].w->rows;
        if (frozen(x, i, lot, t, &p, &tables, err)) return -1;
    }
    for (int i = 0; i < n_parts; i++) {
        if (!tensor_present(&x->call->grad_out[i])) continue;
        for (int k = 0; k < x->call->p.linear.parts[i].n_spans; k++) {
            if (p.n_terms == GROUPED_TERMS) {
                gpu_grouped(&x->b->gpu, &p);
                p.n_terms = 0, p.acc = true;
                memset(p.term, 0, sizeof p.term);
            }
            struct span s = span_of(x, i, k);
            struct grouped_term *t = &p.term[p.n_terms++];
            t->a = x->base + x->space.v[s.number], t->a_ld = t->k = s.padded, t->mask = mask_of(x, s.lora);
            term_a(x, &s, t);
        }
    }
    gpu_grouped(&x->b->gpu, &p);
    return 0;
}

int cuda_moe_linear_group_backward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct experts x;
    if (experts_open(&x, backend, call, true, err)) return -1;
    bool through = tensor_present(&call->grad_in[0]);
    copy_adapters(&x, through);
    for (int i = 0; i < call->p.linear.n_parts; i++) {
        if (!tensor_present(&call->grad_out[i])) continue;
        for (int k = 0; k < call->p.linear.parts[i].n_spans; k++) {
            struct span s = span_of(&x, i, k);
            if (span_backward(&x, &s, err)) return -1;
        }
    }
    for (int i = 0; i < call->p.linear.n_parts && through; i++) {
        if (source_of(&x, i, &x.source[i], err)) return -1;
    }
    for (int begin = 0, end; begin < x.all.end && through; begin = end) {
        end = lot_end(&x, 0, call->p.linear.n_parts, begin);
        if (lot_backward(&x, &(struct lot){begin, end}, err)) return -1;
    }
    return cuda_launched(err);
}
