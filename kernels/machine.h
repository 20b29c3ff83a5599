// What this process may use of the machine: CPUs and memory, as affinity masks and control groups leave them.
#pragma once

#include <stdint.h>

struct machine_cpus {
    int online, allowed; // allowed: by the affinity mask
    double quota;        // CPUs' worth of time that the control group allows, 0 = no limit
};
struct machine_cpus machine_cpus(void);
// CPUs this process may use: affinity, then cgroup quota (rounded up), at least 1.
int cpu_count_available(void);

struct machine_memory {
    uint64_t total, available; // of the machine, 0 = unknown
    uint64_t limit;            // the strictest of our control groups, 0 = none
};
struct machine_memory machine_memory(void);

// Bytes of anonymous memory this process holds now (RssAnon + RssShmem), 0 when unknown.
uint64_t memory_held(void);
// What this process may still take: free memory of the machine or what its cgroup grants. GRAFT_MEMORY=MiB forces it.
uint64_t memory_available(void);
uint64_t memory_peak(void); // highest resident size so far, file pages included
