// A progress line on a terminal for work that is counted in pieces; a pipe gets none.
#pragma once

#include "kernels/base.h"

struct progress {
    const char *phase; // static text: "loss", "answers"
    bool terminal;     // stderr is one
    bool line_open;    // a line is on the screen
    double started, last_shown;
};

// The next phase begins now; the same struct serves one after the other. Zeroed before the first one.
void progress_begin(struct progress *progress, const char *phase);
// A work_between (generate.h) with a struct progress as its context: never ends the work.
int progress_show(void *progress, int64_t done, int64_t total, struct error *err);
void progress_end(struct progress *progress); // erases the line; also right after an error, whose message comes next
