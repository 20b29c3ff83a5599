// Private part of merge.c: the arithmetic of W + scale * B A, row by row, in float.
#pragma once

#include "adapters/adapter.h"

// `x` (module->in): row `row` of a part of the module, of one expert, as the base has it; becomes the merged row.
void merge_row(const struct adapter *adapter, const struct adapter_module *m, const struct module_part *part,
               int64_t expert, int64_t row, float *x);
// `x` (part->rows): column `col` of the part, for weights that are stored turned. Modules with magnitudes, whole
// matrices or token rows have none.
void merge_column(const struct adapter *adapter, const struct adapter_module *m, const struct module_part *part,
                  int64_t expert, int64_t col, float *x);
