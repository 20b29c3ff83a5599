// The op table, the shape rules and the operation counts: see ops.h.
#include "kernels/ops.h"
#include "kernels/error.h"

#include <stdio.h>

#define NEVER                                                                                                          \
    { -1, -1, -1, -1, -1, -1 }

const struct op_info op_table[OP_COUNT] = {
    [OP_NONE] = {.name = "none", .grad_takes_out = NEVER},
    // Backward reads the ids to know whose rows the gradients of a trained table are.
    [OP_EMBED] = {.name = "embed", .n_in = 2, .n_out = 1, .needs_in = 1, .grad_takes_out = NEVER, .recorded = true},
    [OP_NORM] = {.name = "norm",
                 .n_in = 1,
                 .n_out = 1,
                 .n_saved = 2,
                 .needs_in = 1,
                 .differentiable = 1,
                 .cheap = true,
                 .grad_takes_out = NEVER,
                 .recorded = true},
    // The sum s is kept: backward and the recomputation of y read it.
    [OP_ADD_NORM] = {.name = "add_norm",
                     .n_in = 2,
                     .n_out = 2,
                     .n_saved = 2,
                     .needs_out = 1,
                     .differentiable = 3,
                     .cheap = true,
                     .grad_takes_out = {0, 0, -1, -1, -1, -1},
                     .recorded = true},
    [OP_LINEAR_GROUP] = {.name = "linear_group",
                         .n_in = 2,
                         .n_out = 4,
                         .n_saved = 1,
                         .needs_in = 3,
                         .differentiable = 1,
                         .grad_takes_out = NEVER,
                         .recorded = true},
    [OP_ROPE] = {.name = "rope",
                 .n_in = 4,
                 .n_out = 2,
                 .optional_in = 2,
                 .needs_in = 12, // positions and table; not q and k, which are overwritten
                 .differentiable = 3,
                 .in_place = true,
                 .grad_takes_out = {0, 1, -1, -1, -1, -1},
                 .recorded = true},
    [OP_GLU] = {.name = "glu",
                .n_in = 2,
                .n_out = 1,
                .optional_in = 2,
                .needs_in = 3,
                .differentiable = 3,
                .cheap = true,
                .grad_over_in = 3,
                .grad_takes_out = NEVER,
                .recorded = true},
    [OP_ACT] = {.name = "act",
                .n_in = 1,
                .n_out = 1,
                .needs_in = 1,
                .differentiable = 1,
                .cheap = true,
                .grad_over_in = 1,
                .grad_takes_out = NEVER,
                .recorded = true},
    [OP_ATTENTION] = {.name = "attention",
                      .n_in = 4,
                      .n_out = 1,
                      .n_saved = 1,
                      .needs_in = 15,
                      .needs_out = 1,
                      .differentiable = 7,
                      .grad_takes_out = NEVER,
                      .recorded = true},
    [OP_ADD] = {.name = "add",
                .n_in = 2,
                .n_out = 1,
                .differentiable = 3,
                .grad_takes_out = {0, 0, -1, -1, -1, -1},
                .recorded = true},
    [OP_GATE] = {.name = "gate",
                 .n_in = 2,
                 .n_out = 1,
                 .needs_in = 3,
                 .differentiable = 3,
                 .cheap = true,
                 .grad_takes_out = NEVER,
                 .recorded = true},
    [OP_MLA_KEYS] = {.name = "mla_keys",
                     .n_in = 2,
                     .n_out = 2,
                     .differentiable = 3,
                     .cheap = true,
                     .grad_takes_out = NEVER,
                     .recorded = true},
    // Backward chooses again from the logits, which are few. Map and offsets are numbers of rows: no gradient.
    [OP_MOE_ROUTE] = {.name = "moe_route",
                      .n_in = 1,
                      .n_out = 3,
                      .needs_in = 1,
                      .differentiable = 1,
                      .grad_takes_out = NEVER,
                      .recorded = true},
    // The logits pass through: what backward reads of them is what stands there.
    [OP_MOE_BALANCE] = {.name = "moe_balance",
                        .n_in = 2,
                        .n_out = 1,
                        .needs_in = 2,
                        .needs_out = 1,
                        .differentiable = 1,
                        .in_place = true,
                        .grad_takes_out = {0, -1, -1, -1, -1, -1},
                        .recorded = true},
    [OP_MOE_GATHER] = {.name = "moe_gather",
                       .n_in = 4,
                       .n_out = 2,
                       .optional_in = 2,
                       .needs_in = 7,
                       .differentiable = 3,
                       .cheap = true,
                       .grad_takes_out = NEVER,
                       .recorded = true},
    [OP_MOE_LINEAR_GROUP] = {.name = "moe_linear_group",
                             .n_in = 3,
                             .n_out = 4,
                             .n_saved = 1,
                             .needs_in = 7,
                             .differentiable = 1,
                             .grad_takes_out = NEVER,
                             .recorded = true},
    [OP_MOE_COMBINE] = {.name = "moe_combine",
                        .n_in = 3,
                        .n_out = 1,
                        .optional_in = 2,
                        .needs_in = 7,
                        .differentiable = 3,
                        .grad_takes_out = NEVER,
                        .recorded = true},
    // lse is read by the pass that is not fused, to make each chunk of logits into probabilities again.
    [OP_TOKEN_LOGPROB] = {.name = "token_logprob",
                          .n_in = 3,
                          .n_out = 2,
                          .n_saved = 1,
                          .needs_in = 7,
                          .needs_out = 2,
                          .differentiable = 1,
                          .grad_takes_out = NEVER,
                          .recorded = true},
    [OP_COLUMNS] = {.name = "columns",
                    .n_in = 1,
                    .n_out = 1,
                    .needs_in = 1,
                    .differentiable = 1,
                    .cheap = true,
                    .grad_takes_out = NEVER,
                    .recorded = true},
    [OP_DROPOUT] = {.name = "dropout",
                    .n_in = 2,
                    .n_out = 2,
                    .needs_in = 2, // the mask is made again from the keys
                    .differentiable = 1,
                    .cheap = true,
                    .grad_takes_out = NEVER,
                    .recorded = true},
    [OP_ROW_NORMS] = {.name = "row_norms", .n_in = 1, .n_out = 1, .optional_in = 1, .grad_takes_out = NEVER},
    [OP_LOGITS] = {.name = "logits", .n_in = 1, .n_out = 1, .grad_takes_out = NEVER},
    [OP_KV_WRITE] = {.name = "kv_write", .n_in = 3, .n_out = 2, .grad_takes_out = NEVER},
    [OP_FILL] = {.name = "fill", .n_out = 1, .grad_takes_out = NEVER},
    [OP_COPY] = {.name = "copy", .n_in = 1, .n_out = 1, .grad_takes_out = NEVER},
    [OP_GRAD_ADD] = {.name = "grad_add", .n_in = 1, .n_out = 1, .grad_takes_out = NEVER},
    [OP_GRAD_NORM] = {.name = "grad_norm", .n_in = 1, .grad_takes_out = NEVER},
    [OP_ADAMW] = {.name = "adamw", .n_in = 1, .n_out = 3, .grad_takes_out = NEVER},
};

// --- shapes

// What one operand must be. ANY leaves a size free; ACT stands for f32 or bf16.
enum { ANY = -1 };
enum want_dtype { WANT_ACT, WANT_F32, WANT_I32, WANT_U32 };

struct check {
    const struct op_call *call;
    struct error *err;
};

static int operand_error(const struct check *c, const char *place, int i, const char *what) {
    return error_set(c->err, STATUS_INTERNAL, "op %s: %s[%d] %s", op_table[c->call->op].name, place, i, what);
}

static bool dtype_is(enum dtype dtype, enum want_dtype want) {
    switch (want) {
    case WANT_ACT: return dtype == DTYPE_F32 || dtype == DTYPE_BF16;
    case WANT_F32: return dtype == DTYPE_F32;
    case WANT_I32: return dtype == DTYPE_I32;
    case WANT_U32: return dtype == DTYPE_U32;
    }
    return false;
}

static int want(const struct check *c, const char *place, int i, const struct tensor *t, enum want_dtype dtype,
                int64_t rows, int64_t cols) {
    char text[160];
    if (!tensor_present(t)) return operand_error(c, place, i, "is missing");
    if (!dtype_is(t->dtype, dtype)) {
        snprintf(text, sizeof text, "has dtype %s", dtype_name(t->dtype));
        return operand_error(c, place, i, text);
    }
    if (t->rows < 0 || t->cols < 1 || (rows != ANY && t->rows != rows) || (cols != ANY && t->cols != cols)) {
        snprintf(text, sizeof text, "is (%lld, %lld), expected (%lld, %lld), -1 = any", (long long)t->rows,
                 (long long)t->cols, (long long)rows, (long long)cols);
        return operand_error(c, place, i, text);
    }
    if (t->ld < t->cols) return operand_error(c, place, i, "has ld < cols");
    if (t->offset % dtype_size(t->dtype)) return operand_error(c, place, i, "is not aligned");
    return 0;
}

static int want_in(const struct check *c, int i, enum want_dtype dtype, int64_t rows, int64_t cols) {
    return want(c, "in", i, &c->call->in[i], dtype, rows, cols);
}

// An output, in the dtype of `like` when that is given.
static int want_out(const struct check *c, int i, enum want_dtype dtype, int64_t rows, int64_t cols,
                    const struct tensor *like) {
    if (want(c, "out", i, &c->call->out[i], dtype, rows, cols)) return -1;
    if (like && c->call->out[i].dtype != like->dtype)
        return operand_error(c, "out", i, "has another dtype than its input");
    return 0;
}

// A saved tensor may be missing: nothing is saved where no gradient flows.
static int want_saved(const struct check *c, int i, enum want_dtype dtype, int64_t rows, int64_t cols) {
    const struct tensor *t = &c->call->saved[i];
    return tensor_present(t) ? want(c, "saved", i, t, dtype, rows, cols) : 0;
}

static int want_scalars(const struct check *c) {
    const struct tensor *t = &c->call->scalars;
    if (t->dtype != DTYPE_U8 || t->rows != 1 || t->cols != (int64_t)sizeof(struct step_scalars) || t->offset % 8) {
        return operand_error(c, "scalars", 0, "is not a step_scalars block");
    }
    return 0;
}

static int want_weight(const struct check *c, const char *what, const struct weight *w, int64_t rows, int64_t cols) {
    const char *op = op_table[c->call->op].name;
    if (!w || !w->format) return error_set(c->err, STATUS_INTERNAL, "op %s: %s is missing", op, what);
    if ((rows != ANY && w->rows != rows) || w->cols != cols || w->cols % w->format->block) {
        return error_set(c->err, STATUS_INTERNAL, "op %s: %s `%s` is (%lld, %lld), expected (%lld, %lld), -1 = any", op,
                         what, w->name ? w->name : "", (long long)w->rows, (long long)w->cols, (long long)rows,
                         (long long)cols);
    }
    return 0;
}

static int param_error(const struct check *c, const char *what) {
    return error_set(c->err, STATUS_INTERNAL, "op %s: %s", op_table[c->call->op].name, what);
}

static int check_trained(const struct check *c, const char *what, const struct tensor *value,
                         const struct tensor *gradient, int64_t rows, int64_t cols) {
    if (want(c, what, 0, value, WANT_F32, rows, cols)) return -1;
    return tensor_present(gradient) ? want(c, what, 1, gradient, WANT_F32, rows, cols) : 0;
}

static int check_table(const struct check *c, const struct table_adapter *on, int64_t v, int64_t d, int64_t t) {
    if (tensor_present(&on->a) && (check_trained(c, "adapter A", &on->a, &on->da, ANY, d) ||
                                   check_trained(c, "adapter B", &on->b, &on->db, v, on->a.rows))) {
        return -1;
    }
    if (tensor_present(&on->full) && check_trained(c, "the whole table", &on->full, &on->dfull, v, d)) return -1;
    if (tensor_present(&on->rows) && (check_trained(c, "rows of the table", &on->rows, &on->drows, ANY, d) ||
                                      want(c, "row ids", 0, &on->row_ids, WANT_I32, on->rows.rows, 1))) {
        return -1;
    }
    if (tensor_present(&on->bias) && check_trained(c, "own bias", &on->bias, &on->dbias, 1, v)) return -1;
    if (tensor_present(&on->magnitude) && (check_trained(c, "magnitude", &on->magnitude, &on->dmagnitude, 1, v) ||
                                           want(c, "norms", 0, &on->norms, WANT_F32, 1, v))) {
        return -1;
    }
    if (tensor_present(&on->magnitude) &&
        (tensor_present(&on->full) || tensor_present(&on->rows) || on->dropout != 0 || !tensor_present(&on->a)))
        return param_error(c, "a magnitude without LoRA alone, or with dropout");
    if (tensor_present(&on->rows) && (tensor_present(&on->full) || tensor_present(&on->a)))
        return param_error(c, "rows of a table that is trained otherwise, too");
    if (!(on->dropout >= 0 && on->dropout < 1)) return param_error(c, "dropout outside [0, 1)");
    if (on->dropout == 0 || !tensor_present(&on->a)) return 0;
    return want(c, "keys", 0, &on->keys, WANT_U32, t, 2) || want_scalars(c) ? -1 : 0;
}

static int check_embed(const struct check *c) {
    const struct op_call *call = c->call;
    int64_t t = call->in[0].rows, d = call->out[0].cols;
    if (want_in(c, 0, WANT_I32, ANY, 1) || want_out(c, 0, WANT_ACT, t, ANY, NULL)) return -1;
    if (want_weight(c, "the embedding", call->p.embed.w, ANY, d)) return -1;
    if (check_table(c, &call->p.embed.on, call->p.embed.w->rows, d, t)) return -1;
    if (call->p.embed.noise_alpha == 0) return 0;
    return want_in(c, 1, WANT_U32, t, 2) || want(c, "lengths", 0, &call->p.embed.lengths, WANT_I32, t, 1) ||
                   want_scalars(c)
               ? -1
               : 0;
}

static int check_norm(const struct check *c) {
    const struct op_call *call = c->call;
    int64_t t = call->in[0].rows, d = call->in[0].cols;
    if (want_in(c, 0, WANT_ACT, ANY, ANY)) return -1;
    if (call->op == OP_ADD_NORM) {
        if (want_in(c, 1, WANT_ACT, t, d) || want_out(c, 1, WANT_ACT, t, d, &call->in[0])) return -1;
        if (call->in[1].dtype != call->in[0].dtype) return operand_error(c, "in", 1, "has another dtype than in[0]");
    }
    int64_t groups = call->p.norm.groups;
    if (want_out(c, 0, WANT_ACT, t, d, &call->in[0])) return -1;
    if (groups < 1 || d % groups) return param_error(c, "the columns are no whole number of groups");
    if (call->op == OP_ADD_NORM && groups != 1) return param_error(c, "groups are for norms alone");
    if (want_saved(c, 0, WANT_F32, t, groups) || want_saved(c, 1, WANT_F32, t, groups)) return -1;
    const struct weight *w = call->p.norm.w, *bias = call->p.norm.bias;
    if (w && want_weight(c, "the norm weight", w, 1, w->cols == d / groups ? d / groups : d)) return -1;
    if (call->p.norm.kind != NORM_RMS && call->p.norm.kind != NORM_LAYER) return param_error(c, "unknown norm");
    const struct tensor *own = &call->p.norm.own_bias, *dbias = &call->p.norm.dbias;
    int64_t cols = w ? w->cols : d;
    if (tensor_present(own) && check_trained(c, "own bias", own, dbias, 1, cols)) return -1;
    return bias ? want_weight(c, "the norm bias", bias, 1, cols) : 0;
}

static int check_span(const struct check *c, const struct lora_span *s, int64_t t, int64_t in, int64_t out,
                      int64_t *u_cols) {
    int64_t experts = c->call->op == OP_MOE_LINEAR_GROUP ? c->call->p.linear.experts : 1;
    if (s->row_begin < 0 || s->row_end < s->row_begin || s->row_end > t)
        return param_error(c, "adapter rows out of range");
    int64_t rank = s->a.rows / experts;
    if (s->a.rows % experts) return param_error(c, "an adapter's A is no whole number of experts");
    if (want(c, "adapter A", 0, &s->a, WANT_F32, ANY, in) ||
        want(c, "adapter B", 0, &s->b, WANT_F32, experts * out, rank)) {
        return -1;
    }
    if (tensor_present(&s->da) != tensor_present(&s->db)) return param_error(c, "an adapter is trained by half");
    if (tensor_present(&s->da) && (want(c, "adapter dA", 0, &s->da, WANT_F32, experts * rank, in) ||
                                   want(c, "adapter dB", 0, &s->db, WANT_F32, experts * out, rank))) {
        return -1;
    }
    if (s->u_begin < 0) return param_error(c, "adapter column out of range");
    if (s->u_begin + rank > *u_cols) *u_cols = s->u_begin + rank;
    if (!(s->dropout >= 0 && s->dropout < 1)) return param_error(c, "dropout outside [0, 1)");
    if (s->dropout == 0) return 0;
    return want_in(c, c->call->op == OP_MOE_LINEAR_GROUP ? 2 : 1, WANT_U32, t, 2) || want_scalars(c) ? -1 : 0;
}

// The weights of all experts of a part, and their biases as rows of one.
static int check_experts(const struct check *c, const struct linear_part *part, int64_t out, int64_t in) {
    int64_t experts = c->call->p.linear.experts;
    for (int64_t e = 0; e < experts; e++) {
        if (want_weight(c, "an expert", part->w + e, out, in)) return -1;
    }
    return part->bias ? want_weight(c, "the biases", part->bias, experts, out) : 0;
}

static int check_linear_group(const struct check *c) {
    const struct op_call *call = c->call;
    int64_t t = call->in[0].rows, in = call->in[0].cols, u_cols = 0;
    int n = call->p.linear.n_parts;
    if (want_in(c, 0, WANT_ACT, ANY, ANY)) return -1;
    if (n < 1 || n > LINEAR_MAX_PARTS) return param_error(c, "number of parts out of range");
    bool experts = call->op == OP_MOE_LINEAR_GROUP;
    if (experts && want_in(c, 1, WANT_I32, call->p.linear.experts + 1, 1)) return -1;
    for (int i = 0; i < n; i++) {
        const struct linear_part *part = &call->p.linear.parts[i];
        if (want_out(c, i, WANT_ACT, t, ANY, &call->in[0])) return -1;
        int64_t out = call->out[i].cols;
        if (experts) {
            if (check_experts(c, part, out, in)) return -1;
        } else {
            if (want_weight(c, "the weight", part->w, out, in)) return -1;
            if (part->bias && want_weight(c, "the bias", part->bias, 1, out)) return -1;
        }
        if (part->n_spans < 0 || part->n_spans > LINEAR_MAX_SPANS)
            return param_error(c, "number of adapters out of range");
        for (int s = 0; s < part->n_spans; s++) {
            if (check_span(c, &part->spans[s], t, in, out, &u_cols)) return -1;
        }
    }
    if (!tensor_present(&call->saved[0])) return 0;
    if (want_saved(c, 0, WANT_F32, t, ANY)) return -1;
    return call->saved[0].cols < u_cols ? operand_error(c, "saved", 0, "is narrower than the ranks") : 0;
}

static int check_columns(const struct check *c) {
    const struct op_call *call = c->call;
    int64_t t = call->in[0].rows, n = call->in[0].cols;
    if (want_in(c, 0, WANT_ACT, ANY, ANY) || want_out(c, 0, WANT_ACT, t, n, &call->in[0])) return -1;
    const struct tensor *m = &call->p.columns.magnitude, *bias = &call->p.columns.own_bias;
    if (tensor_present(m) && (check_trained(c, "magnitude", m, &call->p.columns.dmagnitude, 1, n) ||
                              want(c, "norms", 0, &call->p.columns.norms, WANT_F32, 1, n))) {
        return -1;
    }
    if (call->p.columns.bias && want_weight(c, "the bias", call->p.columns.bias, 1, n)) return -1;
    return tensor_present(bias) ? check_trained(c, "own bias", bias, &call->p.columns.dbias, 1, n) : 0;
}

static int check_dropout(const struct check *c) {
    const struct op_call *call = c->call;
    int64_t t = call->in[0].rows, d = call->in[0].cols;
    if (!(call->p.dropout.p > 0 && call->p.dropout.p < 1)) return param_error(c, "dropout outside (0, 1)");
    return want_in(c, 0, WANT_ACT, ANY, ANY) || want_in(c, 1, WANT_U32, t, 2) ||
                   want_out(c, 0, WANT_ACT, t, d, &call->in[0]) || want_out(c, 1, WANT_ACT, t, d, &call->in[0]) ||
                   want_scalars(c)
               ? -1
               : 0;
}

static int check_row_norms(const struct check *c) {
    const struct op_call *call = c->call;
    const struct tensor *a = &call->p.row_norms.a, *b = &call->p.row_norms.b;
    int64_t n = call->out[0].cols;
    if (want_out(c, 0, WANT_F32, 1, ANY, NULL) || want_weight(c, "the weight", call->p.row_norms.w, n, a->cols))
        return -1;
    if (want(c, "adapter A", 0, a, WANT_F32, ANY, ANY) || want(c, "adapter B", 0, b, WANT_F32, n, a->rows)) return -1;
    return tensor_present(&call->in[0]) ? want_in(c, 0, WANT_F32, 1, n) : 0;
}

static int check_rope(const struct check *c) {
    const struct op_call *call = c->call;
    int64_t t = call->in[0].rows, k = call->p.rope.head_dim, r = call->p.rope.rotary_dim;
    int64_t first = call->p.rope.first;
    if (k < 1 || r < 2 || first < 0 || first + r > k || r % 2)
        return param_error(c, "head_dim or rotary_dim out of range");
    if (call->p.rope.kind != ROPE_NORM && call->p.rope.kind != ROPE_NEOX) return param_error(c, "unknown rope kind");
    for (int i = 0; i < 2; i++) {
        if (i == 1 && !tensor_present(&call->in[1])) continue;
        if (want_in(c, i, WANT_ACT, t, ANY) || want_out(c, i, WANT_ACT, t, call->in[i].cols, &call->in[i])) return -1;
        if (call->in[i].cols % k) return operand_error(c, "in", i, "is no whole number of heads wide");
    }
    if (want_in(c, 2, WANT_I32, t, 1) || want_in(c, 3, WANT_F32, ANY, ANY)) return -1;
    return call->in[3].cols < r ? operand_error(c, "in", 3, "is narrower than rotary_dim") : 0;
}

static int check_attention(const struct check *c) {
    const struct op_call *call = c->call;
    int64_t h = call->p.attention.heads, hkv = call->p.attention.kv_heads;
    int64_t k = call->p.attention.head_dim, kv = call->p.attention.v_dim;
    int64_t tq = call->in[0].rows, tkv = call->in[1].rows;
    if (h < 1 || hkv < 1 || h % hkv || k < 1 || kv < 1) return param_error(c, "head counts or sizes out of range");
    if (want_in(c, 0, WANT_ACT, ANY, h * k) || want_in(c, 1, WANT_ACT, ANY, hkv * k) ||
        want_in(c, 2, WANT_ACT, tkv, hkv * kv) || want_in(c, 3, WANT_I32, call->p.attention.max_seqs + 1, 4) ||
        want_out(c, 0, WANT_ACT, tq, h * kv, &call->in[0]) || want_saved(c, 0, WANT_F32, tq, h)) {
        return -1;
    }
    for (int i = 1; i < 3; i++) {
        if (call->in[i].dtype != call->in[0].dtype) return operand_error(c, "in", i, "has another dtype than in[0]");
    }
    if (call->in[3].ld != 4) return operand_error(c, "in", 3, "is not contiguous");
    if (call->p.attention.window < 0 || call->p.attention.chunk < 0 || !(call->p.attention.soft_cap >= 0)) {
        return param_error(c, "window, chunk or soft_cap is negative");
    }
    return call->p.attention.sinks ? want_weight(c, "the sinks", call->p.attention.sinks, 1, h) : 0;
}

static int check_logprob(const struct check *c) {
    const struct op_call *call = c->call;
    int64_t t = call->in[0].rows, d = call->in[0].cols;
    if (want_in(c, 0, WANT_ACT, ANY, ANY) || want_weight(c, "the head", call->p.logprob.w, ANY, d)) return -1;
    const struct weight *bias = call->p.logprob.bias;
    if (bias && want_weight(c, "the head's bias", bias, 1, call->p.logprob.w->rows)) return -1;
    if (!(call->p.logprob.soft_cap >= 0)) return param_error(c, "soft_cap is negative");
    if (call->op == OP_LOGITS) return want_out(c, 0, WANT_F32, t, call->p.logprob.w->rows, NULL);
    if (want_in(c, 1, WANT_I32, t, 1) || want_in(c, 2, WANT_F32, t, 1) || want_out(c, 0, WANT_F32, t, 1, NULL) ||
        want_out(c, 1, WANT_F32, t, 1, NULL)) {
        return -1;
    }
    if (call->p.logprob.chunk_rows < 1) return param_error(c, "chunk_rows < 1");
    if (tensor_present(&call->scalars) && want_scalars(c)) return -1;
    if (!call->p.logprob.fused) return 0;
    return want(c, "saved", 0, &call->saved[0], WANT_ACT, t, d);
}

// x, r -> s; gate, up -> h: all of one shape and dtype. Gate and up may be interleaved in one.
static int check_pair(const struct check *c) {
    const struct op_call *call = c->call;
    int64_t t = call->in[0].rows, d = call->in[0].cols;
    if (want_in(c, 0, WANT_ACT, ANY, ANY)) return -1;
    if (call->op == OP_GLU && !tensor_present(&call->in[1])) {
        if (d % 2) return operand_error(c, "in", 0, "has an odd number of columns");
        d /= 2;
    } else {
        if (want_in(c, 1, WANT_ACT, t, d)) return -1;
        if (call->in[1].dtype != call->in[0].dtype) return operand_error(c, "in", 1, "has another dtype than in[0]");
    }
    if (call->op == OP_GLU &&
        (call->p.act.kind < ACT_SILU || call->p.act.kind > ACT_SWIGLU_CLAMPED || call->p.act.kind == ACT_CLAMP)) {
        return param_error(c, "unknown activation");
    }
    return want_out(c, 0, WANT_ACT, t, d, &call->in[0]);
}

static int check_act(const struct check *c) {
    const struct op_call *call = c->call;
    if (want_in(c, 0, WANT_ACT, ANY, ANY)) return -1;
    if (call->p.act.kind < ACT_SILU || call->p.act.kind > ACT_CLAMP) return param_error(c, "unknown activation");
    return want_out(c, 0, WANT_ACT, call->in[0].rows, call->in[0].cols, &call->in[0]);
}

static int check_gate(const struct check *c) {
    const struct op_call *call = c->call;
    int64_t t = call->in[0].rows;
    return want_in(c, 0, WANT_ACT, ANY, ANY) || want_in(c, 1, WANT_ACT, t, 1) ||
                   want_out(c, 0, WANT_ACT, t, call->in[0].cols, &call->in[0])
               ? -1
               : 0;
}

static int check_mla_keys(const struct check *c) {
    const struct op_call *call = c->call;
    int64_t t = call->in[0].rows, h = call->p.mla.heads, nope = call->p.mla.nope, v = call->p.mla.v_dim;
    if (h < 1 || nope < 1 || v < 0) return param_error(c, "sizes out of range");
    return want_in(c, 0, WANT_ACT, ANY, h * (nope + v)) || want_in(c, 1, WANT_ACT, t, ANY) ||
                   want_out(c, 0, WANT_ACT, t, h * (nope + call->in[1].cols), &call->in[0]) ||
                   (v > 0 && want_out(c, 1, WANT_ACT, t, h * v, &call->in[0]))
               ? -1
               : 0;
}

static int check_moe_route(const struct check *c) {
    const struct op_call *call = c->call;
    const struct moe_route *m = &call->p.moe;
    int64_t t = call->in[0].rows;
    if (m->experts < 1 || m->used < 1 || m->used > m->experts) return param_error(c, "experts out of range");
    if (m->groups < 1 || m->experts % m->groups || m->groups_used < 1 || m->groups_used > m->groups ||
        m->used > m->experts / m->groups * m->groups_used) {
        return param_error(c, "groups of experts out of range");
    }
    if (m->gate < MOE_SOFTMAX || m->gate > MOE_SPARSE_MIXER) return param_error(c, "unknown gate");
    if (want_in(c, 0, WANT_ACT, ANY, m->experts) || want_out(c, 0, WANT_F32, t, m->used, NULL) ||
        want_out(c, 1, WANT_I32, t * m->used, 2, NULL) || want_out(c, 2, WANT_I32, m->experts + 1, 1, NULL)) {
        return -1;
    }
    return m->bias ? want_weight(c, "the correction bias", m->bias, 1, m->experts) : 0;
}

static int check_moe_balance(const struct check *c) {
    const struct op_call *call = c->call;
    const struct moe_balance *m = &call->p.balance;
    int64_t t = call->in[0].rows, e = call->in[0].cols;
    if (want_in(c, 0, WANT_ACT, ANY, ANY) || want_in(c, 1, WANT_I32, t, 1) ||
        want_out(c, 0, WANT_ACT, t, e, &call->in[0]) || want(c, "sums", 0, &m->sums, WANT_F32, ANY, 2 * e)) {
        return -1;
    }
    if (call->out[0].offset != call->in[0].offset) return operand_error(c, "out", 0, "is not the input itself");
    if (m->used < 1 || m->used > e) return param_error(c, "experts per token out of range");
    if (m->row < 0 || m->row >= m->sums.rows) return param_error(c, "row of the sums out of range");
    return want_scalars(c);
}

static int check_moe_rows(const struct check *c) {
    const struct op_call *call = c->call;
    bool gather = call->op == OP_MOE_GATHER;
    int64_t k = call->p.moe_rows.used, d = call->in[0].cols;
    if (k < 1 || call->in[2].rows % k) return param_error(c, "experts per token out of range");
    int64_t t = call->in[2].rows / k;
    if (want_in(c, 2, WANT_I32, t * k, 2) || want_in(c, 0, WANT_ACT, gather ? t : t * k, ANY) ||
        want_out(c, 0, WANT_ACT, gather ? t * k : t, d, &call->in[0])) {
        return -1;
    }
    if (tensor_present(&call->in[1]) && want_in(c, 1, WANT_F32, t, k)) return -1;
    if (!gather) return 0;
    return want_in(c, 3, WANT_U32, t, 2) || want_out(c, 1, WANT_U32, t * k, 2, NULL) ? -1 : 0;
}

static int check_kv_write(const struct check *c) {
    const struct op_call *call = c->call;
    int64_t t = call->in[0].rows, s = call->out[0].rows;
    for (int i = 0; i < 2; i++) {
        if (want_in(c, i, WANT_ACT, t, ANY) || want_out(c, i, WANT_ACT, s, call->in[i].cols, &call->in[i])) return -1;
    }
    return want_in(c, 2, WANT_I32, t, 1);
}

static int check_flat(const struct check *c) {
    const struct op_call *call = c->call;
    int64_t n = call->in[0].cols;
    if (want_in(c, 0, WANT_F32, 1, ANY)) return -1;
    for (int i = 0; i < op_table[call->op].n_out; i++) {
        if (want_out(c, i, WANT_F32, 1, n, NULL)) return -1;
    }
    if (call->op != OP_GRAD_ADD && want_scalars(c)) return -1;
    if (call->op != OP_ADAMW) return 0;
    for (int g = 0; g < call->p.adamw.n_groups; g++) {
        const struct param_group *group = &call->p.adamw.groups[g];
        if (group->begin < 0 || group->end < group->begin || group->end > n)
            return param_error(c, "group out of range");
    }
    return 0;
}

// Gradients, where present, have the shape and dtype of their value.
static int check_gradients(const struct check *c) {
    const struct op_call *call = c->call;
    for (int i = 0; i < OP_MAX_IN; i++) {
        const struct tensor *g = &call->grad_in[i];
        if (!tensor_present(g)) continue;
        if (!(op_table[call->op].differentiable >> i & 1))
            return operand_error(c, "grad_in", i, "belongs to no gradient");
        if (g->rows != call->in[i].rows || g->cols != call->in[i].cols || g->dtype != call->in[i].dtype ||
            g->ld < g->cols) {
            return operand_error(c, "grad_in", i, "is not like its value");
        }
    }
    for (int i = 0; i < OP_MAX_OUT; i++) {
        const struct tensor *g = &call->grad_out[i];
        if (!tensor_present(g)) continue;
        if (g->rows != call->out[i].rows || g->cols != call->out[i].cols || g->dtype != call->out[i].dtype ||
            g->ld < g->cols) {
            return operand_error(c, "grad_out", i, "is not like its value");
        }
    }
    return 0;
}

int op_check(const struct op_call *call, struct error *err) {
    struct check c = {call, err};
    int status = -1;
    switch (call->op) {
    case OP_EMBED: status = check_embed(&c); break;
    case OP_NORM:
    case OP_ADD_NORM: status = check_norm(&c); break;
    case OP_LINEAR_GROUP:
    case OP_MOE_LINEAR_GROUP: status = check_linear_group(&c); break;
    case OP_ROPE: status = check_rope(&c); break;
    case OP_ATTENTION: status = check_attention(&c); break;
    case OP_GLU:
    case OP_ADD: status = check_pair(&c); break;
    case OP_ACT: status = check_act(&c); break;
    case OP_GATE: status = check_gate(&c); break;
    case OP_COLUMNS: status = check_columns(&c); break;
    case OP_DROPOUT: status = check_dropout(&c); break;
    case OP_ROW_NORMS: status = check_row_norms(&c); break;
    case OP_MLA_KEYS: status = check_mla_keys(&c); break;
    case OP_MOE_ROUTE: status = check_moe_route(&c); break;
    case OP_MOE_BALANCE: status = check_moe_balance(&c); break;
    case OP_MOE_GATHER:
    case OP_MOE_COMBINE: status = check_moe_rows(&c); break;
    case OP_TOKEN_LOGPROB:
    case OP_LOGITS: status = check_logprob(&c); break;
    case OP_KV_WRITE: status = check_kv_write(&c); break;
    case OP_FILL: status = tensor_present(&call->out[0]) ? 0 : operand_error(&c, "out", 0, "is missing"); break;
    case OP_COPY:
        status =
            want_in(&c, 0, WANT_ACT, ANY, ANY) || want_out(&c, 0, WANT_ACT, call->in[0].rows, call->in[0].cols, NULL)
                ? -1
                : 0;
        break;
    case OP_GRAD_ADD:
    case OP_GRAD_NORM:
    case OP_ADAMW: status = check_flat(&c); break;
    case OP_NONE:
    case OP_COUNT: return error_set(err, STATUS_INTERNAL, "op %d does not exist", (int)call->op);
    }
    return status ? -1 : check_gradients(&c);
}

// --- operation counts

static double linear_flops(const struct op_call *call, bool backward) {
    double t = (double)call->in[0].rows, in = (double)call->in[0].cols, sum = 0;
    bool dx = tensor_present(&call->grad_in[0]);
    for (int i = 0; i < call->p.linear.n_parts; i++) {
        const struct linear_part *part = &call->p.linear.parts[i];
        double out = (double)part->w->rows;
        if (!backward || dx) sum += 2 * t * in * out;
        for (int s = 0; s < part->n_spans; s++) {
            const struct lora_span *span = &part->spans[s];
            double rank = (double)span->b.cols, one = 2.0 * (double)(span->row_end - span->row_begin) * rank;
            bool trained = tensor_present(&span->da);
            if (!backward)
                sum += one * (in + out);
            else
                sum += one * (out + (dx ? in : 0) + (trained ? in + out : 0)); // dU, dx, dA and dB
        }
    }
    return sum;
}

// Which keys a query sees is data; counted as sequences of equal length that fill the rows.
static double attention_flops(const struct op_call *call, bool backward) {
    double tq = (double)call->in[0].rows, tkv = (double)call->in[1].rows;
    double seqs = call->p.attention.max_seqs > 0 ? call->p.attention.max_seqs : 1;
    double q_len = tq / seqs, kv_len = tkv / seqs;
    double seen = q_len >= kv_len ? kv_len / 2 : kv_len - q_len / 2;
    if (call->p.attention.window > 0 && seen > call->p.attention.window) seen = call->p.attention.window;
    if (call->p.attention.chunk > 0 && seen > call->p.attention.chunk / 2.0) seen = call->p.attention.chunk / 2.0;
    double forward = 2 * tq * seen * call->p.attention.heads * (call->p.attention.head_dim + call->p.attention.v_dim);
    return backward ? 2.5 * forward : forward;
}

double op_flops(const struct op_call *call, bool backward) {
    double n = (double)call->in[0].rows * (double)call->in[0].cols;
    switch (call->op) {
    case OP_EMBED: return backward ? 0 : (double)call->out[0].rows * (double)call->out[0].cols;
    case OP_NORM: return (backward ? 8 : 4) * n;
    case OP_ADD_NORM: return (backward ? 9 : 5) * n;
    case OP_LINEAR_GROUP:
    case OP_MOE_LINEAR_GROUP: return linear_flops(call, backward);
    case OP_ROPE: return 3 * (n + (double)call->in[1].rows * (double)call->in[1].cols);
    case OP_GLU:
    case OP_ACT: return (backward ? 10 : 5) * n;
    case OP_GATE: return (backward ? 4 : 1) * n;
    case OP_COLUMNS: return (backward ? 4 : 2) * n;
    case OP_DROPOUT: return 2 * n;
    case OP_ROW_NORMS: {
        double rows = (double)call->p.row_norms.w->rows, cols = (double)call->p.row_norms.w->cols;
        return 2 * rows * cols * (tensor_present(&call->in[0]) ? (double)call->p.row_norms.a.rows : 1);
    }
    case OP_MOE_ROUTE:
    case OP_MOE_BALANCE: return 10 * n;
    case OP_MOE_GATHER: return tensor_present(&call->in[1]) ? n * call->p.moe_rows.used : 0;
    case OP_MOE_COMBINE: return (backward ? 4 : 2) * n;
    case OP_ATTENTION: return attention_flops(call, backward);
    case OP_ADD: return backward ? 0 : n;
    case OP_TOKEN_LOGPROB: {
        double product = 2 * n * (double)call->p.logprob.w->rows;
        if (call->p.logprob.fused) return backward ? 0 : 2 * product;
        return backward ? 2 * product : product;
    }
    case OP_LOGITS: return 2 * n * (double)call->p.logprob.w->rows;
    case OP_MLA_KEYS: return backward ? n : 0;
    case OP_GRAD_ADD: return n;
    case OP_GRAD_NORM: return 2 * n;
    case OP_ADAMW: return 12 * n;
    case OP_KV_WRITE:
    case OP_FILL:
    case OP_COPY:
    case OP_NONE:
    case OP_COUNT: return 0;
    }
    return 0;
}

// --- what is trained

static void add_trained(struct op_trained *out, int *n, const char *what, const struct tensor *value,
                        const struct tensor *gradient) {
    if (tensor_present(value)) out[(*n)++] = (struct op_trained){what, *value, *gradient};
}

int op_trained(enum op op, const union op_params *p, struct op_trained out[OP_MAX_TRAINED]) {
    int n = 0;
    bool linear = op == OP_LINEAR_GROUP || op == OP_MOE_LINEAR_GROUP;
    for (int i = 0; linear && i < p->linear.n_parts; i++) {
        for (int s = 0; s < p->linear.parts[i].n_spans; s++) {
            const struct lora_span *span = &p->linear.parts[i].spans[s];
            add_trained(out, &n, "adapter A", &span->a, &span->da);
            add_trained(out, &n, "adapter B", &span->b, &span->db);
        }
    }
    if (op == OP_COLUMNS) {
        add_trained(out, &n, "magnitude", &p->columns.magnitude, &p->columns.dmagnitude);
        add_trained(out, &n, "own bias", &p->columns.own_bias, &p->columns.dbias);
    }
    if (op == OP_NORM || op == OP_ADD_NORM) add_trained(out, &n, "own bias", &p->norm.own_bias, &p->norm.dbias);
    const struct table_adapter *on = op == OP_EMBED                              ? &p->embed.on
                                     : op == OP_TOKEN_LOGPROB || op == OP_LOGITS ? &p->logprob.on
                                                                                 : NULL;
    if (!on) return n;
    add_trained(out, &n, "adapter A", &on->a, &on->da);
    add_trained(out, &n, "adapter B", &on->b, &on->db);
    add_trained(out, &n, "whole table", &on->full, &on->dfull);
    add_trained(out, &n, "rows of the table", &on->rows, &on->drows);
    add_trained(out, &n, "own bias", &on->bias, &on->dbias);
    add_trained(out, &n, "magnitude", &on->magnitude, &on->dmagnitude);
    return n;
}
