// See gpu_rows.h. Memory-bound passes: a thread moves 16 bytes of each operand where addresses allow it, else one
// element.
#include "kernels/cuda/gpu_rows.h"

#include "kernels/cuda/launch.cuh"

namespace {

enum { BLOCK = 256 };

// --- a pass over a (rows, cols) shape: f(row, col) handles N columns from col on
template <int N, class F> __global__ void pass_kernel(int64_t rows, int64_t cols, F f) {
    int64_t packs = cols / N, i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (i < rows * packs) f.template run<N>(i / packs, i % packs * N);
}

template <class T> constexpr int WIDE = 16 / (int)sizeof(T);

template <class T, class F> void pass(const struct gpu *g, int64_t rows, int64_t cols, bool wide, const F &f) {
    constexpr int N = WIDE<T>;
    if (rows == 0 || cols == 0) return;
    if (wide && cols % N == 0)
        LAUNCH((pass_kernel<N, F>), blocks_for(rows * (cols / N), BLOCK), BLOCK, 0, g->stream, rows, cols, f);
    else
        LAUNCH((pass_kernel<1, F>), blocks_for(rows * cols, BLOCK), BLOCK, 0, g->stream, rows, cols, f);
}

template <int N, class T> __device__ pack<T, N> load(const matrix<T> &m, int64_t r, int64_t c) {
    return *reinterpret_cast<const pack<T, N> *>(m.row(r) + c);
}
template <int N, class T> __device__ void store(const matrix<T> &m, int64_t r, int64_t c, const pack<T, N> &v) {
    *reinterpret_cast<pack<T, N> *>(m.row(r) + c) = v;
}
// Gradients of N neighbours: stored, or added to what is there.
template <int N, class T>
__device__ void store_gradient(const matrix<T> &m, int64_t r, int64_t c, const float *x, bool acc) {
    pack<T, N> v;
    if (acc) v = load<N>(m, r, c);
    for (int i = 0; i < N; i++) v.v[i] = from_float<T>(acc ? to_float(v.v[i]) + x[i] : x[i]);
    store<N>(m, r, c, v);
}
template <class T> bool wide(const matrix<T> &m) {
    return !m.p || aligned<WIDE<T>>(m);
}

// --- sums

template <class T> struct add_pass {
    matrix<T> x, r, s;
    float scale;
    template <int N> __device__ void run(int64_t row, int64_t col) const {
        pack<T, N> a = load<N>(x, row, col), b = load<N>(r, row, col);
        for (int i = 0; i < N; i++) a.v[i] = from_float<T>(fmaf(scale, to_float(b.v[i]), to_float(a.v[i])));
        store<N>(s, row, col, a);
    }
};

// to (+)= scale from
template <class T> struct scaled_pass {
    matrix<T> from, to;
    float scale;
    bool acc;
    template <int N> __device__ void run(int64_t row, int64_t col) const {
        pack<T, N> a = load<N>(from, row, col);
        float x[N];
        for (int i = 0; i < N; i++) x[i] = scale * to_float(a.v[i]);
        store_gradient<N>(to, row, col, x, acc);
    }
};

template <class T> void add_forward(const struct gpu *g, const struct op_call *call) {
    add_pass<T> p = {matrix_of<T>(g, &call->in[0]), matrix_of<T>(g, &call->in[1]), matrix_of<T>(g, &call->out[0]),
                     call->p.add.scale};
    pass<T>(g, p.x.rows, p.x.cols, wide(p.x) && wide(p.r) && wide(p.s), p);
}

bool same_place(const struct tensor *a, const struct tensor *b) {
    return a->dtype != DTYPE_NONE && b->dtype != DTYPE_NONE && a->offset == b->offset;
}

template <class T> void add_backward(const struct gpu *g, const struct op_call *call) {
    for (int i = 0; i < 2; i++) {
        const struct tensor *to = &call->grad_in[i];
        if (to->dtype == DTYPE_NONE || same_place(to, &call->grad_out[0])) continue;
        if (i == 1 && same_place(&call->grad_in[0], to)) continue;
        scaled_pass<T> p = {matrix_of<T>(g, &call->grad_out[0]), matrix_of<T>(g, to), i ? call->p.add.scale : 1,
                            call->acc[i]};
        pass<T>(g, p.from.rows, p.from.cols, wide(p.from) && wide(p.to), p);
    }
}

// --- activations

struct act_params {
    enum act_kind kind;
    float limit, alpha;
};

// f(x) and its derivative.
__device__ float activation(const act_params &a, float x, float *slope) {
    const float c = 0.79788456080286536f, cubic = 0.044715f; // c = sqrt(2 / pi)
    switch (a.kind) {
    case ACT_SILU: {
        float s = 1 / (1 + expf(-x));
        *slope = s * fmaf(x, 1 - s, 1.0f);
        return x * s;
    }
    case ACT_GELU_TANH: {
        float t = tanhf(c * fmaf(cubic * x * x, x, x));
        *slope = 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * c * fmaf(3 * cubic * x, x, 1.0f);
        return 0.5f * x * (1 + t);
    }
    case ACT_GELU: {
        float s = 0.5f * (1 + erff(x * 0.70710678118654752f));
        *slope = fmaf(x * (c / 2), expf(-x * x / 2), s);
        return x * s;
    }
    case ACT_CLAMP: *slope = fabsf(x) <= a.limit; return isnan(x) ? x : fmaxf(-a.limit, fminf(a.limit, x));
    case ACT_SWIGLU_CLAMPED: break;
    }
    return *slope = NAN;
}

// f(gate, up) and its two derivatives.
__device__ float gated(const act_params &a, float gate, float up, float *by_gate, float *by_up) {
    float slope;
    if (a.kind != ACT_SWIGLU_CLAMPED) {
        float value = activation(a, gate, &slope);
        *by_gate = up * slope, *by_up = value;
        return value * up;
    }
    bool inside = gate <= a.limit, up_inside = fabsf(up) <= a.limit;
    gate = isnan(gate) ? gate : fminf(gate, a.limit);
    up = isnan(up) ? up : fmaxf(-a.limit, fminf(a.limit, up));
    float s = 1 / (1 + expf(-a.alpha * gate));
    *by_gate = inside ? (up + 1) * s * fmaf(a.alpha * gate, 1 - s, 1.0f) : 0;
    *by_up = up_inside ? gate * s : 0;
    return gate * s * (up + 1);
}

act_params params_of(const struct op_call *call) {
    return {call->p.act.kind, call->p.act.limit, call->p.act.alpha};
}

template <class T> struct glu_pass {
    matrix<T> gate, up, h;
    act_params act;
    template <int N> __device__ void run(int64_t row, int64_t col) const {
        pack<T, N> a = load<N>(gate, row, col), b = load<N>(up, row, col);
        float unused, other;
        for (int i = 0; i < N; i++)
            a.v[i] = from_float<T>(gated(act, to_float(a.v[i]), to_float(b.v[i]), &unused, &other));
        store<N>(h, row, col, a);
    }
};

template <class T> struct glu_backward_pass { // the gradients may lie over gate and up
    matrix<T> gate, up, dh, dgate, dup;
    act_params act;
    bool acc_gate, acc_up;
    template <int N> __device__ void run(int64_t row, int64_t col) const {
        pack<T, N> a = load<N>(gate, row, col), b = load<N>(up, row, col), d = load<N>(dh, row, col);
        float by_gate[N], by_up[N];
        for (int i = 0; i < N; i++) {
            gated(act, to_float(a.v[i]), to_float(b.v[i]), &by_gate[i], &by_up[i]);
            by_gate[i] *= to_float(d.v[i]), by_up[i] *= to_float(d.v[i]);
        }
        if (dgate.p) store_gradient<N>(dgate, row, col, by_gate, acc_gate);
        if (dup.p) store_gradient<N>(dup, row, col, by_up, acc_up);
    }
};

// gate in even columns, up in odd ones
template <class T> struct alternating_pass {
    matrix<T> x, h, dh, dx;
    act_params act;
    bool acc;
    template <int N> __device__ void run(int64_t row, int64_t col) const {
        for (int i = 0; i < N; i++) {
            int64_t c = col + i;
            float by_gate, by_up;
            float value = gated(act, to_float(x.at(row, 2 * c)), to_float(x.at(row, 2 * c + 1)), &by_gate, &by_up);
            if (h.p) h.at(row, c) = from_float<T>(value);
            if (!dx.p) continue;
            float d = to_float(dh.at(row, c));
            put_gradient(&dx.at(row, 2 * c), by_gate * d, acc);
            put_gradient(&dx.at(row, 2 * c + 1), by_up * d, acc);
        }
    }
};

template <class T> void glu_forward(const struct gpu *g, const struct op_call *call) {
    matrix<T> gate = matrix_of<T>(g, &call->in[0]), up = matrix_of<T>(g, &call->in[1]),
              h = matrix_of<T>(g, &call->out[0]);
    if (up.p)
        pass<T>(g, h.rows, h.cols, wide(gate) && wide(up) && wide(h), glu_pass<T>{gate, up, h, params_of(call)});
    else
        pass<T>(g, h.rows, h.cols, false, alternating_pass<T>{gate, h, {}, {}, params_of(call), false});
}

template <class T> void glu_backward(const struct gpu *g, const struct op_call *call) {
    matrix<T> gate = matrix_of<T>(g, &call->in[0]), up = matrix_of<T>(g, &call->in[1]);
    matrix<T> dh = matrix_of<T>(g, &call->grad_out[0]), dgate = matrix_of<T>(g, &call->grad_in[0]);
    matrix<T> dup = matrix_of<T>(g, &call->grad_in[1]);
    if (up.p)
        pass<T>(g, dh.rows, dh.cols, wide(gate) && wide(up) && wide(dh) && wide(dgate) && wide(dup),
                glu_backward_pass<T>{gate, up, dh, dgate, dup, params_of(call), call->acc[0], call->acc[1]});
    else
        pass<T>(g, dh.rows, dh.cols, false, alternating_pass<T>{gate, {}, dh, dgate, params_of(call), call->acc[0]});
}

template <class T> struct act_pass {
    matrix<T> x, y;
    act_params act;
    template <int N> __device__ void run(int64_t row, int64_t col) const {
        pack<T, N> a = load<N>(x, row, col);
        float unused;
        for (int i = 0; i < N; i++) a.v[i] = from_float<T>(activation(act, to_float(a.v[i]), &unused));
        store<N>(y, row, col, a);
    }
};

template <class T> struct act_backward_pass {
    matrix<T> x, dy, dx;
    act_params act;
    bool acc;
    template <int N> __device__ void run(int64_t row, int64_t col) const {
        pack<T, N> a = load<N>(x, row, col), d = load<N>(dy, row, col);
        float v[N];
        for (int i = 0; i < N; i++) {
            activation(act, to_float(a.v[i]), &v[i]);
            v[i] *= to_float(d.v[i]);
        }
        store_gradient<N>(dx, row, col, v, acc);
    }
};

template <class T> void act_forward(const struct gpu *g, const struct op_call *call) {
    act_pass<T> p = {matrix_of<T>(g, &call->in[0]), matrix_of<T>(g, &call->out[0]), params_of(call)};
    pass<T>(g, p.x.rows, p.x.cols, wide(p.x) && wide(p.y), p);
}

template <class T> void act_backward(const struct gpu *g, const struct op_call *call) {
    act_backward_pass<T> p = {matrix_of<T>(g, &call->in[0]), matrix_of<T>(g, &call->grad_out[0]),
                              matrix_of<T>(g, &call->grad_in[0]), params_of(call), call->acc[0]};
    if (p.dx.p) pass<T>(g, p.x.rows, p.x.cols, wide(p.x) && wide(p.dy) && wide(p.dx), p);
}

// --- rope: a thread turns one pair, or lets one dim pass through

template <class T> struct rope_args {
    matrix<T> x[2], y[2];
    matrix<int32_t> positions;
    matrix<float> table; // row p = cosines, then sines
    int64_t heads[2];    // of x[0], x[1]
    int head_dim, half, first;
    bool neox, acc[2];
    float direction;
    unsigned long long *faults;
};

template <class T> __global__ void rope_kernel(rope_args<T> a) {
    int64_t items = a.half + (a.head_dim - 2 * a.half), heads = a.heads[0] + a.heads[1];
    int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (i >= a.positions.rows * heads * items) return;
    int64_t row = i / (heads * items), head = i / items % heads;
    int j = (int)(i % items), which = head >= a.heads[0];
    if (which) head -= a.heads[0];
    const T *x = a.x[which].row(row) + head * a.head_dim;
    T *y = a.y[which].row(row) + head * a.head_dim;
    bool acc = a.acc[which];
    if (j >= a.half) { // the dims before and behind those that turn
        int d = j - a.half < a.first ? j - a.half : j + a.half;
        if (x != y) put_gradient(&y[d], to_float(x[d]), acc);
        return;
    }
    int64_t p = a.positions.at(row, 0);
    bool known = p >= 0 && p < a.table.rows;
    if (!known && j == 0 && head == 0) raise_fault(a.faults, FAULT_POSITION, row, (int32_t)p);
    float cosine = known ? a.table.at(p, j) : NAN, sine = known ? a.direction * a.table.at(p, a.half + j) : NAN;
    int low = a.first + (a.neox ? j : 2 * j), high = a.first + (a.neox ? j + a.half : 2 * j + 1);
    float xa = to_float(x[low]), xb = to_float(x[high]);
    put_gradient(&y[low], fmaf(xa, cosine, -(xb * sine)), acc);
    put_gradient(&y[high], fmaf(xb, cosine, xa * sine), acc);
}

template <class T> void rope(const struct gpu *g, const struct op_call *call, bool backward) {
    rope_args<T> a = {};
    a.faults = g->faults;
    a.positions = matrix_of<int32_t>(g, &call->in[2]), a.table = matrix_of<float>(g, &call->in[3]);
    a.head_dim = call->p.rope.head_dim, a.half = call->p.rope.rotary_dim / 2, a.first = call->p.rope.first;
    a.neox = call->p.rope.kind == ROPE_NEOX, a.direction = backward ? -1 : 1;
    for (int i = 0; i < 2; i++) {
        const struct tensor *from = backward ? &call->grad_out[i] : &call->in[i];
        const struct tensor *to = backward ? &call->grad_in[i] : &call->out[i];
        if (call->in[i].dtype == DTYPE_NONE || from->dtype == DTYPE_NONE || to->dtype == DTYPE_NONE) continue;
        a.x[i] = matrix_of<T>(g, from), a.y[i] = matrix_of<T>(g, to);
        a.heads[i] = from->cols / a.head_dim, a.acc[i] = backward && call->acc[i];
    }
    int64_t items = a.positions.rows * (a.heads[0] + a.heads[1]) * (a.head_dim - a.half);
    if (items) LAUNCH((rope_kernel<T>), blocks_for(items, BLOCK), BLOCK, 0, g->stream, a);
}

// --- copies

template <class A, class B> struct convert_pass {
    matrix<A> from;
    matrix<B> to;
    template <int N> __device__ void run(int64_t row, int64_t col) const {
        pack<A, N> a = load<N>(from, row, col);
        pack<B, N> b;
        for (int i = 0; i < N; i++) b.v[i] = from_float<B>(to_float(a.v[i]));
        store<N>(to, row, col, b);
    }
};

template <class A, class B>
void convert(const struct gpu *g, const void *from, int64_t from_ld, void *to, int64_t to_ld, int64_t rows,
             int64_t cols) {
    convert_pass<A, B> p = {{(A *)from, rows, cols, from_ld}, {(B *)to, rows, cols, to_ld}};
    constexpr int N = WIDE<float>; // both sides move as many elements
    bool both = aligned<N>(p.from) && aligned<N>(p.to);
    pass<float>(g, rows, cols, both, p);
}

template <class T> struct bias_pass {
    matrix<T> y;
    const float *bias;
    template <int N> __device__ void run(int64_t row, int64_t col) const {
        pack<T, N> a = load<N>(y, row, col);
        for (int i = 0; i < N; i++) a.v[i] = from_float<T>(to_float(a.v[i]) + bias[col + i]);
        store<N>(y, row, col, a);
    }
};

template <class T> struct fill_pass {
    matrix<T> out;
    T value;
    template <int N> __device__ void run(int64_t row, int64_t col) const {
        for (int i = 0; i < N; i++) out.at(row, col + i) = value;
    }
};

template <class T> void fill(const struct gpu *g, const struct op_call *call, T value) {
    fill_pass<T> p = {matrix_of<T>(g, &call->out[0]), value};
    pass<T>(g, p.out.rows, p.out.cols, false, p);
}

template <class T> struct kv_pass {
    matrix<T> from, cache;
    matrix<int32_t> slots;
    unsigned long long *faults;
    template <int N> __device__ void run(int64_t row, int64_t col) const {
        int32_t slot = slots.at(row, 0);
        if (slot >= cache.rows && col == 0) raise_fault(faults, FAULT_SLOT, row, slot);
        if (slot >= 0 && slot < cache.rows) store<N>(cache, slot, col, load<N>(from, row, col));
    }
};

template <class T> void kv_write(const struct gpu *g, const struct op_call *call) {
    for (int i = 0; i < 2; i++) {
        kv_pass<T> p = {matrix_of<T>(g, &call->in[i]), matrix_of<T>(g, &call->out[i]),
                        matrix_of<int32_t>(g, &call->in[2]), g->faults};
        pass<T>(g, p.from.rows, p.from.cols, wide(p.from) && wide(p.cache), p);
    }
}
} // namespace

extern "C" {
void gpu_add_forward(const struct gpu *g, const struct op_call *call) {
    DISPATCH(call->in[0].dtype, T, add_forward<T>(g, call));
}
void gpu_add_backward(const struct gpu *g, const struct op_call *call) {
    DISPATCH(call->grad_out[0].dtype, T, add_backward<T>(g, call));
}
void gpu_glu_forward(const struct gpu *g, const struct op_call *call) {
    DISPATCH(call->in[0].dtype, T, glu_forward<T>(g, call));
}
void gpu_glu_backward(const struct gpu *g, const struct op_call *call) {
    DISPATCH(call->in[0].dtype, T, glu_backward<T>(g, call));
}
void gpu_act_forward(const struct gpu *g, const struct op_call *call) {
    DISPATCH(call->in[0].dtype, T, act_forward<T>(g, call));
}
void gpu_act_backward(const struct gpu *g, const struct op_call *call) {
    DISPATCH(call->in[0].dtype, T, act_backward<T>(g, call));
}
void gpu_rope_forward(const struct gpu *g, const struct op_call *call) {
    DISPATCH(call->in[0].dtype, T, rope<T>(g, call, false));
}
void gpu_rope_backward(const struct gpu *g, const struct op_call *call) {
    DISPATCH(call->in[0].dtype, T, rope<T>(g, call, true));
}
void gpu_convert(const struct gpu *g, const void *from, enum dtype from_type, int64_t from_ld, void *to,
                 enum dtype to_type, int64_t to_ld, int64_t rows, int64_t cols) {
    DISPATCH(from_type, A, DISPATCH(to_type, B, (convert<A, B>(g, from, from_ld, to, to_ld, rows, cols))));
}
void gpu_copy(const struct gpu *g, const struct op_call *call) {
    const struct tensor *a = &call->in[0], *b = &call->out[0];
    gpu_convert(g, g->arena + a->offset, a->dtype, a->ld, g->arena + b->offset, b->dtype, b->ld, a->rows, a->cols);
}
void gpu_add_bias(const struct gpu *g, void *y, enum dtype dtype, int64_t ld, const float *bias, int64_t rows,
                  int64_t cols) {
    DISPATCH(dtype, T, {
        bias_pass<T> p = {{(T *)y, rows, cols, ld}, bias};
        pass<T>(g, rows, cols, wide(p.y), p);
    });
}
void gpu_fill(const struct gpu *g, const struct op_call *call) {
    double value = call->p.fill.value;
    switch (call->out[0].dtype) {
    case DTYPE_F32: fill<float>(g, call, (float)value); break;
    case DTYPE_BF16: fill<uint16_t>(g, call, bf16_from_float((float)value)); break;
    case DTYPE_I32: fill<int32_t>(g, call, (int32_t)value); break;
    case DTYPE_U32: fill<uint32_t>(g, call, (uint32_t)value); break;
    case DTYPE_F64: fill<double>(g, call, value); break;
    case DTYPE_U8: fill<uint8_t>(g, call, (uint8_t)value); break;
    case DTYPE_NONE: break;
    }
}
void gpu_kv_write(const struct gpu *g, const struct op_call *call) {
    DISPATCH(call->in[0].dtype, T, kv_write<T>(g, call));
}
}
