// The moments of tiles become the scale and shift of an instance norm: what lies between two fused convolutions.
//
//   affine[n][c] = (scale, shift)     scale = weight[c] / sqrt(M2 / count + eps),  shift = bias[c] - mean * scale
//
// partial    [images][rows][channels][4] floats: (count, mean, what the mean's rounding lost, M2), see common/moments.cuh.
//            A row of count 0 is left out.
// weight, bias       [channels] floats, each may be null: 1 and 0.
// affine     [images][channels][2] floats.
// launch     grid (channels / CHANNELS rounded up, images), THREADS threads.
// moves      partial once: 16 bytes a channel and tile, 1 MB for 128 channels of 256x256 in tiles of 16x8.
// numbers    merged in an order that the number of rows alone decides: no atomics, same moments, same bits.
#include "common/moments.cuh"

constexpr int THREADS = 1024, CHANNELS = 4;  // 4 channels of 16 bytes: rows are read by whole sectors of 32 bytes
constexpr int LINES = THREADS / CHANNELS;    // rows that are taken in at once

extern "C" __global__ void __launch_bounds__(THREADS)
    merge_moments(const float* __restrict__ partial, const float* __restrict__ weight, const float* __restrict__ bias,
        float* __restrict__ affine, int channels, int rows, float eps) {
    __shared__ Moments shared[THREADS];
    const int own = threadIdx.x % CHANNELS, channel = blockIdx.x * CHANNELS + own, image = blockIdx.y;
    Moments m = {};
    if (channel < channels) {
        const float4* column = reinterpret_cast<const float4*>(partial) + (long long)image * rows * channels + channel;
#pragma unroll 4
        for (int row = threadIdx.x / CHANNELS; row < rows; row += LINES) {
            const float4 v = column[(long long)row * channels];
            m = merge(m, {v.x, {v.y, v.z}, v.w});
        }
    }
    shared[threadIdx.x] = m;
    merge_rows(shared, rows < LINES ? rows : LINES, CHANNELS);
    if (threadIdx.x < CHANNELS && channel < channels) {
        const Moments all = shared[threadIdx.x];
        const float scale = (weight ? weight[channel] : 1.0f) / sqrtf(all.m2 / all.n + eps);
        const float mean = all.mean.value + all.mean.lost;
        float2* out = reinterpret_cast<float2*>(affine) + (long long)image * channels + channel;
        *out = make_float2(scale, (bias ? bias[channel] : 0.0f) - mean * scale);
    }
}
