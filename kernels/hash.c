// See hash.h.
#include "kernels/hash.h"

#include "kernels/file.h"

#include <openssl/evp.h>

int sha256_init(struct sha256 *hash, struct error *err) {
    hash->failed = false;
    hash->context = EVP_MD_CTX_new();
    if (!hash->context) return error_memory(err, "a SHA-256 state", 0);
    if (EVP_DigestInit_ex(hash->context, EVP_sha256(), NULL) == 1) return 0;
    sha256_abandon(hash);
    return error_set(err, STATUS_INTERNAL,
                     "libcrypto has no SHA-256 here; install OpenSSL 3 with its default provider");
}

void sha256_update(struct sha256 *hash, const void *bytes, size_t length) {
    if (length > 0 && EVP_DigestUpdate(hash->context, bytes, length) != 1) hash->failed = true;
}

int sha256_final(struct sha256 *hash, uint8_t out[SHA256_BYTES], struct error *err) {
    bool good = !hash->failed && EVP_DigestFinal_ex(hash->context, out, NULL) == 1;
    sha256_abandon(hash);
    return good ? 0 : error_set(err, STATUS_INTERNAL, "libcrypto failed to compute a SHA-256");
}

void sha256_abandon(struct sha256 *hash) {
    EVP_MD_CTX_free(hash->context);
    hash->context = NULL;
}

int sha256_bytes(const void *bytes, size_t length, uint8_t out[SHA256_BYTES], struct error *err) {
    struct sha256 hash;
    if (sha256_init(&hash, err)) return -1;
    sha256_update(&hash, bytes, length);
    return sha256_final(&hash, out, err);
}

int sha256_file(const char *path, uint8_t out[SHA256_BYTES], uint64_t *size, struct error *err) {
    struct mapped_file file;
    if (file_map(path, &file, err)) return -1;
    if (size) *size = file.size;
    int status = sha256_bytes(file.data, file.size, out, err);
    file_unmap(&file);
    return status;
}

void sha256_hex(const uint8_t digest[SHA256_BYTES], char text[2 * SHA256_BYTES + 1]) {
    static const char digits[] = "0123456789abcdef";
    for (int i = 0; i < SHA256_BYTES; i++) {
        text[2 * i] = digits[digest[i] >> 4];
        text[2 * i + 1] = digits[digest[i] & 15];
    }
    text[2 * SHA256_BYTES] = '\0';
}
