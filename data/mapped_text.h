// A text that is changed step by step and remembers where each of its bytes came from. Private to data/.
#pragma once

#include "kernels/base.h"

struct mapped_text {
    const char *bytes; // the newest version
    size_t length;
    const uint32_t *sources; // (length + 1) byte of the first version; NULL while the text is as it was
    // Versions take turns: one is read while the next is written.
    struct text made[2];
    uint32_t *maps[2];
    size_t capacities[2];
    int writing;
    bool failed;
};

void mapped_begin(struct mapped_text *m, const char *bytes, size_t length); // borrowed; buffers are used again
void mapped_free(struct mapped_text *m);

// A new version: begin, then parts in order, then commit (-1 when out of memory) or nothing.
void mapped_edit(struct mapped_text *m);
void mapped_keep(struct mapped_text *m, size_t begin, size_t end);                   // bytes of the old version
void mapped_put(struct mapped_text *m, const char *bytes, size_t length, size_t at); // new bytes, from byte `at` of it
size_t mapped_written(const struct mapped_text *m);                                  // bytes of the new version
int mapped_commit(struct mapped_text *m, struct error *err);

// Where byte `at` (up to the length) of the newest version came from.
static inline size_t mapped_source(const struct mapped_text *m, size_t at) {
    return m->sources ? m->sources[at] : at;
}
