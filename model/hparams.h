// Hyper-parameters of a base, from config.json or from GGUF keys: one reader for both, so that a family has one mapper.
// Each function takes the key's name in both worlds, NULL where a world has none; "a|b" tries several names of
// config.json in turn. A missing or null key gives the fallback. The first error sticks: later calls return their
// fallbacks, and hparams_failed says so at the end.
#pragma once

#include "data/json.h"
#include "model/gguf.h"

struct hparams {
    const char *name; // of the file, for messages
    struct pool *pool;
    struct error *err;
    bool failed;
    const struct gguf *gguf; // either this
    const char *prefix;      // general.architecture
    const struct json *json; // or this: the object that describes the text model
    const struct json *rope; // JSON: rope_parameters or rope_scaling, NULL when absent
    struct json_document document;
};

// `root` is config.json's object; the text part of a multimodal wrapper is taken from text_config.
void hparams_from_json(struct hparams *h, const char *name, const struct json *root, struct pool *pool,
                       struct error *err);
void hparams_from_gguf(struct hparams *h, const struct gguf *file, const char *architecture, struct pool *pool,
                       struct error *err);

// As fallbacks of hp_int and hp_float: the key must be there.
#define HP_REQUIRED       INT64_MIN
#define HP_REQUIRED_FLOAT (-1e300)

int64_t hp_int(struct hparams *h, const char *json, const char *gguf, int64_t low, int64_t high, int64_t fallback);
double hp_float(struct hparams *h, const char *json, const char *gguf, double fallback);
bool hp_bool(struct hparams *h, const char *json, const char *gguf, bool fallback);
const char *hp_text(struct hparams *h, const char *json, const char *gguf, const char *fallback);
// A number or a list of `count` of them. False when the key is missing: `out` is left alone.
bool hp_layers(struct hparams *h, const char *json, const char *gguf, int64_t low, int64_t high, size_t count,
               int64_t *out);
// Floats of config.json (a list of exactly `count`) or of a GGUF tensor of that length; NULL when missing.
const float *hp_floats(struct hparams *h, const struct json *object, const char *json, const char *tensor,
                       size_t count);
// Is layer `i` of `layer_types` of this kind? False when the key is missing.
bool hp_has_layer_types(const struct hparams *h);
bool hp_layer_type(struct hparams *h, size_t i, const char *kind);

int hp_error(struct hparams *h, const char *format, ...) __attribute__((format(printf, 2, 3)));
static inline int hparams_failed(const struct hparams *h) {
    return h->failed ? -1 : 0;
}
