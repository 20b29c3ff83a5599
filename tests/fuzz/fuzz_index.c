// model.safetensors.index.json beside two shards: an accepted index names exactly the tensors that are there.
#include "model/base_files.h"
#include "tests/fuzz/scratch.h"

#include <string.h>

static const char A[] = "model-00001-of-00002.safetensors", B[] = "model-00002-of-00002.safetensors";

static void write_shard(const char *file, const char *header, const void *data, size_t bytes) {
    struct text t = {0};
    uint64_t length = strlen(header);
    text_append(&t, &length, 8);
    text_add(&t, header);
    text_append(&t, data, bytes);
    scratch_write(file, t.data, t.length);
    text_free(&t);
}

static void write_shards(void) {
    static const char data[12] = {0};
    write_shard(A,
                "{\"x\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
                "\"y\":{\"dtype\":\"U8\",\"shape\":[2,4],\"data_offsets\":[4,12]}}",
                data, 12);
    write_shard(B, "{\"z\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", data, 4);
    scratch_write("config.json", "{}", 2);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static bool written;
    struct base b;
    struct base_tensor t;
    struct error err = {0};
    if (!written) write_shards();
    written = true;
    scratch_write("model.safetensors.index.json", data, size);
    if (base_open(scratch_folder, &b, &err)) {
        EXPECT((err.code == STATUS_DATA || err.code == STATUS_NOINPUT) && err.text[0]);
        return 0;
    }
    bool x = base_find(&b, "x", &t) && t.bytes == 4, y = base_find(&b, "y", &t) && t.bytes == 8;
    bool z = base_find(&b, "z", &t) && t.bytes == 4; // an index may leave out a whole file, not a tensor of one
    EXPECT(b.kind == BASE_SAFETENSORS && x == y && b.n_tensors == 2u * x + z && b.n_shards == x + z);
    EXPECT(!base_find(&b, "w", NULL));
    for (uint64_t i = 0; i < b.n_tensors; i++) EXPECT(base_unused(&b, i) == NULL);
    base_close(&b);
    return 0;
}
