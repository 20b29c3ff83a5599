// See shape_plan.h.
#include "train/shape_plan.h"

#include "adapters/lora.h"
#include "data/json.h"
#include "train/trainer.h"

#include <math.h>

enum { ROW_MULTIPLE = 64 }; // as the loader rounds micro-batches

int shape_plan_applies(const struct run_config *c, bool *applies, struct error *err) {
    struct base base;
    struct base_source source = base_source_of(c);
    struct pool pool = {0};
    const char *path;
    *applies = false;
    int status = base_source_find(&source, &pool, &path, err) || base_open(path, &base, err) ? -1 : 0;
    if (status == 0) *applies = base.kind == BASE_SHAPES;
    if (status == 0) base_close(&base);
    pool_free(&pool);
    return status;
}

static int open_model(const struct base_source *source, struct model *model, struct error *err) {
    struct pool pool = {0};
    const char *path;
    int status = base_source_find(source, &pool, &path, err) || model_open(path, source->name, model, err) ? -1 : 0;
    pool_free(&pool);
    return status;
}

static int open_shapes(const struct run_config *c, struct shape_plan *p, struct error *err) {
    struct session *s = &p->session;
    struct text notice = {0};
    // A plan needs no GPU: one that is asked for is planned for.
    s->options = (struct session_options){.base = base_source_of(c), .threads = (int)c->threads};
    if (c->device == CONFIG_DEVICE_CUDA)
        s->options.device = DEVICE_CUDA;
    else if (session_device(c->device, &s->options.device, &notice, err))
        return -1;
    s->options.dtype = session_dtype(c->precision, s->options.device, &notice);
    text_free(&notice); // about this machine, which need not be the one that trains
    s->threads = s->options.threads > 0 ? s->options.threads : cpu_count_available();
    if (open_model(&s->options.base, &s->model, err)) return -1;
    base_sizes_count(&s->model, &p->base);
    if (c->lora_model_dir)
        return error_set(err, STATUS_CONFIG,
                         "lora_model_dir: %s is a config.json without weights, and a plan from shapes alone reads no "
                         "adapter; give lora_r and lora_target_modules",
                         c->base_model);
    if (c->base_must_be_quantised && !p->base.packed)
        return error_set(err, STATUS_CONFIG, "adapter: qlora needs load_in_4bit: true for %s, whose weights are bf16",
                         c->base_model);
    p->storage = p->base.packed                                    ? STORAGE_PACKED // stays as it is
                 : c->load_in_8bit                                 ? STORAGE_INT8
                 : c->load_in_4bit && c->bnb_4bit_use_double_quant ? STORAGE_NF4_DOUBLE
                 : c->load_in_4bit                                 ? STORAGE_NF4
                                                                   : STORAGE_BF16;
    p->experts = c->quantize_moe_experts;
    return 0;
}

// One training step at its full size, over a device that computes nothing.
static int record_step(const struct run_config *c, struct shape_plan *p, bool checkpoints, struct error *err) {
    struct session *s = &p->session;
    struct shape_memory *out = &p->memory[checkpoints];
    struct lora lora = {0};
    struct step_engine engine = {0};
    struct decoder_limits limits = {
        .max_rows = (int32_t)p->rows, .max_seqs = (int32_t)p->sequences, .max_positions = (int32_t)c->sequence_len + 1};
    struct step_options options = {.accumulate = (int)c->gradient_accumulation_steps,
                                   .neftune_alpha = (float)fmax(0, c->neftune_noise_alpha),
                                   .checkpoint_layers = checkpoints ? s->model.arch.layers : 0,
                                   .keep_attention = c->selective_checkpointing,
                                   .max_grad_norm = c->max_grad_norm,
                                   .lr_ratio_b = (float)(c->loraplus_lr_ratio > 0 ? c->loraplus_lr_ratio : 1)};
    int32_t bucket = (int32_t)p->rows;
    int failed = session_record(s, &limits, err) ||
                 lora_attach(&s->decoder, &p->adapter, 0, true, options.accumulate > 1, &lora, err) ||
                 step_open(s, &lora, &options, &engine, err) || step_record(&engine, &bucket, 1, limits.max_seqs, err);
    if (!failed) {
        out->flops_per_token = s->device.flops / (double)p->rows;
        p->trainable = lora.n_params;
        failed = plan_seal(s->device.plan, err);
    }
    if (!failed) {
        plan_class_bytes(s->device.plan, out->classes);
        out->arena = plan_arena_bytes(s->device.plan);
    }
    step_close(&engine);
    session_forget(s);
    return failed ? -1 : 0;
}

static int make(const struct run_config *c, struct shape_plan *p, struct error *err) {
    if (open_shapes(c, p, err) || outline_adapter(c, &p->session.model, &p->adapter, err)) return -1;
    int64_t rows = c->micro_batch_size * c->sequence_len;
    p->rows = (rows + ROW_MULTIPLE - 1) / ROW_MULTIPLE * ROW_MULTIPLE;
    if (p->rows > INT32_MAX / 2)
        return error_set(err, STATUS_CONFIG, "micro_batch_size %lld x sequence_len %lld is too large a micro-batch",
                         (long long)c->micro_batch_size, (long long)c->sequence_len);
    p->sequences = c->micro_batch_size; // rows that one document fills: the most work that attention can have
    if (record_step(c, p, false, err) || record_step(c, p, true, err)) return -1;
    p->checkpoints = c->gradient_checkpointing == CONFIG_TRUE;
    if (c->gradient_checkpointing == CONFIG_AUTO) p->checkpoints = shape_plan_peak(p, false) > memory_available();
    return 0;
}

int shape_plan_make(const struct run_config *config, struct shape_plan *out, struct error *err) {
    *out = (struct shape_plan){0};
    if (make(config, out, err) == 0) return 0;
    shape_plan_free(out);
    return -1;
}

void shape_plan_free(struct shape_plan *p) {
    adapter_free(&p->adapter);
    session_close(&p->session);
    *p = (struct shape_plan){0};
}

uint64_t shape_plan_base(const struct shape_plan *p, enum base_storage storage) {
    return base_sizes_bytes(&p->base, storage, p->experts);
}

uint64_t shape_plan_peak(const struct shape_plan *p, bool checkpoints) {
    return shape_plan_base(p, p->storage) + p->memory[checkpoints].arena;
}

// --- what is printed

static void memory_json(const struct shape_plan *p, bool checkpoints, struct json_writer *w) {
    const struct shape_memory *m = &p->memory[checkpoints];
    json_put_key(w, "peak_bytes");
    json_put_int(w, (int64_t)shape_plan_peak(p, checkpoints));
    json_put_key(w, "classes");
    json_begin_object(w);
    json_put_key(w, "base");
    json_put_int(w, (int64_t)shape_plan_base(p, p->storage));
    for (int i = 0; i < PLAN_CLASS_COUNT; i++) {
        json_put_key(w, plan_class_name(i));
        json_put_int(w, (int64_t)m->classes[i]);
    }
    json_end_object(w);
    json_put_key(w, "flops_per_token");
    json_put_int(w, llround(m->flops_per_token));
}

void shape_plan_json(const struct shape_plan *p, struct text *out) {
    struct json_writer w = {.out = out, .style = JSON_PRETTY};
    json_begin_object(&w);
    memory_json(p, p->checkpoints, &w);
    json_put_key(&w, "trainable_parameters");
    json_put_int(&w, p->trainable);
    json_put_key(&w, "total_parameters");
    json_put_int(&w, (int64_t)p->session.model.total_parameters);
    json_put_key(&w, "base_format");
    json_put_string(&w, p->base.packed ? p->base.packed_name : base_storage_name(p->storage));
    json_put_key(&w, "base_bytes");
    json_begin_object(&w);
    for (int s = 0; s < STORAGE_COUNT; s++) {
        if (s == STORAGE_PACKED && !p->base.packed) continue;
        json_put_key(&w, base_storage_name(s));
        json_put_int(&w, (int64_t)shape_plan_base(p, (enum base_storage)s));
    }
    json_end_object(&w);
    json_put_key(&w, "gradient_checkpointing");
    json_begin_object(&w);
    for (int i = 0; i < 2; i++) {
        json_put_key(&w, i ? "true" : "false");
        json_begin_object(&w);
        memory_json(p, i, &w);
        json_end_object(&w);
    }
    json_end_object(&w);
    json_end_object(&w);
    text_char(out, '\n');
}

// Small models are told in MiB, others in GiB.
struct unit {
    const char *name;
    double bytes;
};

static void put_row(const char *name, uint64_t without, uint64_t with, struct unit u, struct text *out) {
    text_printf(out, "  %-40s %12.2f %10.2f\n", name, (double)without / u.bytes, (double)with / u.bytes);
}

void shape_plan_text(const struct shape_plan *p, struct text *out) {
    const struct model *m = &p->session.model;
    const struct shape_memory *without = &p->memory[false], *with = &p->memory[true];
    double total = (double)m->total_parameters;
    uint64_t base = shape_plan_base(p, p->storage), large = (uint64_t)4 << 30;
    struct unit u = shape_plan_peak(p, false) < large ? (struct unit){"MiB", 0x1p20} : (struct unit){"GiB", 0x1p30};
    text_printf(out, "base        %s: %s, shapes without weights, %.3f M parameters\n", m->name, m->arch.model_type,
                total / 1e6);
    text_printf(out, "            linears %.3f M, embedding and head %.3f M, norms, biases and routers %.3f M\n",
                (double)p->base.linears / 1e6, (double)p->base.ends / 1e6, (double)p->base.others / 1e6);
    text_printf(out, "adapter     %lld trainable parameters on %d modules, %.4f %% of all\n", (long long)p->trainable,
                adapter_count_adapted(&p->adapter), 100 * (double)p->trainable / (total + (double)p->trainable));
    text_printf(out, "step        %lld tokens a micro-batch, %s, %d threads; data is not read\n\n", (long long)p->rows,
                dtype_name(p->session.options.dtype), p->session.threads);
    text_printf(out, "base held as                        %s\n", u.name);
    for (int s = 0; s < STORAGE_COUNT; s++) {
        if (s == STORAGE_PACKED && !p->base.packed) continue;
        text_printf(out, "  %-30s %9.2f%s\n", s == STORAGE_PACKED ? p->base.packed_name : base_storage_name(s),
                    (double)shape_plan_base(p, (enum base_storage)s) / u.bytes,
                    s == (int)p->storage ? "  <- this configuration" : "");
    }
    if (!p->experts && !p->base.packed && p->base.stacked[STORAGE_BF16] > 0)
        text_printf(out,
                    "  experts lie in one tensor: load_in_4bit and load_in_8bit leave their %.2f %s in 16 bits unless "
                    "quantize_moe_experts: true\n",
                    (double)p->base.stacked[STORAGE_BF16] / u.bytes, u.name);
    text_printf(out, "\nmemory at the peak, %s; gradient_checkpointing:  false%s      true%s\n", u.name,
                p->checkpoints ? " " : "*", p->checkpoints ? "*" : "");
    put_row("base", base, base, u, out);
    for (int i = 0; i < PLAN_CLASS_COUNT; i++) {
        if (without->classes[i] || with->classes[i])
            put_row(plan_class_name(i), without->classes[i], with->classes[i], u, out);
    }
    put_row("peak", shape_plan_peak(p, false), shape_plan_peak(p, true), u, out);
    text_printf(out, "  %-40s %12.2f %10.2f\n", "GFLOP per token", without->flops_per_token / 1e9,
                with->flops_per_token / 1e9);
    text_add(out, "* this configuration. Not counted: program and data, evaluation, generation.\n");
}
