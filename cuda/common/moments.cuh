// Mean and variance of numbers that arrive in pieces: the moments (n, mean, M2) and how two of them merge.
//
//   Moments                            n numbers, their mean, and M2, the sum of their squared distances from it
//   add<COUNT>(n, mean, m2, values)    takes in COUNT further numbers                       (Welford 1962, by groups)
//   merge(a, b)                        the moments of both together                         (Chan, Golub, LeVeque 1979)
//   merge_block(m, shared)             the moments of all threads of a block, by shuffles
//   merge_rows(shared, rows, width)    the moments of each column of a table in shared memory, by a tree
//
// why        E[x^2] - E[x]^2 subtracts two nearly equal numbers where the mean is large beside the deviation: at mean
//            4000 and deviation 0.5 nothing is left of float32's 24 bits. Here only distances from a mean are squared.
// numbers    a mean is two floats, a value and what its rounding lost (Knuth's two-sum), because one float at 4000 is
//            off by up to 0.0001, which a deviation of 0.5 does not forgive. Equal numbers have their own value as
//            mean, to the last bit, and M2 = 0. An infinity or a NaN makes M2 NaN. M2 overflows where distances exceed
//            1e19.
// order      fixed by the launch shape, so that the same launch gives the same bits.
#pragma once

struct Mean {
    float value, lost;  // the mean is value + lost; |lost| is at most half a unit in the last place of value

    __device__ void move(float distance) {  // from value, not from value + lost
        const float sum = value + distance, moved = sum - value;
        lost = (value - (sum - moved)) + (distance - moved);
        value = sum;
    }
};

struct alignas(16) Moments {
    float n;
    Mean mean;
    float m2;
};

template <int COUNT>
__device__ void add(float& n, Mean& mean, float& m2, const float (&value)[COUNT]) {
    if (n == 0.0f) mean.value = value[0];  // any number near the values would do: what follows are distances from it
    float distance[COUNT], sum = 0.0f;
    for (int i = 0; i < COUNT; i++) sum += distance[i] = value[i] - mean.value;
    const float center = sum * (1.0f / COUNT);  // the mean of the group, seen from mean.value
    float squares = 0.0f;
    for (int i = 0; i < COUNT; i++) squares += (distance[i] - center) * (distance[i] - center);
    const float before = n, shift = center - mean.lost;
    n += COUNT;
    const float weight = COUNT / n;
    mean.move(mean.lost + shift * weight);
    m2 += squares + shift * shift * (before * weight);
}

__device__ inline Moments merge(Moments a, Moments b) {
    if (b.n == 0.0f) return a;  // also keeps 0 * infinity out
    if (a.n == 0.0f) return b;
    const float n = a.n + b.n, weight = b.n / n;
    const float distance = (b.mean.value - a.mean.value) + (b.mean.lost - a.mean.lost);
    a.mean.move(a.mean.lost + distance * weight);
    return {n, a.mean, a.m2 + b.m2 + distance * distance * (a.n * weight)};
}

__device__ inline Moments merge_warp(Moments m) {  // the result is in lane 0
    for (int offset = 16; offset > 0; offset /= 2)
        m = merge(m, {__shfl_down_sync(0xffffffffu, m.n, offset),
                      {__shfl_down_sync(0xffffffffu, m.mean.value, offset),
                       __shfl_down_sync(0xffffffffu, m.mean.lost, offset)},
                      __shfl_down_sync(0xffffffffu, m.m2, offset)});
    return m;
}

// One-dimensional blocks of whole warps. shared: an element for each of at most 32 warps. Every thread gets the result.
__device__ inline Moments merge_block(Moments m, Moments* shared) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    m = merge_warp(m);
    if (lane == 0) shared[warp] = m;
    __syncthreads();
    if (warp == 0) {
        m = merge_warp(lane < blockDim.x / 32 ? shared[lane] : Moments{});
        if (lane == 0) shared[0] = m;
    }
    __syncthreads();
    return shared[0];
}

// shared: rows x width elements, written before the call and not yet waited for. The result is row 0, for all threads.
__device__ inline void merge_rows(Moments* shared, int rows, int width) {
    __syncthreads();
    while (rows > 1) {
        const int kept = (rows + 1) / 2;
        for (int i = threadIdx.x; i < (rows - kept) * width; i += blockDim.x)
            shared[i] = merge(shared[i], shared[i + kept * width]);
        __syncthreads();
        rows = kept;
    }
}
