// See inspect.h: bases in folders and parts.
#include "train/inspect.h"

#include "model/checkpoint_packing.h"
#include "train/base_source.h"

#include <stdio.h>
#include <string.h>

int inspect_parts(struct report *r, const char *path, struct error *err) {
    struct base b;
    struct error why = {0};
    if (base_open(path, &b, &why)) {
        if (why.code == STATUS_MEMORY) return error_set(err, why.code, "%s", why.text);
        report_field(r, "parts", why.text); // this one can be looked at all the same
        return 0;
    }
    report_number(r, "parts", (uint64_t)b.n_parts);
    if (b.n_parts > 1) {
        report_number(r, "bytes in all", b.bytes);
        report_number(r, "tensors in all", b.n_tensors);
        report_field(r, "below", "this part alone");
    }
    base_close(&b);
    return 0;
}

// The tensors by what they are stored as.
static void say_types(struct report *r, const struct base *b) {
    uint64_t bytes[ST_DTYPES] = {0}, counts[ST_DTYPES] = {0};
    for (int i = 0; i < b->n_shards; i++) {
        for (size_t k = 0; k < b->shards[i].n_entries; k++) {
            const struct safetensors_entry *e = &b->shards[i].entries[k];
            bytes[e->dtype] += e->bytes, counts[e->dtype]++;
        }
    }
    report_begin(r, "types");
    for (int i = 0; i < ST_DTYPES; i++) report_amount(r, safetensors_dtype_name(i), counts[i], bytes[i]);
    report_end(r);
}

// The weights by the format they are computed in: a packed linear is one of them, with all its tables.
static void say_formats(struct report *r, const struct model *m) {
    uint64_t bytes[QUANT_COUNT] = {0}, counts[QUANT_COUNT] = {0};
    for (int i = 0; i < m->n_weights; i++) {
        const struct weight *w = m->weights[i];
        if (w == m->head && m->arch.tied) continue; // the embedding's bytes
        counts[w->format->id]++;
        bytes[w->format->id] += weight_stored_bytes(w);
    }
    report_begin(r, "weights");
    for (int i = 0; i < QUANT_COUNT; i++) report_amount(r, quant_format(i)->name, counts[i], bytes[i]);
    report_end(r);
}

static void say_model(struct report *r, const struct model *m) {
    char text[200];
    const struct arch *a = &m->arch;
    snprintf(text, sizeof text, "%.60s, %d layers, width %d, vocabulary %d", a->model_type, a->layers, a->width,
             a->vocab);
    report_field(r, "model", text);
    report_number(r, "parameters", m->total_parameters);
    if (m->ignored_tensors) report_number(r, "ignored", m->ignored_tensors);
}

static void say_kind(struct report *r, const struct base *b, const struct packing *packing, bool entry) {
    char name[80];
    report_field(r, "kind",
                 b->kind == BASE_SHAPES ? "config.json without weights"
                 : entry                ? "quantised base of the cache"
                 : packing->method      ? "packed checkpoint"
                                        : "checkpoint");
    if (!packing->method) return;
    packing_name(packing, name);
    report_field(r, "packing", name);
}

int inspect_base(struct report *r, const char *path, struct error *err) {
    struct base b;
    struct model m;
    struct packing packing = {0};
    struct error why = {0}, damage = {0};
    bool entry = false;
    if (base_open(path, &b, err)) return -1;
    packing_read(b.config.root, path, &packing, &why); // said again by model_open
    if (file_is_folder(path)) base_source_check_entry(path, &entry, &damage);
    say_kind(r, &b, &packing, entry);
    if (entry) report_field(r, "verified", damage.code ? damage.text : "as it was written");
    why = (struct error){0};
    bool opened = model_open(path, NULL, &m, &why) == 0;
    if (opened)
        say_model(r, &m);
    else
        report_field(r, "unusable", why.text);
    if (b.kind == BASE_SAFETENSORS) {
        report_number(r, "files", (uint64_t)b.n_shards);
        report_number(r, "bytes", b.bytes);
        report_number(r, "tensors", b.n_tensors);
        say_types(r, &b);
        if (opened) say_formats(r, &m);
    }
    if (r->tensors && b.kind == BASE_SAFETENSORS) {
        report_begin(r, "tensor list");
        for (int i = 0; i < b.n_shards; i++) {
            for (size_t k = 0; k < b.shards[i].n_entries; k++) {
                const struct safetensors_entry *e = &b.shards[i].entries[k];
                struct text value = {0};
                text_add(&value, safetensors_dtype_name(e->dtype));
                for (int d = 0; d < e->n_dims; d++)
                    text_printf(&value, "%s%lld", d ? " x " : " ", (long long)e->shape[d]);
                report_field(r, e->name, text_str(&value));
                text_free(&value);
            }
        }
        report_end(r);
    }
    if (opened) model_close(&m);
    base_close(&b);
    return 0;
}
