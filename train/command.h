// The subcommands of `graft` (design.md section 5). Each takes the arguments after its name, prints its result to
// stdout, and fills err; main turns that into a message and an exit code.
#pragma once

#include "configs/run_config.h"

struct command {
    const char *name, *arguments, *summary;               // for help
    int (*run)(int argc, char **argv, struct error *err); // NULL: not in this version
    const char *help;                                     // options, one per line
};
extern const struct command command_table[];
extern const int command_count;

int command_train(int argc, char **argv, struct error *err);
int command_plan(int argc, char **argv, struct error *err);
int command_check(int argc, char **argv, struct error *err);
int command_inspect(int argc, char **argv, struct error *err);
int command_eval(int argc, char **argv, struct error *err);
int command_chat(int argc, char **argv, struct error *err);
int command_export(int argc, char **argv, struct error *err);
int command_quantize(int argc, char **argv, struct error *err);
int command_verify(int argc, char **argv, struct error *err);
int command_help(int argc, char **argv, struct error *err);
int command_doctor(int argc, char **argv, struct error *err);

// Reads CONFIG.yml and key=value arguments; prints all problems, and the notices of a good configuration, to stderr.
int config_from_arguments(int argc, char **argv, struct run_config *config, struct error *err);

// --- arguments

// Options of a command: {"--name", 1 if it takes a value}. Parsed ones are taken out of argv; what is left are the
// positional arguments. An unknown option is a usage error with the nearest known one.
enum { OPTION_REPEATS = 16 };
struct option {
    const char *name;
    bool takes_value, repeats;
    const char *value;                  // out: last value, or "" for a flag that was given; NULL = not given
    const char *values[OPTION_REPEATS]; // out, when it repeats: all of them
    int n_values;
};
int options_parse(int *argc, char **argv, struct option *options, int n, struct error *err);
bool option_flag(const struct option *options, const char *name);
const char *option_value(const struct option *options, const char *name); // NULL = not given
int option_number(const struct option *options, const char *name, double low, double high, double *out,
                  struct error *err);

// Writes the text to stdout; 74 when that fails (a full disk behind a pipe).
int print_result(const struct text *text, struct error *err);
