// OP_EMBED: rows of a table by id. What an adapter trains of the table gets its gradient row by row, in the order of
// the tokens, whatever the threads: each thread owns columns.
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/reference.h"
#include "kernels/cpu/rows.h"
#include "kernels/random.h"

#include <math.h>
#include <string.h>

enum { EMBED_PIECE = 256, EMBED_COLS = 32 }; // EMBED_PIECE: a multiple of every block size

struct embed_args {
    const struct op_call *call;
    const struct cpu_backend *b;
    struct random_key key;
    float *u; // (T, R): backward: s B[id]
    float *v; // (T, R): backward: s <a, g>
};

// Which of the table's own rows stands for `id`, -1 = none.
static int64_t own_row(const struct embed_args *a, int64_t id) {
    const struct table_adapter *on = &a->call->p.embed.on;
    if (!tensor_present(&on->rows)) return -1;
    const int32_t *ids = cpu_i32(a->b, &on->row_ids);
    for (int64_t i = 0; i < on->row_ids.rows; i++) {
        if (ids[i * on->row_ids.ld] == id) return i;
    }
    return -1;
}

// NEFTune: noise on elements [begin, begin + count) of a token's row.
static void add_noise(const struct embed_args *a, int64_t t, int64_t begin, int64_t count, float amplitude, float *x) {
    const struct tensor *keys = &a->call->in[1];
    const uint32_t *key = (const uint32_t *)cpu_at(a->b, keys) + t * keys->ld;
    uint32_t bits[4];
    for (int64_t i = 0; i < count; i++) { // `begin` is a multiple of 4
        if (i % 4 == 0) random_four(a->key, key[0], key[1], (uint32_t)((begin + i) / 4), bits);
        x[i] += (2.0f * random_uniform(bits[i % 4]) - 1.0f) * amplitude;
    }
}

// Elements [d, d + count) of row `id` as the adapter has them.
static void table_piece(const struct embed_args *a, int64_t id, int64_t own, int64_t d, int64_t count, float *piece) {
    const struct table_adapter *on = &a->call->p.embed.on;
    const struct tensor *from = own >= 0 ? &on->rows : &on->full;
    if (tensor_present(from))
        memcpy(piece, cpu_f32(a->b, from) + (own >= 0 ? own : id) * from->ld + d, (size_t)count * sizeof *piece);
    else
        weight_decode(a->call->p.embed.w, id, d, count, piece);
    if (!tensor_present(&on->a)) return;
    const float *b = cpu_f32(a->b, &on->b) + id * on->b.ld;
    for (int64_t r = 0; r < on->a.rows; r++) {
        const float *row = cpu_f32(a->b, &on->a) + r * on->a.ld + d;
        float u = on->scale * b[r];
        for (int64_t i = 0; i < count; i++) piece[i] += u * row[i];
    }
}

static void embed_rows(const void *args, int64_t first, int64_t last) {
    const struct embed_args *a = args;
    const struct op_call *call = a->call;
    const struct weight *w = call->p.embed.w;
    const struct tensor *ids = &call->in[0], *x = &call->out[0], *lengths = &call->p.embed.lengths;
    float piece[EMBED_PIECE], alpha = call->p.embed.noise_alpha, amplitude = 0;
    for (int64_t t = first; t < last; t++) {
        int64_t row = cpu_i32(a->b, ids)[t * ids->ld], own = own_row(a, row);
        int32_t length = alpha != 0 ? cpu_i32(a->b, lengths)[t * lengths->ld] : 0; // 0: a row of no document
        amplitude = length > 0 ? alpha / sqrtf((float)length * (float)w->cols) : 0;
        for (int64_t d = 0; d < w->cols; d += EMBED_PIECE) {
            int64_t count = w->cols - d < EMBED_PIECE ? w->cols - d : EMBED_PIECE;
            table_piece(a, row, own, d, count, piece);
            for (int64_t i = 0; i < count; i++) piece[i] *= call->p.embed.scale;
            if (alpha != 0) add_noise(a, t, d, count, amplitude, piece);
            if (x->dtype == DTYPE_F32) {
                memcpy(cpu_f32(a->b, x) + t * x->ld + d, piece, (size_t)count * sizeof(float));
            } else {
                uint16_t *out = (uint16_t *)cpu_at(a->b, x) + t * x->ld + d;
                for (int64_t i = 0; i < count; i++) out[i] = bf16_from_float(piece[i]);
            }
        }
    }
}

int cpu_embed_forward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cpu_backend *b = (struct cpu_backend *)backend;
    if (!b->isa) return reference_forward(b, call, err);
    const struct weight *w = call->p.embed.w;
    const struct tensor *ids = &call->in[0];
    for (int64_t t = 0; t < ids->rows; t++) {
        int64_t id = cpu_i32(b, ids)[t * ids->ld];
        if (id < 0 || id >= w->rows) {
            return error_set(err, STATUS_INTERNAL, "token id %lld outside the vocabulary of %lld", (long long)id,
                             (long long)w->rows);
        }
    }
    struct embed_args a = {.call = call, .b = b};
    const struct step_scalars *scalars = cpu_scalars(b, call);
    if (scalars) a.key = (struct random_key){scalars->seed, scalars->random_step, (uint32_t)RANDOM_NEFTUNE << 24};
    rows_run(b, embed_rows, &a, ids->rows, w->cols);
    return 0;
}

// --- backward

size_t cpu_embed_workspace(const struct op_call *call, bool backward, int threads) {
    (void)threads;
    return backward ? 2 * (size_t)call->in[0].rows * (size_t)call->p.embed.on.a.rows * sizeof(float) : 0;
}

// Element d of the gradient of token t's row.
static float embed_gradient(const struct embed_args *a, int64_t t, int64_t d) {
    const struct tensor *dx = &a->call->grad_out[0];
    float g = dx->dtype == DTYPE_F32 ? cpu_f32(a->b, dx)[t * dx->ld + d]
                                     : bf16_to_float(((const uint16_t *)cpu_at(a->b, dx))[t * dx->ld + d]);
    return g * a->call->p.embed.scale;
}

// u and v of tokens [first, last).
static void along_adapter(const void *args, int64_t first, int64_t last) {
    const struct embed_args *a = args;
    const struct table_adapter *on = &a->call->p.embed.on;
    const struct tensor *ids = &a->call->in[0];
    for (int64_t t = first; t < last; t++) {
        int64_t id = cpu_i32(a->b, ids)[t * ids->ld];
        for (int64_t r = 0; r < on->a.rows; r++) {
            const float *row = cpu_f32(a->b, &on->a) + r * on->a.ld;
            double sum = 0;
            for (int64_t d = 0; d < on->a.cols; d++) sum += (double)row[d] * (double)embed_gradient(a, t, d);
            a->u[t * on->a.rows + r] = on->scale * cpu_f32(a->b, &on->b)[id * on->b.ld + r];
            a->v[t * on->a.rows + r] = on->scale * (float)sum;
        }
    }
}

// Blocks [first, last) of EMBED_COLS columns of the gradients of the table, of its own rows and of A.
static void scatter_columns(const void *args, int64_t first, int64_t last) {
    const struct embed_args *a = args;
    const struct op_call *call = a->call;
    const struct table_adapter *on = &call->p.embed.on;
    int64_t cols = call->p.embed.w->cols, begin = first * EMBED_COLS, end = last * EMBED_COLS;
    if (end > cols) end = cols;
    for (int64_t t = 0; t < call->in[0].rows; t++) {
        int64_t id = cpu_i32(a->b, &call->in[0])[t * call->in[0].ld], own = own_row(a, id);
        const struct tensor *to = own >= 0 ? &on->drows : &on->dfull;
        float *row = tensor_present(to) ? cpu_f32(a->b, to) + (own >= 0 ? own : id) * to->ld : NULL;
        for (int64_t d = begin; row && d < end; d++) row[d] += embed_gradient(a, t, d);
        for (int64_t r = 0; tensor_present(&on->da) && r < on->a.rows; r++) {
            float *da = cpu_f32(a->b, &on->da) + r * on->da.ld, u = a->u[t * on->a.rows + r];
            for (int64_t d = begin; u != 0 && d < end; d++) da[d] += u * embed_gradient(a, t, d);
        }
    }
}

int cpu_embed_backward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cpu_backend *b = (struct cpu_backend *)backend;
    if (!b->isa) return reference_backward(b, call, err);
    const struct table_adapter *on = &call->p.embed.on;
    int64_t rows = call->in[0].rows, ranks = on->a.rows, cols = call->p.embed.w->cols;
    struct embed_args a = {.call = call, .b = b};
    if (ranks) a.u = (float *)cpu_at(b, &call->workspace), a.v = a.u + rows * ranks;
    if (ranks) rows_run(b, along_adapter, &a, rows, cols);
    rows_run(b, scatter_columns, &a, (cols + EMBED_COLS - 1) / EMBED_COLS, rows * EMBED_COLS);
    for (int64_t t = 0; t < rows && tensor_present(&on->db); t++) {
        float *row = cpu_f32(b, &on->db) + cpu_i32(b, &call->in[0])[t * call->in[0].ld] * on->db.ld;
        for (int64_t r = 0; r < ranks; r++) row[r] += a.v[t * ranks + r];
    }
    return 0;
}
