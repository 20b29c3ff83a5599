// See clock.h.
#include "kernels/clock.h"

#include <stdio.h>
#include <time.h>

static double shift; // test hook

double clock_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

double clock_wall(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec + shift;
}

void clock_iso(double wall, char text[21]) {
    time_t seconds = (time_t)wall;
    struct tm tm;
    if (!gmtime_r(&seconds, &tm) || strftime(text, 21, "%Y-%m-%dT%H:%M:%SZ", &tm) == 0) {
        snprintf(text, 21, "1970-01-01T00:00:00Z");
    }
}

void clock_shift(double seconds) {
    shift = seconds;
}
