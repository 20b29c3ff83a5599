// GGUF: every value and every tensor of an accepted file is read (tensors through their decoder), every getter is tried
// on every key, and the file written again from what was read holds the same.
#include "model/gguf_write.h"
#include "tests/fuzz/fuzz.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static void try_getters(const struct gguf *g, const struct gguf_kv *kv) {
    struct pool pool = {0};
    struct error err = {0};
    struct vocab_string string;
    const struct vocab_string *strings = NULL;
    const int32_t *numbers = NULL;
    const float *floats = NULL;
    const char *text = NULL;
    int64_t whole = 0, layers[4];
    double number;
    bool flag;
    size_t n = 0;
    uint64_t sum = 0;
    EXPECT(gguf_find(g, kv->key) == kv);
    int found = gguf_get_int(g, kv->key, -100, INT64_MAX, &whole, &err) == 1 && whole >= -100;
    found += gguf_get_float(g, kv->key, &number, &err) == 1;
    found += gguf_get_bool(g, kv->key, &flag, &err) == 1;
    if (gguf_get_text(g, kv->key, &pool, &text, &err) == 1) sum += strlen(text);
    if (gguf_get_string(g, kv->key, &string, &err) == 1)
        for (size_t i = 0; i < string.length; i++) sum += (uint8_t)string.bytes[i];
    if (gguf_get_strings(g, kv->key, &pool, &strings, &n, &err) == 1)
        for (size_t i = 0; i < n; i++)
            if (strings[i].length)
                sum += (uint8_t)strings[i].bytes[0] + (uint8_t)strings[i].bytes[strings[i].length - 1];
    if (gguf_get_i32s(g, kv->key, &pool, &numbers, &n, &err) == 1)
        for (size_t i = 0; i < n; i++) sum += (uint32_t)numbers[i];
    if (gguf_get_f32s(g, kv->key, &pool, &floats, &n, &err) == 1)
        for (size_t i = 0; i < n; i++) sum += floats[i] > 0;
    gguf_get_per_layer(g, kv->key, 0, 1000, 4, layers, &err);
    EXPECT(found <= 1); // a scalar has one type
    *(volatile uint64_t *)&sum = sum;
    EXPECT(err.code == 0 || err.code == STATUS_DATA);
    pool_free(&pool);
}

static void decode_ends(const struct gguf_tensor *t) {
    const struct quant_format *f = quant_by_ggml_type(t->ggml_type);
    float out[256];
    volatile uint8_t sum = (uint8_t)(t->data[0] + t->data[t->bytes - 1]);
    (void)sum;
    if (!f) return;
    f->decode(t->data, out, f->block);
    f->decode(t->data + t->bytes - f->block_bytes, out, f->block);
    if (f->encode) {
        uint8_t packed[256 * 4];
        f->encode(out, packed, f->block);
    }
}

static void write_again(const struct gguf *g) {
    static int fd = -1; // one file in memory for the whole run
    static uint8_t buffer[1 << 20];
    if (fd < 0) fd = memfd_create("gguf", 0);
    EXPECT(fd >= 0 && ftruncate(fd, 0) == 0 && lseek(fd, 0, SEEK_SET) == 0);
    struct gguf_writer w = {0};
    struct error err = {0};
    struct gguf again;
    struct file_writer out = {.fd = fd, .path = (char *)(uintptr_t) "memory"};
    if (gguf_find(g, "general.alignment")) return; // ours is always 32
    for (size_t i = 0; i < g->n_kv; i++) gguf_put_kv(&w, &g->kv[i]);
    for (size_t i = 0; i < g->n_tensors; i++) {
        const struct gguf_tensor *t = &g->tensors[i];
        gguf_put_tensor(&w, t->name, t->ggml_type, t->n_dims, t->ne, t->data);
    }
    EXPECT(gguf_write(&w, &out, &err) == 0 && out.bytes <= sizeof buffer);
    EXPECT(pread(fd, buffer, (size_t)out.bytes, 0) == (ssize_t)out.bytes);
    EXPECT(gguf_parse(buffer, (size_t)out.bytes, "again", &again, &err) == 0);
    EXPECT(again.n_kv == g->n_kv && again.n_tensors == g->n_tensors);
    for (size_t i = 0; i < g->n_kv; i++) {
        const struct gguf_kv *a = &g->kv[i], *b = &again.kv[i];
        EXPECT(!strcmp(a->key, b->key) && a->type == b->type && a->element == b->element && a->count == b->count &&
               a->bytes == b->bytes);
        EXPECT(memcmp(a->data, b->data, (size_t)a->bytes) == 0);
    }
    for (size_t i = 0; i < g->n_tensors; i++) {
        const struct gguf_tensor *a = &g->tensors[i], *b = &again.tensors[i];
        EXPECT(!strcmp(a->name, b->name) && a->ggml_type == b->ggml_type && a->n_dims == b->n_dims &&
               a->bytes == b->bytes);
        EXPECT(memcmp(a->ne, b->ne, sizeof a->ne) == 0 && memcmp(a->data, b->data, (size_t)a->bytes) == 0);
    }
    gguf_close(&again);
    gguf_writer_free(&w);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct gguf g;
    struct error err = {0};
    if (gguf_parse(data, size, "input", &g, &err) < 0) {
        EXPECT(err.code == STATUS_DATA);
        return 0;
    }
    for (size_t i = 0; i < g.n_kv; i++) {
        EXPECT(g.kv[i].bytes <= size && g.kv[i].data >= data && g.kv[i].data + g.kv[i].bytes <= data + size);
        try_getters(&g, &g.kv[i]);
    }
    for (size_t i = 0; i < g.n_tensors; i++) {
        const struct gguf_tensor *t = &g.tensors[i];
        EXPECT(t->bytes > 0 && t->bytes <= size && t->data >= data && t->data + t->bytes <= data + size);
        EXPECT(gguf_find_tensor(&g, t->name) == t);
        decode_ends(t);
    }
    write_again(&g);
    gguf_close(&g);
    return 0;
}

// A changed tensor mostly needs more bytes than the file has: half of the time they are appended.
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed) {
    size = LLVMFuzzerMutate(data, size, max_size);
    size_t more = (seed >> 2) % 1024;
    if (seed % 2 || size + more > max_size) return size;
    memset(data + size, (int)(seed >> 12), more);
    return size + more;
}
