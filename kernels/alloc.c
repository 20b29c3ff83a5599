// See alloc.h. The counter of the test hook is the one piece of process state here; it is atomic and off by default.
#include "kernels/alloc.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { BLOCK_ALIGN = 64, POOL_BLOCK = 64 * 1024 };

static struct {
    atomic_uint_least64_t calls;
    atomic_uint_least64_t fail_at; // 0 = off
    atomic_int forever;
} hook;

static bool refused(void) {
    uint64_t call = atomic_fetch_add_explicit(&hook.calls, 1, memory_order_relaxed) + 1;
    uint64_t k = atomic_load_explicit(&hook.fail_at, memory_order_relaxed);
    if (k == 0) return false;
    return call == k || (call > k && atomic_load_explicit(&hook.forever, memory_order_relaxed));
}

uint64_t mem_fail_at(uint64_t k, int forever) {
    atomic_store(&hook.forever, forever);
    atomic_store(&hook.fail_at, k);
    return atomic_exchange(&hook.calls, 0);
}

// The size stands in front of the block, so that mem_resize can copy an aligned block.
struct header {
    size_t bytes;
    char pad[BLOCK_ALIGN - sizeof(size_t)];
};

void *mem_alloc(size_t bytes) {
    if (refused() || bytes > SIZE_MAX / 2) return NULL;
    struct header *h; // not aligned_alloc: that wants a rounded size, and a sanitizer would miss reads past the block
    if (posix_memalign((void **)&h, BLOCK_ALIGN, sizeof *h + bytes)) return NULL;
    h->bytes = bytes;
    return h + 1;
}

void *mem_zalloc(size_t count, size_t size) {
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes)) return NULL;
    void *p = mem_alloc(bytes);
    if (p) memset(p, 0, bytes);
    return p;
}

void *mem_resize(void *old, size_t bytes) {
    void *p = mem_alloc(bytes);
    if (!p || !old) return p;
    size_t had = ((struct header *)old - 1)->bytes;
    memcpy(p, old, had < bytes ? had : bytes);
    mem_free(old);
    return p;
}

void mem_free(void *block) {
    if (block) free((struct header *)block - 1);
}

char *mem_strndup(const char *text, size_t length) {
    if (length == SIZE_MAX) return NULL;
    char *p = mem_alloc(length + 1);
    if (!p) return NULL;
    memcpy(p, text, length);
    p[length] = 0;
    return p;
}

char *mem_strdup(const char *text) {
    return mem_strndup(text, strlen(text));
}

void *mem_map(size_t bytes) {
    if (refused() || bytes == 0) return NULL;
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

void mem_unmap(void *block, size_t bytes) {
    if (block) munmap(block, bytes);
}

struct pool_block {
    struct pool_block *next;
    size_t size; // usable bytes after the header
};
enum { POOL_HEADER = (sizeof(struct pool_block) + 15) / 16 * 16 };

void *pool_alloc(struct pool *pool, size_t bytes) {
    if (bytes > SIZE_MAX / 2) return NULL;
    bytes = (bytes + 15) / 16 * 16;
    if (!pool->head || pool->head->size - pool->used < bytes) {
        size_t size = bytes > POOL_BLOCK / 4 ? bytes : POOL_BLOCK;
        struct pool_block *block = mem_zalloc(1, POOL_HEADER + size);
        if (!block) return NULL;
        block->size = size;
        if (size == bytes && pool->head) { // a big one of its own: keep filling the newest small block
            block->next = pool->head->next;
            pool->head->next = block;
            return (char *)block + POOL_HEADER;
        }
        block->next = pool->head;
        pool->head = block;
        pool->used = 0;
    }
    void *p = (char *)pool->head + POOL_HEADER + pool->used;
    pool->used += bytes;
    return p;
}

void *pool_array(struct pool *pool, uint64_t count, size_t size) {
    uint64_t bytes;
    if (__builtin_mul_overflow(count, (uint64_t)size, &bytes) || bytes > SIZE_MAX / 2) return NULL;
    return pool_alloc(pool, (size_t)bytes);
}

char *pool_strndup(struct pool *pool, const char *text, size_t length) {
    if (length == SIZE_MAX) return NULL;
    char *p = pool_alloc(pool, length + 1);
    if (p) memcpy(p, text, length);
    return p;
}

char *pool_strdup(struct pool *pool, const char *text) {
    return pool_strndup(pool, text, strlen(text));
}

char *pool_printf(struct pool *pool, const char *format, ...) {
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    char *p = n < 0 ? NULL : pool_alloc(pool, (size_t)n + 1);
    if (p) vsnprintf(p, (size_t)n + 1, format, again);
    va_end(again);
    return p;
}

void pool_free(struct pool *pool) {
    for (struct pool_block *b = pool->head, *next; b; b = next) {
        next = b->next;
        mem_free(b);
    }
    *pool = (struct pool){0};
}
