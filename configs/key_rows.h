// Macros that write rows of the key table; included only by the files that hold the rows. A row that works is named
// like its member. Further fields may follow: `.aliases = "..."`.
#pragma once

#include "configs/keys.h"

#define NO_BOUND 1e300

#define BOOL(name_, default_, help_, ...)                                                                              \
    { .name = #name_, .type = KEY_BOOL, .offset = MEMBER(name_), .fallback = default_, .help = help_, __VA_ARGS__ }
#define INT(name_, default_, low_, high_, help_, ...)                                                                  \
    {                                                                                                                  \
        .name = #name_, .type = KEY_INT, .offset = MEMBER(name_), .fallback = default_, .low = low_, .high = high_,    \
        .help = help_, __VA_ARGS__                                                                                     \
    }
#define FLOAT(name_, default_, low_, high_, help_, ...)                                                                \
    {                                                                                                                  \
        .name = #name_, .type = KEY_FLOAT, .offset = MEMBER(name_), .fallback = default_, .low = low_, .high = high_,  \
        .help = help_, __VA_ARGS__                                                                                     \
    }
#define STRING(name_, default_, help_, ...)                                                                            \
    { .name = #name_, .type = KEY_STRING, .offset = MEMBER(name_), .fallback = default_, .help = help_, __VA_ARGS__ }
#define ENUM(name_, choices_, default_, help_, ...)                                                                    \
    {                                                                                                                  \
        .name = #name_, .type = KEY_ENUM, .offset = MEMBER(name_), .choices = choices_, .fallback = default_,          \
        .help = help_, __VA_ARGS__                                                                                     \
    }
#define WORKS(name_, type_, default_, help_, ...)                                                                      \
    { .name = #name_, .type = type_, .offset = MEMBER(name_), .fallback = default_, .help = help_, __VA_ARGS__ }
#define GROUP(name_, help_)                                                                                            \
    { .name = name_, .type = KEY_GROUP, .offset = KEY_NO_MEMBER, .fallback = "", .help = help_ }
#define OTHER(name_, status_, type_, default_, help_, ...)                                                             \
    {                                                                                                                  \
        .name = name_, .type = type_, .status = status_, .offset = KEY_NO_MEMBER, .fallback = default_, .help = help_, \
        __VA_ARGS__                                                                                                    \
    }
#define NOT_YET(name_, type_, default_, ...)   OTHER(name_, KEY_NOT_YET, type_, default_, __VA_ARGS__)
#define NO_EFFECT(name_, type_, default_, ...) OTHER(name_, KEY_NO_EFFECT, type_, default_, __VA_ARGS__)
#define REFUSED(name_, type_, default_, ...)   OTHER(name_, KEY_REFUSED, type_, default_, __VA_ARGS__)

extern const struct config_key keys_base[], keys_precision[], keys_adapter[], keys_data[], keys_dataset[],
    keys_sequence[], keys_optimisation[], keys_schedule[], keys_ranks[], keys_preference[], keys_torch[], keys_ours[];
extern const size_t keys_base_count, keys_precision_count, keys_adapter_count, keys_data_count, keys_dataset_count,
    keys_sequence_count, keys_optimisation_count, keys_schedule_count, keys_ranks_count, keys_preference_count,
    keys_torch_count, keys_ours_count;
