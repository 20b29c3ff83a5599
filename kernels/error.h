// Errors: a function that can fail takes a `struct error *`, returns 0 or -1 and fills it once. The code is the process
// exit code, so main only prints the text and leaves. `assert` is for our own bugs, never for input.
#pragma once

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Exit codes (sysexits where they fit).
enum status {
    STATUS_OK = 0,
    STATUS_USAGE = 64,      // wrong command line, command not in this version
    STATUS_DATA = 65,       // bad data: a row, a model file, an adapter
    STATUS_NOINPUT = 66,    // an input file is missing
    STATUS_PUBLISH = 69,    // publish target unavailable (the adapter is safe)
    STATUS_INTERNAL = 70,   // a bug of ours
    STATUS_MEMORY = 71,     // out of host or GPU memory
    STATUS_CANTCREATE = 73, // output not creatable, or locked by another run
    STATUS_IO = 74,         // read or write failed
    STATUS_STOPPED = 75,    // stopped on request, resumable
    STATUS_PEER = 76,       // another rank was lost
    STATUS_PERMISSION = 77,
    STATUS_CONFIG = 78,
    STATUS_NUMERIC = 79,   // NaN, infinity or loss spike stopped the run
    STATUS_INTEGRITY = 80, // a checkpoint or re-check hash does not match
};

struct error {
    int code;        // enum status; 0 = no error yet
    char text[4096]; // "FILE:LINE: what; what is safe; what to do"; no newline at the end, one between several errors
};

// Fills `err` unless it already holds an error (the first one is the cause) and returns -1. `err` may be NULL.
int error_set(struct error *err, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));

// Puts "prefix: " before the text of an error that is already set; returns -1.
int error_prefix(struct error *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

// The error every failed allocation gives; `what` names the thing, `bytes` its size. Returns -1.
int error_memory(struct error *err, const char *what, size_t bytes);

// Checked arithmetic for numbers that come from files: false on overflow, *out untouched.
static inline bool checked_mul(uint64_t a, uint64_t b, uint64_t *out) {
    uint64_t r;
    if (__builtin_mul_overflow(a, b, &r)) return false;
    *out = r;
    return true;
}

static inline bool checked_add(uint64_t a, uint64_t b, uint64_t *out) {
    uint64_t r;
    if (__builtin_add_overflow(a, b, &r)) return false;
    *out = r;
    return true;
}

#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))
