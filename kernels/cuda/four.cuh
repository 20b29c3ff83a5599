// Four neighbours of a row at a time, as floats: in one access where `together` says that all rows are aligned for it
// (aligned<4> of launch.cuh) and all four are there, one by one else. Those that are not there read as 0.
#pragma once

#include "kernels/cuda/launch.cuh"

template <class T> static inline __device__ pack<float, 4> load_four(const T *p, int64_t count, bool together) {
    pack<float, 4> out;
    if (together && count >= 4) {
        pack<T, 4> x = *reinterpret_cast<const pack<T, 4> *>(p);
        for (int i = 0; i < 4; i++) out.v[i] = to_float(x.v[i]);
    } else {
        for (int i = 0; i < 4; i++) out.v[i] = i < count ? to_float(p[i]) : 0.0f;
    }
    return out;
}

template <class T> static inline __device__ void store_four(T *p, pack<float, 4> x, int64_t count, bool together) {
    if (together && count >= 4) {
        pack<T, 4> out;
        for (int i = 0; i < 4; i++) out.v[i] = from_float<T>(x.v[i]);
        *reinterpret_cast<pack<T, 4> *>(p) = out;
    } else {
        for (int i = 0; i < 4 && i < count; i++) p[i] = from_float<T>(x.v[i]);
    }
}

// Stores, or adds to what is there.
template <class T>
static inline __device__ void put_four(T *p, pack<float, 4> x, int64_t count, bool together, bool acc) {
    if (acc) {
        pack<float, 4> old = load_four(p, count, together);
        for (int i = 0; i < 4; i++) x.v[i] = old.v[i] + x.v[i];
    }
    store_four(p, x, count, together);
}
