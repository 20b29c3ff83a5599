// See step.h.
#include "train/step.h"

#include <stdio.h>

// The groups of peft.optimizers.create_loraplus_optimizer: A gets the learning rate; B, magnitudes and biases that
// times lr_ratio_b; LoRA on the embedding its own. As in transformers, biases do not decay.
static struct param_group group_of(const struct step_options *o, const struct adapter_module *m,
                                   enum adapter_part part) {
    bool second = part == ADAPTER_B || part == ADAPTER_MAGNITUDE || part == ADAPTER_BIAS;
    bool embedding = m->module->form == MODULE_EMBEDDING && m->r > 0;
    return (struct param_group){.lr_ratio = embedding ? o->lr_ratio_embedding
                                            : second  ? o->lr_ratio_b
                                                      : 1,
                                .weight_decay = part == ADAPTER_BIAS ? 0 : o->weight_decay};
}

// Alike neighbours are one group.
static int make_groups(struct step_engine *e, struct error *err) {
    const struct adapter *adapter = e->lora->adapter;
    int n = ADAPTER_PARTS * adapter->n_modules;
    e->groups = mem_zalloc((size_t)n + 1, sizeof *e->groups);
    if (!e->groups) return error_memory(err, "parameter groups", (size_t)n * sizeof *e->groups);
    int64_t at = 0;
    for (int i = 0; i < n; i++) {
        enum adapter_part part = i % ADAPTER_PARTS;
        int64_t size = adapter_part_size(&adapter->modules[i / ADAPTER_PARTS], part);
        struct param_group group = group_of(&e->options, &adapter->modules[i / ADAPTER_PARTS], part);
        struct param_group *last = e->n_groups ? &e->groups[e->n_groups - 1] : NULL;
        if (size == 0) continue;
        group.begin = at, group.end = at += size;
        if (last && last->lr_ratio == group.lr_ratio && last->weight_decay == group.weight_decay)
            last->end = at;
        else
            e->groups[e->n_groups++] = group;
    }
    return 0;
}

int step_open(struct session *session, struct lora *lora, const struct step_options *options, struct step_engine *out,
              struct error *err) {
    *out = (struct step_engine){.session = session, .lora = lora, .options = *options};
    return make_groups(out, err);
}

void step_close(struct step_engine *e) {
    mem_free(e->groups);
    *e = (struct step_engine){0};
}

static int program(struct step_engine *e, int32_t rows, int32_t max_seqs, struct error *err) {
    struct decoder *d = &e->session->decoder;
    struct device *device = &e->session->device;
    struct pass pass = {.gradients = true,
                        .training = true,
                        .neftune_alpha = e->options.neftune_alpha,
                        .checkpoint_layers = e->options.checkpoint_layers,
                        .keep_attention = e->options.keep_attention,
                        .balance = e->options.balance,
                        .n_spans = 1,
                        .spans = {{0, rows, e->lora->number}}};
    bool summed = e->lora->sum.buffer != e->lora->grads.buffer;
    char name[32];
    snprintf(name, sizeof name, "train %d", rows);
    if (plan_begin(device->plan, name, err)) return -1;
    if (summed && device_fill(device, e->lora->grads, 0, err)) return -1;
    if (decoder_score(d, &pass, rows, max_seqs, NULL, err) || tape_backward(d->tape, err)) return -1;
    if (summed) {
        struct op_call call = {.op = OP_GRAD_ADD, .in = {e->lora->grads}, .out = {e->lora->sum}};
        if (device_forward(device, &call, err)) return -1;
    }
    return plan_end(device->plan, err);
}

static int update(struct step_engine *e, struct error *err) {
    struct device *device = &e->session->device;
    const struct lora *lora = e->lora;
    if (plan_begin(device->plan, "update", err)) return -1;
    struct op_call norm = {.op = OP_GRAD_NORM, .in = {lora->sum}, .scalars = e->session->decoder.scalars};
    if (device_forward(device, &norm, err)) return -1;
    struct op_call adamw = {.op = OP_ADAMW,
                            .in = {lora->sum},
                            .out = {lora->params, lora->m, lora->v},
                            .scalars = e->session->decoder.scalars,
                            .p.adamw = {.beta1 = e->options.beta1,
                                        .beta2 = e->options.beta2,
                                        .eps = e->options.eps,
                                        .n_groups = e->n_groups,
                                        .groups = e->groups}};
    if (device_forward(device, &adamw, err)) return -1;
    return plan_end(device->plan, err);
}

static int clear(struct step_engine *e, struct error *err) {
    struct plan *plan = e->session->device.plan;
    return plan_begin(plan, "begin", err) || device_fill(&e->session->device, e->lora->sum, 0, err) ||
                   plan_end(plan, err)
               ? -1
               : 0;
}

int step_record(struct step_engine *e, const int32_t *buckets, int n_buckets, int32_t max_seqs, struct error *err) {
    if (clear(e, err)) return -1;
    for (int i = 0; i < n_buckets; i++) {
        if (program(e, buckets[i], max_seqs, err)) return -1;
    }
    return update(e, err);
}

int step_begin(struct step_engine *e, int64_t step, int64_t micro_batches, double lr, double weight,
               struct error *err) {
    e->aux_sum = 0, e->micro_batches = micro_batches;
    struct step_scalars scalars = {.lr = lr,
                                   .step = (double)(step + 1),
                                   .denominator = weight,
                                   .max_grad_norm = e->options.max_grad_norm,
                                   .seed = e->options.seed,
                                   .random_step = (uint32_t)step,
                                   .micro_batches = (uint32_t)micro_batches};
    if (device_write(&e->session->device, e->session->decoder.scalars, &scalars, sizeof scalars, err)) return -1;
    return clear(e, err);
}

int step_micro(struct step_engine *e, const struct batch *batch, struct error *err) {
    struct decoder *d = &e->session->decoder;
    double aux = 0;
    if (decoder_load(d, batch, err) || program(e, batch->rows, batch->max_seqs, err)) return -1;
    if (e->options.balance > 0 && decoder_balance(d, &aux, err)) return -1;
    e->aux_sum += aux;
    return 0;
}

int step_end(struct step_engine *e, struct step_result *result, struct error *err) {
    struct step_scalars s;
    if (update(e, err) || lora_refresh(e->lora, err)) return -1;
    if (device_read(&e->session->device, &s, e->session->decoder.scalars, sizeof s, err)) return -1;
    *result = (struct step_result){.loss = s.weight_sum > 0 ? s.loss_sum / s.weight_sum : 0,
                                   .aux_loss = e->aux_sum / (double)e->micro_batches,
                                   .weight = s.weight_sum,
                                   .grad_norm = s.grad_norm,
                                   .nonfinite = s.nonfinite != 0};
    return 0;
}
