// Writes the seeds of the fuzz targets: seeds FOLDER fills FOLDER/json, FOLDER/safetensors and FOLDER/gguf.
#include "model/gguf_write.h"
#include "model/safetensors.h"

#include <stdio.h>
#include <string.h>

static struct error err;

static void put(const char *folder, const char *kind, int number, const void *bytes, size_t length) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, kind);
    if (file_make_folders(path, &err) < 0) return;
    snprintf(path, sizeof path, "%s/%s/seed-%02d", folder, kind, number);
    file_replace(path, bytes, length, &err);
}

static void json_seeds(const char *folder) {
    static const char *const texts[] = {
        "null",
        "true",
        "[]",
        "{}",
        "[false,null]",
        "0",
        "-0",
        "12.5e-3",
        "1E400",
        "[1e308,-1e-320,123456789012345678901]",
        "\"\"",
        "\"\\u0041\\uD83D\\uDE00\\n\\/\\\\\\\"\"",
        "\"\\ud800\"",
        "\"\\udc00x\"",
        "\"\\u0000\"",
        "{\"k\\u0000\":{\"k\\u0000\":1}}",
        "\"\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80\"",
        "\"\xED\xA0\x80\"",
        "\xEF\xBB\xBF{\"a\":1}",
        "{\"a\":1,\"a\":2}",
        "{\"a\":{\"b\":[{\"c\":[[[]]]}]}}",
        "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]",
        "[0.333333333333333333333333333333333333333333333333333333333333333333333333333333]",
        "{\"a\":0,\"b\":0,\"c\":0,\"d\":0,\"e\":0,\"f\":0,\"g\":0,\"h\":0,\"i\":0,\"j\":0,\"k\":0,\"l\":0,\"m\":0,"
        "\"n\":0,\"\":0}",
        " {\n\t\"messages\" : [ {\"role\":\"user\",\"content\":\"Hi\"} "
        ",{\"role\":\"assistant\",\"content\":\"Hello.\"} ] }\r\n",
        "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"\\u0120b\":1},\"merges\":[\"a b\",[\"c\",\"d\"]]}}",
    };
    for (size_t i = 0; i < COUNT_OF(texts); i++) put(folder, "json", (int)i, texts[i], strlen(texts[i]));
}

static void safetensors_seeds(const char *folder) {
    static const char *const headers[] = {
        "{}",
        "{} ",
        "{\"__metadata__\":{\"format\":\"pt\"}}",
        "{\"__metadata__\":null}",
        "{\"w\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}}",
        "{\"w\":{\"dtype\":\"F4\",\"shape\":[8],\"data_offsets\":[0,4]}}",
        "{\"w\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1]}}",
        "{\"w\":{\"dtype\":\"BOOL\",\"shape\":[0,4],\"data_offsets\":[0,0]}}",
        "{\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[8,12]},\"a\":{\"dtype\":\"I64\",\"shape\":[1],\"data_"
        "offsets\":[0,8]}}",
        "{\"a\":{\"dtype\":\"F16\",\"shape\":[1,1,1,1,1,1,1,2],\"data_offsets\":[0,4]},\"e\":{\"dtype\":\"F8_E4M3\","
        "\"shape\":[0],\"data_offsets\":[4,4],\"x\":{}}}",
        "{\"w\":{\"dtype\":\"U8\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}",
        "{\"w\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[1,3]}}",
    };
    static const size_t data[] = {0, 0, 0, 0, 24, 4, 1, 0, 12, 4, 0, 3};
    for (size_t i = 0; i < COUNT_OF(headers); i++) {
        struct text t = {0};
        uint64_t length = strlen(headers[i]);
        text_append(&t, &length, 8);
        text_add(&t, headers[i]);
        for (size_t n = 0; n < data[i]; n++) text_char(&t, (char)(n * 37));
        put(folder, "safetensors", (int)i, t.data, t.length);
        text_free(&t);
    }
}

// One file with keys of all types, and one small file per tensor type.
static void gguf_seeds(const char *folder) {
    static const uint8_t data[1024] = {0, 0x38, 0, 0x34, 1, 2, 3};
    static const struct vocab_string tokens[] = {{"<s>", 3}, {"", 0}, {"a", 1}};
    char path[512];
    for (int type = -1; type < 43; type++) {
        struct gguf_writer w = {0};
        struct file_writer out;
        int block = 0, bytes;
        if (type >= 0 && !quant_ggml_type_size(type, &block, &bytes)) continue;
        gguf_put_string(&w, "general.architecture", "llama");
        if (type < 0) {
            gguf_put_u32(&w, "u32", 7);
            gguf_put_u64(&w, "u64", 8);
            gguf_put_i32(&w, "i32", -9);
            gguf_put_f32(&w, "f32", 1.5f);
            gguf_put_bool(&w, "bool", true);
            gguf_put_strings(&w, "strings", tokens, COUNT_OF(tokens));
            gguf_put_i32s(&w, "i32s", (const int32_t[]){1, -2}, 2);
            gguf_put_u32s(&w, "u32s", (const uint32_t[]){1, 2, 3, 4}, 4);
            gguf_put_f32s(&w, "f32s", (const float[]){0.5f}, 1);
        } else {
            gguf_put_tensor(&w, "t", type, 2, (const int64_t[]){block, 2}, data);
            gguf_put_tensor(&w, "u", 0, 1, (const int64_t[]){3}, data);
        }
        snprintf(path, sizeof path, "%s/gguf", folder);
        file_make_folders(path, &err);
        snprintf(path, sizeof path, "%s/gguf/seed-%02d", folder, type + 1);
        file_remove(path, &err);
        if (file_create(path, &out, &err) == 0 && gguf_write(&w, &out, &err) == 0) file_close(&out, &err);
        gguf_writer_free(&w);
    }
    static const uint8_t aligned[] =
        "GGUF\3\0\0\0\0\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0\x11\0\0\0\0\0\0\0general.alignment\4\0\0\0\x40\0\0";
    put(folder, "gguf", 60, aligned, sizeof aligned);
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: seeds FOLDER\n");
        return 64;
    }
    json_seeds(argv[1]);
    safetensors_seeds(argv[1]);
    gguf_seeds(argv[1]);
    if (err.code) fprintf(stderr, "seeds: %s\n", err.text);
    return err.code;
}
