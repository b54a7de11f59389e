// The last layer: reflection padding and a KERNEL x KERNEL convolution to a picture, NHWC to NCHW with 3 channels; on
// tensor cores, with the norm and ReLU of its input.
//
//   out[n][k][y][x] = bias[k] + sum over dy, dx, c of v[n][reflect(y + dy - PAD)][reflect(x + dx - PAD)][c] * W[k][c][dy][dx]
//
// x, affine, switches, launch       as in conv2d.cu: v = relu(x * scale + shift).
// out        [images][3][height][width] of PICTURE: float, __half, __nv_bfloat16, or unsigned char, which is clamped to
//            0..255 and rounded to the nearest, ties to even (NaN becomes 0).
// weight     packed: [dy][column 32][C_IN], column = 3 * dx + k, see ops/conv2d_ends.py.
// products   three output channels fill no fragment of eight. So the kernel's columns are taken as channels too:
//            P[y][q][3 * dx + k] = sum over dy, c of v[y + dy][q][c] * W[k][c][dy][dx], 27 of 32 columns for KERNEL 9,
//            for all columns q of the halo; then out[y][x][k] = sum over dx of P[y][x + dx][3 * dx + k], in the epilogue.
// numbers    the shifted sum adds float32 in the order of dx.
#ifndef C_IN  // the file alone, as a learner or a test compiles it: something small
#define C_IN 16
#define C_OUT 3
#define STRIDE 1
#define KERNEL 3
#define TILE_H 4
#define TILE_W 14
#define WARPS_M 4
#define WARPS_N 1
#define COLUMNS 16
#define RING 2
#define BLOCKS 1
#endif
#include "common/layer.cuh"
#include "common/pictures.cuh"

#ifndef PICTURE
#define PICTURE float
#endif

struct Shape : Launch {
    static constexpr int kernel = KERNEL, stride = 1, pad = KERNEL / 2, reach = KERNEL - 1;
    static __device__ int border(int i, int n) { return reflected(i, n); }
};
#include "common/halo.cuh"

using S = Shape;
using Number = Shape::type;

constexpr int USED_COLUMNS = 3 * S::kernel, PRODUCT_COLUMNS = (USED_COLUMNS + 15) / 16 * 16, NT = PRODUCT_COLUMNS / 8;
constexpr int ROW_TILES = Halo::HALO_W / 16, WARPS = S::threads / 32, MT = S::tile_h * ROW_TILES / WARPS;
constexpr int WEIGHT_BYTES = S::kernel * PRODUCT_COLUMNS * Halo::GROUPS * 16;
constexpr int PITCH = USED_COLUMNS | 1;  // floats of a pixel of P; odd: neighbouring pixels fall in different banks
constexpr int SUMS_BYTES = S::tile_h * Halo::HALO_W * PITCH * 4;
constexpr int HALO_BYTES = Halo::BYTES > SUMS_BYTES ? Halo::BYTES : SUMS_BYTES;  // P takes the place of the halo
static_assert(Halo::HALO_W % 16 == 0 && S::tile_h * ROW_TILES % WARPS == 0, "whole fragments, alike for every warp");

// P of the warp's MT stretches of 16 pixels.
__device__ void multiply(const Halo& halo, unsigned weights, float (&sums)[MT][NT][4]) {
    const int lane = halo.at.lane, matrix = lane / 8, row = lane % 8;  // as in implicit_gemm.cuh
#pragma unroll
    for (int mt = 0; mt < MT; mt++)
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) sums[mt][n][i] = 0.0f;
#pragma unroll 3
    for (int dy = 0; dy < S::kernel; dy++) {
#pragma unroll
        for (int k = 0; k < Halo::GROUPS / 2; k++) {
            unsigned b[NT / 2][4], a[MT][4];
#pragma unroll
            for (int nt = 0; nt < NT / 2; nt++)
                load_matrices(b[nt], weights + row_offset<Halo::GROUPS>(dy * PRODUCT_COLUMNS + nt * 16 + matrix / 2 * 8 + row,
                                                                        2 * k + matrix % 2));
#pragma unroll
            for (int mt = 0; mt < MT; mt++) {
                const int tile = halo.at.warp * MT + mt;
                const int p = (tile / ROW_TILES + dy) * Halo::PITCH + tile % ROW_TILES * 16 + matrix % 2 * 8 + row;
                load_matrices(a[mt], halo.base + row_offset<Halo::GROUPS>(p, 2 * k + matrix / 2));
            }
#pragma unroll
            for (int mt = 0; mt < MT; mt++)
#pragma unroll
                for (int n = 0; n < NT; n++)
                    product<Number>(sums[mt][n], a[mt], b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
        }
    }
}

__device__ void store_sums(const Place& at, const float (&sums)[MT][NT][4], float* p) {
#pragma unroll
    for (int mt = 0; mt < MT; mt++)
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int column = n * 8 + at.lane % 4 * 2 + i % 2;
                const int pixel = (at.warp * MT + mt) * 16 + i / 2 * 8 + at.lane / 4;  // of tile_h * HALO_W
                if (column < USED_COLUMNS) p[pixel * PITCH + column] = sums[mt][n][i];
            }
}

__device__ void write_picture(const Place& at, const float* p, const float* bias, PICTURE* out) {
    const long long plane = (long long)at.layer.height * at.layer.width;
    out += at.image * 3 * plane;
    for (int i = at.thread; i < 3 * S::tile_h * S::tile_w; i += S::threads) {
        const int x = i % S::tile_w, y = i / S::tile_w % S::tile_h, k = i / (S::tile_w * S::tile_h);
        float sum = S::bias ? bias[k] : 0.0f;
        for (int dx = 0; dx < S::kernel; dx++) sum += p[(y * Halo::HALO_W + x + dx) * PITCH + 3 * dx + k];
        if constexpr (S::relu_out) sum = relu(sum);
        if (at.y0 + y < at.layer.height && at.x0 + x < at.layer.width)
            out[k * plane + (long long)(at.y0 + y) * at.layer.width + at.x0 + x] = picture_of<PICTURE>(sum);
    }
}

extern "C" __global__ void __launch_bounds__(Shape::threads, BLOCKS)
    conv2d_to_picture(const Number* __restrict__ x, const float* __restrict__ affine,
        const Number* __restrict__ weight, const float* __restrict__ bias, PICTURE* __restrict__ out, int height,
        int width) {
    extern __shared__ __align__(128) char dynamic[];
    const unsigned weights = shared_address(dynamic) + HALO_BYTES;
    Layer layer = {};
    layer.x = x, layer.affine = reinterpret_cast<const float2*>(affine);
    layer.height = layer.out_height = height, layer.width = layer.out_width = width;
    const Place at(layer, S::tile_h, S::tile_w);
    const Halo halo{at, shared_address(dynamic)};
    for (int byte = at.thread * 16; byte < WEIGHT_BYTES; byte += S::threads * 16)
        copy_16(weights + byte, reinterpret_cast<const char*>(weight) + byte);
    commit_copies();
    halo.load();
    await_copies<0>();
    __syncthreads();
    float sums[MT][NT][4];
    multiply(halo, weights, sums);
    __syncthreads();  // the halo has been read: P takes its place
    float* p = reinterpret_cast<float*>(dynamic);
    store_sums(at, sums, p);
    __syncthreads();
    write_picture(at, p, bias, out);
}
