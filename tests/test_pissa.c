// The start of PiSSA against PEFT's, which lies in the second half of the fixture's adapter; the randomised start
// against its definition in double; and that neither depends on threads or on when calls run.
#include "adapters/pissa.h"
#include "tests/harness.h"
#include "tests/parity.h"

static const char FOLDER[] = "tests/fixtures/families/lora-pissa";

struct start {
    struct model model;
    struct adapter saved, adapter;
    struct device device;
    struct decoder decoder;
    struct lora lora;
};

static int parts(struct start *s, struct error *err) {
    struct decoder_limits limits = {.max_rows = 64, .max_seqs = 1, .max_positions = 64};
    return decoder_open(&s->device, &s->model, &limits, DTYPE_F32, &s->decoder, err) ||
                   lora_attach(&s->decoder, &s->adapter, 0, true, false, &s->lora, err)
               ? -1
               : 0;
}

// The adapter of the fixture's shape with new numbers.
static int compute(struct start *s, int iterations, uint64_t seed, int threads, bool late, struct error *err) {
    if (model_open(FOLDER, NULL, &s->model, err)) return -1;
    char path[200];
    snprintf(path, sizeof path, "%s/adapter", FOLDER);
    if (adapter_read(path, &s->model, &s->saved, err)) return -1;
    struct adapter *a = &s->adapter;
    if (adapter_begin(&s->model, s->saved.n_modules, a, err)) return -1;
    a->pissa = true;
    for (int i = 0; i < s->saved.n_modules; i++) {
        const struct adapter_module *m = &s->saved.modules[i];
        if (adapter_add(a, m->module, m->r / 2, m->alpha / 2, err) || adapter_add_initial(a, &a->modules[i], err))
            return -1;
    }
    if (device_open_recording(&s->device, late ? DEVICE_LATE : DEVICE_CPU, threads, err)) return -1;
    backend_set_weights(s->device.backend, s->model.weights, s->model.n_weights, s->model.n_segments);
    if (parts(s, err) || pissa_record(&s->lora, iterations, err)) return -1;
    decoder_close(&s->decoder);
    struct backend *backend = backend_open(late ? DEVICE_LATE : DEVICE_CPU, threads, err);
    return !backend || device_start(&s->device, backend, err) || parts(s, err) ||
                   pissa_start(&s->lora, iterations, seed, NULL, NULL, err)
               ? -1
               : 0;
}

static void finish(struct start *s) {
    lora_detach(&s->lora);
    decoder_close(&s->decoder);
    device_close(&s->device);
    adapter_free(&s->adapter);
    adapter_free(&s->saved);
    model_close(&s->model);
}

static double product(const float *b, int64_t ldb, const float *a, int64_t lda, int r, int64_t o, int64_t i) {
    double sum = 0;
    for (int k = 0; k < r; k++) sum += (double)b[o * ldb + k] * (double)a[k * lda + i];
    return sum;
}

TEST(as_peft_starts) {
    struct start s = {0};
    struct error err = {0};
    CHECK_MSG(compute(&s, PISSA_CONVERGED, 1, 2, false, &err) == 0, "%s", err.text);
    for (int i = 0; i < s.adapter.n_modules && !err.code; i++) {
        const struct adapter_module *m = &s.adapter.modules[i], *want = &s.saved.modules[i];
        int64_t in = m->module->in, out = m->module->out;
        int r = m->r;
        double largest = 0, most = 0;
        for (int64_t o = 0; o < out; o++) {
            for (int64_t k = 0; k < in; k++) { // the file holds -b0
                double w = -product(want->b + r, 2 * r, want->a + r * in, in, r, o, k);
                largest = fmax(largest, fabs(w));
                most = fmax(most, fabs(product(m->b0, r, m->a0, in, r, o, k) - w));
            }
        }
        CHECK_MSG(most <= 2e-5 * largest, "%s: b0 a0 is off by %.2g", m->module->hf_name, most / largest);
        for (int k = 0; k < r; k++) { // each vector, up to its sign
            const float *mine = m->a + k * in, *theirs = want->a + (r + k) * in;
            double sign = 0, size = 0, off = 0;
            for (int64_t d = 0; d < in; d++) sign += (double)mine[d] * (double)theirs[d];
            for (int64_t d = 0; d < in; d++) {
                size = fmax(size, fabs((double)theirs[d]));
                off = fmax(off, fabs((double)mine[d] * (sign < 0 ? -1 : 1) - (double)theirs[d]));
            }
            CHECK_MSG(off <= 2e-4 * size, "%s: row %d of A is off by %.2g", m->module->hf_name, k, off / size);
        }
        CHECK(memcmp(m->a, m->a0, (size_t)(r * in) * 4) == 0 && memcmp(m->b, m->b0, (size_t)(r * out) * 4) == 0);
    }
    finish(&s);
}

// W decoded, (out, in) doubles.
static double *decoded(struct pool *pool, const struct module *m) {
    double *w = pool_array(pool, (uint64_t)(m->out * m->in), sizeof *w);
    float row[512];
    for (int64_t o = 0; w && o < m->out; o++) {
        weight_decode(m->parts[0].w, o, 0, m->in, row);
        for (int64_t i = 0; i < m->in; i++) w[o * m->in + i] = (double)row[i];
    }
    return w;
}

// The distance of W - scale b0 a0 from W, in the squared Frobenius norm, and the least there is: sums of s^2 by
// Jacobi's method on the Gram matrix of the inputs.
static double least_rest(const double *w, int64_t out, int64_t in, int r, struct pool *pool) {
    double *g = pool_array(pool, (uint64_t)(in * in), sizeof *g), rest = 0;
    if (!g) return NAN;
    for (int64_t i = 0; i < in * in; i++)
        for (int64_t o = 0; o < out; o++) g[i] += w[o * in + i / in] * w[o * in + i % in];
    for (int sweep = 0; sweep < 30; sweep++) {
        for (int64_t p = 0; p < in; p++) {
            for (int64_t q = p + 1; q < in; q++) {
                if (fabs(g[p * in + q]) < 1e-14) continue;
                double theta = 0.5 * atan2(2 * g[p * in + q], g[q * in + q] - g[p * in + p]), c = cos(theta),
                       s = sin(theta);
                for (int64_t k = 0; k < in; k++) {
                    double x = g[k * in + p], y = g[k * in + q];
                    g[k * in + p] = c * x - s * y, g[k * in + q] = s * x + c * y;
                }
                for (int64_t k = 0; k < in; k++) {
                    double x = g[p * in + k], y = g[q * in + k];
                    g[p * in + k] = c * x - s * y, g[q * in + k] = s * x + c * y;
                }
            }
        }
    }
    for (int64_t i = 0; i < in; i++) rest += g[i * in + i];
    for (int k = 0; k < r; k++) {
        int64_t best = 0;
        for (int64_t i = 1; i < in; i++)
            if (g[i * in + i] > g[best * in + best]) best = i;
        rest -= g[best * in + best];
        g[best * in + best] = 0;
    }
    return rest;
}

static double rest_of(const double *w, const struct adapter *a, const struct adapter_module *m) {
    double sum = 0, scale = (double)adapter_scale(a, m);
    for (int64_t i = 0; i < m->module->out * m->module->in; i++) {
        int64_t o = i / m->module->in, k = i % m->module->in;
        double d = w[i] - scale * product(m->b0, m->r, m->a0, m->module->in, m->r, o, k);
        sum += d * d;
    }
    return sum;
}

// The first r vectors leave the least; with more iterations a random block comes nearer to that; and for any number of
// them what is taken off is a projection of W: the rest stands upright on it.
TEST(what_is_left) {
    static const int iterations[] = {0, 1, 4, 64, PISSA_CONVERGED};
    double before[16];
    for (size_t t = 0; t < COUNT_OF(iterations); t++) {
        struct start s = {0};
        struct error err = {0};
        struct pool pool = {0};
        CHECK_MSG(compute(&s, iterations[t], 7, 1, false, &err) == 0, "%s", err.text);
        for (int i = 0; i < s.adapter.n_modules && !err.code; i++) {
            const struct adapter_module *m = &s.adapter.modules[i];
            const double *w = decoded(&pool, m->module);
            double all = 0, off = 0, least = least_rest(w, m->module->out, m->module->in, m->r, &pool);
            double scale = (double)adapter_scale(&s.adapter, m), rest = rest_of(w, &s.adapter, m);
            for (int64_t k = 0; k < m->module->out * m->module->in; k++) {
                double b =
                    scale * product(m->b0, m->r, m->a0, m->module->in, m->r, k / m->module->in, k % m->module->in);
                all += w[k] * w[k], off += b * b;
            }
            CHECK_MSG(fabs(all - off - rest) <= 1e-5 * all, "%s, %d: no projection", m->module->hf_name, iterations[t]);
            CHECK_MSG(rest >= least * (1 - 1e-6), "%s, %d: less than the least", m->module->hf_name, iterations[t]);
            CHECK_MSG(t == 0 || rest <= before[i] * 1.000001, "%s, %d: more is left than before", m->module->hf_name,
                      iterations[t]);
            before[i] = rest;
            if (iterations[t] == 64 || iterations[t] == PISSA_CONVERGED)
                CHECK_MSG(rest <= least * (iterations[t] == 64 ? 1.005 : 1.000001), "%s, %d: %g is left, %g could be",
                          m->module->hf_name, iterations[t], rest, least);
            if (iterations[t] == 0) CHECK(rest > least * 1.01);
        }
        pool_free(&pool);
        finish(&s);
    }
}

TEST(same_bits_on_any_threads) {
    static const int iterations[] = {2, PISSA_CONVERGED};
    for (size_t t = 0; t < COUNT_OF(iterations); t++) {
        struct start one = {0}, other = {0}, third = {0};
        struct error err = {0};
        CHECK(compute(&one, iterations[t], 3, 1, false, &err) == 0 &&
              compute(&other, iterations[t], 3, 3, false, &err) == 0);
        CHECK(compute(&third, iterations[t], 3, 2, true, &err) == 0);
        for (int i = 0; i < one.adapter.n_modules && !err.code; i++) {
            const struct adapter_module *m = &one.adapter.modules[i];
            size_t a = (size_t)adapter_part_size(m, ADAPTER_A) * 4, b = (size_t)adapter_part_size(m, ADAPTER_B) * 4;
            const struct adapter_module *o = &other.adapter.modules[i], *l = &third.adapter.modules[i];
            CHECK(memcmp(m->a0, o->a0, a) == 0 && memcmp(m->b0, o->b0, b) == 0);
            for (size_t k = 0; k < a / 4; k++) // computes with the reference loops
                CHECK(fabsf(m->a0[k] - l->a0[k]) <= 1e-4f);
        }
        finish(&one), finish(&other), finish(&third);
    }
}

TEST(packed_weights_are_refused) {
    struct model model;
    struct error err = {0};
    CHECK(model_open("tests/fixtures/families/llama-nf4", NULL, &model, &err) == 0);
    const char *name = "model.layers.0.self_attn.q_proj";
    const struct module *m = model_find_module(&model, name, strlen(name));
    CHECK(m && pissa_check(m, &err) != 0 && err.code == STATUS_CONFIG && strstr(err.text, "NF4"));
    for (int i = 0; i < model.n_modules; i++) {
        if (model.modules[i].layer >= 0) continue;
        err = (struct error){0};
        CHECK(pissa_check(&model.modules[i], &err) != 0 && strstr(err.text, model.modules[i].hf_name));
    }
    model_close(&model);
}

TEST_MAIN(CASE(as_peft_starts), CASE(what_is_left), CASE(same_bits_on_any_threads), CASE(packed_weights_are_refused))
