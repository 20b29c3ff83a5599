// What a run says while it runs: log.jsonl (one object a step), TensorBoard events, a progress line on a terminal,
// plain lines in a pipe.
#pragma once

#include "train/tensorboard.h"

struct runlog {
    char *path; // RUN/log.jsonl, owned; NULL = no file
    struct tensorboard board;
    uint64_t bytes;              // its length; part of a checkpoint's state
    bool terminal;               // stderr is one
    bool line_open;              // a progress line is on the screen
    double stepping, last_shown; // seconds spent in steps; when a progress line was drawn
    int64_t first_step;          // of this process
};

struct runlog_step {
    int64_t step, total; // 1-based
    double epoch, loss, grad_norm, lr;
    double aux_loss; // negative: there is none
    int64_t tokens, trained_tokens;
    double tokens_per_second, seconds;
    uint64_t peak_bytes;
    bool log; // due by logging_steps: a plain line in a pipe
};

// `events`: TensorBoard files, too.
int runlog_open(const char *run, uint64_t keep_bytes, int64_t first_step, bool events, struct runlog *out,
                struct error *err);
void runlog_close(struct runlog *log);
int runlog_step(struct runlog *log, const struct runlog_step *s, struct error *err);
int runlog_eval(struct runlog *log, int64_t step, double epoch, double loss, double tokens, double seconds,
                struct error *err);
// Any other object as one line (ends without newline).
int runlog_line(struct runlog *log, const char *json, struct error *err);
// A line for people, on stderr, above the progress line.
void runlog_say(struct runlog *log, const char *format, ...) __attribute__((format(printf, 2, 3)));
// "1:02:03" or "2:03" into text[32].
void runlog_duration(double seconds, char text[32]);
