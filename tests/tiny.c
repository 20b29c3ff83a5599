// See tiny.h.
#include "tests/tiny.h"

#include "model/gguf_write.h"
#include "tests/harness.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

const struct tiny_options tiny_default = {
    .layers = 2, .width = 64, .heads = 4, .kv_heads = 2, .ffn = 96, .type = QUANT_Q4_1, .embed = QUANT_Q8_0, .seed = 1};

static const char *const template_source =
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
    "'\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

enum { SPECIALS = 3, MERGES = 12 };
static const char *const specials[SPECIALS] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
static const char *const merges[MERGES] = {"e r",  "u s",     "us er", "a s",  "i s",        "as s",
                                           "is t", "ass ist", "a n",   "an t", "assist ant", "\xC4\xA0 t"};

// GPT-2's printable spelling of a byte, as UTF-8.
static size_t spell(int byte, char *out) {
    int code = byte, extra = 0;
    bool plain = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    for (int b = 0; b < byte; b++) extra += !((b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174);
    if (!plain) code = 256 + extra;
    if (code < 128) {
        out[0] = (char)code;
        return 1;
    }
    out[0] = (char)(0xC0 | code >> 6);
    out[1] = (char)(0x80 | (code & 63));
    return 2;
}

struct tiny {
    struct gguf_writer w;
    struct pool pool;
    unsigned seed, counter;
    bool failed;
};

static void put_weight(struct tiny *t, const char *name, enum quant type, int64_t rows, int64_t cols, double scale,
                       double offset) {
    const struct quant_format *f = quant_format(type);
    float *row = pool_array(&t->pool, (uint64_t)cols, sizeof *row);
    size_t bytes = quant_row_bytes(f, cols);
    uint8_t *data = pool_array(&t->pool, (uint64_t)rows, bytes);
    if (!row || !data || !f->encode) {
        t->failed = true;
        return;
    }
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t c = 0; c < cols; c++) row[c] = (float)(offset + scale * test_random(t->seed, t->counter++));
        f->encode(row, data + (size_t)r * bytes, cols);
    }
    int64_t ne[2] = {cols, rows};
    gguf_put_tensor(&t->w, name, f->ggml_type, rows == 1 ? 1 : 2, ne, data);
}

static void put_vocab(struct tiny *t) {
    size_t n = 256 + MERGES + SPECIALS;
    struct vocab_string *tokens = pool_array(&t->pool, n, sizeof *tokens), list[MERGES];
    int32_t *types = pool_array(&t->pool, n, sizeof *types);
    char *bytes = pool_alloc(&t->pool, 512);
    if (!tokens || !types || !bytes) {
        t->failed = true;
        return;
    }
    for (size_t i = 0; i < n; i++) types[i] = 1;
    for (int b = 0; b < 256; b++) tokens[b] = (struct vocab_string){bytes + 2 * b, spell(b, bytes + 2 * b)};
    for (int i = 0; i < MERGES; i++) {
        const char *space = strchr(merges[i], ' ');
        char *joined = pool_printf(&t->pool, "%.*s%s", (int)(space - merges[i]), merges[i], space + 1);
        if (!joined)
            t->failed = true;
        else
            tokens[256 + i] = (struct vocab_string){joined, strlen(joined)};
        list[i] = (struct vocab_string){merges[i], strlen(merges[i])};
    }
    for (int i = 0; i < SPECIALS; i++) {
        tokens[256 + MERGES + i] = (struct vocab_string){specials[i], strlen(specials[i])};
        types[256 + MERGES + i] = 3;
    }
    gguf_put_string(&t->w, "tokenizer.ggml.model", "gpt2");
    gguf_put_string(&t->w, "tokenizer.ggml.pre", "smollm");
    gguf_put_strings(&t->w, "tokenizer.ggml.tokens", tokens, n);
    gguf_put_i32s(&t->w, "tokenizer.ggml.token_type", types, n);
    gguf_put_strings(&t->w, "tokenizer.ggml.merges", list, MERGES);
    gguf_put_u32(&t->w, "tokenizer.ggml.bos_token_id", 256 + MERGES + 1);
    gguf_put_u32(&t->w, "tokenizer.ggml.eos_token_id", 256 + MERGES + 2);
    gguf_put_bool(&t->w, "tokenizer.ggml.add_bos_token", false);
    gguf_put_string(&t->w, "tokenizer.chat_template", template_source);
}

static void put_layers(struct tiny *t, const struct tiny_options *o) {
    char name[64];
    int64_t dim = o->width / o->heads, kv = dim * o->kv_heads;
    const struct {
        const char *name;
        int64_t rows, cols;
    } linears[] = {{"attn_q", o->width, o->width},      {"attn_k", kv, o->width},       {"attn_v", kv, o->width},
                   {"attn_output", o->width, o->width}, {"ffn_gate", o->ffn, o->width}, {"ffn_up", o->ffn, o->width},
                   {"ffn_down", o->width, o->ffn}};
    for (int l = 0; l < o->layers; l++) {
        snprintf(name, sizeof name, "blk.%d.attn_norm.weight", l);
        put_weight(t, name, QUANT_F32, 1, o->width, 0.2, 1);
        snprintf(name, sizeof name, "blk.%d.ffn_norm.weight", l);
        put_weight(t, name, QUANT_F32, 1, o->width, 0.2, 1);
        for (size_t i = 0; i < COUNT_OF(linears); i++) {
            snprintf(name, sizeof name, "blk.%d.%s.weight", l, linears[i].name);
            put_weight(t, name, o->type, linears[i].rows, linears[i].cols, 1.7 / sqrt((double)linears[i].cols), 0);
        }
    }
}

int tiny_write(const char *path, const struct tiny_options *o, struct error *err) {
    struct tiny t = {.seed = o->seed};
    gguf_put_string(&t.w, "general.architecture", "llama");
    gguf_put_string(&t.w, "general.name", "tiny llama");
    gguf_put_u32(&t.w, "llama.block_count", (uint32_t)o->layers);
    gguf_put_u32(&t.w, "llama.context_length", 2048);
    gguf_put_u32(&t.w, "llama.embedding_length", (uint32_t)o->width);
    gguf_put_u32(&t.w, "llama.feed_forward_length", (uint32_t)o->ffn);
    gguf_put_u32(&t.w, "llama.attention.head_count", (uint32_t)o->heads);
    gguf_put_u32(&t.w, "llama.attention.head_count_kv", (uint32_t)o->kv_heads);
    gguf_put_f32(&t.w, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    gguf_put_f32(&t.w, "llama.rope.freq_base", 10000);
    gguf_put_u32(&t.w, "llama.rope.dimension_count", (uint32_t)(o->width / o->heads));
    put_vocab(&t);
    put_weight(&t, "token_embd.weight", o->embed, 256 + MERGES + SPECIALS, o->width, 0.5, 0);
    put_layers(&t, o);
    put_weight(&t, "output_norm.weight", QUANT_F32, 1, o->width, 0.2, 1);
    struct file_writer file;
    int failed = t.failed ? error_memory(err, "the tiny model", 0) : file_create(path, &file, err);
    if (!failed) {
        failed = gguf_write(&t.w, &file, err);
        if (failed)
            file_abandon(&file);
        else
            failed = file_close(&file, err);
    }
    gguf_writer_free(&t.w);
    pool_free(&t.pool);
    return failed;
}

int tiny_rows(const char *path, int n, unsigned seed, struct error *err) {
    static const char *const names[] = {"ann", "bob", "cleo", "dan", "eve", "finn", "gus", "hana"};
    // Odd and even seeds share no row: one for training, one for held-out data.
    static const char *const all_things[2][5] = {{"apples", "pens", "cups", "maps", "hats"},
                                                 {"figs", "bags", "keys", "jars", "rugs"}};
    const char *const *things = all_things[seed % 2];
    struct text out = {0};
    for (int i = 0; i < n; i++) {
        unsigned k = (unsigned)(1e6 * (test_random(seed, (unsigned)i) + 1));
        const char *name = names[k % 8], *thing = things[k / 8 % 5];
        unsigned count = 1 + k / 40 % 9;
        text_printf(&out,
                    "{\"messages\": [{\"role\": \"user\", \"content\": \"%s takes %u %s\"}, {\"role\": \"assistant\", "
                    "\"content\": \"{\\\"n\\\": %u, \\\"who\\\": \\\"%s\\\"}\"}]}\n",
                    name, count, thing, count, name);
    }
    int failed =
        text_failed(&out) ? error_memory(err, "rows", out.length) : file_replace(path, text_str(&out), out.length, err);
    text_free(&out);
    return failed;
}
