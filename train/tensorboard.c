// See tensorboard.h. A file is a sequence of records {length u64, masked CRC-32C of it, bytes, masked CRC-32C of them}
// (tensorflow/core/lib/io/record_writer.h); the bytes are an Event message (tensorflow/core/util/event.proto):
//   1 wall_time double, 2 step int64, 3 file_version string, 5 summary { 1 value { 1 tag, 2 simple_value float } },
//   7 session_log { 1 status: 1 = START }
#include "train/tensorboard.h"

#include <stdio.h>
#include <string.h>

enum { VARINT = 0, FIXED64 = 1, BYTES = 2, FIXED32 = 5 };

static uint32_t crc32c(const void *bytes, size_t length) {
    const uint8_t *p = bytes;
    uint32_t crc = UINT32_MAX;
    for (size_t i = 0; i < length; i++) {
        crc ^= p[i];
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0x82F63B78u : 0);
    }
    return ~crc;
}

static uint32_t masked_crc(const void *bytes, size_t length) {
    uint32_t crc = crc32c(bytes, length);
    return (crc >> 15 | crc << 17) + 0xA282EAD8u;
}

static void put_varint(struct text *out, uint64_t value) {
    for (; value >= 128; value >>= 7) text_char(out, (char)(value | 128));
    text_char(out, (char)value);
}
static void put_little(struct text *out, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; i++) text_char(out, (char)(value >> 8 * i));
}
static void put_tag(struct text *out, int field, int wire) {
    put_varint(out, (uint64_t)(field << 3 | wire));
}
static void put_bytes(struct text *out, int field, const void *bytes, size_t length) {
    put_tag(out, field, BYTES);
    put_varint(out, length);
    text_append(out, bytes, length);
}
static void put_float(struct text *out, int field, float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    put_tag(out, field, FIXED32);
    put_little(out, bits, 4);
}

static void begin_event(struct text *out, int64_t step) {
    double now = clock_wall();
    uint64_t bits;
    memcpy(&bits, &now, sizeof bits);
    put_tag(out, 1, FIXED64);
    put_little(out, bits, 8);
    put_tag(out, 2, VARINT);
    put_varint(out, (uint64_t)step);
}

static int append(struct tensorboard *board, const struct text *event, struct error *err) {
    struct text record = {0};
    put_little(&record, event->length, 8);
    put_little(&record, masked_crc(record.data, 8), 4);
    text_append(&record, text_str(event), event->length);
    put_little(&record, masked_crc(text_str(event), event->length), 4);
    int failed = text_failed(event) || text_failed(&record) ? error_memory(err, "a TensorBoard event", event->length)
                                                            : file_append(board->path, record.data, record.length, err);
    text_free(&record);
    return failed;
}

int tensorboard_open(const char *run, int64_t step, struct tensorboard *out, struct error *err) {
    struct pool pool = {0};
    char name[64];
    snprintf(name, sizeof name, "events.out.tfevents.%010lld.%06lld", (long long)clock_wall(), (long long)step);
    const char *folder = pool_printf(&pool, "%s/tb", run);
    *out = (struct tensorboard){.path = folder ? path_join(folder, name) : NULL};
    struct text event = {0};
    int failed = out->path ? file_make_folders(folder, err) : error_memory(err, "a path", strlen(run));
    if (!failed) {
        begin_event(&event, 0);
        put_bytes(&event, 3, "brain.Event:2", 13);
        failed = append(out, &event, err);
    }
    if (!failed && step > 0) {
        text_clear(&event);
        begin_event(&event, step + 1);
        put_bytes(&event, 7, "\x08\x01", 2);
        failed = append(out, &event, err);
    }
    text_free(&event);
    pool_free(&pool);
    if (failed) tensorboard_close(out);
    return failed;
}

void tensorboard_close(struct tensorboard *board) {
    mem_free(board->path);
    *board = (struct tensorboard){0};
}

int tensorboard_add(struct tensorboard *board, int64_t step, const struct tensorboard_value *values, int n,
                    struct error *err) {
    if (!board->path) return 0;
    struct text summary = {0}, event = {0};
    for (int i = 0; i < n; i++) {
        struct text value = {0};
        put_bytes(&value, 1, values[i].tag, strlen(values[i].tag));
        put_float(&value, 2, (float)values[i].value);
        put_bytes(&summary, 1, text_str(&value), value.length);
        summary.failed |= value.failed;
        text_free(&value);
    }
    begin_event(&event, step);
    put_bytes(&event, 5, text_str(&summary), summary.length);
    event.failed |= summary.failed;
    int failed = append(board, &event, err);
    text_free(&summary);
    text_free(&event);
    return failed;
}
