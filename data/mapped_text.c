// See mapped_text.h.
#include "data/mapped_text.h"

#include <string.h>

void mapped_begin(struct mapped_text *m, const char *bytes, size_t length) {
    m->bytes = bytes;
    m->length = length;
    m->sources = NULL;
    m->failed = false;
}

void mapped_free(struct mapped_text *m) {
    for (int i = 0; i < 2; i++) {
        text_free(&m->made[i]);
        mem_free(m->maps[i]);
    }
    *m = (struct mapped_text){0};
}

void mapped_edit(struct mapped_text *m) {
    m->writing = m->bytes && m->bytes == m->made[0].data ? 1 : 0;
    struct text *made = &m->made[m->writing];
    if (text_failed(made)) text_free(made);
    text_clear(made);
}

// Room for the sources of `more` bytes and the end.
static uint32_t *reserve(struct mapped_text *m, size_t more) {
    int w = m->writing;
    size_t need = m->made[w].length + more + 1;
    if (need > m->capacities[w]) {
        size_t capacity = need + need / 2 + 64;
        uint32_t *map = mem_resize(m->maps[w], capacity * sizeof *map);
        if (!map) {
            m->failed = true;
            return NULL;
        }
        m->maps[w] = map;
        m->capacities[w] = capacity;
    }
    return m->maps[w] + m->made[w].length;
}

void mapped_keep(struct mapped_text *m, size_t begin, size_t end) {
    uint32_t *map = end > begin ? reserve(m, end - begin) : NULL;
    if (!map) return;
    for (size_t i = begin; i < end; i++) map[i - begin] = (uint32_t)mapped_source(m, i);
    text_append(&m->made[m->writing], m->bytes + begin, end - begin);
}

void mapped_put(struct mapped_text *m, const char *bytes, size_t length, size_t at) {
    uint32_t *map = length ? reserve(m, length) : NULL;
    if (!map) return;
    size_t source = mapped_source(m, at), written = m->made[m->writing].length;
    if (written > 0 && map[-1] > source) source = map[-1]; // sources never go back
    for (size_t i = 0; i < length; i++) map[i] = (uint32_t)source;
    text_append(&m->made[m->writing], bytes, length);
}

size_t mapped_written(const struct mapped_text *m) {
    return m->made[m->writing].length;
}

int mapped_commit(struct mapped_text *m, struct error *err) {
    struct text *made = &m->made[m->writing];
    uint32_t *end = reserve(m, 0);
    if (!end || m->failed || text_failed(made)) return error_memory(err, "a text", made->length);
    if (made->length >= UINT32_MAX)
        return error_set(err, STATUS_DATA, "a text of %zu bytes is too long to tokenise", made->length);
    *end = (uint32_t)mapped_source(m, m->length);
    m->bytes = text_str(made);
    m->length = made->length;
    m->sources = m->maps[m->writing];
    return 0;
}
