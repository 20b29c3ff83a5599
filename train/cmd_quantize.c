// graft quantize: a smaller base, made once.
#include "model/quantize_base.h"
#include "train/base_source.h"
#include "train/command.h"
#include "train/progress.h"

#include "kernels/clock.h"
#include "kernels/machine.h"

#include <stdio.h>
#include <string.h>

static int packing_of(const struct option *options, struct base_packing *out, struct error *err) {
    static const struct {
        const char *name;
        enum quant format;
    } types[] = {{"nf4", QUANT_NF4}, {"fp4", QUANT_FP4}, {"int8", QUANT_INT8}};
    const char *type = option_value(options, "--type");
    double block = 64;
    if (option_number(options, "--blocksize", 32, 4096, &block, err)) return -1;
    int64_t size = (int64_t)block;
    if ((double)size != block || (size & (size - 1)) != 0)
        return error_set(err, STATUS_USAGE, "--blocksize %g: 32, 64, 128 .. 4096 are known", block);
    for (size_t i = 0; i < COUNT_OF(types); i++) {
        if (strcmp(type ? type : "nf4", types[i].name) != 0) continue;
        *out = (struct base_packing){
            .format = types[i].format, .blocksize = size, .nested = !option_flag(options, "--no-double-quant")};
        return 0;
    }
    return error_set(err, STATUS_USAGE, "--type %s: nf4, fp4 and int8 are known", type);
}

static int write_folder(const struct base_source *source, const struct base_packing *packing, const char *folder,
                        struct error *err) {
    struct model model;
    struct progress progress = {0};
    char name[40];
    int threads = cpu_count_available();
    if (file_exists(folder) || file_is_folder(folder))
        return error_set(err, STATUS_CANTCREATE, "%s: exists; remove it or choose another name", folder);
    if (base_source_open(source, threads, &model, err)) return -1;
    double begin = clock_now();
    base_packing_name(packing, name);
    progress_begin(&progress, "quantising");
    int status = file_make_folders(folder, err);
    if (status == 0) {
        status = quantize_base(&model, packing, folder, threads, progress_show, &progress, err);
        if (status) file_remove_tree(folder, NULL);
    }
    progress_end(&progress);
    uint64_t before = model.weight_bytes;
    model_close(&model);
    if (status || model_open(folder, NULL, &model, err)) return -1; // what was written is read back
    printf("%s: %s, %.1f MB of weights became %.1f MB in %.1f s\n", folder, name, (double)before / 1e6,
           (double)model.weight_bytes / 1e6, clock_now() - begin);
    model_close(&model);
    return 0;
}

int command_quantize(int argc, char **argv, struct error *err) {
    struct option options[] = {{.name = "--type", .takes_value = true},
                               {.name = "--blocksize", .takes_value = true},
                               {.name = "--no-double-quant"},
                               {.name = "--revision", .takes_value = true}};
    if (options_parse(&argc, argv, options, COUNT_OF(options), err)) return -1;
    if (argc != 2) return error_set(err, STATUS_USAGE, "graft quantize BASE OUT [--type nf4|fp4|int8]");
    struct base_packing packing;
    if (packing_of(options, &packing, err)) return -1;
    struct base_source source = {.name = argv[0], .revision = option_value(options, "--revision")};
    return write_folder(&source, &packing, argv[1], err);
}
