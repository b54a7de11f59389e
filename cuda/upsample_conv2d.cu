// Nearest upsampling by 2, reflection padding of 1 and a 3x3 convolution, as four 2x2 convolutions of the small picture.
//
//   out[n][2i + a][2j + b][k] = sum over r, s, c of v[n][clamp(i - 1 + a + r)][clamp(j - 1 + b + s)][c] * F[a, b][k][c][r][s]
//
// why        the three rows that an output row reads from the upsampled picture are two rows of the small one, one of
//            them twice: for a = 0 rows i - 1, i, i with weights w0, w1, w2, so w0 and w1 + w2; for a = 1 rows i, i,
//            i + 1, so w0 + w1 and w2. Columns alike. Reflecting an upsampled edge repeats the same source pixel, which
//            is why the border is clamped. 4/9 of the operations, and no upsampled tensor.
// weight     the folded F, packed as for conv2d.cu with column = (2a + b) * C_OUT + k and four taps, 2r + s. Folded in
//            float32 and rounded once.
// x, out     [images][height][width][C_IN], [images][2 height][2 width][C_OUT].
// All else is as in conv2d.cu: switches, types, launch; the tile is cut from the small picture. Any size from 1x1.
//
// The idea is the sub-pixel view of resize-convolution (Odena et al. 2016, Shi et al. 2016).
#include "common/layer.cuh"

struct Shape : Launch {
    static constexpr int phases = 4, taps = 4, stride = 1, pad = 1, reach = 2;
    static __device__ int border(int i, int n) { return clamped(i, n); }
    static __device__ int tap_y(int phase, int tap) { return phase / 2 + tap / 2; }
    static __device__ int tap_x(int phase, int tap) { return phase % 2 + tap % 2; }
};

#include "common/implicit_gemm.cuh"

using Number = Shape::type;

extern "C" __global__ void __launch_bounds__(Shape::threads, BLOCKS)
    upsample_conv2d(const Number* __restrict__ x, const float* __restrict__ affine, const Number* __restrict__ residual,
        Number* __restrict__ materialised, const Number* __restrict__ weight, const float* __restrict__ bias,
        Number* __restrict__ out, long long* sums, int height, int width, int out_height, int out_width) {
    convolve({x, reinterpret_cast<const float2*>(affine), residual, materialised, weight, bias, out, sums, height, width,
              out_height, out_width});
}
