// Distances from what transformers and PEFT computed, for each folder of tests/oracle/families.py: one line of JSON
// each.
#include "tests/parity.h"

int main(int argc, char **argv) {
    if (argc < 3) {
        fprintf(stderr, "families_dump SCRATCH [--base FILE] FOLDER...\n");
        return 64;
    }
    struct parity_setup setup = {.threads = 2, .dtype = DTYPE_F32};
    int failed = 0;
    int first = 2;
    if (argc > 4 && strcmp(argv[2], "--base") == 0) setup.base = argv[3], first = 4;
    for (int i = first; i < argc; i++) {
        struct parity p;
        struct error err = {0};
        if (parity_of(argv[i], argv[1], &setup, &p, &err)) {
            printf("{\"folder\": \"%s\", \"error\": \"", argv[i]);
            for (const char *c = err.text; *c; c++) putchar(*c == '"' || *c == '\\' || *c == '\n' ? '\'' : *c);
            printf("\"}\n");
            failed = 1;
            continue;
        }
        printf("{\"folder\": \"%s\", \"logits\": %.3g, \"loss\": %.3g, \"gradient\": %.3g, \"together\": %.3g, "
               "\"worst\": \"%s\", \"gradients\": %d}\n",
               argv[i], p.logits, p.loss, p.gradient, p.together, p.worst, p.gradients);
    }
    return failed;
}
