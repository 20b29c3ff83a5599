// See runlog.h.
#include "train/runlog.h"

#include "data/json.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int runlog_open(const char *run, uint64_t keep_bytes, int64_t first_step, bool events, struct runlog *out,
                struct error *err) {
    *out = (struct runlog){.bytes = keep_bytes, .terminal = isatty(STDERR_FILENO), .first_step = first_step};
    out->path = path_join(run, "log.jsonl");
    if (!out->path) return error_memory(err, "the log's path", strlen(run));
    if (events && tensorboard_open(run, first_step, &out->board, err)) return -1;
    if (keep_bytes == 0) return file_remove(out->path, err);
    uint64_t size = 0;
    if (file_exists(out->path) && file_size(out->path, &size, err)) return -1;
    if (size >= keep_bytes) return file_truncate(out->path, keep_bytes, err); // later lines come again
    // Lost with the power, or removed: what is left of it up to the last whole line.
    struct text log = {0};
    if (size > 0 && file_read(out->path, (size_t)keep_bytes, &log, err)) return -1;
    size_t whole = log.length;
    while (whole > 0 && log.data[whole - 1] != '\n') whole--;
    text_free(&log);
    runlog_say(out, "log.jsonl holds %zu of %llu bytes of the steps before %lld; the rest of them is lost", whole,
               (unsigned long long)keep_bytes, (long long)first_step);
    out->bytes = whole;
    return whole ? file_truncate(out->path, whole, err) : file_remove(out->path, err);
}

void runlog_close(struct runlog *log) {
    if (log->line_open) fputc('\n', stderr);
    tensorboard_close(&log->board);
    mem_free(log->path);
    *log = (struct runlog){0};
}

int runlog_line(struct runlog *log, const char *json, struct error *err) {
    struct text line = {0};
    text_add(&line, json);
    text_char(&line, '\n');
    int failed = text_failed(&line) ? error_memory(err, "a log line", line.length)
                                    : file_append(log->path, line.data, line.length, err);
    if (!failed) log->bytes += line.length;
    text_free(&line);
    return failed;
}

void runlog_duration(double seconds, char text[32]) {
    long s = seconds < 0 || seconds > 3.6e8 ? 0 : lround(seconds);
    if (s >= 3600)
        snprintf(text, 32, "%ld:%02ld:%02ld", s / 3600, s / 60 % 60, s % 60);
    else
        snprintf(text, 32, "%ld:%02ld", s / 60, s % 60);
}

static void show(struct runlog *log, const struct runlog_step *s) {
    char eta[32];
    double now = clock_now();
    int64_t done = s->step - log->first_step;
    log->stepping += s->seconds; // evaluations would spoil the first guesses
    runlog_duration(done > 0 ? log->stepping / (double)done * (double)(s->total - s->step) : 0, eta);
    if (log->terminal) {
        if (now - log->last_shown < 0.1 && s->step != s->total) return;
        fprintf(stderr, "\r\033[Kstep %lld/%lld  loss %.4f  lr %.2e  %.0f tok/s  %.0f MiB  ETA %s", (long long)s->step,
                (long long)s->total, s->loss, s->lr, s->tokens_per_second, (double)s->peak_bytes / 1048576, eta);
        log->line_open = true;
    } else if (s->log) {
        fprintf(stderr, "step %lld/%lld  epoch %.2f  loss %.4f  grad_norm %.3f  lr %.2e  %.0f tok/s  ETA %s\n",
                (long long)s->step, (long long)s->total, s->epoch, s->loss, s->grad_norm, s->lr, s->tokens_per_second,
                eta);
    }
    log->last_shown = now;
    fflush(stderr);
}

int runlog_step(struct runlog *log, const struct runlog_step *s, struct error *err) {
    struct text line = {0};
    struct json_writer w = {.out = &line, .style = JSON_SPACED};
    const struct {
        const char *key;
        double value;
    } fields[] = {{"loss", s->loss}, {"grad_norm", s->grad_norm}, {"lr", s->lr}};
    json_begin_object(&w);
    json_put_key(&w, "step");
    json_put_int(&w, s->step);
    json_put_key(&w, "epoch");
    json_put_double(&w, round(s->epoch * 1e6) / 1e6);
    for (size_t i = 0; i < COUNT_OF(fields); i++) {
        json_put_key(&w, fields[i].key);
        json_put_double(&w, fields[i].value);
    }
    if (s->aux_loss >= 0) {
        json_put_key(&w, "aux_loss");
        json_put_double(&w, s->aux_loss);
    }
    json_put_key(&w, "tokens");
    json_put_int(&w, s->tokens);
    json_put_key(&w, "trained_tokens");
    json_put_int(&w, s->trained_tokens);
    json_put_key(&w, "tokens_per_second");
    json_put_double(&w, round(s->tokens_per_second * 10) / 10);
    json_put_key(&w, "peak_bytes");
    json_put_int(&w, (int64_t)s->peak_bytes);
    json_put_key(&w, "seconds");
    json_put_double(&w, round(s->seconds * 1e3) / 1e3);
    json_end_object(&w);
    int failed = text_failed(&line) ? error_memory(err, "a log line", line.length) : runlog_line(log, line.data, err);
    text_free(&line);
    show(log, s);
    struct tensorboard_value values[] = {{"train/loss", s->loss},
                                         {"train/grad_norm", s->grad_norm},
                                         {"train/learning_rate", s->lr},
                                         {"train/tokens_per_second", s->tokens_per_second}};
    return failed || tensorboard_add(&log->board, s->step, values, COUNT_OF(values), err) ? -1 : 0;
}

int runlog_eval(struct runlog *log, int64_t step, double epoch, double loss, double tokens, double seconds,
                struct error *err) {
    struct text line = {0};
    struct json_writer w = {.out = &line, .style = JSON_SPACED};
    json_begin_object(&w);
    json_put_key(&w, "step");
    json_put_int(&w, step);
    json_put_key(&w, "epoch");
    json_put_double(&w, round(epoch * 1e6) / 1e6);
    json_put_key(&w, "eval_loss");
    json_put_double(&w, loss);
    json_put_key(&w, "eval_perplexity");
    json_put_double(&w, exp(loss));
    json_put_key(&w, "eval_tokens");
    json_put_int(&w, (int64_t)tokens);
    json_put_key(&w, "seconds");
    json_put_double(&w, round(seconds * 1e3) / 1e3);
    json_end_object(&w);
    int failed = text_failed(&line) ? error_memory(err, "a log line", line.length) : runlog_line(log, line.data, err);
    text_free(&line);
    runlog_say(log, "step %lld  eval_loss %.4f  perplexity %.3f  (%.1f s)", (long long)step, loss, exp(loss), seconds);
    struct tensorboard_value values[] = {{"eval/loss", loss}, {"eval/perplexity", exp(loss)}};
    return failed || tensorboard_add(&log->board, step, values, COUNT_OF(values), err) ? -1 : 0;
}

void runlog_say(struct runlog *log, const char *format, ...) {
    if (log->line_open) fputs("\r\033[K", stderr);
    log->line_open = false;
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    fflush(stderr);
}
