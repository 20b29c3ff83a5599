// See cuda_plan.h.
#include "kernels/cuda/cuda_plan.h"
