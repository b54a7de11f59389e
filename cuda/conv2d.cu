// Reflection padding of KERNEL / 2 and a convolution, NHWC, on tensor cores; norm, ReLU and residual of its input, and
// bias, ReLU and statistics of its output in the same pass.
//
//   out[n][y][x][k] = bias[k] + sum over dy, dx, c of v[n][reflect(y * STRIDE + dy - PAD)][reflect(...)][c] * W[k][c][dy][dx]
//   v = relu(x * scale + shift) + residual,  scale and shift of the image and channel        each step if it is switched on
//
// x, residual, materialised    [images][height][width][C_IN] of T.        out    [images][out_height][out_width][C_OUT]
// affine     [images][C_IN][2] floats, scale and shift of x. sums [images][PLANE_WORDS]: what close_planes.cu makes those
//            of the next norm of, from out as rounded; zero before the launch (common/plane_sums.cuh).
// weight     packed: [pass][chunk][tap][column][depth], see ops/convolution.py; a stage is one tap and `depth` input
//            channels.                                                    bias   [C_OUT] floats
// switches   -D AFFINE, RELU_IN, RESIDUAL, MATERIALISE (v is written too), STATISTICS (a norm follows), BIAS, RELU_OUT: 0 or 1. What is
//            switched off may be null.
// sizes      KERNEL is odd and KERNEL / 2 < height, width (a reflection cannot be wider than the picture). C_IN * size
//            of T a multiple of 32 bytes, C_OUT of 16. MATERIALISE: STRIDE 1.
// types      NUMBER T is __half, __nv_bfloat16, or float (rounded to TF32 where it meets the tensor core).
// launch     see common/implicit_gemm.cuh; styleforge_lib/ops/conv2d.py holds the table of tiles.
// moves      x once and half again for the halos (18 x 10 pixels for 16 x 8), from the L2 cache; out once.
// computes   2 * KERNEL^2 * C_IN * C_OUT operations a pixel.
//
// The design follows implicit GEMM (Chetlur et al., cuDNN, 2014) with the input tile kept for all taps.
#include "common/layer.cuh"

struct Shape : Launch {
    static constexpr int phases = 1, kernel = KERNEL, taps = KERNEL * KERNEL, stride = STRIDE;
    static constexpr int pad = KERNEL / 2, reach = KERNEL - 1;
    static __device__ int border(int i, int n) { return reflected(i, n); }
    static __device__ int tap_y(int phase, int tap) { return tap / kernel; }
    static __device__ int tap_x(int phase, int tap) { return tap % kernel; }
};

#include "common/implicit_gemm.cuh"

using Number = Shape::type;

extern "C" __global__ void __launch_bounds__(Shape::threads, BLOCKS)
    conv2d(const Number* __restrict__ x, const float* __restrict__ affine, const Number* __restrict__ residual,
        Number* __restrict__ materialised, const Number* __restrict__ weight, const float* __restrict__ bias,
        Number* __restrict__ out, long long* sums, int height, int width, int out_height, int out_width) {
    convolve({x, reinterpret_cast<const float2*>(affine), residual, materialised, weight, bias, out, sums, height, width,
              out_height, out_width});
}
