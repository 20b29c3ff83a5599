// See include/collective.h. Copies happen as late as they may: when their thread waits for them.
#include <cuda_runtime.h>

#include "kernels/tensor.h"

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>

namespace {
float half_of(uint32_t pair, int i) {
    return bf16_to_float((uint16_t)(pair >> 16 * i));
}

struct copy {
    void *to;
    const void *from;
    bool valid;
};
struct queue {
    std::deque<std::deque<copy>> groups{1}; // the last one is open
};
std::map<unsigned, queue> queues; // by thread of the running block

queue &mine() {
    unsigned at = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    return queues[at];
}
} // namespace

void cuda_host_mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2]) {
    uint32_t both[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    auto all = cuda_host_collect(0xFFFFFFFFu, both, sizeof both);
    unsigned lane = cuda_host_lane(), group = lane / 4, part = lane % 4;
    auto get = [&](unsigned of, int word, int half) {
        uint32_t x;
        memcpy(&x, all[of] + 4 * word, 4);
        return half_of(x, half);
    };
    for (int i = 0; i < 4; i++) {
        unsigned column = 2 * part + (unsigned)(i % 2);
        for (unsigned k = 0; k < 16; k++) {
            float x = get(group * 4 + k % 8 / 2, (int)(k / 8 * 2) + i / 2, (int)(k % 2));
            float y = get(column * 4 + k % 8 / 2, 4 + (int)(k / 8), (int)(k % 2));
            d[i] = fmaf(x, y, d[i]);
        }
    }
}

void cuda_host_load_matrices(uint32_t r[4], const void *row, bool transposed) {
    if ((uintptr_t)row % 16) {
        fprintf(stderr, "cuda_host: load_matrices from an address that is no multiple of 16\n");
        abort();
    }
    auto all = cuda_host_collect(0xFFFFFFFFu, &row, sizeof row);
    unsigned lane = cuda_host_lane(), major = lane / 4, minor = 2 * (lane % 4);
    for (unsigned j = 0; j < 4; j++) {
        uint16_t pair[2];
        for (unsigned i = 0; i < 2; i++) {
            unsigned from = transposed ? minor + i : major, column = transposed ? major : minor + i;
            const uint16_t *p;
            memcpy(&p, all[8 * j + from], sizeof p);
            pair[i] = p[column];
        }
        r[j] = pair[0] | (uint32_t)pair[1] << 16;
    }
    // Other lanes may only write on when all have read.
    __syncwarp();
}

void cuda_host_copy_ahead(void *shared, const void *global, bool valid) {
    if ((uintptr_t)shared % 16 || (valid && (uintptr_t)global % 16)) {
        fprintf(stderr, "cuda_host: copy_ahead with an address that is no multiple of 16\n");
        abort();
    }
    memset(shared, 0xFF, 16);
    mine().groups.back().push_back({shared, global, valid});
}
void cuda_host_copy_group() {
    mine().groups.emplace_back();
}
void cuda_host_copy_wait(int left) {
    queue &q = mine();
    while ((int)q.groups.size() - 1 > left) {
        for (const copy &c : q.groups.front()) {
            if (c.valid)
                memcpy(c.to, c.from, 16);
            else
                memset(c.to, 0, 16);
        }
        q.groups.pop_front();
    }
}
