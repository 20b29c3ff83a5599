// See machine.h. Linux says all of it in small text files.
#include "kernels/machine.h"

#include "kernels/file.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// The first `count` numbers in a small text file of the kernel; how many there were, 0 when there is no such file.
static int read_numbers(const char *path, double *n, int count) {
    struct text text;
    if (file_read(path, 4096, &text, NULL)) return 0;
    int got = 0;
    char *end;
    for (const char *p = text_str(&text); got < count; p = end) {
        double value = strtod(p, &end);
        if (end == p) break;
        n[got++] = value;
    }
    text_free(&text);
    return got;
}

// Version 2 of control groups: the strictest limit of this name from our own group up, 0 when there is none. A limit is
// a number or "max", for CPU time followed by the period it is counted in.
static double cgroup_limit(const char *name) {
    char folder[512] = "", path[600];
    struct text groups;
    if (file_read("/proc/self/cgroup", 65536, &groups, NULL) == 0) {
        const char *own = strstr(text_str(&groups), "0::/");
        if (own && (own == text_str(&groups) || own[-1] == '\n')) {
            size_t length = strcspn(own + 3, "\n");
            if (length < sizeof folder) memcpy(folder, own + 3, length), folder[length] = 0;
        }
        text_free(&groups);
    }
    double least = 0;
    for (;;) {
        double n[2] = {0, 1};
        snprintf(path, sizeof path, "/sys/fs/cgroup%s/%s", folder, name);
        if (read_numbers(path, n, 2) > 0 && n[0] > 0 && n[1] > 0 && (least == 0 || n[0] / n[1] < least))
            least = n[0] / n[1];
        char *slash = strrchr(folder, '/');
        if (!slash) return least;
        *slash = 0;
    }
}

static double cpu_quota(void) {
    double quota = cgroup_limit("cpu.max"), n, period;
    if (quota > 0) return quota;
    if (read_numbers("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", &n, 1) == 1 &&
        read_numbers("/sys/fs/cgroup/cpu/cpu.cfs_period_us", &period, 1) == 1 && n > 0 && period > 0) {
        return n / period;
    }
    return 0;
}

struct machine_cpus machine_cpus(void) {
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    struct machine_cpus cpus = {.online = online > 0 ? (int)online : 1, .quota = cpu_quota()};
    cpu_set_t set;
    bool known = sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0;
    cpus.allowed = known ? CPU_COUNT(&set) : cpus.online;
    return cpus;
}

int cpu_count_available(void) {
    struct machine_cpus cpus = machine_cpus();
    int count = cpus.allowed;
    if (cpus.quota > 0 && cpus.quota < count) {
        count = (int)cpus.quota + (cpus.quota > (double)(int)cpus.quota);
    }
    return count > 0 ? count : 1;
}

// One line "NAME:   123 kB" in bytes, 0 when there is none.
static uint64_t line_bytes(const char *text, const char *name) {
    const char *line = strstr(text, name);
    return line ? strtoull(line + strlen(name), NULL, 10) * 1024 : 0;
}

struct machine_memory machine_memory(void) {
    struct machine_memory memory = {0};
    struct text info;
    if (file_read("/proc/meminfo", 65536, &info, NULL) == 0) {
        memory.total = line_bytes(text_str(&info), "MemTotal:");
        memory.available = line_bytes(text_str(&info), "MemAvailable:");
        text_free(&info);
    }
    double limit = cgroup_limit("memory.max"), n;
    if (limit == 0 && read_numbers("/sys/fs/cgroup/memory/memory.limit_in_bytes", &n, 1) == 1) limit = n;
    if (limit > 0 && limit < 0x1p62) memory.limit = (uint64_t)limit; // version 1 writes "none" as nearly 2^63
    return memory;
}

uint64_t memory_held(void) {
    struct text status;
    if (file_read("/proc/self/status", 65536, &status, NULL)) return 0;
    uint64_t bytes = line_bytes(text_str(&status), "RssAnon:") + line_bytes(text_str(&status), "RssShmem:");
    text_free(&status);
    return bytes;
}

uint64_t memory_peak(void) {
    struct text status;
    if (file_read("/proc/self/status", 65536, &status, NULL)) return 0;
    uint64_t bytes = line_bytes(text_str(&status), "VmHWM:");
    text_free(&status);
    return bytes;
}

uint64_t memory_available(void) {
    const char *forced = getenv("GRAFT_MEMORY");
    if (forced) return strtoull(forced, NULL, 10) << 20;
    struct machine_memory memory = machine_memory();
    uint64_t bytes = memory.available ? memory.available : UINT64_MAX, held = memory_held();
    uint64_t granted = !memory.limit ? UINT64_MAX : memory.limit > held ? memory.limit - held : 0;
    return granted < bytes ? granted : bytes;
}
