// config.json: what is accepted is a model whose parameters add up and whose bytes grow with the format. Seeds are
// configs/shapes as well.
#include "model/base_storage.h"
#include "tests/fuzz/scratch.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct model m;
    struct base_sizes sizes;
    struct error err = {0};
    scratch_write("config.json", data, size);
    if (model_open(scratch_path("config.json"), NULL, &m, &err)) {
        EXPECT(err.code == STATUS_DATA && err.text[0]);
        return 0;
    }
    base_sizes_count(&m, &sizes);
    EXPECT(sizes.linears + sizes.ends + sizes.others == m.total_parameters && m.total_parameters > 0);
    EXPECT(sizes.bytes[STORAGE_NF4_DOUBLE] <= sizes.bytes[STORAGE_BF16] + 64 * (uint64_t)m.n_weights);
    for (int i = 0; i < m.n_modules; i++) EXPECT(m.modules[i].in > 0 && m.modules[i].out > 0);
    model_close(&m);
    return 0;
}
