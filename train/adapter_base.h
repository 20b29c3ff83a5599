// Which base an adapter was trained on, as run.json beside it tells.
#pragma once

#include "kernels/base.h"
#include "kernels/tensor.h"
#include "train/base_source.h"

struct adapter_base {
    struct base_source source; // name NULL: unknown
    const char *header_sha256; // hexadecimal, as the trainer saw it; NULL when run.json does not tell
    enum dtype dtype;          // the arithmetic of the run, fp32 when run.json does not tell
};

// `given` (an option's value, NULL = none) wins over what run.json says; neither: 64 with `hint`. Strings live in
// `pool`.
int adapter_base_find(const char *adapter, const char *given, const char *hint, struct pool *pool,
                      struct adapter_base *out, struct error *err);
