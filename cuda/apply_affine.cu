// What is left of an instance norm when its scale and shift are known: out = relu(x * scale + shift) + residual, NHWC.
//
// x, residual, out      [images][size][channels] of T; residual may be null, out may be x.     affine [images][channels][2]
// sizes      channels: a multiple of 16 bytes of T. All arrays start at multiples of 16 bytes.
// launch     grid (any, images), any one-dimensional block: a grid-stride loop over 16 bytes.
// moves      x and out once, residual once: nothing is read twice but affine, from the caches.
#include "common/vectors.cuh"

#ifndef TYPE
#define TYPE float
#endif

template <typename T>
__device__ void apply(const T* x, const float* affine, const T* residual, T* out, int channels, long long size, int relu) {
    const int groups = channels / LANES<T>;
    const long long start = blockIdx.y * size * channels, stride = gridDim.x * (long long)blockDim.x;
    affine += blockIdx.y * 2ll * channels;
    for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < size * groups; i += stride) {
        const int channel = i % groups * LANES<T>;
        const long long at = start + i * LANES<T>;
        float value[LANES<T>], added[LANES<T>] = {};
        load(x + at, value);
        if (residual) load(residual + at, added);
        for (int k = 0; k < LANES<T>; k++) {
            const float v = fmaf(value[k], affine[2 * (channel + k)], affine[2 * (channel + k) + 1]);
            value[k] = (relu && v < 0.0f ? 0.0f : v) + added[k];
        }
        store(out + at, value);
    }
}

extern "C" __global__ void apply_affine(const TYPE* x, const float* __restrict__ affine, const TYPE* residual, TYPE* out,
                                        int channels, long long size, int relu) {
    apply(x, affine, residual, out, channels, size, relu);
}
