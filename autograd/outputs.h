// Shapes of what an op makes: outputs and saved tensors from its inputs and parameters.
#pragma once

#include "kernels/ops.h"

// Fills dtype, rows, cols, ld of call->out and call->saved (dtype DTYPE_NONE where there is none); offsets are not set.
// `dtype` is the run's activation dtype.
void op_outputs(struct op_call *call, enum dtype dtype);
