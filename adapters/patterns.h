// Names and patterns of modules as PEFT matches them (formats.md 6.2).
#pragma once

#include "model/model.h"

enum { PATTERN_NAME = 512 };

// Is it without operators, so that it means itself (but that a dot stands for any character)?
bool pattern_is_literal(const char *pattern);
// marks[id]: does the regular expression match the module's whole HF name (of experts: that of the first)? `blame`
// begins the message of what is wrong with it: "lora_target_modules: the regular expression"; `code` is its status.
int pattern_match(const struct model *model, const char *regex, const char *blame, int code, bool *marks,
                  struct error *err);
// The same for a key of rank_pattern or alpha_pattern, which must match the name from its beginning or from behind a
// dot. A router may also be meant by its parameter.
int pattern_match_ending(const struct model *model, const char *key, const char *blame, int code, bool *marks,
                         struct error *err);
// The module's i-th name, of experts that of the first one of them; NULL when it has no more names. Perhaps in `path`.
const char *pattern_example(const struct module *module, int i, char path[PATTERN_NAME]);
// The path of the parameter that target_parameters names for this module: of experts in one parameter, and of a router.
// By its i-th name (module_name). False for all others.
bool pattern_parameter(const struct module *module, int i, char path[PATTERN_NAME]);
