// The small files beside a base's weights: tokenizers, templates, settings, licences.
#pragma once

#include "model/base_files.h"

// Is a file of this name one of them? config.json where `with_config`.
bool companion_of_base(const char *name, bool with_config);

// Copies them from the base's folder to another, but for config.json (which `with_config` adds) and the index of
// shards. Errors: 65 one of more than 256 MiB, 74.
int companions_copy(const struct base *base, const char *folder, bool with_config, struct error *err);
