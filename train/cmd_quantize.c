// graft quantize: a smaller base, made once: a folder as bitsandbytes writes it, or a GGUF.
#include "adapters/output.h"
#include "kernels/clock.h"
#include "kernels/cpu/cpu.h"
#include "kernels/machine.h"
#include "model/gguf_export.h"
#include "model/quantize_base.h"
#include "train/base_source.h"
#include "train/command.h"
#include "train/progress.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static volatile sig_atomic_t stop_requested;

static void on_signal(int number) {
    if (stop_requested) _Exit(STATUS_STOPPED);
    stop_requested = number;
}

static void install_signals(void) {
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
}

// Between two pieces of work.
static int show_or_stop(void *progress, int64_t done, int64_t total, struct error *err) {
    if (stop_requested)
        return error_set(err, STATUS_STOPPED, "stopped by signal %d; nothing was written", (int)stop_requested);
    return progress_show(progress, done, total, err);
}

struct request {
    struct base_source source;
    const char *out;
    struct base_packing packing;     // bitsandbytes
    const struct gguf_packing *gguf; // or this
    bool pure;
};

static int read_packing(const struct option *options, const char *to, struct request *r, struct error *err) {
    static const struct {
        const char *name;
        enum quant format;
    } types[] = {{"nf4", QUANT_NF4}, {"fp4", QUANT_FP4}, {"int8", QUANT_INT8}};
    static const char *const four_bits[] = {"--blocksize", "--no-double-quant"};
    double block = 64;
    if (option_number(options, "--blocksize", 32, 4096, &block, err)) return -1;
    int64_t size = (int64_t)block;
    if ((double)size != block || (size & (size - 1)) != 0)
        return error_set(err, STATUS_USAGE, "--blocksize %g: 32, 64, 128 .. 4096 are known", block);
    r->gguf = gguf_packing_find(to);
    r->pure = option_flag(options, "--pure");
    for (size_t i = 0; i < COUNT_OF(types); i++) {
        if (strcmp(to, types[i].name) == 0)
            r->packing = (struct base_packing){
                .format = types[i].format, .blocksize = size, .nested = !option_flag(options, "--no-double-quant")};
    }
    if (!r->gguf && r->packing.format == 0)
        return error_set(err, STATUS_USAGE, "--to %s: nf4, fp4, int8 (a folder), %s (a GGUF) are known", to,
                         gguf_packing_list());
    if (r->pure && !r->gguf) return error_set(err, STATUS_USAGE, "--pure is for GGUF types, not for %s", to);
    for (size_t i = 0; i < COUNT_OF(four_bits); i++) {
        if (option_value(options, four_bits[i]) && r->packing.format != QUANT_NF4 && r->packing.format != QUANT_FP4)
            return error_set(err, STATUS_USAGE, "%s is for nf4 and fp4, not for %s", four_bits[i], to);
    }
    return 0;
}

static int write_folder(const struct request *r, const struct model *model, struct error *err) {
    struct progress progress = {0};
    char name[40];
    base_packing_name(&r->packing, name);
    double begin = clock_now();
    progress_begin(&progress, "quantising");
    int status = file_make_folders(r->out, err);
    if (status == 0) {
        status = quantize_base(model, &r->packing, r->out, cpu_count_available(), show_or_stop, &progress, err);
        if (status) file_remove_tree(r->out, NULL);
    }
    progress_end(&progress);
    struct model again;
    if (status || model_open(r->out, NULL, &again, err)) return -1; // what was written is read back
    printf("%s: %s, %.1f MB of weights became %.1f MB in %.1f s\n", r->out, name, (double)model->weight_bytes / 1e6,
           (double)again.weight_bytes / 1e6, clock_now() - begin);
    model_close(&again);
    return 0;
}

// --- GGUF

static int write_file(struct gguf_export *e, const char *path, struct error *err) {
    struct output out;
    struct gguf again;
    if (output_open(path, &out, err)) return -1;
    int status = output_room(&out, e->bytes, err);
    if (status == 0) status = gguf_export_write(e, &out.file, err);
    if (status == 0) status = output_close(&out, err);
    if (status == 0 && (status = gguf_open(out.temporary, &again, err)) == 0) gguf_close(&again);
    if (status == 0) return output_commit(&out, err);
    output_abandon(&out);
    return -1;
}

static void print_done(const struct request *r, const struct gguf_export *e, double seconds) {
    struct text types = {0};
    for (int q = 0; q < QUANT_COUNT; q++) {
        if (e->counts[q] > 0)
            text_printf(&types, "%s%llu %s", types.length ? ", " : "", (unsigned long long)e->counts[q],
                        quant_format((enum quant)q)->name);
    }
    printf("%s: %s, %.1f MB of weights became a file of %.1f MB in %.1f s (tensors written: %s)\n", r->out,
           r->gguf->name, (double)e->model->weight_bytes / 1e6, (double)e->bytes / 1e6, seconds,
           types.length ? text_str(&types) : "all as they were");
    text_free(&types);
}

static int write_gguf(const struct request *r, const struct model *model, struct error *err) {
    struct progress progress = {0};
    struct encode_work work = {.report = show_or_stop, .context = &progress};
    struct gguf_export e = {0};
    double begin = clock_now();
    work.threads = threads_open(cpu_count_available(), err);
    if (!work.threads) return -1;
    int status = gguf_export_open(model, r->gguf, r->pure, &work, &e, err);
    if (status == 0) {
        fputs(text_str(&e.notes), stderr);
        progress_begin(&progress, "quantising");
        status = write_file(&e, r->out, err);
        progress_end(&progress);
    }
    if (status == 0) print_done(r, &e, clock_now() - begin);
    gguf_export_close(&e);
    threads_close(work.threads);
    return status;
}

int command_quantize(int argc, char **argv, struct error *err) {
    struct option options[] = {{.name = "--to", .takes_value = true},
                               {.name = "--out", .takes_value = true},
                               {.name = "--blocksize", .takes_value = true},
                               {.name = "--no-double-quant"},
                               {.name = "--pure"},
                               {.name = "--revision", .takes_value = true}};
    if (options_parse(&argc, argv, options, COUNT_OF(options), err)) return -1;
    struct request r = {.out = option_value(options, "--out")};
    const char *to = option_value(options, "--to");
    if (argc != 1 || !to || !r.out)
        return error_set(err, STATUS_USAGE, "graft quantize BASE --to nf4|fp4|int8|q8_0|q6_k|q4_k|q4_0|... --out PATH");
    if (read_packing(options, to, &r, err)) return -1;
    if (file_exists(r.out) || file_is_folder(r.out))
        return error_set(err, STATUS_CANTCREATE, "%s: exists; remove it or choose another name", r.out);
    struct model model;
    r.source = (struct base_source){.name = argv[0], .revision = option_value(options, "--revision")};
    install_signals();
    if (base_source_open(&r.source, cpu_count_available(), &model, err)) return -1;
    int status = r.gguf ? write_gguf(&r, &model, err) : write_folder(&r, &model, err);
    model_close(&model);
    return status;
}
