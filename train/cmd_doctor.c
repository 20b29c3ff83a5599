// graft doctor: what this machine offers, or whether what lies at a path is whole.
#include "kernels/backend.h"
#include "kernels/machine.h"
#include "train/command.h"
#include "train/health.h"
#include "train/version.h"

#include <cjson/cJSON.h>
#include <openssl/crypto.h>
#include <string.h>
#include <unistd.h>
#include <utf8proc.h>
#include <yaml.h>
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

static const double GIB = 1 << 30;

static void say_cpu(struct text *out) {
    struct text info;
    const char *name = NULL;
    if (file_read("/proc/cpuinfo", 64 << 20, &info, NULL)) info = (struct text){0};
    name = strstr(text_str(&info), "model name");
    name = name ? strchr(name, ':') : NULL;
    if (name) text_printf(out, "CPU: %.*s\n", (int)strcspn(name + 2, "\n"), name + 2);
    text_printf(out, "CPU features: %s\n", backend_cpu_features());
    text_free(&info);
}

// A GRAFT_CPU that this machine cannot follow is told, and is the error in the end.
static int say_kernels(struct text *out, struct error *err) {
    struct backend *cpu = backend_open_cpu(0, err);
    text_printf(out, "kernels: %s\n", cpu ? backend_describe(cpu) : err->text);
    text_printf(out, "bf16: %s\n", backend_cpu_has_bf16() ? "instructions of this CPU" : "no instructions on this CPU");
    backend_close(cpu);
    return cpu ? 0 : -1;
}

static void say_threads(struct text *out) {
    struct machine_cpus cpus = machine_cpus();
    text_printf(out, "threads: %d available (%d CPUs online, affinity allows %d, control group ", cpu_count_available(),
                cpus.online, cpus.allowed);
    if (cpus.quota > 0)
        text_printf(out, "allows %.2f)\n", cpus.quota);
    else
        text_add(out, "sets no limit)\n");
}

static void say_memory(struct text *out) {
    struct machine_memory memory = machine_memory();
    text_printf(out, "memory: %.1f GiB, %.1f GiB available, control group ", (double)memory.total / GIB,
                (double)memory.available / GIB);
    if (memory.limit)
        text_printf(out, "limit %.1f GiB\n", (double)memory.limit / GIB);
    else
        text_add(out, "sets no limit\n");
    text_printf(out, "page size: %ld bytes\n", sysconf(_SC_PAGESIZE));
}

static void say_disk(struct text *out) {
    uint64_t bytes = 0;
    char folder[4096];
    struct error reason = {0};
    if (!getcwd(folder, sizeof folder)) strcpy(folder, ".");
    if (file_free_bytes(".", &bytes, &reason))
        text_printf(out, "disk: %s\n", reason.text);
    else
        text_printf(out, "disk: %.1f GiB free in %s\n", (double)bytes / GIB, folder);
}

static void say_libraries(struct text *out) {
    char pcre2[64] = "?";
    if (pcre2_config(PCRE2_CONFIG_VERSION, NULL) <= (int)sizeof pcre2) pcre2_config(PCRE2_CONFIG_VERSION, pcre2);
    pcre2[strcspn(pcre2, " ")] = 0; // a date follows
    text_printf(out, "libraries: cJSON %s, libyaml %s, PCRE2 %s, utf8proc %s, OpenSSL %s\n", cJSON_Version(),
                yaml_get_version_string(), pcre2, utf8proc_version(), OpenSSL_version(OPENSSL_VERSION_STRING));
}

int command_doctor(int argc, char **argv, struct error *err) {
    if (options_parse(&argc, argv, NULL, 0, err)) return -1;
    if (argc > 1) return error_set(err, STATUS_USAGE, "graft doctor [PATH]");
    struct text out = {0};
    struct error unwritten = {0};
    int failed;
    if (argc == 1)
        failed = health_check(argv[0], &out, err);
    else {
        text_printf(&out, "graft: %s\n", GRAFT_VERSION);
        say_cpu(&out);
        failed = say_kernels(&out, err);
        say_threads(&out);
        say_memory(&out);
        say_disk(&out);
        say_libraries(&out);
        text_add(&out, "GPU: not in this version\n");
    }
    if (print_result(&out, &unwritten) && !failed) failed = error_set(err, unwritten.code, "%s", unwritten.text);
    text_free(&out);
    return failed ? -1 : 0;
}
