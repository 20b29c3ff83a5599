// Is what lies on disk whole? Files are checked without a base: hashes where they were recorded, the form of each file,
// and that every number in it is finite.
#pragma once

#include "kernels/base.h"

// Checks a GGUF or safetensors file, an adapter, checkpoint or run folder, a run.json or a log.jsonl, and writes a line
// per part: "ok   NAME: what it is" or "BAD  NAME: why". All parts are looked at; the error is the first one found, 80
// when a hash does not match, 66 when there is nothing at the path.
int health_check(const char *path, struct text *out, struct error *err);
