// See hparams.h.
#include "model/hparams.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int hp_error(struct hparams *h, const char *format, ...) {
    char text[400];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (!h->failed) error_set(h->err, STATUS_DATA, "%s: %s", h->name, text);
    h->failed = true;
    return -1;
}

void hparams_from_json(struct hparams *h, const char *name, const struct json *root, struct pool *pool,
                       struct error *err) {
    const struct json *text = json_get(root, "text_config");
    *h = (struct hparams){.name = name, .pool = pool, .err = err, .json = json_is(text, JSON_OBJECT) ? text : root};
    h->rope = json_get(h->json, "rope_parameters");
    if (!json_is(h->rope, JSON_OBJECT)) h->rope = json_get(h->json, "rope_scaling");
    if (!json_is(h->rope, JSON_OBJECT)) h->rope = NULL;
}

void hparams_from_gguf(struct hparams *h, const struct gguf *file, const char *architecture, struct pool *pool,
                       struct error *err) {
    *h = (struct hparams){.name = file->name, .pool = pool, .err = err, .gguf = file, .prefix = architecture};
}

// The first of "a|b" that is there and not null.
static const struct json *lookup(const struct hparams *h, const char *names) {
    while (h->json && names && *names) {
        char name[96];
        size_t length = strcspn(names, "|");
        snprintf(name, sizeof name, "%.*s", (int)length, names);
        const struct json *value = json_get(h->json, name);
        if (value && !json_is(value, JSON_NULL)) return value;
        names += length + (names[length] == '|');
    }
    return NULL;
}

static const char *gguf_key(const struct hparams *h, const char *key, char *out, size_t size) {
    snprintf(out, size, "%s.%s", h->prefix, key);
    return out;
}

static void missing(struct hparams *h, const char *json, const char *gguf) {
    char key[128];
    if (h->gguf)
        hp_error(h, "key '%s' is missing", gguf ? gguf_key(h, gguf, key, sizeof key) : json);
    else
        hp_error(h, "key '%s' is missing", json ? json : gguf);
}

int64_t hp_int(struct hparams *h, const char *json, const char *gguf, int64_t low, int64_t high, int64_t fallback) {
    int64_t value = fallback;
    char key[128];
    bool found = false;
    if (h->failed) return fallback == HP_REQUIRED ? low : fallback;
    if (h->gguf && gguf) {
        int has = gguf_get_int(h->gguf, gguf_key(h, gguf, key, sizeof key), low, high, &value, h->err);
        if (has < 0) h->failed = true;
        found = has > 0;
    } else if (!h->gguf && json) {
        const struct json *v = lookup(h, json);
        found = v != NULL;
        if (v && (!json_int(v, &value) || value < low || value > high))
            hp_error(h, "key '%s' is no whole number from %lld to %lld", json, (long long)low, (long long)high);
    }
    if (h->failed) return fallback == HP_REQUIRED ? low : fallback;
    if (!found && fallback == HP_REQUIRED) {
        missing(h, json, gguf);
        return low;
    }
    return found ? value : fallback;
}

double hp_float(struct hparams *h, const char *json, const char *gguf, double fallback) {
    double value = fallback;
    char key[128];
    bool found = false;
    if (h->failed) return fallback;
    if (h->gguf && gguf) {
        int has = gguf_get_float(h->gguf, gguf_key(h, gguf, key, sizeof key), &value, h->err);
        if (has < 0) h->failed = true;
        found = has > 0;
    } else if (!h->gguf && json) {
        const struct json *v = lookup(h, json);
        found = v != NULL;
        if (v && !(json_double(v, &value) && isfinite(value))) hp_error(h, "key '%s' is no number", json);
    }
    if (!found && fallback == HP_REQUIRED_FLOAT) missing(h, json, gguf);
    return h->failed ? 0 : value;
}

bool hp_bool(struct hparams *h, const char *json, const char *gguf, bool fallback) {
    bool value = fallback;
    char key[128];
    if (h->failed) return fallback;
    if (h->gguf && gguf) {
        if (gguf_get_bool(h->gguf, gguf_key(h, gguf, key, sizeof key), &value, h->err) < 0) h->failed = true;
    } else if (!h->gguf && json) {
        const struct json *v = lookup(h, json);
        if (v && !json_bool(v, &value)) hp_error(h, "key '%s' is neither true nor false", json);
    }
    return value;
}

const char *hp_text(struct hparams *h, const char *json, const char *gguf, const char *fallback) {
    const char *value = fallback;
    char key[128];
    if (h->failed) return fallback;
    if (h->gguf && gguf) {
        if (gguf_get_text(h->gguf, gguf_key(h, gguf, key, sizeof key), h->pool, &value, h->err) < 0) h->failed = true;
    } else if (!h->gguf && json) {
        const struct json *v = lookup(h, json);
        size_t length;
        if (v && (!(value = json_string(v, &length)) || strlen(value) != length)) {
            hp_error(h, "key '%s' is no text", json);
            value = fallback;
        }
    }
    return value;
}

bool hp_layers(struct hparams *h, const char *json, const char *gguf, int64_t low, int64_t high, size_t count,
               int64_t *out) {
    char key[128];
    if (h->failed) return false;
    if (h->gguf && gguf) {
        int has = gguf_get_per_layer(h->gguf, gguf_key(h, gguf, key, sizeof key), low, high, count, out, h->err);
        if (has < 0) h->failed = true;
        return has > 0;
    }
    const struct json *v = h->gguf ? NULL : lookup(h, json);
    if (!v) return false;
    bool list = json_is(v, JSON_ARRAY);
    if (list && json_count(v) < count) {
        hp_error(h, "key '%s' has %zu entries for %zu layers", json, json_count(v), count);
        return false;
    }
    const struct json *at = list ? json_child(v) : v;
    for (size_t i = 0; i < count; i++) {
        bool flag;
        if (json_bool(at, &flag))
            out[i] = flag;
        else if (!json_int(at, &out[i]) || out[i] < low || out[i] > high) {
            hp_error(h, "key '%s' is no whole number from %lld to %lld for layer %zu", json, (long long)low,
                     (long long)high, i);
            return false;
        }
        if (list) at = json_next(at);
    }
    return true;
}

const float *hp_floats(struct hparams *h, const struct json *object, const char *json, const char *tensor,
                       size_t count) {
    float *out = pool_array(h->pool, count, sizeof *out);
    if (!out) {
        error_memory(h->err, "a list of numbers", count * sizeof *out);
        h->failed = true;
        return NULL;
    }
    if (h->gguf) {
        const struct gguf_tensor *t = tensor ? gguf_find_tensor(h->gguf, tensor) : NULL;
        if (!t) return NULL;
        if (t->ggml_type != quant_format(QUANT_F32)->ggml_type || t->ne[0] != (int64_t)count || t->n_dims != 1) {
            hp_error(h, "tensor '%s' is not %zu numbers of F32", tensor, count);
            return NULL;
        }
        memcpy(out, t->data, count * sizeof *out);
    } else {
        const struct json *v = json_get(object, json);
        if (!v || json_is(v, JSON_NULL)) return NULL;
        if (!json_is(v, JSON_ARRAY) || json_count(v) != count) {
            hp_error(h, "key '%s' is no list of %zu numbers", json, count);
            return NULL;
        }
        const struct json *at = json_child(v);
        for (size_t i = 0; i < count; i++, at = json_next(at)) {
            double value;
            if (!json_double(at, &value)) {
                hp_error(h, "key '%s' holds something that is no number", json);
                return NULL;
            }
            out[i] = (float)value;
        }
    }
    for (size_t i = 0; i < count; i++) {
        if (out[i] > 0 && out[i] < 1e6f) continue;
        hp_error(h, "%s[%zu] is %g", h->gguf ? tensor : json, i, (double)out[i]);
        return NULL;
    }
    return out;
}

bool hp_has_layer_types(const struct hparams *h) {
    return json_is(lookup(h, "layer_types"), JSON_ARRAY);
}

bool hp_layer_type(struct hparams *h, size_t i, const char *kind) {
    const struct json *at = json_child(lookup(h, "layer_types"));
    while (at && i-- > 0) at = json_next(at);
    const char *text = json_string(at, NULL);
    if (!text) hp_error(h, "key 'layer_types' has too few entries");
    return text && strcmp(text, kind) == 0;
}
