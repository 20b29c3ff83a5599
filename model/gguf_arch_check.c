// See gguf_arch.h: does a GGUF say everything that its model computes?
#include "model/gguf_arch.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static bool near(double a, double b) { // keys hold floats
    return fabs(a - b) <= 1e-6 * fmax(fabs(a), fabs(b));
}

struct comparison {
    const char *name;
    double a, b;
};

static const char *first_difference(const struct comparison *list, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (!near(list[i].a, list[i].b)) return list[i].name;
    }
    return NULL;
}
#define SAME(what, member)                                                                                             \
    { what, (double)a->member, (double)b->member }

// --- ropes: what they turn queries and keys by, at both ends of the context

static double long_size(const struct rope_arch *r) {
    return r->long_magnitude != 0 ? r->long_magnitude : r->magnitude;
}

static const char *rope_difference(const struct rope_arch *a, const struct rope_arch *b, int64_t context) {
    enum { MOST = 4096 };
    double x[MOST], y[MOST];
    const struct comparison list[] = {
        SAME("the width of rotary positions", rotary_dim),
        SAME("the place of rotary positions", first),
        SAME("the size of rotary positions", magnitude),
        SAME("the growth of queries", query_beta),
        SAME("that rotary positions stand still", still),
        {"the size of rotary positions in long texts", long_size(a), long_size(b)},
        {"the growth of queries", a->query_beta != 0 ? a->query_floor + a->query_shift : 0,
         b->query_beta != 0 ? b->query_floor + b->query_shift : 0},
    };
    const char *different = first_difference(list, COUNT_OF(list));
    if (different) return different;
    for (int end = 0; end < 2 && a->rotary_dim <= 2 * MOST; end++) {
        rope_inverse(a, end ? context : 1, x);
        rope_inverse(b, end ? context : 1, y);
        for (int i = 0; i < a->rotary_dim / 2; i++) {
            if (!near(x[i], y[i])) return "the frequencies of rotary positions (their scaling)";
        }
    }
    return NULL;
}

static const char *turn_difference(const struct arch *a, const struct arch *b, int rope_a, int rope_b) {
    if (rope_a == ROPE_NONE || rope_b == ROPE_NONE)
        return rope_a == rope_b ? NULL : "which layers have rotary positions";
    return rope_difference(&a->rope[rope_a], &b->rope[rope_b], a->context);
}

// --- layers

static const char *layer_difference(const struct layer_arch *a, const struct layer_arch *b) {
    const struct comparison list[] = {
        SAME("the norms of layers", norms),
        SAME("the number of heads", heads),
        SAME("the number of key-value heads", kv_heads),
        SAME("the width of heads", head_dim),
        SAME("the width of values", v_dim),
        SAME("norms of queries and keys as wholes", qk_whole),
        SAME("norms of queries and keys behind the rotary positions", qk_after_rope),
        SAME("clip_qkv", clip_qkv),
        SAME("the scale of attention (query_pre_attn_scalar)", attention_scale),
        SAME("the soft cap of attention", soft_cap),
        SAME("the attention chunk", chunk),
        SAME("which layers have experts", moe),
        SAME("a gated MLP", glu),
        SAME("the activation", act),
        {"the width of the MLP", a->moe ? 0 : a->ffn, b->moe ? 0 : b->ffn},
    };
    return first_difference(list, COUNT_OF(list));
}

static const char *moe_difference(const struct moe_arch *a, const struct moe_arch *b) {
    const struct moe_route *r = &a->route, *s = &b->route;
    const struct comparison list[] = {
        SAME("the number of experts", experts),
        SAME("the width of experts", ffn),
        SAME("the shared expert", shared_ffn),
        SAME("the gate of the shared expert", shared_gate),
        SAME("experts that scale their input", scale_input),
        SAME("the activation of experts", act),
        SAME("the limit of the experts' activation (swiglu_limit)", limit),
        SAME("the experts' activation (alpha)", alpha),
        {"the experts per token", r->used, s->used},
        {"how experts are chosen (scoring_func)", r->gate, s->gate},
        {"that the experts' weights are normalised (norm_topk_prob)", r->normalise, s->normalise},
        {"the scale of the experts' weights", (double)r->scale, (double)s->scale},
        {"the groups of experts", r->groups, s->groups},
        {"the groups of experts used", r->groups_used, s->groups_used},
        {"how groups of experts are scored", r->group_pairs, s->group_pairs},
        {"router_jitter_noise", (double)r->jitter, (double)s->jitter},
    };
    return a->experts == 0 && b->experts == 0 ? NULL : first_difference(list, COUNT_OF(list));
}

static const char *globals_difference(const struct arch *a, const struct arch *b) {
    const struct comparison list[] = {
        SAME("the number of layers", layers),
        SAME("the width", width),
        SAME("the context", context),
        SAME("the kind of norm", norm),
        SAME("the constant of norms", norm_eps),
        SAME("the scale of embeddings", embed_scale),
        SAME("the scale of logits", logit_scale),
        SAME("the soft cap of logits", final_soft_cap),
        SAME("the scale of residuals", residual_scale),
        SAME("attention beside the MLP", parallel),
        SAME("latent attention (queries)", latent.q_rank),
        SAME("latent attention (keys and values)", latent.kv_rank),
        SAME("latent attention (widths)", latent.nope),
        SAME("latent attention (rotary width)", latent.rope),
        SAME("latent attention (norms)", latent.norm_eps),
    };
    return first_difference(list, COUNT_OF(list));
}

const char *arch_difference(const struct arch *a, const struct arch *b, bool permuted_qk, bool windows) {
    const char *different = globals_difference(a, b);
    if (!different) different = moe_difference(&a->moe, &b->moe);
    for (int l = 0; l < a->layers && !different; l++) {
        const struct layer_arch *x = &a->layer[l], *y = &b->layer[l];
        different = layer_difference(x, y);
        if (!different) different = turn_difference(a, b, x->rope_q, y->rope_q);
        if (!different) different = turn_difference(a, b, x->rope_k, y->rope_k);
        bool dropped = y->window == 0 && !windows;
        if (!different && x->window != y->window && !dropped) different = "the sliding window of attention";
    }
    for (int i = 0; i < a->n_ropes && i < b->n_ropes && !different; i++) {
        bool same = a->rope[i].kind == b->rope[i].kind;
        if (same == permuted_qk && !a->rope[i].still) different = "the pairs of rotary positions (rope_interleave)";
    }
    return different;
}

// --- what was written

static int read_back(const struct gguf_export *e, const struct gguf *file, struct pool *pool, struct arch *out,
                     struct error *err) {
    const struct family *f = e->model->family;
    struct hparams h;
    *out = (struct arch){.family = e->model->arch.family};
    out->model_type = pool_strndup(pool, f->model_types, strcspn(f->model_types, "|"));
    if (!out->model_type) return error_memory(err, "the architecture", 0);
    hparams_from_gguf(&h, file, out->family, pool, err);
    f->map(&h, out);
    return hparams_failed(&h);
}

static int compare(struct gguf_export *e, const struct arch *again, struct error *err) {
    const struct arch *a = &e->model->arch;
    bool permuted = e->model->family->permuted_qk;
    const char *different = arch_difference(a, again, permuted, false);
    if (different)
        return error_set(err, STATUS_DATA,
                         "%s: %s: a GGUF of the architecture %s does not say it, and llama.cpp would compute another "
                         "model; nothing was written",
                         e->model->path, different, a->family);
    if (arch_difference(a, again, permuted, true)) {
        int window = 0;
        for (int l = 0; l < a->layers; l++) window = a->layer[l].window ? a->layer[l].window : window;
        text_printf(&e->notes,
                    "the sliding window of %d tokens is not in the file: llama.cpp computes %s without it, so texts "
                    "longer than that give other numbers\n",
                    window, a->family);
    }
    if (a->rope[0].scaling == ROPE_SCALING_DYNAMIC)
        text_printf(&e->notes,
                    "dynamic scaling of rotary positions is not in the file: texts longer than %d tokens give other "
                    "numbers\n",
                    a->context);
    return 0;
}

int gguf_check_arch(struct gguf_export *e, struct error *err) {
    struct text bytes = {0};
    struct gguf file;
    struct pool pool = {0};
    struct arch again;
    int status = gguf_write_memory(&e->writer, &bytes, err);
    if (status == 0)
        status = gguf_parse((const uint8_t *)bytes.data, bytes.length, "the GGUF to be written", &file, err);
    if (status == 0) {
        status = read_back(e, &file, &pool, &again, err) || compare(e, &again, err) ? -1 : 0;
        gguf_close(&file);
    }
    pool_free(&pool);
    text_free(&bytes);
    return status;
}
