// Products by cuBLASLt with a workspace of our own. The algorithm of a shape is the first answer of the library's
// heuristic among those whose sums have a fixed order; answers are kept. cuBLASLt is column-major: a row-major C = A B
// is its C' = B' A', the same bytes.
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/cuda_plan.h"

#include "kernels/alloc.h"

#include <cublasLt.h>
#include <string.h>

enum { SLOTS = 1024, MAX_ALIGNMENT = 256 };

// All that an algorithm depends on.
struct gemm_key {
    int64_t m, n, k, lda, ldb, ldc;
    int32_t type, c_type, a_transposed, b_transposed, adds;
    int32_t alignment[3]; // of A, B, C
};

struct gemm_plan {
    struct gemm_key key;
    bool used;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t a, b, c; // of our A, B, C
    cublasLtMatmulAlgo_t algo;
};

struct cuda_gemm {
    cublasLtHandle_t handle;
    cublasLtMatmulPreference_t preference;
    void *workspace;
    struct gemm_plan *plans; // [SLOTS], open addressing
    int n_plans;
};

static int check(cublasStatus_t status, const char *what, const struct gemm_product *p, struct error *err) {
    if (status == CUBLAS_STATUS_SUCCESS) return 0;
    return error_set(err, status == CUBLAS_STATUS_ALLOC_FAILED ? STATUS_MEMORY : STATUS_INTERNAL,
                     "%s: %s of a product (%lld x %lld) by (%lld x %lld)", cublasLtGetStatusName(status), what,
                     p ? (long long)p->m : 0, p ? (long long)p->k : 0, p ? (long long)p->k : 0,
                     p ? (long long)p->n : 0);
}

int cuda_gemm_open(struct cuda_backend *b, struct error *err) {
    struct cuda_gemm *g = b->gemm = mem_zalloc(1, sizeof *g);
    if (!g || !(g->plans = mem_zalloc(SLOTS, sizeof *g->plans)))
        return error_memory(err, "plans of products", SLOTS * sizeof *g->plans);
    size_t bytes = CUDA_GEMM_WORKSPACE;
    uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE | CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE;
    if (check(cublasLtCreate(&g->handle), "opening cuBLASLt, for want", NULL, err)) return -1;
    if (cuda_check(cudaMalloc(&g->workspace, bytes), "the workspace of products", err)) return -1;
    if (check(cublasLtMatmulPreferenceCreate(&g->preference), "preferences", NULL, err)) return -1;
    return check(cublasLtMatmulPreferenceSetAttribute(g->preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes,
                                                      sizeof bytes),
                 "preferences", NULL, err) ||
                   check(cublasLtMatmulPreferenceSetAttribute(g->preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                                              &schemes, sizeof schemes),
                         "preferences", NULL, err)
               ? -1
               : 0;
}

static void plan_close(struct gemm_plan *p) {
    if (p->desc) cublasLtMatmulDescDestroy(p->desc);
    if (p->a) cublasLtMatrixLayoutDestroy(p->a);
    if (p->b) cublasLtMatrixLayoutDestroy(p->b);
    if (p->c) cublasLtMatrixLayoutDestroy(p->c);
    *p = (struct gemm_plan){0};
}

void cuda_gemm_close(struct cuda_backend *b) {
    struct cuda_gemm *g = b->gemm;
    if (!g) return;
    for (int i = 0; g->plans && i < SLOTS; i++) plan_close(&g->plans[i]);
    if (g->preference) cublasLtMatmulPreferenceDestroy(g->preference);
    if (g->handle) cublasLtDestroy(g->handle);
    cudaFree(g->workspace);
    mem_free(g->plans);
    mem_free(g);
    b->gemm = NULL;
}

static int alignment_of(const void *p) {
    int a = 1;
    while (a < MAX_ALIGNMENT && (uintptr_t)p % (uintptr_t)(2 * a) == 0) a *= 2;
    return a;
}

static cudaDataType type_of(enum dtype dtype) {
    return dtype == DTYPE_BF16 ? CUDA_R_16BF : CUDA_R_32F;
}

static struct gemm_key key_of(const struct gemm_product *p) {
    struct gemm_key key;
    memset(&key, 0, sizeof key); // compared as bytes
    key.m = p->m, key.n = p->n, key.k = p->k, key.lda = p->a.ld, key.ldb = p->b.ld, key.ldc = p->ldc;
    key.type = (int32_t)p->type, key.c_type = (int32_t)p->c_type;
    key.a_transposed = p->a.transposed, key.b_transposed = p->b.transposed, key.adds = p->beta != 0;
    key.alignment[0] = alignment_of(p->a.p), key.alignment[1] = alignment_of(p->b.p);
    key.alignment[2] = alignment_of(p->c);
    return key;
}

// Asks the heuristic. In the library's words its A is our B, its B our A.
static int plan_open(struct cuda_gemm *g, const struct gemm_product *p, struct gemm_plan *plan, struct error *err) {
    const struct gemm_key *key = &plan->key;
    int32_t first = p->b.transposed ? CUBLAS_OP_T : CUBLAS_OP_N, second = p->a.transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    uint64_t a_cols = (uint64_t)(p->a.transposed ? p->m : p->k), a_rows = (uint64_t)(p->a.transposed ? p->k : p->m);
    uint64_t b_cols = (uint64_t)(p->b.transposed ? p->k : p->n), b_rows = (uint64_t)(p->b.transposed ? p->n : p->k);
    const struct {
        cublasLtMatmulPreferenceAttributes_t attribute;
        int32_t value;
    } alignments[] = {{CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, key->alignment[1]},
                      {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, key->alignment[0]},
                      {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, key->alignment[2]},
                      {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, key->alignment[2]}};
    cublasLtMatmulHeuristicResult_t result;
    int found = 0;
    if (check(cublasLtMatmulDescCreate(&plan->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), "a description", p, err) ||
        check(cublasLtMatmulDescSetAttribute(plan->desc, CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof first),
              "a description", p, err) ||
        check(cublasLtMatmulDescSetAttribute(plan->desc, CUBLASLT_MATMUL_DESC_TRANSB, &second, sizeof second),
              "a description", p, err) ||
        check(cublasLtMatrixLayoutCreate(&plan->a, type_of(p->type), a_cols, a_rows, p->a.ld), "a layout", p, err) ||
        check(cublasLtMatrixLayoutCreate(&plan->b, type_of(p->type), b_cols, b_rows, p->b.ld), "a layout", p, err) ||
        check(cublasLtMatrixLayoutCreate(&plan->c, type_of(p->c_type), (uint64_t)p->n, (uint64_t)p->m, p->ldc),
              "a layout", p, err))
        return -1;
    for (size_t i = 0; i < COUNT_OF(alignments); i++) {
        if (check(cublasLtMatmulPreferenceSetAttribute(g->preference, alignments[i].attribute, &alignments[i].value,
                                                       sizeof alignments[i].value),
                  "preferences", p, err))
            return -1;
    }
    if (check(cublasLtMatmulAlgoGetHeuristic(g->handle, plan->desc, plan->b, plan->a, plan->c, plan->c, g->preference,
                                             1, &result, &found),
              "an algorithm", p, err))
        return -1;
    if (found == 0) return check(CUBLAS_STATUS_NOT_SUPPORTED, "an algorithm", p, err);
    plan->algo = result.algo;
    return 0;
}

static uint64_t hash_of(const struct gemm_key *key) {
    const uint8_t *p = (const uint8_t *)key;
    uint64_t h = 14695981039346656037u; // FNV-1a
    for (size_t i = 0; i < sizeof *key; i++) h = (h ^ p[i]) * 1099511628211u;
    return h;
}

static struct gemm_plan *find(struct cuda_gemm *g, const struct gemm_product *p, struct error *err) {
    struct gemm_key key = key_of(p);
    uint64_t at = hash_of(&key) % SLOTS;
    while (g->plans[at].used) {
        if (memcmp(&g->plans[at].key, &key, sizeof key) == 0) return &g->plans[at];
        at = (at + 1) % SLOTS;
    }
    if (g->n_plans == SLOTS / 2) { // more shapes than any run has: begin anew
        for (int i = 0; i < SLOTS; i++) plan_close(&g->plans[i]);
        g->n_plans = 0, at = hash_of(&key) % SLOTS;
    }
    struct gemm_plan *plan = &g->plans[at];
    plan->key = key;
    if (plan_open(g, p, plan, err)) {
        plan_close(plan);
        return NULL;
    }
    plan->used = true, g->n_plans++;
    return plan;
}

int cuda_gemm(struct cuda_backend *b, const struct gemm_product *p, struct error *err) {
    if (p->m == 0 || p->n == 0) return 0;
    struct cuda_gemm *g = b->gemm;
    struct gemm_plan *plan = find(g, p, err);
    if (!plan) return -1;
    return check(cublasLtMatmul(g->handle, plan->desc, &p->alpha, p->b.p, plan->b, p->a.p, plan->a, &p->beta, p->c,
                                plan->c, p->c, plan->c, &plan->algo, g->workspace, CUDA_GEMM_WORKSPACE, b->gpu.stream),
                 "running", p, err);
}
