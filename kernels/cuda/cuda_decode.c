// See cuda_decode.h.
#include "kernels/cuda/cuda_decode.h"

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/gpu_decode.h"

static int on_device(struct backend *backend, const struct weight *w, struct weight *out, struct weight_tables *tables,
                     struct error *err) {
    return cuda_weight_on_device(cuda_self(backend), w, out, tables, err);
}

static int decode(struct backend *backend, const struct weight *w, int64_t row, struct tensor out, struct error *err) {
    struct cuda_backend *b = cuda_self(backend);
    gpu_decode(&b->gpu, w, row, out.rows, cuda_at(b, &out), out.dtype, out.ld);
    return cuda_launched(err);
}

static int gather(struct backend *backend, const struct weight *w, struct tensor ids, struct tensor out,
                  struct error *err) {
    struct cuda_backend *b = cuda_self(backend);
    gpu_decode_rows(&b->gpu, w, cuda_at(b, &ids), ids.ld, out.rows, cuda_at(b, &out), out.dtype, out.ld);
    return cuda_launched(err);
}

extern const struct cuda_decode graft_cuda_decode;
const struct cuda_decode graft_cuda_decode = {on_device, decode, gather};
