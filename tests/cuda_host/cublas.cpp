// cuBLASLt by plain loops: column-major, sums in double, run in stream order by a kernel of one thread. An algorithm is
// valid only for the problem its heuristic was asked for, and uses all the workspace it was allowed.
#include <cublasLt.h>

#include "kernels/tensor.h"

struct cublasLtContext {};
struct cublasLtMatmulDesc {
    int trans_a, trans_b;
};
struct cublasLtMatrixLayout {
    cudaDataType type;
    uint64_t rows, cols;
    int64_t ld;
};
struct cublasLtMatmulPreference {
    uint64_t workspace = 0;
    uint32_t alignment[4] = {256, 256, 256, 256}, reductions = 7;
};

namespace {
uint64_t hash_of(const cublasLtMatmulDesc *desc, const cublasLtMatrixLayout *const l[4]) {
    uint64_t h = (uint64_t)desc->trans_a * 2 + (uint64_t)desc->trans_b + 1;
    for (int i = 0; i < 4; i++) {
        for (uint64_t v : {(uint64_t)l[i]->type, l[i]->rows, l[i]->cols, (uint64_t)l[i]->ld}) h = h * 1000003u + v;
    }
    return h;
}
float get(const void *p, cudaDataType type, int64_t i) {
    return type == CUDA_R_32F ? ((const float *)p)[i] : bf16_to_float(((const uint16_t *)p)[i]);
}

struct product {
    cublasLtMatmulDesc desc;
    cublasLtMatrixLayout a, b, c, d;
    const void *pa, *pb, *pc;
    void *pd;
    float alpha, beta;
};

void multiply(product p) {
    uint64_t depth = p.desc.trans_a ? p.a.rows : p.a.cols;
    for (uint64_t j = 0; j < p.d.cols; j++) {
        for (uint64_t i = 0; i < p.d.rows; i++) {
            double sum = 0;
            for (uint64_t k = 0; k < depth; k++) {
                int64_t at = p.desc.trans_a ? (int64_t)(i)*p.a.ld + (int64_t)k : (int64_t)k * p.a.ld + (int64_t)i;
                int64_t bt = p.desc.trans_b ? (int64_t)(k)*p.b.ld + (int64_t)j : (int64_t)j * p.b.ld + (int64_t)k;
                sum += (double)get(p.pa, p.a.type, at) * (double)get(p.pb, p.b.type, bt);
            }
            sum *= (double)p.alpha;
            int64_t ct = (int64_t)j * p.c.ld + (int64_t)i, dt = (int64_t)j * p.d.ld + (int64_t)i;
            if (p.beta != 0) sum += (double)p.beta * (double)get(p.pc, p.c.type, ct);
            if (p.d.type == CUDA_R_32F)
                ((float *)p.pd)[dt] = (float)sum;
            else
                ((uint16_t *)p.pd)[dt] = bf16_from_float((float)sum);
        }
    }
}

void poison(unsigned char *p, size_t bytes) {
    memset(p, 0xFF, bytes);
}
} // namespace

extern "C" {
cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) {
    *handle = new cublasLtContext;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
    delete handle;
    return CUBLAS_STATUS_SUCCESS;
}
const char *cublasLtGetStatusName(cublasStatus_t status) {
    return status == CUBLAS_STATUS_NOT_SUPPORTED ? "CUBLAS_STATUS_NOT_SUPPORTED" : "CUBLAS_STATUS";
}
size_t cublasLtGetVersion(void) {
    return 130100;
}
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *desc, cublasComputeType_t compute, cudaDataType scale) {
    (void)compute, (void)scale;
    *desc = new cublasLtMatmulDesc{0, 0};
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
    delete desc;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute,
                                              const void *value, size_t bytes) {
    if (bytes != sizeof(int)) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(attribute == CUBLASLT_MATMUL_DESC_TRANSA ? &desc->trans_a : &desc->trans_b, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType type, uint64_t rows,
                                          uint64_t cols, int64_t ld) {
    *layout = new cublasLtMatrixLayout{type, rows, cols, ld};
    return (uint64_t)ld >= rows ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
    delete layout;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *preference) {
    *preference = new cublasLtMatmulPreference;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
    delete preference;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute, const void *value,
                                                    size_t bytes) {
    switch (attribute) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES: memcpy(&preference->workspace, value, bytes); break;
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK: memcpy(&preference->reductions, value, bytes); break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
        memcpy(&preference->alignment[attribute - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES], value, bytes);
        break;
    }
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int wanted,
                                              cublasLtMatmulHeuristicResult_t *results, int *found) {
    (void)handle;
    const cublasLtMatrixLayout *const l[4] = {a, b, c, d};
    *found = wanted > 0;
    if (preference->reductions & 1) *found = 0; // sums in no fixed order are not what we want
    results[0] = {};
    results[0].algo.data[0] = hash_of(desc, l);
    results[0].algo.data[1] = preference->workspace;
    for (uint64_t i = 0; i < 4; i++) results[0].algo.data[2 + i] = preference->alignment[i];
    results[0].workspaceSize = preference->workspace;
    return *found ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}
cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void *alpha, const void *a,
                              cublasLtMatrixLayout_t a_layout, const void *b, cublasLtMatrixLayout_t b_layout,
                              const void *beta, const void *c, cublasLtMatrixLayout_t c_layout, void *d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t *algo, void *workspace,
                              size_t workspace_bytes, cudaStream_t stream) {
    (void)handle;
    const cublasLtMatrixLayout *const l[4] = {a_layout, b_layout, c_layout, d_layout};
    const void *const at[4] = {a, b, c, d};
    if (algo->data[0] != hash_of(desc, l) || workspace_bytes < algo->data[1]) return CUBLAS_STATUS_INVALID_VALUE;
    for (int i = 0; i < 4; i++) {
        if ((uintptr_t)at[i] % algo->data[2 + i]) return CUBLAS_STATUS_INVALID_VALUE;
    }
    product p = {
        *desc, *a_layout, *b_layout, *c_layout, *d_layout, a, b, c, d, *(const float *)alpha, *(const float *)beta};
    if (workspace_bytes) cuda_host_launch("workspace", poison, 1, 1, 0, stream, (unsigned char *)workspace, (size_t)64);
    cuda_host_launch("matmul", multiply, 1, 1, 0, stream, p);
    return cudaPeekAtLastError() == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}
}
