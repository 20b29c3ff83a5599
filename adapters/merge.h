// One GGUF file with the adapter added to the base, for runtimes that load no adapters.
#pragma once

#include "adapters/adapter.h"

// Writes `path`, which must not exist. Adapted linears become W + scale * B A, computed in float from the packed base
// and stored as `type` (QUANT_F16, F32, BF16 or Q8_0); every other tensor and all metadata keys are copied byte for
// byte (but general.alignment, as ours is 32). Row by row: nothing of the model's size is in memory. Errors: 64 another
// type, 65 a value or row that does not fit the type, 73 path exists, 74 too little space (said before anything is
// written).
int merge_write(const char *path, const struct adapter *adapter, enum quant type, struct error *err);
