// make_tiny FOLDER [LAYERS]: tiny.gguf, train.jsonl, test.jsonl and config.yml for tests that run the program.
#include "tests/tiny.h"

#include <stdio.h>
#include <stdlib.h>

static const char *const config =
    "base_model: %s/tiny.gguf\nadapter: lora\nlora_r: 4\nlora_alpha: 8\nlora_target_linear: true\n"
    "datasets:\n  - path: %s/train.jsonl\n    type: chat_template\n"
    "test_datasets:\n  - path: %s/test.jsonl\n    type: chat_template\n"
    "sequence_len: 128\nsample_packing: true\nmicro_batch_size: 1\nnum_epochs: 1\nlearning_rate: 1e-2\n"
    "lr_scheduler: cosine\nfloat32: true\noutput_dir: %s/out\nseed: 1\n";

int main(int argc, char **argv) {
    struct error err = {0};
    char path[600];
    if (argc != 2 && argc != 3) {
        fprintf(stderr, "make_tiny FOLDER [LAYERS]\n");
        return 64;
    }
    const char *folder = argv[1];
    struct tiny_options options = tiny_default;
    if (argc == 3) options.layers = atoi(argv[2]);
    int failed = file_make_folders(folder, &err);
    snprintf(path, sizeof path, "%s/tiny.gguf", folder);
    failed = failed || file_remove(path, &err) || tiny_write(path, &options, &err);
    snprintf(path, sizeof path, "%s/train.jsonl", folder);
    failed = failed || tiny_rows(path, 96, 5, &err);
    snprintf(path, sizeof path, "%s/test.jsonl", folder);
    failed = failed || tiny_rows(path, 12, 6, &err);
    struct text text = {0};
    text_printf(&text, config, folder, folder, folder, folder);
    snprintf(path, sizeof path, "%s/config.yml", folder);
    failed = failed || file_replace(path, text_str(&text), text.length, &err);
    text_free(&text);
    if (failed) fprintf(stderr, "make_tiny: %s\n", err.text);
    return failed ? 1 : 0;
}
