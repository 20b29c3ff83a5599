// Checkpoints: whole or absent under damage, failing file operations, failing allocations, crashes and kills.
#include "tests/harness.h"
#include "train/checkpoint.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char RUN_ID[] = "run-\"a\"\n1"; // needs escaping in the manifest

// A path below the test folder; a handful of static buffers, so that several can be used in one expression.
static const char *at(const char *format, ...) {
    static char buffers[8][512];
    static int next;
    char *buffer = buffers[next++ % 8];
    int n = snprintf(buffer, 512, "%s/", test_folder());
    va_list args;
    va_start(args, format);
    vsnprintf(buffer + n, (size_t)(512 - n), format, args);
    va_end(args);
    return buffer;
}

// A fresh run folder for a test.
static const char *fresh_run(const char *name) {
    static char path[512];
    snprintf(path, sizeof path, "%s", at("%s", name));
    file_remove_tree(path, NULL);
    return path;
}

static int put(const char *folder, const char *name, unsigned seed, size_t length, struct error *err) {
    char bytes[4096], *path = path_join(folder, name);
    if (!path) return error_memory(err, "a path", 0);
    for (size_t i = 0; i < length; i++) bytes[i] = (char)(seed * 31 + i * 7);
    struct file_writer w;
    int status = file_create(path, &w, err);
    if (status == 0) status = file_write(&w, bytes, length, err);
    if (status == 0) status = file_close(&w, err);
    mem_free(path);
    return status;
}

static const char *const NAMES[] = {"adapter_config.json", "adapter_model.safetensors", "empty.bin", "optimizer.bin"};

static int save_as(const char *run, const char *run_id, int64_t step, unsigned seed, struct error *err) {
    struct checkpoint_writer w;
    if (checkpoint_begin(run, step, &w, err)) return -1;
    for (size_t i = 0; i < COUNT_OF(NAMES); i++)
        if (put(w.folder, NAMES[i], seed + (unsigned)i, i == 2 ? 0 : 200 + 100 * i, err)) {
            checkpoint_abandon(&w);
            return -1;
        }
    return checkpoint_commit(&w, run_id, err);
}
static int save(const char *run, int64_t step, struct error *err) {
    return save_as(run, RUN_ID, step, (unsigned)step, err);
}

// One hash over the names and bytes of a folder; all zero when it cannot be read.
static void folder_hash(const char *folder, uint8_t out[SHA256_BYTES]) {
    memset(out, 0, SHA256_BYTES);
    char **names;
    size_t count;
    struct text all = {0};
    if (file_list(folder, &names, &count, NULL)) return;
    for (size_t i = 0; i < count; i++) {
        char *path = path_join(folder, names[i]);
        uint8_t digest[SHA256_BYTES];
        text_add(&all, names[i]);
        if (path && sha256_file(path, digest, NULL, NULL) == 0) text_append(&all, digest, sizeof digest);
        mem_free(path);
    }
    file_list_free(names, count);
    sha256_bytes(text_str(&all), all.length, out, NULL);
    text_free(&all);
}

static int64_t newest_with(const char *run, const char *run_id, struct text *notes) {
    char *folder;
    int64_t step = -1;
    struct error err = {0};
    if (checkpoint_newest(run, run_id, &folder, &step, notes, &err)) {
        test_fail(__FILE__, __LINE__, "newest: %s", err.text);
        return -2;
    }
    if (!folder) return -1;
    CHECK(strcmp(folder, at("%s/checkpoints/step-%06lld", strrchr(run, '/') + 1, (long long)step)) == 0);
    mem_free(folder);
    return step;
}
static int64_t newest(const char *run) {
    return newest_with(run, NULL, NULL);
}

static size_t count_entries(const char *run, const char *prefix) {
    char *folder = path_join(run, "checkpoints"), **names;
    size_t count, found = 0;
    if (file_list(folder, &names, &count, NULL) == 0) {
        for (size_t i = 0; i < count; i++) found += strncmp(names[i], prefix, strlen(prefix)) == 0;
        file_list_free(names, count);
    }
    mem_free(folder);
    return found;
}

TEST(sha256_of_known_text) { // FIPS 180-2, appendix B
    uint8_t digest[SHA256_BYTES];
    char hex[2 * SHA256_BYTES + 1];
    struct sha256 hash;
    CHECK_INT(sha256_init(&hash, NULL), 0);
    sha256_update(&hash, "a", 1);
    sha256_update(&hash, NULL, 0);
    sha256_update(&hash, "bc", 2);
    CHECK_INT(sha256_final(&hash, digest, NULL), 0);
    sha256_hex(digest, hex);
    CHECK_STR(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    sha256_bytes("", 0, digest, NULL);
    sha256_hex(digest, hex);
    CHECK_STR(hex, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    uint64_t size = 1;
    CHECK_INT(file_replace(at("abc"), "abc", 3, NULL), 0);
    CHECK_INT(sha256_file(at("abc"), digest, &size, NULL), 0);
    sha256_hex(digest, hex);
    CHECK_STR(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    CHECK_INT(size, 3);
    struct error err = {0};
    CHECK_INT(sha256_file(at("missing"), digest, &size, &err), -1);
    CHECK_INT(err.code, STATUS_NOINPUT);
}

TEST(whole_round) {
    const char *run = fresh_run("round");
    struct error err = {0};
    CHECK_INT(newest(run), -1);
    CHECK_INT(save(run, 0, &err), 0);
    CHECK_INT(save(run, 12, &err), 0);
    CHECK_INT(save(run, 1000000, &err), 0);
    CHECK_STR(err.text, "");
    CHECK_INT(newest(run), 1000000);
    int64_t step;
    CHECK_INT(checkpoint_verify(at("round/checkpoints/step-000012"), &step, &err), 0);
    CHECK_INT(step, 12);
    CHECK_INT(checkpoint_verify(at("round/checkpoints/step-000013"), &step, &err), -1);
    CHECK_INT(err.code, STATUS_INTEGRITY);
    struct checkpoint_writer w; // an abandoned save leaves nothing
    CHECK_INT(checkpoint_begin(run, 13, &w, NULL), 0);
    CHECK_INT(put(w.folder, "x", 1, 10, NULL), 0);
    checkpoint_abandon(&w);
    CHECK_INT(count_entries(run, "."), 0);
    // A folder moved under another step's name is not that step.
    CHECK_INT(file_rename(at("round/checkpoints/step-000012"), at("round/checkpoints/step-2000000"), NULL), 0);
    CHECK_INT(newest(run), 1000000);
}

TEST(save_over_existing_step) {
    const char *run = fresh_run("over");
    struct error err = {0};
    uint8_t first[SHA256_BYTES], second[SHA256_BYTES];
    CHECK_INT(save_as(run, RUN_ID, 5, 1, &err), 0);
    folder_hash(at("over/checkpoints/step-000005"), first);
    CHECK_INT(save_as(run, RUN_ID, 5, 2, &err), 0);
    folder_hash(at("over/checkpoints/step-000005"), second);
    CHECK(memcmp(first, second, sizeof first) != 0);
    CHECK_INT(newest(run), 5);
    CHECK_INT(count_entries(run, "."), 0);
    // Killed between the two renames: the old one comes back.
    CHECK_INT(file_rename(at("over/checkpoints/step-000005"), at("over/checkpoints/.old-000005-999999999"), NULL), 0);
    CHECK_INT(newest(run), 5);
    CHECK_INT(count_entries(run, "."), 0);
    // A file of that name is not ours.
    CHECK_INT(file_replace(at("over/checkpoints/step-000006"), "x", 1, NULL), 0);
    CHECK_INT(save(run, 6, &err), -1);
    CHECK_INT(err.code, STATUS_CANTCREATE);
    CHECK_INT(newest(run), 5);
    CHECK_INT(count_entries(run, "."), 0);
}

// Applies one kind of damage to a file: 0 missing, 1 empty, 2 cut, 3 one bit flipped, 4 longer.
static bool damage(const char *path, int kind, size_t where) {
    struct text bytes;
    if (kind == 0) return file_remove(path, NULL) == 0;
    if (file_read(path, 1 << 20, &bytes, NULL)) return false;
    bool possible = bytes.length > 0 || kind == 4;
    if (possible && kind == 1) text_clear(&bytes);
    if (possible && kind == 2) bytes.length -= 1 + where % bytes.length;
    if (possible && kind == 3) bytes.data[where / 8 % bytes.length] ^= (char)(1 << where % 8);
    if (kind == 4) text_char(&bytes, ' ');
    if (possible) CHECK_INT(file_replace(path, text_str(&bytes), bytes.length, NULL), 0);
    text_free(&bytes);
    return possible;
}

TEST(damage_falls_back_and_says_why) {
    static const char *const files[] = {"adapter_config.json", "adapter_model.safetensors", "empty.bin",
                                        "optimizer.bin", "manifest.json"};
    const char *run = fresh_run("damage");
    CHECK_INT(save(run, 1, NULL), 0);
    for (size_t f = 0; f < COUNT_OF(files); f++) {
        for (int kind = 0; kind <= 4; kind++) {
            CHECK_INT(save(run, 2, NULL), 0);
            if (!damage(at("damage/checkpoints/step-000002/%s", files[f]), kind, 77)) continue;
            struct text notes = {0};
            CHECK_MSG(newest_with(run, NULL, &notes) == 1, "%s, damage %d: not noticed", files[f], kind);
            CHECK_MSG(strstr(text_str(&notes), files[f]) != NULL, "%s, damage %d: notes are '%s'", files[f], kind,
                      text_str(&notes));
            text_free(&notes);
        }
    }
    // A manifest or file that is a folder, a link to nothing, a FIFO.
    CHECK_INT(save(run, 2, NULL), 0);
    CHECK_INT(file_remove(at("damage/checkpoints/step-000002/optimizer.bin"), NULL), 0);
    CHECK_INT(symlink("/nonexistent", at("damage/checkpoints/step-000002/optimizer.bin")), 0);
    CHECK_INT(newest(run), 1);
    CHECK_INT(save(run, 2, NULL), 0);
    CHECK_INT(file_remove(at("damage/checkpoints/step-000002/manifest.json"), NULL), 0);
    CHECK_INT(file_make_folders(at("damage/checkpoints/step-000002/manifest.json"), NULL), 0);
    CHECK_INT(newest(run), 1);
}

TEST(every_bit_of_the_manifest_counts) {
    const char *run = fresh_run("bits");
    CHECK_INT(save(run, 1, NULL), 0);
    struct text good;
    char path[512], folder[512];
    snprintf(folder, sizeof folder, "%s", at("bits/checkpoints/step-000001"));
    snprintf(path, sizeof path, "%s", at("bits/checkpoints/step-000001/manifest.json"));
    CHECK_INT(file_read(path, 1 << 20, &good, NULL), 0);
    int missed = 0, fd = open(path, O_WRONLY); // in place and not synced: thousands of changes
    for (size_t bit = 0; bit < good.length * 8; bit++) {
        char changed = (char)(good.data[bit / 8] ^ (1 << bit % 8));
        CHECK_INT(pwrite(fd, &changed, 1, (off_t)(bit / 8)), 1);
        struct error err = {0};
        missed += checkpoint_verify(folder, NULL, &err) == 0 || err.code != STATUS_INTEGRITY;
        CHECK_INT(pwrite(fd, &good.data[bit / 8], 1, (off_t)(bit / 8)), 1);
    }
    CHECK_INT(missed, 0);
    CHECK_INT(checkpoint_verify(folder, NULL, NULL), 0);
    for (size_t length = good.length; length-- > 0;) {
        CHECK_INT(ftruncate(fd, (off_t)length), 0);
        missed += checkpoint_verify(folder, NULL, NULL) == 0;
    }
    CHECK_INT(missed, 0);
    close(fd);
    text_free(&good);
}

// A manifest whose own hash is right but whose content is hostile.
TEST(sealed_but_hostile_manifests) {
    static const char *const bodies[] = {
        "",
        "{",
        "[",
        "{}",
        "{\"format\": \"other\"",
        "{\n  \"format\": \"graft checkpoint\",\n  \"version\": 2",
        "{\"format\": \"graft checkpoint\", \"version\": 1, \"run_id\": \"r\", \"step\": 1, \"files\": {}",
        "{\"format\": \"graft checkpoint\", \"version\": 1, \"run_id\": \"r\", \"step\": 1, \"files\": []",
        "{\"format\": \"graft checkpoint\", \"version\": 1, \"run_id\": \"r\", \"step\": 1, \"files\": "
        "{\"../x\": {\"bytes\": 0, \"sha256\": \"00\"}}",
        "{\"format\": \"graft checkpoint\", \"version\": 1, \"run_id\": \"r\", \"step\": 1, \"files\": "
        "{\"a\\u0000b\": {\"bytes\": 0, \"sha256\": \"00\"}}",
        "{\"format\": \"graft checkpoint\", \"version\": 1, \"run_id\": \"r\", \"step\": 1, \"files\": "
        "{\"empty.bin\": {\"bytes\": -1, \"sha256\": \"00\"}}",
        "{\"format\": \"graft checkpoint\", \"version\": 1, \"run_id\": \"r\", \"step\": 1, \"files\": {\"empty.bin\": "
        "3}",
    };
    const char *run = fresh_run("hostile");
    CHECK_INT(save(run, 1, NULL), 0);
    for (size_t i = 0; i < COUNT_OF(bodies); i++) {
        uint8_t digest[SHA256_BYTES];
        char hex[2 * SHA256_BYTES + 1];
        sha256_bytes(bodies[i], strlen(bodies[i]), digest, NULL);
        sha256_hex(digest, hex);
        struct text text = {0};
        text_printf(&text, "%s,\n  \"manifest_sha256\": \"%s\"\n}\n", bodies[i], hex);
        CHECK_INT(file_replace(at("hostile/checkpoints/step-000001/manifest.json"), text.data, text.length, NULL), 0);
        text_free(&text);
        struct error err = {0};
        CHECK_INT(checkpoint_verify(at("hostile/checkpoints/step-000001"), NULL, &err), -1);
        CHECK_MSG(err.code == STATUS_INTEGRITY || err.code == STATUS_DATA, "body %zu: %d %s", i, err.code, err.text);
        if (i == 5) CHECK_MSG(strstr(err.text, "newer program") != NULL, "%s", err.text);
    }
}

TEST(foreign_names_are_untouched) {
    const char *run = fresh_run("foreign");
    static const char *const folders[] = {"step-9x", "checkpoint-5", "step-7",        "step-0000008",
                                          ".tmp-x",  "step-000900",  ".tmp-000001-1", "step-"};
    for (size_t i = 0; i < COUNT_OF(folders); i++)
        CHECK_INT(file_make_folders(at("foreign/checkpoints/%s", folders[i]), NULL), 0);
    CHECK_INT(file_replace(at("foreign/checkpoints/step-000003"), "x", 1, NULL), 0);
    CHECK_INT(file_make_folders(at("foreign/checkpoints/.tmp-000001-999999999"), NULL), 0); // of a dead process: goes
    for (int64_t step = 100; step < 110; step++) {
        CHECK_INT(save(run, step, NULL), 0);
        CHECK_INT(checkpoint_rotate(run, RUN_ID, 2, -1, NULL, NULL), 0);
    }
    for (size_t i = 0; i < COUNT_OF(folders); i++)
        CHECK_MSG(file_is_folder(at("foreign/checkpoints/%s", folders[i])), "%s is gone", folders[i]);
    CHECK(file_exists(at("foreign/checkpoints/step-000003")));
    CHECK(!file_exists(at("foreign/checkpoints/.tmp-000001-999999999")));
    CHECK_INT(newest(run), 109);
    CHECK_INT(count_entries(run, "step-0001"), 2);
}

// A new run in an old folder: its first saves have lower steps than the old run's and must survive all the same.
TEST(other_runs_do_not_count) {
    const char *run = fresh_run("runs");
    for (int64_t step = 50; step <= 60; step += 5) CHECK_INT(save_as(run, "old", step, 1, NULL), 0);
    for (int64_t step = 1; step <= 3; step++) {
        CHECK_INT(save_as(run, "new", step, 1, NULL), 0);
        CHECK_INT(checkpoint_rotate(run, "new", 1, -1, NULL, NULL), 0);
        CHECK_INT(newest_with(run, "new", NULL), step);
    }
    CHECK_INT(count_entries(run, "step-"), 4);
    CHECK_INT(newest_with(run, "old", NULL), 60);
}

TEST(rotation_waits_for_verified_ones) {
    const char *run = fresh_run("rotate");
    for (int64_t step = 1; step <= 5; step++) CHECK_INT(save(run, step, NULL), 0);
    for (int64_t step = 3; step <= 5; step++)
        CHECK(damage(at("rotate/checkpoints/step-%06lld/optimizer.bin", (long long)step), 3, 5));
    struct text notes = {0};
    CHECK_INT(checkpoint_rotate(run, RUN_ID, 1, -1, &notes, NULL), 0);
    CHECK(strstr(text_str(&notes), "step-000005") != NULL);
    text_free(&notes);
    CHECK_INT(newest(run), 2); // the only whole one that is left; 1 could go, the damaged newer ones are not touched
    CHECK_INT(count_entries(run, "step-"), 4);
    // Pinned ones stay, whatever their age.
    for (int64_t step = 6; step <= 9; step++) CHECK_INT(save(run, step, NULL), 0);
    CHECK_INT(checkpoint_rotate(run, RUN_ID, 2, 2, NULL, NULL), 0);
    CHECK_INT(checkpoint_verify(at("rotate/checkpoints/step-000002"), NULL, NULL), 0);
    CHECK_INT(newest(run), 9);
    CHECK_INT(count_entries(run, "step-"), 3);
    CHECK_INT(count_entries(run, "."), 0);
    struct error err = {0};
    CHECK_INT(checkpoint_rotate(run, RUN_ID, 0, -1, NULL, &err), -1);
}

// Every file operation of a save fails once, or from then on: the checkpoints before it keep their bytes, and the next
// save works.
TEST(failing_file_operations) {
    static const int codes[] = {EIO, ENOSPC};
    const char *run = fresh_run("fail");
    CHECK_INT(save(run, 1, NULL), 0);
    CHECK_INT(save_as(run, RUN_ID, 2, 50, NULL), 0);
    uint8_t first[SHA256_BYTES], second[SHA256_BYTES], now[SHA256_BYTES];
    folder_hash(at("fail/checkpoints/step-000001"), first);
    folder_hash(at("fail/checkpoints/step-000002"), second);
    int points = 0;
    for (size_t c = 0; c < COUNT_OF(codes); c++) {
        for (int forever = 0; forever <= 1; forever++) {
            for (int64_t step = 2; step <= 3; step++) { // over an existing one, and a new one
                for (uint64_t k = 1;; k++) {
                    struct error err = {0};
                    file_fail_at(k, codes[c], forever);
                    int status = save(run, step, &err);
                    uint64_t calls = file_fail_at(0, 0, 0);
                    points++;
                    CHECK_MSG(status == 0 || err.code != 0, "operation %llu: no reason", (unsigned long long)k);
                    // No result is ignored, and after one failure the old one stands there without any recovery.
                    bool met = k <= calls && !forever;
                    if (met && step == 3) CHECK_MSG(status, "operation %llu may fail unnoticed", (unsigned long long)k);
                    if (met && step == 2 && !file_exists(at("fail/checkpoints/step-000002")))
                        CHECK_MSG(false, "operation %llu: step 2 is gone", (unsigned long long)k);
                    folder_hash(at("fail/checkpoints/step-000001"), now);
                    CHECK(!memcmp(now, first, sizeof now));
                    int64_t found = newest(run);
                    CHECK_MSG(found >= 2, "operation %llu of step %lld: newest is %lld", (unsigned long long)k,
                              (long long)step, (long long)found);
                    folder_hash(at("fail/checkpoints/step-000002"), now);
                    if (step == 3 || status) CHECK_MSG(!memcmp(now, second, sizeof now) || step == 2, "step 2 changed");
                    if (status == 0) CHECK_INT(found, step);
                    if (step == 2 && status == 0) CHECK_INT(save_as(run, RUN_ID, 2, 50, NULL), 0); // as it was
                    if (step == 3) file_remove_tree(at("fail/checkpoints/step-000003"), NULL);
                    if (k > calls) break; // it ran through without meeting the fault
                }
                CHECK_INT(save(run, 4, NULL), 0);
                CHECK_INT(count_entries(run, "."), 0);
                file_remove_tree(at("fail/checkpoints/step-000004"), NULL);
                CHECK_INT(save_as(run, RUN_ID, 2, 50, NULL), 0);
            }
        }
    }
    printf("    %d failure points\n", points);
}

// The same while looking for the newest and while rotating. A fault may make an older one the answer, never a wrong
// one.
TEST(failing_recovery) {
    const char *run = fresh_run("recover");
    for (int forever = 0; forever <= 1; forever++) {
        for (uint64_t k = 1;; k++) {
            for (int64_t step = 1; step <= 4; step++)
                if (!file_exists(at("recover/checkpoints/step-%06lld", (long long)step)))
                    CHECK_INT(save(run, step, NULL), 0);
            char *folder = NULL;
            int64_t step = -1;
            file_fail_at(k, EIO, forever);
            int status = checkpoint_newest(run, RUN_ID, &folder, &step, NULL, NULL);
            file_fail_at(k, EIO, forever);
            checkpoint_rotate(run, RUN_ID, 2, 1, NULL, NULL);
            uint64_t calls = file_fail_at(0, 0, 0);
            if (status == 0 && folder) CHECK_INT(checkpoint_verify(folder, NULL, NULL), 0);
            mem_free(folder);
            CHECK_INT(newest(run), 4);
            CHECK_INT(checkpoint_verify(at("recover/checkpoints/step-000001"), NULL, NULL), 0);
            if (k > calls) break;
        }
    }
    CHECK_INT(checkpoint_rotate(run, RUN_ID, 2, 1, NULL, NULL), 0);
    CHECK_INT(count_entries(run, "step-"), 3);
    CHECK_INT(count_entries(run, "."), 0);
}

TEST(failing_allocations) {
    const char *run = fresh_run("memory");
    CHECK_INT(save(run, 1, NULL), 0);
    uint8_t first[SHA256_BYTES], now[SHA256_BYTES];
    folder_hash(at("memory/checkpoints/step-000001"), first);
    for (int forever = 0; forever <= 1; forever++) {
        for (uint64_t k = 1;; k++) {
            struct error err = {0};
            char *folder = NULL;
            struct text notes = {0};
            mem_fail_at(k, forever);
            int status = save(run, 2, &err);
            if (status == 0) status = checkpoint_newest(run, RUN_ID, &folder, NULL, &notes, &err);
            if (status == 0) status = checkpoint_rotate(run, RUN_ID, 1, 1, &notes, &err);
            uint64_t calls = mem_fail_at(0, 0);
            if (status)
                CHECK_MSG(err.code == STATUS_MEMORY, "allocation %llu: %d %s", (unsigned long long)k, err.code,
                          err.text);
            else if (folder)
                CHECK(strstr(folder, "step-000002") != NULL);
            mem_free(folder);
            text_free(&notes);
            folder_hash(at("memory/checkpoints/step-000001"), now);
            CHECK(!memcmp(now, first, sizeof now));
            CHECK(newest(run) >= 1);
            if (k > calls) break;
        }
    }
    CHECK_INT(save(run, 3, NULL), 0);
    CHECK_INT(count_entries(run, "."), 0);
}

// Random histories of saves, better ones, crashes (every file operation from a random one on fails), new runs in the
// same folder, rotations and damage. After each step: the newest saved one verifies, the pinned one exists, and the
// folder does not grow.
TEST(random_histories) {
    unsigned draws = 0;
    const char *run = fresh_run("random");
    int crashes = 0, saves = 0;
    for (unsigned history = 0; history < 25; history++) {
        file_remove_tree(run, NULL);
        int64_t step = 0, last = -1, pinned = -1;
        int keep = 1 + (int)(history % 3), runs = 0;
        char run_id[16] = "0";
        for (int event = 0; event < 25; event++) {
            double dice = (test_random(7, draws++) + 1) / 2;
            if (dice < 0.05) { // another run takes over the folder, from step 0
                snprintf(run_id, sizeof run_id, "%d", ++runs);
                step = 0, last = pinned = -1;
            }
            bool crash = dice > 0.6;
            step += 1 + (dice > 0.3);
            if (dice > 0.9 && last > 0) step = last; // over an existing one
            if (crash) file_fail_at(1 + (uint64_t)((test_random(8, draws++) + 1) * 60), EIO, 1);
            int saved = save_as(run, run_id, step, draws, NULL);
            if (saved == 0) {
                saves++;
                last = step;
                if (dice < 0.2) pinned = step;
            }
            checkpoint_rotate(run, run_id, keep, pinned, NULL, NULL);
            file_fail_at(0, 0, 0);
            crashes += crash;
            int64_t found = newest_with(run, run_id, NULL);
            CHECK_MSG(found == last || (crash && found == step), "history %u event %d: newest is %lld, saved was %lld",
                      history, event, (long long)found, (long long)last);
            last = found;
            if (pinned >= 0)
                CHECK_INT(checkpoint_verify(at("random/checkpoints/step-%06lld", (long long)pinned), NULL, NULL), 0);
            CHECK_INT(checkpoint_rotate(run, run_id, keep, pinned, NULL, NULL), 0);
            if (runs == 0) CHECK(count_entries(run, "step-") <= (size_t)keep + 1);
        }
    }
    printf("    %d saves, %d crashes\n", saves, crashes);
    CHECK(saves > 100 && crashes > 50);
}

static void save_until_killed(const char *run, int64_t step, int pipe_fd) {
    for (;; step++) {
        if (save(run, step, NULL)) _exit(1);
        if (write(pipe_fd, &step, sizeof step) != sizeof step) _exit(1); // this one was promised to be safe
        if (checkpoint_rotate(run, RUN_ID, 2, 3, NULL, NULL)) _exit(1);
    }
}

TEST(kill_at_random_moments) {
    const char *run = fresh_run("kill");
    int64_t promised = -1, step = 0;
    int temporary = 0;
    for (unsigned kill_number = 0; kill_number < 50; kill_number++) {
        int fds[2];
        CHECK_INT(pipe(fds), 0);
        pid_t child = fork();
        if (child == 0) {
            close(fds[0]);
            save_until_killed(run, step, fds[1]);
        }
        close(fds[1]);
        nanosleep(&(struct timespec){.tv_nsec = (long)((test_random(9, kill_number) + 1) * 25e6)}, NULL);
        kill(child, SIGKILL);
        int status;
        waitpid(child, &status, 0);
        CHECK(WIFSIGNALED(status));
        int64_t done;
        while (read(fds[0], &done, sizeof done) == sizeof done) promised = done;
        close(fds[0]);
        temporary += count_entries(run, ".") > 0;
        int64_t found = newest(run);
        CHECK_MSG(found >= promised, "kill %u: newest is %lld, promised was %lld", kill_number, (long long)found,
                  (long long)promised);
        CHECK_INT(count_entries(run, "."), 0);
        if (promised >= 3) CHECK_INT(checkpoint_verify(at("kill/checkpoints/step-000003"), NULL, NULL), 0);
        step = found + 1;
    }
    printf("    50 kills, %d in the middle of a save or removal, %lld steps\n", temporary, (long long)step);
    CHECK(step > 0);
}

TEST_MAIN(CASE(sha256_of_known_text), CASE(whole_round), CASE(save_over_existing_step),
          CASE(damage_falls_back_and_says_why), CASE(every_bit_of_the_manifest_counts),
          CASE(sealed_but_hostile_manifests), CASE(foreign_names_are_untouched), CASE(other_runs_do_not_count),
          CASE(rotation_waits_for_verified_ones), CASE(failing_file_operations), CASE(failing_recovery),
          CASE(failing_allocations), CASE(random_histories), CASE(kill_at_random_moments))
