// The fixtures of families (tests/oracle/families.py), one after another, and how near a run of ours must come to them.
#pragma once

#include "tests/harness.h"
#include "tests/parity.h"

// Far below what is promised (1e-4, 5e-4 with experts): these numbers are the same on every machine.
#define TOLERANCE          1e-5
#define TOLERANCE_GRADIENT 4e-5
#define TOLERANCE_BF16     0.05

static const char FOLDER[] = "tests/fixtures/families";

static inline const char *path_of(const char *family, const char *file) {
    static char path[4][400];
    static int next;
    next = (next + 1) % 4;
    snprintf(path[next], sizeof path[next], "%s/%s%s%s", FOLDER, family, file ? "/" : "", file ? file : "");
    return path[next];
}

static inline const char *scratch(void) {
    static char path[400];
    snprintf(path, sizeof path, "%s/gradients", test_folder());
    return path;
}

// Calls `check` for every base there is: a family's folder, with `base` NULL, or a file in it.
static inline void each_base(void (*check)(const char *family, const char *base)) {
    char **names;
    size_t count, folders = 0, files = 0;
    struct error err = {0};
    CHECK_MSG(file_list(FOLDER, &names, &count, &err) == 0, "%s", err.text);
    if (err.code) return;
    for (size_t i = 0; i < count; i++) {
        if (!file_is_folder(path_of(names[i], NULL))) continue;
        if (file_exists(path_of(names[i], "config.json"))) check(names[i], NULL), folders++;
        if (file_exists(path_of(names[i], "model.gguf"))) check(names[i], "model.gguf"), files++;
    }
    CHECK_MSG(folders >= 63 && files >= 32, "only %zu folders, %zu GGUF files", folders, files);
    file_list_free(names, count);
}

static inline void compare(const char *family, const struct parity_setup *setup, double logits, double gradient) {
    struct parity p;
    struct error err = {0};
    const char *base = setup->base ? setup->base : "folder";
    int status = parity_of(path_of(family, NULL), scratch(), setup, &p, &err);
    CHECK_MSG(status == 0, "%s: %s", family, err.text);
    if (status) return;
    CHECK_MSG(p.logits <= logits, "%s %s: logits are off by %.2g of the largest", family, base, p.logits);
    CHECK_MSG(p.loss <= logits, "%s %s: the loss is off by %.2g", family, base, p.loss);
    CHECK_MSG(p.gradient <= gradient, "%s %s: the gradient of %s is off by %.2g of its largest", family, base, p.worst,
              p.gradient);
    CHECK((p.gradients > 0) == !setup->adapter);
}
