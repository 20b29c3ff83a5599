// Runs a fuzz target over files and folders of files: replay PATH... Exit 0 when it survived all of them.
#include "kernels/base.h"
#include "tests/fuzz/fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int replay(const char *path, size_t *count, struct error *err) {
    struct text content;
    if (file_read(path, (size_t)1 << 30, &content, err) < 0) return -1;
    uint8_t *exact = malloc(content.length); // nothing behind it, not even rounding: a sanitizer sees a byte too many
    if (!exact && content.length) {
        text_free(&content);
        return error_memory(err, path, content.length);
    }
    memcpy(exact, content.data, content.length);
    LLVMFuzzerTestOneInput(exact, content.length);
    ++*count;
    free(exact);
    text_free(&content);
    return 0;
}

static int replay_folder(const char *folder, size_t *count, struct error *err) {
    char **names;
    size_t n;
    if (file_list(folder, &names, &n, err) < 0) return -1;
    int result = 0;
    for (size_t i = 0; i < n && result == 0; i++) {
        char *path = path_join(folder, names[i]);
        if (!path)
            result = error_memory(err, "a file name", 0);
        else if (!file_is_folder(path))
            result = replay(path, count, err);
        mem_free(path);
    }
    file_list_free(names, n);
    return result;
}

int main(int argc, char **argv) {
    struct error err = {0};
    size_t count = 0;
    for (int i = 1; i < argc; i++) {
        if ((file_is_folder(argv[i]) ? replay_folder(argv[i], &count, &err) : replay(argv[i], &count, &err)) < 0) {
            fprintf(stderr, "replay: %s\n", err.text);
            return 1;
        }
    }
    printf("%zu inputs replayed\n", count);
    return 0;
}
