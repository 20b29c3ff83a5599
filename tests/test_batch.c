// Micro-batches: every sample once, the same for the same key, rows and sequences as promised, little padding.
#include "data/batch.h"
#include "tests/harness.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// A dataset of samples with given lengths: ids 1000 * row + token, the second half of each row trained.
static struct dataset make(const int32_t *lengths, size_t n) {
    struct dataset d = {.count = n};
    d.samples = mem_zalloc(n, sizeof *d.samples);
    for (size_t i = 0; i < n; i++) {
        struct sample *s = &d.samples[i];
        int32_t *ids = pool_array(&d.pool, (uint64_t)lengths[i], sizeof *ids);
        uint8_t *why = pool_alloc(&d.pool, (size_t)lengths[i]);
        for (int32_t t = 0; t < lengths[i]; t++) {
            ids[t] = (int32_t)i * 1000 + t;
            why[t] = t >= lengths[i] / 2 ? WHY_ANSWER : WHY_PROMPT;
        }
        *s = (struct sample){.row = (uint32_t)i, .line = (uint32_t)i + 1, .count = lengths[i], .ids = ids, .why = why};
        for (int32_t t = 1; t < s->count; t++) s->trained += t >= lengths[i] / 2;
        d.tokens += (uint64_t)lengths[i];
    }
    return d;
}

// Lengths as conversations have them: lognormal, median 220 tokens.
static struct dataset lognormal(size_t n, int32_t most, unsigned seed) {
    int32_t *lengths = mem_zalloc(n, sizeof *lengths);
    for (size_t i = 0; i < n; i++) {
        double u = (test_random(seed, (unsigned)(2 * i)) + 1) / 2,
               v = (test_random(seed, (unsigned)(2 * i + 1)) + 1) / 2;
        double normal = sqrt(-2 * log(1 - u)) * cos(6.283185307179586 * v);
        double length = exp(5.4 + 0.9 * normal);
        lengths[i] = length < 4 ? 4 : length > most ? most : (int32_t)length;
    }
    struct dataset d = make(lengths, n);
    mem_free(lengths);
    return d;
}

static struct loader *open_loader(const struct dataset *d, struct loader_options o) {
    struct error err = {0};
    struct loader *l = loader_open(d, &o, &err);
    CHECK_MSG(l != NULL, "%s", err.text);
    return l;
}

static void check_sequence(const struct batch *b, int32_t n, int32_t at) {
    const struct sample *s = b->samples[n];
    const int32_t *seq = b->seqs + 4 * n;
    CHECK(seq[0] == at && seq[1] == s->count && seq[2] == at && seq[3] == s->count);
    for (int32_t t = 0; t < s->count; t++) {
        bool trained = t + 1 < s->count && token_why_trained((enum token_why)s->why[t + 1]);
        int32_t r = at + t;
        bool fine = b->ids[r] == s->ids[t] && b->positions[r] == t && b->lengths[r] == s->count &&
                    b->keys[2 * r] == s->row && b->keys[2 * r + 1] == (uint32_t)t &&
                    b->weights[r] == (trained ? 1.0f : 0.0f) && b->targets[r] == (trained ? s->ids[t + 1] : 0);
        if (!fine) test_fail(__FILE__, __LINE__, "row %d of the micro-batch is wrong", r);
    }
}

static void check_batch(const struct batch *b, const struct loader_options *o, double weight) {
    int32_t at = 0, trained = 0;
    double sum = 0;
    for (int32_t n = 0; n < b->n_seqs; n++) {
        check_sequence(b, n, at);
        at += b->samples[n]->count;
    }
    CHECK_INT(at, b->tokens);
    CHECK(b->tokens <= b->rows && b->rows % 64 == 0 && b->rows <= b->max_rows && b->n_seqs <= b->max_seqs);
    CHECK(b->tokens <= o->micro_batch_size * o->sequence_len);
    for (int32_t r = 0; r < b->rows; r++) {
        sum += b->weights[r];
        trained += b->weights[r] > 0;
        if (r >= b->tokens)
            CHECK(b->ids[r] == 0 && b->positions[r] == 0 && b->targets[r] == 0 && b->weights[r] == 0 &&
                  b->lengths[r] == 0 && b->keys[2 * r] == 0 && b->keys[2 * r + 1] == 0);
    }
    for (int32_t n = 4 * b->n_seqs; n < 4 * (b->max_seqs + 1); n++) CHECK_INT(b->seqs[n], 0);
    CHECK_NEAR(sum, b->weight, 0);
    CHECK_NEAR(weight, b->weight, 0);
    CHECK_INT(trained, b->trained);
}

// One epoch: every sample exactly once, everything in place. Returns tokens / rows.
static double check_epoch(struct loader *l, const struct dataset *d, const struct loader_options *o, int64_t epoch) {
    struct error err = {0};
    struct batch b;
    int32_t sizes[8];
    int n = loader_buckets(l, sizes);
    CHECK(n >= 1 && n <= 8);
    for (int i = 0; i < n; i++) CHECK(sizes[i] % 64 == 0 && (i == 0 || sizes[i] > sizes[i - 1]));
    CHECK(batch_open(&b, sizes[n - 1], loader_max_seqs(l), &err) == 0);
    uint8_t *seen = mem_zalloc(d->count, 1);
    double tokens = 0, rows = 0;
    for (int64_t i = 0; i < loader_count(l, epoch, &err); i++) {
        CHECK_MSG(loader_batch(l, epoch, i, &b, &err) == 0, "%s", err.text);
        check_batch(&b, o, loader_weight(l, epoch, i, &err));
        for (int32_t s = 0; s < b.n_seqs; s++) seen[b.samples[s] - d->samples]++;
        if (!o->packing) CHECK(b.n_seqs <= o->micro_batch_size);
        tokens += b.tokens;
        rows += b.rows;
    }
    for (size_t i = 0; i < d->count; i++) CHECK_INT(seen[i], d->samples[i].dropped == DROP_NONE);
    mem_free(seen);
    batch_close(&b);
    return tokens / rows;
}

static const struct loader_options packed = {
    .micro_batch_size = 1, .sequence_len = 2048, .packing = true, .shuffle = true, .seed = 42, .buckets = 8};

TEST(packing_fills_the_rows) {
    struct dataset d = lognormal(20000, 2048, 1);
    for (int mbs = 1; mbs <= 4; mbs += 3) {
        struct loader_options o = packed;
        o.micro_batch_size = mbs;
        struct loader *l = open_loader(&d, o);
        double fill = check_epoch(l, &d, &o, 0);
        struct error err = {0};
        double full =
            (double)loader_count(l, 0, &err) * mbs * o.sequence_len; // rows without smaller sizes for the rest
        CHECK_MSG(fill >= 0.97 && (double)d.tokens / full >= 0.97, "fill %.4f, %.4f of whole rows", fill,
                  (double)d.tokens / full);
        CHECK_NEAR(loader_fill(l), fill, 1e-12);
        check_epoch(l, &d, &o, 3); // within the bounds that epoch 0 announced
        loader_close(l);
    }
    dataset_free(&d);
}

TEST(many_short_samples_are_bounded) {
    int32_t lengths[4000];
    for (int i = 0; i < 4000; i++) lengths[i] = i < 3980 ? 4 : 900;
    struct dataset d = make(lengths, 4000);
    struct loader_options o = packed;
    o.micro_batch_size = 2;
    struct loader *l = open_loader(&d, o);
    CHECK_INT(loader_max_seqs(l), 400); // at most 200 samples in a pack
    for (int64_t epoch = 0; epoch < 4; epoch++) check_epoch(l, &d, &o, epoch);
    loader_close(l);
    dataset_free(&d);
}

TEST(without_packing) {
    struct dataset d = lognormal(3001, 1024, 2);
    d.samples[17].dropped = DROP_TOO_LONG;
    struct loader_options o = {.micro_batch_size = 4, .sequence_len = 1024, .shuffle = true, .seed = 7, .buckets = 8};
    struct loader *l = open_loader(&d, o);
    CHECK_INT(loader_max_seqs(l), 4);
    double plain = check_epoch(l, &d, &o, 0);
    check_epoch(l, &d, &o, 5);
    loader_close(l);
    o.buckets = 1;
    l = open_loader(&d, o);
    double one = check_epoch(l, &d, &o, 0);
    CHECK_MSG(plain > one + 0.1, "fill %.3f with 8 sizes, %.3f with one", plain, one);
    loader_close(l);
    o.buckets = 8;
    o.group_by_length = true;
    l = open_loader(&d, o);
    check_epoch(l, &d, &o, 0);
    struct error err = {0};
    struct batch b; // samples of one micro-batch are alike: compare the spread with that of all
    int32_t sizes[8];
    int n = loader_buckets(l, sizes);
    CHECK(batch_open(&b, sizes[n - 1], loader_max_seqs(l), &err) == 0);
    double spread = 0, sum = 0;
    for (int64_t i = 0; i < loader_count(l, 0, &err); i++) {
        CHECK(loader_batch(l, 0, i, &b, &err) == 0);
        int32_t least = INT32_MAX, most = 0;
        for (int32_t s = 0; s < b.n_seqs; s++) {
            if (b.samples[s]->count < least) least = b.samples[s]->count;
            if (b.samples[s]->count > most) most = b.samples[s]->count;
            sum += b.samples[s]->count;
        }
        spread += most - least;
    }
    CHECK_MSG(spread < 0.1 * sum, "spread %.0f of %.0f", spread, sum);
    batch_close(&b);
    loader_close(l);
    dataset_free(&d);
}

// Rows of the samples of an epoch in the order they come.
static size_t order_of(struct loader *l, int64_t epoch, uint32_t *out, struct batch *b) {
    struct error err = {0};
    size_t n = 0;
    for (int64_t i = 0; i < loader_count(l, epoch, &err); i++) {
        CHECK(loader_batch(l, epoch, i, b, &err) == 0);
        for (int32_t s = 0; s < b->n_seqs; s++) out[n++] = b->samples[s]->row;
    }
    return n;
}

TEST(a_pure_function_of_the_key) {
    enum { ROWS = 500 };
    struct dataset d = lognormal(ROWS, 2048, 3);
    static uint32_t a[ROWS], b[ROWS], c[ROWS];
    for (int kind = 0; kind < 3; kind++) {
        struct loader_options o = packed;
        o.packing = kind == 0;
        o.group_by_length = kind == 1;
        o.micro_batch_size = 2;
        struct loader *l = open_loader(&d, o), *m = open_loader(&d, o);
        struct error err = {0};
        struct batch batch;
        CHECK(batch_open(&batch, 8192, 500, &err) == 0);
        CHECK_INT(order_of(l, 0, a, &batch), ROWS);
        order_of(m, 7, c, &batch); // another loader, epochs asked for in another order
        order_of(m, 1, c, &batch);
        order_of(m, 0, b, &batch);
        CHECK(memcmp(a, b, sizeof a) == 0);
        order_of(l, 1, b, &batch);
        CHECK(memcmp(b, c, sizeof b) == 0);
        CHECK(memcmp(a, b, sizeof a) != 0); // epochs differ
        loader_close(m);
        o.seed = 43;
        m = open_loader(&d, o);
        order_of(m, 0, b, &batch);
        CHECK(memcmp(a, b, sizeof a) != 0); // seeds differ
        loader_close(m);
        o.shuffle = false;
        m = open_loader(&d, o);
        order_of(m, 0, b, &batch);
        order_of(m, 1, c, &batch);
        CHECK(memcmp(b, c, sizeof b) == 0);
        for (uint32_t i = 0; i < ROWS && kind == 2; i++) CHECK_INT(b[i], i); // the order of the file
        loader_close(m);
        loader_close(l);
        batch_close(&batch);
    }
    dataset_free(&d);
}

// Packs of one long sample must not come in a row: first-fit-decreasing makes them all at the beginning of a window.
TEST(long_samples_do_not_cluster) {
    int32_t lengths[4000];
    for (int i = 0; i < 4000; i++) lengths[i] = i % 10 == 0 ? 2000 : 100;
    struct dataset d = make(lengths, 4000);
    struct loader_options o = packed;
    struct loader *l = open_loader(&d, o);
    struct error err = {0};
    struct batch b;
    CHECK(batch_open(&b, 2048, loader_max_seqs(l), &err) == 0);
    int64_t n = loader_count(l, 0, &err), run = 0, longest = 0;
    double first_half = 0, all = 0;
    for (int64_t i = 0; i < n; i++) {
        CHECK(loader_batch(l, 0, i, &b, &err) == 0);
        bool is_long = b.samples[0]->count == 2000;
        run = is_long ? 0 : run + 1;
        if (run > longest) longest = run;
        all += is_long;
        first_half += is_long && i < n / 2;
    }
    CHECK_INT(all, 400);
    CHECK_MSG(fabs(first_half / all - 0.5) < 0.1, "%.0f of %.0f in the first half", first_half, all);
    CHECK_MSG(longest < 12, "%lld packs without a long sample in a row", (long long)longest);
    batch_close(&b);
    loader_close(l);
    dataset_free(&d);
}

// Every row is equally likely everywhere: mean place of the first rows over many epochs.
TEST(the_shuffle_is_fair) {
    int32_t lengths[40];
    for (int i = 0; i < 40; i++) lengths[i] = 4;
    struct dataset d = make(lengths, 40);
    struct loader_options o = {.micro_batch_size = 1, .sequence_len = 64, .shuffle = true, .seed = 5, .buckets = 8};
    struct loader *l = open_loader(&d, o);
    struct error err = {0};
    struct batch b;
    CHECK(batch_open(&b, 64, 1, &err) == 0);
    static int counts[40][40];
    for (int64_t epoch = 0; epoch < 2000; epoch++) {
        uint32_t order[40];
        order_of(l, epoch, order, &b);
        for (int i = 0; i < 40; i++) counts[order[i]][i]++;
    }
    double chi = 0;
    for (int i = 0; i < 40; i++)
        for (int j = 0; j < 40; j++) chi += (counts[i][j] - 50.0) * (counts[i][j] - 50.0) / 50.0;
    CHECK_MSG(chi > 1300 && chi < 1745, "chi squared %.0f, expected about 1521", chi); // 39 * 39, +- 4 sigma
    batch_close(&b);
    loader_close(l);
    dataset_free(&d);
}

TEST(labels_and_positions_of_the_data) {
    int32_t ids[] = {1, 2, 3, 4}, labels[] = {0, 9, 8, 7}, positions[] = {0, 1, 0, 1};
    uint8_t why[] = {WHY_LABEL, WHY_LABEL, WHY_LABEL_MASKED, WHY_LABEL};
    struct sample s = {.row = 5, .count = 4, .ids = ids, .labels = labels, .positions = positions, .why = why};
    const struct sample *list[] = {&s, &s};
    struct batch b;
    struct error err = {0};
    CHECK(batch_open(&b, 128, 5, &err) == 0);
    CHECK(batch_fill(&b, list, 2, 64, &err) == 0);
    static const int32_t seqs[] = {0, 2, 0, 2, 2, 2, 2, 2, 4, 2, 4, 2, 6, 2, 6, 2, 0, 0, 0, 0}; // positions restart
    CHECK(b.n_seqs == 2 && b.n_documents == 4 && memcmp(b.seqs, seqs, sizeof seqs) == 0);
    for (int i = 0; i < 8; i++) CHECK_INT(b.lengths[i], 2);
    static const int32_t targets[] = {9, 0, 7, 0, 9, 0, 7, 0}, places[] = {0, 1, 0, 1, 0, 1, 0, 1};
    CHECK(memcmp(b.targets, targets, sizeof targets) == 0);
    CHECK(memcmp(b.positions, places, sizeof places) == 0);
    CHECK_INT(b.trained, 4);
    CHECK_INT(b.rows, 64);
    CHECK(batch_fill(&b, list, 2, 192, &err) == -1); // more rows than were opened
    err = (struct error){0};
    CHECK(batch_fill(&b, list, 2, 4, &err) == -1);
    err = (struct error){0};
    batch_close(&b);
    CHECK(batch_open(&b, 128, 3, &err) == 0);
    CHECK(batch_fill(&b, list, 2, 64, &err) == -1); // four documents, room for three
    batch_close(&b);
}

TEST(refuses_what_cannot_be) {
    int32_t lengths[] = {10, 20};
    struct dataset d = make(lengths, 2);
    struct loader_options o = {.micro_batch_size = 0, .sequence_len = 64};
    struct error err = {0};
    CHECK(loader_open(&d, &o, &err) == NULL);
    CHECK_INT(err.code, STATUS_CONFIG);
    o.micro_batch_size = 1 << 20, o.sequence_len = 1 << 20, err = (struct error){0};
    CHECK(loader_open(&d, &o, &err) == NULL);
    o.micro_batch_size = 1, o.sequence_len = 16, err = (struct error){0};
    CHECK(loader_open(&d, &o, &err) == NULL);
    CHECK_MSG(strstr(err.text, "row 1 has 20 tokens") != NULL, "%s", err.text);
    o.sequence_len = 64, err = (struct error){0};
    d.samples[0].dropped = d.samples[1].dropped = DROP_TOO_LONG;
    CHECK(loader_open(&d, &o, &err) == NULL);
    CHECK_MSG(strstr(err.text, "no row") != NULL, "%s", err.text);
    d.samples[0].dropped = DROP_NONE;
    struct loader *l = open_loader(&d, o);
    err = (struct error){0};
    CHECK_INT(loader_count(l, -1, &err), -1);
    CHECK(loader_weight(l, 0, 1, &err) == -1);
    loader_close(l);
    dataset_free(&d);
}

TEST(every_allocation_may_fail) {
    struct dataset d = lognormal(50, 2048, 4);
    struct loader_options o = packed;
    int status = -1;
    uint64_t k = 1;
    for (; status < 0 && k < 100; k++) {
        struct error err = {0};
        struct batch b = {0};
        mem_fail_at(k, 0);
        struct loader *l = loader_open(&d, &o, &err);
        status = l && loader_count(l, 1, &err) > 0 ? batch_open(&b, 2048, loader_max_seqs(l), &err) : -1;
        mem_fail_at(0, 0);
        if (status < 0) CHECK_INT(err.code, STATUS_MEMORY);
        batch_close(&b);
        loader_close(l);
    }
    CHECK(status == 0 && k > 15);
    dataset_free(&d);
}

TEST_MAIN(CASE(packing_fills_the_rows), CASE(many_short_samples_are_bounded), CASE(without_packing),
          CASE(a_pure_function_of_the_key), CASE(long_samples_do_not_cluster), CASE(the_shuffle_is_fair),
          CASE(labels_and_positions_of_the_data), CASE(refuses_what_cannot_be), CASE(every_allocation_may_fail))
