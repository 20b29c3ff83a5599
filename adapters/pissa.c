// See pissa.h. Only products of W with blocks of vectors run on the device; everything else is done here, in one
// thread. Blocks hold one vector a row.
#include "adapters/pissa.h"

#include "kernels/random.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MIN_EXTRA = 16, MAX_ROUNDS = 400, STALLED_ROUNDS = 8, MAX_SWEEPS = 60 };
#define RESIDUAL_DONE    1e-6 // of the largest singular value
#define RESIDUAL_STALLED 2e-5 // what rounding of the products may leave

int pissa_check(const struct module *module, struct error *err) {
    if (module->form != MODULE_LINEAR || module->router)
        return error_set(err, STATUS_CONFIG,
                         "peft_init_lora_weights: pissa on %s is not in this version; it is for linears of layers",
                         module->hf_name);
    for (int i = 0; i < module->n_parts; i++) {
        const struct quant_format *f = module->parts[i].w->format;
        if (f->id == QUANT_F32 || f->id == QUANT_F16 || f->id == QUANT_BF16) continue;
        return error_set(err, STATUS_CONFIG,
                         "peft_init_lora_weights: pissa needs weights in f32, f16 or bf16, and %s is %s; start from an "
                         "unpacked base, or with `true`",
                         module->hf_name, f->name);
    }
    return 0;
}

// Vectors in the running block: more than r where it is to converge, as the last ones converge slowly.
static int64_t block_of(const struct adapter_module *m, int iterations) {
    int64_t least = m->module->in < m->module->out ? m->module->in : m->module->out, k = m->r;
    if (iterations == PISSA_CONVERGED) k += m->r > MIN_EXTRA ? m->r : MIN_EXTRA;
    return k < least ? k : least;
}

// --- products on the device

// y = x W^T (x: vectors of the inputs, y: of the outputs), or, `back`, x = y W.
static int multiply(struct lora *lora, const struct module *module, int64_t k, bool back, float *x, float *y,
                    struct error *err) {
    struct device *device = lora->decoder->device;
    char name[64];
    struct tensor in, out;
    snprintf(name, sizeof name, "pissa %lld %lld %lld %d %d", (long long)module->in, (long long)module->out,
             (long long)k, module->n_parts, back);
    if (plan_begin(device->plan, name, err)) return -1;
    if (device_tensor(device, PLAN_ACTIVATION, DTYPE_F32, k, module->in, &in, err) ||
        device_tensor(device, PLAN_ACTIVATION, DTYPE_F32, k, module->out, &out, err))
        return -1;
    if (device_write(device, back ? out : in, back ? y : x, (size_t)(k * (back ? out.cols : in.cols)) * 4, err))
        return -1;
    for (int i = 0; i < module->n_parts; i++) {
        const struct module_part *part = &module->parts[i];
        struct tensor columns = tensor_cols(out, part->first_row, part->first_row + part->rows);
        struct op_call call = {.op = OP_LINEAR_GROUP, .in = {in}, .out = {columns}};
        call.p.linear.n_parts = 1, call.p.linear.parts[0].w = part->w;
        if (back) call.grad_in[0] = in, call.grad_out[0] = columns, call.acc[0] = i > 0;
        if (back ? device_backward(device, &call, err) : device_forward(device, &call, err)) return -1;
    }
    if (device_read(device, back ? x : y, back ? in : out, (size_t)(k * (back ? in.cols : out.cols)) * 4, err))
        return -1;
    return plan_end(device->plan, err);
}

// Modules of one shape share the programs of the first.
static bool shape_seen(const struct adapter *adapter, int index, int iterations) {
    const struct adapter_module *m = &adapter->modules[index];
    for (int i = 0; i < index; i++) {
        const struct adapter_module *o = &adapter->modules[i];
        if (o->a0 && block_of(o, iterations) == block_of(m, iterations) && o->module->in == m->module->in &&
            o->module->out == m->module->out && o->module->n_parts == m->module->n_parts) {
            return true;
        }
    }
    return false;
}

int pissa_record(struct lora *lora, int iterations, struct error *err) {
    for (int i = 0; i < lora->adapter->n_modules; i++) {
        const struct adapter_module *m = &lora->adapter->modules[i];
        if (!m->a0 || shape_seen(lora->adapter, i, iterations)) continue;
        int64_t k = block_of(m, iterations);
        size_t in = (size_t)(k * m->module->in), out = (size_t)(k * m->module->out);
        float *x = mem_zalloc(in + out, sizeof *x); // a recording reads zeros
        int failed = !x ? error_memory(err, "the start of PiSSA", (in + out) * sizeof *x)
                        : multiply(lora, m->module, k, false, x, x + in, err) ||
                              multiply(lora, m->module, k, true, x, x + in, err);
        mem_free(x);
        if (failed) return -1;
    }
    return 0;
}

// --- blocks of vectors

static double dot(const float *a, const float *b, int64_t n) {
    double lane[8] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int j = 0; j < 8; j++) lane[j] += (double)a[i + j] * (double)b[i + j];
    for (int j = 0; j < 8; j++) sum += lane[j];
    for (; i < n; i++) sum += (double)a[i] * (double)b[i];
    return sum;
}

static void add_scaled(float *a, const float *b, double factor, int64_t n) {
    float f = (float)factor;
    for (int64_t i = 0; i < n; i++) a[i] += f * b[i];
}

// Gram-Schmidt, twice for each vector: x becomes orthonormal, and x was lower x, with `lower` (k, k) a lower triangle
// (NULL: not wanted). A vector that depends on those before becomes zero.
static void orthonormalise(float *x, double *lower, int64_t k, int64_t n) {
    if (lower) memset(lower, 0, (size_t)(k * k) * sizeof *lower);
    for (int64_t i = 0; i < k; i++) {
        float *v = x + i * n;
        double before = sqrt(dot(v, v, n));
        for (int twice = 0; twice < 2; twice++) {
            for (int64_t j = 0; j < i; j++) {
                double c = dot(v, x + j * n, n);
                add_scaled(v, x + j * n, -c, n);
                if (lower) lower[i * k + j] += c;
            }
        }
        double length = sqrt(dot(v, v, n));
        bool zero = length <= 1e-6 * before || length == 0;
        if (lower) lower[i * k + i] = zero ? 0 : length;
        for (int64_t d = 0; d < n; d++) v[d] = zero ? 0 : (float)((double)v[d] / length);
    }
}

// One-sided Jacobi: m (k, k) = u diag(s) v^T with s descending; u and v hold their vectors as columns. m is
// overwritten.
static void small_svd(double *m, double *u, double *v, double *s, int64_t k) {
    for (int64_t i = 0; i < k * k; i++) v[i] = i % (k + 1) == 0;
    bool turned = true;
    for (int sweep = 0; sweep < MAX_SWEEPS && turned; sweep++) {
        turned = false;
        for (int64_t p = 0; p < k; p++) {
            for (int64_t q = p + 1; q < k; q++) {
                double a = 0, b = 0, c = 0;
                for (int64_t i = 0; i < k; i++) {
                    double x = m[i * k + p], y = m[i * k + q];
                    a += x * x, b += y * y, c += x * y;
                }
                if (fabs(c) <= 1e-15 * sqrt(a * b) || c == 0) continue;
                turned = true;
                double zeta = (b - a) / (2 * c), t = (zeta < 0 ? -1 : 1) / (fabs(zeta) + sqrt(1 + zeta * zeta));
                double cosine = 1 / sqrt(1 + t * t), sine = cosine * t;
                for (int64_t i = 0; i < 2 * k; i++) {
                    double *row = i < k ? m + i * k : v + (i - k) * k, x = row[p], y = row[q];
                    row[p] = cosine * x - sine * y, row[q] = sine * x + cosine * y;
                }
            }
        }
    }
    for (int64_t p = 0; p < k; p++) {
        s[p] = 0;
        for (int64_t i = 0; i < k; i++) s[p] += m[i * k + p] * m[i * k + p];
        s[p] = sqrt(s[p]);
        for (int64_t i = 0; i < k; i++) u[i * k + p] = s[p] > 0 ? m[i * k + p] / s[p] : 0;
    }
    for (int64_t p = 0; p < k; p++) { // selection sort of the columns
        int64_t best = p;
        for (int64_t q = p + 1; q < k; q++)
            if (s[q] > s[best]) best = q;
        for (int64_t i = 0; i < k && best != p; i++) {
            double x = u[i * k + p], y = v[i * k + p];
            u[i * k + p] = u[i * k + best], u[i * k + best] = x;
            v[i * k + p] = v[i * k + best], v[i * k + best] = y;
        }
        double x = s[p];
        s[p] = s[best], s[best] = x;
    }
}

// out's vectors are sums of x's with the columns of `by` (k, k) as weights.
static void rotate(float *out, const float *x, const double *by, int64_t k, int64_t n) {
    memset(out, 0, (size_t)(k * n) * sizeof *out);
    for (int64_t i = 0; i < k; i++)
        for (int64_t j = 0; j < k; j++) add_scaled(out + i * n, x + j * n, by[j * k + i], n);
}

// --- singular triplets

struct svd {
    struct lora *lora;
    const struct adapter_module *m;
    int64_t k, in, out;
    float *x, *y;              // (k, in), (k, out): the block on either side
    float *left, *right;       // (k, out), (k, in): singular vectors
    double *lower, *u, *v, *s; // (k, k) three times, (k)
};

static int forward(struct svd *d, struct error *err) {
    return multiply(d->lora, d->m->module, d->k, false, d->x, d->y, err);
}
static int backward(struct svd *d, struct error *err) {
    return multiply(d->lora, d->m->module, d->k, true, d->x, d->y, err);
}

static void start_block(float *x, int64_t k, int64_t n, struct random_key key) {
    for (int64_t i = 0; i < k * n; i++) {
        uint32_t bits[4];
        random_four(key, (uint32_t)(i / n), 0, (uint32_t)(i % n), bits);
        double a = (bits[0] + 1.0) * 0x1p-32, w = 6.283185307179586 * bits[1] * 0x1p-32;
        x[i] = (float)(sqrt(-2.0 * log(a)) * cos(w));
    }
}

// y is orthonormal: W is, as far as y sees it, y^T (y W).
static int triplets_from_outputs(struct svd *d, struct error *err) {
    if (backward(d, err)) return -1;
    orthonormalise(d->x, d->lower, d->k, d->in);
    small_svd(d->lower, d->u, d->v, d->s, d->k);
    rotate(d->left, d->y, d->u, d->k, d->out);
    rotate(d->right, d->x, d->v, d->k, d->in);
    return 0;
}
static int triplets_from_inputs(struct svd *d, struct error *err) {
    if (forward(d, err)) return -1;
    orthonormalise(d->y, d->lower, d->k, d->out);
    small_svd(d->lower, d->u, d->v, d->s, d->k);
    rotate(d->left, d->y, d->v, d->k, d->out);
    rotate(d->right, d->x, d->u, d->k, d->in);
    return 0;
}

// torch.svd_lowrank (Halko, Martinsson and Tropp 2009, 5.1), which looks at W from its narrower side.
static int randomised(struct svd *d, int iterations, struct random_key key, struct error *err) {
    bool wide = d->out < d->in;
    start_block(wide ? d->y : d->x, d->k, wide ? d->out : d->in, key);
    for (int i = 0; i < 2 * iterations + 1; i++) {
        bool to_outputs = (i % 2 == 0) != wide;
        if (to_outputs ? forward(d, err) : backward(d, err)) return -1;
        orthonormalise(to_outputs ? d->y : d->x, NULL, d->k, to_outputs ? d->out : d->in);
    }
    return wide ? triplets_from_inputs(d, err) : triplets_from_outputs(d, err);
}

// Subspace iteration with Rayleigh-Ritz, until W v = s u for the r largest; s u = W^T u holds by construction.
static int converged(struct svd *d, struct random_key key, struct error *err) {
    double past[STALLED_ROUNDS];
    start_block(d->x, d->k, d->in, key);
    if (forward(d, err)) return -1;
    for (int round = 0; round < MAX_ROUNDS; round++) {
        orthonormalise(d->y, NULL, d->k, d->out);
        if (triplets_from_outputs(d, err)) return -1;
        memcpy(d->x, d->right, (size_t)(d->k * d->in) * sizeof *d->x);
        if (forward(d, err)) return -1;
        double worst = 0;
        for (int64_t i = 0; i < d->m->r && i < d->k; i++) {
            double sum = 0;
            for (int64_t o = 0; o < d->out; o++) {
                double r = (double)d->y[i * d->out + o] - d->s[i] * (double)d->left[i * d->out + o];
                sum += r * r;
            }
            worst = fmax(worst, sqrt(sum));
        }
        worst = d->s[0] > 0 ? worst / d->s[0] : 0;
        bool stalled = round >= STALLED_ROUNDS && worst > past[round % STALLED_ROUNDS] / 2;
        if (worst <= RESIDUAL_DONE || (stalled && worst <= RESIDUAL_STALLED)) return 0;
        past[round % STALLED_ROUNDS] = worst;
    }
    return error_set(err, STATUS_NUMERIC,
                     "peft_init_lora_weights: pissa: the singular vectors of %s do not separate in %d rounds; nothing "
                     "was trained; use pissa_niter_16",
                     d->m->module->hf_name, MAX_ROUNDS);
}

static void store(const struct svd *d, float scale) {
    const struct adapter_module *m = d->m;
    for (int64_t i = 0; i < m->r; i++) {
        double root = i < d->k ? sqrt(d->s[i] / (double)scale) : 0;
        for (int64_t j = 0; j < d->in; j++)
            m->a[i * d->in + j] = i < d->k ? (float)(root * (double)d->right[i * d->in + j]) : 0;
        for (int64_t o = 0; o < d->out; o++)
            m->b[o * m->r + i] = i < d->k ? (float)(root * (double)d->left[i * d->out + o]) : 0;
    }
    memcpy(m->a0, m->a, (size_t)(m->r * d->in) * sizeof *m->a);
    memcpy(m->b0, m->b, (size_t)(m->r * d->out) * sizeof *m->b);
}

static int start_module(struct lora *lora, const struct adapter_module *m, int iterations, uint64_t seed,
                        struct error *err) {
    struct pool pool = {0};
    struct svd d = {.lora = lora, .m = m, .k = block_of(m, iterations), .in = m->module->in, .out = m->module->out};
    uint64_t k = (uint64_t)d.k, in = (uint64_t)d.in, out = (uint64_t)d.out;
    struct random_key key = {.seed = seed, .purpose_module = (uint32_t)RANDOM_INIT << 24 | (uint32_t)m->module->id};
    key.step = 2; // not those of A and B
    d.x = pool_array(&pool, k * in, sizeof *d.x), d.right = pool_array(&pool, k * in, sizeof *d.right);
    d.y = pool_array(&pool, k * out, sizeof *d.y), d.left = pool_array(&pool, k * out, sizeof *d.left);
    d.lower = pool_array(&pool, 3 * k * k + k, sizeof *d.lower);
    bool room = d.x && d.right && d.y && d.left && d.lower;
    d.v = d.lower + k * k, d.u = d.v + k * k, d.s = d.u + k * k;
    int status = !room ? error_memory(err, "the start of PiSSA", (size_t)(2 * k * (in + out)) * sizeof(float))
                 : iterations == PISSA_CONVERGED ? converged(&d, key, err)
                                                 : randomised(&d, iterations, key, err);
    if (status == 0) store(&d, adapter_scale(lora->adapter, m));
    pool_free(&pool);
    return status ? -1 : 0;
}

int pissa_start(struct lora *lora, int iterations, uint64_t seed,
                int (*between)(void *context, int64_t done, int64_t total, struct error *err), void *context,
                struct error *err) {
    struct device *device = lora->decoder->device;
    int64_t done = 0;
    for (int i = 0; i < lora->adapter->n_modules; i++) {
        const struct adapter_module *m = &lora->adapter->modules[i];
        if (!m->a0) continue;
        int segment = m->module->parts[0].w->segment;
        if (device->backend->class->weights_acquire(device->backend, segment, false, err)) return -1;
        if (start_module(lora, m, iterations, seed, err)) return -1;
        if (device->backend->class->weights_release(device->backend, segment, err)) return -1;
        if (between && between(context, ++done, lora->adapter->n_modules, err)) return -1;
    }
    return 0;
}
