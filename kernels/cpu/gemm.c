// The packed GEMM: see gemm.h. A job is cut into tasks of a few panels (48 columns of C each) by up to GEMM_CHUNK rows.
// A task walks over blocks of the inner index; for each it decodes the panels, unless its thread holds them already,
// and then lets every tile of C run through all terms of the block while the tile is in the first-level cache.
#include "kernels/cpu/gemm.h"

#include <assert.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum {
    SMALL_ROWS = 16,    // so few rows of C: blocks of one cut, so that the panel stays in the first-level cache
    IN_PLACE_ROWS = 64, // so few rows of C: fp32 sources with lanes along their rows are read where they are
    LEAST_CHUNK = 128,  // rows per task below which decoding a weight twice costs more than an idle thread
    LONG_CHAIN = 8192,  // longer inner indices are done block by block by all threads together, sharing X in cache
    MAX_PIECES = 32,    // terms that meet in one block
    MAX_GROUP = 4,      // panels that share a pass over X, where so many fit
};

// What a thread works in.
struct scratch {
    _Alignas(64) float panel[GEMM_BLOCK * GEMM_COLS];
    float x[GEMM_ROWS * GEMM_BLOCK];      // rows of X that were converted or masked
    float c[GEMM_CHUNK * GEMM_COLS];      // C, where it cannot be built in place
    float product[GEMM_ROWS * GEMM_COLS]; // a term that is masked before it is added
    float decoded[GEMM_CUT * GEMM_COLS];  // on the way to pairs of bf16
    float bias[MAX_GROUP * GEMM_COLS];
    int64_t held_job, held_group, held_block; // what `panel` holds
};

// A term's part of a block, and where its panel lies.
struct piece {
    const struct gemm_term *term;
    int64_t k0, k;
    const float *panel;
    int64_t ld;
};

// How a job is cut.
struct cut {
    int64_t first_task, groups, chunks, chunk_rows, blocks, block_length;
    int panels; // in a group
};

struct run {
    const struct gemm_isa *isa;
    const struct gemm_job *jobs;
    int n_jobs, n_threads;
    struct scratch *scratch;        // [threads]
    int64_t block_begin, block_end; // of this round
    struct cut cuts[GEMM_MAX_JOBS];
};

static int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}
static int64_t divide_up(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}
static int64_t round_up(int64_t a, int64_t b) {
    return divide_up(a, b) * b;
}

size_t gemm_workspace_bytes(int threads) {
    return (size_t)threads * sizeof(struct scratch);
}

struct gemm_source gemm_source_weight(const struct gemm_isa *isa, const struct weight *w, bool lanes_are_rows) {
    struct gemm_source s = {.format = w->format->id, .n = lanes_are_rows ? w->rows : w->cols};
    const struct gemm_table_decoder *table = w->tables ? &isa->table_decoders[w->format->id] : NULL;
    if (w->tables || w->turned_rows || !isa->decoders[w->format->id].rows)
        s.weight = w, s.table = table && table->fits && table->fits(w) ? table : NULL;
    else
        s.data = w->data, s.stride = weight_stride(w), s.transposed = w->transposed;
    return s;
}

struct gemm_source gemm_source_memory(const void *data, bool bf16, int64_t ld, int64_t n) {
    return (struct gemm_source){
        .format = bf16 ? QUANT_BF16 : QUANT_F32, .data = data, .stride = (size_t)ld * (bf16 ? 2 : 4), .n = n};
}

// --- cutting

// Terms lie one after another on a line of inner indices, each rounded up to whole cuts; blocks are equal stretches of
// that line. So a term is only ever cut at multiples of GEMM_CUT, whatever stands before it.
static int64_t line_length(const struct gemm_job *job) {
    int64_t length = 0;
    for (int i = 0; i < job->n_terms; i++) length += round_up(job->terms[i].k, GEMM_CUT);
    return length;
}

static struct cut cut_job(const struct gemm_job *job, int threads, int64_t first_task) {
    struct cut c = {.first_task = first_task, .panels = 1};
    if (job->m == 0 || job->n == 0) return (struct cut){.first_task = first_task}; // no tasks
    int64_t length = line_length(job), target = job->m <= SMALL_ROWS ? GEMM_CUT : GEMM_BLOCK;
    c.blocks = divide_up(length, target);
    c.block_length = round_up(divide_up(length, c.blocks), GEMM_CUT);
    c.blocks = divide_up(length, c.block_length);
    // Enough tasks for threads that are not equally fast, but chunks worth a panel.
    int64_t panels = divide_up(job->n, GEMM_COLS), wanted = threads == 1 ? 1 : 4 * threads;
    int64_t most = divide_up(job->m, job->n <= GEMM_COLS ? 2 * GEMM_ROWS : LEAST_CHUNK);
    if (c.blocks == 1 && job->m > SMALL_ROWS) {
        int64_t rows = 0; // of a panel
        for (int i = 0; i < job->n_terms; i++) rows += round_up(job->terms[i].k, 2);
        int64_t group = least(least(MAX_GROUP, GEMM_BLOCK / rows), panels * most / wanted);
        if (group > 1) c.panels = (int)divide_up(panels, divide_up(panels, group));
    }
    c.groups = divide_up(panels, c.panels);
    int64_t chunks = least(divide_up(wanted, c.groups), most);
    if (chunks < divide_up(job->m, GEMM_CHUNK)) chunks = divide_up(job->m, GEMM_CHUNK);
    c.chunk_rows = least(round_up(divide_up(job->m, chunks), GEMM_ROWS), GEMM_CHUNK);
    c.chunks = divide_up(job->m, c.chunk_rows);
    return c;
}

// --- panels

static bool in_place(const struct gemm_job *job, const struct gemm_term *t, int64_t columns) {
    return !t->lanes_are_rows && t->sources->format == QUANT_F32 && t->masked != GEMM_MASK_SOURCE && !t->bf16 &&
           columns == GEMM_COLS && job->m <= IN_PLACE_ROWS && !t->sources->weight && !t->sources->transposed &&
           (uintptr_t)t->sources->data % sizeof(float) == 0 && t->sources->stride % sizeof(float) == 0;
}

// What a panel is to hold: inner indices k0 .. k0 + k of a term, columns n0 .. n0 + columns of C.
struct wanted {
    const struct gemm_term *term;
    int64_t k0, k, n0, columns;
    int64_t next; // columns whose weights will be wanted next, to be fetched meanwhile; -1 = none
};

// Rows of the only source. With few rows of C, weights come from cold memory as fast as they are decoded, in steps that
// no hardware prefetcher follows; so the same share of the next panel's bytes is asked for, a little between any two
// groups of lanes: a burst would block the demand loads (measured: 5 % faster in a burst, 18 % spread out).
static void decode_ahead(const struct gemm_isa *isa, float *panel, const struct wanted *w) {
    const struct gemm_source *s = w->term->sources;
    const uint8_t *next = s->data + (size_t)w->next * s->stride;
    size_t bytes = (size_t)least(s->n - w->next, GEMM_COLS) * s->stride, inner = (size_t)w->term->k;
    size_t at = bytes * (size_t)w->k0 / inner, share = bytes * (size_t)(w->k0 + w->k) / inner - at;
    for (int64_t lane = 0; lane < w->columns; lane += 16) {
        size_t end = at + share / 3;
        for (; at < end; at += 64) __builtin_prefetch(next + at, 0, 2);
        isa->decoders[s->format].rows(panel + lane, s->data + (size_t)(w->n0 + lane) * s->stride, s->stride, w->k0,
                                      w->k, (int)least(w->columns - lane, 16));
    }
}

// Formats without a fast decoder: `n` lanes, of rows or of columns, from `lane` on.
static void decode_any(float *panel, const struct weight *w, bool lanes_are_rows, int64_t lane, int64_t k0, int64_t k,
                       int64_t n) {
    float piece[2 * GEMM_CUT];
    for (int64_t i = 0; i < k && !lanes_are_rows; i++) weight_decode(w, k0 + i, lane, n, panel + i * GEMM_COLS);
    for (int64_t i = 0; i < n && lanes_are_rows; i++) {
        for (int64_t done = 0; done < k; done += 2 * GEMM_CUT) {
            int64_t count = least(k - done, 2 * GEMM_CUT);
            weight_decode(w, lane + i, k0 + done, count, piece);
            for (int64_t j = 0; j < count; j++) panel[(done + j) * GEMM_COLS + i] = piece[j];
        }
    }
}

// Rows that are stored turned in blocks: in each block lanes and inner indices change places.
static void decode_turned(float *panel, const struct weight *w, bool lanes_are_rows, int64_t lane, int64_t k0,
                          int64_t k, int64_t n) {
    int64_t block = w->turned_rows, first = lanes_are_rows ? lane : k0, end = first + (lanes_are_rows ? n : k);
    for (int64_t row = first; row < end;) {
        struct weight stored = weight_turned_block(w, row / block);
        int64_t inside = row % block, count = least(block - inside, end - row);
        if (lanes_are_rows)
            decode_any(panel + (row - first), &stored, false, inside, k0, k, count);
        else
            decode_any(panel + (row - first) * GEMM_COLS, &stored, true, lane, inside, count, n);
        row += count;
    }
}

static void decode(const struct gemm_isa *isa, float *panel, const struct wanted *w) {
    const struct gemm_term *t = w->term;
    if (w->columns % 16 || t->n_sources > 1) memset(panel, 0, (size_t)w->k * GEMM_COLS * sizeof *panel);
    if (w->next >= 0) {
        decode_ahead(isa, panel, w);
        return;
    }
    int64_t begin = 0, end = w->n0 + w->columns; // begin: first column of the source
    for (int i = 0; i < t->n_sources && begin < end; begin += t->sources[i++].n) {
        const struct gemm_source *s = &t->sources[i];
        const struct gemm_decoder *d = &isa->decoders[s->format];
        int64_t from = begin > w->n0 ? begin : w->n0, to = least(begin + s->n, end);
        if (from >= to) continue;
        float *p = panel + (from - w->n0);
        if (s->table && t->lanes_are_rows)
            s->table->rows(p, s->weight, from - begin, w->k0, w->k, (int)(to - from));
        else if (s->table)
            s->table->cols(p, s->weight, w->k0, w->k, from - begin, (int)(to - from));
        else if (s->weight && s->weight->turned_rows)
            decode_turned(p, s->weight, t->lanes_are_rows, from - begin, w->k0, w->k, to - from);
        else if (s->weight)
            decode_any(p, s->weight, t->lanes_are_rows, from - begin, w->k0, w->k, to - from);
        else if (t->lanes_are_rows != s->transposed)
            d->rows(p, s->data + (size_t)(from - begin) * s->stride, s->stride, w->k0, w->k, (int)(to - from));
        else
            d->cols(p, s->data + (size_t)w->k0 * s->stride, s->stride, w->k, from - begin, (int)(to - from));
    }
    for (int64_t i = 0; i < w->k && t->masked == GEMM_MASK_SOURCE; i++) {
        float *row = panel + i * GEMM_COLS;
        isa->dropout(row, row, w->columns, w->n0, &t->dropout, w->k0 + i);
    }
}

// decode() for bf16 products: rows 2i and 2i + 1 as pairs, an odd end filled up with zeros. Without the instruction the
// panel stays fp32, with the rows of a pair exchanged, and the fp32 tile does what vdpbf16ps would do.
static void decode_bf16(struct scratch *s, const struct gemm_isa *isa, float *panel, const struct wanted *w) {
    for (int64_t i = 0; i < w->k; i += GEMM_CUT) {
        struct wanted part = *w;
        part.k0 += i, part.k = least(w->k - i, GEMM_CUT);
        int64_t even = round_up(part.k, 2);
        float *to = isa->pack_bf16 ? s->decoded : panel + i * GEMM_COLS;
        decode(isa, to, &part);
        if (even > part.k) memset(to + part.k * GEMM_COLS, 0, GEMM_COLS * sizeof *to);
        if (isa->pack_bf16)
            isa->pack_bf16((uint32_t *)(void *)panel + i / 2 * GEMM_COLS, to, even);
        else
            isa->round_panel(to, even);
    }
}

// The panels of a group over one block, in pieces; decodes what the thread does not hold.
struct opened {
    int count[MAX_GROUP];
    struct piece pieces[MAX_GROUP][MAX_PIECES];
};

static void open_block(struct scratch *s, const struct run *run, int64_t job, int64_t group, int64_t block,
                       struct opened *opened) {
    const struct gemm_job *j = &run->jobs[job];
    const struct cut *cut = &run->cuts[job];
    int64_t from = block * cut->block_length, to = from + cut->block_length, used = 0;
    bool held = s->held_job == job && s->held_group == group && s->held_block == block;
    for (int g = 0; g < cut->panels; g++) {
        int64_t n0 = (group * cut->panels + g) * GEMM_COLS, columns = least(j->n - n0, GEMM_COLS), line = 0;
        opened->count[g] = 0;
        for (int i = 0; i < j->n_terms && line < to && columns > 0; line += round_up(j->terms[i].k, GEMM_CUT), i++) {
            const struct gemm_term *t = &j->terms[i];
            int64_t k0 = from > line ? from - line : 0, k1 = least(t->k, to - line);
            if (k0 >= k1) continue;
            assert(opened->count[g] < MAX_PIECES);
            struct piece *p = &opened->pieces[g][opened->count[g]++];
            float *at = s->panel + used * GEMM_COLS;
            *p = (struct piece){t, k0, k1 - k0, at, GEMM_COLS};
            if (in_place(j, t, columns)) {
                p->ld = (int64_t)(t->sources->stride / sizeof(float));
                p->panel = (const float *)(const void *)t->sources->data + k0 * p->ld + n0;
                continue;
            }
            used += round_up(p->k, 2);
            if (held) continue;
            struct wanted w = {t, k0, p->k, n0, columns, -1};
            int64_t next = n0 + run->n_threads * GEMM_COLS; // whoever takes one panel of n_threads comes by there
            if (j->m <= SMALL_ROWS && t->lanes_are_rows && t->n_sources == 1 && next < t->sources->n &&
                !t->sources->weight && !t->sources->transposed) {
                w.next = next;
            }
            if (t->bf16)
                decode_bf16(s, run->isa, at, &w);
            else
                decode(run->isa, at, &w);
        }
    }
    s->held_job = job, s->held_group = group, s->held_block = block;
}

// --- tiles

// vdpbf16ps reads numbers below the normal range as 0 and writes none; fp32 tiles that stand in for it do the same.
static unsigned flush_begin(void) {
#if defined(__x86_64__)
    unsigned old = _mm_getcsr();
    _mm_setcsr(old | 0x8040u);
    return old;
#else
    return 0;
#endif
}
static void flush_end(unsigned old) {
#if defined(__x86_64__)
    _mm_setcsr(old);
#else
    (void)old;
#endif
}

// A term over rows m .. m + rows of C (c is the tile of row m).
struct tile {
    float *c;
    int64_t ldc;
    const float *init;
    int64_t ld_init;
    int64_t m, n0;
    int rows, columns;
};

static void run_bf16(struct scratch *s, const struct gemm_isa *isa, const struct piece *p, const struct tile *t) {
    const uint16_t *x = (const uint16_t *)p->term->x + t->m * p->term->x_row + p->k0;
    int64_t row = p->term->x_row, even = round_up(p->k, 2);
    if (isa->tile_bf16) {
        if (p->k % 2) { // the neighbour of the last element is not ours to read
            uint16_t *copy = (uint16_t *)(void *)s->x;
            for (int i = 0; i < t->rows; i++) {
                memcpy(copy + i * even, x + i * row, (size_t)p->k * sizeof *x);
                copy[i * even + p->k] = 0;
            }
            x = copy, row = even;
        }
        isa->tile_bf16(&(struct gemm_tile_bf16){t->c, t->init, x, (const uint32_t *)(const void *)p->panel, t->ldc,
                                                t->ld_init, row, even / 2, t->rows, t->columns});
        return;
    }
    for (int i = 0; i < t->rows; i++) {
        float *out = s->x + i * even;
        isa->from_bf16(out, x + i * row, p->k - p->k % 2, true);
        if (p->k % 2) out[even - 1] = bf16_to_float(x[i * row + p->k - 1]), out[even - 2] = 0;
    }
    unsigned old = flush_begin();
    isa->tile(&(struct gemm_tile){t->c, t->init, s->x, p->panel, t->ldc, t->ld_init, even, 1, p->ld, even, t->rows,
                                  t->columns});
    flush_end(old);
}

static void run_fp32(struct scratch *s, const struct gemm_isa *isa, const struct piece *p, const struct tile *t) {
    const struct gemm_term *term = p->term;
    const float *x;
    int64_t row = term->x_row, step = term->x_k;
    if (term->x_bf16 || term->masked == GEMM_MASK_X) {
        assert(term->x_k == 1);
        for (int i = 0; i < t->rows; i++) {
            float *out = s->x + i * p->k;
            int64_t at = (t->m + i) * term->x_row + p->k0;
            const float *from = out;
            if (term->x_bf16)
                isa->from_bf16(out, (const uint16_t *)term->x + at, p->k, false);
            else
                from = (const float *)term->x + at;
            if (term->masked == GEMM_MASK_X) isa->dropout(out, from, p->k, p->k0, &term->dropout, t->m + i);
        }
        x = s->x, row = p->k, step = 1;
    } else {
        x = (const float *)term->x + t->m * row + p->k0 * step;
    }
    bool masked = term->masked == GEMM_MASK_PRODUCT;
    struct gemm_tile g = {t->c, t->init, x, p->panel, t->ldc, t->ld_init, row, step, p->ld, p->k, t->rows, t->columns};
    if (masked) g.c = s->product, g.ldc = GEMM_COLS, g.init = NULL;
    isa->tile(&g);
    if (!masked) return;
    for (int i = 0; i < t->rows; i++) {
        float *add = s->product + i * GEMM_COLS, *c = t->c + i * t->ldc;
        const float *init = t->init + i * t->ld_init;
        isa->dropout(add, add, t->columns, t->n0, &term->dropout, t->m + i);
        for (int j = 0; j < t->columns; j++) c[j] = init[j] + add[j];
    }
}

// C between its place and a tile in scratch memory.
static void load_c(const struct gemm_isa *isa, float *tile, const struct gemm_job *job, const struct tile *t) {
    for (int i = 0; i < t->rows; i++) {
        float *row = tile + i * GEMM_COLS;
        if (job->c_transposed) {
            const float *c = (const float *)job->c + t->n0 * job->ldc + t->m + i;
            for (int j = 0; j < t->columns; j++) row[j] = c[j * job->ldc];
        } else {
            isa->from_bf16(row, (const uint16_t *)job->c + (t->m + i) * job->ldc + t->n0, t->columns, false);
        }
    }
}
static void store_c(const struct gemm_isa *isa, const float *tile, const struct gemm_job *job, const struct tile *t) {
    for (int i = 0; i < t->rows; i++) {
        const float *row = tile + i * GEMM_COLS;
        if (job->c_transposed) {
            float *c = (float *)job->c + t->n0 * job->ldc + t->m + i;
            for (int j = 0; j < t->columns; j++) c[j * job->ldc] = row[j];
        } else {
            isa->to_bf16((uint16_t *)job->c + (t->m + i) * job->ldc + t->n0, row, t->columns);
        }
    }
}

// One tile through all pieces of a block. `m0` is the task's first row, t.init the bias where the job has one.
static void run_tile(struct scratch *s, const struct gemm_isa *isa, const struct gemm_job *job,
                     const struct piece *pieces, int n_pieces, bool first, bool last, int64_t m0, struct tile t) {
    bool direct = !job->c_bf16 && !job->c_transposed;
    if (direct) {
        t.c = (float *)job->c + t.m * job->ldc + t.n0, t.ldc = job->ldc;
    } else {
        t.c = s->c + (first && last ? 0 : t.m - m0) * GEMM_COLS, t.ldc = GEMM_COLS;
    }
    if (!first || !job->bias) t.init = t.c, t.ld_init = t.ldc;
    if (first && !job->bias && !job->acc) t.init = NULL;
    if (first && job->acc && !direct) load_c(isa, t.c, job, &t);
    for (int i = 0; i < n_pieces; i++) {
        const struct gemm_term *term = pieces[i].term;
        int64_t begin = t.m > term->row_begin ? t.m : term->row_begin, end = least(t.m + t.rows, term->row_end);
        if (begin >= end) continue;
        struct tile part = t;
        part.m = begin, part.rows = (int)(end - begin);
        part.c += (begin - t.m) * t.ldc;
        if (part.init) part.init += (begin - t.m) * t.ld_init;
        if (term->bf16)
            run_bf16(s, isa, &pieces[i], &part);
        else
            run_fp32(s, isa, &pieces[i], &part);
        t.init = t.c, t.ld_init = t.ldc; // the first term covers all rows
    }
    if (!last) return;
    if (job->scale != 1.0f) {
        for (int i = 0; i < t.rows; i++) {
            for (int j = 0; j < t.columns; j++) t.c[i * t.ldc + j] *= job->scale;
        }
    }
    if (!direct) store_c(isa, t.c, job, &t);
}

static void run_task(void *context, int64_t task, int thread) {
    const struct run *run = context;
    struct scratch *s = &run->scratch[thread];
    int j = 0;
    while (j + 1 < run->n_jobs && task >= run->cuts[j + 1].first_task) j++; // past jobs without tasks, too
    const struct gemm_job *job = &run->jobs[j];
    const struct cut *cut = &run->cuts[j];
    int64_t group = (task - cut->first_task) / cut->chunks, chunk = (task - cut->first_task) % cut->chunks;
    int64_t m0 = chunk * cut->chunk_rows, m1 = least(m0 + cut->chunk_rows, job->m);
    int64_t n0 = group * cut->panels * GEMM_COLS, n1 = least(n0 + cut->panels * GEMM_COLS, job->n);
    for (int64_t n = n0; n < n1 && job->bias; n += GEMM_COLS) {
        weight_decode(job->bias, 0, n, least(n1 - n, GEMM_COLS), s->bias + (n - n0));
    }
    struct opened opened;
    for (int64_t b = run->block_begin; b < least(run->block_end, cut->blocks); b++) {
        open_block(s, run, j, group, b, &opened);
        bool first = b == 0, last = b == cut->blocks - 1;
        for (int64_t m = m0; m < m1; m += GEMM_ROWS) {
            for (int64_t n = n0, g = 0; n < n1; n += GEMM_COLS, g++) {
                struct tile t = {.m = m, .n0 = n, .rows = (int)least(m1 - m, GEMM_ROWS)};
                t.columns = (int)least(n1 - n, GEMM_COLS);
                if (first && job->bias) t.init = s->bias + (n - n0);
                run_tile(s, run->isa, job, opened.pieces[g], opened.count[g], first, last, m0, t);
            }
        }
    }
}

void gemm_run(struct threads *threads, const struct gemm_isa *isa, const struct gemm_job *jobs, int n_jobs,
              void *workspace) {
    assert(n_jobs <= GEMM_MAX_JOBS);
    struct run run = {
        .isa = isa, .jobs = jobs, .n_jobs = n_jobs, .n_threads = threads_count(threads), .scratch = workspace};
    int64_t tasks = 0, blocks = 0, longest = 0;
    bool in_rounds = true; // C kept in scratch memory would not outlive a round
    for (int i = 0; i < n_jobs; i++) {
        assert(jobs[i].n_terms > 0 && jobs[i].terms[0].k > 0);
        run.cuts[i] = cut_job(&jobs[i], run.n_threads, tasks);
        tasks += run.cuts[i].groups * run.cuts[i].chunks;
        if (run.cuts[i].blocks > blocks) blocks = run.cuts[i].blocks;
        if (line_length(&jobs[i]) > longest) longest = line_length(&jobs[i]);
        if (jobs[i].c_bf16 || jobs[i].c_transposed || jobs[i].m <= SMALL_ROWS) in_rounds = false;
    }
    for (int i = 0; i < run.n_threads; i++) run.scratch[i].held_job = -1;
    int64_t step = in_rounds && longest > LONG_CHAIN ? 1 : blocks;
    for (run.block_end = step; run.block_begin < blocks; run.block_begin += step, run.block_end += step) {
        threads_run(threads, tasks, run_task, &run);
    }
}
