// See outputs.h.
#include "autograd/outputs.h"

static struct tensor shape(enum dtype dtype, int64_t rows, int64_t cols) {
    return (struct tensor){.dtype = dtype, .rows = rows, .cols = cols, .ld = cols};
}

void op_outputs(struct op_call *call, enum dtype dtype) {
    int64_t rows = call->in[0].rows, cols = call->in[0].cols; // (T, ...)
    const union op_params *p = &call->p;
    switch (call->op) {
    case OP_EMBED: call->out[0] = shape(dtype, rows, p->embed.w->cols); break;
    case OP_NORM:
    case OP_ADD_NORM:
        call->out[0] = shape(dtype, rows, cols);
        if (call->op == OP_ADD_NORM) call->out[1] = call->out[0];
        call->saved[0] = shape(DTYPE_F32, rows, p->norm.groups);
        if (p->norm.kind == NORM_LAYER) call->saved[1] = call->saved[0];
        break;
    case OP_LINEAR_GROUP:
    case OP_MOE_LINEAR_GROUP: {
        int64_t ranks = 0;
        for (int i = 0; i < p->linear.n_parts; i++) {
            const struct linear_part *part = &p->linear.parts[i];
            call->out[i] = shape(dtype, rows, part->w->rows);
            for (int s = 0; s < part->n_spans; s++) {
                int64_t end = part->spans[s].u_begin + part->spans[s].b.cols;
                if (end > ranks) ranks = end;
            }
        }
        if (ranks) call->saved[0] = shape(DTYPE_F32, rows, ranks);
        break;
    }
    case OP_ROPE:
        call->out[0] = shape(dtype, rows, cols);
        if (tensor_present(&call->in[1])) call->out[1] = shape(dtype, call->in[1].rows, call->in[1].cols);
        break;
    case OP_GLU: call->out[0] = shape(dtype, rows, tensor_present(&call->in[1]) ? cols : cols / 2); break;
    case OP_ACT:
    case OP_GATE:
    case OP_MOE_BALANCE:
    case OP_COLUMNS:
    case OP_ADD: call->out[0] = shape(dtype, rows, cols); break;
    case OP_DROPOUT: call->out[0] = call->out[1] = shape(dtype, rows, cols); break;
    case OP_MLA_KEYS:
        call->out[0] = shape(dtype, rows, p->mla.heads * (p->mla.nope + call->in[1].cols));
        if (p->mla.v_dim > 0) call->out[1] = shape(dtype, rows, (int64_t)p->mla.heads * p->mla.v_dim);
        break;
    case OP_MOE_ROUTE:
        call->out[0] = shape(DTYPE_F32, rows, p->moe.used);
        call->out[1] = shape(DTYPE_I32, rows * p->moe.used, 2);
        call->out[2] = shape(DTYPE_I32, p->moe.experts + 1, 1);
        break;
    case OP_MOE_GATHER:
        call->out[0] = shape(dtype, rows * p->moe_rows.used, cols);
        call->out[1] = shape(DTYPE_U32, rows * p->moe_rows.used, 2);
        break;
    case OP_MOE_COMBINE: call->out[0] = shape(dtype, rows / p->moe_rows.used, cols); break;
    case OP_ATTENTION:
        call->out[0] = shape(dtype, rows, (int64_t)p->attention.heads * p->attention.v_dim);
        call->saved[0] = shape(DTYPE_F32, rows, p->attention.heads);
        break;
    case OP_TOKEN_LOGPROB:
        call->out[0] = call->out[1] = shape(DTYPE_F32, rows, 1);
        if (p->logprob.fused) call->saved[0] = shape(dtype, rows, cols);
        break;
    default: break; // not recorded: its caller gives the outputs
    }
}
