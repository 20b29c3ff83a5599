// A LoRA adapter on the device: one flat vector of parameters (part after part of module after
// module), bound to the decoder's
// slots under an adapter number; when trained, with gradients and AdamW moments of the same layout.
#pragma once

#include "adapters/adapter.h"
#include "model/decoder.h"

enum lora_init {
    LORA_INIT_KAIMING,  // PEFT's default: A uniform in +-1/sqrt(in), B zero
    LORA_INIT_GAUSSIAN, // A normal with deviation 1/r, B zero
    LORA_INIT_RANDOM,   // both uniform in +-1/sqrt(columns): the adapter acts from the start
};

struct lora {
    struct decoder *decoder; // borrowed
    struct adapter *adapter; // borrowed: host copy, shapes and names
    int number;              // in the decoder's slots
    int64_t n_params;
    struct tensor params;         // (1, n) f32
    struct tensor initial;        // (1, n) f32: a0 and b0 of one module after another, PiSSA
    struct tensor norms, squares; // (1, n) f32: DoRA, of the rows of W + scale B A, and the squares of those of W
    struct tensor row_ids;        // (n, 1) i32: those of all modules with trained rows
    struct tensor grads;          // (1, n) f32: of the running micro-batch; DTYPE_NONE when not trained
    struct tensor sum;  // (1, n) f32: over micro-batches; the same tensor as grads when steps are not accumulated
    struct tensor m, v; // (1, n) f32
};

// Fills the host copy at random, keyed by seed, module, row, element.
void lora_initialise(struct adapter *adapter, enum lora_init kind, uint64_t seed);
// Makes the device buffers and binds the slots. `accumulate`: gradients of micro-batches are summed in a second buffer.
// Like decoder_open: once while recording, once more after device_start.
int lora_attach(struct decoder *decoder, struct adapter *adapter, int number, bool trained, bool accumulate,
                struct lora *out, struct error *err);
void lora_detach(struct lora *lora);                   // unbinds the slots; buffers belong to the plan
int lora_upload(struct lora *lora, struct error *err); // host -> device
// DoRA: the norms anew, after A or B changed. lora_upload does it, and whoever trains after each step.
int lora_refresh(struct lora *lora, struct error *err);
// DoRA's start: the magnitudes are the norms (PEFT's update_layer), in host memory and on the device.
int lora_start_magnitudes(struct lora *lora, struct error *err);
int lora_download(struct lora *lora, struct error *err); // device -> host
// One of the flat vectors (gradients, moments) -> host, into an adapter of the same modules and parts.
int lora_read(const struct lora *lora, struct tensor flat, struct adapter *out, struct error *err);
// A part of a module's adapter in one of the flat vectors above, as one row; DTYPE_NONE where either is not there.
struct tensor lora_part(const struct lora *lora, struct tensor flat, int index, enum adapter_part part);
int64_t lora_offset(const struct lora *lora, int index, enum adapter_part part); // in the flat vector
