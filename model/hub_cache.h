// The local cache of the Hugging Face hub, read-only: models--ORG--NAME/refs/REVISION names a commit, snapshots/COMMIT
// holds its files. Nothing is downloaded here.
#pragma once

#include "kernels/base.h"

// Is it a name on the hub: ORG/NAME, or ORG/NAME/FILE inside of it? Says nothing about whether it exists.
bool hub_is_name(const char *name);

// The folder (or the file in it) of `name` at `revision` (a branch, a tag or a commit; NULL = "main"). The cache is
// HF_HUB_CACHE, else HF_HOME/hub, else XDG_CACHE_HOME/huggingface/hub, else ~/.cache/huggingface/hub. Error 66 says
// where was looked and the command that downloads it.
int hub_find(const char *name, const char *revision, struct pool *pool, const char **path, struct error *err);
