// safetensors: every tensor of an accepted file lies inside it, and the file written again from what was read holds the
// same.
#include "model/safetensors.h"
#include "tests/fuzz/fuzz.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static void same(const struct safetensors *a, const struct safetensors *b) {
    EXPECT(a->n_entries == b->n_entries);
    for (size_t i = 0; i < a->n_entries; i++) {
        const struct safetensors_entry *x = &a->entries[i], *y = safetensors_find(b, x->name);
        EXPECT(y && x->dtype == y->dtype && x->n_dims == y->n_dims && x->bytes == y->bytes);
        EXPECT(memcmp(x->shape, y->shape, sizeof x->shape) == 0 && memcmp(x->data, y->data, (size_t)x->bytes) == 0);
    }
}

static void write_again(const struct safetensors *s) {
    static int fd = -1; // one file in memory for the whole run
    static uint8_t buffer[1 << 20];
    if (fd < 0) fd = memfd_create("safetensors", 0);
    EXPECT(fd >= 0 && ftruncate(fd, 0) == 0 && lseek(fd, 0, SEEK_SET) == 0);
    struct safetensors_out out[64];
    if (s->n_entries > sizeof out / sizeof out[0]) return;
    for (size_t i = 0; i < s->n_entries; i++) {
        const struct safetensors_entry *e = &s->entries[i];
        out[i] = (struct safetensors_out){.name = e->name, .dtype = e->dtype, .n_dims = e->n_dims, .data = e->data};
        memcpy(out[i].shape, e->shape, sizeof e->shape);
    }
    struct error err = {0};
    struct safetensors again;
    struct file_writer w = {.fd = fd, .path = (char *)(uintptr_t) "memory"};
    EXPECT(safetensors_write(&w, out, s->n_entries, &err) == 0 && w.bytes <= sizeof buffer);
    EXPECT(pread(fd, buffer, (size_t)w.bytes, 0) == (ssize_t)w.bytes);
    EXPECT(safetensors_parse(buffer, (size_t)w.bytes, "again", &again, &err) == 0);
    same(s, &again);
    safetensors_close(&again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct safetensors s;
    struct error err = {0};
    if (safetensors_parse(data, size, "input", &s, &err) < 0) {
        EXPECT(err.code == STATUS_DATA);
        return 0;
    }
    const uint8_t *next = data + s.data_start;
    for (size_t i = 0; i < s.n_entries; i++) { // they tile the data
        const struct safetensors_entry *e = &s.entries[i];
        EXPECT(e->data == next && e->bytes <= (size_t)(data + size - next) && safetensors_find(&s, e->name) == e);
        next += e->bytes;
    }
    EXPECT(next == data + size);
    write_again(&s);
    safetensors_close(&s);
    return 0;
}

// Plain mutation dies at the length field: half of the time it is put right for a header that ends at the last '}'.
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed) {
    size = LLVMFuzzerMutate(data, size, max_size);
    if (size < 10 || seed % 2) return size;
    size_t end = size;
    while (end > 8 && data[end - 1] != '}') end--;
    uint64_t header = end > 8 ? end - 8 : size - 8;
    memcpy(data, &header, 8);
    return size;
}
