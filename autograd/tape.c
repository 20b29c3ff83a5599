// See tape.h.
#include "autograd/tape.h"

#include "autograd/outputs.h"
#include "kernels/alloc.h"

#include <assert.h>
#include <string.h>

enum { AHEAD = 2 };                   // segments fetched before they are needed
#define NOWHERE (SIZE_MAX / 128 * 64) // offset of an operand that must not be read: any access faults

struct value {
    struct tensor tensor;
    int producer, output; // node and which of its outputs; -1 for inputs of the tape
    int consumers;        // nodes that take it as a differentiable input
    int gradient;         // index into gradients, -1 = none
    bool requires_grad;
    bool fresh; // the buffer holds the value (else: re-run the producer first)
};

struct node {
    enum op op;
    int in[OP_MAX_IN], out[OP_MAX_OUT]; // values, -1 = none
    struct tensor saved[OP_MAX_SAVED];
    union op_params params;
    int segment;
    bool recompute; // its outputs are computed again in backward: its segment keeps them not
    bool requires_grad;
};

// A gradient buffer and how many values it is the gradient of: x and r of s = x + r share one.
struct gradient {
    struct tensor tensor;
    int owners;
};

struct tape {
    struct device *device;
    enum dtype dtype;
    bool gradients;
    struct tensor scalars;
    struct value *values;
    int n_values, value_capacity;
    struct node *nodes;
    int n_nodes, node_capacity;
    struct gradient *grads;
    int n_grads, grad_capacity;
    int segment; // running segment, -1 = none
    enum tape_keep keep;
};

struct tape *tape_open(struct device *device, enum dtype dtype, struct error *err) {
    struct tape *tape = mem_zalloc(1, sizeof *tape);
    if (!tape) {
        error_memory(err, "the tape", sizeof *tape);
        return NULL;
    }
    tape->device = device;
    tape->dtype = dtype;
    tape->segment = -1;
    return tape;
}

void tape_close(struct tape *tape) {
    if (!tape) return;
    mem_free(tape->values);
    mem_free(tape->nodes);
    mem_free(tape->grads);
    mem_free(tape);
}

void tape_reset(struct tape *tape, bool gradients) {
    tape->n_values = tape->n_nodes = tape->n_grads = 0;
    tape->gradients = gradients;
    tape->segment = -1;
    tape->keep = TAPE_KEEP_ALL;
}

void tape_set_scalars(struct tape *tape, struct tensor scalars) {
    tape->scalars = scalars;
}

// Room for `more` elements of an array; doubles it.
static int reserve(void **array, int count, int *capacity, int more, size_t size, struct error *err) {
    if (count + more <= *capacity) return 0;
    int grown = *capacity ? 2 * *capacity : 64;
    while (grown < count + more) grown *= 2;
    void *p = mem_resize(*array, (size_t)grown * size);
    if (!p) return error_memory(err, "the tape", (size_t)grown * size);
    *array = p;
    *capacity = grown;
    return 0;
}

static int new_value(struct tape *tape, struct tensor tensor, int producer, int output, struct error *err) {
    if (reserve((void **)&tape->values, tape->n_values, &tape->value_capacity, 1, sizeof *tape->values, err)) return -1;
    tape->values[tape->n_values] =
        (struct value){.tensor = tensor, .producer = producer, .output = output, .gradient = -1, .fresh = true};
    return tape->n_values++;
}

int tape_input(struct tape *tape, struct tensor tensor, struct error *err) {
    return new_value(tape, tensor, -1, 0, err);
}

struct tensor tape_tensor(const struct tape *tape, int value) {
    assert(0 <= value && value < tape->n_values);
    return tape->values[value].tensor;
}

static int acquire(struct tape *tape, int segment, int direction, struct error *err) {
    struct backend *b = tape->device->backend;
    if (b->class->weights_acquire(b, segment, false, err)) return -1;
    for (int i = 1; i <= AHEAD; i++) {
        int next = segment + i * direction;
        if (next <= SEGMENT_RESIDENT || next >= b->n_segments) break;
        if (b->class->weights_acquire(b, next, true, err)) return -1;
    }
    return 0;
}

static int enter(struct tape *tape, int segment, int direction, struct error *err) {
    if (segment == tape->segment) return 0;
    if (tape_segment_done(tape, err)) return -1;
    if (segment > SEGMENT_RESIDENT && acquire(tape, segment, direction, err)) return -1;
    tape->segment = tape->device->segment = segment;
    return 0;
}

int tape_segment(struct tape *tape, int segment, enum tape_keep keep, struct error *err) {
    tape->keep = tape->gradients ? keep : TAPE_KEEP_ALL;
    return enter(tape, segment, 1, err);
}

int tape_segment_done(struct tape *tape, struct error *err) {
    int segment = tape->segment;
    tape->segment = -1;
    if (segment <= SEGMENT_RESIDENT) return 0;
    return tape->device->backend->class->weights_release(tape->device->backend, segment, err);
}

static int make_buffer(struct tape *tape, struct tensor *t, struct error *err) {
    if (!tensor_present(t)) return 0;
    return device_tensor(tape->device, PLAN_ACTIVATION, t->dtype, t->rows, t->cols, t, err);
}

static bool has_trainable(enum op op, const union op_params *p) {
    struct op_trained trained[OP_MAX_TRAINED];
    for (int i = op_trained(op, p, trained) - 1; i >= 0; i--) {
        if (tensor_present(&trained[i].gradient)) return true;
    }
    return false;
}

int tape_record(struct tape *tape, enum op op, const int *in, int n_in, const union op_params *params, int *out,
                struct error *err) {
    const struct op_info *info = &op_table[op];
    assert(info->recorded && n_in <= OP_MAX_IN);
    if (reserve((void **)&tape->nodes, tape->n_nodes, &tape->node_capacity, 1, sizeof *tape->nodes, err)) return -1;
    struct node *node = &tape->nodes[tape->n_nodes];
    *node = (struct node){.op = op, .params = *params, .segment = tape->segment};
    node->recompute = tape->keep == TAPE_KEEP_NONE || (tape->keep == TAPE_KEEP_ATTENTION && op != OP_ATTENTION);
    struct op_call call = {.op = op, .p = *params, .scalars = tape->scalars};
    bool requires = has_trainable(op, params);
    for (int i = 0; i < OP_MAX_IN; i++) {
        node->in[i] = i < n_in ? in[i] : -1;
        if (node->in[i] < 0) continue;
        struct value *v = &tape->values[node->in[i]];
        assert(v->fresh);
        call.in[i] = v->tensor;
        if (info->differentiable >> i & 1) {
            v->consumers++;
            requires |= v->requires_grad;
        }
    }
    node->requires_grad = requires && tape->gradients;
    if (!tape->gradients && op == OP_TOKEN_LOGPROB) call.p.logprob.fused = node->params.logprob.fused = false;
    op_outputs(&call, tape->dtype);
    for (int i = 0; i < OP_MAX_OUT; i++) {
        node->out[i] = -1;
        if (!tensor_present(&call.out[i])) continue;
        if (info->in_place) {
            call.out[i] = call.in[i];
            tape->values[node->in[i]].fresh = false;
        } else if (make_buffer(tape, &call.out[i], err))
            return -1;
        if ((out[i] = node->out[i] = new_value(tape, call.out[i], tape->n_nodes, i, err)) < 0) return -1;
        tape->values[out[i]].requires_grad = node->requires_grad;
    }
    for (int i = 0; i < OP_MAX_SAVED; i++) {
        if (make_buffer(tape, &call.saved[i], err)) return -1;
        node->saved[i] = call.saved[i];
    }
    tape->n_nodes++;
    return device_forward(tape->device, &call, err);
}

// --- backward

// Which inputs a node's backward pass reads. A linear without anything to train reads only its keys.
static unsigned reads_in(const struct node *node) {
    unsigned reads = op_table[node->op].needs_in;
    bool linear = node->op == OP_LINEAR_GROUP || node->op == OP_MOE_LINEAR_GROUP;
    return linear && !has_trainable(node->op, &node->params) ? reads & ~1u : reads;
}

static int ensure(struct tape *tape, int value, struct error *err);

// The operands of a node as a call: values that backward does not read keep their shape but lose their place.
static void operands(const struct tape *tape, const struct node *node, bool all, struct op_call *call) {
    const struct op_info *info = &op_table[node->op];
    *call = (struct op_call){.op = node->op, .p = node->params, .scalars = tape->scalars};
    for (int i = 0; i < OP_MAX_IN; i++) {
        if (node->in[i] < 0) continue;
        const struct value *v = &tape->values[node->in[i]];
        call->in[i] = v->tensor;
        if (!all && !(reads_in(node) >> i & 1)) call->in[i].buffer = 0, call->in[i].offset = NOWHERE;
    }
    for (int i = 0; i < OP_MAX_OUT; i++) {
        if (node->out[i] < 0) continue;
        call->out[i] = tape->values[node->out[i]].tensor;
        if (!all && !(info->needs_out >> i & 1)) call->out[i].buffer = 0, call->out[i].offset = NOWHERE;
    }
    memcpy(call->saved, node->saved, sizeof call->saved);
}

// Makes a node's outputs again. ADD_NORM has a kernel that makes y alone from s, which is kept.
static int rerun(struct tape *tape, struct node *node, struct error *err) {
    struct op_call call;
    if (node->op == OP_ADD_NORM && tape->values[node->out[0]].fresh) {
        struct value *y = &tape->values[node->out[1]];
        if (make_buffer(tape, &y->tensor, err)) return -1;
        y->fresh = true;
        operands(tape, node, true, &call);
        for (int i = 0; i < OP_MAX_IN; i++) call.in[i].buffer = 0, call.in[i].offset = NOWHERE;
        return device_recompute(tape->device, &call, err);
    }
    const struct op_info *info = &op_table[node->op];
    for (int i = 0; i < OP_MAX_IN; i++) {
        if (node->in[i] >= 0 && ensure(tape, node->in[i], err)) return -1;
    }
    for (int i = 0; i < OP_MAX_OUT; i++) {
        if (node->out[i] < 0) continue;
        struct value *v = &tape->values[node->out[i]];
        if (info->in_place) {
            v->tensor = tape->values[node->in[i]].tensor;
            tape->values[node->in[i]].fresh = false;
        } else if (make_buffer(tape, &v->tensor, err))
            return -1;
        v->fresh = true;
    }
    operands(tape, node, true, &call);
    return device_forward(tape->device, &call, err);
}

static int ensure(struct tape *tape, int value, struct error *err) {
    const struct value *v = &tape->values[value];
    return v->fresh ? 0 : rerun(tape, &tape->nodes[v->producer], err);
}

// What forward left behind: cheap outputs and the inner values of recomputed segments are not there any more.
static void forget(struct tape *tape) {
    for (int i = 0; i < tape->n_nodes; i++) {
        const struct node *node = &tape->nodes[i];
        const struct op_info *info = &op_table[node->op];
        for (int k = 0; k < OP_MAX_OUT; k++) {
            if (node->out[k] < 0 || node->in[0] < 0) continue;
            bool cheap = info->cheap && !(node->op == OP_ADD_NORM && k == 0);
            if (cheap || node->recompute) tape->values[node->out[k]].fresh = false;
        }
    }
    for (int i = 0; i < tape->n_nodes; i++) { // read by a later segment: kept after all, unless cheap
        const struct node *node = &tape->nodes[i];
        for (int k = 0; k < OP_MAX_IN; k++) {
            if (node->in[k] < 0) continue;
            struct value *v = &tape->values[node->in[k]];
            if (v->producer < 0) continue;
            const struct node *producer = &tape->nodes[v->producer];
            bool cheap = op_table[producer->op].cheap && !(producer->op == OP_ADD_NORM && v->output == 0);
            if (producer->recompute && producer->segment != node->segment && !cheap) v->fresh = true;
        }
    }
}

static int new_gradient(struct tape *tape, struct tensor t, struct error *err) {
    if (reserve((void **)&tape->grads, tape->n_grads, &tape->grad_capacity, 1, sizeof *tape->grads, err)) return -1;
    tape->grads[tape->n_grads] = (struct gradient){.tensor = t, .owners = 0};
    return tape->n_grads++;
}

static void own(struct tape *tape, struct value *v, int gradient) {
    v->gradient = gradient;
    tape->grads[gradient].owners++;
}

static void disown(struct tape *tape, struct value *v) {
    if (v->gradient >= 0) tape->grads[v->gradient].owners--;
    v->gradient = -1;
}

void tape_seed(struct tape *tape, int value, struct tensor gradient) {
    int g = new_gradient(tape, gradient, NULL);
    if (g >= 0) own(tape, &tape->values[value], g);
}

struct tensor tape_gradient(const struct tape *tape, int value) {
    int g = tape->values[value].gradient;
    return g < 0 ? (struct tensor){0} : tape->grads[g].tensor;
}

// Where the gradient of input i goes: added to what is there; else over a buffer that nobody needs any more; else new.
static int place_gradient(struct tape *tape, struct node *node, int i, struct op_call *call, struct error *err) {
    const struct op_info *info = &op_table[node->op];
    struct value *v = &tape->values[node->in[i]];
    if (v->gradient >= 0) {
        call->acc[i] = true;
        call->grad_in[i] = tape->grads[v->gradient].tensor;
        return 0;
    }
    int from = info->grad_takes_out[i], g = -1;
    // The gradient of a scaled term is another number than that of the sum.
    if (i == 1 && ((node->op == OP_ADD && node->params.add.scale != 1.0f) ||
                   (node->op == OP_ADD_NORM && node->params.norm.scale != 1.0f))) {
        from = -1;
    }
    if (from >= 0 && node->out[from] >= 0) {
        int out_gradient = tape->values[node->out[from]].gradient;
        if (out_gradient >= 0 && tape->grads[out_gradient].owners == 1) g = out_gradient;
        for (int k = 0; k < i && g < 0; k++) { // s = x + r: both gradients are the same numbers
            if (node->in[k] < 0 || info->grad_takes_out[k] != from || call->acc[k]) continue;
            const struct value *other = &tape->values[node->in[k]];
            if (other->gradient >= 0 && other->consumers == 1 && v->consumers == 1) g = other->gradient;
        }
    }
    if (g < 0) {
        struct tensor t = v->tensor;
        bool sole = v->consumers == 1 && v->fresh &&
                    !(v->producer >= 0 && (op_table[tape->nodes[v->producer].op].needs_out >> v->output & 1));
        if (!((info->grad_over_in >> i & 1) && sole)) {
            t.ld = t.cols;
            if (make_buffer(tape, &t, err)) return -1;
        } else
            v->fresh = false;
        if ((g = new_gradient(tape, t, err)) < 0) return -1;
    }
    own(tape, v, g);
    call->grad_in[i] = tape->grads[g].tensor;
    return 0;
}

static int backward_node(struct tape *tape, struct node *node, struct error *err) {
    const struct op_info *info = &op_table[node->op];
    if (node->op == OP_TOKEN_LOGPROB && node->params.logprob.fused) { // forward left the gradient in saved[0]
        struct value *h = &tape->values[node->in[0]];
        assert(h->gradient < 0 && h->consumers == 1);
        int g = new_gradient(tape, node->saved[0], err);
        if (g < 0) return -1;
        own(tape, h, g);
        return 0;
    }
    bool any = false;
    for (int i = 0; i < OP_MAX_OUT; i++) any |= node->out[i] >= 0 && tape->values[node->out[i]].gradient >= 0;
    if (!any) return 0;
    for (int i = 0; i < OP_MAX_IN; i++) {
        if (node->in[i] >= 0 && (reads_in(node) >> i & 1) && ensure(tape, node->in[i], err)) return -1;
    }
    for (int i = 0; i < OP_MAX_OUT; i++) {
        if (node->out[i] >= 0 && (info->needs_out >> i & 1) && ensure(tape, node->out[i], err)) return -1;
    }
    struct op_call call;
    operands(tape, node, false, &call);
    for (int i = 0; i < OP_MAX_OUT; i++) {
        if (node->out[i] >= 0) call.grad_out[i] = tape_gradient(tape, node->out[i]);
    }
    for (int i = 0; i < OP_MAX_IN; i++) {
        if (node->in[i] < 0 || !(info->differentiable >> i & 1) || !tape->values[node->in[i]].requires_grad) continue;
        if (place_gradient(tape, node, i, &call, err)) return -1;
    }
    if (device_backward(tape->device, &call, err)) return -1;
    for (int i = 0; i < OP_MAX_OUT; i++) {
        if (node->out[i] >= 0) disown(tape, &tape->values[node->out[i]]);
    }
    return 0;
}

int tape_backward(struct tape *tape, struct error *err) {
    if (!tape->gradients) return error_set(err, STATUS_INTERNAL, "tape: backward of a tape without gradients");
    forget(tape);
    for (int i = tape->n_nodes - 1; i >= 0; i--) {
        struct node *node = &tape->nodes[i];
        if (!node->requires_grad) continue;
        if (enter(tape, node->segment, -1, err) || backward_node(tape, node, err)) return -1;
    }
    return tape_segment_done(tape, err);
}

int tape_length(const struct tape *tape) {
    return tape->n_nodes;
}

void tape_print(const struct tape *tape, FILE *out) {
    for (int i = 0; i < tape->n_nodes; i++) {
        const struct node *node = &tape->nodes[i];
        fprintf(out, "%4d  seg %2d  %-14s (", i, node->segment, op_table[node->op].name);
        for (int k = 0; k < OP_MAX_IN; k++) {
            if (node->in[k] >= 0) fprintf(out, "%s%%%d", k ? ", " : "", node->in[k]);
        }
        fprintf(out, ") ->");
        for (int k = 0; k < OP_MAX_OUT; k++) {
            if (node->out[k] < 0) continue;
            const struct tensor *t = &tape->values[node->out[k]].tensor;
            fprintf(out, " %%%d %s(%lld, %lld)", node->out[k], dtype_name(t->dtype), (long long)t->rows,
                    (long long)t->cols);
        }
        fprintf(out, "%s%s\n", node->requires_grad ? "  grad" : "", node->recompute ? "  recompute" : "");
    }
}
