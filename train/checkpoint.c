// See checkpoint.h. Order of a save: files (synced), manifest (synced), folder sync, verify, rename, parent sync; only
// then is anything older renamed away and removed. A kill between any two of these leaves whole checkpoints only.
#include "train/checkpoint.h"

#include "data/json.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char FORMAT[] = "graft checkpoint";
static const char MANIFEST[] = "manifest.json";
enum { VERSION = 1, MANIFEST_LIMIT = 1 << 20, MAX_FILES = 1000 };
// The manifest ends with its own hash: SEAL, 64 hex digits, SEAL_END. The hash covers every byte before SEAL.
static const char SEAL[] = ",\n  \"manifest_sha256\": \"", SEAL_END[] = "\"\n}\n";
enum { HEX = 2 * SHA256_BYTES, SEAL_BYTES = sizeof SEAL - 1 + HEX + sizeof SEAL_END - 1 };

static void note(struct text *notes, const char *what, const char *reason) {
    if (notes) text_printf(notes, "%s%s\n", what, reason);
}

// --- Names

enum name_kind { NAME_FOREIGN, NAME_STEP, NAME_TEMPORARY, NAME_OLD, NAME_TRASH };
static const char *const PREFIX[] = {
    [NAME_STEP] = "step-", [NAME_TEMPORARY] = ".tmp-", [NAME_OLD] = ".old-", [NAME_TRASH] = ".trash-"};

static char *name_path(const char *run, enum name_kind kind, int64_t step, long pid) {
    struct text path = {0};
    text_printf(&path, "%s/checkpoints/%s%06lld", run, PREFIX[kind], (long long)step);
    if (kind != NAME_STEP) text_printf(&path, "-%ld", pid);
    if (!text_failed(&path)) return path.data;
    text_free(&path);
    return NULL;
}

// Only names exactly as name_path spells them are ours: "step-7" and "step-9x" are somebody else's.
static enum name_kind name_parse(const char *name, int64_t *step, long *pid) {
    for (enum name_kind kind = NAME_STEP; kind <= NAME_TRASH; kind++) {
        size_t length = strlen(PREFIX[kind]);
        if (strncmp(name, PREFIX[kind], length) != 0) continue;
        long long s = 0;
        long p = 0;
        char again[64];
        if (sscanf(name + length, "%18lld-%9ld", &s, &p) < 1 || s < 0 || p < 0) return NAME_FOREIGN;
        int n = snprintf(again, sizeof again, "%s%06lld", PREFIX[kind], s);
        if (kind != NAME_STEP) snprintf(again + n, sizeof again - (size_t)n, "-%ld", p);
        if (strcmp(again, name) != 0) return NAME_FOREIGN;
        *step = s;
        *pid = p;
        return kind;
    }
    return NAME_FOREIGN;
}

static bool process_is_dead(long pid) {
    return pid <= 0 || (kill((pid_t)pid, 0) < 0 && errno == ESRCH);
}

// The steps that have a folder, newest first.
struct steps {
    int64_t *data; // freed by the caller
    size_t count;
};

static int compare_steps(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

static int list_steps(const char *run, struct steps *out, struct error *err) {
    *out = (struct steps){0};
    char *folder = path_join(run, "checkpoints"), **names;
    if (!folder) return error_memory(err, "a file name", strlen(run) + 16);
    size_t count;
    int status = 0;
    if (!file_exists(folder)) goto done;
    if ((status = file_list(folder, &names, &count, err))) goto done;
    out->data = mem_alloc((count + 1) * sizeof *out->data);
    if (!out->data) status = error_memory(err, "a list of checkpoints", (count + 1) * sizeof *out->data);
    for (size_t i = 0; i < count && status == 0; i++) {
        int64_t step;
        long pid;
        if (name_parse(names[i], &step, &pid) != NAME_STEP) continue;
        char *path = path_join(folder, names[i]);
        if (!path)
            status = error_memory(err, "a file name", strlen(folder));
        else if (file_is_folder(path))
            out->data[out->count++] = step;
        mem_free(path);
    }
    file_list_free(names, count);
    if (status == 0 && out->count) qsort(out->data, out->count, sizeof *out->data, compare_steps);
    if (status) mem_free(out->data);
done:
    mem_free(folder);
    return status;
}

// --- Leftovers

// Failure is a note: what is left is tried again the next time.
static void remove_leftover(const char *path, struct text *notes) {
    struct error reason = {0};
    if (file_remove_tree(path, &reason) == 0) return;
    note(notes, "could not remove a leftover, will try again: ", reason.text);
}

// What a dead process left. A replaced checkpoint whose successor did not get its name is put back. Our own .old and
// .trash can only come from an earlier process with our pid or from a removal that failed, as saves do not overlap.
static int clean_leftovers(const char *run, bool our_temporary, struct text *notes, struct error *err) {
    char *folder = path_join(run, "checkpoints"), **names;
    if (!folder) return error_memory(err, "a file name", strlen(run) + 16);
    size_t count;
    int status = 0;
    if (!file_exists(folder)) goto done;
    if ((status = file_list(folder, &names, &count, err))) goto done;
    for (size_t i = 0; i < count && status == 0; i++) {
        int64_t step;
        long pid;
        enum name_kind kind = name_parse(names[i], &step, &pid);
        if (kind == NAME_FOREIGN || kind == NAME_STEP) continue;
        bool ours = pid == (long)getpid() && (kind != NAME_TEMPORARY || our_temporary);
        if (!ours && !process_is_dead(pid)) continue;
        char *path = path_join(folder, names[i]), *final = name_path(run, NAME_STEP, step, 0);
        if (!path || !final)
            status = error_memory(err, "a file name", strlen(folder));
        else if (kind != NAME_OLD || file_exists(final))
            remove_leftover(path, notes);
        else if ((status = file_rename(path, final, err)) == 0)
            status = file_sync_folder(folder, err);
        mem_free(path);
        mem_free(final);
    }
    file_list_free(names, count);
done:
    mem_free(folder);
    return status;
}

// --- Manifest

static int add_file_entry(struct json_writer *w, const char *folder, const char *name, struct error *err) {
    if (!path_is_plain_name(name, strlen(name)))
        return error_set(err, STATUS_INTERNAL, "%s: '%s' is no name for a file of a checkpoint", folder, name);
    char *path = path_join(folder, name), hex[HEX + 1];
    if (!path) return error_memory(err, "a file name", strlen(folder));
    uint8_t digest[SHA256_BYTES];
    uint64_t size;
    int status = sha256_file(path, digest, &size, err);
    mem_free(path);
    if (status) return -1;
    sha256_hex(digest, hex);
    json_put_key(w, name);
    json_begin_object(w);
    json_put_key(w, "bytes");
    json_put_int(w, (int64_t)size);
    json_put_key(w, "sha256");
    json_put_string(w, hex);
    json_end_object(w);
    return 0;
}

// Everything up to, but not including, the seal.
static int build_manifest(const char *folder, const char *run_id, int64_t step, struct text *out, struct error *err) {
    char **names;
    size_t count;
    if (file_list(folder, &names, &count, err)) return -1;
    struct json_writer w = {.out = out, .style = JSON_PRETTY};
    json_begin_object(&w);
    json_put_key(&w, "format");
    json_put_string(&w, FORMAT);
    json_put_key(&w, "version");
    json_put_int(&w, VERSION);
    json_put_key(&w, "run_id");
    json_put_string(&w, run_id);
    json_put_key(&w, "step");
    json_put_int(&w, step);
    json_put_key(&w, "files");
    json_begin_object(&w);
    int status = 0;
    if (count == 0 || count > MAX_FILES)
        status = error_set(err, STATUS_INTERNAL, "%s: a checkpoint of %zu files", folder, count);
    for (size_t i = 0; i < count && status == 0; i++) status = add_file_entry(&w, folder, names[i], err);
    file_list_free(names, count);
    json_end_object(&w);
    if (status == 0 && text_failed(out)) status = error_memory(err, MANIFEST, out->length);
    return status;
}

static int write_manifest(const char *folder, const char *run_id, int64_t step, struct error *err) {
    struct text text = {0};
    char *path = path_join(folder, MANIFEST), hex[HEX + 1];
    uint8_t digest[SHA256_BYTES];
    struct file_writer w;
    int status = path ? build_manifest(folder, run_id, step, &text, err) : error_memory(err, MANIFEST, 0);
    if (status == 0 && (status = sha256_bytes(text.data, text.length, digest, err)) == 0) {
        sha256_hex(digest, hex);
        text_printf(&text, "%s%s%s", SEAL, hex, SEAL_END);
        if (text_failed(&text))
            status = error_memory(err, MANIFEST, text.length);
        else if (text.length > MANIFEST_LIMIT)
            status = error_set(err, STATUS_INTERNAL, "%s: too large", path);
    }
    if (status == 0 && (status = file_create(path, &w, err)) == 0) {
        status = file_write(&w, text.data, text.length, err);
        if (status == 0) status = file_close(&w, err);
    }
    mem_free(path);
    text_free(&text);
    return status;
}

struct manifest {
    struct json_document document;
    const char *run_id; // borrowed from the document
    int64_t step;
    const struct json *files;
};

static int check_seal(const char *path, const struct text *text, struct error *err) {
    const char *end = text->data + text->length, *seal = end - SEAL_BYTES, *hex = seal + sizeof SEAL - 1;
    uint8_t digest[SHA256_BYTES];
    char actual[HEX + 1];
    bool good = text->length > SEAL_BYTES && !memcmp(seal, SEAL, sizeof SEAL - 1) &&
                !memcmp(hex + HEX, SEAL_END, sizeof SEAL_END - 1);
    if (good) {
        if (sha256_bytes(text->data, text->length - SEAL_BYTES, digest, err)) return -1;
        sha256_hex(digest, actual);
        good = !memcmp(hex, actual, HEX);
    }
    if (good) return 0;
    return error_set(err, STATUS_INTEGRITY, "%s: does not match its own hash: it was cut or changed", path);
}

static int read_manifest(const char *folder, struct manifest *out, struct error *err) {
    *out = (struct manifest){0};
    char *path = path_join(folder, MANIFEST);
    if (!path) return error_memory(err, "a file name", strlen(folder));
    struct text text = {0};
    struct error reason = {0};
    int status = file_read(path, MANIFEST_LIMIT, &text, &reason);
    if (status) { // missing, too large, no file: not a whole checkpoint
        bool broken = reason.code == STATUS_NOINPUT || reason.code == STATUS_DATA;
        error_set(err, broken ? STATUS_INTEGRITY : reason.code, "%s", reason.text);
    }
    struct json_options options = {.name = path, .max_depth = 8};
    int64_t version = 0;
    const char *format = NULL;
    if (status == 0) status = check_seal(path, &text, err);
    if (status == 0) status = json_parse(text.data, text.length, &options, &out->document, err);
    text_free(&text);
    if (status) goto done;
    const struct json *root = out->document.root;
    if (json_get_string(root, "format", JSON_REQUIRED, &format, NULL, err) ||
        json_get_int(root, "version", JSON_REQUIRED, &version, err)) {
        status = error_prefix(err, "%s", path);
    } else if (strcmp(format, FORMAT) != 0) {
        status = error_set(err, STATUS_INTEGRITY, "%s: is a '%.40s', expected a '%s'", path, format, FORMAT);
    } else if (version != VERSION) {
        status = error_set(err, STATUS_INTEGRITY, "%s: version %lld, this program knows %d; use the newer program",
                           path, (long long)version, VERSION);
    } else if (json_get_string(root, "run_id", JSON_REQUIRED, &out->run_id, NULL, err) ||
               json_get_int(root, "step", JSON_REQUIRED, &out->step, err) ||
               json_get_container(root, "files", JSON_OBJECT, JSON_REQUIRED, &out->files, err)) {
        status = error_prefix(err, "%s", path);
    }
    if (status) json_free(&out->document);
done:
    mem_free(path);
    return status;
}

// --- Verifying

static int verify_file(const char *folder, const struct json *entry, struct error *err) {
    size_t length;
    const char *name = json_key(entry, &length), *want;
    int64_t bytes = 0;
    if (strlen(name) != length || !path_is_plain_name(name, length))
        return error_set(err, STATUS_INTEGRITY, "%s/%s: names a file outside of the checkpoint", folder, MANIFEST);
    if (json_get_int(entry, "bytes", JSON_REQUIRED, &bytes, err) ||
        json_get_string(entry, "sha256", JSON_REQUIRED, &want, NULL, err))
        return error_prefix(err, "%s/%s: '%s'", folder, MANIFEST, name);
    char *path = path_join(folder, name), hex[HEX + 1];
    if (!path) return error_memory(err, "a file name", strlen(folder));
    struct error reason = {0};
    uint8_t digest[SHA256_BYTES];
    uint64_t size = 0;
    int status = file_size(path, &size, &reason);
    if (status == 0 && (int64_t)size != bytes)
        status =
            error_set(&reason, STATUS_INTEGRITY, "%s: %llu bytes, the manifest says %lld: the file was cut or changed",
                      path, (unsigned long long)size, (long long)bytes);
    if (status == 0 && (status = sha256_file(path, digest, NULL, &reason)) == 0) {
        sha256_hex(digest, hex);
        if (strcmp(hex, want) != 0)
            status = error_set(&reason, STATUS_INTEGRITY, "%s: its SHA-256 is not the manifest's: the file was changed",
                               path);
    }
    mem_free(path);
    if (status == 0) return 0;
    return error_set(err, reason.code == STATUS_NOINPUT ? STATUS_INTEGRITY : reason.code, "%s", reason.text);
}

// Also checks step and run id when they are given (-1, NULL = any). Another run's is no damage: code 65.
static int verify(const char *folder, int64_t step, const char *run_id, int64_t *found, struct error *err) {
    struct manifest m;
    if (read_manifest(folder, &m, err)) return -1;
    int status = 0;
    if (run_id && strcmp(m.run_id, run_id) != 0)
        status = error_set(err, STATUS_DATA, "%s: belongs to run '%.80s', not to '%.80s'", folder, m.run_id, run_id);
    else if (step >= 0 && m.step != step)
        status = error_set(err, STATUS_INTEGRITY, "%s: its manifest says step %lld", folder, (long long)m.step);
    else if (json_count(m.files) == 0)
        status = error_set(err, STATUS_INTEGRITY, "%s/%s: lists no files", folder, MANIFEST);
    for (const struct json *f = json_child(m.files); f && status == 0; f = json_next(f))
        status = verify_file(folder, f, err);
    if (status == 0 && found) *found = m.step;
    json_free(&m.document);
    return status;
}

int checkpoint_verify(const char *folder, int64_t *step, struct error *err) {
    return verify(folder, -1, NULL, step, err);
}

// --- Writing

int checkpoint_begin(const char *run, int64_t step, struct checkpoint_writer *out, struct error *err) {
    *out = (struct checkpoint_writer){.step = step};
    if (step < 0 || step >= (int64_t)1 << 40)
        return error_set(err, STATUS_INTERNAL, "a checkpoint of step %lld", (long long)step);
    out->run = mem_strdup(run);
    out->folder = name_path(run, NAME_TEMPORARY, step, (long)getpid());
    char *parent = path_join(run, "checkpoints");
    int status = 0;
    if (!out->run || !out->folder || !parent) status = error_memory(err, "a file name", strlen(run));
    if (status == 0) status = file_make_folders(parent, err);
    if (status == 0) status = clean_leftovers(run, true, NULL, err);
    if (status == 0 && file_exists(out->folder))
        status = error_set(err, STATUS_CANTCREATE, "%s: cannot be removed; remove it by hand", out->folder);
    if (status == 0) status = file_make_folders(out->folder, err);
    mem_free(parent);
    if (status == 0) return 0;
    mem_free(out->run);
    mem_free(out->folder);
    *out = (struct checkpoint_writer){0};
    return -1;
}

void checkpoint_abandon(struct checkpoint_writer *w) {
    if (w->folder) file_remove_tree(w->folder, NULL); // what stays is removed by the next begin
    mem_free(w->run);
    mem_free(w->folder);
    *w = (struct checkpoint_writer){0};
}

// Gives the complete temporary folder its name. What stood there before keeps it until then, and gets it back when the
// last steps fail.
static int publish(struct checkpoint_writer *w, const char *parent, const char *final, const char *old,
                   struct error *err) {
    bool replaces = file_exists(final);
    if (replaces && !file_is_folder(final))
        return error_set(err, STATUS_CANTCREATE, "%s: a file stands in the way of the checkpoint; move it away", final);
    if (replaces && file_rename(final, old, err)) return -1;
    int status = file_rename(w->folder, final, err);
    if (status == 0) {
        status = file_sync_folder(parent, err);
        if (status && file_rename(final, w->folder, NULL)) return -1; // it is whole, only its name may not be durable
    }
    if (status && replaces) file_rename(old, final, NULL); // else checkpoint_newest puts it back
    if (status == 0 && replaces) remove_leftover(old, NULL);
    return status;
}

int checkpoint_commit(struct checkpoint_writer *w, const char *run_id, struct error *err) {
    char *parent = path_join(w->run, "checkpoints");
    char *final = name_path(w->run, NAME_STEP, w->step, 0), *old = name_path(w->run, NAME_OLD, w->step, (long)getpid());
    int status = 0;
    if (!parent || !final || !old) status = error_memory(err, "a file name", strlen(w->run));
    if (status == 0) status = write_manifest(w->folder, run_id, w->step, err);
    if (status == 0) status = file_sync_folder(w->folder, err);
    if (status == 0) status = verify(w->folder, w->step, run_id, NULL, err);
    if (status == 0) status = publish(w, parent, final, old, err);
    mem_free(parent);
    mem_free(final);
    mem_free(old);
    if (status) {
        checkpoint_abandon(w);
        return -1;
    }
    mem_free(w->run);
    mem_free(w->folder);
    *w = (struct checkpoint_writer){0};
    return 0;
}

// --- Finding and rotating

// An error that says nothing about the checkpoint itself.
static bool says_nothing_of_it(const struct error *reason) {
    return reason->code == STATUS_MEMORY || reason->code == STATUS_INTERNAL;
}

int checkpoint_newest(const char *run, const char *run_id, char **folder, int64_t *step, struct text *notes,
                      struct error *err) {
    *folder = NULL;
    struct steps steps;
    if (clean_leftovers(run, false, notes, err) || list_steps(run, &steps, err)) return -1;
    int status = 0;
    for (size_t i = 0; i < steps.count && status == 0; i++) {
        char *path = name_path(run, NAME_STEP, steps.data[i], 0);
        struct error reason = {0};
        if (!path) {
            status = error_memory(err, "a file name", strlen(run));
        } else if (verify(path, steps.data[i], run_id, NULL, &reason) == 0) {
            *folder = path;
            if (step) *step = steps.data[i];
            break;
        } else if (says_nothing_of_it(&reason)) {
            status = error_set(err, reason.code, "%s", reason.text);
        } else {
            note(notes, "skipped a checkpoint: ", reason.text);
        }
        mem_free(path);
    }
    mem_free(steps.data);
    return status;
}

// Only folders that have a manifest of this run are ours to remove; what is in the other files does not matter then.
static bool may_remove(const char *folder, const char *run_id, struct text *notes) {
    struct manifest m;
    struct error reason = {0};
    if (read_manifest(folder, &m, &reason)) {
        note(notes, "left a folder alone: ", reason.text);
        return false;
    }
    bool ours = strcmp(m.run_id, run_id) == 0;
    json_free(&m.document);
    return ours;
}

static int remove_step(const char *run, int64_t step, struct text *notes, struct error *err) {
    char *path = name_path(run, NAME_STEP, step, 0), *trash = name_path(run, NAME_TRASH, step, (long)getpid());
    struct error reason = {0};
    int status = 0;
    if (!path || !trash) {
        status = error_memory(err, "a file name", strlen(run));
    } else {
        if (file_exists(trash)) remove_leftover(trash, notes);
        if (file_rename(path, trash, &reason))
            note(notes, "could not remove a checkpoint, will try again: ", reason.text);
        else
            remove_leftover(trash, notes);
    }
    mem_free(path);
    mem_free(trash);
    return status;
}

int checkpoint_rotate(const char *run, const char *run_id, int keep, int64_t pinned, struct text *notes,
                      struct error *err) {
    if (keep < 1) return error_set(err, STATUS_INTERNAL, "rotation that keeps %d checkpoints", keep);
    struct steps steps;
    if (clean_leftovers(run, false, notes, err) || list_steps(run, &steps, err)) return -1;
    int status = 0, good = 0;
    for (size_t i = 0; i < steps.count && status == 0; i++) {
        char *path = name_path(run, NAME_STEP, steps.data[i], 0);
        struct error reason = {0};
        if (!path)
            status = error_memory(err, "a file name", strlen(run));
        else if (good < keep) { // nothing goes before enough newer ones were read again
            if (verify(path, steps.data[i], run_id, NULL, &reason) == 0)
                good++;
            else if (says_nothing_of_it(&reason))
                status = error_set(err, reason.code, "%s", reason.text);
            else if (reason.code != STATUS_DATA)
                note(notes, "does not count as a checkpoint: ", reason.text);
        } else if (steps.data[i] != pinned && may_remove(path, run_id, notes)) {
            status = remove_step(run, steps.data[i], notes, err);
        }
        mem_free(path);
    }
    mem_free(steps.data);
    return status;
}
