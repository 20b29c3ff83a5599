// Checkpoints: whole or absent (reliability.md section 3). A checkpoint is a folder `checkpoints/step-%06lld` of a run:
// a loadable PEFT folder plus state, closed by manifest.json with a SHA-256 per file and of itself, written last.
// Folders in the making or in removal have names that no reader takes for a checkpoint:
//   .tmp-STEP-PID    being written       .old-STEP-PID    replaced by a newer save of the same step
//   .trash-STEP-PID  being removed
#pragma once

#include "kernels/base.h"

struct checkpoint_writer {
    char *folder; // temporary folder to write files into (file_create or file_replace: both sync); owned
    char *run;    // the run's folder; owned
    int64_t step;
};

// Makes an empty temporary folder inside RUN/checkpoints. One writer per process at a time: leftovers of this pid go.
int checkpoint_begin(const char *run, int64_t step, struct checkpoint_writer *out, struct error *err);
// Hashes every file in the folder, writes manifest.json {format, version, run_id, step, files: {name: {bytes, sha256}},
// manifest_sha256}, syncs, re-reads and verifies, renames to step-N. A checkpoint of that step that already exists is
// replaced only after the new one is complete. On failure the temporary folder is removed and earlier checkpoints are
// untouched.
int checkpoint_commit(struct checkpoint_writer *w, const char *run_id, struct error *err);
void checkpoint_abandon(struct checkpoint_writer *w);

// Verifies one checkpoint folder against its manifest; 80 naming the file that is missing, cut or changed.
int checkpoint_verify(const char *folder, int64_t *step, struct error *err);
// The newest checkpoint of a run that verifies: its folder (freed by the caller with mem_free), NULL and 0 when the run
// has none. `run_id` NULL = of any run that used the folder. Skipped ones are appended to `notes` (one line each) when
// it is not NULL. Leftover temporary folders of dead processes are removed.
int checkpoint_newest(const char *run, const char *run_id, char **folder, int64_t *step, struct text *notes,
                      struct error *err);
// Keeps the newest `keep` (>= 1) checkpoints of this run id that verify and the step `pinned` (-1 = none); removes
// older ones by renaming them away first. Names and run ids that are not ours are left alone, whatever their step.
// Failure to delete is a note, not an error.
int checkpoint_rotate(const char *run, const char *run_id, int keep, int64_t pinned, struct text *notes,
                      struct error *err);
