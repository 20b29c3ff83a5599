// One layer of any family: see decoder_layer.h. The residual stream is carried as (s, y): s the sum so far, y its norm
// for whatever reads it next, so that where a norm follows an addition both are one op and a layer's only kept value
// is s.
#include "model/decoder_layer.h"

#include <assert.h>

static int record(struct build *b, enum op op, const int *in, int n_in, const union op_params *p, int *out) {
    return tape_record(b->d->tape, op, in, n_in, p, out, b->err);
}

// --- norms and sums

struct norm_at layer_norm_at(const struct build *b, int layer, enum norm_site site) {
    const struct arch *a = &b->d->model->arch;
    const struct layer_arch *y = &a->layer[layer];
    const struct layer_weights *w = &b->d->model->layer[layer];
    struct norm_at n = {.present = layer_has_norm(y, site),
                        .plus_one = a->norm_plus_one,
                        .kind = a->norm,
                        .w = w->norm[site].w,
                        .bias = w->norm[site].bias,
                        .module = w->norm[site].module,
                        .eps = a->norm_eps,
                        .groups = 1};
    if (site == NORM_Q && !y->qk_whole) n.groups = y->heads;
    if (site == NORM_K && !y->qk_whole) n.groups = y->kv_heads;
    if (site == NORM_Q_LATENT || site == NORM_KV_LATENT) n.eps = a->latent.norm_eps;
    return n;
}

struct norm_at final_norm_at(const struct build *b) {
    const struct arch *a = &b->d->model->arch;
    return (struct norm_at){.present = true,
                            .plus_one = a->norm_plus_one,
                            .kind = a->norm,
                            .w = b->d->model->final_norm,
                            .bias = b->d->model->final_norm_bias,
                            .module = b->d->model->final_norm_module,
                            .eps = a->norm_eps,
                            .groups = 1};
}

// A bias in place of the base's, of the adapter that acts on all rows of the pass.
static int norm_bias(const struct build *b, const struct norm_at *n, int64_t rows, union op_params *p) {
    for (int i = 0; n->module && i < b->pass->n_spans; i++) {
        const struct pass_span *span = &b->pass->spans[i];
        if (span->adapter < 0 || span->row_begin == span->row_end) continue;
        const struct slot_adapter *a = &b->d->slots[n->module->id].adapters[span->adapter];
        if (!tensor_present(&a->bias)) continue;
        if (span->row_begin != 0 || span->row_end != rows)
            return error_set(b->err, STATUS_INTERNAL, "a bias of %s for some rows only", n->module->hf_name);
        p->norm.own_bias = a->bias;
        if (b->pass->gradients) p->norm.dbias = a->dbias;
    }
    return 0;
}

static int norm_params(const struct build *b, const struct norm_at *n, int64_t rows, union op_params *out) {
    *out = (union op_params){.norm = {.kind = n->kind,
                                      .w = n->w,
                                      .bias = n->bias,
                                      .eps = n->eps,
                                      .groups = n->groups,
                                      .plus_one = n->plus_one,
                                      .scale = 1}};
    return norm_bias(b, n, rows, out);
}

int build_norm(struct build *b, int x, const struct norm_at *norm, int *y) {
    union op_params p;
    int out[OP_MAX_OUT];
    if (norm_params(b, norm, tape_tensor(b->d->tape, x).rows, &p)) return -1;
    if (record(b, OP_NORM, &x, 1, &p, out)) return -1;
    *y = out[0];
    return 0;
}

// s += x, after a norm of x where the layer has one; y = the norm of s that follows, or s itself.
static int add(struct build *b, int layer, enum norm_site after, int x, const struct norm_at *next) {
    float scale = b->d->model->arch.residual_scale;
    struct norm_at own = layer_norm_at(b, layer, after);
    int out[OP_MAX_OUT];
    if (own.present && build_norm(b, x, &own, &x)) return -1;
    if (!next || !next->present) {
        union op_params p = {.add = {.scale = scale}};
        if (record(b, OP_ADD, (int[]){b->s, x}, 2, &p, out)) return -1;
        b->s = b->y = out[0];
        return 0;
    }
    union op_params p;
    if (norm_params(b, next, tape_tensor(b->d->tape, x).rows, &p)) return -1;
    p.norm.scale = scale;
    if (record(b, OP_ADD_NORM, (int[]){b->s, x}, 2, &p, out)) return -1;
    b->s = out[0];
    b->y = out[1];
    return 0;
}

// --- linears

// The columns of U an adapter's A has in the running node: parts that share it share them.
struct ranks {
    int64_t columns;
    int n;
    struct {
        int module, adapter;
        int64_t begin;
    } seen[LINEAR_MAX_PARTS * LINEAR_MAX_SPANS];
};

// `adapter`: its number; of the pair it subtracts, -1 - number.
static int64_t rank_columns(struct ranks *r, int module, int adapter, int64_t rank) {
    for (int i = 0; i < r->n; i++) {
        if (r->seen[i].module == module && r->seen[i].adapter == adapter) return r->seen[i].begin;
    }
    int64_t begin = r->columns;
    r->seen[r->n].module = module, r->seen[r->n].adapter = adapter, r->seen[r->n++].begin = begin;
    r->columns += rank;
    return begin;
}

// Rows of a B (or its gradient) that belong to one part of a module.
static struct tensor part_rows(struct tensor b, const struct module *m, const struct module_part *part) {
    if (!tensor_present(&b)) return b;
    return tensor_rows(b, m->experts * part->first_row, m->experts * (part->first_row + part->rows));
}

// The adapters that act on one linear in this pass.
static void fill_part(const struct build *b, const struct linear *linear, struct linear_part *part,
                      struct ranks *ranks) {
    *part = (struct linear_part){.w = linear->w, .bias = linear->bias};
    for (int i = 0; i < b->pass->n_spans * linear->n_modules; i++) {
        const struct pass_span *span = &b->pass->spans[i / linear->n_modules];
        const struct module *m = &b->d->model->modules[linear->on[i % linear->n_modules].module];
        if (span->adapter < 0 || span->row_begin == span->row_end) continue;
        const struct slot_adapter *a = &b->d->slots[m->id].adapters[span->adapter];
        if (!tensor_present(&a->a)) continue;
        const struct module_part *own = &m->parts[linear->on[i % linear->n_modules].part];
        int64_t times = m->experts > 1 ? b->d->model->arch.moe.route.used : 1; // rows of a token among the experts'
        assert(part->n_spans + 1 + (tensor_present(&a->a0) ? 1 : 0) <= LINEAR_MAX_SPANS);
        part->spans[part->n_spans++] = (struct lora_span){
            .row_begin = span->row_begin * times,
            .row_end = span->row_end * times,
            .a = a->a,
            .b = part_rows(a->b, m, own),
            .da = b->pass->gradients ? a->da : (struct tensor){0},
            .db = b->pass->gradients ? part_rows(a->db, m, own) : (struct tensor){0},
            .scale = a->scale,
            .dropout = b->pass->training ? a->dropout : 0.0f,
            .module = (uint32_t)m->id,
            .u_begin = rank_columns(ranks, m->id, span->adapter, a->b.cols),
        };
        if (!tensor_present(&a->a0)) continue;
        part->spans[part->n_spans++] = (struct lora_span){
            .row_begin = span->row_begin,
            .row_end = span->row_end,
            .a = a->a0,
            .b = part_rows(a->b0, m, own),
            .scale = -a->scale,
            .module = (uint32_t)m->id,
            .u_begin = rank_columns(ranks, m->id, -1 - span->adapter, a->b0.cols),
        };
    }
}

static struct tensor part_columns(struct tensor t, const struct module_part *part) {
    return tensor_present(&t) ? tensor_cols(t, part->first_row, part->first_row + part->rows) : t;
}

// What the pass's adapter does to the columns of a linear's output; *acts = anything. One adapter for all rows.
static int fill_columns(const struct build *b, const struct linear *linear, int64_t rows, union op_params *p,
                        bool *acts) {
    *p = (union op_params){.columns = {.bias = linear->bias}};
    *acts = false;
    for (int i = 0; i < b->pass->n_spans * linear->n_modules; i++) {
        const struct pass_span *span = &b->pass->spans[i / linear->n_modules];
        int k = i % linear->n_modules;
        const struct module *m = &b->d->model->modules[linear->on[k].module];
        if (span->adapter < 0 || span->row_begin == span->row_end) continue;
        const struct slot_adapter *a = &b->d->slots[m->id].adapters[span->adapter];
        const struct module_part *own = &m->parts[linear->on[k].part];
        if (!tensor_present(&a->magnitude) && !tensor_present(&a->bias)) continue;
        if (span->row_begin != 0 || span->row_end != rows)
            return error_set(b->err, STATUS_INTERNAL, "a magnitude or bias on %s for some rows only", m->hf_name);
        *acts = true;
        p->columns.magnitude = part_columns(a->magnitude, own), p->columns.norms = part_columns(a->norms, own);
        p->columns.own_bias = part_columns(a->bias, own);
        if (!b->pass->gradients) continue;
        p->columns.dmagnitude = part_columns(a->dmagnitude, own), p->columns.dbias = part_columns(a->dbias, own);
    }
    return 0;
}

// DoRA with dropout, as PEFT has it: the base inside the magnitude reads the dropped inputs d, too, so that
// y = m / n (W d + scale B A d) + W (x - d) + b.
static int dropped_dora(struct build *b, struct linear_part *part, const union op_params *columns, int x, int *y) {
    union op_params p = {.dropout = {.p = part->spans[0].dropout, .module = part->spans[0].module}};
    int d[OP_MAX_OUT], z[OP_MAX_OUT], rest[OP_MAX_OUT];
    if (record(b, OP_DROPOUT, (int[]){x, b->keys}, 2, &p, d)) return -1;
    p = (union op_params){.linear = {.n_parts = 1, .parts = {*part}}};
    p.linear.parts[0].spans[0].dropout = 0;
    if (record(b, OP_LINEAR_GROUP, (int[]){d[0], b->keys}, 2, &p, z) || record(b, OP_COLUMNS, z, 1, columns, z))
        return -1;
    p = (union op_params){.linear = {.n_parts = 1, .parts = {{.w = part->w}}}};
    if (record(b, OP_LINEAR_GROUP, (int[]){d[1], b->keys}, 2, &p, rest)) return -1;
    p = (union op_params){.add = {.scale = 1}};
    if (record(b, OP_ADD, (int[]){z[0], rest[0]}, 2, &p, d)) return -1;
    *y = d[0];
    return 0;
}

// y_i = x W_i^T + adapters, for the linears `kinds` of layer `l`, which all read x.
static int linears(struct build *b, int l, const enum linear_kind *kinds, int n, int x, int *out) {
    union op_params p = {0}, columns[LINEAR_MAX_PARTS];
    bool acts[LINEAR_MAX_PARTS];
    int place[LINEAR_MAX_PARTS], y[OP_MAX_OUT];
    struct ranks ranks = {0};
    int64_t rows = tape_tensor(b->d->tape, x).rows;
    for (int i = 0; i < n; i++) {
        const struct linear *linear = &b->d->model->layer[l].linear[kinds[i]];
        struct linear_part part;
        struct ranks own = {0};
        fill_part(b, linear, &part, &own);
        if (fill_columns(b, linear, rows, &columns[i], &acts[i])) return -1;
        if (acts[i]) part.bias = NULL; // added after the magnitude
        place[i] = -1;
        if (tensor_present(&columns[i].columns.magnitude) && part.n_spans == 1 && part.spans[0].dropout > 0) {
            if (dropped_dora(b, &part, &columns[i], x, &out[i])) return -1;
            continue;
        }
        place[i] = p.linear.n_parts++;
        fill_part(b, linear, &p.linear.parts[place[i]], &ranks);
        if (acts[i]) p.linear.parts[place[i]].bias = NULL;
    }
    if (p.linear.n_parts && record(b, OP_LINEAR_GROUP, (int[]){x, b->keys}, 2, &p, y)) return -1;
    for (int i = 0; i < n; i++) {
        int z[OP_MAX_OUT];
        if (place[i] < 0) continue;
        out[i] = y[place[i]];
        if (!acts[i]) continue;
        if (record(b, OP_COLUMNS, &out[i], 1, &columns[i], z)) return -1;
        out[i] = z[0];
    }
    return 0;
}
static int linear(struct build *b, int l, enum linear_kind kind, int x, int *out) {
    int outs[OP_MAX_OUT];
    if (linears(b, l, &kind, 1, x, outs)) return -1;
    *out = outs[0];
    return 0;
}

// --- attention

struct qkv {
    int q, k, v;
};

static int clip(struct build *b, float limit, int *x) {
    union op_params p = {.act = {.kind = ACT_CLAMP, .limit = limit}};
    int out[OP_MAX_OUT];
    if (limit == 0) return 0;
    if (record(b, OP_ACT, x, 1, &p, out)) return -1;
    *x = out[0];
    return 0;
}

static int qk_norms(struct build *b, int l, struct qkv *x) {
    struct norm_at q = layer_norm_at(b, l, NORM_Q), k = layer_norm_at(b, l, NORM_K);
    if (q.present && build_norm(b, x->q, &q, &x->q)) return -1;
    return k.present ? build_norm(b, x->k, &k, &x->k) : 0;
}

// Turns the heads of x (and of `other`, where not -1) by rope `number`.
static int turn(struct build *b, int number, int head_dim, int first, int *x, int *other) {
    const struct rope_arch *r = &b->d->model->arch.rope[number];
    union op_params p = {
        .rope = {.kind = r->kind, .head_dim = head_dim, .rotary_dim = r->rotary_dim, .first = first + r->first}};
    int out[OP_MAX_OUT];
    if (record(b, OP_ROPE, (int[]){*x, other ? *other : -1, b->positions, b->rope[number]}, 4, &p, out)) return -1;
    *x = out[0];
    if (other) *other = out[1];
    return 0;
}

static int turn_both(struct build *b, const struct layer_arch *a, struct qkv *x) {
    if (a->rope_q == a->rope_k && a->rope_q != ROPE_NONE) return turn(b, a->rope_q, a->head_dim, 0, &x->q, &x->k);
    if (a->rope_q != ROPE_NONE && turn(b, a->rope_q, a->head_dim, 0, &x->q, NULL)) return -1;
    return a->rope_k != ROPE_NONE ? turn(b, a->rope_k, a->head_dim, 0, &x->k, NULL) : 0;
}

static int project(struct build *b, int l, struct qkv *x) {
    static const enum linear_kind kinds[] = {LINEAR_Q, LINEAR_K, LINEAR_V};
    const struct layer_arch *a = &b->d->model->arch.layer[l];
    int out[OP_MAX_OUT];
    if (linears(b, l, kinds, 3, b->y, out)) return -1;
    *x = (struct qkv){out[0], out[1], out[2]};
    if (clip(b, a->clip_qkv, &x->q) || clip(b, a->clip_qkv, &x->k) || clip(b, a->clip_qkv, &x->v)) return -1;
    if (!a->qk_after_rope && qk_norms(b, l, x)) return -1;
    if (turn_both(b, a, x)) return -1;
    return a->qk_after_rope ? qk_norms(b, l, x) : 0;
}

// Latent attention: queries and keys-and-values are projected down, normed, and up again; a part of each key that all
// heads share is turned on its own.
static int project_latent(struct build *b, int l, struct qkv *x) {
    const struct arch *arch = &b->d->model->arch;
    const struct layer_arch *a = &arch->layer[l];
    const struct latent_arch *m = &arch->latent;
    enum linear_kind kinds[] = {m->q_rank > 0 ? LINEAR_Q_A : LINEAR_Q, LINEAR_KV_A, LINEAR_K_ROPE};
    static const enum linear_kind both[] = {LINEAR_K_B, LINEAR_V_B};
    int out[OP_MAX_OUT], kv;
    if (linears(b, l, kinds, 3, b->y, out)) return -1;
    int rest = out[2];
    x->q = out[0];
    struct norm_at q_norm = layer_norm_at(b, l, NORM_Q_LATENT), kv_norm = layer_norm_at(b, l, NORM_KV_LATENT);
    if (m->q_rank > 0 && (build_norm(b, x->q, &q_norm, &x->q) || linear(b, l, LINEAR_Q_B, x->q, &x->q))) return -1;
    if (build_norm(b, out[1], &kv_norm, &kv)) return -1;
    if (m->split ? linears(b, l, both, 2, kv, out) : linear(b, l, LINEAR_KV_B, kv, out)) return -1;
    if (turn(b, a->rope_q, a->head_dim, m->nope, &x->q, NULL) || turn(b, a->rope_k, m->rope, 0, &rest, NULL)) return -1;
    union op_params p = {.mla = {.heads = a->heads, .nope = m->nope, .v_dim = m->split ? 0 : a->v_dim}};
    x->v = out[1];
    if (record(b, OP_MLA_KEYS, (int[]){out[0], rest}, 2, &p, out)) return -1;
    x->k = out[0];
    if (!m->split) x->v = out[1];
    return 0;
}

// Keys and values of the new rows go into the layer's cache, which attention then reads.
static int cache_write(struct build *b, int l, struct qkv *x) {
    struct decoder *d = b->d;
    struct op_call call = {
        .op = OP_KV_WRITE,
        .in = {tape_tensor(d->tape, x->k), tape_tensor(d->tape, x->v), tape_tensor(d->tape, b->slot_rows)},
        .out = {d->cache_k[l], d->cache_v[l]},
    };
    if (device_forward(d->device, &call, b->err)) return -1;
    x->k = tape_input(d->tape, d->cache_k[l], b->err);
    x->v = tape_input(d->tape, d->cache_v[l], b->err);
    return x->k < 0 || x->v < 0 ? -1 : 0;
}

static int attention(struct build *b, int l, int *out) {
    const struct arch *arch = &b->d->model->arch;
    const struct layer_arch *a = &arch->layer[l];
    struct qkv x;
    int o[OP_MAX_OUT];
    if (arch->latent.kv_rank > 0 ? project_latent(b, l, &x) : project(b, l, &x)) return -1;
    if (b->cached && cache_write(b, l, &x)) return -1;
    union op_params p = {.attention = {.heads = a->heads,
                                       .kv_heads = a->kv_heads,
                                       .head_dim = a->head_dim,
                                       .v_dim = a->v_dim,
                                       .scale = a->attention_scale,
                                       .soft_cap = a->soft_cap,
                                       .window = a->window,
                                       .chunk = a->chunk,
                                       .sinks = b->d->model->layer[l].sinks,
                                       .max_seqs = b->max_seqs}};
    if (record(b, OP_ATTENTION, (int[]){x.q, x.k, x.v, b->seqs}, 4, &p, o)) return -1;
    return linear(b, l, LINEAR_O, o[0], out);
}

// --- MLP

static int gated(struct build *b, int l, enum linear_kind gate, enum act_kind act, int x, int *out) {
    enum linear_kind kinds[] = {gate, gate + 1};
    int two[OP_MAX_OUT], h[OP_MAX_OUT];
    if (linears(b, l, kinds, 2, x, two)) return -1;
    union op_params p = {.act = {.kind = act}};
    if (record(b, OP_GLU, two, 2, &p, h)) return -1;
    return linear(b, l, gate + 2, h[0], out);
}

static int dense(struct build *b, int l, int x, int *out) {
    const struct layer_arch *a = &b->d->model->arch.layer[l];
    int h[OP_MAX_OUT];
    if (a->glu) return gated(b, l, LINEAR_GATE, a->act, x, out);
    union op_params p = {.act = {.kind = a->act}};
    if (linear(b, l, LINEAR_UP, x, h) || record(b, OP_ACT, h, 1, &p, h)) return -1;
    return linear(b, l, LINEAR_DOWN, h[0], out);
}

// Rows that are sorted by expert cannot belong to different adapters: one adapter, or none, acts on all of them.
static int check_spans(const struct build *b) {
    const struct pass *pass = b->pass;
    int64_t rows = tape_tensor(b->d->tape, b->y).rows;
    if (pass->n_spans == 0) return 0;
    if (pass->n_spans == 1 && pass->spans[0].row_begin == 0 && pass->spans[0].row_end == rows) return 0;
    return error_set(b->err, STATUS_INTERNAL, "adapters on some rows only, in a mixture of experts");
}

static int experts(struct build *b, int l, const enum linear_kind *kinds, int n, const int *in, int *out) {
    union op_params p = {.linear = {.n_parts = n, .experts = b->d->model->arch.moe.experts}};
    struct ranks ranks = {0};
    for (int i = 0; i < n; i++) fill_part(b, &b->d->model->layer[l].linear[kinds[i]], &p.linear.parts[i], &ranks);
    return record(b, OP_MOE_LINEAR_GROUP, in, 3, &p, out);
}

static int shared_expert(struct build *b, int l, int x, int *out) {
    const struct moe_arch *m = &b->d->model->arch.moe;
    int gate, y[OP_MAX_OUT];
    if (gated(b, l, LINEAR_SHARED_GATE, m->act, x, out)) return -1;
    if (!m->shared_gate) return 0;
    if (linear(b, l, LINEAR_SHARED_ROUTER, x, &gate) ||
        record(b, OP_GATE, (int[]){*out, gate}, 2, &(union op_params){0}, y)) {
        return -1;
    }
    *out = y[0];
    return 0;
}

// The load-balancing loss looks at the logits on their way.
static int balance(struct build *b, int l, int *logits) {
    const struct arch *a = &b->d->model->arch;
    int out[OP_MAX_OUT];
    if (!b->pass->gradients || b->pass->balance == 0) return 0;
    union op_params p = {.balance = {.sums = b->d->balance, .used = a->moe.route.used, .weight = b->pass->balance}};
    for (int i = 0; i < l; i++) p.balance.row += a->layer[i].moe;
    if (record(b, OP_MOE_BALANCE, (int[]){*logits, b->lengths}, 2, &p, out)) return -1;
    *logits = out[0];
    return 0;
}

// Rows go to the experts they chose, sorted by expert, and come back as a weighted sum.
static int mixture(struct build *b, int l, int x, int *out) {
    static const enum linear_kind both[] = {LINEAR_EXPERT_GATE, LINEAR_EXPERT_UP}, down[] = {LINEAR_EXPERT_DOWN};
    const struct moe_arch *m = &b->d->model->arch.moe;
    if (check_spans(b)) return -1;
    int logits, r[OP_MAX_OUT], g[OP_MAX_OUT], two[OP_MAX_OUT], h[OP_MAX_OUT], y[OP_MAX_OUT];
    union op_params p = {.moe = m->route};
    p.moe.bias = b->d->model->layer[l].router_bias;
    if (linear(b, l, LINEAR_ROUTER, x, &logits) || balance(b, l, &logits) ||
        record(b, OP_MOE_ROUTE, &logits, 1, &p, r)) {
        return -1;
    }
    int weights = r[0], map = r[1], offsets = r[2];
    p = (union op_params){.moe_rows = {.used = m->route.used}};
    if (record(b, OP_MOE_GATHER, (int[]){x, m->scale_input ? weights : -1, map, b->keys}, 4, &p, g)) return -1;
    if (experts(b, l, both, m->interleaved ? 1 : 2, (int[]){g[0], offsets, g[1]}, two)) return -1;
    union op_params act = {.act = {.kind = m->act, .limit = m->limit, .alpha = m->alpha}};
    if (record(b, OP_GLU, (int[]){two[0], m->interleaved ? -1 : two[1]}, 2, &act, h)) return -1;
    if (experts(b, l, down, 1, (int[]){h[0], offsets, g[1]}, y)) return -1;
    if (record(b, OP_MOE_COMBINE, (int[]){y[0], m->scale_input ? -1 : weights, map}, 3, &p, y)) return -1;
    *out = y[0];
    if (m->shared_ffn == 0) return 0;
    int more;
    if (shared_expert(b, l, x, &more)) return -1;
    p = (union op_params){.add = {.scale = 1}};
    if (record(b, OP_ADD, (int[]){*out, more}, 2, &p, y)) return -1;
    *out = y[0];
    return 0;
}

int build_layer(struct build *b, int l, const struct norm_at *next) {
    const struct arch *arch = &b->d->model->arch;
    struct norm_at inner = layer_norm_at(b, l, NORM_MLP);
    int x = b->y, a, m;
    if (attention(b, l, &a)) return -1;
    if (!arch->parallel && add(b, l, NORM_ATTENTION_OUT, a, &inner)) return -1;
    if (arch->parallel) { // the MLP reads what attention read
        if (add(b, l, NORM_ATTENTION_OUT, a, NULL)) return -1;
        b->y = x;
    }
    if (arch->layer[l].moe ? mixture(b, l, b->y, &m) : dense(b, l, b->y, &m)) return -1;
    return add(b, l, NORM_MLP_OUT, m, next);
}
