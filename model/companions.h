// The small files beside a base's weights: tokenizers, templates, settings, licences.
#pragma once

#include "model/base_files.h"

// Calls `take` with each of them in the order of their names (config.json only `with_config`), until one fails.
int companions_each(const struct base *base, bool with_config,
                    int (*take)(void *context, const char *name, const char *path, struct error *err), void *context,
                    struct error *err);

// Copies them from the base's folder to another, but for config.json (which `with_config` adds) and the index of
// shards. Errors: 65 one of more than 256 MiB, 74.
int companions_copy(const struct base *base, const char *folder, bool with_config, struct error *err);
