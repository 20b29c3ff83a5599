// The whole model on the tape: instruction sets, threads, backends, checkpointing and batch splits give the same
// numbers; gradients are those of the loss; the cache gives what the full pass gives.
#include "tests/harness.h"
#include "tests/tiny.h"
#include "train/step.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct setup {
    const char *cpu; // GRAFT_CPU, NULL = the best
    int threads;
    enum device_kind device;
    int checkpoint_layers;
    bool keep_attention, packing;
    int micro_batch, accumulate, steps;
    float dropout, neftune;
    enum dtype dtype;
    enum lora_init init;
};
static const struct setup plain = {
    .threads = 2, .micro_batch = 4, .accumulate = 1, .steps = 1, .init = LORA_INIT_RANDOM, .dtype = DTYPE_F32};

enum { MAX_STEPS = 8, RANK = 3, ROWS = 24 };
struct outcome {
    bool ok, missing; // missing: this CPU lacks the instruction set
    double loss[MAX_STEPS], norm[MAX_STEPS];
    float *params, *grads; // after the last step; gradients of the last step
    int64_t n;
    size_t arena; // bytes of the plan
    double flops;
};

static void outcome_free(struct outcome *o) {
    mem_free(o->params);
    mem_free(o->grads);
    *o = (struct outcome){0};
}

static const char *in_folder(const char *name) {
    static char path[4][200];
    static int next;
    next = (next + 1) % 4;
    snprintf(path[next], sizeof path[next], "%s/%s", test_folder(), name);
    return path[next];
}

static bool make_files(void) {
    struct error err = {0};
    static bool made;
    if (!made)
        made = !tiny_write(in_folder("tiny.gguf"), &tiny_default, &err) &&
               !tiny_rows(in_folder("rows.jsonl"), ROWS, 3, &err);
    if (!made) fprintf(stderr, "%s\n", err.text);
    return made;
}

struct world {
    struct session session;
    struct dataset data;
    struct adapter adapter;
    struct lora lora;
    struct loader *loader;
    struct batch batch;
    struct step_engine engine;
};

static int attach(struct world *w, const struct setup *s, struct error *err) {
    struct step_options options = {.accumulate = s->accumulate,
                                   .neftune_alpha = s->neftune,
                                   .checkpoint_layers = s->checkpoint_layers,
                                   .keep_attention = s->keep_attention,
                                   .max_grad_norm = 1,
                                   .beta1 = 0.9f,
                                   .beta2 = 0.999f,
                                   .eps = 1e-8f,
                                   .weight_decay = 0.01f,
                                   .lr_ratio_b = 2,
                                   .seed = 7};
    step_close(&w->engine);
    return lora_attach(&w->session.decoder, &w->adapter, 0, true, s->accumulate > 1, &w->lora, err) ||
                   step_open(&w->session, &w->lora, &options, &w->engine, err)
               ? -1
               : 0;
}

static int open_world(struct world *w, const struct setup *s, struct error *err) {
    struct session_options so = {
        .base.name = in_folder("tiny.gguf"), .dtype = s->dtype, .threads = s->threads, .device = s->device};
    static const char *const assistant[] = {"assistant"};
    struct dataset_options data = {.path = in_folder("rows.jsonl"),
                                   .kind = DATASET_CHAT,
                                   .field_messages = "messages",
                                   .field_role = "role",
                                   .field_content = "content",
                                   .roles_to_train = assistant,
                                   .n_roles_to_train = 1,
                                   .sequence_len = 160,
                                   .min_sample_len = 2};
    struct loader_options loading = {
        .micro_batch_size = s->micro_batch, .sequence_len = 160, .packing = s->packing, .buckets = 8};
    if (session_open(&so, &w->session, err)) return -1;
    data.vocab_size = (uint32_t)w->session.model.arch.vocab;
    const struct chat_template *chat = session_chat(&w->session, NULL, err);
    if (!chat || dataset_read(&data, w->session.tokenizer, chat, &w->data, err)) return -1;
    int n = w->session.model.n_modules, ids[64];
    for (int i = 0; i < n; i++) ids[i] = i;
    if (adapter_new(&w->session.model, ids, n, RANK, 6, s->dropout, false, &w->adapter, err)) return -1;
    lora_initialise(&w->adapter, s->init, 11);
    w->loader = loader_open(&w->data, &loading, err);
    if (!w->loader) return -1;
    int32_t buckets[8], nb = loader_buckets(w->loader, buckets);
    struct decoder_limits limits = {.max_rows = buckets[nb - 1],
                                    .max_seqs = loader_max_seqs(w->loader),
                                    .max_positions = 200,
                                    .cache_seqs = 2,
                                    .cache_len = 160};
    if (batch_open(&w->batch, buckets[nb - 1], limits.max_seqs, err) || session_record(&w->session, &limits, err) ||
        attach(w, s, err) || step_record(&w->engine, buckets, nb, limits.max_seqs, err) ||
        generator_record(&w->session.generator, 1, err) || session_start(&w->session, err)) {
        return -1;
    }
    return attach(w, s, err) || lora_upload(&w->lora, err) ? -1 : 0;
}

static void close_world(struct world *w) {
    step_close(&w->engine);
    batch_close(&w->batch);
    loader_close(w->loader);
    adapter_free(&w->adapter);
    session_close(&w->session);
    dataset_free(&w->data);
    *w = (struct world){0};
}

static int train(struct world *w, const struct setup *s, struct outcome *o, struct error *err) {
    for (int step = 0; step < s->steps; step++) {
        double weight = 0;
        for (int i = 0; i < s->accumulate; i++) weight += loader_weight(w->loader, 0, step * s->accumulate + i, err);
        if (step_begin(&w->engine, step, s->accumulate, 1e-2, weight, err)) return -1;
        for (int i = 0; i < s->accumulate; i++) {
            if (loader_batch(w->loader, 0, step * s->accumulate + i, &w->batch, err) ||
                step_micro(&w->engine, &w->batch, err))
                return -1;
        }
        struct step_result r;
        if (step_end(&w->engine, &r, err)) return -1;
        o->loss[step] = r.loss;
        o->norm[step] = r.grad_norm;
    }
    o->n = w->lora.n_params;
    CHECK(isfinite(o->norm[0]) && isfinite(o->loss[0])); // equal bits of NaN prove nothing
    size_t bytes = (size_t)o->n * sizeof(float);
    o->params = mem_alloc(bytes);
    o->grads = mem_alloc(bytes);
    if (!o->params || !o->grads) return error_memory(err, "results", bytes);
    return device_read(&w->session.device, o->params, w->lora.params, bytes, err) ||
           device_read(&w->session.device, o->grads, w->lora.sum, bytes, err);
}

static struct outcome run(const struct setup *s) {
    struct outcome o = {0};
    struct error err = {0};
    struct world *w = mem_zalloc(1, sizeof *w);
    if (s->cpu)
        setenv("GRAFT_CPU", s->cpu, 1);
    else
        unsetenv("GRAFT_CPU");
    o.ok = make_files() && w && !open_world(w, s, &err) && !train(w, s, &o, &err);
    o.missing = !o.ok && strstr(err.text, "lacks");
    CHECK_MSG(o.ok || o.missing, "cpu %s: %s", s->cpu ? s->cpu : "best", err.text);
    if (o.ok) o.arena = plan_arena_bytes(w->session.device.plan), o.flops = w->session.device.flops;
    if (w) close_world(w);
    mem_free(w);
    unsetenv("GRAFT_CPU");
    return o;
}

static void check_same_bits(const struct outcome *a, const struct outcome *b, const char *what) {
    if (!a->ok || !b->ok) return;
    CHECK_MSG(memcmp(a->loss, b->loss, sizeof a->loss) == 0, "%s: losses %.17g and %.17g", what, a->loss[0],
              b->loss[0]);
    CHECK_MSG(a->n == b->n && memcmp(a->grads, b->grads, (size_t)a->n * 4) == 0, "%s: gradients differ", what);
    CHECK_MSG(a->n == b->n && memcmp(a->params, b->params, (size_t)a->n * 4) == 0, "%s: parameters differ", what);
}

// Largest |a - b| over the largest |a|.
static double distance(const float *a, const float *b, int64_t n) {
    double most = 0, largest = 0;
    for (int64_t i = 0; i < n; i++) {
        most = fmax(most, fabs((double)a[i] - (double)b[i]));
        largest = fmax(largest, fabs((double)a[i]));
    }
    return most / largest;
}

TEST(instruction_sets_give_the_same_bits) {
    static const char *const sets[] = {"c", "avx2", "avx512"};
    struct setup s = plain;
    s.steps = 3;
    s.dropout = 0.1f;
    struct outcome best = run(&s);
    for (size_t i = 0; i < COUNT_OF(sets); i++) {
        s.cpu = sets[i];
        struct outcome o = run(&s);
        check_same_bits(&best, &o, sets[i]);
        outcome_free(&o);
    }
    outcome_free(&best);
}

TEST(fast_kernels_agree_with_the_reference_loops) {
    struct setup s = plain;
    s.dropout = 0.1f;
    s.neftune = 5;
    struct outcome fast = run(&s);
    s.cpu = "reference";
    struct outcome reference = run(&s);
    if (fast.ok && reference.ok) {
        CHECK_NEAR(fast.loss[0], reference.loss[0], 1e-6 * reference.loss[0]);
        double d = distance(reference.grads, fast.grads, fast.n);
        CHECK_MSG(d < 2e-5, "gradients differ by %g of the largest", d);
    }
    outcome_free(&fast);
    outcome_free(&reference);
}

TEST(threads_give_the_same_bits) {
    struct setup s = plain;
    s.steps = 2;
    struct outcome two = run(&s);
    for (int threads = 1; threads <= 5; threads += 2) {
        s.threads = threads;
        struct outcome o = run(&s);
        check_same_bits(&two, &o, "threads");
        outcome_free(&o);
    }
    outcome_free(&two);
}

TEST(the_late_backend_gives_the_cpus_bits) {
    for (int checkpoint = 0; checkpoint < 2; checkpoint++) {
        struct setup s = plain;
        s.steps = 3;
        s.micro_batch = 2;
        s.accumulate = 2;
        s.dropout = 0.1f;
        s.checkpoint_layers = checkpoint ? 99 : 0;
        struct outcome cpu = run(&s);
        s.device = DEVICE_LATE;
        struct outcome late = run(&s);
        check_same_bits(&cpu, &late, "late");
        outcome_free(&cpu);
        outcome_free(&late);
    }
}

TEST(checkpointing_gives_the_same_bits) {
    struct setup s = plain;
    s.steps = 2;
    s.dropout = 0.2f;
    s.neftune = 5;
    struct outcome kept = run(&s);
    double flops = kept.flops;    // more and more is computed twice
    for (int i = 0; i < 3; i++) { // the first layer; all but what attention gives; all
        s.checkpoint_layers = i == 0 ? 1 : 99, s.keep_attention = i == 1;
        struct outcome recomputed = run(&s);
        check_same_bits(&kept, &recomputed, "gradient checkpointing");
        CHECK_MSG(recomputed.arena < kept.arena, "%zu bytes, %zu with all kept", recomputed.arena, kept.arena);
        CHECK_MSG(recomputed.flops > flops, "%g FLOP, %g before", recomputed.flops, flops);
        flops = recomputed.flops;
        outcome_free(&recomputed);
    }
    outcome_free(&kept);
}

TEST(the_split_of_a_batch_does_not_matter) {
    struct setup s = plain;
    s.micro_batch = 8;
    s.dropout = 0.1f; // keyed by row and token, not by place in the batch
    s.steps = 3;
    struct outcome whole = run(&s);
    for (int accumulate = 2; accumulate <= 8; accumulate *= 2) {
        s.accumulate = accumulate;
        s.micro_batch = 8 / accumulate;
        struct outcome o = run(&s);
        for (int i = 0; i < s.steps && o.ok && whole.ok; i++)
            CHECK_NEAR(o.loss[i], whole.loss[i], 1e-6 * whole.loss[i]);
        if (o.ok && whole.ok)
            CHECK_MSG(distance(whole.grads, o.grads, o.n) < 1e-5, "1x8 and %dx%d: gradients differ by %g", accumulate,
                      8 / accumulate, distance(whole.grads, o.grads, o.n));
        outcome_free(&o);
    }
    outcome_free(&whole);
}

// d loss / d parameter against central differences of the loss, along single parameters of every module's A and B.
TEST(gradients_are_those_of_the_loss) {
    struct setup s = plain;
    struct error err = {0};
    struct world *w = mem_zalloc(1, sizeof *w);
    struct outcome o = {0};
    unsetenv("GRAFT_CPU");
    bool ok = make_files() && w && !open_world(w, &s, &err) && !train(w, &s, &o, &err);
    CHECK_MSG(ok, "%s", err.text);
    for (int i = 0; ok && i < 2 * w->adapter.n_modules; i++) {
        const struct adapter_module *m = &w->adapter.modules[i / 2];
        float *p = i % 2 ? m->b : m->a;
        const float *grad = o.grads + lora_offset(&w->lora, i / 2, i % 2);
        int64_t n = m->r * (i % 2 ? m->module->out : m->module->in), at = 0;
        for (int64_t k = 0; k < n; k++)
            at = fabsf(grad[k]) > fabsf(grad[at]) ? k : at; // where the difference shows best
        double loss[2], step = 2e-2;
        float before = p[at];
        for (int side = 0; side < 2; side++) {
            struct step_result r;
            p[at] = before + (float)(side ? step : -step);
            ok = !lora_upload(&w->lora, &err) && !step_begin(&w->engine, 0, 1, 0, w->batch.weight, &err) &&
                 !step_micro(&w->engine, &w->batch, &err) && !step_end(&w->engine, &r, &err);
            loss[side] = r.loss;
        }
        p[at] = before;
        double slope = (loss[1] - loss[0]) / (2 * step), want = (double)grad[at] / w->batch.weight;
        CHECK_MSG(fabs(slope - want) <= 0.02 * fabs(want) + 1e-5, "%s %c: slope %g, gradient %g", m->module->hf_name,
                  "AB"[i % 2], slope, want);
    }
    outcome_free(&o);
    if (w) close_world(w);
    mem_free(w);
}

TEST(rows_without_an_adapter_are_the_base) {
    struct setup s = plain;
    struct error err = {0};
    struct world *w = mem_zalloc(1, sizeof *w);
    bool ok = make_files() && w && !open_world(w, &s, &err);
    CHECK_MSG(ok, "%s", err.text);
    if (ok) { // the plan knows no such program: a device of its own, recorded on the fly
        struct generation jobs[2] = {
            {.prompt = w->data.samples[0].ids, .prompt_count = 20, .max_new = 6, .adapter = -1},
            {.prompt = w->data.samples[0].ids, .prompt_count = 20, .max_new = 6, .adapter = 0}};
        const struct sampling greedy = {.top_p = 1};
        CHECK(!generator_run(&w->session.generator, &jobs[0], 1, &greedy, NULL, 0, NULL, NULL, &err));
        CHECK(!generator_run(&w->session.generator, &jobs[1], 1, &greedy, NULL, 0, NULL, NULL, &err));
        float with = w->session.generator.logits[0];
        for (int i = 0; i < w->adapter.n_modules; i++)
            memset(w->adapter.modules[i].b, 0, (size_t)(w->adapter.modules[i].module->out * RANK) * 4);
        CHECK(!lora_upload(&w->lora, &err));
        ids_free(&jobs[1].out);
        CHECK(!generator_run(&w->session.generator, &jobs[1], 1, &greedy, NULL, 0, NULL, NULL, &err));
        CHECK(jobs[0].out.count == jobs[1].out.count &&
              memcmp(jobs[0].out.data, jobs[1].out.data, jobs[0].out.count * 4) == 0);
        CHECK(with != w->session.generator.logits[0]);
        ids_free(&jobs[0].out);
        ids_free(&jobs[1].out);
    }
    if (w) close_world(w);
    mem_free(w);
}

// Several sequences at once, in any company, generate what each generates alone.
TEST(generation_does_not_depend_on_the_company) {
    struct setup s = plain;
    struct error err = {0};
    struct world *w = mem_zalloc(1, sizeof *w);
    bool ok = make_files() && w && !open_world(w, &s, &err);
    CHECK_MSG(ok, "%s", err.text);
    enum { N = 5 };
    struct generation together[N] = {0}, alone;
    const struct sampling sampling = {.temperature = 0, .top_p = 1};
    for (int i = 0; ok && i < N; i++) {
        together[i] = (struct generation){
            .prompt = w->data.samples[i].ids, .prompt_count = 10 + 9 * i, .max_new = 12 - i, .adapter = 0};
    }
    ok = ok && !generator_run(&w->session.generator, together, N, &sampling, NULL, 0, NULL, NULL, &err);
    CHECK_MSG(ok, "%s", err.text);
    for (int i = 0; ok && i < N; i++) {
        alone = together[i];
        alone.out = (struct ids){0};
        CHECK(!generator_run(&w->session.generator, &alone, 1, &sampling, NULL, 0, NULL, NULL, &err));
        CHECK_INT(together[i].out.count, 12 - i);
        CHECK(alone.out.count == together[i].out.count &&
              memcmp(alone.out.data, together[i].out.data, alone.out.count * 4) == 0);
        ids_free(&alone.out);
    }
    for (int i = 0; i < N; i++) ids_free(&together[i].out);
    if (w) close_world(w);
    mem_free(w);
}

TEST_MAIN(CASE(instruction_sets_give_the_same_bits), CASE(fast_kernels_agree_with_the_reference_loops),
          CASE(threads_give_the_same_bits), CASE(the_late_backend_gives_the_cpus_bits),
          CASE(checkpointing_gives_the_same_bits), CASE(the_split_of_a_batch_does_not_matter),
          CASE(gradients_are_those_of_the_loss), CASE(rows_without_an_adapter_are_the_base),
          CASE(generation_does_not_depend_on_the_company))
