// The runtime's calls on host memory. Streams are queues: what is enqueued runs when somebody waits for it, so that a
// caller that forgets to wait, or reuses memory too early, is found out. GRAFT_CUDA_HOST_STREAMS=late (the default),
// eager, others (all but the first stream made are eager), or a number: then a random part of the waiting work runs at
// every call. Device memory is poisoned, has guards on both sides, and copies are checked to lie in it.
#include "fibers.h"

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

struct CUevent_st {
    CUstream_st *stream = nullptr; // where it was recorded last
    uint64_t ticket = 0;           // of that record
};

struct work {
    std::function<void()> run;       // nullptr: only waits
    CUstream_st *wait_for = nullptr; // until that stream has done `ticket`
    uint64_t ticket = 0;
};

struct CUstream_st {
    std::deque<work> queue;
    uint64_t enqueued = 0, done = 0; // tickets
    std::vector<work> *capture = nullptr;
};

struct CUgraph_st {
    std::vector<work> items;
};
struct CUgraphExec_st {
    std::vector<work> items;
};

namespace {
enum { GUARD = 256 };

struct fault {
    long calls = 0, kth = 0;
    cudaError_t error = cudaSuccess;
};
struct block {
    size_t bytes;
    bool device;
};
struct machine {
    std::map<std::string, fault> faults;
    std::map<uintptr_t, block> memory;      // by address
    std::map<uintptr_t, size_t> registered; // host memory that copies may use late
    std::vector<CUstream_st *> streams;
    size_t bytes = 0, total = (size_t)8 << 30;
    cudaError_t last = cudaSuccess, sticky = cudaSuccess;
    unsigned random = 1;
};
machine m;

cudaError_t give(cudaError_t e) {
    if (e != cudaSuccess) m.last = e;
    return e;
}

// Environment: GRAFT_CUDA_HOST_FAIL=cudaMalloc:3:2 fails the third call with error 2.
void faults_from_environment() {
    static bool seen = false;
    const char *s = seen ? nullptr : getenv("GRAFT_CUDA_HOST_FAIL");
    seen = true;
    if (!s) return;
    std::string text = s;
    size_t a = text.find(':'), b = text.rfind(':');
    m.faults[text.substr(0, a)] = {0, atol(text.c_str() + a + 1), (cudaError_t)atoi(text.c_str() + b + 1)};
}

cudaError_t enter(const char *function) {
    faults_from_environment();
    fault &f = m.faults[function];
    f.calls++;
    if (m.sticky != cudaSuccess) return m.sticky;
    return f.kth && f.calls == f.kth ? f.error : cudaSuccess;
}
#define ENTER()                                                                                                        \
    do {                                                                                                               \
        cudaError_t entered = enter(__func__);                                                                         \
        if (entered != cudaSuccess) return give(entered);                                                              \
    } while (0)

// Runs the stream's work up to and with `ticket`.
void run_to(CUstream_st *s, uint64_t ticket) {
    while (s->done < ticket && !s->queue.empty()) {
        work w = std::move(s->queue.front());
        s->queue.pop_front();
        if (w.wait_for) run_to(w.wait_for, w.ticket);
        if (w.run && m.sticky == cudaSuccess) w.run();
        s->done++;
    }
}

void run_some() {
    static const char *mode = getenv("GRAFT_CUDA_HOST_STREAMS");
    if (!mode || strcmp(mode, "late") == 0) return;
    bool eager = strcmp(mode, "eager") == 0, others = strcmp(mode, "others") == 0;
    if (!eager && !others && m.random == 1) m.random = 2 * (unsigned)strtoul(mode, nullptr, 10) + 3;
    for (CUstream_st *s : m.streams) {
        if (others) {
            if (s != m.streams.front()) run_to(s, s->enqueued);
            continue;
        }
        m.random = m.random * 1664525u + 1013904223u;
        uint64_t waiting = s->enqueued - s->done, some = eager ? waiting : (m.random >> 16) % (waiting + 1);
        run_to(s, s->done + some);
    }
}

// The stream that stands for NULL: made at the first use.
CUstream_st *stream_of(cudaStream_t s) {
    static CUstream_st *null_stream = nullptr;
    if (s) return s;
    if (!null_stream) m.streams.push_back(null_stream = new CUstream_st);
    return null_stream;
}

void enqueue(cudaStream_t stream, work w) {
    CUstream_st *s = stream_of(stream);
    if (s->capture) {
        s->capture->push_back(std::move(w));
        return;
    }
    s->queue.push_back(std::move(w));
    s->enqueued++;
    run_some();
}

const std::pair<const uintptr_t, block> *find(const void *p, size_t bytes) {
    auto it = m.memory.upper_bound((uintptr_t)p);
    if (it == m.memory.begin()) return nullptr;
    --it;
    return (uintptr_t)p + bytes <= it->first + it->second.bytes ? &*it : nullptr;
}
bool on_device(const void *p, size_t bytes) {
    auto b = find(p, bytes);
    return b && b->second.device;
}
bool pinned(const void *p, size_t bytes) {
    auto b = find(p, bytes);
    if (b && !b->second.device) return true;
    auto it = m.registered.upper_bound((uintptr_t)p);
    return it != m.registered.begin() && (--it, (uintptr_t)p + bytes <= it->first + it->second);
}

cudaError_t allocate(void **p, size_t bytes, bool device) {
    if (bytes == 0) return *p = nullptr, cudaSuccess;
    if (device && bytes > m.total - m.bytes) return give(cudaErrorMemoryAllocation);
    size_t whole = (bytes + 255) / 256 * 256 + 2 * GUARD;
    unsigned char *at = (unsigned char *)aligned_alloc(256, whole);
    if (!at) return give(cudaErrorMemoryAllocation);
    memset(at, 0xFF, whole); // NaN in every float
    *p = at + GUARD;
    m.memory[(uintptr_t)*p] = {bytes, device};
    if (device) m.bytes += bytes;
    return cudaSuccess;
}

cudaError_t release(void *p, bool device) {
    if (!p) return cudaSuccess;
    for (CUstream_st *s : m.streams) run_to(s, s->enqueued); // as cudaFree does
    auto it = m.memory.find((uintptr_t)p);
    if (it == m.memory.end() || it->second.device != device) return give(cudaErrorInvalidValue);
    unsigned char *at = (unsigned char *)p;
    for (size_t i = 0; i < GUARD; i++) {
        if (at[-1 - (ptrdiff_t)i] == 0xFF && at[it->second.bytes + i] == 0xFF) continue;
        fprintf(stderr, "cuda_host: a block of %zu bytes was overrun\n", it->second.bytes);
        abort();
    }
    if (device) m.bytes -= it->second.bytes;
    m.memory.erase(it);
    memset(at, 0xFF, 1);
    free(at - GUARD);
    return cudaSuccess;
}

cudaError_t wait(CUstream_st *s, uint64_t ticket) {
    run_to(s, ticket);
    return m.sticky != cudaSuccess ? give(m.sticky) : cudaSuccess;
}
} // namespace

void cuda_host_enqueue_kernel(const char *name, dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
                              std::function<void()> thread) {
    cudaError_t entered = enter("kernel");
    if (m.sticky != cudaSuccess) {
        give(m.sticky);
        return;
    }
    uint64_t threads = (uint64_t)block.x * block.y * block.z, blocks = (uint64_t)grid.x * grid.y * grid.z;
    if (!threads || threads > 1024 || !blocks || grid.x > 0x7FFFFFFFu || grid.y > 65535 || grid.z > 65535 ||
        shared > 227 << 10) {
        fprintf(stderr, "cuda_host: %s<<<(%u,%u,%u), (%u,%u,%u), %zu>>>\n", name, grid.x, grid.y, grid.z, block.x,
                block.y, block.z, shared);
        give(cudaErrorInvalidConfiguration);
        return;
    }
    enqueue(stream, {[=] {
                         if (entered != cudaSuccess)
                             m.sticky = entered;
                         else
                             cuda_host_run_kernel(name, grid, block, shared, thread);
                     },
                     nullptr, 0});
}

extern "C" {

void cuda_host_fail(const char *function, long kth, cudaError_t error) {
    m.faults[function] = {0, kth, error};
    m.sticky = m.last = cudaSuccess;
}
long cuda_host_calls(const char *function) {
    return m.faults[function].calls;
}
size_t cuda_host_bytes(void) {
    return m.bytes;
}
void cuda_host_memory(size_t total) {
    m.total = total;
}

const char *cudaGetErrorName(cudaError_t e) {
    switch (e) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
    case cudaErrorInsufficientDriver: return "cudaErrorInsufficientDriver";
    case cudaErrorNoDevice: return "cudaErrorNoDevice";
    case cudaErrorECCUncorrectable: return "cudaErrorECCUncorrectable";
    case cudaErrorNotReady: return "cudaErrorNotReady";
    case cudaErrorIllegalAddress: return "cudaErrorIllegalAddress";
    case cudaErrorLaunchFailure: return "cudaErrorLaunchFailure";
    case cudaErrorStreamCaptureUnsupported: return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorUnknown: break;
    }
    return "cudaErrorUnknown";
}
const char *cudaGetErrorString(cudaError_t e) {
    return cudaGetErrorName(e);
}
cudaError_t cudaGetLastError(void) {
    cudaError_t e = m.last;
    m.last = m.sticky;
    return e;
}
cudaError_t cudaPeekAtLastError(void) {
    return m.last;
}
cudaError_t cudaDriverGetVersion(int *version) {
    ENTER();
    return *version = 13000, cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version) {
    ENTER();
    return *version = 13000, cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int *count) {
    ENTER();
    return *count = 1, cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
    ENTER();
    return device == 0 ? cudaSuccess : give(cudaErrorInvalidValue);
}
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    ENTER();
    (void)device;
    switch (attribute) {
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 227 << 10; break;
    case cudaDevAttrMultiProcessorCount: *value = 3; break;
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    }
    return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
    ENTER();
    return *total = m.total, *available = m.total - m.bytes, cudaSuccess;
}
cudaError_t cudaMalloc(void **p, size_t bytes) {
    ENTER();
    return allocate(p, bytes, true);
}
cudaError_t cudaFree(void *p) {
    enter(__func__);
    return release(p, true);
}
cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned flags) {
    ENTER();
    (void)flags;
    return allocate(p, bytes, false);
}
cudaError_t cudaFreeHost(void *p) {
    enter(__func__);
    return release(p, false);
}
cudaError_t cudaHostRegister(void *p, size_t bytes, unsigned flags) {
    ENTER();
    (void)flags;
    m.registered[(uintptr_t)p] = bytes;
    return cudaSuccess;
}
cudaError_t cudaHostUnregister(void *p) {
    enter(__func__);
    return m.registered.erase((uintptr_t)p) ? cudaSuccess : give(cudaErrorInvalidValue);
}

cudaError_t cudaMemcpy2DAsync(void *dst, size_t dst_pitch, const void *src, size_t src_pitch, size_t width,
                              size_t height, enum cudaMemcpyKind kind, cudaStream_t stream) {
    ENTER();
    if (width == 0 || height == 0) return cudaSuccess;
    size_t to = (height - 1) * dst_pitch + width, from = (height - 1) * src_pitch + width;
    bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (to_device != on_device(dst, to) || from_device != on_device(src, from)) return give(cudaErrorInvalidValue);
    const unsigned char *begin = (const unsigned char *)src;
    std::shared_ptr<std::vector<unsigned char>> staged;
    if (!from_device && !pinned(src, from)) { // pageable memory is read before the call returns
        staged = std::make_shared<std::vector<unsigned char>>(begin, begin + from);
        begin = staged->data();
    }
    enqueue(stream, {[=] {
                         (void)staged; // lives as long as this
                         for (size_t i = 0; i < height; i++)
                             memcpy((unsigned char *)dst + i * dst_pitch, begin + i * src_pitch, width);
                     },
                     nullptr, 0});
    if (!to_device && !pinned(dst, to)) return wait(stream_of(stream), stream_of(stream)->enqueued);
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream) {
    ENTER();
    return cudaMemcpy2DAsync(dst, bytes, src, bytes, bytes, 1, kind, stream);
}
cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t stream) {
    ENTER();
    if (!on_device(p, bytes)) return give(cudaErrorInvalidValue);
    enqueue(stream, {[=] { memset(p, value, bytes); }, nullptr, 0});
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
    ENTER();
    (void)flags;
    m.streams.push_back(*stream = new CUstream_st);
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    enter(__func__);
    run_to(stream, stream->enqueued);
    std::erase(m.streams, stream);
    delete stream;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    ENTER();
    CUstream_st *s = stream_of(stream);
    return s->capture ? give(cudaErrorStreamCaptureUnsupported) : wait(s, s->enqueued);
}
cudaError_t cudaDeviceSynchronize(void) {
    ENTER();
    for (CUstream_st *s : m.streams) run_to(s, s->enqueued);
    return m.sticky != cudaSuccess ? give(m.sticky) : cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
    ENTER();
    (void)flags;
    if (event->stream) enqueue(stream, {nullptr, event->stream, event->ticket});
    return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
    ENTER();
    (void)flags;
    *event = new CUevent_st;
    return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    enter(__func__);
    delete event;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    ENTER();
    event->stream = stream_of(stream);
    event->ticket = event->stream->enqueued;
    return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
    ENTER();
    return !event->stream || event->stream->done >= event->ticket ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    ENTER();
    return event->stream ? wait(event->stream, event->ticket) : cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t from, cudaEvent_t to) {
    ENTER();
    (void)from, (void)to;
    return *milliseconds = 1, cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    ENTER();
    (void)mode;
    stream->capture = new std::vector<work>;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    ENTER();
    *graph = new CUgraph_st{std::move(*stream->capture)};
    delete stream->capture;
    stream->capture = nullptr;
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags) {
    ENTER();
    (void)flags;
    *exec = new CUgraphExec_st{graph->items};
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    ENTER();
    for (const work &w : exec->items) enqueue(stream, w);
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    enter(__func__);
    delete graph;
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    enter(__func__);
    delete exec;
    return cudaSuccess;
}
}
