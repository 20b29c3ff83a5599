// Fuzz target of the config reader: bytes, and overrides after a line "%%". What is accepted must come back the same
// from its own effective text, and every refusal must name a reason.
#include "configs/run_config.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MOST_OVERRIDES = 8 };

static void check_round_trip(const struct run_config *config) {
    struct run_config again = {0};
    struct text first = {0}, second = {0}, report = {0};
    struct error err = {0};
    config_write_effective(config, &first);
    if (config_parse(text_str(&first), first.length, "effective", 0, NULL, &again, &report, &err)) abort();
    config_write_effective(&again, &second);
    if (strcmp(text_str(&first), text_str(&second)) != 0) abort();
    config_free(&again);
    text_free(&first);
    text_free(&second);
    text_free(&report);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char *text = mem_strndup((const char *)data, size);
    if (!text) return 0;
    size_t length = size;
    const char *overrides[MOST_OVERRIDES];
    int count = 0;
    char *rest = memmem(text, size, "\n%%\n", 4);
    if (rest) {
        length = (size_t)(rest - text) + 1;
        for (rest += 4; *rest && count < MOST_OVERRIDES;) {
            overrides[count++] = rest;
            rest += strcspn(rest, "\n");
            if (*rest) *rest++ = 0;
        }
    }
    struct run_config config = {0};
    struct text report = {0};
    struct error err = {0};
    if (config_parse(text, length, "fuzz.yml", count, overrides, &config, &report, &err) == 0) {
        if (err.code || report.length) abort();
        check_round_trip(&config);
        config_free(&config);
    } else if (err.code == 0 || err.text[0] == 0 || report.length == 0) {
        abort();
    }
    text_free(&report);
    mem_free(text);
    return 0;
}
