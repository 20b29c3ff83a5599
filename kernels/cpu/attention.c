// The attention op: checks the table of sequences, cuts it into units of work and runs them. Rows that belong to no
// sequence get zeros.
#include "kernels/cpu/attention.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/reference.h"

#include <sched.h>
#include <string.h>

enum { ALIGN = 64, ROWS_PER_TASK = 64 };

int64_t attention_scratch(int head_dim, int v_dim, bool backward) {
    int64_t kp = attention_padded(head_dim), vp = attention_padded(v_dim), block = ATTENTION_BLOCK;
    int64_t edge = 16 * (kp > vp ? kp : vp);
    if (backward) return block * (4 * kp + 4 * vp + 2 * block) + edge;
    return block * (2 * kp + vp + block) + edge + ATTENTION_SUBS * block * (kp + vp + 16);
}

// Whoever adds those blocks took its unit from the queue before us and needs nothing of ours, so this ends.
void attention_wait(atomic_int *progress, int64_t blocks) {
    for (int spins = 0; atomic_load_explicit(progress, memory_order_acquire) < blocks; spins++) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
        if (spins >= 1000) sched_yield();
    }
}

void attention_done(atomic_int *progress, int64_t blocks) {
    atomic_store_explicit(progress, (int)blocks, memory_order_release);
}

// Where the parts of the workspace begin, in bytes. The number of query blocks is bounded by shapes: every sequence has
// at most one that is not full.
struct layout {
    size_t units, blocks, q_covered, kv_covered, progress, delta, sinks, dq, scratch, total;
    size_t scratch_floats; // of one thread
};

static size_t take(size_t *at, size_t bytes) {
    size_t begin = *at;
    *at = (begin + bytes + ALIGN - 1) / ALIGN * ALIGN;
    return begin;
}

static struct layout workspace_layout(const struct op_call *call, bool backward, int threads) {
    struct layout w = {0};
    size_t seqs = (size_t)call->in[3].rows, tq = (size_t)call->in[0].rows, tkv = (size_t)call->in[1].rows;
    size_t heads = (size_t)call->p.attention.heads, kv_heads = (size_t)call->p.attention.kv_heads;
    w.units = take(&w.total, (seqs + 1) * sizeof(int64_t));
    w.blocks = take(&w.total, (seqs + 1) * sizeof(int64_t));
    w.q_covered = take(&w.total, tq);
    w.kv_covered = take(&w.total, backward ? tkv : 0);
    w.sinks = take(&w.total, call->p.attention.sinks ? heads * sizeof(float) : 0);
    if (backward) {
        w.progress = take(&w.total, (tq / ATTENTION_BLOCK + seqs) * kv_heads * sizeof(atomic_int));
        w.delta = take(&w.total, tq * heads * sizeof(float));
        bool copy = call->in[0].dtype != DTYPE_F32; // dq is summed in f32
        w.dq = take(&w.total, copy ? tq * heads * (size_t)call->p.attention.head_dim * sizeof(float) : 0);
    }
    w.scratch_floats = (size_t)attention_scratch(call->p.attention.head_dim, call->p.attention.v_dim, backward);
    w.scratch_floats = (w.scratch_floats + 15) / 16 * 16;
    w.scratch = take(&w.total, (size_t)(threads > 0 ? threads : 1) * w.scratch_floats * sizeof(float));
    return w;
}

size_t cpu_attention_workspace(const struct op_call *call, bool backward, int threads) {
    return workspace_layout(call, backward, threads).total;
}

struct job {
    struct cpu_backend *b;
    const struct op_call *call;
    struct attention_args args;
    struct layout w;
    char *workspace;
    int64_t n_seqs;
    int64_t *units;                                     // [n_seqs + 1] units before each sequence
    int64_t *blocks;                                    // [n_seqs + 1] query blocks before each sequence
    uint8_t *q_covered, *kv_covered;                    // per row: lies in a sequence
    int64_t heads_per_unit, blocks_per_unit, head_sets; // forward
};

static struct attention_seq seq_at(const struct job *j, int64_t n) {
    const int32_t *row = cpu_i32(j->b, &j->call->in[3]) + 4 * n;
    return (struct attention_seq){row[0], row[1], row[2], row[3]};
}

static int64_t blocks_of(int64_t rows) {
    return (rows + ATTENTION_BLOCK - 1) / ATTENTION_BLOCK;
}

// Marks rows [begin, begin + count); false when they lie outside or one is marked already.
static bool cover(uint8_t *covered, int64_t rows, int64_t begin, int64_t count) {
    if (begin < 0 || count < 0 || begin > rows || count > rows - begin) return false;
    if (!covered) return true;
    for (int64_t i = begin; i < begin + count; i++) {
        if (covered[i]) return false;
        covered[i] = 1;
    }
    return true;
}

static int job_open(struct job *j, struct cpu_backend *b, const struct op_call *call, bool backward,
                    struct error *err) {
    *j = (struct job){.b = b, .call = call, .w = workspace_layout(call, backward, b->base.threads)};
    if (tensor_bytes(&call->workspace) < j->w.total) return error_set(err, STATUS_INTERNAL, "workspace too small");
    j->workspace = cpu_at(b, &call->workspace);
    j->units = (int64_t *)(void *)(j->workspace + j->w.units);
    j->blocks = (int64_t *)(void *)(j->workspace + j->w.blocks);
    j->q_covered = (uint8_t *)j->workspace + j->w.q_covered;
    memset(j->q_covered, 0, (size_t)call->in[0].rows);
    if (backward) {
        j->kv_covered = (uint8_t *)j->workspace + j->w.kv_covered;
        memset(j->kv_covered, 0, (size_t)call->in[1].rows);
    }
    j->n_seqs = call->in[3].rows;
    for (int64_t n = 0; n < j->n_seqs; n++) {
        struct attention_seq s = seq_at(j, n);
        // Keys may be shared between sequences that are only read; nobody can add to them from two sides at once.
        if (s.q_len != 0 && (!cover(j->q_covered, call->in[0].rows, s.q_begin, s.q_len) ||
                             !cover(j->kv_covered, call->in[1].rows, s.kv_begin, s.kv_len))) {
            return error_set(err, STATUS_INTERNAL,
                             "sequence %lld {%lld, %lld, %lld, %lld} lies outside the rows or on others", (long long)n,
                             (long long)s.q_begin, (long long)s.q_len, (long long)s.kv_begin, (long long)s.kv_len);
        }
    }
    j->args = (struct attention_args){.dtype = call->in[0].dtype,
                                      .group = call->p.attention.heads / call->p.attention.kv_heads,
                                      .head_dim = call->p.attention.head_dim,
                                      .v_dim = call->p.attention.v_dim,
                                      .scale = call->p.attention.scale,
                                      .soft_cap = call->p.attention.soft_cap,
                                      .window = call->p.attention.window,
                                      .chunk = call->p.attention.chunk,
                                      .q = matrix_of(b, &call->in[0]),
                                      .k = matrix_of(b, &call->in[1]),
                                      .v = matrix_of(b, &call->in[2]),
                                      .o = matrix_of(b, &call->out[0]),
                                      .lse = matrix_of(b, &call->saved[0])};
    const struct weight *sinks = call->p.attention.sinks;
    if (sinks) {
        float *values = (float *)(void *)(j->workspace + j->w.sinks);
        weight_decode(sinks, 0, 0, sinks->cols, values);
        j->args.sinks = values;
    }
    return 0;
}

static float *scratch_of(const struct job *j, int thread) {
    return (float *)(void *)(j->workspace + j->w.scratch) + (size_t)thread * j->w.scratch_floats;
}

// The sequence that unit i belongs to.
static int64_t seq_of_unit(const struct job *j, int64_t i) {
    int64_t low = 0, high = j->n_seqs - 1;
    while (low < high) {
        int64_t middle = (low + high + 1) / 2;
        if (j->units[middle] <= i)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

static void zero_row(const struct tensor *t, const struct cpu_backend *b, int64_t row) {
    if (!tensor_present(t)) return;
    size_t size = dtype_size(t->dtype);
    memset((char *)cpu_at(b, t) + (size_t)(row * t->ld) * size, 0, (size_t)t->cols * size);
}

// --- forward

// Query blocks of a sequence go from the last to the first: the last see most keys, and long units should start early.
static void forward_task(void *context, int64_t i, int thread) {
    const struct job *j = context;
    int64_t n = seq_of_unit(j, i), inner = i - j->units[n];
    struct attention_unit u = {.seq = seq_at(j, n)};
    int64_t blocks = blocks_of(u.seq.q_len), sets = j->head_sets * j->call->p.attention.kv_heads;
    int64_t groups = (blocks + j->blocks_per_unit - 1) / j->blocks_per_unit;
    int64_t set = inner % sets, group = groups - 1 - inner / sets;
    u.kv_head = set / j->head_sets;
    u.head = u.kv_head * j->args.group + set % j->head_sets * j->heads_per_unit;
    int64_t end = (u.kv_head + 1) * j->args.group;
    u.heads = end - u.head < j->heads_per_unit ? end - u.head : j->heads_per_unit;
    u.block = group * j->blocks_per_unit;
    u.blocks = blocks - u.block < j->blocks_per_unit ? blocks - u.block : j->blocks_per_unit;
    j->b->isa->attention->forward(&j->args, &u, scratch_of(j, thread));
}

// Heads that share keys go together as far as a unit can carry them, unless the threads would run out of units: rows
// are independent, so the split changes no bit.
static int64_t plan_forward(struct job *j) {
    int64_t group = j->args.group, kv_heads = j->call->p.attention.kv_heads, total = 0;
    j->heads_per_unit = group < ATTENTION_SUBS ? group : ATTENTION_SUBS;
    j->blocks_per_unit = ATTENTION_SUBS / j->heads_per_unit;
    for (int pass = 0; pass < 2; pass++) {
        j->head_sets = (group + j->heads_per_unit - 1) / j->heads_per_unit;
        total = 0;
        for (int64_t n = 0; n < j->n_seqs; n++) {
            int64_t blocks = blocks_of(seq_at(j, n).q_len);
            j->units[n] = total;
            total += (blocks + j->blocks_per_unit - 1) / j->blocks_per_unit * j->head_sets * kv_heads;
        }
        j->units[j->n_seqs] = total;
        if (total >= 4 * threads_count(j->b->threads)) break;
        j->heads_per_unit = j->blocks_per_unit = 1;
    }
    return total;
}

int cpu_attention_forward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cpu_backend *b = (struct cpu_backend *)backend;
    if (!b->isa) return reference_forward(b, call, err);
    struct job j;
    if (job_open(&j, b, call, false, err)) return -1;
    for (int64_t t = 0; t < call->in[0].rows; t++) {
        if (!j.q_covered[t]) zero_row(&call->out[0], b, t), zero_row(&call->saved[0], b, t);
    }
    threads_run(b->threads, plan_forward(&j), forward_task, &j);
    return 0;
}

// --- backward

// Rows: delta = sum of do * o, dq = 0 where it is stored.
static void open_task(void *context, int64_t i, int thread) {
    const struct job *j = context;
    const struct op_call *call = j->call;
    (void)thread;
    for (int64_t t = i * ROWS_PER_TASK; t < (i + 1) * ROWS_PER_TASK && t < call->in[0].rows; t++) {
        if (j->q_covered[t]) j->b->isa->attention->delta(&j->args, call->p.attention.heads, t);
        if (!tensor_present(&call->grad_in[0])) continue;
        if (call->in[0].dtype != DTYPE_F32) {
            memset(j->args.dq.p + (size_t)(t * j->args.dq.ld) * sizeof(float), 0,
                   (size_t)call->in[0].cols * sizeof(float));
        } else if (!call->acc[0]) {
            zero_row(&call->grad_in[0], j->b, t);
        }
    }
}

static void close_task(void *context, int64_t i, int thread) {
    const struct job *j = context;
    const struct op_call *call = j->call;
    int64_t begin = i * ROWS_PER_TASK, end = begin + ROWS_PER_TASK;
    (void)thread;
    struct pass_args a = {.scale = 1,
                          .x_dtype = DTYPE_F32,
                          .y_dtype = call->grad_in[0].dtype,
                          .cols = call->in[0].cols,
                          .x = j->args.dq,
                          .y = matrix_of(j->b, &call->grad_in[0]),
                          .acc = call->acc[0]};
    j->b->isa->rows->pass(&a, begin, end < call->in[0].rows ? end : call->in[0].rows);
}

// Units of a sequence: key blocks in order, kv heads inside. dq of a query block is the sum over key blocks in order
// (progress); threads work on different kv heads as long as there are enough, and then nobody waits.
static void backward_task(void *context, int64_t i, int thread) {
    const struct job *j = context;
    int64_t n = seq_of_unit(j, i), inner = i - j->units[n], kv_heads = j->call->p.attention.kv_heads;
    struct attention_unit u = {.seq = seq_at(j, n), .kv_head = inner % kv_heads, .block = inner / kv_heads};
    u.head = u.kv_head * j->args.group;
    u.heads = j->args.group;
    int64_t total = j->blocks[j->n_seqs];
    u.progress = (atomic_int *)(void *)(j->workspace + j->w.progress) + u.kv_head * total + j->blocks[n];
    j->b->isa->attention->backward(&j->args, &u, scratch_of(j, thread));
}

static int64_t plan_backward(struct job *j) {
    int64_t total = 0, blocks = 0, kv_heads = j->call->p.attention.kv_heads;
    for (int64_t n = 0; n < j->n_seqs; n++) {
        struct attention_seq s = seq_at(j, n);
        j->units[n] = total;
        j->blocks[n] = blocks;
        if (s.q_len == 0) continue;
        total += blocks_of(s.kv_len) * kv_heads;
        blocks += blocks_of(s.q_len);
    }
    j->units[j->n_seqs] = total;
    j->blocks[j->n_seqs] = blocks;
    atomic_int *progress = (atomic_int *)(void *)(j->workspace + j->w.progress);
    for (int64_t i = 0; i < blocks * kv_heads; i++) atomic_init(&progress[i], 0);
    return total;
}

int cpu_attention_backward(struct backend *backend, const struct op_call *call, struct error *err) {
    struct cpu_backend *b = (struct cpu_backend *)backend;
    if (!b->isa) return reference_backward(b, call, err);
    if (!tensor_present(&call->saved[0])) return error_set(err, STATUS_INTERNAL, "lse was not saved");
    if (!tensor_present(&call->grad_out[0])) return error_set(err, STATUS_INTERNAL, "no gradient of o");
    struct job j;
    if (job_open(&j, b, call, true, err)) return -1;
    j.args.d_o = matrix_of(b, &call->grad_out[0]);
    j.args.dq = matrix_of(b, &call->grad_in[0]);
    j.args.dk = matrix_of(b, &call->grad_in[1]);
    j.args.dv = matrix_of(b, &call->grad_in[2]);
    j.args.acc_k = call->acc[1];
    j.args.acc_v = call->acc[2];
    j.args.delta = (struct matrix){j.workspace + j.w.delta, call->p.attention.heads};
    bool copy = tensor_present(&call->grad_in[0]) && call->in[0].dtype != DTYPE_F32;
    if (copy) j.args.dq = (struct matrix){j.workspace + j.w.dq, call->in[0].cols};
    int64_t row_tasks = (call->in[0].rows + ROWS_PER_TASK - 1) / ROWS_PER_TASK;
    threads_run(b->threads, row_tasks, open_task, &j);
    for (int64_t t = 0; t < call->in[1].rows; t++) {
        if (j.kv_covered[t]) continue;
        if (!call->acc[1]) zero_row(&call->grad_in[1], b, t);
        if (!call->acc[2]) zero_row(&call->grad_in[2], b, t);
    }
    threads_run(b->threads, plan_backward(&j), backward_task, &j);
    if (copy) threads_run(b->threads, row_tasks, close_task, &j);
    return 0;
}
