// See run_memory.h.
#include "train/run_memory.h"

#include "kernels/cuda/cuda_plan.h"

static int of_gpu(const struct session *s, struct run_memory *m, struct error *err) {
    struct gpu_found gpu = {0};
    struct error why = {0};
    struct cuda_layout layout;
    struct cuda_residency stays;
    if (backend_find_gpu(&gpu, &why) && why.code != STATUS_NOINPUT) return error_set(err, why.code, "%s", why.text);
    m->fixed = CUDA_CONTEXT_BYTES + CUDA_GEMM_WORKSPACE;
    m->there = s->options.gpu_memory && (gpu.total == 0 || s->options.gpu_memory < gpu.total) ? s->options.gpu_memory
                                                                                              : gpu.total;
    if (cuda_layout_open(s->model.weights, s->model.n_weights, s->model.n_segments, &layout, err)) return -1;
    uint64_t taken = m->arena + m->fixed;
    cuda_residency_choose(&layout, m->there == 0 ? SIZE_MAX : m->there > taken ? m->there - taken : 0, &stays);
    cuda_layout_close(&layout);
    m->base = stays.resident + (uint64_t)stays.slots * stays.slot;
    m->streamed = stays.streamed;
    return 0;
}

uint64_t run_memory_held(const struct session *s) {
    const struct backend *b = s->device.backend;
    return b->class->held_bytes ? b->class->held_bytes(b) : memory_held();
}

int run_memory_of(const struct session *s, struct run_memory *out, struct error *err) {
    const struct plan *plan = s->device.plan;
    bool gpu = s->options.device == DEVICE_CUDA;
    *out = (struct run_memory){.gpu = gpu, .arena = plan_sealed(plan) ? plan_arena_bytes(plan) : plan_live_bytes(plan)};
    if (gpu) {
        if (of_gpu(s, out, err)) return -1;
    } else
        out->fixed = s->host_bytes, out->there = memory_available();
    out->peak = out->arena + out->base + out->fixed;
    return 0;
}
