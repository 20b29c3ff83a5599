// SHA-256 (libcrypto), for manifests and checkpoints.
#pragma once

#include "kernels/error.h"

#include <stddef.h>
#include <stdint.h>

enum { SHA256_BYTES = 32 };

struct sha256 {
    void *context; // libcrypto's; owned
    bool failed;   // sticky: update first, sha256_final says it
};
int sha256_init(struct sha256 *hash, struct error *err);
void sha256_update(struct sha256 *hash, const void *bytes, size_t length);
int sha256_final(struct sha256 *hash, uint8_t out[SHA256_BYTES], struct error *err); // frees the state in any case
void sha256_abandon(struct sha256 *hash); // frees the state; no-op after final

int sha256_bytes(const void *bytes, size_t length, uint8_t out[SHA256_BYTES], struct error *err);
// Of a whole regular file; `size` (may be NULL) gets its length.
int sha256_file(const char *path, uint8_t out[SHA256_BYTES], uint64_t *size, struct error *err);
void sha256_hex(const uint8_t digest[SHA256_BYTES], char text[2 * SHA256_BYTES + 1]); // lower case
