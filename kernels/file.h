// Files. Every file operation of the program goes through file.c, so that tests can fail the k-th one.
// All functions return 0 or -1 with `err` filled (path, operation, reason), unless their comment says otherwise.
#pragma once

#include "kernels/error.h"
#include "kernels/text.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// A read-only mapping of a whole regular file. Refuses FIFOs, devices and directories without blocking. A page that
// vanishes under the map (file truncated by someone) ends the process with exit 74 naming the file.
struct mapped_file {
    const uint8_t *data; // NULL for an empty file
    size_t size;
    char *path; // owned
};
int file_map(const char *path, struct mapped_file *out, struct error *err);
void file_unmap(struct mapped_file *file); // zeroed struct is a no-op

// Reads a whole regular file of at most `limit` bytes; text is NUL-terminated and freed by the caller (text_free).
int file_read(const char *path, size_t limit, struct text *out, struct error *err);

// Writing: a new file, exclusively created (O_EXCL|O_NOFOLLOW); `close` syncs it. On any failure the file is removed.
struct file_writer {
    int fd;
    char *path; // owned
    uint64_t bytes;
};
int file_create(const char *path, struct file_writer *out, struct error *err);
int file_write(struct file_writer *w, const void *bytes, size_t length, struct error *err);
// Bytes at a place of their own; the caller covers the whole file. Does not move the end that file_write writes at.
int file_write_at(struct file_writer *w, uint64_t offset, const void *bytes, size_t length, struct error *err);
int file_close(struct file_writer *w, struct error *err); // fsync and close
void file_abandon(struct file_writer *w);                 // close and remove; no-op after file_close

// Whole or absent: temporary file in the same folder, fsync, rename over `path`, fsync of the folder.
int file_replace(const char *path, const void *bytes, size_t length, struct error *err);

// Appends one record (a log line) to a file that is opened and closed by the call; created when missing. Not synced.
int file_append(const char *path, const void *bytes, size_t length, struct error *err);
int file_truncate(const char *path, uint64_t size, struct error *err);

bool file_exists(const char *path);
bool file_is_folder(const char *path);
bool file_leads_nowhere(const char *path); // a link, and nothing at its end
int file_size(const char *path, uint64_t *size, struct error *err);
// Appends what tells this file from others and from itself after a change: real path, device, inode, size, time of the
// last change in nanoseconds. The path need not be UTF-8.
int file_identity(const char *path, struct text *out, struct error *err);
int file_make_folders(const char *path, struct error *err); // mkdir -p
int file_rename(const char *from, const char *to, struct error *err);
int file_sync_folder(const char *path, struct error *err);
int file_remove(const char *path, struct error *err);      // a file; missing is no error
int file_remove_tree(const char *path, struct error *err); // a folder and what is in it; missing is no error
int file_free_bytes(const char *path, uint64_t *bytes, struct error *err);
// The names in a folder, sorted bytewise, without "." and ".."; free with file_list_free.
int file_list(const char *path, char ***names, size_t *count, struct error *err);
void file_list_free(char **names, size_t count);

// An advisory lock file holding pid and host; exit 73 naming the owner when another live process holds it.
struct file_lock {
    int fd;
    char *path;
};
int file_lock(const char *path, struct file_lock *out, struct error *err);
void file_unlock(struct file_lock *lock);

// Joins folder and name with one '/', freed by the caller; NULL when out of memory.
char *path_join(const char *folder, const char *name);
// A name found inside a file may be opened only when this says so: no '/', '\\', NUL, leading dot; <= 255 bytes.
bool path_is_plain_name(const char *name, size_t length);

// Test hook: the k-th file operation from now fails with errno `code` (k = 0: off); returns operations since last call.
uint64_t file_fail_at(uint64_t k, int code, int forever);
