// Host memory. Every allocation of the program goes through alloc.c, so that tests can fail the k-th one.
#pragma once

#include <stddef.h>
#include <stdint.h>

void *mem_alloc(size_t bytes);                      // uninitialised, 64-byte aligned; NULL when out of memory
void *mem_zalloc(size_t count, size_t size);        // zeroed, product checked
void *mem_resize(void *old, size_t bytes);          // as realloc; on NULL the old block is still valid
void mem_free(void *block);                         // NULL is a no-op
char *mem_strdup(const char *text);                 // NULL when out of memory
char *mem_strndup(const char *text, size_t length); // copies `length` bytes and a NUL

// Anonymous pages for a large arena, zeroed, page aligned; unmap with mem_unmap.
void *mem_map(size_t bytes);
void mem_unmap(void *block, size_t bytes);

// Test hook: the k-th allocation from now fails (k = 1 is the next one), and every later one too when `forever`.
// k = 0 turns the hook off. Returns how many allocations were made since the last call.
uint64_t mem_fail_at(uint64_t k, int forever);

// A pool hands out blocks that are freed all at once: for things that are built and dropped together.
// Zero-initialise it ({0}); pool_free leaves it reusable.
struct pool {
    struct pool_block *head;
    size_t used; // bytes used in the newest block
};
void *pool_alloc(struct pool *pool, size_t bytes);                // zeroed, 16-byte aligned; NULL when out of memory
void *pool_array(struct pool *pool, uint64_t count, size_t size); // product checked, zeroed
char *pool_strdup(struct pool *pool, const char *text);
char *pool_strndup(struct pool *pool, const char *text, size_t length);
char *pool_printf(struct pool *pool, const char *format, ...) __attribute__((format(printf, 2, 3)));
void pool_free(struct pool *pool);
