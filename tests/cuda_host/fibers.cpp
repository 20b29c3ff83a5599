// Kernels on the host: blocks one after another, the threads of a block as fibers that give way only at barriers and
// warp collectives. In which order threads run is not promised by CUDA: GRAFT_CUDA_HOST_ORDER=up|down|NUMBER chooses
// it.
#include "fibers.h"

#include <cstdio>
#include <cstdlib>
#include <vector>

cuda_host_where cuda_host_here;

namespace {
enum { STACK_BYTES = 128 << 10, MAX_THREADS = 1024, WARPS = MAX_THREADS / 32 };
enum state { NOT_STARTED, READY, AT_BARRIER, AT_COLLECTIVE, DONE };

struct fiber {
    void *sp;
    unsigned char *stack;
    enum state state;
    unsigned mask;   // of the collective it waits in
    unsigned parity; // which of its warp's two buffers the next collective uses
    uint3 thread;
};

struct block_run {
    const char *name;
    const std::function<void()> *body;
    fiber fibers[MAX_THREADS];
    unsigned char given[WARPS][2][32][64];
    int count, current;
    void *scheduler_sp;
    std::vector<unsigned char *> stacks; // free ones
    std::vector<unsigned char> shared;
};
block_run run;

// Saves the callee-saved registers on the stack, its pointer in *from, and goes on with the stack `to`.
extern "C" void cuda_host_switch(void **from, void *to);
#if defined(__x86_64__)
asm(".text\n.globl cuda_host_switch\n.type cuda_host_switch,@function\ncuda_host_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp,(%rdi)\nmovq %rsi,%rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n"
    ".size cuda_host_switch,.-cuda_host_switch\n");
#else
#error "the host stand-in of CUDA switches stacks by hand: add this processor's registers here"
#endif

[[noreturn]] void die(const char *what) {
    fprintf(stderr, "cuda_host: kernel %s, block (%u,%u,%u), thread %d: %s\n", run.name, cuda_host_here.block.x,
            cuda_host_here.block.y, cuda_host_here.block.z, run.current, what);
    abort();
}

void give_way(enum state state) {
    fiber &f = run.fibers[run.current];
    f.state = state;
    cuda_host_switch(&f.sp, run.scheduler_sp);
}

[[noreturn]] void first_words() {
    (*run.body)();
    give_way(DONE);
    abort();
}

void start(fiber &f) {
    if (run.stacks.empty()) run.stacks.push_back((unsigned char *)aligned_alloc(64, STACK_BYTES));
    f.stack = run.stacks.back();
    run.stacks.pop_back();
    void **top = (void **)(f.stack + STACK_BYTES);
    *--top = nullptr; // alignment: a function is entered with sp = 8 mod 16
    *--top = (void *)first_words;
    for (int i = 0; i < 6; i++) *--top = nullptr;
    f.sp = top;
}

void resume(int i) {
    fiber &f = run.fibers[i];
    if (f.state == NOT_STARTED) start(f);
    run.current = i;
    cuda_host_here.thread = f.thread;
    cuda_host_switch(&run.scheduler_sp, f.sp);
    if (f.state != DONE) return;
    run.stacks.push_back(f.stack);
    f.stack = nullptr;
}

// Lets go of a barrier that every living thread has reached, and of every collective that all its lanes have.
bool release() {
    int waiting = 0, living = 0;
    bool any = false;
    for (int i = 0; i < run.count; i++) {
        living += run.fibers[i].state != DONE;
        waiting += run.fibers[i].state == AT_BARRIER;
    }
    if (living && waiting == living) {
        for (int i = 0; i < run.count; i++)
            if (run.fibers[i].state == AT_BARRIER) run.fibers[i].state = READY;
        return true;
    }
    for (int base = 0; base < run.count; base += 32) {
        for (int lane = 0; lane < 32 && base + lane < run.count; lane++) {
            const fiber &f = run.fibers[base + lane];
            if (f.state != AT_COLLECTIVE) continue;
            bool all = true;
            unsigned mask = f.mask;
            for (int k = 0; k < 32; k++) {
                if (!(mask >> k & 1) || base + k >= run.count) continue;
                const fiber &other = run.fibers[base + k];
                all &= other.state == AT_COLLECTIVE && other.mask == mask;
            }
            for (int k = 0; k < 32 && all; k++) {
                if (mask >> k & 1 && base + k < run.count) run.fibers[base + k].state = READY;
            }
            any |= all;
        }
    }
    return any;
}

// The n-th thread to run of `count`: up, down, or by a permutation that the seed names.
int nth(int n, int count) {
    static const char *order = getenv("GRAFT_CUDA_HOST_ORDER");
    static unsigned seed = order ? (unsigned)strtoul(order, nullptr, 10) : 0;
    if (!order || strcmp(order, "up") == 0) return n;
    if (strcmp(order, "down") == 0) return count - 1 - n;
    unsigned odd = 2 * (seed % 1024) + 1;
    while (std::gcd(odd, (unsigned)count) != 1) odd += 2;
    return (int)(((unsigned)n * odd + seed) % (unsigned)count);
}

void run_block(dim3 dims) {
    run.count = (int)(dims.x * dims.y * dims.z);
    for (int i = 0; i < run.count; i++) {
        unsigned u = (unsigned)i;
        run.fibers[i] = {nullptr, nullptr, NOT_STARTED, 0, 0, {u % dims.x, u / dims.x % dims.y, u / dims.x / dims.y}};
    }
    if (!run.shared.empty()) memset(run.shared.data(), 0xFF, run.shared.size());
    for (;;) {
        bool ran = false, living = false;
        for (int n = 0; n < run.count; n++) {
            int i = nth(n, run.count);
            if (run.fibers[i].state <= READY) resume(i), ran = true;
            living |= run.fibers[i].state != DONE;
        }
        if (!living) break;
        if (!release() && !ran) die("threads wait for each other: a barrier or collective that not all reach");
    }
}
} // namespace

void __syncthreads() {
    give_way(AT_BARRIER);
}

const unsigned char (*cuda_host_collect(unsigned mask, const void *mine, size_t bytes))[64] {
    fiber &f = run.fibers[run.current];
    int warp = run.current / 32, lane = run.current % 32;
    if (!(mask >> lane & 1)) die("a collective whose mask leaves out the thread that calls it");
    auto *buffer = run.given[warp][f.parity];
    f.parity ^= 1;
    memcpy(buffer[lane], mine, bytes);
    f.mask = mask;
    give_way(AT_COLLECTIVE);
    return buffer;
}

void __syncwarp(unsigned mask) {
    unsigned char nothing = 0;
    cuda_host_collect(mask, &nothing, 1);
}

void *cuda_host_dynamic_shared() {
    return run.shared.data();
}

void cuda_host_run_kernel(const char *name, dim3 grid, dim3 block, size_t shared, const std::function<void()> &body) {
    enum { GUARD = 64 };
    run.name = name, run.body = &body;
    run.shared.assign(shared + GUARD, 0xFF);
    cuda_host_here.block_dim = block, cuda_host_here.grid_dim = grid;
    for (unsigned z = 0; z < grid.z; z++) {
        for (unsigned y = 0; y < grid.y; y++) {
            for (unsigned x = 0; x < grid.x; x++) {
                cuda_host_here.block = {x, y, z};
                run_block(block);
                for (int i = 0; i < GUARD; i++)
                    if (run.shared[shared + (size_t)i] != 0xFF) die("wrote behind its shared memory");
            }
        }
    }
}
