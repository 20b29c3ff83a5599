// A base ready to run: model, tokenizer, template, device with its plan, decoder, generator. Commands record what they
// will do between session_open and session_start, then do it.
#pragma once

#include "configs/run_config.h"
#include "data/batch.h"
#include "kernels/machine.h"
#include "model/generate.h"
#include "train/base_source.h"

enum { SESSION_MAX_CHATS = 4 }; // tokenizer_default and the named ones of chat_template_open

struct session_options {
    struct base_source base;
    enum dtype dtype; // of activations
    int threads;      // 0 = all
    bool no_weights;  // they are not needed: a base that is a config.json alone will do
    enum device_kind device;
    uint64_t gpu_memory; // of a GPU, what may be used; 0 = all
};

struct session {
    struct model model;
    struct tokenizer *tokenizer; // NULL when the base has none that this version can use: `no_tokenizer` says why
    struct error no_tokenizer;
    bool told;            // the user knows that there is none
    struct session_chat { // templates in use, by name; the first is the one that answers are generated with
        const char *name; // borrowed
        struct chat_template *chat;
    } chats[SESSION_MAX_CHATS];
    int n_chats;
    struct device device;
    struct decoder decoder;
    struct generator generator; // only when limits have a cache
    struct session_options options;
    struct decoder_limits limits;
    int threads;
    uint64_t host_bytes; // anonymous memory held when the plan was made: vocabulary, data, libraries, stacks
};

// Where a config wants to compute, on this machine. GRAFT_BACKEND=cpu|cuda|late stands above it, for tests. An error
// when it names a GPU and there is none; with `auto`, `notice` gets one line that says why not, where a GPU was to be
// expected.
int session_device(enum config_device wanted, enum device_kind *out, struct text *notice, struct error *err);
// The precision a config asks for on such a device; `notice` gets one line when that is not what was written.
enum dtype session_dtype(enum config_precision precision, enum device_kind device, struct text *notice);
// Base, device, precision and threads as a config has them; `notice` as above, a line each.
int session_options_of(const struct run_config *config, struct session_options *out, struct text *notice,
                       struct error *err);
// Finds the base, quantises it where asked, reads its headers and its tokenizer; a base without one is no error, for
// rows of tokens need none. Errors: those of base_source_open; 66 shapes alone, unless options say no_weights.
int session_open(const struct session_options *options, struct session *out, struct error *err);
// An error unless there is a tokenizer: what the base lacks, and `what`, a sentence's part that says who needs it.
int session_needs_text(const struct session *session, const char *what, struct error *err);
// Begins recording with these limits: decoder and generator exist on a device that computes nothing.
int session_record(struct session *session, const struct decoder_limits *limits, struct error *err);
// The template of that name ("tokenizer_default" or NULL: the base's own), opened on first use; NULL on error. Data
// that is rendered asks for its own.
const struct chat_template *session_chat(struct session *session, const char *name, struct error *err);
// Forgets a recording, so that another can be made.
void session_forget(struct session *session);
// Seals the plan and opens the real backend; decoder and generator are made again on it. Adapters are attached by the
// caller before and after, in the same order.
int session_start(struct session *session, struct error *err);
void session_close(struct session *session); // zeroed struct is a no-op

// --- datasets of a config
int session_read_data(struct session *session, const struct run_config *config, const struct config_datasets *sets,
                      int64_t sequence_len, struct dataset *out, struct error *err);
