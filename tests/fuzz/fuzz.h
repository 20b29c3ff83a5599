// Fuzz targets. Each is one file with LLVMFuzzerTestOneInput; tests/fuzz/NAME are its seeds, seeds.c writes those of
// formats that are no text, and `make test` runs all of them under sanitizers (replay.c, which needs no fuzzer). To
// look for more, from the repository root:
//
//   clang -g -O1 -std=c11 -D_GNU_SOURCE -I. -ffp-contract=off -o /tmp/fuzz_gguf
//     -fsanitize=fuzzer,address,undefined,float-cast-overflow -fno-sanitize-recover=all
//     tests/fuzz/fuzz_gguf.c model/*gguf*.c model/safetensors*.c data/json*.c
//     kernels/{error,alloc,text,clock,file,tensor,quant}.c -lcjson -lm -lpthread
//   make build/replay_seeds && build/replay_seeds /tmp/seeds
//   /tmp/fuzz_gguf -max_total_time=60 -max_len=4096 /tmp/corpus /tmp/seeds/gguf
#pragma once

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);
// libFuzzer's own mutator; absent in a replay.
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size) __attribute__((weak));

// An expectation about accepted input: ends the process where a fuzzer sees it.
#define EXPECT(condition)                                                                                              \
    do {                                                                                                               \
        if (!(condition)) __builtin_trap();                                                                            \
    } while (0)
