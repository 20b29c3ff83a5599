// Adapters against a model: a GGUF adapter, or a PEFT pair as "configuration \n%%\n safetensors". An accepted one is
// finite, within limits, and its configuration written again selects the same modules at the same ranks and scales.
#include "adapters/peft_config.h"
#include "tests/adapter_fixture.h"
#include "tests/fuzz/fuzz.h"

#include <math.h>
#include <string.h>

static struct fixture base;
static const char SEPARATOR[] = "\n%%\n";

static void check_finite(const float *values, int64_t count) {
    for (int64_t i = 0; i < count; i++) EXPECT(isfinite(values[i]));
}

static void check_adapter(const struct adapter *a) {
    struct text text = {0};
    struct pool pool = {0};
    struct peft_config config;
    struct error err = {0};
    EXPECT(a->n_modules >= 1 && a->n_modules <= FIXTURE_MODULES);
    for (int i = 0; i < a->n_modules; i++) {
        const struct adapter_module *m = &a->modules[i];
        EXPECT(m->r >= 1 && m->r <= ADAPTER_MAX_RANK && isfinite(m->alpha) && m->alpha != 0);
        EXPECT(i == 0 || m->module->id > m[-1].module->id);
        check_finite(m->a, m->r * m->module->in);
        check_finite(m->b, m->r * m->module->out);
    }
    EXPECT(peft_config_write(&text, a, &err) == 0);
    EXPECT(peft_config_parse("again", &text, &base.model, &pool, &config, &err) == 0);
    int selected = 0;
    for (int i = 0; i < FIXTURE_MODULES; i++) selected += config.selected[i];
    EXPECT(selected == a->n_modules);
    for (int i = 0; i < a->n_modules; i++) {
        const struct adapter_module *m = &a->modules[i];
        int id = m->module->id;
        EXPECT(config.selected[id] && config.ranks[id] == m->r && config.alphas[id] == m->alpha);
    }
    EXPECT(config.rslora == a->rslora && config.dropout == a->dropout);
    pool_free(&pool);
    text_free(&text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct adapter a;
    struct error err = {0};
    int status;
    if (!base.model.modules) fixture_init(&base);
    const uint8_t *separator = size > 4 ? memmem(data, size, SEPARATOR, 4) : NULL;
    if (separator) {
        struct text config = {0};
        text_append(&config, data, (size_t)(separator - data));
        separator += 4;
        status = peft_parse("input", &config, separator, (size_t)(data + size - separator), &base.model, &a, &err);
        text_free(&config);
    } else {
        status = gguf_adapter_parse("input", data, size, &base.model, &a, &err);
    }
    if (status) {
        EXPECT(err.code == STATUS_DATA && err.text[0] && !a.modules);
        return 0;
    }
    check_adapter(&a);
    adapter_free(&a);
    return 0;
}

// Plain mutation dies at the length field of the tensors: half of the time it is put right for a header that ends at
// the last '}'.
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed) {
    size = LLVMFuzzerMutate(data, size, max_size);
    uint8_t *tensors = size > 4 ? memmem(data, size, SEPARATOR, 4) : NULL;
    if (!tensors || seed % 2) return size;
    tensors += 4;
    size_t left = (size_t)(data + size - tensors), end = left;
    if (left < 10) return size;
    while (end > 8 && tensors[end - 1] != '}') end--;
    uint64_t header = end > 8 ? end - 8 : left - 8;
    memcpy(tensors, &header, 8);
    return size;
}
