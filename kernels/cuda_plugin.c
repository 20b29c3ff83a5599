// Finds and opens the CUDA plug-in. It lies next to the program; the libraries it needs are looked for in
// $GRAFT_CUDA_LIBS, where the loader looks, in the toolkit's folder, and where pip puts them. $GRAFT_CUDA_PLUGIN names
// another plug-in.
#include "kernels/backend.h"
#include "kernels/cuda/cuda_abi.h"

#include <dlfcn.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PATH_BYTES = 4096 };

static const char PLUGIN[] = "libgraft_cuda.so";
// Opened before a second try, which then finds them loaded.
static const char *const LIBRARIES[] = {"libcublasLt.so.13"};

static bool open_matching(const char *pattern) {
    glob_t found;
    bool opened = false;
    if (glob(pattern, 0, NULL, &found) == 0) {
        for (size_t i = 0; i < found.gl_pathc && !opened; i++)
            opened = dlopen(found.gl_pathv[i], RTLD_NOW | RTLD_GLOBAL) != NULL;
        globfree(&found);
    }
    return opened;
}

static void open_library(const char *name) {
    const char *own = getenv("GRAFT_CUDA_LIBS"), *venv = getenv("VIRTUAL_ENV");
    char path[PATH_BYTES];
    if (own && *own) {
        snprintf(path, sizeof path, "%s/%s", own, name);
        if (open_matching(path)) return;
    }
    if (dlopen(name, RTLD_NOW | RTLD_GLOBAL)) return;
    snprintf(path, sizeof path, "/usr/local/cuda/lib64/%s", name);
    if (open_matching(path)) return;
    if (venv && *venv) {
        snprintf(path, sizeof path, "%s/lib/python*/site-packages/nvidia/*/lib/%s", venv, name);
        if (open_matching(path)) return;
    }
    snprintf(path, sizeof path, "/usr/local/lib/python*/*-packages/nvidia/*/lib/%s", name);
    open_matching(path);
}

static void plugin_path(char path[PATH_BYTES]) {
    const char *named = getenv("GRAFT_CUDA_PLUGIN");
    if (named && *named) {
        snprintf(path, PATH_BYTES, "%s", named);
        return;
    }
    ssize_t n = readlink("/proc/self/exe", path, PATH_BYTES - sizeof PLUGIN - 1);
    path[n > 0 ? n : 0] = '\0';
    char *slash = strrchr(path, '/');
    memcpy(slash ? slash + 1 : path, PLUGIN, sizeof PLUGIN);
}

static const struct cuda_plugin *plugin_open(struct error *err) {
    char path[PATH_BYTES];
    plugin_path(path);
    if (access(path, R_OK) != 0) {
        error_set(err, STATUS_NOINPUT, "no GPU: the plug-in %s is not there; `make cuda` builds it", path);
        return NULL;
    }
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL); // stays open: kernels of it may run until the end
    for (size_t i = 0; !handle && i < COUNT_OF(LIBRARIES); i++) open_library(LIBRARIES[i]);
    if (!handle) handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        error_set(err, STATUS_NOINPUT, "no GPU: %s; set GRAFT_CUDA_LIBS to the folder of CUDA's libraries", dlerror());
        return NULL;
    }
    const struct cuda_plugin *plugin = dlsym(handle, CUDA_PLUGIN_SYMBOL);
    if (!plugin || plugin->abi != CUDA_PLUGIN_ABI || plugin->own_bytes != sizeof *plugin ||
        plugin->call_bytes != sizeof(struct op_call) || plugin->weight_bytes != sizeof(struct weight) ||
        plugin->class_bytes != sizeof(struct backend_class)) {
        error_set(err, STATUS_INTERNAL, "%s is of another version than this program; build both together", path);
        return NULL;
    }
    return plugin;
}

struct backend *backend_open_cuda(struct error *err) {
    const struct cuda_plugin *plugin = plugin_open(err);
    return plugin ? plugin->open(err) : NULL;
}

bool backend_expects_gpu(void) {
    return access("/dev/nvidiactl", F_OK) == 0;
}

int backend_find_gpu(struct gpu_found *out, struct error *err) {
    const struct cuda_plugin *plugin = plugin_open(err);
    return plugin ? plugin->find(out, err) : -1;
}
