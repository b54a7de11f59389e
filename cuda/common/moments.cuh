// Mean and variance of numbers that arrive in pieces: the moments (n, mean, M2) and how two of them merge.
//
//   Moments                                    n numbers, their mean, and M2, the sum of their squared distances from it
//   add<COUNT>(n, mean, m2, values)            takes in COUNT further numbers (Welford 1962, by groups)
//   merge(a, b)                                the moments of both together (Chan, Golub, LeVeque 1979)
//   merge_warp(m), merge_block(m, shared)      the moments of all threads of a warp or block, by shuffles
//
// why        E[x^2] - E[x]^2 subtracts two nearly equal numbers where the mean is large beside the deviation: at mean
//            4000 and deviation 0.5 nothing is left of float32's 24 bits. Here only distances from a mean are squared.
// numbers    a mean is two floats, a value and what its rounding lost (Knuth's two-sum), because one float at 4000 is
//            off by up to 0.0001, which a deviation of 0.5 does not forgive. Equal numbers have their own value as
//            mean, to the last bit, and M2 = 0. An infinity or a NaN makes M2 NaN. M2 overflows where distances exceed
//            1e19.
// order      fixed by the launch shape, so that the same launch gives the same bits. __fmul_rn where a product must not
//            be taken into a following sum: whether it is would be the compiler's choice, and another one in each lane.
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
    const float center = __fmul_rn(sum, 1.0f / COUNT);  // the mean of the group, seen from mean.value
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

// The moments of the 32 threads of a warp, for all of them. Their means are measured from lane 0's: first the distance
// of the common mean, then M2 from there. Two sums by shuffles, where a tree of `merge` divides five times in a row.
__device__ inline Moments merge_warp(Moments m) {
    const auto sum = [](float value) {
        for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
        return value;
    };
    Mean mean = {__shfl_sync(0xffffffffu, m.mean.value, 0), __shfl_sync(0xffffffffu, m.mean.lost, 0)};
    const float distance = m.n == 0.0f ? 0.0f : (m.mean.value - mean.value) + (m.mean.lost - mean.lost);
    const float n = sum(m.n), center = sum(__fmul_rn(m.n, distance)) / fmaxf(n, 1.0f), off = distance - center;
    const float m2 = sum(fmaf(m.n * off, off, m.m2));
    mean.move(mean.lost + center);
    return {n, mean, m2};
}

// One-dimensional blocks of whole warps. shared: an element for each of at most 32 warps, which nobody uses any more.
// Every thread gets the result, for every warp works it out.
__device__ inline Moments merge_block(Moments m, Moments* shared) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    m = merge_warp(m);
    if (lane == 0) shared[warp] = m;
    __syncthreads();
    return merge_warp(lane < blockDim.x / 32 ? shared[lane] : Moments{});
}
