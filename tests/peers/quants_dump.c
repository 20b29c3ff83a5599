// Packs and unpacks numbers for tests/peers/quants.py:
//     quants_dump list                    one line a format: name, ggml type id, elements and bytes of a block, encoder
//     or not quants_dump decode|encode FORMAT    standard input to standard output, whole blocks: bytes to floats,
//     floats to bytes
#include "kernels/alloc.h"
#include "kernels/quant.h"

#include <stdio.h>
#include <string.h>

static int fail(const char *what) {
    fprintf(stderr, "quants_dump: %s\n", what);
    return 1;
}

static int list(void) {
    for (int i = 0; i < QUANT_COUNT; i++) {
        const struct quant_format *f = quant_format((enum quant)i);
        if (f->decode) printf("%s %d %d %d %d\n", f->name, f->ggml_type, f->block, f->block_bytes, f->encode != NULL);
    }
    return 0;
}

int main(int argc, char **argv) {
    static uint8_t in[(64 << 20) + 1];
    if (argc == 2 && strcmp(argv[1], "list") == 0) return list();
    bool encode = argc == 3 && strcmp(argv[1], "encode") == 0;
    const struct quant_format *f = argc == 3 ? quant_by_name(argv[2]) : NULL;
    if (!f || (!encode && strcmp(argv[1], "decode") != 0) || (encode && !f->encode))
        return fail("usage: quants_dump list | decode FORMAT | encode FORMAT");
    uint8_t *odd = in + !encode; // packed rows may lie at any address
    size_t block = encode ? (size_t)f->block * sizeof(float) : (size_t)f->block_bytes,
           n = fread(odd, 1, 64 << 20, stdin);
    if (n % block != 0 || !feof(stdin)) return fail("no whole blocks, or too many");
    int64_t count = (int64_t)(n / block) * f->block;
    size_t bytes = encode ? quant_row_bytes(f, count) : (size_t)count * sizeof(float);
    uint8_t *out = mem_alloc(bytes + 1);
    if (!out) return fail("out of memory");
    if (encode)
        f->encode((const float *)(const void *)odd, out, count);
    else
        f->decode(odd, (float *)(void *)out, count);
    bool written = fwrite(out, 1, bytes, stdout) == bytes && fflush(stdout) == 0;
    mem_free(out);
    return written ? 0 : fail("cannot write");
}
