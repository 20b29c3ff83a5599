// A base as one GGUF file, its matrices in a format of gguf_packing.h.
//   - From a GGUF (or its parts): every matrix is encoded anew from what it decodes to, keys and all else are copied.
//   - From safetensors: what llama.cpp's convert_hf_to_gguf.py does. Names, row orders, stacked experts, norms of 1 + w
//     and tables of rope factors come from the family's row and from struct arch; the keys are read back by the
//     family's mapper before anything is written, and what a GGUF of the family cannot say is refused by name.
#pragma once

#include "data/gguf_vocabulary.h"
#include "model/encode_rows.h"
#include "model/gguf_packing.h"
#include "model/gguf_write.h"
#include "model/model.h"

struct gguf_export {
    const struct model *model;
    const struct gguf_packing *packing;
    bool pure; // head and embedding too
    struct encode_work *work;
    struct gguf_writer writer;
    struct gguf_vocabulary vocabulary; // of a folder
    struct pool pool;
    struct text notes;            // lines for the user: what the file does not say, what was packed twice
    uint64_t bytes;               // of the file
    uint64_t counts[QUANT_COUNT]; // tensors that are encoded, by their new format
};

// Collects keys and tensors; `model` and `work` are borrowed until gguf_export_close. Errors: 65 a base that a GGUF of
// its family cannot hold, a tokenizer that it cannot name; 66 a base without weights.
int gguf_export_open(const struct model *model, const struct gguf_packing *packing, bool pure, struct encode_work *work,
                     struct gguf_export *out, struct error *err);
// Writes all of it, one tensor at a time.
int gguf_export_write(struct gguf_export *e, struct file_writer *out, struct error *err);
void gguf_export_close(struct gguf_export *e); // zeroed struct is a no-op

// --- private to the files of gguf_export.c

// A matrix (ne as in the file) whose rows are read when its turn comes; `context` lives in e->pool.
int gguf_export_matrix(struct gguf_export *e, const char *name, int n_dims, const int64_t *ne, bool head,
                       void (*read)(const void *, int64_t, float *), const void *context, struct error *err);
int gguf_export_folder(struct gguf_export *e, struct error *err); // gguf_from_folder.c
