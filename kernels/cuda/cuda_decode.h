// Decoding without an op around it, for tests and measurements: a second symbol of the plug-in.
#pragma once

#include "kernels/backend.h"

#define CUDA_DECODE_SYMBOL "graft_cuda_decode"

struct cuda_decode {
    // The weight with its bytes and tables on the device, as ops find it; `tables` is filled where it has any.
    int (*on_device)(struct backend *backend, const struct weight *w, struct weight *out, struct weight_tables *tables,
                     struct error *err);
    // gpu_decode and gpu_decode_rows (gpu_decode.h) of such a weight into a tensor of the arena, f32 or bf16.
    int (*decode)(struct backend *backend, const struct weight *w, int64_t row, struct tensor out, struct error *err);
    int (*gather)(struct backend *backend, const struct weight *w, struct tensor ids, struct tensor out,
                  struct error *err); // ids: (rows of out, 1) i32
};
