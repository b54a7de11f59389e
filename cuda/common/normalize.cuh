// What the files of instance norm share: where a block works, and what is done with a number.
//
//   Piece                         NCHW: the part of a plane that a block works on
//   near_first(x, ...)            a number near the first few of a plane: what its distances are measured from
//   cancelled(square, m2)         whether distances from such a number have lost too much of M2
//   inverse_root(v)               1 / sqrt(v), rounded to nearest, or nearly always
//   Affine                        of a plane: out = (x - mean) * scale + shift
//   save(...)                     of a plane, for the backward pass
//   finish(...)                   that for one number; then the residual, and ReLU
#pragma once
#include "moments.cuh"
#include "vectors.cuh"

// Block b works on piece b % pieces of plane b / pieces: numbers [piece * length, (piece + 1) * length).
struct Piece {
    int plane;
    long long start, count;

    __device__ Piece(long long size, long long length, int pieces, int block = blockIdx.x) {
        plane = block / pieces;
        const long long begin = block % pieces * length;
        start = size * plane + begin;
        count = begin + length < size ? length : size - begin;
    }
};

// The mean of up to four numbers x[0], x[step] ..., or COUNT means of what lies together there: of equal ones exactly
// their value, and never out of their range.
template <int COUNT, typename T>
__device__ void near_first(const T* x, long long count, long long step, float (&mean)[COUNT]) {
    float value[4][COUNT];
    for (int i = 0; i < 4; i++) load(x + (i < count ? i * step : 0), value[i]);
    for (int k = 0; k < COUNT; k++) {
        float distance = 0.0f;
        for (int i = 1; i < 4; i++) distance += value[i][k] - value[0][k];
        mean[k] = fmaf(distance, 0.25f, value[0][k]);
    }
}

// With p instead of the mean, sum (x - p)^2 is larger than M2 by n (mean - p)^2, which is then taken away: M2 keeps the
// rounding errors of what was added. Up to 8 times as much costs a root of it 4 times the rounding of a sum that tens of
// thousands of threads share: less than the last place.
__device__ inline bool cancelled(float squares, float m2) { return squares > 8.0f * m2; }  // not if either is NaN

// The quotient alone is off by up to 1.5 units in the last place, and a step of Newton's method, its residual
// 1 - v * s * s taken by fused multiply-adds, repairs it.
__device__ inline float inverse_root(float v) {
    const float s = 1.0f / sqrtf(v), product = v * s, lost = fmaf(v, s, -product);
    return fmaf(0.5f * s, fmaf(-lost, s, fmaf(-product, s, 1.0f)), s);
}

struct alignas(16) Affine {
    float mean, scale, shift;

    Affine() = default;

    // For a channel with these moments. What the mean's rounding lost is in shift. weight, bias: null for 1 and 0.
    template <typename T>
    __device__ Affine(Moments m, const T* weight, const T* bias, long long channel, float eps) {
        mean = m.mean.value;
        scale = inverse_root(m.m2 / m.n + eps);
        if (weight) scale *= to_float(weight[channel]);
        shift = fmaf(-m.mean.lost, scale, bias ? to_float(bias[channel]) : 0.0f);
    }
};

// What the backward pass needs of a plane: its mean, what its rounding lost, and 1 / deviation.
__device__ inline void save(float* saved, Moments m, float eps, int plane) {
    saved[3LL * plane] = m.mean.value;
    saved[3LL * plane + 1] = m.mean.lost;
    saved[3LL * plane + 2] = inverse_root(m.m2 / m.n + eps);
}

// One number, to which `added` is added where `add`, and which becomes 0 if it is negative where `cut`.
__device__ inline float finish(float x, float added, bool add, const Affine& affine, bool cut) {
    float y = fmaf(x - affine.mean, affine.scale, affine.shift);
    if (add) y += added;
    return cut ? relu(y) : y;
}
