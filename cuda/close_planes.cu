// Scale and shift of an instance norm, from the sums of its planes.
//
//   x * scale + shift = (x - mean) / sqrt(variance + eps) * weight + bias        for each image and channel
//
// sums       [images][PLANE_WORDS], as common/plane_sums.cuh says; left zero, for the next to add to
// weight, bias [channels] or null for 1 and 0        affine [images][channels][2]        n: numbers in a plane
// launch     grid images, block PLANE_ENTRIES; 1 to PLANE_ENTRIES channels. With OVERLAP it may begin before the kernel
//            before has ended, as common/programmatic_launch.cuh says
#include "common/plane_sums.cuh"
#include "common/programmatic_launch.cuh"

extern "C" __global__ void __launch_bounds__(PLANE_ENTRIES)
    close_planes(long long* sums, const float* weight, const float* bias, float* affine, int channels, double n, float eps) {
    __shared__ long long words[3][PLANE_ENTRIES];
    const int slots = PLANE_ENTRIES / channels, slot = threadIdx.x / channels, channel = threadIdx.x % channels;
    const float weighted = weight ? weight[channel] : 1.0f, biased = bias ? bias[channel] : 0.0f;
    launch_dependents();
    wait_for_earlier_kernels();  // sums are theirs, and affine may still be read
    if (slot < slots) {
        long long* word = sums + (long long)blockIdx.x * PLANE_WORDS + slot * 3 * channels + channel;
        for (int i = 0; i < 3; i++) {
            words[i][threadIdx.x] = word[i * channels];
            word[i * channels] = 0;
        }
    }
    __syncthreads();
    if (threadIdx.x >= channels) return;
    long long total[3] = {};
    bool marked = false;
    for (int i = channel; i < slots * channels; i += channels) {
        marked |= words[2][i] >= PLANE_POISON;
        for (int k = 0; k < 3; k++) total[k] += words[k][i];
    }
    reinterpret_cast<float2*>(affine)[blockIdx.x * channels + channel] = closed_plane(total, marked, n, weighted, biased, eps);
}
