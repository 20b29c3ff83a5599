// See progress.h.
#include "train/progress.h"

#include "train/runlog.h"

#include <stdio.h>
#include <unistd.h>

void progress_begin(struct progress *p, const char *phase) {
    *p = (struct progress){
        .phase = phase, .terminal = isatty(STDERR_FILENO), .line_open = p->line_open, .started = clock_now()};
}

int progress_show(void *progress, int64_t done, int64_t total, struct error *err) {
    (void)err;
    struct progress *p = progress;
    double now = clock_now(), seconds = now - p->started;
    if (!p->terminal || now - p->last_shown < 0.1) return 0;
    fprintf(stderr, "\r\033[K%s %lld/%lld", p->phase, (long long)done, (long long)total);
    if (done > 0 && seconds > 0) {
        char eta[32];
        runlog_duration(seconds / (double)done * (double)(total - done), eta);
        fprintf(stderr, "  %.3g/s  ETA %s", (double)done / seconds, eta);
    }
    fflush(stderr);
    p->line_open = true;
    p->last_shown = now;
    return 0;
}

void progress_end(struct progress *p) {
    if (!p->line_open) return;
    fputs("\r\033[K", stderr);
    fflush(stderr);
    p->line_open = false;
}
